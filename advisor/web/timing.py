"""How long each request takes in this process, its wait for a thread included: told in its answer, and to who counts them."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: What hears of a request: the template of its route, and the seconds from its arrival to the beginning of its answer.
Counted = Callable[[str, float], None]


class Timed:
    """Times the requests of an application (ASGI).

    Each answer says it in a `Server-Timing` header (W3C), in milliseconds. A stream of events has begun with its first line.
    """

    def __init__(self, app: ASGIApp, counted: Counted) -> None:
        """Time this application."""
        self.app, self.counted = app, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                took_s = time.perf_counter() - began
                self.counted(getattr(scope.get("route"), "path", "other"), took_s)
                told = (b"server-timing", f"total;dur={1000 * took_s:.2f}".encode())
                message = {**message, "headers": [*message.get("headers", ()), told]}
            await send(message)

        await self.app(scope, receive, timed)
