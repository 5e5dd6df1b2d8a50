"""What tune decides without running anything: what comes next, what can't fit, what an objective asks for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import BadInput, NothingAdmissible
from advisor.measure.messages import Rounds
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import METRICS
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.objections import objections
from advisor.search.cost import costs_beside, costs_of, launches_of, situations_of, useful_operations
from advisor.search.space import build_space
from advisor.show.support import LLAMA
from advisor.study.attempt import measurements_of
from advisor.study.next_step import next_of_all, not_beyond_memory
from advisor.study.opening import refuse_too_large
from advisor.study.tuning import Job
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
SOURCE = ModelSource("llama", "/nowhere", {"model_type": "llama"}, "random", "random:0", has_tokenizer=False)
WORKLOAD = Forward((64, 32, 48, 16), 2)
BASE = Configuration.of({"attention": "sdpa", "precision": "bf16", "quantization": "none", "packing": "padded"})


def trial(requested: Configuration, outcome: Outcome = Outcome.OK, **values: Any) -> Trial:
    """Return a search trial that was measured, right, and has these metrics."""
    metrics = tuple(Measurement(name, "unit", (value,)) for name, value in values.items() if name != "peak_bytes")
    quality = Quality(0.0, 0.0, 0.0, 1.0, 10, reference="fp32, eager")
    return Trial(
        0, requested, requested, outcome, quality=quality, measurements=metrics, peak_bytes=values.get("peak_bytes")
    )


def job(facts: ModelFacts, memory_bytes: int) -> Job:
    """Return a job on a GPU with this much memory."""
    machine = Machine(replace(H200, memory_bytes=memory_bytes), "host", "GPU-1", 0, memory_bytes)
    return Job(SOURCE, WORKLOAD, Objective(), Budget(), machine)


def test_everything_is_measured_with_few_loads() -> None:
    """An exhaustive search leaves nothing out, repeats nothing, and changes the weights only when it must."""
    space = build_space(LLAMA, WORKLOAD, H200, Objective(), 140 * 10**9)
    done = [trial(space.baseline)]
    while (following := next_of_all(space.admissible, done, done[-1].requested)) is not None:
        done.append(trial(following))

    weights = [(t.requested["precision"], t.requested["quantization"]) for t in done]
    assert len({t.requested for t in done}) == len(done) == len({*space.admissible, space.baseline})
    assert sum(a != b for a, b in pairwise(weights)) == len(set(weights)) - 1


def test_nothing_is_spent_on_what_drawn_weights_leave_unjudged() -> None:
    """Rule T0: weights drawn at random say nothing of what a lossy choice costs, so that it could never be recommended."""
    where = (LLAMA, WORKLOAD, H200)
    trained = build_space(*where, Objective(), 140 * 10**9)
    drawn = build_space(*where, Objective(), 140 * 10**9, drawn=True)
    asked = build_space(*where, Objective(allow_unjudged=True), 140 * 10**9, drawn=True)

    (refusal,) = (r for r in drawn.refusals if r.subject == "precision=fp16" and r.rule == "T0")
    assert "drawn at random" in refusal.text
    assert "--allow-unjudged" in str(refusal.remedy)
    assert {c["precision"] for c in set(trained.admissible) - set(drawn.admissible)} == {"fp16", "tf32"}
    assert set(asked.admissible) == set(trained.admissible) > set(drawn.admissible)


def test_a_batch_that_ran_out_of_memory_rules_larger_ones_out() -> None:
    """Rule M2: with everything else the same, a batch larger than one that did not fit is not tried; others are."""
    sizes = [
        BASE.replaced(batch=size, packing=packing) for size in ("1", "2", "4", "8") for packing in ("padded", "sorted")
    ]
    failed = trial(BASE.replaced(batch="4"), Outcome.OUT_OF_MEMORY)

    left = not_beyond_memory(sizes, [failed])

    assert BASE.replaced(batch="8") not in left
    assert {c["batch"] for c in left if c["packing"] == "padded"} == {"1", "2", "4"}
    assert {c["batch"] for c in left if c["packing"] == "sorted"} == {"1", "2", "4", "8"}


def test_a_model_for_several_gpus_is_refused_in_words() -> None:
    """Where not even the weights fit, that is said before a trial is run, with both sizes; where they do, nothing is."""
    huge = replace(LLAMA, parameters=10**12, linear_parameters=10**12, parameter_bytes=2 * 10**12)
    asked = job(huge, 150 * 10**9)
    space = build_space(huge, WORKLOAD, asked.machine.environment, Objective(), 150 * 10**9)

    with pytest.raises(NothingAdmissible) as refused:
        refuse_too_large(asked, huge, space)
    assert "needs more than one GPU" in refused.value.reasons[0]
    assert "1862.6 GiB" in refused.value.reasons[0]
    small = job(LLAMA, 150 * 10**9)
    refuse_too_large(small, LLAMA, build_space(LLAMA, WORKLOAD, H200, Objective(), 150 * 10**9))


def test_only_narrows_the_space_and_says_so() -> None:
    """Choices left out by --only are refused as U0, one row each; everything left has the choices that were named."""
    only = (("attention", ("flash_attention_2", "sdpa")), ("precision", ("bf16",)))
    space = build_space(LLAMA, WORKLOAD, H200, Objective(only=only), 140 * 10**9)

    assert {c["attention"] for c in space.admissible} == {"flash_attention_2", "sdpa"}
    assert {c["precision"] for c in space.admissible} == {"bf16"}
    left_out = [reason for reason in space.refusals if reason.rule == "U0"]
    assert {"precision=fp32", "attention=eager"} <= {reason.subject for reason in left_out}
    assert len({reason.subject for reason in left_out}) == len(left_out)


def test_batch_is_part_of_the_space_where_it_is_left_open() -> None:
    """With --batch auto every size up to the list is admissible, the default is 1, and packing needs more than one."""
    space = build_space(LLAMA, Forward((64, 32, 48, 16), None), H200, Objective(), 140 * 10**9)

    assert space.baseline["batch"] == "1"
    assert {c["batch"] for c in space.admissible} == {"1", "2", "4"}
    assert all(c["batch"] != "1" for c in space.admissible if c["packing"] != "padded")
    assert "batch" not in build_space(LLAMA, WORKLOAD, H200, Objective(), 140 * 10**9).baseline


@pytest.mark.parametrize("name", METRICS)
def test_a_score_is_higher_where_the_metric_is_better(name: str) -> None:
    """Whatever an objective asks for, the better trial has the higher score, and one without a figure the lowest."""
    aim = METRICS[name]
    better, worse = (1.0, 2.0) if aim.less_is_better else (2.0, 1.0)
    scores = [trial(BASE, **{aim.metric: value}).score(aim) for value in (better, worse)]

    assert scores[0] > scores[1] > trial(BASE).score(aim) == 0.0


def test_a_latency_limit_keeps_slow_batches_out() -> None:
    """What is over the limit may not be recommended, nor what has no figure for it."""
    objective = Objective(max_latency_s=0.1)
    fast, slow = (trial(BASE, tokens_per_s=1.0, slowest_batch_s=s) for s in (0.09, 0.11))

    assert objections(fast, None, objective, LLAMA) == []
    assert objections(slow, None, objective, LLAMA) != []
    assert objections(trial(BASE, tokens_per_s=1.0), None, objective, LLAMA) != []


@given(
    st.builds(
        Objective,
        quality=st.sampled_from(list(Tier)),
        max_memory_bytes=st.none() | st.integers(1, 10**12),
        metric=st.sampled_from([metric.metric for metric in METRICS.values() if metric.name]),
        max_latency_s=st.none() | st.floats(1e-4, 10),
        only=st.sampled_from(
            [(), (("attention", ("eager", "sdpa")),), (("attention", ("sdpa",)), ("packing", ("packed",)))]
        ),
        ignored_rules=st.sampled_from([(), ("P1", "P2")]),
    )
)
def test_an_objective_comes_back_from_its_payload(objective: Objective) -> None:
    """Stored and read again, an objective is the same; one without the later fields has the payload it always had."""
    assert Objective.of(objective.payload) == objective
    assert set(Objective().payload) == {"quality", "max_memory_bytes", "allow_unjudged", "ignored_rules", "metric"}


def test_an_unknown_metric_is_no_objective() -> None:
    """A metric that nothing measures is refused."""
    with pytest.raises(BadInput, match="unknown"):
        Objective(metric="happiness")


def test_useful_operations_count_no_pads_and_half_of_causal_pairs() -> None:
    """The operations are those of a hand calculation; an encoder's pairs count whole."""
    facts = replace(LLAMA, layers=2, heads=4, head_dim=8, hidden_size=32, vocabulary=100, linear_parameters=10_000)
    hidden = Forward((10, 20), 2, "hidden")
    pairs = 10 * 10 + 20 * 20

    assert useful_operations(facts, hidden) == 2 * 10_000 * 30 + 4 * (pairs / 2) * 4 * 8 * 2
    encoder = replace(facts, is_causal=False)
    assert useful_operations(encoder, hidden) == 2 * 10_000 * 30 + 4 * pairs * 4 * 8 * 2
    last = Forward((10, 20), 2)
    assert useful_operations(facts, last) == 2 * (6_800 * 30 + 3_200 * 2) + 4 * (pairs / 2) * 4 * 8 * 2


def test_memory_is_predicted_in_bytes_where_memory_is_the_aim() -> None:
    """Predicted costs are bytes for the objective memory, relative times for the others."""
    int8 = BASE.replaced(quantization="int8")
    situations = situations_of([BASE, int8], LLAMA, WORKLOAD, H200)
    by_memory, by_time = (costs_of(situations, METRICS[name]) for name in ("peak_bytes", "tokens_per_s"))

    assert by_memory[int8] < by_memory[BASE] == pytest.approx(16e9, rel=0.01)
    assert by_time[int8] > by_time[BASE]


def test_what_waits_for_its_launches_is_predicted_by_them() -> None:
    """The longer counts: the share of the time for which the GPU computed, or what the CPU launches; where it waits at all."""
    packed, eager = BASE.replaced(attention="flash_attention_2", packing="packed"), BASE.replaced(attention="eager")
    aim, work = METRICS["tokens_per_s"], [BASE, packed, eager]
    situations = situations_of(work, LLAMA, WORKLOAD, H200)
    costs, launches = costs_of(situations, aim), launches_of(situations, aim)

    def relative(busy: float | None) -> dict[Configuration, float]:
        seen = () if busy is None else (Measurement("gpu_busy", "share", (busy,)),)
        default = Trial(0, BASE, BASE, Outcome.OK, measurements=(Measurement("tokens_per_s", "1/s", (1.0,)), *seen))
        predicted = costs_beside(costs, launches, default)
        return {c: predicted[c] / predicted[BASE] for c in work}

    by_costs = {c: costs[c] / costs[BASE] for c in work}
    assert by_costs[packed] < 1 < by_costs[eager]
    assert costs_beside(costs, launches, None) == costs
    assert relative(None) == relative(0.9) == by_costs
    assert relative(0.05) == pytest.approx({BASE: 1.0, packed: 1 / 0.75, eager: 1 / 0.75})
    assert relative(0.79)[eager] == pytest.approx(max(1 / 0.75, 0.79 * by_costs[eager]))
    assert launches_of(situations, METRICS["peak_bytes"]) == {}


def test_rounds_become_the_metrics_of_their_workload() -> None:
    """Speeds are of useful tokens; embeddings have sequences a second too; energy is there where it was read."""
    rounds = Rounds(wall_s=(2.0, 4.0), gpu_s=(0.0, 0.0), slowest_s=(1.5, 3.0), joules=48.0)
    found = {m.metric: m for m in measurements_of(Forward((64, 32), 2, "pooled"), rounds, "search")}

    assert found["tokens_per_s"].samples == (48.0, 24.0)
    assert found["sequences_per_s"].samples == (1.0, 0.5)
    assert found["slowest_batch_s"].samples == (1.5, 3.0)
    assert found["joules_per_token"].samples == (0.5,)
    assert "sequences_per_s" not in {m.metric for m in measurements_of(WORKLOAD, rounds, "search")}
