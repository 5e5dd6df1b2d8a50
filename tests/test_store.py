"""The store's promises, on SQLite and on PostgreSQL.

Run as a script, this file is the second process of some tests: `python test_store.py VERB URL …`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, insert, inspect, text

from advisor import store as store_module
from advisor import tables
from advisor.configuration import Configuration, canonical_json
from advisor.environment import Environment
from advisor.errors import AdvisorError, BadInput, NotMeasured, StoreError
from advisor.knobs.choice import Reason, Verdict
from advisor.measurement import Comparison, Measurement
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective, Tier
from advisor.store import Store, default_url, shown_url, upgrade
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import Workload

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Environment("cuda", "NVIDIA H200", (9, 0), 150 * 10**9, packages={"torch": "2.9.0"}, power_limit_w=700)
WORKLOAD = Workload((128, 64, 96, 32), 2)
OBJECTIVE = Objective(quality=Tier.EIGHT_BIT, max_memory_bytes=10**11, ignored_rules=("A4", "P1"))
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama", "hidden_size": 64}, "trained", "d1", True)
FACTS = ModelFacts(
    "LlamaForCausalLM", "llama", "bfloat16", 1000, 2000, 900, 2, 64, 4, 2, 16, 512, 2048, True, True, True, "sdpa",
    layer_types=("full", "sliding"), sliding_window=128,
)  # fmt: skip
BASELINE = Configuration.of({"attention": "sdpa", "precision": "float32", "quantization": "none", "packing": "padded"})
FASTER = BASELINE.replaced(precision="bfloat16")
FASTEST = BASELINE.replaced(precision="bfloat16", attention="flash_attention_2")


def opened(store: Store, **other: Any) -> int:
    """Open the study of the nouns above, or of others."""
    nouns = {"source": SOURCE, "workload": WORKLOAD, "environment": ENVIRONMENT, "objective": OBJECTIVE, **other}
    return store.open_study(**nouns, budget=Budget(60.0, 40), seed=7)


def started(store: Store, study: int, requested: Configuration = BASELINE, **other: Any) -> int:
    """Start a search trial."""
    known = {"phase": "search", "block": None, "owner": "host:1", "lease_s": 60.0}
    return store.start_trial(study, requested, **{**known, **other})


def measured(number: int, requested: Configuration = BASELINE, **other: Any) -> Trial:
    """Return a finished trial with every field filled."""
    samples = (1000.0 + number, 1010.5, 990.25)
    speed = Measurement("tokens_per_s", "tokens/s", samples, "search", {"clock": "not observable"})
    memory = Measurement("peak_bytes", "bytes", (2.0**33,))
    known: dict[str, Any] = {
        "outcome": Outcome.OK, "reason": "ran as asked",
        "load_s": 1.5, "first_call_s": 0.25, "measure_s": 3.0, "wall_s": 5.125,
        "peak_bytes": 2**40, "weight_bytes": 2**33, "reading": {"operators": ["aten::mm"], "attention": {"": "sdpa"}},
        "quality": Quality(0.01, 0.5, 0.002, 0.99, 380, 1.01, reference="float32", failures=("kl",)),
        "measurements": (speed, memory),
    }  # fmt: skip
    return Trial(number, requested, requested, **{**known, **other})


def ran(store: Store, study: int, requested: Configuration = BASELINE, **other: Any) -> Trial:
    """Start and finish one trial."""
    trial = measured(started(store, study, requested), requested, **other)
    store.finish_trial(study, trial)
    return trial


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Open an empty store for writing."""
    with Store.open(database_url, write=True) as opened_store:
        yield opened_store


def rows(url: str, statement: str) -> list[dict[str, Any]]:
    """Read with plain SQL, as people do."""
    engine = create_engine(store_module._with_driver(url))
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(text(statement)).mappings()]
    engine.dispose()
    return found


def execute(url: str, statement: str) -> None:
    """Change something behind the store's back."""
    engine = create_engine(store_module._with_driver(url))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def process(verb: str, *arguments: str) -> subprocess.Popen[str]:
    """Start this file as a second process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, __file__, verb, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


# -------------------------------------------------------------------------------------------------------- round trips


def test_a_study_comes_back_as_it_was_opened(store: Store) -> None:
    """Environment, objective, workload and model of a study come back as the values that went in."""
    study = opened(store)
    (record,) = store.studies_for(SOURCE.architecture_key, WORKLOAD.key_for(SOURCE.architecture_key))
    assert (record.id, record.environment, record.environment_key) == (study, ENVIRONMENT, ENVIRONMENT.key)
    assert (record.objective, record.workload, record.model_name) == (OBJECTIVE, WORKLOAD, "org/model")
    assert (record.weights_digest, record.state, record.finished_at, record.facts) == ("d1", "running", None, None)
    store.close_study(study, "done")
    assert store.neighbours(SOURCE.architecture_key)[0].state == "done"
    assert opened(store) == study
    assert store.neighbours(SOURCE.architecture_key)[0].state == "running"


def test_facts_are_shared_by_fine_tunes(store: Store) -> None:
    """Facts that were read of one model answer for another of its architecture, and for nothing else."""
    tuned = replace(SOURCE, name="org/tuned", weights_digest="d2")
    assert store.facts(SOURCE) is None
    store.save_facts(SOURCE, FACTS)
    opened(store, source=tuned)
    assert store.facts(SOURCE) == store.facts(tuned) == FACTS
    assert store.neighbours(tuned.architecture_key)[0].facts == FACTS
    assert store.facts(replace(SOURCE, config={"model_type": "gpt2"})) is None


def test_a_trial_comes_back_as_it_was(store: Store) -> None:
    """Every field of a trial, its measurements and its raw reading come back unchanged."""
    study = opened(store)
    failed = Trial(1, FASTER, None, Outcome.OUT_OF_MEMORY, "CUDA out of memory", phase="confirm", block=3, attempts=2)
    trial = ran(store, study)
    started(store, study, FASTER, phase="confirm", block=3)
    store.finish_trial(study, failed)
    assert store.trials(study, full=True) == [trial, failed]
    (short, _) = store.trials(study)
    assert (short.reading, short.measurements[0].device_state) == ({}, {})
    assert short.measurements[0].samples == trial.measurements[0].samples


def test_running_trials_are_listed(store: Store) -> None:
    """A trial that runs is seen by others, with what it asked for."""
    study = opened(store)
    number = started(store, study, FASTER)
    (trial,) = store.trials(study)
    assert (trial.number, trial.requested, trial.outcome) == (number, FASTER, Outcome.RUNNING)
    assert trial.effective is None


def test_refusals_and_comparisons_come_back(store: Store) -> None:
    """Saving refusals and comparisons replaces the study's earlier ones, and they come back in order."""
    study = opened(store)
    for configuration in (BASELINE, FASTER, FASTEST):
        ran(store, study, configuration)
    reasons = [
        Reason("A4", Verdict.WRONG, "masks are ignored", "use sdpa", "packing=padded", "attention=flash_attention_2"),
        Reason("P1", Verdict.INVALID, "no bfloat16 here", "", "", "precision=bfloat16"),
    ]
    comparisons = [
        Comparison(FASTER.key, BASELINE.key, (1.5, 1.52, 1.49)), Comparison(FASTEST.key, BASELINE.key, (0.5,)),
    ]  # fmt: skip
    for _ in range(2):
        store.save_refusals(study, [*reasons, reasons[0]])
        store.save_comparisons(study, comparisons)
    assert store.refusals(study) == reasons
    assert store.comparisons(study) == comparisons
    store.save_refusals(study, [])
    assert store.refusals(study) == []
    with pytest.raises(StoreError, match="not stored: configuration nothing"):
        store.save_comparisons(study, [Comparison("nothing", BASELINE.key, (1.0,))])
    assert store.comparisons(study) == comparisons


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.dictionaries(NAMES, NAMES, max_size=5), words=st.text(max_size=20))
def test_any_configuration_comes_back(store: Store, choices: dict[str, str], words: str) -> None:
    """Any names of knobs and choices, and any words in a reason, can be stored on both databases."""
    study = opened(store)
    trial = ran(store, study, Configuration.of(choices), reason=words)
    stored = store.trials(study)[-1]
    assert (stored.requested, stored.effective) == (trial.requested, trial.effective)
    assert stored.reason == words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def test_environments_are_those_that_were_measured(store: Store) -> None:
    """Only an environment with an ok trial is offered as measured."""
    other = replace(ENVIRONMENT, device_name="NVIDIA A100")
    study = opened(store)
    opened(store, environment=other)
    assert store.environments() == []
    ran(store, study)
    assert store.environments() == [(ENVIRONMENT.key, ENVIRONMENT)]


def test_studies_come_newest_first(store: Store) -> None:
    """Neighbours are all studies of an architecture, and the newest study is the first."""
    first = opened(store)
    second = opened(store, workload=Workload((16,), 1))
    third = opened(store, environment=replace(ENVIRONMENT, driver="1"))
    opened(store, source=replace(SOURCE, config={"model_type": "gpt2"}))
    key = SOURCE.architecture_key
    assert [record.id for record in store.neighbours(key)] == [third, second, first]
    assert [record.id for record in store.studies_for(key, WORKLOAD.key_for(key))] == [third, first]


def test_figures_that_are_not_finite_are_refused(store: Store) -> None:
    """NaN and infinities never reach the database, and nothing of such a trial does."""
    study = opened(store)
    number = started(store, study)
    for wrong in ({"load_s": float("nan")}, {"quality": Quality(float("inf"), 1.0, None, None, 1)}):
        with pytest.raises(ValueError, match=r"not finite|not JSON compliant"):
            store.finish_trial(study, measured(number, **wrong))
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.finish_trial(study, measured(number, reading={"x": float("nan")}))
    assert store.trials(study)[0].outcome is Outcome.RUNNING
    assert store.counts()["measurements"] == 0


def test_moments_are_aware_and_in_utc(store: Store, database_url: str) -> None:
    """Moments come back as aware UTC on both databases; a naive one is refused."""
    before = datetime.now(UTC)
    study = opened(store)
    store.close_study(study, "failed")
    (record,) = store.neighbours(SOURCE.architecture_key)
    assert record.finished_at is not None
    assert before - timedelta(seconds=1) <= record.started_at <= record.finished_at <= datetime.now(UTC)
    assert record.started_at.tzinfo is UTC
    assert record.finished_at.tzinfo is UTC
    with pytest.raises(ValueError, match="without a time zone"):
        tables.UtcDateTime().process_bind_param(datetime(2026, 1, 1), None)  # noqa: DTZ001


# ------------------------------------------------------------------------------------------- trials and several writers


def test_finishing_twice_leaves_one_trial(store: Store) -> None:
    """A trial that is finished again has one row and one set of measurements: the last ones."""
    study = opened(store)
    trial = ran(store, study)
    store.finish_trial(study, trial)
    again = replace(trial, measurements=trial.measurements[:1], effective=FASTER)
    store.finish_trial(study, again)
    assert store.trials(study, full=True) == [again]
    assert (store.counts()["trials"], store.counts()["measurements"]) == (1, 1)


def test_a_trial_that_was_not_started_cannot_be_finished(store: Store) -> None:
    """Finishing an unknown trial, or starting one in an unknown study, is an error in words."""
    study = opened(store)
    with pytest.raises(StoreError, match="has no trial 5"):
        store.finish_trial(study, measured(5))
    with pytest.raises(StoreError, match="no study 99"):
        started(store, 99)
    with pytest.raises(ValueError, match="still running"):
        store.finish_trial(study, Trial(0, BASELINE, None, Outcome.RUNNING))
    assert store.counts()["configurations"] == 0


def test_processes_share_a_study_without_loss(database_url: str) -> None:
    """Processes that create the database, open one study and start trials at once lose no trial and no number."""
    together = [process("share", database_url, str(index)) for index in range(3)]
    for each in together:
        assert each.communicate(timeout=50)[0].strip() == "done"
    with Store.open(database_url, write=False) as reader:
        (record,) = reader.neighbours(SOURCE.architecture_key)
        trials = reader.trials(record.id)
        assert [trial.number for trial in trials] == list(range(45))
        assert all(trial.outcome is Outcome.OK for trial in trials)
        assert reader.counts()["measurements"] == 90
        assert (reader.counts()["configurations"], reader.counts()["environments"]) == (17, 1)


def test_a_killed_writer_leaves_whole_trials(database_url: str) -> None:
    """After kill -9 amid writing, every trial that was reported as finished is there, and none is half written."""
    writer = process("write", database_url)
    assert writer.stdout is not None
    reported = [int(writer.stdout.readline()) for _ in range(12)]
    writer.send_signal(signal.SIGKILL)
    reported += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.wait(10)
    writer.stdout.close()
    with Store.open(database_url, write=True) as survivor:
        study = opened(survivor)
        trials = survivor.trials(study)
        finished = [trial for trial in trials if trial.outcome is Outcome.OK]
        assert {trial.number for trial in finished} >= set(reported)
        assert all(len(trial.measurements) == 2 for trial in finished)
        running = [trial for trial in trials if trial.outcome is Outcome.RUNNING]
        assert len(running) <= 1
        assert not any(trial.measurements for trial in running)
        assert started(survivor, study) == len(trials)


def test_abandoned_trials_are_those_nobody_runs(store: Store) -> None:
    """A trial is abandoned when it was released, its lease has passed or its owner is gone, and not before."""
    study = opened(store)
    alive, gone, late, given_up = (started(store, study, owner=owner) for owner in ("alive", "gone", "alive", "alive"))
    assert [found[0] for found in store.abandoned(study, lambda _: True)] == []
    store.renew(study, late, -1.0)
    store.release(study, given_up)
    store.renew(study, given_up, 60.0)
    expected = [(number, BASELINE, "search", None) for number in (gone, late, given_up)]
    assert store.abandoned(study, lambda owner: owner != "gone") == expected
    assert store.abandoned(study, lambda _: True) == expected
    store.finish_trial(study, measured(gone))
    assert store.trials(study)[alive].outcome is Outcome.RUNNING
    assert [found[0] for found in store.abandoned(study, lambda _: True)] == [late, given_up]


def test_an_abandoned_trial_is_claimed_once(store: Store, database_url: str) -> None:
    """Of two who see an abandoned trial one gets it, and one that is being run can't be claimed."""
    study = opened(store)
    number = started(store, study, owner="gone")
    assert not store.claim(study, number, "me", 60.0)
    with Store.open(database_url, write=True) as other:
        for each in (store, other):
            each.abandoned(study, lambda _: False)
        assert [each.claim(study, number, owner, 60.0) for each, owner in ((store, "a"), (other, "b"))] == [True, False]
        assert other.abandoned(study, lambda owner: owner == "a") == []
    store.finish_trial(study, measured(number))
    assert not store.claim(study, number, "b", 60.0)
    assert store.trials(study)[0].attempts == 2


def test_a_trial_is_reused_from_another_study(store: Store) -> None:
    """An ok trial of the same workload, environment and weights is found for another objective, and says so."""
    first = opened(store)
    trial = ran(store, first)
    second = opened(store, objective=Objective())
    found = store.reusable(second, BASELINE)
    assert found is not None
    source, reused = found
    assert reused == trial
    assert store.reusable(first, BASELINE) is None
    assert store.reusable(second, FASTER) is None
    number = started(store, second)
    store.finish_trial(second, replace(reused, number=number), reused_from_id=source)
    (again,) = store.trials(second, full=True)
    assert again == replace(trial, reused_from=None)
    third = opened(store, objective=Objective(quality=Tier.EXACT))
    assert (store.reusable(third, BASELINE) or (0,))[0] == source


def test_what_differs_is_not_reused(store: Store) -> None:
    """Neither other weights, environments and workloads nor failed and confirming trials are reused."""
    first = opened(store)
    ran(store, first, outcome=Outcome.TIMEOUT, measurements=())
    ran(store, first, phase="confirm")
    assert store.reusable(opened(store, objective=Objective()), BASELINE) is None
    ran(store, first)
    for other in (
        {"source": replace(SOURCE, weights_digest="d2")},
        {"environment": replace(ENVIRONMENT, driver="2")},
        {"workload": Workload((8,), 1)},
    ):
        assert store.reusable(opened(store, **other), BASELINE) is None


def test_reuse_within_a_study_is_a_number(store: Store) -> None:
    """A trial that repeats another one of its study names it by its number."""
    study = opened(store)
    trial = ran(store, study)
    number = started(store, study)
    store.finish_trial(study, replace(trial, number=number, reused_from=trial.number))
    assert [each.reused_from for each in store.trials(study)] == [None, trial.number]


# --------------------------------------------------------------------------------------------------- views and schema


def test_v_trials_is_flat(store: Store, database_url: str) -> None:
    """A row a trial, with the knobs of what ran, its speed, its memory and its quality, alike on both databases."""
    study = opened(store)
    ran(store, study)
    store.finish_trial(study, replace(measured(started(store, study, FASTEST), FASTEST), effective=FASTER))
    started(store, study, FASTEST)
    first, second, third = rows(database_url, "SELECT * FROM v_trials ORDER BY number")
    assert first == {
        "study": study, "number": 0, "phase": "search", "block": None, "model": "org/model",
        "workload_key": WORKLOAD.key_for(SOURCE.architecture_key), "kind": "forward", "batch": 2,
        "output": "last-logits", "longest": 128, "device": "NVIDIA H200", "requested": str(BASELINE),
        "effective": str(BASELINE), "attention": "sdpa", "precision": "float32", "quantization": "none",
        "packing": "padded", "outcome": "ok", "reason": "ran as asked", "tokens_per_s": 1000.0,
        "tokens_per_s_low": 990.25, "tokens_per_s_high": 1010.5, "peak_bytes": 2**40, "load_s": 1.5,
        "first_call_s": 0.25, "kl": 0.002, "top1": 0.99, "reused": 0,
    }  # fmt: skip
    assert (second["requested"], second["effective"]) == (str(FASTEST), str(FASTER))
    assert second["attention"] == "sdpa"
    assert (third["attention"], third["effective"], third["tokens_per_s"]) == ("flash_attention_2", None, None)


def test_v_recommendations_names_the_fastest_or_the_baseline(store: Store, database_url: str) -> None:
    """The candidate that is faster by most is recommended; without one, the baseline; without either, nothing."""
    query = "SELECT configuration, configuration_key, ratio, low, high, verdict, blocks, device FROM v_recommendations"
    study = opened(store)
    started(store, study)
    assert rows(database_url, query) == []
    right = Quality(0.01, 0.5, 0.002, 0.99, 380)
    store.finish_trial(study, replace(measured(0), quality=right, peak_bytes=2**30))
    (baseline,) = rows(database_url, query)
    assert (baseline["configuration"], baseline["verdict"], baseline["ratio"]) == (str(BASELINE), "baseline", 1.0)
    ran(store, study, FASTER, quality=right, peak_bytes=2**30)
    ran(store, study, FASTEST, quality=right, peak_bytes=2**30)
    tie = Comparison(FASTER.key, BASELINE.key, (3.0, 0.5))
    store.save_comparisons(study, [tie])
    assert rows(database_url, query) == [baseline]
    less = Comparison(FASTER.key, BASELINE.key, (1.5,) * 3)
    most = Comparison(FASTEST.key, BASELINE.key, (2.0,) * 3)
    unrelated = Comparison(FASTEST.key, FASTER.key, (9.0,) * 3)
    store.save_comparisons(study, [less, most, unrelated])
    (best,) = rows(database_url, query)
    assert best == {
        "configuration": str(FASTEST), "configuration_key": FASTEST.key, "ratio": most.ratio, "low": most.interval[0],
        "high": most.interval[1], "verdict": "faster", "blocks": 3, "device": "NVIDIA H200",
    }  # fmt: skip


def test_v_refusals_says_why_not(store: Store, database_url: str) -> None:
    """Refusals can be read with SQL, with the model and the device they were made for."""
    study = opened(store)
    store.save_refusals(study, [Reason("P1", Verdict.INVALID, "no", "do", "", "precision=bfloat16")])
    assert rows(database_url, "SELECT * FROM v_refusals") == [
        {
            "study": study, "model": "org/model", "device": "NVIDIA H200", "subject": "precision=bfloat16", "about": "",
            "rule": "P1", "verdict": "INVALID", "reason": "no", "remedy": "do",
        }
    ]  # fmt: skip


def test_the_migrations_make_what_tables_says(database_url: str) -> None:
    """A database that the migrations made has the tables, indexes and views of advisor.tables, and its HEAD."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == tables.HEAD == upgrade(database_url) == upgrade(database_url)
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == tables.REVISIONS
    engine = create_engine(store_module._with_driver(database_url))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.METADATA) == []
        expected = tables.views(engine.dialect.name)
        assert set(inspect(connection).get_view_names()) == set(expected)
        for name, body in expected.items():
            connection.execute(text(f"CREATE VIEW again_{name} AS {body}"))
            made, again = (inspect(connection).get_view_definition(each) or "" for each in (name, f"again_{name}"))
            assert made.split("AS", 1)[-1].split() == again.split("AS", 1)[-1].split()
    engine.dispose()


def test_the_first_migration_can_be_undone(database_url: str) -> None:
    """Downgrading to nothing leaves no table and no view behind."""
    upgrade(database_url)
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    engine = create_engine(store_module._with_driver(database_url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    assert inspect(engine).get_view_names() == []
    engine.dispose()


OLD = sorted((Path(__file__).parent / "databases").glob("*.sql"))


@pytest.mark.parametrize("dump", OLD, ids=lambda path: path.stem)
def test_old_databases_can_be_upgraded_and_read(dump: Path, tmp_path: Path) -> None:
    """A database of every schema there ever was, upgraded, still gives its studies, trials and comparisons."""
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.executescript(dump.read_text())
    connection.close()
    url = f"sqlite:///{tmp_path}/old.db"
    upgrade(url)
    with Store.open(url, write=False) as old:
        (record,) = old.neighbours(SOURCE.architecture_key)
        assert [trial.outcome for trial in old.trials(record.id, full=True)] == ["ok", "ok", "running"]
        assert old.comparisons(record.id)[0].verdict == "faster"
        assert old.refusals(record.id)[0].rule == "A4"
        assert (record.facts, record.environment) == (FACTS, ENVIRONMENT)
    assert len(rows(url, "SELECT * FROM v_trials")) == 3


# ---------------------------------------------------------------------------------------------------------- failures


def complaint(url: str, *, write: bool, kind: type[AdvisorError] = StoreError) -> str:
    """Open a database that can't be opened; return the one line that a person is told."""
    with pytest.raises(kind) as raised:
        Store.open(url, write=write).close()
    line = str(raised.value)
    assert "\n" not in line
    assert not {"SELECT", "PRAGMA", "Traceback", "BEGIN"} & set(line.split())
    return line


@pytest.mark.parametrize("write", [False, True])
def test_a_newer_database_is_refused(database_url: str, write: bool) -> None:
    """A revision we don't know is a newer advisor's: it is named, and neither read, written nor upgraded."""
    upgrade(database_url)
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    line = complaint(database_url, write=write)
    assert line == "the database is from a newer advisor (revision 9999) (upgrade advisor)"
    with pytest.raises(StoreError, match="newer advisor"):
        upgrade(database_url)


@pytest.mark.parametrize("write", [False, True])
def test_an_older_database_asks_for_an_upgrade(database_url: str, write: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older revision is not changed behind one's back: the command that does it is named."""
    upgrade(database_url)
    monkeypatch.setattr(store_module, "REVISIONS", ("0000", "0001"))
    execute(database_url, "UPDATE alembic_version SET version_num = '0000'")
    assert "(revision 0000) (advisor db upgrade)" in complaint(database_url, write=write)


def test_nothing_to_read_is_not_measured(database_url: str) -> None:
    """Reading where nothing was ever written says so, and creates nothing."""
    assert "advisor tune MODEL" in complaint(database_url, write=False, kind=NotMeasured)
    if database_url.startswith("sqlite"):
        path = Path(database_url.removeprefix("sqlite:///"))
        assert not path.exists()
        path.touch()
        assert "no database at" in complaint(database_url, write=False, kind=NotMeasured)


@pytest.mark.parametrize("write", [False, True])
def test_what_is_no_database_is_told_in_one_line(tmp_path: Path, write: bool) -> None:
    """A text file, a directory and a damaged database are told apart from a database, and left alone."""
    words = tmp_path / "words.db"
    words.write_text("this is no database, but it is long enough to look like one " * 20)
    before = words.read_bytes()
    assert "is not an advisor database" in complaint(f"sqlite:///{words}", write=write)
    assert words.read_bytes() == before
    assert "can't be opened" in complaint(f"sqlite:///{tmp_path}", write=write)
    if write:
        assert "can't be made" in complaint(f"sqlite:///{words}/below/a.db", write=True)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_read_only_database_can_be_read(what: str) -> None:
    """Somebody without permission to write reads the database; writing is refused before anything is measured."""
    place = Path(tempfile.mkdtemp(prefix="advisor-read-only-"))
    url = f"sqlite:///{place}/advisor.db"
    with Store.open(url, write=True) as own:
        ran(own, opened(own))
    (place / "advisor.db").chmod(0o444 if what == "file" else 0o666)
    place.chmod(0o777 if what == "file" else 0o555)
    try:
        reader, writer = process("read", url, "nobody"), process("share", url, "nobody")
        assert reader.communicate(timeout=30)[0].strip() == "1"
        assert "can't be" in writer.communicate(timeout=30)[0]
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


def test_a_full_disk_is_told_in_one_line(sqlite_url: str) -> None:
    """When the disk is full amid a write the trial is not finished, the line says why, and earlier trials stay."""
    with Store.open(sqlite_url, write=True) as full:
        study = opened(full)
        ran(full, study)
        number = started(full, study)
        with full._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match=r"^\S+advisor.db can't be written: the disk is full$"):
            full.finish_trial(study, measured(number, reading={"operators": ["x" * 100_000]}))
        assert [trial.outcome for trial in full.trials(study)] == [Outcome.OK, Outcome.RUNNING]


def test_a_locked_database_is_told_in_one_line(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waited long enough for another one says what it waited for."""
    monkeypatch.setattr(store_module, "LOCK_WAIT_S", 0)
    with Store.open(sqlite_url, write=True) as waiting:
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            opened(waiting)
        other.close()
        assert opened(waiting) == 1


def test_a_server_that_does_not_answer_is_told_in_one_line() -> None:
    """A closed port costs seconds at most and is named without the password, wherever that stands in the URL."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    begun = time.monotonic()
    for url in (f"postgresql://me:s3cret@127.0.0.1:{port}/x", f"postgres://me@127.0.0.1:{port}/x?password=s3cret"):
        for write in (False, True):
            line = complaint(url, write=write)
            assert "can't be reached" in line
            assert str(port) in line
            assert "s3cret" not in line
        with pytest.raises(StoreError, match="can't be reached"):
            upgrade(url)
    assert time.monotonic() - begun < 5


def test_a_server_that_goes_away_is_told_in_one_line(postgres_url: str, postgres: str) -> None:
    """A connection that was cut between writes is made anew; a cut amid a write and a lost database are StoreErrors."""
    name = postgres_url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    with Store.open(postgres_url, write=True) as lost, psycopg.connect(postgres, autocommit=True) as admin:
        study = opened(lost)
        admin.execute(cut)
        number = started(lost, study)

        @event.listens_for(lost._engine, "before_cursor_execute")
        def _(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT INTO measurements"):
                admin.execute(cut)

        with pytest.raises(StoreError, match=r"could not do it|can't be reached") as raised:
            lost.finish_trial(study, measured(number))
        assert "INSERT" not in str(raised.value)
        assert lost.trials(study)[0].outcome is Outcome.RUNNING
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        with pytest.raises(StoreError, match="does not exist"):
            lost.counts()


def test_a_url_that_is_none_is_bad_input() -> None:
    """What is no URL of a database we know is the caller's mistake, and is not echoed with its password."""
    for url in ("advisor.db", "mysql://me:s3cret@host/x", "postgresql://me:s3cret@host:port/x", ""):
        assert "s3cret" not in complaint(url, write=True, kind=BadInput)
        assert "s3cret" not in shown_url(url)


def test_a_password_is_never_shown() -> None:
    """A URL is shown without its password and without its query; a file by its path."""
    assert shown_url("postgresql://me:s3cret@host/x?password=s3cret") == "postgresql://me:***@host/x"
    assert shown_url("sqlite:////data/advisor.db") == "/data/advisor.db"


def test_the_default_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ADVISOR_DATABASE_URL wins, with our driver; otherwise it is a file of the user's, and asking creates nothing."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", "postgresql://host/x")
    assert default_url() == "postgresql+psycopg://host/x"
    monkeypatch.delenv("ADVISOR_DATABASE_URL")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_url().startswith("sqlite:///")
    assert default_url().endswith("advisor.db")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- speed


def test_the_store_imports_neither_the_orm_nor_alembic() -> None:
    """What `advisor suggest` imports stays small."""
    code = (
        "import sys, advisor.store; print([m for m in ('alembic', 'sqlalchemy.orm', 'torch', 'psycopg', 'platformdirs')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == "[]"


def fill(url: str, studies: int, trials: int) -> None:
    """Write many trials at once: 25 workloads, each in several environments."""
    engine = create_engine(url)
    samples = [1000.0 + index / 7 for index in range(20)]
    with Store.open(url, write=True) as seeded:
        ids = []
        for index in range(studies):
            environment = replace(ENVIRONMENT, driver=str(index // 25))
            ids.append(opened(seeded, workload=Workload((128, 64 + index % 25), 2), environment=environment))
        trial = ran(seeded, ids[0])
        with engine.connect() as connection:
            row = dict(connection.execute(text("SELECT * FROM trials")).mappings().one())
            one = dict(connection.execute(text("SELECT * FROM measurements")).mappings().first() or {})
    assert trial.reading
    row |= {"started_at": datetime.now(UTC), "finished_at": datetime.now(UTC), "lease": None}
    row["reading"] = canonical_json({"operators": ["aten::something"] * 300})
    many: list[dict[str, Any]] = []
    measurements: list[dict[str, Any]] = []
    for place in range(1, studies * trials):
        many.append({**row, "id": place + 1, "study_id": ids[place // trials], "number": place % trials})
        for metric in ("tokens_per_s", "seconds", "joules"):
            own = {"id": len(measurements) + 10, "trial_id": place + 1, "metric": metric}
            measurements.append({**one, **own, "samples": json.dumps(samples)})
    with engine.begin() as connection:
        connection.execute(insert(tables.TRIALS), many)
        connection.execute(insert(tables.MEASUREMENTS), measurements)
    engine.dispose()


def test_suggest_reads_within_milliseconds(sqlite_url: str) -> None:
    """What suggest looks up takes 10 ms at most among 10,000 trials (the best of three medians)."""
    fill(sqlite_url, studies=250, trials=40)
    key, workload = SOURCE.architecture_key, Workload((128, 70), 2)
    took: list[float] = []
    with Store.open(sqlite_url, write=False) as reader:
        assert reader.counts()["trials"] == 10_000
        for _ in range(60):
            begun = time.process_time()
            record = reader.studies_for(key, workload.key_for(key))[0]
            trials = reader.trials(record.id)
            reader.comparisons(record.id)
            reader.refusals(record.id)
            took.append(time.process_time() - begun)
    assert len(trials) == 40
    best = min(median(took[start : start + 20]) for start in (0, 20, 40))
    print(f"suggest's look-ups: median {best * 1000:.2f} ms, first {took[0] * 1000:.2f} ms")
    assert best < (0.025 if os.environ.get("CI") else 0.010)


# ------------------------------------------------------------------------------------------------- the second process


def second_process(verb: str, url: str, *arguments: str) -> None:
    """Do what a test asked its second process for, as "nobody" where root would be allowed everything."""
    if "nobody" in arguments and os.geteuid() == 0:
        create_engine("sqlite://").connect().close()  # the driver is imported while it can be
        os.setuid(65534)
    try:
        with Store.open(url, write=verb != "read") as store:
            if verb == "read":
                (record,) = store.neighbours(SOURCE.architecture_key)
                print(len(store.trials(record.id)))
                return
            study = opened(store)
            for index in range(15 if verb == "share" else 100_000):
                precision = f"{verb}{index}" if index else f"own{arguments}"
                trial = ran(store, study, BASELINE if verb == "write" else BASELINE.replaced(precision=precision))
                if verb == "write":
                    print(trial.number, flush=True)
    except AdvisorError as error:
        print(error)
    else:
        print("done")


if __name__ == "__main__":
    second_process(*sys.argv[1:])
