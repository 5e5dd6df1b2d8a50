"""Arrival: what a slot waits for before it takes jobs up: that nobody else has its device, and that it may be used."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from advisor.daemon.courtesy import LOOK_S, Watch
from advisor.nouns.environment import Machine
from advisor.storage.roster import BEAT_S, Roster

#: How often it is told that another worker has the device, seconds.
HELD_S = 60.0

_log = logging.getLogger("advisor.slot")


def entered(roster: Roster, machine: Machine, owner: str, stop: threading.Event) -> bool:
    """Enter the slot of a device, as soon as nobody else has it; return False where it was told to stop meanwhile."""
    told_at = -math.inf
    while not roster.enter(machine.uuid, machine.host, machine.environment, owner):
        if time.monotonic() - told_at >= HELD_S:
            told_at = time.monotonic()
            holder = next((slot.holder for slot in roster.slots() if slot.name == machine.uuid), "")
            about = {"slot": machine.uuid, "holder": holder}
            _log.warning("another worker has this device: it is waited for", extra=about)
        if stop.wait(BEAT_S):
            return False
    return True


def allowed(watch: Watch, say: Callable[[str], None], stop: threading.Event) -> bool:
    """Wait until the device may be used; return False where it was told to stop meanwhile. say: hears each time why not."""
    told = ""
    while hindrance := watch.hindrance():
        if hindrance != told:
            _log.info("waits", extra={"slot": watch.machine.uuid, "why": hindrance})
        told = hindrance
        say(hindrance)
        if stop.wait(LOOK_S):
            return False
    return True
