"""Measurement and Comparison: raw samples with a unit, and the statistics that are computed from them.

Raw samples are kept; statistics carry the name and version of their method, so that a better one can be applied later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import fmean, median, stdev
from typing import Any

#: Name and version of the interval that `interval_of_median` computes.
STATISTIC = "median/order-statistics/1"

#: A ratio must be clear of 1 by this much to be called faster or slower (measurement.md, B.3: δ = 2 %).
TIE_ZONE = 0.02

#: A GPU that computes for less than this share of the time waits for the CPU that launches its kernels, whose speed changes from
#: moment to moment: on an H100's host the rounds of one trial went from 40 to 60 ms within half a second.
LAUNCH_BOUND_SHARE = 0.8

#: Standard deviation of the logarithm of such work's figures: MiniLM, 8 × 64 tokens, ran at 40,443 to 63,407 tokens/s by its
#: default in eight fresh processes one after the other on an H100, which scatter by 15 %.
LAUNCH_BOUND_NOISE = 0.15

#: The same where the CPU was at its pace meanwhile: rounds of MiniLM scattered by 7 to 9 % then, by 18 % in one run of four, and
#: by 29 to 36 % all together (docs/results/2026-11-27-h100-regret.md).
PACED_NOISE = 0.07

#: A CPU that takes so many times as long as at its best for the same steps is at its pace yet: there a loop of steps scattered by
#: a tenth, and elsewhere it took twice as long.
AT_PACE = 1.25

#: Fewer blocks than this decide nothing (measurement.md, "Confirmation").
LEAST_BLOCKS = 3

#: Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond 30 the last, which is a little too wide.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip

#: In standard errors, how far the interval reaches after 3, 4, … of the planned blocks, by how many are planned: one-sided
#: bounds of a linear error-spending function (the power family's ρ = 1). By block n of K, 2.5 % · n/K is spent on a side, and
#: all looks together miss the true ratio in 2.5 % on a side; the joint law of the looks' t statistics is taken into account.
#: Lan & DeMets, Biometrika 70 (1983); Kim & DeMets, Biometrika 74 (1987); Jennison & Turnbull, Group Sequential Methods
#: (2000), chapter 7. Made by benchmarks/sequential.py, rounded up; a plan of 3 has one look and is Student's.
BOUNDS: dict[int, tuple[float, ...]] = {
    3: (4.303,),
    4: (5.018, 4.193),
    5: (5.643, 4.623, 3.779),
    6: (6.206, 4.998, 4.037, 3.491),
    7: (6.722, 5.333, 4.262, 3.665, 3.299),
    8: (7.200, 5.637, 4.462, 3.818, 3.428, 3.166),
    9: (7.649, 5.916, 4.644, 3.956, 3.543, 3.267, 3.069),
}


def is_at_pace(lap_s: float, best_s: float) -> bool:
    """Whether a CPU was at its pace when a loop of steps took so long, where it takes `best_s` at best."""
    return lap_s <= AT_PACE * best_s


def interval_of_median(samples: Sequence[float]) -> tuple[float, float]:
    """Return the distribution-free interval of the median at 95 % or the most that so few samples allow.

    The k-th smallest and k-th largest sample hold the median with probability 1 − 2·P(Bin(n, ½) < k); k is the largest
    with at least 95 %. Below six samples that is the whole range (five samples: 93.75 %).
    """
    ordered, n = sorted(samples), len(samples)
    if n == 0:
        raise ValueError("no samples")
    k = max(_rank(n), 1)
    return ordered[k - 1], ordered[n - k]


@cache
def _rank(n: int) -> int:
    """Return the largest k for which 1 − 2·P(Bin(n, ½) < k) is at least 95 %.

    Terms are kept as logarithms, each from the one before: binomial coefficients of thousands have thousands of digits. What
    lies more than 8 standard deviations (√n/2) below the middle adds less than 1e-14 and is left out.
    """
    k, below = max(0, n // 2 - 4 * math.isqrt(n) - 4), 0.0
    term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    while k < n // 2:
        below += math.exp(term)
        if 1 - 2 * below < 0.95:
            break
        term += math.log(n - k) - math.log(k + 1)
        k += 1
    return k


@dataclass(frozen=True)
class Measurement:
    """One metric's raw samples. Units are spelled out ("s", "bytes", "tokens/s", "J").

    samples are in the order they were taken; device_state says what was seen of the device while they were
    ("not observable" where NVML can't see, never "none").
    """

    metric: str
    unit: str
    samples: tuple[float, ...]
    phase: str = "search"
    device_state: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse empty and non-finite samples."""
        if not self.samples or not all(map(math.isfinite, self.samples)):
            raise ValueError(f"{self.metric}: samples must be finite and not empty")

    @cached_property
    def median(self) -> float:
        """The samples' median."""
        return median(self.samples)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The interval of the median."""
        return interval_of_median(self.samples)


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline, measured in blocks: ratio > 1 means that the candidate is faster.

    block_ratios: per block, baseline seconds over candidate seconds. The interval is a 95 % t-interval over their
    logarithms (measurement.md, "Confirmation"): blocks are the unit that repeats, samples inside a block are not.

    planned: the most blocks there were to be, looked at after each from the third on. With 3 to 9 planned the interval is
    wider, by BOUNDS, so that it holds at every look: in 95 % all looks' intervals together have the true ratio. With more,
    and with None (rows from before there were looks), all were run before the first look, and it is Student's.
    """

    candidate: str
    baseline: str
    block_ratios: tuple[float, ...]
    planned: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no logarithm, and a plan of nothing."""
        if not self.block_ratios or not all(math.isfinite(r) and r > 0 for r in self.block_ratios):
            raise ValueError("block ratios must be positive, finite and not empty")
        if self.planned is not None and self.planned < 1:
            raise ValueError(f"no blocks can't be planned: {self.planned}")

    @cached_property
    def ratio(self) -> float:
        """The geometric mean of the blocks' ratios."""
        return math.exp(fmean(math.log(r) for r in self.block_ratios))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The ratio's 95 % interval, at every look where blocks were looked at; with one block it is (0, largest float)."""
        logs = [math.log(r) for r in self.block_ratios]
        if len(logs) < 2:
            return 0.0, 1e308
        half = self._bound * stdev(logs) / math.sqrt(len(logs))
        # A wild spread over few blocks can leave the range of floats: it is cut, for the verdict is the same.
        return math.exp(max(fmean(logs) - half, -700.0)), math.exp(min(fmean(logs) + half, 700.0))

    @property
    def _bound(self) -> float:
        """How many standard errors the interval reaches to each side.

        Two blocks are no look and have Student's. More blocks than were planned, which several tunes can add up to, have the
        plan's last bound. That is not exact: what was spent by then is all there was (a plan of 9 that goes on to 18, looked
        at after each, errs in 3.3 % on a side instead of 2.5 %).
        """
        n, bounds = len(self.block_ratios), BOUNDS.get(self.planned or 0, ())
        if bounds and n >= LEAST_BLOCKS:
            return bounds[min(n - LEAST_BLOCKS, len(bounds) - 1)]
        return T_975[min(n - 2, len(T_975) - 1)]

    @property
    def is_open(self) -> bool:
        """Whether another block could still decide it: blocks are run while it is, and no longer.

        It is until there are enough; then, where blocks are looked at, until the interval is clear of the tie zone or wholly
        inside it, or all that were planned are run.
        """
        n = len(self.block_ratios)
        if n < LEAST_BLOCKS:
            return True
        if self.planned not in BOUNDS:
            return n < (self.planned or LEAST_BLOCKS)
        return n < self.planned and self.is_undecided

    def is_beaten_by(self, other: Comparison) -> bool:
        """Whether another is faster for certain, and by more than a tie beyond the end of this one's interval over as many looks.

        Then more blocks could tell this one from the baseline, and not make it the best.
        """
        is_settled = other.verdict == "faster" and not other.is_open
        has_looks = len(self.block_ratios) >= LEAST_BLOCKS
        return is_settled and has_looks and self.interval[1] * (1 + TIE_ZONE) < other.ratio

    @property
    def is_undecided(self) -> bool:
        """Whether the interval is neither clear of the tie zone nor wholly inside it."""
        low, high = self.interval
        return self.verdict == "tie" and not (low >= 1 / (1 + TIE_ZONE) and high <= 1 + TIE_ZONE)

    @cached_property
    def verdict(self) -> str:
        """Return "faster", "slower" or "tie": the interval must be clear of the tie zone around 1, over enough blocks."""
        if len(self.block_ratios) < LEAST_BLOCKS:
            return "tie"
        low, high = self.interval
        if low > 1 + TIE_ZONE:
            return "faster"
        if high < 1 / (1 + TIE_ZONE):
            return "slower"
        return "tie"
