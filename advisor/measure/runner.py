"""Run one configuration: the seam between the search and the GPU.

:class:`LocalRunner` keeps one worker process per device, speaks JSON lines with it, and holds the deadline: it sleeps in
`select` while the worker works, and kills the worker's whole process group when time is up. A GPU is measured by one
process at a time, under an exclusive lock named after its UUID, which the worker inherits: it is free only when both are
gone.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Protocol

from advisor.errors import AdvisorError
from advisor.knobs import compiles
from advisor.machine.leftovers import sweep
from advisor.machine.locks import lock_path, open_lock, wanting
from advisor.measure.launch import NotReady, Process, launch, shared_environment
from advisor.measure.lines import NoMessage
from advisor.measure.messages import (
    FIRST_CALL,
    Answer,
    BlockAsked,
    Done,
    FactsAsked,
    FactsRead,
    Failure,
    Ready,
    Request,
    StageEvent,
    TrialAsked,
    TrialDone,
    decode_event,
    is_answered,
    numbered,
    words_of,
)
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.trial import Outcome
from advisor.workloads import Workload

#: What a worker may write without saying anything, before it is taken for broken (bytes).
_LINE_LIMIT = 64 * 2**20

#: How often a model's facts are read again where what failed may be the moment's.
AGAIN = 2

#: How long a device that is taken is left alone between two looks, seconds.
LOCK_PAUSE_S = 0.1

Listener = Callable[[Mapping[str, Any]], None]


class Runner(Protocol):
    """Runs one request and returns its answer: of the class that the request names, or a Failure."""

    @property
    def interrupted(self) -> str:
        """Why nothing is run any more, "" while it is."""

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Run it within `timeout_s` seconds. Raises Interrupted."""

    def restart(self) -> None:
        """Have the next request run in a fresh process, and keep the device."""

    def close(self) -> None:
        """Free the device."""


class DeviceTaken(Exception):
    """Another advisor measured on the device for as long as it was waited for."""


class Interrupted(Exception):
    """Somebody stopped what ran, and says why. What was stored stays, and the trial that ran is left behind for another tune."""


class LocalRunner:
    """A worker process on this machine, started when it is first needed and replaced after any failure.

    lock_wait_s: how long the device is waited for where another advisor measures on it; None: as long as that takes.
    waited_s: how long it was. is_by_hand: whether somebody waits for what it runs: a daemon gives the device back to them.
    start_s: seconds until the last process was there: of an import where it was spawned, of a fork else.
    """

    def __init__(self, machine: Machine, listener: Listener | None = None, *, is_by_hand: bool = True) -> None:
        """Take a device; nothing is started or locked yet. listener: hears the worker's stages and rounds."""
        self.machine, self.listener = machine, listener or (lambda _: None)
        self._process: Process | None = None
        self._errors: Any = None
        self._lock: int | None = None
        self._buffer = b""
        self._count = 0
        self.is_by_hand = is_by_hand
        self.lock_wait_s: float | None = None
        self.waited_s = self.start_s = 0.0
        self.interrupted = ""
        self._launched_at = 0.0
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, _close_both, self._wake, self._waker)

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Run a request and return its answer: whatever the worker does is an outcome, and within `timeout_s` seconds.

        Raises Interrupted, with the worker's whole process group killed, as soon as :meth:`interrupt` says so.
        """
        self._refuse_interrupted()
        self._count += 1
        deadline = time.monotonic() + timeout_s
        if self._process is None or self._process.poll() is not None:
            self._kill()
            try:
                self._take_lock()
                deadline = time.monotonic() + timeout_s  # only now: another advisor may have held the device for hours
                self._start(timeout_s)
            except DeviceTaken:
                reason = f"another advisor measured on {self.machine.uuid} all the time"
                return Failure(outcome=Outcome.TIMEOUT, reason=reason, transient=True)
            except NotReady:
                reason = f"torch and transformers were not imported after {timeout_s:.0f} s"
                return Failure(outcome=Outcome.TIMEOUT, reason=reason, transient=True)
        line = numbered(self._count, self.machine.torch_device, self.machine.uuid, request)
        try:
            assert self._process is not None
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # a worker that died is found by its closed channel
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
            answer = self._wait(request, deadline, timeout_s)
        except BaseException:
            self._kill()
            raise
        if isinstance(answer, (Failure, TrialDone)) and answer.outcome.is_failure:
            self._kill()
        return answer

    def interrupt(self, why: str) -> None:
        """Have what runs now killed at once, and nothing run from now on. From any thread."""
        self.interrupted = why
        os.write(self._waker, b"\0")

    def restart(self) -> None:
        """Stop the worker but keep the device: the next request gets a fresh process."""
        self._kill()

    def close(self) -> None:
        """Stop the worker and free the device."""
        self._kill()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _start(self, timeout_s: float) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._buffer = b""
        inherited = [self._lock] if self._lock is not None else []
        began = time.monotonic()
        self._process = launch(environment_of(self.machine), self._errors.fileno(), inherited, self.listener, timeout_s)
        # The import comes once: what it took is no part of what the next process will take.
        self._launched_at = began if isinstance(self._process, subprocess.Popen) else time.monotonic()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        path = lock_path(self.machine.uuid)
        try:
            self._lock = open_lock(path)
        except OSError as error:
            is_there = path.parent.is_dir()
            remedy = (
                "remove it, or name another folder" if is_there else f"create {path.parent}, or name another folder"
            )
            raise AdvisorError(
                f"the device's lock {path} can't be opened: {error.strerror}", f"{remedy} in ADVISOR_LOCK_DIR"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sweep()  # a worker whose tune is gone may hold it
            self.listener({"event": "stage", "stage": f"waiting: another advisor measures on {self.machine.uuid}"})
            began = time.monotonic()
            try:
                with wanting(self.machine.uuid) if self.is_by_hand else nullcontext():
                    self._wait_for_lock()
            finally:
                self.waited_s += time.monotonic() - began

    def _wait_for_lock(self) -> None:
        """Wait until the device is free. Raises DeviceTaken where it does not get free in time."""
        assert self._lock is not None
        until = math.inf if self.lock_wait_s is None else time.monotonic() + self.lock_wait_s
        while time.monotonic() < until and not self.interrupted:
            with suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            select.select([self._wake], [], [], LOCK_PAUSE_S)
        os.close(self._lock)
        self._lock = None
        self._refuse_interrupted()
        raise DeviceTaken

    def _refuse_interrupted(self) -> None:
        if self.interrupted:
            raise Interrupted(self.interrupted)

    def _wait(self, request: Request, deadline: float, timeout_s: float) -> Answer:
        """Sleep until the worker answers, closes its channel or the deadline passes."""
        stage = ""
        while (left_s := deadline - time.monotonic()) > 0:
            lines = self._lines(left_s)
            if lines is None:
                return self._died()
            for line in lines:
                try:
                    event = decode_event(line)
                except NoMessage:
                    return _not_understood("no message", line)
                if isinstance(event, StageEvent):
                    stage = event.stage
                if isinstance(event, Ready):
                    self.start_s = time.monotonic() - self._launched_at
                if isinstance(event, Done) and event.id == self._count:
                    return event.result if is_answered(request, event.result) else _not_understood("no answer", line)
                self.listener(words_of(event))
        asked = request.contestants if isinstance(request, BlockAsked) else ()
        asked = (request.configuration,) if isinstance(request, TrialAsked) else asked
        is_compiling = stage == FIRST_CALL and any(map(compiles, asked))
        text = (
            f"no result after {timeout_s:.0f} s{': it was still compiling for its first call' if is_compiling else ''}"
        )
        return Failure(outcome=Outcome.TIMEOUT, reason=text, transient=not is_compiling)

    def _lines(self, timeout_s: float) -> list[bytes] | None:
        """Return the whole lines that came within the time, none if it passed, None once the channel is closed."""
        assert self._process is not None
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        ready = select.select([stream, self._wake], [], [], timeout_s)[0]
        self._refuse_interrupted()
        if stream not in ready:
            return []
        data = os.read(stream, 2**16)
        if not data:
            return None
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _LINE_LIMIT:
            lines.append(self._buffer)
        return lines

    def _died(self) -> Failure:
        """Say how the worker ended: by which signal or status, with the end of what it wrote to stderr."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            reason = "the worker closed its channel and went on"
            return Failure(outcome=Outcome.RUNTIME_ERROR, reason=reason, transient=True)
        tail = self._error_text()
        if status == -signal.SIGKILL:
            reason = "the worker was killed (SIGKILL): most likely this machine ran out of memory"
            return Failure(outcome=Outcome.OUT_OF_MEMORY, reason=reason, transient=True)
        names = {int(member): member.name for member in signal.Signals}
        if status < 0:
            how = f"the worker died of {names.get(-status, f'signal {-status}')}"
        else:
            how = f"the worker ended with status {status}"
        started = "ImportError" not in tail and "ModuleNotFoundError" not in tail
        outcome = Outcome.RUNTIME_ERROR if started else Outcome.LOAD_FAILED
        return Failure(outcome=outcome, reason=f"{how}: {tail}" if tail else how, transient=started)

    def _error_text(self) -> str:
        """The last line of the worker's stderr that says something, at most 500 characters."""
        if self._errors is None:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:500] if lines else ""

    def _kill_group(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _kill(self) -> None:
        """Kill the worker with all its children and wait for it."""
        if self._process is not None:
            self._kill_group()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        if self._errors is not None:
            self._errors.close()
        self._process, self._errors = None, None


def _close_both(wake: int, waker: int) -> None:
    for end in (wake, waker):
        os.close(end)


def _not_understood(what: str, line: bytes) -> Failure:
    """Return the failure of a worker that said what nobody asked for; another may do better."""
    reason = f"the worker sent what is {what}: {line[:200].decode(errors='replace')!r}"
    return Failure(outcome=Outcome.RUNTIME_ERROR, reason=reason, transient=True)


def environment_of(machine: Machine) -> dict[str, str]:
    """Return the environment variables of a worker on a machine's device."""
    threads = str(machine.environment.threads or 1)
    return {
        **shared_environment(),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # One GPU, by its UUID: the only spelling that MIG has, and no ordinal can be mistaken for another.
        "CUDA_VISIBLE_DEVICES": machine.uuid if machine.environment.is_cuda else "",
        "ADVISOR_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }


def read_facts(runner: Runner, source: ModelSource, workload: Workload, timeout_s: float = 120.0) -> ModelFacts:
    """Return a model's facts for a workload, or raise AdvisorError with the reason why they can't be read."""
    asked = FactsAsked(source=source.files, workload=workload)
    answer = runner.run(asked, timeout_s)
    for _ in range(AGAIN):
        if isinstance(answer, Failure) and answer.transient:  # a worker that was killed says nothing of the model
            answer = runner.run(asked, timeout_s)
    if isinstance(answer, Failure):
        raise AdvisorError(f"the model can't be used: {answer.reason}")
    assert isinstance(answer, FactsRead)
    return answer.facts
