"""Whether this host's clock agrees with the server's: leases are written and read by the clocks of different hosts."""

from __future__ import annotations

from sqlalchemy import func, select

from advisor.errors import StoreError
from advisor.storage import rows
from advisor.storage.store import Store

#: How far a host's clock may be off, seconds. A slot's lease is 20 s, and renewed every 4 s: two hosts may each be off by this.
MOST_S = 5.0


def ahead_s(store: Store) -> float:
    """Return how many seconds this host's clock is ahead of the server's, below 0 where it is behind; 0 for a file."""
    with store._database.reading() as connection:
        if connection.dialect.name == "sqlite":
            return 0.0
        before = rows.now()
        theirs = connection.execute(select(func.clock_timestamp())).scalar_one()
        after = rows.now()
    assert theirs is not None
    return float((before + (after - before) / 2 - theirs).total_seconds())


def refuse_wrong_clock(store: Store) -> None:
    """Raise StoreError where hosts would take each other's work for left behind."""
    off_s = ahead_s(store)
    if abs(off_s) > MOST_S:
        way = "ahead of" if off_s > 0 else "behind"
        raise StoreError(
            f"this host's clock is {abs(off_s):.0f} s {way} the database server's: hosts would run each other's trials again",
            "set the clock, by NTP for one (timedatectl set-ntp true)",
        )
