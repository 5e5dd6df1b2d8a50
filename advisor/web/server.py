"""The server: uvicorn, in the process of `advisor serve`, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import uvicorn

from advisor.asking.desk import settle
from advisor.errors import BadInput, named
from advisor.web.addresses import is_unspecified, own_names
from advisor.web.answering import Answering
from advisor.web.app import application
from advisor.web.security import Settings
from advisor.web.served import Served

#: How long whoever is being answered is waited for in the end, seconds.
GRACE_S = 3

_log = logging.getLogger("advisor.web")


class Server(uvicorn.Server):
    """Ends with all of its connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, and then let go of whoever does not take the rest of an answer: uvicorn leaves such a connection open."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def serving(served: Served, settings: Settings, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Answer requests until told to stop. Raises BadInput for an address that is taken.

    say: hears where it can be asked as soon as it listens, an address each time.
    """
    settings.refuse_open()
    listening = _listening(settings)
    if is_unspecified(settings.host):
        settings = replace(settings, own=own_names(settings.host))
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # a route's fault is told by us, once
    answering = Answering(served, served.limits.answer_processes)
    app = application(served, settings, stop.is_set, answering)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S, server_header=False, lifespan="off"
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="advisor-http", daemon=True)
    thread.start()
    settle()  # before anybody asks
    host, port = listening.getsockname()[:2]
    for name in settings.own or (host,):
        say(f"http://{f'[{name}]' if ':' in name else name}:{port}")
    _log.info("listening", extra={"host": host, "port": port})
    while not stop.wait(0.2):
        if not thread.is_alive():
            raise BadInput(f"the server at {settings.host}:{port} ended")
    server.should_exit = True
    thread.join(GRACE_S + 2)
    answering.close()


def _listening(settings: Settings) -> socket.socket:
    """Return a socket that listens at the address that was asked for. Raises BadInput."""
    made: socket.socket | None = None
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns Nagle's algorithm off where the protocol is named: else the second packet of an answer waits for
        # the first one's acknowledgement, which who asks again and again sends 40 ms later.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((settings.host, settings.port))
        made.listen(128)
    except (OSError, UnicodeError) as error:  # a name that no name can be
        if made is not None:
            made.close()
        hint = f"{named('port')} names another one, 0 any"
        raise BadInput(
            f"{settings.host}:{settings.port} can't be listened at: {getattr(error, 'strerror', None) or error}", hint
        ) from None
    return made
