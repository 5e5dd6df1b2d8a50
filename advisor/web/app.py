"""The application: the API, the pages, metrics and its own description, behind the guard."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from advisor.errors import AdvisorError
from advisor.pages.live import Live
from advisor.pages.rendering import api_html
from advisor.version import __version__
from advisor.web import pages, problems
from advisor.web.answering import Answering
from advisor.web.metrics import CONTENT_TYPE, Metrics
from advisor.web.routes import api
from advisor.web.security import Guard, Settings, TooMuch, of_fault, too_much
from advisor.web.served import Served
from advisor.web.timing import Timed


def application(
    served: Served,
    settings: Settings,
    stopping: Callable[[], bool] = lambda: False,
    answering: Answering | None = None,
) -> FastAPI:
    """Return the application of a daemon. stopping: whether it ends; answering: who answers, None for threads of this process."""
    app = FastAPI(
        title="advisor",
        version=__version__,
        description="The fastest way to run a transformers model that is still right, with the proof.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirection would name the scheme that a proxy in between speaks with us
    )
    app.include_router(api(served, stopping, answering))
    app.include_router(pages.router(served))
    _add_description(app)
    metrics = Metrics(served)
    _add_metrics(app, metrics)
    app.add_exception_handler(AdvisorError, problems.of_failure)
    app.add_exception_handler(RequestValidationError, problems.of_request)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(TooMuch, lambda _, error: too_much(error))
    app.add_exception_handler(Exception, of_fault)
    app.add_middleware(Timed, counted=metrics.count)
    app.add_middleware(Guard, settings=settings, most_bytes=served.limits.most_body_bytes)
    return app


def _of_http(request: Request, error: Exception) -> Response:
    """Return what HTTP itself calls wrong: to a browser that asks for a page that there is none of, as a page."""
    is_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
    if is_page and isinstance(error, HTTPException) and error.status_code == 404:
        return pages.problem_page(request, pages.NotThere("there is no such page", "the first page lists the jobs"))
    return problems.of_http(request, error)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", include_in_schema=False)
    def told() -> Response:
        """Tell Prometheus how things stand."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_description(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        """Describe the API on a page that needs no other host."""
        return HTMLResponse(api_html(app.openapi(), Live(nonce=getattr(request.state, "nonce", None))))
