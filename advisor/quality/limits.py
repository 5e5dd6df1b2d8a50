"""How far an output may be off before it is wrong, or below a quality tier: every threshold, with where it comes from.

Exact configurations are held to the default's own error and to floors and ceilings by how fine their numbers are; the
thresholds of the lossy tiers are measurement.md's (B.6, "Recommended gate").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from advisor.knobs import Traits, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Limits, Tier
from advisor.nouns.trial import Quality
from advisor.workloads import Workload, kind_of

#: An exact lever may have this many times the default's own rms error.
FACTOR = 2.0

#: And this many times its KL: for small errors KL grows with their square (its first-order term vanishes), so twice the
#: error is four times the KL. With a factor of 2 the gate rejected plain eager attention in bf16 on an H200, whose rms
#: error was 1.42 times the default's and whose KL 2.02 times (docs/results/2026-11-23-h200.md).
KL_FACTOR = FACTOR**2

#: The layout in fp32: the rms error of any one sequence against the same sequence alone, in standard deviations. fp32
#: kernels differ by 2e-5 on an H200 (the origin of FLOORS[FULL]); what positions, windows and masks do wrong begins at 1e-3.
LAYOUT_LIMIT = 1e-4

#: The same of layers that carry a state: 16 bits round its tables of decays one by one, so that a block that begins elsewhere
#: decays a little otherwise. MiniMax, padded in bf16, is right and off by 7e-4; what reads pads moves in the probe.
LAYOUT_LIMIT_OF_STATES = 3e-3

#: What a mixture of experts may move by in the probe is counted in steps between neighbouring numbers near 1, for the tokens
#: that an expert gets change the shape of its matrix product (measurement.md, D).
EXPERTS_STEPS = 8

#: But never by more than this (σ): documents that read one another move by several.
EXPERTS_MOST = 0.5

#: Pads are read by design where others move the output in fp32 this many times further than the layout is off, or than
#: rounding, and by this share at least of what they move it by in the configuration's own precision.
NEUTRAL, ROUNDING, NEUTRAL_SHARE = 100.0, 1e-6, 0.1

#: Where two equal runs differ, an output may move by this many times that in the probe: of a few runs one saw the most.
REPEATS = 8.0

#: Bits of mantissa of the finest and of the coarsest numbers that there are limits for.
FULL, COARSE = 23, 7


@dataclass(frozen=True)
class Floor:
    """Errors too small to judge in a dtype: rms in standard deviations of the reference, kl in nats; and their origin."""

    rms: float
    kl: float
    origin: str


_SHIPPED = "3 × the largest of 100 calibration runs on the shipped model (docs/results/2026-11-23-cpu.md)"

#: Where the default's own error is ~0 (an fp32 default against the fp32 reference), the factor alone would reject every
#: right configuration. Calibrated: exact configuration against exact configuration (benchmarks/calibrate_gate.py). By how fine
#: the numbers are, in bits of mantissa: 23 of fp32, 10 of fp16 and of tf32 (which was not calibrated by itself), 7 of bf16.
FLOORS: Mapping[int, Floor] = {
    FULL: Floor(6.2e-5, 1.1e-9, "3 × sdpa against eager, Llama-3-8B shape in fp32, 4,096 tokens, on an H200"),
    10: Floor(3.1e-3, 6.3e-6, _SHIPPED),
    COARSE: Floor(6.3e-2, 5.4e-4, "3 × the largest, Llama-3.2-1B shape on a CPU (docs/results/2026-11-23-cpu.md)"),
}

#: The most that any exact configuration may be off, the default among them: 1.5 times the largest error that a right one of
#: a real shape was seen to have. bf16: Llama-3-8B shape, eager, on an H200 (docs/results/2026-11-23-h200.md: rms 0.095,
#: KL 7.4e-3); fp16 has 8 times finer steps than bf16.
MOST: Mapping[int, Floor] = {
    FULL: Floor(1e-3, 1e-6, "over ten times the floor"),
    10: Floor(2e-2, 2e-4, "bf16's over 8, and over 64 for KL"),
    COARSE: Floor(0.15, 1.1e-2, "Llama-3-8B shape on an H200"),
}

#: The same for mixtures of experts: rounding sends some tokens to other experts, in every configuration alike. Their output
#: then is another one, whatever the dtype's steps are, so only the share of such tokens shrinks with the steps.
MOST_WITH_EXPERTS: Mapping[int, Floor] = {
    FULL: Floor(2e-2, 2e-3, "a token in thousands goes to another expert"),
    10: Floor(0.3, 0.2, "a third of bf16's, and less for KL"),
    COARSE: Floor(0.9, 1.0, "documents that read one another are off by 1.0 and more"),
}


@dataclass(frozen=True)
class Course:
    """How far training may go astray: figures of `Quality`, with where they come from."""

    gradient: float
    loss: float
    norm: float
    origin: str


_SITTINGS = "docs/results/2026-11-29-h200-training.md"

#: Differences of training too small to judge, by how fine the numbers are. Of fp32 on a GPU and of 10 bits nothing was measured.
COURSE_FLOORS: Mapping[int, Course] = {
    FULL: Course(
        1e-3, 1e-3, 1e-3, "the shipped model on a CPU is 1e-6 off at most, over 20 steps; a GPU's fp32 is coarser"
    ),
    10: Course(3e-2, 1e-2, 3e-2, "between the two"),
    COARSE: Course(0.1, 2e-2, 5e-2, f"right ones were 0.10, 3e-3 and 1e-3 off at most, Llama 1B and 8B ({_SITTINGS})"),
}

#: The most that any exact configuration may be off, the default among them.
COURSE_MOST: Mapping[int, Course] = {
    FULL: Course(1e-2, 1e-2, 1e-2, "ten times the floor"),
    10: Course(0.1, 3e-2, 0.1, "some times the floor"),
    COARSE: Course(0.5, 5e-2, 0.3, "five times the largest gradients' of right ones"),
}

#: The same of a lossy choice. Four bits of weights that were drawn turn gradients about (1.3 of their size off, the 8B) and move
#: losses (0.04 nats); what says that another thing is learned is their size.
COURSE_OF_LOSSY = Course(
    math.inf, math.inf, 0.5, f"right ones were 4.4 % off at most, and 100 % is no gradient ({_SITTINGS})"
)

#: Of every kind of work that has none of its own: measurement.md, B.6. The tier dtype has no perplexity limit there: one per
#: cent is the next tier's. That overlap of the ten nearest must be looked at stands there too, its limits are ours; so are
#: those of rms, and of the loss of any of the first steps of training.
LIMITS: Mapping[Tier, Limits] = {
    Tier.DTYPE: Limits(1e-3, 0.99, 1.01, 0.999, 0.95, 0.05, loss=5e-2),
    Tier.EIGHT_BIT: Limits(1e-2, 0.975, 1.01, 0.99, 0.9, 0.1, loss=0.1),
    Tier.FOUR_BIT: Limits(5e-2, 0.94, 1.03, 0.95, 0.8, 0.25, loss=0.3),
}


def limits_of(workload: Workload) -> Mapping[Tier, Limits]:
    """Return the limits of the lossy tiers for a kind of work: its own, where it has some of a tier."""
    return {**LIMITS, **kind_of(workload).limits}


def exact_limits(bits: int, facts: ModelFacts, default: Quality | None, *, from_logits: bool) -> tuple[float, float]:
    """Return the largest rms error and KL that an exact configuration's figures may have.

    bits: of mantissa. default: the figures of a default that is right, None where there is none: then what right
    configurations of real shapes were seen to have is the limit. from_logits: whether the dtype's floor counts. The floors of
    16 bits come from logits; a leak between documents would pass under them in hidden states, so that these have fp32's floor
    where no probe looked.
    """
    floor, most = FLOORS[bits], (MOST_WITH_EXPERTS if facts.experts else MOST)[bits]
    if default is None:
        return most.rms, most.kl
    least = floor.rms if from_logits else min(floor.rms, FLOORS[FULL].rms)
    return max(min(FACTOR * default.rms, most.rms), least), max(min(KL_FACTOR * (default.kl or 0.0), most.kl), floor.kl)


def course_limits(bits: int, default: Quality | None) -> Course:
    """Return how far an exact configuration's training may go astray: FACTOR times the default's own, within bounds.

    default: the figures of a default that is right, None where there is none.
    """
    floor, most = COURSE_FLOORS[bits], COURSE_MOST[bits]
    if default is None or default.gradient is None:
        return most

    def limit(name: str) -> float:
        bound = FACTOR * float(getattr(default, name) or 0.0)
        return max(min(bound, float(getattr(most, name))), float(getattr(floor, name)))

    return Course(limit("gradient"), limit("loss"), limit("norm"), "")


def probe_limit(ran: Configuration, facts: ModelFacts) -> float:
    """Return how far (σ) an output may move in the independence probe: not at all, but for mixtures of experts."""
    if not facts.experts:
        return 0.0
    return min(EXPERTS_STEPS * step_of(ran) * facts.layers, EXPERTS_MOST)


def layout_limit(facts: ModelFacts) -> float:
    """Return how far (σ) a sequence may be from itself alone with the weights in fp32, in whatever precision they came."""
    return LAYOUT_LIMIT_OF_STATES if facts.carries_state else LAYOUT_LIMIT


def step_of(ran: Configuration) -> float:
    """Return the step between neighbouring numbers near 1; the coarsest where the precision is unknown."""
    return float(2.0 ** -bits_of(traits_of(ran)))


def bits_of(traits: Traits) -> int:
    """Return the bits of mantissa of the coarsest numbers that something is computed in; COARSE where they are unknown."""
    return COARSE if traits.autocasts else traits.mantissa_bits or COARSE
