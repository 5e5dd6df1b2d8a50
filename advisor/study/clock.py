"""The budget's clock: it starts with the command, and whatever runs looks at it.

A run that the budget cuts has failed at nothing: :class:`BudgetSpent` is raised, and its trial is stored as cut, not as a
timeout of its configuration.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from advisor.measure.messages import Answer, Failure, Request
from advisor.measure.runner import LocalRunner, Runner
from advisor.nouns.trial import Outcome

#: What no answer can do without, the model's facts, the default's trial and the block that decides, may outlast the budget by
#: this share or so many seconds, whichever is more (the issue's promise: 1.1 × the budget, or 20 s more).
GRACE_SHARE, GRACE_S = 0.08, 10.0


class BudgetSpent(Exception):
    """The budget's time ended while something ran; it was stopped."""


class ShareSpent(BudgetSpent):
    """What of the budget was there for it ended while something ran; the rest is set aside, and is there."""


@dataclass(frozen=True)
class Clock:
    """How much of a budget is spent. began: when the command did, by `now`; seconds: of the budget, None without one."""

    seconds: float | None = None
    now: Callable[[], float] = time.monotonic
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return self.now() - self.began

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left, infinite without one; negative where it is overdrawn."""
        return float("inf") if self.seconds is None else self.seconds - self.elapsed_s

    @property
    def left_with_grace_s(self) -> float:
        """The same for what no answer can do without."""
        return self.left_s if self.seconds is None else self.left_s + max(GRACE_SHARE * self.seconds, GRACE_S)

    @property
    def is_over(self) -> bool:
        """Whether the budget's time is spent."""
        return self.left_s <= 0


class Bounded:
    """A runner within a budget. graceful: whether what runs now may use the grace; share: what it may use of the budget."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        """Run in this runner, by this clock."""
        self.runner, self.clock = runner, clock
        self.graceful = True
        self.share = Clock(None, clock.now)

    def run(self, request: Request, timeout_s: float) -> Answer:
        """Run a request within its own deadline and the budget. Raises BudgetSpent where the budget, or its share, ends it."""
        left_s = min(self._left_s, self.share.left_s)
        spent = ShareSpent if self.share.left_s < self._left_s else BudgetSpent
        if left_s <= 0:
            raise spent
        if isinstance(self.runner, LocalRunner):  # the wait for a device that is taken is part of the budget
            self.runner.lock_wait_s = None if math.isinf(left_s) else left_s
        began = self.clock.now()
        answer = self.runner.run(request, min(timeout_s, left_s))
        took_s = self.clock.now() - began
        is_timeout = isinstance(answer, Failure) and answer.outcome is Outcome.TIMEOUT
        if is_timeout and left_s <= max(timeout_s, took_s):
            raise spent
        return answer

    @property
    def interrupted(self) -> str:
        """Why nothing is run any more, "" while it is."""
        return self.runner.interrupted

    def allow(self, seconds: float) -> None:
        """Let what runs from now on take so many seconds of the budget at most, all that is left where they are infinite."""
        self.share = Clock(None if math.isinf(seconds) else seconds, self.clock.now, self.clock.now())

    @property
    def _left_s(self) -> float:
        return self.clock.left_with_grace_s if self.graceful else self.clock.left_s

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be run: the budget's time is spent, and the grace where what runs now may use it."""
        return self._left_s <= 0

    @property
    def start_s(self) -> float:
        """Seconds that a fresh process takes to be there: those that one took, not guessed."""
        return self.runner.start_s if isinstance(self.runner, LocalRunner) else 0.0

    @property
    def waited_s(self) -> float:
        """Seconds of the budget that another advisor measured on the device."""
        return self.runner.waited_s if isinstance(self.runner, LocalRunner) else 0.0

    def restart(self) -> None:
        """Have the next request run in a fresh process, and keep the device."""
        self.runner.restart()

    def close(self) -> None:
        """Free the device."""
        self.runner.close()
