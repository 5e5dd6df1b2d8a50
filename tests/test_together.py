"""Tunes that share a study: real processes on a recorded landscape, started at once, killed, outpaced, and told twice.

tests/faults/together.py starts them, kills them and says what broke; on the code before claims it found 13 of 20 configurations
measured twice, and 8 confirmation runs for 6 slots.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from advisor.errors import StoreError, Unreachable
from advisor.measure.landscape import Landscape
from advisor.measure.messages import Answer, BlockAsked, Request, TrialAsked
from advisor.measure.replay import ReplayRunner
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Trial
from advisor.storage.place import with_driver
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "faults" / "together.py"


def together(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a database and return what it said."""
    command = [sys.executable, str(SCRIPT), "--database", url, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--tunes", "2"), id="two", marks=pytest.mark.slow),
        pytest.param(("--tunes", "2", "--kills", "2", "--seed", "3", "--run-s", "0.3"), id="two, killed"),
        pytest.param(("--tunes", "4"), id="four", marks=pytest.mark.slow),
        pytest.param(("--tunes", "4", "--search"), id="four, search", marks=pytest.mark.slow),
        pytest.param(("--tunes", "4", "--trials", "11"), id="four, trials", marks=pytest.mark.slow),
        *(
            pytest.param(
                ("--tunes", n, "--kills", "8", "--seed", seed, "--run-s", "0.5"),
                id=f"{n}, killed, {seed}",
                marks=pytest.mark.slow,
            )
            for n in ("2", "4")
            for seed in ("1", "2", "5")
        ),
    ],
)
def test_tunes_at_once_share_a_study(database_url: str, options: tuple[str, ...]) -> None:
    """No configuration is measured twice, no slot of the confirmation run twice, none lost to kill -9, no trial too many."""
    done = together(database_url, *options)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout


# ------------------------------------------------------------------------------------------------------ in this process


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Give the script as a module, for its landscape."""
    spec = importlib.util.spec_from_file_location("together", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["together"] = module
    spec.loader.exec_module(module)
    return module


class Slow(ReplayRunner):
    """A replay whose trials take a little while, and which calls what is given before each."""

    def __init__(self, landscape: Landscape, before: Callable[[TrialAsked | BlockAsked], None]) -> None:
        """Replay this landscape."""
        super().__init__(landscape)
        self._before = before

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Answer as the landscape does, after a while."""
        if isinstance(request, (TrialAsked, BlockAsked)):
            self._before(request)
            time.sleep(0.01)
        return super().run(request, timeout_s)


@pytest.fixture
def job_on(script: ModuleType) -> Callable[..., Job]:
    """Give what makes the job of a device."""
    landscape = Landscape.of(json.loads(script.LANDSCAPE.read_text(encoding="utf-8")))
    source = ModelSource("made/up", "/nowhere", {"model_type": "bert"}, "trained", "sha256:0", has_tokenizer=False)
    only = (*landscape.objective.only, *script.ONLY)
    objective = Objective(landscape.objective.quality, only=only)

    def made(device: str, **budget: Any) -> Job:
        machine = Machine(landscape.environment, "host", device, 0, landscape.environment.memory_bytes)
        return Job(
            source, landscape.workload, objective, Budget(**{"exhaustive": True, "blocks": 3, **budget}), machine
        )

    return made


@pytest.fixture
def landscape(script: ModuleType) -> Landscape:
    """Give the landscape."""
    return Landscape.of(json.loads(script.LANDSCAPE.read_text(encoding="utf-8")))


def stored(url: str) -> list[Trial]:
    """Return the trials of the only study."""
    with Store.open(url, write=False) as store:
        return store.trials(1)


def summary(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """Return what is the same of two studies that went the same way."""
    return [(t.number, t.requested, t.phase, t.block, str(t.outcome), t.tokens_per_s, t.attempts) for t in trials]


def test_tunes_in_threads_share_a_study(database_url: str, job_on: Callable[..., Job], landscape: Landscape) -> None:
    """As a daemon would run them, in one process: each is its own owner, each block is of one device, nothing is run twice."""
    ran: list[str] = []

    def note(request: TrialAsked | BlockAsked) -> None:
        is_block = isinstance(request, BlockAsked)
        ran.append(" ".join(each.key for each in (request.contestants if is_block else [request.configuration])))

    def run(device: int) -> None:
        with Store.open(database_url, write=True) as store:
            tune(job_on(f"GPU-{device}"), store, Slow(landscape, note), lambda _: None)

    Store.open(database_url, write=True).close()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    trials = stored(database_url)
    searched = [trial.requested for trial in trials if trial.phase == "search"]
    assert len(set(searched)) == len(searched) >= 16
    slots = [(trial.block, trial.requested) for trial in trials if trial.phase == "confirm"]
    assert len(set(slots)) == len(slots)
    assert {block for block, _ in slots} == {1, 2, 3}
    for block in (1, 2, 3):
        assert len({trial.device_uuid for trial in trials if trial.block == block}) == 1
    assert len({trial.device_uuid for trial in trials}) > 1, "one did everything: they did not share"
    assert not [trial for trial in trials if trial.outcome is Outcome.RUNNING]
    with Store.open(database_url, write=False) as store:
        assert store.study(1).state == "done"


def test_a_tune_whose_every_answer_is_lost_once_goes_the_same_way(
    sqlite_url: str, tmp_path: Path, job_on: Callable[..., Job], landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each claim and each end of a trial is made twice, for its answer never came: the rows are those of a tune without that."""
    job = job_on(
        "GPU-0", exhaustive=False, trials=6
    )  # with a clock that stands: what is next depends on what trials took
    with Store.open(sqlite_url, write=True) as store:
        tune(job, store, ReplayRunner(landscape), lambda _: None, now=lambda: 0.0)
    monkeypatch.setattr("advisor.storage.patience.FIRST_PAUSE_S", 0.0)
    for name in ("claim", "finish_trial", "save_comparisons", "close_study", "add_refusal"):
        verb, calls = getattr(Store, name), list[int]()

        def loses(self: Store, *arguments: Any, verb: Any = verb, calls: list[int] = calls, **more: Any) -> Any:
            found = verb(self, *arguments, **more)
            calls.append(1)
            if len(calls) % 2:
                raise Unreachable("the answer was lost")
            return found

        monkeypatch.setattr(Store, name, loses)
    other = f"sqlite:///{tmp_path}/other.db"
    with Store.open(other, write=True) as store:
        tune(job, store, ReplayRunner(landscape), lambda _: None, now=lambda: 0.0)
    assert {trial.phase for trial in stored(other)} == {"search", "confirm"}
    assert summary(stored(other)) == summary(stored(sqlite_url))


def test_who_was_not_heard_of_is_told_and_goes_on(
    database_url: str, job_on: Callable[..., Job], landscape: Landscape
) -> None:
    """A tune that was asleep finds its trial taken over: its end of it changes nothing, it is told, and the study ends well."""
    heard: list[Mapping[str, Any]] = []
    taken: list[Trial] = []

    def asleep(_: TrialAsked | BlockAsked) -> None:
        if taken:
            return
        engine = create_engine(with_driver(database_url))
        with engine.begin() as connection:
            connection.execute(text("UPDATE trials SET lease = '2020-01-01 00:00:00.000000'"))
        engine.dispose()
        with Store.open(database_url, write=True) as store:  # the other has time to finish all
            tune(job_on("GPU-1"), store, ReplayRunner(landscape, seed=7), lambda _: None)
        taken.extend(stored(database_url))

    with Store.open(database_url, write=True) as store:
        tune(job_on("GPU-0"), store, Slow(landscape, asleep), heard.append)
    lost = [event for event in heard if event["event"] == "lost"]
    assert [event["trial"].number for event in lost] == [0]
    assert "trial 0 was taken over by another tune" in lost[0]["text"]
    assert stored(database_url) == taken
    assert taken[0].device_uuid == "GPU-1"
    assert taken[0].attempts == 2


def test_a_tune_whose_disk_was_full_goes_on_where_it_was(
    sqlite_url: str, job_on: Callable[..., Job], landscape: Landscape
) -> None:
    """What could neither be recorded nor let go is nobody's, though its process lives: it is run again, and not waited for."""
    heard: list[Mapping[str, Any]] = []
    job = job_on("GPU-0", trials=4, blocks=0, exhaustive=False)
    with Store.open(sqlite_url, write=True) as store:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(_: TrialAsked | BlockAsked) -> None:
            if len(store.trials(1)) == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # no file of this process may grow

        try:
            with pytest.raises(StoreError, match="could not do it: disk I/O error"):
                tune(job, store, Slow(landscape, fill), lambda _: None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [str(trial.outcome) for trial in store.trials(1)] == ["ok", "ok", "running"]
        tune(job, store, ReplayRunner(landscape), heard.append)
        assert not any("waiting" in str(event.get("stage")) for event in heard)
        assert [(str(t.outcome), t.attempts) for t in store.trials(1)] == [("ok", 1), ("ok", 1), ("ok", 2), ("ok", 1)]
        assert store.study(1).state == "done"


def test_a_tune_waits_for_what_others_run_and_says_so(
    sqlite_url: str, job_on: Callable[..., Job], landscape: Landscape
) -> None:
    """Where all that is left is being run by another, it is waited for, said once, and what comes of it is gone on from."""
    heard: list[Mapping[str, Any]] = []
    asked = argparse.Namespace(joined=False)

    with Store.open(sqlite_url, write=True) as store, ThreadPoolExecutor(1) as pool:

        def join(_: TrialAsked | BlockAsked) -> None:
            if not asked.joined:
                asked.joined = True
                asked.other = pool.submit(tune, job_on("GPU-1"), store, ReplayRunner(landscape), heard.append)
                until = time.monotonic() + 60.0
                while not any("waiting" in str(event.get("stage")) for event in heard) and time.monotonic() < until:
                    time.sleep(0.02)

        tune(job_on("GPU-0"), store, Slow(landscape, join), lambda _: None)
        asked.other.result()
    waits = [str(event["stage"]) for event in heard if event["event"] == "stage" and "waiting" in str(event["stage"])]
    assert waits[0] == "waiting: another tune of this study runs trial 0"
    assert waits.count(waits[0]) == 1
    assert stored(sqlite_url)[0].device_uuid == "GPU-0"


@pytest.fixture
def elsewhere(
    sqlite_url: str, job_on: Callable[..., Job], landscape: Landscape
) -> Iterator[Callable[..., tuple[Store, int]]]:
    """Give what begins the default's trial on another host, which is not heard of again, in a study of a job."""
    with Store.open(sqlite_url, write=True) as store:

        def begin(job: Job, lease_s: float) -> tuple[Store, int]:
            nouns = (job.source, job.workload, job.machine.environment, job.objective, job.budget)
            study = store.open_study(*nouns, job.seed)
            assert store.claim(study, Search(landscape.baseline), "another-host:1:1", lease_s=lease_s) == (0,)
            return store, study

        yield begin


def test_what_a_dead_host_ran_is_waited_for_and_then_run(
    elsewhere: Callable[..., tuple[Store, int]], job_on: Callable[..., Job], landscape: Landscape
) -> None:
    """Until its lease ends it may be there; from then on its trial is run again, under its number, by who waited for it."""
    heard: list[Mapping[str, Any]] = []
    job = job_on("GPU-0", trials=2, blocks=0)
    store, study = elsewhere(job, lease_s=1.0)
    began = time.monotonic()
    tune(job, store, ReplayRunner(landscape), heard.append)

    assert time.monotonic() - began >= 0.5
    assert "waiting: another tune of this study runs trial 0" in [event.get("stage") for event in heard]
    first, second = store.trials(study)
    assert (first.requested, str(first.outcome), first.attempts) == (landscape.baseline, "ok", 2)
    assert (str(second.outcome), second.attempts) == ("ok", 1)
    assert store.study(study).state == "done"


def test_a_budget_ends_a_wait(
    elsewhere: Callable[..., tuple[Store, int]], job_on: Callable[..., Job], landscape: Landscape
) -> None:
    """Another tune's default that lasts longer than the budget is waited for no longer; what can be searched meanwhile is."""
    job = replace(job_on("GPU-0", seconds=1.5, exhaustive=False), budget=Budget(seconds=1.5, trials=3, blocks=3))
    store, study = elsewhere(job, lease_s=600.0)
    began = time.monotonic()
    tune(job, store, ReplayRunner(landscape), lambda _: None)
    took_s, record = time.monotonic() - began, store.study(study)

    assert 1.5 <= took_s < 30
    assert [trial.outcome for trial in store.trials(study)] == [Outcome.RUNNING, Outcome.OK, Outcome.OK]
    assert record.state == "running"
    assert record.end is not None
    assert record.end.stop == "budget"
