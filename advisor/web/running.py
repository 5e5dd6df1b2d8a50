"""Running: what a study that runs comes to by now, worked out once for each of its trials, however many people watch it."""

from __future__ import annotations

import threading

from advisor.errors import AdvisorError
from advisor.pages.short import best_so_far
from advisor.pages.study_report import report_of
from advisor.storage.store import Store

#: Studies that are remembered: more than a daemon's slots can run at once.
_MOST = 256


class Running:
    """The best so far of studies. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        """Read a store."""
        self._store = store
        self._known: dict[int, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def best(self, study: int, trials: int) -> str:
        """Return the best so far of a study, in words, "" where there is none. trials: how many there are of it by now."""
        with self._lock:
            count, words = self._known.get(study, (-1, ""))
        if count == trials:
            return words
        try:
            words = best_so_far(report_of(self._store, study))
        except AdvisorError:  # nothing has ended yet, or it can't be understood: its own page says so
            words = ""
        with self._lock:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[study] = (trials, words)
        return words
