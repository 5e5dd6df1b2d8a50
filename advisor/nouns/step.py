"""Steps: what a tune does next, as values.

`advisor.study.next_step` chooses one, `Store.claim` gives it to one tune of a study's several, `advisor.study.perform` does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison


@dataclass(frozen=True)
class Probe:
    """Measure what plain work reaches on the device."""


@dataclass(frozen=True)
class Search:
    """Measure a configuration. number: of the trial that somebody left behind and that is run again, None for a new one.

    most_s: seconds that it may take: the rest of the budget is set aside for the confirmation.
    """

    configuration: Configuration
    number: int | None = None
    most_s: float = field(default=math.inf, compare=False)


@dataclass(frozen=True)
class Baseline(Search):
    """The same of what transformers does when told nothing: no answer can do without it, so it may use the budget's grace."""


@dataclass(frozen=True)
class Discard:
    """Write a trial that somebody left behind off as cut: it is not to be run again. block: of the confirmation it was in."""

    number: int
    configuration: Configuration
    phase: str = "search"
    block: int | None = None


@dataclass(frozen=True)
class EndSearch:
    """End this tune's search, and say why. text: more of it in words, "" where `stop` says all."""

    stop: Stop
    text: str = ""


@dataclass(frozen=True)
class Confirm:
    """Run a whole block of the confirmation on one device. contestants: the default first, then who is to be compared.

    decides: whether it is the one that an answer still lacks: then it may use the budget's grace.
    """

    block: int
    contestants: tuple[Configuration, ...]
    decides: bool = False


@dataclass(frozen=True)
class Compare:
    """Store what all blocks say by now."""

    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Wait:
    """Let the other tunes finish trials of these numbers: what comes next depends on them, and nothing else is left to do."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """End the tune. text: why the confirmation ended before everything was confirmed, "" where nothing is left."""

    text: str = ""


Step = Probe | Search | Discard | EndSearch | Confirm | Compare | Wait | Done
