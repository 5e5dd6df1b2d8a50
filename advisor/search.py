"""Which configuration next: the one that promises most for its time, by a model rebuilt from the stored trials.

Optuna is the engine and holds no state of ours: an in-memory study is made from the trials each time, so that a killed
tune goes on and several workers can share one study. The sampler is our own. TPE repeats points on a small categorical
space, can't be told what arithmetic says of a configuration, and learns nothing from a failure; GPSampler needs torch, and
does not know that some combinations are not admissible. benchmarks/replay.py compares with TPE on recorded landscapes.

The model: log(value) = log(predicted cost) + an effect of each choice + an effect of each pair of choices + a rest, all
normal (a Gaussian process whose kernel counts shared choices; Rasmussen and Williams, "Gaussian Processes for Machine
Learning", section 2.2). How wrong the prediction is, is not known before: three sizes of the effects are weighed by how
well each explains what was measured. What was learned on another workload enters as a second, correlated process, and how
much it counts is weighed in the same way, so that a neighbour of no use is ignored.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from advisor.configuration import Configuration
from advisor.measurement import TIE_ZONE
from advisor.objective import METRICS, Metric
from advisor.trial import Outcome, Trial

#: Standard deviations of log(value / predicted cost): of a choice's effect, of a pair's and of the rest, together about
#: 0.35 between two configurations (measurement.md, C.3). With any of them halved or doubled, searches were as long.
CHOICE, PAIR, REST = 0.25, 0.08, 0.04

#: How many times larger or smaller than that the prediction's errors may be on this model and this GPU.
SCALES = (0.5, 1.0, 2.0)

#: How much the errors on another workload may have to do with the errors here (correlations).
TRANSFERS = (0.0, 0.5, 0.9)

#: Standard deviation of a measurement's logarithm: about 1 % (measurement.md, "Stopping a trial's timing").
NOISE = 0.01

#: The search may end when the chance that anything left is better by more than the tie zone is below this. The model is
#: surer of itself than it should be where predictions are bad: of 40 made-up landscapes of that kind 3 ended too early at
#: 5 %, 2 at 2 %; where they are as good as is assumed, 3 of 120 and 1.
CHANCE = 0.02

#: But not before so many were measured: fewer do not show how wrong the prediction is.
LEAST_TRIALS = 5

#: Proposals that promise at least this share of the best one's gain are as good as it; the seed picks one.
_AS_GOOD = 0.99

#: Standard deviation of a trial's log seconds beside what its choices explain: some load the model, some find it loaded.
_SECONDS_NOISE = 0.2

#: Standard deviation of the level that predictions are off by as a whole: wide, for their unit is none.
_LEVEL = 5.0

Array = npt.NDArray[np.float64]
Usable = Callable[[Trial], bool]


def ask(  # noqa: PLR0913  (what is known is told by name)
    admissible: Sequence[Configuration],
    trials: Sequence[Trial],
    trials_left: int,
    seed: int,
    *,
    aim: Metric = METRICS["throughput"],
    costs: Mapping[Configuration, float] | None = None,
    warm: Mapping[Configuration, float] | None = None,
    usable: Usable | None = None,
) -> Configuration | None:
    """Return the configuration to try next, None when every admissible one was or no trial is left.

    admissible: likeliest first, which decides where nothing else does. costs: what arithmetic predicts of each, in any unit,
    less is better at `aim`. warm: what :func:`surprises` found on another workload. usable: whether a trial that ran may be
    recommended (default: all may); what may not is learned from, and is no best to be beaten. Whether a few trials are left or
    enough for all, the order is the same: an interruption finds the best found so far. Nothing is proposed twice, and what is
    running is taken to come out as predicted.
    """
    fresh = _fresh(admissible, trials)
    if not fresh or trials_left <= 0:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    everything = [*admissible, *(c for trial in trials for c in (trial.requested, trial.ran))]
    names = sorted({item for configuration in everything for item in configuration.items()})
    space: dict[str, BaseDistribution] = {
        knob: CategoricalDistribution([choice for name, choice in names if name == knob]) for knob, _ in names
    }
    model = _Model(fresh, costs or {}, warm or {})
    study = optuna.create_study(sampler=PosteriorSampler(model, space, random.Random(seed * 1000 + len(trials))))
    study.add_trials([frozen for trial in trials for frozen in _frozen(trial, space, aim, usable)])
    proposal = study.ask({knob: space[knob] for knob in fresh[0]})
    return Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})


def exhausted(
    admissible: Sequence[Configuration],
    trials: Sequence[Trial],
    *,
    aim: Metric = METRICS["throughput"],
    costs: Mapping[Configuration, float] | None = None,
    warm: Mapping[Configuration, float] | None = None,
    usable: Usable | None = None,
) -> bool:
    """Whether the chance that anything untried beats the best by more than the tie zone is below CHANCE.

    Then going on costs time and will most likely change nothing: a tune with a budget of time may stop. A suggestion, for it
    is the model's own opinion: the replay says how often it was wrong. Arguments as for :func:`ask`.
    """
    fresh = _fresh(admissible, trials)
    told = _Told.of(frozen for trial in trials for frozen in _frozen(trial, None, aim, usable))
    if not fresh:
        return True
    if len(told.values) < LEAST_TRIALS or math.isinf(told.best):
        return False
    model = _Model(fresh, costs or {}, warm or {})
    chances = model.chances(told)
    none = sum(
        belief.weight
        * float(np.prod(1 - chances * _below((told.best - math.log1p(TIE_ZONE) - belief.mean) / belief.deviation)))
        for belief in model.beliefs(told)
    )
    return 1 - none < CHANCE


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
        promises = self._model.promises(told)
        # The first is the likeliest of all that promise the same: without a measurement there is nothing to choose by.
        equals = [n for n, promise in enumerate(promises) if promise >= _AS_GOOD * promises.max()]
        chosen = self._source.choice(equals) if told.values else int(np.argmax(promises))
        return dict(self._model.candidates[chosen])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: a knob by itself is never sampled."""
        raise NotImplementedError(f"{param_name} is chosen with the other knobs")


@dataclass(frozen=True)
class _Told:
    """What the study's trials say: log values (less is better), log seconds that trials took, what is running, what failed.

    best: the least log value of what may be recommended; infinite where there is none.
    """

    values: tuple[tuple[Configuration, float], ...]
    seconds: tuple[tuple[Configuration, float], ...]
    running: tuple[Configuration, ...]
    failed: tuple[Configuration, ...]
    best: float

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> _Told:
        values, seconds, running, failed, best = [], [], [], [], math.inf
        for trial in trials:
            configuration = Configuration.of({knob: str(choice) for knob, choice in trial.params.items()})
            if trial.state is TrialState.RUNNING:
                running.append(configuration)
            elif trial.value is None:
                failed.append(configuration)
            else:
                values.append((configuration, trial.value))
                best = min(best, trial.value) if trial.user_attrs["counts"] else best
            if trial.user_attrs.get("seconds"):
                seconds.append((configuration, math.log(trial.user_attrs["seconds"])))
        return cls(tuple(values), tuple(seconds), tuple(running), tuple(failed), best)


@dataclass(frozen=True)
class _Belief:
    """One hypothesis: how likely it is, and what it says of each candidate's log value. mean, deviation: [candidates]."""

    weight: float
    mean: Array
    deviation: Array


class _Model:
    """The posterior of the candidates' log values, given what was told."""

    def __init__(
        self,
        candidates: Sequence[Configuration],
        costs: Mapping[Configuration, float],
        warm: Mapping[Configuration, float],
    ) -> None:
        self.candidates = candidates
        self._logs = {configuration: math.log(cost) for configuration, cost in costs.items()}
        # What nothing is predicted of counts as average: outside the space there is only the default, and old trials.
        self._unknown = float(np.mean(list(self._logs.values()))) if self._logs else 0.0
        self._warm = [(configuration, -math.log(ratio)) for configuration, ratio in warm.items() if ratio > 0]

    def promises(self, told: _Told) -> Array:
        """Return what each candidate promises: the expected improvement per second, times the chance that it runs.

        Expected improvement of log(value) (Jones, Schonlau and Welch 1998, equation 15), as a mean over the hypotheses, per
        second that the trial is expected to take (Snoek, Larochelle and Adams 2012, section 3.2). While there is nothing to
        improve on, the expected speed.
        """
        beliefs = self.beliefs(told)
        if math.isinf(told.best):
            mean = _mean(beliefs)
            speed: Array = np.exp(mean.min() - mean) * self.chances(told)
            return speed
        gains: Array = np.zeros(len(self.candidates))
        for belief in beliefs:
            z = (told.best - belief.mean) / belief.deviation
            density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            gains += belief.weight * belief.deviation * (z * _below(z) + density)
        return gains * self.chances(told) / self.seconds(told)

    def seconds(self, told: _Told) -> Array:
        """Return how long each candidate's trial is expected to take, by the choices it shares with the others: [candidates].

        Some choices cost minutes before the first round (compilation), and trials are not all equally long without them. That
        weights may be loaded already is left out: it saved nothing until loading took longer than all the rest of a trial.
        """
        if not told.seconds:
            return np.ones(len(self.candidates))
        observed = [configuration for configuration, _ in told.seconds]
        logs = np.array([seconds for _, seconds in told.seconds])
        among, across = _kernel(observed, observed), _kernel(self.candidates, observed)
        root = np.linalg.cholesky(among + _SECONDS_NOISE**2 * np.eye(len(observed)))
        weights = np.linalg.solve(root.T, np.linalg.solve(root, logs - logs.mean()))
        expected: Array = np.exp(np.clip(logs.mean() + across @ weights, logs.min(), logs.max()))
        return expected

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
        bad = Counter(pair for configuration in told.failed for pair in _pairs(configuration))
        worked = [configuration for configuration, _ in told.values if configuration not in told.failed]
        good = Counter(pair for configuration in worked for pair in _pairs(configuration) if pair in bad)
        works = {pair: _share(good[pair], failures, least=not most) for pair, failures in bad.items()}
        chances = np.ones(len(self.candidates))
        for number, candidate in enumerate(self.candidates):
            blamed = [pair for pair in _pairs(candidate) if pair in works]
            alone = [works[one, other] for one, other in blamed if one == other]
            pairs = [works[one, other] for one, other in blamed if one != other]
            chances[number] = min([*alone, *pairs, 1.0]) if most else math.prod(alone) * min([*pairs, 1.0])
        return chances

    def beliefs(self, told: _Told) -> list[_Belief]:
        """Return the hypotheses, weighed. What is running is taken to come out at its mean: only the doubt shrinks."""
        rows = list(told.values)
        if told.running:
            expected = _mean(self._beliefs(rows, told.running))
            rows += list(zip(told.running, map(float, expected), strict=True))
        return self._beliefs(rows, self.candidates)

    def _beliefs(
        self, rows: Sequence[tuple[Configuration, float]], candidates: Sequence[Configuration]
    ) -> list[_Belief]:
        """Return the hypotheses given these values, for these candidates; their weights add up to 1."""
        observed = [configuration for configuration, _ in (*rows, *self._warm)]
        errors = np.array([value - self._prior(c) for c, value in rows] + [value for _, value in self._warm])
        prior = np.array([self._prior(configuration) for configuration in candidates])
        here = np.array([True] * len(rows) + [False] * len(self._warm), dtype=bool)
        among, across = _kernel(observed, observed), _kernel(candidates, observed)
        alone = float(_kernel(candidates[:1], candidates[:1])[0, 0])
        found = []
        for scale in SCALES:
            for transfer in TRANSFERS if self._warm else (0.0,):
                same = here[:, None] == here[None, :]
                covariance = scale**2 * among * np.where(same, 1.0, transfer) + _LEVEL**2 * same
                root = np.linalg.cholesky(covariance + NOISE**2 * np.eye(len(observed)))
                towards = scale**2 * across * np.where(here, 1.0, transfer) + _LEVEL**2 * here
                white, projected = np.linalg.solve(root, errors), np.linalg.solve(root, towards.T)
                variance = scale**2 * alone + _LEVEL**2 - (projected**2).sum(axis=0)
                evidence = -0.5 * float(white @ white) - float(np.log(np.diag(root)).sum())
                found.append((evidence, prior + projected.T @ white, np.sqrt(np.maximum(variance, 1e-12))))
        most = max(evidence for evidence, _, _ in found)
        total = sum(math.exp(evidence - most) for evidence, _, _ in found)
        return [_Belief(math.exp(evidence - most) / total, mean, deviation) for evidence, mean, deviation in found]

    def _prior(self, configuration: Configuration) -> float:
        return self._logs.get(configuration, self._unknown)


def _mean(beliefs: Sequence[_Belief]) -> Array:
    """Return the hypotheses' mean log values, by their weights: [candidates]."""
    mean: Array = np.array([belief.weight for belief in beliefs]) @ np.array([belief.mean for belief in beliefs])
    return mean


def _kernel(rows: Sequence[Configuration], columns: Sequence[Configuration]) -> Array:
    """Return the covariance of the errors of prediction, [rows, columns]: by how many choices, and pairs, are shared."""
    items = {item: n for n, item in enumerate(sorted({item for c in (*rows, *columns) for item in c.items()}))}
    marked: list[Array] = [np.zeros((len(side), len(items))) for side in (rows, columns)]
    for side, marks in zip((rows, columns), marked, strict=True):
        for number, configuration in enumerate(side):
            marks[number, [items[item] for item in configuration.items()]] = 1.0
    shared: Array = marked[0] @ marked[1].T
    union = marked[0].sum(axis=1)[:, None] + marked[1].sum(axis=1)[None, :] - shared
    covariance: Array = CHOICE**2 * shared + PAIR**2 * shared * (shared - 1) / 2 + REST**2 * (shared == union)
    return covariance


def _pairs(configuration: Configuration) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return all pairs of choices, and each choice with itself."""
    return list(combinations_with_replacement(configuration.choices, 2))


def _share(good: int, bad: int, *, least: bool) -> float:
    """Return how likely something is to work: the share of the times that it did, one success added.

    least: where it never did, half for each failure, because it most likely never will.
    """
    return 0.5**bad if least and not good else (good + 1) / (good + bad + 1)


def _below(z: Array) -> Array:
    """Return the standard normal distribution function."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])


def _fresh(admissible: Sequence[Configuration], trials: Sequence[Trial]) -> list[Configuration]:
    """Return what was neither asked for nor measured under another name."""
    seen = {trial.requested for trial in trials} | {trial.effective for trial in trials if trial.outcome is Outcome.OK}
    return [configuration for configuration in admissible if configuration not in seen]


def _frozen(
    trial: Trial, space: dict[str, BaseDistribution] | None, aim: Metric, usable: Usable | None
) -> list[FrozenTrial]:
    """Return what Optuna is told of a trial: the log value of what ran, and a failure where it came to nothing.

    Both, where something else ran than was asked for, or where it may not be recommended: the figures count, and more of
    the same is not worth trying. A trial that was stopped early has a value and is never the best.
    """
    seconds = {"seconds": trial.wall_s}

    def told(configuration: Configuration, state: TrialState, value: float | None = None, **words: Any) -> FrozenTrial:
        known = space or {knob: CategoricalDistribution([choice]) for knob, choice in configuration.items()}
        distributions = {knob: known[knob] for knob in configuration}
        return create_trial(
            state=state, params=dict(configuration), distributions=distributions, value=value, user_attrs=words
        )

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
