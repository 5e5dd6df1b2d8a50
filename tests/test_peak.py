"""The peak of memory: what it is made of, who is believed about a process's share of a GPU, and what NVML sees meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_models import LLAMA_8B

from advisor.knobs import Situation, baseline_choices
from advisor.measure.peak_torch import beside_torch, peak_of, reset_peak
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.metrics import ASSUMED_BESIDE_BYTES
from advisor.nouns.objective import Objective
from advisor.search.cost import predicted_bytes
from advisor.search.space import LEAST_BESIDE_BYTES, MEMORY_SHARE, build_space
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "environments"
GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("reserved", "own", "used", "before", "beside", "told_by"),
    [
        (4 * GIB, 4 * GIB + 600 * MIB, 9 * GIB, 4 * GIB, 600 * MIB, "NVML's list of processes"),
        (4 * GIB, None, 9 * GIB, 4 * GIB + 500 * MIB, 524 * MIB, "what NVML sees used, less what was before"),
        (4 * GIB, 300 * MIB, 9 * GIB, 4 * GIB + 500 * MIB, 524 * MIB, "what NVML sees used, less what was before"),
        (4 * GIB, None, 9 * GIB, 8 * GIB, ASSUMED_BESIDE_BYTES, "assumed"),
        (4 * GIB, None, 9 * GIB, None, ASSUMED_BESIDE_BYTES, "assumed"),
        (4 * GIB, None, None, None, ASSUMED_BESIDE_BYTES, "assumed"),
    ],
    ids=["listed", "not listed", "another's number", "others went", "not looked before", "no NVML"],
)
def test_what_a_process_has_beside_torch(
    reserved: int, own: int | None, used: int | None, before: int | None, beside: int, told_by: str
) -> None:
    """The list of processes is believed where it can be right, then the difference of what is used, then what is assumed."""
    assert beside_torch(reserved, own, used, before) == (beside, told_by)


def test_the_peak_of_a_cpu_is_what_is_resident() -> None:
    """It rises with what is touched, falls back to that when it is counted anew, and has nothing beside it."""
    reset_peak("cpu")
    before = peak_of("cpu", None)
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    after = peak_of("cpu", None)
    del block

    assert after.total - before.total > 48 * MIB
    assert after.told == {**after.told, "beside": 0, "reserved": after.total, "told_by": "VmHWM"}
    json.dumps(after.told)


@pytest.mark.parametrize("name", ["h200", "rtx4090", "t4", "cpu"])
def test_what_a_process_has_beside_the_weights_must_fit_too(name: str) -> None:
    """M1 leaves room on a GPU for a context: what fits by its tensors alone, to the byte, is refused there, and not on a CPU."""
    environment, work = Environment.of(json.loads((GOLDEN / f"{name}.json").read_text())), Forward((64, 32), 2)
    facts = replace(LLAMA_8B, checkpoint_dtype="float32", parameter_bytes=4 * LLAMA_8B.parameters)
    default = Configuration.of(baseline_choices(facts, work))
    needed = predicted_bytes(Situation(default, work, environment, facts))

    def fits(bytes_allowed: float) -> bool:
        space = build_space(facts, work, environment, Objective(max_memory_bytes=int(bytes_allowed)), 10**12)
        return default in space.admissible

    assert MEMORY_SHARE < 1
    assert fits(needed + LEAST_BESIDE_BYTES + 1)
    assert fits(needed + 1) is not environment.is_cuda


#: Run by itself, so that no other test's memory is this process's: asks NVML for the device's memory all the time meanwhile.
WATCHED = """
import json, sys, threading, time
import pynvml, torch
from transformers import LlamaConfig, LlamaForCausalLM
from advisor.machine import device
from advisor.measure.peak_torch import note_others, peak_of, reset_peak

uuid = sys.argv[1]
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
note_others(uuid)
waste = torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda")  # of an earlier trial: it must not count
del waste
config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, vocab_size=32000)
with torch.device("cuda"):
    model = LlamaForCausalLM(config).bfloat16().eval()
ids = torch.randint(0, 32000, (16, 1024), device="cuda")
with torch.inference_mode():
    model(ids, logits_to_keep=1)
    torch.cuda.synchronize()
    reset_peak("cuda:0")
    seen, stop = [0], threading.Event()
    def watch():
        while not stop.is_set():
            seen[0] = max(seen[0], pynvml.nvmlDeviceGetMemoryInfo(handle).used - before)
    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(3):
        model(ids, logits_to_keep=1)
    torch.cuda.synchronize()
    stop.set()
    thread.join()
peak = peak_of("cuda:0", uuid)
print(json.dumps({"peak": peak.told, "seen": seen[0]}))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_is_what_nvml_sees() -> None:
    """Within 3 % of what NVML saw the device take while the model ran, on a device that nobody else came to."""
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, uuid],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])

    assert found["peak"]["told_by"] != "assumed"
    assert found["peak"]["total"] == pytest.approx(found["seen"], rel=0.03), found
    assert LEAST_BESIDE_BYTES < found["peak"]["beside"] < 2 * ASSUMED_BESIDE_BYTES, found
