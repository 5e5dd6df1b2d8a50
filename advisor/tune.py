"""The loop: ask → check → seen before? → run → record → tell; then the finalists head to head with the default.

Everything that was learned is in the store after every step, so a tune that is killed goes on where it was when the same
command is given again. There is no second path to an answer: `suggest` reads the rows written here.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.configuration import Configuration
from advisor.environment import Machine
from advisor.errors import AdvisorError, BadInput, NothingAdmissible
from advisor.knobs import KNOBS, Reason, Verdict, knobs_for
from advisor.leftovers import owner, owner_is_alive, working_folder
from advisor.measurement import Comparison, Measurement
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Budget, Metric, Objective
from advisor.patience import PatientStore
from advisor.runner import Runner, read_facts
from advisor.search import ask, exhausted, surprises
from advisor.space import MEMORY_SHARE, Space, build_space, costs_of, recommendable, refuse_unpadded, weight_bytes
from advisor.store import Store
from advisor.suggest import keep_answer
from advisor.trial import Outcome, Quality, Trial
from advisor.workloads import Workload

#: How many candidates meet the default in each block of the confirmation (measurement.md, "Confirmation").
FINALISTS = 2

#: Who is further than this from the best of the search is no finalist (torchao's autoquant measures again within 10 %).
NEAR = 1.1

#: This many failures in a row end a study: a loop that counts completed trials alone once ran 1,350 failures.
FAILURES_IN_A_ROW = 10

#: The gate judges the first batches until it has 64 sequences and 20,000 tokens (measurement.md, B.6), or 50,000 tokens:
#: the reference runs them one at a time in fp32.
GATE = (64, 20_000, 50_000)

#: A running trial is given up for lost this long after its deadline (seconds): loading the reference comes before it.
LEASE_SLACK_S = 3600.0

_CONFIRM_STOPPING = {"least": 5, "most": 10, "seconds": 20.0, "least_long": 5, "seconds_long": 30.0}


@dataclass(frozen=True)
class Job:
    """What is to be tuned, on what, and how much may be spent. trial_timeout_s: the deadline of one trial.

    also: configurations that are measured and confirmed whatever the search finds, where they are admissible.
    """

    source: ModelSource
    workload: Workload
    objective: Objective
    budget: Budget
    machine: Machine
    seed: int = 0
    trial_timeout_s: float = 600.0
    also: tuple[Configuration, ...] = ()


Listener = Callable[[Mapping[str, Any]], None]


@dataclass
class Tuning:
    """A study being worked on: what stays the same from trial to trial.

    first: the number of the first trial of this invocation. What failed before it is tried again: a failure may have been the
    moment's (someone else's memory, a busy machine) and is not cached for ever.
    """

    job: Job
    store: Store
    runner: Runner
    listen: Listener
    facts: ModelFacts
    space: Space
    study: int
    folder: Path
    began: float = field(default_factory=time.monotonic)
    aliases: list[Reason] = field(default_factory=list)
    reference: str = ""
    first: int = 0
    warm: Mapping[Configuration, float] = field(default_factory=dict)

    @property
    def trials(self) -> list[Trial]:
        """The trials of the study, as stored, without the failures of earlier invocations; a wrong output stays wrong."""
        return [
            trial
            for trial in self.store.trials(self.study)
            if trial.number >= self.first or not trial.outcome.is_failure or trial.outcome is Outcome.WRONG_OUTPUT
        ]

    def usable(self, trial: Trial) -> bool:
        """Whether a trial may be recommended."""
        return recommendable(trial, self.job.objective, self.facts)

    @property
    def lease_s(self) -> float:
        """How long a started trial is ours."""
        return self.job.trial_timeout_s + LEASE_SLACK_S

    @property
    def timeout_s(self) -> float:
        """The deadline of the next run: a trial's own, or what is left of the budget, but a minute at least."""
        if self.job.budget.seconds is None:
            return self.job.trial_timeout_s
        return min(self.job.trial_timeout_s, max(self.job.budget.seconds - self.elapsed_s, 60.0))

    @property
    def is_over(self) -> bool:
        """Whether the budget's time is spent."""
        return self.job.budget.seconds is not None and self.elapsed_s > self.job.budget.seconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since this invocation began."""
        return time.monotonic() - self.began


def tune(job: Job, store: Store, runner: Runner, listen: Listener) -> int:
    """Tune until the budget is spent or nothing is left to try; return the study's id. Interrupting it loses nothing."""
    store = PatientStore(store, listen)
    listen({"event": "stage", "stage": "reading the model"})
    facts = facts_for(job, runner)
    space = build_space(facts, job.workload, job.machine.environment, job.objective, job.machine.free_bytes)
    refuse_nothing_left(job, space)
    study = store.open_study(job.source, job.workload, job.machine.environment, job.objective, job.budget, job.seed)
    store.save_facts(job.source, facts, study)
    aliases = [
        reason for reason in store.refusals(study) if reason.rule == "E1"
    ]  # of a tune that this one goes on with
    store.save_refusals(study, [*space.refusals, *aliases], len(space.admissible))
    listen({"event": "study", "space": space, "trials": store.trials(study)})
    state = "interrupted"
    try:
        refuse_too_large(job, facts, space)
        _measure_ceilings(job, store, runner, listen)
        with working_folder() as folder:
            tuning = Tuning(job, store, runner, listen, facts, space, study, Path(folder), aliases=aliases)
            tuning.first = len(store.trials(study))
            tuning.warm = _warm(job, store, facts, study)
            _resume(tuning)
            _search(tuning)
            _confirm(tuning)
        state = "done"
    finally:
        store.close_study(study, state)
        keep_answer(store, study)
    return study


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
        sizes = f"{needed / 2**30:.1f} GiB, and {device.device_name} has {device.memory_bytes / 2**30:.1f} GiB"
        text = f"the weights alone are {sizes}: this model needs more than one GPU, and advisor tunes for one"
        raise NothingAdmissible([text, *map(str, reasons)])


def refuse_nothing_left(job: Job, space: Space) -> None:
    """Raise NothingAdmissible where --only leaves nothing to try: the default alone is no answer to it."""
    if job.objective.only and not space.admissible:
        asked = {f"{knob}={name}" for knob, names in job.objective.only for name in names}
        reasons = [r for r in space.refusals if asked & {r.subject, r.about}] or space.refusals
        raise NothingAdmissible(list(map(str, reasons)))


def _measure_ceilings(job: Job, store: Store, runner: Runner, listen: Listener) -> None:
    """Measure once in an environment what its device reaches at best; a failure leaves shares of it unsaid."""
    if store.ceilings(job.machine.environment.key) is not None:
        return
    listen({"event": "stage", "stage": "what the device reaches at best"})
    result = runner.run({"op": "ceilings"}, job.trial_timeout_s)
    if "outcome" not in result:
        store.save_ceilings(job.machine.environment, result)


def _resume(tuning: Tuning) -> None:
    """Run again, under their own numbers, the trials that a killed tune left behind."""
    for number, configuration, phase, block in tuning.store.abandoned(tuning.study, owner_is_alive):
        if tuning.store.claim(tuning.study, number, owner(), tuning.lease_s):
            _run(tuning, configuration, number, phase, block)


def _search(tuning: Tuning) -> None:
    if not _of(tuning.trials, tuning.space.baseline):
        _trial(tuning, tuning.space.baseline)
    for configuration in tuning.job.also:
        if configuration in tuning.space.admissible and not _of(tuning.trials, configuration):
            _trial(tuning, configuration)
    while (left := _trials_left(tuning)) > 0 and not _hopeless(tuning):
        trials = [trial for trial in tuning.trials if trial.phase == "search"]
        proposal = _proposal(tuning, trials, left)
        if proposal is None:
            break
        _trial(tuning, proposal)
        if tuning.is_over:
            break


def _proposal(tuning: Tuning, trials: Sequence[Trial], left: int) -> Configuration | None:
    """Return what to try next, None where everything was tried or the rest is not worth the time."""
    admissible, job = _not_beyond_memory(tuning, trials), tuning.job
    if job.budget.exhaustive:
        return _next_of_all(admissible, trials)
    if _is_enough(tuning, trials):
        return None
    return ask(admissible, trials, left, job.seed, aim=job.objective.aim, costs=tuning.space.costs, warm=tuning.warm,
               usable=tuning.usable)  # fmt: skip


def _is_enough(tuning: Tuning, trials: Sequence[Trial]) -> bool:
    """Whether the search may end although there is time: what is left will most likely not be better. Says so."""
    if tuning.job.budget.trials is not None:
        return False
    aim = tuning.job.objective.aim
    enough = exhausted(tuning.space.admissible, trials, aim=aim, costs=tuning.space.costs, warm=tuning.warm,
                       usable=tuning.usable)  # fmt: skip
    left = len(set(tuning.space.admissible) - {trial.requested for trial in trials})
    if enough and left:
        tuning.listen({"event": "enough", "left": left})
    return enough


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
    return tuple((k, v) for k, v in configuration.items() if KNOBS[k].reload or KNOBS[k].choices[v].own_load)


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


def _trials_left(tuning: Tuning) -> int:
    """How many more search trials the budget has room for, the confirmation's time set aside."""
    done = [trial for trial in tuning.trials if trial.phase == "search" and trial.outcome is not Outcome.RUNNING]
    left = len(tuning.space.admissible) + 1
    if tuning.job.budget.trials is not None:
        left = tuning.job.budget.trials - len(done)
    if tuning.job.budget.seconds is not None and done:
        walls = [trial.wall_s for trial in done if trial.wall_s]
        mean_s = sum(walls) / len(walls) if walls else 1.0
        left_s = tuning.job.budget.seconds - tuning.elapsed_s - _confirmation_s(done, tuning.job)
        left = min(left, int(left_s / max(mean_s, 0.01)))
    return left


def _confirmation_s(done: Sequence[Trial], job: Job) -> float:
    """Seconds that the confirmation will take: blocks × (default and finalists) × (start and load, first call, rounds)."""
    ok = [trial for trial in done if trial.outcome is Outcome.OK and trial.measurement("round_s")]
    fastest = sorted(ok[1:], key=lambda trial: -trial.tokens_per_s)[:FINALISTS]
    load_s = max((trial.load_s or 0.0 for trial in ok), default=0.0)
    start_s, cost_s = 10.0 + load_s, 0.0
    also = [trial for trial in ok if trial.requested in job.also and trial not in fastest]
    for trial in [*ok[:1], *fastest, *also]:
        rounds = trial.measurement("round_s")
        round_s = rounds.median if rounds else 0.0
        timed_s = min(max(5 * round_s, 1.0), max(float(_CONFIRM_STOPPING["seconds"]), 3 * round_s))
        cost_s += start_s + (trial.first_call_s or 0.0) + 3 * round_s + timed_s
    return job.budget.blocks * cost_s


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
    known = tuning.store.reusable(tuning.study, configuration)
    number = tuning.store.start_trial(
        tuning.study, configuration, phase="search", block=None, owner=owner(), lease_s=tuning.lease_s
    )
    if known is not None and known[1].requested != tuning.space.baseline:
        row, trial = known
        trial = replace(trial, number=number, wall_s=0.0)
        if trial.quality is not None and not trial.quality.failures:
            tuning.store.finish_trial(tuning.study, trial, reused_from_id=row)
            keep_answer(tuning.store, tuning.study)
            tuning.listen({"event": "trial", "trial": trial, "best": _best(tuning)})
            return trial
    return _run(tuning, configuration, number, "search", None)


def _run(tuning: Tuning, configuration: Configuration, number: int, phase: str, block: int | None) -> Trial:
    """Run a trial in the worker, with one retry in a fresh process for what may be transient, and store it."""
    tuning.listen({"event": "start", "number": number, "configuration": configuration, "phase": phase, "block": block})
    began, attempts = time.monotonic(), 1
    try:
        request = _request(tuning, configuration, phase)
        result = tuning.runner.run(request, tuning.timeout_s)
        if result.get("transient") and not tuning.is_over:
            attempts = 2
            tuning.runner.restart()
            tuning.store.renew(tuning.study, number, tuning.lease_s)
            result = tuning.runner.run(request, tuning.timeout_s)
    except BaseException:
        tuning.store.release(tuning.study, number)
        raise
    trial = _told(tuning, configuration, number, phase, block, result)
    trial = replace(trial, attempts=attempts, wall_s=time.monotonic() - began)
    if result.get("alias"):
        _refuse_alias(tuning, configuration, trial, str(result["alias"]))
    tuning.store.finish_trial(tuning.study, trial)
    keep_answer(tuning.store, tuning.study)
    tuning.listen({"event": "trial", "trial": trial, "best": _best(tuning)})
    return trial


def _request(tuning: Tuning, configuration: Configuration, phase: str) -> dict[str, Any]:
    job, trials = tuning.job, tuning.trials
    gate_workload = job.workload.sample(*GATE)
    request: dict[str, Any] = {
        "op": "trial",
        "source": job.source.request,
        "facts": tuning.facts.payload,
        "workload": job.workload.payload,
        "gate_workload": gate_workload.payload,
        "configuration": dict(configuration),
        "gate": None,
        "measured": [],
        "timing": {"stopping": dict(_CONFIRM_STOPPING), "incumbent_s": None},
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
    path = tuning.folder / "reference.pt"
    if not tuning.reference:
        tuning.reference = _write_reference(tuning, request, path)
    precision = tuning.reference.partition(",")[0]
    # A study that goes on with more memory, or less, can have another reference than it began with: errors are not comparable.
    baseline = next((t.quality for t in trials if t.requested == tuning.space.baseline and t.quality is not None
                     and t.quality.reference.partition(",")[0] == precision), None)  # fmt: skip
    is_baseline = configuration == tuning.space.baseline
    return {
        "path": str(path),
        "reference": tuning.reference,
        "precision": precision,
        "baseline": None if is_baseline or baseline is None else baseline.payload,
        "is_baseline": is_baseline,
    }


def _write_reference(tuning: Tuning, request: Mapping[str, Any], path: Path) -> str:
    """Have the reference written: fp32 and eager, one sequence at a time; in the checkpoint's dtype where fp32 does not fit."""
    fits = tuning.facts.parameters * 4 <= MEMORY_SHARE * tuning.job.machine.free_bytes
    own = tuning.space.baseline["precision"]
    precisions = ["fp32", own] if fits and not tuning.facts.prequantized else [own]
    result: dict[str, Any] = {}
    for precision in precisions:
        configuration = tuning.space.baseline.replaced(attention="eager", precision=precision, packing="padded")
        tuning.listen({"event": "stage", "stage": f"reference in {precision}"})
        asked = {
            **request,
            "op": "reference",
            "workload": request["gate_workload"],
            "path": str(path),
            "configuration": dict(configuration),
        }
        result = tuning.runner.run(asked, tuning.job.trial_timeout_s)
        if result.get("transient"):
            result = tuning.runner.run(asked, tuning.job.trial_timeout_s)
        if "outcome" not in result:
            return f"{precision}, eager, one sequence at a time, {result['positions']} positions"
    raise AdvisorError(f"the reference can't be computed: {result['reason']}")


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
        reading=result.get("reading") or {}, reused_from=reused, measurements=measurements,
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
    if workload.kind == "embed":
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
    found = [t for t in tuning.trials if recommendable(t, tuning.job.objective, tuning.facts)]
    return max(found, key=lambda trial: trial.score(tuning.job.objective.aim), default=None)


def _confirm(tuning: Tuning) -> None:
    """Run the default and the finalists in blocks, each in a fresh process, in random order, and compare block by block."""
    baseline = next((t for t in _of(tuning.trials, tuning.space.baseline) if t.outcome is Outcome.OK), None)
    if baseline is None:
        return
    finalists = _finalists(tuning, baseline)
    if not finalists or not tuning.job.budget.blocks:
        return
    contestants = [baseline.ran, *finalists]
    blocks = _blocks(tuning.trials, contestants, tuning.job.budget.blocks)
    _run_blocks(tuning, contestants, blocks)
    aim = tuning.job.objective.aim
    found = [c for finalist in finalists if (c := _compared(tuning.trials, finalist, baseline.ran, blocks, aim))]
    made = {(comparison.candidate, comparison.baseline) for comparison in found}
    kept = [c for c in tuning.store.comparisons(tuning.study) if (c.candidate, c.baseline) not in made]
    tuning.store.save_comparisons(tuning.study, [*kept, *found])


def _finalists(tuning: Tuning, baseline: Trial) -> list[Configuration]:
    """Return the best that may be recommended, better than the default where that may be, and near the best."""
    aim = tuning.job.objective.aim
    right = [t for t in tuning.trials if recommendable(t, tuning.job.objective, tuning.facts)]
    ranked = sorted(right, key=lambda trial: -trial.score(aim))
    beaten = baseline.score(aim) if any(t.ran == baseline.ran for t in ranked) else 0.0
    near = ranked[0].score(aim) / NEAR if ranked else 0.0
    rivals = [t.ran for t in ranked if t.ran != baseline.ran and beaten < t.score(aim) >= near]
    also = [t.ran for t in ranked if t.ran != baseline.ran and t.requested in tuning.job.also]
    return list(dict.fromkeys([*list(dict.fromkeys(rivals))[:FINALISTS], *also]))


def _blocks(trials: Sequence[Trial], contestants: Sequence[Configuration], count: int) -> range:
    """Return the numbers of the blocks to be run or gone on with.

    The last set is gone on with where it was broken off, or is the answer where it is whole and had the same contestants. A
    newcomer gets new blocks with everybody: run beside the default of another day, it would be compared with that day.
    """
    held: dict[int, set[Configuration]] = {}
    for trial in trials:
        if trial.phase == "confirm" and trial.block is not None:
            held.setdefault(trial.block, set()).add(trial.requested)
    if not held:
        return range(1, count + 1)
    first = (max(held) - 1) // count * count + 1
    last = [held.get(block, set()) for block in range(first, first + count)]
    everyone = set.union(*last)
    is_whole = all(block == everyone for block in last)
    if everyone == set(contestants) or (not is_whole and everyone < set(contestants)):
        return range(first, first + count)
    return range(first + count, first + 2 * count)


def _run_blocks(tuning: Tuning, contestants: Sequence[Configuration], blocks: range) -> None:
    for block in blocks:
        order = list(contestants)
        random.Random(tuning.job.seed * 1000 + block).shuffle(order)
        for configuration in order:
            if _in_block(tuning.trials, configuration, block) is None:
                tuning.runner.restart()
                number = tuning.store.start_trial(
                    tuning.study, configuration, phase="confirm", block=block, owner=owner(), lease_s=tuning.lease_s
                )
                _run(tuning, configuration, number, "confirm", block)


def _in_block(trials: Sequence[Trial], configuration: Configuration, block: int) -> Trial | None:
    found = [t for t in trials if t.phase == "confirm" and t.block == block and t.requested == configuration]
    return found[-1] if found else None


def _compared(
    trials: Sequence[Trial], candidate: Configuration, baseline: Configuration, blocks: range, aim: Metric
) -> Comparison | None:
    """Return the comparison over the blocks in which both ran as themselves and were seen, None where there is none."""
    ratios = []
    for block in blocks:
        ours, theirs = (_in_block(trials, configuration, block) for configuration in (candidate, baseline))
        both = [t for t in (ours, theirs) if t is not None and t.outcome is Outcome.OK and t.ran == t.requested]
        scores = [t.score(aim) for t in both]
        if len(scores) == 2 and all(scores):
            ratios.append(scores[0] / scores[1])
    return Comparison(candidate.key, baseline.key, tuple(ratios)) if ratios else None
