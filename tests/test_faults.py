"""What goes wrong in a worker is data: every fault has its own outcome, and the tune goes on. With real faults.

The faults are choices of attention that break when they are called (tests/faults/broken_choices.py); the command line
is the user's own, started as a process, interrupted and killed.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from made_databases import probed

from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import recommend
from advisor.knobs import KNOBS, register
from advisor.machine import probe
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.worker import TEXT_LIMIT
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Trial
from advisor.search.space import build_space
from advisor.storage.store import Store
from advisor.study.clock import Bounded, Clock
from advisor.study.next_step import FAILURES_IN_A_ROW, in_common
from advisor.study.tune import carried_out, tune
from advisor.study.tuner import Tuner
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

pytestmark = pytest.mark.timeout(900)  # most of it is one fixture, which a busy machine can take its time over

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"

#: Without pads no packing is admissible, and nothing is left that could be faster than the default and need confirming.
WORKLOAD = Forward((12, 12), 2)

#: Fault -> outcome, attempts, and what its reason must name. The transient ones are tried once more, in a fresh worker.
EXPECTED = {
    "broken-oom": (Outcome.OUT_OF_MEMORY, 2, "OutOfMemoryError: CUDA out of memory"),
    "broken-hang": (Outcome.TIMEOUT, 2, "no result after 2 s"),
    "broken-hang-in-c": (Outcome.TIMEOUT, 2, "no result after 2 s"),
    "broken-segfault": (Outcome.RUNTIME_ERROR, 2, "died of SIGSEGV"),
    "broken-cuda-error": (Outcome.RUNTIME_ERROR, 2, "an illegal memory access"),
    "broken-nan": (Outcome.WRONG_OUTPUT, 1, "NaN"),
    "broken-garbage": (Outcome.RUNTIME_ERROR, 2, "what is this?"),
    "broken-forgery": (Outcome.RUNTIME_ERROR, 2, "no message"),
    "broken-noise": (Outcome.OK, 1, ""),
    "broken-exit": (Outcome.RUNTIME_ERROR, 2, "ended with status 3"),
    "broken-killed": (Outcome.OUT_OF_MEMORY, 2, "SIGKILL"),
    "broken-long-error": (Outcome.RUNTIME_ERROR, 1, "ValueError: lowering failed"),
    "broken-wrong": (Outcome.WRONG_OUTPUT, 1, "rms error"),
}
FAILING = [name for name, (outcome, _, _) in EXPECTED.items() if outcome is not Outcome.OK]

#: A deadline for those that hang, in seconds: their worker is warm and would have answered within a tenth of it.
HANG_S = 2.0

#: A deadline for a worker that has to start first, in seconds, and in what the slowest such run of the default took here, today.
COLD_S, COLD_TIMES = 5.0, 4


@dataclass
class Broken:
    """A study with every fault in its space: per fault its trial and the one that came next, and how it all ended."""

    trials: dict[str, Trial] = field(default_factory=dict)
    next_trials: dict[str, Trial] = field(default_factory=dict)
    replaced: dict[str, bool] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    all_trials: list[Trial] = field(default_factory=list)
    admissible: set[str] = field(default_factory=set)
    state: str = ""
    recommendation: Recommendation | None = None


@contextmanager
def plugin(name: str) -> Iterator[Any]:
    """Register a plugin's choices in this process and let workers find it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(Path(__file__).parent / "faults")
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", folder)
        patch.setenv("ADVISOR_PLUGINS", name)
        module = importlib.import_module(name)
        for choice in module.CHOICES:
            register(choice)
        try:
            yield module
        finally:
            for choice in module.CHOICES:
                KNOBS[choice.knob].choices.pop(choice.name, None)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    """Run every fault and, after each, the default again; then let `tune` finish the study."""
    folder = tmp_path_factory.mktemp("faults")
    with plugin("broken_choices"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))  # a device lock of its own
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        machine, source = probe.machine("cpu"), find_model(str(CAUSAL))
        job = Job(source, WORKLOAD, Objective(quality=Tier.EXACT), Budget(trials=100), machine)
        runner, found = LocalRunner(machine), Broken()
        with Store.open(probed(f"sqlite:///{folder}/advisor.db"), write=True) as store:
            try:
                _run_faults(job, store, folder, found)
                # What failed before is tried again by a new tune; what hangs must not hang for ten minutes, and one is enough.
                del KNOBS["attention"].choices["broken-hang-in-c"]
                longest_s = max(trial.wall_s or 0.0 for trial in found.next_trials.values())
                patient = replace(job, trial_timeout_s=COLD_S + COLD_TIMES * longest_s)
                study = tune(patient, store, runner, lambda event: found.events.append(dict(event)))
            finally:
                runner.close()
            record = store.study(study)
            found.all_trials, found.state = store.trials(study), record.state
            found.recommendation = recommend(store, source, record, job.objective)
    return found


def _run_faults(job: Job, store: Store, folder: Path, found: Broken) -> None:
    """Open the study and run its faults on two devices at once: workers can share a study, and it takes half as long."""
    runner = LocalRunner(job.machine)
    facts = read_facts(runner, job.source, Forward((8,), 1))
    runner.close()
    environment = job.machine.environment
    space = build_space(facts, job.workload, environment, job.objective, job.machine.free_bytes)
    found.admissible = {configuration["attention"] for configuration in space.admissible}
    study = store.open_study(job.source, job.workload, environment, job.objective, job.budget, job.seed)
    store.save_facts(job.source, facts)

    def run_on(device: int) -> None:
        own = replace(job, machine=replace(job.machine, uuid=f"cpu-test-{device}"))
        place = folder / str(device)
        place.mkdir()
        runner = LocalRunner(own.machine)
        tuner = Tuner(own, store, Bounded(runner, Clock()), lambda _: None, facts, space, study, place)
        try:
            _run_half(tuner, device, found)
        finally:
            store.close_study(study, "interrupted", owner=tuner.owner)
            runner.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_on, range(2)))


#: Only one of two tunes may run the default at a time: who waits for the other's is better asleep than asking the database.
_DEFAULT = Lock()


def _run_half(tuner: Tuner, device: int, found: Broken) -> None:
    """Run the default; then every other fault, in the worker that is warm, and the default again after each."""
    job, baseline, runner = tuner.job, tuner.space.baseline, tuner.runner.runner
    assert isinstance(runner, LocalRunner)
    with _DEFAULT:
        assert _run(tuner, baseline).outcome is Outcome.OK
    for name in list(EXPECTED)[device::2]:
        worker = runner._process
        tuner.job = replace(job, trial_timeout_s=HANG_S) if name.startswith("broken-hang") else job
        found.trials[name] = _run(tuner, baseline.replaced(attention=name))
        tuner.job = job
        with _DEFAULT:
            found.next_trials[name] = _run(tuner, baseline)
        found.replaced[name] = worker is not runner._process


def _run(tuner: Tuner, configuration: Configuration) -> Trial:
    """Run a configuration once more, as soon as the other device does not, and return its trial."""
    heard: list[Mapping[str, Any]] = []
    tuner.listen = heard.append
    while not carried_out(tuner, tuner.snapshot(), Search(configuration)):
        time.sleep(0.02)
    (trial,) = (event["trial"] for event in heard if event["event"] == "trial")
    assert isinstance(trial, Trial)
    return trial


@pytest.mark.parametrize("name", EXPECTED)
def test_fault_has_its_own_outcome_and_names_its_cause(broken: Broken, name: str) -> None:
    """Every fault ends as the outcome that fits it, its reason names the cause, and only what may pass is retried once."""
    outcome, attempts, cause = EXPECTED[name]
    trial = broken.trials[name]

    assert (trial.outcome, trial.attempts) == (outcome, attempts), trial.reason
    assert cause in trial.reason
    assert bool(trial.measurements) is (outcome is Outcome.OK)


@pytest.mark.parametrize("name", EXPECTED)
def test_next_trial_is_ok_whatever_went_wrong(broken: Broken, name: str) -> None:
    """After a fault the default runs again, in a worker that was replaced; mere noise on stdout replaces nothing."""
    trial = broken.next_trials[name]

    assert (trial.outcome, trial.attempts) == (Outcome.OK, 1), trial.reason
    assert trial.measurements
    assert broken.replaced[name] is (name in FAILING)


def test_faults_are_stored_as_they_were_told(broken: Broken) -> None:
    """What the database says of every fault is what the run said: outcome, attempts and reason."""
    stored = {trial.number: trial for trial in broken.all_trials}

    for name, trial in broken.trials.items():
        kept = stored[trial.number]
        assert (kept.outcome, kept.attempts, kept.reason) == (trial.outcome, trial.attempts, trial.reason), name


def test_error_text_is_cut(broken: Broken) -> None:
    """An error text of 234,000 characters is stored as its beginning."""
    assert len(broken.trials["broken-long-error"].reason) == TEXT_LIMIT


def test_failures_in_a_row_end_the_search_with_what_they_share(broken: Broken) -> None:
    """Ten failures in a row end the search, and the tune says how they failed and what they had in common; nine do not.

    The search itself turns away from what fails, so that a real study hardly comes to that: the rule is asked directly.
    """
    base = broken.all_trials[0].requested
    failed = [
        Trial(n, base.replaced(attention=f"broken-{n}"), None, Outcome.LOAD_FAILED) for n in range(FAILURES_IN_A_ROW)
    ]
    text = in_common(failed)
    assert f"{FAILURES_IN_A_ROW} failures in a row (load_failed × {FAILURES_IN_A_ROW})" in text
    assert text.endswith("in common: precision fp32")
    assert not in_common(failed[1:])
    assert not in_common([*failed[1:], broken.all_trials[0]])
    running = replace(broken.all_trials[0], outcome=Outcome.RUNNING)
    assert in_common([*failed, running]) == text  # another tune runs it: it may fail as well


def test_missing_module_is_named_and_not_tried_again(broken: Broken) -> None:
    """A choice that needs a module nobody has fails to load, once, and the reason names the module."""
    trials = [trial for trial in broken.all_trials if trial.requested["attention"].startswith("broken-import")]

    assert trials
    assert {trial.attempts for trial in trials} == {1}
    assert all("ModuleNotFoundError" in trial.reason and "a_module_that_nobody_has" in trial.reason for trial in trials)


def test_study_full_of_faults_ends_with_a_recommendation(broken: Broken) -> None:
    """With every fault in its space a study ends, recommends what is right, and lists what failed and why."""
    recommendation = broken.recommendation

    assert set(EXPECTED) < broken.admissible
    assert broken.state == "done"
    assert recommendation is not None
    assert recommendation.configuration["attention"] not in FAILING
    listed = {trial.requested["attention"]: trial.outcome for trial in recommendation.failures}
    assert {name: listed.get(name) for name in FAILING} == {name: EXPECTED[name][0] for name in FAILING}


# --------------------------------------------------------------------------------------------- the command, interrupted


@pytest.fixture(scope="module", autouse=True)
def _heed_interrupts() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C and hands that on: the tests may be one, what they start must not be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Command:
    """`python -m advisor tune` in a process of its own, kept busy by a choice that sleeps for ten minutes."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start it. folder: where the device's lock and everything else is; name: of its database."""
        self.url, self.log = probed(f"sqlite:///{folder}/{name}.db"), folder / f"{name}.log"
        self.mark = f"ADVISOR_TEST={self.url}"
        environment = {
            **os.environ,
            "ADVISOR_LOCK_DIR": str(folder),
            "ADVISOR_DATABASE_URL": self.url,
            "HF_HUB_OFFLINE": "1",
            "ADVISOR_TEST": self.url,
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
            "--trials",
            "9",
            "--device",
            "cpu",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def workers(self) -> list[int]:
        """Return what it started, its warm parent and the workers: processes that have its mark in their environment."""
        return [pid for pid in processes_with(self.mark) if pid != self.process.pid]

    def text(self) -> str:
        """Return all that it said."""
        return self.log.read_text()

    def trials(self) -> list[Trial]:
        """Return what it has stored."""
        try:
            with Store.open(self.url, write=False) as store:
                return store.trials(1, full=True)
        except Exception:  # noqa: BLE001 - there is no database yet
            return []

    def is_busy(self) -> bool:
        """Whether its first trial is finished and another one runs."""
        return [str(trial.outcome) for trial in self.trials()] == ["ok", "running"]

    def stop(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def processes_with(mark: str) -> list[int]:
    """Return the ids of living processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], Any], seconds: float) -> bool:
    """Look every 50 ms whether it is so by now."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Command]]:
    """Give what starts a command; it and its worker are gone when the test ends."""
    started: list[Command] = []

    def start_command(name: str) -> Command:
        started.append(Command(tmp_path, name))
        return started[-1]

    yield start_command
    for command in started:
        command.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_interrupted_tune_stores_what_is_finished_and_leaves_no_worker(start: Callable[[str], Command]) -> None:
    """Ctrl-C ends a tune with status 130 and a line, every finished trial is stored, and no worker is left."""
    command = start("interrupted")
    assert wait_until(command.is_busy, 240), command.text()
    before = command.trials()
    assert len(command.workers()) == 2

    command.process.send_signal(signal.SIGINT)

    assert command.process.wait(timeout=60) == 130
    assert (
        "advisor: interrupted; this run stored 1 trial, and the same command goes on from there: advisor tune "
        in command.text()
    )
    assert "Traceback" not in command.text()
    after = command.trials()
    assert after[0] == before[0]
    assert [str(trial.outcome) for trial in after] == ["ok", "running"]
    with Store.open(command.url, write=False) as store:
        assert store.study(1).state == "interrupted"
    assert command.workers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("every_s", [0.02, 0.1])
def test_impatient_interrupts_end_it_as_one_does(start: Callable[[str], Command], every_s: float) -> None:
    """Whoever presses Ctrl-C again and again gets the same status, the same line and count, and no traceback."""
    command = start("impatient")
    assert wait_until(command.is_busy, 240), command.text()

    until = time.monotonic() + 20
    while command.process.poll() is None and time.monotonic() < until:
        command.process.send_signal(signal.SIGINT)
        time.sleep(every_s)

    assert command.process.wait(timeout=60) == 130, command.text()
    assert "Traceback" not in command.text()
    assert command.text().count("advisor: interrupted") == 1
    assert "advisor: interrupted; this run stored 1 trial, and the same command goes on" in command.text()
    with Store.open(command.url, write=False) as store:
        assert store.study(1).state == "interrupted"
    assert command.workers() == []


def test_interrupted_before_the_first_trial_it_says_so(start: Callable[[str], Command]) -> None:
    """Ctrl-C while the model is read says that nothing is stored yet, and the command that goes on, as it was given."""
    command = start("at-once")
    assert wait_until(command.text, 240)

    command.process.send_signal(signal.SIGINT)

    assert command.process.wait(timeout=60) == 130
    line = command.text().splitlines()[-1]
    assert "advisor: interrupted; this run stored 0 trials, and the same command goes on from there: " in line
    assert line.endswith(f"advisor tune {CAUSAL} --lengths 16,16 --batch 2 --quality exact --trials 9 --device cpu")


def test_interrupted_while_a_class_is_being_defined_it_ends_with_its_status(tmp_path: Path) -> None:
    """Ctrl-C inside code made from text (a dataclass being defined) ends with status 130 as well, not by the signal."""
    (tmp_path / "interrupting.py").write_text("exec('import signal; signal.raise_signal(signal.SIGINT)')\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])

    ended = subprocess.run(
        [sys.executable, "-m", "advisor", "rules"],
        env={**os.environ, "ADVISOR_PLUGINS": "interrupting", "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "advisor: interrupted\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_tune_leaves_no_worker(start: Callable[[str], Command]) -> None:
    """A tune that is killed outright takes its worker along within 5 s, even one that sleeps inside a trial."""
    command = start("killed")
    assert wait_until(command.is_busy, 240), command.text()
    assert len(command.workers()) == 2

    command.process.kill()
    command.process.wait()

    assert wait_until(lambda: not command.workers(), 5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tune_killed_while_its_worker_starts_leaves_none(start: Callable[[str], Command]) -> None:
    """A worker whose parent is killed while it still imports torch is gone at once."""
    command = start("starting")
    assert wait_until(command.workers, 240), command.text()
    time.sleep(0.3)
    assert len(command.workers()) == 1

    command.process.kill()
    command.process.wait()

    assert wait_until(lambda: not command.workers(), 1)


_PARENT = """
import os, signal, subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "advisor.measure.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_worker_whose_parent_died_before_it_looked_is_gone() -> None:
    """A parent that is killed right after it started a worker leaves none that first imports torch for seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ADVISOR_TEST": "the worker of a dead parent"}

    subprocess.run([sys.executable, "-c", _PARENT], env=environment, stdout=subprocess.PIPE, check=False)

    assert wait_until(lambda: not processes_with("ADVISOR_TEST=the worker of a dead parent"), 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_second_tune_on_a_device_waits_and_says_so(start: Callable[[str], Command]) -> None:
    """While one tune measures on a device, a second says that it waits and starts no worker; then it goes on."""
    first = start("first")
    assert wait_until(first.is_busy, 240), first.text()
    second = start("second")

    assert wait_until(lambda: "waiting: another advisor measures on" in second.text(), 240), second.text()
    time.sleep(1)
    assert second.workers() == []
    assert "admissible" not in second.text()

    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(timeout=60) == 130
    assert wait_until(lambda: "configurations are admissible" in second.text(), 240), second.text()
    assert len(second.workers()) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tune_killed_at_random_moments_loses_nothing(database_url: str) -> None:
    """Killed three times and run again, a tune keeps every finished trial, measures nothing twice and completes.

    On PostgreSQL the server lives on: neither a session nor a half trial of a killed client stays behind.
    """
    script = Path(__file__).parent / "faults" / "kill.py"
    options = ["--kills", "3", "--seed", "1", "--trials", "2", "--database", database_url]

    done = subprocess.run([sys.executable, script, *options], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 0 problems" in done.stdout
    assert "completes" in done.stdout
