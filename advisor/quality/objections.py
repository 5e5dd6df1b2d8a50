"""Why a trial may not be recommended under an objective: the only place that says it, whenever figures are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from advisor.knobs import HAVE_PLUGIN, advised, tier_of, unknown, unproven_in
from advisor.nouns.metrics import head, is_latency
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Limits, Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import is_judged, lossy_failures, tier_reached, wrong
from advisor.quality.limits import LIMITS
from advisor.terminal import gib


def objections(
    trial: Trial,
    default: Trial | None,
    objective: Objective,
    facts: ModelFacts,
    *,
    same_weights: bool = True,
    limits: Mapping[Tier, Limits] = LIMITS,
    wrong_of: Callable[[Trial], Sequence[str]] | None = None,
) -> list[str]:
    """Return, in words, everything against recommending a search trial under an objective; nothing where it may be.

    default: the trial of the model's default on the same work, None where it could not be run: what it does wrong itself is
    doubled by nobody. same_weights: False for a fine-tune of what was measured: its timings are shared, the price of a
    lossy choice is not, and what is wrong is said to be of other weights. limits: of the lossy tiers, for this work
    (:func:`advisor.quality.limits.limits_of`). wrong_of: says what is wrong with an output, for who asks that of it too; None:
    :func:`advisor.quality.judge.wrong` does.
    """
    if trial.outcome not in (Outcome.OK, Outcome.WRONG_OUTPUT):
        return [f"{trial.outcome}: {trial.reason}" if trial.reason else str(trial.outcome)]
    if unproven := unproven_in(trial.ran):
        return [f"it is unproven what ran: {trial.reason}" if trial.reason else text for text in unproven[:1]]
    if missing := unknown(trial.ran):
        return [f"what ran is not known here: {text}; {HAVE_PLUGIN}" for text in missing]
    found = []
    if not advised(trial.ran):
        found.append(f"what ran, {trial.ran}, is no configuration that is ever recommended")
    elif not (objective.leaves(trial.ran) or (default is not None and trial.ran == default.ran)):
        found.append(f"what ran, {trial.ran}, is outside --only")
    of_others = "" if same_weights else " with other weights"
    found += [
        f"wrong output{of_others}: {text}" for text in (wrong_of(trial) if wrong_of else wrong(trial, default, facts))
    ]
    if not found:
        found += _beyond_tier(trial, objective, facts, limits, same_weights=same_weights)
    return found + _beyond_bounds(trial, objective)


def _beyond_bounds(trial: Trial, objective: Objective) -> list[str]:
    """Say what of an objective's metric and bounds a trial does not meet."""
    found, limit, peak = [], objective.max_memory_bytes, trial.peak_bytes
    latency, most_s = next((m for m in trial.measurements if is_latency(m.metric)), None), objective.max_latency_s
    if not trial.measurements:
        found.append("it was not timed")
    elif not trial.value(objective.metric):  # energy, for one, is not seen on every GPU
        found.append(f"its {objective.aim.words} was not measured")
    if most_s is not None and trial.measurements and (latency is None or latency.median > most_s):
        what, took = (
            ("latency", "not measured")
            if latency is None
            else (head(latency.metric), f"{latency.median * 1000:.1f} ms")
        )
        found.append(f"its {what} ({took}) is above the {most_s * 1000:g} ms allowed")
    if limit is not None and trial.measurements and peak is None:
        found.append("its peak of memory was not seen")
    if limit is not None and peak is not None and peak > limit:
        found.append(f"its peak of {gib(peak)} is {gib(peak - limit)} above the {gib(limit)} allowed")
    return found


def _beyond_tier(
    trial: Trial, objective: Objective, facts: ModelFacts, limits: Mapping[Tier, Limits], *, same_weights: bool
) -> list[str]:
    """Say why a trial whose output is not wrong is further from the checkpoint than was asked for, or that nobody knows."""
    declared = tier_of(trial.ran.items(), facts)
    if declared.rank > objective.quality.rank:
        return [f"its quality tier is {declared}, and {objective.quality} was asked for"]
    if trial.quality is None or not is_judged(trial.quality, declared) or not (same_weights or declared is Tier.EXACT):
        return [] if objective.allow_unjudged else [unjudged_words(trial.quality, declared)]
    tier = tier_reached(trial.quality, trial.ran, facts, limits)
    if tier is None or tier.rank > objective.quality.rank:
        broken = "; ".join(lossy_failures(trial.quality, limits[objective.quality]))
        what = "no quality tier" if tier is None else f"the quality tier {tier}"
        return [f"it reaches {what}, and {objective.quality} was asked for: {broken}"]
    return []


def unjudged_words(quality: Quality | None, declared: Tier) -> str:
    """Say why nobody knows whether something is right: it is of this tier, and `is_judged` says no."""
    if quality is not None and quality.lacks_layout:
        return f"its layout was {quality.layout_words}, and --allow-unjudged is not set"
    if quality is not None and not quality.is_against_fp32:
        return f"its quality is not judged: {quality.reference or 'there is no reference in fp32'}"
    if quality is not None and quality.course:
        return f"its training was {quality.course}, and --allow-unjudged is not set"
    why = "these weights" if declared is not Tier.EXACT else "its output"
    return f"its quality with {why} is not judged, and --allow-unjudged is not set"
