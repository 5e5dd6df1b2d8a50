"""What was measured, trial by trial: listed, the newest first, and shown whole.

Neither torch nor Optuna is needed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from advisor.advice.labels import labelled
from advisor.errors import BadInput, DamagedRow, NotMeasured
from advisor.knobs import tier_of, unknown
from advisor.nouns.reading import shown
from advisor.nouns.trial import Trial, default_of
from advisor.quality.amortised import Amortised, Beginning, beginnings, over_calls
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.study.trial_words import device_words

#: Studies, or trials, that are held in memory at once while they are listed.
PAGE = 500


@dataclass(frozen=True)
class Listed:
    """A study and those of its trials that were asked for, each with its score over the default's.

    ratios: by a trial's number; above 1 where it is better at what the study was for. A trial of the confirmation is held
    to the default of its own block, the others to the search's. calls: over how many what it takes to begin is spread, in ratios
    and in what `spread` has; None where nothing is.
    """

    study: StudyRecord
    trials: tuple[Trial, ...]
    ratios: Mapping[int, float]
    calls: int | None = None
    spread: tuple[Trial, ...] = ()

    @property
    def figured(self) -> tuple[Trial, ...]:
        """The trials with the figures that the ratios are of: as the study's job gets them, where it has so many calls."""
        return self.spread or self.trials

    @property
    def payload(self) -> dict[str, Any]:
        """The study with its trials as JSON values."""
        return {
            **study_payload(self.study),
            "trials": [
                {
                    **trial_payload(self.study, trial),
                    "ratio": self.ratios.get(trial.number),
                    **({} if self.calls is None else {"over_calls": _over_payload(self.study, self.calls, told)}),
                }
                for trial, told in zip(self.trials, self.figured, strict=True)
            ],
        }


def _over_payload(study: StudyRecord, calls: int, spread: Trial) -> dict[str, Any]:
    """Return what a study's job of so many calls gets of a trial, as JSON values."""
    metric = study.objective.metric
    return {"calls": calls, metric: spread.value(metric)}


@dataclass(frozen=True)
class OverCalls:
    """What a study's job of so many calls gets of a trial: with its rates as the job gets them, and what it takes to begin."""

    calls: int
    trial: Trial
    begun: Beginning

    def payload(self, study: StudyRecord) -> dict[str, Any]:
        """It as JSON values."""
        begun, told = self.begun, _over_payload(study, self.calls, self.trial)
        seconds = {"load_s": begun.load_s, "first_call_s": begun.first_call_s, "compile_later_s": begun.later_s}
        return {**told, **seconds, "loads_s": list(begun.loads), "loads_are_of_these_weights": begun.is_own}


def listed(
    store: Store, architecture_key: str | None = None, study: int | None = None, *, failed: bool = False, limit: int = 0
) -> Iterator[Listed]:
    """Yield what is stored, newest first, a page at a time: all, of one architecture, of one study, or failures alone.

    limit: how many trials at most, 0 for all. A study of many trials comes in several pieces. Raises NotMeasured where there
    is nothing, DamagedRow where nothing of it can be understood.
    """
    left, found, has_studies = limit or None, False, False
    for record in _records(store, architecture_key, study):
        has_studies = True
        job = _job_of(record, _measured_for_job(store, record))
        defaults, below = over_calls(store.default_trials(record.id), job), None
        while left is None or left > 0:
            page = store.page(record.id, below, min(PAGE, left or PAGE), failed=failed)
            if page.last is None:
                break
            below, found = page.last, found or bool(page.trials)
            left = None if left is None else left - len(page.trials)
            if page.trials:
                told = over_calls(page.trials, job)
                calls, spread = (None, ()) if job is None else (record.objective.job_calls, told)
                yield Listed(record, page.trials, _ratios(record, told, defaults), calls, spread)
        if left == 0:
            return
    if not found and store.damaged and not (failed and has_studies):
        raise DamagedRow(store.damaged[0])
    if not found:
        what = f"study {study}" if study is not None else "this model" if architecture_key else "anything"
        unread = f"{store.damaged[0]}, and may be one" if store.damaged else ""
        raise NotMeasured(f"no {'failed ' if failed else ''}trial of {what} is stored", unread)


def _records(store: Store, architecture_key: str | None, study: int | None) -> Iterator[StudyRecord]:
    """Yield studies, the newest first, without holding all of them."""
    for first in count(0, PAGE):
        page = store.studies_page(architecture_key, study, first, PAGE)
        if page is None:
            return
        yield from page


def newest_study(store: Store) -> StudyRecord:
    """Return the study that was begun last. Raises NotMeasured where there is none, DamagedRow where none can be understood."""
    found = next(_records(store, None, None), None)
    if found is None and store.damaged:
        raise DamagedRow(store.damaged[0])
    if found is None:
        raise NotMeasured("no study is stored", "advisor tune MODEL makes one")
    return found


def _ratios(study: StudyRecord, trials: Sequence[Trial], of_default: Sequence[Trial]) -> dict[int, float]:
    """Return every trial's score over that of the default it is to be held to."""
    aim = study.objective.aim
    defaults = {trial.block: trial for trial in of_default}
    pairs = ((trial, defaults.get(trial.block)) for trial in trials)
    return {trial.number: ratio for trial, default in pairs if default and (ratio := trial.times(default, aim))}


def _measured_for_job(store: Store, study: StudyRecord) -> list[Trial]:
    """Return the trials that say what a study's job of so many calls takes to begin; none where it has no such job."""
    has_job = study.objective.job_calls is not None and study.facts is not None
    return store.trials(study.id, readable=True) if has_job else []


def _job_of(study: StudyRecord, trials: Sequence[Trial]) -> Amortised | None:
    default = default_of(trials)
    if study.facts is None or default is None or unknown(default.requested):
        return None
    return Amortised.of(study.objective, study.workload, study.facts, trials)


def over_calls_of(store: Store, study: StudyRecord, trial: Trial) -> OverCalls | None:
    """Return what a study's job of so many calls gets of one of its trials; None where it has no such job, or none is known."""
    trials, calls = _measured_for_job(store, study), study.objective.job_calls
    job = _job_of(study, trials)
    if job is None or study.facts is None or calls is None or not trial.value(study.objective.metric):
        return None
    begun = beginnings(trials, study.facts).get(trial.ran)
    return None if begun is None else OverCalls(calls, job.spread(trial), begun)


def stored_trial(store: Store, study: int, number: int) -> tuple[StudyRecord, Trial]:
    """Return a trial and its study. Raises BadInput where there is none of this id."""
    try:
        return store.study(study), store.trial(study, number)
    except NotMeasured as error:
        raise BadInput(str(error), "advisor trials lists them") from None


def labelled_trial(store: Store, study: int, label: str) -> tuple[StudyRecord, Trial]:
    """Return the search's trial of a configuration, by its label, and its study. Raises BadInput where there is none.

    Of several that were asked for so, or ran so, the one that was asked for, and the last of these.
    """
    wanted = labelled(label)
    if wanted is None:
        raise BadInput(f"{shown(label)} is no configuration's label", "advisor trials lists them")
    record, _ = stored_trial(store, study, 0)
    found = [
        trial for trial in store.trials(study) if trial.phase == "search" and wanted in (trial.requested, trial.ran)
    ]
    if not found:
        raise BadInput(f"study {study} has no trial of {wanted} in its search", "advisor trials lists them")
    return stored_trial(store, record.id, max(found, key=lambda t: (t.requested == wanted, t.number)).number)


def study_payload(study: StudyRecord) -> dict[str, Any]:
    """Return what a study was about as JSON values."""
    return {
        "study": study.id,
        "model": study.model_name,
        "weights_digest": study.weights_digest,
        "workload": study.workload.payload,
        "flags": study.workload.flags,
        "objective": study.objective.payload,
        "environment": {"key": study.environment_key, **study.environment.payload},
        "state": study.state,
        "started_at": study.started_at.isoformat(),
        "finished_at": study.finished_at.isoformat() if study.finished_at else None,
    }


def trial_payload(study: StudyRecord, trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON values; its reading and device states where they were read."""
    return {
        "id": f"{study.id}.{trial.number}",
        "label": str(trial.requested),
        "requested": trial.requested.spelled,
        "effective": trial.effective.spelled if trial.effective is not None else None,
        "phase": trial.phase,
        "block": trial.block,
        "outcome": str(trial.outcome),
        "reason": trial.reason,
        "tier": str(tier_of(trial.ran.items(), study.facts)) if study.facts and not unknown(trial.ran) else None,
        "figures": {
            name: getattr(trial, name)
            for name in ("load_s", "first_call_s", "measure_s", "wall_s", "peak_bytes", "weight_bytes", "attempts")
        },
        "measurements": [
            {
                "metric": m.metric,
                "unit": m.unit,
                "median": m.median,
                "interval": list(m.interval),
                "samples": list(m.samples),
                **({"device": device_words(m)} if m.device_state else {}),
            }
            for m in trial.measurements
        ],
        "quality": trial.quality.payload if trial.quality else None,
        "reading": dict(trial.reading),
        "reused": trial.is_reused,
    }
