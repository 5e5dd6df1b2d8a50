"""Do a step that `advisor.study.next_step` chose, and say what came of it. Nothing is decided here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from advisor.advice.kept_answers import keep_answer
from advisor.measure.messages import Ceilings, CeilingsAsked
from advisor.measure.runner import Interrupted
from advisor.nouns.answer import SearchEnd, Stop
from advisor.nouns.step import Baseline, Compare, Confirm, Discard, EndSearch, Probe, Search, Step, Wait
from advisor.search.prospects import prospects_of, searched
from advisor.study.attempt import cut, search_trial
from advisor.study.block import run_block
from advisor.study.clock import BudgetSpent
from advisor.study.next_step import worth_trying
from advisor.study.tuner import Found, Tuner
from advisor.study.tuning import INTERRUPTED, Snapshot

#: What the device reaches at best is measured in this share of the budget.
CEILINGS_SHARE = 0.2

#: How long others are left alone before their trials are looked at again, seconds.
PAUSE_S = 0.25


def perform(tuner: Tuner, seen: Snapshot, step: Step, numbers: Sequence[int]) -> Iterator[Found]:
    """Do a step that was claimed, and yield what came of each of its trials as soon as it is known.

    numbers: of the trials. Where the budget's time ends, what was to be run is told to be cut.
    """
    # What no answer can do without may outlast the budget; what comes after it can wait for the next tune.
    tuner.runner.graceful = isinstance(step, Baseline) or (isinstance(step, Confirm) and step.decides)
    tuner.runner.allow(step.most_s if isinstance(step, Search) else math.inf)
    if not isinstance(step, Wait):
        tuner.is_waiting = False
    match step:
        case Search(configuration):
            yield search_trial(tuner, seen, configuration, numbers[0])
        case Confirm():
            yield from run_block(tuner, seen, step, numbers)
        case Discard(number, configuration, phase, block):
            yield Found(cut(seen, configuration, number, phase, block, INTERRUPTED))
        case Probe():
            _measure_ceilings(tuner)
        case Compare(comparisons):
            tuner.store.save_comparisons(tuner.study, comparisons)
            keep_answer(tuner.store, tuner.study, space=tuner.space)
        case EndSearch(stop, text):
            end_search(tuner, seen, stop, text)
        case Wait(theirs):
            _wait(tuner, theirs)


def _wait(tuner: Tuner, theirs: Sequence[int]) -> None:
    """Sleep until one of these trials is over, or left behind, or the budget's time is: beside a measurement nobody computes."""
    if not tuner.is_waiting:
        trials = f"trial{'s' if len(theirs) > 1 else ''} {', '.join(map(str, theirs))}"
        tuner.listen({"event": "stage", "stage": f"waiting: another tune of this study runs {trials}"})
        tuner.is_waiting = True
    while tuner.store.still_taken(tuner.study, theirs) == set(theirs) and not tuner.runner.clock.is_over:
        if tuner.runner.interrupted:
            raise Interrupted(tuner.runner.interrupted)
        time.sleep(PAUSE_S)


def _measure_ceilings(tuner: Tuner) -> None:
    """Measure once in an environment what its device reaches at best; a failure leaves shares of it unsaid."""
    tuner.probed = True
    tuner.listen({"event": "stage", "stage": "what the device reaches at best"})
    share_s = CEILINGS_SHARE * tuner.runner.clock.left_s
    try:
        found = tuner.runner.run(CeilingsAsked(), min(tuner.timeout_s, share_s))
    except BudgetSpent:
        return
    if isinstance(found, Ceilings):
        tuner.store.save_ceilings(tuner.job.machine.environment, found.reached)


def end_search(tuner: Tuner, seen: Snapshot, stop: Stop, text: str = "") -> None:
    """Note and say why the search stopped, with what is left and how likely that is to be better."""
    if text:
        tuner.listen({"event": "hopeless", "text": text})
    space = replace(seen.space, admissible=tuple(worth_trying(seen)))
    objective = seen.job.objective
    left = prospects_of(space, seen.trials, objective, seen.usable, seen.default, warm=seen.warm)
    if not left.left and stop is not Stop.INTERRUPTED:
        stop = Stop.EVERYTHING
    tuner.end = SearchEnd(stop, left.left, left.chance, left.promising, len(searched(seen.stored)))
    tuner.listen({"event": "stopped", "why": stop.words, "left": left.left, "end": tuner.end})
