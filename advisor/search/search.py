"""Which configuration next: the one that promises most for its time, by a model rebuilt from the stored trials.

What is believed of what was not measured is in posterior.py, what that promises in acquisition.py, and sampler.py picks with
Optuna; here is what follows from it: what to try, and when to end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from advisor.knobs import compiles
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import METRICS, Metric, default_metric
from advisor.nouns.trial import Outcome, Trial
from advisor.search.acquisition import Acquisition, Told
from advisor.search.posterior import Array
from advisor.search.sampler import Usable, proposed, told_by

#: The search may end when the chance that anything left is better by more than the tie zone is below this. It kept its word on
#: made-up landscapes: 9 of 1,000 ended too early, whether predictions were good or useless (docs/search.md).
CHANCE = 0.02

#: But not before so many were measured: fewer do not show how wrong the prediction is.
LEAST_TRIALS = 5

#: What an expected time may be off by, for it comes of logarithms: a trial is expected to take as long as the one that was seen.
_ROUNDING = 1e-9

#: What compiles does so in its trial, again in the blocks that confirm it, and again when the work begins.
_COMPILED = 3.0

#: The layers of a model of which nothing is said: BERT-base's.
USUAL_LAYERS = 12

#: Why a search ended by itself (see End).
EVERYTHING, UNLIKELY = "everything was tried", "nothing untried is likely to be better"
PAYBACK = "more of it is expected to cost more than it saves"


@dataclass(frozen=True)
class End:
    """Why a search may end: EVERYTHING, UNLIKELY, PAYBACK; the chance that it misses something better, and how many are left.

    chance: None where too little was measured to say.
    """

    reason: str
    chance: float | None
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
    recommended (default: all may); what may not is learned from, and is no best to be beaten. layers: of the model, which what
    compiling takes goes by.
    """

    admissible: Sequence[Configuration]
    trials: Sequence[Trial]
    aim: Metric = field(default_factory=lambda: METRICS[default_metric()])
    costs: Mapping[Configuration, float] = field(default_factory=dict)
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    usable: Usable | None = None
    layers: int = USUAL_LAYERS

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
        return proposed(self._model(fresh), self.admissible, self.trials, self.aim, self.usable, seed)

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
        if payback_s is not None and not self._can_pay(payback_s):
            return End(PAYBACK, chance, left)
        if chance is None:
            return None
        if chance < CHANCE:
            return End(UNLIKELY, chance, left)
        return End(PAYBACK, chance, left) if payback_s is not None and self._saved_per_s(payback_s) < 1 else None

    def _can_pay(self, work_s: float) -> bool:
        """Whether an untried one can save what its trial costs: of so much work not more can be saved than all of it.

        While nothing is right that ran, seconds are not what is looked for.
        """
        fresh, told = self.fresh, self._told
        if math.isinf(told.best):
            return True
        expected = told.expected_s(fresh, self.layers)
        return expected is None or float(min(expected)) < work_s

    def _saved_per_s(self, work_s: float) -> float:
        """Return the seconds of work that a second of the search is expected to save, by the untried one that promises most.

        An improvement of a logarithm by a little is that share of the work; what a trial takes is in the promise already.
        """
        fresh, told = self.fresh, self._told
        return float(self._saving(work_s, fresh, told).max()) if told.seconds else math.inf

    def _saving(self, work_s: float, fresh: Sequence[Configuration], told: Told) -> Array:
        """Return the seconds of so much work that are expected to be saved, for each that each one's trial costs: [fresh]."""
        costs = np.array([_COMPILED if compiles(configuration) else 1.0 for configuration in fresh])
        saving: Array = work_s * self._model(fresh).promises(told) / costs
        return saving

    def worth(self, work_s: float) -> Knowledge:
        """Return the same with those untried ones alone that are expected to save, of so much work, what they cost.

        Where that is none, with those that are expected to cost no more than a trial has by now, if any. All while nothing shows
        how wrong predictions are.
        """
        fresh, told = self.fresh, self._told
        expected = told.expected_s(fresh, self.layers) if fresh else None
        if expected is None or not told.shows_errors or math.isinf(told.best):
            return self
        saved_per_s, longest_s = self._saving(work_s, fresh, told), max(spent for _, spent in told.seconds)
        paying = [c for c, each in zip(fresh, saved_per_s, strict=True) if each >= 1]
        short = [c for c, each_s in zip(fresh, expected, strict=True) if each_s <= longest_s]
        return replace(self, admissible=paying or short)

    def within(self, seconds: float) -> Knowledge:
        """Return the same with those untried ones alone whose trials are expected to take no longer; all if nothing is known."""
        fresh, told = self.fresh, self._told
        expected = told.expected_s(fresh, self.layers) if fresh else None
        if expected is None:
            return self
        most_s = seconds * (1 + _ROUNDING)
        return replace(self, admissible=[c for c, each_s in zip(fresh, expected, strict=True) if each_s <= most_s])

    def promising(self, count: int, than: Configuration | None = None) -> list[Promising]:
        """Return the `count` untried ones that promise most: what is tried next, but for the seed's choice of equals.

        And but for what does not pay, where that ends a search. than: what the ratios are over, the default for one; without it,
        the best that was measured.
        """
        fresh, told = self.fresh, self._told
        if not fresh:
            return []
        model = self._model(fresh)
        order = np.argsort(-model.promises(told), kind="stable")[:count]
        ratios, seconds = model.ratios(told, than or told.holder), told.expected_s(fresh, self.layers)
        return [
            Promising(
                fresh[n],
                None if ratios is None else float(ratios[n]),
                None if seconds is None else float(seconds[n]),
            )
            for n in map(int, order)
        ]

    @property
    def _told(self) -> Told:
        return told_by(self.trials, self.aim, self.usable)

    def _model(self, candidates: Sequence[Configuration]) -> Acquisition:
        return Acquisition(candidates, self.costs, self.warm, self.layers)


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
