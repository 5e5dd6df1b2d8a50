"""The loop: look → choose → claim → do → store, until nothing is left to do. Several tunes can share a study.

What comes next is a function of what is stored (`advisor.study.next_step`), so that a tune that is killed goes on where it was
when the same command is given again. There is no second path to an answer: `suggest` reads the rows written here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from advisor.measure.runner import Runner
from advisor.nouns.step import Done, Step
from advisor.storage.store import Store
from advisor.study.next_step import next_step
from advisor.study.opening import opened
from advisor.study.perform import perform
from advisor.study.tuner import Tuner
from advisor.study.tuning import Job, Listener, Snapshot

__all__ = ["Job", "carried_out", "tune"]


def tune(job: Job, store: Store, runner: Runner, listen: Listener, now: Callable[[], float] = time.monotonic) -> int:
    """Tune until the budget is spent or nothing is left to try; return the study's id. Interrupting it loses nothing.

    now: the clock, for tests. Raises NotMeasured where the budget was spent before the model was read.
    """
    with opened(job, store, runner, listen, now) as tuner:
        while not isinstance(step := next_step(seen := tuner.snapshot()), Done):
            carried_out(tuner, seen, step)
        if step.text:
            listen({"event": "unconfirmed", "text": step.text})
    return tuner.study


def carried_out(tuner: Tuner, seen: Snapshot, step: Step) -> bool:
    """Do a step unless another tune has it, or began something since it was chosen: then return False, and it is chosen anew."""
    numbers = tuner.claim(step, seen)
    if numbers is None:
        return False
    tuner.take(seen, perform(tuner, seen, step, numbers))
    return True
