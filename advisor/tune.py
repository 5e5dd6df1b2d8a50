"""The loop: ask → check → seen before? → run → record → tell; then the finalists head to head with the default.

Everything that was learned is in the store after every step, so a tune that is killed goes on where it was when the same
command is given again. There is no second path to an answer: `suggest` reads the rows written here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from advisor.answer import SearchEnd, Stop
from advisor.clock import Bounded, BudgetSpent, Clock
from advisor.configuration import Configuration
from advisor.confirmation import confirm, confirmation_s
from advisor.cost import costs_of, weight_bytes
from advisor.errors import BadInput, NothingAdmissible, NotMeasured
from advisor.knobs import KNOBS, Reason, Verdict, knobs_for
from advisor.leftovers import owner, owner_is_alive, working_folder
from advisor.model import ModelFacts
from advisor.patience import PatientStore
from advisor.perform import finish_cut, run, search_trial, tried
from advisor.prospects import prospects_of, searched
from advisor.rows import StudyRecord
from advisor.runner import Runner, read_facts
from advisor.search import PAYBACK, UNLIKELY, Knowledge, surprises
from advisor.space import MEMORY_SHARE, Space, build_space
from advisor.store import Store
from advisor.suggest import keep_answer
from advisor.terminal import gib
from advisor.trial import Outcome, Trial
from advisor.tuning import Job, Listener, Tuning
from advisor.workloads import kind_of

#: This many failures in a row end a study: a loop that counts completed trials alone once ran 1,350 failures.
FAILURES_IN_A_ROW = 10

#: What the device reaches at best is measured where this much of the budget is left (seconds), and in this share of it.
CEILINGS_LEFT_S, CEILINGS_SHARE = 60.0, 0.2


def tune(job: Job, store: Store, runner: Runner, listen: Listener, now: Callable[[], float] = time.monotonic) -> int:
    """Tune until the budget is spent or nothing is left to try; return the study's id. Interrupting it loses nothing.

    now: the clock, for tests. Raises NotMeasured where the budget was spent before the model was read.
    """
    store = PatientStore(store, listen)
    listen({"event": "stage", "stage": "reading the model"})
    clock = Clock(job.budget.seconds, now, now() if job.began is None else job.began)
    bounded = Bounded(runner, clock)
    try:
        facts = facts_for(job, bounded)
    except BudgetSpent:
        text = f"nothing was measured: the budget of {clock.seconds:.0f} s was spent before the model was read"
        raise NotMeasured(text, "a longer --budget") from None
    space = build_space(facts, job.workload, job.machine.environment, job.objective, job.machine.free_bytes)
    refuse_nothing_left(job, space)
    earlier = {each.id: each for each in _studies_of_this_work(job, store)}
    study = store.open_study(job.source, job.workload, job.machine.environment, job.objective, job.budget, job.seed)
    state, tuning = "interrupted", None
    try:
        aliases = _opened(job, store, study, facts, space, listen)
        refuse_too_large(job, facts, space)
        _measure_ceilings(job, store, bounded, listen)
        with working_folder() as folder:
            tuning = Tuning(
                job, store, bounded, listen, facts, space, study, Path(folder), clock=clock, aliases=aliases
            )
            tuning.first = len(store.trials(study))
            tuning.warm = _warm(job, store, facts, study)
            _search(tuning)
            confirm(tuning)
        state = "done"
    finally:
        if tuning is not None and tuning.end is None:
            _stopped(tuning, Stop.INTERRUPTED)
        _close(store, study, state, tuning, earlier.get(study), len(space.admissible))
        keep_answer(store, study, space=space)
    return study


def _studies_of_this_work(job: Job, store: Store) -> list[StudyRecord]:
    architecture = job.source.architecture_key
    return store.studies_for(architecture, job.workload.key_for(architecture))


def _opened(job: Job, store: Store, study: int, facts: ModelFacts, space: Space, listen: Listener) -> list[Reason]:
    """Store what a study is about, and return the aliases that a tune which this one goes on with found."""
    store.save_facts(job.source, facts, study)
    aliases = [reason for reason in store.refusals(study) if reason.rule == "E1"]
    store.save_refusals(study, [*space.refusals, *aliases], len(space.admissible))
    listen({"event": "study", "space": space, "trials": store.trials(study)})
    return aliases


def _close(
    store: Store, study: int, state: str, tuning: Tuning | None, earlier: StudyRecord | None, admissible: int
) -> None:
    """Store how the study ended.

    Where nothing was run and the search was cut, what an earlier search said of the same rows stays: cut is all that is new.
    """
    ran, end = (tuning.ran, tuning.end) if tuning is not None else (False, None)
    tried = len(searched(store.trials(study)))
    if earlier is not None and not ran and _still_holds(earlier, end, tried, admissible):
        store.close_study(study, "done", end=earlier.end, ran=False, budget=earlier.budget)
    else:
        store.close_study(study, state, end=end, ran=ran)


def _still_holds(earlier: StudyRecord, end: SearchEnd | None, tried: int, admissible: int) -> bool:
    """Whether how an earlier search ended says more than how this one did, of as many trials and configurations."""
    before = earlier.end
    if before is None or earlier.state != "done" or before.tried != tried or earlier.admissible != admissible:
        return False
    return end is None or (end.stop.is_cut and end.left == before.left)


def facts_for(job: Job, runner: Runner) -> ModelFacts:
    """Have the model's facts read. Raises BadInput where a sequence is too long for it, or a batch needs a pad token."""
    facts = ModelFacts.of(read_facts(runner, {"source": job.source.request, "workload": job.workload.payload}))
    longest, most = max(job.workload.lengths), facts.max_positions
    if most is not None and longest > most - facts.position_offset:
        raise BadInput(f"--lengths {longest} is beyond the model's {most - facts.position_offset} positions")
    kind_of(job.workload).refuse(job.workload, facts, job.source.name)
    return facts


def refuse_too_large(job: Job, facts: ModelFacts, space: Space) -> None:
    """Raise NothingAdmissible where nothing fits on this device: before one trial after another runs out of its memory."""
    reasons = [reason for reason in space.refusals if reason.rule == "M1"]
    device, needed = job.machine.environment, weight_bytes(facts, space.baseline)
    if reasons and not space.admissible and needed > MEMORY_SHARE * device.memory_bytes:
        sizes = f"{gib(needed)}, and {device.device_name} has {gib(device.memory_bytes)}"
        text = f"the weights alone are {sizes}: this model needs more than one GPU, and advisor tunes for one"
        raise NothingAdmissible([text, *map(str, reasons)])


def refuse_nothing_left(job: Job, space: Space) -> None:
    """Raise NothingAdmissible where --only leaves nothing to try: the default alone is no answer to it.

    But where what it names would give a wrong output: then the default is the answer, with the rule that says so beside it.
    """
    if job.objective.only and not space.admissible:
        asked = {f"{knob}={name}" for knob, names in job.objective.only for name in names}
        reasons = [r for r in space.refusals if asked & {r.subject, r.about}] or space.refusals
        if not any(reason.verdict is Verdict.WRONG for reason in reasons):
            raise NothingAdmissible([f"{r}{f' → {r.remedy}' if r.remedy else ''}" for r in reasons])


def _measure_ceilings(job: Job, store: Store, runner: Bounded, listen: Listener) -> None:
    """Measure once in an environment what its device reaches at best; a failure leaves shares of it unsaid.

    Not where the budget is short: then the time is for the model, and another tune measures them.
    """
    left_s = runner.clock.left_s
    if store.ceilings(job.machine.environment.key) is not None or left_s < CEILINGS_LEFT_S:
        return
    listen({"event": "stage", "stage": "what the device reaches at best"})
    result = runner.run({"op": "ceilings"}, min(job.trial_timeout_s, CEILINGS_SHARE * left_s))
    if "outcome" not in result:
        store.save_ceilings(job.machine.environment, result)


def _search(tuning: Tuning) -> None:
    """Search, and say why it stopped: whatever ends it, what was found is kept."""
    try:
        _resume(tuning)
        stop = _searched(tuning)
    except BudgetSpent:
        stop = Stop.BUDGET
    _stopped(tuning, stop)


def _resume(tuning: Tuning) -> None:
    """Run again, under their own numbers, the search trials that a killed tune left behind.

    A run of a block that was broken off is not gone on with: the others of its block ran in another process, at another time.
    """
    for number, configuration, phase, block in tuning.store.abandoned(tuning.study, owner_is_alive):
        if not tuning.store.claim(tuning.study, number, owner(), tuning.lease_s()):
            continue
        if phase == "search":
            run(tuning, configuration, number)
        else:
            finish_cut(tuning, configuration, number, phase, block, "it was interrupted", None)


def _searched(tuning: Tuning) -> Stop:
    """Try the default, what must be, then what promises most, until there is a reason to stop; return it."""
    if not tried(tuning.trials, tuning.space.baseline):
        search_trial(tuning, tuning.space.baseline)
    if isinstance(tuning.runner, Bounded):
        tuning.runner.graceful = False  # there is an answer now: what comes next can wait for the next tune
    for configuration in tuning.job.also:
        if configuration in tuning.space.admissible and not tried(tuning.trials, configuration):
            search_trial(tuning, configuration)
    while not _hopeless(tuning):
        trials = [trial for trial in tuning.trials if trial.phase == "search"]
        following = _following(tuning, trials)
        if isinstance(following, Stop):
            return following
        search_trial(tuning, following)
    return Stop.FAILURES


def _following(tuning: Tuning, trials: Sequence[Trial]) -> Configuration | Stop:
    """Return what to try next, or why to stop."""
    budget, admissible = tuning.job.budget, _not_beyond_memory(tuning, trials)
    if budget.trials is not None and len(searched(trials)) >= budget.trials:
        return Stop.TRIALS
    known = _known(tuning, admissible, trials)
    end = known.ending(budget.payback_s) if budget.trials is None and not budget.exhaustive else None
    if end is not None:
        return {UNLIKELY: Stop.UNLIKELY, PAYBACK: Stop.PAYBACK}.get(end.reason, Stop.EVERYTHING)
    if not known.fresh:
        return Stop.EVERYTHING
    if (available_s := _available_s(tuning)) <= 0:
        return Stop.BUDGET
    fitting = known.within(available_s)
    proposal = _next_of_all(fitting.admissible, trials) if budget.exhaustive else fitting.ask(tuning.job.seed)
    return proposal or Stop.BUDGET


def _known(tuning: Tuning, admissible: Sequence[Configuration], trials: Sequence[Trial]) -> Knowledge:
    """Return what the search goes by. What a budget once cut comes last: it may well be cut again."""
    cut = {trial.requested for trial in tuning.store.trials(tuning.study) if trial.outcome is Outcome.CUT}
    known = Knowledge(
        [c for c in admissible if c not in cut], trials, tuning.job.objective.aim, tuning.space.costs, tuning.warm,
        tuning.usable,
    )  # fmt: skip
    return known if known.fresh else replace(known, admissible=admissible)


def _stopped(tuning: Tuning, stop: Stop) -> None:
    """Write down and say why the search stopped, with what is left and how likely that is to be better."""
    trials, default = tuning.trials, tuning.default
    space = replace(tuning.space, admissible=tuple(_not_beyond_memory(tuning, trials)))
    left = prospects_of(space, trials, tuning.job.objective, tuning.usable, default, warm=tuning.warm)
    if not left.left and stop is not Stop.INTERRUPTED:
        stop = Stop.EVERYTHING
    tried = len(searched(tuning.store.trials(tuning.study)))
    tuning.end = SearchEnd(stop, left.left, left.chance, left.promising, tried)
    tuning.listen({"event": "stopped", "why": stop.words, "left": left.left, "end": tuning.end})


def _warm(job: Job, store: Store, facts: ModelFacts, study: int) -> dict[Configuration, float]:
    """Return what the nearest workload that was measured here teaches of configurations; nothing where there is none."""
    here, aim = job.machine.environment, job.objective.aim
    known = [s for s in store.studies(job.source.architecture_key)
             if s.id != study and s.environment_key == here.key and s.workload != job.workload]  # fmt: skip
    if not known:
        return {}
    nearest = min(known, key=lambda s: s.workload.distance(job.workload)).workload
    trials = [t for s in known if s.workload == nearest for t in store.trials(s.id, readable=True)]
    fitting = [t for t in trials if set(t.requested) == set(knobs_for(nearest))]
    configurations = {c for t in fitting for c in (t.requested, t.ran)}
    offered = [c for c in configurations if all(name in KNOBS[knob].choices for knob, name in c.items())]
    return surprises(fitting, aim, costs_of(offered, facts, nearest, here, aim))


def _next_of_all(admissible: Sequence[Configuration], trials: Sequence[Trial]) -> Configuration | None:
    """Return one that was not tried: with the weights that are loaded now if there is one, for loading costs most."""
    seen = {trial.requested for trial in trials}
    fresh = [configuration for configuration in admissible if configuration not in seen]
    loaded = _weights(trials[-1].requested) if trials else None
    return next((c for c in fresh if _weights(c) == loaded), fresh[0] if fresh else None)


def _weights(configuration: Configuration) -> tuple[tuple[str, str], ...]:
    """Return the choices that the loaded weights depend on."""
    return tuple((k, v) for k, v in configuration.items() if KNOBS[k].reload or KNOBS[k].choices[v].traits.own_load)


def _not_beyond_memory(tuning: Tuning, trials: Sequence[Trial]) -> list[Configuration]:
    """Leave out what differs from one that ran out of memory by a larger batch alone (rule M2)."""
    failed = [t.requested for t in trials if t.outcome is Outcome.OUT_OF_MEMORY and "batch" in t.requested]
    least = {c.replaced(batch="1"): min(int(f["batch"]) for f in failed if f.replaced(batch="1") == c.replaced(batch="1"))
             for c in failed}  # fmt: skip
    seen = {trial.requested for trial in trials}
    return [
        c for c in tuning.space.admissible
        if c in seen or "batch" not in c or int(c["batch"]) <= least.get(c.replaced(batch="1"), 10**9)
    ]  # fmt: skip


def _available_s(tuning: Tuning) -> float:
    """Return the seconds of the budget that are there for another trial: those of the confirmation are set aside.

    Nothing is set aside where nothing is there to be confirmed, or where it could not be confirmed anyway: then a trial that
    the budget cuts has cost nothing.
    """
    left_s = tuning.clock.left_s
    aside_s = 0.0 if math.isinf(left_s) else confirmation_s(tuning, left_s)
    is_free = not aside_s or aside_s > left_s
    return (math.inf if left_s > 0 else 0.0) if is_free else left_s - aside_s


def _hopeless(tuning: Tuning) -> bool:
    """Whether the last FAILURES_IN_A_ROW search trials all failed; says what they had in common."""
    last = [trial for trial in tuning.trials if trial.phase == "search"][-FAILURES_IN_A_ROW:]
    if len(last) < FAILURES_IN_A_ROW or not all(trial.outcome.is_failure for trial in last):
        return False
    shared = set.intersection(*(set(trial.requested.items()) for trial in last))
    common = ", ".join(f"{knob} {name}" for knob, name in sorted(shared)) or "no choice"
    outcome, count = Counter(str(trial.outcome) for trial in last).most_common(1)[0]
    tuning.listen(
        {"event": "hopeless", "text": f"{len(last)} failures in a row ({outcome} × {count}); in common: {common}"}
    )
    return True
