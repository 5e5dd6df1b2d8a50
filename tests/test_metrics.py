"""What Prometheus is told: every figure is what the database has, on both databases, however often it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from made_databases import laid
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from advisor.asking.submission import Submission
from advisor.daemon import engine
from advisor.machine.leftovers import owner
from advisor.nouns.answer import Answer
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Trial
from advisor.storage import counts as counts_module
from advisor.storage.counts import Counts
from advisor.storage.roster import Roster
from advisor.storage.store import Store
from advisor.version import __version__
from advisor.web.metrics import Metrics
from advisor.web.served import Limits, Served
from advisor.workloads.forward import Forward

CPU = Environment("cpu", "a processor", None, 2**30, threads=1)
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32"})


@pytest.fixture
def served(database_url: str) -> Iterator[Served]:
    """Give a database that a daemon has run on, with a slot at work."""
    Store.open(laid(database_url), write=True).close()
    engine.prepare(database_url)
    made = Served.open(database_url, Limits())
    Roster(made.store).enter("cpu-here", "here", CPU, owner())
    yield made
    made.close()


def ran(store: Store, study: int, count: int, outcome: Outcome | None = Outcome.RUNTIME_ERROR) -> None:
    """Begin some trials of other configurations each, and end them; None: leave them running."""
    for _ in range(count):
        place = Counts(store).of_study(study)
        configuration = Configuration.of({"attention": "sdpa", "precision": f"fp{place + 1}"})
        assert store.claim(study, Search(configuration), f"host:1:{place}") == (place,)
        if outcome is not None:
            assert store.finish_trial(study, Trial(place, configuration, None, outcome, "it broke"), f"host:1:{place}")


def figures(served: Served, metrics: Metrics | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the figures of an answer by name and labels."""
    told = (metrics or Metrics(served)).text().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def test_every_figure_is_what_the_database_has(served: Served) -> None:
    """Trials by outcome, jobs by state, the queue, slots and what they spent, the newest answer's age, the version."""
    study = served.store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
    ran(served.store, study, 3)
    ran(served.store, study, 2, Outcome.TIMEOUT)
    ran(served.store, study, 1, None)
    jobs = [served.submit(Submission("org/model", {"lengths": "8"})) for _ in range(4)]
    served.jobs.cancel(jobs[0].id)
    served.roster.beat("cpu-here", owner(), "busy", busy_s=2.5)
    served.roster.know("GPU-2", "there", CPU)

    found = figures(served)

    assert found["advisor_trials_total", ("runtime_error",)] == 3
    assert found["advisor_trials_total", ("timeout",)] == 2
    assert found["advisor_trials_total", ("running",)] == 1
    assert found["advisor_jobs", ("queued",)] == found["advisor_queue_depth", (CPU.device_class,)] == 3
    assert found["advisor_jobs", ("cancelled",)] == 1
    assert found["advisor_jobs", ("done",)] == 0
    assert found["advisor_gpu_seconds_total", ("here", "cpu-here")] == 2.5
    assert (found["advisor_slots", ("busy",)], found["advisor_slots", ("gone",)]) == (1, 1)
    assert found["advisor_build_info", (__version__,)] == 1
    assert ("advisor_newest_recommendation_age_seconds", ()) not in found
    keys = served.store.trials(study)[0].requested
    served.store.save_answer(study, Answer(keys, "default", None, None, None, 0, 1, 1, (), "m"))
    assert 0 <= figures(served)["advisor_newest_recommendation_age_seconds", ()] < 60


def all_rows(store: Store) -> dict[str, int]:
    """Count every row, which is what the counts must come to."""
    with store._database.reading() as connection:
        return dict(connection.execute(text("SELECT outcome, COUNT(*) FROM trials GROUP BY outcome")).all())


@pytest.mark.parametrize("settled_s", [0.0, 60.0])
def test_trials_are_counted_on_from_where_they_were(
    served: Served, settled_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends, begins or is written by another process between two looks is counted once, as a count of all rows says."""
    monkeypatch.setattr(counts_module, "SETTLED_S", settled_s)
    counts, store = Counts(served.store), served.store
    one = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
    two = store.open_study(SOURCE, Forward((16,), 1), CPU, Objective(), Budget(), 0)

    assert counts.trials() == all_rows(store) == {}
    ran(store, one, 2)
    ran(store, two, 1, None)
    ran(store, one, 2, Outcome.TIMEOUT)
    for _ in range(3):  # counted as the newest, then once and for all, then from what was kept
        assert counts.trials() == all_rows(store) == {"runtime_error": 2, "running": 1, "timeout": 2}
    first = store.trials(two)[0]
    store.finish_trial(two, Trial(0, first.requested, None, Outcome.RUNTIME_ERROR, "it broke"), "host:1:0")
    ran(store, two, 1, None)
    for _ in range(3):
        assert counts.trials() == all_rows(store) == {"runtime_error": 3, "running": 1, "timeout": 2}
    ran(store, one, 1)
    assert counts.trials() == counts.trials() == all_rows(store)


def test_a_trial_that_is_left_behind_has_no_other_row_read_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that runs for good, before many that ended: only what came since is counted, and it is still told as running."""
    monkeypatch.setattr(counts_module, "SETTLED_S", 0.0)
    counts, store = Counts(served.store), served.store
    study = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
    ran(store, study, 1, None)
    ran(store, study, 5)
    assert counts.trials() == counts.trials() == all_rows(store)
    with store._database.writing() as connection:  # a row that is read again would be told as what it is now
        connection.execute(text("UPDATE trials SET outcome = 'timeout' WHERE number = 3"))
    ran(store, study, 2)
    assert counts.trials() == {"running": 1, "runtime_error": 7}
    left = store.trials(study)[0]
    store.finish_trial(study, Trial(0, left.requested, None, Outcome.TIMEOUT, "it hung"), "host:1:0")
    assert counts.trials() == {"timeout": 1, "runtime_error": 7}


def test_trials_that_come_behind_later_ones_are_counted(postgres_url: str) -> None:
    """PostgreSQL gives ids before a transaction ends: an import that takes its time comes behind 1,500 trials of another one."""
    with Store.open(laid(postgres_url), write=True) as store:
        counts = Counts(store)
        study = store.open_study(SOURCE, Forward((8,), 1), CPU, Objective(), Budget(), 0)
        ran(store, study, 1)
        with store._database.reading() as connection:
            row = connection.execute(text("SELECT * FROM trials")).mappings().one()
        kept = [name for name in row if name not in {"id", "number"}]
        copied = (
            f"INSERT INTO trials (number, {', '.join(kept)}) SELECT g, {', '.join(kept)} FROM trials "
            "CROSS JOIN generate_series(CAST(:first AS int), CAST(:last AS int)) g WHERE number = 0"
        )
        with store._database.writing() as slow:
            slow.execute(text(copied), {"first": 1, "last": 5})
            with store._database.writing() as quick:
                quick.execute(text(copied), {"first": 6, "last": 1505})
            assert counts.trials() == counts.trials() == all_rows(store) == {"runtime_error": 1501}
        assert counts.trials() == counts.trials() == all_rows(store) == {"runtime_error": 1506}


def test_requests_are_counted_by_their_route(served: Served) -> None:
    """A request falls under every bound that it was not longer than."""
    metrics = Metrics(served)
    for took_s in (0.004, 0.02):
        metrics.count("/api/v1/suggest", took_s)
    found = figures(served, metrics)

    under = {
        le: found["advisor_request_seconds_bucket", (le, "/api/v1/suggest")] for le in ("0.0025", "0.005", "0.025")
    }
    assert under == {"0.0025": 0, "0.005": 1, "0.025": 2}
    assert found["advisor_request_seconds_sum", ("/api/v1/suggest",)] == pytest.approx(0.024)
