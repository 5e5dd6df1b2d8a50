"""The worker's promises, and its runner's: what is kept from trial to trial, what is read back, when it ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from advisor.machine import probe
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.timing_torch import (
    EARLY_STOP_RATIO,
    EARLY_STOP_S,
    MOST_WARMING,
    Rounds,
    Stopping,
    _clearly_slower,
    _is_warm,
    busy_share,
)
from advisor.measure.worker import _finite
from advisor.models.checkpoint import find_model
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
FP32 = {"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with a device lock of its own, so that other tests on this machine need not wait."""
    folder = tmp_path_factory.mktemp("worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        yield folder


def trial_request(facts: ModelFacts, **choices: str) -> dict[str, Any]:
    """Return a request for a trial without the gate, over after three rounds."""
    stopping = {"least": 3, "most": 3, "seconds": 1.0, "least_long": 3, "seconds_long": 1.0}
    return {
        "op": "trial",
        "source": find_model(str(CAUSAL)).request,
        "facts": facts.payload,
        "workload": WORKLOAD.payload,
        "gate_workload": WORKLOAD.payload,
        "configuration": {**FP32, **choices},
        "gate": None,
        "measured": [],
        "timing": {"stopping": stopping, "incumbent_s": None},
    }


@pytest.mark.usefixtures("place")
def test_what_is_clearly_slower_is_not_gated() -> None:
    """Two rounds show that a configuration is far slower than the best so far: the gate's time would be for nothing.

    What may still be the best goes on, with a round after the gate at least.
    """
    said: list[dict[str, Any]] = []
    runner = LocalRunner(probe.machine("cpu"), said.append)
    try:
        facts = ModelFacts.of(
            read_facts(runner, {"source": find_model(str(CAUSAL)).request, "workload": Forward((8,), 1).payload})
        )
        request = trial_request(facts)
        request["workload"] = Forward((300,) * 16, 4).payload
        request["sample"] = list(range(4))
        request["gate"] = {"path": None, "reference": "none", "default": None, "is_default": False, "known": {}}
        slow = runner.run({**request, "timing": {**request["timing"], "incumbent_s": 1e-6}}, 60)
        stages = [each["stage"] for each in said if each["event"] == "stage"]
        said.clear()
        fast = runner.run({**request, "timing": {**request["timing"], "incumbent_s": 1e6}}, 60)
    finally:
        runner.close()

    assert slow["outcome"] == Outcome.PRUNED
    assert "times slower than the best so far after 2 rounds" in slow["reason"]
    assert len(slow["rounds"]["wall_s"]) == 2
    assert slow["peak_bytes"] > 0
    assert "quality" not in slow
    assert "gate" not in stages
    assert fast["outcome"] == Outcome.OK
    assert len(fast["rounds"]["wall_s"]) >= 2
    assert "gate" in [each["stage"] for each in said if each["event"] == "stage"]


@pytest.fixture(scope="module")
def results(place: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Run four configurations in one worker: the first, then with one knob changed each."""
    runner = LocalRunner(probe.machine("cpu"))
    try:
        facts = ModelFacts.of(
            read_facts(runner, {"source": find_model(str(CAUSAL)).request, "workload": Forward((8,), 1).payload})
        )
        worker = runner._process
        found = {
            "first": runner.run(trial_request(facts), 60),
            "attention": runner.run(trial_request(facts, attention="eager"), 60),
            "packing": runner.run(trial_request(facts, attention="eager", packing="packed"), 60),
            "precision": runner.run(trial_request(facts, precision="bf16"), 60),
        }
        assert runner._process is worker
        yield found
    finally:
        runner.close()


def test_weights_are_kept_while_attention_or_packing_changes(results: dict[str, dict[str, Any]]) -> None:
    """A change of attention or packing loads nothing: it takes less than a tenth of the time the weights took."""
    loaded_s = results["first"]["load_s"]

    assert results["attention"]["load_s"] < loaded_s / 10
    assert results["packing"]["load_s"] < loaded_s / 10


def test_what_ran_is_read_back_from_the_model(results: dict[str, dict[str, Any]]) -> None:
    """After a switch on the loaded model, the attention read back and the operators launched are those asked for."""
    first, switched, packed = (results[name]["reading"] for name in ("first", "attention", "packing"))

    assert first["attention"][""] == "sdpa"
    assert any("scaled_dot_product" in name for name in first["operators"])
    assert switched["attention"][""] == "eager"
    assert not any("scaled_dot_product" in name for name in switched["operators"])
    assert packed["inputs"]["restarting_positions"]
    assert packed["inputs"]["rows"] == 1
    assert all(result["alias"] == "" for result in results.values())


def test_precision_loads_the_weights_anew(results: dict[str, dict[str, Any]]) -> None:
    """Another precision is another set of weights: read back as bf16, and half as large."""
    reading = results["precision"]["reading"]

    assert set(reading["dtypes"]) == {"bfloat16"}
    assert results["precision"]["weight_bytes"] == pytest.approx(results["first"]["weight_bytes"] / 2, rel=0.05)
    assert results["precision"]["effective"]["precision"] == "bf16"


def test_result_holds_what_is_stored(results: dict[str, dict[str, Any]]) -> None:
    """A trial brings its rounds in seconds with the state of the device after each, and its peak memory in bytes."""
    for result in results.values():
        assert result["outcome"] == Outcome.OK
        assert len(result["rounds"]["wall_s"]) == len(result["rounds"]["states"]) == 3
        assert all(seconds > 0 for seconds in result["rounds"]["wall_s"])
        assert result["peak_bytes"] > result["weight_bytes"]
        assert result["first_call_s"] > 0


def test_worker_ends_with_its_input_even_within_a_trial(place: Path) -> None:
    """When its parent's end of the pipe closes, a worker ends, also while a trial sleeps for ten minutes."""
    environment = {**os.environ, "ADVISOR_PLUGINS": "odd_choices", "PYTHONPATH": f"{ROOT}:{FAULTS}"}
    source = find_model(str(CAUSAL)).request
    with subprocess.Popen(
        [sys.executable, "-m", "advisor.measure.worker"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            _ask(worker.stdin, {"op": "facts", "id": 1, "source": source, "workload": Forward((8,), 1).payload})
            answer = next(json.loads(line) for line in worker.stdout if '"done"' in line)
            _ask(worker.stdin, {"id": 2, **trial_request(ModelFacts.of(answer["result"]), attention="odd-asleep")})
            assert any("first call" in line for line in worker.stdout)
            assert worker.poll() is None

            worker.stdin.close()

            assert worker.wait(timeout=60) == 0
        finally:
            worker.kill()


def _ask(stream: IO[str], request: dict[str, Any]) -> None:
    stream.write(json.dumps({"device": "cpu", "uuid": "cpu", **request}) + "\n")
    stream.flush()


def _unanswerable_s(machine: Machine) -> float:
    """Return how long a fresh worker takes to answer what it does not know."""
    runner, began = LocalRunner(machine), time.monotonic()
    try:
        assert runner.run({"op": "no such operation"}, 600)["outcome"] == Outcome.RUNTIME_ERROR
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
        result = runner.run({"op": "no such operation"}, wait_s)
    finally:
        release.join()
        runner.close()

    assert time.monotonic() - began > wait_s
    assert said[0] == "waiting: another advisor measures on cpu-test-waiting"
    assert result["outcome"] == Outcome.RUNTIME_ERROR
    assert "no such operation" in result["reason"]


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
    """Two short rounds that agree say nothing where the CPU sets the pace: ten at least, and up to two seconds of them."""
    rule = Stopping().longer()

    assert not rule.reached([0.06] * 9)
    assert rule.reached([0.06] * 10)
    assert not rule.reached([0.06, 0.045] * 19)
    assert rule.reached([0.06, 0.045] * 20)
    assert not rule.reached([0.25] * 4)
    assert rule.reached([0.25] * 5)
    assert not rule.reached([1.0] * 2)
    assert rule.reached([1.0] * 3)
    assert rule.reached([4.0, 4.4])  # rounds that are long anyway


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
    [(CAUSAL, Forward((64,) * 8, 8), True), (SHAPES / "bert-base.json", Forward((256,) * 128, 64, "hidden"), False)],
    ids=["tiny", "bert-base"],
)
def test_a_gpu_that_waits_for_its_launches_is_seen(model: Path, workload: Forward, waits: bool) -> None:
    """The shipped model leaves an H100 idle most of the time; BERT-base at 64 x 256 does not."""
    runner = LocalRunner(probe.machine(None))
    try:
        source = find_model(str(model)).request
        facts = ModelFacts.of(read_facts(runner, {"source": source, "workload": workload.payload}))
        work = {"workload": workload.payload, "gate_workload": workload.payload}
        found = runner.run({**trial_request(facts, precision="bf16"), "source": source, **work}, 120)
        busy = found["rounds"]["busy"]
        assert (busy < LAUNCH_BOUND_SHARE) == waits, busy
    finally:
        runner.close()


def test_early_stop_is_for_clearly_slower_rounds_that_cost_something() -> None:
    """A trial is stopped early after two rounds that are both too slow, and never where finishing it costs nothing."""
    slow = EARLY_STOP_RATIO * 1.01

    assert _clearly_slower([slow, 2.0], 1.0).startswith("1.5 times slower than the best so far")
    assert _clearly_slower([slow, 1.4], 1.0) == ""
    assert _clearly_slower([slow], 1.0) == ""
    assert _clearly_slower([9.0, 9.0], None) == ""
    assert _clearly_slower([EARLY_STOP_S / 2] * 2, EARLY_STOP_S / 20) == ""


def test_warm_up_ends_when_rounds_settle_or_after_ten() -> None:
    """Warm-up goes on until two rounds in a row agree within 2 % and half a second has passed, at most ten rounds."""
    settling, restless = [2.0, 0.9, 0.6, 0.6, 0.6], [1.0 + number % 2 for number in range(100)]

    assert next(n for n in range(6) if _is_warm(settling[:n])) == 4
    assert next(n for n in range(100) if _is_warm(restless[:n])) == MOST_WARMING == 10
    assert not _is_warm([0.1, 0.1, 0.1, 0.1])
    assert _is_warm([0.1, 0.1, 0.1, 0.1, 0.1])


def test_the_rounds_that_agreed_are_the_first_that_count() -> None:
    """What came before them is thrown away, of every figure."""
    rounds = Rounds([3.0, 1.0, 1.0], [0.3, 0.1, 0.1], [3.0, 1.0, 1.0], [{}, {"n": 1}, {"n": 2}], [])
    rounds.keep(2)

    assert (rounds.wall_s, rounds.gpu_s, rounds.states) == ([1.0, 1.0], [0.1, 0.1], [{"n": 1}, {"n": 2}])
    rounds.keep(0)
    assert rounds.wall_s == []


def test_no_message_holds_a_number_that_json_lacks() -> None:
    """NaN and infinities become null, however deep they lie."""
    message = {"a": float("nan"), "b": [1.5, float("inf"), {"c": -float("inf")}], "d": "text", "e": (1, None)}

    assert _finite(message) == {"a": None, "b": [1.5, None, {"c": None}], "d": "text", "e": [1, None]}
