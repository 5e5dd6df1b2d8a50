"""What comes next, as a table: a snapshot of a study, and the step that follows from it. No store, no runner, no clock."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from advisor.measure.messages import TrialDone
from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.step import Baseline, Compare, Confirm, Discard, Done, EndSearch, Probe, Search, Step, Wait
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.search.space import build_space
from advisor.show.support import LLAMA
from advisor.study import attempt
from advisor.study.next_step import next_step
from advisor.study.tuning import BUDGET_ENDED, INTERRUPTED, Job, Snapshot
from advisor.workloads.forward import Forward

H200 = Environment(
    "cuda",
    "NVIDIA H200",
    (9, 0),
    150 * 10**9,
    "580.95.05",
    "13.0",
    packages={"torch": "2.11.0", "transformers": "5.17.0", "flash-attn": "2.8.3"},
)
SOURCE = ModelSource("llama", "/nowhere", {"model_type": "llama"}, "trained", "sha256:0", has_tokenizer=False)
WORKLOAD = Forward((64, 32, 48, 16), 2)
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})
SORTED, PACKED = DEFAULT.replaced(packing="sorted"), DEFAULT.replaced(packing="packed")
ONLY = (
    ("attention", ("sdpa",)),
    ("packing", ("packed", "padded", "sorted")),
    ("precision", ("bf16",)),
    ("quantization", ("none",)),
)
FLEX = DEFAULT.replaced(attention="flex_attention")
OBJECTIVE = Objective(Tier.EXACT, only=ONLY)
JOB = Job(SOURCE, WORKLOAD, OBJECTIVE, Budget(), Machine(H200, "host", "GPU-1", 0, 140 * 10**9))
SPACE = build_space(LLAMA, WORKLOAD, H200, OBJECTIVE, 140 * 10**9)
WITH_FLEX = replace(SPACE, admissible=(DEFAULT, PACKED, FLEX))
MATH = DEFAULT.replaced(attention="sdpa-math")
LATE = tuple(each.replaced(compilation="compiled") for each in (MATH, PACKED, SORTED, DEFAULT))
WITH_LATE = replace(SPACE, admissible=(*LATE, DEFAULT, PACKED, SORTED, MATH))
GOOD = Quality(0.01, 0.1, 1e-4, 1.0, 1, reference="fp32, eager")
WRONG = replace(GOOD, rms=0.9, kl=1.0)


def seen(*trials: Trial, taken: tuple[int, ...] = (), **more: Any) -> Snapshot:
    """Return a snapshot with these trials, numbered in order."""
    numbered = tuple(replace(trial, number=number) for number, trial in enumerate(trials))
    budget = {name: more.pop(name) for name in ("trials", "blocks", "exhaustive", "seconds") if name in more}
    job = replace(JOB, budget=replace(Budget(), **budget), also=more.pop("also", ()))
    return Snapshot(job, LLAMA, more.pop("space", SPACE), numbered, frozenset(taken), **more)


def ran(requested: Configuration, speed: float = 100.0, **more: Any) -> Trial:
    """Return a search trial that is right, and as fast as this."""
    measured = (Measurement("round_s", "s", (160 / speed,)), Measurement("tokens_per_s", "tokens/s", (speed,)))
    known = {"measurements": measured, "quality": GOOD, "wall_s": 10.0, "device_uuid": "GPU-1", **more}
    return Trial(0, requested, requested, Outcome.OK, **known)


def running(requested: Configuration, **more: Any) -> Trial:
    """Return a trial that runs."""
    return Trial(0, requested, None, Outcome.RUNNING, **more)


def failed(requested: Configuration, outcome: Outcome = Outcome.RUNTIME_ERROR, **more: Any) -> Trial:
    """Return a trial of which nothing came."""
    return Trial(0, requested, None, outcome, **more)


def block(number: int, **speeds: float) -> list[Trial]:
    """Return the runs of a block: the default at 100 and PACKED, or who is named, at these speeds."""
    names = {"packed": PACKED, "sorted": SORTED, "default": DEFAULT}
    return [
        ran(names[name], speed, phase="confirm", block=number)
        for name, speed in {"default": 100.0, **(speeds or {"packed": 150.0})}.items()
    ]


ALL = (ran(DEFAULT), ran(PACKED, 150.0), ran(SORTED, 90.0))
#: The best takes 100 s to begin.
DEAR = (ran(DEFAULT), ran(PACKED, 150.0, first_call_s=100.0), ran(SORTED, 130.0))
OVER = {"stop": Stop.EVERYTHING}
NO_TIME, NO_BLOCK = Done("the budget has no time for another block"), Done("the budget has no time for a block")


def compared(*ratios: float) -> dict[str, Any]:
    """Return what is stored of PACKED after these blocks."""
    return {"comparisons": (Comparison(PACKED.key, DEFAULT.key, ratios, 9),)}


#: What a tune that is alone sees, and does.
ALONE: dict[str, tuple[Snapshot, Step]] = {
    "nothing": (seen(), Baseline(DEFAULT)),
    "no ceilings": (seen(has_ceilings=False), Probe()),
    "no ceilings, little time": (seen(has_ceilings=False, left_s=30.0), Baseline(DEFAULT)),
    "no time, no default": (seen(left_s=-1.0), Baseline(DEFAULT)),
    "the budget ended the default": (seen(failed(DEFAULT, Outcome.CUT), is_spent=True), EndSearch(Stop.BUDGET)),
    "a default that was cut before": (seen(failed(DEFAULT, Outcome.CUT), first=1), Baseline(DEFAULT)),
    "a default that failed before": (seen(failed(DEFAULT), first=1), Baseline(DEFAULT)),
    "a default that failed now": (seen(failed(DEFAULT)), Search(PACKED)),
    "the default": (seen(ran(DEFAULT)), Search(PACKED)),
    "what must be": (seen(ran(DEFAULT), also=(SORTED,)), Search(SORTED)),
    "what must be, no time": (seen(ran(DEFAULT), also=(SORTED,), left_s=0.0), EndSearch(Stop.BUDGET)),
    "one is left": (seen(ran(DEFAULT), ran(PACKED, 150.0)), Search(SORTED)),
    "one that failed before": (seen(ran(DEFAULT), failed(PACKED), ran(SORTED), first=3), Search(PACKED)),
    "one that was wrong before": (
        seen(ran(DEFAULT), failed(PACKED, Outcome.WRONG_OUTPUT), ran(SORTED), first=3), EndSearch(Stop.EVERYTHING)),
    "one that was cut": (seen(ran(DEFAULT), failed(PACKED, Outcome.CUT)), Search(SORTED)),
    "only one that was cut": (seen(ran(DEFAULT), failed(PACKED, Outcome.CUT), ran(SORTED)), Search(PACKED)),
    "everything": (seen(*ALL), EndSearch(Stop.EVERYTHING)),
    "as many as asked for": (seen(*ALL[:2], trials=2), EndSearch(Stop.TRIALS)),
    "no time": (seen(ran(DEFAULT), left_s=0.0), EndSearch(Stop.BUDGET)),
    "the budget ended a trial": (seen(ran(DEFAULT), is_spent=True), EndSearch(Stop.BUDGET)),
    "time for the confirmation alone": (seen(*ALL[:2], left_s=36.0), EndSearch(Stop.BUDGET)),
    "time for the confirmation, its last block a little late": (
        seen(*ALL[:2], left_s=30.0, seconds=100.0), EndSearch(Stop.BUDGET)),
    "no time for the confirmation, but for a trial": (seen(*ALL[:2], left_s=20.0, seconds=100.0), Search(SORTED)),
    "no time for the confirmation, nor for a trial as long as others": (
        seen(*ALL[:2], left_s=5.0, seconds=100.0), Search(SORTED)),
    "a default whose reference took longer than is left": (
        seen(ran(DEFAULT, wall_s=33.0), left_s=27.0, seconds=60.0), Search(PACKED)),
    "no time for what compiles for longer than is left": (
        seen(ran(DEFAULT), ran(PACKED, 90.0), left_s=50.0, space=WITH_FLEX), EndSearch(Stop.BUDGET)),
    "time for what compiles": (seen(ran(DEFAULT), ran(PACKED, 90.0), left_s=900.0, space=WITH_FLEX), Search(FLEX)),
    "what compiles waits until three were measured": (
        seen(ran(DEFAULT), ran(PACKED, 150.0), failed(SORTED), space=WITH_LATE), Search(MATH)),
    "then it is tried on the best": (seen(*ALL, ran(MATH, 50.0), space=WITH_LATE), Search(LATE[1])),
    "what compiles on another is tried where everything is": (
        seen(*ALL, ran(MATH, 50.0), *(ran(each, 140.0) for each in LATE[1:]), space=WITH_LATE, exhaustive=True),
        Search(LATE[0])),
    "the search is over": (seen(*ALL, **OVER), Confirm(1, (DEFAULT, PACKED))),
    "nothing is faster": (seen(ran(DEFAULT), ran(PACKED, 50.0), ran(SORTED, 90.0), **OVER), Done()),
    "no default": (seen(failed(DEFAULT), ran(PACKED), **OVER), Done()),
    "no blocks": (seen(*ALL, blocks=0, **OVER), Done()),
    "no time for a block": (seen(*ALL, left_s=1.0, **OVER), NO_BLOCK),
    "no time to confirm the best, but another": (seen(*DEAR, left_s=70.0, **OVER), Confirm(1, (DEFAULT, SORTED))),
    "no time to confirm any": (seen(*DEAR, left_s=1.0, **OVER), NO_BLOCK),
    "time to confirm the best": (seen(*DEAR, left_s=700.0, **OVER), Confirm(1, (DEFAULT, PACKED))),
    "no time to confirm the best, which must be": (
        seen(*DEAR, also=(PACKED,), left_s=120.0, **OVER), Confirm(1, (DEFAULT, PACKED))),
    "no time to confirm the best, another is confirmed": (
        seen(*DEAR, *(each for n in (1, 2, 3) for each in block(n, sorted=130.0)), left_s=140.0, **OVER,
             comparisons=(Comparison(SORTED.key, DEFAULT.key, (1.3, 1.3, 1.3), 9),)), Done()),
    "no time to confirm the best, another is no better than a tie": (
        seen(*DEAR[:2], ran(SORTED, 101.0), left_s=70.0, **OVER), NO_BLOCK),
    "no time to confirm the best, and the default is none": (
        seen(ran(DEFAULT, quality=WRONG), *DEAR[1:2], ran(SORTED, 60.0), left_s=70.0, **OVER), NO_BLOCK),
    "the best is confirmed, no time for one as good": (
        seen(*ALL[:2], ran(SORTED, 149.0, first_call_s=100.0), ran(MATH, 148.0), *block(1), *block(2), *block(3),
             space=WITH_LATE, left_s=70.0, **OVER, **compared(1.5, 1.5, 1.5)), NO_TIME),
    "time is set aside for the best that can be confirmed": (
        seen(*DEAR, left_s=36.0, space=WITH_LATE), EndSearch(Stop.BUDGET)),
    "no time to confirm any, but for a trial": (seen(*DEAR, left_s=20.0, space=WITH_LATE), Search(MATH)),
    "the budget ended a block": (
        seen(*ALL, is_spent=True, **OVER), NO_BLOCK),
    "a block that is not compared": (seen(*ALL, *block(1), **OVER), Compare(compared(1.5)["comparisons"])),
    "one block": (seen(*ALL, *block(1), **OVER, **compared(1.5)), Confirm(2, (DEFAULT, PACKED))),
    "two blocks, and the third a little late": (
        seen(*ALL, *block(1), *block(2), **OVER, **compared(1.5, 1.5), seconds=100.0, left_s=15.0),
        Confirm(3, (DEFAULT, PACKED), decides=True)),
    "two blocks of the best, none of who is near it, and the third a little late": (
        seen(*ALL[:2], ran(SORTED, 149.0), *block(1), *block(2), **OVER, **compared(1.5, 1.5), seconds=100.0, left_s=15.0),
        Confirm(3, (DEFAULT, PACKED), decides=True)),
    "two blocks, and the third too late": (
        seen(*ALL, *block(1), *block(2), **OVER, **compared(1.5, 1.5), seconds=100.0, left_s=11.0), NO_TIME),
    "one block, and the second a little late": (
        seen(*ALL, *block(1), **OVER, **compared(1.5), seconds=100.0, left_s=15.0), NO_TIME),
    "three blocks, open, and the fourth a little late": (
        seen(*ALL, *block(1, packed=99.0), *block(2, packed=150.0), *block(3, packed=120.0), **OVER,
             **compared(0.99, 1.5, 1.2), seconds=100.0, left_s=15.0), NO_TIME),
    "three blocks, clear": (
        seen(*ALL, *block(1), *block(2), *block(3), **OVER, **compared(1.5, 1.5, 1.5)), Done()),
    "three blocks, open": (
        seen(*ALL, *block(1, packed=99.0), *block(2, packed=150.0), *block(3, packed=120.0), **OVER,
             **compared(0.99, 1.5, 1.2)),
        Confirm(4, (DEFAULT, PACKED))),
    "a block that says nothing": (
        seen(*ALL, ran(DEFAULT, phase="confirm", block=1), failed(PACKED, phase="confirm", block=1, reason="it broke"), **OVER),
        Done("no comparison came of a block: it broke")),
    "a block that said nothing to an earlier tune": (
        seen(*ALL, ran(DEFAULT, phase="confirm", block=1), failed(PACKED, phase="confirm", block=1, reason="it broke"),
             first=5, **OVER),
        Confirm(2, (DEFAULT, PACKED))),
    "a block that was broken off": (
        seen(*ALL, ran(DEFAULT, phase="confirm", block=1),
             failed(PACKED, Outcome.CUT, phase="confirm", block=1, reason=INTERRUPTED), **OVER),
        Confirm(2, (DEFAULT, PACKED))),
    "a block that another's budget ended": (
        seen(*ALL, ran(DEFAULT, phase="confirm", block=1),
             failed(PACKED, Outcome.CUT, phase="confirm", block=1, reason=BUDGET_ENDED), **OVER),
        Confirm(2, (DEFAULT, PACKED))),
    "one that was left behind, run again and failed": (
        seen(ran(DEFAULT), failed(PACKED), ran(SORTED, 90.0), first=3, unfinished=frozenset({1})), EndSearch(Stop.EVERYTHING)),
    "one that was left behind and is not admissible now": (
        seen(ran(DEFAULT), running(DEFAULT.replaced(attention="eager"))),
        Discard(1, DEFAULT.replaced(attention="eager"))),
    "a search trial that was left behind": (seen(ran(DEFAULT), running(SORTED)), Search(SORTED, 1)),
    "a default that was left behind": (seen(running(DEFAULT)), Baseline(DEFAULT, 0)),
    "one left behind that was done since": (seen(ran(DEFAULT), running(SORTED), ran(SORTED)), Discard(1, SORTED)),
    "one left behind, the budget is spent": (seen(ran(DEFAULT), running(SORTED), is_spent=True), EndSearch(Stop.BUDGET)),
    "one left behind, the search is over": (
        seen(ran(DEFAULT), ran(PACKED, 50.0), running(SORTED), **OVER), Done()),
    "a run of a block that was left behind": (
        seen(*ALL, running(PACKED, phase="confirm", block=1), **OVER), Discard(3, PACKED, "confirm", 1)),
}  # fmt: skip

#: What one of several sees. The trials whose numbers are in `taken` are run by the others.
SHARED: dict[str, tuple[Snapshot, Step]] = {
    "another runs the default": (seen(running(DEFAULT), taken=(0,)), Search(PACKED)),
    "another runs the default, all else is tried": (seen(running(DEFAULT), *ALL[1:], taken=(0,)), Wait((0,))),
    "another runs the default, no time": (
        seen(running(DEFAULT), *ALL[1:], taken=(0,), left_s=0.0), EndSearch(Stop.BUDGET)),
    "another runs the likeliest": (seen(ran(DEFAULT), running(PACKED), taken=(1,)), Search(SORTED)),
    "others run all that is left": (
        seen(ran(DEFAULT), running(PACKED), running(SORTED), taken=(1, 2)), Wait((1, 2))),
    "others run all that is left, exhaustively": (
        seen(ran(DEFAULT), running(PACKED), running(SORTED), taken=(1, 2), exhaustive=True), Wait((1, 2))),
    "others run all that is left, no time": (
        seen(ran(DEFAULT), running(PACKED), running(SORTED), taken=(1, 2), left_s=0.0), EndSearch(Stop.EVERYTHING)),
    "others run the last that is asked for": (
        seen(ran(DEFAULT), running(PACKED), taken=(1,), trials=2), Wait((1,))),
    "one of two is left behind": (seen(ran(DEFAULT), running(PACKED), running(SORTED), taken=(1,)), Search(SORTED, 2)),
    "another runs the block, another is needed": (
        seen(*ALL, running(DEFAULT, phase="confirm", block=1), running(PACKED, phase="confirm", block=1), taken=(3, 4), **OVER),
        Confirm(2, (DEFAULT, PACKED))),
    "no time to confirm the best, another runs the block that decides of the next": (
        seen(*DEAR, *block(1, sorted=130.0), *block(2, sorted=130.0), running(DEFAULT, phase="confirm", block=3),
             running(SORTED, phase="confirm", block=3), taken=(7, 8), left_s=70.0, **OVER,
             comparisons=(Comparison(SORTED.key, DEFAULT.key, (1.3, 1.3), 9),)), Wait((8,))),
    "another runs the third block": (
        seen(*ALL, *block(1), *block(2), running(DEFAULT, phase="confirm", block=3),
             running(PACKED, phase="confirm", block=3), taken=(7, 8), **OVER, **compared(1.5, 1.5)),
        Wait((8,))),
    "another runs the third block, no time": (
        seen(*ALL, *block(1), *block(2), running(DEFAULT, phase="confirm", block=3),
             running(PACKED, phase="confirm", block=3), taken=(7, 8), left_s=0.0, **OVER, **compared(1.5, 1.5)),
        Done()),
    "others run two of three blocks": (
        seen(*ALL, *block(1), *(running(c, phase="confirm", block=n) for n in (2, 3) for c in (DEFAULT, PACKED)),
             taken=(5, 6, 7, 8), **OVER, **compared(1.5)),
        Wait((6, 8))),
    "others run three of twelve blocks": (
        seen(*ALL, *(running(c, phase="confirm", block=n) for n in (1, 2, 3) for c in (DEFAULT, PACKED)),
             taken=tuple(range(3, 9)), blocks=12, **OVER),
        Confirm(4, (DEFAULT, PACKED))),
    "another measures while the search is over": (
        seen(ran(DEFAULT), ran(PACKED, 150.0), running(SORTED), taken=(2,), **OVER), Confirm(1, (DEFAULT, PACKED))),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_what_a_tune_does_alone(case: str) -> None:
    """Each step follows from the snapshot, and from nothing else: the same snapshot has the same step."""
    snapshot, step = ALONE[case]
    assert next_step(snapshot) == step
    assert next_step(replace(snapshot)) == step
    assert type(next_step(snapshot)) is type(step)


@pytest.mark.parametrize("case", SHARED)
def test_what_one_of_several_does(case: str) -> None:
    """What somebody else runs is not run again; where it decides what comes next, it is waited for while there is time."""
    snapshot, step = SHARED[case]
    assert next_step(snapshot) == step


def test_the_default_is_what_transformers_does() -> None:
    """Where it failed in an earlier tune, what was measured first is not taken for it: it is measured, and compared with."""
    before = (failed(DEFAULT), ran(PACKED, 150.0), ran(SORTED, 90.0))
    assert next_step(seen(*before, first=3)) == Baseline(DEFAULT)
    assert next_step(seen(*before, ran(DEFAULT), first=3, **OVER)) == Confirm(1, (DEFAULT, PACKED))


def test_what_waits_for_its_launches_is_searched_by_them() -> None:
    """Once the default's trial shows that the GPU waits, what computes less is no better for it; what launches less is."""
    waiting = (*ran(DEFAULT).measurements, Measurement("gpu_busy", "share", (0.05,)))
    less = replace(SPACE, launches={**dict.fromkeys(SPACE.costs, 1.0), SORTED: 0.5})

    assert next_step(seen(ran(DEFAULT), space=less)) == Search(PACKED)
    assert next_step(seen(ran(DEFAULT, measurements=waiting), space=less)) == Search(SORTED)


def test_failures_in_a_row_end_the_search() -> None:
    """Ten do, with what they had in common; what another runs meanwhile is no success."""
    others = [DEFAULT.replaced(attention=f"broken-{number}") for number in range(10)]
    snapshot = seen(ran(DEFAULT), *map(failed, others), running(PACKED), taken=(11,))
    step = next_step(snapshot)
    assert isinstance(step, EndSearch)
    assert step.stop is Stop.FAILURES
    assert step.text.startswith("10 failures in a row (runtime_error × 10); in common: packing padded")
    assert next_step(replace(snapshot, stored=snapshot.stored[2:])) != step


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        (
            replace(GOOD, course="not compared: a step in fp32 does not fit"),
            "its training was not compared: a step in fp32",
        ),
        (
            replace(GOOD, reference="not judged: it does not fit"),
            "its quality is not judged: not judged: it does not fit",
        ),
    ],
)
def test_a_search_of_what_nobody_could_judge_is_none(quality: Quality, said: str) -> None:
    """Without a reference nothing may be recommended, whatever is measured: it is said after the default, with the way out.

    A search went on to weights in fp32, as if the default's bf16 were at fault, until its budget was spent.
    """
    snapshot = seen(ran(DEFAULT, quality=quality))
    step = next_step(snapshot)
    assert isinstance(step, EndSearch)
    assert (step.stop, step.stop.is_cut) == (Stop.UNJUDGED, True)
    assert f"of no configuration it is known whether it is right: {said}" in step.text

    earlier = replace(snapshot, first=1)  # a reference that was lacking then may be had now
    assert next_step(earlier) == Baseline(DEFAULT)
    allowed = replace(snapshot, job=replace(snapshot.job, objective=replace(OBJECTIVE, allow_unjudged=True)))
    assert isinstance(next_step(allowed), Search)
    assert isinstance(next_step(seen(ran(DEFAULT, quality=quality), exhaustive=True)), Search)


def test_time_is_set_aside_for_the_blocks_that_are_needed_yet() -> None:
    """While two blocks are lacking, what two take is kept from the search; with all of them run, nothing is."""
    lacking = seen(*ALL[:2], *block(1), **compared(1.5), left_s=45.0)
    assert next_step(lacking) == EndSearch(Stop.BUDGET)
    done = seen(*ALL[:2], *block(1), *block(2), *block(3), **compared(1.5, 1.5, 1.5), left_s=45.0)
    assert next_step(done) == Search(SORTED)
    assert next_step(replace(lacking, left_s=math.inf)) == Search(SORTED)


def test_a_trial_may_take_what_is_not_set_aside() -> None:
    """All that is left where nothing is to be confirmed, else what the blocks leave of it."""
    found, nothing = seen(*ALL[:2], left_s=200.0), seen(ran(DEFAULT), ran(PACKED, 90.0), left_s=200.0)
    steps = next_step(found), next_step(nothing)

    assert [getattr(step, "configuration", None) for step in steps] == [SORTED, SORTED]
    assert 0 < getattr(steps[0], "most_s", 0.0) < 200.0
    assert getattr(steps[1], "most_s", 0.0) == math.inf


@pytest.mark.parametrize(
    ("rival", "more", "step"),
    [
        ((100.0, 105.0, 106.0), {}, Done()),
        ((120.0, 145.0, 150.0), {}, Confirm(4, (DEFAULT, SORTED))),
        ((100.0, 105.0, 106.0), {"also": (SORTED,)}, Confirm(4, (DEFAULT, SORTED))),
    ],
    ids=["below the winner", "may be the winner", "must be compared"],
)
def test_who_cannot_be_recommended_meets_the_default_no_more(
    rival: tuple[float, ...], more: dict[str, Any], step: Step
) -> None:
    """Once the best is faster for certain, a rival whose interval ends below it could be told from the default alone."""
    best = (150.0, 150.1, 149.9)
    blocks = [each for n in range(3) for each in block(n + 1, packed=best[n], sorted=rival[n])]
    known = tuple(
        Comparison(each.key, DEFAULT.key, tuple(speed / 100 for speed in speeds), 9)
        for each, speeds in ((PACKED, best), (SORTED, rival))
    )
    assert known[0].verdict == "faster"
    assert known[1].is_open

    assert next_step(seen(*ALL[:2], ran(SORTED, 149.0), *blocks, comparisons=known, **OVER, **more)) == step
    unsettled = [each for n in range(3) for each in block(n + 1, packed=(99.0, 150.0, 120.0)[n], sorted=rival[n])]
    going_on = next_step(seen(*ALL[:2], ran(SORTED, 149.0), *unsettled, **OVER, **more))
    assert isinstance(going_on, Compare)
    again = next_step(seen(*ALL[:2], ran(SORTED, 149.0), *unsettled, comparisons=going_on.comparisons, **OVER, **more))
    assert isinstance(again, Confirm)
    assert {PACKED, SORTED} <= {*again.contestants}


def test_what_ran_under_another_name_has_the_figures_of_what_ran() -> None:
    """Asked for another configuration, but one that was measured ran: its speed counts, and that it was right does too."""
    there = seen(ran(DEFAULT), ran(PACKED, 150.0, quality=replace(GOOD, gate_s=1.5), peak_bytes=40 * 2**30))
    done = TrialDone(outcome=Outcome.OK, effective=PACKED, alias="asked for sorted, but packed ran")

    trial = attempt.told(there, SORTED, 2, "search", None, done)

    assert (trial.requested, trial.ran, trial.reused_from) == (SORTED, PACKED, 1)
    assert trial.value("tokens_per_s") == 150.0
    assert trial.quality == GOOD  # and no second was spent on it
    assert trial.peak_bytes == 40 * 2**30
