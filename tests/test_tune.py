"""The loop's promises: the default first, nothing measured twice, evidence for what ran, nothing new on a second run.

With real workers on the shipped model. Some of the choices are made up (tests/faults/odd_choices.py): one that says it
is a new kernel and runs sdpa, and one that is slow.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_databases import probed

from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import recommend
from advisor.faces.cli import run
from advisor.knobs import KNOBS, Reason, register
from advisor.machine import probe
from advisor.machine.leftovers import owner, owner_is_alive
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Trial
from advisor.search.space import Space
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"
FAULTS = ROOT / "tests" / "faults"

#: Without pads there is no packing to choose, and at this length eager is slower than sdpa: nothing needs confirming.
FULL = Forward((320, 320, 320, 320), 2)

#: With pads, so that there are three packings to choose from.
PADDED = Forward((40, 6, 31, 4), 2)

#: What is compiled takes some seconds each, and is tested in files of its own.
UNCOMPILED = (("compilation", ("off",)),)


@dataclass
class Tuned:
    """What one or more runs of `tune` on one database left behind, and what they said on the way."""

    folder: Path
    workload: Forward
    events: list[list[Mapping[str, Any]]] = field(default_factory=list)
    trials: list[list[Trial]] = field(default_factory=list)
    refusals: list[list[Reason]] = field(default_factory=list)
    study: StudyRecord | None = None
    recommendation: Recommendation | None = None

    @property
    def space(self) -> Space:
        """The space of the last run."""
        space = next(event["space"] for event in self.events[-1] if event["event"] == "study")
        assert isinstance(space, Space)
        return space

    def run(self, *, confirm: bool) -> None:
        """Tune once more. confirm: False stops, as Ctrl-C would, when the confirmation begins."""
        events: list[Mapping[str, Any]] = []
        self.events.append(events)

        def listen(event: Mapping[str, Any]) -> None:
            events.append(dict(event))
            if not confirm and event["event"] == "start" and event["phase"] == "confirm":
                raise KeyboardInterrupt

        machine, source = probe.machine("cpu"), find_model(str(CAUSAL))
        job = Job(source, self.workload, Objective(quality=Tier.EXACT, only=UNCOMPILED), Budget(trials=40), machine)
        runner = LocalRunner(machine, listen)
        with Store.open(f"sqlite:///{self.folder}/advisor.db", write=True) as store:
            try:
                with suppress(KeyboardInterrupt):
                    tune(job, store, runner, listen)
            finally:
                runner.close()
            self.study = store.study(1)
            self.trials.append(store.trials(1, full=True))
            self.refusals.append(store.refusals(1))
            self.recommendation = recommend(store, source, self.study, job.objective)


@pytest.fixture(scope="module")
def odd() -> Iterator[None]:
    """Register the made-up choices here and in the workers; the one that sleeps is of no use to a study that ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAULTS)
        patch.setenv("PYTHONPATH", str(FAULTS))
        patch.setenv("ADVISOR_PLUGINS", "odd_choices")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        choices = [c for c in importlib.import_module("odd_choices").CHOICES if c.name != "odd-asleep"]
        for choice in choices:
            register(choice)
        try:
            yield
        finally:
            for choice in choices:
                del KNOBS[choice.knob].choices[choice.name]


@pytest.fixture(scope="module")
def finished(odd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """Tune until nothing is left to try, and give the same command again."""
    yield from _tuned(FULL, tmp_path_factory.mktemp("finished"), confirm=True)


@pytest.fixture(scope="module")
def pretended(odd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """Search a space in which the pretender is tried before what it really runs; twice, up to the confirmation."""
    folder = tmp_path_factory.mktemp("pretended")
    probed(f"sqlite:///{folder}/advisor.db")
    yield from _tuned(PADDED, folder, confirm=False)


def _tuned(workload: Forward, folder: Path, *, confirm: bool) -> Iterator[Tuned]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))  # a device lock of its own
        tuned = Tuned(folder, workload)
        tuned.run(confirm=confirm)
        tuned.run(confirm=confirm)
        yield tuned


def by_attention(trials: list[Trial], attention: str) -> list[Trial]:
    """Return the search trials that asked for it."""
    return [trial for trial in trials if trial.phase == "search" and trial.requested["attention"] == attention]


def test_default_is_trial_0(finished: Tuned, pretended: Tuned) -> None:
    """The first trial is what transformers does when told nothing, whatever comes first in the order of the search."""
    for tuned in (finished, pretended):
        first = tuned.trials[0][0]
        assert first.number == 0
        assert first.requested == first.effective == tuned.space.baseline
        assert dict(first.requested) == {"attention": "sdpa", "precision": "fp32"}
        assert (first.requested["quantization"], first.requested["packing"]) == ("none", "padded")
        assert first.outcome is Outcome.OK
        assert tuned.space.admissible[0] != tuned.space.baseline


def test_trials_are_numbered_without_gaps(finished: Tuned, pretended: Tuned) -> None:
    """Trial numbers count from 0 without a gap."""
    for tuned in (finished, pretended):
        for trials in tuned.trials:
            assert [trial.number for trial in trials] == list(range(len(trials)))


def test_whole_space_is_tried_where_the_budget_allows(finished: Tuned) -> None:
    """With room for all, every admissible configuration is tried once, and the study is done."""
    requested = [trial.requested for trial in finished.trials[0] if trial.phase == "search"]

    assert sorted(requested, key=str) == sorted(finished.space.admissible, key=str)
    assert finished.study is not None
    assert finished.study.state == "done"


def test_resuming_a_finished_study_runs_nothing(finished: Tuned) -> None:
    """The same command again starts no trial, changes none, keeps every refusal and gives the same answer."""
    first, second = finished.trials

    assert not [event for event in finished.events[1] if event["event"] in ("start", "trial")]
    assert [event["stage"] for event in finished.events[1] if event["event"] == "stage"] == [], "no worker is needed"
    assert [event["why"] for event in finished.events[1] if event["event"] == "stopped"] != []
    assert second == first
    assert finished.refusals[1] == finished.refusals[0]
    assert finished.recommendation is not None
    assert finished.recommendation.configuration == finished.space.baseline


def test_clearly_slower_trial_is_stopped_early(finished: Tuned) -> None:
    """A configuration far slower than the best so far is pruned after two rounds, says so, and is not recommended."""
    (trial,) = by_attention(finished.trials[0], "odd-sluggish")

    assert trial.outcome is Outcome.PRUNED
    assert trial.quality is None  # whether it is right would change nothing
    assert "times slower than the best so far" in trial.reason
    speed, best = trial.measurement("tokens_per_s"), finished.trials[0][0].measurement("tokens_per_s")
    assert speed is not None
    assert best is not None
    assert len(speed.samples) <= 2
    assert speed.median < best.median / 1.5
    assert finished.recommendation is not None
    assert trial not in finished.recommendation.failures
    assert all(one.trial.number != trial.number for one in finished.recommendation.runners_up)


def test_figures_of_a_pretender_count_for_what_ran(finished: Tuned, pretended: Tuned) -> None:
    """A choice that silently runs sdpa is refused by E1 with the evidence, and its figures are those of sdpa."""
    for tuned in (finished, pretended):
        trials = by_attention(tuned.trials[0], "odd-pretender")
        assert trials
        for trial in trials:
            assert trial.outcome is Outcome.OK
            assert trial.effective == trial.requested.replaced(attention="sdpa")
            assert "asked for attention odd-pretender, but no pretender_kernel was launched" in trial.reason
        (refusal,) = [reason for reason in tuned.refusals[0] if reason.rule == "E1"]
        assert refusal.subject == "attention=odd-pretender"
        assert str(refusal.verdict) == "ALIAS"
        assert "no pretender_kernel was launched; the figures count for what ran" in refusal.text
        assert tuned.recommendation is not None
        assert tuned.recommendation.configuration["attention"] != "odd-pretender"


def test_pretender_of_what_is_measured_is_not_timed_again(finished: Tuned) -> None:
    """When what really ran was measured before, its figures are taken over: no round is timed."""
    (trial,) = by_attention(finished.trials[0], "odd-pretender")
    default = finished.trials[0][0]

    assert trial.reused_from == default.number
    assert trial.measure_s is None
    assert [m.samples for m in trial.measurements] == [m.samples for m in default.measurements]


def test_what_a_pretender_measured_is_not_measured_again(pretended: Tuned) -> None:
    """When the pretender comes first, what really ran counts as measured, and is not tried under its own name."""
    tried = by_attention(pretended.trials[0], "odd-pretender")
    measured = [trial.ran for trial in tried if trial.reused_from is None]
    requested = [trial.requested for trial in pretended.trials[0] if trial.phase == "search"]

    assert measured
    assert not set(measured) & set(requested)
    assert pretended.recommendation is not None
    known = {pretended.recommendation.chosen.configuration} | {
        c.configuration for c in pretended.recommendation.runners_up
    }
    assert set(measured) < known


def test_no_effective_configuration_is_measured_twice(finished: Tuned, pretended: Tuned) -> None:
    """Within a phase every configuration that ran was timed once, by whatever names it was asked for."""
    for tuned in (finished, pretended):
        for trials in tuned.trials:
            timed = [(t.phase, t.block, t.ran) for t in trials if t.outcome is Outcome.OK and t.measure_s is not None]
            assert len(timed) == len(set(timed))


def test_refusals_of_an_interrupted_tune_are_kept(pretended: Tuned) -> None:
    """What a tune learned by running (E1) is still refused, with the same words, when another one goes on with it."""
    first, second = ([reason for reason in refusals if reason.rule == "E1"] for refusals in pretended.refusals)

    assert pretended.study is not None
    assert pretended.study.state == "interrupted"
    assert first == second != []


def test_weights_are_loaded_once_for_a_search(finished: Tuned) -> None:
    """While only attention changes the worker keeps the weights, and reads back which attention it is."""
    first, *others = [trial for trial in finished.trials[0] if trial.phase == "search"]

    assert len(others) >= 3
    assert all(trial.load_s is not None and trial.load_s < 0.1 for trial in others)
    for trial in (first, *others):
        asked = trial.requested["attention"]
        assert trial.reading["attention"][""] == ("sdpa" if asked.startswith("sdpa-") else asked)


def test_nothing_fits_the_memory_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a memory limit that nothing keeps, every configuration is refused by M1, and the command exits with 4."""
    url = probed(f"sqlite:///{tmp_path}/advisor.db")
    monkeypatch.setenv("ADVISOR_DATABASE_URL", url)
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    command = [
        *("tune", str(CAUSAL), "--lengths", "16,16", "--batch", "2", "--trials", "5"),
        *("--quality", "exact", "--max-memory", "1MiB", "--device", "cpu"),
    ]

    status = run(command)
    streams = capfd.readouterr()

    assert status == 4, streams.err
    assert "0 configurations are admissible" in streams.err
    assert "advisor: nothing admissible, for these " in streams.err
    assert "M1 needs at least" in streams.err
    assert streams.out == ""
    with Store.open(url, write=False) as store:
        refused = [reason for reason in store.refusals(1) if reason.rule == "M1"]
        assert {reason.about for reason in refused} >= {
            "attention=sdpa packing=padded",
            "attention=eager packing=padded",
        }
        assert [trial.number for trial in store.trials(1)] == [0]


def test_owner_is_alive_while_its_process_is() -> None:
    """A trial's owner is alive while its very process is: not a zombie, nor another process with its number."""
    host, pid, started = owner().rsplit(":", 2)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        field_22 = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        other = f"{host}:{child.pid}:{field_22}"

        assert owner_is_alive(owner())
        assert owner_is_alive(other)
        assert not owner_is_alive(f"{host}:{pid}:{int(started) + 1}")
        assert owner_is_alive(f"another-host:{pid}:1")
        assert owner_is_alive(f"{host.rpartition('/')[0]}/1:{pid}:1"), (
            "a container of the same name: its pids mean others"
        )

        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note yet
        assert not owner_is_alive(other)
    assert not owner_is_alive(other)
