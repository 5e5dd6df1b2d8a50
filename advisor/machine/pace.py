"""The CPU's pace: how long a fixed loop takes. On a host that is shared it changes by a factor of two within a second.

Who shares a processor's core, or its clock, is not seen inside a virtual machine, neither as stolen time nor as a process; but
a loop of the same steps takes longer, as the launches of a GPU's work do (docs/search.md, "Work that waits for its launches").
"""

from __future__ import annotations

import math
import time

from advisor.nouns.measurement import is_at_pace

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
        self.hold_to(found_s)
        return found_s

    def hold_to(self, lap_s: float | None) -> None:
        """Know of a lap that was seen elsewhere on this machine, None of none."""
        self.best_s = min(self.best_s, math.inf if lap_s is None else lap_s)

    def is_full(self, lap_s: float) -> bool:
        """Whether the CPU was at its pace when the loop took so long, by the best that is known by now."""
        return is_at_pace(lap_s, self.best_s)


#: Of this process: what is timed in it is held to the best that is known in it.
OWN = Pace()


def _loop_s() -> float:
    total, began = 0, time.perf_counter()
    for step in range(STEPS):
        total += step
    return time.perf_counter() - began
