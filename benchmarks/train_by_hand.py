"""Time steps of training by hand, without advisor's search, worker or gate: what its answers are held beside.

    python benchmarks/train_by_hand.py OUT.json [--only NAME …]

Plain transformers, peft and Liger: a loop of forward, backward, clipping, optimizer. The lengths are those that `advisor tune`
makes of the same flags. Each variant is a line of VARIANTS; it is run for a pass that does not count and two that do.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from advisor.workloads.quantiles import quantile_lengths

SHAPES = Path(__file__).parent / "shapes"

#: By workload: config.json, longest sequence, padding, sequences a step, steps, whether adapters are trained.
WORK = {
    "1b-8x2048": ("llama-3.2-1b", 2048, 0.3, 8, 4, False),
    "1b-4x8192": ("llama-3.2-1b", 8192, 0.0, 4, 2, False),
    "8b-lora-4x2048": ("llama-3-8b", 2048, 0.3, 4, 4, True),
}


def ligers(**parts: bool) -> Callable[[Any], None]:
    """Return what puts these of Liger's kernels into a model, and no others."""

    def apply(model: Any) -> None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance  # type: ignore[import-not-found]

        kernels = {"rope": False, "rms_norm": False, "swiglu": False, "cross_entropy": False, **parts}
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        _apply_liger_kernel_to_instance(model=base, **kernels)

    return apply


def layers(**how: Any) -> Callable[[Any], None]:
    """Return what compiles a model's layers."""

    def apply(model: Any) -> None:
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(**how)

    return apply


def loss(**how: Any) -> Callable[[Any], None]:
    """Return what compiles a model's loss, from its logits on."""

    def apply(model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.loss_function = torch.compile(base.loss_function, **how)

    return apply


def whole(**how: Any) -> Callable[[Any], None]:
    """Return what compiles a whole model."""
    return lambda model: model.compile(**how)


ALL = ligers(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
PARTS = ligers(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=False)
LOSS = ligers(fused_linear_cross_entropy=True)

#: By name: attention, packed, autocast, what is done to the model.
VARIANTS: dict[str, tuple[str, bool, bool, list[Callable[[Any], None]]]] = {
    "sdpa padded": ("sdpa", False, False, []),
    "flash packed liger": ("flash_attention_2", True, False, [ALL]),
    "flash packed layers": ("flash_attention_2", True, False, [layers()]),
    "flash packed layers, loss": ("flash_attention_2", True, False, [layers(), loss()]),
    "flash packed layers dynamic, loss": ("flash_attention_2", True, False, [layers(dynamic=True), loss()]),
    "flash4 packed liger": ("flash_attention_4", True, False, [ALL]),
    "flash4 packed liger, loss": ("flash_attention_4", True, False, [PARTS, loss()]),
    "flash packed liger, loss": ("flash_attention_2", True, False, [PARTS, loss()]),
    "flash packed loss+layers": ("flash_attention_2", True, False, [LOSS, layers()]),
    "flash packed loss+layers dynamic": ("flash_attention_2", True, False, [LOSS, layers(dynamic=True)]),
    "flash packed liger whole": ("flash_attention_2", True, False, [ALL, whole()]),
    "flash packed whole": ("flash_attention_2", True, False, [whole()]),
    "flash packed whole dynamic": ("flash_attention_2", True, False, [whole(dynamic=True)]),
    "flash packed autocast layers, loss": ("flash_attention_2", True, True, [layers(), loss()]),
    "flash packed autocast liger": ("flash_attention_2", True, True, [ALL]),
    "flash packed autocast loss+layers": ("flash_attention_2", True, True, [LOSS, layers()]),
    "flash packed autocast whole": ("flash_attention_2", True, True, [whole()]),
}


def loaded(config: str, attention: str, *, adapters: bool) -> Any:
    """Return a model with drawn weights in bf16, in training."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        settings = AutoConfig.from_pretrained(str(SHAPES / f"{config}.json"))
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(settings), dtype=torch.bfloat16, attn_implementation=attention
        )
    if adapters:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM"))
    return model.train()


def call_of(sequences: list[torch.Tensor], *, packed: bool) -> dict[str, Any]:
    """Return the arguments of a step, on the CPU."""
    if packed:
        ends = torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0).to(torch.int32)
        ids = torch.cat(sequences)[None]
        labels = ids.clone()
        labels[0, ends[:-1].long()] = -100
        longest = max(len(s) for s in sequences)
        positions = torch.cat([torch.arange(len(s)) for s in sequences])[None]
        more = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return {"input_ids": ids, "position_ids": positions, "labels": labels, "use_cache": False, **more}
    longest = max(len(s) for s in sequences)
    ids, labels = (torch.full((len(sequences), longest), fill) for fill in (0, -100))
    mask = torch.zeros_like(ids)
    for row, s in enumerate(sequences):
        ids[row, : len(s)] = s
        labels[row, 1 : len(s)] = s[1:]
        mask[row, : len(s)] = 1
    call = {"input_ids": ids, "labels": labels, "use_cache": False}
    return call if bool(mask.all()) else {**call, "attention_mask": mask}


def print_kernels(one_pass: Callable[[], None], steps: int) -> None:
    """Print what the kernels of a pass take, in ms a step, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one_pass()
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    print(f"    {sum(row.self_device_time_total for row in rows) / 1000 / steps:9.2f} ms of kernels a step")
    for row in rows[:28]:
        print(f"    {row.self_device_time_total / 1000 / steps:9.2f} ms {row.count / steps:6.0f} x {row.key[:150]}")


def timed(work: str, variant: str, *, repeated: bool, profiled: bool) -> dict[str, Any]:
    """Run a variant and return its seconds a step, useful tokens a second and peak of memory.

    repeated: the first step alone. profiled: print what its kernels take, too.
    """
    config, longest, padding, batch, steps, adapters = WORK[work]
    attention, packed, autocast, changes = VARIANTS[variant]
    began = time.perf_counter()
    lengths = quantile_lengths(longest, padding, batch, steps)[: batch if repeated else None]
    steps = len(lengths) // batch
    model = loaded(config, attention, adapters=adapters)
    for change in changes:
        change(model)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(16, 128000, (n,), generator=generator) for n in lengths]
    calls = [call_of(sequences[i : i + batch], packed=packed) for i in range(0, len(sequences), batch)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)

    def one_pass() -> None:
        for call in calls:
            arguments = {k: v.cuda() if torch.is_tensor(v) else v for k, v in call.items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                value = model(**arguments).loss
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            float(value.detach())
        torch.cuda.synchronize()

    passes = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        one_pass()
        passes.append(time.perf_counter() - start)
    pass_s = median(passes[2:])
    if profiled:
        print_kernels(one_pass, steps)
    return {
        "step_s": pass_s / steps,
        "tokens_per_s": sum(lengths) / pass_s,
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30,
        "took_s": time.perf_counter() - began,
    }


def main() -> None:
    """Time what is asked for, each variant of each workload, and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", nargs="*", default=[*WORK])
    parser.add_argument("--only", nargs="*", default=[*VARIANTS])
    parser.add_argument("--repeated", action="store_true", help="the first step again and again: one shape")
    parser.add_argument("--profiled", action="store_true", help="print what the kernels of each take, too")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for work in options.work:
        for variant in options.only:
            torch.cuda.reset_peak_memory_stats()
            try:
                result = timed(work, variant, repeated=options.repeated, profiled=options.profiled)
            except Exception as error:  # noqa: BLE001  (a variant that fails is said, and the others go on)
                traceback.print_exc()
                result = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            gc.collect()
            torch.cuda.empty_cache()
            torch._dynamo.reset()
            found.setdefault(work, {})[variant] = result
            print(work, variant, {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}, flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
