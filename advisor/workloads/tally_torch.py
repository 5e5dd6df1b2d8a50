"""Differences between outputs and a reference's, with tensors: their sums, and what they are counted in. Worker only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from advisor.nouns.trial import Quality

#: Fewer sequences than this have no standard deviation worth the name: then it is taken over what each of them has.
LEAST_SEQUENCES = 4


def comparable(values: torch.Tensor) -> torch.Tensor:
    """Return values in fp32; the least number of a dtype, which stands for what can never be, says nothing and is 0."""
    return values.masked_fill(values.isfinite() & (values.abs() > 0.9 * torch.finfo(values.dtype).max), 0.0).float()


def deviation_over_sequences(values: Iterable[torch.Tensor]) -> float:
    """Return the standard deviation that errors of what a sequence has one row of, each [1, width], are counted in.

    Over the sequences; of too few over what each has; and where that is one number alone, the size of the numbers themselves.
    """
    found = torch.cat(list(values))
    many, wide = len(found) >= LEAST_SEQUENCES, found.shape[-1] > 1
    centred = found - found.mean(0) if many else found - found.mean(-1, keepdim=True) if wide else found
    return float(max(float(centred.double().square().mean()) ** 0.5, 1e-30))


class Tally:
    """Sums of the differences from the reference, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int]) -> None:
        """Begin empty. offsets: the distances from a sequence's end at which outputs are compared."""
        self.offsets = offsets
        self.squares = self.maximum = 0.0
        self.values = self.positions = 0
        self.finite = True
        #: The reference's values and this configuration's, sequence by sequence, where they are kept.
        self.pairs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])

    def add(self, tokens: torch.Tensor, reference: torch.Tensor | None, values: torch.Tensor) -> None:
        """Add one sequence: reference and values are [positions, width], nearest the end first; None: there is no reference."""
        self.finite &= bool(torch.isfinite(values).all())
        if reference is None:
            return
        reference, values = reference.double(), values.double()
        difference = values - reference
        self.squares += float(difference.square().sum())
        self.maximum = max(self.maximum, float(difference.abs().max()))
        self.values += values.numel()
        self.positions += len(values)
        self.compare(tokens, reference, values)

    def compare(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor) -> None:  # noqa: ARG002
        """Add what is more than the size of differences. reference, values: in 64 bit. Here they are kept."""
        self.pairs[0].append(reference[:1])
        self.pairs[1].append(values[:1])

    def deviation(self) -> float:
        """Return the standard deviation that errors are counted in."""
        return deviation_over_sequences(self.pairs[0])

    def quality(self, *, text: bool, reference: str) -> Quality:  # noqa: ARG002
        """Return the figures. text: the tokens are a text's; reference: what it was, in words.

        Raises ValueError where an output was not finite: nothing can be said of it then.
        """
        if not self.finite:
            raise ValueError("the output holds NaN or infinity")
        if not self.positions:
            return Quality(0.0, 0.0, None, None, 0, reference=reference)
        deviation = self.deviation()
        rms = (self.squares / self.values) ** 0.5 / deviation
        return Quality(rms, self.maximum / deviation, None, None, self.positions, reference=reference)
