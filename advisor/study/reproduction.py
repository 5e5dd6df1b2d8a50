"""A stored trial run again: what is not as it was then, and whether it came out the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from advisor.errors import BadInput
from advisor.knobs import HAVE_PLUGIN, unknown
from advisor.measure.messages import Failure, Timing, TrialAsked, TrialDone
from advisor.measure.runner import Runner, read_facts
from advisor.measure.stopping import Stopping
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.model import ModelSource
from advisor.nouns.trial import Outcome, Trial
from advisor.storage.study_record import StudyRecord
from advisor.study.attempt import attempt, with_figures
from advisor.study.history import study_payload, trial_payload

#: When the timing of a trial that runs again ends: there is no other that its time could go to.
_TO_ITS_END = Stopping(least=10, most=30, seconds=20.0, least_long=5, seconds_long=20.0)


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
        return self.new.times(self.old, self.study.objective.aim) or None

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
    request = TrialAsked(
        source=source.files,
        facts=read_facts(runner, source, study.workload),
        workload=study.workload,
        configuration=trial.requested,
        timing=Timing(stopping=_TO_ITS_END),
    )
    answer, _ = attempt(runner, lambda: runner.run(request, timeout_s))
    assert isinstance(answer, (TrialDone, Failure))
    fresh = Trial(trial.number, trial.requested, None, answer.outcome, phase=trial.phase, block=trial.block)
    found = with_figures(replace(fresh, device_uuid=trial.device_uuid), study.workload, answer)
    return replace(found, reading=answer.reading if isinstance(answer, TrialDone) else {})
