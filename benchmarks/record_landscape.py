"""Write a study that was measured with `advisor tune --exhaustive` as a landscape: what the search is replayed on.

    python benchmarks/record_landscape.py STUDY FILE --command "advisor tune …" [--note TEXT]

The database is ADVISOR_DATABASE_URL's. The command is written down as the landscape's provenance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from advisor import __version__
from advisor.measure.landscape import Landscape
from advisor.nouns.model import architecture_key_of
from advisor.storage.place import default_url
from advisor.storage.store import Store


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
        trials = [trial for trial in store.trials(options.study) if trial.phase == "search"]
    provenance = {
        "command": options.command,
        "date": study.started_at.date().isoformat(),
        "advisor": __version__,
        "driver": study.environment.driver or "",
        "note": options.note,
    }
    key = architecture_key_of(json.loads(options.config.read_text()))
    found = Landscape.of_study(study, trials, architecture_key=key, provenance=provenance)
    options.file.write_text(found.text, encoding="utf-8")
    print(f"{options.file}: {len(found.trials)} rows, {found.exhaustive_s:.0f} s")


if __name__ == "__main__":
    main()
