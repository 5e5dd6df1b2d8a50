"""The answer of a study as a row, and the view that shows it; the device that measured a trial; indexes for many trials.

Written out and never changed, like 0001. `advisor db upgrade` fills the rows: see `advisor.advice.kept_answers.keep_answers`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

VIEW = {
    "sqlite": """
SELECT s.id AS study, m.name AS model,
  json_extract(e.payload, '$.device_name') AS device, w.key AS workload_key,
  (SELECT group_concat(value, ' · ') FROM json_each(k.payload)) AS configuration, k.key AS configuration_key,
  a.ratio AS ratio, a.low AS low, a.high AS high, a.verdict AS verdict, a.blocks AS blocks,
  a.tried AS tried, a.admissible AS admissible,
  CASE WHEN a.method <> 'rules/1 gate/1 median/order-statistics/1'
    OR EXISTS (SELECT 1 FROM trials t WHERE t.study_id = s.id AND t.finished_at > a.made_at)
    OR EXISTS (SELECT 1 FROM comparisons c WHERE c.study_id = s.id AND c.made_at > a.made_at)
  THEN 1 ELSE 0 END AS stale, a.made_at AS made_at
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN recommendations a ON a.study_id = s.id
  LEFT JOIN configurations k ON k.id = a.configuration_id
""",
    "postgresql": """
SELECT s.id AS study, m.name AS model,
  (CAST(e.payload AS json) ->> 'device_name') AS device, w.key AS workload_key,
  (SELECT string_agg(value, ' · ' ORDER BY key COLLATE "C")
    FROM json_each_text(CAST(k.payload AS json))) AS configuration, k.key AS configuration_key,
  a.ratio AS ratio, a.low AS low, a.high AS high, a.verdict AS verdict, a.blocks AS blocks,
  a.tried AS tried, a.admissible AS admissible,
  CASE WHEN a.method <> 'rules/1 gate/1 median/order-statistics/1'
    OR EXISTS (SELECT 1 FROM trials t WHERE t.study_id = s.id AND t.finished_at > a.made_at)
    OR EXISTS (SELECT 1 FROM comparisons c WHERE c.study_id = s.id AND c.made_at > a.made_at)
  THEN 1 ELSE 0 END AS stale, a.made_at AS made_at
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN recommendations a ON a.study_id = s.id
  LEFT JOIN configurations k ON k.id = a.configuration_id
""",
}


def upgrade() -> None:
    """Make the table, the column and the indexes, and the view again; what people built on it stays, on PostgreSQL too."""
    dialect = op.get_bind().dialect.name
    op.create_table(
        "recommendations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("configuration_id", sa.Integer(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("ratio", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("blocks", sa.Integer(), nullable=False),
        sa.Column("tried", sa.Integer(), nullable=False),
        sa.Column("admissible", sa.Integer(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_recommendations_study_id_studies"),
        sa.ForeignKeyConstraint(
            ["configuration_id"], ["configurations.id"], name="fk_recommendations_configuration_id_configurations"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_recommendations"),
        sa.UniqueConstraint("study_id", name="uq_recommendations_study_id"),
    )
    op.add_column("trials", sa.Column("device_uuid", sa.Text(), nullable=True))
    columns = ["study_id", "requested_id", "finished_at"]
    op.create_index("ix_trials_study_id_requested_id_finished_at", "trials", columns)
    op.create_index("ix_trials_study_id_finished_at", "trials", ["study_id", "finished_at"])
    op.drop_index("ix_trials_requested_id", "trials")
    if dialect == "sqlite":
        op.execute(sa.text("DROP VIEW IF EXISTS v_recommendations"))
    replace = "OR REPLACE " if dialect == "postgresql" else ""
    op.execute(sa.text(f"CREATE {replace}VIEW v_recommendations AS {VIEW[dialect]}"))
    op.drop_column("trials", "admitted")


def downgrade() -> None:
    """Drop the table, the column and the indexes, and make the view of before."""
    dialect = op.get_bind().dialect.name
    before = context.script.get_revision(down_revision).module.VIEWS[dialect]["v_recommendations"]
    op.add_column("trials", sa.Column("admitted", sa.Integer(), nullable=True))
    op.execute(sa.text("DROP VIEW v_recommendations"))
    op.execute(sa.text(f"CREATE VIEW v_recommendations AS {before}"))
    op.create_index("ix_trials_requested_id", "trials", ["requested_id"])
    op.drop_index("ix_trials_study_id_finished_at", "trials")
    op.drop_index("ix_trials_study_id_requested_id_finished_at", "trials")
    op.drop_column("trials", "device_uuid")
    op.drop_table("recommendations")
