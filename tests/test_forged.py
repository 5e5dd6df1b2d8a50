"""Nobody's row runs as code: every value of every row is forged, and every printed form is looked at.

A database may come from anybody. Whatever a row says, a script that is printed compiles and holds none of it as code,
no terminal escape is printed, and what can't be is told in one line that names the row.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import memory_folder

from advisor.advice.kept_answers import keep_answer
from advisor.faces import cli
from advisor.knobs.choice import Reason, Verdict
from advisor.machine import probe
from advisor.models import checkpoint
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Confirm, Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.search import prospects
from advisor.show import script
from advisor.storage import database, tables
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

CAUSAL = str(Path(__file__).parent / "models" / "causal")
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")
FACTS = ModelFacts(
    "LlamaForCausalLM", "llama", "float32", 1000, 4000, 900, 2, 64, 4, 2, 16, 512, 2048, True, False, True, "sdpa",
    layer_types=("full_attention",), position_offset=2, prequantized=None, sliding_window=128,
)  # fmt: skip

CODE = "__import__('os').system('touch pwned')"
TEXTS = [
    f'0){CODE}#\n{CODE}\n\'\n{CODE}\n"""\n{CODE}\n\\"""\n{CODE}\n(',
    f"pwned or {CODE}",
    "\x1b]0;pwned\x07\x1b[2J\x9b31m\r\u202epwned\u2066\u2028\u200f\x00",
]
OTHERS: list[Any] = [-1, 2**62, True, None, "", [CODE], {CODE: CODE}, "NaN", "1e999"]
#: What a column is besides.
MORE: list[Any] = [10**30, 1e308, 0, [], {}, [[[]]], "Infinity", "-0.5", "x" * 100_000]

#: What is asked of a database, and of which what is printed is a script.
FORMS = {
    "python": ["suggest", CAUSAL, "--lengths", "9,4,6,12", "--batch", "2", "--device", "cpu", "--format", "python"],
    "text": ["suggest", CAUSAL, "--lengths", "9,4,6,12", "--batch", "2", "--device", "cpu", "--pareto"],
    "json": ["suggest", CAUSAL, "--lengths", "9,4,6,12", "--batch", "2", "--device", "cpu", "--format", "json"],
    "why not": ["suggest", CAUSAL, "--lengths", "9,4,6,12", "--batch", "2", "--device", "cpu", "--why-not", "packed"],
    "nearest": ["suggest", CAUSAL, "--lengths", "9", "--batch", "1", "--device", "cpu"],
    "trials": ["trials"],
    "trials json": ["trials", "--format", "json"],
    "show": ["show", "1.1"],
    "show json": ["show", "1.1", "--format", "json"],
    "export": ["export"],
}


def measured(number: int, configuration: Configuration, speed: float) -> Trial:
    """Return a right trial with every kind of figure, reading and device state."""
    state = {"after_each_round": [{"clock_mhz": 2000.0, "load_1min": 1.0}], "discarded": ["the GPU was slowed down"]}
    figures = (
        Measurement("tokens_per_s", "tokens/s", (speed, speed + 1, speed + 2), "search", state),
        Measurement("round_s", "s", (1.0, 1.0)),
        Measurement("slowest_batch_s", "s", (0.5, 0.5)),
    )
    reading = {
        "attention": {"": "sdpa"},
        "dtypes": {"float32": 1000},
        "linears": {"Linear": 9},
        "operators": ["aten::mm"],
        "inputs": {"rows": 2, "mask": "2D"},
    }
    return Trial(
        number,
        configuration,
        configuration,
        Outcome.OK,
        "said",
        load_s=1.0,
        first_call_s=0.5,
        measure_s=2.0,
        wall_s=4.0,
        peak_bytes=2**30,
        weight_bytes=2**20,
        reading=reading,
        measurements=figures,
        quality=Quality(1e-5, 1e-4, 1e-9, 1.0, 64, 1.0, reference="fp32, eager", top10=None, cosine=None),
    )


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a whole database, as a file, in which every column that can be filled is."""
    file = tmp_path_factory.mktemp("honest") / "advisor.db"
    source, here = find_model(CAUSAL), probe.machine("cpu").environment
    with Store.open(f"sqlite:///{file}", write=True) as store:
        workload, objective = Forward((9, 4, 6, 12), 2), Objective()
        study = store.open_study(source, workload, here, objective, Budget(60.0, 40), 0)
        store.save_facts(source, FACTS, study)
        store.save_ceilings(here, {"matmul_fp32_per_s": 1e12, "copy_bytes_per_s": 1e10})
        for configuration, speed in ((DEFAULT, 1000.0), (SORTED, 1500.0), (PACKED, 1200.0)):
            number = store.claim(study, Search(configuration), "host:1:1")[0]
            store.finish_trial(study, measured(number, configuration, speed), "host:1:1")
        number = store.claim(study, Confirm(1, (PACKED,)), "host:1:1")[0]
        store.finish_trial(
            study, Trial(number, PACKED, None, Outcome.RUNTIME_ERROR, "it broke", "confirm", 1), "host:1:1"
        )
        store.save_comparisons(study, [Comparison(c.key, DEFAULT.key, (1.5, 1.49, 1.51)) for c in (SORTED, PACKED)])
        reason = Reason("P1", Verdict.WRONG, "masks are ignored", "use sdpa", "attention=eager", "packing=packed")
        store.save_refusals(study, [reason], admissible=12)
        store.close_study(study, "done")
        keep_answer(store, study)
    return file.read_bytes()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Name one directory for all tests, in memory where there is some: a database is written there a thousand times."""
    with tempfile.TemporaryDirectory(prefix="advisor-forged-", dir=memory_folder()) as outside:
        yield Path(outside) / "here"


@pytest.fixture
def file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Name the database that the command line uses, in a directory that is empty and where nothing may appear."""
    folder.mkdir()
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{folder}/advisor.db")
    monkeypatch.chdir(folder)
    yield folder / "advisor.db"
    monkeypatch.undo()
    shutil.rmtree(folder)


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command line in this process; return its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(arguments)
    return status, out.getvalue(), err.getvalue()


UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@cache  # most of what is forged changes no script
def names_in(script: str) -> frozenset[str]:
    """Return every name that a script uses or assigns: its code without its constants."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        for field, value in ast.iter_fields(node):
            if isinstance(value, str) and field in ("id", "attr", "name", "arg", "module", "asname"):
                found.add(value)
    return frozenset(found)


def look(form: str, known: set[str]) -> str:
    """Print a form and see that nothing of a row is code, or an escape, in it; return what is wrong, "" where nothing is."""
    try:
        status, out, err = run(FORMS[form])
    except Exception as error:  # noqa: BLE001 - any of them is a traceback for a user
        return f"{type(error).__name__}: {error}"
    if UNPRINTABLE.search(out) or UNPRINTABLE.search(err):
        return f"prints {UNPRINTABLE.search(out + err)!r}"
    if status not in (0, 2, 3, 4) or (status == 2 and len(err.strip().splitlines()) != 1):
        return f"status {status}: {err[:200]}"
    if status == 0 and form.endswith("json"):
        json.loads(out, parse_constant=lambda name: 1 / 0)
    if status == 0 and form == "python" and (more := names_in(out) - known):
        return f"names {more}"
    return ""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value, and its own."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, member in members:
        yield from leaves(member, (*path, name))


#: Numbers that JSON has not, or hardly.
BARE = ("NaN", "Infinity", "1e999", "-0.5")


def forged(text: str, path: tuple[Any, ...], value: Any) -> str:
    """Return a JSON text with another value at a path; texts like NaN stand for numbers that JSON has not, or hardly."""
    root = {"": json.loads(text)}
    place: Any = root
    for name in ("", *path)[:-1]:
        place = place[name]
    place[("", *path)[-1]] = value
    written = json.dumps(root[""])
    return written.replace(f'"{value}"', value) if value in BARE else written


@pytest.fixture(scope="module")
def known(honest: bytes, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names in the scripts that honest rows give: of a decoder and an encoder, padded, sorted and packed."""
    found, file = {"float"}, tmp_path_factory.mktemp("known") / "advisor.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{file}")
        for facts in ({}, {"is_causal": False}, {"position_offset": 0}, {"accepts": []}, {"accepts": ["no_use_cache"]}):
            for faster in (SORTED, PACKED):
                file.write_bytes(honest)
                with sqlite3.connect(file) as connection:
                    payload = json.dumps({**FACTS.payload, **facts})
                    connection.execute("UPDATE studies SET facts = ?", (payload,))
                    its_id = "(SELECT id FROM configurations WHERE key = ?)"
                    ratios = f"UPDATE comparisons SET block_ratios = ? WHERE candidate_id = {its_id}"
                    connection.execute(ratios, ("[1.9,1.9,1.9]", faster.key))
                connection.close()
                status, out, err = run(FORMS["python"])
                assert status == 0, err
                found |= names_in(out)
    return found


def once_each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its answers kept, by all that is said of its arguments: 1, 1.0 and True are three."""
    answers: dict[str, Any] = {}

    def asked_once(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        if key not in answers:
            answers[key] = function(*arguments, **named)
        return answers[key]

    return asked_once


@pytest.fixture(scope="module", autouse=True)
def one_look() -> Iterator[None]:
    """Look at this machine, at the model and at our own sources once: thousands of command lines ask.

    So is the space of the same facts built once, and the same SQL written once: engines keep what they have compiled, but no
    connection once they are disposed of, which every command does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_engine", cache(database._engine))
        patch.setattr(prospects, "build_space", once_each(prospects.build_space))
        patch.setattr(probe, "machine", cache(probe.machine))
        patch.setattr(checkpoint, "find_model", cache(checkpoint.find_model))
        patch.setattr(cli, "build_parser", cache(cli.build_parser))
        patch.setattr(script, "function_source", cache(script.function_source))
        yield


def columns() -> list[tuple[str, str]]:
    """Return every column of every table but ids: those that say which row belongs to which are no payload."""
    return [
        (table.name, column.name)
        for table in tables.METADATA.sorted_tables
        for column in table.columns
        if column.name != "id" and not column.foreign_keys
    ]


def asked(path: tuple[Any, ...]) -> list[tuple[Any, str]]:
    """Return every value that is put at a path of a column, with a form that is then looked at."""
    pairs: list[tuple[Any, str]] = []
    for value in [*TEXTS, *OTHERS, *(() if path else MORE)]:
        some = ("python", "text", "show") if value in TEXTS else ("python",)
        forms = FORMS if value == TEXTS[2] else (*some, "export") if not path else some
        pairs += [(value, form) for form in forms]
    return pairs


#: Which of them are looked at: the code that ends what it stands in, in a script, at every place, and every eighth of the rest
#: in turns; or all of them.
SHARE = 8


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("table", "column"), columns())
def test_a_forged_value_is_no_code(
    table: str, column: str, which: str, file: Path, honest: bytes, known: set[str]
) -> None:
    """Each value of each payload, whatever it is replaced with, reaches no script as code and no terminal as an escape."""
    wrong: list[str] = []
    file.write_bytes(honest)
    with sqlite3.connect(file) as connection:
        stored = [row[0] for row in connection.execute(f"SELECT {column} FROM {table} ORDER BY id")]
    connection.close()
    text = next((value for value in stored if value is not None), None)
    is_json = isinstance(text, str) and text[:1] in ("{", "[")
    paths = leaves(json.loads(text)) if isinstance(text, str) and is_json else [()]
    for turn, path in enumerate(paths, columns().index((table, column))):
        first, *others = asked(path)
        for value, form in [first, *(others if which == "all" else others[turn % SHARE :: SHARE])]:
            file.write_bytes(honest)
            if not put(file, table, column, forged(text, path, value) if isinstance(text, str) and is_json else value):
                continue
            if said := look(form, known):
                wrong.append(f"{form}: {'.'.join(map(str, path))} = {value!r:.40}: {said}")
    print(*wrong, sep="\n")
    assert wrong == []
    assert sorted(path.name for path in file.parent.iterdir()) == ["advisor.db"]


def put(file: Path, table: str, column: str, value: Any) -> bool:
    """Put a value into every row of a column; return whether the database takes it."""
    written = json.dumps(value) if isinstance(value, (list, dict)) else value
    if isinstance(written, int) and abs(written) >= 2**63:
        written = float(written)
    try:
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(f"UPDATE {table} SET {column} = ?", (written,))
    except sqlite3.IntegrityError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.parametrize(
    "damage", ["0001-01-01 00:00:00+05:00", "yesterday", b"\xff\x00"], ids=["early", "text", "bytes"]
)
def test_a_study_with_a_damaged_moment_hides_no_other(file: Path, damage: str | bytes) -> None:
    """The others come newest first, and it is named: rows are put in their order where they are read."""
    url, source, here = f"sqlite:///{file}", find_model(CAUSAL), probe.machine("cpu").environment
    with Store.open(url, write=True) as store:
        made = [store.open_study(source, Forward((9,) * n, 1), here, Objective(), Budget(), 0) for n in (1, 2, 3)]
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE studies SET started_at = ? WHERE id = ?", (damage, made[1]))
    connection.close()
    with Store.open(url, write=False) as store:
        assert [study.id for study in store.studies()] == [made[2], made[0]]
        assert [said.partition(" is damaged")[0] for said in store.damaged] == [f"row {made[1]} of studies"]


def test_a_damaged_row_is_named_and_the_others_answer(file: Path, honest: bytes) -> None:
    """A trial that can't be read is named by table and id; a study that has none of it is listed as it was."""
    file.write_bytes(honest)
    with Store.open(f"sqlite:///{file}", write=True) as store:
        source, here = find_model(CAUSAL), probe.machine("cpu").environment
        other = store.open_study(source, Forward((9,) * 8, 1), here, Objective(), Budget(), 0)
        store.save_facts(source, FACTS, other)
        number = store.claim(other, Search(DEFAULT), "host:1:1")[0]
        store.finish_trial(other, measured(number, DEFAULT, 1000.0), "host:1:1")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE trials SET outcome = 'glorious' WHERE study_id = 1 AND number = 1")
    connection.close()
    status, out, err = run(FORMS["text"])
    assert (status, out) == (2, "")
    assert err == "advisor: row 2 of trials is damaged: 'glorious' is not a valid Outcome\n"
    status, out, err = run(FORMS["trials"])
    assert (status, err) == (0, "note: row 2 of trials is damaged: 'glorious' is not a valid Outcome\n")
    assert "2.0" in out
    assert "1.0" in out
    assert run(FORMS["nearest"])[0] in (0, 3)
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM measurements WHERE trial_id IN (SELECT id FROM trials WHERE phase = 'confirm')")
        connection.execute("DELETE FROM trials WHERE phase = 'confirm'")
    connection.close()
    status, out, err = run(["trials", "--failed"])
    said = "row 2 of trials is damaged: 'glorious' is not a valid Outcome, and may be one"
    assert (status, out, err) == (3, "", f"advisor: no failed trial of anything is stored ({said})\n")


def test_ceilings_that_are_no_numbers_are_left_out(file: Path, honest: bytes) -> None:
    """They are a yardstick, not the answer: a note names their row, and the answer stands."""
    for payload in ('{"matmul_fp32_per_s": NaN}', '{"matmul_fp32_per_s": "fast"}', "[", '{"matmul_fp32_per_s": true}'):
        file.write_bytes(honest)
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE ceilings SET payload = ?", (payload,))
        connection.close()
        status, out, err = run(FORMS["text"])
        assert status in (0, 3)  # a study without what a search tells is unsearched
        assert "row 1 of ceilings is damaged" in err
        assert "1.50 × the default" in out


def test_a_missing_configuration_is_named(file: Path, honest: bytes) -> None:
    """A trial whose configuration is gone is not passed over in silence."""
    file.write_bytes(honest)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM configurations WHERE key = ?", (PACKED.key,))
    connection.close()
    status, _, err = run(FORMS["text"])
    assert (status, err) == (2, "advisor: row 3 of trials is damaged: its configuration is missing\n")


def test_a_choice_of_a_plugin_that_is_not_here_is_only_a_name(file: Path, honest: bytes) -> None:
    """A row names a choice that this advisor does not know: nothing is imported for it, and it is never recommended."""
    file.write_bytes(honest)
    with sqlite3.connect(file) as connection:
        choices = json.dumps({**SORTED, "attention": "pwned"}, sort_keys=True, separators=(",", ":"))
        connection.execute("UPDATE configurations SET payload = ? WHERE key = ?", (choices, SORTED.key))
    connection.close()
    status, out, _ = run(FORMS["json"])
    assert status == 0
    assert json.loads(out)["recommendation"]["configuration"]["packing"] == "packed"
    assert math.isclose(json.loads(out)["recommendation"]["ratio"], 1.5, rel_tol=0.01)
