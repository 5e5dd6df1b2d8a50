"""Turns: whose a slot's device is. One job has it at a time, and what is measured again waits for what somebody submitted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: How long nobody is to have wanted the device before whoever comes last has it, seconds: when one job is over, its queue hands
#: the next one out a moment later (`advisor.daemon.engine.POLL_S`).
QUIET_S = 2.0


class Turns:
    """The turns on one device. Safe to share between threads."""

    def __init__(self) -> None:
        """Begin with a device that nobody has."""
        self._changed = threading.Condition()
        self._is_taken, self._wanted = False, 0

    @property
    def is_wanted(self) -> bool:
        """Whether a job that goes first waits for the device."""
        return self._wanted > 0

    @contextmanager
    def turn(self, *, is_last: bool) -> Iterator[None]:
        """Have the device while this lasts, as soon as it is free. is_last: everybody else who waits for it goes first."""
        self._take(is_last=is_last)
        try:
            yield
        finally:
            self._give()

    def let_pass(self) -> None:
        """Let those who go first have the device, and take it again when none of them has wanted it for a while.

        For whoever comes last.
        """
        self._give()
        self._take(is_last=True)

    def wait_free(self, timeout_s: float) -> None:
        """Wait until nobody has the device, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken, timeout_s)

    def _take(self, *, is_last: bool) -> None:
        with self._changed:
            self._wanted += not is_last
            self._changed.wait_for(lambda: not self._is_taken and not (is_last and self._wanted))
            while is_last and self._changed.wait_for(lambda: self._is_taken or self._wanted > 0, QUIET_S):
                self._changed.wait_for(lambda: not self._is_taken and not self._wanted)
            self._wanted -= not is_last
            self._is_taken = True

    def _give(self) -> None:
        with self._changed:
            self._is_taken = False
            self._changed.notify_all()
