"""What a tune by default misses: the same work tuned and measured whole, on one machine, one after the other.

    python benchmarks/regret.py OUT [CASE …]

OUT: a folder; each case leaves NAME.json there, a landscape of the exhaustive measurement that `tests/landscapes` can take.
Prints a Markdown row a case: the regret of what the tune recommends, by the exhaustive figures of both, and the seconds of its
search after the default's trial over those of the exhaustive one. What compiles for longer than TIMEOUT is left out of both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import advisor
from advisor import __version__
from advisor.confirm import score_interval
from advisor.judge import objections
from advisor.landscape import Landscape
from advisor.model import architecture_key_of
from advisor.prospects import searched
from advisor.store import Store
from advisor.suggest import Recommendation
from advisor.trial import Trial

SHAPES = Path(__file__).parent / "shapes"

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
    out, wanted = Path(arguments[0]), arguments[1:] or list(CASES)
    print(
        "| case | padding | space | best | recommended | regret | tie by interval | search / exhaustive (s) | took (s) |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in wanted:
        shape, work = CASES[name]
        for padding in (0.4, 0.0):
            print(row(name, SHAPES / f"{shape}.json", {**work, "padding": padding}, out), flush=True)
    return 0


def row(name: str, shape: Path, work: dict[str, Any], out: Path) -> str:
    """Tune, measure all, and return the row."""
    stem = f"{name.replace(' ', '-')}-padding-{work['padding']:g}"
    began = time.monotonic()
    tuned, its_trials = measured(shape, out / f"{stem}-tuned.db", **work)
    took_s = time.monotonic() - began
    whole, all_trials = measured(shape, out / f"{stem}.db", exhaustive=True, blocks=0, timeout=TIMEOUT, **work)
    keep(whole, all_trials, shape, out / f"{stem}.json")
    aim = whole.objective.aim
    default = whole.default.trial if whole.default is not None else None
    usable = [t for t in searched(all_trials) if not objections(t, default, whole.objective, whole.facts)]
    best = max(usable, key=lambda trial: trial.score(aim))
    chosen = tuned.chosen.configuration if tuned.chosen is not None else None
    held = next((trial for trial in usable if trial.ran == chosen), None)
    if held is None:
        return (
            f"| {name} | {work['padding']:g} | {whole.admissible} | {best.ran} | {chosen}: not measured there | | | | |"
        )
    regret = best.score(aim) / held.score(aim) - 1
    is_tie = score_interval(held, aim)[1] >= score_interval(best, aim)[0]
    spent_s, whole_s = (sum(t.wall_s or 0.0 for t in searched(each)[1:]) for each in (its_trials, all_trials))
    return (
        f"| {name} | {work['padding']:g} | {whole.admissible} | {best.ran} | {held.ran}, {tuned.verdict} | {regret:.1%} | "
        f"{'yes' if is_tie else 'no'} | {spent_s:.0f} / {whole_s:.0f} = {spent_s / whole_s:.0%} | {took_s:.0f} |"
    )


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
