"""The live bar of a tune on stderr; on a pipe one line per trial instead."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape

from advisor.nouns.metrics import figure
from advisor.nouns.trial import Outcome, Trial
from advisor.show.console import SafeConsole
from advisor.show.ledger import Ledger
from advisor.terminal import duration, percent

if TYPE_CHECKING:
    from advisor.study.tuning import Job


#: How the events are printed that are a text and no more.
_SAID = {
    "hopeless": "[red]stopped:[/] %s",
    "unconfirmed": "[yellow]the confirmation stopped:[/] %s",
    "lost": "[yellow]%s[/]",
}


class _Mute(SafeConsole):
    def on_broken_pipe(self) -> None:
        """Go silent: a tune whose reader has gone goes on, for its rows are what counts."""
        self.quiet = True


class Progress:
    """The live bar of a tune on stderr; on a pipe one line per trial instead."""

    def __init__(self, job: Job) -> None:
        """Show nothing yet."""
        self.job, self.console = job, _Mute(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)
        self.began = time.monotonic() if job.began is None else job.began
        self.ledger = Ledger(self.began)
        self.done, self.stage, self.running = 0, "starting", ""
        self.best, self.default_score, self.admissible = "", 0.0, 0
        self._status: Any = None

    def __enter__(self) -> Self:
        """Start the bar."""
        self.console.print(
            f"[bold]{escape(self.job.source.name)}[/] · {escape(str(self.job.workload))} · "
            f"{escape(self.job.machine.environment.device_name)}"
        )
        if self.console.is_terminal:
            self._status = self.console.status("starting")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the bar away, and say where the time went."""
        self.stop()
        if self.done:
            self.console.print(f"[dim]{escape(self.ledger.words)}[/]")

    def stop(self) -> None:
        """Take the bar away; what was printed above it stays."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Show an event of the tuning or its worker."""
        kind = event["event"]
        self.ledger.hear(event)
        if kind == "stage":
            self.stage = event["stage"]
            if self.stage.startswith("waiting"):
                self.console.print(f"[yellow]{escape(self.stage)}[/]")
        elif kind == "study":
            self._opened(event)
        elif kind == "start":
            block = f", block {event['block']} of the confirmation" if event["block"] else ""
            self.running = str(event["configuration"]) + block
        elif kind in _SAID:
            self.console.print(_SAID[kind] % escape(event["text"]))
        elif kind == "stopped":
            left = f"; {event['left']} were never tried" if event["left"] else ""
            chance = event["end"].chance if left else None
            left += "" if chance is None else f" (chance that one of them is better: {percent(chance)})"
            self.console.print(f"the search stopped: {escape(event['why'])}{left}")
        elif kind == "trial":
            self._finished(event["trial"], event["best"], event["default"])
        if self._status is not None:
            self._status.update(self._line())

    def _opened(self, event: Mapping[str, Any]) -> None:
        self.admissible = len(event["space"].admissible)
        refused = len({reason.rule for reason in event["space"].refusals})
        self.console.print(f"{self.admissible} configurations are admissible; {refused} rules refuse others\n")
        if ended := [t for t in event["trials"] if t.outcome not in (Outcome.RUNNING, Outcome.CUT)]:
            self.console.print(f"going on: {len(ended)} trial{'s are' if len(ended) > 1 else ' is'} stored\n")
        scores = [t.score(self.job.objective.aim) for t in event["trials"] if t.requested == event["space"].baseline]
        self.default_score = next(filter(None, scores), 0.0)

    def _finished(self, trial: Trial, best: Trial | None, default: Trial | None) -> None:
        self.done += trial.outcome is not Outcome.CUT
        aim = self.job.objective.aim
        if default is not None:  # another tune of the study may have run it
            self.default_score = default.score(aim)
        block = f"block {trial.block}  " if trial.phase == "confirm" else ""
        head = escape(f"{trial.number:3d}  {trial.requested!s:48s} {block}")
        if trial.outcome is Outcome.OK and trial.value(aim.metric):
            # Figures of a block compare with that block's default alone, not with the search's.
            ratio = self._ratio(trial, f"{'':2s}%5.2f × default") if trial.phase == "search" else ""
            note = f"  [yellow]{escape(trial.reason[:200])}[/]" if trial.reason else ""
            self.console.print(f"{head}{figure(aim.metric, trial.value(aim.metric)):>21s}{ratio}{note}")
        else:
            colour = "yellow" if trial.outcome is Outcome.CUT else "red"
            self.console.print(f"{head}[{colour}]{trial.outcome}[/] {escape(trial.reason[:200])}")
        if best:
            self.best = f"best {best.ran}: {figure(aim.metric, best.value(aim.metric))}"
            self.best += self._ratio(best, ", %.2f × default")

    def _ratio(self, trial: Trial, form: str) -> str:
        """Return how much better than the default a trial is; nothing where the default is not known."""
        return form % (trial.score(self.job.objective.aim) / self.default_score) if self.default_score else ""

    def _line(self) -> str:
        """The bar: trials done, time left, what runs, best so far."""
        elapsed_s = time.monotonic() - self.began
        if self.job.budget.seconds is not None:
            left = f"{duration(max(self.job.budget.seconds - elapsed_s, 0))} left"
        elif self.done:
            todo = min(self.job.budget.trials or self.admissible + 1, self.admissible + 1)
            left = f"about {duration(max(todo - self.done, 0) * elapsed_s / self.done)} left in the search"
        else:
            left = f"{elapsed_s:.0f} s"
        return escape(
            f"{self.done} trials · {left} · {self.running}: {self.stage}" + (f" · {self.best}" if self.best else "")
        )
