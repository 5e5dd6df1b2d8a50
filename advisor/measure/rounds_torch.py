"""The rounds of a trial as they are taken, and which of them say how fast it is. Loaded by the worker alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from advisor.machine import pace
from advisor.measure.messages import Rounds
from advisor.networks.switches_torch import NOTHING_COMPILED, Compiled
from advisor.nouns.metrics import COMPILED

#: What a round's state calls the slower of two laps of a CPU's loop, before and after it, where they were run.
LAP = "cpu_lap_s"


class Round(NamedTuple):
    """One pass over the batches: wall seconds, seconds by CUDA events (0.0 on a CPU), wall seconds of the slowest batch.

    first_s: wall seconds of the batch that is the first of the list, whenever it was run; 0.0 where it was not.
    """

    wall_s: float
    gpu_s: float
    slowest_s: float
    first_s: float = 0.0


@dataclass
class Taken:
    """The rounds of a trial as they are taken: what `advisor.measure.messages.Rounds` tells of them.

    joules: over a window of at least ENERGY_WINDOW_S. busy: by the kernels of the profiled batch. paired: they are turns of a
    block that are compared with other contestants' one by one. at_first, compiled: what torch compiled for the first call, and
    for them.
    """

    wall_s: list[float] = field(default_factory=list)
    gpu_s: list[float] = field(default_factory=list)
    slowest_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    pruned: str = ""
    joules: float | None = None
    busy: float | None = None
    paired: bool = False
    at_first: Compiled = NOTHING_COMPILED
    compiled: Compiled = NOTHING_COMPILED

    @property
    def told(self) -> Rounds:
        """The rounds as they are sent."""
        return Rounds(
            wall_s=tuple(self.wall_s),
            gpu_s=tuple(self.gpu_s),
            slowest_s=tuple(self.slowest_s),
            states=tuple(self.states),
            discarded=tuple(self.discarded),
            pruned=self.pruned,
            joules=self.joules,
            busy=self.busy,
            laps_s=tuple(state[LAP] for state in self.states) if all(LAP in state for state in self.states) else (),
            paired=self.paired,
            compiled=self._compiled_told,
        )

    @property
    def _compiled_told(self) -> dict[str, float]:
        """What was compiled by metric; nothing where nothing was."""
        both = self.at_first.and_(self.compiled)
        figures = (both.seconds, self.compiled.seconds, both.graphs, both.again, both.breaks)
        return dict(zip(COMPILED, map(float, figures), strict=True)) if both.graphs else {}

    @property
    def at_pace(self) -> list[float]:
        """The wall seconds of those during which the CPU was at its pace, by what is known now, or nobody looked."""
        return [self.wall_s[number] for number in self._at_pace]

    @property
    def _at_pace(self) -> list[int]:
        return [n for n, state in enumerate(self.states) if LAP not in state or pace.OWN.is_full(state[LAP])]

    def keep_at_pace(self, least: int) -> int:
        """Throw away those during which the CPU was not at its pace, unless fewer than `least` are left; return how many."""
        kept = self._at_pace
        if len(kept) < least:
            return 0
        thrown = len(self.states) - len(kept)
        self._keep(kept)
        return thrown

    def keep(self, last: int) -> None:
        """Throw all away but the last ones."""
        self._keep(range(len(self.states))[len(self.states) - last :])

    def _keep(self, numbers: Sequence[int]) -> None:
        for figures in (self.wall_s, self.gpu_s, self.slowest_s, self.first_s):
            figures[:] = [figures[number] for number in numbers]
        self.states[:] = [self.states[number] for number in numbers]

    def look_at_busy(self, kernel_s: float) -> None:
        """Tell which share of the time the GPU computes. kernel_s: what the kernels of the first batch take, 0.0 if unknown.

        By the rounds while the CPU was at its pace, if there are any: those are what the other figures are of.
        """
        self.busy = busy_share(kernel_s, [self.first_s[number] for number in self._at_pace] or self.first_s)

    def add(self, found: Round, state: dict[str, Any]) -> None:
        """Add a round."""
        self.wall_s.append(found.wall_s)
        self.gpu_s.append(found.gpu_s)
        self.slowest_s.append(found.slowest_s)
        self.first_s.append(found.first_s)
        self.states.append(state)


class Settled:
    """The rounds by which a configuration can be told to be slow: none in which torch compiled, nor the one after.

    In the next a CUDA graph is recorded, and each shape has its own. Without a compiler all are.
    """

    def __init__(self, compiled: Compiled) -> None:
        """Have none. compiled: what was, for the first call."""
        self.rounds_s: list[float] = []
        self._skips = int(compiled.graphs > 0)

    def add(self, wall_s: float, compiled: Compiled) -> None:
        """Add a round. compiled: in it."""
        if compiled.graphs:
            self.rounds_s, self._skips = [], 1
        elif self._skips:
            self._skips -= 1
        else:
            self.rounds_s.append(wall_s)


def busy_share(kernel_s: float, batch_s: Sequence[float]) -> float | None:
    """Return the share of a batch's wall seconds for which the GPU computes; None where no kernel was seen.

    kernel_s: what the batch's kernels take together; batch_s: what the batch took, each time it was run.
    """
    return min(1.0, kernel_s / median(batch_s)) if kernel_s > 0 and batch_s and median(batch_s) > 0 else None
