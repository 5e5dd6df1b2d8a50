"""One block of the confirmation: contestants in one process, whose rounds alternate. Loaded by the worker alone.

What drifts, the clocks, the temperature, the neighbours on the machine, then hits all of them alike. Contestants whose weights
are equal share a loaded model; where all models do not fit, each is timed by itself, one after the other.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from advisor.knobs import compiles, traits_of
from advisor.machine import pace
from advisor.machine.device import Gauges
from advisor.measure.messages import BlockAsked, BlockDone, Contested, Failure, RoundEvent
from advisor.measure.peak_torch import Peak, peak_of, reset_peak
from advisor.measure.ready_torch import Ready, make_ready, with_peak
from advisor.measure.rounds_torch import Round, Taken
from advisor.measure.session_torch import Session, runtime_of, weights_key
from advisor.measure.timing_torch import take_round, timed_round
from advisor.networks import switches_torch
from advisor.networks.switches_torch import compiled
from advisor.nouns.configuration import Configuration
from advisor.nouns.trial import Outcome

#: Shorter turns tell nothing of energy (seconds): the counter's steps are some 100 ms.
_LEAST_ENERGY_S = 0.5

#: So many calls warm up a contestant whose rounds are long.
_MOST_WARMING = 2


@dataclass
class Energy:
    """Joules over the turns of a contestant, as NVML's counter saw them.

    The counter, not the power reading: on an H100 that samples a quarter of the time (arXiv 2312.02741). Nothing is subtracted
    for what the card draws when idle. The counter's steps are some 100 ms: turns of a second or more say a few per cent.
    """

    joules: float = 0.0
    rounds: float = 0.0

    def add(self, before: object, after: object, rounds: float) -> None:
        """Add a turn's, where the counter could be read. rounds: how many it had, or which share of one."""
        if isinstance(before, float) and isinstance(after, float) and after > before:
            self.joules += after - before
            self.rounds += rounds

    @property
    def per_round(self) -> float | None:
        """Joules a round; None where nothing was seen."""
        return self.joules / self.rounds if self.rounds else None


@dataclass
class Contestant:
    """Who is timed in a block. spent_s: the seconds that went into it; failure: how it ended, where it ended early.

    turns: in how many its round is run; parts: the calls of each of them, where it is more than one; pieces: what was timed of
    them by now.
    """

    is_default: bool
    configuration: Configuration
    session: Session
    energy: Energy = field(default_factory=Energy)
    ready: Ready | None = None
    rounds: Taken = field(default_factory=Taken)
    spent_s: float = 0.0
    failure: Failure | None = None
    peak: Peak | None = None
    turns: int = 1
    parts: list[list[int]] = field(default_factory=list)
    pieces: list[Round] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether its round was run in parts, all of them."""
        return self.turns > 1 and bool(self.rounds.wall_s)

    @property
    def told(self) -> Contested:
        """What came of it."""
        if self.failure is not None:
            return Contested(came=self.failure, spent_s=self.spent_s)
        if self.ready is None or not self.rounds.wall_s:
            cut = Failure(outcome=Outcome.CUT, reason="its block was broken off")
            return Contested(came=cut, spent_s=self.spent_s)
        done = self.ready.told(Outcome.OK, rounds=self.rounds.told)
        done = done if self.peak is None else with_peak(done, self.peak)
        return Contested(came=done, spent_s=self.spent_s)


FailureOf = Callable[[BaseException, str], Failure]


def run_block(session: Session, request: BlockAsked, failure_of: FailureOf) -> BlockDone:
    """Time the contestants of a block.

    A turn has one round or more, or a part of one where its contestant's is run in parts. Who fails is out and the others go on,
    unless it was the default or the device itself that failed. The peak of memory is read where there is one alone, energy over
    the turns of each.
    """
    block = _Block(session, request, failure_of)
    compiling = sum(compiles(each) for each in request.contestants)
    with runtime_of(request).mode(), switches_torch.graphs_for(compiling) if compiling else nullcontext():
        if request.in_turn:
            for contestant in block.shuffled():
                block.run([contestant])
                contestant.session.unload()
        else:
            block.run(block.contestants)
    return BlockDone(results=tuple(contestant.told for contestant in block.contestants))


class _Block:
    """A block being run."""

    def __init__(self, session: Session, request: BlockAsked, failure_of: FailureOf) -> None:
        self.request, self.failure_of, self.device, self.uuid = request, failure_of, session.device, session.uuid
        self.turns = request.turns
        pace.OWN.hold_to(request.best_lap_s)
        self.random = random.Random(request.seed)
        sessions: dict[Any, Session] = {}
        self.contestants = []
        parts = request.parts or (1,) * len(request.contestants)
        for each, turns in zip(request.contestants, parts, strict=True):
            fresh = Session(session.send, session.device, session.uuid)
            own = sessions.setdefault(weights_key(request, each, session.device), fresh)
            self.contestants.append(Contestant(each == request.configuration, each, own, turns=turns))
        self.stopped = False

    def shuffled(self) -> list[Contestant]:
        """Return who is still in, in random order."""
        left = [contestant for contestant in self.contestants if contestant.failure is None]
        self.random.shuffle(left)
        return left

    def run(self, contestants: list[Contestant]) -> None:
        """Make these ready, let each run a round that does not count, then take turns until they say enough."""
        on_gpu = self.device.startswith("cuda")
        self._pair(contestants)
        for contestant in contestants:
            self._attempt(contestant, self._make_ready)
        if len(contestants) == 1:  # before it warms up: what torch has to allocate anew is in no turn
            reset_peak(self.device)
        with Gauges(self.uuid if on_gpu else None, own_pids=[os.getpid()]) as gauges:
            for contestant in self._left(contestants):
                self._attempt(contestant, self._warm_up)
            while self._goes_on(self._left(contestants)):
                for contestant in [one for one in self.shuffled() if one in contestants and not one.is_over]:
                    turn = self._turn if contestant.turns == 1 else self._part
                    self._attempt(contestant, partial(turn, gauges=gauges))
        for contestant in self._left(contestants):
            if len(contestants) == 1:
                contestant.peak = peak_of(self.device, self.uuid)
            contestant.rounds.joules = contestant.energy.per_round

    def _pair(self, contestants: list[Contestant]) -> None:
        """Have turns be compared one by one where the default and others take theirs beside one another here."""
        beside = self.request.turns.paired and len(contestants) > 1 and any(one.is_default for one in contestants)
        self.turns = replace(self.request.turns, paired=beside)
        for contestant in contestants:
            contestant.rounds.paired = beside

    def _goes_on(self, contestants: list[Contestant]) -> bool:
        """Whether another turn of each may say more, beside the default's; by itself where the default is in another process.

        Where somebody's round is run in parts everybody has as many turns as that has: nobody goes on alone, for what drifts
        would be in that one's figures.
        """
        if any(one.turns > 1 for one in contestants):
            return any(not one.is_over and len(one.rounds.wall_s) < self.turns.least for one in contestants)
        default = next((one.rounds.wall_s for one in contestants if one.is_default), None)
        rivals = [one.rounds.wall_s for one in contestants if not one.is_default] or [default or []]
        return bool(contestants) and any(not self.turns.reached(default or own, own) for own in rivals)

    def _make_ready(self, contestant: Contestant) -> None:
        kernels = traits_of(contestant.configuration).replays  # no operator shows then what runs
        before = compiled()  # of all contestants by now
        own, keep = contestant.session, not self.request.in_turn
        contestant.ready = make_ready(own, self.request, contestant.configuration, kernels=kernels, keep=keep)
        contestant.rounds.at_first = compiled().more_than(before)

    def _left(self, contestants: list[Contestant]) -> list[Contestant]:
        return [] if self.stopped else [contestant for contestant in contestants if contestant.failure is None]

    def _attempt(self, contestant: Contestant, step: Callable[[Contestant], object]) -> None:
        """Take a step with a contestant; what it raises is the contestant's end."""
        if self.stopped:
            return
        began = time.perf_counter()
        try:
            step(contestant)
        except Exception as error:  # noqa: BLE001  (whatever a contestant raises is its outcome)
            traceback.print_exc()
            contestant.failure = self.failure_of(error, contestant.session.last_stage)
            self.stopped = contestant.is_default or isinstance(error, torch.AcceleratorError)
        contestant.spent_s += time.perf_counter() - began

    def _warm_up(self, contestant: Contestant) -> None:
        """Run a round that does not count; where a round is long and nothing is compiled, the largest calls of it alone."""
        assert contestant.ready is not None
        session, calls = contestant.session, contestant.ready.calls
        session.load(self.request, contestant.configuration)
        session.stage("warm-up")
        order = list(range(len(calls)))
        if contestant.turns > 1 and not compiles(contestant.configuration):
            order = sorted(order, key=lambda number: -sum(calls[number].lengths))[:_MOST_WARMING]
        before = compiled()
        timed_round(session, calls, self.device, runtime_of(self.request), order)
        contestant.rounds.compiled = compiled().more_than(before)

    def _turn(self, contestant: Contestant, gauges: Gauges) -> None:
        """Run rounds of a contestant for as long as a turn takes and keep their medians."""
        assert contestant.ready is not None
        turn, order = Taken(), list(range(len(contestant.ready.calls)))
        before, discarded = gauges.read().get("energy_j"), len(contestant.rounds.discarded)
        while not self.turns.has_lasted(turn.at_pace, turn.wall_s):
            self.random.shuffle(order)
            turn.add(*self._taken(contestant, gauges, order))
        is_whole = len(contestant.rounds.discarded) == discarded  # what was thrown away took energy too
        if is_whole and sum(turn.wall_s) >= _LEAST_ENERGY_S:
            contestant.energy.add(before, turn.states[-1].get("energy_j"), len(turn.wall_s))
        state = turn.states[-1]
        if self.turns.waits:
            turn.keep_at_pace(1)
            state |= {"cpu_lap_s": max(each["cpu_lap_s"] for each in turn.states)}  # the slowest of those that count
        contestant.rounds.add(Round(median(turn.wall_s), median(turn.gpu_s), median(turn.slowest_s)), state)
        self._tell(contestant)

    def _part(self, contestant: Contestant, gauges: Gauges) -> None:
        """Run the next part of a contestant's calls; after the last one they are a round."""
        assert contestant.ready is not None
        if not contestant.parts:
            order = list(range(len(contestant.ready.calls)))
            self.random.shuffle(order)
            contestant.parts = [order[first :: contestant.turns] for first in range(contestant.turns)]
        part, before = contestant.parts[len(contestant.pieces)], gauges.read().get("energy_j")
        discarded = len(contestant.rounds.discarded)
        one, state = self._taken(contestant, gauges, part)
        if len(contestant.rounds.discarded) == discarded:
            contestant.energy.add(before, state.get("energy_j"), len(part) / len(contestant.ready.calls))
        contestant.pieces.append(one)
        if len(contestant.pieces) == contestant.turns:
            wall_s, gpu_s, slowest_s, _ = zip(*contestant.pieces, strict=True)
            contestant.rounds.add(Round(sum(wall_s), sum(gpu_s), max(slowest_s)), state)
            self._tell(contestant)

    def _taken(self, contestant: Contestant, gauges: Gauges, order: Sequence[int]) -> tuple[Round, dict[str, Any]]:
        """Time these calls of a contestant once, undisturbed if that can be."""
        assert contestant.ready is not None
        session, calls, runtime = contestant.session, contestant.ready.calls, runtime_of(self.request)
        session.load(self.request, contestant.configuration)
        session.stage("time")
        run = partial(timed_round, session, calls, self.device, runtime, order)
        return take_round(gauges, self.device, run, contestant.rounds, laps=self.turns.waits)

    def _tell(self, contestant: Contestant) -> None:
        wall_s = contestant.rounds.wall_s
        contestant.session.send(RoundEvent(n=len(wall_s), round_s=median(wall_s)))
