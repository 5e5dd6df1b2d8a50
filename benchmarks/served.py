"""Questions at a given rate to `advisor serve` with a million trials: how long an answer takes in the daemon, and from outside.

    python benchmarks/million.py sqlite:///million.db --fill        or a PostgreSQL URL
    python benchmarks/served.py sqlite:///million.db [--requests 3000] [--rate 100] [--processes 0]

The daemon is a process of its own, asked over HTTP. Questions arrive whether or not the ones before are answered: at even
distances, and then at random ones (Poisson), where several come at once and wait for one another. *In the daemon* is what its
`Server-Timing` header says, from a request's arrival to its answer, the wait for a thread included; *outside* counts from the
moment when the question was due. Every question is another one, over all workloads that are stored, and no answer is
remembered. Other processes of the machine disturb the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from itertools import islice
from typing import Any

import psutil
from million import MODEL, asked
from sqlalchemy import create_engine, text

from advisor.storage.place import with_driver

#: Connections that ask.
THREADS = 16

#: Answers before the clock starts: pages of the database are read, connections made.
WARM = 300

#: The work that is the same each time: a document of so many entries, read and written, which takes a few milliseconds.
ENTRIES = 4000

#: What a daemon's first line on stderr says when it listens.
_AT = re.compile(r"http://([\d.]+):(\d+)")


def questions(url: str, count: int, seed: int) -> list[bytes]:
    """Draw so many different questions about the workloads that are stored, as the bodies of requests."""
    engine = create_engine(with_driver(url))
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT COUNT(*) FROM workloads")).scalar_one()
    engine.dispose()
    given = [{**each, "quality": tier, "on": "H100"} for each in islice(asked(), stored) for tier in ("dtype", "exact")]
    random.Random(seed).shuffle(given)
    drawn: list[dict[str, Any]] = (given * (1 + count // len(given)))[:count]
    return [json.dumps({"model": str(MODEL), "given": each}).encode() for each in drawn]


def arrivals(count: int, rate: float, seed: int | None) -> list[float]:
    """Return when questions arrive, in seconds: at even distances, or drawn with a seed."""
    if seed is None:
        return [number / rate for number in range(count)]
    drawn, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += drawn.expovariate(rate)
        found.append(at)
    return found


@contextmanager
def daemon(url: str, processes: int | None) -> Iterator[tuple[str, int, psutil.Process]]:
    """Run a daemon without workers on the database; give its host, port and process. processes: that answer, None: as usual."""
    command = [
        sys.executable,
        "-m",
        "advisor",
        "serve",
        "--workers",
        "none",
        "--port",
        "0",
        "--model-root",
        str(MODEL.parent),
    ]
    command += [] if processes is None else ["--answer-processes", str(processes)]
    environment = {**os.environ, "ADVISOR_DATABASE_URL": url}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            found = next((match for line in process.stdout if (match := _AT.search(line))), None)
            if found is None:
                raise SystemExit("the daemon did not start")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield found[1], int(found[2]), psutil.Process(process.pid)
        finally:
            process.terminate()


class Asking:
    """Asks a daemon over connections that stay open, one a thread."""

    def __init__(self, host: str, port: int) -> None:
        """Ask there."""
        self._host, self._port, self._own = host, port, threading.local()

    def ask(self, body: bytes) -> float:
        """Ask a question; return the seconds that the daemon says it took."""
        if not hasattr(self._own, "connection"):
            self._own.connection = HTTPConnection(self._host, self._port, timeout=60)
        try:
            answer, said = self._answer(body)
        except ConnectionError:  # idle for so long that the daemon closed it
            self._own.connection.close()
            answer, said = self._answer(body)
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {said[:300]!r}")
        return float(answer.headers["Server-Timing"].partition("dur=")[2]) / 1000

    def _answer(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        self._own.connection.request("POST", "/api/v1/suggest", body, {"Content-Type": "application/json"})
        answer = self._own.connection.getresponse()
        return answer, answer.read()


def fired(
    asking: Asking, bodies: Sequence[bytes], due: Sequence[float], pool: ThreadPoolExecutor
) -> list[tuple[float, float]]:
    """Return of every question the seconds in the daemon, and those from when it was due to its answer."""
    began = time.perf_counter() + 0.1

    def one(number: int) -> tuple[float, float]:
        inside = asking.ask(bodies[number])
        return inside, time.perf_counter() - (began + due[number])

    running = []
    for number, at in enumerate(due):
        if (left := began + at - time.perf_counter()) > 0:
            time.sleep(left)
        running.append(pool.submit(one, number))
    return [each.result() for each in running]


def spent_s(process: psutil.Process) -> float:
    """Return the processor time of a daemon and of the processes that answer beside it, seconds."""
    return float(sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True))))


def same_work(count: int, rate: float) -> list[tuple[float, float]]:
    """Do the same piece of work so often, this many times a second; return the seconds of each, twice, as `fired` does."""
    document = json.dumps([{"number": number, "name": str(number)} for number in range(ENTRIES)])
    began, took = time.perf_counter(), []
    for number in range(count):
        time.sleep(max(began + number / rate - time.perf_counter(), 0.0))
        started = time.perf_counter()
        json.dumps(json.loads(document))
        took.append((time.perf_counter() - started,) * 2)
    return took


def told(name: str, took: Sequence[tuple[float, float]], seconds: float, cpu_s: float) -> str:
    """Return a row of the table."""
    inside, outside = (sorted(each) for each in zip(*took, strict=True))
    p50, p95, p99 = (1000 * inside[min(int(share * len(inside)), len(inside) - 1)] for share in (0.5, 0.95, 0.99))
    out99 = 1000 * outside[min(int(0.99 * len(outside)), len(outside) - 1)]
    figures = (
        f"{p50:.1f} | {p95:.1f} | {p99:.1f} | {1000 * inside[-1]:.1f} | {out99:.1f} | {1000 * cpu_s / len(took):.1f}"
    )
    return f"| {name} | {len(took) / seconds:.0f} | {figures} |"


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=100.0, help="a second (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="that answer (default: as the daemon has it)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, place = arguments.requests, arguments.url.partition(":")[0]
    bodies = questions(arguments.url, 2 * count + WARM, arguments.seed)
    print(
        "| arrivals | answers a second | p50 ms in the daemon | p95 | p99 | worst | p99 ms outside | CPU ms an answer |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with daemon(arguments.url, arguments.processes) as (host, port, process), ThreadPoolExecutor(THREADS) as pool:
        asking = Asking(host, port)
        list(pool.map(asking.ask, bodies[:WARM]))
        for place_in, (name, seed) in enumerate((("even", None), ("random", arguments.seed))):
            mine = bodies[WARM + place_in * count :][:count]
            due = arrivals(count, arguments.rate, seed)
            began, before = time.perf_counter(), spent_s(process)
            took = fired(asking, mine, due, pool)
            seconds, cpu_s = time.perf_counter() - began, spent_s(process) - before
            print(told(f"{name}, {place}", took, seconds, cpu_s), flush=True)
    began, before = time.perf_counter(), time.process_time()
    took = same_work(count, arguments.rate)
    print(told("the same work", took, time.perf_counter() - began, time.process_time() - before), flush=True)


if __name__ == "__main__":
    main()
