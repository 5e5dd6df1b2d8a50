"""What Python and the command line do alike with a question: answer it, measure it, plan that, or run a stored trial again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from advisor.asking.question import Effort, Question
from advisor.asking.resolve import Resolved, resolve
from advisor.errors import AdvisorError, BadInput, NotMeasured, StoreError
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget

if TYPE_CHECKING:  # the database's driver and Optuna take time to import
    from advisor.advice.recommendation import Recommendation
    from advisor.storage.store import Store
    from advisor.storage.study_record import StudyRecord
    from advisor.study.plan import Plan
    from advisor.study.reproduction import Reproduction
    from advisor.study.tuning import Job

#: How long a device may take to show what it reaches, in seconds.
_CEILINGS_S = 120.0

Listener = Callable[[Mapping[str, Any]], None]


def answered(asked: Resolved, store: Store, on: str | None) -> Recommendation:
    """Return what a store recommends. Raises NotMeasured with the command that would measure it, in the user's words."""
    from advisor.advice.suggest import suggest as answer

    try:
        found = answer(store, asked.source, asked.workload, asked.objective, asked.machine.environment, on)
        return found.with_flags(asked.workload.flags, asked.flags)
    except NotMeasured as error:
        lacking = NotMeasured(str(error).replace(asked.workload.flags, asked.flags))
    for words, workload in asked.earlier():
        with suppress(NotMeasured):
            found = answer(store, asked.source, workload, asked.objective, asked.machine.environment, on)
            return replace(found, notes=(f"this was measured on {words}, not on a sample of it", *found.notes))
    raise lacking


def answered_there(asked: Resolved, store: Store, question: Question, there: Iterable[Environment]) -> Recommendation:
    """Return what is recommended on other devices as they are now, else what `answered` says of this machine.

    there: their environments, the first that has an answer of its own before what is stale. Raises NotMeasured.
    """
    stale = []
    for environment in there:
        if not environment.is_cuda and question.threads not in (None, environment.threads):
            continue
        with suppress(NotMeasured):
            found = answered(replace(asked, machine=replace(asked.machine, environment=environment)), store, None)
            if found.study.environment_key == environment.key:
                return found
            stale += [found] if found.stale else []
    return stale[0] if stale else answered(asked, store, question.on)


def job_of(question: Question, effort: Effort, began: float | None = None) -> tuple[Job, tuple[str, ...]]:
    """Return what is to be tuned, and what is to be told of its workload. Raises BadInput.

    began: when the command did, by time.monotonic(); None: when it is tuned.
    """
    asked = resolve(question, to_measure=True)
    from advisor.study.tuning import Job

    job = Job(
        asked.source,
        asked.workload,
        asked.objective,
        effort.budget,
        asked.machine,
        effort.seed,
        effort.trial_timeout_s,
        texts=asked.texts,
        began=began,
        flags=asked.flags,
    )
    return job, asked.notes


def job_again(
    study: StudyRecord, also: tuple[Configuration, ...], device: str, threads: int | None, *, allow_pickle: bool = False
) -> Job:
    """Return what measures a stored study's default again, and these of its configurations as far as rules leave them.

    Nothing is downloaded. Raises BadInput where its model, or its device, is not on this host.
    """
    from advisor.machine import probe
    from advisor.models.checkpoint import find_model
    from advisor.models.declared import refuse_unknown
    from advisor.study.tuning import Job

    machine = probe.machine(device, threads)
    try:
        source = find_model(study.model_name, allow_pickle=allow_pickle, download=False)
    except BadInput as error:
        raise BadInput(f"the model of study {study.id} is not on this host any more: {error}") from None
    if study.workload.key_for(source.architecture_key) != study.workload_key:
        raise BadInput(
            f"{source.name} is another model than that of study {study.id}: its config.json has other shapes"
        )
    refuse_unknown(source)
    # One trial is the default's: what must be measured besides is, and nothing is searched for.
    return Job(source, study.workload, study.objective, Budget(trials=1), machine, also=also)


def open_to_write() -> Store:
    """Open the database to write to.

    Raises StoreError for a read-only file, for SQLite in WAL mode says so only at a row; and where this host's clock is wrong.
    """
    from advisor.storage.clock import refuse_wrong_clock
    from advisor.storage.place import database_path, default_url
    from advisor.storage.store import Store

    path = database_path(default_url())
    if path is not None and path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"{path} can't be written: the file or its directory is read-only")
    store = Store.open(default_url(), write=True)
    try:
        refuse_wrong_clock(store)
    except BaseException:
        store.close()
        raise
    return store


def measured(job: Job, store: Store, listen: Listener) -> Recommendation:
    """Tune on this machine and return what the rows just written recommend."""
    from advisor.advice.suggest import recommend
    from advisor.measure.runner import LocalRunner
    from advisor.study.tune import tune as search

    runner = LocalRunner(job.machine, listen)
    try:
        study = search(job, store, runner, listen)
    finally:
        runner.close()
    found = recommend(store, job.source, store.study(study), job.objective)
    return found.with_flags(job.workload.flags, job.flags or job.workload.flags)


def planned(job: Job, listen: Listener) -> Plan:
    """Return what a tune would try. The model's facts are read, nothing is measured, and nothing is written."""
    from advisor.measure.runner import LocalRunner
    from advisor.storage.place import default_url
    from advisor.storage.store import Store
    from advisor.study.plan import plan, usual_seconds

    try:
        with Store.open(default_url(), write=False) as store:
            usual = usual_seconds(store, job.source.architecture_key, job.machine.environment.key)
    except NotMeasured:  # there is no database yet
        usual = None
    runner = LocalRunner(job.machine, listen)
    try:
        return plan(job, runner, usual)
    finally:
        runner.close()


def ceilings_of(machine: Machine, listen: Listener) -> dict[str, float]:
    """Measure what a device reaches at best, store it and return it: `matmul_<precision>_per_s`, `copy_bytes_per_s`."""
    from advisor.measure.messages import Ceilings, CeilingsAsked, Failure
    from advisor.measure.runner import LocalRunner

    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    with open_to_write() as store:
        runner = LocalRunner(machine, listen)
        try:
            found = runner.run(CeilingsAsked(), _CEILINGS_S)
        finally:
            runner.close()
        if isinstance(found, Failure):
            raise AdvisorError(f"the ceilings can't be measured: {found.reason}")
        assert isinstance(found, Ceilings)
        store.save_ceilings(machine.environment, found.reached)
    return dict(found.reached)


@dataclass(frozen=True)
class Rerun:
    """A stored trial that is to run again.

    trial: its study's number and its own; trial_timeout_s: the deadline of a process; model, device: where they are now, None for
    where they were; anyway: although the environment or the weights differ; to_print: as lines to paste too. processes: how many
    run at most, None for as many as usual.
    """

    trial: tuple[int, int]
    trial_timeout_s: float
    model: str | None = None
    device: str | None = None
    allow_pickle: bool = False
    anyway: bool = False
    to_print: bool = False
    processes: int | None = None


def reproduced(rerun: Rerun, listen: Listener) -> tuple[Reproduction, ModelSource, Machine]:
    """Run a stored trial again on this machine, in fresh processes; return how it compares, the model, and the device.

    Raises BadInput where the trial has no end to compare with, its model is not there, or what it ran under is not what is
    here and it is not to be run anyway. listen: hears of every process that ended, too.
    """
    from advisor.machine import probe
    from advisor.measure.runner import LocalRunner
    from advisor.nouns.agreement import USUAL_PROCESSES
    from advisor.show.script import refuse_unprintable
    from advisor.storage.place import default_url
    from advisor.storage.store import Store
    from advisor.study import history, reproduction, reruns

    with Store.open(default_url(), write=False) as store:
        study, old = history.stored_trial(store, *rerun.trial)
        stored = reruns.Stored(study, old, store.trials(study.id, full=True, readable=True))
    reproduction.refuse_unrepeatable(study, old)
    if rerun.to_print:
        refuse_unprintable(old.requested)
    machine = reproduction.machine_of(old, probe.machines(study.environment.threads or 1)) if not rerun.device else None
    device = rerun.device or (None if study.environment.is_cuda else "cpu")
    machine = machine or probe.machine(device, study.environment.threads or 1)
    source = reproduction.found_again(study, rerun.model, allow_pickle=rerun.allow_pickle)
    differences = reproduction.differences(study, source, machine.environment)
    if differences and not rerun.anyway:
        raise BadInput(
            f"this is not what trial {'.'.join(map(str, rerun.trial))} ran under: {'; '.join(differences)}",
            "--anyway runs it",
        )
    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    differences += reproduction.other_device(old, machine)
    then = reproduction.measured_then(stored)
    most, blocks = rerun.processes or USUAL_PROCESSES, reproduction.in_blocks(stored)
    asked = reproduction.Reproduction(study, old, then, (), tuple(differences), most, blocks)
    runner = LocalRunner(machine, listen)
    try:
        again = reruns.fresh_processes(stored, source, runner, rerun.trial_timeout_s)
        done = reproduction.run_again(asked, again, listen)
    finally:
        runner.close()
    return done, source, machine
