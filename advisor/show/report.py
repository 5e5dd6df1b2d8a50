"""What people see of a recommendation, on a screen or as JSON. It decides nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation, tie_set
from advisor.show.as_data import said
from advisor.show.candidate_tables import figures_of, pareto_table, runners_up
from advisor.show.console import console
from advisor.show.headline import against, headline
from advisor.show.outlook import outlook
from advisor.show.refused import refused_table
from advisor.show.script import batching_words, loading_lines
from advisor.terminal import duration


def recommendation_payload(recommendation: Recommendation, device: str) -> dict[str, Any]:
    """Return the recommendation as JSON values, with the lines to paste; there are none where nothing is recommended."""
    chosen, facts = recommendation.chosen, recommendation.facts
    return {
        **recommendation.payload,
        "load": _lines_to_paste(recommendation, chosen, device) if chosen else [],
        "model_kwargs": said(chosen.configuration).model_kwargs if chosen else {},
        "batching": batching_words(chosen.configuration, facts) if chosen else "",
        "tied_with": [candidate.configuration.spelled for candidate in tie_set(recommendation)],
    }


def print_recommendation(recommendation: Recommendation, device: str, *, stderr: bool, pareto: bool = False) -> None:
    """Print a recommendation for people. pareto: with what no other beats in speed, memory and quality at once."""
    study, out = recommendation.study, console(stderr=stderr)
    when = (study.finished_at or study.started_at).date().isoformat()
    out.print(f"[bold]{escape(recommendation.source.name)}[/] · {escape(str(study.workload))}")
    out.print(f"measured {when} on {escape(str(study.environment))}, environment {study.environment_key}")
    out.print(escape(_tried(recommendation)))
    out.print(f"{_looked(recommendation)}\n")
    mark = "[green]▸[/]" if recommendation.chosen else "[red]▸[/]"
    out.print(f"{mark} {headline(recommendation)}")
    for line in against(recommendation):
        out.print(_indented(line))
    if recommendation.chosen is not None:
        for line in figures_of(recommendation, recommendation.chosen).splitlines():
            out.print(_indented(escape(line.strip())))
        out.print(f"  quality tier: {recommendation.tier}")
    for note in recommendation.notes:
        out.print(_indented(f"[yellow]note:[/] {escape(note)}"))
    for line in outlook(recommendation):
        is_command = line.startswith(("to go on", "to measure"))  # to be copied: it is never broken
        out.print(f"  {line}" if is_command else _indented(line), soft_wrap=is_command)
    out.print()
    if recommendation.chosen is not None:
        _print_lines(out, recommendation, recommendation.chosen, device)
    if pareto:
        out.print(pareto_table(recommendation))
        out.print()
    if recommendation.runners_up:
        out.print(runners_up(recommendation))
        out.print()
    if recommendation.refusals or recommendation.failures:
        out.print(refused_table(recommendation.refusals, [t for t in recommendation.failures if t.phase == "search"]))


def _print_lines(out: Console, recommendation: Recommendation, chosen: Candidate, device: str) -> None:
    lines = _lines_to_paste(recommendation, chosen, device)
    out.print(Text("\n".join("    " + line for text in lines for line in text.splitlines())), soft_wrap=True)
    batching = batching_words(chosen.configuration, recommendation.facts)
    out.print(f"    [dim]# batches: {escape(batching)} (--format python prints the whole script)[/]\n", soft_wrap=True)


def _lines_to_paste(recommendation: Recommendation, chosen: Candidate, device: str) -> list[str]:
    workload = recommendation.study.workload
    return loading_lines(recommendation.source, chosen.configuration, recommendation.facts, workload, device)


def _tried(recommendation: Recommendation) -> str:
    tried, admissible, share = recommendation.tried, recommendation.admissible, recommendation.share_tried
    text = f"{tried} of {admissible} admissible configurations tried" if admissible else f"{tried} configurations tried"
    text += f" ({share:.0%})" if share is not None and share < 1 else ""
    return f"{text}; the search stopped: {recommendation.why}" if recommendation.why else text


def _looked(recommendation: Recommendation) -> str:
    """Return what it cost to look for outputs that depend on neighbours, pads or the layout."""
    looked_s, spent_s = recommendation.looked_s, recommendation.spent_s
    share = f", {looked_s / spent_s:.1%} of the trials' {duration(spent_s)}" if spent_s > 0 else ""
    return f"independence and layout were looked at in {looked_s:.1f} s{share}"


def _indented(line: str) -> Padding:
    """Return a line with markup, all of whose lines are indented where it is broken."""
    return Padding(Text.from_markup(line.lstrip()), (0, 0, 0, 2 + len(line) - len(line.lstrip())), expand=False)
