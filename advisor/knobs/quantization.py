"""Quantization: weights in 8 or 4 bit by bitsandbytes.

It saves memory; whether it saves time depends on the GPU and the batch, and mostly it does not (levers.md, Q20). The
compute dtype is always set, because transformers' default is fp32 (Q3), and so is the 4-bit type, because the default is
fp4 and not nf4 (Q4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Verdict
from advisor.knobs.precision import TORCH_DTYPES
from advisor.model import ModelFacts
from advisor.objective import Tier

_SOURCE = "https://huggingface.co/docs/bitsandbytes"
_IMPORTS = ("import torch", "from transformers import BitsAndBytesConfig")


def _unavailable(minimum: tuple[int, int], rule: str) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        for package in ("bitsandbytes", "accelerate"):
            if environment.version(package) is None:
                return Reason("Q0", Verdict.INVALID, f"the package {package} isn't installed", f"pip install {package}")
        if environment.is_cuda and (environment.compute_capability or (0, 0)) < minimum:
            return Reason(
                rule, Verdict.INVALID, f"bitsandbytes needs compute capability {minimum[0]}.{minimum[1]} for it"
            )
        return None

    return unavailable


def _why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, []
    if facts.prequantized:
        reasons.append(Reason("Q16", Verdict.INVALID, f"the checkpoint is quantised already ({facts.prequantized})"))
    if situation.configuration["precision"] == "fp32" and situation.environment.is_cuda:
        reasons.append(Reason("Q3", Verdict.SLOW, "quantised layers computing in fp32 use no tensor cores"))
    if situation.workload.tokens >= 4096 * len(situation.workload.batches()):
        reasons.append(Reason("Q20", Verdict.SLOW, "with many tokens a batch, dequantising costs more than it saves"))
    return reasons


def _int8_why_not(situation: Situation) -> list[Reason]:
    reasons = _why_not(situation)
    if situation.configuration["precision"] == "bf16":
        reasons.append(Reason("Q5", Verdict.WARN, "LLM.int8 casts bf16 inputs to fp16"))
    return reasons


def _int8_load(_: Configuration) -> dict[str, str]:
    return {"quantization_config": "BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)"}


def _four_bit_load(kind: str) -> Callable[[Configuration], Mapping[str, str]]:
    def load(configuration: Configuration) -> dict[str, str]:
        compute = f"torch.{TORCH_DTYPES[configuration['precision']]}"
        return {
            "quantization_config": f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{kind}", '
            f"bnb_4bit_compute_dtype={compute})"
        }

    return load


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        if ran == name:
            return None
        return f"the linear layers are {', '.join(sorted(reading.linears))}: {ran}"

    return proof


def _effective(reading: Reading) -> str:
    """By the classes of the linear layers; the worker adds the 4-bit type to Linear4bit's name."""
    kinds = {"Linear8bitLt": "int8", "Linear4bit:nf4": "nf4", "Linear4bit:fp4": "fp4"}
    found = sorted({kinds[name] for name in reading.linears if name in kinds})
    return "+".join(found) if found else "none"


def _default(facts: ModelFacts) -> str:
    return "none"


KNOB = Knob(
    name="quantization",
    summary="weights in fewer bits",
    reload=True,
    default=_default,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            Choice("quantization", "none", "weights as they are", _SOURCE, proof=_proof("none"), rate=lambda _: 1.0),
            Choice("quantization", "int8", "bitsandbytes LLM.int8, threshold 6.0", _SOURCE, _unavailable((7, 5), "Q2"),
                   _int8_why_not, _int8_load, imports=_IMPORTS, proof=_proof("int8"),
                   tier=lambda _: Tier.EIGHT_BIT, rate=lambda _: 0.45),
            Choice("quantization", "nf4", "bitsandbytes 4-bit NormalFloat", _SOURCE, _unavailable((6, 0), "Q2"), _why_not,
                   _four_bit_load("nf4"), imports=_IMPORTS, proof=_proof("nf4"),
                   tier=lambda _: Tier.FOUR_BIT, rate=lambda _: 0.6),
            Choice("quantization", "fp4", "bitsandbytes 4-bit float", _SOURCE, _unavailable((6, 0), "Q2"), _why_not,
                   _four_bit_load("fp4"), imports=_IMPORTS, proof=_proof("fp4"),
                   tier=lambda _: Tier.FOUR_BIT, rate=lambda _: 0.59),
        )
    },
)  # fmt: skip
