"""Shares: how several slots come to tune one study. A share waits behind the jobs of its priority, and each offers the next."""

from __future__ import annotations

from contextlib import suppress

from advisor.daemon.engine import Jobs
from advisor.daemon.job import Job
from advisor.errors import NotMeasured
from advisor.storage.counts import Counts
from advisor.storage.roster import Roster
from advisor.storage.store import Store

#: A share that fits no device of this environment waits so long for another one, seconds.
ELSEWHERE_S = 5.0


def offer(jobs: Jobs, roster: Roster, job: Job, number: int) -> None:
    """Have a share wait for each slot that may idle, and one for who comes later: each that is taken offers the next."""
    wanted = job.submission.device_class
    others = sum(s.device_class == wanted and s.is_there() for s in roster.slots()) - 1 if not number else 1
    for each in range(number + 1, number + 1 + max(others, 1)):
        jobs.share(job, each)


def noted(jobs: Jobs, job: Job, study: int, first: int) -> int:
    """Note the study of a job, and its first trial that is the job's, unless that is noted; return the latter."""
    told = jobs.job(job.id)
    if told.study is None:
        jobs.tell(job.id, study=study, first=first)
        return first
    return min(first, int(told.words.get("first", first)))


def note_last(jobs: Jobs, store: Store, name: str) -> None:
    """Note how many trials the study of a job has as the job ends, unless that is noted: later ones are others'."""
    with suppress(NotMeasured):  # it is over, and was removed since
        job = jobs.job(name)
        if job.study is not None and "last" not in job.words:
            jobs.tell(name, last=Counts(store).of_study(job.study))
