"""Studies in the database: opened, closed, locked and told of their models, and read back as records.

For `advisor.storage.store`: functions that take a connection, inside its transaction.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, update

from advisor.errors import StoreError
from advisor.nouns.answer import SearchEnd
from advisor.nouns.checked import Malformed, is_text, is_whole, parsed
from advisor.nouns.configuration import key_of
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.storage.keyed_rows import environment_id, environment_of, found_or_made, model_id, workload_id
from advisor.storage.rows import as_json, in_row, moment, now, readable, refuse
from advisor.storage.selects import selected
from advisor.storage.study_record import STATES, StudyRecord
from advisor.storage.tables import MODELS, STUDIES
from advisor.workloads import Workload, workload_of


def opened(
    connection: Connection,
    source: ModelSource,
    workload: Workload,
    environment: Environment,
    objective: Objective,
    budget: Budget,
    seed: int,
) -> int:
    """Return the id of a study, found or made, which runs from now on: see :meth:`advisor.storage.store.Store.open_study`."""
    key = {
        "workload_id": workload_id(connection, workload, source.architecture_key),
        "environment_id": environment_id(connection, environment),
        "model_id": model_id(connection, source),
        "objective_key": key_of(objective.payload),
    }
    aim = as_json(objective.payload)
    more = {"objective": aim, "seed": seed, "started_at": now(), "budget": "{}", "state": "running"}
    study_id = found_or_made(connection, STUDIES, key, more)
    running = {"state": "running", "budget": as_json(budget.payload)}
    connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(running))
    return study_id


def close(
    connection: Connection, study_id: int, state: str, *, end: SearchEnd | None, ran: bool, budget: Budget | None
) -> None:
    """Say how a study ended, or that it runs still: see :meth:`advisor.storage.store.Store.close_study`. Raises StoreError."""
    mine = STUDIES.c.id == study_id
    before = connection.execute(select(STUDIES.c.budget, STUDIES.c.finished_at).where(mine)).one_or_none()
    if before is None:
        raise StoreError(f"there is no study {study_id}")
    kept = None if ran else before.finished_at
    values = {"state": state, "finished_at": None if state == "running" else kept or now()}
    if end is not None and not _knew_more(parsed(before.budget), end):  # beside the budget that it is about
        about = parsed(before.budget) if budget is None else budget.payload
        values["budget"] = as_json({**about, "end": end.payload})
    connection.execute(update(STUDIES).where(mine).values(values))


def _knew_more(stored: Any, end: SearchEnd) -> bool:
    """Whether the end that is stored beside a budget knew of more trials: another tune of the study ended before this one."""
    before = SearchEnd.of(stored.get("end")) if isinstance(stored, dict) else None
    return before is not None and before.tried > end.tried


def lock(connection: Connection, study_id: int) -> None:
    """Let nobody else begin, take over, end or replace anything of a study until this transaction is over."""
    if connection.execute(select(STUDIES.c.id).where(STUDIES.c.id == study_id).with_for_update()).scalar() is None:
        raise StoreError(f"there is no study {study_id}")


def save_facts(connection: Connection, source: ModelSource, facts: ModelFacts, study_id: int | None) -> None:
    """Store what was read of a model, and that a study was made with it, where one is named."""
    payload = as_json(facts.payload)
    row_id = model_id(connection, source)
    connection.execute(update(MODELS).where(MODELS.c.id == row_id).values(facts=payload))
    if study_id is not None:
        connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(facts=payload))


def architecture_of(connection: Connection, model_name: str) -> str | None:
    """Return the shapes of a model by its name: see :meth:`advisor.storage.store.Store.architecture_of`."""
    named = select(MODELS.c.architecture_key).join(STUDIES, STUDIES.c.model_id == MODELS.c.id)
    newest = named.where(MODELS.c.name == model_name).order_by(STUDIES.c.started_at.desc(), STUDIES.c.id.desc())
    return connection.execute(newest.limit(1)).scalar()


def page(
    connection: Connection, architecture_key: str | None, study_id: int | None, first: int, most: int, damage: list[str]
) -> list[StudyRecord] | None:
    """Return `most` studies from the `first` on: see `advisor.storage.store.Store.studies_page`. damage: see :func:`readable`."""
    wanted = select(STUDIES.c.id).order_by(STUDIES.c.started_at.desc(), STUDIES.c.id.desc()).limit(most).offset(first)
    if architecture_key is not None:
        wanted = wanted.join(MODELS, MODELS.c.id == STUDIES.c.model_id)
        wanted = wanted.where(MODELS.c.architecture_key == architecture_key)
    if study_id is not None:
        wanted = wanted.where(STUDIES.c.id == study_id)
    ids = list(connection.execute(wanted).scalars())
    if not ids:
        return None
    listed = ", ".join(str(int(each)) for each in ids)
    return read(connection, f"s.id IN ({listed})", damage)


class _Row(NamedTuple):
    """What is read of a study."""

    id: Any
    objective: Any
    state: Any
    started_at: Any
    finished_at: Any
    admissible: Any
    budget: Any
    name: Any
    weights_digest: Any
    environment_key: Any
    environment: Any
    workload_key: Any
    workload: Any
    facts: Any
    has_own_facts: Any
    workload_id: Any
    environment_id: Any
    model_id: Any


_STUDIES = """SELECT s.id, s.objective, s.state, s.started_at, s.finished_at, s.admissible, s.budget,
  m.name, m.weights_digest, e.key, e.payload, w.key, w.payload,
  COALESCE(s.facts, m.facts, (
    SELECT o.facts FROM models o
    WHERE o.architecture_key = m.architecture_key AND o.facts IS NOT NULL ORDER BY o.id DESC LIMIT 1
  )),
  CASE WHEN s.facts IS NULL THEN 0 ELSE 1 END, s.workload_id, s.environment_id, s.model_id
FROM studies s
  LEFT JOIN workloads w ON w.id = s.workload_id
  LEFT JOIN environments e ON e.id = s.environment_id
  LEFT JOIN models m ON m.id = s.model_id
WHERE """


def read(connection: Connection, where: str, damage: list[str] | None = None, **values: Any) -> list[StudyRecord]:
    """Return the studies WHERE this holds of s, w, e and m, newest first. damage: see :func:`readable`."""
    found = map(_Row._make, selected(connection, _STUDIES + where, **values))
    return readable(_study, sorted(found, key=_began, reverse=True), damage)


def _began(row: _Row) -> tuple[datetime, int]:
    """Return when a study began, and its number, for their order; what is no moment is told where it is read."""
    try:
        return moment(row.started_at), row.id
    except (Malformed, ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC), row.id


def _study(row: _Row) -> StudyRecord:
    with in_row("environments", row.environment_id):
        environment = environment_of(row.environment)
    with in_row("workloads", row.workload_id):
        workload = _workload(row.workload)
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


@lru_cache(maxsize=16)
def _workload(payload: str | None) -> Workload:
    """Return the workload that was stored as this text: the studies that answer one question have the same."""
    return workload_of(parsed(payload))


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
