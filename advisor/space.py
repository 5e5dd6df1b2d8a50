"""The space: which configurations are admissible for a workload here, what was refused and why, and which comes first.

Every refusal is a choice's own (its `unavailable` and `why_not`); only "does it fit in memory" and "is it within the
quality tier asked for" are the space's. No GPU time is spent, and no torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import product

from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.errors import BadInput
from advisor.knobs import KNOBS, Reason, Situation, Verdict, baseline_choices, choice_of, knobs_for, tier_of
from advisor.knobs.attention import tells_sequences_apart
from advisor.model import ModelFacts
from advisor.objective import Metric, Objective
from advisor.terminal import gib
from advisor.workloads import Workload
from advisor.workloads.forward import LOGITS

#: Share of the free memory that may be predicted to be used (rule M1; bitsandbytes' quantizers keep the same margin).
MEMORY_SHARE = 0.9

#: Predicted to be this many times slower than the default, a configuration is not tried (rule S1, ours): on a GPU with
#: tensor cores a 16-bit checkpoint in fp32 took 12.8 times as long on an H200, and two minutes to say so.
HOPELESS = 8.0

_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0}
_QUANTIZED_BYTES = {"int8": 1.0, "int8-no-outliers": 1.0, "nf4": 0.5 + 4 / 64, "nf4-double": 0.5 + 1 / 64,
                    "fp4": 0.5 + 4 / 64}  # fmt: skip

#: The attention that writes all scores of a layer to memory.
_WRITES_SCORES = ("eager", "sdpa-math")


@dataclass(frozen=True)
class Space:
    """What may be run, likeliest first, and what may not.

    admissible: configurations in the order of their predicted speed; refusals: one per rule and subject;
    warnings: reasons that do not refuse; baseline: what transformers does when told nothing, admissible or not. costs: what
    arithmetic predicts of each and of the baseline, less is better (only for the order of the search).
    """

    baseline: Configuration
    admissible: tuple[Configuration, ...]
    refusals: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    costs: Mapping[Configuration, float] = field(default_factory=dict)


def build_space(facts: ModelFacts, workload: Workload, environment: Environment, objective: Objective,
                free_bytes: int) -> Space:  # fmt: skip
    """Ask every choice about every combination and return the space. free_bytes: of the device, now."""
    baseline = Configuration.of(baseline_choices(facts, workload))
    unknown = [f"{knob} {name}" for knob, name in baseline.items() if name not in KNOBS[knob].choices]
    if unknown:
        raise BadInput(f"this model's default has {', '.join(unknown)}, which advisor can't measure yet")
    slowest = HOPELESS * predicted_cost(Situation(baseline, workload.under(baseline), environment, facts))
    admissible: dict[Configuration, float] = {}
    alone = _refused_alone(facts, workload, environment, objective)
    refusals = {(r.subject, r.about, r.rule): r for r in alone}
    warnings: dict[tuple[str, str, str], Reason] = {}
    for configuration in _combinations(workload, {reason.subject for reason in alone}):
        situation = Situation(configuration, workload.under(configuration), environment, facts)
        reasons = _reasons(situation, objective, free_bytes)
        if not any(reason.verdict.refuses for reason in reasons):
            reasons += _hopeless(situation, slowest)
        refusing = [reason for reason in reasons if _refuses(reason, objective)]
        for reason in refusing:
            refusals.setdefault((reason.subject, reason.about, reason.rule), reason)
        if not refusing:
            admissible[configuration] = predicted_cost(situation)
            warnings |= {(r.subject, r.about, r.rule): r for r in reasons if not r.verdict.refuses}
    ordered = sorted(admissible, key=lambda configuration: admissible[configuration])
    return Space(
        baseline=baseline,
        admissible=tuple(ordered),
        refusals=tuple(_telling(refusals.values(), ordered)),
        warnings=tuple(warnings.values()),
        costs=costs_of([baseline, *ordered], facts, workload, environment, objective.aim),
    )


def costs_of(configurations: Iterable[Configuration], facts: ModelFacts, workload: Workload, environment: Environment,
             aim: Metric) -> dict[Configuration, float]:  # fmt: skip
    """Return what arithmetic predicts of configurations at an aim: bytes where memory is, else relative time."""
    predicted = predicted_bytes if aim.metric == "peak_bytes" else predicted_cost
    return {c: predicted(Situation(c, workload.under(c), environment, facts)) for c in configurations}


def _refuses(reason: Reason, objective: Objective) -> bool:
    return reason.verdict.refuses and reason.rule not in objective.ignored_rules


def _combinations(workload: Workload, without: AbstractSet[str]) -> Iterable[Configuration]:
    """Yield every configuration for a workload that has none of the choices in `without` ("knob=choice")."""
    knobs = knobs_for(workload)
    tables = ([name for name in knob.choices if f"{knob.name}={name}" not in without] for knob in knobs.values())
    for choices in product(*tables):
        yield Configuration.of(dict(zip(knobs, choices, strict=True)))


def _refused_alone(facts: ModelFacts, workload: Workload, environment: Environment,
                   objective: Objective) -> list[Reason]:  # fmt: skip
    """Return the first reason of every choice that is refused whatever the others are: no combination with it is looked at."""
    found = []
    for knob in knobs_for(workload).values():
        for choice in knob.choices.values():
            reasons = [choice.unavailable(environment), *_outside(knob.name, choice.name, facts, objective)]
            refusing = (r for r in reasons if r is not None and _refuses(r, objective))
            if (reason := next(refusing, None)) is not None:
                found.append(replace(reason, subject=f"{knob.name}={choice.name}"))
    return found


def _outside(knob: str, name: str, facts: ModelFacts, objective: Objective) -> list[Reason]:
    """Refuse what the caller left out with --only or --fix, and what the objective's quality tier leaves out."""
    reasons = [
        Reason("U0", Verdict.INVALID, f"left out by --only or --fix {fixed}={','.join(names)}")
        for fixed, names in objective.only
        if fixed == knob and name not in names
    ]
    tier = tier_of([(knob, name)], facts)
    if tier.rank > objective.quality.rank:
        text = f"its tier is {tier}, and {objective.quality} was asked for"
        reasons.append(Reason("T0", Verdict.INVALID, text, f"--quality {tier}"))
    return reasons


def _reasons(situation: Situation, objective: Objective, free_bytes: int) -> list[Reason]:
    reasons = [
        replace(reason, subject=f"{knob}={name}")
        for knob, name in situation.configuration.items()
        for reason in choice_of(knob, name).why_not(situation)
    ]
    return reasons + _too_large(situation, objective, free_bytes)


def _hopeless(situation: Situation, slowest: float) -> list[Reason]:
    """Refuse what arithmetic alone puts far behind the default."""
    cost = predicted_cost(situation)
    if cost <= slowest:
        return []
    text = f"predicted to be {HOPELESS * cost / slowest:.0f} times slower than the default, by operations and rates"
    subject, about = (" ".join(f"{k}={situation.configuration[k]}" for k in knobs)
                      for knobs in (("precision", "quantization"), ("attention",)))  # fmt: skip
    return [Reason("S1", Verdict.INVALID, text, "--ignore-rule S1 tries it", about=about, subject=subject)]


def weight_bytes(facts: ModelFacts, configuration: Configuration) -> float:
    """Return the bytes of the weights: linear layers in the quantised size, the rest in the precision's."""
    if configuration["quantization"] == "checkpoint":
        return facts.parameter_bytes
    size = _BYTES.get(configuration["precision"], 4.0)
    quantized = _QUANTIZED_BYTES.get(configuration["quantization"], 0.0)
    rest = facts.parameters - facts.linear_parameters
    return rest * size + facts.linear_parameters * (quantized or size)


def predicted_bytes(situation: Situation) -> float:
    """Return the bytes that are needed for certain: weights, one layer's scores under eager, the logits asked for.

    A lower bound on purpose: what it refuses can't run, and what it lets through is measured.
    """
    facts, workload, configuration = situation.facts, situation.workload, situation.configuration
    size = _BYTES.get(configuration["precision"], 4.0)
    packed = configuration["packing"].startswith("packed")
    batches = workload.batches(by_length=configuration["packing"] == "sorted")
    lengths = [[workload.lengths[i] for i in batch] for batch in batches]
    columns = max(sum(batch) if packed else max(batch) for batch in lengths)
    rows = 1 if packed else max(len(batch) for batch in lengths)
    needed = weight_bytes(facts, configuration)
    if configuration["attention"] in _WRITES_SCORES:
        needed += 2 * rows * facts.heads * columns**2 * size
    elif packed and configuration["attention"].startswith("sdpa"):
        needed += columns**2 * (1 if facts.is_causal else size)
    if workload.output == "all-logits":
        needed += rows * columns * facts.vocabulary * size
    return needed


def _too_large(situation: Situation, objective: Objective, free_bytes: int) -> list[Reason]:
    limit = MEMORY_SHARE * free_bytes
    if objective.max_memory_bytes is not None:
        limit = min(limit, objective.max_memory_bytes)
    needed = predicted_bytes(situation)
    if needed <= limit:
        return []
    about = " ".join(
        f"{knob}={name}" for knob, name in situation.configuration.items() if knob in ("attention", "packing")
    )
    subject = " ".join(f"{k}={situation.configuration[k]}" for k in ("precision", "quantization"))
    text = f"needs at least {gib(needed)}, and {gib(limit)} may be used"
    return [Reason("M1", Verdict.INVALID, text, "a smaller batch or fewer bits", about=about, subject=subject)]


def predicted_cost(situation: Situation) -> float:
    """Return a number that orders configurations by speed: operations over the choices' relative rates.

    Linear layers: 2 operations per parameter and token processed; attention: 4·T²·heads·head size per layer, halved by
    causality only where a kernel makes use of it (that is in the rate). Only the order matters: it is a prior, not a claim.
    """
    facts, workload, configuration = situation.facts, situation.workload, situation.configuration
    packing = configuration["packing"]
    batches = [[workload.lengths[i] for i in batch] for batch in workload.batches(by_length=packing == "sorted")]
    rate = {knob: choice_of(knob, name).rate(situation) for knob, name in configuration.items()}
    name = configuration["attention"]
    dense = not tells_sequences_apart(name) and name not in ("flex_attention", "bettertransformer")
    if packing.startswith("packed") or name == "bettertransformer":
        tokens = workload.tokens
        pairs = sum(sum(batch) ** 2 if dense else sum(n * n for n in batch) for batch in batches)
    else:
        tokens = sum(len(batch) * max(batch) for batch in batches)
        pairs = sum(len(batch) * max(batch) ** 2 for batch in batches)
    linear = 2.0 * (facts.active_linear_parameters or facts.linear_parameters) * tokens / rate["quantization"]
    attention = 4.0 * pairs * attention_width(facts) * 8.0 / rate["attention"]
    return (linear + attention) / rate["precision"] / rate.get("batch", 1.0)


def attention_width(facts: ModelFacts) -> int:
    """Return heads · head size over all layers with attention: as counted, or as all layers alike would have it."""
    return facts.attention_width or facts.heads * facts.head_dim * facts.layers


def useful_operations(facts: ModelFacts, workload: Workload) -> float:
    """Return the floating-point operations that one pass over the list needs, pads and masked pairs left out.

    2 per parameter of a linear layer and token; 4·heads·head size per layer and pair of tokens that attend to one another:
    half of all pairs of a sequence under a causal mask. The output layer counts for the positions asked for alone.
    """
    pairs = sum(n * n for n in workload.lengths) / (2 if facts.is_causal else 1)
    output = facts.vocabulary * facts.hidden_size if workload.output in LOGITS else 0
    active = facts.active_linear_parameters or facts.linear_parameters
    output = min(output, active)
    body = active - output
    asked = len(workload.lengths) if workload.output == "last-logits" else workload.tokens
    linear = 2.0 * (body * workload.tokens + output * asked)
    return linear + 4.0 * pairs * attention_width(facts)


def _telling(refusals: Iterable[Reason], admissible: Sequence[Configuration]) -> list[Reason]:
    """Order refusals by subject, and leave out what another refusal of the same subject already says for all cases."""
    whole = {(reason.subject, reason.rule) for reason in refusals if not reason.about}
    kept = [reason for reason in refusals if not reason.about or (reason.subject, reason.rule) not in whole]
    return sorted(kept, key=lambda reason: (reason.subject, reason.rule, reason.about))


def refuse_unpadded(name: str, *, pads: bool, batch: int | None) -> None:
    """Raise BadInput where a batch of several needs a pad token that the model has not: before each of them fails for it.

    pads: see ModelFacts; batch: how many sequences at once, None where that is to be found.
    """
    if not pads and batch != 1:
        raise BadInput(f"{name} finds the end of a sequence by its pad token, and its config.json names none",
                       "--batch 1, or set pad_token_id there")  # fmt: skip
