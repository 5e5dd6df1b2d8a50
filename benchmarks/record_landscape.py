"""Write a study that was measured with `advisor tune --exhaustive` as a landscape: what the search is replayed on.

    python benchmarks/record_landscape.py STUDY FILE --command "advisor tune …" [--note TEXT]

The database is ADVISOR_DATABASE_URL's. The command is written down as the landscape's provenance. What the study took over
from another one, measured just before, costs what it cost there: a landscape's seconds are those of measuring it all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advisor import __version__
from advisor.measure.landscape import Landscape
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import architecture_key_of
from advisor.nouns.trial import Trial
from advisor.storage.place import default_url
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord


def main() -> None:
    """Read the study and write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("study", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="the model's config.json")
    parser.add_argument("--command", required=True)
    parser.add_argument("--note", default="")
    options = parser.parse_args()

    with Store.open(default_url(), write=False) as store:
        study = store.study(options.study)
        searched = [trial for trial in store.trials(options.study) if trial.phase == "search"]
        key = architecture_key_of(json.loads(options.config.read_text()))
        trials = _at_their_cost(searched, _measured(store, study, key))
    provenance = {
        "command": options.command,
        "date": study.started_at.date().isoformat(),
        "advisor": __version__,
        "driver": study.environment.driver or "",
        "note": options.note,
    }
    found = Landscape.of_study(study, trials, architecture_key=key, provenance=provenance)
    options.file.write_text(found.text, encoding="utf-8")
    print(f"{options.file}: {len(found.trials)} rows, {found.exhaustive_s:.0f} s")


def _measured(store: Store, study: StudyRecord, key: str) -> dict[Configuration, float]:
    """Return what trials of the same work in the same environment took (seconds), of each the newest that was run."""
    found: dict[Configuration, float] = {}
    for other in store.studies_for(key, study.workload.key_for(key)):
        if other.environment_key == study.environment_key:
            for trial in store.trials(other.id):
                if trial.phase == "search" and not trial.is_reused and trial.wall_s:
                    found.setdefault(trial.requested, trial.wall_s)
    return found


def _at_their_cost(trials: Sequence[Trial], measured: Mapping[Configuration, float]) -> list[Trial]:
    """Return the trials, those that were taken over with the seconds of the one that was measured."""
    lost = [str(trial.requested) for trial in trials if trial.is_reused and trial.requested not in measured]
    if lost:
        raise SystemExit(f"record_landscape: what these took is not in this database: {', '.join(lost)}")
    return [replace(trial, wall_s=measured[trial.requested]) if trial.is_reused else trial for trial in trials]


if __name__ == "__main__":
    main()
