"""What people see of this machine and of a recommendation: tables through rich. It decides nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from advisor.answer import Conclusion, Prospect
from advisor.environment import Machine
from advisor.knobs import Reason, Verdict, tier_of
from advisor.measurement import LEAST_BLOCKS, TIE_ZONE
from advisor.metrics import PEAK, Gauge, Metric, head, is_latency, seconds, without_unit
from advisor.objective import Objective
from advisor.probe import Availability
from advisor.prospects import needed_bytes
from advisor.ranking import Candidate
from advisor.recommendation import Recommendation, tie_set
from advisor.script import batching_words, loading_lines
from advisor.terminal import gib, printable
from advisor.trial import Quality, Trial
from advisor.workloads import kind_of

#: Characters of a table's column that lists choices, unless one alone is longer.
_COLUMN = 48

#: How many that may not be recommended, and how many that were never tried, are shown.
_REJECTED, _PROMISING = 8, 3


def console(*, stderr: bool) -> Console:
    """Return a console; on a pipe its lines have up to 160 columns, unless COLUMNS says how many."""
    stream = sys.stderr if stderr else sys.stdout
    known = (stream is not None and stream.isatty()) or os.environ.get("COLUMNS", "").isdigit()
    return _Console(stderr=stderr, width=None if known else 160, highlight=False, soft_wrap=False)


class SafeConsole(Console):
    """A console to which nothing is sent that would steer the terminal but rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Spell out what a text would do to the terminal: names and reasons come from files and databases."""
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None
            yield segment if is_ours else Segment(printable(segment.text), segment.style)


class _Console(SafeConsole):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line to say what a reader that has gone means; rich would exit with status 1."""
        raise BrokenPipeError


def duration(seconds: float) -> str:
    """Return a time span in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """Return a share in per cent, with a decimal where it is small."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def rate(metric: str, value: float) -> str:
    """Return a ceiling in words: operations or bytes a second."""
    unit = "B/s" if "bytes" in metric else "FLOP/s"
    return f"{value / 1e12:,.3g} T{unit}" if value >= 1e12 else f"{value / 1e9:,.3g} G{unit}"


def probe_payload(machines: Sequence[Machine], chosen: Machine, availability: Sequence[Availability]) -> dict[str, Any]:
    """Return what `advisor probe` found, as JSON values."""
    return {
        "devices": [
            {
                "device": m.user_device,
                "uuid": m.uuid,
                "free_bytes": m.free_bytes,
                "problem": m.problem,
                "remedy": m.remedy,
                "environment": {"key": m.environment.key, **m.environment.payload},
            }
            for m in machines
        ],
        "chosen": chosen.user_device,
        "choices": [
            {
                "knob": a.knob,
                "choice": a.choice,
                "available": a.reason is None,
                "rule": a.reason.rule if a.reason else None,
                "reason": a.reason.text if a.reason else None,
                "remedy": a.reason.remedy if a.reason else None,
            }
            for a in availability
        ],
    }


def probe_text(
    machines: Sequence[Machine],
    chosen: Machine,
    availability: Sequence[Availability],
    ceilings: Mapping[str, float] | None = None,
) -> Group:
    """Return the same for people: devices, versions, ceilings where measured, every choice with its reason and remedy."""
    parts: list[Any] = []
    for m in machines:
        e = m.environment
        capability = (
            f", compute capability {e.compute_capability[0]}.{e.compute_capability[1]}" if e.compute_capability else ""
        )
        mark = "[bold green]▸[/]" if m.user_device == chosen.user_device else " "
        memory = f"{gib(e.memory_bytes)} ({gib(m.free_bytes)} free)"
        parts.append(f"{mark} [bold]{m.user_device}[/]  {escape(e.device_name)}, {memory}{capability}")
        if m.problem:
            parts.append(f"    [yellow]{escape(m.problem)}[/] → {escape(m.remedy)}")
    packages = ", ".join(f"{name} {version}" for name, version in chosen.environment.packages.items())
    driver = f"driver {chosen.environment.driver}, " if chosen.environment.driver else ""
    parts.append(f"  {driver}{packages}\n  environment {chosen.environment.key}\n")
    if ceilings:
        parts.append(_ceilings_table(ceilings, chosen.user_device))
    table = Table(
        "knob", "choice", f"on {chosen.user_device}", "to get it", box=None, pad_edge=False, header_style="bold"
    )
    for a in availability:
        state = "[green]available[/]" if a.reason is None else f"[red]no[/]: {escape(a.reason.text)} ({a.reason.rule})"
        table.add_row(a.knob, a.choice, state, escape(a.reason.remedy) if a.reason else "")
    return Group(*parts, table)


def _ceilings_table(ceilings: Mapping[str, float], device: str) -> Group:
    table = Table(f"what {device} reaches at best", "", box=None, pad_edge=False, header_style="bold")
    for name, value in ceilings.items():
        precision = name.removeprefix("matmul_").removesuffix("_per_s")
        what = f"matrix products in {precision}" if name.startswith("matmul_") else "copies, read plus written"
        table.add_row(what, rate(name, value))
    return Group(table, "")


def recommendation_payload(recommendation: Recommendation, device: str) -> dict[str, Any]:
    """Return the recommendation as JSON values, with the lines to paste; there are none where nothing is recommended."""
    chosen, facts = recommendation.chosen, recommendation.facts
    return {
        **recommendation.payload,
        "load": _lines_to_paste(recommendation, chosen, device) if chosen else [],
        "batching": batching_words(chosen.configuration, facts) if chosen else "",
        "tied_with": [candidate.configuration.spelled for candidate in tie_set(recommendation)],
    }


def _lines_to_paste(recommendation: Recommendation, chosen: Candidate, device: str) -> list[str]:
    workload = recommendation.study.workload
    return loading_lines(recommendation.source, chosen.configuration, recommendation.facts, workload, device)


def summary(recommendation: Recommendation) -> str:
    """Return, in one line without markup, what is missing of an answer, and what to do next."""
    text = " ".join(Text.from_markup(_headline(recommendation)).plain.split())
    if recommendation.verdict is Conclusion.NONE_RIGHT:
        return f"{text} ({recommendation.way_out})" if recommendation.way_out else text
    return f"{text} (to go on: {recommendation.command})"


def _headline(recommendation: Recommendation) -> str:
    """Return what is found, with markup."""
    chosen, aim = recommendation.chosen, recommendation.objective.aim
    if chosen is None:
        return _nothing(recommendation)
    words = f"[bold]{escape(str(chosen.configuration))}[/]"
    better = "faster" if aim.is_speed else f"better in {aim.words}"
    ratio = _confirmed_words(chosen, recommendation)
    if recommendation.verdict is Conclusion.FASTER:
        return f"{words}: [bold green]{ratio}"
    if not chosen.is_default:
        if recommendation.verdict is Conclusion.SLOWER_BUT_RIGHT:
            return f"{words}: the best that may be recommended{f', [bold]{ratio}' if ratio else ''}"
        why = "not compared with the default yet" if recommendation.default else "but little was tried"
        return f"{words}, for now: the best found that may be recommended, {why}"
    little = "[bold]too little was tried[/] to say that nothing is"
    kept = {
        Conclusion.TIE: f"keep the default, {words}: what looked {better} is a [bold]tie[/]: its interval is not clear of 1",
        Conclusion.UNCONFIRMED: f"keep the default, {words}, for now: [bold]what looked {better} is not confirmed[/]",
        Conclusion.UNSEARCHED: f"keep the default, {words}, for now: {little} {better}",
        Conclusion.DEFAULT: f"keep the default, {words}: [bold]nothing measured is {better}[/]",
    }
    return kept[recommendation.verdict]


def _confirmed_words(chosen: Candidate, recommendation: Recommendation) -> str:
    """Return a confirmed ratio with its interval, "" where there is none; the first of it is to be emphasised, up to [/]."""
    if chosen.comparison is None or not chosen.is_confirmed:
        return ""
    aim, (low, high) = recommendation.objective.aim, chosen.comparison.interval
    better = "" if aim.is_speed else f" in {aim.words}, where more than 1 is better"
    blocks = len(chosen.comparison.block_ratios)
    return (
        f"{chosen.comparison.ratio:.2f} × the default[/]{better} (95 % interval {low:.2f}–{high:.2f}, {blocks} blocks)"
    )


def _nothing(recommendation: Recommendation) -> str:
    """Say that nothing may be recommended: because nothing is right, or because what may be was never tried."""
    measured = [c for c in recommendation.rejected if c.trial.measurements]
    if recommendation.verdict is Conclusion.NONE_RIGHT:
        return "[bold red]nothing is right[/]: no configuration that is admissible here may be recommended"
    if not measured:
        return "[bold]not measured[/]: nothing was measured to its end"
    count, objective = len(measured), recommendation.objective
    none = (
        f"none of the {count} configurations measured meets" if count > 1 else "the one configuration measured misses"
    )
    text = f"[bold]nothing may be recommended yet[/]: {none} what is asked"
    if objective.max_memory_bytes is not None:
        least = min(measured, key=lambda c: c.trial.peak_bytes or 0)
        text += f"; --max-memory allows {gib(objective.max_memory_bytes)}, and the least peak measured is "
        text += f"{gib(least.trial.peak_bytes)} ({escape(str(least.configuration))})"
    slowest = [(m, c) for c in measured for m in c.trial.measurements if is_latency(m.metric)]
    if objective.max_latency_s is not None and slowest:
        latency, found = min(slowest, key=lambda pair: pair[0].median)
        text += f"; --max-latency allows {seconds(objective.max_latency_s)}, and the shortest {head(latency.metric)} "
        text += f"measured is {seconds(latency.median)} ({escape(str(found.configuration))})"
    return text


def _against(recommendation: Recommendation) -> list[str]:
    """Return, with markup, what stands against the default, and against everything where nothing is recommended."""
    default = recommendation.default
    shown = [default] if default is not None and default.objections else []
    if recommendation.chosen is None:
        shown += [c for c in recommendation.rejected if default is None or c.configuration != default.configuration]
    lines = []
    for found in shown[:_REJECTED]:
        name = f"the default, {found.configuration}" if found.is_default else str(found.configuration)
        words = [
            f"[red]{escape(text)}[/]" if text.startswith("wrong output") else escape(text) for text in found.objections
        ]
        lines.append(f"{escape(name)}: {'; '.join(words)}")
    more = len(shown) - _REJECTED
    return [*lines, f"and {more} more (--format json has them all)"] if more > 0 else lines


def _next(recommendation: Recommendation) -> list[str]:
    """Return, with markup, what was found but is not sure, what was never tried, and what to do next."""
    lines, best, left = [], recommendation.best, recommendation.prospects
    if best is not None:
        blocks = len(best.comparison.block_ratios) if best.comparison else 0
        counted = f"{blocks} block{'s' * (blocks > 1)}"
        few = f"; {counted} can't confirm it, {LEAST_BLOCKS} could" if blocks else ""
        few = f"; after {counted} it is still open" if blocks >= LEAST_BLOCKS else few
        ratio = f"≈{best.search_ratio:.2f} × the default in the search" if best.search_ratio else "no ratio"
        lines.append(f"fastest found, unconfirmed: {escape(str(best.configuration))}, {ratio}{few}")
    is_sure = recommendation.verdict.exit_status == 0
    if left.left:
        chance = "" if left.chance is None else f" (chance that one of them is better: {percent(left.chance)})"
        order = "" if is_sure else "; next to be tried, by what a second of measuring each promises:"
        lines.append(f"never tried: {left.left}{chance}{order}")
        lines += (
            [] if is_sure else [f"  {_prospect_words(recommendation, each)}" for each in left.promising[:_PROMISING]]
        )
    if undecided := _undecided_blocks(recommendation):
        more = f"{recommendation.command} --blocks {2 * undecided}"
        lines.append(f"its interval is wide: more blocks may tell it from the default: [bold]{escape(more)}[/]")
    if recommendation.way_out:
        lines.append(f"[bold]the way out:[/] {recommendation.way_out}")
    elif not is_sure:
        lines.append(f"to go on: [bold]{escape(recommendation.command)}[/]")
    return lines


def _undecided_blocks(recommendation: Recommendation) -> int:
    """Return how many blocks a tie was seen in whose middle is clear of the default though its interval is not, else 0."""
    if recommendation.verdict is not Conclusion.TIE:
        return 0
    compared = [c.comparison for c in recommendation.runners_up if c.comparison is not None and c.is_confirmed]
    return max((len(c.block_ratios) for c in compared if c.verdict == "tie" and c.ratio > 1 + TIE_ZONE), default=0)


def _prospect_words(recommendation: Recommendation, prospect: Prospect) -> str:
    parts = [f"predicted {prospect.ratio:.2f} × the default"] if prospect.ratio is not None else []
    parts += [f"about {duration(prospect.seconds)} to measure"] if prospect.seconds is not None else []
    needed = needed_bytes(recommendation.study, prospect.configuration)
    is_about_memory = recommendation.objective.max_memory_bytes is not None
    parts += [f"needs at least {gib(needed)}"] if needed is not None and is_about_memory else []
    return escape(f"{prospect.configuration}{': ' if parts else ''}{', '.join(parts)}")


def _evidence(recommendation: Recommendation, chosen: Candidate) -> str:
    trial = chosen.trial
    parts = []
    kind, workload, objective = (
        kind_of(recommendation.study.workload),
        recommendation.study.workload,
        recommendation.objective,
    )
    if speed := trial.measurement(kind.speed.metric):
        low, high = speed.interval
        beside = (metric for metric in kind.measured(workload) if not metric.name)
        texts = "".join(f", {metric.show(value)}" for metric in beside if (value := trial.value(metric.metric)))
        parts.append(f"{speed.median:,.0f} useful {kind.speed.unit} in the search ({low:,.0f}–{high:,.0f}){texts}")
    shown = [
        f"{metric.head if metric.is_latency else metric.name} {metric.show(value)}"
        for metric in kind.metrics
        if (value := trial.value(metric.metric)) and _is_told(metric, objective)
    ]
    parts += [", ".join(shown)] if shown else []
    parts += [f"reaches {recommendation.ceiling_words}"] if recommendation.ceiling_words else []
    parts.append(f"peak {gib(trial.peak_bytes)}, weights {gib(trial.weight_bytes)}")
    if trial.quality:
        parts.append(f"{quality_words(trial.quality)} against {trial.quality.reference}")
    return "\n  ".join(parts)


def _is_told(metric: Metric, objective: Objective) -> bool:
    """Whether a metric is told beside speed and memory: energy is, latency where it is asked about, and what is the aim."""
    if metric.is_speed or metric.gauge is Gauge.MEMORY:
        return False
    is_about = metric.is_latency and objective.max_latency_s is not None
    return is_about or metric.gauge is Gauge.ENERGY or metric == objective.aim


def quality_words(quality: Quality) -> str:
    """Return the figures of a quality in words: of embeddings those that say what a search with them would find."""
    embeds = quality.top10 is not None and quality.cosine is not None
    figures = [] if embeds else [f"rms {quality.rms:.1e}"]
    figures += [f"KL {quality.kl:.1e} nats"] if quality.kl is not None else []
    figures += [f"top-1 {quality.top1:.2%}"] if quality.top1 is not None else []
    figures += [f"perplexity × {quality.perplexity_ratio:.4f}"] if quality.perplexity_ratio is not None else []
    figures += [f"cosine ≥ {quality.cosine:.6f}"] if quality.cosine is not None else []
    figures += [f"nearest ten {quality.top10:.1%} the same"] if quality.top10 is not None else []
    figures += [quality.quantised] if quality.quantised else []
    return ", ".join(figures)


def _ratio_words(candidate: Candidate) -> str:
    if candidate.comparison:
        (low, high), blocks = candidate.comparison.interval, len(candidate.comparison.block_ratios)
        return f"{candidate.comparison.ratio:.2f} ({f'{low:.2f}–{high:.2f}' if blocks > 1 else 'one block'})"
    if candidate.is_default:
        return "1.00"
    return f"≈{candidate.search_ratio:.2f}" if candidate.search_ratio else "–"


def _columns(recommendation: Recommendation) -> list[str]:
    """Return the metrics that a table of candidates shows: speed, what was asked for, what is only shown, and peak memory."""
    objective, workload = recommendation.objective, recommendation.study.workload
    shown = [
        metric.metric
        for metric in kind_of(workload).measured(workload)
        if metric.is_speed
        or not metric.name
        or (metric.is_latency and objective.max_latency_s is not None)
        or (metric == objective.aim and metric.metric != PEAK)
    ]
    return [*shown, PEAK]


def _cells(candidate: Candidate, metrics: Iterable[str]) -> list[str]:
    return [without_unit(metric, candidate.trial.value(metric)) for metric in metrics]


def _runners_up(recommendation: Recommendation) -> Table:
    metrics = _columns(recommendation)
    heads = [head(metric) for metric in metrics]
    table = Table("runner-up", "× default", *heads, "note", box=None, pad_edge=False, header_style="bold")
    tied = {candidate.configuration for candidate in tie_set(recommendation)}
    for candidate in recommendation.runners_up[:5]:
        note = "as good as the recommendation" if candidate.configuration in tied else ""
        note = "the default" if candidate.is_default else note
        cells = _cells(candidate, metrics)
        table.add_row(escape(str(candidate.configuration)), _ratio_words(candidate), *cells, note)
    return table


def _pareto(recommendation: Recommendation) -> Table:
    metrics = _columns(recommendation)
    heads = [head(metric) for metric in metrics]
    table = Table(
        "no other beats it in speed, memory and quality",
        "× default",
        *heads,
        "against the reference",
        "tier",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for candidate in recommendation.pareto:
        quality, tier = candidate.trial.quality, tier_of(candidate.configuration.items(), recommendation.facts)
        table.add_row(
            escape(str(candidate.configuration)),
            _ratio_words(candidate),
            *_cells(candidate, metrics),
            quality_words(quality).partition(", top-1")[0] if quality else "–",
            str(tier),
        )
    return table


# ------------------------------------------------------------------------------------------------------ what was refused


def refusal_rows(reasons: Iterable[Reason]) -> list[tuple[str, str, str]]:
    """Return what was refused, the rules and why, a row for all choices that have one reason in common.

    What is the same work as something else (but for what ran as something else, rule E1) is one row, and so is what the
    caller left out.
    """
    groups: dict[tuple[str, ...], list[Reason]] = {}
    for reason in reasons:
        if reason.rule == "U0":
            key: tuple[str, ...] = ("left out",)
        elif reason.verdict is Verdict.ALIAS and reason.rule != "E1":
            key = ("alias",)
        else:
            key = ("", reason.rule, re.sub(r"\d+(\.\d+)?", "#", reason.text), reason.remedy)
        groups.setdefault(key, []).append(reason)
    last = {"left out": 2, "alias": 1}
    ordered = sorted(groups.items(), key=lambda group: last.get(group[0][0], 0))
    return [_refusal_row(kind, same) for (kind, *_), same in ordered]


def _refusal_row(kind: str, same: Sequence[Reason]) -> tuple[str, str, str]:
    rules = ", ".join(sorted({reason.rule for reason in same}))
    names = list(dict.fromkeys(reason.subject for reason in same))
    if kind == "alias":
        return f"{len(names)} more", "", f"the same work as another choice ({rules})"
    if kind == "":
        names = list(dict.fromkeys(f"{r.subject}{f' ({r.about})' if r.about else ''}" for r in same))
    why = "left out by --only or --fix" if kind == "left out" else same[0].text
    return _listed(_without_repeats(names)), rules, why + (f" → {same[0].remedy}" if same[0].remedy else "")


def _listed(names: Sequence[str]) -> str:
    """Return the first names that fit into a column, and how many more there are."""
    shown = names[0]
    for place, name in enumerate(names[1:], 1):
        if len(shown) + len(name) > _COLUMN:
            return f"{shown} and {len(names) - place} more"
        shown += f", {name}"
    return shown


def _without_repeats(names: Sequence[str]) -> list[str]:
    """Return subjects ("knob=choice") without a knob that is the same as the one before."""
    shown: list[str] = []
    for place, name in enumerate(names):
        knob = name.partition("=")[0]
        same = place > 0 and names[place - 1].partition("=")[0] == knob and " " not in name
        shown.append(name.removeprefix(f"{knob}=") if same else name)
    return shown


def refused_table(reasons: Iterable[Reason], failures: Iterable[Trial]) -> Table:
    """Return what came to nothing: trials that failed, and what rules refused."""
    table = Table("refused", "rule", "why", box=None, pad_edge=False, header_style="bold")
    for trial in failures:
        table.add_row(escape(str(trial.requested)), str(trial.outcome), escape(trial.reason[:300]))
    for row in refusal_rows(reasons):
        table.add_row(*map(escape, row))
    return table


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


def print_recommendation(recommendation: Recommendation, device: str, *, stderr: bool, pareto: bool = False) -> None:
    """Print a recommendation for people. pareto: with what no other beats in speed, memory and quality at once."""
    study, out = recommendation.study, console(stderr=stderr)
    when = (study.finished_at or study.started_at).date().isoformat()
    out.print(f"[bold]{escape(recommendation.source.name)}[/] · {escape(str(study.workload))}")
    out.print(f"measured {when} on {escape(str(study.environment))}, environment {study.environment_key}")
    out.print(escape(_tried(recommendation)))
    out.print(f"{_looked(recommendation)}\n")
    mark = "[green]▸[/]" if recommendation.chosen else "[red]▸[/]"
    out.print(f"{mark} {_headline(recommendation)}")
    for line in _against(recommendation):
        out.print(_indented(line))
    if recommendation.chosen is not None:
        for line in _evidence(recommendation, recommendation.chosen).splitlines():
            out.print(_indented(escape(line.strip())))
        out.print(f"  quality tier: {recommendation.tier}")
    for note in recommendation.notes:
        out.print(_indented(f"[yellow]note:[/] {escape(note)}"))
    for line in _next(recommendation):
        is_command = line.startswith("to go on")  # to be copied: it is never broken
        out.print(f"  {line}" if is_command else _indented(line), soft_wrap=is_command)
    out.print()
    if recommendation.chosen is not None:
        _print_lines(out, recommendation, recommendation.chosen, device)
    if pareto:
        out.print(_pareto(recommendation))
        out.print()
    if recommendation.runners_up:
        out.print(_runners_up(recommendation))
        out.print()
    if recommendation.refusals or recommendation.failures:
        out.print(refused_table(recommendation.refusals, [t for t in recommendation.failures if t.phase == "search"]))


def _indented(line: str) -> Padding:
    """Return a line with markup, all of whose lines are indented where it is broken."""
    return Padding(Text.from_markup(line.lstrip()), (0, 0, 0, 2 + len(line) - len(line.lstrip())), expand=False)


def _print_lines(out: Console, recommendation: Recommendation, chosen: Candidate, device: str) -> None:
    lines = _lines_to_paste(recommendation, chosen, device)
    out.print(Text("\n".join("    " + line for text in lines for line in text.splitlines())), soft_wrap=True)
    batching = batching_words(chosen.configuration, recommendation.facts)
    out.print(f"    [dim]# batches: {escape(batching)} (--format python prints the whole script)[/]\n", soft_wrap=True)
