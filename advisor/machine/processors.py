"""How many of a machine's processors this process may use, and how many threads torch gives a run that is told nothing."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: What the kernel says of each processor: those with the same package and core are threads of one core.
_TOPOLOGY = Path("/sys/devices/system/cpu")

#: What a control group's processes may have of the processors, seen from inside: microseconds in each period of microseconds.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def allowed() -> frozenset[int]:
    """Return the numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota() -> float:
    """Return how many processors' time a control group lets this process have, infinite without a limit (cgroup v2's cpu.max)."""
    try:
        most, period = _QUOTA.read_text(encoding="utf-8").split()
        return int(most) / int(period)
    except (OSError, ValueError):  # "max 100000": no limit
        return math.inf


def slot_threads() -> int:
    """Return the CPU threads of a slot: those that torch takes, but no more than the control group lets run at once."""
    return max(1, min(usual_threads(), math.floor(min(quota(), 2**16 - 1))))


def usual_threads() -> int:
    """Return the CPU threads that torch takes when told nothing: what OMP_NUM_THREADS says, else one a core that is allowed.

    As OpenMP and MKL count them (torch.get_num_threads() asks those): hyperthreads of one core are one.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isascii() and asked.isdigit() and int(asked):
        return int(asked)
    return len({_core_of(number) for number in allowed()})


def _core_of(number: int) -> tuple[str, str]:
    """Return the package and the core of a logical processor; a core of its own where the kernel says nothing."""
    folder = _TOPOLOGY / f"cpu{number}" / "topology"
    try:
        package, core = ((folder / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    except OSError:
        return "", str(number)
    return package, core
