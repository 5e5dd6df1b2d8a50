"""Turns: whose a slot's device is. One job has it at a time, and what is measured again waits for what somebody submitted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: How often whoever comes last asks whether a job that goes first is on its way here, seconds.
ASK_S = 0.25


class Turns:
    """The turns on one device. Safe to share between threads."""

    def __init__(self, is_due: Callable[[], bool]) -> None:
        """Begin with a device that nobody has.

        is_due: whether a job that goes first waits in its queue, or was handed out and is to ask for the device in a moment. When
        one job is over, its queue hands the next one out some time later, on a busy machine much later.
        """
        self._is_due = is_due
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
        """Let those who go first have the device, and take it again when none of them is left. For whoever comes last."""
        self._give()
        self._take(is_last=True)

    def wait_free(self, timeout_s: float) -> None:
        """Wait until nobody has the device, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken, timeout_s)

    def _take(self, *, is_last: bool) -> None:
        while not self._has_taken(is_last=is_last):
            pass

    def _has_taken(self, *, is_last: bool) -> bool:
        if is_last:
            with self._changed:
                self._changed.wait_for(self._is_free)  # nothing is asked while somebody measures
            if self._is_due():  # asked without the lock: it is a database that answers
                with self._changed:
                    self._changed.wait(ASK_S)
                return False
        with self._changed:
            if is_last and not self._is_free():
                return False  # the next one may be due by now
            self._wanted += not is_last
            self._changed.wait_for(lambda: not self._is_taken)
            self._wanted -= not is_last
            self._is_taken = True
        return True

    def _is_free(self) -> bool:
        return not self._is_taken and not self._wanted

    def _give(self) -> None:
        with self._changed:
            self._is_taken = False
            self._changed.notify_all()
