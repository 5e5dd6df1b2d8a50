"""How long people wait for `advisor --help` and `advisor suggest`: the median of 20 whole processes each.

    python benchmarks/startup.py [--runs 20] [--processor-time]

The database holds 10,000 trials; `suggest` answers from 40 of them. What it looks up there is timed by itself too, in as many
processes of their own: the first time, which is all that `suggest` ever does in a process, and the median of later ones. The
exit status is 1 where a limit is exceeded; with CI in the environment, on machines that others use too, limits are twice as
high.
--processor-time counts what the processes compute and not what they wait for: on a busy machine that says more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import create_engine, insert, select

from advisor.knobs.choice import Reason, Verdict
from advisor.machine import probe
from advisor.models.checkpoint import find_model
from advisor.nouns.answer import SearchEnd, Stop
from advisor.nouns.configuration import Configuration, canonical_json
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage import tables
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "models" / "causal"

#: What is timed, and the most that it may take, in seconds.
LIMITS_S = {
    "advisor --help": 0.12,
    "advisor suggest": 0.4,
    "suggest's look-ups": 0.010,
    "suggest's look-ups, first": 0.010,
}

STUDIES, TRIALS = 250, 40

WORKLOAD = Forward((64, 48, 32, 16), 2)
FLAGS = ["--device", "cpu", "--lengths", "64,48,32,16", "--batch", "2"]

FACTS = ModelFacts(
    "LlamaForCausalLM",
    "llama",
    "float32",
    2_100_000,
    8_400_000,
    1_500_000,
    4,
    256,
    8,
    2,
    32,
    2048,
    2048,
    supports_sdpa=True,
    supports_flash=True,
    switches_attention=True,
    default_attention="sdpa",
)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
CHOSEN = DEFAULT.replaced(packing="sorted")


def fill(url: str) -> None:
    """Write 250 studies of 40 trials each; the first is this machine's, of the shipped model, with its comparison."""
    environment, source = probe.machine("cpu").environment, find_model(str(MODEL))
    with Store.open(url, write=True) as store:
        studies = []
        for number in range(STUDIES):
            workload = Forward((*WORKLOAD.lengths, *[8] * number), 2)
            where = environment if number % 2 == 0 else replace(environment, threads=number)
            studies.append(store.open_study(source, workload, where, Objective(), Budget(600.0), 0))
        store.save_facts(source, FACTS)
        store.save_ceilings(environment, {"matmul_fp32_per_s": 5e10, "copy_bytes_per_s": 1e10})
        for configuration, speed in ((DEFAULT, 1000.0), (CHOSEN, 1500.0)):
            number = store.claim(studies[0], Search(configuration), "a:1:1")[0]
            store.finish_trial(studies[0], _trial(number, configuration, speed), "a:1:1")
        for study in studies:
            store.close_study(study, "done", end=SearchEnd(Stop.EVERYTHING, 0, 0.0, (), TRIALS))
        store.save_comparisons(studies[0], [Comparison(CHOSEN.key, DEFAULT.key, (1.5, 1.51, 1.49))])
        store.save_refusals(studies[0], [_reason(number) for number in range(20)])
    _multiply(url, studies)


def _trial(number: int, configuration: Configuration, speed: float) -> Trial:
    samples = tuple(speed + index / 7 for index in range(20))
    return Trial(
        number,
        configuration,
        configuration,
        Outcome.OK,
        load_s=1.0,
        first_call_s=0.1,
        measure_s=2.0,
        wall_s=4.0,
        peak_bytes=2**29,
        weight_bytes=2**23,
        reading={"operators": ["aten::something"] * 300},
        quality=Quality(1e-6, 1e-5, 1e-9, 1.0, 64, 1.0, reference="fp32, eager, one sequence at a time"),
        measurements=(Measurement("tokens_per_s", "tokens/s", samples), Measurement("round_s", "s", samples)),
    )


def _reason(number: int) -> Reason:
    return Reason(
        f"A{number}", Verdict.INVALID, "made up, but of the usual length", "a remedy", subject=f"knob=choice-{number}"
    )


def _multiply(url: str, studies: list[int]) -> None:
    """Copy the two trials until there are 10,000."""
    engine = create_engine(url)
    with engine.begin() as connection:
        trials = [dict(row) for row in connection.execute(select(tables.TRIALS)).mappings()]
        measurements = [dict(row) for row in connection.execute(select(tables.MEASUREMENTS)).mappings()]
        many: list[dict[str, Any]] = []
        measured: list[dict[str, Any]] = []
        for place in range(2, STUDIES * TRIALS):
            original = trials[place % 2]
            row = {"id": place + 1, "study_id": studies[place // TRIALS], "number": place % TRIALS}
            many.append({**original, **row, "started_at": datetime.now(UTC)})
            for each in (m for m in measurements if m["trial_id"] == original["id"]):
                measured.append({**each, "id": len(measurements) + len(measured) + 1, "trial_id": place + 1})
        connection.execute(insert(tables.TRIALS), many)
        connection.execute(insert(tables.MEASUREMENTS), measured)
    engine.dispose()


def look_up(url: str, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of suggest's look-ups, the first of this process first."""
    source, took = find_model(str(MODEL)), []
    key = WORKLOAD.key_for(source.architecture_key)
    with Store.open(url, write=False) as store:
        for _ in range(41):
            began = clock()
            (study, *_) = store.studies_for(source.architecture_key, key)
            trials = store.trials(study.id)
            store.comparisons(study.id)
            store.refusals(study.id)
            store.ceilings(study.environment_key)
            took.append(clock() - began)
    assert len(trials) == TRIALS
    return took


def childrens_time() -> float:
    """Return the processor seconds of the processes that were run and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def process_s(arguments: list[str], url: str, clock: Callable[[], float]) -> tuple[float, str]:
    """Run Python once and return the seconds of the whole process and what it printed."""
    variables = {**os.environ, "ADVISOR_DATABASE_URL": url, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    began = clock()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables, check=True)
    return clock() - began, done.stdout


def measure(runs: int, *, processor_time: bool) -> dict[str, float]:
    """Return the median of every line of LIMITS_S, in seconds."""
    clock, look_ups = time.perf_counter, [__file__, "--look-up"]
    if processor_time:
        clock, look_ups = childrens_time, [__file__, "--processor-time", "--look-up"]
    with tempfile.TemporaryDirectory(prefix="advisor-startup-") as folder:
        url = f"sqlite:///{folder}/advisor.db"
        fill(url)
        suggest = ["-m", "advisor", "suggest", str(MODEL), *FLAGS]
        assert (
            "sdpa · fp32 · sorted: 1.50 × the default" in process_s(suggest, url, clock)[1]
        )  # and bytecode is written
        helps, answers, firsts, later = [], [], [], []
        for _ in range(runs):
            helps.append(process_s(["-m", "advisor", "--help"], url, clock)[0])
            answers.append(process_s(suggest, url, clock)[0])
            first, *others = json.loads(process_s([*look_ups, url], url, clock)[1])
            firsts.append(first)
            later.append(median(others))
    return dict(zip(LIMITS_S, map(median, (helps, answers, later, firsts)), strict=True))


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description="Start-up times of the command line.")
    parser.add_argument("--runs", type=int, default=20, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--processor-time", action="store_true", help="count computing, not waiting")
    parser.add_argument("--look-up", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look_up:
        print(
            canonical_json(look_up(options.look_up, time.process_time if options.processor_time else time.perf_counter))
        )
        return 0
    factor = 2 if os.environ.get("CI") else 1
    found = measure(options.runs, processor_time=options.processor_time)
    print("| what | median (ms) | limit (ms) | |\n|---|---|---|---|")
    for name, seconds in found.items():
        limit_s = factor * LIMITS_S[name]
        print(f"| {name} | {seconds * 1000:.1f} | {limit_s * 1000:.0f} | {'PASS' if seconds <= limit_s else 'FAIL'} |")
    return int(any(seconds > factor * LIMITS_S[name] for name, seconds in found.items()))


if __name__ == "__main__":
    sys.exit(main())
