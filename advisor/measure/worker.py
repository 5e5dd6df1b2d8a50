"""The process that touches the GPU: load, read facts, gate, warm up, time, report.

Started as `python -m advisor.measure.worker` and spoken to in JSON lines: requests on stdin, replies on a channel that is the
original stdout; stdout itself then points to stderr, so that what a library prints is no message. It keeps the loaded
model while only attention or packing changes, and is thrown away by its parent after any failure.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import math
import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
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
from advisor.measure.ready_torch import make_ready, peak_bytes, reset_peak
from advisor.measure.reference_torch import write_reference
from advisor.measure.session_torch import Session
from advisor.measure.timing_torch import NotFinite, Timing
from advisor.networks import facts_torch, switches_torch
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import wrong
from advisor.workloads import workload_of

#: Texts of failures are cut to this many characters: flex_attention's can have 234,000.
TEXT_LIMIT = 2000


class Failed(Exception):
    """A trial that ended: its outcome, its text, and whether another attempt might end otherwise."""

    def __init__(self, outcome: Outcome, text: str, *, transient: bool = False) -> None:
        """Keep outcome and text."""
        super().__init__(text)
        self.outcome, self.transient = outcome, transient


def _wrong(request: Mapping[str, Any], requested: Configuration, effective: Configuration, quality: Quality) -> str:
    """Return what is wrong with figures by today's rules: what is wrong need not be timed, unless it is the default."""
    trial, given, default = (
        Trial(1, requested, effective, Outcome.OK, quality=quality),
        request["gate"]["default"],
        None,
    )
    if given is not None:
        ran = Configuration.of(given["configuration"])
        default = Trial(0, ran, ran, Outcome.OK, quality=Quality.of(given["quality"]))
    return "; ".join(wrong(trial, default, ModelFacts.of(request["facts"])))


def run_trial(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one trial: load, prove, gate, time. Returns what the parent stores; raises Failed or what torch raises.

    What is clearly slower than the best so far is not gated: whether it is right changes nothing.
    """
    requested, device = Configuration.of(request["configuration"]), request["device"]
    with torch.inference_mode():
        ready = make_ready(session, request, requested)
        result: dict[str, Any] = {**ready.found, "texts": tokens_torch.words_of(request)}
        if result["alias"] and ready.effective.key in request["measured"]:
            return {**result, "outcome": Outcome.OK, "rounds": None}
        timing, found = Timing(session, ready.calls, request, ready.reading.kernel_s), ""
        reset_peak(device)
        try:
            slow = timing.slow()
        except NotFinite as error:
            return {**result, "outcome": Outcome.WRONG_OUTPUT, "reason": str(error), "rounds": None}
        if slow is not None:
            stopped = {"outcome": Outcome.PRUNED, "reason": slow.pruned, "rounds": asdict(slow)}
            return {**result, **stopped, "peak_bytes": peak_bytes(device)}
        if request["gate"]:
            session.stage("gate")
            try:
                quality, result["gate_s"] = figures_of(session, request, requested)
                spent_s = sum(result["gate_s"].get(part, 0.0) for part in ("probe_s", "layout_s"))
                quality = replace(quality, gate_s=spent_s, quantised=share_words(ready.reading))
                found, result["quality"] = _wrong(request, requested, ready.effective, quality), quality.payload
            except ValueError as error:
                found = str(error)
            if found and not request["gate"]["is_default"]:
                return {**result, "outcome": Outcome.WRONG_OUTPUT, "reason": found, "rounds": None}
        reset_peak(device)
        try:
            rounds = timing.rounds(look=not found)
        except NotFinite as error:
            return {**result, "outcome": Outcome.WRONG_OUTPUT, "reason": str(error), "rounds": None}
    outcome = Outcome.PRUNED if rounds.pruned else Outcome.WRONG_OUTPUT if found else Outcome.OK
    return {
        **result,
        "outcome": outcome,
        "reason": rounds.pruned or found,
        "rounds": asdict(rounds),
        "peak_bytes": peak_bytes(device),
    }


def failure_of(error: BaseException, stage: str) -> dict[str, Any]:
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
    return {"outcome": outcome, "reason": " ".join(text.split())[:TEXT_LIMIT], "transient": transient}


def read_facts(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Read the model's facts. Raises BadInput where its tokenizer is of another model."""
    workload = workload_of(request["workload"])
    facts = facts_torch.read_facts(request["source"], workload.needs)
    tokens_torch.refuse_unfit(request["source"], workload.needs.sent, facts["vocabulary"])
    return facts


_OPERATIONS: Mapping[str, Callable[[Session, Mapping[str, Any]], dict[str, Any]]] = {
    "facts": read_facts,
    "ceilings": lambda session, request: ceilings_torch.measure(request["device"]),
    "reference": write_reference,
    "layout": layout_of,
    "trial": run_trial,
    "block": lambda session, request: run_block(session, request, failure_of),
}


def _requests() -> Iterator[dict[str, Any]]:
    """Yield requests; a thread waits for them, so that the end of stdin ends this process even within a trial."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def _finite(value: Any) -> Any:
    """Replace non-finite floats by None: they have no place in JSON or the database."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def main() -> None:
    """Answer requests until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.environ["ADVISOR_CHANNEL"] = str(channel.fileno())
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("ADVISOR_THREADS", "1")))
    stage = "start"

    def send(message: dict[str, Any]) -> None:
        nonlocal stage
        stage = message.get("stage", stage)
        channel.write(json.dumps(_finite(message), default=str) + "\n")

    session = Session(send)
    send({"event": "ready", "pid": os.getpid()})
    compiled = 0
    for request in _requests():
        if (
            compiled != switches_torch.compiled_frames()
        ):  # else there is nothing to forget, and the first reset takes 3 s
            switches_torch.forget_compiled()
            compiled = switches_torch.compiled_frames()
        try:
            result = _OPERATIONS[request["op"]](session, request)
        except Exception as error:  # noqa: BLE001  (whatever a trial raises is its outcome)
            traceback.print_exc()
            result = failure_of(error, stage)
        send({"event": "done", "id": request["id"], "result": result})


if __name__ == "__main__":
    main()
