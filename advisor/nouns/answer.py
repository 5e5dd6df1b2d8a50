"""Answer: what a study came to. The list of conclusions, in the words of text, JSON and SQL, and the one row that is stored.

And how its search ended, with what was left: what was never tried is part of every answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from advisor.nouns.configuration import Configuration


class Conclusion(StrEnum):
    """What was found out, and how sure it is.

    FASTER: confirmed in blocks. TIE, DEFAULT: the default stays, for what looked faster is none, or nothing did.
    SLOWER_BUT_RIGHT: the default may not be recommended, and this is the best of what may. UNCONFIRMED: what looked faster was
    not compared in enough blocks. UNSEARCHED: too little was tried to say anything. NONE_RIGHT: nothing may be recommended.
    """

    FASTER = "faster"
    TIE = "tie"
    DEFAULT = "default"
    SLOWER_BUT_RIGHT = "slower-but-right"
    UNCONFIRMED = "unconfirmed"
    UNSEARCHED = "unsearched"
    NONE_RIGHT = "none-right"

    @property
    def exit_status(self) -> int:
        """The status of a command that came to it, unless what is missing was not asked for."""
        return {Conclusion.UNCONFIRMED: 3, Conclusion.UNSEARCHED: 3, Conclusion.NONE_RIGHT: 4}.get(self, 0)


class Stop(StrEnum):
    """Why a search stopped."""

    EVERYTHING = "everything"
    UNLIKELY = "unlikely"
    PAYBACK = "payback"
    BUDGET = "budget"
    TRIALS = "trials"
    FAILURES = "failures"
    UNJUDGED = "unjudged"
    INTERRUPTED = "interrupted"

    @property
    def words(self) -> str:
        """Return it as the end of "the search stopped: …"."""
        return {
            Stop.EVERYTHING: "everything that may be right and fits was tried",
            Stop.UNLIKELY: "nothing untried is likely to be better",
            Stop.PAYBACK: "more of it is expected to cost more than it saves",
            Stop.BUDGET: "the budget was spent",
            Stop.TRIALS: "the trials asked for were spent",
            Stop.FAILURES: "too many trials failed in a row",
            Stop.UNJUDGED: "nothing that is measured could be recommended",
            Stop.INTERRUPTED: "it was interrupted",
        }[self]

    @property
    def is_cut(self) -> bool:
        """Whether it stopped although nobody had asked for so little, nor was anything else to be expected."""
        return self in (Stop.BUDGET, Stop.FAILURES, Stop.UNJUDGED, Stop.INTERRUPTED)


@dataclass(frozen=True)
class Prospect:
    """What was never tried: how many times better than the default it is predicted to be, and the seconds of its trial.

    Both are None where nothing was measured to predict from.
    """

    configuration: Configuration
    ratio: float | None
    seconds: float | None

    @property
    def payload(self) -> dict[str, Any]:
        """It as JSON values."""
        return {"configuration": dict(self.configuration), "ratio": self.ratio, "seconds": self.seconds}


@dataclass(frozen=True)
class SearchEnd:
    """How a search ended: why, how many were left, how likely one of them is better, and those that promise most.

    chance: None where too little was measured to say. tried: how many search trials it knew of: with more it is out of date.
    """

    stop: Stop
    left: int
    chance: float | None
    promising: tuple[Prospect, ...]
    tried: int

    @property
    def payload(self) -> dict[str, Any]:
        """It as JSON values."""
        promising = [prospect.payload for prospect in self.promising]
        return {
            "stop": str(self.stop),
            "left": self.left,
            "chance": self.chance,
            "promising": promising,
            "tried": self.tried,
        }

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None) -> SearchEnd | None:
        """Build it from its payload; None from None, and from what this version does not understand."""
        try:
            if payload is None:
                return None
            promising = tuple(
                Prospect(Configuration.of(each["configuration"]), _number(each["ratio"]), _number(each["seconds"]))
                for each in payload["promising"]
            )
            chance, counts = _number(payload["chance"]), (int(payload["left"]), int(payload["tried"]))
            return cls(Stop(payload["stop"]), counts[0], chance, promising, counts[1])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _number(value: Any) -> float | None:
    """Return a finite number, None for None. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"no number: {value!r}")
    return float(value)


#: The verdict where no configuration is right within the study's objective.
NONE_RIGHT = Conclusion.NONE_RIGHT


@dataclass(frozen=True)
class Answer:
    """What is recommended of a study under its own objective, with its evidence.

    configuration: None where none is right; ratio, low, high: over the default, above 1 where better at what was asked for,
    None where nothing was compared, as for the default itself, low and high after a single block too; blocks: of that
    comparison. tried: how many configurations were, failures included; admissible: of how many, None where that is not known.
    why: why the search stopped, then notes or what stands against everything, in words. method: the versions of rules, gate and
    statistic together. made_at: the moment whose rows it was made of; None: now.
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
