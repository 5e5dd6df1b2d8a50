"""Blocks that are looked at one by one: what `Comparison`'s own bounds err by, and what they find.

The model of a block is that of benchmarks/sequential.py, whose table stands in docs/search.md.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.nouns.measurement import BOUNDS, T_975, TIE_ZONE, Comparison

ROOT = Path(__file__).parent.parent

PATHS = 40_000


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    """Import the benchmark by its path, since `benchmarks` is no package."""
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("an installed package comes without its benchmarks")
    spec = importlib.util.spec_from_file_location("sequential", ROOT / "benchmarks" / "sequential.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def most(share: float) -> float:
    """Return what a count of PATHS with this chance stays below, but for three standard errors."""
    return share + 3 * float(np.sqrt(share * (1 - share) / PATHS))


def test_a_plan_of_three_is_looked_at_once() -> None:
    """Then nothing is paid for: the bound is Student's, and so are the interval and the verdict."""
    ratios = (1.10, 1.20, 1.15)
    assert BOUNDS[3] == (T_975[1],)
    assert Comparison("a", "b", ratios, 3).interval == Comparison("a", "b", ratios).interval


@pytest.mark.parametrize("planned", sorted(BOUNDS))
def test_bounds_are_what_the_spending_function_asks_for(simulated: ModuleType, planned: int) -> None:
    """They follow from it by integration, get tighter with every look, and never as tight as where there is one look."""
    bounds = BOUNDS[planned]
    assert len(bounds) == planned - 2
    assert bounds == tuple(sorted(bounds, reverse=True))
    assert all(bound >= T_975[n - 2] for n, bound in enumerate(bounds, 3))
    assert simulated.bounds(planned, cells=300) == pytest.approx(bounds, abs=0.01)


def test_all_looks_together_err_in_no_more_than_was_planned(simulated: ModuleType) -> None:
    """Of random walks about nothing 2.5 % ever cross a plan's bounds on a side; beyond the plan's end a few more do."""
    for share, beyond in simulated.crossings(BOUNDS, 10 * PATHS, 0).values():
        assert 0.023 < share < 0.0265
        assert share < beyond < 0.035


@pytest.mark.parametrize(("ratio", "noise"), [(1.0, 0.3), (1.0, 0.005), (1 + TIE_ZONE, 0.02)])
def test_no_difference_is_seldom_called_faster(simulated: ModuleType, ratio: float, noise: float) -> None:
    """What is as fast as the default, or faster by no more than the tie zone, is called faster in 2.5 % at most."""
    found = simulated.rates(simulated.Case((ratio,), noise), PATHS, 0)
    assert found.faster <= most(0.025)
    assert found.blocks <= 9


@pytest.mark.parametrize(
    ("ratio", "noise", "power", "blocks"), [(1.5, 0.3, 0.98, 6.0), (1.05, 0.005, 0.999, 3.5), (1.05, 0.02, 0.9, 6.5)]
)
def test_what_is_faster_is_found(
    simulated: ModuleType, ratio: float, noise: float, power: float, blocks: float
) -> None:
    """A difference is found within 9 blocks, and a clear one in few of them."""
    found = simulated.rates(simulated.Case((ratio,), noise), PATHS // 4, 0)
    assert found.faster >= power
    assert found.slower <= 0.001
    assert found.blocks <= blocks


def test_the_simulation_decides_as_a_comparison_does(simulated: ModuleType) -> None:
    """Asked block by block, `Comparison` stops where the simulation does and says the same."""
    for case in (simulated.Case((1.0, 1.05, 1.2), 0.02), simulated.Case((1.3,), 0.3, disturbed=0.3)):
        assert simulated.disagreements(case, 200, 0) == 0


@pytest.mark.parametrize(
    ("ratios", "planned", "is_open"),
    [
        ((2.0,), 9, True),
        ((2.0, 2.0), 9, True),
        ((2.0, 2.01, 1.99), 9, False),
        ((0.5, 0.51, 0.5), 9, False),
        ((1.0, 1.001, 0.999), 9, False),  # wholly inside the tie zone
        ((1.1, 1.3, 1.2), 9, True),
        ((1.1, 1.3, 1.2), 3, False),
        ((1.1, 1.3, 1.2, 0.9), 4, False),
        ((1.1, 1.3, 1.2) * 3, 9, False),
        ((1.1, 0.9, 1.2) * 4, 9, False),
        # Looked at once: nothing ends it but its plan, and nothing is decided by fewer blocks than three.
        ((2.0, 2.01, 1.99), None, False),
        ((2.0, 2.0), None, True),
        ((2.0, 2.01, 1.99), 10, True),
        ((2.0, 2.01, 1.99) * 4, 12, False),
        ((2.0,), 1, True),
        ((2.0, 2.0), 2, True),
        ((1.1, 1.3, 1.2), 2, False),
    ],
)
def test_a_comparison_is_open_while_a_block_could_decide_it(
    ratios: tuple[float, ...], planned: int | None, is_open: bool
) -> None:
    """It is closed by an answer, by an interval inside the tie zone, or by the end of its plan; never before three blocks."""
    assert Comparison("a", "b", ratios, planned).is_open is is_open


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=12), st.integers(3, 9))
def test_looking_is_paid_for(ratios: list[float], planned: int) -> None:
    """A plan that is looked at has an interval around that of a single look, with the same ratio; above 9 there is one look."""
    once, often = Comparison("a", "b", tuple(ratios)), Comparison("a", "b", tuple(ratios), planned)
    assert often.ratio == once.ratio
    assert often.interval[0] <= once.interval[0]
    assert often.interval[1] >= once.interval[1]
    assert Comparison("a", "b", tuple(ratios), 10).interval == once.interval


def test_a_plan_of_nothing_is_refused() -> None:
    """No blocks can't be planned."""
    with pytest.raises(ValueError, match="planned"):
        Comparison("a", "b", (1.0,), 0)
