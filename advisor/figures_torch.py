"""The figures of a loaded configuration's output: the reference, the error against it, the probe and the layout in fp32.

What measurement.md, D describes, for one session of the worker; the parts are in `advisor.gate_torch`. Nothing is judged here.
"""

from __future__ import annotations

import gc
import time
import traceback
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from advisor import facts_torch, fp32_torch, gate_torch, tokens_torch
from advisor.configuration import Configuration
from advisor.gate_torch import Looked
from advisor.judge import GATE_VERSION, depends_on_batch
from advisor.knobs import choice_of, choices_of, reference_choices, traits_of
from advisor.limits import layout_limit
from advisor.model import ModelFacts
from advisor.session_torch import Session, loaded, runtime_of
from advisor.trial import Quality
from advisor.workloads import Call, Workload, shape_class

#: With so many contents the layout of a mixture of experts is looked at before it is called wrong.
_ATTEMPTS_WITH_EXPERTS = 3

_NO_MEMORY = (torch.OutOfMemoryError, MemoryError)


# --------------------------------------------------------------------------------------------------------- the reference


def write_reference(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the gate's sequences that are compared alone, unpadded, in fp32, and write their values to the file `path`.

    The weights are widened block by block where they are in 16 bits or do not fit in fp32, from the device or from beside
    it; attention is computed in chunks of queries where T × T scores do not fit. Returns {"positions", "words"}; {"unjudged":
    why} where fp32 can't be had, for nobody is judged by less.
    """
    why = "it does not fit"
    for precision, beside in _attempts(request):
        try:
            words = _load_for_reference(session, request, precision, beside=beside)
            found = _reference(session, request)
        except _NO_MEMORY as error:
            why = f"it does not fit: {' '.join(str(error).split())[:160]}"
            error.__traceback__ = None
            _forget(session)
            continue
        except facts_torch.NotDequantised as error:
            return {"unjudged": str(error)}
        if beside:
            _forget(session)
        if not all(bool(values.isfinite().all()) for values in found["values"].values()):
            return {"unjudged": "its own output holds NaN or infinity"}
        torch.save(found, request["path"])
        positions = sum(len(values) for values in found["values"].values())
        return {"positions": positions, "words": words, "texts": tokens_torch.words_of(request)}
    return {"unjudged": why}


def _attempts(request: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return in which precision to load the weights, and whether they stay beside the device: to be tried in this order."""
    default = Configuration.of(request["configuration"])
    own, wider = default["precision"], traits_of(default).rounds
    is_widened = bool(wider) and not facts_torch.loses_bits(request["source"], wider)
    precision = own if is_widened else reference_choices()["precision"]
    return [(precision, False)] + ([(precision, True)] if request["device"].startswith("cuda") else [])


def _load_for_reference(session: Session, request: Mapping[str, Any], precision: str, *, beside: bool) -> str:
    """Load the default's weights with eager attention; return in words how the reference is computed."""
    default = Configuration.of(request["configuration"])
    configuration = default.replaced(**{**reference_choices(), "precision": precision})
    facts = ModelFacts.of(request["facts"])
    try:
        session.load(request, configuration)
    except _NO_MEMORY:
        if not beside or request["source"]["weights"] == "random":
            raise
        _forget(session)
        session.load({**request, "device": "cpu"}, configuration)
    if facts.prequantized:
        session.model, session.loaded_as = facts_torch.dequantised(session.model), None
        session.settings = fp32_torch.Settings(session.model)
    if beside:
        session.model.to("cpu")
    how = _plain_attention() + (" in chunks" if _use_chunks(session, request, facts) else "")
    where = ", weights beside the device" if beside else ""
    return f"fp32, {how}{where}, one sequence at a time"


def _plain_attention() -> str:
    """Return transformers' name of the attention that the reference is computed with."""
    choice = choice_of("attention", reference_choices()["attention"])
    return str(literal_eval(choice.load(Configuration(()))["attn_implementation"]))


def _use_chunks(session: Session, request: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Switch to attention in chunks of queries where all scores of a layer would be too large; return whether it was."""
    _, tokens = session.sampled(request)
    longest = max(len(ids) for ids in tokens)
    if facts.heads * longest**2 * 4 <= fp32_torch.SCORES_BYTES:
        return False
    if not facts.switches_attention or not fp32_torch.can_chunk(session.model):
        return False
    fp32_torch.register_chunks()
    session.switch(fp32_torch.IN_CHUNKS)
    return True


def _reference(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    session.stage("reference")
    workload, tokens = session.sampled(request)
    facts, runtime = request["facts"], runtime_of(request)
    distances, device = runtime.positions(workload), request["device"]
    looked = Looked(session.model, runtime, distances, device, 1.0, session.settings)
    values: dict[str, torch.Tensor] = {}
    with torch.inference_mode(), fp32_torch.in_fp32(session.model, device):
        for batch in workload.dealt.batches():
            for place in gate_torch.to_compare([len(tokens[number]) for number in batch]):
                number = batch[place]
                found = gate_torch.alone(looked, {number: tokens[number]}, facts["accepts"])[number]
                values[str(number)] = found.cpu()
    return {
        "values": values,
        "distances": distances,
        "deviation": runtime.deviation(list(values.values())),
    }


def _forget(session: Session) -> None:
    session.unload()
    gc.collect()


# ------------------------------------------------------------------------------------------------------------ the figures


def figures_of(
    session: Session, request: Mapping[str, Any], configuration: Configuration
) -> tuple[Quality, dict[str, float]]:
    """Return the figures of the loaded configuration on the gate's sequences, and the seconds that their parts took.

    request["gate"]: path of the reference, None where there is none, and its words; "default": figures of the default;
    "known": figures of the probe and the layout that were found before with the same weights, layout and attention. Raises
    ValueError where an output is not finite.
    """
    gate, began = request["gate"], time.perf_counter()
    workload, tokens = session.sampled(request)
    reference = _read(gate["path"], request, workload)
    calls = session.calls(request, workload.under(configuration), configuration, tokens)
    looked = Looked(
        session.model,
        runtime_of(request),
        reference["distances"],
        request["device"],
        reference["deviation"],
        session.settings,
    )
    facts = ModelFacts.of(request["facts"])
    probed = gate_torch.to_probe(calls, facts.windows)
    quality, kept = _compared(looked, calls, tokens, reference, request, probed)
    seconds, found = {"error_s": time.perf_counter() - began}, dict(gate["known"])
    if "layout" not in found and not traits_of(configuration).quantises:
        began = time.perf_counter()
        found |= look_at_layout(session, request, configuration)
        seconds["layout_s"] = time.perf_counter() - began
    if "probed" not in found:
        began = time.perf_counter()
        found |= _probed(session, request, looked, kept, configuration)
        seconds["probe_s"] = time.perf_counter() - began
    drawn = request["source"]["weights"] == "random"
    return replace(quality, drawn=drawn, gate=GATE_VERSION, **found), seconds


def _read(path: str | None, request: Mapping[str, Any], workload: Workload) -> dict[str, Any]:
    """Return the reference; without one, what the probe needs of it."""
    if path is not None:
        return dict(torch.load(path, weights_only=True))
    return {"values": None, "distances": runtime_of(request).positions(workload), "deviation": 1.0}


def _compared(
    looked: Looked,
    calls: Sequence[Call],
    tokens: Sequence[torch.Tensor],
    reference: Mapping[str, Any],
    request: Mapping[str, Any],
    kept: Sequence[Call],
) -> tuple[Quality, list[tuple[Call, list[torch.Tensor]]]]:
    """Run the gate's calls; return the figures against the reference, and the values of the calls in `kept`."""
    default = Quality.of((request["gate"]["default"] or {}).get("quality"))
    noise = 2 * default.rms * looked.deviation if default is not None else 0.0
    tally = looked.runtime.tally(looked.distances, noise)
    held = []
    for call in calls:
        values = looked.values(call)
        if any(call is one for one in kept):
            held.append((call, values))
        for number, found in zip(call.sequences, values, strict=True):
            truth = (reference["values"] or {}).get(str(number))
            tally.add(tokens[number], None if truth is None else truth.to(looked.device), found)
    words = request["gate"]["reference"]
    is_text = request["source"]["has_tokenizer"] and request["facts"].get("is_causal", True)
    return tally.quality(text=is_text, reference=words), held


def _probed(
    session: Session,
    request: Mapping[str, Any],
    looked: Looked,
    calls: Sequence[tuple[Call, list[torch.Tensor]]],
    configuration: Configuration,
) -> dict[str, Any]:
    """Return what the independence probe finds; nothing for arithmetic that depends on the whole batch by design."""
    dependent = depends_on_batch(configuration) or _brought_dependence(session.model)
    if dependent:
        return {"probed": f"not probed: {', '.join(dependent)} depends on the whole batch by design"}
    session.stage("independence probe")
    return gate_torch.probe(looked, calls, _ids_of(session, request))


def _ids_of(session: Session, request: Mapping[str, Any]) -> gate_torch.Ids:
    """Return the ids that contents can be changed to."""
    named = gate_torch.named_ids(session.model) | tokens_torch.special_ids(request)
    return gate_torch.Ids.of(int(request["facts"]["vocabulary"]), named)


def _brought_dependence(model: Any) -> tuple[str, ...]:
    """Return what of a checkpoint's own quantisation depends on the whole batch: LLM.int8's outlier columns do."""
    kinds = facts_torch.linears_of(model)
    is_int8 = any(name.startswith("Linear8bitLt:") and not name.endswith(":0.0") for name in kinds)
    return ("the checkpoint's LLM.int8",) if is_int8 else ()


# --------------------------------------------------------------------------------------------------------- the layout


def look_at_layout(session: Session, request: Mapping[str, Any], configuration: Configuration) -> dict[str, Any]:
    """Make the configuration's calls with fp32 weights; return {"layout", "layout_words", "layout_pads"} of a `Quality`.

    The first layers that hold every kind of layer say the same as all of them. FlashAttention's kernels are stood in for by
    plain attention behind the same interface, for they take 16 bits alone; what is compiled is stood in for by eager attention.
    """
    session.stage("layout in fp32")
    facts, model = ModelFacts.of(request["facts"]), session.model
    own, allowed = str(model.config._attn_implementation), facts_torch.allowed_kernels()
    depth = fp32_torch.first_of_each_kind(model, facts.layers)
    why = ""
    for kept in dict.fromkeys((depth, facts.layers)):
        try:
            with fp32_torch.in_fp32(model, request["device"]), fp32_torch.first_layers(model, facts.layers, kept):
                error, pads = _layout_error(session, request, configuration, facts, kept)
        except torch.AcceleratorError:
            raise
        except _NO_MEMORY:
            why = "there is no memory for it"
            continue
        except Exception:  # noqa: BLE001  (a class that needs all its layers, or floats of its own: it is said)
            traceback.print_exc()
            why = "this class does not run so"
            continue
        finally:
            session.switch(own)
            facts_torch.allow_kernels(allowed)
        layers = f"{kept} of {facts.layers} layers" if kept < facts.layers else "all layers"
        words = f"{_stand_in(own, configuration)}, {layers}, fp32"
        return {"layout": error, "layout_words": words, "layout_pads": pads}
    return {"layout": None, "layout_words": f"not looked at in fp32: {why}"}


def _stand_in(own: str, configuration: Configuration) -> str:
    """Return in words what attended: the kernels that take 16 bits alone, and what is compiled, are stood in for."""
    if traits_of(configuration).compiles:
        return f"{_plain_attention()} in place of {own}"
    is_stood_in = any(choice.in_fp32 is not None for choice in choices_of(configuration))
    return f"plain attention by the interface of {own}" if is_stood_in else own


def _layout_error(
    session: Session, request: Mapping[str, Any], configuration: Configuration, facts: ModelFacts, kept: int
) -> tuple[float, float | None]:
    """Return the rms error of the sequence that is furthest from itself alone, and what the vectors of pads move, in σ.

    The worst sequence counts: among many, one that is past a window would be averaged away. Where tokens are routed to
    experts, rounding sends one of thousands elsewhere, in fp32 too. With other contents it is another one, and what is wrong
    about a layout is wrong with any: a sequence is as far off as it is every time.
    """
    _, tokens = session.sampled(request)
    least: dict[int, float] = {}
    for attempt in range(_ATTEMPTS_WITH_EXPERTS if facts.experts else 1):
        if attempt:
            ids = _ids_of(session, request)
            tokens = [ids.instead_of(each, 1000 * attempt + number) for number, each in enumerate(tokens)]
        errors, pads = _layout_errors(session, request, configuration, tokens, (kept, attempt))
        least = {number: min(error, least.get(number, error)) for number, error in errors.items()}
        if max(least.values()) <= layout_limit(facts):
            break
    return max(least.values()), pads


def _layout_errors(
    session: Session,
    request: Mapping[str, Any],
    configuration: Configuration,
    tokens: Sequence[torch.Tensor],
    which: tuple[int, int],
) -> tuple[dict[int, float], float | None]:
    """Return `gate_torch.layout_errors` of the configuration's calls with these tokens. which: layers kept, and attempt.

    What a sequence is alone is kept for the next configuration with the same weights, beside the device.
    """
    facts, (workload, _) = ModelFacts.of(request["facts"]), session.sampled(request)
    calls = session.calls(request, workload.under(configuration), configuration, tokens)
    chosen = _for_layout(calls, facts.windows)
    compared = {call.sequences[place] for call in chosen for place in gate_torch.to_compare(call.lengths)}
    alone = session.alone.setdefault(which, {})
    sequences = {number: tokens[number] for number in sorted(compared - set(alone))}
    runtime = runtime_of(request)
    distances = runtime.positions(workload)
    looked = Looked(session.model, runtime, distances, request["device"], 1.0, session.settings)
    found: dict[int, torch.Tensor] = {}
    if not sequences:
        pass
    elif facts.switches_attention or str(session.model.config._attn_implementation) == _plain_attention():
        with _eagerly(session, configuration, facts, max(map(len, sequences.values()))):
            found = gate_torch.alone(looked, sequences, facts.accepts)
    else:
        found = _alone_in_eager_copy(looked, request, configuration, facts, which[0], sequences)
    alone |= {number: values.cpu() for number, values in found.items()}
    truth = {number: alone[number].to(looked.device) for number in compared}
    looked = replace(looked, deviation=runtime.deviation(list(truth.values())))
    if traits_of(configuration).compiles:
        session.switch(_plain_attention())  # its masks are made of the same parts, and every shape would be compiled
    with ExitStack() as stack:
        stack.enter_context(_any_kernel())
        for choice in choices_of(configuration):
            if choice.in_fp32 is not None:
                stack.enter_context(choice.in_fp32(str(session.model.config._attn_implementation)))
        return gate_torch.layout_errors(looked, chosen, truth)


def _alone_in_eager_copy(
    looked: Looked,
    request: Mapping[str, Any],
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
    names = facts_torch.statements(choices_of(eager))
    model = loaded(request, eager, names)
    copied = replace(looked, model=model, settings=fp32_torch.Settings(model))
    with fp32_torch.in_fp32(model, request["device"]), fp32_torch.first_layers(model, facts.layers, kept):
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
        session.switch(_plain_attention())
    try:
        yield
    finally:
        session.switch(own)


@contextmanager
def _any_kernel() -> Iterator[None]:
    """Allow every kernel of sdpa for a while: some of those that a configuration is held to take 16 bits alone."""
    allowed = facts_torch.allowed_kernels()
    with ExitStack() as stack:
        stack.callback(facts_torch.allow_kernels, allowed)
        facts_torch.allow_kernels(("flash", "efficient", "cudnn", "math"))
        yield


def layout_of(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Look at a layout without quantisation: for a choice that quantises, whose own weights can't be widened.

    Returns {"layout", "layout_words", "layout_pads", "neighbours", "pads", …} and the seconds it took.
    """
    began, configuration = time.perf_counter(), Configuration.of(request["configuration"])
    session.load(request, configuration)
    with torch.inference_mode():
        found = look_at_layout(session, request, configuration)
        workload, tokens = session.sampled(request)
        reference = _read(request["gate"]["path"], request, workload)
        looked = Looked(
            session.model,
            runtime_of(request),
            reference["distances"],
            request["device"],
            reference["deviation"],
            session.settings,
        )
        calls = session.calls(request, workload.under(configuration), configuration, tokens)
        chosen = gate_torch.to_probe(calls, ModelFacts.of(request["facts"]).windows)
        found |= _probed(session, request, looked, [(call, looked.values(call)) for call in chosen], configuration)
    return {**found, "layout_s": time.perf_counter() - began}
