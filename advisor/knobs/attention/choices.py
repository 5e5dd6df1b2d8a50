"""The knob of attention with all of its choices: eager, flex_attention and torch's fused encoder layers stand here.

All give the same numbers up to rounding, so the tier is exact. What differs is whether the T×T scores are written to
memory (eager), whether pads rule the fast kernel out (sdpa: one pad and a 4D mask is built), and whether sequences can be
told apart without a mask (FlashAttention's cu_seq_lens). The families of sdpa and FlashAttention are in files of
their own.

Rule ids A0–A29 and B1 are levers.md's; A30 (flex_attention is compiled), A31, A32 and P19 are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.knobs.attention import flash, sdpa, switched, varlen
from advisor.knobs.attention.common import TRANSFORMERS, about, family, has_pads, is_packed, load, ran_as, rates
from advisor.knobs.attention.generations import NAMES
from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts

#: What flex_attention is expected to compile for, before any was seen: 8 to 230 s and more on an H100, most of it for the mask of
#: a packed row of odd length, and a search that expected 120 waited longer than it could save.
_FLEX_COMPILE_S = 300.0


def _eager_why_not(situation: Situation) -> list[Reason]:
    length = max(situation.workload.lengths)
    if length >= 1024:
        return [Reason("A0", Verdict.SLOW, "eager writes all T×T scores to memory")]
    return []


def _flex_unavailable(environment: Environment) -> Reason | None:
    if environment.is_cuda and environment.version("triton") is None:
        text = "flex_attention is compiled with triton, which isn't installed"
        return Reason("A30", Verdict.INVALID, text, "pip install triton")
    return None


def _flex_why_not(situation: Situation) -> list[Reason]:
    facts, is_cuda, reasons = situation.facts, situation.environment.is_cuda, []
    if situation.workload.trains and facts.drops_attention:
        reasons.append(
            Reason("A16", Verdict.INVALID, "flex_attention can't drop scores, as this model's training does")
        )
    if not facts.supports_flex:
        reasons.append(Reason("A10", Verdict.INVALID, f"{facts.architecture} does not support flex_attention"))
    if is_cuda and facts.head_dim < 16:
        text = f"head size {facts.head_dim}: flex_attention needs at least 16 on a GPU"
        reasons.append(Reason("A30", Verdict.INVALID, text))
    if not is_cuda:
        text = "on a CPU flex_attention is compiled with g++, 20 seconds and more for a shape, and is not faster then"
        reasons.append(Reason("A30", Verdict.INVALID, text, "--ignore-rule A30 tries it"))
        if facts.model_type == "gpt_oss":
            reasons.append(Reason("A14", Verdict.INVALID, "flex_attention does not compute attention sinks on a CPU"))
    if not facts.is_causal and is_packed(situation):
        text = "encoders do not look for packed sequences, and flex_attention takes no float mask: torch 2.13 crashes on one"
        instead = "choose sdpa, or FlashAttention on a GPU"
        reasons.append(Reason("P19", Verdict.WRONG, text, instead, about=about(situation, "packing")))
    return reasons


def _flex_rate(situation: Situation) -> float:
    if not situation.environment.is_cuda:
        return 0.5  # it is not slow once compiled, but compiles again and again: late in the order
    # With pads encoders of 256 and 512 tokens, a few blocks each, ask for 0.2 to 0.5 (tests/landscapes), and decoders of 2,048
    # and 4,096, which skip the blocks of their pads, for 1.5 to 6. Without: 2 to 6.
    if has_pads(situation):
        return 3.0 if situation.facts.is_causal else 0.25
    return 4.0


def _eager_rate(situation: Situation) -> float:
    """Scores in 16 bits are written and read again several times: the recorded landscapes ask for 0.3 to 1.3 on a GPU."""
    return 0.5 if situation.environment.is_cuda else 1.0


def _fused_rates(situation: Situation) -> Mapping[Term, float]:
    """On a GPU: with pads nested tensors, whose attention asks for 0.6 to 0.7 (XLM-R-base) or 0.1 to 0.35 (BERT-base on an H100).

    Without pads none: a layer is one call, its projections one product. XLM-R-base took 0.90 of the default's time, and
    MiniLM-L6, which waits for its launches, two thirds (docs/results/2026-11-27-h100-regret.md).
    """
    if not situation.environment.is_cuda:
        return {Term.ATTENTION: 2.7}
    if has_pads(situation):
        return {Term.ATTENTION: 0.5}
    return {Term.ATTENTION: sdpa.sdpa_rate(situation), Term.LINEAR: 1.1, Term.LAUNCHES: 1.4}


def _fused_why_not(situation: Situation) -> list[Reason]:
    """Rule B1: torch's fused layers are for plain encoders, and take the pads out by themselves."""
    facts = situation.facts
    if facts.is_causal:
        text = "what BetterTransformer did for decoders is sdpa today"
        return [Reason("B1", Verdict.INVALID, text, "choose sdpa")]
    reasons = []
    if not facts.fused_encoder:
        text = f"the layers of {facts.architecture} are not known to be those of torch.nn.TransformerEncoderLayer"
        reasons.append(Reason("B1", Verdict.INVALID, text, "choose sdpa"))
    if is_packed(situation):
        text = "torch's fused encoder layers take the pads out by themselves"
        instead = "choose padded or sorted"
        reasons.append(Reason("B1", Verdict.INVALID, text, instead, about=about(situation, "packing")))
    if situation.traits.quantises:
        text, instead = "torch's fused encoder layers have no quantised weights", "leave the weights as they are"
        reasons.append(Reason("B1", Verdict.INVALID, text, instead, about=about(situation, "quantization")))
    return reasons


def _default(facts: ModelFacts) -> str:
    return facts.default_attention


def _effective(reading: Reading) -> str:
    """By what was read back of the configuration, and for sdpa by what was launched. Unknown names stay as they are."""
    names = sorted({_named(name, reading) for name in reading.attention.values() if name})
    return "+".join(names) if names else "eager"


def _named(implementation: str, reading: Reading) -> str:
    if implementation != "sdpa":
        return NAMES.get(implementation, implementation)
    return "bettertransformer" if family(reading) == "fused layer" else sdpa.effective_sdpa(reading)


def _facts(model: Any) -> Mapping[str, Any]:
    from advisor.knobs.attention.own_torch import is_fusable

    return {"fused_encoder": is_fusable(model)}


_EAGER = Choice(
    "attention",
    "eager",
    "plain matrix products; writes the T×T scores",
    TRANSFORMERS,
    why_not=_eager_why_not,
    load=load("eager"),
    proof=ran_as("eager"),
    rates=rates(_eager_rate, launches=0.75),
    traits=Traits(writes_scores=True, adds_mask=True),
)
_FLEX = Choice(
    "attention",
    "flex_attention",
    "torch's flex_attention, compiled; masks by blocks",
    "https://pytorch.org/docs/stable/nn.attention.flex_attention.html",
    unavailable=_flex_unavailable,
    why_not=_flex_why_not,
    load=load("flex_attention"),
    proof=ran_as("flex", "flex_attention"),
    rates=rates(_flex_rate, launches=0.6),
    traits=Traits(masks_by_block=True, compiles=True),
    compile_s=_FLEX_COMPILE_S,
)
_FUSED = Choice(
    "attention",
    "bettertransformer",
    "torch's fused encoder layers on nested tensors, without the pads",
    "https://pytorch.org/docs/stable/generated/torch.nn.TransformerEncoderLayer.html",
    why_not=_fused_why_not,
    load=load("sdpa"),
    after=("model = fuse_encoder(model)",),
    imports=("import torch", "from typing import Any"),
    functions=(("advisor.knobs.attention.own_torch", "fuse_encoder"),),
    proof=ran_as("fused layer"),
    rates=_fused_rates,
    traits=Traits(drops_pads=True, fuses_layers=True, own_load=True),
)

_CHOICES = (
    _EAGER,
    *sdpa.CHOICES,
    *switched.CHOICES,
    *flash.CHOICES,
    varlen.CHOICE,
    _FLEX,
    _FUSED,
)

KNOB = Knob(
    name="attention",
    summary="implementation of attention",
    reload=False,
    default=_default,
    effective=_effective,
    choices={choice.name: choice for choice in _CHOICES},
    reference=_EAGER.name,
    facts=_facts,
    place=10,
)
