"""What is believed of configurations that were not measured, given arithmetic's predictions and what was measured.

The model: log(value) = log(predicted cost) + a level + an effect of each choice + an effect of each pair of choices + a rest,
all but the level normal (a Gaussian process whose kernel counts shared choices; Rasmussen and Williams, "Gaussian Processes
for Machine Learning", section 2.2). Predicted costs have no unit in common with what is measured, so nothing whatever is known
of the level before: it is a mean with a flat prior (their section 2.7), and what else is believed does not depend on units.
How wrong predictions are, is not known before either: several sizes of the effects are weighed by how well each explains what was
measured, by the likelihood of its differences alone (the restricted likelihood: their equation 2.45). What was learned on
another workload enters as a second, correlated process with a level of its own, and how much it counts is weighed in the same
way, so that a neighbour of no use is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from advisor.knobs import KNOBS, compiling_s
from advisor.nouns.configuration import Configuration, stated

#: Standard deviations of log(value / predicted cost): of a choice's effect, of a pair's and of the rest, together about
#: 0.35 between two configurations (measurement.md, C.3). With any of them halved or doubled, searches were as long.
CHOICE, PAIR, REST = 0.25, 0.08, 0.04

#: How much of a choice's effect it has in common with those akin to it. On an H200 predictions of ways to compile were off by 1
#: to 4 % from one another on Llama-3-8B and BERT-base, and by 10 to 30 % on MiniLM, which waits for its launches.
AKIN = 0.9

#: How many times larger or smaller than that the prediction's errors may be on this model and this GPU. Without the widest,
#: searches where single choices were off by a factor of 2.7 ended too early in 20 of 60; with it in none, and elsewhere they
#: were as long.
SCALES = (0.5, 1.0, 2.0, 4.0)

#: How much the errors on another workload may have to do with the errors here (correlations).
TRANSFERS = (0.0, 0.5, 0.9)

#: Standard deviation of a measurement's logarithm: about 1 % (measurement.md, "Stopping a trial's timing").
NOISE = 0.01

#: Standard deviation of a trial's log seconds beside what its choices explain: some load the model, some find it loaded.
_SECONDS_NOISE = 0.2

Array = npt.NDArray[np.floating]
Rows = Sequence[tuple[Configuration, float]]

#: What is compiled in another way is expected to take this share at least of what was expected before any was seen: six layers of
#: an encoder took 0.3.
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Belief:
    """One hypothesis: how likely it is, and what it says of each candidate's log value.

    mean, deviation: [candidates]. Without a measurement here both are of the differences between candidates alone.
    """

    weight: float
    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Posterior:
    """What is known, and what follows for configurations that were not measured. Log values: less is better.

    costs: predicted, in any unit, less is better; warm: log values on another workload, in any unit; rows: log values
    measured here; noises: the standard deviation of each, NOISE where none are named; running: what is measured at this moment.
    """

    costs: Mapping[Configuration, float] = field(default_factory=dict)
    warm: Rows = ()
    rows: Rows = ()
    running: Sequence[Configuration] = ()
    noises: Sequence[float] = ()

    def beliefs(self, candidates: Sequence[Configuration]) -> list[Belief]:
        """Return the hypotheses of these candidates; their weights add up to 1.

        What is running is taken to come out at its mean, whichever hypothesis holds: only the doubt shrinks.
        """
        here, warm = [c for c, _ in self.rows], [c for c, _ in self.warm]
        knobs = stated([*here, *warm, *self.running, *candidates])
        own = [*(self.noises or [NOISE] * len(here))]
        noises = [*own, *[max(own, default=NOISE)] * len(warm)]  # what waits for its launches here did so elsewhere
        known = _Known.of(here, warm, candidates, knobs, noises)
        if self.running:
            noises[len(here) : len(here)] = [NOISE] * len(self.running)
        sure = _Known.of([*here, *self.running], warm, candidates, knobs, noises) if self.running else known
        prior, errors = self._prior(candidates), self._errors()
        found = []
        for scale in SCALES:
            for transfer in TRANSFERS if self.warm else (0.0,):
                fit = known.fit(scale, transfer)
                deviation = fit.deviation if sure is known else sure.fit(scale, transfer).deviation
                found.append((fit.evidence(errors), prior + fit.mean(errors), deviation))
        most = max(evidence for evidence, _, _ in found)
        total = sum(math.exp(evidence - most) for evidence, _, _ in found)
        return [Belief(math.exp(evidence - most) / total, mean, deviation) for evidence, mean, deviation in found]

    def _errors(self) -> Array:
        """Return how far values are from what was predicted, here and on the other workload: [rows + warm]."""
        here = np.array([value for _, value in self.rows]) - self._prior([c for c, _ in self.rows])
        return np.concatenate([here, np.array([value for _, value in self.warm])])

    def _prior(self, configurations: Sequence[Configuration]) -> Array:
        """Return the logarithm of predicted costs: [configurations]. What nothing is predicted of counts as average."""
        logs = {configuration: math.log(cost) for configuration, cost in self.costs.items()}
        average = float(np.mean(list(logs.values()))) if logs else 0.0
        return np.array([logs.get(configuration, average) for configuration in configurations])


@dataclass(frozen=True)
class _Known:
    """Configurations with values, here and elsewhere, and how they go with one another and with candidates.

    among: [observed, observed], across: [candidates, observed], the covariances of errors of the usual size. here: which of the
    observed are of this workload, noises: the standard deviations of their values: [observed].
    """

    among: Array
    across: Array
    alone: float
    here: npt.NDArray[np.bool_]
    noises: Array

    @classmethod
    def of(
        cls,
        here: Sequence[Configuration],
        elsewhere: Sequence[Configuration],
        candidates: Sequence[Configuration],
        knobs: Sequence[str],
        noises: Sequence[float],
    ) -> _Known:
        observed = [*here, *elsewhere]
        alone = float(kernel(candidates[:1], candidates[:1], knobs)[0, 0]) if candidates else 0.0
        is_here = np.arange(len(observed)) < len(here)
        among, across = kernel(observed, observed, knobs), kernel(candidates, observed, knobs)
        return cls(among, across, alone, is_here, np.array(noises, dtype=float))

    def fit(self, scale: float, transfer: float) -> _Fit:
        """Return the process where errors are `scale` times as large, and correlate by `transfer` with the other workload's."""
        same = self.here[:, None] == self.here[None, :]
        among = scale**2 * self.among * np.where(same, 1.0, transfer) + np.diag(self.noises**2)
        across = scale**2 * self.across * np.where(self.here, 1.0, transfer)
        # A level of its own for each workload that has values; candidates are on the level of this one.
        levels = [side for side in (self.here, ~self.here) if side.any()]
        design = np.array(levels, dtype=float).T.reshape(len(self.here), len(levels))
        target = np.zeros((len(across), len(levels)))
        target[:, :1] = float(self.here.any())
        return _Fit.of(among, across, scale**2 * self.alone, design, target)


@dataclass(frozen=True)
class _Fit:
    """Generalised least squares of the levels, and the process around them (Rasmussen and Williams, equations 2.41 to 2.45).

    root: of the covariance, lower; basis, triangle: QR factors of the whitened design; projected: whitened covariances with the
    candidates; target: the candidates' design; deviation: [candidates].
    """

    root: Array
    basis: Array
    triangle: Array
    projected: Array
    target: Array
    deviation: Array

    @classmethod
    def of(cls, among: Array, across: Array, alone: float, design: Array, target: Array) -> _Fit:
        root = np.linalg.cholesky(among)
        white = np.linalg.solve(root, design)
        basis, triangle = np.linalg.qr(white)
        projected = np.linalg.solve(root, across.T)
        doubt = np.linalg.solve(triangle.T, target.T - white.T @ projected)
        variance = alone - (projected**2).sum(axis=0) + (doubt**2).sum(axis=0)
        return cls(root, basis, triangle, projected, target, np.sqrt(np.maximum(variance, 1e-12)))

    def mean(self, errors: Array) -> Array:
        """Return the candidates' expected errors: [candidates]."""
        white = np.linalg.solve(self.root, errors)
        along = self.basis.T @ white
        mean: Array = self.projected.T @ (white - self.basis @ along) + self.target @ np.linalg.solve(
            self.triangle, along
        )
        return mean

    def evidence(self, errors: Array) -> float:
        """Return the restricted log likelihood of the errors, less what is the same for all hypotheses."""
        white = np.linalg.solve(self.root, errors)
        rest = white - self.basis @ (self.basis.T @ white)
        volume = np.log(np.diag(self.root)).sum() + np.log(np.abs(np.diag(self.triangle))).sum()
        return -0.5 * float(rest @ rest) - float(volume)


def mean_of(beliefs: Sequence[Belief]) -> Array:
    """Return the hypotheses' mean log values, by their weights: [candidates]."""
    mean: Array = np.array([belief.weight for belief in beliefs]) @ np.array([belief.mean for belief in beliefs])
    return mean


def expected_seconds(
    candidates: Sequence[Configuration], seconds: Rows, failed: Collection[Configuration] = (), *, layers: int
) -> Array | None:
    """Return how long each candidate's trial is expected to take, by the choices it shares with the others: [candidates].

    seconds: what trials took, those of the failed configurations too. None without any. Some choices cost minutes before the
    first round, and trials are not all equally long without them. A choice that compiles is expected to take as much longer as it
    says of a model of so many layers until it was seen, or as much less of it as others that did not fail took of theirs; what is
    akin to it gains as much, and does not take as long. That weights may be loaded already is left out: it saved nothing until
    loading took longer than all the rest of a trial.
    """
    if not seconds:
        return None
    observed, logs = [configuration for configuration, _ in seconds], np.log([value for _, value in seconds])
    knobs = stated([*observed, *candidates])
    among = kernel(observed, observed, knobs, akin=0.0) + _SECONDS_NOISE**2 * np.eye(len(observed))
    weights = np.linalg.solve(among, logs - logs.mean())
    expected: Array = np.exp(
        np.clip(logs.mean() + kernel(candidates, observed, knobs, akin=0.0) @ weights, logs.min(), logs.max())
    )
    share = _compile_share([row for row in seconds if row[0] not in failed], layers)
    return expected + share * _unseen_compile_s(candidates, observed, layers)


def _compile_share(seconds: Rows, layers: int) -> float:
    """Return how much of what compiling was expected to take it takes of this model, as far as trials show.

    A small model compiles in a fraction of what a large one does. The whole trial counts. What was expected too long of one way
    says nothing of another, so that it is no less than _LEAST_SHARE.
    """
    shares = [
        value / compiling for configuration, value in seconds if (compiling := compiling_s(configuration, layers))
    ]
    return min(1.0, max(_LEAST_SHARE, float(np.median(shares)))) if shares else 1.0


def _unseen_compile_s(candidates: Sequence[Configuration], observed: Sequence[Configuration], layers: int) -> Array:
    """Return the seconds of compiling that no trial of the observed shows: [candidates]."""
    seen = {item for configuration in observed for item in configuration.items()}
    unseen_s = {
        (knob.name, choice.name): choice.compiling_s(layers)
        for knob in KNOBS.values()
        for choice in knob.choices.values()
        if choice.compiles and (knob.name, choice.name) not in seen
    }
    return np.array([sum(unseen_s.get(item, 0.0) for item in each.items()) for each in candidates], dtype=float)


def kernel(
    rows: Sequence[Configuration], columns: Sequence[Configuration], knobs: Sequence[str], akin: float = AKIN
) -> Array:
    """Return the covariance of the errors of prediction, [rows, columns]: by how many choices, and pairs, are shared.

    Choices that are akin share so much of their effects: the sum over single choices, and the sum of products over pairs of them,
    are as if one was so much of the other. knobs: those in which any of the configurations at hand says something. In the others
    all have the implied choice, so that a knob of which nobody makes use changes nothing.
    """
    spelled = [[configuration.over(knobs) for configuration in side] for side in (rows, columns)]
    items = sorted({item for side in spelled for each in side for item in each})
    marked = [_marks(side, items) for side in spelled]
    same = marked[0] @ marked[1].T
    union = marked[0].sum(axis=1)[:, None] + marked[1].sum(axis=1)[None, :] - same
    other = (marked[0] @ _akin(items)) @ marked[1].T  # of one kind, but not the same
    shared, squares = same + akin * other, same + akin**2 * other
    covariance: Array = CHOICE**2 * shared + PAIR**2 * (shared**2 - squares) / 2 + REST**2 * (same == union)
    return covariance


def _marks(spelled: Sequence[Sequence[tuple[str, str]]], items: Sequence[tuple[str, str]]) -> Array:
    """Return which choices each configuration has: [configurations, items]."""
    numbers = {item: n for n, item in enumerate(items)}
    marks: Array = np.zeros((len(spelled), len(items)))
    for row, each in enumerate(spelled):
        marks[row, [numbers[item] for item in each]] = 1.0
    return marks


def _akin(items: Sequence[tuple[str, str]]) -> Array:
    """Return which choices are akin to which others: [items, items]."""
    kinds = np.array([_kind(knob, name) for knob, name in items], dtype=str)
    alike: Array = (kinds[:, None] == kinds[None, :]) - np.eye(len(kinds))
    return alike


def _kind(knob: str, name: str) -> str:
    """Return what a choice shares with those akin to it, its own name where there are none."""
    choice = KNOBS[knob].choices.get(name) if knob in KNOBS else None
    return f"{knob}={name}" if choice is None or not choice.akin else f"{knob}: {choice.akin}"
