"""The seam of a slot: what it measures with. A real device's is `advisor.daemon.bench`; tests replay a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from advisor.asking.submission import Submission
from advisor.measure.runner import Runner
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.storage.study_record import StudyRecord
from advisor.study.tuning import Job as Tuning


class Stoppable(Runner, Protocol):
    """A runner that another thread can stop."""

    def interrupt(self, why: str) -> None:
        """Have what runs now killed at once, and nothing run from now on."""


class Bench(Protocol):
    """What a slot measures with: how a submission becomes a tune on its device, and what runs that."""

    machine: Machine

    def tuning(self, submission: Submission) -> Tuning:
        """Return what is to be tuned. Raises AdvisorError."""

    def again(self, study: StudyRecord, also: tuple[Configuration, ...], /) -> Tuning:
        """Return what measures the default of a study and these of its configurations again. Raises AdvisorError."""

    def is_as_it_was(self) -> bool:
        """Whether the device has the versions still that it had when the process began."""

    def runner(self, job: Tuning, listen: Callable[[Mapping[str, Any]], None], /) -> Stoppable:
        """Return what runs it."""
