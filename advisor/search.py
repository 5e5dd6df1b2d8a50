"""Which configuration next: the one that promises most for its time, by a model rebuilt from the stored trials.

Optuna is the engine and holds no state of ours: an in-memory study is made from the trials each time, so that a killed
tune goes on and several workers can share one study. The sampler is our own. TPE repeats points on a small categorical
space, can't be told what arithmetic says of a configuration, and learns nothing from a failure; GPSampler needs torch, and
does not know that some combinations are not admissible. benchmarks/replay.py compares with TPE on recorded landscapes.

What is believed of what was not measured is in posterior.py; here is what follows from it: what to try, and when to end.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from advisor.configuration import Configuration, stated
from advisor.measurement import TIE_ZONE
from advisor.metrics import METRICS, Metric, default_metric
from advisor.posterior import Array, Belief, Posterior, expected_seconds, mean_of
from advisor.trial import Outcome, Trial

#: The search may end when the chance that anything left is better by more than the tie zone is below this. It kept its word on
#: made-up landscapes: 9 of 1,000 ended too early, whether predictions were good or useless (docs/search.md).
CHANCE = 0.02

#: But not before so many were measured: fewer do not show how wrong the prediction is.
LEAST_TRIALS = 5

#: Why a search ended by itself (see End).
EVERYTHING, UNLIKELY = "everything was tried", "nothing untried is likely to be better"
PAYBACK = "more of it is expected to cost more than it saves"

#: Proposals that promise at least this share of the best one's gain are as good as it; the seed picks one.
_AS_GOOD = 0.99

#: Numbers this near to one another, relatively, are the same but for rounding.
_ROUNDING = 1e-9

Usable = Callable[[Trial], bool]


@dataclass(frozen=True)
class End:
    """Why a search may end: EVERYTHING, UNLIKELY, PAYBACK; the chance that it misses something better, and how many are left."""

    reason: str
    chance: float
    left: int


@dataclass(frozen=True)
class Promising:
    """A configuration that was not tried: how many times better than another it is predicted to be, and what it costs.

    ratio: None where nothing was measured to compare with; seconds: of its trial, None where none is known to have taken any.
    """

    configuration: Configuration
    ratio: float | None
    seconds: float | None


@dataclass(frozen=True)
class Knowledge:
    """All that a search goes by: it is a function of these alone.

    admissible: likeliest first, which decides where nothing else does. costs: what arithmetic predicts of each, in any unit,
    less is better at `aim`. warm: what :func:`surprises` found on another workload. usable: whether a trial that ran may be
    recommended (default: all may); what may not is learned from, and is no best to be beaten.
    """

    admissible: Sequence[Configuration]
    trials: Sequence[Trial]
    aim: Metric = field(default_factory=lambda: METRICS[default_metric()])
    costs: Mapping[Configuration, float] = field(default_factory=dict)
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    usable: Usable | None = None

    @property
    def fresh(self) -> list[Configuration]:
        """What was neither asked for nor measured under another name."""
        ran = {trial.effective for trial in self.trials if trial.outcome is Outcome.OK}
        seen = {trial.requested for trial in self.trials} | ran
        return [configuration for configuration in self.admissible if configuration not in seen]

    def ask(self, seed: int) -> Configuration | None:
        """Return the configuration to try next, None when every admissible one was tried.

        Whether a few trials are left or enough for all, the order is the same: an interruption finds the best found so far.
        Nothing is proposed twice, and what is running is taken to come out as predicted.
        """
        fresh = self.fresh
        if not fresh:
            return None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        everything = [*self.admissible, *(c for trial in self.trials for c in (trial.requested, trial.ran))]
        space = _distributions(everything, stated(everything))
        source = random.Random(seed * 1000 + len(self.trials))
        study = optuna.create_study(sampler=PosteriorSampler(self._model(fresh), space, source))
        study.add_trials(self._frozen(space))
        proposal = study.ask({knob: space[knob] for knob in space if any(knob in c for c in fresh)})
        return Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})

    def chance_of_better(self) -> float | None:
        """Return how likely anything untried is to beat the best by more than the tie zone; None while there is no saying.

        There is none before LEAST_TRIALS were measured, nor without one that may be recommended.
        """
        fresh, told = self.fresh, self._told
        if not fresh:
            return 0.0
        if len({configuration for configuration, _ in told.values}) < LEAST_TRIALS or math.isinf(told.best):
            return None
        return self._model(fresh).chance_of_better(told)

    def ending(self, payback_s: float | None = None) -> End | None:
        """Return why the search may end although there is time, None while going on is worth it.

        A suggestion, for it is the model's own opinion: the replay says how often it was wrong. payback_s: seconds of work that
        are to pay for the search (Budget.payback_s).
        """
        left = len(self.fresh)
        if not left:
            return End(EVERYTHING, 0.0, 0)
        chance = self.chance_of_better()
        if chance is None:
            return None
        if chance < CHANCE:
            return End(UNLIKELY, chance, left)
        return End(PAYBACK, chance, left) if payback_s is not None and self._saved_per_s(payback_s) < 1 else None

    def _saved_per_s(self, work_s: float) -> float:
        """Return the seconds of work that a second of the search is expected to save, by the untried one that promises most.

        An improvement of a logarithm by a little is that share of the work; what a trial takes is in the promise already.
        """
        fresh, told = self.fresh, self._told
        return work_s * float(self._model(fresh).promises(told).max()) if told.seconds else math.inf

    def within(self, seconds: float) -> Knowledge:
        """Return the same with those untried ones alone whose trials are expected to take no longer; all if nothing is known."""
        fresh, told = self.fresh, self._told
        expected = expected_seconds(fresh, told.seconds) if fresh else None
        if expected is None:
            return self
        return replace(self, admissible=[c for c, each_s in zip(fresh, expected, strict=True) if each_s <= seconds])

    def promising(self, count: int, than: Configuration | None = None) -> list[Promising]:
        """Return the `count` untried ones that promise most, the next to be tried first (but for the seed's choice of equals).

        than: what the ratios are over, the default for one; without it, the best that was measured.
        """
        fresh, told = self.fresh, self._told
        if not fresh:
            return []
        model = self._model(fresh)
        order = np.argsort(-model.promises(told), kind="stable")[:count]
        ratios, seconds = model.ratios(told, than or told.holder), expected_seconds(fresh, told.seconds)
        return [
            Promising(
                fresh[n],
                None if ratios is None else float(ratios[n]),
                None if seconds is None else float(seconds[n]),
            )
            for n in map(int, order)
        ]

    @property
    def _told(self) -> _Told:
        return _Told.of(self._frozen(None))

    def _model(self, candidates: Sequence[Configuration]) -> _Model:
        return _Model(candidates, self.costs, self.warm)

    def _frozen(self, space: dict[str, BaseDistribution] | None) -> list[FrozenTrial]:
        return [frozen for trial in self.trials for frozen in _frozen(trial, space, self.aim, self.usable)]


def surprises(trials: Iterable[Trial], aim: Metric, costs: Mapping[Configuration, float]) -> dict[Configuration, float]:
    """Return how much better than predicted each configuration did, relative to the others: 1.1 is 10 % better.

    trials, costs: of another workload. It is this ratio that carries over, not the one over the default: what arithmetic
    already says of the difference between the workloads (longer sequences, more pads) would else be held against it. Only
    what was predicted is in the result.
    """
    found = {t.ran: t.score(aim) * costs[t.ran] for t in trials if t.score(aim) > 0 and t.ran in costs}
    if not found:
        return {}
    level = math.exp(sum(map(math.log, found.values())) / len(found))
    return {configuration: value / level for configuration, value in found.items()}


class PosteriorSampler(BaseSampler):
    """An Optuna sampler that proposes whole configurations: the untried one with the largest expected improvement."""

    def __init__(self, model: _Model, space: dict[str, BaseDistribution], source: random.Random) -> None:
        """Propose among the model's candidates. space: Optuna's distributions; source: picks among equals."""
        self._model, self._space, self._source = model, space, source

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002  (Optuna's signature)
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return all knobs: they are chosen together, because not every combination is admissible."""
        return self._space

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002  (Optuna's signature)
    ) -> dict[str, Any]:
        """Return the choices of the next configuration."""
        told = _Told.of(t for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        return dict(self._model.candidates[self._source.choice(self._model.equals(told))].over(self._space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: a knob by itself is never sampled."""
        raise NotImplementedError(f"{param_name} is chosen with the other knobs")


@dataclass(frozen=True)
class _Told:
    """What the study's trials say: log values (less is better), seconds that trials took, what is running, what failed.

    best, holder: the least log value of what may be recommended, and what has it; infinite and None where there is none.
    """

    values: tuple[tuple[Configuration, float], ...]
    seconds: tuple[tuple[Configuration, float], ...]
    running: tuple[Configuration, ...]
    failed: tuple[Configuration, ...]
    best: float
    holder: Configuration | None

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> _Told:
        values, seconds, running, failed = [], [], [], []
        best, holder = math.inf, None
        for trial in trials:
            configuration = Configuration.of({knob: str(choice) for knob, choice in trial.params.items()})
            if trial.state is TrialState.RUNNING:
                running.append(configuration)
            elif trial.value is None:
                failed.append(configuration)
            else:
                values.append((configuration, trial.value))
                if trial.user_attrs["counts"] and trial.value < best:
                    best, holder = trial.value, configuration
            if trial.user_attrs.get("seconds"):
                seconds.append((configuration, trial.user_attrs["seconds"]))
        return cls(tuple(values), tuple(seconds), tuple(running), tuple(failed), best, holder)

    @property
    def shows_errors(self) -> bool:
        """Whether anything shows how wrong predictions are: two measured ones do, for the level of one is no error."""
        return len({configuration for configuration, _ in self.values}) > 1


class _Model:
    """What candidates promise, given what was told."""

    def __init__(
        self,
        candidates: Sequence[Configuration],
        costs: Mapping[Configuration, float],
        warm: Mapping[Configuration, float],
    ) -> None:
        self.candidates = candidates
        self._costs = costs
        self._warm = [(configuration, -math.log(ratio)) for configuration, ratio in warm.items() if ratio > 0]

    def beliefs(self, told: _Told, candidates: Sequence[Configuration] | None = None) -> list[Belief]:
        """Return what is believed of the candidates, or of others."""
        return Posterior(self._costs, self._warm, told.values, told.running).beliefs(candidates or self.candidates)

    def promises(self, told: _Told) -> Array:
        """Return what each candidate promises: the expected improvement per second, times the chance that it runs.

        Expected improvement of log(value) (Jones, Schonlau and Welch 1998, equation 15), as a mean over the hypotheses, per
        second that the trial is expected to take (Snoek, Larochelle and Adams 2012, section 3.2). While nothing shows how
        wrong predictions are, or there is nothing to improve on, the expected speed: the predicted best is tried first.
        """
        beliefs, seconds = self.beliefs(told), expected_seconds(self.candidates, told.seconds)
        worth = self.chances(told) / (1.0 if seconds is None else seconds)
        if not told.shows_errors or math.isinf(told.best):
            mean = mean_of(beliefs)
            speed: Array = np.exp(mean.min() - mean) * worth
            return speed
        gains: Array = np.zeros(len(self.candidates))
        for belief in beliefs:
            z = (told.best - belief.mean) / belief.deviation
            density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            gains += belief.weight * belief.deviation * (z * _below(z) + density)
        return gains * worth

    def equals(self, told: _Told) -> list[int]:
        """Return the candidates among which the seed may pick: those that promise as much as the best.

        The first, the likeliest of all, where nothing was measured. After one measurement those that have most in common
        with it: the fewer of its choices are new, the likelier a configuration does as predicted.
        """
        promises = self.promises(told)
        alike = 1 - _ROUNDING if not told.shows_errors else _AS_GOOD
        equals = [n for n, promise in enumerate(promises) if promise >= alike * promises.max()]
        if not told.values:
            return equals[:1]
        if not told.shows_errors:
            doubts = sum(belief.weight * belief.deviation[equals] for belief in self.beliefs(told))
            least = np.min(doubts) * (1 + _ROUNDING)
            return [n for n, doubt in zip(equals, np.atleast_1d(doubts), strict=True) if doubt <= least]
        return equals

    def ratios(self, told: _Told, than: Configuration | None) -> Array | None:
        """Return how many times better than another each candidate is expected to be; None where nothing was measured."""
        if than is None or not told.values:
            return None
        mean = mean_of(self.beliefs(told, [*self.candidates, than]))
        ratios: Array = np.exp(mean[-1] - mean[:-1])
        return ratios

    def chance_of_better(self, told: _Told) -> float:
        """Return how likely any candidate is to beat the best by more than the tie zone, each on its own account."""
        goal, chances, none = told.best - math.log1p(TIE_ZONE), self.chances(told, most=True), 0.0
        for belief in self.beliefs(told):
            none += belief.weight * float(np.prod(1 - chances * _below((goal - belief.mean) / belief.deviation)))
        return 1 - none

    def chances(self, told: _Told, *, most: bool = False) -> Array:
        """Return how likely each candidate is to run, as itself, and to be usable: [candidates].

        Something about a failure is to blame, a choice or a pair of them: a configuration's chance is that of all its
        choices together, times that of its worst pair. most: that of the worst choice or pair alone, which is the most that
        can be said for it: a search is not to end because of what might fail.
        """
        worked = [configuration for configuration, _ in told.values if configuration not in told.failed]
        knobs = stated([*told.failed, *worked, *self.candidates])
        bad = Counter(pair for configuration in told.failed for pair in _pairs(configuration, knobs))
        good = Counter(pair for configuration in worked for pair in _pairs(configuration, knobs) if pair in bad)
        works = {pair: _share(good[pair], failures, least=not most) for pair, failures in bad.items()}
        chances = np.ones(len(self.candidates))
        for number, candidate in enumerate(self.candidates):
            blamed = [pair for pair in _pairs(candidate, knobs) if pair in works]
            alone = [works[one, other] for one, other in blamed if one == other]
            pairs = [works[one, other] for one, other in blamed if one != other]
            chances[number] = min([*alone, *pairs, 1.0]) if most else math.prod(alone) * min([*pairs, 1.0])
        return chances


def _pairs(configuration: Configuration, knobs: Sequence[str]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return all pairs of a configuration's choices of these knobs, and each choice with itself."""
    return list(combinations_with_replacement(configuration.over(knobs), 2))


def _distributions(configurations: Sequence[Configuration], knobs: Sequence[str]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each knob: the choices that these have of it, implied ones too."""
    items = sorted({item for configuration in configurations for item in configuration.over(knobs)})
    return {knob: CategoricalDistribution([choice for name, choice in items if name == knob]) for knob in knobs}


def _share(good: int, bad: int, *, least: bool) -> float:
    """Return how likely something is to work: the share of the times that it did, one success added.

    least: where it never did, half for each failure, because it most likely never will.
    """
    return 0.5**bad if least and not good else (good + 1) / (good + bad + 1)


def _below(z: Array) -> Array:
    """Return the standard normal distribution function."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])


def _frozen(
    trial: Trial, space: dict[str, BaseDistribution] | None, aim: Metric, usable: Usable | None
) -> list[FrozenTrial]:
    """Return what Optuna is told of a trial: the log value of what ran, and a failure where it came to nothing.

    Both, where something else ran than was asked for, or where it may not be recommended: the figures count, and more of
    the same is not worth trying. A trial that was stopped early has a value and is never the best.
    """
    seconds = {"seconds": trial.wall_s}

    def told(configuration: Configuration, state: TrialState, value: float | None = None, **words: Any) -> FrozenTrial:
        known = space or _distributions([configuration], stated([configuration]))
        params = dict(configuration.over(known))
        distributions = {knob: known[knob] for knob in params}
        return create_trial(state=state, params=params, distributions=distributions, value=value, user_attrs=words)

    if trial.outcome is Outcome.RUNNING:
        return [told(trial.requested, TrialState.RUNNING)]
    score = trial.score(aim)
    if trial.outcome.is_failure or score <= 0:
        return [told(trial.requested, TrialState.FAIL, **seconds)]
    counts = trial.outcome is Outcome.OK and (usable is None or usable(trial))
    value = -math.log(score)
    if trial.ran == trial.requested and (counts or trial.outcome is Outcome.PRUNED):
        return [told(trial.ran, TrialState.COMPLETE, value, counts=counts, **seconds)]
    return [
        told(trial.ran, TrialState.COMPLETE, value, counts=counts),
        told(trial.requested, TrialState.FAIL, **seconds),
    ]
