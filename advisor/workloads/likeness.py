"""Likeness: what makes two workloads alike or not. It is small, so that those of all stored workloads can be kept in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

#: What two workloads of different kinds are apart at least: further than any two of one kind.
OTHER_KIND = 100.0


@dataclass(frozen=True)
class Likeness:
    """The class of a workload, and its sizes by name, shares of 1 (whose names begin with "share") and words."""

    of: type
    features: Mapping[str, float | str]

    def distance(self, other: Likeness) -> float:
        """Return how unlike two are: by the logarithms of sizes, three times the difference of shares, and words.

        measurement.md, C.4; the weights of padding and output are ours. Rounded: what is as far in other ways, as twice the
        length in half the batch is, must be as far to the last digit, for which of two is the nearer decides an answer.
        """
        mine, theirs = self.features, other.features
        apart = 0.0 if self.of is other.of else OTHER_KIND
        for name in mine.keys() & theirs.keys():
            one, two = mine[name], theirs[name]
            if isinstance(one, str) or isinstance(two, str):
                apart += one != two
            else:
                apart += abs(one - two) * 3 if name.startswith("share") else abs(math.log(one / two))
        return round(apart, 9)
