"""The supervisor of a host: a slot for each device, started again when one dies; and jobs of slots that are gone are put back."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from advisor.daemon import deaths
from advisor.daemon.engine import Jobs
from advisor.daemon.slot import YIELDED
from advisor.errors import BadInput, StoreError
from advisor.machine.leftovers import owner
from advisor.nouns.environment import Machine
from advisor.storage.place import absolute_url
from advisor.storage.roster import LEASE_S, Roster, Slot
from advisor.storage.store import Store

#: How often the slots' processes are looked at, and how often the roster is looked through for slots that are gone, seconds.
LOOK_S, SWEEP_S = 0.2, 3.0

#: How soon a slot's process that died is started again at first, and at last where it keeps dying, seconds.
AGAIN_S, AGAIN_MOST_S = 0.2, 30.0

#: A process that lived for so long did not die of how it was started, seconds: it takes jobs up after two. A job that it dies of
#: again and again is ended by `advisor.daemon.deaths`.
LIVED_S = 5.0

#: How long slots have after SIGTERM before they are killed, seconds.
STOP_S = 10.0

#: How long a sweep that runs then is waited for, and how long what they let go of may take to be put back, seconds. With STOP_S
#: these are within the 15 s that are promised.
LAST_SWEEPER_S, LAST_S = 1.0, 3.0

#: How often jobs that were over long ago are removed, seconds.
PRUNE_S = 3600.0

_log = logging.getLogger("advisor.supervisor")


@dataclass
class Place:
    """Where a slot's process runs. started_at: by time.monotonic(); due_at: when the next one is to be started."""

    machine: Machine
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    again_s: float = AGAIN_S


@dataclass
class Supervisor:
    """The slots of a host. command: what starts one, the settings are added as JSON; settings: for all of them.

    keep_jobs: how long a job that is over is kept, None for ever: of all hosts on a database the one that keeps them for the
    shortest time decides.
    """

    url: str
    machines: Sequence[Machine]
    settings: Mapping[str, Any]
    command: Sequence[str] = (sys.executable, "-P", "-m", "advisor.daemon.process")
    keep_jobs: timedelta | None = None
    places: list[Place] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        """Keep the slots at work until told to stop; then have them let go of what runs, and put it back."""
        self.places = [Place(machine) for machine in self.machines]
        sweeper = threading.Thread(target=self._sweep_while, args=(stop,), name="advisor-sweeper", daemon=True)
        sweeper.start()
        with tempfile.TemporaryDirectory(prefix="advisor-daemon-", ignore_cleanup_errors=True) as folder:
            try:
                while not stop.wait(LOOK_S):
                    for place in self.places:
                        self._look(place, folder)
            finally:
                self._end()
        sweeper.join(LAST_SWEEPER_S)
        with suppress(StoreError):
            self.sweep(is_last=True)

    def _look(self, place: Place, folder: str) -> None:
        """Start a slot's process, or start it again where it died."""
        now = time.monotonic()
        if place.process is not None and place.process.poll() is not None:
            status, lived_s = place.process.returncode, now - place.started_at
            is_well = status == YIELDED or lived_s > LIVED_S
            place.again_s = AGAIN_S if is_well else min(2 * place.again_s, AGAIN_MOST_S)
            place.due_at, place.process = now + place.again_s, None
            if status != YIELDED:
                words = {"slot": place.machine.uuid, "status": status, "again_s": place.again_s}
                _log.warning("a slot's process ended", extra=words)
        if place.process is None and now >= place.due_at:
            place.started_at = now
            try:
                Path(folder).mkdir(exist_ok=True)  # who cleans /tmp may have removed it
                place.process = self._started(place.machine, folder)
            except OSError as error:
                place.again_s = min(2 * place.again_s, AGAIN_MOST_S)
                place.due_at = now + place.again_s
                words = {"slot": place.machine.uuid, "why": str(error), "again_s": place.again_s}
                _log.error("a slot's process can't be started", extra=words)

    def _started(self, machine: Machine, folder: str) -> subprocess.Popen[bytes]:
        is_cuda = machine.environment.is_cuda
        settings = {
            **self.settings,
            "parent": os.getpid(),
            "supervisor": owner(),
            "cuda": is_cuda,
            "device": machine.uuid,
        }
        environment = {
            **os.environ,
            # Not on its command line, which everybody on a host can read, for it has a password.
            "ADVISOR_DATABASE_URL": absolute_url(self.url),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": machine.uuid if is_cuda else "",
        }
        # In a folder of its own: a hub's id names no folder of where the daemon was started.
        command = [*self.command, json.dumps(settings)]
        return subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)

    def _end(self) -> None:
        """Have every slot let go of what it runs, and end."""
        running = [place.process for place in self.places if place.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_S
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.0))
        for process in running:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _sweep_while(self, stop: threading.Event) -> None:
        wait_s, pruned_at = SWEEP_S, -PRUNE_S
        while not stop.wait(wait_s):
            try:
                self.sweep()
                wait_s = SWEEP_S
                if time.monotonic() - pruned_at >= PRUNE_S:
                    self._prune()
                    pruned_at = time.monotonic()
            except Exception as error:  # noqa: BLE001 - what is not put back now is the next time
                # Where the database was away nobody was heard: all may say that they are there before any is taken for gone.
                wait_s = LEASE_S
                _log.warning("the roster can't be looked through", extra={"why": str(error)})

    def _prune(self) -> None:
        """Remove what was over long ago."""
        jobs = Jobs(self.url)
        try:
            if removed := jobs.prune(self.keep_jobs):
                _log.info("removed what was over long ago", extra={"rows": removed})
        finally:
            jobs.close()

    def sweep(self, *, is_last: bool = False) -> None:
        """Put back what runs on slots that are gone. One sweeper at a time has a slot, and it can't come back meanwhile.

        is_last: this host's slots have ended because they were told to, and whoever stops the host does not wait for long.
        """
        with Store.open(self.url, write=True) as store:
            jobs, roster = Jobs(self.url), Roster(store)
            try:
                gone = [slot for slot in roster.slots() if not slot.is_there()]
                left = [slot for slot in gone if jobs.running_on([slot.name])]
            finally:
                jobs.close()
            failures: list[Exception] = []
            for slot in left:
                try:
                    self._put_back(store, slot, is_last=is_last)
                except Exception as error:  # noqa: BLE001 - the other slots' jobs don't wait for this one's
                    failures.append(error)
            if failures:
                raise failures[0]

    def _put_back(self, store: Store, slot: Slot, *, is_last: bool) -> None:
        roster, me = Roster(store), owner()
        if not roster.enter(slot.name, slot.host, slot.environment, me):
            return
        try:
            asking, patience_s = ("", LAST_S) if is_last else (me, SWEEP_S * 3)
            for name in deaths.put_back(self.url, store, slot.name, asking, patience_s):
                _log.warning("put back", extra={"job": name, "slot": slot.name, "why": "its slot is gone"})
        finally:
            roster.leave(slot.name, me)


def machines_of(workers: str) -> list[Machine]:
    """Return the devices that this host's slots are of: every GPU that can be used, or the CPU where there is none; or none.

    Raises BadInput where torch can use nothing here.
    """
    from advisor.machine import probe
    from advisor.machine.processors import slot_threads

    if workers == "none":
        return []
    *gpus, cpu = probe.machines(slot_threads())
    # A process that sees one slice of a GPU alone can use it: only beside others it can't.
    usable = [gpu for gpu in gpus if not gpu.problem or gpu.environment.mig_profile is not None]
    if workers == "cpu" or not usable:
        if cpu.problem:
            raise BadInput(cpu.problem, cpu.remedy)
        return [cpu]
    return usable
