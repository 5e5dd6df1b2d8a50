"""The answer, from stored trials alone: which configuration, how sure, and why not the others. No torch, no GPU.

The candidate with the highest confirmed ratio over the default, or the default itself where nothing is clear of a tie. What
a study comes to under its own objective is stored beside it (:func:`keep_answer`), so that SQL needs no second decision;
any other question is answered from the trials.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from advisor.answer import NONE_RIGHT, Answer, Conclusion, Stop
from advisor.configuration import Configuration
from advisor.cost import useful_operations
from advisor.declared import notes_on
from advisor.environment import Environment
from advisor.errors import DamagedRow, NothingAdmissible, NotMeasured
from advisor.judge import depends, is_judged, limits_of, objections
from advisor.knobs import Reason
from advisor.measurement import LEAST_BLOCKS, TIE_ZONE
from advisor.method import METHOD
from advisor.metrics import is_energy
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Objective
from advisor.prospects import Prospects, needed_bytes, prospects_of, searched, space_of, stored_prospects
from advisor.ranking import Candidate, candidate, is_tied, pareto, ranked
from advisor.rows import now
from advisor.space import Space
from advisor.store import Store, StudyRecord
from advisor.terminal import gib
from advisor.trial import Outcome, Trial, default_of
from advisor.workloads import Head, Workload, kind_of

#: A tune without --budget takes so long (options.DEFAULT_BUDGET): what goes on with one that did says how much longer.
LONG_BUDGET_S = 600.0


@dataclass(frozen=True)
class Recommendation:
    """What to run and why.

    chosen: what is recommended, None where nothing may be; default: what everything is compared with, None where it was not
    measured, with its objections where it may not be recommended itself. verdict: see Conclusion. best: where that is
    unconfirmed or unsearched, the fastest found, to be taken as that. rejected: what was measured and may not be recommended.
    notes: what a reader must know to weigh it, in words; failures: trials that came to nothing.
    pareto: candidates that no other beats in speed, memory and quality at once, fastest first. ceilings: what the device
    was seen to reach (`matmul_<precision>_per_s`, `copy_bytes_per_s`), None where that was not measured. tried: how many
    configurations were, failures included; admissible: of how many, None where that is not known; look: what finds out about
    those that were not, once it is asked: see prospects.
    why: why the search stopped, in words; command: what goes on with it; way_out: how work is done right that no configuration
    does right, "" where there is no telling.
    looked_s: seconds that the independence probe and the layout in fp32 took, of spent_s that all trials did.
    """

    source: ModelSource
    study: StudyRecord
    objective: Objective
    facts: ModelFacts
    chosen: Candidate | None
    default: Candidate | None
    verdict: Conclusion
    runners_up: tuple[Candidate, ...]
    refusals: tuple[Reason, ...]
    failures: tuple[Trial, ...]
    notes: tuple[str, ...]
    pareto: tuple[Candidate, ...] = ()
    ceilings: Mapping[str, float] | None = None
    tried: int = 0
    admissible: int | None = None
    best: Candidate | None = None
    rejected: tuple[Candidate, ...] = ()
    look: Callable[[], Prospects] = Prospects
    why: str = ""
    command: str = ""
    way_out: str = ""
    looked_s: float = 0.0
    spent_s: float = 0.0

    def __str__(self) -> str:
        """Return it in a line."""
        if self.chosen is None:
            return f"{self.source.name}: nothing is recommended ({self.verdict})"
        ratio = f", {self.chosen.comparison.ratio:.2f} × the default" if self.chosen.comparison else ""
        return f"{self.source.name}: {self.configuration} ({self.verdict}{ratio})"

    @property
    def prospects(self) -> Prospects:
        """What was never tried: how many, how likely one of them is better, and which promise most."""
        return self.look()

    @property
    def configuration(self) -> Configuration | None:
        """What is recommended, None where nothing may be."""
        return self.chosen.configuration if self.chosen is not None else None

    @property
    def tier(self) -> str | None:
        """Its quality tier."""
        return str(self.chosen.tier) if self.chosen is not None else None

    @property
    def share_tried(self) -> float | None:
        """The share of what could be tried that was, at most 1; None where that is not known."""
        return min(self.tried / self.admissible, 1.0) if self.admissible else None

    @property
    def exit_status(self) -> int:
        """The status of a command that says this. What the tune was told to leave out is no fault: that is status 0."""
        budget, end = self.study.budget, self.study.end
        asked_for_few = budget.trials is not None and not (end is not None and end.stop.is_cut)
        few_blocks = self.verdict is Conclusion.UNCONFIRMED and budget.blocks < LEAST_BLOCKS
        wants = self.verdict in (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED) and self.chosen is not None
        return 0 if wants and (few_blocks or asked_for_few) else self.verdict.exit_status

    @property
    def ceiling_share(self) -> float | None:
        """Useful operations per second over what matrix products in this precision reach here; None where unknown."""
        if self.chosen is None:
            return None
        ceiling = (self.ceilings or {}).get(f"matmul_{self.chosen.configuration['precision']}_per_s")
        workload = self.study.workload
        kind = kind_of(workload)
        speed = self.chosen.trial.value(kind.speed.metric)
        if not ceiling or not speed:
            return None
        return useful_operations(self.facts, workload) / kind.useful(workload) * speed / ceiling

    @property
    def ceiling_words(self) -> str:
        """The same for people, "" where it is not known."""
        share = self.ceiling_share
        if share is None or self.ceilings is None or self.chosen is None:
            return ""
        precision = self.chosen.configuration["precision"]
        reached = self.ceilings[f"matmul_{precision}_per_s"]
        unit, scale = ("TFLOP/s", 1e12) if reached >= 1e12 else ("GFLOP/s", 1e9)
        text = f"{share:.0%} of the {reached / scale:,.0f} {unit} that matrix products in {precision} reach here"
        return f"{text}, counting useful operations"

    @property
    def payload(self) -> dict[str, Any]:
        """The recommendation as JSON values."""
        finished = self.study.finished_at or self.study.started_at
        return {
            "model": self.source.name,
            "workload": self.study.workload.payload,
            "objective": self.objective.payload,
            "environment": {"key": self.study.environment_key, **self.study.environment.payload},
            "study": self.study.id,
            "measured_at": finished.isoformat(),
            "verdict": str(self.verdict),
            "tier": self.tier,
            "recommendation": self.chosen.payload if self.chosen else None,
            "default": self.default.payload if self.default else None,
            "fastest_found": self.best.payload if self.best else None,
            "runners_up": [candidate.payload for candidate in self.runners_up],
            "rejected": [candidate.payload for candidate in self.rejected],
            "pareto": [candidate.payload for candidate in self.pareto],
            "ceilings": dict(self.ceilings) if self.ceilings else None,
            "ceiling_share": self.ceiling_share,
            "tried": self.tried,
            "admissible": self.admissible,
            "share_tried": self.share_tried,
            "gate_s": self.looked_s,
            "why": self.why,
            "chance_of_better": self.prospects.chance,
            "untried": [
                {
                    **prospect.payload,
                    "configuration": prospect.configuration.spelled,
                    "needed_bytes": needed_bytes(self.study, prospect.configuration),
                }
                for prospect in self.prospects.promising
            ],
            "command": self.command,
            "way_out": self.way_out,
            "refusals": [
                {
                    "subject": r.subject,
                    "about": r.about,
                    "rule": r.rule,
                    "verdict": str(r.verdict),
                    "reason": r.text,
                    "remedy": r.remedy,
                }
                for r in self.refusals
            ],
            "failures": [
                {"trial": t.number, "configuration": t.requested.spelled, "outcome": str(t.outcome), "reason": t.reason}
                for t in self.failures
            ],
            "notes": list(self.notes),
        }


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
    measured on, whatever environment has rows. Raises NotMeasured with the nearest that was measured, NothingAdmissible
    with every reason.
    """
    studies = store.studies_for(source.architecture_key, workload.key_for(source.architecture_key))
    studies, notes = _in_environment(studies, here, on)
    if not studies and store.damaged:
        raise DamagedRow(store.damaged[0])
    if not studies:
        raise NotMeasured(_nearest(store, source, workload, objective, here, on))
    study, more = _best_study(studies, source, objective)
    return recommend(store, source, study, objective, (*notes, *more))


def recommend(
    store: Store,
    source: ModelSource,
    study: StudyRecord,
    objective: Objective,
    notes: Sequence[str] = (),
    *,
    space: Space | None = None,
) -> Recommendation:
    """Return what a study's rows recommend under an objective. space: the study's, where the caller has built it already.

    Raises NotMeasured where no trial has ended yet, NothingAdmissible where rules leave nothing at all.
    """
    trials = store.trials(study.id)
    facts = study.facts.for_source(source, classifies=_classifies(study)) if study.facts else None
    if facts is None or all(trial.outcome is Outcome.RUNNING for trial in trials):
        raise NotMeasured("the study has no finished trial yet; run the same tune again")
    evidence = _Evidence.of(store, source, study, objective, trials)
    default = evidence.default.trial if evidence.default else None

    @cache
    def look() -> Prospects:
        stored, built = stored_prospects(study, trials, objective), space
        if stored is None and built is None:
            built = space_of(study, objective)
        if stored is not None or built is None:
            return stored or Prospects()
        return prospects_of(built, trials, objective, evidence.may_be, default)

    refusals = tuple(store.refusals(study.id))
    if not evidence.right and not look().left and not _was_anything_admissible(study, objective, evidence, space):
        raise NothingAdmissible(_every_reason(refusals, trials, evidence.outside))
    chosen, verdict = _conclude(evidence, look)
    tried = _tried(study, trials)
    found = Recommendation(
        source,
        study,
        objective,
        facts,
        chosen,
        evidence.default,
        verdict,
        tuple(c for c in evidence.right if chosen is None or c.configuration != chosen.configuration),
        refusals,
        failures=tuple(t for t in trials if t.outcome.is_failure),
        notes=(*notes, *_notes(study, source, objective, chosen, evidence.default)),
        pareto=tuple(pareto(evidence.right, objective.aim, default, kind_of(study.workload).speed)),
        ceilings=store.ceilings(study.environment_key),
        tried=tried,
        admissible=study.admissible,
        looked_s=sum(t.quality.gate_s for t in trials if t.quality is not None and t.reused_from is None),
        spent_s=sum(t.wall_s or 0.0 for t in trials),
        best=_fastest_found(evidence, chosen, verdict),
        rejected=evidence.rejected,
        look=look,
        why=_why_stopped(study, tried),
        command=_going_on(source, study, objective),
    )
    return replace(found, way_out=_way_out(found))


@dataclass(frozen=True)
class _Evidence:
    """What was measured, as candidates in the one order: right, what may be recommended; rejected: what may not be.

    outside: by the number of a search trial, what stands against it. may_be: whether a trial may be recommended.
    """

    right: tuple[Candidate, ...]
    rejected: tuple[Candidate, ...]
    default: Candidate | None
    outside: Mapping[int, Sequence[str]]
    may_be: Callable[[Trial], bool]

    @classmethod
    def of(
        cls, store: Store, source: ModelSource, study: StudyRecord, objective: Objective, trials: Sequence[Trial]
    ) -> _Evidence:
        facts, same_weights = study.facts, study.weights_digest == source.weights_digest
        assert facts is not None
        # Comparisons count for what the study aimed at: a ratio of speeds says nothing of memory.
        comparisons = store.comparisons(study.id) if study.objective.metric == objective.metric else []
        default, aim, limits = default_of(trials), objective.aim, limits_of(study.workload)

        def against(trial: Trial) -> list[str]:
            return objections(trial, default, objective, facts, same_weights=same_weights, limits=limits)

        found = searched(trials)
        outside = {trial.number: against(trial) for trial in found}
        # What ran under several names counts once: what may be recommended before what may not, then the best; the default
        # is the very trial that everything is compared with.
        by_ran = {
            t.ran: t for t in sorted(found, key=lambda t: (not outside[t.number], t.score(aim))) if t.measurements
        }
        by_ran |= {default.ran: default} if default is not None else {}
        by_ran = {ran: _with_energy(trial, trials) for ran, trial in by_ran.items()}
        order = ranked(
            [
                candidate(t, default, comparisons, objective, facts, outside[t.number], kind_of(study.workload).metrics)
                for t in by_ran.values()
            ],
            aim,
        )
        return cls(
            right=tuple(c for c in order if not c.objections),
            rejected=tuple(c for c in order if c.objections),
            default=next((c for c in order if c.is_default), None),
            outside=outside,
            may_be=lambda trial: trial.phase == "search" and not against(trial),
        )


def _classifies(study: StudyRecord) -> bool:
    return study.workload.needs.head is Head.CLASSIFICATION


def _with_energy(trial: Trial, trials: Sequence[Trial]) -> Trial:
    """Return a search trial with the energy that the newest block saw of it, where the search did not look."""
    if any(is_energy(measurement.metric) for measurement in trial.measurements):
        return trial
    blocks = (t for t in reversed(trials) if t.phase == "confirm" and t.ran == trial.ran)
    energy = next((m for t in blocks for m in t.measurements if is_energy(m.metric)), None)
    return trial if energy is None else replace(trial, measurements=(*trial.measurements, energy))


def _was_anything_admissible(
    study: StudyRecord, objective: Objective, evidence: _Evidence, space: Space | None
) -> bool:
    """Whether rules left anything at all under an objective; a default that is wrong is no matter of rules."""
    if evidence.default is not None and evidence.default.wrong:
        return True
    if space is None and study.objective.payload == objective.payload and study.admissible is not None:
        return study.admissible > 0
    space = space or space_of(study, objective)
    return space is None or bool(space.admissible)


def _conclude(evidence: _Evidence, look: Callable[[], Prospects]) -> tuple[Candidate | None, Conclusion]:
    """Return what is recommended, and how sure that is. Nothing is made of what was never compared, or hardly searched for.

    look: what finds out about what was never tried, asked only where that decides something, for it can take a second.
    """
    right, default = evidence.right, evidence.default
    if not right:
        return None, Conclusion.UNSEARCHED if look().left else Conclusion.NONE_RIGHT
    if right[0].verdict == "faster":
        return right[0], Conclusion.FASTER
    if default is None or default.objections:
        return right[0], _without_default(right[0], default, look)
    if _looks_faster(right):
        return default, Conclusion.UNCONFIRMED
    if look().is_open:
        return default, Conclusion.UNSEARCHED
    return default, Conclusion.TIE if any(c.verdict == "tie" for c in right) else Conclusion.DEFAULT


def _without_default(best: Candidate, default: Candidate | None, look: Callable[[], Prospects]) -> Conclusion:
    """Return how sure it is that this is the best where the default may not be recommended, or could not be measured."""
    if best.is_confirmed:
        return Conclusion.SLOWER_BUT_RIGHT
    if default is not None:
        return Conclusion.UNCONFIRMED
    return Conclusion.UNSEARCHED if look().is_open else Conclusion.SLOWER_BUT_RIGHT  # there is nothing to compare with


def _looks_faster(right: Sequence[Candidate]) -> bool:
    """Whether the search saw something faster than the default that was not compared with it.

    What looked slower than something that was compared, and found no faster, does not count: then the search saw too much.
    """
    compared = max((c.search_ratio or 0.0 for c in right if c.verdict is not None), default=0.0)
    return any((c.search_ratio or 0.0) > max(1 + TIE_ZONE, compared) for c in right if not c.is_confirmed)


def _fastest_found(evidence: _Evidence, chosen: Candidate | None, verdict: Conclusion) -> Candidate | None:
    """Return the best by the search of what may be recommended, where nothing is sure and that looks better than what is."""
    best = max(evidence.right, key=lambda c: c.search_ratio or 0.0, default=None)
    if best is None or chosen is None or verdict not in (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED):
        return None
    return best if (best.search_ratio or 0.0) > (chosen.search_ratio or 0.0) else None


def _why_stopped(study: StudyRecord, tried: int) -> str:
    """Return why the search stopped, as it was stored or as far as the rows tell."""
    if study.end is not None:
        return study.end.stop.words
    if study.state != "done":
        return Stop.INTERRUPTED.words if study.state == "interrupted" else "it is running"
    return Stop.EVERYTHING.words if study.admissible is not None and tried >= study.admissible else ""


def _way_out(found: Recommendation) -> str:
    """Return how the work is done right where no configuration does it right: what reads its pads needs none."""
    if found.chosen is not None:
        return ""
    quality = found.default.trial.quality if found.default is not None else None
    if found.default is None or quality is None:
        return ""
    reads = depends(quality, found.default.configuration, found.facts)
    return "--batch 1, or batches of equal lengths" if reads else ""


def _going_on(source: ModelSource, study: StudyRecord, objective: Objective) -> str:
    """Return the command that goes on with a study, or begins one with another objective: longer than the last one was."""
    command = _command(source, study.workload, objective, study.environment)
    last_s = study.budget.seconds or 0.0
    return f"{command} --budget {math.ceil(2 * last_s / 60)}m" if last_s >= LONG_BUDGET_S else command


def answer_of(store: Store, study: StudyRecord, *, space: Space | None = None) -> Answer:
    """Return what a study comes to under its own objective and for its own weights, "none-right" where nothing is left.

    Raises NotMeasured where it has no finished trial yet, or its model's facts are not known.
    """
    made_at = now()  # before anything is read: what is written meanwhile makes the answer stale
    digest = study.weights_digest
    weights = "random" if digest.startswith("random:") else "trained"
    own = ModelSource(study.model_name, "", {}, weights, digest, has_tokenizer=False)
    try:
        found = recommend(store, own, study, study.objective, space=space)
    except NothingAdmissible as error:
        tried = _tried(study, store.trials(study.id))
        return Answer(None, NONE_RIGHT, None, None, None, 0, tried, study.admissible, error.reasons, METHOD, made_at)
    chosen, ratio, low, high, blocks = found.chosen, None, None, None, 0
    if chosen is not None and chosen.is_default:
        ratio = low = high = 1.0
    elif chosen is not None and chosen.comparison is not None:
        ratio, (low, high) = chosen.comparison.ratio, chosen.comparison.interval
        blocks = len(chosen.comparison.block_ratios)
    evidence = (ratio, low, high, blocks, found.tried, found.admissible)
    against = [f"{c.configuration}: {text}" for c in found.rejected for text in c.objections] if chosen is None else []
    why = tuple(text for text in (found.why, *against, *found.notes) if text)
    return Answer(found.configuration, found.verdict, *evidence, why, METHOD, made_at)


def keep_answer(store: Store, study_id: int, *, space: Space | None = None) -> None:
    """Store what a study comes to by now; a study that has no answer yet keeps none. space: as for :func:`recommend`."""
    with suppress(NotMeasured):
        store.save_answer(study_id, answer_of(store, store.study(study_id), space=space))


def _keep_if_readable(store: Store, study_id: int) -> None:
    """Do the same, and note a damaged row: the other studies' answers do not wait for it."""
    try:
        keep_answer(store, study_id)
    except DamagedRow as error:
        if str(error) not in store.damaged:
            store.damaged.append(str(error))


def keep_answers(store: Store, study_ids: Iterable[int] | None = None) -> int:
    """Store the answers of these studies, or of all whose stored one is missing or of another method; return of how many.

    Each is a transaction of its own: broken off, it goes on where it was when it is called again.
    """
    ids = list(store.unanswered(METHOD) if study_ids is None else study_ids)
    for study_id in ids:
        _keep_if_readable(store, study_id)
    return len(ids)


def _tried(study: StudyRecord, trials: Sequence[Trial]) -> int:
    """Return how many of what --only leaves was tried: the default is measured beside it."""
    tried = {t.requested for t in searched(trials)}
    return sum(study.objective.leaves(configuration) for configuration in tried)


def _notes(
    study: StudyRecord, source: ModelSource, objective: Objective, chosen: Candidate | None, default: Candidate | None
) -> list[str]:
    notes = []
    if study.state != "done":
        notes.append(f"the study is {study.state}: run the same tune again to go on with it")
    if default is None:
        notes.append("the default could not be measured, so there is no ratio")
    if study.weights_digest != source.weights_digest:
        notes.append("speeds were measured with other weights of the same shapes")
    if source.has_random_weights and "quantization_config" in source.config:
        notes.append("random weights: quality of lossy choices is not judged")
    elif source.has_random_weights:
        notes.append("random weights: speed is true, quality of lossy choices is not judged")
    notes += notes_on(source)
    notes += _quality_notes(chosen, default)
    if study.objective.ignored_rules:
        notes.append(f"rules ignored: {', '.join(study.objective.ignored_rules)}")
    if unmet := sorted(set(objective.ignored_rules) - set(study.objective.ignored_rules)):
        notes.append(
            f"nothing was measured with {', '.join(unmet)} ignored: tune --ignore-rule {' '.join(unmet)} would"
        )
    return notes + _aim_notes(study, objective)


def _quality_notes(chosen: Candidate | None, default: Candidate | None) -> list[str]:
    """Say what of a choice's quality is not known, or can't be compared: a study is found by its lengths, not by its texts."""
    quality = None if chosen is None else chosen.trial.quality
    if chosen is None or quality is None:
        return []
    notes = [] if is_judged(quality, chosen.tier) else ["the quality of this choice was not judged"]
    if quality.lacks_layout:
        notes.append(f"its layout was {quality.layout_words}")
    if default is not None and default.trial.quality is not None:
        mine, other = (each.reference.partition(" positions, ")[2] for each in (quality, default.trial.quality))
        if mine and other and mine != other:
            notes.append(f"its quality is of {mine}, the default's of {other}: they are not comparable")
    return notes


def _aim_notes(study: StudyRecord, objective: Objective) -> list[str]:
    """Say what the study was after where that is not what is asked."""
    notes = []
    if study.objective.metric != objective.metric:
        notes.append(
            f"the study aimed at {study.objective.aim.name}: nothing is confirmed for {objective.aim.name}; "
            f"tune --objective {objective.aim.name} would"
        )
    if study.objective.max_latency_s is not None and study.objective.max_latency_s != objective.max_latency_s:
        notes.append(f"the study was made for at most {study.objective.max_latency_s * 1000:g} ms a batch")
    if study.objective.only:
        kept = "; ".join(f"{knob} {', '.join(names)}" for knob, names in study.objective.only)
        notes.append(f"only this was searched: {kept}")
    return notes


def _every_reason(
    refusals: Sequence[Reason], trials: Sequence[Trial], outside: Mapping[int, Sequence[str]]
) -> list[str]:
    texts = []
    for trial in trials:
        if trial.phase == "search" and trial.outcome is not Outcome.RUNNING:
            why = (
                ", ".join(outside[trial.number])
                if trial.outcome is Outcome.OK
                else f"{trial.outcome} ({trial.reason[:160]})"
            )
            texts.append(f"{trial.requested}: {why}")
    return texts + [str(reason) for reason in refusals]


def _in_environment(
    studies: list[StudyRecord], here: Environment, on: str | None
) -> tuple[list[StudyRecord], list[str]]:
    if on is not None:
        wanted = [s for s in studies if _is_on(s, on)]
        newest = [s for s in wanted if s.environment_key == wanted[0].environment_key]
        return newest, []
    own = [s for s in studies if s.environment_key == here.key]
    if own or here.is_cuda or not studies:
        return own, []
    newest = [s for s in studies if s.environment_key == studies[0].environment_key]
    others = sorted({str(s.environment) for s in studies})
    differs = ", ".join(_elsewhere(newest[0].environment, here))
    return newest, [
        f"measured on {newest[0].environment}, which differs from here in {differs}; rows of: {', '.join(others)}"
    ]


def _is_on(study: StudyRecord, on: str) -> bool:
    return _is_meant(study.environment_key, study.environment, on)


def _is_meant(key: str, environment: Environment, on: str) -> bool:
    return key.startswith(on) or on.lower() in str(environment).lower()


def _best_study(
    studies: Sequence[StudyRecord], source: ModelSource, objective: Objective
) -> tuple[StudyRecord, list[str]]:
    """Prefer the same weights, then the same objective, then one that searched at least as wide; finished and newest first."""
    own = [s for s in studies if s.weights_digest == source.weights_digest] or list(studies)
    own.sort(key=lambda s: s.state != "done")
    same = [s for s in own if s.objective.payload == objective.payload]
    if same:
        return same[0], []
    asked = [s for s in own if s.objective.metric == objective.metric] or own
    plain = [s for s in asked if not s.objective.ignored_rules and not s.objective.only] or asked
    wide = [
        s
        for s in plain
        if s.objective.quality.rank >= objective.quality.rank
        and _was_as_wide(s.objective.max_memory_bytes, objective.max_memory_bytes)
    ]
    # A study that was done within a limit answers before one without it that has only begun.
    wide.sort(key=lambda s: (s.state != "done", not _was_as_wide(s.objective.max_latency_s, objective.max_latency_s)))
    if wide:
        return wide[0], []
    searched = plain[0].objective
    limit = f" within {gib(searched.max_memory_bytes)}" if searched.max_memory_bytes is not None else ""
    return plain[0], [f"only quality {searched.quality}{limit} was searched, which is narrower than what was asked for"]


def _was_as_wide(searched: float | None, asked: float | None) -> bool:
    """Whether a search under one limit (None: under none) saw all that another one leaves."""
    return searched is None or (asked is not None and searched >= asked)


def _nearest(
    store: Store, source: ModelSource, workload: Workload, objective: Objective, here: Environment, on: str | None
) -> str:
    """Say that it was not measured, what the nearest measured is and how it differs, and what would measure it."""
    text = f"not measured: {source.name}, {workload}, on {on or here}."
    known = store.environments()
    if on is not None and known and not any(_is_meant(key, environment, on) for key, environment in known):
        stored = "; ".join(f"{key}, {environment}" for key, environment in known)
        return f"not measured: no environment {on!r} is stored, by name or key. There are rows of: {stored}"
    neighbours = store.studies(source.architecture_key)
    if neighbours:
        elsewhere = {s.id: s.environment_key != here.key if on is None else not _is_on(s, on) for s in neighbours}
        nearest = min(neighbours, key=lambda s: (s.workload.distance(workload), elsewhere[s.id]))
        differences = _differences(nearest.workload, workload)
        if elsewhere[nearest.id]:
            differences += _elsewhere(nearest.environment, here) if on is None else [f"device (not {on})"]
        text += f" Nearest measured: {nearest.workload} on {nearest.environment}"
        text += f"; it differs in {', '.join(differences)}."
    else:
        names = ", ".join(str(environment) for _, environment in known)
        text += f" No workload of this architecture was measured{f'; there are rows of: {names}' if names else ''}."
    return f"{text} To measure it: {_command(source, workload, objective, here if on is None else None)}"


def _command(source: ModelSource, workload: Workload, objective: Objective, here: Environment | None) -> str:
    """Return the command line that measures this. here: the machine it is for, where that is this one."""
    flags = [workload.flags]
    if objective.quality != Objective().quality:
        flags.append(f"--quality {objective.quality}")
    if objective.max_memory_bytes is not None:
        flags.append(f"--max-memory {_size(objective.max_memory_bytes)}")
    if objective.aim != kind_of(workload).aim:
        flags.append(f"--objective {objective.aim.name}")
    if objective.max_latency_s is not None:
        flags.append(f"--max-latency {objective.max_latency_s * 1000:g}ms")
    flags += [f"--only {knob}={','.join(names)}" for knob, names in objective.only]
    flags += ["--allow-unjudged"] if objective.allow_unjudged else []
    flags += [f"--ignore-rule {rule}" for rule in objective.ignored_rules]
    flags += ["--allow-pickle"] if source.allow_pickle else []
    flags += ["--device cpu"] if here is not None and not here.is_cuda else []
    if here is not None and here.threads > 1:
        flags.append(f"--threads {here.threads}")
    return f"advisor tune {shlex.quote(source.name)} {' '.join(flags)}"


def _size(count: int) -> str:
    """Return bytes as the command line takes them, in the unit that they were most likely given in."""
    unit = next((unit for unit in ("GiB", "MiB") if count % {"GiB": 2**30, "MiB": 2**20}[unit] == 0), "")
    return f"{count // {'GiB': 2**30, 'MiB': 2**20}.get(unit, 1)}{unit}"


def _differences(other: Workload, workload: Workload) -> list[str]:
    """Return what differs between a workload that was measured and the one asked for; nothing where they are the same."""
    theirs, ours = ({"kind of work": kind_of(each).name, **each.described} for each in (other, workload))
    found = [f"{name} ({theirs.get(name)}, not {value})" for name, value in ours.items() if theirs.get(name) != value]
    return found or (["the lengths of its sequences"] if other.lengths != workload.lengths else [])


def _elsewhere(there: Environment, here: Environment) -> list[str]:
    """Return what differs between two environments: the device, else its settings, else versions."""
    if there.device_name != here.device_name:
        return [f"device ({there.device_name}, not {here.device_name})"]
    theirs, ours = ({**e.payload, **e.packages, "packages": ""} for e in (there, here))
    changed = sorted(
        name.replace("_", " ") for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
    )
    return [f"the environment ({', '.join(changed)})"]


def tie_set(recommendation: Recommendation) -> list[Candidate]:
    """Return the runners-up that are as good as what is recommended, in their order: within the tie zone, either way.

    By their confirmed ratios to the default where both have one (the default's own is 1), else by their ratios in the search.
    Where the default is recommended, also those that the blocks could not tell from it.
    """
    chosen = recommendation.chosen
    if chosen is None:
        return []
    return [
        found
        for found in recommendation.runners_up
        if is_tied(found, chosen) or (chosen.is_default and found.verdict == "tie")
    ]
