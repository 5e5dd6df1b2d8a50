"""The confirmation: who meets the default, in which blocks and processes, what that costs, and what the blocks say.

A block belongs to one invocation of `tune` on one device: its number is never used again, so that nobody is compared with the
default of another day or another GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from advisor.knobs import choices_of, compiles, traits_of, weights_of
from advisor.measure.stopping import PATIENCE, Turns
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import LEAST_BLOCKS, Comparison
from advisor.nouns.metrics import ROUND, Metric
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Trial, best_laps_s
from advisor.workloads import Workload

#: How many candidates meet the default in each block at most.
FINALISTS = 3

#: A turn on a GPU lasts at least so long (seconds), for its clock follows its load; on a CPU a shorter one tells as much.
TURN_S = {True: 1.0, False: 0.2}

#: So short may a turn on a GPU be where nobody keeps it busy: what counts is the CPU's speed, and that changes within a second.
SHORTEST_TURN_S = 0.2

#: A part of a long round lasts this share of a turn at least.
PART_SHARE = 0.8

#: Models that share a process may take this share of the device's free memory together.
TOGETHER_SHARE = 0.8


def finalists(right: Iterable[Trial], default: Trial, aim: Metric, *, is_default_right: bool) -> list[Configuration]:
    """Return who is to be compared with the default, the best first: all whose interval reaches that of the best.

    right: the search trials that may be recommended; by their own figures for what the study aims at. The intervals are of one
    process each, so they are widened by the tie zone, or by the scatter of work that waits for its launches: what differs from
    process to process they can't show. Nobody who is no better than the default, where that may be recommended itself.
    """
    beaten = default.score(aim) if is_default_right else 0.0
    better = sorted((t for t in right if t.ran != default.ran and t.score(aim) > beaten), key=lambda t: -t.score(aim))
    if not better:
        return []
    best_s = best_laps_s([*better, default]).get(better[0].device_uuid)
    scatter = better[0].margin(aim, best_s)
    low = better[0].score_interval(aim)[0] / (1 + scatter)
    near = [t.ran for t in better if t.score_interval(aim)[1] >= low]
    return list(dict.fromkeys(near))[:FINALISTS]


def block_ratios(
    trials: Iterable[Trial], candidate: Configuration, baseline: Configuration, aim: Metric
) -> list[float]:
    """Return the ratio of each block, by its number, in which both ran as themselves, on one device, and were seen."""
    blocks: dict[tuple[int, str], dict[Configuration, Trial]] = {}
    for trial in trials:
        is_good = trial.outcome is Outcome.OK and trial.ran == trial.requested
        if (
            trial.phase == "confirm"
            and trial.block is not None
            and is_good
            and trial.requested in (candidate, baseline)
        ):
            blocks.setdefault((trial.block, trial.device_uuid), {})[trial.requested] = trial
    whole = (both for _, both in sorted(blocks.items(), key=lambda item: item[0]) if len(both) == 2)
    return [ratio for both in whole if (ratio := both[candidate].times(both[baseline], aim))]


def compared(
    trials: Sequence[Trial], candidates: Iterable[Configuration], baseline: Configuration, aim: Metric, planned: int
) -> list[Comparison]:
    """Return what all stored blocks say of candidates; nothing of those that have none. planned: how many blocks at most."""
    found = ((c, block_ratios(trials, c, baseline, aim)) for c in candidates)
    return [Comparison(c.key, baseline.key, tuple(ratios), planned) for c, ratios in found if ratios]


def contestants(trials: Iterable[Trial], baseline: Configuration) -> list[Configuration]:
    """Return all that ever met the default in a block."""
    met = (t.requested for t in trials if t.phase == "confirm" and t.requested != baseline)
    return list(dict.fromkeys(met))


def next_block(trials: Iterable[Trial]) -> int:
    """Return a number that no block has."""
    return max((trial.block or 0 for trial in trials if trial.phase == "confirm"), default=0) + 1


def parts_for(configuration: Configuration, trials: Iterable[Trial], machine: Machine, workload: Workload) -> int:
    """Return in how many turns a contestant's round is run: as many as a block has at least, or in one.

    In parts where each lasts about a turn, by what the search saw: three rounds of some seconds each would tell no more than one
    whose parts alternate with the others' turns, if there are any. Not on a CPU, whose rounds scatter, nor what replays recorded
    calls: each is recorded first, and then each would be replayed once.
    """
    least, searched = Turns.least, _searched(trials, configuration)
    round_s = (searched.value(ROUND) if searched is not None else None) or 0.0
    calls = len(workload.under(configuration).batches())
    is_long = calls >= least and round_s >= PART_SHARE * least * TURN_S[True]
    return least if is_long and machine.environment.is_cuda and not traits_of(configuration).replays else 1


def turns_for(machine: Machine, group: Iterable[Configuration], trials: Sequence[Trial], aim: Metric) -> Turns:
    """Return when the turns of a block end on a device.

    Where time counts and everybody of the group waits for the CPU that launches their kernels, turns are shorter, down to one
    round, and as many more: they take as long together.
    """
    turn_s, ran = TURN_S[machine.environment.is_cuda], [_searched(trials, each) for each in group]
    waits = aim.is_of_time and bool(ran) and all(trial is not None and trial.is_launch_bound for trial in ran)
    if not machine.environment.is_cuda or not waits:
        return Turns(turn_s=turn_s)
    longest_s = max(trial.value(ROUND) or 0.0 for trial in ran if trial is not None)
    short_s = min(max(SHORTEST_TURN_S, longest_s), turn_s)
    least, most = (max(count, round(count * turn_s / short_s)) for count in (Turns.least, Turns.most))
    return Turns(least, most, short_s, paired=short_s < turn_s, waits=True)


def _searched(trials: Iterable[Trial], configuration: Configuration) -> Trial | None:
    """Return the search trial that timed a configuration; None where there is none."""
    return next((t for t in trials if t.phase == "search" and t.ran == configuration and t.measurements), None)


def least_blocks(planned: int) -> int:
    """Return how many blocks are run before the answer is looked at."""
    return min(planned, LEAST_BLOCKS)


def processes(order: Sequence[Configuration], *, is_alone: bool) -> list[list[Configuration]]:
    """Return who of a block shares a process, the default's first.

    Choices that switch something of the process can't meet others there, nor what is compiled with a kernel that it is held to:
    others compiled would be given its graphs. is_alone: everybody has a process of its own.
    """
    groups: dict[Any, list[Configuration]] = {}
    for number, configuration in enumerate(order):
        is_compiled = compiles(configuration)
        wide = tuple(
            (choice.knob, choice.name)
            for choice in choices_of(configuration)
            if choice.traits.process_wide or (is_compiled and choice.traits.pins_kernel)
        )
        groups.setdefault(number if is_alone else wide, []).append(configuration)
    return list(groups.values())


def takes_turns(
    group: Sequence[Configuration],
    trials: Iterable[Trial],
    free_bytes: int | None,
    facts: ModelFacts,
    workload: Workload,
) -> bool:
    """Whether each of a group is loaded, timed and freed by itself: where they don't fit together, and where weights change."""
    return workload.trains or not fits_together(group, trials, free_bytes, facts)


def fits_together(
    group: Sequence[Configuration], trials: Iterable[Trial], free_bytes: int | None, facts: ModelFacts
) -> bool:
    """Whether all models of a group fit beside one another: by the peaks that their search trials saw, each by itself.

    Equal weights are loaded once. Unknown peaks, or unknown free memory, do not fit unless there is one model.
    """
    peaks: dict[Any, float] = {}
    seen = {t.ran: t.peak_bytes for t in trials if t.phase == "search" and t.peak_bytes}
    for configuration in group:
        weights = weights_of(configuration, switches_attention=facts.switches_attention)
        peaks[weights] = max(peaks.get(weights, 0.0), float(seen.get(configuration, math.inf)))
    return len(peaks) == 1 or sum(peaks.values()) <= TOGETHER_SHARE * (free_bytes or 0)


def block_s(trials: Sequence[Trial], order: Mapping[Configuration, int], start_s: float, turns: Turns) -> float:
    """Return the seconds that a block of these is expected to take.

    What each took in the last block of this study, or else what the search saw: loading, the first call, its proof, a round
    that does not count, and its turns; or where its round is run in parts, that round and a part of it, or all of it again where
    it is compiled. order: who is in it, and in how many parts the round of each is run; start_s: of a fresh process, which each
    may have.
    """
    return sum(_contestant_s(trials, each, start_s, turns, parts) for each, parts in order.items())


def _contestant_s(
    trials: Sequence[Trial], configuration: Configuration, start_s: float, turns: Turns, parts: int
) -> float:
    walls = [
        t.wall_s
        for t in trials
        if t.phase == "confirm" and t.requested == configuration and t.outcome is Outcome.OK and t.wall_s
    ]
    if walls:
        return walls[-1]
    ran = [t for t in trials if t.phase == "search" and t.ran == configuration and t.measurements]
    load_s = max((t.load_s or 0.0 for t in trials), default=0.0)  # some found their weights loaded
    first_s = max((t.first_call_s or 0.0 for t in ran), default=0.0)
    first_s += max((float(t.reading.get("proof_s") or 0.0) for t in ran), default=0.0)
    round_s = max((t.value("round_s") or 0.0 for t in ran), default=0.0)
    if parts > 1:
        return start_s + load_s + first_s + round_s * (1 + (1 if compiles(configuration) else 1 / parts))
    turn_s = max(turns.turn_s * (PATIENCE if turns.waits else 1), round_s)
    return start_s + load_s + first_s + round_s + turns.least * turn_s


def affordable(
    rivals: Sequence[Configuration],
    block_s: Callable[[Sequence[Configuration]], float],
    left_s: float,
    lacking: Sequence[int],
) -> tuple[list[Configuration], float]:
    """Return as many of the best as can be confirmed in so many seconds, one at least, and what that takes.

    block_s: of a block with these and the default; lacking: how many blocks each needs yet, one where they say enough.
    """
    for count in range(len(rivals), 0, -1):
        kept = list(rivals[:count])
        needed_s = max([1, *lacking[:count]]) * block_s(kept)
        if count == 1 or needed_s <= left_s:
            return kept, needed_s
    return [], 0.0
