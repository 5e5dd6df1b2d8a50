"""What the families of attention share: when a mask is built, and what a profile shows of each family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from advisor.knobs.choice import Reading, Reason, Situation, Term, Verdict
from advisor.nouns.configuration import Configuration
from advisor.workloads import Workload

TRANSFORMERS = "https://huggingface.co/docs/transformers/attention_interface"

#: The operators of one family each, by a part of their names. FlashAttention's kernels inside torch are launched under
#: scaled_dot_product_attention and by varlen_attn too, so a kernel's name alone proves no package.
_FUSED_LAYER = "_transformer_encoder_layer_fwd"
_SDPA = "scaled_dot_product"
_SCORES = ("softmax",)
_VARLEN = ("_varlen_attn", "aten::_flash_attention_forward")

#: What computes attention in one kernel: a compiler calls it as it is.
_ONE_KERNEL = (
    *_VARLEN,
    _FUSED_LAYER,
    "flash",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)

#: The families that launch torch's flash kernel, which can be switched to another generation for the whole process.
_SWITCHED = ("sdpa", "varlen")


def load(name: str) -> Callable[[Configuration], Mapping[str, str]]:
    """Return what loads a model with this implementation."""
    return lambda _: {"attn_implementation": repr(name)}


def has_pads(situation: Situation) -> bool:
    """Whether a batch has pads, and so a 2D mask with zeros."""
    workload, traits = situation.workload, situation.traits
    return not traits.packs and workload.padded_tokens(by_length=traits.by_length) > workload.tokens


def lacks_pads_somewhere(situation: Situation) -> bool:
    """Whether a batch has no pads, and is not packed: transformers gives it no mask."""
    return not situation.traits.packs and _has_even_batch(situation.workload, by_length=situation.traits.by_length)


@lru_cache(maxsize=64)
def _has_even_batch(workload: Workload, *, by_length: bool) -> bool:
    lengths = workload.lengths
    return any(len({lengths[i] for i in batch}) == 1 for batch in workload.batches(by_length=by_length))


def is_packed(situation: Situation) -> bool:
    """Whether several sequences share a row."""
    return situation.traits.packs


def needs_mask(situation: Situation) -> bool:
    """Whether scaled_dot_product_attention is given a mask: for pads, packed sequences, and windows shorter than a row."""
    window = situation.facts.sliding_window
    slides = window is not None and max(situation.workload.lengths) >= window
    return has_pads(situation) or is_packed(situation) or slides


def about(situation: Situation, knob: str) -> str:
    """Return the other knob's choice as a reason names it."""
    return f"{knob}={situation.configuration[knob]}"


def is_wide(situation: Situation) -> bool:
    """Whether the arithmetic is in 32 bits, which FlashAttention and cuDNN do not compute."""
    return situation.traits.bytes_per_value > 2 and not situation.traits.autocasts


def drops_nothing(situation: Situation, who: str) -> list[Reason]:
    """Rule A15: what has no dropout of scores trains a model that is made with one otherwise, and transformers warns alone."""
    if not (situation.workload.trains and situation.facts.drops_attention):
        return []
    text = f"{who} drops no scores, as this model's training does: it would learn in another way"
    return [Reason("A15", Verdict.WRONG, text)]


def wide(rule: str, situation: Situation, who: str) -> Reason:
    """Return the reason that refuses fp32 and tf32."""
    text = f"{who} computes in fp16 and bf16 only"
    return Reason(rule, Verdict.INVALID, text, "choose bf16 or fp16", about=about(situation, "precision"))


def rates(
    rate: Callable[[Situation], float], launches: float = 1.0, launches_with_pads: float | None = None
) -> Callable[[Situation], Mapping[Term, float]]:
    """Return the rates of a choice of attention: its speed on softmax(QKᵀ)V, and on what the CPU launches for a batch.

    launches, launches_with_pads: over sdpa's, as MiniLM-L6 with 8 × 64 tokens was searched on an H100, which waits for it.
    """

    def found(situation: Situation) -> Mapping[Term, float]:
        beside = launches_with_pads if launches_with_pads is not None and has_pads(situation) else launches
        return {Term.ATTENTION: rate(situation), Term.LAUNCHES: beside}

    return found


def reads_back(reading: Reading, implementation: str) -> bool:
    """Whether this implementation, and no other, was read back from the model and its sub-configurations."""
    return {name for name in reading.attention.values() if name} == {implementation}


def launched_any(operators: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether an operator or kernel has one of these parts in its name, whichever the case."""
    wanted = [part.lower() for part in parts]
    return any(part in name.lower() for name in operators for part in wanted)


def evidence(reading: Reading) -> Sequence[str]:
    """Return the operators that show what computed attention.

    A compiler melts plain products and their softmax into kernels of its own, which have no such name on a CPU. So where a
    compiled step shows nothing of attention, those of the same step uncompiled do, if they are plain products too: whatever else
    they show is called as it is from what was compiled, and was not.
    """
    if not reading.uncompiled or launched_any(reading.operators, (_FUSED_LAYER, _SDPA, *_SCORES, *_VARLEN, "flash")):
        return reading.operators
    is_plain = launched_any(reading.uncompiled, _SCORES) and not launched_any(reading.uncompiled, _ONE_KERNEL)
    return reading.uncompiled if is_plain else reading.operators


def family(reading: Reading) -> str:
    """Return what computed attention by the operators launched: fused layer, sdpa, flex, varlen, flash or eager.

    The order matters: torch's fused layer may call sdpa, and sdpa and varlen_attn launch FlashAttention's kernels.
    """
    operators = evidence(reading)
    if launched_any(operators, (_FUSED_LAYER,)):
        return "fused layer"
    if launched_any(operators, (_SDPA,)):
        return "sdpa"
    if _is_flex(reading):
        return "flex"
    if launched_any(operators, _VARLEN):
        return "varlen"
    return "flash" if launched_any(operators, ("flash",)) else "eager"


def another(reading: Reading) -> str:
    """Return, in words, what computed attention where that is not what was asked for."""
    if (
        not _has_scores(reading)
        and family(reading) == "eager"
        and launched_any(reading.operators, ("CompiledFxGraph",))
    ):
        return "nothing that was launched shows what computed attention"
    return f"the operators launched are those of {family(reading)} attention"


def _has_scores(reading: Reading) -> bool:
    """Whether a softmax was seen; of a class that knows one way to attend, its own, none is expected."""
    return reading.one_way or launched_any(evidence(reading), _SCORES)


def _is_flex(reading: Reading) -> bool:
    """Whether flex_attention ran: a GPU's kernel bears its name; on a CPU it is a compiled graph without one.

    There, what was read back and the lack of a softmax among the operators must do.
    """
    operators = reading.operators
    if launched_any(operators, ("triton_tem_fused_flex_attention", "triton_flex_attention")):
        return True
    if not reads_back(reading, "flex_attention"):
        return False
    on_gpu = launched_any(operators, ("LaunchKernel",))
    compiled = launched_any(operators, ("CompiledFxGraph",)) and not launched_any(operators, ("softmax",))
    return launched_any(operators, ("flex_attention", "triton_tem")) or (compiled and not on_gpu)


def ran_as(wanted: str, implementation: str | None = None) -> Callable[[Reading], str | None]:
    """Return the proof that a family computed attention and that this implementation was read back."""

    def proof(reading: Reading) -> str | None:
        if family(reading) != wanted:
            return another(reading)
        if wanted == "eager" and not _has_scores(reading):
            return "no softmax was launched, by which eager attention shows"
        if wanted in _SWITCHED and reading.flash_impl:
            return f"torch's flash kernel is switched to {reading.flash_impl}"
        if implementation is not None and not reads_back(reading, implementation):
            return f"the implementation read back is {', '.join(sorted(set(reading.attention.values())))}"
        return None

    return proof
