"""Run a block of the confirmation: its contestants side by side in as few fresh processes as they can share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from advisor.measure.messages import Answer, BlockAsked, BlockDone, Contested, Failure
from advisor.nouns.configuration import Configuration
from advisor.nouns.step import Confirm
from advisor.study.attempt import attempt, cut, subject_of, told
from advisor.study.clock import BudgetSpent
from advisor.study.confirm import parts_for, processes, takes_turns, turns_for
from advisor.study.tuner import Found, Tuner
from advisor.study.tuning import BUDGET_ENDED, Snapshot

#: A contestant and the number of its trial.
Contestant = tuple[Configuration, int]


def run_block(tuner: Tuner, seen: Snapshot, step: Confirm, numbers: Sequence[int]) -> Iterator[Found]:
    """Run a block's contestants, and yield what came of each.

    One fresh process runs all, and alternates their turns; who switches something of the process, or wants its memory or
    energy seen, has one of its own, in random order. Where the budget's time ends the rest is cut.
    """
    number_of = dict(zip(step.contestants, numbers, strict=True))
    groups = processes(step.contestants, is_alone=not seen.job.objective.aim.is_of_time)
    random.Random(seen.job.seed * 1000 + step.block).shuffle(groups)
    for group in groups:
        contestants = [(configuration, number_of[configuration]) for configuration in group]
        if tuner.is_spent or tuner.runner.is_over:
            tuner.is_spent = True
            yield from _cut(seen, step.block, contestants)
            continue
        tuner.runner.restart()
        yield from _run_together(tuner, seen, step.block, contestants)


def _cut(seen: Snapshot, block: int, group: Sequence[Contestant], wall_s: float | None = None) -> Iterator[Found]:
    for configuration, number in group:
        yield Found(cut(seen, configuration, number, "confirm", block, BUDGET_ENDED, wall_s))


def _run_together(tuner: Tuner, seen: Snapshot, block: int, group: Sequence[Contestant]) -> Iterator[Found]:
    """Run contestants of a block in one process.

    Where what came may be transient each is run again in a process of its own: who broke it then breaks its own alone.
    """
    began, timeout_s = tuner.runner.clock.now(), tuner.timeout_s
    asked = [configuration for configuration, _ in group]

    def first() -> Answer:
        words = {
            "event": "start",
            "number": group[0][1],
            "configuration": asked[-1],
            "phase": "confirm",
            "block": block,
        }
        tuner.listen(words)
        return tuner.runner.run(_request(seen, block, asked), timeout_s * len(group))

    def one_by_one() -> Answer:
        results: list[Contested] = []
        for each in asked:
            tuner.runner.restart()
            results += _results(tuner.runner.run(_request(seen, block, [each]), timeout_s), 1)
        return BlockDone(results=tuple(results))

    try:
        answer, attempts = attempt(tuner.runner, first, one_by_one)
    except BudgetSpent:
        tuner.is_spent = True
        yield from _cut(seen, block, group, (tuner.runner.clock.now() - began) / len(group))
        return
    tuner.ran = True
    results = _results(answer, len(group))
    beside_s = (tuner.runner.clock.now() - began - sum(each.spent_s for each in results)) / len(group)
    for (configuration, number), found in zip(group, results, strict=True):
        trial = told(seen, configuration, number, "confirm", block, found.came)
        yield Found(replace(trial, attempts=attempts, wall_s=found.spent_s + beside_s))


def _results(answer: Answer, count: int) -> Sequence[Contested]:
    """Return what came of each of a process's contestants: where nothing came of the process, the same of all."""
    if isinstance(answer, Failure):
        return [Contested(came=answer)] * count
    assert isinstance(answer, BlockDone)
    return answer.results


def _request(seen: Snapshot, block: int, group: Sequence[Configuration]) -> BlockAsked:
    """Return what the worker is asked."""
    machine = seen.job.machine
    return BlockAsked.of(
        subject_of(seen, seen.baseline),
        contestants=tuple(group),
        seed=seen.job.seed * 1000 + block,
        best_lap_s=seen.best_lap_s,
        turns=turns_for(machine, group, seen.trials, seen.job.objective.aim),
        parts=tuple(parts_for(each, seen.trials, machine, seen.job.workload) for each in group),
        in_turn=takes_turns(group, seen.trials, machine.free_bytes, seen.facts, seen.job.workload),
    )
