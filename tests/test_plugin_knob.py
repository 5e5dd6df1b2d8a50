"""Knobs that are added in one file each go all the way, on a database of before them, whose answers stay what they were."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_databases import probed
from sqlalchemy import create_engine, text

import advisor as package
from advisor.nouns.configuration import IMPLIED, OF_SOME_WORK, Configuration
from advisor.nouns.measurement import Comparison
from advisor.nouns.trial import Outcome
from advisor.storage.store import Store

pytest.importorskip("torch")

ROOT = Path(package.__file__).parent.parent
HERE = Path(__file__).parent
MODEL = str(HERE / "models" / "causal")
FLAGS = [
    "--device",
    "cpu",
    "--lengths",
    "8",
    "--padding",
    "0.3",
    "--batch",
    "4",
    "--batches",
    "1",
    "--quality",
    "exact",
]

#: What is left to be tried: the default, and the made-up knobs' choices.
ONLY = ["--only", "attention=sdpa", "--only", "packing=padded", "--only", "compilation=off"]

PLUGINS = "made_up_wrapper,made_up_call"
WRAPPER, CALL = "made-up-wrapper", "made-up-call"
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32"})
BOTH = DEFAULT.replaced(**{WRAPPER: "wrapped", CALL: "returned"})

Run = Callable[..., str]


@dataclass(frozen=True)
class Answered:
    """What a database said before there were plugins: the command's answer, and SQL's."""

    told: dict[str, Any]
    rows: list[tuple[Any, ...]]
    keys: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the database and for the device's lock."""
    return tmp_path_factory.mktemp("knobs")


@pytest.fixture(scope="module")
def run(place: Path, in_turn: Callable[..., subprocess.CompletedProcess[str]]) -> Run:
    """Return what runs Python with the plugins on its path, or without them, and gives back what it prints."""
    more = {
        "ADVISOR_DATABASE_URL": probed(f"sqlite:///{place}/advisor.db"),
        "ADVISOR_LOCK_DIR": str(place),
        "HF_HUB_OFFLINE": "1",
    }

    def python(*arguments: str, plugins: str = PLUGINS, status: int = 0, **other: str) -> str:
        path = os.pathsep.join([str(ROOT), str(HERE / "plugins")])
        # Without them everything is as it is here, and this process's warm parent serves.
        named = {"ADVISOR_PLUGINS": plugins, "PYTHONPATH": path} if plugins else {}
        environment = {**os.environ, **more, **named, **other}
        if arguments[0] in ("-m", "-c") and "PYTHONPATH" not in other:
            done = in_turn(*arguments, env=environment)
        else:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
        assert done.returncode == status, done.stderr
        return done.stdout if not status else done.stderr

    return python


def sql(place: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what SQL says."""
    engine = create_engine(f"sqlite:///{place}/advisor.db")
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def stored(place: Path) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the first study's stored answer, and the keys of what it measured."""
    rows = sql(place, "SELECT * FROM v_recommendations WHERE study = 1")
    return rows, sql(
        place,
        "SELECT c.key, c.payload FROM trials t JOIN configurations c ON c.id = t.requested_id "
        "WHERE t.study_id = 1 ORDER BY t.number",
    )


def without(told: Any, *knobs: str) -> Any:
    """Return a document without what it says of these knobs."""
    if isinstance(told, dict):
        return {key: without(value, *knobs) for key, value in told.items() if key not in knobs}
    return [without(each, *knobs) for each in told] if isinstance(told, list) else told


@pytest.fixture(scope="module")
def before(run: Run, place: Path) -> Answered:
    """Tune two configurations without any plugin, and return what is answered then."""
    run("-m", "advisor", "tune", MODEL, *FLAGS, "--trials", "2", "--blocks", "0", plugins="")
    told = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, "--format", "json", plugins=""))
    return Answered(told, *stored(place))


@pytest.fixture(scope="module")
def tuned(before: Answered, run: Run, place: Path) -> int:
    """Tune all that the plugins' knobs add, in the same database, and return the study."""
    run("-m", "advisor", "tune", MODEL, *FLAGS, *ONLY, "--trials", "4", "--blocks", "0")
    return int(sql(place, "SELECT MAX(id) FROM studies")[0][0])


def test_what_was_answered_before_them_is_answered_with_them(before: Answered, run: Run, place: Path) -> None:
    """With two new knobs the same command says the same of the same rows, word by word, and so does SQL; no key changed.

    JSON spells their implied choices out beside the others.
    """
    told = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, "--format", "json"))

    chosen = told["recommendation"]["configuration"]
    assert (chosen[WRAPPER], chosen[CALL]) == ("plain", "off")
    assert without(told, WRAPPER, CALL) == before.told
    assert stored(place) == (before.rows, before.keys)


def test_their_choices_ran_were_judged_and_stored(tuned: int, before: Answered, place: Path) -> None:
    """Each choice ran as itself, alone and with the other, brought its proof and was found right; what is stored is sparse."""
    with Store.open(f"sqlite:///{place}/advisor.db", write=False) as store:
        trials = store.trials(tuned, full=True)
    by_choices = {(t.ran.get(WRAPPER), t.ran.get(CALL)): t for t in trials}
    seen = {
        (trial.reading["own"][WRAPPER]["wrappers"], trial.reading["own"][CALL]["asked"])
        for trial in trials
        if trial.reused_from is None and "own" in trial.reading
    }

    assert set(by_choices) == {(None, None), ("wrapped", None), (None, "returned"), ("wrapped", "returned")}
    assert all(trial.outcome is Outcome.OK and trial.requested == trial.effective for trial in trials)
    assert all(trial.quality is not None and trial.quality.neighbours == 0.0 for trial in trials)
    assert trials[0].requested == DEFAULT
    assert {(4, True), (4, False), (0, True)} <= seen
    assert all(("made_up_wrapper" in t.reading["operators"]) == (WRAPPER in t.ran) for t in trials)
    assert stored(place) == (before.rows, before.keys)


def test_sql_knows_them_without_a_migration(tuned: int, place: Path) -> None:
    """v_trial_choices has a row for every knob of every trial, those of before too; a label has theirs in its place."""
    rows = sql(place, f"SELECT number, knob, choice FROM v_trial_choices WHERE study = {tuned} AND requested = 1")
    by_number: dict[int, dict[str, str]] = {}
    for number, knob, choice in rows:
        by_number.setdefault(number, {})[knob] = choice
    old = dict(sql(place, "SELECT knob, choice FROM v_trial_choices WHERE study = 1 AND number = 0 AND requested = 0"))
    labels = {label for (label,) in sql(place, f"SELECT requested FROM v_trials WHERE study = {tuned}")}

    assert len(rows) == 4 * 11
    assert {(each[WRAPPER], each[CALL]) for each in by_number.values()} == {
        ("plain", "off"),
        ("wrapped", "off"),
        ("plain", "returned"),
        ("wrapped", "returned"),
    }
    assert old == {
        "attention": "sdpa",
        "precision": "fp32",
        "quantization": "none",
        "packing": "padded",
        "kernels": "none",
        "compilation": "off",
        **{knob: implied for knob, implied in IMPLIED.items() if implied and knob in OF_SOME_WORK},
        WRAPPER: "plain",
        CALL: "off",
    }
    assert labels == {
        "sdpa · fp32",
        "sdpa · fp32 · wrapped",
        "sdpa · fp32 · returned",
        "sdpa · fp32 · returned · wrapped",
    }


@pytest.mark.slow
def test_their_lines_are_pasted_and_loaded(tuned: int, run: Run, place: Path, tmp_path: Path) -> None:
    """Were both confirmed faster, the script has their lines and runs without their files, and advisor.load does them too."""
    shutil.copy(place / "advisor.db", tmp_path / "advisor.db")
    confirmed = f"sqlite:///{tmp_path}/advisor.db"
    with Store.open(confirmed, write=True) as store:
        store.save_comparisons(tuned, [Comparison(BOTH.key, DEFAULT.key, (1.50, 1.51, 1.49))])
    run = partial(run, ADVISOR_DATABASE_URL=confirmed)
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, *ONLY, "--format", "json"))
    script = tmp_path / "script.py"
    script.write_text(run("-m", "advisor", "suggest", MODEL, *FLAGS, *ONLY, "--format", "python"))
    code = (
        "import advisor\n"
        f"ready = advisor.load({MODEL!r}, lengths=8, padding=0.3, batch=4, batches=1, quality='exact', device='cpu',"
        " only={'attention': 'sdpa', 'packing': 'padded', 'compilation': 'off'})\n"
        "call = ready.collate([[20, 21, 22], [23, 24]])\n"
        "print(call['output_hidden_states'], sum('MadeUp' in type(m).__name__ for m in ready.model.modules()),"
        " tuple(ready.results([[20, 21, 22], [23, 24]]).shape))\n"
    )

    assert answer["recommendation"]["configuration"] == BOTH.spelled
    assert "def in_wrappers(" in script.read_text()
    assert "call |= {'output_hidden_states': True}" in script.read_text()
    assert run(str(script), plugins="", PYTHONPATH="").splitlines()[-1].endswith(" tokens/s")
    assert run("-c", code).splitlines()[-1] == "True 4 (2, 2048)"


def test_they_are_named_on_the_command_line_and_listed(tuned: int, run: Run) -> None:
    """--only and --why-not take their choices, the probe lists them."""
    dry = run(
        "-m", "advisor", "tune", MODEL, *FLAGS, "--only", f"{WRAPPER}=wrapped", "--only", f"{CALL}=off", "--dry-run"
    )
    why = run("-m", "advisor", "suggest", MODEL, *FLAGS, *ONLY, "--why-not", f"{CALL}=returned")
    listed = run("-m", "advisor", "probe", "--device", "cpu")

    assert "sdpa · fp32 · wrapped" in dry
    assert "sdpa · fp32 · returned" not in dry
    assert "× the default" in why
    assert all(name in listed for name in (WRAPPER, CALL, "wrapped", "returned"))


def test_they_have_their_rows_in_the_support_table(run: Run) -> None:
    """A row a choice, with its rule and its source; of one workload, which takes a fifth of the time."""
    code = "from advisor.show import support; support._WORKLOADS = support._WORKLOADS[:1]; support.main([])"
    table = run("-c", code).splitlines()
    (wrapped,) = [line for line in table if "`wrapped`" in line]
    (returned,) = [line for line in table if "`returned`" in line]

    assert wrapped.endswith("| exact | Z3 | [source](https://example.org/made-up-wrapper) |")
    assert returned.startswith(f"| {CALL} | `returned` | all hidden states | yes | yes | yes | exact |")


def test_without_the_plugin_its_rows_are_said_to_be_unknown(tuned: int, run: Run, place: Path) -> None:
    """What a knob that is not there any more did is nobody's guess: its rows are listed, rejected in words, and never run."""
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, *ONLY, "--format", "json", plugins="", status=0))
    why = {tuple(sorted(each["configuration"].items())): each["objections"] for each in answer["rejected"]}
    (number,) = sql(
        place, f"SELECT number FROM v_trials WHERE study = {tuned} AND requested LIKE '%returned · wrapped'"
    )[0]
    listed = run("-m", "advisor", "trials", "--study", str(tuned), plugins="")
    refused = run("-m", "advisor", "reproduce", f"{tuned}.{number}", plugins="", status=2)

    assert answer["recommendation"]["configuration"] == DEFAULT.spelled
    assert len(why) == 3
    for choices, objections in why.items():
        names = [knob for knob, _ in choices if knob in (WRAPPER, CALL)]
        assert objections == [
            f"what ran is not known here: there is no knob {knob} (it says {dict(choices)[knob]}); "
            "name the module that has it in ADVISOR_PLUGINS"
            for knob in names
        ]
    assert "sdpa · fp32 · returned · wrapped" in listed
    assert "this trial can't be run here: there is no knob made-up-" in refused
    assert len(refused.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "KNOBS = [Knob('odd', 'odd', False, {'on': Choice('odd', 'on', '')}, str, str)]",
            "its knob odd implies no choice",
        ),
        ("KNOBS = [Knob('odd', 'odd', False, {}, str, str, implied='off')]", "the knob odd has no choice 'off'"),
        (
            "KNOBS = [Knob('packing', '', False, {'off': Choice('packing', 'off', '')}, str, str, implied='off')]",
            "there is a knob 'packing' already",
        ),
        (
            "KNOBS = [Knob('odd', '', False, {'off': Choice('other', 'off', '')}, str, str, implied='off')]",
            "has choices of another knob or name: off",
        ),
        (
            "KNOBS = [Knob('O d', '', False, {'off': Choice('O d', 'off', '')}, str, str, implied='off')]",
            "a knob's name is of small letters, digits, _ and -, not 'O d'",
        ),
        ("CHOICES = [Choice('odd', 'off', '')]", "'off' is a choice of 'odd', which is no knob"),
        ("", "it has none of KINDS, KNOBS, CHOICES"),
        ("KNOBS = [Knob('odd')]", "TypeError: Knob.__init__() missing"),
        ("CHOICES = [choice]", "NameError: name 'choice' is not defined"),
        ("CHOICES = [", "SyntaxError: "),
    ],
    ids=[
        "implies nothing",
        "implies what it has not",
        "is there already",
        "another's choice",
        "no name",
        "no knob",
        "empty",
        "an argument is missing",
        "an unknown name",
        "no Python",
    ],
)
def test_a_knob_that_cant_be_is_refused_in_a_line(run: Run, tmp_path: Path, code: str, words: str) -> None:
    """A plugin's mistake is one line that names its module, and nothing is done."""
    (tmp_path / "odd_plugin.py").write_text(f"from advisor.knobs.choice import Choice, Knob\n{code}\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    refused = run("-m", "advisor", "probe", plugins="odd_plugin", PYTHONPATH=path, status=2)

    assert "ADVISOR_PLUGINS names 'odd_plugin', which can't be used: " in refused
    assert words in refused
    assert len(refused.splitlines()) == 1


def test_another_meaning_of_what_is_left_out_is_refused(tuned: int, run: Run, tmp_path: Path) -> None:
    """A knob of the same name that implies another choice would change what is stored: neither is it read nor written."""
    text_of = (HERE / "plugins" / "made_up_wrapper.py").read_text()
    (tmp_path / "made_up_wrapper.py").write_text(text_of.replace('"plain", "wrapped"', '"bare", "wrapped"'))
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(HERE / "plugins")])
    for command in (["suggest", MODEL, *FLAGS, *ONLY], ["tune", MODEL, *FLAGS, *ONLY, "--trials", "1"]):
        refused = run("-m", "advisor", *command, PYTHONPATH=path, status=2)
        assert f"a configuration that says nothing of {WRAPPER} has plain in this database, and bare here" in refused
