"""Walls: what a choice is, is asked of its traits, what work is, of its kind; nobody but its own file knows it by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

import advisor
from advisor.knobs import GENERIC, KNOBS, Traits
from advisor.knobs.traits import merged
from advisor.nouns.metrics import PEAK
from advisor.workloads import KINDS
from advisor.workloads.forward import OUTPUTS

ADVISOR = Path(advisor.__file__).parent

#: Files that may name what they like: the table of knobs, the table of kinds, and the project's own front page.
FREE = ("knobs/__init__.py", "workloads/__init__.py", "seed/seed.py")

#: Literals that are spelled like a choice or a kind and mean something else, with the reason.
SPELLED_ALIKE = {
    ("nouns/trial.py", "fp32"): "the word that a stored reference begins with",
    ("show/support.py", "sdpa"): "transformers' default attention of a made-up model",
    ("show/support.py", "eager"): "transformers' default attention of a made-up model",
    ("measure/fp32_torch.py", "forward"): "the method of a torch module",
    ("knobs/autocast.py", "bf16"): "what TrainingArguments call it, and people",
    ("knobs/kernels.py", "forward"): "how the functions end that Liger puts in a model's place",
    ("knobs/kernels_torch.py", "forward"): "the method of a torch module",
}

#: Metrics' names that are no question about a kind: faces that stay as they are whatever kinds there are.
PUBLISHED = {
    ("storage/views.py", "slowest_batch_s"): "a column of v_trials",
    ("storage/views.py", "joules_per_token"): "a column of v_trials",
    ("storage/views.py", "sequences_per_s"): "a column of v_trials",
    ("nouns/trial.py", "tokens_per_s"): "an attribute of a trial, for people who read answers in Python",
}


@cache
def owners() -> dict[str, list[str]]:
    """Return by name the patterns of the files that may spell it: generic names and numbers say nothing by themselves."""
    found: dict[str, list[str]] = {}
    for word, kind in KINDS.items():
        for name in (word, kind.name, *(metric.metric for metric in kind.metrics if metric.metric != PEAK)):
            found.setdefault(name, ["workloads/figures.py"]).append(f"workloads/{kind.name}*.py")
    found |= {output: ["workloads/*.py"] for output in OUTPUTS}
    for knob in KNOBS.values():
        for name in knob.choices:
            if name not in GENERIC and not name.isdigit():
                found.setdefault(name, []).append(f"knobs/{knob.name}*.py")
    return found


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts of a module that are no docstrings."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def named(file: Path) -> list[tuple[str, int, str]]:
    """Return where a file spells a name that is not its own."""
    place, known = file.relative_to(ADVISOR).as_posix(), owners()
    if place in FREE:
        return []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        (place, node.lineno, str(node.value))
        for node in literals(tree)
        if node.value in known
        and not any(fnmatch(place, pattern) for pattern in known[str(node.value)])
        and (place, node.value) not in SPELLED_ALIKE | PUBLISHED
    ]


def imported(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, those of `from package import name` with the name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    """Return the package's files."""
    return sorted(ADVISOR.rglob("*.py"))


def test_every_module_can_be_read_at_once() -> None:
    """No module has more than 350 lines, and the two that say how a tune and an answer come about fit a screen."""
    lines = {file.relative_to(ADVISOR).as_posix(): file.read_text(encoding="utf-8").count("\n") for file in files()}
    functions = {
        node.name: (node.end_lineno or node.lineno) - node.lineno + 1
        for file in files()
        if file.name in ("study/tune.py", "advice/suggest.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert {name: count for name, count in lines.items() if count > 350} == {}
    assert {name: count for name, count in lines.items() if name.endswith("study/tune.py") and count > 60} == {}
    assert {name: count for name, count in functions.items() if count > 60} == {}


def test_the_formatter_is_seldom_told_to_look_away() -> None:
    """At most 20 statements of the repository are kept as they were typed: long tables of figures and of cases."""
    told = [
        f"{file.name}:{number}"
        for folder in ("advisor", "benchmarks", "migrations", "tests")
        for file in sorted((ADVISOR.parent / folder).rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if line.rstrip().endswith("# fmt:" + " skip")
    ]

    assert len(told) <= 20, told


def test_nobody_asks_for_a_choice_or_a_kind_by_name() -> None:
    """No text in the code equals the name of a choice, a kind, or a kind's metric or output outside its file: they are asked."""
    assert [found for file in files() for found in named(file)] == []


def test_the_exceptions_are_few_and_there() -> None:
    """What is only spelled alike is listed with a reason, at most seven times, and nothing is listed that is gone."""
    spelled = {
        (file.relative_to(ADVISOR).as_posix(), node.value)
        for file in files()
        for node in literals(ast.parse(file.read_text(encoding="utf-8")))
    }

    assert len(SPELLED_ALIKE) <= 7
    assert spelled >= SPELLED_ALIKE.keys() | PUBLISHED.keys()


def test_nobody_imports_a_knobs_own_file() -> None:
    """The files in the knobs' folder are imported by the table of knobs and by one another: all others ask the table."""
    own = {
        ".".join(("advisor", *file.relative_to(ADVISOR).with_suffix("").parts))
        for file in (ADVISOR / "knobs").rglob("*.py")
        if file.stem != "__init__"
    }
    outside = [file for file in files() if not file.is_relative_to(ADVISOR / "knobs")]
    found = [(file.name, name) for file in outside for name in imported(file) if name in own]

    assert len(own) >= 10
    assert found == []


def test_nobody_imports_a_kinds_own_file() -> None:
    """The files in the workloads' folder are imported by the table of kinds and by one another: all others ask the table."""
    own = {f"advisor.workloads.{file.stem}" for file in (ADVISOR / "workloads").glob("*.py") if file.stem != "__init__"}
    outside = [file for file in files() if file.parent.name != "workloads"]
    found = [(file.name, name) for file in outside for name in imported(file) if name in own]

    assert len(own) >= 7
    assert found == []


def test_what_work_is_comes_without_torch() -> None:
    """Kinds, workloads and the face of a runtime are imported without torch: who only asks must not wait for it."""
    code = "import sys, advisor.workloads; print(sorted({'torch', 'transformers', 'sqlalchemy', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ADVISOR.parent, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_name_out_of_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a comparison, a prefix, a keyword and a table that name a choice are all found."""
    file = tmp_path / "odd.py"
    file.write_text(
        '"""sdpa"""\nif a == "sdpa" or b.startswith("packed"):\n    f(attention="eager", q="none", n="1")\n'
        'T = {"int8": 1.0, "forward": 2, "tokens_per_s": 3, "embed": 4}\n'
    )
    monkeypatch.setattr(f"{__name__}.ADVISOR", tmp_path)

    assert sorted(name for _, _, name in named(file)) == [
        "eager",
        "embed",
        "forward",
        "int8",
        "packed",
        "sdpa",
        "tokens_per_s",
    ]


def test_traits_of_a_configuration_are_those_of_its_choices() -> None:
    """Each choice adds its own; what a choice leaves out takes nothing from another's."""
    attention, weights = Traits(writes_scores=True), Traits(bytes_per_weight=0.5, quantises=True, independent=False)

    assert merged(()) == Traits()
    assert merged((attention, weights)) == merged((weights, attention))
    assert merged((attention, Traits(), weights)) == Traits(
        writes_scores=True, bytes_per_weight=0.5, quantises=True, independent=False
    )


def test_a_trait_with_a_value_belongs_to_one_knob() -> None:
    """No two knobs say how large or fine something is under the same name: merging them would lose one."""
    for each in fields(Traits):
        if isinstance(each.default, bool):
            continue
        said = {
            knob.name
            for knob in KNOBS.values()
            for choice in knob.choices.values()
            if getattr(choice.traits, each.name) != each.default
        }
        assert len(said) <= 1, f"{each.name} is said by {said}"
