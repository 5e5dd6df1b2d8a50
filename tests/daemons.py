"""Daemons of tests: the real server in this process, on a real database, and requests as they go over the wire."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from made_databases import laid

from advisor.daemon import engine
from advisor.machine.leftovers import owner
from advisor.measure.landscape import Landscape, read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Machine
from advisor.nouns.objective import Budget
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.web.security import Settings
from advisor.web.served import Limits, Served
from advisor.web.server import serving

#: Where requests may name models of this host, one that is there, and what was recorded of it on a GPU.
MODELS = Path(__file__).parent.parent / "benchmarks" / "shapes"
MODEL = "qwen2.5-1.5b.json"
GPU = "GPU-11111111-2222-3333-4444-555555555555"

#: How long something may take on a busy machine, seconds.
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Told:
    """What a daemon answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def problem(self) -> dict[str, Any]:
        """The body as a problem of RFC 9457, which it is to be: its status is the answer's, and it says something."""
        assert self.headers.get_content_type() == "application/problem+json", self.body
        found = self.json
        assert found["status"] == self.status
        assert found["type"] == "about:blank"
        assert found["title"]
        assert found["detail"]
        assert "\n" not in found["detail"]
        assert "Traceback" not in self.body.decode()
        return dict(found)


@dataclass
class Daemon:
    """A daemon at work in this process."""

    served: Served
    address: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def ask(self, method: str, place: str, body: Any = None, **headers: str | None) -> Told:
        """Ask, and return the answer. body: bytes as they are, chunks of them, or JSON.

        headers: a name has `_` for `-`; None leaves one out.
        """
        given = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
        if body is not None and not isinstance(body, (bytes, Iterator)):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest(method, place, skip_host="Host" in given, skip_accept_encoding=True)
            if isinstance(body, bytes) and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))
            if isinstance(body, Iterator):
                connection.putheader("Transfer-Encoding", "chunked")
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough, and answers
                connection.endheaders(body, encode_chunked=isinstance(body, Iterator))
            answer = connection.getresponse()
            return Told(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, place: str, **headers: str | None) -> Told:
        """Ask for something."""
        return self.ask("GET", place, **headers)

    def post(self, place: str, body: Any, **headers: str | None) -> Told:
        """Post something."""
        return self.ask("POST", place, body, **headers)


@contextmanager
def at_work(served: Served, **settings: Any) -> Iterator[Daemon]:
    """Serve a database on a port that is free, until this ends. settings: those of `Settings` beside the port."""
    stop, said, failures = threading.Event(), queue.Queue[str](), list[BaseException]()
    asked = Settings(**{"port": 0, **settings})

    def run() -> None:
        try:
            serving(served, asked, stop, said.put)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        known = {"Authorization": f"Bearer {asked.token}"} if asked.token else {}
        yield Daemon(served, said.get(timeout=PATIENCE_S), known)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert failures == []


def recorded() -> Landscape:
    """Return what was recorded of the model on a GPU."""
    return read_landscapes(Path(__file__).parent / "landscapes")["h100-qwen2.5-1.5b-8x2048-padding-0.4"]


def database(url: str, landscape: Landscape | None = None, blocks: int = 9) -> str:
    """Make a daemon's database with a slot at work, and a study of what was recorded where it is given; return its URL."""
    with Store.open(laid(url), write=True) as store:
        if landscape is not None:
            machine = Machine(landscape.environment, "host", GPU, 0, 70 * 2**30)
            asked = find_model(str(MODELS / MODEL)), landscape.workload, landscape.objective
            tune(
                Job(*asked, Budget(trials=30, blocks=blocks), machine),
                store,
                ReplayRunner(landscape, seed=1),
                lambda _: None,
            )
    engine.prepare(url)
    return url


@contextmanager
def opened(url: str, landscape: Landscape, **limits: Any) -> Iterator[Served]:
    """Open such a database as a daemon does, and have a slot at work on it."""
    served = Served.open(url, Limits(**limits))
    assert served.roster.enter(GPU, "gpu1", landscape.environment, owner())
    yield served
    served.close()


def waited(condition: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


class Events:
    """A stream of server-sent events, read as they come."""

    def __init__(self, daemon: Daemon, place: str) -> None:
        """Listen."""
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE_S)
        self._connection.request("GET", place, headers=daemon.headers)
        self.answer = self._connection.getresponse()

    def next(self) -> tuple[str, Mapping[str, Any]] | None:
        """Return the name and the payload of the next event, None where the stream has ended."""
        fields: dict[str, str] = {}
        while line := self.answer.readline():
            text = line.decode().rstrip("\n")
            if not text and "event" in fields:
                return fields["event"], json.loads(fields["data"])
            name, _, value = text.partition(": ")
            if name:
                fields[name] = value
        return None

    def close(self) -> None:
        """Leave."""
        self.answer.close()
        self._connection.close()
