"""The figures of a loaded configuration's output: the error against the reference, the independence probe, and the layout's.

What measurement.md, D describes, for one session of the worker; the parts are in `advisor.measure.gate_torch`, `reference_torch`
and `layout_torch`. Nothing is judged here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from advisor.knobs import traits_of
from advisor.measure import gate_torch
from advisor.measure.course_torch import course_figures
from advisor.measure.gate_torch import Looked, ids_of
from advisor.measure.layout_torch import look_at_layout
from advisor.measure.messages import Figure, Gate, LayoutAsked, LayoutLooked, Ran, Subject
from advisor.measure.session_torch import Session, runtime_of
from advisor.networks.readback_torch import linears_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.trial import Quality
from advisor.quality.judge import GATE_VERSION, depends_on_batch
from advisor.workloads import Call, Workload


def figures_of(
    session: Session, subject: Subject, gate: Gate, configuration: Configuration
) -> tuple[Quality, dict[str, float]]:
    """Return the figures of the loaded configuration on the gate's sequences, and the seconds that their parts took.

    Raises ValueError where an output is not finite, and where work that trains gets no gradients through its layers: whatever was
    run before, and without a reference too.
    """
    began = time.perf_counter()
    session.give_back(runtime_of(subject))
    workload, tokens = session.sampled(subject)
    reference = _read(gate.path, subject, workload)
    calls = session.calls(subject, workload.under(configuration), configuration, tokens)
    looked = _looked(session, subject, reference)
    probed = gate_torch.to_probe(calls, subject.facts.windows)
    tally, kept = _compared(looked, calls, tokens, reference, gate.default, probed)
    is_text = subject.source.has_tokenizer and subject.facts.is_causal
    quality = tally.quality(text=is_text, reference=gate.reference)
    seconds, found = {"error_s": time.perf_counter() - began}, dict(gate.known)
    if "layout" not in found and not traits_of(configuration).quantises:
        began = time.perf_counter()
        found |= look_at_layout(session, subject, configuration)
        seconds["layout_s"] = time.perf_counter() - began
    if "probed" not in found:
        began = time.perf_counter()
        found |= _probed(session, subject, looked, kept, configuration)
        seconds["probe_s"] = time.perf_counter() - began
    looked.runtime.refuse_blocked(session.model, session.device)
    if reference.get("course") is not None:
        began = time.perf_counter()
        found |= course_figures(session, subject, configuration, reference["course"])
        seconds["course_s"] = time.perf_counter() - began
    figures: dict[str, Any] = {**found, "drawn": subject.source.has_random_weights, "gate": GATE_VERSION}
    return replace(quality, **figures), seconds


def _read(path: str | None, subject: Subject, workload: Workload) -> dict[str, Any]:
    """Return the reference; without one, what the probe needs of it."""
    if path is not None:
        return dict(torch.load(path, weights_only=True))
    return {"values": None, "distances": runtime_of(subject).positions(workload), "deviation": 1.0}


def _looked(session: Session, subject: Subject, reference: Mapping[str, Any]) -> Looked:
    """Return what is looked at, beside a reference."""
    distances, deviation = reference["distances"], reference["deviation"]
    return Looked(session.model, runtime_of(subject), distances, session.device, deviation, session.settings)


def _compared(
    looked: Looked,
    calls: Sequence[Call],
    tokens: Sequence[torch.Tensor],
    reference: Mapping[str, Any],
    default: Ran | None,
    kept: Sequence[Call],
) -> tuple[Any, list[tuple[Call, list[torch.Tensor]]]]:
    """Run the gate's calls; return their tally against the reference, and the values of the calls in `kept`."""
    noise = 2 * default.quality.rms * looked.deviation if default is not None else 0.0
    tally = looked.runtime.tally(looked.distances, noise)
    held = []
    for call in calls:
        values = looked.values(call)
        if any(call is one for one in kept):
            held.append((call, values))
        for number, found in zip(call.sequences, values, strict=True):
            truth = (reference["values"] or {}).get(str(number))
            tally.add(tokens[number], None if truth is None else truth.to(looked.device), found)
    return tally, held


def _probed(
    session: Session,
    subject: Subject,
    looked: Looked,
    calls: Sequence[tuple[Call, list[torch.Tensor]]],
    configuration: Configuration,
) -> dict[str, Figure]:
    """Return what the independence probe finds; nothing for arithmetic that depends on the whole batch by design."""
    dependent = depends_on_batch(configuration) or _brought_dependence(session.model)
    if dependent:
        return {"probed": f"not probed: {', '.join(dependent)} depends on the whole batch by design"}
    session.stage("independence probe")
    return gate_torch.probe(looked, calls, ids_of(session.model, subject))


def _brought_dependence(model: Any) -> tuple[str, ...]:
    """Return what of a checkpoint's own quantisation depends on the whole batch.

    LLM.int8's outlier columns do, and the scale of torchao's inputs where a whole tensor of them shares one.
    """
    kinds = linears_of(model)
    is_int8 = any(name.startswith("Linear8bitLt:") and not name.endswith(":0.0") for name in kinds)
    shares_scale = any(name.endswith(":dynamic-tensor") for name in kinds)
    found = {"the checkpoint's LLM.int8": is_int8, "the scale of the checkpoint's inputs": shares_scale}
    return tuple(name for name, depends in found.items() if depends)


def layout_of(session: Session, request: LayoutAsked) -> LayoutLooked:
    """Look at a layout without quantisation: for a choice that quantises, whose own weights can't be widened."""
    configuration = request.configuration
    session.load(request, configuration)
    with runtime_of(request).mode():
        found = look_at_layout(session, request, configuration)
        workload, tokens = session.sampled(request)
        looked = _looked(session, request, _read(request.reference, request, workload))
        calls = session.calls(request, workload.under(configuration), configuration, tokens)
        chosen = gate_torch.to_probe(calls, request.facts.windows)
        found |= _probed(session, request, looked, [(call, looked.values(call)) for call in chosen], configuration)
    return LayoutLooked(figures=found)
