"""The space: which configurations are admissible for a workload here, what was refused and why, and which comes first.

Every refusal is a choice's own (its `unavailable` and `why_not`); only "does it fit in memory" and "is it within the
quality tier asked for" are the space's. No GPU time is spent, and no torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from advisor.errors import BadInput, NothingAdmissible, named
from advisor.knobs import (
    KNOBS,
    Reason,
    Situation,
    Verdict,
    baseline_choices,
    choice_of,
    compiling_s,
    knobs_for,
    tier_of,
)
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.metrics import ROUND, Gauge
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Trial
from advisor.quality.amortised import calls_of
from advisor.search.cost import costs_beside, costs_of, launches_of, predicted_cost
from advisor.workloads import Workload

#: Share of the free memory that may be predicted to be used (rule M1; bitsandbytes' quantizers keep the same margin).
MEMORY_SHARE = 0.9

#: What a process has on a GPU at least beside what is predicted of it (bytes): its CUDA context and the code of its kernels.
#: Below what is known of any GPU, for a configuration that fits must not be refused: `benchmarks/nvml_peak.py` measures it.
LEAST_BESIDE_BYTES = 256 * 2**20

#: Predicted to be this many times slower than the default, a configuration is not tried (rule S1, ours): on a GPU with
#: tensor cores a 16-bit checkpoint in fp32 took 12.8 times as long on an H200, and two minutes to say so.
HOPELESS = 8.0


@dataclass(frozen=True)
class Space:
    """What may be run, likeliest first, and what may not.

    admissible: configurations in the order of their predicted speed; refusals: one per rule and subject;
    warnings: reasons that do not refuse; baseline: what transformers does when told nothing, admissible or not. costs: what
    arithmetic predicts of each and of the baseline, less is better (only for the order of the search); launches: likewise of
    what the CPU does to launch each, nothing where the objective is not of time. passes: over the list, that the objective's job
    has: compiling is spread over them; None where it has no end. layers: of the model, by which compiling the whole of it takes.
    """

    baseline: Configuration
    admissible: tuple[Configuration, ...]
    refusals: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    costs: Mapping[Configuration, float] = field(default_factory=dict)
    launches: Mapping[Configuration, float] = field(default_factory=dict)
    passes: float | None = None
    layers: int = field(kw_only=True)

    def costs_beside(self, default: Trial | None) -> Mapping[Configuration, float]:
        """Return what arithmetic predicts of each, given what the default's trial showed (None: nothing yet)."""
        found = costs_beside(self.costs, self.launches, default)
        round_s = None if default is None else default.value(ROUND)
        if self.passes is None or not round_s:
            return found
        per_s = found[self.baseline] / (round_s * self.passes)
        return {each: cost + per_s * compiling_s(each, self.layers) for each, cost in found.items()}


def build_space(
    facts: ModelFacts,
    workload: Workload,
    environment: Environment,
    objective: Objective,
    free_bytes: int,
    *,
    drawn: bool = False,
) -> Space:
    """Ask every choice about every combination and return the space. free_bytes: of the device, now.

    drawn: whether the weights are drawn at random, so that no lossy choice can be judged (rule T0).
    """
    from advisor.search.admission import Bounds, admitted  # numpy: who only reads an answer does not wait for it
    from advisor.search.cases import Grid

    baseline = Configuration.of(baseline_choices(facts, workload))
    unknown = [f"{knob} {name}" for knob, name in baseline.items() if name not in KNOBS[knob].choices]
    if unknown:
        raise BadInput(f"this model's default has {', '.join(unknown)}, which advisor can't measure yet")
    _refuse_unturned(workload, objective, baseline)
    unjudged = drawn and not objective.allow_unjudged
    alone = _refused_alone(facts, workload, environment, objective, unjudged=unjudged)
    default = Situation(baseline, workload.under(baseline), environment, facts)
    bounds = Bounds(HOPELESS * predicted_cost(default), HOPELESS, _most_bytes(objective, free_bytes, environment))
    grid = Grid(_axes(workload, {reason.subject for reason in alone}), facts, workload, environment)
    found = admitted(grid, bounds, lambda reason: _refuses(reason, objective))
    predicted = found.bytes if objective.aim.gauge is Gauge.MEMORY else found.costs
    of_default = {baseline: default}
    return Space(
        baseline=baseline,
        admissible=found.configurations,
        refusals=tuple(_telling([*alone, *found.refusals])),
        warnings=found.warnings,
        costs=costs_of(of_default, objective.aim) | dict(zip(found.configurations, predicted, strict=True)),
        passes=None if objective.job_calls is None else objective.job_calls / calls_of(workload, baseline),
        layers=facts.layers,
        launches=launches_of(of_default, objective.aim)
        | (dict(zip(found.configurations, found.launches, strict=True)) if objective.aim.is_of_time else {}),
    )


def refusals_of(situation: Situation, objective: Objective) -> list[Reason]:
    """Return why rules refuse one configuration in an environment, whatever memory is free there; nothing where they don't."""
    choices = [(f"{knob}={name}", choice_of(knob, name)) for knob, name in situation.configuration.over(KNOBS)]
    absent = [(subject, choice.unavailable(situation.environment)) for subject, choice in choices]
    reasons = [replace(reason, subject=subject) for subject, reason in absent if reason is not None]
    reasons += _refused_together(situation)
    return [reason for reason in reasons if _refuses(reason, objective)]


def refuse_nothing_left(objective: Objective, admissible: int | None, refusals: Sequence[Reason]) -> None:
    """Raise NothingAdmissible where --only leaves nothing to try: the default alone is no answer to it.

    But where what it names would give a wrong output: then the default is the answer, with the rule that says so beside it.
    admissible: how many are left, None where that is not known.
    """
    if not objective.only or admissible != 0:
        return
    asked = {f"{knob}={name}" for knob, names in objective.only for name in names}
    reasons = [reason for reason in refusals if asked & {reason.subject, reason.about}] or refusals
    if not any(reason.verdict is Verdict.WRONG for reason in reasons):
        raise NothingAdmissible([f"{r}{f' → {r.remedy}' if r.remedy else ''}" for r in reasons])


def _refuse_unturned(workload: Workload, objective: Objective, baseline: Configuration) -> None:
    """Raise BadInput where --only leaves of a knob that can't be turned for this work nothing that a configuration has."""
    turned = knobs_for(workload)
    for knob, names in objective.only:
        if knob not in turned and baseline.get(knob) not in names:
            text = f"{named('only')} {knob}={','.join(names)}: the knob {knob} can't be turned for this work"
            nowhere = f"there is no knob {knob}, which {named('only')} names"
            raise BadInput(text if knob in KNOBS else nowhere, "leave it out")


def _refuses(reason: Reason, objective: Objective) -> bool:
    return reason.verdict.refuses and reason.rule not in objective.ignored_rules


def _axes(workload: Workload, without: AbstractSet[str]) -> dict[str, tuple[str, ...]]:
    """Return the choices of every knob that can be turned for a workload, but those in `without` ("knob=choice")."""
    return {
        knob.name: tuple(name for name in knob.choices if f"{knob.name}={name}" not in without)
        for knob in knobs_for(workload).values()
    }


def _refused_alone(
    facts: ModelFacts, workload: Workload, environment: Environment, objective: Objective, *, unjudged: bool
) -> list[Reason]:
    """Return the first reason of every choice that is refused whatever the others are: no combination with it is looked at."""
    found = []
    for knob in knobs_for(workload).values():
        for choice in knob.choices.values():
            outside = _outside(knob.name, choice.name, facts, objective, unjudged=unjudged)
            reasons = [choice.unavailable(environment), *outside]
            refusing = (r for r in reasons if r is not None and _refuses(r, objective))
            if (reason := next(refusing, None)) is not None:
                found.append(replace(reason, subject=f"{knob.name}={choice.name}"))
    return found


def _outside(knob: str, name: str, facts: ModelFacts, objective: Objective, *, unjudged: bool) -> list[Reason]:
    """Refuse what the caller left out with --only or --fix, and what the objective's quality tier leaves out.

    unjudged: whether no lossy choice can be judged here, nor may be recommended so: then no time is spent on it.
    """
    reasons = [
        Reason("U0", Verdict.INVALID, f"left out by --only or --fix {fixed}={','.join(names)}")
        for fixed, names in objective.only
        if fixed == knob and name not in names
    ]
    tier = tier_of([(knob, name)], facts)
    if tier.rank > objective.quality.rank:
        text = f"its tier is {tier}, and {objective.quality} was asked for"
        reasons.append(Reason("T0", Verdict.INVALID, text, f"--quality {tier}"))
    elif unjudged and tier is not Tier.EXACT:
        text = "these weights are drawn at random: what it costs them says nothing of trained ones"
        reasons.append(Reason("T0", Verdict.INVALID, text, "trained weights, or --allow-unjudged"))
    return reasons


def _refused_together(situation: Situation) -> list[Reason]:
    """Return what the choices of a configuration say of being together in a situation."""
    return [
        replace(reason, subject=f"{knob}={name}")
        for knob, name in situation.configuration.over(KNOBS)
        for reason in choice_of(knob, name).why_not(situation)
    ]


def _most_bytes(objective: Objective, free_bytes: int, environment: Environment) -> float:
    """Return the bytes that a configuration may be predicted to use: on a GPU less what a process has there beside them."""
    limit = MEMORY_SHARE * free_bytes
    limit = limit if objective.max_memory_bytes is None else min(limit, objective.max_memory_bytes)
    return limit - LEAST_BESIDE_BYTES if environment.is_cuda else limit


def _telling(refusals: Sequence[Reason]) -> list[Reason]:
    """Order refusals by subject, and leave out what another refusal of the same subject already says for all cases."""
    whole = {(reason.subject, reason.rule) for reason in refusals if not reason.about}
    kept = [reason for reason in refusals if not reason.about or (reason.subject, reason.rule) not in whole]
    return sorted(kept, key=lambda reason: (reason.subject, reason.rule, reason.about))
