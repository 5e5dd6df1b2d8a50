"""What people see of this machine and of a recommendation: tables through rich. It decides nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from advisor.environment import Machine
from advisor.knobs import KNOBS, Reason, Verdict, tier_of
from advisor.measurement import LEAST_BLOCKS
from advisor.probe import Availability
from advisor.script import batching_words, loading_lines
from advisor.suggest import Candidate, Recommendation, tie_set
from advisor.terminal import printable
from advisor.trial import Quality, Trial

#: Columns of figures by metric.
HEADS = {"tokens_per_s": "tokens/s", "sequences_per_s": "sequences/s", "slowest_batch_s": "slowest batch",
         "joules_per_token": "J per 1,000 tokens", "peak_bytes": "peak"}  # fmt: skip

#: Characters of a table's column that lists choices, unless one alone is longer.
_COLUMN = 48


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


def gib(count: float | None) -> str:
    """Return bytes in words."""
    if count is None:
        return "–"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def in_words(configuration: Mapping[str, str]) -> str:
    """Return a configuration's choices in the order in which people read them."""
    return " · ".join(configuration[knob] for knob in KNOBS if knob in configuration)


def figure(metric: str, value: float | None) -> str:
    """Return the value of a stored metric in the unit that people read it in."""
    if value is None:
        return "–"
    if metric == "joules_per_token":
        return f"{value * 1000:.3g} J per 1,000 tokens"
    if metric.endswith("_bytes"):
        return gib(value)
    if metric.endswith("_per_s"):
        return f"{value:,.0f} {'sequences' if metric.startswith('sequences') else 'tokens'}/s"
    return f"{value * 1000:,.3g} ms" if value < 1 else f"{value:,.2f} s"


def without_unit(metric: str, value: float | None) -> str:
    """Return the same for a table's column, whose head names the unit: see HEADS."""
    return figure(metric, value).removesuffix(f" {HEADS.get(metric, '')}")


def duration(seconds: float) -> str:
    """Return a time span in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rate(metric: str, value: float) -> str:
    """Return a ceiling in words: operations or bytes a second."""
    unit = "B/s" if "bytes" in metric else "FLOP/s"
    return f"{value / 1e12:,.3g} T{unit}" if value >= 1e12 else f"{value / 1e9:,.3g} G{unit}"


def probe_payload(machines: Sequence[Machine], chosen: Machine, availability: Sequence[Availability]) -> dict[str, Any]:
    """Return what `advisor probe` found, as JSON values."""
    return {
        "devices": [
            {"device": m.user_device, "uuid": m.uuid, "free_bytes": m.free_bytes, "problem": m.problem, "remedy": m.remedy,
             "environment": {"key": m.environment.key, **m.environment.payload}} for m in machines
        ],
        "chosen": chosen.user_device,
        "choices": [
            {"knob": a.knob, "choice": a.choice, "available": a.reason is None,
             "rule": a.reason.rule if a.reason else None, "reason": a.reason.text if a.reason else None,
             "remedy": a.reason.remedy if a.reason else None} for a in availability
        ],
    }  # fmt: skip


def probe_text(machines: Sequence[Machine], chosen: Machine, availability: Sequence[Availability],
               ceilings: Mapping[str, float] | None = None) -> Group:  # fmt: skip
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
    """Return the recommendation as JSON values, with the lines to paste."""
    return {
        **recommendation.payload,
        "load": _lines_to_paste(recommendation, device),
        "batching": batching_words(recommendation.configuration, recommendation.facts),
        "tied_with": [dict(candidate.configuration) for candidate in tie_set(recommendation)],
    }


def _lines_to_paste(recommendation: Recommendation, device: str) -> list[str]:
    output = recommendation.study.workload.output
    return loading_lines(recommendation.source, recommendation.configuration, recommendation.facts, output, device)


def _headline(recommendation: Recommendation) -> str:
    chosen, words = recommendation.chosen, f"[bold]{escape(in_words(recommendation.configuration))}[/]"
    aim = recommendation.objective.aim
    if recommendation.verdict == "faster" and chosen.comparison:
        low, high = chosen.comparison.interval
        better = "" if aim.metric == "tokens_per_s" else f" in {aim.words}, where more than 1 is better"
        return (f"{words}: [bold green]{chosen.comparison.ratio:.2f} × the default[/]{better} "
                f"(95 % interval {low:.2f}–{high:.2f}, {len(chosen.comparison.block_ratios)} blocks)")  # fmt: skip
    better = "faster" if aim.metric == "tokens_per_s" else f"better in {aim.words}"
    if recommendation.verdict == "tie":
        compared = (c.comparison for c in recommendation.runners_up if c.comparison)
        blocks = max((len(comparison.block_ratios) for comparison in compared), default=LEAST_BLOCKS)
        why = "its interval is not clear of 1"
        if blocks < LEAST_BLOCKS:
            why = f"{blocks} block{'s' * (blocks > 1)} can't confirm it, --blocks {LEAST_BLOCKS} could"
        return f"keep the default, {words}: what looked {better} is a [bold]tie[/]: {why}"
    if recommendation.verdict == "unconfirmed":
        return f"keep the default, {words}, for now: [bold]what looked {better} is not confirmed[/]"
    if recommendation.verdict == "default":
        return f"keep the default, {words}: [bold]nothing measured is {better}[/]"
    return f"{words}: the best that meets the objective; the default does not, or could not be measured"


def _evidence(recommendation: Recommendation) -> str:
    trial = recommendation.chosen.trial
    parts = []
    if speed := trial.measurement("tokens_per_s"):
        low, high = speed.interval
        parts.append(f"{speed.median:,.0f} useful tokens/s in the search ({low:,.0f}–{high:,.0f})")
    more = ["sequences_per_s"] if recommendation.study.workload.kind == "embed" else []
    more += ["slowest_batch_s"] if _is_about_latency(recommendation) else []
    words = {"sequences_per_s": "", "slowest_batch_s": "slowest batch ", "joules_per_token": "energy "}
    shown = [words[name] + figure(name, trial.value(name)) for name in (*more, "joules_per_token") if trial.value(name)]
    parts += [", ".join(shown)] if shown else []
    parts += [f"reaches {recommendation.ceiling_words}"] if recommendation.ceiling_words else []
    parts.append(f"peak {gib(trial.peak_bytes)}, weights {gib(trial.weight_bytes)}")
    if trial.quality:
        parts.append(f"{quality_words(trial.quality)} against {trial.quality.reference}")
    return "\n  ".join(parts)


def _is_about_latency(recommendation: Recommendation) -> bool:
    objective = recommendation.objective
    return objective.metric == "slowest_batch_s" or objective.max_latency_s is not None


def quality_words(quality: Quality) -> str:
    """Return the figures of a quality in words."""
    figures = [f"rms {quality.rms:.1e}"]
    figures += [f"KL {quality.kl:.1e} nats"] if quality.kl is not None else []
    figures += [f"top-1 {quality.top1:.2%}"] if quality.top1 is not None else []
    figures += [f"perplexity × {quality.perplexity_ratio:.4f}"] if quality.perplexity_ratio is not None else []
    figures += [f"cosine ≥ {quality.cosine:.6f}"] if quality.cosine is not None else []
    figures += [f"nearest ten {quality.top10:.1%} the same"] if quality.top10 is not None else []
    return ", ".join(figures) + ("" if quality.judged else " (not judged)")


def _ratio_words(candidate: Candidate) -> str:
    if candidate.comparison:
        (low, high), blocks = candidate.comparison.interval, len(candidate.comparison.block_ratios)
        return f"{candidate.comparison.ratio:.2f} ({f'{low:.2f}–{high:.2f}' if blocks > 1 else 'one block'})"
    return f"≈{candidate.search_ratio:.2f}" if candidate.search_ratio else "–"


def _columns(recommendation: Recommendation) -> list[str]:
    """Return the metrics that a table of candidates shows: what was asked for, speed, and peak memory."""
    aim, metrics = recommendation.objective.metric, ["tokens_per_s"]
    metrics += ["sequences_per_s"] if recommendation.study.workload.kind == "embed" else []
    metrics += ["slowest_batch_s"] if _is_about_latency(recommendation) else []
    metrics += [aim] if aim == "joules_per_token" else []
    return [*metrics, "peak_bytes"]


def _cells(candidate: Candidate, metrics: Iterable[str]) -> list[str]:
    return [without_unit(metric, candidate.trial.value(metric)) for metric in metrics]


def _runners_up(recommendation: Recommendation) -> Table:
    metrics = _columns(recommendation)
    heads = [HEADS[metric] for metric in metrics]
    table = Table("runner-up", "× default", *heads, "note", box=None, pad_edge=False, header_style="bold")
    tied = {candidate.configuration for candidate in tie_set(recommendation)}
    for candidate in recommendation.runners_up[:5]:
        note = "within 2 % of the recommendation" if candidate.configuration in tied else ""
        default = recommendation.default
        note = "the default" if default and candidate.configuration == default.configuration else note
        cells = _cells(candidate, metrics)
        table.add_row(escape(in_words(candidate.configuration)), _ratio_words(candidate), *cells, note)
    return table


def _pareto(recommendation: Recommendation) -> Table:
    metrics = _columns(recommendation)
    heads = [HEADS[metric] for metric in metrics]
    table = Table("no other beats it in speed, memory and quality", "× default", *heads, "against the reference", "tier",
                  box=None, pad_edge=False, header_style="bold")  # fmt: skip
    for candidate in recommendation.pareto:
        quality, tier = candidate.trial.quality, tier_of(candidate.configuration.items(), recommendation.facts)
        table.add_row(escape(in_words(candidate.configuration)), _ratio_words(candidate), *_cells(candidate, metrics),
                      quality_words(quality).partition(", top-1")[0] if quality else "–", str(tier))  # fmt: skip
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
        table.add_row(escape(in_words(trial.requested)), str(trial.outcome), escape(trial.reason[:300]))
    for row in refusal_rows(reasons):
        table.add_row(*map(escape, row))
    return table


def _tried(recommendation: Recommendation) -> str:
    if recommendation.admissible is None:
        return f"{recommendation.tried} configurations tried"
    return f"{recommendation.tried} of {recommendation.admissible} admissible configurations tried"


def print_recommendation(recommendation: Recommendation, device: str, *, stderr: bool, pareto: bool = False) -> None:
    """Print a recommendation for people. pareto: with what no other beats in speed, memory and quality at once."""
    study, out = recommendation.study, console(stderr=stderr)
    when = (study.finished_at or study.started_at).date().isoformat()
    out.print(f"[bold]{escape(recommendation.source.name)}[/] · {escape(str(study.workload))}")
    out.print(f"measured {when} on {escape(str(study.environment))}, environment {study.environment_key}")
    out.print(f"{_tried(recommendation)}\n")
    out.print("[green]▸[/] " + _headline(recommendation))
    out.print("  " + escape(_evidence(recommendation)) + f"\n  quality tier: {recommendation.tier}")
    for note in recommendation.notes:
        out.print(f"  [yellow]note:[/] {escape(note)}")
    out.print()
    lines = _lines_to_paste(recommendation, device)
    out.print(Text("\n".join("    " + line for text in lines for line in text.splitlines())), soft_wrap=True)
    batching = batching_words(recommendation.configuration, recommendation.facts)
    out.print(f"    [dim]# batches: {escape(batching)} (--format python prints the whole script)[/]\n", soft_wrap=True)
    if pareto:
        out.print(_pareto(recommendation))
        out.print()
    if recommendation.runners_up:
        out.print(_runners_up(recommendation))
        out.print()
    if recommendation.refusals or recommendation.failures:
        out.print(refused_table(recommendation.refusals, [t for t in recommendation.failures if t.phase == "search"]))
