"""Agreement: whether a configuration is as fast as it was, by the figures of processes then and of processes now.

What varies between processes is the yardstick, not what varies between the rounds of one: two processes of the same
configuration differ by more than their rounds' intervals say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from advisor.nouns.measurement import BOUNDS

#: What must be found: something a tenth faster or slower than it was.
CHANGE = 0.10

#: Processes now: fewer decide nothing, and so many are run at most unless more are asked for. More than MOST are none.
LEAST_PROCESSES, USUAL_PROCESSES, MOST_PROCESSES = 3, 15, 99

#: The change as a logarithm, and the point halfway to it, at which it is decided.
_CHANGE, _HALFWAY = math.log1p(CHANGE), math.log1p(CHANGE) / 2

#: How far the interval reaches, in standard errors: looked at from three figures on, and in 95 % all looks hold the true ratio.
_BOUNDS = BOUNDS[max(BOUNDS)]

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"


@dataclass(frozen=True)
class Agreement:
    """Figures of processes then and now: positive, one a process, all higher or all lower where that is better.

    The logarithms of both scatter by the same unknown amount around two means, and the question is the difference of these: is
    it 0, or that of a change by CHANGE either way? It is decided at the point halfway, and only where the interval excludes the
    other answer; the scatter is estimated from both together, each around its own mean.

    The interval's bounds are those of `Comparison`, looked at after each process from the third on, and a process then counts as
    a figure more: with one then they are exact for a difference of independent figures, with more they are a little wide
    (benchmarks/reproduction.py counts how often they err). A ratio that is one is called changed in at most 5 %, and one that is
    1.1 called reproduced in at most 2.5 %, whatever the scatter is: where it is wide nothing is decided.
    """

    then: tuple[float, ...]
    now: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what has no logarithm, and nothing to compare."""
        figures = (*self.then, *self.now)
        if not self.then or not self.now or not all(math.isfinite(value) and value > 0 for value in figures):
            raise ValueError("figures must be positive and finite, of one process at least then and now")

    @property
    def ratio(self) -> float:
        """The geometric mean of the figures now over that of those then."""
        return math.exp(self._apart)

    @property
    def scatter(self) -> float | None:
        """The standard deviation of a process's logarithm, from both together; None where no two of a kind ran."""
        degrees = len(self.then) + len(self.now) - 2
        return math.sqrt((_squares(self.then) + _squares(self.now)) / degrees) if degrees else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ratio's 95 % interval between processes, at every look; None while there are too few to say."""
        half = self._half
        if half is None:
            return None
        return math.exp(max(self._apart - half, -700.0)), math.exp(min(self._apart + half, 700.0))

    @property
    def verdict(self) -> str:
        """Return "reproduced", "not reproduced" or, where neither is sure, "undecided"."""
        half, apart = self._half, abs(self._apart)
        if half is None:
            return UNDECIDED
        if apart <= _HALFWAY:
            return REPRODUCED if apart + half < _CHANGE else UNDECIDED
        return NOT_REPRODUCED if apart > half else UNDECIDED

    @property
    def would_need(self) -> int | None:
        """How many processes now would decide it most likely, did they scatter as they do; None: more than MOST_PROCESSES.

        Likely: the interval is to reach halfway, so that wherever the middle is, one of the answers is excluded.
        """
        scatter = self.scatter
        if scatter is None:
            return None
        counts = range(max(LEAST_PROCESSES, len(self.now) + 1), MOST_PROCESSES + 1)
        return next((n for n in counts if self._reach(n) * scatter <= _HALFWAY), None)

    @property
    def _apart(self) -> float:
        return _mean_log(self.now) - _mean_log(self.then)

    @property
    def _half(self) -> float | None:
        """Half the width of the interval of the logarithm."""
        if len(self.now) < LEAST_PROCESSES or self.scatter is None:
            return None
        return self._reach(len(self.now)) * self.scatter

    def _reach(self, now: int) -> float:
        """How far the interval of the logarithm reaches with so many processes now, in standard deviations of a process."""
        degrees = now + len(self.then) - 2
        bound = _BOUNDS[min(degrees - 2, len(_BOUNDS) - 1)]
        return bound * math.sqrt(1 / now + 1 / len(self.then))


def _mean_log(figures: Sequence[float]) -> float:
    return fmean(math.log(value) for value in figures)


def _squares(figures: Sequence[float]) -> float:
    """Return the sum of squares of the logarithms around their mean."""
    mean = _mean_log(figures)
    return math.fsum((math.log(value) - mean) ** 2 for value in figures)
