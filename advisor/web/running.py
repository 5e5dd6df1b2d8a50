"""Running: what a study that runs comes to, worked out anew each time that a trial of it begins, once for all who watch it.

Who asks meanwhile hears what was known then: a trial that ends is seen when the next one begins, a moment later.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from advisor.errors import AdvisorError
from advisor.pages.short import best_so_far
from advisor.pages.study_report import report_of
from advisor.storage.store import Store

#: Studies that are remembered: more than a daemon's slots can run at once.
_MOST = 256


@dataclass
class _Known:
    """What is known of a study. trials: how many there were of it then; at_work: held while it is worked out."""

    trials: int = -1
    words: str = ""
    at_work: threading.Lock = field(default_factory=threading.Lock)


class Running:
    """The best so far of studies. Safe to share between threads: several that ask at once wait for one."""

    def __init__(self, store: Store) -> None:
        """Read a store."""
        self._store = store
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()

    def best(self, study: int, trials: int) -> str:
        """Return the best so far of a study, in words, "" where there is none. trials: how many were begun of it by now."""
        with self._lock:
            if len(self._known) >= _MOST and study not in self._known:
                self._known.clear()
            known = self._known.setdefault(study, _Known())
        with known.at_work:
            if known.trials != trials:
                try:
                    known.words = best_so_far(report_of(self._store, study))
                except AdvisorError:  # nothing has ended yet, or it can't be understood: its own page says so
                    known.words = ""
                known.trials = trials
            return known.words
