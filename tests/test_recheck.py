"""What is stale is measured again in idle time: the default and the best three, once, after everybody else's jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from daemons import waited
from made_databases import laid, probed

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import fleet as fleet_module
import replay_host

from advisor.advice.suggest import suggest
from advisor.asking.submission import LEAST_PRIORITY, Again, Submission
from advisor.daemon import engine
from advisor.daemon.recheck import BEST
from advisor.daemon.slot import YIELDED
from advisor.daemon.turns import Turns
from advisor.measure.replay import ReplayRunner
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.trial import Trial
from advisor.storage.roster import Roster
from advisor.storage.stale import stale_studies
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="slots' processes end with their parent on Linux")

HERE = Path(__file__).parent
MODEL = HERE / "models" / "causal"

RECORDED = replay_host.landscape(fleet_module.LANDSCAPE)
NOW: Environment = RECORDED.environment
OLDER = replace(NOW, packages={**NOW.packages, "torch": "2.0.1"})
CHANGED = f"torch 2.0.1 → {NOW.packages['torch']}"


def studied(store: Store, model: str, environment: Environment = OLDER) -> int:
    """Tune on a made-up device in an environment."""
    machine = Machine(environment, "host", "GPU-then", 0, environment.memory_bytes)
    asked = (replay_host.model(model), RECORDED.workload, replay_host.objective_of(RECORDED, whole=False))
    return tune(Job(*asked, Budget(trials=12), machine), store, ReplayRunner(RECORDED, seed=3), lambda _: None)


def answer(store: Store, model: str) -> Any:
    """Ask what is recommended on such a device now."""
    wanted = replay_host.objective_of(RECORDED, whole=False)
    return suggest(store, replay_host.model(model), RECORDED.workload, wanted, NOW)


@contextmanager
def fleet_of(url: str, folder: Path) -> Iterator[Any]:
    """Give a fleet without hosts."""
    fleet = fleet_module.Fleet(laid(url), folder)
    try:
        yield fleet
    finally:
        fleet.close()


def searched(trials: list[Trial]) -> list[Any]:
    """Return what was asked for in the search."""
    return [trial.requested for trial in trials if trial.phase == "search"]


def again_of(fleet: Any) -> list[Any]:
    """Return the jobs that measure something again."""
    return [job for job in fleet.jobs.page() if job.submission.again is not None]


def test_two_idle_slots_measure_again_once(database_url: str, tmp_path: Path) -> None:
    """The default and the best three of what was found, each once, and confirmed: then the answer is of now. Nothing follows."""
    with fleet_of(database_url, tmp_path) as fleet:
        old = studied(fleet.store, "org/model")
        then = answer(fleet.store, "org/model")
        assert then.stale == (CHANGED,)
        fleet.start_replaying("a", ["GPU-0", "GPU-1"], 0.1, recheck_after_s=0.5)
        fleet.until(lambda: [job for job in again_of(fleet) if job.state == "done"], 90.0, "it is measured again")
        (job,) = again_of(fleet)
        # A slot that shared it ends a moment after the job.
        fleet.until(lambda: fleet.store.study(job.study).state == "done", 30.0, "nobody works on its study")

        assert (job.submission.model, job.submission.again.study) == ("org/model", old)
        assert job.payload["again"]["words"] == f"measured again: {CHANGED}"
        trials = fleet.store.trials(job.study)
        best = [each for each in (then.chosen, *then.runners_up) if not each.is_default][:BEST]
        assert len(best) == BEST
        wanted = [then.default.configuration, *(each.configuration for each in best)]
        assert sorted(searched(trials), key=str) == sorted(wanted, key=str)
        assert fleet_module.wrong_with(trials) == []
        assert {t.requested for t in trials if t.phase == "confirm"} == set(wanted)
        now = answer(fleet.store, "org/model")
        assert (now.stale, now.study.id, now.exit_status) == ((), job.study, 0)
        assert stale_studies(fleet.store, NOW) == []
        lines = len(fleet.lines())
        time.sleep(2.0)  # four times as long as a slot has to be idle
        assert len(fleet.lines()) == lines
        assert len(fleet.jobs.page()) == 1
        told = run_here("jobs", job.id[:7], ADVISOR_DATABASE_URL=database_url)
        assert f"measured again: {CHANGED}; " in " ".join(told.stdout.split())


def test_a_job_that_somebody_submits_goes_first(sqlite_url: str, tmp_path: Path) -> None:
    """What is measured again lets go after the run that it is at, waits until every other job is over, and then goes on."""
    with fleet_of(sqlite_url, tmp_path) as fleet:
        studied(fleet.store, "org/model")
        fleet.start_replaying("a", ["GPU-0"], 0.7, recheck_after_s=0.3)
        fleet.until(fleet.lines, 60.0, "it is measured again")
        mine = [fleet.submit("org/mine", trials=3, blocks=0), fleet.submit("org/other", trials=2, blocks=0)]
        mine += [fleet.submit("org/third", trials=2, blocks=0)]
        fleet.until(lambda: not any(fleet.job(name).is_open for name in mine), 90.0, "the jobs are over")
        (again,) = again_of(fleet)
        assert again.state == "running"
        fleet.until(lambda: fleet.job(again.id).state == "done", 90.0, "the other goes on")
        over = [line["model"] for line in fleet.lines() if line["is"] == "over"]
        first = over.index("org/mine")
        theirs = ["org/mine"] * 3 + ["org/other"] * 2 + ["org/third"] * 2
        assert over[first : first + 7] == theirs  # nothing between them
        assert first <= 2  # what ran when it was submitted, and one that began before the slot heard of it
        assert set(over[first + 7 :]) == {"org/model"}
        fleet.until(lambda: fleet.store.study(fleet.job(again.id).study).state == "done", 30.0, "its study ends")
        assert answer(fleet.store, "org/model").stale == ()
        assert fleet_module.wrong_with(fleet.store.trials(fleet.job(again.id).study)) == []


def test_what_waits_for_versions_that_are_gone_is_cancelled(sqlite_url: str, tmp_path: Path) -> None:
    """No slot takes it up any more. What a slot of another host would is left alone, though that is away for now."""
    with fleet_of(sqlite_url, tmp_path) as fleet:
        elsewhere = replace(NOW, driver="590.00")
        Roster(fleet.store).know("GPU-9", "b", elsewhere)
        outdated, kept = (
            fleet.jobs.submit(Submission("org/model", {}, LEAST_PRIORITY, NOW.device_class, Again(7, there.key)))
            for there in (OLDER, elsewhere)
        )
        fleet.start_replaying("a", ["GPU-0"], 0.1, recheck_after_s=0.3)
        fleet.until(lambda: not fleet.job(outdated).is_open, 60.0, "it is over")
        time.sleep(1.0)
        assert fleet.job(outdated).state == "cancelled"
        assert fleet.job(kept).state == "queued"


def test_whoever_comes_last_waits_for_the_next_of_a_queue() -> None:
    """However late a queue hands a job out after the one before it: what is measured again does not begin between them."""
    queue, had = ["next"], []
    turns = Turns(lambda: bool(queue))

    def last() -> None:
        with turns.turn(is_last=True):
            had.append("last")

    with turns.turn(is_last=False):
        waiting = threading.Thread(target=last)
        waiting.start()
    time.sleep(3.0)
    with turns.turn(is_last=False):
        had.append(queue.pop())
    waiting.join(30.0)
    assert had == ["next", "last"]


def test_a_job_is_due_from_when_it_waits_until_it_is_over(database_url: str, tmp_path: Path) -> None:
    """Where it or a share of it waits, on every slot of its class; while it runs, on the slot that has it alone."""
    with fleet_of(database_url, tmp_path) as fleet:
        due = partial(fleet.jobs.is_due, NOW.device_class)
        assert not due("GPU-0")
        name = fleet.jobs.submit(Submission("org/mine", {"trials": 4, "blocks": 0}, 0, NOW.device_class))
        assert due("GPU-0")
        assert due("GPU-1")
        assert not fleet.jobs.is_due("another device", "GPU-0")
        fleet.start_replaying("a", ["GPU-0"], 0.7)
        fleet.until(fleet.lines, 60.0, "it runs")
        assert due("GPU-0")
        assert due("GPU-1")  # a share of it waits
        fleet.jobs._client.cancel_workflow(f"{name}+1")
        assert not due("GPU-1")
        fleet.until(lambda: not fleet.job(name).is_open, 60.0, "it is over")
        fleet.until(lambda: not due("GPU-0"), 10.0, "nothing is left")


def test_nothing_is_measured_again_where_that_is_switched_off(sqlite_url: str, tmp_path: Path) -> None:
    """Nor where nothing is stale: what was measured in this environment, on another device, or recommends nothing."""
    with fleet_of(sqlite_url, tmp_path) as fleet:
        studied(fleet.store, "org/stale")
        fleet.start_replaying("a", ["GPU-0"], 0.1)
        fleet.slots(1)
        time.sleep(3.0)
        assert fleet.jobs.page() == []
        assert stale_studies(fleet.store, NOW) == [1]
        assert stale_studies(fleet.store, NOW, {NOW.key}) == [1]
        assert stale_studies(fleet.store, NOW, {NOW.key, OLDER.key}) == [], "another slot has these versions still"
        studied(fleet.store, "org/stale", NOW)
        studied(fleet.store, "org/elsewhere", replace(OLDER, power_limit_w=300))
        begun = fleet.store.open_study(
            replay_host.model("org/begun"), RECORDED.workload, OLDER, Objective(), Budget(), 0
        )
        fleet.store.close_study(begun, "interrupted")
        assert stale_studies(fleet.store, NOW) == []


@pytest.mark.parametrize(("flags", "waits_s"), [((), 60.0), (("--no-recheck",), None)])
def test_a_host_says_whether_it_measures_again(
    flags: tuple[str, ...], waits_s: float | None, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot is told after how long with nothing to do, and by --no-recheck that it never does."""
    command = [sys.executable, "-m", "advisor", "worker", "--workers", "cpu", *flags]
    told = {**os.environ, "ADVISOR_DATABASE_URL": laid(sqlite_url), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as host:
        try:
            settings = waited(lambda: _settings(host.pid))
        finally:
            host.terminate()
    assert settings["recheck_after_s"] == waits_s


def _settings(parent: int) -> dict[str, Any] | None:
    """Return what a host's slot was started with, None before it is."""
    import psutil

    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):  # it has gone meanwhile
            words = child.cmdline()
            if "advisor.daemon.process" in words:
                return dict(json.loads(words[-1]))
    return None


# ------------------------------------------------------------------------------------------- a real device and model


@contextmanager
def slot(
    url: str, folder: Path, machine: Machine, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Start the process of a slot of this CPU, which looks for what is stale after half a second; give it and what it logged."""
    settings = {"parent": os.getpid(), "cuda": False, "device": machine.uuid, "only": None, "assume_idle": True}
    told = {**settings, "allow_pickle": False, "max_download": 0, "supervisor": "", "recheck_after_s": 0.5}
    known = {**os.environ, "ADVISOR_DATABASE_URL": url, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    log = folder / "log"
    with log.open("w") as words:
        command = [sys.executable, "-m", "advisor.daemon.process", json.dumps(told)]
        process = subprocess.Popen(command, env={**known, "PYTHONWARNINGS": "ignore"}, stderr=words)
        try:
            yield process, log.read_text
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.timeout(600)  # nine blocks, whose processes a busy machine starts slowly
def test_a_model_that_is_gone_fails_and_others_go_on(sqlite_url: str, tmp_path: Path) -> None:
    """On this machine's CPU: the job says which model is not here any more, is not tried again, and the next stale study is."""
    from advisor.machine import probe
    from advisor.machine.processors import slot_threads

    url = probed(sqlite_url)
    engine.prepare(url)
    machine = probe.machine("cpu", slot_threads())
    now = machine.environment
    older = replace(now, packages={**now.packages, "torch": "2.0.1"})
    there, gone = find_model(str(MODEL)), tmp_path / "gone"
    kept = {"attention": ("sdpa",), "packing": ("padded", "sorted"), "precision": ("fp32",), "quantization": ("none",)}
    wanted = Objective(only=tuple(kept.items()))
    with Store.open(url, write=True) as store:
        runner = LocalRunner(machine, lambda _: None)
        try:
            for source in (there, replace(there, name=str(gone), weights_digest="sha256:gone")):
                job = Job(
                    source, Forward((12, 9), 2), wanted, Budget(trials=3, blocks=0), replace(machine, environment=older)
                )
                last = tune(job, store, runner, lambda _: None)
        finally:
            runner.close()
        jobs = engine.Jobs(url)
        with slot(url, tmp_path, machine) as (_, log):
            until_s = time.monotonic() + 450.0
            while "done" not in jobs.again(now.key).values() and time.monotonic() < until_s:
                time.sleep(0.1)
        states = jobs.again(now.key)
        assert states == {last: "failed", last - 1: "done"}, log()
        why = {job.submission.again.study: job.why for job in jobs.page() if job.submission.again is not None}
        assert why[last].startswith(f"the model of study {last} is not on this host any more: ")
        found = suggest(store, there, Forward((12, 9), 2), wanted, now)
        assert (found.stale, found.study.environment) == ((), now)
        jobs.close()


def test_a_slot_begins_anew_where_a_package_was_changed(sqlite_url: str, tmp_path: Path) -> None:
    """What was installed meanwhile is the next process's: until then the slot has the environment that it began with."""
    from advisor.machine import probe
    from advisor.machine.processors import slot_threads

    url, machine = probed(sqlite_url), probe.machine("cpu", slot_threads())
    engine.prepare(url)
    site = tmp_path / "site"
    site.mkdir()
    found = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    with slot(url, tmp_path, machine, PYTHONPATH=found) as (process, log):
        waited(lambda: '"ready"' in log())
        time.sleep(2.0)
        assert process.poll() is None
        (site / "kernels-99.0.dist-info").mkdir()
        (site / "kernels-99.0.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: kernels\nVersion: 99.0\n"
        )
        assert process.wait(30) == YIELDED, log()
    assert "its driver or a package was changed" in log()
    with slot(url, tmp_path, machine, PYTHONPATH=found) as (_, log), Store.open(url, write=False) as store:
        waited(lambda: '"ready"' in log())
        (there,) = Roster(store).slots()
        assert there.environment.packages["kernels"] == "99.0"
