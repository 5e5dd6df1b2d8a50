"""A configuration made ready to be timed: loaded, called once, and read back. Loaded by the worker alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from advisor.knobs import Reading, effective_choices
from advisor.measure.messages import FIRST_CALL, Subject, TrialDone
from advisor.measure.peak_torch import Peak
from advisor.measure.proof_torch import read_effective, unproven
from advisor.measure.session_torch import Session, runtime_of
from advisor.measure.timing_torch import timed_round
from advisor.nouns.configuration import Configuration
from advisor.nouns.trial import Outcome
from advisor.workloads import Call


@dataclass
class Ready:
    """What can be timed: the calls of a configuration, and what really runs.

    alias: "" or what was asked for and did not run. load_s, first_call_s: seconds. found_load_s: of the load
    before, where the weights were found loaded.
    """

    configuration: Configuration
    calls: Sequence[Call]
    reading: Reading
    effective: Configuration
    alias: str
    load_s: float
    first_call_s: float
    found_load_s: float | None = None

    def told(self, outcome: Outcome, **more: Any) -> TrialDone:
        """Return the answer that says so. more: of its fields."""
        return TrialDone(
            outcome=outcome,
            alias=self.alias,
            effective=self.effective,
            load_s=self.load_s,
            first_call_s=self.first_call_s,
            found_load_s=self.found_load_s,
            weight_bytes=self.reading.weight_bytes,
            reading=asdict(self.reading),
            **more,
        )


def make_ready(
    session: Session, subject: Subject, requested: Configuration, *, kernels: bool = True, keep: bool = True
) -> Ready:
    """Load the model as a configuration says, call it once and read what ran. Call it in its work's mode (`Runtime.mode`).

    kernels: whether the names of a GPU's kernels are read too, which takes seconds the first time in a process; the operators
    that launch them are always. keep: whether what running it changes is to be given back; not where it is unloaded then.
    """
    whole = subject.workload
    load_s = session.load(subject, requested)
    found_load_s = session.found_load_s
    runtime = runtime_of(subject)
    if keep:
        session.keep(runtime)
    session.stage(FIRST_CALL)
    calls = runtime.timed(session.calls(subject, whole.under(requested), requested, session.tokens(subject)))
    first_call_s = timed_round(session, calls[:1], session.device, runtime, [0]).wall_s
    began = time.perf_counter()
    reading = read_effective(session, calls, subject, requested, kernels=kernels)
    reading = replace(reading, proof_s=time.perf_counter() - began)
    effective = Configuration.of(effective_choices(reading, whole))
    alias = unproven(requested, effective, reading)
    return Ready(requested, calls, reading, effective, alias, load_s, first_call_s, found_load_s)


def with_peak(done: TrialDone, peak: Peak) -> TrialDone:
    """Return what came of a trial with its peak of memory, and what that is made of beside the evidence."""
    return done.replaced(peak_bytes=peak.total, reading={**done.reading, "peak": dict(peak.told)})
