"""What is published: the archives' contents and sizes, and the wheel installed where nothing else is, run as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from advisor.version import __version__, commit

ROOT = Path(__file__).parent.parent

#: How large the source archive may be, in bytes, beside the models that are shipped with the tests.
MOST_BYTES = 9 * 2**18


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Build the source archive and the wheel, with the tools that are here; return them, and the commit that they are of."""
    pytest.importorskip("hatchling", reason="hatchling is of the dev group")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    assert sorted(folder.iterdir()) == sorted([archive, wheel])  # all of it is uploaded
    return archive, wheel, commit()


def test_the_archives_hold_what_they_need_and_little_else(built: tuple[Path, Path, str]) -> None:
    """Migrations, types, licence, templates and the commit are in the wheel; the source archive is small beside the models."""
    archive, wheel, made_of = built
    with zipfile.ZipFile(wheel) as found:
        names = set(found.namelist())
        metadata = found.read(next(name for name in names if name.endswith("METADATA"))).decode()
        assert found.read("advisor/commit.txt").decode() == made_of
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "advisor").rglob("*.py")}
    migrations = {f"advisor/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")}
    assert package | migrations | {"advisor/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert f"Name: transformers-advisor\nVersion: {__version__}\n" in metadata
    for field in ("Author", "License-Expression: Apache-2.0", "Classifier: Typing :: Typed", "Provides-Extra: flash"):
        assert field in metadata
    with tarfile.open(archive) as found:
        beside = [member for member in found.getmembers() if "/tests/models/" not in member.name]
        models = sum(member.size for member in found.getmembers()) - sum(member.size for member in beside)
    assert archive.stat().st_size - models <= MOST_BYTES
    assert sum(member.size for member in beside) <= 2 * MOST_BYTES


def test_the_version_says_its_commit() -> None:
    """In a checkout, which is asked when its version is."""
    asked = subprocess.run([sys.executable, "-m", "advisor", "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout == f"advisor {__version__} ({commit()})\n"
    assert re.fullmatch(r"[0-9a-f]{10,}\+?", commit())


@pytest.mark.parametrize("path", ["", os.environ["PATH"]], ids=["no git", "git"])
def test_a_commit_that_nobody_knows_stops_no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Without git, or where git does not read the checkout, what is built says no commit."""
    pytest.importorskip("hatchling", reason="hatchling is of the dev group")
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("PATH", path)
    hook = import_module("hatch_build")
    (tmp_path / ".git").write_text("gitdir: nowhere")
    made = hook.CommitHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel")
    data: dict[str, Any] = {}
    made.initialize("standard", data)
    made.finalize("standard", data, "")
    assert data == {}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_wheel_runs_where_nothing_else_is(built: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Pip installs it in a fresh environment, from another folder: probe, and a tune of a config.json to its answer."""
    _, wheel, made_of = built
    venv.create(tmp_path / "env", with_pip=True)
    python, command = tmp_path / "env" / "bin" / "python", str(tmp_path / "env" / "bin" / "advisor")
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"ADVISOR_DATABASE_URL": f"sqlite:///{tmp_path}/advisor.db", "ADVISOR_LOCK_DIR": str(tmp_path)}
    # A newer pip, for the one of Python 3.11.7 does not know the resolver's constraints of every machine; torch by our own bound.
    for asked in (["--upgrade", "pip"], [str(wheel)]):
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *asked], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 3), done.stderr
        return done.stdout

    assert run("--version") == f"advisor {__version__} ({made_of})\n"
    assert "sdpa" in run("probe")
    config = ROOT / "tests" / "models" / "causal" / "config.json"
    work = ["--lengths", "16", "--padding", "0.4", "--batch", "4", "--batches", "2", "--device", "cpu"]
    assert "sdpa · fp32" in run("tune", str(config), *work, "--trials", "2", "--blocks", "0")
    assert "sdpa · fp32" in run("suggest", str(config), *work)
