"""--calls as its user meets it: one quantity everywhere, no answer where something looks clearly better, and in words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_databases import laid
from test_amortised import ANY, CALLS, COMPILED, GOOD, TOKENS, TRIALS, attempt
from test_suggest import DEFAULT, FLASH, GIB, H200, PACKED, SORTED, SOURCE, WORKLOAD, answer, shown, studied

from advisor.asking.question import effort_of
from advisor.faces.cli import run
from advisor.measure.landscape import read_landscapes
from advisor.measure.messages import TrialDone
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.answer import Conclusion, Prospect, Stop
from advisor.nouns.environment import Machine
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import LOADED
from advisor.nouns.objective import Budget, Tier
from advisor.nouns.step import EndSearch, Search
from advisor.nouns.trial import Outcome
from advisor.pages.study_report import report_of
from advisor.quality.amortised import Amortised, beginnings, pays_from
from advisor.search.space import build_space
from advisor.show.formats import FORMATS
from advisor.show.headline import summary
from advisor.show.progress import Progress
from advisor.show.rows import candidate_rows
from advisor.show.support import LLAMA
from advisor.storage.store import Store
from advisor.study.attempt import told
from advisor.study.history import listed
from advisor.study.next_step import next_step
from advisor.study.tune import tune
from advisor.study.tuning import Job, Snapshot
from advisor.terminal import many, span

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "benchmarks" / "shapes" / "qwen2.5-1.5b.json")
RECORDED = "h100-qwen2.5-1.5b-8x2048-padding-0.4"

#: Compiled is twice as fast and takes 39 s more to begin; sorted begins as the default does.
SLOW = COMPILED.replaced(attention="sdpa", packing="sorted")
ENDLESS = (
    attempt(DEFAULT, 0.2, load_s=10.0, first_call_s=1.0),
    attempt(SORTED, 0.13, load_s=0.0, first_call_s=0.5),
    attempt(SLOW, 0.1, load_s=0.0, first_call_s=30.0, later_s=10.0),
)
CONFIRMED = {SLOW: (2.0, 2.01, 1.99)}

#: So many passes that compiled is 1.19 times the default, and sorted 1.48 times.
SOME = replace(ANY, calls=600 * CALLS)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        yield opened


# ------------------------------------------------------------------------------------- confirmed, and clearly not the best


def test_what_was_confirmed_for_another_job_is_no_answer_where_something_looks_clearly_better(store: Store) -> None:
    """Blocks of an endless job left compiled alone confirmed; over some calls what begins sooner is far ahead of it."""
    studied(store, ENDLESS, CONFIRMED)
    ever, some = answer(store), answer(store, objective=SOME)

    assert (ever.verdict, ever.exit_status) == (Conclusion.FASTER, 0)
    assert (some.verdict, some.exit_status) == (Conclusion.UNCONFIRMED, 3)
    assert some.chosen is not None
    assert some.best is not None
    assert (some.chosen.configuration, some.best.configuration) == (SLOW, SORTED)
    assert some.chosen.ratio == pytest.approx(1.19, abs=0.005)
    assert some.best.search_ratio == pytest.approx(1.48, abs=0.005)
    text = shown(some)
    assert "for now: 1.19 × the default" in text
    assert "what looked faster is not confirmed" in text
    assert f"fastest found, unconfirmed: {SORTED}, ≈1.48 × the default in the search" in text
    assert f"to go on: advisor tune org/model {WORKLOAD.flags} --quality 4bit --calls {600 * CALLS}" in text


@pytest.mark.parametrize("name", ["env", "yaml", "python"])
def test_lines_to_paste_say_what_looked_better(name: str, store: Store) -> None:
    """What is pasted is what was confirmed; it names what looked better, with the command that goes on."""
    studied(store, ENDLESS, CONFIRMED)
    some = answer(store, objective=SOME)
    text = " ".join(FORMATS[name].write(some, "cuda").replace("#", " ").split())

    assert f"What looked better in the search, {SORTED}, is not confirmed. To go on: advisor tune org/model" in text
    assert f"--calls {600 * CALLS}" in text
    line = summary(some)
    assert f"fastest found, unconfirmed: {SORTED} (to go on: advisor tune org/model" in line
    assert [row["calls"] for row in candidate_rows(some)] == [600 * CALLS] * 3
    assert all("calls" not in row for row in candidate_rows(answer(store)))


def test_a_limit_that_leaves_the_confirmed_far_behind_is_no_answer_either(store: Store) -> None:
    """The best of the confirmed does not fit; the other one is far behind what fits and was not confirmed."""
    tried = (
        attempt(DEFAULT, 0.2, load_s=1.0),
        attempt(FLASH, 0.1, load_s=1.0, peak_bytes=60 * GIB),
        attempt(PACKED, 0.13, load_s=1.0),
        attempt(SORTED, 0.17, load_s=1.0),
    )
    studied(store, tried, {FLASH: (2.0, 2.0, 2.0), SORTED: (1.2, 1.2, 1.2)})
    found = answer(store, objective=replace(ANY, max_memory_bytes=40 * GIB))

    assert answer(store).verdict is Conclusion.FASTER
    assert (found.verdict, found.exit_status) == (Conclusion.UNCONFIRMED, 3)
    assert found.best is not None
    assert found.best.configuration == PACKED


@pytest.mark.parametrize(
    ("round_s", "blocks", "verdict"),
    [
        (0.1, (), Conclusion.UNCONFIRMED),  # clearly better
        (0.1299, (), Conclusion.FASTER),  # within what differs from process to process
        (0.1, (1.1, 1.5, 1.0), Conclusion.FASTER),  # its blocks do not say so
    ],
)
def test_what_is_near_what_was_confirmed_does_not_shake_it(
    round_s: float, blocks: tuple[float, ...], verdict: Conclusion, store: Store
) -> None:
    """Only what is clear of it, by the rule that tells finalists from the others, leaves an answer open."""
    tried = (attempt(DEFAULT, 0.2), attempt(SORTED, 0.13), attempt(PACKED, round_s))
    compared = {SORTED: (1.54, 1.54, 1.54), **({PACKED: blocks} if blocks else {})}
    studied(store, tried, compared)

    assert answer(store).verdict is verdict


def test_what_fails_in_blocks_can_never_be_confirmed_and_leaves_nothing_open(store: Store) -> None:
    """The best of the search breaks beside the default, every time: what is next and was confirmed is the answer."""
    broken = replace(attempt(PACKED, 0.1), outcome=Outcome.OUT_OF_MEMORY, measurements=(), phase="confirm", block=1)
    studied(store, (attempt(DEFAULT, 0.2), attempt(SORTED, 0.13), attempt(PACKED, 0.1), broken), {SORTED: (1.5,) * 3})

    assert answer(store).verdict is Conclusion.FASTER


# -------------------------------------------------------------------------------------------------- one quantity everywhere


def test_progress_the_answer_and_the_list_tell_one_quantity(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording is tuned for some calls: the default is 1.00 of itself, and each ratio is that of two figures beside it."""
    landscape = read_landscapes(ROOT / "tests" / "landscapes")[RECORDED]
    machine = Machine(landscape.environment, "host", "GPU-1", 0, 70 * 2**30)
    objective = replace(landscape.objective, calls=20)
    job = Job(find_model(MODEL), landscape.workload, objective, Budget(trials=5, blocks=0), machine)
    events: list[Mapping[str, Any]] = []
    with Progress(job) as progress:

        def hear(event: Mapping[str, Any]) -> None:
            events.append(event)
            progress.hear(event)

        study = tune(job, store, ReplayRunner(landscape, seed=1), hear)
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    ended = [event for event in events if event["event"] == "trial"]
    first, last = ended[0], ended[-1]

    assert "figures are over 20 calls: loading and compiling are spread over them" in lines
    (of_default,) = [line for line in lines if line.startswith("0 ")]
    assert of_default.endswith("1.00 ×")
    assert first["trial"].tokens_per_s == first["default"].tokens_per_s
    (found,) = listed(store, study=study)
    assert found.calls == 20
    assert found.ratios[0] == 1.0
    figured = {trial.number: trial for trial in found.figured}
    number = last["trial"].number
    assert figured[number].tokens_per_s == pytest.approx(last["trial"].tokens_per_s)
    assert found.ratios[number] == pytest.approx(figured[number].tokens_per_s / figured[0].tokens_per_s)
    payload = {each["id"]: each for each in found.payload["trials"]}
    assert payload[f"{study}.0"]["over_calls"] == {"calls": 20, "tokens_per_s": figured[0].tokens_per_s}
    report = report_of(store, study)
    point = next(each for each in report.points if each.number == number)
    assert point.value == pytest.approx(figured[number].tokens_per_s)


def test_the_list_and_a_trial_say_over_how_many_calls(
    store: Store, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trials` in text and CSV has the spread figures and says so; `show` has both, and which load figure was used."""
    study = studied(store, ENDLESS, objective=SOME)
    studied(store, ENDLESS)
    monkeypatch.setenv("ADVISOR_DATABASE_URL", sqlite_url)
    rate = 600 * TOKENS / (11.0 + 600 * 0.2)

    assert run(["trials", "--study", str(study)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"figures are over {600 * CALLS:,} calls, loading and compiling too" in text
    assert f"search ok {rate:,.0f} 1.00" in text
    assert run(["trials", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["calls"] for row in rows] == ["", "", "", *[str(600 * CALLS)] * 3]
    assert float(rows[-1]["tokens_per_s"]) == pytest.approx(rate)
    assert run(["show", f"{study}.1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "with what it takes to begin: loading 10 s (of one load: the next may differ), first call 500 ms" in text
    assert run(["show", f"{study}.1", "--format", "json"]) == 0
    over = json.loads(capsys.readouterr().out)["trial"]["over_calls"]
    assert (over["load_s"], over["loads_s"], over["calls"]) == (10.0, [10.0], 600 * CALLS)


def test_what_ran_as_another_is_stored_as_that_was_measured() -> None:
    """Its figures are taken over plain: spread over the calls already, they would be spread again with every reading."""
    space = replace(build_space(LLAMA, WORKLOAD, H200, SOME, 2**40), admissible=(DEFAULT, SORTED))
    default = replace(TRIALS[0], quality=GOOD, device_uuid="g", wall_s=10.0)
    job = Job(SOURCE, WORKLOAD, SOME, Budget(), Machine(H200, "host", "g", 0, 2**40))
    came = TrialDone(outcome=Outcome.OK, effective=DEFAULT, alias="the default ran", load_s=0.0, first_call_s=0.0)
    trial = told(Snapshot(job, LLAMA, space, (default,)), SORTED, 1, "search", None, came)

    assert trial.reused_from == 0
    assert trial.measurements == default.measurements


# ------------------------------------------------------------------------------------------------------------------- loading


def test_equal_weights_take_one_time_to_load_whoever_loaded_them() -> None:
    """The median of what really loaded; what found them loaded, or was a little changed, is no load."""
    fp16 = DEFAULT.replaced(precision="fp16")
    trials = (
        attempt(DEFAULT, 0.2, load_s=0.001),
        attempt(SORTED, 0.2, load_s=3.0),
        attempt(PACKED, 0.2, load_s=2.0),
        replace(attempt(DEFAULT, 0.2, load_s=7.0), phase="confirm", block=1),
        attempt(fp16, 0.2, load_s=0.0),
    )
    found = beginnings(trials, LLAMA)

    assert [found[each].load_s for each in (DEFAULT, SORTED, PACKED)] == [3.0, 3.0, 3.0]
    assert found[DEFAULT].loads == (2.0, 3.0, 7.0)
    assert (found[fp16].load_s, found[fp16].is_own) == (3.0, False)
    assert "the median of 3 loads, 2.0 s to 7.0 s" in found[DEFAULT].words
    assert "of other weights, for these were not seen to be loaded" in found[fp16].words


def test_the_default_is_spread_alike_whichever_trial_loads() -> None:
    """A reference loaded the default's weights before its trial did: the trial says what that took, and no other changes it."""
    found_it = attempt(DEFAULT, 0.2, load_s=0.001, first_call_s=1.0)
    default = replace(found_it, measurements=(*found_it.measurements, Measurement(LOADED, "s", (10.0,))))
    wanted = replace(ANY, calls=20 * CALLS)
    alone, beside = (
        Amortised.of(wanted, WORKLOAD, LLAMA, each) for each in ((default,), (default, *ENDLESS[1:], TRIALS[1]))
    )

    assert alone is not None
    assert beside is not None
    assert alone.begin_s[DEFAULT] == beside.begin_s[DEFAULT] == 11.0
    assert alone.spread(default).tokens_per_s == beside.spread(default).tokens_per_s


def test_an_answer_says_how_sure_its_load_is(store: Store) -> None:
    """One load is a sample of one: intervals over calls know no more, and the note says so."""
    studied(store, ENDLESS, objective=SOME)
    text = shown(answer(store, objective=SOME))

    assert (
        f"figures are over {600 * CALLS:,} calls, batches of the default's, with the 11 s that it takes to begin: "
        in text
    )
    assert "loading 10 s (of one load: the next may differ), first call 1.0 s" in text


# -------------------------------------------------------------------------------------------------------- from where it pays


def test_it_pays_beside_the_best_that_begins_sooner(store: Store) -> None:
    """Beside the default it would from 390 rounds on; until 1,317 sorted is the better one, and is named."""
    studied(store, ENDLESS, CONFIRMED)
    pays = pays_from((50.0, 10.5), (0.1, 0.13), CALLS)
    text = shown(answer(store))

    assert pays == 1317 * CALLS
    note = f"it takes 50 s to begin, {SORTED} 10 s (loading, first call, compiling): it pays from {pays:,} calls on"
    assert note in text


def test_it_pays_nowhere_beside_what_is_as_good_and_begins_sooner(store: Store) -> None:
    """Sorted is as fast as compiled within the tie zone: compiling is paid back by nothing that is known."""
    studied(store, (ENDLESS[0], attempt(SORTED, 0.1), ENDLESS[2]), {SLOW: (2.0, 2.0, 2.0), SORTED: (1.0, 1.0, 1.0)})
    assert "it pays from" in shown(answer(store))
    studied(store, (ENDLESS[0], attempt(SORTED, 0.101), ENDLESS[2]), {SLOW: (2.0, 2.0, 2.0)})
    assert f"{SORTED} 10 s (loading, first call, compiling), and that is as good" in shown(answer(store))


# ------------------------------------------------------------------------------------------------------- what a job pays for


def test_a_job_pays_for_its_own_search_unless_payback_says_otherwise() -> None:
    """Calls and no payback: the job itself is what pays; named, or with a budget alone, it is as it was."""
    few = replace(ANY, calls=3)
    spent = {"budget": None, "trials": None}

    assert effort_of(spent, few).budget == Budget(600.0, payback_s=3600.0, job_pays=True)
    assert effort_of(spent, ANY).budget == Budget(600.0, payback_s=3600.0)
    assert effort_of({"payback": "1h"}, few).budget == Budget(600.0, payback_s=3600.0)
    assert effort_of({"budget": "2m"}, few).budget == Budget(120.0)
    assert effort_of({"trials": 3}, few).budget == Budget(None, 3)
    assert Budget.of(Budget(600.0, payback_s=3600.0, job_pays=True).payload).job_pays
    assert "job_pays" not in Budget().payload


@pytest.mark.parametrize(
    ("calls", "budget", "ends"),
    [
        (3, Budget(600.0, payback_s=3600.0, job_pays=True), True),
        (10**9, Budget(600.0, payback_s=3600.0, job_pays=True), False),
        (3, Budget(600.0, payback_s=3600.0), False),  # asked for by --payback
        (3, Budget(600.0), False),
    ],
)
def test_a_job_of_a_second_is_not_searched_for(calls: int, budget: Budget, ends: bool) -> None:
    """A trial of ten seconds can't be saved where the whole job takes less."""
    wanted = replace(ANY, calls=calls)
    space = replace(build_space(LLAMA, WORKLOAD, H200, wanted, 2**40), admissible=(DEFAULT, SORTED, PACKED))
    default = replace(attempt(DEFAULT, 0.2, load_s=1.0), quality=GOOD, device_uuid="g", wall_s=10.0)
    job = Job(SOURCE, WORKLOAD, wanted, budget, Machine(H200, "host", "g", 0, 2**40))
    step = next_step(Snapshot(job, LLAMA, space, (default,)))

    assert step == EndSearch(Stop.PAYBACK) if ends else isinstance(step, Search)


@pytest.mark.parametrize("job_pays", [True, False])
def test_a_tune_that_took_longer_than_its_job_says_so(store: Store, job_pays: bool) -> None:
    """The default's whole job takes less than what was spent on the question. What was asked for is not proposed again."""
    few = replace(ANY, calls=CALLS)
    trials = tuple(replace(each, load_s=0.1, first_call_s=0.05, wall_s=20.0) for each in ENDLESS[:2])
    studied(store, trials, objective=few, budget=Budget(600.0, payback_s=3600.0, job_pays=job_pays))

    words = "the default does all of it in 350 ms, beginning included, and measuring took 40 s"
    further = ": --payback TIME measures on where such a job comes again"
    text = shown(answer(store, objective=few))
    assert words in text
    assert (words + further in text) is job_pays
    assert "and measuring took" not in shown(answer(store, objective=replace(ANY, calls=10**9)))


@pytest.mark.parametrize(
    ("job_pays", "words"), [(True, "to save less of that job than"), (False, "to save less in 60 min of work than")]
)
def test_what_would_not_pay_is_told_by_what_was_to_pay(store: Store, job_pays: bool, words: str) -> None:
    """The job where that was to pay for the search, else the work that was asked for."""
    budget, untried = Budget(600.0, payback_s=3600.0, job_pays=job_pays), [Prospect(COMPILED, 1.6, 12.0)]
    ended: dict[str, Any] = {"stop": Stop.PAYBACK, "left": untried, "chance": 0.9}
    studied(store, ENDLESS[:2], {SORTED: (1.5, 1.51, 1.5)}, objective=SOME, budget=budget, **ended)
    found = answer(store, objective=SOME)
    assert words in shown(found)
    assert found.trying.endswith(" --payback 60m" if job_pays else " --exhaustive")


def test_where_nothing_else_was_measured_the_answer_does_not_say_that_nothing_is_faster(store: Store) -> None:
    """A job of seconds is not searched for: the default is the answer, for what it would cost to look."""
    job, budget = replace(ANY, calls=CALLS), Budget(600.0, payback_s=3600.0, job_pays=True)
    ended: dict[str, Any] = {"stop": Stop.PAYBACK, "left": [Prospect(SORTED, 1.6, 12.0)], "chance": 0.9}
    studied(store, ENDLESS[:1], objective=job, budget=budget, **ended)
    found = answer(store, objective=job)

    assert (found.verdict, found.exit_status) == (Conclusion.DEFAULT, 0)
    text = shown(found)
    assert "keep the default, sdpa · bf16: to measure anything else is expected to cost more than it saves" in text
    assert "nothing measured is faster" not in text


def test_a_search_for_a_job_hides_no_answer_that_was_confirmed_for_any(store: Store) -> None:
    """Who names no job and no quality hears what a whole search confirmed, and of what; who names the job hears of that one."""
    exact, job = replace(ANY, quality=Tier.EXACT), replace(ANY, calls=CALLS)
    studied(store, ENDLESS, CONFIRMED, objective=exact)
    before = answer(store)
    studied(store, ENDLESS[:1], objective=job, stop=Stop.PAYBACK, left=[Prospect(COMPILED, 1.6, 12.0)], chance=0.9)

    ever = answer(store)
    assert ever.chosen is not None
    assert (ever.verdict, ever.configuration, ever.chosen.ratio) == (before.verdict, SLOW, pytest.approx(2.0, abs=0.01))
    assert "only quality exact was searched, which is narrower than what was asked for" in ever.notes
    assert answer(store, objective=job).study.objective == job


def test_of_two_that_searched_as_wide_the_one_of_this_quality_answers(store: Store) -> None:
    """What searched wider spent its trials elsewhere: one trial of it hides nothing."""
    exact, wider = replace(ANY, quality=Tier.EXACT, calls=CALLS), replace(ANY, calls=CALLS)
    studied(store, ENDLESS, CONFIRMED, objective=exact)
    studied(store, ENDLESS[:1], objective=wider)

    assert answer(store, objective=replace(exact, calls=CALLS + 1)).study.objective == exact
    assert answer(store, objective=wider).study.objective == wider


def test_an_interrupted_tune_for_a_job_goes_on_as_it_was_asked_for(store: Store) -> None:
    """Its own job pays without a flag; an hour's work, which was asked for, is asked for again."""
    kept: dict[str, Any] = {"stop": Stop.INTERRUPTED, "state": "interrupted", "chance": None, "objective": SOME}
    flags = f"--calls {600 * CALLS}"
    for budget, more in (
        (Budget(600.0, payback_s=3600.0, job_pays=True), ""),
        (Budget(600.0, payback_s=3600.0), " --payback 60m"),
    ):
        studied(store, ENDLESS[:1], budget=budget, **kept)
        assert answer(store, objective=SOME).trying.endswith(f"{flags}{more}")


# --------------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.0042, "4.2 ms"),
        (0.03, "30 ms"),
        (0.9996, "1.0 s"),
        (1.44, "1.4 s"),
        (9.96, "10 s"),
        (600.0, "10 min"),
    ],
)
def test_short_times_are_told_in_digits_that_count(seconds: float, words: str) -> None:
    """They decide for a job of few calls: none is rounded to nothing."""
    assert span(seconds) == words


def test_one_is_one_and_many_are_many(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A call, a sample and a configuration are not calls, samples and configurations."""
    assert [many(count, "call") for count in (0, 1, 2, 2800)] == ["0 calls", "1 call", "2 calls", "2,800 calls"]
    one = replace(ANY, calls=1)
    studied(store, (attempt(DEFAULT, 0.2, load_s=0.02, first_call_s=0.01),), objective=one)
    text = shown(answer(store, objective=one))
    assert "figures are over 1 call, batches of the default's, with the 30 ms that it takes to begin" in text
    space = replace(build_space(LLAMA, WORKLOAD, H200, one, 2**40), admissible=(DEFAULT,), refusals=())
    with Progress(Job(SOURCE, WORKLOAD, one, Budget(60.0), Machine(H200, "host", "g", 0, 2**40))) as progress:
        progress.hear({"event": "study", "space": space, "trials": []})
    err = capsys.readouterr().err
    assert "1 configuration is admissible; 0 rules refuse others" in err
    assert "figures are over 1 call: loading and compiling are spread over it" in err


def test_one_sample_has_no_range() -> None:
    """It is told alone: a range of one value to itself says that more is known than is."""
    from advisor.show.history_report import measured_words

    assert measured_words(Measurement("load_s", "s", (6.73,))) == "6.73 s (one sample)"
    assert measured_words(Measurement("load_s", "s", (6.0, 7.0))).endswith("(6.00 s to 7.00 s, 2 samples)")
