"""The one order of candidates: for what is chosen, the runners-up, who ties, what Pareto shows and what `--why-not` says.

Confirmed before not confirmed, and among the confirmed: faster than the default, no different, slower. Then by confirmed
ratio; those within the tie zone of the best ratio by the lower end of their intervals, as it is printed; then the simpler.
What was not confirmed follows by its score in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from advisor.knobs import KNOBS, tier_of
from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import TIE_ZONE, Comparison
from advisor.nouns.metrics import Metric
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Quality, Trial
from advisor.quality.judge import is_judged


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured, with its evidence.

    search_ratio: its score over the default's in the search phase (one process each: a hint); comparison: the confirmed one.
    Ratios are above 1 where it is better at what the objective asks for, whichever way that is counted. objections: all that
    stands against recommending it; wrong: what of that is wrong with its output; is_default: it is what all are compared with;
    changes: how many of its choices are not the default's; metrics: of its kind of work. same_weights: whether it was measured
    with the weights that are asked about: of others its speed is told, and not its quality. tier: what its choices declare;
    tier_reached: the worse of that and what its figures reach, None where they reach none or nobody knows.
    """

    trial: Trial
    search_ratio: float | None
    comparison: Comparison | None
    tier: Tier = Tier.EXACT
    is_default: bool = False
    changes: int = 0
    objections: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    same_weights: bool = True
    tier_reached: Tier | None = None

    @property
    def quality(self) -> Quality | None:
        """The figures of its output with the weights that are asked about, None where that was not measured."""
        return self.trial.quality if self.same_weights else None

    @property
    def configuration(self) -> Configuration:
        """What ran."""
        return self.trial.ran

    @property
    def is_confirmed(self) -> bool:
        """Whether it was compared in enough blocks to say anything; the default is what it is compared with."""
        return self.is_default or (self.comparison is not None and not self.comparison.is_open)

    @property
    def verdict(self) -> str | None:
        """Return "faster", "slower" or "tie" as confirmed, None where it was not."""
        return self.comparison.verdict if self.comparison is not None and self.is_confirmed else None

    @property
    def ratio(self) -> float | None:
        """The confirmed ratio over the default, 1 for the default itself, None where it was not confirmed."""
        if self.is_default:
            return 1.0
        return self.comparison.ratio if self.comparison is not None and self.is_confirmed else None

    @property
    def low(self) -> float:
        """The lower end of the ratio's interval; 1 for the default."""
        return self.comparison.interval[0] if self.comparison is not None else 1.0

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The candidate as JSON values; what is said of its quality is said by today's rules.

        Made once: one that is recommended, or the default, stands in several lists of an answer. Not to be changed.
        """
        blocks = len(self.comparison.block_ratios) if self.comparison else 0
        quality = self.quality
        judged = quality is not None and is_judged(quality, self.tier)
        return {
            "configuration": self.configuration.spelled,
            "label": str(self.configuration),
            "trial": self.trial.number,
            "objections": list(self.objections),
            "tier": str(self.tier),
            "tier_reached": str(self.tier_reached) if self.tier_reached is not None else None,
            "search_ratio": self.search_ratio,
            "ratio": self.comparison.ratio if self.comparison else None,
            "ratio_interval": list(self.comparison.interval) if self.comparison and blocks > 1 else None,
            "blocks": blocks,
            "verdict": self.comparison.verdict if self.comparison else None,
            **self._figures,
            "peak_bytes": self.trial.peak_bytes,
            "weight_bytes": self.trial.weight_bytes,
            "load_s": self.trial.load_s,
            "first_call_s": self.trial.first_call_s,
            "busy": self.trial.busy,
            "quality": {**quality.payload, "failures": list(self.wrong), "judged": judged} if quality else None,
        }

    @property
    def _figures(self) -> dict[str, Any]:
        """The medians of the metrics of its kind of work, and the interval of its speed."""
        found: dict[str, Any] = {}
        for metric in self.metrics:
            measured = self.trial.measurement(metric.metric)
            found[metric.metric] = measured.median if measured else None
            if metric.is_speed:
                found[f"{metric.metric}_interval"] = list(measured.interval) if measured else None
        return found


def candidate(
    trial: Trial,
    default: Trial | None,
    comparisons: Sequence[Comparison],
    objective: Objective,
    facts: ModelFacts,
    objections: Sequence[str],
) -> Candidate:
    """Return a measured trial with what it is ranked by. default: the trial of the default, None where it was not measured."""
    ratio, found, changes, aim = None, None, 0, objective.aim
    if default is not None:
        ratio = trial.times(default, aim) or None
        keys = (trial.ran.key, default.ran.key)
        found = next((c for c in comparisons if (c.candidate, c.baseline) == keys), None)
        knobs = stated([trial.ran, default.ran])
        changes = sum(trial.ran.get(knob) != default.ran.get(knob) for knob in knobs)
    tier = tier_of(trial.ran.items(), facts)
    is_default = default is not None and trial.ran == default.ran
    return Candidate(trial, ratio, found, tier, is_default, changes, tuple(objections))


def ranked(candidates: Sequence[Candidate], aim: Metric) -> list[Candidate]:
    """Return candidates in the one order, the best first."""
    ordered: list[Candidate] = []
    for verdicts in (("faster",), ("tie", None), ("slower",)):
        ordered += _by_ratio([c for c in candidates if c.is_confirmed and c.verdict in verdicts])
    hoped = [c for c in candidates if not c.is_confirmed]
    return ordered + sorted(hoped, key=lambda c: (-_hope(c, aim), *_simplicity(c)))


def _hope(found: Candidate, aim: Metric) -> float:
    """Return the score of what was not confirmed: no more than blocks say of it, where there were some."""
    score = found.trial.score(aim)
    if found.comparison is None or not found.search_ratio:
        return score
    return score * min(1.0, found.comparison.ratio / found.search_ratio)


def _by_ratio(confirmed: Sequence[Candidate]) -> list[Candidate]:
    """Order by ratio, and those within the tie zone of the best that is left by their lower end, then by simplicity."""
    left = sorted(confirmed, key=lambda c: -(c.ratio or 0.0))
    ordered: list[Candidate] = []
    while left:
        alike = [c for c in left if is_tied(left[0], c)]
        ordered += sorted(alike, key=lambda c: (-round(c.low, 2), *_simplicity(c), -(c.ratio or 0.0)))
        left = left[len(alike) :]
    return ordered


def _simplicity(found: Candidate) -> tuple[int, int, tuple[tuple[str, str], ...]]:
    """Fewer choices that are not the default's come first, then exact before lossy, then one order for all that is left."""
    knobs = dict.fromkeys([*KNOBS, *found.configuration])
    return found.changes, found.tier.rank, found.configuration.over(knobs)


def is_tied(one: Candidate, other: Candidate) -> bool:
    """Whether two are within the tie zone: by their confirmed ratios, or else by their ratios in the search."""
    both = [c.ratio for c in (one, other)]
    ratios = [ratio for ratio in both if ratio] if all(both) else [c.search_ratio or 0.0 for c in (one, other)]
    return min(ratios) > 0 and max(ratios) / min(ratios) <= 1 + TIE_ZONE


def is_beaten(found: Candidate, chosen: Candidate) -> bool:
    """Whether the blocks of what was not confirmed to its end say that it is not as good as what is recommended."""
    mine, best = found.comparison, chosen.comparison
    return not found.is_confirmed and mine is not None and best is not None and mine.is_beaten_by(best)


def why_behind(found: Candidate, chosen: Candidate) -> str:
    """Return, in words, why a candidate comes after what is recommended, by the one order."""
    if found.is_confirmed and not chosen.is_confirmed:
        return "what is recommended is all that may be"
    if not found.is_confirmed:
        return _why_unconfirmed(found, chosen)
    if found.verdict not in ("faster", None) and chosen.verdict == "faster":
        return f"it is not confirmed to be faster than the default ({found.verdict})"
    if not is_tied(found, chosen):
        return (
            "its confirmed ratio is lower"
            if (found.ratio or 0) < (chosen.ratio or 0)
            else "its interval is not clear of 1"
        )
    if round(found.low, 2) != round(chosen.low, 2):
        return "the two tie, and the lower end of its interval is lower"
    return "the two tie, and what is recommended is simpler"


def _why_unconfirmed(found: Candidate, chosen: Candidate) -> str:
    if is_beaten(found, chosen):
        return "its interval ends below what is recommended: more blocks were not run"
    return "it was not confirmed" if found.comparison is None else "too few blocks confirm it"


def pareto(candidates: Sequence[Candidate], aim: Metric, default: Trial | None, fast: Metric) -> list[Candidate]:
    """Return those that no other is at least as good as in speed, peak memory and quality tier, and better in one.

    Speed is the confirmed one where that was asked for and confirmed. candidates: in the one order, which decides among
    equals. fast: the metric that is speed. Fastest first.
    """

    def speed(found: Candidate) -> float:
        if aim == fast and found.ratio and default is not None:
            return found.ratio * (default.value(fast.metric) or 0.0)
        return found.trial.value(fast.metric) or 0.0

    def costs(found: Candidate) -> tuple[float, float, float]:
        return (-speed(found), found.trial.peak_bytes or 0, found.tier.rank)

    def beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1] and one[2] <= other[2]

    cost = [costs(c) for c in candidates]
    found = [c for c, own in zip(candidates, cost, strict=True) if not any(beats(other, own) for other in cost)]
    return sorted(found, key=lambda c: -speed(c))
