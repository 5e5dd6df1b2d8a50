"""The answer from stored rows: which configuration is recommended, how sure, for whom, and why the others are not."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_databases import laid
from sqlalchemy import create_engine, text

from advisor.advice import command
from advisor.advice.kept_answers import keep_answer
from advisor.advice.labels import choices_in
from advisor.advice.ranking import Candidate, ranked
from advisor.advice.recommendation import Recommendation, tie_set
from advisor.advice.suggest import recommend, suggest
from advisor.advice.why_not import why_not
from advisor.asking.options import DEFAULT_BUDGET, DEFAULT_PAYBACK
from advisor.errors import BadInput, NothingAdmissible, NotMeasured
from advisor.knobs import KNOBS
from advisor.knobs.choice import Reason, Verdict
from advisor.nouns.answer import Conclusion, Prospect, SearchEnd, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import TIE_ZONE, Comparison, Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.reading import read_duration
from advisor.nouns.step import Search
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.search.space import Space, build_space
from advisor.show.headline import headline
from advisor.show.refused import counted
from advisor.show.report import print_recommendation
from advisor.show.script import recommended_script
from advisor.show.support import LLAMA
from advisor.storage.store import Store
from advisor.workloads.forward import Forward

GOLDEN = Path(__file__).parent / "environments"
H200, T4, LAPTOP = (Environment.of(json.loads((GOLDEN / f"{name}.json").read_text())) for name in ("h200", "t4", "cpu"))
OLDER = replace(H200, driver="570.00")

WORKLOAD = Forward((512, 128, 256, 64), 2)
FACTS = LLAMA
SOURCE = ModelSource("org/model", "/models/model", {"model_type": "llama"}, "trained", "d1", has_tokenizer=True)
TUNED = replace(SOURCE, name="org/tuned", weights_digest="d2")
DRAWN = replace(SOURCE, name="model.json", weights="random", weights_digest="random:0")

DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")
FLASH, EAGER = PACKED.replaced(attention="flash_attention_2"), DEFAULT.replaced(attention="eager")
FP16, NF4 = DEFAULT.replaced(precision="fp16"), DEFAULT.replaced(quantization="nf4")

TEN_MINUTES = Budget(600.0)
_CANDIDATES = [SORTED, PACKED, FLASH, EAGER, FP16, NF4]

ANY = Objective(quality=Tier.FOUR_BIT)
GIB = 2**30


def attempt(configuration: Configuration, speed: float = 0.0, **more: Any) -> Trial:
    """Return a trial, not numbered yet: of this speed, or failed where there is none."""
    judged, samples = more.pop("judged", True), tuple(speed * f for f in (0.99, 1.01, 1.0, 0.995, 1.005, 1.0))
    known: dict[str, Any] = {"outcome": Outcome.OK if speed else Outcome.RUNTIME_ERROR, "peak_bytes": 20 * GIB}
    if speed:
        known["measurements"] = (Measurement("tokens_per_s", "tokens/s", samples),)
        known["quality"] = Quality(0.01, 0.1, 1e-3, 0.99, 64, 1.001, reference="fp32, eager", drawn=not judged)
        known["weight_bytes"] = 16 * 10**9
    else:
        known["reason"] = "it broke"
    effective = more.pop("effective", configuration if speed else None)
    return Trial(0, configuration, effective, **{**known, **more})


def studied(
    store: Store,
    attempts: Sequence[Trial],
    ratios: dict[Configuration, tuple[float, ...]] | None = None,
    refusals: Sequence[Reason] = (),
    *,
    state: str = "done",
    stop: Stop | None = Stop.EVERYTHING,
    left: Sequence[Prospect] = (),
    chance: float | None = 0.0,
    budget: Budget = TEN_MINUTES,
    admissible: int | None = None,
    **nouns: Any,
) -> int:
    """Write a study as tune would: trials in order, the blocks' ratios over what trial 0 ran, refusals, how its search ended.

    left: what was never tried, by default nothing; stop: None where the tune was killed; admissible: how many configurations the
    rules leave, where that is stored.
    """
    known = {"source": SOURCE, "workload": WORKLOAD, "environment": H200, "objective": ANY, **nouns}
    study = store.open_study(**known, budget=budget, seed=0)
    store.save_facts(known["source"], FACTS)
    for trial in attempts:
        number = store.claim(study, Search(trial.requested), "a:1:1")[0]
        if trial.outcome is not Outcome.RUNNING:
            store.finish_trial(study, replace(trial, number=number), "a:1:1")
    pairs = [Comparison(c.key, attempts[0].ran.key, blocks) for c, blocks in (ratios or {}).items()]
    store.save_comparisons(study, pairs)
    store.save_refusals(study, refusals, admissible)
    tried = len([trial for trial in attempts if trial.outcome not in (Outcome.RUNNING, Outcome.CUT)])
    end = None if stop is None else SearchEnd(stop, len(left), chance, tuple(left), tried)
    store.close_study(study, state, end=end)
    return study


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """Open an empty store."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        yield opened


def answer(store: Store, source: ModelSource = SOURCE, objective: Objective = ANY, **more: Any) -> Recommendation:
    """Ask on the machine that measured."""
    return suggest(store, source, WORKLOAD, objective, **{"here": H200, **more})


def shown(found: Recommendation) -> str:
    """Return what is printed of an answer, in one line."""
    with redirect_stdout(StringIO()) as printed:
        print_recommendation(found, "cpu", refusals=True)
    return " ".join(printed.getvalue().split())


# --------------------------------------------------------------------------------------------------- which, how sure


def test_the_highest_confirmed_ratio_wins(store: Store) -> None:
    """What counts is the ratio that was confirmed block by block, not the speed of the search."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1300), attempt(PACKED, 1900), attempt(FLASH, 1700)]
    studied(store, attempts, {PACKED: (1.50, 1.52, 1.51), FLASH: (1.80, 1.79, 1.81)})
    found = answer(store)

    assert (found.configuration, found.verdict) == (FLASH, "faster")
    assert found.payload["recommendation"]["ratio"] == pytest.approx(1.80, abs=0.01)
    assert found.payload["recommendation"]["blocks"] == 3
    assert found.payload["recommendation"]["search_ratio"] == pytest.approx(1.7)
    assert [c.configuration for c in found.runners_up] == [PACKED, DEFAULT, SORTED]
    assert found.default is not None
    assert found.default.configuration == DEFAULT
    assert found.notes == ()


@pytest.mark.parametrize(("busy", "said"), [(0.05, True), (0.79, True), (0.8, False), (None, False)])
def test_work_that_waits_for_its_launches_is_said_to(store: Store, busy: float | None, said: bool) -> None:
    """Where the GPU computes for less than 80 % of the time the answer says so, and that its figure took longer."""
    fast = attempt(SORTED, 1300)
    if busy is not None:
        fast = replace(fast, measurements=(*fast.measurements, Measurement("gpu_busy", "share", (busy,))))
    studied(store, [attempt(DEFAULT, 1000), fast], {SORTED: (1.3, 1.31, 1.3)})
    found = answer(store)

    assert ("the GPU computes" in shown(found)) == said
    assert found.payload["recommendation"]["busy"] == busy


def test_a_tie_keeps_the_default(store: Store) -> None:
    """Where no interval is clear of the tie zone the default stays, and what ties with it is named."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1015)], {SORTED: (1.03, 0.99, 1.02)})
    found = answer(store)

    assert (found.configuration, found.verdict) == (DEFAULT, "tie")
    assert [candidate.configuration for candidate in tie_set(found)] == [SORTED]
    assert "more blocks" not in shown(found)


def test_what_is_open_is_not_as_good_as_the_default(store: Store) -> None:
    """What is said to be found and not confirmed is in no tie with the default, and is told by its blocks, not by the search."""
    attempts, untried = [attempt(DEFAULT, 1000), attempt(SORTED, 2500)], [Prospect(PACKED, 1.4, 3.0)]
    studied(store, attempts, {SORTED: (1.9, 1.2, 1.5)}, left=untried, chance=0.6, stop=Stop.BUDGET)
    found = answer(store)

    assert (found.configuration, found.verdict) == (DEFAULT, "unsearched")
    assert found.best is not None
    assert found.best.configuration == SORTED
    assert tie_set(found) == []
    assert "as good as" not in shown(found)
    assert f"fastest found, unconfirmed: {SORTED}, 1.51 × the default (95 % interval " in shown(found)


def test_a_tie_that_more_blocks_may_decide_says_so(store: Store) -> None:
    """Where the middle of its blocks is clear of the default and the interval is not, the command with twice as many is told."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.9, 1.2, 1.5)})
    found = answer(store)

    assert found.verdict == "tie"
    assert f"more blocks may tell it from the default: {found.command} --blocks 6" in shown(found)


def test_more_blocks_are_told_in_place_of_those_that_were_asked_for(store: Store) -> None:
    """The command of a study that was broken off has its own number of blocks; the one with more has theirs alone."""
    attempts, blocks = [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.9, 1.2, 1.5)}
    studied(store, attempts, blocks, budget=Budget(90.0, blocks=3), stop=Stop.INTERRUPTED, state="interrupted")
    found = answer(store)

    assert found.command.endswith("--budget 90s --blocks 3")
    (line,) = [each for each in shown(found).splitlines() if "more blocks may tell" in each]
    assert (line.count("--blocks"), "--blocks 6" in line) == (1, True)


def test_what_is_near_is_near_by_what_was_confirmed(store: Store) -> None:
    """Two that were equal in the search are no tie where their confirmed ratios differ; with equal ratios they are."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1500), attempt(PACKED, 1490), attempt(FLASH, 1300)]
    blocks = {SORTED: (1.6, 1.61, 1.6), PACKED: (1.4, 1.41, 1.4), FLASH: (1.59, 1.6, 1.59)}
    studied(store, attempts, blocks)

    assert answer(store).configuration == SORTED
    assert [candidate.configuration for candidate in tie_set(answer(store))] == [FLASH]


def test_who_was_left_when_the_winner_was_settled_is_said_to_be_behind(store: Store) -> None:
    """Not confirmed, as fast in the search as what is recommended, and by its blocks' interval no match for it: no tie."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1500), attempt(PACKED, 1495)]
    study = studied(store, attempts)
    ratios = {SORTED: (1.5, 1.501, 1.499), PACKED: (1.0, 1.05, 1.06)}
    store.save_comparisons(study, [Comparison(c.key, DEFAULT.key, blocks, 9) for c, blocks in ratios.items()])
    found = answer(store)

    assert (found.configuration, found.verdict) == (SORTED, "faster")
    assert tie_set(found) == []
    (line,) = why_not(found, store.trials(study), "packed,bf16")[:1]
    assert "its interval ends below what is recommended" in line


def test_slower_ones_keep_the_default(store: Store) -> None:
    """Where nothing was faster in the search, nothing is compared, and the default is the answer."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 900), attempt(EAGER, 1010)])

    assert (answer(store).configuration, answer(store).verdict) == (DEFAULT, "default")


def test_what_is_not_confirmed_is_not_recommended(store: Store) -> None:
    """A study that was interrupted before its confirmation keeps the default, and says that it is for now."""
    studied(store, [attempt(DEFAULT, 1000), attempt(FLASH, 3000)], state="interrupted")
    found = answer(store)

    assert (found.configuration, found.verdict) == (DEFAULT, "unconfirmed")
    assert "the study is interrupted: run the same tune again to go on with it" in found.notes


def test_without_a_default_there_is_no_ratio(store: Store) -> None:
    """Where the default itself failed, the fastest of what ran is recommended, without a ratio and with a note."""
    studied(store, [attempt(DEFAULT, outcome=Outcome.OUT_OF_MEMORY), attempt(SORTED, 700), attempt(PACKED, 800)])
    found = answer(store)

    assert (found.configuration, found.verdict, found.default) == (PACKED, "slower-but-right", None)
    assert found.exit_status == 0
    assert found.payload["recommendation"]["ratio"] is None
    assert found.payload["recommendation"]["search_ratio"] is None
    assert [failure.outcome for failure in found.failures] == [Outcome.OUT_OF_MEMORY]
    assert "the default could not be measured, so there is no ratio" in found.notes


def test_what_ran_unproven_is_told_with_its_reason(store: Store) -> None:
    """A worker's mark for it is no name of a choice that a plugin may have; it may not be recommended, and it is told."""
    why = "asked for attention eager, but no softmax was launched, by which eager attention shows"
    unproven = attempt(EAGER, 3000, effective=EAGER.replaced(attention="eager (unproven)"), reason=why)
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 900), unproven])
    found = answer(store)

    assert (found.configuration, found.verdict) == (DEFAULT, "default")
    assert [c.objections for c in found.rejected] == [(f"it is unproven what ran: {why}",)]
    text = shown(found)
    assert "ADVISOR_PLUGINS" not in text
    assert f"≈3.00 × the default in the search: it is unproven what ran: {why}" in text
    assert f"{EAGER} unproven {why}" in text
    assert counted((), found.failures) == "of 1 configuration it is unproven what ran"
    told = [(each["label"], each["outcome"], each["reason"]) for each in found.payload["failures"]]
    assert told == [(str(EAGER), "unproven", why)]


def test_figures_count_for_what_ran(store: Store) -> None:
    """A trial that asked for one choice and ran another is evidence for the other, and is recommended as that."""
    ghost = attempt(FLASH, 2000, effective=PACKED)
    studied(store, [attempt(DEFAULT, 1000), ghost], {PACKED: (2.0, 2.0, 2.01)})

    assert answer(store).configuration == PACKED
    assert all(candidate.configuration != FLASH for candidate in answer(store).runners_up)


def test_a_study_that_runs_has_no_answer_yet(store: Store) -> None:
    """While the first trial runs nothing is measured: that is status 3, not "nothing admissible"."""
    studied(store, [attempt(DEFAULT, outcome=Outcome.RUNNING)], state="running")

    with pytest.raises(NotMeasured, match=r"no finished trial yet\. To go on: advisor tune org/model --lengths"):
        answer(store)


# ----------------------------------------------------------------------------------------------------------- objective


def test_the_memory_limit_excludes(store: Store) -> None:
    """What peaked above --max-memory is not recommended, be it the fastest or the default itself."""
    attempts = [attempt(DEFAULT, 1000), attempt(FLASH, 3000, peak_bytes=30 * GIB), attempt(PACKED, 1500)]
    studied(store, attempts, {FLASH: (3.0, 3.0, 3.01), PACKED: (1.5, 1.5, 1.51)})

    assert answer(store).configuration == FLASH
    assert answer(store, objective=replace(ANY, max_memory_bytes=25 * GIB)).configuration == PACKED
    assert answer(store, objective=replace(ANY, max_memory_bytes=30 * GIB)).configuration == FLASH


def test_the_best_within_memory_is_recommended_without_the_default(store: Store) -> None:
    """Where the default is above the limit, the best ratio within it is recommended, although it is no gain."""
    limit = replace(ANY, max_memory_bytes=10 * GIB)
    slow, slower = attempt(SORTED, 600, peak_bytes=9 * GIB), attempt(EAGER, 800, peak_bytes=8 * GIB)
    ratios = {SORTED: (0.7, 0.71, 0.7), EAGER: (0.6, 0.61, 0.6)}
    studied(store, [attempt(DEFAULT, 1000), slow, slower], ratios, objective=limit)
    found = answer(store, objective=limit)

    assert (found.configuration, found.verdict) == (SORTED, "slower-but-right")
    assert found.default is not None
    assert found.default.configuration == DEFAULT


def test_the_memory_limit_excludes_under_any_name(store: Store) -> None:
    """What ran under another name needs what it needs: stored without its peak, as once, or with it, it is not within a limit."""
    large = attempt(PACKED, 1900, peak_bytes=40 * GIB)
    named = attempt(FLASH, 1900, effective=PACKED, peak_bytes=None, reused_from=1)
    studied(store, [attempt(DEFAULT, 1000), large, named], {PACKED: (1.9, 1.91, 1.9)})
    bounded, free = answer(store, objective=replace(ANY, max_memory_bytes=24 * GIB)), answer(store)

    assert bounded.configuration == DEFAULT
    assert free.chosen is not None
    assert (free.configuration, free.chosen.trial.peak_bytes) == (PACKED, 40 * GIB)


def test_the_quality_tier_excludes(store: Store) -> None:
    """A narrower dtype needs the tier dtype, four bits need the tier 4bit; the tier is part of the answer."""
    attempts = [attempt(DEFAULT, 1000), attempt(FP16, 1400), attempt(NF4, 2000)]
    studied(store, attempts, {FP16: (1.4, 1.41, 1.4), NF4: (2.0, 2.01, 2.0)})
    expected = {Tier.EXACT: DEFAULT, Tier.DTYPE: FP16, Tier.EIGHT_BIT: FP16, Tier.FOUR_BIT: NF4}

    assert {tier: answer(store, objective=Objective(tier)).configuration for tier in Tier} == expected
    assert answer(store, objective=Objective(Tier.DTYPE)).tier == "dtype"
    assert answer(store, objective=Objective(Tier.EXACT)).tier == "exact"


def test_a_narrow_search_says_that_it_was_narrow(store: Store) -> None:
    """Asked for more than was searched, the answer says how far the search went; a wider study is taken first."""
    studied(store, [attempt(DEFAULT, 1000)], objective=Objective(Tier.EXACT))
    narrow = answer(store, objective=Objective(Tier.DTYPE))
    studied(store, [attempt(DEFAULT, 1000), attempt(FP16, 2000)], {FP16: (2.0, 2.0, 2.01)})

    assert "only quality exact was searched, which is narrower than what was asked for" in narrow.notes
    assert answer(store, objective=Objective(Tier.DTYPE)).configuration == FP16
    assert answer(store, objective=Objective(Tier.DTYPE)).notes == ()


def test_a_search_under_a_latency_is_narrower(store: Store) -> None:
    """Asked without a limit, the study that was made without one answers, be it the older."""
    studied(store, [attempt(DEFAULT, 1000), attempt(FLASH, 2000)], {FLASH: (2.0, 2.0, 2.01)})
    studied(store, [attempt(DEFAULT, 1000)], objective=replace(ANY, max_latency_s=0.08))

    assert answer(store, objective=Objective(Tier.DTYPE)).configuration == FLASH
    assert answer(store, objective=Objective(Tier.DTYPE)).notes == ()


@pytest.mark.parametrize("name", [n for n, choice in KNOBS["packing"].choices.items() if not choice.traits.advised])
def test_what_is_there_to_be_caught_is_never_recommended(store: Store, name: str) -> None:
    """A form of packing that a rule refuses is not recommended where the user had it run, however fast and right it came out."""
    form = DEFAULT.replaced(packing=name)
    studied(store, [attempt(DEFAULT, 1000), attempt(form, 3000)], {form: (3.0, 3.0, 3.01)})
    found = answer(store)

    assert found.configuration == DEFAULT
    assert form not in [candidate.configuration for candidate in found.runners_up]
    assert "is no configuration that is ever recommended" in why_not(found, store.trials(found.study.id), name)[0]


def test_what_was_not_measured_is_said(store: Store) -> None:
    """Where no trial has the figure that is asked for, that is the reason of each."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1500)])
    found = answer(store, objective=replace(ANY, metric="joules_per_token"))

    assert (found.configuration, found.verdict, found.exit_status) == (None, "unsearched", 3)
    assert all("its energy per useful token was not measured" in c.objections for c in found.rejected)
    assert "--objective energy" in found.command


def test_what_is_unjudged_has_to_be_allowed(store: Store) -> None:
    """With random weights nobody knows what a lossy choice loses: it is recommended with --allow-unjudged alone."""
    attempts = [attempt(DEFAULT, 1000), attempt(NF4, 2000, judged=False)]
    studied(store, attempts, {NF4: (2.0, 2.01, 2.0)}, source=DRAWN)
    allowed = answer(store, DRAWN, replace(ANY, allow_unjudged=True))

    assert answer(store, DRAWN).configuration == DEFAULT
    assert allowed.configuration == NF4
    assert "the quality of this choice was not judged" in allowed.notes
    assert "random weights: speed is true, quality of lossy choices is not judged" in allowed.notes


def test_quality_of_other_texts_is_said_to_be(store: Store) -> None:
    """A study that was gone on with on another file of the same lengths holds figures that nobody should compare."""
    judged = Quality(0.01, 0.1, 1e-3, 0.999, 64, 1.0, reference="fp32, eager, 64 positions, random tokens")
    other = replace(judged, reference="fp32, eager, 64 positions, your texts (a1b2)")
    ratios = {SORTED: (1.5, 1.5, 1.5)}
    studied(store, [attempt(DEFAULT, 100.0, quality=judged), attempt(SORTED, 150.0, quality=other)], ratios)
    mixed = answer(store)
    studied(store, [attempt(SORTED, 150.0, quality=judged)], ratios)

    said = "its quality is of your texts (a1b2), the default's of random tokens: they are not comparable"
    assert said in mixed.notes
    assert said not in answer(store).notes


def test_fine_tunes_share_speed_and_not_quality(store: Store) -> None:
    """Timings answer for any weights of the same shapes; a lossy choice judged on others is not recommended."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1200), attempt(NF4, 2000)]
    studied(store, attempts, {NF4: (2.0, 2.01, 2.0), SORTED: (1.2, 1.21, 1.2)})
    tuned = answer(store, TUNED)

    assert answer(store).configuration == NF4
    assert (tuned.configuration, tuned.verdict) == (SORTED, "faster")
    assert (
        "speeds were measured with other weights of the same shapes (org/model); "
        "the quality of org/tuned's own was not measured" in tuned.notes
    )
    assert answer(store, TUNED, replace(ANY, allow_unjudged=True)).configuration == NF4
    assert "its quality with these weights is not judged" in why_not(tuned, store.trials(tuned.study.id), "nf4")[0]


def test_a_study_of_random_weights_says_nothing_of_trained_ones(store: Store) -> None:
    """Its speeds are said to be its own; its quality, and what it refused for it, is not told of weights that nobody measured."""
    drawn = "these weights are drawn at random: what it costs them says nothing of trained ones"
    refusal = Reason("T0", Verdict.INVALID, drawn, "trained weights, or --allow-unjudged", subject="quantization=nf4")
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1200)]
    more = {"source": DRAWN, "admissible": 9, "left": UNTRIED[:1]}
    study = studied(store, attempts, {SORTED: (1.2, 1.21, 1.2)}, [refusal], **more)
    found, own = answer(store), answer(store, DRAWN)

    assert (own.configuration, own.verdict, own.exit_status) == (SORTED, "faster", 0)
    assert (found.configuration, found.verdict, found.exit_status) == (
        SORTED,
        "unsearched",
        3,
    )  # lossy choices were left out
    assert [reason.rule for reason in own.refusals] == ["T0"]
    assert "T0" not in [reason.rule for reason in found.refusals]
    assert (own.tried, own.admissible) == (2, 9)
    assert (found.tried, found.admissible) == (2, admissible_under(ANY))
    assert found.prospects.left == admissible_under(ANY) - 2
    assert found.payload["measured_weights"] == {
        "model": "model.json",
        "digest": "random:0",
        "random": True,
        "same": False,
    }
    assert found.payload["recommendation"]["quality"] is None
    assert found.payload["default"]["quality"] is None
    assert own.payload["recommendation"]["quality"]["judged"] is True
    said = shown(found)
    assert (
        "3 blocks); too little was tried to say that nothing is faster; the speeds are those of randomly drawn weights of the"
        in said
    )
    assert "its quality was not measured with these weights" in said
    assert "rms" not in said
    assert f"to measure these weights: {found.command}" in said
    assert found.command.startswith("advisor tune org/model --lengths")
    assert "KL" not in why_not(found, store.trials(study), "padded")[0]
    assert "rms" in shown(own)
    script = recommended_script(found, "cpu")
    said = " ".join(str(ast.get_docstring(ast.parse(script))).split())
    assert said.startswith(
        "org/model: sdpa · bf16 · sorted (written by advisor suggest). The speeds are those of randomly drawn"
    )
    assert said.endswith(f"the quality of org/model's own was not measured. To measure it: {found.command}")
    assert ast.get_docstring(ast.parse(recommended_script(own, "cpu"))) == (
        "model.json: sdpa · bf16 · sorted (written by advisor suggest)."
    )


def test_what_is_wrong_with_other_weights_may_be_right_with_these(store: Store) -> None:
    """That nothing is right holds for the weights that were measured: of others it is said whose it is, and how to go on."""
    coarse = Quality(0.9, 9.0, 1e-3, 0.99, 64, 1.001, reference="fp32, eager")
    studied(store, [attempt(DEFAULT, 1000, quality=coarse)], source=DRAWN, objective=Objective(Tier.EXACT))
    found = answer(store, objective=Objective(Tier.EXACT))

    assert (answer(store, DRAWN, Objective(Tier.EXACT)).verdict, found.verdict) == ("none-right", "unsearched")
    assert (found.configuration, found.exit_status) == (None, 3)
    assert "wrong output with other weights: rms error" in shown(found)
    assert f"to measure these weights: {found.command}" in shown(found)


@pytest.mark.parametrize(("searched", "asked"), [(Tier.EXACT, Tier.DTYPE), (Tier.DTYPE, Tier.EXACT)])
def test_counts_are_of_the_question_that_is_asked(store: Store, searched: Tier, asked: Tier) -> None:
    """Asked for another quality than was searched: what was refused, tried, and never tried is what holds for this one."""
    narrow = Reason("T0", Verdict.INVALID, "its tier is 4bit, and … was asked for", subject="quantization=nf4")
    attempts, ratios = [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.5, 1.51, 1.5)}
    studied(store, attempts, ratios, [narrow], objective=Objective(searched), admissible=7, stop=Stop.UNLIKELY)
    found, space = answer(store, objective=Objective(asked)), space_under(Objective(asked))

    assert (found.tried, found.admissible) == (2, len(space.admissible))
    assert found.refusals == space.refusals
    assert found.prospects.left == len(space.admissible) - 2
    assert found.why == f"nothing untried is likely to be better; it was a search for quality {searched}"
    assert f"2 of {len(space.admissible)} admissible configurations tried" in shown(found)


@pytest.mark.parametrize("ratio", [1.5, 0.9])
def test_more_than_was_searched_is_not_settled_by_what_was(store: Store, ratio: float) -> None:
    """What a wider question leaves and nobody tried may well be better: the best found is that for now, with what goes on."""
    studied(
        store,
        [attempt(DEFAULT, 1000), attempt(SORTED, 1000 * ratio)],
        {SORTED: (ratio, ratio + 0.01, ratio)},
        objective=Objective(Tier.EXACT),
        stop=Stop.UNLIKELY,
        budget=Budget(trials=2),
    )
    own, wider = answer(store, objective=Objective(Tier.EXACT)), answer(store)

    assert own.exit_status == 0
    assert (wider.verdict, wider.exit_status) == ("unsearched", 3)
    assert wider.configuration == own.configuration
    assert wider.prospects.is_open
    assert "too little was tried to say that nothing is faster" in shown(wider)
    assert f"to go on: {wider.command}" in shown(wider)
    assert "--quality 4bit" in wider.command


def test_what_was_faster_and_may_not_be_recommended_is_told(store: Store) -> None:
    """The best of it with its ratio and what stands against it: who saw it in the tune's lines finds it in the answer."""
    rough = Quality(0.2, 1.0, 0.5, 0.9, 64, 1.2, reference="fp32, eager")
    studied(
        store,
        [
            attempt(DEFAULT, 1000),
            attempt(SORTED, 1200),
            attempt(NF4, 3000, quality=rough),
            attempt(FP16, 2000, quality=rough),
        ],
        {SORTED: (1.2, 1.21, 1.2)},
        objective=Objective(Tier.DTYPE),
    )
    found = answer(store, objective=Objective(Tier.DTYPE))
    said = shown(found)
    assert found.configuration == SORTED
    assert (
        f"faster, and not to be recommended: {NF4}, ≈3.00 × the default in the search: its quality tier is 4bit" in said
    )
    assert "and 1 more (--why-not says of each)" in said
    (fp16,) = [each for each in found.payload["rejected"] if each["label"] == str(FP16)]
    assert (fp16["tier"], fp16["tier_reached"]) == ("dtype", None)
    assert found.payload["recommendation"]["tier_reached"] == "exact"


@pytest.mark.parametrize("only", [("precision", "tf32"), ("attention", "flash_attention_2")])
def test_what_only_leaves_and_rules_refuse_is_no_answer(store: Store, only: tuple[str, str]) -> None:
    """As a tune says of it: the default alone answers no question for something else."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.5, 1.51, 1.5)}, environment=LAPTOP)
    asked = Objective(Tier.EXACT, only=((only[0], (only[1],)),))
    with pytest.raises(NothingAdmissible) as refused:
        answer(store, objective=asked, here=LAPTOP)
    assert any(text.startswith("=".join(only)) for text in refused.value.reasons)


def test_what_only_leaves_and_nobody_tried_is_not_known(store: Store) -> None:
    """However unlikely it is to be better: the one configuration that was asked about was not measured, and the command does."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 900)], {SORTED: (0.9, 0.9, 0.91)}, stop=Stop.UNLIKELY)
    asked = replace(ANY, only=tuple(sorted((knob, (name,)) for knob, name in EAGER.spelled.items())))
    found = answer(store, objective=asked)
    assert (found.verdict, found.exit_status, found.tried, found.admissible) == ("unsearched", 3, 0, 1)
    assert "--only attention=eager" in found.command


def test_what_only_leaves_and_is_wrong_leaves_the_default(store: Store) -> None:
    """A form that would give wrong outputs was asked for: the default is the answer, and the rule stands beside it."""
    studied(store, [attempt(DEFAULT, 1000)], stop=Stop.UNLIKELY)
    found = answer(store, objective=replace(ANY, only=(("packing", ("packed-2d-mask",)),)))
    assert (found.configuration, found.verdict) == (DEFAULT, "default")
    assert "P2" in [reason.rule for reason in found.refusals]


def test_a_search_without_lossy_choices_says_so_where_they_are_asked_for(store: Store) -> None:
    """Of random weights none is tried: that nothing untried is better is said of the others alone."""
    kept = {"source": DRAWN, "objective": Objective(Tier.FOUR_BIT), "admissible": 7, "stop": Stop.UNLIKELY}
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.5, 1.51, 1.5)}, **kept)
    lossy = replace(Objective(Tier.FOUR_BIT), allow_unjudged=True)

    assert answer(store, DRAWN, Objective(Tier.FOUR_BIT)).why == "nothing untried is likely to be better"
    assert answer(store, DRAWN, lossy).why.endswith("; it was a search without lossy choices")


def test_what_ran_as_something_else_stays_refused_whatever_is_asked(store: Store) -> None:
    """Nor is what the machine showed forgotten where the space is built anew."""
    alias = Reason("E1", Verdict.ALIAS, "sdpa ran", subject="attention=eager")
    studied(store, [attempt(DEFAULT, 1000)], refusals=[alias], objective=Objective(Tier.EXACT), admissible=7)

    assert alias in answer(store, objective=Objective(Tier.DTYPE)).refusals


def test_ones_own_weights_come_before_others(store: Store) -> None:
    """A study of these very weights is preferred to a newer one of others, a finished one to one that runs."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1200)], {SORTED: (1.2, 1.2, 1.21)}, source=TUNED)
    studied(store, [attempt(DEFAULT, 1000)])
    started = Objective(Tier.EIGHT_BIT)
    studied(store, [attempt(DEFAULT, outcome=Outcome.RUNNING)], source=TUNED, objective=started, state="running")

    assert answer(store, TUNED).configuration == SORTED
    assert answer(store, TUNED, Objective(Tier.DTYPE)).configuration == SORTED
    with pytest.raises(NotMeasured):
        answer(store, TUNED, started)


def test_nothing_admissible_says_everything(store: Store) -> None:
    """Where rules leave nothing under an objective, every trial's and every rule's reason is told."""
    refusal = Reason("A4", Verdict.INVALID, "only fp16 and bf16", subject="attention=flash_attention_2")
    attempts = [
        attempt(DEFAULT, 1000),
        attempt(NF4, 2000, judged=False),
        attempt(EAGER),
        attempt(FP16, 900, outcome=Outcome.PRUNED),
    ]
    studied(store, attempts, refusals=[refusal], objective=Objective(max_memory_bytes=GIB), admissible=0)
    with pytest.raises(NothingAdmissible) as raised:
        answer(store, objective=Objective(max_memory_bytes=GIB))

    line = "\n".join(raised.value.reasons)
    assert f"{DEFAULT}: its peak of 20.0 GiB is 19.0 GiB above the 1.0 GiB allowed" in line
    assert f"{NF4}: its quality tier is 4bit, and dtype was asked for, its peak of 20.0 GiB is 19.0 GiB above" in line
    assert f"{EAGER}: runtime_error (it broke)" in line
    assert f"{FP16}: pruned" in line
    assert "attention=flash_attention_2: A4 only fp16 and bf16" in line


# ------------------------------------------------------------------------------------------------------ environments


def test_this_machine_answers_for_itself(store: Store) -> None:
    """On a GPU only what was measured on this very device answers, within the same limit of power."""
    bounded = replace(H200, power_limit_w=300)
    studied(store, [attempt(DEFAULT, 1000)], environment=bounded)

    with pytest.raises(NotMeasured, match=r"it differs in the environment \(power limit w\)\."):
        answer(store)
    assert answer(store, here=bounded).configuration == DEFAULT


def test_on_takes_a_key_or_a_name(store: Store) -> None:
    """--on chooses an environment by the beginning of its key or a part of its name, wherever one sits."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 2000)], {SORTED: (2.0, 2.0, 2.01)}, environment=T4)
    studied(store, [attempt(DEFAULT, 9000)], environment=H200)

    for on in ("t4", "Tesla", T4.key, T4.key[:6]):
        assert answer(store, here=LAPTOP, on=on).study.environment == T4
    for on in ("h200", H200.key[:6]):
        assert answer(store, here=LAPTOP, on=on).study.environment == H200
    with pytest.raises(NotMeasured) as unknown:
        answer(store, here=LAPTOP, on="V100")
    assert str(unknown.value).startswith(
        "not measured: no environment 'V100' is stored, by name or key. There are rows of: "
    )
    assert f"{T4.key}, {T4}" in str(unknown.value)
    with pytest.raises(
        NotMeasured, match=r"on H200\. Nearest measured: "
    ) as raised:  # which is known: other work was measured
        suggest(store, SOURCE, Forward((8, 8), 1), ANY, LAPTOP, "H200")
    assert "--threads" not in str(raised.value)


def test_a_laptop_is_answered_from_what_has_rows(store: Store) -> None:
    """On a CPU that measured nothing the newest environment with rows answers, and all with rows are named."""
    studied(store, [attempt(DEFAULT, 1000)], environment=T4)
    studied(store, [attempt(DEFAULT, 9000)], environment=H200)
    found = answer(store, here=LAPTOP)

    assert found.study.environment == H200
    (note,) = found.notes
    assert note.startswith(f"measured on {H200}, which differs from here in device (NVIDIA H200, not ")
    assert str(T4) in note
    studied(store, [attempt(DEFAULT, 10)], environment=LAPTOP)
    assert answer(store, here=LAPTOP).study.environment == LAPTOP


@pytest.mark.parametrize(
    ("workload", "difference"),
    [
        (Forward((256, 128, 256, 64), 2), "longest sequence (512, not 256)"),
        (Forward((512, 512, 512, 512), 2), "padding (0.38, not 0.0)"),
        (Forward((512, 128, 256, 64), 4), "batch (2, not 4)"),
        (Forward((512, 128, 256, 64), 2, "hidden"), "output (last-logits, not hidden)"),
        (Forward((512, 128, 256, 64) * 2, 2), "number of sequences (4, not 8)"),
        (Forward((512, 128, 256, 63), 2), "the lengths of its sequences"),
    ],
)
def test_the_nearest_says_how_it_differs(store: Store, workload: Forward, difference: str) -> None:
    """What was measured nearest is named with every figure that differs, theirs first."""
    studied(store, [attempt(DEFAULT, 1000)])
    studied(store, [attempt(DEFAULT, 1000)], workload=Forward((8,), 1, "all-logits"))
    with pytest.raises(NotMeasured) as raised:
        suggest(store, SOURCE, workload, ANY, H200)

    assert f"Nearest measured: {WORKLOAD} on {H200}; it differs in " in str(raised.value)
    assert difference in str(raised.value)
    assert f"advisor tune org/model {workload.flags} --quality 4bit" in str(raised.value)


# --------------------------------------------------------------------------------------------------------------- tables

COMPILED = SORTED.replaced(compilation="compiled-regional")
LONGEST = SORTED.replaced(compilation="compiled-regional-max-autotune-no-cudagraphs")


@pytest.mark.parametrize("pareto", [False, True])
def test_figures_are_whole_on_eighty_columns(store: Store, monkeypatch: pytest.MonkeyPatch, pareto: bool) -> None:
    """Heads and figures are neither cut nor broken beside labels of any length: words give way first, then labels."""
    attempts = [
        attempt(DEFAULT, 12005, peak_bytes=459 * 2**20),
        attempt(COMPILED, 17000, peak_bytes=465 * 2**20),
        attempt(LONGEST, 17100, peak_bytes=466 * 2**20),
        attempt(SORTED, 18000, peak_bytes=460 * 2**20),
    ]
    ratios = {SORTED: (1.5, 1.52, 1.51), COMPILED: (1.49, 1.51, 1.5), LONGEST: (1.48, 1.52, 1.5)}
    studied(store, attempts, ratios)
    monkeypatch.setenv("COLUMNS", "80")
    with redirect_stdout(StringIO()) as printed:
        print_recommendation(answer(store), "cpu", pareto=pareto)
    lines = printed.getvalue().splitlines()
    (head,) = [line for line in lines if line.startswith("runner-up")]

    assert all(each in head for each in ("× default", "tokens/s", "peak", "note"))
    assert "…" not in "".join(lines), printed.getvalue()
    for figures in ("1.50 (1.48–1.53)  17,000    465 MiB", "1.50 (1.45–1.55)  17,100    466 MiB"):
        assert any(line.startswith(f"{SORTED} ·") and figures in line for line in lines), printed.getvalue()
    assert any(line.startswith(f"{DEFAULT} ") and "1.00              12,005    459 MiB" in line for line in lines)
    if pareto:
        assert "no other beats these in speed, memory and quality" in lines
        (head,) = [line for line in lines if line.startswith("configuration")]
        assert all(each in head for each in ("× default", "tokens/s", "peak", "tier"))
        assert any("1.51 (1.49–1.54)  18,000    460 MiB" in line and line.endswith("exact") for line in lines)


# -------------------------------------------------------------------------------------------------------------- why not


def test_why_not_answers_for_every_fate(store: Store) -> None:
    """A choice that is recommended, refused, failed, slower, tied or not tried: each has its own words."""
    pair = Reason(
        "A4", Verdict.INVALID, "only fp16 and bf16", "choose bf16", "precision=fp32", "attention=flash_attention_2"
    )
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1300), attempt(NF4, 500), attempt(EAGER), attempt(PACKED, 1290)]
    study = studied(store, attempts, {SORTED: (1.3, 1.31, 1.3), PACKED: (1.29, 1.2, 0.9)}, [pair], stop=Stop.BUDGET)
    found = answer(store)
    said = {
        name: why_not(found, store.trials(study), name)
        for name in ("sorted", "flash_attention_2", "fp32", "eager", "nf4", "packed", "fp16")
    }

    assert said["sorted"] == ["sorted is recommended"]
    words = "attention=flash_attention_2 with precision=fp32: rule A4: only fp16 and bf16 → choose bf16"
    assert said["flash_attention_2"][0] == said["fp32"][0] == words
    assert said["eager"][0] == f"trial 3, {EAGER}: runtime_error: it broke"
    assert said["nf4"][0].startswith(f"trial 2, {NF4}: ≈0.50 × the default in the search; KL")
    assert said["nf4"][0].endswith("it was not confirmed")
    assert "confirmed 1.12 × the default (" in said["packed"][0]
    assert "): tie" in said["packed"][0]
    assert "it is not confirmed to be faster than the default" in said["packed"][0]
    for name in ("flash_attention_2", "eager", "nf4", "fp16"):
        assert re.match(rf"\w+={name}: \d+ admissible configurations with it were never tried; first", said[name][-2])
        assert said[name][-1].startswith("to try it: advisor tune org/model ")
        assert said[name][-1].endswith(f" --only {said[name][-2].partition(':')[0]}")


@pytest.mark.parametrize("stop", [Stop.PAYBACK, Stop.UNLIKELY, Stop.BUDGET, Stop.EVERYTHING])
def test_why_not_offers_to_try_that_very_thing(store: Store, stop: Stop) -> None:
    """Not all else that was never tried: the choice alone, or the one configuration that is left."""
    study = studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1300)], {SORTED: (1.3, 1.31, 1.3)}, stop=stop)
    found, trials, measures = (
        answer(store),
        store.trials(study),
        f"advisor tune org/model {WORKLOAD.flags} --quality 4bit",
    )

    assert why_not(found, trials, "compiled")[-1] == f"to try it: {measures} --only compilation=compiled"
    assert why_not(found, trials, str(FP16))[-1] == f"to try it: {measures} --only '{FP16}'"
    assert choices_in(shlex.split(why_not(found, trials, str(FP16))[-1])[-1]) == choices_in(str(FP16))

    interrupted = replace(found, study=replace(found.study, state="interrupted"))
    assert why_not(interrupted, trials, "compiled")[-1] == f"to go on: {interrupted.trying}"


def test_why_not_answers_for_all_that_is_asked(store: Store) -> None:
    """Of several choices it answers about what has them all: what was tried, what was not, and the rule that leaves nothing."""
    pair = Reason("A4", Verdict.INVALID, "no fp16", "", "precision=fp16", "attention=eager")
    rules = [pair, Reason("P1", Verdict.WRONG, "leaks", "", "", "packing=packed-cached")]
    both = NF4.replaced(attention="eager")
    study = studied(store, [attempt(DEFAULT, 1000), attempt(NF4, 500), attempt(both), attempt(EAGER, 900)], {}, rules)
    found, trials = answer(store), store.trials(study)

    part, tried, untried, _ = why_not(found, trials, "nf4,eager")
    assert part == "attention=eager with precision=fp16: rule A4: no fp16"
    assert tried == f"trial 2, {both}: runtime_error: it broke"
    assert re.match(
        r"attention=eager quantization=nf4: \d+ admissible configurations with all of these were never", untried
    )
    untried, _ = why_not(found, trials, "quantization=nf4,precision=fp16,attention=sdpa,packing=padded,compilation=off")
    assert untried.startswith(
        "attention=sdpa precision=fp16 quantization=nf4 packing=padded compilation=off: 1 admissible configuration with"
    )
    assert why_not(found, trials, "packed-cached,nf4") == [
        "packing=packed-cached: rule P1: leaks",
        "quantization=nf4 packing=packed-cached: no configuration with all of these is admissible here",
    ]
    assert why_not(found, trials, "fp16,nf4")[0] == part
    assert not any("rule A4" in line for line in why_not(found, trials, "fp16,sdpa"))


@pytest.mark.parametrize(
    "spelled",
    [
        "eager · bf16 · nf4",
        "eager · bf16 · nf4 · padded",
        "eager · padded · bf16 · nf4",
        "eager,bf16,nf4,padded",
        "packing=padded attention=eager quantization=nf4 precision=bf16",
        "attention eager, precision bf16, quantization nf4, packing padded",
        "precision=bf16 quantization=nf4 (attention=eager packing=padded)",
        "precision=bf16 quantization=nf4 with attention=eager packing=padded",
    ],
    ids=["text", "text of before", "SQL of before", "commas", "spelled", "show", "refused", "error"],
)
def test_why_not_takes_a_configuration_as_it_is_printed(spelled: str) -> None:
    """Whatever the order of its words and what stands between them."""
    asked = {"attention": "eager", "precision": "bf16", "quantization": "nf4", "packing": "padded"}
    assert Configuration.of(choices_in(spelled)) == Configuration.of(asked)
    assert choices_in(spelled).items() >= asked.items()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nf4,fp4", "a configuration has one choice of quantization, and 'nf4,fp4' names two (ask for each by itself)"),
        ("eager,nonsense", "there is no choice 'nonsense' (advisor probe lists them)"),
        ("attention=nf4", "attention has no choice 'nf4' (advisor probe lists them)"),
        (
            "colour=red",
            f"there is no knob 'colour' (there are {', '.join(KNOBS)})",
        ),
        (" · ", "names no choice (advisor probe lists them)"),
        ("packing", "packing is a knob, not a choice (name one of padded, sorted, packed"),
        ("no-attention eager", "there is no choice 'no-attention'"),
        ("x" * 5000, "there is no choice 'xxx"),
    ],
    ids=["one knob twice", "no choice", "another knob's", "no knob", "nothing", "a knob", "ends as a knob", "long"],
)
def test_what_is_no_choice_is_refused(text: str, words: str) -> None:
    """In a line that says what is wrong with which word."""
    with pytest.raises(BadInput) as raised:
        choices_in(text)

    assert words in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_choice_of_two_knobs_goes_to_the_one_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that two knobs have is told apart by the other words, or has to be spelled out."""
    monkeypatch.setitem(KNOBS["attention"].choices, "plain", KNOBS["attention"].choices["eager"])
    monkeypatch.setitem(KNOBS["quantization"].choices, "plain", KNOBS["quantization"].choices["none"])

    assert choices_in("plain · sdpa") == {"attention": "sdpa", "quantization": "plain"}
    assert choices_in("nf4 · plain") == {"attention": "plain", "quantization": "nf4"}
    assert choices_in("attention=plain,quantization=plain")["attention"] == "plain"
    with pytest.raises(BadInput, match="write attention=plain or quantization=plain"):
        choices_in("plain,bf16")


def test_a_generic_name_needs_its_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself "none" says nothing, even where one knob alone has it: only a whole configuration leaves no doubt."""
    assert choices_in("quantization=none") == {"quantization": "none"}
    assert Configuration.of(choices_in(str(DEFAULT))) == DEFAULT
    assert choices_in("sdpa · bf16 · none · padded") == choices_in(str(DEFAULT))
    for words in ("none", "none,bf16", "sdpa · none"):
        with pytest.raises(
            BadInput, match="none says nothing without its knob \\(write quantization=none or kernels=none\\)"
        ):
            choices_in(words)
    with pytest.raises(BadInput, match="there is no choice 'auto'"):
        choices_in("auto")
    monkeypatch.setitem(KNOBS["attention"].choices, "none", KNOBS["attention"].choices["eager"])
    assert Configuration.of(choices_in("none · bf16")) == DEFAULT.replaced(attention="none")
    with pytest.raises(BadInput, match="write attention=none or quantization=none"):
        choices_in("none,bf16")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("adamw", "there is adamw_torch_fused and adamw_8bit and paged_adamw_8bit; advisor probe lists them"),
        ("use_liger_kernel", "there is liger and liger-loss and liger-with-loss"),
        ("activation_checkpointing", "there is checkpointed"),
        ("optim=adamw_8bit", "there is adamw_8bit"),
        ("bf16=True", "there is autocast-bf16"),
        ("gradient_checkpointing", "the knob checkpointing has off, checkpointed"),
        ("fp8", "there is torchao-fp8 and torchao-fp8-dynamic-row and torchao-fp8-dynamic-tensor"),
    ],
)
def test_words_of_trainer_are_understood(word: str, said: str) -> None:
    """Its arguments and parts of names are no choices: what is meant by them is told."""
    with pytest.raises(BadInput, match=r"there is no (choice|knob)") as raised:
        choices_in(word)
    assert said in str(raised.value.hint)


def test_why_not_names_the_objective(store: Store) -> None:
    """A choice that ran, and fast, but is outside the objective is told what keeps it out."""
    study = studied(store, [attempt(DEFAULT, 1000), attempt(NF4, 2000, peak_bytes=30 * GIB)], {NF4: (2.0, 2.0, 2.01)})
    found = answer(store, objective=Objective(Tier.DTYPE, max_memory_bytes=25 * GIB))
    rule, line = why_not(found, store.trials(study), "nf4")

    assert rule == "quantization=nf4: rule T0: its tier is 4bit, and dtype was asked for → --quality 4bit"
    assert "2.00 × the default" in line
    assert "its peak of 30.0 GiB is 5.0 GiB above the 25.0 GiB allowed" in line
    assert "its quality tier is 4bit, and dtype was asked for" in line


# ---------------------------------------------------------------------------------------------------------- verdicts


def reading_its_pads(configuration: Configuration, speed: float) -> Trial:
    """Return a trial that was timed, and whose output moves with what stands in its pads."""
    quality = Quality(0.01, 0.1, 1e-3, 0.99, 64, 1.001, reference="fp32, eager", pads=0.5, neighbours=0.0)
    return attempt(configuration, speed, outcome=Outcome.WRONG_OUTPUT, quality=quality)


UNTRIED = (Prospect(FLASH, 1.6, 12.0), Prospect(NF4, 0.9, 20.0))


def test_a_wrong_default_is_never_recommended(store: Store) -> None:
    """What is right is recommended although it is slower; the default is timed, its ratio is 1, and it says what it reads."""
    attempts = [reading_its_pads(DEFAULT, 1000), attempt(SORTED, 800), attempt(PACKED, 700)]
    studied(store, attempts, {SORTED: (0.8, 0.81, 0.8), PACKED: (0.7, 0.71, 0.7)})
    found = answer(store)

    assert (found.configuration, found.verdict, found.exit_status) == (SORTED, "slower-but-right", 0)
    default = found.payload["default"]
    assert default["tokens_per_s"] == 1000
    assert "reads its pads" in default["objections"][0]
    assert default["quality"]["failures"] != []
    assert found.payload["recommendation"]["objections"] == []
    assert [c.configuration for c in found.rejected] == [DEFAULT]


def test_a_faster_one_beside_a_wrong_default_is_faster(store: Store) -> None:
    """The comparison is one like any other; without its blocks the best that is right is unconfirmed, never the default."""
    attempts = [reading_its_pads(DEFAULT, 1000), attempt(PACKED, 1500), attempt(SORTED, 900)]
    study = studied(store, attempts, {PACKED: (1.5, 1.51, 1.5)})
    assert (answer(store).configuration, answer(store).verdict) == (PACKED, "faster")
    store.save_comparisons(study, [])

    found = answer(store)
    assert (found.configuration, found.verdict, found.exit_status) == (PACKED, "unconfirmed", 3)


def test_a_comparison_that_is_open_is_told(store: Store) -> None:
    """Of a default that needs too much memory too: the blocks that were run are no "not compared"."""
    attempts = [attempt(DEFAULT, 1000, peak_bytes=60 * GIB), attempt(PACKED, 980, peak_bytes=10 * GIB)]
    wanted = Objective(Tier.DTYPE, max_memory_bytes=25 * GIB)
    study = studied(store, attempts, objective=wanted)
    known = "for now: the best found that may be recommended, "
    assert f"{known}not compared with the default yet" in headline(answer(store, objective=wanted))
    store.save_comparisons(study, [Comparison(PACKED.key, DEFAULT.key, (0.975, 0.967, 0.976), 9)])

    words = f"{known}0.97 × the default (95 % interval 0.95–0.99, 3 blocks), which is not clear yet"
    assert words in headline(answer(store, objective=wanted))
    store.save_comparisons(study, [Comparison(PACKED.key, DEFAULT.key, (0.975,), 9)])
    assert f"{known}0.97 × the default (one block), 3 could confirm it" in headline(answer(store, objective=wanted))


def test_what_a_block_found_slower_is_not_hoped_for_by_its_search(store: Store) -> None:
    """One block at 0.64 outweighs 1.05 in the search: what was as fast and met nobody comes first."""
    wanted = Objective(Tier.DTYPE, max_memory_bytes=25 * GIB)
    attempts = [attempt(DEFAULT, 1000, peak_bytes=60 * GIB)]
    attempts += [attempt(each, speed, peak_bytes=10 * GIB) for each, speed in ((PACKED, 1050), (SORTED, 1000))]
    study = studied(store, attempts, objective=wanted)
    assert answer(store, objective=wanted).configuration == PACKED
    store.save_comparisons(study, [Comparison(PACKED.key, DEFAULT.key, (0.64,), 9)])

    assert answer(store, objective=wanted).configuration == SORTED


def test_what_nobody_could_judge_goes_on_unjudged(store: Store) -> None:
    """The search ended for want of a reference: the command that goes on says what it takes, or it would end so again."""
    quality = Quality(
        0.01, 0.1, 1e-3, 0.99, 64, reference="fp32, eager", course="not compared: a step in fp32 does not fit"
    )
    studied(store, [attempt(DEFAULT, 1000, quality=quality)], stop=Stop.UNJUDGED, left=UNTRIED, chance=None)
    found = answer(store)

    assert "its training was not compared: a step in fp32 does not fit" in shown(found)
    assert f"to go on: {found.command}" in shown(found)
    assert found.command.endswith("--allow-unjudged")


def test_nothing_right_is_an_answer(store: Store) -> None:
    """Where everything was tried and nothing is right, the answer is whole: no recommendation, what is wrong, the way out."""
    study = studied(store, [reading_its_pads(DEFAULT, 1000), reading_its_pads(SORTED, 1200)])
    found = answer(store)

    assert (found.configuration, found.verdict, found.exit_status) == (None, "none-right", 4)
    assert found.payload["recommendation"] is None
    assert "reads its pads" in found.payload["default"]["objections"][0]
    assert found.way_out == "--batch 1, or batches of equal lengths"
    keep_answer(store, study)
    stored = store.answer(study)
    assert stored is not None
    assert (stored.configuration, stored.verdict) == (None, "none-right")
    assert any("reads its pads" in text for text in stored.why)


def test_an_empty_search_is_no_result(store: Store) -> None:
    """After the default alone, with something that is predicted to be faster, nothing is said to be the best."""
    studied(store, [attempt(DEFAULT, 1000)], stop=Stop.BUDGET, left=UNTRIED, chance=None)
    found = answer(store)

    assert (found.configuration, found.verdict, found.exit_status) == (DEFAULT, "unsearched", 3)
    assert found.why == "the budget was spent"
    payload = found.payload
    assert [each["configuration"] for each in payload["untried"]] == [FLASH.spelled, NF4.spelled]
    assert (payload["untried"][0]["ratio"], payload["untried"][0]["seconds"]) == (1.6, 12.0)
    assert payload["command"].startswith("advisor tune org/model --lengths 512,128,256,64")


@pytest.mark.parametrize(("chance", "verdict"), [(0.5, "unsearched"), (0.021, "unsearched"), (0.019, "default")])
def test_what_is_left_may_be_better(store: Store, chance: float, verdict: str) -> None:
    """That nothing is faster is said where the search's model agrees: no more chance is left than the search stops at."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 900)], stop=Stop.BUDGET, left=UNTRIED, chance=chance)
    assert answer(store).verdict == verdict


def test_a_search_that_no_longer_pays_has_said_something(store: Store) -> None:
    """What is left may be better, but looking is expected to cost more than it saves: the default is the answer."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 900)], stop=Stop.PAYBACK, left=UNTRIED, chance=0.3)
    found = answer(store)

    assert (found.verdict, found.exit_status) == ("default", 0)
    assert found.why == "more of it is expected to cost more than it saves"
    assert found.prospects.left == len(UNTRIED)


@pytest.mark.parametrize("is_faster", [True, False])
def test_what_would_not_pay_is_weighed_in_words(store: Store, is_faster: bool) -> None:
    """What is likely to be better and is not looked for: what it promises, its price, and the way to it."""
    blocks = {SORTED: (1.3, 1.31, 1.3)} if is_faster else {}
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1300 if is_faster else 900)]
    budget = Budget(600.0, payback_s=3600.0)
    studied(store, attempts, blocks, stop=Stop.PAYBACK, left=UNTRIED, chance=0.99, budget=budget)
    found = answer(store)
    assert (found.verdict, found.exit_status) == ("faster" if is_faster else "default", 0)

    left = (
        f"never tried: {len(UNTRIED)} (chance that one of them is better: 99 %), for each is expected to save less in 60 min of "
        f"work than it costs to find, measure and confirm; the best of them, {FLASH}, is predicted 1.60 × the default and takes "
        "about 12 s to measure"
    )
    text = shown(found)
    assert left in text
    assert f"to try what was never tried: {found.trying}" in text
    assert found.trying.endswith(" --exhaustive")


def test_what_is_unlikely_to_be_better_needs_no_command(store: Store) -> None:
    """Where a search ended because nothing is likely to be better, that is all that is said."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 1300)]
    studied(store, attempts, {SORTED: (1.3, 1.31, 1.3)}, stop=Stop.UNLIKELY, left=UNTRIED, chance=0.01)

    text = shown(answer(store))
    assert f"never tried: {len(UNTRIED)} (chance that one of them is better: 1.0 %)" in text
    assert "expected to save" not in text
    assert "to try what was never tried" not in text


@pytest.mark.parametrize(
    ("stop", "chance", "flags"),
    [
        (Stop.UNLIKELY, 0.01, " --exhaustive"),
        (Stop.PAYBACK, 0.3, " --exhaustive"),
        (Stop.TRIALS, 0.01, " --exhaustive"),
        (Stop.BUDGET, 0.3, " --budget 20m"),
    ],
)
def test_to_go_on_is_a_command_that_tries_something(store: Store, stop: Stop, chance: float, flags: str) -> None:
    """Where the search ended by its own rule more time tries nothing: all that is left has to be asked for."""
    attempts = [attempt(DEFAULT, 1000), attempt(SORTED, 900)]
    study = studied(store, attempts, {SORTED: (0.9, 0.9, 0.91)}, stop=stop, left=UNTRIED, chance=chance)
    found = answer(store)
    _, line = why_not(found, store.trials(study), "nf4")

    plain = "advisor tune org/model --lengths 512,128,256,64 --batch 2 --output last-logits --quality 4bit"
    assert found.command == f"{plain}{flags}"
    assert line == f"to try it: {plain} --only quantization=nf4"


def test_what_a_finished_search_left_out_takes_a_study_of_its_own(store: Store) -> None:
    """Where everything that could be tried was, no time and no flag of the same study tries more."""
    study = studied(store, [attempt(DEFAULT, 1000)], stop=Stop.EVERYTHING)
    found = answer(store)

    _, line = why_not(found, store.trials(study), "nf4,eager")
    assert line.endswith(f"to try it: {found.command} --only quantization=nf4 --only attention=eager")
    assert "--budget" not in found.command
    among = replace(ANY, only=(("attention", ("eager", "sdpa")),))
    narrow = studied(store, [attempt(DEFAULT, 1000)], stop=Stop.EVERYTHING, objective=among)
    _, line = why_not(answer(store, objective=among), store.trials(narrow), "eager")
    assert line.endswith("--quality 4bit --only attention=eager")


@pytest.mark.parametrize(
    ("budget", "flags"),
    [
        (Budget(600.0, payback_s=3600.0), ""),
        (Budget(600.0), " --budget 10m"),
        (Budget(90.0, blocks=3), " --budget 90s --blocks 3"),
        (Budget(1_234_567.0), " --budget 1234567s"),
        (Budget(None, 4), " --trials 4"),
        (Budget(3600.0, exhaustive=True), " --exhaustive --budget 60m"),
        (Budget(600.0, payback_s=60.0), " --payback 1m"),
    ],
)
def test_what_was_broken_off_goes_on_as_it_was_asked_for(store: Store, budget: Budget, flags: str) -> None:
    """The command of an answer is then the one that the interrupted tune named: with its own budget, not a longer one."""
    kept = {"stop": Stop.INTERRUPTED, "state": "interrupted", "left": UNTRIED, "chance": None}
    studied(store, [attempt(DEFAULT, 1000)], budget=budget, **kept)

    assert answer(store).command.partition(" --quality 4bit")[2] == flags


@pytest.mark.parametrize(
    ("budget", "stop", "status"),
    [
        (Budget(60.0), Stop.BUDGET, 3),
        (Budget(None, 1), Stop.TRIALS, 0),
        (Budget(10.0, 5), Stop.BUDGET, 3),
        (Budget(60.0, blocks=0), Stop.BUDGET, 3),
        (Budget(None, 1), Stop.INTERRUPTED, 3),
    ],
)
def test_what_was_asked_for_is_no_fault(store: Store, budget: Budget, stop: Stop, status: int) -> None:
    """With --trials a search that is short is what was asked for, unless it was cut before; it is called so all the same."""
    studied(store, [attempt(DEFAULT, 1000)], stop=stop, left=UNTRIED, chance=None, budget=budget)
    assert (answer(store).verdict, answer(store).exit_status) == ("unsearched", status)


@pytest.mark.parametrize(("blocks", "status"), [(0, 0), (2, 3), (3, 3)])
def test_blocks_that_were_not_asked_for_are_not_missed(store: Store, blocks: int, status: int) -> None:
    """Without blocks it is unconfirmed, and that is status 0 where none were asked for; too few of them are no answer."""
    studied(
        store,
        [attempt(DEFAULT, 1000), attempt(SORTED, 1500)],
        {SORTED: (1.5, 1.51)},
        budget=Budget(60.0, blocks=blocks),
    )
    found = answer(store)

    assert (found.configuration, found.verdict, found.exit_status) == (DEFAULT, "unconfirmed", status)
    assert found.best is not None
    assert found.best.configuration == SORTED


def test_conclusions_have_one_list() -> None:
    """The words of text, JSON and SQL, and their statuses."""
    assert {str(each): each.exit_status for each in Conclusion} == {
        "faster": 0,
        "tie": 0,
        "default": 0,
        "slower-but-right": 0,
        "unconfirmed": 3,
        "unsearched": 3,
        "none-right": 4,
    }


def test_what_was_cut_counts_as_untried(store: Store) -> None:
    """A trial that the budget cut is none: its configuration was not tried, has not failed, and may be the answer yet."""
    study = studied(store, [attempt(DEFAULT, 1000), attempt(FLASH, outcome=Outcome.CUT)], stop=None)
    found = answer(store)

    assert found.tried == 1
    assert found.failures == ()
    assert found.verdict == "unsearched"
    assert any("cut" in line for line in why_not(found, store.trials(study), "flash_attention_2"))


def test_what_may_fit_is_not_measured(store: Store) -> None:
    """A bound that what was measured misses, and what was never tried may meet, is no "nothing admissible"."""
    studied(store, [attempt(DEFAULT, 1000), attempt(SORTED, 1500)], {SORTED: (1.5, 1.5, 1.51)})
    found = answer(store, objective=replace(ANY, max_memory_bytes=6 * GIB))

    assert (found.configuration, found.verdict, found.exit_status) == (None, "unsearched", 3)
    assert found.prospects.left > 0
    assert all(each["needed_bytes"] <= 6 * GIB for each in found.payload["untried"])
    assert all("nf4" in str(p.configuration) or "fp4" in str(p.configuration) for p in found.prospects.promising)
    assert "--max-memory 6GiB" in found.command


# ---------------------------------------------------------------------------------------------------------- one order


def test_among_ties_the_lower_end_decides_then_simplicity(store: Store) -> None:
    """Ratios within the tie zone are ordered by the lower ends of their intervals as printed, then the simpler comes first."""
    attempts = [
        attempt(DEFAULT, 1000),
        attempt(SORTED, 1100),
        attempt(PACKED, 1300),
        attempt(FLASH, 1200),
        attempt(FP16, 1150),
    ]
    blocks = {
        SORTED: (1.19, 1.19, 1.1901),
        PACKED: (1.20, 1.26, 1.15),
        FLASH: (1.19, 1.1901, 1.19),
        FP16: (1.05, 1.06, 1.05),
    }
    study = studied(store, attempts, blocks)
    found, trials = answer(store), store.trials(study)

    assert [c.configuration for c in (found.chosen, *found.runners_up) if c] == [SORTED, FLASH, PACKED, FP16, DEFAULT]
    assert [c.configuration for c in tie_set(found)] == [FLASH, PACKED]
    assert found.pareto[0].configuration in (SORTED, PACKED, FLASH)
    assert "the two tie, and the lower end of its interval is lower" in why_not(found, trials, "packed")[0]
    assert "what is recommended is simpler" in "".join(why_not(found, trials, "flash_attention_2"))
    assert "its confirmed ratio is lower" in why_not(found, trials, "fp16")[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 3.0), st.floats(0.0, 0.2)), min_size=2, max_size=6))
def test_the_order_is_one(pairs: list[tuple[float, float]]) -> None:
    """However ratios lie: the faster first, each once, nobody above one that is clearly better, whatever order they come in."""
    candidates = [
        Candidate(
            replace(attempt(c, 1000 + n), number=n),
            1.0,
            Comparison(c.key, "d", (r, r * (1 + d), r * (1 + d / 2))),
            changes=n,
        )
        for n, (c, (r, d)) in enumerate(zip(_CANDIDATES, pairs, strict=False))
    ]
    ordered = ranked(candidates, ANY.aim)

    assert ordered == ranked(list(reversed(candidates)), ANY.aim)
    assert sorted(c.trial.number for c in ordered) == sorted(c.trial.number for c in candidates)
    classes = [("faster", "tie", "slower").index(c.verdict or "tie") for c in ordered]
    assert classes == sorted(classes)
    for above, below in pairwise(ordered):
        if above.verdict == below.verdict:
            assert (below.ratio or 0) <= (above.ratio or 0) * (1 + TIE_ZONE) * 1.0001


# -------------------------------------------------------------------------------------------------------- the view

_NUMBERS = count()
_PEAKS = st.sampled_from([8 * GIB, 20 * GIB, 30 * GIB])


@st.composite
def studies(draw: st.DrawFn) -> tuple[Objective, list[Trial], dict[Configuration, tuple[float, ...]]]:
    """Draw what tune can leave behind: trials, and comparisons of recommendable ones with a default that ran."""
    limit = draw(st.sampled_from([None, 10 * GIB, 25 * GIB]))
    objective = Objective(Tier.FOUR_BIT, limit, allow_unjudged=draw(st.booleans()))
    speeds = draw(st.lists(st.floats(10, 1e5), min_size=7, max_size=7, unique=True))
    default = attempt(DEFAULT, speeds[0] if draw(st.integers(0, 3)) else 0.0, peak_bytes=draw(_PEAKS))
    attempts = [default]
    for configuration, speed in zip(
        draw(st.permutations(_CANDIDATES))[: draw(st.integers(0, 5))], speeds[1:], strict=False
    ):
        fate = draw(st.sampled_from(["ok", "ok", "ok", "unjudged", "alias", "failed", "pruned"]))
        more: dict[str, Any] = {"peak_bytes": draw(_PEAKS), "judged": fate != "unjudged"}
        if fate == "alias":
            more["effective"] = draw(st.sampled_from([DEFAULT, PACKED, configuration]))
        if fate == "pruned":
            more["outcome"] = Outcome.PRUNED
        attempts.append(attempt(configuration, 0.0 if fate == "failed" else speed, **more))
    if default.outcome is not Outcome.OK and draw(st.booleans()):  # the same tune, run again
        default = attempt(DEFAULT, speeds[0], peak_bytes=draw(_PEAKS))
        attempts.append(default)
    noise = st.sampled_from([(1.0, 1.001), (0.99, 1.0, 1.01), (0.5, 1.0, 2.0)])
    middles = draw(st.lists(st.floats(0.5, 3.0), min_size=3, max_size=3, unique_by=lambda ratio: round(ratio, 2)))
    ratios = {}
    if default.outcome is Outcome.OK and draw(st.booleans()):
        fitting = [t.ran for t in attempts[1:] if t.outcome is Outcome.OK and t.ran != DEFAULT and _meets(t, objective)]
        finalists = dict.fromkeys(fitting[: draw(st.integers(0, 3))])
        ratios = {c: tuple(ratio * f for f in draw(noise)) for c, ratio in zip(finalists, middles, strict=False)}
    return objective, attempts, ratios


def _meets(trial: Trial, objective: Objective) -> bool:
    within = objective.max_memory_bytes is None or (trial.peak_bytes or 0) <= objective.max_memory_bytes
    return within and trial.quality is not None and (not trial.quality.drawn or objective.allow_unjudged)


def viewed(url: str, study: int) -> dict[str, Any] | None:
    """Return the study's row of v_recommendations, read with plain SQL."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    query = text(
        "SELECT configuration_key, ratio, low, high, verdict, blocks FROM v_recommendations WHERE study = :study"
    )
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query, {"study": study}).mappings()]
    engine.dispose()
    assert len(rows) <= 1
    return rows[0] if rows else None


@cache
def space_under(objective: Objective) -> Space:
    """Return the space of the studies here, for trained weights."""
    return build_space(FACTS, WORKLOAD, H200, objective, H200.memory_bytes)


def admissible_under(objective: Objective) -> int:
    """Return how many configurations an objective leaves."""
    return len(space_under(objective).admissible)


def check_that_the_view_agrees(store: Store, url: str, drawn: tuple[Any, ...]) -> None:
    """See that the view recommends what suggest does, with the same ratio, under the study's own objective."""
    objective, attempts, ratios = drawn
    workload = Forward((8, next(_NUMBERS) + 1), 1)
    more = {"objective": objective, "workload": workload, "admissible": admissible_under(objective)}
    study = studied(store, attempts, ratios, **more)
    keep_answer(store, study)
    row = viewed(url, study)
    assert row is not None
    try:
        found = recommend(store, SOURCE, store.study(study), objective)
    except NothingAdmissible:
        assert (row["configuration_key"], row["verdict"]) == (None, "none-right")
        return
    assert row["verdict"] == found.verdict
    if found.chosen is None:
        assert row["configuration_key"] is None
        return
    told = found.payload["recommendation"]
    assert row["configuration_key"] == found.chosen.configuration.key
    assert (row["ratio"], row["blocks"]) == (told["ratio"], told["blocks"])
    assert [row["low"], row["high"]] == (told["ratio_interval"] or [None, None])


_SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=60, **_SETTINGS)
@given(studies())
def test_the_view_says_what_suggest_says(store: Store, sqlite_url: str, drawn: tuple[Any, ...]) -> None:
    """v_recommendations recommends the same configuration with the same ratio as suggest, on SQLite."""
    check_that_the_view_agrees(store, sqlite_url, drawn)


@settings(max_examples=20, **_SETTINGS)
@given(studies())
def test_the_view_says_what_suggest_says_on_a_server(postgres_url: str, drawn: tuple[Any, ...]) -> None:
    """v_recommendations recommends the same configuration with the same ratio as suggest, on PostgreSQL."""
    with Store.open(postgres_url, write=True) as opened:
        check_that_the_view_agrees(opened, postgres_url, drawn)


@pytest.mark.parametrize("ratios", [{}, {SORTED: (0.7, 0.71, 0.7)}, {SORTED: (1.2, 1.21, 1.2)}])
def test_the_view_leaves_a_default_above_the_limit_out(
    database_url: str, ratios: dict[Configuration, tuple[float, ...]]
) -> None:
    """Where the default needs more memory than the objective allows, the view names the best of what does not."""
    attempts = [
        attempt(DEFAULT, 1000),
        attempt(SORTED, 600, peak_bytes=9 * GIB),
        attempt(FP16, 500, peak_bytes=9 * GIB),
    ]
    with Store.open(database_url, write=True) as opened:
        study = studied(opened, attempts, ratios, objective=replace(ANY, max_memory_bytes=10 * GIB))
        keep_answer(opened, study)
        row = viewed(database_url, study)

        assert row is not None
        assert row["configuration_key"] == SORTED.key
        assert row["verdict"] == (
            "unconfirmed" if not ratios else "faster" if ratios[SORTED][0] > 1 else "slower-but-right"
        )
        assert (row["ratio"] is None) == (not ratios)
        found = recommend(opened, SOURCE, opened.study(study), replace(ANY, max_memory_bytes=10 * GIB))
        assert (found.configuration, found.verdict) == (SORTED, row["verdict"])


def test_commands_leave_out_what_nobody_asked_for() -> None:
    """What a tune spends without being told is known there as the options say it."""
    assert read_duration(DEFAULT_BUDGET, "budget") == command.LONG_BUDGET_S
    assert read_duration(DEFAULT_PAYBACK, "payback") == command._PAYBACK_S
