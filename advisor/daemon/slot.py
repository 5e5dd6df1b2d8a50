"""A slot: one device that jobs are tuned on. It takes them up, gives its device back where it must, and says that it is there."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from advisor.asking.submission import Submission
from advisor.daemon import deaths
from advisor.daemon.budget import left_of
from advisor.daemon.courtesy import LOOK_S, Courtesy, Watch
from advisor.daemon.engine import Jobs, at_work
from advisor.daemon.job import Job
from advisor.errors import AdvisorError, DamagedRow, NotMeasured, StoreError
from advisor.machine.leftovers import owner
from advisor.measure.runner import Interrupted, Runner
from advisor.nouns.environment import Machine
from advisor.nouns.step import Done
from advisor.storage.counts import Counts
from advisor.storage.roster import BEAT_S, Roster
from advisor.storage.store import Store
from advisor.study.next_step import next_step
from advisor.study.opening import opened
from advisor.study.tune import carried_out
from advisor.study.tuning import Job as Tuning

#: How often a slot asks whether its job was cancelled, seconds: what runs is to be gone within two.
ASK_S = 0.5

#: How long a database that is away, or full, is left alone, seconds.
AGAIN_S = 2.0

#: How often it is told that another worker has the device, seconds.
HELD_S = 60.0

#: The exit status of a slot that gave its device back: it is started again, and waits until it may use it.
YIELDED = 75

#: How long what runs has to be let go after SIGTERM, seconds.
STOP_S = 8.0

#: A share that fits no device of this environment waits so long for another one, seconds.
ELSEWHERE_S = 5.0

_log = logging.getLogger("advisor.slot")


class Stoppable(Runner, Protocol):
    """A runner that another thread can stop."""

    def interrupt(self, why: str) -> None:
        """Have what runs now killed at once, and nothing run from now on."""


class Bench(Protocol):
    """What a slot measures with: how a submission becomes a tune on its device, and what runs that."""

    machine: Machine

    def tuning(self, submission: Submission) -> Tuning:
        """Return what is to be tuned. Raises AdvisorError."""

    def runner(self, job: Tuning, listen: Callable[[Mapping[str, Any]], None], /) -> Stoppable:
        """Return what runs it."""


@dataclass(frozen=True)
class Ended:
    """How a job's work on this slot ended. outcome: "done" or "failed", "" where it is another's to say."""

    outcome: str = ""
    why: str = ""


class Slot:
    """One device at work."""

    def __init__(self, bench: Bench, url: str, courtesy: Courtesy, supervisor: str = "") -> None:
        """Tune on this bench's device what waits in a database. supervisor: who starts it again, "" where nobody does."""
        self.bench, self.url, self.name, self.supervisor = bench, url, bench.machine.uuid, supervisor
        self.owner = owner()
        self.watch = Watch(bench.machine, courtesy)
        self.store, self.jobs = Store.open(url, write=True), Jobs(url)
        self.roster = Roster(self.store)
        self._state, self._why, self._job = "idle", "", ""
        self._runner: Stoppable | None = None
        self._held: tuple[str, int] | None = None
        self._beaten = time.monotonic()
        self._leaving, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def run(self, stop: threading.Event) -> int:
        """Work until told to stop, or until the device is somebody else's; let go of what runs, and return the exit status.

        The process is to end with it: what it let go of is still its own in the queue, until it or its supervisor puts it back.
        """
        machine = self.bench.machine
        told_at = -math.inf
        while not self.roster.enter(self.name, machine.host, machine.environment, self.owner):
            if time.monotonic() - told_at >= HELD_S:
                told_at = time.monotonic()
                holder = next((slot.holder for slot in self.roster.slots() if slot.name == self.name), "")
                about = {"slot": self.name, "holder": holder}
                _log.warning("another worker has this device: it is waited for", extra=about)
            if stop.wait(BEAT_S):
                return 0
        self._start(self._beat)
        # What ran here when its last process ended may run elsewhere meanwhile.
        deaths.put_back(self.url, self.store, self.name, self.supervisor)
        told = ""
        while hindrance := self.watch.hindrance():
            if hindrance != told:
                _log.info("waits", extra={"slot": self.name, "why": hindrance})
            told = hindrance
            self._is("waiting", hindrance)
            if stop.wait(LOOK_S):
                self.roster.leave(self.name, self.owner)
                return 0
        self._is("idle")
        self._start(self._look)
        with at_work(self.url, self.name, machine.environment.device_class, self._perform):
            _log.info("ready", extra={"slot": self.name, "device": machine.environment.device_class})
            while not stop.wait(ASK_S) and not self._leaving.is_set():
                pass
            self._leave("the daemon stops")
            self._idle.wait(STOP_S)
            with suppress(StoreError):
                if held := self._held:
                    deaths.let_go(self.jobs, *held)
            if stop.is_set():
                with suppress(StoreError):
                    self.roster.leave(self.name, self.owner)
            os._exit(0 if stop.is_set() else YIELDED)  # DBOS would call done what was let go

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=f"advisor-slot{work.__name__}", daemon=True).start()

    def _leave(self, why: str) -> None:
        """Have what runs stopped, and nothing begun: the device is given back."""
        self._leaving.set()
        self._interrupt(why)

    # ---------------------------------------------------------------------------------------------------------- jobs

    def _perform(self, name: str, number: int) -> str:
        """Work on a job or a share of it until it is done; return why it failed, "" where it did not."""
        self._idle.clear()
        try:
            job = self._patiently(lambda: self.jobs.job(name))
            noted = Ended(str(job.words.get("outcome", "")), str(job.words.get("why", "")))
            if number:  # how a job ends is said by who has the job itself
                if job.is_open and not noted.outcome:
                    self._worked_on(job, number)
                return ""
            ended = noted if noted.outcome or not job.is_open else self._worked_on(job, number)
            if ended.outcome and not noted.outcome:
                _log.info(ended.outcome, extra={"slot": self.name, "job": name, "why": ended.why})
                self._patiently(lambda: self.jobs.tell(name, outcome=ended.outcome, why=ended.why))
            if not self._leaving.is_set():
                self._patiently(lambda: self._told_last(name))
            return ended.why if ended.outcome == "failed" else ""
        finally:
            self._is("idle")
            self._idle.set()
            if self._leaving.is_set():
                threading.Event().wait()  # the process ends here, and the job goes back to its queue

    def _worked_on(self, job: Job, number: int) -> Ended:
        """Tune until the study is done, as often as the device is given back meanwhile."""
        if why := deaths.refusal(job, number):
            return Ended("failed", why)
        self._is("busy", "", job.id)
        self._held = job.id, number
        self._patiently(lambda: deaths.begin(self.jobs, job, number, self.supervisor))
        try:
            tuning = self.bench.tuning(job.submission)
        except AdvisorError as error:
            return Ended("failed", str(error))
        here = tuning.machine.environment.key
        if number and job.words.get("environment") != here:
            self._patiently(lambda: self.jobs.share(job, number + 1, ELSEWHERE_S))
            return Ended()
        if not number:
            self._patiently(lambda: self.jobs.tell(job.id, environment=here))
        self._patiently(lambda: self._offer(job, number))
        while self._may_begin(job):
            if (ended := self._attempted(job, tuning)) is not None:
                return ended
        return Ended()

    def _offer(self, job: Job, number: int) -> None:
        """Have a share wait for each slot that may idle, and one for who comes later: each that is taken offers the next."""
        wanted = job.submission.device_class
        others = sum(s.device_class == wanted and s.is_there() for s in self.roster.slots()) - 1 if not number else 1
        for each in range(number + 1, number + 1 + max(others, 1)):
            self.jobs.share(job, each)

    def _attempted(self, job: Job, tuning: Tuning) -> Ended | None:
        """Tune until it ends; None where it is to be gone on with: it was stopped, or the database can't be used for now."""
        try:
            return self._tuned(job, tuning)
        except Interrupted as stopped:
            _log.info("stopped", extra={"slot": self.name, "job": job.id, "why": str(stopped)})
        except (StoreError, OSError) as error:  # a disk that is full, no file more: it may pass
            if isinstance(error, DamagedRow):
                return Ended("failed", str(error))
            _log.error("what is needed can't be used", extra={"slot": self.name, "job": job.id, "why": str(error)})
            self._is("waiting", str(error), job.id)
            self._leaving.wait(AGAIN_S)
        except AdvisorError as error:
            # Where a study is there, what its earlier slots did not get to was beyond the budget.
            is_spent = isinstance(error, NotMeasured) and job.study is not None
            return Ended("done" if is_spent else "failed", str(error))
        except Exception as error:  # noqa: BLE001 - the slot has other jobs to do
            _log.exception("a fault of advisor's own", extra={"slot": self.name, "job": job.id})
            return Ended("failed", f"a fault of advisor's own: {type(error).__name__}: {error}")
        return None

    def _tuned(self, job: Job, tuning: Tuning) -> Ended:
        """Tune once, with what is left of the job's budget. Raises Interrupted."""
        job = self.jobs.job(job.id)
        if job.study is not None:
            left = left_of(tuning.budget, self.store.trials(job.study), int(job.words.get("first", 0)))
            tuning = replace(tuning, budget=left)
        runner = self.bench.runner(tuning, self._hear)
        self._runner = runner
        if self._leaving.is_set():  # since it was looked
            runner.interrupt("the device is given back")
        self._is("busy", "", job.id)
        try:
            with opened(tuning, self.store, runner, self._hear, time.monotonic) as tuner:
                # What failed since the job began is not tried again because a slot joins, or was killed.
                tuner.first = self._told_study(job, tuner.study, tuner.first)
                while not isinstance(step := next_step(seen := tuner.snapshot()), Done):
                    carried_out(tuner, seen, step)
            return Ended("done", step.text)
        finally:
            runner.close()
            self._runner = None  # only now: until then the device's lock is this slot's own

    def _told_study(self, job: Job, study: int, first: int) -> int:
        """Note the study of a job, and its first trial that is the job's, unless that is noted; return the latter."""
        noted = self.jobs.job(job.id)
        if noted.study is None:
            self.jobs.tell(job.id, study=study, first=first)
            return first
        return min(first, int(noted.words.get("first", first)))

    def _told_last(self, name: str) -> None:
        """Note how many trials the study of a job has as the job ends: later ones are others'."""
        with suppress(NotMeasured):  # it is over, and was removed since
            job = self.jobs.job(name)
            if job.study is not None and "last" not in job.words:
                self.jobs.tell(name, last=Counts(self.store).of_study(job.study))

    def _may_begin(self, job: Job) -> bool:
        """Whether to go on with a job: it is not over, and the device is not to be given back."""
        if hindrance := self.watch.hindrance():
            self._leave(hindrance)
        while not self._leaving.is_set():
            with suppress(StoreError):
                return self.jobs.job(job.id).is_open
            self._leaving.wait(AGAIN_S)
        return False

    def _hear(self, event: Mapping[str, Any]) -> None:
        about = {"slot": self.name, "job": self._job}
        if event["event"] == "trial":
            trial = event["trial"]
            words = {"trial": trial.number, "configuration": str(trial.requested), "outcome": str(trial.outcome)}
            _log.info("a trial ended", extra={**about, **words, "why": trial.reason})
        elif str(event.get("stage", "")).startswith("waiting"):
            _log.info(event["stage"], extra=about)

    def _patiently(self, verb: Callable[[], Any]) -> Any:
        """Return what a verb of the jobs says, as soon as their database is there."""
        while True:
            try:
                return verb()
            except DamagedRow:
                raise
            except StoreError as error:
                _log.warning("the database can't be reached", extra={"slot": self.name, "why": str(error)})
                time.sleep(AGAIN_S)

    # ------------------------------------------------------------------------------------------------------- threads

    def _is(self, state: str, why: str = "", job: str = "") -> None:
        self._state, self._why, self._job = state, why, job

    def _interrupt(self, why: str) -> None:
        runner = self._runner
        if runner is not None and not runner.interrupted:
            runner.interrupt(why)

    def _beat(self) -> None:
        """Say that the slot is there, for as long as it is."""
        while True:
            now = time.monotonic()
            busy_s = now - self._beaten if self._state == "busy" else 0.0
            try:
                if not self.roster.beat(self.name, self.owner, self._state, self._why, self._job or None, busy_s):
                    _log.error("another worker has taken this slot over", extra={"slot": self.name})
                    os._exit(1)
                self._beaten = now
            except Exception as error:  # noqa: BLE001 - a slot that is silent is taken for gone
                _log.warning("not heard", extra={"slot": self.name, "why": str(error)})
            time.sleep(BEAT_S)

    def _look(self) -> None:
        """Stop what runs where its job was cancelled, or somebody else came to the device."""
        looked = 0.0
        while not self._leaving.wait(ASK_S):
            try:
                name = self._job
                if self._runner is not None and name and self.jobs.is_cancelled(name):
                    self._interrupt("it was cancelled")
                if time.monotonic() - looked >= LOOK_S:
                    looked = time.monotonic()
                    self._look_at_device()
            except Exception as error:  # noqa: BLE001 - who comes, or cancels, is to be seen the next time
                _log.warning("not looked", extra={"slot": self.name, "why": str(error)})

    def _look_at_device(self) -> None:
        """Give the device back where somebody else came to it."""
        works = self._runner is not None
        hindrance = self.watch.hindrance(own_pids(), works=works)
        if hindrance and works == (self._runner is not None):  # else it looked while its own runner came or went
            _log.info("given back", extra={"slot": self.name, "job": self._job or None, "why": hindrance})
            self._leave(hindrance)


def own_pids() -> list[int]:
    """Return the processes that this one started, and theirs."""
    import psutil

    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process().children(recursive=True)]
    return []
