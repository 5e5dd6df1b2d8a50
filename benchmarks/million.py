"""A million trials in a database: how long what is asked often takes then.

    python benchmarks/million.py sqlite:///million.db        or a PostgreSQL URL of an empty database

Writes 25,000 studies of 40 trials with SQL alone, copies of one real study, then times `Store.reusable`, the answer of a study
in `v_recommendations`, and a page of the listing: the least and the median of 20.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

from sqlalchemy import create_engine, text

from advisor.advice.kept_answers import keep_answer
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Measurement
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage.place import with_driver
from advisor.storage.store import Store
from advisor.study.history import listed
from advisor.workloads.forward import Forward

STUDIES, TRIALS = 25_000, 40

SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)
CPU = Environment("cpu", "a processor", None, 2**30, threads=1)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})

FACTS = ModelFacts(
    "LlamaForCausalLM",
    "llama",
    "float32",
    1000,
    4000,
    900,
    2,
    64,
    4,
    2,
    16,
    512,
    2048,
    supports_sdpa=True,
    supports_flash=True,
    switches_attention=True,
    default_attention="sdpa",
)

#: Numbers 1 to :n as a table, on both databases.
_UP_TO = "(WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {most}) SELECT n FROM up)"


def fill(url: str) -> None:
    """Write the rows: five objectives for each workload."""
    tiers = (Tier.DTYPE, Tier.EXACT)
    with Store.open(url, write=True) as store:
        pair = [store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(tier), Budget(), 0) for tier in tiers]
        store.save_facts(SOURCE, FACTS)
        for study in pair:
            number = store.claim(study, Search(DEFAULT), "a:1:1")[0]
            speed = (Measurement("tokens_per_s", "tokens/s", (1.0, 2.0, 3.0)),)
            store.finish_trial(
                study,
                Trial(number, DEFAULT, DEFAULT, Outcome.OK, quality=Quality(0, 0, 0, 1, 1), measurements=speed),
                "a:1:1",
            )
            keep_answer(store, study)
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        for table, times, own in (
            ("workloads", STUDIES // 5, {"key": "CAST(u.n AS TEXT)"}),
            ("studies", STUDIES, {"objective_key": "CAST(u.n AS TEXT)", "workload_id": "2 + (u.n - 1) / 5"}),
            ("trials", STUDIES * TRIALS, {"study_id": f"3 + (u.n - 1) / {TRIALS}", "number": f"(u.n - 1) % {TRIALS}"}),
            ("measurements", STUDIES * TRIALS, {"trial_id": "2 + u.n"}),
            ("recommendations", STUDIES, {"study_id": "2 + u.n"}),
        ):
            connection.execute(text(copies(connection, table, times, own)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def copies(connection: object, table: str, times: int, own: dict[str, str]) -> str:
    """Return the INSERT of so many copies of a table's first row, with columns of their own."""
    from sqlalchemy import inspect

    names = [column["name"] for column in inspect(connection).get_columns(table)]  # type: ignore[union-attr]
    last = f"(SELECT MAX(id) FROM {table})"
    own = {"id": f"{last} + u.n", **own}
    values = ", ".join(own.get(name, f"o.{name}") for name in names)
    up_to = _UP_TO.format(most=times)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} o CROSS JOIN {up_to} u WHERE o.id = 1"
    )


def timed(name: str, work: Callable[[], object]) -> None:
    """Print how long something takes."""
    took = []
    for _ in range(20):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    print(f"{name:40s} least {min(took):7.2f} ms, median {median(took):7.2f} ms, first {took[0]:7.2f} ms")


def main(url: str) -> None:
    """Fill the database and time it."""
    fill(url)
    engine = create_engine(with_driver(url))
    with Store.open(url, write=False) as store, engine.connect() as connection:
        print(connection.execute(text("SELECT COUNT(*) FROM trials")).scalar(), "trials")
        timed("reusable", lambda: store.reusable(STUDIES // 2, DEFAULT))
        timed(
            "reusable, of what nobody tried", lambda: store.reusable(STUDIES // 3, DEFAULT.replaced(packing="sorted"))
        )
        answer = text(f"SELECT * FROM v_recommendations WHERE study = {STUDIES // 2}")
        timed("v_recommendations WHERE study =", lambda: connection.execute(answer).all())
        timed("the newest 50 trials", lambda: list(listed(store, limit=50)))
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1])
