"""How a tune begins and ends: the model's facts, the space, the study in the store, and how it is left there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from advisor.advice.kept_answers import keep_answer
from advisor.errors import BadInput, DamagedRow, NothingAdmissible, NotMeasured, StoreError, named
from advisor.knobs import is_whole, unknown
from advisor.machine.leftovers import ended, working_folder
from advisor.measure.runner import Runner, read_facts
from advisor.nouns.answer import SearchEnd, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.step import Done, EndSearch
from advisor.nouns.trial import default_of
from advisor.quality.method import METHOD
from advisor.search.cost import costs_beside, costs_of, launches_of, situations_of, weight_bytes
from advisor.search.prospects import searched
from advisor.search.search import surprises
from advisor.search.space import MEMORY_SHARE, Space, build_space, refuse_nothing_left
from advisor.storage.patience import PatientStore
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.study.clock import Bounded, BudgetSpent, Clock
from advisor.study.confirmation import comparisons_now
from advisor.study.next_step import next_step
from advisor.study.perform import end_search
from advisor.study.tuner import Tuner, heartbeat, own_name
from advisor.study.tuning import Job, Listener, Snapshot
from advisor.terminal import gib
from advisor.workloads import Head, kind_of


@contextmanager
def opened(job: Job, plain: Store, runner: Runner, listen: Listener, now: Callable[[], float]) -> Iterator[Tuner]:
    """Give a tune that is ready for its first step; whatever ends it, what it holds is let go and the study says how it stands.

    Raises NotMeasured where the budget was spent before the model was read, BadInput and NothingAdmissible where nothing can
    be tuned.
    """
    store = PatientStore(plain, listen)
    bounded = Bounded(runner, Clock(job.budget.seconds, now, now() if job.began is None else job.began))
    earlier = {each.id: each for each in _studies_of_this_work(job, store)}
    facts = _facts_that_leave_nothing(job, store, earlier.values(), bounded)
    if facts is None:
        listen({"event": "stage", "stage": "reading the model"})
        facts = _facts_in_time(job, bounded)
    space = job_space(job, facts)
    refuse_nothing_left(job.objective, len(space.admissible), space.refusals)
    study = store.open_study(job.source, job.workload, job.machine.environment, job.objective, job.budget, job.seed)
    name, state, tuner = own_name(), "interrupted", None
    try:
        _tell(job, store, study, facts, space, listen)
        refuse_too_large(job, facts, space)
        with working_folder() as folder, heartbeat(plain, study, name):
            tuner = Tuner(job, store, bounded, listen, facts, space, study, Path(folder), name)
            standing = store.standing(study)
            tuner.first, tuner.unfinished = standing.began(name), standing.running
            tuner.warm = _warm(job, store, facts, study)
            tuner.probed = store.ceilings(job.machine.environment.key) is not None
            yield tuner
        state = "done"
    finally:
        try:
            if tuner is not None:
                _settle(tuner)
        finally:
            try:
                _close(store, study, name, state, tuner, earlier.get(study), len(space.admissible))
            except StoreError:
                ended(name)
                raise
        keep_answer(store, study, space=space)


def job_space(job: Job, facts: ModelFacts) -> Space:
    """Return the space of a job, with the memory that is free now."""
    where = (facts, job.workload, job.machine.environment, job.objective, job.machine.free_bytes)
    return build_space(*where, drawn=job.source.has_random_weights)


def _facts_in_time(job: Job, runner: Bounded) -> ModelFacts:
    try:
        return facts_for(job, runner)
    except BudgetSpent:
        budget, waited_s = f"the budget of {runner.clock.seconds:.0f} s", runner.waited_s
        if waited_s > 0.5 * (runner.clock.seconds or 0.0):
            text = (
                f"nothing was measured: for {waited_s:.0f} s of {budget} another advisor measured on {job.machine.uuid}"
            )
            raise NotMeasured(text, "the same command when that has ended") from None
        text = f"nothing was measured: {budget} was spent before the model was read"
        raise NotMeasured(text, f"a longer {named('budget')}") from None


def _facts_that_leave_nothing(
    job: Job, store: Store, studies: Iterable[StudyRecord], runner: Bounded
) -> ModelFacts | None:
    """Return the stored facts of a study of this very question, done here by today's rules, where they leave no step to take.

    None where there is anything to do: then the model is read again, which takes a worker and with it some seconds.
    """
    for study in studies:
        if study.facts is None or not _is_of(job, study) or not _is_of_today(store, study):
            continue
        classifies = job.workload.needs.head is Head.CLASSIFICATION
        facts = study.facts.for_source(job.source, classifies=classifies)
        refuse_unfit(job, facts)
        if _leaves_nothing(_seen_from_here(job, store, study, facts, runner)):
            return facts
    return None


def _is_of(job: Job, study: StudyRecord) -> bool:
    """Whether a study is done, of these weights under this objective, in this very environment: nothing of it is out of date."""
    mine = (job.machine.environment.key, job.source.weights_digest, job.objective.payload)
    return study.state == "done" and mine == (study.environment_key, study.weights_digest, study.objective.payload)


def _is_of_today(store: Store, study: StudyRecord) -> bool:
    """Whether a study's answer is stored, and by today's rules."""
    with suppress(DamagedRow):
        answer = store.answer(study.id)
        return answer is not None and answer.method == METHOD
    return False


def _seen_from_here(job: Job, store: Store, study: StudyRecord, facts: ModelFacts, runner: Bounded) -> Snapshot:
    """Return what a tune would see of a study if it began now."""
    now, name = store.standing(study.id), own_name()
    return Snapshot(
        job,
        facts,
        job_space(job, facts),
        now.trials,
        now.taken(name),
        now.comparisons,
        now.began(name),
        _warm(job, store, facts, study.id),
        left_s=runner.clock.left_s,
        has_ceilings=store.ceilings(job.machine.environment.key) is not None,
        unfinished=now.running,
    )


def _leaves_nothing(seen: Snapshot) -> bool:
    """Whether no step is left but to end the search, by its own rule: not because there is no time for more."""
    step = next_step(seen)
    if isinstance(step, EndSearch) and not step.stop.is_cut:
        step = next_step(replace(seen, stop=step.stop))
    return isinstance(step, Done) and not step.text


def _tell(job: Job, store: Store, study: int, facts: ModelFacts, space: Space, listen: Listener) -> None:
    """Store and tell what a study is about. What earlier tunes found to run as something else stays refused."""
    store.save_facts(job.source, facts, study)
    store.save_refusals(study, space.refusals, len(space.admissible), beside="E1")
    listen({"event": "study", "space": space, "trials": store.trials(study)})


def _settle(tuner: Tuner) -> None:
    """Have nothing of an interruption lost: the blocks that are whole are compared, and the search has an end."""
    seen = tuner.snapshot()
    if (found := comparisons_now(seen)) != seen.comparisons:
        tuner.store.save_comparisons(tuner.study, found)
    if tuner.end is None:
        end_search(tuner, seen, Stop.INTERRUPTED)


def _studies_of_this_work(job: Job, store: Store) -> list[StudyRecord]:
    architecture = job.source.architecture_key
    return store.studies_for(architecture, job.workload.key_for(architecture))


def _close(
    store: Store, study: int, name: str, state: str, tuner: Tuner | None, earlier: StudyRecord | None, admissible: int
) -> None:
    """Store how the study ended.

    Where nothing was run and the search was cut, what an earlier search said of the same rows stays: cut is all that is new.
    """
    ran, end = (tuner.ran, tuner.end) if tuner is not None else (False, None)
    tried = len(searched(store.trials(study)))
    if earlier is not None and not ran and _still_holds(earlier, end, tried, admissible):
        store.close_study(study, "done", owner=name, end=earlier.end, ran=False, budget=earlier.budget)
    else:
        budget = tuner.job.budget if tuner is not None else None
        store.close_study(study, state, owner=name, end=end, ran=ran, budget=budget)


def _still_holds(earlier: StudyRecord, end: SearchEnd | None, tried: int, admissible: int) -> bool:
    """Whether how an earlier search ended says more than how this one did, of as many trials and configurations."""
    before = earlier.end
    if before is None or earlier.state != "done" or before.tried != tried or earlier.admissible != admissible:
        return False
    return end is None or (end.stop.is_cut and end.left == before.left)


def facts_for(job: Job, runner: Runner) -> ModelFacts:
    """Have the model's facts read. Raises BadInput where a sequence is too long for it, or a batch needs a pad token."""
    facts = read_facts(runner, job.source, job.workload)
    refuse_unfit(job, facts)
    return facts


def refuse_unfit(job: Job, facts: ModelFacts) -> None:
    """Raise BadInput where a sequence is too long for a model of these facts, or a batch needs a pad token that it has not."""
    longest, most = max(job.workload.lengths), facts.max_positions
    if most is not None and longest > most - facts.position_offset:
        raise BadInput(f"{named('lengths')} {longest} is beyond the model's {most - facts.position_offset} positions")
    kind_of(job.workload).refuse(job.workload, facts, job.source.name)


def refuse_too_large(job: Job, facts: ModelFacts, space: Space) -> None:
    """Raise NothingAdmissible where nothing fits on this device: before one trial after another runs out of its memory."""
    reasons = [reason for reason in space.refusals if reason.rule == "M1"]
    device, needed = job.machine.environment, weight_bytes(facts, job.workload, space.baseline)
    if reasons and not space.admissible and needed > MEMORY_SHARE * device.memory_bytes:
        sizes = f"{gib(needed)}, and {device.device_name} has {gib(device.memory_bytes)}"
        text = f"the weights alone are {sizes}: this model needs more than one GPU, and advisor tunes for one"
        raise NothingAdmissible([text, *map(str, reasons)])


def _warm(job: Job, store: Store, facts: ModelFacts, study: int) -> dict[Configuration, float]:
    """Return what the nearest workload that was measured here teaches of configurations; nothing where there is none."""
    here, aim = job.machine.environment, job.objective.aim
    known = [
        s
        for s in store.studies(job.source.architecture_key)
        if s.id != study and s.environment_key == here.key and s.workload != job.workload
    ]
    if not known:
        return {}
    nearest = min(known, key=lambda s: s.workload.distance(job.workload)).workload
    trials = [t for s in known if s.workload == nearest for t in store.trials(s.id, readable=True)]
    fitting = [t for t in trials if is_whole(t.requested, nearest)]
    offered = [c for c in {c for t in fitting for c in (t.requested, t.ran)} if not unknown(c)]
    situations = situations_of(offered, facts, nearest, here)
    costs = costs_beside(costs_of(situations, aim), launches_of(situations, aim), default_of(fitting))
    return surprises(fitting, aim, costs)
