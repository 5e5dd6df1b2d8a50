"""Empty databases of this version, laid where a test wants one: the migrations take 80 ms, and their file is always the same.

Who tests how a database comes to be opens its own.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from advisor.knobs import KNOBS
from advisor.storage.place import file_of, place_of
from advisor.storage.store import Store


def laid(url: str) -> str:
    """Lay an empty database where a SQLite URL says, unless there is one already, and return the URL; others are left alone."""
    file = file_of(place_of(url))
    if file is not None and not file.exists():
        file.write_bytes(_empty(tuple((name, knob.implied) for name, knob in KNOBS.items())))
    return url


@cache
def _empty(knobs: tuple[tuple[str, str], ...]) -> bytes:
    """Return the file that migrations make. knobs: all of them and what they imply, which is stored in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        Store.open(f"sqlite:///{file}", write=True).close()
        return file.read_bytes()
