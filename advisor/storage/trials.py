"""Trials in the database: pages of them, those of the default, what came of one, and one whose figures another study can reuse.

For `advisor.storage.store`: functions that take a connection, inside its transaction. Who may run a trial is the
business of `claims`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, func, insert, select, update

from advisor.errors import StoreError
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import METRICS, is_energy
from advisor.nouns.trial import Trial
from advisor.storage import trial_rows
from advisor.storage.keyed_rows import configuration_ids
from advisor.storage.tables import CONFIGURATIONS, MEASUREMENTS, STUDIES, TRIALS

# A table's second role in a query. Made once: an alias costs more time than the query it is used in.
_MINE = STUDIES.alias("mine")


class Page(NamedTuple):
    """Trials, the newest first; last: the lowest number that was looked at, None where there were none."""

    trials: tuple[Trial, ...]
    last: int | None


class Finished(NamedTuple):
    """A finished trial with its columns and its measurements', made before there is a lock: statistics take time."""

    trial: Trial
    columns: dict[str, Any]
    measured: list[dict[str, Any]]

    @classmethod
    def of(cls, trial: Trial) -> Self:
        """Make the columns. Raises ValueError for figures that are not finite, and for a trial that still runs."""
        return cls(
            trial, trial_rows.trial_values(trial), [trial_rows.measurement_values(m) for m in trial.measurements]
        )


def count(connection: Connection, study_id: int) -> int:
    """Return how many trials a study has, running ones too: their numbers have no gaps, and the last one is found at once."""
    last = connection.execute(select(func.max(TRIALS.c.number)).where(TRIALS.c.study_id == study_id)).scalar()
    return 0 if last is None else int(last) + 1


#: The measurements that an answer weighs: those of the search, and of blocks the energy alone.
_WEIGHED = "(t.phase = 'search' OR x.metric IN ({}))"


def weighed(connection: Connection, study_id: int) -> list[Trial]:
    """Return a study's trials as an answer weighs them: see :meth:`advisor.storage.store.Store.weighed`."""
    energies = ", ".join(f"'{name}'" for name in sorted(METRICS) if is_energy(name))
    which = _WEIGHED.format(energies)
    read = trial_rows.trials(connection, "t.study_id = :study", full=False, which=which, study=study_id)
    return [trial for _, trial in read]


def page(
    connection: Connection, study_id: int, below: int | None, most: int, *, failed: bool, damage: list[str]
) -> Page:
    """Return a study's newest trials, `most` at most: see :meth:`advisor.storage.store.Store.page`."""
    numbers = select(TRIALS.c.number).where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.number.desc()).limit(most)
    if below is not None:
        numbers = numbers.where(TRIALS.c.number < below)
    where = "t.study_id = :study AND t.number BETWEEN :low AND :high"
    if failed:
        none = ("running", "ok", "pruned")
        numbers = numbers.where(TRIALS.c.outcome.not_in(none))
        where += f" AND t.outcome NOT IN {none}"
    found = list(connection.execute(numbers).scalars())
    if not found:
        return Page((), None)
    span = {"study": study_id, "low": found[-1], "high": found[0]}
    read = trial_rows.trials(connection, where, full=False, damage=damage, **span)
    return Page(tuple(trial for _, trial in reversed(read)), found[-1])


def of_default(connection: Connection, study_id: int, damage: list[str]) -> list[Trial]:
    """Return the ok trials of what the study began with, what transformers does when told nothing, by number."""
    first = "(SELECT o.requested_id FROM trials o WHERE o.study_id = :study AND o.number = 0)"
    where = f"t.study_id = :study AND t.requested_id = {first} AND t.outcome = 'ok'"
    read = trial_rows.trials(connection, where, full=False, damage=damage, study=study_id)
    return [trial for _, trial in read]


def finish(connection: Connection, study_id: int, finished: Finished, owner: str, reused_from_id: int | None) -> bool:
    """Write what came of a trial; return whether it is this owner's: see :meth:`advisor.storage.store.Store.finish_trial`."""
    trial = finished.trial
    mine = (TRIALS.c.study_id == study_id, TRIALS.c.number == trial.number)
    columns = (TRIALS.c.id, TRIALS.c.attempts, TRIALS.c.owner, TRIALS.c.outcome)
    ids = configuration_ids(connection, trial.requested, trial.effective)
    begun = connection.execute(select(*columns).where(*mine).with_for_update()).one_or_none()
    if begun is None:
        raise StoreError(f"study {study_id} has no trial {trial.number}")
    if begun.owner != owner or begun.outcome != "running":
        return bool(begun.owner == owner)
    values = {
        **finished.columns,
        "requested_id": ids[trial.requested],
        "effective_id": ids[trial.effective] if trial.effective is not None else None,
        "reused_from": reused_from_id or _row_id(connection, study_id, trial.reused_from),
        "attempts": max(begun.attempts, trial.attempts),
    }
    connection.execute(update(TRIALS).where(TRIALS.c.id == begun.id).values(values))
    if finished.measured:
        connection.execute(insert(MEASUREMENTS), [{**each, "trial_id": begun.id} for each in finished.measured])
    return True


def _row_id(connection: Connection, study_id: int, number: int | None) -> int | None:
    if number is None:
        return None
    statement = select(TRIALS.c.id).where(TRIALS.c.study_id == study_id, TRIALS.c.number == number)
    return connection.execute(statement).scalar()


def reusable(
    connection: Connection, study_id: int, requested: Configuration, damage: list[str]
) -> tuple[int, Trial] | None:
    """Return the row id and the trial whose measurements a study can reuse: see :meth:`advisor.storage.store.Store.reusable`."""
    same = [STUDIES.c[name] == _MINE.c[name] for name in ("workload_id", "environment_id", "model_id")]
    asked = select(CONFIGURATIONS.c.id).where(CONFIGURATIONS.c.key == requested.key).scalar_subquery()
    newest_first = (TRIALS.c.finished_at.desc(), TRIALS.c.id.desc())
    # The newest of each study by the index's own order: a study can hold very many that asked for this.
    of_each = (
        select(TRIALS.c.id)
        .where(TRIALS.c.study_id == STUDIES.c.id, TRIALS.c.requested_id == asked, TRIALS.c.reused_from.is_(None))
        .where(TRIALS.c.outcome == "ok", TRIALS.c.phase == "search")
        .order_by(*newest_first)
        .limit(1)
        .correlate(STUDIES)
        .scalar_subquery()
    )
    others = select(of_each).join_from(STUDIES, _MINE, (_MINE.c.id == study_id) & (_MINE.c.id != STUDIES.c.id))
    statement = select(TRIALS.c.id).where(TRIALS.c.id.in_(others.where(*same))).order_by(*newest_first).limit(1)
    found = connection.execute(statement).scalar()
    where = "t.id = :trial"
    read = [] if found is None else trial_rows.trials(connection, where, full=True, damage=damage, trial=found)
    return read[0] if read else None
