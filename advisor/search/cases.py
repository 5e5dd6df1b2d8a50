"""What a function of a situation says of every combination of choices, asked once for each case that it tells apart.

Rules and costs look at few choices, and at few traits of these. What one looks at is seen while it is asked (`_Seen`), so that
nobody has to declare it: combinations that are alike in all of that are one case. Answers are tables over the knobs that matter,
and thousands of combinations are an outer product of a few small tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from advisor.knobs import KNOBS, Situation, merged
from advisor.nouns.configuration import IMPLIED, Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.workloads import Needs, Workload

T = TypeVar("T")

#: What was looked at: a knob's choice itself, or a trait of what is chosen.
_CHOICE, _TRAIT = "choice", "trait"


@dataclass(frozen=True)
class Cases(Generic[T]):
    """What a function answered, in the order of the first combination of each case.

    table: the number of the answer of every combination, with one place along each axis that does not matter.
    """

    answers: tuple[T, ...]
    table: npt.NDArray[np.intp]

    def where(self, holds: Callable[[T], bool]) -> npt.NDArray[np.bool_]:
        """Return for which combinations something holds of the answer."""
        return np.array([holds(answer) for answer in self.answers], dtype=bool)[self.table]

    def numbers(self, value: Callable[[T], float]) -> npt.NDArray[np.floating]:
        """Return a number of the answer for every combination."""
        return np.array([value(answer) for answer in self.answers], dtype=float)[self.table]


@dataclass(frozen=True)
class Grid:
    """Every combination of some choices of each knob, in one situation. axes: in the order of the knobs."""

    axes: Mapping[str, Sequence[str]]
    facts: ModelFacts
    workload: Workload
    environment: Environment

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of choices along each axis."""
        return tuple(len(names) for names in self.axes.values())

    def only(self, knob: str, name: str) -> Grid:
        """Return the combinations with one choice of a knob."""
        return replace(self, axes={**self.axes, knob: (name,)})

    def ask(self, function: Callable[[Situation], T]) -> Cases[T]:
        """Ask a function of a situation about all combinations. It must go by what it looks at of the situation alone."""
        seen: set[tuple[str, str]] = set()
        known: dict[tuple[str, ...], T] = {}
        while True:
            looked = {*seen}
            classes = [_classes(knob, names, looked) for knob, names in self.axes.items()]
            cases = [
                *product(
                    *([names[n] for n in sorted({*of})] for names, of in zip(self.axes.values(), classes, strict=True))
                )
            ]
            for case in cases:
                if case not in known:
                    situation = _Seen(self, dict(zip(self.axes, case, strict=True)), seen)
                    known[case] = function(cast("Situation", situation))
            if seen == looked:
                return Cases(tuple([known[case] for case in cases]), _table(classes))

    def configurations(self, places: Iterable[int]) -> list[Configuration]:
        """Return combinations by their places in the flattened grid."""
        by_name = sorted(range(len(self.axes)), key=[*self.axes].__getitem__)
        items = [
            [None if IMPLIED.get(knob) == name else (knob, name) for name in names] for knob, names in self.axes.items()
        ]
        indices = np.stack(np.unravel_index(np.fromiter(places, dtype=np.intp), self.shape), axis=1).tolist()
        return [
            Configuration(tuple([item for n in by_name if (item := items[n][index[n]]) is not None]))
            for index in indices
        ]


class _Seen:
    """A situation that notes what of it is looked at: all that a rule may look at is on it (`Situation`)."""

    def __init__(self, grid: Grid, choices: Mapping[str, str], seen: set[tuple[str, str]]) -> None:
        self.environment, self.facts = grid.environment, grid.facts
        self.configuration = _SeenConfiguration(choices, seen)
        self.traits = _SeenTraits(choices, seen)
        self._workload = grid.workload

    @cached_property
    def workload(self) -> Workload:
        return self._workload.under(self.configuration)

    @property
    def needs(self) -> Needs:
        return self._workload.needs  # whatever is chosen


class _SeenTraits:
    """The traits of choices, noted by name where they are asked for."""

    def __init__(self, choices: Mapping[str, str], seen: set[tuple[str, str]]) -> None:
        self._traits = merged(tuple([KNOBS[knob].choices[name].traits for knob, name in choices.items()]))
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        self._seen.add((_TRAIT, name))
        return getattr(self._traits, name)


class _SeenConfiguration(Mapping[str, str]):
    """A configuration, noted by knob where one is asked for, and as a whole by whatever else it is asked."""

    def __init__(self, choices: Mapping[str, str], seen: set[tuple[str, str]]) -> None:
        self._choices, self._seen = choices, seen

    def __getitem__(self, knob: str) -> str:
        if knob not in self._choices:
            return Configuration.of(self._choices)[knob]
        self._seen.add((_CHOICE, knob))
        return self._choices[knob]

    def __contains__(self, knob: object) -> bool:
        return knob in self._choices or knob in Configuration.of(self._choices)

    def over(self, knobs: Iterable[str]) -> tuple[tuple[str, str], ...]:
        return tuple([(knob, self[knob]) for knob in knobs if knob in self])

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __str__(self) -> str:
        return str(self._whole)

    def __hash__(self) -> int:
        return hash(self._whole)

    def __eq__(self, other: object) -> bool:
        return self._whole == other

    def __bool__(self) -> bool:
        return True

    @property
    def _whole(self) -> Configuration:
        self._seen.update((_CHOICE, knob) for knob in self._choices)
        return Configuration.of(self._choices)


def _classes(knob: str, names: Sequence[str], looked: Iterable[tuple[str, str]]) -> list[int]:
    """Return, for each choice of a knob, the first one that is alike in all that was looked at."""
    if (_CHOICE, knob) in looked:
        return [*range(len(names))]
    asked = [trait for kind, trait in looked if kind == _TRAIT]
    own = [KNOBS[knob].choices[name].traits for name in names]
    first: dict[tuple[Any, ...], int] = {}
    return [first.setdefault(tuple([getattr(each, trait) for trait in asked]), n) for n, each in enumerate(own)]


def _table(classes: Sequence[Sequence[int]]) -> npt.NDArray[np.intp]:
    """Return the number of the answer of every combination: answers come with the last knob's class changing fastest."""
    table = np.zeros((1,) * len(classes), dtype=np.intp)
    for axis, of in enumerate(classes):
        kinds = sorted({*of})
        if len(kinds) > 1:
            along = np.array([kinds.index(first) for first in of])
            table = table * len(kinds) + along.reshape([-1 if n == axis else 1 for n in range(len(classes))])
    return table
