"""What a study came to, in the database: its comparisons, its refusals and its answer, stored and read back.

For `advisor.storage.store`: functions that take a connection, inside its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, text, update

from advisor.errors import StoreError
from advisor.knobs import Reason, Verdict
from advisor.nouns.answer import Answer
from advisor.nouns.checked import Malformed, is_text, matches, parsed, test_of
from advisor.nouns.measurement import Comparison
from advisor.storage.keyed_rows import configuration_ids, configuration_of, insert_unless_there
from advisor.storage.rows import are_samples, as_json, finite, in_row, moment, now, plain, readable, refuse
from advisor.storage.selects import selected
from advisor.storage.studies import lock
from advisor.storage.tables import COMPARISONS, CONFIGURATIONS, RECOMMENDATIONS, REFUSALS, STUDIES


def answer_values(answer: Answer) -> dict[str, Any]:
    """Return the columns of an answer, but for its configuration's id."""
    return {
        "verdict": answer.verdict,
        "ratio": finite("ratio", answer.ratio),
        "low": finite("low", answer.low),
        "high": finite("high", answer.high),
        "blocks": answer.blocks,
        "tried": answer.tried,
        "admissible": answer.admissible,
        "why": as_json(list(answer.why)),
        "made_at": answer.made_at or now(),
        "method": answer.method,
    }


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison's columns, statistics too."""
    low, high = comparison.interval
    return {
        "ratio": finite("ratio", comparison.ratio),
        "low": finite("low", low),
        "high": finite("high", high),
        "block_ratios": as_json(list(comparison.block_ratios)),
        "blocks": len(comparison.block_ratios),
        "verdict": comparison.verdict,
        "made_at": now(),
        "planned": comparison.planned,
    }


def _refusal_values(reason: Reason) -> dict[str, Any]:
    """Return a refusal's columns."""
    return {
        "subject": reason.subject,
        "about": reason.about,
        "rule": reason.rule,
        "verdict": str(reason.verdict),
        "reason": plain(reason.text),
        "remedy": plain(reason.remedy),
    }


def replace_comparisons(
    connection: Connection, study_id: int, comparisons: Sequence[Comparison], columns: Sequence[dict[str, Any]]
) -> None:
    """Store these as a study's comparisons, instead of what was stored. Raises StoreError for an unknown key.

    columns: of each from :func:`comparison_values`, whose statistics take time that no lock should be held for.
    """
    keys = {key for comparison in comparisons for key in (comparison.candidate, comparison.baseline)}
    known = select(CONFIGURATIONS.c.key, CONFIGURATIONS.c.id).where(CONFIGURATIONS.c.key.in_(keys))
    lock(connection, study_id)
    ids = {row.key: row.id for row in connection.execute(known)}
    if missing := keys - set(ids):
        raise StoreError(f"compared, but not stored: configuration {', '.join(sorted(missing))}")
    connection.execute(delete(COMPARISONS).where(COMPARISONS.c.study_id == study_id))
    values = [
        {**each, "study_id": study_id, "candidate_id": ids[one.candidate], "baseline_id": ids[one.baseline]}
        for one, each in zip(comparisons, columns, strict=True)
    ]
    if values:
        connection.execute(insert(COMPARISONS), values)


def replace_refusals(
    connection: Connection, study_id: int, reasons: Iterable[Reason], admissible: int | None, beside: str
) -> None:
    """Store these as a study's refusals, instead of what was stored: see :meth:`advisor.storage.store.Store.save_refusals`."""
    lock(connection, study_id)
    kept = [reason for reason in refusals(connection, study_id) if reason.rule == beside]
    values = {(r.subject, r.about, r.rule): {"study_id": study_id, **_refusal_values(r)} for r in (*reasons, *kept)}
    connection.execute(delete(REFUSALS).where(REFUSALS.c.study_id == study_id))
    if values:
        connection.execute(insert(REFUSALS), list(values.values()))
    if admissible is not None:
        connection.execute(update(STUDIES).where(STUDIES.c.id == study_id).values(admissible=admissible))


def add_refusal(connection: Connection, study_id: int, reason: Reason) -> None:
    """Store one more refusal, unless there is one of its subject, about and rule."""
    insert_unless_there(connection, REFUSALS, {"study_id": study_id, **_refusal_values(reason)})


def save_answer(connection: Connection, study_id: int, answer: Answer, columns: Mapping[str, Any]) -> None:
    """Store what a study comes to, instead of what was stored, unless that was made of a later moment's rows.

    columns: from :func:`answer_values`, made before anybody was waited for: the moment of the rows is in them.
    """
    ids = configuration_ids(connection, answer.configuration)
    values = {**columns, "configuration_id": None if answer.configuration is None else ids[answer.configuration]}
    insert_unless_there(connection, RECOMMENDATIONS, {"study_id": study_id, **values})
    older = (RECOMMENDATIONS.c.study_id == study_id, RECOMMENDATIONS.c.made_at <= values["made_at"])
    connection.execute(update(RECOMMENDATIONS).where(*older).values(values))


def unanswered(connection: Connection, method: str) -> list[int]:
    """Return the ids of the studies whose stored answer is missing or of another method, oldest first."""
    made = exists().where(RECOMMENDATIONS.c.study_id == STUDIES.c.id, RECOMMENDATIONS.c.method == method)
    return list(connection.execute(select(STUDIES.c.id).where(~made).order_by(STUDIES.c.id)).scalars())


# Composing these takes SQLAlchemy longer, the first time in a process, than all else that suggest looks up: they are text.

_COMPARISONS = """SELECT c.id, a.key, b.key, c.block_ratios, c.planned
FROM comparisons c
  LEFT JOIN configurations a ON a.id = c.candidate_id
  LEFT JOIN configurations b ON b.id = c.baseline_id
WHERE c.study_id = :study"""


_REFUSALS = "SELECT id, rule, verdict, reason, remedy, about, subject FROM refusals WHERE study_id = :study"


_ANSWER = text("""SELECT a.id, a.configuration_id, k.payload AS configuration, a.verdict, a.ratio, a.low, a.high,
  a.blocks, a.tried, a.admissible, a.why, a.method, a.made_at
FROM recommendations a LEFT JOIN configurations k ON k.id = a.configuration_id
WHERE a.study_id = :study""")


def comparisons(connection: Connection, study_id: int) -> list[Comparison]:
    """Return a study's comparisons in the order they were saved."""
    return readable(_comparison, sorted(selected(connection, _COMPARISONS, study=study_id), key=itemgetter(0)), None)


def _comparison(row: tuple[Any, ...]) -> Comparison:
    row_id, candidate, baseline, block_ratios, planned = row
    with in_row("comparisons", row_id):
        ratios = parsed(block_ratios)
        refuse(candidate is None or baseline is None, "its configuration", None)
        refuse(not are_samples(ratios), "block_ratios", ratios)
        refuse(not test_of("int | None")(planned), "planned", planned)
        return Comparison(candidate, baseline, tuple(ratios), planned)


def refusals(connection: Connection, study_id: int) -> list[Reason]:
    """Return a study's refusals in the order they were saved."""
    found = sorted(selected(connection, _REFUSALS, study=study_id), key=itemgetter(0))
    try:
        return [_reason(*values) for _, *values in found]
    except (Malformed, ValueError, TypeError):  # the row is to be named
        return readable(_refusal, found, None)


def _refusal(row: tuple[Any, ...]) -> Reason:
    row_id, *values = row
    with in_row("refusals", row_id):
        return _reason(*values)


@lru_cache(maxsize=4096)
def _reason(rule: Any, verdict: Any, reason: Any, remedy: Any, about: Any, subject: Any) -> Reason:
    """Return the reason of these columns: most studies were refused the same. Raises Malformed."""
    texts = {"rule": rule, "reason": reason, "remedy": remedy, "about": about, "subject": subject}
    for name, value in texts.items():
        refuse(not is_text(value), name, value)
    return Reason(rule, Verdict(verdict), reason, remedy, about, subject)


def answer(connection: Connection, study_id: int) -> Answer | None:
    """Return what is stored as a study's answer, or None."""
    row = connection.execute(_ANSWER, {"study": study_id}).one_or_none()
    if row is None:
        return None
    with in_row("recommendations", row.id):
        figures = (row.ratio, row.low, row.high)
        refuse(not test_of("tuple[float | None, ...]")(figures), "ratio, low, high", figures)
        refuse(not test_of("tuple[int, ...]")((row.blocks, row.tried)), "blocks, tried", (row.blocks, row.tried))
        refuse(not test_of("int | None")(row.admissible), "admissible", row.admissible)
        refuse(not _VERDICT(row.verdict), "verdict", row.verdict)
        why = parsed(row.why)
        refuse(not test_of("tuple[str, ...]")(why), "why", why)
        configuration = None if row.configuration_id is None else configuration_of(row.configuration)
        counts = (row.blocks, row.tried, row.admissible)
        return Answer(configuration, row.verdict, *figures, *counts, tuple(why), row.method, moment(row.made_at))


_VERDICT = matches("[a-z-]{1,40}")
