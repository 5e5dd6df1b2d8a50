"""Locks: who measures on a device of this machine, and who waits for it. The kernel lets go of them when a process ends.

One file a device, for every user and session of a machine: what is locked is the device, not somebody's run.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Folders for locks, by preference: kept by the system for that, and in the same place whoever asks.
_LOCK_FOLDERS = ("/run/lock", "/dev/shm", "/var/tmp", "/tmp")  # noqa: S108 - what is locked is the machine's

#: After how long it is looked again whether somebody waits for a device, seconds: who looks has the lock for an instant, too.
_PAUSES_S = (0.001, 0.004, 0.016)


def lock_path(uuid: str) -> Path:
    """Return the file that is locked exclusively by who measures on a device."""
    return lock_folder() / f"advisor-{uuid}.lock"


def is_held(uuid: str) -> bool:
    """Whether an advisor measures on a device."""
    return _is_locked(lock_path(uuid), fcntl.LOCK_SH)


def is_wanted(uuid: str) -> bool:
    """Whether somebody at a keyboard waits for a device that an advisor measures on."""
    path = _wanted_path(uuid)
    for pause_s in _PAUSES_S:  # another thread, or another daemon, may be looking
        if not _is_locked(path, fcntl.LOCK_EX):  # those who wait share it
            return False
        time.sleep(pause_s)
    return _is_locked(path, fcntl.LOCK_EX)


@contextmanager
def wanting(uuid: str) -> Iterator[None]:
    """Say, while this goes on, that somebody waits for a device: a daemon that measures on it gives it back."""
    try:
        wanted: int | None = open_lock(_wanted_path(uuid))
    except OSError:  # then it is waited for without a word
        wanted = None
    try:
        if wanted is not None:
            with suppress(OSError):
                fcntl.flock(wanted, fcntl.LOCK_SH)  # nobody has it alone for longer than a look
        yield
    finally:
        if wanted is not None:
            os.close(wanted)


def _wanted_path(uuid: str) -> Path:
    return lock_folder() / f"advisor-{uuid}.wanted"


def _is_locked(path: Path, how: int) -> bool:
    """Whether a file is locked so that it can't be locked like this too."""
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
    return False


def lock_folder() -> Path:
    """Return the folder for the locks of this machine's devices: the same one for every user and every session.

    ADVISOR_LOCK_DIR names another one. It does not depend on TMPDIR, nor on who asks: a folder counts as one for everybody
    where everybody may write to it.
    """
    if named := os.environ.get("ADVISOR_LOCK_DIR"):
        return Path(os.path.expandvars(named)).expanduser()
    for folder in map(Path, _LOCK_FOLDERS):
        with suppress(OSError):
            if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
                return folder
    return Path(tempfile.gettempdir())


def somebody_measures() -> bool:
    """Whether an advisor measures on a device of this machine: what is not needed yet is not begun beside it."""
    return any(_is_locked(path, fcntl.LOCK_SH) for path in lock_folder().glob("advisor-*.lock"))


def open_lock(path: Path) -> int:
    """Open a lock's file for reading, made where it is missing, for all users whatever the umask; return its descriptor."""
    with suppress(FileExistsError):
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        os.fchmod(made, 0o666)
        os.close(made)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
