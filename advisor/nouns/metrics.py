"""Metrics: the figures that a trial has by name, with unit and direction. Each kind of work brings its own.

A metric says how it comes from a trial's rounds and how people read it, so that nobody else has to know its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from advisor.terminal import gib, percent

#: The seconds of a round by the wall clock and by CUDA's: every kind of work has them, and no objective is made of them.
ROUND, GPU_ROUND = "round_s", "gpu_round_s"

#: How many turns are compared one by one: those of a block's contestants that took short ones, each beside the others'.
PAIRED = "paired_turns"

#: What a loop of fixed steps took beside each round, where that was looked at: it tells the CPU's pace (`advisor.machine.pace`).
CPU_LAP = "cpu_lap_s"

#: The share of the time for which a GPU computed, by the kernels of the batch that was profiled.
GPU_BUSY = "gpu_busy"

#: What torch compiled for a trial's rounds, the first call's included, with units: its seconds, those of them that came after the
#: first call, how many graphs it made, how many of them anew for what the first was not made for, and at how many places it gave
#: a graph up.
COMPILE, LATER, GRAPHS, RECOMPILED, BREAKS = (
    "compile_s",
    "compile_later_s",
    "compiled_graphs",
    "recompilations",
    "graph_breaks",
)
COMPILED = {COMPILE: "s", LATER: "s", GRAPHS: "graphs", RECOMPILED: "graphs", BREAKS: "places"}

#: The seconds that it took this process to load weights that a trial found loaded.
LOADED = "found_load_s"

#: What a process is taken to have on a GPU beside torch's memory where nobody can tell (bytes): on an H200 a context with cuBLAS
#: has 715 million (`benchmarks/nvml_peak.py`, docs/results/2026-11-28-h200-compile.md).
ASSUMED_BESIDE_BYTES = 700 * 2**20

#: The peak of memory, which a trial has beside its measurements.
PEAK = "peak_bytes"

#: The samples of a metric: of a workload and the rounds that a worker timed, by field (see `advisor.measure.messages.Rounds`).
Samples = Callable[[Any, Mapping[str, Any]], Sequence[float]]


class Gauge(StrEnum):
    """What a metric is read off. Memory and energy are the process's or the device's: who is seen must be alone."""

    CLOCK = "clock"
    MEMORY = "memory"
    ENERGY = "energy"


def _always(_: Any) -> bool:
    return True


def _nothing(_: Any, __: Mapping[str, Any]) -> Sequence[float]:
    return ()


@dataclass(frozen=True)
class Metric:
    """A figure of a trial.

    name: what `--objective` calls it, "" where it is only shown; metric: the name that it is stored by; unit: spelled out.
    words: what it is; head: of a column of it; show(value): for people. samples(workload, rounds): how it comes from rounds,
    nothing where it was not seen; applies(workload): whether it means anything of that work. is_speed: more of it is what people
    call faster, one of a kind; is_latency: seconds that --max-latency bounds.
    """

    name: str
    metric: str
    unit: str
    less_is_better: bool
    words: str
    head: str
    show: Callable[[float], str]
    samples: Samples = _nothing
    applies: Callable[[Any], bool] = _always
    gauge: Gauge = Gauge.CLOCK
    is_speed: bool = False
    is_latency: bool = False

    @property
    def is_of_time(self) -> bool:
        """Whether it is read off a clock."""
        return self.gauge is Gauge.CLOCK


def seconds(value: float) -> str:
    """Return seconds for people."""
    return f"{value * 1000:,.3g} ms" if value < 1 else f"{value:,.2f} s"


def rate_of(unit: str) -> Callable[[float], str]:
    """Return what shows so many units ("tokens/s")."""
    return lambda value: f"{value:,.0f} {unit}"


#: Peak memory: every kind of work has it.
MEMORY = Metric(
    "memory", PEAK, "bytes", less_is_better=True, words="peak memory", head="peak", show=gib, gauge=Gauge.MEMORY
)

#: Every metric by the name that it is stored by, the first kind's first. Filled by the table of kinds, `advisor.workloads`.
METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> None:
    """Add a metric. Raises ValueError for another one of this name: what is stored by it would mean two things."""
    if METRICS.setdefault(metric.metric, metric) != metric:
        raise ValueError(f"there is another metric {metric.metric!r} already")


def default_metric() -> str:
    """Return what is made the best of when nobody says: the first metric of the first kind.

    Raises LookupError where no kind is registered yet: importing `advisor.workloads` does that.
    """
    if not METRICS:
        raise LookupError("no kind of work is registered: import advisor.workloads first")
    return next(iter(METRICS))


def is_energy(metric: str) -> bool:
    """Whether a stored metric is read off the energy counter."""
    return metric in METRICS and METRICS[metric].gauge is Gauge.ENERGY


def is_latency(metric: str) -> bool:
    """Whether a stored metric is what --max-latency bounds."""
    return metric in METRICS and METRICS[metric].is_latency


def figure(metric: str, value: float | None) -> str:
    """Return the value of a stored metric in the unit that people read it in; of one that nobody knows, as it is."""
    if value is None:
        return "–"
    if metric in METRICS:
        return METRICS[metric].show(value)
    if metric == GPU_BUSY:
        return f"{percent(value, 0)} of the time"
    return gib(value) if metric.endswith("_bytes") else seconds(value) if metric.endswith("_s") else f"{value:g}"


def head(metric: str) -> str:
    """Return the head of a column of a stored metric."""
    return METRICS[metric].head if metric in METRICS else metric


def without_unit(metric: str, value: float | None) -> str:
    """Return a figure for a table's column, whose head names the unit."""
    return figure(metric, value).removesuffix(f" {head(metric)}")
