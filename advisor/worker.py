"""The process that touches the GPU: load, read facts, gate, warm up, time, report.

Started as `python -m advisor.worker` and spoken to in JSON lines: requests on stdin, replies on a channel that is the
original stdout; stdout itself then points to stderr, so that what a library prints is no message. It keeps the loaded
model while only attention or packing changes, and is thrown away by its parent after any failure.
"""

# ruff: noqa: E402
from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import queue
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent (prctl PR_SET_PDEATHSIG); the end of stdin does it elsewhere.

    A parent that died before it was asked is not noticed so: what is left of it is that nobody holds the other end of stdin.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        stdin = select.poll()
        stdin.register(0, 0)
        if any(event & select.POLLHUP for _, event in stdin.poll(0)):
            sys.exit(0)


if __name__ == "__main__":
    _die_with_parent()  # already now: torch takes seconds to import, and a parent that is killed meanwhile must be noticed

import torch

from advisor import ceilings_torch, facts_torch, tokens_torch
from advisor.configuration import Configuration
from advisor.device import Gauges, disturbed
from advisor.errors import AdvisorError
from advisor.knobs import KNOBS, Reading, choice_of, effective_choices, packing_torch, tier_of
from advisor.knobs.attention import tells_sequences_apart
from advisor.measurement import interval_of_median
from advisor.model import ModelFacts
from advisor.numerics import FLOORS, judge
from advisor.trial import Outcome, Quality
from advisor.workloads import Workload, workload_of
from advisor.workloads import forward_torch as forward
from advisor.workloads.forward import LOGITS

#: Texts of failures are cut to this many characters: flex_attention's can have 234,000.
TEXT_LIMIT = 2000

#: A trial this many times slower than the best so far is stopped after EARLY_ROUNDS rounds, unless they are so short (s)
#: that nothing is saved: two rounds of 3 ms came out 3.5 times slower on a busy machine, for the same configuration.
EARLY_STOP_RATIO, EARLY_ROUNDS, EARLY_STOP_S = 1.5, 2, 0.1

#: Energy is read over rounds that take this long together (s): the counter's steps are some 100 ms.
ENERGY_WINDOW_S = 2.0

#: Rounds thrown away for a disturbance before disturbed ones are kept, and say so (nvbench waits and tries again too).
MOST_DISCARDED = 5


class Failed(Exception):
    """A trial that ended: its outcome, its text, and whether another attempt might end otherwise."""

    def __init__(self, outcome: Outcome, text: str, *, transient: bool = False) -> None:
        """Keep outcome and text."""
        super().__init__(text)
        self.outcome, self.transient = outcome, transient


@dataclass(frozen=True)
class Stopping:
    """When timing ends (measurement.md, "Stopping"): rounds and seconds.

    At least `least` rounds, then until the interval's half-width is within `width` of the median, at most `most` rounds or
    `seconds`. Where `least` rounds would outlast `seconds`, at least `least_long` rounds and at most `seconds_long`.
    """

    least: int = 10
    most: int = 30
    seconds: float = 20.0
    least_long: int = 5
    seconds_long: float = 60.0
    width: float = 0.01

    def reached(self, samples: Sequence[float]) -> bool:
        """Whether these samples (seconds a round) are enough."""
        n, spent = len(samples), sum(samples)
        if n == 0:
            return False
        long = median(samples) * self.least > self.seconds
        if n < (self.least_long if long else self.least):
            return long and spent >= self.seconds_long and n >= 3
        low, high = interval_of_median(samples)
        precise = (high - low) / 2 <= self.width * median(samples)
        return precise or n >= self.most or spent >= (self.seconds_long if long else self.seconds)


class Session:
    """One device, at most one loaded model, and what belongs to it."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Hold nothing yet. send: writes one message to the parent."""
        self.send = send
        self.model: Any = None
        self.loaded_as: tuple[Any, ...] | None = None
        self.loaded_attention = ""
        self.tokens_of: tuple[str, list[torch.Tensor]] | None = None

    def stage(self, name: str) -> None:
        """Tell the parent what is going on."""
        self.send({"event": "stage", "stage": name})

    def tokens(self, request: Mapping[str, Any], workload: Workload) -> list[torch.Tensor]:
        """Return the workload's tokens, read or drawn once."""
        key = tokens_torch.key_of(request, workload)
        if self.tokens_of is None or self.tokens_of[0] != key:
            self.tokens_of = (key, tokens_torch.tokens_of(request, workload))
        return self.tokens_of[1]

    def load(self, request: Mapping[str, Any], configuration: Configuration) -> float:
        """Make the model be loaded as the configuration says and return the seconds it took; 0.0 if it is already.

        Attention is switched on the loaded model where the class can (and read back later); else the model is loaded anew.
        """
        self.stage("load")
        began, output = time.perf_counter(), request["workload"]["output"]
        choices = [choice_of(knob, name) for knob, name in configuration.items()]
        names = facts_torch.statements(choices)
        switches = request["facts"]["switches_attention"]
        fixed = tuple(
            (choice.knob, choice.name)
            for choice in choices
            if KNOBS[choice.knob].reload or choice.own_load or (choice.knob == "attention" and not switches)
        )
        key = (request["source"]["digest"], output, fixed)
        if self.loaded_as != key:
            self.unload()
            self.model = facts_torch.load(request["source"], configuration, request["device"], output, names)
            self.loaded_as = key
        elif configuration["attention"] != self.loaded_attention:
            arguments = facts_torch.arguments_of(choices, configuration, names)
            self.model.set_attn_implementation(arguments["attn_implementation"])
        self.loaded_attention = configuration["attention"]
        _synchronize(request["device"])
        return time.perf_counter() - began

    def unload(self) -> None:
        """Free the model."""
        self.model, self.loaded_as = None, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def batching(self, request: Mapping[str, Any], configuration: Configuration) -> packing_torch.Batching:
        """Return what a batch must be made for."""
        facts = ModelFacts.of(request["facts"])
        return packing_torch.Batching(
            facts_torch.pad_token_of(self.model),
            causal=facts.is_causal,
            first_position=facts.position_offset,
            apart=tells_sequences_apart(configuration["attention"]),
            dtype=self.model.dtype,
        )

    def calls(self, request: Mapping[str, Any], workload: Workload, configuration: Configuration) -> list[forward.Call]:
        """Return one call per batch, on the CPU, without what asks for an output."""
        packing, batching = configuration["packing"], self.batching(request, configuration)
        tokens, calls = self.tokens(request, workload), []
        for batch in workload.batches(by_length=packing == "sorted"):
            arguments, places = packing_torch.collate(packing, [tokens[i] for i in batch], batching)
            arguments = facts_torch.accepted(arguments, request["facts"]["accepts"])
            calls.append(forward.Call(arguments, batch, tuple(places)))
        return calls


def asked_of(request: Mapping[str, Any]) -> forward.Asked:
    """Return what a request asks of the model."""
    facts = request["facts"]
    return forward.Asked(request["workload"]["output"], tuple(facts["accepts"]), facts.get("pooling", "last"))


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_reference(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run every sequence of the gate alone, unpadded, and write its values to the file `path`."""
    workload, configuration = workload_of(request["workload"]), Configuration.of(request["configuration"])
    session.load(request, configuration)
    session.stage("reference")
    tokens, device = session.tokens(request, workload), request["device"]
    width = request["facts"]["vocabulary" if workload.output in LOGITS else "hidden_size"]
    offsets, values = forward.distances(workload, width), {}
    squares = count = 0.0
    with torch.inference_mode():
        for number, ids in enumerate(tokens):
            arguments = facts_torch.accepted({"input_ids": ids[None], "use_cache": False}, request["facts"]["accepts"])
            call = forward.Call(arguments, (number,), ((0, 0, len(ids)),))
            for sequence, found in forward.compared_values(session.model, call, offsets, asked_of(request), device):
                values[str(sequence)] = found.cpu()
                squares += float((found - found.mean(-1, keepdim=True)).double().square().sum())
                count += found.numel()
    torch.save({"values": values, "offsets": offsets, "deviation": (squares / count) ** 0.5}, request["path"])
    return {"positions": sum(len(v) for v in values.values()), "texts": tokens_torch.words_of(request)}


def run_gate(
    session: Session, request: Mapping[str, Any], configuration: Configuration, effective: Configuration
) -> Quality:
    """Run the gate's batches as the configuration does; judge as what ran. Raises Failed where an output is not finite."""
    session.stage("gate")
    workload, gate = workload_of(request["gate_workload"]), request["gate"]
    reference = torch.load(gate["path"], weights_only=True)
    tokens, device = session.tokens(request, workload), request["device"]
    baseline = Quality.of(gate["baseline"])
    noise = 2 * baseline.rms * reference["deviation"] if baseline else 0.0
    tally = forward.Tally(reference["offsets"], noise, workload.output)
    text = request["source"]["has_tokenizer"] and workload.output in LOGITS and request["facts"].get("is_causal", True)
    for call in session.calls(request, workload.under(configuration), configuration):
        for number, values in forward.compared_values(
            session.model, call, reference["offsets"], asked_of(request), device
        ):
            tally.add(tokens[number], reference["values"][str(number)].to(device), values)
    try:
        found = tally.quality(text=text, reference=gate["reference"])
    except ValueError as error:
        raise Failed(Outcome.WRONG_OUTPUT, str(error)) from None
    facts = ModelFacts.of(request["facts"])
    return judge(
        found,
        tier_of(effective.items(), facts),
        effective["precision"] if effective["precision"] in FLOORS else configuration["precision"],
        baseline,
        is_baseline=gate["is_baseline"],
        random_weights=request["source"]["weights"] == "random",
        reference=gate["precision"],
    )


def profiled(session: Session, call: forward.Call, request: Mapping[str, Any]) -> list[str]:
    """Run one call under the profiler and return the names of the operators and kernels that were launched."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if request["device"].startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        asked_of(request).of(session.model, call, request["device"])
        _synchronize(request["device"])
    return sorted({event.key[:200] for event in profile.key_averages()})


def picked_by_torch(session: Session, call: forward.Call, request: Mapping[str, Any]) -> list[str]:
    """Return the operators of a step with all of sdpa's kernels allowed, where a choice allowed only some; else none.

    A pinned kernel that is the one torch picks by itself is no configuration of its own.
    """
    allowed = facts_torch.allowed_kernels()
    if len(allowed) == 4:
        return []
    facts_torch.allow_kernels(("flash", "efficient", "cudnn", "math"))
    try:
        return profiled(session, call, request)
    finally:
        facts_torch.allow_kernels(allowed)


def read_effective(
    session: Session, calls: Sequence[forward.Call], request: Mapping[str, Any], configuration: Configuration
) -> Reading:
    """Profile one step and read what ran: attention of all sub-configurations, dtypes, linear classes, kernels."""
    session.stage("proof")
    call, batching = calls[0], session.batching(request, configuration)
    order = [number for c in calls for number in c.sequences]
    lengths = [n for c in calls for n in c.lengths]
    by_length = order != sorted(order) and lengths == sorted(lengths, reverse=True)
    return Reading(
        attention=facts_torch.attention_of(session.model),
        dtypes=facts_torch.dtypes_of(session.model),
        linears=facts_torch.linears_of(session.model),
        operators=profiled(session, call, request),
        inputs=packing_torch.describe(call.arguments, batching, by_length=by_length),
        float32_matmul=torch.get_float32_matmul_precision(),
        weight_bytes=facts_torch.weight_bytes_of(session.model),
        sdp_kernels=facts_torch.allowed_kernels(),
        automatic=picked_by_torch(session, call, request),
        sequences=max(len(c.sequences) for c in calls),
        prequantized=bool(request["facts"].get("prequantized")),
    )


class Round(NamedTuple):
    """One pass over the batches: wall seconds, seconds by CUDA events (0.0 on a CPU), wall seconds of the slowest batch."""

    wall_s: float
    gpu_s: float
    slowest_s: float


def timed_round(
    session: Session, calls: Sequence[forward.Call], device: str, asked: forward.Asked, order: Sequence[int]
) -> Round:
    """Run all batches once.

    Wall clock runs from host tensors ready to result ready, batch by batch, as a caller who uses each result sees it.
    """
    wall_s = gpu_s = slowest_s = 0.0
    on_gpu = device.startswith("cuda")
    for number in order:
        call = calls[number]
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began = time.perf_counter()
        if on_gpu:
            start.record()
        values = asked.of(session.model, call, device)
        if on_gpu:
            end.record()
            torch.cuda.synchronize(device)
        batch_s = time.perf_counter() - began
        wall_s, slowest_s = wall_s + batch_s, max(slowest_s, batch_s)
        if on_gpu:
            gpu_s += start.elapsed_time(end) / 1000
        del values
    return Round(wall_s, gpu_s, slowest_s)


@dataclass
class Rounds:
    """The timed rounds of a trial: seconds by the wall clock, by CUDA events and of the slowest batch; the gauges' readings.

    joules_per_token: by NVML's energy counter over a window of at least ENERGY_WINDOW_S, None where it can't be seen.
    """

    wall_s: list[float]
    gpu_s: list[float]
    slowest_s: list[float]
    states: list[dict[str, Any]]
    discarded: list[str]
    pruned: str = ""
    joules_per_token: float | None = None

    def add(self, found: Round, state: dict[str, Any]) -> None:
        """Add a round."""
        self.wall_s.append(found.wall_s)
        self.gpu_s.append(found.gpu_s)
        self.slowest_s.append(found.slowest_s)
        self.states.append(state)


def time_rounds(session: Session, calls: Sequence[forward.Call], request: Mapping[str, Any]) -> Rounds:
    """Warm up, then time rounds until the stopping rule is met or the trial is clearly slower than the best so far.

    The first rounds are warm-up, and already they can show that: compilation and caches do not make two rounds slow.
    """
    device, asked, timing = request["device"], asked_of(request), request["timing"]
    stopping, incumbent_s = Stopping(**timing["stopping"]), timing["incumbent_s"]
    on_gpu = device.startswith("cuda")
    order = list(range(len(calls)))
    session.stage("warm-up")
    rounds, warm = Rounds([], [], [], [], []), []
    for found in _until_warm(lambda: timed_round(session, calls, device, asked, order)):
        warm.append(found.wall_s)
        if why := _clearly_slower(warm, incumbent_s):
            return Rounds([found.wall_s], [found.gpu_s], [found.slowest_s], [], [], why)
    session.stage("time")
    with Gauges(request["uuid"] if on_gpu else None, own_pids=[os.getpid()]) as gauges:
        while not stopping.reached(rounds.wall_s) and not rounds.pruned:
            random.Random(len(rounds.wall_s)).shuffle(order)
            before = gauges.read(own_pid_expected=on_gpu)
            found = timed_round(session, calls, device, asked, order)
            after = gauges.read(own_pid_expected=on_gpu)
            why = disturbed(before, after)
            if why and len(rounds.discarded) < MOST_DISCARDED:
                rounds.discarded.append(why)
                time.sleep(0.05 * 1.5 ** len(rounds.discarded))
                continue
            rounds.add(found, {**after, "disturbed": why} if why else after)
            session.send({"event": "round", "n": len(rounds.wall_s), "round_s": median(rounds.wall_s)})
            rounds.pruned = _clearly_slower(rounds.wall_s, incumbent_s)
        if on_gpu and not rounds.pruned:
            rounds.joules_per_token = _energy(
                gauges, lambda: timed_round(session, calls, device, asked, order), request
            )
    return rounds


def _energy(gauges: Gauges, run: Callable[[], Round], request: Mapping[str, Any]) -> float | None:
    """Return joules per useful token over whole rounds that take ENERGY_WINDOW_S together; None where NVML can't tell.

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
    tokens = rounds * workload_of(request["workload"]).tokens
    return (after - before) / tokens if isinstance(after, float) and after > before else None


def _clearly_slower(samples: Sequence[float], incumbent_s: float | None) -> str:
    if not incumbent_s or len(samples) != EARLY_ROUNDS:
        return ""
    if min(samples) <= max(EARLY_STOP_RATIO * incumbent_s, EARLY_STOP_S):
        return ""
    return f"{min(samples) / incumbent_s:.1f} times slower than the best so far after {EARLY_ROUNDS} rounds"


def _until_warm(run: Callable[[], Round]) -> Iterator[Round]:
    """Run rounds until two in a row differ by under 2 %: at least 3 and 1 s, or 2 where one takes over 1 s; at most 10."""
    seen: list[float] = []
    while len(seen) < 10:
        found = run()
        seen.append(found.wall_s)
        yield found
        enough = len(seen) >= 2 if min(seen) > 1 else len(seen) >= 3 and sum(seen) >= 1
        if enough and abs(seen[-1] - seen[-2]) < 0.02 * seen[-2]:
            return


def run_trial(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one trial: load, prove, gate, time. Returns what the parent stores; raises Failed or what torch raises."""
    requested = Configuration.of(request["configuration"])
    workload, device, asked = workload_of(request["workload"]).under(requested), request["device"], asked_of(request)
    result: dict[str, Any] = {"load_s": session.load(request, requested), "texts": tokens_torch.words_of(request)}
    with torch.inference_mode():
        session.stage("first call")
        calls = [asked.arguments(call) for call in session.calls(request, workload, requested)]
        _reset_peak(device)
        result["first_call_s"] = timed_round(session, calls[:1], device, asked, [0]).wall_s
        reading = read_effective(session, calls, request, requested)
        effective = Configuration.of(effective_choices(reading, workload_of(request["workload"])))
        result |= {"reading": asdict(reading), "effective": dict(effective), "weight_bytes": reading.weight_bytes}
        result["alias"] = _unproven(requested, effective, reading)
        if result["alias"] and effective.key in request["measured"]:
            return {**result, "outcome": Outcome.OK, "rounds": None}
        if request["gate"]:
            quality = run_gate(session, request, requested, effective)
            result["quality"] = quality.payload
            if quality.failures:
                return {
                    **result,
                    "outcome": Outcome.WRONG_OUTPUT,
                    "reason": "; ".join(quality.failures),
                    "rounds": None,
                }
        _reset_peak(device)
        rounds = time_rounds(session, calls, request)
    outcome = Outcome.PRUNED if rounds.pruned else Outcome.OK
    return {
        **result,
        "outcome": outcome,
        "reason": rounds.pruned,
        "rounds": asdict(rounds),
        "peak_bytes": _peak_bytes(device),
    }


def _unproven(requested: Configuration, effective: Configuration, reading: Reading) -> str:
    """Return "" or what was asked for and did not run, with the evidence (rule E1)."""
    texts = []
    for knob, name in requested.items():
        proof = choice_of(knob, name).proof(reading)
        if proof is None and effective[knob] != name:
            proof = f"{effective[knob]} ran"
        if proof:
            texts.append(f"asked for {knob} {name}, but {proof}")
    return "; ".join(texts)


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Resets VmHWM (proc(5)); where that is forbidden, the peak is the whole process's.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: str) -> int:
    """Peak bytes: of tensors on the GPU, or resident in this process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def failure_of(error: BaseException, stage: str) -> dict[str, Any]:
    """Return the outcome, reason and transience that an exception stands for."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, (Failed, AdvisorError)) else str(error)
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
    facts = facts_torch.read_facts(request["source"], output=request["output"])
    tokens_torch.refuse_unfit(request["source"], request["output"], facts["vocabulary"])
    return facts


_OPERATIONS: Mapping[str, Callable[[Session, Mapping[str, Any]], dict[str, Any]]] = {
    "facts": read_facts,
    "ceilings": lambda session, request: ceilings_torch.measure(request["device"]),
    "reference": write_reference,
    "trial": run_trial,
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
    for request in _requests():
        facts_torch.forget_compiled()
        try:
            result = _OPERATIONS[request["op"]](session, request)
        except Exception as error:  # noqa: BLE001  (whatever a trial raises is its outcome)
            traceback.print_exc()
            result = failure_of(error, stage)
        send({"event": "done", "id": request["id"], "result": result})


if __name__ == "__main__":
    main()
