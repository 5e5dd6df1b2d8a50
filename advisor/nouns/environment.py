"""Environment: what a measurement is comparable under, and the machine it was read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.nouns.checked import checked, matches
from advisor.nouns.configuration import key_of
from advisor.terminal import in_a_line

#: Packages whose version can change a speed or a result; absent ones are left out of the payload.
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "kernels",
    "triton",
    "torchao",
    "mslk",
    "liger-kernel",
    "peft",
)

#: What a package's version ends with where another's files lie over its own: it is not that version any more.
OVERWRITTEN = "+overwritten"

#: CPU threads of an environment at most.
THREADS_MOST = 2**16 - 1


@dataclass(frozen=True)
class Environment:
    """What two measurements must share to be compared.

    device: "cuda" or "cpu"; device_name: the GPU's or processor's name; compute_capability: (major, minor) or None;
    memory_bytes: the device's total; power_limit_w: the enforced limit in watts or None; threads: CPU threads used
    (0 on a GPU); packages: name -> version; cuda: the CUDA version torch was built for, or None.
    UUIDs, host names, free memory and clocks are not in here: they are stored with the measurement.
    """

    device: str
    device_name: str
    compute_capability: tuple[int, int] | None
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None
    mig_profile: str | None = None
    power_limit_w: int | None = None
    threads: int = 0
    packages: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no environment."""
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"device must be cuda or cpu, not {self.device!r}")

    @property
    def payload(self) -> dict[str, Any]:
        """The environment as JSON values."""
        payload = dict(vars(self))
        payload["compute_capability"] = list(self.compute_capability) if self.compute_capability else None
        payload["packages"] = dict(self.packages)
        return payload

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Environment:
        """Build one from its payload. Raises Malformed for a value that can't be."""
        values = checked(cls, payload, {"device": matches("cuda|cpu"), "threads": lambda count: count <= THREADS_MOST})
        values["compute_capability"] = values.get("compute_capability") or None
        return cls(**values)

    @property
    def key(self) -> str:
        """The identity under which measurements are comparable."""
        return key_of(self.payload)

    @property
    def device_class(self) -> str:
        """What of it stays through upgrades: the device's name, its slice and its memory, in words.

        Jobs wait for a device of a class, for a new driver or package makes another environment of the same device.
        """
        part = f" {self.mig_profile}" if self.mig_profile else ""
        return f"{self.device_name}{part}, {self.memory_bytes / 2**30:.0f} GiB"

    def changes_to(self, now: Environment) -> tuple[str, ...]:
        """Return, in words, each version that another environment of this very device has changed; nothing for another device.

        What the driver reports of the memory differs between drivers by some MiB: its size in GiB is the device's.
        """
        mine, other = (
            (e.device, e.device_class, e.compute_capability, e.threads, e.power_limit_w) for e in (self, now)
        )
        if mine != other:
            return ()
        before, after = ({"driver": e.driver, "CUDA": e.cuda, **e.packages} for e in (self, now))
        names = dict.fromkeys(("driver", "CUDA", *PACKAGES, *sorted(before.keys() | after.keys())))
        versions = ((name, before.get(name) or "absent", after.get(name) or "absent") for name in names)
        return tuple(in_a_line(f"{name} {then} → {later}") for name, then, later in versions if then != later)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device == "cuda"

    def is_overwritten(self, package: str) -> bool:
        """Whether a package is installed and another's files lie over its own, or its own are gone."""
        return self.packages.get(package, "").endswith(OVERWRITTEN)

    def version(self, package: str) -> tuple[int, ...] | None:
        """Return the leading numbers of a package's version, or None where it is absent."""
        text = self.packages.get(package)
        if text is None:
            return None
        numbers = []
        for part in text.split("+")[0].split("."):
            if not part.isdigit():
                break
            numbers.append(int(part))
        return tuple(numbers)

    def __str__(self) -> str:
        """Return the name people use, with a CPU's threads, and the two versions that matter most."""
        versions = ", ".join(
            f"{name} {self.packages[name]}" for name in ("torch", "transformers") if name in self.packages
        )
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.device_name}{threads}{f' ({versions})' if versions else ''}"


def upgraded(there: Environment, here: Iterable[Environment]) -> Environment | None:
    """Return the environment that a device is in by now; None where it is as it was, or is none of these."""
    found = list(here)
    if any(each.key == there.key for each in found):
        return None
    return next((each for each in found if there.changes_to(each)), None)


@dataclass(frozen=True)
class Machine:
    """One device of this machine as it was found: its environment, and what is not part of the key.

    index: the device's ordinal (None on CPU); uuid: what the exclusive lock is named after; free_bytes: free memory now;
    problem: why nothing can be measured on it ("" when it can); remedy: what would change that.
    """

    environment: Environment
    host: str
    uuid: str
    index: int | None
    free_bytes: int
    problem: str = ""
    remedy: str = ""

    @property
    def torch_device(self) -> str:
        """The device's name in torch inside a worker, which sees this one GPU alone."""
        return "cpu" if self.index is None else "cuda:0"

    @property
    def user_device(self) -> str:
        """The device's name in torch for the user, who sees all."""
        return "cpu" if self.index is None else f"cuda:{self.index}"
