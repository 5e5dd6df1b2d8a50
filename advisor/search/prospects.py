"""What was never tried: how many, how likely one of them is better, which promise most and what they would cost.

Of a study's own question that is stored with it, as its search left it. Of any other question, and of a study that was killed,
the space is built anew from the stored facts and environment, and the search's own model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from advisor.errors import BadInput
from advisor.knobs import Situation, unknown
from advisor.nouns.answer import Prospect, Stop
from advisor.nouns.configuration import Configuration
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Outcome, Trial
from advisor.search.cost import predicted_bytes
from advisor.search.space import Space, build_space
from advisor.storage.study_record import StudyRecord

#: How many are named.
NAMED = 5

#: A search that left more chance of something better than this has not said that there is nothing; the search's own CHANCE.
#: It stands here too, for `suggest` imports no search where the answer is stored.
CHANCE = 0.02


@dataclass(frozen=True)
class Prospects:
    """What is left of a space. chance: None where too little was measured to say; promising: likeliest first.

    pays: whether looking at it is expected to save more than it costs, as far as the search knew.
    """

    left: int = 0
    chance: float | None = None
    promising: tuple[Prospect, ...] = ()
    pays: bool = True

    @property
    def is_open(self) -> bool:
        """Whether what is left may well be better, or nobody can say yet: then nothing follows from what was tried.

        That arithmetic predicts nothing better is no reason: only what was measured shows how good predictions are.
        """
        return self.pays and self._may_be_better

    @property
    def is_dear(self) -> bool:
        """Whether what is left may well be better, and looking at it costs more than it is expected to save."""
        return not self.pays and self._may_be_better

    @property
    def _may_be_better(self) -> bool:
        return self.left > 0 and (self.chance is None or self.chance >= CHANCE)


def searched(trials: Sequence[Trial]) -> list[Trial]:
    """Return the search trials that say something: not those that run, or that were cut."""
    return [t for t in trials if t.phase == "search" and t.outcome not in (Outcome.RUNNING, Outcome.CUT)]


def space_of(study: StudyRecord, objective: Objective, *, drawn: bool) -> Space | None:
    """Return the space of a study's workload where it was measured, under any objective; None where that can't be built.

    drawn: whether the weights that are asked about are drawn at random; the study's can be others.
    """
    if study.facts is None:
        return None
    try:
        where = (study.facts, study.workload, study.environment, objective, study.environment.memory_bytes)
        return build_space(*where, drawn=drawn)
    except BadInput:  # its default has what this version can't measure
        return None


def stored_prospects(study: StudyRecord, trials: Sequence[Trial], objective: Objective) -> Prospects | None:
    """Return what the study's own search left, None where that is another question or out of date."""
    end = study.end
    if end is None or end.tried != len(searched(trials)) or study.objective.payload != objective.payload:
        return None
    if any(unknown(prospect.configuration) for prospect in end.promising):  # of a plugin that is not there any more
        return None
    return Prospects(end.left, end.chance, end.promising, pays=end.stop is not Stop.PAYBACK)


def prospects_left(
    study: StudyRecord,
    trials: Sequence[Trial],
    objective: Objective,
    usable: Callable[[Trial], bool],
    default: Trial | None,
    space: Callable[[], Space | None],
    *,
    is_own: bool,
) -> Prospects:
    """Return what is left as the study's own search stored it, else of the question's space, which `space` builds.

    is_own: whether the question leaves just what the study searched.
    """
    stored = stored_prospects(study, trials, objective) if is_own else None
    if stored is not None:
        return stored
    built = space()
    return Prospects() if built is None else prospects_of(built, trials, objective, usable, default)


def prospects_of(
    space: Space,
    trials: Sequence[Trial],
    objective: Objective,
    usable: Callable[[Trial], bool],
    default: Trial | None,
    *,
    having: Mapping[str, str] | None = None,
    warm: Mapping[Configuration, float] | None = None,
) -> Prospects:
    """Return what is left of a space. default: what ratios are over; having: of what has all of these choices alone.

    warm: what another workload teaches, as for the search.
    """
    from advisor.search.search import Knowledge

    told = searched(trials)
    wanted = [c for c in space.admissible if all(c.get(knob) == name for knob, name in (having or {}).items())]
    known = Knowledge(wanted, told, objective.aim, space.costs_beside(default), warm or {}, usable, space.layers)
    left = len(known.fresh)
    if not left:
        return Prospects(0, 0.0)
    over = default.ran if default is not None else None
    found = tuple(Prospect(p.configuration, p.ratio, p.seconds) for p in known.promising(NAMED, over))
    return Prospects(left, known.chance_of_better(), found)


def needed_bytes(study: StudyRecord, configuration: Configuration) -> float | None:
    """Return the bytes that a configuration is predicted to need at least: weights, scores and logits."""
    if study.facts is None:
        return None
    where = (configuration, study.workload.under(configuration), study.environment, study.facts)
    return predicted_bytes(Situation(*where))
