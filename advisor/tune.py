"""The loop: ask → check → seen before? → run → record → tell; then the finalists head to head with the default.

Everything that was learned is in the store after every step, so a tune that is killed goes on where it was when the same
command is given again. There is no second path to an answer: `suggest` reads the rows written here.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.answer import SearchEnd, Stop
from advisor.clock import Bounded, BudgetSpent, Clock
from advisor.configuration import Configuration
from advisor.confirm import (
    STOPPING,
    affordable,
    block_ratios,
    compared,
    contestants,
    finalists,
    next_block,
    run_s,
)
from advisor.cost import costs_of, weight_bytes
from advisor.environment import Machine
from advisor.errors import BadInput, NothingAdmissible, NotMeasured
from advisor.gate import figures_found, known_figures, layout_request
from advisor.judge import objections, wrong
from advisor.knobs import KNOBS, Reason, Verdict, knobs_for
from advisor.leftovers import owner, owner_is_alive, working_folder
from advisor.measurement import Measurement
from advisor.method import METHOD
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Objective
from advisor.patience import PatientStore
from advisor.prospects import prospects_of, searched
from advisor.rows import StudyRecord
from advisor.runner import Runner, read_facts
from advisor.search import UNLIKELY, Knowledge, surprises
from advisor.space import MEMORY_SHARE, Space, build_space, refuse_unpadded
from advisor.store import Store
from advisor.suggest import keep_answer
from advisor.terminal import gib
from advisor.trial import FP32, Outcome, Quality, Trial, default_of
from advisor.workloads import Workload

#: This many failures in a row end a study: a loop that counts completed trials alone once ran 1,350 failures.
FAILURES_IN_A_ROW = 10

#: A running trial is given up for lost this long after its deadline (seconds): loading the reference comes before it.
LEASE_SLACK_S = 3600.0

#: What the device reaches at best is measured where this much of the budget is left (seconds), and in this share of it.
CEILINGS_LEFT_S, CEILINGS_SHARE = 60.0, 0.2


@dataclass(frozen=True)
class Job:
    """What is to be tuned, on what, and how much may be spent. trial_timeout_s: the deadline of one trial.

    also: configurations that are measured and confirmed whatever the search finds, where they are admissible. texts: where
    the user's own texts are (Lengths.texts), None where the bundled one is run. began: when the command did, by
    time.monotonic(), for the budget counts from there; None: when it is tuned. flags: the workload as the user spelled it,
    "" where that is its own flags.
    """

    source: ModelSource
    workload: Workload
    objective: Objective
    budget: Budget
    machine: Machine
    seed: int = 0
    trial_timeout_s: float = 600.0
    also: tuple[Configuration, ...] = ()
    texts: Mapping[str, Any] | None = None
    began: float | None = None
    flags: str = ""


Listener = Callable[[Mapping[str, Any]], None]


@dataclass
class Tuning:
    """A study being worked on: what stays the same from trial to trial.

    first: the number of the first trial of this invocation. What failed before it is tried again: a failure may have been the
    moment's (someone else's memory, a busy machine) and is not cached for ever. ran: whether it has run any. end: how its
    search ended.
    """

    job: Job
    store: Store
    runner: Runner
    listen: Listener
    facts: ModelFacts
    space: Space
    study: int
    folder: Path
    clock: Clock = field(default_factory=Clock)
    aliases: list[Reason] = field(default_factory=list)
    reference: str = ""
    first: int = 0
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    ran: bool = False
    end: SearchEnd | None = None

    @property
    def trials(self) -> list[Trial]:
        """The trials of the study, as stored, without the failures of earlier invocations; a wrong output stays wrong.

        Nor what was cut: nothing is known of it.
        """
        return [
            trial
            for trial in self.store.trials(self.study)
            if trial.outcome is not Outcome.CUT
            and (trial.number >= self.first or not trial.outcome.is_failure or trial.outcome is Outcome.WRONG_OUTPUT)
        ]

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        if trial.phase != "search":
            return False
        return not objections(trial, self.default, self.job.objective, self.facts)

    @property
    def default(self) -> Trial | None:
        """The newest search trial of the model's default that ran, right or wrong; None before it did."""
        return default_of(self.trials)

    @property
    def reference_path(self) -> Path:
        """The file that the worker writes the reference to."""
        return self.folder / "reference.pt"

    @property
    def baseline(self) -> Configuration:
        """What runs as the default, which everything is compared with."""
        default = self.default
        return default.ran if default is not None else self.space.baseline

    @property
    def lease_s(self) -> float:
        """How long a started trial is ours."""
        return self.job.trial_timeout_s + LEASE_SLACK_S

    @property
    def timeout_s(self) -> float:
        """The deadline of the next run; what is left of the budget is the runner's to see to."""
        return self.job.trial_timeout_s

    @property
    def is_over(self) -> bool:
        """Whether the budget's time is spent."""
        return self.clock.is_over


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
            _confirm(tuning)
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
    facts = ModelFacts.of(read_facts(runner, {"source": job.source.request, "output": job.workload.output}))
    longest, most = max(job.workload.lengths), facts.max_positions
    if most is not None and longest > most - facts.position_offset:
        raise BadInput(f"--lengths {longest} is beyond the model's {most - facts.position_offset} positions")
    refuse_unpadded(job.source.name, pads=facts.pads, batch=job.workload.batch)
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
        if not tuning.store.claim(tuning.study, number, owner(), tuning.lease_s):
            continue
        if phase == "search":
            _run(tuning, configuration, number, phase, block)
        else:
            _finish_cut(tuning, configuration, number, phase, block, "it was interrupted", None)


def _searched(tuning: Tuning) -> Stop:
    """Try the default, what must be, then what promises most, until there is a reason to stop; return it."""
    if not _of(tuning.trials, tuning.space.baseline):
        _trial(tuning, tuning.space.baseline)
    if isinstance(tuning.runner, Bounded):
        tuning.runner.graceful = False  # there is an answer now: what comes next can wait for the next tune
    for configuration in tuning.job.also:
        if configuration in tuning.space.admissible and not _of(tuning.trials, configuration):
            _trial(tuning, configuration)
    while not _hopeless(tuning):
        trials = [trial for trial in tuning.trials if trial.phase == "search"]
        following = _following(tuning, trials)
        if isinstance(following, Stop):
            return following
        _trial(tuning, following)
    return Stop.FAILURES


def _following(tuning: Tuning, trials: Sequence[Trial]) -> Configuration | Stop:
    """Return what to try next, or why to stop."""
    budget, admissible = tuning.job.budget, _not_beyond_memory(tuning, trials)
    if budget.trials is not None and len(searched(trials)) >= budget.trials:
        return Stop.TRIALS
    if budget.exhaustive:
        proposal = _next_of_all(admissible, trials)
    else:
        known = _known(tuning, admissible, trials)
        end = known.ending() if budget.trials is None else None
        if end is not None:
            return Stop.UNLIKELY if end.reason == UNLIKELY else Stop.EVERYTHING
        proposal = known.ask(tuning.job.seed)
    if proposal is None:
        return Stop.EVERYTHING
    return proposal if _has_time(tuning, trials) else Stop.BUDGET


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


def _has_time(tuning: Tuning, trials: Sequence[Trial]) -> bool:
    """Whether the budget has time for another trial, that of the confirmation set aside.

    Nothing is set aside where nothing is there to be confirmed, or where it could not be confirmed anyway: then a trial that
    the budget cuts has cost nothing.
    """
    left_s = tuning.clock.left_s
    if math.isinf(left_s):
        return True
    aside_s = _confirmation_s(tuning, left_s)
    if not aside_s or aside_s > left_s:
        return left_s > 0
    return _trial_s(tuning, trials) <= left_s - aside_s


def _trial_s(tuning: Tuning, trials: Sequence[Trial]) -> float:
    """Return the seconds that another search trial is expected to take: those of this study, without what came once."""
    walls = [trial.wall_s for trial in trials if trial.wall_s and trial.requested != tuning.space.baseline]
    if walls:
        return sum(walls) / len(walls)
    default = tuning.default
    once_s = tuning.runner.took_s.get("reference", 0.0) if isinstance(tuning.runner, Bounded) else 0.0
    return max((default.wall_s or 0.0) - once_s, 0.0) if default is not None else 0.0


def _confirmation_s(tuning: Tuning, left_s: float) -> float:
    """Return the seconds that the confirmation is expected to take of what is left; 0 where there is nothing to confirm."""
    rivals = _unconfirmed(tuning, _rivals(tuning))
    if not rivals:
        return 0.0
    return affordable(rivals, lambda kept: _block_s(tuning, kept), left_s, tuning.job.budget.blocks)[1]


def _block_s(tuning: Tuning, rivals: Sequence[Configuration]) -> float:
    """Return the seconds that a block of these and the default is expected to take."""
    trials, baseline = tuning.trials, tuning.baseline
    start_s = (tuning.runner.start_s if isinstance(tuning.runner, Bounded) else None) or 0.0
    return sum(run_s(trials, configuration, start_s) for configuration in (baseline, *rivals))


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


def _of(trials: Sequence[Trial], configuration: Configuration) -> list[Trial]:
    return [trial for trial in trials if trial.phase == "search" and trial.requested == configuration]


def _trial(tuning: Tuning, configuration: Configuration) -> Trial:
    """Run one search trial, or take it over from another study of the same work on the same machine."""
    if tuning.clock.is_over and configuration != tuning.space.baseline:
        raise BudgetSpent
    known = tuning.store.reusable(tuning.study, configuration)
    number = _start(tuning, configuration, "search", None)
    if known is not None and configuration != tuning.space.baseline and _counts_here(tuning, known[1]):
        row, trial = known
        trial = replace(trial, number=number, wall_s=0.0)
        tuning.store.finish_trial(tuning.study, trial, reused_from_id=row)
        keep_answer(tuning.store, tuning.study, space=tuning.space)
        tuning.listen({"event": "trial", "trial": trial, "best": _best(tuning)})
        return trial
    return _run(tuning, configuration, number, "search", None)


def _counts_here(tuning: Tuning, known: Trial) -> bool:
    """Whether a trial of another study says what would be found now: today's method, this device, the same reference.

    What was imported has no device, for it was run elsewhere. The reference's words name the texts that were run.
    """
    if known.quality is None or known.reading.get("method") != METHOD:
        return False
    default = tuning.default.quality if tuning.default is not None else None
    held_to = tuning.reference or (default.reference if default is not None else "")
    return known.device_uuid == tuning.job.machine.uuid and held_to in ("", known.quality.reference)


def _start(tuning: Tuning, configuration: Configuration, phase: str, block: int | None) -> int:
    """Write down that a trial begins, and return its number."""
    return tuning.store.start_trial(
        tuning.study, configuration, phase=phase, block=block, owner=owner(), lease_s=tuning.lease_s
    )


def _run(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None) -> Trial:
    """Run a trial in the worker, with one retry in a fresh process for what may be transient, and store it.

    Raises BudgetSpent where the budget ended it: its configuration has failed at nothing, and is tried again another time.
    """
    began, attempts = tuning.clock.now(), 1
    start = {"event": "start", "number": number, "configuration": configuration, "phase": phase, "block": block}
    try:
        tuning.listen(start)
        request = _request(tuning, configuration, phase)
        result = tuning.runner.run(request, tuning.timeout_s)
        if result.get("transient") and not tuning.is_over:
            attempts = 2
            tuning.runner.restart()
            tuning.store.renew(tuning.study, number, tuning.lease_s)
            result = tuning.runner.run(request, tuning.timeout_s)
    except BudgetSpent:
        _finish_cut(tuning, configuration, number, phase, block, "the budget ended", tuning.clock.now() - began)
        raise
    except BaseException:
        tuning.store.release(tuning.study, number)
        raise
    tuning.ran = True
    trial = _told(tuning, configuration, number, phase, block, result)
    trial = replace(trial, attempts=attempts, wall_s=tuning.clock.now() - began)
    if result.get("alias"):
        _refuse_alias(tuning, configuration, trial, str(result["alias"]))
    tuning.store.finish_trial(tuning.study, trial)
    keep_answer(tuning.store, tuning.study, space=tuning.space)
    tuning.listen({"event": "trial", "trial": trial, "best": _best(tuning)})
    return trial


def _finish_cut(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None,
                reason: str, wall_s: float | None) -> None:  # fmt: skip
    """Store that a trial was cut, which says nothing of its configuration."""
    trial = Trial(number, configuration, None, Outcome.CUT, reason, phase, block, wall_s=wall_s,
                  device_uuid=tuning.job.machine.uuid)  # fmt: skip
    tuning.store.finish_trial(tuning.study, trial)
    tuning.listen({"event": "trial", "trial": trial, "best": _best(tuning)})


def _request(tuning: Tuning, configuration: Configuration, phase: str) -> dict[str, Any]:
    job, trials = tuning.job, tuning.trials
    request: dict[str, Any] = {
        "op": "trial",
        "source": job.source.request,
        "facts": tuning.facts.payload,
        "workload": job.workload.payload,
        "sample": job.workload.sample(tuning.facts.windows),
        "texts": job.texts,
        "configuration": dict(configuration),
        "gate": None,
        "measured": [],
        "timing": {"stopping": dict(STOPPING), "incumbent_s": None},
    }
    if phase == "confirm":
        return request
    return request | {
        "gate": _gate(tuning, configuration, trials, request),
        "measured": [trial.ran.key for trial in trials if trial.phase == "search" and trial.outcome is Outcome.OK],
        "timing": {"stopping": {}, "incumbent_s": None if configuration in job.also else _incumbent_s(tuning)},
    }


def _incumbent_s(tuning: Tuning) -> float | None:
    """Seconds a round of the best so far, where a slower one can be stopped early: not where memory or energy is the aim."""
    best = _best(tuning)
    if (
        best is None
        or tuning.job.budget.exhaustive
        or tuning.job.objective.metric not in ("tokens_per_s", "slowest_batch_s")
    ):
        return None
    return best.value("round_s")


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


def _told(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None,
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
    """Return what is stored of a worker's rounds."""
    state = {"after_each_round": rounds["states"], "discarded": rounds["discarded"]}
    wall_s = tuple(rounds["wall_s"])
    found = [
        Measurement("round_s", "s", wall_s, phase, state),
        Measurement("tokens_per_s", "tokens/s", tuple(workload.tokens / s for s in wall_s), phase),
        Measurement("slowest_batch_s", "s", tuple(rounds["slowest_s"]), phase),
    ]
    if workload.counts_sequences:
        per_s = tuple(len(workload.lengths) / s for s in wall_s)
        found.append(Measurement("sequences_per_s", "sequences/s", per_s, phase))
    if rounds.get("joules_per_token"):
        found.append(Measurement("joules_per_token", "J/token", (rounds["joules_per_token"],), phase))
    if any(rounds["gpu_s"]):
        found.append(Measurement("gpu_round_s", "s", tuple(rounds["gpu_s"]), phase))
    return tuple(found)


def _refuse_alias(tuning: Tuning, configuration: Configuration, trial: Trial, text: str) -> None:
    subject = " ".join(f"{k}={v}" for k, v in configuration.items() if trial.ran.get(k) != v) or str(configuration)
    if all(reason.subject != subject for reason in tuning.aliases):
        tuning.aliases.append(Reason("E1", Verdict.ALIAS, f"{text}; the figures count for what ran", subject=subject))
        tuning.store.save_refusals(tuning.study, [*tuning.space.refusals, *tuning.aliases])


def _best(tuning: Tuning) -> Trial | None:
    found = [trial for trial in tuning.trials if tuning.usable(trial)]
    return max(found, key=lambda trial: trial.score(tuning.job.objective.aim), default=None)


def _confirm(tuning: Tuning) -> None:
    """Run the default and the finalists in blocks and compare them block by block, as many whole blocks as there is time for.

    Every block counts, those of earlier tunes too; they are compared after each, so that nothing of an interruption is lost.
    """
    _compare(tuning)
    if tuning.default is None:
        return
    rivals = _unconfirmed(tuning, _rivals(tuning))
    rivals, _ = affordable(rivals, lambda kept: _block_s(tuning, kept), tuning.clock.left_s, tuning.job.budget.blocks)
    for _ in range(tuning.job.budget.blocks):
        rivals = _unconfirmed(tuning, rivals)
        if not rivals:
            break
        if _block_s(tuning, rivals) > tuning.clock.left_s:
            tuning.listen({"event": "unconfirmed", "text": "the budget has no time for another block"})
            break
        try:
            _run_block(tuning, list(dict.fromkeys([*rivals, *_must_be(tuning)])))
        except BudgetSpent:
            break
        finally:
            _compare(tuning)


def _rivals(tuning: Tuning) -> list[Configuration]:
    """Return who is to be compared with the default by what is known now; nobody where no blocks are asked for."""
    default, aim = tuning.default, tuning.job.objective.aim
    if default is None or not tuning.job.budget.blocks:
        return []
    right = [trial for trial in tuning.trials if tuning.usable(trial)]
    found = finalists(right, default, aim, is_default_right=tuning.usable(default))
    # Where there is no time for all, the last are left out: what must be comes right after the best.
    return list(dict.fromkeys([*found[:1], *_must_be(tuning), *found[1:]]))


def _must_be(tuning: Tuning) -> list[Configuration]:
    """Return what meets the default whatever the search found: these are compared with one another, so in every block."""
    default, also = tuning.default, tuning.job.also
    usable = (t for t in tuning.trials if t.requested in also and tuning.usable(t)) if also else ()
    return list(dict.fromkeys(t.ran for t in usable if default is not None and t.ran != default.ran))


def _unconfirmed(tuning: Tuning, rivals: Sequence[Configuration]) -> list[Configuration]:
    """Return those that have not met the default in as many blocks as are asked for."""
    trials, baseline, aim = tuning.store.trials(tuning.study), tuning.baseline, tuning.job.objective.aim
    return [c for c in rivals if len(block_ratios(trials, c, baseline, aim)) < tuning.job.budget.blocks]


def _run_block(tuning: Tuning, rivals: Sequence[Configuration]) -> None:
    """Run the default and these once each, in random order, each in a fresh process."""
    block, order = next_block(tuning.store.trials(tuning.study)), [tuning.baseline, *rivals]
    random.Random(tuning.job.seed * 1000 + block).shuffle(order)
    for configuration in order:
        if tuning.clock.is_over:
            raise BudgetSpent
        tuning.runner.restart()
        _run(tuning, configuration, _start(tuning, configuration, "confirm", block), "confirm", block)


def _compare(tuning: Tuning) -> None:
    """Store what all blocks say by now of all who were in one; comparisons without their blocks stay as they are."""
    trials, baseline = tuning.store.trials(tuning.study), tuning.baseline
    found = compared(trials, contestants(trials, baseline), baseline, tuning.job.objective.aim)
    stored = tuning.store.comparisons(tuning.study)
    made = {(comparison.candidate, comparison.baseline) for comparison in found}
    kept = [c for c in stored if (c.candidate, c.baseline) not in made]
    if [*kept, *found] != stored:
        tuning.store.save_comparisons(tuning.study, [*kept, *found])
        keep_answer(tuning.store, tuning.study, space=tuning.space)
