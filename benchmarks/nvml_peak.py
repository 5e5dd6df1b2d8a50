"""What a process has on a GPU beside torch's memory, and how near the peak that is told comes to what NVML sees.

    python benchmarks/nvml_peak.py [--attention sdpa] [--gib 4]

One JSON object a line: the CUDA context alone, with cuBLAS, then a decoder of about so many GiB, run while NVML is asked for the
device's memory all the time. Nobody else may use the GPU meanwhile. The first two are what `LEAST_BESIDE_BYTES` (search/space.py)
and `ASSUMED_BESIDE_BYTES` (measure/peak_torch.py) are to be set by; the last must be within 3 %.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from advisor.machine.device import Gauges
from advisor.machine.probe import machine
from advisor.measure.peak_torch import note_others, peak_of, reset_peak

DEVICE = "cuda:0"


def told(what: str, **figures: Any) -> None:
    """Print a line."""
    print(json.dumps({"what": what, **figures}))


def watched(gauges: Gauges, model: Any, ids: torch.Tensor) -> int:
    """Run a model three times and return the most bytes that NVML saw used on the device meanwhile."""
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            most[0] = max(most[0], gauges.used_bytes() or 0)

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(3):
        model(ids, logits_to_keep=1)
    torch.cuda.synchronize()
    stop.set()
    thread.join()
    return most[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Memory beside torch's, and the peak against NVML's.")
    parser.add_argument("--attention", default="sdpa", help="transformers' implementation of attention")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the weights, about")
    options = parser.parse_args()
    here = machine("cuda")
    with Gauges(here.uuid) as gauges, torch.inference_mode():
        before = gauges.used_bytes()
        if before is None:
            raise SystemExit("NVML does not say how much memory is used on this device")
        note_others(here.uuid)

        def beside() -> int:
            torch.cuda.synchronize()
            return (gauges.used_bytes() or 0) - before - torch.cuda.memory_reserved()

        torch.ones(1, device=DEVICE)
        told("context", device=here.environment.device_name, beside=beside(), own=gauges.own_bytes())
        square = torch.ones(1024, 1024, device=DEVICE, dtype=torch.bfloat16)
        square @ square
        told("context and cuBLAS", beside=beside())
        del square
        layers = max(1, round(options.gib * 2**30 / 2 / (12 * 4096**2)))
        config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, vocab_size=32000)
        config._attn_implementation = options.attention
        with torch.device(DEVICE):
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
        ids = torch.randint(0, 32000, (8, 2048), device=DEVICE)
        model(ids, logits_to_keep=1)
        reset_peak(DEVICE)
        seen = watched(gauges, model, ids) - before
        peak = peak_of(DEVICE, here.uuid)
        told("a decoder", attention=options.attention, seen=seen, ratio=peak.total / seen, **peak.told)


if __name__ == "__main__":
    main()
