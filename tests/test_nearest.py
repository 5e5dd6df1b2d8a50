"""What was measured nearest to a question that nothing answers: what reading all would find, also of a store that stays open."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from made_databases import laid
from sqlalchemy import create_engine, text
from test_suggest import ANY, DEFAULT, H200, SOURCE, T4, attempt, studied

from advisor.advice.suggest import suggest
from advisor.errors import DamagedRow, NotMeasured
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.storage import nearest
from advisor.storage.nearest import nearest_studies
from advisor.storage.place import with_driver
from advisor.storage.store import Store
from advisor.workloads import Workload
from advisor.workloads.forward import OUTPUTS, Forward

OTHER = replace(SOURCE, name="org/other", config={"model_type": "llama", "hidden_size": 8})


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(database_url), write=True) as opened:
        yield opened


def drawn(rng: random.Random) -> Workload:
    """Return some work."""
    lengths = tuple(rng.choice((8, 16, 100, 512)) for _ in range(rng.randint(1, 12)))
    return Forward(lengths, rng.choice((None, 1, 2, 4)), rng.choice(OUTPUTS))


def by_reading_all(store: Store, workload: Workload) -> list[int]:
    """Return the newest study in each environment of those least far from a workload, newest first."""
    found = store.studies(SOURCE.architecture_key)
    least = min(study.workload.distance(workload) for study in found)
    newest: dict[str, int] = {}
    for study in found:
        if study.workload.distance(workload) == least:
            newest.setdefault(study.environment_key, study.id)
    return list(newest.values())


def test_it_is_what_reading_all_finds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many workloads, some studied twice, and another architecture's among them; whether or not they are remembered."""
    rng = random.Random(0)
    assert nearest_studies(store, SOURCE.architecture_key, drawn(rng)) == []
    for number in range(40):
        source, environment = OTHER if number % 5 == 0 else SOURCE, T4 if number % 3 else H200
        for place in (environment, H200)[: 1 + number % 2]:
            store.open_study(source, drawn(rng), place, ANY, Budget(), 0)
    asked = [drawn(rng) for _ in range(30)]
    monkeypatch.setattr(nearest, "_KNOWN", {})
    monkeypatch.setattr(nearest, "_AT_ONCE", 7)
    for most in (0, 5, 200_000):
        monkeypatch.setattr(nearest, "KNOWN_MOST", most)
        for workload in asked:
            found = nearest_studies(store, SOURCE.architecture_key, workload)
            assert [study.id for study in found] == by_reading_all(store, workload)
    assert len(nearest._KNOWN) > 5


def test_what_is_stored_since_is_found(store: Store) -> None:
    """Nothing of an answer is remembered: what was measured after one question is told to the next."""
    studied(store, [attempt(DEFAULT, 1000)], workload=Forward((512,), 1))
    for length in (256, 96, 70):
        with pytest.raises(NotMeasured, match="Nearest measured: "):
            suggest(store, SOURCE, Forward((64,), 1), ANY, H200)
        newest = studied(store, [attempt(DEFAULT, 1000)], workload=Forward((length,), 1))
        (found,) = nearest_studies(store, SOURCE.architecture_key, Forward((64,), 1))
        assert found.id == newest


def test_as_far_is_as_far_to_the_last_digit(store: Store) -> None:
    """Of two that are as far, the newest is told, whatever the sum of their logarithms is rounded to."""
    asked = Forward((435,) * 77, 77)
    made = [Forward((length,) * 30, 30) for length in (494, 505, 506, 499)]
    for workload in made:
        newest = studied(store, [attempt(DEFAULT, 1000)], workload=workload)
        assert nearest_studies(store, SOURCE.architecture_key, asked)[0].id == newest
    assert {each.distance(asked) for each in made} == {asked.distance(each) for each in made}
    assert len({each.distance(asked) for each in made}) == 1


def test_a_damaged_row_is_another_questions(store: Store, database_url: str) -> None:
    """Where the store stays open: the question about it is told of it every time, and no other one ever is."""
    near, far, asked = Forward((64,), 1), Forward((512,), 1), Forward((60,), 1)
    broken = studied(store, [attempt(DEFAULT, 1000)], workload=near)
    studied(store, [attempt(DEFAULT, 1000)], workload=far)
    engine = create_engine(with_driver(database_url))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE studies SET state = 'dreamt' WHERE id = {broken}"))
    engine.dispose()

    for _ in range(2):
        with pytest.raises(DamagedRow, match=f"row {broken} of studies is damaged"):
            suggest(store, SOURCE, near, ANY, H200)
        with pytest.raises(NotMeasured, match="Nearest measured: forward, 1 × 512 tokens"):
            suggest(store, SOURCE, asked, ANY, H200)
    assert len(store.damaged) == 1


def test_an_older_study_stands_in_for_one_that_cant_be_read(store: Store, database_url: str) -> None:
    """Of the same workload in the same environment."""
    older = studied(store, [attempt(DEFAULT, 1000)], workload=Forward((64,), 1))
    broken = studied(store, [attempt(DEFAULT, 1000)], workload=Forward((64,), 1), objective=Objective(Tier.EXACT))
    studied(store, [attempt(DEFAULT, 1000)], workload=Forward((512,), 1))
    engine = create_engine(with_driver(database_url))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE studies SET state = 'dreamt' WHERE id = {broken}"))
    engine.dispose()

    assert [each.id for each in nearest_studies(store, SOURCE.architecture_key, Forward((60,), 1))] == [older]
    assert len(store.damaged) == 1


def test_a_workload_that_cant_be_read_is_passed_over(store: Store, database_url: str) -> None:
    """The next nearest is told, and what is damaged is noted."""
    studied(store, [attempt(DEFAULT, 1000)], workload=Forward((61,), 1))
    studied(store, [attempt(DEFAULT, 1000)], workload=Forward((300,), 1))
    engine = create_engine(with_driver(database_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE workloads SET payload = '{}', key = 'broken' WHERE id = 1"))
    engine.dispose()

    with pytest.raises(NotMeasured, match="Nearest measured: forward, 1 × 300 tokens"):
        suggest(store, SOURCE, Forward((60,), 1), ANY, H200)
    assert [line.partition(":")[0] for line in store.damaged] == ["row 1 of workloads is damaged"]
