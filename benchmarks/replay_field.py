"""A recorded landscape as a field to search on, and a run of one strategy there: trials, regrets, device seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from advisor.knobs import Situation
from advisor.measure.landscape import Landscape
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.trial import Trial, default_of
from advisor.quality.objections import objections
from advisor.search.cost import costs_beside, costs_of, launches_of, situations_of
from advisor.search.search import Knowledge

#: After how many trials regret is read.
DEPTHS = (4, 8, 16)

Strategy = Callable[["Field", Sequence[Trial], int], Configuration | None]


@dataclass(frozen=True)
class Field:
    """A landscape with what every strategy is told of it: what arithmetic predicts, and the order that follows from it."""

    name: str
    landscape: Landscape
    warm: Field | None = None

    @cached_property
    def costs(self) -> dict[Configuration, float]:
        """Predicted cost of each configuration, less is better."""
        return costs_of(self._situations, self.landscape.objective.aim)

    @cached_property
    def _situations(self) -> dict[Configuration, Situation]:
        it = self.landscape
        return situations_of(it.by_configuration, it.facts, it.workload, it.environment)

    @cached_property
    def admissible(self) -> list[Configuration]:
        """All recorded configurations, likeliest first."""
        return sorted(self.costs, key=lambda configuration: self.costs[configuration])

    @cached_property
    def scores(self) -> dict[Configuration, float]:
        """What each recorded configuration that may be recommended is worth, by all its samples; more is better."""
        aim = self.landscape.objective.aim
        return {t.requested: t.score(aim) for t in self.landscape.trials if self.usable(t) and t.score(aim) > 0}

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        return not objections(trial, None, self.landscape.objective, self.landscape.facts)

    def known(self, trials: Sequence[Trial], warm: Mapping[Configuration, float] | None = None) -> Knowledge:
        """Return all that advisor's search goes by. warm: what it learned elsewhere."""
        aim = self.landscape.objective.aim
        costs = costs_beside(self.costs, launches_of(self._situations, aim), default_of(trials))
        return Knowledge(self.admissible, trials, aim, costs, warm or {}, self.usable, self.landscape.facts.layers)

    def regret(self, trials: Sequence[Trial]) -> float:
        """How much better the best recorded configuration is than the best of these: 0.1 is 10 %; infinite without one."""
        held = [trial for trial in trials if self.usable(trial)]
        if not held:
            return math.inf
        best = max(held, key=lambda trial: trial.score(self.landscape.objective.aim))
        return max(self.scores.values()) / self.scores[best.requested] - 1


@dataclass(frozen=True)
class Run:
    """What one seed of a strategy did on a field: trials in order, regret after each, device seconds until each was over."""

    trials: tuple[Trial, ...]
    regrets: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def to_near_best_s(self) -> float:
        """Device seconds until it held a configuration within the tie zone of the best."""
        near = (s for s, regret in zip(self.seconds, self.regrets, strict=True) if regret <= TIE_ZONE)
        return next(near, math.inf)

    @property
    def wasted(self) -> float:
        """Share of the first trials that nothing came of."""
        first = self.trials[: DEPTHS[-1]]
        return fmean(t.outcome.is_failure or t.ran != t.requested for t in first)


def replayed(field: Field, strategy: Strategy, seed: int, least: int = DEPTHS[-1]) -> Run:
    """Run a strategy until it holds what is within the tie zone of the best, and `least` trials in any case."""
    trials: list[Trial] = []
    regrets: list[float] = []
    seconds: list[float] = []
    configuration: Configuration | None = field.landscape.baseline
    while configuration is not None:
        spent_s = field.landscape.seconds(configuration, trials[-1] if trials else None)
        trials.append(replace(field.landscape.drawn(configuration, str(seed)), number=len(trials), wall_s=spent_s))
        regrets.append(field.regret(trials))
        seconds.append(sum(seconds[-1:]) + spent_s)
        if len(trials) >= least and min(regrets) <= TIE_ZONE:
            break
        configuration = strategy(field, trials, seed)
    return Run(tuple(trials), tuple(regrets), tuple(seconds))
