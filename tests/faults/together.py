"""Several tunes at once on one study, in processes of their own, on a recorded landscape whose runs take a fixed time.

    python tests/faults/together.py --tunes 4 --kills 6 --seed 0
    python tests/faults/together.py --tunes 4 --kills 6 --seed 0 --postgresql

The device is made up, so that nothing makes the tunes wait for one another: each has one of its own, of the same kind. With
kills, one of them is killed with SIGKILL, at a moment after it began to measure that is drawn from the seed, and started again,
so often. In the end every tune is left alone until it is done. What was run is read from a log that the runners write, what was
stored from the database.
Exits with status 1, naming what broke, else with 0.

What must hold: no configuration is measured twice in the search, no block of the confirmation is run twice and none by two
tunes, what was finished stays as it was, and nothing is left running. A run that a kill ended may be run once more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LANDSCAPE = ROOT / "tests" / "landscapes" / "h200-bert-base-256x256-padding-0.5.json"

#: Of what was recorded there: some twenty configurations, of which several are as good as the best.
ONLY = (
    ("attention", ("eager", "flash_attention_2", "flex_attention", "sdpa-efficient", "sdpa-math")),
    ("precision", ("bf16", "tf32")),
)

#: Seconds that a made-up run takes, a block as long for each contestant.
RUN_S = 0.05

#: Until when a tune is killed after its first run began, at the latest, in runs: half of the kills come amid the first.
LATEST = 2.0

#: A tune that is left alone takes some seconds.
COMPLETE_S = 240.0


def tune_alone(options: argparse.Namespace) -> None:
    """Run one tune on the landscape, in this process. A line of the log says what is run, another that it is over."""
    from advisor.measure.landscape import Landscape
    from advisor.measure.messages import Answer, BlockAsked, Request, TrialAsked
    from advisor.measure.replay import ReplayRunner
    from advisor.nouns.environment import Machine
    from advisor.nouns.model import ModelSource
    from advisor.nouns.objective import Budget
    from advisor.storage.store import Store
    from advisor.study.tune import tune
    from advisor.study.tuning import Job

    landscape = Landscape.of(json.loads(LANDSCAPE.read_text(encoding="utf-8")))
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    class Fixed(ReplayRunner):
        """Takes a fixed time for every run."""

        def run(self, request: Request, timeout_s: float) -> Answer:
            """Answer as the landscape does, later."""
            if not isinstance(request, (TrialAsked, BlockAsked)) or timeout_s == math.inf:  # a contestant of a block
                return super().run(request, timeout_s)
            is_block = isinstance(request, BlockAsked)
            asked = request.contestants if is_block else [request.configuration]
            words = {
                "pid": os.getpid(),
                "op": "block" if is_block else "trial",
                "seed": request.seed if is_block else None,
                "asked": [configuration.key for configuration in asked],
            }
            os.write(log, (json.dumps({**words, "is": "begun"}) + "\n").encode())
            result = super().run(request, timeout_s)
            time.sleep(options.run_s * len(asked))
            os.write(log, (json.dumps({**words, "is": "over"}) + "\n").encode())
            return result

    source = ModelSource(
        landscape.model, "/nowhere", {"model_type": "llama"}, "trained", "sha256:0", has_tokenizer=False
    )
    machine = Machine(landscape.environment, "host", options.device, 0, landscape.environment.memory_bytes)
    budget = Budget(
        trials=options.trials, exhaustive=options.trials is None and not options.search, blocks=options.blocks
    )
    # A replayed run has the figures of its seed: each tune draws its own, as two devices do.
    runner = Fixed(landscape, seed=options.seed)
    objective = replace(landscape.objective, only=(*landscape.objective.only, *ONLY))
    job = Job(source, landscape.workload, objective, budget, machine, seed=0)

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] in ("stage", "stopped", "unconfirmed", "lost"):
            print(os.getpid(), event.get("stage") or event.get("why") or event.get("text"), flush=True)

    with Store.open(options.database, write=True) as store:
        tune(job, store, runner, listen)


@dataclass
class Tunes:
    """The processes, and what they left."""

    options: argparse.Namespace
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    finished: dict[int, Any] = field(default_factory=dict)
    killed: int = 0

    def start(self, place: int) -> subprocess.Popen[bytes]:
        """Start the tune of a place, with the device that is there."""
        options = self.options
        command = [
            sys.executable,
            str(Path(__file__)),
            "--alone",
            "--database",
            options.database,
            "--log",
            str(self.log),
            "--device",
            f"GPU-{place}",
            "--seed",
            str(options.seed + place),
            "--run-s",
            str(options.run_s),
            "--blocks",
            str(options.blocks),
            *(["--trials", str(options.trials)] if options.trials else []),
            *(["--search"] if options.search else []),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder)}
        with (self.folder / "words").open("ab") as words:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words)

    @property
    def log(self) -> Path:
        """What the runners wrote."""
        return self.folder / "log"

    def lines(self) -> list[dict[str, Any]]:
        """Return what the runners wrote, a line that is not whole left out."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def words(self) -> str:
        """Return the end of what the tunes printed."""
        return (self.folder / "words").read_text(encoding="utf-8", errors="replace")[-2000:]

    def run(self) -> None:
        """Start them all, kill as often as is asked for, and wait until each is done."""
        from advisor.storage.store import Store

        chance = random.Random(self.options.seed)
        Store.open(
            self.options.database, write=True
        ).close()  # who comes first makes the tables, and that takes a while
        self.running = [self.start(place) for place in range(self.options.tunes)]
        for _ in range(self.options.kills):
            place = chance.randrange(len(self.running))
            process = self.running[place]
            while process.poll() is None and not any(line["pid"] == process.pid for line in self.lines()):
                time.sleep(0.01)  # before its first run it only imports
            time.sleep(chance.uniform(0.0, LATEST * self.options.run_s))
            process.kill()
            self.killed += process.wait() != 0
            self.look()
            self.running[place] = self.start(place)
        for process in self.running:
            if process.wait(timeout=COMPLETE_S) != 0:
                self.problems.append(f"a tune ended with status {process.returncode}: {self.words()}")
        self.look()
        self.check()

    def look(self) -> None:
        """See that everything that was finished is still there as it was."""
        trials = self.trials()
        for number, trial in self.finished.items():
            if trials.get(number) != trial:
                self.problems.append(f"trial {number} was finished, and changed: {trial} is {trials.get(number)}")
        self.finished = {number: trial for number, trial in trials.items() if trial.outcome != "running"}

    def trials(self) -> dict[int, Any]:
        """Return what is stored of the study."""
        from advisor.errors import NotMeasured
        from advisor.storage.store import Store

        with Store.open(self.options.database, write=False) as store:
            try:
                return {t.number: replace(t, reading={}) for t in store.trials(store.study(1).id)}
            except NotMeasured:
                return {}

    def check(self) -> None:
        """Check the study as a whole, and the log of what was run."""
        from advisor.storage.store import Store

        trials = list(self.trials().values())
        if [t.number for t in trials] != list(range(len(trials))):
            self.problems.append(f"the numbers have gaps: {[t.number for t in trials]}")
        if left := [t.number for t in trials if t.outcome == "running"]:
            self.problems.append(f"trials {left} are still running")
        searched = [t for t in trials if t.phase == "search" and t.outcome != "cut"]
        counted = Counter(t.requested for t in searched)
        # What failed is tried again by a tune that begins when nobody is at work, which a kill can bring about.
        failed = {t.requested for t in searched if t.outcome.is_failure}
        if twice := [str(c) for c, n in counted.items() if n > (1 + self.killed if c in failed else 1)]:
            self.problems.append(f"{len(twice)} of {len(counted)} configurations were measured twice: {twice}")
        if self.options.trials and len(counted) != self.options.trials:
            self.problems.append(f"{len(counted)} configurations were tried where {self.options.trials} were asked for")
        slots = Counter((t.block, t.requested) for t in trials if t.phase == "confirm")
        if again := [str(slot) for slot, n in slots.items() if n > 1]:
            self.problems.append(f"slots were run twice: {again}")
        self.check_blocks(trials)
        self.check_log()
        with Store.open(self.options.database, write=False) as store:
            if (state := store.study(1).state) != "done":
                self.problems.append(f"the study is {state}")

    def check_blocks(self, trials: list[Any]) -> None:
        """Check that each block is of one device, that those that were broken off were not gone on with, and their number."""
        blocks: dict[int, list[Any]] = {}
        for trial in trials:
            if trial.phase == "confirm":
                blocks.setdefault(trial.block, []).append(trial)
        whole = [block for block, runs in blocks.items() if all(run.outcome == "ok" for run in runs)]
        for block, runs in blocks.items():
            if len({run.device_uuid for run in runs if run.outcome == "ok"}) > 1:
                self.problems.append(f"block {block} ran on several devices")
        if len(blocks) - len(whole) > self.killed:
            self.problems.append(f"{len(blocks) - len(whole)} of {len(blocks)} blocks are not whole")
        if len(whole) != self.options.blocks and self.options.blocks <= 3:
            self.problems.append(f"{len(whole)} whole blocks were run where {self.options.blocks} were asked for")

    def check_log(self) -> None:
        """Check what was really run: each configuration once, each block once, but for what a kill ended."""
        lines = self.lines()
        over = [line for line in lines if line["is"] == "over"]
        runs = Counter(key for line in over if line["op"] == "trial" for key in line["asked"])
        again = sum(n - 1 for n in runs.values())
        if again > self.killed:
            self.problems.append(f"{again} runs of the search were run again, after {self.killed} kills")
        begun = Counter(
            (line["seed"], *line["asked"]) for line in lines if line["op"] == "block" and line["is"] == "begun"
        )
        if twice := [seed for (seed, *_), n in begun.items() if n > 1]:
            self.problems.append(f"blocks were begun twice: {twice}")


def main() -> int:
    """Run them, say what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--tunes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, help="configurations to try (default: all)")
    parser.add_argument("--search", action="store_true", help="end where nothing is likely to be better")
    parser.add_argument("--blocks", type=int, default=3)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database", metavar="URL", help="an empty database (default: a SQLite file)")
    where.add_argument("--postgresql", action="store_true", help="a PostgreSQL server, started for this")
    parser.add_argument("--run-s", type=float, default=RUN_S, help="seconds that a run takes (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        tune_alone(options)
        return 0
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="advisor-together-"))
        if options.postgresql:
            sys.path.insert(0, str(Path(__file__).parent))
            from kill import server

            options.database = stack.enter_context(server())
        options.database = options.database or f"sqlite:///{folder}/advisor.db"
        tunes = Tunes(options, Path(folder))
        try:
            tunes.run()
        finally:
            for process in tunes.running:
                process.kill()
                process.wait()
    for problem in tunes.problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    again = sum(t.attempts > 1 or t.outcome == "cut" for t in tunes.finished.values())
    searched = sum(t.phase == "search" for t in tunes.finished.values())
    print(
        f"{options.tunes} tunes, {tunes.killed} kills amid {again} runs: {searched} trials of the search, "
        f"{len(tunes.finished) - searched} of the confirmation in {time.monotonic() - began:.1f} s; "
        f"{len(tunes.problems)} problems"
    )
    return 1 if tunes.problems else 0


if __name__ == "__main__":
    sys.exit(main())
