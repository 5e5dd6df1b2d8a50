"""What a model gives for each token, with tensors: how it is got, and how logits are compared with a reference's. Worker only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from advisor.nouns.trial import Quality
from advisor.workloads.runtime import Call
from advisor.workloads.tally_torch import Tally, comparable
from advisor.workloads.workload import Workload

#: The reference keeps at most this many bytes of logits: positions are thinned out for large vocabularies.
REFERENCE_BYTES = 512 * 2**20


def run_tokens(
    model: Any,
    call: dict[str, Any],
    places: list[tuple[int, int, int]],
    distances: tuple[int, ...] | None,
    *,
    kind: str,
    keeps: bool,
) -> torch.Tensor:
    """Run the model and return values of tokens: kind is "logits" or "last_hidden_state".

    places: row, first column and the column after the last of every sequence. distances: from a sequence's end, (0,) for its
    last token; returns [pairs, width], sequence by sequence, at those of the distances that it is long enough for. None: of
    every column, as the model gives them, [rows, columns, width]. keeps: whether the model computes only the logits that are
    asked for with logits_to_keep.
    """
    if distances is None:
        return getattr(model(**call), kind)  # type: ignore[no-any-return]
    pairs = [(row, end - 1 - d) for row, start, end in places for d in distances if d < end - start]
    columns, width = sorted({column for _, column in pairs}), call["input_ids"].shape[1]
    if keeps:
        last = columns == [width - 1]
        call = {**call, "logits_to_keep": 1 if last else torch.tensor(columns, device=call["input_ids"].device)}
    values = getattr(model(**call), kind)
    place = {column: n for n, column in enumerate(columns)} if values.shape[1] == len(columns) else {}
    rows, taken = [row for row, _ in pairs], [place.get(column, column) for _, column in pairs]
    return values[torch.tensor(rows), torch.tensor(taken)]  # type: ignore[no-any-return]


def values_of_tokens(
    model: Any, call: Call, device: str, distances: Sequence[int], accepts: Sequence[str]
) -> list[torch.Tensor]:
    """Run a call and return every sequence's logits at distances from its end, [positions, vocabulary] in fp32, nearest first.

    accepts: see `ModelFacts`.
    """
    keeps = "logits_to_keep" in accepts
    values = run_tokens(model, call.on(device), list(call.places), tuple(distances), kind="logits", keeps=keeps)
    return list(torch.split(comparable(values), [sum(d < n for d in distances) for n in call.lengths]))


def distances_of(workload: Workload, width: int) -> list[int]:
    """Return the distances from a sequence's end at which outputs are compared: 0 and others, evenly spaced.

    Their number keeps the reference within REFERENCE_BYTES, at least 4, at most 128. width: of the values at a position.
    """
    longest = max(workload.lengths)
    count = max(4, min(128, longest, REFERENCE_BYTES // (len(workload.lengths) * width * 4)))
    return sorted({round(i * (longest - 1) / max(count - 1, 1)) for i in range(count)})


def deviation_at_positions(values: Iterable[torch.Tensor]) -> float:
    """Return the standard deviation of values at a position, over all sequences."""
    squares = count = 0.0
    for found in values:
        squares += float((found - found.mean(-1, keepdim=True)).double().square().sum())
        count += found.numel()
    return float(max((squares / max(count, 1)) ** 0.5, 1e-30))


class TokenTally(Tally):
    """Sums of the differences of logits from the reference's, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int], noise: float) -> None:
        """Begin empty. noise: in logits; a reference margin below it counts as a tie."""
        super().__init__(offsets)
        self.noise = noise
        self.reference_squares = self.kl = self.nll = self.reference_nll = 0.0
        self.agreed = self.decided = self.targets = 0

    def compare(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor) -> None:
        """Add distributions and likelihoods."""
        self.add_spread(reference)
        self.add_likelihood(tokens, *self.add_distributions(reference, values))

    def add_spread(self, reference: torch.Tensor) -> None:
        """Add how far the reference's values are from one another."""
        centred = reference - reference.mean(-1, keepdim=True)
        self.reference_squares += float(centred.square().sum())

    def add_distributions(self, reference: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add how far distributions are apart, and return the logarithms of both."""
        log_p, log_q = reference.log_softmax(-1), values.log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())
        best = reference.topk(2, dim=-1)
        decided = best.values[:, 0] - best.values[:, 1] > self.noise
        self.decided += int(decided.sum())
        self.agreed += int((decided & (values.argmax(-1) == best.indices[:, 0])).sum())
        return log_p, log_q

    def add_likelihood(self, tokens: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> None:
        """Add the likelihood of the tokens that follow."""
        rows = [(row, len(tokens) - d) for row, d in enumerate(o for o in self.offsets if o < len(tokens)) if d > 0]
        if not rows:
            return
        index = torch.tensor([row for row, _ in rows], device=log_p.device)
        target = tokens[torch.tensor([column for _, column in rows])].to(log_p.device)
        self.reference_nll -= float(log_p[index, target].sum())
        self.nll -= float(log_q[index, target].sum())
        self.targets += len(rows)

    def deviation(self) -> float:
        """Return the standard deviation of values at a position."""
        return float(max((self.reference_squares / self.values) ** 0.5, 1e-30))

    def of_differences(self, *, text: bool, reference: str) -> Quality:
        """Return the figures of differences alone."""
        return super().quality(text=text, reference=reference)

    def quality(self, *, text: bool, reference: str) -> Quality:
        """Return the figures, with those of distributions. text, reference: as for :class:`Tally`."""
        found = self.of_differences(text=text, reference=reference)
        if not self.positions:
            return found
        likelihood = torch.tensor((self.nll - self.reference_nll) / max(self.targets, 1), dtype=torch.float64).exp()
        return replace(
            found,
            kl=max(self.kl / self.positions, 0.0),
            top1=self.agreed / self.decided if self.decided else None,
            perplexity_ratio=float(likelihood) if text and self.targets else None,
        )
