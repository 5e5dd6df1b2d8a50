"""A made-up kind of work, whole in this one file: ADVISOR_PLUGINS=made_up_kind, and its folder on PYTHONPATH.

The log-likelihood of each text under a language model: one number a text. It counts the tokens that are scored, which the first
of a text is not, and the time that a text takes in the slowest batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.metrics import MEMORY, Metric, rate_of, seconds
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Limits, Tier
from advisor.nouns.option import Option
from advisor.workloads import Head, Kind, Needs, Running, Runtime, Workload
from advisor.workloads.options import LIST_OPTIONS

NAME = "likelihood"

#: What is made of a text's tokens.
SUMS = ("mean", "total")


@dataclass(frozen=True)
class Likelihood(Workload):
    """The log-likelihood of each sequence; of: the mean over its scored tokens, or their total."""

    of_tokens: str = SUMS[0]

    def __post_init__(self) -> None:
        """Refuse what is not a workload."""
        super().__post_init__()
        if min(self.lengths) < 2:
            raise BadInput(
                f"{named('lengths')} must be at least 2 tokens each: the first token of a text is not scored"
            )
        if self.of_tokens not in SUMS:
            raise BadInput(f"{named('of_tokens')} must be one of {', '.join(SUMS)}, not {self.of_tokens!r}")

    @property
    def kind(self) -> str:
        """The word that it is stored by."""
        return NAME

    @property
    def output(self) -> str:
        """What comes out."""
        return f"{self.of_tokens} log-likelihood"

    @property
    def needs(self) -> Needs:
        """A head that predicts the next token."""
        return Needs(Head.LANGUAGE, next_token=True, otherwise="only a language model says how likely a text is")

    @property
    def own_payload(self) -> dict[str, Any]:
        """What is made of the tokens."""
        return {"of_tokens": self.of_tokens}

    @property
    def own_flags(self) -> str:
        """The kind, and what is made of the tokens."""
        return f"--workload {NAME} --of-tokens {self.of_tokens}"

    @property
    def scored(self) -> int:
        """The tokens that are scored in a pass over the list."""
        return self.tokens - len(self.lengths)

    def predictions(self) -> int:
        """Logits are asked for of every token that is scored."""
        return self.scored

    def kept(self, rows: int, columns: int) -> int:
        """All of a call's are in memory at once."""
        return rows * columns


def run_likelihood(
    model: Any, call: dict[str, Any], places: list[tuple[int, int, int]], _: object = None, *, of_tokens: str
) -> Any:
    """Run the model and return the log-likelihood of each text, [sequences] in fp32.

    places: row, first column and the column after the last of every text.
    """
    import torch

    logits, found = model(**call).logits, []
    for row, start, end in places:
        scores = logits[row, start : end - 1].float().log_softmax(-1)
        picked = scores.gather(1, call["input_ids"][row, start + 1 : end, None])
        found.append(picked.mean() if of_tokens == "mean" else picked.sum())
    return torch.stack(found)


def _running(workload: Workload, _: ModelFacts) -> Running:
    given = workload.own_payload
    useful = "sum(n - 1 for n in lengths)"
    return Running("made_up_kind", "run_likelihood", given, result="its log-likelihood", useful=useful)


def _runtime(workload: Workload, facts: ModelFacts) -> Runtime:
    """Compare as numbers are, and say what the mean ones come to: the perplexity over the reference's."""
    from dataclasses import replace

    import torch

    from advisor.workloads.tally_torch import Tally

    class Perplexities(Tally):
        def quality(self, *, text: bool, reference: str) -> Any:
            found = super().quality(text=text, reference=reference)
            if not self.positions or workload.own_payload["of_tokens"] != "mean":
                return found
            theirs, ours = (torch.cat(values).mean() for values in self.pairs)
            return replace(found, perplexity_ratio=float((theirs - ours).exp()))

    class Scoring(Runtime):
        def tally(self, positions: Sequence[int], _: float) -> Tally:
            return Perplexities(positions)

    return Scoring(workload, _running(workload, facts))


def _scored_tokens_per_s(workload: Any, rounds: Mapping[str, Any]) -> Sequence[float]:
    return [workload.scored / s for s in rounds["wall_s"]]


def _slowest_text_s(workload: Any, rounds: Mapping[str, Any]) -> Sequence[float]:
    return [s / workload.size for s in rounds["slowest_s"]]


METRICS = (
    Metric(
        "throughput",
        "scored_tokens_per_s",
        "tokens/s",
        less_is_better=False,
        words="scored tokens per second",
        head="scored/s",
        show=rate_of("scored tokens/s"),
        samples=_scored_tokens_per_s,
        is_speed=True,
    ),
    Metric(
        "patience",
        "slowest_text_s",
        "s",
        less_is_better=True,
        words="seconds a text in the slowest batch",
        head="slowest text",
        show=seconds,
        samples=_slowest_text_s,
        is_latency=True,
    ),
    MEMORY,
)


OPTIONS = (
    *LIST_OPTIONS,
    Option("of_tokens", "what is made of a text's tokens (default: %(default)s)", default=SUMS[0], choices=SUMS),
)


def _parse(asked: Mapping[str, Any], source: ModelSource, lengths: tuple[int, ...]) -> Likelihood:
    return Likelihood(lengths, asked["batch"], asked["of_tokens"])


KINDS = [
    Kind(
        name=NAME,
        summary="how likely each text is",
        stored_as=(NAME,),
        workload=Likelihood,
        metrics=METRICS,
        parse=_parse,
        running=_running,
        runtime=_runtime,
        examples=(Likelihood((64, 32, 48, 16), 2),),
        options=OPTIONS,
        limits={Tier.FOUR_BIT: Limits(5e-2, 0.94, 1.02, 0.95, 0.8, 0.25)},
    )
]
