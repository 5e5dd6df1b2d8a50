"""Recheck: in idle time a slot measures again what was measured on its device before a driver or a package changed.

Of a stale study the default and the best of its answer are measured and confirmed, under today's rules: a job like any other, but
every job that somebody submitted goes first. Its id is made of the study and the environment, so that it is queued once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from advisor.advice.kept_answers import source_of
from advisor.advice.suggest import recommend
from advisor.asking.submission import LEAST_PRIORITY, Again, Submission
from advisor.daemon.bench import Bench
from advisor.daemon.engine import Jobs
from advisor.daemon.job import is_open
from advisor.errors import DamagedRow, NotMeasured
from advisor.nouns.environment import Environment
from advisor.storage.stale import stale_studies
from advisor.storage.store import Store
from advisor.study.tuning import Job as Tuning

#: A slot that had nothing to do for so long looks for what is stale, seconds.
IDLE_S = 60.0

#: How often it is looked whether it is idle, seconds.
LOOK_S = 1.0

#: How many of a stale answer are measured again, beside the default: what is recommended, and those next to it.
BEST = 3

_log = logging.getLogger("advisor.recheck")


def queue_stale(store: Store, jobs: Jobs, here: Environment, there: Collection[str] = ()) -> str | None:
    """Queue one stale study of an environment; return its job's id, None where nothing is stale or the device has work.

    there: the keys of environments of slots at work: hosts with other versions of one device leave each other's studies alone.
    One at a time; what was queued once, in this environment, is not queued again while its job is kept, whatever became of it.
    """
    if jobs.waiting(here.device_class):
        return None
    known = jobs.again(here.key)
    if any(is_open(state) for state in known.values()):
        return None
    for number in stale_studies(store, here, there):
        if number in known:
            continue
        with suppress(DamagedRow):
            study = store.study(number)
            again = Again(number, here.key, study.environment.changes_to(here))
            return jobs.submit(Submission(study.model_name, {}, LEAST_PRIORITY, here.device_class, again))
    return None


def cancel_outdated(jobs: Jobs, there: Collection[str]) -> None:
    """Cancel what waits to be measured again in environments that no slot has any more: nobody would ever take it up.

    there: the keys of the environments of all slots, those too that are away for now.
    """
    for name, environment in jobs.again_waiting().items():
        if environment not in there:
            jobs.cancel(name)
            _log.info("its device has other versions by now: cancelled", extra={"job": name})


def look_when_idle(
    look: Callable[[], str | None], idle_s: Callable[[], float], leaving: threading.Event, after_s: float
) -> None:
    """Look for what is stale whenever a slot was idle for so long, until it leaves. idle_s: how long it is by now, seconds.

    look: queues a job, and returns its id.
    """
    looked = -math.inf
    while not leaving.wait(min(after_s, LOOK_S)):
        if idle_s() < after_s or time.monotonic() - looked < after_s:
            continue
        looked = time.monotonic()
        try:
            if name := look():
                _log.info("something stale is measured again", extra={"job": name})
        except Exception as error:  # noqa: BLE001 - the slot has jobs to do
            _log.warning("what is stale can't be looked for", extra={"why": str(error)})


def tuning_again(store: Store, again: Again, bench: Bench) -> Tuning:
    """Return what measures a stale study again on a bench: its default and the best of its answer.

    Raises AdvisorError where its model is gone, it recommends nothing, or the device has other versions by now.
    """
    study = store.study(again.study)
    found = recommend(store, source_of(study), study, study.objective)
    if found.chosen is None:
        raise NotMeasured(f"study {study.id} recommends nothing, so that nothing of it is measured again")
    best = [each.configuration for each in (found.chosen, *found.runners_up) if not each.is_default]
    tuning = bench.again(study, tuple(best[:BEST]))
    if tuning.machine.environment.key != again.environment:
        raise NotMeasured("the device has other versions by now than when this was queued")
    return tuning
