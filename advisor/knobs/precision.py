"""Precision: the dtype of the weights and of the arithmetic.

A checkpoint run in its own dtype, or in a wider one, is exact; a narrower one is in the tier dtype and its price is
measured. Matrix products in 16 bit run on tensor cores; on a CPU without bf16 units they are slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Term, Verdict, on_all
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Tier

_SOURCE = "https://pytorch.org/docs/stable/notes/numerical_accuracy.html"

#: Our names by torch's.
_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _bf16_unavailable(environment: Environment) -> Reason | None:
    if environment.is_cuda and (environment.compute_capability or (0, 0)) < (8, 0):
        return Reason("D1", Verdict.INVALID, "bf16 needs tensor cores of compute capability 8.0", "use fp16")
    return None


def _tf32_unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason(
            "D2", Verdict.INVALID, "tf32 is a mode of NVIDIA GPUs", "use a GPU of compute capability 8.0 or more"
        )
    if (environment.compute_capability or (0, 0)) < (8, 0):
        return Reason("D2", Verdict.INVALID, "tf32 requires Ampere or newer (compute capability 8.0)")
    return None


def _tf32_why_not(situation: Situation) -> list[Reason]:
    if situation.traits.quantises:
        text = "tf32 acts on fp32 matrix products only, not on quantised layers"
        about = f"quantization={situation.configuration['quantization']}"
        return [Reason("D2", Verdict.INVALID, text, about=about)]
    return []


def _fp16_why_not(situation: Situation) -> list[Reason]:
    capability = situation.environment.compute_capability
    if situation.workload.trains and (capability is None or capability >= (8, 0)):
        text = "small gradients are 0 in fp16 unless losses are scaled, and this device has bf16"
        return [Reason("D3", Verdict.INVALID, text, "choose bf16")]
    if situation.facts.checkpoint_dtype == "bfloat16":
        return [Reason("D3", Verdict.WARN, "a bf16 checkpoint can overflow in fp16; the gate looks for it")]
    return []


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        return None if ran == name else f"most floating-point weights are {ran}"

    return proof


def _tier(name: str, dtype: str) -> Callable[[ModelFacts], Tier]:
    def tier(facts: ModelFacts) -> Tier:
        own = name != "tf32" and dtype == facts.checkpoint_dtype
        return Tier.EXACT if own or name == "fp32" else Tier.DTYPE

    return tier


def _rates(on_cuda: float, on_cpu: float) -> Callable[[Situation], Mapping[Term, float]]:
    return lambda situation: on_all(on_cuda if situation.environment.is_cuda else on_cpu)


def _effective(reading: Reading) -> str:
    """The dtype of most floating-point parameters; fp32 weights under the matmul mode "high" are tf32."""
    dtypes = {dtype: count for dtype, count in reading.dtypes.items() if dtype in _NAMES}
    if not dtypes:
        return "none"
    name = _NAMES[max(dtypes, key=lambda dtype: dtypes[dtype])]
    return "tf32" if name == "fp32" and reading.float32_matmul == "high" else name


def _default(facts: ModelFacts) -> str:
    return _NAMES.get(facts.checkpoint_dtype, "fp32")


def _choice(name: str, summary: str, traits: Traits, rates: tuple[float, float], **more: Any) -> Choice:
    """Return a choice. rates: its speed on a GPU and on a CPU, over fp32's."""
    return Choice(
        "precision",
        name,
        summary,
        _SOURCE,
        load=lambda _: {"dtype": f"torch.{traits.dtype}"},
        before=(f'torch.set_float32_matmul_precision("{traits.float32_matmul}")',),
        imports=("import torch",),
        proof=_proof(name),
        tier=_tier(name, traits.dtype),
        rates=_rates(*rates),
        traits=traits,
        **more,
    )


_FP16 = Traits(dtype="float16", bytes_per_value=2.0, mantissa_bits=10, rounds=("F32", "F64", "BF16"))
_BF16 = Traits(dtype="bfloat16", bytes_per_value=2.0, mantissa_bits=7, rounds=("F32", "F64", "F16"))
_TF32 = Traits(mantissa_bits=10, float32_matmul="high", process_wide=True)

KNOB = Knob(
    name="precision",
    summary="dtype of weights and arithmetic",
    reload=True,
    default=_default,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            _choice("fp32", "32-bit floats", Traits(mantissa_bits=23), (1.0, 1.0)),
            _choice(
                "tf32",
                "fp32 weights, products rounded to tf32",
                _TF32,
                (7.0, 1.0),
                unavailable=_tf32_unavailable,
                why_not=_tf32_why_not,
            ),
            _choice("fp16", "16-bit floats, narrow range", _FP16, (13.0, 0.25), why_not=_fp16_why_not),
            _choice("bf16", "16-bit floats, wide range", _BF16, (13.0, 0.25), unavailable=_bf16_unavailable),
        )
    },
    reference="fp32",
    place=20,
    numbers=True,
)
