"""Waiting: what an open job waits for, in words: those before it, who has the devices of its kind, or why these are not used.

The words say no ages, which would change while nothing happens: whoever follows a job hears of each change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from advisor.daemon.engine import Jobs
from advisor.daemon.job import Job
from advisor.storage.roster import Slot


@dataclass(frozen=True)
class Queue:
    """What stands before jobs. slots: by name; before: how many jobs do, by id; began: when those in slots were taken up."""

    slots: Mapping[str, Slot] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    began: Mapping[str, datetime] = field(default_factory=dict)

    @classmethod
    def of(cls, jobs: Jobs, listed: Sequence[Job], slots: Sequence[Slot]) -> Queue:
        """Look it up for jobs, in two questions whatever their number, none where none waits. Raises StoreError."""
        waiting = [job.id for job in listed if job.state == "queued" and not job.why]
        busy = sorted({slot.job for slot in slots if slot.job is not None}) if waiting else []
        return cls({slot.name: slot for slot in slots}, jobs.before(waiting), jobs.began(busy))

    def reason(self, job: Job) -> str:
        """Return what an open job waits for, "" where it runs, or is about to."""
        if job.state == "running":
            return self._of_running(job)
        there = [s for s in self.slots.values() if s.device_class == job.submission.device_class and s.is_there()]
        if not there:
            return f"no slot with {job.submission.device_class} is there: advisor serve or advisor worker brings one"
        count = self.before.get(job.id, 0)
        ahead = f"{count} job{'' if count == 1 else 's'} before it" if count else ""
        return "; ".join(words for words in (ahead, self._of_slots(there)) if words)

    def _of_running(self, job: Job) -> str:
        slot = self.slots.get(job.slot or "")
        if slot is None or not slot.is_there():
            return "its slot is gone: it is put back, and goes on elsewhere"
        if job.submission.again is not None and slot.job not in (None, job.id):
            return f"job {slot.job} goes first"
        return slot.why if slot.state == "waiting" and slot.job == job.id else ""

    def _of_slots(self, there: Sequence[Slot]) -> str:
        """Return why none of the slots that are there takes a job up, "" where one is idle."""
        if any(slot.state == "idle" for slot in there):
            return ""
        first = min(there, key=lambda slot: (slot.state != "busy", slot.name))
        others = f"; {len(there) - 1} more of its kind can't take it either" if len(there) > 1 else ""
        if first.state != "busy" or first.job is None:
            return f"{first.name}: {first.why}{others}" if first.why else ""
        began = self.began.get(first.job)
        since = "" if began is None else f" since {began.astimezone(UTC):%H:%M} UTC"
        return f"{first.job} runs on {first.name}{since}{others}"
