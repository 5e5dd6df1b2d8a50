"""NVML: which GPUs there are, and what a GPU is doing while something is timed on it. No torch.

The only module that imports pynvml, and only once the driver's library has been found: the import costs 35 ms. NVML
refuses single questions on many machines (MIG devices, laptops, virtual GPUs, containers). A question it refuses is
never an exception here: the answer is None in a :class:`Gpu` and "not observable" in a reading.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from advisor.machine.cpu_gauges import NOT_OBSERVABLE, clock_mhz, read_cpu
from advisor.terminal import percent

#: The driver's library, by the name under which pynvml loads it too.
LIBRARY = "libnvidia-ml.so.1"

#: Bits of nvmlDeviceGetCurrentClocksEventReasons (docs.nvidia.com/deploy/nvml-api, group nvmlClocksEventReasons).
CLOCK_EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}

#: Reasons for which a sample is thrown away. The power cap is not one: it is the normal state of a card at work.
DISTURBING = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})

#: A round on a CPU is thrown away where the work was ready to run and waited for more than this share of it.
MOST_WAITING = 0.1

#: Inode of the first PID name space (PROC_PID_INIT_INO in the kernel's sources): only there are NVML's PIDs ours.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC

_MIG_PROFILE = re.compile(r"\bMIG (\S+)")


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML sees it, or one MIG device: then uuid, memory and profile are its own.

    index: the physical GPU's, in PCI order; memory_bytes: total, free_bytes: at this moment; power_limit_w: the
    enforced limit of the whole card in watts; mig_profile: such as "1g.10gb". None where NVML refuses to say.
    """

    index: int
    name: str
    uuid: str
    compute_capability: tuple[int, int] | None
    memory_bytes: int | None
    free_bytes: int | None
    power_limit_w: int | None
    driver: str | None
    mig_profile: str | None


def gpus() -> tuple[list[Gpu], str]:
    """Return every GPU and MIG device that NVML sees and "", or no GPU and the reason why there is none."""
    nvml, reason = _open()
    if nvml is None:
        return [], reason
    try:
        count = nvml.nvmlDeviceGetCount()
        found = [gpu for index in range(count) for gpu in _gpus_at(nvml, index)]
    except nvml.NVMLError as error:
        return [], f"NVML can't count the GPUs: {error}"
    finally:
        _ask(nvml, "nvmlShutdown")
    if found:
        return found, ""
    return [], f"NVML counts {count} GPU(s) and none can be used" + (": MIG without a device?" if count else "")


def _open() -> tuple[Any, str]:
    """Return pynvml, initialised, and ""; or None and why not."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        absent = "No such file" in str(error)
        return None, f"no NVIDIA driver library on this machine ({LIBRARY})" if absent else f"{LIBRARY}: {error}"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML can't be used: {error}"
    return pynvml, ""


def _ask(nvml: Any, question: str, *arguments: Any) -> Any:
    """Return NVML's answer, None where this driver, device or user gets none."""
    try:
        return getattr(nvml, question)(*arguments)
    except (nvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None


def _gpus_at(nvml: Any, index: int) -> list[Gpu]:
    """Return the GPU with this index, or its MIG devices where MIG is on: then the GPU itself can't be used."""
    card = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
    if card is None:
        return []
    mode = _ask(nvml, "nvmlDeviceGetMigMode", card)
    if not mode or mode[0] != 1:
        return [gpu for gpu in (_gpu(nvml, index, card, card),) if gpu]
    places = range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", card) or 0)
    parts = (_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card, place) for place in places)
    return [gpu for part in parts if part is not None and (gpu := _gpu(nvml, index, card, part))]


def _gpu(nvml: Any, index: int, card: Any, device: Any) -> Gpu | None:
    """Describe a device: the card itself or a MIG device of it; None without a UUID, which names it and its lock."""
    uuid = _ask(nvml, "nvmlDeviceGetUUID", device)
    if uuid is None:
        return None
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", card)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", device)
    limit_mw = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", card)
    return Gpu(
        index=index,
        name=_ask(nvml, "nvmlDeviceGetName", card) or "NVIDIA GPU",
        uuid=uuid,
        compute_capability=tuple(capability) if capability else None,
        memory_bytes=memory.total if memory else None,
        free_bytes=memory.free if memory else None,
        power_limit_w=round(limit_mw / 1000) if limit_mw else None,
        driver=_ask(nvml, "nvmlSystemGetDriverVersion"),
        mig_profile=None if device is card else _mig_profile(nvml, device),
    )


def _mig_profile(nvml: Any, device: Any) -> str | None:
    """Return a MIG device's profile: from its name ("… MIG 1g.10gb"), else from its slices and memory."""
    if named := _MIG_PROFILE.search(_ask(nvml, "nvmlDeviceGetName", device) or ""):
        return named[1]
    attributes = _ask(nvml, "nvmlDeviceGetAttributes_v2", device)
    if attributes is None:
        return None
    gigabytes = -(-int(attributes.memorySizeMB) // 1024)
    return f"{attributes.gpuInstanceSliceCount}g.{gigabytes}gb"


def energy_problem(uuid: str) -> str:
    """Return why a GPU's energy counter can't be read, "" where it can: a MIG device has none, nor have GPUs before Volta."""
    with Gauges(uuid) as gauges:
        if gauges.read()["energy_j"] != NOT_OBSERVABLE:
            return ""
        return gauges.problem or "NVML shows none; a slice of a GPU (MIG) and GPUs before Volta have none"


class Gauges:
    """What a device is doing, read before and after every timed round. Opened once: NVML's start costs milliseconds.

    uuid: a GPU's or MIG device's, None for the CPU; own_pids: processes that are not foreign, this one by default.
    A context manager; :meth:`close` may be called twice. Where NVML can't be opened every reading is "not observable",
    so that a measurement never fails for want of a gauge.
    """

    def __init__(self, uuid: str | None, own_pids: Iterable[int] = ()) -> None:
        """Open NVML for this device."""
        self.own_pids = frozenset(own_pids) or frozenset({os.getpid()})
        self.on_cpu = uuid is None
        if self.on_cpu:
            clock_mhz()  # imports psutil now and not inside the first timed round
        self._nvml: Any = None
        self.problem = ""
        if uuid is not None:
            self._nvml, self.problem = _open()
        self._device = None if self._nvml is None else _ask(self._nvml, "nvmlDeviceGetHandleByUUID", uuid)
        if self._nvml is not None and self._device is None:
            self.problem = f"NVML knows no device {uuid}"
        parent = self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self._device)
        self._is_mig = parent is not None
        self._card = parent or self._device

    def read(self, *, own_pid_expected: bool = False) -> dict[str, Any]:
        """Return what can be seen now, "not observable" for what can't. Units are in the names.

        own_pid_expected: this process has used the GPU by now, so an NVML that lists processes must list it.
        On a GPU: sm_clock_mhz, memory_clock_mhz, temperature_c, power_w, energy_j (a counter), clock_event_reasons,
        foreign_processes. On a CPU: clock_mhz, load_1min, other_runnable_processes, waited_s (a counter: ready to run, and others
        ran) and at_s, the clock then. A MIG device has no power and
        energy of its own; clocks and temperature are the card's.
        """
        if self.on_cpu:
            return read_cpu()
        power_mw = None if self._is_mig else self._ask("nvmlDeviceGetPowerUsage", self._card)
        energy_mj = None if self._is_mig else self._ask("nvmlDeviceGetTotalEnergyConsumption", self._card)
        seen = {
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", self._card, 1),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", self._card, 2),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", self._card, 0),
            "power_w": None if power_mw is None else power_mw / 1000,
            "energy_j": None if energy_mj is None else energy_mj / 1000,
            "clock_event_reasons": self._clock_event_reasons(),
            "foreign_processes": self._foreign_processes(own_pid_expected),
        }
        return {name: NOT_OBSERVABLE if value is None else value for name, value in seen.items()}

    def own_bytes(self) -> int | None:
        """Return the bytes of the device that these processes have, by NVML's list of them; None where it says nothing of them.

        In a container it lists nobody, or others under numbers that may be ours by chance: whoever asks must know the least that
        it can be.
        """
        listed = self._ask("nvmlDeviceGetComputeRunningProcesses", self._device) or ()
        found = [process.usedGpuMemory for process in listed if process.pid in self.own_pids]
        known = [int(used) for used in found if used]
        return sum(known) if known and len(known) == len(found) else None

    def used_bytes(self) -> int | None:
        """Return the bytes of the device that everybody has together, the driver too; None where NVML does not say."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", self._device)
        return None if memory is None else int(memory.used)

    def close(self) -> None:
        """Let NVML go; later readings are "not observable"."""
        if self._nvml is not None:
            _ask(self._nvml, "nvmlShutdown")
        self._nvml = self._device = self._card = None

    def __enter__(self) -> Self:
        """Return the gauges."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let NVML go."""
        self.close()

    def _ask(self, question: str, device: Any, *arguments: Any) -> Any:
        return None if self._nvml is None or device is None else _ask(self._nvml, question, device, *arguments)

    def _clock_event_reasons(self) -> list[str] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._card)
        if bits is None:  # the name before driver 535
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._card)
        return None if bits is None else event_reasons(bits)

    def _foreign_processes(self, own_pid_expected: bool) -> list[int] | None:
        """Return the PIDs of others' compute processes, or None where NVML can't be trusted to list them all.

        Inside a container it lists none, or under numbers that mean nothing here. A list is believed when this process,
        which must be on it, is; before this process uses the GPU, when it runs outside any container.
        """
        listed = self._ask("nvmlDeviceGetComputeRunningProcesses", self._device)
        if listed is None:
            return None
        pids = {process.pid for process in listed}
        sees = bool(pids & self.own_pids) if own_pid_expected else _in_first_pid_namespace()
        return sorted(pids - self.own_pids) if sees else None


def event_reasons(bits: int) -> list[str]:
    """Return the names of the bits that are set, unknown ones as hexadecimal numbers."""
    flags = (1 << place for place in range(bits.bit_length()) if bits >> place & 1)
    return [CLOCK_EVENT_REASONS.get(flag, hex(flag)) for flag in flags]


def disturbed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return "" or why a sample taken between two readings must be thrown away.

    Thermal and hardware slowdowns in either reading, a foreign process that came in between, and on a CPU that the work
    waited for a processor. A process that was
    there before stays in the reading as a tag: else nothing could ever be measured beside an idle notebook.
    """
    seen = [reading.get("clock_event_reasons", NOT_OBSERVABLE) for reading in (before, after)]
    slowed = sorted({reason for reasons in seen if reasons != NOT_OBSERVABLE for reason in reasons} & DISTURBING)
    if slowed:
        return f"the GPU was slowed down ({', '.join(slowed)})"
    had, has = (reading.get("foreign_processes", NOT_OBSERVABLE) for reading in (before, after))
    if NOT_OBSERVABLE in (had, has):
        return _waited_for_cpu(before, after)
    came = sorted(set(has) - set(had))
    return f"another process came to the GPU (pid {', '.join(map(str, came))})" if came else ""


def _waited_for_cpu(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return "" or for how much of the time between two readings of a CPU the work was ready to run and did not."""
    waited, elapsed = (
        [reading.get(name, NOT_OBSERVABLE) for reading in (before, after)] for name in ("waited_s", "at_s")
    )
    if NOT_OBSERVABLE in (*waited, *elapsed) or elapsed[1] <= elapsed[0]:
        return ""
    share = (waited[1] - waited[0]) / (elapsed[1] - elapsed[0])
    return (
        f"its threads waited for a processor for {percent(share, 0)} of the time together"
        if share > MOST_WAITING
        else ""
    )


def _in_first_pid_namespace() -> bool:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False
