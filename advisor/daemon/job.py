"""Job: a tune that somebody submitted, as it stands: what is asked, whether it waits, runs or is over, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from advisor.asking.submission import Submission

#: What a job can be. A job that found nothing to recommend is done; one that could not be tuned has failed.
STATES = ("queued", "running", "done", "failed", "cancelled")

#: How many characters an id has at most. Those of today have 15.
LONGEST_ID = 64

_ID = re.compile(rf"[0-9a-z]{{1,{LONGEST_ID}}}")

_OPEN = ("queued", "running")


def is_open(state: str) -> bool:
    """Whether a job of this state waits or runs."""
    return state in _OPEN


def is_id(name: str) -> bool:
    """Whether a name can be a job's id, or a beginning of one: no database is asked for anything else."""
    return _ID.fullmatch(name) is not None


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    state: of STATES; submitted_at, started_at, finished_at: aware, None until then; slot: that runs it or ran it; study: its
    number in the store, None until it is opened; why: what it waits for or why it failed, in words; words: all that is noted.
    """

    id: str
    submission: Submission
    state: str
    submitted_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    slot: str | None = None
    study: int | None = None
    why: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return is_open(self.state)

    def trials(self, count: int) -> int:
        """Return how many trials of its study were run while it ran. count: of all that its study has by now, other jobs' too."""
        last = int(self.words.get("last", count))
        return max(min(last, count) - int(self.words.get("first", 0)), 0)

    @property
    def payload(self) -> dict[str, Any]:
        """The job as JSON values."""
        moments = {name: getattr(self, name) for name in ("submitted_at", "started_at", "finished_at")}
        return {
            "id": self.id,
            "model": self.submission.model,
            "given": dict(self.submission.given),
            "priority": self.submission.priority,
            "device_class": self.submission.device_class,
            "state": self.state,
            **{name: moment.isoformat() if moment else None for name, moment in moments.items()},
            "slot": self.slot,
            "study": self.study,
            "why": self.why,
            "again": None if self.submission.again is None else self.submission.again.payload,
        }
