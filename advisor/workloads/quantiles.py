"""Lists of lengths: made of the longest, the padding and the batch, read from a flag, and written as flags again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from advisor.errors import BadInput

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
        raise BadInput(
            f"{sequences:,} sequences of up to {longest:,} tokens are too many to be measured",
            f"--batch times --batches times --lengths may be {MOST_TOKENS:,} at most",
        )


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


def list_flags(lengths: Sequence[int], batch: int | None, padding: float) -> str:
    """Return the flags that make a list in its batches. padding: of the batches, dealt where batch is a knob (None)."""
    longest, dealt, padding = max(lengths), DEALT if batch is None else batch, round(padding, 2)
    count = -(-len(lengths) // dealt)
    spelled = ",".join(map(str, lengths)) + ("," if len(lengths) == 1 else "")
    try:
        is_generated = tuple(lengths) == quantile_lengths(longest, padding, dealt, count)
    except BadInput:
        is_generated = False
    if is_generated:
        spelled = f"{longest} --padding {padding:g}" + (f" --batches {count}" if count != DEFAULT_BATCHES else "")
    return f"--lengths {spelled} --batch {batch or 'auto'}"
