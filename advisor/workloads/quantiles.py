"""Lists of lengths: made of the longest, the padding and the batch, read as they are given, and written as flags again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import mul
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.reading import is_listed, shown, whole

#: How many batches a list of generated lengths has.
DEFAULT_BATCHES = 8

#: Lengths are dealt for batches of this many sequences where batch is a knob.
DEALT = 8

#: More than these is a slip of the keyboard: sequences in a list, and tokens in it when every one has the longest length.
MOST_SEQUENCES, MOST_TOKENS = 100_000, 10**9


@lru_cache(maxsize=64)
def quantile_lengths(longest: int, padding: float, batch: int, batches: int = DEFAULT_BATCHES) -> tuple[int, ...]:
    """Return batch × batches lengths whose padded batches waste `padding` of their tokens. Deterministic.

    Every batch holds one sequence of `longest` tokens; the others are quantiles of longest·u^k, a different one in every
    batch. A larger k means more padding; bisection finds the k that meets it in whole tokens. Raises BadInput where no
    list does: with one full sequence a batch, padding stays below 1 − 1/batch.
    """
    if longest < 1:
        raise BadInput(f"{named('lengths')} must be at least 1, not {longest}")
    if not 0 <= padding < 1:
        raise BadInput(f"{named('padding')} must be at least 0 and below 1, not {padding:g}")
    if batch < 1 or batches < 1:
        raise BadInput(f"{named('batch')} and {named('batches')} must be at least 1, not {min(batch, batches)}")
    refuse_absurd(batch * batches, longest)
    if padding == 0:
        return (longest,) * (batch * batches)
    padded = longest * batch * batches
    lengths = _dealt(longest, _exponent(longest, padding, batch, batches), batch, batches)
    reached = 1 - sum(lengths) / padded
    if abs(reached - padding) > 0.02:
        raise BadInput(
            f"{named('padding')} {padding:g} can't be met with {named('batch')} {batch} and "
            f"{named('lengths')} {longest}: {reached:.2f} can"
        )
    return lengths


def _exponent(longest: int, padding: float, batch: int, batches: int) -> float:
    """Return the smallest k, as near as it shows in whole tokens, whose padding is what is asked or more, 1000 at most."""
    padded = longest * batch * batches

    shares = tuple(chain.from_iterable(_shares(batch, batches)))

    def tokens(exponent: float) -> int:
        """Return how many tokens `_groups` has: of all batches at once, and of a sequence of none one."""
        lengths: list[int] = list(map(round, map(mul, repeat(longest), map(pow, shares, repeat(exponent)))))
        return sum(lengths) + lengths.count(0)

    # What is looked at are 1000 in halves, to the sixtieth, as ever: at a round k, 1/2 for one, a length can lie between two
    # tokens, and a question that finds exactly that k has another key than it had.
    low, high, least = 0.0, 1000 / 2**11, padded
    while 1 - (most := tokens(high)) / padded < padding and high < 1000:
        low, high, least = high, min(2 * high, 1000.0), most
    for _ in range(60 - round(math.log2(1000 / (high - low)))):
        if least - most <= 1:  # no length but one differs between the two: nothing lies between them
            break
        middle = (low + high) / 2
        found = tokens(middle)
        if 1 - found / padded < padding:
            low, least = middle, found
        else:
            high, most = middle, found
    return high


def refuse_absurd(sequences: int, longest: int = 1) -> None:
    """Raise BadInput for a list that no device works through in a sitting: before anything is made of it."""
    if sequences > MOST_SEQUENCES:
        raise BadInput(
            f"{sequences:,} sequences are too many to be measured",
            f"{named('batch')} times {named('batches')} may be {MOST_SEQUENCES:,} at most",
        )
    if sequences * longest > MOST_TOKENS:
        raise BadInput(
            f"{sequences:,} sequences of up to {longest:,} tokens are too many to be measured",
            f"{named('batch')} times {named('batches')} times {named('lengths')} may be {MOST_TOKENS:,} at most",
        )


def _groups(longest: int, exponent: float, batch: int, batches: int) -> Iterator[list[int]]:
    """Yield the lengths of every batch, each with one of the longest, before they are shuffled."""
    for shares in _shares(batch, batches):
        yield [round(longest * share**exponent) or 1 for share in shares]


@lru_cache(maxsize=64)
def _shares(batch: int, batches: int) -> tuple[tuple[float, ...], ...]:
    """Return of every batch the places of its sequences among all, from the longest down: 1 to nearly 0."""
    ranks = [[0.0] + [rank + number / batches for rank in range(1, batch)] for number in range(batches)]
    return tuple(tuple(1 - rank / batch for rank in each) for each in ranks)


def _dealt(longest: int, exponent: float, batch: int, batches: int) -> tuple[int, ...]:
    dealt: list[int] = []
    for number, group in enumerate(_groups(longest, exponent, batch, batches)):
        random.Random(number).shuffle(group)
        dealt += group
    return tuple(dealt)


def read_lengths(value: Any, name: str) -> int | tuple[int, ...]:
    """Return the longest length, of one number, or every length, of several ("5," is a list of one). Raises BadInput."""
    parts = value.removesuffix(",").split(",") if isinstance(value, str) else value
    is_list = "," in value if isinstance(value, str) else is_listed(value)
    try:
        lengths = [whole(part) for part in parts] if is_listed(parts) else [whole(value)]
    except ValueError:
        lengths = []
    if not lengths:
        raise BadInput(f"{named(name)} must be a whole number or a list like 128,256,96, not {shown(value)}")
    if min(lengths) < 1:
        raise BadInput(f"{named(name)} must be at least 1, not {min(lengths)}")
    return tuple(lengths) if is_list else lengths[0]


def generated_or_listed(
    lengths: int | tuple[int, ...], padding: float | None, batch: int, batches: int
) -> tuple[int, ...]:
    """Return the lengths of a list: of the longest, spread by the padding, or as they are listed. Raises BadInput."""
    if isinstance(lengths, int):
        return quantile_lengths(lengths, padding or 0.0, batch, batches)
    if padding is not None:
        raise BadInput(f"{named('padding')} goes with one number for {named('lengths')}; a list has the padding it has")
    refuse_absurd(max(len(lengths), batch), max(lengths))
    return lengths


def list_flags(lengths: Sequence[int], batch: int | None, padding: float, usual: int = DEFAULT_BATCHES) -> str:
    """Return the flags that make a list in its batches. padding: of the batches, dealt where batch is a knob (None).

    usual: how many batches it has where nobody says.
    """
    longest, dealt, padding = max(lengths), DEALT if batch is None else batch, round(padding, 2)
    count = -(-len(lengths) // dealt)
    try:
        is_generated = tuple(lengths) == quantile_lengths(longest, padding, dealt, count)
    except BadInput:
        is_generated = False
    if is_generated:
        spelled = f"{longest} --padding {padding:g}" + (f" --batches {count}" if count != usual else "")
    else:
        spelled = ",".join(map(str, lengths)) + ("," if len(lengths) == 1 else "")
    return f"--lengths {spelled} --batch {batch or 'auto'}"
