"""Rows that studies share, by their unique keys: environments, models, workloads and configurations are found or made.

For `advisor.storage.store`: functions that take a connection, inside its transaction. Two processes that make a row at
once get the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table, select, update

from advisor.nouns.checked import Malformed, parsed
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelSource
from advisor.storage import workload_words
from advisor.storage.rows import as_json, now, plain
from advisor.storage.tables import CONFIGURATIONS, ENVIRONMENTS, MODELS, WORKLOADS
from advisor.workloads import Workload


def found(connection: Connection, table: Table, key: Mapping[str, Any]) -> int | None:
    """Return the id of the row with this unique key, or None."""
    return connection.execute(
        select(table.c.id).where(*(table.c[name] == value for name, value in key.items()))
    ).scalar()


def found_or_made(connection: Connection, table: Table, key: Mapping[str, Any], more: Mapping[str, Any]) -> int:
    """Return the id of the row with this unique key. Two processes that make it at once get the same row."""
    row_id = found(connection, table, key)
    if row_id is None:
        insert_unless_there(connection, table, {**key, **more})
        row_id = found(connection, table, key)
        assert row_id is not None
    return row_id


def insert_unless_there(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its unique key is taken; return whether it was inserted."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        # SQLAlchemy asks PostgreSQL for the new id, and then can't say how many rows there were.
        statement = postgresql.insert(table).values(values).on_conflict_do_nothing()
        return connection.execute(statement).inserted_primary_key is not None
    from sqlalchemy.dialects import sqlite

    return connection.execute(sqlite.insert(table).values(values).on_conflict_do_nothing()).rowcount == 1


def workload_id(connection: Connection, workload: Workload, architecture_key: str) -> int:
    """Return the workload's row, found or made."""
    key = {"key": workload.key_for(architecture_key)}
    more = {"kind": workload.kind, "architecture_key": architecture_key, "payload": as_json(workload.payload)}
    return found_or_made(connection, WORKLOADS, key, {**more, **workload_words.told(workload)})


def environment_id(connection: Connection, environment: Environment) -> int:
    """Return the environment's row, found or made."""
    more = {"payload": as_json(environment.payload), "first_seen": now()}
    return found_or_made(connection, ENVIRONMENTS, {"key": environment.key}, more)


def model_id(connection: Connection, source: ModelSource) -> int:
    """Return the model's row; it goes by the name it was last asked for by."""
    key = {"architecture_key": source.architecture_key, "weights_digest": source.weights_digest}
    name = plain(source.name)
    row_id = found_or_made(connection, MODELS, key, {"name": name})
    connection.execute(update(MODELS).where(MODELS.c.id == row_id, MODELS.c.name != name).values(name=name))
    return row_id


def configuration_ids(connection: Connection, *configurations: Configuration | None) -> dict[Configuration, int]:
    """Return the rows of these configurations, made in one order by everybody, so that nobody waits in a circle."""
    wanted = sorted({c for c in configurations if c is not None}, key=lambda c: c.key)
    return {c: found_or_made(connection, CONFIGURATIONS, {"key": c.key}, {"payload": as_json(dict(c))}) for c in wanted}


@lru_cache(maxsize=4096)
def configuration_of(payload: str | None) -> Configuration:
    """Return the configuration that was stored as this text. Raises Malformed where it can't be one, or is missing."""
    if payload is None:
        raise Malformed("its configuration is missing")
    return Configuration.of(parsed(payload))


@lru_cache(maxsize=256)
def environment_of(payload: str | None) -> Environment:
    """Return the environment that was stored as this text. Raises Malformed where it can't be one, or is missing."""
    if payload is None:
        raise Malformed("its environment is missing")
    return Environment.of(parsed(payload))
