"""The probe and NVML: what is on this machine, and what a library that answers as other machines do makes of it.

The other machines are a shared library in C by NVML's name, found first on LD_LIBRARY_PATH: the loading, pynvml and its
structures are the real ones. The torch beside it is a package that fails when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.errors import BadInput
from advisor.knobs import KNOBS
from advisor.machine import device, probe
from advisor.machine.device import NOT_OBSERVABLE, Gauges, Gpu, disturbed, event_reasons
from advisor.nouns.environment import Environment

ROOT = Path(__file__).parent.parent

#: FAKE_NVML: h200x2, mig, refuses (NotSupported wherever that is usual), no-driver, mig-empty. FAKE_PIDS: listed
#: processes, "self" for the caller. FAKE_EVENTS: the bits of the clocks' event reasons. OLD: a driver before 535.
FAKE_NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef char *device;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9 };
struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned gi, ci; };
struct attributes { unsigned sm, ce, dec, enc, jpg, ofa, slices, ci; unsigned long long memory_mb; };
static char *cards[] = {"GPU-aaaa0000", "GPU-bbbb1111"}, *parts[] = {"MIG-cccc2222", "MIG-dddd3333"};
static int is(const char *mode) { const char *m = getenv("FAKE_NVML"); return m && !strcmp(m, mode); }
static int mig(void) { return is("mig") || is("mig-empty"); }
static int part(device d) { return d == parts[0] || d == parts[1]; }
static int say(char *out, unsigned size, const char *text) { snprintf(out, size, "%s", text); return OK; }
int nvmlInitWithFlags(unsigned flags) { return is("no-driver") ? NOT_LOADED : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == NOT_LOADED ? "Driver Not Loaded" : "Not Supported"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    const char *v = getenv("FAKE_DRIVER"); return say(out, size, v ? v : "580.95.05");
}
int nvmlDeviceGetCount_v2(unsigned *n) { *n = is("h200x2") ? 2 : 1; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) { *d = cards[i]; return OK; }
int nvmlDeviceGetHandleByUUID(const char *uuid, device *d) {
    char *all[] = {cards[0], cards[1], parts[0], parts[1]};
    for (int i = 0; i < 4; i++) if (!strcmp(uuid, all[i])) { *d = all[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(device d, char *out, unsigned size) { return say(out, size, d); }
int nvmlDeviceGetName(device d, char *out, unsigned size) {
    if (part(d)) return d == parts[0] ? say(out, size, "NVIDIA A100-SXM4-80GB MIG 1g.10gb") : NOT_SUPPORTED;
    return say(out, size, mig() ? "NVIDIA A100-SXM4-80GB" : is("refuses") ? "NVIDIA GB10" : "NVIDIA H200");
}
int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) {
    if (is("refuses") || part(d)) return NOT_SUPPORTED;
    *major = mig() ? 8 : 9; *minor = 0; return OK;
}
int nvmlDeviceGetMemoryInfo(device d, struct memory *m) {
    if (is("refuses")) return NOT_SUPPORTED;
    m->total = part(d) ? 10200547328ull : 150754820096ull; m->free = m->total - 500000000ull; m->used = 500000000ull;
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(device d, unsigned *mw) { *mw = 700000; return is("refuses") ? NOT_SUPPORTED : OK; }
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *later) {
    *now = *later = mig(); return is("refuses") ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *n) { *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned i, device *out) {
    if (is("mig-empty") || (i != 0 && i != 2)) return NOT_FOUND;
    *out = parts[i / 2]; return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device d, device *out) {
    *out = cards[0]; return part(d) ? OK : INVALID;
}
int nvmlDeviceGetAttributes_v2(device d, struct attributes *a) {
    memset(a, 0, sizeof *a); a->slices = 3; a->memory_mb = 40448; return OK;
}
int nvmlDeviceGetClockInfo(device d, unsigned kind, unsigned *mhz) {
    *mhz = kind == 1 ? 1980 : 3201; return is("refuses") || part(d) ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetTemperature(device d, unsigned sensor, unsigned *c) {
    *c = 41; return is("refuses") || part(d) ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetPowerUsage(device d, unsigned *mw) { *mw = 123456; return is("refuses") ? NOT_SUPPORTED : OK; }
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *mj) {
    *mj = 5000000; return is("refuses") ? NOT_SUPPORTED : OK;
}
#ifdef OLD
#define EVENTS nvmlDeviceGetCurrentClocksThrottleReasons
#else
#define EVENTS nvmlDeviceGetCurrentClocksEventReasons
#endif
int EVENTS(device d, unsigned long long *bits) {
    const char *e = getenv("FAKE_EVENTS"); *bits = e ? strtoull(e, 0, 0) : 0; return is("refuses") ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *n, struct process *out) {
    if (is("refuses")) return NOT_SUPPORTED;
    char text[200]; unsigned found = 0; const char *p = getenv("FAKE_PIDS");
    snprintf(text, sizeof text, "%s", p ? p : "");
    for (char *word = strtok(text, ","); word; word = strtok(0, ","), found++)
        if (out) { memset(out + found, 0, sizeof *out); out[found].pid = strcmp(word, "self") ? atoi(word) : getpid();
            out[found].used = is("untold") ? -1ull : 1000000000ull * (found + 1); }
    *n = found; return found && !out ? TOO_SMALL : OK;
}
"""

Answers = Callable[..., Any]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the library twice, as a driver of today and one before 535; return their directories."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the stand-in for libnvidia-ml.so.1")
    base = tmp_path_factory.mktemp("nvml")
    (base / "nvml.c").write_text(FAKE_NVML)
    for name, flags in (("new", []), ("old", ["-DOLD"])):
        (base / name).mkdir()
        library = base / name / device.LIBRARY
        subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, "-o", library, base / "nvml.c"], check=True)
    return {name: base / name for name in ("new", "old")}


@pytest.fixture
def on(libraries: dict[str, Path], tmp_path: Path) -> Answers:
    """Return a function that evaluates an expression in a process of its own, on the machine asked for."""

    def on(expression: str, *, driver: str = "new", torch: str | None = "2.11.0+cu130", **variables: str) -> Any:
        path = [str(ROOT)]
        if torch:
            package = tmp_path / "site" / "torch"
            package.mkdir(parents=True, exist_ok=True)
            package.joinpath("__init__.py").write_text("raise AssertionError('torch was imported')\n")
            cuda = f"'{torch[-3:-1]}.{torch[-1]}'" if "+cu" in torch else "None"
            package.joinpath("version.py").write_text(
                f"from typing import Optional\n__version__ = '{torch}'\ncuda: Optional[str] = {cuda}\n"
            )
            path.insert(0, str(package.parent))
        program = (
            "import json, sys, os\nfrom dataclasses import asdict\nfrom advisor.machine import device, probe\n"
            "from advisor.machine.device import Gauges\nfrom advisor.errors import BadInput\n"
            "def refused(name):\n    try:\n        return probe.machine(name).user_device\n"
            "    except BadInput as error:\n        return str(error)\n"
            f"answer = {expression}\nassert 'torch' not in sys.modules\nprint(json.dumps(answer))"
        )
        environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environ |= {"LD_LIBRARY_PATH": str(libraries[driver]), "PYTHONPATH": os.pathsep.join(path), **variables}
        ran = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return on


MACHINES = "[[m.index, m.uuid, m.problem, m.remedy] for m in probe.machines()[:-1]]"


def test_this_machine_has_a_cpu_and_its_gpus() -> None:
    """Every machine has a CPU, listed last, and as many GPUs as NVML sees, or the reason why there is none."""
    found, (gpus, reason) = probe.machines(threads=3), device.gpus()
    cpu = found[-1]

    assert bool(gpus) != bool(reason)
    assert cpu.user_device == "cpu"
    assert cpu.environment.threads == 3
    assert cpu.environment.device_name
    assert 0 < cpu.free_bytes <= cpu.environment.memory_bytes
    assert all(machine.environment.is_cuda for machine in found[:-1])
    assert Environment.of(cpu.environment.payload) == cpu.environment


def test_probing_does_not_import_torch() -> None:
    """The real, installed torch is read from its files and never imported."""
    program = "import sys; from advisor.machine import probe; probe.machines(); probe.packages(); print('torch' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    ran = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_a_package_whose_files_another_wrote_over_is_told(tmp_path: Path) -> None:
    """flash-attn brings files by the names of flash-attn-4's: where those lie there, or none, it is not that version."""
    site, files = tmp_path / "site", ("flash_attn/cute/__init__.py", "flash_attn/cute/interface.py")
    about = site / "flash_attn_4-4.0.0b36.dist-info"
    for folder in (site / "flash_attn" / "cute", about):
        folder.mkdir(parents=True)
    for name in files:
        (site / name).write_text("own = True\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn-4\nVersion: 4.0.0b36\n")
    (about / "RECORD").write_text(
        "".join(f"{name},sha256=0,{len('own = True') + 1}\n" for name in files) + "RECORD,,\n"
    )
    program = "from advisor.machine import probe; print(probe.packages()['flash-attn-4'])"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}

    def told() -> str:
        return subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert told() == "4.0.0b36"
    (site / files[1]).write_text("an older copy, of another size\n")
    assert told() == "4.0.0b36+overwritten"
    (site / files[1]).unlink()
    assert told() == "4.0.0b36+overwritten"
    (about / "RECORD").unlink()
    assert told() == "4.0.0b36"


def test_availability_lists_every_choice() -> None:
    """Every choice of every knob is listed once, in the knobs' order, with its reason where it has one."""
    listed = probe.availability(probe.machines()[-1].environment)
    reasons = {(entry.knob, entry.choice): entry.reason for entry in listed}

    assert list(reasons) == [(knob.name, choice) for knob in KNOBS.values() for choice in knob.choices]
    assert reasons["attention", "sdpa"] is None
    tf32 = reasons["precision", "tf32"]
    assert tf32 is not None
    assert tf32.rule == "D2"


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_unknown_devices_are_refused(wanted: str) -> None:
    """A device that has no meaning is refused with the names that have one."""
    with pytest.raises(BadInput, match="must be cpu, cuda or cuda:<number>"):
        probe.machine(wanted)


def test_two_gpus(on: Answers) -> None:
    """Two H200s are two machines whose environments are equal and whose UUIDs differ."""
    found = on("[asdict(m) for m in probe.machines()]", FAKE_NVML="h200x2")

    assert [machine["index"] for machine in found] == [0, 1, None]
    assert [machine["uuid"] for machine in found[:2]] == ["GPU-aaaa0000", "GPU-bbbb1111"]
    assert found[0]["environment"] == found[1]["environment"]
    environment = found[0]["environment"]
    packages = environment.pop("packages")
    assert environment == {
        "device": "cuda",
        "device_name": "NVIDIA H200",
        "compute_capability": [9, 0],
        "memory_bytes": 150754820096,
        "driver": "580.95.05",
        "cuda": "13.0",
        "mig_profile": None,
        "power_limit_w": 700,
        "threads": 0,
    }
    assert packages["torch"] == "2.11.0+cu130"
    assert found[0]["free_bytes"] == 150754820096 - 500000000
    assert {machine["problem"] for machine in found} == {""}


def test_devices_by_name(on: Answers) -> None:
    """None and "cuda" are the first GPU, a number is that one, and one too large is refused with how many there are."""
    names = on("[refused(name) for name in (None, 'cuda', 'cuda:1', 'cpu', 'cuda:3')]", FAKE_NVML="h200x2")

    assert names == ["cuda:0", "cuda:0", "cuda:1", "cpu", "cuda:3: this machine has 2 GPUs"]


@pytest.mark.parametrize(
    ("torch", "driver", "problem", "remedy"),
    [
        ("2.11.0+cu130", "580.95.05", "", ""),
        ("2.11.0+cu126", "550.54.15", "", ""),
        ("2.13.0+cpu", "580.95.05", "the installed torch 2.13.0+cpu is built without CUDA", "whl/cu130"),
        ("2.13.0+cpu", "550.54.15", "the installed torch 2.13.0+cpu is built without CUDA", "whl/cu126"),
        ("2.11.0+cu130", "550.54.15", "driver 550.54.15 is too old for torch's CUDA 13.0", "whl/cu126"),
    ],
)
def test_a_torch_that_can_not_use_the_gpu(on: Answers, torch: str, driver: str, problem: str, remedy: str) -> None:
    """A GPU that the installed torch can't use is listed with the reason and the command that changes it."""
    (found,) = on(MACHINES, torch=torch, FAKE_NVML="h200", FAKE_DRIVER=driver)

    assert found[2].startswith(problem)
    assert found[3].endswith(remedy)
    assert bool(found[2]) == bool(problem)
    assert found[3] == "" or found[3].startswith("pip install --force-reinstall torch --index-url ")


def test_an_unusable_gpu_is_refused_by_name_and_passed_over(on: Answers) -> None:
    """Asked for by name, an unusable GPU is refused with problem and remedy; asked for nothing, the CPU is taken."""
    named, free = on("[refused('cuda'), refused(None)]", torch="2.13.0+cpu", FAKE_NVML="h200")

    assert named.startswith("cuda: the installed torch 2.13.0+cpu is built without CUDA (pip install ")
    assert free == "cpu"


def test_mig_devices_replace_their_card(on: Answers) -> None:
    """With MIG on, its parts are listed with their UUID, memory and profile; all but one say what would show them."""
    gpus, reason = on("[asdict(g) for g in device.gpus()[0]], device.gpus()[1]", FAKE_NVML="mig")

    assert reason == ""
    assert [(gpu["uuid"], gpu["mig_profile"], gpu["memory_bytes"]) for gpu in gpus] == [
        ("MIG-cccc2222", "1g.10gb", 10200547328),
        ("MIG-dddd3333", "3g.40gb", 10200547328),
    ]
    assert {gpu["name"] for gpu in gpus} == {"NVIDIA A100-SXM4-80GB"}
    assert {tuple(gpu["compute_capability"]) for gpu in gpus} == {(8, 0)}
    first, second = on(MACHINES, FAKE_NVML="mig")
    assert first[2] == ""
    assert (second[2], second[3]) == (
        "CUDA shows a process one MIG device and nothing else",
        "CUDA_VISIBLE_DEVICES=MIG-dddd3333",
    )
    assert on(MACHINES, FAKE_NVML="mig", CUDA_VISIBLE_DEVICES="MIG-dddd3333") == [[0, "MIG-dddd3333", "", ""]]


@pytest.mark.parametrize(
    ("mode", "variables", "slots"),
    [
        ("h200x2", {}, ["GPU-aaaa0000", "GPU-bbbb1111"]),
        ("h200x2", {"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-bbbb1111"]),
        ("mig", {}, ["MIG-cccc2222", "MIG-dddd3333"]),
        ("mig", {"CUDA_VISIBLE_DEVICES": "MIG-dddd3333"}, ["MIG-dddd3333"]),
    ],
)
def test_slots_are_the_gpus_and_mig_devices_that_are_let_through(
    on: Answers, mode: str, variables: dict[str, str], slots: list[str]
) -> None:
    """A daemon has a slot for each, by its UUID; the process of a slot, which sees that one alone, can use it."""
    found = on("[m.uuid for m in __import__('advisor.daemon.supervisor', fromlist=['x']).machines_of('auto')]",
               FAKE_NVML=mode, **variables)  # fmt: skip

    assert found == slots
    for slot in slots:
        assert on(MACHINES, FAKE_NVML=mode, CUDA_VISIBLE_DEVICES=slot) == [[0, slot, "", ""]]


def test_an_nvml_that_refuses(on: Answers) -> None:
    """Questions that NVML refuses are None in the GPU and "not observable" in a reading, never an exception."""
    (gpu,) = on("[asdict(g) for g in device.gpus()[0]]", FAKE_NVML="refuses")
    reading = on("Gauges('GPU-aaaa0000').read(own_pid_expected=True)", FAKE_NVML="refuses")
    (machine,) = on("[asdict(m) for m in probe.machines()[:-1]]", FAKE_NVML="refuses")

    assert {name for name, value in gpu.items() if value is None} == {
        "compute_capability",
        "memory_bytes",
        "free_bytes",
        "power_limit_w",
        "mig_profile",
    }
    assert set(reading.values()) == {NOT_OBSERVABLE}
    assert machine["environment"]["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("mode", "words"),
    [("no-driver", "Driver Not Loaded"), ("mig-empty", "MIG without a device")],
)
def test_why_there_is_no_gpu(on: Answers, mode: str, words: str) -> None:
    """Where there is no GPU to use, the reason is in NVML's words and in the refusal of a device."""
    (gpus, reason), refusal = on("[device.gpus(), refused('cuda')]", FAKE_NVML=mode)

    assert gpus == []
    assert words in reason
    assert reason in refusal


def test_no_driver_library(tmp_path: Path) -> None:
    """Without the driver's library the reason names it, and a file that is none is told apart."""
    program = "from advisor.machine import device; print(device.gpus()[1])"

    def reason() -> str:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    if not device.gpus()[0]:
        assert "no NVIDIA driver library on this machine (libnvidia-ml.so.1)" in reason()
    (tmp_path / device.LIBRARY).write_text("no library")
    assert reason().startswith("libnvidia-ml.so.1: ")


def test_gauges_of_a_gpu(on: Answers) -> None:
    """A reading has clocks, temperature, power, energy and the event reasons by name, in the units it names."""
    reading = on("Gauges('GPU-bbbb1111').read()", FAKE_NVML="h200x2", FAKE_EVENTS="0x44")

    assert {name: value for name, value in reading.items() if name != "foreign_processes"} == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 41,
        "power_w": 123.456,
        "energy_j": 5000.0,
        "clock_event_reasons": ["sw_power_cap", "hw_thermal_slowdown"],
    }


def test_gauges_on_an_older_driver(on: Answers) -> None:
    """Drivers before 535 answer under the older name of the event reasons."""
    reading = on("Gauges('GPU-aaaa0000').read()", driver="old", FAKE_NVML="h200", FAKE_EVENTS="0x8")

    assert reading["clock_event_reasons"] == ["hw_slowdown"]


def test_gauges_of_a_mig_device(on: Answers) -> None:
    """A MIG device shows its card's clocks and temperature, but not the card's power, which it shares."""
    reading = on("Gauges('MIG-dddd3333').read()", FAKE_NVML="mig")

    assert (reading["sm_clock_mhz"], reading["temperature_c"]) == (1980, 41)
    assert (reading["power_w"], reading["energy_j"]) == (NOT_OBSERVABLE, NOT_OBSERVABLE)


def test_energy_is_seen_or_not(on: Answers) -> None:
    """A whole card's energy counter can be read; that of its MIG device, and of an NVML that refuses, can't."""
    asked = "[device.energy_problem(uuid) for uuid in ('GPU-aaaa0000', 'MIG-dddd3333')]"
    none = "NVML shows none; a slice of a GPU (MIG) and GPUs before Volta have none"

    assert on(asked, FAKE_NVML="h200") == ["", none]
    assert on(asked, FAKE_NVML="mig") == ["", none]
    assert on(asked, FAKE_NVML="refuses")[0] == none


def test_gauges_of_no_device(on: Answers) -> None:
    """A device that NVML does not know, and gauges that are closed, read "not observable" and say why."""
    closed = "[(g := Gauges('GPU-aaaa0000')).close(), g.close(), g.read()][2]"
    reading, problem, after = on(f"[(u := Gauges('GPU-none')).read(), u.problem, {closed}]", FAKE_NVML="h200")

    assert set(reading.values()) == {NOT_OBSERVABLE}
    assert problem == "NVML knows no device GPU-none"
    assert set(after.values()) == {NOT_OBSERVABLE}


@pytest.mark.parametrize(
    ("pids", "expected"),
    [("self", []), ("self,4242", [4242]), ("self,77,4242", [77, 4242]), ("4242", NOT_OBSERVABLE), ("", NOT_OBSERVABLE)],
)
def test_foreign_processes_are_believed_with_a_witness(on: Answers, pids: str, expected: list[int] | str) -> None:
    """A list of processes is believed when this one, which must be on it, is; else others are not observable."""
    reading = on("Gauges('GPU-aaaa0000').read(own_pid_expected=True)", FAKE_NVML="h200", FAKE_PIDS=pids)

    assert reading["foreign_processes"] == expected


@pytest.mark.parametrize(
    ("nvml", "pids", "expected"),
    [
        ("h200", "self", [10**9, 500_000_000]),
        ("h200", "4242,self", [2 * 10**9, 500_000_000]),
        ("h200", "4242", [None, 500_000_000]),
        ("h200", "", [None, 500_000_000]),
        ("untold", "self", [None, 500_000_000]),
        ("refuses", "self", [None, None]),
    ],
)
def test_memory_of_a_process_and_of_everybody(on: Answers, nvml: str, pids: str, expected: list[int | None]) -> None:
    """A process's memory is told where NVML lists it and says how much; everybody's where NVML answers at all."""
    asked = "[Gauges('GPU-aaaa0000').own_bytes(), Gauges('GPU-aaaa0000').used_bytes()]"
    assert on(asked, FAKE_NVML=nvml, FAKE_PIDS=pids) == expected
    assert on("[Gauges('no').own_bytes(), Gauges('no').used_bytes()]", FAKE_NVML=nvml, FAKE_PIDS=pids) == [None, None]


def test_foreign_processes_before_the_gpu_is_used(on: Answers) -> None:
    """Before this process uses the GPU the list is believed outside containers only."""
    reading = on("Gauges('GPU-aaaa0000').read()", FAKE_NVML="h200", FAKE_PIDS="4242")
    in_first_namespace = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC

    assert reading["foreign_processes"] == ([4242] if in_first_namespace else NOT_OBSERVABLE)


def test_own_processes_are_not_foreign(on: Answers) -> None:
    """Processes named as one's own are no strangers: the parent may watch over its worker."""
    watching = "Gauges('GPU-aaaa0000', own_pids=[77]).read(own_pid_expected=True)"
    seen = on(watching, FAKE_NVML="h200", FAKE_PIDS="77,4242")

    assert seen["foreign_processes"] == [4242]


def test_gauges_of_the_cpu() -> None:
    """On a CPU a reading has the load and, where the system says it, the clock; nothing else is claimed."""
    with Gauges(None) as gauges:
        reading = gauges.read()

    assert set(reading) == {"clock_mhz", "load_1min", "other_runnable_processes", "waited_s", "at_s"}
    assert all(value == NOT_OBSERVABLE or value >= 0 for value in reading.values())
    assert disturbed(reading, reading) == ""


def read(reasons: list[str] | str = NOT_OBSERVABLE, pids: list[int] | str = NOT_OBSERVABLE) -> dict[str, Any]:
    """Return a reading with these event reasons and foreign processes."""
    return {"clock_event_reasons": reasons, "foreign_processes": pids}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (read(), read(), ""),
        (read([], []), read([], []), ""),
        (read(["gpu_idle"]), read(["sw_power_cap"]), ""),
        (read(["hw_slowdown"]), read([]), "hw_slowdown"),
        (read([]), read(["sw_thermal_slowdown", "sw_power_cap"]), "slowed down (sw_thermal_slowdown)"),
        (read(["hw_thermal_slowdown"]), read(), "hw_thermal_slowdown"),
        (read(), read(["hw_power_brake_slowdown"]), "hw_power_brake_slowdown"),
        (read([], [7]), read([], [7]), ""),
        (read([], [7]), read([], []), ""),
        (read([], []), read([], [7, 9]), "pid 7, 9"),
        (read([]), read([], [7]), ""),
    ],
)
def test_disturbed_samples(before: dict[str, Any], after: dict[str, Any], words: str) -> None:
    """Heat, hardware slowdowns and a process that came disturb a sample; the power cap and the unseen do not."""
    reason = disturbed(before, after)

    assert words in reason
    assert bool(reason) == bool(words)


def test_event_reasons_are_named_by_bit() -> None:
    """Every bit has NVML's name, and a bit that is not known yet is shown as a number."""
    assert event_reasons(0) == []
    assert set(event_reasons(0xE8)) == device.DISTURBING
    assert event_reasons(0x204) == ["sw_power_cap", "0x200"]


def card(index: int, uuid: str, mig_profile: str | None = None) -> Gpu:
    """Return a GPU with this index and UUID."""
    return Gpu(index, "NVIDIA A100", uuid, (8, 0), 1, 1, 400, "580.1", mig_profile)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["GPU-a1", "GPU-a2", "MIG-m1", "MIG-m2"]),
        ("1", ["GPU-a2"]),
        ("1,0", ["GPU-a2", "GPU-a1"]),
        (" 1 , 0 ", ["GPU-a2", "GPU-a1"]),
        ("2", ["MIG-m1"]),
        ("GPU-a2,0", ["GPU-a2", "GPU-a1"]),
        ("MIG-m2", ["MIG-m2"]),
        ("0,9,1", ["GPU-a1"]),
        ("0,-1,1", ["GPU-a1"]),
        ("GPU-a", []),
        ("0,0", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(variable: str | None, expected: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA does: order kept, cut at the first bad entry, emptied by a repetition."""
    gpus = [card(0, "GPU-a1"), card(1, "GPU-a2"), card(2, "MIG-m1", "1g.10gb"), card(2, "MIG-m2", "1g.10gb")]

    assert [gpu.uuid for gpu in probe.visible(gpus, variable)] == expected


def test_hidden_gpus(on: Answers) -> None:
    """A GPU's index is the one that torch will give it, and hidden GPUs are refused by what hides them."""
    assert on(MACHINES, FAKE_NVML="h200x2", CUDA_VISIBLE_DEVICES="1") == [[0, "GPU-bbbb1111", "", ""]]
    assert on("[len(probe.machines()), refused('cuda')]", FAKE_NVML="h200x2", CUDA_VISIBLE_DEVICES="") == [
        1,
        "cuda: CUDA_VISIBLE_DEVICES= hides this machine's GPUs",
    ]
