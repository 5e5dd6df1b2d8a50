"""The page of rules by id: what each refuses, why, and what to do, collected from the choices on example machines and models.

python -m advisor.show.rule_book --write docs/rules.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from advisor.knobs import KNOBS, Reason, choice_of
from advisor.show.support import MACHINES, OTHERS, by_number, choices, situations

#: What the search itself refuses: no choice's own, so that no choice says it.
_OF_THE_SPACE = {
    "E1": (
        "ALIAS",
        "any choice",
        "it ran as another configuration on this machine: figures count for what ran",
        "choose what ran",
    ),
    "M1": (
        "INVALID",
        "any choice",
        "what it is predicted to need is more than may be used",
        "a smaller batch or fewer bits",
    ),
    "S1": (
        "INVALID",
        "precision, quantization, attention",
        "predicted to be more than 8 times slower than the default, by operations and rates",
        "--ignore-rule S1 tries it",
    ),
    "T0": (
        "INVALID",
        "lossy choices",
        "its tier is below what was asked for, or nothing can judge it",
        "--quality TIER",
    ),
    "U0": ("INVALID", "any choice", "left out by --only or --fix", "leave the flag out"),
}

_HEAD = """# Rules by id

Generated from the code (`python -m advisor.show.rule_book --write docs/rules.md`). A rule refuses a choice before any time is
spent on it; `--ignore-rule ID` tries it all the same, and the gate judges what comes out. **WRONG**: it would run, and its output
would be wrong. **INVALID**: it can't run, or is no sensible thing to run. **ALIAS**: the same work as another choice. **SLOW**
and **WARN** refuse nothing: the first comes later in the search, the second is told. Texts and figures are those of an example. P
is packing, A attention, D precision, Q quantization, B batch and what BetterTransformer was.

| rule | says | of | why, in an example | what to do |
| --- | --- | --- | --- | --- |
"""


@dataclass
class _Rule:
    """What was seen of a rule: its verdicts, the choices it refused, and the first reason it gave."""

    example: Reason
    verdicts: set[str] = field(default_factory=set)
    subjects: dict[str, None] = field(default_factory=dict)


def rules_page() -> str:
    """Return the page as Markdown, a row a rule by id; ends with a newline."""
    rows = {rule: list(told) for rule, told in _OF_THE_SPACE.items()}
    for rule, found in _seen().items():
        verdicts = " · ".join(sorted(found.verdicts))
        rows[rule] = [verdicts, _subjects(list(found.subjects)), found.example.text, found.example.remedy or "–"]
    lines = [[f"`{rule}`", *rows[rule]] for rule in sorted(rows, key=by_number)]
    return _HEAD + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _seen() -> dict[str, _Rule]:
    """Return every rule that said anything of any choice anywhere."""
    found: dict[str, _Rule] = {}
    for subject, reason in _reasons():
        known = found.setdefault(reason.rule, _Rule(reason))
        known.verdicts.add(str(reason.verdict))
        known.subjects[subject] = None
    return found


def _reasons() -> Iterator[tuple[str, Reason]]:
    """Yield what choices say of themselves, after "knob=choice"."""
    for choice, environment in product(choices(), (*MACHINES.values(), *OTHERS)):
        if (reason := choice.unavailable(environment)) is not None:
            yield f"{choice.knob}={choice.name}", reason
    for alike in situations():
        for knob, name in alike[0].configuration.over(KNOBS):
            for situation in alike:
                for reason in choice_of(knob, name).why_not(situation):
                    yield f"{knob}={name}", reason


def _subjects(names: Sequence[str]) -> str:
    """Return choices by knob, each in the order of its table, numbers as "all"."""
    parts = []
    for knob in KNOBS.values():
        own = [name for name in knob.choices if f"{knob.name}={name}" in names]
        if own:
            all_of_it = len(own) == len(knob.choices)
            parts.append(f"{knob.name}: {'all' if all_of_it else ', '.join(f'`{name}`' for name in own)}")
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page, write it to a file or compare it with one; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m advisor.show.rule_book", description="The page of rules by id.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    what.add_argument("--check", type=Path, metavar="FILE", help="status 1 where the file is another one")
    options = parser.parse_args(arguments)
    page = rules_page()
    if options.write:
        options.write.write_text(page, encoding="utf-8")
    elif options.check:
        return int(options.check.read_text(encoding="utf-8") != page)
    else:
        sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
