"""Studies in the database: read back as records."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from advisor.answer import SearchEnd
from advisor.checked import is_text, is_whole, parsed
from advisor.keyed_rows import environment_of
from advisor.model import ModelFacts
from advisor.objective import Budget, Objective
from advisor.rows import in_row, moment, readable, refuse
from advisor.study_record import STATES, StudyRecord
from advisor.workloads import workload_of


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


def read(connection: Connection, where: str, damage: list[str] | None = None, **values: Any) -> list[StudyRecord]:
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
        refuse(row.admissible is not None and not is_whole(row.admissible), "admissible", row.admissible)
        refuse(row.state not in STATES, "state", row.state)
        objective = Objective.of(parsed(row.objective))
        budget = parsed(row.budget)
        refuse(not isinstance(budget, dict), "budget", budget)
        spent = Budget.of(budget)
        moments = moment(row.started_at), None if row.finished_at is None else moment(row.finished_at)
    with in_row("models", row.model_id):
        refuse(not is_text(row.name), "name", row.name)
        refuse(not is_text(row.weights_digest), "weights_digest", row.weights_digest)
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
