"""`advisor serve` as a process of its own: it says where it is, ends when it is told to, and the other commands ask it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from daemons import PATIENCE_S, database, opened, recorded, waited

from advisor.asking.submission import Submission

MODEL = str(Path(__file__).parent / "models" / "causal")

TOKEN = "a-token-that-nobody-guesses-0123456789"


def environment(url: str, **more: str) -> dict[str, str]:
    """Return the variables of a daemon of this database."""
    return {**os.environ, "ADVISOR_DATABASE_URL": url, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **more}


def processes_of(url: str) -> list[int]:
    """Return the processes that have this database in their environment: a daemon's, its slots', and what those run."""
    found, wanted = [], f"ADVISOR_DATABASE_URL={url}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:  # it has gone, or is another user's
            continue
    return found


@contextmanager
def serving(url: str, *flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a daemon, and give its process and its address."""
    command = [sys.executable, "-m", "advisor", "serve", "--port", "0", *flags]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(url, **variables)) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), address
            assert (
                time.monotonic() - began < 20
            )  # how long it takes is measured by a benchmark: this is no machine for that
            yield process, address
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def told(address: str, place: str, token: str = "") -> Any:
    """Return what a daemon answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/api/v1/{place}", headers=headers), timeout=PATIENCE_S
    ) as answer:
        return json.loads(answer.read())


def test_a_daemon_comes_and_goes(tmp_path: Path) -> None:
    """It says where it listens, its slot comes, SIGTERM ends both with status 0, and nothing of them is left."""
    url = f"sqlite:///{tmp_path}/advisor.db"
    with serving(url, "--workers", "cpu") as (process, address):
        health = told(address, "health")
        assert health["status"] == "ok"
        waited(lambda: [slot["state"] for slot in told(address, "environments")["slots"]] == ["idle"])
        assert len(processes_of(url)) >= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        waited(lambda: not processes_of(url))
    with pytest.raises(OSError):
        told(address, "health")


def test_two_daemons_share_a_database(tmp_path: Path) -> None:
    """Both serve the same jobs, and a device is one's slot: the other waits for it, and has it when the first is gone."""
    url = f"sqlite:///{tmp_path}/advisor.db"
    with ExitStack() as stack:
        first, one = stack.enter_context(serving(url, "--workers", "cpu"))
        waited(lambda: [slot["state"] for slot in told(one, "environments")["slots"]] == ["idle"])
        _, other = stack.enter_context(serving(url, "--workers", "cpu"))
        assert one != other
        ran = run_here("submit", "org/model", "--lengths", "8", "--server", other, "--format", "json")
        assert ran.returncode == 0, ran.stderr
        name = json.loads(ran.stdout)["id"]
        assert told(one, f"jobs/{name}")["id"] == name
        assert len(told(other, "environments")["slots"]) == 1
        time.sleep(2)  # the second has looked for its slot by now
        assert len(told(other, "environments")["slots"]) == 1
        assert told(one, "health")["slots"] == told(other, "health")["slots"] == 1
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0
        waited(lambda: told(other, "health")["slots"] == 1)
    waited(lambda: not processes_of(url))


def test_a_tune_by_hand_goes_before_a_job(tmp_path: Path) -> None:
    """The slot gives its device back to whoever waits for it, and goes on with its job when that has ended."""
    url, locks = f"sqlite:///{tmp_path}/advisor.db", str(tmp_path)
    work = ["--lengths", "48", "--padding", "0", "--batch", "2", "--blocks", "0"]
    with serving(url, "--workers", "cpu", ADVISOR_LOCK_DIR=locks) as (_, address):
        waited(lambda: [slot["state"] for slot in told(address, "environments")["slots"]] == ["idle"])
        long = ["--lengths", "24", "--batches", "2", "--exhaustive", "--budget", "10m"]
        ran = run_here("submit", MODEL, *long, ADVISOR_DATABASE_URL=url)
        assert ran.returncode == 0, ran.stderr
        job = told(address, "jobs")["jobs"][0]["id"]
        waited(lambda: told(address, f"jobs/{job}")["trials"] > 0)
        ours = {**environment(url, ADVISOR_LOCK_DIR=locks), "ADVISOR_DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}
        tune = [sys.executable, "-m", "advisor", "tune", MODEL, *work, "--device", "cpu", "--trials", "1"]
        done = subprocess.run(tune, env=ours, capture_output=True, text=True, check=False, timeout=4 * PATIENCE_S)
        assert "waiting: another advisor measures on cpu-" in done.stderr
        assert "sdpa" in done.stdout, done.stderr
        before = told(address, f"jobs/{job}")
        assert before["state"] in ("queued", "running")
        waited(lambda: told(address, f"jobs/{job}")["trials"] > before["trials"])
        told_again = run_here("cancel", job, ADVISOR_DATABASE_URL=url)
        assert told_again.returncode == 0, told_again.stderr
    waited(lambda: not processes_of(url))


def _lines(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines that are for a person: the log's are JSON."""
    return [line for line in ran.stderr.splitlines() if not line.startswith("{")]


def test_what_cant_be_served_is_a_line(tmp_path: Path) -> None:
    """A port that is taken, an address that others reach without a token, a token that is guessed, a folder that is not there."""
    env = environment(f"sqlite:///{tmp_path}/advisor.db")
    env.pop("ADVISOR_TOKEN", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flags, more, words in (
            (
                ["--port", port],
                {},
                f"127.0.0.1:{port} can't be listened at: Address already in use (--port names another one",
            ),
            (["--host", "0.0.0.0"], {}, "on 0.0.0.0 others reach the daemon, and it has no token (set ADVISOR_TOKEN"),
            (["--port", "0"], {"ADVISOR_TOKEN": "short"}, "ADVISOR_TOKEN has 5 characters"),
            (["--port", "99999"], {}, "--port takes a number from 0 to 65535"),
            (
                ["--host", "no.such.host.invalid"],
                {"ADVISOR_TOKEN": TOKEN},
                "no.such.host.invalid:8420 can't be listened at: ",
            ),
            (["--model-root", str(tmp_path / "none")], {}, "--model-root: there is no folder"),
        ):
            command = [sys.executable, "-m", "advisor", "serve", "--workers", "none", *flags]
            ran = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, timeout=60, check=False)
            assert (ran.returncode, ran.stdout) == (2, ""), ran
            (line,) = _lines(ran)
            assert line.startswith(f"advisor: {words}")
            assert TOKEN not in ran.stderr


def test_commands_ask_a_daemon(tmp_path: Path) -> None:
    """submit, jobs, cancel and suggest, with its token; without the database."""
    url, away = database(f"sqlite:///{tmp_path}/advisor.db"), {"ADVISOR_DATABASE_URL": "sqlite:////nowhere/advisor.db"}
    work = ["org/model", "--lengths", "8", "--batch", "2"]
    with opened(url, recorded()), serving(url, "--workers", "none", ADVISOR_TOKEN=TOKEN) as (_, address):
        at, known = ["--server", address], {**away, "ADVISOR_TOKEN": TOKEN}
        ran = run_here("submit", *work, "--priority", "3", "--format", "json", *at, **known)
        assert ran.returncode == 0, ran.stderr
        job = json.loads(ran.stdout)
        assert (job["state"], job["priority"], job["given"]["lengths"]) == ("queued", 3, "8")
        ran = run_here("submit", *work, *at, **known)
        assert f"--watch --server {address}" in ran.stdout
        ran = run_here("jobs", "--server", f"{address}/elsewhere", **known)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
        assert f"there is no advisor at {address}/elsewhere" in ran.stderr
        ran = run_here("jobs", *at, **known)
        assert ran.returncode == 0
        assert ran.stdout.count("queued") == 2
        assert json.loads(run_here("jobs", job["id"], "--format", "json", *at, **known).stdout)["id"] == job["id"]
        assert run_here("cancel", job["id"], *at, **known).stdout == f"job {job['id']} is cancelled\n"
        for where, variables in ((at, known), ([], {"ADVISOR_DATABASE_URL": url})):
            ran = run_here("cancel", job["id"], *where, **variables)
            said = f"advisor: job {job['id']} is over already: it is cancelled\n"
            assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", said)
        assert run_here("jobs", job["id"], "--watch", *at, **known).stdout.startswith(
            f"{job['id']} · cancelled · org/model"
        )
        assert json.loads(
            run_here("jobs", "--state", "queued", "--limit", "1", "--format", "json", *at, **known).stdout
        )
        for command in (["jobs", "nothing"], ["cancel", "nothing"]):
            ran = run_here(*command, *at, **known)
            assert (ran.returncode, ran.stderr) == (3, "advisor: there is no job 'nothing' (advisor jobs lists them)\n")
        ran = run_here("submit", *work, "--on", "A100", *at, **known)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
        assert "A100 names no device of this daemon's" in ran.stderr
        ran = run_here("submit", "/etc/passwd", *work[1:], *at, **known)
        assert (ran.returncode, "is no hub id" in ran.stderr) == (2, True)
        for token in ("", "a-wrong-token-of-some-length"):
            ran = run_here("jobs", *at, **away, ADVISOR_TOKEN=token)
            assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
            assert "the token is missing or wrong" in ran.stderr
            assert not token or token not in ran.stderr


@contextmanager
def watching(*flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], str]]]:
    """Watch jobs in a process of its own; give it, and what waits for a line of it that has some words."""
    command, said = [sys.executable, "-u", "-m", "advisor", "jobs", "--watch", *flags], list[str]()
    env = environment(variables.pop("url", "sqlite:////nowhere/advisor.db"), **variables)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        reader = threading.Thread(target=lambda: said.extend(iter(process.stdout.readline, "")))

        def line(words: str) -> str:
            return str(waited(lambda: next((each for each in said if words in each), None)))

        reader.start()
        try:
            yield process, line
        finally:
            process.kill()
            reader.join()


def test_a_watcher_outlasts_a_daemon_that_is_away(tmp_path: Path) -> None:
    """It says that it can't be reached, once, and goes on when it is back; Ctrl-C ends it with 130, away or not."""
    url = database(f"sqlite:///{tmp_path}/advisor.db")
    with opened(url, recorded()) as served, ExitStack() as stack:
        job = served.jobs.submit(Submission("org/model", {"lengths": "8"}, 0, "a device"))
        with serving(url, "--workers", "none") as (_, address):
            port = address.rpartition(":")[2]
            process, line = stack.enter_context(watching("--server", address))
            line(f"{job} · queued")
        said = line("can't be reached")
        assert said.startswith(f"note: the daemon at {address} can't be reached: ")
        assert process.poll() is None
        other, its_line = stack.enter_context(watching(job, url=url))
        its_line(f"{job} · queued")
        other.send_signal(signal.SIGINT)
        assert other.wait(PATIENCE_S) == 130
        with serving(url, "--workers", "none", "--port", port) as _:
            line("it answers again")
            served.cancel(job)
            line(f"{job} · cancelled")
            assert process.wait(PATIENCE_S) == 0


def test_a_watcher_that_is_interrupted_while_all_is_away_ends(tmp_path: Path) -> None:
    """There is no traceback, and nothing to wait for."""
    url = database(f"sqlite:///{tmp_path}/advisor.db")
    with opened(url, recorded()) as served, ExitStack() as stack:
        served.jobs.submit(Submission("org/model", {"lengths": "8"}, 0, "a device"))
        with serving(url, "--workers", "none") as (_, address):
            process, line = stack.enter_context(watching("--server", address))
            line("queued")
        line("can't be reached")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_where_no_daemon_is_a_line_says_so(tmp_path: Path) -> None:
    """Nobody, and a server of files."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it does not listen
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for command in (
            ["jobs"],
            ["cancel", "x"],
            ["submit", "org/model", "--lengths", "8"],
            ["suggest", "org/model", "--lengths", "8"],
        ):
            ran = run_here(*command, "--server", address)
            assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
            assert ran.stderr.startswith(f"advisor: the daemon at {address} can't be reached: ")
            assert "advisor serve starts one" in ran.stderr

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        for command, status in (["jobs"], 404), (["submit", "org/model", "--lengths", "8"], 501):
            address = f"http://127.0.0.1:{server.server_address[1]}"
            ran = run_here(*command, "--server", address)
            assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
            assert f"{address} answers with status {status}" in ran.stderr
            assert "(is it the address that advisor serve printed?)" in ran.stderr
        server.shutdown()
        thread.join()


def test_a_command_that_ends_writes_no_log_afterwards(tmp_path: Path) -> None:
    """What it logged to is closed by then, and whoever goes on in its process has the log that was there before."""
    root, own = logging.getLogger(), logging.getLogger("advisor")
    before = root.handlers[:], root.level, own.level
    ran = run_here("worker", ADVISOR_DATABASE_URL=f"sqlite:///{tmp_path}")

    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert (root.handlers, root.level, own.level) == before
