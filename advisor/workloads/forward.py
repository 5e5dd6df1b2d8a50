"""The forward workload: batches of sequences in, logits, hidden states, embeddings or scores out; no generation, no cache.

Only *useful* tokens count, never pads. The batches differ from one another, because with one repeated batch sorting by
length would change nothing and its gain could not be seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from advisor.checked import checked
from advisor.configuration import key_of
from advisor.errors import BadInput

#: What may be asked of the forward pass. pooled: one embedding a sequence; scores: a classification head's outputs.
OUTPUTS = ("last-logits", "all-logits", "hidden", "pooled", "scores")

#: The outputs that are logits over the vocabulary.
LOGITS = ("last-logits", "all-logits")

#: What transformers loads a model by where a head of its own is asked for, or none.
_HEADS = {"hidden": "AutoModel", "pooled": "AutoModel", "scores": "AutoModelForSequenceClassification"}

#: How many batches a list of generated lengths has.
DEFAULT_BATCHES = 8

#: Lengths are dealt for batches of this many sequences where batch is a knob.
DEALT = 8

#: More than these is a slip of the keyboard: sequences in a list, and tokens in it when every one has the longest length.
MOST_SEQUENCES, MOST_TOKENS = 100_000, 10**9

Batches = tuple[tuple[int, ...], ...]


def auto_class(output: str, logits_class: str) -> str:
    """Return the name of transformers' Auto class that gives an output. logits_class: the one that gives the model's logits."""
    return _HEADS.get(output, logits_class)


@dataclass(frozen=True)
class Workload:
    """Sequence lengths in tokens, in the caller's order, how many make a batch, and what output is asked for.

    batch: None where it is a knob ("--batch auto"): then :meth:`under` gives the work under one configuration, and what
    speaks of batches can be asked of that alone.
    """

    lengths: tuple[int, ...]
    batch: int | None
    output: str = "last-logits"

    def __post_init__(self) -> None:
        """Refuse what is not a workload."""
        if self.batch is not None and self.batch < 1:
            raise BadInput(f"--batch must be at least 1, not {self.batch}")
        if not self.lengths or min(self.lengths) < 1:
            raise BadInput("--lengths must be at least 1 token each")
        if self.output not in OUTPUTS:
            raise BadInput(f"--output must be one of {', '.join(OUTPUTS)}, not {self.output!r}")

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Workload:
        """Build one from its payload. Raises Malformed for a value that can't be."""
        own = {name: payload[name] for name in ("lengths", "batch", "output")}
        return cls(**checked(cls, own, {"lengths": lambda lengths: all(n < 2**31 for n in lengths)}))

    @property
    def payload(self) -> dict[str, Any]:
        """The workload as JSON values; texts are never part of it."""
        return {"kind": self.kind, "lengths": list(self.lengths), "batch": self.batch, "output": self.output}

    def key_for(self, architecture_key: str) -> str:
        """Return the identity that speeds are stored under: this work on an architecture and its shapes."""
        return key_of({**self.payload, "architecture": architecture_key})

    @property
    def kind(self) -> str:
        """Return embed where a sequence gives one embedding, else forward."""
        return "embed" if self.output == "pooled" else "forward"

    def under(self, configuration: Mapping[str, str]) -> Workload:
        """Return this work with the batch that a configuration chooses, where batch is a knob."""
        if self.batch is None and "batch" not in configuration:
            raise BadInput("this work leaves the batch open, and a configuration of it names none")
        return self if self.batch is not None else replace(self, batch=int(configuration["batch"]))

    @property
    def counts_sequences(self) -> bool:
        """Whether people count sequences rather than tokens: each gives one thing."""
        return self.output == "pooled"

    @property
    def size(self) -> int:
        """The sequences a batch; one where batch is a knob, which is what transformers' pipelines do when told nothing."""
        return self.batch or 1

    @property
    def dealt(self) -> Workload:
        """The work with the batch its lengths were dealt for, where batch is a knob: then its padding can be compared."""
        return self if self.batch is not None else replace(self, batch=DEALT)

    def distance(self, other: Workload) -> float:
        """Return how unlike two workloads are, from log tokens a batch, log longest sequence, padding and output.

        measurement.md, C.4; the weights of padding and output are ours.
        """
        a, b = self.dealt, other.dealt
        pairs = [(a.size * max(a.lengths), b.size * max(b.lengths)), (max(a.lengths), max(b.lengths))]
        return sum(abs(math.log(x / y)) for x, y in pairs) + abs(a.padding - b.padding) * 3 + (a.output != b.output)

    @property
    def tokens(self) -> int:
        """Useful tokens in one pass over the whole list."""
        return sum(self.lengths)

    def batches(self, *, by_length: bool = False) -> Batches:
        """Return the batches as indices into `lengths`: in the given order, or longest first by length."""
        return _batches(self.lengths, self.size, by_length)

    def padded_tokens(self, *, by_length: bool = False) -> int:
        """Return the tokens processed, pads included, when every batch is padded to its longest sequence."""
        return _padded_tokens(self.lengths, self.size, by_length)

    @property
    def padding(self) -> float:
        """The share of pads in the padded batches, in the given order."""
        return 1 - self.tokens / self.padded_tokens()

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

    def of_sequences(self, indices: Sequence[int]) -> Workload:
        """Return the work on some of its sequences, in this order."""
        return replace(self, lengths=tuple(self.lengths[index] for index in indices))

    @property
    def flags(self) -> str:
        """The command-line flags that describe this workload."""
        dealt = self.dealt
        longest, padding = max(self.lengths), round(dealt.padding, 2)
        count = -(-len(self.lengths) // dealt.size)
        lengths = ",".join(map(str, self.lengths)) + ("," if len(self.lengths) == 1 else "")
        try:
            is_generated = self.lengths == quantile_lengths(longest, padding, dealt.size, count)
        except BadInput:
            is_generated = False
        if is_generated:
            lengths = f"{longest} --padding {padding:g}" + (f" --batches {count}" if count != DEFAULT_BATCHES else "")
        return f"--lengths {lengths} --batch {self.batch or 'auto'} --output {self.output}"

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
def _padded_tokens(lengths: tuple[int, ...], size: int, by_length: bool) -> int:
    """Return :meth:`Workload.padded_tokens`."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in _batches(lengths, size, by_length))


def shape_class(lengths: Sequence[int], windows: Sequence[int]) -> tuple[Any, ...]:
    """Return what makes batches of these lengths one of a kind for a model.

    One sequence or several, of equal lengths or not, and on which sides of the model's windows the longest and the shortest
    are. windows: lengths in tokens at which a model's behaviour changes (a sliding window, a rope that switches).
    """
    sides = tuple((min(lengths) > window, max(lengths) > window) for window in windows)
    return (len(lengths) == 1, len(set(lengths)) == 1, sides)


@lru_cache(maxsize=64)
def quantile_lengths(longest: int, padding: float, batch: int, batches: int = DEFAULT_BATCHES) -> tuple[int, ...]:
    """Return batch × batches lengths whose padded batches waste `padding` of their tokens. Deterministic.

    Every batch holds one sequence of `longest` tokens; the others are quantiles of longest·u^k, a different one in every
    batch. A larger k means more padding; bisection finds the k that meets it in whole tokens. Raises BadInput where no
    list does: with one full sequence a batch, padding stays below 1 − 1/batch.
    """
    if longest < 1:
        raise BadInput(f"--lengths must be at least 1, not {longest}")
    if not 0 <= padding < 1:
        raise BadInput(f"--padding must be at least 0 and below 1, not {padding:g}")
    if batch < 1 or batches < 1:
        raise BadInput(f"--batch and --batches must be at least 1, not {min(batch, batches)}")
    refuse_absurd(batch * batches, longest)
    if padding == 0:
        return (longest,) * (batch * batches)
    low, high, padded = 0.0, 1000.0, longest * batch * batches
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - sum(map(sum, _groups(longest, middle, batch, batches))) / padded < padding:
            low = middle
        else:
            high = middle
    lengths = _dealt(longest, high, batch, batches)
    reached = 1 - sum(lengths) / padded
    if abs(reached - padding) > 0.02:
        raise BadInput(
            f"--padding {padding:g} can't be met with --batch {batch} and --lengths {longest}: {reached:.2f} can"
        )
    return lengths


def refuse_absurd(sequences: int, longest: int = 1) -> None:
    """Raise BadInput for a list that no device works through in a sitting: before anything is made of it."""
    if sequences > MOST_SEQUENCES:
        raise BadInput(
            f"{sequences:,} sequences are too many to be measured",
            f"--batch times --batches may be {MOST_SEQUENCES:,} at most",
        )
    if sequences * longest > MOST_TOKENS:
        raise BadInput(f"{sequences:,} sequences of up to {longest:,} tokens are too many to be measured",
                       f"--batch times --batches times --lengths may be {MOST_TOKENS:,} at most")  # fmt: skip


def _groups(longest: int, exponent: float, batch: int, batches: int) -> Iterator[list[int]]:
    """Yield the lengths of every batch, each with one of the longest, before they are shuffled."""
    for number in range(batches):
        ranks = [0.0] + [rank + number / batches for rank in range(1, batch)]
        yield [max(1, round(longest * (1 - rank / batch) ** exponent)) for rank in ranks]


def _dealt(longest: int, exponent: float, batch: int, batches: int) -> tuple[int, ...]:
    dealt: list[int] = []
    for number, group in enumerate(_groups(longest, exponent, batch, batches)):
        random.Random(number).shuffle(group)
        dealt += group
    return tuple(dealt)


def parse_lengths(text: str, padding: float | None, batch: int, batches: int) -> tuple[int, ...]:
    """Read --lengths: one number (the longest, spread by --padding) or a list with commas ("5," is a list of one).

    Raises BadInput with the offending value.
    """
    try:
        values: Sequence[int] = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise BadInput(f"--lengths must be a whole number or a list like 128,256,96, not {text!r}") from None
    if min(values) < 1:
        raise BadInput(f"--lengths must be at least 1, not {min(values)}")
    if len(values) == 1 and not text.endswith(","):
        return quantile_lengths(values[0], padding or 0.0, batch, batches)
    if padding is not None:
        raise BadInput("--padding goes with one number for --lengths; a list has the padding it has")
    refuse_absurd(max(len(values), batch), max(values))
    return tuple(values)
