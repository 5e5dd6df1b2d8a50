"""Autocast: in which dtype the products of training are, where the weights keep another.

Trainer calls it `bf16=True`. Weights in fp32 with products in bf16 are what is called mixed precision: what a step changes is not
rounded away, and products run on tensor cores. Weights that are in bf16 gain nothing by it, but adapters do that peft keeps in
fp32 beside them. fp16 is left out: it needs its losses scaled, and a GPU of today has bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, on_all
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier
from advisor.workloads import Workload

_SOURCE = "https://docs.pytorch.org/docs/stable/amp.html"

#: The choice to leave products in the weights' dtype.
OFF = "off"

_BF16 = "autocast-bf16"


def _applies(workload: Workload) -> bool:
    return workload.trains


def _unavailable(environment: Environment) -> Reason | None:
    if environment.is_cuda and (environment.compute_capability or (0, 0)) < (8, 0):
        return Reason("D4", Verdict.INVALID, "products in bf16 need tensor cores of compute capability 8.0")
    return None


def _why_not(situation: Situation) -> list[Reason]:
    about = f"precision={situation.configuration['precision']}"
    if situation.traits.dtype == "float16":
        text = "weights in fp16 are not what Trainer's bf16 is for"
        return [Reason("D4", Verdict.INVALID, text, "choose bf16 or fp32", about=about)]
    if situation.traits.dtype == "bfloat16" and not situation.workload.trains_adapters:
        return [Reason("D4", Verdict.ALIAS, "the weights are in bf16 already, and so are their products", about=about)]
    return []


def _rates(situation: Situation) -> Mapping[Term, float]:
    """Weights in fp32 are rounded anew for every product; of weights in bf16 it is adapters alone that gain."""
    if situation.traits.bytes_per_value < 4:
        return {Term.LINEAR: 1.05}
    return on_all(9.0 if situation.environment.is_cuda else 0.25)


def _read(model: Any, _: Mapping[str, Any]) -> str | None:
    dtype = getattr(model, "autocast", None)
    return None if dtype is None else str(dtype)


def _undo(model: Any) -> None:
    vars(model).pop("autocast", None)


def _effective(reading: Reading) -> str:
    return _BF16 if reading.own.get("autocast") == "torch.bfloat16" else OFF


def _proof(name: str) -> Any:
    """The switch was set, and what torch's autocast launches to round a weight was seen: a copy to another dtype."""

    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        if ran != name:
            return f"products were in {'bf16' if ran == _BF16 else 'the weights’ dtype'}"
        has_cast = any(part in operator for operator in reading.operators for part in ("aten::to", "aten::_to_copy"))
        is_hidden = reading.compiled_regions and reading.hides_layers
        return None if name == OFF or has_cast or is_hidden else "no weight was seen to be rounded"

    return proof


KNOB = Knob(
    name="autocast",
    summary="dtype of training's products",
    reload=False,
    default=lambda _: OFF,
    effective=_effective,
    applies=_applies,
    choices={
        choice.name: choice
        for choice in (
            Choice("autocast", OFF, "products in the weights' dtype", _SOURCE, proof=_proof(OFF)),
            Choice(
                "autocast",
                _BF16,
                "products in bf16, whatever the weights are in",
                _SOURCE,
                unavailable=_unavailable,
                why_not=_why_not,
                on_model=("model.autocast = torch.bfloat16",),
                imports=("import torch",),
                proof=_proof(_BF16),
                tier=lambda facts: Tier.EXACT if facts.checkpoint_dtype == "bfloat16" else Tier.DTYPE,
                rates=_rates,
                trainer={"bf16": "True"},
                traits=Traits(autocasts=True),
            ),
        )
    },
    implied=OFF,
    place=25,
    numbers=True,
    read=_read,
    undo=_undo,
)
