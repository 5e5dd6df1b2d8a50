"""What can't be trained, or not so: said of a model's facts, before each trial fails for it."""

from __future__ import annotations

from importlib.util import find_spec

from advisor.errors import BadInput, named
from advisor.nouns.model import ModelFacts
from advisor.workloads.workload import Workload

#: What is trained: all weights; adapters of low rank beside them (peft); the same beside weights in fewer bits.
FULL, LORA, QLORA = METHODS = ("full", "lora", "qlora")

#: peft's word for every linear layer but the output's.
ALL_LINEAR = "all-linear"

#: So many names of modules are told where one is wrong.
_NAMES_TOLD = 12


def refuse_untrainable(workload: Workload, facts: ModelFacts, name: str) -> None:
    """Raise BadInput where a model of these facts can't be trained as a workload says."""
    if workload.trains_adapters and find_spec("peft") is None:
        raise BadInput(
            f"{named('method')} {workload.output}: adapters are peft's, and the package peft isn't installed",
            "pip install peft",
        )
    if facts.prequantized and not workload.trains_adapters:
        raise BadInput(
            f"{name} is quantised ({facts.prequantized}): Q17 weights in so few bits can't be trained",
            f"{named('method')} {QLORA} trains adapters beside them",
        )
    _refuse_targets(tuple(workload.payload.get("targets", ())), facts, name)


def _refuse_targets(targets: tuple[str, ...], facts: ModelFacts, name: str) -> None:
    """Refuse modules that no adapter can stand beside, by the last parts of names, as peft looks for them.

    peft is content with one that it finds; a name that is nowhere is a slip all the same.
    """
    strange = [target for target in targets if not any(_is_last(target, name_) for name_ in facts.weighed)]
    if strange and facts.weighed and targets != (ALL_LINEAR,):
        known = sorted({each.rpartition(".")[2] for each in facts.weighed} - {"*"})
        told = ", ".join(known[:_NAMES_TOLD]) + (", …" if len(known) > _NAMES_TOLD else "")
        raise BadInput(
            f"{named('targets')} {','.join(strange)}: {name} has no module of that name that an adapter could stand beside",
            f"it has {told}",
        )


def _is_last(target: str, name: str) -> bool:
    """Whether a target is the last parts of a module's name, which has * in place of numbers."""
    parts = ["*" if part.isdigit() else part for part in target.split(".")]
    return name.split(".")[-len(parts) :] == parts
