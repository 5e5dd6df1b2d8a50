"""Two GPUs of one host at work on a daemon's jobs: one study on both, then two studies, beside one GPU alone.

    python benchmarks/two_gpus.py OUT [--config benchmarks/shapes/llama-3.2-1b.json]

The hosts are `advisor worker` as a user starts it, and each of their slots has had a job before, as a daemon's have: what starts
once is not counted. Trials per minute are counted from the begin of the first trial to the end of the last one. Every study is of
the same work, so that what they found can be held against each other: the interval of every comparison, and whether a block was
ever run on two GPUs. Writes OUT/two-gpus.json and OUT/two-gpus.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "faults"))

from fleet import Fleet, wrong_with  # noqa: E402

#: The work: padded sequences, and every configuration measured to its end, so that all sittings do the same. What is compiled
#: for a minute (flex_attention) is left out: one such trial would be most of a study. sdpa-cudnn is left out, for it is what sdpa
#: runs here: its twin costs a slot alone nothing, and two slots that measure both at once a whole trial. Ten blocks are all run:
#: of nine at most, three decide, and the third of them leaves one of two slots without work.
WORK = {
    "padding": "0.4",
    "batch": "auto",
    "exhaustive": True,
    "blocks": 10,
    "only": [
        "attention=sdpa,sdpa-efficient,flash_attention_2",
        "precision=bf16,fp16",
        "batch=4,8,16",
    ],
}

#: What every slot does first, and nobody counts: a daemon's slot has its process that imported torch from the job before.
FIRST = {"padding": "0.4", "budget": "2m", "trials": 1, "blocks": 0, "only": ["attention=sdpa", "precision=bf16"]}

#: How many GPUs there are for studies of these lengths.
SITTINGS = {
    "one GPU, one study": (1, ["2048"]),
    "two GPUs, one study": (2, ["2048"]),
    "two GPUs, two studies": (2, ["2048", "1536"]),
}

#: A study may take so long, seconds.
MOST_S = 420.0


def sat(place: Path, name: str, devices: str, config: Path, lengths: list[str]) -> dict[str, Any]:
    """Tune a study for each length on these devices (CUDA_VISIBLE_DEVICES); return what was found and how fast."""
    place.mkdir(parents=True)
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    fleet = Fleet(f"sqlite:///{place}/advisor.db", place)
    try:
        fleet.start_working(["--assume-idle"])
        count = len(devices.split(","))
        fleet.slots(count, 120.0)
        fleet.all_over([fleet.submit(str(config), lengths=str(64 * n), **FIRST) for n in range(1, count + 1)], 120.0)
        began = time.monotonic()
        jobs = [fleet.submit(str(config), lengths=length, budget="20m", **WORK) for length in lengths]
        fleet.all_over(jobs, MOST_S)
        waited_s = time.monotonic() - began
        studies = [fleet.store.study(fleet.job(job).study or 0) for job in jobs]
        found = [told(fleet, study.id) for study in studies]
        return {
            "name": name,
            "waited_s": waited_s,
            "per_minute": per_minute(fleet, [s.id for s in studies]),
            "studies": found,
        }
    finally:
        fleet.close()


def told(fleet: Fleet, study: int) -> dict[str, Any]:
    """Return what a study came to: its trials by device, its comparisons, what is wrong with it."""
    trials = fleet.store.trials(study)
    devices = sorted({trial.device_uuid for trial in trials})
    answer, compared = fleet.store.answer(study), fleet.store.comparisons(study)
    return {
        "trials": len(trials),
        "ok": sum(trial.outcome == "ok" for trial in trials),
        "by_device": {device: sum(trial.device_uuid == device for trial in trials) for device in devices},
        "wrong": wrong_with(trials),
        "answer": None if answer is None else f"{answer.verdict} {answer.configuration} {answer.ratio}",
        "comparisons": {c.candidate: [c.ratio, *c.interval, len(c.block_ratios)] for c in compared},
    }


def per_minute(fleet: Fleet, studies: list[int]) -> float:
    """Return the trials per minute, from the begin of the first to the end of the last."""
    listed = ",".join(map(str, studies))
    asked = f"SELECT started_at, finished_at FROM trials WHERE study_id IN ({listed}) AND finished_at IS NOT NULL"
    with fleet.store._database.engine.connect() as connection:
        rows = connection.exec_driver_sql(asked).all()
    from datetime import datetime

    first = min(datetime.fromisoformat(row[0]) for row in rows)
    last = max(datetime.fromisoformat(row[1]) for row in rows)
    return 60 * len(rows) / (last - first).total_seconds()


def table(found: dict[str, dict[str, Any]], device: str) -> str:
    """Return the sitting as a Markdown table."""
    one = found["one GPU, one study"]["per_minute"]
    lines = [f"{device}", "", "| what | trials a minute | × one GPU | trials by GPU | wrong |", "|---|---|---|---|---|"]
    for name, each in found.items():
        shares = "; ".join("/".join(map(str, study["by_device"].values())) for study in each["studies"])
        wrong = sum(len(study["wrong"]) for study in each["studies"])
        lines.append(f"| {name} | {each['per_minute']:.1f} | {each['per_minute'] / one:.2f} | {shares} | {wrong} |")
    lines += ["", "| configuration | one GPU | two GPUs | overlap |", "|---|---|---|---|"]
    alone, both = (found[name]["studies"][0]["comparisons"] for name in ("one GPU, one study", "two GPUs, one study"))
    for key in sorted(set(alone) & set(both)):
        (a, al, ah, _), (b, bl, bh, _) = alone[key], both[key]
        lines.append(f"| {key} | {a:.3f} ({al:.3f}–{ah:.3f}) | {b:.3f} ({bl:.3f}–{bh:.3f}) | {al <= bh and bl <= ah} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Sit, write what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sitting", action="append", choices=list(SITTINGS), help="this one alone; repeat it")
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "shapes" / "llama-3.2-1b.json")
    options = parser.parse_args()
    from advisor.machine import probe

    gpus = [machine for machine in probe.machines() if machine.environment.is_cuda]
    if len(gpus) < 2:
        print(f"this machine has {len(gpus)} GPUs, and two are needed", file=sys.stderr)
        return 2
    file = options.out / "two-gpus.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in options.sitting or SITTINGS:
        count, lengths = SITTINGS[name]
        place = options.out / name.replace(", ", "-").replace(" ", "-")
        devices = ",".join(gpu.uuid for gpu in gpus[:count])
        found[name] = sat(place, name, devices, options.config.resolve(), lengths)
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(name, json.dumps({k: v for k, v in found[name].items() if k != "studies"}), flush=True)
    if set(found) != set(SITTINGS):
        return 0
    text = table(found, str(gpus[0].environment))
    (options.out / "two-gpus.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
