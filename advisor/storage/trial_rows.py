"""Trials as rows, with what was measured in each: to columns, and back as they were.

Reading looks at every value first: what can't be understood is raised, or told, with the row that it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from advisor.errors import DamagedRow
from advisor.nouns.checked import Test, is_text, is_whole, matches, parsed, test_of
from advisor.nouns.measurement import STATISTIC, Measurement
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.storage.keyed_rows import configuration_of
from advisor.storage.rows import are_samples, as_json, finite, in_row, is_metric, now, plain, readable, refuse
from advisor.storage.selects import selected

#: The trial's plain numbers: the same names in the noun and in the table.
FIGURES = ("load_s", "first_call_s", "measure_s", "wall_s", "peak_bytes", "weight_bytes")


def trial_values(trial: Trial) -> dict[str, Any]:
    """Return the columns of a finished trial. Raises ValueError for figures that are not finite."""
    if trial.outcome is Outcome.RUNNING:
        raise ValueError(f"trial {trial.number} is still running")
    return {
        "phase": trial.phase,
        "block": trial.block,
        "outcome": str(trial.outcome),
        "reason": plain(trial.reason),
        "finished_at": now(),
        "reading": as_json(dict(trial.reading)),
        "quality": as_json(trial.quality.payload) if trial.quality is not None else None,
        "device_uuid": plain(trial.device_uuid) or None,
        **{name: finite(name, getattr(trial, name)) for name in FIGURES},
    }


def measurement_values(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement's columns, statistics too."""
    low, high = measurement.interval
    return {
        "metric": measurement.metric,
        "unit": measurement.unit,
        "phase": measurement.phase,
        "statistic": STATISTIC,
        "samples": as_json(list(measurement.samples)),
        "n": len(measurement.samples),
        "median": measurement.median,
        "low": low,
        "high": high,
        "device_state": as_json(dict(measurement.device_state)),
    }


#: The plain columns of a trial.
_COLUMNS = {
    **{name: test_of("float | None") for name in FIGURES if name.endswith("_s")},
    **{name: test_of("int | None") for name in (*(f for f in FIGURES if f.endswith("_bytes")), "block", "reused_from")},
    "number": is_whole,
    "attempts": is_whole,
    "reason": is_text,
    "phase": matches("[a-z]{1,20}"),
    "device_uuid": test_of("str | None"),
}


@cache
def _trials_where(where: str, *, full: bool) -> str:
    plain_ones = ", ".join("o.number" if name == "reused_from" else f"t.{name}" for name in _COLUMNS)
    more = ", t.reading" if full else ""
    return f"""SELECT t.id, {plain_ones}, t.outcome, t.quality, r.payload, f.payload, t.effective_id{more}
FROM trials t
  LEFT JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN trials o ON o.id = t.reused_from AND o.study_id = t.study_id
WHERE {where} ORDER BY t.number"""  # noqa: S608


@cache
def _measurements_where(where: str, *, full: bool) -> str:
    # In order of their ids where they are read: SQLite takes longer to sort so few rows than to find them.
    return f"""SELECT x.id, x.trial_id, x.metric, x.unit, x.phase, x.samples{", x.device_state" if full else ""}
FROM measurements x JOIN trials t ON t.id = x.trial_id
WHERE {where}"""  # noqa: S608


_row_id = itemgetter(0)


def trials(
    connection: Connection, where: str, *, full: bool, damage: list[str] | None = None, which: str = "", **values: Any
) -> list[tuple[int, Trial]]:
    """Return row ids and trials WHERE this holds of t, by number. damage: see :func:`readable`.

    which: what must hold of a measurement x too, "" for all.
    """
    measured: dict[int, list[Measurement | DamagedRow]] = {}
    wanted = f"{where} AND {which}" if which else where
    for row in sorted(selected(connection, _measurements_where(wanted, full=full), **values), key=_row_id):
        measured.setdefault(row[1], []).append(_measurement(row, full=full))

    def read(row: tuple[Any, ...]) -> tuple[int, Trial]:
        return row[0], _trial(row, measured.get(row[0], ()), full=full)

    return readable(read, selected(connection, _trials_where(where, full=full), **values), damage)


#: For a database's rows, where the same few names stand in every one.
_is_known_metric = lru_cache(maxsize=256)(is_metric)


_SEEN = {"after_each_round": test_of("tuple[Mapping[str, Any], ...]"), "discarded": test_of("tuple[str, ...]")}


def _measurement(row: tuple[Any, ...], *, full: bool) -> Measurement | DamagedRow:
    """Return a measurement, or what is wrong with it: that is its trial's trouble, and raised with it."""
    row_id, _, metric, unit, phase, stored, *seen = row  # quicker than asking the row for each
    try:
        with in_row("measurements", row_id):
            samples, state = parsed(stored), parsed(seen[0]) if full else {}
            if not _is_known_metric(metric):
                refuse(True, "metric", metric)
            if full:
                _check_members(state, _SEEN)
            if not is_text(unit):
                refuse(True, "unit", unit)
            if not are_samples(samples):
                refuse(True, "samples", samples)
            return Measurement(metric, unit, tuple(samples), phase, state)
    except DamagedRow as error:
        return error


_STATES = """SELECT x.id, x.device_state FROM measurements x JOIN trials t ON t.id = x.trial_id
WHERE t.study_id = :study AND t.number = :number ORDER BY x.id"""


def device_states(connection: Connection, study_id: int, number: int) -> list[Mapping[str, Any]]:
    """Return what was seen after each round of a trial, without anything else of it: see `advisor.storage.store.Store`."""
    found: list[Mapping[str, Any]] = []
    for row_id, stored in selected(connection, _STATES, study=study_id, number=number):
        with in_row("measurements", row_id):
            state = parsed(stored)
            _check_members(state, _SEEN)
            found += state.get("after_each_round", ())
    return found


#: What is looked at in a stored reading: see `advisor.knobs.choice.Reading`.
_READ = {
    "attention": test_of("Mapping[str, str]"),
    "dtypes": test_of("Mapping[str, int]"),
    "linears": test_of("Mapping[str, int]"),
    "operators": test_of("tuple[str, ...]"),
    "uncompiled": test_of("tuple[str, ...]"),
    "inputs": test_of("Mapping[str, Any]"),
    "own": test_of("Mapping[str, Any]"),
}


def check_reading(payload: Any) -> None:
    """Raise Malformed for a reading that could not be read again."""
    _check_members(payload, _READ)


def check_columns(values: Mapping[str, Any]) -> None:
    """Raise Malformed for plain columns of a trial that could not be read again."""
    _check_members(values, {name: test for name, test in _COLUMNS.items() if name != "reused_from"})


def check_device_state(metric: str, state: Any) -> None:
    """Raise Malformed for a metric's name or its device states that could not be read again."""
    refuse(not is_metric(metric), "metric", metric)
    _check_members(state, _SEEN)


def _check_members(payload: Any, tests: Mapping[str, Test]) -> None:
    """Raise Malformed where a payload is no object, or one of its known members is of another type."""
    refuse(not isinstance(payload, dict), "an object", payload)
    for name, test in tests.items():
        if name in payload and not test(payload[name]):
            refuse(True, name, payload[name])


#: The tests of the plain columns, and how many there are.
_TESTS, _PLAIN_ONES = tuple(_COLUMNS.values()), len(_COLUMNS)


def _trial(row: tuple[Any, ...], measured: Sequence[Measurement | DamagedRow], *, full: bool) -> Trial:
    for each in measured:
        if isinstance(each, DamagedRow):
            raise each
    row_id, *values = row[: _PLAIN_ONES + 1]
    outcome, quality, requested, effective, effective_id, *read = row[_PLAIN_ONES + 1 :]
    with in_row("trials", row_id):
        for place, (test, value) in enumerate(zip(_TESTS, values, strict=True)):
            if not test(value):
                refuse(True, list(_COLUMNS)[place], value)
        reading = parsed(read[0]) if full and read[0] is not None else {}
        if reading:
            _check_members(reading, _READ)
        found = dict(zip(_COLUMNS, values, strict=True))
        found["device_uuid"] = found["device_uuid"] or ""
        return Trial(
            requested=configuration_of(requested),
            effective=configuration_of(effective) if effective_id is not None else None,
            outcome=Outcome(outcome),
            quality=Quality.of(parsed(quality)) if quality is not None else None,
            reading=reading,
            measurements=tuple(measured),  # type: ignore[arg-type]  # what is damaged was raised
            **found,
        )
