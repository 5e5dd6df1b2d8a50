"""What people see of a trial that is run again: each process as it ends, those of then beside those of now, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from advisor.nouns.agreement import CHANGE, NOT_REPRODUCED, REPRODUCED, UNDECIDED, Agreement
from advisor.nouns.metrics import ROUND, Metric, figure, without_unit
from advisor.nouns.trial import Outcome, Trial
from advisor.show.console import console
from advisor.show.history_report import measured_words
from advisor.study.reproduction import Reproduction
from advisor.terminal import in_a_line, percent

_COLOURS = {REPRODUCED: "green", NOT_REPRODUCED: "red", UNDECIDED: "yellow"}


def say_process(event: Mapping[str, Any]) -> None:
    """Say in a line on stderr how a process ended, where an event is of one."""
    if event.get("event") == "process":
        words = _outcome_words(event["aim"], event["trial"])
        words += f"; it does not count: {event['disturbance']}" if event["disturbance"] else ""
        console(stderr=True).out(in_a_line(f"process {event['number']} of at most {event['most']}: {words}"))


def print_reproduction(done: Reproduction, *, stderr: bool) -> None:
    """Print a trial as it was and as it is now."""
    out, aim = console(stderr=stderr), done.study.objective.aim
    out.print(f"[bold]trial {done.study.id}.{done.old.number}[/] · {escape(str(done.old.requested))}")
    for text in done.differences:
        out.print(f"  [yellow]differs:[/] {escape(text)}")
    if done.agreement is None:
        then, now = (_outcome_words(aim, trial) for trial in (done.old, done.new) if trial is not None)
    else:
        numbers = ", ".join(f"{done.study.id}.{trial.number}" for trial in done.calm_then)
        then = f"{_figures(aim, done.calm_then)} (trial{'' if len(done.calm_then) == 1 else 's'} {numbers})"
        now = _figures(aim, done.calm)
        if left := len(done.now) - len(done.calm):
            now += f" ({_processes(left)} more {'was' if left == 1 else 'were'} disturbed)"
    out.print(f"  then {escape(then)}")
    out.print(f"  now  {escape(now)}")
    out.print(f"[bold {_COLOURS[done.verdict]}]{escape(verdict_words(done))}[/]")
    if done.verdict == UNDECIDED:
        out.print(f"  {escape(undecided_words(done))}")
    if done.verdict != REPRODUCED and (words := load_words(done)):
        out.print(f"  {words}")


def verdict_words(done: Reproduction) -> str:
    """Return the verdict in a sentence: with the ratio and its interval, or with what was compared instead."""
    found, aim = done.agreement, done.study.objective.aim
    if found is None:
        if done.verdict == UNDECIDED:
            return f"no {aim.words} {'was seen now' if done.calm else 'that counts'}: {done.verdict}"
        is_failure = done.old.outcome is not Outcome.OK and done.verdict == REPRODUCED
        return (
            f"it {'failed the same way' if is_failure else 'ended otherwise, or ran as something else'}: {done.verdict}"
        )
    low, high = found.interval or (0.0, 0.0)
    reach = f"95 % interval {low:.2f}–{high:.2f}, " if found.interval else ""
    better = "" if aim.is_speed else " in score, where more is better"
    counts = f"{_processes(len(found.now))} now, {len(found.then)} then"
    return f"{found.ratio:.3f} × what it was{better} ({reach}{counts}): {done.verdict}"


def undecided_words(done: Reproduction) -> str:
    """Return why nothing was decided, and what would help."""
    found = done.agreement
    if found is None and not done.calm:
        return f"other work disturbed all {_processes(len(done.now))}: leave the machine alone"
    if found is None:
        return "the device shows no such figure here"
    if found.scatter is None or found.interval is None:
        return f"of {_processes(len(done.now))} {len(done.calm)} ran undisturbed: leave the machine alone"
    why = f"processes scatter by {percent(found.scatter)}, and so {percent(CHANGE, 0)} can't be told from nothing"
    return f"{why} with {_processes(len(found.now))} now and {len(found.then)} then: {_remedy(done, found)}"


def load_words(done: Reproduction) -> str:
    """Return what the machine's load was then and now, "" where a GPU was measured or nobody looked."""
    then, now = (_load(trials) for trials in (done.then, done.now))
    return (
        f"the machine's load was {then:.1f} then and is {now:.1f} now" if then is not None and now is not None else ""
    )


def _load(trials: Sequence[Trial]) -> float | None:
    """Return the most that a machine's load was beside a round."""
    rounds = [measured for trial in trials if (measured := trial.measurement(ROUND)) is not None]
    states = [state.get("load_1min") for each in rounds for state in each.device_state.get("after_each_round", ())]
    return max((load for load in states if isinstance(load, (int, float))), default=None)


def _remedy(done: Reproduction, found: Agreement) -> str:
    if len(done.blocks) > len(found.then):
        first = f"{done.study.id}.{done.blocks[0]}"
        return f"leave the machine alone, or try advisor reproduce {first}, of which {_processes(len(done.blocks))} ran then"
    if (needed := found.would_need) is not None:
        return f"leave the machine alone, or try --processes {needed}"
    more = "more processes now can't make up for so few then; " if len(found.then) < len(found.now) else ""
    return f"{more}leave the machine alone, and where it was not alone then, tune again"


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _figures(aim: Metric, trials: Sequence[Trial]) -> str:
    """Return the medians of processes, the unit once."""
    *others, last = [trial.value(aim.metric) for trial in trials]
    return ", ".join([*(without_unit(aim.metric, value) for value in others), figure(aim.metric, last)])


def _outcome_words(aim: Metric, trial: Trial) -> str:
    if trial.outcome is not Outcome.OK:
        return f"{trial.outcome}: {trial.reason[:300]}"
    measured = trial.measurement(aim.metric)
    words = measured_words(measured) if measured else figure(aim.metric, trial.value(aim.metric))
    return words if trial.ran == trial.requested else f"{words}; what ran is {trial.ran}"
