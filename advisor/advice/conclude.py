"""What the evidence comes to: which candidate is recommended, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from advisor.advice.coverage import Coverage
from advisor.advice.evidence import Evidence
from advisor.advice.ranking import Candidate
from advisor.errors import NothingAdmissible
from advisor.knobs import Reason
from advisor.nouns.answer import Conclusion
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.trial import Outcome, Trial, best_laps_s
from advisor.search.prospects import Prospects


def conclude(
    evidence: Evidence, look: Callable[[], Prospects], *, is_own: bool, is_untouched: bool = False
) -> tuple[Candidate | None, Conclusion]:
    """Return what is recommended, and how sure that is. Nothing is made of what was never compared, or hardly searched for.

    look: what finds out about what was never tried, asked only where that decides something, for it can take a second.
    is_own: whether the question is the one that was searched; where more is asked than was, the best found is that for now.
    is_untouched: whether nothing at all was tried of what the question leaves: then nothing is known of it.
    """
    chosen, verdict = _concluded(evidence, look)
    if is_untouched and chosen is not None:
        return chosen, Conclusion.UNSEARCHED
    is_settled = verdict in (Conclusion.FASTER, Conclusion.SLOWER_BUT_RIGHT)
    return chosen, Conclusion.UNSEARCHED if is_settled and not is_own and look().is_open else verdict


def _concluded(evidence: Evidence, look: Callable[[], Prospects]) -> tuple[Candidate | None, Conclusion]:
    right, default = evidence.right, evidence.default
    if not right:
        # What is wrong with other weights may be right with these: nobody has looked.
        return None, Conclusion.UNSEARCHED if not evidence.same_weights or look().left else Conclusion.NONE_RIGHT
    if right[0].verdict == "faster":
        return right[0], Conclusion.FASTER if hoped_for(evidence) is None else Conclusion.UNCONFIRMED
    if default is None or default.objections:
        return right[0], _without_default(evidence, look)
    if _looks_faster(right):
        return default, Conclusion.UNCONFIRMED
    if look().is_open:
        return default, Conclusion.UNSEARCHED
    return default, Conclusion.TIE if any(c.verdict == "tie" for c in right) else Conclusion.DEFAULT


def _without_default(evidence: Evidence, look: Callable[[], Prospects]) -> Conclusion:
    """Return how sure it is that the first is the best where the default may not be recommended, or could not be measured."""
    if evidence.right[0].is_confirmed:
        return Conclusion.SLOWER_BUT_RIGHT if hoped_for(evidence) is None else Conclusion.UNCONFIRMED
    if evidence.default is not None:
        return Conclusion.UNCONFIRMED
    return Conclusion.UNSEARCHED if look().is_open else Conclusion.SLOWER_BUT_RIGHT  # there is nothing to compare with


def _looks_faster(right: Sequence[Candidate]) -> bool:
    """Whether the search saw something faster than the default that was not compared with it.

    What looked slower than something that was compared, and found no faster, does not count: then the search saw too much.
    """
    compared = max((c.search_ratio or 0.0 for c in right if c.verdict is not None), default=0.0)
    return any((c.search_ratio or 0.0) > max(1 + TIE_ZONE, compared) for c in right if not c.is_confirmed)


def hoped_for(evidence: Evidence) -> Candidate | None:
    """Return the best by the search of what was not confirmed where it is clearly better than all that was; else None.

    Clearly is what makes a finalist leave others behind: a study's own best is always one, but under another question, of
    fewer calls or of less memory, what was confirmed may be far behind what was not. Its blocks, if it has any, must say so too.
    """
    confirmed, aim = [c for c in evidence.right if c.is_confirmed], evidence.aim
    laps = best_laps_s(c.trial for c in evidence.right)
    most = max((c.ratio or 0.0 for c in confirmed), default=0.0)

    def is_clear(found: Candidate) -> bool:
        margin = 1 + found.trial.margin(aim, laps.get(found.trial.device_uuid))
        low = found.trial.score_interval(aim)[0] / margin
        in_blocks = found.comparison is None or found.comparison.ratio > (1 + TIE_ZONE) * most
        return in_blocks and all(low > c.trial.score_interval(aim)[1] for c in confirmed)

    open_ones = [c for c in evidence.right if not c.is_confirmed and c.configuration not in evidence.broken]
    return max(filter(is_clear, open_ones), key=lambda c: c.search_ratio or 0.0, default=None)


def fastest_found(evidence: Evidence, chosen: Candidate | None, verdict: Conclusion) -> Candidate | None:
    """Return the best by the search of what may be recommended, where nothing is sure and that looks better than what is."""
    if chosen is None or verdict not in (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED):
        return None
    best = hoped_for(evidence) or max(evidence.right, key=lambda c: c.search_ratio or 0.0, default=None)
    if best is None:
        return None
    return best if (best.search_ratio or 0.0) > (chosen.search_ratio or 0.0) else None


def refuse_nothing_admissible(evidence: Evidence, trials: Sequence[Trial], coverage: Coverage) -> None:
    """Raise NothingAdmissible with every reason where rules left nothing at all; a wrong default is no matter of rules."""
    is_wrong = evidence.default is not None and bool(evidence.default.wrong)
    if not is_wrong and coverage.leaves_nothing:
        raise NothingAdmissible(_every_reason(coverage.refusals, trials, evidence.outside))


def _every_reason(
    refusals: Sequence[Reason], trials: Sequence[Trial], outside: Mapping[int, Sequence[str]]
) -> list[str]:
    texts = []
    for trial in trials:
        if trial.phase == "search" and trial.outcome is not Outcome.RUNNING:
            why = (
                ", ".join(outside[trial.number])
                if trial.outcome is Outcome.OK
                else f"{trial.outcome} ({trial.reason[:160]})"
            )
            texts.append(f"{trial.requested}: {why}")
    return texts + list(_told_once(refusals))


def _told_once(refusals: Sequence[Reason]) -> Iterator[str]:
    """Yield refusals in words, of those that have rule, figures aside words, and remedy in common the first and their count."""
    alike: dict[tuple[str, ...], list[Reason]] = {}
    for reason in refusals:
        words = re.sub(r"\d+(\.\d+)?( [KMG]i?B)?", "#", reason.text)
        alike.setdefault((reason.rule, words, reason.remedy), []).append(reason)
    for first, *more in alike.values():
        yield f"{first} (and {len(more)} more)" if more else str(first)
