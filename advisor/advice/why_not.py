"""Why what was asked about is not what is recommended: rules that refuse it, failed trials, its figures, what nobody tried."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from advisor.advice.labels import choices_in
from advisor.advice.ranking import Candidate, why_behind
from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import KNOBS, Reason, Verdict, always
from advisor.nouns.configuration import Configuration
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import is_judged
from advisor.search.prospects import prospects_of, space_of
from advisor.terminal import gib

#: How many trials and refusals of one choice are told one by one.
MOST_LINES = 12


def spelled(asked: Mapping[str, str]) -> str:
    """Return what is asked about as a configuration is printed: a whole one without what is implied."""
    is_whole = all(knob.name in asked for knob in KNOBS.values() if knob.applies is always)
    return str(Configuration.of(asked)) if is_whole else " · ".join(asked[knob] for knob in KNOBS if knob in asked)


def why_not(recommendation: Recommendation, trials: Sequence[Trial], text: str) -> list[str]:
    """Return, in words, why what has a choice, or all of several, is not what is recommended. Raises BadInput: see choices_in."""
    asked = choices_in(text)
    if recommendation.chosen is not None and _has(recommendation.chosen.configuration, asked):
        return [f"{spelled(asked)} is recommended{_how_sure(recommendation)}"]
    if missing := [knob for knob in sorted(asked) if not _is_turned(knob, recommendation, trials)]:
        hint = "--batch auto makes it one" if missing[0] == "batch" else "leave it out"
        raise BadInput(f"--why-not: {missing[0]} is no knob of this workload", hint)
    refusals = _fitting(recommendation, asked)
    tried = [
        _told(trial, recommendation)
        for trial in trials
        if trial.phase == "search" and (_has(trial.requested, asked) or _has(trial.ran, asked))
    ]
    untried = _untried(recommendation, trials, asked)
    # What is admissible somewhere, or ran, is refused, without a word of with what, by what else changes the work: how many share
    # a call.
    partly = [r for r in refusals if not r.about and (untried or (tried and r.verdict is Verdict.ALIAS))]
    told = [_refusal(reason) for reason in refusals if reason not in partly]
    some = [f"in some of its combinations {_refusal(reason)}" for reason in partly]
    found = [*_first(told), *_first(tried), *_first(some), *(untried or ())]
    if tried or untried or (found and len(asked) == 1):
        return found
    last = f"no configuration with {_it(asked)} is admissible here"
    if untried is None:
        last = f"no configuration with {_it(asked)} was tried, and this version can't say what is admissible for this model"
    return [*found, f"{_subject(asked)}: {last}"]


def _has(configuration: Configuration, asked: Mapping[str, str]) -> bool:
    return all(configuration.get(knob) == name for knob, name in asked.items())


def _subject(asked: Mapping[str, str]) -> str:
    """Return what is asked about as refusals spell it."""
    return " ".join(f"{knob}={asked[knob]}" for knob in KNOBS if knob in asked)


def _it(asked: Mapping[str, str]) -> str:
    return "it" if len(asked) == 1 else "all of these"


def _how_sure(recommendation: Recommendation) -> str:
    return {3: f" for now: {recommendation.verdict}"}.get(recommendation.verdict.exit_status, "")


def _is_turned(knob: str, recommendation: Recommendation, trials: Sequence[Trial]) -> bool:
    """Whether the configurations of a workload have a choice of a knob."""
    known: list[Configuration] = [trial.requested for trial in trials[:1]]
    known += [recommendation.chosen.configuration] if recommendation.chosen is not None else []
    return any(knob in configuration for configuration in known)


def _fitting(recommendation: Recommendation, asked: Mapping[str, str]) -> list[Reason]:
    """Return the refusals that hold for what has all of these choices, those that need no other choice first."""
    wanted, known = set(_subject(asked).split()), []
    for reason in recommendation.refusals:
        words = set(f"{reason.subject} {reason.about}".split())
        clashes = any(word.partition("=")[0] in asked for word in words - wanted)
        if words & wanted and not clashes:
            known.append((len(words - wanted), reason))
    return [reason for _, reason in sorted(known, key=lambda pair: bool(pair[0]))]


def _refusal(reason: Reason) -> str:
    about, remedy = f" with {reason.about}" if reason.about else "", f" → {reason.remedy}" if reason.remedy else ""
    return f"{reason.subject}{about}: rule {reason.rule}: {reason.text}{remedy}"


def _first(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return list(lines) if left <= 0 else [*lines[:MOST_LINES], f"and {left} more"]


def _untried(recommendation: Recommendation, trials: Sequence[Trial], asked: Mapping[str, str]) -> list[str] | None:
    """Say how many admissible configurations with these choices nobody tried, the most promising of them, and what tries them.

    None where it is not known what is admissible.
    """
    drawn = recommendation.source.has_random_weights
    space = space_of(recommendation.study, recommendation.objective, drawn=drawn)
    if space is None:
        return None
    default = recommendation.default.trial if recommendation.default is not None else None
    numbers = {c.trial.number for c in recommendation.runners_up}
    numbers |= {recommendation.chosen.trial.number} if recommendation.chosen is not None else set()
    left = prospects_of(
        space, trials, recommendation.objective, lambda trial: trial.number in numbers, default, having=asked
    )
    if not left.left:
        return []
    best = left.promising[0]
    predicted = f", predicted {best.ratio:.2f} × the default" if best.ratio is not None else ""
    cost = f", about {best.seconds:.0f} s" if best.seconds is not None else ""
    many = (
        f"1 admissible configuration with {_it(asked)} was"
        if left.left == 1
        else f"{left.left} admissible configurations with {_it(asked)} were"
    )
    text = f"{_subject(asked)}: {many} never tried; first of them {best.configuration}{predicted}{cost}"
    if recommendation.study.state != "done":
        return [text, f"to go on: {recommendation.trying}"]
    return [text, f"to try it: {_narrowed(recommendation, asked, best.configuration if left.left == 1 else None)}"]


def _narrowed(recommendation: Recommendation, asked: Mapping[str, str], one: Configuration | None) -> str:
    """Return the command line of a study of its own, of what is asked about alone. one: the only one that is left of that."""
    command = _SPENT.sub("", recommendation.trying)
    if one is not None:
        return f"{_ONLY.sub('', command)} --only {shlex.quote(str(one))}"
    for knob, name in asked.items():
        command = re.sub(rf" --only {knob}=\S+", "", command) + f" --only {knob}={name}"
    return command


#: The flags of a command line that say how much another study may spend, and what it leaves of each knob.
_SPENT = re.compile(r" --exhaustive| --(budget|payback|trials|blocks) \S+")
_ONLY = re.compile(r" --only \S+=\S+")


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
    quality = found.quality
    if quality is not None and quality.kl is not None:
        parts.append(f"KL {quality.kl:.1e}" + ("" if is_judged(quality, found.tier) else ", not judged"))
    if chosen is not None and found.trial.weight_bytes and chosen.trial.weight_bytes:
        more = found.trial.weight_bytes - chosen.trial.weight_bytes
        parts.append(f"weights {gib(abs(more))} {'larger' if more > 0 else 'smaller'}" if more else "")
    if found.objections:
        return [*(part for part in parts if part), *found.objections]
    if chosen is not None:
        parts.append(f"{why_behind(found, chosen)}{_recommended_words(found, chosen)}")
    return [part for part in parts if part]


def _ratio_words(found: Candidate, recommendation: Recommendation) -> str:
    aim = recommendation.objective.aim
    over = "the default" if aim.is_speed else f"the default in {aim.words}"
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
