"""What comes next: a pure function of a snapshot. Left-behind trials, the default, what must be, what promises most, the blocks.

Whoever asks, a tune, one of several or a daemon's, gets the same step of the same snapshot. What another tune runs is taken to
come out as predicted, so that something else is proposed; where that is all there is left, its end is waited for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from advisor.knobs import weights_of
from advisor.nouns.answer import Stop
from advisor.nouns.configuration import Configuration, stated
from advisor.nouns.objective import Tier
from advisor.nouns.step import Baseline, Discard, EndSearch, Probe, Search, Step, Wait
from advisor.nouns.trial import Outcome, Trial
from advisor.quality.judge import has_reference
from advisor.quality.objections import unjudged_words
from advisor.search.late import mendable, opened
from advisor.search.prospects import searched
from advisor.search.search import PAYBACK, UNLIKELY, Knowledge
from advisor.study.confirmation import confirmation_s, confirmation_step, left_to_confirm_s
from advisor.study.tuning import Snapshot

#: This many failures in a row end a study: a loop that counts completed trials alone once ran 1,350 failures.
FAILURES_IN_A_ROW = 10

#: What the device reaches at best is measured where this much of the budget is left (seconds).
CEILINGS_LEFT_S = 60.0


def next_step(seen: Snapshot) -> Step:
    """Return what a tune does next. It is over with `Done`, and not before."""
    for trial in seen.left_behind:
        if (step := _picked_up(seen, trial)) is not None:
            return step
    return _search_step(seen) if seen.stop is None else confirmation_step(seen)


def _picked_up(seen: Snapshot, trial: Trial) -> Step | None:
    """Return what becomes of a trial that nobody runs any more: a search trial is run again under its number, while it can be.

    A run of a block that was broken off is not gone on with: the others of its block ran in another process, at another time.
    """
    is_possible = trial.requested in {seen.space.baseline, *seen.space.admissible}
    if trial.phase != "search" or not is_possible or seen.tried(trial.requested):
        return Discard(trial.number, trial.requested, trial.phase, trial.block)
    if seen.is_spent or seen.stop is not None:
        return None  # the next tune's
    again = Baseline if trial.requested == seen.space.baseline else Search
    return again(trial.requested, trial.number)


def _search_step(seen: Snapshot) -> Step:
    """Try the default, what must be, then what promises most, until there is a reason to stop."""
    if not seen.has_ceilings and seen.left_s >= CEILINGS_LEFT_S:
        return Probe()
    if seen.is_spent or seen.share_spent:
        return EndSearch(Stop.BUDGET)
    if (must_be := _must_be(seen)) is not None:
        return must_be
    if (end := _hopeless(seen)) is not None:
        return end
    following = _following(seen)
    if isinstance(following, Stop):
        return _after_all(seen, following)
    return Search(following, most_s=_available_s(seen))


def _hopeless(seen: Snapshot) -> EndSearch | None:
    """Return the end of a search that nothing can come of: nothing can be judged, or everything fails."""
    if (text := _why_unjudged(seen)) and not seen.job.budget.exhaustive:
        return EndSearch(Stop.UNJUDGED, text)
    text = in_common(seen.searched)
    return EndSearch(Stop.FAILURES, text) if text else None


def _why_unjudged(seen: Snapshot) -> str:
    """Say why nothing can be judged, where there is no reference to judge by and that is not allowed; else "".

    The default's trial says so of all: without, the search would take the default's precision for the fault, and try others.
    """
    quality = seen.default.quality if seen.default is not None else None
    if quality is None or seen.job.objective.allow_unjudged or has_reference(quality):
        return ""
    return f"of no configuration it is known whether it is right: {unjudged_words(quality, Tier.EXACT)}"


def _after_all(seen: Snapshot, stop: Stop) -> Step:
    """Return the step where nothing is left to be tried, and why.

    Another tune may still run the default: what is searched beside it needs no word of it, but what is right is told by it.
    """
    if seen.default is None and (theirs := _running(seen.tried(seen.space.baseline))):
        return Wait(theirs) if seen.left_s > 0 else EndSearch(Stop.BUDGET)
    return _end(seen, stop)


def _must_be(seen: Snapshot) -> Step | None:
    """Return the step to what is measured whatever is found: the default first, for what is right is told by it."""
    over = EndSearch(Stop.BUDGET)
    if not seen.tried(seen.space.baseline):
        return Baseline(seen.space.baseline)
    untried = (c for c in seen.job.also if c in seen.space.admissible and not seen.tried(c))
    following = next(untried, None)
    if following is None:
        return None
    return Search(following) if seen.left_s > 0 else over


def _end(seen: Snapshot, stop: Stop) -> Step:
    """Return the end of the search; but where others still measure, and there is time, what they find may be gone on from."""
    theirs = _running(seen.searched)
    if theirs and stop is not Stop.BUDGET and _available_s(seen) > 0:
        return Wait(theirs)
    return EndSearch(stop)


def _running(trials: Sequence[Trial]) -> tuple[int, ...]:
    return tuple(trial.number for trial in trials if trial.outcome is Outcome.RUNNING)


def _following(seen: Snapshot) -> Configuration | Stop:
    """Return what to try next, or why to stop: what is tried late only where it may be, unless nothing else is worth it."""
    budget, trials = seen.job.budget, seen.searched
    admissible = worth_trying(seen)
    if budget.trials is not None and len(searched(trials)) + len(_running(trials)) >= budget.trials:
        return Stop.TRIALS
    costs, objective = seen.space.costs_beside(seen.default), seen.job.objective
    now = opened(admissible, trials, objective.aim, seen.usable, costs, objective.max_memory_bytes)
    following = _following_among(seen, now)
    return (
        _following_among(seen, admissible) if isinstance(following, Stop) and len(now) < len(admissible) else following
    )


def _following_among(seen: Snapshot, admissible: Sequence[Configuration]) -> Configuration | Stop:
    """Return which of these to try next, or why none."""
    budget = seen.job.budget
    known = _known(seen, admissible)
    payback_s = _payback_s(seen)
    end = known.ending(payback_s) if budget.trials is None and not budget.exhaustive else None
    if end is not None:
        return {UNLIKELY: Stop.UNLIKELY, PAYBACK: Stop.PAYBACK}.get(end.reason, Stop.EVERYTHING)
    if not known.fresh:
        return Stop.EVERYTHING
    if (available_s := _available_s(seen)) <= 0:
        return Stop.BUDGET
    fitting = known.within(min(available_s, _longest_s(seen)))
    if payback_s is not None and fitting.fresh and not (fitting := fitting.worth(payback_s)).fresh:
        return Stop.PAYBACK
    proposal = _next_of_all(seen, fitting.admissible) if budget.exhaustive else fitting.ask(seen.job.seed)
    return proposal or Stop.BUDGET


def _payback_s(seen: Snapshot) -> float | None:
    """Return the seconds of work that are to pay for the search: those that were asked for, or those of the objective's job."""
    budget = seen.job.budget
    if not seen.job.objective.aim.is_of_time:
        return None  # a share of memory is no share of time
    job, default = seen.amortised, seen.default
    of_job_s = job.lasts_s(default) if budget.job_pays and job is not None and default is not None else None
    return budget.payback_s if of_job_s is None else of_job_s


def _known(seen: Snapshot, admissible: Sequence[Configuration]) -> Knowledge:
    """Return what the search goes by. What a budget once cut comes last: it may well be cut again."""
    cut = {trial.requested for trial in seen.stored if trial.outcome is Outcome.CUT}
    aim, costs, layers = seen.job.objective.aim, seen.space.costs_beside(seen.default), seen.space.layers
    left = [c for c in admissible if c not in cut]
    known = Knowledge(left, seen.searched, aim, costs, seen.warm, seen.usable, layers)
    return known if known.fresh else replace(known, admissible=admissible)


def _next_of_all(seen: Snapshot, admissible: Sequence[Configuration]) -> Configuration | None:
    """Return one that was not tried, with the weights that are loaded on this device if there is one."""
    here = [trial for trial in seen.searched if trial.device_uuid == seen.job.machine.uuid] or seen.searched
    loaded, switches = here[-1].requested if here else None, seen.facts.switches_attention
    return next_of_all(admissible, seen.searched, loaded, switches_attention=switches)


def next_of_all(
    admissible: Sequence[Configuration],
    trials: Sequence[Trial],
    loaded: Configuration | None,
    *,
    switches_attention: bool = True,
) -> Configuration | None:
    """Return one that was not tried: with the weights of one that is loaded if there is one, for loading costs most."""
    tried = {trial.requested for trial in trials}
    fresh = [configuration for configuration in admissible if configuration not in tried]

    def weights(configuration: Configuration) -> tuple[tuple[str, str], ...]:
        return weights_of(configuration, switches_attention=switches_attention)

    same = None if loaded is None else weights(loaded)
    return next((c for c in fresh if weights(c) == same), fresh[0] if fresh else None)


def worth_trying(seen: Snapshot) -> Sequence[Configuration]:
    """Return what is admissible, less what needs more memory than there is, or is wrong whatever is done, as trials showed."""
    return mendable(not_beyond_memory(seen.space.admissible, seen.trials), seen.searched, seen.facts)


def not_beyond_memory(admissible: Sequence[Configuration], trials: Sequence[Trial]) -> list[Configuration]:
    """Leave out what differs from one that ran out of memory by a larger batch alone (rule M2)."""
    failed = [t.requested for t in trials if t.outcome is Outcome.OUT_OF_MEMORY and "batch" in t.requested]
    least = {
        c.replaced(batch="1"): min(int(f["batch"]) for f in failed if f.replaced(batch="1") == c.replaced(batch="1"))
        for c in failed
    }
    tried = {trial.requested for trial in trials}
    return [
        c
        for c in admissible
        if c in tried or "batch" not in c or int(c["batch"]) <= least.get(c.replaced(batch="1"), 10**9)
    ]


def _available_s(seen: Snapshot) -> float:
    """Return the seconds of the budget that are there for another trial: those of the confirmation are set aside.

    Nothing is set aside where nothing is there to be confirmed, or where it could not be confirmed anyway: then a trial that
    the budget cuts has cost nothing, while it is no longer than others were (`_longest_s`).
    """
    aside_s = 0.0 if math.isinf(seen.left_s) else confirmation_s(seen)
    is_free = not aside_s or aside_s > left_to_confirm_s(seen)
    return (math.inf if seen.left_s > 0 else 0.0) if is_free else seen.left_s - aside_s


def _longest_s(seen: Snapshot) -> float:
    """Return how long a trial may be expected to be: what is left of the budget, or as long as one was that ran.

    What a trial took says little of the next, for the default's has the reference in it; but what is expected to compile for
    longer than there is time is begun for nothing.
    """
    return max([seen.left_s, *(trial.wall_s or 0.0 for trial in seen.searched)])


def in_common(trials: Sequence[Trial]) -> str:
    """Return what the last FAILURES_IN_A_ROW search trials had in common, in words, where they all failed; else ""."""
    last = [trial for trial in trials if trial.outcome is not Outcome.RUNNING][-FAILURES_IN_A_ROW:]
    if len(last) < FAILURES_IN_A_ROW or not all(trial.outcome.is_failure for trial in last):
        return ""
    knobs = stated(trial.requested for trial in trials)
    shared = set.intersection(*(set(trial.requested.over(knobs)) for trial in last))
    common = ", ".join(f"{knob} {name}" for knob, name in sorted(shared)) or "no choice"
    outcome, count = Counter(str(trial.outcome) for trial in last).most_common(1)[0]
    return f"{len(last)} failures in a row ({outcome} × {count}); in common: {common}"
