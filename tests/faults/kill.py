"""Kill a real tune with SIGKILL at random moments, run the same command again, and look whether anything was lost.

    python tests/faults/kill.py --kills 20 --seed 0

Half of the kills come at a moment drawn from the seed, the other half at the first write to the database after it.
After each, the database must be sound, every trial that was finished must still be there unchanged, and no worker may be
left. In the end the command is run until it completes: then no configuration was measured twice in a phase and block, and
trial numbers have no gap. Exits with status 1, naming what broke, else with 0.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

#: Seconds after its start between which a tune is killed: within the first it only imports, after four it measures.
EARLIEST_S, LATEST_S = 1.0, 12.0

#: How long to wait for the next write to the database, and for workers to be gone.
WRITE_S, WORKER_S = 10.0, 5.0

#: A tune that is left alone takes a minute.
COMPLETE_S = 600.0

Rows = dict[tuple[int, int], tuple[Any, ...]]


@dataclass
class Victim:
    """The command that is killed: every study has lengths of its own, so that there is always one that is not done."""

    folder: Path
    trials: int
    study: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "advisor.db"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it once more."""
        environment = {
            **os.environ, "ADVISOR_DATABASE_URL": f"sqlite:///{self.database}", "ADVISOR_LOCK_DIR": str(self.folder),
            "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
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
        if not self.database.exists():
            return {}, 0
        with closing(sqlite3.connect(self.database, timeout=10)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "measurements" not in tables:
                return {}, 0
            measured: dict[int, list[tuple[Any, ...]]] = {}
            for row in connection.execute(
                "SELECT trial_id, metric, samples, device_state FROM measurements ORDER BY id"
            ):
                measured.setdefault(row[0], []).append(row)
            connection.row_factory = sqlite3.Row
            trials = connection.execute("SELECT * FROM trials ORDER BY study_id, number").fetchall()
        done = [row for row in trials if row["outcome"] != "running"]
        rows = {(row["study_id"], row["number"]): (*row, *measured.get(row["id"], ())) for row in done}
        return rows, len(trials) - len(done)

    def blame(self, text: str) -> None:
        """Note what broke."""
        self.problems.append(text)

    def last_words(self) -> str:
        """Return the end of what the command printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-500:].strip()

    def check_database(self) -> str:
        """Return "ok" or what SQLite finds wrong with the file."""
        if not self.database.exists():
            return "ok"
        with closing(sqlite3.connect(self.database, timeout=10)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            found += [f"foreign key of {row[0]} row {row[1]}" for row in connection.execute("PRAGMA foreign_key_check")]
        return "ok" if found == ["ok"] else "; ".join(found)

    def workers(self) -> list[int]:
        """Return the living processes that have this folder in their environment."""
        mark, found = f"ADVISOR_LOCK_DIR={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


def _log_state(victim: Victim) -> tuple[int, int]:
    """Return what changes whenever something is written: size and time of SQLite's log."""
    try:
        status = Path(f"{victim.database}-wal").stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


def kill_once(victim: Victim, chance: random.Random) -> str:
    """Start the command and kill it at a random moment; return the row of the table."""
    before, _ = victim.finished()
    moment_s, at_write = chance.uniform(EARLIEST_S, LATEST_S), chance.random() < 0.5
    began = time.monotonic()
    process = victim.start()
    _sleep_until(began + moment_s, process)
    state, deadline = _log_state(victim), time.monotonic() + WRITE_S
    while at_write and process.poll() is None and _log_state(victim) == state and time.monotonic() < deadline:
        time.sleep(0.0005)
    ended = process.poll() is not None
    process.kill()
    status, killed_s = process.wait(), time.monotonic() - began
    while victim.workers() and time.monotonic() - began - killed_s < WORKER_S:
        time.sleep(0.02)
    gone_s = time.monotonic() - began - killed_s
    if victim.workers():
        victim.blame(f"a worker is left {WORKER_S:.0f} s after the kill")
    sound = victim.check_database()
    if sound != "ok":
        victim.blame(f"the database is damaged: {sound}")
    after, running = victim.finished()
    _compare(victim, before, after)
    if ended:
        if status != 0:
            victim.blame(f"the command ended by itself with status {status}: {victim.last_words()}")
        victim.study += 1
    how = "was done" if ended else "at a write" if at_write else "at random"
    return f"{killed_s:8.2f}  {how:10s}  {len(before):6d}  {len(after):6d}  {running:7d}  {gone_s:9.2f}  {sound}"


def _sleep_until(moment: float, process: subprocess.Popen[bytes]) -> None:
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.005)


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
    with closing(sqlite3.connect(victim.database)) as connection:
        for (state,) in connection.execute("SELECT state FROM studies WHERE state <> 'done'"):
            victim.blame(f"a study is {state}")
        for study, number in connection.execute("SELECT study_id, number FROM trials WHERE outcome = 'running'"):
            victim.blame(f"trial {number} of study {study} is still running")
        twice = connection.execute(
            "SELECT study_id, phase, block, COUNT(*) FROM trials "
            "GROUP BY study_id, phase, requested_id, block HAVING COUNT(*) > 1"
        )
        for study, phase, block, count in twice:
            victim.blame(f"study {study} measured a configuration {count} times in {phase}, block {block}")
        gaps = connection.execute(
            "SELECT study_id, MIN(number), MAX(number), COUNT(*) FROM trials GROUP BY study_id "
            "HAVING MIN(number) <> 0 OR MAX(number) + 1 <> COUNT(*)"
        )
        for study, low, high, count in gaps:
            victim.blame(f"study {study} has {count} trials from {low} to {high}")


def main() -> int:
    """Kill, print a table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=4, help="configurations to try in a study (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="advisor-kill-") as name:
        victim, chance = Victim(Path(name), options.trials), random.Random(options.seed)
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
