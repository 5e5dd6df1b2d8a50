"""Counts for whoever watches: trials by outcome, and how old the newest answer is. Asked often, of many rows."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Text, func, select, type_coerce

from advisor.nouns.trial import Outcome
from advisor.storage import rows, trials
from advisor.storage.store import Store
from advisor.storage.tables import RECOMMENDATIONS, STUDIES, TRIALS

#: How long a row may come behind one with a higher id, seconds: PostgreSQL's transactions don't end in the order of their ids.
SETTLED_S = 60.0

#: So many ids are asked for at once: SQLite takes 32,766.
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Size:
    """How far a study is. trials: that it has, running ones too; answered_at: when its answer was made, in its words."""

    trials: int
    answered_at: str | None


class Counts:
    """Counts over all studies. Safe to share between threads.

    What is finished stays as it is. Rows are counted once, and after that only those of them that ran and those that came since
    are read: a million take a moment at first, on PostgreSQL until `SETTLED_S` have gone by. A trial that somebody left behind
    runs for good, and costs its own row alone.
    """

    def __init__(self, store: Store) -> None:
        """Share the store's connections."""
        self._database = store._database
        self._lock = threading.Lock()
        # Counted once: how the rows up to an id ended, and which of them ran when last seen.
        self._finished: Counter[str] = Counter()
        self._running: frozenset[int] = frozenset()
        self._below = 0
        # The last row at a moment: what is up to it is counted once and for all when that is long enough ago.
        self._seen, self._seen_at_s = 0, -SETTLED_S

    def trials(self) -> Mapping[str, int]:
        """Return how many trials there are by outcome, running ones too. Raises StoreError."""
        with self._lock, self._database.reading() as connection:
            now_s = time.monotonic()
            last = int(connection.execute(select(func.max(TRIALS.c.id))).scalar() or 0)
            is_long_ago = now_s - self._seen_at_s >= SETTLED_S
            # SQLite has one writer: nothing comes behind what is there. Never back, should somebody remove rows by hand.
            settled = last if connection.dialect.name == "sqlite" else self._seen if is_long_ago else 0
            below = max(settled, self._below)
            fresh = _by_outcome(connection, self._below, below)
            newest = _by_outcome(connection, below, last)
            begun = _running(connection, self._below, below) if fresh.pop("running", 0) else frozenset()
            ended = dict(_ended(connection, self._running))
            # All is read: what fails before this leaves the counts as they were.
            self._finished += fresh + Counter(ended.values())
            self._running = self._running - ended.keys() | begun
            self._below = below
            if is_long_ago:
                self._seen, self._seen_at_s = last, now_s
            return self._finished + newest + Counter(running=len(self._running))

    def of_study(self, study_id: int) -> int:
        """Return how many trials a study has, running ones too: their numbers have no gaps, and the last one is found at once."""
        with self._database.reading() as connection:
            return trials.count(connection, study_id)

    def ended(self, study_id: int) -> int:
        """Return how many trials of a study have ended, those too that can't be understood."""
        asked = select(func.count()).where(TRIALS.c.study_id == study_id, TRIALS.c.outcome != str(Outcome.RUNNING))
        with self._database.reading() as connection:
            return int(connection.execute(asked).scalar_one())

    def of_studies(self, study_ids: Collection[int]) -> dict[int, Size]:
        """Return how far studies are, by id, in one question whatever their number; what is no study is left out."""
        if not study_ids:
            return {}
        last = select(func.max(TRIALS.c.number)).where(TRIALS.c.study_id == STUDIES.c.id).scalar_subquery()
        made = select(type_coerce(RECOMMENDATIONS.c.made_at, Text)).where(RECOMMENDATIONS.c.study_id == STUDIES.c.id)
        asked = select(STUDIES.c.id, last.label("last"), made.scalar_subquery().label("made"))
        with self._database.reading() as connection:
            found = connection.execute(asked.where(STUDIES.c.id.in_(study_ids)))
            return {
                row.id: Size(0 if row.last is None else int(row.last) + 1, None if row.made is None else str(row.made))
                for row in found
            }

    def newest_answer_age_s(self) -> float | None:
        """Return how long ago the newest answer of a study was made, seconds; None where there is none."""
        made = type_coerce(func.max(RECOMMENDATIONS.c.made_at), Text)
        with self._database.reading() as connection:
            found = connection.execute(select(made)).scalar()
        return None if found is None else max(0.0, (rows.now() - rows.moment(found)).total_seconds())


def _by_outcome(connection: Connection, above: int, last: int) -> Counter[str]:
    """Count the rows with ids above one, up to the last."""
    if last <= above:
        return Counter()
    counted = select(TRIALS.c.outcome, func.count().label("trials")).where(TRIALS.c.id > above, TRIALS.c.id <= last)
    return Counter({row.outcome: row.trials for row in connection.execute(counted.group_by(TRIALS.c.outcome))})


def _running(connection: Connection, above: int, last: int) -> frozenset[int]:
    """Return the ids of the running trials above one, up to the last."""
    there = (TRIALS.c.id > above, TRIALS.c.id <= last, TRIALS.c.outcome == "running")
    return frozenset(connection.execute(select(TRIALS.c.id).where(*there)).scalars())


def _ended(connection: Connection, ids: Collection[int]) -> Iterator[tuple[int, str]]:
    """Yield the ids of those that run no more, and how they ended."""
    every = sorted(ids)
    for first in range(0, len(every), _AT_ONCE):
        some = TRIALS.c.id.in_(every[first : first + _AT_ONCE])
        for row in connection.execute(select(TRIALS.c.id, TRIALS.c.outcome).where(some, TRIALS.c.outcome != "running")):
            yield row.id, row.outcome
