"""How far training goes astray: the first step's gradients, losses and norms of the steps after it. Loaded by the worker alone.

Against fp32 weights and compute, one document at a time, accumulated, with the same seed, data and order (measurement.md, B.6,
"training"). Of weights that were drawn at random the first step alone is looked at: what they learn says nothing of trained ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from advisor.knobs import KNOBS, reference_choices
from advisor.measure import fp32_torch
from advisor.measure.messages import Figure, Subject
from advisor.measure.session_torch import Session, runtime_of
from advisor.nouns.configuration import Configuration

#: The loss and the gradients' norm of so many steps are compared, over the gate's sequences again and again.
COURSE_STEPS = 20


#: Bytes of a weight that keeps what a step changes. In 16 bits most of AdamW's are rounded away, in the default's as in all:
#: after 20 steps losses are 0.8 nats from those of fp32 weights, on the shipped model. Of those the first step is looked at.
_WHOLE = 4


def steps_of(subject: Subject) -> int:
    """Return how many steps are compared."""
    return 1 if subject.source.has_random_weights else COURSE_STEPS


def plain_base(subject: Subject) -> Configuration:
    """Return the default with the weights as floats, where it is the user who asked for them in fewer bits."""
    default = subject.configuration
    if not subject.workload.quantises_base or subject.facts.prequantized:
        return default
    return default.replaced(quantization=KNOBS["quantization"].implied)


def reference_course(session: Session, subject: Subject) -> dict[str, Any] | None:
    """Return the reference's course of work that trains: {"why": in words} where it can't be had; None of other work.

    Weights are loaded in fp32, with the default's attention: eager attention keeps the scores of every layer for the way back.
    So does sdpa in fp32, where queries share keys. Where there is no memory for that, layers are computed again: it is the same
    arithmetic.
    """
    if not subject.workload.trains:
        return None
    session.stage("reference of training")
    if subject.facts.prequantized:
        return {"why": "the checkpoint's weights are in fewer bits"}
    runtime = runtime_of(subject)
    for configuration in _in_fp32(subject):
        try:
            session.load(subject, configuration)
            session.keep(runtime)
            _, tokens = session.sampled(subject)
            with runtime.mode(), fp32_torch.in_fp32(session.model, session.device):
                found = runtime.reference_course(session.model, tokens, session.device, steps=steps_of(subject))
        except fp32_torch.NO_MEMORY as error:
            error.__traceback__ = None  # it holds what the step had computed
            session.give_back(runtime)  # the random state too
            session.unload()
            continue
        session.give_back(runtime)
        if "why" in found:
            session.unload()
        return found
    return {"why": "a step in fp32 does not fit"}


def _in_fp32(subject: Subject) -> list[Configuration]:
    """Return how the reference's step may be computed: with all kept, and with layers computed again where the class can."""
    plain = plain_base(subject).replaced(precision=reference_choices()["precision"])
    every = (choice for knob in KNOBS.values() for choice in knob.choices.values())
    sparing = {choice.knob: choice.name for choice in every if choice.traits.recomputes}
    return [plain, plain.replaced(**sparing)] if subject.facts.checkpoints else [plain]


def course_figures(
    session: Session, subject: Subject, configuration: Configuration, reference: Mapping[str, Any]
) -> dict[str, Figure]:
    """Return {"gradient", "loss", "norm", "steps", "course"} of a `Quality`: see there.

    The loaded model is trained for it, and given back. Raises ValueError where a loss is not finite.
    """
    if "why" in reference:
        return {"course": f"not compared: {reference['why']}"}
    session.stage("course of training")
    runtime, steps = runtime_of(subject), steps_of(subject)
    if any(weight.requires_grad and weight.dtype.itemsize < _WHOLE for weight in session.model.parameters()):
        steps = 1
    workload, tokens = session.sampled(subject)
    calls = session.calls(subject, workload.under(configuration), configuration, tokens)
    course = runtime.course(session.model, calls, session.device, steps=steps)
    session.give_back(runtime)
    if not all(map(isfinite, (*course["losses"], *course["norms"]))):
        raise ValueError("a loss or the norm of gradients is NaN or infinity")
    return {**runtime.deviations(course, reference), "steps": steps}
