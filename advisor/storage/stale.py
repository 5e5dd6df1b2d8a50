"""The studies that are stale in an environment: measured on its device before versions changed, and not measured in it yet."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, text

from advisor.nouns.environment import Environment
from advisor.storage import environments
from advisor.storage.store import Store

#: The studies of some environments that recommend something and whose question nobody asked in another one, newest first: a study
#: that was broken off there before it recommended anything is none.
_LACKING = text("""SELECT s.id, s.workload_id, s.model_id, s.objective_key FROM studies s
  JOIN environments t ON t.id = s.environment_id
  JOIN recommendations a ON a.study_id = s.id
WHERE t.key IN :older AND a.configuration_id IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM studies o JOIN environments e ON e.id = o.environment_id LEFT JOIN recommendations b ON b.study_id = o.id
  WHERE e.key = :here AND (o.state <> 'interrupted' OR b.configuration_id IS NOT NULL)
    AND o.workload_id = s.workload_id AND o.model_id = s.model_id AND o.objective_key = s.objective_key)
ORDER BY s.started_at DESC, s.id DESC""").bindparams(bindparam("older", expanding=True))


def stale_studies(store: Store, here: Environment, there: Collection[str] = ()) -> list[int]:
    """Return the newest stale study of each question (a model, a workload and an objective), the newest question first.

    there: the keys of environments that other devices have: what was measured in these is not stale, but theirs.
    Environments that can't be understood are passed over, and told in `store.damaged`.
    """
    with store._database.reading() as connection:
        known = environments.measured(connection, store.damaged)
        older = [key for key, environment in known if key not in there and environment.changes_to(here)]
        if not older:
            return []
        newest: dict[tuple[int, int, str], int] = {}
        for row in connection.execute(_LACKING, {"older": older, "here": here.key}):
            newest.setdefault((row.workload_id, row.model_id, row.objective_key), row.id)
    return list(newest.values())
