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
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from advisor.measure.landscape import Landscape, read_landscapes
from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.objections import objections
from advisor.search.cost import costs_of
from advisor.search.search import CHANCE, Knowledge, surprises

#: After how many trials regret is read.
DEPTHS = (4, 8, 16)

#: What the goal allows: this share of the exhaustive search's device seconds (the issue's "≤ 25 %").
SHARE = 0.25

#: How many trials of the neighbour a warm start knows, about what a tune of ten minutes leaves behind.
WARM_TRIALS = 12

#: TPE as the search was before it had a model of its own: the likeliest four first, then up to so many proposals.
TPE_STARTUP, TPE_ASKS = 4, 64

Strategy = Callable[["Field", Sequence[Trial], int], Configuration | None]


@dataclass(frozen=True)
class Field:
    """A landscape with what every strategy is told of it: what arithmetic predicts, and the order that follows from it."""

    name: str
    landscape: Landscape
    warm: Field | None = None

    @cached_property
    def costs(self) -> dict[Configuration, float]:
        """Predicted cost of each configuration, less is better."""
        it = self.landscape
        return costs_of(it.by_configuration, it.facts, it.workload, it.environment, it.objective.aim)

    @cached_property
    def admissible(self) -> list[Configuration]:
        """All recorded configurations, likeliest first."""
        return sorted(self.costs, key=lambda configuration: self.costs[configuration])

    @cached_property
    def scores(self) -> dict[Configuration, float]:
        """What each recorded configuration that may be recommended is worth, by all its samples; more is better."""
        aim = self.landscape.objective.aim
        return {t.requested: t.score(aim) for t in self.landscape.trials if self.usable(t) and t.score(aim) > 0}

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        return not objections(trial, None, self.landscape.objective, self.landscape.facts)

    def known(self, trials: Sequence[Trial], warm: Mapping[Configuration, float] | None = None) -> Knowledge:
        """Return all that advisor's search goes by. warm: what it learned elsewhere."""
        return Knowledge(self.admissible, trials, self.landscape.objective.aim, self.costs, warm or {}, self.usable)

    def regret(self, trials: Sequence[Trial]) -> float:
        """How much better the best recorded configuration is than the best of these: 0.1 is 10 %; infinite without one."""
        held = [trial for trial in trials if self.usable(trial)]
        if not held:
            return math.inf
        best = max(held, key=lambda trial: trial.score(self.landscape.objective.aim))
        return max(self.scores.values()) / self.scores[best.requested] - 1


@dataclass(frozen=True)
class Run:
    """What one seed of a strategy did on a field: trials in order, regret after each, device seconds until each was over."""

    trials: tuple[Trial, ...]
    regrets: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def to_near_best_s(self) -> float:
        """Device seconds until it held a configuration within the tie zone of the best."""
        near = (s for s, regret in zip(self.seconds, self.regrets, strict=True) if regret <= TIE_ZONE)
        return next(near, math.inf)

    @property
    def wasted(self) -> float:
        """Share of the first trials that nothing came of."""
        first = self.trials[: DEPTHS[-1]]
        return fmean(t.outcome.is_failure or t.ran != t.requested for t in first)


def replayed(field: Field, strategy: Strategy, seed: int, least: int = DEPTHS[-1]) -> Run:
    """Run a strategy until it holds what is within the tie zone of the best, and `least` trials in any case."""
    trials: list[Trial] = []
    regrets: list[float] = []
    seconds: list[float] = []
    configuration: Configuration | None = field.landscape.baseline
    while configuration is not None:
        spent_s = field.landscape.seconds(configuration, trials[-1] if trials else None)
        trials.append(replace(field.landscape.drawn(configuration, str(seed)), number=len(trials), wall_s=spent_s))
        regrets.append(field.regret(trials))
        seconds.append(sum(seconds[-1:]) + spent_s)
        if len(trials) >= least and min(regrets) <= TIE_ZONE:
            break
        configuration = strategy(field, trials, seed)
    return Run(tuple(trials), tuple(regrets), tuple(seconds))


def ours(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Ask advisor's search, cold."""
    return field.known(trials).ask(seed)


def warm(
    field: Field, trials: Sequence[Trial], seed: int, learned: dict[int, dict[Configuration, float]]
) -> Configuration | None:
    """Ask advisor's search with what it learned on the neighbour; learned: by seed, filled in when it is first needed."""
    if seed not in learned:
        assert field.warm is not None
        known = replayed(field.warm, ours, seed, WARM_TRIALS).trials[:WARM_TRIALS]
        learned[seed] = surprises(known, field.landscape.objective.aim, field.warm.costs)
    return field.known(trials, learned[seed]).ask(seed)


def in_order(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Take the likeliest that was not tried."""
    seen = {trial.requested for trial in trials}
    return next((configuration for configuration in field.admissible if configuration not in seen), None)


def at_random(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Take any that was not tried, all alike."""
    seen = {trial.requested for trial in trials}
    order = random.Random(seed).sample(field.admissible, len(field.admissible))
    return next((configuration for configuration in order if configuration not in seen), None)


def tpe(field: Field, trials: Sequence[Trial], seed: int) -> Configuration | None:
    """Ask Optuna's TPE, as the search did before: the likeliest first, then proposals until one was not tried yet."""
    first = in_order(field, trials, seed)
    if first is None or len(trials) < TPE_STARTUP:
        return first
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    knobs = stated([*field.admissible, *(trial.requested for trial in trials)])
    space = {knob: CategoricalDistribution(sorted({c[knob] for c in field.admissible})) for knob in knobs}
    sampler = TPESampler(n_startup_trials=TPE_STARTUP, seed=seed + len(trials), multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_as_optunas(trial, space, field) for trial in trials])
    fresh = set(field.admissible) - {trial.requested for trial in trials}
    for _ in range(TPE_ASKS):
        proposal = study.ask(dict(space))
        configuration = Configuration.of({knob: str(choice) for knob, choice in proposal.params.items()})
        if configuration in fresh:
            return configuration
        study.tell(proposal, state=TrialState.FAIL)
    return first


def _as_optunas(trial: Trial, space: Mapping[str, CategoricalDistribution], field: Field) -> FrozenTrial:
    score, parameters = trial.score(field.landscape.objective.aim), dict(trial.requested.over(space))
    if score <= 0 or trial.outcome not in (Outcome.OK, Outcome.PRUNED):
        return create_trial(state=TrialState.FAIL, params=parameters, distributions=dict(space))
    return create_trial(params=parameters, distributions=dict(space), value=-math.log(score))


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
