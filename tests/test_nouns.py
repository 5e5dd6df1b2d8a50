"""The nouns: configurations, measurements, comparisons and the forward workload mean what they say."""

from __future__ import annotations

import argparse
import math
import pickle
import random
from statistics import median

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from advisor.errors import AdvisorError, BadInput, NothingAdmissible, NotMeasured, named
from advisor.knobs import KNOBS
from advisor.nouns.configuration import Configuration, canonical_json, key_of
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement, interval_of_median
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Outcome
from advisor.workloads import UnknownKind, workload_of
from advisor.workloads.forward import OUTPUTS, Forward
from advisor.workloads.quantiles import DEFAULT_BATCHES, generated_or_listed, quantile_lengths, read_lengths

CHOICES = {"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"}
STATED = {"attention": "sdpa", "precision": "bf16"}


@given(st.permutations(sorted(CHOICES.items())))
def test_a_configuration_has_one_key(items: list[tuple[str, str]]) -> None:
    """The order in which choices are given changes neither the configuration nor its key."""
    given_so = Configuration.of(dict(items))

    assert given_so == Configuration.of(CHOICES)
    assert given_so.key == key_of(STATED)
    assert dict(given_so) == STATED


def test_a_configurations_key_is_stable() -> None:
    """A key that is in databases already never changes its spelling."""
    assert canonical_json(dict(Configuration.of(CHOICES))) == '{"attention":"sdpa","precision":"bf16"}'
    assert Configuration.of(CHOICES).key == "6efb52fac0f591aa"
    assert Configuration.of(CHOICES).replaced(packing="packed").key != Configuration.of(CHOICES).key


def test_a_configuration_has_one_label() -> None:
    """Its choices in the order in which people read them, in text, script and errors alike; knobs nobody knows come last."""
    assert str(Configuration.of(CHOICES)) == "sdpa · bf16"
    assert str(Configuration.of({**CHOICES, "packing": "packed", "batch": "8"})) == "sdpa · bf16 · packed · 8"
    assert str(Configuration.of({"a new knob": "x", "packing": "packed"})) == "packed · x"
    of_all, of_training = ("kernels", "compilation"), ("autocast", "micro_batch", "checkpointing", "optimizer")
    assert [knob for knob in KNOBS if knob not in of_training][-3:] == ["batch", *of_all]
    assert [knob for knob in KNOBS if knob in of_training] == [*of_training]
    assert [*KNOBS][:3] == ["attention", "precision", "autocast"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    """NaN and infinities reach neither a key nor a measurement nor a comparison."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": number})
    with pytest.raises(ValueError, match="finite"):
        Measurement("time", "s", (1.0, number))
    with pytest.raises(ValueError, match="finite"):
        Comparison("a", "b", (1.0, number))


@pytest.mark.parametrize(
    "choices",
    [(("b", "x"), ("a", "x")), (("a", "x"), ("a", "y")), (("a", ""),), (("", "x"),)],
    ids=["out of order", "twice", "empty choice", "empty knob"],
)
def test_what_is_no_configuration_is_refused(choices: tuple[tuple[str, str], ...]) -> None:
    """A configuration names every knob once, in order, and no name is empty."""
    with pytest.raises(ValueError, match=r"once|empty"):
        Configuration(choices)


@pytest.mark.parametrize(("n", "low", "high"), [(1, 1, 1), (2, 1, 2), (5, 1, 5), (6, 1, 6), (10, 2, 9), (30, 10, 21)])
def test_interval_of_median_is_the_tables(n: int, low: int, high: int) -> None:
    """The interval's ends are the order statistics that tables of the sign test give for 95 %."""
    samples = [float(rank) for rank in range(1, n + 1)]
    random.Random(n).shuffle(samples)

    assert interval_of_median(samples) == (low, high)


def test_interval_of_median_of_many_is_that_of_whole_numbers() -> None:
    """Logarithms change no rank: up to 200 samples it is what exact binomial coefficients give; 100,000 take no time."""
    for n in range(1, 201):
        rank, below = 0, 0.0
        while rank < n // 2:
            below += math.comb(n, rank) / 2**n
            if 1 - 2 * below < 0.95:
                break
            rank += 1
        rank = max(rank, 1)
        assert interval_of_median(range(1, n + 1)) == (rank, n + 1 - rank)
    low, high = interval_of_median(range(100_000))
    assert (low + high, high - low) == (99_999, pytest.approx(1.96 * math.sqrt(100_000), rel=0.01))


@pytest.mark.parametrize("n", [6, 9, 10, 15, 20, 30])
def test_interval_of_median_holds_the_median(n: int) -> None:
    """Of skewed samples' intervals at least 94 % hold the median of what they were drawn from (it is 1)."""
    draw, repetitions, held = random.Random(n), 4000, 0
    for _ in range(repetitions):
        low, high = interval_of_median([math.exp(draw.gauss(0, 1)) for _ in range(n)])
        held += low <= 1 <= high

    assert held / repetitions >= 0.94


def test_interval_of_median_bears_many_samples() -> None:
    """Thousands of samples, where binomial coefficients leave the range of floats, have a narrow interval."""
    low, high = interval_of_median([float(rank) for rank in range(1, 3001)])

    # The normal approximation: 1500.5 ± 1.96·√3000/2.
    assert (low, high) == pytest.approx((1447, 1554), abs=2)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_interval_of_median_surrounds_the_median(samples: list[float]) -> None:
    """The interval's ends are samples with the median between them."""
    low, high = interval_of_median(samples)

    assert {low, high} <= set(samples)
    assert low <= median(samples) <= high


def test_comparison_interval_is_students() -> None:
    """Ratios 1.10, 1.20 and 1.15: logarithms' mean 0.139131 and deviation 0.043509, t₂ = 4.303, half width 0.108091."""
    comparison = Comparison("a", "b", (1.10, 1.20, 1.15))

    assert comparison.ratio == pytest.approx(math.exp(0.139131), rel=1e-5)
    assert comparison.interval == pytest.approx((math.exp(0.031040), math.exp(0.247222)), rel=1e-5)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.10, 1.20, 1.15), "faster"),
        ((0.90, 0.85, 0.88), "slower"),
        ((1.01, 1.011, 1.012), "tie"),
        ((0.99, 0.991, 0.992), "tie"),
        ((0.5, 2.0, 3.0), "tie"),
        ((3.0,), "tie"),
        ((1e-300, 1e300), "tie"),
    ],
)
def test_verdicts(ratios: tuple[float, ...], verdict: str) -> None:
    """A verdict is given where the whole interval is clear of the tie zone; one block alone gives none."""
    assert Comparison("a", "b", ratios).verdict == verdict


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=40))
def test_a_comparison_turned_round_says_the_opposite(ratios: list[float]) -> None:
    """Candidate and baseline exchanged give the reciprocal interval and the opposite verdict."""
    one, other = Comparison("a", "b", tuple(ratios)), Comparison("b", "a", tuple(1 / r for r in ratios))

    assert one.interval == pytest.approx(tuple(1 / end for end in reversed(other.interval)), rel=1e-6)
    # At the very edge of the tie zone rounding may decide.
    if all(abs(end - edge) > 1e-9 for end in one.interval for edge in (1.02, 1 / 1.02)):
        assert one.verdict == {"faster": "slower", "slower": "faster", "tie": "tie"}[other.verdict]


def test_a_question_about_lengths_keeps_its_key() -> None:
    """A length that lies between two tokens at a round exponent is the one that it ever was: stored studies are found by it."""
    assert quantile_lengths(10, 0.3, 8, 2) == (7, 9, 6, 9, 10, 8, 4, 5, 7, 4, 9, 6, 2, 10, 7, 8)
    assert quantile_lengths(6, 0.3, 16, 1) == (4, 2, 5, 6, 4, 6, 5, 3, 3, 4, 4, 5, 6, 5, 1, 3)


@given(st.integers(64, 4096), st.floats(0, 0.9), st.integers(1, 64), st.integers(1, 12))
def test_quantile_lengths_meet_the_padding(longest: int, padding: float, batch: int, batches: int) -> None:
    """Any padding that so many sequences a batch allow is met within 0.02, with one longest sequence in every batch."""
    assume(padding <= 1 - 1 / batch - 1 / longest)
    workload = Forward(quantile_lengths(longest, padding, batch, batches), batch)

    assert abs(workload.padding - padding) <= 0.02
    assert len(workload.lengths) == batch * batches
    assert all(max(workload.lengths[i] for i in group) == longest for group in workload.batches())
    assert workload.lengths == quantile_lengths(longest, padding, batch, batches)


@given(st.integers(64, 4096), st.integers(1, 16), st.integers(1, 12), st.floats(0.021, 0.06))
def test_padding_out_of_reach_is_refused(longest: int, batch: int, batches: int, excess: float) -> None:
    """Padding that a batch with one full sequence can't have is refused, with the padding that it can."""
    with pytest.raises(BadInput, match="can't be met"):
        quantile_lengths(longest, min(1 - 1 / batch + excess, 0.999), batch, batches)


def test_generated_batches_differ() -> None:
    """Batches of a generated list differ from one another, so that sorting by length can gain something."""
    workload = Forward(quantile_lengths(512, 0.4, 8), 8)

    assert len({tuple(sorted(workload.lengths[i] for i in group)) for group in workload.batches()}) == DEFAULT_BATCHES
    assert workload.padded_tokens(by_length=True) < workload.padded_tokens()


def lengths_of(flags: str) -> tuple[tuple[int, ...], int, str]:
    """Read a workload's flags as the command line does."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in ("--lengths", "--output"):
        parser.add_argument(flag)
    parser.add_argument("--padding", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--batches", type=int, default=DEFAULT_BATCHES)
    read = parser.parse_args(flags.split())
    lengths = read_lengths(read.lengths, "lengths")
    return generated_or_listed(lengths, read.padding, read.batch, read.batches), read.batch, read.output


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40).map(tuple), st.integers(1, 12), st.sampled_from(OUTPUTS))
def test_flags_describe_any_workload(lengths: tuple[int, ...], batch: int, output: str) -> None:
    """Flags read back are the workload that they were printed for, whatever its lengths."""
    workload = Forward(lengths, batch, output)

    assert Forward(*lengths_of(workload.flags)) == workload


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Forward((9, 8, 9, 8), 2), "forward, 2 × 9 tokens, padding 0.06, last-logits, 2 batches"),
        (Forward((8, 9), 4), "forward, 2 × 9 tokens (the batch of 4 is not full), padding 0.06, last-logits, 1 batch"),
        (Forward((8, 8, 8), 2), "forward, 2 × 8 tokens, padding 0.00, last-logits, 2 batches, the last of 1"),
        (Forward((8, 9), None, "hidden"), "forward, 2 sequences of up to 9 tokens, hidden, batch auto"),
    ],
    ids=["full", "not full", "a rest", "auto"],
)
def test_a_workload_says_what_is_run(workload: Forward, words: str) -> None:
    """Its label names the sequences that a batch really has, where the list has fewer than were asked for, and a rest."""
    assert str(workload) == words


@given(st.integers(64, 2048), st.integers(0, 60), st.integers(4, 32), st.integers(1, 10))
def test_flags_of_generated_lengths_are_short(longest: int, percent: int, batch: int, batches: int) -> None:
    """A generated list comes back from its flags, by its longest length and its padding where two digits say it."""
    workload = Forward(quantile_lengths(longest, percent / 100, batch, batches), batch)

    assert Forward(*lengths_of(workload.flags)) == workload
    if round(workload.padding, 2) == percent / 100:
        assert workload.flags.startswith(f"--lengths {longest} --padding ")


@pytest.mark.parametrize(
    ("text", "padding"),
    [("x", None), ("", None), (",", None), ("0", None), ("-4,8", None), ("8,4", 0.5), ("8", 1), ("8", -1), ("8", 0.99)],
)
def test_bad_lengths_are_named(text: str, padding: float | None) -> None:
    """Lengths and paddings that are none are refused with the flag that they came from."""
    with pytest.raises(BadInput, match=r"--lengths|--padding"):
        generated_or_listed(read_lengths(text, "lengths"), padding, 4, 8)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30).map(tuple), st.integers(1, 9), st.booleans())
def test_batches_hold_every_sequence_once(lengths: tuple[int, ...], batch: int, by_length: bool) -> None:
    """Batches, sorted or not, are a partition of the sequences; padded tokens are what their rectangles hold."""
    workload = Forward(lengths, batch)
    groups = workload.batches(by_length=by_length)

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) <= batch for group in groups)
    assert workload.padded_tokens(by_length=by_length) >= workload.tokens
    assert workload_of(workload.payload) == workload


def test_payloads_round_trip() -> None:
    """An environment and an objective are the same after a trip through their payloads."""
    environment = Environment("cuda", "NVIDIA H200", (9, 0), 150754820096, packages={"torch": "2.11.0+cu130"})
    objective = Objective(Tier.EIGHT_BIT, max_memory_bytes=10, ignored_rules=("P2", "P1"))

    assert Environment.of(environment.payload) == environment
    assert Environment.of(environment.payload).key == environment.key
    assert Objective.of(objective.payload).payload == objective.payload
    assert environment.version("torch") == (2, 11, 0)
    assert environment.version("flash-attn") is None


def test_tiers_and_outcomes_are_ordered() -> None:
    """The worst tier wins, and only an outcome that gave nothing usable is a failure."""
    assert Tier.worst(Tier.DTYPE, Tier.FOUR_BIT, Tier.EXACT) == Tier.FOUR_BIT
    assert [tier.rank for tier in Tier] == [0, 1, 2, 3]
    assert {outcome for outcome in Outcome if not outcome.is_failure} == {
        Outcome.RUNNING,
        Outcome.OK,
        Outcome.PRUNED,
        Outcome.CUT,
    }


@pytest.mark.parametrize(
    "error",
    [BadInput(named("seed"), "less"), NotMeasured("nothing"), NothingAdmissible(["a", "b"]), UnknownKind("poetry")],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_pickled_and_shown_as_they_are_told(error: AdvisorError) -> None:
    """A pickled error says what it said, spelled for the same face, and its repr has that text and no control characters."""
    error.names_keywords = True
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert repr(again) == f"{type(error).__name__}({str(error)!r})"
    assert repr(again).isprintable()


def test_errors_are_one_line() -> None:
    """An expected failure is one line of text with its hint, and has the exit status of its kind."""
    assert str(BadInput("no such\n  model", "try --model x")) == "no such model (try --model x)"
    assert [kind(["x"]).exit_status for kind in (AdvisorError, BadInput, NotMeasured, NothingAdmissible)] == [
        2,
        2,
        3,
        4,
    ]
