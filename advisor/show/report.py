"""What people see of a recommendation, on a screen or as JSON. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
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
from advisor.show.refused import counted, refused_table
from advisor.show.source_lines import batching_words, loading_lines
from advisor.terminal import in_a_line, many, percent, span


def recommendation_payload(recommendation: Recommendation, device: str) -> dict[str, Any]:
    """Return the recommendation as JSON values, with the lines to paste; there are none where nothing is recommended."""
    chosen, facts = recommendation.chosen, recommendation.facts
    return {
        **recommendation.payload,
        "load": _lines_to_paste(recommendation, chosen, device) if chosen else [],
        "model_kwargs": said(chosen.configuration).model_kwargs if chosen else {},
        "batching": batching_words(chosen.configuration, facts, recommendation.study.workload) if chosen else "",
        "tied_with": [candidate.configuration.spelled for candidate in tie_set(recommendation)],
    }


def print_recommendation(
    recommendation: Recommendation,
    device: str,
    *,
    pareto: bool = False,
    refusals: bool = False,
    out: Console | None = None,
) -> None:
    """Print a recommendation for people: what it is made of, then what it is, so that it stands last on the screen.

    pareto: with what no other beats in speed, memory and quality at once; refusals: with what was refused, and why. out: where
    it is printed, None for stdout.
    """
    out = console(stderr=False) if out is None else out
    _print_origin(out, recommendation)
    if pareto:
        out.print(pareto_table(recommendation))
        out.print()
    if recommendation.runners_up:
        out.print(runners_up(recommendation))
        out.print()
    failed = [trial for trial in recommendation.failures if trial.phase == "search"]
    if refusals and (recommendation.refusals or failed):
        out.print(refused_table(recommendation.refusals, failed))
        out.print()
    elif told := counted(recommendation.refusals, failed):
        out.print(f"[dim]{told} (--refusals lists them, and why)[/]\n")
    _print_found(out, recommendation, device)


def _print_origin(out: Console, recommendation: Recommendation) -> None:
    """Say what was asked, when and where it was measured, and how much of it."""
    study = recommendation.study
    when = (study.finished_at or study.started_at).date().isoformat()
    out.print(f"[bold]{escape(recommendation.source.name)}[/] · {escape(str(study.workload))}")
    out.print(f"measured {when} on {escape(str(study.environment))}, environment {study.environment_key}")
    out.print(escape(_tried(recommendation)))
    out.print(f"{_looked(recommendation)}\n")


def _print_found(out: Console, recommendation: Recommendation, device: str) -> None:
    """Say what is recommended, how sure that is, how it is run, and what would make it surer."""
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
    words, commands = outlook(recommendation)
    for line in words:
        out.print(_indented(line))
    if recommendation.chosen is not None:
        out.print()
        _print_lines(out, recommendation, recommendation.chosen, device)
    for line in commands:  # to be copied: never broken
        out.print(f"  {line}", soft_wrap=True)


def _print_lines(out: Console, recommendation: Recommendation, chosen: Candidate, device: str) -> None:
    lines = _lines_to_paste(recommendation, chosen, device)
    out.print(Text("\n".join("    " + line for text in lines for line in text.splitlines())), soft_wrap=True)
    batching = batching_words(chosen.configuration, recommendation.facts, recommendation.study.workload)
    out.print(f"    [dim]# batches: {escape(batching)} (--format python prints the whole script)[/]", soft_wrap=True)


def _lines_to_paste(recommendation: Recommendation, chosen: Candidate, device: str) -> list[str]:
    workload = recommendation.study.workload
    return loading_lines(recommendation.source, chosen.configuration, recommendation.facts, workload, device)


def _tried(recommendation: Recommendation) -> str:
    tried, admissible, share = recommendation.tried, recommendation.admissible, recommendation.share_tried
    of_all = f"{tried} of {many(admissible or 0, 'admissible configuration')} tried"
    text = of_all if admissible else f"{many(tried, 'configuration')} tried"
    text += f" ({percent(share, 0)})" if share is not None and share < 1 else ""
    return f"{text}; the search stopped: {recommendation.why}" if recommendation.why else text


def _looked(recommendation: Recommendation) -> str:
    """Return what it cost to look for outputs that depend on neighbours, pads or the layout."""
    looked_s, spent_s = recommendation.looked_s, recommendation.spent_s
    share = f", {percent(looked_s / spent_s, 1)} of the trials' {span(spent_s)}" if spent_s > 0 else ""
    return f"independence and layout were looked at in {looked_s:.1f} s{share}"


def print_lines(lines: Iterable[str]) -> None:
    """Print sentences, broken between words where the screen ends; a command among them is never broken."""
    out = console(stderr=False)
    for line in lines:
        text = Text(in_a_line(line))
        out.print(text, soft_wrap=": advisor " in line)


def _indented(line: str) -> Padding:
    """Return a line with markup, all of whose lines are indented where it is broken."""
    return Padding(Text.from_markup(line.lstrip()), (0, 0, 0, 2 + len(line) - len(line.lstrip())), expand=False)
