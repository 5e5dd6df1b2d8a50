"""How far processes of one configuration differ, and how often `advisor reproduce` is right about them.

    python benchmarks/reproduction.py measure OUT.json [--processes 60] [--name NAME] MODEL --lengths … [flags of advisor tune]
    python benchmarks/reproduction.py measure OUT.json [--processes 60] --trial STUDY.NUMBER
    python benchmarks/reproduction.py replay FILE.json … [--draws 4000] [--then 1,4] [--most 15] [--slower 0.1] [--any-order]
    python benchmarks/reproduction.py simulate [--draws 4000] [--then 1,4] [--most 15] [--slower 0.1]

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median, stdev
from typing import Any

from advisor.errors import AdvisorError
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
        _write(arguments, arguments.trial)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADVISOR_DATABASE_URL"] = f"sqlite:///{folder}/advisor.db"
        asked = [word for name, value in _LEAST_TUNE.items() if name not in rest for word in (name, value)]
        subprocess.run([sys.executable, "-m", "advisor", "tune", *rest, *asked], check=False, stdout=sys.stderr)
        _write(arguments, arguments.of)


def processes_of(trial: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield what a stored trial and fresh processes of its configuration came to by now, after each of so many."""
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
    about = {
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
    }
    runner, ran = LocalRunner(machine), []
    try:
        for new in islice(reruns.fresh_processes(stored, source, runner, 600.0), count):
            seen = {"outcome": str(new.outcome), "at_s": round(time.time(), 1), "load_1min": os.getloadavg()[0]}
            ran.append((new, {"score": new.score(aim), **seen}))
            print(f"{len(ran)} of {count}: {new.outcome} {aim.show(new.value(aim.metric) or 0.0)}", file=sys.stderr)
            best_s = best_laps_s([*stored.trials, *(each for each, _ in ran)])
            told = [{**words, "disturbance": reproduction.disturbance(each, best_s)} for each, words in ran]
            yield {**about, "processes": told}
    finally:
        runner.close()


def _write(arguments: argparse.Namespace, trial: str) -> None:
    """Write the file after every process: what is broken off leaves what there was."""
    for found in processes_of(trial, arguments.processes):
        found["name"] = arguments.name or f"{Path(found['model']).stem} · {found['configuration']}"
        arguments.file.write_text(json.dumps([found], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        words = scatter_words(found)
    print(f"{arguments.file}: {words}", file=sys.stderr)


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


#: What gives the figures of processes then and now, None for one that was disturbed.
Draw = Callable[[random.Random], tuple[list[float], list[float | None]]]


def rates(draw: Draw, factor: float, arguments: argparse.Namespace) -> Rates:
    """Return how often each verdict is said of what is drawn. factor: what every figure now is multiplied by."""
    said, ran, rng = Counter[str](), 0, random.Random(arguments.seed)
    while said.total() < arguments.draws:
        then, now = draw(rng)
        if then:  # where nothing undisturbed is left of then, what was disturbed counts: nobody would promise anything
            verdict, count = decided(then, [None if score is None else score * factor for score in now], arguments.most)
            said[verdict] += 1
            ran += count
    total = said.total()
    return Rates({word: said[word] / total for word in (REPRODUCED, NOT_REPRODUCED, UNDECIDED)}, ran / total)


def drawing(scores: Sequence[float | None], then: int, most: int, *, in_a_row: bool) -> Draw:
    """Return what draws processes of a file: two stretches that share nothing, going round, or any."""

    def draw(rng: random.Random) -> tuple[list[float], list[float | None]]:
        turned = rng.randrange(len(scores))
        order = [*scores[turned:], *scores[:turned]] if in_a_row else rng.sample(scores, len(scores))
        first = rng.randrange(most, len(order) - then + 1)
        return [score for score in order[first : first + then] if score is not None], order[:most]

    return draw


def simulate(arguments: argparse.Namespace) -> None:
    """Print the table of normal logarithms."""
    print(f"| scatter | then | {_HEAD}\n|{'---|' * 10}")
    for then in arguments.then:
        for scatter in (0.003, 0.01, 0.015, 0.016, 0.02, 0.03, 0.05, 0.07, 0.15):

            def draw(rng: random.Random, then: int = then, scatter: float = scatter) -> Any:
                figures = [math.exp(rng.gauss(0, scatter)) for _ in range(then + arguments.most)]
                return figures[:then], figures[then:]

            print(f"| {scatter:.1%} | {then} | {_row(draw, arguments)} |", flush=True)


def replay(arguments: argparse.Namespace) -> None:
    """Print the table."""
    print(f"| what | device | processes | disturbed | scatter | then | {_HEAD}\n|{'---|' * 14}")
    for file in arguments.files:
        for found in json.loads(file.read_text(encoding="utf-8")):
            scores = [e["score"] if e["score"] and not e["disturbance"] else None for e in found["processes"]]
            calm = [score for score in scores if score is not None]
            for then in arguments.then:
                is_enough = len(scores) >= then + arguments.most
                draw = drawing(scores, then, arguments.most, in_a_row=not arguments.any_order)
                row = _row(draw, arguments) if is_enough else " | ".join("–" * 8)
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


_HEAD = "unchanged: reproduced | wrong | undecided | ran | slower: found | wrong | undecided | ran |"


def _row(draw: Draw, arguments: argparse.Namespace) -> str:
    cells = []
    slower = 1 / (1 + arguments.slower)
    for factor, right, wrong in ((1.0, REPRODUCED, NOT_REPRODUCED), (slower, NOT_REPRODUCED, REPRODUCED)):
        found = rates(draw, factor, arguments)
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
    two.add_argument("--any-order", action="store_true", help="draw processes as if nothing drifted")
    three = commands.add_parser("simulate", help="decide about normal draws")
    for each in (two, three):
        each.add_argument("--draws", type=int, default=4000)
        each.add_argument("--then", type=lambda text: [int(word) for word in text.split(",")], default=[1, 4])
        each.add_argument(
            "--most", type=int, default=USUAL_PROCESSES, help=f"processes now, {LEAST_PROCESSES} at least"
        )
        each.add_argument("--slower", type=float, default=CHANGE)
        each.add_argument("--seed", type=int, default=0)
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "measure":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if arguments.command == "measure":
            measure(arguments, rest)
        else:
            {"replay": replay, "simulate": simulate}[arguments.command](arguments)
    except AdvisorError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
