"""Optimizer: what makes a step of gradients, as Trainer names it (`optim`).

AdamW keeps two values beside each that is trained. In 8 bits they take a quarter or half of that, and what they round shows in
the losses of the steps that follow: the tier is 8bit. Adafactor keeps none of size, and is another optimizer: it is tried where
the user says so (rule O2). All of them are set as Trainer sets them: a learning rate of 5e-5, no decay of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier
from advisor.workloads import Workload

_SOURCE = "https://huggingface.co/docs/transformers/optimizers"
_BNB = "https://huggingface.co/docs/bitsandbytes/optimizers"

_DEFAULT = "adamw_torch_fused"

#: What is trained, in the statements that make an optimizer.
_TRAINED = "[p for p in model.parameters() if p.requires_grad]"

#: The optimizers by the package and the name of their class.
_CLASSES = {
    ("torch", "AdamW"): _DEFAULT,
    ("bitsandbytes", "AdamW8bit"): "adamw_8bit",
    ("bitsandbytes", "PagedAdamW8bit"): "paged_adamw_8bit",
    ("transformers", "Adafactor"): "adafactor",
}


def _applies(workload: Workload) -> bool:
    return workload.trains


def _bnb_unavailable(environment: Environment) -> Reason | None:
    if environment.version("bitsandbytes") is None:
        return Reason("O1", Verdict.INVALID, "the package bitsandbytes isn't installed", "pip install bitsandbytes")
    if not environment.is_cuda:
        return Reason("O1", Verdict.INVALID, "bitsandbytes' optimizers in 8 bits need a GPU")
    if (environment.compute_capability or (0, 0)) < (6, 0):
        return Reason("O1", Verdict.INVALID, "bitsandbytes' optimizers need compute capability 6.0")
    return None


def _eight_bit_why_not(situation: Situation) -> list[Reason]:
    """Rule O3: where adapters alone are trained, what AdamW keeps of them is small beside all else."""
    if situation.workload.trains_adapters:
        text = "adapters are few: what AdamW keeps of them is too little to be worth rounding"
        return [Reason("O3", Verdict.ALIAS, text, "--ignore-rule O3 tries it")]
    return []


def _adafactor_why_not(_: Situation) -> list[Reason]:
    text = "Adafactor is another optimizer, and learns otherwise: it is tried on your word alone"
    return [Reason("O2", Verdict.INVALID, text, "--ignore-rule O2")]


def _read(model: Any, _: Mapping[str, Any]) -> Mapping[str, Any]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return {}
    kind = type(optimizer)
    state: Mapping[str, Any] = next(iter(optimizer.state.values()), {})
    return {
        "class": kind.__name__,
        "from": kind.__module__.split(".")[0],
        "fused": bool(optimizer.defaults.get("fused")),
        "state": sorted({str(each.dtype) for each in state.values() if getattr(each, "ndim", 0)}),
    }


def _undo(model: Any) -> None:
    vars(model).pop("optimizer", None)


def _effective(reading: Reading) -> str:
    own: Mapping[str, Any] = reading.own.get("optimizer") or {}
    made = str(own.get("from", "")), str(own.get("class", "none"))
    return _CLASSES.get(made, " ".join(filter(None, made)))


def _proof(name: str) -> Any:
    def proof(reading: Reading) -> str | None:
        own: Mapping[str, Any] = reading.own.get("optimizer") or {}
        if _effective(reading) != name:
            return f"the optimizer was {_effective(reading)}"
        if name == _DEFAULT and not own.get("fused"):
            return "AdamW was not fused"
        return None

    return proof


def _choice(name: str, words: str, statement: str, source: str, **more: Any) -> Choice:
    return Choice(
        "optimizer",
        name,
        words,
        source,
        on_model=(f"model.optimizer = {statement}",),
        proof=_proof(name),
        trainer={"optim": repr(name)},
        **more,
    )


#: Of each value that is trained bitsandbytes keeps two bytes, and a scale of 4 every 256 for each of both.
_EIGHT_BIT: Mapping[str, Any] = {
    "unavailable": _bnb_unavailable,
    "why_not": _eight_bit_why_not,
    "imports": ("import bitsandbytes",),
    "packages": ("bitsandbytes",),
    "tier": lambda _: Tier.EIGHT_BIT,
    "traits": Traits(state_bytes=2.0 + 2 * 4 / 256),
}

KNOB = Knob(
    name="optimizer",
    summary="what makes a step of gradients, in training",
    reload=False,
    default=lambda _: _DEFAULT,
    effective=_effective,
    applies=_applies,
    choices={
        choice.name: choice
        for choice in (
            _choice(
                _DEFAULT,
                "torch's AdamW, one kernel for many weights",
                f"torch.optim.AdamW({_TRAINED}, lr=5e-5, weight_decay=0.0, fused=True)",
                _SOURCE,
                imports=("import torch",),
            ),
            _choice(
                "adamw_8bit",
                "bitsandbytes' AdamW, what it keeps in 8 bits",
                f"bitsandbytes.optim.AdamW8bit({_TRAINED}, lr=5e-5, weight_decay=0.0)",
                _BNB,
                **_EIGHT_BIT,
            ),
            _choice(
                "paged_adamw_8bit",
                "the same, moved to the CPU's memory where the GPU's ends",
                f"bitsandbytes.optim.PagedAdamW8bit({_TRAINED}, lr=5e-5, weight_decay=0.0)",
                _BNB,
                **_EIGHT_BIT,
            ),
            _choice(
                "adafactor",
                "transformers' Adafactor, rows and columns of squares alone",
                f"Adafactor({_TRAINED}, lr=5e-5, scale_parameter=False, relative_step=False)",
                _SOURCE,
                why_not=_adafactor_why_not,
                imports=("from transformers.optimization import Adafactor",),
                traits=Traits(state_bytes=0.01),
            ),
        )
    },
    place=57,
    read=_read,
    undo=_undo,
)
