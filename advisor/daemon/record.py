"""Record: what DBOS keeps of our jobs, as rows: how one reads as a job, and what DBOS itself does not ask of them.

Its tables stand beside ours: in a file of their own beside a SQLite file, in the schema `dbos` of a PostgreSQL server.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select

from advisor.asking.submission import Again, Submission
from advisor.daemon.job import Job
from advisor.storage.place import file_of, place_of

#: What our workflows are called, and the application that they are of: a server's DBOS can have others' as well.
JOB, SHARE, APPLICATION = "job", "share", "advisor"

#: What DBOS calls the states of a workflow, and what they are called here.
_STATES = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "CANCELLED": "cancelled",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
}

#: Signs of an id, in the order of their codes: ids made later sort behind.
_SIGNS = "0123456789abcdefghjkmnpqrstvwxyz"


class Record:
    """The rows of workflows. What a database does wrong is SQLAlchemy's to say: `advisor.daemon.engine` tells it."""

    def __init__(self, engine: Engine, table: Any) -> None:
        """Read DBOS's table of workflows with its own connections."""
        self._engine, self._table = engine, table
        self._ours = table.c.application_name == APPLICATION

    def newest(self, state: str | None, first: int, most: int) -> list[str]:
        """Return the ids of jobs from the `first` on, the newest first; of a state alone where one is named."""
        row = self._table.c
        statuses = [status for status, ours in _STATES.items() if state in (None, ours)]
        # DBOS orders by the moment alone: of several that have one, a page would tell some again and leave others out.
        newest = (row.created_at.desc(), row.workflow_uuid.desc())
        asked = select(row.workflow_uuid).where(self._ours, row.name == JOB, row.status.in_(statuses)).order_by(*newest)
        with self._engine.connect() as connection:
            return list(connection.execute(asked.offset(first).limit(most)).scalars())

    def counts(self, queue: str | None) -> dict[str, int]:
        """Return how many jobs there are by state, of a queue alone where one is named."""
        # DBOS lists its workflows, and counts none: a queue of ten thousand would be read to be counted.
        row = self._table.c
        wanted = [self._ours, row.name == JOB, *([] if queue is None else [row.queue_name == queue])]
        counted = select(row.status, func.count()).where(*wanted).group_by(row.status)
        found: dict[str, int] = {}
        with self._engine.connect() as connection:
            for status, count in connection.execute(counted):
                found[_STATES[status]] = found.get(_STATES[status], 0) + int(count)
        return found

    def is_due(self, queue: str, version: str, slot: str) -> bool:
        """Whether something of a queue waits, or was handed out to a slot and is not over. version: of the application."""
        row = self._table.c
        here = (row.status == "ENQUEUED") | ((row.status == "PENDING") & (row.executor_id == slot))
        wanted = (self._ours, row.queue_name == queue, row.application_version == version, here)
        with self._engine.connect() as connection:
            return connection.execute(select(row.workflow_uuid).where(*wanted).limit(1)).first() is not None

    def before(self, names: Sequence[str]) -> dict[str, int]:
        """Return how many jobs stand before these in their queues, by id, in one question; who does not wait is left out."""
        row = self._table.c
        waiting = [status for status, ours in _STATES.items() if ours == "queued"]
        order = (row.priority.asc(), row.created_at.asc(), row.workflow_uuid.asc())  # as DBOS takes them
        place = func.row_number().over(partition_by=row.queue_name, order_by=order)
        queues = (
            select(row.workflow_uuid, place.label("place"))
            .where(self._ours, row.name == JOB, row.status.in_(waiting))
            .subquery()
        )
        asked = select(queues.c.workflow_uuid, queues.c.place).where(queues.c.workflow_uuid.in_(names))
        with self._engine.connect() as connection:
            return {name: int(number) - 1 for name, number in connection.execute(asked)}

    def began(self, names: Sequence[str]) -> dict[str, datetime]:
        """Return when workflows were taken up, by id; who was not is left out."""
        row = self._table.c
        asked = select(row.workflow_uuid, row.started_at_epoch_ms).where(self._ours, row.workflow_uuid.in_(names))
        with self._engine.connect() as connection:
            found = {name: _moment(began) for name, began in connection.execute(asked)}
        return {name: moment for name, moment in found.items() if moment is not None}

    def states(self, like: str) -> dict[str, str]:
        """Return the state of each job by its id, of those whose ids are like a pattern of SQL's."""
        row = self._table.c
        wanted = (self._ours, row.name == JOB, row.workflow_uuid.like(like))
        asked = select(row.workflow_uuid, row.status).where(*wanted)
        with self._engine.connect() as connection:
            return {name: _STATES[status] for name, status in connection.execute(asked)}

    def over_before(self, name: str, moment: datetime, most: int) -> list[str]:
        """Return the ids of workflows of a name that were over before a moment, at most so many: none that waits or runs."""
        row = self._table.c
        over = [status for status, ours in _STATES.items() if ours not in ("queued", "running")]
        ended_at = func.coalesce(row.completed_at, row.updated_at)
        wanted = (self._ours, row.name == name, row.status.in_(over))
        asked = select(row.workflow_uuid).where(*wanted, ended_at < moment.timestamp() * 1000).limit(most)
        with self._engine.connect() as connection:
            return list(connection.execute(asked).scalars())


def job_of(status: Any) -> Job:
    """Return a workflow's status, as DBOS reads it, as a job."""
    words = status.attributes or {}
    given = status.input["args"][0] if status.input and status.input.get("args") else {}
    options = (given.get("given", {}), given.get("priority", 0), given.get("device_class", ""))
    submission = Submission(str(given.get("model", "")), *options, Again.of(given.get("again")))
    return Job(
        status.workflow_id,
        submission,
        _STATES[status.status],
        _moment(status.created_at) or datetime.now(UTC),
        _moment(status.dequeued_at),
        _moment(status.completed_at),
        status.executor_id,
        words.get("study"),
        str(words.get("why", "")),
        words,
    )


def in_order(names: Sequence[str], listed: Sequence[Any]) -> list[Job]:
    """Return workflows as jobs in the order of these ids; who is gone since is left out."""
    found = {each.workflow_id: each for each in listed}
    return [job_of(found[name]) for name in names if name in found]


def beside(url: str) -> str:
    """Return the URL of DBOS's tables beside a store's: another file, or the same server."""
    place = place_of(url)
    path = file_of(place)
    if path is None:
        return place.set(drivername=place.get_backend_name()).render_as_string(hide_password=False)
    return f"sqlite:///{Path(path).with_name(f'{path.stem}-jobs{path.suffix}')}"


def new_id() -> str:
    """Return an id that nobody else has: the time in milliseconds, so that ids sort by age, and chance."""
    number, signs = (time.time_ns() // 10**6 << 30) | secrets.randbits(30), ""
    while number:
        number, sign = divmod(number, 32)
        signs = _SIGNS[sign] + signs
    return signs


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
