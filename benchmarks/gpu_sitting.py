"""One sitting on a GPU: tune real shapes, print what is recommended and the GPU-seconds it took.

    python benchmarks/gpu_sitting.py OUT CASE [CASE …]

OUT is a folder for the database, the JSON answers and a Markdown table; cases are the keys of CASES. Every case is the
user's own command line in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).parent / "shapes"

COMMON = ["--output", "last-logits", "--quality", "exact", "--format", "json"]

CASES = {
    "llama-8b-2048-padded": (
        "llama-3-8b.json",
        ["--lengths", "2048", "--padding", "0.3", "--batch", "8", "--batches", "3"],
    ),
    "llama-8b-4096-full": (
        "llama-3-8b.json",
        ["--lengths", "4096", "--padding", "0", "--batch", "4", "--batches", "2"],
    ),
    "falcon-7b-2048-padded": (
        "falcon-7b.json",
        ["--lengths", "2048", "--padding", "0.3", "--batch", "8", "--batches", "2"],
    ),
    "falcon-7b-4096-full": (
        "falcon-7b.json",
        ["--lengths", "4096", "--padding", "0", "--batch", "4", "--batches", "2"],
    ),
}


def run_case(name: str, out: Path) -> dict[str, Any]:
    """Tune one case and return the answer with the seconds it took; the log and the answer go to `out`."""
    shape, workload = CASES[name]
    command = [sys.executable, "-m", "advisor", "tune", str(SHAPES / shape), *workload, *COMMON, "--budget", "20m"]
    print(f"$ advisor tune {SHAPES.name}/{shape} {' '.join([*workload, *COMMON])}", flush=True)
    began = time.perf_counter()
    environment = {**os.environ, "ADVISOR_DATABASE_URL": f"sqlite:///{out / 'advisor.db'}", "HF_HUB_OFFLINE": "1"}
    with (out / f"{name}.log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, check=False)
    print((out / f"{name}.log").read_text(), flush=True)
    answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    answer["exit_status"], answer["wall_s"] = done.returncode, time.perf_counter() - began
    (out / f"{name}.json").write_text(json.dumps(answer, indent=1))
    return answer


def row(name: str, answer: dict[str, Any]) -> str:
    """Return a line of the table."""
    if answer["exit_status"] != 0:
        return f"| {name} | exit status {answer['exit_status']} | | | | {answer['wall_s']:.0f} |"
    found = answer["recommendation"]
    configuration = " · ".join(found["configuration"].values())
    ratio = (
        f"{found['ratio']:.3f} ({found['ratio_interval'][0]:.3f}–{found['ratio_interval'][1]:.3f})"
        if found["ratio"]
        else "–"
    )
    return (
        f"| {name} | {configuration} | {answer['verdict']} | {ratio} | {found['tokens_per_s']:,.0f} "
        f"| {answer['wall_s']:.0f} |"
    )


def main() -> None:
    """Run the cases named on the command line."""
    out = Path(sys.argv[1])
    rows = [
        "| case | recommended | verdict | ratio over the default | tokens/s | GPU held (s) |",
        "|---|---|---|---|---|---|",
    ]
    for name in sys.argv[2:]:
        rows.append(row(name, run_case(name, out)))
        (out / "table.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
