"""Security: who may ask, by which name, how much at once, and from which page. Nothing gets to a route before this."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from advisor.errors import BadInput, named
from advisor.web import problems
from advisor.web.addresses import plain
from advisor.web.problems import ONLY_HEAD, problem

#: The cookie that a browser gets in return for the token.
COOKIE = "advisor"

#: Paths that anybody may ask: whether the daemon is well, the page that asks for the token, and scripts of ours.
_OPEN = ("/api/v1/health", "/login", "/static/")

#: A token shorter than this can be guessed.
_SHORT = 16

#: How one is made that can't be.
_NEW = 'ADVISOR_TOKEN="$(openssl rand -hex 32)"'

#: What a browser may do with an answer of ours: nothing of another host, and nothing in a frame.
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}

#: What it may keep of one: nothing.
_FRESH = {b"cache-control": b"no-store"}

_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>advisor</title><style>body{{font:1rem system-ui;margin:3rem auto;max-width:22rem;padding:0 1rem;color-scheme:light dark}}
input,button{{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;margin:.5rem 0}}</style>
<main><h1>advisor</h1><form method="post" action="/login"><label for="token">The token of this daemon</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Go on</button></form><p role="alert">{told}</p></main></html>"""


@dataclass(frozen=True)
class Settings:
    """How the daemon is asked.

    token: "" where everybody on this host may; allowed_hosts: names beside loopback's and its own; own: what this machine is
    called where the daemon listens at every address (`addresses.own_names`, read when it starts).
    """

    host: str = "127.0.0.1"
    port: int = 8420
    token: str = field(default="", repr=False)
    allowed_hosts: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    def refuse_open(self) -> None:
        """Raise BadInput where anybody could ask: on an address that others reach, without a token; or with one that is short."""
        if not (self.token.isascii() and self.token.isprintable()):
            raise BadInput("ADVISOR_TOKEN holds what no header takes: letters, digits and signs of ASCII do", _NEW)
        if self.token and len(self.token) < _SHORT:
            raise BadInput(f"ADVISOR_TOKEN has {len(self.token)} characters, and fewer than {_SHORT} are guessed", _NEW)
        if not self.token and not is_loopback(self.host):
            hint = f"set ADVISOR_TOKEN, or leave {named('host')} out"
            raise BadInput(f"on {self.host} others reach the daemon, and it has no token", hint)

    def knows(self, host: str) -> bool:
        """Whether a request may call the daemon by this name (the Host header): what a page elsewhere resolves here is none."""
        try:
            name = plain(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False
        known = {plain(each) for each in (*self.allowed_hosts, *self.own, self.host, "localhost")}
        return name in known or is_loopback(name)

    def lets_in(self, token: str) -> bool:
        """Whether this is the token, in a time that says nothing of it."""
        return hmac.compare_digest(token.encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Stands before all routes (ASGI). most_bytes: of a request's body."""

    def __init__(self, app: ASGIApp, settings: Settings, most_bytes: int) -> None:
        """Guard an application."""
        self.app, self.settings, self.most_bytes = app, settings, most_bytes
        # What a browser keeps instead of the token: it is of this process alone.
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers, marked = Headers(scope=scope), _marking(scope, send)
        refused = self._refused(scope, headers)
        if scope["method"] == "HEAD":  # what GET answers: the server leaves its body out
            scope = {**scope, "method": "GET", ONLY_HEAD: True}
        if refused is not None:
            await refused(scope, receive, marked)
        elif scope["path"] == "/login":
            limited = _Limited(receive, self.most_bytes)
            answer = await self._login(Request(scope, limited))
            await answer(scope, receive, marked)
        else:
            await self.app(scope, _Limited(receive, self.most_bytes), marked)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """Return why a request is refused before it is read, None where it is not."""
        length = headers.get("content-length", "0")
        if not self.settings.knows(headers.get("host", "")):
            hint = "its addresses and localhost are known, and names that advisor serve --allowed-host NAME lets in"
            return problem(
                421, "not this daemon", "this daemon is not called by the name that the request has", hint=hint
            )
        if not length.isascii() or not length.isdigit() or int(length) > self.most_bytes:
            return too_much(TooMuch(self.most_bytes))
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not _is_of_our_page(headers):
            return problem(403, "not from here", "what changes something is asked from no page of another site")
        if self.settings.token and not scope["path"].startswith(_OPEN) and not self._is_known(headers):
            is_page = "text/html" in headers.get("accept", "") and not scope["path"].startswith("/api/")
            if is_page:
                return RedirectResponse("/login", 303)
            return problem(401, "who asks?", "the token is missing or wrong", hint="Authorization: Bearer TOKEN")
        return None

    def _is_known(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.settings.lets_in(token.strip())
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        given = cookies[COOKIE].value if COOKIE in cookies else ""
        return hmac.compare_digest(given.encode(), self._session.encode())

    async def _login(self, request: Request) -> Response:
        """Take a token from a browser, and give it a cookie for it: no page of another site sends that along."""
        fresh = {"Cache-Control": "no-store"}
        if request.method != "POST":
            return HTMLResponse(_LOGIN.format(told=""), headers=fresh)
        from urllib.parse import parse_qs

        try:
            given = parse_qs((await request.body()).decode("utf-8", errors="replace"), max_num_fields=10)
        except TooMuch as error:
            return too_much(error)
        except ValueError:
            given = {}
        if not self.settings.lets_in(given.get("token", [""])[0]):
            return HTMLResponse(_LOGIN.format(told="That is not the token."), 401, headers=fresh)
        answer = RedirectResponse("/", 303, headers=fresh)
        is_secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        answer.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", secure=is_secure)
        return answer


def _is_of_our_page(headers: Headers) -> bool:
    """Whether what changes something is asked by a program, or by a page of this daemon: a browser says where it comes from."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:
        return False


class TooMuch(HTTPException):
    """A body is longer than it may be, whatever its header said. What reads a body lets an exception of HTTP's through."""

    def __init__(self, most_bytes: int) -> None:
        """Say how long it may be."""
        super().__init__(413, f"a request has at most {most_bytes} bytes")


class _Limited:
    """Receives a request's body, and no more of it than is allowed."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self.receive, self.most_bytes, self.left = receive, most_bytes, most_bytes

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise TooMuch(self.most_bytes)
        return message


def too_much(error: TooMuch) -> Response:
    """Return what a request hears that is too long."""
    return problem(413, "too much", str(error.detail))


def of_fault(request: Request, error: Exception) -> Response:
    """Return a fault of our own with our headers: whoever answers that stands before the guard."""
    found = problems.of_fault(request, error)
    for name, value in {**_HEADERS, **_FRESH}.items():
        found.headers.setdefault(name.decode(), value.decode())
    return found


def _marking(scope: Scope, send: Send) -> Send:
    """Return a `send` that adds our headers to what a route answers."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            usual = _HEADERS if scope["path"].startswith("/static/") else {**_HEADERS, **_FRESH}
            ours = [(name, value) for name, value in usual.items() if name not in there]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await send(message)

    return marked
