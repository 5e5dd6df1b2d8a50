"""Answering: questions that requests ask, answered by threads of this process, or by processes beside it.

An answer is some milliseconds of Python, and one process runs one thread of that at a time: a host with many cores answers in
several, and what listens to requests only hands out questions and hands on bytes. Each of them has its own connections and its
own desk.

Of those that have nothing to do, the one that answered last gets the next question: a processor that slept meanwhile has nothing
of an answer's code and data in its caches, and takes more than half as long again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from advisor.asking.submission import OPERATORS, Submission, let_in
from advisor.errors import BadInput, Unreachable, named
from advisor.web.beside import Beside, Died
from advisor.web.served import Limits, Served

#: Where nobody says how many processes answer: one for so many cores, and at most so many.
CORES_EACH, MOST = 4, 4

_log = logging.getLogger("advisor.web")


def usual_processes() -> int:
    """Return how many processes answer where nobody says it: none on a host of few cores, whose threads do."""
    return min(len(os.sched_getaffinity(0)) // CORES_EACH, MOST)


@dataclass(eq=False)
class _Process:
    """A process that answers. able: done as soon as it has imported what it needs; asked: questions that it has now."""

    beside: Beside
    able: Future[None]
    asked: int = 0


class Answering:
    """Who answers. Its questions are asked in the server's event loop."""

    def __init__(self, served: Served, processes: int = 0) -> None:
        """Answer out of this database in at most so many processes, in threads of this one where that is 0."""
        self._served, self.processes = served, processes
        self._last_first: list[_Process] = []
        self._is_closed = False
        self._lock = threading.Lock()

    async def answer(self, model: str, given: Mapping[str, Any], shown: Mapping[str, Any]) -> bytes:
        """Return the answer to a question as JSON. shown: in which form. Raises AdvisorError."""
        if not self.processes:
            return await run_in_threadpool(answered, self._served, model, given, shown)
        for _ in range(self.processes + 1):  # all of them may have died of something else
            process = self._next()
            try:
                answer = process.beside.submit(_answered_here, model, dict(given), dict(shown))
                answer.add_done_callback(partial(self._has_answered, process))
                told: bytes = await asyncio.wrap_future(answer)
                return told
            except Died:
                self._forget(process)
        raise Unreachable("the processes that answer died over this question", "the daemon's log may say how")

    def close(self) -> None:
        """End the processes, and begin no others."""
        with self._lock:
            ending, self._last_first, self._is_closed = self._last_first, [], True
        for process in ending:
            process.beside.close()

    def _next(self) -> _Process:
        """Return who gets the next question: who has none and answered last, else who has the fewest.

        Where all have some and there may be more, another one is begun, for which no question waits as long as there are
        others: it imports for as long as hundreds of answers take. Raises Unreachable where the first can't be begun.
        """
        with self._lock:
            if self._is_closed:
                raise Unreachable("this daemon is ending", "ask the one that takes its place")
            able = [process for process in self._last_first if process.able.done()] or self._last_first
            found = min(able, key=lambda process: process.asked, default=None)
            if len(able) == len(self._last_first) < self.processes and (found is None or found.asked):
                try:
                    self._last_first.append(begun := self._begun())
                    found = found or begun
                except OSError as error:  # no memory, or no more processes
                    _log.warning("no other process that answers can be begun: %s", error)
            if found is None:
                raise Unreachable("no process that answers can be begun", "the daemon's log says why")
            found.asked += 1
            return found

    def _begun(self) -> _Process:
        beside = Beside(_begin, self._served.url, self._served.limits, os.getpid())
        return _Process(beside, beside.submit(_import))

    def _has_answered(self, process: _Process, answer: Future[bytes]) -> None:
        with self._lock:
            process.asked -= 1
            is_alive = not answer.cancelled() and not isinstance(answer.exception(), Died)
            if is_alive and process in self._last_first:
                self._last_first.remove(process)
                self._last_first.insert(0, process)

    def _forget(self, dead: _Process) -> None:
        with self._lock:
            if dead not in self._last_first:
                return
            self._last_first.remove(dead)
        _log.warning("a process that answers died: another one takes its place")
        dead.beside.close()


#: In a process that answers: its database, opened with its first question, so that one that is away is told as an answer.
_place: tuple[str, Limits] | None = None
_opened: Served | None = None


def _begin(url: str, limits: Limits, parent: int) -> None:
    """Begin as a process that answers: it ends with its daemon, and Ctrl-C is the daemon's to hear."""
    from advisor.machine.leftovers import die_with_parent, name_process

    global _place
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    name_process("advisor-answers")
    _place = url, limits


def _import() -> None:
    """Import what an answer needs, which takes the longest of the first one."""
    import advisor.advice.suggest
    import advisor.asking.question
    import advisor.show.report
    import advisor.show.sent  # noqa: F401


def _answered_here(model: str, given: Mapping[str, Any], shown: Mapping[str, Any]) -> bytes:
    global _opened
    assert _place is not None
    if _opened is None:
        _opened = Served.open(*_place)
    return answered(_opened, model, given, shown)


def answered(served: Served, model: str, given: Mapping[str, Any], shown: Mapping[str, Any]) -> bytes:
    """Return the answer to a question as JSON. shown: in which form. Raises AdvisorError."""
    found = _answer(served, model, given, shown)
    return json.dumps(found, ensure_ascii=False, allow_nan=False, check_circular=False).encode()


def _answer(served: Served, model: str, given: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    from advisor.asking.question import question_of
    from advisor.show.report import recommendation_payload
    from advisor.show.sent import answer_text

    if taken := sorted(OPERATORS & {name for name, value in given.items() if value}):
        raise BadInput(f"{named(taken[0])} is decided by who runs the daemon, not by a request")
    Submission(model, given).refuse_unknown("a question")
    if unknown := sorted(set(shown) - {"format", "columns", "pareto", "refusals"}):
        raise BadInput(
            f"a question has no {unknown[0][:40]!r}", "it has model, given, format, columns, pareto and refusals"
        )
    question = question_of(let_in(model, served.limits.model_root), given)
    found = served.desk.answer(question, lambda: served.environments(question.on))
    device = "cuda" if found.study.environment.is_cuda else "cpu"
    if (form := shown.get("format", "json")) == "json":
        return {**recommendation_payload(found, device), "exit_status": found.exit_status}
    columns, flags = shown.get("columns", 80), {name: bool(shown.get(name)) for name in ("pareto", "refusals")}
    if not isinstance(form, str) or not isinstance(columns, int):
        raise BadInput("format is a text, and columns a whole number")
    return {"text": answer_text(found, device, form, columns, **flags), "exit_status": found.exit_status}
