"""Knobs: the tunable dimensions, each a table of choices in a file of its own.

A choice is one entry: its name, why it may not run here, what it changes when the model is loaded, and the proof that it
ran. What it changes is written as Python source: the worker executes these lines and the suggestion prints them, so the
lines a user pastes are the lines that were measured.

Further ones come from the modules named in ADVISOR_PLUGINS: the KNOBS of each are registered (`advisor.plugins`), then its
CHOICES, and its KINDS of work.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from advisor.errors import BadInput
from advisor.knobs import (
    autocast,
    batch,
    checkpointing,
    compilation,
    kernels,
    micro_batch,
    optimizer,
    packing,
    precision,
)
from advisor.knobs.attention import choices as attention
from advisor.knobs.choice import (
    KNOBS,
    Batching,
    Choice,
    Collation,
    Knob,
    Reading,
    Reason,
    Situation,
    Term,
    Verdict,
    always,
    traits_of,
)
from advisor.knobs.quantization import choices as quantization
from advisor.knobs.quantization.common import share_words
from advisor.knobs.traits import GENERIC, Traits, merged
from advisor.nouns.configuration import IMPLIED, OF_SOME_WORK, Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Tier
from advisor.plugins import PLUGINS, register_all
from advisor.workloads import DEFAULT_KIND, Workload
from advisor.workloads import register as register_kind

__all__ = [
    "GENERIC",
    "HAVE_PLUGIN",
    "KNOBS",
    "RULES_VERSION",
    "Batching",
    "Choice",
    "Collation",
    "Knob",
    "Reading",
    "Reason",
    "Situation",
    "Term",
    "Traits",
    "Verdict",
    "advised",
    "always",
    "baseline_choices",
    "call_arguments",
    "choice_of",
    "choices_of",
    "collate",
    "collation_of",
    "compiles",
    "compiling_s",
    "effective_choices",
    "fixes_weights",
    "function_of",
    "is_whole",
    "knobs_for",
    "known_choices",
    "merged",
    "reference_choices",
    "register",
    "register_knob",
    "rule_ids",
    "share_words",
    "tier_of",
    "traits_of",
    "unknown",
    "unproven_in",
    "weights_of",
]

#: Of all rules of all choices together: it is raised whenever one of them comes, goes or says something else.
RULES_VERSION = 3

_OWN = (
    attention.KNOB,
    precision.KNOB,
    quantization.KNOB,
    packing.KNOB,
    batch.KNOB,
    kernels.KNOB,
    compilation.KNOB,
    autocast.KNOB,
    micro_batch.KNOB,
    checkpointing.KNOB,
    optimizer.KNOB,
)


def knobs_for(workload: Workload) -> dict[str, Knob]:
    """Return the knobs that can be turned for a workload: a configuration has a choice of each."""
    return {name: knob for name, knob in KNOBS.items() if knob.applies(workload)}


def register_knob(knob: Knob) -> None:
    """Add a knob to the table. Raises ValueError for a name that is there already, or that no configuration can spell."""
    if knob.name in KNOBS:
        raise ValueError(f"there is a knob {knob.name!r} already")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", knob.name):
        raise ValueError(f"a knob's name is of small letters, digits, _ and -, not {knob.name!r}")
    known = sorted([*KNOBS.values(), knob], key=lambda each: (each.place, each.name))
    KNOBS.clear()
    KNOBS.update({each.name: each for each in known})
    IMPLIED.clear()
    IMPLIED.update({each.name: each.implied for each in known})
    OF_SOME_WORK.clear()
    OF_SOME_WORK.update(each.name for each in known if not any(map(each.applies, DEFAULT_KIND.examples)))


def register(choice: Choice) -> None:
    """Add a choice to its knob's table; a name that is there already is refused with ValueError, and so is an unknown knob."""
    if choice.knob not in KNOBS:
        raise ValueError(f"{choice.name!r} is a choice of {choice.knob!r}, which is no knob")
    choices = KNOBS[choice.knob].choices
    if choice.name in choices:
        raise ValueError(f"{choice.knob} has a choice {choice.name!r} already")
    choices[choice.name] = choice


def choice_of(knob: str, name: str) -> Choice:
    """Return the choice, KeyError where there is none."""
    return KNOBS[knob].choices[name]


def choices_of(configuration: Configuration) -> list[Choice]:
    """Return the choices of a configuration, implied ones too, in the order of the knobs.

    Raises BadInput where it states one that is not known here.
    """
    if missing := unknown(configuration):
        raise BadInput(
            f"{configuration} is not known here: {missing[0]}", "" if unproven_in(configuration) else HAVE_PLUGIN
        )
    return known_choices(configuration)


def known_choices(configuration: Configuration) -> list[Choice]:
    """Return the same, without those that are not known here."""
    return [choice_of(knob, name) for knob, name in configuration.over(KNOBS) if name in KNOBS[knob].choices]


def compiling_s(configuration: Configuration, layers: int) -> float:
    """Return the seconds that a configuration's choices are expected to compile for; one that is not known counts as none.

    layers: of the model.
    """
    return sum(choice.compiling_s(layers) for choice in known_choices(configuration))


def compiles(configuration: Configuration) -> bool:
    """Whether a choice of a configuration compiles; one that is not known here is taken not to."""
    return any(choice.compiles for choice in known_choices(configuration))


#: What a choice's name ends with where it was asked for, and no proof, its own or another's, showed what ran.
_UNPROVEN = " (unproven)"


def unproven_in(configuration: Configuration) -> list[str]:
    """Return, in words, each choice of a configuration of which nobody knows whether it is what ran."""
    return [
        f"it is unproven that {knob} {name.removesuffix(_UNPROVEN)} ran"
        for knob, name in configuration.items()
        if name.endswith(_UNPROVEN)
    ]


#: What helps where a stored configuration names what this process does not have.
HAVE_PLUGIN = "name the module that has it in ADVISOR_PLUGINS"


def unknown(configuration: Configuration) -> list[str]:
    """Return, in words, each stated choice that this process has not: of a plugin, say, that is not loaded any more.

    Nobody can say what it did, so that it is neither run nor recommended; and so it is with what nothing proved.
    """
    return unproven_in(configuration) or [
        f"there is no knob {knob} (it says {name})" if knob not in KNOBS else f"{knob} has no choice {name}"
        for knob, name in configuration.items()
        if knob not in KNOBS or name not in KNOBS[knob].choices
    ]


def is_whole(configuration: Configuration, workload: Workload) -> bool:
    """Whether a configuration has a choice of every knob that can be turned for a workload, and none that is unknown."""
    return not unknown(configuration) and all(knob in configuration for knob in knobs_for(workload))


def call_arguments(configuration: Configuration) -> dict[str, str]:
    """Return the keyword arguments that choices add to every call of the model, as Python expressions by name."""
    return {name: text for choice in choices_of(configuration) for name, text in choice.call(configuration).items()}


def reference_choices() -> dict[str, str]:
    """Return the choices that the gate's reference is computed with; the other knobs' are the default's."""
    return {name: knob.reference for name, knob in KNOBS.items() if knob.reference}


def fixes_weights(choice: Choice, *, switches_attention: bool) -> bool:
    """Whether the weights are loaded for this choice alone. switches_attention: see `ModelFacts`."""
    is_fixed = choice.knob == "attention" and not switches_attention
    return KNOBS[choice.knob].reload or choice.traits.own_load or is_fixed


def weights_of(configuration: Configuration, *, switches_attention: bool) -> tuple[tuple[str, str], ...]:
    """Return the choices that the loaded weights depend on, implied ones too; one that nobody knows is taken to be one."""
    known = [
        (knob, name)
        for knob, name in configuration.over(KNOBS)
        if name not in KNOBS[knob].choices
        or fixes_weights(choice_of(knob, name), switches_attention=switches_attention)
    ]
    return (*known, *(item for item in configuration.items() if item[0] not in KNOBS))


def collation_of(configuration: Configuration, batching: Batching) -> Collation:
    """Return how a configuration makes a batch."""
    return next(c.collation(batching) for c in choices_of(configuration) if c.collation is not None)


def collate(
    configuration: Configuration, sequences: Sequence[Any], batching: Batching
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Return the arguments of a call for token ids, and each one's row, first column and the column after its last."""
    collation = collation_of(configuration, batching)
    given = {name: getattr(batching, name) for name in collation.given}
    made: tuple[dict[str, Any], list[tuple[int, int, int]]] = function_of(collation.module, collation.name)(
        list(sequences), **given
    )
    return made


def function_of(module: str, name: str) -> Callable[..., Any]:
    """Return a function that a choice names. The worker alone asks for it: its module may load torch."""
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def advised(configuration: Configuration) -> bool:
    """Whether all of a configuration's choices are known ones that may be recommended; and no knob is missing.

    But for a knob that can be turned for some work alone, such as batch where the caller leaves it open.
    """
    if any(knob.applies is always and name not in configuration for name, knob in KNOBS.items()):
        return False
    return not unknown(configuration) and all(choice.traits.advised for choice in choices_of(configuration))


def baseline_choices(facts: ModelFacts, workload: Workload) -> dict[str, str]:
    """Return what transformers does when told nothing: the class's default attention, the checkpoint's dtype, padding."""
    return {name: knob.of_work(facts, workload) or knob.default(facts) for name, knob in knobs_for(workload).items()}


def effective_choices(reading: Reading, workload: Workload) -> dict[str, str]:
    """Return the choices that really ran, from a worker's reading.

    What was read back has to bring its proof too; without it the figures count for the choice whose proof holds.
    """
    return {name: _proven(knob, knob.effective(reading), reading) for name, knob in knobs_for(workload).items()}


def _proven(knob: Knob, name: str, reading: Reading) -> str:
    if name not in knob.choices or knob.choices[name].proof(reading) is None:
        return name
    others = (choice.name for choice in knob.choices.values() if choice.proof(reading) is None)
    return next(others, f"{name}{_UNPROVEN}")


def tier_of(choices: Iterable[tuple[str, str]], facts: ModelFacts) -> Tier:
    """Return the quality tier of choices: the worst of theirs. Unknown names count as exact; what is implied is exact."""
    worst = Tier.EXACT
    for knob, name in choices:
        choice = KNOBS[knob].choices.get(name) if knob in KNOBS else None
        if choice is not None and (tier := choice.tier(facts)) is not worst:
            worst = Tier.worst(worst, tier)
    return worst


def rule_ids() -> list[str] | None:
    """Return the ids of all rules, read where they are made: asking every choice about every situation would take seconds.

    None where they are not all known: plugins have their own, and an installation may come without its source.
    """
    search = Path(__file__).parents[1] / "search"
    files = [*Path(__file__).parent.rglob("*.py"), search / "space.py", search / "admission.py"]
    if PLUGINS or not all(file.is_file() for file in files):
        return None
    # F is no rule's letter: "F32" is a dtype in a checkpoint's header.
    found = {rule for file in files for rule in re.findall(r'"([A-EG-Z]\d+)"', file.read_text("utf-8"))}
    return sorted(found, key=lambda rule: (rule[0], int(rule[1:])))


def _register_foreign(knob: Knob) -> None:
    """Add a knob from elsewhere. Raises ValueError where it implies no choice: nobody could say what was measured without it."""
    if not knob.implied:
        raise ValueError(f"its knob {knob.name} implies no choice: what does a configuration have without it?")
    register_knob(knob)


for _knob in _OWN:
    register_knob(_knob)
register_all({"KINDS": register_kind, "KNOBS": _register_foreign, "CHOICES": register})
