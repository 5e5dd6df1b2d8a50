"""The CPU's pace: which rounds count of what waits for it, and what is said of them."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from advisor.machine import pace
from advisor.machine.device import Gauges
from advisor.machine.pace import Pace
from advisor.measure import block_torch, timing_torch
from advisor.measure.block_torch import run_block
from advisor.measure.messages import BlockAsked, FactsAsked, Failure, Rounds, Timing, TrialAsked, TrialDone
from advisor.measure.rounds_torch import Round, Taken
from advisor.measure.session_torch import Session
from advisor.measure.stopping import Stopping, Turns
from advisor.measure.timing_torch import take_round
from advisor.measure.worker import read_facts
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.workloads.forward import Forward

WORKLOAD = Forward((8, 6, 8, 6), 2)
CAUSAL = Path(__file__).parent / "models" / "causal"

#: A CPU whose loop takes a second is at its pace here. So many laps of one that others have are given.
QUICK_S, SLOW_S, SHARED = 1.0, 2.0, 5000
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})


class Shared(Pace):
    """A CPU that others have for some of the time: its laps are given, the last for ever; a round is as slow as they are."""

    def __init__(self, *laps_s: float) -> None:
        """Hold to the first lap before it was seen."""
        super().__init__()
        self.left, self.now_s = list(laps_s), QUICK_S

    def lap_s(self) -> float:
        """Return the next lap."""
        self.now_s = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        self.hold_to(self.now_s)
        return self.now_s

    def round(self, *_: Any, **__: Any) -> Round:
        """Return a round of 10 ms where the CPU is at its pace, and of 20 ms where it is not."""
        return Round(0.01 * self.now_s, 0.001, 0.01 * self.now_s, 0.01 * self.now_s)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Shared:
    """Time on a CPU that others have, by turns: five laps they have it, five they don't."""
    own = Shared(*getattr(request, "param", ([SLOW_S] * 5 + [QUICK_S] * 5) * (SHARED // 10)))
    monkeypatch.setattr(pace, "OWN", own)
    for module in (timing_torch, block_torch):
        monkeypatch.setattr(module, "timed_round", own.round)
    return own


@cache
def facts() -> ModelFacts:
    """Return the facts of a small model."""
    asked = FactsAsked(source=find_model(str(CAUSAL)).files, workload=WORKLOAD)
    return read_facts(Session(lambda _: None), asked).facts


def subject() -> dict[str, Any]:
    """Return what requests have of it."""
    source = find_model(str(CAUSAL)).files
    return {"source": source, "facts": facts(), "workload": WORKLOAD, "configuration": DEFAULT}


def taken(*rounds: tuple[float, float]) -> Taken:
    """Return rounds of so many seconds, each beside a lap of so many."""
    found = Taken()
    for wall_s, lap_s in rounds:
        found.add(Round(wall_s, wall_s / 2, wall_s, wall_s), {"cpu_lap_s": lap_s})
    return found


def test_the_best_lap_is_what_others_are_held_to() -> None:
    """One that was seen elsewhere on this machine counts as well."""
    own = Pace()
    laps_s = [own.lap_s() for _ in range(20)]

    assert 0 < own.best_s == min(laps_s) < math.inf
    own.hold_to(None)
    assert own.is_full(1.2 * own.best_s)
    assert not own.is_full(1.3 * own.best_s)
    own.hold_to(own.best_s / 2)
    assert not own.is_full(min(laps_s))


def test_rounds_at_another_pace_are_thrown_away_while_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures of a round go with it; where too few are left, all stay, and their laps say so."""
    monkeypatch.setattr(pace, "OWN", Shared(QUICK_S))
    pace.OWN.hold_to(QUICK_S)
    found = taken((0.024, 1.0), (0.044, 2.0), (0.025, 1.1), (0.048, 1.9))

    assert found.at_pace == [0.024, 0.025]
    assert found.keep_at_pace(3) == 0
    assert found.told.laps_s == (1.0, 2.0, 1.1, 1.9)
    assert found.keep_at_pace(2) == 2
    assert (found.wall_s, found.told.laps_s) == ([0.024, 0.025], (1.0, 1.1))
    assert [len(each) for each in (found.gpu_s, found.slowest_s, found.first_s, found.states)] == [2, 2, 2, 2]


def test_a_process_that_begins_slowly_takes_that_for_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken before is held to a quicker lap that is seen later, or that the study saw before."""
    monkeypatch.setattr(pace, "OWN", Shared(SLOW_S))
    pace.OWN.hold_to(SLOW_S)
    found = taken((0.044, 2.0), (0.045, 2.0))

    assert found.at_pace == [0.044, 0.045]
    pace.OWN.hold_to(QUICK_S)
    assert found.at_pace == []


def test_where_nobody_looked_all_rounds_count() -> None:
    """Where the GPU sets the pace no lap is run."""
    found = Taken()
    found.add(Round(0.024, 0.0, 0.024), {"sm_clock_mhz": 1980})

    assert found.at_pace == [0.024]
    assert found.keep_at_pace(1) == 0
    assert found.told.laps_s == ()


def test_the_share_of_the_gpu_is_of_the_rounds_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that others have makes every GPU wait: kernels of 17 ms in 20 ms keep it busy, though it took 40 ms in between."""
    monkeypatch.setattr(pace, "OWN", Shared(QUICK_S))
    pace.OWN.hold_to(QUICK_S)
    found = taken((0.04, 2.0), (0.02, 1.0), (0.04, 2.0))
    found.look_at_busy(0.017)

    assert found.busy == pytest.approx(0.85)


def test_laps_are_run_where_somebody_looks() -> None:
    """Before and after a round, the slower one counts; else nothing is told of the CPU, and it is not kept from the GPU."""
    with Gauges(None) as gauges:
        one, looked = take_round(gauges, "cpu", lambda: Round(0.01, 0.0, 0.01), Taken(), laps=True)
        _, blind = take_round(gauges, "cpu", lambda: one, Taken(), laps=False)

    assert looked["cpu_lap_s"] >= pace.OWN.best_s > 0
    assert "cpu_lap_s" not in blind


@pytest.mark.parametrize("shared", [([SLOW_S] * 8 + [QUICK_S] * 8) * 500], indirect=True)
def test_a_trial_that_waits_is_timed_while_the_cpu_is_at_its_pace(shared: Shared) -> None:
    """Rounds that others had the CPU for are thrown away, and it is said how many."""
    asked = TrialAsked(**subject(), timing=Timing(stopping=Stopping(), energy=False))
    rounds = timing_torch.Timing(Session(lambda _: None), [], asked, kernel_s=0.001).rounds().told

    assert rounds.busy == pytest.approx(0.1)
    assert set(rounds.wall_s) == {0.01}
    assert len(rounds.wall_s) == len(rounds.laps_s) >= 10
    assert max(rounds.laps_s) == QUICK_S
    assert any("not at its pace in" in why for why in rounds.discarded)


@pytest.mark.parametrize("shared", [[SLOW_S]], indirect=True)
def test_a_trial_ends_where_the_cpu_never_is_at_its_pace(shared: Shared) -> None:
    """All rounds are kept then, with laps that say it, beside the quickest that the study saw."""
    asked = TrialAsked(**subject(), timing=Timing(stopping=Stopping(), energy=False, best_lap_s=QUICK_S))
    rounds = timing_torch.Timing(Session(lambda _: None), [], asked, kernel_s=0.001).rounds().told

    assert set(rounds.wall_s) == {0.02}
    assert set(rounds.laps_s) == {SLOW_S}
    assert sum(rounds.wall_s) >= Stopping().seconds_long
    assert not any("pace" in why for why in rounds.discarded)


@pytest.mark.parametrize("shared", [[QUICK_S]], indirect=True)
@pytest.mark.parametrize(("incumbent_s", "timed"), [(0.008, 5), (0.009, 10), (None, 10)])
def test_what_is_clearly_slower_than_the_best_so_far_is_timed_for_half_as_long(
    shared: Shared, incumbent_s: float | None, timed: int
) -> None:
    """It has its figure all the same: a trial's scatter is larger than what five more rounds would tell."""
    asked = TrialAsked(**subject(), timing=Timing(stopping=Stopping(), energy=False, incumbent_s=incumbent_s))
    timing = timing_torch.Timing(Session(lambda _: None), [], asked, kernel_s=0.001)
    assert timing.slow() is None
    rounds = timing.rounds().told

    assert not rounds.pruned
    assert len(rounds.wall_s) == timed


def test_what_is_clearly_slower_has_its_figure_though_it_never_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of a twentieth of a second that do not agree: the tenth counts as warm and shows how slow it is, both at once."""
    wall_s = iter([0.05, 0.056] * 20)

    def made_up(*_: Any) -> Round:
        return Round(each := next(wall_s), each, each)

    monkeypatch.setattr(timing_torch, "timed_round", made_up)
    asked = TrialAsked(**subject(), timing=Timing(stopping=Stopping(), energy=False, incumbent_s=0.001))
    found = timing_torch.Timing(Session(lambda _: None), [], asked).slow()

    assert found is not None
    assert found.told.pruned == "50.0 times slower than the best so far after 10 rounds"
    assert found.told.wall_s == (0.05, 0.056)


def test_work_that_keeps_the_gpu_busy_runs_no_laps(shared: Shared) -> None:
    """But for the first round, of which nobody knows yet: a lap is idle time, and energy is read over what lies between."""
    asked = TrialAsked(**subject(), timing=Timing(stopping=Stopping(), energy=False))
    before = len(shared.left)
    timing_torch.Timing(Session(lambda _: None), [], asked, kernel_s=0.02).rounds()

    assert before - len(shared.left) == 2


def failure_of(error: BaseException, stage: str) -> Failure:
    """Fail the test where a contestant does."""
    raise AssertionError(stage) from error


def block(turns: Turns) -> list[Rounds]:
    """Run a block of the default and the same packed, whose rounds alone are made up, and return those."""
    contestants = (DEFAULT, DEFAULT.replaced(packing="packed"))
    asked = BlockAsked(**subject(), contestants=contestants, seed=0, turns=turns, best_lap_s=QUICK_S)
    came = [each.came for each in run_block(Session(lambda _: None), asked, failure_of).results]
    return [each.rounds for each in came if isinstance(each, TrialDone) and each.rounds is not None]


@pytest.mark.parametrize("paired", [True, False], ids=["beside the default", "compared as medians"])
def test_a_turn_is_of_the_rounds_at_the_cpus_pace(shared: Shared, *, paired: bool) -> None:
    """Whether turns are compared one by one or not: what waits for its launches waits in both."""
    turns = Turns(least=5, most=5, turn_s=0.1, paired=paired, waits=True)
    for rounds in (found := block(turns)):
        assert rounds.wall_s == (0.01,) * 5
        assert rounds.laps_s == (QUICK_S,) * 5
    assert [rounds.paired for rounds in found] == [paired] * 2
    assert len(shared.left) < SHARED


def test_a_block_that_does_not_wait_runs_no_laps(shared: Shared) -> None:
    """Its turns are long and read energy."""
    found = block(Turns(least=3, most=3, turn_s=0.1))

    assert [(len(rounds.wall_s), rounds.laps_s) for rounds in found] == [(3, ())] * 2
    assert len(shared.left) == SHARED


def test_a_short_turn_waits_for_the_cpu() -> None:
    """Its rounds at the CPU's pace take as long as a turn, or all of them twice as long; any other turn takes what it takes."""
    short, long = Turns(turn_s=0.2, waits=True), Turns(turn_s=0.2)

    assert not short.has_lasted([], [])
    assert not short.has_lasted([0.05] * 3, [0.05] * 3)
    assert short.has_lasted([0.05] * 4, [0.05] * 4)
    assert not short.has_lasted([0.05], [0.05] * 7)
    assert short.has_lasted([0.05], [0.05] * 8)
    assert long.has_lasted([0.05], [0.05] * 4)
    assert short.has_lasted([0.3], [0.3])
