"""The machine as it was seen a moment ago: for who answers many requests, and can't probe it for each.

A probe takes milliseconds of reading the packages' metadata, and tens where a driver is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from advisor.machine import probe
from advisor.nouns.environment import Machine

#: After how many seconds a machine is probed again, beside the answers; and what is older than this is not handed out any more.
RENEWED_S, OLDEST_S = 5.0, 60.0


class RememberedMachine:
    """The devices of this machine, probed at most every RENEWED_S seconds. Safe to share between threads.

    What is there is handed out while it is renewed, so that no answer waits for that, but for the first one and one after a
    long silence.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._lock = threading.Lock()
        self._found: Sequence[Machine] = ()
        self._seen_at = float("-inf")
        self._is_renewing = False

    def machine(self, wanted: str | None, threads: int | None) -> Machine:
        """Return what `advisor.machine.probe.machine` does, a moment ago. Raises BadInput."""
        found = self._machines()
        if threads is not None:
            cpu = found[-1]
            found = [*found[:-1], replace(cpu, environment=replace(cpu.environment, threads=threads))]
        return probe.chosen(found, wanted)

    def _machines(self) -> Sequence[Machine]:
        with self._lock:
            age_s = time.monotonic() - self._seen_at
            if age_s > OLDEST_S:
                self._look()
            elif age_s > RENEWED_S and not self._is_renewing:
                self._is_renewing = True
                threading.Thread(target=self._renew, name="advisor-probe", daemon=True).start()
            return self._found

    def _look(self) -> None:
        seen_at = time.monotonic()
        found = probe.machines()
        self._found, self._seen_at = found, seen_at

    def _renew(self) -> None:
        try:
            self._look()
        finally:
            self._is_renewing = False
