"""torch's scaled_dot_product_attention: left to choose its kernel, or held to one of four.

Without a mask FlashAttention or cuDNN computes it; one pad, a packed batch or a window makes transformers build a mask,
which rules FlashAttention out. Sources: levers.md (rules A9, A11, A25, A27, A28, P12) and torch's sdp_utils.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from advisor.knobs.attention.common import (
    TRANSFORMERS,
    about,
    another,
    evidence,
    family,
    has_pads,
    is_packed,
    is_wide,
    lacks_pads_somewhere,
    launched_any,
    load,
    needs_mask,
    ran_as,
    rates,
    wide,
)
from advisor.knobs.choice import Choice, Reading, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_TORCH = "https://pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html"

#: The largest head that FlashAttention and cuDNN compute (elements).
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Kernel:
    """One kernel that scaled_dot_product_attention can be held to.

    switch: torch.backends.cuda's name of it, which steers a CPU too; operators: what it launches, by parts of names;
    rule: the id of its rules; rates: its relative speed without and with a mask.
    """

    name: str
    switch: str
    summary: str
    operators: tuple[str, ...]
    rule: str
    rates: tuple[float, float]

    @property
    def before(self) -> tuple[str, ...]:
        """The statements that allow this kernel alone: to what is compiled too, whose cache on disk asks nobody."""
        allowing = [f"torch.backends.cuda.enable_{other.switch}_sdp({other.name == self.name})" for other in KERNELS]
        return (*allowing, f'torch.compiler.config.cache_key_tag = "sdpa-{self.name}"')


KERNELS = (
    Kernel("flash", "flash", "FlashAttention in torch; no mask", ("_scaled_dot_product_flash_attention",), "A25", (8.0, 8.0)),
    Kernel("efficient", "mem_efficient", "memory-efficient attention in torch",
           ("_scaled_dot_product_efficient_attention",), "A25", (4.0, 1.6)),
    Kernel("cudnn", "cudnn", "cuDNN's attention", ("_scaled_dot_product_cudnn_attention",), "A27", (8.0, 3.0)),
    Kernel("math", "math", "plain matrix products in torch; writes the T×T scores",
           ("_scaled_dot_product_attention_math",), "A0", (0.9, 0.9)),
)  # fmt: skip

#: The one that can be switched to another generation of FlashAttention, and the name of the choice that does it.
FLASH, SWITCHED = KERNELS[0], "sdpa-flash-{}"


def effective_sdpa(reading: Reading) -> str:
    """Return "sdpa", or the choice that held it to one kernel: unless the automatic choice launched the same.

    With its flash kernel switched to another generation, what the automatic choice launches is switched too.
    """
    if reading.flash_impl and kernels_of(evidence(reading)) == {FLASH.name}:
        return SWITCHED.format(reading.flash_impl.lower())
    allowed = set(reading.sdp_kernels)
    if len(allowed) != 1:
        return "sdpa"
    ran = kernels_of(evidence(reading))
    return "sdpa" if ran and ran == kernels_of(reading.automatic) else f"sdpa-{allowed.pop()}"


def kernels_of(operators: Sequence[str]) -> set[str]:
    """Return sdpa's kernels whose operators were launched, by name."""
    return {kernel.name for kernel in KERNELS if launched_any(operators, kernel.operators)}


def _unavailable(kernel: Kernel) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        if kernel.name == "math":
            return None
        if not environment.is_cuda:
            if kernel.name == "flash":
                return Reason("A29", Verdict.ALIAS, "on a CPU sdpa picks its flash kernel by itself", "choose sdpa")
            return Reason(kernel.rule, Verdict.INVALID, f"{kernel.summary} runs on NVIDIA GPUs only", "choose sdpa")
        if kernel.name != "efficient" and (environment.compute_capability or (0, 0)) < (8, 0):
            return Reason(
                kernel.rule, Verdict.INVALID, f"{kernel.summary}: needs compute capability 8.0", "choose sdpa"
            )
        return None

    return unavailable


def _unsupported(situation: Situation) -> list[Reason]:
    facts = situation.facts
    if not facts.supports_sdpa:
        return [Reason("A9", Verdict.INVALID, f"{facts.architecture} does not support sdpa; its default is eager")]
    if facts.softcap:
        return [Reason("A11", Verdict.INVALID, "sdpa attention does not support softcap, which this model needs")]
    return []


def _slides(situation: Situation) -> list[Reason]:
    window = situation.facts.sliding_window
    if window is not None and max(situation.workload.lengths) >= window:
        return [Reason("A28", Verdict.SLOW, "sliding-window layers need a mask under sdpa")]
    return []


def _sdpa_why_not(situation: Situation) -> list[Reason]:
    reasons = _unsupported(situation)
    if has_pads(situation):
        reasons.append(
            Reason("P12", Verdict.WARN, "one pad in a batch rules the flash kernel out and builds a 4D mask")
        )
    return reasons + _slides(situation)


def flash_why_not(situation: Situation) -> list[Reason]:
    """Return the rules of sdpa's flash kernel, whichever generation it is."""
    facts, reasons = situation.facts, _unsupported(situation)
    if has_pads(situation) or is_packed(situation):
        remedy = "pack the batch with torch_varlen or FlashAttention" if has_pads(situation) else "choose torch_varlen"
        text = "sdpa's flash kernel takes no mask, and this batch needs one"
        reasons.append(Reason("A25", Verdict.INVALID, text, remedy, about=about(situation, "packing")))
    elif needs_mask(situation):
        text = f"sdpa's flash kernel takes no mask, and rows longer than the window of {facts.sliding_window} need one"
        reasons.append(Reason("A25", Verdict.INVALID, text))
    if is_wide(situation):
        reasons.append(wide("A25", situation, "sdpa's flash kernel"))
    if facts.head_dim > _LARGEST_HEAD:
        reasons.append(
            Reason("A25", Verdict.INVALID, f"head size {facts.head_dim}: sdpa's flash kernel takes at most 256")
        )
    return reasons


def _efficient_why_not(situation: Situation) -> list[Reason]:
    reasons = _unsupported(situation) + _slides(situation)
    if situation.traits.dtype == "bfloat16" and (situation.environment.compute_capability or (8, 0)) < (8, 0):
        text = "sdpa's efficient kernel has bf16 from compute capability 8.0 on"
        reasons.append(Reason("A25", Verdict.INVALID, text, "choose fp16", about=about(situation, "precision")))
    facts = situation.facts
    if facts.kv_heads != facts.heads and lacks_pads_somewhere(situation):
        # Seen on an H200 and an H100: transformers repeats grouped heads only where there is a mask, else torch is to do it.
        text = "sdpa's efficient kernel takes no grouped heads without a mask"
        reasons.append(Reason("A25", Verdict.INVALID, text, "choose sdpa", about=about(situation, "packing")))
    return reasons


def _cudnn_why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, _unsupported(situation) + _slides(situation)
    if facts.head_dim > _LARGEST_HEAD or facts.head_dim % 8:
        text = f"head size {facts.head_dim}: cuDNN's attention needs a multiple of 8, at most 256"
        reasons.append(Reason("A27", Verdict.INVALID, text))
    elif facts.head_dim > 128:
        text = f"head size {facts.head_dim}: cuDNN's attention takes more than 128 only where cuDNN and the GPU are new"
        reasons.append(Reason("A27", Verdict.WARN, text))
    if is_wide(situation):
        reasons.append(wide("A27", situation, "cuDNN's attention"))
    return reasons


def _math_why_not(situation: Situation) -> list[Reason]:
    return [*_unsupported(situation), Reason("A0", Verdict.SLOW, "sdpa's math kernel writes all T×T scores to memory")]


_WHY_NOT = {
    "flash": flash_why_not,
    "efficient": _efficient_why_not,
    "cudnn": _cudnn_why_not,
    "math": _math_why_not,
}


def _proof(kernel: Kernel) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        if family(reading) != "sdpa":
            return another(reading)
        if reading.flash_impl:
            return f"torch's flash kernel is switched to {reading.flash_impl}"
        ran = kernels_of(evidence(reading))
        # math launches no fused operator, and its own is left out of a profile where it is inlined.
        if ran == {kernel.name} or (kernel.name == "math" and not ran):
            return None
        return f"sdpa launched its kernel {', '.join(sorted(ran)) or 'math'}"

    return proof


def sdpa_rate(situation: Situation) -> float:
    """Return the relative speed of sdpa with the kernel that it picks."""
    return 3.0 if needs_mask(situation) else 8.0


def _rate(kernel: Kernel) -> Callable[[Situation], float]:
    def rate(situation: Situation) -> float:
        # math writes its scores, in 32 bits, and is given them in 16: the recorded landscapes ask for 0.16 to 0.18 on a GPU.
        slowed = 0.3 if kernel.name == "math" and situation.environment.is_cuda else 1.0
        return slowed * kernel.rates[needs_mask(situation)]

    return rate


def _in_chunks() -> AbstractContextManager[None]:
    """Let torch's attention take some queries at a time: with grouped heads and no mask fp32 leaves it the math kernel alone."""
    from advisor.knobs.attention.fp32_torch import sdpa_in_chunks

    return sdpa_in_chunks()


def _choice(kernel: Kernel) -> Choice:
    return Choice(
        "attention",
        f"sdpa-{kernel.name}",
        f"sdpa held to one kernel: {kernel.summary}",
        _TORCH,
        unavailable=_unavailable(kernel),
        why_not=_WHY_NOT[kernel.name],
        load=load("sdpa"),
        before=kernel.before,
        imports=("import torch",),
        proof=_proof(kernel),
        rates=rates(_rate(kernel), launches=0.8 if kernel.name == "math" else 1.0),
        in_chunks=_in_chunks,
        traits=Traits(builds_mask=True, writes_scores=kernel.name == "math", pins_kernel=True),
    )


CHOICES = (
    Choice(
        "attention",
        "sdpa",
        "torch's scaled_dot_product_attention; transformers' default",
        TRANSFORMERS,
        why_not=_sdpa_why_not,
        load=load("sdpa"),
        proof=ran_as("sdpa"),
        rates=rates(sdpa_rate),
        in_chunks=_in_chunks,
        traits=Traits(builds_mask=True, writes_shared=True),
    ),
    *map(_choice, KERNELS),
)
