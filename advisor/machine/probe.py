"""Read this machine: its devices as Environments, what hinders each, and every choice's availability. Never torch.

What torch can do is read from its files: `torch/version.py` says which CUDA it was built for, and finding that file
does not import the package.

CUDA_VISIBLE_DEVICES is respected: a device's index is the ordinal that torch gives it. Numbers in it are read in PCI
order, which is NVML's; CUDA's own default order is fastest first, so whoever starts torch on an index from here must
set CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from advisor.errors import BadInput, named
from advisor.knobs import KNOBS, Reason
from advisor.machine import device
from advisor.machine.device import Gpu
from advisor.machine.memory import free_memory_bytes, total_memory_bytes
from advisor.machine.processors import allowed, usual_threads
from advisor.nouns.environment import OVERWRITTEN, PACKAGES, Environment, Machine

_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Availability:
    """One choice of a knob in an environment: None, or the reason why it can't run there at all."""

    knob: str
    choice: str
    reason: Reason | None


@dataclass(frozen=True)
class Torch:
    """The installed torch, from its files: its version and the CUDA version it was built for (None: built without)."""

    version: str
    cuda: str | None


def availability(environment: Environment) -> list[Availability]:
    """Return every choice of every knob with the reason why it can't run in this environment, or None."""
    return [
        Availability(knob.name, choice.name, choice.unavailable(environment))
        for knob in KNOBS.values()
        for choice in knob.choices.values()
    ]


def packages() -> dict[str, str]:
    """Return the versions of the packages that can change a speed, local parts kept; absent ones are left out.

    One that lost its files to another package has that in its local part. torch's own file is believed before its metadata:
    wheels of one build differ in whether the latter say "+cu130".
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name) + (OVERWRITTEN if _is_overwritten(name) else "")
        except metadata.PackageNotFoundError:
            continue
    if torch := _torch():
        versions["torch"] = torch.version
    return versions


#: Files that another package of ours has under the same name, and that are no package's any more once that one is uninstalled.
_CONTESTED = {"flash-attn-4": ("flash_attn/cute/__init__.py", "flash_attn/cute/interface.py")}


def _is_overwritten(package: str) -> bool:
    """Whether contested files of an installed package are gone or not of the sizes that its RECORD says.

    Read in RECORD itself: `metadata.files` leaves out what is gone, from Python 3.12 on.
    """
    if package not in _CONTESTED:
        return False
    found = metadata.distribution(package)
    recorded = {row[0]: row[-1] for row in csv.reader((found.read_text("RECORD") or "").splitlines()) if row}
    for name in _CONTESTED[package]:
        place = Path(str(found.locate_file(name)))
        if name in recorded and not (place.is_file() and recorded[name] in ("", str(place.stat().st_size))):
            return True
    return False


def machine(wanted: str | None = None, threads: int | None = None) -> Machine:
    """Return one device: "cpu", "cuda" (the first GPU, as in torch) or "cuda:<n>".

    With None it is the first GPU that can be used, else the CPU; only then may the answer have a problem (no torch).
    Raises BadInput for a device that is unknown, not there, or can't be used, with what would help.
    """
    return chosen(machines(threads), wanted)


def chosen(found: Sequence[Machine], wanted: str | None) -> Machine:
    """Return one of the devices that :func:`machines` found, by name: see :func:`machine`."""
    cpu, gpus = found[-1], found[:-1]
    if wanted is None:
        return next((gpu for gpu in gpus if not gpu.problem), cpu)
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", wanted)
    if not match:
        raise BadInput(f"{named('device')} must be cpu, cuda or cuda:<number>, not {wanted!r}")
    if wanted == "cpu":
        named_one = cpu
    else:
        index = int(match[1] or 0)
        if index >= len(gpus):
            raise BadInput(f"{wanted}: {_how_many(len(gpus))}")
        named_one = gpus[index]
    if named_one.problem:
        raise BadInput(f"{wanted}: {named_one.problem}", named_one.remedy)
    return named_one


def machines(threads: int | None = None) -> list[Machine]:
    """Return every GPU that torch would see, in its order, and the CPU last.

    threads: what a CPU run would use, None for what torch takes when told nothing.
    """
    threads = usual_threads() if threads is None else threads
    torch, versions, host = _torch(), packages(), platform.node()
    gpus, _ = device.gpus()
    seen = visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = []
    for index, gpu in enumerate(seen):
        problem, remedy = _hindrance(gpu, torch) or _not_enumerated(gpu, index, seen) or ("", "")
        environment = _gpu_environment(gpu, torch, versions)
        free = free_memory_bytes() if gpu.free_bytes is None else gpu.free_bytes
        found.append(Machine(environment, host, gpu.uuid, index, free, problem, remedy))
    cpu = Environment("cpu", _cpu_name(), None, total_memory_bytes(), threads=threads, packages=versions)
    problem, remedy = ("", "") if torch else ("torch isn't installed", f"pip install torch --index-url {_INDEX}/cpu")
    return [*found, Machine(cpu, host, f"cpu-{host}", None, free_memory_bytes(), problem, remedy)]


def refuse_too_many(threads: int | None) -> None:
    """Raise BadInput for more CPU threads than there are processors: they would wait for one another."""
    there = len(allowed())
    if threads is not None and threads > there:
        many = f"{there} processor{'s' * (there > 1)}"
        raise BadInput(f"{named('threads')} {threads}: this process may use {many}", f"at most {there}")


def visible(gpus: Sequence[Gpu], variable: str | None) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets through, in its order; None lets all through.

    As CUDA and torch read it: numbers (of cards) or UUIDs and their beginnings; the first entry that fits no device, or
    more than one, ends the list; a repeated entry empties it.
    """
    if variable is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for entry in (entry.strip() for entry in variable.split(",")):
        if entry.isdigit():
            fitting = [gpu for gpu in gpus if gpu.index == int(entry)][:1]
        else:
            fitting = [gpu for gpu in gpus if entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)]
        if len(fitting) != 1:
            break
        if fitting[0] in chosen:
            return []
        chosen += fitting
    return chosen


def _how_many(visible_gpus: int) -> str:
    """Say how many GPUs there are and, where there is none, why."""
    if visible_gpus:
        return f"this machine has {visible_gpus} GPU{'s' if visible_gpus > 1 else ''}"
    gpus, reason = device.gpus()
    if not gpus:
        return f"this machine has no GPU: {reason}"
    return f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')} hides this machine's GPUs"


def _hindrance(gpu: Gpu, torch: Torch | None) -> tuple[str, str] | None:
    """Return why the installed torch can't use this GPU, and the command that changes it."""
    driver = _leading_number(gpu.driver)
    old_card = gpu.compute_capability is not None and gpu.compute_capability < (7, 5)
    build = "cu126" if old_card or (driver is not None and driver < 580) else "cu130"
    remedy = f"pip install --force-reinstall torch --index-url {_INDEX}/{build}"
    if torch is None:
        return "torch isn't installed", remedy.replace("--force-reinstall ", "")
    if torch.cuda is None:
        return f"the installed torch {torch.version} is built without CUDA", remedy
    newest = (_leading_number(torch.cuda) or 0) >= 13
    if newest and driver is not None and driver < 580:
        return f"driver {gpu.driver} is too old for torch's CUDA {torch.cuda}, which needs 580 or newer", remedy
    if newest and old_card and gpu.compute_capability:
        capability = "{}.{}".format(*gpu.compute_capability)
        return f"torch for CUDA {torch.cuda} has no kernels for compute capability {capability}", remedy
    return None


def _not_enumerated(gpu: Gpu, index: int, seen: Sequence[Gpu]) -> tuple[str, str] | None:
    """Return why CUDA would not show this device: beside a MIG device it shows a process nothing else."""
    first_mig = next((place for place, other in enumerate(seen) if other.mig_profile is not None), None)
    if first_mig is None or len(seen) == 1 or index == 0 == first_mig:
        return None
    return "CUDA shows a process one MIG device and nothing else", f"CUDA_VISIBLE_DEVICES={gpu.uuid}"


def _gpu_environment(gpu: Gpu, torch: Torch | None, versions: Mapping[str, str]) -> Environment:
    return Environment(
        device="cuda",
        device_name=gpu.name,
        compute_capability=gpu.compute_capability,
        # NVML has no figure where the GPU has no memory of its own and uses the machine's.
        memory_bytes=total_memory_bytes() if gpu.memory_bytes is None else gpu.memory_bytes,
        driver=gpu.driver,
        cuda=torch.cuda if torch else None,
        mig_profile=gpu.mig_profile,
        power_limit_w=gpu.power_limit_w,
        packages=versions,
    )


def _torch() -> Torch | None:
    """Read the installed torch's version file, whose lines are `cuda: Optional[str] = '13.0'`; None without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"^(\w+)(?::[^=\n]+)?\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    return Torch(values.get("__version__", "unknown"), values.get("cuda"))


def _leading_number(version: str | None) -> int | None:
    match = re.match(r"\d+", version or "")
    return int(match[0]) if match else None


def _cpu_name() -> str:
    """Return the processor's name: Linux says it in /proc/cpuinfo, except on ARM."""
    named = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine() or "CPU"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
