"""The API, version 1: jobs, answers and what is stored, as JSON. Each route is a verb that the command line has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from advisor.asking.submission import LEAST_PRIORITY, MOST_PRIORITY, Submission
from advisor.daemon.job import LONGEST_ID, STATES
from advisor.errors import AdvisorError, BadInput, NotMeasured
from advisor.version import __version__
from advisor.web.answering import Answering
from advisor.web.description import ANY, BODY, POSTED, answers, asked
from advisor.web.events import NEWEST, Streams
from advisor.web.problems import problem
from advisor.web.served import Served

#: Rows of a page, and how many a request may ask for.
PAGE, MOST = 50, 500

_Id = Annotated[str, Path(max_length=LONGEST_ID, description="a job's id, or a beginning that no other one has")]
_First = Annotated[int, Query(ge=0, le=10**7, description="how many newer ones are left out, a whole number")]
_Limit = Annotated[int, Query(ge=1, le=MOST, description=f"how many at most, from 1 to {MOST}")]
_Before = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="trials with a lower number than this alone")]
_Study = Annotated[int, Query(ge=1, le=2**31 - 1, description="a study's number")]
_State = Annotated[str | None, Query(description=f"jobs of this state alone: one of {', '.join(STATES)}")]
_Failed = Annotated[bool, Query(description="true for those alone that failed or were wrong")]
_Model = Annotated[str, Query(max_length=1000, description="a hub id, or a path where the daemon's models are")]

#: What the streams answer.
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "events, as they come", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def _body(**more: dict[str, Any]) -> Any:
    return Body(examples=[{"model": "org/model", "given": {"lengths": 2048}}], json_schema_extra=asked(**more))


#: The bodies of a job and of a question.
_JOB = _body(priority={"type": "integer", "minimum": LEAST_PRIORITY, "maximum": MOST_PRIORITY})
_QUESTION = _body(
    format={"type": "string"}, columns={"type": "integer"}, pareto={"type": "boolean"}, refusals={"type": "boolean"}
)


def api(served: Served, stopping: Callable[[], bool], answering: Answering | None = None) -> APIRouter:
    """Return the routes.

    stopping: whether the daemon ends, so that whoever listens is let go. answering: who answers, None for this process's threads.
    """
    router = APIRouter(prefix="/api/v1", responses=answers(*ANY))
    _add_jobs(router, served)
    _add_events(router, served, stopping)
    _add_answers(router, answering or Answering(served))
    _add_stored(router, served)
    return router


def _add_jobs(router: APIRouter, served: Served) -> None:
    @router.post("/jobs", status_code=201, responses=answers(*POSTED, *BODY, 409, 429))
    def submit(
        payload: Annotated[dict[str, Any], _JOB],
    ) -> Any:
        """Submit a job: `model`, the options of `advisor tune` by name in `given`, and `priority`, a higher one first."""
        job = served.submit(Submission.of(payload))
        return JSONResponse(served.told(job.id), 201, {"Location": f"/api/v1/jobs/{job.id}"})

    @router.get("/jobs", responses=answers(422))
    def jobs(state: _State = None, first: _First = 0, limit: _Limit = PAGE) -> Any:
        """List jobs, the newest first: of a state alone where one is named. `next` is where it goes on."""
        if state is not None and state not in STATES:
            raise BadInput(f"state is one of {', '.join(STATES)}, not {state[:40]!r}")
        found = served.listed(state, first, limit + 1)
        named_state = "" if state is None else f"&state={state}"
        following = f"/api/v1/jobs?first={first + limit}&limit={limit}{named_state}" if len(found) > limit else None
        return {"jobs": found[:limit], "next": following}

    @router.get("/jobs/{job}", responses=answers(404, 422))
    def job(job: _Id) -> Any:
        """Return a job, and how its study stands."""
        return served.told(job)

    @router.delete("/jobs/{job}", responses=answers(*POSTED, 404, 409, 422))
    def cancel(job: _Id) -> Any:
        """Cancel a job that waits or runs: what it runs is killed, what it measured stays. 409 for one that is over."""
        return served.told(served.cancel(job).id)


def _add_events(router: APIRouter, served: Served, stopping: Callable[[], bool]) -> None:
    streams = Streams(served.limits.most_streams, stopping)

    @router.get("/events", response_class=StreamingResponse, responses=_STREAM)
    def events(request: Request) -> Any:
        """Tell how the newest jobs stand, as it changes (server-sent events)."""
        return streams.stream(request, "", lambda: served.listed(None, 0, NEWEST), ends=False)

    @router.get("/jobs/{job}/events", response_class=StreamingResponse, responses={**_STREAM, **answers(404, 422)})
    def job_events(request: Request, job: _Id) -> Any:
        """Tell how a job stands, as it changes, until it is over (server-sent events)."""
        name = served.jobs.job(job).id
        return streams.stream(request, name, lambda: [served.told(name)], ends=True)


def _add_answers(router: APIRouter, answering: Answering) -> None:
    @router.post("/suggest", responses=answers(*POSTED, *BODY, 404, 409))
    async def suggest(
        payload: Annotated[dict[str, Any], _QUESTION],
    ) -> Any:
        """Answer from what was measured, as `advisor suggest --format json` does; `exit_status` is the command's.

        `format`: another form that the command has, as `text`; `columns`, `pareto` and `refusals` are that form's.
        """
        question = Submission.of({name: value for name, value in payload.items() if name in ("model", "given")})
        shown = {n: v for n, v in payload.items() if n not in ("model", "given")}
        return _json(await answering.answer(question.model, question.given, shown))

    @router.get("/suggest", responses=answers(404, 409, 422))
    async def suggest_get(request: Request, model: _Model) -> Any:
        """The same of a query: the options of `advisor suggest` by name, such as `lengths=2048&batch=8`."""
        given = {name: value for name, value in request.query_params.items() if name != "model"}
        return _json(await answering.answer(model, given, {}))


def _json(body: bytes) -> Response:
    """Return an answer that is JSON already: FastAPI takes longer to look through its values than it takes to make."""
    return Response(body, media_type="application/json")


def _add_stored(router: APIRouter, served: Served) -> None:
    @router.get("/trials", responses=answers(404, 422))
    def trials(
        study: _Study,
        before: _Before = None,
        limit: _Limit = PAGE,
        *,
        failed: _Failed = False,
    ) -> Any:
        """List a study's trials, the newest first, from below a number on; failures alone where those are asked for."""
        from advisor.study.history import study_payload, trial_payload

        store = served.store.anew()
        record = store.study(study)
        page = store.page(study, before, limit, failed=failed)
        more = page.last is not None and page.last > 0
        following = f"study={study}&before={page.last}&limit={limit}{'&failed=true' if failed else ''}"
        listed = [trial_payload(record, trial) for trial in page.trials]
        return {
            **study_payload(record),
            "trials": listed,
            "next": f"/api/v1/trials?{following}" if more else None,
            "damaged": list(store.damaged),
        }

    @router.get("/studies", responses=answers(422))
    def studies(first: _First = 0, limit: _Limit = PAGE) -> Any:
        """List studies, the newest first."""
        from advisor.study.history import study_payload

        store = served.store.anew()
        found, damaged = store.studies_page(None, None, first, limit) or [], list(store.damaged)
        is_last = store.studies_page(None, None, first + limit, 1) is None
        following = None if is_last else f"/api/v1/studies?first={first + limit}&limit={limit}"
        return {"studies": [study_payload(each) for each in found], "next": following, "damaged": damaged}

    @router.get("/environments")
    def environments() -> Any:
        """List the slots, those that are there first, and the environments with measurements."""
        measured = [
            {"key": key, "words": str(each), **each.payload} for key, each in served.store.anew().environments()
        ]
        return {"slots": [slot.payload for slot in served.roster.slots()], "measured": measured}

    @router.get("/health")
    def health() -> Any:
        """Say whether the database answers. `slots`: how many there are on all hosts; with 0 nothing is tuned."""
        try:
            slots = served.roster.slots()
            served.jobs.page(None, 0, 1)
        except AdvisorError as error:
            if isinstance(error, NotMeasured):
                raise
            return problem(503, "not well", "the database does not answer")
        return {"status": "ok", "version": __version__, "slots": sum(slot.is_there() for slot in slots)}
