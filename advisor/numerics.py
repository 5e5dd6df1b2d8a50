"""The numerics gate's verdict on whether a configuration's output is still right.

The reference is the same checkpoint in fp32, one sequence at a time, no padding, no packing, eager attention. The shape of
the criterion for exact levers is FlashAttention's own test: at most twice the error that the baseline makes against that
reference. The thresholds of the lossy tiers are measurement.md's (B.6, "Recommended gate").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from advisor.objective import Tier
from advisor.trial import Quality

#: Of the verdicts below: it is raised whenever the same figures can be judged otherwise.
GATE_VERSION = 1

#: An exact lever may have this many times the baseline's own rms error.
FACTOR = 2.0

#: And this many times its KL: for small errors KL grows with their square (its first-order term vanishes), so twice the
#: error is four times the KL. With a factor of 2 the gate rejected plain eager attention in bf16 on an H200, whose rms
#: error was 1.42 times the default's and whose KL 2.02 times (docs/results/2026-11-23-h200.md).
KL_FACTOR = FACTOR**2


@dataclass(frozen=True)
class Floor:
    """Errors too small to judge in a dtype: rms in standard deviations of the reference, kl in nats; and their origin."""

    rms: float
    kl: float
    origin: str


_SHIPPED = "3 × the largest of 100 calibration runs on the shipped model (docs/results/2026-11-23-cpu.md)"

#: Where the baseline's own error is ~0 (an fp32 baseline against the fp32 reference), the factor alone would reject every
#: right configuration. Calibrated: exact configuration against exact configuration (benchmarks/calibrate_gate.py).
FLOORS: Mapping[str, Floor] = {
    "fp32": Floor(6.2e-5, 1.1e-9, "3 × sdpa against eager, Llama-3-8B shape in fp32, 4,096 tokens, on an H200"),
    "tf32": Floor(3.1e-3, 6.3e-6, "fp16's: the same 10 bits of mantissa; not calibrated by itself"),
    "fp16": Floor(3.1e-3, 6.3e-6, _SHIPPED),
    "bf16": Floor(6.3e-2, 5.4e-4, "3 × the largest, Llama-3.2-1B shape on a CPU (docs/results/2026-11-23-cpu.md)"),
}

#: Where the baseline could not be run there is nothing to double, and where it is wrong itself that is not to be doubled:
#: 1.5 times the largest error that a right configuration of a real shape was seen to have. bf16: Llama-3-8B shape, eager, on
#: an H200 (docs/results/2026-11-23-h200.md: rms 0.095, KL 7.4e-3); fp16 has 8 times finer steps than bf16.
UNAIDED: Mapping[str, Floor] = {
    "fp32": Floor(1e-3, 1e-6, "over ten times the floor"),
    "tf32": Floor(2e-2, 2e-4, "steps of fp16"),
    "fp16": Floor(2e-2, 2e-4, "bf16's over 8, and over 64 for KL"),
    "bf16": Floor(0.15, 1.1e-2, "Llama-3-8B shape on an H200"),
}


@dataclass(frozen=True)
class Limits:
    """What a lossy tier may cost: kl in nats, top1, cosine and top10 as shares, perplexity as a ratio.

    rms: of scores with a single label, in standard deviations over the sequences: there kl and top1 say nothing.
    """

    kl: float
    top1: float
    perplexity_ratio: float
    cosine: float
    top10: float
    rms: float


#: measurement.md, B.6. The tier dtype has no perplexity limit there: one per cent is the next tier's. That overlap of the ten
#: nearest must be looked at stands there too, its limits are ours; so are those of rms.
LIMITS: Mapping[Tier, Limits] = {
    Tier.DTYPE: Limits(1e-3, 0.99, 1.01, 0.999, 0.95, 0.05),
    Tier.EIGHT_BIT: Limits(1e-2, 0.975, 1.01, 0.99, 0.9, 0.1),
    Tier.FOUR_BIT: Limits(5e-2, 0.94, 1.03, 0.95, 0.8, 0.25),
}


def judge(
    quality: Quality, tier: Tier, precision: str, baseline: Quality | None, *, is_baseline: bool, random_weights: bool,
    reference: str = "fp32",
) -> Quality:  # fmt: skip
    """Return the figures with their verdict: `failures` names every limit that was broken, with both numbers.

    baseline: the baseline's own figures against the same reference, None where it could not be run: then what right
    configurations of a real shape were seen to have is the limit. is_baseline: it has only to be finite, for it is what the
    user gets today. With random weights a lossy choice is not judged. reference: the precision that the reference was computed
    in: fp32, unless that did not fit or run, or the checkpoint is quantised; then its own rounding is in every error.
    """
    if is_baseline:
        return quality
    if tier is Tier.EXACT:
        return replace(quality, failures=_exact_failures(quality, precision, reference, baseline))
    if random_weights:
        return replace(quality, judged=False)
    return replace(quality, failures=_lossy_failures(quality, LIMITS[tier]))


def exact_limits(quality: Quality, precision: str, reference: str, baseline: Quality | None) -> tuple[float, float]:
    """Return the largest rms error and KL that an exact configuration's figures may have: see :func:`judge`."""
    coarser = max(precision, reference, key=lambda name: FLOORS[name].rms)
    floor, most = FLOORS[coarser], UNAIDED[coarser]
    # A default that is wrong itself must not open the gate: its error counts up to what right ones were seen to have.
    # The floors of 16 bits come from logits, and a leak between documents would pass under them in hidden states: these have
    # the default's own error, which is not ~0 in 16 bits against fp32, and fp32's floor.
    from_logits = quality.kl is not None or reference != "fp32"
    least = floor.rms if from_logits else min(floor.rms, FLOORS["fp32"].rms)
    rms_limit = max(min(FACTOR * baseline.rms, most.rms), least) if baseline else most.rms
    kl_limit = max(min(KL_FACTOR * (baseline.kl or 0.0), most.kl), floor.kl) if baseline else most.kl
    return rms_limit, kl_limit


def _exact_failures(quality: Quality, precision: str, reference: str, baseline: Quality | None) -> tuple[str, ...]:
    rms_limit, kl_limit = exact_limits(quality, precision, reference, baseline)
    failures = []
    if quality.rms > rms_limit:
        failures.append(f"rms error {quality.rms:.2e} > {rms_limit:.2e}")
    if quality.kl is not None and quality.kl > kl_limit:
        failures.append(f"KL {quality.kl:.2e} > {kl_limit:.2e} nats")
    return tuple(failures)


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
