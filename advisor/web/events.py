"""Events: how jobs stand, told as it changes (server-sent events), until a job is over or whoever listens goes.

What several people listen to is looked at once for all of them, and not at all where nobody listens. A stream begins with all
that there is, whatever its listener has heard before (Last-Event-ID): a database says how jobs stand, and not what they were.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from advisor.errors import AdvisorError, StoreError
from advisor.terminal import in_a_line
from advisor.web.problems import ONLY_HEAD, problem

#: How often it is looked, and after how much silence a comment keeps the line open, seconds.
LOOK_S, SILENCE_S = 0.7, 15.0

#: Jobs that are told of where nobody names one: the newest.
NEWEST = 50

_TYPE = "text/event-stream"

_log = logging.getLogger("advisor.web")

#: Returns jobs' payloads, in a thread.
Look = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Seen:
    """What a look came to. jobs: by id, as JSON; is_over: none of them waits or runs; away, end: why there are none, in words."""

    jobs: dict[str, str] = field(default_factory=dict)
    state: str = ""
    is_over: bool = False
    away: str = ""
    end: str = ""


class Streams:
    """The streams of a daemon. All of it runs in the server's event loop."""

    def __init__(self, most: int, stopping: Callable[[], bool]) -> None:
        """Have so many streams at once, until the daemon is stopping."""
        self.most, self.stopping, self.count = most, stopping, 0
        self._readers: dict[str, _Reader] = {}

    def stream(self, request: Request, key: str, look: Look, *, ends: bool) -> Response:
        """Return the answer that is a stream. key: what is looked at, the same for all who share a look; ends: with its jobs."""
        if request.scope.get(ONLY_HEAD):
            return Response(media_type=_TYPE)
        return Stream(self, self.told(request, key, look, ends=ends))

    async def told(self, request: Request, key: str, look: Look, *, ends: bool) -> AsyncIterator[bytes]:
        """Yield an event for each job that is new or stands otherwise than before; all of them first.

        A database that is away is told as a comment, and waited for.
        """
        if key not in self._readers:
            self._readers[key] = _Reader(look)
        reader = self._readers[key]
        reader.listeners += 1
        try:
            seen, told, silent_s, number = await reader.first(), dict[str, str](), 0.0, 0
            while not self.stopping() and not await request.is_disconnected():
                if seen.end:
                    yield _event("end", number, json.dumps({"detail": seen.end}))
                    return
                if seen.away:
                    yield f": {seen.away}\n\n".encode()
                changed = [name for name, job in seen.jobs.items() if told.get(name) != job]
                for name in changed:
                    told[name] = seen.jobs[name]
                    number += 1
                    yield _event("job", number, told[name])
                if ends and seen.is_over:
                    yield _event("end", number + 1, json.dumps({"state": seen.state}))
                    return
                silent_s = 0.0 if changed else silent_s + LOOK_S
                if silent_s >= SILENCE_S:
                    silent_s = 0.0
                    yield b": nothing new\n\n"
                seen = await reader.next()
        finally:
            reader.listeners -= 1
            if not reader.listeners and self._readers.get(key) is reader:
                del self._readers[key]


class _Reader:
    """Looks for all who listen to one thing, as long as somebody does."""

    def __init__(self, look: Look) -> None:
        self.listeners, self._look = 0, look
        self._last: Seen | None = None
        self._coming: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    async def first(self) -> Seen:
        """Return how it stands: what was seen lately, or the first look."""
        return self._last or await self.next()

    async def next(self) -> Seen:
        """Return what the next look comes to."""
        return await asyncio.shield(self._coming)

    async def _read(self) -> None:
        while True:
            seen = await run_in_threadpool(self._seen)
            coming, self._coming = self._coming, asyncio.get_running_loop().create_future()
            self._last = seen
            coming.set_result(seen)
            if seen.end:
                self._coming.set_result(seen)  # who comes now hears it too
                return
            await asyncio.sleep(LOOK_S)
            if not self.listeners:
                return

    def _seen(self) -> Seen:
        try:
            jobs = self._look()
        except StoreError as error:
            return Seen(away=in_a_line(f"the database is away: {error}"))
        except AdvisorError as error:
            return Seen(end=in_a_line(str(error)))
        except Exception:  # noqa: BLE001 - whoever listens is told, and the next one asked for
            _log.exception("a fault of advisor's own")
            return Seen(end="a fault of advisor's own: the daemon's log has it")
        is_over = bool(jobs) and not any(job["state"] in ("queued", "running") for job in jobs)
        texts = {job["id"]: json.dumps(job, ensure_ascii=False) for job in jobs}
        return Seen(texts, jobs[0]["state"] if jobs else "", is_over)


class Stream(StreamingResponse):
    """A stream among others; where there are as many as there may be, a problem instead, which says when to come again."""

    def __init__(self, streams: Streams, lines: AsyncIterator[bytes]) -> None:
        """Tell these lines."""
        super().__init__(lines, media_type=_TYPE, headers={"X-Accel-Buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: it is counted for exactly as long as somebody hears it."""
        if self._streams.count >= self._streams.most:
            many = f"{self._streams.most} streams are open, and there are no more at once"
            await problem(503, "too many listen", many, hint="ask for the jobs themselves meanwhile")(
                scope, receive, send
            )
            return
        self._streams.count += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.count -= 1


def _event(name: str, number: int, payload: str) -> bytes:
    return f"event: {name}\nid: {number}\ndata: {payload}\n\n".encode()
