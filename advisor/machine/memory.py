"""How much memory there is for this process: the machine's, or less where a control group says so."""

from __future__ import annotations

import os
import re
from pathlib import Path


def total_memory_bytes() -> int:
    """Return the bytes of memory this process may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def free_memory_bytes() -> int:
    """Return the bytes that can be had now without swapping."""
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    free = int(available[1]) * 1024 if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, total_memory_bytes())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
