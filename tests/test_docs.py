"""What is written about the code is in step with it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from advisor.errors import BadInput, NothingAdmissible, NotMeasured
from advisor.faces.arguments import build_parser
from advisor.knobs import KNOBS, rule_ids
from advisor.show import rule_book, support
from advisor.storage.views import views

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def _asked_once() -> Iterator[None]:
    """Ask the choices once for all tests here: nothing here changes what they answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "rules_of_choices", cache(support.rules_of_choices))
        yield


@pytest.fixture(scope="module")
def readme() -> str:
    """Read the README."""
    return README.read_text(encoding="utf-8")


def test_the_page_of_files_is_drawn_from_their_first_lines() -> None:
    """docs/architecture.md has every module with what it says of itself; `benchmarks/architecture.py --write` makes it anew."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "benchmarks" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    drawn = module.drawn()
    assert drawn == (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = [file.name for file in (ROOT / "advisor").rglob("*.py") if file.name != "__init__.py"]
    assert all(re.search(rf"^ +{re.escape(name)} ", drawn, re.MULTILINE) for name in files)


def rows() -> dict[str, list[str]]:
    """Return the table's rows by choice, without head and rule; sizes share one."""
    cells = [line.strip("| ").split(" | ") for line in support.support_table().splitlines()[2:]]
    return {name.strip("`"): row for row in cells for name in row[1].split(", ")}


def test_every_rule_of_the_table_can_be_ignored() -> None:
    """--ignore-rule knows the rules that refused anything anywhere, and those of the space."""
    refusing = set().union(*(rules for rules, _ in support.rules_of_choices().values()))

    assert {*refusing, "M1", "S1", "T0", "U0"} <= set(rule_ids() or ())


def test_the_support_table_is_in_step() -> None:
    """docs/support.md holds the table that the knobs give: `python -m advisor.show.support --write docs/support.md`."""
    assert support.main(["--check", str(DOCS / "support.md")]) == 0


def test_the_page_of_rules_is_in_step() -> None:
    """docs/rules.md has every rule with what it says: `python -m advisor.show.rule_book --write docs/rules.md` makes it anew."""
    page = (DOCS / "rules.md").read_text(encoding="utf-8")
    assert rule_book.rules_page() == page
    assert {*(rule_ids() or ()), "E1"} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_choice_has_a_row() -> None:
    """The table has one row per choice with what the machines, the tiers and the rules say of it."""
    found = rows()

    numbers_last = sorted(KNOBS.values(), key=lambda knob: all(name.isdigit() for name in knob.choices))
    assert list(found) == list(dict.fromkeys(name for knob in numbers_last for name in knob.choices))
    assert all(len(row) == 9 for row in found.values())
    assert all(row[2] and row[-1].startswith("[source](https://") for row in found.values())
    assert found["flash_attention_2"][3:6] == ["yes", "no (A1)", "no (A18)"]
    assert found["tf32"][3:6] == ["yes", "no (D2)", "no (D2)"]
    assert found["bf16"][3:7] == ["yes", "no (D1)", "yes", "exact or dtype"]
    assert found["nf4"][6] == "4bit"
    assert found["packed-cached"][7].startswith("always: P1, ")
    assert found["1"] is found["1024"]
    assert found["1024"][7] == "B2"


def test_every_rule_that_refuses_is_named() -> None:
    """No rule in the knobs' source that can refuse a choice is missing from the table."""
    pattern = r"""Reason\(\s*"([A-Z]\d+)",\s*Verdict\.(?:INVALID|WRONG|ALIAS)"""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "advisor" / "knobs").rglob("*.py")]
    written = {rule for source in sources for rule in re.findall(pattern, source)}
    named = {rule for row in rows().values() for rule in re.findall(r"[A-Z]\d+", row[7])}

    assert len(written) > 15
    assert written <= named


def test_the_table_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--write puts the table between the markers and touches nothing else; --check tells whether it is there."""
    document = tmp_path / "README.md"
    document.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n")

    assert support.main(["--check", str(document)]) == 1
    assert "--write" in capsys.readouterr().err
    assert support.main(["--write", str(document)]) == 0
    assert support.main(["--check", str(document)]) == 0
    written = document.read_text()
    assert written == f"before\n{support.BEGIN}\n{support.support_table()}{support.END}\nafter\n"
    assert support.main([]) == 0
    assert capsys.readouterr().out == support.support_table()


@pytest.mark.parametrize("content", [None, "no markers\n", f"{support.BEGIN}\nno end\n"])
def test_a_document_without_markers_is_refused(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A document that is not there or has no place for the table ends with status 2 and one line, and stays as it is."""
    document = tmp_path / "README.md"
    if content is not None:
        document.write_text(content)

    assert support.main(["--write", str(document)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content is None or document.read_text() == content


def test_the_readme_names_commands_views_and_statuses(readme: str) -> None:
    """Every command is in the README, which is short; every view and every exit status is on its page."""
    (commands,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]

    assert [name for name in commands if f"advisor {name}" not in readme] == []
    assert len(readme.splitlines()) <= 150
    views_page, concepts = ((DOCS / name).read_text(encoding="utf-8") for name in ("sql.md", "concepts.md"))
    assert [name for name in views("sqlite") if f"`{name}`" not in views_page] == []
    statuses = [kind.exit_status for kind in (BadInput, NotMeasured, NothingAdmissible)]
    assert [status for status in statuses if f"\n| {status} |" not in concepts] == []


def test_what_the_demo_prints_can_be_typed(tmp_path: Path) -> None:
    """Its database is its own, and its command is in its environment: the line that it prints first names both."""
    shutil.copytree(
        ROOT / "benchmarks", place := tmp_path / "a clone" / "benchmarks", ignore=shutil.ignore_patterns("*.py")
    )
    (bin_ := tmp_path / "bin").mkdir()
    for name in ("python", "advisor"):  # at the seam of a process: says what it was called with
        (bin_ / name).write_text('#!/bin/sh\necho "$ADVISOR_DATABASE_URL asked to $*"\n')
        (bin_ / name).chmod(0o755)
    known = {name: value for name, value in os.environ.items() if name != "ADVISOR_DATABASE_URL"}
    demo = [shutil.which("sh") or "", str(place / "demo.sh")]
    shown = subprocess.run(
        demo, env={**known, "PYTHON": str(bin_ / "python")}, capture_output=True, text=True, check=True
    )
    typed = [line.removeprefix("$ ") for line in shown.stdout.splitlines() if line.startswith("$ ")]
    found = subprocess.run(
        [demo[0], "-c", "\n".join(typed)], cwd=tmp_path, env=known, capture_output=True, text=True, check=True
    )

    url = f"sqlite:///{place.parent}/.demo/advisor.db"
    assert typed[0].startswith("export ADVISOR_DATABASE_URL=")
    assert typed[1].startswith("advisor suggest tests/models/causal ")
    assert found.stdout.startswith(f"{url} asked to suggest tests/models/causal ")
