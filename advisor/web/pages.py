"""The daemon's pages for browsers, as FastAPI's routes: the jobs, a job, the studies, a study's report, the map, and a form.

Every page needs a script of this daemon's alone, and works without one. What changes something is a form's POST; that it comes
from a page of this daemon is checked before it gets here (`advisor.web.security`).
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from advisor.asking.submission import Submission
from advisor.daemon.job import STATES, is_id
from advisor.errors import AdvisorError, BadInput, DamagedRow, NotMeasured, StoreError
from advisor.models.checkpoint import find_model
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Tier
from advisor.pages.board import PAGE, board_of, job_page_of
from advisor.pages.live import Live, standing
from advisor.pages.points import Role
from advisor.pages.rendering import (
    board_html,
    job_html,
    map_html,
    message_html,
    report_html,
    static_script,
    studies_html,
    submit_html,
)
from advisor.pages.study_report import StudyReport, report_of
from advisor.pages.winners import map_of
from advisor.web.problems import AGAIN_S, status_of
from advisor.web.running import Running
from advisor.web.served import Served

#: What a page's answer says of keeping it: what it shows changes, and may be for whoever has the token alone.
_FRESH = {"Cache-Control": "no-store"}

#: A script's place has its version in it: what is there never changes.
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}

#: How long it is believed where a model is, seconds: its weights are digested each time that somebody looks.
_LOOK_S = 60.0

#: The number of a study.
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)

#: What the form asks for beside the model and the priority, by option.
_FIELDS = ("lengths", "padding", "batch", "budget", "quality", "on")


class _PageRoute(APIRoute):
    """A route whose failures are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except AdvisorError as error:
                return problem_page(request, error)
            except RequestValidationError as error:
                where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
                return problem_page(
                    request, BadInput(f"the page's address can't be understood: {where} is wrong in it")
                )

        return answered


class NotThere(NotMeasured):
    """What an address names is not there."""


def problem_page(request: Request, error: AdvisorError, status: int | None = None) -> HTMLResponse:
    """Return a failure as a page, with its line and what to do next. status: of HTTP, None for what fits the failure."""
    error.names_keywords = True
    number = status or status_of(error)
    title = (
        "This is not here"
        if number == 404
        else "This can't be shown for now"
        if number >= 500
        else "This is not possible"
    )
    again = {"Retry-After": str(AGAIN_S)} if number in (429, 503) else {}
    return _page(message_html(title, str(error), "", _live(request)), number, again)


def _page(text: str, status: int = 200, more: Mapping[str, str] | None = None) -> HTMLResponse:
    return HTMLResponse(text, status, {**_FRESH, **(more or {})})


def _live(request: Request, said: str = "", *, changes: bool = False) -> Live:
    return Live(changes, said, getattr(request.state, "nonce", None))


async def _typed(request: Request) -> dict[str, str]:
    """Return what a form was filled in with, by name, trimmed."""
    body = await request.body()
    try:
        pairs = parse_qsl(body.decode(), max_num_fields=50, errors="strict")
    except ValueError:
        raise BadInput("the form can't be understood") from None
    return {name: value.strip() for name, value in pairs}


Typed = Annotated[dict[str, str], Depends(_typed)]


def router(served: Served) -> APIRouter:
    """Return the routes of the pages. served: the daemon's database."""
    routes = APIRouter(route_class=_PageRoute, include_in_schema=False, default_response_class=HTMLResponse)
    pages = Pages(served)
    routes.add_api_route("/", pages.board, methods=["GET"])
    routes.add_api_route("/jobs/{name}", pages.job, methods=["GET"])
    routes.add_api_route("/jobs/{name}/cancel", pages.cancel, methods=["POST"])
    routes.add_api_route("/submit", pages.form, methods=["GET"])
    routes.add_api_route("/submit", pages.submit, methods=["POST"])
    routes.add_api_route("/studies", pages.studies, methods=["GET"])
    routes.add_api_route("/studies/{number}", pages.study, methods=["GET"])
    routes.add_api_route("/map", pages.map, methods=["GET"])
    routes.add_api_route("/static/{place}", static, methods=["GET"])
    return routes


class Pages:
    """The pages of one daemon. Each runs in a thread of its own and may read the database."""

    def __init__(self, served: Served) -> None:
        """Answer from a daemon's database."""
        self._served = served
        self._running = Running(served.store)

    def board(self, request: Request, state: str | None = None, first: int = 0) -> Response:
        """The jobs, the newest first, and the slots."""
        if state is not None and state not in STATES:
            raise BadInput("no job is ever of this state", f"there are {', '.join(STATES)}")
        if not 0 <= first <= 10**9:
            raise BadInput("first must be a number from 0 on")
        jobs = self._served.listed(state, first, PAGE + 1)
        slots = [slot.payload for slot in self._served.roster.slots()]
        classes = sorted({str(slot["device_class"]) for slot in slots})
        depths = {name: self._served.jobs.waiting(name) for name in classes}
        open_studies = {str(job["id"]): job for job in jobs if job["state"] == "running" and job["study"] is not None}
        bests = {name: self._running.best(job["study"], job["study_trials"]) for name, job in open_studies.items()}
        page = board_of(jobs, slots, depths, state=state, first=first, bests=bests)
        return _page(board_html(page, _live(request, page.said, changes=True)))

    def job(self, request: Request, name: str) -> Response:
        """How a job stands, and the report of its study."""
        payload = self._served.told(_named(name))
        slots, report = [slot.payload for slot in self._served.roster.slots()], None
        if payload["study"] is not None:
            with suppress(NotMeasured, BadInput, DamagedRow):  # the study's own page says why; the job can be cancelled
                report = self._report(payload["study"])
        page = job_page_of(payload, slots, report)
        return _page(job_html(page, _live(request, page.said, changes=page.job.is_open)))

    def cancel(self, name: str) -> Response:
        """Cancel a job, and go back to its page."""
        job = self._served.jobs.cancel(_named(name))
        return RedirectResponse(f"/jobs/{quote(job.id)}", 303, _FRESH)

    def form(self, request: Request) -> Response:
        """The form that submits a job."""
        return self._form(request, {}, "")

    def submit(self, request: Request, typed: Typed) -> Response:
        """Submit what a form says, and go to the job's page; where that can't be, say why beside what was typed."""
        try:
            job = self._served.submit(_submission(typed))
        except (BadInput, StoreError) as error:
            error.names_keywords = True
            return self._form(request, typed, str(error), status_of(error))
        return RedirectResponse(f"/jobs/{quote(job.id)}", 303, _FRESH)

    def _form(self, request: Request, typed: Mapping[str, str], error: str, status: int = 200) -> Response:
        devices: list[str] = []
        with suppress(StoreError):
            devices = sorted({slot.device_class for slot in self._served.roster.slots()})
        return _page(submit_html(typed, devices, [str(tier) for tier in Tier], error, _live(request)), status)

    def studies(self, request: Request, first: int = 0) -> Response:
        """The studies, the newest first."""
        if not 0 <= first <= 10**9:
            raise BadInput("first must be a number from 0 on")
        store = self._served.store.anew()
        found = store.studies_page(None, None, first, PAGE) or []
        damaged = list(store.damaged)
        older = store.studies_page(None, None, first + PAGE, 1) is not None
        places = (
            f"/studies?first={max(0, first - PAGE)}" if first else None,
            f"/studies?first={first + PAGE}" if older else None,
        )
        return _page(studies_html(found, *places, _live(request), damaged))

    def study(self, request: Request, number: str) -> Response:
        """The report of a study, as `advisor report` writes it."""
        if not _NUMBER.fullmatch(number):
            raise NotThere("there is no such study", "/studies lists them")
        study = self._served.store.study(int(number))
        try:
            report = self._report(study.id)
        except NotMeasured:
            said = standing(study, 0)
            title, is_running = f"Study {study.id}: {study.model_name}", study.state == "running"
            live = _live(request, said, changes=is_running)
            return _page(message_html(title, "Nothing of it has been measured to its end yet.", "", live))
        ended = sum(point.role is not Role.OPEN for point in report.points)
        live = _live(request, standing(report.study, ended), changes=report.study.state == "running")
        return _page(report_html(report, live))

    def _report(self, number: int) -> StudyReport:
        source = _source_of(self._served.store.study(number).model_name)
        return report_of(self._served.store.anew(), number, source, self._served.environments())

    def map(self, request: Request, model: str = "", on: str | None = None) -> Response:
        """Which choice wins where, as `advisor map` writes it: of a model by the name that its studies have."""
        if not model:
            raise BadInput("a map is of one model", "/studies lists those that there are, each with its map")
        key = None if "\0" in model else self._served.store.architecture_of(model)
        if key is None:
            raise NotThere("no study of this model is stored", "/studies lists those that there are")
        page = map_of(self._served.store.anew(), model, key, on or None)
        said = f"{len(page.unanswered)} without an answer yet. The page follows them." if page.unanswered else ""
        return _page(map_html(page, _live(request, said, changes=bool(page.unanswered))))


def static(request: Request, place: str) -> Response:
    """A script of a page."""
    text = static_script(place)
    if text is None:
        raise NotThere("there is no such file")
    is_packed = "gzip" in request.headers.get("accept-encoding", "")
    more = {"Content-Encoding": "gzip"} if is_packed else {}
    body = _packed(place) if is_packed else text.encode()
    return Response(body, 200, {**_FOR_EVER, **more}, "text/javascript; charset=utf-8")


@cache
def _packed(place: str) -> bytes:
    """Return a script packed: plotly's is a third of its size then."""
    return gzip.compress((static_script(place) or "").encode(), 6, mtime=0)


def _named(name: str) -> str:
    """Return a job's id. Raises NotThere for what can be none."""
    if not is_id(name):
        raise NotThere("there is no such job", "the first page lists them")
    return name


def _submission(typed: Mapping[str, str]) -> Submission:
    """Return what a form asks for. Raises BadInput."""
    given: dict[str, Any] = {name: typed[name] for name in _FIELDS if typed.get(name)}
    with suppress(ValueError):  # what is no number is told by who reads it
        given |= {name: int(given[name]) for name in ("batch",) if name in given}
    with suppress(ValueError):
        given |= {name: float(given[name]) for name in ("padding",) if name in given}
    return Submission.of({"model": typed.get("model", ""), "given": given, "priority": typed.get("priority") or 0})


def _source_of(name: str) -> ModelSource | None:
    """Return where the model of a study is now, None where it is not found here: nothing is fetched, no pickle is looked into."""
    return _found(name, int(time.monotonic() / _LOOK_S))


@lru_cache(maxsize=64)
def _found(name: str, _: int) -> ModelSource | None:
    try:
        return find_model(name, download=False)
    except (BadInput, OSError, ValueError):  # a database has names of other machines
        return None
