"""The database's verbs, each one transaction. The only reader and writer, on SQLite and on PostgreSQL alike.

What a verb does stands with what it is about: `advisor.storage.studies`, `environments`, `trials`, `answers`, `claims` and
`parcel`, in SQLAlchemy Core alone. What goes wrong in it is a StoreError (see `advisor.storage.database`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from advisor.errors import NotMeasured
from advisor.knobs import Reason
from advisor.machine.leftovers import owner_is_alive
from advisor.nouns.answer import Answer, SearchEnd
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Step
from advisor.nouns.trial import Trial
from advisor.storage import answers, claims, environments, rows, studies, trial_rows, trials
from advisor.storage.claims import LEASE_S, Claim, IsAlive, Standing
from advisor.storage.database import Database
from advisor.storage.study_record import STATES, StudyRecord
from advisor.storage.trials import Page
from advisor.workloads import Workload


class Store:
    """An open database. Safe to share between threads; a process that forks opens its own.

    damaged: a line for each row that could not be understood and was passed over, so that the others answer.
    """

    def __init__(self, database: Database) -> None:
        """Read and write this database; use :meth:`open`."""
        self._database = database
        self.damaged: list[str] = rows.Damage()

    @classmethod
    def open(cls, url: str, *, write: bool) -> Store:
        """Open the database; a writer creates it where there is none.

        Raises NotMeasured where there is nothing to read, StoreError where it can't be opened, is read-only for a
        writer, or has another schema than this version of advisor, BadInput where the URL is none.
        """
        return cls(Database.open(url, write=write))

    def anew(self) -> Store:
        """Return the same open database for another question: what is passed over for one is told of that one alone."""
        return Store(self._database)

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

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Have all that this thread reads meanwhile be of one moment, and one transaction."""
        with self._database.reading():
            yield

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
        with self._database.writing() as connection:
            return studies.opened(connection, source, workload, environment, objective, budget, seed)

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
        with self._database.writing() as connection:
            if owner is not None and claims.let_go(connection, study_id, owner, is_alive):
                state = "running"
            studies.close(connection, study_id, state, end=end, ran=ran, budget=budget)

    def studies_for(
        self, architecture_key: str, workload_key: str, damage: list[str] | None = None
    ) -> list[StudyRecord]:
        """Return the studies of this workload on this architecture, newest first. damage: takes in place of `damaged`."""
        damage = self.damaged if damage is None else damage
        where = "m.architecture_key = :architecture AND w.key = :workload"
        with self._database.reading() as connection:
            return studies.read(connection, where, damage, architecture=architecture_key, workload=workload_key)

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
        with self._database.reading() as connection:
            return studies.page(connection, architecture_key, study_id, first, most, self.damaged)

    def study(self, study_id: int) -> StudyRecord:
        """Return one study. Raises NotMeasured where there is none of this id."""
        with self._database.reading() as connection:
            found = studies.read(connection, "s.id = :study", study=study_id)
        if not found:
            raise NotMeasured(f"there is no study {study_id}")
        return found[0]

    def architecture_of(self, model_name: str) -> str | None:
        """Return the architecture key of the newest study of a model of this name, or None where there is none."""
        with self._database.reading() as connection:
            return studies.architecture_of(connection, model_name)

    def environments(self) -> list[tuple[str, Environment]]:
        """Return the key and the environment of each one with a trial that is ok, the newest first."""
        with self._database.reading() as connection:
            return environments.measured(connection, self.damaged)

    # ------------------------------------------------------------------------------------------- models and ceilings

    def save_facts(self, source: ModelSource, facts: ModelFacts, study_id: int | None = None) -> None:
        """Store what a worker read of the model, and that a study was made with it: another output has another class."""
        with self._database.writing() as connection:
            studies.save_facts(connection, source, facts, study_id)

    def save_ceilings(self, environment: Environment, payload: Mapping[str, Any]) -> None:
        """Store what plain work reached in an environment, where that is better than what was stored."""
        with self._database.writing() as connection:
            environments.save_ceilings(connection, environment, payload)

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

    def weighed(self, study_id: int) -> list[Trial]:
        """Return the study's trials by number as an answer weighs them: of blocks with no measurement but their energy.

        What the blocks measured is in the comparisons. Raises DamagedRow.
        """
        with self._database.reading() as connection:
            return trials.weighed(connection, study_id)

    def page(self, study_id: int, below: int | None, most: int, *, failed: bool = False) -> Page:
        """Return the study's newest trials whose numbers are below one, or failures alone, `most` at most.

        Those that can't be understood are passed over.
        """
        with self._database.reading() as connection:
            return trials.page(connection, study_id, below, most, failed=failed, damage=self.damaged)

    def default_trials(self, study_id: int) -> list[Trial]:
        """Return the ok trials of what the study began with, what transformers does when told nothing, by number."""
        with self._database.reading() as connection:
            return trials.of_default(connection, study_id, self.damaged)

    def trial(self, study_id: int, number: int) -> Trial:
        """Return one trial with its reading and device states. Raises NotMeasured where there is none of this number."""
        where = "t.study_id = :study AND t.number = :number"
        with self._database.reading() as connection:
            found = trial_rows.trials(connection, where, full=True, study=study_id, number=number)
        if not found:
            raise NotMeasured(f"study {study_id} has no trial {number}")
        return found[0][1]

    def device_states(self, study_id: int, number: int) -> list[Mapping[str, Any]]:
        """Return what was seen of the device after each round of a trial. Raises DamagedRow."""
        with self._database.reading() as connection:
            return trial_rows.device_states(connection, study_id, number)

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
        finished = trials.Finished.of(trial)
        with self._database.writing() as connection:
            return trials.finish(connection, study_id, finished, owner, reused_from_id)

    def reusable(self, study_id: int, requested: Configuration) -> tuple[int, Trial] | None:
        """Return the row id and the trial of the newest ok search trial, in another study, that asked for the same.

        The same: this configuration, on the same workload, environment and weights. A trial that was reused itself
        is no evidence of its own.
        """
        with self._database.reading() as connection:
            return trials.reusable(connection, study_id, requested, self.damaged)

    # ------------------------------------------------------------------------------ comparisons, refusals and answers

    def save_comparisons(self, study_id: int, comparisons: Sequence[Comparison]) -> None:
        """Store these as the study's comparisons, instead of what was stored. Raises StoreError for an unknown key."""
        columns = [answers.comparison_values(comparison) for comparison in comparisons]
        with self._database.writing() as connection:
            answers.replace_comparisons(connection, study_id, comparisons, columns)

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
            answers.replace_refusals(connection, study_id, reasons, admissible, beside)

    def add_refusal(self, study_id: int, reason: Reason) -> None:
        """Store one more refusal, unless there is one of its subject, about and rule."""
        with self._database.writing() as connection:
            answers.add_refusal(connection, study_id, reason)

    def refusals(self, study_id: int) -> list[Reason]:
        """Return the study's refusals in the order they were saved."""
        with self._database.reading() as connection:
            return answers.refusals(connection, study_id)

    def save_answer(self, study_id: int, answer: Answer) -> None:
        """Store what a study comes to, instead of what was stored, unless that was made of a later moment's rows."""
        columns = answers.answer_values(answer)
        with self._database.writing() as connection:
            answers.save_answer(connection, study_id, answer, columns)

    def answer(self, study_id: int) -> Answer | None:
        """Return what is stored as a study's answer, or None where nothing is."""
        with self._database.reading() as connection:
            return answers.answer(connection, study_id)

    def unanswered(self, method: str) -> list[int]:
        """Return the ids of the studies whose stored answer is missing or of another method, oldest first."""
        with self._database.reading() as connection:
            return answers.unanswered(connection, method)
