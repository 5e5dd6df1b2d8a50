"""FlashAttention's generations, as packages and as kernels from the Hub: where each can run, and how it is installed.

transformers checks the GPU only where a package is missing (rule A2), so every rule of the kernels is asked here. Sources:
levers.md (A1, A2, A18–A21), flash-attn-4's cute/interface.py, and the RECORDs of both wheels for what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from advisor.knobs.choice import Reason, Verdict
from advisor.nouns.environment import Environment

Version = tuple[int, ...]

#: The versions of `kernels` that transformers takes, by its own version: from, and below. Read in its import_utils.
_KERNELS: dict[Version, tuple[str, str]] = {(5, 17): ("0.16.0", "0.17.0"), (5, 23): ("0.18.2", "0.19.0")}

#: The two distributions that share the module flash_attn. The first's wheel brings an old copy of the second's flash_attn/cute.
TWO, FOUR = "flash-attn", "flash-attn-4"

_INSTALL_2 = "pip install flash-attn --no-build-isolation"


@dataclass(frozen=True)
class Generation:
    """One generation of FlashAttention as a choice.

    implementation: transformers' name of it; package: the distribution, None where `kernels` fetches it from the Hub;
    least: the lowest capability that it declares; oldest: the oldest version taken; hub: the choice
    that runs the same generation from the Hub; sinks: whether it computes attention sinks; rates: relative speed on the
    generation of GPU that it was written for, and on others; best: those GPUs' major capabilities; others: how the operators of
    other generations begin, where those might be taken for it; before, imports, functions: what is done before a model is loaded,
    see `advisor.knobs.choice.Choice`.
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
    hub: str = ""
    sinks: bool = False
    others: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Its name in sentences."""
        return f"FlashAttention-{self.number}"

    def install(self, environment: Environment) -> str:
        """Return the command that installs its package into an environment, with what mends the other package after it."""
        if self.number == 3:
            return "pip install flash-attn-3 --find-links https://download.pytorch.org/whl/flash-attn-3/"
        if self.number == 4:
            # Its one extra is for CUDA 13; what it is without is for CUDA 12.
            is_13 = (environment.cuda or "").startswith("13")
            return 'pip install "flash-attn-4[cu13]"' if is_13 else "pip install flash-attn-4"
        return f"{_INSTALL_2}, then {mend(environment)}" if FOUR in environment.packages else _INSTALL_2


FLASH_2 = Generation(
    "flash_attention_2",
    "flash_attention_2",
    "the flash-attn package; tells packed sequences apart without a mask",
    2,
    TWO,
    (8, 0),
    (7.0, 7.0),
    (8, 9),
    (2, 3, 3),
    hub="hub-flash-attn2",
)
FLASH_3 = Generation(
    "flash_attention_3",
    "flash_attention_3",
    "the flash-attn-3 package, made for Hopper GPUs",
    3,
    "flash-attn-3",
    (8, 0),
    (10.0, 6.0),
    (9,),
    hub="hub-vllm-flash-attn3",
)
FLASH_4 = Generation(
    "flash_attention_4",
    "flash_attention_4",
    "the flash-attn-4 package, made for Hopper and Blackwell GPUs",
    4,
    FOUR,
    (9, 0),
    (10.0, 9.0),
    (10, 11),
    hub="kernels-community/flash-attn4",
    sinks=True,
    others=("flash_attn::", "flash_attn_3::"),
    before=("flash_attention_4_in_graphs(flash_attn.cute)",),
    imports=("import functools", "import flash_attn.cute", "import torch", "from typing import Any"),
    functions=(("advisor.knobs.attention.flash_torch", "flash_attention_4_in_graphs"),),
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

GENERATIONS = (FLASH_2, FLASH_3, FLASH_4, _HUB_2, _HUB_3)

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


def mend(environment: Environment) -> str:
    """Return the command that puts flash-attn-4's own files back where flash-attn's lie over them."""
    version = environment.packages.get(FOUR, "").split("+")[0]
    return f"pip install --force-reinstall --no-deps flash-attn-4=={version}"


def overwritten(environment: Environment) -> Reason | None:
    """Return that flash-attn-4 is installed and its files are not its own any more (rule A20), or None.

    flash-attn's wheel has files of the same names in flash_attn/cute, years older: where it was installed after flash-attn-4,
    or was uninstalled beside it, importing flash_attn.cute fails or gives those.
    """
    if not environment.is_overwritten(FOUR):
        return None
    text = "flash-attn-4's files in flash_attn/cute are not its own: flash-attn was installed, or uninstalled, after it"
    return Reason("A20", Verdict.INVALID, text, mend(environment))


def unavailable(generation: Generation) -> Callable[[Environment], Reason | None]:
    """Return what says why a generation can't run in an environment."""

    def found(environment: Environment) -> Reason | None:
        if not environment.is_cuda:
            return Reason("A18", Verdict.INVALID, f"{generation.title} runs on NVIDIA GPUs only", "use a GPU")
        if (old := _too_old_gpu(environment, generation)) is not None:
            return old
        if generation.package is None:
            return kernels_problem(environment)
        return _missing(environment, generation, generation.package)

    return found


def _too_old_gpu(environment: Environment, generation: Generation) -> Reason | None:
    capability = environment.compute_capability or (0, 0)
    if capability >= generation.least:
        return None
    if generation.number == 2:
        text = "FlashAttention only supports Ampere GPUs or newer (compute capability 8.0)"
        return Reason("A1", Verdict.INVALID, text)
    text = f"{generation.title} needs compute capability {generation.least[0]}.0, and transformers does not check it"
    return Reason("A2", Verdict.INVALID, text)


def _missing(environment: Environment, generation: Generation, package: str) -> Reason | None:
    version, install = environment.version(package), generation.install(environment)
    if version is None and kernels_problem(environment) is None:
        text = f"the package {package} isn't installed, so transformers would run {generation.hub} from the Hub instead"
        instead = f"choose {generation.hub}, or " if generation.hub in NAMES.values() else ""
        return Reason("A19", Verdict.ALIAS, text, instead + install)
    if version is None:
        return Reason("A18", Verdict.INVALID, f"the package {package} isn't installed", install)
    if version < generation.oldest:
        oldest = ".".join(map(str, generation.oldest))
        upgrade = install.replace("install", "install -U", 1)
        return Reason("A18", Verdict.INVALID, f"{package} is older than {oldest}", upgrade)
    return overwritten(environment) if generation.number == 4 else None
