"""FlashAttention, as packages and as kernels from the Hub: the rules of the kernels, and the proof of which one ran.

All tell packed sequences apart by where they begin, without a mask. Where each can run stands in `generations.py`. Sources:
levers.md (A3–A8, A12–A14, A28, P11), and for FlashAttention-4 cute/interface.py (`_validate_head_dims`) and flash_fwd_sm120.py of
flash-attn-4 4.0.0b36. Its forward takes compute capability 8.0 too, and transformers declares 9.0: what is declared counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from advisor.knobs.attention.common import drops_nothing, has_pads, is_wide, load, ran_as, rates, wide
from advisor.knobs.attention.generations import FLASH_2, FLASH_4, FOUR, GENERATIONS, TWO, Generation, mend, unavailable
from advisor.knobs.choice import Choice, Reading, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_PACKAGES = "https://github.com/Dao-AILab/flash-attention"
_HUB = "https://huggingface.co/docs/transformers/kernel_doc/overview"


def _why_not(generation: Generation) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        facts, environment, reasons = situation.facts, situation.environment, []
        if not facts.supports_flash:
            text = f"{facts.architecture} does not support {generation.title}"
            reasons.append(Reason("A8", Verdict.INVALID, text))
        if is_wide(situation):
            reasons.append(wide("A4", situation, generation.title))
        if (size := head_size(facts.head_dim, generation, environment)) is not None:
            reasons.append(size)
        if facts.alibi:
            reasons.append(Reason("A13", Verdict.INVALID, f"ALiBi is not supported with {generation.title}"))
        version = environment.version(generation.package) if generation.package else None
        if facts.softcap and generation is FLASH_2 and (version or ()) < (2, 6):
            text, upgrade = "this flash-attn does not support softcap", "pip install -U flash-attn --no-build-isolation"
            reasons.append(Reason("A12", Verdict.INVALID, text, upgrade))
        if facts.model_type == "gpt_oss" and not generation.sinks:
            text = f"attention sinks: transformers replaces {generation.title} by another"
            reasons.append(Reason("A14", Verdict.ALIAS, text))
        if generation.number > 2:
            reasons += drops_nothing(situation, generation.title)
        return reasons + _slow(situation, generation) + _told(situation, generation)

    return why_not


#: Tiles of 128 queries, and of 64 keys and values in 16 bits, fit into the 99 KiB of compute capability 12.x up to this size.
_LARGEST_ON_12 = 192


def head_size(size: int, generation: Generation, environment: Environment) -> Reason | None:
    """Return why a generation has no kernel for heads of this size on this GPU (rules A5 and A6), or None."""
    if size > 256 or size % 8:
        text = f"head size {size}: {generation.title} needs a multiple of 8, at most 256"
        return Reason("A5", Verdict.INVALID, text)
    major = (environment.compute_capability or (0, 0))[0]
    if generation is not FLASH_4:
        return None
    if major in (10, 11) and 128 < size < 256:
        text = f"head size {size}: {generation.title} needs at most 128, or 256, on this GPU"
        return Reason("A6", Verdict.INVALID, text)
    if major == 12 and size > _LARGEST_ON_12:
        text = f"head size {size}: {generation.title}'s tiles need more shared memory than this GPU's 99 KiB"
        return Reason("A6", Verdict.INVALID, text)
    return None


def _slow(situation: Situation, generation: Generation) -> list[Reason]:
    major = (situation.environment.compute_capability or (0, 0))[0]
    if generation.number == 3 and major not in generation.best:
        text = "FlashAttention-3 is made for Hopper GPUs (compute capability 9.0); on others it may have no kernel"
        return [Reason("A3", Verdict.SLOW, text)]
    return []


def _told(situation: Situation, generation: Generation) -> list[Reason]:
    reasons = []
    if has_pads(situation):
        reasons.append(Reason("P11", Verdict.WARN, "with pads every layer un-pads, pads again and waits for the host"))
    packages = situation.environment.packages
    if TWO in packages and FOUR in packages and generation in (FLASH_2, FLASH_4):
        text = f"{TWO} and {FOUR} share the module flash_attn: which one runs goes by the distribution's name, and installing"
        text += f" or uninstalling {TWO} breaks {FOUR}"
        reasons.append(Reason("A20", Verdict.WARN, text, f"afterwards: {mend(situation.environment)}"))
    return reasons


#: The rate of a generation where rows have pads, whichever it is.
_WITH_PADS = 1.5


def _rate(generation: Generation) -> Callable[[Situation], float]:
    def rate(situation: Situation) -> float:
        major = (situation.environment.compute_capability or (0, 0))[0]
        # Pads are taken out before the kernel runs and put back after it, in every layer (BERT-base on an H200: 0.7 to 1.8).
        return _WITH_PADS if has_pads(situation) else generation.rates[0 if major in generation.best else 1]

    return rate


def _proof(generation: Generation) -> Callable[[Reading], str | None]:
    """Return the proof of a generation: FlashAttention ran, as this implementation, and not with another's operators.

    FlashAttention-4 has no operator of torch's but ours of a compiled graph (flash_attention_4::forward): what a profile shows
    are its autograd functions (FlashAttnFunc, FlashAttnVarlenFunc), whose names FlashAttention-2's have too, and on a GPU kernels
    such as kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at__….
    """
    ran = ran_as("flash", generation.implementation)

    def proof(reading: Reading) -> str | None:
        others = [name for name in reading.operators if name.startswith(generation.others or ("\0",))]
        return ran(reading) or (f"{others[0]} was launched, an operator of another generation" if others else None)

    return proof


def in_fp32(implementation: str) -> AbstractContextManager[None]:
    """Let FlashAttention's interface be computed in fp32 for a while."""
    from advisor.knobs.attention.fp32_torch import flash_in_fp32

    return flash_in_fp32(implementation)


def _choice(generation: Generation) -> Choice:
    return Choice(
        "attention",
        generation.name,
        generation.summary,
        _HUB if generation.package is None else _PACKAGES,
        unavailable=unavailable(generation),
        why_not=_why_not(generation),
        load=load(generation.implementation),
        packages=(generation.package or "kernels",),
        before=generation.before,
        imports=generation.imports,
        functions=generation.functions,
        proof=_proof(generation),
        rates=rates(_rate(generation), launches=0.75, launches_with_pads=0.6),
        in_fp32=in_fp32,
        # What stands for it in graphs is its forward pass alone: a layer of training was broken in 17 (Llama-1B on an H200).
        traits=Traits(tells_apart=True, breaks_backward=bool(generation.functions)),
    )


CHOICES = tuple(map(_choice, GENERATIONS))
