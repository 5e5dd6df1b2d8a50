"""Start a worker process: forked from a warm parent that has imported torch and transformers, or else spawned.

The warm parent (`advisor.forkserver`) is a single-threaded process of its own, one for an environment, kept for as long as this
process lives: a tune pays for the import once, a daemon once in its life. ADVISOR_START=spawn, another system than Linux, and
imports that can't be forked make every worker a new Python; the listener is told so.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from advisor.leftovers import mark

#: The variable that says how workers start: "fork" (where that can be) or "spawn".
START = "ADVISOR_START"

#: How long a warm parent may take to import, and to fork (seconds): a slow disk reads torch for minutes.
IMPORT_S, FORK_S = 600.0, 60.0

#: What a worker's end is called where nobody saw its status: its parent was killed with it.
_KILLED = -int(signal.SIGKILL)

#: Variables that are set for a worker when it starts: they differ by device, and nothing that is imported reads them.
_OF_A_RUN = frozenset({"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "ADVISOR_THREADS", "OMP_NUM_THREADS"})

#: Variables of ours that no worker reads.
_OF_THE_ASKING = frozenset({"ADVISOR_DATABASE_URL", "ADVISOR_LOCK_DIR"})

Listener = Callable[[Mapping[str, Any]], None]


class Process(Protocol):
    """A worker: as much of `subprocess.Popen` as its runner needs."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended. Raises subprocess.TimeoutExpired where it did not in time."""


class CantFork(Exception):
    """Workers can't be forked; the text says why."""


class Forked:
    """A worker that was forked from a warm parent, with the pipes to it."""

    def __init__(self, warm: WarmParent, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Take over the pipes."""
        self._warm, self.pid = warm, pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        return self._warm.status_of(self.pid, 0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended. Raises subprocess.TimeoutExpired where it did not in time."""
        status = self._warm.status_of(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired("advisor.worker", timeout or 0.0)
        return status


class WarmParent:
    """A process that forks workers. environment: of the import; workers differ from it in what is set for each run alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it; it imports while others go on here. Raises OSError where no process can be started."""
        self.environment, self.folder = dict(environment), Path.cwd()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._buffer, self._is_ready = b"", False
        self._forked: set[int] = set()
        self._statuses: dict[int, int] = {}
        self.refused = ""
        # Who is killed takes its children along; but Linux means the thread that started them, and another one may end sooner.
        dies_with_us = "dies-with-parent" if threading.current_thread() is threading.main_thread() else ""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "advisor.forkserver", str(theirs.fileno()), dies_with_us], stdin=subprocess.DEVNULL,
                stdout=self._errors, stderr=self._errors, env=self.environment, start_new_session=True,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip

    @property
    def is_idle(self) -> bool:
        """Whether none of its workers runs."""
        with self._lock, suppress(CantFork):
            self._read(0.0)
        return self._process.poll() is not None or self._forked <= self._statuses.keys()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether workers of this environment, started from the folder we are in, are its business.

        One that refused once is kept to refuse again: another one would import for as long, and say the same.
        """
        is_usable = bool(self.refused) or self._process.poll() is None
        return is_usable and _imported(self.environment) == _imported(environment) and self.folder == Path.cwd()

    def fork(
        self, environment: Mapping[str, str], descriptors: Sequence[int], pipes: tuple[IO[bytes], IO[bytes]]
    ) -> Forked:
        """Fork a worker. descriptors: its stdin, stdout, stderr and what else it inherits; pipes: our ends of the first two.

        Raises CantFork where the parent can't import, may not be forked, or is gone.
        """
        with self._lock:
            self._await_ready()
            request = {"environment": dict(environment), "descriptors": len(descriptors)}
            try:
                socket.send_fds(self._control, [json.dumps(request).encode() + b"\n"], descriptors)
            except OSError as error:
                raise CantFork(f"it is gone: {error.strerror}") from None
            pid = int(self._message("started", FORK_S)["started"])
            self._forked.add(pid)
            return Forked(self, pid, *pipes)

    def status_of(self, pid: int, timeout: float | None) -> int | None:
        """Return how a worker ended, None where it did not within so many seconds; killed, where its parent is gone."""
        until = None if timeout is None else time.monotonic() + timeout
        while pid not in self._statuses:
            left = None if until is None else max(0.0, until - time.monotonic())
            with self._lock:
                try:
                    self._read(left)
                except CantFork:
                    return self._statuses.setdefault(pid, _KILLED)
            if left == 0.0 and pid not in self._statuses:
                return None
        return self._statuses[pid]

    def close(self) -> None:
        """End it, and all that was forked from it."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _await_ready(self) -> None:
        if self.refused:
            raise CantFork(self.refused)
        if self._is_ready:
            return
        try:
            found = self._message("ready", IMPORT_S)
        except CantFork as error:
            self.refused = str(error)
            raise
        self.refused, self._is_ready = found["why_not"], bool(found["ready"])
        if self.refused:
            raise CantFork(self.refused)

    def _message(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Return the next message of this name; the ends of workers that come before it are kept."""
        until = time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0:
            for message in self._read(left_s):
                if name in message:
                    return message
        raise CantFork(f"nothing was heard of it for {timeout_s:.0f} s")

    def _read(self, timeout: float | None) -> list[dict[str, Any]]:
        """Return the messages that come within the time, and keep the statuses among them. Raises CantFork at the end."""
        if not select.select([self._control], [], [], timeout)[0]:
            return []
        data = b""
        with suppress(ConnectionResetError):
            data = self._control.recv(2**16)
        if not data:
            raise CantFork(self._last_words() or "it is gone")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._statuses |= {int(each["ended"]): int(each["status"]) for each in messages if "ended" in each}
        return messages

    def _last_words(self) -> str:
        """Return the last line of what it wrote, at most 300 characters."""
        with suppress(OSError, ValueError):
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
            return lines[-1][:300] if lines else ""
        return ""


def _imported(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that what is imported may read."""
    return {name: value for name, value in environment.items() if name not in _OF_A_RUN}


_parents: list[WarmParent] = []


def shared_environment() -> dict[str, str]:
    """Return the environment variables of all workers, whatever their device.

    Without what is the asking process's business alone: a password has no place in another process, and what nobody there reads
    is no reason for importing again.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _OF_THE_ASKING},
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "BITSANDBYTES_NOWELCOME": "1",
        "PYTHONUNBUFFERED": "1",
        **mark(),
    }


def warm_up(environment: Mapping[str, str] | None = None) -> WarmParent | None:
    """Return the warm parent for workers of an environment, started where there is none; None where workers are spawned.

    environment: `shared_environment` where it is None. It imports beside whatever comes next here. Those of other environments
    are ended where none of their workers runs.
    """
    if environment is None:
        environment = shared_environment()
    if sys.platform != "linux" or environment.get(START, "fork") != "fork":
        return None
    for parent in list(_parents):
        if not parent.serves(environment) and parent.is_idle:
            parent.close()
            _parents.remove(parent)
    serving = next((parent for parent in _parents if parent.serves(environment)), None)
    if serving is None:
        serving = WarmParent(environment)
        _parents.append(serving)
    return serving


@atexit.register
def cool_down() -> None:
    """End all warm parents."""
    while _parents:
        _parents.pop().close()


def launch(environment: Mapping[str, str], errors: int, inherited: Sequence[int], listener: Listener) -> Process:
    """Start a worker and return it. errors: the descriptor of its stderr; inherited: what else it keeps open.

    listener: is told where it could not be forked, and why.
    """
    warm = warm_up(environment)
    if warm is not None:
        ours, theirs = os.pipe(), os.pipe()
        stdin, stdout = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        try:
            return warm.fork(environment, [ours[0], theirs[1], errors, *inherited], (stdin, stdout))
        except CantFork as error:
            stdin.close()
            stdout.close()
            listener({"event": "stage", "stage": f"every worker imports torch anew: forking was refused ({error})"})
        finally:
            os.close(ours[0])
            os.close(theirs[1])
    return subprocess.Popen(
        [sys.executable, "-m", "advisor.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env=dict(environment), start_new_session=True, pass_fds=list(inherited),
    )  # fmt: skip
