"""The database's verbs: rows to nouns and back. The only reader and writer, on SQLite and on PostgreSQL alike.

SQLAlchemy Core only, and Alembic only inside `upgrade`: `advisor suggest` answers within milliseconds. Every verb is
one transaction. What the database or its server does wrong becomes one StoreError with one line: no SQL, no password.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    inspect,
    make_url,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from advisor.configuration import Configuration, canonical_json, key_of
from advisor.environment import Environment
from advisor.errors import BadInput, NotMeasured, StoreError
from advisor.knobs.choice import Reason, Verdict
from advisor.measurement import STATISTIC, Comparison, Measurement
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.tables import (
    COMPARISONS,
    CONFIGURATIONS,
    ENVIRONMENTS,
    HEAD,
    MEASUREMENTS,
    METADATA,
    MODELS,
    REFUSALS,
    REVISIONS,
    STUDIES,
    TRIALS,
    WORKLOADS,
)
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import Workload, workload_of

#: How long a writer waits for another one on SQLite, in seconds.
LOCK_WAIT_S = 10

#: How long a PostgreSQL server may take to answer a connection, in seconds.
CONNECT_WAIT_S = 5

#: What a study can be.
STATES = ("running", "done", "failed", "interrupted")

#: The trial's plain numbers: the same names in the noun and in the table.
_FIGURES = ("load_s", "first_call_s", "measure_s", "wall_s", "peak_bytes", "weight_bytes")

# A table's second and third role in a query. Made once: an alias costs more time than the query it is used in.
_REQUESTED, _EFFECTIVE = CONFIGURATIONS.alias("requested"), CONFIGURATIONS.alias("effective")
_CANDIDATE, _BASELINE = CONFIGURATIONS.alias("candidate"), CONFIGURATIONS.alias("baseline")
_SOURCE, _MINE, _OTHERS = TRIALS.alias("source"), STUDIES.alias("mine"), MODELS.alias("others")


@dataclass(frozen=True)
class StudyRecord:
    """A study with all that says what it was about; `facts` come from any model of the same architecture."""

    id: int
    environment: Environment
    environment_key: str
    objective: Objective
    model_name: str
    weights_digest: str
    workload: Workload
    state: str
    started_at: datetime
    finished_at: datetime | None
    facts: ModelFacts | None
    workload_key: str


# ---------------------------------------------------------------------------------------------- where the database is


def default_url() -> str:
    """Return ADVISOR_DATABASE_URL, or the SQLite file in the user's data directory. Nothing is created."""
    url = os.environ.get("ADVISOR_DATABASE_URL", "")
    if url:
        return _with_driver(url)
    import platformdirs

    return f"sqlite:///{platformdirs.user_data_dir('advisor')}/advisor.db"


def shown_url(url: str) -> str:
    """Return the URL for people: without a password, and without the query, which can hold one too."""
    try:
        return _shown(make_url(_with_driver(url)))
    except (ArgumentError, ValueError):
        return "the database URL"


def upgrade(url: str) -> str:
    """Create the database or bring it to this version's schema; return the revision. Raises StoreError, BadInput."""
    place = _place(url)
    _make_directory(place)
    engine = _engine(place, write=True)
    try:
        with _told(place):
            return _upgrade(engine)
    finally:
        engine.dispose()


def _upgrade(engine: Engine) -> str:
    """Run the migrations in one transaction, after whoever else is running them now."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('advisor schema'))"))
        _refuse_newer(_revision(connection))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return HEAD


def _scripts() -> Path:
    """Return the migrations' directory: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"


def _revision(connection: Connection) -> str | None:
    """Return the schema's revision, or None where there is no schema yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in REVISIONS:
        raise StoreError(f"the database is from a newer advisor (revision {revision})", "upgrade advisor")


def _with_driver(url: str) -> str:
    """Name the driver we bring: SQLAlchemy's default for postgresql:// is another one."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def _place(url: str) -> URL:
    try:
        place = make_url(_with_driver(url))
        known = place.get_backend_name() in ("sqlite", "postgresql")
    except (ArgumentError, ValueError):
        raise BadInput("the database URL can't be read", "sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    if not known:
        raise BadInput(f"no database of the kind {place.drivername!r}", "sqlite:///PATH or postgresql://USER@HOST/NAME")
    return place


def database_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, None for a server. Raises BadInput where the URL can't be read."""
    return _file(_place(url))


def _file(place: URL) -> Path | None:
    """Return the SQLite file, or None for a server and for a database in memory."""
    if place.get_backend_name() != "sqlite" or place.database in (None, "", ":memory:"):
        return None
    return Path(str(place.database))


def _shown(place: URL) -> str:
    path = _file(place)
    bare = place.set(drivername=place.get_backend_name(), query={})
    return str(path) if path else bare.render_as_string(hide_password=True)


def _make_directory(place: URL) -> None:
    path = _file(place)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the directory of {path} can't be made: {error.strerror}") from error


# ----------------------------------------------------------------------------------------- connections and their errors


def _engine(place: URL, *, write: bool) -> Engine:
    try:
        if place.get_backend_name() == "postgresql":
            waits = {"connect_timeout": CONNECT_WAIT_S, **place.query}
            return create_engine(place.set(query={}), hide_parameters=True, pool_pre_ping=True, connect_args=waits)
        engine = create_engine(place if write else _for_reading(place), hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"the driver of {_shown(place)} is not installed", "pip install 'psycopg[binary]'") from error

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, and nowhere else
        connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_S * 1000}")
        connection.execute("PRAGMA foreign_keys = ON")
        if write:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        else:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that becomes one later would be refused instead of waiting.
        writes = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _for_reading(place: URL) -> URL:
    """Return the URL that opens a SQLite file without ever creating it.

    Where we may write, the reader may tidy up SQLite's shared files after itself, and `query_only` keeps it from
    writing rows. In a directory we can't write to, SQLite can't make those files: there the database is read as one
    that doesn't change (immutable), unless a writer's log lies beside it, which has to be read too.
    """
    path = _file(place)
    if path is None:
        return place
    directory_is_ours = os.access(path.parent, os.W_OK)
    query = {"uri": "true", "mode": "rw" if directory_is_ours and os.access(path, os.W_OK) else "ro"}
    if not directory_is_ours and not Path(f"{path}-wal").exists():
        query["immutable"] = "1"
    return place.set(database="file:" + quote(str(path.absolute())), query=query)


@contextmanager
def _told(place: URL) -> Iterator[None]:
    """Turn whatever the driver raises into a StoreError."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise _in_one_line(error, place) from error


#: What SQLite says, and what it means.
_SQLITE_SAYS = (
    ("file is not a database", "{at} is not an advisor database: it isn't SQLite at all"),
    ("malformed", "{at} is damaged: {said}"),
    ("readonly", "{at} can't be written: the file or its directory is read-only"),
    ("unable to open", "{at} can't be opened: no such directory, not a file, or no permission"),
    ("is full", "{at} can't be written: the disk is full"),
    ("locked", f"{{at}} has been locked by another process for more than {LOCK_WAIT_S} s"),
)


def _in_one_line(error: Exception, place: URL) -> StoreError:
    """Return what happened in words: what the driver said, without the SQL and without the password."""
    at, cause = _shown(place), getattr(error, "orig", None) or error
    said = " ".join(str(getattr(getattr(cause, "diag", None), "message_primary", None) or cause).split())
    if place.password:
        said = said.replace(str(place.password), "***")
    if place.get_backend_name() == "sqlite":
        for part, words in _SQLITE_SAYS:
            if part in said:
                return StoreError(words.format(at=at, said=said))
    elif getattr(error, "connection_invalidated", False) or "connect" in said or "resolve host" in said:
        return StoreError(f"the database {at} can't be reached: {said.split(' Is the server running')[0][:300]}")
    return StoreError(f"the database {at} could not do it: {said[:300]}")


class Store:
    """An open database. Safe to share between threads; a process that forks opens its own."""

    def __init__(self, place: URL, engine: Engine) -> None:
        """Keep the place for messages; use :meth:`open`."""
        self._place = place
        self._engine = engine

    @classmethod
    def open(cls, url: str, *, write: bool) -> Store:
        """Open the database; a writer creates it where there is none.

        Raises NotMeasured where there is nothing to read, StoreError where it can't be opened, is read-only for a
        writer, or has another schema than this version of advisor, BadInput where the URL is none.
        """
        place = _place(url)
        path = _file(place)
        if write:
            _make_directory(place)
        elif path is not None and not path.exists():
            raise _no_database(place)
        store = cls(place, _engine(place, write=write))
        try:
            store._check(write)
        except BaseException:
            store.close()
            raise
        return store

    def _check(self, write: bool) -> None:
        """See that the schema is ours, and that a writer may write, before anything is measured."""
        with self._writing() if write else self._reading() as connection:
            revision = _revision(connection)
        _refuse_newer(revision)
        if revision is None and not write:
            raise _no_database(self._place)
        if revision is None:
            with _told(self._place):
                _upgrade(self._engine)
        elif revision != HEAD:
            raise StoreError(f"the database is from an older advisor (revision {revision})", "advisor db upgrade")

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _told(self._place), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        options = {"write": True}
        with _told(self._place), self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    # ------------------------------------------------------------------------------------------------------- studies

    def open_study(
        self,
        source: ModelSource,
        workload: Workload,
        environment: Environment,
        objective: Objective,
        budget: Budget,
        seed: int,
    ) -> int:
        """Return the id of the study of this workload, environment, model and objective, found or made; it runs again.

        A study that is found takes the new budget and keeps the seed it began with.
        """
        aim = _json(objective.payload)
        with self._writing() as connection:
            key = {
                "workload_id": _workload_id(connection, workload, source.architecture_key),
                "environment_id": _environment_id(connection, environment),
                "model_id": _model_id(connection, source),
                "objective_key": key_of(objective.payload),
            }
            more = {"objective": aim, "seed": seed, "started_at": _now(), "budget": "{}", "state": "running"}
            study_id = _found_or_made(connection, STUDIES, key, more)
            running = {"state": "running", "finished_at": None, "budget": _json(budget.payload)}
            connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(running))
        return study_id

    def close_study(self, study_id: int, state: str) -> None:
        """Say how the study ended: "done", "failed" or "interrupted"."""
        if state not in STATES:
            raise ValueError(f"a study is one of {', '.join(STATES)}, not {state!r}")
        ended = None if state == "running" else _now()
        with self._writing() as connection:
            connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(state=state, finished_at=ended))

    def studies_for(self, architecture_key: str, workload_key: str) -> list[StudyRecord]:
        """Return the studies of this workload on this architecture, newest first."""
        with self._reading() as connection:
            return _studies(connection, MODELS.c.architecture_key == architecture_key, WORKLOADS.c.key == workload_key)

    def study(self, study_id: int) -> StudyRecord:
        """Return one study."""
        with self._reading() as connection:
            return _studies(connection, STUDIES.c.id == study_id)[0]

    def neighbours(self, architecture_key: str) -> list[StudyRecord]:
        """Return all studies of this architecture, whatever the workload, newest first."""
        with self._reading() as connection:
            return _studies(connection, MODELS.c.architecture_key == architecture_key)

    def environments(self) -> list[tuple[str, Environment]]:
        """Return the key and the environment of each one with a trial that is ok, the newest first."""
        measured = exists().where(
            STUDIES.c.environment_id == ENVIRONMENTS.c.id, TRIALS.c.study_id == STUDIES.c.id, TRIALS.c.outcome == "ok"
        )
        newest = (ENVIRONMENTS.c.first_seen.desc(), ENVIRONMENTS.c.id.desc())
        statement = select(ENVIRONMENTS.c.key, ENVIRONMENTS.c.payload).where(measured).order_by(*newest)
        with self._reading() as connection:
            rows = connection.execute(statement).all()
        return [(row.key, Environment.of(json.loads(row.payload))) for row in rows]

    # --------------------------------------------------------------------------------------------------------- facts

    def facts(self, source: ModelSource) -> ModelFacts | None:
        """Return what is known of the model's architecture, from these weights if they were read, else from others.

        Facts of another version of advisor that can't be understood are as good as none: they are read again.
        """
        same = MODELS.c.weights_digest == source.weights_digest
        statement = select(MODELS.c.facts).where(
            MODELS.c.architecture_key == source.architecture_key, MODELS.c.facts.is_not(None)
        )
        with self._reading() as connection:
            return _facts(connection.execute(statement.order_by(same.desc(), MODELS.c.id.desc()).limit(1)).scalar())

    def save_facts(self, source: ModelSource, facts: ModelFacts) -> None:
        """Store what a worker read of the model."""
        payload = _json(facts.payload)
        with self._writing() as connection:
            model_id = _model_id(connection, source)
            connection.execute(update(MODELS).where(MODELS.c.id == model_id).values(facts=payload))

    # -------------------------------------------------------------------------------------------------------- trials

    def trials(self, study_id: int, *, full: bool = False) -> list[Trial]:
        """Return the study's trials by number, running ones too; readings and device states only when `full`."""
        with self._reading() as connection:
            return [trial for _, trial in _trials(connection, TRIALS.c.study_id == study_id, full=full)]

    def start_trial(
        self, study_id: int, requested: Configuration, *, phase: str, block: int | None, owner: str, lease_s: float
    ) -> int:
        """Write down that `owner` begins a trial, and return its number, the study's next. Leases are in seconds."""
        with self._writing() as connection:
            # Numbers are given out one by one: SQLite has one writer anyway, PostgreSQL waits for this row.
            study = select(STUDIES.c.id).where(STUDIES.c.id == study_id).with_for_update()
            if connection.execute(study).scalar() is None:
                raise StoreError(f"there is no study {study_id}")
            last = connection.execute(select(func.max(TRIALS.c.number)).where(TRIALS.c.study_id == study_id)).scalar()
            number = 0 if last is None else int(last) + 1
            row = {
                "study_id": study_id, "number": number, "phase": phase, "block": block, "attempts": 1,
                "requested_id": _configuration_ids(connection, requested)[requested], "outcome": "running",
                "reason": "", "owner": owner, "lease": _now(lease_s), "started_at": _now(),
                "advisor_version": _version(),
            }  # fmt: skip
            connection.execute(insert(TRIALS).values(row))
        return number

    def renew(self, study_id: int, number: int, lease_s: float) -> None:
        """Let a running trial's lease end `lease_s` seconds from now; a released trial stays released."""
        running = _running(study_id, number).values(lease=_now(lease_s))
        with self._writing() as connection:
            connection.execute(running.where(TRIALS.c.owner.is_not(None)))

    def release(self, study_id: int, number: int) -> None:
        """Give a running trial up: it is abandoned from now on."""
        with self._writing() as connection:
            connection.execute(_running(study_id, number).values(owner=None, lease=None))

    def abandoned(
        self, study_id: int, is_alive: Callable[[str], bool]
    ) -> list[tuple[int, Configuration, str, int | None]]:
        """Return number, configuration, phase and block of running trials that nobody runs any more.

        Those are the ones whose lease has passed, or whose owner is gone. They are released here, unless the owner
        changed since they were read, so that of all who see them one can :meth:`claim` each.
        """
        columns = [TRIALS.c[name] for name in ("number", "phase", "block", "owner", "lease")]
        statement = (
            select(*columns, CONFIGURATIONS.c.payload)
            .join(CONFIGURATIONS, CONFIGURATIONS.c.id == TRIALS.c.requested_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.outcome == "running")
            .order_by(TRIALS.c.number)
        )
        with self._reading() as connection:
            rows = connection.execute(statement).all()
        left = [row for row in rows if _is_left(row, is_alive)]
        if not left:
            return []
        with self._writing() as connection:
            for row in left:
                same = (TRIALS.c.owner == row.owner, TRIALS.c.lease == row.lease)
                connection.execute(_running(study_id, row.number).where(*same).values(owner=None, lease=None))
        return [(row.number, _configuration(row.payload), row.phase, row.block) for row in left]

    def claim(self, study_id: int, number: int, owner: str, lease_s: float) -> bool:
        """Take an abandoned trial over; False where somebody else did. It counts as one more attempt."""
        free = or_(TRIALS.c.owner.is_(None), TRIALS.c.lease < _now())
        taken = {"owner": owner, "lease": _now(lease_s), "attempts": TRIALS.c.attempts + 1}
        with self._writing() as connection:
            return connection.execute(_running(study_id, number).where(free).values(taken)).rowcount == 1

    def finish_trial(self, study_id: int, trial: Trial, *, reused_from_id: int | None = None) -> None:
        """Write what came of a started trial, in one transaction. Finishing it again replaces what was written.

        reused_from_id: the row (from :meth:`reusable`) whose measurements these are; without it `trial.reused_from` is
        a number in this study. The attempts stored are never fewer than the claims. Raises ValueError for figures that
        are not finite, StoreError where the trial was never started.
        """
        values, measured = _trial_values(trial), [_measurement_values(m) for m in trial.measurements]
        mine = (TRIALS.c.study_id == study_id, TRIALS.c.number == trial.number)
        row = select(TRIALS.c.id, TRIALS.c.attempts).where(*mine).with_for_update()
        with self._writing() as connection:
            ids = _configuration_ids(connection, trial.requested, trial.effective)
            started = connection.execute(row).one_or_none()
            if started is None:
                raise StoreError(f"study {study_id} has no trial {trial.number}")
            values |= {
                "requested_id": ids[trial.requested],
                "effective_id": ids[trial.effective] if trial.effective is not None else None,
                "reused_from": reused_from_id or _row_id(connection, study_id, trial.reused_from),
                "attempts": max(started.attempts, trial.attempts),
            }
            connection.execute(update(TRIALS).where(TRIALS.c.id == started.id).values(values))
            connection.execute(delete(MEASUREMENTS).where(MEASUREMENTS.c.trial_id == started.id))
            if measured:
                connection.execute(insert(MEASUREMENTS), [{**each, "trial_id": started.id} for each in measured])

    def reusable(self, study_id: int, requested: Configuration) -> tuple[int, Trial] | None:
        """Return the row id and the trial of the newest ok search trial, in another study, that asked for the same.

        The same: this configuration, on the same workload, environment and weights. A trial that was reused itself
        is no evidence of its own.
        """
        same = [STUDIES.c[name] == _MINE.c[name] for name in ("workload_id", "environment_id", "model_id")]
        statement = (
            select(TRIALS.c.id)
            .join(STUDIES, STUDIES.c.id == TRIALS.c.study_id)
            .join(_MINE, (_MINE.c.id == study_id) & (_MINE.c.id != STUDIES.c.id))
            .join(CONFIGURATIONS, CONFIGURATIONS.c.id == TRIALS.c.requested_id)
            .where(*same, CONFIGURATIONS.c.key == requested.key, TRIALS.c.outcome == "ok", TRIALS.c.phase == "search")
            .where(TRIALS.c.reused_from.is_(None))
            .order_by(TRIALS.c.finished_at.desc(), TRIALS.c.id.desc())
            .limit(1)
        )
        with self._reading() as connection:
            found = connection.execute(statement).scalar()
            return None if found is None else _trials(connection, TRIALS.c.id == found, full=True)[0]

    # --------------------------------------------------------------------------------------- comparisons and refusals

    def save_comparisons(self, study_id: int, comparisons: Sequence[Comparison]) -> None:
        """Store these as the study's comparisons, instead of what was stored. Raises StoreError for an unknown key."""
        keys = {key for comparison in comparisons for key in (comparison.candidate, comparison.baseline)}
        rows = [{"study_id": study_id, **_comparison_values(comparison)} for comparison in comparisons]
        known = select(CONFIGURATIONS.c.key, CONFIGURATIONS.c.id).where(CONFIGURATIONS.c.key.in_(keys))
        with self._writing() as connection:
            ids = {row.key: row.id for row in connection.execute(known)}
            if missing := keys - set(ids):
                raise StoreError(f"compared, but not stored: configuration {', '.join(sorted(missing))}")
            connection.execute(delete(COMPARISONS).where(COMPARISONS.c.study_id == study_id))
            for row, comparison in zip(rows, comparisons, strict=True):
                row |= {"candidate_id": ids[comparison.candidate], "baseline_id": ids[comparison.baseline]}
            if rows:
                connection.execute(insert(COMPARISONS), rows)

    def comparisons(self, study_id: int) -> list[Comparison]:
        """Return the study's comparisons in the order they were saved."""
        statement = (
            select(_CANDIDATE.c.key.label("candidate"), _BASELINE.c.key.label("baseline"), COMPARISONS.c.block_ratios)
            .select_from(COMPARISONS)
            .join(_CANDIDATE, _CANDIDATE.c.id == COMPARISONS.c.candidate_id)
            .join(_BASELINE, _BASELINE.c.id == COMPARISONS.c.baseline_id)
            .where(COMPARISONS.c.study_id == study_id)
            .order_by(COMPARISONS.c.id)
        )
        with self._reading() as connection:
            rows = connection.execute(statement).all()
        return [Comparison(row.candidate, row.baseline, tuple(json.loads(row.block_ratios))) for row in rows]

    def save_refusals(self, study_id: int, reasons: Iterable[Reason]) -> None:
        """Store these as the study's refusals, instead of what was stored: a row per subject, about and rule."""
        rows = {
            (reason.subject, reason.about, reason.rule): {
                "study_id": study_id, "subject": reason.subject, "about": reason.about, "rule": reason.rule,
                "verdict": str(reason.verdict), "reason": _plain(reason.text), "remedy": _plain(reason.remedy),
            }
            for reason in reasons
        }  # fmt: skip
        with self._writing() as connection:
            connection.execute(delete(REFUSALS).where(REFUSALS.c.study_id == study_id))
            if rows:
                connection.execute(insert(REFUSALS), list(rows.values()))

    def refusals(self, study_id: int) -> list[Reason]:
        """Return the study's refusals in the order they were saved."""
        statement = select(REFUSALS).where(REFUSALS.c.study_id == study_id).order_by(REFUSALS.c.id)
        with self._reading() as connection:
            rows = connection.execute(statement).all()
        return [Reason(r.rule, Verdict(r.verdict), r.reason, r.remedy, r.about, r.subject) for r in rows]

    def counts(self) -> dict[str, int]:
        """Return the number of rows of every table."""
        with self._reading() as connection:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in METADATA.sorted_tables
            }


# ------------------------------------------------------------------------------------------------------ nouns to rows


def _no_database(place: URL) -> NotMeasured:
    return NotMeasured(f"no database at {_shown(place)} yet", "advisor tune MODEL")


def _now(later_s: float = 0.0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=later_s)


def _version() -> str:
    import advisor

    return str(getattr(advisor, "__version__", "unknown"))


def _plain(words: str) -> str:
    """Return text that both databases take: no NUL (PostgreSQL), no half characters (from a worker's output)."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    return _plain(canonical_json(value))


def _finite(name: str, value: float | None) -> float | None:
    """Refuse what has no place in the database: SQLite would turn NaN into NULL in silence."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is not finite: {value}")
    return value


def _found_or_made(connection: Connection, table: Table, key: Mapping[str, Any], more: Mapping[str, Any]) -> int:
    """Return the id of the row with this unique key. Two processes that make it at once get the same row."""
    statement = select(table.c.id).where(*(table.c[name] == value for name, value in key.items()))
    found = connection.execute(statement).scalar()
    if found is None:
        _insert_unless_there(connection, table, {**key, **more})
        found = connection.execute(statement).scalar_one()
    return int(found)


def _insert_unless_there(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        connection.execute(postgresql.insert(table).values(values).on_conflict_do_nothing())
    else:
        from sqlalchemy.dialects import sqlite

        connection.execute(sqlite.insert(table).values(values).on_conflict_do_nothing())


def _workload_id(connection: Connection, workload: Workload, architecture_key: str) -> int:
    key = {"key": workload.key_for(architecture_key)}
    more = {"kind": workload.kind, "architecture_key": architecture_key, "payload": _json(workload.payload)}
    return _found_or_made(connection, WORKLOADS, key, more)


def _environment_id(connection: Connection, environment: Environment) -> int:
    more = {"payload": _json(environment.payload), "first_seen": _now()}
    return _found_or_made(connection, ENVIRONMENTS, {"key": environment.key}, more)


def _model_id(connection: Connection, source: ModelSource) -> int:
    """Return the model's row; it goes by the name it was last asked for by."""
    key = {"architecture_key": source.architecture_key, "weights_digest": source.weights_digest}
    model_id, name = _found_or_made(connection, MODELS, key, {"name": _plain(source.name)}), _plain(source.name)
    connection.execute(update(MODELS).where(MODELS.c.id == model_id, MODELS.c.name != name).values(name=name))
    return model_id


def _configuration_ids(connection: Connection, *configurations: Configuration | None) -> dict[Configuration, int]:
    """Return the rows of these configurations, made in one order by everybody, so that nobody waits in a circle."""
    wanted = sorted({c for c in configurations if c is not None}, key=lambda c: c.key)
    return {c: _found_or_made(connection, CONFIGURATIONS, {"key": c.key}, {"payload": _json(dict(c))}) for c in wanted}


def _row_id(connection: Connection, study_id: int, number: int | None) -> int | None:
    if number is None:
        return None
    statement = select(TRIALS.c.id).where(TRIALS.c.study_id == study_id, TRIALS.c.number == number)
    return connection.execute(statement).scalar()


def _running(study_id: int, number: int) -> Any:
    """Return the UPDATE of one trial that is still running."""
    mine = (TRIALS.c.study_id == study_id, TRIALS.c.number == number)
    return update(TRIALS).where(*mine, TRIALS.c.outcome == "running")


def _is_left(row: Row[*tuple[Any, ...]], is_alive: Callable[[str], bool]) -> bool:
    """Whether nobody runs this trial: released, past its lease, or its owner is gone."""
    return row.owner is None or row.lease is None or row.lease < _now() or not is_alive(row.owner)


def _trial_values(trial: Trial) -> dict[str, Any]:
    if trial.outcome is Outcome.RUNNING:
        raise ValueError(f"trial {trial.number} is still running")
    return {
        "phase": trial.phase, "block": trial.block, "outcome": str(trial.outcome), "reason": _plain(trial.reason),
        "lease": None, "finished_at": _now(), "reading": _json(dict(trial.reading)),
        "quality": _json(trial.quality.payload) if trial.quality is not None else None,
        **{name: _finite(name, getattr(trial, name)) for name in _FIGURES},
    }  # fmt: skip


def _measurement_values(measurement: Measurement) -> dict[str, Any]:
    low, high = measurement.interval
    return {
        "metric": measurement.metric, "unit": measurement.unit, "phase": measurement.phase, "statistic": STATISTIC,
        "samples": _json(list(measurement.samples)), "n": len(measurement.samples),
        "median": measurement.median, "low": low, "high": high, "device_state": _json(dict(measurement.device_state)),
    }  # fmt: skip


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    low, high = comparison.interval
    return {
        "ratio": _finite("ratio", comparison.ratio), "low": _finite("low", low), "high": _finite("high", high),
        "block_ratios": _json(list(comparison.block_ratios)), "blocks": len(comparison.block_ratios),
        "verdict": comparison.verdict, "made_at": _now(),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ rows to nouns


@lru_cache(maxsize=4096)
def _configuration(payload: str) -> Configuration:
    return Configuration.of(json.loads(payload))


def _facts(payload: str | None) -> ModelFacts | None:
    """Return the facts, or None where there are none that this version understands."""
    if payload is None:
        return None
    try:
        return ModelFacts.of(json.loads(payload))
    except TypeError:
        return None


def _studies(connection: Connection, *conditions: ColumnElement[bool]) -> list[StudyRecord]:
    same = (_OTHERS.c.architecture_key == MODELS.c.architecture_key, _OTHERS.c.facts.is_not(None))
    facts = func.coalesce(MODELS.c.facts, select(_OTHERS.c.facts).where(*same).limit(1).scalar_subquery())
    statement = (
        select(
            STUDIES.c.id, STUDIES.c.objective, STUDIES.c.state, STUDIES.c.started_at, STUDIES.c.finished_at,
            ENVIRONMENTS.c.key.label("environment_key"), ENVIRONMENTS.c.payload.label("environment"),
            MODELS.c.name, MODELS.c.weights_digest, facts.label("facts"),
            WORKLOADS.c.key.label("workload_key"), WORKLOADS.c.payload.label("workload"),
        )
        .join(WORKLOADS, WORKLOADS.c.id == STUDIES.c.workload_id)
        .join(ENVIRONMENTS, ENVIRONMENTS.c.id == STUDIES.c.environment_id)
        .join(MODELS, MODELS.c.id == STUDIES.c.model_id)
        .where(*conditions)
        .order_by(STUDIES.c.started_at.desc(), STUDIES.c.id.desc())
    )  # fmt: skip
    return [_study(row) for row in connection.execute(statement)]


def _study(row: Row[*tuple[Any, ...]]) -> StudyRecord:
    return StudyRecord(
        id=row.id,
        environment=Environment.of(json.loads(row.environment)),
        environment_key=row.environment_key,
        objective=Objective.of(json.loads(row.objective)),
        model_name=row.name,
        weights_digest=row.weights_digest,
        workload=workload_of(json.loads(row.workload)),
        state=row.state,
        started_at=row.started_at,
        finished_at=row.finished_at,
        facts=_facts(row.facts),
        workload_key=row.workload_key,
    )


def _trials(connection: Connection, condition: ColumnElement[bool], *, full: bool) -> list[tuple[int, Trial]]:
    """Return row ids and trials by number."""
    measured: dict[int, list[Measurement]] = {}
    for row in connection.execute(_measurements_where(condition, full=full)):
        samples, state = tuple(json.loads(row.samples)), json.loads(row.device_state) if full else {}
        measured.setdefault(row.trial_id, []).append(Measurement(row.metric, row.unit, samples, row.phase, state))
    rows = connection.execute(_trials_where(condition, full=full)).all()
    return [(row.id, _trial(row, tuple(measured.get(row.id, ())), full=full)) for row in rows]


def _trials_where(condition: ColumnElement[bool], *, full: bool) -> Select[Any]:
    names = ("id", "number", "outcome", "reason", "phase", "block", "quality", "attempts", *_FIGURES)
    columns = [TRIALS.c[name] for name in (*names, "reading")[: None if full else -1]]
    of_this_study = (_SOURCE.c.id == TRIALS.c.reused_from) & (_SOURCE.c.study_id == TRIALS.c.study_id)
    return (
        select(
            *columns,
            _REQUESTED.c.payload.label("requested"),
            _EFFECTIVE.c.payload.label("effective"),
            _SOURCE.c.number.label("reused_from"),
        )
        .join(_REQUESTED, _REQUESTED.c.id == TRIALS.c.requested_id)
        .outerjoin(_EFFECTIVE, _EFFECTIVE.c.id == TRIALS.c.effective_id)
        .outerjoin(_SOURCE, of_this_study)
        .where(condition)
        .order_by(TRIALS.c.number)
    )


def _measurements_where(condition: ColumnElement[bool], *, full: bool) -> Select[Any]:
    names = ("trial_id", "metric", "unit", "phase", "samples", "device_state")[: None if full else -1]
    return (
        select(*(MEASUREMENTS.c[name] for name in names))
        .join(TRIALS, TRIALS.c.id == MEASUREMENTS.c.trial_id)
        .where(condition)
        .order_by(MEASUREMENTS.c.id)
    )


def _trial(row: Row[*tuple[Any, ...]], measurements: tuple[Measurement, ...], *, full: bool) -> Trial:
    return Trial(
        number=row.number,
        requested=_configuration(row.requested),
        effective=_configuration(row.effective) if row.effective is not None else None,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        phase=row.phase,
        block=row.block,
        quality=Quality.of(json.loads(row.quality)) if row.quality is not None else None,
        reading=json.loads(row.reading) if full and row.reading is not None else {},
        reused_from=row.reused_from,
        measurements=measurements,
        attempts=row.attempts,
        **{name: getattr(row, name) for name in _FIGURES},
    )
