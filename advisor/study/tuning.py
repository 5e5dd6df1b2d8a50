"""What a tune works on, as values: its job, and a snapshot of its study, which every decision is a function of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.entry import Texts
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import Comparison
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.trial import Outcome, Trial, best_laps_s, default_of
from advisor.quality.amortised import Amortised, over_calls
from advisor.quality.judge import has_reference
from advisor.quality.limits import limits_of
from advisor.quality.objections import objections
from advisor.search.space import Space
from advisor.workloads import Workload

#: Why a trial was cut that would have been run to its end: a block of these is begun again.
INTERRUPTED, BUDGET_ENDED = "it was interrupted", "the budget ended"
BROKEN_OFF = (INTERRUPTED, BUDGET_ENDED)

Listener = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What is to be tuned, on what, and how much may be spent. trial_timeout_s: the deadline of one trial.

    also: configurations that are measured and confirmed whatever the search finds, where they are admissible. texts: where
    the user's own texts are (Lengths.texts), None where the bundled one is run. began: when the command did, by
    time.monotonic(), for the budget counts from there; None: when it is tuned. flags: the workload as the user spelled it,
    "" where that is its own flags.
    """

    source: ModelSource
    workload: Workload
    objective: Objective
    budget: Budget
    machine: Machine
    seed: int = 0
    trial_timeout_s: float = 600.0
    also: tuple[Configuration, ...] = ()
    texts: Texts | None = None
    began: float | None = None
    flags: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment, as one tune of it sees it: all that `advisor.study.next_step` goes by.

    stored: all trials by number. taken: the numbers of running ones that other tunes, which are at work, run. first: the
    number that the first trial had of those who were at work when this tune began: what failed before it is tried again, for
    a failure may have been the moment's (someone else's memory, a busy machine) and is not cached for ever. warm: what another
    workload teaches. left_s: seconds of the budget, start_s: of a fresh process. has_ceilings: whether the device's are known
    or were tried for. stop: why this tune's search ended, None while it goes on. is_spent: whether the budget ended a run,
    share_spent: whether what is there of it for the search did, while the rest is set aside for the confirmation.
    unfinished: the numbers of earlier trials that ran, or were left behind, when this tune began: what came of them is of now.
    """

    job: Job
    facts: ModelFacts
    space: Space
    stored: tuple[Trial, ...] = ()
    taken: frozenset[int] = frozenset()
    comparisons: tuple[Comparison, ...] = ()
    first: int = 0
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    left_s: float = math.inf
    start_s: float = 0.0
    has_ceilings: bool = True
    stop: Stop | None = None
    is_spent: bool = False
    share_spent: bool = False
    unfinished: frozenset[int] = frozenset()

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """The trials without the failures of earlier tunes; a wrong output stays wrong.

        Nor what those could not judge for want of a reference, which may be had by now, where what is unjudged is not allowed.
        Nor what was cut, or was left behind: nothing is known of it. Their rates are those of the objective's job, where it has
        so many calls.
        """
        return over_calls(self._counted, self.amortised)

    @cached_property
    def _counted(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.stored if self._counts(trial))

    @cached_property
    def amortised(self) -> Amortised | None:
        """What the objective's job makes of what was measured; None where it has no such job."""
        searched = [trial for trial in self._counted if trial.phase == "search"]
        return Amortised.of(self.job.objective, self.job.workload, self.facts, searched)

    def _counts(self, trial: Trial) -> bool:
        if trial.outcome is Outcome.RUNNING:
            return trial.number in self.taken
        if trial.outcome is Outcome.CUT:
            return False
        if trial.number >= self.first or trial.number in self.unfinished:
            return True
        if not self.job.objective.allow_unjudged and trial.quality is not None and not has_reference(trial.quality):
            return False
        return not trial.outcome.is_failure or trial.outcome is Outcome.WRONG_OUTPUT

    @property
    def begun(self) -> int:
        """How many trials were begun: the number that the next one has."""
        return self.stored[-1].number + 1 if self.stored else 0

    @cached_property
    def searched(self) -> tuple[Trial, ...]:
        """Those of the search, running ones too."""
        return tuple(trial for trial in self.trials if trial.phase == "search")

    @property
    def left_behind(self) -> tuple[Trial, ...]:
        """The running trials that nobody runs any more."""
        running = (trial for trial in self.stored if trial.outcome is Outcome.RUNNING)
        return tuple(trial for trial in running if trial.number not in self.taken)

    def tried(self, configuration: Configuration) -> list[Trial]:
        """Return the search trials of a configuration, as it was asked for."""
        return [trial for trial in self.searched if trial.requested == configuration]

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        if trial.phase != "search":
            return False
        limits = limits_of(self.job.workload)
        return not objections(trial, self.default, self.job.objective, self.facts, limits=limits)

    @cached_property
    def default(self) -> Trial | None:
        """The newest search trial of the model's default that ran, right or wrong; None before it did."""
        return default_of(self.tried(self.space.baseline))

    @property
    def baseline(self) -> Configuration:
        """What runs as the default, which everything is compared with."""
        return self.default.ran if self.default is not None else self.space.baseline

    @cached_property
    def best(self) -> Trial | None:
        """The best search trial that may be recommended, None where there is none yet."""
        found = [trial for trial in self.trials if self.usable(trial)]
        return max(found, key=lambda trial: trial.score(self.job.objective.aim), default=None)

    @property
    def best_lap_s(self) -> float | None:
        """The quickest lap of the CPU that its trials saw on this device's host; None where none was looked at."""
        return best_laps_s(self.trials).get(self.job.machine.uuid or "")

    def after(self, trial: Trial) -> Snapshot:
        """Return the same with a trial finished."""
        others = (each for each in self.stored if each.number != trial.number)
        return replace(self, stored=tuple(sorted((*others, trial), key=lambda each: each.number)))
