"""bitsandbytes: LLM.int8, and weights in four bits.

It saves memory; whether it saves time depends on the GPU and the batch, and mostly it does not (levers.md, Q20). The
compute dtype is always set, because transformers' default is fp32 (Q3), and so is the 4-bit type, because the default is
fp4 and not nf4 (Q4). Q28 is ours, found by a step that taught nothing (bitsandbytes 0.50).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.knobs.choice import Choice, Reason, Situation, Verdict, traits_of
from advisor.knobs.quantization.common import absent, dequantising_why_not, proof, rates
from advisor.knobs.traits import Traits
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier

SOURCE = "https://huggingface.co/docs/bitsandbytes"
_IMPORTS = ("import torch", "from transformers import BitsAndBytesConfig")

#: What its classes are in, and what transformers loads them with.
_PACKAGES = ("bitsandbytes", "accelerate")


def _unavailable(minimum: tuple[int, int], rule: str) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        if (missing := absent(environment, _PACKAGES, {})) is not None:
            return missing
        if environment.is_cuda and (environment.compute_capability or (0, 0)) < minimum:
            return Reason(
                rule, Verdict.INVALID, f"bitsandbytes needs compute capability {minimum[0]}.{minimum[1]} for it"
            )
        return None

    return unavailable


def _int8_why_not(situation: Situation) -> list[Reason]:
    reasons = dequantising_why_not(situation)
    if situation.traits.dtype == "bfloat16":
        reasons.append(Reason("Q5", Verdict.WARN, "LLM.int8 casts bf16 inputs to fp16"))
    return reasons


def _int8_without_why_not(situation: Situation) -> list[Reason]:
    text = "threshold 0.0 puts outliers into 8 bit too: faster, and further from the checkpoint"
    return [*_int8_why_not(situation), Reason("Q23", Verdict.WARN, text)]


def _four_bit_why_not(situation: Situation) -> list[Reason]:
    """Rule Q28: `Linear4bit.forward` repacks its weights for inference where it runs on a CPU in evaluation, for good."""
    reasons = dequantising_why_not(situation)
    if situation.workload.trains and not situation.environment.is_cuda:
        text = "on a CPU with AVX512-BF16 no gradient passes it any more once the model has run in evaluation"
        reasons.append(Reason("Q28", Verdict.WARN, text, "evaluate a copy of the model"))
    return reasons


def _int8_load(threshold: float) -> Callable[[Configuration], Mapping[str, str]]:
    return lambda _: {"quantization_config": f"BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold={threshold})"}


def _four_bit_load(kind: str, *, double: bool = False) -> Callable[[Configuration], Mapping[str, str]]:
    def load(configuration: Configuration) -> dict[str, str]:
        compute = f"torch.{traits_of(configuration).dtype}"
        more = ", bnb_4bit_use_double_quant=True" if double else ""
        return {
            "quantization_config": f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{kind}", '
            f"bnb_4bit_compute_dtype={compute}{more})"
        }

    return load


def _eight_bit(
    name: str, threshold: float, why_not: Callable[[Situation], list[Reason]], rate: float, *, independent: bool
) -> Choice:
    """Return a choice of LLM.int8: the columns whose inputs are above the threshold stay in 16 bits."""
    return Choice(
        "quantization",
        name,
        f"bitsandbytes LLM.int8, threshold {threshold}",
        SOURCE,
        _unavailable((7, 5), "Q2"),
        why_not,
        _int8_load(threshold),
        imports=_IMPORTS,
        packages=_PACKAGES,
        proof=proof(name),
        tier=lambda _: Tier.EIGHT_BIT,
        rates=rates(rate, training=0.75 * rate),
        traits=Traits(
            quantises=True,
            loaded_in_bits=True,
            keeps_inputs=True,
            linear=f"Linear8bitLt:{threshold}",
            bytes_per_weight=1.0,
            breaks_graphs=threshold > 0,  # which columns are outliers is decided on the way: 25 breaks in six layers
            independent=independent,
        ),
    )


def _four_bit(kind: str, words: str, rate: float, *, double: bool = False) -> Choice:
    """Return a choice in 4 bits: a scale every 64 weights, of 4 bytes, or of 1 where the scales are quantised too."""
    name = f"{kind}-double" if double else kind
    return Choice(
        "quantization",
        name,
        f"bitsandbytes 4-bit {words}",
        SOURCE,
        _unavailable((6, 0), "Q2"),
        _four_bit_why_not,
        _four_bit_load(kind, double=double),
        imports=_IMPORTS,
        packages=_PACKAGES,
        proof=proof(name),
        tier=lambda _: Tier.FOUR_BIT,
        rates=rates(rate, training=1.6 * rate),  # a step of an 8B took 1.03 of the time that it took in bf16 (H200)
        traits=Traits(
            quantises=True,
            loaded_in_bits=True,
            linear=f"Linear4bit:{kind}" + (":double" if double else ""),
            bytes_per_weight=0.5 + (1 if double else 4) / 64,
        ),
    )


CHOICES = (
    _eight_bit("int8", 6.0, _int8_why_not, 0.45, independent=False),
    _eight_bit("int8-no-outliers", 0.0, _int8_without_why_not, 0.8, independent=True),
    _four_bit("nf4", "NormalFloat", 0.6),
    _four_bit("nf4", "NormalFloat, scales quantised too", 0.5, double=True),
    _four_bit("fp4", "float", 0.59),
)
