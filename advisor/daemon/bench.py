"""The bench of a real device: a submission becomes a tune on it, and a worker process runs that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from advisor.asking.submission import Submission
from advisor.asking.verbs import job_again, job_of
from advisor.errors import BadInput
from advisor.measure.runner import LocalRunner
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.storage.study_record import StudyRecord
from advisor.study.tuning import Job


class DeviceBench:
    """A device of this machine. allow_pickle: whether models' pickles are loaded, which can run code."""

    def __init__(self, machine: Machine, *, allow_pickle: bool = False) -> None:
        """Measure on this device."""
        self.machine, self.allow_pickle = machine, allow_pickle

    def tuning(self, submission: Submission) -> Job:
        """Return what is to be tuned: the model is found, and fetched where it is the hub's. Raises AdvisorError."""
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
