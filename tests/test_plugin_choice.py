"""A choice that is added in one file goes all the way: worker, gate, row, suggestion, script and support table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import advisor as package
from advisor.measurement import Comparison
from advisor.store import Store
from advisor.trial import Outcome

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

Run = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the database and for the device's lock."""
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """Return what runs Python with the plugin on its path and gives back what it prints."""
    more = {
        "ADVISOR_PLUGINS": "made_up",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE / "plugins")]),
        "ADVISOR_DATABASE_URL": f"sqlite:///{place}/advisor.db",
        "ADVISOR_LOCK_DIR": str(place),
        "HF_HUB_OFFLINE": "1",
    }

    def python(*arguments: str, **other: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **more, **other}, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


@pytest.fixture(scope="module")
def store(place: Path, run: Run) -> Iterator[Store]:
    """Tune the shipped model with two trials, the second of which is the plugin's, and open what was stored."""
    run("-m", "advisor", "tune", MODEL, *FLAGS, "--trials", "2", "--format", "json")
    with Store.open(f"sqlite:///{place}/advisor.db", write=True) as opened:
        yield opened


def test_it_ran_was_right_and_was_stored(store: Store, place: Path) -> None:
    """The worker ran the made-up attention, proved it, found it right, and its row says so, in SQL too."""
    record = store.study(1)
    default, made_up = store.trials(1, full=True)
    engine = create_engine(f"sqlite:///{place}/advisor.db")
    with engine.connect() as connection:
        query = text("SELECT attention, outcome, tokens_per_s FROM v_trials WHERE number = 1")
        (row,) = connection.execute(query).all()
    engine.dispose()

    assert record.state == "done"
    assert made_up.outcome is Outcome.OK
    assert default.requested["attention"] == "sdpa"
    assert made_up.requested["attention"] == "made-up"
    assert made_up.requested == made_up.effective
    assert made_up.reading["attention"] == {"": "made-up"}
    assert made_up.quality is not None
    assert made_up.quality.neighbours == 0.0
    assert made_up.quality.positions > 0
    assert (row.attention, row.outcome) == ("made-up", "ok")
    assert row.tokens_per_s > 0


def test_it_is_found_slower(store: Store, run: Run) -> None:
    """While it is slower the default stays, it is a runner-up, and --why-not gives its figures."""
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, "--format", "json"))

    assert answer["recommendation"]["configuration"]["attention"] == "sdpa"
    assert [other["configuration"]["attention"] for other in answer["runners_up"]] == ["made-up"]
    assert "× the default" in run("-m", "advisor", "suggest", MODEL, *FLAGS, "--why-not", "made-up")


def test_its_lines_are_pasted_and_run(store: Store, run: Run, tmp_path: Path) -> None:
    """Were it confirmed faster, its own lines would be pasted, and the script with them runs by itself."""
    default, made_up = store.trials(1)
    store.save_comparisons(1, [Comparison(made_up.ran.key, default.ran.key, (1.50, 1.51, 1.49))])
    answer = json.loads(run("-m", "advisor", "suggest", MODEL, *FLAGS, "--format", "json"))
    script = tmp_path / "script.py"
    script.write_text(run("-m", "advisor", "suggest", MODEL, *FLAGS, "--format", "python"))

    assert answer["recommendation"]["configuration"]["attention"] == "made-up"
    assert "import made_up\nmade_up.register()" in answer["load"]
    assert "attn_implementation='made-up'" in answer["load"][-1]
    assert "\nimport made_up\nmade_up.register()\n" in script.read_text()
    assert run(str(script), ADVISOR_PLUGINS="").splitlines()[-1].endswith(" tokens/s")


def test_its_rules_can_be_ignored(run: Run) -> None:
    """--ignore-rule takes the id of a plugin's rule: which there are is not known beforehand."""
    flags = ["tune", MODEL, "--device", "cpu", "--lengths", "8", "--dry-run", "--ignore-rule", "Z1"]

    assert "made-up" in run("-m", "advisor", *flags)


def test_it_has_its_row_in_the_support_table(run: Run) -> None:
    """The support table and the probe list it, with its rule and its source, although nothing else knows of it.

    Of one workload, which takes a fifth of the time: its rule is about the model.
    """
    code = "from advisor import support; support._WORKLOADS = support._WORKLOADS[:1]; support.main([])"
    (row,) = [line for line in run("-c", code).splitlines() if "`made-up`" in line]

    assert "in 64 bit, at leisure" in row
    assert "| yes | yes | yes | exact | Z1 | [source](https://example.org/made-up) |" in row
    assert "made-up" in run("-m", "advisor", "probe", "--device", "cpu")
