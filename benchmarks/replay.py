"""Replay the search on recorded landscapes, beside others, over many seeds; prints Markdown.

    python benchmarks/replay.py [--seeds 20] [--folder tests/landscapes]

Every strategy begins with the default, as `advisor tune` does, and measures one configuration after the other until it holds
one within 2 % of the best, and 16 in any case. A measurement is a draw, with replacement, of the recorded samples. It costs
the device seconds that were recorded for it, whole, for nothing is stopped early; the weights are loaded, at the cost that was
recorded, where the trial before had others or failed. The exhaustive seconds are those recorded, in an order that loads each
weights once. The confirmation, which is the same for all, is left out.

What a strategy holds is the best of what it measured *as it measured it*; its regret is how much better the best recorded
configuration is than that one, by all recorded samples. Wasted is a trial that failed, had a wrong output or ran as something
else. "Warm" has learned from its first 12 trials on the nearest other landscape.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median

from replay_field import DEPTHS, Field, Run, Strategy, replayed
from replay_strategies import at_random, gp, in_order, ours, tpe, warm

from advisor.measure.landscape import Landscape, read_landscapes
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.trial import Trial
from advisor.search.search import CHANCE

#: What the goal allows: this share of the exhaustive search's device seconds (the issue's "≤ 25 %").
SHARE = 0.25


def fields_of(landscapes: Mapping[str, Landscape]) -> list[Field]:
    """Return the fields, each with the nearest other one: the same architecture and device first, then the work."""
    fields = {name: Field(name, landscape) for name, landscape in landscapes.items()}
    found = []
    for name, field in fields.items():
        others = [o for other, o in fields.items() if other != name and _comparable(o.landscape, field.landscape)]
        found.append(replace(field, warm=min(others, key=partial(_distance, field), default=None)))
    return found


def _comparable(one: Landscape, other: Landscape) -> bool:
    return one.objective.aim == other.objective.aim and one.workload.kind == other.workload.kind


def _distance(field: Field, other: Field) -> tuple[bool, bool, float]:
    """Return how far another field is: another architecture, another device, another workload."""
    here, there = field.landscape, other.landscape
    away = here.workload.distance(there.workload)
    return (here.architecture_key != there.architecture_key, here.environment.key != there.environment.key, away)


def main() -> int:
    """Replay every landscape of a folder and print the tables."""
    parser = argparse.ArgumentParser(description="Replay the search on recorded landscapes.")
    parser.add_argument("--seeds", type=int, default=20, help="seeds a strategy (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "tests" / "landscapes")
    arguments = parser.parse_args()
    fields = fields_of(read_landscapes(arguments.folder))
    if not fields:
        print(f"no landscapes in {arguments.folder}: record one with `advisor tune --exhaustive`", file=sys.stderr)
        return 0
    if find_spec("scipy") is None:
        print("Optuna's GPSampler is left out: it needs scipy (pip install scipy)", file=sys.stderr)
    for field in fields:
        print(report(field, range(arguments.seeds)), flush=True)
    return 0


def report(field: Field, seeds: Sequence[int]) -> str:
    """Return a field's table, whether the goals are met, and how the rule that ends a search early did."""
    if not field.scores:
        return f"## {field.name}\n\nNothing here may be recommended: there is no best to be found.\n"
    strategies: dict[str, Strategy] = {
        "ours": ours,
        "random": at_random,
        "order of the prior": in_order,
        "Optuna's TPE": tpe,
    }
    if find_spec("scipy") is not None:
        strategies["Optuna's GPSampler"] = gp
    if field.warm is not None:
        strategies["ours, warm"] = partial(warm, learned={})
    paths = {name: [replayed(field, strategy, seed) for seed in seeds] for name, strategy in strategies.items()}
    return "\n".join(
        [*_head(field, len(seeds)), *_table(field, paths), "", *_goals(field, paths), "", _stops(field, seeds), ""]
    )


def _head(field: Field, seeds: int) -> list[str]:
    it = field.landscape
    failed = sum(trial.outcome.is_failure for trial in it.trials)
    aliases = sum(trial.ran != trial.requested and not trial.outcome.is_failure for trial in it.trials)
    best = max(field.scores.values())
    near = [c for c, score in field.scores.items() if best / score - 1 <= TIE_ZONE]
    rank = min(field.admissible.index(configuration) for configuration in near) + 1
    regret = f"{100 * (best / field.scores[it.baseline] - 1):.1f} %" if it.baseline in field.scores else "not usable"
    return [
        f"## {field.name}",
        "",
        f"{it.model}: {it.workload}; {it.environment}; aim: {it.objective.aim.words}.",
        "",
        f"{len(it.trials)} configurations, {failed} failed, {aliases} ran as something else; {it.exhaustive_s:.0f} device "
        f"seconds. Within 2 % of the best, so tied with it: {len(near)} ({'; '.join(map(str, near[:4]))}"
        f"{'; …' if len(near) > 4 else ''}); the first of them is number {rank} in the order of the prior. Regret of the "
        f"default: {regret}. {seeds} seeds." + (f" Warm from: {field.warm.name}." if field.warm else ""),
        "",
    ]


def _table(field: Field, paths: Mapping[str, Sequence[Run]]) -> list[str]:
    depths = " | ".join(f"regret after {depth}, median (worst)" for depth in DEPTHS)
    header = (
        f"| strategy | {depths} | s to within 2 %, median (95th percentile) | share of all s | within 2 % at {SHARE:.0%} "
        "of s | wasted | its s over ours, median; seeds ours was sooner – as soon – later |"
    )
    lines = [header, "|" + "---|" * (len(DEPTHS) + 6)]
    whole = field.landscape.exhaustive_s
    for name, found in paths.items():
        near = sorted(path.to_near_best_s for path in found)
        cells = [name]
        for depth in DEPTHS:
            regrets = [path.regrets[min(depth, len(path.regrets)) - 1] for path in found]
            cells.append(f"{_percent(median(regrets))} ({_percent(max(regrets))})")
        half, most = median(near), near[math.ceil(0.95 * len(near)) - 1]
        cells += [f"{half:.0f} ({most:.0f})", f"{_percent(half / whole)} ({_percent(most / whole)})"]
        cells += [_percent(fmean(s <= SHARE * whole for s in near)), _percent(fmean(path.wasted for path in found))]
        lines.append(f"| {' | '.join([*cells, _against(paths['ours'], found) if name != 'ours' else '–'])} |")
    return lines


def _against(mine: Sequence[Run], theirs: Sequence[Run]) -> str:
    """Return the median of their seconds over ours, and on how many seeds ours was there sooner, as soon (2 %), later."""
    ratios = [their.to_near_best_s / my.to_near_best_s for my, their in zip(mine, theirs, strict=True)]
    sooner, later = (sum(r > 1 + TIE_ZONE for r in ratios), sum(r < 1 / (1 + TIE_ZONE) for r in ratios))
    return f"{median(ratios):.2f}, {sooner} – {len(ratios) - sooner - later} – {later}"


def _goals(field: Field, paths: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return whether the goals are met, in words."""
    whole = field.landscape.exhaustive_s
    share = fmean(path.to_near_best_s <= SHARE * whole for path in paths["ours"])
    ratio = median(p.to_near_best_s for p in paths["random"]) / median(p.to_near_best_s for p in paths["ours"])
    tied = [
        name
        for name in paths
        if name != "ours"
        and 1 / (1 + TIE_ZONE)
        <= median(p.to_near_best_s for p in paths[name]) / median(p.to_near_best_s for p in paths["ours"])
        <= 1 + TIE_ZONE
    ]
    near = "Within 2 % of the best in ≥ 95 % of seeds at ≤ 25 % of the exhaustive seconds"
    return [
        f"* {near}: **{'met' if share >= 0.95 else 'not met'}** ({share:.0%}).",
        f"* At least 3 times fewer seconds than random, medians: **{'met' if ratio >= 3 else 'not met'}** ({ratio:.1f}).",
        f"* No difference in the median seconds (tie within 2 %): {', '.join(tied) or 'none of the others'}.",
    ]


def _stops(field: Field, seeds: Sequence[int]) -> str:
    """Say when the search would have ended by itself and why, at what share of the seconds, and how often too early."""
    ends, reasons, wrong = [], Counter[str](), 0
    for seed in seeds:
        path = replayed(field, _until_its_end, seed, least=len(field.admissible))
        ends.append((len(path.trials), path.seconds[-1] / field.landscape.exhaustive_s))
        wrong += path.regrets[-1] > TIE_ZONE
        if (end := field.known(path.trials).ending()) is not None:
            reasons[end.reason] += 1
    why = ", ".join(f"{reason} ({count} seeds)" for reason, count in reasons.most_common())
    return (
        f"Ending by itself (chance of better by 2 % below {CHANCE:.0%}): after {median(n for n, _ in ends):.0f} trials and "
        f"{median(s for _, s in ends):.0%} of the seconds, medians; at most {max(n for n, _ in ends)} of "
        f"{len(field.admissible)}, because {why}; more than 2 % from the best then: {wrong} of {len(ends)} seeds."
    )


def _until_its_end(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    known = field.known(trials)
    return None if known.ending() else known.ask(seed)


def _percent(share: float) -> str:
    return "–" if math.isinf(share) else f"{100 * share:.3g} %"


if __name__ == "__main__":
    sys.exit(main())
