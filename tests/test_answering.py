"""Processes that answer: what they say is what the daemon's own threads say; one that dies is replaced; none is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
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

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(_told(answering, question) for question in questions))

    return asyncio.run(all_of_them())


async def _told(answering: Answering, question: tuple[str, dict[str, Any], dict[str, Any]]) -> Any:
    try:
        return json.loads(await answering.answer(*question))
    except AdvisorError as error:
        return type(error), str(error), error.hint


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


@pytest.fixture
def others() -> Callable[[], set[psutil.Process]]:
    """Give the processes that answer and that were begun since."""

    def now() -> set[psutil.Process]:
        return {each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE}

    before = now()
    return lambda: {each for each in now() - before if "spawn_main" in " ".join(each.cmdline())}


def spent_s(process: psutil.Process) -> float:
    """Return the processor time of a process, seconds."""
    return float(sum(process.cpu_times()[:2]))


def warmed(answering: Answering, processes: int) -> None:
    """Ask until so many processes have answered."""
    said(answering, *[QUESTIONS[0]] * 4 * processes)
    waited(lambda: [each.able.done() for each in answering._last_first] == [True] * processes)
    said(answering, *[QUESTIONS[0]] * 4 * processes)


def test_who_answered_last_answers_next(served: Served, others: Callable[[], set[psutil.Process]]) -> None:
    """Questions in turn have one process, whose caches are warm; with those that come at once another one is begun."""
    beside = Answering(served, 2)
    try:
        for _ in range(3):
            said(beside, QUESTIONS[0])
        assert len(others()) == 1
        warmed(beside, 2)
        before = {each: spent_s(each) for each in others()}
        assert len(before) == 2
        for _ in range(20):
            said(beside, QUESTIONS[0])
        little, much = sorted(spent_s(each) - was for each, was in before.items())
        assert little < 0.02 < much
    finally:
        beside.close()


def test_a_process_that_dies_is_replaced(served: Served, others: Callable[[], set[psutil.Process]]) -> None:
    """One that dies costs none of the others, and the next question is answered however many died."""
    beside = Answering(served, 3)
    try:
        warmed(beside, 3)
        first, *rest = before = others()
        assert len(before) == 3
        first.kill()
        answers = said(beside, *[QUESTIONS[0]] * 12)
        assert answers == answers[:1] * 12
        assert "recommendation" in answers[0]
        assert set(rest) < others()
        for child in others():
            child.kill()
        assert said(beside, QUESTIONS[0]) == answers[:1]
    finally:
        beside.close()


def test_a_process_that_can_not_be_begun(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is there answers all; where nobody is, that is told."""
    beside = Answering(served, 4)
    begun = Answering._begun

    def refused(_: Answering) -> Any:
        raise BlockingIOError("Resource temporarily unavailable")

    try:
        monkeypatch.setattr(Answering, "_begun", refused)
        kind, words, _ = said(beside, QUESTIONS[0])[0]
        assert (kind.__name__, words.partition(" (")[0]) == ("Unreachable", "no process that answers can be begun")
        monkeypatch.setattr(Answering, "_begun", begun)
        first = said(beside, QUESTIONS[0])
        monkeypatch.setattr(Answering, "_begun", refused)
        assert said(beside, *[QUESTIONS[0]] * 4) == first * 4
    finally:
        beside.close()


def test_who_waits_behind_one_that_left_is_told(served: Served, others: Callable[[], set[psutil.Process]]) -> None:
    """A question that nobody waits for any more, and then the process's death, leave no other one unanswered."""
    beside = Answering(served, 1)

    async def asked() -> Any:
        tasks = [asyncio.ensure_future(beside.answer(*QUESTIONS[0])) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        for child in others():
            child.kill()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    try:
        said(beside, QUESTIONS[0])
        answers = asyncio.run(asked())
        assert isinstance(answers.pop(3), asyncio.CancelledError)
        assert answers == answers[:1] * 5
        assert isinstance(answers[0], bytes)
    finally:
        beside.close()


def _die(*_: Any) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def _die_telling(*_: Any) -> bytes:
    """Die with half an answer told."""
    send = Connection._send  # type: ignore[attr-defined]

    def half(self: Connection, buffer: bytes, *more: Any) -> None:
        if len(buffer) > 16_384:  # its length went ahead by itself
            send(self, buffer[:10_000], *more)
            _die()
        send(self, buffer, *more)

    Connection._send = half  # type: ignore[attr-defined]
    return b" " * 100_000


@pytest.mark.parametrize("deadly", [_die, _die_telling])
def test_a_question_that_kills_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, deadly: Callable[..., bytes]
) -> None:
    """Where every process dies over a question, or while it answers, it ends with a line for whoever asked."""
    beside = Answering(served, 1)
    monkeypatch.setattr("advisor.web.answering._answered_here", deadly)
    try:
        kind, words, hint = asyncio.run(asyncio.wait_for(_told(beside, QUESTIONS[0]), 60))
    finally:
        beside.close()
    assert (kind.__name__, words) == ("Unreachable", f"the processes that answer died over this question ({hint})")


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
