"""Whether a configuration's layout keeps sequences what they are alone: its own calls, looked at in fp32."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from advisor.knobs import choices_of, reference_choices, traits_of
from advisor.measure import fp32_torch, gate_torch
from advisor.measure.gate_torch import Looked, ids_of
from advisor.measure.messages import Figure, Subject
from advisor.measure.reference_torch import plain_attention
from advisor.measure.session_torch import Session, loaded, runtime_of
from advisor.networks.load_torch import statements
from advisor.networks.switches_torch import KERNELS, allow_kernels, allowed_kernels
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.quality.limits import layout_limit
from advisor.workloads import Call, shape_class

#: With so many contents the layout of a mixture of experts is looked at before it is called wrong.
_ATTEMPTS_WITH_EXPERTS = 3


def look_at_layout(session: Session, subject: Subject, configuration: Configuration) -> dict[str, Figure]:
    """Make the configuration's calls with fp32 weights; return {"layout", "layout_words", "layout_pads"} of a `Quality`.

    The first layers that hold every kind of layer say the same as all of them. FlashAttention's kernels are stood in for by
    plain attention behind the same interface, for they take 16 bits alone; what is compiled is stood in for by eager attention.
    Where sdpa or eager attention writes all scores and there is no memory for them, it is given some queries at a time.
    """
    session.stage("layout in fp32")
    depth = fp32_torch.first_of_each_kind(session.model, subject.facts.layers)
    with session.unchanged():
        return _looked_at(session, subject, configuration, depth)


def _looked_at(session: Session, subject: Subject, configuration: Configuration, depth: int) -> dict[str, Figure]:
    """Look at the first layers, or at all where these do not run by themselves; in chunks where memory ends; say what fails."""
    facts, model = subject.facts, session.model
    own, allowed, why = str(model.config._attn_implementation), allowed_kernels(), ""
    ways = [(depth, False)]
    for kept, in_chunks in ways:
        try:
            with ExitStack() as stack:
                stack.enter_context(fp32_torch.in_fp32(model, session.device))
                stack.enter_context(fp32_torch.first_layers(model, facts.layers, kept))
                error, pads = _layout_error(session, subject, configuration, facts, kept, in_chunks=in_chunks)
        except torch.AcceleratorError:
            raise
        except fp32_torch.NO_MEMORY:
            why = "there is no memory for it"
            if not in_chunks and _can_chunk(session, configuration, facts, own):
                ways.append((kept, True))
            continue
        except Exception:  # noqa: BLE001  (a class that needs all its layers, or floats of its own: it is said)
            traceback.print_exc()
            why = "this class does not run so"
            if kept < facts.layers:
                ways.append((facts.layers, in_chunks))
            continue
        finally:
            session.switch(own)
            allow_kernels(allowed)
        layers = f"{kept} of {facts.layers} layers" if kept < facts.layers else "all layers"
        words = f"{_stand_in(own, configuration, in_chunks=in_chunks)}, {layers}, fp32"
        return {"layout": error, "layout_words": words, "layout_pads": pads}
    return {"layout": None, "layout_words": f"not looked at in fp32: {why}"}


def _attends(own: str, configuration: Configuration) -> str:
    """Return transformers' name of what attends in fp32: the configuration's own, plain attention for what is compiled."""
    return plain_attention() if traits_of(configuration).compiles else own


def _can_chunk(session: Session, configuration: Configuration, facts: ModelFacts, own: str) -> bool:
    """Whether what attends can be given some queries at a time; what stands in for FlashAttention does so by itself."""
    if _attends(own, configuration) == plain_attention():
        able = facts.switches_attention and not traits_of(configuration).own_load
        return able and fp32_torch.can_chunk(session.model)
    return any(choice.in_chunks is not None for choice in choices_of(configuration))


def _stand_in(own: str, configuration: Configuration, *, in_chunks: bool) -> str:
    """Return in words what attended: the kernels that take 16 bits alone, and what is compiled, are stood in for."""
    attends = _attends(own, configuration)
    if in_chunks or attends != own:
        chunks = " in chunks" if in_chunks else ""
        return f"{attends}{chunks}" if attends == own else f"{attends}{chunks} in place of {own}"
    is_stood_in = any(choice.in_fp32 is not None for choice in choices_of(configuration))
    return f"plain attention by the interface of {own}" if is_stood_in else own


def _layout_error(
    session: Session,
    subject: Subject,
    configuration: Configuration,
    facts: ModelFacts,
    kept: int,
    *,
    in_chunks: bool,
) -> tuple[float, float | None]:
    """Return the rms error of the sequence that is furthest from itself alone, and what the vectors of pads move, in σ.

    The worst sequence counts: among many, one that is past a window would be averaged away. Where tokens are routed to
    experts, rounding sends one of thousands elsewhere, in fp32 too. With other contents it is another one, and what is wrong
    about a layout is wrong with any: a sequence is as far off as it is every time.
    """
    _, tokens = session.sampled(subject)
    least: dict[int, float] = {}
    for attempt in range(_ATTEMPTS_WITH_EXPERTS if facts.experts else 1):
        if attempt:
            ids = ids_of(session.model, subject)
            tokens = [ids.instead_of(each, 1000 * attempt + number) for number, each in enumerate(tokens)]
        errors, pads = _layout_errors(session, subject, configuration, tokens, (kept, attempt), in_chunks=in_chunks)
        least = {number: min(error, least.get(number, error)) for number, error in errors.items()}
        if max(least.values()) <= layout_limit(facts):
            break
    return max(least.values()), pads


def _layout_errors(
    session: Session,
    subject: Subject,
    configuration: Configuration,
    tokens: Sequence[torch.Tensor],
    which: tuple[int, int],
    *,
    in_chunks: bool,
) -> tuple[dict[int, float], float | None]:
    """Return `gate_torch.layout_errors` of the configuration's calls with these tokens. which: layers kept, and attempt.

    in_chunks: whether what attends is given some queries at a time. What a sequence is alone is kept for the next configuration
    with the same weights, beside the device.
    """
    facts, (workload, _) = subject.facts, session.sampled(subject)
    calls = session.calls(subject, workload.under(configuration), configuration, tokens)
    chosen = _for_layout(calls, facts.windows)
    compared = {call.sequences[place] for call in chosen for place in gate_torch.to_compare(call.lengths)}
    alone = session.alone.setdefault(which, {})
    sequences = {number: tokens[number] for number in sorted(compared - set(alone))}
    runtime = runtime_of(subject)
    distances = runtime.positions(workload)
    looked = Looked(session.model, runtime, distances, session.device, 1.0, session.settings)
    found: dict[int, torch.Tensor] = {}
    if not sequences:
        pass
    elif facts.switches_attention or str(session.model.config._attn_implementation) == plain_attention():
        with _eagerly(session, configuration, facts, max(map(len, sequences.values()))):
            found = gate_torch.alone(looked, sequences, facts.accepts)
    else:
        found = _alone_in_eager_copy(looked, subject, configuration, facts, which[0], sequences)
    alone |= {number: values.cpu() for number, values in found.items()}
    truth = {number: alone[number].to(looked.device) for number in compared}
    looked = replace(looked, deviation=runtime.deviation(list(truth.values())))
    own = str(session.model.config._attn_implementation)
    attends = _attends(own, configuration)
    if in_chunks and attends == plain_attention():
        fp32_torch.register_chunks()
        attends = fp32_torch.IN_CHUNKS
    if attends != own:
        session.switch(attends)  # of what is compiled every shape would be, and masks are made of the same parts
    with ExitStack() as stack:
        stack.enter_context(_any_kernel())
        for choice in choices_of(configuration):
            if in_chunks and choice.in_chunks is not None:
                stack.enter_context(choice.in_chunks())
            if choice.in_fp32 is not None:
                stack.enter_context(choice.in_fp32(str(session.model.config._attn_implementation)))
        return gate_torch.layout_errors(looked, chosen, truth)


def _alone_in_eager_copy(
    looked: Looked,
    subject: Subject,
    configuration: Configuration,
    facts: ModelFacts,
    kept: int,
    sequences: Mapping[int, torch.Tensor],
) -> dict[int, torch.Tensor]:
    """Return the values of sequences run alone by another copy of the model, loaded with eager attention.

    For classes that do not switch on a loaded model. There sdpa can be another function than eager (Falcon with ALiBi in
    transformers 5.24), which a layout that is compared with itself would not show, and which 16 bits can hide.
    """
    eager = configuration.replaced(attention=reference_choices()["attention"])
    names = statements(choices_of(eager))
    model = loaded(subject, eager, looked.device, names)
    copied = replace(looked, model=model, settings=fp32_torch.Settings(model))
    with fp32_torch.in_fp32(model, looked.device), fp32_torch.first_layers(model, facts.layers, kept):
        return gate_torch.alone(copied, sequences, facts.accepts)


def _for_layout(calls: Sequence[Call], windows: Sequence[int]) -> list[Call]:
    """Return one call of every shape class, the one of the fewest tokens, and the most uneven one."""
    chosen: dict[Any, Call] = {}
    for call in sorted(calls, key=lambda call: sum(call.lengths)):
        chosen.setdefault(shape_class(call.lengths, windows), call)
    uneven = max(calls, key=lambda call: max(call.lengths) - min(call.lengths))
    return [*chosen.values(), *([] if any(uneven is call for call in chosen.values()) else [uneven])]


@contextmanager
def _eagerly(session: Session, configuration: Configuration, facts: ModelFacts, longest: int) -> Iterator[None]:
    """Attend eagerly for a while, in chunks of queries where all scores would be too large, where the class can be switched."""
    own = str(session.model.config._attn_implementation)
    if not facts.switches_attention or traits_of(configuration).own_load:  # eager by itself, or made otherwise
        yield
        return
    large = facts.heads * longest**2 * 4 > fp32_torch.SCORES_BYTES
    if large and fp32_torch.can_chunk(session.model):
        fp32_torch.register_chunks()
        session.switch(fp32_torch.IN_CHUNKS)
    else:
        session.switch(plain_attention())
    try:
        yield
    finally:
        session.switch(own)


@contextmanager
def _any_kernel() -> Iterator[None]:
    """Allow every kernel of sdpa for a while: some of those that a configuration is held to take 16 bits alone."""
    allowed = allowed_kernels()
    with ExitStack() as stack:
        stack.callback(allow_kernels, allowed)
        allow_kernels(KERNELS)
        yield
