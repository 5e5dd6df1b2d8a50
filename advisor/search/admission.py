"""Which of all combinations of choices are admissible, by masks over the grid: rules, memory, and what is hopeless.

Nothing is multiplied out: every rule and every term of the cost is asked once for each case (`cases.py`), and what is left of
the grid is looked up in their tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from advisor.knobs import Reason, Situation, Term, Verdict, choice_of
from advisor.nouns.configuration import Configuration
from advisor.search.cases import Cases, Grid
from advisor.search.cost import bytes_of_call, bytes_of_weights, checked_rates, operations
from advisor.terminal import gib

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.floating]

#: What the space's own reasons name: the numbers a configuration computes in, and how it lays a list out.
_NUMBERS, _LAYOUT = ("precision", "quantization"), ("attention", "packing")


@dataclass(frozen=True)
class Bounds:
    """What the space itself refuses by: the cost above which a configuration is hopeless, and the bytes that may be used.

    hopeless: how many times slower than the default that cost is.
    """

    most_cost: float
    hopeless: float
    most_bytes: float


@dataclass(frozen=True)
class Admitted:
    """What is admissible, in the order of predicted speed; costs, launches, bytes: what arithmetic predicts of each.

    refusals: one per rule, subject and choice that it depends on; warnings: likewise, of what is admissible.
    """

    configurations: tuple[Configuration, ...]
    costs: tuple[float, ...]
    launches: tuple[float, ...]
    bytes: tuple[float, ...]
    refusals: tuple[Reason, ...]
    warnings: tuple[Reason, ...]


def admitted(grid: Grid, bounds: Bounds, refuses: Callable[[Reason], bool]) -> Admitted:
    """Return what is admissible of a grid. refuses: whether a reason refuses what was asked for."""
    if 0 in grid.shape:
        return Admitted((), (), (), (), (), ())
    asked = [_Asked.of(grid, knob, name) for knob, names in grid.axes.items() for name in names]
    needed = grid.ask(bytes_of_weights).numbers(float) + grid.ask(bytes_of_call).numbers(float)
    work = _over_rates(grid)
    cost = np.broadcast_to(work[Term.LINEAR] + work[Term.ATTENTION], grid.shape)
    refused = np.zeros(grid.shape, dtype=bool)
    for each in asked:
        each.slice_of(refused)[...] |= each.reasons.where(lambda reasons: any(map(refuses, reasons)))
    reasons = [reason for each in asked for answer in each.reasons.answers for reason in answer if refuses(reason)]
    large, hopeless = np.broadcast_to(needed > bounds.most_bytes, grid.shape), cost > bounds.most_cost
    if refuses(Reason("M1", Verdict.INVALID, "")):
        reasons += _named(grid, large, lambda place: _too_large(bounds, _at(needed, place)))
        refused |= large
    if refuses(Reason("S1", Verdict.INVALID, "")):
        late = hopeless & ~refused
        reasons += _named(grid, late, lambda place: _hopeless(bounds, _at(cost, place)))
        refused |= hopeless
    places = np.flatnonzero(~refused)
    places = places[np.argsort(cost.reshape(-1)[places], kind="stable")]
    warnings = [reason for each in asked for reason in each.told(~refused) if not reason.verdict.refuses]
    return Admitted(
        tuple(grid.configurations(places)),
        _looked_up(cost, grid, places),
        _looked_up(work[Term.LAUNCHES], grid, places),
        _looked_up(needed, grid, places),
        _one_each(reasons),
        _one_each(warnings),
    )


@dataclass(frozen=True)
class _Asked:
    """A choice and what its rules say in each case; axis: its knob's, place: its own along it."""

    axis: int
    place: int
    reasons: Cases[list[Reason]]

    @classmethod
    def of(cls, grid: Grid, knob: str, name: str) -> _Asked:
        rules, subject = choice_of(knob, name).why_not, f"{knob}={name}"

        def why_not(situation: Situation) -> list[Reason]:
            return [replace(reason, subject=subject) for reason in rules(situation)]

        return cls([*grid.axes].index(knob), grid.axes[knob].index(name), grid.only(knob, name).ask(why_not))

    def slice_of(self, mask: Mask) -> Mask:
        """Return the part of a mask of the grid that has this choice; a view."""
        return mask[(slice(None),) * self.axis + (slice(self.place, self.place + 1),)]

    def told(self, admissible: Mask) -> Iterator[Reason]:
        """Yield what the rules say wherever anything is admissible."""
        here = self.slice_of(admissible)
        table = np.broadcast_to(self.reasons.table, here.shape)
        for number in np.unique(table[here]):
            yield from self.reasons.answers[number]


def _over_rates(grid: Grid) -> dict[Term, Numbers]:
    """Return the operations of each term over the rates of all choices on it, for every combination (see `cost.py`)."""
    counted = grid.ask(operations)
    asked = [[_rates(grid, knob, name) for name in names] for knob, names in grid.axes.items()]

    def work(term: Term) -> Numbers:
        found = counted.numbers(lambda each: each[term])
        for axis, choices in enumerate(asked):
            rates = [choice.numbers(lambda each: each.get(term, 1.0)) for choice in choices]
            found = found / np.concatenate(np.broadcast_arrays(*rates), axis=axis)
        return found

    return {term: work(term) for term in Term}


def _rates(grid: Grid, knob: str, name: str) -> Cases[Mapping[Term, float]]:
    """Return a choice's rates in each case."""
    choice = choice_of(knob, name)
    return grid.only(knob, name).ask(lambda situation: checked_rates(choice, situation))


def _named(grid: Grid, mask: Mask, reason: Callable[[Sequence[int]], Reason]) -> Iterator[Reason]:
    """Yield a reason for each combination of numbers and layout where a mask holds, made from the first such place."""
    knobs = [*grid.axes]
    ahead = [knobs.index(knob) for knob in (*_NUMBERS, *_LAYOUT)]
    order = [*ahead, *(axis for axis in range(len(knobs)) if axis not in ahead)]
    flat = mask.transpose(order).reshape(*(grid.shape[axis] for axis in ahead), -1)
    for place in np.argwhere(flat.any(axis=-1)).tolist():
        rest = np.unravel_index(int(flat[tuple(place)].argmax()), [grid.shape[axis] for axis in order[len(ahead) :]])
        whole = dict(zip(order, [*place, *map(int, rest)], strict=True))
        subject, about = (
            " ".join(f"{knob}={grid.axes[knob][whole[knobs.index(knob)]]}" for knob in named)
            for named in (_NUMBERS, _LAYOUT)
        )
        yield replace(reason([whole[axis] for axis in range(len(knobs))]), subject=subject, about=about)


def _at(numbers: Numbers, place: Sequence[int]) -> float:
    """Return the number at a place of the grid, of an array that may have one place along an axis."""
    return float(numbers[tuple(index if size > 1 else 0 for index, size in zip(place, numbers.shape, strict=True))])


def _looked_up(numbers: Numbers, grid: Grid, places: npt.NDArray[np.intp]) -> tuple[float, ...]:
    return tuple(np.broadcast_to(numbers, grid.shape).reshape(-1)[places].tolist())


def _one_each(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return the first reason of each rule, subject and choice that it depends on."""
    found: dict[tuple[str, str, str], Reason] = {}
    for reason in reasons:
        found.setdefault((reason.subject, reason.about, reason.rule), reason)
    return tuple(found.values())


def _hopeless(bounds: Bounds, cost: float) -> Reason:
    """Refuse what arithmetic alone puts far behind the default (rule S1)."""
    times = bounds.hopeless * cost / bounds.most_cost
    text = f"predicted to be {times:.0f} times slower than the default, by operations and rates"
    return Reason("S1", Verdict.INVALID, text, "--ignore-rule S1 tries it")


def _too_large(bounds: Bounds, needed: float) -> Reason:
    """Refuse what needs more memory than may be used (rule M1)."""
    text = f"needs at least {gib(needed)}, and {gib(max(bounds.most_bytes, 0))} may be used"
    return Reason("M1", Verdict.INVALID, text, "a smaller batch or fewer bits")
