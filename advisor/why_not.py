"""Why a choice is not what is recommended: rules that refuse it, trials that failed, its figures, and what nobody tried."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.configuration import Configuration
from advisor.judge import is_judged
from advisor.knobs import Reason, find_choice
from advisor.prospects import prospects_of, space_of
from advisor.ranking import Candidate, why_behind
from advisor.suggest import Recommendation
from advisor.trial import Outcome, Trial

#: How many trials and refusals of one choice are told one by one.
MOST_LINES = 12


def why_not(recommendation: Recommendation, trials: Sequence[Trial], name: str) -> list[str]:
    """Return, in words, why a choice is not what is recommended. Raises ValueError for the name of no choice."""
    choice = find_choice(name)
    if choice is None:
        raise ValueError(f"there is no choice {name!r}")
    if recommendation.chosen is not None and recommendation.chosen.configuration.get(choice.knob) == name:
        return [f"{name} is recommended{_how_sure(recommendation)}"]
    if choice.knob not in _knobs(recommendation, trials):
        return [f"{choice.knob} is no knob of this workload: --batch auto makes it one"]
    subject = f"{choice.knob}={name}"
    refusals = [_refusal(r) for r in _fitting(recommendation, subject)]
    tried = [
        _told(trial, recommendation) for trial in trials
        if trial.phase == "search" and name in (trial.requested.get(choice.knob), trial.ran.get(choice.knob))
    ]  # fmt: skip
    untried = _untried(recommendation, trials, choice.knob, name)
    found = [*_first(refusals), *_first(tried), *untried]
    return found or [f"{subject}: no configuration with it is admissible here"]


def _how_sure(recommendation: Recommendation) -> str:
    return {3: f" for now: {recommendation.verdict}"}.get(recommendation.verdict.exit_status, "")


def _knobs(recommendation: Recommendation, trials: Sequence[Trial]) -> set[str]:
    known: list[Configuration] = [trial.requested for trial in trials[:1]]
    known += [recommendation.chosen.configuration] if recommendation.chosen is not None else []
    return {knob for configuration in known for knob in configuration}


def _fitting(recommendation: Recommendation, subject: str) -> list[Reason]:
    """Return the refusals of a choice; not those of a narrower tier than the one that is asked for now."""
    wider = recommendation.objective.quality.rank > recommendation.study.objective.quality.rank
    return [
        r for r in recommendation.refusals
        if subject in f"{r.subject} {r.about}".split() and not (wider and r.rule == "T0")
    ]  # fmt: skip


def _refusal(reason: Reason) -> str:
    about, remedy = f" with {reason.about}" if reason.about else "", f" → {reason.remedy}" if reason.remedy else ""
    return f"{reason.subject}{about}: rule {reason.rule}: {reason.text}{remedy}"


def _first(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return list(lines) if left <= 0 else [*lines[:MOST_LINES], f"and {left} more"]


def _untried(recommendation: Recommendation, trials: Sequence[Trial], knob: str, name: str) -> list[str]:
    """Say how many admissible configurations with a choice nobody tried, which of them promises most, and what tries them."""
    space = space_of(recommendation.study, recommendation.objective)
    if space is None:
        return []
    default = recommendation.default.trial if recommendation.default is not None else None
    numbers = {c.trial.number for c in recommendation.runners_up}
    numbers |= {recommendation.chosen.trial.number} if recommendation.chosen is not None else set()
    left = prospects_of(
        space, trials, recommendation.objective, lambda trial: trial.number in numbers, default, having=(knob, name)
    )
    if not left.left:
        return []
    best = left.promising[0]
    predicted = f", predicted {best.ratio:.2f} × the default" if best.ratio is not None else ""
    cost = f", about {best.seconds:.0f} s" if best.seconds is not None else ""
    many = (
        "1 admissible configuration with it was"
        if left.left == 1
        else f"{left.left} admissible configurations with it were"
    )
    text = f"{knob}={name}: {many} never tried; first of them {best.configuration}{predicted}{cost}"
    return [f"{text}. To go on: {recommendation.command}"]


def _told(trial: Trial, recommendation: Recommendation) -> str:
    """Say what came of a trial; nothing that contradicts the one order."""
    head = f"trial {trial.number}, {trial.requested}:"
    if trial.outcome is Outcome.RUNNING:
        return f"{head} it is running, or was interrupted"
    if not trial.measurements:
        return f"{head} {trial.outcome}: {trial.reason}" if trial.reason else f"{head} {trial.outcome}"
    measured = (*recommendation.runners_up, *recommendation.rejected)
    found = next((c for c in measured if c.configuration == trial.ran), None)
    parts = [] if trial.ran == trial.requested else [f"{trial.ran} ran"]
    if trial.outcome is Outcome.PRUNED:
        return f"{head} {'; '.join([*parts, trial.reason or 'stopped early'])}"
    if found is None:  # it ran as what is recommended
        return f"{head} {'; '.join([*parts, 'which is recommended'])}"
    return f"{head} {'; '.join([*parts, *_figures(found, recommendation)])}"


def _figures(found: Candidate, recommendation: Recommendation) -> list[str]:
    """Say what a candidate's figures are, and why it comes after what is recommended."""
    chosen, parts = recommendation.chosen, [_ratio_words(found, recommendation)]
    quality = found.trial.quality
    if quality is not None and quality.kl is not None:
        parts.append(f"KL {quality.kl:.1e}" + ("" if is_judged(quality, found.tier) else ", not judged"))
    if chosen is not None and found.trial.weight_bytes and chosen.trial.weight_bytes:
        parts.append(f"weights {(found.trial.weight_bytes - chosen.trial.weight_bytes) / 2**30:+.2f} GiB")
    if found.objections:
        return [*(part for part in parts if part), *found.objections]
    if chosen is not None:
        parts.append(f"{why_behind(found, chosen)}{_recommended_words(found, chosen)}")
    return [part for part in parts if part]


def _ratio_words(found: Candidate, recommendation: Recommendation) -> str:
    aim = recommendation.objective.aim
    over = "the default" if aim.metric == "tokens_per_s" else f"the default in {aim.words}"
    if found.is_default:
        return "it is the default"
    if found.comparison is None:
        return f"≈{found.search_ratio:.2f} × {over} in the search" if found.search_ratio else ""
    (low, high), blocks = found.comparison.interval, len(found.comparison.block_ratios)
    interval = f" ({low:.2f}–{high:.2f})" if blocks > 1 else ""
    how = "confirmed" if found.is_confirmed else f"in {blocks} block{'s' * (blocks > 1)}"
    verdict = f": {found.verdict}" if found.verdict else ""
    return f"{how} {found.comparison.ratio:.2f} × {over}{interval}{verdict}"


def _recommended_words(found: Candidate, chosen: Candidate) -> str:
    if not (found.is_confirmed and chosen.comparison is not None and chosen.is_confirmed):
        return ""
    low, high = chosen.comparison.interval
    return f" (what is recommended: {chosen.comparison.ratio:.2f}, {low:.2f}–{high:.2f})"
