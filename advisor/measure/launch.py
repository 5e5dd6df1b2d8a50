"""Start a worker process: forked from a warm parent that has imported torch and transformers, or else spawned.

The warm parent (`advisor.measure.forkserver`) is a single-threaded process of its own, one for an environment, kept for as long
as this process lives: a tune pays for the import once, a daemon once in its life. ADVISOR_START=spawn, another system than Linux,
and imports that can't be forked make every worker a new Python; the listener is told so.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
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

from advisor.machine.leftovers import mark

#: The variable that says how workers start: "fork" (where that can be) or "spawn".
START = "ADVISOR_START"

#: How long a warm parent may take to fork (seconds), and how long one thread keeps the others from its messages.
FORK_S, _SLICE_S = 60.0, 0.1

#: What a worker's end is called where nobody saw its status: its parent was killed with it.
_KILLED = -int(signal.SIGKILL)

#: Variables that are set for a worker when it starts: they differ by device. OpenMP reads its number of threads when torch is
#: imported; the worker sets it anew.
_OF_A_RUN = frozenset({"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "ADVISOR_THREADS", "OMP_NUM_THREADS"})

#: Variables of ours that no worker reads; two of them are secret, and a model's own code may run in a worker.
_OF_THE_ASKING = frozenset({"ADVISOR_DATABASE_URL", "ADVISOR_LOCK_DIR", "ADVISOR_TOKEN"})

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


class NotReady(Exception):
    """The warm parent still imports."""


class Forked:
    """A worker that was forked from a warm parent, with the pipes to it. serial: what it is known by, for pids are used again."""

    def __init__(self, warm: WarmParent, serial: int, pid: int, pipes: tuple[IO[bytes], IO[bytes]]) -> None:
        """Take over the pipes."""
        self._warm, self._serial, self.pid = warm, serial, pid
        self.stdin: IO[bytes] | None
        self.stdout: IO[bytes] | None
        self.stdin, self.stdout = pipes

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        return self._warm.status_of(self._serial, 0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended. Raises subprocess.TimeoutExpired where it did not in time."""
        status = self._warm.status_of(self._serial, math.inf if timeout is None else timeout)
        if status is None:
            raise subprocess.TimeoutExpired("advisor.measure.worker", timeout or 0.0)
        return status


class WarmParent:
    """A process that forks workers. environment: of the import; workers differ from it in what is set for each run alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it; it imports while others go on here. Raises OSError where no process can be started."""
        self.environment, self.folder = dict(environment), Path.cwd()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._control, theirs = socket.socketpair()
        self._lock, self._buffer = threading.Lock(), b""
        self._serials = itertools.count(1)
        self._said: dict[str, Any] | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._alive: set[int] = set()
        self._statuses: dict[int, int] = {}
        self.refused = ""
        # Who is killed takes its children along; but Linux means the thread that started them, and another one may end sooner.
        dies_with_us = "dies-with-parent" if threading.current_thread() is threading.main_thread() else ""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "advisor.measure.forkserver", str(theirs.fileno()), dies_with_us],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=self.environment,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_idle(self) -> bool:
        """Whether none of its workers runs."""
        with suppress(CantFork):
            self._read(0.0)
        return self._process.poll() is not None or not self._alive

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether workers of this environment, started from the folder we are in, are its business.

        One that refused once is kept to refuse again: another one would import for as long, and say the same.
        """
        is_usable = bool(self.refused) or self._process.poll() is None
        return is_usable and _imported(self.environment) == _imported(environment) and self.folder == Path.cwd()

    def await_ready(self, timeout_s: float) -> None:
        """Wait for its import. Raises NotReady where that takes longer, CantFork where it can't import or be forked."""
        if self.refused:
            raise CantFork(self.refused)
        try:
            self._read_until(lambda: self._said is not None, timeout_s)
        except CantFork as error:
            self.refused = str(error)
            raise
        if self._said is None:
            raise NotReady
        self.refused = str(self._said["why_not"])
        if self.refused:
            raise CantFork(self.refused)

    def fork(
        self, environment: Mapping[str, str], descriptors: Sequence[int], pipes: tuple[IO[bytes], IO[bytes]]
    ) -> Forked:
        """Fork a worker. descriptors: its stdin, stdout, stderr and what else it inherits; pipes: our ends of the first two.

        Raises CantFork where the parent is gone or has no process left. A worker whose start is waited for in vain finds
        its stdin closed, and ends.
        """
        serial = next(self._serials)
        request = {"environment": dict(environment), "descriptors": len(descriptors), "serial": serial}
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode() + b"\n"], descriptors)
            except OSError as error:
                raise CantFork(f"it is gone: {error.strerror}") from None
        self._read_until(lambda: serial in self._answers, FORK_S)
        answer = self._answers.pop(serial, {"failed": f"nothing was heard of it for {FORK_S:.0f} s"})
        if "failed" in answer:
            raise CantFork(str(answer["failed"]))
        return Forked(self, serial, int(answer["started"]), pipes)

    def status_of(self, serial: int, timeout_s: float) -> int | None:
        """Return how a worker ended, None where it did not within so many seconds; killed, where its parent is gone."""
        try:
            self._read_until(lambda: serial in self._statuses, timeout_s)
        except CantFork:
            return self._statuses.setdefault(serial, _KILLED)
        return self._statuses.get(serial)

    def close(self) -> None:
        """End it, and all that was forked from it."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _read_until(self, is_there: Callable[[], bool], timeout_s: float) -> None:
        """Read messages until something is there or the time is over. Raises CantFork at the end of the channel."""
        until = time.monotonic() + timeout_s
        while not is_there():
            left_s = until - time.monotonic()
            self._read(min(max(left_s, 0.0), _SLICE_S))
            if left_s <= 0:
                return

    def _read(self, timeout_s: float) -> None:
        """Take in what comes within a short time: other threads wait for the lock as long. Raises CantFork at the end."""
        with self._lock:
            data = b""
            try:
                if not select.select([self._control], [], [], timeout_s)[0]:
                    return
                data = self._control.recv(2**16)
            except (OSError, ValueError):  # closed here, or reset there
                pass
            if not data:
                raise CantFork(self._last_words() or "it is gone")
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._said = message
        elif "ended" in message:
            self._alive.discard(message["serial"])
            self._statuses[message["serial"]] = int(message["status"])
        else:
            self._answers[message["serial"]] = message
            self._alive |= {message["serial"]} if "started" in message else set()

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

#: One thread at a time starts and ends them: two tunes of one process can be of different environments.
_changing = threading.Lock()


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
    with _changing:
        for parent in list(_parents):
            if not parent.serves(environment) and parent.is_idle:
                _parents.remove(parent)
                parent.close()
        serving = next((parent for parent in _parents if parent.serves(environment)), None)
        if serving is None:
            try:
                serving = WarmParent(environment)
            except OSError:  # no process to be had, or the folder we are in is gone: who spawns a worker says so
                return None
            _parents.append(serving)
        return serving


@atexit.register
def cool_down() -> None:
    """End all warm parents."""
    with _changing:
        while _parents:
            _parents.pop().close()


def launch(
    environment: Mapping[str, str], errors: int, inherited: Sequence[int], listener: Listener, timeout_s: float
) -> Process:
    """Start a worker and return it. errors: the descriptor of its stderr; inherited: what else it keeps open.

    listener: is told where it could not be forked, and why. Raises NotReady where the import takes longer than timeout_s.
    """
    warm = warm_up(environment)
    if warm is not None:
        try:
            warm.await_ready(timeout_s)
            return _forked(warm, environment, errors, inherited)
        except CantFork as error:
            listener({"event": "stage", "stage": f"every worker imports torch anew: forking was refused ({error})"})
    return subprocess.Popen(
        [sys.executable, "-m", "advisor.measure.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=dict(environment),
        start_new_session=True,
        pass_fds=list(inherited),
    )


def _forked(warm: WarmParent, environment: Mapping[str, str], errors: int, inherited: Sequence[int]) -> Forked:
    ours, theirs = os.pipe(), os.pipe()
    stdin, stdout = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
    try:
        return warm.fork(environment, [ours[0], theirs[1], errors, *inherited], (stdin, stdout))
    except BaseException:
        stdin.close()
        stdout.close()
        raise
    finally:
        os.close(ours[0])
        os.close(theirs[1])
