"""Who runs what: trials are begun, taken over, kept and finished by one owner each, however many tunes share a study.

For `advisor.storage.store`: functions that take a connection, inside its transaction. A tune names itself
(`advisor.machine.leftovers.owner`) in each trial that it runs, and says every few seconds that it is still there: a lease that
ends shortly is put off. Whoever is gone, or has not put it off, has left its running trials behind, and whoever comes next takes
them over. Trials are begun one by one, so what was decided on an older view of the study is refused: SQLite has one writer
anyway, PostgreSQL waits for the study's row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Text, func, insert, select, type_coerce, update

from advisor.machine.leftovers import owner_is_alive
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison
from advisor.nouns.step import Confirm, Discard, Search, Step
from advisor.nouns.trial import Outcome, Trial
from advisor.storage import answers, keyed_rows, rows, studies, trial_rows
from advisor.storage.tables import TRIALS
from advisor.version import __version__

#: A tune that has said nothing for so long is taken for gone (seconds), and how often one says that it is there.
LEASE_S, BEAT_S = 30.0, 5.0

IsAlive = Callable[[str], bool]

#: A lease as the database has it, to be read by `Holder.of`, which names the row where it is none.
_LEASE = type_coerce(TRIALS.c.lease, Text).label("lease")
_HELD = select(TRIALS.c.id, TRIALS.c.number, TRIALS.c.owner, _LEASE)


@dataclass(frozen=True)
class Holder:
    """Whose a trial is: the tune that ran it or runs it, and until when it is known to be there."""

    owner: str
    lease: datetime

    @classmethod
    def of(cls, row: Any) -> Holder | None:
        """Build it from a row with id, owner and lease; None where nobody holds it. Raises DamagedRow."""
        if row.owner is None or row.lease is None:
            return None
        with rows.in_row("trials", row.id):
            return cls(row.owner, rows.moment(row.lease))

    def is_there(self, is_alive: IsAlive = owner_is_alive) -> bool:
        """Whether that tune is at work: it has said so lately, and its process has not ended."""
        return self.lease > rows.now() and is_alive(self.owner)


@dataclass(frozen=True)
class Standing:
    """All of a study that decisions depend on, as it was at one moment.

    trials: by number, running ones too; holders: by number, whose a trial is, where somebody is known.
    """

    trials: tuple[Trial, ...]
    holders: Mapping[int, Holder]
    comparisons: tuple[Comparison, ...]

    @property
    def running(self) -> frozenset[int]:
        """The numbers of the trials that run, or that somebody left behind."""
        return frozenset(trial.number for trial in self.trials if trial.outcome is Outcome.RUNNING)

    def taken(self, owner: str, is_alive: IsAlive = owner_is_alive) -> frozenset[int]:
        """Return the numbers of the running trials that another tune, which is at work, runs."""
        there = {n for n, holder in self.holders.items() if holder.owner != owner and holder.is_there(is_alive)}
        return frozenset(t.number for t in self.trials if t.outcome is Outcome.RUNNING and t.number in there)

    def began(self, owner: str, is_alive: IsAlive = owner_is_alive) -> int:
        """Return the number that the first trial of those has who are at work now, the next one where nobody is."""
        theirs = (n for n, holder in self.holders.items() if holder.owner != owner and holder.is_there(is_alive))
        return min(theirs, default=self.trials[-1].number + 1 if self.trials else 0)


def standing(connection: Connection, study_id: int) -> Standing:
    """Return how a study stands. Raises DamagedRow where a row of it can't be understood."""
    read = trial_rows.trials(connection, "t.study_id = :study", full=False, study=study_id)
    compared = answers.comparisons(connection, study_id)
    return Standing(tuple(trial for _, trial in read), _holders(connection, study_id), tuple(compared))


def still_taken(connection: Connection, study_id: int, numbers: Collection[int], is_alive: IsAlive) -> frozenset[int]:
    """Return which of these trials are still run by somebody who is there."""
    mine = (TRIALS.c.study_id == study_id, TRIALS.c.number.in_(numbers), TRIALS.c.outcome == "running")
    found = ((row.number, Holder.of(row)) for row in connection.execute(_HELD.where(*mine)))
    return frozenset(number for number, holder in found if holder is not None and holder.is_there(is_alive))


def _holders(connection: Connection, study_id: int) -> dict[int, Holder]:
    """Return by number whose each trial is."""
    held = _HELD.where(TRIALS.c.study_id == study_id, TRIALS.c.owner.is_not(None), TRIALS.c.lease.is_not(None))
    found = ((row.number, Holder.of(row)) for row in connection.execute(held))
    return {number: holder for number, holder in found if holder is not None}


@dataclass(frozen=True)
class Claim:
    """Who wants a step. seen: the number that the next trial had when it was chosen, None where that depends on no other trial.

    began_at: when, which tells the same claim made twice, for its answer was lost, from another one.
    """

    owner: str
    began_at: datetime
    seen: int | None = None
    lease_s: float = LEASE_S


def claimed(
    connection: Connection, study_id: int, step: Step, claim: Claim, is_alive: IsAlive
) -> tuple[int, ...] | None:
    """Return the numbers of the trials that the owner runs from now on, none for a step that runs none; None for the loser."""
    studies.lock(connection, study_id)
    if isinstance(step, Discard) or (isinstance(step, Search) and step.number is not None):
        assert step.number is not None
        return _taken_over(connection, study_id, step.number, claim, is_alive)
    if isinstance(step, Search):
        return _begun(connection, study_id, [step.configuration], claim, block=None)
    if isinstance(step, Confirm):
        return _begun(connection, study_id, step.contestants, claim, block=step.block)
    return ()


def _begun(
    connection: Connection, study_id: int, configurations: Sequence[Configuration], claim: Claim, block: int | None
) -> tuple[int, ...] | None:
    """Begin a trial of each configuration, or of none where somebody was first."""
    mine = TRIALS.c.study_id == study_id
    same = (mine, TRIALS.c.owner == claim.owner, TRIALS.c.started_at == claim.began_at)
    known = connection.execute(select(TRIALS.c.number).where(*same).order_by(TRIALS.c.number)).scalars().all()
    if known:
        return tuple(known)
    last = connection.execute(select(func.max(TRIALS.c.number)).where(mine)).scalar()
    first = 0 if last is None else int(last) + 1
    if claim.seen is not None and first != claim.seen:
        return None
    ids = keyed_rows.configuration_ids(connection, *configurations)
    is_taken = (
        (TRIALS.c.phase == "search") & (TRIALS.c.outcome == "running") & TRIALS.c.requested_id.in_(ids.values())
        if block is None
        else (TRIALS.c.phase == "confirm") & (TRIALS.c.block >= block)
    )
    if connection.execute(select(TRIALS.c.id).where(mine, is_taken).limit(1)).scalar() is not None:
        return None
    shared = {
        "study_id": study_id,
        "phase": "search" if block is None else "confirm",
        "block": block,
        "attempts": 1,
        "outcome": "running",
        "reason": "",
        "owner": claim.owner,
        "lease": rows.now(claim.lease_s),
        "started_at": claim.began_at,
        "advisor_version": __version__,
    }
    numbered = list(enumerate(configurations, first))
    connection.execute(insert(TRIALS), [{**shared, "number": n, "requested_id": ids[c]} for n, c in numbered])
    return tuple(number for number, _ in numbered)


def _taken_over(
    connection: Connection, study_id: int, number: int, claim: Claim, is_alive: IsAlive
) -> tuple[int, ...] | None:
    """Take a running trial over from who is gone, which counts as one more attempt; it may be the owner's already."""
    mine = (TRIALS.c.study_id == study_id, TRIALS.c.number == number, TRIALS.c.outcome == "running")
    asked = select(TRIALS.c.id, TRIALS.c.owner, _LEASE).where(*mine).with_for_update()
    row = connection.execute(asked).one_or_none()
    if row is None:
        return None
    if row.owner != claim.owner:
        holder = Holder.of(row)
        if holder is not None and holder.is_there(is_alive):
            return None
        values = {"owner": claim.owner, "lease": rows.now(claim.lease_s), "attempts": TRIALS.c.attempts + 1}
        connection.execute(update(TRIALS).where(TRIALS.c.id == row.id).values(values))
    return (number,)


def kept(connection: Connection, study_id: int, owner: str, lease_s: float) -> None:
    """Put off the end of a tune's leases: of what it runs, and of what it ran, for that tells who is at work."""
    mine = (TRIALS.c.study_id == study_id, TRIALS.c.owner == owner, TRIALS.c.lease.is_not(None))
    connection.execute(update(TRIALS).where(*mine).values(lease=rows.now(lease_s)))


def let_go(connection: Connection, study_id: int, owner: str, is_alive: IsAlive) -> bool:
    """Let go of all that a tune holds: what it still runs is left behind. Return whether another one is at work on the study."""
    studies.lock(connection, study_id)
    held = (TRIALS.c.study_id == study_id, TRIALS.c.owner == owner)
    connection.execute(update(TRIALS).where(*held).values(lease=None))
    connection.execute(update(TRIALS).where(*held, TRIALS.c.outcome == "running").values(owner=None))
    others = _holders(connection, study_id).values()
    return any(holder.is_there(is_alive) for holder in others)
