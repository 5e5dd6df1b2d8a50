"""Workload: what a model is run on: sequences of tokens, how many at once, and what is asked of the model.

A value: what every kind of work has in common is here, and each kind adds what is its own. Only *useful* tokens count, never
pads. The batches differ from one another, because with one repeated batch sorting by length would change nothing and its gain
could not be seen.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from advisor.errors import BadInput, named
from advisor.nouns.checked import Test, checked
from advisor.nouns.configuration import key_of
from advisor.nouns.model import ModelFacts
from advisor.workloads.likeness import Likeness
from advisor.workloads.quantiles import DEALT, DEFAULT_BATCHES, list_flags
from advisor.workloads.work import Layout, Needs, Work

Batches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Workload(ABC):
    """Sequence lengths in tokens, in the caller's order, and how many make a batch.

    batch: None where it is a knob ("--batch auto"): then :meth:`under` gives the work under one configuration, and what
    speaks of batches can be asked of that alone. A kind adds fields of its own, which stand in its payload.
    """

    lengths: tuple[int, ...]
    batch: int | None

    #: Tests of a kind's own fields that are narrower than their annotations, by field: see `advisor.nouns.checked`.
    TESTS: ClassVar[Mapping[str, Test]] = {}

    def __post_init__(self) -> None:
        """Refuse what is not a workload."""
        if self.batch is not None and self.batch < 1:
            raise BadInput(f"{named('batch')} must be at least 1, not {self.batch}")
        if not self.lengths or min(self.lengths) < 1:
            raise BadInput(f"{named('lengths')} must be at least 1 token each")

    # ----------------------------------------------------------------------------------------------- what a kind says

    @property
    @abstractmethod
    def kind(self) -> str:
        """The word that this kind of work is stored by."""

    @property
    @abstractmethod
    def output(self) -> str:
        """What comes out, in a word."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it needs of a model's class."""

    @property
    @abstractmethod
    def own_flags(self) -> str:
        """The command-line flags beside those of the list: the kind's own, after `--workload NAME` where it is no default."""

    @property
    def own_payload(self) -> dict[str, Any]:
        """The kind's own fields as JSON values."""
        return {}

    #: How many batches a list of generated lengths has where nobody says.
    usual_batches: ClassVar[int] = DEFAULT_BATCHES

    #: Whether the model's weights change: each call is a step of an optimizer, and the loaded model is given back as it was.
    trains: ClassVar[bool] = False

    @property
    def trains_adapters(self) -> bool:
        """Whether it is adapters that are trained, and the model's own weights stay as they are."""
        return False

    @property
    def quantises_base(self) -> bool:
        """Whether those weights are asked for in fewer bits."""
        return False

    def predictions(self) -> int:
        """Return how many positions logits are asked for in one pass over the list, 0 where none are."""
        return 0

    def kept(self, rows: int, columns: int) -> int:  # noqa: ARG002
        """Return how many positions' logits of a call are in memory at once, where that is more than those of a sequence."""
        return 0

    # --------------------------------------------------------------------------------------------------------- a value

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        """Build one from its payload. Raises Malformed for a value that can't be."""
        own = {each.name: payload[each.name] for each in fields(cls)}
        return cls(**checked(cls, own, {"lengths": lambda lengths: all(n < 2**31 for n in lengths), **cls.TESTS}))

    @property
    def payload(self) -> dict[str, Any]:
        """The workload as JSON values; texts are never part of it."""
        return {"kind": self.kind, "lengths": list(self.lengths), "batch": self.batch, **self.own_payload}

    def key_for(self, architecture_key: str) -> str:
        """Return the identity that speeds are stored under: this work on an architecture and its shapes."""
        return key_of({**self.payload, "architecture": architecture_key})

    def under(self, configuration: Mapping[str, str]) -> Self:
        """Return this work with the batch that a configuration chooses, where batch is a knob."""
        if self.batch is None and "batch" not in configuration:
            raise BadInput("this work leaves the batch open, and a configuration of it names none")
        return self if self.batch is not None else replace(self, batch=int(configuration["batch"]))

    @property
    def size(self) -> int:
        """The sequences a batch; one where batch is a knob, which is what transformers' pipelines do when told nothing."""
        return self.batch or 1

    @property
    def dealt(self) -> Self:
        """The work with the batch its lengths were dealt for, where batch is a knob: then its padding can be compared."""
        return self if self.batch is not None else replace(self, batch=DEALT)

    @property
    def features(self) -> dict[str, float | str]:
        """What makes two workloads alike or not, for :meth:`distance`: sizes by name, a share, words."""
        dealt = self.dealt
        longest = max(self.lengths)
        return {
            "tokens a batch": dealt.size * longest,
            "longest": longest,
            "share of pads": dealt.padding,
            "output": self.output,
        }

    @property
    def likeness(self) -> Likeness:
        """What it has to be told from others by, without the list of its lengths."""
        return Likeness(type(self), self.features)

    def distance(self, other: Workload) -> float:
        """Return how unlike two workloads are: see :meth:`advisor.workloads.likeness.Likeness.distance`."""
        return self.likeness.distance(other.likeness)

    @property
    def described(self) -> dict[str, object]:
        """What two workloads differ in, by name, for people."""
        dealt = self.dealt
        return {
            "longest sequence": max(self.lengths),
            "padding": round(dealt.padding, 2),
            "batch": self.batch or "auto",
            "output": self.output,
            "number of sequences": len(self.lengths),
        }

    # ---------------------------------------------------------------------------------------------------- tokens, batches

    @property
    def tokens(self) -> int:
        """Useful tokens in one pass over the whole list."""
        return sum(self.lengths)

    def batches(self, *, by_length: bool = False) -> Batches:
        """Return the batches as indices into `lengths`: in the given order, or longest first by length."""
        return _batches(self.lengths, self.size, by_length)

    def padded_tokens(self, *, by_length: bool = False) -> int:
        """Return the tokens processed, pads included, when every batch is padded to its longest sequence."""
        return _padded_tokens(self, by_length)

    @property
    def padding(self) -> float:
        """The share of pads in the padded batches, in the given order."""
        return 1 - self.tokens / self.padded_tokens()

    def work(self, layout: Layout, facts: ModelFacts) -> Work:  # noqa: ARG002
        """Return what one pass over the list takes. facts: of the model, for work that depends on more than the lengths."""
        processed, useful_pairs, pairs, rows, columns = _sums(self, layout)
        asked = self.predictions(), rows, columns, self.kept(rows, columns), self.passes
        return Work(self.tokens, processed, useful_pairs, pairs, *asked)

    @property
    def passes(self) -> float:
        """How many forward passes the operations of one call are worth."""
        return 1.0

    def step_bytes(self, work: Work, facts: ModelFacts, traits: Any) -> float | None:  # noqa: ARG002
        """Return the bytes that a call holds beside the weights, None for what a forward pass does. traits: a configuration's."""
        return None

    def sample(self, windows: Sequence[int] = (), tokens: int = 20_000, most_tokens: int = 50_000) -> tuple[int, ...]:
        """Return the sequences that the gate judges, as indices in order: whole batches that stand for the list.

        The batch with the longest sequence, the one with the shortest, the most uneven, one of every shape class, and others
        drawn over the whole list until there are `tokens`; beyond most_tokens only what stands for a class. windows: lengths
        at which the model's behaviour changes (see :func:`shape_class`).
        """
        batches = self.dealt.batches()
        lengths = [tuple(self.lengths[i] for i in batch) for batch in batches]
        numbers = range(len(batches))
        needed = [
            max(numbers, key=lambda n: max(lengths[n])),
            min(numbers, key=lambda n: min(lengths[n])),
            max(numbers, key=lambda n: max(lengths[n]) - min(lengths[n])),
        ]
        classes: dict[Any, int] = {}
        for number in sorted(numbers, key=lambda n: sum(lengths[n])):
            classes.setdefault(shape_class(lengths[number], windows), number)
        others = list(numbers)
        random.Random(0).shuffle(others)
        chosen: dict[int, None] = {}
        drawn = 0
        for place, number in enumerate([*needed, *classes.values(), *others]):
            is_needed = place < len(needed) + len(classes)
            if number in chosen or (not is_needed and (drawn >= tokens or drawn + sum(lengths[number]) > most_tokens)):
                continue
            chosen[number] = None
            drawn += sum(lengths[number])
        return tuple(index for number in sorted(chosen) for index in batches[number])

    def of_sequences(self, indices: Sequence[int]) -> Self:
        """Return the work on some of its sequences, in this order."""
        return replace(self, lengths=tuple(self.lengths[index] for index in indices))

    # ------------------------------------------------------------------------------------------------------------ words

    @property
    def flags(self) -> str:
        """The command-line flags that describe this workload."""
        return f"{list_flags(self.lengths, self.batch, self.dealt.padding, self.usual_batches)} {self.own_flags}"

    def __str__(self) -> str:
        """Return the workload in words."""
        if self.batch is None:
            return f"{self.kind}, {len(self.lengths)} sequences of up to {max(self.lengths)} tokens, {self.output}, batch auto"
        batches = self.batches()
        most, last, count = len(batches[0]), len(batches[-1]), len(batches)
        size = f"{most} × {max(self.lengths)} tokens{f' (the batch of {self.batch} is not full)' if most < self.batch else ''}"
        many = f"{count} batch{'es' if count != 1 else ''}{f', the last of {last}' if last < most else ''}"
        return f"{self.kind}, {size}, padding {self.padding:.2f}, {self.output}, {many}"


@lru_cache(maxsize=64)
def _batches(lengths: tuple[int, ...], size: int, by_length: bool) -> Batches:
    """Return :meth:`Workload.batches`: a space of hundreds of configurations asks for the same few."""
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lambda index: -lengths[index])
    return tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))


@lru_cache(maxsize=64)
def _padded_tokens(workload: Workload, by_length: bool) -> int:
    """Return :meth:`Workload.padded_tokens`."""
    lengths = workload.lengths
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in workload.batches(by_length=by_length))


@lru_cache(maxsize=64)
def _sums(workload: Workload, layout: Layout) -> tuple[int, int, int, int, int]:
    """Return of a layout the tokens processed, the useful pairs, the pairs computed, and the largest call's rows and columns."""
    lengths = workload.lengths
    batches = [[lengths[i] for i in batch] for batch in workload.batches(by_length=layout.by_length)]
    useful = sum(n * n for n in lengths)
    if layout.pads:
        processed = sum(len(batch) * max(batch) for batch in batches)
        pairs = sum(len(batch) * max(batch) ** 2 for batch in batches)
    else:
        processed = sum(lengths)
        pairs = useful if layout.apart else sum(sum(batch) ** 2 for batch in batches)
    columns = max(sum(batch) if layout.packs else max(batch) for batch in batches)
    return processed, useful, pairs, 1 if layout.packs else max(map(len, batches)), columns


def shape_class(lengths: Sequence[int], windows: Sequence[int]) -> tuple[Any, ...]:
    """Return what makes batches of these lengths one of a kind for a model.

    One sequence or several, of equal lengths or not, and on which sides of the model's windows the longest and the shortest
    are. windows: lengths in tokens at which a model's behaviour changes (a sliding window, a rope that switches).
    """
    sides = tuple((min(lengths) > window, max(lengths) > window) for window in windows)
    return (len(lengths) == 1, len(set(lengths)) == 1, sides)
