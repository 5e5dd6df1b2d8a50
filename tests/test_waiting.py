"""Why a job does not start: the command line, the API and the pages say the same of it, and it costs two questions."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons import GPU, at_work, database, opened, recorded, waited
from sqlalchemy import Engine, event

from advisor.asking.submission import Submission
from advisor.daemon import engine
from advisor.faces.cli import run
from advisor.machine.leftovers import owner
from advisor.show.job_table import change
from advisor.web.served import Served

ASKED = {"lengths": "8", "batch": 2}


@pytest.fixture
def served(database_url: str) -> Iterator[Served]:
    """Give a daemon's database with one slot at work."""
    with opened(database(database_url), recorded()) as found:
        yield found


@contextmanager
def taken_up(served: Served) -> Iterator[str]:
    """Have the slot take a job up, as a slot does, and give its id: it runs for as long as this lasts."""
    begun: list[str] = []
    device_class = recorded().environment.device_class
    name = served.submit(Submission("org/first", ASKED)).id

    def perform(job: str, _: int) -> str:
        begun.append(job)
        waited(lambda: not served.jobs.job(job).is_open)
        return ""

    with engine.at_work(served.url, GPU, device_class, perform):
        waited(lambda: begun)
        served.roster.beat(GPU, owner(), "busy", job=name)
        yield name
        served.jobs.cancel(name)


def test_a_job_that_waits_says_behind_whom(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many are before it, by priority and then by age, and what runs where: everywhere in the same words."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", served.url)
    monkeypatch.setenv("COLUMNS", "80")
    with taken_up(served) as running:
        second, third = (served.submit(Submission("org/model", ASKED)).id for _ in range(2))
        urgent = served.submit(Submission("org/urgent", ASKED, priority=7)).id
        told = {job["id"]: job["why"] for job in served.listed(None, 0, 10)}
        runs = rf"{running} runs on {GPU} since \d\d:\d\d UTC"
        assert told[running] == ""
        assert re.fullmatch(runs, told[urgent])
        assert re.fullmatch(f"1 job before it; {runs}", told[second])
        assert re.fullmatch(f"2 jobs before it; {runs}", told[third])
        assert served.told(third)["why"] == told[third]

        with at_work(served) as daemon:
            assert daemon.get(f"/api/v1/jobs/{third}").json["why"] == told[third]
            assert told[third] in daemon.get("/").body.decode()
            assert told[third] in daemon.get(f"/jobs/{third}").body.decode()
        capsys.readouterr()
        assert run(["jobs"]) == run(["jobs", third]) == 0
        table = " ".join(capsys.readouterr().out.split())
        assert table.count(told[third]) == 2
        assert "prio" in table
        assert f"queued · org/model · {told[third]}" in change(served.told(third))
        assert f"queued · org/urgent · priority 7 · {told[urgent]}" in change(served.told(urgent))
        assert run(["submit", "org/last", "--lengths", "8", "--batch", "2", "--format", "json"]) == 0
        said = capsys.readouterr()
        assert "note: 3 jobs before it" in said.err
        assert json.loads(said.out)["why"].startswith("3 jobs before it")


def test_a_slot_outside_its_hours_is_named_when_a_job_is_submitted(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has to look for why nothing happens."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", served.url)
    served.roster.beat(GPU, owner(), "waiting", "it is only used 22:00-07:00")
    assert run(["submit", "org/model", "--lengths", "8", "--batch", "2"]) == 0
    assert f"note: {GPU}: it is only used 22:00-07:00" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (
            {"state": "running", "why": "it is put back", "answer": "faster 1.20 ×: sdpa"},
            "it is put back; so far faster",
        ),
        ({"state": "queued", "why": "no slot is at work", "answer": ""}, "no slot is at work"),
        ({"state": "failed", "why": "out of memory", "answer": ""}, "out of memory"),
        ({"state": "done", "why": "enough", "answer": "faster 1.20 ×: sdpa"}, "faster 1.20 ×: sdpa"),
    ],
)
def test_the_reason_comes_before_what_was_found_by_then(job: dict[str, str], said: str) -> None:
    """Of a job that is not over what it waits for is what people look for."""
    assert said in change({"id": "1", "model": "org/model", "study": 1, "trials": 2, "priority": 0, **job})


@contextmanager
def _listened(asked: list[str]) -> Iterator[None]:
    """Note what this thread asks of any database: the slot's own threads ask too."""
    here = threading.get_ident()

    def note(*given: object) -> None:
        if threading.get_ident() == here:
            asked.append(str(given[2]))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_page_of_jobs_costs_a_handful_of_questions(served: Served) -> None:
    """However many of them wait."""
    with taken_up(served):
        counts = []
        for many in (2, 30):
            for _ in range(many):
                served.submit(Submission("org/model", ASKED))
            asked: list[str] = []
            with _listened(asked):
                assert any("before it" in job["why"] for job in served.listed("queued", 0, 50))
            counts.append(len(asked))
        assert 0 < counts[0] == counts[1] <= 10


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", "9999999999"])
def test_a_list_of_no_jobs_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the API refuses it: it would say that there are no jobs, or tell all."""
    assert run(["jobs", f"--limit={limit}"]) == 2
    assert f"a whole number from 1 on, not '{limit}'" in capsys.readouterr().err


def test_a_path_that_is_not_here_is_told(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another host may have it: the job is taken, and whoever submits it hears of it. A hub id is no path."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", served.url)
    for model, is_told in ((str(tmp_path / "nothing"), True), (str(tmp_path), False), ("org/nothing", False)):
        assert run(["submit", model, "--lengths", "8", "--batch", "2", "--format", "json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["model"] == model
        assert (f"note: {model} is not here: the host that takes the job must have it there" in said.err) == is_told
