"""The numerics gate's promises: what is wrong is caught, what is right is let through. With real workers.

The packings of rules P1, P2, P3 and P15 look right and let documents read one another. They are forced here, as a user
can force them, and the gate has to say no; every exact configuration is run on many workloads, and it has to say yes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_databases import probed

from advisor.advice.suggest import recommend
from advisor.errors import NothingAdmissible
from advisor.machine import probe
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.limits import LAYOUT_LIMIT
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

pytestmark = pytest.mark.timeout(900)  # most of it is one fixture, which a busy machine can take its time over

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"

#: Three documents in a pack, and two packs.
THREE_DOCUMENTS = Forward((40, 12, 25, 9, 33, 17), 3)

#: Every packing that is wrong, with the attention it is wrong under and the rule that says so.
WRONG = [
    ("eager", "packed-cached", "P1"),
    ("sdpa", "packed-cached", "P1"),
    ("eager", "packed-2d-mask", "P2"),
    ("sdpa", "packed-2d-mask", "P2"),
    ("eager", "packed-cu-seq-lens-only", "P3"),
    ("sdpa", "packed-cu-seq-lens-only", "P3"),
    ("eager", "packed-bool-mask", "P15"),
]
RULES = tuple(sorted({rule for _, _, rule in WRONG}))

RIGHT = [(attention, packing) for attention in ("eager", "sdpa") for packing in ("padded", "sorted", "packed")]

#: On how many workloads no right configuration may be rejected; every other one of them is for the slow tests.
CALIBRATION_WORKLOADS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with a device lock of its own, so that other tests on this machine need not wait."""
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        yield folder


#: The pinned kernels of sdpa have files of their own: here it is about packing.
ONLY = (("attention", ("eager", "sdpa")), ("compilation", ("off",)))


@dataclass(frozen=True)
class Searched:
    """What a study left behind."""

    trials: list[Trial]
    admissible: set[tuple[str, str]]
    recommended: str

    def trial(self, attention: str, packing: str) -> Trial:
        """Return the trial that asked for these two."""
        wanted = (attention, packing)
        return next(t for t in self.trials if (t.requested["attention"], t.requested["packing"]) == wanted)


def searched(place: Path, workload: Forward, objective: Objective) -> Searched:
    """Search a whole space with `tune` and stop, as Ctrl-C would, when the confirmation begins."""
    machine, source = probe.machine("cpu"), find_model(str(CAUSAL))
    runner, seen = LocalRunner(machine), {}

    def listen(event: Mapping[str, Any]) -> None:
        seen[event["event"]] = event
        if event["event"] == "start" and event["phase"] == "confirm":
            raise KeyboardInterrupt

    with Store.open(probed(f"sqlite:///{place}/{len(objective.ignored_rules)}.db"), write=True) as store:
        try:
            tune(Job(source, workload, objective, Budget(trials=30), machine), store, runner, listen)
        except KeyboardInterrupt:
            pass
        finally:
            runner.close()
        study = store.study(1)
        trials = [trial for trial in store.trials(study.id, full=True) if trial.phase == "search"]
        try:
            recommended = recommend(store, source, study, objective).configuration["packing"]
        except NothingAdmissible:
            recommended = "nothing"
    admissible = {(c["attention"], c["packing"]) for c in seen["study"]["space"].admissible}
    return Searched(trials, admissible, recommended)


@pytest.fixture(scope="module")
def calibration() -> Iterator[ModuleType]:
    """Import the calibration benchmark by its path, since `benchmarks` is no package."""
    spec = importlib.util.spec_from_file_location("calibrate_gate", ROOT / "benchmarks" / "calibrate_gate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def workloads_of(calibration: ModuleType) -> list[Forward]:
    """Return workloads of many lengths, batches, paddings and outputs."""
    return list(calibration.workloads(CALIBRATION_WORKLOADS, 1, 48, calibration.OUTPUTS["decoder"]))


def judged_right(place: Path, calibration: ModuleType, workloads: list[Forward]) -> list[Any]:
    """Return what the gate says of every right configuration on each workload."""
    runner = LocalRunner(replace(probe.machine("cpu"), uuid="cpu-test-calibration"))
    try:
        gate = calibration.Gated(runner, find_model(str(CAUSAL)), place)
        return list(calibration.calibrate(gate, workloads, calibration.right_ones()))
    finally:
        runner.close()


@dataclass(frozen=True)
class Gated:
    """What the gate said: of a study with the four rules ignored, and of right configurations on many workloads."""

    forced: Searched
    workloads: list[Forward]
    judged: list[Any]


@pytest.fixture(scope="module")
def gated(place: Path, calibration: ModuleType) -> Gated:
    """Run both, each in a worker of its own and at the same time: together they take a minute."""
    workloads = workloads_of(calibration)[::2]
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(judged_right, place, calibration, workloads)
        forced = searched(place, THREE_DOCUMENTS, Objective(quality=Tier.EXACT, ignored_rules=RULES, only=ONLY))
        return Gated(forced, workloads, judged.result())


@pytest.fixture
def forced(gated: Gated) -> Searched:
    """Give the study with the four rules ignored."""
    return gated.forced


@pytest.mark.parametrize(("attention", "packing", "rule"), WRONG)
def test_wrong_packing_that_is_forced_is_caught(forced: Searched, attention: str, packing: str, rule: str) -> None:
    """A packing that lets documents read one another ends in wrong_output with the figures, if its rule is ignored."""
    trial = forced.trial(attention, packing)

    assert trial.outcome is Outcome.WRONG_OUTPUT, rule
    assert trial.quality is not None
    assert "reads its neighbours" in trial.reason or "layout is wrong" in trial.reason
    assert "rms error" in trial.reason
    assert "KL" in trial.reason
    assert not trial.measurements
    assert trial.ran == trial.requested  # it is what was run: no other packing was judged in its place


@pytest.mark.parametrize(("attention", "packing"), RIGHT)
def test_right_packing_passes_beside_the_wrong_ones(forced: Searched, attention: str, packing: str) -> None:
    """Every exact configuration of the same study is ok or pruned for its speed, and no limit of the gate is broken."""
    trial = forced.trial(attention, packing)

    assert trial.outcome in (Outcome.OK, Outcome.PRUNED), trial.reason
    assert trial.quality is not None
    assert trial.quality.neighbours == 0.0
    assert trial.quality.layout is not None
    assert trial.quality.layout < LAYOUT_LIMIT


def test_wrong_error_is_far_beyond_the_limit(forced: Searched) -> None:
    """Between the largest error of a right configuration and the smallest of a wrong one lie four powers of ten."""
    right = [trial.quality.rms for pair in RIGHT if (trial := forced.trial(*pair)).quality]
    wrong = [trial.quality.rms for a, p, _ in WRONG if (trial := forced.trial(a, p)).quality]

    assert len(right) == len(RIGHT)
    assert len(wrong) == len(WRONG)
    assert max(right) * 10_000 < min(wrong)


def test_wrong_packing_is_never_recommended(forced: Searched) -> None:
    """However fast a wrong packing is, what is recommended is a right one."""
    assert forced.recommended in {packing for _, packing in RIGHT}


def test_wrong_packing_is_admissible_only_where_its_rule_is_ignored(forced: Searched) -> None:
    """Ignoring the four rules admits exactly the seven wrong configurations besides the right ones."""
    assert forced.admissible == {(attention, packing) for attention, packing, _ in WRONG} | set(RIGHT)


def test_no_right_configuration_is_rejected(gated: Gated) -> None:
    """Over workloads of many lengths, batches, paddings and outputs the gate rejects no exact configuration."""
    workloads = gated.workloads

    check_all_are_right(gated.judged, workloads)
    assert {workload.output for workload in workloads} == {"last-logits", "all-logits", "hidden"}
    assert any(workload.padding == 0 for workload in workloads)
    assert any(workload.padding > 0.4 for workload in workloads)


@pytest.mark.slow
def test_no_right_configuration_is_rejected_on_others(place: Path, calibration: ModuleType) -> None:
    """The same of as many workloads more."""
    workloads = workloads_of(calibration)[1::2]

    check_all_are_right(judged_right(place, calibration, workloads), workloads)


def check_all_are_right(judged: list[Any], workloads: list[Forward]) -> None:
    """See that everything was judged, and that nothing was rejected."""
    assert len(judged) == CALIBRATION_WORKLOADS // 2 * len(RIGHT) == len(workloads) * len(RIGHT)
    assert [f"{one.configuration}: {one.outcome}: {one.reason}" for one in judged if one.outcome != "ok"] == []
