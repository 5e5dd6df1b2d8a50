"""Micro-batch: how many sequences of a step share a forward pass; gradients are accumulated over the passes of a step.

Every choice does the same step: the same sequences, and a loss that is the mean over all of its tokens (rule T2), as Trainer has
it by `gradient_accumulation_steps`. Fewer at a time take less memory; a GPU that they do not fill takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, on_all
from advisor.workloads import Workload

_SOURCE = "https://huggingface.co/docs/transformers/perf_train_gpu_one#gradient-accumulation"

#: The choice of one forward pass a step.
WHOLE = "at-once"

#: Sequences a forward pass: powers of two, for what lies between is within what a search can tell apart.
SIZES = tuple(2**power for power in range(8))

#: A forward pass of so many tokens runs at half the speed of a very large one: Llama-3.2-1B on an H200, 11,500, 5,700 and 2,900
#: tokens each (only for the order of the search).
_HALF_SPEED_TOKENS = {"cuda": 1500.0, "cpu": 15.0}


def _applies(workload: Workload) -> bool:
    return workload.trains


def _why_not(size: int) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        step = max(min(situation.workload.size, len(situation.workload.lengths)), 1)
        if size >= step:
            return [Reason("T4", Verdict.ALIAS, f"a step has {step} sequences: {WHOLE} is the same")]
        if step % size:
            text = f"{step} sequences a step can't be {size} at a time: Trainer takes as many in each pass"
            return [Reason("T4", Verdict.INVALID, text)]
        return []

    return why_not


def _rates(situation: Situation) -> Mapping[Term, float]:
    if not situation.workload.trains:  # what other work has of this knob is what it implies
        return {}
    tokens = situation.workload.tokens / len(situation.workload.batches())
    return on_all(tokens / (tokens + _HALF_SPEED_TOKENS[situation.environment.device]))


def _effective(reading: Reading) -> str:
    if len(reading.shapes) < 2:
        return WHOLE
    return f"micro-{max(reading.shapes)}"


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        return None if _effective(reading) == name else f"the passes of a step had {list(reading.shapes)} sequences"

    return proof


def _choice(size: int) -> Choice:
    words = f"{size} sequence{'s' if size > 1 else ''} a forward pass, gradients accumulated"
    name = f"micro-{size}"
    return Choice("micro_batch", name, words, _SOURCE, why_not=_why_not(size), proof=_proof(name), rates=_rates)


KNOB = Knob(
    name="micro_batch",
    summary="sequences a forward pass, in training",
    reload=False,
    default=lambda _: WHOLE,
    effective=_effective,
    applies=_applies,
    choices={
        WHOLE: Choice("micro_batch", WHOLE, "a step is one forward pass", _SOURCE, proof=_proof(WHOLE), rates=_rates),
        **{f"micro-{size}": _choice(size) for size in SIZES},
    },
    implied=WHOLE,
    place=51,
    spares=True,
)
