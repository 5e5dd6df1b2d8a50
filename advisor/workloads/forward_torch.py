"""The forward workload with tensors: tokens, calls, results and the comparison with the reference. Worker only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from advisor.trial import Quality
from advisor.workloads.forward import LOGITS, Workload

#: The reference keeps at most this many bytes of logits: positions are thinned out for large vocabularies.
REFERENCE_BYTES = 512 * 2**20

#: Fewer scores than this have no standard deviation worth the name: then it is taken over the labels.
LEAST_SEQUENCES = 4


def run_tokens(
    model: Any,
    call: dict[str, Any],
    places: list[tuple[int, int, int]],
    kind: str,
    keeps: bool,
    distances: tuple[int, ...] | None,
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
    model: Any, call: dict[str, Any], rows: list[int], starts: list[int], ends: list[int], how: str
) -> torch.Tensor:
    """Run the model and return one embedding a sequence, [sequences, width] in fp32.

    rows, starts, ends: of every sequence its row, its first column and the column after its last.

    how: "cls" (a sequence's first token), "last" (its last one) or "mean" (of all its tokens, pads left out).
    """
    hidden = model(**call).last_hidden_state
    if how in ("cls", "last"):
        columns = starts if how == "cls" else [end - 1 for end in ends]
        return hidden[torch.tensor(rows), torch.tensor(columns)].float()  # type: ignore[no-any-return]
    width, places = hidden.shape[1], list(zip(rows, starts, ends, strict=True))
    tokens = torch.cat([torch.arange(row * width + start, row * width + end) for row, start, end in places])
    lengths = torch.tensor([end - start for _, start, end in places], device=hidden.device)
    # Not by adding into rows: on a GPU the order of additions would change from run to run.
    return torch.segment_reduce(hidden.flatten(0, 1)[tokens.to(hidden.device)].float(), "mean", lengths=lengths)


def run_scores(model: Any, call: dict[str, Any], places: list[tuple[int, int, int]]) -> torch.Tensor:
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


@dataclass(frozen=True)
class Call:
    """One call of the model: its arguments, which sequences are in it, in order, and where each lies.

    places: row, first column and the column after the last of every sequence.
    """

    arguments: dict[str, Any]
    sequences: tuple[int, ...]
    places: tuple[tuple[int, int, int], ...]

    def on(self, device: str) -> dict[str, Any]:
        """Return the arguments with every tensor on the device."""
        return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in self.arguments.items()}

    @property
    def is_packed(self) -> bool:
        """Whether several sequences share a row."""
        return len({row for row, _, _ in self.places}) < len(self.places)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The sequences' lengths."""
        return tuple(end - start for _, start, end in self.places)


@dataclass(frozen=True)
class Asked:
    """What is asked of the model: the workload's output, and what the facts say of how to get it.

    accepts: the optional arguments its forward takes; pooling: "mean", "cls" or "last".
    """

    output: str
    accepts: tuple[str, ...]
    pooling: str

    @property
    def is_of_tokens(self) -> bool:
        """Whether every token has values; else a sequence has one embedding, or one row of scores."""
        return self.output not in ("pooled", "scores")

    @property
    def keeps(self) -> bool:
        """Whether the class can leave logits out that are not asked for."""
        return self.output in LOGITS and "logits_to_keep" in self.accepts

    def arguments(self, call: Call) -> Call:
        """Return the call with what asks for the last logits of every *sequence* alone, where they are wanted."""
        if self.output != "last-logits" or not self.keeps:
            return call
        columns, width = sorted({end - 1 for _, _, end in call.places}), call.arguments["input_ids"].shape[1]
        kept = 1 if columns == [width - 1] else torch.tensor(columns)
        return Call({**call.arguments, "logits_to_keep": kept}, call.sequences, call.places)

    def run(self, model: Any, call: Call, device: str, distances: Sequence[int] | None = None) -> torch.Tensor:
        """Run a call on the device and return what was asked for: the one way in which it is timed, judged and printed.

        last-logits: [sequences, vocabulary]; pooled: [sequences, width]; scores: [sequences, labels]; all-logits and
        hidden: [rows, columns, width], as the model gives them. distances: more of the same, [pairs, width], see
        :func:`run_tokens`; what a sequence has one of stays as it is.
        """
        arguments, places = call.on(device), list(call.places)
        if self.output == "pooled":
            rows, starts, ends = (list(each) for each in zip(*places, strict=True))
            pooled = run_pooled(model, arguments, rows, starts, ends, self.pooling)
            for step in getattr(model, "after_pooling", ()):
                pooled = step(pooled)
            return pooled
        if self.output == "scores":
            return run_scores(model, arguments, places)
        kind = "last_hidden_state" if self.output == "hidden" else "logits"
        if distances is None and self.output == "last-logits":
            distances = (0,)
        return run_tokens(model, arguments, places, kind, self.keeps, None if distances is None else tuple(distances))

    def by_sequence(self, model: Any, call: Call, device: str, distances: Sequence[int]) -> list[torch.Tensor]:
        """Run a call and return every sequence's values, [positions, width] in fp32, nearest its end first.

        An embedding or a row of scores is one position.
        """
        values = self.run(model, call, device, distances)
        # The least number of a dtype stands for what can never be (ids of images among a text's): it says nothing.
        values = values.masked_fill(
            values.isfinite() & (values.abs() > 0.9 * torch.finfo(values.dtype).max), 0.0
        ).float()
        if not self.is_of_tokens:
            return list(values[:, None])
        return list(torch.split(values, [sum(d < length for d in distances) for length in call.lengths]))


def distances(workload: Workload, width: int) -> list[int]:
    """Return the distances from a sequence's end at which outputs are compared: 0 and others, evenly spaced.

    width: values per position. Their number keeps the reference within REFERENCE_BYTES, at least 4, at most 128.
    """
    longest = max(workload.lengths)
    count = max(4, min(128, longest, REFERENCE_BYTES // (len(workload.lengths) * width * 4)))
    return sorted({round(i * (longest - 1) / max(count - 1, 1)) for i in range(count)})


class Tally:
    """Sums of the differences from the reference, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int], noise: float, output: str) -> None:
        """Begin empty. noise: in logits; a reference margin below it counts as a tie. output: the workload's."""
        self.offsets, self.noise, self.output = offsets, noise, output
        self.squares = self.reference_squares = self.kl = self.nll = self.reference_nll = 0.0
        self.values = self.positions = self.agreed = self.decided = self.targets = 0
        self.maximum, self.cosine, self.finite = 0.0, 1.0, True
        #: What sequences have one of, embeddings or scores: the reference's and this configuration's.
        self.pairs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])

    def add(self, tokens: torch.Tensor, reference: torch.Tensor | None, values: torch.Tensor) -> None:
        """Add one sequence: reference and values are [positions, width], nearest the end first; None: there is no reference."""
        self.finite &= bool(torch.isfinite(values).all())
        if reference is None:
            return
        reference, values = reference.double(), values.double()
        difference = values - reference
        centred = reference - reference.mean(-1, keepdim=True)
        self.squares += float(difference.square().sum())
        self.reference_squares += float(centred.square().sum())
        self.maximum = max(self.maximum, float(difference.abs().max()))
        self.values += values.numel()
        self.positions += len(values)
        if self.output in ("pooled", "scores"):
            self.pairs[0].append(reference[0])
            self.pairs[1].append(values[0])
        if self.output in ("hidden", "pooled"):
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
        near = [_ten_nearest(torch.stack(found)) for found in self.pairs]
        kept = (near[0][:, :, None] == near[1][:, None, :]).any(-1)
        return float(kept.double().mean())

    def _deviation(self) -> float:
        """Return the standard deviation that errors are counted in: of values at a position, of scores over sequences."""
        if self.output == "scores":
            return score_deviation(torch.stack(self.pairs[0]))
        return float(max((self.reference_squares / self.values) ** 0.5, 1e-30))

    def quality(self, *, text: bool, reference: str) -> Quality:
        """Return the figures. Raises ValueError where an output was not finite: nothing can be said of it then."""
        if not self.finite:
            raise ValueError("the output holds NaN or infinity")
        if not self.positions:
            return Quality(0.0, 0.0, None, None, 0, reference=reference)
        deviation = self._deviation()
        rms = (self.squares / self.values) ** 0.5 / deviation
        if self.output in ("hidden", "pooled"):
            return Quality(rms, self.maximum / deviation, None, None, self.positions, cosine=self.cosine,
                           reference=reference, top10=self.top10())  # fmt: skip
        if self.output == "scores" and self.values == self.positions:
            return Quality(rms, self.maximum / deviation, None, None, self.positions, reference=reference)
        likelihood = torch.tensor((self.nll - self.reference_nll) / max(self.targets, 1), dtype=torch.float64).exp()
        return Quality(
            rms=rms,
            maximum=self.maximum / deviation,
            kl=max(self.kl / self.positions, 0.0),
            top1=self.agreed / self.decided if self.decided else None,
            positions=self.positions,
            perplexity_ratio=float(likelihood) if text and self.targets else None,
            reference=reference,
        )


def score_deviation(scores: torch.Tensor) -> float:
    """Return the standard deviation that errors of scores, [sequences, labels], are counted in.

    Over the sequences; of too few over the labels; and where there is one label alone, the size of the scores themselves.
    """
    many, labels = len(scores) >= LEAST_SEQUENCES, scores.shape[-1] > 1
    centred = scores - scores.mean(0) if many else scores - scores.mean(-1, keepdim=True) if labels else scores
    return float(max(float(centred.double().square().mean()) ** 0.5, 1e-30))


def _ten_nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """Return [sequences, 10]: every sequence's nearest others by cosine."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(10, dim=-1).indices
