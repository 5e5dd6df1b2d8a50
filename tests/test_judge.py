"""What is wrong, which tier is reached and what may be recommended, from figures alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.knobs import KNOBS, choice_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Measurement
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import tier_reached, wrong
from advisor.quality.limits import (
    COARSE,
    FACTOR,
    FLOORS,
    FULL,
    KL_FACTOR,
    LAYOUT_LIMIT,
    LIMITS,
    MOST,
    MOST_WITH_EXPERTS,
    exact_limits,
)
from advisor.quality.objections import objections

LLAMA = ModelFacts(
    architecture="LlamaForCausalLM",
    model_type="llama",
    checkpoint_dtype="bfloat16",
    parameters=1000,
    parameter_bytes=2000,
    linear_parameters=900,
    layers=2,
    hidden_size=64,
    heads=4,
    kv_heads=4,
    head_dim=16,
    vocabulary=256,
    max_positions=64,
    supports_sdpa=True,
    supports_flash=True,
    switches_attention=True,
    default_attention="sdpa",
)
MIXTRAL = replace(LLAMA, architecture="MixtralForCausalLM", model_type="mixtral", experts=8)
FP32_LLAMA = replace(LLAMA, checkpoint_dtype="float32")

REFERENCE = "fp32, eager, one sequence at a time, 64 positions"


def figures(rms: float, kl: float | None = None, **more: object) -> Quality:
    """Return the figures of a configuration against a reference in fp32."""
    return Quality(rms, rms * 5, kl, **{"top1": None, "positions": 64, "reference": REFERENCE, **more})


def trial(
    quality: Quality | None,
    *,
    precision: str = "bf16",
    quantization: str = "none",
    packing: str = "padded",
    attention: str = "sdpa",
    outcome: Outcome = Outcome.OK,
) -> Trial:
    """Return a trial that ran and was timed."""
    ran = Configuration.of(
        {"attention": attention, "precision": precision, "quantization": quantization, "packing": packing}
    )
    measured = (Measurement("tokens_per_s", "tokens/s", (100.0,)),)
    return Trial(0, ran, ran, outcome, quality=quality, measurements=measured)


def bits_of(precision: str) -> int:
    """Return how fine a precision's numbers are, which limits go by."""
    return choice_of("precision", precision).traits.mantissa_bits


DEFAULT = trial(figures(0.05, 2e-3))


def said(quality: Quality, default: Trial | None = DEFAULT, facts: ModelFacts = LLAMA, **more: str) -> tuple[str, ...]:
    """Return what is wrong with a packed configuration of these figures."""
    return wrong(trial(quality, **{"packing": "packed", **more}), default, facts)


def test_twice_the_defaults_error_is_right_and_more_is_not() -> None:
    """The error may be doubled; KL grows with its square. Both limits stand in the failure, beside what was found."""
    assert said(figures(FACTOR * 0.05, KL_FACTOR * 2e-3)) == ()
    assert said(figures(0.101, 1e-3)) == ("rms error 1.01e-01 > 1.00e-01",)
    assert said(figures(0.01, 8.1e-3)) == ("KL 8.10e-03 > 8.00e-03 nats",)


@pytest.mark.parametrize("precision", KNOBS["precision"].choices)
@pytest.mark.parametrize("facts", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_a_wrong_default_does_not_open_the_gate(precision: str, facts: ModelFacts) -> None:
    """However wrong the default is, what it allows ends where right configurations of real shapes were seen to end."""
    most = (MOST_WITH_EXPERTS if facts.experts else MOST)[bits_of(precision)]
    facts, bad = (
        replace(facts, checkpoint_dtype={"fp16": "float16"}.get(precision, "bfloat16")),
        trial(figures(10.0, 5.0)),
    )
    if precision == "tf32":  # declared as lossy, so it is no exact lever
        return
    for default in (bad, None):
        assert said(figures(most.rms, most.kl), default, facts, precision=precision) == ()
        assert len(said(figures(most.rms * 1.01, most.kl * 1.01), default, facts, precision=precision)) == 2


@pytest.mark.parametrize("precision", KNOBS["precision"].choices)
def test_a_perfect_default_leaves_the_floor(precision: str) -> None:
    """Where the default has no error at all, what is too small to judge is let through, for logits."""
    floor, bits = FLOORS[bits_of(precision)], bits_of(precision)
    assert exact_limits(bits, LLAMA, figures(0.0, 0.0), from_logits=True) == (floor.rms, floor.kl)
    rms, _ = exact_limits(bits, LLAMA, figures(0.0), from_logits=False)
    assert rms == min(floor.rms, FLOORS[FULL].rms)  # a leak would pass under the floor of 16 bits in hidden states


def test_the_default_is_judged_like_everybody_else() -> None:
    """A default beyond what its dtype gives, or that reads its pads, is wrong output; a right one is not."""
    assert wrong(DEFAULT, DEFAULT, LLAMA) == ()
    for bad in (figures(MOST[COARSE].rms * 1.01, 1e-3), figures(0.0, 0.0, pads=1e-7), figures(0.0, 0.0, layout=0.01)):
        default = trial(bad)
        assert len(wrong(default, default, LLAMA)) == 1
        assert objections(default, default, Objective(), LLAMA)[0].startswith("wrong output: ")


def test_a_sequence_that_reads_others_is_wrong_however_little() -> None:
    """The probe has no floor, in any dtype and behind any lossy choice with random weights; it says which it reads."""
    for more in ({}, {"quantization": "nf4"}, {"precision": "fp32"}):
        assert "reads its neighbours" in said(figures(0.0, 0.0, neighbours=1e-9, drawn=True), **more)[0]
        assert "reads its pads" in said(figures(0.0, 0.0, pads=1e-9, drawn=True), **more)[0]
        assert said(figures(0.0, 0.0, neighbours=0.0, pads=0.0, own=1.0, repeat=0.0, drawn=True), **more) == ()


def test_what_reads_its_pads_by_design_is_right_where_they_are_neutral() -> None:
    """In fp32 the layout is right with the pads as they are, and far off with others; a kernel that alone reads is not that."""
    read = {"pads": 0.5, "layout": 1e-6}
    assert said(figures(0.0, 0.0, **read, layout_pads=0.5)) == ()
    assert (
        said(figures(0.0, 0.0, pads=3.5e-3, layout=1e-8, layout_pads=3.4e-3)) == ()
    )  # in a long text it weighs little
    assert said(figures(0.0, 0.0, **read, layout_pads=0.5), facts=MIXTRAL) != ()  # others go to other experts
    for more in (
        {"layout_pads": 0.0},
        {"layout_pads": None},
        {"layout_pads": 1e-3},
        {"layout_pads": 0.5, "layout": 0.2},
        {"layout_pads": 0.5, "layout": None},
    ):
        assert "reads its pads" in said(figures(0.0, 0.0, **{**read, **more}))[0]


def test_a_mixture_of_experts_may_move_by_rounding() -> None:
    """The tokens that an expert gets change its product's shape: some steps of the dtype are let through, a leak is not."""
    assert said(figures(0.0, 0.0, neighbours=1e-6), facts=MIXTRAL, precision="fp32") == ()
    assert said(figures(0.0, 0.0, neighbours=1e-4), facts=MIXTRAL, precision="fp32") != ()
    assert said(figures(0.0, 0.0, neighbours=1.0), facts=MIXTRAL) != ()


def test_a_probe_that_could_not_fail_is_a_failure() -> None:
    """Where nothing moves although a sequence's own tokens changed, nothing was shown."""
    assert said(figures(0.0, 0.0, probe_void="its own tokens do not move it")) == (
        "the independence probe is void: its own tokens do not move it",
    )
    assert "random" in said(figures(0.0, 0.0, repeat=0.5))[0]


def test_the_layout_is_judged_in_fp32() -> None:
    """What a floor of bf16 hides, positions, windows and masks, is held to fp32's limit, behind lossy choices too."""
    assert said(figures(0.0, 0.0, layout=LAYOUT_LIMIT)) == ()
    for more in ({}, {"quantization": "nf4"}):
        assert "layout is wrong" in said(figures(0.0, 0.0, layout=LAYOUT_LIMIT * 1.01, drawn=True), **more)[0]


def test_layers_with_a_state_have_a_limit_of_their_own() -> None:
    """Tables of decays that 16 bits round are no wrong layout (MiniMax: 7e-4); what is wrong all along is off by more."""
    minimax = replace(LLAMA, layer_types=("full_attention", "linear_attention"))
    for facts in (minimax, replace(LLAMA, recurrent=True)):
        assert said(figures(0.0, 0.0, layout=7e-4), facts=facts) == ()
        assert "layout is wrong" in said(figures(0.0, 0.0, layout=5e-3), facts=facts)[0]
    assert "layout is wrong" in said(figures(0.0, 0.0, layout=7e-4))[0]


@pytest.mark.parametrize("tier", LIMITS)
def test_every_limit_of_a_lossy_tier_is_one(tier: Tier) -> None:
    """A hundredth beyond one limit, whichever it is, the tier is not reached."""
    limits = LIMITS[tier]
    good = figures(0.5, limits.kl, top1=limits.top1, perplexity_ratio=limits.perplexity_ratio)
    embedding = figures(0.5, cosine=limits.cosine, top10=limits.top10)
    broken = [
        replace(good, kl=limits.kl * 1.01),
        replace(good, top1=limits.top1 * 0.99),
        replace(good, perplexity_ratio=limits.perplexity_ratio * 1.01),
        replace(embedding, cosine=limits.cosine * 0.99),
        replace(embedding, top10=limits.top10 * 0.99),
        figures(limits.rms * 1.01),
    ]
    ran = {
        Tier.DTYPE: {"precision": "bf16"},
        Tier.EIGHT_BIT: {"quantization": "int8"},
        Tier.FOUR_BIT: {"quantization": "nf4"},
    }
    configuration = trial(None, **{"precision": "fp32", **ran[tier]}).ran
    for quality in (good, embedding, figures(limits.rms)):
        assert tier_reached(quality, configuration, FP32_LLAMA) is tier
    for quality in broken:
        assert tier_reached(quality, configuration, FP32_LLAMA) is not tier


def test_the_tier_asked_for_is_the_limit_on_figures() -> None:
    """bf16 of an fp32 model that misses the tier dtype at 98.86 % reaches 8bit, where nf4 may have 94 %."""
    found = trial(replace(figures(0.01, 5e-4), top1=0.9886))
    assert tier_reached(found.quality, found.ran, FP32_LLAMA) is Tier.EIGHT_BIT
    assert objections(found, None, Objective(quality=Tier.EIGHT_BIT), FP32_LLAMA) == []
    assert objections(found, None, Objective(quality=Tier.FOUR_BIT), FP32_LLAMA) == []
    (why,) = objections(found, None, Objective(quality=Tier.DTYPE), FP32_LLAMA)
    assert "8bit" in why
    assert "top-1 agreement 0.9886 < 0.99" in why


def test_a_row_has_the_worse_of_the_declared_and_the_reached_tier() -> None:
    """Figures never make nf4 an 8-bit choice, and no tier makes an exact lever right that is outside its floors."""
    perfect = trial(replace(figures(0.0, 0.0), top1=1.0), quantization="nf4")
    assert tier_reached(perfect.quality, perfect.ran, LLAMA) is Tier.FOUR_BIT
    assert objections(perfect, None, Objective(quality=Tier.EIGHT_BIT), LLAMA) != []
    exact = trial(figures(1.0, 1.0), packing="packed")
    assert objections(exact, DEFAULT, Objective(quality=Tier.FOUR_BIT), LLAMA)[0].startswith("wrong output")


def test_random_weights_reach_no_lossy_tier() -> None:
    """Nobody knows what four bits cost weights that were drawn; an exact lever is judged on them all the same."""
    lossy = trial(figures(3.0, 2.0, drawn=True), quantization="nf4")
    assert tier_reached(lossy.quality, lossy.ran, LLAMA) is None
    wide = Objective(quality=Tier.FOUR_BIT)
    assert "not judged" in objections(lossy, None, wide, LLAMA)[0]
    assert objections(lossy, None, replace(wide, allow_unjudged=True), LLAMA) == []
    assert objections(trial(figures(3.0, 2.0, drawn=True)), None, wide, LLAMA) != []


def test_nobody_is_judged_by_a_reference_of_16_bits() -> None:
    """A reference in bf16 has errors of its own: what was held to it is unjudged, and never wrong for it."""
    found = trial(figures(0.5, 0.5, reference="bf16, eager, one sequence at a time, 64 positions"))
    assert wrong(found, None, LLAMA) == ()
    assert "bf16, eager" in objections(found, None, Objective(), LLAMA)[0]


def test_verdicts_of_earlier_versions_are_not_read() -> None:
    """Rows that were stored with their verdict are judged again: figures stay, failures and `judged` are left out."""
    payload = {**figures(1.0, 1.0).payload, "failures": [], "judged": False}
    for name in ("drawn", "neighbours", "layout"):
        del payload[name]
    old = Quality.of(payload)
    assert old is not None
    assert old.drawn
    assert wrong(trial(old), None, LLAMA) != ()


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.OK, Outcome.WRONG_OUTPUT)])
def test_what_did_not_run_to_its_end_is_never_recommended(outcome: Outcome) -> None:
    """Its outcome is the objection."""
    assert objections(trial(None, outcome=outcome), None, Objective(), LLAMA) == [str(outcome)]


def test_a_trial_that_was_called_wrong_is_judged_by_figures() -> None:
    """An outcome of wrong_output is what was thought then: by today's rules it may be right, and was not timed."""
    found = replace(trial(figures(0.01, 1e-4), outcome=Outcome.WRONG_OUTPUT), measurements=())
    assert objections(found, DEFAULT, Objective(), LLAMA) == ["it was not timed"]
