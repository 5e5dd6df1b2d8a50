"""The finalists head to head with the default, a block at a time, for as long as the answer is open and there is time."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.clock import Bounded, BudgetSpent
from advisor.configuration import Configuration
from advisor.confirm import (
    affordable,
    block_s,
    compared,
    contestants,
    finalists,
    fits_together,
    least_blocks,
    next_block,
    processes,
    turns_for,
)
from advisor.measurement import BOUNDS, Comparison
from advisor.perform import attempt, best_of, finish_cut, request_of, start, told
from advisor.suggest import keep_answer
from advisor.trial import Outcome
from advisor.tuning import Tuning


def confirm(tuning: Tuning) -> None:
    """Run the default and the finalists in blocks and compare them block by block, as many whole blocks as there is time for.

    Every block counts, those of earlier tunes too; they are compared after each, so that nothing of an interruption is lost.
    """
    _compare(tuning)
    if tuning.default is None:
        return
    rivals = _open(tuning, _rivals(tuning))
    blocks = least_blocks(tuning.job.budget.blocks)
    rivals, _ = affordable(rivals, lambda kept: _block_s(tuning, kept), tuning.clock.left_s, blocks)
    while rivals := _open(tuning, rivals):
        if _block_s(tuning, rivals) > tuning.clock.left_s:
            tuning.listen({"event": "unconfirmed", "text": "the budget has no time for another block"})
            break
        before = {each.candidate: len(each.block_ratios) for each in _compared(tuning, rivals)}
        try:
            _run_block(tuning, list(dict.fromkeys([*rivals, *_must_be(tuning)])))
        except BudgetSpent:
            break
        finally:
            _compare(tuning)
        rivals = _said_more(tuning, rivals, before)


def _said_more(tuning: Tuning, rivals: Sequence[Configuration], before: Mapping[str, int]) -> list[Configuration]:
    """Return those of whom the last block said something; the others are not asked again, and why is told."""
    now = {each.candidate: len(each.block_ratios) for each in _compared(tuning, rivals)}
    more = [rival for rival in rivals if now.get(rival.key, 0) > before.get(rival.key, 0)]
    if not more:
        runs = [trial for trial in tuning.store.trials(tuning.study) if trial.phase == "confirm"]
        last = [trial for trial in runs if trial.block == runs[-1].block]
        why = next(
            (t.reason for t in last if t.reason and t.outcome is not Outcome.CUT), "there were no figures to compare"
        )
        tuning.listen({"event": "unconfirmed", "text": f"no comparison came of a block: {why}"})
    return more


def confirmation_s(tuning: Tuning, left_s: float) -> float:
    """Return the seconds that the confirmation is expected to take of what is left; 0 where there is nothing to confirm."""
    rivals = _open(tuning, _rivals(tuning))
    if not rivals:
        return 0.0
    blocks = least_blocks(tuning.job.budget.blocks)
    return affordable(rivals, lambda kept: _block_s(tuning, kept), left_s, blocks)[1]


def _block_s(tuning: Tuning, rivals: Sequence[Configuration]) -> float:
    """Return the seconds that a block of these and the default is expected to take."""
    start_s = tuning.runner.start_s if isinstance(tuning.runner, Bounded) else 0.0
    return block_s(tuning.trials, [tuning.baseline, *rivals], start_s, turns_for(tuning.job.machine))


def _rivals(tuning: Tuning) -> list[Configuration]:
    """Return who is to be compared with the default by what is known now; nobody where no blocks are asked for."""
    default, aim = tuning.default, tuning.job.objective.aim
    if default is None or not tuning.job.budget.blocks:
        return []
    right = [trial for trial in tuning.trials if tuning.usable(trial)]
    found = finalists(right, default, aim, is_default_right=tuning.usable(default))
    # Where there is no time for all, the last are left out: what must be comes right after the best.
    return list(dict.fromkeys([*found[:1], *_must_be(tuning), *found[1:]]))


def _must_be(tuning: Tuning) -> list[Configuration]:
    """Return what meets the default whatever the search found: these are compared with one another, so in every block."""
    default, also = tuning.default, tuning.job.also
    usable = (t for t in tuning.trials if t.requested in also and tuning.usable(t)) if also else ()
    return list(dict.fromkeys(t.ran for t in usable if default is not None and t.ran != default.ran))


def _open(tuning: Tuning, rivals: Sequence[Configuration]) -> list[Configuration]:
    """Return those of whom another block may tell more, of as many as are asked for."""
    found = {each.candidate: each for each in _compared(tuning, rivals)}
    return [r for r in rivals if r.key not in found or _goes_on(found[r.key], tuning.job.budget.blocks)]


def _goes_on(comparison: Comparison, blocks: int) -> bool:
    """Whether another block may tell more. blocks: as many are asked for, by now perhaps more than were planned first."""
    n = len(comparison.block_ratios)
    is_extended = comparison.planned in BOUNDS and n >= comparison.planned and comparison.is_undecided
    return n < blocks and (comparison.is_open or is_extended)


def _compared(tuning: Tuning, candidates: Sequence[Configuration]) -> list[Comparison]:
    """Return what all blocks say of these by now. Looks that were taken stay paid for: the first plan of several counts."""
    trials, blocks, aim = tuning.store.trials(tuning.study), tuning.job.budget.blocks, tuning.job.objective.aim
    stored = tuning.store.comparisons(tuning.study)
    first = {c.candidate: c.planned for c in stored if c.baseline == tuning.baseline.key and c.planned in BOUNDS}
    found = []
    for each in candidates:
        found += compared(trials, [each], tuning.baseline, aim, first.get(each.key) or blocks)
    return found


def _run_block(tuning: Tuning, rivals: Sequence[Configuration]) -> None:
    """Run the default and these in a block.

    One fresh process runs all, and alternates their turns; who switches something of the process, or wants its memory or
    energy seen, has one of its own, in random order.
    """
    block, order = next_block(tuning.store.trials(tuning.study)), [tuning.baseline, *rivals]
    chance = random.Random(tuning.job.seed * 1000 + block)
    groups = processes(order, is_alone=not tuning.job.objective.aim.is_of_time)
    chance.shuffle(groups)
    for group in groups:
        if tuning.clock.is_over:
            raise BudgetSpent
        tuning.runner.restart()
        _run_together(tuning, block, group)


def _run_together(tuning: Tuning, block: int, group: Sequence[Configuration]) -> None:
    """Run contestants of a block in one process, and store what came of each.

    Where what came may be transient each is run again in a process of its own: who broke it then breaks its own alone.
    """
    numbers = [start(tuning, each, "confirm", block, runs=len(group)) for each in group]
    began, timeout_s = tuning.clock.now(), tuning.timeout_s

    def first() -> dict[str, Any]:
        words = {"event": "start", "number": numbers[0], "configuration": group[-1], "phase": "confirm", "block": block}
        tuning.listen(words)
        return tuning.runner.run(_block_request(tuning, block, group), timeout_s * len(group))

    def one_by_one() -> dict[str, Any]:
        results: list[Mapping[str, Any]] = []
        for each in group:
            tuning.runner.restart()
            found = tuning.runner.run(_block_request(tuning, block, [each]), timeout_s)
            results += [found] if "outcome" in found else found["results"]
        return {"results": results}

    try:
        result, attempts = attempt(tuning, first, one_by_one, numbers)
    except BudgetSpent:
        for number, each in zip(numbers, group, strict=True):
            wall_s = (tuning.clock.now() - began) / len(group)
            finish_cut(tuning, each, number, "confirm", block, "the budget ended", wall_s)
        raise
    results = [result] * len(group) if "outcome" in result else result["results"]
    spent_s = [float(each.get("spent_s") or 0.0) for each in results]
    beside_s = (tuning.clock.now() - began - sum(spent_s)) / len(group)
    for number, each, found, own_s in zip(numbers, group, results, spent_s, strict=True):
        trial = told(tuning, each, number, "confirm", block, found)
        trial = replace(trial, attempts=attempts, wall_s=own_s + beside_s)
        tuning.store.finish_trial(tuning.study, trial)
        tuning.listen({"event": "trial", "trial": trial, "best": best_of(tuning)})
    tuning.ran = True
    keep_answer(tuning.store, tuning.study, space=tuning.space)


def _block_request(tuning: Tuning, block: int, group: Sequence[Configuration]) -> Mapping[str, Any]:
    """Return what the worker is asked."""
    trials, machine = tuning.trials, tuning.job.machine
    return {
        **request_of(tuning, tuning.baseline),
        "op": "block",
        "contestants": [dict(each) for each in group],
        "seed": tuning.job.seed * 1000 + block,
        "turns": turns_for(machine),
        "in_turn": not fits_together(group, trials, machine.free_bytes, tuning.facts),
    }


def _compare(tuning: Tuning) -> None:
    """Store what all blocks say by now of all who were in one; comparisons to which no block was added stay as they are."""
    met = contestants(tuning.store.trials(tuning.study), tuning.baseline)
    stored = {(c.candidate, c.baseline): c for c in tuning.store.comparisons(tuning.study)}
    found = dict(stored)
    for each in _compared(tuning, met):
        before = stored.get((each.candidate, each.baseline))
        if before is None or before.is_open or not _are_close(before.block_ratios, each.block_ratios):
            found[each.candidate, each.baseline] = each
    if list(found.values()) != list(stored.values()):
        tuning.store.save_comparisons(tuning.study, list(found.values()))
        keep_answer(tuning.store, tuning.study, space=tuning.space)


def _are_close(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether these are the same ratios."""
    return len(some) == len(others) and all(math.isclose(a, b) for a, b in zip(some, others, strict=True))
