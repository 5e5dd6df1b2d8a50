"""The stored studies whose workload is the nearest to one: without reading every study that there is.

A question that nothing answers is told what was measured instead, and of a million trials there
are ten thousands of studies.
"""

from __future__ import annotations

from itertools import groupby, islice

from sqlalchemy import Connection, text

from advisor.errors import DamagedRow
from advisor.nouns.checked import parsed
from advisor.storage import studies
from advisor.storage.rows import in_row
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.workloads import Likeness, Workload, workload_of

#: The workloads of an architecture that were studied. Their payloads hold a number for each sequence: they are read apart.
_KEYS = text("""SELECT w.id, w.key FROM workloads w
WHERE w.architecture_key = :architecture AND EXISTS (SELECT 1 FROM studies s WHERE s.workload_id = w.id)""")

#: How many payloads are asked for at once.
_AT_ONCE = 500


#: What workloads are like by their keys, which are their contents': it is read once of each in the life of a process, of so many
#: at most, some 100 MB. What is beyond them is read for each question.
_KNOWN: dict[str, Likeness] = {}
KNOWN_MOST = 200_000


def nearest_studies(store: Store, architecture_key: str, workload: Workload) -> list[StudyRecord]:
    """Return of the workloads least far from one the newest study in each environment, newest first; none where there are none.

    Rows on the way that can't be understood are passed over, and told in `store.damaged`.
    """
    with store._database.reading() as connection:
        own, likenesses = workload.likeness, _likenesses(connection, architecture_key, store.damaged)
        far = sorted((own.distance(each), row_id) for row_id, each in likenesses.items())
        for _, tied in groupby(far, key=lambda each: each[0]):
            if found := _newest(connection, [row_id for _, row_id in tied], store.damaged):
                return found
    return []


def _newest(connection: Connection, row_ids: list[int], damage: list[str]) -> list[StudyRecord]:
    """Return the newest study of any of these workloads in each environment, newest first: hundreds can be as far as one."""
    where = f"s.workload_id IN ({', '.join(map(str, row_ids))})"
    order = f"SELECT s.id, s.environment_id FROM studies s WHERE {where} ORDER BY s.started_at, s.id"  # noqa: S608 - ids
    newest = {row.environment_id: row.id for row in connection.execute(text(order))}
    listed = ", ".join(map(str, newest.values()))
    found = studies.read(connection, f"s.id IN ({listed})", damage) if newest else []
    # Where an environment's newest can't be read, an older one may be.
    return found if len(found) == len(newest) else studies.read(connection, where, damage)


def _likenesses(connection: Connection, architecture_key: str, damage: list[str]) -> dict[int, Likeness]:
    """Return what the workloads of an architecture are like, by row."""
    keys = {row.id: row.key for row in connection.execute(_KEYS, {"architecture": architecture_key})}
    found = {row_id: _KNOWN[key] for row_id, key in keys.items() if key in _KNOWN}
    left = iter([row_id for row_id in keys if row_id not in found])
    while some := list(islice(left, _AT_ONCE)):
        for row_id, likeness in _read(connection, some, damage).items():
            found[row_id] = likeness
            if len(_KNOWN) < KNOWN_MOST:
                _KNOWN[keys[row_id]] = likeness
    return found


def _read(connection: Connection, row_ids: list[int], damage: list[str]) -> dict[int, Likeness]:
    listed = ", ".join(map(str, row_ids))
    found = {}
    for row in connection.execute(text(f"SELECT id, payload FROM workloads WHERE id IN ({listed})")):  # noqa: S608 - ids
        try:
            with in_row("workloads", row.id):
                found[row.id] = workload_of(parsed(row.payload)).likeness
        except DamagedRow as error:
            if str(error) not in damage:
                damage.append(str(error))
    return found
