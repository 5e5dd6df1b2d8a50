"""Events: how jobs stand, told as it changes (server-sent events), until a job is over or whoever listens goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from advisor.errors import AdvisorError, StoreError

#: How often it is looked, and after how much silence a comment keeps the line open, seconds.
LOOK_S, SILENCE_S = 0.7, 15.0

#: Jobs that are told of where nobody names one: the newest.
NEWEST = 50


async def told(
    request: Request, look: Callable[[], list[dict[str, Any]]], *, ends: bool, stopping: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yield an event for each job that is new or stands otherwise than before; all of them first.

    look: returns jobs' payloads, in a thread. ends: whether it is over as soon as all of them are. A database that is away is
    told as a comment, and waited for.
    """
    seen: dict[str, str] = {}
    silent_s, number = 0.0, 0
    while not stopping() and not await request.is_disconnected():
        try:
            jobs = await run_in_threadpool(look)
        except StoreError:
            yield b": the database is away\n\n"
            jobs = None
        except AdvisorError as error:
            yield _event("end", number, {"detail": str(error)})
            return
        changed = [job for job in jobs or () if seen.get(job["id"]) != json.dumps(job, sort_keys=True)]
        for job in changed:
            seen[job["id"]] = json.dumps(job, sort_keys=True)
            number += 1
            yield _event("job", number, job)
        if ends and jobs and not any(job["state"] in ("queued", "running") for job in jobs):
            yield _event("end", number + 1, {"state": jobs[0]["state"]})
            return
        silent_s = 0.0 if changed else silent_s + LOOK_S
        if silent_s >= SILENCE_S:
            silent_s = 0.0
            yield b": nothing new\n\n"
        await asyncio.sleep(LOOK_S)


def _event(name: str, number: int, payload: Any) -> bytes:
    return f"event: {name}\nid: {number}\ndata: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()
