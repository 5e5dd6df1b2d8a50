"""The reference that outputs are compared with: the default's weights as floats, one sequence at a time, in fp32."""

from __future__ import annotations

import gc
import json
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from advisor.knobs import choice_of, reference_choices, traits_of
from advisor.measure import fp32_torch, gate_torch, tokens_torch
from advisor.measure.course_torch import plain_base, reference_course
from advisor.measure.gate_torch import Looked
from advisor.measure.messages import ReferenceAsked, ReferenceWritten, Subject, Unjudged
from advisor.measure.session_torch import Session, runtime_of
from advisor.networks.readback_torch import linears_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts, ModelFiles


def write_reference(session: Session, request: ReferenceAsked) -> ReferenceWritten | Unjudged:
    """Run the gate's sequences that are compared alone, unpadded, in fp32, and write their values to the request's file.

    The weights are widened block by block where they are in 16 bits or do not fit in fp32, from the device or from beside
    it; attention is computed in chunks of queries where T × T scores do not fit. Where fp32 can't be had, nobody is judged by
    less.
    """
    why = "it does not fit"
    for precision, beside in _attempts(session, request):
        try:
            words = _load_for_reference(session, request, precision, beside=beside)
            found = _reference(session, request)
        except fp32_torch.NO_MEMORY as error:
            why = f"it does not fit: {' '.join(str(error).split())[:160]}"
            error.__traceback__ = None
            _forget(session)
            continue
        except NotDequantised as error:
            return Unjudged(why=str(error))
        if beside:
            _forget(session)
        if not all(bool(values.isfinite().all()) for values in found["values"].values()):
            return Unjudged(why="its own output holds NaN or infinity")
        found["course"] = reference_course(session, request)
        torch.save(found, request.path)
        positions = sum(len(values) for values in found["values"].values())
        return ReferenceWritten(positions=positions, words=words, texts=tokens_torch.words_of(request))
    return Unjudged(why=why)


def _attempts(session: Session, subject: Subject) -> list[tuple[str, bool]]:
    """Return in which precision to load the weights, and whether they stay beside the device: to be tried in this order."""
    default = plain_base(subject)
    own, wider = default["precision"], traits_of(default).rounds
    is_widened = bool(wider) and not _loses_bits(subject.source, wider)
    precision = own if is_widened else reference_choices()["precision"]
    return [(precision, False)] + ([(precision, True)] if session.device.startswith("cuda") else [])


def _load_for_reference(session: Session, subject: Subject, precision: str, *, beside: bool) -> str:
    """Load the default's weights with eager attention; return in words how the reference is computed."""
    configuration = plain_base(subject).replaced(**{**reference_choices(), "precision": precision})
    facts = subject.facts
    try:
        session.load(subject, configuration)
    except fp32_torch.NO_MEMORY:
        if not beside or subject.source.has_random_weights:
            raise
        _forget(session)
        session.load(subject, configuration, device="cpu")
    if facts.prequantized:
        session.model, session.loaded_as = _dequantised(session.model), None
        session.settings = fp32_torch.Settings(session.model)
    if beside:
        session.model.to("cpu")
    how = plain_attention() + (" in chunks" if _use_chunks(session, subject, facts) else "")
    where = ", weights beside the device" if beside else ""
    return f"fp32, {how}{where}, one sequence at a time"


def plain_attention() -> str:
    """Return transformers' name of the attention that the reference is computed with."""
    choice = choice_of("attention", reference_choices()["attention"])
    return str(literal_eval(choice.load(Configuration(()))["attn_implementation"]))


def _use_chunks(session: Session, subject: Subject, facts: ModelFacts) -> bool:
    """Switch to attention in chunks of queries where all scores of a layer would be too large; return whether it was."""
    _, tokens = session.sampled(subject)
    longest = max(len(ids) for ids in tokens)
    if facts.heads * longest**2 * 4 <= fp32_torch.SCORES_BYTES:
        return False
    if not facts.switches_attention or not fp32_torch.can_chunk(session.model):
        return False
    fp32_torch.register_chunks()
    session.switch(fp32_torch.IN_CHUNKS)
    return True


def _reference(session: Session, subject: Subject) -> dict[str, Any]:
    session.stage("reference")
    workload, tokens = session.sampled(subject)
    runtime, device = runtime_of(subject), session.device
    distances = runtime.positions(workload)
    looked = Looked(session.model, runtime, distances, device, 1.0, session.settings)
    values: dict[str, torch.Tensor] = {}
    with runtime.mode(), fp32_torch.in_fp32(session.model, device):
        for batch in workload.dealt.batches():
            for place in gate_torch.to_compare([len(tokens[number]) for number in batch]):
                number = batch[place]
                found = gate_torch.alone(looked, {number: tokens[number]}, subject.facts.accepts)[number]
                values[str(number)] = found.cpu()
    return {
        "values": values,
        "distances": distances,
        "deviation": runtime.deviation(list(values.values())),
    }


def _forget(session: Session) -> None:
    session.unload()
    gc.collect()


class NotDequantised(Exception):
    """The weights of a quantised checkpoint can't be had as floats."""


def _dequantised(model: Any) -> Any:
    """Return a loaded quantised checkpoint with floats for weights. Raises NotDequantised where transformers can't."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return model
    try:
        plain = model.dequantize()
    except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError):
        plain = None
    left = [] if plain is None else [name for name in linears_of(plain) if name != "Linear"]
    if plain is None or left:
        method = getattr(quantizer.quantization_config, "quant_method", "quantised")
        raise NotDequantised(f"transformers can't turn this checkpoint's {method} weights back into floats")
    return plain


def _loses_bits(source: ModelFiles, wider: Sequence[str]) -> bool:
    """Whether loading a checkpoint rounds some of its weights: those of these dtypes. Then the reference is loaded in fp32."""
    path = Path(source.path)
    if source.has_random_weights or not path.is_dir():
        return False
    files = sorted(path.glob("*.safetensors"))
    return not files or any(entry.get("dtype") in wider for file in files for entry in _header(file).values())


def _header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: its tensors' dtypes and shapes."""
    with file.open("rb") as stream:
        return dict(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
