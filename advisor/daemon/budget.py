"""What is left of a job's budget: it counts what its slots have measured, not the time that it waited or was put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from advisor.nouns.objective import Budget
from advisor.nouns.trial import Trial


def left_of(budget: Budget, trials: Iterable[Trial], first: int) -> Budget:
    """Return what is left of a job's budget: its seconds less those that the busiest of its devices has spent.

    first: the number of the first trial that is the job's: earlier ones of its study were others'. A device that joins late gets
    what is left, so that the job takes no longer for it.
    """
    if budget.seconds is None:
        return budget
    spent_s: dict[str, float] = defaultdict(float)
    for trial in trials:
        if trial.number >= first and trial.reused_from is None:
            spent_s[trial.device_uuid] += trial.wall_s or 0.0
    return replace(budget, seconds=max(budget.seconds - max(spent_s.values(), default=0.0), 0.0))
