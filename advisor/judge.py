"""What is wrong with a trial's output, which quality tier it reaches, and why it may not be recommended.

Trials store figures; what they mean is decided here, whenever they are read: :func:`objections` is the only place that says
why a trial may not be recommended, and old rows are judged by today's rules. The figures are of three kinds
(measurement.md, D):

1. the independence probe: how far a sequence's output moves when its neighbours' or the pads' contents change. It must not
   move by a bit, whatever the dtype, the backend or the weights;
2. the layout in fp32: the configuration's exact call with fp32 weights against one sequence at a time;
3. the error against the reference: the same checkpoint in fp32, one sequence at a time, no padding, no packing. The shape of
   the criterion for exact levers is FlashAttention's own test: at most twice the error that the default makes.

The thresholds of the lossy tiers are measurement.md's (B.6, "Recommended gate").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advisor.configuration import Configuration
from advisor.knobs import HAVE_PLUGIN, advised, known_choices, tier_of, traits_of, unknown
from advisor.metrics import head, is_latency
from advisor.model import ModelFacts
from advisor.objective import Limits, Objective, Tier
from advisor.terminal import gib
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import Workload, kind_of

#: The version of what is judged and how: an answer that was given by another one is given again.
GATE_VERSION = "gate/2"

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


#: What a reason says where an output was not finite: figures say nothing of it then.
NOT_FINITE = "NaN or infinity"


@dataclass(frozen=True)
class Floor:
    """Errors too small to judge in a dtype: rms in standard deviations of the reference, kl in nats; and their origin."""

    rms: float
    kl: float
    origin: str


#: Bits of mantissa of the finest and of the coarsest numbers that there are limits for.
FULL, COARSE = 23, 7

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


#: Of every kind of work that has none of its own: measurement.md, B.6. The tier dtype has no perplexity limit there: one per
#: cent is the next tier's. That overlap of the ten nearest must be looked at stands there too, its limits are ours; so are
#: those of rms.
LIMITS: Mapping[Tier, Limits] = {
    Tier.DTYPE: Limits(1e-3, 0.99, 1.01, 0.999, 0.95, 0.05),
    Tier.EIGHT_BIT: Limits(1e-2, 0.975, 1.01, 0.99, 0.9, 0.1),
    Tier.FOUR_BIT: Limits(5e-2, 0.94, 1.03, 0.95, 0.8, 0.25),
}


def limits_of(workload: Workload) -> Mapping[Tier, Limits]:
    """Return the limits of the lossy tiers for a kind of work: its own, where it has some of a tier."""
    return {**LIMITS, **kind_of(workload).limits}


def objections(
    trial: Trial,
    default: Trial | None,
    objective: Objective,
    facts: ModelFacts,
    *,
    same_weights: bool = True,
    limits: Mapping[Tier, Limits] = LIMITS,
) -> list[str]:
    """Return, in words, everything against recommending a search trial under an objective; nothing where it may be.

    default: the trial of the model's default on the same work, None where it could not be run: what it does wrong itself is
    doubled by nobody. same_weights: False for a fine-tune of what was measured: its timings are shared, the price of a
    lossy choice is not. limits: of the lossy tiers, for this work (:func:`limits_of`).
    """
    if trial.outcome not in (Outcome.OK, Outcome.WRONG_OUTPUT):
        return [f"{trial.outcome}: {trial.reason}" if trial.reason else str(trial.outcome)]
    if missing := unknown(trial.ran):
        return [f"what ran is not known here: {text}; {HAVE_PLUGIN}" for text in missing]
    found = []
    if not advised(trial.ran):
        found.append(f"what ran, {trial.ran}, is no configuration that is ever recommended")
    elif not (objective.leaves(trial.ran) or (default is not None and trial.ran == default.ran)):
        found.append(f"what ran, {trial.ran}, is outside --only")
    found += [f"wrong output: {text}" for text in wrong(trial, default, facts)]
    if not found:
        found += _beyond_tier(trial, objective, facts, limits, same_weights=same_weights)
    return found + _beyond_bounds(trial, objective)


def _beyond_bounds(trial: Trial, objective: Objective) -> list[str]:
    """Say what of an objective's metric and bounds a trial does not meet."""
    found, limit, peak = [], objective.max_memory_bytes, trial.peak_bytes or 0
    latency, most_s = next((m for m in trial.measurements if is_latency(m.metric)), None), objective.max_latency_s
    if not trial.measurements:
        found.append("it was not timed")
    elif not trial.value(objective.metric):  # energy, for one, is not seen on every GPU
        found.append(f"its {objective.aim.words} was not measured")
    if most_s is not None and trial.measurements and (latency is None or latency.median > most_s):
        what, took = (
            ("latency", "not measured")
            if latency is None
            else (head(latency.metric), f"{latency.median * 1000:.1f} ms")
        )
        found.append(f"its {what} ({took}) is above the {most_s * 1000:g} ms allowed")
    if limit is not None and peak > limit:
        found.append(f"its peak of {gib(peak)} is {gib(peak - limit)} above the {gib(limit)} allowed")
    return found


def _beyond_tier(
    trial: Trial, objective: Objective, facts: ModelFacts, limits: Mapping[Tier, Limits], *, same_weights: bool
) -> list[str]:
    """Say why a trial whose output is not wrong is further from the checkpoint than was asked for, or that nobody knows."""
    declared = tier_of(trial.ran.items(), facts)
    if declared.rank > objective.quality.rank:
        return [f"its quality tier is {declared}, and {objective.quality} was asked for"]
    if trial.quality is None or not is_judged(trial.quality, declared) or not (same_weights or declared is Tier.EXACT):
        return [] if objective.allow_unjudged else [_unjudged_words(trial.quality, declared)]
    tier = tier_reached(trial.quality, trial.ran, facts, limits)
    if tier is None or tier.rank > objective.quality.rank:
        broken = "; ".join(_lossy_failures(trial.quality, limits[objective.quality]))
        what = "no quality tier" if tier is None else f"the quality tier {tier}"
        return [f"it reaches {what}, and {objective.quality} was asked for: {broken}"]
    return []


def _unjudged_words(quality: Quality | None, declared: Tier) -> str:
    if quality is not None and quality.lacks_layout:
        return f"its layout was {quality.layout_words}, and --allow-unjudged is not set"
    if quality is not None and not quality.is_against_fp32:
        return f"its quality is not judged: {quality.reference or 'there is no reference in fp32'}"
    why = "these weights" if declared is not Tier.EXACT else "its output"
    return f"its quality with {why} is not judged, and --allow-unjudged is not set"


def is_judged(quality: Quality, declared: Tier) -> bool:
    """Whether figures say how far from the checkpoint's output a configuration is.

    Not where the reference is not in fp32, and not for a lossy choice whose weights were drawn at random: what four bits
    cost random weights says nothing of trained ones.
    """
    return quality.is_against_fp32 and not quality.lacks_layout and (declared is Tier.EXACT or not quality.drawn)


def tier_reached(
    quality: Quality, ran: Configuration, facts: ModelFacts, limits: Mapping[Tier, Limits] = LIMITS
) -> Tier | None:
    """Return the worse of the tier that a configuration's choices declare and the one that its figures reach.

    Exact and dtype are properties of how it is computed, 8bit and 4bit are limits on figures. None where it reaches none, or
    where nothing is known (see :func:`is_judged`). Whether an exact configuration is right is :func:`wrong`'s to say.
    """
    declared = tier_of(ran.items(), facts)
    if not is_judged(quality, declared):
        return None
    if declared is Tier.EXACT:
        return Tier.EXACT
    met = (tier for tier, most in limits.items() if tier.rank >= declared.rank and not _lossy_failures(quality, most))
    return next(met, None)


def wrong(trial: Trial, default: Trial | None, facts: ModelFacts) -> tuple[str, ...]:
    """Return, in words, what is wrong with a trial's output, whatever was asked for; nothing where nothing is seen.

    default: as for :func:`objections`. The default itself is judged like everybody else, by what its dtype gives.
    """
    quality, ran = trial.quality, trial.ran
    if quality is None:
        return ("no output was judged",) if trial.outcome is Outcome.OK else (trial.reason or "it was not finite",)
    found = [*_dependence(quality, ran, facts), *_layout(quality, facts)]
    if quality.is_against_fp32 and tier_of(ran.items(), facts) is Tier.EXACT:
        right = default if default is not None and default is not trial and not wrong(default, None, facts) else None
        found += _exact_failures(quality, mantissa_bits(trial), facts, right.quality if right is not None else None)
    if not found and trial.outcome is Outcome.WRONG_OUTPUT and NOT_FINITE in trial.reason:
        found.append(trial.reason)  # seen of a batch outside the sample that the figures are of
    return tuple(found)


def _dependence(quality: Quality, ran: Configuration, facts: ModelFacts) -> list[str]:
    """Say what the independence probe found."""
    if quality.probe_void:
        return [f"the independence probe is void: {quality.probe_void}"]
    found = _read(quality, ran, facts)
    if quality.repeat is not None and quality.repeat > max(probe_limit(ran, facts), _step(ran)):
        found.append(f"two equal runs differ by {quality.repeat:.1e} σ: the output is random")
    return found


def _read(quality: Quality, ran: Configuration, facts: ModelFacts) -> list[str]:
    """Say what a sequence reads that is not its own."""
    # Additions in an order that changes from run to run move equal runs as much: that is no dependence.
    limit = max(probe_limit(ran, facts), REPEATS * (quality.repeat or 0.0))
    pads = None if _has_neutral_pads(quality, facts) else quality.pads
    return [
        f"a sequence reads {what}: its output moves by {moved:.1e} σ when their contents change"
        for moved, what in ((quality.neighbours, "its neighbours"), (pads, "its pads"))
        if moved is not None and moved > limit
    ]


def _has_neutral_pads(quality: Quality, facts: ModelFacts) -> bool:
    """Whether a class reads its pads by design, and rightly: their vectors are zero, as they are beyond a sequence's end.

    In fp32 the layout is right with the pads as they are, and off with others, by as much as in the configuration's own
    precision: MobileBERT looks at the token after each, RecurrentGemma convolves. A class that does not read them in fp32 is
    not excused in 16 bits. Mixtures of experts are not either: other pads send tokens to other experts.
    """
    layout, moved = quality.layout, quality.layout_pads or 0.0
    if layout is None or layout > layout_limit(facts) or facts.experts:
        return False
    return moved > NEUTRAL * max(layout, ROUNDING) and moved > NEUTRAL_SHARE * (quality.pads or 0.0)


def depends(quality: Quality, ran: Configuration, facts: ModelFacts) -> bool:
    """Whether an output depends on what else is in its batch: on neighbours, on pads, or on how it is laid out."""
    return bool(_read(quality, ran, facts) or _layout(quality, facts))


def probe_limit(ran: Configuration, facts: ModelFacts) -> float:
    """Return how far (σ) an output may move in the independence probe: not at all, but for mixtures of experts."""
    if not facts.experts:
        return 0.0
    return min(EXPERTS_STEPS * _step(ran) * facts.layers, EXPERTS_MOST)


def _step(ran: Configuration) -> float:
    """Return the step between neighbouring numbers near 1; the coarsest where the precision is unknown."""
    return float(2.0 ** -(traits_of(ran).mantissa_bits or COARSE))


def layout_limit(facts: ModelFacts) -> float:
    """Return how far (σ) a sequence may be from itself alone with the weights in fp32, in whatever precision they came."""
    return LAYOUT_LIMIT_OF_STATES if facts.carries_state else LAYOUT_LIMIT


def _layout(quality: Quality, facts: ModelFacts) -> list[str]:
    limit = layout_limit(facts)
    if quality.layout is None or quality.layout <= limit:
        return []
    found = f"in fp32 a sequence is {quality.layout:.1e} σ from the same sequence alone (limit {limit:.0e})"
    return [f"its layout is wrong: {found}"]


def mantissa_bits(trial: Trial) -> int:
    """Return how fine the numbers are whose limits count: of what ran, as far as that is known, else of what was asked for."""
    bits = (traits_of(configuration).mantissa_bits for configuration in (trial.ran, trial.requested))
    return next((found for found in bits if found in FLOORS), FULL)


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


def _exact_failures(quality: Quality, bits: int, facts: ModelFacts, default: Quality | None) -> list[str]:
    rms_limit, kl_limit = exact_limits(bits, facts, default, from_logits=quality.kl is not None or quality.is_probed)
    found = []
    if quality.rms > rms_limit:
        found.append(f"rms error {quality.rms:.2e} > {rms_limit:.2e}")
    if quality.kl is not None and quality.kl > kl_limit:
        found.append(f"KL {quality.kl:.2e} > {kl_limit:.2e} nats")
    return found


def _direction_failures(quality: Quality, limits: Limits) -> list[str]:
    """Judge hidden states and embeddings by their direction."""
    failures = []
    if quality.cosine is not None and quality.cosine < limits.cosine:
        failures.append(f"cosine {quality.cosine:.5f} < {limits.cosine}")
    if quality.top10 is not None and quality.top10 < limits.top10:
        failures.append(f"overlap of the ten nearest {quality.top10:.3f} < {limits.top10}")
    return failures


def _lossy_failures(quality: Quality, limits: Limits) -> tuple[str, ...]:
    failures = []
    if quality.kl is not None and quality.kl > limits.kl:
        failures.append(f"KL {quality.kl:.2e} > {limits.kl:.0e} nats")
    if quality.top1 is not None and quality.top1 < limits.top1:
        failures.append(f"top-1 agreement {quality.top1:.4f} < {limits.top1}")
    if quality.perplexity_ratio is not None and quality.perplexity_ratio > limits.perplexity_ratio:
        failures.append(f"perplexity × {quality.perplexity_ratio:.4f} > {limits.perplexity_ratio}")
    failures += _direction_failures(quality, limits)
    if quality.kl is None and quality.cosine is None and quality.rms > limits.rms:
        failures.append(f"rms error {quality.rms:.2e} > {limits.rms:.2f}")
    return tuple(failures)


def depends_on_batch(configuration: Configuration) -> tuple[str, ...]:
    """Return the choices of a configuration whose arithmetic depends on the whole batch by design, as LLM.int8's does."""
    return tuple(f"{c.knob} {c.name}" for c in known_choices(configuration) if not c.traits.independent)
