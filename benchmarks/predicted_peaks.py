"""Print what arithmetic predicts of the peak of memory beside what was measured, of every trial of a study of training that ran.

    python benchmarks/predicted_peaks.py STUDY [--json FILE]

The database is ADVISOR_DATABASE_URL's. What was predicted is of the weights and of a step, and what a process has on a GPU beside
torch's memory is added to it (`advisor.nouns.metrics.ASSUMED_BESIDE_BYTES`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from advisor.knobs import Situation
from advisor.nouns.metrics import ASSUMED_BESIDE_BYTES
from advisor.nouns.trial import Trial
from advisor.search.cost import predicted_bytes
from advisor.storage.place import default_url
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib


def main() -> None:
    """Read the study and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("study", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with Store.open(default_url(), write=False) as store:
        study = store.study(options.study)
        rows = [row(study, trial) for trial in store.trials(options.study, full=True) if trial.peak_bytes]
    print("| phase | configuration | predicted | measured | predicted / measured | tensors alone |")
    print("|---|---|---|---|---|---|")
    for each in rows:
        shown = [each["phase"], each["configuration"], gib(each["predicted"]), gib(each["measured"])]
        print("| " + " | ".join([*shown, f"{each['ratio']:.3f}", f"{each['of_tensors']:.3f}"]) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def row(study: StudyRecord, trial: Trial) -> dict[str, Any]:
    """Return a trial's figures: bytes, and the prediction over the peak, and over that of torch's tensors alone."""
    assert study.facts is not None
    assert trial.peak_bytes is not None
    ran = trial.ran
    situation = Situation(ran, study.workload.under(ran), study.environment, study.facts)
    beside = ASSUMED_BESIDE_BYTES if study.environment.is_cuda else 0
    predicted, peak = predicted_bytes(situation) + beside, dict(trial.reading.get("peak", {}))
    tensors = int(peak.get("allocated", 0)) + int(peak.get("beside", 0))
    return {
        "phase": trial.phase,
        "configuration": str(ran),
        "predicted": predicted,
        "measured": trial.peak_bytes,
        "ratio": predicted / trial.peak_bytes,
        "of_tensors": predicted / tensors if tensors else 0.0,
    }


if __name__ == "__main__":
    main()
