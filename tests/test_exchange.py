"""Export and import: the same lines from both databases, nothing twice, nothing half, and no names of people or hosts.

Run as a script, this file is the process that a test kills: `python test_exchange.py URL FILE` imports the file.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_databases import laid
from sqlalchemy import create_engine, text

from advisor.advice.kept_answers import keep_answers
from advisor.advice.suggest import suggest
from advisor.errors import BadInput, NotMeasured
from advisor.knobs.choice import Reason, Verdict
from advisor.nouns.configuration import Configuration, canonical_json
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.show.support import LLAMA
from advisor.storage.exchange import Imported, bounded_lines, export_lines, import_lines
from advisor.storage.exchange_format import FORMAT
from advisor.storage.exchange_reader import LINE_MOST
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

GOLDEN = Path(__file__).parent / "environments"
H200, LAPTOP = (Environment.of(json.loads((GOLDEN / f"{name}.json").read_text())) for name in ("h200", "cpu"))
WORKLOAD = Forward((512, 128, 256, 64), 2)
#: Made-up homes, which must not leave in an export: a person's and the administrator's.
ALICES, ROOTS = str(Path("/", "home", "alice")), str(Path("/", "root"))
SOURCE = ModelSource(f"{ALICES}/models/llama", "/x", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)
FACTS = LLAMA
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SORTED, FLASH = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(attention="flash_attention_2")
WIDE, NARROW = Objective(quality=Tier.FOUR_BIT, metric="slowest_batch_s"), Objective(quality=Tier.DTYPE)


def measured(number: int, configuration: Configuration, speed: float, **more: Any) -> Trial:
    """Return a trial with every field filled."""
    known: dict[str, Any] = {
        "load_s": 1.5,
        "first_call_s": 0.1 + 0.2,
        "measure_s": 3.0,
        "wall_s": 5.125,
        "peak_bytes": 2**40,
        "weight_bytes": 2**33,
        "reading": {"operators": ["aten::mm"], "attention": {"": "sdpa"}},
        "quality": Quality(0.01, 0.5, 0.002, 0.99, 380, 1.01, reference="fp32, eager", top10=0.9),
        "measurements": (
            Measurement("tokens_per_s", "tokens/s", (speed, speed * 1.01, speed * 0.99), "search", {"load_1min": 0.5}),
            Measurement("slowest_batch_s", "s", (10 / speed, 1 / 3)),
        ),
    }
    return Trial(number, configuration, configuration, Outcome.OK, **{**known, **more})


def begun(store: Store, study: int, configuration: Configuration) -> int:
    """Start a search trial on a host with a name."""
    return store.claim(study, Search(configuration), "alices-desk:1:1")[0]


def filled(store: Store) -> list[int]:
    """Write two studies: the second has a trial of the first, and the first, run again, one of the second's."""
    first = store.open_study(SOURCE, WORKLOAD, H200, WIDE, Budget(60.0, 40), seed=7)
    store.save_facts(SOURCE, FACTS)
    store.save_ceilings(H200, {"matmul_bf16_per_s": 7.005e14, "copy_bytes_per_s": 4e12})
    for configuration, speed in ((DEFAULT, 1000.0), (SORTED, 1500.0)):
        store.finish_trial(first, measured(begun(store, first, configuration), configuration, speed), "alices-desk:1:1")
    reason = f"OSError: {ALICES}/models/llama/x.so, {ROOTS}/y: no such file"
    failed = Trial(begun(store, first, FLASH), FLASH, None, Outcome.LOAD_FAILED, reason)
    store.finish_trial(first, failed, "alices-desk:1:1")
    store.save_comparisons(first, [Comparison(SORTED.key, DEFAULT.key, (1.5, 1.51, 1.49), planned=9)])
    store.save_refusals(
        first,
        [
            Reason(
                "A4", Verdict.WRONG, "masks are ignored", "use sdpa", "packing=padded", "attention=flash_attention_2"
            ),
            Reason("A4", Verdict.INVALID, "not here", "", "", "attention=flash_attention_3"),
        ],
    )
    second = store.open_study(SOURCE, WORKLOAD, H200, NARROW, Budget(None, 3), seed=0)
    taken(store, second, DEFAULT)
    own = DEFAULT.replaced(precision="fp32")
    store.finish_trial(second, measured(begun(store, second, own), own, 400.0), "alices-desk:1:1")
    begun(store, second, SORTED)
    taken(store, first, own)
    store.close_study(first, "done")
    return [first, second]


def taken(store: Store, study: int, configuration: Configuration) -> None:
    """Finish a trial with another study's measurements, as tune does."""
    found = store.reusable(study, configuration)
    assert found is not None
    row, trial = found
    store.finish_trial(
        study, replace(trial, number=begun(store, study, configuration)), "alices-desk:1:1", reused_from_id=row
    )


@pytest.fixture
def origin(database_url: str) -> Iterator[Store]:
    """Open a database with the two studies, of both kinds."""
    with Store.open(database_url, write=True) as store:
        filled(store)
        yield store


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Store]:
    """Open an empty SQLite database."""
    with Store.open(f"sqlite:///{tmp_path}/elsewhere.db", write=True) as store:
        yield store


def objects(lines: list[str], name: str) -> list[dict[str, Any]]:
    """Return the lines of one kind of object."""
    return [values for line in lines if (values := json.loads(line)).get("object") == name]


def changed(line: str, **values: Any) -> str:
    """Return a line with some columns changed."""
    return canonical_json({**json.loads(line), **values})


def unlinked(line: str) -> str:
    """Return a line without the trial that its trial's measurements come from."""
    return changed(line, reused_from=None)


def place(lines: list[str], name: str) -> int:
    """Return the index of the first line of a kind of object."""
    return next(index for index, line in enumerate(lines) if json.loads(line).get("object") == name)


# --------------------------------------------------------------------------------------------------------- there and back


def test_lines_are_the_same_after_a_round_trip(sqlite_url: str, postgres_url: str, elsewhere: Store) -> None:
    """What went from SQLite to PostgreSQL and on to SQLite is exported in the same lines everywhere."""
    with Store.open(sqlite_url, write=True) as first, Store.open(postgres_url, write=True) as second:
        filled(first)
        lines = list(export_lines(first))
        import_lines(second, lines)
        assert list(export_lines(second)) == lines
        import_lines(elsewhere, export_lines(second))
        assert list(export_lines(elsewhere)) == lines


def test_nouns_are_the_same_elsewhere(origin: Store, elsewhere: Store) -> None:
    """Studies, trials with readings and device states, comparisons, refusals and ceilings arrive as they are."""
    import_lines(elsewhere, export_lines(origin))

    pairs = list(zip(origin.studies(), elsewhere.studies(), strict=True))
    assert len(pairs) == 2
    for here, there in pairs:
        same = {"id": here.id, "model_name": here.model_name, "state": here.state}
        assert replace(there, **same) == here
        trials = origin.trials(here.id, full=True)
        public = [replace(t, reason=t.reason.replace(ALICES, "~").replace(ROOTS, "~")) for t in trials]
        assert elsewhere.trials(there.id, full=True) == public
        assert elsewhere.comparisons(there.id) == origin.comparisons(here.id)
        assert elsewhere.refusals(there.id) == origin.refusals(here.id)
    assert elsewhere.ceilings(H200.key) == origin.ceilings(H200.key)
    assert origin.comparisons(pairs[1][0].id)[0].verdict == "faster"


def test_views_say_the_same_elsewhere(sqlite_url: str, postgres_url: str) -> None:
    """Medians, intervals, verdicts and reuse, which are computed again, are what they were."""
    columns = "number, tokens_per_s, tokens_per_s_low, tokens_per_s_high, slowest_batch_s, top10, reused"
    queries = [
        f"SELECT {columns} FROM v_trials ORDER BY study, number",
        "SELECT configuration, ratio, low, high, verdict, blocks FROM v_recommendations ORDER BY study",
    ]
    with Store.open(sqlite_url, write=True) as here, Store.open(postgres_url, write=True) as there:
        filled(here)
        keep_answers(here)
        import_lines(there, export_lines(here))
        keep_answers(there)
    for each in queries:
        first, second = (_rows(url, each) for url in (sqlite_url, postgres_url))
        assert first == second
        assert first


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def test_importing_twice_adds_nothing(origin: Store, elsewhere: Store) -> None:
    """The second import finds everything known, and so does an import into the database that was exported."""
    lines = list(export_lines(origin))
    all_of_it = Counter(
        environments=1, ceilings=1, models=1, workloads=1, studies=2, trials=7, comparisons=1, refusals=2
    )

    assert import_lines(elsewhere, lines) == Imported(all_of_it, Counter())
    assert import_lines(elsewhere, lines) == Imported(Counter(), all_of_it)
    assert import_lines(origin, lines) == Imported(Counter(), all_of_it)
    assert list(export_lines(elsewhere)) == list(export_lines(origin)) == lines


def test_a_study_that_is_here_keeps_its_rows(origin: Store, elsewhere: Store) -> None:
    """Of a study that was measured here too, nothing changes; the other one arrives, and its link is not misapplied."""
    study = elsewhere.open_study(SOURCE, WORKLOAD, H200, WIDE, Budget(1.0), seed=1)
    elsewhere.save_ceilings(H200, {"copy_gb_per_s": 1.0})
    for configuration in (FLASH, SORTED, DEFAULT, FLASH):
        elsewhere.finish_trial(
            study, measured(begun(elsewhere, study, configuration), configuration, 1.0), "alices-desk:1:1"
        )
    before = elsewhere.trials(study, full=True)

    found = import_lines(elsewhere, export_lines(origin))

    assert (found.new["studies"], found.known["studies"]) == (1, 1)
    assert (found.new["trials"], found.known["trials"]) == (3, 4)
    assert elsewhere.trials(study, full=True) == before
    assert elsewhere.study(study).state == "running"
    assert elsewhere.comparisons(study) == elsewhere.refusals(study) == []
    assert elsewhere.ceilings(H200.key) == {"copy_gb_per_s": 1.0}
    assert {row["reused_from"] for row in objects(list(export_lines(elsewhere, [study])), "trial")} == {None}
    assert elsewhere.study(study).facts == FACTS  # which were not known here


def test_chosen_studies_bring_those_they_reuse(store: Store) -> None:
    """A study is exported with the ones whose trials it reuses, an unrelated one is not, and an unknown one is told."""
    first, second = filled(store)
    other = store.open_study(SOURCE, Forward((8,), 1), H200, WIDE, Budget(1.0), seed=0)

    assert len(objects(list(export_lines(store, [second])), "study")) == 2
    assert list(export_lines(store, [first])) == list(export_lines(store, [second, first]))
    (alone,) = objects(list(export_lines(store, [other])), "study")
    assert alone["trials"] == 0
    assert len(objects(list(export_lines(store)), "study")) == 3
    lines = export_lines(store, [first, 99])
    with pytest.raises(NotMeasured, match="there is no study 99"):
        next(lines)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        yield opened


def test_links_are_made_by_the_next_import(store: Store, elsewhere: Store) -> None:
    """Where an import ended between two studies that reuse each other's trials, the next one completes them."""
    filled(store)
    lines = list(export_lines(store))
    second = [index for index, line in enumerate(lines) if json.loads(line).get("object") == "study"][1]

    import_lines(elsewhere, lines[:second])
    assert list(export_lines(elsewhere)) != lines[:second]
    import_lines(elsewhere, lines)

    assert list(export_lines(elsewhere)) == lines


def test_a_trial_that_ran_is_abandoned_elsewhere(origin: Store, elsewhere: Store) -> None:
    """A trial that was running when it was exported belongs to nobody: whoever goes on with the study can claim it."""
    import_lines(elsewhere, export_lines(origin))
    (study,) = (record.id for record in elsewhere.studies() if record.objective == NARROW)

    assert elsewhere.study(study).state == "interrupted"
    (left,) = (trial for trial in elsewhere.trials(study) if trial.outcome is Outcome.RUNNING)
    assert left.requested == SORTED
    assert elsewhere.claim(study, Search(SORTED, left.number), "host:2:1") == (left.number,)


def test_a_friends_rows_answer(origin: Store, database_url: str, elsewhere: Store) -> None:
    """What somebody measured on an H200 is what suggest says on a laptop, from either database."""
    import_lines(elsewhere, export_lines(origin))
    for store in (origin, elsewhere):
        found = suggest(store, SOURCE, WORKLOAD, WIDE, here=LAPTOP, on="H200")
        assert (found.configuration, found.verdict) == (SORTED, "faster")
        assert found.facts == FACTS
        assert [trial.requested for trial in found.failures] == [FLASH]
        assert len(found.refusals) == 2


# ------------------------------------------------------------------------------------------------------------ who and where


def test_nobody_is_named(origin: Store) -> None:
    """Neither the owner's host nor a home directory nor where a model lies is exported; what failed still is."""
    text_of_all = "\n".join(export_lines(origin))

    for word in ("alice", ALICES, ROOTS, "alices-desk", "owner", "lease"):
        assert word not in text_of_all
    assert "OSError: ~/models/llama/x.so, ~/y: no such file" in text_of_all
    assert objects(text_of_all.split("\n"), "model")[0]["name"] == "llama"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("./here/m", "m"),
        ("~/m/", "m"),
        ("a/b/c.json", "c.json"),
        ("C:\\models\\m", "m"),
        ("/m", "m"),
    ],
)
def test_of_a_path_only_its_end_is_exported(store: Store, name: str, public: str) -> None:
    """A name on the Hub stays, a path loses its directories."""
    store.open_study(replace(SOURCE, name=name), WORKLOAD, H200, WIDE, Budget(1.0), seed=0)
    assert objects(list(export_lines(store)), "model")[0]["name"] == public


# ---------------------------------------------------------------------------------------------------------------- damage


def damages(lines: list[str]) -> dict[str, tuple[int, str]]:
    """Return what can be wrong with a line: its index and what it was changed to."""
    at = {
        name: place(lines, name)
        for name in ("environment", "ceilings", "model", "workload", "study", "trial", "comparison", "refusal")
    }
    trial, study = json.loads(lines[at["trial"]]), json.loads(lines[at["study"]])
    sample = trial["measurements"][0]
    wrong = {
        "cut": ("trial", lines[at["trial"]][:-20]),
        "no object": ("trial", "[1, 2]"),
        "unknown object": ("model", changed(lines[at["model"]], object="spell")),
        "object in an object": ("trial", changed(lines[at["trial"]], object="measurement")),
        "column missing": ("workload", canonical_json({"object": "workload", "key": "x"})),
        "column too many": ("trial", changed(lines[at["trial"]], owner="me")),
        "wrong kind": ("trial", changed(lines[at["trial"]], load_s="1.5")),
        "not finite": ("trial", lines[at["trial"]].replace('"load_s":1.5', '"load_s":1e999')),
        "no number": ("trial", lines[at["trial"]].replace('"load_s":1.5', '"load_s":NaN')),
        "too large": ("trial", changed(lines[at["trial"]], number=2**31)),
        "far too large": ("trial", changed(lines[at["trial"]], peak_bytes=2**63)),
        "half a character": ("trial", lines[at["trial"]].replace("ran", "\\ud800").replace("aten::mm", "\\ud800")),
        "nul": ("refusal", changed(lines[at["refusal"]], subject="a\0b")),
        "outcome": ("trial", changed(lines[at["trial"]], outcome="won")),
        "choice": ("trial", changed(lines[at["trial"]], requested={"attention": 1})),
        "quality": ("trial", changed(lines[at["trial"]], quality={**trial["quality"], "rms": "low"})),
        "half a quality": ("trial", changed(lines[at["trial"]], quality={"rms": 1.0})),
        "no samples": ("trial", changed(lines[at["trial"]], measurements=[{**sample, "samples": []}])),
        "wrong samples": ("trial", changed(lines[at["trial"]], measurements=[{**sample, "samples": ["1"]}])),
        "metric twice": ("trial", changed(lines[at["trial"]], measurements=[sample, sample])),
        "trial twice": ("trial", lines[at["trial"] + 1]),
        "link": ("trial", changed(lines[at["trial"]], reused_from=[1, 1])),
        "another study's": ("trial", changed(lines[at["trial"]], study="0" * 16)),
        "naive moment": ("study", changed(lines[at["study"]], started_at="2026-01-01T00:00:00")),
        "no moment": ("study", changed(lines[at["study"]], started_at="yesterday")),
        "early moment": ("study", changed(lines[at["study"]], started_at="0001-01-01T00:00:00+14:00")),
        "state": ("study", changed(lines[at["study"]], state="failed")),
        "seed": ("study", changed(lines[at["study"]], seed=1.5)),
        "study's key": ("study", changed(lines[at["study"]], key="0" * 16)),
        "objective": ("study", changed(lines[at["study"]], objective={**study["objective"], "metric": "beauty"})),
        "objective's key": ("study", changed(lines[at["study"]], objective={**study["objective"], "max_latency_s": 1})),
        "environment's key": ("environment", lines[at["environment"]].replace("H200", "H201")),
        "workload's key": ("workload", lines[at["workload"]].replace("512", "513")),
        "missing model": ("study", changed(lines[at["study"]], weights_digest="d2")),
        "missing environment": ("study", changed(lines[at["study"]], environment="0" * 16)),
        "ratio": ("comparison", changed(lines[at["comparison"]], block_ratios=[0.0])),
        "no plan": ("comparison", changed(lines[at["comparison"]], planned=0)),
        "half a plan": ("comparison", changed(lines[at["comparison"]], planned=4.5)),
        "no ratio": ("comparison", changed(lines[at["comparison"]], block_ratios=["1"])),
        "verdict": ("refusal", changed(lines[at["refusal"]], verdict="NO")),
        "refusal twice": ("refusal", lines[at["refusal"] + 1]),
        "deep": ("ceilings", '{"object":' + "[" * 100_000),
    }
    return {name: (at[thing], line) for name, (thing, line) in wrong.items()}


def test_a_damaged_line_is_named_and_nothing_is_half_written(store: Store, elsewhere: Store) -> None:
    """Whatever is wrong with a line of a study, its number is told and nothing of the study is stored."""
    filled(store)
    lines = list(export_lines(store))
    for name, (index, line) in damages(lines).items():
        assert line != lines[index], name
        damaged = [*lines[:index], line, *lines[index + 1 :]]
        number = index + 1 + (name in ("trial twice", "refusal twice"))  # where the second one is
        with pytest.raises(BadInput, match=rf"^line {number}: ") as raised:
            import_lines(elsewhere, damaged)
        assert "\n" not in str(raised.value), name
        assert list(elsewhere.studies()) == [], name
        assert list(export_lines(elsewhere)) == lines[:1], name
    import_lines(elsewhere, lines)
    assert list(export_lines(elsewhere)) == lines


def test_a_study_before_the_damage_is_kept(origin: Store, elsewhere: Store) -> None:
    """Studies are stored one by one: what came whole before a damaged line is there, what it belongs to is not."""
    lines = list(export_lines(origin))
    with pytest.raises(BadInput, match=rf"^line {len(lines)}: "):
        import_lines(elsewhere, [*lines[:-1], lines[-1][:-1]])
    (record,) = elsewhere.studies()
    assert record.objective == WIDE
    assert len(elsewhere.trials(record.id)) == 4


def test_lines_that_end_early_are_told(store: Store, elsewhere: Store) -> None:
    """Wherever the lines end inside a study, what it lacks is told, and it is not stored."""
    filled(store)
    lines = list(export_lines(store))
    first = place(lines, "study")
    second = next(index for index in range(first + 1, len(lines)) if json.loads(lines[index])["object"] == "study")
    for end in range(first + 1, second):
        with pytest.raises(BadInput, match=r"the study before it lacks \d"):
            import_lines(elsewhere, lines[:end])
        assert elsewhere.studies() == []
    with pytest.raises(BadInput, match="lacks 4 trials, 1 comparisons, 2 refusals"):
        import_lines(elsewhere, [*lines[: first + 1], *lines[second:]])
    import_lines(elsewhere, lines[:second])
    assert len(elsewhere.studies()) == 1


def test_a_knob_of_a_later_version_can_arrive(store: Store, elsewhere: Store) -> None:
    """A study whose configurations have a knob that this version does not know is taken as it is."""
    study = filled(store)[0]
    later = Configuration.of({**store.trials(study)[0].requested, "a_later_knob": "x"})
    store.finish_trial(
        study,
        replace(store.trials(study, full=True)[0], number=begun(store, study, later), requested=later, effective=later),
        "alices-desk:1:1",
    )
    lines = list(export_lines(store))

    import_lines(elsewhere, lines)
    assert list(export_lines(elsewhere)) == lines


def test_a_comparison_from_before_there_were_plans_can_arrive(store: Store, elsewhere: Store) -> None:
    """An export of an older advisor says nothing of planned blocks: there was one look. Neither does ours of such rows."""
    study = filled(store)[0]
    (sequential,) = store.comparisons(study)
    assert [each["planned"] for each in objects(list(export_lines(store)), "comparison")] == [9]
    store.save_comparisons(study, [replace(sequential, planned=None)])
    lines = list(export_lines(store))

    assert ["planned" in each for each in objects(lines, "comparison")] == [False]
    import_lines(elsewhere, lines)
    (arrived,) = [each for record in elsewhere.studies() for each in elsewhere.comparisons(record.id)]
    assert (arrived.planned, arrived.interval) == (None, store.comparisons(study)[0].interval)
    assert list(export_lines(elsewhere)) == lines


def test_what_is_no_export_is_told(elsewhere: Store, tmp_path: Path) -> None:
    """Nothing, another file, bytes that are no text and another format are bad input, in one line."""
    no_text = tmp_path / "no-text"
    no_text.write_bytes(b'{"advisor": "1", "format": 1}\n\xff\n')
    header = canonical_json({"advisor": "9.9", "format": FORMAT + 1})
    for lines, said in (
        ([], "line 1: this is no export of advisor"),
        (["{}"], "line 1: this is no export of advisor"),
        (["hello"], "line 1: it is no whole line of JSON"),
        ([header], "line 1: advisor 9.9 wrote this in format 3, which is not 2"),
    ):
        with pytest.raises(BadInput, match=said):
            import_lines(elsewhere, lines)
    with no_text.open(encoding="utf-8") as file, pytest.raises(BadInput, match=r"^line \d: .*utf-8"):
        import_lines(elsewhere, file)
    assert import_lines(elsewhere, [canonical_json({"advisor": "0", "format": FORMAT})]) == Imported(
        Counter(), Counter()
    )


def test_a_killed_import_leaves_whole_studies(store: Store, database_url: str, tmp_path: Path) -> None:
    """After kill -9 amid an import every study that is there is whole, and importing again completes them all."""
    study = filled(store)[0]
    trials = store.trials(study, full=True)[:2]
    for length in range(1, 16):
        another = store.open_study(SOURCE, Forward((length,), 1), H200, WIDE, Budget(1.0), seed=0)
        for trial in trials:
            store.finish_trial(
                another, replace(trial, number=begun(store, another, trial.requested)), "alices-desk:1:1"
            )
    lines, target = list(export_lines(store)), database_url.replace("advisor.db", "target.db")
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    Store.open(target, write=True).close()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    importing = subprocess.Popen([sys.executable, __file__, target, str(tmp_path / "lines")], env=environment)
    try:
        with Store.open(target, write=False) as reader:
            while importing.poll() is None and len(reader.studies()) < 3:
                time.sleep(0.001)
    finally:
        importing.kill()
        importing.wait()

    with Store.open(target, write=True) as survivor:
        found, left = len(survivor.studies()), list(export_lines(survivor))
        assert 3 <= found < 17
        assert {unlinked(line) for line in left} < {unlinked(line) for line in lines}  # links come last
        assert import_lines(survivor, lines).new["studies"] == 17 - found
        assert list(export_lines(survivor)) == lines


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_never_breaks_a_database(store: Store, tmp_path: Path, data: st.DataObject) -> None:
    """A line with a character changed is refused with its number, or what it says can be read and exported again."""
    if not store.studies():
        filled(store)
    lines = list(export_lines(store))
    index = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[index]) - 1))
    with_what = data.draw(st.sampled_from(["", "0", "9", "-", "x", '"', "]", "}", ",", "e", "null"]))
    line = lines[index][:at] + with_what + lines[index][at + 1 :]
    url = f"sqlite:///{tmp_path}/damaged.db"
    with Store.open(laid(url), write=True) as damaged:
        try:
            import_lines(damaged, [*lines[:index], line, *lines[index + 1 :]])
        except BadInput as error:
            told = str(error)
        else:
            told = "line"
        again = list(export_lines(damaged))
        for record in damaged.studies():
            damaged.trials(record.id, full=True)
            damaged.comparisons(record.id)
            damaged.refusals(record.id)
    assert told.startswith("line")
    for view in ("v_trials", "v_recommendations", "v_refusals"):
        _rows(url, f"SELECT * FROM {view}")
    assert import_lines(store, again).new.keys() <= {
        "studies",
        "trials",
        "comparisons",
        "refusals",
        "models",
        "workloads",
        "environments",
        "ceilings",
    }
    (tmp_path / "damaged.db").unlink()


if __name__ == "__main__":
    with Store.open(sys.argv[1], write=True) as importer, Path(sys.argv[2]).open(encoding="utf-8") as file:
        import_lines(importer, file)


# ---------------------------------------------------------------------------------------------------------------- bounds


def _changed(lines: list[str], name: str, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """Return the lines with the first object of a name changed."""
    made = [json.loads(line) for line in lines]
    change(next(each for each in made if each.get("object") == name))
    return [json.dumps(each) for each in made]


_BOUNDS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "samples": ("trial", lambda t: t["measurements"][0].update(samples=[1.0] * 100_001), "100,001 samples"),
    "trials": ("study", lambda s: s.update(trials=100_001), "100,001 trials"),
    "texts": ("trial", lambda t: t.update(reason="x" * 20_001), "reason of a trial is no text"),
    "facts": ("model", lambda m: m["facts"].update(position_offset="0)"), "position_offset can't be '0)'"),
    "no numbers": ("ceilings", lambda c: c["payload"].update(copy_bytes_per_s=True), "copy_bytes_per_s can't be True"),
    "readings": ("trial", lambda t: t["reading"].update(dtypes=["float32"]), "dtypes can't be ['float32']"),
}


@pytest.mark.parametrize("bound", _BOUNDS)
def test_what_an_import_takes_is_bounded(sqlite_url: str, tmp_path: Path, bound: str) -> None:
    """More than any tune writes, or what could not be read again, is refused in one line, and nothing of it is stored."""
    name, change, words = _BOUNDS[bound]
    with Store.open(sqlite_url, write=True) as here:
        filled(here)
        lines = list(export_lines(here))
    with Store.open(f"sqlite:///{tmp_path}/there.db", write=True) as there:
        with pytest.raises(BadInput, match=f"line [0-9]+: .*{re.escape(words)}"):
            import_lines(there, _changed(lines, name, change))
        assert there.studies() == []


def test_a_line_without_an_end_is_not_read_whole() -> None:
    """Of a line that is longer than is taken only that much is read, and the rest of it is no line of its own."""
    stream = io.StringIO("x" * (LINE_MOST + 10))
    first = next(bounded_lines(stream))
    assert len(first) == LINE_MOST + 1
    with (
        Store.open("sqlite://", write=True) as store,
        pytest.raises(BadInput, match="line 1: it is longer than the 33,554,432"),
    ):
        import_lines(store, [first])
