"""What a reader must know to weigh an answer, in words: what is not known, why the search stopped, and a way out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from advisor.advice.coverage import Coverage, count_tried, weights_words
from advisor.advice.evidence import Evidence
from advisor.advice.ranking import Candidate, is_tied
from advisor.models.declared import notes_on
from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import ROUND, Metric
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Trial
from advisor.quality.amortised import Amortised, Beginning, beginnings, calls_of, pays_from
from advisor.quality.judge import depends, is_judged
from advisor.storage.study_record import StudyRecord
from advisor.terminal import many, span

#: What takes so much longer to begin than the default (seconds) is said to.
_LONG_BEGIN_S = 2.0


def notes_of(
    study: StudyRecord, source: ModelSource, objective: Objective, chosen: Candidate | None, default: Candidate | None
) -> list[str]:
    """Return what a reader must know of a study to weigh what it recommends. source: the model that is asked about."""
    notes = []
    if study.state == "running":
        notes.append("the study is running, or was left behind: this is what it comes to by now")
    elif study.state != "done":
        notes.append(f"the study is {study.state}: run the same tune again to go on with it")
    if default is None:
        notes.append("the default could not be measured, so there is no ratio")
    if study.weights_digest != source.weights_digest:
        notes.append(
            f"speeds were measured with {weights_words(study)} ({study.model_name}); "
            f"the quality of {source.name}'s own was not measured"
        )
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
    quality = None if chosen is None else chosen.quality
    if chosen is None or quality is None:
        return []
    notes = [] if is_judged(quality, chosen.tier) else ["the quality of this choice was not judged"]
    if quality.lacks_layout:
        notes.append(f"its layout was {quality.layout_words}")
    if default is not None and default.quality is not None:
        mine, other = (each.reference.partition(" positions, ")[2] for each in (quality, default.quality))
        if mine and other and mine != other:
            notes.append(f"its quality is of {mine}, the default's of {other}: they are not comparable")
    return notes


def busy_notes(states: Sequence[object]) -> list[str]:
    """Say that figures are of a machine that was not left alone, where it was not: disturbed rounds are kept where all are.

    states: what was seen of the device after each round.
    """
    why = [str(state["disturbed"]) for state in states if isinstance(state, Mapping) and state.get("disturbed")]
    if not why:
        return []
    most = max(why, key=why.count)
    rounds = f"{len(why)} of the {len(states)} rounds were" if len(states) > 1 else "the one round was"
    return [f"the machine was not left alone: {rounds} disturbed ({most})"]


def begin_notes(
    study: StudyRecord,
    objective: Objective,
    trials: Sequence[Trial],
    evidence: Evidence,
    chosen: Candidate | None,
    job: Amortised | None,
) -> list[str]:
    """Say over how many calls figures are, or from how many on what is recommended makes up for what it takes to begin.

    job: whose rates the trials have, None where they are of work without end.
    """
    if study.facts is None or chosen is None or evidence.default is None:
        return []
    begun = beginnings(trials, study.facts)
    if objective.job_calls is None:
        is_about_time = objective.aim.is_of_time and not chosen.is_default
        return _pays_notes(study, evidence, chosen, begun) if is_about_time else []
    mine = begun.get(chosen.configuration)
    begins = "" if mine is None else f", with the {span(mine.seconds)} that it takes to begin: {mine.words}"
    notes = [f"figures are over {many(objective.job_calls, 'call')}, batches of the default's{begins}"]
    lasts_s, spent_s = job and job.lasts_s(evidence.default.trial), sum(trial.wall_s or 0.0 for trial in trials)
    if lasts_s and spent_s > lasts_s:
        whole = f"the default does all of it in {span(lasts_s)}, beginning included"
        further = ": --payback TIME measures on where such a job comes again" if study.budget.job_pays else ""
        notes.append(f"{whole}, and measuring took {span(spent_s)}{further}")
    return notes


def _pays_notes(
    study: StudyRecord, evidence: Evidence, chosen: Candidate, begun: Mapping[Configuration, Beginning]
) -> list[str]:
    """Say from how many calls on what takes long to begin pays beside whatever right one begins sooner, and beside which."""
    mine, default = begun.get(chosen.configuration), evidence.default
    if mine is None or default is None or not chosen.trial.value(ROUND):
        return []
    sooner = [
        (rival, theirs)
        for rival in evidence.right
        if (theirs := begun.get(rival.configuration)) is not None
        and mine.seconds - theirs.seconds >= _LONG_BEGIN_S
        and rival.trial.value(ROUND)
    ]
    calls, found = calls_of(study.workload, default.trial.requested), []
    for rival, theirs in sooner:
        rounds_s = _rounds_s(chosen, rival, default, evidence.aim)
        pays = None if is_tied(chosen, rival) else pays_from((mine.seconds, theirs.seconds), rounds_s, calls)
        found.append((math.inf if pays is None else pays, -theirs.seconds, rival))
    if not found:
        return []
    pays_at, minus_s, rival = max(found, key=lambda each: each[:2])
    name = "the default" if rival.is_default else str(rival.configuration)
    text = f"it takes {span(mine.seconds)} to begin, {name} {span(-minus_s)} (loading, first call, compiling)"
    if math.isinf(pays_at):
        return [f"{text}, and that is as good: --calls N says what is best for N"]
    return [f"{text}: it pays from {pays_at:,} calls on, batches of the default's; --calls N says what is best for N"]


def _rounds_s(chosen: Candidate, rival: Candidate, default: Candidate, aim: Metric) -> tuple[float, float]:
    """Return the seconds of a round of both: by their confirmed ratios of speed where both have one, else by the search."""
    mine_s, theirs_s, of_default_s = (each.trial.value(ROUND) or 0.0 for each in (chosen, rival, default))
    if aim.is_speed and chosen.ratio and rival.ratio and of_default_s:
        return of_default_s / chosen.ratio, of_default_s / rival.ratio
    return mine_s, theirs_s


def _aim_notes(study: StudyRecord, objective: Objective) -> list[str]:
    """Say what the study was after where that is not what is asked."""
    notes = []
    if study.objective.metric != objective.metric:
        notes.append(
            f"the study aimed at {study.objective.aim.name}: nothing is confirmed for {objective.aim.name}; "
            f"tune --objective {objective.aim.name} would"
        )
    if study.objective.calls is not None and study.objective.calls != objective.calls:
        notes.append(f"the study was made for {many(study.objective.calls, 'call')}")
    if study.objective.max_latency_s is not None and study.objective.max_latency_s != objective.max_latency_s:
        notes.append(f"the study was made for at most {study.objective.max_latency_s * 1000:g} ms a batch")
    if study.objective.only:
        kept = "; ".join(f"{knob} {', '.join(names)}" for knob, names in study.objective.only)
        notes.append(f"only this was searched: {kept}")
    return notes


def why_stopped(study: StudyRecord, coverage: Coverage) -> str:
    """Return why the search stopped, and what it was asked for where that is not what is asked now."""
    why = _why_stopped(study, count_tried(study.objective, coverage.trials))
    words = coverage.searched_words
    return f"{why}; it was a search {words}" if why and words else why


def _why_stopped(study: StudyRecord, tried: int) -> str:
    """Return why the search stopped, as it was stored or as far as the rows tell."""
    if study.end is not None:
        return study.end.stop.words
    if study.state != "done":
        return Stop.INTERRUPTED.words if study.state == "interrupted" else "it is running"
    return Stop.EVERYTHING.words if study.admissible is not None and tried >= study.admissible else ""


def way_out(default: Candidate | None, facts: ModelFacts) -> str:
    """Return how the work is done right where no configuration does it right: what reads its pads needs none."""
    quality = default.trial.quality if default is not None else None
    if default is None or quality is None:
        return ""
    reads = depends(quality, default.configuration, facts)
    return "--batch 1, or batches of equal lengths" if reads else ""
