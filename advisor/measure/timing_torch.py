"""Timing with tensors: warm up, time rounds until they say enough, read the gauges beside them. Loaded by the worker alone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from advisor.machine import pace
from advisor.machine.device import Gauges, disturbed
from advisor.measure.messages import RoundEvent, TrialAsked
from advisor.measure.rounds_torch import LAP, Round, Settled, Taken
from advisor.measure.session_torch import Session, runtime_of
from advisor.measure.stopping import LAUNCH_BOUND_ROUNDS
from advisor.networks.switches_torch import compiled
from advisor.nouns.measurement import LAUNCH_BOUND_SHARE
from advisor.workloads import Call, Runtime

#: A trial this many times slower than the best so far is stopped after EARLY_ROUNDS rounds, and as many as take so long together
#: (s): the first ones of new shapes, on a CPU that others use, came out three times as slow as the same configuration is.
EARLY_STOP_RATIO, EARLY_ROUNDS, EARLY_STOP_S = 1.5, 2, 0.5

#: After so many rounds that do not agree a trial counts as warm.
MOST_WARMING = 10

#: Energy is read over rounds that take this long together (s): the counter's steps are some 100 ms.
ENERGY_WINDOW_S = 2.0

#: Rounds thrown away for a disturbance before disturbed ones are kept, and say so (nvbench waits and tries again too).
MOST_DISCARDED = 5


class NotFinite(Exception):
    """A timed batch's output holds NaN or infinity."""


def timed_round(
    session: Session,
    calls: Sequence[Call],
    device: str,
    runtime: Runtime,
    order: Sequence[int],
    look: bool = False,
) -> Round:
    """Run all batches once. look: at every output, outside the time, and raise NotFinite where one is not finite.

    Wall clock runs from host tensors ready to result ready, batch by batch, as a caller who uses each result sees it.
    """
    wall_s = gpu_s = slowest_s = first_s = 0.0
    on_gpu = device.startswith("cuda")
    for number in order:
        call = calls[number]
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began = time.perf_counter()
        if on_gpu:
            start.record()
        values = runtime.run(session.model, call, device)
        if on_gpu:
            end.record()
            torch.cuda.synchronize(device)
        batch_s = time.perf_counter() - began
        wall_s, slowest_s = wall_s + batch_s, max(slowest_s, batch_s)
        first_s = batch_s if number == 0 else first_s
        if on_gpu:
            gpu_s += start.elapsed_time(end) / 1000
        if look and not torch.isfinite(values).all():
            raise NotFinite(f"the output of batch {number + 1} of {len(calls)} holds NaN or infinity")
        del values
    return Round(wall_s, gpu_s, slowest_s, first_s)


class Timing:
    """The rounds of a search trial: a first look whether it is worth the gate's time, then as many as say enough.

    Rounds before two in a row agree are warm-up and thrown away; already they can show that a trial is slow, but for those in
    which torch compiles (see `Settled`): caches do not make two rounds slow.
    """

    def __init__(self, session: Session, calls: Sequence[Call], request: TrialAsked, kernel_s: float = 0.0) -> None:
        """Run nothing yet. kernel_s: what the kernels of the first call take on a GPU together, 0.0 where that is not known."""
        self._session, self._calls, self._timing = session, calls, request.timing
        self._device, self._runtime = session.device, runtime_of(request)
        self._stopping, self._incumbent_s = request.timing.stopping, request.timing.incumbent_s
        self._rounds, self._is_warm, self._all_s = Taken(at_first=compiled()), False, list[float]()
        self._settled = Settled(self._rounds.at_first)
        self._kernel_s = kernel_s
        pace.OWN.hold_to(request.timing.best_lap_s)

    @property
    def has_run(self) -> bool:
        """Whether all batches have been run at least once."""
        return bool(self._all_s)

    def slow(self) -> Taken | None:
        """Time the first rounds where there is something to beat; return them where they are clearly slower than it.

        Raises NotFinite where an output is not finite.
        """
        if not self._incumbent_s:
            return None
        self._session.stage("time")
        with self._gauges() as gauges:
            while not _has_shown(self._settled.rounds_s, self._incumbent_s) and len(self._all_s) < MOST_WARMING:
                self._take(gauges, look=True)
        return self._rounds if self._rounds.pruned else None

    def rounds(self, *, look: bool = True) -> Taken:
        """Time rounds until they settle, at least one, and on until the stopping rule is met or the trial is clearly slower.

        A single one is neither warm-up nor run again for a disturbance. look: at every batch's output once, and raise NotFinite
        where one is not finite.
        """
        self._session.stage("time")
        with self._gauges() as gauges:
            if self._stopping.is_once:
                found = self._run(list(range(len(self._calls))), look=look)
                self._rounds.add(found, gauges.read(own_pid_expected=self._device.startswith("cuda")))
                return self._rounds
            while True:
                self._take(gauges, look=look)
                if self._rounds.pruned:
                    return self._rounds
                if self._is_warm and self._is_enough():
                    break
            if self._waits and (thrown := self._rounds.keep_at_pace(LAUNCH_BOUND_ROUNDS // 2)):
                self._rounds.discarded.append(f"the CPU was not at its pace in {thrown} rounds")
                self._rounds.look_at_busy(self._kernel_s)
            if self._device.startswith("cuda") and self._timing.energy:
                order = list(range(len(self._calls)))
                self._rounds.joules = energy_of(gauges, lambda: self._run(order))
        return self._rounds

    @property
    def _waits(self) -> bool:
        """Whether the GPU was seen to wait for its launches."""
        return self._rounds.busy is not None and self._rounds.busy < LAUNCH_BOUND_SHARE

    def _is_enough(self) -> bool:
        rounds = self._rounds
        if self._waits:
            return self._stopping.longer().reached_at_pace(rounds.at_pace, rounds.wall_s, self._incumbent_s)
        return self._stopping.reached(rounds.wall_s)

    def _gauges(self) -> Gauges:
        on_gpu = self._device.startswith("cuda")
        return Gauges(self._session.uuid if on_gpu else None, own_pids=[os.getpid()])

    def _run(self, order: Sequence[int], *, look: bool = False) -> Round:
        return timed_round(self._session, self._calls, self._device, self._runtime, order, look)

    def _take(self, gauges: Gauges, *, look: bool) -> None:
        """Time one more round. The gate looks at a sample: that no output is NaN is seen of every batch, in the first round."""
        order, is_first = list(range(len(self._calls))), not self._all_s
        random.Random(len(self._all_s)).shuffle(order)
        laps = self._waits or (is_first and self._kernel_s > 0)  # of the first nobody knows yet
        before = compiled()
        found, state = take_round(
            gauges, self._device, lambda: self._run(order, look=look and is_first), self._rounds, laps=laps
        )
        since = compiled().more_than(before)
        self._rounds.compiled = self._rounds.compiled.and_(since)
        self._rounds.add(found, state)
        self._all_s.append(found.wall_s)
        self._settled.add(found.wall_s, since)
        self._rounds.look_at_busy(self._kernel_s)
        self._rounds.pruned = _clearly_slower(self._settled.rounds_s, self._incumbent_s)
        if not self._is_warm and (is_warm := _is_warm(self._all_s)):
            self._is_warm = is_warm
            is_last = bool(self._rounds.pruned)  # what ends with this round has a figure all the same
            self._rounds.keep(2 if is_last or len(self._all_s) < MOST_WARMING else 0)
        if not self._rounds.pruned:
            self._session.send(RoundEvent(n=len(self._all_s), round_s=median(self._all_s[-2:])))


def take_round(
    gauges: Gauges, device: str, run: Callable[[], Round], rounds: Taken, *, laps: bool
) -> tuple[Round, dict[str, Any]]:
    """Return a round that was not disturbed, and the gauges' reading after it; what was disturbed is run again.

    After MOST_DISCARDED of them in a trial, disturbed ones are kept, and say so. rounds: keeps why some were thrown away. laps:
    whether the CPU's pace is looked at, before and after: two milliseconds, for which a GPU idles.
    """
    on_gpu = device.startswith("cuda")
    while True:
        before = gauges.read(own_pid_expected=on_gpu)
        lap_s = pace.OWN.lap_s() if laps else 0.0
        found = run()
        beside = {LAP: max(lap_s, pace.OWN.lap_s())} if laps else {}
        after = gauges.read(own_pid_expected=on_gpu) | beside
        why = disturbed(before, after)
        if not why or len(rounds.discarded) >= MOST_DISCARDED:
            return found, {**after, "disturbed": why} if why else after
        rounds.discarded.append(why)
        time.sleep(0.05 * 1.5 ** len(rounds.discarded))


def energy_of(gauges: Gauges, run: Callable[[], Round]) -> float | None:
    """Return joules a round over whole rounds that take ENERGY_WINDOW_S together; None where NVML can't tell.

    The counter, not the power reading: on an H100 that samples a quarter of the time (arXiv 2312.02741). Nothing is
    subtracted for what the card draws when idle.
    """
    began, before, rounds = time.perf_counter(), gauges.read().get("energy_j"), 0
    if not isinstance(before, float):
        return None
    while time.perf_counter() - began < ENERGY_WINDOW_S or rounds == 0:
        run()
        rounds += 1
    after = gauges.read().get("energy_j")
    return (after - before) / rounds if isinstance(after, float) and after > before else None


def _has_shown(samples: Sequence[float], incumbent_s: float) -> bool:
    """Whether these rounds say if a trial is clearly slower than the best so far."""
    if len(samples) < EARLY_ROUNDS:
        return False
    return sum(samples) >= EARLY_STOP_S or min(samples) <= EARLY_STOP_RATIO * incumbent_s


def _clearly_slower(samples: Sequence[float], incumbent_s: float | None) -> str:
    if not incumbent_s or not _has_shown(samples, incumbent_s) or _has_shown(samples[:-1], incumbent_s):
        return ""
    if min(samples) <= EARLY_STOP_RATIO * incumbent_s:
        return ""
    return f"{min(samples) / incumbent_s:.1f} times slower than the best so far after {len(samples)} rounds"


def _is_warm(samples: Sequence[float]) -> bool:
    """Whether the last two rounds differ by under 2 %, after half a second at least; or there were MOST_WARMING."""
    if len(samples) >= MOST_WARMING:
        return True
    return len(samples) >= 2 and sum(samples) >= 0.5 and abs(samples[-1] - samples[-2]) < 0.02 * samples[-2]
