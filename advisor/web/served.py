"""Served: what every request is answered from, opened once: the store, the jobs, the roster, and what requests may do."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from advisor.asking.desk import Desk
from advisor.asking.submission import Submission
from advisor.daemon.engine import Jobs
from advisor.daemon.job import Job
from advisor.errors import BadInput, DamagedRow, NotMeasured, named
from advisor.nouns.environment import Environment
from advisor.storage.counts import Counts, Size
from advisor.storage.roster import Roster, Slot
from advisor.storage.store import Store
from advisor.web.waiting import Queue

#: Studies whose answers are remembered in words: those of many pages of jobs.
_MOST_ANSWERS = 4096


@dataclass(frozen=True)
class Limits:
    """What requests may do.

    model_root: models of the hosts lie under it, None where only hub ids are let in; most_budget_s: seconds that a job may spend,
    0 for any; most_waiting: jobs that may wait; most_body_bytes: of a request; most_streams: of events, at once;
    answer_processes: that answer questions beside the daemon's own, at most; it answers itself where that is 0.
    """

    model_root: Path | None = None
    most_budget_s: float = 3600.0
    most_waiting: int = 10_000
    most_body_bytes: int = 1024 * 1024
    most_streams: int = 256
    answer_processes: int = 0


class QueueFull(BadInput):
    """So many jobs wait that no other one is let in for now."""


class OverAlready(BadInput):
    """A job that is over can't be cancelled."""


class NoDevice(BadInput):
    """No slot was ever seen that could run a job."""


@dataclass
class Served:
    """A daemon's database, open. Safe to share between threads."""

    url: str
    store: Store
    jobs: Jobs
    limits: Limits = field(default_factory=Limits)
    desk: Desk = field(init=False, repr=False)
    _answers: dict[int, tuple[str, str]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        """Open a desk for questions."""
        self.desk = Desk(self.store)

    @classmethod
    def open(cls, url: str, limits: Limits) -> Self:
        """Open what a daemon has prepared (`advisor.daemon.engine.prepare`). Raises StoreError, NotMeasured."""
        return cls(url, Store.open(url, write=True), Jobs(url), limits)

    def close(self) -> None:
        """Close every connection."""
        self.jobs.close()
        self.store.close()

    @property
    def roster(self) -> Roster:
        """The slots."""
        return Roster(self.store)

    def environments(self, wanted: str | None = None) -> list[Environment]:
        """Return the environments of the slots that are at work, GPUs first, each once. wanted: of those that it names alone."""
        slots = [slot for slot in self.roster.slots() if slot.is_there()]
        meant = [slot.environment for slot in slots if wanted is None or _is_meant(slot, wanted)]
        found = {environment.key: environment for environment in meant}
        return sorted(found.values(), key=lambda environment: not environment.is_cuda)

    def submit(self, submission: Submission, *, is_operator: bool = False) -> Job:
        """Have a job wait for a device; return it. Raises BadInput, QueueFull, NoDevice.

        is_operator: whoever asks has the database in hand: the daemon's limits are for requests.
        """
        limits = self.limits
        asked = submission.checked(
            model_root=limits.model_root, most_budget_s=limits.most_budget_s, is_operator=is_operator
        )
        placed = placed_on(asked, self.roster.slots())
        if not is_operator and self.jobs.waiting() >= limits.most_waiting:
            raise QueueFull(f"{limits.most_waiting} jobs wait already", "submit it again later")
        return self.jobs.job(self.jobs.submit(placed))

    def cancel(self, name: str) -> Job:
        """Cancel a job that waits or runs; return it. Raises NotMeasured where there is none, OverAlready."""
        before = self.jobs.job(name)
        job = self.jobs.cancel(before.id)
        if not before.is_open or job.state != "cancelled":
            raise OverAlready(f"job {job.id} is over already: it is {job.state}")
        return job

    def told(self, name: str) -> dict[str, Any]:
        """Return a job with how its study stands, as JSON values. Raises NotMeasured where there is no such job."""
        return self._all_told([self.jobs.job(name)])[0]

    def listed(self, state: str | None, first: int, most: int) -> list[dict[str, Any]]:
        """Return jobs with how their studies stand, the newest first."""
        return self._all_told(self.jobs.page(state, first, most))

    def _all_told(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Add to jobs how many trials there are of their studies, what is found by now, and what they wait for."""
        slots = self.roster.slots() if any(job.is_open for job in jobs) else []
        queue = Queue.of(self.jobs, jobs, slots)
        sizes = Counts(self.store).of_studies({job.study for job in jobs if job.study is not None})
        return [self._told(job, queue, sizes) for job in jobs]

    def _told(self, job: Job, queue: Queue, sizes: Mapping[int, Size]) -> dict[str, Any]:
        payload = {**job.payload, "trials": 0, "study_trials": 0, "answer": ""}
        if job.study is not None and (size := sizes.get(job.study)) is not None:
            payload |= {"trials": job.trials(size.trials), "study_trials": size.trials}
            payload["answer"] = self._answer_words(job.study, size.answered_at)
        if not job.is_open or job.why:
            return payload
        return {**payload, "why": queue.reason(job)}

    def _answer_words(self, study: int, answered_at: str | None) -> str:
        """Return a study's answer in words, "" where there is none. answered_at: when it was made: it is read once."""
        if answered_at is None:
            return ""
        with self._lock:
            made_at, words = self._answers.get(study, ("", ""))
        if made_at == answered_at:
            return words
        try:
            words = self._worded(study)
        except DamagedRow as error:  # the jobs beside it can be told
            words = str(error)
        with self._lock:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            self._answers[study] = (answered_at, words)
        return words

    def _worded(self, study: int) -> str:
        """Return a study's answer in words, and what it leaves open. Raises DamagedRow."""
        from advisor.pages.short import answer_words, is_open
        from advisor.pages.study_report import report_of

        found, report = self.store.answer(study), None
        if found is None:
            return ""
        if is_open(found):
            with suppress(BadInput, NotMeasured):  # what can't be told of its trials leaves the answer as it is
                report = report_of(self.store, study)
        return answer_words(found, report)


def placed_on(submission: Submission, slots: list[Slot]) -> Submission:
    """Return a submission with the class of the devices that it is to run on: those that `on` names, else GPUs before CPUs.

    Slots that are at work come first, then those that were last seen. Raises NoDevice.
    """
    wanted = submission.given.get("on")
    fitting = [slot for slot in slots if wanted is None or _is_meant(slot, str(wanted))]
    if not fitting:
        known = sorted({slot.device_class for slot in slots})
        what = f"{named('on')} {wanted} names no device of this daemon's" if wanted else "this daemon has no device"
        raise NoDevice(what, f"there are {'; '.join(known)}" if known else "advisor serve or advisor worker brings one")
    ranked = sorted(fitting, key=lambda slot: (not slot.is_there(), not slot.environment.is_cuda))
    return replace(submission, device_class=ranked[0].device_class)


def _is_meant(slot: Slot, wanted: str) -> bool:
    """Whether a slot is of the environment that is asked for, as `suggest` reads it: by key, or part of the device's name."""
    return slot.environment.key.startswith(wanted) or wanted.lower() in slot.device_class.lower()
