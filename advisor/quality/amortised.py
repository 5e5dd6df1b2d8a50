"""What a job of so many calls gets of a speed: what it takes to begin is spread over its calls.

To begin is to load the weights, to make the first call, and to compile what other shapes of calls need. A process's start and its
imports are the same for all, and are left out. A call is a batch as the model's default is given them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.knobs import weights_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import LATER, METRICS, ROUND
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Trial, default_of
from advisor.workloads import Workload


@dataclass(frozen=True)
class Amortised:
    """A job of so many calls: passes over the workload's list, and what each configuration takes to begin (seconds)."""

    passes: float
    begin_s: Mapping[Configuration, float]

    @classmethod
    def of(
        cls, objective: Objective, workload: Workload, facts: ModelFacts, trials: Sequence[Trial]
    ) -> Amortised | None:
        """Return an objective's job, as a study's trials tell it; None where it has none, or the default was not measured."""
        default = default_of(trials)
        if objective.job_calls is None or default is None:
            return None
        return cls(objective.job_calls / calls_of(workload, default.requested), beginnings_s(trials, facts))

    def spread(self, trial: Trial) -> Trial:
        """Return a trial with its rates as the job gets them: each round takes its share of the beginning too."""
        rounds, begin_s = trial.measurement(ROUND), self.begin_s.get(trial.ran)
        if rounds is None or begin_s is None:
            return trial
        share_s = begin_s / self.passes
        slower = [round_s / (round_s + share_s) for round_s in rounds.samples]
        middle = rounds.median / (rounds.median + share_s)

        def spread(measured: Measurement) -> Measurement:
            metric = METRICS.get(measured.metric)
            if metric is None or not metric.is_of_time or metric.less_is_better:
                return measured
            factors = slower if len(slower) == len(measured.samples) else [middle] * len(measured.samples)
            samples = tuple(rate * factor for rate, factor in zip(measured.samples, factors, strict=True))
            return replace(measured, samples=samples)

        return replace(trial, measurements=tuple(spread(measured) for measured in trial.measurements))

    def compared(self, comparison: Comparison, trials: Iterable[Trial]) -> Comparison | None:
        """Return what a comparison of speeds says of the job; None where it is not known what its sides take.

        trials: of the study; a round is as long as the baseline's search trial says.
        """
        begins = {configuration.key: begin_s for configuration, begin_s in self.begin_s.items()}
        keys = (comparison.candidate, comparison.baseline)
        ran = (t for t in trials if t.phase == "search" and t.ran.key == comparison.baseline)
        round_s = next((value for trial in ran if (value := trial.value(ROUND))), None)
        if round_s is None or any(key not in begins for key in keys):
            return None
        mine_s, theirs_s = (begins[key] / self.passes for key in keys)
        ratios = tuple((round_s + theirs_s) / (round_s / ratio + mine_s) for ratio in comparison.block_ratios)
        return replace(comparison, block_ratios=ratios)


def over_calls(trials: Sequence[Trial], job: Amortised | None) -> tuple[Trial, ...]:
    """Return a study's trials as a job gets them; as they are where there is none."""
    return tuple(trials) if job is None else tuple(job.spread(trial) for trial in trials)


def calls_of(workload: Workload, default: Configuration) -> int:
    """Return how many calls a pass over the workload's list has where the model runs as its default does."""
    return len(workload.under(default).batches())


def beginnings_s(trials: Iterable[Trial], facts: ModelFacts) -> dict[Configuration, float]:
    """Return what each configuration that ran takes to begin, in seconds: the most that any of its search trials shows.

    Equal weights are loaded once for several trials: each that has them would load them itself.
    """
    ran = [t for t in trials if t.phase == "search" and t.measurements]
    loads: dict[object, float] = {}
    for trial in ran:
        weights = weights_of(trial.ran, switches_attention=facts.switches_attention)
        loads[weights] = max(loads.get(weights, 0.0), trial.load_s or 0.0)
    found: dict[Configuration, float] = {}
    for trial in ran:
        load_s = loads[weights_of(trial.ran, switches_attention=facts.switches_attention)]
        begin_s = load_s + (trial.first_call_s or 0.0) + (trial.value(LATER) or 0.0)
        found[trial.ran] = max(found.get(trial.ran, 0.0), begin_s)
    return found


def pays_from(begins_s: tuple[float, float], rounds_s: tuple[float, float], calls: int) -> int | None:
    """Return from how many calls on a configuration has made up for what it takes to begin; None where it never does.

    begins_s, rounds_s: its own and the default's seconds; calls: of a pass over the list.
    """
    more_s, saved_s = begins_s[0] - begins_s[1], (rounds_s[1] - rounds_s[0]) / calls
    if saved_s <= 0:
        return None
    return max(1, math.ceil(more_s / saved_s))
