"""The forward workload with tensors: how a call is run, and how what comes out is compared with the reference. Worker only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Quality
from advisor.workloads.forward import EMBEDDINGS, HIDDEN, LAST, LOGITS, SCORES
from advisor.workloads.kind import Running
from advisor.workloads.runtime import Call, Runtime
from advisor.workloads.tally_torch import Tally, comparable, deviation_over_sequences
from advisor.workloads.tokens_torch import TokenTally, deviation_at_positions, distances_of, run_tokens
from advisor.workloads.workload import Workload


def run_pooled(
    model: Any, call: dict[str, Any], places: list[tuple[int, int, int]], _: object = None, *, how: str
) -> torch.Tensor:
    """Run the model and return one embedding a sequence, [sequences, width] in fp32.

    places: row, first column and the column after the last of every sequence. how: "cls" (a sequence's first token), "last"
    (its last one) or "mean" (of all its tokens, pads left out).
    """
    hidden = model(**call).last_hidden_state
    if how in ("cls", "last"):
        rows, columns = zip(*((row, start if how == "cls" else end - 1) for row, start, end in places), strict=True)
        pooled = hidden[torch.tensor(rows), torch.tensor(columns)].float()
    else:
        width = hidden.shape[1]
        tokens = torch.cat([torch.arange(row * width + start, row * width + end) for row, start, end in places])
        lengths = torch.tensor([end - start for _, start, end in places], device=hidden.device)
        # Not by adding into rows: on a GPU the order of additions would change from run to run.
        pooled = torch.segment_reduce(hidden.flatten(0, 1)[tokens.to(hidden.device)].float(), "mean", lengths=lengths)
    for step in getattr(model, "after_pooling", ()):
        pooled = step(pooled)
    return pooled  # type: ignore[no-any-return]


def run_scores(model: Any, call: dict[str, Any], places: list[tuple[int, int, int]], _: object = None) -> torch.Tensor:
    """Run the model and return a classification head's scores, [sequences, labels].

    In a packed row the model's own forward would read the first position of the row alone: there the head gets each
    sequence's first position.
    """
    if len({row for row, _, _ in places}) == len(places):
        return model(**call).logits  # type: ignore[no-any-return]
    starts = torch.tensor([start for _, start, _ in places])
    first = model.base_model(**call).last_hidden_state[0, starts][:, None]
    pooler = getattr(model.base_model, "pooler", None)
    return model.classifier(first if pooler is None else pooler(first))  # type: ignore[no-any-return]


class ForwardRuntime(Runtime):
    """How a worker runs a forward pass."""

    def __init__(self, workload: Workload, facts: ModelFacts, running: Running) -> None:
        """Hold the workload, what the facts say of how to get its output, and the function that does."""
        super().__init__(workload, running)
        self.output = workload.output
        self.accepts = facts.accepts
        self.width = facts.vocabulary if self.output in LOGITS else facts.hidden_size

    @property
    def is_of_tokens(self) -> bool:
        """Whether every token has values; else a sequence has one embedding, or one row of scores."""
        return self.output not in (EMBEDDINGS, SCORES)

    def of_tokens(self, model: Any, call: Call, device: str) -> tuple[str, list[torch.Tensor]] | None:
        """Return logits, or hidden states, which are also what an embedding is made of; scores are of a sequence."""
        if self.output == SCORES:
            return None
        kind, distances = "logits" if self.output in LOGITS else "last_hidden_state", tuple(range(max(call.lengths)))
        keeps = kind == "logits" and "logits_to_keep" in self.accepts
        values = run_tokens(model, call.on(device), list(call.places), distances, kind=kind, keeps=keeps)
        return kind, [each.flip(0) for each in torch.split(values, list(call.lengths))]

    def arguments(self, call: Call) -> Call:
        """Return the call with what asks for the last logits of every *sequence* alone, where they are wanted."""
        if self.output != LAST or "logits_to_keep" not in self.accepts:
            return call
        columns, width = sorted({end - 1 for _, _, end in call.places}), call.arguments["input_ids"].shape[1]
        kept = 1 if columns == [width - 1] else torch.tensor(columns)
        return replace(call, arguments={**call.arguments, "logits_to_keep": kept})

    def positions(self, workload: Workload) -> list[int]:
        """Return the distances from a sequence's end at which outputs are compared."""
        return distances_of(workload, self.width)

    def by_sequence(self, model: Any, call: Call, device: str, positions: Sequence[int]) -> list[torch.Tensor]:
        """Run a call and return every sequence's values, [positions, width] in fp32, nearest its end first.

        An embedding or a row of scores is one position.
        """
        if not self.is_of_tokens:
            return super().by_sequence(model, call, device, positions)
        values = comparable(self.run(model, call, device, positions))
        return list(torch.split(values, [sum(d < length for d in positions) for length in call.lengths]))

    def deviation(self, values: Sequence[torch.Tensor]) -> float:
        """Return the standard deviation of values at a position, over all sequences; of scores over the sequences."""
        return super().deviation(values) if self.output == SCORES else deviation_at_positions(values)

    def tally(self, positions: Sequence[int], noise: float) -> ForwardTally:
        """Return what compares outputs with the reference's."""
        return ForwardTally(positions, noise, self.output)


class ForwardTally(TokenTally):
    """Sums of the differences from the reference, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int], noise: float, output: str) -> None:
        """Begin empty. noise: in logits; a reference margin below it counts as a tie. output: the workload's."""
        super().__init__(offsets, noise)
        self.output, self.cosine = output, 1.0

    def compare(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor) -> None:
        """Add directions, distributions and likelihoods, as the output has them."""
        self.add_spread(reference)
        if self.output in (EMBEDDINGS, SCORES):
            Tally.compare(self, tokens, reference, values)
        if self.output in (HIDDEN, EMBEDDINGS):
            self.cosine = min(self.cosine, float(torch.cosine_similarity(values, reference, dim=-1).min()))
            return
        if values.shape[-1] < 2:  # one label: there is no distribution over labels
            return
        log_p, log_q = self.add_distributions(reference, values)
        if self.output in LOGITS:
            self.add_likelihood(tokens, log_p, log_q)

    def top10(self) -> float | None:
        """Return the mean share of a sequence's ten nearest others, by cosine, that stay among them; None below 11."""
        if len(self.pairs[0]) < 11:
            return None
        near = [_ten_nearest(torch.cat(found)) for found in self.pairs]
        kept = (near[0][:, :, None] == near[1][:, None, :]).any(-1)
        return float(kept.double().mean())

    def deviation(self) -> float:
        """Return the standard deviation that errors are counted in: of values at a position, of scores over sequences."""
        return deviation_over_sequences(self.pairs[0]) if self.output == SCORES else super().deviation()

    def quality(self, *, text: bool, reference: str) -> Quality:
        """Return the figures: with direction for hidden states and embeddings, else with distributions, where there are any."""
        if self.output in (HIDDEN, EMBEDDINGS):
            found = self.of_differences(text=text, reference=reference)
            return replace(found, cosine=self.cosine, top10=self.top10()) if self.positions else found
        if self.output == SCORES and self.values == self.positions:
            return self.of_differences(text=text, reference=reference)
        return super().quality(text=text, reference=reference)


def _ten_nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """Return [sequences, 10]: every sequence's nearest others by cosine."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(10, dim=-1).indices
