"""Studies from elsewhere that are here already: they stay as they are, and whether the one that came is another is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from advisor.storage.tables import STUDIES, TRIALS

#: What is counted beside new rows.
DIFFERING = "studies that differ"


def differs(connection: Connection, study: int, state: str, came: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a study that is here has other trials than came, or ended otherwise. state: as it came; came: its trials' rows."""
    found = connection.execute(select(TRIALS.c.number, TRIALS.c.outcome).where(TRIALS.c.study_id == study))
    here = connection.execute(select(STUDIES.c.state).where(STUDIES.c.id == study)).scalar()
    ended = {"running": "interrupted"}.get(str(here), here)  # as it is packed
    return ended != state or {(row.number, row.outcome) for row in found} != {(t["number"], t["outcome"]) for t in came}
