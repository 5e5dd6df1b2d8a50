"""The engine: durable jobs on DBOS, and the only place of it. A job waits in a queue for a device of its class; slots take it.

A job is a DBOS workflow: its input is the submission, its attributes what is known of it since. One that ran on a slot which is
gone goes back to its queue (`recover`), and what it had measured is in the store. While it runs, a share of it waits in the same
queue behind the jobs of its priority: a slot that would idle takes that, and tunes the same study. DBOS keeps its tables beside
ours: in a file of its own beside a SQLite file, in the schema `dbos` of a PostgreSQL server.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from dbos import DBOS, DBOSClient, Serializer
from dbos import error as failures
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from advisor.asking.submission import MOST_PRIORITY, Submission
from advisor.daemon.job import Job, is_id
from advisor.daemon.queues import again_environment, again_id, again_study, queue_for, queue_of
from advisor.daemon.record import APPLICATION, JOB, SHARE, Record, beside, in_order, job_of, new_id
from advisor.errors import NotMeasured, StoreError, Unreachable
from advisor.storage.place import file_of, place_of, shown

#: The version of what our workflows' input means: hosts of other versions leave them alone.
VERSION = "1"

#: How often a slot looks for something to do, seconds. A trial takes seconds at least.
POLL_S = 0.25

#: How long a share that is over is kept: nobody asks for it, but whoever looks into a fault of today.
SHARES_KEPT = timedelta(days=1)

#: So many rows are removed in a transaction: others are not kept waiting for longer than a moment.
PRUNED_AT_ONCE = 500


class _Json(Serializer):
    """What DBOS stores of ours is JSON: the default is pickle, which runs code of whoever may write to the database."""

    def serialize(self, data: Any) -> str:
        """Return it as JSON, an exception by its words."""
        return json.dumps(data, default=lambda value: {"error": str(value)})

    def deserialize(self, serialized_data: str) -> Any:
        """Return what is meant; anything else than JSON as the text that it is."""
        try:
            return json.loads(serialized_data)
        except ValueError:
            return serialized_data

    def name(self) -> str:
        """What it is called in DBOS's rows."""
        return "advisor_json"


class Failed(Exception):
    """A job that could not be tuned, and why: so DBOS knows it."""


class Jobs:
    """The jobs of a database. Raises StoreError where it can't be reached; no call waits for a server that is away."""

    def __init__(self, url: str) -> None:
        """Open the jobs that belong to a store. Raises NotMeasured where no daemon ever ran on it."""
        self._url = url
        path = file_of(place_of(beside(url)))
        if path is not None and not path.exists():
            raise NotMeasured("no daemon has run on this database", "advisor serve")
        with _told(url):
            self._client = DBOSClient(
                system_database_url=beside(url),
                application_name=APPLICATION,
                retry_connection_errors=False,
                serializer=_Json(),
                lazy=True,
            )

    @property
    def _record(self) -> Record:
        """DBOS's rows, over the client's own connections: it opens them when it first asks for something."""
        return Record(self._client._sys_db.engine, self._client._sys_db.tables.workflow_status)

    def close(self) -> None:
        """Close every connection."""
        self._client.destroy()

    def submit(self, submission: Submission) -> str:
        """Have a job wait for a device of its class; return its id. What is measured again is one job, said once or more."""
        again = submission.again
        name = new_id() if again is None else again_id(again.study, again.environment)
        self._enqueue(JOB, name, submission, [submission.payload], after=0)
        return name

    def share(self, job: Job, number: int, delay_s: float = 0.0) -> None:
        """Have a share of a running job wait for a slot that would idle; said twice it is one."""
        self._enqueue(SHARE, f"{job.id}+{number}", job.submission, [job.id, number], after=1, delay_s=delay_s)

    def _enqueue(
        self, workflow: str, name: str, submission: Submission, given: list[Any], *, after: int, delay_s: float = 0.0
    ) -> None:
        # DBOS takes the lowest number first: a share stands behind every job of its priority.
        rank = 2 * (MOST_PRIORITY - submission.priority) + 1 + after
        options: dict[str, Any] = {
            "workflow_name": workflow,
            "queue_name": queue_for(submission),
            "workflow_id": name,
            "app_version": VERSION,
            "priority": rank,
            "workflow_id_reuse_policy": "return-existing" if workflow == SHARE or submission.again else "reject",
            **({"delay_seconds": delay_s} if delay_s else {}),
        }
        with _told(self._url):
            self._client.enqueue(options, *given)  # type: ignore[arg-type]

    def cancel(self, name: str) -> Job:
        """Cancel a job that waits or runs: its slot kills what it runs. Return it. Raises NotMeasured where there is none."""
        job = self.job(name)
        if job.is_open:
            with _told(self._url):
                self._client.cancel_workflow(job.id)
                job = self.job(job.id)
        return job

    def job(self, name: str) -> Job:
        """Return a job by its id, or by a beginning that no other one has. Raises NotMeasured."""
        found = []
        if is_id(name):
            with _told(self._url):
                found = self._client.list_workflows(
                    workflow_id_prefix=name, name=JOB, limit=2, application_name=APPLICATION
                )
        exact = [each for each in found if each.workflow_id == name] or found
        if len(exact) != 1:
            several = f"several jobs begin with {name!r}" if exact else f"there is no job {name!r}"
            raise NotMeasured(several, "advisor jobs lists them")
        return job_of(exact[0])

    def page(self, state: str | None = None, first: int = 0, most: int = 50) -> list[Job]:
        """Return jobs from the `first` on, the newest first, `most` at most; of a state alone where one is named."""
        with _told(self._url):
            names = self._record.newest(state, first, most)
            return in_order(names, self._client.list_workflows(workflow_ids=names)) if names else []

    def waiting(self, device_class: str | None = None) -> int:
        """Return how many jobs wait, for a device of a class alone where one is named."""
        queue = None if device_class is None else queue_of(device_class)
        return self._counted(queue).get("queued", 0)

    def is_due(self, device_class: str, slot: str) -> bool:
        """Whether a job or a share waits for a device of a class, or is on this slot: what is measured again is not meant."""
        with _told(self._url):
            return self._record.is_due(queue_of(device_class), VERSION, slot)

    def again(self, environment_key: str) -> dict[int, str]:
        """Return the state of each job that measures a study again in an environment, by the study's number."""
        with _told(self._url):
            found = self._record.states(again_id("%", environment_key))
        return {again_study(name): state for name, state in found.items()}

    def again_waiting(self) -> dict[str, str]:
        """Return the key of the environment of each job that waits to measure a study again, by the job's id."""
        with _told(self._url):
            found = self._record.states(again_id("%", "%"))
        return {name: again_environment(name) for name, state in found.items() if state == "queued"}

    def counts(self) -> dict[str, int]:
        """Return how many jobs there are by state."""
        return self._counted(None)

    def before(self, names: Sequence[str]) -> dict[str, int]:
        """Return how many jobs are to be taken up before these, by id, of those that wait."""
        with _told(self._url):
            return self._record.before(names) if names else {}

    def began(self, names: Sequence[str]) -> dict[str, datetime]:
        """Return when jobs were taken up, by id, of those that were."""
        with _told(self._url):
            return self._record.began(names) if names else {}

    def _counted(self, queue: str | None) -> dict[str, int]:
        with _told(self._url):
            return self._record.counts(queue)

    def is_cancelled(self, name: str) -> bool:
        """Whether a job was cancelled. Raises StoreError where nobody can say."""
        with _told(self._url):
            found = self._client.list_workflows(workflow_ids=[name], load_input=False, load_output=False)
        return bool(found) and found[0].status == "CANCELLED"

    def tell(self, name: str, **words: Any) -> None:
        """Note what is known of a job by now: its study, why it waits."""
        with _told(self._url):
            self._client.update_workflow_attributes(name, words, merge=True)

    def prune(self, kept: timedelta | None, shares_kept: timedelta = SHARES_KEPT) -> int:
        """Remove the jobs that were over so long ago, none where None, and what is left of shares; return how many.

        What was measured stays, and so does a job that waits or runs, however old. Raises StoreError.
        """
        removed, now = 0, datetime.now(UTC)
        for name, age in ((SHARE, shares_kept), (JOB, kept)):
            while age is not None:
                with _told(self._url):
                    some = self._record.over_before(name, now - age, PRUNED_AT_ONCE)
                    self._client.delete_workflows(some)
                removed += len(some)
                if len(some) < PRUNED_AT_ONCE:
                    break
        return removed

    def running_on(self, slots: Sequence[str]) -> list[str]:
        """Return the workflows that run on these slots, or did when the slots went."""
        with _told(self._url):
            found = self._client.list_workflows(
                status="PENDING", executor_id=list(slots), load_input=False, load_output=False
            )
        return [each.workflow_id for each in found]


def prepare(url: str) -> None:
    """Make DBOS's tables, or bring them to its version."""
    with _launched(url, "nobody", migrate=True):
        pass


def recover(url: str, slots: Sequence[str], patience_s: float = 10.0) -> list[str]:
    """Put what ran on slots that are gone back into its queue; return it. Raises StoreError where that took too long.

    DBOS does that for its own executor when it starts, so that it is started under each name for a moment, taking nothing up.
    """
    jobs = Jobs(url)
    put_back: list[str] = []
    try:
        for slot in slots:
            left = jobs.running_on([slot])
            if not left:
                continue
            with _launched(url, slot, migrate=False):
                until = time.monotonic() + patience_s
                while jobs.running_on([slot]) and time.monotonic() < until:
                    time.sleep(0.05)
            if jobs.running_on([slot]):
                raise StoreError(f"what ran on {slot} was not put back within {patience_s:.0f} s")
            put_back += left
    finally:
        jobs.close()
    return put_back


@contextmanager
def at_work(
    url: str, slot: str, device_class: str, perform: Callable[[str, int], str], more: Sequence[str] = ()
) -> Iterator[None]:
    """Take jobs up while this lasts, one at a time. more: queues beside that of the class, of which also one is taken at a time.

    perform: is called with a job's id and the number of the share, 0 for the job itself, in a thread of DBOS's. What it returns
    ends the job: why it failed, "" where it did not. It is called again, from the start, for a job that was put back.
    """

    @DBOS.workflow(name=JOB, max_recovery_attempts=None)
    def job(_: Any) -> None:
        if why := perform(str(DBOS.workflow_id), 0):
            raise Failed(why)

    @DBOS.workflow(name=SHARE, max_recovery_attempts=None)
    def share(name: str, number: int) -> None:
        perform(name, number)

    queues = [queue_of(device_class), *more]
    with _launched(url, slot, migrate=False, queues=queues):
        for queue in queues:
            DBOS.register_queue(queue, worker_concurrency=1, polling_interval_sec=POLL_S)
        yield


@contextmanager
def _launched(url: str, executor: str, *, migrate: bool, queues: Sequence[str] = ()) -> Iterator[None]:
    logging.getLogger("dbos").setLevel(logging.CRITICAL)  # what fails is told by us
    try:
        with _told(url):
            DBOS(
                config={
                    "name": APPLICATION,
                    "system_database_url": beside(url),
                    "application_version": VERSION,
                    "executor_id": executor,
                    "run_migrations": migrate,
                    "use_listen_notify": False,
                    "enable_otlp": False,
                    "log_level": "CRITICAL",
                    "serializer": _Json(),
                }
            )
            DBOS.listen_queues(list(queues))
            DBOS.launch()
        yield
    finally:
        DBOS.destroy(
            workflow_completion_timeout_sec=0
        )  # whatever came of it: there is one for a process, and it keeps its name


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Have what the database does wrong told in a line of our own."""
    try:
        yield
    except (NotMeasured, StoreError):
        raise
    except failures.DBOSException as error:
        raise StoreError(f"the jobs in {shown(place_of(url))} can't be used: {' '.join(str(error).split())}") from error
    except ProgrammingError as error:  # a server that has no such table
        raise NotMeasured("no daemon has run on this database", "advisor serve") from error
    except SQLAlchemyError as error:
        where = shown(place_of(url))
        text = str(getattr(error, "orig", error)).strip().splitlines()
        raise Unreachable(
            f"the jobs in {where} can't be reached: {text[0] if text else type(error).__name__}"
        ) from error
