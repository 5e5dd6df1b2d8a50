"""A million trials of many workloads in a database: how long what is asked often takes then.

    python benchmarks/million.py sqlite:///million.db        or a PostgreSQL URL of an empty database
    python benchmarks/million.py sqlite:///million.db --fill        only fills it: benchmarks/served.py asks it then

Two tunes of tests/models/encoder are run on a landscape that was recorded, for quality dtype and exact, and stored as any other.
SQL then copies both for every other workload: sequences of up to 16 to 512 tokens in batches of 1 to 40, under the key that a
question about these has, until there are a million trials. Only the figures are those of another workload: what a copy says is
what its original says. Times are the least and the median of 20.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, create_engine, inspect, text

from advisor.asking.question import question_of
from advisor.measure.landscape import Landscape, read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Machine
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.storage.place import with_driver
from advisor.storage.rows import as_json
from advisor.storage.store import Store
from advisor.storage.workload_words import told
from advisor.study.history import listed
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads.forward import EMBEDDINGS, Forward

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "models" / "encoder"
LANDSCAPE = "h100-minilm-l6-8x64-padding-0.4"

TRIALS = 1_000_000

#: The longest sequence in tokens, and the sequences of a batch. The first of all pairs is what is tuned.
LENGTHS, BATCHES = range(16, 513), range(1, 41)

#: What stands in a study's rows, in the order in which they refer to one another, with the columns that do.
COPIED = (
    ("studies", ()),
    ("trials", ("study_id", "reused_from")),
    ("measurements", ("trial_id",)),
    ("comparisons", ("study_id",)),
    ("refusals", ("study_id",)),
    ("recommendations", ("study_id",)),
)
_OF = {"study_id": "studies", "trial_id": "trials", "reused_from": "trials"}


def asked() -> Iterator[dict[str, Any]]:
    """Yield what is given of each workload, which has a key of its own; the first is the one that is tuned."""
    for batch, length in product(BATCHES, LENGTHS):
        yield {"lengths": length, "batch": batch, "output": EMBEDDINGS}


def workload_of(given: dict[str, Any]) -> Forward:
    """Return the workload of what is given."""
    return Forward(question_of(str(MODEL), given).lengths or (), given["batch"], EMBEDDINGS)


def fill(url: str, trials: int = TRIALS) -> None:
    """Write so many trials at least, of as many workloads as that takes."""
    landscape = read_landscapes(ROOT / "tests" / "landscapes")[LANDSCAPE]
    with Store.open(url, write=True) as store:
        for tier in (Tier.DTYPE, Tier.EXACT):
            _tuned(store, landscape, Objective(tier))
        key = find_model(str(MODEL)).architecture_key
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        pair = connection.execute(text("SELECT COUNT(*) FROM trials")).scalar_one()
        wanted = [workload_of(given) for given in islice(asked(), 1, -(-trials // pair))]
        first = connection.execute(text("SELECT MAX(id) FROM workloads")).scalar_one()
        rows = [_row(each, first + number, key) for number, each in enumerate(wanted, 1)]
        names = list(rows[0])
        into = f"INSERT INTO workloads ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})"
        connection.execute(text(into), rows)
        connection.execute(text("CREATE TEMPORARY TABLE up (n INTEGER PRIMARY KEY)"))
        connection.execute(text("INSERT INTO up VALUES (:n)"), [{"n": n} for n in range(1, len(wanted) + 1)])
        last = {table: connection.execute(text(f"SELECT MAX(id) FROM {table}")).scalar() or 0 for table, _ in COPIED}
        for table, refers in COPIED:
            connection.execute(text(_copies(connection, table, refers, last)))
            _count_on(connection, table)
        connection.execute(text("DROP TABLE up"))
        _count_on(connection, "workloads")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def _tuned(store: Store, landscape: Landscape, objective: Objective) -> None:
    """Tune on the recording, some forty trials, blocks of the confirmation among them."""
    machine = Machine(landscape.environment, "host", "GPU-0", 0, landscape.environment.memory_bytes)
    workload, budget = workload_of(next(asked())), Budget(trials=20)
    job = Job(find_model(str(MODEL)), workload, objective, budget, machine)
    tune(job, store, ReplayRunner(landscape), lambda _: None)


def _row(workload: Forward, row_id: int, architecture_key: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "key": workload.key_for(architecture_key),
        "kind": workload.kind,
        "architecture_key": architecture_key,
        "payload": as_json(workload.payload),
        **told(workload),
    }


def _copies(connection: Connection, table: str, refers: tuple[str, ...], last: dict[str, int]) -> str:
    """Return the INSERT of a copy of a table's rows for every other workload."""
    own = {name: f"o.{name} + u.n * {last[_OF[name]]}" for name in refers} | {"id": f"o.id + u.n * {last[table]}"}
    own |= {"workload_id": "o.workload_id + u.n"} if table == "studies" else {}
    names = [column["name"] for column in inspect(connection).get_columns(table)]
    values = ", ".join(own.get(name, f"o.{name}") for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM up u CROSS JOIN {table} o ORDER BY u.n, o.id"


def _count_on(connection: Connection, table: str) -> None:
    """Have PostgreSQL go on behind the ids that were named: SQLite does by itself."""
    if connection.dialect.name == "postgresql":
        last = f"(SELECT MAX(id) FROM {table})"
        connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {last}) WHERE {last} > 0"))


def timed(name: str, work: Callable[[], object]) -> None:
    """Print how long something takes."""
    took = []
    for _ in range(20):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    print(f"{name:40s} least {min(took):7.2f} ms, median {median(took):7.2f} ms, first {took[0]:7.2f} ms")


def main() -> None:
    """Fill the database and time it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("url")
    parser.add_argument("--trials", type=int, default=TRIALS, help="default: %(default)s")
    parser.add_argument("--fill", action="store_true", help="only fill it")
    arguments = parser.parse_args()
    fill(arguments.url, arguments.trials)
    engine = create_engine(with_driver(arguments.url))
    with Store.open(arguments.url, write=False) as store, engine.connect() as connection:
        count = {t: connection.execute(text(f"SELECT COUNT(*) FROM {t}")).scalar_one() for t in ("trials", "workloads")}
        print(f"{count['trials']:,} trials of {count['workloads']:,} workloads")
        if not arguments.fill:
            _time(store, connection)
    engine.dispose()


def _time(store: Store, connection: Connection) -> None:
    middle = connection.execute(text("SELECT MAX(id) / 2 FROM studies")).scalar_one()
    tried = store.trials(middle)[0].requested
    timed("reusable", lambda: store.reusable(middle, tried))
    timed("reusable, of what nobody tried", lambda: store.reusable(middle, tried.replaced(packing="nobody")))
    answer = text(f"SELECT * FROM v_recommendations WHERE study = {middle}")
    timed("v_recommendations WHERE study =", lambda: connection.execute(answer).all())
    timed("the newest 50 trials", lambda: list(listed(store, limit=50)))


if __name__ == "__main__":
    main()
