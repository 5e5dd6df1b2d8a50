"""The forward workload with tensors: how a call is run, and how what comes out is compared with the reference. Worker only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Quality
from advisor.workloads.forward import EMBEDDINGS, HIDDEN, LAST, LOGITS, SCORES
from advisor.workloads.kind import Running
from advisor.workloads.runtime import Call, Runtime
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
        """Return the distances from a sequence's end at which outputs are compared: 0 and others, evenly spaced.

        Their number keeps the reference within REFERENCE_BYTES, at least 4, at most 128.
        """
        longest = max(workload.lengths)
        count = max(4, min(128, longest, REFERENCE_BYTES // (len(workload.lengths) * self.width * 4)))
        return sorted({round(i * (longest - 1) / max(count - 1, 1)) for i in range(count)})

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


def deviation_at_positions(values: Iterable[torch.Tensor]) -> float:
    """Return the standard deviation of values at a position, over all sequences."""
    squares = count = 0.0
    for found in values:
        squares += float((found - found.mean(-1, keepdim=True)).double().square().sum())
        count += found.numel()
    return float(max((squares / max(count, 1)) ** 0.5, 1e-30))


class ForwardTally(Tally):
    """Sums of the differences from the reference, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int], noise: float, output: str) -> None:
        """Begin empty. noise: in logits; a reference margin below it counts as a tie. output: the workload's."""
        super().__init__(offsets)
        self.noise, self.output = noise, output
        self.reference_squares = self.kl = self.nll = self.reference_nll = 0.0
        self.agreed = self.decided = self.targets = 0
        self.cosine = 1.0

    def compare(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor) -> None:
        """Add directions, distributions and likelihoods, as the output has them."""
        centred = reference - reference.mean(-1, keepdim=True)
        self.reference_squares += float(centred.square().sum())
        if self.output in (EMBEDDINGS, SCORES):
            super().compare(tokens, reference, values)
        if self.output in (HIDDEN, EMBEDDINGS):
            self.cosine = min(self.cosine, float(torch.cosine_similarity(values, reference, dim=-1).min()))
            return
        if values.shape[-1] < 2:  # one label: there is no distribution over labels
            return
        log_p, log_q = reference.log_softmax(-1), values.log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())
        best = reference.topk(2, dim=-1)
        decided = best.values[:, 0] - best.values[:, 1] > self.noise
        self.decided += int(decided.sum())
        self.agreed += int((decided & (values.argmax(-1) == best.indices[:, 0])).sum())
        if self.output in LOGITS:
            self._add_likelihood(tokens, log_p, log_q)

    def _add_likelihood(self, tokens: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> None:
        rows = [(row, len(tokens) - d) for row, d in enumerate(o for o in self.offsets if o < len(tokens)) if d > 0]
        if not rows:
            return
        index = torch.tensor([row for row, _ in rows], device=log_p.device)
        target = tokens[torch.tensor([column for _, column in rows])].to(log_p.device)
        self.reference_nll -= float(log_p[index, target].sum())
        self.nll -= float(log_q[index, target].sum())
        self.targets += len(rows)

    def top10(self) -> float | None:
        """Return the mean share of a sequence's ten nearest others, by cosine, that stay among them; None below 11."""
        if len(self.pairs[0]) < 11:
            return None
        near = [_ten_nearest(torch.cat(found)) for found in self.pairs]
        kept = (near[0][:, :, None] == near[1][:, None, :]).any(-1)
        return float(kept.double().mean())

    def deviation(self) -> float:
        """Return the standard deviation that errors are counted in: of values at a position, of scores over sequences."""
        if self.output == SCORES:
            return super().deviation()
        return float(max((self.reference_squares / self.values) ** 0.5, 1e-30))

    def quality(self, *, text: bool, reference: str) -> Quality:
        """Return the figures: with direction for hidden states and embeddings, else with distributions, where there are any."""
        found = super().quality(text=text, reference=reference)
        if not self.positions:
            return found
        if self.output in (HIDDEN, EMBEDDINGS):
            return replace(found, cosine=self.cosine, top10=self.top10())
        if self.output == SCORES and self.values == self.positions:
            return found
        likelihood = torch.tensor((self.nll - self.reference_nll) / max(self.targets, 1), dtype=torch.float64).exp()
        return replace(
            found,
            kl=max(self.kl / self.positions, 0.0),
            top1=self.agreed / self.decided if self.decided else None,
            perplexity_ratio=float(likelihood) if text and self.targets else None,
        )


def _ten_nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """Return [sequences, 10]: every sequence's nearest others by cosine."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(10, dim=-1).indices
