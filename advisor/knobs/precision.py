"""Precision: the dtype of the weights and of the arithmetic.

A checkpoint run in its own dtype, or in a wider one, is exact; a narrower one is in the tier dtype and its price is
measured. Matrix products in 16 bit run on tensor cores; on a CPU without bf16 units they are slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Verdict
from advisor.model import ModelFacts
from advisor.objective import Tier

_SOURCE = "https://pytorch.org/docs/stable/notes/numerical_accuracy.html"

#: Our names and torch's.
TORCH_DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}

_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

_HIGHEST = ('torch.set_float32_matmul_precision("highest")',)
_TF32 = ('torch.set_float32_matmul_precision("high")',)


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
    if situation.configuration["quantization"] != "none":
        return [Reason("D2", Verdict.INVALID, "tf32 acts on fp32 matrix products only, not on quantised layers",
                       about=f"quantization={situation.configuration['quantization']}")]  # fmt: skip
    return []


def _fp16_why_not(situation: Situation) -> list[Reason]:
    if situation.facts.checkpoint_dtype == "bfloat16":
        return [Reason("D3", Verdict.WARN, "a bf16 checkpoint can overflow in fp16; the gate looks for it")]
    return []


def _load(name: str) -> Callable[[Configuration], Mapping[str, str]]:
    return lambda _: {"dtype": f"torch.{TORCH_DTYPES[name]}"}


def _proof(name: str) -> Callable[[Reading], str | None]:
    def proof(reading: Reading) -> str | None:
        ran = _effective(reading)
        return None if ran == name else f"most floating-point weights are {ran}"

    return proof


def _tier(name: str) -> Callable[[ModelFacts], Tier]:
    def tier(facts: ModelFacts) -> Tier:
        own = name != "tf32" and TORCH_DTYPES[name] == facts.checkpoint_dtype
        return Tier.EXACT if own or name == "fp32" else Tier.DTYPE

    return tier


def _rate(on_cuda: float, on_cpu: float) -> Callable[[Situation], float]:
    return lambda situation: on_cuda if situation.environment.is_cuda else on_cpu


def _effective(reading: Reading) -> str:
    """The dtype of most floating-point parameters; fp32 weights under the matmul mode "high" are tf32."""
    dtypes = {dtype: count for dtype, count in reading.dtypes.items() if dtype in _NAMES}
    if not dtypes:
        return "none"
    name = _NAMES[max(dtypes, key=lambda dtype: dtypes[dtype])]
    return "tf32" if name == "fp32" and reading.float32_matmul == "high" else name


def _default(facts: ModelFacts) -> str:
    return _NAMES.get(facts.checkpoint_dtype, "fp32")


KNOB = Knob(
    name="precision",
    summary="dtype of weights and arithmetic",
    reload=True,
    default=_default,
    effective=_effective,
    choices={
        choice.name: choice
        for choice in (
            Choice("precision", "fp32", "32-bit floats", _SOURCE, load=_load("fp32"), before=_HIGHEST,
                   imports=("import torch",), proof=_proof("fp32"), tier=_tier("fp32"), rate=_rate(1, 1)),
            Choice("precision", "tf32", "fp32 weights, products rounded to tf32", _SOURCE, unavailable=_tf32_unavailable,
                   why_not=_tf32_why_not, load=_load("tf32"), before=_TF32, imports=("import torch",),
                   proof=_proof("tf32"), tier=_tier("tf32"), rate=_rate(7, 1)),
            Choice("precision", "fp16", "16-bit floats, narrow range", _SOURCE, why_not=_fp16_why_not, load=_load("fp16"),
                   before=_HIGHEST, imports=("import torch",), proof=_proof("fp16"), tier=_tier("fp16"), rate=_rate(13, 0.25)),
            Choice("precision", "bf16", "16-bit floats, wide range", _SOURCE, unavailable=_bf16_unavailable,
                   load=_load("bf16"), before=_HIGHEST, imports=("import torch",), proof=_proof("bf16"),
                   tier=_tier("bf16"), rate=_rate(13, 0.25)),
        )
    },
)  # fmt: skip
