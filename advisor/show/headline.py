"""What was found, in a sentence for people, and what stands against what may not be recommended."""

from __future__ import annotations

from rich.markup import escape
from rich.text import Text

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.nouns.answer import Conclusion
from advisor.nouns.measurement import LEAST_BLOCKS
from advisor.nouns.metrics import head, is_latency, seconds
from advisor.terminal import gib, in_a_line

#: How many that may not be recommended are shown.
_REJECTED = 8


def summary(recommendation: Recommendation) -> str:
    """Return, in one line without markup, what is missing of an answer, and what to do next."""
    text = " ".join(Text.from_markup(headline(recommendation)).plain.split())
    if recommendation.verdict is Conclusion.NONE_RIGHT:
        return f"{text} ({recommendation.way_out})" if recommendation.way_out else text
    best = recommendation.best
    named = f"; fastest found, unconfirmed: {in_a_line(str(best.configuration))}" if best is not None else ""
    return f"{text}{named} (to go on: {recommendation.command})"


def headline(recommendation: Recommendation) -> str:
    """Return what is found, with markup, whose speeds it is told by where these weights were not measured, and if it is stale."""
    parts = [_found(recommendation), *([recommendation.origin] if recommendation.origin else [])]
    if recommendation.stale:
        parts.append(escape(recommendation.stale_words).replace("stale", "[bold yellow]stale[/]", 1))
    return "; ".join(parts)


def _found(recommendation: Recommendation) -> str:
    chosen, aim = recommendation.chosen, recommendation.objective.aim
    if chosen is None:
        return _nothing(recommendation)
    words = f"[bold]{escape(str(chosen.configuration))}[/]"
    better = "faster" if aim.is_speed else f"better in {aim.words}"
    little = "[bold]too little was tried[/] to say that nothing is"
    ratio = _confirmed_words(chosen, recommendation)
    if recommendation.verdict is Conclusion.FASTER:
        return f"{words}: [bold green]{ratio}"
    if not chosen.is_default:
        if recommendation.verdict is Conclusion.SLOWER_BUT_RIGHT:
            return f"{words}: the best that may be recommended{f', [bold]{ratio}' if ratio else ''}"
        if ratio:
            hoped = f"[bold]what looked {better} is not confirmed[/]"
            why = hoped if recommendation.verdict is Conclusion.UNCONFIRMED else f"{little} {better}"
            return f"{words}, for now: [bold green]{ratio}; {why}"
        why = _open_words(chosen) if recommendation.default else "but little was tried"
        return f"{words}, for now: the best found that may be recommended, {why}"
    kept = {
        Conclusion.TIE: f"keep the default, {words}: what looked {better} is a [bold]tie[/]: its interval is not clear of 1",
        Conclusion.UNCONFIRMED: f"keep the default, {words}, for now: [bold]what looked {better} is not confirmed[/]",
        Conclusion.UNSEARCHED: f"keep the default, {words}, for now: {little} {better}",
        Conclusion.DEFAULT: f"keep the default, {words}: {_nothing_better(recommendation, better)}",
    }
    return kept[recommendation.verdict]


def _open_words(chosen: Candidate) -> str:
    """Say how far something was compared with a default that may not be recommended, where that leaves a doubt."""
    if chosen.comparison is None:
        return "not compared with the default yet"
    (low, high), blocks = chosen.comparison.interval, len(chosen.comparison.block_ratios)
    interval = f"95 % interval {low:.2f}–{high:.2f}, {blocks} blocks" if blocks > 1 else "one block"
    open_ = "which is not clear yet" if blocks >= LEAST_BLOCKS else f"{LEAST_BLOCKS} could confirm it"
    return f"{chosen.comparison.ratio:.2f} × the default ({interval}), {open_}"


def _nothing_better(recommendation: Recommendation, better: str) -> str:
    """Say that nothing beats the default; or that nothing else was measured, where a search for it is not worth its time."""
    if recommendation.tried <= 1 and recommendation.prospects.is_dear:
        return "[bold]to measure anything else is expected to cost more than it saves[/]"
    return f"[bold]nothing measured is {better}[/]"


def _confirmed_words(chosen: Candidate, recommendation: Recommendation) -> str:
    """Return a confirmed ratio with its interval, "" where there is none; the first of it is to be emphasised, up to [/]."""
    if chosen.comparison is None or not chosen.is_confirmed:
        return ""
    aim, (low, high) = recommendation.objective.aim, chosen.comparison.interval
    better = "" if aim.is_speed else f" in {aim.words}, where more than 1 is better"
    blocks = len(chosen.comparison.block_ratios)
    return (
        f"{chosen.comparison.ratio:.2f} × the default[/]{better} (95 % interval {low:.2f}–{high:.2f}, {blocks} blocks)"
    )


def _nothing(recommendation: Recommendation) -> str:
    """Say that nothing may be recommended: because nothing is right, or because what may be was never tried."""
    measured = [c for c in recommendation.rejected if c.trial.measurements]
    if recommendation.verdict is Conclusion.NONE_RIGHT:
        return "[bold red]nothing is right[/]: no configuration that is admissible here may be recommended"
    if not measured:
        return "[bold]not measured[/]: nothing was measured to its end"
    count, objective = len(measured), recommendation.objective
    none = (
        f"none of the {count} configurations measured meets" if count > 1 else "the one configuration measured misses"
    )
    text = f"[bold]nothing may be recommended yet[/]: {none} what is asked"
    if objective.max_memory_bytes is not None:
        least = min(measured, key=lambda c: c.trial.peak_bytes or 0)
        text += f"; --max-memory allows {gib(objective.max_memory_bytes)}, and the least peak measured is "
        text += f"{gib(least.trial.peak_bytes)} ({escape(str(least.configuration))})"
    slowest = [(m, c) for c in measured for m in c.trial.measurements if is_latency(m.metric)]
    if objective.max_latency_s is not None and slowest:
        latency, found = min(slowest, key=lambda pair: pair[0].median)
        text += f"; --max-latency allows {seconds(objective.max_latency_s)}, and the shortest {head(latency.metric)} "
        text += f"measured is {seconds(latency.median)} ({escape(str(found.configuration))})"
    return text


def against(recommendation: Recommendation) -> list[str]:
    """Return, with markup, what stands against the default, and against everything where nothing is recommended."""
    default = recommendation.default
    shown = [default] if default is not None and default.objections else []
    if recommendation.chosen is None:
        shown += [c for c in recommendation.rejected if default is None or c.configuration != default.configuration]
    lines = []
    for found in shown[:_REJECTED]:
        name = f"the default, {found.configuration}" if found.is_default else str(found.configuration)
        words = [
            f"[red]{escape(text)}[/]" if text.startswith("wrong output") else escape(text) for text in found.objections
        ]
        lines.append(f"{escape(name)}: {'; '.join(words)}")
    more = len(shown) - _REJECTED
    return [*lines, f"and {more} more (--format json has them all)"] if more > 0 else lines
