"""Deaths: how often a job took its slot's process with it, as one that eats the host's memory does. Nobody retries that for ever.

Who takes a job up notes it as its worker, and what lets go of it in order takes the note away: a device that is given back, and
SIGTERM. A note whose process is dead while its supervisor lives is a death. A host that is started again is none.
"""

from __future__ import annotations

import logging
from typing import Any

from advisor.daemon.engine import Jobs, recover
from advisor.daemon.job import Job
from advisor.errors import NotMeasured
from advisor.machine.leftovers import owner, owner_is_alive
from advisor.storage.counts import Counts
from advisor.storage.store import Store

#: So many deaths in a row, with no trial that ended between, are a job's own doing. (Kubernetes gives a job as many.)
MOST = 6

_log = logging.getLogger("advisor.deaths")


def begin(jobs: Jobs, job: Job, number: int, supervisor: str) -> None:
    """Note that this process works on a job, or on a share of it where the number is not 0. supervisor: that started it."""
    jobs.tell(job.id, **{_key(number): {"process": owner(), "supervisor": supervisor}})


def let_go(jobs: Jobs, name: str, number: int) -> None:
    """Note that this process has let go of what it worked on: its end is no death."""
    jobs.tell(name, **{_key(number): None})


def refusal(job: Job, number: int) -> str:
    """Return why a job, or a share of it, is not worked on any more, "" where it is."""
    counted = job.words.get(_deaths(number), {})
    times = int(counted.get("times", 0))
    if times < MOST:
        return ""
    whose = "the workers of its shares" if number else "its worker"
    return f"{whose} died {times} times while it ran, and no trial ended between: the log of {counted['slot']} says how"


def put_back(url: str, store: Store, slot: str, supervisor: str, patience_s: float = 10.0) -> list[str]:
    """Put what ran on a slot that is gone back into its queue, deaths counted; return it. Raises StoreError.

    supervisor: that asks, "" where it ends itself and nothing is to be counted.
    """
    jobs = Jobs(url)
    try:
        for workflow in jobs.running_on([slot]) if supervisor else []:
            _count(jobs, store, workflow, slot, supervisor)
    finally:
        jobs.close()
    return recover(url, [slot], patience_s)


def _count(jobs: Jobs, store: Store, workflow: str, slot: str, supervisor: str) -> None:
    """Count a death where a workflow's worker, one of this supervisor's, is dead and never let go."""
    name, _, part = workflow.partition("+")
    number = int(part or 0)
    try:
        job = jobs.job(name)
    except NotMeasured:  # a share whose job is gone since
        return
    noted: dict[str, Any] = job.words.get(_key(number)) or {}
    if noted.get("supervisor") != supervisor or owner_is_alive(str(noted.get("process", ""))):
        return
    # Counted, not read: a trial that is damaged is for whoever takes the job up, and no reason to leave it here.
    ended = 0 if job.study is None else Counts(store).ended(job.study)
    before = job.words.get(_deaths(number), {})
    # A share's worker proves nothing by the trials of others.
    is_in_a_row = bool(number) or before.get("ended") == ended
    times = 1 + (int(before.get("times", 0)) if is_in_a_row else 0)
    jobs.tell(job.id, **{_key(number): None, _deaths(number): {"times": times, "ended": ended, "slot": slot}})
    _log.warning("a worker died while it ran a job", extra={"job": workflow, "slot": slot, "times": times})


def _key(number: int) -> str:
    return f"worker+{number}" if number else "worker"


def _deaths(number: int) -> str:
    return "deaths of shares" if number else "deaths"
