"""Entry: how a slot's process comes to have its device in the roster, which one at a time has."""

from __future__ import annotations

import logging
import math
import threading
import time

from advisor.nouns.environment import Machine
from advisor.storage.roster import BEAT_S, Roster

#: How often it is told that another worker has the device, seconds.
HELD_S = 60.0

_log = logging.getLogger("advisor.slot")


def entered(roster: Roster, machine: Machine, owner: str, stop: threading.Event) -> bool:
    """Wait until no other worker has a device; return whether it is this one's, which it is not where it is told to stop."""
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
