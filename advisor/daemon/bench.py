"""The bench: what a slot measures with. That of a real device makes a tune on it of a submission; a worker process runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from advisor.asking.submission import Submission
from advisor.asking.verbs import job_again, job_of
from advisor.daemon.fetch import Fetch, Wanted
from advisor.errors import BadInput
from advisor.measure.runner import LocalRunner, Runner
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.storage.study_record import StudyRecord
from advisor.study.tuning import Job


class Stoppable(Protocol):
    """What another thread can stop."""

    @property
    def interrupted(self) -> str:
        """Why it was stopped, "" where it was not."""

    def interrupt(self, why: str) -> None:
        """Have what runs now killed at once, and nothing run from now on."""


class StoppableRunner(Runner, Stoppable, Protocol):
    """A runner that another thread can stop."""


class Fetching(Stoppable, Protocol):
    """What brings a model to this host."""

    def run(self) -> None:
        """Bring it, unless it is here. Raises AdvisorError, Interrupted where it was stopped."""


class Bench(Protocol):
    """What a slot measures with: how a submission becomes a tune on its device, and what runs that."""

    machine: Machine

    def fetching(self, submission: Submission) -> Fetching:
        """Return what brings the model here. Raises AdvisorError."""

    def tuning(self, submission: Submission) -> Job:
        """Return what is to be tuned, its model is here. Raises AdvisorError."""

    def again(self, study: StudyRecord, also: tuple[Configuration, ...], /) -> Job:
        """Return what measures the default of a study and these of its configurations again. Raises AdvisorError."""

    def is_as_it_was(self) -> bool:
        """Whether the device has the versions still that it had when the process began."""

    def runner(self, job: Job, listen: Callable[[Mapping[str, Any]], None], /) -> StoppableRunner:
        """Return what runs it."""


class DeviceBench:
    """A device of this machine. allow_pickle: whether models' pickles are loaded, which can run code.

    max_download: bytes that may be downloaded of a model, None for as many as the disk has room for.
    """

    def __init__(self, machine: Machine, *, allow_pickle: bool = False, max_download: int | None = None) -> None:
        """Measure on this device."""
        self.machine, self.allow_pickle, self.max_download = machine, allow_pickle, max_download

    def fetching(self, submission: Submission) -> Fetch:
        """Return what brings the model here where it is the hub's. Raises AdvisorError."""
        allows = submission.question.allow_pickle or self.allow_pickle
        return Fetch(Wanted(submission.model, allows, self.max_download))

    def tuning(self, submission: Submission) -> Job:
        """Return what is to be tuned: the model is here. Raises AdvisorError."""
        question = submission.question
        where = replace(
            question,
            device=self.machine.user_device,
            threads=question.threads or self.machine.environment.threads or None,
            allow_pickle=question.allow_pickle or self.allow_pickle,
        )
        job, _ = job_of(where, submission.effort(question))
        return job

    def again(self, study: StudyRecord, also: tuple[Configuration, ...]) -> Job:
        """Return what measures the default of a study and these of its configurations again. Raises AdvisorError."""
        threads = self.machine.environment.threads or None
        return job_again(study, also, self.machine.user_device, threads, allow_pickle=self.allow_pickle)

    def is_as_it_was(self) -> bool:
        """Whether the device has the versions still that it had when the process began: the driver's, and the packages'."""
        from advisor.machine import probe

        try:
            now = probe.machine(self.machine.user_device, self.machine.environment.threads or None)
        except BadInput:  # amid an upgrade: the next look sees what came of it
            return True
        return now.environment.key == self.machine.environment.key

    def runner(self, job: Job, listen: Callable[[Mapping[str, Any]], None]) -> LocalRunner:
        """Return a runner whose worker is started when it is needed."""
        return LocalRunner(job.machine, listen, is_by_hand=False)
