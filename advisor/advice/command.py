"""The command line that measures what was asked, or goes on with a study: flags that say what is wanted."""

from __future__ import annotations

import math
import shlex

from advisor.machine.processors import usual_threads
from advisor.nouns.answer import Stop
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import LEAST_BLOCKS
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective
from advisor.search.prospects import CHANCE
from advisor.storage.study_record import StudyRecord
from advisor.workloads import Workload, kind_of

#: A tune without --budget takes so long (options.DEFAULT_BUDGET): what goes on with one that did says how much longer.
LONG_BUDGET_S = 600.0

#: What nobody bounded is worth so much work (options.DEFAULT_PAYBACK).
_PAYBACK_S = 3600.0


def command_for(source: ModelSource, workload: Workload, objective: Objective, here: Environment | None) -> str:
    """Return the command line that measures this. here: the machine it is for, where that is this one."""
    flags = [workload.flags]
    if objective.quality != Objective().quality:
        flags.append(f"--quality {objective.quality}")
    if objective.max_memory_bytes is not None:
        flags.append(f"--max-memory {_size(objective.max_memory_bytes)}")
    if objective.aim != kind_of(workload).aim:
        flags.append(f"--objective {objective.aim.name}")
    if objective.max_latency_s is not None:
        flags.append(f"--max-latency {objective.max_latency_s * 1000:g}ms")
    flags += [f"--calls {objective.calls}"] if objective.calls is not None else []
    flags += [f"--only {knob}={','.join(names)}" for knob, names in objective.only]
    flags += ["--allow-unjudged"] if objective.allow_unjudged else []
    flags += [f"--ignore-rule {rule}" for rule in objective.ignored_rules]
    flags += ["--allow-pickle"] if source.allow_pickle else []
    flags += ["--device cpu"] if here is not None and not here.is_cuda else []
    if here is not None and here.threads and here.threads != usual_threads():
        flags.append(f"--threads {here.threads}")
    return f"advisor tune {shlex.quote(source.name)} {' '.join(flags)}"


def going_on(source: ModelSource, study: StudyRecord, objective: Objective, *, is_own: bool) -> str:
    """Return the command that goes on with a study: as it was asked for where it was broken off, else for longer.

    is_own: whether the question is the study's own; else the command begins the one that it is about.
    """
    command = command_for(source, study.workload, objective, study.environment)
    if not is_own:
        return command
    is_of_job = objective.job_calls is not None
    flags = _longer(study.budget) if study.state == "done" else _again(study.budget, is_of_job=is_of_job)
    if study.end is not None and study.end.stop is Stop.UNJUDGED:
        flags.append("--allow-unjudged")  # without, nothing more comes of it
    return " ".join([command, *flags])


def trying_more(source: ModelSource, study: StudyRecord, objective: Objective, *, is_own: bool) -> str:
    """Return the command that tries what was never tried: where the search ended by its own rule, more time tries nothing."""
    end = study.end
    if not is_own or study.state != "done" or end is None:
        return going_on(source, study, objective, is_own=is_own)
    command = command_for(source, study.workload, objective, study.environment)
    if end.stop is Stop.EVERYTHING:
        return command
    is_unlikely = end.chance is not None and end.chance < CHANCE
    if end.stop is Stop.PAYBACK and study.budget.job_pays and not is_unlikely:
        return f"{command} --payback {_duration(_PAYBACK_S)}"
    if is_unlikely or end.stop in (Stop.UNLIKELY, Stop.PAYBACK):
        return f"{command} --exhaustive"
    return going_on(source, study, objective, is_own=True)


def _longer(budget: Budget) -> list[str]:
    """Return the flags of a tune that may spend more than one that was not enough."""
    if budget.exhaustive:
        return ["--exhaustive"]
    last_s = budget.seconds or 0.0
    return [f"--budget {math.ceil(2 * last_s / 60)}m"] if last_s >= LONG_BUDGET_S else []


def _again(budget: Budget, *, is_of_job: bool) -> list[str]:
    """Return the flags that a budget was asked for with. is_of_job: for so many calls, which pay for a search themselves."""
    flags = ["--exhaustive"] if budget.exhaustive else []
    flags += [f"--trials {budget.trials}"] if budget.trials is not None else []
    if budget.seconds is not None and (budget.seconds != LONG_BUDGET_S or budget.payback_s is None):
        flags.append(f"--budget {_duration(budget.seconds)}")
    if budget.payback_s is not None and (budget.payback_s != _PAYBACK_S or budget.job_pays != is_of_job):
        flags.append(f"--payback {_duration(budget.payback_s)}")
    is_asked = budget.blocks != Budget().blocks and budget.blocks not in range(1, LEAST_BLOCKS)
    return flags + ([f"--blocks {budget.blocks}"] if is_asked else [])


def _duration(seconds: float) -> str:
    """Return seconds as the command line takes them, all digits of them, in minutes where they are whole."""
    return f"{seconds / 60:.12g}m" if seconds % 60 == 0 else f"{seconds:.12g}s"


def _size(count: int) -> str:
    """Return bytes as the command line takes them, in the unit that they were most likely given in."""
    unit = next((unit for unit in ("GiB", "MiB") if count % {"GiB": 2**30, "MiB": 2**20}[unit] == 0), "")
    return f"{count // {'GiB': 2**30, 'MiB': 2**20}.get(unit, 1)}{unit}"
