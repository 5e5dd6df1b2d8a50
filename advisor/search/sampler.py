"""Optuna, the engine of the search: a study rebuilt from the stored trials each time, and a sampler of our own that is asked.

It holds no state of ours, so that a killed tune goes on and several workers can share one study. TPE repeats points on a small
categorical space, can't be told what arithmetic says of a configuration, and learns nothing from a failure; GPSampler needs
torch, and does not know that some combinations are not admissible. benchmarks/replay.py compares with TPE on recorded landscapes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.metrics import Metric
from advisor.nouns.trial import Outcome, Trial, best_laps_s
from advisor.search.acquisition import Acquisition, Told
from advisor.search.posterior import NOISE

#: Whether a trial that ran may be recommended.
Usable = Callable[[Trial], bool]


def told_by(trials: Sequence[Trial], aim: Metric, usable: Usable | None) -> Told:
    """Return what stored trials say. aim: what their values are of; usable: as for :class:`advisor.search.search.Knowledge`."""
    best_s = best_laps_s(trials)
    return _told_of(frozen for trial in trials for frozen in _frozen(trial, aim, usable, best_s))


def proposed(
    candidates: Acquisition,
    admissible: Iterable[Configuration],
    trials: Sequence[Trial],
    aim: Metric,
    usable: Usable | None,
    seed: int,
) -> Configuration:
    """Return the one of the candidates that Optuna asks for next. seed: picks among equals."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    everything = [*admissible, *(c for trial in trials for c in (trial.requested, trial.ran))]
    space = _distributions(everything, stated(everything))
    source = random.Random(seed * 1000 + len(trials))
    study = optuna.create_study(sampler=PosteriorSampler(candidates, space, source))
    best_s = best_laps_s(trials)
    study.add_trials([frozen for trial in trials for frozen in _frozen(trial, aim, usable, best_s, space)])
    proposal = study.ask({knob: space[knob] for knob in space if any(knob in c for c in candidates.candidates)})
    return Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})


class PosteriorSampler(BaseSampler):
    """An Optuna sampler that proposes whole configurations: the untried one with the largest expected improvement."""

    def __init__(self, model: Acquisition, space: dict[str, BaseDistribution], source: random.Random) -> None:
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
        told = _told_of(t for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        return dict(self._model.candidates[self._source.choice(self._model.equals(told))].over(self._space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: a knob by itself is never sampled."""
        raise NotImplementedError(f"{param_name} is chosen with the other knobs")


def _told_of(trials: Iterable[FrozenTrial]) -> Told:
    """Read Optuna's trials."""
    values, seconds, running, failed, noises = [], [], [], [], []
    best, holder = math.inf, None
    for trial in trials:
        configuration = Configuration.of({knob: str(choice) for knob, choice in trial.params.items()})
        if trial.state is TrialState.RUNNING:
            running.append(configuration)
        elif trial.value is None:
            failed.append(configuration)
        else:
            values.append((configuration, trial.value))
            noises.append(trial.user_attrs["noise"])
            if trial.user_attrs["counts"] and trial.value < best:
                best, holder = trial.value, configuration
        if trial.user_attrs.get("seconds"):
            seconds.append((configuration, trial.user_attrs["seconds"]))
    return Told(tuple(values), tuple(seconds), tuple(running), tuple(failed), best, holder, tuple(noises))


def _frozen(
    trial: Trial,
    aim: Metric,
    usable: Usable | None,
    best_s: Mapping[str, float],
    space: dict[str, BaseDistribution] | None = None,
) -> list[FrozenTrial]:
    """Return what Optuna is told of a trial: the log value of what ran, and a failure where it came to nothing.

    best_s: of :func:`advisor.nouns.trial.best_laps_s`, over all trials.

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
    words = {
        "counts": counts,
        "noise": max(NOISE, trial.scatter(best_s.get(trial.device_uuid))) if aim.is_of_time else NOISE,
    }
    if trial.ran == trial.requested and (counts or trial.outcome is Outcome.PRUNED):
        return [told(trial.ran, TrialState.COMPLETE, value, **words, **seconds)]
    return [
        told(trial.ran, TrialState.COMPLETE, value, **words),
        told(trial.requested, TrialState.FAIL, **seconds),
    ]


def _distributions(configurations: Sequence[Configuration], knobs: Sequence[str]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each knob: the choices that these have of it, implied ones too."""
    items = sorted({item for configuration in configurations for item in configuration.over(knobs)})
    return {knob: CategoricalDistribution([choice for name, choice in items if name == knob]) for knob in knobs}
