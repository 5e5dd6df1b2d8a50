"""The forward workload with tensors: tokens, calls, results and the comparison with the reference. Worker only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advisor.trial import Quality
from advisor.workloads.forward import LOGITS, Workload

#: The reference keeps at most this many bytes of logits: positions are thinned out for large vocabularies.
REFERENCE_BYTES = 512 * 2**20

#: Fewer scores than this have no standard deviation worth the name: then it is taken over the labels.
LEAST_SEQUENCES = 4

TEXT = Path(__file__).with_name("text.txt")


def draw_tokens(workload: Workload, tokenizer: Any, vocabulary: int) -> list[torch.Tensor]:
    """Return one int64 tensor per sequence: stretches of the bundled text, or random ids without a tokenizer.

    Deterministic, so that every process of a study runs the same tokens. Special ids are avoided in random ones as far as
    they are the lowest few, as is the custom.
    """
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        low = min(16, vocabulary - 1)
        return [torch.randint(low, vocabulary, (n,), generator=generator) for n in workload.lengths]
    text = torch.tensor(tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    starts = [(number * 7919) % len(text) for number in range(len(workload.lengths))]
    longest = max(workload.lengths)
    text = text.repeat(longest // len(text) + 2)
    return [text[start : start + n].clone() for start, n in zip(starts, workload.lengths, strict=True)]


def pool(hidden: torch.Tensor, rows: list[int], starts: list[int], ends: list[int], how: str) -> torch.Tensor:
    """Return one embedding a sequence, [sequences, width] in fp32, from hidden states [rows, columns, width].

    how: "cls" (the first position), "last" (the last one) or "mean" (of all positions of the sequence, pads left out).
    """
    if how in ("cls", "last"):
        columns = starts if how == "cls" else [end - 1 for end in ends]
        return hidden[torch.tensor(rows), torch.tensor(columns)].float()
    owner = torch.full(hidden.shape[:2], len(rows))
    for sequence, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        owner[row, start:end] = sequence
    sums = torch.zeros((len(rows) + 1, hidden.shape[-1]), device=hidden.device)
    sums.index_add_(0, owner.flatten().to(hidden.device), hidden.flatten(0, 1).float())
    lengths = torch.tensor([end - start for start, end in zip(starts, ends, strict=True)], device=hidden.device)
    return sums[:-1] / lengths[:, None]


def score_packed(model: Any, call: dict[str, Any], starts: list[int]) -> torch.Tensor:
    """Return a classification head's scores, [sequences, labels], of every sequence in a packed row.

    The model's own forward would read the first position of the row alone: the head gets each sequence's first position.
    """
    base = model.base_model
    first = base(**call).last_hidden_state[0, torch.tensor(starts)][:, None]
    pooler = getattr(base, "pooler", None)
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

    @property
    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """Rows, first columns and columns after the last, sequence by sequence."""
        rows, starts, ends = zip(*self.places, strict=True)
        return list(rows), list(starts), list(ends)


@dataclass(frozen=True)
class Asked:
    """What is asked of the model: the workload's output, and what the facts say of how to get it.

    accepts: the optional arguments its forward takes; pooling: "mean", "cls" or "last".
    """

    output: str
    accepts: tuple[str, ...]
    pooling: str

    @property
    def keeps(self) -> bool:
        """Whether the class can leave logits out that are not asked for."""
        return "logits_to_keep" in self.accepts

    def arguments(self, call: Call) -> Call:
        """Return the call with what asks for the last logits of every *sequence* alone, where they are wanted."""
        if self.output != "last-logits" or not self.keeps:
            return call
        return Call({**call.arguments, "logits_to_keep": _columns_or_one(call)}, call.sequences, call.places)

    def of(self, model: Any, call: Call, device: str) -> torch.Tensor:
        """Run the model on a call and return what was asked for.

        last-logits: [sequences, vocabulary]; pooled: [sequences, width]; scores: [sequences, labels]; all-logits and
        hidden: [rows, columns, width], as the model gives them.
        """
        arguments = call.on(device)
        if self.output == "scores" and call.is_packed:
            return score_packed(model, arguments, call.parts[1])
        outputs = model(**arguments)
        if self.output == "pooled":
            pooled = pool(outputs.last_hidden_state, *call.parts, self.pooling)
            for step in getattr(model, "after_pooling", ()):
                pooled = step(pooled)
            return pooled
        values: torch.Tensor = outputs.last_hidden_state if self.output == "hidden" else outputs.logits
        return _last(call, values) if self.output == "last-logits" else values


def _columns_or_one(call: Call) -> torch.Tensor | int:
    """Return 1 where every sequence ends with its row, else the columns that any sequence ends in."""
    columns = call.arguments["input_ids"].shape[1]
    if all(end == columns for _, _, end in call.places):
        return 1
    return torch.tensor(sorted({end - 1 for _, _, end in call.places}))


def _last(call: Call, logits: torch.Tensor) -> torch.Tensor:
    """Return [sequences, vocabulary] from the logits of a call, whether or not the class kept only what was asked for."""
    rows, _, ends = call.parts
    if logits.shape[1] == 1:
        return logits[:, -1]
    if logits.shape[1] == call.arguments["input_ids"].shape[1]:
        columns = [end - 1 for end in ends]
    else:
        kept = sorted({end - 1 for end in ends})
        columns = [kept.index(end - 1) for end in ends]
    return logits[torch.tensor(rows), torch.tensor(columns)]


def distances(workload: Workload, width: int) -> list[int]:
    """Return the distances from a sequence's end at which outputs are compared: 0 and others, evenly spaced.

    width: values per position. Their number keeps the reference within REFERENCE_BYTES, at least 4, at most 128.
    """
    longest = max(workload.lengths)
    count = max(4, min(128, longest, REFERENCE_BYTES // (len(workload.lengths) * width * 4)))
    return sorted({round(i * (longest - 1) / max(count - 1, 1)) for i in range(count)})


def compared_values(
    model: Any, call: Call, offsets: Sequence[int], asked: Asked, device: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """Run a call and yield (sequence, its values at those of the distances that it is long enough for).

    Values are [positions, width], float32 on the device, nearest the end first; an embedding or scores are one position.
    """
    if asked.output in ("pooled", "scores"):
        for sequence, values in zip(call.sequences, asked.of(model, call, device), strict=True):
            yield sequence, values[None].float()
        return
    wanted = [[end - 1 - d for d in offsets if d < end - start] for _, start, end in call.places]
    keep = sorted({column for row in wanted for column in row})
    arguments = call.on(device)
    place = {column: column for column in keep}
    if asked.output != "hidden" and asked.keeps:
        arguments["logits_to_keep"] = torch.tensor(keep, device=device)
        place = {column: i for i, column in enumerate(keep)}
    outputs = model(**arguments)
    values = outputs.last_hidden_state if asked.output == "hidden" else outputs.logits
    for (row, _, _), sequence, columns in zip(call.places, call.sequences, wanted, strict=True):
        index = torch.tensor([place[column] for column in columns], device=device)
        yield sequence, values[row, index].float()


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

    def add(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor) -> None:
        """Add one sequence: reference and values are [positions, width], nearest the end first."""
        self.finite &= bool(torch.isfinite(values).all())
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
        if self.output != "scores" or len(self.pairs[0]) < LEAST_SEQUENCES:
            return float(max((self.reference_squares / self.values) ** 0.5, 1e-30))
        scores = torch.stack(self.pairs[0])
        return float(max(float((scores - scores.mean(0)).square().mean()) ** 0.5, 1e-30))

    def quality(self, *, text: bool, reference: str) -> Quality:
        """Return the figures. Raises ValueError where an output was not finite: nothing can be said of it then."""
        if not self.finite:
            raise ValueError("the output holds NaN or infinity")
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


def _ten_nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """Return [sequences, 10]: every sequence's nearest others by cosine."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(10, dim=-1).indices
