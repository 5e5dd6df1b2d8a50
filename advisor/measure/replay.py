"""Replay: a runner that answers from a recorded landscape what a worker would, and spends no second on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from advisor.measure.landscape import Landscape
from advisor.measure.messages import (
    Answer,
    BlockAsked,
    BlockDone,
    Contested,
    FactsAsked,
    FactsRead,
    Failure,
    ReferenceAsked,
    Request,
    Rounds,
    TrialAsked,
    TrialDone,
    Unjudged,
)
from advisor.nouns.metrics import CPU_LAP, GPU_ROUND, ROUND
from advisor.nouns.trial import Outcome, Trial

#: A row's samples by the name under which a worker reports them among its rounds.
_ROUNDS = {ROUND: "wall_s", GPU_ROUND: "gpu_s"}


class ReplayRunner:
    """A runner that answers from a landscape what a worker would, and keeps count of the device seconds it stands for.

    The third implementation of the seam (design.md, "The seam is Runner"): `tune` itself runs on a recording.
    """

    def __init__(self, landscape: Landscape, seed: int = 0) -> None:
        """Replay this landscape. seed: of the samples drawn."""
        self.landscape, self.seed = landscape, seed
        self.ran: list[Trial] = []
        self.spent_s = 0.0
        self.interrupted = ""
        self._last: Trial | None = None

    def run(self, request: Request, timeout_s: float) -> Answer:  # noqa: ARG002  (the seam's)
        """Answer a request; a configuration that was not recorded is a failure that says so."""
        match request:
            case FactsAsked():
                return FactsRead(facts=self.landscape.facts)
            case ReferenceAsked():
                return Unjudged(why="a recording has its own figures")
            case BlockAsked():
                return one_by_one(self.run, request)
            case TrialAsked() if request.configuration in self.landscape.by_configuration:
                return self._replayed(request)
        return Failure(outcome=Outcome.LOAD_FAILED, reason="the landscape has no record of it")

    def _replayed(self, request: TrialAsked) -> TrialDone | Failure:
        configuration = request.configuration
        # A configuration that is run again, as the confirmation does, is drawn again.
        again = sum(trial.requested == configuration for trial in self.ran)
        trial = self.landscape.drawn(configuration, f"{self.seed} {again}")
        self.spent_s += self.landscape.seconds(configuration, self._last)
        if trial.load_s is not None:
            trial = replace(trial, load_s=self.landscape.load_s(configuration, self._last))
        self.ran.append(trial)
        self._last = trial
        return _answer(trial, request)

    def restart(self) -> None:
        """Have the next trial load its weights."""
        self._last = None

    def close(self) -> None:
        """No device is held."""


def one_by_one(run: Callable[[Request, float], Answer], request: BlockAsked) -> BlockDone:
    """Answer a block by a trial of each contestant: where nothing drifts, alternating changes nothing."""
    found = []
    for each in request.contestants:
        came = run(TrialAsked.of(request, configuration=each), math.inf)
        assert isinstance(came, (TrialDone, Failure))
        found.append(Contested(came=came))
    return BlockDone(results=tuple(found))


def _answer(trial: Trial, request: TrialAsked) -> TrialDone | Failure:
    """Return what the worker returned for this trial, or would have where what ran is measured already."""
    alias = trial.reason if trial.effective not in (None, trial.requested) and not trial.outcome.is_failure else ""
    if trial.outcome.is_failure and trial.outcome is not Outcome.WRONG_OUTPUT:
        return Failure(outcome=trial.outcome, reason=trial.reason)
    done = TrialDone(
        outcome=trial.outcome,
        reason="" if alias else trial.reason,
        alias=alias,
        effective=trial.effective,
        load_s=trial.load_s,
        first_call_s=trial.first_call_s,
        weight_bytes=trial.weight_bytes,
    )
    if alias and trial.ran.key in request.measured:
        return done
    return done.replaced(
        peak_bytes=trial.peak_bytes,
        quality=trial.quality if request.gate else None,
        rounds=_rounds(trial) if trial.measurements else None,
    )


def _rounds(trial: Trial) -> Rounds:
    samples = {name: m.samples for metric, name in _ROUNDS.items() if (m := trial.measurement(metric))}
    figures = {m.metric: m.samples for m in trial.measurements if m.metric not in _ROUNDS}
    silent = (0.0,) * len(samples["wall_s"])
    gpu_s, laps_s = samples.get("gpu_s", silent), figures.get(CPU_LAP, ())
    return Rounds(wall_s=samples["wall_s"], gpu_s=gpu_s, busy=trial.busy, laps_s=laps_s, figures=figures)
