"""A store whose server may go away for a while: each verb is tried again until it answers.

A tune has hours of measurements behind it and a GPU in hand: a server that is restarted must not end it. Every verb is one
transaction that says the same when it is said twice, so that a commit whose answer was lost does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from inspect import isfunction
from typing import Any

from advisor.errors import StoreError, Unreachable
from advisor.nouns.step import Step
from advisor.storage import rows
from advisor.storage.store import Store

#: How long a server may be away before a tune gives up, in seconds, and how long it is left alone between two attempts.
PATIENCE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 300.0, 0.25, 5.0

#: What is tried again: every verb of the store that is one transaction, or several that may be repeated together.
_VERBS = frozenset(
    name
    for name, verb in vars(Store).items()
    if isfunction(verb) and not name.startswith("_") and name not in ("close", "at_one_moment")
)

Listener = Callable[[Mapping[str, Any]], None]


class PatientStore(Store):
    """The same database, waited for. Who interrupts a wait, or has seen it end in vain, is not made to wait again."""

    def __init__(self, store: Store, listen: Listener, patience_s: float = PATIENCE_S) -> None:
        """Share the store's connections. listen: hears once in every absence that it is waited for."""
        super().__init__(store._database)
        self.damaged = store.damaged
        self._listen, self._patience_s = listen, patience_s

    def __getattribute__(self, name: str) -> Any:
        """Return a verb that waits for its server."""
        found = super().__getattribute__(name)
        return partial(self._waiting, found) if name in _VERBS else found

    def claim(self, study_id: int, step: Step, owner: str, **more: Any) -> tuple[int, ...] | None:
        """Claim a step once, however often that is tried: see :meth:`advisor.storage.store.Store.claim`."""
        once = partial(super().claim, study_id, step, owner, **{"began_at": rows.now(), **more})
        found: tuple[int, ...] | None = self._waiting(once)
        return found

    def _waiting(self, verb: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                return verb(*arguments, **more)
            except Unreachable as error:
                away_s = time.monotonic() - began
                if away_s + pause_s > self._patience_s:
                    tried = f", and was tried for {away_s:.0f} s" if self._patience_s else ""
                    self._patience_s = 0.0
                    raise StoreError(
                        f"{error}{tried}", "every finished trial is stored: the same tune goes on"
                    ) from None
                if pause_s == FIRST_PAUSE_S:
                    words = f"waiting: {error}; it is tried again for up to {self._patience_s / 60:g} min"
                    self._listen({"event": "stage", "stage": words})
            self._pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _pause(self, seconds: float) -> None:
        try:
            time.sleep(seconds)
        except BaseException:
            self._patience_s = 0.0
            raise
