"""FlashAttention: as packages, as kernels from the Hub, and as torch's own varlen_attn.

All tell packed sequences apart by where they begin, without a mask. transformers checks the GPU only where a package is
missing (rule A2), so every rule of the kernels is asked here. Sources: levers.md (A1–A8, A12–A14, A18–A23, A28, P11);
A31 and P20 are ours, read in torch 2.10–2.13's nn/attention/varlen.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from advisor.knobs.attention.common import about, has_pads, is_packed, is_wide, load, ran_as, rates, wide
from advisor.knobs.choice import Choice, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_PACKAGES = "https://github.com/Dao-AILab/flash-attention"
_HUB = "https://huggingface.co/docs/transformers/kernel_doc/overview"
_VARLEN = "https://pytorch.org/docs/stable/nn.attention.varlen.html"

Version = tuple[int, ...]

#: The versions of `kernels` that transformers takes, by its own version: from, and below. Read in its import_utils.
_KERNELS: dict[Version, tuple[str, str]] = {(5, 17): ("0.16.0", "0.17.0"), (5, 23): ("0.18.2", "0.19.0")}


@dataclass(frozen=True)
class Generation:
    """One generation of FlashAttention as a choice.

    implementation: transformers' name of it; package: the distribution, None where `kernels` fetches it from the Hub;
    least: the lowest capability that it declares; oldest: the oldest version taken; install: the command; hub: the choice
    that runs the same generation from the Hub; sinks: whether it computes attention sinks; rates: relative speed on the
    generation of GPU that it was written for, and on others; best: those GPUs' major capabilities.
    """

    name: str
    implementation: str
    summary: str
    number: int
    package: str | None
    least: tuple[int, int]
    rates: tuple[float, float]
    best: tuple[int, ...]
    oldest: Version = ()
    install: str = ""
    hub: str = ""
    sinks: bool = False

    @property
    def title(self) -> str:
        """Its name in sentences."""
        return f"FlashAttention-{self.number}"


_FLASH_2 = Generation(
    "flash_attention_2",
    "flash_attention_2",
    "the flash-attn package; tells packed sequences apart without a mask",
    2,
    "flash-attn",
    (8, 0),
    (7.0, 7.0),
    (8, 9),
    (2, 3, 3),
    "pip install flash-attn --no-build-isolation",
    hub="hub-flash-attn2",
)
_FLASH_3 = Generation(
    "flash_attention_3",
    "flash_attention_3",
    "the flash-attn-3 package, made for Hopper GPUs",
    3,
    "flash-attn-3",
    (8, 0),
    (10.0, 6.0),
    (9,),
    install="pip install flash-attn-3 --find-links https://download.pytorch.org/whl/flash-attn-3/",
    hub="hub-vllm-flash-attn3",
)
_FLASH_4 = Generation(
    "flash_attention_4",
    "flash_attention_4",
    "the flash-attn-4 package, made for Hopper and Blackwell GPUs",
    4,
    "flash-attn-4",
    (9, 0),
    (10.0, 9.0),
    (10, 11),
    install="pip install --pre flash-attn-4",
    hub="kernels-community/flash-attn4",
    sinks=True,
)
_HUB_2 = Generation(
    "hub-flash-attn2",
    "kernels-community/flash-attn2",
    "FlashAttention-2 from the Hub, fetched by the package kernels",
    2,
    None,
    (8, 0),
    (6.9, 6.9),
    (8, 9),
)
_HUB_3 = Generation(
    "hub-vllm-flash-attn3",
    "kernels-community/vllm-flash-attn3",
    "vLLM's FlashAttention-3 from the Hub, fetched by the package kernels",
    3,
    None,
    (8, 0),
    (9.9, 5.9),
    (9,),
    sinks=True,
)

GENERATIONS = (_FLASH_2, _FLASH_3, _FLASH_4, _HUB_2, _HUB_3)

#: Names of choices by the implementation that is read back, where the two differ.
NAMES = {generation.implementation: generation.name for generation in GENERATIONS}


def kernels_problem(environment: Environment) -> Reason | None:
    """Return why transformers can't use the package kernels here (rule A21), or None."""
    ours = (environment.version("transformers") or ())[:2]
    known = ours if ours in _KERNELS else max(_KERNELS)
    low, high = _KERNELS[known]
    found = environment.version("kernels")
    if found is not None and _numbers(low) <= found < _numbers(high):
        return None
    whose = "transformers " + ".".join(map(str, known)) + ("" if known == ours else ", the newest that is known,")
    state = "isn't installed" if found is None else f"is {environment.packages['kernels']}"
    text = f"the package kernels {state}; {whose} takes {low} and newer, below {high}"
    return Reason("A21", Verdict.INVALID, text, f"pip install 'kernels>={low},<{high}'")


def _numbers(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))


def _too_old_gpu(environment: Environment, generation: Generation) -> Reason | None:
    capability = environment.compute_capability or (0, 0)
    if capability >= generation.least:
        return None
    if generation.number == 2:
        text = "FlashAttention only supports Ampere GPUs or newer (compute capability 8.0)"
        return Reason("A1", Verdict.INVALID, text)
    text = f"{generation.title} needs compute capability {generation.least[0]}.0, and transformers does not check it"
    return Reason("A2", Verdict.INVALID, text)


def _unavailable(generation: Generation) -> Callable[[Environment], Reason | None]:
    def unavailable(environment: Environment) -> Reason | None:
        if not environment.is_cuda:
            return Reason("A18", Verdict.INVALID, f"{generation.title} runs on NVIDIA GPUs only", "use a GPU")
        if (old := _too_old_gpu(environment, generation)) is not None:
            return old
        if generation.package is None:
            return kernels_problem(environment)
        return _missing(environment, generation, generation.package)

    return unavailable


def _missing(environment: Environment, generation: Generation, package: str) -> Reason | None:
    version = environment.version(package)
    if version is None and kernels_problem(environment) is None:
        text = f"the package {package} isn't installed, so transformers would run {generation.hub} from the Hub instead"
        instead = f"choose {generation.hub}, or " if generation.hub in NAMES.values() else ""
        return Reason("A19", Verdict.ALIAS, text, instead + generation.install)
    if version is None:
        return Reason("A18", Verdict.INVALID, f"the package {package} isn't installed", generation.install)
    if version < generation.oldest:
        oldest = ".".join(map(str, generation.oldest))
        upgrade = generation.install.replace("install", "install -U")
        return Reason("A18", Verdict.INVALID, f"{package} is older than {oldest}", upgrade)
    return None


def _why_not(generation: Generation) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        facts, environment, reasons = situation.facts, situation.environment, []
        if not facts.supports_flash:
            text = f"{facts.architecture} does not support {generation.title}"
            reasons.append(Reason("A8", Verdict.INVALID, text))
        if is_wide(situation):
            reasons.append(wide("A4", situation, generation.title))
        if (size := _head_size(facts.head_dim, generation, environment)) is not None:
            reasons.append(size)
        if facts.alibi:
            reasons.append(Reason("A13", Verdict.INVALID, f"ALiBi is not supported with {generation.title}"))
        version = environment.version(generation.package) if generation.package else None
        if facts.softcap and generation is _FLASH_2 and (version or ()) < (2, 6):
            text, upgrade = "this flash-attn does not support softcap", "pip install -U flash-attn --no-build-isolation"
            reasons.append(Reason("A12", Verdict.INVALID, text, upgrade))
        if facts.model_type == "gpt_oss" and not generation.sinks:
            text = f"attention sinks: transformers replaces {generation.title} by another"
            reasons.append(Reason("A14", Verdict.ALIAS, text))
        return reasons + _slow(situation, generation) + _told(situation, generation)

    return why_not


def _head_size(size: int, generation: Generation, environment: Environment) -> Reason | None:
    if size > 256 or size % 8:
        text = f"head size {size}: {generation.title} needs a multiple of 8, at most 256"
        return Reason("A5", Verdict.INVALID, text)
    is_blackwell = (environment.compute_capability or (0, 0))[0] in (10, 11)
    if generation is _FLASH_4 and is_blackwell and 128 < size < 256:
        return Reason(
            "A6", Verdict.INVALID, f"head size {size}: {generation.title} needs at most 128, or 256, on this GPU"
        )
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
    both = all(situation.environment.version(package) is not None for package in ("flash-attn", "flash-attn-4"))
    if both and generation in (_FLASH_2, _FLASH_4):
        text = "flash-attn and flash-attn-4 share the module flash_attn: which one runs goes by the distribution's name"
        reasons.append(Reason("A20", Verdict.WARN, text))
    return reasons


#: The rate of a generation where rows have pads, whichever it is.
_WITH_PADS = 1.5


def _rate(generation: Generation) -> Callable[[Situation], float]:
    def rate(situation: Situation) -> float:
        major = (situation.environment.compute_capability or (0, 0))[0]
        # Pads are taken out before the kernel runs and put back after it, in every layer (BERT-base on an H200: 0.7 to 1.8).
        return _WITH_PADS if has_pads(situation) else generation.rates[0 if major in generation.best else 1]

    return rate


def _varlen_unavailable(environment: Environment) -> Reason | None:
    if not environment.is_cuda:
        return Reason("A31", Verdict.INVALID, "torch's varlen_attn runs on NVIDIA GPUs only", "use a GPU")
    if (environment.compute_capability or (0, 0)) < (8, 0):
        text = "torch's varlen_attn is FlashAttention, which needs compute capability 8.0"
        return Reason("A1", Verdict.INVALID, text)
    if (environment.version("torch") or ()) < (2, 10):
        return Reason("A31", Verdict.INVALID, "varlen_attn came with torch 2.10", "pip install -U torch")
    return None


def _varlen_why_not(situation: Situation) -> list[Reason]:
    facts, reasons = situation.facts, []
    if not facts.switches_attention:
        text = f"{facts.architecture} does not take registered attention functions"
        reasons.append(Reason("A23", Verdict.INVALID, text))
    if not facts.supports_flash:
        text = f"{facts.architecture} does not support FlashAttention, which torch's varlen_attn is"
        reasons.append(Reason("A8", Verdict.INVALID, text))
    if is_wide(situation):
        reasons.append(wide("A4", situation, "torch's varlen_attn"))
    if facts.head_dim > 256 or facts.head_dim % 8:
        text = f"head size {facts.head_dim}: torch's varlen_attn needs a multiple of 8, at most 256"
        reasons.append(Reason("A5", Verdict.INVALID, text))
    if has_pads(situation):
        text = "torch's varlen_attn has no mask, and this batch has pads"
        reasons.append(Reason("P20", Verdict.INVALID, text, "pack the batch", about=about(situation, "packing")))
    return reasons + _varlen_unknown(situation)


def _varlen_unknown(situation: Situation) -> list[Reason]:
    """Refuse what the kernel, or its function in this torch, does not compute."""
    facts, reasons = situation.facts, []
    if facts.softcap:
        reasons.append(Reason("A12", Verdict.INVALID, "torch's varlen_attn does not support softcap"))
    if facts.alibi:
        reasons.append(Reason("A13", Verdict.INVALID, "ALiBi is not supported with torch's varlen_attn"))
    if facts.model_type == "gpt_oss":
        reasons.append(Reason("A14", Verdict.INVALID, "torch's varlen_attn does not compute attention sinks"))
    window = facts.sliding_window
    slides = window is not None and max(situation.workload.lengths) > window
    if slides and (situation.environment.version("torch") or ()) < (2, 11):
        text = "varlen_attn takes a sliding window from torch 2.11 on"
        reasons.append(Reason("A28", Verdict.INVALID, text, "pip install -U torch"))
    return reasons


def _varlen_rate(situation: Situation) -> float:
    # Rows of equal length are copied into one before the kernel runs.
    return 7.0 if is_packed(situation) else 6.5


def _in_fp32(implementation: str) -> AbstractContextManager[None]:
    from advisor.knobs.attention.fp32_torch import flash_in_fp32

    return flash_in_fp32(implementation)


def _choice(generation: Generation) -> Choice:
    return Choice(
        "attention",
        generation.name,
        generation.summary,
        _HUB if generation.package is None else _PACKAGES,
        unavailable=_unavailable(generation),
        why_not=_why_not(generation),
        load=load(generation.implementation),
        packages=(generation.package or "kernels",),
        proof=ran_as("flash", generation.implementation),
        rates=rates(_rate(generation), launches=0.75, launches_with_pads=0.6),
        in_fp32=_in_fp32,
        traits=Traits(tells_apart=True),
    )


CHOICES = (
    *map(_choice, GENERATIONS),
    Choice(
        "attention",
        "torch_varlen",
        "FlashAttention inside torch (varlen_attn): no package; packed or equal lengths",
        _VARLEN,
        unavailable=_varlen_unavailable,
        why_not=_varlen_why_not,
        load=load("torch_varlen"),
        before=(
            'AttentionInterface.register("torch_varlen", varlen_attention)',
            'AttentionMaskInterface.register("torch_varlen", flash_attention_mask)',
        ),
        imports=(
            "import torch",
            "from typing import Any",
            "from transformers import AttentionInterface",
            "from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask",
        ),
        functions=(("advisor.knobs.attention.own_torch", "varlen_attention"),),
        proof=ran_as("varlen", "torch_varlen"),
        rates=rates(_varlen_rate, launches=0.75),
        in_fp32=_in_fp32,
        traits=Traits(tells_apart=True),
    ),
)
