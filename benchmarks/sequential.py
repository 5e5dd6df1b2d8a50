"""Confirmation in sequential blocks: the bounds it is judged by, and how often it is right; prints Markdown.

    python benchmarks/sequential.py [--only bounds|decisions] [--walks 20000000] [--paths 200000] [--seed 1]

The bounds are `advisor.nouns.measurement.BOUNDS`: one-sided, for t statistics that are looked at after each block from the
third on, so that all looks together cross by mistake in 2.5 %, of which 2.5 % · n/K is spent by block n of K (a linear spending
function, the power family's ρ = 1; Lan & DeMets 1983, Kim & DeMets 1987; Jennison & Turnbull 2000, chapter 7). They are
integrated: of normal values around 0, the sum over the root of the sum of squares of the first n is a Markov chain, for the next
value over that root is Student's t with n degrees of freedom over √n, whatever came before. Random walks then count how often
they cross.

The decisions are of a model of blocks. In a block all contestants take turns in rounds, in random order; seconds of a turn are
lognormal, a contestant's score is the median of its turns, and a block has at least 3 rounds and, up to 7, as many as it takes
until each rival was apart from the default in all turns, by more than the tie zone, or half the range of its turns and of the
default's is at most 5 % of their median. Blocks are run, at most 9, until no rival is open (`Comparison.is_open`); a
rival that is decided leaves. Ratios are the default's seconds over the rival's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from advisor.nouns.measurement import BOUNDS, LEAST_BLOCKS, TIE_ZONE, Comparison

Floats = NDArray[np.float64]

#: What all looks together may err by, on one side.
ERROR = 0.025

#: The most blocks of the decisions.
PLANNED = 9

#: Turns of a contestant in a block, and the half-range, as a share of the median, above which another is taken.
LEAST_TURNS, MOST_TURNS, SPREAD = 3, 7, 0.05

#: So many paths at once.
CHUNK = 20_000

# ------------------------------------------------------------------------------------------------------------- bounds


def bounds(planned: int, error: float = ERROR, cells: int = 4000) -> list[float]:
    """Return the bounds after 3, 4, … planned blocks, by integration over so many cells a step. error: of all looks."""
    found: list[float] = []
    below: Callable[[Floats], Floats] = partial(_angle_below, degrees=LEAST_BLOCKS - 1)
    for n in range(LEAST_BLOCKS, planned + 1):
        edge = _where(below, 1 - error * n / planned)
        found.append(math.sqrt(n - 1) * math.tan(edge))
        edges = np.linspace(-math.pi / 2, edge, cells + 1)
        below = partial(_after, n=n, middles=(edges[1:] + edges[:-1]) / 2, mass=np.diff(below(edges)))
    return found


def _angle_below(angle: Floats, degrees: int) -> Floats:
    """Return P(arctan(T/√degrees) < angle) of Student's t: the angle's density is cos^(degrees − 1) over its integral."""

    def integral(power: int, at: Floats) -> Floats:
        if power < 2:
            return np.sin(at) if power else at
        return np.cos(at) ** (power - 1) * np.sin(at) / power + (power - 1) / power * integral(power - 2, at)

    whole = 2 * integral(degrees - 1, np.array(math.pi / 2))
    return 0.5 + integral(degrees - 1, angle) / whole


def _after(angles: Floats, n: int, middles: Floats, mass: Floats) -> Floats:
    """Return the chance to have crossed nothing by n values and to be below these angles after the next.

    An angle is arcsin(sum/√(n · sum of squares)). mass: of the cells around `middles` after n values. With u = √n·sin(middle)
    and the next value's angle φ, the sum over the root is next √(1 + u²)·sin(φ + arctan u).
    """
    u = math.sqrt(n) * np.sin(middles)
    turned, most, right = np.arctan(u), np.sqrt(1 + u * u), math.pi / 2
    chances = np.empty(len(angles))
    for place, angle in enumerate(angles):
        height = math.sqrt(n + 1) * math.sin(angle) / most
        first = np.arcsin(np.clip(height, -1, 1))
        low, high = np.clip(first - turned, -right, right), np.clip(math.pi - first - turned, -right, right)
        above = np.where(height <= -1, 1.0, _angle_below(high, n) - _angle_below(low, n))
        chances[place] = mass @ (1 - above)
    return chances


def _where(below: Callable[[Floats], Floats], chance: float) -> float:
    """Return the angle below which the chance is this."""
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(np.array([middle]))[0] < chance else (low, middle)
    return high


def crossings(bounds_of: dict[int, tuple[float, ...]], walks: int, seed: int) -> dict[int, tuple[float, float]]:
    """Return by plan the shares of random walks that ever cross above: by the plan's end, and by twice as many values.

    After the plan's end its last bound goes on.
    """
    rng, most = np.random.default_rng(seed), 2 * max(bounds_of)
    counts = {planned: np.zeros(2, dtype=np.int64) for planned in bounds_of}
    for size in _chunks(walks, 20 * CHUNK):
        has_crossed = {planned: np.zeros(size, dtype=bool) for planned in bounds_of}
        total, squares = np.zeros(size), np.zeros(size)
        for n in range(1, most + 1):
            value = rng.standard_normal(size)
            total += value
            squares += value * value
            if n < LEAST_BLOCKS:
                continue
            t = total / np.sqrt(n * (squares - total * total / n) / (n - 1))
            for planned, found in bounds_of.items():
                if n <= 2 * planned:
                    has_crossed[planned] |= t > found[min(n, planned) - LEAST_BLOCKS]
                if n in (planned, 2 * planned):
                    counts[planned][n // planned - 1] += has_crossed[planned].sum()
    return {planned: (both[0] / walks, both[1] / walks) for planned, both in counts.items()}


def _chunks(count: int, size: int) -> Iterator[int]:
    yield from (min(size, count - begun) for begun in range(0, count, size))


# ---------------------------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True)
class Case:
    """What is decided: the rivals' true ratios, the noise of a turn, the drift of three rounds, the share of disturbed blocks.

    noise: the standard deviation of a turn's logarithm. A drift goes on at its pace where a block has more rounds. In a
    disturbed block one contestant, at random, is twice as slow in all its rounds.
    """

    ratios: tuple[float, ...] = (1.0,)
    noise: float = 0.005
    drift: float = 0.0
    disturbed: float = 0.0

    @property
    def words(self) -> str:
        """The case's cells of the table."""
        beside = f"{self.drift:.0%} drift" if self.drift else ""
        beside += "1 block in 3 disturbed" if self.disturbed else ""
        ratios = f"{len(self.ratios)} × {self.ratios[0]:.2f}" if len(self.ratios) > 1 else f"{self.ratios[0]:.2f}"
        return f"{ratios} | {100 * self.noise:g} % | {beside or '–'}"


def block_logs(case: Case, paths: int, rng: np.random.Generator) -> Floats:
    """Return the logarithms of the ratios [rival, block, path] of simulated blocks."""
    contestants, shape = len(case.ratios) + 1, (PLANNED, paths)
    seconds = np.array([1.0, *(1 / ratio for ratio in case.ratios)])[:, None, None] * np.ones((contestants, *shape))
    if case.disturbed:
        who = rng.integers(contestants, size=shape)
        hit = (who == np.arange(contestants)[:, None, None]) & (rng.random(shape) < case.disturbed)
        seconds = np.where(hit, 2 * seconds, seconds)
    turns: list[Floats] = []  # in order of their seconds
    scores = np.full((contestants, *shape), np.nan)
    for turn in range(MOST_TURNS):
        taken = seconds * np.exp(case.noise * rng.standard_normal((contestants, *shape)))
        if case.drift:
            place = rng.permuted(np.broadcast_to(np.arange(contestants)[:, None, None], seconds.shape), axis=0)
            taken *= 1 + case.drift * (turn + (place + 0.5) / contestants) / LEAST_TURNS
        for rank, other in enumerate(turns):
            turns[rank], taken = np.minimum(other, taken), np.maximum(other, taken)
        turns.append(taken)
        if turn + 1 >= LEAST_TURNS:
            middle = (turns[turn // 2] + turns[(turn + 1) // 2]) / 2
            is_calm = (turns[-1] - turns[0]) / 2 <= SPREAD * middle
            is_told = is_calm[1:] & is_calm[0]
            is_told |= turns[-1][1:] * (1 + TIE_ZONE) < turns[0][0]
            is_told |= turns[-1][0] * (1 + TIE_ZONE) < turns[0][1:]
            ends = np.isnan(scores[0]) & (np.all(is_told, axis=0) | (turn + 1 == MOST_TURNS))
            scores = np.where(ends, middle, scores)
    logs = np.log(scores)
    return np.asarray(logs[0] - logs[1:])


def decided(logs: Floats, found: Sequence[float]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return what is said of logarithms [rival, block, path] by these bounds, and after how many blocks.

    1 is faster, −1 slower, 0 a tie.
    """
    verdicts, used = np.zeros(logs[:, 0].shape, dtype=np.int8), np.full(logs[:, 0].shape, PLANNED)
    is_open, edge = np.ones(verdicts.shape, dtype=bool), math.log1p(TIE_ZONE)
    for n in range(LEAST_BLOCKS, PLANNED + 1):
        seen = logs[:, :n]
        half = found[n - LEAST_BLOCKS] * seen.std(axis=1, ddof=1) / math.sqrt(n)
        low, high = seen.mean(axis=1) - half, seen.mean(axis=1) + half
        said = np.where(low > edge, 1, np.where(high < -edge, -1, 0))
        ends = is_open & ((said != 0) | ((low >= -edge) & (high <= edge)) | (n == PLANNED))
        verdicts[ends], used[ends] = said[ends], n
        is_open &= ~ends
    return verdicts, used


@dataclass(frozen=True)
class Rates:
    """How often the best of a case's rivals was called faster, and any slower; how many blocks all took, in the mean."""

    faster: float
    slower: float
    blocks: float


def rates(case: Case, paths: int, seed: int, found: Sequence[float] = BOUNDS[PLANNED]) -> Rates:
    """Decide a case so often, by these bounds. The best is called faster where any of the rivals is."""
    rng, sums = np.random.default_rng(seed), np.zeros(3)
    for size in _chunks(paths, CHUNK):
        verdicts, used = decided(block_logs(case, size, rng), found)
        sums += (verdicts == 1).any(axis=0).sum(), (verdicts == -1).any(axis=0).sum(), used.max(axis=0).sum()
    return Rates(*(sums / paths))


def disagreements(case: Case, paths: int, seed: int) -> int:
    """Return in how many paths `Comparison`, asked block by block, says or stops otherwise than :func:`decided`."""
    logs = block_logs(case, paths, np.random.default_rng(seed))
    verdicts, used = decided(logs, BOUNDS[PLANNED])
    differ = 0
    for rival, path in np.ndindex(verdicts.shape):
        ratios: tuple[float, ...] = ()
        while True:
            ratios = (*ratios, float(np.exp(logs[rival, len(ratios), path])))
            comparison = Comparison("rival", "default", ratios, planned=PLANNED)
            if not comparison.is_open:
                break
        word = {1: "faster", -1: "slower", 0: "tie"}[int(verdicts[rival, path])]
        differ += comparison.verdict != word or len(ratios) != int(used[rival, path])
    return differ


_NOISES = (0.005, 0.02, 0.05, 0.3)

#: What the table is about: no difference, one that just is none, and real ones; with drift, and with disturbed blocks.
CASES = (
    *(Case((ratio,), noise) for ratio in (1.0, 1.02) for noise in _NOISES),
    *(Case((ratio,) * 3, noise) for ratio in (1.0, 1.02) for noise in _NOISES),
    *(Case((ratio,), noise) for ratio, noise in ((1.05, 0.005), (1.05, 0.02), (1.1, 0.05), (1.2, 0.05), (1.5, 0.3))),
    *(
        Case((ratio,), noise, **beside)
        for beside in ({"drift": 0.03}, {"disturbed": 1 / 3})
        for ratio, noise in (
            (1.0, 0.005),
            (1.0, 0.3),
            (1.02, 0.3),
            (1.05, 0.005),
            (1.5, 0.005),
            (1.5, 0.3),
            (3.0, 0.005),
        )
    ),
)

#: Those again, had each of three rivals a third of the error.
SHARED = (Case((1.0,) * 3, 0.3), Case((1.02,) * 3, 0.3), Case((1.05,), 0.005), Case((1.05,), 0.02), Case((1.5,), 0.3))


def _print_bounds(walks: int, seed: int) -> None:
    plans = range(LEAST_BLOCKS, PLANNED + 1)
    print(f"| at most | {' | '.join(f'{n} blocks' for n in plans)} | crossed of {walks:,} walks | by twice as many |")
    print("|---" * (len(plans) + 3) + "|")
    walked = crossings(BOUNDS, walks, seed)
    for planned in plans:
        made = bounds(planned)
        if max(abs(one - other) for one, other in zip(made, BOUNDS[planned], strict=True)) > 0.0011:
            print(f"(BOUNDS[{planned}] is not what follows)")
        cells = [f"{bound:.4f}" for bound in made] + [""] * (PLANNED - planned)
        print(f"| {planned} | {' | '.join(cells)} | {walked[planned][0]:.3%} | {walked[planned][1]:.3%} |", flush=True)


def _print_decisions(paths: int, seed: int) -> None:
    print(_HEAD)
    for case in CASES:
        print(_row(case, rates(case, paths, seed)), flush=True)
    differ = sum(disagreements(case, 300, seed) for case in CASES)
    print(
        f"\n`Comparison` itself, asked block by block, on 300 paths of each case: {differ} said or stopped otherwise.\n"
    )
    share = bounds(PLANNED, ERROR / 3)
    print(
        f"With a third of the error for each of three rivals ({', '.join(f'{bound:.2f}' for bound in share)}):\n\n{_HEAD}"
    )
    for case in SHARED:
        print(_row(case, rates(case, paths, seed, share)), flush=True)


_HEAD = (
    "| true ratio | noise of a turn | beside | the best called faster | any called slower | blocks, mean |\n"
    "|---|---|---|---|---|---|"
)


def _row(case: Case, found: Rates) -> str:
    return f"| {case.words} | {found.faster:.2%} | {found.slower:.2%} | {found.blocks:.1f} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("bounds", "decisions"))
    parser.add_argument("--walks", type=int, default=20_000_000)
    parser.add_argument("--paths", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.only != "decisions":
        _print_bounds(options.walks, options.seed)
        print()
    if options.only != "bounds":
        _print_decisions(options.paths, options.seed)


if __name__ == "__main__":
    main()
