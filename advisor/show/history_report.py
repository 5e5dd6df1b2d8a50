"""What people see of trials one by one: what a tune would try, the list, one of them whole, one run again."""

from __future__ import annotations

from statistics import mean

from rich.markup import escape
from rich.table import Table

from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import Measurement
from advisor.nouns.metrics import (
    BREAKS,
    COMPILE,
    CPU_LAP,
    GPU_BUSY,
    GPU_ROUND,
    GRAPHS,
    LATER,
    LOADED,
    METRICS,
    PAIRED,
    RECOMPILED,
    ROUND,
    Gauge,
    figure,
    head,
    without_unit,
)
from advisor.nouns.trial import Outcome, Trial
from advisor.show.candidate_tables import quality_words
from advisor.show.console import console
from advisor.show.refused import refused_table
from advisor.storage.study_record import StudyRecord
from advisor.study.history import Listed, OverCalls
from advisor.study.plan import Plan
from advisor.study.trial_words import device_words, words_of
from advisor.terminal import gib, many, span

#: Configurations that a dry run lists.
_SHOWN = 20

#: What seconds that every kind of work has are called.
_NAMES = {
    ROUND: "a round",
    GPU_ROUND: "a round by CUDA's clock",
    GPU_BUSY: "the GPU computes",
    CPU_LAP: "a loop of steps on the CPU",
    PAIRED: "turns compared one by one",
    COMPILE: "compiling",
    LATER: "of it after the first call",
    LOADED: "found loaded, by a load of",
    GRAPHS: "graphs compiled",
    RECOMPILED: "of them anew",
    BREAKS: "graph breaks",
}

#: A trial's times, in the order in which they are spent.
_TIMES = ("load_s", "first_call_s", "measure_s", "wall_s")


def print_plan(plan: Plan) -> None:
    """Print what a tune would try, what is refused, and how long it would take."""
    out, job, order = console(stderr=False), plan.job, plan.order
    out.print(
        f"[bold]{escape(job.source.name)}[/] · {escape(str(job.workload))} · {escape(str(job.machine.environment))}"
    )
    count = len(plan.space.admissible)
    admissible = f"{many(count, 'configuration')} {'is' if count == 1 else 'are'}"
    late = f", {plan.late} of them tried last, on the best of the others first" if plan.late else ""
    out.print(f"{admissible} admissible{late}; likeliest first, after the default:\n")
    for place, configuration in enumerate(order[:_SHOWN]):
        out.print(f"{place:3d}  {escape(str(configuration))}{'  (the default)' if place == 0 else ''}")
    if len(order) > _SHOWN:
        out.print(f"     and {len(order) - _SHOWN} more")
    out.print()
    if plan.space.warnings:
        out.print("to be known of what is tried, by rule:")
    for reason in plan.space.warnings:
        about = f" ({reason.about})" if reason.about else ""
        out.print(f"[yellow]{reason.rule}[/] {escape(f'{reason.subject}{about}: {reason.text}')}")
    if plan.space.refusals:
        out.print(refused_table(plan.space.refusals, ()))
        out.print()
    out.print(plan_words(plan))


def plan_words(plan: Plan) -> str:
    """Return how long a tune would take, in words."""
    budget = plan.job.budget
    bounded = f"the budget is {many(budget.trials, 'trial')}" if budget.trials is not None else "no budget bounds it"
    if budget.seconds is not None:
        bounded = f"the budget bounds it at {span(budget.seconds)}"
    if budget.payback_s is not None and plan.job.objective.aim.is_of_time:
        pays = "of that job" if budget.job_pays else f"in {span(budget.payback_s)} of work"
        bounded += f", and it ends where each of what is left is expected to save less {pays} than it costs"
    if plan.seconds is None or plan.trial_s is None:
        return f"time: unknown before the first trial; {bounded}"
    count = plan.searched - plan.adds_default
    runs = [many(count, "configuration"), *(["the default"] if plan.adds_default else [])]
    runs += [f"{many(plan.confirming, 'run')} to confirm the best"] if plan.confirming else []
    each = f"at {plan.trial_s:.1f} s each as measured here before"
    if plan.compiled_s:
        each += f", and at {mean(plan.compiled_s):.1f} s each for the {len(plan.compiled_s)} that compile"
    listed = " and ".join([", ".join(runs[:-1]), runs[-1]] if len(runs) > 1 else runs)
    return f"time: about {span(plan.seconds)} ({listed}, {each}); {bounded}"


def print_trials(listed: Listed, *, is_next: bool) -> None:
    """Print a study with its trials. is_next: another was printed before it."""
    out = console(stderr=False)
    study, aim = listed.study, listed.study.objective.aim
    over = "" if listed.calls is None else f"; figures are over {many(listed.calls, 'call')}, loading and compiling too"
    out.print(
        ("\n" if is_next else "") + f"[bold]study {study.id}[/] · {escape(study.model_name)} · "
        f"{escape(str(study.workload))}\n  {study.started_at:%Y-%m-%d %H:%M} UTC on {escape(str(study.environment))}, "
        f"quality {study.objective.quality}, {study.state}{over}"
    )
    table = Table(
        "id",
        "configuration",
        "phase",
        "outcome",
        head(aim.metric),
        "× default",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for trial in listed.figured:
        ratio, phase = listed.ratios.get(trial.number), trial.phase
        phase += f" {trial.block}" if trial.block is not None else ""
        table.add_row(
            f"{study.id}.{trial.number}",
            escape(str(trial.requested)),
            phase,
            _ended(study, trial),
            without_unit(aim.metric, trial.value(aim.metric)),
            f"{ratio:.2f}" if ratio else "–",
        )
    out.print(table)


def _ended(study: StudyRecord, trial: Trial) -> str:
    """Return what came of a trial; what runs in no tune any more was interrupted."""
    is_left = trial.outcome is Outcome.RUNNING and study.state != "running"
    return "interrupted" if is_left else str(trial.outcome)


def print_trial(study: StudyRecord, trial: Trial, over: OverCalls | None = None) -> None:
    """Print all that is known of one trial. over: what the study's job of so many calls gets of it."""
    out = console(stderr=False)
    table = Table.grid(padding=(0, 2))
    flags = study.workload.flags
    about = {
        "requested": _spelled(trial.requested),
        "effective": _spelled(trial.effective) if trial.effective is not None else _nothing(trial.outcome),
        "outcome": f"{trial.outcome}{f': {trial.reason}' if trial.reason else ''}",
        "phase": f"{trial.phase}{f', block {trial.block}' if trial.block is not None else ''}",
        "begun": f"{trial.attempts} times: an attempt before failed or was interrupted" if trial.attempts > 1 else "",
        "figures of": "another trial: nothing was run here" if trial.is_reused else "",
    }
    about |= {_called(measurement.metric): measured_words(measurement) for measurement in trial.measurements}
    if over is not None:
        metric = study.objective.metric
        told = figure(metric, over.trial.value(metric))
        about[f"over {many(over.calls, 'call')}"] = f"{told}, with what it takes to begin: {over.begun.words}"
    about |= {
        "memory": ", ".join(
            f"{name} {gib(size)}"
            for name, size in (("peak", trial.peak_bytes), ("weights", trial.weight_bytes))
            if size is not None
        ),
        "time": ", ".join(
            f"{name.removesuffix('_s').replace('_', ' ')} {value:.2f} s"
            for name in _TIMES
            if (value := getattr(trial, name)) is not None
        ),
        "quality": f"{quality_words(trial.quality)} against {trial.quality.reference}" if trial.quality else "",
    }
    about |= {f"seen: {name}": words for name, words in words_of(trial.reading).items()}
    for measurement in trial.measurements:
        about |= {f"device: {name}": words for name, words in device_words(measurement).items()}
    about |= {
        "model": f"{study.model_name}, weights {study.weights_digest}",
        "workload": flags if len(flags) < 200 else f"{study.workload} (--format json lists the lengths)",
        "environment": f"{study.environment}, key {study.environment_key}",
        "study": f"{study.id}, {study.started_at:%Y-%m-%d %H:%M} UTC, {study.objective.aim.words}, "
        f"quality {study.objective.quality}, {study.state}",
    }
    for name, words in about.items():
        if words:
            table.add_row(f"[bold]{name}[/]", escape(words))
    out.print(f"[bold]trial {study.id}.{trial.number}[/]")
    out.print(table)


def _spelled(configuration: Configuration) -> str:
    return ", ".join(f"{knob} {choice}" for knob, choice in configuration.as_read.items())


def _nothing(outcome: Outcome) -> str:
    """Return in words why it is not known what ran."""
    if outcome is Outcome.RUNNING:
        return "nothing is known yet: it runs, or was interrupted and the same tune goes on with it"
    return "not known: it did not get to its end" if outcome is Outcome.CUT else "nothing ran"


def _called(name: str) -> str:
    """Return what a stored metric is called in the list of all that is known of a trial."""
    metric = METRICS.get(name)
    if metric is None:
        return _NAMES.get(name, name)
    return "speed" if metric.is_speed else "energy" if metric.gauge is Gauge.ENERGY else metric.head


def measured_words(measurement: Measurement) -> str:
    """Return a measurement's median and the interval of its samples, in words."""
    count = len(measurement.samples)
    if count == 1:
        return f"{figure(measurement.metric, measurement.median)} (one sample)"
    low, high = (without_unit(measurement.metric, value) for value in measurement.interval)
    return f"{figure(measurement.metric, measurement.median)} ({low} to {high}, {count} samples)"
