"""What really ran: one profiled step, and what is read back of the loaded model. Loaded by the worker alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from advisor.knobs import KNOBS, Batching, Reading, choice_of, effective_choices
from advisor.measure.messages import Subject
from advisor.measure.session_torch import Session, runtime_of, synchronize
from advisor.networks import readback_torch, switches_torch
from advisor.nouns.configuration import Configuration, stated
from advisor.workloads import Call

#: What torch names the regions that it compiled in a profile, each as it is entered.
_COMPILED = "Torch-Compiled Region"


class Profiled(NamedTuple):
    """What a profiled call launched: the names of its operators and kernels, and the seconds its kernels took together.

    regions: how many times it entered what torch compiled.
    """

    names: list[str]
    kernel_s: float
    regions: int = 0


def profiled(session: Session, call: Call, subject: Subject, *, kernels: bool = True) -> Profiled:
    """Run one call under the profiler and return what it launched. kernels: whether a GPU's are looked at."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kernels and session.device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        runtime_of(subject).run(session.model, call, session.device)
        synchronize(session.device)
    return launched_of(profile)


def launched_of(profile: torch.profiler.profile) -> Profiled:
    """Return what a profile saw launched.

    By the events as they were recorded: `key_averages` builds a tree of them first, which took 17 s of the 200,000 that torch's
    fused encoder layers launch for 256 sequences.
    """
    assert profile.profiler is not None
    recorded = profile.profiler.kineto_results
    assert recorded is not None
    events = [event for event in recorded.events() if not _is(event, "is_hidden_event")]
    # What a compiler names a region of kernels has their seconds once more.
    on_gpu = (e for e in events if e.device_type().name == "CUDA" and not _is(e, "is_user_annotation"))
    kernel_s = sum(event.duration_ns() for event in on_gpu) / 1e9
    on_cpu = (event for event in events if event.device_type().name == "CPU")
    regions = sum(event.name().startswith(_COMPILED) for event in on_cpu)
    return Profiled(sorted({event.name()[:200] for event in events}), kernel_s, regions)


def _is(event: Any, question: str) -> bool:
    """Ask a recorded event; an older torch's do not know every question."""
    return bool(getattr(event, question, lambda: False)())


def operators_uncompiled(session: Session, call: Call, subject: Subject) -> list[str]:
    """Return the operators of a step with nothing compiled: a compiler's own kernels hide by what they were made of.

    Not a GPU's kernels: the operators that launch them say as much. All else is as it was asked for: without autocast a step has
    other kernels, and one whose layers are not computed again may not fit.
    """
    with session.uncompiled():
        return profiled(session, call, subject, kernels=False).names


def picked_by_torch(session: Session, call: Call, subject: Subject, *, kernels: bool = True) -> list[str]:
    """Return the operators of a step with all of sdpa's kernels allowed, where a choice allowed only some; else none.

    A pinned kernel that is the one torch picks by itself is no configuration of its own. What was compiled with a kernel has it
    for good, whatever is allowed: torch is asked uncompiled.
    """
    allowed = switches_torch.allowed_kernels()
    if len(allowed) == 4:
        return []
    switches_torch.allow_kernels(switches_torch.KERNELS)
    try:
        with session.uncompiled():
            return profiled(session, call, subject, kernels=kernels).names
    finally:
        switches_torch.allow_kernels(allowed)


def read_effective(
    session: Session,
    calls: Sequence[Call],
    subject: Subject,
    configuration: Configuration,
    *,
    kernels: bool = True,
) -> Reading:
    """Profile one step and read what ran: attention of all sub-configurations, dtypes, linear classes, kernels.

    What was compiled may hide what ran: the same step is looked at uncompiled where something is not proven without, for that
    may compile something else anew.
    """
    session.stage("proof")
    call, facts, batching = calls[0], subject.facts, session.batching(subject, configuration)
    runtime = runtime_of(subject)
    launched = profiled(session, call, subject, kernels=kernels)
    reading = Reading(
        attention=readback_torch.attention_of(session.model),
        dtypes=readback_torch.dtypes_of(session.model),
        linears=readback_torch.linears_of(session.model),
        operators=launched.names,
        inputs=inputs_of(call.arguments, batching, by_length=_is_by_length(runtime.in_order(calls))),
        float32_matmul=torch.get_float32_matmul_precision(),
        weight_bytes=readback_torch.weight_bytes_of(session.model),
        sdp_kernels=switches_torch.allowed_kernels(),
        flash_impl=switches_torch.flash_impl(),
        automatic=picked_by_torch(session, call, subject, kernels=kernels),
        sequences=max(len(c.sequences) for c in calls),
        prequantized=bool(facts.prequantized),
        one_way=not (facts.supports_sdpa or facts.supports_flash or facts.supports_flex),
        kernel_s=launched.kernel_s,
        compiled_regions=launched.regions,
        compile_limited=switches_torch.is_limited(),
        shapes=runtime.shapes(calls),
        own={name: knob.read(session.model, call.arguments) for name, knob in KNOBS.items() if knob.read is not None},
    )
    effective = Configuration.of(effective_choices(reading, subject.workload))
    if not launched.regions or not unproven(configuration, effective, reading):
        return reading
    return replace(reading, uncompiled=operators_uncompiled(session, call, subject))


def _is_by_length(groups: Sequence[Sequence[Call]]) -> bool:
    """Whether sequences are longest first in each group of calls, and not as they were given."""
    orders = [[number for call in group for number in call.sequences] for group in groups]
    lengths = [[n for call in group for n in call.lengths] for group in groups]
    moved = any(order != sorted(order) for order in orders)
    return moved and all(each == sorted(each, reverse=True) for each in lengths)


def unproven(requested: Configuration, effective: Configuration, reading: Reading) -> str:
    """Return "" or what was asked for and did not run, with the evidence (rule E1)."""
    texts = []
    for knob, name in requested.over(stated([requested, effective])):
        proof = choice_of(knob, name).proof(reading)
        if proof is None and effective[knob] != name:
            proof = f"{effective[knob]} ran"
        if proof:
            texts.append(f"asked for {knob} {name}, but {proof}")
    return "; ".join(texts)


def inputs_of(call: Mapping[str, Any], batching: Batching, *, by_length: bool) -> dict[str, Any]:
    """Return how the model is called, as the proof reads it; looks at the tensors, not at the request."""
    positions, mask = call.get("position_ids"), call.get("attention_mask")
    restarting = positions is not None and _is_packed(positions, mask)
    zeros = mask is not None and mask.dim() == 2 and bool((mask == 0).any())
    return {
        "rows": int(call["input_ids"].shape[0]),
        "columns": int(call["input_ids"].shape[1]),
        "mask": None if mask is None else f"{mask.dim()}d-{str(mask.dtype).removeprefix('torch.')}",
        "mask_zeros": zeros,
        "restarting_positions": bool(restarting),
        "cache": bool(call.get("use_cache", True)),
        "cu_seq_lens": "cu_seq_lens_q" in call,
        "by_length": by_length,
        "lacks_mask": bool(restarting and mask is None and not batching.causal and not batching.apart),
        "taught_across": bool(restarting) and _has_labels_at_starts(call),
        "from_first_position": positions is None or int(positions.min()) >= batching.first_position,
    }


def _has_labels_at_starts(call: Mapping[str, Any]) -> bool:
    """Whether a first token within a packed row, which nothing of its sequence predicts, has a label."""
    labels, positions = call.get("labels"), call["position_ids"]
    if labels is None:
        return False
    starts = positions[:, 1:] <= positions[:, :-1]
    return bool((labels[:, 1:][starts] >= 0).any())


def _is_packed(positions: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether positions fail to rise somewhere inside a row, pads aside: then several sequences share that row."""
    falls = positions[:, 1:] <= positions[:, :-1]
    if mask is not None and mask.dim() == 2 and mask.shape == positions.shape:
        falls = falls & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(falls.any())
