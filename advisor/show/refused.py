"""What came to nothing, for people: trials that failed, and refusals, a row for all choices that have one reason in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from advisor.advice.recommendation import fate_of
from advisor.knobs import Reason, Verdict
from advisor.nouns.trial import Trial

#: Characters of a table's column that lists choices, unless one alone is longer.
_COLUMN = 48


def refused_table(reasons: Iterable[Reason], failures: Iterable[Trial]) -> Table:
    """Return what came to nothing: trials that failed, and what rules refused."""
    table = Table("refused", "rule", "why", box=None, pad_edge=False, header_style="bold")
    for trial in failures:
        table.add_row(escape(str(trial.requested)), fate_of(trial), escape(trial.reason[:300]))
    for row in refusal_rows(reasons):
        table.add_row(*map(escape, row))
    return table


def counted(reasons: Sequence[Reason], failures: Sequence[Trial]) -> str:
    """Return how much came to nothing, in words; "" where nothing did."""
    rules, failed = len({reason.rule for reason in reasons}), sum(trial.outcome.is_failure for trial in failures)
    unproven = len(failures) - failed
    parts = [f"{rules} rule{'s refuse' if rules > 1 else ' refuses'} other choices"] if rules else []
    parts += [f"{failed} configuration{'s' * (failed > 1)} failed"] if failed else []
    parts += [f"of {unproven} configuration{'s' * (unproven > 1)} it is unproven what ran"] if unproven else []
    return "; ".join(parts)


def refusal_rows(reasons: Iterable[Reason]) -> list[tuple[str, str, str]]:
    """Return what was refused, the rules and why, a row for all choices that have one reason in common.

    What is the same work as something else (but for what ran as something else, rule E1) is one row, and so is what the
    caller left out.
    """
    groups: dict[tuple[str, ...], list[Reason]] = {}
    for reason in reasons:
        if reason.rule == "U0":
            key: tuple[str, ...] = ("left out",)
        elif reason.verdict is Verdict.ALIAS and reason.rule != "E1":
            key = ("alias",)
        else:
            key = ("", reason.rule, re.sub(r"\d+(\.\d+)?", "#", reason.text), reason.remedy)
        groups.setdefault(key, []).append(reason)
    last = {"left out": 2, "alias": 1}
    ordered = sorted(groups.items(), key=lambda group: last.get(group[0][0], 0))
    return [_refusal_row(kind, same) for (kind, *_), same in ordered]


def _refusal_row(kind: str, same: Sequence[Reason]) -> tuple[str, str, str]:
    rules = ", ".join(sorted({reason.rule for reason in same}))
    names = list(dict.fromkeys(reason.subject for reason in same))
    if kind == "alias":
        return f"{len(names)} more", "", f"the same work as another choice ({rules})"
    if kind == "":
        names = list(dict.fromkeys(f"{r.subject}{f' ({r.about})' if r.about else ''}" for r in same))
    why = "left out by --only or --fix" if kind == "left out" else same[0].text
    return _listed(_without_repeats(names)), rules, why + (f" → {same[0].remedy}" if same[0].remedy else "")


def _listed(names: Sequence[str]) -> str:
    """Return the first names that fit into a column, and how many more there are."""
    shown = names[0]
    for place, name in enumerate(names[1:], 1):
        if len(shown) + len(name) > _COLUMN:
            return f"{shown} and {len(names) - place} more"
        shown += f", {name}"
    return shown


def _without_repeats(names: Sequence[str]) -> list[str]:
    """Return subjects ("knob=choice") without a knob that is the same as the one before."""
    shown: list[str] = []
    for place, name in enumerate(names):
        knob = name.partition("=")[0]
        same = place > 0 and names[place - 1].partition("=")[0] == knob and " " not in name
        shown.append(name.removeprefix(f"{knob}=") if same else name)
    return shown
