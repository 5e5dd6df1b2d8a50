"""What was measured, trial by trial: listed, shown whole, run again; and from it, how long the next tune would take.

The search's own modules are imported where they are needed: listing trials needs neither torch nor Optuna.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any

from advisor.configuration import Configuration
from advisor.device import NOT_OBSERVABLE
from advisor.environment import Environment
from advisor.errors import BadInput, DamagedRow, NotMeasured
from advisor.knobs import HAVE_PLUGIN, Reason, tier_of, unknown
from advisor.measurement import TIE_ZONE, Measurement
from advisor.model import ModelSource
from advisor.runner import Runner, read_facts
from advisor.store import Store
from advisor.study_record import StudyRecord
from advisor.trial import Outcome, Quality, Trial

if TYPE_CHECKING:  # tune brings Optuna
    from advisor.space import Space
    from advisor.tuning import Job

#: Studies, or trials, that are held in memory at once while they are listed.
PAGE = 500

#: Operators and kernels of a reading that are shown to people.
_SHOWN = 12


def words_of(reading: Mapping[str, Any]) -> dict[str, str]:
    """Return a stored reading in words by what they are about; operators are shortened."""
    names = list(reading.get("operators", ()))
    shown = {
        "attention": ", ".join(f"{part or 'model'} {name}" for part, name in reading.get("attention", {}).items()),
        "parameters": ", ".join(f"{count:,} {dtype}" for dtype, count in reading.get("dtypes", {}).items()),
        "linear layers": ", ".join(f"{count} {name}" for name, count in reading.get("linears", {}).items()),
        "called with": ", ".join(f"{name} {value}" for name, value in reading.get("inputs", {}).items()),
        "operators": ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""),
    }
    return {name: words for name, words in shown.items() if words}


def device_words(measurement: Measurement) -> dict[str, str]:
    """Return in words what was seen of the device while it was measured: ranges of figures, and what disturbed it."""
    seen: dict[str, list[Any]] = {}
    for state in measurement.device_state.get("after_each_round", ()):
        for name, value in state.items():
            seen.setdefault(name, []).append(value)
    shown = {name.replace("_", " "): _range(values) for name, values in seen.items() if name != "energy_j"}
    discarded = list(measurement.device_state.get("discarded", ()))
    if discarded:
        shown["rounds thrown away"] = f"{len(discarded)}: {', '.join(sorted(set(discarded)))}"
    return {name: words for name, words in shown.items() if words}


def _range(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    words = {", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) for value in values}
    return "" if words == {NOT_OBSERVABLE} else "; ".join(sorted(words))


# ---------------------------------------------------------------------------------------------------------------- listed


@dataclass(frozen=True)
class Listed:
    """A study and those of its trials that were asked for, each with its score over the default's.

    ratios: by a trial's number; above 1 where it is better at what the study was for. A trial of the confirmation is held
    to the default of its own block, the others to the search's.
    """

    study: StudyRecord
    trials: tuple[Trial, ...]
    ratios: Mapping[int, float]

    @property
    def payload(self) -> dict[str, Any]:
        """The study with its trials as JSON values."""
        return {
            **study_payload(self.study),
            "trials": [
                {**trial_payload(self.study, trial), "ratio": self.ratios.get(trial.number)} for trial in self.trials
            ],
        }


def listed(
    store: Store, architecture_key: str | None = None, study: int | None = None, *, failed: bool = False, limit: int = 0
) -> Iterator[Listed]:
    """Yield what is stored, newest first, a page at a time: all, of one architecture, of one study, or failures alone.

    limit: how many trials at most, 0 for all. A study of many trials comes in several pieces. Raises NotMeasured where there
    is nothing, DamagedRow where nothing of it can be understood.
    """
    left, found = limit or None, False
    for record in _records(store, architecture_key, study):
        defaults, below = store.default_trials(record.id), None
        while left is None or left > 0:
            page = store.page(record.id, below, min(PAGE, left or PAGE), failed=failed)
            if page.last is None:
                break
            below, found = page.last, found or bool(page.trials)
            left = None if left is None else left - len(page.trials)
            if page.trials:
                yield Listed(record, page.trials, _ratios(record, page.trials, defaults))
        if left == 0:
            return
    if not found and store.damaged:
        raise DamagedRow(store.damaged[0])
    if not found:
        what = f"study {study}" if study is not None else "this model" if architecture_key else "anything"
        raise NotMeasured(f"no {'failed ' if failed else ''}trial of {what} is stored")


def _records(store: Store, architecture_key: str | None, study: int | None) -> Iterator[StudyRecord]:
    """Yield studies, the newest first, without holding all of them."""
    for first in count(0, PAGE):
        page = store.studies_page(architecture_key, study, first, PAGE)
        if page is None:
            return
        yield from page


def _ratios(study: StudyRecord, trials: Sequence[Trial], of_default: Sequence[Trial]) -> dict[int, float]:
    """Return every trial's score over that of the default it is to be held to."""
    aim = study.objective.aim
    defaults = {trial.block: trial.score(aim) for trial in of_default}
    scores = ((trial, trial.score(aim), defaults.get(trial.block)) for trial in trials)
    return {trial.number: score / default for trial, score, default in scores if score and default}


def stored_trial(store: Store, study: int, number: int) -> tuple[StudyRecord, Trial]:
    """Return a trial and its study. Raises BadInput where there is none of this id."""
    try:
        return store.study(study), store.trial(study, number)
    except NotMeasured as error:
        raise BadInput(str(error), "advisor trials lists them") from None


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
        "reused": is_reused(trial),
    }


def is_reused(trial: Trial) -> bool:
    """Whether the figures are another trial's: of what really ran in this study, or of the same work in another one."""
    return trial.reused_from is not None or (trial.wall_s == 0 and bool(trial.measurements))


# ------------------------------------------------------------------------------------------------------------- run again


@dataclass(frozen=True)
class Reproduction:
    """A stored trial and the same configuration run again.

    differences: what is not as it was then, in words. Ratios are above 1 where the new one is better.
    """

    study: StudyRecord
    old: Trial
    new: Trial
    differences: tuple[str, ...]

    @property
    def figures(self) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
        """Median and interval, then and now, of what the study was for; None where either has none."""
        pair = [_figure(trial, self.study.objective.metric) for trial in (self.old, self.new)]
        return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])

    @property
    def ratio(self) -> float | None:
        """The new score over the old one."""
        aim = self.study.objective.aim
        scores = self.new.score(aim), self.old.score(aim)
        return scores[0] / scores[1] if all(scores) else None

    @property
    def is_inside(self) -> bool:
        """Whether the new median lies inside the old interval."""
        return self.figures is not None and self.figures[0][1] <= self.figures[1][0] <= self.figures[0][2]

    @property
    def overlaps(self) -> bool:
        """Whether the two intervals overlap."""
        if self.figures is None:
            return False
        (_, old_low, old_high), (_, new_low, new_high) = self.figures
        return old_low <= new_high and new_low <= old_high

    @property
    def is_reproduced(self) -> bool:
        """Whether it came out as it did: intervals overlap, or the medians are a tie (2 %); a failure fails the same way.

        The intervals are of rounds within one process: two processes differ by more than that even on a quiet machine.
        """
        if self.old.outcome is not Outcome.OK:
            return self.new.outcome is self.old.outcome
        return self.new.outcome is Outcome.OK and self.new.ran == self.old.ran and (self.overlaps or self.is_near)

    @property
    def is_near(self) -> bool:
        """Whether the medians are a tie."""
        return self.ratio is not None and 1 / (1 + TIE_ZONE) <= self.ratio <= 1 + TIE_ZONE

    @property
    def verdict(self) -> str:
        """Return "reproduced" or "not reproduced"."""
        return "reproduced" if self.is_reproduced else "not reproduced"

    @property
    def why(self) -> str:
        """What the verdict rests on, where figures alone do not say so: empty, or words to follow it."""
        if self.ratio is None or self.old.outcome is not Outcome.OK or self.new.ran != self.old.ran:
            return ""
        apart = f"the medians are {abs(self.ratio - 1):.0%} apart"
        if self.is_near:
            return ""
        return f": {apart}, but the rounds vary as much" if self.overlaps else f": {apart}, more than the rounds vary"

    @property
    def payload(self) -> dict[str, Any]:
        """All of it as JSON values."""
        aim = self.study.objective.aim
        figures = [{"median": m, "interval": [low, high]} for m, low, high in self.figures or ()]
        return {
            **study_payload(self.study),
            "metric": aim.metric,
            "unit": aim.unit,
            "differences": list(self.differences),
            "old": trial_payload(self.study, self.old),
            "new": trial_payload(self.study, self.new),
            "old_figure": figures[0] if figures else None,
            "new_figure": figures[1] if figures else None,
            "ratio": self.ratio,
            "inside": self.is_inside,
            "overlap": self.overlaps,
            "verdict": self.verdict,
        }


def _figure(trial: Trial, metric: str) -> tuple[float, float, float] | None:
    measured, value = trial.measurement(metric), trial.value(metric)
    if value is None:
        return None
    return (value, *(measured.interval if measured else (value, value)))


def refuse_unrepeatable(trial: Trial) -> None:
    """Raise BadInput for a trial that has no end of its own to be compared with, or that nobody here knows how to run."""
    if missing := unknown(trial.requested):
        raise BadInput(f"this trial can't be run here: {missing[0]}", HAVE_PLUGIN)
    if trial.outcome in (Outcome.RUNNING, Outcome.PRUNED, Outcome.WRONG_OUTPUT):
        why = {
            Outcome.RUNNING: "has not ended: it still runs, or was interrupted (the same tune goes on with it)",
            Outcome.PRUNED: "was stopped early, so it has no figure to compare with",
            Outcome.WRONG_OUTPUT: "was refused by the gate, which needs the whole study: run its tune again",
        }[trial.outcome]
        raise BadInput(f"this trial {why}")


def refuse_other_work(study: StudyRecord, source: ModelSource) -> None:
    """Raise BadInput where a model is not the one of the study: its shapes differ."""
    if study.workload.key_for(source.architecture_key) != study.workload_key:
        raise BadInput(
            f"{source.name} is another model than the trial's: its config.json has other shapes",
            "--model says where that one is now",
        )


def differences(study: StudyRecord, source: ModelSource, here: Environment) -> list[str]:
    """Return, in words, what is not as it was when the study ran: its weights, the device, its settings, versions."""
    there, found = study.environment, []
    if study.weights_digest != source.weights_digest:
        found.append("the weights")
    for name in here.payload:
        if name != "packages" and there.payload[name] != here.payload[name]:
            found.append(f"{name.replace('_', ' ')}: {there.payload[name]} then, {here.payload[name]} now")
    for name in sorted(there.packages.keys() | here.packages.keys()):
        then, now = (environment.packages.get(name, "none") for environment in (there, here))
        if then != now:
            found.append(f"{name} {then} then, {now} now")
    return found


def run_again(study: StudyRecord, trial: Trial, source: ModelSource, runner: Runner, timeout_s: float) -> Trial:
    """Run a trial's configuration in a fresh process, without the gate and to its end; store nothing."""
    facts = read_facts(runner, {"source": source.request, "workload": study.workload.payload})
    request: dict[str, Any] = {
        "op": "trial",
        "source": source.request,
        "facts": facts,
        "workload": study.workload.payload,
        "configuration": dict(trial.requested),
        "gate": None,
        "measured": [],
        "timing": {
            "stopping": {"least": 10, "most": 30, "seconds": 20.0, "least_long": 5, "seconds_long": 20.0},
            "incumbent_s": None,
        },
    }
    result = runner.run(request, timeout_s)
    if result.get("transient"):
        runner.restart()
        result = runner.run(request, timeout_s)
    return _told(trial, study, result)


def _told(trial: Trial, study: StudyRecord, result: Mapping[str, Any]) -> Trial:
    """Turn a worker's result into a trial with the stored one's number."""
    from advisor.attempt import measurements_of

    rounds = result.get("rounds")
    return replace(
        trial,
        effective=Configuration.of(result["effective"]) if result.get("effective") else None,
        outcome=Outcome(result["outcome"]),
        reason=result.get("reason") or result.get("alias") or "",
        load_s=result.get("load_s"),
        first_call_s=result.get("first_call_s"),
        wall_s=None,
        attempts=1,
        reused_from=None,
        measure_s=sum(rounds["wall_s"]) if rounds else None,
        peak_bytes=result.get("peak_bytes"),
        weight_bytes=result.get("weight_bytes"),
        quality=Quality.of(result.get("quality")),
        reading=result.get("reading") or {},
        measurements=measurements_of(study.workload, rounds, trial.phase) if rounds else (),
    )


# ------------------------------------------------------------------------------------------------------------ what next


@dataclass(frozen=True)
class Plan:
    """What a tune would try and how long that would take. trial_s: seconds a trial took here, None where none is stored."""

    job: Job
    space: Space
    trial_s: float | None

    @property
    def order(self) -> tuple[Configuration, ...]:
        """The default, then what is admissible by predicted speed. What is measured changes the order."""
        rest = [configuration for configuration in self.space.admissible if configuration != self.space.baseline]
        return (self.space.baseline, *rest)

    @property
    def searched(self) -> int:
        """How many configurations the budget's trials allow."""
        return len(self.order) if self.job.budget.trials is None else min(self.job.budget.trials, len(self.order))

    @property
    def confirming(self) -> int:
        """How many runs the confirmation takes at most: the default and the finalists in every block."""
        from advisor.confirm import FINALISTS

        return self.job.budget.blocks * (1 + min(FINALISTS, self.searched - 1)) if self.searched > 1 else 0

    @property
    def seconds(self) -> float | None:
        """How long all of it would take, the budget's time aside; None before the first trial."""
        return None if self.trial_s is None else self.trial_s * (self.searched + self.confirming)

    @property
    def payload(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "model": self.job.source.name,
            "workload": self.job.workload.payload,
            "objective": self.job.objective.payload,
            "budget": self.job.budget.payload,
            "environment": {"key": self.job.machine.environment.key, **self.job.machine.environment.payload},
            "order": [configuration.spelled for configuration in self.order],
            "refusals": [reason_payload(reason) for reason in self.space.refusals],
            "warnings": [reason_payload(reason) for reason in self.space.warnings],
            "trials": self.searched,
            "confirmation_runs": self.confirming,
            "trial_s": self.trial_s,
            "seconds": self.seconds,
        }


def reason_payload(reason: Reason) -> dict[str, str]:
    """Return a rule's reason as JSON values."""
    return {
        "subject": reason.subject,
        "about": reason.about,
        "rule": reason.rule,
        "verdict": str(reason.verdict),
        "reason": reason.text,
        "remedy": reason.remedy,
    }


def plan(job: Job, runner: Runner, trial_s: float | None) -> Plan:
    """Read the model's facts and return what a tune would try. Nothing is measured and nothing is stored."""
    from advisor.opening import facts_for, refuse_nothing_left, refuse_too_large
    from advisor.space import build_space

    facts = facts_for(job, runner)
    space = build_space(facts, job.workload, job.machine.environment, job.objective, job.machine.free_bytes)
    refuse_too_large(job, facts, space)
    refuse_nothing_left(job, space)
    return Plan(job, space, trial_s)


def usual_trial_s(store: Store, architecture_key: str, environment_key: str) -> float | None:
    """Return the median seconds of what was run of an architecture in an environment; None where nothing was."""
    here = (study for study in store.studies(architecture_key) if study.environment_key == environment_key)
    walls = [trial.wall_s for study in here for trial in store.trials(study.id, readable=True) if trial.wall_s]
    return median(walls) if walls else None
