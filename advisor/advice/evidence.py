"""Evidence: what a study measured, as candidates in the one order: what may be recommended, and what may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.advice.ranking import Candidate, candidate, ranked
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison
from advisor.nouns.metrics import Metric, is_energy
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Limits, Objective, Tier
from advisor.nouns.trial import Trial, default_of
from advisor.quality.amortised import Amortised
from advisor.quality.judge import right_default, tier_reached, wrong_beside
from advisor.quality.limits import limits_of
from advisor.quality.objections import objections
from advisor.search.prospects import searched
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.workloads import kind_of


@dataclass(frozen=True)
class Evidence:
    """What was measured, as candidates in the one order: right, what may be recommended; rejected: what may not be.

    outside: by the number of a search trial, what stands against it. may_be: whether a trial may be recommended. same_weights:
    whether it is of the weights that are asked about. aim: what is made the best of; broken: what failed in a block, so that
    no more blocks would confirm it.
    """

    right: tuple[Candidate, ...]
    rejected: tuple[Candidate, ...]
    default: Candidate | None
    outside: Mapping[int, Sequence[str]]
    may_be: Callable[[Trial], bool]
    aim: Metric
    same_weights: bool = True
    broken: frozenset[Configuration] = frozenset()

    @classmethod
    def of(
        cls,
        store: Store,
        source: ModelSource,
        study: StudyRecord,
        objective: Objective,
        trials: Sequence[Trial],
        job: Amortised | None = None,
    ) -> Evidence:
        """Weigh a study's trials for a model under an objective. Its facts must be known; job: whose rates the trials have."""
        facts, same_weights = study.facts, study.weights_digest == source.weights_digest
        assert facts is not None
        comparisons = _comparisons_for(store, study, objective, trials, job)
        default, aim, limits = default_of(trials), objective.aim, limits_of(study.workload)
        metrics = tuple(kind_of(study.workload).metrics)

        right, found = right_default(default, facts), searched(trials)
        wrong = {trial.number: wrong_beside(trial, right, facts) for trial in found}

        def wrong_of(trial: Trial) -> tuple[str, ...]:
            return wrong[trial.number]

        more = (default, objective, facts)
        outside = {
            trial.number: objections(trial, *more, same_weights=same_weights, limits=limits, wrong_of=wrong_of)
            for trial in found
        }
        candidates = [
            candidate(_with_energy(trial, trials), default, comparisons, objective, facts, outside[trial.number])
            for trial in _once_each(found, outside, default, aim)
        ]

        def told(each: Candidate) -> Candidate:
            failures = wrong_of(each.trial) if each.trial.quality is not None else ()
            reached = _reached(each, failures, facts, limits) if same_weights else None
            return replace(each, same_weights=same_weights, tier_reached=reached, wrong=failures, metrics=metrics)

        order = [told(each) for each in ranked(candidates, aim)]
        return cls(
            right=tuple(c for c in order if not c.objections),
            rejected=tuple(c for c in order if c.objections),
            default=next((c for c in order if c.is_default), None),
            outside=outside,
            may_be=lambda trial: trial.number in outside and not outside[trial.number],
            aim=aim,
            same_weights=same_weights,
            broken=frozenset(t.requested for t in trials if t.phase == "confirm" and t.outcome.is_failure),
        )


def _comparisons_for(
    store: Store, study: StudyRecord, objective: Objective, trials: Sequence[Trial], job: Amortised | None
) -> Sequence[Comparison]:
    """Return what comparisons count for an objective: those of what the study aimed at.

    A ratio of speeds says nothing of memory. What is stored is of speeds, whatever job the study was for: what a job gets
    follows.
    """
    if study.objective.metric != objective.metric:
        return []
    found = store.comparisons(study.id)
    if job is None:
        return found
    return [each for comparison in found if (each := job.compared(comparison, trials)) is not None]


def _reached(
    found: Candidate, failures: Sequence[str], facts: ModelFacts, limits: Mapping[Tier, Limits]
) -> Tier | None:
    quality = found.trial.quality
    return None if quality is None or failures else tier_reached(quality, found.configuration, facts, limits)


def _once_each(
    found: Sequence[Trial], outside: Mapping[int, Sequence[str]], default: Trial | None, aim: Metric
) -> Iterable[Trial]:
    """Return a trial of each configuration that ran, under whatever names it was asked for.

    What may be recommended before what may not, then the best, then what was run for it and not taken from another; the default
    is the very trial that everything is compared with.
    """
    timed = (trial for trial in found if trial.measurements)
    by_ran = {
        t.ran: t for t in sorted(timed, key=lambda t: (not outside[t.number], t.score(aim), t.reused_from is None))
    }
    by_ran |= {default.ran: default} if default is not None else {}
    return by_ran.values()


def _with_energy(trial: Trial, trials: Sequence[Trial]) -> Trial:
    """Return a search trial with the energy that the newest block saw of it, where the search did not look."""
    if any(is_energy(measurement.metric) for measurement in trial.measurements):
        return trial
    blocks = (t for t in reversed(trials) if t.phase == "confirm" and t.ran == trial.ran)
    energy = next((m for t in blocks for m in t.measurements if is_energy(m.metric)), None)
    return trial if energy is None else replace(trial, measurements=(*trial.measurements, energy))
