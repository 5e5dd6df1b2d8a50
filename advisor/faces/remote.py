"""A daemon of another host, asked over HTTP: what it answers, and what is wrong, in a line. No library beside Python's own."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from advisor.daemon.job import STATES
from advisor.errors import AdvisorError, BadInput, NothingAdmissible, NotMeasured, StoreError, Unreachable, named
from advisor.version import __version__

#: What to look at where something else answers.
_NONE = "is it the address that advisor serve printed?"

#: How long a daemon may take to answer, seconds.
WAIT_S = 30.0

#: What a proxy answers where the daemon behind it is away.
_OF_A_PROXY = (502, 503, 504)


class Remote:
    """A daemon at a URL. The token in ADVISOR_TOKEN goes with every request, and follows no redirection elsewhere."""

    def __init__(self, url: str) -> None:
        """Ask the daemon there. Raises BadInput for what is no URL of one."""
        if not _is_of_a_daemon(url):
            raise BadInput(f"{named('server')} takes a URL such as http://gpu1:8420, not {url!r}")
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_NoRedirect())

    def submit(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a job; return it."""
        return self._asked("POST", "/jobs", _is_job, payload)

    def job(self, name: str) -> dict[str, Any]:
        """Return a job."""
        return self._asked("GET", f"/jobs/{quote(name, safe='')}", _is_job)

    def jobs(self, state: str | None, most: int) -> list[dict[str, Any]]:
        """Return the newest jobs."""
        asked = urlencode({"limit": most, **({"state": state} if state else {})})
        return list(self._asked("GET", f"/jobs?{asked}", _has_jobs)["jobs"])

    def cancel(self, name: str) -> dict[str, Any]:
        """Cancel a job; return it."""
        return self._asked("DELETE", f"/jobs/{quote(name, safe='')}", _is_job)

    def suggest(self, model: str, given: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a question, as JSON or, where `shown` names another form, with a `text`."""
        is_meant = _is_answer if shown.get("format") == "json" else _is_text
        return self._asked("POST", "/suggest", is_meant, {"model": model, "given": dict(given), **shown})

    def _asked(
        self, method: str, path: str, is_meant: Callable[[Any], bool], body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json", "User-Agent": f"advisor/{__version__}"}
        if token := os.environ.get("ADVISOR_TOKEN"):
            if not (token.isascii() and token.isprintable()):
                raise BadInput("ADVISOR_TOKEN holds what no header takes", "is a line's end in it?")
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)  # noqa: S310 - http alone
        try:
            with self._opener.open(request, timeout=WAIT_S) as answer:
                return _understood(answer.read(), self.url, is_meant)
        except urllib.error.HTTPError as error:
            raise _problem(error, self.url) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise Unreachable(f"the daemon at {self.url} can't be reached: {why}", "advisor serve starts one") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the token is for this daemon."""


def _is_of_a_daemon(url: str) -> bool:
    """Whether a URL can be a daemon's. A name and a password in it would be shown wherever it is."""
    try:
        parts = urlsplit(url)
        has_more = parts.query or parts.fragment or parts.username or parts.port == 0
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname) and not has_more


def _is_job(found: Any) -> bool:
    """Whether this is a job as a daemon tells it, as far as anything is read of it."""
    if not isinstance(found, dict) or found.get("state") not in STATES:
        return False
    if not all(isinstance(found.get(name), str) for name in ("id", "model", "device_class", "submitted_at")):
        return False
    try:
        is_moment = datetime.fromisoformat(found["submitted_at"]).tzinfo is not None
    except ValueError:
        return False
    return is_moment and "study" in found and isinstance(found["study"], int | None)


def _has_jobs(found: Any) -> bool:
    jobs = found.get("jobs") if isinstance(found, dict) else None
    return isinstance(jobs, list) and all(map(_is_job, jobs))


def _is_answer(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("exit_status"), int)


def _is_text(found: Any) -> bool:
    return _is_answer(found) and isinstance(found.get("text"), str)


def _understood(answer: bytes, url: str, is_meant: Callable[[Any], bool]) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not is_meant(found):
        raise AdvisorError(f"what answers at {url} is no daemon of advisor's")
    return found


def _problem(error: urllib.error.HTTPError, url: str) -> AdvisorError:
    """Return what a daemon refused, as the same failure would be here (RFC 9457's detail, and our hint)."""
    try:
        problem = json.loads(error.read())
        detail, hint = str(problem["detail"]), str(problem.get("hint") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, http.client.HTTPException):
        kind = Unreachable if error.code in _OF_A_PROXY else AdvisorError
        return kind(f"{url} answers with status {error.code}: {error.reason}", _NONE)
    if problem.get("title") == "no such place":
        return AdvisorError(f"there is no advisor at {url}", _NONE)
    if error.code in (401, 403):
        return AdvisorError(f"{url}: {detail}", hint or "ADVISOR_TOKEN is to be the daemon's")
    if error.code == 404:
        return NotMeasured(detail, hint)
    reasons = problem.get("reasons")
    if error.code == 409 and isinstance(reasons, list):
        return NothingAdmissible([str(reason) for reason in reasons])
    return StoreError(detail, hint) if error.code == 503 else BadInput(detail, hint)
