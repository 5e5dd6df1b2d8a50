"""torch's own varlen_attn: FlashAttention inside torch, without a package, told apart by where sequences begin.

A31 and P20 are ours, read in torch 2.10–2.13's nn/attention/varlen.py.
"""

from __future__ import annotations

from advisor.knobs.attention.common import about, drops_nothing, has_pads, is_packed, load, ran_as, rates, wide
from advisor.knobs.attention.flash import in_fp32
from advisor.knobs.choice import Choice, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_SOURCE = "https://pytorch.org/docs/stable/nn.attention.varlen.html"


def _unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason("A31", Verdict.INVALID, "torch's varlen_attn runs on NVIDIA GPUs only", "use a GPU")
    if (environment.compute_capability or (0, 0)) < (8, 0):
        text = "torch's varlen_attn is FlashAttention, which needs compute capability 8.0"
        return Reason("A1", Verdict.INVALID, text)
    if (environment.version("torch") or ()) < (2, 10):
        return Reason("A31", Verdict.INVALID, "varlen_attn came with torch 2.10", "pip install -U torch")
    return None


def _why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, []
    if not facts.switches_attention:
        text = f"{facts.architecture} does not take registered attention functions"
        reasons.append(Reason("A23", Verdict.INVALID, text))
    if not facts.supports_flash:
        text = f"{facts.architecture} does not support FlashAttention, which torch's varlen_attn is"
        reasons.append(Reason("A8", Verdict.INVALID, text))
    if situation.traits.bytes_per_value > 2:  # under autocast too: rotary positions make queries and keys wide again
        reasons.append(wide("A4", situation, "torch's varlen_attn"))
    if facts.head_dim > 256 or facts.head_dim % 8:
        text = f"head size {facts.head_dim}: torch's varlen_attn needs a multiple of 8, at most 256"
        reasons.append(Reason("A5", Verdict.INVALID, text))
    if has_pads(situation):
        text = "torch's varlen_attn has no mask, and this batch has pads"
        reasons.append(Reason("P20", Verdict.INVALID, text, "pack the batch", about=about(situation, "packing")))
    return reasons + drops_nothing(situation, "torch's varlen_attn") + _unknown(situation)


def _unknown(situation: Situation) -> list[Reason]:
    """Refuse what the kernel, or its function in this torch, does not compute."""
    facts, reasons = situation.facts, []
    if facts.softcap:
        reasons.append(Reason("A12", Verdict.INVALID, "torch's varlen_attn does not support softcap"))
    if facts.alibi:
        reasons.append(Reason("A13", Verdict.INVALID, "ALiBi is not supported with torch's varlen_attn"))
    if facts.model_type == "gpt_oss":
        reasons.append(Reason("A14", Verdict.INVALID, "torch's varlen_attn does not compute attention sinks"))
    window = facts.sliding_window
    slides = window is not None and max(situation.workload.lengths) > window
    if slides and (situation.environment.version("torch") or ()) < (2, 11):
        text = "varlen_attn takes a sliding window from torch 2.11 on"
        reasons.append(Reason("A28", Verdict.INVALID, text, "pip install -U torch"))
    return reasons


def _rate(situation: Situation) -> float:
    # Rows of equal length are copied into one before the kernel runs.
    return 7.0 if is_packed(situation) else 6.5


CHOICE = Choice(
    "attention",
    "torch_varlen",
    "FlashAttention inside torch (varlen_attn): no package; packed or equal lengths",
    _SOURCE,
    unavailable=_unavailable,
    why_not=_why_not,
    load=load("torch_varlen"),
    before=(
        'AttentionInterface.register("torch_varlen", varlen_attention)',
        'AttentionMaskInterface.register("torch_varlen", flash_attention_mask)',
    ),
    imports=(
        "import torch",
        "from typing import Any",
        "from transformers import AttentionInterface",
        "from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask",
    ),
    functions=(("advisor.knobs.attention.own_torch", "varlen_attention"),),
    proof=ran_as("varlen", "torch_varlen"),
    rates=rates(_rate, launches=0.75),
    in_fp32=in_fp32,
    traits=Traits(tells_apart=True),
)
