"""Trial: one attempt to run one configuration, its outcome and what it measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from statistics import median
from typing import Any

from advisor.nouns.checked import checked
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import (
    LAUNCH_BOUND_NOISE,
    LAUNCH_BOUND_SHARE,
    PACED_NOISE,
    TIE_ZONE,
    Measurement,
    is_at_pace,
)
from advisor.nouns.metrics import CPU_LAP, GPU_BUSY, PAIRED, PEAK, Metric


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
    #: The budget ended while it ran, or somebody interrupted it: nothing is known of the configuration.
    CUT = "cut"

    @property
    def is_failure(self) -> bool:
        """Whether nothing usable came of it."""
        return self not in (Outcome.RUNNING, Outcome.OK, Outcome.PRUNED, Outcome.CUT)


#: The word that the name of a reference begins with which was computed in fp32.
FP32 = "fp32"


@dataclass(frozen=True)
class Quality:
    """The figures of a configuration's output: what they mean is said by `advisor.quality.judge`, whenever they are read.

    How far it is from the reference's over `positions` of the workload (measurement.md, B.6). rms, maximum: of the
    differences, in standard deviations (σ) of the reference's values; maximum is shown, never judged. kl: mean
    KL(reference‖this) in nats; top1: share of positions with the same best token, ties left out; perplexity_ratio: this one's
    perplexity over the reference's. These three are None for hidden states, the last also where the tokens are no text.
    cosine: the smallest of any position, for hidden states and embeddings. top10: mean share of a sequence's ten nearest
    others that stay its ten nearest, for embeddings. reference: what it was, beginning with its precision. drawn: the weights
    were drawn at random.

    What the independence probe saw (measurement.md, D), in σ: neighbours, pads: the most that a sequence's output moved when
    only their contents changed, None where that was not probed; own: the least that it moved when its own did; repeat: the
    most between equal runs; probe_void: why the probe could not have failed, "" where it could; probed: what was probed and
    what was not and why, in words. layout: the rms of the sequence that is furthest from itself alone when the same call is
    made with fp32 weights, None where that was not looked at; layout_words: with what attention, and of how many layers;
    layout_pads: the most that a sequence's output moves there (σ) when pads get other vectors, None where there are none.
    gate_s: seconds that the probe and the layout took of this trial. quantised: how many of the linear layers were, in words.
    gate: by which version of the gate these figures were found, "" before that was stored.

    Of training, against fp32 weights and compute, one document at a time: gradient: the size of the difference of the first
    step's gradients over the reference's size; loss: the largest difference of a step's loss (nats) over `steps` steps; norm: the
    largest of the gradients' norms, as a share. None where nothing is trained; course: why they are None where something is.
    """

    rms: float
    maximum: float
    kl: float | None
    top1: float | None
    positions: int
    perplexity_ratio: float | None = None
    cosine: float | None = None
    reference: str = ""
    top10: float | None = None
    drawn: bool = False
    neighbours: float | None = None
    pads: float | None = None
    own: float | None = None
    repeat: float | None = None
    probe_void: str = ""
    probed: str = ""
    layout: float | None = None
    layout_words: str = ""
    layout_pads: float | None = None
    gate_s: float = 0.0
    quantised: str = ""
    gate: str = ""
    gradient: float | None = None
    loss: float | None = None
    norm: float | None = None
    steps: int = 0
    course: str = ""

    @property
    def lacks_layout(self) -> bool:
        """Whether the layout was to be looked at and could not be: see `advisor.measure.layout_torch.look_at_layout`."""
        return self.layout is None and self.layout_words.startswith("not looked at")

    @property
    def is_probed(self) -> bool:
        """Whether the independence probe looked at neighbours or pads."""
        return self.neighbours is not None or self.pads is not None

    @property
    def is_against_fp32(self) -> bool:
        """Whether the reference was computed in fp32: by less nobody is judged."""
        return self.reference.partition(",")[0] == FP32

    @property
    def payload(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return dict(zip(_ORDER, _READ(self), strict=True))

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None) -> Quality | None:
        """Build it from its payload, None from None. Verdicts that earlier versions stored with the figures are left out.

        Raises Malformed for a value that can't be.
        """
        if payload is None:
            return None
        if payload.keys() != _FIGURES:
            drawn = payload.get("drawn", not payload.get("judged", True))
            payload = {**{name: value for name, value in payload.items() if name in _FIGURES}, "drawn": drawn}
        return cls(**checked(cls, payload))


#: The names of all figures in order, and what reads them: `asdict` copies each, which takes twenty times as long.
_ORDER = tuple(field.name for field in fields(Quality))
_READ = attrgetter(*_ORDER)

#: The names of all figures, which the payload of a row of this version has.
_FIGURES = frozenset(_ORDER)


@dataclass(frozen=True)
class Trial:
    """One attempt: what was asked for, what ran, what came of it.

    load_s, first_call_s, measure_s: seconds to load the weights, of the first forward pass, and of the timed rounds.
    peak_bytes: peak memory while it ran, on a GPU all that its process had there. reading: the raw evidence of what ran (see
    design.md, "effective"), and of what that peak is made.
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
        for measured in self.measurements:  # a generator takes longer than the search
            if measured.metric == metric:
                return measured
        return None

    @property
    def is_reused(self) -> bool:
        """Whether the figures are another trial's: of what really ran in this study, or of the same work in another one."""
        return self.reused_from is not None or (self.wall_s == 0 and bool(self.measurements))

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second, the median; 0.0 where nothing was timed."""
        measured = self.measurement("tokens_per_s")
        return measured.median if measured else 0.0

    def value(self, metric: str) -> float | None:
        """Return a metric's median, or the peak of memory; None where it was not measured."""
        if metric == PEAK:
            return self.peak_bytes
        measured = self.measurement(metric)
        return measured.median if measured else None

    def score(self, aim: Metric) -> float:
        """Return a number that is higher the better the trial is at `aim`: the value or its inverse; 0.0 where unknown."""
        value = self.value(aim.metric)
        if not value:
            return 0.0
        return 1.0 / value if aim.less_is_better else float(value)

    def score_interval(self, aim: Metric) -> tuple[float, float]:
        """Return the interval of its score, which is higher the better it is; a point where it has one figure alone."""
        measured = self.measurement(aim.metric)
        if measured is None:
            return self.score(aim), self.score(aim)
        low, high = measured.interval
        return (1 / high, 1 / low) if aim.less_is_better else (low, high)

    def margin(self, aim: Metric, best_s: float | None) -> float:
        """Return by how much another's score must be below its own, beyond both intervals, to be seen to be worse.

        The intervals are of one process each, and what differs from process to process they can't show. best_s: as for `scatter`.
        """
        return max(TIE_ZONE, self.scatter(best_s)) if aim.is_of_time else TIE_ZONE

    def times(self, other: Trial, aim: Metric) -> float:
        """Return how many times better than another trial this one is at `aim`; 0.0 where one of them is not known.

        The ratio of their medians; where they took short turns beside one another, the median of the turns' ratios: the CPU's
        speed may change between two turns, and then a median is that of one speed or the other.
        """
        mine, theirs = self.measurement(aim.metric), other.measurement(aim.metric)
        is_beside = (
            self.is_paired and other.is_paired and self.block == other.block and self.device_uuid == other.device_uuid
        )
        if mine and theirs and is_beside and len(mine.samples) == len(theirs.samples):
            ratio = (
                median(a / b for a, b in zip(mine.samples, theirs.samples, strict=True)) if all(theirs.samples) else 0.0
            )
            return 1 / ratio if aim.less_is_better and ratio else ratio
        return self.score(aim) / other.score(aim) if other.score(aim) else 0.0

    @property
    def is_paired(self) -> bool:
        """Whether its turns in a block were short ones, each beside those of the other contestants of its process."""
        return self.measurement(PAIRED) is not None

    @property
    def busy(self) -> float | None:
        """The share of the time for which the GPU computed; None where that was not seen."""
        return self.value(GPU_BUSY)

    @property
    def is_launch_bound(self) -> bool:
        """Whether the GPU was seen to wait for the CPU that launches its kernels."""
        return self.busy is not None and self.busy < LAUNCH_BOUND_SHARE

    def scatter(self, best_s: float | None) -> float:
        """By how much its figures of time scatter from process to process (standard deviation of the logarithm).

        0 where the GPU sets the pace: then its own rounds show it. best_s: of :func:`best_laps_s`, for its device.
        """
        if not self.is_launch_bound:
            return 0.0
        laps = self.measurement(CPU_LAP)
        is_paced = laps is not None and best_s is not None and is_at_pace(laps.median, best_s)
        return PACED_NOISE if is_paced else LAUNCH_BOUND_NOISE

    @property
    def ran(self) -> Configuration:
        """What the figures count for: the effective configuration, or the requested one where nothing ran."""
        return self.requested if self.effective is None else self.effective


def best_laps_s(trials: Iterable[Trial]) -> dict[str, float]:
    """Return the quickest lap of a CPU beside any round of these trials (seconds), by the device that they ran on."""
    found: dict[str, float] = {}
    for trial in trials:
        if (laps := trial.measurement(CPU_LAP)) is not None:
            found[trial.device_uuid] = min(*laps.samples, found.get(trial.device_uuid, math.inf))
    return found


def default_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the newest search trial of a study's default that ran, right or wrong: what trial 0 asked for."""
    if not trials:
        return None
    asked = [t for t in trials if t.phase == "search" and t.requested == trials[0].requested]
    return next(
        (t for t in reversed(asked) if t.outcome in (Outcome.OK, Outcome.WRONG_OUTPUT) and t.measurements), None
    )
