"""Workers are forked from one warm parent, die with who asked for them, and are spawned where forking is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from advisor.machine import probe
from advisor.machine.leftovers import started
from advisor.measure import launch
from advisor.measure.messages import Ceilings, CeilingsAsked, FactsAsked, FactsRead, Failure
from advisor.measure.runner import LocalRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.trial import Outcome
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parents[1]

#: What a worker is asked where only its process matters.
FACTS = FactsAsked(source=find_model(str(ROOT / "tests" / "models" / "causal")).files, workload=Forward((8,), 1))

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


@pytest.fixture
def runner() -> Iterator[LocalRunner]:
    """Give a runner on this machine's CPU, with what it heard in `runner.heard`."""
    heard: list[Any] = []
    runner = LocalRunner(replace(probe.machine("cpu"), uuid="cpu-test-launch"), heard.append)
    runner.heard = heard  # type: ignore[attr-defined]
    yield runner
    runner.close()


def pids(runner: LocalRunner) -> list[int]:
    """Return the workers that said they were ready."""
    return [each["pid"] for each in runner.heard if each["event"] == "ready"]  # type: ignore[attr-defined]


def failure(runner: LocalRunner, timeout_s: float = 60) -> Failure:
    """Ask for facts that can't be had, and return what came of it."""
    answer = runner.run(FACTS, timeout_s)
    assert isinstance(answer, Failure)
    return answer


def parent_of(pid: int) -> int:
    """Return the parent's pid of a process (proc(5), field 4)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process ends within the time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not started(pid):
            return True
        time.sleep(0.02)
    return False


@on_linux
def test_every_fresh_process_is_another_fork_of_one_parent(runner: LocalRunner) -> None:
    """A fresh process costs a fork, not an import."""
    parents = set()
    for _ in range(3):
        assert isinstance(runner.run(FACTS, 60), FactsRead)
        parents.add(parent_of(pids(runner)[-1]))
        runner.restart()
    assert len(set(pids(runner))) == 3
    assert len(parents) == 1
    assert parents != {os.getpid()}


@on_linux
def test_a_fresh_process_does_not_import_again(runner: LocalRunner) -> None:
    """What a fresh process takes is less than importing torch alone does here."""
    runner.run(FACTS, 60)
    runner.restart()
    began = time.monotonic()
    runner.run(FACTS, 60)
    forked_s, began = time.monotonic() - began, time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert forked_s < time.monotonic() - began


@on_linux
def test_the_parent_has_one_thread_and_holds_neither_lock_nor_pipes(runner: LocalRunner) -> None:
    """Threads do not survive a fork; a lock that the parent held would outlive its tune."""
    runner.run(FACTS, 60)
    parent = parent_of(pids(runner)[-1])
    assert len(list(Path(f"/proc/{parent}/task").iterdir())) == 1
    held = [str(each.readlink()) for each in Path(f"/proc/{parent}/fd").iterdir()]
    assert not [name for name in held if name.endswith(".lock")]
    before = len(held)
    for _ in range(3):
        runner.restart()
        runner.run(FACTS, 60)
    assert len(list(Path(f"/proc/{parent}/fd").iterdir())) <= before


@on_linux
def test_a_killed_worker_is_an_outcome_and_the_next_is_forked_again(runner: LocalRunner) -> None:
    """Its status is the signal's, as of any process."""
    runner.run(FACTS, 60)
    assert runner._process is not None
    killed = runner._process.pid
    os.kill(killed, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    assert runner._process.wait(10) == -signal.SIGKILL
    assert isinstance(runner.run(FACTS, 60), FactsRead)
    assert pids(runner)[-1] != killed


@on_linux
def test_a_killed_parent_takes_its_workers_along_and_another_is_started(runner: LocalRunner) -> None:
    """Nobody is left on the device without anyone who waits for it."""
    runner.run(FACTS, 60)
    worker = pids(runner)[-1]
    os.kill(parent_of(worker), signal.SIGKILL)
    assert gone(worker)
    assert isinstance(runner.run(FACTS, 60), FactsRead)
    assert pids(runner)[-1] != worker


@on_linux
def test_a_worker_whose_parent_is_killed_has_run_out_of_memory(runner: LocalRunner) -> None:
    """Nobody saw how it ended: it is an outcome all the same."""
    runner.run(FACTS, 60)
    worker = pids(runner)[-1]
    os.kill(worker, signal.SIGSTOP)
    os.kill(parent_of(worker), signal.SIGKILL)
    assert failure(runner).outcome in (Outcome.OUT_OF_MEMORY, Outcome.RUNTIME_ERROR)


@pytest.mark.slow
@on_linux
def test_what_is_not_used_any_more_is_ended(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another environment needs another import, and two of them need not stay."""
    runner.run(FACTS, 60)
    first = parent_of(pids(runner)[-1])
    runner.close()
    monkeypatch.setenv("ADVISOR_OF_ANOTHER_TEST", "1")
    runner.run(FACTS, 60)
    assert parent_of(pids(runner)[-1]) != first
    assert gone(first)


@pytest.mark.slow
@on_linux
def test_a_killed_tune_leaves_neither_parent_nor_worker() -> None:
    """Kill -9 of who asks."""
    code = (
        "from advisor.machine import probe; from advisor.measure.runner import LocalRunner\n"
        "runner = LocalRunner(probe.machine('cpu'), lambda m: print(m['pid'], flush=True) if 'pid' in m else None)\n"
        "from advisor.measure.messages import CeilingsAsked\nrunner.run(CeilingsAsked(), 60)\ninput()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tune = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tune.stdout is not None
    worker = int(tune.stdout.readline())
    parent = parent_of(worker)
    tune.kill()
    tune.communicate()
    assert gone(worker)
    assert gone(parent)


@pytest.mark.slow
def test_who_asks_for_it_gets_processes_of_their_own(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADVISOR_START=spawn."""
    monkeypatch.setenv(launch.START, "spawn")
    runner.run(FACTS, 60)
    assert parent_of(pids(runner)[-1]) == os.getpid()


@pytest.mark.slow
@on_linux
def test_a_refused_fork_is_said_and_spawned(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some libraries start threads when they are imported: such a process must not be forked."""
    # A thread that is started while torch is imported, as some libraries do: such a process must not be forked.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'advisor.measure.forkserver' in ' '.join(sys.orig_argv):\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}")
    runner.run(FACTS, 60)
    runner.restart()
    runner.run(FACTS, 60)
    stages = [each["stage"] for each in runner.heard if "every worker" in each.get("stage", "")]  # type: ignore[attr-defined]
    assert "started threads: Thread-1" in stages[0]
    assert {parent_of(pid) for pid in pids(runner)[-1:]} == {os.getpid()}


@pytest.mark.slow
def test_what_can_not_be_imported_is_the_workers_to_say(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The warm parent fails first; the worker that is spawned then says why."""
    (tmp_path / "transformers.py").write_text("raise ImportError('made to fail')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}")
    answer = failure(runner)
    assert answer.outcome is Outcome.LOAD_FAILED
    assert "made to fail" in answer.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_twenty_forks_each_run_a_product_on_the_gpu() -> None:
    """A parent that had called the driver could not be forked."""
    runner = LocalRunner(probe.machine(None))
    try:
        for _ in range(20):
            answer = runner.run(CeilingsAsked(), 120)
            assert isinstance(answer, Ceilings)
            assert answer.reached["matmul_bf16_per_s"] > 0
            assert isinstance(runner._process, launch.Forked)
            runner.restart()
    finally:
        runner.close()


@pytest.mark.slow
@on_linux
def test_a_start_that_is_interrupted_confuses_nobody(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker whose start was not waited for ends by itself, and the next one is not taken for it."""
    runner.run(FACTS, 60)
    runner.restart()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launch.WarmParent, "_read_until", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch._forked(launch._parents[-1], dict(os.environ), 2, [])
    for _ in range(2):
        assert isinstance(runner.run(FACTS, 60), FactsRead)
        assert runner._process is not None
        assert runner._process.pid == pids(runner)[-1]
        assert runner._process.poll() is None
        runner.restart()
    assert gone_all(launch._parents[-1])


def gone_all(warm: launch.WarmParent, within_s: float = 20.0) -> bool:
    """Whether all workers of a parent end within the time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if warm.is_idle:
            return True
        time.sleep(0.05)
    return False


@on_linux
def test_threads_with_other_environments_start_and_end_parents_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a parent idle ends it; another thread may be doing just that, and each gets one of its own environment."""
    kept, mine = launch._parents[:], list[launch.WarmParent]()
    monkeypatch.setattr(launch, "_parents", mine)
    environments = [{**launch.shared_environment(), "ADVISOR_OF_ANOTHER_TEST": str(number)} for number in range(4)]

    def ask(number: int) -> None:
        for place in range(3):
            environment = environments[(number + place) % len(environments)]
            found = launch.warm_up(environment)
            assert found is not None
            assert found.environment == environment

    try:
        with ThreadPoolExecutor(len(environments)) as pool:
            list(pool.map(ask, range(len(environments))))
        assert mine, "none is left"
        assert not set(map(id, kept)) & set(map(id, mine))
    finally:
        launch.cool_down()


@pytest.mark.slow
@on_linux
def test_an_import_counts_into_the_deadline(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an import longer than for what is asked; it goes on, and who asks again finds it done."""
    monkeypatch.setenv("ADVISOR_OF_ANOTHER_TEST", "deadline")
    began = time.monotonic()
    answer = failure(runner, 0.2)

    assert answer.outcome is Outcome.TIMEOUT
    assert "were not imported" in answer.reason
    assert time.monotonic() - began < 2
    assert isinstance(runner.run(FACTS, 120), FactsRead)


def test_what_no_worker_needs_is_not_imported(tmp_path: Path) -> None:
    """scikit-learn and scipy, which transformers imports where they are, take seconds; what comes later finds them there.

    What every worker that loads a model would compile anew, the patterns that rename weights, is there.
    """
    for name in ("sklearn", "scipy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('it was imported')")
    code = """
import sys
from advisor.measure import forkserver
forkserver._import_all()
import transformers.generation, transformers.loss.loss_utils
from transformers.utils import is_scipy_available, is_sklearn_available
print("sklearn" in sys.modules, "scipy" in sys.modules, is_sklearn_available(), is_scipy_available())
from transformers import conversion_mapping
print(bool(conversion_mapping._checkpoint_conversion_mapping_cache))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["False", "False", "True", "True", "True"], done.stderr


def asked_at_import(tmp_path: Path, capabilities: list[tuple[int, int] | None]) -> str:
    """Return what a module hears as it is imported that asks for the compute capability, on GPUs of these; and what later.

    It asks as torchao does: torch itself, and torch's own question whether Triton can be used there.
    """
    (tmp_path / "asks.py").write_text(
        "from torch._dynamo.device_interface import CudaInterface\n"
        "from torch.cuda import get_device_capability\n"
        "def asked(question):\n"
        "    try:\n"
        "        return question()\n"
        "    except Exception as error:\n"
        "        return type(error).__name__\n"
        "def ask(*device):\n"
        "    properties = asked(lambda: CudaInterface.Worker.get_device_properties(*device))\n"
        "    return [\n"
        "        asked(lambda: get_device_capability(device=0)),\n"
        "        asked(lambda: properties.major),\n"
        "        asked(lambda: properties.total_memory),\n"
        "    ]\n"
        "at_import = ask()\n"
    )
    code = f"""
from types import SimpleNamespace
import torch
from advisor.measure import forkserver
forkserver.gpus = lambda: ([SimpleNamespace(compute_capability=each) for each in {capabilities}], "")
torch.cuda.device_count = lambda: {len(capabilities)}
with forkserver._capability_from_nvml():
    import asks
own = {{getattr(torch.cuda, name).__module__ for name in ("get_device_capability", "get_device_properties", "current_device")}}
print(asks.at_import, asks.ask(0), *own)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there torch answers too, and initialises CUDA")
def test_what_asks_for_the_capability_at_import_is_answered_by_nvml(tmp_path: Path) -> None:
    """Torch would initialise CUDA, and then nothing can be forked; later, and where the GPUs differ, torch answers itself."""
    refused = asked_at_import(tmp_path, [])
    assert "(" not in refused, "without a GPU it is torch that says so"
    assert refused.endswith(" torch.cuda")
    own = refused.split("'")[1]
    assert asked_at_import(tmp_path, [(9, 0), (9, 0)]) == f"[(9, 0), 9, '{own}'] [{refused.split(' [')[1]}"
    assert asked_at_import(tmp_path, [(9, 0), (8, 0)]) == refused
    assert asked_at_import(tmp_path, [None]) == refused
