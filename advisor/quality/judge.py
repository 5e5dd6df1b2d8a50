"""What is wrong with a trial's output, whatever was asked for, and which quality tier it reaches.

Trials store figures; what they mean is decided here, whenever they are read: old rows are judged by today's rules. The figures
are of three kinds (measurement.md, D):

1. the independence probe: how far a sequence's output moves when its neighbours' or the pads' contents change. It must not
   move by a bit, whatever the dtype, the backend or the weights;
2. the layout in fp32: the configuration's exact call with fp32 weights against one sequence at a time;
3. the error against the reference: the same checkpoint in fp32, one sequence at a time, no padding, no packing. The shape of
   the criterion for exact levers is FlashAttention's own test: at most twice the error that the default makes.

How far each may be off is in limits.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from advisor.knobs import known_choices, tier_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Limits, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.limits import (
    COURSE_OF_LOSSY,
    FLOORS,
    FULL,
    LIMITS,
    NEUTRAL,
    NEUTRAL_SHARE,
    REPEATS,
    ROUNDING,
    Course,
    bits_of,
    course_limits,
    exact_limits,
    layout_limit,
    probe_limit,
    step_of,
)

#: The version of what is judged and how: an answer that was given by another one is given again.
GATE_VERSION = "gate/3"

#: What a reason says where an output was not finite: figures say nothing of it then.
NOT_FINITE = "NaN or infinity"


def wrong(trial: Trial, default: Trial | None, facts: ModelFacts) -> tuple[str, ...]:
    """Return, in words, what is wrong with a trial's output, whatever was asked for; nothing where nothing is seen.

    default: the trial of the model's default on the same work, None where it could not be run. It is itself judged like everybody
    else, by what its dtype gives.
    """
    is_other = default is not None and default is not trial
    return wrong_beside(trial, right_default(default, facts) if is_other else None, facts)


def right_default(default: Trial | None, facts: ModelFacts) -> Trial | None:
    """Return a default that others are held to: None where there is none, or where it is wrong itself."""
    return None if default is None or wrong_beside(default, None, facts) else default


def wrong_beside(trial: Trial, right: Trial | None, facts: ModelFacts) -> tuple[str, ...]:
    """Return what :func:`wrong` does, for who asks about many trials. right: the default, from :func:`right_default`."""
    quality, ran = trial.quality, trial.ran
    if quality is None:
        return ("no output was judged",) if trial.outcome is Outcome.OK else (trial.reason or "it was not finite",)
    found = [*_dependence(quality, ran, facts), *_layout(quality, facts)]
    if quality.is_against_fp32 and tier_of(ran.items(), facts) is Tier.EXACT:
        held_to = right.quality if right is not None and right is not trial else None
        found += _exact_failures(quality, mantissa_bits(trial), facts, held_to)
    elif quality.is_against_fp32:
        found += _astray(quality, COURSE_OF_LOSSY)
    if not found and trial.outcome is Outcome.WRONG_OUTPUT and NOT_FINITE in trial.reason:
        found.append(trial.reason)  # seen of a batch outside the sample that the figures are of
    return tuple(found)


def depends(quality: Quality, ran: Configuration, facts: ModelFacts) -> bool:
    """Whether an output depends on what else is in its batch: on neighbours, on pads, or on how it is laid out."""
    return bool(_read(quality, ran, facts) or _layout(quality, facts))


def _dependence(quality: Quality, ran: Configuration, facts: ModelFacts) -> list[str]:
    """Say what the independence probe found."""
    if quality.probe_void:
        return [f"the independence probe is void: {quality.probe_void}"]
    found = _read(quality, ran, facts)
    if quality.repeat is not None and quality.repeat > max(probe_limit(ran, facts), step_of(ran)):
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


def _layout(quality: Quality, facts: ModelFacts) -> list[str]:
    limit = layout_limit(facts)
    if quality.layout is None or quality.layout <= limit:
        return []
    found = f"in fp32 a sequence is {quality.layout:.1e} σ from the same sequence alone (limit {limit:.0e})"
    return [f"its layout is wrong: {found}"]


def mantissa_bits(trial: Trial) -> int:
    """Return how fine the numbers are whose limits count: of what ran, as far as that is known, else of what was asked for."""
    traits = map(traits_of, (trial.ran, trial.requested))
    return next((found for each in traits if each.mantissa_bits and (found := bits_of(each)) in FLOORS), FULL)


def _exact_failures(quality: Quality, bits: int, facts: ModelFacts, default: Quality | None) -> list[str]:
    rms_limit, kl_limit = exact_limits(bits, facts, default, from_logits=quality.kl is not None or quality.is_probed)
    found = []
    if quality.rms > rms_limit:
        found.append(f"rms error {quality.rms:.2e} > {rms_limit:.2e}")
    if quality.kl is not None and quality.kl > kl_limit:
        found.append(f"KL {quality.kl:.2e} > {kl_limit:.2e} nats")
    return found + _astray(quality, course_limits(bits, default))


def _astray(quality: Quality, limits: Course) -> list[str]:
    """Say how training goes astray, where something is trained."""
    if quality.gradient is None or quality.loss is None or quality.norm is None:
        return []
    over = f"over {quality.steps} step{'s' if quality.steps != 1 else ''}"
    said = (
        (
            quality.gradient,
            limits.gradient,
            f"gradients of the first step are {quality.gradient:.2e} of their size off",
        ),
        (quality.loss, limits.loss, f"a step's loss is {quality.loss:.2e} nats off {over}"),
        (quality.norm, limits.norm, f"the gradients' norm is {quality.norm:.1%} off {over}"),
    )
    return [f"training goes astray: {text} (limit {limit:.2g})" for figure, limit, text in said if figure > limit]


def has_reference(quality: Quality) -> bool:
    """Whether there was something to judge by: outputs in fp32, and for work that trains a step in fp32."""
    return quality.is_against_fp32 and not quality.course


def is_judged(quality: Quality, declared: Tier) -> bool:
    """Whether figures say how far from the checkpoint's output a configuration is.

    Not where the reference is not in fp32, and not for a lossy choice whose weights were drawn at random: what four bits
    cost random weights says nothing of trained ones.
    """
    return has_reference(quality) and not quality.lacks_layout and (declared is Tier.EXACT or not quality.drawn)


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
    met = (tier for tier, most in limits.items() if tier.rank >= declared.rank and not lossy_failures(quality, most))
    return next(met, None)


def lossy_failures(quality: Quality, limits: Limits) -> tuple[str, ...]:
    """Return, in words, which limits of a lossy tier figures break."""
    failures = []
    if quality.kl is not None and quality.kl > limits.kl:
        failures.append(f"KL {quality.kl:.2e} > {limits.kl:.0e} nats")
    if quality.top1 is not None and quality.top1 < limits.top1:
        failures.append(f"top-1 agreement {quality.top1:.4f} < {limits.top1}")
    if quality.perplexity_ratio is not None and quality.perplexity_ratio > limits.perplexity_ratio:
        failures.append(f"perplexity × {quality.perplexity_ratio:.4f} > {limits.perplexity_ratio}")
    failures += _direction_failures(quality, limits)
    if quality.loss is not None and quality.loss > limits.loss:
        failures.append(f"a step's loss {quality.loss:.2e} nats off > {limits.loss:g}")
    if quality.kl is None and quality.cosine is None and quality.rms > limits.rms:
        failures.append(f"rms error {quality.rms:.2e} > {limits.rms:.2f}")
    return tuple(failures)


def _direction_failures(quality: Quality, limits: Limits) -> list[str]:
    """Judge hidden states and embeddings by their direction."""
    failures = []
    if quality.cosine is not None and quality.cosine < limits.cosine:
        failures.append(f"cosine {quality.cosine:.5f} < {limits.cosine}")
    if quality.top10 is not None and quality.top10 < limits.top10:
        failures.append(f"overlap of the ten nearest {quality.top10:.3f} < {limits.top10}")
    return failures


def depends_on_batch(configuration: Configuration) -> tuple[str, ...]:
    """Return the choices of a configuration whose arithmetic depends on the whole batch by design, as LLM.int8's does."""
    return tuple(f"{c.knob} {c.name}" for c in known_choices(configuration) if not c.traits.independent)
