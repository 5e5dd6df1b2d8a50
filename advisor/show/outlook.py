"""What is not sure of an answer yet, for people: what was found unconfirmed, what was never tried, and what to do next."""

from __future__ import annotations

from rich.markup import escape

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.nouns.answer import Conclusion, Prospect
from advisor.nouns.measurement import LEAST_BLOCKS, TIE_ZONE
from advisor.search.prospects import needed_bytes
from advisor.terminal import gib, percent, span

#: How many that were never tried are shown.
_PROMISING = 3


def outlook(recommendation: Recommendation) -> tuple[list[str], list[str]]:
    """Return, with markup, what was found but is not sure and what was never tried; and the commands to go on with, in lines."""
    lines, best, left = [], recommendation.best, recommendation.prospects
    if best is not None:
        blocks = len(best.comparison.block_ratios) if best.comparison else 0
        counted = f"{blocks} block{'s' * (blocks > 1)}"
        few = f"; {counted} can't confirm it, {LEAST_BLOCKS} could" if blocks else ""
        few = f"; after {counted} it is still open" if blocks >= LEAST_BLOCKS else few
        lines.append(
            f"fastest found, unconfirmed: {escape(str(best.configuration))}, {_ratio_words(best, blocks)}{few}"
        )
    lines += _faster_but(recommendation)
    is_sure = recommendation.verdict.exit_status == 0
    if left.left:
        chance = "" if left.chance is None else f" (chance that one of them is better: {percent(left.chance)})"
        order = "" if is_sure else "; next to be tried, by what a second of measuring each promises:"
        lines.append(f"never tried: {left.left}{chance}{order or _price_words(recommendation)}")
        lines += (
            [] if is_sure else [f"  {_prospect_words(recommendation, each)}" for each in left.promising[:_PROMISING]]
        )
    if recommendation.way_out:
        lines.append(f"[bold]the way out:[/] {recommendation.way_out}")
    return lines, _commands(recommendation)


def _faster_but(recommendation: Recommendation) -> list[str]:
    """Say what was measured better than what is recommended and may not be recommended: the best of it, why, how many more."""
    chosen = recommendation.chosen
    least = (1 + TIE_ZONE) * ((chosen.search_ratio if chosen is not None else None) or 1.0)
    found = [c for c in recommendation.rejected if (c.search_ratio or 0.0) > least]
    if chosen is None or not found:
        return []
    best = max(found, key=lambda c: c.search_ratio or 0.0)
    more = f"; and {len(found) - 1} more (--why-not says of each)" if len(found) > 1 else ""
    better = "faster" if recommendation.objective.aim.is_speed else "better"
    what = f"{escape(str(best.configuration))}, ≈{best.search_ratio:.2f} × the default in the search"
    return [f"{better}, and not to be recommended: {what}: {escape('; '.join(best.objections))}{more}"]


def _ratio_words(best: Candidate, blocks: int) -> str:
    """Return how much better than the default it looks: by the blocks where there are enough of them, else by the search."""
    if best.comparison is not None and blocks >= LEAST_BLOCKS:
        low, high = best.comparison.interval
        return f"{best.comparison.ratio:.2f} × the default (95 % interval {low:.2f}–{high:.2f})"
    return f"≈{best.search_ratio:.2f} × the default in the search" if best.search_ratio else "no ratio"


def _commands(recommendation: Recommendation) -> list[str]:
    """Return what to do next where an answer is not sure, or leaves much untried: a command a line, after what it is for."""
    command, going_on = escape(recommendation.command), (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED)
    if recommendation.stale:
        return [f"to measure it again: [bold]{command}[/]"]
    if not recommendation.same_weights:
        return [f"to measure these weights: [bold]{command}[/]"]
    if recommendation.verdict in going_on:
        return [f"to go on: [bold]{command}[/]"]
    if more := recommendation.with_more_blocks:
        return [f"more blocks may tell it from the default: [bold]{escape(more)}[/]"]
    if recommendation.prospects.is_open or recommendation.prospects.is_dear:
        return [f"to try what was never tried: [bold]{escape(recommendation.trying)}[/]"]
    return []


def _price_words(recommendation: Recommendation) -> str:
    """Say of what may well be better, and was not looked for, what it costs and what it promises; "" where that is not why."""
    left, payback_s = recommendation.prospects, recommendation.study.budget.payback_s
    if not left.is_dear or payback_s is None:
        return ""
    pays = "of that job" if recommendation.study.budget.job_pays else f"in {span(payback_s)} of work"
    words = f", for each is expected to save less {pays} than it costs to find, measure and confirm"
    best = max(left.promising, key=lambda each: each.ratio or 0.0, default=None)
    if best is None or best.ratio is None:
        return words
    takes = f" and takes about {span(best.seconds)} to measure" if best.seconds is not None else ""
    told = f"the best of them, {best.configuration}, is predicted {best.ratio:.2f} × the default{takes}"
    return f"{words}; {escape(told)}"


def _prospect_words(recommendation: Recommendation, prospect: Prospect) -> str:
    parts = [f"predicted {prospect.ratio:.2f} × the default"] if prospect.ratio is not None else []
    parts += [f"about {span(prospect.seconds)} to measure"] if prospect.seconds is not None else []
    needed = needed_bytes(recommendation.study, prospect.configuration)
    is_about_memory = recommendation.objective.max_memory_bytes is not None
    parts += [f"needs at least {gib(needed)}"] if needed is not None and is_about_memory else []
    return escape(f"{prospect.configuration}{': ' if parts else ''}{', '.join(parts)}")
