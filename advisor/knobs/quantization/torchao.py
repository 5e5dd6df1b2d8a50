"""torchao: weights in int8, int4 and fp8, and products of activations that are quantised as they come ("dynamic").

Weights alone save memory, and time only where reading them is what takes it. Dynamic ones multiply in 8 bits on tensor cores, but
uncompiled each layer launches a dozen small kernels to quantise its input: they pay together with compilation. The settings for
torch's compiler that torchao brings are never taken: they are the whole process's, and up to 0.17 they switch fp32 products to
tf32. Rules Q0, Q3, Q8–Q11, Q16, Q20 and Q22 are levers.md's; Q24–Q27 are ours, read in torchao 0.16–0.18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from advisor.knobs.choice import Choice, Reason, Situation, Term, Verdict
from advisor.knobs.quantization.common import (
    about,
    absent,
    dequantising_why_not,
    proof,
    quantising_why_not,
    training_why_not,
)
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Tier

_SOURCE = "https://docs.pytorch.org/ao/stable/workflows/inference.html"

#: What its classes are in, and what transformers loads them with; the oldest torchao whose weights can be
#: called in inference mode: transformers takes 0.15 too, whose fp8 fails there.
_PACKAGES = ("torchao", "accelerate")
_OLDEST, _REQUIREMENT = (0, 16), "'torchao>=0.16'"

#: int4: weights of a row that share a scale.
_GROUP = 128

#: What the CPU launches for a batch, over the model as it is: torchao's tensors are taken apart in Python (33 µs a layer on a
#: Xeon, and 140 with an input to quantise, where a transformer's block launches for some 0.4 ms). Compiled, none of it is left.
_LAUNCHES, _LAUNCHES_DYNAMIC = 0.65, 0.35


@dataclass(frozen=True)
class Scheme:
    """One way to quantise as a choice.

    config: the call of torchao's class that says it, without what all are given; uses: what the call needs beside that class;
    linear: how the worker names its layers; size: bytes of a weight; a scale of 4 a row is not counted, those of a group are,
    and int4's are padded to rows of 1,024 beside. least: the compute capability that it needs, None where a CPU runs it too;
    rule: that says so. on_gpu: speed of linear layers compiled, and not; on_cpu: likewise. dynamic: activations are quantised
    too. bf16_only: it takes no other weights. whole_numbers: products are of whole numbers before they are scaled. by_row:
    fp8 of a scale a row. independent: as in `Traits`. multiple: of what the sizes of a layer must be, else it is left as it
    is.
    """

    name: str
    summary: str
    config: str
    linear: str
    on_gpu: tuple[float, float]
    uses: tuple[str, ...] = ()
    tier: Tier = Tier.EIGHT_BIT
    size: float = 1.0
    on_cpu: float = 1.0
    least: tuple[int, int] | None = None
    rule: str = ""
    dynamic: bool = False
    bf16_only: bool = False
    whole_numbers: bool = False
    by_row: bool = False
    independent: bool = True
    multiple: int = 1

    @property
    def classes(self) -> tuple[str, ...]:
        """What is imported of torchao."""
        return (self.config.partition("(")[0], *self.uses)


#: On an H200 8B took 273 ms compiled and 176 with fp8 by row as well, of which some 35 are attention; uncompiled 324 and 365.
#: int8 of weights alone took 1.1 times as long in prefill on an H100 (torchao's table). The int8 ones are not measured here on a
#: GPU; on a CPU with AMX dynamic int8 took 0.6 of fp32's time and 2.4 of bf16's.
_SCHEMES = (
    Scheme(
        "torchao-int8",
        "torchao int8 weights, a scale a row; floats for the product",
        "Int8WeightOnlyConfig(version=2, ",
        "Linear:Int8Tensor:row",
        on_gpu=(0.8, 0.8),
        on_cpu=0.95,
        whole_numbers=True,
    ),
    Scheme(
        "torchao-int8-dynamic",
        "torchao int8 weights and activations, a scale a row and a token",
        "Int8DynamicActivationInt8WeightConfig(version=2, ",
        "Linear:Int8Tensor:row:dynamic-row",
        on_gpu=(1.3, 0.7),
        on_cpu=0.8,
        dynamic=True,
        whole_numbers=True,
    ),
    Scheme(
        "torchao-int4",
        "torchao int4 weights in torch's own kernel, a scale and a zero every 128",
        f'Int4WeightOnlyConfig(group_size={_GROUP}, int4_packing_format="tile_packed_to_4d", ',
        f"Linear:Int4TilePackedTo4dTensor:{_GROUP}",
        on_gpu=(0.6, 0.6),
        tier=Tier.FOUR_BIT,
        size=0.5 + 4 / _GROUP,
        least=(8, 0),
        rule="Q10",
        bf16_only=True,
        multiple=_GROUP,
    ),
    Scheme(
        "torchao-fp8",
        "torchao fp8 weights, a scale a row; floats for the product",
        "Float8WeightOnlyConfig(",
        "Linear:Float8Tensor:row",
        on_gpu=(0.8, 0.8),
        on_cpu=0.6,
    ),
    Scheme(
        "torchao-fp8-dynamic-row",
        "torchao fp8 weights and activations, a scale a row and a token",
        "Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), ",
        "Linear:Float8Tensor:row:dynamic-row",
        on_gpu=(1.7, 0.9),
        uses=("PerRow",),
        least=(8, 9),
        rule="Q8",
        dynamic=True,
        bf16_only=True,
        by_row=True,
        multiple=16,
    ),
    Scheme(
        "torchao-fp8-dynamic-tensor",
        "torchao fp8 weights and activations, one scale for a layer's weights and one for its inputs",
        "Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor(), ",
        "Linear:Float8Tensor:tensor:dynamic-tensor",
        on_gpu=(1.7, 0.9),
        uses=("PerTensor",),
        least=(8, 9),
        rule="Q8",
        dynamic=True,
        independent=False,
        multiple=16,
    ),
)


def _unavailable(scheme: Scheme) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        if (missing := absent(environment, _PACKAGES, {"torchao": _REQUIREMENT})) is not None:
            return missing
        if (environment.version("torchao") or ()) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            text = f"torchao is {environment.packages['torchao']}, and before {oldest} fp8 fails in inference mode"
            return Reason("Q0", Verdict.INVALID, text, f"pip install {_REQUIREMENT}")
        has = environment.compute_capability if environment.is_cuda else None
        if scheme.least is not None and (has or (0, 0)) < scheme.least:
            what = "multiplies in fp8" if scheme.dynamic else "multiplies by int4 weights in a kernel that"
            text = f"torchao {what} {'on' if scheme.dynamic else 'needs'} a GPU of compute capability "
            return Reason(scheme.rule, Verdict.INVALID, f"{text}{scheme.least[0]}.{scheme.least[1]} or more")
        return None

    return unavailable


def _why_not(scheme: Scheme) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        reasons = quantising_why_not(situation) if scheme.dynamic else dequantising_why_not(situation)
        reasons += [] if reasons else training_why_not(situation, trainable=scheme.tier is Tier.EIGHT_BIT)
        return (
            reasons
            + _gradients(scheme, situation)
            + _shapes(scheme, situation)
            + _numbers(scheme, situation)
            + _told(scheme, situation)
        )

    return why_not


def _gradients(scheme: Scheme, situation: Situation) -> list[Reason]:
    """Rule Q27, found by running them: torch has no derivative of their fp8 products, and those of int8 give none in silence."""
    if not (situation.workload.trains and scheme.dynamic):
        return []
    text = "no gradient comes back through torchao's products with quantised inputs: adapters are taught by what goes around them"
    return [Reason("Q27", Verdict.INVALID, text, "quantise weights alone")]


def _shapes(scheme: Scheme, situation: Situation) -> list[Reason]:
    """Rule Q11: layers of other sizes are left as they are, and torchao says so in a log alone."""
    width = situation.facts.hidden_size
    if width % scheme.multiple == 0:
        return []
    text = f"torchao leaves layers of {width} inputs as they are: {width} is no multiple of {scheme.multiple}"
    return [Reason("Q11", Verdict.ALIAS, text)]


def _numbers(scheme: Scheme, situation: Situation) -> list[Reason]:
    """Rules Q24 and Q26: what a scheme takes of the precision, and what the precision can't hold of it."""
    dtype = situation.traits.dtype
    if scheme.bf16_only and dtype != "bfloat16":
        text, instead = "torchao takes weights in bf16 alone for it", "choose bf16"
        return [Reason("Q24", Verdict.INVALID, text, instead, about=about(situation, "precision"))]
    if scheme.whole_numbers and dtype == "float16":
        text = "products with weights up to 127 are in fp16 before they are scaled: large ones overflow; the gate looks for it"
        return [Reason("Q26", Verdict.WARN, text, "choose bf16", about=about(situation, "precision"))]
    return []


def _told(scheme: Scheme, situation: Situation) -> list[Reason]:
    reasons = []
    if scheme.dynamic and situation.environment.is_cuda and not situation.traits.compiles_model:
        text = (
            "uncompiled, each layer launches many small kernels to quantise its input: they cost what fewer bits save"
        )
        remedy, other = "choose it with compilation", about(situation, "compilation")
        reasons.append(Reason("Q25", Verdict.SLOW, text, remedy, about=other))
    if scheme.by_row and (situation.environment.cuda or "").startswith("12.9"):
        text = "cuBLASLt of CUDA 12.9 has a fault: fp8 with a scale a row fails there at some shapes"
        reasons.append(Reason("Q9", Verdict.WARN, text, "a torch built for another CUDA"))
    return reasons


def _rates(scheme: Scheme) -> Callable[[Situation], Mapping[Term, float]]:
    def rates(situation: Situation) -> Mapping[Term, float]:
        compiled, plain = scheme.on_gpu
        beside = _LAUNCHES_DYNAMIC if scheme.dynamic else _LAUNCHES
        is_compiled = situation.traits.compiles_model
        on_gpu = compiled if is_compiled else plain
        return {
            Term.LINEAR: on_gpu if situation.environment.is_cuda else scheme.on_cpu,
            Term.LAUNCHES: 1.0 if is_compiled else beside,
        }

    return rates


def _choice(scheme: Scheme) -> Choice:
    return Choice(
        "quantization",
        scheme.name,
        scheme.summary,
        _SOURCE,
        unavailable=_unavailable(scheme),
        why_not=_why_not(scheme),
        load=lambda _: {"quantization_config": f"TorchAoConfig({scheme.config}set_inductor_config=False))"},
        imports=(
            "from transformers import TorchAoConfig",
            f"from torchao.quantization import {', '.join(sorted(scheme.classes))}",
        ),
        packages=_PACKAGES,
        proof=proof(scheme.name),
        tier=lambda _: scheme.tier,
        rates=_rates(scheme),
        traits=Traits(
            quantises=True,
            linear=scheme.linear,
            bytes_per_weight=scheme.size,
            pays_compiled=scheme.dynamic,
            independent=scheme.independent,
        ),
    )


CHOICES = tuple(map(_choice, _SCHEMES))
