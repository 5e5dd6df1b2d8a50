"""The answer, from stored trials alone: stored trials -> admissible here -> right -> ranked -> Recommendation. No torch, no GPU.

The candidate with the highest confirmed ratio over the default, or the default itself where nothing is clear of a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from advisor.advice.command import command_for, going_on, trying_more
from advisor.advice.conclude import conclude, fastest_found, refuse_nothing_admissible
from advisor.advice.coverage import Coverage
from advisor.advice.evidence import Evidence
from advisor.advice.lookup import study_for
from advisor.advice.notes import begin_notes, busy_notes, notes_of, way_out, why_stopped
from advisor.advice.ranking import Candidate, pareto
from advisor.advice.recommendation import Recommendation, came_to_nothing
from advisor.errors import DamagedRow, NothingAdmissible, NotMeasured
from advisor.knobs import Reason, Situation, unknown
from advisor.nouns.answer import Conclusion
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.amortised import Amortised, over_calls
from advisor.search.prospects import Prospects, prospects_left
from advisor.search.space import Space, refusals_of, refuse_nothing_left
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.workloads import Head, Workload, kind_of


def suggest(
    store: Store,
    source: ModelSource,
    workload: Workload,
    objective: Objective,
    here: Environment,
    on: str | None = None,
) -> Recommendation:
    """Return the recommendation for a model, a workload and an objective on an environment.

    on: a key's beginning or a part of the device's name; without it `here`, and where `here` is a CPU that nothing was
    measured on, whatever environment has rows. What was measured on this device before its versions changed answers where
    nothing newer does, and is marked stale. Raises NotMeasured with the nearest that was measured, NothingAdmissible with every
    reason.
    """
    now = here if on is None else None
    with store.at_one_moment():
        study, notes = study_for(store, source, workload, objective, here, on)
        try:
            return recommend(store, source, study, objective, notes, now=now)
        except NothingAdmissible as error:
            changed = () if now is None else study.environment.changes_to(now)
            if not changed:
                raise
            again = command_for(source, workload, objective, here)
            nothing = f"not measured here: nothing could be recommended before {', '.join(changed)}"
            raise NotMeasured(f"{nothing}. To measure it again: {again}") from error


def recommend(
    store: Store,
    source: ModelSource,
    study: StudyRecord,
    objective: Objective,
    notes: Sequence[str] = (),
    *,
    space: Space | None = None,
    now: Environment | None = None,
) -> Recommendation:
    """Return what a study's rows recommend under an objective. space: the study's, where the caller has built it already.

    now: the environment that its device is in by now, so that it is marked stale where that has other versions.
    Raises NotMeasured where no trial has ended yet, NothingAdmissible where rules or --only leave nothing at all.
    """
    trials, refusals = store.weighed(study.id), tuple(store.refusals(study.id))
    facts = _facts_of(study, source, objective, trials)
    job = Amortised.of(objective, study.workload, facts, trials)
    trials = list(over_calls(trials, job))
    evidence = Evidence.of(store, source, study, objective, trials, job)
    coverage = Coverage(study, source, objective, trials, refusals, space)
    refuse_nothing_left(objective, coverage.admissible, coverage.refusals)
    default = evidence.default.trial if evidence.default else None

    @cache
    def look() -> Prospects:
        may_be, is_own = evidence.may_be, coverage.is_own
        return prospects_left(study, trials, objective, may_be, default, lambda: coverage.space, is_own=is_own)

    if not evidence.right and not look().left:
        refuse_nothing_admissible(evidence, trials, coverage)
    chosen, verdict = conclude(evidence, look, is_own=coverage.is_own, is_untouched=coverage.is_untouched)
    command, trying = _commands(source, study, objective, verdict, is_own=coverage.is_own and evidence.same_weights)
    stale = () if now is None else study.environment.changes_to(now)
    if stale:
        command = trying = command_for(source, study.workload, objective, now)
    return Recommendation(
        source=source,
        study=study,
        objective=objective,
        is_own=coverage.is_own,
        facts=facts,
        chosen=chosen,
        default=evidence.default,
        verdict=verdict,
        runners_up=tuple(c for c in evidence.right if chosen is None or c.configuration != chosen.configuration),
        refusals=coverage.refusals,
        failures=tuple(_of_these(t, same_weights=evidence.same_weights) for t in trials if came_to_nothing(t)),
        notes=(
            *notes,
            *notes_of(study, source, objective, chosen, evidence.default),
            *begin_notes(study, objective, trials, evidence, chosen, job),
            *_seen_of(store, study, chosen),
        ),
        pareto=tuple(pareto(evidence.right, objective.aim, default, kind_of(study.workload).speed)),
        ceilings=store.ceilings(study.environment_key),
        tried=coverage.tried,
        admissible=coverage.admissible,
        best=fastest_found(evidence, chosen, verdict),
        rejected=evidence.rejected,
        look=look,
        why=why_stopped(study, coverage),
        command=command,
        trying=trying,
        way_out=way_out(evidence.default, facts) if chosen is None else "",
        looked_s=sum(t.quality.gate_s for t in trials if t.quality is not None and t.reused_from is None),
        spent_s=sum(t.wall_s or 0.0 for t in trials),
        stale=stale,
        refused_here=_refused(study, facts, objective, chosen, now) if stale else (),
    )


def _refused(
    study: StudyRecord, facts: ModelFacts, objective: Objective, chosen: Candidate | None, now: Environment | None
) -> tuple[Reason, ...]:
    """Return why what is recommended can't be run by now: a package is gone, or a version too old for it."""
    if chosen is None or now is None or unknown(chosen.configuration):
        return ()
    configuration = chosen.configuration
    situation = Situation(configuration, study.workload.under(configuration), now, facts)
    return tuple(refusals_of(situation, objective))


def _seen_of(store: Store, study: StudyRecord, chosen: Candidate | None) -> list[str]:
    """Return what the device showed while what is recommended was measured, as far as it makes its figures doubtful.

    Read of this one trial alone: of all of them it is megabytes. What is damaged of it takes no answer away.
    """
    if chosen is None:
        return []
    try:
        return busy_notes(store.device_states(study.id, chosen.trial.number))
    except DamagedRow as error:
        return [f"whether the machine was left alone is not known: {error}"]


def _facts_of(study: StudyRecord, source: ModelSource, objective: Objective, trials: Sequence[Trial]) -> ModelFacts:
    """Return a study's facts for the model that is asked about. Raises NotMeasured where no trial has ended yet."""
    if study.facts is None or all(trial.outcome is Outcome.RUNNING for trial in trials):
        again = command_for(source, study.workload, objective, study.environment)
        raise NotMeasured(f"the study has no finished trial yet. To go on: {again}")
    return study.facts.for_source(source, classifies=study.workload.needs.head is Head.CLASSIFICATION)


def _commands(
    source: ModelSource, study: StudyRecord, objective: Objective, verdict: Conclusion, *, is_own: bool
) -> tuple[str, str]:
    """Return the command that goes on from a verdict, and the one that tries what was never tried.

    is_own: whether the question leaves just what the study searched, of the weights that it measured.
    """
    is_own = is_own and study.objective.payload == objective.payload
    trying = trying_more(source, study, objective, is_own=is_own)
    confirms = verdict in (Conclusion.UNCONFIRMED, Conclusion.TIE)
    return going_on(source, study, objective, is_own=is_own) if confirms else trying, trying


def _of_these(trial: Trial, *, same_weights: bool) -> Trial:
    """Return a failed trial; that its output was wrong with other weights than are asked about is said of those."""
    if same_weights or trial.outcome is not Outcome.WRONG_OUTPUT:
        return trial
    return replace(trial, reason=f"with other weights: {trial.reason}")
