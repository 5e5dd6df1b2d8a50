"""Nouns to rows and back, for `advisor.store`: what every verb shares. Functions that take a connection open none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Table, TextClause, TextualSelect, select, text, update

from advisor.answer import Answer, SearchEnd
from advisor.configuration import Configuration, canonical_json
from advisor.environment import Environment
from advisor.knobs.choice import Reason, Verdict
from advisor.measurement import STATISTIC, Comparison, Measurement
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.tables import CONFIGURATIONS, ENVIRONMENTS, MODELS, WORKLOADS, UtcDateTime
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import Workload, workload_of

#: The trial's plain numbers: the same names in the noun and in the table.
FIGURES = ("load_s", "first_call_s", "measure_s", "wall_s", "peak_bytes", "weight_bytes")


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
        "phase": trial.phase, "block": trial.block, "outcome": str(trial.outcome), "reason": plain(trial.reason),
        "lease": None, "finished_at": now(), "reading": as_json(dict(trial.reading)),
        "quality": as_json(trial.quality.payload) if trial.quality is not None else None,
        "device_uuid": plain(trial.device_uuid) or None,
        **{name: _finite(name, getattr(trial, name)) for name in FIGURES},
    }  # fmt: skip


def answer_values(answer: Answer) -> dict[str, Any]:
    """Return the columns of an answer, but for its configuration's id."""
    return {
        "verdict": answer.verdict, "ratio": _finite("ratio", answer.ratio), "low": _finite("low", answer.low),
        "high": _finite("high", answer.high), "blocks": answer.blocks, "tried": answer.tried,
        "admissible": answer.admissible, "why": as_json(list(answer.why)), "made_at": answer.made_at or now(),
        "method": answer.method,
    }  # fmt: skip


def measurement_values(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement's columns, statistics too."""
    low, high = measurement.interval
    return {
        "metric": measurement.metric, "unit": measurement.unit, "phase": measurement.phase, "statistic": STATISTIC,
        "samples": as_json(list(measurement.samples)), "n": len(measurement.samples),
        "median": measurement.median, "low": low, "high": high, "device_state": as_json(dict(measurement.device_state)),
    }  # fmt: skip


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison's columns, statistics too."""
    low, high = comparison.interval
    return {
        "ratio": _finite("ratio", comparison.ratio), "low": _finite("low", low), "high": _finite("high", high),
        "block_ratios": as_json(list(comparison.block_ratios)), "blocks": len(comparison.block_ratios),
        "verdict": comparison.verdict, "made_at": now(),
    }  # fmt: skip


def refusal_values(reason: Reason) -> dict[str, Any]:
    """Return a refusal's columns."""
    return {
        "subject": reason.subject, "about": reason.about, "rule": reason.rule, "verdict": str(reason.verdict),
        "reason": plain(reason.text), "remedy": plain(reason.remedy),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ rows to nouns


@lru_cache(maxsize=4096)
def configuration_of(payload: str) -> Configuration:
    """Return the configuration that was stored as this text."""
    return Configuration.of(json.loads(payload))


def _facts(payload: str | None) -> ModelFacts | None:
    """Return the facts, or None where there are none that this version understands: they are read again."""
    if payload is None:
        return None
    try:
        return ModelFacts.of(json.loads(payload))
    except (TypeError, KeyError):
        return None


# Composing these takes SQLAlchemy longer, the first time in a process, than all else that suggest looks up: they are text.

_COMPARISONS = text("""SELECT a.key AS candidate, b.key AS baseline, c.block_ratios
FROM comparisons c
  JOIN configurations a ON a.id = c.candidate_id
  JOIN configurations b ON b.id = c.baseline_id
WHERE c.study_id = :study ORDER BY c.id""")

_CEILINGS = text("""SELECT c.payload FROM ceilings c
  JOIN environments e ON e.id = c.environment_id
WHERE e.key = :environment""")

_REFUSALS = text(
    "SELECT rule, verdict, reason, remedy, about, subject FROM refusals WHERE study_id = :study ORDER BY id"
)


_ANSWER = text("""SELECT k.payload AS configuration, a.verdict, a.ratio, a.low, a.high, a.blocks, a.tried, a.admissible,
  a.why, a.method, a.made_at
FROM recommendations a LEFT JOIN configurations k ON k.id = a.configuration_id
WHERE a.study_id = :study""").columns(made_at=UtcDateTime)


@cache
def _studies_where(where: str) -> TextualSelect:
    return text(f"""SELECT s.id, s.objective, s.state, s.started_at, s.finished_at, s.admissible, s.budget,
  m.name, m.weights_digest,
  e.key AS environment_key, e.payload AS environment, w.key AS workload_key, w.payload AS workload,
  COALESCE(s.facts, m.facts, (
    SELECT o.facts FROM models o
    WHERE o.architecture_key = m.architecture_key AND o.facts IS NOT NULL ORDER BY o.id DESC LIMIT 1
  )) AS facts
FROM studies s
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN models m ON m.id = s.model_id
WHERE {where} ORDER BY s.started_at DESC, s.id DESC""").columns(started_at=UtcDateTime, finished_at=UtcDateTime)  # noqa: S608


@cache
def _trials_where(where: str, *, full: bool) -> TextClause:
    return text(f"""SELECT t.id, t.number, t.outcome, t.reason, t.phase, t.block, t.quality, t.attempts, t.device_uuid,
  {", ".join(f"t.{name}" for name in FIGURES)}, {"t.reading," if full else ""}
  r.payload AS requested, f.payload AS effective, o.number AS reused_from
FROM trials t
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN trials o ON o.id = t.reused_from AND o.study_id = t.study_id
WHERE {where} ORDER BY t.number""")  # noqa: S608


@cache
def _measurements_where(where: str, *, full: bool) -> TextClause:
    return text(f"""SELECT x.trial_id, x.metric, x.unit, x.phase, x.samples{", x.device_state" if full else ""}
FROM measurements x JOIN trials t ON t.id = x.trial_id
WHERE {where} ORDER BY x.id""")  # noqa: S608


def studies(connection: Connection, where: str, **values: Any) -> list[StudyRecord]:
    """Return the studies WHERE this holds of s, w, e and m, newest first."""
    return [_study(row) for row in connection.execute(_studies_where(where), values)]


def _study(row: Row[*tuple[Any, ...]]) -> StudyRecord:
    budget = json.loads(row.budget)
    return StudyRecord(
        id=row.id,
        environment=Environment.of(json.loads(row.environment)),
        environment_key=row.environment_key,
        objective=Objective.of(json.loads(row.objective)),
        model_name=row.name,
        weights_digest=row.weights_digest,
        workload=workload_of(json.loads(row.workload)),
        state=row.state,
        started_at=row.started_at,
        finished_at=row.finished_at,
        facts=_facts(row.facts),
        workload_key=row.workload_key,
        admissible=row.admissible,
        budget=Budget.of(budget),
        end=SearchEnd.of(budget.get("end")),
    )


def trials(connection: Connection, where: str, *, full: bool, **values: Any) -> list[tuple[int, Trial]]:
    """Return row ids and trials WHERE this holds of t, by number."""
    measured: dict[int, list[Measurement]] = {}
    for row in connection.execute(_measurements_where(where, full=full), values):
        samples, state = tuple(json.loads(row.samples)), json.loads(row.device_state) if full else {}
        measured.setdefault(row.trial_id, []).append(Measurement(row.metric, row.unit, samples, row.phase, state))
    rows = connection.execute(_trials_where(where, full=full), values).all()
    return [(row.id, _trial(row, tuple(measured.get(row.id, ())), full=full)) for row in rows]


def _trial(row: Row[*tuple[Any, ...]], measurements: tuple[Measurement, ...], *, full: bool) -> Trial:
    return Trial(
        number=row.number,
        requested=configuration_of(row.requested),
        effective=configuration_of(row.effective) if row.effective is not None else None,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        phase=row.phase,
        block=row.block,
        quality=Quality.of(json.loads(row.quality)) if row.quality is not None else None,
        reading=json.loads(row.reading) if full and row.reading is not None else {},
        reused_from=row.reused_from,
        measurements=measurements,
        attempts=row.attempts,
        device_uuid=row.device_uuid or "",
        **{name: getattr(row, name) for name in FIGURES},
    )


def comparisons(connection: Connection, study_id: int) -> list[Comparison]:
    """Return a study's comparisons in the order they were saved."""
    read = connection.execute(_COMPARISONS, {"study": study_id})
    return [Comparison(row.candidate, row.baseline, tuple(json.loads(row.block_ratios))) for row in read]


def refusals(connection: Connection, study_id: int) -> list[Reason]:
    """Return a study's refusals in the order they were saved."""
    read = connection.execute(_REFUSALS, {"study": study_id})
    return [Reason(r.rule, Verdict(r.verdict), r.reason, r.remedy, r.about, r.subject) for r in read]


def answer(connection: Connection, study_id: int) -> Answer | None:
    """Return what is stored as a study's answer, or None."""
    row = connection.execute(_ANSWER, {"study": study_id}).one_or_none()
    if row is None:
        return None
    configuration = None if row.configuration is None else configuration_of(row.configuration)
    return Answer(
        configuration, row.verdict, row.ratio, row.low, row.high, row.blocks, row.tried, row.admissible,
        tuple(json.loads(row.why)), row.method, row.made_at,
    )  # fmt: skip


def ceilings(connection: Connection, environment_key: str) -> dict[str, Any] | None:
    """Return what plain work reaches in an environment, or None."""
    payload = connection.execute(_CEILINGS, {"environment": environment_key}).scalar()
    return None if payload is None else dict(json.loads(payload))
