"""Answer: what a study came to, as it is stored beside it: the one row that people and `v_recommendations` read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from advisor.configuration import Configuration

#: The verdict where no configuration is right within the study's objective.
NONE_RIGHT = "none-right"


@dataclass(frozen=True)
class Answer:
    """What is recommended of a study under its own objective, with its evidence.

    configuration: None where none is right; ratio, low, high: over the default, above 1 where better at what was asked for,
    None where nothing was compared; blocks: of that comparison. tried: how many configurations were, failures included;
    admissible: of how many, None where that is not known. why: notes, or what stands against everything, in words.
    method: the versions of rules, gate and statistic together. made_at: the moment whose rows it was made of; None: now.
    """

    configuration: Configuration | None
    verdict: str
    ratio: float | None
    low: float | None
    high: float | None
    blocks: int
    tried: int
    admissible: int | None
    why: tuple[str, ...]
    method: str
    made_at: datetime | None = None
