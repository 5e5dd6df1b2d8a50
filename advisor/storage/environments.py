"""Environments in the database: those with a trial that is ok, and the ceilings that plain work reaches in each.

For `advisor.storage.store`: functions that take a connection, inside its transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, exists, select, update

from advisor.nouns.checked import is_real, parsed
from advisor.nouns.environment import Environment
from advisor.storage.keyed_rows import environment_id, environment_of, found_or_made
from advisor.storage.rows import as_json, in_row, is_metric, now, readable, refuse
from advisor.storage.selects import selected
from advisor.storage.tables import CEILINGS, ENVIRONMENTS, STUDIES, TRIALS

_CEILINGS = """SELECT c.id, c.payload FROM ceilings c
  JOIN environments e ON e.id = c.environment_id
WHERE e.key = :environment"""


def measured(connection: Connection, damage: list[str]) -> list[tuple[str, Environment]]:
    """Return the key and the environment of each one with a trial that is ok, the newest first. damage: see :func:`readable`."""
    has_trial = exists().where(
        STUDIES.c.environment_id == ENVIRONMENTS.c.id, TRIALS.c.study_id == STUDIES.c.id, TRIALS.c.outcome == "ok"
    )
    newest = (ENVIRONMENTS.c.first_seen.desc(), ENVIRONMENTS.c.id.desc())
    columns = (ENVIRONMENTS.c.id, ENVIRONMENTS.c.key, ENVIRONMENTS.c.payload)
    return readable(_keyed, connection.execute(select(*columns).where(has_trial).order_by(*newest)).all(), damage)


def _keyed(row: Row[*tuple[Any, ...]]) -> tuple[str, Environment]:
    with in_row("environments", row.id):
        return row.key, environment_of(row.payload)


def save_ceilings(connection: Connection, environment: Environment, payload: Mapping[str, Any]) -> None:
    """Store what plain work reached in an environment: the best that was ever seen of each, for a busy moment is no ceiling."""
    known = ceilings(connection, environment.key, []) or {}
    best = {name: max(value, known.get(name, value)) for name, value in {**known, **payload}.items()}
    values = {"payload": as_json(best), "measured_at": now()}
    key = {"environment_id": environment_id(connection, environment)}
    row_id = found_or_made(connection, CEILINGS, key, values)
    connection.execute(update(CEILINGS).where(CEILINGS.c.id == row_id).values(values))


def ceilings(connection: Connection, environment_key: str, damage: list[str] | None = None) -> dict[str, float] | None:
    """Return what plain work reaches in an environment, or None. damage: see :func:`readable`."""
    read = readable(_ceilings, selected(connection, _CEILINGS, environment=environment_key), damage)
    return read[0] if read else None


def _ceilings(row: tuple[Any, ...]) -> dict[str, float]:
    row_id, stored = row
    with in_row("ceilings", row_id):
        payload = parsed(stored)
        check_ceilings(payload)
        return dict(payload)


def check_ceilings(payload: Any) -> None:
    """Raise Malformed for ceilings that are no numbers above 0 by name."""
    refuse(not isinstance(payload, dict), "a payload", payload)
    for name, value in payload.items():
        refuse(not is_metric(name) or not is_real(value) or value <= 0, name[:60], value)
