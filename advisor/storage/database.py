"""How the database is opened, and its errors in one line. Used by `advisor.storage.store`, and by the command that upgrades.

SQLAlchemy Core only, and Alembic only inside `upgrade`: `advisor suggest` answers within milliseconds. What the database or
its server does wrong becomes one StoreError with one line: no SQL, no password.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from advisor.errors import NotMeasured, StoreError, Unreachable
from advisor.knobs import KNOBS
from advisor.storage.place import file_of, make_directory, network_of, place_of, shown
from advisor.storage.tables import HEAD, REVISIONS
from advisor.storage.views import views
from advisor.storage.workload_words import tell_workloads

#: How long a writer waits for another one on SQLite, in seconds.
LOCK_WAIT_S = 10

#: How long a PostgreSQL server may take to answer a connection, in seconds.
CONNECT_WAIT_S = 5


def upgrade(url: str) -> str:
    """Create the database or bring it to this version's schema; return the revision. Raises StoreError, BadInput."""
    place = place_of(url)
    make_directory(place)
    _refuse_foreign(place)
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
        _agree_on_knobs(connection, write=True)
        tell_workloads(connection)
        _make_views(connection)
    return HEAD


def _agree_on_knobs(connection: Connection, *, write: bool) -> None:
    """See that what is left out means here what it means in the database. write: tell it of knobs that it does not know.

    Raises StoreError where a knob implies another choice: then every stored configuration would say something else.
    """
    found = connection.execute(text("SELECT name, implied, place FROM knobs"))
    stored = {row.name: (row.implied, row.place) for row in found}
    for name, knob in KNOBS.items():
        implied, place = stored.get(name, (knob.implied, None))
        if implied != knob.implied:
            there, here = (each or "nothing" for each in (implied, knob.implied))
            raise StoreError(
                f"a configuration that says nothing of {name} has {there} in this database, and {here} here",
                "the plugin that it was made with, or another ADVISOR_DATABASE_URL",
            )
        if write and place != knob.place:
            statement = """INSERT INTO knobs (name, implied, place) VALUES (:name, :implied, :place)
ON CONFLICT (name) DO UPDATE SET place = excluded.place"""
            connection.execute(text(statement), {"name": name, "implied": implied, "place": knob.place})


def _make_views(connection: Connection) -> None:
    """Make the views as this version says: somebody may have dropped or changed one, and one names the version of answers.

    On PostgreSQL a view is replaced, so that what people built on it stays; where it can't be, it is made anew, unless
    something was built on it: then nobody's view is dropped for ours. Raises StoreError with its name.
    """
    dialect = connection.dialect.name
    for name, body in views(dialect).items():
        if dialect == "sqlite":
            connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
            connection.exec_driver_sql(f"CREATE VIEW {name} AS {body}")
            continue
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"CREATE OR REPLACE VIEW {name} AS {body}")
        except DBAPIError:
            try:
                connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
                connection.exec_driver_sql(f"CREATE VIEW {name} AS {body}")
            except DBAPIError:
                raise StoreError(
                    f"the view {name} was changed, and can't be made again while other things use it",
                    f"drop what uses {name}, then advisor db upgrade",
                ) from None
        connection.exec_driver_sql(f"COMMENT ON VIEW {name} IS '{_mark(body)}'")


def _mark(body: str) -> str:
    """Return what tells a view of this version from one of another: PostgreSQL keeps no text of what it was made of."""
    return f"advisor {sha256(body.encode()).hexdigest()[:16]}"


def _has_our_views(connection: Connection) -> bool:
    """Whether the views are those of this version. They change without a revision: one names the version of answers."""
    if connection.dialect.name == "sqlite":
        read = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'view'")
        made = {row.name: row.sql for row in read}
        return all(made.get(name) == f"CREATE VIEW {name} AS {body}" for name, body in views("sqlite").items())
    said = "SELECT obj_description(to_regclass(:name), 'pg_class')"
    return all(
        connection.execute(text(said), {"name": name}).scalar() == _mark(body)
        for name, body in views("postgresql").items()
    )


def _scripts() -> Path:
    """Return the migrations' directory: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "migrations"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"


def _revision(connection: Connection) -> str | None:
    """Return the schema's revision, or None where there is no schema yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in REVISIONS:
        raise StoreError(f"the database is from a newer advisor (revision {revision})", "upgrade advisor")


def _refuse_foreign(place: URL) -> None:
    """Refuse a SQLite file that is somebody else's, before anything is set in it; a server's database can be shared."""
    path = file_of(place)
    if path is None or not path.is_file():
        return
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        others = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if not others or "alembic_version" in others:
            return
        raise StoreError(
            f"the database has tables of another program ({', '.join(others[:3])})",
            "name another file in ADVISOR_DATABASE_URL",
        )


# ----------------------------------------------------------------------------------------- connections and their errors


def _engine(place: URL, *, write: bool) -> Engine:
    try:
        if place.get_backend_name() == "postgresql":
            waits = {"connect_timeout": CONNECT_WAIT_S, **place.query}
            return create_engine(place.set(query={}), hide_parameters=True, pool_pre_ping=True, connect_args=waits)
        engine = create_engine(place if write else _for_reading(place), hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"the driver of {shown(place)} is not installed", "pip install 'psycopg[binary]'") from error
    shared = network_of(place)

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, and nowhere else
        connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_S * 1000}")
        connection.execute("PRAGMA foreign_keys = ON")
        if write:
            # The log is shared memory, which no network file system has between hosts: there its files were corrupted.
            connection.execute(f"PRAGMA journal_mode = {'DELETE' if shared else 'WAL'}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if shared else 'NORMAL'}")
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
    path = file_of(place)
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
    at, cause = shown(place), getattr(error, "orig", None) or error
    said = " ".join(str(getattr(getattr(cause, "diag", None), "message_primary", None) or cause).split())
    for secret in _secrets(place):
        said = said.replace(secret, "***")
    if place.get_backend_name() == "sqlite":
        for part, words in _SQLITE_SAYS:
            if part in said:
                return StoreError(words.format(at=at, said=said))
    elif getattr(error, "connection_invalidated", False) or "connect" in said or "resolve host" in said:
        return Unreachable(f"the database {at} can't be reached: {said.split(' Is the server running')[0][:300]}")
    return StoreError(f"the database {at} could not do it: {said[:300]}")


def _secrets(place: URL) -> list[str]:
    """Return what must not be shown of a URL: its password, and every password in its query."""
    asked = (str(value) for name, value in place.query.items() if "password" in name.lower())
    return [secret for secret in (str(place.password or ""), *asked) if secret]


def _no_database(place: URL) -> NotMeasured:
    path = file_of(place)
    if path is not None and path.exists() and path.stat().st_size:
        return NotMeasured(f"{path} has no tables of advisor's", "advisor tune MODEL makes them in a file of their own")
    return NotMeasured(f"no database at {shown(place)} yet", "advisor tune MODEL")


class Database:
    """An open database of this version's schema. Safe to share between threads; a process that forks opens its own."""

    def __init__(self, place: URL, engine: Engine) -> None:
        """Keep the place for messages; use :meth:`open`."""
        self._place = place
        self.engine = engine
        self.note = ""
        self._together = threading.local()
        # On PostgreSQL too a reader sees one moment, however many statements it reads with.
        options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
        self._reader = engine.execution_options(**options)

    @classmethod
    def open(cls, url: str, *, write: bool) -> Database:
        """Open the database; a writer creates it where there is none. Raises what `advisor.storage.store.Store.open` says."""
        place = place_of(url)
        path = file_of(place)
        if write:
            make_directory(place)
            _refuse_foreign(place)
        elif path is not None and not path.exists():
            raise _no_database(place)
        database = cls(place, _engine(place, write=write))
        if write and (kind := network_of(place)):
            database.note = (
                f"{path} is on a network file system ({kind}): it is used without a write-ahead log, which is "
                "slower; let one host write at a time, or use PostgreSQL (ADVISOR_DATABASE_URL)"
            )
        try:
            database._check(write)
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, write: bool) -> None:
        """See that the schema is ours, and that a writer may write, before anything is measured."""
        with self.writing() if write else self.reading() as connection:
            revision = _revision(connection)
            has_views = not write or revision != HEAD or _has_our_views(connection)
            if revision == HEAD:
                _agree_on_knobs(connection, write=write)
        _refuse_newer(revision)
        if revision is None and not write:
            raise _no_database(self._place)
        if revision is None or (write and revision == HEAD and not has_views):
            with _told(self._place):
                _upgrade(self.engine)
        elif revision != HEAD:
            raise StoreError(f"the database is from an older advisor (revision {revision})", "advisor db upgrade")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection inside one transaction, which sees one moment; what goes wrong in it is a StoreError.

        Inside another one of this thread it is that one.
        """
        if (outer := getattr(self._together, "connection", None)) is not None:
            yield outer
            return
        with _told(self._place), self._reader.connect() as connection, connection.begin():
            self._together.connection = connection
            try:
                yield connection
            finally:
                self._together.connection = None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection inside one transaction that writes: on SQLite it has the lock from its beginning."""
        options = {"write": True}
        with _told(self._place), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection
