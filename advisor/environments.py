"""Environments in the database, and the ceilings that plain work reaches in each."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, text

from advisor.checked import is_real, parsed
from advisor.rows import in_row, is_metric, readable, refuse

_CEILINGS = text("""SELECT c.id, c.payload FROM ceilings c
  JOIN environments e ON e.id = c.environment_id
WHERE e.key = :environment""")


def ceilings(connection: Connection, environment_key: str, damage: list[str] | None = None) -> dict[str, float] | None:
    """Return what plain work reaches in an environment, or None. damage: see :func:`readable`."""
    found = connection.execute(_CEILINGS, {"environment": environment_key}).all()
    read = readable(_ceilings, found, damage)
    return read[0] if read else None


def _ceilings(row: Row[*tuple[Any, ...]]) -> dict[str, float]:
    with in_row("ceilings", row.id):
        payload = parsed(row.payload)
        check_ceilings(payload)
        return dict(payload)


def check_ceilings(payload: Any) -> None:
    """Raise Malformed for ceilings that are no numbers above 0 by name."""
    refuse(not isinstance(payload, dict), "a payload", payload)
    for name, value in payload.items():
        refuse(not is_metric(name) or not is_real(value) or value <= 0, name[:60], value)
