"""What a tune works on: its job, and the study with all that stays the same from trial to trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.answer import SearchEnd
from advisor.clock import Clock
from advisor.configuration import Configuration
from advisor.environment import Machine
from advisor.judge import limits_of, objections
from advisor.knobs import Reason
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.runner import Runner
from advisor.space import Space
from advisor.store import Store
from advisor.trial import Outcome, Trial, default_of
from advisor.workloads import Workload

#: A running trial is given up for lost this long after its deadline (seconds): loading the reference comes before it.
LEASE_SLACK_S = 3600.0

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
    texts: Mapping[str, Any] | None = None
    began: float | None = None
    flags: str = ""


@dataclass
class Tuning:
    """A study being worked on: what stays the same from trial to trial.

    first: the number of the first trial of this invocation. What failed before it is tried again: a failure may have been the
    moment's (someone else's memory, a busy machine) and is not cached for ever. ran: whether it has run any. end: how its
    search ended.
    """

    job: Job
    store: Store
    runner: Runner
    listen: Listener
    facts: ModelFacts
    space: Space
    study: int
    folder: Path
    clock: Clock = field(default_factory=Clock)
    aliases: list[Reason] = field(default_factory=list)
    reference: str = ""
    first: int = 0
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    ran: bool = False
    end: SearchEnd | None = None

    @property
    def trials(self) -> list[Trial]:
        """The trials of the study, as stored, without the failures of earlier invocations; a wrong output stays wrong.

        Nor what was cut: nothing is known of it.
        """
        return [
            trial
            for trial in self.store.trials(self.study)
            if trial.outcome is not Outcome.CUT
            and (trial.number >= self.first or not trial.outcome.is_failure or trial.outcome is Outcome.WRONG_OUTPUT)
        ]

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        if trial.phase != "search":
            return False
        limits = limits_of(self.job.workload)
        return not objections(trial, self.default, self.job.objective, self.facts, limits=limits)

    @property
    def default(self) -> Trial | None:
        """The newest search trial of the model's default that ran, right or wrong; None before it did."""
        return default_of(self.trials)

    @property
    def reference_path(self) -> Path:
        """The file that the worker writes the reference to."""
        return self.folder / "reference.pt"

    @property
    def baseline(self) -> Configuration:
        """What runs as the default, which everything is compared with."""
        default = self.default
        return default.ran if default is not None else self.space.baseline

    def lease_s(self, runs: int = 1) -> float:
        """How long started trials are ours. runs: how many of them one request runs."""
        return self.job.trial_timeout_s * runs + LEASE_SLACK_S

    @property
    def timeout_s(self) -> float:
        """The deadline of the next run; what is left of the budget is the runner's to see to."""
        return self.job.trial_timeout_s

    @property
    def is_over(self) -> bool:
        """Whether the budget's time is spent."""
        return self.clock.is_over
