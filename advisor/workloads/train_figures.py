"""What is measured of training: useful tokens a second, the seconds of a step, memory and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.nouns.metrics import MEMORY, Metric, seconds
from advisor.workloads.figures import ENERGY, THROUGHPUT
from advisor.workloads.workload import Workload


def _slowest_step_s(_: Workload, rounds: Mapping[str, Any]) -> Sequence[float]:
    return list(rounds["slowest_s"])


def _step_s(workload: Any, rounds: Mapping[str, Any]) -> Sequence[float]:
    return [s / len(workload.steps()) for s in rounds["wall_s"]]


METRICS = (
    THROUGHPUT,
    Metric(
        "",
        "step_s",
        "s",
        less_is_better=True,
        words="seconds a step, on the mean",
        head="s/step",
        show=seconds,
        samples=_step_s,
    ),
    Metric(
        "latency",
        "slowest_step_s",
        "s",
        less_is_better=True,
        words="seconds of the slowest step",
        head="slowest step",
        show=seconds,
        samples=_slowest_step_s,
        is_latency=True,
    ),
    MEMORY,
    ENERGY,
)
