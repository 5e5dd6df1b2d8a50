"""A fleet for faults: hosts of a daemon as real processes on one database, the jobs that they get, and what must hold after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from advisor.asking.submission import Submission
from advisor.daemon.engine import Jobs, prepare
from advisor.daemon.job import Job
from advisor.errors import StoreError
from advisor.storage.roster import Roster
from advisor.storage.store import Store

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent

#: What made-up devices replay.
LANDSCAPE = "h200-bert-base-256x256-padding-0.5"

#: The shipped model, small enough for a CPU.
MODEL = ROOT / "tests" / "models" / "causal"


@dataclass
class Fleet:
    """Hosts on one database. folder: for their words and logs; variables: of the hosts' environment, before all others."""

    url: str
    folder: Path
    hosts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    finished: dict[tuple[int, int], Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the schemas."""
        self.store = Store.open(self.url, write=True)
        prepare(self.url)
        self.jobs = Jobs(self.url)

    def close(self) -> None:
        """End all."""
        for process in self.hosts.values():
            process.kill()
            process.wait()
        self.jobs.close()
        self.store.close()

    @property
    def log(self) -> Path:
        """What the made-up devices ran."""
        return self.folder / "log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the hosts: nothing of theirs lies outside the folder."""
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "TMPDIR": str(self.folder),
            "ADVISOR_LOCK_DIR": str(locks),
            "ADVISOR_DATABASE_URL": self.url,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **self.variables,
        }

    def start_replaying(
        self,
        name: str,
        devices: Sequence[str],
        run_s: float,
        prefix: Sequence[str] = (),
        *,
        whole: bool = False,
        recheck_after_s: float | None = None,
    ) -> None:
        """Start a host with made-up devices. prefix: a command that runs it, such as unshare; whole: all that was recorded.

        recheck_after_s: after how long with nothing to do its slots measure again what is stale, seconds; None: never.
        """
        shared = {"run_s": run_s, "log": str(self.log), "whole": whole, "landscape": LANDSCAPE}
        shared["recheck_after_s"] = recheck_after_s
        settings = {"url": self.url, "devices": list(devices), "host": name, **shared}
        self._start(name, [*prefix, sys.executable, str(HERE / "replay_host.py"), json.dumps(settings)])

    def start_real(self, name: str = "real") -> None:
        """Start a host whose CPU is its slot, as a user does."""
        self.start_working(["--workers", "cpu"], name)

    def start_working(self, flags: Sequence[str], name: str = "real") -> None:
        """Start `advisor worker` with these flags."""
        self._start(name, [sys.executable, "-m", "advisor", "worker", *flags])

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / "words").open("ab") as words:
            self.hosts[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd=self.folder
            )

    def words(self) -> list[dict[str, Any]]:
        """Return what the hosts logged."""
        text = (self.folder / "words").read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def until(self, what: Callable[[], Any], within_s: float, name: str) -> Any:
        """Return what is awaited as soon as it is there. Raises AssertionError after so many seconds."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            try:
                if found := what():
                    return found
            except StoreError:
                pass
            time.sleep(0.02)
        tail = (self.folder / "words").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise AssertionError(f"{name}: not within {within_s:.0f} s\n{tail}")

    def slots(self, count: int, within_s: float = 60.0) -> list[Any]:
        """Wait until so many slots are at work; return them."""

        def there() -> list[Any]:
            found = [slot for slot in Roster(self.store).slots() if slot.is_there()]
            return found if len(found) >= count else []

        return list(self.until(there, within_s, f"{count} slots at work"))

    def submit(self, model: str, priority: int = 0, **given: Any) -> str:
        """Submit a job for the devices that are at work."""
        device_class = self.slots(1)[0].device_class
        submission = Submission(model, given, priority, device_class)
        return self.jobs.submit(submission.checked(model_root=None, most_budget_s=0, is_operator=True))

    def job(self, name: str) -> Job:
        """Return a job as it stands."""
        return self.jobs.job(name)

    def all_over(self, names: Sequence[str], within_s: float) -> None:
        """Wait until none of these jobs waits or runs, and nobody works on their studies any more."""
        self.until(lambda: not any(self.job(name).is_open for name in names), within_s, "all jobs over")
        self.until(lambda: not any(slot.state == "busy" for slot in Roster(self.store).slots()), 30.0, "all slots idle")

    def processes(self, host: str, what: str) -> list[psutil.Process]:
        """Return the processes of a host: "daemon" itself, its "worker"s (a slot each), or what runs a "trial"."""
        try:
            daemon = psutil.Process(self.hosts[host].pid)
            slots = daemon.children()
            if what == "daemon":
                return [daemon]
            if what == "worker":
                return slots
            warm = [child for slot in slots for child in slot.children()]
            return [child for parent in warm for child in parent.children()]
        except psutil.Error:
            return []

    def kill(self, process: psutil.Process) -> bool:
        """Kill a process; return whether it was there."""
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        return True

    # ------------------------------------------------------------------------------------------------ what must hold

    def look(self) -> None:
        """See that everything that was finished is still there as it was, each number once."""
        for study in self.store.studies():
            trials = self.store.trials(study.id)
            numbers = [trial.number for trial in trials]
            if numbers != list(range(len(numbers))):
                self.problems.append(f"study {study.id}: the numbers are {numbers}")
            now = {(study.id, t.number): replace(t, reading={}) for t in trials if t.outcome != "running"}
            for key, trial in self.finished.items():
                if key[0] == study.id and now.get(key) != trial:
                    self.problems.append(f"trial {key} was finished, and changed: {trial} is {now.get(key)}")
            self.finished.update(now)

    def check(self, names: Sequence[str], again: int = 0) -> None:
        """Check all studies in the end. again: how many runs were broken off, and may have been run again."""
        self.look()
        for name in names:
            job = self.job(name)
            if job.state != "done":
                self.problems.append(f"job {name} is {job.state}: {job.why}")
        for study in self.store.studies():
            if study.state != "done":
                self.problems.append(f"study {study.id} is {study.state}")
            self.problems += [f"study {study.id}: {text}" for text in wrong_with(self.store.trials(study.id))]
        over = [line for line in self.lines() if line["is"] == "over" and line["op"] == "trial"]
        runs = Counter((line["model"], key) for line in over for key in line["asked"])
        if (many := sum(n - 1 for n in runs.values())) > again:
            self.problems.append(f"{many} runs were run again, after {again} were broken off")

    def lines(self) -> list[dict[str, Any]]:
        """Return what the made-up devices ran, a line that is not whole left out."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wrong_with(trials: Sequence[Any]) -> list[str]:
    """Return what is wrong with a study's trials in the end: one is left, was measured twice, or its block was of two devices."""
    found = []
    if left := [t.number for t in trials if t.outcome == "running"]:
        found.append(f"trials {left} are still running")
    searched = Counter(t.requested for t in trials if t.phase == "search" and t.outcome == "ok")
    if twice := [str(c) for c, n in searched.items() if n > 1]:
        found.append(f"measured twice: {twice}")
    slots = Counter((t.block, t.requested) for t in trials if t.phase == "confirm")
    if twice := [str(slot) for slot, n in slots.items() if n > 1]:
        found.append(f"slots of the confirmation were run twice: {twice}")
    for block in {t.block for t in trials if t.phase == "confirm"}:
        devices = {t.device_uuid for t in trials if t.block == block and t.outcome == "ok"}
        if len(devices) > 1:
            found.append(f"block {block} ran on {devices}")
    return found
