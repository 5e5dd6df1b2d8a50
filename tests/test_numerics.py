"""The gate's verdict from figures alone: whose error is doubled, where floors and caps stand, what lossy tiers may cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.numerics import FACTOR, FLOORS, KL_FACTOR, LIMITS, UNAIDED, judge
from advisor.objective import Tier
from advisor.trial import Quality


def figures(rms: float, kl: float | None = None, **more: float) -> Quality:
    """Return the figures of a configuration."""
    return Quality(rms, rms * 5, kl, None, 64, **more)


def failures(quality: Quality, tier: Tier = Tier.EXACT, precision: str = "bf16", baseline: Quality | None = None,
             reference: str = "fp32") -> tuple[str, ...]:  # fmt: skip
    """Return what the gate holds against it."""
    return judge(
        quality, tier, precision, baseline, is_baseline=False, random_weights=False, reference=reference
    ).failures


BASELINE = figures(0.05, 2e-3)


def test_twice_the_baselines_error_is_right_and_more_is_not() -> None:
    """The error may be doubled; KL grows with its square. Both limits stand in the failure, beside what was found."""
    assert failures(figures(FACTOR * 0.05, KL_FACTOR * 2e-3), baseline=BASELINE) == ()
    assert failures(figures(0.101, 1e-3), baseline=BASELINE) == ("rms error 1.01e-01 > 1.00e-01",)
    assert failures(figures(0.01, 8.1e-3), baseline=BASELINE) == ("KL 8.10e-03 > 8.00e-03 nats",)


@pytest.mark.parametrize("precision", FLOORS)
def test_a_wrong_baseline_does_not_open_the_gate(precision: str) -> None:
    """However wrong the default is, what it allows ends where right configurations of real shapes were seen to end."""
    most, wrong = UNAIDED[precision], figures(10.0, 5.0)

    assert failures(figures(most.rms, most.kl), precision=precision, baseline=wrong) == ()
    assert len(failures(figures(most.rms * 1.01, most.kl * 1.01), precision=precision, baseline=wrong)) == 2
    assert failures(figures(most.rms, most.kl), precision=precision) == ()
    assert len(failures(figures(most.rms * 1.01, most.kl * 1.01), precision=precision)) == 2


@pytest.mark.parametrize("precision", FLOORS)
def test_a_perfect_baseline_leaves_the_floor(precision: str) -> None:
    """Where the default has no error at all, what is too small to judge is let through, for logits."""
    floor, perfect = FLOORS[precision], figures(0.0, 0.0)

    assert failures(figures(floor.rms, floor.kl), precision=precision, baseline=perfect) == ()
    assert len(failures(figures(floor.rms * 1.01, floor.kl * 1.01), precision=precision, baseline=perfect)) == 2


def test_hidden_states_have_no_floor_of_16_bits() -> None:
    """Without logits the default's own error is what counts: under the floor of 16 bits a leak between documents would pass."""
    assert failures(figures(0.004, cosine=0.9999), baseline=figures(0.003, cosine=0.9999)) == ()
    assert failures(figures(0.02, cosine=0.9999), baseline=figures(0.003, cosine=0.9999)) != ()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("kl", [None, 1e-4])
def test_a_reference_of_16_bits_has_an_error_of_its_own(precision: str, kl: float | None) -> None:
    """Where the reference is bf16, its rounding is in everyone's error: what bf16 is allowed, a finer precision is too."""
    perfect = figures(0.0, None if kl is None else 0.0)
    found = figures(0.03, kl)

    assert failures(found, precision=precision, baseline=perfect, reference="bf16") == ()
    assert failures(found, precision=precision, reference="bf16") == ()
    assert failures(replace(found, rms=0.2), precision=precision, baseline=figures(5.0, kl), reference="bf16") != ()
    assert precision == "bf16" or failures(found, precision=precision, baseline=perfect) != ()


@pytest.mark.parametrize("tier", LIMITS)
def test_lossy_tiers_have_their_limits(tier: Tier) -> None:
    """Every limit of a lossy tier is one: a hundredth beyond it is named, and alone."""
    limits = LIMITS[tier]
    good = Quality(0.5, 1.0, limits.kl, limits.top1, 64, perplexity_ratio=limits.perplexity_ratio)
    assert failures(good, tier) == ()
    assert failures(replace(good, kl=limits.kl * 1.01), tier)[0].startswith("KL")
    assert failures(replace(good, top1=limits.top1 * 0.99), tier)[0].startswith("top-1 agreement")
    assert failures(replace(good, perplexity_ratio=limits.perplexity_ratio * 1.01), tier)[0].startswith("perplexity")
    embedding = figures(0.5, cosine=limits.cosine, top10=limits.top10)
    assert failures(embedding, tier) == ()
    assert failures(replace(embedding, cosine=limits.cosine * 0.99), tier)[0].startswith("cosine")
    assert failures(replace(embedding, top10=limits.top10 * 0.99), tier)[0].startswith("overlap of the ten nearest")
    assert failures(figures(limits.rms), tier) == ()
    assert failures(figures(limits.rms * 1.01), tier)[0].startswith("rms error")


def test_random_weights_are_not_judged_by_a_lossy_tier() -> None:
    """Nobody knows what four bits cost weights that were drawn; an exact lever is judged on them all the same."""
    wrong = figures(3.0, 2.0)
    drawn = {"is_baseline": False, "random_weights": True}
    lossy = judge(wrong, Tier.FOUR_BIT, "bf16", BASELINE, **drawn)

    assert (lossy.judged, lossy.failures) == (False, ())
    assert judge(wrong, Tier.EXACT, "bf16", BASELINE, **drawn).failures != ()
    assert judge(wrong, Tier.EXACT, "bf16", None, is_baseline=True, random_weights=False).failures == ()
