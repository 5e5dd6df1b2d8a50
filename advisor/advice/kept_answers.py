"""Kept answers: what a study comes to under its own objective is stored beside it, so that SQL needs no second decision.

Any other question is answered from the trials.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from advisor.advice.coverage import count_tried
from advisor.advice.ranking import Candidate
from advisor.advice.suggest import recommend
from advisor.errors import DamagedRow, NothingAdmissible, NotMeasured
from advisor.nouns.answer import NONE_RIGHT, Answer
from advisor.nouns.model import ModelSource, is_drawn
from advisor.quality.method import METHOD
from advisor.search.space import Space
from advisor.storage.rows import now
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord


def answer_of(store: Store, study: StudyRecord, *, space: Space | None = None) -> Answer:
    """Return what a study comes to under its own objective and for its own weights, "none-right" where nothing is left.

    Raises NotMeasured where it has no finished trial yet, or its model's facts are not known.
    """
    return answer_and_best(store, study, space=space)[0]


def source_of(study: StudyRecord) -> ModelSource:
    """Return the model that a study measured, as far as a question needs it: wherever its files are."""
    digest = study.weights_digest
    weights = "random" if is_drawn(digest) else "trained"
    return ModelSource(study.model_name, "", {}, weights, digest, has_tokenizer=False)


def answer_and_best(store: Store, study: StudyRecord, *, space: Space | None = None) -> tuple[Answer, Candidate | None]:
    """Return the same, and the fastest that was found where that is not confirmed: see `Recommendation.best`."""
    made_at = now()  # before anything is read: what is written meanwhile makes the answer stale
    try:
        found = recommend(store, source_of(study), study, study.objective, space=space)
    except NothingAdmissible as error:
        tried = count_tried(study.objective, store.trials(study.id))
        none = Answer(None, NONE_RIGHT, None, None, None, 0, tried, study.admissible, error.reasons, METHOD, made_at)
        return none, None
    chosen, ratio, low, high, blocks = found.chosen, None, None, None, 0
    if chosen is not None and chosen.comparison is not None:
        ratio, blocks = chosen.comparison.ratio, len(chosen.comparison.block_ratios)
        low, high = chosen.comparison.interval if blocks > 1 else (None, None)  # one block has none
    evidence = (ratio, low, high, blocks, found.tried, found.admissible)
    against = [f"{c.configuration}: {text}" for c in found.rejected for text in c.objections] if chosen is None else []
    why = tuple(text for text in (found.why, *against, *found.notes) if text)
    return Answer(found.configuration, found.verdict, *evidence, why, METHOD, made_at), found.best


def keep_answer(store: Store, study_id: int, *, space: Space | None = None) -> None:
    """Store what a study comes to by now; a study that has no answer yet keeps none. space: as for `recommend`."""
    with suppress(NotMeasured):
        store.save_answer(study_id, answer_of(store, store.study(study_id), space=space))


def _keep_if_readable(store: Store, study_id: int) -> None:
    """Do the same, and note a damaged row: the other studies' answers do not wait for it."""
    try:
        keep_answer(store, study_id)
    except DamagedRow as error:
        store.damaged.append(str(error))


def keep_answers(store: Store, study_ids: Iterable[int] | None = None) -> int:
    """Store the answers of these studies, or of all whose stored one is missing or of another method; return of how many.

    Each is a transaction of its own: broken off, it goes on where it was when it is called again.
    """
    ids = list(store.unanswered(METHOD) if study_ids is None else study_ids)
    for study_id in ids:
        _keep_if_readable(store, study_id)
    return len(ids)
