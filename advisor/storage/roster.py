"""The roster: which slots there are, on which hosts, and what each is doing. Slots say every few seconds that they are there.

A slot that has said nothing for a while is gone, and so is one whose process has ended on this host. What it ran runs elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, select, type_coerce, update

from advisor.machine.leftovers import owner_is_alive
from advisor.nouns.environment import Environment
from advisor.storage import keyed_rows, rows
from advisor.storage.claims import IsAlive
from advisor.storage.selects import selected
from advisor.storage.store import Store
from advisor.storage.tables import ENVIRONMENTS, SLOTS
from advisor.version import __version__

#: How long a slot is believed to be there after it said so (seconds), and how often it does.
LEASE_S, BEAT_S = 20.0, 4.0

#: What a slot can be doing: nothing, a job, waiting until it may use its device, or going away.
STATES = ("idle", "busy", "waiting", "gone")

_COLUMNS = (
    *(SLOTS.c[name] for name in ("id", "name", "host", "device_class", "owner", "state", "why", "job", "busy_s")),
    type_coerce(SLOTS.c.lease, Text).label("lease"),
    SLOTS.c.advisor_version,
    ENVIRONMENTS.c.payload,
)


@dataclass(frozen=True)
class Slot:
    """A device that jobs are tuned on.

    name: of its device, a GPU's UUID; device_class: what jobs wait for; state, why: what it is doing, in words; job: the id of
    the one that it works on; busy_s: seconds that it has spent on jobs; lease: until when it is known to be there.
    """

    name: str
    host: str
    environment: Environment
    device_class: str
    owner: str | None
    state: str
    why: str
    job: str | None
    busy_s: float
    lease: datetime | None
    advisor_version: str

    def is_there(self, is_alive: IsAlive = owner_is_alive) -> bool:
        """Whether it is at work: it has said so lately, and its process has not ended."""
        if self.lease is None or self.owner is None or self.lease <= rows.now():
            return False
        return is_alive(self.owner)

    @property
    def holder(self) -> str:
        """Who has it, in words, "" where nobody has."""
        pid = (self.owner or "").rpartition(":")[0].rpartition(":")[2]
        return f"process {pid} on {self.host}" if pid and self.is_there() else ""

    @property
    def payload(self) -> dict[str, Any]:
        """The slot as JSON values."""
        there = self.is_there()
        return {
            "name": self.name,
            "host": self.host,
            "device_class": self.device_class,
            "environment": {"key": self.environment.key, **self.environment.payload},
            "state": self.state if there else "gone",
            "why": self.why,
            "job": self.job if there else None,
            "busy_s": self.busy_s,
            "advisor_version": self.advisor_version,
        }


class Roster:
    """The slots of a database. Each verb is one transaction."""

    def __init__(self, store: Store) -> None:
        """Share the store's connections."""
        self._database = store._database

    def enter(
        self, name: str, host: str, environment: Environment, owner: str, is_alive: IsAlive = owner_is_alive
    ) -> bool:
        """Say that a slot is there from now on; return False where another process has it and is at work."""
        with self._database.writing() as connection:
            row_id = keyed_rows.environment_id(connection, environment)
            values = {
                "host": host,
                "environment_id": row_id,
                "device_class": environment.device_class,
                "owner": owner,
                "state": "idle",
                "why": "",
                "job": None,
                "lease": rows.now(LEASE_S),
                "advisor_version": __version__,
            }
            if keyed_rows.insert_unless_there(connection, SLOTS, {"name": name, "busy_s": 0.0, **values}):
                return True
            there = connection.execute(_named(name).with_for_update(of=SLOTS)).one()
            slot = _slot(there)
            if slot.owner != owner and slot.is_there(is_alive):
                return False
            connection.execute(update(SLOTS).where(SLOTS.c.name == name).values(values))
            return True

    def know(self, name: str, host: str, environment: Environment) -> None:
        """Note a slot that will be there, unless it is known: jobs can be submitted for its device before it is."""
        with self._database.writing() as connection:
            values = {
                "name": name,
                "host": host,
                "environment_id": keyed_rows.environment_id(connection, environment),
                "device_class": environment.device_class,
                "state": "gone",
                "why": "",
                "busy_s": 0.0,
                "advisor_version": __version__,
            }
            keyed_rows.insert_unless_there(connection, SLOTS, values)

    def beat(
        self, name: str, owner: str, state: str, why: str = "", job: str | None = None, busy_s: float = 0.0
    ) -> bool:
        """Say that a slot is there, and what it does. busy_s: to be added. Return False where another process has it by now."""
        mine = (SLOTS.c.name == name, SLOTS.c.owner == owner)
        values = {"state": state, "why": why, "job": job, "lease": rows.now(LEASE_S), "busy_s": SLOTS.c.busy_s + busy_s}
        with self._database.writing() as connection:
            return connection.execute(update(SLOTS).where(*mine).values(values)).rowcount == 1

    def leave(self, name: str, owner: str | None = None) -> None:
        """Say that a slot is gone. owner: only where it is still this one's."""
        mine = [SLOTS.c.name == name, *([] if owner is None else [SLOTS.c.owner == owner])]
        values = {"state": "gone", "why": "", "job": None, "lease": None}
        with self._database.writing() as connection:
            connection.execute(update(SLOTS).where(*mine).values(values))

    def slots(self) -> list[Slot]:
        """Return every slot that ever was, those at work first, then by name."""
        with self._database.reading() as connection:
            found = _read(connection)
        return sorted(found, key=lambda slot: (not slot.is_there(), slot.host, slot.name))


def _named(name: str) -> Any:
    return select(*_COLUMNS).join(ENVIRONMENTS, ENVIRONMENTS.c.id == SLOTS.c.environment_id).where(SLOTS.c.name == name)


class _Row(NamedTuple):
    """What is read of a slot: see `_COLUMNS`."""

    id: Any
    name: Any
    host: Any
    device_class: Any
    owner: Any
    state: Any
    why: Any
    job: Any
    busy_s: Any
    lease: Any
    advisor_version: Any
    payload: Any


#: Every answer looks which slots there are.
_SLOTS = """SELECT s.id, s.name, s.host, s.device_class, s.owner, s.state, s.why, s.job, s.busy_s, s.lease, s.advisor_version,
  e.payload
FROM slots s JOIN environments e ON e.id = s.environment_id"""


def _read(connection: Connection) -> list[Slot]:
    return [_slot(_Row._make(row)) for row in selected(connection, _SLOTS)]


def _slot(row: Any) -> Slot:
    """Build a slot from its row. Raises DamagedRow."""
    with rows.in_row("slots", row.id):
        rows.refuse(row.state not in STATES, "state", row.state)
        lease = None if row.lease is None else rows.moment(row.lease)
        environment = keyed_rows.environment_of(row.payload)
        return Slot(
            row.name, row.host, environment, row.device_class, row.owner, row.state, row.why, row.job, row.busy_s, lease,
            row.advisor_version,
        )  # fmt: skip
