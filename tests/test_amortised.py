"""--calls: what it takes to begin is spread over the user's calls, in the search, in the answer and in what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from made_databases import laid
from test_suggest import DEFAULT, FLASH, H200, SOURCE, WORKLOAD, answer, shown, studied
from test_suggest import attempt as bare

from advisor.advice.command import command_for
from advisor.asking.question import question_of
from advisor.errors import BadInput
from advisor.nouns.answer import Conclusion, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import LATER, METRICS, ROUND
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Quality, Trial
from advisor.quality.amortised import Amortised, beginnings_s, pays_from
from advisor.search.space import build_space
from advisor.show.support import LLAMA
from advisor.storage.store import Store
from advisor.study.confirmation import comparisons_now
from advisor.study.tuning import Job, Snapshot

ANY = Objective(quality=Tier.FOUR_BIT)
COMPILED = FLASH.replaced(compilation="compiled")
TOKENS = sum(WORKLOAD.lengths)
CALLS = len(WORKLOAD.batches())
GOOD = Quality(0.01, 0.1, 1e-4, 1.0, 1, reference="fp32, eager")
BLOCKS = (2.0, 2.01, 1.99)


def attempt(configuration: Configuration, round_s: float, **more: Any) -> Trial:
    """Return a trial of so many seconds a round, and what it took to begin."""
    later_s = more.pop("later_s", 0.0)
    found = bare(configuration, TOKENS / round_s, **more)
    samples = tuple(TOKENS / rate for rate in found.measurements[0].samples)
    measured = [*found.measurements, Measurement(ROUND, "s", samples)]
    measured += [Measurement(LATER, "s", (later_s,))] if later_s else []
    return replace(found, measurements=tuple(measured))


TRIALS = (
    attempt(DEFAULT, 0.2, load_s=10.0, first_call_s=1.0),
    attempt(FLASH, 0.15, load_s=0.0, first_call_s=0.5),
    attempt(COMPILED, 0.1, load_s=0.0, first_call_s=30.0, later_s=10.0),
)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        yield opened


def test_what_it_takes_to_begin_is_loading_and_the_first_call_and_what_is_compiled_later() -> None:
    """Equal weights are loaded once for several trials, and each that has them would load them itself."""
    assert beginnings_s(TRIALS, LLAMA) == {DEFAULT: 11.0, FLASH: 10.5, COMPILED: 50.0}


def test_a_rate_over_calls_is_all_work_over_all_time() -> None:
    """Tokens of so many passes, over what it takes to begin and so many rounds; a round itself is as long as it was."""
    job = Amortised.of(replace(ANY, calls=20 * CALLS), WORKLOAD, LLAMA, TRIALS)
    assert job is not None
    assert job.passes == 20
    spread = job.spread(TRIALS[2])

    assert spread.tokens_per_s == pytest.approx(20 * TOKENS / (50.0 + 20 * 0.1))
    assert spread.value(ROUND) == pytest.approx(0.1)
    assert Amortised.of(ANY, WORKLOAD, LLAMA, TRIALS) is None
    assert Amortised.of(replace(ANY, calls=1), WORKLOAD, LLAMA, ()) is None


def test_a_comparison_of_speeds_says_what_a_job_gets() -> None:
    """Twice as fast and 39 s longer to begin: at 390 rounds both take as long, ever after it is faster."""
    speeds = Comparison(COMPILED.key, DEFAULT.key, (2.0,))
    for passes in (1, 390, 10**9):
        job = Amortised(passes, beginnings_s(TRIALS, LLAMA))
        found = job.compared(speeds, TRIALS)
        assert found is not None
        assert found.ratio == pytest.approx((11.0 + passes * 0.2) / (50.0 + passes * 0.1))
    assert pays_from((50.0, 11.0), (0.1, 0.2), calls=1) == 390
    assert pays_from((50.0, 11.0), (0.1, 0.2), calls=CALLS) == 390 * CALLS
    assert pays_from((50.0, 11.0), (0.2, 0.2), calls=1) is None
    assert Amortised(1, {}).compared(speeds, TRIALS) is None


def test_a_job_of_few_batches_is_not_told_to_compile(store: Store) -> None:
    """The same study: compiled for ever so many, the next best for a few; and both say what they are about."""
    studied(store, TRIALS, {COMPILED: BLOCKS, FLASH: (1.33, 1.33, 1.33)})
    ever, few = answer(store), answer(store, objective=replace(ANY, calls=3))

    assert ever.chosen is not None
    assert ever.chosen.configuration == COMPILED
    note = f"it takes 50 s to begin, {FLASH} 10 s (loading, first call, compiling): it pays from"
    pays = pays_from((50.0, 10.5), (0.2 / ever.chosen.ratio, 0.2 / 1.33), CALLS) if ever.chosen.ratio else None
    assert f"{note} {pays:,} calls on, batches of the default's; --calls N says what is best for N" in shown(ever)
    assert few.chosen is not None
    assert few.chosen.configuration != COMPILED
    assert "figures are over 3 calls" in shown(few)
    assert few.verdict is not Conclusion.NONE_RIGHT


def test_a_job_of_many_batches_is_told_as_much_as_without(store: Store) -> None:
    """So many that what it takes to begin is nothing: the ratio is that of the speeds."""
    studied(store, TRIALS, {COMPILED: BLOCKS})
    many = answer(store, objective=replace(ANY, calls=10**9))

    assert many.chosen is not None
    assert many.chosen.configuration == COMPILED
    assert many.verdict is Conclusion.FASTER
    assert many.chosen.ratio == pytest.approx(2.0, rel=1e-3)


def test_what_is_compared_for_a_job_is_stored_of_speeds(store: Store) -> None:
    """A study for few calls: its blocks say how fast a round is, and what its job, another's and none gets of that follows."""
    few = replace(ANY, calls=20 * CALLS)
    studied(store, TRIALS, {COMPILED: BLOCKS}, objective=few)
    same, other, none = (answer(store, objective=each) for each in (few, replace(ANY, calls=10**9), ANY))
    job = Amortised(20, beginnings_s(TRIALS, LLAMA))
    own = job.compared(Comparison(COMPILED.key, DEFAULT.key, BLOCKS), TRIALS)

    assert own is not None
    assert own.ratio == pytest.approx((11.0 + 20 * 0.2) / (50.0 + 20 * 0.1))
    assert same.chosen is not None
    assert same.chosen.configuration != COMPILED
    assert next(c.ratio for c in same.runners_up if c.configuration == COMPILED) == pytest.approx(own.ratio)
    assert other.chosen is not None
    assert other.chosen.ratio == pytest.approx(2.0, rel=1e-3)
    assert none.chosen is not None
    assert none.chosen.ratio == pytest.approx(2.0, rel=1e-3)
    assert "the study was made for" in shown(none)


def test_blocks_of_a_study_for_a_job_decide_by_the_job() -> None:
    """What they say of speed is stored; whether another is needed is decided by what the job gets, which is clear here."""
    space = replace(build_space(LLAMA, WORKLOAD, H200, ANY, 2**40), admissible=(DEFAULT, FLASH, COMPILED))
    searched = [replace(t, number=n, quality=GOOD, device_uuid="g", wall_s=1.0) for n, t in enumerate(TRIALS)]
    blocks = [
        replace(attempt(c, round_s), number=3 + n, phase="confirm", block=1 + n // 2, device_uuid="g", wall_s=1.0)
        for n, (c, round_s) in enumerate([(DEFAULT, 0.2), (FLASH, 0.15)] * 3)
    ]
    job = Job(SOURCE, WORKLOAD, replace(ANY, calls=10**9), Budget(), Machine(H200, "host", "g", 0, 2**40))
    seen = Snapshot(job, LLAMA, space, (*searched, *blocks), stop=Stop.EVERYTHING)
    (found,) = comparisons_now(seen)

    assert found.ratio == pytest.approx(4 / 3)
    assert seen.amortised is not None
    short = replace(seen, job=replace(job, objective=replace(ANY, calls=1)))
    assert comparisons_now(short) == (found,)
    assert short.amortised is not None
    assert short.amortised.compared(found, short.stored) != found


@pytest.mark.parametrize("metric", ["peak_bytes", "joules_per_token", "slowest_batch_s"])
def test_bytes_and_joules_are_not_of_a_job(metric: str, store: Store) -> None:
    """What is no rate is what it is over however many calls; on the command line it is refused."""
    wanted = replace(ANY, metric=metric, calls=3)
    assert wanted.job_calls is None
    assert Amortised.of(wanted, WORKLOAD, LLAMA, TRIALS) is None
    assert build_space(LLAMA, WORKLOAD, H200, wanted, 2**40).passes is None
    name = METRICS[metric].name
    with pytest.raises(BadInput, match=f"calls spreads what it takes to begin over a job, and {name} is not of a job"):
        question_of("org/model", {"calls": 3, "objective": name})
    studied(store, TRIALS)
    assert "figures are over" not in shown(answer(store, objective=wanted))


def test_predicted_costs_have_what_compiling_is_expected_to_take() -> None:
    """By the seconds of the default's round, so that a short job does not even try it first."""
    space = build_space(LLAMA, WORKLOAD, H200, replace(ANY, calls=CALLS), 2**40)
    plain = build_space(LLAMA, WORKLOAD, H200, ANY, 2**40)
    default = next(each for each in TRIALS if each.requested == space.baseline)
    costs, before = space.costs_beside(default), plain.costs_beside(default)
    compiled = next(c for c in space.admissible if c["compilation"] == "compiled")

    added = (costs[compiled] - before[compiled]) / before[space.baseline]
    assert added == pytest.approx(4.0 * 32 / 0.2), "4 s for each layer, over the default's round"
    assert costs[space.baseline] == before[space.baseline]
    assert space.costs_beside(None) == plain.costs_beside(None)


def test_an_objective_without_calls_is_stored_as_before() -> None:
    """No key of a study changes, and what is asked for again is asked for so."""
    assert "calls" not in ANY.payload
    assert Objective.of(replace(ANY, calls=7).payload).calls == 7
    assert "--calls 7" in command_for(SOURCE, WORKLOAD, replace(ANY, calls=7), None)
