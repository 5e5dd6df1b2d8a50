"""Empty databases of this version, laid where a test wants one: the migrations take 80 ms, and their file is always the same.

Who tests how a database comes to be opens its own; so does who tests that a tune finds out what its device reaches at best.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from advisor.knobs import KNOBS
from advisor.machine import probe
from advisor.storage.place import file_of, place_of
from advisor.storage.store import Store


def laid(url: str) -> str:
    """Lay an empty database where a SQLite URL says, unless there is one already, and return the URL; others are left alone."""
    file = file_of(place_of(url))
    if file is not None and not file.exists():
        file.write_bytes(_empty(tuple((name, knob.implied) for name, knob in KNOBS.items())))
    return url


def probed(url: str) -> str:
    """Lay a database that knows what this machine's CPU reaches at best, and return its URL.

    A tune would find it out first, which is 4 s of computing; it is shown beside speeds, and nothing is decided by it.
    """
    with Store.open(laid(url), write=True) as store:
        store.save_ceilings(probe.machine("cpu").environment, {"matmul_fp32_per_s": 1e11, "copy_bytes_per_s": 1e10})
    return url


@cache
def _empty(knobs: tuple[tuple[str, str], ...]) -> bytes:
    """Return the file that migrations make. knobs: all of them and what they imply, which is stored in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        Store.open(f"sqlite:///{file}", write=True).close()
        return file.read_bytes()
