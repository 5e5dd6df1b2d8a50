"""The catch table's promise: what is silently wrong or silently something else is refused, and caught where it is forced.

All of the refusals, for they need no worker; of what is forced, one of each kind of catch. `benchmarks/catch_table.py`
forces all of them, and docs/catches.md is what it wrote.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_databases import probed

from advisor.knobs import KNOBS
from advisor.machine import probe

ROOT = Path(__file__).parent.parent

#: The rows of levers.md's table of rules (A.7) whose verdict is WRONG or ALIAS, or can be.
LEVERS = {
    "P1", "P2", "P3", "P4", "P5", "P8", "G1", "A14", "A15", "A19", "A23", "A24", "Q6", "Q7", "Q11", "Q13", "Q15",
    "C1", "C2", "C6", "C8", "C9", "K1", "E1",
}  # fmt: skip

#: What is forced here: rule and the number of its combination. One model, so that few workers are started.
FORCED = [("P1", 0), ("P17", 0), ("C9", 0), ("E1", 0)]


def load() -> ModuleType:
    """Import the benchmark by its path, since `benchmarks` is no package."""
    spec = importlib.util.spec_from_file_location("catch_table", ROOT / "benchmarks" / "catch_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = load()
ROWS = {row.rule: row for row in TABLE.ROWS}


def test_every_rule_has_one_row() -> None:
    """Every WRONG and ALIAS rule of levers.md is in the table, and every one that a choice's source can give."""
    patterns = (r"""Reason\(\s*"([A-Z]\d+)",\s*Verdict\.(?:WRONG|ALIAS)""", r"""_wrong_where\("([A-Z]\d+)""")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "advisor" / "knobs").rglob("*.py")]
    ours = {rule for source in sources for pattern in patterns for rule in re.findall(pattern, source)}

    assert len(ROWS) == len(TABLE.ROWS)
    assert len(ours) > 15
    assert LEVERS | ours <= ROWS.keys()


@pytest.mark.parametrize("row", TABLE.ROWS, ids=lambda row: row.rule)
def test_every_row_is_refused_or_says_why_not(row: Any) -> None:
    """A row that concerns what advisor runs is refused under its id, or can't be asked for, or is forced because it runs."""
    if row.elsewhere:
        assert row.asked == row.forced == ()
        return
    held, words = TABLE.refused(row)

    assert held, words
    assert row.asked or row.unnamed or row.forced
    assert row.forced or row.unforced  # one or the other is said
    if row.runs:
        assert row.forced


def test_what_is_right_is_not_refused() -> None:
    """The check can fail: the very same question about packing as it should be called finds no refusal."""
    asked = TABLE.Asked({"attention": "sdpa", "packing": "packed"})

    assert [TABLE.refusal(replace(row, rule=rule), asked) for rule, row in ROWS.items()] == [""] * len(ROWS)


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """Force the chosen combinations in real workers."""
    folder = tmp_path_factory.mktemp("catches")
    rows = [replace(ROWS[rule], forced=(ROWS[rule].forced[number],)) for rule, number in FORCED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_LOCK_DIR", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        probed(f"sqlite:///{folder}/catches.db")
        yield TABLE.force(rows, probe.machine("cpu"), folder)


@pytest.mark.parametrize("rule", [rule for rule, _ in FORCED])
def test_what_is_forced_is_caught(caught: dict[str, list[Any]], rule: str) -> None:
    """By the gate, with the figure; by the proof, with what ran instead; a duplicate is right, and so is let through."""
    (result,) = caught[rule]

    assert result.by == result.forced.by
    assert re.fullmatch({"gate": r"rms .+ > .+", "proof": r".+ ran", "same": r"rms .+"}[result.by], result.figure)


def test_what_leaks_is_seen_in_16_bits_and_behind_4(caught: dict[str, list[Any]]) -> None:
    """Documents that read one another move in the probe, however coarse the weights; the layout in fp32 says so too."""
    (result,) = caught["P1"]

    assert set(result.moved) == {"bf16", "behind nf4"}
    assert all(moved is None or moved > 0.01 for moved in result.moved.values())
    assert result.moved["bf16"] is not None
    assert result.layout is not None
    assert result.layout > 0.01
    assert result.is_seen
    assert not replace(result, moved={**result.moved, "behind nf4": 0.0}, layout=1e-6).is_seen
    assert replace(result, moved=dict.fromkeys(result.moved, 0.0)).is_seen  # positions: by the layout


def test_made_up_choices_are_gone(caught: dict[str, list[Any]]) -> None:
    """What was registered for the run is not left behind."""
    assert [name for name in KNOBS["attention"].choices if name.startswith("made-up")] == []


def test_a_hole_would_be_told(caught: dict[str, list[Any]]) -> None:
    """Where something forced is not caught, the row says so in bold, and the last line counts it."""
    hole = replace(caught["P1"][0], by="same")
    text, complete = TABLE.summary(TABLE.ROWS, {**caught, "P1": [hole]})

    assert "**same**, not gate" in TABLE._line(ROWS["P1"], [hole])
    assert "2 of 3 wrong ones were caught" in text
    assert not complete
    assert TABLE.summary(TABLE.ROWS, caught)[1]


def test_the_document_is_in_step() -> None:
    """docs/catches.md has a line for every row with what refuses it, nothing in it escaped, and everything is caught and seen."""
    text = (ROOT / "docs" / "catches.md").read_text(encoding="utf-8")
    lines = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    expected = [TABLE._line(row, ()).split(" | ")[:3] for row in TABLE.ROWS]
    counts = re.findall(r"(\d+) of (\d+)", text.splitlines()[-1])

    assert lines == expected
    assert "**" not in "\n".join(text.splitlines()[12:])
    assert len(counts) == 4
    assert all(found == wanted for found, wanted in counts)
