"""The store's promises, on SQLite and on PostgreSQL.

Run as a script, this file is the second process of some tests: `python test_store.py VERB URL …`.
"""

from __future__ import annotations

import json
import os
import re
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
from made_databases import laid
from sqlalchemy import create_engine, event, insert, inspect, select, text

from advisor.advice.kept_answers import keep_answer, keep_answers
from advisor.errors import AdvisorError, BadInput, NotMeasured, StoreError
from advisor.knobs import KNOBS
from advisor.knobs.choice import Reason, Verdict
from advisor.nouns.answer import NONE_RIGHT, Answer, SearchEnd, Stop
from advisor.nouns.configuration import Configuration, canonical_json
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import METRICS, PAIRED
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Confirm, Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.method import METHOD
from advisor.storage import database, tables
from advisor.storage.database import upgrade
from advisor.storage.place import default_url, shown_url, with_driver
from advisor.storage.store import Store
from advisor.storage.views import views
from advisor.workloads.forward import Forward

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Environment("cuda", "NVIDIA H200", (9, 0), 150 * 10**9, packages={"torch": "2.9.0"}, power_limit_w=700)
WORKLOAD = Forward((128, 64, 96, 32), 2)
OBJECTIVE = Objective(quality=Tier.EIGHT_BIT, max_memory_bytes=10**11, ignored_rules=("A4", "P1"))
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama", "hidden_size": 64}, "trained", "d1", True)
FACTS = ModelFacts(
    "LlamaForCausalLM",
    "llama",
    "bfloat16",
    1000,
    2000,
    900,
    2,
    64,
    4,
    2,
    16,
    512,
    2048,
    True,
    True,
    True,
    "sdpa",
    layer_types=("full", "sliding"),
    sliding_window=128,
)
BASELINE = Configuration.of({"attention": "sdpa", "precision": "float32", "quantization": "none", "packing": "padded"})
FASTER = BASELINE.replaced(precision="bfloat16")
FASTEST = BASELINE.replaced(precision="bfloat16", attention="flash_attention_2")


def opened(store: Store, **other: Any) -> int:
    """Open the study of the nouns above, or of others."""
    nouns = {"source": SOURCE, "workload": WORKLOAD, "environment": ENVIRONMENT, "objective": OBJECTIVE, **other}
    return store.open_study(**nouns, budget=Budget(60.0, 40), seed=7)


def started(store: Store, study: int, requested: Configuration = BASELINE, **other: Any) -> int:
    """Begin a search trial, as soon as no other process runs the same."""
    for _ in range(1000):
        if (numbers := store.claim(study, Search(requested), **{"owner": "host:1:1", **other})) is not None:
            return numbers[0]
        time.sleep(0.01)
    raise AssertionError("it runs all the time")


def measured(number: int, requested: Configuration = BASELINE, **other: Any) -> Trial:
    """Return a finished trial with every field filled."""
    samples = (1000.0 + number, 1010.5, 990.25)
    speed = Measurement("tokens_per_s", "tokens/s", samples, "search", {"clock": "not observable"})
    memory = Measurement("peak_bytes", "bytes", (2.0**33,))
    known: dict[str, Any] = {
        "outcome": Outcome.OK,
        "reason": "ran as asked",
        "load_s": 1.5,
        "first_call_s": 0.25,
        "measure_s": 3.0,
        "wall_s": 5.125,
        "peak_bytes": 2**40,
        "weight_bytes": 2**33,
        "reading": {"operators": ["aten::mm"], "attention": {"": "sdpa"}},
        "quality": Quality(0.01, 0.5, 0.002, 0.99, 380, 1.01, reference="fp32, eager", neighbours=0.5),
        "measurements": (speed, memory),
    }
    return Trial(number, requested, requested, **{**known, **other})


def ran(store: Store, study: int, requested: Configuration = BASELINE, **other: Any) -> Trial:
    """Start and finish one trial."""
    trial = measured(started(store, study, requested), requested, **other)
    store.finish_trial(study, trial, "host:1:1")
    return trial


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Open an empty store for writing."""
    with Store.open(laid(database_url), write=True) as opened_store:
        yield opened_store


def rows(url: str, statement: str) -> list[dict[str, Any]]:
    """Read with plain SQL, as people do."""
    engine = create_engine(with_driver(url))
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(text(statement)).mappings()]
    engine.dispose()
    return found


def count(url: str, table: str) -> int:
    """Return the number of a table's rows."""
    return int(rows(url, f"SELECT COUNT(*) AS n FROM {table}")[0]["n"])


def execute(url: str, statement: str) -> None:
    """Change something behind the store's back."""
    engine = create_engine(with_driver(url))
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
    assert store.studies(SOURCE.architecture_key)[0].state == "done"
    assert opened(store) == study
    assert store.studies(SOURCE.architecture_key)[0].state == "running"


def test_facts_are_shared_by_fine_tunes(store: Store) -> None:
    """Facts that were read of one model answer for another of its architecture, and for nothing else."""
    tuned = replace(SOURCE, name="org/tuned", weights_digest="d2")
    opened(store)
    opened(store, source=tuned)
    opened(store, source=replace(SOURCE, config={"model_type": "gpt2"}))
    assert {record.facts for record in store.studies()} == {None}
    store.save_facts(SOURCE, FACTS)
    assert [record.facts for record in store.studies(tuned.architecture_key)] == [FACTS, FACTS]
    assert [record.facts for record in store.studies()] == [None, FACTS, FACTS]
    own = replace(FACTS, layers=3)
    store.save_facts(tuned, own)
    assert [record.facts for record in store.studies(tuned.architecture_key)] == [own, FACTS]


def test_facts_of_another_version_are_none(store: Store, database_url: str) -> None:
    """Facts that this version can't understand are as good as none, whether something is missing or too much."""
    opened(store)
    for payload in ('{"of": "another version"}', "{}"):
        store.save_facts(SOURCE, FACTS)
        execute(database_url, f"UPDATE models SET facts = '{payload}'")
        assert store.studies()[0].facts is None


def test_ceilings_come_back(store: Store) -> None:
    """What plain work reaches in an environment is stored once: the best that was seen, of each, also after a busy moment."""
    assert store.ceilings(ENVIRONMENT.key) is None
    for speed in (700.0, 710.5, 400.0):
        store.save_ceilings(ENVIRONMENT, {"matmul_bf16_per_s": speed})
    store.save_ceilings(replace(ENVIRONMENT, driver="1"), {})
    assert store.ceilings(ENVIRONMENT.key) == {"matmul_bf16_per_s": 710.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save_ceilings(ENVIRONMENT, {"copy_bytes_per_s": float("inf")})
    assert store.environments() == []  # nothing was measured of a model


def test_one_study_and_one_trial_are_found_by_number(store: Store) -> None:
    """A study and a trial come back whole by their numbers; what is not there is not measured, in words."""
    study = opened(store)
    trial = ran(store, study)
    assert store.trial(study, 0) == trial
    assert store.study(study).id == study
    for number, text_of_it in ((1, f"study {study} has no trial 1"), (-1, f"study {study} has no trial -1")):
        with pytest.raises(NotMeasured, match=text_of_it):
            store.trial(study, number)
    with pytest.raises(NotMeasured, match="study 99 has no trial 0"):
        store.trial(99, 0)
    with pytest.raises(NotMeasured, match="there is no study 99"):
        store.study(99)


def test_a_trial_comes_back_as_it_was(store: Store) -> None:
    """Every field of a trial, its measurements and its raw reading come back unchanged."""
    study = opened(store)
    failed = Trial(1, FASTER, None, Outcome.OUT_OF_MEMORY, "CUDA out of memory", phase="confirm", block=3, attempts=2)
    trial = ran(store, study)
    assert store.claim(study, Confirm(3, (FASTER,)), "host:1:1") == (1,)
    store.finish_trial(study, failed, "host:1:1")
    assert store.trials(study, full=True) == [trial, failed]
    (short, _) = store.trials(study)
    assert (short.reading, short.measurements[0].device_state) == ({}, {})
    assert short.measurements[0].samples == trial.measurements[0].samples


def test_short_turns_are_compared_one_by_one_when_they_are_read_back(store: Store) -> None:
    """A list of trials says who was beside whom: the ratio of a block is the median of its turns' ratios then too."""
    study, aim = opened(store), METRICS["tokens_per_s"]
    numbers = store.claim(study, Confirm(1, (BASELINE, FASTER)), "host:1:1")
    assert numbers is not None
    for number, requested, samples in zip(
        numbers, (BASELINE, FASTER), ((1.0, 4.0, 9.0), (3.0, 4.0, 10.8)), strict=True
    ):
        speeds = Measurement("tokens_per_s", "tokens/s", samples, "confirm")
        turns = Measurement(PAIRED, "turns", (3.0,), "confirm")
        trial = measured(number, requested, phase="confirm", block=1, measurements=(speeds, turns))
        store.finish_trial(study, trial, "host:1:1")

    default, faster = store.trials(study)
    assert default.is_paired
    assert faster.times(default, aim) == pytest.approx(1.2)
    assert faster.score(aim) / default.score(aim) == 1.0


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
        Comparison(FASTER.key, BASELINE.key, (1.5, 1.52, 1.49)),
        Comparison(FASTEST.key, BASELINE.key, (0.5,), planned=9),
    ]
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
    second = opened(store, workload=Forward((16,), 1))
    third = opened(store, environment=replace(ENVIRONMENT, driver="1"))
    other = opened(store, source=replace(SOURCE, config={"model_type": "gpt2"}))
    key = SOURCE.architecture_key
    assert [record.id for record in store.studies(key)] == [third, second, first]
    assert [record.id for record in store.studies()] == [other, third, second, first]
    assert [record.id for record in store.studies_for(key, WORKLOAD.key_for(key))] == [third, first]


def test_shapes_are_found_by_a_models_name(store: Store) -> None:
    """Of several that had the name it is the newest study's; no other name has any."""
    opened(store)
    assert store.architecture_of("org/model") == SOURCE.architecture_key
    newer = replace(SOURCE, config={"model_type": "gpt2"})
    opened(store, source=newer)
    assert store.architecture_of("org/model") == newer.architecture_key
    assert store.architecture_of("org/mode%") is None


def test_figures_that_are_not_finite_are_refused(store: Store, database_url: str) -> None:
    """NaN and infinities never reach the database, and nothing of such a trial does."""
    study = opened(store)
    number = started(store, study)
    for wrong in ({"load_s": float("nan")}, {"quality": Quality(float("inf"), 1.0, None, None, 1)}):
        with pytest.raises(ValueError, match=r"not finite|not JSON compliant"):
            store.finish_trial(study, measured(number, **wrong), "host:1:1")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.finish_trial(study, measured(number, reading={"x": float("nan")}), "host:1:1")
    assert store.trials(study)[0].outcome is Outcome.RUNNING
    assert count(database_url, "measurements") == 0


def test_moments_are_aware_and_in_utc(store: Store, database_url: str) -> None:
    """Moments come back as aware UTC on both databases; a naive one is refused."""
    before = datetime.now(UTC)
    study = opened(store)
    store.close_study(study, "interrupted")
    (record,) = store.studies(SOURCE.architecture_key)
    assert record.finished_at is not None
    assert before - timedelta(seconds=1) <= record.started_at <= record.finished_at <= datetime.now(UTC)
    assert record.started_at.tzinfo is UTC
    assert record.finished_at.tzinfo is UTC
    with pytest.raises(ValueError, match="without a time zone"):
        tables.UtcDateTime().process_bind_param(datetime(2026, 1, 1), None)  # noqa: DTZ001


# ------------------------------------------------------------------------------------------- trials and several writers


def test_a_trial_that_was_not_started_cannot_be_finished(store: Store, database_url: str) -> None:
    """Finishing an unknown trial, or starting one in an unknown study, is an error in words."""
    study = opened(store)
    with pytest.raises(StoreError, match="has no trial 5"):
        store.finish_trial(study, measured(5), "host:1:1")
    with pytest.raises(StoreError, match="no study 99"):
        started(store, 99)
    with pytest.raises(ValueError, match="still running"):
        store.finish_trial(study, Trial(0, BASELINE, None, Outcome.RUNNING), "host:1:1")
    assert count(database_url, "configurations") == 0


def test_processes_share_a_study_without_loss(database_url: str) -> None:
    """Processes that create the database, open one study and start trials at once lose no trial and no number."""
    together = [process("share", database_url, str(index)) for index in range(3)]
    for each in together:
        assert each.communicate(timeout=240)[0].strip() == "done"
    with Store.open(database_url, write=False) as reader:
        (record,) = reader.studies(SOURCE.architecture_key)
        trials = reader.trials(record.id)
        assert [trial.number for trial in trials] == list(range(45))
        assert all(trial.outcome is Outcome.OK for trial in trials)
    assert count(database_url, "measurements") == 90
    assert (count(database_url, "configurations"), count(database_url, "environments")) == (17, 1)


def test_a_reader_sees_one_moment(store: Store, database_url: str) -> None:
    """What is written while a verb reads is not half of its answer."""
    study = opened(store)
    trials = text("SELECT COUNT(*) FROM trials")
    with store._database.reading() as connection:
        assert connection.execute(trials).scalar() == 0
        with Store.open(database_url, write=True) as other:
            ran(other, study)
        assert connection.execute(trials).scalar() == 0
    assert count(database_url, "trials") == 1


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
        assert started(survivor, study, FASTEST) == len(trials)


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
    store.finish_trial(second, replace(reused, number=number), "host:1:1", reused_from_id=source)
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
        {"workload": Forward((8,), 1)},
    ):
        assert store.reusable(opened(store, **other), BASELINE) is None


def test_reuse_within_a_study_is_a_number(store: Store) -> None:
    """A trial that repeats another one of its study names it by its number."""
    study = opened(store)
    trial = ran(store, study)
    number = started(store, study)
    store.finish_trial(study, replace(trial, number=number, reused_from=trial.number), "host:1:1")
    assert [each.reused_from for each in store.trials(study)] == [None, trial.number]


# --------------------------------------------------------------------------------------------------- views and schema


#: What the views say of the question, in this order.
QUESTION = {
    "workload": str(WORKLOAD),
    "padding": WORKLOAD.dealt.padding,
    "objective": "tokens_per_s",
    "quality": str(OBJECTIVE.quality),
    "threads": 0,
    "environment_key": ENVIRONMENT.key,
    "driver": None,
    "torch": ENVIRONMENT.packages.get("torch"),
    "transformers": ENVIRONMENT.packages.get("transformers"),
}


def test_v_trials_is_flat(store: Store, database_url: str) -> None:
    """A row a trial, with the knobs of what ran, its speed, its memory and its quality, alike on both databases."""
    study = opened(store)
    ran(store, study)
    store.finish_trial(study, replace(measured(started(store, study, FASTEST), FASTEST), effective=FASTER), "host:1:1")
    started(store, study, FASTEST)
    first, second, third = rows(database_url, "SELECT * FROM v_trials ORDER BY number")
    expected = {
        "study": study, "number": 0, "phase": "search", "block": None, "model": "org/model",
        "workload_key": WORKLOAD.key_for(SOURCE.architecture_key), "kind": "forward", "batch": 2,
        "output": "last-logits", "longest": 128, "device": "NVIDIA H200", "requested": str(BASELINE),
        "effective": str(BASELINE), "attention": "sdpa", "precision": "float32", "quantization": "none",
        "packing": "padded", "outcome": "ok", "reason": "ran as asked", "tokens_per_s": 1000.0,
        "tokens_per_s_low": 990.25, "tokens_per_s_high": 1010.5, "peak_bytes": 2**40, "load_s": 1.5,
        "first_call_s": 0.25, "kl": 0.002, "top1": 0.99, "reused": 0,
        # What came later stands behind, so that nobody's columns move.
        "batch_size": 2, "slowest_batch_s": None, "joules_per_token": None, "sequences_per_s": None, "cosine": None,
        "top10": None, **QUESTION, "measured_at": first["measured_at"],
    }  # fmt: skip
    assert first == expected
    assert first["measured_at"] is not None
    assert list(first) == list(expected)
    assert (second["requested"], second["effective"]) == (str(FASTEST), str(FASTER))
    assert second["attention"] == "sdpa"
    assert (third["attention"], third["effective"], third["tokens_per_s"]) == ("flash_attention_2", None, None)


def test_v_trials_has_what_other_objectives_need(store: Store, database_url: str) -> None:
    """Medians of the other metrics, what embeddings are judged by, and the batch that ran, by the knob or the workload."""
    more = (
        Measurement("slowest_batch_s", "s", (0.5, 0.25, 0.75)),
        Measurement("joules_per_token", "J/token", (0.125,)),
        Measurement("sequences_per_s", "sequences/s", (8.0, 9.0)),
    )
    quality = Quality(0.01, 0.5, None, None, 380, cosine=0.999, top10=0.9, reference="fp32, eager")
    given, free = opened(store), opened(store, workload=Forward((128, 8), None))
    for study, batch in ((given, ""), (given, "16"), (given, "whole"), (free, "16"), (free, "whole")):
        requested = BASELINE.replaced(batch=batch) if batch else BASELINE
        ran(store, study, requested, quality=quality, measurements=more)
    number = started(store, free, BASELINE.replaced(batch="16"))
    store.finish_trial(free, replace(measured(number, BASELINE.replaced(batch="8")), requested=BASELINE), "host:1:1")
    columns = "batch, batch_size, slowest_batch_s, joules_per_token, sequences_per_s, cosine, top10"
    found = rows(database_url, f"SELECT {columns} FROM v_trials ORDER BY study, number")
    batches = [(2, 2), (2, 16), (2, 2), (None, 16), (None, None), (None, 8)]
    assert [(row["batch"], row["batch_size"]) for row in found] == batches
    assert tuple(found[0].values())[2:] == (0.5, 0.125, 8.5, 0.999, 0.9)


@pytest.mark.parametrize(("blocks", "seen"), [(0, (None, None, None)), (1, (1.5, None, None)), (3, (1.5, 1.4, 1.6))])
def test_no_ratio_is_shown_of_what_was_not_compared(
    store: Store, database_url: str, blocks: int, seen: tuple[float | None, ...]
) -> None:
    """Without a block there is no ratio, with one no interval, as in JSON: in rows of before too, with 1 for the default."""
    study = opened(store)
    store.save_answer(study, Answer(BASELINE, "default", 1.5, 1.4, 1.6, blocks, 2, 3, (), METHOD))
    (row,) = rows(database_url, "SELECT ratio, low, high FROM v_recommendations")

    assert (row["ratio"], row["low"], row["high"]) == seen


def test_v_recommendations_shows_the_stored_answer(store: Store, database_url: str) -> None:
    """The view is the row that was stored: what was chosen, by how much, of how many; and whether that is still so."""
    study = opened(store)
    assert (rows(database_url, "SELECT * FROM v_recommendations"), store.answer(study)) == ([], None)
    ran(store, study)
    answer = Answer(FASTEST, "faster", 1.5, 1.25, 1.75, 3, 2, 12, ("a note", "naïve"), METHOD, datetime.now(UTC))
    store.save_answer(study, answer)
    assert store.answer(study) == answer
    (row,) = rows(database_url, "SELECT * FROM v_recommendations")
    assert row.pop("made_at") is not None
    assert row.pop("measured_at") is not None
    assert row == {
        **QUESTION,
        "longest": 128,
        "batch": 2,
        "output": "last-logits",
        "study": study,
        "model": "org/model",
        "device": "NVIDIA H200",
        "workload_key": WORKLOAD.key_for(SOURCE.architecture_key),
        "configuration": str(FASTEST),
        "configuration_key": FASTEST.key,
        "ratio": 1.5,
        "low": 1.25,
        "high": 1.75,
        "verdict": "faster",
        "blocks": 3,
        "tried": 2,
        "admissible": 12,
        "stale": 0,
    }
    names = "study, model, device, workload_key, configuration, configuration_key, ratio, low, high, verdict, blocks, "
    assert ", ".join(row).startswith(names), "columns of before keep their places"


def test_an_answer_is_stale_by_its_method_and_by_what_came_later(store: Store, database_url: str) -> None:
    """Rows that were stored after it, or rules of another version, make an answer stale; made again, it is not."""
    study, other = opened(store), opened(store, workload=Forward((8, 8), 1))
    ran(store, study, quality=Quality(0.01, 0.5, 0.002, 0.99, 380, reference="fp32, eager"))
    store.save_facts(SOURCE, FACTS)

    def stale() -> list[int]:
        return [row["stale"] for row in rows(database_url, "SELECT stale FROM v_recommendations")]

    keep_answer(store, study)
    assert (stale(), store.unanswered(METHOD)) == ([0], [other])
    ran(store, study, FASTER)
    assert stale() == [1]
    keep_answer(store, study)
    assert stale() == [0]
    store.save_comparisons(study, [Comparison(FASTER.key, BASELINE.key, (1.5,) * 3)])
    assert stale() == [1]
    keep_answer(store, study)
    execute(database_url, "UPDATE recommendations SET method = 'of another time'")
    assert (stale(), store.unanswered(METHOD)) == ([1], [study, other])
    assert keep_answers(store) == 2
    assert (stale(), store.unanswered(METHOD)) == ([0], [other]), "one study has no finished trial yet"


def test_an_answer_of_earlier_rows_replaces_none_of_later_ones(store: Store) -> None:
    """Of two that answer a study at once, the one that read less is not left standing."""
    study, moment = opened(store), datetime.now(UTC)
    late = Answer(BASELINE, "default", 1.0, 1.0, 1.0, 0, 2, 3, (), METHOD, moment)
    store.save_answer(study, late)
    store.save_answer(study, replace(late, tried=1, made_at=moment - timedelta(seconds=1)))
    assert store.answer(study) == late
    store.save_answer(study, replace(late, tried=3, made_at=moment + timedelta(seconds=1)))
    assert store.answer(study) == replace(late, tried=3, made_at=moment + timedelta(seconds=1))


def test_the_answer_where_nothing_is_right(store: Store, database_url: str) -> None:
    """Nothing that is right within the objective is an answer too, with every reason."""
    study = opened(store)
    store.save_facts(SOURCE, FACTS)
    store.finish_trial(study, Trial(started(store, study), BASELINE, None, Outcome.LOAD_FAILED, "it broke"), "host:1:1")
    store.save_refusals(study, [], 0)
    store.close_study(study, "done", end=SearchEnd(Stop.EVERYTHING, 0, 0.0, (), 1))
    keep_answer(store, study)
    answer = store.answer(study)
    assert answer is not None
    assert (answer.configuration, answer.verdict, answer.ratio, answer.tried) == (None, NONE_RIGHT, None, 1)
    assert any("it broke" in reason for reason in answer.why)
    query = "SELECT configuration, configuration_key, verdict, ratio, blocks FROM v_recommendations"
    assert [tuple(row.values()) for row in rows(database_url, query)] == [(None, None, NONE_RIGHT, None, 0)]


def test_v_refusals_says_why_not(store: Store, database_url: str) -> None:
    """Refusals can be read with SQL, with the model and the device they were made for."""
    study = opened(store)
    store.save_refusals(study, [Reason("P1", Verdict.INVALID, "no", "do", "", "precision=bfloat16")])
    assert rows(database_url, "SELECT * FROM v_refusals") == [
        {
            "study": study,
            "model": "org/model",
            "device": "NVIDIA H200",
            "subject": "precision=bfloat16",
            "about": "",
            "rule": "P1",
            "verdict": "INVALID",
            "reason": "no",
            "remedy": "do",
        }
    ]


def test_the_migrations_make_what_tables_says(database_url: str) -> None:
    """What the migrations made has the tables, the indexes and the HEAD of `tables`, and the views of `views`."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == tables.HEAD == upgrade(database_url) == upgrade(database_url)
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == tables.REVISIONS
    engine = create_engine(with_driver(database_url))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.METADATA) == []
        expected = views(engine.dialect.name)
        assert set(inspect(connection).get_view_names()) == set(expected)
        for name, body in expected.items():
            connection.execute(text(f"CREATE VIEW again_{name} AS {body}"))
            made, again = (inspect(connection).get_view_definition(each) or "" for each in (name, f"again_{name}"))
            assert made.split("AS", 1)[-1].split() == again.split("AS", 1)[-1].split()
    engine.dispose()


def migrate(url: str, revision: str, *, down: bool = False) -> None:
    """Take a database to a revision, as Alembic's own command does."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)
    engine.dispose()


def test_the_migrations_can_be_undone(database_url: str) -> None:
    """Every step down takes back what its step up made; downgrading to nothing leaves no table and no view behind."""
    migrate(database_url, "0001")
    engine = create_engine(with_driver(database_url))

    def views_here() -> dict[str, list[str]]:
        seen = inspect(engine)
        return {name: (seen.get_view_definition(name) or "").split() for name in seen.get_view_names()}

    views = views_here()
    tables_of_before = set(inspect(engine).get_table_names())
    upgrade(database_url)
    assert views_here()["v_trials"] != views["v_trials"]
    migrate(database_url, "0001", down=True)
    assert views_here() == views
    assert set(inspect(engine).get_table_names()) == tables_of_before
    assert "admissible" not in {column["name"] for column in inspect(engine).get_columns("studies")}
    migrate(database_url, "base", down=True)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    assert inspect(engine).get_view_names() == []
    engine.dispose()


OLD = sorted((Path(__file__).parent / "databases").glob("*.sql"))


def undumped(dump: Path, folder: Path) -> str:
    """Make a SQLite database of a dump and return its URL."""
    with sqlite3.connect(folder / "old.db") as connection:
        connection.executescript(dump.read_text())
    connection.close()
    return f"sqlite:///{folder}/old.db"


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables but Alembic's, columns by name, moments as text."""
    engine = create_engine(with_driver(url))
    found = {}
    with engine.connect() as connection:
        for name in set(inspect(connection).get_table_names()) - {"alembic_version"}:
            table = tables.METADATA.tables[name]
            known = {column["name"] for column in inspect(connection).get_columns(name)}
            columns = [column for column in table.columns if column.name in known]
            listed = connection.execute(select(*columns).order_by(table.c.id)).all()
            found[name] = [tuple(zip((column.name for column in columns), row, strict=True)) for row in listed]
    engine.dispose()
    return found


@pytest.mark.parametrize("dump", OLD, ids=lambda path: path.stem)
def test_old_databases_can_be_upgraded_and_read(dump: Path, tmp_path: Path) -> None:
    """A database of every schema there ever was, upgraded, still gives its studies, trials and comparisons."""
    url = undumped(dump, tmp_path)
    upgrade(url)
    with Store.open(url, write=False) as old:
        (record,) = old.studies(SOURCE.architecture_key)
        assert [trial.outcome for trial in old.trials(record.id, full=True)] == ["ok", "ok", "running"]
        (comparison,) = old.comparisons(record.id)
        assert (comparison.verdict, comparison.planned) == ("faster", None if dump.stem < "0004" else 9)
        assert record.budget.blocks == (3 if dump.stem < "0004" else 9)
        assert old.refusals(record.id)[0].rule == "A4"
        assert (record.facts, record.environment) == (FACTS, ENVIRONMENT)
        assert (record.admissible, old.ceilings(record.environment_key)) == (
            (None, None) if dump.stem == "0001" else (12, {"copy_bytes_per_s": 4e12})
        )
    assert len(rows(url, "SELECT * FROM v_trials")) == 3


def test_there_is_a_dump_of_every_revision() -> None:
    """Every schema there ever was is kept, so that no upgrade goes untested."""
    assert tuple(dump.stem for dump in OLD) == tables.REVISIONS


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_upgrade_keeps_every_row(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`advisor db upgrade` brings a database at 0001 to this version with all its rows, and a writer can go on with it."""
    url = undumped(OLD[0], tmp_path)
    if kind == "postgresql":
        url = copied(url, str(request.getfixturevalue("postgres_url")))
    before = everything(url)
    assert "older advisor (revision 0001) (advisor db upgrade)" in complaint(url, write=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ADVISOR_DATABASE_URL": url}
    told = subprocess.run(
        [sys.executable, "-m", "advisor", "db", "upgrade"], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout.endswith(f"is at revision {tables.HEAD}\n")
    after = everything(url)
    assert after.pop("ceilings") == after.pop("slots") == []
    assert sorted(dict(row)["name"] for row in after.pop("knobs")) == sorted(KNOBS)
    for stored in (before, after):  # as they are spelled now
        stored["configurations"] = [_spelled(dict(row)) for row in stored["configurations"]]
    assert [dict(row)["verdict"] for row in after.pop("recommendations")] == ["unsearched"]
    added = {
        "studies": (("admissible", None), ("facts", None)),
        "trials": (("device_uuid", None),),
        "comparisons": (("planned", None),),
    }
    columns_told = [row[-2:] for row in after["workloads"]]
    after["workloads"] = [row[:-2] for row in after["workloads"]]
    assert [(name, bool(value)) for row in columns_told for name, value in row] == [("words", True), ("padding", True)]
    for table, columns in added.items():
        after[table] = [row[: -len(columns)] for row in after[table] if row[-len(columns) :] == columns]
    assert after == before
    assert sum(map(len, before.values())) == 16
    with Store.open(url, write=True) as store:
        assert opened(store) == 1
        store.save_ceilings(ENVIRONMENT, {})
        ran(store, 1)
    assert [row["batch_size"] for row in rows(url, "SELECT batch_size FROM v_trials")] == [2] * 4


def _spelled(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return a configuration's row with its one form and key."""
    configuration = Configuration.of(json.loads(row["payload"]))
    return (row["id"], configuration, configuration.key)


def copied(url: str, server: str) -> str:
    """Copy a SQLite database at revision 0001 to an empty PostgreSQL one, ids and all; return its URL."""
    migrate(server, "0001")
    found = everything(url)
    engine = create_engine(with_driver(server))
    with engine.begin() as connection:
        for table in tables.METADATA.sorted_tables:
            for row in found.get(table.name, []):
                connection.execute(insert(table).values(dict(row)))
            if found.get(table.name):
                last = (
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), (SELECT MAX(id) FROM {table.name}))"
                )
                connection.execute(text(last))
    engine.dispose()
    return server


def test_views_of_comparisons_survive_up_and_down(database_url: str) -> None:
    """The column that says how many blocks were planned comes and goes, and a view that people made of the others stays."""
    migrate(database_url, "0003")
    execute(database_url, "CREATE VIEW mine AS SELECT low, blocks, made_at FROM comparisons")
    for down in (False, True, False):
        migrate(database_url, "0003" if down else "0004", down=down)
        assert rows(database_url, "SELECT * FROM mine") == []
        engine = create_engine(with_driver(database_url))
        assert ("planned" in {column["name"] for column in inspect(engine).get_columns("comparisons")}) is not down
        engine.dispose()


def test_views_of_people_survive_an_upgrade(postgres_url: str) -> None:
    """A view that somebody built on ours does not keep PostgreSQL from being upgraded, and still answers."""
    migrate(postgres_url, "0001")
    for name in ("v_trials", "v_recommendations", "v_refusals"):
        execute(postgres_url, f"CREATE VIEW my_{name} AS SELECT * FROM {name}")
    upgrade(postgres_url)
    assert [rows(postgres_url, f"SELECT * FROM my_{name}") for name in ("v_trials", "v_recommendations")] == [[], []]


VIEWS = ("v_trials", "v_recommendations", "v_refusals")


@pytest.mark.parametrize("how", ["upgrade", "open"])
def test_views_that_were_dropped_or_changed_are_made_again(database_url: str, how: str) -> None:
    """`advisor db upgrade` restores every view, and so does a writer, for one names the version of the stored answers."""
    upgrade(database_url)
    engine = create_engine(with_driver(database_url))
    before = {name: inspect(engine).get_view_definition(name) for name in VIEWS}
    execute(database_url, "DROP VIEW v_trials")
    execute(database_url, "DROP VIEW v_recommendations")
    execute(database_url, "CREATE VIEW v_recommendations AS SELECT 1 AS one")
    if how == "upgrade":
        execute(database_url, "DROP VIEW v_refusals")
        execute(database_url, "CREATE VIEW v_refusals AS SELECT 2 AS two")
        upgrade(database_url)
    else:
        Store.open(database_url, write=True).close()
    assert {name: inspect(engine).get_view_definition(name) for name in VIEWS} == before
    engine.dispose()


def test_a_changed_view_that_others_use_is_named(postgres_url: str) -> None:
    """Where somebody built on a view that was changed, nothing of theirs is dropped: a line says which view it is."""
    upgrade(postgres_url)
    execute(postgres_url, "DROP VIEW v_refusals")
    execute(postgres_url, "CREATE VIEW v_refusals AS SELECT 1 AS one")
    execute(postgres_url, "CREATE VIEW mine AS SELECT * FROM v_refusals")
    with pytest.raises(StoreError, match="the view v_refusals was changed"):
        upgrade(postgres_url)
    assert rows(postgres_url, "SELECT * FROM mine") == [{"one": 1}]


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
def test_an_older_database_asks_for_an_upgrade(database_url: str, write: bool) -> None:
    """An older revision is not changed behind one's back: the command that does it is named."""
    upgrade(database_url)
    execute(database_url, "UPDATE alembic_version SET version_num = '0001'")
    assert "(revision 0001) (advisor db upgrade)" in complaint(database_url, write=write)


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
        assert reader.communicate(timeout=240)[0].strip() == "1"
        assert "can't be" in writer.communicate(timeout=240)[0]
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


def test_a_full_disk_is_told_in_one_line(sqlite_url: str) -> None:
    """When the disk is full amid a write the trial is not finished, the line says why, and earlier trials stay."""
    with Store.open(sqlite_url, write=True) as full:
        study = opened(full)
        ran(full, study)
        number = started(full, study)
        with full._database.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match=r"^\S+advisor.db can't be written: the disk is full$"):
            full.finish_trial(study, measured(number, reading={"operators": ["x" * 100_000]}), "host:1:1")
        assert [trial.outcome for trial in full.trials(study)] == [Outcome.OK, Outcome.RUNNING]


def test_a_locked_database_is_told_in_one_line(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waited long enough for another one says what it waited for."""
    monkeypatch.setattr(database, "LOCK_WAIT_S", 0)
    with Store.open(sqlite_url, write=True) as waiting:
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            opened(waiting)
        other.close()
        assert opened(waiting) == 1


def test_a_server_that_does_not_answer_is_told_in_one_line() -> None:
    """A closed port is not waited for and is named without the password, wherever that stands in the URL."""
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
    assert time.monotonic() - begun < 30  # six times, on a busy machine


def test_a_server_that_goes_away_is_told_in_one_line(postgres_url: str, postgres: str) -> None:
    """A connection that was cut between writes is made anew; a cut amid a write and a lost database are StoreErrors."""
    name = postgres_url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    with Store.open(postgres_url, write=True) as lost, psycopg.connect(postgres, autocommit=True) as admin:
        study = opened(lost)
        admin.execute(cut)
        number = started(lost, study)

        @event.listens_for(lost._database.engine, "before_cursor_execute")
        def _(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT INTO measurements"):
                admin.execute(cut)

        with pytest.raises(StoreError, match=r"could not do it|can't be reached") as raised:
            lost.finish_trial(study, measured(number), "host:1:1")
        assert "INSERT" not in str(raised.value)
        assert lost.trials(study)[0].outcome is Outcome.RUNNING
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        with pytest.raises(StoreError, match="does not exist"):
            lost.studies()


def test_a_url_that_is_none_is_bad_input() -> None:
    """What is no URL of a database we know is the caller's mistake, and is not echoed with its password."""
    for url in ("advisor.db", "mysql://me:s3cret@host/x", "postgresql://me:s3cret@host:port/x", ""):
        assert "s3cret" not in complaint(url, write=True, kind=BadInput)
        assert "s3cret" not in shown_url(url)


def test_a_password_is_never_shown() -> None:
    """A URL is shown without its password and without its query; a file by its path."""
    assert shown_url("postgresql://me:s3cret@host/x?password=s3cret") == "postgresql://me:***@host/x"
    assert shown_url("sqlite:////data/advisor.db") == "/data/advisor.db"


@pytest.fixture
def careful_url(postgres_url: str, postgres: str) -> Iterator[str]:
    """Make a role that PostgreSQL asks for its password, and that may do nothing; give its URL."""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute("CREATE ROLE careful LOGIN PASSWORD 'p@ss/s3cret'")
        place = Path(str((admin.execute("SHOW hba_file").fetchone() or ("",))[0]))
        before = place.read_text()
        place.write_text(f"local all careful scram-sha-256\n{before}")
        admin.execute("SELECT pg_reload_conf()")
        yield postgres_url.replace("postgres:@", "careful:p%40ss%2Fs3cret@")
        place.write_text(before)
        admin.execute("SELECT pg_reload_conf()")
        admin.execute("DROP ROLE careful")


def test_a_password_is_in_no_error_of_a_server(careful_url: str, postgres_url: str) -> None:
    """A wrong password, no permission to make a schema, none to read one: each is told in one line without the password."""
    wrong = careful_url.replace("s3cret", "s3cret-not")
    in_query = careful_url.replace(":p%40ss%2Fs3cret@", "@") + "&password=p%40ss%2Fs3cret"
    told = {"password authentication failed": complaint(wrong, write=False)}
    for url in (careful_url, in_query):
        assert "advisor tune MODEL" in complaint(url, write=False, kind=NotMeasured)
        told["permission denied for schema"] = complaint(url, write=True)
    upgrade(postgres_url)
    told["permission denied for table"] = complaint(careful_url, write=False)
    for cause, line in told.items():
        assert cause in line
        assert "careful" in line
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for url, action, status in (
        (careful_url, "url", 0),
        (in_query, "url", 0),
        (wrong, "upgrade", 2),
        (in_query, "upgrade", 2),
    ):
        command_line = [sys.executable, "-m", "advisor", "db", action]
        environment["ADVISOR_DATABASE_URL"] = url
        done = subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == status
        told[f"{url} {action}"] = done.stdout + done.stderr
    for line in told.values():
        assert "s3cret" not in line
        assert "p%40ss" not in line
        assert "Traceback" not in line


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
        "import sys, advisor.storage.store; print([m for m in ('alembic', 'sqlalchemy.orm', 'torch', 'psycopg', 'platformdirs')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == "[]"


def fill(url: str, studies: int, trials: int, workloads: int = 25) -> None:
    """Write many trials at once: so many workloads, each in several environments."""
    engine = create_engine(url)
    samples = [1000.0 + index / 7 for index in range(20)]
    with Store.open(url, write=True) as seeded:
        ids = []
        for index in range(studies):
            environment = replace(ENVIRONMENT, driver=str(index // workloads))
            ids.append(opened(seeded, workload=Forward((128, 64 + index % workloads), 2), environment=environment))
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


def test_what_suggest_reads_takes_no_longer_among_many(tmp_path: Path) -> None:
    """Among 10,000 trials suggest looks up the same as among 400 in at most twice the time (the best medians of turns).

    How many milliseconds that are depends on the machine: benchmarks/startup.py has limits.
    """
    key, workload = SOURCE.architecture_key, Forward((128, 64), 2)
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("few", "many")]
    for url, workloads in zip(urls, (1, 25), strict=True):
        fill(url, studies=10 * workloads, trials=40, workloads=workloads)
    assert [count(url, "trials") for url in urls] == [400, 10_000]

    def look_up_s(reader: Store) -> float:
        begun = time.process_time()
        records = reader.studies_for(key, workload.key_for(key))
        trials = reader.trials(records[0].id)
        reader.comparisons(records[0].id)
        reader.refusals(records[0].id)
        reader.ceilings(records[0].environment_key)
        took_s = time.process_time() - begun
        assert (len(records), len(trials)) == (10, 40)
        return took_s

    with Store.open(urls[0], write=False) as few, Store.open(urls[1], write=False) as many:
        turns = [(look_up_s(few), look_up_s(many)) for _ in range(60)]
    best = [min(median(took[start : start + 20]) for start in (0, 20, 40)) for took in zip(*turns, strict=True)]
    print(f"suggest's look-ups: {best[0] * 1000:.2f} ms among few trials, {best[1] * 1000:.2f} ms among many")
    assert best[1] < 2 * best[0]


def planned(url: str, statements: list[tuple[str, Any]]) -> str:
    """Return how the database would run these statements, in its own words, with no whole table read where that can be."""
    engine = create_engine(with_driver(url))
    is_sqlite, lines = engine.dialect.name == "sqlite", []
    with engine.connect() as connection:
        if not is_sqlite:  # a few rows are read whole: what counts is whether an index could be used
            connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in statements:
            explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
            found = connection.exec_driver_sql(explain + statement, parameters)
            lines += [str(row[-1]) for row in found]
    engine.dispose()
    return "\n".join(lines)


def test_what_is_asked_often_reads_no_table_whole(store: Store, database_url: str) -> None:
    """Reuse, the next number, a study's answer and its page are found by indexes: a million trials do not slow them down."""
    study, other = opened(store), opened(store, objective=Objective())
    ran(store, other, FASTER)
    ran(store, study)
    store.save_facts(SOURCE, FACTS)
    keep_answer(store, study)
    asked: list[tuple[str, Any]] = []

    def hear(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")) and not executemany:
            asked.append((statement, parameters))

    event.listen(store._database.engine, "before_cursor_execute", hear)
    assert store.reusable(study, FASTER) is not None
    ran(store, study)
    store.trials(study)
    store.page(study, 5, 2, failed=True)
    store.default_trials(study)
    store.comparisons(study)
    store.refusals(study)
    store.answer(study)
    event.remove(store._database.engine, "before_cursor_execute", hear)
    asked.append((f"SELECT * FROM v_recommendations WHERE study = {study}", () if "sqlite" in database_url else {}))
    plan = planned(database_url, asked)
    print(plan)
    whole = re.findall(r"SCAN (?!CONSTANT)\w+|Seq Scan on \w+ \w+", plan)
    big = ("trials", "measurements", "comparisons", "recommendations", "refusals", " t", " x", " c", " a", " o")
    assert [each for each in whole if each.endswith(big)] == []


# ------------------------------------------------------------------------------------------------- the second process


def dump(url: str) -> None:
    """Write the study that tests/databases has of every revision, and print its dump: python test_store.py dump URL."""
    with Store.open(url, write=True) as store:
        study = opened(store)
        store.save_facts(SOURCE, FACTS)
        store.save_ceilings(ENVIRONMENT, {"copy_bytes_per_s": 4e12})
        for configuration in (BASELINE, FASTEST):
            ran(store, study, configuration)
        started(store, study, FASTER)
        store.save_comparisons(study, [Comparison(FASTEST.key, BASELINE.key, (1.5, 1.52, 1.49), planned=9)])
        refusal = Reason(
            "A4", Verdict.WRONG, "masks are ignored", "use sdpa", "packing=padded", "attention=flash_attention_2"
        )
        store.save_refusals(study, [refusal], admissible=12)
        store.close_study(study, "done")
        store.save_answer(study, Answer(FASTEST, "faster", 1.5, 1.4, 1.6, 3, 2, 12, ("a note",), "of another time"))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        print("\n".join(connection.iterdump()))
    connection.close()


def second_process(verb: str, url: str, *arguments: str) -> None:
    """Do what a test asked its second process for, as "nobody" where root would be allowed everything."""
    if "nobody" in arguments and os.geteuid() == 0:
        create_engine("sqlite://").connect().close()  # the driver is imported while it can be
        os.setuid(65534)
    if verb == "dump":
        dump(url)
        return
    try:
        with Store.open(url, write=verb != "read") as store:
            if verb == "read":
                (record,) = store.studies(SOURCE.architecture_key)
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


def test_every_figure_is_a_row(database_url: str) -> None:
    """v_measurements: a row a figure of each trial, with its unit and interval, of metrics that no column is named after too."""
    with Store.open(database_url, write=True) as store:
        study = opened(store)
        found = (Measurement("tokens_per_s", "tokens/s", (1.0, 2.0, 3.0)), Measurement("made_up", "things", (7.0,)))
        number = ran(store, study, measurements=found).number
    engine = create_engine(with_driver(database_url))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM v_measurements ORDER BY metric")).mappings().all()
    engine.dispose()

    assert [(row["study"], row["number"], row["metric"], row["unit"], row["n"], row["median"]) for row in rows] == [
        (study, number, "made_up", "things", 1, 7.0),
        (study, number, "tokens_per_s", "tokens/s", 3, 2.0),
    ]
    assert rows[1]["low"] <= 2.0 <= rows[1]["high"]
