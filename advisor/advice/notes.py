"""What a reader must know to weigh an answer, in words: what is not known, why the search stopped, and a way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advisor.advice.coverage import Coverage, count_tried, weights_words
from advisor.advice.ranking import Candidate
from advisor.models.declared import notes_on
from advisor.nouns.answer import Stop
from advisor.nouns.metrics import ROUND
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Trial
from advisor.quality.amortised import beginnings_s, calls_of, pays_from
from advisor.quality.judge import depends, is_judged
from advisor.storage.study_record import StudyRecord
from advisor.terminal import duration

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
    return [f"the machine was not left alone: {len(why)} of the {len(states)} rounds were disturbed ({most})"]


def begin_notes(
    study: StudyRecord,
    objective: Objective,
    trials: Sequence[Trial],
    chosen: Candidate | None,
    default: Candidate | None,
) -> list[str]:
    """Say over how many calls figures are, or from how many on what is recommended makes up for what it takes to begin."""
    if study.facts is None or chosen is None or default is None:
        return []
    is_over_calls = objective.job_calls is not None
    if not is_over_calls and (chosen.is_default or not objective.aim.is_of_time):
        return []
    begins_s = beginnings_s(trials, study.facts)
    mine_s, theirs_s = (begins_s.get(each.configuration) for each in (chosen, default))
    if is_over_calls:
        begins = "" if mine_s is None else f", with the {duration(mine_s)} that it takes to begin"
        return [f"figures are over {objective.job_calls:,} calls, batches of the default's{begins}"]
    rounds_s = chosen.trial.value(ROUND), default.trial.value(ROUND)
    if mine_s is None or theirs_s is None or mine_s - theirs_s < _LONG_BEGIN_S or not all(rounds_s):
        return []
    calls = calls_of(study.workload, default.trial.requested)
    pays = pays_from((mine_s, theirs_s), (rounds_s[0] or 0.0, rounds_s[1] or 0.0), calls)
    if pays is None:
        return []
    text = f"it takes {duration(mine_s)} to begin, the default {duration(theirs_s)} (loading, first call, compiling)"
    return [f"{text}: it pays from {pays:,} calls on, batches of the default's; --calls N says what is best for N"]


def _aim_notes(study: StudyRecord, objective: Objective) -> list[str]:
    """Say what the study was after where that is not what is asked."""
    notes = []
    if study.objective.metric != objective.metric:
        notes.append(
            f"the study aimed at {study.objective.aim.name}: nothing is confirmed for {objective.aim.name}; "
            f"tune --objective {objective.aim.name} would"
        )
    if study.objective.calls is not None and study.objective.calls != objective.calls:
        notes.append(f"the study was made for {study.objective.calls:,} calls")
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
