"""The options of training: what is trained, of which modules, how many sequences a step has; and what people type.

The flags' words and defaults, for `advisor.workloads.train`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.checked import matches
from advisor.nouns.option import Option, whole_word
from advisor.nouns.reading import read_texts, read_whole
from advisor.workloads.options import LIST_OPTIONS
from advisor.workloads.train_refused import ALL_LINEAR, FULL, METHODS

#: What TRL's ModelConfig has: a rank, and alpha twice as large. Its dropout of adapters (0.05) is left out: a step would be
#: another one each time, and nothing that is tuned depends on it.
RANK, ALPHA_OVER_RANK = 16, 2

#: peft's own modules for the type of model, where none are named.
OWN_TARGETS = ()

#: So many steps are in a list of generated lengths: a step takes as long as many forward passes.
DEFAULT_STEPS = 4


def _read_targets(value: Any, name: str) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else read_texts(value, name)
    targets = tuple(sorted({each.strip() for each in listed}))
    if not targets or not all(map(matches(r"[\w.-]{1,100}"), targets)):
        raise BadInput(f"{named(name)} takes names of modules such as q_proj,v_proj, or {ALL_LINEAR}")
    if ALL_LINEAR in targets and len(targets) > 1:
        raise BadInput(f"{named(name)} {ALL_LINEAR} is every linear layer but the output's: it goes with no other name")
    return targets


def no_step() -> BadInput:
    """Return what is said where how many sequences a step has is left to be tuned."""
    return BadInput(
        f"{named('batch')} auto: how many sequences a step has decides what is learned, and is yours to say",
        "how many of them share a forward pass is tuned: it is the knob micro_batch",
    )


def _read_step(value: Any, name: str) -> int:
    """Return how many sequences a step has. Raises BadInput."""
    if value == "auto":
        raise no_step()
    return read_whole(value, name)


def _own(option: Option) -> Option:
    """Return an option of a list in the words of training."""
    if option.name == "batch":
        return replace(
            option, help="sequences a step of the optimizer (default: %(default)s)", read=_read_step, word=whole_word
        )
    if option.name == "batches":
        return replace(option, help=f"steps in the list (default: {DEFAULT_STEPS})", default=DEFAULT_STEPS)
    return option


OPTIONS = (
    *map(_own, LIST_OPTIONS),
    Option(
        "method",
        "what is trained: all weights, LoRA adapters, or these beside weights in 4 or 8 bits (default: %(default)s)",
        default=FULL,
        choices=METHODS,
    ),
    Option(
        "rank",
        f"of the adapters; their alpha is {ALPHA_OVER_RANK} times as large (default: %(default)s)",
        read_whole,
        default=RANK,
        metavar="R",
        word=whole_word,
    ),
    Option(
        "targets",
        "modules with an adapter, or all-linear (default: peft's own for the type of model)",
        _read_targets,
        metavar="NAME[,NAME…]",
    ),
)

#: By command, what `--help` shows below these flags: command lines, each with what it does.
COMMANDS = {
    "tune": (
        ("advisor tune MODEL --workload train --lengths-from samples.jsonl --batch 8", "all weights, on your samples"),
        ("advisor tune MODEL --workload train --method lora --lengths 2048 --padding 0.3 --batch 8", "LoRA adapters"),
        (
            "advisor tune MODEL --workload train --method qlora --quality 4bit --max-memory 24GiB",
            "adapters beside 4-bit weights, within 24 GiB",
        ),
    ),
    "suggest": (
        (
            "advisor suggest MODEL --workload train --method lora --format trainer",
            "a script with transformers' Trainer",
        ),
        ("advisor suggest MODEL --workload train --method lora --format trl", "one with TRL's SFTTrainer"),
        ("advisor suggest MODEL --workload train --why-not checkpointed", "why nothing is computed again"),
    ),
}
