"""What people see on a screen of 80 columns and on pipes: a real tune's lines, the order of an answer, labels, rows, help."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import shlex
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_databases import probed

from advisor.asking.question import question_of
from advisor.errors import BadInput
from advisor.faces.arguments import build_parser, kind_in
from advisor.faces.cli import run
from advisor.faces.examples import ASKED, EXAMPLES
from advisor.machine import probe, processors
from advisor.nouns.configuration import Configuration
from advisor.show.formats import FORMATS
from advisor.show.rows import as_csv
from advisor.storage.store import Store
from advisor.workloads import Kind, kind_named, names

MODEL = str(Path(__file__).parent / "models" / "causal")
# three quarters are padding: packing is about three times the default, so a busy machine finds a winner to confirm too
WORK = [
    MODEL,
    "--lengths",
    "256",
    "--padding",
    "0.75",
    "--batch",
    "4",
    "--batches",
    "2",
    "--device",
    "cpu",
    "--quality",
    "exact",
]
SUGGEST = ["suggest", *WORK]

Ask = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Tuned:
    """A real tune whose stderr was a terminal of 80 columns and whose stdout was a pipe."""

    url: str
    status: int
    out: str
    screen: str


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Tune four configurations, with three blocks."""
    url = probed(f"sqlite:///{tmp_path_factory.mktemp('screen')}/advisor.db")
    command = [sys.executable, "-m", "advisor", "tune", *WORK, "--trials", "4", "--blocks", "3"]
    variables = {**os.environ, "ADVISOR_DATABASE_URL": url, "TERM": "xterm-256color"}
    variables.pop("COLUMNS", None)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=variables) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:
                break
            if not more:
                break
            seen += more
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(ours)
    return Tuned(url, process.returncode, out, seen.decode())


@pytest.fixture
def ask(tuned: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a command of this process on what was tuned: its status, and its two streams."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", tuned.url)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        return (status, *capsys.readouterr())

    return command


def lines_of(screen: str) -> list[str]:
    """Return what a terminal was sent in lines, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).replace("\r", "\n").splitlines()


# ------------------------------------------------------------------------------------------------------------ a tune


def test_the_answer_of_a_tune_is_on_stdout_alone(tuned: Tuned, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress goes to stderr; stdout has what `suggest` prints of the same, and what is recommended stands last."""
    assert tuned.status in (0, 3)  # where the machine is busy, three blocks may not confirm it
    said = " ".join(tuned.out.split())
    assert said.count("▸ ") == 1
    assert "▸" not in tuned.screen
    assert "configurations are admissible" in tuned.screen
    assert tuned.out.index("runner-up") < tuned.out.index("▸") < tuned.out.index("from transformers import")
    monkeypatch.delenv("COLUMNS")  # as wide as its pipe was
    _, again, _ = ask(*SUGGEST)
    assert " ".join(again.split()) == said


def test_a_trial_is_a_line_of_eighty_columns(tuned: Tuned) -> None:
    """Number, label, figure, and the ratio or the block: none is broken or longer than the screen, and none is missing."""
    lines = lines_of(tuned.screen)
    trials = [line for line in lines if re.match(r" *\d+ \S+ · ", line)]
    searched = [line for line in trials if re.search(r"tokens/s +\d\.\d\d ×$", line)]
    pruned = [line for line in trials if " pruned " in line]  # where the machine is busy
    blocks = [line for line in trials if re.search(r"tokens/s +block \d$", line)]

    assert searched, lines
    assert len(searched) + len(pruned) >= 3, lines
    assert len(blocks) >= 2, lines
    assert max(map(len, lines)) <= 80
    assert any("━" in line and "trial" in line for line in lines)  # the bar, with what is left beside it
    assert any(line.startswith("now ") for line in lines)
    assert any(line.startswith("best ") and "× default" in line for line in lines)


def test_no_line_ends_with_blanks(ask: Ask) -> None:
    """A table is filled up with blanks inside, and no line of it outside."""
    for command in ([*SUGGEST, "--refusals", "--pareto"], ["trials"], ["show", "1.0"], ["probe"]):
        _, out, _ = ask(*command)
        assert out
        assert [line for line in out.splitlines() if line != line.rstrip()] == []


# --------------------------------------------------------------------------------------------------------- an answer


def test_refusals_are_a_count_unless_they_are_asked_for(ask: Ask) -> None:
    """One line says how many rules refuse something; --refusals has each with its reason, above what is recommended."""
    _, plain, _ = ask(*SUGGEST)
    _, whole, _ = ask(*SUGGEST, "--refusals")

    assert re.search(r"^\d+ rules refuse other choices \(--refusals lists them, and why\)$", plain, re.MULTILINE)
    assert "attention=flash_attention_2" not in plain
    assert "attention=flash_attention_2" in whole
    assert "--refusals lists" not in whole
    assert whole.index("attention=flash_attention_2") < whole.index("▸")


def test_why_not_fits_the_screen_and_its_command_is_whole(ask: Ask) -> None:
    """Sentences are broken between words; a command to copy is one line."""
    status, out, _ = ask("suggest", *WORK[:-2], "--why-not", "bf16")
    lines = out.splitlines()

    assert status == 0
    commands = [line for line in lines if "advisor tune" in line]
    assert len(commands) == 1
    assert commands[0].startswith(("to go on: ", "to try it: "))
    shlex.split(commands[0].partition(": ")[2])
    assert max(len(line) for line in lines if line not in commands) <= 80


@pytest.mark.parametrize("form", ["csv", "python", "env"])
def test_why_not_is_told_in_words_alone(ask: Ask, form: str) -> None:
    """A sentence is nothing to paste and no row: the format is refused, not passed over."""
    status, out, said = ask("suggest", *WORK, "--why-not", "bf16", "--format", form)
    assert (status, out) == (2, "")
    assert f"--why-not is told in words, not as {form}" in said


def test_a_label_is_one_in_every_form_and_is_taken_back(tuned: Tuned, ask: Ask) -> None:
    """What text prints, JSON and SQL have, CSV has, and --only, --why-not and show take."""
    payload = json.loads(ask(*SUGGEST, "--format", "json")[1])
    labels = {each["label"] for each in [*payload["runners_up"], payload["recommendation"]]}
    _, text, _ = ask(*SUGGEST)
    rows = {row["configuration"] for row in csv.DictReader(io.StringIO(ask(*SUGGEST, "--csv")[1]))}
    listed = {row["configuration"] for row in csv.DictReader(io.StringIO(ask("trials", "--csv")[1]))}
    with Store.open(tuned.url, write=False) as store:
        stored = {str(trial.requested) for trial in store.trials(1)}
    rejected = {each["label"] for each in payload["rejected"]}  # where a busy machine had one pruned
    assert labels | rejected == rows
    assert len(rows) >= 3
    assert rows <= listed == stored
    for label in labels:
        assert label in text
        status, _, error = ask(*SUGGEST, "--why-not", label)
        assert (status, error) == (0, "")
        status, out, _ = ask("show", "1", label, "--format", "json")
        assert (status, json.loads(out)["trial"]["label"]) == (0, label)
        asked = question_of(MODEL, {"only": (label,)})
        assert asked.objective.leaves(Configuration.of(next(each for each in _spelled(payload, label))))
        assert sum(asked.objective.leaves(Configuration.of(each["configuration"])) for each in _measured(payload)) == 1


def _measured(payload: dict[str, list[dict[str, dict[str, str]]]]) -> list[dict[str, dict[str, str]]]:
    return [*payload["runners_up"], payload["recommendation"]]  # type: ignore[list-item]


def _spelled(payload: dict[str, list[dict[str, dict[str, str]]]], label: str) -> list[dict[str, str]]:
    return [each["configuration"] for each in _measured(payload) if each["label"] == label]  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "1", "sdpa"], "'sdpa' is no configuration's label"),
        (["show", "1", "eager · bf16 · packed"], "study 1 has no trial of eager · bf16 · packed in its search"),
        (["show", "77", "sdpa · fp32"], "there is no study 77"),
        (["show", "1.0", "sdpa · fp32"], "before a label stands a study's number, for example 3, not '1.0'"),
        ([*SUGGEST, "--only", "sdpa · fp99"], "'sdpa · fp99' is no configuration's label"),
    ],
    ids=["half", "never tried", "no study", "an id", "no choice"],
)
def test_what_is_no_label_is_said(ask: Ask, arguments: list[str], words: str) -> None:
    """In a line, with status 2."""
    status, out, error = ask(*arguments)
    assert (status, out) == (2, "")
    assert words in error
    assert error.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- rows and help


def test_rows_hold_what_can_be_counted(ask: Ask) -> None:
    """CSV of an answer, of trials and of choices: a row each, numbers as numbers, the same columns in every row."""
    answer = list(csv.DictReader(io.StringIO(ask(*SUGGEST, "--format", "csv")[1])))
    assert [row["recommended"] for row in answer].count("1") == 1
    assert [row["is_default"] for row in answer].count("1") == 1
    assert all(float(row["tokens_per_s"]) > 0 and int(row["peak_bytes"]) > 0 for row in answer)
    choices = list(csv.DictReader(io.StringIO(ask("probe", "--csv")[1])))
    assert {row["available"] for row in choices} == {"0", "1"}
    assert all(row["reason"] for row in choices if row["available"] == "0")
    trials = list(csv.DictReader(io.StringIO(ask("trials", "--csv", "--limit", "0")[1])))
    assert {row["phase"] for row in trials} == {"search", "confirm"}


def test_a_cell_is_never_a_formula_or_several_rows() -> None:
    """Reasons come from libraries: a line feed in one, or what a spreadsheet would compute, stays a text."""
    (row,) = csv.DictReader(io.StringIO(as_csv([{"reason": "=1+1\nnext", "left": None, "is": True}])))
    assert row == {"reason": "'=1+1 next", "left": "", "is": "1"}


def test_every_example_of_the_help_is_a_command() -> None:
    """Three a command, and those that answer what people ask: the parser takes each."""
    commands = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    assert set(EXAMPLES) == set(commands)
    for name, examples in EXAMPLES.items():
        assert len(examples) == 3
        assert f"advisor {name}" in " ".join(line for line, _ in examples)
        told = commands[name].format_help()
        assert all(line in told for line, _ in examples)
    for line in [line for _, line in ASKED] + [line for examples in EXAMPLES.values() for line, _ in examples]:
        for part in re.split(r" [|<>] ", line.partition("ADVISOR_DATABASE_URL=sqlite:///team.db ")[2] or line):
            words = shlex.split(part)
            if words[0] == "advisor":
                build_parser(kind_in(words[1:])).parse_args(words[1:])


@pytest.mark.parametrize(
    "kind", [kind for kind in map(kind_named, names()) if kind.commands], ids=lambda kind: kind.name
)
def test_every_example_of_a_kind_of_work_is_a_command(kind: Kind) -> None:
    """Its help shows its own, of that kind, and the parser takes each."""
    parser = build_parser(kind)
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for name, examples in kind.commands.items():
        told = commands[name].format_help()
        for line, _ in examples:
            words = shlex.split(line)
            assert line in told
            assert kind_in(words[1:]) is kind
            parser.parse_args(words[1:])


def test_the_help_says_what_each_format_is() -> None:
    """Wherever one can be asked for."""
    commands = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    for name, forms in {"tune": FORMATS, "suggest": FORMATS, "reproduce": {"python": FORMATS["python"]}}.items():
        told = " ".join(commands[name].format_help().split())
        assert [form for form, each in forms.items() if f"{form}: {each.summary}" not in told] == []
    assert "yaml:" not in commands["reproduce"].format_help()


def test_flags_stand_in_groups() -> None:
    """Those of the work, of what is wanted, of what may be spent, of where, and of what is printed, each under its head."""
    commands = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    told = commands["tune"].format_help()
    heads = ["the work:", "what is wanted:", "how much may be spent:", "where:", "what is printed:", "examples:"]
    places = [told.index(f"\n{head}") for head in heads]
    assert places == sorted(places)
    assert places[0] < told.index("--lengths ") < places[1] < told.index("--quality ", places[1]) < places[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_can_complete_it(ask: Ask, shell: str) -> None:
    """The script names the commands and their flags; bash's is one that bash reads."""
    status, out, _ = ask("completion", shell)
    assert status == 0
    for word in ("suggest", "why-not", "quality"):
        assert word in out
    if shell == "bash":
        asked = "source /dev/stdin && COMP_WORDS=(advisor sug) COMP_CWORD=1 && _shtab_advisor && echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", asked], input=out, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["suggest"], done.stderr


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("asked", ["", "1", "2,4"])
def test_threads_are_those_that_torch_takes(asked: str) -> None:
    """Told nothing, or by OMP_NUM_THREADS: what the product assumes is what torch says."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    variables |= {"OMP_NUM_THREADS": asked} if asked else {}
    code = "import torch; from advisor.machine.processors import usual_threads; print(torch.get_num_threads(), usual_threads())"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    torchs, ours = done.stdout.split()
    assert torchs == ours


def test_more_threads_than_processors_are_refused(ask: Ask) -> None:
    """They would wait for one another: a line, with how many there are."""
    there = len(processors.allowed())
    for command in (["tune", *WORK, "--threads", str(there + 1)], ["probe", "--threads", str(there + 1)]):
        status, out, error = ask(*command)
        assert (status, out) == (2, "")
        assert f"--threads {there + 1}: this process may use {there} processor" in error
    probe.refuse_too_many(there)
    with pytest.raises(BadInput, match="may use"):
        probe.refuse_too_many(there + 1)


def test_a_machine_that_was_not_left_alone_is_told(
    tuned: Tuned, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where disturbed rounds had to be kept the answer says so, with the reason that most of them had; and where not, not."""
    copy = tmp_path / "copy.db"
    with sqlite3.connect(tuned.url.removeprefix("sqlite:///")) as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute("UPDATE measurements SET device_state = '{}'")
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{copy}")
    assert "not left alone" not in ask(*SUGGEST)[1]
    states = [{"at_s": 1.0}, {"disturbed": "its threads waited"}, {"disturbed": "its threads waited"}]
    with sqlite3.connect(copy) as target:
        told = json.dumps({"after_each_round": states})
        target.execute("UPDATE measurements SET device_state = ? WHERE metric = 'round_s'", (told,))
    words = "the machine was not left alone: 2 of the 3 rounds were disturbed (its threads waited)"
    assert words in " ".join(ask(*SUGGEST)[1].split())
    with sqlite3.connect(copy) as target:
        target.execute("UPDATE measurements SET device_state = '{broken' WHERE metric = 'round_s'")
    status, out, _ = ask(*SUGGEST)
    assert (status == tuned.status, "▸" in out) == (True, True)
    assert "whether the machine was left alone is not known" in " ".join(out.split())
    source.close()
    target.close()


def test_a_study_that_goes_on_elsewhere_is_not_lost_without_a_word(
    tuned: Tuned, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of it here stays, and that the file has another state of it is said; the same again says nothing."""
    _, whole, _ = ask("export")
    lines = [json.loads(line) for line in whole.splitlines()]
    study = next(line for line in lines if "state" in line.get("study", {}) or "state" in line)
    (tmp_path / "whole.jsonl").write_text(whole, encoding="utf-8")
    changed = whole.replace('"state":"done"', '"state":"interrupted"')
    assert changed != whole, study
    (tmp_path / "half.jsonl").write_text(changed, encoding="utf-8")
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/elsewhere.db")
    assert ask("import", str(tmp_path / "half.jsonl"))[2] == ""
    assert ask("import", str(tmp_path / "half.jsonl"))[2] == ""
    status, out, error = ask("import", str(tmp_path / "whole.jsonl"))
    assert (status, "new here: nothing" in out) == (0, True)
    assert "1 study is here with other trials than in the file, and was left as it is" in error


def test_it_is_said_that_it_fits(ask: Ask) -> None:
    """Asked within how much memory, the answer is the peak beside what is allowed."""
    _, out, _ = ask(*SUGGEST, "--max-memory", "24GiB")
    assert re.search(r"peak \d+ MiB of the 24.0 GiB allowed: it fits", out)
