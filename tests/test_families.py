"""Is the verdict right on every kind of model? Families that stand for the kinds; `make families` measures all of them.

What is so is labelled by benchmarks/families_oracle.py, which knows nothing of advisor's gate.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

#: Families that stand for a kind, and which of their layouts are wrong in fp32: padded, sorted, packed.
KINDS = {
    "llama": "",  # nothing in its way
    "phi3": "padded sorted packed",  # rope switches by the longest sequence of the batch
    "mixtral deep": "",  # rounding sends tokens to other experts
    "minimax": "packed",  # a state, whose tables of decays 16 bits round
    "falcon alibi": "padded sorted packed",  # its default attention is another function than eager
    "biogpt faint": "packed",  # documents read one another, a little
    "fnet": "padded sorted",  # there is no mask
    "modernbert": "packed",  # the mask of a packed row replaces the windows
    "llama scores": "",  # the last token, found by the pad id
}


#: Those that take as long as all others.
LONG = ("mixtral deep", "modernbert", "minimax", "falcon alibi")

MEASURED = [pytest.param(name, marks=pytest.mark.slow if name in LONG else (), id=name) for name in KINDS]


def load() -> ModuleType:
    """Import the benchmark, whose modules import one another, since `benchmarks` is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("families")


FAMILIES = load()


@cache
def cells(name: str) -> list[Any]:
    """Measure a family once for all tests."""
    found: list[Any] = FAMILIES.measure(name)
    return found


@pytest.fixture(autouse=True)
def _quietly(one_thread: None, offline: None) -> None:
    """Run on one thread and download nothing."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_oracle_knows_what_is_right(name: str) -> None:
    """The labels are what reading the classes says: the oracle can say both right and wrong."""
    found = {cell.layout for cell in cells(name) if cell.precision == "fp32" and not cell.label.failure}
    labelled = {
        cell.layout
        for cell in cells(name)
        if cell.layout in found and not cell.label.is_right and cell.precision == "fp32"
    }

    assert labelled == set(KINDS[name].split())
    assert {"padded", "sorted"} <= found


@pytest.mark.parametrize("name", MEASURED)
def test_the_verdict_is_right(name: str) -> None:
    """Nothing wrong is accepted, and nothing right is rejected."""
    assert [str(cell) for cell in cells(name) if cell.kind in ("wrong accepted", "right rejected")] == []


def test_a_wrong_label_would_be_told() -> None:
    """The count can fail: one wrong cell accepted is enough, one right cell rejected among six is too many."""
    right = cells("llama")
    label = type(right[0].label)(1.0, 1.0, 1e-4)
    rejected = type(right[0].verdict)("rejected", "made up")

    assert FAMILIES.passes(right)
    assert not FAMILIES.passes([*right[1:], replace(right[0], label=label)])
    assert not FAMILIES.passes([*right[1:], replace(right[0], verdict=rejected)])


def document() -> str:
    """Return the document in the repository."""
    return (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_the_document_is_in_step() -> None:
    """docs/families.md has a row for every family of the table, with what was kept of it."""
    rows = [line.split(" | ")[:3] for line in document().splitlines() if line.startswith("| ") and "family" not in line]

    assert [row[0].removeprefix("| ") for row in rows] == list(FAMILIES.FAMILIES)
    assert [row[1:] for row in rows] == [[family.kept, family.output] for family in FAMILIES.FAMILIES.values()]


def test_the_document_covers_enough() -> None:
    """At least 45 families were measured."""
    found = re.search(r"Of (\d+) families (\d+) were measured", document())

    assert found is not None
    assert int(found[2]) >= 45


def test_the_document_says_that_the_verdict_is_right() -> None:
    """Nothing wrong was accepted, and at most 1 % of what is right rejected."""
    accepted = re.search(r"\*\*(\d+) are wrong and accepted\*\*", document())
    rejected = re.search(r"of (\d+) right ones (\d+) are rejected", document())

    assert accepted is not None
    assert rejected is not None
    assert int(accepted[1]) == 0
    assert int(rejected[2]) <= 0.01 * int(rejected[1])
