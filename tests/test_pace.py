"""The CPU's pace: which rounds count of what waits for it, and what is said of them."""

from __future__ import annotations

import math

import pytest

from advisor.machine.pace import Pace, is_full
from advisor.measure.stopping import Turns
from advisor.measure.timing_torch import Round, Taken


def taken(*rounds: tuple[float, float]) -> Taken:
    """Return rounds of so many seconds, each at a share of the CPU's best pace."""
    found = Taken()
    for wall_s, share in rounds:
        found.add(Round(wall_s, wall_s / 2, wall_s), {"cpu_pace": share})
    return found


def test_the_best_lap_is_what_others_are_held_to() -> None:
    """A lap is at most as quick as the best, and the slower one of two counts."""
    pace = Pace()
    laps_s = [pace.lap_s() for _ in range(20)]

    assert 0 < pace.best_s == min(laps_s) < math.inf
    assert pace.share(pace.best_s) == 1
    assert pace.share(pace.best_s, 2 * pace.best_s) == pace.share(2 * pace.best_s, pace.best_s) == pytest.approx(0.5)


def test_a_tenth_slower_is_no_other_pace() -> None:
    """Laps scatter by a tenth while nothing happens; a core that is shared takes twice as long."""
    assert is_full(1.0)
    assert is_full(0.85)
    assert not is_full(0.6)


def test_rounds_at_another_pace_are_thrown_away_while_there_are_enough() -> None:
    """All figures of a round go with it; where too few are left, all stay, and their paces say so."""
    found = taken((0.024, 1.0), (0.044, 0.5), (0.025, 0.9), (0.048, 0.55))

    assert found.at_pace == [0.024, 0.025]
    assert found.keep_at_pace(3) == 0
    assert found.told.paces == (1.0, 0.5, 0.9, 0.55)
    assert found.keep_at_pace(2) == 2
    assert (found.wall_s, found.told.paces) == ([0.024, 0.025], (1.0, 0.9))
    assert [len(each) for each in (found.gpu_s, found.slowest_s, found.states)] == [2, 2, 2]


def test_where_nobody_looked_all_rounds_count() -> None:
    """On a CPU its own work is seen to wait: there is no pace beside it."""
    found = Taken()
    found.add(Round(0.024, 0.0, 0.024), {"load_1min": 1.0})

    assert found.at_pace == [0.024]
    assert found.keep_at_pace(1) == 0
    assert found.told.paces == ()


def test_a_short_turn_waits_for_the_cpu() -> None:
    """Its rounds at the CPU's pace take as long as a turn, or all of them twice as long; any other turn takes what it takes."""
    short, long = Turns(turn_s=0.2, paired=True), Turns(turn_s=0.2)

    assert not short.has_lasted([], [])
    assert not short.has_lasted([0.05] * 3, [0.05] * 3)
    assert short.has_lasted([0.05] * 4, [0.05] * 4)
    assert not short.has_lasted([0.05], [0.05] * 7)
    assert short.has_lasted([0.05], [0.05] * 8)
    assert long.has_lasted([0.05], [0.05] * 4)
    assert short.has_lasted([0.3], [0.3])
