"""The database's verbs: rows to nouns and back. The only reader and writer, on SQLite and on PostgreSQL alike.

SQLAlchemy Core only. Every verb is one transaction; what goes wrong in it is a StoreError (see `advisor.database`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, delete, exists, insert, select, update

from advisor import answers, claims, environments, keyed_rows, rows, studies, trial_rows
from advisor.answer import Answer, SearchEnd
from advisor.checked import parsed
from advisor.claims import LEASE_S, Claim, IsAlive, Standing
from advisor.configuration import Configuration, key_of
from advisor.database import Database, upgrade
from advisor.environment import Environment
from advisor.errors import NotMeasured, StoreError
from advisor.knobs import Reason
from advisor.leftovers import owner_is_alive
from advisor.measurement import Comparison
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.parcel import Link, Parcel, link, packed, statistics_of, study_keys, unpacked, with_sources
from advisor.place import database_path, default_url, shown_url
from advisor.step import Step
from advisor.study_record import STATES, StudyRecord
from advisor.tables import (
    CEILINGS,
    COMPARISONS,
    CONFIGURATIONS,
    ENVIRONMENTS,
    MEASUREMENTS,
    MODELS,
    RECOMMENDATIONS,
    REFUSALS,
    STUDIES,
    TRIALS,
)
from advisor.trial import Trial
from advisor.workloads import Workload

__all__ = ["Store", "database_path", "default_url", "shown_url", "upgrade"]

# A table's second role in a query. Made once: an alias costs more time than the query it is used in.
_MINE = STUDIES.alias("mine")


class Page(NamedTuple):
    """Trials, the newest first; last: the lowest number that was looked at, None where there were none."""

    trials: tuple[Trial, ...]
    last: int | None


class Store:
    """An open database. Safe to share between threads; a process that forks opens its own.

    damaged: a line for each row that could not be understood and was passed over, so that the others answer.
    """

    def __init__(self, database: Database) -> None:
        """Read and write this database; use :meth:`open`."""
        self._database = database
        self.damaged: list[str] = []

    @classmethod
    def open(cls, url: str, *, write: bool) -> Store:
        """Open the database; a writer creates it where there is none.

        Raises NotMeasured where there is nothing to read, StoreError where it can't be opened, is read-only for a
        writer, or has another schema than this version of advisor, BadInput where the URL is none.
        """
        return cls(Database.open(url, write=write))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be told of the database, in words."""
        return (self._database.note,) if self._database.note else ()

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    # ------------------------------------------------------------------------------------------------------- studies

    def open_study(
        self,
        source: ModelSource,
        workload: Workload,
        environment: Environment,
        objective: Objective,
        budget: Budget,
        seed: int,
    ) -> int:
        """Return the id of the study of this workload, environment, model and objective, found or made; it runs again.

        A study that is found takes the new budget, keeps the seed it began with, and was finished when it last was.
        """
        aim = rows.as_json(objective.payload)
        with self._database.writing() as connection:
            key = {
                "workload_id": keyed_rows.workload_id(connection, workload, source.architecture_key),
                "environment_id": keyed_rows.environment_id(connection, environment),
                "model_id": keyed_rows.model_id(connection, source),
                "objective_key": key_of(objective.payload),
            }
            more = {"objective": aim, "seed": seed, "started_at": rows.now(), "budget": "{}", "state": "running"}
            study_id = keyed_rows.found_or_made(connection, STUDIES, key, more)
            running = {"state": "running", "budget": rows.as_json(budget.payload)}
            connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(running))
        return study_id

    def close_study(
        self,
        study_id: int,
        state: str,
        *,
        owner: str | None = None,
        end: SearchEnd | None = None,
        ran: bool = True,
        budget: Budget | None = None,
        is_alive: IsAlive = owner_is_alive,
    ) -> None:
        """Say how the study ended: "done" or "interrupted", and its search. ran: whether a trial was run since it was opened.

        Where none was, the study stays measured when it was. budget: the one that this is about, where it is not the last.
        Another tune's end that knew of more trials stays.
        owner: whose tune ends with it: what it holds is let go, and the study is still running where others are at work.
        """
        if state not in STATES:
            raise ValueError(f"a study is one of {', '.join(STATES)}, not {state!r}")
        mine = STUDIES.c.id == study_id
        with self._database.writing() as connection:
            before = connection.execute(select(STUDIES.c.budget, STUDIES.c.finished_at).where(mine)).one_or_none()
            if before is None:
                raise StoreError(f"there is no study {study_id}")
            if owner is not None and claims.let_go(connection, study_id, owner, is_alive):
                state = "running"
            kept = None if ran else before.finished_at
            values = {"state": state, "finished_at": None if state == "running" else kept or rows.now()}
            if end is not None and not _knew_more(parsed(before.budget), end):  # beside the budget that it is about
                about = parsed(before.budget) if budget is None else budget.payload
                values["budget"] = rows.as_json({**about, "end": end.payload})
            connection.execute(update(STUDIES).where(mine).values(values))

    def studies_for(self, architecture_key: str, workload_key: str) -> list[StudyRecord]:
        """Return the studies of this workload on this architecture, newest first."""
        where = "m.architecture_key = :architecture AND w.key = :workload"
        with self._database.reading() as connection:
            return studies.read(connection, where, self.damaged, architecture=architecture_key, workload=workload_key)

    def studies(self, architecture_key: str | None = None) -> list[StudyRecord]:
        """Return all studies, or all of one architecture, whatever the workload, newest first."""
        with self._database.reading() as connection:
            if architecture_key is None:
                return studies.read(connection, "1 = 1", self.damaged)
            where = "m.architecture_key = :architecture"
            return studies.read(connection, where, self.damaged, architecture=architecture_key)

    def studies_page(
        self, architecture_key: str | None, study_id: int | None, first: int, most: int
    ) -> list[StudyRecord] | None:
        """Return `most` studies from the `first` on, newest first, or None where there are no more; all, or some alone.

        Those that can't be understood are passed over.
        """
        wanted = (
            select(STUDIES.c.id).order_by(STUDIES.c.started_at.desc(), STUDIES.c.id.desc()).limit(most).offset(first)
        )
        if architecture_key is not None:
            wanted = wanted.join(MODELS, MODELS.c.id == STUDIES.c.model_id)
            wanted = wanted.where(MODELS.c.architecture_key == architecture_key)
        if study_id is not None:
            wanted = wanted.where(STUDIES.c.id == study_id)
        with self._database.reading() as connection:
            ids = list(connection.execute(wanted).scalars())
            if not ids:
                return None
            listed = ", ".join(str(int(each)) for each in ids)
            return studies.read(connection, f"s.id IN ({listed})", self.damaged)

    def study(self, study_id: int) -> StudyRecord:
        """Return one study. Raises NotMeasured where there is none of this id."""
        with self._database.reading() as connection:
            found = studies.read(connection, "s.id = :study", study=study_id)
        if not found:
            raise NotMeasured(f"there is no study {study_id}")
        return found[0]

    def environments(self) -> list[tuple[str, Environment]]:
        """Return the key and the environment of each one with a trial that is ok, the newest first."""
        measured = exists().where(
            STUDIES.c.environment_id == ENVIRONMENTS.c.id, TRIALS.c.study_id == STUDIES.c.id, TRIALS.c.outcome == "ok"
        )
        newest = (ENVIRONMENTS.c.first_seen.desc(), ENVIRONMENTS.c.id.desc())
        statement = (
            select(ENVIRONMENTS.c.id, ENVIRONMENTS.c.key, ENVIRONMENTS.c.payload).where(measured).order_by(*newest)
        )
        with self._database.reading() as connection:
            found = connection.execute(statement).all()

        def read(row: Any) -> tuple[str, Environment]:
            with rows.in_row("environments", row.id):
                return row.key, keyed_rows.environment_of(row.payload)

        return rows.readable(read, found, self.damaged)

    # ------------------------------------------------------------------------------------------- models and ceilings

    def save_facts(self, source: ModelSource, facts: ModelFacts, study_id: int | None = None) -> None:
        """Store what a worker read of the model, and that a study was made with it: another output has another class."""
        payload = rows.as_json(facts.payload)
        with self._database.writing() as connection:
            model_id = keyed_rows.model_id(connection, source)
            connection.execute(update(MODELS).where(MODELS.c.id == model_id).values(facts=payload))
            if study_id is not None:
                connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(facts=payload))

    def save_ceilings(self, environment: Environment, payload: Mapping[str, Any]) -> None:
        """Store what plain work reached in an environment just now, instead of what was stored."""
        values = {"payload": rows.as_json(dict(payload)), "measured_at": rows.now()}
        with self._database.writing() as connection:
            key = {"environment_id": keyed_rows.environment_id(connection, environment)}
            row_id = keyed_rows.found_or_made(connection, CEILINGS, key, values)
            connection.execute(update(CEILINGS).where(CEILINGS.c.id == row_id).values(values))

    def ceilings(self, environment_key: str) -> dict[str, float] | None:
        """Return what plain work reached in an environment, or None where that was not measured."""
        with self._database.reading() as connection:
            return environments.ceilings(connection, environment_key, self.damaged)

    # -------------------------------------------------------------------------------------------------------- trials

    def trials(self, study_id: int, *, full: bool = False, readable: bool = False) -> list[Trial]:
        """Return the study's trials by number, running ones too; readings and device states only when `full`.

        readable: those alone that can be understood. Raises DamagedRow for another one otherwise.
        """
        where, damage = "t.study_id = :study", self.damaged if readable else None
        with self._database.reading() as connection:
            return [
                trial for _, trial in trial_rows.trials(connection, where, full=full, damage=damage, study=study_id)
            ]

    def page(self, study_id: int, below: int | None, most: int, *, failed: bool = False) -> Page:
        """Return the study's newest trials whose numbers are below one, or failures alone, `most` at most.

        Those that can't be understood are passed over.
        """
        numbers = (
            select(TRIALS.c.number).where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.number.desc()).limit(most)
        )
        if below is not None:
            numbers = numbers.where(TRIALS.c.number < below)
        where = "t.study_id = :study AND t.number BETWEEN :low AND :high"
        if failed:
            none = ("running", "ok", "pruned")
            numbers = numbers.where(TRIALS.c.outcome.not_in(none))
            where += f" AND t.outcome NOT IN {none}"
        with self._database.reading() as connection:
            found = list(connection.execute(numbers).scalars())
            if not found:
                return Page((), None)
            span = {"study": study_id, "low": found[-1], "high": found[0]}
            read = trial_rows.trials(connection, where, full=False, damage=self.damaged, **span)
        return Page(tuple(trial for _, trial in reversed(read)), found[-1])

    def default_trials(self, study_id: int) -> list[Trial]:
        """Return the ok trials of what the study began with, what transformers does when told nothing, by number."""
        first = "(SELECT o.requested_id FROM trials o WHERE o.study_id = :study AND o.number = 0)"
        where = f"t.study_id = :study AND t.requested_id = {first} AND t.outcome = 'ok'"
        with self._database.reading() as connection:
            read = trial_rows.trials(connection, where, full=False, damage=self.damaged, study=study_id)
        return [trial for _, trial in read]

    def trial(self, study_id: int, number: int) -> Trial:
        """Return one trial with its reading and device states. Raises NotMeasured where there is none of this number."""
        where = "t.study_id = :study AND t.number = :number"
        with self._database.reading() as connection:
            found = trial_rows.trials(connection, where, full=True, study=study_id, number=number)
        if not found:
            raise NotMeasured(f"study {study_id} has no trial {number}")
        return found[0][1]

    def standing(self, study_id: int) -> Standing:
        """Return all of a study that decisions depend on, as it is at one moment."""
        with self._database.reading() as connection:
            return claims.standing(connection, study_id)

    def still_taken(
        self, study_id: int, numbers: Collection[int], is_alive: IsAlive = owner_is_alive
    ) -> frozenset[int]:
        """Return which of these trials are still run by somebody who is there: a look that costs little."""
        with self._database.reading() as connection:
            return claims.still_taken(connection, study_id, numbers, is_alive)

    def claim(
        self,
        study_id: int,
        step: Step,
        owner: str,
        *,
        seen: int | None = None,
        lease_s: float = LEASE_S,
        began_at: datetime | None = None,
        is_alive: IsAlive = owner_is_alive,
    ) -> tuple[int, ...] | None:
        """Let `owner` have a step: return the numbers of the trials that it runs from now on, or None where it lost.

        A new trial is begun unless its configuration runs already, a block unless there is one of its number or a later one,
        and neither where the study's next trial has another number than `seen`, when the step was chosen. A trial that somebody
        left behind is taken over by one alone. A step that runs nothing is everybody's: it has no numbers. began_at: now, but
        where this may be said twice: then the second time the first one's numbers are returned.
        """
        claim = Claim(owner, began_at or rows.now(), seen, lease_s)
        with self._database.writing() as connection:
            return claims.claimed(connection, study_id, step, claim, is_alive)

    def keep(self, study_id: int, owner: str, lease_s: float = LEASE_S) -> None:
        """Say that a tune is at work: what it holds is its own for so many seconds more."""
        with self._database.writing() as connection:
            claims.kept(connection, study_id, owner, lease_s)

    def finish_trial(self, study_id: int, trial: Trial, owner: str, *, reused_from_id: int | None = None) -> bool:
        """Write what came of a trial, in one transaction; return whether it is this owner's. A stranger changes nothing.

        Nor does the owner, where it is finished. reused_from_id: the row (from :meth:`reusable`) whose measurements these
        are; without it `trial.reused_from` is a number in this study. The attempts stored are never fewer than the claims.
        Raises ValueError for figures that are not finite, StoreError where the trial was never begun.
        """
        values, measured = (
            trial_rows.trial_values(trial),
            [trial_rows.measurement_values(m) for m in trial.measurements],
        )
        mine = (TRIALS.c.study_id == study_id, TRIALS.c.number == trial.number)
        columns = (TRIALS.c.id, TRIALS.c.attempts, TRIALS.c.owner, TRIALS.c.outcome)
        with self._database.writing() as connection:
            ids = keyed_rows.configuration_ids(connection, trial.requested, trial.effective)
            begun = connection.execute(select(*columns).where(*mine).with_for_update()).one_or_none()
            if begun is None:
                raise StoreError(f"study {study_id} has no trial {trial.number}")
            if begun.owner != owner or begun.outcome != "running":
                return bool(begun.owner == owner)
            values |= {
                "requested_id": ids[trial.requested],
                "effective_id": ids[trial.effective] if trial.effective is not None else None,
                "reused_from": reused_from_id or _row_id(connection, study_id, trial.reused_from),
                "attempts": max(begun.attempts, trial.attempts),
            }
            connection.execute(update(TRIALS).where(TRIALS.c.id == begun.id).values(values))
            if measured:
                connection.execute(insert(MEASUREMENTS), [{**each, "trial_id": begun.id} for each in measured])
        return True

    def reusable(self, study_id: int, requested: Configuration) -> tuple[int, Trial] | None:
        """Return the row id and the trial of the newest ok search trial, in another study, that asked for the same.

        The same: this configuration, on the same workload, environment and weights. A trial that was reused itself
        is no evidence of its own.
        """
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
        with self._database.reading() as connection:
            found = connection.execute(statement).scalar()
            where = "t.id = :trial"
            read = (
                []
                if found is None
                else trial_rows.trials(connection, where, full=True, damage=self.damaged, trial=found)
            )
            return read[0] if read else None

    # --------------------------------------------------------------------------------------- comparisons and refusals

    def save_comparisons(self, study_id: int, comparisons: Sequence[Comparison]) -> None:
        """Store these as the study's comparisons, instead of what was stored. Raises StoreError for an unknown key."""
        keys = {key for comparison in comparisons for key in (comparison.candidate, comparison.baseline)}
        values = [{"study_id": study_id, **answers.comparison_values(comparison)} for comparison in comparisons]
        known = select(CONFIGURATIONS.c.key, CONFIGURATIONS.c.id).where(CONFIGURATIONS.c.key.in_(keys))
        with self._database.writing() as connection:
            claims.lock(connection, study_id)
            ids = {row.key: row.id for row in connection.execute(known)}
            if missing := keys - set(ids):
                raise StoreError(f"compared, but not stored: configuration {', '.join(sorted(missing))}")
            connection.execute(delete(COMPARISONS).where(COMPARISONS.c.study_id == study_id))
            for row, comparison in zip(values, comparisons, strict=True):
                row |= {"candidate_id": ids[comparison.candidate], "baseline_id": ids[comparison.baseline]}
            if values:
                connection.execute(insert(COMPARISONS), values)

    def comparisons(self, study_id: int) -> list[Comparison]:
        """Return the study's comparisons in the order they were saved."""
        with self._database.reading() as connection:
            return answers.comparisons(connection, study_id)

    def save_refusals(
        self, study_id: int, reasons: Iterable[Reason], admissible: int | None = None, *, beside: str = ""
    ) -> None:
        """Store these as the study's refusals, instead of what was stored: a row per subject, about and rule.

        admissible: how many configurations they leave, where the study is to say so from now on. beside: a rule whose stored
        refusals stay, for they were found out by running.
        """
        with self._database.writing() as connection:
            claims.lock(connection, study_id)
            kept = [reason for reason in answers.refusals(connection, study_id) if reason.rule == beside]
            values = {
                (r.subject, r.about, r.rule): {"study_id": study_id, **answers.refusal_values(r)}
                for r in (*reasons, *kept)
            }
            connection.execute(delete(REFUSALS).where(REFUSALS.c.study_id == study_id))
            if values:
                connection.execute(insert(REFUSALS), list(values.values()))
            if admissible is not None:
                connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(admissible=admissible))

    def add_refusal(self, study_id: int, reason: Reason) -> None:
        """Store one more refusal, unless there is one of its subject, about and rule."""
        with self._database.writing() as connection:
            keyed_rows.insert_unless_there(
                connection, REFUSALS, {"study_id": study_id, **answers.refusal_values(reason)}
            )

    def refusals(self, study_id: int) -> list[Reason]:
        """Return the study's refusals in the order they were saved."""
        with self._database.reading() as connection:
            return answers.refusals(connection, study_id)

    # --------------------------------------------------------------------------------------------------------- answers

    def save_answer(self, study_id: int, answer: Answer) -> None:
        """Store what a study comes to, instead of what was stored, unless that was made of a later moment's rows."""
        values = answers.answer_values(answer)
        with self._database.writing() as connection:
            ids = keyed_rows.configuration_ids(connection, answer.configuration)
            values["configuration_id"] = None if answer.configuration is None else ids[answer.configuration]
            keyed_rows.insert_unless_there(connection, RECOMMENDATIONS, {"study_id": study_id, **values})
            older = (RECOMMENDATIONS.c.study_id == study_id, RECOMMENDATIONS.c.made_at <= values["made_at"])
            connection.execute(update(RECOMMENDATIONS).where(*older).values(values))

    def answer(self, study_id: int) -> Answer | None:
        """Return what is stored as a study's answer, or None where nothing is."""
        with self._database.reading() as connection:
            return answers.answer(connection, study_id)

    def unanswered(self, method: str) -> list[int]:
        """Return the ids of the studies whose stored answer is missing or of another method, oldest first."""
        made = exists().where(RECOMMENDATIONS.c.study_id == STUDIES.c.id, RECOMMENDATIONS.c.method == method)
        statement = select(STUDIES.c.id).where(~made).order_by(STUDIES.c.id)
        with self._database.reading() as connection:
            return list(connection.execute(statement).scalars())

    # ------------------------------------------------------------------------------------------- from database to database

    def pack(self, study_ids: Iterable[int] | None = None) -> Iterator[Parcel]:
        """Give these studies, or all, oldest first, each as it is by then; and those whose trials they reuse.

        Raises NotMeasured for an id that no study has.
        """
        with self._database.reading() as connection:
            keys = study_keys(connection)
            ids = with_sources(connection, keys, study_ids)
        return (self._packed(study_id, keys) for study_id in ids)

    def _packed(self, study_id: int, keys: Mapping[int, str]) -> Parcel:
        with self._database.reading() as connection:
            return packed(connection, study_id, keys)

    def unpack(self, parcel: Parcel) -> Counter[str]:
        """Store a study from elsewhere, all of it or nothing; return how many rows of which tables are new.

        A study that is here already stays as it is, with its trials, comparisons and refusals.
        """
        statistics = statistics_of(parcel)
        with self._database.writing() as connection:
            return unpacked(connection, parcel, statistics)

    def link(self, links: Sequence[Link]) -> None:
        """Say of trials from elsewhere whose measurements they have, as far as both are here by now."""
        with self._database.writing() as connection:
            link(connection, links)


def _knew_more(stored: Any, end: SearchEnd) -> bool:
    """Whether the end that is stored beside a budget knew of more trials: another tune of the study ended before this one."""
    before = SearchEnd.of(stored.get("end")) if isinstance(stored, dict) else None
    return before is not None and before.tried > end.tried


def _row_id(connection: Connection, study_id: int, number: int | None) -> int | None:
    if number is None:
        return None
    statement = select(TRIALS.c.id).where(TRIALS.c.study_id == study_id, TRIALS.c.number == number)
    return connection.execute(statement).scalar()
