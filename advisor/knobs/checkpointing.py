"""Checkpointing: whether what a layer computed is kept for the way back, or computed again there (gradient checkpointing).

It buys memory with a forward pass more. Trainer calls it `activation_checkpointing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, on_all
from advisor.knobs.traits import Traits
from advisor.workloads import Workload

_SOURCE = "https://huggingface.co/docs/transformers/grad_checkpointing"

#: The choice to keep all.
OFF = "off"

_ON = "checkpointed"


def _applies(workload: Workload) -> bool:
    return workload.trains


def _why_not(situation: Situation) -> list[Reason]:
    """Rule T1: a class that does not say where it can be done does not do it."""
    if situation.facts.checkpoints is False:
        text = f"{situation.facts.architecture} does not support it (supports_gradient_checkpointing)"
        return [Reason("T1", Verdict.INVALID, text)]
    return []


def _rates(situation: Situation) -> Mapping[Term, float]:
    """One forward pass more, and no product of adapters alone is saved by it."""
    passes = situation.workload.passes
    return {**on_all(passes / (passes + 1)), Term.LAUNCHES: passes / (passes + 1)}


def _facts(model: Any) -> Mapping[str, Any]:
    return {"checkpoints": bool(getattr(model, "supports_gradient_checkpointing", False))}


def _read(model: Any, _: Mapping[str, Any]) -> int:
    """Return how many modules compute again what they computed."""
    return sum(bool(vars(module).get("gradient_checkpointing")) for module in model.modules())


def _undo(model: Any) -> None:
    if any(vars(module).get("gradient_checkpointing") for module in model.modules()):
        model.gradient_checkpointing_disable()


def _effective(reading: Reading) -> str:
    return _ON if reading.own.get("checkpointing") else OFF


def _proof(name: str) -> Any:
    def proof(reading: Reading) -> str | None:
        count = reading.own.get("checkpointing") or 0
        return None if _effective(reading) == name else f"{count} modules compute again what they computed"

    return proof


KNOB = Knob(
    name="checkpointing",
    summary="what layers compute, kept or computed again",
    reload=False,
    default=lambda _: OFF,
    effective=_effective,
    applies=_applies,
    choices={
        choice.name: choice
        for choice in (
            Choice("checkpointing", OFF, "all is kept for the way back", _SOURCE, proof=_proof(OFF)),
            Choice(
                "checkpointing",
                _ON,
                "a layer's input is kept, and the rest computed again",
                _SOURCE,
                why_not=_why_not,
                on_model=('model.gradient_checkpointing_enable({"use_reentrant": False})',),
                proof=_proof(_ON),
                rates=_rates,
                trainer={
                    "activation_checkpointing": "True",
                    "activation_checkpointing_kwargs": '{"use_reentrant": False}',
                },
                traits=Traits(recomputes=True),
            ),
        )
    },
    facts=_facts,
    implied=OFF,
    place=56,
    read=_read,
    undo=_undo,
    spares=True,
)
