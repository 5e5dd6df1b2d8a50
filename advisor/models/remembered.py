"""A model that was found before, as long as none of its files changed: for who answers many requests about few models.

Finding one reads its config, the header of every file of weights, and of the weights enough to tell them from others: of a
file up to 256 MiB all of it.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

from advisor.models.checkpoint import find_model
from advisor.nouns.model import ModelSource

#: By file: its path, inode, size in bytes, and when it and its inode were last changed, in nanoseconds.
Stamp = tuple[tuple[str, int, int, int, int], ...]

#: More files than these beside a model are not looked at for each answer: then it is found anew.
FILES_MOST = 500

#: What was changed less than so many nanoseconds ago may change again within the same tick of a file system's clock.
SETTLED_NS = 2 * 10**9

#: How deep below a model's folder files lie that say what it gives (sentence-transformers' modules).
_DEPTH = 2


class _TooMany(Exception):
    """There are more files than are looked at."""


def remembered_model(name: str, *, allow_pickle: bool = False) -> ModelSource:
    """Return what `find_model` does without a download, of memory where none of the model's files changed. Raises BadInput."""
    stamp = _stamp(name)
    if not stamp or time.time_ns() - max(max(each[3:]) for each in stamp) < SETTLED_NS:
        return find_model(name, allow_pickle=allow_pickle, download=False)
    return _found(name, allow_pickle, stamp)


@lru_cache(maxsize=256)
def _found(name: str, allow_pickle: bool, stamp: Stamp) -> ModelSource:
    """Return the model as it was found when its files had this stamp, which was taken before they were read."""
    return find_model(name, allow_pickle=allow_pickle, download=False)


def _stamp(name: str) -> Stamp:
    """Return the stamp of all files that a model's source depends on, empty where there are none, or too many."""
    try:
        path = _place(name)
        if path is None:
            return ()
        there = path.resolve()  # what lies beside a model is looked for where a link leads to
        folder = there if there.is_dir() else there.parent
        stamp = _stamp_of(folder, _DEPTH)
        above = folder.parent
        # A transformer's own folder can be one of several modules, which are listed above it, and lie beside it.
        return stamp + _stamp_of(above, _DEPTH) if (above / "modules.json").exists() else stamp
    except (OSError, ValueError, RuntimeError, _TooMany):
        return ()


def _place(name: str) -> Path | None:
    """Return the file or folder that a model is read of: as it is named, or in the hub's cache; None where there is neither."""
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _stamp_of(folder: Path, depth: int) -> Stamp:
    """Return the stamp of a folder's files, those of folders in it too. Raises OSError, _TooMany."""
    found: list[tuple[str, int, int, int, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            seen = entry.stat()  # of what a link leads to: the hub's cache is links
            found.append((entry.path, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
            if len(found) > FILES_MOST:
                raise _TooMany
            if depth > 1 and entry.is_dir():
                found += _stamp_of(Path(entry.path), depth - 1)
    return tuple(sorted(found))
