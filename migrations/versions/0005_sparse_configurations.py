"""Configurations are sparse: a choice that means "nothing is done" is left out of JSON and key, and a table says which it is.

Rows that become the same are one from here on; of two comparisons of the same the newer stays. Written out and never changed,
like 0001. No view is touched: the ones of this version are made when the upgrade is over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: Every knob by then: its name, its implied choice, and its place in a configuration that people read.
KNOBS = (
    ("attention", "", 10),
    ("precision", "", 20),
    ("quantization", "none", 30),
    ("packing", "padded", 40),
    ("batch", "", 50),
)
IMPLIED = {name: implied for name, implied, _ in KNOBS if implied}

#: Rows that are held in memory at once; older SQLites take 999 values in a statement.
BATCH = 900

Choices = dict[str, str]


def upgrade() -> None:
    """Make the table of knobs, and take what is implied out of every configuration."""
    knobs = op.create_table(
        "knobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("implied", sa.Text(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_knobs"),
        sa.UniqueConstraint("name", name="uq_knobs_name"),
    )
    op.bulk_insert(knobs, [{"name": name, "implied": implied, "place": place} for name, implied, place in KNOBS])
    _spell_anew(lambda choices: {knob: name for knob, name in choices.items() if IMPLIED.get(knob) != name})


def downgrade() -> None:
    """Spell out what is implied again, and make the views of before; rows that became one stay one."""
    dialect = op.get_bind().dialect.name
    script = context.script
    op.execute(sa.text("DROP VIEW IF EXISTS v_trial_choices"))
    before = {
        "v_trials": script.get_revision("0002").module.VIEWS[dialect]["v_trials"],
        "v_recommendations": script.get_revision("0003").module.VIEW[dialect],
    }
    for name, body in before.items():
        op.execute(sa.text(f"DROP VIEW IF EXISTS {name}"))
        op.execute(sa.text(f"CREATE VIEW {name} AS {body}"))
    op.drop_table("knobs")
    _spell_anew(lambda choices: {**IMPLIED, **choices})


def _spell_anew(spell: Callable[[Choices], Choices]) -> None:
    """Change the choices of every stored configuration, and of those that a study's search named; what is no such JSON stays."""
    bind = op.get_bind()
    for found in _batches(bind, "SELECT id, payload FROM configurations WHERE id > :after ORDER BY id LIMIT :batch"):
        _store(bind, list(_changed(found, spell)))
    for found in _batches(bind, "SELECT id, budget FROM studies WHERE id > :after ORDER BY id LIMIT :batch"):
        for row in found:
            budget = _parsed(row.budget)
            if _respell_promising(budget, spell):
                values = {"id": row.id, "budget": _canonical(budget)}
                bind.execute(sa.text("UPDATE studies SET budget = :budget WHERE id = :id"), values)


def _batches(bind: sa.Connection, statement: str) -> Iterator[Sequence[Any]]:
    """Yield rows in the order of their ids, a batch at a time."""
    after = -1
    while found := bind.execute(sa.text(statement), {"after": after, "batch": BATCH}).all():
        yield found
        after = found[-1].id


def _changed(found: Iterable[Any], spell: Callable[[Choices], Choices]) -> Iterator[dict[str, Any]]:
    """Yield what the configurations are to be that are now spelled otherwise."""
    for row in found:
        choices = _choices(_parsed(row.payload))
        if choices is not None and (changed := spell(choices)) != choices:
            payload = _canonical(changed)
            yield {"id": row.id, "key": hashlib.sha256(payload.encode()).hexdigest()[:16], "payload": payload}


def _store(bind: sa.Connection, changed: list[dict[str, Any]]) -> None:
    """Give configurations their payloads and keys, in their order: those whose key nobody else has or gets, all at once."""
    among = sa.text("SELECT key FROM configurations WHERE key IN :keys").bindparams(
        sa.bindparam("keys", expanding=True)
    )
    taken = set(bind.execute(among, {"keys": [values["key"] for values in changed]}).scalars())
    waiting: list[dict[str, Any]] = []
    for values in changed:
        if values["key"] not in taken:
            taken.add(values["key"])
            waiting.append(values)
            continue
        _update(bind, waiting)
        waiting = []
        _store_one(bind, values)
    _update(bind, waiting)


def _update(bind: sa.Connection, values: list[dict[str, Any]]) -> None:
    if values:
        bind.execute(sa.text("UPDATE configurations SET key = :key, payload = :payload WHERE id = :id"), values)


def _store_one(bind: sa.Connection, values: dict[str, Any]) -> None:
    """Give a configuration its payload and key; where there is one of that key already, they become one."""
    same = bind.execute(sa.text("SELECT id FROM configurations WHERE key = :key AND id <> :id"), values).scalar()
    if same is None:
        _update(bind, [values])
        return
    row_id = values["id"]
    merged = {"id": row_id, "same": same}
    _leave_newest(bind, row_id, same)
    for table, column in (
        ("trials", "requested_id"),
        ("trials", "effective_id"),
        ("comparisons", "candidate_id"),
        ("comparisons", "baseline_id"),
        ("recommendations", "configuration_id"),
    ):
        bind.execute(sa.text(f"UPDATE {table} SET {column} = :same WHERE {column} = :id"), merged)  # noqa: S608
    bind.execute(sa.text("DELETE FROM comparisons WHERE candidate_id = :same AND baseline_id = :same"), merged)
    bind.execute(sa.text("DELETE FROM configurations WHERE id = :id"), merged)


def _leave_newest(bind: sa.Connection, row_id: int, same: int) -> None:
    """Of a study's comparisons that become one when a configuration becomes another, leave the newest."""
    either = sa.text("""SELECT id, study_id, candidate_id, baseline_id FROM comparisons
WHERE candidate_id IN (:id, :same) OR baseline_id IN (:id, :same) ORDER BY made_at, id""")
    newest: dict[tuple[int, int, int], int] = {}
    for row in bind.execute(either, {"id": row_id, "same": same}).all():
        sides = (same if side == row_id else side for side in (row.candidate_id, row.baseline_id))
        older = newest.pop(key := (row.study_id, *sides), None)
        newest[key] = row.id
        if older is not None:
            bind.execute(sa.text("DELETE FROM comparisons WHERE id = :id"), {"id": older})


def _respell_promising(budget: Any, spell: Callable[[Choices], Choices]) -> bool:
    """Change, in place, the configurations that a study's search left as promising; return whether there was one."""
    end = budget.get("end") if isinstance(budget, dict) else None
    promising = end.get("promising") if isinstance(end, dict) else None
    is_changed = False
    for each in promising if isinstance(promising, list) else ():
        choices = _choices(each.get("configuration")) if isinstance(each, dict) else None
        if choices is not None:
            each["configuration"], is_changed = spell(choices), True
    return is_changed


def _choices(payload: Any) -> Choices | None:
    is_one = isinstance(payload, dict) and all(isinstance(name, str) for name in payload.values())
    return payload if is_one else None


def _parsed(payload: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _canonical(value: Any) -> str:
    # A lone surrogate, which nothing of advisor's writes, has no UTF-8: it becomes a question mark.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()
