"""Coverage: what a study's search covered of the question that is asked, which may be another than the study's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from advisor.knobs import Reason
from advisor.nouns.model import ModelSource, is_drawn
from advisor.nouns.objective import Objective, Tier
from advisor.nouns.trial import Trial
from advisor.search.prospects import searched, space_of
from advisor.search.space import Space
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib

#: The rule of what ran as something else than was asked for: seen of the machine, whatever is asked.
_SEEN = "E1"

#: The rules that are of a question alone: its quality tier, and its --only.
_OF_A_QUESTION = ("T0", "U0")


@dataclass(frozen=True)
class Coverage:
    """What was refused for a question about a model, how many configurations are admissible, and how many a study tried of those.

    given: the space of the study's own question, where the caller has built it already. stored: the study's own refusals.
    """

    study: StudyRecord
    source: ModelSource
    objective: Objective
    trials: Sequence[Trial]
    stored: tuple[Reason, ...]
    given: Space | None = None

    @property
    def is_own(self) -> bool:
        """Whether the question leaves just what the study searched: then what it stored is the answer."""
        drawn = is_drawn(self.study.weights_digest)
        return _limits(self.objective, drawn=self.source.has_random_weights) == _limits(
            self.study.objective, drawn=drawn
        )

    @cached_property
    def space(self) -> Space | None:
        """The space of the question, None where that can't be built."""
        if self.is_own and self.given is not None:
            return self.given
        return space_of(self.study, self.objective, drawn=self.source.has_random_weights)

    @property
    def refusals(self) -> tuple[Reason, ...]:
        """What rules refuse."""
        if self.is_own:
            return self.stored
        if self.space is None:
            return tuple(reason for reason in self.stored if reason.rule not in _OF_A_QUESTION)
        return (*self.space.refusals, *(reason for reason in self.stored if reason.rule == _SEEN))

    @property
    def tried(self) -> int:
        """How many configurations were tried of what is admissible, failures included."""
        if self.is_own or self.space is None:
            return count_tried(self.objective, self.trials)
        return len({t.requested for t in searched(self.trials)} & set(self.space.admissible))

    @property
    def admissible(self) -> int | None:
        """How many are admissible, None where that is not known."""
        if self.is_own:
            return self.study.admissible
        return None if self.space is None else len(self.space.admissible)

    @property
    def is_untouched(self) -> bool:
        """Whether something is left to be tried, of another question than the study's, and nothing of it was."""
        return not self.is_own and bool(self.admissible) and self.tried == 0

    @property
    def leaves_nothing(self) -> bool:
        """Whether rules leave nothing at all, as far as that is known."""
        if self.given is None and self.admissible is not None:
            return self.admissible == 0
        return self.space is not None and not self.space.admissible

    @property
    def searched_words(self) -> str:
        """Return what the study searched for where that is another question than this, else ""."""
        if self.is_own:
            return ""
        mine, theirs = self.objective, self.study.objective
        parts = [f"for quality {theirs.quality}"] if theirs.quality != mine.quality else []
        if theirs.max_memory_bytes != mine.max_memory_bytes:
            parts.append(
                "in any memory" if theirs.max_memory_bytes is None else f"within {gib(theirs.max_memory_bytes)}"
            )
        if theirs.only != mine.only:
            kept = "; ".join(f"{knob} {', '.join(names)}" for knob, names in theirs.only)
            parts.append(f"among {kept} only" if kept else "among all choices")
        if (omits := _omits_lossy(theirs, drawn=is_drawn(self.study.weights_digest))) != _omits_lossy(
            mine, drawn=self.source.has_random_weights
        ):
            parts.append("without lossy choices" if omits else "with lossy choices, judged or not")
        if sorted(theirs.ignored_rules) != sorted(mine.ignored_rules):
            parts.append(f"ignoring {', '.join(theirs.ignored_rules) or 'no rule'}")
        if is_drawn(self.study.weights_digest) != self.source.has_random_weights:
            parts.append("with random weights" if is_drawn(self.study.weights_digest) else "with trained weights")
        return ", ".join(parts)


def count_tried(objective: Objective, trials: Sequence[Trial]) -> int:
    """Return how many of what --only leaves was tried: the default is measured beside it."""
    tried = {t.requested for t in searched(trials)}
    return sum(objective.leaves(configuration) for configuration in tried)


def weights_words(study: StudyRecord) -> str:
    """Return whose speeds a study's are, for a model of other weights."""
    return f"{'randomly drawn' if is_drawn(study.weights_digest) else 'other'} weights of the same shapes"


def _limits(objective: Objective, *, drawn: bool) -> tuple[object, ...]:
    """Return all that decides what an objective leaves of a space. What is to be the best, and a latency, decide nothing."""
    omits_lossy = _omits_lossy(objective, drawn=drawn)
    rules, only = sorted(objective.ignored_rules), sorted(objective.only)
    return objective.quality, objective.max_memory_bytes, omits_lossy, rules, only


def _omits_lossy(objective: Objective, *, drawn: bool) -> bool:
    """Whether lossy choices are left out although their tier was asked for: nothing could judge them."""
    return drawn and not objective.allow_unjudged and objective.quality is not Tier.EXACT
