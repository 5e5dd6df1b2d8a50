"""One attempt of a trial: what the worker is asked, once more where what came may be transient, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from advisor.knobs import Reason, Verdict
from advisor.measure.gate import figures_found, known_figures, layout_request
from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import GPU_BUSY, GPU_ROUND, ROUND, Gauge
from advisor.nouns.trial import FP32, Outcome, Quality, Trial
from advisor.quality.judge import wrong
from advisor.quality.method import METHOD
from advisor.study.clock import BudgetSpent, ShareSpent
from advisor.study.tuner import Found, Tuner
from advisor.study.tuning import BUDGET_ENDED, Snapshot
from advisor.workloads import Workload, kind_of


def search_trial(tuner: Tuner, seen: Snapshot, configuration: Configuration, number: int) -> Found:
    """Run one search trial, or take it over from another study of the same work on the same machine."""
    known = tuner.store.reusable(tuner.study, configuration)
    if known is not None and configuration != seen.space.baseline and _counts_here(tuner, seen, known[1]):
        row, trial = known
        return Found(replace(trial, number=number, wall_s=0.0), row)
    began = tuner.runner.clock.now()
    request: dict[str, Any] = {}

    def first() -> dict[str, Any]:
        words = {"event": "start", "number": number, "configuration": configuration, "phase": "search", "block": None}
        tuner.listen(words)
        request.update(_search_request(tuner, seen, configuration))
        return tuner.runner.run(request, tuner.timeout_s)

    try:
        result, attempts = attempt(tuner, first, lambda: tuner.runner.run(request, tuner.timeout_s))
    except BudgetSpent as spent:
        tuner.share_spent = isinstance(spent, ShareSpent)
        tuner.is_spent = not tuner.share_spent
        wall_s = tuner.runner.clock.now() - began
        return Found(cut(seen, configuration, number, "search", None, BUDGET_ENDED, wall_s))
    tuner.ran = True
    trial = told(seen, configuration, number, "search", None, result)
    trial = replace(trial, attempts=attempts, wall_s=tuner.runner.clock.now() - began)
    return Found(trial, alias=_alias(trial, str(result["alias"])) if result.get("alias") else None)


def _counts_here(tuner: Tuner, seen: Snapshot, known: Trial) -> bool:
    """Whether a trial of another study says what would be found now: today's method, this device, the same reference.

    What was imported has no device, for it was run elsewhere. The reference's words name the texts that were run.
    """
    if known.quality is None or known.reading.get("method") != METHOD:
        return False
    default = seen.default.quality if seen.default is not None else None
    held_to = tuner.reference or (default.reference if default is not None else "")
    return known.device_uuid == seen.job.machine.uuid and held_to in ("", known.quality.reference)


def attempt(
    tuner: Tuner, first: Callable[[], dict[str, Any]], again: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], int]:
    """Ask the worker, and once more in a fresh process where what came of it may be transient; return it and the attempts."""
    result = first()
    if not _is_transient(result) or tuner.runner.clock.is_over:
        return result, 1
    tuner.runner.restart()
    return again(), 2


def _is_transient(result: Mapping[str, Any]) -> bool:
    """Whether another attempt may end otherwise, for one of a block's contestants at least."""
    return bool(result.get("transient") or any(each.get("transient") for each in result.get("results", ())))


def cut(
    seen: Snapshot,
    configuration: Configuration,
    number: int,
    phase: str,
    block: int | None,
    reason: str,
    wall_s: float | None = None,
) -> Trial:
    """Return a trial that was cut, which says nothing of its configuration."""
    uuid = seen.job.machine.uuid
    return Trial(number, configuration, None, Outcome.CUT, reason, phase, block, wall_s=wall_s, device_uuid=uuid)


def request_of(seen: Snapshot, configuration: Configuration) -> dict[str, Any]:
    """Return what every request about a configuration has."""
    job = seen.job
    return {
        "source": job.source.request,
        "facts": seen.facts.payload,
        "workload": job.workload.payload,
        "sample": job.workload.sample(seen.facts.windows),
        "texts": job.texts,
        "configuration": dict(configuration),
    }


def _search_request(tuner: Tuner, seen: Snapshot, configuration: Configuration) -> dict[str, Any]:
    """Return the request of a search trial. Energy takes seconds: where it is not the aim, the blocks read it."""
    request = request_of(seen, configuration)
    # What is forced, by a rule that is ignored, is to be judged: whether it is slow is no answer to that.
    is_needed = (
        configuration == seen.space.baseline or configuration in seen.job.also or seen.job.objective.ignored_rules
    )
    incumbent_s = None if is_needed else _incumbent_s(seen)
    has_energy = seen.job.objective.aim.gauge is Gauge.ENERGY
    return {
        **request,
        "op": "trial",
        "gate": _gate(tuner, seen, configuration, request),
        "measured": [trial.ran.key for trial in seen.searched if trial.outcome is Outcome.OK],
        "timing": {"stopping": {}, "incumbent_s": incumbent_s, "energy": has_energy},
    }


def _incumbent_s(seen: Snapshot) -> float | None:
    """Seconds a round of the best so far, where a slower one can be stopped early: not where memory or energy is the aim."""
    best = seen.best
    if best is None or seen.job.budget.exhaustive or not seen.job.objective.aim.is_of_time:
        return None
    return best.value(ROUND)


def _gate(tuner: Tuner, seen: Snapshot, configuration: Configuration, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the worker's gate needs; the reference is written when it is first asked for."""
    if not tuner.reference:
        tuner.reference = _write_reference(tuner, seen, request)
    default, given = seen.default, None
    is_default = configuration == seen.space.baseline
    if default is not None and default.quality is not None and not is_default and not wrong(default, None, seen.facts):
        given = {"configuration": dict(default.ran), "quality": default.quality.payload}
    has_reference = tuner.reference.startswith(FP32)
    gate: dict[str, Any] = {
        "path": str(tuner.reference_path) if has_reference else None,
        "reference": tuner.reference,
        "default": given,
        "is_default": is_default,
        "known": known_figures(seen.trials, configuration),
    }
    if (plain := layout_request(configuration, seen.space.baseline, gate["known"])) is not None:
        asked = {**request, "op": "layout", "configuration": dict(plain), "gate": gate}
        result = tuner.runner.run(asked, tuner.timeout_s)
        lacking = {"layout": None, "layout_words": f"not looked at in fp32: {result.get('outcome')}"}
        gate["known"] |= lacking if "outcome" in result else figures_found(result, configuration)
    return gate


def _write_reference(tuner: Tuner, seen: Snapshot, request: Mapping[str, Any]) -> str:
    """Have the reference written, in fp32 and one sequence at a time; return in words what it is, or why there is none."""
    tuner.listen({"event": "stage", "stage": "reference in fp32"})
    asked = {
        **request,
        "op": "reference",
        "path": str(tuner.reference_path),
        "configuration": dict(seen.space.baseline),
    }
    result = tuner.runner.run(asked, tuner.timeout_s)
    if result.get("transient") and not tuner.runner.clock.is_over:
        result = tuner.runner.run(asked, tuner.timeout_s)
    if "words" in result:
        return f"{result['words']}, {result['positions']} positions, {result['texts']}"
    return f"there is no reference in fp32: {result.get('unjudged') or result.get('reason')}"


def told(
    seen: Snapshot, configuration: Configuration, number: int, phase: str, block: int | None, result: Mapping[str, Any]
) -> Trial:
    """Turn a worker's result into a trial."""
    effective = Configuration.of(result["effective"]) if result.get("effective") else None
    rounds = result.get("rounds")
    measurements = measurements_of(seen.job.workload, rounds, phase) if rounds else ()
    quality, peak_bytes, reused = Quality.of(result.get("quality")), result.get("peak_bytes"), None
    if rounds is None and effective is not None and Outcome(result["outcome"]) is Outcome.OK:
        source = next(t for t in seen.trials if t.ran == effective and t.outcome is Outcome.OK and t.measurements)
        measurements, peak_bytes, reused = source.measurements, source.peak_bytes, source.number
        quality = quality or (replace(source.quality, gate_s=0.0) if source.quality is not None else None)
    return Trial(
        number=number,
        requested=configuration,
        effective=effective,
        outcome=Outcome(result["outcome"]),
        reason=result.get("reason") or result.get("alias") or "",
        phase=phase,
        block=block,
        load_s=result.get("load_s"),
        first_call_s=result.get("first_call_s"),
        measure_s=sum(rounds["wall_s"]) if rounds else None,
        peak_bytes=peak_bytes,
        weight_bytes=result.get("weight_bytes"),
        quality=quality,
        reading={
            **(result.get("reading") or {}),
            "gate_s": result.get("gate_s") or {},
            "method": METHOD,
        },
        reused_from=reused,
        measurements=measurements,
        device_uuid=seen.job.machine.uuid,
    )


def measurements_of(workload: Workload, rounds: Mapping[str, Any], phase: str) -> tuple[Measurement, ...]:
    """Return what is stored of a worker's rounds: the seconds of a round, and what the kind of work makes of them.

    rounds["figures"]: samples that are known already, by metric: a recording has them (`advisor.measure.landscape`).
    """
    state = {"after_each_round": rounds["states"], "discarded": rounds["discarded"]}
    found, known = [Measurement(ROUND, "s", tuple(rounds["wall_s"]), phase, state)], rounds.get("figures") or {}
    for metric in kind_of(workload).measured(workload):
        if samples := tuple(known.get(metric.metric) or metric.samples(workload, rounds)):
            found.append(Measurement(metric.metric, metric.unit, samples, phase))
    if any(rounds["gpu_s"]):
        found.append(Measurement(GPU_ROUND, "s", tuple(rounds["gpu_s"]), phase))
    if rounds.get("busy"):
        found.append(Measurement(GPU_BUSY, "share", (rounds["busy"],), phase))
    return tuple(found)


def _alias(trial: Trial, text: str) -> Reason:
    """Return what is refused from now on, for something else ran."""
    asked = trial.requested
    choices = asked.over(stated([asked, trial.ran]))
    subject = " ".join(f"{k}={v}" for k, v in choices if trial.ran.get(k) != v) or str(asked)
    return Reason("E1", Verdict.ALIAS, f"{text}; the figures count for what ran", subject=subject)
