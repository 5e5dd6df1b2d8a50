"""What people see: tables and bars through rich. It decides nothing and prints nothing by itself but the live bar."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from advisor.environment import Machine
from advisor.knobs import KNOBS, Reason, Verdict, tier_of
from advisor.objective import Metric
from advisor.probe import Availability
from advisor.script import batching_words, loading_lines
from advisor.suggest import Candidate, Recommendation, tie_set
from advisor.trial import Outcome, Trial

if TYPE_CHECKING:  # tune brings optuna, which suggest must not pay for
    from advisor.history import Listed, Plan, Reproduction
    from advisor.store import StudyRecord
    from advisor.tune import Job

#: Rows of a table of configurations that a dry run shows.
_SHOWN = 20


def console(*, stderr: bool) -> Console:
    """Return a console; on a pipe its lines have up to 160 columns, unless COLUMNS says how many."""
    stream = sys.stderr if stderr else sys.stdout
    known = (stream is not None and stream.isatty()) or os.environ.get("COLUMNS", "").isdigit()
    return _Console(stderr=stderr, width=None if known else 160, highlight=False, soft_wrap=False)


class _Mute(Console):
    def on_broken_pipe(self) -> None:
        """Go silent: a tune whose reader has gone goes on, for its rows are what counts."""
        self.quiet = True


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line to say what a reader that has gone means; rich would exit with status 1."""
        raise BrokenPipeError


def gib(count: float | None) -> str:
    """Return bytes in words."""
    if count is None:
        return "–"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _words(configuration: Mapping[str, str]) -> str:
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
    chosen, words = recommendation.chosen, f"[bold]{escape(_words(recommendation.configuration))}[/]"
    if recommendation.verdict == "faster" and chosen.comparison:
        low, high = chosen.comparison.interval
        return (f"{words}: [bold green]{chosen.comparison.ratio:.2f} × the default[/] "
                f"(95 % interval {low:.2f}–{high:.2f}, {len(chosen.comparison.block_ratios)} blocks)")  # fmt: skip
    if recommendation.verdict == "tie":
        return f"keep the default, {words}: what looked faster is a [bold]tie[/]: its interval is not clear of 1"
    if recommendation.verdict == "unconfirmed":
        return f"keep the default, {words}, for now: [bold]what looked faster is not confirmed[/]"
    if recommendation.verdict == "default":
        return f"keep the default, {words}: [bold]nothing measured is faster[/]"
    return f"{words}: the fastest that meets the objective; the default does not, or could not be measured"


def _evidence(candidate: Candidate) -> str:
    speed, quality = candidate.trial.measurement("tokens_per_s"), candidate.trial.quality
    parts = []
    if speed:
        low, high = speed.interval
        parts.append(f"{speed.median:,.0f} useful tokens/s in the search ({low:,.0f}–{high:,.0f})")
    parts.append(f"peak {gib(candidate.trial.peak_bytes)}, weights {gib(candidate.trial.weight_bytes)}")
    if quality:
        figures = [f"rms {quality.rms:.1e}"]
        figures += [f"KL {quality.kl:.1e} nats"] if quality.kl is not None else []
        figures += [f"top-1 {quality.top1:.2%}"] if quality.top1 is not None else []
        figures += [f"perplexity × {quality.perplexity_ratio:.4f}"] if quality.perplexity_ratio is not None else []
        parts.append(", ".join(figures) + ("" if quality.judged else " (not judged)") + f" against {quality.reference}")
    return "\n  ".join(parts)


def _runners_up(recommendation: Recommendation) -> Table:
    table = Table("runner-up", "× default", "tokens/s", "peak", "note", box=None, pad_edge=False, header_style="bold")
    tied = {candidate.configuration for candidate in tie_set(recommendation)}
    for candidate in recommendation.runners_up[:5]:
        speed = candidate.trial.measurement("tokens_per_s")
        if candidate.comparison:
            low, high = candidate.comparison.interval
            ratio = f"{candidate.comparison.ratio:.2f} ({low:.2f}–{high:.2f})"
        else:
            ratio = f"≈{candidate.search_ratio:.2f}" if candidate.search_ratio else "–"
        note = "within 2 % of the recommendation" if candidate.configuration in tied else ""
        default = recommendation.default
        note = "the default" if default and candidate.configuration == default.configuration else note
        table.add_row(escape(_words(candidate.configuration)), ratio, f"{speed.median:,.0f}" if speed else "–",
                      gib(candidate.trial.peak_bytes), note)  # fmt: skip
    return table


def _refused(reasons: Iterable[Reason], failures: Iterable[Trial]) -> Table:
    table = Table("refused", "rule", "why", box=None, pad_edge=False, header_style="bold")
    for r in reasons:
        remedy = f" → {r.remedy}" if r.remedy else ""
        table.add_row(
            escape(f"{r.subject} {f'({r.about})' if r.about else ''}".strip()), r.rule, escape(r.text + remedy)
        )
    for t in failures:
        table.add_row(escape(_words(t.requested)), str(t.outcome), escape(t.reason[:300]))
    return table


def print_recommendation(recommendation: Recommendation, device: str, *, stderr: bool) -> None:
    """Print a recommendation for people."""
    study, out = recommendation.study, console(stderr=stderr)
    when = (study.finished_at or study.started_at).date().isoformat()
    out.print(f"[bold]{escape(recommendation.source.name)}[/] · {escape(str(study.workload))}")
    out.print(f"measured {when} on {escape(str(study.environment))}, environment {study.environment_key}\n")
    out.print("[green]▸[/] " + _headline(recommendation))
    out.print("  " + _evidence(recommendation.chosen) + f"\n  quality tier: {recommendation.tier}")
    for note in recommendation.notes:
        out.print(f"  [yellow]note:[/] {escape(note)}")
    out.print()
    lines = _lines_to_paste(recommendation, device)
    out.print(Text("\n".join("    " + line for text in lines for line in text.splitlines())), soft_wrap=True)
    batching = batching_words(recommendation.configuration, recommendation.facts)
    out.print(f"    [dim]# batches: {escape(batching)} (--format python prints the whole script)[/]\n", soft_wrap=True)
    if recommendation.runners_up:
        out.print(_runners_up(recommendation))
        out.print()
    if recommendation.refusals or recommendation.failures:
        out.print(_refused(recommendation.refusals, [t for t in recommendation.failures if t.phase == "search"]))


class Progress:
    """The live bar of a tune on stderr; on a pipe one line per trial instead."""

    def __init__(self, job: Job) -> None:
        """Show nothing yet."""
        self.job, self.console = job, _Mute(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)
        self.began, self.done, self.stage, self.running = time.monotonic(), 0, "starting", ""
        self.best, self.default_speed, self.admissible, self.confirming = "", 0.0, 0, ""
        self._status: Any = None

    def __enter__(self) -> Self:
        """Start the bar."""
        self.console.print(f"[bold]{escape(self.job.source.name)}[/] · {escape(str(self.job.workload))} · "
                           f"{escape(self.job.machine.environment.device_name)}")  # fmt: skip
        if self.console.is_terminal:
            self._status = self.console.status("starting")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the bar away."""
        self.stop()

    def stop(self) -> None:
        """Take the bar away; what was printed above it stays."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Show an event of the tuning or its worker."""
        kind = event["event"]
        if kind == "stage":
            self.stage = event["stage"]
            if self.stage.startswith("waiting"):
                self.console.print(f"[yellow]{escape(self.stage)}[/]")
        elif kind == "study":
            self.admissible = len(event["space"].admissible)
            refused = len({reason.rule for reason in event["space"].refusals})
            self.console.print(f"{self.admissible} configurations are admissible; {refused} rules refuse others\n")
            if event["trials"]:
                self.console.print(f"going on: {len(event['trials'])} trials are stored\n")
            stored = [t for t in event["trials"] if t.requested == event["space"].baseline and t.tokens_per_s]
            self.default_speed = stored[0].tokens_per_s if stored else 0.0
        elif kind == "start":
            block = f", block {event['block']} of the confirmation" if event["block"] else ""
            self.running = _words(event["configuration"]) + block
        elif kind == "hopeless":
            self.console.print(f"[red]stopped:[/] {escape(event['text'])}")
        elif kind == "trial":
            self._finished(event["trial"], event["best"])
        if self._status is not None:
            self._status.update(self._line())

    def _finished(self, trial: Trial, best: Trial | None) -> None:
        self.done += 1
        speed = trial.measurement("tokens_per_s")
        if trial.number == 0 and speed:
            self.default_speed = speed.median
        words = f"{trial.number:3d}  {_words(trial.requested):48s} "
        if trial.phase == "confirm":
            words = f"{trial.number:3d}  {_words(trial.requested):48s} block {trial.block}  "
        if trial.outcome is Outcome.OK and speed:
            # Speeds of a block compare with that block's default alone, not with the search's.
            shown = self.default_speed if trial.phase == "search" else 0.0
            ratio = f"{speed.median / shown:5.2f} × default" if shown else ""
            note = f"  [yellow]{escape(trial.reason[:200])}[/]" if trial.reason else ""
            self.console.print(f"{escape(words)}{speed.median:12,.0f} tokens/s  {ratio}{note}")
        else:
            self.console.print(f"{escape(words)}[red]{trial.outcome}[/] {escape(trial.reason[:200])}")
        measured = best.measurement("tokens_per_s") if best else None
        if best and measured:
            ratio = f", {measured.median / self.default_speed:.2f} × default" if self.default_speed else ""
            self.best = f"best {_words(best.ran)}: {measured.median:,.0f} tokens/s{ratio}"

    def _line(self) -> str:
        """The bar: trials done, time left, what runs, best so far."""
        elapsed_s = time.monotonic() - self.began
        if self.job.budget.seconds is not None:
            left = f"{max(self.job.budget.seconds - elapsed_s, 0):.0f} s left"
        elif self.done:
            todo = min(self.job.budget.trials or self.admissible + 1, self.admissible + 1)
            left = f"about {max(todo - self.done, 0) * elapsed_s / self.done:.0f} s left in the search"
        else:
            left = f"{elapsed_s:.0f} s"
        return escape(
            f"{self.done} trials · {left} · {self.running}: {self.stage}" + (f" · {self.best}" if self.best else "")
        )
