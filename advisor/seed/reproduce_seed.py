"""Reproduce the seed: every case of the advice is tuned on this GPU.

Each is an ordinary tune, with its gate, its proof and its rows in the database; `Job.also` sees to it that the two
configurations of the claim meet the default in every block of the confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from advisor.advice.suggest import recommend
from advisor.errors import BadInput, NothingAdmissible
from advisor.knobs import baseline_choices
from advisor.machine import probe
from advisor.measure.runner import Runner
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.seed.seed import RECOMMENDED, Case, roles_of
from advisor.seed.seed_result import CaseResult
from advisor.storage.store import Store
from advisor.study.opening import facts_for
from advisor.study.tune import tune
from advisor.study.tuning import Job, Listener


def machine_for(device: str | None, threads: int | None = None, *, own: bool = True) -> Machine:
    """Return the device to measure on. own: the model and the cases are the advice's own, which need a GPU.

    Raises BadInput where there is no GPU: the claim is about GPUs, and a CPU is for trying the command out.
    """
    probe.refuse_too_many(threads)
    machine = probe.machine(device, threads)
    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    if not machine.environment.is_cuda and device is None:
        raise BadInput(
            "the advice is about GPUs, and there is none here that torch can use",
            "advisor probe says why; --device cpu with --model and --case tries the command out",
        )
    if not machine.environment.is_cuda and own:
        raise BadInput("the advice's own cases need a GPU", "on a CPU give --model and --case")
    return machine


def jobs(
    source: ModelSource, machine: Machine, budget: Budget, batches: int, timeout_s: float = 600.0
) -> Callable[[Case], Job]:
    """Return what makes the job of a case: within the tier exact, for the advice was about speed alone."""
    objective = Objective(quality=Tier.EXACT)
    return lambda case: Job(source, case.workload(batches), objective, budget, machine, trial_timeout_s=timeout_s)


def reproduce(
    cases: Sequence[Case], make_job: Callable[[Case], Job], store: Store, runner: Runner, listen: Listener
) -> list[CaseResult]:
    """Tune every case and return what was found. Interrupting it loses nothing: the same call goes on.

    make_job: the job of a case, its workload the case's; `also` is filled in here.
    """
    return [_measured(case, make_job(case), store, runner, listen) for case in cases]


def _measured(case: Case, job: Job, store: Store, runner: Runner, listen: Listener) -> CaseResult:
    facts = facts_for(job, runner)
    default = Configuration.of(baseline_choices(facts, job.workload))
    roles = roles_of(default)
    also = tuple(configuration for configuration in roles.values() if configuration != default)
    study = tune(replace(job, also=also), store, runner, listen)
    record, verdict = store.study(study), "nothing"
    try:
        found = recommend(store, job.source, record, job.objective)
        verdict = found.verdict
        roles |= {RECOMMENDED: found.configuration} if found.configuration is not None else {}
    except NothingAdmissible:
        pass  # said by the case: the default and the others have their reasons there
    config = job.source.config
    multi_query = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    return CaseResult(
        case,
        study,
        job.source.name,
        record.environment,
        job.workload,
        facts,
        roles,
        verdict,
        tuple(store.trials(study, full=True)),
        tuple(store.refusals(study)),
        multi_query or facts.kv_heads == 1,
        job.budget.blocks,
    )
