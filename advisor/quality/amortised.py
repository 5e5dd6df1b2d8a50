"""What a job of so many calls gets of a speed: what it takes to begin is spread over its calls.

To begin is to load the weights, to make the first call, and to compile what other shapes of calls need. A process's start and its
imports are the same for all, and are left out. A call is a batch as the model's default is given them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from advisor.knobs import weights_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Comparison, Measurement
from advisor.nouns.metrics import LATER, LOADED, METRICS, ROUND
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Outcome, Trial, default_of
from advisor.terminal import span
from advisor.workloads import Workload

#: What took less than this share of the study's longest load was no load: the weights were there, and were changed a little.
_LEAST_LOAD = 0.05

#: How a trial ended that says something of loading: what failed may not have got so far.
_LOADED = (Outcome.OK, Outcome.WRONG_OUTPUT, Outcome.PRUNED)


@dataclass(frozen=True)
class Beginning:
    """What a configuration takes to begin, in seconds: to load its weights, its first call, and what is compiled after it.

    loads: those that were seen and load_s is the median of, nothing where none was; is_own: whether of these very weights.
    """

    load_s: float
    first_call_s: float
    later_s: float
    loads: tuple[float, ...] = ()
    is_own: bool = True

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.load_s + self.first_call_s + self.later_s

    @property
    def words(self) -> str:
        """What it is made of, and how sure its load is: one that was seen once says little of the next."""
        parts = [f"loading {span(self.load_s)} ({self._seen})" if self.loads else "no load was seen"]
        parts += [f"first call {span(self.first_call_s)}"]
        parts += [f"compiling after it {span(self.later_s)}"] if self.later_s else []
        return ", ".join(parts)

    @property
    def _seen(self) -> str:
        own = "" if self.is_own else " of other weights, for these were not seen to be loaded"
        if len(self.loads) == 1:
            return f"of one load{own}: the next may differ"
        return f"the median of {len(self.loads)} loads{own}, {span(self.loads[0])} to {span(self.loads[-1])}"


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

    def lasts_s(self, trial: Trial) -> float | None:
        """Return the seconds of the whole job as a trial ran, beginning included; None where that is not known."""
        round_s, begin_s = trial.value(ROUND), self.begin_s.get(trial.ran)
        return None if round_s is None or begin_s is None else begin_s + self.passes * round_s

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
    """Return what each configuration that ran takes to begin, in seconds."""
    return {configuration: found.seconds for configuration, found in beginnings(trials, facts).items()}


def beginnings(trials: Iterable[Trial], facts: ModelFacts) -> dict[Configuration, Beginning]:
    """Return what each configuration that ran takes to begin: of its search trials the one that shows the most.

    All that have the same weights take the same time to load them, whichever trial did: the median of the loads that were seen,
    of blocks too; where these weights were never seen to be loaded, of all loads of the study.
    """
    known = list(trials)
    loads = _loads(known, facts)
    every = tuple(sorted(load_s for each in loads.values() for load_s in each))
    found: dict[Configuration, Beginning] = {}
    for trial in known:
        if trial.phase != "search" or not trial.measurements:
            continue
        own = loads.get(_weights(trial, facts), ())
        seen = own or every
        load_s = median(seen) if seen else trial.load_s or 0.0
        begun = Beginning(load_s, trial.first_call_s or 0.0, trial.value(LATER) or 0.0, seen, bool(own))
        before = found.get(trial.ran)
        found[trial.ran] = begun if before is None or begun.seconds > before.seconds else before
    return found


def _weights(trial: Trial, facts: ModelFacts) -> object:
    return weights_of(trial.ran, switches_attention=facts.switches_attention)


def _loads(trials: Sequence[Trial], facts: ModelFacts) -> dict[object, tuple[float, ...]]:
    """Return the seconds of those trials that loaded their weights, by weights: the others found them loaded.

    Who found them says since when its process has them (LOADED): the load may have been another study's, or the reference's.
    """
    found: dict[object, list[float]] = {}
    ended = [trial for trial in trials if trial.outcome in _LOADED]
    for trial in ended:
        if trial.load_s and trial.measurement(LOADED) is None:
            found.setdefault(_weights(trial, facts), []).append(trial.load_s)
    for trial in ended:
        before_s, known = trial.value(LOADED), found.setdefault(_weights(trial, facts), [])
        if before_s and before_s not in known:  # whose load it was may be among these trials
            known.append(before_s)
    least_s = _LEAST_LOAD * max((load_s for each in found.values() for load_s in each), default=0.0)
    real = {weights: tuple(sorted(s for s in each if s >= least_s)) for weights, each in found.items()}
    return {weights: each for weights, each in real.items() if each}


def pays_from(begins_s: tuple[float, float], rounds_s: tuple[float, float], calls: int) -> int | None:
    """Return from how many calls on a configuration has made up for what it takes to begin; None where it never does.

    begins_s, rounds_s: its own and the default's seconds; calls: of a pass over the list.
    """
    more_s, saved_s = begins_s[0] - begins_s[1], (rounds_s[1] - rounds_s[0]) / calls
    if saved_s <= 0:
        return None
    return max(1, math.ceil(more_s / saved_s))
