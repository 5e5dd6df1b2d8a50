"""One tune at work: what it carries out steps with, and what of it is not in the store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from advisor.advice.kept_answers import keep_answer
from advisor.errors import StoreError
from advisor.knobs import Reason
from advisor.machine.leftovers import owner
from advisor.nouns.answer import SearchEnd
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.step import Step
from advisor.nouns.trial import Trial
from advisor.search.space import Space
from advisor.storage.claims import BEAT_S
from advisor.storage.store import Store
from advisor.study.clock import Bounded
from advisor.study.tuning import Job, Listener, Snapshot

#: After a beat that was not heard another one is tried this soon (seconds): a lease may end meanwhile.
AGAIN_S = 1.0

#: Tells the tunes of one process from one another.
_NUMBERS = count()


def own_name() -> str:
    """Return a name for a tune of this process: nobody else has it."""
    return owner(next(_NUMBERS))


@dataclass(frozen=True)
class Found:
    """What came of a claimed trial.

    row: of the trial in another study whose measurements these are (`Store.reusable`), None where it was run. alias: what is
    refused from now on, for something else ran than was asked for.
    """

    trial: Trial
    row: int | None = None
    alias: Reason | None = None


@dataclass
class Tuner:
    """One tune of a study, perhaps one of several.

    first, unfinished, warm: see `Snapshot`. reference: in words, what this tune's outputs are held to, "" before it was written.
    probed: whether the device's ceilings were tried for. ran: whether anything was run. is_spent: whether the budget ended a
    run; share_spent: whether what is there of it for the search did. end: how its search ended. is_waiting: whether it was said
    that others are waited for.
    """

    job: Job
    store: Store
    runner: Bounded
    listen: Listener
    facts: ModelFacts
    space: Space
    study: int
    folder: Path
    owner: str = field(default_factory=own_name)
    first: int = 0
    warm: Mapping[Configuration, float] = field(default_factory=dict)
    reference: str = ""
    probed: bool = True
    ran: bool = False
    is_spent: bool = False
    share_spent: bool = False
    unfinished: frozenset[int] = frozenset()
    end: SearchEnd | None = None
    is_waiting: bool = False

    def snapshot(self) -> Snapshot:
        """Return the study as it is at this moment."""
        now = self.store.standing(self.study)
        return Snapshot(
            self.job,
            self.facts,
            self.space,
            now.trials,
            now.taken(self.owner),
            now.comparisons,
            self.first,
            self.warm,
            left_s=self.runner.clock.left_s,
            start_s=self.runner.start_s,
            has_ceilings=self.probed,
            stop=None if self.end is None else self.end.stop,
            is_spent=self.is_spent,
            share_spent=self.share_spent,
            unfinished=self.unfinished,
        )

    def claim(self, step: Step, seen: Snapshot) -> tuple[int, ...] | None:
        """Claim a step that was chosen by a snapshot: its trials' numbers, or None where another tune was quicker."""
        return self.store.claim(self.study, step, self.owner, seen=seen.begun)

    def take(self, seen: Snapshot, found: Iterable[Found]) -> None:
        """Store and tell what comes of a step, trial by trial; what is another tune's by now is told, and dropped.

        Figures are told as the objective's job gets them, where it has so many calls: as the best's and the default's are.
        """
        stored = False
        for each in found:
            if each.alias is not None:
                self.store.add_refusal(self.study, each.alias)
            if not self.store.finish_trial(self.study, each.trial, self.owner, reused_from_id=each.row):
                text = f"trial {each.trial.number} was taken over by another tune, for this one was not heard of"
                self.listen({"event": "lost", "trial": each.trial, "text": f"{text}: what it found is dropped"})
                continue
            seen, stored = seen.after(each.trial), True
            told = next((trial for trial in seen.trials if trial.number == each.trial.number), each.trial)
            self.listen({"event": "trial", "trial": told, "best": seen.best, "default": seen.default})
        if stored:
            keep_answer(self.store, self.study, space=self.space)

    @property
    def reference_path(self) -> Path:
        """The file that the worker writes this tune's reference to."""
        return self.folder / "reference.pt"

    @property
    def timeout_s(self) -> float:
        """The deadline of the next run; what is left of the budget is the runner's to see to."""
        return self.job.trial_timeout_s


@contextmanager
def heartbeat(store: Store, study: int, name: str, every_s: float = BEAT_S) -> Iterator[None]:
    """Say every few seconds that a tune is at work, while it waits for its worker. A server that was away hears it at once."""
    over = threading.Event()

    def beat() -> None:
        wait_s = every_s
        while not over.wait(wait_s):
            try:
                store.keep(study, name)
                wait_s = every_s
            except StoreError:
                wait_s = min(AGAIN_S, every_s)

    thread = threading.Thread(target=beat, name="advisor-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(max(every_s, AGAIN_S))
