"""Queues: in which one a job waits, and what it is called there."""

from __future__ import annotations

from advisor.asking.submission import Submission

#: What the ids begin with of jobs that measure a study again. No other id has an i.
_AGAIN = "again"


def queue_of(device_class: str) -> str:
    """Return the queue of the jobs that wait for a device of a class."""
    return f"device: {device_class}"


def queue_again(environment_key: str) -> str:
    """Return the queue of what is measured again in an environment: other devices of its class can be in another one."""
    return f"again: {environment_key}"


def queue_for(submission: Submission) -> str:
    """Return the queue that a submission waits in."""
    again = submission.again
    return queue_of(submission.device_class) if again is None else queue_again(again.environment)


def again_id(study: int | str, environment_key: str) -> str:
    """Return the id of the job that measures a study again in an environment. Both may be what stands for any."""
    return f"{_AGAIN}{study}x{environment_key}"


def again_study(name: str) -> int:
    """Return the number of the study that a job of such an id measures again."""
    return int(name.removeprefix(_AGAIN).partition("x")[0])


def again_environment(name: str) -> str:
    """Return the key of the environment that a job of such an id measures a study again in."""
    return name.rpartition("x")[2]
