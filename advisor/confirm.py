"""The confirmation: who meets the default, in which blocks, what that costs, and what the blocks say.

In each block every contestant runs once, in a fresh process and in random order. A block belongs to one invocation of `tune`
on one device: its number is never used again, so that nobody is compared with the default of another day or another GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from advisor.configuration import Configuration
from advisor.measurement import TIE_ZONE, Comparison
from advisor.objective import Metric
from advisor.trial import Outcome, Trial

#: How many candidates meet the default in each block at most.
FINALISTS = 3

#: When the timing of a run in a block ends: `advisor.timing_torch.Stopping`.
STOPPING = {"least": 5, "most": 10, "seconds": 20.0, "least_long": 5, "seconds_long": 30.0}


def finalists(right: Iterable[Trial], default: Trial, aim: Metric, *, is_default_right: bool) -> list[Configuration]:
    """Return who is to be compared with the default, the best first: all whose interval reaches that of the best.

    right: the search trials that may be recommended; by their own figures for what the study aims at. The intervals are of one
    process each, so they are widened by the tie zone: what differs from process to process they can't show. Nobody who is no
    better than the default, where that may be recommended itself.
    """
    beaten = default.score(aim) if is_default_right else 0.0
    better = sorted((t for t in right if t.ran != default.ran and t.score(aim) > beaten), key=lambda t: -t.score(aim))
    if not better:
        return []
    low = score_interval(better[0], aim)[0] / (1 + TIE_ZONE)
    near = [t.ran for t in better if score_interval(t, aim)[1] >= low]
    return list(dict.fromkeys(near))[:FINALISTS]


def score_interval(trial: Trial, aim: Metric) -> tuple[float, float]:
    """Return the interval of a trial's score, which is higher the better it is; a point where it has one figure alone."""
    measured = trial.measurement(aim.metric)
    if measured is None:
        return trial.score(aim), trial.score(aim)
    low, high = measured.interval
    return (1 / high, 1 / low) if aim.less_is_better else (low, high)


def block_ratios(
    trials: Iterable[Trial], candidate: Configuration, baseline: Configuration, aim: Metric
) -> list[float]:
    """Return the ratio of each block, by its number, in which both ran as themselves, on one device, and were seen."""
    scores: dict[tuple[int, str], dict[Configuration, float]] = {}
    for trial in trials:
        is_good = trial.outcome is Outcome.OK and trial.ran == trial.requested
        if (
            trial.phase == "confirm"
            and trial.block is not None
            and is_good
            and trial.requested in (candidate, baseline)
        ):
            scores.setdefault((trial.block, trial.device_uuid), {})[trial.requested] = trial.score(aim)
    whole = (both for _, both in sorted(scores.items()) if len(both) == 2 and all(both.values()))
    return [both[candidate] / both[baseline] for both in whole]


def compared(
    trials: Sequence[Trial], candidates: Iterable[Configuration], baseline: Configuration, aim: Metric
) -> list[Comparison]:
    """Return what all stored blocks say of candidates; nothing of those that have none."""
    found = ((c, block_ratios(trials, c, baseline, aim)) for c in candidates)
    return [Comparison(c.key, baseline.key, tuple(ratios)) for c, ratios in found if ratios]


def contestants(trials: Iterable[Trial], baseline: Configuration) -> list[Configuration]:
    """Return all that ever met the default in a block."""
    met = (t.requested for t in trials if t.phase == "confirm" and t.requested != baseline)
    return list(dict.fromkeys(met))


def next_block(trials: Iterable[Trial]) -> int:
    """Return a number that no block has."""
    taken = {trial.block for trial in trials if trial.phase == "confirm"}
    return next(
        number for number in count(1) if number not in taken and number > max((b or 0 for b in taken), default=0)
    )


def run_s(trials: Sequence[Trial], configuration: Configuration, start_s: float) -> float:
    """Return the seconds that a run of a block is expected to take, in a process of its own.

    What such runs took in this study, or else what the search saw: start_s, measured when the study's first process started,
    loading, the first call, warm-up and rounds.
    """
    walls = [
        t.wall_s for t in trials if t.phase == "confirm" and t.requested == configuration
        and t.outcome is Outcome.OK and t.wall_s
    ]  # fmt: skip
    if walls:
        return max(walls)
    ran = [t for t in trials if t.phase == "search" and t.ran == configuration and t.measurements]
    load_s = max((t.load_s or 0.0 for t in trials), default=0.0)  # some found their weights loaded
    first_s = max((t.first_call_s or 0.0 for t in ran), default=0.0)
    round_s = max((t.value("round_s") or 0.0 for t in ran), default=0.0)
    timed_s = min(max(STOPPING["least"] * round_s, 1.0), max(STOPPING["seconds"], 3 * round_s))
    return start_s + load_s + first_s + 3 * round_s + timed_s


def affordable(
    rivals: Sequence[Configuration], block_s: Callable[[Sequence[Configuration]], float], left_s: float, blocks: int
) -> tuple[list[Configuration], float]:
    """Return as many of the best as can be confirmed in so many blocks and seconds, one at least, and what that takes.

    block_s: of a block with these and the default.
    """
    kept = list(rivals)
    while len(kept) > 1 and blocks * block_s(kept) > left_s:
        kept.pop()
    return kept, blocks * block_s(kept) if kept else 0.0
