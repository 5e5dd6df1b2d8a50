"""Processes that answer: what they say is what the daemon's own threads say; one that dies is replaced; none is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import run_here
from daemons import waited
from made_databases import laid
from test_serve import processes_of, serving, told

from advisor.daemon import engine
from advisor.errors import AdvisorError, BadInput, NotMeasured
from advisor.measure.landscape import read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Machine
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.web.answering import Answering, usual_processes
from advisor.web.served import Limits, Served
from advisor.workloads.forward import EMBEDDINGS, Forward

MODELS = Path(__file__).parent / "models"
MODEL = str(MODELS / "encoder")
GIVEN = {"lengths": "64,32,48,16", "batch": 1, "output": "pooled", "on": "H100"}


@pytest.fixture
def served(database_url: str) -> Iterator[Served]:
    """Give a daemon's database with one study of a recording."""
    landscape = read_landscapes(Path(__file__).parent / "landscapes")["h100-minilm-l6-8x64-padding-0.4"]
    machine = Machine(landscape.environment, "host", "GPU-0", 0, landscape.environment.memory_bytes)
    with Store.open(laid(database_url), write=True) as store:
        work = Forward((64, 32, 48, 16), 1, EMBEDDINGS)
        job = Job(find_model(MODEL), work, Objective(Tier.DTYPE), Budget(trials=8), machine)
        tune(job, store, ReplayRunner(landscape), lambda _: None)
    engine.prepare(database_url)
    made = Served.open(database_url, Limits(MODELS))
    yield made
    made.close()


def said(answering: Answering, *questions: tuple[str, dict[str, Any], dict[str, Any]]) -> list[Any]:
    """Ask questions at once; return each answer, or the error's kind and words."""

    async def one(question: tuple[str, dict[str, Any], dict[str, Any]]) -> Any:
        try:
            return json.loads(await answering.answer(*question))
        except AdvisorError as error:
            return type(error), str(error), error.hint

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(one, questions))

    return asyncio.run(all_of_them())


QUESTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (MODEL, GIVEN, {}),
    (MODEL, GIVEN, {"format": "text", "columns": 100}),
    (MODEL, {**GIVEN, "batch": 7}, {}),
    (MODEL, {**GIVEN, "allow_pickle": True}, {}),
    (MODEL, {**GIVEN, "lengths": "-1"}, {}),
    ("/etc", GIVEN, {}),
]


def test_processes_say_what_threads_say(served: Served) -> None:
    """Answers as JSON and text, and every kind of refusal with its hint; asked at once, and again."""
    beside = Answering(served, 2)
    try:
        plain = said(Answering(served), *QUESTIONS)
        assert said(beside, *QUESTIONS) == plain
        assert said(beside, *QUESTIONS * 3) == plain * 3
    finally:
        beside.close()
    assert plain[0]["recommendation"] is not None
    assert "from transformers import" in plain[1]["text"]
    assert [each[0] for each in plain[2:]] == [NotMeasured, BadInput, BadInput, BadInput]


def children() -> list[psutil.Process]:
    """Return the processes that answer."""
    return [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]


def spent_s(process: psutil.Process) -> float:
    """Return the processor time of a process, seconds."""
    return float(sum(process.cpu_times()[:2]))


def rests(process: psutil.Process) -> bool:
    """Return whether a process has done something, and does nothing now."""
    before = spent_s(process)
    time.sleep(0.3)
    return 0 < before == spent_s(process)


def test_who_answered_last_answers_next(served: Served) -> None:
    """Questions in turn have one process, whose caches are warm; with those that come at once another one is begun."""
    beside = Answering(served, 2)
    try:
        for _ in range(3):
            said(beside, QUESTIONS[0])
        (first,) = children()
        said(beside, *[QUESTIONS[0]] * 8)
        waited(lambda: len(children()) == 2)
        (other,) = set(children()) - {first}
        waited(lambda: rests(other))  # it has opened the database
        said(beside, *[QUESTIONS[0]] * 8)
        before = [spent_s(first), spent_s(other)]
        for _ in range(20):
            said(beside, QUESTIONS[0])
        little, much = sorted(spent_s(each) - was for each, was in zip((first, other), before, strict=True))
        assert little < 0.02 < much
    finally:
        beside.close()


def test_a_process_that_dies_is_replaced(served: Served) -> None:
    """The next question is answered by others, however many died; what is over is over."""
    beside = Answering(served, 3)
    try:
        first = said(beside, *[QUESTIONS[0]] * 9)
        for child in children():
            child.kill()
        assert said(beside, QUESTIONS[0]) == first[:1]
    finally:
        beside.close()


def test_a_question_that_kills_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every process dies over a question, it ends with a line for whoever asked."""
    beside = Answering(served, 1)
    monkeypatch.setattr("advisor.web.answering._answered_here", _die)
    try:
        kind, words, hint = said(beside, QUESTIONS[0])[0]
    finally:
        beside.close()
    assert (kind.__name__, words) == ("Unreachable", f"the processes that answer died over this question ({hint})")


def _die(*_: Any) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_their_daemon(served: Served, end: signal.Signals, tmp_path: Path) -> None:
    """Asked over HTTP they answer as the command does, and none is left however the daemon ends."""
    url = served.url
    flags = ("--workers", "none", "--model-root", str(MODELS), "--answer-processes", "2")
    with serving(url, *flags, ADVISOR_LOCK_DIR=str(tmp_path)) as (process, address):
        asked = [f"--{name}={value}" for name, value in GIVEN.items()]
        there = run_here("suggest", MODEL, *asked, "--server", address, "--format", "json")
        here = run_here("suggest", MODEL, *asked, "--format", "json", ADVISOR_DATABASE_URL=url)
        assert json.loads(there.stdout) == json.loads(here.stdout), there.stderr
        assert len(processes_of(url)) > 1
        assert told(address, "health")["status"] == "ok"
        process.send_signal(end)
        process.wait(60)
        waited(lambda: not processes_of(url))


def test_small_hosts_answer_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for four cores, and four at most."""
    for cores, processes in ((1, 0), (2, 0), (4, 1), (16, 4), (192, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert usual_processes() == processes
