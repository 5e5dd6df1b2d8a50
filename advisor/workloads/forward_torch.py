"""The forward workload with tensors: tokens, calls, results and the comparison with the reference. Worker only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advisor.trial import Quality
from advisor.workloads.forward import Workload

#: The reference keeps at most this many bytes of logits: positions are thinned out for large vocabularies.
REFERENCE_BYTES = 512 * 2**20

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


@dataclass(frozen=True)
class Call:
    """One call of the model: its arguments, which sequences are in it, in order, and whether they share one row."""

    arguments: dict[str, Any]
    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    packed: bool

    def on(self, device: str) -> dict[str, Any]:
        """Return the arguments with every tensor on the device."""
        return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in self.arguments.items()}

    @property
    def ends(self) -> torch.Tensor:
        """The last token's column of every sequence in a packed row."""
        return torch.tensor(self.lengths).cumsum(0) - 1


def with_output(call: Call, output: str, accepts: Sequence[str]) -> Call:
    """Return the call with what asks for the workload's output: the last logits of every *sequence*, all, or none."""
    if output != "last-logits" or "logits_to_keep" not in accepts:
        return call
    keep = call.ends if call.packed else 1
    return Call({**call.arguments, "logits_to_keep": keep}, call.sequences, call.lengths, call.packed)


def values_of(outputs: Any, output: str) -> torch.Tensor:
    """Return the tensor that was asked for from a model's outputs."""
    return outputs.last_hidden_state if output == "hidden" else outputs.logits  # type: ignore[no-any-return]


def last_logits(call: Call, logits: torch.Tensor) -> torch.Tensor:
    """Return [sequences, vocabulary] from what a last-logits call gave."""
    if not call.packed:
        return logits[:, -1]
    kept = logits.shape[1] == len(call.sequences)
    return logits[0] if kept else logits[0, call.ends.to(logits.device)]


def distances(workload: Workload, width: int) -> list[int]:
    """Return the distances from a sequence's end at which outputs are compared: 0 and others, evenly spaced.

    width: values per position. Their number keeps the reference within REFERENCE_BYTES, at least 4, at most 128.
    """
    longest = max(workload.lengths)
    count = max(4, min(128, longest, REFERENCE_BYTES // (len(workload.lengths) * width * 4)))
    return sorted({round(i * (longest - 1) / max(count - 1, 1)) for i in range(count)})


def compared_values(model: Any, call: Call, offsets: Sequence[int], output: str, accepts: Sequence[str],
                    device: str) -> Iterator[tuple[int, torch.Tensor]]:  # fmt: skip
    """Run a call and yield (sequence, its values at those of the distances that it is long enough for).

    Values are [positions, width], float32 on the device, nearest the end first.
    """
    arguments = call.on(device)
    columns = call.arguments["input_ids"].shape[1]
    ends = call.ends if call.packed else torch.full((len(call.sequences),), columns - 1)
    wanted = [[int(end) - d for d in offsets if d < n] for end, n in zip(ends, call.lengths, strict=True)]
    keep = sorted({column for row in wanted for column in row})
    if output != "hidden" and "logits_to_keep" in accepts:
        arguments["logits_to_keep"] = torch.tensor(keep, device=device)
        place = {column: i for i, column in enumerate(keep)}
    else:
        place = {column: column for column in keep}
    values = values_of(model(**arguments), output)
    for row, (sequence, columns_wanted) in enumerate(zip(call.sequences, wanted, strict=True)):
        index = torch.tensor([place[column] for column in columns_wanted], device=device)
        yield sequence, values[0 if call.packed else row, index].float()


class Tally:
    """Sums of the differences from the reference, sequence by sequence, and the figures they give."""

    def __init__(self, offsets: Sequence[int], noise: float) -> None:
        """Begin empty. noise: in logits; a reference margin below it counts as a tie."""
        self.offsets, self.noise = offsets, noise
        self.squares = self.reference_squares = self.kl = self.nll = self.reference_nll = 0.0
        self.values = self.positions = self.agreed = self.decided = self.targets = 0
        self.maximum, self.cosine, self.finite = 0.0, 1.0, True

    def add(self, tokens: torch.Tensor, reference: torch.Tensor, values: torch.Tensor, *, logits: bool) -> None:
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
        if not logits:
            self.cosine = min(self.cosine, float(torch.cosine_similarity(values, reference, dim=-1).min()))
            return
        log_p, log_q = reference.log_softmax(-1), values.log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())
        best = reference.topk(2, dim=-1)
        decided = best.values[:, 0] - best.values[:, 1] > self.noise
        self.decided += int(decided.sum())
        self.agreed += int((decided & (values.argmax(-1) == best.indices[:, 0])).sum())
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

    def quality(self, *, logits: bool, text: bool, reference: str) -> Quality:
        """Return the figures. Raises ValueError where an output was not finite: nothing can be said of it then."""
        if not self.finite:
            raise ValueError("the output holds NaN or infinity")
        deviation = max((self.reference_squares / self.values) ** 0.5, 1e-30)
        rms = (self.squares / self.values) ** 0.5 / deviation
        if not logits:
            return Quality(
                rms, self.maximum / deviation, None, None, self.positions, cosine=self.cosine, reference=reference
            )
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
