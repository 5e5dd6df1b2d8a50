"""A plan: what a tune would try, in which order, and how long that would take. Nothing is measured.

The search's own modules are imported where they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from advisor.advice.recommendation import reason_payload
from advisor.knobs import compiles, compiling_s, known_choices
from advisor.measure.runner import Runner
from advisor.nouns.configuration import Configuration
from advisor.storage.store import Store

if TYPE_CHECKING:  # tune brings Optuna
    from advisor.search.space import Space
    from advisor.study.tuning import Job


@dataclass(frozen=True)
class Usual:
    """What trials took, in seconds, by what was asked for. Never empty."""

    walls: tuple[tuple[Configuration, float], ...]

    @cached_property
    def plain_s(self) -> float:
        """The median of what compiles nothing; of all, where all of it compiled."""
        plain = [seconds for configuration, seconds in self.walls if not compiles(configuration)]
        return median(plain or [seconds for _, seconds in self.walls])

    def of(self, configuration: Configuration, layers: int) -> float:
        """Return what a trial is expected to take: as others took that compile by the same choices, else as these expect it.

        layers: of the model.
        """
        ways = _ways(configuration)
        if not ways:
            return self.plain_s
        alike = [seconds for other, seconds in self.walls if _ways(other) == ways]
        return median(alike) if alike else self.plain_s + compiling_s(configuration, layers)


def _ways(configuration: Configuration) -> list[tuple[str, str]]:
    """Return the choices of a configuration that compile."""
    return [(choice.knob, choice.name) for choice in known_choices(configuration) if choice.compiles]


@dataclass(frozen=True)
class Plan:
    """What a tune would try and how long that would take. usual: what trials took here, None where none is stored."""

    job: Job
    space: Space
    usual: Usual | None

    @property
    def order(self) -> tuple[Configuration, ...]:
        """The default, then what is admissible by predicted speed, and last what is tried on the best of it first.

        What is measured changes the order.
        """
        return tuple(dict.fromkeys((self.space.baseline, *self._early, *self.space.admissible)))

    @property
    def late(self) -> int:
        """How many are tried last, on the best of the others first; none where everything is tried."""
        from advisor.search.late import opened

        early = opened(self.space.admissible, (), self.job.objective.aim)
        return 0 if self.job.budget.exhaustive else len(self.space.admissible) - len(early)

    @cached_property
    def _early(self) -> list[Configuration]:
        from advisor.search.late import opened

        return opened(self.space.admissible, (), self.job.objective.aim, costs=self.space.costs)

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
    def adds_default(self) -> bool:
        """Whether the default is measured beside what is admissible."""
        return self.space.baseline not in self.space.admissible

    @property
    def trial_s(self) -> float | None:
        """Seconds that a trial takes which compiles nothing; None before the first one."""
        return None if self.usual is None else self.usual.plain_s

    @property
    def compiled_s(self) -> tuple[float, ...]:
        """Seconds that the trials take of what compiles; none before the first trial of anything."""
        compiling = [c for c in self.order[: self.searched] if compiles(c)]
        return () if self.usual is None else tuple(map(self._usually_s, compiling))

    @property
    def seconds(self) -> float | None:
        """How long all of it would take, the budget's time aside; None before the first trial.

        A finalist is taken to be like the average of what is searched: which they are nobody knows.
        """
        if self.usual is None:
            return None
        searched = [self._usually_s(configuration) for configuration in self.order[: self.searched]]
        blocks = self.job.budget.blocks if self.confirming else 0
        finalists = self.confirming - blocks
        return (
            sum(searched)
            + blocks * self._usually_s(self.space.baseline)
            + finalists * mean(searched or [self.usual.plain_s])
        )

    def _usually_s(self, configuration: Configuration) -> float:
        return 0.0 if self.usual is None else self.usual.of(configuration, self.space.layers)

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
            "compiled_trials": len(self.compiled_s),
            "compiled_trial_s": mean(self.compiled_s) if self.compiled_s else None,
            "seconds": self.seconds,
        }


def plan(job: Job, runner: Runner, usual: Usual | None) -> Plan:
    """Read the model's facts and return what a tune would try. Nothing is measured and nothing is stored."""
    from advisor.search.space import refuse_nothing_left
    from advisor.study.opening import facts_for, job_space, refuse_too_large

    facts = facts_for(job, runner)
    space = job_space(job, facts)
    refuse_too_large(job, facts, space)
    refuse_nothing_left(job.objective, len(space.admissible), space.refusals)
    return Plan(job, space, usual)


def usual_seconds(store: Store, architecture_key: str, environment_key: str) -> Usual | None:
    """Return what the trials of an architecture took in an environment; None where none was run."""
    here = (study for study in store.studies(architecture_key) if study.environment_key == environment_key)
    ran = [trial for study in here for trial in store.trials(study.id, readable=True)]
    walls = tuple((trial.requested, trial.wall_s) for trial in ran if trial.wall_s)
    return Usual(walls) if walls else None
