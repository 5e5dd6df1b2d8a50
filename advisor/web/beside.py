"""A process beside this one, that calls functions for it, one after the other.

Each has a pipe of its own, and nobody else holds its end: whatever it dies of and whenever, who waits is told. An executor of
Python's holds both ends of the pipe that answers come by: where its process dies with half an answer told, it waits for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any


class Died(Exception):
    """The process died over a call, or before."""


class Beside:
    """A process that calls functions. A thread of this process waits for it, so that nobody else has to."""

    def __init__(self, begin: Callable[..., None], *given: Any) -> None:
        """Begin it: what it does first is begin(*given). Raises OSError where it can't be begun."""
        # Spawned: a fork would share this process's connections, and its threads' locks as they are just now. It is begun by
        # whoever calls, for a process may end with the thread that began it.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        try:
            self._process = context.Process(target=_serve, args=(theirs, begin, given), daemon=True)
            self._process.start()
        except OSError:
            self._pipe.close()
            raise
        finally:
            theirs.close()  # then the pipe ends with the process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside")

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """Have it call a function after those it was given before; its errors are the future's, and so is Died."""
        try:
            return self._thread.submit(self._call, function, given)
        except RuntimeError:  # it was closed meanwhile
            gone: Future[Any] = Future()
            gone.set_exception(Died())
            return gone

    def close(self) -> None:
        """End it: what it was given and has not done raises Died."""
        self._process.terminate()
        self._thread.shutdown(wait=False)

    def _call(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        try:
            self._pipe.send((function, given))
            error, value = self._pipe.recv()
        except (EOFError, OSError):
            raise Died from None
        if error is not None:
            raise error
        return value


def _serve(pipe: Connection, begin: Callable[..., None], given: tuple[Any, ...]) -> None:
    """Call what comes, until the other end is closed."""
    begin(*given)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Exception | None, Any] = None, function(*arguments)
        except Exception as error:  # noqa: BLE001  (whoever asked is told)
            answer = error, None
        pipe.send(answer)
