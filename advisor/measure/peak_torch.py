"""The peak of memory: what a process needs free on its device, as NVML sees it. Loaded by the worker alone.

On a GPU torch's allocator takes memory in blocks and keeps them, and beside it the process has a CUDA context, the code of its
kernels and what libraries allocate: all of that has to be free, and a figure of tensors alone would promise a fit that there is
not. The peak is the most that torch had reserved, and what the process has beside that now, which does not shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advisor.machine.device import Gauges
from advisor.nouns.metrics import ASSUMED_BESIDE_BYTES

#: By UUID, what everybody had of a GPU before this process had anything of it; None where NVML did not say.
_BEFORE: dict[str, int | None] = {}


class Peak(NamedTuple):
    """The peak of memory in bytes, what it is made of, and who told what the process has beside torch's memory.

    reserved, allocated: torch's peaks, of its blocks and of tensors; beside: all else that the process has of the device.
    """

    total: int
    reserved: int
    allocated: int
    beside: int
    told_by: str

    @property
    def told(self) -> Mapping[str, Any]:
        """As JSON values."""
        return self._asdict()


def note_others(uuid: str | None) -> None:
    """Remember what others have of a GPU, once, before this process has its context there."""
    if uuid is not None and uuid not in _BEFORE:
        is_initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with Gauges(uuid) as gauges:
            _BEFORE[uuid] = None if is_initialized else gauges.used_bytes()


def reset_peak(device: str) -> None:
    """Count the peak from now on. On a GPU what torch keeps of earlier work is given back: the next calls allocate anew."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Resets VmHWM (proc(5)); where that is forbidden, the peak is the whole process's.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_of(device: str, uuid: str | None) -> Peak:
    """Return the peak: of this process on the GPU, or resident in it on a CPU. uuid: the GPU's by NVML, None if unknown."""
    if not device.startswith("cuda"):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        found = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        resident = next(found, 0)
        return Peak(resident, resident, resident, 0, "VmHWM")
    torch.cuda.synchronize(device)
    now = torch.cuda.memory_reserved(device)
    with Gauges(uuid or "") as gauges:
        own, used = gauges.own_bytes(), gauges.used_bytes()
    beside, told_by = beside_torch(now, own, used, _BEFORE.get(uuid or ""))
    reserved, allocated = torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
    return Peak(reserved + beside, reserved, allocated, beside, told_by)


def beside_torch(reserved: int, own: int | None, used: int | None, before: int | None) -> tuple[int, str]:
    """Return the bytes that a process has of a GPU beside torch's, and who told.

    reserved: torch's now. own: the process's by NVML's list, which is believed where it is more than that: in a container the
    number of another process can be ours. used, before: everybody's, now and before this process had any: right where others
    stay as they were. Where neither is known, ASSUMED_BESIDE_BYTES.
    """
    if own is not None and own > reserved:
        return own - reserved, "NVML's list of processes"
    if used is not None and before is not None and used - before > reserved:
        return used - before - reserved, "what NVML sees used, less what was before"
    return ASSUMED_BESIDE_BYTES, "assumed"
