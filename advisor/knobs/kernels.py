"""Kernels: Liger's in place of a decoder's norms, gated MLPs and rotary positions.

They fuse what torch launches as several kernels each, and change no matrix product and no attention. Most of what Liger saves it
saves in training, by a loss without logits: that is a choice of its own, of training alone. Sources: levers.md (K2, K3) and
liger-kernel 0.8.5's transformers/monkey_patch.py; K4 was measured on an H100 (levers.md), K5 to K7 are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_SOURCE = "https://github.com/linkedin/Liger-Kernel"
_PACKAGE = "liger-kernel"

#: The choice to replace nothing.
NONE = "none"

#: How Liger names its autograd functions, which a profile shows without a GPU's kernels too.
_FUNCTIONS = "Liger"

#: Parts of its kernels' names, and what torch names a region that was compiled: there its functions are no operators any more.
_KERNELS = ("_rms_norm_forward_kernel", "_swiglu_", "_geglu_", "_triton_rope", "_layer_norm_forward_kernel")
_COMPILED = "Torch-Compiled Region"

#: What Liger names its loss without logits, and how the functions end that it puts in place of a model's own for it.
_FUSED_LOSS, _FORWARD = "LigerFusedLinearCrossEntropy", "forward"

#: The statement that replaces, with what of it is to be. Its cross entropy would replace torch's own for the whole process (K3).
#: Adapters are around the model that Liger knows; what a type of model has not, Liger leaves out.
_PATCH = (
    '_apply_liger_kernel_to_instance(model=getattr(model, "get_base_model", lambda: model)(), '
    "cross_entropy=False, fused_linear_cross_entropy={loss}{parts})"
)
_NO_PARTS = ("rope", "rms_norm", "layer_norm", "swiglu", "geglu")

#: The choices that replace: the parts of layers; the loss alone, in training; both, as Trainer does.
_LIGER, _LOSS, _WITH_LOSS = "liger", "liger-loss", "liger-with-loss"


def _unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason("K5", Verdict.INVALID, "Liger's kernels are written in triton and run on GPUs only", "use a GPU")
    if (environment.compute_capability or (0, 0)) < (7, 0):
        return Reason("K5", Verdict.INVALID, "triton, in which Liger is written, needs compute capability 7.0")
    for package in ("triton", _PACKAGE):
        if package not in environment.packages:
            return Reason("K5", Verdict.INVALID, f"the package {package} isn't installed", f"pip install {package}")
    return None


def _why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, []
    if not facts.is_causal:
        text = f"Liger replaces parts of decoders, and {facts.architecture} is an encoder"
        reasons.append(Reason("K6", Verdict.INVALID, text))
    elif facts.liger is False:
        text = f"the installed Liger does not know models of the type {facts.model_type}"
        reasons.append(Reason("K6", Verdict.INVALID, text, f"pip install -U {_PACKAGE}"))
    if situation.traits.compiles_model:
        compilation = situation.configuration["compilation"]
        text = "Liger's kernels break a compiled graph: together they were slower than either alone"
        reasons.append(Reason("K4", Verdict.SLOW, text, about=f"compilation={compilation}"))
    return reasons


def _loss_why_not(situation: Situation, *, parts: bool) -> list[Reason]:
    if not situation.workload.trains:
        text = "without labels there is no loss, and logits are what is asked for"
        return [Reason("K3", Verdict.INVALID, text, f"choose {_LIGER}")]
    return [reason for reason in _why_not(situation) if parts or reason.rule != "K4"]


def _rates(situation: Situation) -> Mapping[Term, float]:
    """Fewer kernels, each of which triton takes longer to launch. A step of training took 0.81 of its time (a 1B on an H200).

    Compiled, what is around them is fused in parts (K4): 160 regions in place of 32, 1.82 in place of 1.84 times the default and
    three times the first call (Llama-3-8B on two H200s). What launching them takes then is a guess.
    """
    trains = situation.workload.trains
    if situation.traits.compiles_model:
        return {Term.LAUNCHES: 0.9, Term.LINEAR: 0.88 if trains else 0.98}
    return {Term.LAUNCHES: 1.05, Term.LINEAR: 1.24 if trains else 1.0}


def _loss_rates(situation: Situation, *, parts: bool) -> Mapping[Term, float]:
    """Logits and their logarithms are neither written nor read: a step took 0.95 to 0.99 of the time that it took with them."""
    found = _rates(situation) if parts else {}
    return {**found, Term.LINEAR: 1.03 * found.get(Term.LINEAR, 1.0)}


def _read(model: Any, _: Mapping[str, Any]) -> dict[str, int]:
    from advisor.knobs.kernels_torch import replaced

    return replaced(model)


def _undo(model: Any) -> None:
    from advisor.knobs.kernels_torch import take_back

    take_back(model)


def _facts(model: Any) -> Mapping[str, Any]:
    from advisor.knobs.kernels_torch import knows

    return {"liger": knows(str(model.config.model_type))}


def _effective(reading: Reading) -> str:
    if _unproven(reading) is not None:
        return NONE
    replaced: Mapping[str, int] = reading.own.get("kernels") or {}
    has_forward = any(name.endswith(_FORWARD) for name in replaced)
    # Compiled as a whole, the loss is no operator any more.
    has_loss = any(_FUSED_LOSS in name for name in reading.operators) or (
        has_forward and reading.hides_layers and bool(reading.compiled_regions)
    )
    has_parts = any(not name.endswith(_FORWARD) for name in replaced)
    return (_WITH_LOSS if has_parts else _LOSS) if has_loss else _LIGER


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        return _unproven(reading) or (None if ran == name else f"it ran as {ran}")

    return proof


def _unproven(reading: Reading) -> str | None:
    """Return None, or why a reading does not show that Liger ran (rule K7): what was replaced, and that it was launched."""
    if not reading.own.get("kernels"):
        return "Liger replaced nothing in this model, without a word"
    ran = any(
        name.startswith((_FUNCTIONS, _COMPILED) if reading.hides_layers else _FUNCTIONS)
        or any(part in name for part in _KERNELS)
        for name in reading.operators
    )
    return None if ran else "none of Liger's functions was launched"


def _still_there(reading: Reading) -> str | None:
    found: Mapping[str, int] = reading.own.get("kernels") or {}
    if not found:
        return None
    return "Liger's are in the model: " + ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def _replacing(name: str, words: str, *, loss: bool = False, parts: bool = True) -> Choice:
    """Return a choice of Liger's kernels. loss: whether its loss without logits is one; parts: whether those of layers are."""
    off = [part for part in _NO_PARTS if not parts] + ([] if loss else ["fused_linear_cross_entropy"])
    return Choice(
        "kernels",
        name,
        words,
        _SOURCE,
        unavailable=_unavailable,
        why_not=partial(_loss_why_not, parts=parts) if loss else _why_not,
        on_model=(_PATCH.format(loss=loss, parts="" if parts else "".join(f", {part}=False" for part in _NO_PARTS)),),
        imports=("from liger_kernel.transformers import _apply_liger_kernel_to_instance",),
        packages=(_PACKAGE, "triton"),
        proof=_proof(name),
        rates=partial(_loss_rates, parts=parts) if loss else _rates,
        trainer={
            "use_liger_kernel": "True",
            **({"liger_kernel_config": repr(dict.fromkeys(off, False))} if off else {}),
        },
        traits=Traits(process_wide=True, keeps_logits=not loss, fuses_parts=parts),
    )


KNOB = Knob(
    name="kernels",
    summary="kernels of norms, MLPs and rotary positions",
    reload=False,
    default=lambda _: NONE,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            Choice("kernels", NONE, "as transformers has them", _SOURCE, proof=_still_there),
            _replacing(_LIGER, "Liger's, in triton, for RMSNorm, gated MLPs and rotary positions of decoders"),
            _replacing(_LOSS, "Liger's loss alone, without logits, in training", loss=True, parts=False),
            _replacing(_WITH_LOSS, "Liger's for all of these, in training", loss=True),
        )
    },
    facts=_facts,
    implied=NONE,
    place=55,  # what is compiled is compiled with what was replaced
    numbers=True,
    read=_read,
    undo=_undo,
    late=True,
)
