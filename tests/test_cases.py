"""Rules are asked once for each case that they tell apart, and what they say is what they would say of every combination."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.knobs import KNOBS, Situation, knobs_for
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.objective import Objective, Tier
from advisor.search.cases import Grid
from advisor.search.cost import predicted_bytes, predicted_cost, predicted_launches
from advisor.search.space import HOPELESS, MEMORY_SHARE, build_space, refusals_of
from advisor.show.support import LLAMA, MACHINES
from advisor.workloads.forward import Forward

WORKLOAD = Forward((64, 32, 48, 16), 2)
H200 = MACHINES["NVIDIA H200"]
BATCHES: dict[int | None, list[tuple[str, tuple[str, ...]]]] = {None: [("batch", ("1", "4"))], 2: [], 4: []}
#: Of the knobs with the most choices some of each kind: every combination is looked at by itself.
SOME = (
    ("quantization", ("none", "int8", "torchao-fp8-dynamic-row")),
    ("compilation", ("off", "compiled-regional", "compiled-reduce-overhead-dynamic")),
)
ENCODER = replace(LLAMA, is_causal=False, packed_row="wrong")
OPEN = Forward((64, 32, 48, 16, 700), None)


def grid(workload: Forward = WORKLOAD) -> Grid:
    """Return combinations for a workload on an H200: of every knob three choices, or so few as make a difference."""
    axes = {knob.name: tuple(knob.choices)[::4] for knob in knobs_for(workload).values()}
    return Grid({**axes, "packing": ("padded", "sorted", "packed")}, LLAMA, workload, H200)


def situations(over: Grid) -> Iterator[Situation]:
    """Yield every combination's situation, the last knob's choice changing fastest."""
    for names in product(*over.axes.values()):
        configuration = Configuration.of(dict(zip(over.axes, names, strict=True)))
        yield Situation(configuration, over.workload.under(configuration), over.environment, over.facts)


SDPA = Configuration.of({"attention": "eager", "precision": "fp32", "packing": "packed"})
LOOKS = {
    "nothing": lambda _: 1,
    "a trait": lambda s: s.traits.packs,
    "a trait of several knobs": lambda s: s.traits.process_wide,
    "one trait or another": lambda s: s.traits.dtype if s.traits.packs else s.traits.builds_mask,
    "a choice": lambda s: s.configuration["packing"],
    "an implied choice": lambda s: s.configuration.get("quantization"),
    "whether there is a choice": lambda s: "batch" in s.configuration,
    "what there is not": lambda s: s.configuration.get("nothing of the kind", "so"),
    "the batch": lambda s: s.workload.batches(),
    "two choices": lambda s: s.configuration.over(("attention", "precision")),
    "all choices": lambda s: str(s.configuration),
    "all choices as a mapping": lambda s: dict(s.configuration),
    "whether it is one": lambda s: s.configuration == SDPA,
    "the key": lambda s: s.configuration.key,
    "how many are stated": lambda s: len(s.configuration),
    "facts and environment": lambda s: (s.facts.layers, s.environment.is_cuda),
}


@pytest.mark.parametrize("workload", [WORKLOAD, OPEN], ids=["batch given", "batch open"])
@pytest.mark.parametrize("look", LOOKS)
def test_an_answer_for_each_case_is_the_answer_for_each_combination(look: str, workload: Forward) -> None:
    """Whatever a function looks at, the table holds what it says of every combination."""
    over = grid(workload)
    cases = over.ask(LOOKS[look])
    numbers = np.broadcast_to(cases.table, over.shape).reshape(-1)

    assert [cases.answers[number] for number in numbers] == [LOOKS[look](each) for each in situations(over)]


def test_a_function_is_asked_once_for_each_case() -> None:
    """Two traits of two knobs make four cases, however many combinations there are."""
    asked: list[Any] = []

    def function(situation: Situation) -> bool:
        asked.append(situation)
        return situation.traits.packs and situation.traits.quantises

    cases = grid(OPEN).ask(function)

    assert sorted(cases.answers) == [False, False, False, True]
    assert len(asked) == 4
    assert math.prod(cases.table.shape) < math.prod(grid(OPEN).shape) / 10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(LOOKS) - {"all choices as a mapping"})), min_size=1, max_size=4))
def test_a_function_may_look_at_one_thing_where_another_is_so(names: list[str]) -> None:
    """What is looked at may depend on what was seen: all of it is found."""

    def function(situation: Situation) -> Any:
        said: Any = ""
        for name in names:
            said = (said, LOOKS[name](situation))
            if hash(str(said)) % 3 == 0:
                break
        return said

    over = grid()
    cases = over.ask(function)
    numbers = np.broadcast_to(cases.table, over.shape).reshape(-1)

    assert [cases.answers[number] for number in numbers] == [function(each) for each in situations(over)]


def one_by_one(
    facts: Any, workload: Forward, environment: Environment, objective: Objective
) -> dict[Configuration, float]:
    """Return what is admissible and what it costs, every combination looked at by itself."""
    axes = {knob.name: tuple(knob.choices) for knob in knobs_for(workload).values()} | dict(objective.only)
    over = Grid(axes, facts, workload, environment)
    baseline = build_space(facts, workload, environment, objective, environment.memory_bytes).baseline
    most = HOPELESS * predicted_cost(Situation(baseline, workload.under(baseline), environment, facts))
    room = min(MEMORY_SHARE * environment.memory_bytes, objective.max_memory_bytes or math.inf)
    ranks = {
        (knob.name, name): choice.tier(facts).rank for knob in KNOBS.values() for name, choice in knob.choices.items()
    }
    found = {}
    for each in situations(over):
        within = all(ranks[item] <= objective.quality.rank for item in each.configuration.over(KNOBS))
        fits, cost = predicted_bytes(each) <= room, predicted_cost(each)
        if within and fits and not refusals_of(each, objective) and (cost <= most or "S1" in objective.ignored_rules):
            found[each.configuration] = cost
    return found


@pytest.mark.parametrize("workload", [WORKLOAD, OPEN, Forward((2048,) * 8, 4)], ids=["short", "batch open", "long"])
@pytest.mark.parametrize("facts", [LLAMA, ENCODER], ids=["decoder", "encoder"])
@pytest.mark.parametrize("place", ["H200", "CPU"])
@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(quality=Tier.FOUR_BIT),
        Objective(quality=Tier.FOUR_BIT, ignored_rules=("S1", "P1")),
        Objective(quality=Tier.EIGHT_BIT, max_memory_bytes=10 * 10**9),
    ],
    ids=["exact", "4bit", "rules ignored", "memory limited"],
)
def test_a_space_is_what_every_combination_says_by_itself(
    place: str, facts: Any, workload: Forward, objective: Objective
) -> None:
    """The same configurations, costs, bytes and launches as one by one; and the best first."""
    environment = H200 if place == "H200" else MACHINES["CPU"]
    few = [
        ("attention", ("eager", "sdpa", "sdpa-flash", "flash_attention_2", "flex_attention")),
        *SOME,
        *BATCHES[workload.batch],
    ]
    objective = replace(objective, only=tuple(few))
    space = build_space(facts, workload, environment, objective, environment.memory_bytes)
    wanted = one_by_one(facts, workload, environment, objective)
    in_bytes = build_space(
        facts, workload, environment, replace(objective, metric="peak_bytes"), environment.memory_bytes
    )

    def predicted(function: Any) -> dict[Configuration, float]:
        where = ((c, workload.under(c), environment, facts) for c in [space.baseline, *space.admissible])
        return {each[0]: function(Situation(*each)) for each in where}

    assert {c: space.costs[c] for c in space.admissible} == wanted
    assert [space.costs[c] for c in space.admissible] == sorted(wanted.values())
    assert space.costs == predicted(predicted_cost)
    assert space.launches == predicted(predicted_launches)
    assert in_bytes.costs == predicted(predicted_bytes)
    assert not in_bytes.launches


def test_what_rules_refuse_is_said_once_for_each_choice_that_it_depends_on() -> None:
    """Every rule that refuses any combination of what is left is told, with its subject; nothing else is."""
    objective = Objective(quality=Tier.FOUR_BIT, only=SOME)
    space = build_space(LLAMA, WORKLOAD, H200, objective, H200.memory_bytes)
    left = {knob.name: tuple(knob.choices) for knob in knobs_for(WORKLOAD).values()} | dict(SOME)
    axes = {
        knob: tuple(name for name in names if KNOBS[knob].choices[name].unavailable(H200) is None)
        for knob, names in left.items()
    }
    every = [each for one in situations(replace(grid(), axes=axes)) for each in refusals_of(one, objective)]
    wanted = {(each.subject, each.about, each.rule) for each in every}
    told = [(r.subject, r.about, r.rule) for r in space.refusals if r.rule not in ("S1", "M1", "U0")]

    assert len(told) == len({*told})
    assert {each for each in told if each[1]} == {each for each in wanted if each[1]}


def test_a_space_of_many_combinations_asks_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every batch and every tier there are tens of thousands: rules are asked some two thousand times, not millions."""
    asked = 0

    def counted(rules: Any) -> Any:
        def why_not(situation: Situation) -> Any:
            nonlocal asked
            asked += 1
            return rules(situation)

        return why_not

    for knob in KNOBS.values():
        for name, choice in knob.choices.items():
            monkeypatch.setitem(knob.choices, name, replace(choice, why_not=counted(choice.why_not)))
    space = build_space(LLAMA, OPEN, H200, Objective(quality=Tier.FOUR_BIT), H200.memory_bytes)

    assert math.prod(len(knob.choices) for knob in knobs_for(OPEN).values()) > 2_000_000
    assert len(space.admissible) > 10_000
    assert asked < 80_000
