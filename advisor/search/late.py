"""What is tried late: choices that cost more to try than they differ in, on the best that was found without them.

torch.compile gains about as much on one attention as on another, and takes minutes to say so of each. What spares memory for
speed is tried where what does not has no room. All of it is admissible; what is left out of a list here is tried when nothing in
it is worth trying any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from advisor.knobs import KNOBS
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import Metric
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import depends
from advisor.search.sampler import Usable

#: On so many of the best late choices are tried, and not before so many were measured.
BEST = 3


def opened(
    admissible: Sequence[Configuration],
    trials: Sequence[Trial],
    aim: Metric,
    usable: Usable | None = None,
    costs: Mapping[Configuration, float] | None = None,
    most_bytes: float | None = None,
) -> list[Configuration]:
    """Return what is to be tried now, in its order: what has no late choice, and what differs from the BEST by those alone.

    Or by a choice beside that pays with a late one alone, and would not be among the BEST without it. Where nothing is admissible
    without late choices, all of it: --fix left nothing else. costs: what is predicted of each at the aim, less is better; without
    it nothing is known of what spares memory. most_bytes: what a peak may be, None where that is not bounded.
    """
    late = {knob.name: knob.implied for knob in KNOBS.values() if knob.late}
    early = {c for c in admissible if all(c.get(knob) == implied for knob, implied in late.items())}
    if not early:
        return list(admissible)
    # What a late choice saves of memory may be what another choice spares.
    beside = late | {knob.name: knob.implied for knob in KNOBS.values() if knob.spares}
    found = _best(early, trials, aim, usable)
    is_soon = len(found) < BEST and early - {trial.requested for trial in trials}
    best = set() if is_soon else {c.replaced(**beside) for c in found}
    admissible = _foremost(admissible, trials, costs, most_bytes) if costs else admissible
    return [c for c in admissible if c in early or not best.isdisjoint((bare := c.replaced(**beside), _plain(bare)))]


def mendable(
    admissible: Sequence[Configuration], trials: Sequence[Trial], facts: ModelFacts
) -> Sequence[Configuration]:
    """Leave out what differs by late choices alone from what reads its pads or its neighbours.

    They change how a layer is computed, not what it reads: what depends on its batch without them does so with them.
    """
    late = {knob.name: knob.implied for knob in KNOBS.values() if knob.late}
    wrong = {t.ran for t in trials if t.quality is not None and depends(t.quality, t.ran, facts)}
    return [c for c in admissible if c in wrong or c.replaced(**late) not in wrong] if wrong else admissible


def _foremost(
    admissible: Sequence[Configuration],
    trials: Sequence[Trial],
    costs: Mapping[Configuration, float],
    most_bytes: float | None,
) -> list[Configuration]:
    """Return, of what differs by choices alone that spare memory, the one predicted best that did not need too much of it."""
    spares = {knob.name for knob in KNOBS.values() if knob.spares}
    failed = {
        trial.requested
        for trial in trials
        if trial.outcome is Outcome.OUT_OF_MEMORY or (trial.peak_bytes or 0) > (most_bytes or math.inf)
    }
    first: dict[frozenset[tuple[str, str]], Configuration] = {}
    for configuration in admissible:
        rest = frozenset(item for item in configuration.items() if item[0] not in spares)
        other = first.get(rest)
        is_less = other is None or costs.get(configuration, math.inf) < costs.get(other, math.inf)
        if configuration not in failed and is_less:
            first[rest] = configuration
    kept = set(first.values())
    return [configuration for configuration in admissible if configuration in kept]


def _plain(configuration: Configuration) -> Configuration:
    """Return a configuration without the choices that pay with a late one alone."""
    known = ((KNOBS[knob], name) for knob, name in configuration.over(KNOBS))
    beside = {knob.name: knob.implied for knob, name in known if knob.choices[name].traits.pays_compiled}
    return configuration.replaced(**beside) if beside else configuration


def _best(
    early: set[Configuration], trials: Sequence[Trial], aim: Metric, usable: Usable | None
) -> list[Configuration]:
    """Return the BEST of these that were measured and may be recommended, the best first."""
    ran = [t for t in trials if t.score(aim) > 0 and t.ran in early and not t.outcome.is_failure]
    ordered = sorted(ran, key=lambda trial: -trial.score(aim))
    return list(dict.fromkeys(trial.ran for trial in ordered if usable is None or usable(trial)))[:BEST]
