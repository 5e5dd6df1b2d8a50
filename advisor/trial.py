"""Trial: one attempt to run one configuration, its outcome and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from advisor.checked import checked
from advisor.configuration import Configuration
from advisor.measurement import Measurement
from advisor.objective import Metric


class Outcome(StrEnum):
    """What became of a trial."""

    RUNNING = "running"
    OK = "ok"
    PRUNED = "pruned"
    TIMEOUT = "timeout"
    LOAD_FAILED = "load_failed"
    COMPILE_FAILED = "compile_failed"
    OUT_OF_MEMORY = "out_of_memory"
    RUNTIME_ERROR = "runtime_error"
    WRONG_OUTPUT = "wrong_output"

    @property
    def is_failure(self) -> bool:
        """Whether nothing usable came of it."""
        return self not in (Outcome.RUNNING, Outcome.OK, Outcome.PRUNED)


@dataclass(frozen=True)
class Quality:
    """How far a configuration's output is from the reference's, over `positions` of the workload (measurement.md, B.6).

    rms, maximum: of the differences, in standard deviations of the reference's values; maximum is shown, never judged.
    kl: mean KL(reference‖this) in nats; top1: share of positions with the same best token, ties left out;
    perplexity_ratio: this one's perplexity over the reference's. These three are None for hidden states, the last also
    where the tokens are no text. cosine: the smallest of any position, for hidden states and embeddings. top10: mean share of
    a sequence's ten nearest others that stay its ten nearest, for embeddings. reference: what it was.
    judged: False where the weights are random and the choice is lossy. failures: the limits that were broken, in words.
    """

    rms: float
    maximum: float
    kl: float | None
    top1: float | None
    positions: int
    perplexity_ratio: float | None = None
    cosine: float | None = None
    reference: str = ""
    judged: bool = True
    failures: tuple[str, ...] = ()
    top10: float | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "failures": list(self.failures)}

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None) -> Quality | None:
        """Build it from its payload, None from None. Raises Malformed for a value that can't be."""
        return None if payload is None else cls(**checked(cls, payload))


@dataclass(frozen=True)
class Trial:
    """One attempt: what was asked for, what ran, what came of it.

    load_s, first_call_s, measure_s: seconds to load the weights, of the first forward pass, and of the timed rounds.
    peak_bytes: peak memory while it ran. reading: the raw evidence of what ran (see design.md, "effective").
    device_uuid: the device that measured it, "" where that is not known (trials from elsewhere, and of before it was stored).
    """

    number: int
    requested: Configuration
    effective: Configuration | None
    outcome: Outcome
    reason: str = ""
    phase: str = "search"
    block: int | None = None
    load_s: float | None = None
    first_call_s: float | None = None
    measure_s: float | None = None
    wall_s: float | None = None
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    quality: Quality | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    reused_from: int | None = None
    measurements: tuple[Measurement, ...] = ()
    attempts: int = 1
    device_uuid: str = ""

    def measurement(self, metric: str) -> Measurement | None:
        """Return the measurement of `metric`, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second, the median; 0.0 where nothing was timed."""
        measured = self.measurement("tokens_per_s")
        return measured.median if measured else 0.0

    def value(self, metric: str) -> float | None:
        """Return a metric's median, or peak_bytes; None where it was not measured."""
        if metric == "peak_bytes":
            return self.peak_bytes
        measured = self.measurement(metric)
        return measured.median if measured else None

    def score(self, aim: Metric) -> float:
        """Return a number that is higher the better the trial is at `aim`: the value or its inverse; 0.0 where unknown."""
        value = self.value(aim.metric)
        if not value:
            return 0.0
        return 1.0 / value if aim.less_is_better else float(value)

    @property
    def ran(self) -> Configuration:
        """What the figures count for: the effective configuration, or the requested one where nothing ran."""
        return self.effective or self.requested
