"""Counts for whoever watches: trials by outcome, and how old the newest answer is. Asked often, of many rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import Text, func, select, type_coerce

from advisor.storage import rows, trials
from advisor.storage.store import Store
from advisor.storage.tables import RECOMMENDATIONS, TRIALS

#: So many rows at the end are counted again each time.
NEWEST = 1000


class Counts:
    """Counts over all studies. Safe to share between threads.

    What is finished stays as it is, so that each row is counted once and only those begun since are read again: a million take
    a moment when it is asked first, and none after that. A study that is removed is still counted, as a counter should be.
    """

    def __init__(self, store: Store) -> None:
        """Share the store's connections."""
        self._database = store._database
        self._lock = threading.Lock()
        self._finished: Counter[str] = Counter()
        self._below = 0

    def trials(self) -> Mapping[str, int]:
        """Return how many trials there are by outcome, running ones too."""
        with self._lock, self._database.reading() as connection:
            running = connection.execute(
                select(func.min(TRIALS.c.id)).where(TRIALS.c.id > self._below, TRIALS.c.outcome == "running")
            ).scalar()
            last = int(connection.execute(select(func.max(TRIALS.c.id))).scalar() or 0)
            # From the first that runs on, rows may still change, and of the newest some may come after one that is here already,
            # for transactions don't end in the order of their ids: those are counted again each time.
            below = min(last - NEWEST, last if running is None else int(running) - 1)
            counted = select(TRIALS.c.outcome, func.count()).group_by(TRIALS.c.outcome)
            fresh = connection.execute(counted.where(TRIALS.c.id > self._below, TRIALS.c.id <= below)).all()
            open_ = connection.execute(counted.where(TRIALS.c.id > max(below, self._below), TRIALS.c.id <= last)).all()
            self._finished.update(dict(fresh))
            self._below = max(below, self._below)
            return self._finished + Counter(dict(open_))

    def of_study(self, study_id: int) -> int:
        """Return how many trials a study has, running ones too: their numbers have no gaps, and the last one is found at once."""
        with self._database.reading() as connection:
            return trials.count(connection, study_id)

    def newest_answer_age_s(self) -> float | None:
        """Return how long ago the newest answer of a study was made, seconds; None where there is none."""
        made = type_coerce(func.max(RECOMMENDATIONS.c.made_at), Text)
        with self._database.reading() as connection:
            found = connection.execute(select(made)).scalar()
        return None if found is None else max(0.0, (rows.now() - rows.moment(found)).total_seconds())
