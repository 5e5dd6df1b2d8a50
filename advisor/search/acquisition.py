"""The acquisition function: what each untried configuration promises for its time, given what was measured.

Expected improvement per second, times the chance that it runs, as itself, and is usable. What is believed of a configuration's
speed is in posterior.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import TIE_ZONE
from advisor.search.posterior import Array, Belief, Posterior, expected_seconds, mean_of

#: Proposals that promise at least this share of the best one's gain are as good as it; the seed picks one.
_AS_GOOD = 0.99

#: Numbers this near to one another, relatively, are the same but for rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Told:
    """What the study's trials say: log values (less is better), seconds that trials took, what is running, what failed.

    noises: the standard deviation of each value. best, holder: the least log value of what may be
    recommended, and what has it; infinite and None where there is none.
    """

    values: tuple[tuple[Configuration, float], ...]
    seconds: tuple[tuple[Configuration, float], ...]
    running: tuple[Configuration, ...]
    failed: tuple[Configuration, ...]
    best: float
    holder: Configuration | None
    noises: tuple[float, ...] = ()

    @property
    def shows_errors(self) -> bool:
        """Whether anything shows how wrong predictions are: two measured ones do, for the level of one is no error."""
        return len({configuration for configuration, _ in self.values}) > 1

    def expected_s(self, candidates: Sequence[Configuration], layers: int) -> Array | None:
        """Return how long the trial of each is expected to take, in seconds: [candidates]. None where no trial ended.

        layers: of the model, which what compiling takes goes by.
        """
        return expected_seconds(candidates, self.seconds, self.failed, layers=layers)


class Acquisition:
    """What candidates promise, given what was told."""

    def __init__(
        self,
        candidates: Sequence[Configuration],
        costs: Mapping[Configuration, float],
        warm: Mapping[Configuration, float],
        layers: int,
    ) -> None:
        """Weigh candidates. costs, warm, layers: as for :class:`advisor.search.search.Knowledge`."""
        self.candidates = candidates
        self._costs, self._layers = costs, layers
        self._warm = [(configuration, -math.log(ratio)) for configuration, ratio in warm.items() if ratio > 0]

    def beliefs(self, told: Told, candidates: Sequence[Configuration] | None = None) -> list[Belief]:
        """Return what is believed of the candidates, or of others."""
        return Posterior(self._costs, self._warm, told.values, told.running, told.noises).beliefs(
            candidates or self.candidates
        )

    def promises(self, told: Told) -> Array:
        """Return what each candidate promises: the expected improvement per second, times the chance that it runs.

        Expected improvement of log(value) (Jones, Schonlau and Welch 1998, equation 15), as a mean over the hypotheses, per
        second that the trial is expected to take (Snoek, Larochelle and Adams 2012, section 3.2). While nothing shows how
        wrong predictions are, or there is nothing to improve on, the expected speed: the predicted best is tried first.
        """
        beliefs, seconds = self.beliefs(told), told.expected_s(self.candidates, self._layers)
        worth = self.chances(told) / (1.0 if seconds is None else seconds)
        if not told.shows_errors or math.isinf(told.best):
            mean = mean_of(beliefs)
            speed: Array = np.exp(mean.min() - mean) * worth
            return speed
        gains: Array = np.zeros(len(self.candidates))
        for belief in beliefs:
            z = (told.best - math.log1p(TIE_ZONE) - belief.mean) / belief.deviation
            density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            gains += belief.weight * belief.deviation * (z * _below(z) + density)
        return gains * worth

    def equals(self, told: Told) -> list[int]:
        """Return the candidates among which the seed may pick: those that promise as much as the best.

        The first, the likeliest of all, where nothing was measured. After one measurement those that have most in common
        with it: the fewer of its choices are new, the likelier a configuration does as predicted.
        """
        promises = self.promises(told)
        alike = 1 - _ROUNDING if not told.shows_errors else _AS_GOOD
        equals = [n for n, promise in enumerate(promises) if promise >= alike * promises.max()]
        if not told.values:
            return equals[:1]
        if not told.shows_errors:
            doubts = sum(belief.weight * belief.deviation[equals] for belief in self.beliefs(told))
            least = np.min(doubts) * (1 + _ROUNDING)
            return [n for n, doubt in zip(equals, np.atleast_1d(doubts), strict=True) if doubt <= least]
        return equals

    def ratios(self, told: Told, than: Configuration | None) -> Array | None:
        """Return how many times better than another each candidate is expected to be; None where nothing was measured."""
        if than is None or not told.values:
            return None
        mean = mean_of(self.beliefs(told, [*self.candidates, than]))
        ratios: Array = np.exp(mean[-1] - mean[:-1])
        return ratios

    def chance_of_better(self, told: Told) -> float:
        """Return how likely any candidate is to beat the best by more than the tie zone, each on its own account."""
        goal, chances, none = told.best - math.log1p(TIE_ZONE), self.chances(told, most=True), 0.0
        for belief in self.beliefs(told):
            none += belief.weight * float(np.prod(1 - chances * _below((goal - belief.mean) / belief.deviation)))
        return 1 - none

    def chances(self, told: Told, *, most: bool = False) -> Array:
        """Return how likely each candidate is to run, as itself, and to be usable: [candidates].

        Something about a failure is to blame, a choice or a pair of them: a configuration's chance is that of all its
        choices together, times that of its worst pair. most: that of the worst choice or pair alone, which is the most that
        can be said for it: a search is not to end because of what might fail.
        """
        worked = [configuration for configuration, _ in told.values if configuration not in told.failed]
        knobs = stated([*told.failed, *worked, *self.candidates])
        bad = Counter(pair for configuration in told.failed for pair in _pairs(configuration, knobs))
        good = Counter(pair for configuration in worked for pair in _pairs(configuration, knobs) if pair in bad)
        works = {pair: _share(good[pair], failures, least=not most) for pair, failures in bad.items()}
        alone, pairs = np.ones(len(self.candidates)), np.ones(len(self.candidates))
        chosen = {knob: self._chosen(knob) for knob in {knob for pair in works for knob, _ in pair}}
        for (one, other), share in works.items():
            here = (chosen[one[0]] == one[1]) & (chosen[other[0]] == other[1])
            if one != other:
                pairs[here] = np.minimum(pairs[here], share)
            elif most:
                alone[here] = np.minimum(alone[here], share)
            else:
                alone[here] *= share
        chances: Array = np.minimum(alone, pairs) if most else alone * pairs
        return chances

    def _chosen(self, knob: str) -> npt.NDArray[np.str_]:
        """Return each candidate's choice of a knob, "" where it has none: [candidates]."""
        return np.array([next((name for _, name in each.over((knob,))), "") for each in self.candidates], dtype=str)


def _pairs(configuration: Configuration, knobs: Sequence[str]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return all pairs of a configuration's choices of these knobs, and each choice with itself."""
    return list(combinations_with_replacement(configuration.over(knobs), 2))


def _share(good: int, bad: int, *, least: bool) -> float:
    """Return how likely something is to work: the share of the times that it did, one success added.

    least: where it never did, half for each failure, because it most likely never will.
    """
    return 0.5**bad if least and not good else (good + 1) / (good + bad + 1)


def _below(z: Array) -> Array:
    """Return the standard normal distribution function."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
