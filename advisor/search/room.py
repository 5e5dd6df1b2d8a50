"""Room: how long sequences may be before a step of them does not fit any more, by arithmetic and a peak that was measured."""

from __future__ import annotations

from dataclasses import replace

from advisor.knobs import Situation, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.metrics import ASSUMED_BESIDE_BYTES
from advisor.nouns.model import ModelFacts
from advisor.search.cost import predicted_bytes
from advisor.workloads import Workload

#: No model that says nothing of its positions is asked about longer sequences.
_MOST_TOKENS = 2**20

#: Lengths are told in steps of so many tokens.
_STEP = 64


def longest_that_fits(
    workload: Workload,
    facts: ModelFacts,
    environment: Environment,
    configuration: Configuration,
    peak_bytes: int,
    most_bytes: float,
) -> int:
    """Return how many tokens each sequence of a call may have, all as long, for its predicted peak to be within most_bytes.

    A multiple of 64, or as many as the model, or a packed row of it, has positions; 0 where not even 64 fit. What is predicted
    is scaled by what this configuration was measured to take, peak_bytes, over what was predicted of the workload that it was
    measured on: both without what a process has beside its tensors.
    """

    def needed(work: Workload) -> float:
        return predicted_bytes(Situation(configuration, work.under(configuration), environment, facts))

    scale = max(peak_bytes - ASSUMED_BESIDE_BYTES, 0) / needed(workload)
    sequences = workload.batch or 1

    def fits(tokens: int) -> bool:
        return ASSUMED_BESIDE_BYTES + scale * needed(replace(workload, lengths=(tokens,) * sequences)) <= most_bytes

    most = _MOST_TOKENS if facts.max_positions is None else facts.max_positions - facts.position_offset
    if facts.max_row is not None and traits_of(configuration).packs:
        in_a_row = max(map(len, workload.under(configuration).batches()))
        most = min(most, (facts.max_row - facts.position_offset) // in_a_row)
    if fits(most):
        return most
    low, high = 0, -(-most // _STEP)  # in steps: what fits, and what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle)
    return low * _STEP
