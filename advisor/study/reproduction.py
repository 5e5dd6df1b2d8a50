"""A stored trial run again, in fresh processes: what is not as it was then, and whether it came out the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from advisor.errors import BadInput
from advisor.knobs import HAVE_PLUGIN, unknown
from advisor.measure.runner import Listener
from advisor.models.checkpoint import find_model
from advisor.nouns.agreement import NOT_REPRODUCED, REPRODUCED, UNDECIDED, USUAL_PROCESSES, Agreement
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import is_at_pace
from advisor.nouns.metrics import CPU_LAP, ROUND
from advisor.nouns.model import ModelSource
from advisor.nouns.trial import Outcome, Trial, best_laps_s
from advisor.storage.study_record import StudyRecord
from advisor.study.history import study_payload, trial_payload
from advisor.study.reruns import Stored


@dataclass(frozen=True)
class Reproduction:
    """A stored trial and the same configuration in fresh processes.

    old: the trial that was asked for; then: it and the others of its study that measured the same on the same device, of
    :func:`measured_then`; now: the processes by now, in their order; most: how many at most. differences: what is not as it was
    then, in words. Ratios are above 1 where what runs now is better. blocks: the numbers of the trials of blocks that timed
    the same, where the trial is the search's.
    """

    study: StudyRecord
    old: Trial
    then: tuple[Trial, ...]
    now: tuple[Trial, ...]
    differences: tuple[str, ...] = ()
    most: int = USUAL_PROCESSES
    blocks: tuple[int, ...] = ()

    @property
    def new(self) -> Trial | None:
        """The last process: all before it ran as the trial did. None before the first."""
        return self.now[-1] if self.now else None

    @cached_property
    def agreement(self) -> Agreement | None:
        """The figures then beside those now, of what the study was for; None where there are none to be compared.

        What was disturbed is no figure of a configuration: it is left out, then while anything else is stored.
        """
        aim, new = self.study.objective.aim, self.new
        if new is None or self.old.outcome is not Outcome.OK or not self._is_same(new):
            return None
        then, now = ([trial.score(aim) for trial in trials] for trials in (self.calm_then, self.calm))
        return Agreement(tuple(then), tuple(now)) if then and now and all((*then, *now)) else None

    @property
    def calm(self) -> list[Trial]:
        """The processes now that were not disturbed."""
        return [trial for trial in self.now if not disturbance(trial, self._best_s)]

    @property
    def calm_then(self) -> list[Trial]:
        """Those then that were not disturbed; all where all were."""
        return [trial for trial in self.then if not disturbance(trial, self._best_s)] or list(self.then)

    @property
    def _best_s(self) -> dict[str, float]:
        return best_laps_s((*self.then, *self.now))

    @property
    def ratio(self) -> float | None:
        """The scores now over those then, the geometric means of processes."""
        return self.agreement.ratio if self.agreement is not None else None

    @property
    def verdict(self) -> str:
        """Return "reproduced", "not reproduced" or "undecided".

        A failure is reproduced by failing the same way, and nothing is by what ran as something else.
        """
        if self.new is None:
            return UNDECIDED
        if not self._is_same(self.new):
            return NOT_REPRODUCED
        if self.old.outcome is not Outcome.OK:
            return REPRODUCED
        return self.agreement.verdict if self.agreement is not None else UNDECIDED

    @property
    def is_open(self) -> bool:
        """Whether another process is to run: the first, and then while its figure may decide what is open."""
        is_seen = all(trial.score(self.study.objective.aim) for trial in self.now)
        return not self.now or (self.verdict == UNDECIDED and is_seen and len(self.now) < self.most)

    @property
    def exit_status(self) -> int:
        """Return 0 where it is reproduced, 1 where it is not, 3 where that can't be told."""
        return {REPRODUCED: 0, NOT_REPRODUCED: 1, UNDECIDED: 3}[self.verdict]

    @property
    def payload(self) -> dict[str, Any]:
        """All of it as JSON values. interval: of the ratio, between processes; old_figure, new_figure: between rounds of one."""
        aim, found = self.study.objective.aim, self.agreement
        best_s = self._best_s
        return {
            **study_payload(self.study),
            "metric": aim.metric,
            "unit": aim.unit,
            "differences": list(self.differences),
            "old": trial_payload(self.study, self.old),
            "new": trial_payload(self.study, self.new) if self.new is not None else None,
            "old_figure": _figure(self.old, aim.metric),
            "new_figure": _figure(self.new, aim.metric) if self.new is not None else None,
            "then": [
                {
                    "id": f"{self.study.id}.{t.number}",
                    "median": t.value(aim.metric),
                    "disturbance": disturbance(t, best_s),
                }
                for t in self.then
            ],
            "now": [
                {"outcome": str(t.outcome), "median": t.value(aim.metric), "disturbance": disturbance(t, best_s)}
                for t in self.now
            ],
            "processes_at_most": self.most,
            "ratio": self.ratio,
            "interval": list(found.interval) if found is not None and found.interval is not None else None,
            "scatter": found.scatter if found is not None else None,
            "verdict": self.verdict,
        }

    def _is_same(self, new: Trial) -> bool:
        return new.outcome is self.old.outcome and (new.outcome is not Outcome.OK or new.ran == self.old.ran)


def _figure(trial: Trial, metric: str) -> dict[str, Any] | None:
    """Return the median and the interval of a process's rounds; None where it has none."""
    measured, value = trial.measurement(metric), trial.value(metric)
    return (
        None
        if value is None
        else {"median": value, "interval": list(measured.interval if measured else (value, value))}
    )


def in_blocks(stored: Stored) -> tuple[int, ...]:
    """Return the numbers of the trials of blocks that timed what a search trial did, on its device; none for one of a block."""
    old = stored.trial
    if old.block is not None:
        return ()
    in_block = [replace(trial, phase=old.phase) for trial in stored.trials if trial.block is not None]
    return tuple(trial.number for trial in measured_then(replace(stored, trials=in_block)))


def measured_then(stored: Stored) -> tuple[Trial, ...]:
    """Return the trials of a study that measured the same as a trial, on its device: each a process, the trial itself always.

    Those of the search for one of the search, those of the blocks for one of a block: beside others in a process it comes to
    another figure than by itself (docs/reproduce.md). Who was timed to its end and ran as the trial did.
    """
    aim, old = stored.study.objective.aim, stored.trial

    def is_another(trial: Trial) -> bool:
        is_alike = trial.requested == old.requested and trial.ran == old.ran and trial.device_uuid == old.device_uuid
        is_good = trial.outcome is Outcome.OK and not trial.is_reused and trial.score(aim) > 0
        return is_alike and is_good and trial.phase == old.phase

    found = [old if trial.number == old.number else trial for trial in stored.trials]
    return tuple(trial for trial in found if trial is old or is_another(trial))


def refuse_unrepeatable(study: StudyRecord, trial: Trial) -> None:
    """Raise BadInput for a trial that has no end or no figure to be compared with, or that nobody here knows how to run."""
    if missing := unknown(trial.requested):
        raise BadInput(f"this trial can't be run here: {missing[0]}", HAVE_PLUGIN)
    if trial.outcome in (Outcome.RUNNING, Outcome.CUT, Outcome.PRUNED, Outcome.WRONG_OUTPUT):
        why = {
            Outcome.RUNNING: "has not ended: it still runs, or was interrupted (the same tune goes on with it)",
            Outcome.CUT: "was broken off before its end, so there is nothing to compare with",
            Outcome.PRUNED: "was stopped early, so it has no figure to compare with",
            Outcome.WRONG_OUTPUT: "was refused by the gate, which needs the whole study: run its tune again",
        }[trial.outcome]
        raise BadInput(f"this trial {why}")
    if trial.outcome is Outcome.OK and not trial.score(study.objective.aim):
        raise BadInput(f"this trial has no {study.objective.aim.words} to be compared with")


def found_again(study: StudyRecord, name: str | None, *, allow_pickle: bool = False) -> ModelSource:
    """Return the model of a study, by where it was or by where it is now. Raises BadInput where it is neither, or another."""
    try:
        source = find_model(name or study.model_name, allow_pickle=allow_pickle, download=False)
    except BadInput as error:
        if name is not None or error.hint:
            raise
        raise BadInput(f"the trial's model is not here: {error}", "--model says where it is now") from None
    refuse_other_work(study, source)
    return source


def machine_of(trial: Trial, machines: Iterable[Machine]) -> Machine | None:
    """Return the device that a trial ran on, where it is one of these and can be used."""
    return next((each for each in machines if each.uuid == trial.device_uuid and not each.problem), None)


def other_device(trial: Trial, machine: Machine) -> list[str]:
    """Say, where a trial ran on another device of the same kind, that this is no difference of the trial's."""
    if trial.device_uuid in ("", machine.uuid):
        return []
    return [f"the device: {trial.device_uuid} then, {machine.uuid} now, and two of a kind differ by some per cent"]


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


def disturbance(trial: Trial, best_s: Mapping[str, float]) -> str:
    """Return "" or what disturbed a process while most of its rounds ran, so that its figure is not the configuration's.

    best_s: the quickest lap of a CPU by device: of work that waits for the CPU, a slower one disturbs.
    """
    rounds, laps = trial.measurement(ROUND), trial.measurement(CPU_LAP)
    states = list(rounds.device_state.get("after_each_round", ())) if rounds is not None else []
    told = [str(state["disturbed"]) for state in states if state.get("disturbed")]
    if 2 * len(told) > len(states):
        return told[-1]
    if laps is not None and trial.is_launch_bound and not is_at_pace(laps.median, best_s[trial.device_uuid]):
        return "the CPU was not at its pace"
    return ""


def run_again(asked: Reproduction, processes: Iterable[Trial], listen: Listener) -> Reproduction:
    """Let processes run for as long as another one may decide it. listen: hears of every one that ended."""
    for trial in processes:
        asked = replace(asked, now=(*asked.now, trial))
        why = disturbance(trial, best_laps_s((*asked.then, *asked.now)))
        words = {"number": len(asked.now), "most": asked.most, "trial": trial, "aim": asked.study.objective.aim}
        listen({"event": "process", **words, "disturbance": why})
        if not asked.is_open:
            break
    return asked
