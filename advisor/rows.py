"""Nouns to rows and back, for `advisor.store`: what every verb shares. Functions that take a connection open none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Table, TextClause, select, text, update

from advisor.answer import Answer, SearchEnd
from advisor.checked import Malformed, Test, is_real, is_text, is_whole, matches, parsed, shortened, test_of
from advisor.configuration import Configuration, canonical_json
from advisor.environment import Environment
from advisor.errors import BadInput, DamagedRow
from advisor.knobs import Reason, Verdict
from advisor.measurement import STATISTIC, Comparison, Measurement
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.tables import CONFIGURATIONS, ENVIRONMENTS, MODELS, WORKLOADS
from advisor.terminal import in_a_line
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import UnknownKind, Workload, workload_of

#: The trial's plain numbers: the same names in the noun and in the table.
FIGURES = ("load_s", "first_call_s", "measure_s", "wall_s", "peak_bytes", "weight_bytes")


_Noun = TypeVar("_Noun")

#: What a study can be.
STATES = ("running", "done", "interrupted")


@dataclass(frozen=True)
class StudyRecord:
    """A study with all that says what it was about; `facts` are those it was made with, or of any model of its shapes.

    admissible: how many configurations could be tried, None where that was not stored. budget: of its last tune; end: how its
    search ended, None where it never did.
    """

    id: int
    environment: Environment
    environment_key: str
    objective: Objective
    model_name: str
    weights_digest: str
    workload: Workload
    state: str
    started_at: datetime
    finished_at: datetime | None
    facts: ModelFacts | None
    workload_key: str
    admissible: int | None = None
    budget: Budget = field(default_factory=Budget)
    end: SearchEnd | None = None


# ------------------------------------------------------------------------------------------------------ nouns to rows


def now(later_s: float = 0.0) -> datetime:
    """Return this moment, or one so many seconds later."""
    return datetime.now(UTC) + timedelta(seconds=later_s)


def version() -> str:
    """Return this advisor's version."""
    import advisor

    return str(getattr(advisor, "__version__", "unknown"))


def plain(words: str) -> str:
    """Return text that both databases take: no NUL (PostgreSQL), no half characters (from a worker's output)."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def as_json(value: Any) -> str:
    """Return the canonical JSON that is stored."""
    return plain(canonical_json(value))


def _finite(name: str, value: float | None) -> float | None:
    """Refuse what has no place in the database: SQLite would turn NaN into NULL in silence."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is not finite: {value}")
    return value


def found(connection: Connection, table: Table, key: Mapping[str, Any]) -> int | None:
    """Return the id of the row with this unique key, or None."""
    return connection.execute(
        select(table.c.id).where(*(table.c[name] == value for name, value in key.items()))
    ).scalar()


def found_or_made(connection: Connection, table: Table, key: Mapping[str, Any], more: Mapping[str, Any]) -> int:
    """Return the id of the row with this unique key. Two processes that make it at once get the same row."""
    row_id = found(connection, table, key)
    if row_id is None:
        insert_unless_there(connection, table, {**key, **more})
        row_id = found(connection, table, key)
        assert row_id is not None
    return row_id


def insert_unless_there(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its unique key is taken; return whether it was inserted."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        # SQLAlchemy asks PostgreSQL for the new id, and then can't say how many rows there were.
        statement = postgresql.insert(table).values(values).on_conflict_do_nothing()
        return connection.execute(statement).inserted_primary_key is not None
    from sqlalchemy.dialects import sqlite

    return connection.execute(sqlite.insert(table).values(values).on_conflict_do_nothing()).rowcount == 1


def workload_id(connection: Connection, workload: Workload, architecture_key: str) -> int:
    """Return the workload's row, found or made."""
    key = {"key": workload.key_for(architecture_key)}
    more = {"kind": workload.kind, "architecture_key": architecture_key, "payload": as_json(workload.payload)}
    return found_or_made(connection, WORKLOADS, key, more)


def environment_id(connection: Connection, environment: Environment) -> int:
    """Return the environment's row, found or made."""
    more = {"payload": as_json(environment.payload), "first_seen": now()}
    return found_or_made(connection, ENVIRONMENTS, {"key": environment.key}, more)


def model_id(connection: Connection, source: ModelSource) -> int:
    """Return the model's row; it goes by the name it was last asked for by."""
    key = {"architecture_key": source.architecture_key, "weights_digest": source.weights_digest}
    name = plain(source.name)
    row_id = found_or_made(connection, MODELS, key, {"name": name})
    connection.execute(update(MODELS).where(MODELS.c.id == row_id, MODELS.c.name != name).values(name=name))
    return row_id


def configuration_ids(connection: Connection, *configurations: Configuration | None) -> dict[Configuration, int]:
    """Return the rows of these configurations, made in one order by everybody, so that nobody waits in a circle."""
    wanted = sorted({c for c in configurations if c is not None}, key=lambda c: c.key)
    return {c: found_or_made(connection, CONFIGURATIONS, {"key": c.key}, {"payload": as_json(dict(c))}) for c in wanted}


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
        **{name: _finite(name, getattr(trial, name)) for name in FIGURES},
    }


def answer_values(answer: Answer) -> dict[str, Any]:
    """Return the columns of an answer, but for its configuration's id."""
    return {
        "verdict": answer.verdict,
        "ratio": _finite("ratio", answer.ratio),
        "low": _finite("low", answer.low),
        "high": _finite("high", answer.high),
        "blocks": answer.blocks,
        "tried": answer.tried,
        "admissible": answer.admissible,
        "why": as_json(list(answer.why)),
        "made_at": answer.made_at or now(),
        "method": answer.method,
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


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison's columns, statistics too."""
    low, high = comparison.interval
    return {
        "ratio": _finite("ratio", comparison.ratio),
        "low": _finite("low", low),
        "high": _finite("high", high),
        "block_ratios": as_json(list(comparison.block_ratios)),
        "blocks": len(comparison.block_ratios),
        "verdict": comparison.verdict,
        "made_at": now(),
        "planned": comparison.planned,
    }


def refusal_values(reason: Reason) -> dict[str, Any]:
    """Return a refusal's columns."""
    return {
        "subject": reason.subject,
        "about": reason.about,
        "rule": reason.rule,
        "verdict": str(reason.verdict),
        "reason": plain(reason.text),
        "remedy": plain(reason.remedy),
    }


# ------------------------------------------------------------------------------------------------------ rows to nouns


@lru_cache(maxsize=4096)
def configuration_of(payload: str | None) -> Configuration:
    """Return the configuration that was stored as this text. Raises Malformed where it can't be one, or is missing."""
    if payload is None:
        raise Malformed("its configuration is missing")
    return Configuration.of(parsed(payload))


@lru_cache(maxsize=256)
def environment_of(payload: str | None) -> Environment:
    """Return the environment that was stored as this text. Raises Malformed where it can't be one, or is missing."""
    if payload is None:
        raise Malformed("its environment is missing")
    return Environment.of(parsed(payload))


@lru_cache(maxsize=256)
def _facts(payload: str | None) -> ModelFacts | None:
    """Return the facts, or None where there are none that this version understands: they are read again."""
    if payload is None:
        return None
    values = parsed(payload)
    try:
        return ModelFacts.of(values)
    except (TypeError, KeyError):
        return None


class in_row:  # noqa: N801 - it reads as what it is: with in_row(table, id)
    """Say of which row it is that it can't be understood: raise DamagedRow for whatever its values are not."""

    def __init__(self, table: str, row_id: int) -> None:
        """Name the row. A class, for a generator costs more than what is read inside it."""
        self._table, self._id = table, row_id

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Name the row where something is wrong with it."""
        if error is None or isinstance(error, DamagedRow):
            return
        if isinstance(error, UnknownKind):
            raise DamagedRow(f"row {self._id} of {self._table} can't be read: {error}") from None
        if isinstance(
            error, (BadInput, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
        ):
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DamagedRow(f"row {self._id} of {self._table} is damaged: {in_a_line(said)[:200]}") from None


def readable(read: Callable[[Any], _Noun], found: Iterable[Any], damage: list[str] | None) -> list[_Noun]:
    """Return what rows say. damage: takes a line for each that can't be understood, once; without it that is raised."""
    nouns = []
    for row in found:
        try:
            nouns.append(read(row))
        except DamagedRow as error:
            if damage is None:
                raise
            if str(error) not in damage:
                damage.append(str(error))
    return nouns


def moment(value: Any) -> datetime:
    """Return a moment as it comes from either database: SQLite has texts in UTC."""
    read = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(read, datetime):
        raise Malformed(f"no moment: {shortened(value)}")
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


# Composing these takes SQLAlchemy longer, the first time in a process, than all else that suggest looks up: they are text.

_COMPARISONS = text("""SELECT c.id, a.key AS candidate, b.key AS baseline, c.block_ratios, c.planned
FROM comparisons c
  LEFT JOIN configurations a ON a.id = c.candidate_id
  LEFT JOIN configurations b ON b.id = c.baseline_id
WHERE c.study_id = :study ORDER BY c.id""")

_CEILINGS = text("""SELECT c.id, c.payload FROM ceilings c
  JOIN environments e ON e.id = c.environment_id
WHERE e.key = :environment""")

_REFUSALS = text(
    "SELECT id, rule, verdict, reason, remedy, about, subject FROM refusals WHERE study_id = :study ORDER BY id"
)


_ANSWER = text("""SELECT a.id, a.configuration_id, k.payload AS configuration, a.verdict, a.ratio, a.low, a.high,
  a.blocks, a.tried, a.admissible, a.why, a.method, a.made_at
FROM recommendations a LEFT JOIN configurations k ON k.id = a.configuration_id
WHERE a.study_id = :study""")


@lru_cache(maxsize=64)
def _studies_where(where: str) -> TextClause:
    return text(f"""SELECT s.id, s.objective, s.state, s.started_at, s.finished_at, s.admissible, s.budget,
  m.name, m.weights_digest,
  e.key AS environment_key, e.payload AS environment, w.key AS workload_key, w.payload AS workload,
  COALESCE(s.facts, m.facts, (
    SELECT o.facts FROM models o
    WHERE o.architecture_key = m.architecture_key AND o.facts IS NOT NULL ORDER BY o.id DESC LIMIT 1
  )) AS facts,
  CASE WHEN s.facts IS NULL THEN 0 ELSE 1 END AS has_own_facts, s.workload_id, s.environment_id, s.model_id
FROM studies s
  LEFT JOIN workloads w ON w.id = s.workload_id
  LEFT JOIN environments e ON e.id = s.environment_id
  LEFT JOIN models m ON m.id = s.model_id
WHERE {where} ORDER BY s.started_at DESC, s.id DESC""")  # noqa: S608


@cache
def _trials_where(where: str, *, full: bool) -> TextClause:
    return text(f"""SELECT t.id, t.number, t.outcome, t.reason, t.phase, t.block, t.quality, t.attempts, t.device_uuid,
  {", ".join(f"t.{name}" for name in FIGURES)}, {"t.reading," if full else ""}
  r.payload AS requested, f.payload AS effective, t.effective_id, o.number AS reused_from
FROM trials t
  LEFT JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN trials o ON o.id = t.reused_from AND o.study_id = t.study_id
WHERE {where} ORDER BY t.number""")  # noqa: S608


@cache
def _measurements_where(where: str, *, full: bool) -> TextClause:
    return text(f"""SELECT x.id, x.trial_id, x.metric, x.unit, x.phase, x.samples{", x.device_state" if full else ""}
FROM measurements x JOIN trials t ON t.id = x.trial_id
WHERE {where} ORDER BY x.id""")  # noqa: S608


def studies(connection: Connection, where: str, damage: list[str] | None = None, **values: Any) -> list[StudyRecord]:
    """Return the studies WHERE this holds of s, w, e and m, newest first. damage: see :func:`readable`."""
    return readable(_study, connection.execute(_studies_where(where), values), damage)


def _study(row: Row[*tuple[Any, ...]]) -> StudyRecord:
    with in_row("environments", row.environment_id):
        environment = environment_of(row.environment)
    with in_row("workloads", row.workload_id):
        workload = workload_of(parsed(row.workload))
    with in_row(*(("studies", row.id) if row.has_own_facts else ("models", row.model_id))):
        facts = _facts(row.facts)
    with in_row("studies", row.id):
        _refuse(row.admissible is not None and not is_whole(row.admissible), "admissible", row.admissible)
        _refuse(row.state not in STATES, "state", row.state)
        objective = Objective.of(parsed(row.objective))
        budget = parsed(row.budget)
        _refuse(not isinstance(budget, dict), "budget", budget)
        spent = Budget.of(budget)
        moments = moment(row.started_at), None if row.finished_at is None else moment(row.finished_at)
    with in_row("models", row.model_id):
        _refuse(not is_text(row.name), "name", row.name)
        _refuse(not is_text(row.weights_digest), "weights_digest", row.weights_digest)
    return StudyRecord(
        id=row.id,
        environment=environment,
        environment_key=row.environment_key,
        objective=objective,
        model_name=row.name,
        weights_digest=row.weights_digest,
        workload=workload,
        state=row.state,
        started_at=moments[0],
        finished_at=moments[1],
        facts=facts,
        workload_key=row.workload_key,
        admissible=row.admissible,
        budget=spent,
        end=SearchEnd.of(budget.get("end")),
    )


def _refuse(is_wrong: bool, name: str, value: Any) -> None:
    if is_wrong:
        raise Malformed(f"{name} can't be {shortened(value)}")


def trials(
    connection: Connection, where: str, *, full: bool, damage: list[str] | None = None, **values: Any
) -> list[tuple[int, Trial]]:
    """Return row ids and trials WHERE this holds of t, by number. damage: see :func:`readable`."""
    measured: dict[int, list[Measurement | DamagedRow]] = {}
    for row in connection.execute(_measurements_where(where, full=full), values):
        measured.setdefault(row.trial_id, []).append(_measurement(row, full=full))

    def read(row: Row[*tuple[Any, ...]]) -> tuple[int, Trial]:
        return row.id, _trial(row, measured.get(row.id, ()), full=full)

    return readable(read, connection.execute(_trials_where(where, full=full), values).all(), damage)


_METRIC = matches(r"[a-z0-9_]{1,80}")

#: For a database's rows, where the same few names stand in every one.
_is_metric = lru_cache(maxsize=256)(_METRIC)


def _are_samples(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float} and all(map(math.isfinite, value))


_SEEN = {"after_each_round": test_of("tuple[Mapping[str, Any], ...]"), "discarded": test_of("tuple[str, ...]")}


def _measurement(row: Row[*tuple[Any, ...]], *, full: bool) -> Measurement | DamagedRow:
    """Return a measurement, or what is wrong with it: that is its trial's trouble, and raised with it."""
    row_id, _, metric, unit, phase, stored, *seen = row  # quicker than asking the row for each
    try:
        with in_row("measurements", row_id):
            samples, state = parsed(stored), parsed(seen[0]) if full else {}
            if not _is_metric(metric):
                _refuse(True, "metric", metric)
            if full:
                _check_members(state, _SEEN)
            if not is_text(unit):
                _refuse(True, "unit", unit)
            if not _are_samples(samples):
                _refuse(True, "samples", samples)
            return Measurement(metric, unit, tuple(samples), phase, state)
    except DamagedRow as error:
        return error


#: What is looked at in a stored reading: see `advisor.knobs.choice.Reading`.
_READ = {
    "attention": test_of("Mapping[str, str]"),
    "dtypes": test_of("Mapping[str, int]"),
    "linears": test_of("Mapping[str, int]"),
    "operators": test_of("tuple[str, ...]"),
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
    _refuse(not _METRIC(metric), "metric", metric)
    _check_members(state, _SEEN)


def check_ceilings(payload: Any) -> None:
    """Raise Malformed for ceilings that are no numbers above 0 by name."""
    _refuse(not isinstance(payload, dict), "a payload", payload)
    for name, value in payload.items():
        _refuse(not _METRIC(name) or not is_real(value) or value <= 0, name[:60], value)


def _check_members(payload: Any, tests: Mapping[str, Test]) -> None:
    """Raise Malformed where a payload is no object, or one of its known members is of another type."""
    _refuse(not isinstance(payload, dict), "an object", payload)
    for name, test in tests.items():
        if name in payload and not test(payload[name]):
            _refuse(True, name, payload[name])


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


def _trial(row: Row[*tuple[Any, ...]], measured: Sequence[Measurement | DamagedRow], *, full: bool) -> Trial:
    for each in measured:
        if isinstance(each, DamagedRow):
            raise each
    found = dict(zip(row._fields, row, strict=True))  # quicker than asking the row for each
    with in_row("trials", found["id"]):
        for name, test in _COLUMNS.items():
            if not test(found[name]):
                _refuse(True, name, found[name])
        reading = parsed(found["reading"]) if full and found["reading"] is not None else {}
        if reading:
            _check_members(reading, _READ)
        return Trial(
            number=found["number"],
            requested=configuration_of(found["requested"]),
            effective=configuration_of(found["effective"]) if found["effective_id"] is not None else None,
            outcome=Outcome(found["outcome"]),
            reason=found["reason"],
            phase=found["phase"],
            block=found["block"],
            quality=Quality.of(parsed(found["quality"])) if found["quality"] is not None else None,
            reading=reading,
            reused_from=found["reused_from"],
            measurements=tuple(each for each in measured if isinstance(each, Measurement)),
            attempts=found["attempts"],
            device_uuid=found["device_uuid"] or "",
            **{name: found[name] for name in FIGURES},
        )


def comparisons(connection: Connection, study_id: int) -> list[Comparison]:
    """Return a study's comparisons in the order they were saved."""
    return readable(_comparison, connection.execute(_COMPARISONS, {"study": study_id}), None)


def _comparison(row: Row[*tuple[Any, ...]]) -> Comparison:
    with in_row("comparisons", row.id):
        ratios = parsed(row.block_ratios)
        _refuse(row.candidate is None or row.baseline is None, "its configuration", None)
        _refuse(not _are_samples(ratios), "block_ratios", ratios)
        _refuse(not test_of("int | None")(row.planned), "planned", row.planned)
        return Comparison(row.candidate, row.baseline, tuple(ratios), row.planned)


def refusals(connection: Connection, study_id: int) -> list[Reason]:
    """Return a study's refusals in the order they were saved."""
    return readable(_refusal, connection.execute(_REFUSALS, {"study": study_id}), None)


def _refusal(row: Row[*tuple[Any, ...]]) -> Reason:
    with in_row("refusals", row.id):
        for name in ("rule", "reason", "remedy", "about", "subject"):
            _refuse(not is_text(getattr(row, name)), name, getattr(row, name))
        return Reason(row.rule, Verdict(row.verdict), row.reason, row.remedy, row.about, row.subject)


def answer(connection: Connection, study_id: int) -> Answer | None:
    """Return what is stored as a study's answer, or None."""
    row = connection.execute(_ANSWER, {"study": study_id}).one_or_none()
    if row is None:
        return None
    with in_row("recommendations", row.id):
        figures = (row.ratio, row.low, row.high)
        _refuse(not test_of("tuple[float | None, ...]")(figures), "ratio, low, high", figures)
        _refuse(not test_of("tuple[int, ...]")((row.blocks, row.tried)), "blocks, tried", (row.blocks, row.tried))
        _refuse(not test_of("int | None")(row.admissible), "admissible", row.admissible)
        _refuse(not _VERDICT(row.verdict), "verdict", row.verdict)
        why = parsed(row.why)
        _refuse(not test_of("tuple[str, ...]")(why), "why", why)
        configuration = None if row.configuration_id is None else configuration_of(row.configuration)
        counts = (row.blocks, row.tried, row.admissible)
        return Answer(configuration, row.verdict, *figures, *counts, tuple(why), row.method, moment(row.made_at))


_VERDICT = matches("[a-z-]{1,40}")


def ceilings(connection: Connection, environment_key: str, damage: list[str] | None = None) -> dict[str, float] | None:
    """Return what plain work reaches in an environment, or None. damage: see :func:`readable`."""
    found = connection.execute(_CEILINGS, {"environment": environment_key}).all()
    read = readable(_ceilings, found, damage)
    return read[0] if read else None


def _ceilings(row: Row[*tuple[Any, ...]]) -> dict[str, float]:
    with in_row("ceilings", row.id):
        payload = parsed(row.payload)
        check_ceilings(payload)
        return dict(payload)
