"""Measurements for others: studies as lines of JSON, out of one database and into another.

The first line says what wrote the others, and what a configuration has where it says nothing. Then one line an object:
environments, what plain work reaches there (ceilings), models (what is known of them, no weights), workloads (lengths, no
texts), and studies with their trials, comparisons and refusals, all by keys that are the same in every database. What follows
from samples is computed again on arrival. No host and no owner leaves; of a model's path only its last part does, and home
directories are cut from error texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, TextIO

from advisor.errors import BadInput
from advisor.nouns.configuration import IMPLIED, canonical_json
from advisor.storage.exchange_format import FORMAT, LATER, PARTS
from advisor.storage.exchange_reader import LINE_MOST, Reading
from advisor.storage.known_studies import DIFFERING
from advisor.storage.parcel import Parcel, link, packed, statistics_of, study_keys, unpacked, with_sources
from advisor.storage.store import Store
from advisor.version import __version__


@dataclass(frozen=True)
class Imported:
    """How many rows of which tables were new here, and how many were known: their study, or what it shares, was here.

    differing: how many studies were here already with other trials, or ended otherwise: they stay as they are.
    """

    new: Counter[str]
    known: Counter[str]
    differing: int = 0


# ----------------------------------------------------------------------------------------------------------------- out


def export_lines(store: Store, study_ids: Iterable[int] | None = None) -> Iterator[str]:
    """Yield the lines for these studies, or all: the same lines for the same rows, whatever the database.

    Studies whose trials these reuse come along. Raises NotMeasured for an id that no study has.
    """
    parcels, told = _parcels(store, study_ids), set()
    implied = {knob: choice for knob, choice in IMPLIED.items() if choice}
    yield canonical_json({"advisor": __version__, "format": FORMAT, "implied": implied})
    for parcel in parcels:
        for line in _about(parcel):
            if line not in told:
                told.add(line)
                yield line
        yield from _study_lines(parcel)


def _parcels(store: Store, study_ids: Iterable[int] | None) -> Iterator[Parcel]:
    """Give these studies, or all, oldest first, each as it is by then; and those whose trials they reuse. Raises NotMeasured."""
    with store._database.reading() as connection:
        keys = study_keys(connection)
        ids = with_sources(connection, keys, study_ids)
    return (_parcel(store, study_id, keys) for study_id in ids)


def _parcel(store: Store, study_id: int, keys: Mapping[int, str]) -> Parcel:
    with store._database.reading() as connection:
        return packed(connection, study_id, keys)


def _about(parcel: Parcel) -> Iterator[str]:
    """Yield the lines that several studies can share."""
    yield _line("environment", parcel.environment)
    if parcel.ceilings is not None:
        yield _line("ceilings", {"environment": parcel.environment["key"], **parcel.ceilings})
    yield _line("model", {**parcel.model, "name": _public_name(parcel.model["name"])})
    yield _line("workload", parcel.workload)


def _study_lines(parcel: Parcel) -> Iterator[str]:
    about = {
        "key": parcel.key,
        "environment": parcel.environment["key"],
        "workload": parcel.workload["key"],
        "architecture_key": parcel.model["architecture_key"],
        "weights_digest": parcel.model["weights_digest"],
    }
    parts = dict(zip(PARTS, (parcel.trials, parcel.comparisons, parcel.refusals), strict=True))
    yield _line("study", {**about, **parcel.study, **{f"{name}s": len(found) for name, found in parts.items()}})
    for name, found in parts.items():
        for row in found:
            more = {"reason": _without_homes(row["reason"])} if name == "trial" else {}
            silent = {column for column in LATER.get(name, ()) if row[column] is None}
            said = {column: value for column, value in row.items() if column not in silent}
            yield _line(name, {"study": parcel.key, **said, **more})


def _line(name: str, values: Mapping[str, Any]) -> str:
    moments = {column: value.isoformat() for column, value in values.items() if isinstance(value, datetime)}
    return canonical_json({"object": name, **values, **moments})


def _public_name(name: str) -> str:
    """Return a model's name, of a path its last part: where people keep their models is nobody's business."""
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def _without_homes(text: str) -> str:
    return re.sub(r"/(?:home|Users)/[^/\s'\":]+|/root(?=/)", "~", text)


# ------------------------------------------------------------------------------------------------------------------ in


def bounded_lines(stream: TextIO) -> Iterator[str]:
    """Yield a stream's lines; of one that is longer than is taken only the beginning, which is refused then."""
    while line := stream.readline(LINE_MOST + 1):
        yield line


def import_lines(store: Store, lines: Iterable[str]) -> Imported:
    """Store what `export_lines` wrote, study by study; what is here already stays as it is. Doing it twice adds nothing.

    What a study that came comes to is not in the lines: `keep_answers` makes it.

    Raises BadInput with the number of the line that can't be understood: whole studies before it are stored, and nothing of
    the one it belongs to.
    """
    reading, iterator = Reading(), iter(lines)
    for number in count(1):
        with _damaged(number):
            line = next(iterator, None)  # which fails where it is no text
            if line is None:
                reading.end()
            parcel = None if line is None else reading.take(line)
        if line is None:
            break
        if parcel is not None:
            reading.links += parcel.links
            reading.new += _stored(store, parcel)
    with store._database.writing() as connection:
        link(connection, reading.links)  # as far as both are here by now
    differing = reading.new.pop(DIFFERING, 0)
    return Imported(+reading.new, reading.read - reading.new, differing)


def _stored(store: Store, parcel: Parcel) -> Counter[str]:
    """Store a study from elsewhere, all of it or nothing; return how many rows of which tables are new.

    A study that is here already stays as it is, with its trials, comparisons and refusals.
    """
    statistics = statistics_of(parcel)
    with store._database.writing() as connection:
        return unpacked(connection, parcel, statistics)


@contextmanager
def _damaged(number: int) -> Iterator[None]:
    """Say of which line it is that it can't be understood."""
    try:
        yield
    except (BadInput, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"line {number}: {' '.join(said.split())[:200]}") from error
