"""Desk: where a process that runs for long answers questions, many a second: the store open, the machine and models remembered.

The answer is the one that `advisor suggest` gives: it is made of the stored trials anew for every question. What is remembered is
what would be read again and is the same: the machine as it was a few seconds ago, and a model none of whose files changed.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from advisor.asking.question import Question
from advisor.asking.resolve import resolve
from advisor.asking.verbs import answered_there
from advisor.machine.remembered import RememberedMachine
from advisor.models.remembered import remembered_model
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelSource

if TYPE_CHECKING:
    from advisor.advice.recommendation import Recommendation
    from advisor.storage.store import Store

#: How long an answer waits for the one before it, in seconds. Python runs one thread at a time, and two that read rows take the
#: interpreter from one another at each row: in turn both are done sooner. Where one waits for its database, others go ahead.
LONGEST_TURN_S = 0.25


def settle() -> None:
    """Have Python's garbage collector leave alone all that this process has made by now.

    A full collection stops every thread: with what is imported to answer, for some 50 ms.
    """
    gc.collect()
    gc.freeze()


class Desk:
    """Answers questions out of an open store. One for a process: safe to share between threads, and never to be closed."""

    def __init__(self, store: Store) -> None:
        """Answer out of this store, which stays its owner's to close."""
        self._store = store
        self._machine = RememberedMachine()
        self._turn = threading.Lock()
        self._is_settled = False

    def answer(self, question: Question, there: Callable[[], Sequence[Environment]] = tuple) -> Recommendation:
        """Return what the store recommends. there: reads what `advisor.asking.verbs.answered_there` is told, at the same moment.

        Raises BadInput for a model or a device that is not there, NotMeasured with the command that would measure it,
        NothingAdmissible with every reason, StoreError.
        """
        is_mine = self._turn.acquire(timeout=LONGEST_TURN_S)
        try:
            asked = resolve(question, to_measure=False, look=self)
            with self._store.at_one_moment():
                return answered_there(asked, self._store.anew(), question, there())
        finally:
            if not self._is_settled:  # the first answer imported the rest
                self._is_settled = True
                settle()
            if is_mine:
                self._turn.release()

    def machine(self, wanted: str | None, threads: int | None) -> Machine:
        """Return a device of this machine, as it was a few seconds ago: see `advisor.asking.resolve.Look`."""
        return self._machine.machine(wanted, threads)

    def model(self, name: str, *, allow_pickle: bool) -> ModelSource:
        """Return a model whose files are on this machine: see `advisor.asking.resolve.Look`."""
        return remembered_model(name, allow_pickle=allow_pickle)
