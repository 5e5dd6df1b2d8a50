"""The command line, run as people run it: a process of its own, its two streams and its exit status."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pty
import re
import resource
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest
from made_databases import laid, probed
from made_models import SMALL
from sqlalchemy import create_engine, text

import advisor as package
from advisor.advice.suggest import recommend
from advisor.asking.question import Question, effort_of, question_of
from advisor.errors import BadInput
from advisor.faces.arguments import build_parser
from advisor.faces.cli import run
from advisor.knobs.choice import Reason, Verdict
from advisor.machine import probe
from advisor.models.checkpoint import find_model
from advisor.nouns.answer import Prospect, SearchEnd, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import figure
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.reading import read_duration, read_latency, read_size, read_trial
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.search.space import Space
from advisor.show import report
from advisor.show.console import console
from advisor.show.probe_report import probe_text, rate
from advisor.show.progress import Progress
from advisor.show.refused import refusal_rows
from advisor.storage.store import Store
from advisor.study.tuning import Job
from advisor.terminal import duration
from advisor.workloads.forward import Forward

ROOT = Path(package.__file__).parent.parent
MODEL = str(Path(__file__).parent / "models" / "causal")

#: The workload that is measured here, and its flags.
WORKLOAD = Forward((8, 8), 2)
FLAGS = ["--lengths", "8", "--padding", "0", "--batch", "2", "--batches", "1"]

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
SORTED, EAGER, BF16 = (
    DEFAULT.replaced(packing="sorted"),
    DEFAULT.replaced(attention="eager"),
    DEFAULT.replaced(precision="bf16"),
)
FACTS = SMALL

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which everything that the command could write would lie under `home`."""
    places = ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME")
    dropped = ("HF_", "ADVISOR_", "TRANSFORMERS_", "PYTHONUNBUFFERED", "COLUMNS", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    own = {name: str(home / name.lower()) for name in places}
    return {
        **kept,
        **own,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "ADVISOR_LOCK_DIR": str(home),
        **more,
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give an empty home, in whose subdirectory the command's database would be."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def process(home: Path) -> Command:
    """Return the command in a process of its own: for what only a process has."""

    def command(*arguments: str, **more: str) -> Done:
        line = [sys.executable, "-m", "advisor", *arguments]
        return subprocess.run(
            line, capture_output=True, text=True, cwd=home, env=environment(home, **more), check=False, timeout=240
        )

    return command


@pytest.fixture
def advisor(home: Path, in_process: Command) -> Command:
    """Return the command: the same function with the same streams, variables and folder, in this process."""

    def command(*arguments: str, **more: str) -> Done:
        return in_process(*arguments, cwd=home, env=environment(home, **more))

    return command


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file and directory below a folder, with the files' contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def line_of(done: Done, status: int) -> str:
    """Return the one line of a command that ended with this status and printed nothing else."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("advisor: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# --------------------------------------------------------------------------------------------------------- bad input

#: Arguments of `advisor`, and words of the line they give.
BAD = {
    "no command": ([], "COMMAND"),
    "unknown command": (["frobnicate"], "invalid choice: 'frobnicate'"),
    "no model": (["tune"], "MODEL"),
    "unknown flag": (["tune", MODEL, "--frobnicate"], "--frobnicate"),
    "unknown flag of two lines": (["tune", MODEL, "--two\nlines"], "--two lines"),
    "length 0": (["tune", MODEL, "--lengths", "0"], "--lengths must be at least 1, not 0"),
    "length negative": (["tune", MODEL, "--lengths", "-5"], "--lengths must be at least 1, not -5"),
    "length in words": (["tune", MODEL, "--lengths", "many"], "not 'many'"),
    "length in a list 0": (["tune", MODEL, "--lengths", "8,0"], "--lengths must be at least 1, not 0"),
    "length in a list words": (["tune", MODEL, "--lengths", "8,x"], "not '8,x'"),
    "length empty": (["tune", MODEL, "--lengths", ""], "not ''"),
    "length beyond": (["tune", MODEL, "--device", "cpu", "--lengths", "2049"], "2049 is beyond the model's 2048"),
    "length of many beyond": (["tune", MODEL, "--device", "cpu", "--lengths", "8,4096"], "4096 is beyond the model's"),
    "padding 1": (["tune", MODEL, "--padding", "1"], "--padding must be at least 0 and below 1, not 1"),
    "padding negative": (["tune", MODEL, "--padding", "-0.1"], "--padding must be at least 0 and below 1, not -0.1"),
    "padding nan": (["tune", MODEL, "--padding", "nan"], "--padding must be"),
    "padding in words": (["tune", MODEL, "--padding", "some"], "--padding"),
    "padding unreachable": (["tune", MODEL, "--padding", "0.9", "--batch", "2"], "--padding 0.9 can't be met"),
    "padding of a list": (["tune", MODEL, "--padding", "0.5", "--lengths", "8,4"], "--padding goes with one number"),
    "batch 0": (["tune", MODEL, "--batch", "0"], "at least 1, not 0"),
    "batch of a list 0": (["tune", MODEL, "--batch", "0", "--lengths", "8,4"], "--batch must be at least 1, not 0"),
    "batches 0": (["tune", MODEL, "--batches", "0"], "at least 1, not 0"),
    "memory in bananas": (["tune", MODEL, "--max-memory", "3bananas"], "--max-memory must be a size such as 24GiB"),
    "memory without a unit": (["tune", MODEL, "--max-memory", "24"], "--max-memory 24 is so many bytes (write 24GiB"),
    "memory 0": (["tune", MODEL, "--max-memory", "0"], "not '0'"),
    "memory empty": (["tune", MODEL, "--max-memory", ""], "not ''"),
    "payback nonsense": (["tune", MODEL, "--payback", "soon"], "--payback must be a duration"),
    "payback of a number of trials": (["tune", MODEL, "--payback", "1h", "--trials", "3"], "--payback ends a search"),
    "payback of memory": (
        ["tune", MODEL, "--payback", "1h", "--objective", "memory"],
        "--payback weighs time against time",
    ),
    "budget nonsense": (["tune", MODEL, "--budget", "nonsense"], "--budget must be a duration"),
    "budget 0": (["tune", MODEL, "--budget", "0s"], "--budget must be longer than 0, not '0s'"),
    "budget negative": (["tune", MODEL, "--budget", "-5s"], "--budget must be longer than 0, not '-5s'"),
    "latency negative": (
        ["suggest", MODEL, "--max-latency", "-5ms"],
        "--max-latency must be longer than 0, not '-5ms'",
    ),
    "memory negative": (["suggest", MODEL, "--max-memory", "-1GiB"], "--max-memory must be more than 0, not '-1GiB'"),
    "padding in per cent": (
        ["tune", MODEL, "--padding", "50%"],
        "--padding must be a number, not '50%' (write 0.5)",
    ),
    "batches in words": (["tune", MODEL, "--batches", "some"], "--batches must be a whole number, not 'some'"),
    "a flag, nearly": (
        ["tune", MODEL, "--bugdet", "5m"],
        "unrecognized arguments: --bugdet 5m (did you mean --budget? see advisor tune --help)",
    ),
    "a flag with more than its name": (
        ["tune", MODEL, "--workload", "train", "--batch-size", "8"],
        "unrecognized arguments: --batch-size 8 (did you mean --batch? see advisor tune --workload train --help)",
    ),
    "a flag of work, of what is no work": (["probe", "--lengths", "5"], "--lengths 5 (see advisor probe --help)"),
    "a flag of other work": (
        ["tune", MODEL, "--targets=q_proj"],
        "unrecognized arguments: --targets=q_proj (--targets goes with --workload train; see advisor tune --help)",
    ),
    "a flag with its value, nearly": (["suggest", MODEL, "--why_not=nf4"], "(did you mean --why-not? see"),
    "a command, nearly": (
        ["tnue", MODEL],
        "argument COMMAND: invalid choice: 'tnue' (did you mean tune? see advisor --help)",
    ),
    "a format, nearly": (
        ["suggest", MODEL, "--format", "pyhton"],
        "--format: invalid choice: 'pyhton' (did you mean python? see advisor suggest --help)",
    ),
    "a tier, nearly": (
        ["tune", MODEL, "--quality", "7bit"],
        "'7bit' (did you mean 8bit or 4bit? see advisor tune --help)",
    ),
    "a choice, nearly": (
        ["suggest", MODEL, "--only", "compilation=compield"],
        "--only: compilation has no choice 'compield' (did you mean compiled?)",
    ),
    "a knob, nearly": (
        ["suggest", MODEL, "--fix", "compilatoin=compiled"],
        "--fix: there is no knob 'compilatoin' (did you mean compilation?)",
    ),
    "asked, nearly": (
        ["suggest", MODEL, "--why-not", "compilatoin=compiled"],
        "--why-not: there is no knob 'compilatoin' (did you mean compilation?)",
    ),
    "a rule in small letters": (
        ["suggest", MODEL, "--ignore-rule", "c12"],
        "no rule 'c12' (did you mean C12? advisor tune MODEL --dry-run names the rules",
    ),
    "a model, nearly": (
        ["suggest", MODEL.replace("causal", "cuasal")],
        f"no such file or directory: '{MODEL.replace('causal', 'cuasal')}' (did you mean {MODEL}?)",
    ),
    "a folder of models, nearly": (
        ["suggest", f"{MODEL}/confg.json"],
        f"confg.json' (did you mean {MODEL}/config.json?)",
    ),
    "budget empty": (["tune", MODEL, "--budget", ""], "--budget must be a duration"),
    "timeout nonsense": (["tune", MODEL, "--timeout", "nonsense"], "--timeout must be a duration"),
    "trials 0": (["tune", MODEL, "--trials", "0"], "--trials must be at least 1, not 0"),
    "trials broken": (["tune", MODEL, "--trials", "1.5"], "--trials"),
    "threads 0": (["tune", MODEL, "--threads", "0"], "--threads must be at least 1, not 0"),
    "unknown output": (["tune", MODEL, "--output", "poems"], "--output: invalid choice: 'poems'"),
    "unknown quality": (["tune", MODEL, "--quality", "best"], "--quality: invalid choice: 'best'"),
    "unknown format": (["tune", MODEL, "--format", "xml"], "--format: invalid choice: 'xml'"),
    "no rule's id": (["tune", MODEL, "--ignore-rule", "nonsense"], "--ignore-rule takes a rule's id such as P1"),
    "another command's flag": (
        ["suggest", MODEL, "--trials", "3"],
        "unrecognized arguments: --trials 3 (see advisor suggest --help)",
    ),
    "unknown rule": (
        ["tune", MODEL, "--ignore-rule", "P1", "--ignore-rule", "P99"],
        "there is no rule 'P99' (did you mean P19? ",
    ),
    "unknown rule, asked": (
        ["suggest", MODEL, "--ignore-rule", "Z9"],
        "no rule 'Z9' (did you mean Q9 or A9? advisor tune MODEL --dry-run names the rules",
    ),
    "no such GPU": (["tune", MODEL, "--device", "cuda:77"], "cuda:77"),
    "no such device": (["tune", MODEL, "--device", "tpu"], "must be cpu, cuda or cuda:<number>, not 'tpu'"),
    "why not what": (["suggest", MODEL, "--why-not", "nonsense"], "no choice 'nonsense' (advisor probe lists them)"),
    "suggest length 0": (["suggest", MODEL, "--lengths", "0"], "--lengths must be at least 1"),
    "suggest beyond": (["suggest", MODEL, "--lengths", "2049"], "beyond the model's 2048 positions"),
    "suggest on a tpu": (["suggest", MODEL, "--device", "tpu"], "--device must be"),
    "suggest threads 0": (["suggest", MODEL, "--threads", "0"], "--threads must be"),
    "probe of a tpu": (["probe", "--device", "tpu"], "--device must be"),
    "db action": (["db", "frobnicate"], "invalid choice: 'frobnicate'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(advisor: Command, tmp_path: Path, case: str) -> None:
    """What can't be meant is refused with status 2 and one line that names it; no file and no directory is made."""
    arguments, words = BAD[case]
    before = tree(tmp_path)

    assert words in line_of(advisor(*arguments), 2)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("case", ["no command", "length 0", "length beyond", "no such GPU", "why not what"])
def test_bad_input_is_told_by_the_whole_process(process: Command, tmp_path: Path, home: Path, case: str) -> None:
    """The same in a process of its own, of each place where it is found: the parser, the model's files, the device."""
    arguments, words = BAD[case]
    before = tree(tmp_path)

    assert words in line_of(process(*arguments), 2)
    assert tree(tmp_path) == before


#: The same of what can be told from the words alone, or from the model's files: no process of their own is needed.
TOLD = {
    "batch in words": (["tune", MODEL, "--batch", "some"], "--batch: must be a whole number or auto, not 'some'"),
    "batch auto of no batches": (["tune", MODEL, "--batch", "auto", "--batches", "0"], "must be at least 1, not 0"),
    "lengths twice": (
        ["tune", MODEL, "--lengths-from", "a.txt", "--lengths", "8"],
        "goes without --lengths and --padding",
    ),
    "file and padding": (["suggest", MODEL, "--lengths-from", "a.txt", "--padding", "0.3"], "goes without --lengths"),
    "file and batch 0": (["suggest", MODEL, "--lengths-from", "a.txt", "--batch", "0"], "must be at least 1, not 0"),
    "file and batches 0": (
        ["suggest", MODEL, "--lengths-from", "a.txt", "--batches", "0"],
        "must be at least 1, not 0",
    ),
    "no file": (["tune", MODEL, "--device", "cpu", "--lengths-from", "./a.txt"], "./a.txt: No such file or directory"),
    "no kind of file": (["suggest", MODEL, "--lengths-from", "a.parquet"], "a .txt file has one text a line"),
    "file without tokenizer": (["suggest", f"{MODEL}/config.json", "--lengths-from", "./a.txt"], "has no tokenizer"),
    "objective": (["tune", MODEL, "--objective", "beauty"], "--objective: invalid choice: 'beauty'"),
    "energy of a CPU": (["tune", MODEL, "--device", "cpu", "--objective", "energy"], "read from the GPU's counter"),
    "latency in words": (["tune", MODEL, "--max-latency", "soon"], "--max-latency must be a time such as 80ms or 0.5s"),
    "latency without unit": (["suggest", MODEL, "--max-latency", "80"], "not '80'"),
    "latency 0": (["suggest", MODEL, "--max-latency", "0ms"], "not '0ms'"),
    "only of nothing": (["tune", MODEL, "--only", "attention"], "--only: 'attention' is no configuration's label"),
    "only empty": (["tune", MODEL, "--only", "attention="], "not 'attention='"),
    "only a comma": (["tune", MODEL, "--only", "attention=sdpa,"], "not 'attention=sdpa,'"),
    "only of nothing near": (
        ["suggest", MODEL, "--only", "precision=exact"],
        "precision has no choice 'exact' (it has fp32,",
    ),
    "only of no knob": (["suggest", MODEL, "--only", "colour=red"], "there is no knob 'colour' (there are attention,"),
    "only of no choice": (
        ["suggest", MODEL, "--only", "precision=bf17"],
        "precision has no choice 'bf17' (did you mean bf16?)",
    ),
    "only twice": (["tune", MODEL, "--only", "precision=fp32", "--fix", "precision=bf16"], "precision is named twice"),
    "only of the batch": (["tune", MODEL, "--only", "batch=8"], "batch is a knob with --batch auto alone"),
    "fix of two": (["tune", MODEL, "--fix", "precision=fp32,bf16"], "--fix takes KNOB=CHOICE, not"),
    "fix of no knob": (
        ["tune", MODEL, "--fix", "compiled"],
        "(KNOB=CHOICE, or a whole configuration as it is printed)",
    ),
    "blocks": (["tune", MODEL, "--blocks", "-1"], "--blocks must be 0 or at least 3, not -1"),
    "one block": (
        ["tune", MODEL, "--blocks", "1"],
        "--blocks must be 0 or at least 3, not 1 (fewer than 3 decide nothing: 0 leaves the confirmation out)",
    ),
    "two blocks": (["reproduce-seed", "--blocks", "2"], "--blocks must be 0 or at least 3, not 2"),
    "budget without a unit": (["tune", MODEL, "--budget", "20"], "--budget 20 has no unit (write 20m or 20s)"),
    "timeout without a unit": (["tune", MODEL, "--timeout", "1.5"], "--timeout 1.5 has no unit (write 1.5m or 1.5s)"),
    "payback without a unit": (["tune", MODEL, "--payback", "2 "], "--payback 2 has no unit (write 2m or 2s)"),
    "budget of nothing": (
        ["tune", MODEL, "--budget", "0"],
        "--budget must be longer than 0, not '0'",
    ),
    "exhaustive and trials": (["tune", MODEL, "--exhaustive", "--trials", "3"], "--exhaustive measures all there is"),
    "dry run's script": (
        ["tune", MODEL, "--device", "cpu", "--lengths", "8", "--dry-run", "--format", "python"],
        "--dry-run measures nothing",
    ),
    "dry run beyond": (["tune", MODEL, "--device", "cpu", "--lengths", "4096", "--dry-run"], "beyond the model's 2048"),
    "ceilings of a tpu": (["probe", "--ceilings", "--device", "tpu"], "--device must be"),
    "probe threads 0": (["probe", "--threads", "0"], "--threads must be at least 1"),
    "seed beyond": (
        ["tune", MODEL, "--seed", "18446744073709551615"],
        "--seed must be a whole number below 2147483648, not 18446744073709551615",
    ),
    "seed beyond a row": (["tune", MODEL, "--seed", "2147483648"], "--seed must be a whole number below 2147483648"),
    "trials beyond": (["tune", MODEL, "--trials", "9" * 18], "--trials must be a whole number below 2147483648"),
    "study beyond": (["trials", "--study", "9" * 20], "--study: a study's number, as advisor trials lists them, not"),
    "study beyond, exported": (["export", "--study", "9" * 20], "--study: a study's number"),
    "memory beyond": (["tune", MODEL, "--max-memory", "9" * 400], "--max-memory must be a size such as 24GiB, not"),
    "memory beyond a unit": (["tune", MODEL, "--max-memory", "9999TiB"], "--max-memory must be from 1B to 1024TiB"),
    "memory below a byte": (["tune", MODEL, "--max-memory", "0.5B"], "from 1B to 1024TiB, not '0.5B'"),
    "latency beyond": (["tune", MODEL, "--max-latency", f"{'9' * 400}ms"], "--max-latency must be a time such as 80ms"),
    "latency of years": (["tune", MODEL, "--max-latency", f"{'9' * 20}ms"], "--max-latency must be at most 31536000s"),
    "budget beyond": (["tune", MODEL, "--budget", f"{'9' * 400}h"], "--budget must be a duration such as 90s"),
    "budget of years": (["tune", MODEL, "--dry-run", "--budget", f"{'9' * 20}h"], "--budget must be at most 8760h"),
    "timeout of years": (["tune", MODEL, "--timeout", f"{'9' * 20}h"], "--timeout must be at most 8760h, not"),
    "threads beyond": (["tune", MODEL, "--threads", "9" * 20], "--threads must be a whole number below"),
    "threads of no machine": (["probe", "--threads", "65536"], "--threads must be at most 65535, not 65536"),
    "nothing to import": (["import"], "FILE"),
    "nothing to show": (["show"], "ID"),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Flags that contradict one another, or name what is not there, end with status 2 and one line; nothing is made."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/advisor.db")
    monkeypatch.setenv("ADVISOR_START", "spawn")  # no worker is needed, and none is made ready
    monkeypatch.chdir(tmp_path)
    arguments, words = TOLD[case]
    assert run(arguments) == 2
    streams = capsys.readouterr()

    assert (streams.out, streams.err.count("\n")) == ("", 1)
    assert streams.err.startswith("advisor: ")
    assert words in streams.err
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(("text", "seconds"), [("80ms", 0.08), ("0.5s", 0.5), ("2 s", 2.0)])
def test_latencies_are_read(text: str, seconds: float) -> None:
    """A latency has a number and a unit, for milliseconds and seconds are both usual."""
    assert read_latency(text, "max_latency") == pytest.approx(seconds)


def test_ids_are_read() -> None:
    """A trial's id is its study and its number in it."""
    assert read_trial("3.17") == (3, 17)


def question_in(words: list[str]) -> Question:
    """Return what a command line asks."""
    options = build_parser().parse_args(words)
    return question_of(options.model, vars(options))


def test_one_objective_has_one_spelling() -> None:
    """--only and --fix in any order and spelling make the same objective, so that the same study is found."""
    spellings = (
        ["--only", "precision=fp32,bf16", "--fix", "attention=sdpa"],
        ["--only", "attention=sdpa", "--only", "precision=bf16,fp32,bf16"],
    )
    first, second = (question_in(["suggest", MODEL, *words]).objective for words in spellings)

    assert first == second
    assert first.only == (("attention", ("sdpa",)), ("precision", ("bf16", "fp32")))


def test_ten_minutes_are_spent_unless_something_else_bounds_it() -> None:
    """A budget in time is the default, and what an hour's work pays for; what is asked for takes their place, or bounds it."""
    budgets = [
        effort_of(vars(build_parser().parse_args(["tune", MODEL, *words.split()])), Objective()).budget
        for words in (
            "",
            "--trials 3",
            "--exhaustive",
            "--exhaustive --budget 2h --blocks 5",
            "--budget 2m",
            "--payback 8h",
            "--budget 2m --payback 30m",
        )
    ]

    assert budgets == [
        Budget(600.0, payback_s=3600.0),
        Budget(None, 3),
        Budget(exhaustive=True),
        Budget(7200.0, exhaustive=True, blocks=5),
        Budget(120.0),
        Budget(600.0, payback_s=28800.0),
        Budget(120.0, payback_s=1800.0),
    ]


@pytest.mark.parametrize(
    ("size", "count"),
    [("500MB", 5 * 10**8), ("24GiB", 24 * 2**30), ("1.5 kib", 1536), ("7b", 7), ("25769803776", 24 * 2**30)],
)
def test_sizes_are_read(size: str, count: int) -> None:
    """A size has a number and, in any case of letters, a decimal or a binary unit."""
    assert read_size(size, "max_memory") == count


@pytest.mark.parametrize(("duration", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("2 h", 7200)])
def test_durations_are_read(duration: str, seconds: float) -> None:
    """A duration has a number and a unit; Python's own numbers are seconds, and of a text alone nobody knows."""
    assert read_duration(duration, "timeout") == seconds
    assert read_duration(seconds, "timeout") == seconds
    with pytest.raises(BadInput, match="has no unit"):
        read_duration(duration.rstrip(" smh"), "timeout")
    with pytest.raises(BadInput, match="--timeout"):
        read_duration(f"{duration}x", "timeout")


# --------------------------------------------------------------------------------------------------------- databases


@contextmanager
def disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a small disk on a folder, where this process may."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def here(threads: int | None = None) -> Environment:
    """Return the environment of this machine's CPU, as the command reads it."""
    return probe.machine("cpu", threads).environment


TUNE = ["tune", MODEL, "--device", "cpu", *FLAGS, "--trials", "1"]
SUGGEST = ["suggest", MODEL, "--device", "cpu", *FLAGS]


def both(advisor: Command, url: str, *, of: tuple[list[str], ...] = (TUNE, SUGGEST)) -> list[str]:
    """Return what tune and suggest say in one line each of a database that they can't use."""
    return [line_of(advisor(*arguments, ADVISOR_DATABASE_URL=url), 2) for arguments in of]


def test_a_newer_database_is_left_alone(advisor: Command, tmp_path: Path) -> None:
    """A database from a newer advisor is named as that by tune, suggest and upgrade, and stays as it is."""
    url = f"sqlite:///{tmp_path}/newer.db"
    Store.open(url, write=True).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = tree(tmp_path)

    for line in both(advisor, url, of=(TUNE, SUGGEST, ["db", "upgrade"])):
        assert "from a newer advisor (revision 9999) (upgrade advisor)" in line
    assert tree(tmp_path) == before


def test_what_is_no_database_is_left_alone(advisor: Command, tmp_path: Path) -> None:
    """A file that is no database, and a directory, are told in a line and not touched."""
    (tmp_path / "words.db").write_text("no database at all, but long enough for one. " * 40)
    before = tree(tmp_path)

    for line in both(advisor, f"sqlite:///{tmp_path}/words.db"):
        assert "words.db is not an advisor database" in line
    for line in both(advisor, f"sqlite:///{tmp_path}"):
        assert "can't be opened" in line
    (line,) = both(advisor, f"sqlite:///{tmp_path}/words.db/below/advisor.db", of=(TUNE,))
    assert "can't be made" in line
    assert tree(tmp_path) == before


def test_a_url_that_is_none_is_told(advisor: Command, tmp_path: Path) -> None:
    """A database URL of an unknown kind, or none at all, is told without repeating its password."""
    before = tree(tmp_path)

    for url in ("mysql://me:s3cret@host/x", "postgresql://me:s3cret@host:port/x", "advisor.db"):
        for line in both(advisor, url, of=(TUNE, SUGGEST, ["db", "upgrade"])):
            assert "s3cret" not in line
            assert "ADVISOR_DATABASE_URL" in line
            assert "sqlite:///PATH or postgresql://USER@HOST/NAME" in line
    (line,) = both(advisor, "foo?password=s3cret", of=(SUGGEST,))
    assert "ADVISOR_DATABASE_URL is 'foo', which is no URL (sqlite:///PATH or postgresql://USER@HOST/NAME)" in line
    assert tree(tmp_path) == before


def test_a_server_that_does_not_answer_is_told(advisor: Command, tmp_path: Path) -> None:
    """A PostgreSQL server that nobody runs is not waited for, and never told with the password."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    before, began = tree(tmp_path), time.monotonic()
    for url in (f"postgresql://me:s3cret@127.0.0.1:{port}/x", f"postgres://me@127.0.0.1:{port}/x?password=s3cret"):
        for line in both(advisor, url):
            assert "can't be reached" in line
            assert str(port) in line
            assert "s3cret" not in line

    assert time.monotonic() - began < 60  # four times, on a busy machine
    assert tree(tmp_path) == before
    shown = advisor("db", "url", ADVISOR_DATABASE_URL=f"postgresql://me:s3cret@127.0.0.1:{port}/x")
    assert shown.stdout == f"postgresql://me:***@127.0.0.1:{port}/x\n"


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_read_only_database_is_read_and_not_written(advisor: Command, tmp_path: Path, what: str) -> None:
    """On a read-only disk, or with a read-only file, suggest answers and tune says in a line that it can't write."""
    with disk(tmp_path / "disk") as place:
        database = place / "advisor.db"
        stored(f"sqlite:///{database}")
        if what == "file":
            subprocess.run(["mount", "--bind", str(database), str(database)], check=True)
        target = str(database if what == "file" else place)
        subprocess.run(["mount", "-o", "remount,ro,bind" if what == "file" else "remount,ro", target], check=True)
        try:
            answered = advisor(*SUGGEST, "--format", "json", ADVISOR_DATABASE_URL=f"sqlite:///{database}")
            before = tree(place)
            (line,) = both(advisor, f"sqlite:///{database}", of=(TUNE,))
            after = tree(place)
        finally:
            if what == "file":
                subprocess.run(["umount", str(database)], check=True)

    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["verdict"] == "faster"
    assert "can't be" in line
    assert after == before


def test_a_full_disk_is_told(advisor: Command, tmp_path: Path) -> None:
    """Where the disk is full before anything could be measured, one line says so, and no rows are half written."""
    with disk(tmp_path / "disk", "64k") as place:
        (line,) = both(advisor, f"sqlite:///{place}/advisor.db", of=(TUNE,))

        assert "the disk is full" in line
        assert {path.name for path in place.iterdir()} <= {"advisor.db"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("form", ["text", "json", "python"])
def test_an_answer_that_can_not_be_written_is_an_error(tmp_path: Path, form: str) -> None:
    """Printing to a full disk gives status 2 and one line, for half an answer is none."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    command = [sys.executable, "-m", "advisor", *SUGGEST, "--format", form]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path, ADVISOR_DATABASE_URL=url),
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr


# ------------------------------------------------------------------------------------------------- what is not measured


def stored(
    url: str,
    *,
    lengths: tuple[int, ...] = WORKLOAD.lengths,
    ratios: tuple[float, ...] = (1.5, 1.52, 1.49),
    where: Environment | None = None,
) -> str:
    """Write a study: the default, sorted faster than it, bf16 with a high peak, eager failed, flash refused."""
    source, workload = find_model(MODEL), Forward(lengths, WORKLOAD.batch)
    with Store.open(laid(url), write=True) as store:
        study = store.open_study(source, workload, where or here(), Objective(), Budget(60.0), 0)
        store.save_facts(source, FACTS)
        for configuration, speed, more in (
            (DEFAULT, 1000.0, {}),
            (SORTED, 1500.0, {}),
            (BF16, 1400.0, {"peak_bytes": 3 * 2**30}),
            (EAGER, 0.0, {"outcome": Outcome.TIMEOUT, "reason": "no result after 600 s"}),
        ):
            number = store.claim(study, Search(configuration), "a:1:1")[0]
            store.finish_trial(study, trial_of(number, configuration, speed, **more), "a:1:1")
        store.save_comparisons(study, [Comparison(SORTED.key, DEFAULT.key, ratios)])
        store.save_refusals(
            study,
            [
                Reason(
                    "A18",
                    Verdict.INVALID,
                    "FlashAttention-2 runs on NVIDIA GPUs only",
                    "use a GPU",
                    subject="attention=flash_attention_2",
                ),
            ],
        )
        store.close_study(study, "done")
    return url


def trial_of(number: int, configuration: Configuration, speed: float, **more: Any) -> Trial:
    """Return a plausible trial of this speed; without one it has no figures."""
    known: dict[str, Any] = {"outcome": Outcome.OK, "peak_bytes": 2**30, "weight_bytes": 8_400_000, "load_s": 0.5}
    if speed:
        samples = tuple(speed * factor for factor in (0.99, 1.0, 1.01, 1.0, 0.995, 1.005))
        known["measurements"] = (Measurement("tokens_per_s", "tokens/s", samples),)
        known["quality"] = Quality(1e-6, 1e-5, 1e-9, 1.0, 16, 1.0, reference="fp32, eager, one sequence at a time")
    return Trial(number, configuration, configuration if speed else None, **{**known, **more})


def test_without_a_database_nothing_is_measured(advisor: Command, tmp_path: Path) -> None:
    """`suggest` before any tune ends with status 3, says what to run, and makes no database."""
    before = tree(tmp_path)
    line = line_of(advisor(*SUGGEST), 3)

    assert "no database at" in line
    assert "advisor tune MODEL" in line
    assert tree(tmp_path) == before


def test_what_is_not_measured_names_the_nearest(advisor: Command, tmp_path: Path) -> None:
    """Status 3 comes with the nearest workload that was measured, how it differs, and the command that is missing."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db", lengths=(16, 16))
    stored(url, lengths=(2000, 2000))
    line = line_of(advisor(*SUGGEST, "--quality", "8bit", ADVISOR_DATABASE_URL=url), 3)

    assert "not measured" in line
    assert "Nearest measured: forward, 2 × 16 tokens" in line
    assert "it differs in longest sequence (16, not 8)." in line
    assert command_in(line) == (WORKLOAD, Objective(quality=Tier.EIGHT_BIT), None)


def command_in(line: str) -> tuple[Forward, Objective, int | None]:
    """Read the command that a line ends with as the command line does."""
    words = shlex.split(line.partition("To measure it: ")[2].rstrip().removesuffix(")"))
    assert words[:1] == ["advisor"]
    asked = question_in(words[1:])
    assert (words[1], Path(asked.model).name) == ("tune", "causal")
    assert asked.lengths is not None
    return Forward(asked.lengths, asked.asked["batch"], asked.asked["output"]), asked.objective, asked.threads


def test_the_command_measures_what_was_asked(advisor: Command, tmp_path: Path) -> None:
    """The command of status 3 has every flag that changes what is measured, and the model's name is quoted."""
    folder = tmp_path / "with space; and $HOME"
    folder.mkdir()
    (folder / "causal").symlink_to(MODEL)
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    asked = ["--lengths", "8,4,8", "--batch", "2", "--max-memory", "2GiB", "--ignore-rule", "P1", "--threads", "3"]
    line = line_of(advisor("suggest", str(folder / "causal"), "--device", "cpu", *asked, ADVISOR_DATABASE_URL=url), 3)

    objective = Objective(max_memory_bytes=2 * 2**30, ignored_rules=("P1",))
    assert command_in(line) == (Forward((8, 4, 8), 2), objective, 3)
    assert shlex.quote(str(folder / "causal")) in line


def test_another_model_is_not_measured(advisor: Command, tmp_path: Path) -> None:
    """A model of which nothing was measured gives status 3 with the environments that have rows."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    config = {**json.loads((Path(MODEL) / "config.json").read_text()), "hidden_size": 128}
    (tmp_path / "other.json").write_text(json.dumps(config))
    line = line_of(advisor("suggest", str(tmp_path / "other.json"), *FLAGS, ADVISOR_DATABASE_URL=url), 3)

    assert f"No workload of this architecture was measured; there are rows of: {here()}" in line


def test_nothing_admissible_lists_every_reason(advisor: Command, tmp_path: Path) -> None:
    """Status 4 comes with the reason of every configuration that was tried and of every rule that refused one."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    done = advisor(*SUGGEST, "--max-memory", "1MB", ADVISOR_DATABASE_URL=url)
    first, *reasons = done.stderr.splitlines()

    assert (done.returncode, done.stdout) == (4, "")
    assert first == f"advisor: nothing admissible, for these {len(reasons)} reasons"
    assert [reason.strip() for reason in reasons][:4] == [
        f"{DEFAULT}: its peak of 1.0 GiB is 1023 MiB above the 977 KiB allowed",
        f"{SORTED}: its peak of 1.0 GiB is 1023 MiB above the 977 KiB allowed",
        f"{BF16}: its peak of 3.0 GiB is 3.0 GiB above the 977 KiB allowed",
        f"{EAGER}: timeout (no result after 600 s)",
    ]
    rules = [reason.strip() for reason in reasons][4:]
    assert "attention=flash_attention_2: A18 FlashAttention-2 runs on NVIDIA GPUs only (and 4 more)" in rules
    assert sum("M1 needs at least" in rule for rule in rules) == 1
    assert len(rules) < 40


# ----------------------------------------------------------------------------------------------------------- verdicts


def closed(url: str, trials: list[Trial], end: SearchEnd | None, budget: Budget | None = None) -> None:
    """Write a study of these trials that ended so, of the workload asked for with FLAGS."""
    source = find_model(MODEL)
    with Store.open(url, write=True) as store:
        study = store.open_study(source, WORKLOAD, here(), Objective(), budget or Budget(60.0), 0)
        store.save_facts(source, FACTS)
        for each in trials:
            number = store.claim(study, Search(each.requested), "a:1:1")[0]
            store.finish_trial(study, replace(each, number=number), "a:1:1")
        store.close_study(study, "done", end=end)


def padded_wrong(configuration: Configuration, speed: float) -> Trial:
    """Return a trial whose output reads its pads."""
    trial = trial_of(0, configuration, speed, outcome=Outcome.WRONG_OUTPUT)
    assert trial.quality is not None
    return replace(trial, quality=replace(trial.quality, pads=0.3, neighbours=0.0))


def said(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    """Ask, and return the status, what stands on stdout in one line, and stderr."""
    status = run([*SUGGEST, *more])
    streams = capsys.readouterr()
    return status, " ".join(streams.out.split()), streams.err


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a database that is not there yet."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/advisor.db")
    return f"sqlite:///{tmp_path}/advisor.db"


def test_nothing_right_is_told_whole(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 4 in every form: the text and the JSON say what the default reads and the way out; there is no script."""
    closed(url, [padded_wrong(DEFAULT, 1000.0), padded_wrong(EAGER, 900.0)], SearchEnd(Stop.EVERYTHING, 0, 0.0, (), 2))
    status, text, _ = said(capsys)
    assert status == 4
    assert "nothing is right" in text
    assert "the default, sdpa · fp32: wrong output: a sequence reads its pads" in text
    assert "the way out: --batch 1, or batches of equal lengths" in text
    status, text, error = said(capsys, "--format", "json")
    document = json.loads(text)
    assert (status, document["recommendation"], document["verdict"], document["load"]) == (4, None, "none-right", [])
    assert document["default"]["tokens_per_s"] == 1000.0
    assert "reads its pads" in document["default"]["objections"][0]
    assert document["default"]["quality"]["failures"] != []
    assert error.count("\n") == 1
    status, text, error = said(capsys, "--format", "python")
    assert (status, text) == (4, "")
    assert "--batch 1, or batches of equal lengths" in error


def test_too_little_is_told_with_what_goes_on(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 3: the default stays, what promises most is named with its cost, and the command that goes on is one line."""
    left = (Prospect(BF16, 1.4, 12.0), Prospect(SORTED, 0.9, None))
    closed(url, [trial_of(0, DEFAULT, 1000.0)], SearchEnd(Stop.BUDGET, 20, None, left, 1))
    status, text, error = said(capsys)

    assert (status, error) == (3, "")
    assert "the search stopped: the budget was spent" in text
    assert "keep the default, sdpa · fp32, for now: too little was tried to say that nothing is faster" in text
    assert "never tried: 20; next to be tried, by what a second of measuring each promises:" in text
    assert "sdpa · bf16: predicted 1.40 × the default, about 12 s to measure" in text
    assert f"to go on: advisor tune {MODEL} --lengths" in text
    assert json.loads(said(capsys, "--format", "json")[1])["untried"][0]["seconds"] == 12.0
    status, text, error = said(capsys, "--format", "python")
    assert status == 3
    assert text != ""
    assert "too little was tried" in error


def test_what_nobody_tried_is_never_passed_over(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--why-not counts what was never tried beside what a rule refuses; a bound that it may meet is not measured."""
    closed(url, [trial_of(0, DEFAULT, 1000.0), trial_of(1, SORTED, 900.0)], SearchEnd(Stop.BUDGET, 9, None, (), 2))
    status, text, _ = said(capsys, "--why-not", "fp16")
    assert status == 0
    assert re.search(
        r"precision=fp16: \d+ admissible configurations with it were never tried; first of them .*"
        r"to try it: advisor tune",
        text,
    )
    status, text, _ = said(capsys, "--max-memory", "300MiB")
    assert status == 3
    assert (
        "nothing may be recommended yet: none of the 2 configurations measured meets what is asked; --max-memory allows 300 MiB, "
        "and the least peak measured is 1.0 GiB (sdpa · fp32)"
    ) in " ".join(text.split())
    assert "its peak of 1.0 GiB is 724 MiB above the 300 MiB allowed" in text
    assert "needs at least" in text
    assert "--max-memory 300MiB" in text


# ----------------------------------------------------------------------------------------------------------- answers


def test_json_is_one_document_on_stdout(advisor: Command, tmp_path: Path) -> None:
    """With --format json stdout is one JSON document and stderr is empty, for suggest, its --why-not and probe."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    answer, why, probed = (
        advisor(*arguments, "--format", "json", ADVISOR_DATABASE_URL=url, COLUMNS="40", FORCE_COLOR="1")
        for arguments in (SUGGEST, [*SUGGEST, "--why-not", "eager"], ["probe", "--device", "cpu"])
    )
    for done in (answer, why, probed):
        assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(answer.stdout)

    assert document["recommendation"]["configuration"] == SORTED.spelled
    assert document["verdict"] == "faster"
    assert document["default"]["configuration"] == DEFAULT.spelled
    assert [failure["outcome"] for failure in document["failures"]] == ["timeout"]
    assert [refusal["rule"] for refusal in document["refusals"]] == ["A18"]
    told = json.loads(why.stdout)
    assert (told["choice"], told["why_not"][0]) == ("eager", f"trial 3, {EAGER}: timeout: no result after 600 s")
    assert json.loads(probed.stdout)["chosen"] == "cpu"


def test_answers_are_the_same_in_every_form(advisor: Command, tmp_path: Path) -> None:
    """Text, JSON and the script recommend the same, and the text has the lines of the JSON to paste."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    words, document, script = (
        advisor(*SUGGEST, "--format", form, ADVISOR_DATABASE_URL=url) for form in ("text", "json", "python")
    )

    assert (words.returncode, words.stderr) == (0, "")
    assert "sdpa · fp32 · sorted: 1.50 × the default" in words.stdout
    assert pasted(words.stdout) == json.loads(document.stdout)["load"]
    assert str(SORTED) in script.stdout.splitlines()[0]
    compile(script.stdout, "script", "exec")


def pasted(shown: str) -> list[str]:
    """Return the lines to paste of a text answer, without the comment below them."""
    lines = [line.rstrip() for line in shown.splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("    ") and "import" in line)
    comment = next(n for n, line in enumerate(lines) if line.startswith("    # batches: "))
    code = textwrap.dedent("\n".join(lines[first : comment + 1]))
    compile(code, "pasted", "exec")
    return [line for line in code.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("stream", ["pipe", "terminal"])
def test_lines_to_paste_are_never_broken(tmp_path: Path, advisor: Command, stream: str) -> None:
    """In 80 columns, on a terminal and on a pipe, the lines to paste and the comment under them are whole."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    expected = json.loads(advisor(*SUGGEST, "--format", "json", ADVISOR_DATABASE_URL=url).stdout)["load"]
    assert max(map(len, expected)) > 80
    if stream == "pipe":
        shown = advisor(*SUGGEST, ADVISOR_DATABASE_URL=url, COLUMNS="80").stdout
    else:
        shown = on_terminal([*SUGGEST], environment(tmp_path, ADVISOR_DATABASE_URL=url, COLUMNS="80", TERM="xterm"))

    assert pasted(shown) == expected
    assert sum("# batches" in line for line in shown.splitlines()) == 1
    assert any(len(line) <= 80 and "useful tokens/s" in line for line in shown.splitlines())


def on_terminal(arguments: list[str], variables: dict[str, str]) -> str:
    """Run the command on a pseudo-terminal and return what it shows, without colours."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "advisor", *arguments], stdout=theirs, env=variables) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += (part := os.read(ours, 4096))
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["probe", "--device", "cpu"],
        *([*SUGGEST, "--format", form] for form in ("text", "json", "python")),
        [*SUGGEST, "--why-not", "eager"],
    ],
    ids=["help", "probe", "text", "json", "python", "why-not"],
)
def test_a_pipe_closed_early_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    """`advisor … | head -1`, or a reader that is gone at once, gives no traceback and status 0."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "advisor", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment(tmp_path, ADVISOR_DATABASE_URL=url),
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, "")


def test_head_gets_its_line(tmp_path: Path) -> None:
    """In a shell with pipefail, `advisor suggest | head -1` prints the first line and succeeds."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    line = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'advisor', *SUGGEST])} | head -1"
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env=environment(tmp_path, ADVISOR_DATABASE_URL=url),
        check=False,
    )

    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert "causal" in done.stdout


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_terminal_without_these_characters_gets_others(process: Command, tmp_path: Path, form: str) -> None:
    """On a stream that can't show ×, · or – they become question marks, which is no reason to fail."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    done = process(*SUGGEST, "--format", form, ADVISOR_DATABASE_URL=url, PYTHONIOENCODING="ascii", PYTHONUTF8="0")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


# --------------------------------------------------------------------------------------------------- what people read


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("tokens_per_s", 12345.6, "12,346 tokens/s"),
        ("sequences_per_s", 99.6, "100 texts/s"),
        ("slowest_batch_s", 0.0123, "12.3 ms"),
        ("slowest_batch_s", 2.5, "2.50 s"),
        ("peak_bytes", 3 * 2**30, "3.0 GiB"),
        ("peak_bytes", 388 * 2**20, "388 MiB"),
        ("peak_bytes", 40 * 2**10, "40 KiB"),
        ("peak_bytes", 7, "7 bytes"),
        ("joules_per_token", 0.00031, "0.31 J per 1,000 tokens"),
        ("tokens_per_s", None, "–"),
    ],
)
def test_figures_have_the_units_people_use(metric: str, value: float | None, words: str) -> None:
    """Every metric is told in a unit of its own, whatever it is stored in."""
    assert figure(metric, value) == words


def test_times_and_rates_are_rounded() -> None:
    """Time spans are told in seconds, minutes or hours; rates with the prefix that fits."""
    assert [duration(seconds) for seconds in (5.2, 89, 600, 7200)] == ["5 s", "89 s", "10 min", "2.0 h"]
    assert rate("matmul_bf16_per_s", 6.9e14) == "690 TFLOP/s"
    assert rate("matmul_fp32_per_s", 9.5e10) == "95 GFLOP/s"
    assert rate("copy_bytes_per_s", 4.1e12) == "4.1 TB/s"


def test_what_is_refused_for_one_reason_is_one_row() -> None:
    """Choices with one reason share a row, also where only a number differs; duplicates and what the caller left out are last."""
    wrong = Reason("P1", Verdict.WRONG, "documents attend across", "call it otherwise", subject="packing=packed-cached")
    rows = refusal_rows(
        [
            Reason("U0", Verdict.INVALID, "left out by --only or --fix precision=fp32", subject="precision=bf16"),
            Reason(
                "A18",
                Verdict.INVALID,
                "FlashAttention-2 runs on GPUs only",
                "use a GPU",
                subject="attention=flash_attention_2",
            ),
            Reason(
                "A18",
                Verdict.INVALID,
                "FlashAttention-3 runs on GPUs only",
                "use a GPU",
                subject="attention=flash_attention_3",
            ),
            Reason("P17", Verdict.ALIAS, "it is the same work as packed", subject="packing=packed-2d-mask"),
            Reason("P14", Verdict.ALIAS, "without pads it is the same", subject="packing=packed"),
            Reason("E1", Verdict.ALIAS, "asked for sdpa-flash, but math ran", subject="attention=sdpa-flash"),
            wrong,
            replace(wrong, about="attention=eager"),
            *(
                Reason("M1", Verdict.INVALID, f"needs at least {n}.5 GiB", subject=f"precision=fp{n}")
                for n in range(32, 60)
            ),
        ]
    )

    assert rows[:4] == [
        ("attention=flash_attention_2, flash_attention_3", "A18", "FlashAttention-2 runs on GPUs only → use a GPU"),
        ("attention=sdpa-flash", "E1", "asked for sdpa-flash, but math ran"),
        ("packing=packed-cached and 1 more", "P1", "documents attend across → call it otherwise"),
        ("precision=fp32, fp33, fp34, fp35, fp36, fp37, fp38 and 21 more", "M1", "needs at least 32.5 GiB"),
    ]
    assert rows[4:] == [
        ("2 more", "", "the same work as another choice (P14, P17)"),
        ("precision=bf16", "U0", "left out by --only or --fix"),
    ]


def answered(
    url: str, objective: Objective, workload: Forward, *, pareto: bool, capsys: pytest.CaptureFixture[str]
) -> str:
    """Write a study of the default, a quicker and a smaller configuration; return the text of what is recommended."""
    source = find_model(MODEL)
    with Store.open(url, write=True) as store:
        study = store.open_study(source, workload, here(), objective, Budget(60.0), 0)
        store.save_facts(source, FACTS)
        store.save_ceilings(here(), {"matmul_fp32_per_s": 1e11, "copy_bytes_per_s": 1e10})
        for configuration, speed, peak in ((DEFAULT, 1000.0, 2**30), (SORTED, 1500.0, 2**30), (EAGER, 900.0, 2**29)):
            number = store.claim(study, Search(configuration), "a:1:1")[0]
            trial = trial_of(number, configuration, speed, peak_bytes=peak)
            more = (
                Measurement("slowest_batch_s", "s", (16 / speed,)),
                Measurement("joules_per_token", "J/token", (3.1e-4,)),
                Measurement("sequences_per_s", "sequences/s", (speed / 8,)),
            )
            store.finish_trial(study, replace(trial, measurements=(*trial.measurements, *more)), "a:1:1")
        store.save_comparisons(study, [Comparison(SORTED.key, DEFAULT.key, (1.5, 1.52, 1.49))])
        store.close_study(study, "done")
        found = recommend(store, source, store.study(study), objective)
    report.print_recommendation(found, "cpu", pareto=pareto, refusals=True)
    return " ".join(capsys.readouterr().out.split())


def test_an_answer_is_told_in_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Throughput, latency and memory each have their words and their column; energy and the ceiling's share are told."""
    found = {
        metric: answered(
            f"sqlite:///{tmp_path}/{metric}.db", Objective(metric=metric), WORKLOAD, pareto=False, capsys=capsys
        )
        for metric in ("tokens_per_s", "slowest_batch_s", "peak_bytes")
    }

    assert "sdpa · fp32 · sorted: 1.50 × the default (95 % interval" in found["tokens_per_s"]
    assert "energy 0.31 J per 1,000 tokens" in found["tokens_per_s"]
    assert "GFLOP/s that matrix products in fp32 reach here" in found["tokens_per_s"]
    assert "slowest batch" not in found["tokens_per_s"]
    assert (
        "1.50 × the default in seconds of the slowest batch, where more than 1 is better (95 %"
        in found["slowest_batch_s"]
    )
    assert "slowest batch 10.7 ms" in found["slowest_batch_s"]
    assert "runner-up × default tokens/s slowest batch peak note" in found["slowest_batch_s"]
    assert "16 ms" in found["slowest_batch_s"]
    assert "configurations tried" in found["peak_bytes"]


def test_embeddings_are_counted_in_texts_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a sequence gives one embedding, texts a second stand beside tokens a second."""
    text = answered(f"sqlite:///{tmp_path}/a.db", Objective(), Forward((8, 8), 2, "pooled"), pareto=True, capsys=capsys)

    assert "188 texts/s" in text
    assert "runner-up × default tokens/s texts/s peak note" in text


def test_what_nothing_beats_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--pareto shows the quickest and the smallest with their quality, and not what another beats in all of it."""
    text = answered(f"sqlite:///{tmp_path}/a.db", Objective(), WORKLOAD, pareto=True, capsys=capsys)
    _, _, after = text.partition("no other beats these")
    table = after.partition("runner-up")[0]

    assert "sdpa · fp32 · sorted" in table
    assert "eager · fp32" in table
    assert not re.search("sdpa · fp32 (?!·)", table)
    assert "rms 1.0e-06, KL 1.0e-09 nats exact" in table


def test_progress_is_told_in_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """On a pipe every trial is a line with the objective's figure and its ratio over the default."""
    source, space = find_model(MODEL), Space(DEFAULT, (DEFAULT, SORTED), (), (), layers=4)
    job = Job(source, WORKLOAD, Objective(metric="slowest_batch_s"), Budget(60.0), probe.machine("cpu"))
    default: Trial | None = None
    with Progress(job) as progress:
        progress.hear({"event": "study", "space": space, "trials": []})
        for number, (configuration, seconds) in enumerate(((DEFAULT, 0.03), (SORTED, 0.02))):
            trial = trial_of(
                number, configuration, 1000.0, measurements=(Measurement("slowest_batch_s", "s", (seconds,)),)
            )
            progress.hear(
                {"event": "start", "number": number, "configuration": configuration, "phase": "search", "block": None}
            )
            default = default or trial
            progress.hear({"event": "trial", "trial": trial, "best": trial, "default": default})
        confirmed = replace(trial, phase="confirm", block=1, number=2)
        progress.hear({"event": "trial", "trial": confirmed, "best": trial, "default": default})
        cut = replace(confirmed, number=4, outcome=Outcome.CUT, reason="the budget ended")
        progress.hear({"event": "trial", "trial": cut, "best": trial, "default": default})
        reused = replace(trial, number=3, wall_s=0.0)
        progress.hear({"event": "trial", "trial": reused, "best": trial, "default": default})
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]

    assert "2 configurations are admissible; 0 rules refuse others" in lines
    assert "0 sdpa · fp32 30 ms 1.00 ×" in lines
    assert "1 sdpa · fp32 · sorted 20 ms 1.50 ×" in lines
    assert "2 sdpa · fp32 · sorted 20 ms block 1" in lines
    assert "3 sdpa · fp32 · sorted 20 ms 1.50 × measured before" in lines
    assert "4 sdpa · fp32 · sorted cut block 1: the budget ended" in lines
    assert progress.best == "sdpa · fp32 · sorted: 20 ms, 1.50 × default"


@pytest.mark.parametrize(("ended", "said"), [(1, "going on: 1 trial is stored"), (2, "going on: 2 trials are stored")])
def test_what_was_broken_off_is_not_counted_as_stored(
    ended: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tune that goes on tells of as many trials as the interrupted one said that it had stored."""
    job = Job(find_model(MODEL), WORKLOAD, Objective(), Budget(60.0), probe.machine("cpu"))
    trials = [trial_of(number, DEFAULT, 1000.0) for number in range(ended)]
    broken = [replace(trials[0], number=7, outcome=Outcome.RUNNING), replace(trials[0], number=8, outcome=Outcome.CUT)]
    with Progress(job) as progress:
        progress.hear(
            {"event": "study", "space": Space(DEFAULT, (DEFAULT,), (), (), layers=4), "trials": [*trials, *broken]}
        )

    assert said in capsys.readouterr().err.splitlines()


def test_ceilings_are_measured_and_stored(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """`probe --ceilings` runs matrix products and a copy in a worker, prints what was reached and stores it."""
    assert run(["probe", "--ceilings", "--device", "cpu", "--format", "json"]) == 0
    streams = capfd.readouterr()
    ceilings = json.loads(streams.out)["ceilings"]

    assert streams.err == ""
    assert {"matmul_fp32_per_s", "matmul_bf16_per_s", "copy_bytes_per_s"} <= ceilings.keys()
    assert min(ceilings.values()) > 1e6
    with Store.open(url, write=False) as store:
        assert store.ceilings(here().key) == ceilings


def test_ceilings_are_shown_with_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    """What a device reaches is told by precision, and copies in bytes."""
    machine = probe.machine("cpu")
    ceilings = {"matmul_bf16_per_s": 6.9e14, "copy_bytes_per_s": 4.1e12}
    console(stderr=False).print(probe_text([machine], machine, [], ceilings))
    text = " ".join(capsys.readouterr().out.split())

    assert "what cpu reaches at best matrix products in bf16 690 TFLOP/s copies, read plus written 4.1 TB/s" in text


def test_the_place_of_the_database_is_told(advisor: Command, tmp_path: Path) -> None:
    """`advisor db` makes, names and finds the database, in the user's data directory where no URL is set."""
    path = advisor("db", "path").stdout.strip()

    assert path == str(tmp_path / "home" / "xdg_data_home" / "advisor" / "advisor.db")
    assert not Path(path).exists()
    assert advisor("db", "upgrade").stdout.startswith(f"{path} is at revision ")
    assert advisor("db", "url").stdout.strip() == f"sqlite:///{path}"
    assert "advisor tune" in line_of(advisor(*SUGGEST), 3)
    assert "no file" in line_of(advisor("db", "path", ADVISOR_DATABASE_URL="postgresql://host/x"), 2)


def test_the_version_and_the_help_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """--version and --help print to stdout and end with status 0."""
    for flag, words in (("--version", package.__version__), ("--help", "suggest")):
        with pytest.raises(SystemExit) as ended:
            run([flag])
        assert ended.value.code == 0
        assert words in capsys.readouterr().out


def test_tune_prints_json_alone_and_suggest_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A real tune prints one JSON document to stdout and its progress to stderr, and suggest answers the same."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/made/for/it/advisor.db")
    status = run([*TUNE, "--quality", "exact", "--format", "json"])
    tuned = capfd.readouterr()
    assert run([*SUGGEST, "--quality", "exact", "--format", "json"]) == 0
    asked = capfd.readouterr()

    assert status == 0, tuned.err
    assert "tokens/s" in tuned.err
    assert json.loads(tuned.out) == json.loads(asked.out)
    document = json.loads(asked.out)
    assert document["recommendation"]["configuration"] == DEFAULT.spelled
    assert document["verdict"] == "unsearched"  # so much was asked for: that is no fault
    assert document["why"] == "the trials asked for were spent"
    assert document["recommendation"]["tokens_per_s"] > 0


def test_threads_are_part_of_what_was_measured(advisor: Command, tmp_path: Path) -> None:
    """A measurement with two threads does not answer for one, and its script sets two."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db", where=replace(here(), threads=2))
    script = advisor(*SUGGEST, "--threads", "2", "--format", "python", ADVISOR_DATABASE_URL=url)

    assert "torch.set_num_threads(2)" in script.stdout


#: What people wait for, in processor time, over that of a bare process that imports SQLAlchemy, and the most that it may be.
SHARES = {"--help": 0.6, "suggest": 2.2, "first look-up": 0.06, "later look-up": 0.04}


def start_up(bench: ModuleType, url: str) -> dict[str, float]:
    """Return the processor seconds of each of SHARES, and of a bare process."""

    def clock() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    bare, _ = bench.process_s(["-c", "import sqlalchemy"], url, clock)
    told, _ = bench.process_s(["-m", "advisor", "--help"], url, clock)
    answered, text = bench.process_s(["-m", "advisor", "suggest", str(bench.MODEL), *bench.FLAGS], url, clock)
    _, times = bench.process_s([bench.__file__, "--processor-time", "--look-up", url], url, clock)
    first, *later = json.loads(times)
    assert "sdpa · fp32 · sorted: 1.50 × the default" in text
    return {"bare": bare, "--help": told, "suggest": answered, "first look-up": first, "later look-up": median(later)}


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="an installed package comes without its benchmarks")
def test_start_up_is_quick(tmp_path: Path) -> None:
    """`--help`, `suggest` and its look-ups among 10,000 trials compute no more than their share of a bare process of today.

    The least of a few rounds, in which all take turns: how fast this machine is, and how busy, is no matter of ours. What
    people wait for in seconds is measured by `make bench`.
    """
    spec = importlib.util.spec_from_file_location("startup", ROOT / "benchmarks" / "startup.py")
    assert spec is not None
    assert spec.loader is not None
    bench, url = importlib.util.module_from_spec(spec), f"sqlite:///{tmp_path}/advisor.db"
    spec.loader.exec_module(bench)
    bench.fill(url)
    start_up(bench, url)  # bytecode is written
    least = dict.fromkeys(["bare", *SHARES], math.inf)
    for _ in range(8):
        round_s = start_up(bench, url)
        least = {name: min(seconds, round_s[name]) for name, seconds in least.items()}
        shares = {name: least[name] / least["bare"] for name in SHARES}
        if all(shares[name] <= most for name, most in SHARES.items()):
            break

    assert {name: share for name, share in shares.items() if share > SHARES[name]} == {}


def test_help_waits_for_nothing_that_it_does_not_use() -> None:
    """The text of `--help` is made by advisor and Python's own library alone, and without what of that goes to the network."""
    code = (
        "import sys\nfrom advisor.faces.cli import run\ntry: run(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({'asyncio', 'email', 'http', 'socket', 'sqlite3', 'ssl'} & set(sys.modules)))"
    )
    without_libraries = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        without_libraries, cwd=Path(package.__file__).parent.parent, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: advisor" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["tune", "dry-run"])
def test_only_that_leaves_nothing_is_told_before_a_trial(
    url: str, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """Status 4 with the rules that refuse what was named, and no study: the default alone is no answer to --fix."""
    fixed = ["tune", MODEL, "--device", "cpu", "--lengths", "8", "--fix", "attention=flash_attention_2", *more]
    status = run(fixed)
    streams = capfd.readouterr()

    assert (status, streams.out) == (4, "")
    assert streams.err.splitlines()[-2:] == [
        "advisor: nothing admissible, for this reason",
        "  attention=flash_attention_2: A18 FlashAttention-2 runs on NVIDIA GPUs only → use a GPU",
    ]
    if not more:
        with Store.open(url, write=False) as store:
            assert store.studies() == []


def test_too_few_blocks_are_said_to_be_too_few(advisor: Command, tmp_path: Path) -> None:
    """One block gives no interval, and two decide nothing: that is said instead of an endless number."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    for blocks, words in (
        (1, "1 block can't confirm it, 3 could"),
        (2, "2 blocks can't confirm it, 3 could"),
    ):
        with Store.open(url, write=True) as store:
            store.save_comparisons(1, [Comparison(SORTED.key, DEFAULT.key, (1.5, 1.51)[:blocks])])
        text = advisor(*SUGGEST, ADVISOR_DATABASE_URL=url).stdout
        found = json.loads(advisor(*SUGGEST, "--format", "json", ADVISOR_DATABASE_URL=url).stdout)

        assert "what looked faster is not confirmed" in text
        assert words in " ".join(text.split())
        assert found["verdict"] == "unconfirmed"
        assert ("1.50 (one block)" in text) is (blocks == 1)
        compared = next(runner for runner in found["runners_up"] if runner["blocks"])
        assert (compared["ratio_interval"] is None) is (blocks == 1)


def test_why_not_takes_what_answers_say(advisor: Command, tmp_path: Path) -> None:
    """--why-not takes a choice's name or knob=choice; of a batch that was given it says that it is no knob."""
    url = stored(f"sqlite:///{tmp_path}/advisor.db")
    plain, spelled, batch = (
        advisor(*SUGGEST, "--why-not", name, ADVISOR_DATABASE_URL=url) for name in ("eager", "attention=eager", "8")
    )

    assert plain.stdout == spelled.stdout != ""
    assert (batch.returncode, batch.stdout) == (2, "")
    assert batch.stderr == "advisor: --why-not: batch is no knob of this workload (--batch auto makes it one)\n"


def test_somebody_elses_database_is_left_alone(advisor: Command, tmp_path: Path) -> None:
    """A SQLite file with another program's tables is not written to, and a reader says what it is."""
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before, url = (tmp_path / "theirs.db").read_bytes(), f"sqlite:///{tmp_path}/theirs.db"

    for command in (["db", "upgrade"], ["tune", MODEL, "--device", "cpu", "--lengths", "8"]):
        assert "has tables of another program (recipes)" in line_of(advisor(*command, ADVISOR_DATABASE_URL=url), 2)
    assert "has no tables of advisor's" in line_of(advisor("trials", ADVISOR_DATABASE_URL=url), 3)
    assert (tmp_path / "theirs.db").read_bytes() == before


@pytest.mark.slow
def test_a_script_pools_as_the_checkpoint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sentence-transformers' short spelling of pooling is read, and a model of the same shape that pools otherwise is not it."""
    for name, mode in (("one", "cls"), ("other", "mean")):
        shutil.copytree(ROOT / "tests" / "models" / "encoder", tmp_path / name)
        said = {"embedding_dimension": 192, "pooling_mode": mode, "include_prompt": True}
        (tmp_path / name / "1_Pooling" / "config.json").write_text(json.dumps(said))
    monkeypatch.setenv("ADVISOR_DATABASE_URL", probed(f"sqlite:///{tmp_path}/advisor.db"))
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    work = ["--lengths", "16", "--padding", "0.3", "--batch", "2", "--batches", "1", "--device", "cpu"]

    assert run(["tune", str(tmp_path / "one"), *work, "--trials", "1", "--blocks", "0", "--format", "python"]) == 0
    assert "how='cls')" in capsys.readouterr().out
    assert run(["suggest", str(tmp_path / "other"), *work, "--format", "python"]) in (0, 3)
    told = capsys.readouterr().out
    assert "how='cls'" not in told
    assert "how='mean')" in told or not told
