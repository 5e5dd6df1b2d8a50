"""The warm parent: imports torch and transformers once, touches no GPU, and forks every fresh worker process.

Started as `python -m advisor.measure.forkserver FD [dies-with-parent]`, where FD is a socket to who asks for workers
(`advisor.measure.launch`). Importing takes 12 to 20 s on a machine with a GPU, a fork some milliseconds. What would make a fork
unsafe is left to the workers: no operation of torch runs here (its threads do not survive a fork), nothing asks the driver
("Cannot re-initialize CUDA in forked subprocess"), and what initialises CUDA when it is imported (flash_attn, some model
modules), like a model's remote code, is imported by the workers. After the import it says whether it may be forked.

Messages are JSON lines. To here: {"environment": {...}, "serial": n}, with the descriptors of a worker's stdin, stdout, stderr
and of what else it is to inherit. From here: {"ready": bool, "why_not": str}, once; {"started": pid, "serial": n} or
{"failed": str, "serial": n}; {"ended": pid, "serial": n, "status": int}, with the status as `subprocess` has it.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from advisor.machine.device import gpus
from advisor.machine.leftovers import die_with_parent, name_process

#: A parent without workers that nobody has asked for anything in so many seconds ends: a notebook may stay open for days.
IDLE_S = 900.0

#: The most descriptors that come with a request, and the bytes that are read at once.
_MOST_DESCRIPTORS, _BYTES = 8, 2**20


#: What keeps imports from starting threads of their own, and from asking the driver: torch can ask NVML whether there is a GPU.
_QUIET = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


#: What transformers asks whether a package is there, and imports it for what no worker does: scikit-learn for a threshold in
#: assisted generation, scipy for the losses of object detection. With pandas and pyarrow behind them they take 1.3 s and more.
_NEEDLESS = ("is_sklearn_available", "is_scipy_available")


@contextmanager
def _without_needless() -> Iterator[None]:
    """Leave out what no worker needs of transformers' own imports; a model's module that is imported later finds all there is."""
    from transformers import utils

    own = {name: getattr(utils, name) for name in _NEEDLESS if hasattr(utils, name)}
    for name in own:
        setattr(utils, name, lambda: False)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(utils, name, function)


class _Properties:
    """A GPU's properties while packages are imported: of which capability it is, by NVML; the rest as torch says."""

    def __init__(self, capability: tuple[int, int], ask: Callable[[], Any]) -> None:
        """Take what NVML says and how torch is asked for the rest."""
        self.major, self.minor = capability
        self._ask = ask

    def __getattr__(self, name: str) -> Any:
        """Ask torch, which initialises CUDA: then this process is not forked, and says so."""
        return getattr(self._ask(), name)


@contextmanager
def _capability_from_nvml() -> Iterator[None]:
    """Have NVML say the GPU's compute capability to what asks torch for it while it is imported, for torch initialises CUDA.

    torchao does, by itself and by asking torch whether Triton can be used, and transformers imports it wherever it is installed.
    Where this machine's GPUs differ nobody knows here which of them a worker is to use: then they ask torch.
    """
    import torch

    found = {gpu.compute_capability for gpu in gpus()[0]}
    capability = found.pop() if len(found) == 1 else None
    if capability is None:
        yield
        return
    # Dynamo keeps torch's functions by identity, so that it has to see the true ones.
    from torch._dynamo import device_interface

    answers: dict[str, Callable[..., Any]] = {
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: _Properties(
            capability, lambda: own["get_device_properties"](device)
        ),
        "current_device": lambda: 0,
    }
    own, is_over = {name: getattr(torch.cuda, name) for name in answers}, False

    def instead_of(name: str) -> Callable[..., Any]:
        """Return what answers by NVML now; and as torch does to who kept this function for later."""

        def answered(*device: Any, **named: Any) -> Any:
            return (own if is_over else answers)[name](*device, **named)

        return answered

    for name in answers:
        setattr(torch.cuda, name, instead_of(name))
    try:
        yield
    finally:
        is_over = True
        for name, function in own.items():
            setattr(torch.cuda, name, function)
        device_interface.caching_worker_device_properties.pop("cuda", None)  # a worker asks for all of them


def _import_all() -> None:
    """Import what every worker needs. Nothing is collected meanwhile: it would find nothing, and take a tenth of the time."""
    gc.disable()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with _capability_from_nvml():
        with _without_needless():
            importlib.import_module("transformers.modeling_utils")
        for name in ("transformers.models.auto.modeling_auto", "advisor.measure.worker"):
            importlib.import_module(name)
    _know_renamings()
    gc.enable()


def _know_renamings() -> None:
    """Have transformers compile the patterns by which it renames weights: every worker that loads a model would, for 0.3 s."""
    with suppress(Exception):  # transformers' business: where it is done otherwise, workers still do what they need
        from transformers import conversion_mapping

        conversion_mapping.get_checkpoint_conversion_mapping("llama")


def _why_not() -> str:
    """Return "" or why this process can't be forked safely after its imports.

    Threads that Python does not know are NVML's (a fork beside it ran CUDA, 20 times of 20 on an H100) or wait for nothing.
    """
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "importing torch and transformers initialised CUDA"
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return f"importing torch and transformers started threads: {', '.join(threads)}" if threads else ""


class Server:
    """One socket, and the workers that were asked for over it: their serial numbers by pid."""

    def __init__(self, control: socket.socket) -> None:
        """Take a socket; nothing is read yet."""
        self.control = control
        self.workers: dict[int, int] = {}
        self._woken, waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Fork a worker for every request until the other end is closed, or nothing was asked for a long time."""
        buffer, descriptors = b"", list[int]()
        while True:
            ready, _, _ = select.select([self.control.fileno(), self._woken], [], [], IDLE_S)
            if not ready and not self.workers:
                return
            if self._woken in ready:
                self._tell_ended()
            if self.control.fileno() not in ready:
                continue
            data, more = _receive(self.control)
            if not data:
                return
            buffer, descriptors = buffer + data, [*descriptors, *more]
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                request = json.loads(line)
                given, descriptors = descriptors[: request["descriptors"]], descriptors[request["descriptors"] :]
                self._fork(request["environment"], given, request["serial"])

    def say(self, message: Mapping[str, object]) -> None:
        """Send a message; who is gone is noticed by reading."""
        try:
            self.control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            os._exit(0)

    def _fork(self, environment: Mapping[str, str], descriptors: list[int], serial: int) -> None:
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see _why_not
                pid = os.fork()
        except OSError as error:
            self.say({"failed": f"no process could be forked: {error.strerror}", "serial": serial})
            pid = -1
        if pid == 0:
            self.control.close()
            _work(environment, descriptors, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid < 0:
            return
        with suppress(OSError):  # as the worker does itself: whichever is first, its group is there when it is told of
            os.setpgid(pid, pid)
        self.workers[pid] = serial
        self.say({"started": pid, "serial": serial})

    def _tell_ended(self) -> None:
        while True:
            try:
                if not os.read(self._woken, 512):
                    break
            except BlockingIOError:
                break
        for pid in list(self.workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                serial = self.workers.pop(pid)
                self.say({"ended": pid, "serial": serial, "status": os.waitstatus_to_exitcode(status)})


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return what came, and the descriptors that came with it."""
    found = array.array("i")
    data, ancillary, _, _ = control.recvmsg(_BYTES, socket.CMSG_SPACE(_MOST_DESCRIPTORS * found.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return data, list(found)


def _work(environment: Mapping[str, str], descriptors: list[int], parent: int) -> NoReturn:
    """Be a worker: a process group of its own, with its own stdin, stdout and stderr. The lock of a device stays open."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        die_with_parent(parent)
        name_process("advisor-worker")
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        from advisor.measure import worker

        worker.main()
        status = 0
    except BaseException:  # noqa: BLE001  (whatever it is, this process must not go on as a server)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Import, say whether workers can be forked, and serve."""
    if sys.argv[2:] == ["dies-with-parent"]:
        die_with_parent()
    name_process("advisor-warm")
    server = Server(socket.socket(fileno=int(sys.argv[1])))
    _import_all()
    why_not = _why_not()
    server.say({"ready": not why_not, "why_not": why_not})
    if not why_not:
        gc.collect()
        gc.freeze()  # what is here already is not looked at again by the workers' collectors, which would copy its pages
        server.serve()


if __name__ == "__main__":
    main()
