"""One search trial: what the worker is asked, once more where what came may be transient, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.clock import BudgetSpent
from advisor.configuration import Configuration
from advisor.gate import figures_found, known_figures, layout_request
from advisor.judge import wrong
from advisor.knobs import Reason, Verdict
from advisor.leftovers import owner
from advisor.measurement import Measurement
from advisor.method import METHOD
from advisor.metrics import GPU_ROUND, ROUND, Gauge
from advisor.suggest import keep_answer
from advisor.trial import FP32, Outcome, Quality, Trial
from advisor.tuning import Tuning
from advisor.workloads import Workload, kind_of


def tried(trials: Sequence[Trial], configuration: Configuration) -> list[Trial]:
    """Return the search trials of a configuration, as it was asked for."""
    return [trial for trial in trials if trial.phase == "search" and trial.requested == configuration]


def search_trial(tuning: Tuning, configuration: Configuration) -> Trial:
    """Run one search trial, or take it over from another study of the same work on the same machine."""
    if tuning.clock.is_over and configuration != tuning.space.baseline:
        raise BudgetSpent
    known = tuning.store.reusable(tuning.study, configuration)
    number = start(tuning, configuration, "search", None)
    if known is not None and configuration != tuning.space.baseline and _counts_here(tuning, known[1]):
        row, trial = known
        trial = replace(trial, number=number, wall_s=0.0)
        tuning.store.finish_trial(tuning.study, trial, reused_from_id=row)
        keep_answer(tuning.store, tuning.study, space=tuning.space)
        tuning.listen({"event": "trial", "trial": trial, "best": best_of(tuning)})
        return trial
    return run(tuning, configuration, number)


def _counts_here(tuning: Tuning, known: Trial) -> bool:
    """Whether a trial of another study says what would be found now: today's method, this device, the same reference.

    What was imported has no device, for it was run elsewhere. The reference's words name the texts that were run.
    """
    if known.quality is None or known.reading.get("method") != METHOD:
        return False
    default = tuning.default.quality if tuning.default is not None else None
    held_to = tuning.reference or (default.reference if default is not None else "")
    return known.device_uuid == tuning.job.machine.uuid and held_to in ("", known.quality.reference)


def start(tuning: Tuning, configuration: Configuration, phase: str, block: int | None, *, runs: int = 1) -> int:
    """Write down that a trial begins, and return its number. runs: how many are run by one request."""
    return tuning.store.start_trial(
        tuning.study, configuration, phase=phase, block=block, owner=owner(), lease_s=tuning.lease_s(runs)
    )


def run(tuning: Tuning, configuration: Configuration, number: int) -> Trial:
    """Run a search trial in the worker and store it.

    Raises BudgetSpent where the budget ended it: its configuration has failed at nothing, and is tried again another time.
    """
    began = tuning.clock.now()
    words = {"event": "start", "number": number, "configuration": configuration, "phase": "search", "block": None}

    request: dict[str, Any] = {}

    def first() -> dict[str, Any]:
        tuning.listen(words)
        request.update(_search_request(tuning, configuration))
        return tuning.runner.run(request, tuning.timeout_s)

    try:
        result, attempts = attempt(tuning, first, lambda: tuning.runner.run(request, tuning.timeout_s), [number])
    except BudgetSpent:
        finish_cut(tuning, configuration, number, "search", None, "the budget ended", tuning.clock.now() - began)
        raise
    tuning.ran = True
    trial = told(tuning, configuration, number, "search", None, result)
    trial = replace(trial, attempts=attempts, wall_s=tuning.clock.now() - began)
    if result.get("alias"):
        _refuse_alias(tuning, configuration, trial, str(result["alias"]))
    tuning.store.finish_trial(tuning.study, trial)
    keep_answer(tuning.store, tuning.study, space=tuning.space)
    tuning.listen({"event": "trial", "trial": trial, "best": best_of(tuning)})
    return trial


def attempt(
    tuning: Tuning, first: Callable[[], dict[str, Any]], again: Callable[[], dict[str, Any]], numbers: Sequence[int]
) -> tuple[dict[str, Any], int]:
    """Ask the worker, and once more in a fresh process where what came of it may be transient; return it and the attempts.

    numbers: of the trials that are run: whatever ends them they are released, but by BudgetSpent, which is told.
    """
    try:
        result = first()
        if not _is_transient(result) or tuning.is_over:
            return result, 1
        tuning.runner.restart()
        for number in numbers:
            tuning.store.renew(tuning.study, number, tuning.lease_s(len(numbers)))
        return again(), 2
    except BudgetSpent:
        raise
    except BaseException:
        for number in numbers:
            tuning.store.release(tuning.study, number)
        raise


def _is_transient(result: Mapping[str, Any]) -> bool:
    """Whether another attempt may end otherwise, for one of a block's contestants at least."""
    return bool(result.get("transient") or any(each.get("transient") for each in result.get("results", ())))


def finish_cut(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None,
                reason: str, wall_s: float | None) -> None:  # fmt: skip
    """Store that a trial was cut, which says nothing of its configuration."""
    trial = Trial(number, configuration, None, Outcome.CUT, reason, phase, block, wall_s=wall_s,
                  device_uuid=tuning.job.machine.uuid)  # fmt: skip
    tuning.store.finish_trial(tuning.study, trial)
    tuning.listen({"event": "trial", "trial": trial, "best": best_of(tuning)})


def request_of(tuning: Tuning, configuration: Configuration) -> dict[str, Any]:
    """Return what every request about a configuration has."""
    job = tuning.job
    return {
        "source": job.source.request,
        "facts": tuning.facts.payload,
        "workload": job.workload.payload,
        "sample": job.workload.sample(tuning.facts.windows),
        "texts": job.texts,
        "configuration": dict(configuration),
    }


def _search_request(tuning: Tuning, configuration: Configuration) -> dict[str, Any]:
    """Return the request of a search trial. Energy takes seconds: where it is not the aim, the blocks read it."""
    trials, request = tuning.trials, request_of(tuning, configuration)
    is_needed = configuration == tuning.space.baseline or configuration in tuning.job.also
    incumbent_s = None if is_needed else _incumbent_s(tuning)
    has_energy = tuning.job.objective.aim.gauge is Gauge.ENERGY
    return {
        **request,
        "op": "trial",
        "gate": _gate(tuning, configuration, trials, request),
        "measured": [trial.ran.key for trial in trials if trial.phase == "search" and trial.outcome is Outcome.OK],
        "timing": {"stopping": {}, "incumbent_s": incumbent_s, "energy": has_energy},
    }


def _incumbent_s(tuning: Tuning) -> float | None:
    """Seconds a round of the best so far, where a slower one can be stopped early: not where memory or energy is the aim."""
    best = best_of(tuning)
    if best is None or tuning.job.budget.exhaustive or not tuning.job.objective.aim.is_of_time:
        return None
    return best.value(ROUND)


def _gate(
    tuning: Tuning, configuration: Configuration, trials: Sequence[Trial], request: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the worker's gate needs; the reference is written when it is first asked for."""
    if not tuning.reference:
        tuning.reference = _write_reference(tuning, request)
    default, given = tuning.default, None
    is_default = configuration == tuning.space.baseline
    if (
        default is not None
        and default.quality is not None
        and not is_default
        and not wrong(default, None, tuning.facts)
    ):
        given = {"configuration": dict(default.ran), "quality": default.quality.payload}
    has_reference = tuning.reference.startswith(FP32)
    gate: dict[str, Any] = {
        "path": str(tuning.reference_path) if has_reference else None,
        "reference": tuning.reference,
        "default": given,
        "is_default": is_default,
        "known": known_figures(trials, configuration),
    }
    if (plain := layout_request(configuration, tuning.space.baseline, gate["known"])) is not None:
        asked = {**request, "op": "layout", "configuration": dict(plain), "gate": gate}
        result = tuning.runner.run(asked, tuning.timeout_s)
        lacking = {"layout": None, "layout_words": f"not looked at in fp32: {result.get('outcome')}"}
        gate["known"] |= lacking if "outcome" in result else figures_found(result, configuration)
    return gate


def _write_reference(tuning: Tuning, request: Mapping[str, Any]) -> str:
    """Have the reference written, in fp32 and one sequence at a time; return in words what it is, or why there is none."""
    tuning.listen({"event": "stage", "stage": "reference in fp32"})
    asked = {
        **request,
        "op": "reference",
        "path": str(tuning.reference_path),
        "configuration": dict(tuning.space.baseline),
    }
    result = tuning.runner.run(asked, tuning.timeout_s)
    if result.get("transient") and not tuning.is_over:
        result = tuning.runner.run(asked, tuning.timeout_s)
    if "words" in result:
        return f"{result['words']}, {result['positions']} positions, {result['texts']}"
    return f"there is no reference in fp32: {result.get('unjudged') or result.get('reason')}"


def told(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None,
          result: Mapping[str, Any]) -> Trial:  # fmt: skip
    """Turn a worker's result into a trial."""
    effective = Configuration.of(result["effective"]) if result.get("effective") else None
    rounds = result.get("rounds")
    measurements = measurements_of(tuning.job.workload, rounds, phase) if rounds else ()
    reused = None
    if rounds is None and effective is not None and Outcome(result["outcome"]) is Outcome.OK:
        source = next(t for t in tuning.trials if t.ran == effective and t.outcome is Outcome.OK and t.measurements)
        measurements, reused = source.measurements, source.number
    return Trial(
        number=number, requested=configuration, effective=effective, outcome=Outcome(result["outcome"]),
        reason=result.get("reason") or result.get("alias") or "", phase=phase, block=block,
        load_s=result.get("load_s"), first_call_s=result.get("first_call_s"),
        measure_s=sum(rounds["wall_s"]) if rounds else None, peak_bytes=result.get("peak_bytes"),
        weight_bytes=result.get("weight_bytes"), quality=Quality.of(result.get("quality")),
        reading={**(result.get("reading") or {}), "gate_s": result.get("gate_s") or {}, "method": METHOD}, reused_from=reused,
        measurements=measurements, device_uuid=tuning.job.machine.uuid,
    )  # fmt: skip


def measurements_of(workload: Workload, rounds: Mapping[str, Any], phase: str) -> tuple[Measurement, ...]:
    """Return what is stored of a worker's rounds: the seconds of a round, and what the kind of work makes of them.

    rounds["figures"]: samples that are known already, by metric: a recording has them (`advisor.landscape`).
    """
    state = {"after_each_round": rounds["states"], "discarded": rounds["discarded"]}
    found, known = [Measurement(ROUND, "s", tuple(rounds["wall_s"]), phase, state)], rounds.get("figures") or {}
    for metric in kind_of(workload).measured(workload):
        if samples := tuple(known.get(metric.metric) or metric.samples(workload, rounds)):
            found.append(Measurement(metric.metric, metric.unit, samples, phase))
    if any(rounds["gpu_s"]):
        found.append(Measurement(GPU_ROUND, "s", tuple(rounds["gpu_s"]), phase))
    return tuple(found)


def _refuse_alias(tuning: Tuning, configuration: Configuration, trial: Trial, text: str) -> None:
    subject = " ".join(f"{k}={v}" for k, v in configuration.items() if trial.ran.get(k) != v) or str(configuration)
    if all(reason.subject != subject for reason in tuning.aliases):
        tuning.aliases.append(Reason("E1", Verdict.ALIAS, f"{text}; the figures count for what ran", subject=subject))
        tuning.store.save_refusals(tuning.study, [*tuning.space.refusals, *tuning.aliases])


def best_of(tuning: Tuning) -> Trial | None:
    """Return the best search trial that may be recommended, None where there is none yet."""
    found = [trial for trial in tuning.trials if tuning.usable(trial)]
    return max(found, key=lambda trial: trial.score(tuning.job.objective.aim), default=None)
