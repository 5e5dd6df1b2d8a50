"""The command line that measures what was asked, or goes on with a study: flags that say what is wanted."""

from __future__ import annotations

import math
import shlex

from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Objective
from advisor.storage.study_record import StudyRecord
from advisor.workloads import Workload, kind_of

#: A tune without --budget takes so long (options.DEFAULT_BUDGET): what goes on with one that did says how much longer.
LONG_BUDGET_S = 600.0


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
    flags += [f"--only {knob}={','.join(names)}" for knob, names in objective.only]
    flags += ["--allow-unjudged"] if objective.allow_unjudged else []
    flags += [f"--ignore-rule {rule}" for rule in objective.ignored_rules]
    flags += ["--allow-pickle"] if source.allow_pickle else []
    flags += ["--device cpu"] if here is not None and not here.is_cuda else []
    if here is not None and here.threads > 1:
        flags.append(f"--threads {here.threads}")
    return f"advisor tune {shlex.quote(source.name)} {' '.join(flags)}"


def going_on(source: ModelSource, study: StudyRecord, objective: Objective) -> str:
    """Return the command that goes on with a study, or begins one with another objective: longer than the last one was."""
    command = command_for(source, study.workload, objective, study.environment)
    last_s = study.budget.seconds or 0.0
    return f"{command} --budget {math.ceil(2 * last_s / 60)}m" if last_s >= LONG_BUDGET_S else command


def _size(count: int) -> str:
    """Return bytes as the command line takes them, in the unit that they were most likely given in."""
    unit = next((unit for unit in ("GiB", "MiB") if count % {"GiB": 2**30, "MiB": 2**20}[unit] == 0), "")
    return f"{count // {'GiB': 2**30, 'MiB': 2**20}.get(unit, 1)}{unit}"
