"""A slot: one device that jobs are tuned on. It takes them up, gives its device back where it must, and says that it is there."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from advisor.asking.submission import Submission
from advisor.daemon import deaths, shares
from advisor.daemon.arrival import allowed, entered
from advisor.daemon.bench import Bench, Stoppable
from advisor.daemon.budget import left_of
from advisor.daemon.courtesy import LOOK_S, Courtesy, Watch, own_pids
from advisor.daemon.engine import Jobs, at_work
from advisor.daemon.job import Job
from advisor.daemon.queues import queue_again
from advisor.daemon.recheck import IDLE_S, cancel_outdated, look_when_idle, queue_stale, tuning_again
from advisor.daemon.turns import Turns
from advisor.errors import AdvisorError, DamagedRow, NotMeasured, StoreError
from advisor.machine.leftovers import owner
from advisor.measure.runner import Interrupted
from advisor.nouns.step import Done
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

#: The exit status of a slot that gave its device back: it is started again, and waits until it may use it.
YIELDED = 75

#: How long what runs has to be let go after SIGTERM, seconds.
STOP_S = 8.0

_log = logging.getLogger("advisor.slot")


@dataclass(frozen=True)
class Ended:
    """How a job's work on this slot ended. outcome: "done" or "failed", "" where it is another's to say."""

    outcome: str = ""
    why: str = ""


class Slot:
    """One device at work."""

    def __init__(
        self,
        bench: Bench,
        url: str,
        courtesy: Courtesy,
        supervisor: str = "",
        recheck_after_s: float | None = None,
    ) -> None:
        """Tune on this bench's device what waits in a database. supervisor: who starts it again, "" where nobody does.

        recheck_after_s: how long it has nothing to do before it looks for what is stale, seconds; None: it never does.
        """
        self.bench, self.url, self.name, self.supervisor = bench, url, bench.machine.uuid, supervisor
        self.owner = owner()
        self.watch = Watch(bench.machine, courtesy)
        self.store, self.jobs = Store.open(url, write=True), Jobs(url)
        self.roster = Roster(self.store)
        self.turns, self.recheck_after_s = Turns(self._is_due), recheck_after_s
        self._state, self._why, self._job = "idle", "", ""
        self._since = time.monotonic()
        self._runner: Stoppable | None = None
        self._held: tuple[str, int] | None = None
        self._beaten = time.monotonic()
        self._leaving = threading.Event()

    def run(self, stop: threading.Event) -> int:
        """Work until told to stop, or until the device is somebody else's; let go of what runs, and return the exit status.

        The process is to end with it: what it let go of is still its own in the queue, until it or its supervisor puts it back.
        """
        machine = self.bench.machine
        if not entered(self.roster, machine, self.owner, stop):
            return 0
        self._start(self._beat)
        # What ran here when its last process ended may run elsewhere meanwhile.
        deaths.put_back(self.url, self.store, self.name, self.supervisor)
        if not allowed(self.watch, lambda why: self._is("waiting", why), stop):
            self.roster.leave(self.name, self.owner)
            return 0
        self._is("idle")
        self._start(self._look)
        queues = [] if self.recheck_after_s is None else [queue_again(machine.environment.key)]
        with at_work(self.url, self.name, machine.environment.device_class, self._perform, queues):
            after_s = self.recheck_after_s or IDLE_S
            self._start(partial(look_when_idle, self._look_for_stale, self._idle_s, self._leaving, after_s))
            _log.info("ready", extra={"slot": self.name, "device": machine.environment.device_class})
            while not stop.wait(ASK_S) and not self._leaving.is_set():
                pass
            self._leave("the daemon stops")
            self.turns.wait_free(STOP_S)
            with suppress(StoreError):
                if held := self._held:
                    deaths.let_go(self.jobs, *held)
            if stop.is_set():
                with suppress(StoreError):
                    self.roster.leave(self.name, self.owner)
            os._exit(0 if stop.is_set() else YIELDED)  # DBOS would call done what was let go

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="advisor-slot", daemon=True).start()

    def _leave(self, why: str) -> None:
        """Have what runs stopped, and nothing begun: the device is given back."""
        self._leaving.set()
        self._interrupt(why)

    # ---------------------------------------------------------------------------------------------------------- jobs

    def _perform(self, name: str, number: int) -> str:
        """Work on a job or a share of it until it is done; return why it failed, "" where it did not."""
        job = self._patiently(lambda: self.jobs.job(name))
        try:
            with self.turns.turn(is_last=job.submission.again is not None):
                return self._performed(name, number)
        finally:
            if self._leaving.is_set():
                threading.Event().wait()  # the process ends here, and the job goes back to its queue

    def _performed(self, name: str, number: int) -> str:
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
                self._patiently(lambda: shares.note_last(self.jobs, self.store, name))
            return ended.why if ended.outcome == "failed" else ""
        finally:
            self._is("idle")

    def _worked_on(self, job: Job, number: int) -> Ended:
        """Tune until the study is done, as often as the device is given back meanwhile."""
        if why := deaths.refusal(job, number):
            return Ended("failed", why)
        self._is("busy", "", job.id)
        self._held = job.id, number
        self._patiently(lambda: deaths.begin(self.jobs, job, number, self.supervisor))
        try:
            again = job.submission.again
            if again is None:
                self._fetch(job.submission)
                tuning = self.bench.tuning(job.submission)
            else:
                tuning = self._patiently(lambda: tuning_again(self.store, again, self.bench))
        except Interrupted as stopped:
            _log.info("stopped", extra={"slot": self.name, "job": job.id, "why": str(stopped)})
            return Ended()
        except AdvisorError as error:
            return Ended("failed", str(error))
        here = tuning.machine.environment.key
        if number and job.words.get("environment") != here:
            self._patiently(lambda: self.jobs.share(job, number + 1, shares.ELSEWHERE_S))
            return Ended()
        if not number:
            self._patiently(lambda: self.jobs.tell(job.id, environment=here))
        self._patiently(lambda: shares.offer(self.jobs, self.roster, job, number))
        while self._may_begin(job):
            if (ended := self._attempted(job, tuning)) is not None:
                return ended
            if again is not None and self.turns.is_wanted:
                self._let_pass(job, number)
        return Ended()

    def _let_pass(self, job: Job, number: int) -> None:
        """Let the job that waits have the device until it is done: what becomes of this process meanwhile is no death of this."""
        self._is("idle")
        self._patiently(lambda: deaths.let_go(self.jobs, job.id, number))
        self.turns.let_pass()
        if not self._leaving.is_set():
            self._held = job.id, number
            self._patiently(lambda: deaths.begin(self.jobs, job, number, self.supervisor))

    def _fetch(self, submission: Submission) -> None:
        """Bring the model here. Raises Interrupted where that was stopped, AdvisorError where it can't be."""
        self._runner = fetching = self.bench.fetching(submission)
        try:
            if self._leaving.is_set():  # since it was looked
                fetching.interrupt("the device is given back")
            fetching.run()
        finally:
            self._runner = None

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
                tuner.first = shares.noted(self.jobs, job, tuner.study, tuner.first)
                while not isinstance(step := next_step(seen := tuner.snapshot()), Done):
                    if job.submission.again is not None and self.turns.is_wanted:
                        raise Interrupted("what somebody submitted goes first")
                    carried_out(tuner, seen, step)
            return Ended("done", step.text)
        finally:
            runner.close()
            self._runner = None  # only now: until then the device's lock is this slot's own

    def _may_begin(self, job: Job) -> bool:
        """Whether to go on with a job: it is not over, and the device is not to be given back."""
        if hindrance := self.watch.hindrance():
            self._leave(hindrance)
        while not self._leaving.is_set():
            with suppress(StoreError):
                return self.jobs.job(job.id).is_open
            self._leaving.wait(AGAIN_S)
        return False

    def _is_due(self) -> bool:
        return bool(self._patiently(lambda: self.jobs.is_due(self.bench.machine.environment.device_class, self.name)))

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
        self._since = time.monotonic()
        self._state, self._why, self._job = state, why, job

    def _look_for_stale(self) -> str | None:
        """Queue something stale; where the device has other versions by now, the next process is to begin with them."""
        if not self.bench.is_as_it_was():
            _log.info("begins anew: its driver or a package was changed", extra={"slot": self.name})
            self._leave("a driver or a package was changed")
        elif self.recheck_after_s is not None:
            slots = self.roster.slots()
            cancel_outdated(self.jobs, {slot.environment.key for slot in slots})
            there = {slot.environment.key for slot in slots if slot.is_there()}
            return queue_stale(self.store, self.jobs, self.bench.machine.environment, there)
        return None

    def _idle_s(self) -> float:
        return time.monotonic() - self._since if self._state == "idle" else 0.0

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
