"""Requests made up from the API's own description, and options with values that no option has: never a fault of ours."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import requests
import schemathesis
from daemons import MODEL, MODELS, Daemon, at_work, database, opened, recorded
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from advisor.asking.options import EFFORT, ON, PLACE, objective_options
from advisor.web.routes import api
from advisor.web.served import Served
from advisor.workloads import DEFAULT_KIND

pytestmark = pytest.mark.slow

#: Requests of each operation, and of each kind: such as the description allows, and such as it does not.
EXAMPLES = 80

#: The same requests each time, however long each takes.
_LIKE_EVER = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]

#: Any text, halves of characters too, which JSON can spell and UTF-8 can't.
_TEXT = st.text(st.characters(), max_size=8)

#: Whatever JSON can hold, and what Python reads as JSON beside it.
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _TEXT
    | st.sampled_from(["auto", "8", "8,16", "1h", "fp32", "0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)

_OPTIONS = sorted(
    {option.name for option in (*DEFAULT_KIND.options, *objective_options(DEFAULT_KIND), *EFFORT, *PLACE, ON)}
)

#: How many requests were made, by operation and status.
made: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Serve a database of either kind with a study, a slot, and jobs."""
    url = f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/advisor.db"
    if request.param == "postgresql":
        postgres = request.getfixturevalue("postgres")
        url = postgres.replace("/postgres?", "/fuzz?")
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("CREATE DATABASE fuzz")
    landscape = recorded()
    with (
        opened(database(url, landscape), landscape, model_root=MODELS, most_waiting=200) as served,
        at_work(served) as there,
    ):
        yield there
    counts = Counter[int]()
    for (_, status), count in made.items():
        counts[status] += count
    print(f"\n{request.param}: {sum(counts.values())} requests: {dict(sorted(counts.items()))}")
    made.clear()


def _operations() -> Iterator[Any]:
    """Yield the operations that there are, as `METHOD path`, with what is to be asked: such as is described, and otherwise.

    One that takes nothing can't be asked otherwise.
    """
    app = FastAPI()
    app.include_router(api(Served("", None, None), lambda: False))  # type: ignore[arg-type]
    for place, each in app.openapi()["paths"].items():
        for method, operation in each.items():
            name = f"{method.upper()} {place}"
            yield pytest.param(name, GenerationMode.POSITIVE, id=f"{name} as described")
            if {"parameters", "requestBody"} & set(operation):
                yield pytest.param(name, GenerationMode.NEGATIVE, id=f"{name} otherwise")


@pytest.mark.parametrize(("operation", "mode"), list(_operations()))
def test_every_operation_answers_as_it_is_described(daemon: Daemon, operation: str, mode: GenerationMode) -> None:
    """Its statuses and types are those of its description, and none is a fault; jobs are now and then ones that are there."""
    schema = schemathesis.openapi.from_dict(daemon.get("/openapi.json").json)
    schema.config.update(base_url=daemon.address)
    method, place = operation.split()
    names = [submitted(daemon) for _ in range(2)]
    names += [names[0][:3], names[1][:-1]]

    @_LIKE_EVER
    @given(schema[place][method].as_strategy(generation_mode=mode), st.none() | st.sampled_from(names))
    def asked(case: schemathesis.Case[Any], name: str | None) -> None:
        if name is not None and "job" in case.path_parameters:
            case.path_parameters["job"] = name
        if place.endswith("/events"):
            made[operation, streamed(case, daemon)] += 1
            return
        answer = case.call()
        made[operation, answer.status_code] += 1
        assert answer.status_code < 500, answer.content
        case.validate_response(answer, checks=CHECKS)

    asked()
    assert made[operation, 404] < sum(count for (name, _), count in made.items() if name == operation)
    for job in daemon.served.jobs.page("queued", most=1000):
        daemon.served.jobs.cancel(job.id)


def submitted(daemon: Daemon) -> str:
    """Submit a job and return its id."""
    told = daemon.post("/api/v1/jobs", {"model": "org/model", "given": {"lengths": "8"}})
    assert told.status == 201, told.body
    return str(told.json["id"])


def streamed(case: schemathesis.Case[Any], daemon: Daemon) -> int:
    """Ask for a stream and leave after its first piece; return its status. It is a stream, or a problem."""
    asked = case.as_transport_kwargs(base_url=daemon.address)
    with requests.request(**asked, stream=True, timeout=30) as answer:
        first = next(answer.iter_content(1000))
        kind = answer.headers["Content-Type"].partition(";")[0]
        if answer.status_code == 200:
            assert (kind, first[:7]) == ("text/event-stream", b"event: ")
        else:
            assert (kind, answer.status_code in (404, 405, 422)) == ("application/problem+json", True)
        return answer.status_code


@pytest.mark.parametrize("verb", ["jobs", "suggest"])
def test_no_value_of_an_option_is_a_fault(daemon: Daemon, verb: str) -> None:
    """Every option with values of every kind: a line says what is wrong, and what is right is stored and told again."""

    @settings(_LIKE_EVER, max_examples=5 * EXAMPLES)
    @given(
        st.sampled_from([MODEL, "org/model"]),
        st.dictionaries(st.sampled_from(_OPTIONS) | _TEXT, _JSON, max_size=3),
        st.booleans(),
    )
    def asked(model: str, options: dict[str, Any], works: bool) -> None:
        told = daemon.post(
            f"/api/v1/{verb}", {"model": model, "given": {**({"lengths": "8"} if works else {}), **options}}
        )
        made[f"POST /api/v1/{verb}", told.status] += 1
        assert told.status in (200, 201, 400, 404, 409, 422), (options, told.body)
        if told.status == 201:
            for place in (told.headers["Location"], "/api/v1/jobs", f"/jobs/{told.json['id']}"):
                assert daemon.get(place).status == 200, (options, place)
            assert daemon.ask("DELETE", told.headers["Location"]).status == 200
        elif told.status != 200:
            assert told.problem["detail"]

    asked()


def test_no_query_of_an_option_is_a_fault(daemon: Daemon) -> None:
    """The same of a question in an address."""
    from urllib.parse import urlencode

    @settings(_LIKE_EVER, max_examples=5 * EXAMPLES)
    @given(st.dictionaries(st.sampled_from(_OPTIONS) | st.text(max_size=8), st.text(max_size=20), max_size=3))
    def asked(options: dict[str, str]) -> None:
        told = daemon.get(f"/api/v1/suggest?{urlencode({'lengths': '8', **options, 'model': MODEL})}")
        made["GET /api/v1/suggest", told.status] += 1
        assert told.status in (200, 404, 409, 422), (options, told.body)

    asked()


def test_no_bytes_are_a_fault(daemon: Daemon) -> None:
    """What is no HTTP at all is refused, and the daemon answers the next."""

    @_LIKE_EVER
    @given(
        st.binary(max_size=200),
        st.sampled_from([b"", b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n", b"POST /api/v1/jobs HTTP/1.1\r\n"]),
    )
    def sent(junk: bytes, begins: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        connection.connect()
        connection.sock.sendall(begins + junk + b"\r\n\r\n")
        connection.sock.shutdown(1)
        status = connection.sock.recv(1000).partition(b" ")[2][:3]
        connection.close()
        assert status in (b"", b"200", b"400", b"404", b"405", b"411", b"413", b"415", b"421", b"422")

    sent()
    assert daemon.get("/api/v1/health").status == 200
