"""What the replay compares: advisor's search, cold and warm, the order of the prior, chance, and Optuna's TPE and GP samplers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from replay_field import Field, replayed

from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.trial import Outcome, Trial
from advisor.search.search import surprises

#: How many trials of the neighbour a warm start knows, about what a tune of ten minutes leaves behind.
WARM_TRIALS = 12

#: Optuna's samplers are asked as TPE was before the search had a model of its own: after so many of the likeliest.
STARTUP = 4

#: TPE is asked up to so often for what was not tried yet.
TPE_ASKS = 64


def ours(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Ask advisor's search, cold."""
    return field.known(trials).ask(seed)


def warm(
    field: Field, trials: Sequence[Trial], seed: int, learned: dict[int, dict[Configuration, float]]
) -> Configuration | None:
    """Ask advisor's search with what it learned on the neighbour; learned: by seed, filled in when it is first needed."""
    if seed not in learned:
        assert field.warm is not None
        known = replayed(field.warm, ours, seed, WARM_TRIALS).trials[:WARM_TRIALS]
        learned[seed] = surprises(known, field.landscape.objective.aim, field.warm.costs)
    return field.known(trials, learned[seed]).ask(seed)


def in_order(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Take the likeliest that was not tried."""
    return next(iter(_untried(field, trials)), None)


def at_random(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Take any that was not tried, all alike."""
    seen = {trial.requested for trial in trials}
    order = random.Random(seed).sample(field.admissible, len(field.admissible))
    return next((configuration for configuration in order if configuration not in seen), None)


def tpe(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Ask Optuna's TPE, as the search did before: the likeliest first, then proposals until one was not tried yet."""
    first = in_order(field, trials, seed)
    if first is None or len(trials) < STARTUP:
        return first
    seed += len(trials)
    sampler = TPESampler(n_startup_trials=STARTUP, seed=seed, multivariate=True, constant_liar=True)
    space = _space(field, trials)
    study, fresh = _study(field, trials, space, sampler), set(_untried(field, trials))
    for _ in range(TPE_ASKS):
        proposal = study.ask(dict(space))
        configuration = _configuration(proposal)
        if configuration in fresh:
            return configuration
        study.tell(proposal, state=TrialState.FAIL)
    return first


def gp(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Ask Optuna's GPSampler, after the likeliest, for what its acquisition function prefers of all that was not tried."""
    first = in_order(field, trials, seed)
    if first is None or len(trials) < STARTUP or not any(field.usable(trial) for trial in trials):
        return first
    space = _space(field, trials)
    untried = [_frozen(configuration, space) for configuration in _untried(field, trials)]
    sampler = _gp_of_list(untried, seed + len(trials))
    configuration = _configuration(_study(field, trials, space, sampler).ask(dict(space)))
    if configuration not in _untried(field, trials):
        message = f"{configuration} is not on the list: this Optuna's GPSampler is not what _gp_of_list was written for"
        raise RuntimeError(message)
    return configuration


def _gp_of_list(untried: Sequence[FrozenTrial], seed: int) -> BaseSampler:
    """Return a GPSampler that looks for the best of these.

    It knows no constraint between knobs: over their whole product it proposes what is not admissible, or was measured, and the
    same again when told that it failed.
    """

    class OfList(GPSampler):
        def _optimize_acqf(self, acqf: Any, _: Any) -> Any:
            points = acqf.search_space.get_normalized_params(list(untried))
            return points[acqf.eval_acqf_no_grad(points).argmax()]

    return OfList(n_startup_trials=1, seed=seed)


def _untried(field: Field, trials: Sequence[Trial]) -> list[Configuration]:
    seen = {trial.requested for trial in trials}
    return [configuration for configuration in field.admissible if configuration not in seen]


def _space(field: Field, trials: Sequence[Trial]) -> dict[str, CategoricalDistribution]:
    knobs = stated([*field.admissible, *(trial.requested for trial in trials)])
    return {knob: CategoricalDistribution(sorted({c[knob] for c in field.admissible})) for knob in knobs}


def _study(
    field: Field, trials: Sequence[Trial], space: Mapping[str, CategoricalDistribution], sampler: BaseSampler
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    aim = field.landscape.objective.aim
    ran = (Outcome.OK, Outcome.PRUNED)
    study.add_trials([_frozen(t.requested, space, t.score(aim) if t.outcome in ran else 0.0) for t in trials])
    return study


def _frozen(
    configuration: Configuration, space: Mapping[str, CategoricalDistribution], score: float = 0.0
) -> FrozenTrial:
    """Return a configuration as Optuna's trial; without a score it failed."""
    parameters, distributions = dict(configuration.over(space)), dict(space)
    if score <= 0:
        return create_trial(state=TrialState.FAIL, params=parameters, distributions=distributions)
    return create_trial(params=parameters, distributions=distributions, value=-math.log(score))


def _configuration(proposal: optuna.Trial) -> Configuration:
    return Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})
