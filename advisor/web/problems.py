"""Problems: what a request did wrong, or what is wrong here, as problem+json (RFC 9457): a status, a line, what to do next."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from advisor.errors import AdvisorError, BadInput, NothingAdmissible, NotMeasured, StoreError
from advisor.terminal import in_a_line
from advisor.web.served import NoDevice, OverAlready, QueueFull

#: Of a request (ASGI's scope) whose answer's headers alone are asked for.
ONLY_HEAD = "advisor.only_head"

#: What a problem is titled where a path leads nowhere: whoever asks takes something else for a daemon.
NO_ROUTE = "no such place"

#: After so many seconds it may be tried again, where the database is away or the queue is full.
AGAIN_S = 5

#: The status of HTTP that fits a failure: the first of the kinds that it is.
_STATUSES: tuple[tuple[type[AdvisorError], int], ...] = (
    (QueueFull, 429),
    (NoDevice, 409),
    (OverAlready, 409),
    (NotMeasured, 404),
    (NothingAdmissible, 409),
    (StoreError, 503),
    (BadInput, 422),
)

_log = logging.getLogger("advisor.web")


def status_of(error: AdvisorError) -> int:
    """Return the status of HTTP that fits a failure."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 409)


def problem(status: int, title: str, detail: str, **more: Any) -> JSONResponse:
    """Return a problem. more: members beside those of the standard, such as `hint`."""
    headers = {"Retry-After": str(AGAIN_S)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # What somebody sent is named in it, and may hold what no UTF-8 takes.
    told = {
        name: in_a_line(text) if isinstance(text, str) else text for name, text in {"detail": detail, **more}.items()
    }
    body = {"type": "about:blank", "title": title, "status": status, **told}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def of_failure(_: Request, error: Exception) -> JSONResponse:
    """Return an expected failure as a problem: options are named as the request's JSON names them."""
    assert isinstance(error, AdvisorError)
    error.names_keywords = True
    status = status_of(error)
    hint, whole = error.hint, str(error)
    detail = whole.removesuffix(f" ({' '.join(hint.split())})") if hint else whole
    more: dict[str, Any] = {"hint": whole.removeprefix(detail).strip()[1:-1]} if len(detail) < len(whole) else {}
    if isinstance(error, NothingAdmissible):
        more["reasons"] = [in_a_line(reason) for reason in error.reasons]
    titles = {404: "not here", 409: "not possible", 422: "not understood", 429: "too many jobs wait"}
    return problem(status, titles.get(status, "not possible for now"), detail, **more)


def of_request(request: Request, error: Exception) -> JSONResponse:
    """Return what is wrong with the form of a request."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return problem(415, "not understood", "the body is to be JSON", hint="Content-Type: application/json")
    where = ".".join(str(part) for part in first["loc"])
    status = 400 if first["type"] == "json_invalid" else 422
    return problem(status, "not understood", f"{where}: {first['msg']}")


def of_http(_: Request, error: Exception) -> JSONResponse:
    """Return what HTTP itself calls wrong: no such path, no such method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(404, NO_ROUTE, "nothing of advisor's is at this address", hint="/docs lists what there is")
    found = problem(error.status_code, "not possible", str(error.detail))
    found.headers.update(error.headers or {})
    return found


def of_fault(request: Request, error: Exception) -> JSONResponse:
    """Return a fault of our own: its traceback is in the log, under a name that the answer has too."""
    name = secrets.token_hex(4)
    _log.error("a fault of advisor's own", exc_info=error, extra={"fault": name, "path": request.url.path})
    return problem(500, "a fault of advisor's own", f"the daemon's log has it as {name}")
