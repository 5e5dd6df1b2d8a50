"""torch's flash kernel under sdpa switched to FlashAttention-3 or 4: `torch.nn.attention.activate_flash_attention_impl`.

For rows without pads: a mask rules it out as it does torch's own. It is switched for the whole process. Rule A32 is ours, read in
torch 2.10–2.13's nn/attention/_registry.py, _fa3.py and _fa4.py, and in flash-attn-4's cute/interface.py, 4.0.0b3 to b36.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from advisor.knobs.attention import sdpa
from advisor.knobs.attention.common import another, drops_nothing, family, launched_any, load, rates
from advisor.knobs.attention.flash import head_size
from advisor.knobs.attention.generations import FLASH_3, FLASH_4, FOUR, Generation, overwritten
from advisor.knobs.choice import Choice, Reading, Reason, Situation, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.environment import Environment

_SOURCE = "https://docs.pytorch.org/docs/stable/nn.attention.html"

#: torch from here on can switch back.
_SWITCHES_BACK = (2, 11)

#: torch takes two values from FlashAttention-4's forward; from the 19th beta on it gives four, then five, and the call fails.
_LAST_OF_TWO = 18

#: How FlashAttention-2, which torch brings along, names its kernels.
_OWN = ("pytorch_flash::",)


@dataclass(frozen=True)
class Switched:
    """A generation that torch's flash kernel can be switched to.

    implementation: torch's name of it; majors: the compute capabilities that torch lets it run on, by their first number;
    kernels: what it launches on a GPU, by parts of names.
    """

    implementation: str
    generation: Generation
    majors: tuple[int, ...]
    kernels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The choice's name."""
        return sdpa.SWITCHED.format(self.implementation.lower())


ALL = (
    Switched("FA3", FLASH_3, (9,), ("flash_attn_3::", "FlashAttnFwdSm90")),
    Switched("FA4", FLASH_4, (9, 10), ("flash_attncute", "FlashAttentionForward", "flash_fwd_sm")),
)


def _unavailable(switched: Switched) -> Callable[[Environment], Reason | None]:
    generation, package = switched.generation, str(switched.generation.package)

    def unavailable(environment: Environment) -> Reason | None:
        if not environment.is_cuda:
            text = f"torch's flash kernel can be switched to {generation.title} on NVIDIA GPUs only"
            return Reason("A32", Verdict.INVALID, text, "choose sdpa")
        if (environment.compute_capability or (0, 0))[0] not in switched.majors:
            majors = " or ".join(f"{major}.x" for major in switched.majors)
            text = f"torch calls {generation.title} on compute capability {majors} only"
            return Reason("A32", Verdict.INVALID, text, "choose sdpa")
        if (environment.version("torch") or ()) < _SWITCHES_BACK:
            text = "torch before 2.11 can't switch its flash kernel back"
            return Reason("A32", Verdict.INVALID, text, "pip install -U torch")
        if package not in environment.packages:
            install = generation.install(environment)
            return Reason("A32", Verdict.INVALID, f"the package {package} isn't installed", install)
        return (overwritten(environment) or _too_new(environment)) if package == FOUR else None

    return unavailable


def _too_new(environment: Environment) -> Reason | None:
    """Refuse the versions of flash-attn-4 that no torch we know can call."""
    version = environment.packages[FOUR].split("+")[0]
    beta = re.fullmatch(r"4\.0\.0b(\d+)", version)
    if beta is not None and int(beta[1]) <= _LAST_OF_TWO:
        return None
    text = f"torch takes two values from FlashAttention-4's forward, and flash-attn-4 {version} gives more: calls fail"
    return Reason("A32", Verdict.INVALID, text, f"choose {FLASH_4.name}, or pip install {FOUR}==4.0.0b{_LAST_OF_TWO}")


def _why_not(switched: Switched) -> Callable[[Situation], list[Reason]]:
    def why_not(situation: Situation) -> list[Reason]:
        size = head_size(situation.facts.head_dim, switched.generation, situation.environment)
        dropless = drops_nothing(situation, switched.generation.title)
        return [*sdpa.flash_why_not(situation), *([size] if size is not None else []), *dropless]

    return why_not


def _proof(switched: Switched) -> Callable[[Reading], str | None]:
    """Return the proof: torch says that it is switched, sdpa's flash operator ran, and the kernels seen are not torch's own."""

    def proof(reading: Reading) -> str | None:
        if family(reading) != "sdpa":
            return another(reading)
        if (ran := sdpa.kernels_of(reading.operators)) != {"flash"}:
            return f"sdpa launched its kernel {', '.join(sorted(ran)) or 'math'}"
        if reading.flash_impl != switched.implementation:
            return f"torch's flash kernel is {reading.flash_impl or 'its own'}"
        if launched_any(reading.operators, _OWN):
            return "torch's own FlashAttention-2 was launched"
        if reading.kernel_s and not launched_any(reading.operators, switched.kernels):
            return f"no kernel of {switched.generation.title} was launched"
        return None

    return proof


def _rate(switched: Switched) -> Callable[[Situation], float]:
    def rate(situation: Situation) -> float:
        # torch's own makes 8 here; the package under transformers' interface took 0.73 to 0.97 of its time on an H100.
        major = (situation.environment.compute_capability or (0, 0))[0]
        return switched.generation.rates[0 if major in switched.generation.best else 1]

    return rate


def _choice(switched: Switched) -> Choice:
    title, package = switched.generation.title, str(switched.generation.package)
    return Choice(
        "attention",
        switched.name,
        f"sdpa held to its flash kernel, switched to {title} of the package {package}; no mask",
        _SOURCE,
        unavailable=_unavailable(switched),
        why_not=_why_not(switched),
        load=load("sdpa"),
        before=(*sdpa.FLASH.before, f'activate_flash_attention_impl("{switched.implementation}")'),
        imports=("import torch", "from torch.nn.attention import activate_flash_attention_impl"),
        packages=(package,),
        proof=_proof(switched),
        rates=rates(_rate(switched)),
        traits=Traits(builds_mask=True, process_wide=True),
    )


CHOICES = tuple(map(_choice, ALL))
