"""The search's promises: likeliest first, nothing twice, a function of the stored trials alone. No worker, no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product

import pytest

from advisor.configuration import Configuration
from advisor.measurement import Measurement
from advisor.search import STARTUP_TRIALS, ask
from advisor.trial import Outcome, Trial

#: Knob -> number of choices: 72 configurations, more than a budget of 12 has room for.
CHOICES = {"attention": 4, "packing": 3, "precision": 3, "quantization": 2}
SPACE = tuple(
    Configuration.of({knob: f"{knob}-{number}" for knob, number in zip(CHOICES, numbers, strict=True)})
    for numbers in product(*(range(count) for count in CHOICES.values()))
)
BUDGET = 12
SEEDS = range(20)

Speed = Callable[[Configuration], float]


def landscape(seed: int) -> Speed:
    """Return tokens per second: every choice multiplies the speed by a factor of its own."""
    drawn = random.Random(seed)
    effects = {choice: drawn.gauss(0, 0.35) for choice in sorted({item for c in SPACE for item in c.items()})}
    return lambda configuration: math.exp(7 + sum(effects[item] for item in configuration.items()))


def shuffled(seed: int) -> list[Configuration]:
    """Return the space in an order that says nothing about speed: a prior that is of no help."""
    return random.Random(1000 + seed).sample(SPACE, len(SPACE))


def measured(number: int, configuration: Configuration, tokens_per_s: float, **other: object) -> Trial:
    """Return a finished trial."""
    speed = Measurement("tokens_per_s", "tokens/s", (tokens_per_s,))
    return Trial(number, configuration, configuration, Outcome.OK, measurements=(speed,), **other)  # type: ignore[arg-type]


def failed(number: int, configuration: Configuration, outcome: Outcome = Outcome.RUNTIME_ERROR) -> Trial:
    """Return a trial that nothing came of."""
    return Trial(number, configuration, None, outcome, reason="it broke")


def searched(admissible: Sequence[Configuration], speed: Speed, seed: int, budget: int = BUDGET) -> list[Trial]:
    """Ask and measure until the budget is spent or nothing is proposed."""
    trials: list[Trial] = []
    while (configuration := ask(admissible, trials, budget - len(trials), seed)) is not None:
        trials.append(measured(len(trials), configuration, speed(configuration)))
    return trials


@pytest.mark.parametrize("budget", [len(SPACE), 500])
def test_space_that_fits_is_enumerated_likeliest_first(budget: int) -> None:
    """With room for all, configurations are proposed in the given order, every one once, and then none."""
    admissible = shuffled(0)

    assert [trial.requested for trial in searched(admissible, landscape(0), 0, budget)] == admissible


def test_rest_that_fits_is_enumerated_too() -> None:
    """Once what is left fits what may still be run, it is proposed in the given order."""
    admissible = shuffled(1)
    seen = random.Random(1).sample(admissible, 60)
    trials = [measured(number, configuration, landscape(1)(configuration)) for number, configuration in enumerate(seen)]
    rest = [configuration for configuration in admissible if configuration not in seen]

    assert ask(admissible, trials, len(rest), 0) == rest[0]
    assert ask(admissible, [*trials, measured(60, rest[0], 1.0)], len(rest) - 1, 0) == rest[1]


def test_likeliest_are_tried_before_there_is_anything_to_learn_from() -> None:
    """In a space too large for the budget the first proposals are the likeliest, in their order."""
    admissible = shuffled(2)

    found = [trial.requested for trial in searched(admissible, landscape(2), 2)]

    assert found[:STARTUP_TRIALS] == admissible[:STARTUP_TRIALS]
    assert found != admissible[:BUDGET]  # and then something was learned


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_proposed_twice(seed: int) -> None:
    """However many are asked for, no configuration is proposed twice, and all are admissible."""
    found = [trial.requested for trial in searched(shuffled(seed), landscape(seed), seed, budget=24)]

    assert len(found) == len(set(found)) == 24
    assert set(found) <= set(SPACE)


def test_spent_budget_and_empty_space_propose_nothing() -> None:
    """Without a trial left, or without anything admissible, nothing is proposed."""
    assert ask(SPACE, [], 0, 0) is None
    assert ask(SPACE, [], -3, 0) is None
    assert ask([], [], 10, 0) is None


def test_search_finds_the_best_more_often_than_chance() -> None:
    """With no help from the prior, 12 trials of 72 come within 5 % of the best more often than at random."""
    found = drawn = 0
    for seed in SEEDS:
        speed, admissible = landscape(seed), shuffled(seed)
        enough = max(map(speed, SPACE)) / 1.05
        found += max(speed(trial.requested) for trial in searched(admissible, speed, seed)) >= enough
        drawn += max(map(speed, random.Random(seed).sample(admissible, BUDGET))) >= enough

    assert found >= 12, f"{found} of {len(SEEDS)}, at random {drawn}"
    assert found > drawn + 3, f"{found} of {len(SEEDS)}, at random {drawn}"


def test_same_trials_give_the_same_proposal() -> None:
    """A search rebuilt from the stored trials goes on as the one that was killed would have: nothing else counts."""
    speed, admissible = landscape(3), shuffled(3)
    whole = searched(admissible, speed, 3)

    for number in range(BUDGET):
        again = ask(list(admissible), [measured(t.number, t.requested, speed(t.requested)) for t in whole[:number]],
                    BUDGET - number, 3)  # fmt: skip
        assert again == whole[number].requested


def test_another_seed_searches_otherwise() -> None:
    """The seed is what the random choices depend on."""
    paths = {tuple(trial.requested.key for trial in searched(shuffled(4), landscape(4), seed)) for seed in range(4)}

    assert len(paths) > 1


@pytest.mark.parametrize("number_of_trials", [2, 8])
def test_running_trials_count_as_seen(number_of_trials: int) -> None:
    """What another worker runs at this moment is not proposed, before and after the search has begun to learn."""
    admissible, trials = shuffled(5), []
    for number in range(number_of_trials):
        configuration = ask(admissible, trials, 30, 5)
        assert configuration is not None
        assert configuration not in {trial.requested for trial in trials}
        trials.append(Trial(number, configuration, None, Outcome.RUNNING))

    assert len({trial.requested for trial in trials}) == number_of_trials


def test_what_ran_under_another_name_counts_as_seen() -> None:
    """A configuration that was measured as another one's effective configuration is not proposed again."""
    first, second, third = SPACE[:3]
    pretended = Trial(0, first, second, Outcome.OK, measurements=measured(0, second, 9.0).measurements)

    assert ask([first, second, third], [pretended], 10, 0) == third


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.is_failure])
def test_failures_do_not_loop(outcome: Outcome) -> None:
    """Where everything fails, every configuration is proposed once, and then none."""
    trials: list[Trial] = []
    admissible = shuffled(6)[:45]
    while (configuration := ask(admissible, trials, 100 - len(trials), 6)) is not None:
        trials.append(failed(len(trials), configuration, outcome))

    assert [trial.requested for trial in trials] == admissible


def test_failures_are_no_obstacle() -> None:
    """Where one choice always fails, the search goes on through the others, with nothing proposed twice."""
    speed, admissible, trials = landscape(7), shuffled(7), []
    for number in range(20):
        configuration = ask(admissible, trials, 20 - number, 7)
        assert configuration is not None
        breaks = configuration["attention"] == "attention-1"
        trials.append(
            failed(number, configuration) if breaks else measured(number, configuration, speed(configuration))
        )

    assert len({trial.requested for trial in trials}) == 20
    assert any(trial.outcome is Outcome.OK for trial in trials)


def test_trials_from_outside_the_space_do_no_harm() -> None:
    """The default, which is measured even where it is not admissible, is not in the way of the search."""
    default = Configuration.of({**SPACE[0], "attention": "not-admissible"})
    trials = [measured(0, default, 100.0)]
    for number in range(1, 8):
        configuration = ask(SPACE, trials, 20, 0)
        assert configuration in SPACE
        trials.append(measured(number, configuration, 100.0 + number))

    assert len({trial.requested for trial in trials}) == 8
