"""The options of all work: what may be asked of the objective, the search and the machine. A kind of work adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.environment import THREADS_MOST
from advisor.nouns.objective import Budget, Tier
from advisor.nouns.option import Option, switch, whole_word
from advisor.nouns.reading import (
    is_listed,
    read_count,
    read_duration,
    read_latency,
    read_size,
    read_text,
    read_texts,
    read_whole,
    shown,
    whole,
)
from advisor.workloads import Kind

DEFAULT_BUDGET = "10m"

#: So much work is to pay for a search that nobody bounds. On made-up landscapes a quarter of it ended too early in 5 of 80.
DEFAULT_PAYBACK = "1h"

#: In place of a knob: what is left is one configuration, by its label.
LABEL = ""

#: A knob and what is left of its choices, or LABEL and a label, with the name of the option that says so.
Restriction = tuple[str, str, tuple[str, ...]]


def _read_restrictions(value: Any, name: str) -> tuple[Restriction, ...]:
    """Return what a mapping of choices by knob says, or texts such as attention=sdpa,eager. Raises BadInput."""
    if isinstance(value, Mapping):
        return tuple((name, str(knob), _read_choices(value, knob, name)) for knob in value)
    return tuple(_read_restriction(text, name, "KNOB=CHOICE[,CHOICE…]") for text in read_texts(value, name))


def _read_choices(value: Mapping[Any, Any], knob: Any, name: str) -> tuple[str, ...]:
    given = value[knob].split(",") if isinstance(value[knob], str) else value[knob]
    choices = [_read_choice(each, knob, name) for each in (given if is_listed(given) else [given])]
    if not choices or not all(choices):
        raise BadInput(
            f"{named(name)} takes choices by knob such as {{'precision': ['fp32', 'tf32']}}, not {shown(value)}"
        )
    return tuple(sorted(set(choices)))


def _read_choice(value: Any, knob: Any, name: str) -> str:
    """Return the text of a choice, which may be a number: batch has some. Raises BadInput."""
    try:
        return value if isinstance(value, str) else str(whole(value))
    except ValueError:
        raise BadInput(f"{named(name)}: a choice of {shown(knob)} must be a text, not {shown(value)}") from None


def _read_restriction(text: str, name: str, form: str) -> Restriction:
    if "=" not in text and text.strip():
        return name, LABEL, (text,)
    knob, sign, listed = text.partition("=")
    choices = tuple(sorted(set(listed.split(","))))
    if not sign or not all(choices) or (len(choices) > 1 and "," not in form):
        raise BadInput(f"{named(name)} takes {form}, not {text!r}")
    return name, knob, choices


def _read_fixed(value: Any, name: str) -> tuple[Restriction, ...]:
    if isinstance(value, Mapping):
        kept = _read_restrictions(value, name)
        if several := next((knob for _, knob, choices in kept if len(choices) > 1), None):
            raise BadInput(f"{named(name)} takes one choice of {several}", f"{named('only')} takes several")
        return kept
    return tuple(_read_restriction(text, name, "KNOB=CHOICE") for text in read_texts(value, name))


def objective_options(kind: Kind) -> tuple[Option, ...]:
    """Return the options that say what is wanted of a kind of work."""
    return (
        Option(
            "objective",
            "what to make the best of (default: %(default)s)",
            default=kind.aim.name,
            choices=tuple(kind.objectives),
        ),
        Option(
            "quality",
            "the most that may be lost (default: %(default)s)",
            default=str(Tier.DTYPE),
            choices=tuple(str(tier) for tier in Tier),
        ),
        Option("max_memory", "peak memory allowed, for example 24GiB", read_size, metavar="SIZE"),
        Option(
            "calls",
            "how many batches the job has: loading, first call and compiling are spread over them",
            read_count,
            metavar="N",
        ),
        Option("max_latency", "time allowed to the slowest batch, for example 80ms", read_latency, metavar="TIME"),
        Option(
            "only",
            "try these choices of a knob alone, or the one configuration with this label, beside the default",
            _read_restrictions,
            default=(),
            metavar="KNOB=CHOICE[,CHOICE…]|LABEL",
            repeats=True,
        ),
        Option("fix", "the same with one choice", _read_fixed, default=(), metavar="KNOB=CHOICE|LABEL", repeats=True),
        Option(
            "ignore_rule",
            "try what a rule refuses; the gate judges it",
            read_texts,
            default=(),
            metavar="ID",
            repeats=True,
        ),
        switch("allow_unjudged", "recommend lossy choices although weights are random"),
        ALLOW_PICKLE,
    )


ALLOW_PICKLE = switch("allow_pickle", "load pickle checkpoints, which can run code")


def _read_device(value: Any, name: str) -> str:
    """Return a device's name, of a torch.device too. Raises BadInput."""
    is_torchs = (type(value).__module__, type(value).__name__) == ("torch", "device")
    return str(value) if is_torchs else read_text(value, name)


def _read_threads(value: Any, name: str) -> int:
    number = read_count(value, name)
    if number > THREADS_MOST:
        raise BadInput(f"{named(name)} must be at most {THREADS_MOST}, not {number}")
    return number


DEVICE = Option("device", "cuda:0, cuda:1, … or cpu (default: the first usable GPU)", _read_device, metavar="DEVICE")

THREADS = Option(
    "threads",
    "CPU threads (default: a thread a core, as torch takes them)",
    _read_threads,
    metavar="N",
    word=whole_word,
)

#: Where something is run.
PLACE = (DEVICE, THREADS)

#: Where a stored answer may be from.
ON = Option("on", "an environment's key or part of a device's name", metavar="ENVIRONMENT")

_TRIALS = Option("trials", "configurations to try in the search", read_count, metavar="N", word=whole_word)

_CONFIRMED = "at most N blocks in the confirmation, at least 3; it stops as soon as the answer is clear"

_BLOCKS = Option(
    "blocks",
    f"{_CONFIRMED}; 0 leaves it out (default: %(default)s)",
    read_whole,
    default=Budget().blocks,
    metavar="N",
    word=whole_word,
)

TIMEOUT = Option(
    "timeout", "deadline of one trial (default: %(default)s)", read_duration, default="10m", metavar="TIME"
)

#: How much a tune may spend, and how it searches.
EFFORT = (
    Option(
        "budget",
        f"time to spend, with its unit: 90s, 10m, 2h (default: {DEFAULT_BUDGET})",
        read_duration,
        metavar="TIME",
    ),
    Option(
        "payback",
        "how much work is to pay for the search: it ends where a second of it is expected to save less than "
        f"a second of that work (default: {DEFAULT_PAYBACK}, or the job of so many calls, where no budget, trials or exhaustive "
        "is given)",
        read_duration,
        metavar="TIME",
    ),
    _TRIALS,
    switch("exhaustive", "measure every admissible configuration to its end, however long it takes"),
    _BLOCKS,
    TIMEOUT,
    Option("seed", "of the search's random choices (default: %(default)s)", read_whole, default=0, word=whole_word),
)

#: How much may be spent on a case of the advice that advisor grew from.
CASE_EFFORT = (
    Option("budget", "time for a case (default: %(default)s)", read_duration, default=DEFAULT_BUDGET, metavar="TIME"),
    replace(_TRIALS, help="configurations to try in the search of a case"),
    replace(_BLOCKS, help=f"{_CONFIRMED} (default: %(default)s)"),
    Option(
        "batches", "batches in the list (default: %(default)s)", read_whole, default=2, metavar="N", word=whole_word
    ),
    TIMEOUT,
)
