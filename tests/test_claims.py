"""Who runs what, as the store sees it: one tune gets a step, it alone finishes it, and nothing that it repeats is done twice.

On both databases; the tunes are names here, and processes of their own in test_together.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from made_databases import laid
from sqlalchemy import create_engine, text

from advisor.errors import DamagedRow, StoreError
from advisor.machine.leftovers import owner, owner_is_alive
from advisor.nouns.answer import SearchEnd, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Compare, Confirm, Discard, Done, EndSearch, Probe, Search, Wait
from advisor.nouns.trial import Outcome, Trial
from advisor.storage.claims import LEASE_S, Holder
from advisor.storage.place import with_driver
from advisor.storage.store import Store
from advisor.study.tuner import heartbeat, own_name
from advisor.workloads.forward import Forward

CPU = Environment("cpu", "a processor", None, 2**30, threads=1)
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", True)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")

#: Two tunes on other hosts: they count as there until their leases end.
ONE, OTHER = "one:1:1", "other:1:1"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Give an empty database."""
    with Store.open(laid(database_url), write=True) as opened:
        yield opened


@pytest.fixture
def study(store: Store) -> int:
    """Give a study without trials."""
    return store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)


def measured(number: int, requested: Configuration = DEFAULT, speed: float = 100.0) -> Trial:
    """Return a trial that is ok."""
    return Trial(
        number, requested, requested, Outcome.OK, measurements=(Measurement("tokens_per_s", "tokens/s", (speed,)),)
    )


def test_a_configuration_is_claimed_once(store: Store, study: int) -> None:
    """While one tune runs it no other gets it, and what was chosen before somebody began something is refused."""
    assert store.claim(study, Search(DEFAULT), ONE, seen=0) == (0,)
    assert store.claim(study, Search(DEFAULT), OTHER) is None
    assert store.claim(study, Search(SORTED), OTHER, seen=0) is None, "it did not know of the default's trial"
    assert store.claim(study, Search(SORTED), OTHER, seen=1) == (1,)
    assert store.finish_trial(study, measured(0), ONE)
    assert store.claim(study, Search(DEFAULT), OTHER, seen=1) is None, "it was done by somebody else since"
    assert [(t.number, t.requested) for t in store.trials(study)] == [(0, DEFAULT), (1, SORTED)]


def test_of_many_who_claim_at_once_one_gets_it(database_url: str, store: Store, study: int) -> None:
    """Six threads with connections of their own ask for the same block at the same moment, ten times: one runs it, each time."""
    barrier, got = threading.Barrier(6), list[tuple[int, tuple[int, ...] | None]]()

    def ask(name: str) -> None:
        with Store.open(database_url, write=True) as own:
            for block in range(10):
                barrier.wait(60)
                got.append((block, own.claim(study, Confirm(block, (DEFAULT, PACKED)), name, seen=2 * block)))

    threads = [threading.Thread(target=ask, args=(f"host{n}:1:1",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 60, "everybody was answered"
    assert sorted((block, found) for block, found in got if found) == [(n, (2 * n, 2 * n + 1)) for n in range(10)]
    assert len(store.trials(study)) == 20


def test_a_block_is_claimed_whole(store: Store, study: int) -> None:
    """All its contestants at once or none of them; and its number, or an earlier one, is never given again."""
    assert store.claim(study, Confirm(1, (DEFAULT, SORTED, PACKED)), ONE) == (0, 1, 2)
    for block in (0, 1):
        assert store.claim(study, Confirm(block, (DEFAULT, PACKED)), OTHER) is None
    assert store.claim(study, Confirm(2, (DEFAULT, PACKED)), OTHER) == (3, 4)
    assert [(t.phase, t.block) for t in store.trials(study)] == [("confirm", 1)] * 3 + [("confirm", 2)] * 2


def test_the_same_claim_asked_twice_is_one(store: Store, study: int) -> None:
    """Where the first answer was lost, the second gives the same numbers, of a block too, whatever came between."""
    for second, step in enumerate((Search(DEFAULT), Confirm(1, (DEFAULT, SORTED)))):
        seen, moment = len(store.trials(study)), datetime(2026, 1, 1, second=second, tzinfo=UTC)
        first = store.claim(study, step, ONE, seen=seen, began_at=moment)
        store.claim(study, Search(PACKED.replaced(precision=f"p{seen}")), OTHER)
        assert store.claim(study, step, ONE, seen=seen, began_at=moment) == first
    assert len(store.trials(study)) == 5


def test_steps_that_run_nothing_are_everybodys(store: Store, study: int) -> None:
    """They have no trials, and nobody loses them."""
    for step in (Probe(), EndSearch(Stop.BUDGET), Compare(()), Wait((0,)), Done()):
        assert store.claim(study, step, ONE, seen=7) == store.claim(study, step, OTHER, seen=7) == ()
    assert store.trials(study) == []


def test_nothing_is_claimed_of_a_study_that_is_none(store: Store) -> None:
    """It is an error in words."""
    with pytest.raises(StoreError, match="no study 99"):
        store.claim(99, Search(DEFAULT), ONE)


# ----------------------------------------------------------------------------------------------------------- finishing


def test_a_stranger_finishes_nothing(store: Store, study: int) -> None:
    """Neither a trial that runs nor one that is over, and it is told so."""
    store.claim(study, Search(DEFAULT), ONE)
    assert not store.finish_trial(study, measured(0, speed=1.0), OTHER)
    assert store.trials(study)[0].outcome is Outcome.RUNNING
    assert store.finish_trial(study, measured(0), ONE)
    before = store.trials(study, full=True)
    assert not store.finish_trial(study, measured(0, speed=1.0), OTHER)
    assert store.trials(study, full=True) == before


def test_finishing_twice_changes_nothing(store: Store, study: int, database_url: str) -> None:
    """The owner who says it again, for the first answer was lost, is told that it is done; the rows are the first ones."""
    store.claim(study, Search(DEFAULT), ONE)
    assert store.finish_trial(study, measured(0), ONE)
    before = store.trials(study, full=True)
    assert store.finish_trial(study, replace(measured(0, speed=1.0), outcome=Outcome.CUT), ONE)
    assert store.trials(study, full=True) == before
    engine = create_engine(with_driver(database_url))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM measurements")).scalar() == 1
    engine.dispose()


def test_who_was_not_heard_of_has_lost_its_trial(store: Store, study: int) -> None:
    """A tune that was asleep past its lease finishes nothing where another has taken over; else it still may."""
    for step in (Search(DEFAULT), Search(SORTED)):
        store.claim(study, step, ONE, lease_s=-1.0)
    assert store.claim(study, Search(DEFAULT, 0), OTHER) == (0,)
    assert not store.finish_trial(study, measured(0), ONE)
    assert store.finish_trial(study, measured(0, speed=7.0), OTHER)
    assert store.finish_trial(study, measured(1, SORTED), ONE)
    assert [trial.tokens_per_s for trial in store.trials(study)] == [7.0, 100.0]


def test_the_end_that_knew_of_more_trials_stays(store: Store, study: int) -> None:
    """Of tunes that share a study the last to close may have stopped before the others: its end says less."""

    def ended(stop: Stop, tried: int) -> SearchEnd:
        return SearchEnd(stop, 4, 0.5, (), tried)

    store.close_study(study, "done", end=ended(Stop.EVERYTHING, 9), budget=Budget(seconds=60.0))
    store.close_study(study, "done", end=ended(Stop.BUDGET, 5), budget=Budget(seconds=10.0))
    record = store.study(study)
    assert (record.end, record.budget.seconds) == (ended(Stop.EVERYTHING, 9), 60.0)
    store.close_study(study, "done", end=ended(Stop.BUDGET, 9), budget=Budget(seconds=10.0))
    record = store.study(study)
    assert (record.end, record.budget.seconds) == (ended(Stop.BUDGET, 9), 10.0)


# ---------------------------------------------------------------------------------------------------- who is there, and not


def test_what_is_left_behind_is_taken_over_once(store: Store, study: int, database_url: str) -> None:
    """Of two who see it one gets it, with one more attempt; again for the same one it is the same."""
    store.claim(study, Search(DEFAULT), ONE, lease_s=-1.0)
    with Store.open(database_url, write=True) as second:
        got = [each.claim(study, Search(DEFAULT, 0), name) for each, name in ((store, "a:1:1"), (second, "b:1:1"))]
    assert got == [(0,), None]
    assert store.claim(study, Search(DEFAULT, 0), "a:1:1") == (0,)
    assert store.finish_trial(study, measured(0), "a:1:1")
    assert store.claim(study, Discard(0, DEFAULT), "b:1:1") is None, "it is over"
    assert store.trials(study)[0].attempts == 2


def test_who_is_there_keeps_its_trials(store: Store, study: int) -> None:
    """Nobody takes over what somebody runs who has been heard of lately; a process of this host that is gone has lost its own."""
    gone = owner().rsplit(":", 1)[0] + ":1.0"
    store.claim(study, Search(DEFAULT), ONE)
    store.claim(study, Search(SORTED), gone)
    now = store.standing(study)
    assert now.taken(OTHER) == {0}
    assert now.taken(ONE) == frozenset()
    assert store.still_taken(study, (0, 1)) == {0}
    assert store.claim(study, Search(DEFAULT, 0), OTHER) is None
    assert store.claim(study, Search(SORTED, 1), OTHER) == (1,)


def test_a_damaged_lease_is_named(sqlite_url: str) -> None:
    """A lease that is no moment is damage of a row, said in a line: nobody guesses whether somebody is there."""
    with Store.open(sqlite_url, write=True) as store:
        study = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
        store.claim(study, Search(DEFAULT), ONE)
        engine = create_engine(sqlite_url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE trials SET lease = 'soon'"))
        engine.dispose()
        for ask in (lambda: store.standing(study), lambda: store.claim(study, Search(DEFAULT, 0), OTHER)):
            with pytest.raises(DamagedRow, match="row 1 of trials is damaged"):
                ask()


def test_a_lease_is_put_off(store: Store, study: int) -> None:
    """Who says that it is there keeps all that it holds for as long again, and nothing that is another's by now."""
    for step in (Search(DEFAULT), Search(SORTED)):
        store.claim(study, step, ONE, lease_s=-1.0)
    store.claim(study, Search(SORTED, 1), OTHER, lease_s=-1.0)
    store.keep(study, ONE)
    assert store.standing(study).taken("me:1:1") == {0}


def test_a_heartbeat_keeps_a_tune_there(store: Store, study: int) -> None:
    """Beside whatever else the process does, its lease is put off; and not any more when it is over."""
    store.claim(study, Search(DEFAULT), ONE, lease_s=-1.0)
    with heartbeat(store, study, ONE, every_s=0.02):
        for _ in range(500):
            if store.standing(study).taken(OTHER):
                break
            threading.Event().wait(0.02)
        assert store.standing(study).taken(OTHER) == {0}
    assert [thread.name for thread in threading.enumerate() if thread.name == "advisor-heartbeat"] == []


def test_a_dead_host_is_noticed_within_a_minute(store: Store, study: int) -> None:
    """What a claim is good for, without being put off, is a minute: not as long as a trial may last."""
    store.claim(study, Search(DEFAULT), ONE)
    (holder,) = store.standing(study).holders.values()
    assert isinstance(holder, Holder)
    assert LEASE_S <= 60.0
    assert (holder.lease - store.study(study).started_at).total_seconds() <= 2 * LEASE_S


def test_the_end_of_a_tune_lets_go_of_what_it_holds(store: Store, study: int) -> None:
    """What it still runs is left behind at once; the study runs on while another is at work, and is over with the last."""
    store.claim(study, Search(DEFAULT), ONE)
    store.claim(study, Search(SORTED), OTHER)
    store.close_study(study, "interrupted", owner=ONE)
    assert store.study(study).state == "running"
    assert store.standing(study).taken("me:1:1") == {1}
    assert store.claim(study, Search(DEFAULT, 0), OTHER) == (0,)
    for number, requested in enumerate((DEFAULT, SORTED)):
        assert store.finish_trial(study, measured(number, requested), OTHER)
    store.close_study(study, "done", owner=OTHER)
    assert store.study(study).state == "done"


def test_who_joins_begins_with_those_who_are_there(store: Store, study: int) -> None:
    """What failed while they were at work is not tried again; what failed before, and after they are gone, is."""
    for number, name in enumerate(("before:1:1", ONE, ONE)):
        store.claim(study, Search(DEFAULT), name)
        store.finish_trial(study, Trial(number, DEFAULT, None, Outcome.LOAD_FAILED), name)
        if not number:
            store.close_study(study, "done", owner=name)
    assert store.standing(study).began(OTHER) == 1
    assert store.standing(study).began(ONE) == 3
    store.close_study(study, "done", owner=ONE)
    assert store.standing(study).began(OTHER) == 3


def test_tunes_of_one_process_are_told_apart() -> None:
    """Each has a name of its own, and is alive while the process is."""
    one, other = own_name(), own_name()
    assert one != other
    assert owner_is_alive(one)
    assert not owner_is_alive(one.replace(one.rsplit(":", 1)[1], "1.0"))
    assert owner_is_alive("no name of ours")
