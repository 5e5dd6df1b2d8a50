"""Courtesy: when a slot may use its device. Never beside somebody else's computing, and only in the hours that it is given."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, time

from advisor.errors import BadInput, named
from advisor.machine.cpu_gauges import NOT_OBSERVABLE
from advisor.machine.device import Gauges
from advisor.machine.locks import is_held, is_wanted
from advisor.nouns.environment import Machine
from advisor.nouns.reading import shown

#: How often a slot that works looks whether it still may, and one that waits whether it may again, in seconds.
LOOK_S = 2.0


@dataclass(frozen=True)
class Hours:
    """A time of the day, by this host's clock: from the first moment to the last, over midnight where the last is earlier."""

    first: time
    last: time

    @classmethod
    def of(cls, text: str) -> Hours:
        """Read 22:00-07:00. Raises BadInput."""
        match = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", text, re.ASCII)
        try:
            if match is None:
                raise ValueError
            first, last = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        except ValueError:
            raise BadInput(f"{named('only')} takes hours such as 22:00-07:00, not {shown(text)}") from None
        if first == last:
            raise BadInput(f"{named('only')} {text} begins when it ends", "leave it out for all day")
        return cls(first, last)

    def hold(self, now: time) -> bool:
        """Whether they are now."""
        if self.first < self.last:
            return self.first <= now < self.last
        return now >= self.first or now < self.last

    def __str__(self) -> str:
        """Return them as they are written."""
        return f"{self.first:%H:%M}-{self.last:%H:%M}"


@dataclass(frozen=True)
class Courtesy:
    """When a slot may use its device. hours: None for all day; assume_idle: although nobody can see who else uses it."""

    hours: Hours | None = None
    assume_idle: bool = False


class Watch:
    """Looks whether a device may be used. One for a slot, which keeps NVML open: its start costs milliseconds."""

    def __init__(self, machine: Machine, courtesy: Courtesy) -> None:
        """Look at this device. Nothing of it is used."""
        self.machine, self.courtesy = machine, courtesy
        self._gauges = Gauges(machine.uuid if machine.environment.is_cuda else None)

    def close(self) -> None:
        """Let NVML go."""
        self._gauges.close()

    def hindrance(self, own_pids: Collection[int] = (), *, works: bool = False, now: time | None = None) -> str:
        """Return why the device may not be used now, "" where it may. works: whether this slot measures on it already.

        own_pids: processes that are this slot's. A process that only draws, such as a desktop's, computes nothing and counts
        for none.
        """
        hours, moment = self.courtesy.hours, now or datetime.now().astimezone().time()
        if hours is not None and not hours.hold(moment):
            return f"it is only used {hours}"
        if self.machine.environment.is_cuda and (others := self._others(own_pids, works=works)):
            return others
        if is_wanted(self.machine.uuid):
            return "an advisor that somebody started by hand waits for it"
        if not works and is_held(self.machine.uuid):
            return "another advisor measures on it"
        return ""

    def _others(self, own_pids: Collection[int], *, works: bool) -> str:
        self._gauges.own_pids = frozenset({os.getpid(), *own_pids})
        foreign = self._gauges.read()["foreign_processes"]
        if foreign == NOT_OBSERVABLE and works:  # in a container a list that has our own processes is whole
            foreign = self._gauges.read(own_pid_expected=True)["foreign_processes"]
        if foreign == NOT_OBSERVABLE:
            if self.courtesy.assume_idle or works:  # what could not be seen before it began can't be seen now
                return ""
            return "who else uses it can't be seen here, as in a container: --assume-idle takes it for idle"
        many = f"process{'es' if len(foreign) > 1 else ''} {', '.join(map(str, foreign))}"
        return f"{many} of somebody else's computes on it" if foreign else ""


def own_pids() -> list[int]:
    """Return the processes that this one started, and theirs."""
    import psutil

    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process().children(recursive=True)]
    return []
