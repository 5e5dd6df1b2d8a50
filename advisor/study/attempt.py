"""One attempt of a trial: what the worker is asked, once more where what came may be transient, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from advisor.knobs import Reason, Verdict, unproven_in
from advisor.measure.gate import figures_found, known_figures, layout_request
from advisor.measure.messages import (
    Answer,
    BlockDone,
    Failure,
    Figure,
    Gate,
    LayoutAsked,
    LayoutLooked,
    Ran,
    ReferenceAsked,
    ReferenceWritten,
    Rounds,
    Subject,
    Timing,
    TrialAsked,
    TrialDone,
    Unjudged,
)
from advisor.measure.runner import Runner
from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import COMPILED, CPU_LAP, GPU_BUSY, GPU_ROUND, LOADED, PAIRED, ROUND, Gauge
from advisor.nouns.trial import FP32, Outcome, Trial
from advisor.quality.judge import wrong
from advisor.quality.method import METHOD
from advisor.study.clock import Bounded, BudgetSpent, ShareSpent
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
    words = {"event": "start", "number": number, "configuration": configuration, "phase": "search", "block": None}
    tuner.listen(words)
    try:
        request = _search_request(tuner, seen, configuration)
        answer, attempts = attempt(tuner.runner, lambda: tuner.runner.run(request, tuner.timeout_s))
    except BudgetSpent as spent:
        tuner.share_spent = isinstance(spent, ShareSpent)
        tuner.is_spent = not tuner.share_spent
        wall_s = tuner.runner.clock.now() - began
        return Found(cut(seen, configuration, number, "search", None, BUDGET_ENDED, wall_s))
    tuner.ran = True
    assert isinstance(answer, (TrialDone, Failure))
    trial = told(seen, configuration, number, "search", None, answer)
    trial = replace(trial, attempts=attempts, wall_s=tuner.runner.clock.now() - began)
    other = answer.alias if isinstance(answer, TrialDone) else ""
    return Found(trial, alias=_alias(trial, other) if other else None)


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
    runner: Runner, first: Callable[[], Answer], again: Callable[[], Answer] | None = None
) -> tuple[Answer, int]:
    """Ask the worker, and once more in a fresh process where what came of it may be transient; return it and the attempts.

    again: what is asked then, where that is another thing. Nothing is tried again where a budget's time is over.
    """
    answer = first()
    is_over = isinstance(runner, Bounded) and runner.clock.is_over
    if not _is_transient(answer) or is_over:
        return answer, 1
    runner.restart()
    return (again or first)(), 2


def _is_transient(answer: Answer) -> bool:
    """Whether another attempt may end otherwise, for one of a block's contestants at least."""
    came = [each.came for each in answer.results] if isinstance(answer, BlockDone) else [answer]
    return any(isinstance(each, Failure) and each.transient for each in came)


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


def subject_of(seen: Snapshot, configuration: Configuration) -> Subject:
    """Return what every request about a configuration has."""
    job = seen.job
    return Subject(
        source=job.source.files,
        facts=seen.facts,
        workload=job.workload,
        sample=tuple(job.workload.sample(seen.facts.windows)),
        texts=job.texts,
        configuration=configuration,
    )


def _search_request(tuner: Tuner, seen: Snapshot, configuration: Configuration) -> TrialAsked:
    """Return the request of a search trial. Energy takes seconds: where it is not the aim, the blocks read it."""
    subject = subject_of(seen, configuration)
    # What is forced, by a rule that is ignored, is to be judged: whether it is slow is no answer to that.
    is_needed = (
        configuration == seen.space.baseline or configuration in seen.job.also or seen.job.objective.ignored_rules
    )
    incumbent_s = None if is_needed else _incumbent_s(seen)
    has_energy = seen.job.objective.aim.gauge is Gauge.ENERGY
    return TrialAsked.of(
        subject,
        gate=_gate(tuner, seen, subject),
        measured=tuple(trial.ran.key for trial in seen.searched if trial.outcome is Outcome.OK),
        timing=Timing(incumbent_s=incumbent_s, energy=has_energy, best_lap_s=seen.best_lap_s),
    )


def _incumbent_s(seen: Snapshot) -> float | None:
    """Seconds a round of the best so far, where a slower one can be stopped early: not where memory or energy is the aim.

    Nor where a job's beginning counts: what is slower by the round may have begun sooner.
    """
    best, objective = seen.best, seen.job.objective
    if best is None or seen.job.budget.exhaustive or not objective.aim.is_of_time or objective.job_calls is not None:
        return None
    return best.value(ROUND)


def _gate(tuner: Tuner, seen: Snapshot, subject: Subject) -> Gate:
    """Return what the worker's gate needs; the reference is written when it is first asked for."""
    if not tuner.reference:
        tuner.reference = _write_reference(tuner, seen, subject)
    default, given, configuration = seen.default, None, subject.configuration
    is_default = configuration == seen.space.baseline
    if default is not None and default.quality is not None and not is_default and not wrong(default, None, seen.facts):
        given = Ran(configuration=default.ran, quality=default.quality)
    path = str(tuner.reference_path) if tuner.reference.startswith(FP32) else None
    known = known_figures(seen.trials, configuration)
    if (plain := layout_request(configuration, seen.space.baseline, known)) is not None:
        known |= _look_at_layout(tuner, LayoutAsked.of(subject, configuration=plain, reference=path), configuration)
    return Gate(path=path, reference=tuner.reference, default=given, is_default=is_default, known=known)


def _look_at_layout(tuner: Tuner, asked: LayoutAsked, configuration: Configuration) -> dict[str, Figure]:
    """Return the figures of a layout for the configuration that it is looked at for."""
    answer = tuner.runner.run(asked, tuner.timeout_s)
    if isinstance(answer, LayoutLooked):
        return figures_found(answer.figures, configuration)
    assert isinstance(answer, Failure)
    return {"layout": None, "layout_words": f"not looked at in fp32: {answer.outcome}"}


def _write_reference(tuner: Tuner, seen: Snapshot, subject: Subject) -> str:
    """Have the reference written, in fp32 and one sequence at a time; return in words what it is, or why there is none."""
    tuner.listen({"event": "stage", "stage": "reference in fp32"})
    asked = ReferenceAsked.of(subject, configuration=seen.space.baseline, path=str(tuner.reference_path))
    answer, _ = attempt(tuner.runner, lambda: tuner.runner.run(asked, tuner.timeout_s))
    if isinstance(answer, ReferenceWritten):
        return f"{answer.words}, {answer.positions} positions, {answer.texts}"
    assert isinstance(answer, (Unjudged, Failure))
    return f"there is no reference in fp32: {answer.why if isinstance(answer, Unjudged) else answer.reason}"


def told(
    seen: Snapshot, configuration: Configuration, number: int, phase: str, block: int | None, came: TrialDone | Failure
) -> Trial:
    """Turn a worker's answer into a trial."""
    trial = Trial(
        number,
        configuration,
        None,
        came.outcome,
        phase=phase,
        block=block,
        reading={"gate_s": {}, "method": METHOD},
        device_uuid=seen.job.machine.uuid,
    )
    trial = with_figures(trial, seen.job.workload, came)
    if isinstance(came, Failure):
        return trial
    trial = replace(trial, reading={**came.reading, "gate_s": dict(came.gate_s), "method": METHOD})
    if came.rounds is not None or came.effective is None or came.outcome is not Outcome.OK:
        return trial
    # As they were measured: what a job of so many calls gets of them is told of what is stored, and would be told twice.
    ran = (t for t in seen.stored if t.ran == came.effective and t.outcome is Outcome.OK and t.measurements)
    if (source := next(ran, None)) is None:
        return replace(trial, outcome=Outcome.RUNTIME_ERROR, reason="it was timed in no round")
    known = replace(source.quality, gate_s=0.0) if source.quality is not None else None
    return replace(
        trial,
        measurements=source.measurements,
        peak_bytes=source.peak_bytes,
        reused_from=source.number,
        quality=trial.quality or known,
    )


def with_figures(trial: Trial, workload: Workload, came: TrialDone | Failure) -> Trial:
    """Return a trial with what came of it: how it ended and, where it ran, what was measured."""
    if isinstance(came, Failure):
        return replace(trial, outcome=came.outcome, reason=came.reason)
    rounds = came.rounds
    measured = measurements_of(workload, rounds, trial.phase) if rounds else ()
    if measured and came.found_load_s:
        measured += (Measurement(LOADED, "s", (came.found_load_s,), trial.phase),)
    return replace(
        trial,
        effective=came.effective,
        outcome=came.outcome,
        reason=came.reason or came.alias,
        load_s=came.load_s,
        first_call_s=came.first_call_s,
        measure_s=sum(rounds.wall_s) if rounds else None,
        peak_bytes=came.peak_bytes,
        weight_bytes=came.weight_bytes,
        quality=came.quality,
        measurements=measured,
    )


def measurements_of(workload: Workload, rounds: Rounds, phase: str) -> tuple[Measurement, ...]:
    """Return what is stored of a worker's rounds: the seconds of a round, and what the kind of work makes of them."""
    state = {"after_each_round": list(rounds.states), "discarded": list(rounds.discarded)}
    found = [Measurement(ROUND, "s", rounds.wall_s, phase, state)]
    for metric in kind_of(workload).measured(workload):
        if samples := tuple(rounds.figures.get(metric.metric) or metric.samples(workload, rounds.fields)):
            found.append(Measurement(metric.metric, metric.unit, samples, phase))
    if any(rounds.gpu_s):
        found.append(Measurement(GPU_ROUND, "s", rounds.gpu_s, phase))
    if rounds.busy:
        found.append(Measurement(GPU_BUSY, "share", (rounds.busy,), phase))
    if rounds.laps_s:
        found.append(Measurement(CPU_LAP, "s", rounds.laps_s, phase))
    found += [Measurement(metric, COMPILED[metric], (value,), phase) for metric, value in rounds.compiled.items()]
    if rounds.paired:
        found.append(Measurement(PAIRED, "turns", (float(len(rounds.wall_s)),), phase))
    return tuple(found)


def _alias(trial: Trial, text: str) -> Reason:
    """Return what is refused from now on, for something else ran."""
    asked = trial.requested
    choices = asked.over(stated([asked, trial.ran]))
    subject = " ".join(f"{k}={v}" for k, v in choices if trial.ran.get(k) != v) or str(asked)
    figures = "its figures count for nothing" if unproven_in(trial.ran) else "the figures count for what ran"
    return Reason("E1", Verdict.ALIAS, f"{text}; {figures}", subject=subject)
