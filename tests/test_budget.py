"""The budget is a promise, and what it cuts has failed at nothing: by a clock that only moves when something runs.

A made-up device takes as many seconds as it is told to; the loop, the database and the search are the real ones.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from made_databases import laid

from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import recommend
from advisor.errors import NotMeasured
from advisor.measure.messages import (
    Answer,
    BlockAsked,
    BlockDone,
    Ceilings,
    CeilingsAsked,
    Contested,
    FactsAsked,
    FactsRead,
    Failure,
    ReferenceAsked,
    ReferenceWritten,
    Request,
    Rounds,
    TrialAsked,
    TrialDone,
)
from advisor.measure.runner import LocalRunner
from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import GPU_BUSY, METRICS
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.search.space import LEAST_BESIDE_BYTES, MEMORY_SHARE
from advisor.show.support import LLAMA
from advisor.storage.store import Store
from advisor.study.clock import Bounded, BudgetSpent, Clock
from advisor.study.confirm import affordable, block_ratios, finalists
from advisor.study.confirmation import DECIDING_SHARE
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"

H200 = Environment(
    "cuda",
    "NVIDIA H200",
    (9, 0),
    150 * 10**9,
    "580.95.05",
    "13.0",
    packages={"torch": "2.11.0", "transformers": "5.17.0", "flash-attn": "2.8.3"},
)
SOURCE = ModelSource("llama", "/nowhere", {"model_type": "llama"}, "trained", "sha256:0", has_tokenizer=False)
WORKLOAD = Forward((64, 32, 48, 16), 2)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")

#: What is tried beside the default is sorted and packed, and nothing else.
ONLY = (
    ("attention", ("sdpa",)),
    ("packing", ("packed", "padded", "sorted")),
    ("precision", ("bf16",)),
    ("quantization", ("none",)),
)

#: Of so much free memory two of the three fit in the share that may be used: the pads' tokens are too much.
TIGHT_BYTES = 17_777_780_000 + round(LEAST_BESIDE_BYTES / MEMORY_SHARE)


@dataclass
class Device:
    """A runner whose runs take as long as they are told to, on a clock of its own. speeds: in tokens a second.

    ran: every trial that was run to its end, with the process it ran in.
    """

    interrupted = ""

    speeds: Mapping[Configuration, float] = field(default_factory=dict)
    seconds: Mapping[type, float] = field(default_factory=dict)
    trial_s: Callable[[Configuration], float] = lambda _: 10.0
    uuid: str = "GPU-1"
    time_s: float = 1000.0
    process: int = 0
    ran: list[tuple[str, int]] = field(default_factory=list)
    reference: str = "fp32"

    def now(self) -> float:
        """Return the time."""
        return self.time_s

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Answer a request, or be stopped at its deadline."""
        needed = self.seconds.get(type(request), self._needed_s(request))
        self.time_s += min(needed, timeout_s)
        if needed > timeout_s:
            return Failure(outcome=Outcome.TIMEOUT, reason=f"no result after {timeout_s:.0f} s", transient=True)
        match request:
            case FactsAsked():
                return FactsRead(facts=LLAMA)
            case CeilingsAsked():
                return Ceilings(reached={})
            case ReferenceAsked():
                return ReferenceWritten(positions=1, words="fp32, eager", texts="random tokens")
            case BlockAsked():
                asked = [TrialAsked.of(request, configuration=each) for each in request.contestants]
                return BlockDone(results=tuple(Contested(came=self._trial(each)) for each in asked))
        assert isinstance(request, TrialAsked)
        return self._trial(request)

    def _needed_s(self, request: Request) -> float:
        """How long a request takes where nobody says otherwise."""
        if isinstance(request, BlockAsked):
            return sum(map(self._contestant_s, request.contestants))
        return self.trial_s(request.configuration) if isinstance(request, TrialAsked) else 1.0

    def _contestant_s(self, configuration: Configuration) -> float:
        """Loading, the first call, a round that does not count, and three turns of one round."""
        return 2.0 + 4 * WORKLOAD.tokens / self.speeds.get(configuration, 100.0)

    def _trial(self, request: TrialAsked) -> TrialDone:
        configuration = request.configuration
        self.ran.append((str(configuration), self.process))
        again = sum(name == str(configuration) for name, _ in self.ran)
        wall_s = WORKLOAD.tokens / (self.speeds.get(configuration, 100.0) * (1 + 0.002 * (again % 3)))
        gate = request.gate
        samples = tuple(wall_s * f for f in (0.999, 1, 1.001)) * 3
        return TrialDone(
            outcome=Outcome.OK,
            effective=configuration,
            load_s=1.0,
            first_call_s=1.0,
            peak_bytes=2**30,
            weight_bytes=2**30,
            quality=Quality(0.01, 0.1, 1e-4, 1.0, 1, reference=gate.reference) if gate else None,
            rounds=Rounds(wall_s=samples, gpu_s=(0.0,) * 9, slowest_s=(wall_s,) * 9),
        )

    def restart(self) -> None:
        """Begin another process."""
        self.process += 1

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Place:
    """A database, and what a tune in it came to."""

    store: Store
    events: list[dict[str, Any]] = field(default_factory=list)

    def tune(
        self, device: Device, budget: Budget, *, stop_at: int | None = None, stop_on: str = "", **more: Any
    ) -> Recommendation:
        """Tune within a budget; interrupted when the confirmation's run number stop_at begins, or on the event stop_on."""
        objective = more.pop("objective", Objective(Tier.EXACT, only=ONLY))
        environment, free_bytes = more.pop("environment", H200), more.pop("free_bytes", 140 * 10**9)
        machine = Machine(environment, "host", device.uuid, 0, free_bytes)
        job = Job(SOURCE, WORKLOAD, objective, budget, machine, began=device.time_s, **more)
        self.events.clear()

        def listen(event: Mapping[str, Any]) -> None:
            self.events.append(dict(event))
            confirming = [e for e in self.events if e["event"] == "start" and e["phase"] == "confirm"]
            if (stop_at is not None and len(confirming) == stop_at) or event["event"] == stop_on:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            tune(job, self.store, device, listen, now=device.now)
        return recommend(self.store, SOURCE, self.store.study(1), objective)

    @property
    def why(self) -> str:
        """Why the search stopped."""
        (event,) = [e for e in self.events if e["event"] == "stopped"]
        return str(event["why"])

    def runs(self, phase: str) -> list[tuple[int | None, str, Configuration]]:
        """Return block, outcome and configuration of every trial of a phase."""
        return [(t.block, str(t.outcome), t.requested) for t in self.store.trials(1) if t.phase == phase]


@pytest.fixture
def place(sqlite_url: str) -> Iterator[Place]:
    """Give an empty database."""
    with Store.open(laid(sqlite_url), write=True) as store:
        yield Place(store)


# ------------------------------------------------------------------------------------------------------------ the clock


@pytest.mark.parametrize("budget_s", [10, 45, 120, 600])
@pytest.mark.parametrize("trial_s", [3.0, 17.0, 200.0])
def test_a_tune_ends_with_its_budget(place: Place, budget_s: float, trial_s: float) -> None:
    """Whatever a trial takes, all of it is within a tenth more, or 20 s more; none of it is a failure of a configuration."""
    device = Device({PACKED: 150.0}, {FactsAsked: 6.0, ReferenceAsked: 5.0, CeilingsAsked: 4.0}, lambda _: trial_s)
    began = device.time_s
    found = place.tune(device, Budget(budget_s), objective=Objective(Tier.FOUR_BIT))

    assert device.time_s - began <= max(1.1 * budget_s, budget_s + 20)
    assert {str(t.outcome) for t in place.store.trials(1)} <= {"ok", "cut", "pruned"}
    assert found.verdict in ("unsearched", "unconfirmed", "faster")
    assert found.failures == ()


def test_the_clock_starts_with_the_command(place: Place) -> None:
    """What went before the tune itself, imports and the reading of files, counts."""
    device = Device()
    device.time_s += 500.0
    job = Job(
        SOURCE,
        WORKLOAD,
        Objective(Tier.EXACT, only=ONLY),
        Budget(100.0),
        Machine(H200, "h", "u", 0, 10**11),
        began=1000.0,
    )
    with pytest.raises(NotMeasured, match="the budget of 100 s was spent before the model was read"):
        tune(job, place.store, device, lambda _: None, now=device.now)

    assert device.time_s == 1500.0
    assert place.store.studies() == []


def test_a_model_that_is_not_read_in_time_is_said(place: Place) -> None:
    """A load that outlasts the budget is cut, in one line with what to do; it is not measured."""
    device = Device(seconds={FactsAsked: 100.0})
    with pytest.raises(
        NotMeasured, match=r"the budget of 10 s was spent before the model was read \(a longer --budget\)"
    ):
        place.tune(device, Budget(10.0))


def test_a_cut_default_is_no_failure(place: Place) -> None:
    """A default that the budget cut was not measured: nothing is inadmissible, and the next tune measures it."""
    device = Device({PACKED: 150.0}, {ReferenceAsked: 30.0}, lambda _: 60.0)
    found = place.tune(device, Budget(45.0))

    assert (found.configuration, found.verdict, found.exit_status) == (None, "unsearched", 3)
    assert place.runs("search") == [(None, "cut", DEFAULT)]
    assert place.why == Stop.BUDGET.words
    found = place.tune(device, Budget(2000.0))
    assert (found.configuration, found.verdict) == (PACKED, "faster")
    assert [outcome for _, outcome, _ in place.runs("search")] == ["cut", "ok", "ok", "ok"]


def test_what_was_cut_comes_last(place: Place) -> None:
    """A configuration that outlasts every budget does not keep the others from their turn."""
    device = Device({}, trial_s=lambda c: 1e6 if c == PACKED else 5.0)
    for _ in range(3):
        place.tune(device, Budget(60.0))

    tried = [(outcome, c) for _, outcome, c in place.runs("search")]
    assert ("ok", DEFAULT) in tried
    assert ("ok", SORTED) in tried
    assert {outcome for outcome, c in tried if c == PACKED} == {"cut"}


# --------------------------------------------------------------------------------------------- what is set aside, and why


def test_nothing_is_set_aside_for_what_is_not_to_be_confirmed(place: Place) -> None:
    """Where the default is the fastest, the whole budget is for the search: everything is tried."""
    device = Device({DEFAULT: 200.0}, trial_s=lambda _: 15.0)
    found = place.tune(device, Budget(60.0))

    assert len(place.runs("search")) == 3
    assert place.runs("confirm") == []
    assert (found.verdict, place.why) == ("default", Stop.EVERYTHING.words)


def test_time_is_set_aside_where_something_is_to_be_confirmed(place: Place) -> None:
    """What is faster is confirmed within the budget, and the search ends early for it, and says so."""
    device = Device({PACKED: 150.0}, trial_s=lambda _: 12.0)
    found = place.tune(device, Budget(160.0), objective=Objective(Tier.FOUR_BIT))

    assert found.verdict == "faster"
    assert place.why == Stop.BUDGET.words
    assert found.prospects.left > 0
    assert found.share_tried is not None
    assert found.share_tried < 1


def test_a_trial_takes_nothing_of_what_is_set_aside(place: Place) -> None:
    """One that would last for ten minutes is cut in time for what was found to be confirmed, and is no failure."""
    device = Device({PACKED: 150.0}, trial_s=lambda c: 600.0 if c not in (DEFAULT, PACKED) else 10.0)
    found = place.tune(device, Budget(120.0))

    assert (found.verdict, found.configuration) == ("faster", PACKED)
    assert place.why == Stop.BUDGET.words
    (cut,) = (trial for trial in place.store.trials(1) if trial.outcome is Outcome.CUT)
    assert 10.0 < (cut.wall_s or 0.0) < 90.0
    assert device.time_s - 1000.0 <= 120.0 * 1.1


@pytest.mark.parametrize(
    ("budget", "why"),
    [(Budget(None, 2), Stop.TRIALS), (Budget(600.0), Stop.EVERYTHING), (Budget(25.0), Stop.BUDGET)],
)
def test_why_it_stopped_is_said_every_time(place: Place, budget: Budget, why: Stop) -> None:
    """As an event, with the answer, and still in a later answer from the rows."""
    found = place.tune(Device({PACKED: 150.0}), budget)

    assert place.why == found.why == why.words
    assert found.study.end is not None
    assert found.study.end.stop is why


def test_an_interruption_is_why_it_stopped(place: Place) -> None:
    """Ctrl-C in the search is stored as the reason; in the confirmation the search had ended by itself."""
    device = Device({PACKED: 150.0})
    found = place.tune(device, Budget(600.0), stop_at=2)

    assert found.study.state == "interrupted"
    assert found.why == Stop.EVERYTHING.words


@pytest.mark.parametrize("how", ["no time", "interrupted", "interrupted at once"])
def test_a_tune_that_measures_nothing_leaves_what_is_known(place: Place, how: str) -> None:
    """A second tune that ends before it has run anything says no less than the first one did of the same rows."""
    first = place.tune(Device({PACKED: 150.0}), Budget(trials=2, blocks=0))
    assert (first.why, first.exit_status) == (Stop.TRIALS.words, 0)
    measured = place.store.trials(1)
    stop_on = {"interrupted": "stopped", "interrupted at once": "study"}.get(how, "")
    again = place.tune(Device({PACKED: 150.0}, {FactsAsked: 9.99}), Budget(10.0), stop_on=stop_on)

    assert [trial for trial in place.store.trials(1) if trial.outcome is not Outcome.CUT] == measured
    assert (again.why, again.exit_status, again.verdict) == (first.why, first.exit_status, first.verdict)
    assert (again.study.state, again.study.budget, again.study.end) == ("done", first.study.budget, first.study.end)
    assert again.study.finished_at == first.study.finished_at
    assert again.notes == first.notes


def test_a_finished_study_is_answered_without_its_model(place: Place) -> None:
    """Where no step is left the model is not read again, which takes a worker: here, nothing is asked of the device."""
    device = Device({PACKED: 150.0})
    first, ended_s = place.tune(device, Budget(600.0)), device.time_s
    again = place.tune(device, Budget(600.0))

    assert (again.verdict, again.why, again.study.state) == (first.verdict, Stop.EVERYTHING.words, "done")
    assert again.study.finished_at == first.study.finished_at
    assert device.time_s == ended_s
    assert place.why == Stop.EVERYTHING.words
    place.tune(device, Budget(600.0, blocks=12), objective=Objective(Tier.EXACT))
    assert device.time_s > ended_s, "another question is measured"


def test_a_finished_study_of_another_environment_is_no_answer(place: Place) -> None:
    """Another driver is another environment: the model is read there, and all is measured."""
    device = Device({PACKED: 150.0})
    place.tune(device, Budget(600.0))
    ran, ended_s = len(device.ran), device.time_s
    place.tune(device, Budget(600.0), environment=replace(H200, driver="1.0"))

    assert device.time_s > ended_s
    assert len(device.ran) > ran


def test_what_was_said_of_another_space_does_not_stay(place: Place) -> None:
    """Where more is admissible now, here by more free memory, "everything was tried" is no longer true."""
    first = place.tune(Device({PACKED: 150.0}), Budget(blocks=0), free_bytes=TIGHT_BYTES)
    assert first.why == Stop.EVERYTHING.words
    again = place.tune(Device({PACKED: 150.0}, {FactsAsked: 9.99}), Budget(10.0))

    assert (first.admissible or 0) < (again.admissible or 0)
    assert again.why == Stop.BUDGET.words
    assert again.prospects.left > 0


# ---------------------------------------------------------------------------------------------------------------- blocks


def test_blocks_are_of_one_invocation(place: Place) -> None:
    """A block that was broken off is begun again whole, in fresh processes; whole ones count, whenever they were run."""
    device = Device({PACKED: 150.0, SORTED: 60.0})
    found = place.tune(device, Budget(600.0), stop_at=2)  # as block 2 begins
    assert (found.configuration, found.verdict) == (DEFAULT, "unconfirmed")
    assert found.best is not None
    assert found.best.comparison is not None
    assert len(found.best.comparison.block_ratios) == 1

    before = len(device.ran)
    found = place.tune(device, Budget(600.0))
    assert (found.configuration, found.verdict) == (PACKED, "faster")
    assert found.chosen is not None
    assert found.chosen.comparison is not None
    assert len(found.chosen.comparison.block_ratios) == 3
    whole = [block for block, outcome, _ in place.runs("confirm") if outcome == "ok"]
    assert sorted(block for block in set(whole) if whole.count(block) == 2) == [1, 3, 4]
    assert {outcome for _, outcome, _ in place.runs("confirm")} == {"ok", "cut"}
    fresh = [process for _, process in device.ran[before:]]
    assert len(fresh) == 4
    assert len(set(fresh)) == 2


def test_fewer_blocks_than_three_are_unconfirmed(place: Place) -> None:
    """The budget cuts the confirmation in whole blocks; the next tune goes on, and the verdict is of all of them."""
    device = Device({PACKED: 150.0}, trial_s=lambda _: 10.0)
    found = place.tune(device, Budget(62.0))
    blocks = {block for block, _, _ in place.runs("confirm")}
    assert (found.verdict, found.exit_status) == ("unconfirmed", 3)
    assert 0 < len(blocks) < 3
    assert all(outcome == "ok" for _, outcome, _ in place.runs("confirm"))

    found = place.tune(device, Budget(62.0))
    assert (found.configuration, found.verdict) == (PACKED, "faster")
    assert len({block for block, _, _ in place.runs("confirm")}) == 3


def test_a_study_that_is_finished_stays_measured_when_it_was(place: Place) -> None:
    """Given again, the command runs nothing, and the answer is of the day on which it was measured."""
    device = Device({PACKED: 150.0})
    place.tune(device, Budget(600.0))
    finished, ran = place.store.study(1).finished_at, len(device.ran)
    found = place.tune(device, Budget(600.0))

    assert len(device.ran) == ran
    assert found.study.finished_at == finished
    assert found.verdict == "faster"


def confirmed(configuration: Configuration, block: int, speed: float, uuid: str = "GPU-1", **more: Any) -> Trial:
    """Return a run of a block."""
    measured = (Measurement("tokens_per_s", "tokens/s", (speed,)),)
    trial = Trial(
        0,
        configuration,
        configuration,
        Outcome.OK,
        phase="confirm",
        block=block,
        measurements=measured,
        device_uuid=uuid,
    )
    return replace(trial, **more)


def test_a_block_pairs_one_device() -> None:
    """Runs of one number on two GPUs are two halves; what failed, or ran as something else, is none."""
    aim = METRICS["tokens_per_s"]
    trials = [
        confirmed(DEFAULT, 1, 100.0),
        confirmed(PACKED, 1, 150.0),
        confirmed(DEFAULT, 2, 100.0),
        confirmed(PACKED, 2, 300.0, "GPU-2"),
        confirmed(DEFAULT, 3, 100.0),
        confirmed(PACKED, 3, 500.0, effective=SORTED),
        confirmed(DEFAULT, 4, 100.0),
        confirmed(PACKED, 4, 500.0, outcome=Outcome.CUT),
        confirmed(DEFAULT, 5, 100.0),
        confirmed(DEFAULT, 5, 200.0, "GPU-2"),
        confirmed(PACKED, 5, 320.0, "GPU-2"),
    ]
    assert block_ratios(trials, PACKED, DEFAULT, aim) == [1.5, 1.6]


@pytest.mark.parametrize("name", METRICS)
def test_everybody_who_reaches_the_best_is_compared(name: str) -> None:
    """By the study's own aim, by intervals; nobody who is no better than a default that is right; a stated number at most."""
    aim, others = METRICS[name], [DEFAULT.replaced(attention=f"a{n}") for n in range(6)]

    def scored(configuration: Configuration, value: float) -> Trial:
        value = 1 / value if aim.less_is_better else value
        measured = (
            () if aim.metric == "peak_bytes" else (Measurement(aim.metric, "u", (value * 0.99, value, value * 1.01)),)
        )
        return Trial(0, configuration, configuration, Outcome.OK, measurements=measured, peak_bytes=value)  # type: ignore[arg-type]

    default = scored(DEFAULT, 1.0)
    values = (1.5, 1.49, 1.485, 1.2, 1.0, 0.5)
    found = finalists([default, *map(scored, others, values)], default, aim, is_default_right=True)
    assert found == others[:3]
    slow = [scored(others[0], 0.8), scored(others[1], 0.5)]
    assert finalists([default, *slow], default, aim, is_default_right=True) == []
    assert finalists(slow, default, aim, is_default_right=False) == others[:1]
    equal = [scored(other, 1.5) for other in others]
    assert len(finalists([default, *equal], default, aim, is_default_right=True)) == 3


def test_who_waits_for_launches_may_be_better_than_it_was_seen_to_be() -> None:
    """Figures of one process scatter by 15 % from another's: who is that near the best is compared too."""
    aim, others = METRICS["tokens_per_s"], [DEFAULT.replaced(attention=f"a{n}") for n in range(3)]

    def timed(configuration: Configuration, value: float, busy: float) -> Trial:
        speeds = Measurement("tokens_per_s", "tokens/s", (value * 0.99, value, value * 1.01))
        return Trial(
            0, configuration, configuration, Outcome.OK, measurements=(speeds, Measurement(GPU_BUSY, "share", (busy,)))
        )

    def compared_with_default(busy: float) -> list[Configuration]:
        trials = [timed(each, value, busy) for each, value in zip(others, (1.19, 1.07, 1.01), strict=True)]
        return finalists(trials, timed(DEFAULT, 1.0, busy), aim, is_default_right=True)

    assert compared_with_default(0.05) == others[:2]
    assert compared_with_default(0.95) == others[:1]


def test_the_best_are_confirmed_where_there_is_no_time_for_all() -> None:
    """Finalists are left out from the end until the rest can be confirmed; the best is tried for in any case."""
    rivals = [PACKED, SORTED, DEFAULT.replaced(attention="eager")]
    assert affordable(rivals, lambda kept: 10.0 * (1 + len(kept)), 95.0, [3, 3, 3]) == (rivals[:2], 90.0)
    assert affordable(rivals, lambda kept: 10.0 * (1 + len(kept)), 10.0, [3, 3, 3]) == (rivals[:1], 60.0)
    assert affordable(rivals, lambda kept: 10.0 * (1 + len(kept)), 35.0, [1, 1, 3]) == (rivals[:2], 30.0)
    assert affordable(rivals[:1], lambda _: 20.0, 90.0, [-1]) == (rivals[:1], 20.0)
    assert affordable([], lambda _: 10.0, 10.0, []) == ([], 0.0)


# ------------------------------------------------------------------------------------------------ from one study to another


def test_what_is_reused_was_measured_here_by_todays_method(place: Place) -> None:
    """Trials of another objective's study are taken over; not those of another device, nor of an earlier method."""
    device, wide = Device({PACKED: 150.0}), Objective(Tier.EIGHT_BIT, only=ONLY)
    place.tune(device, Budget(None, 3, blocks=0))
    ran = len(device.ran)
    place.tune(device, Budget(None, 3, blocks=0), objective=wide)
    assert len(device.ran) == ran + 1  # the default is always run

    place.tune(replace(device, uuid="GPU-2"), Budget(None, 3, blocks=0), objective=Objective(Tier.FOUR_BIT, only=ONLY))
    assert len(device.ran) == ran + 4


# ------------------------------------------------------------------------------------------------------------- for real


@pytest.mark.parametrize("budget_s", [30.0, 60.0, 600.0, 7200.0])
def test_the_block_that_decides_is_given_the_time_it_was_begun_for(budget_s: float) -> None:
    """What is expected to end within the share of the budget that it may be late by is not ended before, nor much later."""
    clock = Clock(budget_s, lambda: budget_s, 0.0)

    assert clock.left_with_grace_s >= 1.2 * DECIDING_SHARE * budget_s
    assert clock.left_with_grace_s <= max(0.1 * budget_s, 10.0)


def test_a_clock_without_a_budget_never_ends() -> None:
    """Without --budget there is no deadline but a trial's own."""
    clock = Clock(None)
    assert not clock.is_over
    assert clock.left_s == clock.left_with_grace_s == float("inf")


def test_waiting_for_a_device_is_part_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another advisor measures on it for longer than the budget, that ends it; nothing is started."""
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    machine, heard = Machine(H200, "host", "GPU-taken", 0, 10**11), []
    path = tmp_path / "advisor-GPU-taken.lock"
    path.touch()
    with path.open() as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        runner = LocalRunner(machine, lambda event: heard.append(event["stage"]))
        bounded = Bounded(runner, Clock(0.5))
        bounded.graceful = False
        began = time.monotonic()
        with pytest.raises(BudgetSpent):
            bounded.run(CeilingsAsked(), 600.0)
        runner.close()

    assert time.monotonic() - began < 60  # of 600
    assert bounded.waited_s >= 0.5
    assert heard == ["waiting: another advisor measures on GPU-taken"]


@pytest.mark.parametrize("budget_s", [10, pytest.param(25, marks=pytest.mark.slow)])
def test_a_real_tune_keeps_its_budget(tmp_path: Path, budget_s: int) -> None:
    """With a choice that sleeps for ten minutes among the first: it ends in time, answers, and calls nothing a failure."""
    url = f"sqlite:///{tmp_path}/advisor.db"
    environment = {
        **os.environ,
        "ADVISOR_DATABASE_URL": url,
        "ADVISOR_LOCK_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "ADVISOR_PLUGINS": "odd_choices",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'faults'}",
    }
    command = [
        sys.executable,
        "-m",
        "advisor",
        "tune",
        str(CAUSAL),
        "--lengths",
        "16,16",
        "--batch",
        "2",
        "--quality",
        "exact",
        "--budget",
        f"{budget_s}s",
        "--device",
        "cpu",
    ]
    began = time.monotonic()
    subprocess.run([*command[:3], "--help"], cwd=ROOT, env=environment, capture_output=True, check=True)
    start_s = time.monotonic() - began
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - began

    assert took_s < budget_s + 20 + 20 * start_s, (
        done.stderr
    )  # and what it takes here, and now, to start Python and to end it
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "nothing admissible" not in done.stderr
    if "nothing was measured" in done.stderr:  # a machine too busy to import torch in time: that is said
        return
    with Store.open(url, write=False) as store:
        assert {str(t.outcome) for t in store.trials(1)} <= {"ok", "cut", "pruned"}


# ------------------------------------------------------------------------------------------------ blocks that say nothing


@dataclass
class Failing(Device):
    """A device whose blocks fail. contestant: who fails in each; whole: whether that takes the process along."""

    contestant: Configuration = DEFAULT
    whole: bool = False

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Answer as a device does, but for the one."""
        answer = super().run(request, timeout_s)
        if not isinstance(request, BlockAsked) or self.contestant not in request.contestants:
            return answer
        failure = Failure(outcome=Outcome.RUNTIME_ERROR, reason="made up to fail", transient=self.whole)
        if self.whole:
            return failure
        assert isinstance(answer, BlockDone)
        cut = Contested(came=Failure(outcome=Outcome.CUT, reason="its block was broken off"))
        others = [cut] * len(request.contestants) if self.contestant == DEFAULT else answer.results
        failed, pairs = Contested(came=failure), zip(request.contestants, others, strict=True)
        return BlockDone(results=tuple(failed if each == self.contestant else found for each, found in pairs))


@pytest.mark.parametrize("contestant", [DEFAULT, PACKED])
def test_a_block_that_says_nothing_is_not_run_for_ever(place: Place, contestant: Configuration) -> None:
    """Where the default or the rival fails in its block, the confirmation ends, and says why."""
    found = place.tune(Failing({PACKED: 150.0}, contestant=contestant), Budget(None))

    assert {block for block, _, _ in place.runs("confirm")} == {1}
    assert found.verdict == "unconfirmed"
    said = [event["text"] for event in place.events if event["event"] == "unconfirmed"]
    assert said == ["no comparison came of a block: made up to fail"]


def test_who_takes_the_process_along_is_run_alone(place: Place) -> None:
    """Each is run again in a process of its own: the others are confirmed without the one that breaks it."""
    speeds = {PACKED: 150.0, SORTED: 149.0}
    found = place.tune(Failing(speeds, contestant=SORTED, whole=True), Budget(None))

    assert (found.configuration, found.verdict) == (PACKED, "faster")
    outcomes = {(c, outcome) for _, outcome, c in place.runs("confirm")}
    assert (SORTED, "runtime_error") in outcomes
    assert (SORTED, "ok") not in outcomes


def test_a_plan_of_more_blocks_that_was_broken_off_is_no_end(place: Place) -> None:
    """What was to be looked at after 12 blocks, and has 5, is looked at as the next tune plans it."""
    device = Device({PACKED: 150.0})
    place.tune(device, Budget(None, blocks=12), stop_at=6)
    assert len(place.store.comparisons(1)[0].block_ratios) == 5
    found = place.tune(device, Budget(None))

    assert (found.configuration, found.verdict) == (PACKED, "faster")
    assert found.chosen is not None
    assert found.chosen.comparison is not None
    assert (len(found.chosen.comparison.block_ratios), found.chosen.comparison.planned) == (5, 9)
