"""What a configuration needs, by arithmetic alone: operations, bytes, and a number that orders configurations by speed.

The work of one pass over the list is a number of operations on each term (`advisor.knobs.Term`); a choice has a rate on the
terms that it changes. No GPU time is spent, and no torch is needed. A prior for the search, not a claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from advisor.knobs import Choice, Situation, Term, Traits, choices_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.metrics import Gauge, Metric
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Trial
from advisor.workloads import Head, Layout, Needs, Work, Workload

#: How much slower than a linear layer's an operation of attention is where its scores are written to memory.
_ATTENTION = 8.0


def situations_of(
    configurations: Iterable[Configuration], facts: ModelFacts, workload: Workload, environment: Environment
) -> dict[Configuration, Situation]:
    """Return what each configuration of a model's work is predicted of."""
    return {c: Situation(c, workload.under(c), environment, facts) for c in configurations}


def costs_of(situations: Mapping[Configuration, Situation], aim: Metric) -> dict[Configuration, float]:
    """Return what arithmetic predicts of configurations at an aim: bytes where memory is, else relative time."""
    predicted = predicted_bytes if aim.gauge is Gauge.MEMORY else predicted_cost
    return {configuration: predicted(situation) for configuration, situation in situations.items()}


def launches_of(situations: Mapping[Configuration, Situation], aim: Metric) -> dict[Configuration, float]:
    """Return what the CPU does to launch each, in relative time; nothing where an aim is not of time."""
    if not aim.is_of_time:
        return {}
    return {configuration: predicted_launches(situation) for configuration, situation in situations.items()}


def costs_beside(
    costs: Mapping[Configuration, float], launches: Mapping[Configuration, float], default: Trial | None
) -> Mapping[Configuration, float]:
    """Return relative times, given what the default's trial showed: whether its work waits for its launches.

    Then a configuration takes as long as the longer of both: of the default's time the share for which the GPU computed, by
    how much less it has to compute; and all of it, by how much less the CPU does to launch it. Else, and where nothing is
    known of launches, the costs as they are.
    """
    if default is None or default.busy is None or not default.is_launch_bound:
        return costs
    at = default.ran if default.ran in costs else default.requested
    if at not in costs or at not in launches:
        return costs
    busy = default.busy / costs[at]
    return {c: costs[at] * max(busy * cost, launches[c] / launches[at]) for c, cost in costs.items()}


def weight_bytes(facts: ModelFacts, workload: Workload, configuration: Configuration) -> float:
    """Return the bytes of the weights: linear layers but the output's in the quantised size, the rest in the precision's."""
    return _weight_bytes(facts, workload.needs, traits_of(configuration))


def _weight_bytes(facts: ModelFacts, needs: Needs, traits: Traits) -> float:
    if traits.as_stored:
        return facts.parameter_bytes
    size = traits.bytes_per_value
    linear = facts.linear_parameters - min(_output(facts, needs), facts.linear_parameters)
    return (facts.parameters - linear) * size + linear * (traits.bytes_per_weight or size)


def _output(facts: ModelFacts, needs: Needs) -> int:
    """Return how many weights the output layer has; quantizers leave it out, by transformers' custom."""
    return facts.vocabulary * facts.hidden_size if needs.head is Head.LANGUAGE else 0


def predicted_bytes(situation: Situation) -> float:
    """Return the bytes that are needed for certain: weights, scores or a mask that are written, the logits asked for.

    A lower bound on purpose: what it refuses can't run, and what it lets through is measured.
    """
    return bytes_of_weights(situation) + bytes_of_call(situation)


def bytes_of_weights(situation: Situation) -> float:
    """Return the bytes of the weights: see :func:`weight_bytes`."""
    return _weight_bytes(situation.facts, situation.needs, situation.traits)


def bytes_of_call(situation: Situation) -> float:
    """Return the bytes that a call needs beside the weights: scores or a mask that are written, the logits asked for."""
    facts, traits = situation.facts, situation.traits
    work, written = situation.workload.work(layout_of(traits), facts), 0.0
    if traits.writes_shared and _writes_shared(situation, work):
        traits = cast("Traits", _Writing(traits))
    own = situation.workload.step_bytes(work, facts, traits)
    if own is not None:
        return own
    if traits.writes_scores:
        written = 2 * work.rows * facts.heads * work.columns**2 * traits.bytes_per_value
    elif traits.packs and traits.builds_mask:
        written = work.columns**2 * (1 if facts.is_causal else traits.bytes_per_value)
    return written + work.kept * facts.vocabulary * traits.bytes_per_value


class _Writing:
    """Traits as they are, but that all scores are written: whoever looks at them learns what was looked at (`search.cases`)."""

    writes_scores = True

    def __init__(self, traits: Traits) -> None:
        """Hold them."""
        self._traits = traits

    def __getattr__(self, name: str) -> Any:
        """Return what they say of anything else."""
        return getattr(self._traits, name)


def _writes_shared(situation: Situation, work: Work) -> bool:
    """Whether torch's kernels leave out what it asks for: in fp32, with keys that queries share, and without a mask.

    torch's efficient kernel takes no shared keys, and the others take 16 bits; with a mask transformers repeats the keys.
    """
    facts, traits = situation.facts, situation.traits
    is_whole = situation.environment.is_cuda and traits.bytes_per_value == 4 and not traits.autocasts
    window = facts.sliding_window
    is_masked = traits.packs or work.processed > work.tokens or (window is not None and work.columns >= window)
    return is_whole and facts.kv_heads < facts.heads and not is_masked


def layout_of(traits: Traits) -> Layout:
    """Return how a configuration lays a list out."""
    apart = traits.tells_apart or traits.masks_by_block or traits.drops_pads
    return Layout(traits.by_length, traits.packs, pads=not (traits.packs or traits.drops_pads), apart=apart)


def predicted_cost(situation: Situation) -> float:
    """Return a number that orders configurations by speed: the operations of each term over the choices' rates on it.

    Only the order matters. Raises ValueError for a rate on a term that there is not.
    """
    work = _over_rates(situation)
    return work[Term.LINEAR] + work[Term.ATTENTION]


def predicted_launches(situation: Situation) -> float:
    """Return a number that orders configurations by what the CPU does to launch them: calls over the choices' rates."""
    return _over_rates(situation)[Term.LAUNCHES]


def _over_rates(situation: Situation) -> dict[Term, float]:
    work = operations(situation)
    for choice in choices_of(situation.configuration):
        for term, rate in checked_rates(choice, situation).items():
            work[term] /= rate
    return work


def checked_rates(choice: Choice, situation: Situation) -> Mapping[Term, float]:
    """Return a choice's rates. Raises ValueError for a rate on a term that there is not: it would be left out without a word."""
    rates = choice.rates(situation)
    for term in rates:
        if term not in [*Term]:
            raise ValueError(f"{choice.knob}={choice.name} has a rate on {term!r}; there are {', '.join(Term)}")
    return rates


def operations(situation: Situation) -> dict[Term, float]:
    """Return the operations of a pass by term, pads and masked pairs included where they are computed; launches are in calls.

    Linear layers: 2 operations per parameter and token processed; attention: 4·T²·heads·head size per layer, halved by
    causality only where a kernel makes use of it (that is in the rate).
    """
    facts = situation.facts
    work = situation.workload.work(layout_of(situation.traits), facts)
    return {
        Term.LINEAR: 2.0 * (facts.active_linear_parameters or facts.linear_parameters) * work.processed * work.passes,
        Term.ATTENTION: 4.0 * work.pairs * attention_width(facts) * _ATTENTION * work.passes,
        Term.LAUNCHES: len(situation.workload.batches()) * work.passes,
    }


def attention_width(facts: ModelFacts) -> int:
    """Return heads · head size over all layers with attention: as counted, or as all layers alike would have it."""
    return facts.attention_width or facts.heads * facts.head_dim * facts.layers


def useful_operations(facts: ModelFacts, workload: Workload) -> float:
    """Return the floating-point operations that one pass over the list needs, pads and masked pairs left out.

    2 per parameter of a linear layer and token; 4·heads·head size per layer and pair of tokens that attend to one another:
    half of all pairs of a sequence under a causal mask. The output layer counts for the positions asked for alone.
    """
    work = workload.work(Layout(), facts)
    pairs = work.useful_pairs / (2 if facts.is_causal else 1)
    active = facts.active_linear_parameters or facts.linear_parameters
    output = min(_output(facts, workload.needs), active)
    body = active - output
    linear = 2.0 * (body * work.tokens + output * work.predictions)
    return work.passes * (linear + 4.0 * pairs * attention_width(facts))
