"""docs/sql.md: its queries answer what they say on both databases, its role only reads, its URI reads a live SQLite file."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from made_databases import laid
from sqlalchemy import create_engine, text

from advisor.knobs.choice import Reason, Verdict
from advisor.nouns.answer import Answer
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.method import METHOD
from advisor.storage.place import with_driver
from advisor.storage.store import Store
from advisor.storage.views import views
from advisor.workloads.forward import Forward

PAGE = (Path(__file__).parent.parent / "docs" / "sql.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
FASTEST, CHANGED, WRONG, MEMORY, STALE, ROLE = QUERIES

WORK = Forward((128, 64, 96, 32), 2)
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama", "hidden_size": 64}, "trained", "d1", True)
OLD = Environment("cuda", "NVIDIA H200", (9, 0), 150 * 10**9, packages={"torch": "2.11.0", "transformers": "5.17.0"})
NEW = replace(OLD, packages={"torch": "2.13.0", "transformers": "5.17.0"})
PADDED = Configuration.of({"attention": "sdpa", "precision": "bf16"})
SORTED, PACKED = PADDED.replaced(packing="sorted"), PADDED.replaced(packing="packed")
MIB = 2**20


@pytest.fixture
def url(database_url: str) -> str:
    """Store two studies of the same work: one of an older torch, whose answer is stale, and one whose is not."""
    with Store.open(laid(database_url), write=True) as store:
        for environment, factor in ((OLD, 1.0), (NEW, 1.25)):
            study = store.open_study(SOURCE, WORK, environment, Objective(), Budget(60.0), 0)
            tried = ((PADDED, 1000.0, 400), (SORTED, 1500.0, 300), (PACKED, 0.0, 0))
            for configuration, speed, peak in tried:
                number = store.claim(study, Search(configuration), "a:1:1")[0]
                store.finish_trial(study, _trial(number, configuration, speed * factor, peak * MIB), "a:1:1")
            wrong = Reason("P2", Verdict.WRONG, "a mask", "leave it out", subject="packing=packed-2d-mask")
            store.save_refusals(study, [wrong, Reason("A1", Verdict.INVALID, "no", subject="attention=x")], 5)
            store.close_study(study, "done")
            made = datetime.now(UTC) - timedelta(days=1) if environment is OLD else datetime.now(UTC)
            store.save_answer(study, Answer(SORTED, "faster", 1.5, 1.4, 1.6, 3, 3, 5, (), METHOD, made))
    return database_url


def _trial(number: int, configuration: Configuration, speed: float, peak_bytes: int) -> Trial:
    known: dict[str, Any] = {"outcome": Outcome.OK, "effective": configuration, "peak_bytes": peak_bytes}
    known["measurements"] = (Measurement("tokens_per_s", "tokens/s", (speed, speed, speed)),)
    if not speed:
        known = {"outcome": Outcome.WRONG_OUTPUT, "effective": configuration, "reason": "it leaks"}
    return Trial(number, configuration, **known)


def asked(url: str, query: str) -> list[dict[str, Any]]:
    """Read with plain SQL, as people do; numbers as floats."""
    engine = create_engine(with_driver(url))
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(text(query.replace(":", r"\:"))).mappings()]
    engine.dispose()
    return found


def test_the_page_names_every_view_and_column() -> None:
    """Each view is in its table, and each column that says what was asked in its list."""
    assert all(f"`{name}`" in PAGE for name in views("sqlite"))
    listed = re.search(r"Of the question they say (.*?)\. Bytes", PAGE, re.DOTALL)
    assert listed is not None
    for name in re.findall(r"`(\w+)`", listed[1]):
        for view in ("v_trials", "v_recommendations"):
            assert re.search(rf"\bAS {name}\b", views("sqlite")[view]), (view, name)


def test_the_five_questions_are_answered(url: str) -> None:
    """Each query finds what the page says that it finds, and nothing else."""
    (fastest,) = asked(url, FASTEST)
    assert (fastest["model"], fastest["configuration"], float(fastest["ratio"])) == ("org/model", str(SORTED), 1.5)
    assert fastest["workload"] == str(WORK)

    changed = asked(url, CHANGED)
    assert {row["effective"] for row in changed} == {str(PADDED), str(SORTED)}
    assert {(row["torch_then"], row["torch_now"], float(row["ratio"])) for row in changed} == {
        ("2.11.0", "2.13.0", 1.25)
    }

    wrong = asked(url, WRONG)
    assert sorted((row["what"], row["found_by"]) for row in wrong) == [
        *[("packing=packed-2d-mask", "P2")] * 2,
        *[(str(PACKED), "the gate")] * 2,
    ]

    memory = asked(url, MEMORY)
    assert [(row["effective"], row["peak_mib"], row["more_than_the_default_mib"]) for row in memory[:2]] == [
        (str(PADDED), 400, 0),
        (str(SORTED), 300, -100),
    ]

    stale = STALE if "sqlite" in url else STALE.replace("datetime('now', '-90 days')", "now() - interval '90 days'")
    assert "now() - interval '90 days'" in PAGE
    assert [row["study"] for row in asked(url, stale)] == [1]


def test_the_role_reads_views_and_writes_nothing(postgres_url: str) -> None:
    """As the page makes it: every view can be read; tables, writing, and making things are denied."""
    laid(postgres_url)
    Store.open(postgres_url, write=True).close()
    statements = [each.strip() for each in ROLE.split(";") if each.strip()]
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        try:
            for statement in statements:
                owner.execute(statement)  # type: ignore[call-overload]
            with psycopg.connect(postgres_url, user="advisor_reader", password="choose one", autocommit=True) as reader:
                for view in views("postgresql"):
                    assert reader.execute(f"SELECT COUNT(*) FROM {view}").fetchone() == (0,)
                for denied in (
                    "SELECT * FROM trials",
                    "INSERT INTO models (architecture_key, weights_digest, name) VALUES ('a', 'b', 'c')",
                    "CREATE TABLE mine (one INTEGER)",
                ):
                    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                        reader.execute(denied)  # type: ignore[call-overload]
        finally:
            owner.execute("DROP OWNED BY advisor_reader")
            owner.execute("DROP ROLE advisor_reader")


def test_a_live_sqlite_file_is_read_by_its_uri(sqlite_url: str) -> None:
    """While somebody writes: what is in the log is seen, and nothing can be written."""
    form = re.search(r"```\nfile:/path/to/advisor\.db(\?\S+)\n```", PAGE)
    assert form is not None
    with Store.open(laid(sqlite_url), write=True) as store:
        study = store.open_study(SOURCE, WORK, NEW, Objective(), Budget(60.0), 0)
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        assert file.with_name(f"{file.name}-wal").stat().st_size > 0
        with sqlite3.connect(f"file:{file}{form[1]}", uri=True) as reader:
            assert reader.execute("SELECT id FROM studies").fetchall() == [(study,)]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("DELETE FROM studies")
        reader.close()
        copy = file.with_name("copy.db")
        with sqlite3.connect(file) as source, sqlite3.connect(copy) as target:
            source.backup(target)  # what the shell's .backup calls
            assert target.execute("SELECT id FROM studies").fetchall() == [(study,)]
        source.close()
        target.close()
