"""The metrics that several kinds of work have: a kind names those that mean something of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.nouns.metrics import Gauge, Metric, rate_of


def _tokens_per_s(workload: Any, rounds: Mapping[str, Any]) -> Sequence[float]:
    return [workload.tokens / s for s in rounds["wall_s"]]


def _joules_per_token(workload: Any, rounds: Mapping[str, Any]) -> Sequence[float]:
    joules = rounds.get("joules")
    return [joules / workload.tokens] if joules else []


THROUGHPUT = Metric(
    "throughput",
    "tokens_per_s",
    "tokens/s",
    less_is_better=False,
    words="useful tokens per second",
    head="tokens/s",
    show=rate_of("tokens/s"),
    samples=_tokens_per_s,
    is_speed=True,
)
ENERGY = Metric(
    "energy",
    "joules_per_token",
    "J/token",
    less_is_better=True,
    words="energy per useful token",
    head="J per 1,000 tokens",
    show=lambda value: f"{value * 1000:.3g} J per 1,000 tokens",
    samples=_joules_per_token,
    gauge=Gauge.ENERGY,
)
