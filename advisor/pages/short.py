"""Short: what a study came to, or comes to by now, in one line: the same words on pages, in the API and in a terminal."""

from __future__ import annotations

from advisor.nouns.answer import Answer, Conclusion
from advisor.nouns.metrics import figure
from advisor.pages.points import Point, Role
from advisor.pages.study_report import StudyReport
from advisor.terminal import times

#: Conclusions under which something better may be there that nobody can be sure of yet.
_OPEN = (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED)


def is_open(answer: Answer) -> bool:
    """Whether a stored answer leaves open what the search saw: what that is, its study's report says."""
    return answer.verdict in _OPEN


def answer_words(answer: Answer, report: StudyReport | None = None) -> str:
    """Return a stored answer in a line: its verdict, and the configuration. report: of its study, for one that is open."""
    if answer.configuration is None:
        return "nothing is right"
    ratio = f" {times(answer.ratio)}" if answer.ratio is not None else ""
    best = None if report is None else best_of(report)
    if not is_open(answer) or best is None or best.is_default or best.ratio is None:
        return f"{answer.verdict}{ratio}: {answer.configuration}"
    stopped = f": {answer.why[0]}" if answer.why else ""
    kept = f"{'the default, ' if answer.ratio is None else ''}{answer.configuration}{ratio and f',{ratio}'}"
    return f"{answer.verdict}: {best.configuration}, {_in_search(best.ratio)}{stopped}; until then {kept}"


def best_of(report: StudyReport) -> Point | None:
    """Return the best by the search of what may be recommended by now, None where nothing may be."""
    sign = -1 if report.study.objective.aim.less_is_better else 1
    roles = (Role.CHOSEN, Role.DEFAULT, Role.RIGHT)
    right = [
        (sign * point.value, point) for point in report.searched if point.value is not None and point.role in roles
    ]
    return max(right, key=lambda pair: pair[0])[1] if right else None


def best_so_far(report: StudyReport) -> str:
    """Return the best that may be recommended by now, in words, "" where nothing may be: how sure it is, too."""
    best = best_of(report)
    if best is None:
        return ""
    value = figure(report.study.objective.aim.metric, best.value)
    if best.is_default:
        return f"{best.configuration} (the default), {value}"
    compared = next((each for each in report.finalists if each.configuration == best.configuration), None)
    if compared is not None:
        many = f"{len(compared.blocks)} block{'' if len(compared.blocks) == 1 else 's'}"
        return f"{best.configuration}, {value}, {times(compared.ratio)} the default in {many} ({compared.verdict})"
    return f"{best.configuration}, {value}{'' if best.ratio is None else f', {_in_search(best.ratio)}'}"


def _in_search(ratio: float) -> str:
    return f"{times(ratio)} the default in the search, not confirmed"
