"""What the views tell of a workload beside its payload: it in words, and its share of pads, which plain SQL can't count."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, select, update

from advisor.nouns.checked import Malformed, parsed
from advisor.storage.rows import plain
from advisor.storage.tables import WORKLOADS
from advisor.workloads import UnknownKind, Workload, workload_of


def told(workload: Workload) -> dict[str, Any]:
    """Return the two columns of a workload's row."""
    return {"words": plain(str(workload)), "padding": workload.dealt.padding}


def tell_workloads(connection: Connection) -> None:
    """Fill them in where a workload was stored before they were there; of a kind that nobody here knows, nothing."""
    for row in connection.execute(select(WORKLOADS.c.id, WORKLOADS.c.payload).where(WORKLOADS.c.words.is_(None))).all():
        with suppress(Malformed, UnknownKind):
            values = told(workload_of(parsed(row.payload)))
            connection.execute(update(WORKLOADS).where(WORKLOADS.c.id == row.id).values(values))
