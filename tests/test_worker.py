"""The worker's promises, and its runner's: what is kept from trial to trial, what is read back, when it ends."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch

from advisor.machine import probe
from advisor.measure.lines import Message
from advisor.measure.messages import (
    Done,
    FactsAsked,
    FactsRead,
    Failure,
    Gate,
    Request,
    Timing,
    TrialAsked,
    TrialDone,
    decode_event,
    numbered,
)
from advisor.measure.proof_torch import launched_of
from advisor.measure.rounds_torch import Taken, busy_share
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.session_torch import synchronize
from advisor.measure.stopping import Stopping
from advisor.measure.timing_torch import (
    EARLY_STOP_RATIO,
    EARLY_STOP_S,
    MOST_WARMING,
    _clearly_slower,
    _is_warm,
)
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import LAUNCH_BOUND_SHARE
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "tests" / "models" / "causal"
FAULTS = ROOT / "tests" / "faults"
SHAPES = ROOT / "benchmarks" / "shapes"
WORKLOAD = Forward((16, 6, 12, 4), 2)
FP32 = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})


class Unknown(Message, tag_field="op", tag="no such operation", frozen=True, kw_only=True):
    """What no worker can answer."""


#: The same for a type checker.
UNKNOWN = cast("Request", Unknown())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with a device lock of its own, so that other tests on this machine need not wait."""
    folder = tmp_path_factory.mktemp("worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        yield folder


def trial_request(facts: ModelFacts, **choices: str) -> TrialAsked:
    """Return a request for a trial without the gate, over after three rounds."""
    stopping = Stopping(least=3, most=3, seconds=1.0, least_long=3, seconds_long=1.0)
    return TrialAsked(
        source=find_model(str(CAUSAL)).files,
        facts=facts,
        workload=WORKLOAD,
        configuration=FP32.replaced(**choices),
        timing=Timing(stopping=stopping),
    )


def run_trial(runner: LocalRunner, request: TrialAsked, timeout_s: float = 60) -> TrialDone:
    """Return what came of a trial that ran."""
    answer = runner.run(request, timeout_s)
    assert isinstance(answer, TrialDone), answer
    return answer


#: Loads the small model, and prints whether its class was imported when the clock was read first.
LOADING = """
import sys
from advisor.measure import session_torch
from advisor.measure.messages import Subject
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.show.support import LLAMA
from advisor.workloads.forward import Forward

MODELING, seen = "transformers.models.llama.modeling_llama", []
assert MODELING not in sys.modules
clock = session_torch.time.perf_counter
session_torch.time.perf_counter = lambda: seen.append(MODELING in sys.modules) or clock()
plain = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
subject = Subject(source=find_model(sys.argv[1]).files, facts=LLAMA, workload=Forward((8,), 1), configuration=plain)
session_torch.Session(lambda _: None).load(subject, plain)
print(seen)
"""


@pytest.mark.usefixtures("place")
def test_loading_is_timed_without_imports() -> None:
    """A fresh process's first load takes what the next would: an import is no load, and the search's process had it before."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(CAUSAL)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True]"


@pytest.mark.usefixtures("place")
def test_what_is_clearly_slower_is_not_gated() -> None:
    """Its first rounds show that a configuration is far slower than the best so far: the gate's time would be for nothing.

    What may still be the best goes on, with a round after the gate at least.
    """
    said: list[dict[str, Any]] = []
    runner = LocalRunner(probe.machine("cpu"), said.append)
    try:
        facts = read_facts(runner, find_model(str(CAUSAL)), Forward((8,), 1))
        request = trial_request(facts).replaced(
            workload=Forward((300,) * 12, 4), sample=tuple(range(4)), gate=Gate(path=None, reference="none")
        )
        slow = run_trial(runner, request.replaced(timing=request.timing.replaced(incumbent_s=1e-6)))
        stages = [each["stage"] for each in said if each["event"] == "stage"]
        said.clear()
        fast = run_trial(runner, request.replaced(timing=request.timing.replaced(incumbent_s=1e6)))
    finally:
        runner.close()

    assert slow.outcome is Outcome.PRUNED
    assert slow.rounds is not None
    told = re.search(r"times slower than the best so far after (\d+) rounds", slow.reason)
    assert told is not None
    assert 2 <= len(slow.rounds.wall_s) <= int(told[1]), "the last two are kept where the first was a warm-up"
    assert 2 <= len(slow.rounds.wall_s) <= MOST_WARMING
    assert slow.peak_bytes is not None
    assert slow.peak_bytes > 0
    assert slow.quality is None
    assert "gate" not in stages
    assert fast.outcome is Outcome.OK
    assert fast.rounds is not None
    assert len(fast.rounds.wall_s) >= 2
    assert "gate" in [each["stage"] for each in said if each["event"] == "stage"]


@pytest.mark.usefixtures("place")
def test_who_asks_for_one_round_gets_one() -> None:
    """It shows that the work runs: it is neither warm-up nor run again where others keep the processors busy."""
    said: list[dict[str, Any]] = []
    runner = LocalRunner(probe.machine("cpu"), said.append)
    try:
        facts = read_facts(runner, find_model(str(CAUSAL)), Forward((8,), 1))
        once = Timing(stopping=Stopping(least=1, most=1))
        done = run_trial(runner, trial_request(facts).replaced(timing=once))
    finally:
        runner.close()

    assert done.outcome is Outcome.OK
    assert done.rounds is not None
    assert len(done.rounds.wall_s) == len(done.rounds.slowest_s) == len(done.rounds.states) == 1
    assert done.rounds.discarded == ()
    assert [each for each in said if each["event"] == "round"] == []


@pytest.fixture(scope="module")
def results(place: Path) -> Iterator[dict[str, TrialDone]]:
    """Run four configurations in one worker: the first, then with one knob changed each."""
    runner = LocalRunner(probe.machine("cpu"))
    try:
        facts = read_facts(runner, find_model(str(CAUSAL)), Forward((8,), 1))
        worker = runner._process
        found = {
            "first": run_trial(runner, trial_request(facts)),
            "attention": run_trial(runner, trial_request(facts, attention="eager")),
            "packing": run_trial(runner, trial_request(facts, attention="eager", packing="packed")),
            "precision": run_trial(runner, trial_request(facts, precision="bf16")),
        }
        assert runner._process is worker
        yield found
    finally:
        runner.close()


def test_weights_are_kept_while_attention_or_packing_changes(results: dict[str, TrialDone]) -> None:
    """A change of attention or packing loads nothing: it takes less than a tenth of the time the weights took."""
    loaded_s = results["first"].load_s

    assert results["attention"].load_s < loaded_s / 10
    assert results["packing"].load_s < loaded_s / 10


def test_what_ran_is_read_back_from_the_model(results: dict[str, TrialDone]) -> None:
    """After a switch on the loaded model, the attention read back and the operators launched are those asked for."""
    first, switched, packed = (results[name].reading for name in ("first", "attention", "packing"))

    assert first["attention"][""] == "sdpa"
    assert any("scaled_dot_product" in name for name in first["operators"])
    assert switched["attention"][""] == "eager"
    assert not any("scaled_dot_product" in name for name in switched["operators"])
    assert packed["inputs"]["restarting_positions"]
    assert packed["inputs"]["rows"] == 1
    assert all(result.alias == "" for result in results.values())


def test_precision_loads_the_weights_anew(results: dict[str, TrialDone]) -> None:
    """Another precision is another set of weights: read back as bf16, and half as large."""
    reading = results["precision"].reading

    assert set(reading["dtypes"]) == {"bfloat16"}
    assert results["precision"].weight_bytes == pytest.approx(results["first"].weight_bytes / 2, rel=0.05)
    assert results["precision"].effective["precision"] == "bf16"


def test_result_holds_what_is_stored(results: dict[str, TrialDone]) -> None:
    """A trial brings its rounds in seconds with the state of the device after each, and its peak memory in bytes."""
    for result in results.values():
        assert result.outcome is Outcome.OK
        assert len(result.rounds.wall_s) == len(result.rounds.states) == 3
        assert all(seconds > 0 for seconds in result.rounds.wall_s)
        assert result.peak_bytes > result.weight_bytes
        assert result.reading["peak"]["total"] == result.peak_bytes
        assert result.first_call_s > 0


def test_worker_ends_with_its_input_even_within_a_trial(place: Path) -> None:
    """When its parent's end of the pipe closes, a worker ends, also while a trial sleeps for ten minutes."""
    environment = {**os.environ, "ADVISOR_PLUGINS": "odd_choices", "PYTHONPATH": f"{ROOT}:{FAULTS}"}
    source = find_model(str(CAUSAL)).files
    with subprocess.Popen(
        [sys.executable, "-m", "advisor.measure.worker"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as worker:
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            _ask(worker.stdin, 1, FactsAsked(source=source, workload=Forward((8,), 1)))
            done = next(event for event in map(decode_event, worker.stdout) if isinstance(event, Done))
            assert isinstance(done.result, FactsRead)
            _ask(worker.stdin, 2, trial_request(done.result.facts, attention="odd-asleep"))
            assert any(b"first call" in line for line in worker.stdout)
            assert worker.poll() is None

            worker.stdin.close()

            assert worker.wait(timeout=60) == 0
        finally:
            worker.kill()


def _ask(stream: IO[bytes], number: int, request: Request) -> None:
    stream.write(numbered(number, "cpu", "cpu", request) + b"\n")
    stream.flush()


def _unanswerable_s(machine: Machine) -> float:
    """Return how long a fresh worker takes to answer what it does not know."""
    runner, began = LocalRunner(machine), time.monotonic()
    try:
        answer = runner.run(UNKNOWN, 600)
        assert isinstance(answer, Failure)
        assert answer.outcome is Outcome.RUNTIME_ERROR
        return time.monotonic() - began
    finally:
        runner.close()


def test_time_spent_waiting_for_the_device_is_not_the_trials(place: Path) -> None:
    """The deadline begins when the device is had: after a longer wait for another advisor there still is an answer."""
    machine = replace(probe.machine("cpu"), uuid="cpu-test-waiting")
    _unanswerable_s(machine)  # imports
    wait_s = 1 + 3 * _unanswerable_s(machine)
    said: list[str] = []
    runner = LocalRunner(machine, lambda event: said.append(str(event.get("stage"))))
    lock = os.open(place / f"advisor-{machine.uuid}.lock", os.O_RDONLY | os.O_CREAT, 0o444)
    fcntl.flock(lock, fcntl.LOCK_EX)
    release = threading.Timer(wait_s, lambda: os.close(lock))
    release.start()
    began = time.monotonic()
    try:
        answer = runner.run(UNKNOWN, wait_s)
    finally:
        release.join()
        runner.close()

    assert time.monotonic() - began > wait_s
    assert said[0] == "waiting: another advisor measures on cpu-test-waiting"
    assert isinstance(answer, Failure)
    assert answer.outcome is Outcome.RUNTIME_ERROR
    assert "no such operation" in answer.reason


def test_stopping_needs_least_rounds_then_precision() -> None:
    """Equal rounds end at the least number; scattered ones go on to the most, or until the seconds are spent."""
    rule = Stopping(least=10, most=30, seconds=20.0)

    assert not rule.reached([0.01] * 9)
    assert rule.reached([0.01] * 10)
    scattered = [0.01, 0.02] * 15
    assert not rule.reached(scattered[:29])
    assert rule.reached(scattered)
    assert rule.reached([1.0, 1.9] * 7)


def test_stopping_of_a_search_trial() -> None:
    """Two rounds that agree are enough; others go on for a second and a half, or for three where two outlast that."""
    rule = Stopping()

    assert not rule.reached([0.5])
    assert rule.reached([0.5, 0.505])
    assert not rule.reached([0.5, 0.6])
    assert rule.reached([0.5, 0.6, 0.7])
    assert not rule.reached([0.8, 1.0])
    assert rule.reached([0.8, 1.0, 0.8, 0.9])
    assert rule.reached([8.0, 9.0])


def test_work_that_waits_for_its_launches_is_timed_longer() -> None:
    """Two short rounds that agree say nothing where the CPU sets the pace: ten at least, and up to 1.5 s of them.

    They go on until their median is known to within 3 %, which is little beside what the next trial of the same scatters by.
    Those count in which the CPU was at its pace, but no more than three seconds or 200 rounds are spent to get them.
    """
    rule = Stopping().longer()

    assert not rule.reached([0.06] * 9)
    assert rule.reached([0.06] * 10)
    assert not rule.reached([0.06, 0.045] * 14)
    assert rule.reached([0.06, 0.045] * 15)
    assert rule.reached([0.06, 0.0575] * 5)
    assert not rule.reached([0.06, 0.055] * 5)
    assert not rule.reached_at_pace([0.06] * 9, [0.06] * 9 + [0.1] * 24)
    assert rule.reached_at_pace([0.06] * 9, [0.06] * 9 + [0.1] * 25)
    assert rule.reached_at_pace([0.06] * 10, [0.06] * 10 + [0.1] * 5)
    assert not rule.reached_at_pace([0.001] * 9, [0.001] * 199)
    assert rule.reached_at_pace([0.001] * 9, [0.001] * 200)
    assert rule.reached_at_pace([], [10.0] * 2)  # long rounds, and never at its pace
    assert rule.reached_at_pace([0.073] * 5, [0.073] * 5, 0.06)  # slower than the best in each of five
    assert not rule.reached_at_pace([0.073] * 4 + [0.072], [0.073] * 5, 0.06)
    assert not rule.reached_at_pace([0.073] * 4, [0.073] * 4, 0.06)
    assert not rule.reached_at_pace([0.073] * 5, [0.073] * 5)
    to_its_end = Stopping(least=10, most=30, seconds=20.0, least_long=5, seconds_long=20.0).longer()
    assert not to_its_end.reached_at_pace([0.06, 0.045] * 20, [0.06, 0.045] * 20)
    assert not rule.reached([0.25] * 4)
    assert rule.reached([0.25] * 5)
    assert not rule.reached([1.0] * 2)
    assert rule.reached([1.0] * 3)
    assert rule.reached([4.0, 4.4])  # rounds that are long anyway


def recorded(device: str, times: int) -> torch.profiler.profile:
    """Return the profile of a small network that is run so often."""
    network, inputs = (
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).to(device),
        torch.randn(4, 8, device=device),
    )
    kinds = {torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if device != "cpu" else [])}
    with torch.inference_mode(), torch.profiler.profile(activities=kinds) as profile:
        for _ in range(times):
            network(inputs)
        synchronize(device)
    return profile


def test_a_profile_of_many_events_is_read_at_once() -> None:
    """By the same names as torch's own averages have, which take a tree of all events: 17 s of 200,000."""
    profile = recorded("cpu", 3000)
    began = time.process_time()
    found = launched_of(profile)
    spent_s = time.process_time() - began
    averages = profile.key_averages()

    assert found.names == sorted({event.key[:200] for event in averages})
    assert "aten::gelu" in found.names
    assert found.kernel_s == 0.0
    assert 3 * spent_s < time.process_time() - began - spent_s


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_seconds_of_kernels_are_those_that_torch_adds_up() -> None:
    """The sum over the events that were recorded on the GPU is the sum of torch's averages of them."""
    profile = recorded("cuda", 20)
    found, averages = launched_of(profile), profile.key_averages()
    on_gpu = [e for e in averages if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False)]

    assert found.kernel_s == pytest.approx(sum(e.self_device_time_total for e in on_gpu) / 1e6, rel=0.01)
    assert found.kernel_s > 0


def test_how_busy_a_gpu_is_says_the_batch_that_was_profiled() -> None:
    """The kernels of a batch over what it takes; nothing is said where no kernel was seen, and no more than all of the time."""
    assert busy_share(0.002, [0.010, 0.008, 0.016]) == 0.2
    assert busy_share(0.012, [0.010]) == 1.0
    assert busy_share(0.0, [0.010]) is None
    assert busy_share(0.002, []) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("model", "workload", "waits"),
    [(CAUSAL, Forward((64,) * 8, 8), True), (SHAPES / "bert-base.json", Forward((256,) * 512, 256, "hidden"), False)],
    ids=["tiny", "bert-base"],
)
def test_a_gpu_that_waits_for_its_launches_is_seen(model: Path, workload: Forward, waits: bool) -> None:
    """The shipped model leaves an H100 idle most of the time; BERT-base at 256 x 256 does not."""
    runner = LocalRunner(probe.machine(None))
    try:
        source = find_model(str(model))
        request = trial_request(read_facts(runner, source, workload), precision="bf16")
        found = run_trial(runner, request.replaced(source=source.files, workload=workload), 120)
        assert found.rounds is not None
        busy = found.rounds.busy
        assert busy is not None
        assert (busy < LAUNCH_BOUND_SHARE) == waits, busy
    finally:
        runner.close()


def test_early_stop_is_for_clearly_slower_rounds_that_cost_something() -> None:
    """A trial is stopped early after rounds that are all too slow, two and half a second of them, and looked at once."""
    slow = EARLY_STOP_RATIO * 1.01

    assert _clearly_slower([slow, 2.0], 1.0) == "1.5 times slower than the best so far after 2 rounds"
    assert _clearly_slower([slow, 1.4], 1.0) == ""
    assert _clearly_slower([slow], 1.0) == ""
    assert _clearly_slower([slow, 1.4, slow], 1.0) == ""
    assert _clearly_slower([9.0, 9.0], None) == ""
    assert _clearly_slower([EARLY_STOP_S / 3] * 2, EARLY_STOP_S / 30) == ""
    # On an H200 two rounds of 0.18 s stood against 0.058 s; the same configuration took 0.058 s four trials later.
    assert _clearly_slower([0.182, 0.182], 0.058) == ""
    assert _clearly_slower([0.182, 0.182, 0.058], 0.058) == ""
    assert _clearly_slower([0.182, 0.182, 0.18], 0.058) == "3.1 times slower than the best so far after 3 rounds"


def test_warm_up_ends_when_rounds_settle_or_after_ten() -> None:
    """Warm-up goes on until two rounds in a row agree within 2 % and half a second has passed, at most ten rounds."""
    settling, restless = [2.0, 0.9, 0.6, 0.6, 0.6], [1.0 + number % 2 for number in range(100)]

    assert next(n for n in range(6) if _is_warm(settling[:n])) == 4
    assert next(n for n in range(100) if _is_warm(restless[:n])) == MOST_WARMING == 10
    assert not _is_warm([0.1, 0.1, 0.1, 0.1])
    assert _is_warm([0.1, 0.1, 0.1, 0.1, 0.1])


def test_the_rounds_that_agreed_are_the_first_that_count() -> None:
    """What came before them is thrown away, of every figure."""
    rounds = Taken([3.0, 1.0, 1.0], [0.3, 0.1, 0.1], [3.0, 1.0, 1.0], [1.0, 0.5, 0.5], [{}, {"n": 1}, {"n": 2}], [])
    rounds.keep(2)

    assert (rounds.wall_s, rounds.gpu_s, rounds.states) == ([1.0, 1.0], [0.1, 0.1], [{"n": 1}, {"n": 2}])
    rounds.keep(0)
    assert rounds.wall_s == []
