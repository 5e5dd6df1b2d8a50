"""Attention: which implementation computes softmax(QKᵀ)V.

All give the same numbers up to rounding, so the tier is exact. What differs is whether the T×T scores are written to
memory (eager), whether pads rule the fast kernel out (sdpa: one pad and a 4D mask is built), and whether sequences can be
told apart without a mask (FlashAttention's cu_seq_lens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Verdict
from advisor.model import ModelFacts

_TRANSFORMERS = "https://huggingface.co/docs/transformers/attention_interface"
_FLASH = "https://github.com/Dao-AILab/flash-attention"


def _flash_2_unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason("A18", Verdict.INVALID, "FlashAttention-2 runs on NVIDIA GPUs only", "use a GPU")
    if (environment.compute_capability or (0, 0)) < (8, 0):
        return Reason(
            "A1", Verdict.INVALID, "FlashAttention only supports Ampere GPUs or newer (compute capability 8.0)"
        )
    version = environment.version("flash-attn")
    if version is None:
        return Reason("A18", Verdict.INVALID, "the package flash-attn isn't installed",
                      "pip install flash-attn --no-build-isolation")  # fmt: skip
    if version < (2, 3, 3):
        return Reason(
            "A18", Verdict.INVALID, "flash-attn is older than 2.3.3", "pip install -U flash-attn --no-build-isolation"
        )
    return None


def _eager_why_not(situation: Situation) -> list[Reason]:
    length = max(situation.workload.lengths)
    if length >= 1024:
        return [Reason("A0", Verdict.SLOW, "eager writes all T×T scores to memory")]
    return []


def _sdpa_why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, []
    if not facts.supports_sdpa:
        reasons.append(
            Reason("A9", Verdict.INVALID, f"{facts.architecture} does not support sdpa; its default is eager")
        )
    elif facts.softcap:
        reasons.append(
            Reason("A11", Verdict.INVALID, "sdpa attention does not support softcap, which this model needs")
        )
    if situation.workload.padding > 0 and situation.configuration["packing"] in ("padded", "sorted"):
        reasons.append(
            Reason("P12", Verdict.WARN, "one pad in a batch rules the flash kernel out and builds a 4D mask")
        )
    window = facts.sliding_window
    if window is not None and max(situation.workload.lengths) >= window:
        reasons.append(Reason("A28", Verdict.SLOW, "sliding-window layers need a mask under sdpa"))
    return reasons


def _flash_2_why_not(situation: Situation) -> list[Reason]:
    facts, configuration, reasons = situation.facts, situation.configuration, []
    if not facts.supports_flash:
        reasons.append(Reason("A8", Verdict.INVALID, f"{facts.architecture} does not support FlashAttention-2"))
    if configuration["precision"] in ("fp32", "tf32"):
        reasons.append(Reason("A4", Verdict.INVALID, "FlashAttention supports only fp16 and bf16",
                              "choose bf16 or fp16", about=f"precision={configuration['precision']}"))  # fmt: skip
    if facts.head_dim > 256 or facts.head_dim % 8:
        reasons.append(
            Reason(
                "A5",
                Verdict.INVALID,
                f"head size {facts.head_dim}: FlashAttention-2 needs a multiple of 8, at most 256",
            )
        )
    if facts.alibi:
        reasons.append(Reason("A13", Verdict.INVALID, "ALiBi is not supported with FlashAttention-2"))
    if facts.softcap and (situation.environment.version("flash-attn") or ()) < (2, 6):
        reasons.append(
            Reason("A12", Verdict.INVALID, "this flash-attn does not support softcap", "pip install -U flash-attn")
        )
    if facts.model_type == "gpt_oss":
        reasons.append(
            Reason("A14", Verdict.ALIAS, "attention sinks: transformers replaces FlashAttention-2 by another")
        )
    if situation.workload.padding > 0 and configuration["packing"] in ("padded", "sorted"):
        reasons.append(Reason("P11", Verdict.WARN, "with pads every layer un-pads, pads again and waits for the host"))
    return reasons


def _fused(reading: Reading) -> bool:
    return reading.launched("scaled_dot_product") or reading.launched("flash_fwd")


def _eager_proof(reading: Reading) -> str | None:
    return "a fused attention kernel was launched" if _fused(reading) else None


def _sdpa_proof(reading: Reading) -> str | None:
    return None if reading.launched("scaled_dot_product") else "no scaled_dot_product_attention was launched"


def _flash_2_proof(reading: Reading) -> str | None:
    if not reading.launched("flash_fwd"):
        return "no flash_fwd kernel was launched"
    return "scaled_dot_product_attention was launched" if reading.launched("scaled_dot_product") else None


def _sdpa_rate(situation: Situation) -> float:
    masked = situation.workload.padding > 0 or situation.configuration["packing"].startswith("packed")
    return 3.0 if masked else 8.0


def _effective(reading: Reading) -> str:
    names = sorted({name for name in reading.attention.values() if name})
    return "+".join(names) if names else "eager"


def tells_sequences_apart(attention: str) -> bool:
    """Whether this implementation keeps packed sequences apart without a mask, by where they begin."""
    return attention.startswith(("flash_attention_", "hub-")) or attention == "torch_varlen"


def _default(facts: ModelFacts) -> str:
    return facts.default_attention


def _load(name: str) -> Callable[[Configuration], Mapping[str, str]]:
    return lambda _: {"attn_implementation": repr(name)}


KNOB = Knob(
    name="attention",
    summary="implementation of attention",
    reload=False,
    default=_default,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            Choice("attention", "eager", "plain matrix products; writes the T×T scores", _TRANSFORMERS,
                   why_not=_eager_why_not, load=_load("eager"), proof=_eager_proof, rate=lambda _: 1.0),
            Choice("attention", "sdpa", "torch's scaled_dot_product_attention; transformers' default", _TRANSFORMERS,
                   why_not=_sdpa_why_not, load=_load("sdpa"), proof=_sdpa_proof, rate=_sdpa_rate),
            Choice("attention", "flash_attention_2", "the flash-attn package; tells packed sequences apart without a mask",
                   _FLASH, unavailable=_flash_2_unavailable, why_not=_flash_2_why_not, load=_load("flash_attention_2"),
                   proof=_flash_2_proof, rate=lambda _: 7.0),
        )
    },
)  # fmt: skip
