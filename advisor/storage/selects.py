"""SELECTs that every answer is made of: as text, read with the driver's own cursor, a tuple a row.

SQLAlchemy's own work around a statement takes as long as SQLite takes for it, and an answer is made of eight. The connection,
its transaction and its errors are SQLAlchemy's all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

#: A value that is named in a statement; a cast of PostgreSQL's is none.
_NAMED = re.compile(r"(?<!:):([a-z_][a-z0-9_]*)")


def selected(connection: Connection, statement: str, **values: Any) -> Sequence[tuple[Any, ...]]:
    """Return the rows that a SELECT finds. values: by the names that stand in it behind colons. Raises DBAPIError."""
    spelled = _spelled(statement, connection.dialect.name)
    try:
        with closing(connection.connection.cursor()) as cursor:
            for hear in connection.dispatch.before_cursor_execute:  # whoever notes what a database is asked
                hear(connection, cursor, spelled, values, None, False)
            cursor.execute(spelled, values)
            found: Sequence[tuple[Any, ...]] = cursor.fetchall()
            return found
    except connection.dialect.loaded_dbapi.Error as error:
        raise _told(connection, statement, error) from error


@cache
def _spelled(statement: str, dialect: str) -> str:
    """Return a statement as the driver takes it: sqlite3 knows names behind colons, psycopg has a form of its own."""
    return statement if dialect == "sqlite" else _NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))


def _told(connection: Connection, statement: str, error: Exception) -> BaseException:
    """Return a driver's error as SQLAlchemy tells it.

    A connection that is lost is not used again; the pool looks at each of the others before it hands it out (pool_pre_ping).
    """
    dialect = connection.dialect
    is_lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    if is_lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        statement,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=is_lost,
        dialect=dialect,
    )
