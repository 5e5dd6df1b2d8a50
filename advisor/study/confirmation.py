"""The finalists head to head with the default: which block comes next, for as long as the answer is open and there is time.

Pure, as `advisor.study.next_step` is. Every whole block counts, whoever ran it and when. A block that another tune runs counts as
run while it is certain that it is needed; where its outcome decides whether another is needed, it is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import BOUNDS, TIE_ZONE, Comparison
from advisor.nouns.step import Compare, Confirm, Done, Step, Wait
from advisor.nouns.trial import Outcome, Trial
from advisor.study.confirm import (
    affordable,
    block_ratios,
    block_s,
    compared,
    contestants,
    finalists,
    least_blocks,
    next_block,
    parts_for,
    turns_for,
)
from advisor.study.tuning import BROKEN_OFF, Snapshot

#: The block that an answer still lacks is begun where it is expected to outlast the budget by this share at most: two thirds
#: of a confirmation are worth nothing. Less than the grace that it has (advisor.study.clock), for it may take a little longer.
DECIDING_SHARE = 0.06


def confirmation_step(seen: Snapshot) -> Step:
    """Return the next step of the confirmation: all that is known is stored as comparisons before another block is run."""
    if (found := comparisons_now(seen)) != seen.comparisons:
        return Compare(found)
    wanted = _Wanted.of(seen)
    if not wanted.rivals:
        if wanted.theirs and seen.left_s > 0 and not seen.is_spent:
            return Wait(wanted.theirs)
        return Done(_silence(seen))
    left_s = left_to_confirm_s(seen) if wanted.decides else seen.left_s
    rivals, _ = affordable(wanted.rivals, partial(_block_s, seen), left_s, wanted.lacking)
    if seen.is_spent or _block_s(seen, rivals) > left_s:
        return Done(f"the budget has no time for {'another' if seen.comparisons else 'a'} block")
    everybody = tuple(dict.fromkeys([seen.baseline, *rivals, *_must_be(seen)]))
    return Confirm(next_block(seen.stored), everybody, wanted.decides)


def confirmation_s(seen: Snapshot) -> float:
    """Return the seconds that the confirmation is expected to take of what is left; 0 where there is nothing to confirm."""
    wanted = _Wanted.of(seen)
    return affordable(wanted.rivals, partial(_block_s, seen), seen.left_s, wanted.lacking)[1] if wanted.rivals else 0.0


def left_to_confirm_s(seen: Snapshot) -> float:
    """Return the seconds that are left for a confirmation whose last block decides: that one may outlast the budget a little."""
    return seen.left_s + DECIDING_SHARE * (seen.job.budget.seconds or 0.0)


def comparisons_now(seen: Snapshot) -> tuple[Comparison, ...]:
    """Return what all blocks say by now of all who were in one; comparisons to which no block was added stay as they are."""
    met = contestants(seen.stored, seen.baseline)
    stored = {(c.candidate, c.baseline): c for c in seen.comparisons}
    found = dict(stored)
    for each in _compared(seen, met):
        before = stored.get((each.candidate, each.baseline))
        if before is None or before.is_open or not _are_close(before.block_ratios, each.block_ratios):
            found[each.candidate, each.baseline] = each
    return tuple(found.values())


def _are_close(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether these are the same ratios."""
    return len(some) == len(others) and all(math.isclose(a, b) for a, b in zip(some, others, strict=True))


def _compared(seen: Snapshot, candidates: Iterable[Configuration]) -> list[Comparison]:
    """Return what all blocks say of these by now. Looks that were taken stay paid for: the first plan of several counts."""
    blocks, aim = seen.job.budget.blocks, seen.job.objective.aim
    first = {
        c.candidate: c.planned for c in seen.comparisons if c.baseline == seen.baseline.key and c.planned in BOUNDS
    }
    found = []
    for each in candidates:
        found += compared(seen.stored, [each], seen.baseline, aim, first.get(each.key) or blocks)
    return found


def _for_the_job(seen: Snapshot, comparison: Comparison) -> Comparison:
    """Return what a comparison, which is of speeds, says of the objective's job, where it has one."""
    job = seen.amortised
    return comparison if job is None else job.compared(comparison, seen.stored) or comparison


@dataclass(frozen=True)
class _Wanted:
    """Who is to meet the default in another block, the best first; and what is waited for before it is known of the others.

    best: of the search, who may want no block any more; lacking: how many blocks each of the rivals needs yet at least; theirs:
    the numbers of trials of blocks that other tunes run.
    """

    best: Configuration | None
    rivals: list[Configuration]
    lacking: list[int]
    theirs: tuple[int, ...]

    @property
    def decides(self) -> bool:
        """Whether one block is what the answer about the best of them lacks."""
        return self.lacking[:1] == [1]

    @classmethod
    def of(cls, seen: Snapshot) -> _Wanted:
        """Return who is wanted: beside the best; or, where there is no time to confirm that one, the best that there is time for.

        Where there is time for nobody that beats the default, or it may not be recommended itself, it is the best all the same:
        its blocks are kept, and another tune goes on from them.
        """
        right = [trial for trial in seen.trials if seen.usable(trial)]
        first = wanted = cls._beside_the_best_of(seen, right)
        default, aim = seen.default, seen.job.objective.aim
        if default is None or not seen.usable(default):
            return first
        clear = default.score(aim) * (1 + TIE_ZONE)
        while wanted.rivals and wanted.rivals[0] == wanted.best and not wanted._has_time(seen):
            right = [trial for trial in right if trial.ran != wanted.best and trial.score(aim) > clear]
            wanted = cls._beside_the_best_of(seen, right)
            if wanted.best is None:
                return first
        return wanted

    def _has_time(self, seen: Snapshot) -> bool:
        best, must = self.rivals[0], _must_be(seen)
        needed_s = max(1, self.lacking[0]) * _block_s(seen, list(dict.fromkeys([best, *must])))
        return needed_s <= left_to_confirm_s(seen) or best in must

    @classmethod
    def _beside_the_best_of(cls, seen: Snapshot, right: Sequence[Trial]) -> _Wanted:
        best, everybody = _rivals(seen, right)
        found = (_for_the_job(seen, each) for each in _compared(seen, everybody))
        asked, known = seen.job.budget.blocks, {each.candidate: each for each in found}
        least = least_blocks(asked)
        certain = least if asked in BOUNDS else asked  # more are not looked at before all are run
        rivals, lacking, theirs, must = [], list[int](), list[int](), _must_be(seen)
        for rival in everybody:
            comparison = known.get(rival.key)
            if _said_nothing(seen, rival) or (comparison is not None and not _goes_on(comparison, asked)):
                continue
            if comparison is not None and rival not in must and any(map(comparison.is_beaten_by, known.values())):
                continue
            running = [t for t in _confirming(seen) if t.requested == rival and t.outcome is Outcome.RUNNING]
            run = len(running) + (len(comparison.block_ratios) if comparison is not None else 0)
            if running and run >= certain:
                theirs += [trial.number for trial in running]
                continue
            rivals.append(rival)
            lacking.append(least - run)
        return cls(best, rivals, lacking, tuple(theirs))


def _goes_on(comparison: Comparison, blocks: int) -> bool:
    """Whether another block may tell more. blocks: as many are asked for, by now perhaps more than were planned first."""
    n = len(comparison.block_ratios)
    is_extended = comparison.planned in BOUNDS and n >= comparison.planned and comparison.is_undecided
    return n < blocks and (comparison.is_open or is_extended)


def _block_s(seen: Snapshot, rivals: Sequence[Configuration]) -> float:
    """Return the seconds that a block of these and the default is expected to take."""
    machine, everybody = seen.job.machine, [seen.baseline, *rivals]
    order = {each: parts_for(each, seen.trials, machine, seen.job.workload) for each in everybody}
    turns = turns_for(machine, everybody, seen.trials, seen.job.objective.aim)
    return block_s(seen.trials, order, seen.start_s, turns)


def _rivals(seen: Snapshot, right: Sequence[Trial]) -> tuple[Configuration | None, list[Configuration]]:
    """Return the best of these by what is known now, and who is to be compared with the default; nobody where no blocks are."""
    default, aim = seen.default, seen.job.objective.aim
    if default is None or not seen.job.budget.blocks:
        return None, []
    found = finalists(right, default, aim, is_default_right=seen.usable(default))
    # Where there is no time for all, the last are left out: what must be comes right after the best.
    return next(iter(found), None), list(dict.fromkeys([*found[:1], *_must_be(seen), *found[1:]]))


def _must_be(seen: Snapshot) -> list[Configuration]:
    """Return what meets the default whatever the search found: these are compared with one another, so in every block."""
    default, also = seen.default, seen.job.also
    usable = (t for t in seen.trials if t.requested in also and seen.usable(t)) if also else ()
    return list(dict.fromkeys(t.ran for t in usable if default is not None and t.ran != default.ran))


def _confirming(seen: Snapshot) -> list[Trial]:
    """Return the trials of blocks that were begun since this tune did, or by those it joined; not those left behind."""
    found = (t for t in seen.stored if t.phase == "confirm" and t.number >= seen.first)
    return [t for t in found if t.outcome is not Outcome.RUNNING or t.number in seen.taken]


def _over(seen: Snapshot) -> dict[int, list[Trial]]:
    """Return the trials of those blocks that were run to their end, by the block's number."""
    blocks: dict[int, list[Trial]] = {}
    for trial in _confirming(seen):
        blocks.setdefault(trial.block or 0, []).append(trial)
    broken = {t.block for t in _confirming(seen) if t.outcome is Outcome.RUNNING or t.reason in BROKEN_OFF}
    return {number: trials for number, trials in blocks.items() if number not in broken}


def _said_nothing(seen: Snapshot, rival: Configuration) -> bool:
    """Whether a block that was run to its end said nothing of somebody: then the next would not either."""
    met = [trials for trials in _over(seen).values() if any(t.requested == rival for t in trials)]
    return any(not block_ratios(trials, rival, seen.baseline, seen.job.objective.aim) for trials in met)


def _silence(seen: Snapshot) -> str:
    """Return why the last block said nothing of anybody, in words; "" where it said something."""
    over = _over(seen)
    if not over:
        return ""
    last = over[max(over)]
    if not all(_said_nothing(seen, rival) for rival in contestants(last, seen.baseline)):
        return ""
    why = next(
        (t.reason for t in last if t.reason and t.outcome is not Outcome.CUT), "there were no figures to compare"
    )
    return f"no comparison came of a block: {why}"
