"""Answer: what a study came to. The list of conclusions, in the words of text, JSON and SQL, and the one row that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from advisor.configuration import Configuration


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


#: The verdict where no configuration is right within the study's objective.
NONE_RIGHT = Conclusion.NONE_RIGHT


@dataclass(frozen=True)
class Answer:
    """What is recommended of a study under its own objective, with its evidence.

    configuration: None where none is right; ratio, low, high: over the default, above 1 where better at what was asked for,
    None where nothing was compared; blocks: of that comparison. tried: how many configurations were, failures included;
    admissible: of how many, None where that is not known. why: why the search stopped, then notes or what stands against
    everything, in words. method: the versions of rules, gate and statistic together. made_at: the moment whose rows it was
    made of; None: now.
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
