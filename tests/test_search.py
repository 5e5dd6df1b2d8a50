"""The search's promises: near the best early, nothing twice, a function of the stored trials alone. No worker, no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from statistics import median

import numpy as np
import optuna
import pytest

from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import LAUNCH_BOUND_NOISE, PACED_NOISE, TIE_ZONE, Measurement
from advisor.nouns.metrics import CPU_LAP, METRICS
from advisor.nouns.trial import Outcome, Trial
from advisor.search.acquisition import Acquisition, Told
from advisor.search.posterior import NOISE as NOISE_OF_MODEL
from advisor.search.posterior import SCALES, Belief, Posterior, kernel
from advisor.search.search import CHANCE, EVERYTHING, LEAST_TRIALS, UNLIKELY, End, Knowledge, Promising, surprises

#: Knob -> number of choices: 72 configurations.
CHOICES = {"attention": 4, "packing": 3, "precision": 3, "quantization": 2}
SPACE = tuple(
    Configuration.of({knob: f"{knob}-{number}" for knob, number in zip(CHOICES, numbers, strict=True)})
    for numbers in product(*(range(count) for count in CHOICES.values()))
)
BUDGET = 12
SEEDS = range(20)

#: Noise of a measurement's median, and seconds that a trial takes beside its rounds.
NOISE, START_S = 0.006, 12.0

#: Predicted costs are about so many operations, as those of real models are.
OPERATIONS = 3e14

Speed = Callable[[Configuration], float]


def effects(seed: int, deviation: float) -> Speed:
    """Return a made-up factor of speed: each choice and, a third as strong, each pair of choices has one of its own."""
    drawn = random.Random(seed)
    single = {item: drawn.gauss(0, deviation) for item in sorted({item for c in SPACE for item in c.items()})}
    pairs = {(a, b): drawn.gauss(0, deviation / 3) for a in sorted(single) for b in sorted(single) if a < b}
    return lambda c: math.exp(
        sum(single[item] for item in c.items()) + sum(pairs[a, b] for a in c.items() for b in c.items() if a < b)
    )


@dataclass(frozen=True)
class Made:
    """A made-up landscape. speed: tokens/s by configuration; costs: what arithmetic predicts; broken: what fails."""

    speed: Mapping[Configuration, float]
    costs: Mapping[Configuration, float]
    broken: frozenset[Configuration] = frozenset()
    slow_to_start: Mapping[Configuration, float] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: int, *, error: float = 0.2, broken: bool = True) -> Made:
        """Draw one: predictions are off by factors of their own, and one pair of choices fails."""
        predicted, off, drawn = effects(seed, 0.35), effects(1000 + seed, error), random.Random(seed)
        pair = {("attention", f"attention-{drawn.randrange(4)}"), ("packing", f"packing-{drawn.randrange(1, 3)}")}
        return cls(
            speed={c: 5000 * predicted(c) * off(c) * math.exp(drawn.gauss(0, 0.02)) for c in SPACE},
            costs={c: OPERATIONS / predicted(c) for c in SPACE},
            broken=frozenset(c for c in SPACE if broken and pair <= set(c.items())),
        )

    @property
    def admissible(self) -> list[Configuration]:
        """The space, likeliest first."""
        return sorted(SPACE, key=lambda configuration: self.costs[configuration])

    def known(self, trials: Sequence[Trial], **other: object) -> Knowledge:
        """Return all that a search of this landscape goes by."""
        return replace(Knowledge(self.admissible, trials, costs=self.costs), **other)

    @property
    def best(self) -> float:
        """The speed of the best one that runs."""
        return max(speed for configuration, speed in self.speed.items() if configuration not in self.broken)

    def seconds(self, configuration: Configuration) -> float:
        """Return what a trial costs: the start, and ten rounds of 4,000 tokens where it runs."""
        rounds_s = 0.0 if configuration in self.broken else 40_000 / self.speed[configuration]
        return START_S + rounds_s + self.slow_to_start.get(configuration, 0.0)

    def trial(self, number: int, configuration: Configuration, seed: int = 0) -> Trial:
        """Return the trial of a configuration, with the noise of this seed."""
        if configuration in self.broken:
            return failed(number, configuration, wall_s=self.seconds(configuration))
        noise = random.Random(f"{seed} {configuration.key}").gauss(0, NOISE)
        speed = self.speed[configuration] * math.exp(noise)
        return measured(number, configuration, speed, wall_s=self.seconds(configuration))

    def near(self, configuration: Configuration) -> bool:
        """Whether a configuration runs and is within the tie zone of the best."""
        return configuration not in self.broken and self.speed[configuration] * (1 + TIE_ZONE) >= self.best

    def until_near(self, order: Sequence[Configuration]) -> tuple[int, float]:
        """Return after how many trials, and at what share of the seconds of all, one near the best was measured."""
        spent_s = 0.0
        for number, configuration in enumerate(order, start=1):
            spent_s += self.seconds(configuration)
            if self.near(configuration):
                return number, spent_s / sum(map(self.seconds, SPACE))
        return len(SPACE) + 1, math.inf


def shuffled(seed: int) -> list[Configuration]:
    """Return the space in an order that says nothing about speed."""
    return random.Random(1000 + seed).sample(SPACE, len(SPACE))


def measured(number: int, configuration: Configuration, tokens_per_s: float, **other: object) -> Trial:
    """Return a finished trial."""
    speed = Measurement("tokens_per_s", "tokens/s", (tokens_per_s,))
    return Trial(number, configuration, configuration, Outcome.OK, measurements=(speed,), **other)  # type: ignore[arg-type]


def failed(
    number: int, configuration: Configuration, outcome: Outcome = Outcome.RUNTIME_ERROR, **other: object
) -> Trial:
    """Return a trial that nothing came of."""
    return Trial(number, configuration, None, outcome, reason="it broke", **other)  # type: ignore[arg-type]


def searched(
    made: Made, seed: int, budget: int = BUDGET, *, whole: bool = True, **known: object
) -> list[Configuration]:
    """Ask and measure until the budget is spent or nothing is proposed; return the order of the trials.

    whole: False ends it once something near the best was measured.
    """
    trials = [made.trial(0, SPACE[0], seed)]
    while whole or not made.near(trials[-1].requested):
        configuration = made.known(trials, **known).ask(seed) if len(trials) < budget else None
        if configuration is None:
            break
        trials.append(made.trial(len(trials), configuration, seed))
    return [trial.requested for trial in trials]


@cache
def whole_order(seed: int) -> tuple[Configuration, ...]:
    """Return the order in which a landscape is tried where the budget would do for more than all."""
    return tuple(searched(Made.of(seed), seed, 10 * len(SPACE)))


def at_random(seed: int) -> list[Configuration]:
    """Return the default and then the others in any order."""
    return [SPACE[0], *random.Random(seed).sample(SPACE[1:], len(SPACE) - 1)]


# ------------------------------------------------------------------------------------------------------ near the best


def test_near_the_best_at_a_quarter_of_the_cost() -> None:
    """Within 2 % of the best in at least 95 % of the seeds at 25 % of the exhaustive seconds; chance is far from it."""
    made = [Made.of(seed) for seed in SEEDS]
    ours = [m.until_near(searched(m, seed, 30, whole=False))[1] for seed, m in enumerate(made)]
    drawn = [m.until_near(at_random(seed))[1] for seed, m in enumerate(made)]

    assert sum(share <= 0.25 for share in ours) >= 0.95 * len(ours), sorted(ours)
    assert sum(share <= 0.25 for share in drawn) <= 0.6 * len(drawn), sorted(drawn)
    assert median(drawn) >= 3 * median(ours), (median(drawn), median(ours))


def test_better_than_the_order_of_the_prior_where_that_is_wrong() -> None:
    """Where predictions are off by a factor of two, what is measured puts the order right."""
    made = [Made.of(seed, error=0.5) for seed in SEEDS]
    ours = [m.until_near(searched(m, seed, 40, whole=False))[0] for seed, m in enumerate(made)]
    prior = [m.until_near([SPACE[0], *m.admissible])[0] for m in made]

    assert sum(ours) < 0.6 * sum(prior), (ours, prior)


def test_without_any_prediction_choices_are_learned() -> None:
    """With no costs and an order that says nothing, 12 trials of 72 come within 2 % far more often than at random."""
    found = drawn = 0
    for seed in SEEDS:
        made = Made.of(seed, broken=False)
        found += made.until_near(searched(made, seed, costs={}, whole=False))[0] <= BUDGET
        drawn += made.until_near(at_random(seed))[0] <= BUDGET

    assert found >= 15, f"{found} of {len(SEEDS)}, at random {drawn}"
    assert found >= drawn + 8, f"{found} of {len(SEEDS)}, at random {drawn}"


def test_enumeration_that_is_interrupted_has_the_best_already() -> None:
    """With a budget for everything the order is no other: after a quarter of the trials the best was measured."""
    for seed in range(5):
        order = whole_order(seed)
        assert sorted(order, key=str) == sorted(SPACE, key=str)
        assert any(Made.of(seed).near(configuration) for configuration in order[: len(SPACE) // 4])


def test_long_trials_are_put_off() -> None:
    """Of two choices that promise about the same, the one whose trials take minutes is tried less."""
    compiled = {c: 300.0 for c in SPACE if c["packing"] == "packing-1"}
    counts = []
    for slow_to_start in ({}, compiled):
        made = [Made.of(seed, error=0.05, broken=False) for seed in SEEDS]
        level = [Made(dict.fromkeys(SPACE, 5000.0), m.costs, slow_to_start=slow_to_start) for m in made]
        orders = [searched(m, seed) for seed, m in enumerate(level)]
        counts.append(sum(c in compiled for order in orders for c in order))

    assert counts[1] < 0.6 * counts[0], counts


# --------------------------------------------------------------------------------------------------------- warm starts


def neighbour(made: Made, seed: int) -> Made:
    """Return another workload: its predictions differ, and are off in nearly the same way."""
    predicted, off = effects(2000 + seed, 0.35), effects(3000 + seed, 0.05)
    surprise = {c: made.speed[c] * made.costs[c] for c in SPACE}
    return Made(
        {c: predicted(c) * surprise[c] * off(c) for c in SPACE},
        {c: OPERATIONS / predicted(c) for c in SPACE},
        made.broken,
    )


@cache
def learned(seed: int, error: float) -> dict[Configuration, float]:
    """Return what 12 trials of a search on a neighbouring landscape have to say to this one."""
    made = neighbour(Made.of(seed, error=error), seed)
    trials = [made.trial(number, c, seed) for number, c in enumerate(searched(made, seed))]
    return surprises(trials, METRICS["tokens_per_s"], made.costs)


def test_warm_start_finds_the_best_sooner() -> None:
    """What was learned on a like workload saves trials, although its best configurations are others."""
    cold, warm = [], []
    for seed in SEEDS:
        made = Made.of(seed, error=0.4)
        cold.append(made.until_near(searched(made, seed, 40, whole=False))[0])
        warm.append(made.until_near(searched(made, seed, 40, warm=learned(seed, 0.4), whole=False))[0])

    assert sum(warm) < 0.75 * sum(cold), (warm, cold)


def test_misleading_warm_start_costs_no_more_than_its_own_trials() -> None:
    """A neighbour that says the opposite is found out: in the mean it costs less than the trials it was learned from."""
    lost = []
    for seed in SEEDS:
        made = Made.of(seed, error=0.4)
        opposite = {configuration: 1 / ratio for configuration, ratio in learned(seed, 0.4).items()}
        cold = made.until_near(searched(made, seed, 72, whole=False))[0]
        lost.append(made.until_near(searched(made, seed, 72, warm=opposite, whole=False))[0] - cold)

    assert sum(lost) / len(lost) < BUDGET / 2, lost
    assert sorted(lost)[-2] <= BUDGET, lost


def test_surprises_are_ratios_to_what_was_predicted() -> None:
    """Twice as fast as another for half the predicted cost is no surprise; failures and strangers are left out."""
    one, other, third, stranger = SPACE[:4]
    costs = {one: 1.0, other: 2.0, third: 2.0}
    trials = [measured(0, one, 800.0), measured(1, other, 400.0), failed(2, third), measured(3, stranger, 1.0)]

    assert surprises(trials, METRICS["tokens_per_s"], costs) == pytest.approx({one: 1.0, other: 1.0})
    assert surprises([failed(0, one)], METRICS["tokens_per_s"], costs) == {}

    found = surprises([measured(0, one, 800.0), measured(1, other, 800.0)], METRICS["tokens_per_s"], costs)
    assert found[other] / found[one] == pytest.approx(2.0)


# ---------------------------------------------------------------------------------------------------- nothing repeated


def test_first_of_all_is_the_likeliest() -> None:
    """With nothing measured the likeliest is proposed: by its predicted cost, or by its place where none is told."""
    made, order = Made.of(0), shuffled(0)

    assert Knowledge(order, [], costs=made.costs).ask(0) == made.admissible[0]
    assert Knowledge(order, []).ask(0) == order[0]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_proposed_twice(seed: int) -> None:
    """However many are asked for, no configuration is proposed twice, and all are admissible."""
    found = whole_order(seed)

    assert len(found) == len(set(found)) == len(SPACE)
    assert set(found) == set(SPACE)


def test_empty_space_proposes_nothing() -> None:
    """Without anything admissible nothing is proposed, nothing is promising, and that is why it ends."""
    empty = Knowledge([], [])

    assert empty.ask(0) is None
    assert empty.promising(5) == []
    assert empty.ending() == End(EVERYTHING, 0.0, 0)


@pytest.mark.parametrize("number_of_trials", [0, 2, 8])
def test_running_trials_count_as_seen(number_of_trials: int) -> None:
    """What other workers run at this moment is not proposed, whatever was measured before."""
    made = Made.of(5)
    trials = [made.trial(n, c) for n, c in enumerate(searched(made, 5, number_of_trials))] if number_of_trials else []
    asked: list[Configuration] = []
    for _ in range(6):
        configuration = made.known(trials).ask(5)
        assert configuration is not None
        assert configuration not in {trial.requested for trial in trials}
        asked.append(configuration)
        trials.append(Trial(len(trials), configuration, None, Outcome.RUNNING))

    assert len(set(asked)) == 6


def test_workers_do_not_all_try_the_same_idea() -> None:
    """What is running is taken to come out as predicted, so that a second worker is sent elsewhere.

    Alone, a search would take the twin of the best next to the best; with the twin running it has nothing to gain there.
    """
    made = Made.of(8, broken=False)
    trials = [made.trial(n, c) for n, c in enumerate(searched(made, 8, 8))]
    first = made.known(trials).ask(8)
    assert first is not None
    second = made.known([*trials, Trial(8, first, None, Outcome.RUNNING)]).ask(8)
    blind = made.known(trials, admissible=[c for c in made.admissible if c != first]).ask(8)

    assert second != first
    assert second is not None
    assert blind is not None
    assert sum(second[k] == first[k] for k in first) <= sum(blind[k] == first[k] for k in first)


def test_what_ran_under_another_name_counts_as_seen() -> None:
    """A configuration that was measured as another one's effective configuration is not proposed again."""
    first, second, third = SPACE[:3]
    pretended = Trial(0, first, second, Outcome.OK, measurements=measured(0, second, 9.0).measurements)

    assert Knowledge([first, second, third], [pretended]).ask(0) == third


def test_what_pretends_is_tried_less() -> None:
    """A choice that ran as another one twice is left for later: what is asked for next is itself."""
    made = Made.of(9, broken=False)
    likeliest = made.admissible[0]["attention"]
    fake = [c for c in made.admissible if c["attention"] == likeliest][:2]
    other = next(choice for choice in ("attention-0", "attention-1") if choice != likeliest)
    trials = [
        Trial(n, c, c.replaced(attention=other), Outcome.OK, measurements=measured(n, c, 5000.0).measurements)
        for n, c in enumerate(fake)
    ]
    order = [made.known(trials).ask(seed) for seed in range(5)]

    assert all(c is not None and c["attention"] != likeliest for c in order)


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.is_failure])
def test_failures_do_not_loop(outcome: Outcome) -> None:
    """Where everything fails, every configuration is proposed once, and then none."""
    trials: list[Trial] = []
    admissible = shuffled(6)[:20]
    while (configuration := Knowledge(admissible, trials).ask(6)) is not None:
        trials.append(failed(len(trials), configuration, outcome))

    assert sorted((trial.requested for trial in trials), key=str) == sorted(admissible, key=str)


def test_search_leaves_what_fails() -> None:
    """Where a choice always fails that is predicted to be three times as fast, it is found out before long."""
    for seed in SEEDS:
        made, drawn = Made.of(seed, broken=False), random.Random(seed)
        knob, name = drawn.choice([item for c in SPACE for item in c.items() if item not in SPACE[0].items()])
        broken = frozenset(c for c in SPACE if c[knob] == name)
        costs = {c: cost / 3 if c in broken else cost for c, cost in made.costs.items()}
        made = Made(made.speed, costs, broken)
        order = searched(made, seed, 30, whole=False)
        works = "".join("-" if c in broken else "+" for c in order)

        assert made.near(order[-1]), works
        assert max(map(len, works.split("+"))) <= 6, works


# ----------------------------------------------------------------------------------------------- what may be the best


def test_what_may_not_be_recommended_is_no_best_to_beat() -> None:
    """With a memory limit that the fastest choice breaks, the search finds the fastest of the others."""
    made = Made.of(11, broken=False)
    fastest = max(SPACE, key=lambda c: made.speed[c])["quantization"]
    allowed = {c: s for c, s in made.speed.items() if c["quantization"] != fastest}
    order = searched(made, 11, 20, usable=lambda trial: trial.requested["quantization"] != fastest)

    assert max(allowed[c] for c in order if c in allowed) * (1 + TIE_ZONE) >= max(allowed.values())
    assert sum(c["quantization"] == fastest for c in order) < 10


def test_trial_that_was_stopped_early_is_never_the_best() -> None:
    """A pruned trial teaches that its choices are slow, or fast, and does not end the search for something better."""
    made = Made.of(12, broken=False)
    order = searched(made, 12, LEAST_TRIALS + 1)
    pruned = [Trial(n, c, c, Outcome.PRUNED, measurements=made.trial(n, c).measurements) for n, c in enumerate(order)]

    assert made.known(pruned).ask(0) is not None
    assert made.known(pruned).ending() is None


def test_aim_decides_what_is_better() -> None:
    """Where least memory is the aim, the search goes for it, against the speeds that were measured beside it."""
    made = Made.of(13, broken=False)
    peaks = {c: int(1e10 * made.speed[c] / made.best) for c in SPACE}  # the faster, the more memory
    trials = [measured(0, SPACE[0], made.speed[SPACE[0]], peak_bytes=peaks[SPACE[0]])]
    while len(trials) < BUDGET and (c := Knowledge(SPACE, trials, METRICS["peak_bytes"]).ask(13)) is not None:
        trials.append(measured(len(trials), c, made.speed[c], peak_bytes=peaks[c]))

    least = min(trial.peak_bytes or 0 for trial in trials)
    assert sum(peak < least for peak in peaks.values()) <= len(SPACE) / 10


def test_trials_from_outside_the_space_do_no_harm() -> None:
    """The default, which is measured even where it is not admissible, and rows of other versions are no obstacle."""
    default = Configuration.of({**SPACE[0], "attention": "not-admissible"})
    older = Configuration.of({"attention": "attention-0"})
    trials = [measured(0, default, 100.0), measured(1, older, 90.0), failed(2, Configuration.of({"gone": "too"}))]
    for number in range(3, 9):
        configuration = Knowledge(SPACE, trials).ask(0)
        assert configuration in SPACE
        trials.append(measured(number, configuration, 100.0 + number))

    assert len({trial.requested for trial in trials}) == 9


# ---------------------------------------------------------------------------------------------------- nothing but rows


def test_same_trials_give_the_same_proposal() -> None:
    """A search rebuilt from the stored trials goes on as the one that was killed would have: nothing else counts."""
    made = Made.of(3)
    order = searched(made, 3)
    for number in range(1, BUDGET):
        trials = [made.trial(n, c, 3) for n, c in enumerate(order[:number])]
        assert Knowledge(SPACE, list(reversed(trials)), costs=dict(made.costs)).ask(3) == order[number]


@pytest.fixture
def untouched() -> Iterator[None]:
    """Hold that no generator of random numbers but the search's own is used."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  (it is the shared one that is meant)
    yield
    after = random.getstate(), np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert str(before[1]) == str(after[1])


def test_search_keeps_nothing(untouched: None) -> None:
    """Asking changes neither the trials nor anything outside: asking twice is asking once."""
    made = Made.of(4)
    trials = [made.trial(n, c) for n, c in enumerate(searched(made, 4, 6))]
    before = list(trials)
    answers = {made.known(trials).ask(4) for _ in range(3)}

    assert len(answers) == 1
    assert trials == before


def test_seed_picks_among_equals_alone() -> None:
    """Between twins the seed decides; where one promises most, every seed proposes it."""
    twins = [Configuration.of({"knob": name}) for name in ("default", "left", "right")]
    trials = [measured(0, twins[0], 100.0)]

    assert {Knowledge(twins, trials, costs=dict.fromkeys(twins, 1.0)).ask(seed) for seed in range(20)} == set(twins[1:])
    better = dict(zip(twins, (1.0, 1.0, 0.5), strict=True))
    assert {Knowledge(twins, trials, costs=better).ask(seed) for seed in range(20)} == {twins[2]}


def test_another_optuna_sampler_would_see_the_same_study() -> None:
    """The engine is Optuna's: a knob alone is never sampled, and logging is left quiet."""
    from advisor.search.sampler import PosteriorSampler

    assert issubclass(PosteriorSampler, optuna.samplers.BaseSampler)
    sampler = PosteriorSampler(None, {}, random.Random(0))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="attention"):
        sampler.sample_independent(None, None, "attention", None)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- enough


def test_search_says_when_it_is_over_and_is_right() -> None:
    """It ends by itself long before everything was tried, and what it has then is within 2 % in 95 % of the seeds."""
    wrong, counts = 0, []
    for seed in SEEDS:
        made = Made.of(seed)
        trials = [made.trial(0, SPACE[0], seed)]
        while made.known(trials).ending() is None:
            configuration = made.known(trials).ask(seed)
            assert configuration is not None
            trials.append(made.trial(len(trials), configuration, seed))
        counts.append(len(trials))
        best = max(trials, key=lambda trial: trial.tokens_per_s)
        wrong += not made.near(best.requested)

    assert wrong <= 1
    assert median(counts) <= len(SPACE) / 3, counts
    assert min(counts) >= LEAST_TRIALS


def test_search_is_not_over_before_anything_ran() -> None:
    """Without trials, with failures alone or with too few that ran, there is no saying; with nothing left, it is over."""
    few = [measured(n, c, 100.0) for n, c in enumerate(SPACE[: LEAST_TRIALS - 1])]
    for trials in ([], [failed(n, c) for n, c in enumerate(SPACE[:20])], few):
        assert Knowledge(SPACE, trials).chance_of_better() is None
        assert Knowledge(SPACE, trials).ending() is None
    tried = [failed(n, c) for n, c in enumerate(SPACE)]
    assert Knowledge(SPACE, tried).ending() == End(EVERYTHING, 0.0, 0)


def test_end_says_why_and_what_is_left() -> None:
    """The chance that is said is the one the end was decided by, less than what is promised, and the rest is counted."""
    for seed in range(8):
        made = Made.of(seed)
        trials = [made.trial(0, SPACE[0], seed)]
        while (end := made.known(trials).ending()) is None:
            chance = made.known(trials).chance_of_better()
            assert chance is None or chance >= CHANCE
            asked = made.known(trials).ask(seed)
            assert asked is not None
            trials.append(made.trial(len(trials), asked, seed))

        assert end.reason == UNLIKELY
        assert end.chance == made.known(trials).chance_of_better()
        assert 0 <= end.chance < CHANCE
        assert end.left == len(SPACE) - len({trial.requested for trial in trials})


def test_search_does_not_end_because_of_what_might_fail() -> None:
    """One failure puts off what shares choices with it; for the end that still counts for a good part of its promise."""
    made = Made.of(14, broken=False)
    trials = [made.trial(n, c) for n, c in enumerate(searched(made, 14, 8))]
    before = made.known(trials).chance_of_better()
    best = max(trials, key=lambda trial: trial.tokens_per_s).requested
    untried = [
        c for c in made.admissible if c["attention"] == best["attention"] and c not in {t.requested for t in trials}
    ]
    after = made.known([*trials, failed(len(trials), untried[-1])]).chance_of_better()

    assert before is not None
    assert after is not None
    assert after >= 0.3 * before


# ----------------------------------------------------------------------------------------------------------- promising


def test_most_promising_is_what_comes_next() -> None:
    """The untried are listed in the order in which they would be asked for, with what they promise and cost."""
    made = Made.of(15, broken=False)
    order = searched(made, 15, 10)
    for number in (1, 2, 6, 10):
        known = made.known([made.trial(n, c, 15) for n, c in enumerate(order[:number])])
        found = known.promising(5)
        best = max(known.trials, key=lambda trial: trial.tokens_per_s)

        assert len(found) == len({item.configuration for item in found}) == 5
        assert not {item.configuration for item in found} & set(order[:number])
        assert known.ask(15) in {item.configuration for item in found}
        for item in found:
            assert item.ratio is not None
            assert item.seconds is not None
            assert START_S < item.seconds <= max(trial.wall_s or 0.0 for trial in known.trials)
            assert 0.2 < item.ratio / (made.speed[item.configuration] / best.tokens_per_s) < 5
    assert len(made.known([]).promising(1000)) == len(SPACE)


def test_ratios_are_over_the_default_where_it_is_asked_for() -> None:
    """With the default alone measured they are the ratios of costs; over another they differ by one factor alone."""
    made = Made.of(16, broken=False)
    default, second = SPACE[0], made.admissible[0]
    first = made.known([made.trial(0, default)])
    for item in first.promising(9):
        assert item.ratio == pytest.approx(made.costs[default] / made.costs[item.configuration])

    both = made.known([made.trial(0, default), made.trial(1, second)])
    factors = {
        round((one.ratio or 0.0) / (other.ratio or 1.0), 6)
        for one, other in zip(both.promising(9, default), both.promising(9, second), strict=True)
    }
    assert len(factors) == 1
    assert both.promising(9) == both.promising(9, max(both.trials, key=lambda trial: trial.tokens_per_s).requested)


def test_without_a_measurement_nothing_is_promised() -> None:
    """The likeliest come first, and neither how much better they are nor what they cost is made up."""
    made = Made.of(17)

    assert [item.configuration for item in made.known([]).promising(4)] == made.admissible[:4]
    assert {(item.ratio, item.seconds) for item in made.known([]).promising(4)} == {(None, None)}


# --------------------------------------------------------------------------------------------------------------- units


def alike(one: float | None, other: float | None) -> bool:
    """Return whether two figures are the same but for rounding, or both unknown."""
    return one is other if one is None or other is None else math.isclose(one, other, rel_tol=1e-6)


@dataclass(frozen=True)
class Answers:
    """What a search says of what it knows."""

    asked: Configuration | None
    chance: float | None
    goes_on: bool
    promising: list[Promising]


def answers(known: Knowledge, seed: int) -> Answers:
    """Ask a search everything."""
    return Answers(known.ask(seed), known.chance_of_better(), known.ending() is None, known.promising(99))


@cache
def answered(seed: int, number: int) -> tuple[list[Trial], list[Trial], dict[Configuration, float], Answers]:
    """Return so many trials of a landscape in the usual units, what runs, what is known from elsewhere, and what follows."""
    made, warm = Made.of(seed), learned(seed, 0.2) if seed % 2 else {}
    order = searched_briefly(seed)
    trials = [made.trial(n, c, seed) for n, c in enumerate(order[:number])]
    busy = [Trial(number, order[number], None, Outcome.RUNNING)] if seed > 1 else []
    return trials, busy, warm, answers(made.known([*trials, *busy], warm=warm), seed)


@cache
def searched_briefly(seed: int) -> list[Configuration]:
    """Return the first 14 of a landscape in the order of the search."""
    return searched(Made.of(seed), seed, 14)


@pytest.mark.parametrize(("of_costs", "of_speed"), [(1e12, 1.0), (1e-12, 1.0), (1.0, 1e6), (1e15, 1e-3)])
def test_units_change_nothing(of_costs: float, of_speed: float) -> None:
    """Operations or their billions, tokens or their millions: proposals, ratios, chances and ends are the same."""
    for seed in range(4):
        made = Made.of(seed)
        other = Made(
            {c: speed * of_speed for c, speed in made.speed.items()},
            {c: cost * of_costs for c, cost in made.costs.items()},
            made.broken,
        )
        for number in (0, 1, 2, 3, 5, 8, 12):
            trials, busy, warm, one = answered(seed, number)
            same = [other.trial(trial.number, trial.requested, seed) for trial in trials]
            same = [replace(trial, wall_s=known.wall_s) for trial, known in zip(same, trials, strict=True)]
            two = answers(other.known([*same, *busy], warm={c: ratio * of_costs for c, ratio in warm.items()}), seed)
            assert one.asked == two.asked
            assert alike(one.chance, two.chance)
            assert one.goes_on == two.goes_on
            for mine, theirs in zip(one.promising, two.promising, strict=True):
                assert mine.configuration == theirs.configuration
                assert alike(mine.ratio, theirs.ratio)
                assert alike(mine.seconds, theirs.seconds)


def test_levels_are_unknown_and_not_small() -> None:
    """However far off predictions are as a whole, here or elsewhere, what is believed is the same, to rounding."""
    made = Made.of(7)
    rows = [(c, -math.log(made.speed[c])) for c in SPACE[::9]]
    warm = [(c, math.log(made.costs[c])) for c in SPACE[::5]]
    believed = Posterior(made.costs, warm, rows, SPACE[1:3]).beliefs(SPACE)
    moved = Posterior(
        made.costs, [(c, value - 80.0) for c, value in warm], [(c, value + 300.0) for c, value in rows], SPACE[1:3]
    ).beliefs(SPACE)

    for one, other in zip(believed, moved, strict=True):
        assert one.weight == pytest.approx(other.weight, rel=1e-6)
        assert one.mean + 300.0 == pytest.approx(other.mean, abs=1e-8)
        assert one.deviation == pytest.approx(other.deviation, rel=1e-6)


def test_flat_level_is_the_limit_of_a_wide_one() -> None:
    """Means and doubts are those of a process with a level of its own that is all but unknown (R&W, equation 2.41)."""
    made, wide = Made.of(18), 1e4
    rows = [(c, -math.log(made.speed[c])) for c in SPACE[::11]]
    observed, values = [c for c, _ in rows], np.array([value + math.log(1 / made.costs[c]) for c, value in rows])
    knobs = stated(SPACE)
    among = kernel(observed, observed, knobs) + NOISE_OF_MODEL**2 * np.eye(len(rows)) + wide**2
    across = kernel(SPACE, observed, knobs) + wide**2
    mean = np.log([made.costs[c] for c in SPACE]) + across @ np.linalg.solve(among, values)
    usual = Posterior(made.costs, rows=rows).beliefs(SPACE)[SCALES.index(1.0)]

    assert usual.mean == pytest.approx(mean, abs=1e-4)


def test_what_runs_shrinks_doubts_and_changes_no_weight() -> None:
    """A trial that runs is no measurement: hypotheses weigh what they did, and only its neighbours are less uncertain."""
    made = Made.of(19)
    rows = [(c, -math.log(made.speed[c])) for c in SPACE[::13]]
    alone = Posterior(made.costs, rows=rows).beliefs(SPACE)
    beside = Posterior(made.costs, rows=rows, running=SPACE[1:2]).beliefs(SPACE)

    for one, other in zip(alone, beside, strict=True):
        assert one.weight == other.weight
        assert one.mean == pytest.approx(other.mean)
        assert (other.deviation <= one.deviation * (1 + 1e-9)).all()
        assert other.deviation[1] < 0.5 * one.deviation[1]


class Believed(Acquisition):
    """What is believed is given: log values of two candidates, against the best, which is 0."""

    def beliefs(self, told: Told, candidates: Sequence[Configuration] | None = None) -> list[Belief]:
        """Return one hypothesis: the first is better by a per cent for certain, the second as good, and nobody knows."""
        del told, candidates
        return [Belief(1.0, np.array([-0.01, 0.0]), np.array([0.001, 0.1]))]


def test_what_is_better_by_less_than_the_tie_zone_promises_nothing() -> None:
    """It would be a tie with the best: what may be better by more comes first, though it is worse on average."""
    told = Told(((SPACE[2], 0.0), (SPACE[3], 0.1)), (), (), (), 0.0, SPACE[2])
    certain, open_one = Believed(SPACE[:2], {}, {}, 12).promises(told)

    assert certain < 1e-9
    assert open_one > 0.01


def lapped(trials: Sequence[Trial], *most_s: float) -> list[Trial]:
    """Return the same, beside whose rounds a CPU's loop took a second, and of each trial this long in most of them."""
    laps = [Measurement(CPU_LAP, "s", (each_s, 1.0, each_s)) for each_s in most_s]
    return [replace(t, measurements=(*t.measurements, m)) for t, m in zip(trials, laps, strict=True)]


def test_figures_of_work_that_waits_for_its_launches_are_trusted_less() -> None:
    """Where the GPU computes for 5 % of the time the same figures move the belief by less, and leave more doubt; not memory's."""
    trials = [measured(number, c, 1000.0 * 1.3**number) for number, c in enumerate(SPACE[:12:2])]
    waiting = [replace(t, measurements=(*t.measurements, Measurement("gpu_busy", "share", (0.05,)))) for t in trials]
    told, doubted = (Knowledge(SPACE, each)._told for each in (trials, waiting))
    usual, careful = (
        Posterior(dict.fromkeys(SPACE, OPERATIONS), rows=each.values, noises=each.noises).beliefs(SPACE)[
            SCALES.index(1.0)
        ]
        for each in (told, doubted)
    )

    assert told.noises == (NOISE_OF_MODEL,) * 6
    assert doubted.noises == (LAUNCH_BOUND_NOISE,) * 6
    quick = lapped(waiting, 1.0, 1.2, 1.3, 0.9, 1.1, 2.0)
    assert Knowledge(SPACE, quick)._told.noises == tuple(
        LAUNCH_BOUND_NOISE if is_slow else PACED_NOISE for is_slow in (False, True, True, False, False, True)
    )
    assert Knowledge(SPACE, quick[:2])._told.noises == (PACED_NOISE,) * 2  # by the quickest that is known
    elsewhere = [replace(trial, device_uuid="another") for trial in quick[:2]]
    assert Knowledge(SPACE, [*elsewhere, *quick[3:4]])._told.noises == (PACED_NOISE,) * 3
    assert (careful.deviation > usual.deviation).all()
    assert np.ptp(careful.mean) < np.ptp(usual.mean)
    assert Knowledge(SPACE, waiting, METRICS["peak_bytes"])._told.noises == ()
