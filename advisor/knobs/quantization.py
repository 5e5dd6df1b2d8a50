"""Quantization: weights in 8 or 4 bit by bitsandbytes, or as a checkpoint brings them.

It saves memory; whether it saves time depends on the GPU and the batch, and mostly it does not (levers.md, Q20). The
compute dtype is always set, because transformers' default is fp32 (Q3), and so is the 4-bit type, because the default is
fp4 and not nf4 (Q4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, traits_of
from advisor.knobs.traits import Traits
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Tier

_SOURCE = "https://huggingface.co/docs/bitsandbytes"
_IMPORTS = ("import torch", "from transformers import BitsAndBytesConfig")

#: What its classes are in, and what transformers loads them with.
_PACKAGES = ("bitsandbytes", "accelerate")

#: A choice that quantises is proven where at least this share of the linear layers was: the output layer is left out by
#: custom, layers of a class that the quantizer does not know are left out without a word.
LEAST_SHARE = 0.5


def _made_by() -> dict[str, str]:
    """Return the choice that makes each class of quantised linear layers, as the worker names them with their settings."""
    return {choice.traits.linear: name for name, choice in KNOB.choices.items() if choice.traits.linear}


def _unavailable(minimum: tuple[int, int], rule: str) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        for package in _PACKAGES:
            if environment.version(package) is None:
                return Reason("Q0", Verdict.INVALID, f"the package {package} isn't installed", f"pip install {package}")
        if environment.is_cuda and (environment.compute_capability or (0, 0)) < minimum:
            return Reason(
                rule, Verdict.INVALID, f"bitsandbytes needs compute capability {minimum[0]}.{minimum[1]} for it"
            )
        return None

    return unavailable


def _none_why_not(situation: Situation) -> list[Reason]:
    facts = situation.facts
    if facts.prequantized:
        return [Reason("Q16", Verdict.INVALID, f"the checkpoint is quantised already ({facts.prequantized})")]
    return []


def _checkpoint_why_not(situation: Situation) -> list[Reason]:
    facts, environment = situation.facts, situation.environment
    if not facts.prequantized:
        return [Reason("Q16", Verdict.INVALID, "the checkpoint is not quantised")]
    capability = environment.compute_capability or (0, 0)
    reasons = []
    if facts.prequantized == "fp8" and (not environment.is_cuda or capability < (8, 9)):
        reasons.append(
            Reason("Q7", Verdict.WARN, "below compute capability 8.9 transformers turns fp8 weights into bf16")
        )
    if facts.prequantized == "mxfp4" and (not environment.is_cuda or capability < (7, 5)):
        reasons.append(Reason("Q13", Verdict.WARN, "without its kernels transformers turns mxfp4 weights into bf16"))
    if facts.prequantized == "awq" and situation.traits.dtype == "bfloat16":
        about = f"precision={situation.configuration['precision']}"
        reasons.append(Reason("Q15", Verdict.ALIAS, "AWQ computes in fp16: bf16 is turned into it", about=about))
    return reasons


def _why_not(situation: Situation) -> list[Reason]:
    reasons = _none_why_not(situation)
    if situation.facts.linear_parameters == 0:
        reasons.append(Reason("Q22", Verdict.ALIAS, f"{situation.facts.architecture} has no linear layer to quantise"))
    plain = situation.traits.bytes_per_value > 2 and situation.traits.float32_matmul == Traits.float32_matmul
    if plain and situation.environment.is_cuda:
        reasons.append(Reason("Q3", Verdict.SLOW, "quantised layers computing in fp32 use no tensor cores"))
    if situation.workload.tokens >= 4096 * len(situation.workload.batches()):
        reasons.append(Reason("Q20", Verdict.SLOW, "with many tokens a batch, dequantising costs more than it saves"))
    return reasons


def _int8_why_not(situation: Situation) -> list[Reason]:
    reasons = _why_not(situation)
    if situation.traits.dtype == "bfloat16":
        reasons.append(Reason("Q5", Verdict.WARN, "LLM.int8 casts bf16 inputs to fp16"))
    return reasons


def _int8_without_why_not(situation: Situation) -> list[Reason]:
    text = "threshold 0.0 puts outliers into 8 bit too: faster, and further from the checkpoint"
    return [*_int8_why_not(situation), Reason("Q23", Verdict.WARN, text)]


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


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        if ran == name and name != "none" and not reading.prequantized and share_of(reading)[0] < LEAST_SHARE:
            return f"only {share_words(reading)}"
        if ran == name:
            return None
        return f"the linear layers are {', '.join(sorted(reading.linears))}: {ran}"

    return proof


def share_of(reading: Reading) -> tuple[float, int, int]:
    """Return the share of the linear layers that are quantised, how many they are, and of how many."""
    known, total = _made_by(), sum(reading.linears.values())
    count = sum(n for name, n in reading.linears.items() if name in known)
    return count / max(total, 1), count, total


def share_words(reading: Reading) -> str:
    """Return the same in words, "" where none is."""
    _, count, total = share_of(reading)
    return f"{count} of {total} linear layers quantised" if count else ""


def _effective(reading: Reading) -> str:
    """By the classes of the linear layers; the worker adds to a quantised one's name what it was set to.

    A checkpoint that is quantised already has them too: the worker says so, for it alone knows who quantised.
    """
    quantized = {name for name in reading.linears if name != "Linear"}
    if reading.prequantized:
        return "checkpoint" if quantized else "none"
    known = _made_by()
    found = sorted({known[name] for name in quantized if name in known})
    return "+".join(found) if found else "none"


def _default(facts: ModelFacts) -> str:
    return "checkpoint" if facts.prequantized else "none"


def _eight_bit(
    name: str, threshold: float, why_not: Callable[[Situation], list[Reason]], rate: float, *, independent: bool
) -> Choice:
    """Return a choice of LLM.int8: the columns whose inputs are above the threshold stay in 16 bits."""
    return Choice(
        "quantization",
        name,
        f"bitsandbytes LLM.int8, threshold {threshold}",
        _SOURCE,
        _unavailable((7, 5), "Q2"),
        why_not,
        _int8_load(threshold),
        imports=_IMPORTS,
        packages=_PACKAGES,
        proof=_proof(name),
        tier=lambda _: Tier.EIGHT_BIT,
        rates=_rates(rate),
        traits=Traits(
            quantises=True, linear=f"Linear8bitLt:{threshold}", bytes_per_weight=1.0, independent=independent
        ),
    )


def _four_bit(kind: str, words: str, rate: float, *, double: bool = False) -> Choice:
    """Return a choice in 4 bits: a scale every 64 weights, of 4 bytes, or of 1 where the scales are quantised too."""
    name = f"{kind}-double" if double else kind
    return Choice(
        "quantization",
        name,
        f"bitsandbytes 4-bit {words}",
        _SOURCE,
        _unavailable((6, 0), "Q2"),
        _why_not,
        _four_bit_load(kind, double=double),
        imports=_IMPORTS,
        packages=_PACKAGES,
        proof=_proof(name),
        tier=lambda _: Tier.FOUR_BIT,
        rates=_rates(rate),
        traits=Traits(
            quantises=True,
            linear=f"Linear4bit:{kind}" + (":double" if double else ""),
            bytes_per_weight=0.5 + (1 if double else 4) / 64,
        ),
    )


def _rates(rate: float) -> Callable[[Situation], Mapping[Term, float]]:
    return lambda _: {Term.LINEAR: rate}


_NONE = Choice("quantization", "none", "weights as they are", _SOURCE, why_not=_none_why_not, proof=_proof("none"))
_CHECKPOINT = Choice(
    "quantization",
    "checkpoint",
    "quantised weights as the checkpoint brings them",
    _SOURCE,
    why_not=_checkpoint_why_not,
    proof=_proof("checkpoint"),
    traits=Traits(quantises=True, as_stored=True),
)

KNOB = Knob(
    name="quantization",
    summary="weights in fewer bits",
    reload=True,
    default=_default,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            _NONE,
            _CHECKPOINT,
            _eight_bit("int8", 6.0, _int8_why_not, 0.45, independent=False),
            _eight_bit("int8-no-outliers", 0.0, _int8_without_why_not, 0.8, independent=True),
            _four_bit("nf4", "NormalFloat", 0.6),
            _four_bit("nf4", "NormalFloat, scales quantised too", 0.5, double=True),
            _four_bit("fp4", "float", 0.59),
        )
    },
    implied=_NONE.name,
    place=30,
    numbers=True,
)
