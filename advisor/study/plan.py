"""A plan: what a tune would try, in which order, and how long that would take. Nothing is measured.

The search's own modules are imported where they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

from advisor.advice.recommendation import reason_payload
from advisor.measure.runner import Runner
from advisor.nouns.configuration import Configuration
from advisor.storage.store import Store

if TYPE_CHECKING:  # tune brings Optuna
    from advisor.search.space import Space
    from advisor.study.tuning import Job


@dataclass(frozen=True)
class Plan:
    """What a tune would try and how long that would take. trial_s: seconds a trial took here, None where none is stored."""

    job: Job
    space: Space
    trial_s: float | None

    @property
    def order(self) -> tuple[Configuration, ...]:
        """The default, then what is admissible by predicted speed, and last what is tried on the best of it first.

        What is measured changes the order.
        """
        return tuple(dict.fromkeys((self.space.baseline, *self._early, *self.space.admissible)))

    @property
    def late(self) -> int:
        """How many are tried last, on the best of the others first; none where everything is tried."""
        return 0 if self.job.budget.exhaustive else len(self.space.admissible) - len(self._early)

    @cached_property
    def _early(self) -> list[Configuration]:
        from advisor.search.late import opened

        return opened(self.space.admissible, (), self.job.objective.aim)

    @property
    def searched(self) -> int:
        """How many configurations the budget's trials allow."""
        return len(self.order) if self.job.budget.trials is None else min(self.job.budget.trials, len(self.order))

    @property
    def confirming(self) -> int:
        """How many runs the confirmation takes at most: the default and the finalists in every block."""
        from advisor.study.confirm import FINALISTS

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


def plan(job: Job, runner: Runner, trial_s: float | None) -> Plan:
    """Read the model's facts and return what a tune would try. Nothing is measured and nothing is stored."""
    from advisor.search.space import refuse_nothing_left
    from advisor.study.opening import facts_for, job_space, refuse_too_large

    facts = facts_for(job, runner)
    space = job_space(job, facts)
    refuse_too_large(job, facts, space)
    refuse_nothing_left(job.objective, len(space.admissible), space.refusals)
    return Plan(job, space, trial_s)


def usual_trial_s(store: Store, architecture_key: str, environment_key: str) -> float | None:
    """Return the median seconds of what was run of an architecture in an environment; None where nothing was."""
    here = (study for study in store.studies(architecture_key) if study.environment_key == environment_key)
    walls = [trial.wall_s for study in here for trial in store.trials(study.id, readable=True) if trial.wall_s]
    return median(walls) if walls else None
