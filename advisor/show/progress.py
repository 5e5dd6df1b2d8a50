"""The progress of a tune on stderr: a line a trial, and on a terminal a bar beneath with the time left and the best so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from advisor.nouns.metrics import figure
from advisor.nouns.trial import Outcome, Trial
from advisor.show.console import SafeConsole, columns
from advisor.show.ledger import Ledger
from advisor.terminal import duration, many, percent

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


#: Columns of a trial's line beside its label: its number, its figure, and its ratio or its block.
_BESIDE = 4 + 1 + 1 + 17 + 1 + 8

#: The place for a label on a screen of 120 columns, and the least of it; columns for the first words of a reason on a wider one.
_LABEL, _LEAST, _WORDS = 48, 20, 40

#: Characters of a reason where a line has no end.
_REASON = 200


class Progress:
    """Hears a tune's events, and shows them on stderr: a line a trial; on a terminal a bar too."""

    def __init__(self, job: Job) -> None:
        """Show nothing yet."""
        self.job = job
        self.console = _Mute(stderr=True, width=columns(stderr=True), highlight=False)
        self.began = time.monotonic() if job.began is None else job.began
        self.ledger = Ledger(self.began)
        self.done, self.stage, self.running = 0, "starting", ""
        self.label = 0  # the longest that was printed
        self.best, self.default_score, self.admissible = "", 0.0, 0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Say what is tuned, and show the bar."""
        self.console.print(
            f"[bold]{escape(self.job.source.name)}[/] · {escape(str(self.job.workload))} · "
            f"{escape(self.job.machine.environment.device_name)}"
        )
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the bar away, and say where the time went."""
        self.stop()
        if self.done:
            self.console.print(f"[dim]{escape(self.ledger.words)}[/]")

    def stop(self) -> None:
        """Take the bar away; what was printed above it stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

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

    def _opened(self, event: Mapping[str, Any]) -> None:
        self.admissible = len(event["space"].admissible)
        refused = len({reason.rule for reason in event["space"].refusals})
        admissible = f"{many(self.admissible, 'configuration')} {'is' if self.admissible == 1 else 'are'} admissible"
        refuse = f"{many(refused, 'rule')} refuse{'s' if refused == 1 else ''} others"
        self.console.print(f"{admissible}; {refuse}\n")
        if ended := [t for t in event["trials"] if t.outcome not in (Outcome.RUNNING, Outcome.CUT)]:
            self.console.print(f"going on: {len(ended)} trial{'s are' if len(ended) > 1 else ' is'} stored\n")
        if (calls := self.job.objective.job_calls) is not None:
            them = "it" if calls == 1 else "them"
            self.console.print(
                f"figures are over {many(calls, 'call')}: loading and compiling are spread over {them}\n"
            )

    def _finished(self, trial: Trial, best: Trial | None, default: Trial | None) -> None:
        self.done += trial.outcome is not Outcome.CUT
        aim = self.job.objective.aim
        if default is not None:  # another tune of the study may have run it
            self.default_score = default.score(aim)
        if trial.outcome is Outcome.OK and trial.value(aim.metric):
            # Figures of a block compare with that block's default alone, not with the search's.
            ratio = f"block {trial.block}" if trial.phase == "confirm" else self._ratio(trial, "%.2f ×")
            told = f"{figure(aim.metric, trial.value(aim.metric)):>17s} {ratio:>8s}"
            self._print_trial(trial, told, trial.reason or ("measured before" if trial.is_reused else ""), "yellow")
        else:
            reason = f"block {trial.block}: {trial.reason}" if trial.phase == "confirm" else trial.reason
            self._print_trial(trial, str(trial.outcome), reason, "yellow" if trial.outcome is Outcome.CUT else "red")
        if best:
            self.best = (
                f"{best.ran}: {figure(aim.metric, best.value(aim.metric))}{self._ratio(best, ', %.2f × default')}"
            )

    def _print_trial(self, trial: Trial, told: str, reason: str, colour: str) -> None:
        """Print a trial in one line, as wide as the screen: what does not fit into it is in `advisor show`."""
        room = self.console.width - _BESIDE
        least = max(_LEAST, min(_LABEL, room))
        label = Text(str(trial.requested))
        label.truncate(max(least, room - _WORDS), overflow="ellipsis")
        self.label = max(self.label, least, label.cell_len)
        label.pad_right(self.label - label.cell_len)
        line = Text(f"{trial.number:4d} ").append_text(label).append(" ")
        if trial.outcome is Outcome.OK:
            line.append(told).append(f"  {reason[:_REASON]}" if reason else "", style="yellow")
        else:
            line.append(told, style=colour).append(f" {reason[:_REASON]}")
        self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)

    def _ratio(self, trial: Trial, form: str) -> str:
        """Return how much better than the default a trial is; nothing where the default is not known."""
        return form % (trial.score(self.job.objective.aim) / self.default_score) if self.default_score else ""

    def _bar(self) -> Group:
        """Return the bar of the time that is spent, what runs, and the best so far: three lines, as wide as the screen."""
        share, left = self._left()
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True)
        counted = f"{self.done} trial{'' if self.done == 1 else 's'}, {left}"
        table.add_row(ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None), counted)
        lines = [f"now  {self.running}: {self.stage}" if self.running else f"now  {self.stage}"]
        lines += [f"best {self.best}"] if self.best else []
        return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in lines))

    def _left(self) -> tuple[float | None, str]:
        """Return which share of the work is done, None where that is not known yet, and the time that is left in words."""
        elapsed_s, budget = time.monotonic() - self.began, self.job.budget
        if budget.seconds is not None:
            return min(elapsed_s / budget.seconds, 1.0), f"at most {duration(max(budget.seconds - elapsed_s, 0))} left"
        todo = min(budget.trials or self.admissible + 1, self.admissible + 1)
        if not self.done or not self.admissible:
            return None, f"{elapsed_s:.0f} s"
        left_s = max(todo - self.done, 0) * elapsed_s / self.done
        return min(self.done / todo, 1.0), f"about {duration(left_s)} left in the search"
