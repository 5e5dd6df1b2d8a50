"""The search on spaces of real shapes: costs in operations, as arithmetic predicts them. No worker, no torch."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.measurement import Measurement
from advisor.model import ModelFacts
from advisor.objective import Objective
from advisor.search import ask
from advisor.space import Space, build_space
from advisor.trial import Outcome, Trial
from advisor.workloads import Workload

TESTS = Path(__file__).parent
H200 = Environment.of(json.loads((TESTS / "environments" / "h200.json").read_text()))
H100 = replace(H200, device_name="NVIDIA H100 80GB HBM3", memory_bytes=85_520_809_984)
LLAMA = ModelFacts(
    architecture="LlamaForCausalLM", model_type="llama", checkpoint_dtype="bfloat16", parameters=1_236_000_000,
    parameter_bytes=2_472_000_000, linear_parameters=1_235_000_000, layers=16, hidden_size=2048, heads=32, kv_heads=8,
    head_dim=64, vocabulary=128256, max_positions=131072, supports_sdpa=True, supports_flash=True, switches_attention=True,
    default_attention="sdpa",
)  # fmt: skip
ROBERTA = ModelFacts(
    architecture="RobertaModel", model_type="roberta", checkpoint_dtype="float32", parameters=355_000_000,
    parameter_bytes=1_420_000_000, linear_parameters=302_000_000, layers=24, hidden_size=1024, heads=16, kv_heads=16,
    head_dim=64, vocabulary=50265, max_positions=514, supports_sdpa=True, supports_flash=True, switches_attention=True,
    default_attention="sdpa", accepts=("attention_mask", "position_ids", "cu_seq_lens_q"), supports_flex=True,
    is_causal=False, position_offset=2, pooling="mean", fused_encoder=True,
)  # fmt: skip
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "torch_varlen")


def lengths(count: int, longest: int) -> tuple[int, ...]:
    """Return lengths of which about half of a padded batch is pads."""
    drawn = random.Random(0)
    return (longest, *(drawn.randint(longest // 16, longest) for _ in range(count - 1)))


def space_of(facts: ModelFacts, workload: Workload) -> Space:
    """Return the space on an H100 with a little of its memory taken."""
    return build_space(facts, workload, H100, Objective(), 78 * 2**30)


def timed(number: int, configuration: Configuration, tokens_per_s: float, wall_s: float = 20.0) -> Trial:
    """Return a trial that is ok."""
    measurements = (Measurement("tokens_per_s", "tokens/s", (tokens_per_s,)),)
    return Trial(number, configuration, configuration, Outcome.OK, measurements=measurements, wall_s=wall_s)


def proposals(space: Space, count: int, seed: int) -> list[Configuration]:
    """Return what is tried after the default, where everything does as predicted and the default 40,000 tokens/s."""
    trials = [timed(0, space.baseline, 40_000.0)]
    for number in range(1, count + 1):
        found = ask(space.admissible, trials, 99, seed, costs=space.costs)
        assert found is not None
        trials.append(timed(number, found, 40_000.0 * space.costs[space.baseline] / space.costs[found]))
    return [trial.requested for trial in trials[1:]]


@pytest.mark.parametrize("seed", range(4))
def test_predicted_best_is_tried_before_bettertransformer(seed: int) -> None:
    """On RoBERTa-large packed flash attention is predicted to be best, and is the first that is tried."""
    space = space_of(ROBERTA, replace(Workload(lengths(256, 512), 64), output="hidden"))
    found = proposals(space, 2, seed)

    assert space.costs[space.baseline] > 1e13
    for configuration in found:
        assert configuration["attention"] in FLASH
        assert configuration["packing"] == "packed"


@pytest.mark.parametrize("seed", range(4))
def test_tiny_budget_tries_the_predicted_best_first(seed: int) -> None:
    """With the default alone measured, on Llama-3.2-1B: packed flash attention in the default's own precision."""
    space = space_of(LLAMA, Workload(lengths(32, 2048), 8))
    first, second = proposals(space, 2, seed)

    assert space.costs[first] == min(space.costs.values())
    for configuration in (first, second):
        assert configuration["attention"] in FLASH
        assert configuration["packing"] == "packed"
    assert space.baseline["precision"] in (first["precision"], second["precision"])
