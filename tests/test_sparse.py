"""A configuration is sparse: what is implied is left out of JSON, key, label and equality, and a new knob changes no answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_databases import laid
from sqlalchemy import create_engine, text

from advisor.advice.kept_answers import keep_answer
from advisor.advice.labels import choices_in
from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import suggest
from advisor.errors import BadInput, StoreError
from advisor.knobs import (
    KNOBS,
    Choice,
    Knob,
    advised,
    choices_of,
    is_whole,
    register_knob,
    traits_of,
    unknown,
    weights_of,
)
from advisor.measure.gate import known_figures, layout_request
from advisor.nouns.answer import Prospect, SearchEnd, Stop
from advisor.nouns.configuration import IMPLIED, Configuration, canonical_json, key_of
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import METRICS
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import GATE_VERSION
from advisor.quality.objections import objections
from advisor.search.search import Knowledge
from advisor.search.space import build_space
from advisor.show.support import LLAMA
from advisor.storage.place import place_of
from advisor.storage.store import Store
from advisor.study.history import trial_payload
from advisor.study.opening import _warm
from advisor.study.tuning import Job
from advisor.workloads.forward import Forward

H200 = Environment.of(json.loads((Path(__file__).parent / "environments" / "h200.json").read_text()))
WORKLOAD, ANY = Forward((512, 128, 256, 64), 2), Objective(quality=Tier.FOUR_BIT)
FACTS = LLAMA
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")
FLASH, EAGER = PACKED.replaced(attention="flash_attention_2"), DEFAULT.replaced(attention="eager")
NF4 = DEFAULT.replaced(quantization="nf4")

#: A configuration as it may be spelled: any knob's choice, or none, where it has an implied one.
SPELLED = st.fixed_dictionaries(
    {name: st.sampled_from(sorted(knob.choices)) for name, knob in KNOBS.items() if not knob.implied},
    optional={name: st.sampled_from(sorted(knob.choices)) for name, knob in KNOBS.items() if knob.implied},
)


def spelled_out(choices: dict[str, str]) -> dict[str, str]:
    """Return the choices with every implied one said."""
    return {**{knob: implied for knob, implied in IMPLIED.items() if implied}, **choices}


def attempt(configuration: Configuration, speed: float) -> Trial:
    """Return a trial, not numbered yet: of this many tokens a second, or failed where there are none."""
    if not speed:
        return Trial(0, configuration, None, Outcome.RUNTIME_ERROR, "it broke")
    samples = tuple(speed * factor for factor in (0.99, 1.01, 1.0, 0.995, 1.005, 1.0))
    quality = Quality(0.01, 0.1, 1e-3, 0.99, 64, 1.001, reference="fp32, eager")
    return Trial(
        0,
        configuration,
        configuration,
        Outcome.OK,
        peak_bytes=10**9,
        quality=quality,
        measurements=(Measurement("tokens_per_s", "tokens/s", samples),),
    )


def studied(
    store: Store,
    attempts: Sequence[Trial],
    ratios: Mapping[Configuration, tuple[float, ...]] | None = None,
    left: Sequence[Configuration] = (),
) -> int:
    """Write a study as tune would: its trials, the default's first, the blocks' ratios over the default, what was left."""
    study = store.open_study(SOURCE, WORKLOAD, H200, ANY, Budget(600.0), 0)
    store.save_facts(SOURCE, FACTS)
    for trial in attempts:
        store_trial(store, study, trial)
    pairs = [Comparison(c.key, attempts[0].ran.key, blocks) for c, blocks in (ratios or {}).items()]
    store.save_comparisons(study, pairs)
    promising = tuple(Prospect(configuration, 1.5, 2.0) for configuration in left)
    store.close_study(study, "done", end=SearchEnd(Stop.EVERYTHING, len(left), 0.0, promising, len(attempts)))
    return study


def store_trial(store: Store, study: int, trial: Trial) -> int:
    """Write one trial, and return its number."""
    numbers = store.claim(study, Search(trial.requested), "a:1:1")
    assert numbers is not None
    store.finish_trial(study, replace(trial, number=numbers[0]), "a:1:1")
    return numbers[0]


def answer(store: Store) -> Recommendation:
    """Ask on the machine that measured."""
    return suggest(store, SOURCE, WORKLOAD, ANY, H200)


@pytest.fixture
def no_op() -> Iterator[Knob]:
    """Register a knob that is about nothing, for a while."""
    choices = {name: Choice("made-up", name, "nothing") for name in ("off", "on")}
    knob = Knob(
        "made-up",
        "nothing",
        reload=False,
        choices=choices,
        default=lambda _: "off",
        effective=lambda _: "off",
        implied="off",
        place=15,
    )
    register_knob(knob)
    yield knob
    forget(knob)


def forget(knob: Knob) -> None:
    """Take a knob away again, as a process has it whose plugin is not named any more."""
    KNOBS.pop(knob.name, None)
    IMPLIED.pop(knob.name, None)


# --------------------------------------------------------------------------------------------------------- the one form


@given(SPELLED)
def test_there_is_one_form(choices: dict[str, str]) -> None:
    """Spelled out or not, it is the same value with the same key, label and JSON, and making it again changes nothing."""
    configuration = Configuration.of(choices)
    full = Configuration.of(spelled_out(choices))

    assert configuration == full
    assert hash(configuration) == hash(full)
    assert (configuration.key, str(configuration)) == (full.key, str(full))
    assert Configuration.of(configuration) == configuration
    assert Configuration.of(json.loads(canonical_json(dict(configuration)))) == configuration
    assert configuration.key == key_of(dict(configuration))
    assert all(IMPLIED[knob] != choice for knob, choice in configuration.items())
    assert dict(configuration.over(KNOBS)) == spelled_out(choices)
    assert {knob: configuration[knob] for knob in KNOBS} == spelled_out(choices)
    assert configuration.replaced(**dict(configuration.over(KNOBS))) == configuration


@given(SPELLED)
def test_its_choices_are_all_there(choices: dict[str, str]) -> None:
    """Whoever asks for choices and traits gets those of what is implied too, in the order of the knobs."""
    configuration = Configuration.of(choices)

    assert [(choice.knob, choice.name) for choice in choices_of(configuration)] == list(configuration.over(KNOBS))
    assert traits_of(configuration) == traits_of(Configuration.of(spelled_out(choices)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(choices=SPELLED)
def test_it_comes_back_from_the_database(sqlite_store: Store, choices: dict[str, str]) -> None:
    """What is stored of it is its one form, whichever way it was spelled, and what is read is the same value."""
    study = studied(sqlite_store, [attempt(DEFAULT, 1000)])
    configuration = Configuration.of(spelled_out(choices))
    number = store_trial(sqlite_store, study, attempt(configuration, 0))

    assert sqlite_store.trial(study, number).requested == configuration


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    """Open an empty store on SQLite."""
    with Store.open(sqlite_url, write=True) as opened:
        yield opened


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(database_url), write=True) as opened:
        yield opened


def test_nobody_can_make_a_full_one() -> None:
    """The constructor itself refuses what is implied: there is no second form by mistake."""
    with pytest.raises(ValueError, match="an implied choice is left out: packing=padded"):
        Configuration((("attention", "sdpa"), ("packing", "padded")))


def test_what_no_knob_implies_is_no_choice() -> None:
    """A knob without an implied choice that says nothing has none: nothing is made up for it."""
    configuration = Configuration.of({"attention": "sdpa"})

    assert "batch" not in configuration
    assert "packing" in configuration
    assert configuration.get("precision") is None
    with pytest.raises(KeyError):
        configuration["precision"]
    assert not is_whole(configuration, WORKLOAD)
    assert not advised(configuration)
    assert advised(DEFAULT)


# ------------------------------------------------------------------------------------------------ a knob that comes later


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """Return what SQL says."""
    engine = create_engine(place_of(url))
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def test_a_new_no_op_knob_changes_no_answer(store: Store, database_url: str, request: pytest.FixtureRequest) -> None:
    """A stored answer stays, and what is found from then on competes with it: a confirmed 3.0 × beats the old 1.8 ×.

    Once it lost: the default of the new rows was another configuration than that of the old ones.
    """
    study = studied(store, [attempt(DEFAULT, 1000), attempt(FLASH, 1800)], {FLASH: (1.80, 1.79, 1.81)})
    keep_answer(store, study)
    queries = [
        "SELECT * FROM v_recommendations",
        "SELECT * FROM v_trials ORDER BY number",
        "SELECT key FROM configurations",
    ]
    told, said = answer(store).payload, [rows(database_url, query) for query in queries]
    knob = request.getfixturevalue("no_op")
    space = build_space(FACTS, WORKLOAD, H200, ANY, 10**12)

    now = answer(store).payload
    assert now["recommendation"]["configuration"] == {**told["recommendation"]["configuration"], knob.name: "off"}
    assert json.loads(json.dumps(now).replace(f', "{knob.name}": "off"', "")) == json.loads(json.dumps(told))
    assert [rows(database_url, query) for query in queries] == said
    assert {c[knob.name] for c in space.admissible} == {"off", "on"}
    best = next(c for c in space.admissible if c == PACKED)
    store_trial(store, study, attempt(best, 3000))
    pairs = [(FLASH, (1.80, 1.79, 1.81)), (best, (3.0, 3.01, 2.99))]
    store.save_comparisons(study, [Comparison(c.key, space.baseline.key, ratios) for c, ratios in pairs])
    found = answer(store)
    assert (found.configuration, found.verdict) == (PACKED, "faster")
    assert found.chosen is not None
    assert found.chosen.ratio == pytest.approx(3.0, abs=0.01)
    assert FLASH in [candidate.configuration for candidate in found.runners_up]


def test_json_that_is_printed_spells_implied_choices_out(store: Store) -> None:
    """Who reads it need not know what a configuration leaves out: wherever one stands, each knob has its choice."""
    trials = [attempt(DEFAULT, 1000), attempt(FLASH, 1800), attempt(SORTED, 0)]
    study = studied(store, trials, {FLASH: (1.80, 1.79, 1.81)})
    payload = answer(store).payload
    row, trial = store.study(study), store.trials(study)[0]

    shown = [
        payload["recommendation"],
        payload["default"],
        *payload["runners_up"],
        *payload["failures"],
        *payload["pareto"],
    ]
    assert payload["failures"]
    for configuration in (each["configuration"] for each in shown):
        assert list(configuration)[:4] == ["attention", "precision", "quantization", "packing"]
        assert configuration["quantization"] == "none"
    assert payload["default"]["configuration"]["packing"] == "padded"
    told = trial_payload(row, trial)
    assert told["requested"] == told["effective"] == DEFAULT.spelled
    assert Configuration.of(DEFAULT.spelled) == DEFAULT


def test_the_search_goes_the_same_way(request: pytest.FixtureRequest) -> None:
    """A knob of which nobody makes use changes no prediction and no proposal, whether anything failed or not."""
    costs = {DEFAULT: 4.0, FLASH: 1.0, PACKED: 2.0, SORTED: 3.0, EAGER: 5.0, NF4: 2.5}
    trials = [
        replace(attempt(c, speed), number=n, wall_s=3.0)
        for n, (c, speed) in enumerate([(DEFAULT, 1000), (SORTED, 1200), (EAGER, 0)])
    ]
    known = Knowledge(list(costs), trials, METRICS["tokens_per_s"], costs)
    before = (known.promising(5, DEFAULT), [known.ask(seed) for seed in range(8)])
    request.getfixturevalue("no_op")

    assert (known.promising(5, DEFAULT), [known.ask(seed) for seed in range(8)]) == before


def test_the_search_knows_every_knob_that_anybody_states(no_op: Knob) -> None:
    """Knobs of which the first configuration says nothing are searched too, and nothing is proposed twice."""
    on = {c: c.replaced(**{no_op.name: "on"}) for c in (DEFAULT, FLASH)}
    left, trials = [DEFAULT, FLASH, *on.values()], list[Trial]()
    while (asked := Knowledge(left, trials).ask(0)) is not None:
        trials.append(replace(attempt(asked, 1000), number=len(trials)))

    assert sorted(map(str, left)) == sorted(str(trial.requested) for trial in trials)


def test_another_workload_teaches_what_it_taught(sqlite_store: Store, request: pytest.FixtureRequest) -> None:
    """The warm start takes rows of before a knob came, and those that say something of it, but none of an unknown one."""
    stranger = DEFAULT.replaced(stranger="x")
    studied(sqlite_store, [attempt(c, speed) for c, speed in ((DEFAULT, 1000), (FLASH, 1800), (stranger, 5000))])
    job = Job(SOURCE, replace(WORKLOAD, batch=4), ANY, Budget(), Machine(H200, "host", "GPU-1", 0, 10**12))
    before = _warm(job, sqlite_store, FACTS, study=0)
    knob = request.getfixturevalue("no_op")

    assert set(before) == {DEFAULT, FLASH}
    assert _warm(job, sqlite_store, FACTS, study=0) == before
    on = EAGER.replaced(**{knob.name: "on"})
    store_trial(sqlite_store, 1, attempt(on, 900))
    assert set(_warm(job, sqlite_store, FACTS, study=0)) == {DEFAULT, FLASH, on}


def test_only_goes_by_what_is_implied(no_op: Knob) -> None:
    """--only leaves what says nothing of a knob where it names the implied choice, and leaves it out where it does not."""
    assert Objective(only=((no_op.name, ("off",)),)).leaves(DEFAULT)
    assert not Objective(only=((no_op.name, ("on",)),)).leaves(DEFAULT)
    assert not Objective(only=(("a knob of before", ("on",)),)).leaves(DEFAULT)
    assert Objective(only=(("quantization", ("none", "nf4")),)).leaves(DEFAULT)


def test_what_was_looked_at_of_a_layout_counts_for_the_same_layout_alone(no_op: Knob) -> None:
    """The layout in fp32 depends on every knob that is not about the numbers alone, known or not."""
    quality = Quality(
        0.01, 0.1, 1e-3, 0.99, 64, layout=1e-6, probed="2 of 2", neighbours=0.0, pads=0.0, gate=GATE_VERSION
    )

    def known(of: Configuration, to: Configuration) -> set[str]:
        return set(known_figures([Trial(0, of, of, Outcome.OK, quality=quality)], to))

    on, stranger = DEFAULT.replaced(**{no_op.name: "on"}), DEFAULT.replaced(stranger="x")
    assert {"layout", "probed"} <= known(DEFAULT, DEFAULT)
    assert known(DEFAULT, NF4) == known(DEFAULT, DEFAULT.replaced(precision="fp16")) >= {"layout"}
    assert "probed" not in known(DEFAULT, NF4)
    assert known(DEFAULT, on) == known(on, DEFAULT) == known(DEFAULT, stranger) == set()
    assert layout_request(NF4.replaced(**{no_op.name: "on"}), DEFAULT, {}) == on


def test_weights_depend_on_what_reloads_and_on_what_nobody_knows() -> None:
    """Implied choices count: not quantising is a set of weights of its own."""
    assert weights_of(DEFAULT, switches_attention=True) == (("precision", "bf16"), ("quantization", "none"))
    assert weights_of(NF4.replaced(stranger="x"), switches_attention=False) == (
        ("attention", "sdpa"),
        ("precision", "bf16"),
        ("quantization", "nf4"),
        ("stranger", "x"),
    )


# --------------------------------------------------------------------------------------------- a knob that was taken away


def test_a_knob_that_is_gone_is_said_to_be(sqlite_store: Store, no_op: Knob) -> None:
    """What a choice did that is not known any more is not guessed: it is rejected in words, whatever was confirmed."""
    on = FLASH.replaced(**{no_op.name: "on"})
    studied(
        sqlite_store,
        [attempt(DEFAULT, 1000), attempt(FLASH, 1800), attempt(on, 3000)],
        {FLASH: (1.80, 1.79, 1.81), on: (3.0, 3.01, 2.99)},
    )
    assert answer(sqlite_store).configuration == on
    forget(no_op)
    found = answer(sqlite_store)

    assert (found.configuration, found.verdict) == (FLASH, "faster")
    said = "what ran is not known here: there is no knob made-up (it says on); name the module that has it in ADVISOR_PLUGINS"
    assert [(c.configuration, c.objections) for c in found.rejected] == [(on, (said,))]
    assert unknown(on) == ["there is no knob made-up (it says on)"]
    assert unknown(DEFAULT.replaced(attention="gone")) == ["attention has no choice gone"]
    assert unknown(DEFAULT.replaced(attention="eager (unproven)")) == ["it is unproven that attention eager ran"]
    assert objections(attempt(on, 3000), None, ANY, FACTS) == [said]
    with pytest.raises(BadInput, match=r"is not known here: there is no knob made-up \(it says on\) \(name the module"):
        choices_of(on)


def test_what_promised_most_is_not_told_once_its_knob_is_gone(sqlite_store: Store, no_op: Knob) -> None:
    """What a search left untried is asked anew where it names a choice that is not known any more."""
    on = FLASH.replaced(**{no_op.name: "on"})
    studied(sqlite_store, [attempt(DEFAULT, 1000), attempt(FLASH, 1800)], {FLASH: (1.80, 1.79, 1.81)}, left=[on])
    assert [each.configuration for each in answer(sqlite_store).prospects.promising] == [on]
    forget(no_op)
    left = answer(sqlite_store).prospects

    assert left.left > 0
    assert not any(unknown(each.configuration) for each in left.promising)


def test_only_of_a_knob_that_cant_be_turned_is_told(no_op: Knob) -> None:
    """What --only leaves of a knob has to be there for this work: else everything would be measured and nothing recommended."""
    KNOBS[no_op.name] = replace(no_op, applies=lambda _: False)
    build_space(FACTS, WORKLOAD, H200, replace(ANY, only=((no_op.name, ("off",)),)), 10**12)
    for knob, words in ((no_op.name, "the knob made-up can't be turned"), ("gone", "there is no knob gone")):
        with pytest.raises(BadInput, match=words):
            build_space(FACTS, WORKLOAD, H200, replace(ANY, only=((knob, ("on",)),)), 10**12)


# ------------------------------------------------------------------------------------------------------------------ words


def test_sql_says_what_text_says(no_op: Knob, database_url: str) -> None:
    """A label in SQL is the label in text, the new knob's choice in its place; a row of a choice says of which of both it is."""
    asked = NF4.replaced(**{no_op.name: "on", "stranger": "x", "another": "y"})
    ran = asked.replaced(**{no_op.name: "off", "packing": "packed"})
    with Store.open(database_url, write=True) as store:
        studied(store, [attempt(DEFAULT, 1000), replace(attempt(asked, 900), effective=ran)])
    labels = rows(database_url, "SELECT requested, effective, quantization, packing FROM v_trials ORDER BY number")
    choices = rows(database_url, "SELECT knob, choice, requested FROM v_trial_choices WHERE study = 1 AND number = 1")

    assert str(asked) == "sdpa · on · bf16 · nf4 · y · x"
    assert labels == [(str(DEFAULT), str(DEFAULT), "none", "padded"), (str(asked), str(ran), "nf4", "packed")]
    told = {
        (knob, choice, requested)
        for configuration, requested in ((asked, 1), (ran, 0))
        for knob, choice in configuration.over([*KNOBS, "stranger", "another"])
    }
    assert set(choices) == told
    assert len(choices) == len(told)
    assert rows(database_url, "SELECT implied, place FROM knobs WHERE name = 'made-up'") == [("off", 15)]
    KNOBS[no_op.name] = replace(no_op, implied="on")
    for write in (True, False):
        with pytest.raises(StoreError, match="says nothing of made-up has off in this database, and on here"):
            Store.open(database_url, write=write)


def test_a_label_is_the_whole_configuration() -> None:
    """As it is printed, between dots, a configuration has what it leaves out; the same words with commas are some choices."""
    assert choices_in("sdpa · bf16") == dict(DEFAULT.over([knob for knob in KNOBS if knob != "batch"]))
    assert choices_in("sdpa · bf16 · none · padded") == choices_in("sdpa · bf16")  # as it was printed once
    assert choices_in("sdpa · bf16 · packed · 8")["batch"] == "8"
    assert choices_in("sdpa,bf16") == {"attention": "sdpa", "precision": "bf16"}
    assert choices_in("sdpa · packed") == {"attention": "sdpa", "packing": "packed"}
    assert choices_in("quantization=none") == {"quantization": "none"}


def test_a_generic_name_is_told_from_anothers_by_its_place(no_op: Knob) -> None:
    """Two knobs with "none" or "off": a label says which by its order, and where it does not, the knob has to be named."""
    KNOBS["quantization"].choices["off"] = Choice("quantization", "off", "")
    try:
        assert choices_in("sdpa · off · bf16")[no_op.name] == "off"
        wanted = DEFAULT.replaced(autocast="autocast-bf16", quantization="off", packing="sorted")
        stated_or_implied = wanted.over([knob for knob in KNOBS if knob not in ("batch", "optimizer")])
        assert choices_in("sdpa · bf16 · autocast-bf16 · off · sorted") == dict(stated_or_implied)
        with pytest.raises(BadInput, match="write made-up=off or autocast=off or quantization=off"):
            choices_in("off,sdpa")
    finally:
        del KNOBS["quantization"].choices["off"]
