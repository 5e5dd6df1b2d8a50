"""Live: what a page is told by the daemon that serves it. The same page written to a file is told nothing, and stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from advisor.storage.study_record import StudyRecord
from advisor.terminal import duration


@dataclass(frozen=True)
class Live:
    """A page as a daemon serves it.

    changes: whether what it shows can still change: it follows that. said: how things stand, in words, "" where there is nothing
    to say. nonce: what the answer's policy knows its scripts by, None where it knows them by their place.
    """

    changes: bool = False
    said: str = ""
    nonce: str | None = None


def ago(moment: datetime, now: datetime) -> str:
    """Return how long something is past, in words. Clocks of two hosts differ: what is to come is now."""
    return duration(max(0.0, (now - moment).total_seconds()))


def moment_of(text: str | None) -> datetime | None:
    """Return a payload's moment, aware, None where there is none."""
    if text is None:
        return None
    read = datetime.fromisoformat(text)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def standing(study: StudyRecord, trials: int) -> str:
    """Return how a study stands, in words, "" where it has ended as it should. trials: how many of it have ended."""
    if study.state == "running":
        return f"This study is running, {trials} trial{'' if trials == 1 else 's'} so far. The page follows it."
    return "" if study.state == "done" else f"This study is {study.state}: it was not carried to its end."
