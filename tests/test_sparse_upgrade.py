"""Databases and exports of before configurations were sparse: revision 0005 spells them anew, and all else says what it said."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert, inspect, text

import advisor as package
from advisor.errors import BadInput
from advisor.knobs import KNOBS
from advisor.nouns.configuration import IMPLIED, Configuration, canonical_json, key_of
from advisor.storage import tables
from advisor.storage.database import upgrade
from advisor.storage.exchange import export_lines, import_lines
from advisor.storage.place import with_driver
from advisor.storage.store import Store

ROOT = Path(package.__file__).parent.parent
DUMPS = [dump for dump in sorted((Path(__file__).parent / "databases").glob("*.sql")) if dump.stem < "0005"]

#: A configuration as versions of before spelled it: every knob has its choice.
FULL = {"attention": "sdpa", "packing": "padded", "precision": "bf16", "quantization": "none"}
#: Knobs that came after, with what they imply.
LATER = {"kernels": "none", "compilation": "off", "autocast": "off", "micro_batch": "at-once", "checkpointing": "off"}
SPARSE = {"attention": "sdpa", "precision": "bf16"}


def migrate(url: str, revision: str, *, down: bool = False) -> None:
    """Take a database to a revision, as Alembic's own command does."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)
    engine.dispose()


@cache
def as_0004() -> bytes:
    """Return the file of an empty SQLite database of revision 0004."""
    with tempfile.TemporaryDirectory() as folder:
        migrate(f"sqlite:///{folder}/empty.db", "0004")
        return (Path(folder) / "empty.db").read_bytes()


def rows(url: str, query: str, **values: Any) -> list[dict[str, Any]]:
    """Return what a query gives."""
    engine = create_engine(with_driver(url))
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(text(query), values).mappings()]
    engine.dispose()
    return found


def names_of_tables(url: str) -> list[str]:
    """Return the names of all tables."""
    engine = create_engine(with_driver(url))
    found = inspect(engine).get_table_names()
    engine.dispose()
    return found


def put(url: str, table: str, *values: dict[str, Any]) -> None:
    """Insert rows, with their ids."""
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        connection.execute(insert(tables.METADATA.tables[table]), list(values))
    engine.dispose()


def undumped(dump: Path, folder: Path, server: str | None) -> str:
    """Make a database of a dump, on SQLite or as a copy at the same revision on PostgreSQL; return its URL."""
    with sqlite3.connect(folder / "old.db") as connection:
        connection.executescript(dump.read_text())
    connection.close()
    url = f"sqlite:///{folder}/old.db"
    if server is None:
        return url
    migrate(server, dump.stem)
    engine, other = create_engine(url), create_engine(with_driver(server))
    with engine.connect() as old, other.begin() as new:
        for table in tables.METADATA.sorted_tables:
            if table.name not in inspect(engine).get_table_names():
                continue
            known = {column["name"] for column in inspect(engine).get_columns(table.name)}
            columns = [column for column in table.columns if column.name in known]
            found = [dict(row) for row in old.execute(table.select().with_only_columns(*columns)).mappings()]
            if found:
                new.execute(insert(table), found)
    engine.dispose()
    other.dispose()
    return server


def configuration_row(number: int, choices: dict[str, str] | str) -> dict[str, Any]:
    """Return a row of the table as the versions of before wrote it."""
    payload = choices if isinstance(choices, str) else canonical_json(choices)
    return {"id": number, "key": key_of(choices), "payload": payload}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("dump", DUMPS, ids=lambda path: path.stem)
def test_views_say_what_they_said(dump: Path, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """From every schema there was, v_trials and v_recommendations have the columns they had, in their order, and their words.

    But for a label, which lost what is implied, and the key of a configuration, which is that of its one form.
    """
    url = undumped(dump, tmp_path, str(request.getfixturevalue("postgres_url")) if kind == "postgresql" else None)
    labels = ("requested", "effective", "configuration")
    queries = ["SELECT * FROM v_trials ORDER BY study, number", "SELECT * FROM v_recommendations ORDER BY study"]
    before = [rows(url, query) for query in queries]
    payloads = rows(url, "SELECT id, payload FROM configurations ORDER BY id")
    upgrade(url)
    after = [rows(url, query) for query in queries]

    assert len(before[0]) == 3
    for were, are in zip(before[0], after[0], strict=True):
        assert list(are)[: len(were)] == list(were)
        assert {**were, **dict.fromkeys(labels)} == {**{name: are[name] for name in were}, **dict.fromkeys(labels)}
        said = set(str(were["requested"]).split(" · "))
        assert set(str(are["requested"]).split(" · ")) == said - {"none", "padded"}
    if dump.stem >= "0003":
        silent = ("configuration", "configuration_key", "stale", "method")
        for were, are in zip(before[1], after[1], strict=True):
            assert list(are)[: len(were)] == list(were)
            told = {name: are[name] for name in were}
            assert {**were, **dict.fromkeys(silent)} == {**told, **dict.fromkeys(silent)}
    for row, old in zip(rows(url, "SELECT * FROM configurations ORDER BY id"), payloads, strict=True):
        configuration = Configuration.of(json.loads(old["payload"]))
        assert row == {"id": old["id"], "key": configuration.key, "payload": canonical_json(dict(configuration))}


def filled(url: str) -> None:
    """Take a database to 0004 and write a study of before it, with configurations that are one."""
    with_packing = {**SPARSE, "packing": "packed"}
    migrate(url, "0004")
    moment = "2026-11-01 00:00:00+00:00"
    execute(
        url,
        f"""INSERT INTO environments VALUES (1, 'e', '{{"device_name":"x"}}', '{moment}')""",
        "INSERT INTO models VALUES (1, 'a', 'd', 'm', NULL)",
        """INSERT INTO workloads VALUES (1, 'w', 'forward', 'a', '{"batch":2,"lengths":[8]}')""",
    )
    put(
        url,
        "configurations",
        configuration_row(1, FULL),
        configuration_row(2, {**SPARSE, "packing": "padded"}),
        configuration_row(3, SPARSE),
        configuration_row(4, {**FULL, "packing": "packed"}),
        configuration_row(5, with_packing),
        configuration_row(6, "{damaged"),
        configuration_row(7, '{"attention":1}'),
        configuration_row(8, {**FULL, "stranger": "x"}),
        configuration_row(9, '{"attention":"\\ud800","packing":"padded"}'),
        *(configuration_row(100 + n, {**FULL, "batch": str(n)}) for n in range(2500)),
    )
    promising = [{"configuration": FULL, "ratio": 1.5, "seconds": 2.0}]
    end = {"stop": "budget", "left": 1, "chance": 0.5, "promising": promising, "tried": 3}
    budgets = [{"seconds": 60.0, "trials": None, "end": end}, {"seconds": 60.0, "end": "odd"}]
    for number, budget in enumerate(budgets, 1):
        execute(
            url,
            "INSERT INTO studies (id, workload_id, environment_id, model_id, objective, objective_key, budget, seed, "
            f"state, started_at) VALUES ({number}, 1, 1, 1, '{{}}', 'o{number}', '{canonical_json(budget)}', 0, "
            f"'done', '{moment}')",
        )
    for number, requested in enumerate((1, 2, 3, 4, 5, 8)):
        execute(
            url,
            "INSERT INTO trials (id, study_id, number, phase, requested_id, effective_id, outcome, reason, attempts, "
            f"started_at, advisor_version) VALUES ({number + 1}, 1, {number}, 'search', {requested}, {requested}, "
            f"'ok', '', 1, '{moment}', '1')",
        )
    pairs = [(1, 4, 1, 1.1, 3), (2, 5, 1, 1.2, 5), (3, 4, 3, 1.3, 4), (4, 1, 1, 1.0, 6)]
    for number, candidate, baseline, ratio, day in pairs:
        execute(
            url,
            "INSERT INTO comparisons (id, study_id, candidate_id, baseline_id, ratio, low, high, block_ratios, blocks, "
            f"verdict, made_at) VALUES ({number}, 1, {candidate}, {baseline}, {ratio}, 1, 1, '[1.0]', 1, 'tie', "
            f"'2026-11-0{day} 00:00:00+00:00')",
        )
    execute(
        url,
        "INSERT INTO recommendations (id, study_id, configuration_id, verdict, blocks, tried, why, made_at, method) "
        f"VALUES (1, 1, 5, 'faster', 3, 3, '[]', '{moment}', 'x')",
    )


def execute(url: str, *statements: str) -> None:
    """Run statements as they are."""
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_rows_that_are_one_become_one(database_url: str) -> None:
    """What came to the same is one row, everything points to it, of comparisons of the same pair the newest is left, and
    none of one with itself.

    Thousands of others are spelled anew in batches, unknown knobs stay, and what is damaged is left as it is.
    """
    filled(database_url)
    upgrade(database_url)
    kept = {row["payload"]: row for row in rows(database_url, "SELECT * FROM configurations")}
    one, packed = (kept[canonical_json(choices)] for choices in (SPARSE, {**SPARSE, "packing": "packed"}))
    trials = rows(database_url, "SELECT requested_id, effective_id FROM trials ORDER BY number")
    compared = rows(database_url, "SELECT id, candidate_id, baseline_id, ratio FROM comparisons ORDER BY id")

    assert len(kept) == 2 + 4 + 2500
    assert all(row["key"] == key_of(json.loads(payload)) for payload, row in kept.items() if row["id"] not in (6, 7))
    assert (kept["{damaged"]["id"], kept['{"attention":1}']["id"]) == (6, 7)
    assert kept[canonical_json({**SPARSE, "stranger": "x"})]["id"] == 8
    assert [row["requested_id"] for row in trials] == [one["id"]] * 3 + [packed["id"]] * 2 + [8]
    assert [row["effective_id"] for row in trials] == [row["requested_id"] for row in trials]
    assert compared == [{"id": 2, "candidate_id": packed["id"], "baseline_id": one["id"], "ratio": 1.2}]
    assert kept['{"attention":"?"}']["id"] == 9
    assert rows(database_url, "SELECT configuration_id FROM recommendations") == [{"configuration_id": packed["id"]}]
    budgets = [json.loads(row["budget"]) for row in rows(database_url, "SELECT budget FROM studies ORDER BY id")]
    assert budgets[0]["end"]["promising"][0]["configuration"] == SPARSE
    assert budgets[1]["end"] == "odd"
    assert [row["name"] for row in rows(database_url, "SELECT name FROM knobs ORDER BY place")] == list(KNOBS)
    assert {row["name"]: row["implied"] for row in rows(database_url, "SELECT name, implied FROM knobs")} == IMPLIED


def test_it_can_be_undone(database_url: str) -> None:
    """A step down spells out what is implied, with the keys of before, and has the views of before."""
    filled(database_url)
    execute(
        database_url,
        "DELETE FROM comparisons",
        "DELETE FROM recommendations",
        "DELETE FROM trials",
        "DELETE FROM configurations WHERE id IN (2, 3, 5)",
    )
    before = rows(database_url, "SELECT * FROM configurations ORDER BY id")
    upgrade(database_url)
    assert rows(database_url, "SELECT * FROM configurations ORDER BY id") != before
    migrate(database_url, "0004", down=True)
    after = rows(database_url, "SELECT * FROM configurations ORDER BY id")

    assert [row for row in after if row["id"] not in (7, 9)] == [row for row in before if row["id"] not in (7, 9)]
    assert rows(database_url, "SELECT * FROM v_trials") == []
    assert "knobs" not in names_of_tables(database_url)
    upgrade(database_url)
    assert "knobs" in names_of_tables(database_url)


def as_before(line: str) -> str:
    """Return a line of an export as the format of before spelled it."""
    values = json.loads(line)
    if "format" in values:
        return canonical_json({"advisor": values["advisor"], "format": 1})
    implied = {knob: choice for knob, choice in IMPLIED.items() if choice}
    for name in ("requested", "effective", "candidate", "baseline"):
        if isinstance(values.get(name), dict):
            values[name] = {**implied, **values[name]}
    for each in (values.get("budget") or {}).get("end", {}).get("promising", ()):
        each["configuration"] = {**implied, **each["configuration"]}
    return canonical_json(values)


def test_an_export_of_before_is_read(tmp_path: Path, database_url: str) -> None:
    """What spelled out everything arrives in the one form: exported again, it is what the upgraded database exports."""
    old = undumped(DUMPS[-1], tmp_path, None)
    execute(
        old,
        "UPDATE studies SET budget = '"
        + canonical_json(
            {
                "seconds": 60.0,
                "trials": None,
                "exhaustive": False,
                "blocks": 9,
                "end": {
                    "stop": "budget",
                    "left": 1,
                    "chance": 0.5,
                    "tried": 2,
                    "promising": [{"configuration": FULL, "ratio": 1.5, "seconds": 2.0}],
                },
            }
        )
        + "'",
    )
    upgrade(old)
    with Store.open(old, write=True) as store, Store.open(database_url, write=True) as arrived:
        lines = list(export_lines(store))
        spelled = [as_before(line) for line in lines]
        assert any('"packing":"padded"' in line for line in spelled)
        assert not any('"packing":"padded"' in line or '"quantization":"none"' in line for line in lines[1:])
        import_lines(arrived, spelled)
        assert list(export_lines(arrived)) == lines
        assert import_lines(arrived, lines).new.total() == 0


def test_comparisons_that_become_one_do_not_refuse_an_export(tmp_path: Path, database_url: str) -> None:
    """Of two that an export of before has of the same, once spelled out and once not, the newer arrives."""
    old = undumped(DUMPS[-1], tmp_path, None)
    upgrade(old)
    with Store.open(old, write=True) as store:
        lines = [as_before(line) for line in export_lines(store)]
    place, line = next((place, line) for place, line in enumerate(lines) if '"object":"comparison"' in line)
    values = json.loads(line)
    newer = {
        **values,
        "candidate": dict(Configuration.of(values["candidate"])),
        "block_ratios": [2.0, 2.0, 2.0],
        "made_at": "2026-12-31T00:00:00+00:00",
    }
    study = next(number for number, each in enumerate(lines) if '"object":"study"' in each)
    lines[study] = canonical_json({**json.loads(lines[study]), "comparisons": 2})
    lines.insert(place, canonical_json(newer))
    with Store.open(database_url, write=True) as arrived:
        import_lines(arrived, lines)
        (comparison,) = arrived.comparisons(arrived.studies()[0].id)

    assert comparison.block_ratios == (2.0, 2.0, 2.0)


def test_an_export_that_means_another_thing_by_saying_nothing_is_refused(database_url: str) -> None:
    """What a configuration leaves out has to be the same there and here: the first line says what it is there."""
    header = {"advisor": "1", "format": 2}
    with Store.open(database_url, write=True) as store:
        for implied, said in (
            ({"packing": "sorted"}, "a configuration that says nothing of packing has sorted there, and padded here"),
            ({"batch": "1"}, "a configuration that says nothing of batch has 1 there, and nothing here"),
            (["packing"], r"implied can't be \['packing'\]"),
        ):
            with pytest.raises(BadInput, match=f"line 1: {said}"):
                import_lines(store, [canonical_json({**header, "implied": implied})])
        import_lines(store, [canonical_json({**header, "implied": {"a knob of theirs": "x"}})])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    choices=st.dictionaries(
        st.sampled_from([*(k for k in KNOBS if k not in LATER), "stranger"]),
        st.sampled_from(["none", "padded", "x", "packed"]),
    )
)
def test_the_migration_spells_as_the_noun_does(tmp_path: Path, choices: dict[str, str]) -> None:
    """Written out by itself, it gives every configuration the form and the key that it has from then on."""
    url = f"sqlite:///{tmp_path}/one.db"
    (tmp_path / "one.db").write_bytes(as_0004())
    put(url, "configurations", configuration_row(1, choices))
    migrate(url, "0005")
    configuration = Configuration.of(choices)

    assert rows(url, "SELECT key, payload FROM configurations") == [
        {"key": configuration.key, "payload": canonical_json(dict(configuration))}
    ]


def test_choices_are_rows(database_url: str) -> None:
    """v_trial_choices: a row a knob, of what was asked for and of what ran, implied choices and strangers too."""
    filled(database_url)
    upgrade(database_url)
    found = rows(
        database_url, "SELECT * FROM v_trial_choices WHERE study = 1 AND number IN (0, 5) ORDER BY number, knob"
    )
    columns = ["study", "number", "knob", "choice", "requested"]

    assert list(found[0]) == columns
    assert {(row["number"], row["knob"], row["choice"], row["requested"]) for row in found} == {
        (number, knob, choice, requested)
        for number, choices in ((0, {**FULL, **LATER}), (5, {**FULL, **LATER, "stranger": "x"}))
        for knob, choice in choices.items()
        for requested in (0, 1)
    }
    assert len(found) == 2 * (9 + 10)
