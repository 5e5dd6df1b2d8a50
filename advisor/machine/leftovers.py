"""Whose a process, a folder or a trial is; and what a killed tune left behind is removed by the next.

An owner is named by host, pid namespace, pid and when it started, so that a pid that is used again, or that of another
container, is not taken for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What a process that a tune started is told of who that was, and all that it starts in turn.
OWNER = "ADVISOR_OWNER"

#: What owned something in this process, has ended, and could not say so where others look.
_ENDED: set[str] = set()


def owner(part: int | None = None) -> str:
    """Name this process: host, namespace, pid and when it started; or one of several that own something in it, by a number."""
    name = f"{_place()}:{os.getpid()}:{started(os.getpid())}"
    return name if part is None else f"{name}.{part}"


def ended(name: str) -> None:
    """Note that what `owner` named in this process is over, though the process lives, and what it owned could not be let go."""
    _ENDED.add(name)


def owner_is_alive(name: str) -> bool:
    """Whether what `owner` named is alive; one that can't be seen from here counts as alive until its lease ends."""
    if name in _ENDED:
        return False
    host, pid, began = (*name.rsplit(":", 2), "", "")[:3]
    if not pid.isdecimal():
        return True  # no name that was made here
    return host != _place() or (started(int(pid)) or "gone") == began.partition(".")[0]


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); "" where it is gone, a zombie or unreadable."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _place() -> str:
    """Name where pids mean what they mean here: this host's, in this namespace. Containers can share a host's name."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}/{namespace}"


def _here() -> str:
    """Return the same, short and fit for a file's name. Containers can share a folder."""
    return hashlib.sha256(_place().replace("/", ":").encode()).hexdigest()[:8]


@contextmanager
def working_folder() -> Iterator[str]:
    """Give a folder for this while, named after this process; and remove what processes that are gone left behind."""
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"advisor-{_here()}-{os.getpid()}-{started(os.getpid())}-") as folder:
        yield folder


def sweep() -> None:
    """Remove the folders and end the processes of tunes that are gone, this user's on this host."""
    name = re.compile(rf"advisor-{_here()}-(\d+)-(\d+)-\w+")
    for folder in Path(tempfile.gettempdir()).glob("advisor-*"):
        match = name.fullmatch(folder.name)
        if match is not None and started(int(match[1])) != match[2] and _is_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for process in Path("/proc").glob("[0-9]*"):
        if _is_orphan(process):
            with suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is one, and this user's: not a link that somebody put there."""
    with suppress(OSError):
        seen = folder.lstat()
        return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid()
    return False


def _is_orphan(process: Path) -> bool:
    """Whether a process was started by a tune that is gone."""
    try:
        if process.stat().st_uid != os.geteuid():
            return False
        told = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    names = [line.partition(b"=")[2].decode(errors="replace") for line in told if line.startswith(f"{OWNER}=".encode())]
    where = [name.partition("/") for name in names]
    return any(here == _here() and whose.count(":") >= 2 and not owner_is_alive(whose) for here, _, whose in where)


def mark() -> dict[str, str]:
    """Return what a process that is started here is to have in its environment, so that it can be told whose it is."""
    return {OWNER: f"{_here()}/{owner()}"}


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process with the thread that started it (prctl PR_SET_PDEATHSIG); elsewhere nothing is done.

    parent: its pid, where it is known: one that died before it was asked is not noticed by Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(0)


def name_process(name: str) -> None:
    """Have `ps` and `top` call this process so (prctl PR_SET_NAME, at most 15 characters): a fork is called like its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(15, name.encode())
