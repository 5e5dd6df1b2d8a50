"""What a tune by default misses: the same work tuned and measured whole, on one machine, one after the other.

    python benchmarks/regret.py OUT [CASE …] [--padding P] [--device D]

OUT: a folder, which is made; each case leaves NAME.json there, a landscape of the exhaustive measurement that
`tests/landscapes` can take. Prints a Markdown row a case: the regret of what the tune recommends, and the seconds of its
search after the default's trial over those of the exhaustive one. Regret is the ratio over the default that the exhaustive
tune confirmed, over the one that the tune confirmed, 1 for the default itself, less 1; they tie where the intervals of both
overlap. Of a case whose rounds scatter, the best of many search trials is the luckiest, so that their figures are no
measure. The tune is by default; what compiles for longer than TIMEOUT is left out of the exhaustive one, and a
recommendation that it did not measure is said to be none of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import advisor
from advisor import __version__
from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.measure.landscape import Landscape
from advisor.nouns.model import architecture_key_of
from advisor.nouns.trial import Trial
from advisor.search.prospects import searched
from advisor.storage.store import Store

#: As the rows and the landscapes name them: from where the command is given.
SHAPES = Path(os.path.relpath(Path(__file__).parent / "shapes"))

#: Deadline of a trial.
TIMEOUT = "40s"

#: Shape and work by the name of a case: an encoder, windows, soft caps, few key heads, and one that the launches bound.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "xlm-roberta-base 64 x 512": ("xlm-roberta-base", {"lengths": 512, "batch": 64}),
    "gemma-3-1b 8 x 2048": ("gemma-3-1b", {"lengths": 2048, "batch": 8}),
    "gemma-2-2b 4 x 4096": ("gemma-2-2b", {"lengths": 4096, "batch": 4}),
    "qwen2.5-1.5b 8 x 2048": ("qwen2.5-1.5b", {"lengths": 2048, "batch": 8}),
    "minilm-l6 8 x 64": ("minilm-l6", {"lengths": 64, "batch": 8}),
}


def main(arguments: Sequence[str]) -> int:
    """Run the cases, padded by 40 % and not."""
    parser = argparse.ArgumentParser(description="What a tune by default misses, beside the exhaustive measurement.")
    parser.add_argument("out", type=Path, help="a folder for databases and landscapes")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all by default: {', '.join(CASES)}")
    parser.add_argument("--padding", type=float, action="append", help="0.4 and 0 by default; may be repeated")
    parser.add_argument("--device", help="of several GPUs; the first usable by default")
    asked = parser.parse_args(arguments)
    if strangers := [name for name in asked.cases if name not in CASES]:
        parser.error(f"there is no case {', '.join(strangers)}: {', '.join(CASES)}")
    out, wanted, paddings = asked.out, asked.cases or list(CASES), asked.padding or [0.4, 0.0]
    device = {"device": asked.device} if asked.device else {}
    out.mkdir(parents=True, exist_ok=True)
    print("| case | padding | space | best of all | recommended | regret | tie | search / exhaustive (s) | took (s) |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in wanted:
        shape, work = CASES[name]
        for padding in paddings:
            print(row(name, SHAPES / f"{shape}.json", {**work, **device, "padding": padding}, out), flush=True)
    return 0


def row(name: str, shape: Path, work: dict[str, Any], out: Path) -> str:
    """Tune, measure all, and return the row."""
    stem = f"{name.replace(' ', '-')}-padding-{work['padding']:g}"
    began = time.monotonic()
    tuned, its_trials = measured(shape, out / f"{stem}-tuned.db", **work)
    took_s = time.monotonic() - began
    print(f"{stem}: tuned in {took_s:.0f} s, {tuned.verdict}: {tuned.configuration}", file=sys.stderr, flush=True)
    whole, all_trials = measured(shape, out / f"{stem}.db", exhaustive=True, timeout=TIMEOUT, **work)
    keep(whole, all_trials, shape, out / f"{stem}.json")
    best, held = whole.chosen, tuned.chosen
    if best is None or held is None or best.ratio is None or held.ratio is None:
        return f"| {name} | {work['padding']:g} | {whole.admissible} | {whole.verdict} | {tuned.verdict} | | | | |"
    was_measured = any(trial.ran == held.configuration for trial in searched(all_trials) if trial.measurements)
    regret = 0.0 if best.configuration == held.configuration else best.ratio / held.ratio - 1
    is_tie = not regret or interval_of(held)[1] >= interval_of(best)[0]
    spent_s, whole_s = (sum(t.wall_s or 0.0 for t in searched(each)[1:]) for each in (its_trials, all_trials))
    cells = [
        name,
        f"{work['padding']:g}",
        whole.admissible,
        told(best),
        f"{told(held)}, {tuned.verdict}{'' if was_measured else ', not measured there'}",
        f"{regret:.1%}",
        "yes" if is_tie else "no",
        f"{spent_s:.0f} / {whole_s:.0f} = {spent_s / whole_s:.0%}",
        f"{took_s:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def interval_of(found: Candidate) -> tuple[float, float]:
    """Return the interval of a confirmed ratio over the default; 1 for the default itself."""
    return (1.0, 1.0) if found.is_default or found.comparison is None else found.comparison.interval


def told(found: Candidate) -> str:
    """Return a configuration with its confirmed ratio."""
    low, high = interval_of(found)
    return f"{found.configuration} {found.ratio:.2f} ({low:.2f}–{high:.2f})"


def measured(shape: Path, database: Path, **flags: Any) -> tuple[Recommendation, list[Trial]]:
    """Tune into a database of its own; return what is recommended, and the trials."""
    os.environ["ADVISOR_DATABASE_URL"] = f"sqlite:///{database}"
    found = advisor.tune(str(shape), **flags)
    with Store.open(os.environ["ADVISOR_DATABASE_URL"], write=False) as store:
        return found, store.trials(found.study.id)


def keep(found: Recommendation, trials: list[Trial], shape: Path, file: Path) -> None:
    """Write an exhaustive measurement as a landscape."""
    provenance = {
        "command": found.command,
        "date": found.study.started_at.date().isoformat(),
        "advisor": __version__,
        "driver": found.study.environment.driver or "",
        "note": f"exhaustive, a trial within {TIMEOUT}",
    }
    key = architecture_key_of(json.loads(shape.read_text()))
    kept = Landscape.of_study(found.study, searched(trials), architecture_key=key, provenance=provenance)
    file.write_text(kept.text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
