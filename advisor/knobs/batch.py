"""Batch: how many sequences go through the model at once. A knob only where the caller leaves it open ("--batch auto")."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, on_all
from advisor.nouns.model import ModelFacts
from advisor.workloads import Workload

_SOURCE = "https://huggingface.co/docs/transformers/main_classes/pipelines#pipeline-batching"

#: The sizes offered: powers of two, for what lies between two of them is within what a search can tell apart.
SIZES = tuple(2**power for power in range(11))

#: A call with this many tokens runs at half the speed of a very large one (tokens; only for the order of the search: an
#: H200 needed some thousand tokens a call to fill, a CPU core some dozen).
_HALF_SPEED_TOKENS = {"cuda": 2000.0, "cpu": 30.0}


def _why_not(size: int) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        count = len(situation.workload.lengths)
        if size >= 2 * count > 0 and size > 1:
            return [Reason("B2", Verdict.ALIAS, f"there are only {count} sequences: a smaller batch holds them all")]
        return []

    return why_not


def _rates(situation: Situation) -> Mapping[Term, float]:
    tokens = situation.workload.tokens / len(situation.workload.batches())
    return on_all(tokens / (tokens + _HALF_SPEED_TOKENS[situation.environment.device]))


def _effective(reading: Reading) -> str:
    """The smallest size offered that holds the largest call: the list may end before a batch is full."""
    return next((str(size) for size in SIZES if size >= reading.sequences), str(reading.sequences))


def _proof(size: int) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        return None if ran == str(size) else f"the largest call had {reading.sequences} sequences"

    return proof


def _default(_: ModelFacts) -> str:
    return "1"


def _applies(workload: Workload) -> bool:
    return workload.batch is None


def _choice(size: int) -> Choice:
    words = f"{size} sequence{'s' if size > 1 else ''} a call"
    return Choice("batch", str(size), words, _SOURCE, why_not=_why_not(size), proof=_proof(size), rates=_rates)


KNOB = Knob(
    name="batch",
    summary="sequences at once, where --batch is auto",
    reload=False,
    default=_default,
    effective=_effective,
    applies=_applies,
    choices={str(size): _choice(size) for size in SIZES},
    place=50,
)
