"""The CPU's pace: how long a fixed loop takes. On a host that is shared it changes by a factor of two within a second.

Who shares a processor's core, or its clock, is not seen inside a virtual machine, neither as stolen time nor as a process; but
a loop of the same steps takes longer. On an H100's host a small model took 24 ms a round while the loop was quick and 44 while it
was not (docs/search.md, "Work that waits for its launches").
"""

from __future__ import annotations

import math
import time

from advisor.nouns.measurement import AT_PACE

#: Steps of the loop: about 0.3 ms, a tenth of a small model's batch. The quickest of LOOPS counts, for an interrupt is no pace.
STEPS, LOOPS = 10_000, 3


class Pace:
    """What the loop takes, and what it took at best."""

    def __init__(self) -> None:
        """Have seen nothing yet."""
        self.best_s = math.inf

    def lap_s(self) -> float:
        """Run the loop and return its seconds."""
        found_s = min(_loop_s() for _ in range(LOOPS))
        self.best_s = min(self.best_s, found_s)
        return found_s

    def share(self, *laps_s: float) -> float:
        """Return the share of its best pace that the CPU ran at, by the slowest of these laps: 1 is the best seen."""
        return self.best_s / max(laps_s)


def is_full(share: float) -> bool:
    """Whether a share of the best pace is as good as all of it."""
    return share * AT_PACE >= 1


#: Of this process: what is timed in it is held to the best that any of it saw.
OWN = Pace()


def _loop_s() -> float:
    total, began = 0, time.perf_counter()
    for step in range(STEPS):
        total += step
    return time.perf_counter() - began
