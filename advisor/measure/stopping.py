"""When timing ends: the stopping rule of a search trial's rounds, and that of a block's turns. Pure, for parent and worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from advisor.nouns.measurement import PACED_NOISE, TIE_ZONE, interval_of_median

#: Work that waits for its launches is timed for so many rounds at least; where that would take longer, for
#: half as many, or the seconds of any long trial. Those count in which the CPU was at its pace.
LAUNCH_BOUND_ROUNDS = 10

#: And until their median is known to within this share of it (half an interval of 95 %). The next trial of the same scatters by
#: 7 % (`PACED_NOISE`): to know this one to 1 % took 3 of its 4.5 seconds and told nothing.
LAUNCH_BOUND_WIDTH = 0.03

#: Half as many rounds are enough of what is so many times slower than the best so far in each of them: that is no scatter.
BEATEN = 1 + 3 * PACED_NOISE

#: For so many times as long it is timed where the CPU is not at its pace.
PATIENCE = 2.0


@dataclass(frozen=True)
class Stopping:
    """When the timing of a search trial ends: rounds and seconds. It says who is to be confirmed; the blocks say who is faster.

    At least `least` rounds, then until the interval's half-width is within `width` of the median, at most `most` rounds or
    `seconds`. Where `least` rounds would outlast `seconds`, at least `least_long` rounds and at most `seconds_long`.
    """

    least: int = 2
    most: int = 10
    seconds: float = 1.5
    least_long: int = 2
    seconds_long: float = 3.0
    width: float = 0.01

    def reached(self, samples: Sequence[float]) -> bool:
        """Whether these samples (seconds a round) are enough."""
        n, spent = len(samples), sum(samples)
        if n == 0:
            return False
        long = median(samples) * self.least > self.seconds
        if n < (self.least_long if long else self.least):
            return long and spent >= self.seconds_long and n >= 2
        low, high = interval_of_median(samples)
        precise = (high - low) / 2 <= self.width * median(samples)
        return precise or n >= self.most or spent >= (self.seconds_long if long else self.seconds)

    @property
    def is_once(self) -> bool:
        """Whether one round is all that is asked for: it shows that the work runs, and is no figure of its speed."""
        return self.most == 1

    def longer(self) -> Stopping:
        """Return when the timing of work ends that waits for its launches."""
        return replace(
            self,
            least=max(self.least, LAUNCH_BOUND_ROUNDS),
            least_long=max(self.least_long, LAUNCH_BOUND_ROUNDS // 2),
            most=max(self.most, 10 * LAUNCH_BOUND_ROUNDS),
            width=max(self.width, LAUNCH_BOUND_WIDTH),
        )

    def reached_at_pace(
        self, at_pace: Sequence[float], samples: Sequence[float], incumbent_s: float | None = None
    ) -> bool:
        """Whether these samples are enough of what waits for its launches: at_pace are those while the CPU was at its pace.

        Where it seldom is, the seconds of a long trial are enough, or PATIENCE times the most rounds. incumbent_s: seconds a
        round of the best so far, None where what is slower is to be timed to its end.
        """
        is_late = len(samples) >= 2 and sum(samples) >= self.seconds_long
        is_beaten = incumbent_s and len(at_pace) >= LAUNCH_BOUND_ROUNDS // 2 and min(at_pace) > BEATEN * incumbent_s
        return self.reached(at_pace) or is_late or bool(is_beaten) or len(samples) >= PATIENCE * self.most


@dataclass(frozen=True)
class Turns:
    """When a block ends. A turn: rounds of one contestant that take about `turn_s` together, or one; its figure is their median.

    At least `least` turns each, at most `most`. In between it goes on while somebody's turns scatter, their half-range beyond
    `width` of their median, and there is somebody whom they don't tell from the default by more than the tie zone. A turn is
    that long because a GPU's clock follows its load. paired: turns are short and many, and those of one process are compared one
    by one (`Trial.times`): they go on until the interval of their ratios' median is clear of the tie zone, or its half-width is
    within `width`; more of them would say less than another block.
    waits: the GPU waits for everybody's launches: of a turn the rounds count in which the CPU was at its pace, while there are
    some within PATIENCE times as long.
    """

    least: int = 3
    most: int = 7
    turn_s: float = 1.0
    width: float = 0.05
    paired: bool = False
    waits: bool = False

    def has_lasted(self, at_pace: Sequence[float], wall_s: Sequence[float]) -> bool:
        """Whether a turn of these rounds (seconds) is as long as a turn is, to the nearest round."""
        if not wall_s:
            return False
        next_s, counting_s = wall_s[-1] / 2, sum(at_pace if self.waits else wall_s)
        is_late = sum(wall_s) + next_s >= PATIENCE * self.turn_s
        return is_late or counting_s + next_s >= self.turn_s

    def reached(self, default: Sequence[float], wall_s: Sequence[float]) -> bool:
        """Whether these turns (median seconds a round) say enough of a contestant beside the default's."""
        if len(wall_s) < self.least:
            return False
        if self.paired and len(default) == len(wall_s) < self.most:
            low, high = interval_of_median([a / b for a, b in zip(default, wall_s, strict=True)])
            return low > 1 + TIE_ZONE or high < 1 - TIE_ZONE or (high - low) / 2 <= self.width
        if (
            len(wall_s) >= self.most
            or max(wall_s) * (1 + TIE_ZONE) < min(default)
            or max(default) * (1 + TIE_ZONE) < min(wall_s)
        ):
            return True
        return self._is_calm(wall_s) and self._is_calm(default)

    def _is_calm(self, wall_s: Sequence[float]) -> bool:
        return (max(wall_s) - min(wall_s)) / 2 <= self.width * median(wall_s)
