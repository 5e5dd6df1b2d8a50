"""Knobs: the tunable dimensions, each a table of choices in a file of its own.

A choice is one entry: its name, why it may not run here, what it changes when the model is loaded, and the proof that it
ran. What it changes is written as Python source: the worker executes these lines and the suggestion prints them, so the
lines a user pastes are the lines that were measured.

Further choices come from the modules named in ADVISOR_PLUGINS: the CHOICES of each are registered (`advisor.plugins`), and its
KINDS of work.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.configuration import READING_ORDER, Configuration
from advisor.knobs import attention, batch, packing, precision, quantization
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
    traits_of,
)
from advisor.knobs.quantization import share_words
from advisor.knobs.traits import GENERIC, Traits
from advisor.model import ModelFacts
from advisor.objective import Tier
from advisor.plugins import PLUGINS, register_all
from advisor.workloads import Workload
from advisor.workloads import register as register_kind

__all__ = [
    "GENERIC",
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
    "baseline_choices",
    "choice_of",
    "choices_of",
    "collate",
    "collation_of",
    "effective_choices",
    "fixes_weights",
    "function_of",
    "knobs_for",
    "reference_choices",
    "register",
    "rule_ids",
    "share_words",
    "tier_of",
    "traits_of",
]

#: Of all rules of all choices together: it is raised whenever one of them comes, goes or says something else.
RULES_VERSION = 1

_OWN = (attention.KNOB, precision.KNOB, quantization.KNOB, packing.KNOB, batch.KNOB)
KNOBS.update({knob.name: knob for knob in sorted(_OWN, key=lambda knob: READING_ORDER.index(knob.name))})


def knobs_for(workload: Workload) -> dict[str, Knob]:
    """Return the knobs that can be turned for a workload: a configuration has a choice of each."""
    return {name: knob for name, knob in KNOBS.items() if knob.applies(workload)}


def register(choice: Choice) -> None:
    """Add a choice to its knob's table; a name that is there already is refused with ValueError."""
    choices = KNOBS[choice.knob].choices
    if choice.name in choices:
        raise ValueError(f"{choice.knob} has a choice {choice.name!r} already")
    choices[choice.name] = choice


def choice_of(knob: str, name: str) -> Choice:
    """Return the choice, KeyError where there is none."""
    return KNOBS[knob].choices[name]


def choices_of(configuration: Mapping[str, str]) -> list[Choice]:
    """Return the choices of a configuration, KeyError where one is unknown."""
    return [choice_of(knob, name) for knob, name in configuration.items()]


def reference_choices() -> dict[str, str]:
    """Return the choices that the gate's reference is computed with; the other knobs' are the default's."""
    return {name: knob.reference for name, knob in KNOBS.items() if knob.reference}


def fixes_weights(choice: Choice, *, switches_attention: bool) -> bool:
    """Whether the weights are loaded for this choice alone. switches_attention: see `ModelFacts`."""
    is_fixed = choice.knob == "attention" and not switches_attention
    return KNOBS[choice.knob].reload or choice.traits.own_load or is_fixed


def collation_of(configuration: Mapping[str, str], batching: Batching) -> Collation:
    """Return how a configuration makes a batch."""
    return next(c.collation(batching) for c in choices_of(configuration) if c.collation is not None)


def collate(
    configuration: Mapping[str, str], sequences: Sequence[Any], batching: Batching
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
    """Whether all of a configuration's choices are known ones, of known knobs, that may be recommended; and no knob is missing.

    But for batch, which is a knob only where the caller leaves it open.
    """
    if not KNOBS.keys() - {"batch"} <= configuration.keys():
        return False
    choices = (KNOBS[knob].choices.get(name) if knob in KNOBS else None for knob, name in configuration.items())
    return all(choice is not None and choice.traits.advised for choice in choices)


def baseline_choices(facts: ModelFacts, workload: Workload) -> dict[str, str]:
    """Return what transformers does when told nothing: the class's default attention, the checkpoint's dtype, padding."""
    return {name: knob.default(facts) for name, knob in knobs_for(workload).items()}


def effective_choices(reading: Reading, workload: Workload) -> dict[str, str]:
    """Return the choices that really ran, from a worker's reading.

    What was read back has to bring its proof too; without it the figures count for the choice whose proof holds.
    """
    return {name: _proven(knob, knob.effective(reading), reading) for name, knob in knobs_for(workload).items()}


def _proven(knob: Knob, name: str, reading: Reading) -> str:
    if name not in knob.choices or knob.choices[name].proof(reading) is None:
        return name
    others = (choice.name for choice in knob.choices.values() if choice.proof(reading) is None)
    return next(others, f"{name} (unproven)")


def tier_of(choices: Iterable[tuple[str, str]], facts: ModelFacts) -> Tier:
    """Return the quality tier of a configuration: the worst of its choices'. Unknown names count as exact."""
    tiers = [
        KNOBS[knob].choices[name].tier(facts) for knob, name in choices if knob in KNOBS and name in KNOBS[knob].choices
    ]
    return Tier.worst(Tier.EXACT, *tiers)


def rule_ids() -> list[str] | None:
    """Return the ids of all rules, read where they are made: asking every choice about every situation would take seconds.

    None where they are not all known: plugins have their own, and an installation may come without its source.
    """
    files = [*Path(__file__).parent.glob("*.py"), Path(__file__).parents[1] / "space.py"]
    if PLUGINS or not all(file.is_file() for file in files):
        return None
    found = {rule for file in files for rule in re.findall(r'"([A-Z]\d+)"', file.read_text("utf-8"))}
    return sorted(found, key=lambda rule: (rule[0], int(rule[1:])))


register_all({"KINDS": register_kind, "CHOICES": register})
