"""The process that touches the GPU: load, read facts, gate, warm up, time, report.

Started as `python -m advisor.measure.worker` and spoken to in JSON lines: requests on stdin, replies on a channel that is the
original stdout; stdout itself then points to stderr, so that what a library prints is no message. It keeps the loaded
model while only attention or packing changes, and is thrown away by its parent after any failure.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from advisor.machine.leftovers import die_with_parent


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent; the end of stdin does it elsewhere.

    A parent that died before it was asked is not noticed so: what is left of it is that nobody holds the other end of stdin.
    """
    if sys.platform == "linux":
        die_with_parent()
        stdin = select.poll()
        stdin.register(0, 0)
        if any(event & select.POLLHUP for _, event in stdin.poll(0)):
            sys.exit(0)


if __name__ == "__main__":
    _die_with_parent()  # already now: torch takes seconds to import, and a parent that is killed meanwhile must be noticed

import torch

from advisor.errors import AdvisorError
from advisor.knobs import share_words
from advisor.machine import ceilings_torch
from advisor.measure import tokens_torch
from advisor.measure.block_torch import run_block
from advisor.measure.figures_torch import figures_of, layout_of
from advisor.measure.lines import encode
from advisor.measure.messages import (
    Answer,
    BlockAsked,
    Ceilings,
    CeilingsAsked,
    Done,
    Event,
    FactsAsked,
    FactsRead,
    Failure,
    Gate,
    LayoutAsked,
    Numbered,
    Ready,
    ReferenceAsked,
    TrialAsked,
    TrialDone,
    decode_numbered,
    decode_request,
)
from advisor.measure.peak_torch import Peak, note_others, peak_of, reset_peak
from advisor.measure.ready_torch import make_ready, with_peak
from advisor.measure.reference_torch import write_reference
from advisor.measure.session_torch import Session, runtime_of
from advisor.measure.timing_torch import NotFinite, Timing
from advisor.networks import facts_torch, switches_torch
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import wrong

#: Texts of failures are cut to this many characters: flex_attention's can have 234,000.
TEXT_LIMIT = 2000


class Failed(Exception):
    """A trial that ended: its outcome, its text, and whether another attempt might end otherwise."""

    def __init__(self, outcome: Outcome, text: str, *, transient: bool = False) -> None:
        """Keep outcome and text."""
        super().__init__(text)
        self.outcome, self.transient = outcome, transient


def run_trial(session: Session, request: TrialAsked) -> TrialDone:
    """Run one trial: load, prove, gate, time. Raises Failed or what torch raises.

    What is clearly slower than the best so far is not gated: whether it is right changes nothing.
    """
    runtime = runtime_of(request)
    with ExitStack() as stack:
        stack.enter_context(runtime.mode())
        stack.callback(session.give_back, runtime)
        ready = make_ready(session, request, request.configuration)
        done = ready.told(Outcome.OK, texts=tokens_torch.words_of(request))
        if ready.alias and ready.effective.key in request.measured:
            return done
        timing = Timing(session, ready.calls, request, ready.reading.kernel_s)
        reset_peak(session.device)
        try:
            slow = timing.slow()
        except NotFinite as error:
            return done.replaced(outcome=Outcome.WRONG_OUTPUT, reason=str(error))
        if slow is not None:
            stopped = done.replaced(outcome=Outcome.PRUNED, reason=slow.pruned, rounds=slow.told)
            return with_peak(stopped, peak_of(session.device, session.uuid))
        # All batches have run by now, and what the gate does in fp32 is no part of it.
        seen = peak_of(session.device, session.uuid) if timing.has_run else None
        if request.gate is not None:
            done = _gated(session, request, request.gate, done, share_words(ready.reading))
            if done.outcome is Outcome.WRONG_OUTPUT and not request.gate.is_default:
                return done
        return _timed(session, timing, done, seen)


def _gated(session: Session, request: TrialAsked, gate: Gate, done: TrialDone, quantised: str) -> TrialDone:
    """Return what came of a trial with the figures of its output, wrong where they are by today's rules.

    What is wrong need not be timed, unless it is the default.
    """
    session.stage("gate")
    try:
        quality, gate_s = figures_of(session, request, gate, request.configuration)
    except ValueError as error:
        return done.replaced(outcome=Outcome.WRONG_OUTPUT, reason=str(error))
    spent_s = sum(gate_s.get(part, 0.0) for part in ("probe_s", "layout_s"))
    quality = replace(quality, gate_s=spent_s, quantised=quantised)
    trial, default = Trial(1, request.configuration, done.effective, Outcome.OK, quality=quality), None
    if gate.default is not None:
        ran = gate.default.configuration
        default = Trial(0, ran, ran, Outcome.OK, quality=gate.default.quality)
    found = "; ".join(wrong(trial, default, request.facts))
    outcome = Outcome.WRONG_OUTPUT if found else Outcome.OK
    return done.replaced(outcome=outcome, reason=found, quality=quality, gate_s=gate_s)


def _timed(session: Session, timing: Timing, done: TrialDone, seen: Peak | None) -> TrialDone:
    """Return what came of a trial with its rounds. At what is known to be wrong nobody looks again.

    seen: the peak, where rounds were run already: torch is then not made to allocate anew, for rounds may be warm.
    """
    if seen is None:
        reset_peak(session.device)
    try:
        rounds = timing.rounds(look=done.outcome is Outcome.OK)
    except NotFinite as error:
        return done.replaced(outcome=Outcome.WRONG_OUTPUT, reason=str(error))
    peak = seen or peak_of(session.device, session.uuid)
    if rounds.pruned:
        done = done.replaced(outcome=Outcome.PRUNED, reason=rounds.pruned)
    return with_peak(done.replaced(rounds=rounds.told), peak)


def failure_of(error: BaseException, stage: str) -> Failure:
    """Return the outcome, reason and transience that an exception stands for."""
    text = str(error) if isinstance(error, (Failed, AdvisorError)) else f"{type(error).__name__}: {error}"
    name = type(error).__module__
    if isinstance(error, Failed):
        outcome, transient = error.outcome, error.transient
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        outcome, transient = Outcome.OUT_OF_MEMORY, True
    elif "CUDA error" in text or type(error).__name__ == "AcceleratorError":
        outcome, transient = Outcome.RUNTIME_ERROR, True
    elif stage == "load":
        outcome, transient = Outcome.LOAD_FAILED, False
    elif name.startswith(("torch._dynamo", "torch._inductor")):
        outcome, transient = Outcome.COMPILE_FAILED, False
    else:
        outcome, transient = Outcome.RUNTIME_ERROR, False
    return Failure(outcome=outcome, reason=" ".join(text.split())[:TEXT_LIMIT], transient=transient)


def read_facts(session: Session, request: FactsAsked) -> FactsRead:
    """Read the model's facts. Raises BadInput where its tokenizer is of another model."""
    needs = request.workload.needs
    facts = ModelFacts.of(facts_torch.read_facts(request.source, needs))
    tokens_torch.refuse_unfit(request.source, needs.sent, facts.vocabulary)
    return FactsRead(facts=facts)


_OPERATIONS: Mapping[type, Callable[[Session, Any], Answer]] = {
    FactsAsked: read_facts,
    CeilingsAsked: lambda session, _: Ceilings(reached=ceilings_torch.measure(session.device)),
    ReferenceAsked: write_reference,
    LayoutAsked: layout_of,
    TrialAsked: run_trial,
    BlockAsked: lambda session, request: run_block(session, request, failure_of),
}


def answered(session: Session, line: bytes | str) -> Answer:
    """Return the answer to a request's line: whatever that raises is its outcome."""
    try:
        request = decode_request(line)
        return _OPERATIONS[type(request)](session, request)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return failure_of(error, session.last_stage)


def _requests() -> Iterator[Numbered]:
    """Yield requests; a thread waits for them, so that the end of stdin ends this process even within a trial."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield decode_numbered(lines.get())


def main() -> None:
    """Answer requests until stdin ends."""
    channel = os.fdopen(os.dup(1), "wb")
    os.environ["ADVISOR_CHANNEL"] = str(channel.fileno())
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("ADVISOR_THREADS", "1")))

    def send(event: Event) -> None:
        channel.write(encode(event) + b"\n")
        channel.flush()

    send(Ready(pid=os.getpid()))
    session: Session | None = None
    for numbered in _requests():
        if session is None:  # the device is the same for as long as this process lives
            note_others(numbered.uuid)
            session = Session(send, numbered.device, numbered.uuid)
        if switches_torch.compiled_frames():  # else there is nothing to forget, and the first reset takes 3 s
            switches_torch.forget_compiled()
        send(Done(id=numbered.id, result=answered(session, numbered.request)))


if __name__ == "__main__":
    main()
