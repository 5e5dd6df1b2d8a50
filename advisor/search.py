"""Which configuration next: enumeration where the space fits the budget, else Optuna, rebuilt from the stored trials.

Optuna holds no state of ours: an in-memory study is made from the trials each time, so that a killed tune goes on and
several workers can share one study. TPE repeats points on a small categorical space, so what it proposes is looked up
before it is believed (design.md, "The search").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from advisor.configuration import Configuration
from advisor.trial import Outcome, Trial

#: The likeliest configurations are tried first; only then is there anything for a model to learn from.
STARTUP_TRIALS = 4

_ASKS = 64


def ask(
    admissible: Sequence[Configuration], trials: Sequence[Trial], trials_left: int, seed: int
) -> Configuration | None:
    """Return the next configuration to try, None when every admissible one was.

    admissible: likeliest first. trials_left: how many more may be run; if that is all of what is left, the order of the
    prior is as good as any other, and nothing is proposed twice.
    """
    seen = {trial.requested for trial in trials} | {trial.effective for trial in trials if trial.outcome is Outcome.OK}
    fresh = [configuration for configuration in admissible if configuration not in seen]
    if not fresh or trials_left <= 0:
        return None
    if len(fresh) <= trials_left or len(trials) < STARTUP_TRIALS:
        return fresh[0]
    return _proposed(admissible, fresh, trials, seed)


def _proposed(admissible: Sequence[Configuration], fresh: Sequence[Configuration], trials: Sequence[Trial],
              seed: int) -> Configuration:  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        knob: CategoricalDistribution(sorted({configuration[knob] for configuration in admissible}))
        for knob in admissible[0]
    }
    # Told nothing, TPE draws the first ten at random: in a budget of 12 it would learn from nothing.
    sampler = TPESampler(
        n_startup_trials=STARTUP_TRIALS, seed=seed + len(trials), multivariate=True, constant_liar=True
    )
    study = optuna.create_study(sampler=sampler)
    study.add_trials([frozen for trial in trials if (frozen := _frozen(trial, space)) is not None])
    unseen = set(fresh)
    distributions: dict[str, BaseDistribution] = dict(space)
    for _ in range(_ASKS):
        proposal = study.ask(distributions)
        configuration = Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})
        if configuration in unseen:
            return configuration
        study.tell(proposal, state=TrialState.FAIL)
    return fresh[0]


def _frozen(trial: Trial, space: dict[str, CategoricalDistribution]) -> FrozenTrial | None:
    """Return the trial as Optuna's, None where it is outside the space; log seconds per token, failures as FAIL."""
    parameters = dict(trial.requested)
    if any(knob not in space or choice not in space[knob].choices for knob, choice in parameters.items()):
        return None
    measured = trial.measurement("tokens_per_s")
    if trial.outcome is Outcome.RUNNING:
        return create_trial(state=TrialState.RUNNING, params=parameters, distributions=dict(space))
    if measured is None or trial.outcome not in (Outcome.OK, Outcome.PRUNED):
        return create_trial(state=TrialState.FAIL, params=parameters, distributions=dict(space))
    return create_trial(params=parameters, distributions=dict(space), value=-math.log(measured.median))
