"""How far processes of one configuration differ, and how often `advisor reproduce` is right about them.

    python benchmarks/reproduction.py measure OUT.json [--processes 60] [--name NAME] MODEL --lengths … [flags of advisor tune]
    python benchmarks/reproduction.py measure OUT.json [--processes 60] --trial STUDY.NUMBER
    python benchmarks/reproduction.py replay FILE.json … [--draws 4000] [--then 1,4] [--most 9] [--slower 0.1] [--any-order]

`measure` tunes MODEL in a database of its own (by default its default alone, confirmed against nothing: further flags such as
`--only packing=padded,sorted --trials 2 --blocks 5` bring blocks), or takes a stored trial of ADVISOR_DATABASE_URL, and then runs
that trial's configuration in fresh processes, by the code that `advisor reproduce` runs them with. What is written: the figure
of each process, what disturbed it, when it ran, and the figures that the study has of the same. Several of these can run beside
each other, each on a GPU of its own (CUDA_VISIBLE_DEVICES) and with a file of its own: `replay` takes them together.

`replay` draws "then" and "now" from the processes of one file, again and again, decides as `advisor reproduce` does, and prints
Markdown: how often the verdict is each of three, and after how many processes. Both are stretches of processes that ran one
after the other, and share none: what drifts in minutes is between them. Slower: every figure now is made so much worse first.
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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median, stdev
from typing import Any

from advisor.nouns.agreement import (
    CHANGE,
    LEAST_PROCESSES,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    USUAL_PROCESSES,
    Agreement,
)

#: What a tune is asked for beside the user's flags, unless these say otherwise: one trial, that of the default, and no block.
_LEAST_TUNE = {"--trials": "1", "--blocks": "0"}

# ------------------------------------------------------------------------------------------------------------ measure


def measure(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Run a trial's configuration in so many fresh processes and write what each came to, after every one of them."""
    if arguments.trial is not None:
        found = processes_of(arguments.trial, arguments.processes)
        _write(arguments, found)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADVISOR_DATABASE_URL"] = f"sqlite:///{folder}/advisor.db"
        asked = [word for name, value in _LEAST_TUNE.items() if name not in rest for word in (name, value)]
        subprocess.run([sys.executable, "-m", "advisor", "tune", *rest, *asked], check=False, stdout=sys.stderr)
        _write(arguments, processes_of(arguments.of, arguments.processes))


def processes_of(trial: str, count: int) -> dict[str, Any]:
    """Return what a stored trial and so many fresh processes of its configuration came to."""
    from advisor.machine import probe
    from advisor.measure.runner import LocalRunner
    from advisor.nouns.reading import read_trial
    from advisor.nouns.trial import best_laps_s
    from advisor.storage.place import default_url
    from advisor.storage.store import Store
    from advisor.study import history, reproduction, reruns

    with Store.open(default_url(), write=False) as store:
        study, old = history.stored_trial(store, *read_trial(trial))
        stored = reruns.Stored(study, old, store.trials(study.id, full=True))
    reproduction.refuse_unrepeatable(study, old)
    threads = study.environment.threads or 1
    machine = reproduction.machine_of(old, probe.machines(threads)) or probe.machine(None, threads)
    source, aim = reproduction.found_again(study, None), study.objective.aim
    runner, ran = LocalRunner(machine), []
    try:
        for new in islice(reruns.fresh_processes(stored, source, runner, 600.0), count):
            ran.append((new, time.time(), os.getloadavg()[0]))
            print(f"{len(ran)} of {count}: {new.outcome} {aim.show(new.value(aim.metric) or 0.0)}", file=sys.stderr)
    finally:
        runner.close()
    best_s = best_laps_s([*stored.trials, *(new for new, _, _ in ran)])
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "device": study.environment.device_name,
        "device_uuid": machine.uuid,
        "versions": dict(machine.environment.packages),
        "model": study.model_name,
        "flags": study.workload.flags,
        "configuration": str(old.requested),
        "metric": aim.metric,
        "phase": old.phase,
        "busy": old.busy,
        "stored": [
            {"phase": each.phase, "block": each.block, "score": each.score(aim)}
            for each in stored.trials
            if each.requested == old.requested and each.score(aim)
        ],
        "processes": [
            {
                "score": new.score(aim),
                "outcome": str(new.outcome),
                "disturbance": reproduction.disturbance(new, best_s),
                "at_s": round(at_s, 1),
                "load_1min": load,
            }
            for new, at_s, load in ran
        ],
    }


def _write(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    found["name"] = arguments.name or f"{Path(found['model']).stem} · {found['configuration']}"
    arguments.file.write_text(json.dumps([found], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{arguments.file}: {scatter_words(found)}", file=sys.stderr)


def scatter_words(found: dict[str, Any]) -> str:
    """Return in words how far processes scatter, and how the study's own figures lie to them."""
    calm = [each["score"] for each in found["processes"] if each["score"] and not each["disturbance"]]
    if len(calm) < 2:
        return "nothing to be compared"
    words = f"{len(calm)} of {len(found['processes'])} processes undisturbed, scatter {_scatter(calm):.2%}"
    for phase in ("search", "confirm"):
        if stored := [each["score"] for each in found["stored"] if each["phase"] == phase]:
            words += f"; {len(stored)} of the {phase}: median {median(stored) / median(calm):.3f} × theirs"
    return words


def _scatter(scores: Sequence[float]) -> float:
    return stdev(map(math.log, scores)) if len(scores) > 1 else 0.0


# ------------------------------------------------------------------------------------------------------------- replay


@dataclass(frozen=True)
class Rates:
    """How often each verdict was said, as shares, and how many processes ran now, in the mean."""

    said: dict[str, float]
    processes: float


def decided(then: Sequence[float], now: Sequence[float | None], most: int) -> tuple[str, int]:
    """Return the verdict on figures, and after how many processes. now: in their order, None where one was disturbed."""
    calm: list[float] = []
    for count, score in enumerate(now[:most], 1):
        calm += [] if score is None else [score]
        if score is not None and (verdict := Agreement(tuple(then), tuple(calm)).verdict) != UNDECIDED:
            return verdict, count
    return UNDECIDED, most


def rates(scores: Sequence[float | None], then: int, factor: float, arguments: argparse.Namespace) -> Rates | None:
    """Return how often each verdict is said of what is drawn of these processes; None where they are too few.

    factor: what every figure now is multiplied by. arguments: of the command line.
    """
    said: Counter[str] = Counter()
    ran, most, rng, in_a_row = 0, arguments.most, random.Random(arguments.seed), not arguments.any_order
    if len(scores) < then + most:
        return None
    for _ in range(arguments.draws):
        # The stretches share nothing: the second begins anywhere after the first, going round.
        turned = rng.randrange(len(scores))
        order = [*scores[turned:], *scores[:turned]] if in_a_row else rng.sample(scores, len(scores))
        first = rng.randrange(most, len(order) - then + 1)
        old = [score for score in order[first : first + then] if score is not None]
        new = [None if score is None else score * factor for score in order[:most]]
        if not old:  # nobody would have been told: a process that was disturbed is run in any case
            continue
        verdict, count = decided(old, new, most)
        said[verdict] += 1
        ran += count
    total = sum(said.values())
    return Rates({word: said[word] / total for word in (REPRODUCED, NOT_REPRODUCED, UNDECIDED)}, ran / total)


def replay(arguments: argparse.Namespace) -> None:
    """Print the table."""
    print(
        "| what | device | processes | disturbed | scatter | then | unchanged: reproduced | wrong | undecided | ran "
        f"| {arguments.slower:.0%} slower: found | wrong | undecided | ran |\n|{'---|' * 14}"
    )
    for file in arguments.files:
        for found in json.loads(file.read_text(encoding="utf-8")):
            scores = [e["score"] if e["score"] and not e["disturbance"] else None for e in found["processes"]]
            calm = [score for score in scores if score is not None]
            for then in arguments.then:
                row = _row(scores, then, arguments)
                about = f"{found['name']} | {found['device']} | {len(scores)} | {len(scores) - len(calm)}"
                print(f"| {about} | {_scatter(calm):.1%} | {then} | {row} |", flush=True)
    print()
    for file in arguments.files:
        for found in json.loads(file.read_text(encoding="utf-8")):
            versions = ", ".join(f"{name} {found['versions'].get(name)}" for name in ("torch", "transformers"))
            loads = [each["load_1min"] for each in found["processes"]]
            print(
                f"- {found['name']}: {found['date']}, {versions}, `{found['flags']}`, load {min(loads):.1f} to "
                f"{max(loads):.1f}; {scatter_words(found)}"
            )


def _row(scores: Sequence[float | None], then: int, arguments: argparse.Namespace) -> str:
    cells = []
    for factor, right, wrong in (
        (1.0, REPRODUCED, NOT_REPRODUCED),
        (1 / (1 + arguments.slower), NOT_REPRODUCED, REPRODUCED),
    ):
        found = rates(scores, then, factor, arguments)
        if found is None:
            return " | ".join("–" * 8)
        shares = (found.said[right], found.said[wrong], found.said[UNDECIDED])
        cells += [*(f"{share:.1%}" for share in shares), f"{found.processes:.1f}"]
    return " | ".join(cells)


def main() -> None:
    """Measure, or replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="run processes, and write what they came to", allow_abbrev=False)
    one.add_argument("file", type=Path, metavar="OUT.json")
    one.add_argument("--processes", type=int, default=60)
    one.add_argument("--name", help="what the table calls it (default: the model and its configuration)")
    one.add_argument(
        "--of", default="1.0", metavar="STUDY.NUMBER", help="which of the tune's trials (default: %(default)s)"
    )
    one.add_argument("--trial", help="a stored trial, STUDY.NUMBER, of the database that is named")
    two = commands.add_parser("replay", help="decide about what is drawn of them, again and again")
    two.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    two.add_argument("--draws", type=int, default=4000)
    two.add_argument("--then", type=lambda text: [int(word) for word in text.split(",")], default=[1, 4])
    two.add_argument(
        "--most", type=int, default=USUAL_PROCESSES, help=f"processes now at most, {LEAST_PROCESSES} at least"
    )
    two.add_argument("--slower", type=float, default=CHANGE)
    two.add_argument("--any-order", action="store_true", help="draw processes as if nothing drifted")
    two.add_argument("--seed", type=int, default=0)
    arguments, rest = parser.parse_known_args()
    if arguments.command == "measure":
        measure(arguments, rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        replay(arguments)


if __name__ == "__main__":
    main()
