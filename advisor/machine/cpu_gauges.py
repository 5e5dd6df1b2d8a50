"""What the CPU is doing while something is timed on it: its clock, who else runs, how long threads waited. No torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

#: What a reading says where nothing can be seen: never "none", which would be a claim.
NOT_OBSERVABLE = "not observable"


def read_cpu() -> dict[str, Any]:
    """Return what can be seen of the CPU now, NOT_OBSERVABLE for what can't: see `advisor.machine.device.Gauges.read`."""
    seen = {
        "clock_mhz": clock_mhz(),
        "load_1min": None,
        "other_runnable_processes": None,
        "at_s": time.monotonic(),
    }
    seen["waited_s"] = _waited_s()
    try:
        # "1.03 1.02 0.89 3/87 3932": the fourth field is threads that run now / all; one of those that run is this one.
        fields = Path("/proc/loadavg").read_text(encoding="utf-8").split()
        seen["load_1min"], running = float(fields[0]), int(fields[3].split("/")[0])
        seen["other_runnable_processes"] = max(running - 1, 0)
    except (OSError, ValueError, IndexError):
        pass
    return {name: NOT_OBSERVABLE if value is None else value for name, value in seen.items()}


def _waited_s() -> float | None:
    """Return the seconds that threads of this process were ready and did not run (proc(5), schedstat), None where unknown.

    Of all of them together: while one of torch's waits, the others spin at the barrier, and none of these says that it waits.
    """
    try:
        tasks = [path.read_text(encoding="utf-8") for path in Path("/proc/self/task").glob("*/schedstat")]
        return sum(int(text.split()[1]) for text in tasks) / 1e9 if tasks else None
    except (OSError, ValueError, IndexError):  # a thread that has just ended among others
        return None


def clock_mhz() -> float | None:
    """Return the processors' mean clock, None where the system does not say (virtual machines, most ARM)."""
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return round(float(frequency.current), 1) if frequency and frequency.current else None
