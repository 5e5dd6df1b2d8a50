"""Does measuring change what is measured? advisor's worker against a bare loop of the same forward, in interleaved pairs.

    python benchmarks/overhead.py [--model CONFIG_JSON] [--device cuda|cpu] [--pairs 5]

Every run is a fresh process; within a pair the order alternates. Prints all pairs; passes if the 95 % interval of the
ratio (advisor's seconds over the bare loop's) lies within 0.98–1.02.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from advisor.knobs import baseline_choices
from advisor.machine import probe
from advisor.measure.messages import Timing, TrialAsked, TrialDone
from advisor.measure.runner import LocalRunner, read_facts
from advisor.measure.stopping import Stopping
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import Comparison
from advisor.nouns.model import ModelSource
from advisor.workloads.forward import Forward
from advisor.workloads.quantiles import quantile_lengths

HERE = Path(__file__).parent
BOUND = 0.02


def advisor_rounds(source: ModelSource, workload: Forward, machine: Machine, rounds: int) -> list[float]:
    """Return seconds per round as advisor's worker measures the default configuration in a fresh process."""
    runner = LocalRunner(machine)
    try:
        facts = read_facts(runner, source, Forward((8,), 1))
        request = TrialAsked(
            source=source.files,
            facts=facts,
            workload=workload,
            configuration=Configuration.of(baseline_choices(facts, workload)),
            timing=Timing(stopping=Stopping(least=rounds, most=rounds, seconds=600.0)),
        )
        answer = runner.run(request, 600)
    finally:
        runner.close()
    assert isinstance(answer, TrialDone)
    assert answer.rounds is not None
    return list(answer.rounds.wall_s)


def bare_rounds(source: ModelSource, workload: Forward, machine: Machine, rounds: int) -> list[float]:
    """Return seconds per round of the hand-written loop in a fresh process."""
    device = "cpu" if machine.index is None else "cuda"
    command = [sys.executable, str(HERE / "bare_loop.py"), source.path, device, str(rounds), str(workload.batch)]
    done = subprocess.run([*command, *map(str, workload.lengths)], check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the pairs and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(HERE / "shapes" / "llama-3.2-1b.json"))
    parser.add_argument("--device")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=2048)
    options = parser.parse_args()
    source, machine = find_model(options.model), probe.machine(options.device)
    workload = Forward(quantile_lengths(options.length, 0.3, 8, 4), 8)
    print(f"{source.name}, {workload}, {machine.environment}\n")
    print("| pair | first | bare loop (s) | advisor (s) | ratio |\n|---|---|---|---|---|")
    ratios = []
    for pair in range(options.pairs):
        runs = [("bare", bare_rounds), ("advisor", advisor_rounds)]
        found = {
            name: median(run(source, workload, machine, options.rounds))
            for name, run in runs[:: 1 if pair % 2 == 0 else -1]
        }
        ratios.append(found["advisor"] / found["bare"])
        first = "bare" if pair % 2 == 0 else "advisor"
        print(f"| {pair + 1} | {first} | {found['bare']:.5f} | {found['advisor']:.5f} | {ratios[-1]:.4f} |", flush=True)
    comparison = Comparison("advisor", "bare", tuple(ratios))
    low, high = comparison.interval
    passed = low >= 1 - BOUND and high <= 1 + BOUND
    print(f"\nratio {comparison.ratio:.4f}, 95 % interval {low:.4f}–{high:.4f}: {'PASS' if passed else 'FAIL'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
