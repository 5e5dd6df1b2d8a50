"""A study's trials as points of charts and rows of tables, its finalists, its search's path. What each is, the advice says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from advisor.advice.ranking import Candidate
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import TIE_ZONE, Comparison
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage.study_record import StudyRecord
from advisor.workloads import kind_of


@dataclass(frozen=True)
class Measure:
    """A study's quality figure, less of which is closer to the reference: what it is in words, and what it is of a `Quality`."""

    words: str
    of: Callable[[Quality], float | None]


#: The figures that quality is shown by: the first that any trial of a study has.
_MEASURES = (
    Measure("KL divergence from the reference (nats)", lambda quality: quality.kl),
    Measure(
        "1 − least cosine to the reference", lambda quality: None if quality.cosine is None else 1 - quality.cosine
    ),
    Measure("rms difference from the reference (σ)", lambda quality: quality.rms),
)


def measure_of(trials: Sequence[Trial]) -> Measure:
    """Return the quality figure that a study is shown by."""
    figures = [trial.quality for trial in trials if trial.quality is not None]
    return next((each for each in _MEASURES if any(each.of(one) is not None for one in figures)), _MEASURES[-1])


#: Every configuration that was measured, with its evidence.
Candidates = Mapping[Configuration, Candidate]


class Role(StrEnum):
    """What a trial is to a reader; the charts give each a shape and a colour of its own."""

    CHOSEN = "recommended"
    DEFAULT = "the default"
    RIGHT = "may be recommended"
    REJECTED = "may not be recommended"
    FAILED = "failed"
    OPEN = "not ended"


@dataclass(frozen=True)
class Point:
    """A trial. key: of the configuration that ran.

    speed: in the kind's own unit, with its interval; quality: the study's quality figure; None where not measured.

    ratio: over the default in the search, above 1 where better at what was asked for. value: of what was asked for. reason: why
    it failed, or all that stands against it. is_drawn: whether it stands for its configuration in the charts. wall_s: seconds it
    took.
    """

    number: int
    key: str
    configuration: str
    phase: str
    outcome: str
    role: Role
    reason: str
    speed: float | None
    interval: tuple[float, float] | None
    peak_bytes: int | None
    quality: float | None
    value: float | None
    ratio: float | None
    wall_s: float | None
    is_default: bool
    is_drawn: bool


@dataclass(frozen=True)
class Finalist:
    """What met the default in blocks: its ratio with the 95 % interval, None after a single block, and the verdict on it."""

    configuration: str
    ratio: float
    low: float | None
    high: float | None
    blocks: tuple[float, ...]
    verdict: str
    is_chosen: bool
    is_open: bool


@dataclass(frozen=True)
class Step:
    """The search after one of its trials: seconds measured so far, its own value, and the best that may be recommended so far."""

    number: int
    spent_s: float
    value: float | None
    best: float | None


def points_of(
    study: StudyRecord, trials: Sequence[Trial], known: Candidates, chosen: Configuration | None, measure: Measure
) -> tuple[Point, ...]:
    """Return every trial as a point. known: what was measured; chosen: what is recommended; measure: the quality figure."""
    return tuple(_point(study, trial, known.get(trial.ran), chosen, measure) for trial in trials)


def _point(
    study: StudyRecord, trial: Trial, candidate: Candidate | None, chosen: Configuration | None, measure: Measure
) -> Point:
    speed = trial.measurement(kind_of(study.workload).speed.metric)
    is_own = candidate is not None and candidate.trial.number == trial.number
    role = _role(trial, candidate, chosen)
    against = "; ".join(candidate.objections) if candidate is not None and role is Role.REJECTED else ""
    return Point(
        number=trial.number,
        key=trial.ran.key,
        configuration=str(trial.ran if speed else trial.requested),
        phase=trial.phase if trial.block is None else f"{trial.phase} {trial.block}",
        outcome=str(trial.outcome),
        role=role,
        reason=trial.reason if role is Role.FAILED else against or trial.reason,
        speed=speed.median if speed else None,
        interval=speed.interval if speed else None,
        peak_bytes=trial.peak_bytes,
        quality=measure.of(trial.quality) if trial.quality is not None else None,
        value=trial.value(study.objective.metric),
        ratio=candidate.search_ratio if candidate is not None and is_own else None,
        wall_s=trial.wall_s,
        is_default=candidate is not None and candidate.is_default,
        is_drawn=is_own and speed is not None,
    )


def _role(trial: Trial, candidate: Candidate | None, chosen: Configuration | None) -> Role:
    """Return what a trial is, by what the advice says of its configuration."""
    if trial.outcome.is_failure and not trial.measurements:
        return Role.FAILED
    if candidate is None or trial.outcome in (Outcome.RUNNING, Outcome.CUT):
        return Role.FAILED if trial.outcome.is_failure else Role.OPEN
    if candidate.configuration == chosen:
        return Role.CHOSEN
    if candidate.objections:
        return Role.REJECTED
    return Role.DEFAULT if candidate.is_default else Role.RIGHT


def finalists_of(known: Candidates, chosen: Configuration | None) -> tuple[Finalist, ...]:
    """Return what met the default in blocks, the highest ratio first."""
    compared = [c for c in known.values() if not c.is_default]
    finalists = [_finalist(c, c.comparison, chosen) for c in compared if c.comparison is not None]
    return tuple(sorted(finalists, key=lambda finalist: -finalist.ratio))


def _finalist(candidate: Candidate, comparison: Comparison, chosen: Configuration | None) -> Finalist:
    has_interval = len(comparison.block_ratios) > 1
    low, high = comparison.interval if has_interval else (None, None)
    return Finalist(
        configuration=str(candidate.configuration),
        ratio=comparison.ratio,
        low=low,
        high=high,
        blocks=comparison.block_ratios,
        verdict=candidate.verdict or "not confirmed",
        is_chosen=candidate.configuration == chosen,
        is_open=comparison.is_open,
    )


def path_of(study: StudyRecord, points: Sequence[Point], trials: Sequence[Trial]) -> tuple[Step, ...]:
    """Return the search's path: after each trial of it, the best so far of what may be recommended."""
    aim, steps, best, spent_s = study.objective.aim, [], None, 0.0
    for point, trial in zip(points, trials, strict=True):
        if trial.phase != "search" or point.role is Role.OPEN:
            continue
        spent_s += trial.wall_s or 0.0
        if point.value is not None and point.role in (Role.CHOSEN, Role.DEFAULT, Role.RIGHT):
            better = min if aim.less_is_better else max
            best = point.value if best is None else better(best, point.value)
        steps.append(Step(trial.number, spent_s, point.value, best))
    return tuple(steps)


def tie_zone() -> tuple[float, float]:
    """Return the ratios between which two are as good as each other."""
    return 1 / (1 + TIE_ZONE), 1 + TIE_ZONE
