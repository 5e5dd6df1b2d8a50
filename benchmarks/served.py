"""Questions at a given rate to a desk with a million trials: how long each takes from its arrival on, the wait in line included.

    python benchmarks/million.py sqlite:///million.db --fill        or a PostgreSQL URL
    python benchmarks/served.py sqlite:///million.db [--requests 3000] [--rate 100]

Arrivals are drawn (Poisson) beforehand and come whether or not the ones before are answered: a slow answer makes others wait, and
that wait counts. Every question is another one, over all workloads that are stored. An answer ends with the bytes of its JSON.
Other processes of the machine disturb the figures: the last column says how long the benchmark itself had a processor.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from million import MODEL, asked
from sqlalchemy import create_engine, text

from advisor.asking.desk import Desk
from advisor.asking.question import question_of
from advisor.storage.place import with_driver
from advisor.storage.store import Store

#: Threads that answer: as many as Starlette has for its routes is more than two processors can use.
THREADS = 8

#: Answers before the clock starts: pages of the database are read, connections made.
WARM = 200


def questions(url: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw so many different questions about the workloads that are stored."""
    engine = create_engine(with_driver(url))
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT COUNT(*) FROM workloads")).scalar_one()
    engine.dispose()
    given = [{**each, "quality": tier, "on": "H100"} for each in islice(asked(), stored) for tier in ("dtype", "exact")]
    random.Random(seed).shuffle(given)
    return (given * (1 + count // len(given)))[:count]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Draw when questions arrive, in seconds."""
    drawn, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += drawn.expovariate(rate)
        found.append(at)
    return found


def fired(answer: Callable[[dict[str, Any]], object], asked_for: Sequence[dict[str, Any]], rate: float) -> list[float]:
    """Return seconds from its arrival to its answer, of every question; they arrive at a rate a second."""
    due = arrivals(len(asked_for), rate, seed=1)
    took = [0.0] * len(asked_for)
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter() + 0.1

        def one(number: int) -> None:
            answer(asked_for[number])
            took[number] = time.perf_counter() - (began + due[number])

        running = []
        for number, at in enumerate(due):
            if (left := began + at - time.perf_counter()) > 0:
                time.sleep(left)
            running.append(pool.submit(one, number))
        for each in running:
            each.result()
    return took


def told(name: str, took: Sequence[float], seconds: float, busy_s: float) -> str:
    """Return a row of the table."""
    ordered = sorted(took)
    p50, p95, p99 = (1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.95, 0.99))
    rate, busy = len(took) / seconds, busy_s / seconds
    return f"| {name} | {rate:.0f} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {1000 * ordered[-1]:.1f} | {busy:.0%} |"


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=100.0, help="a second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asked_for = questions(arguments.url, arguments.requests + WARM, arguments.seed)
    with Store.open(arguments.url, write=False) as store:
        desk = Desk(store)

        def answer(given: dict[str, Any]) -> bytes:
            return json.dumps(desk.payload(question_of(str(MODEL), given))).encode()

        for given in asked_for[:WARM]:
            answer(given)
        desk.settle()
        began, busy_s = time.perf_counter(), time.process_time()
        took = fired(answer, asked_for[WARM:], arguments.rate)
        seconds, busy_s = time.perf_counter() - began, time.process_time() - busy_s
    print("| asked | answers a second | p50 ms | p95 ms | p99 ms | worst ms | busy |")
    print("|---|---|---|---|---|---|---|")
    print(told(f"Desk, {arguments.url.partition(':')[0]}", took, seconds, busy_s))


if __name__ == "__main__":
    main()
