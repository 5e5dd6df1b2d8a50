"""Ceilings of a device; a study's facts and the size of its space; which trials its objective admits; views for all metrics.

Written out and never changed, like 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

VIEWS = {
    "sqlite": {
        "v_trials": """
SELECT s.id AS study, t.number AS number, t.phase AS phase, t.block AS block, m.name AS model,
  w.key AS workload_key, w.kind AS kind,
  CAST(json_extract(w.payload, '$.batch') AS INTEGER) AS batch,
  json_extract(w.payload, '$.output') AS output,
  (SELECT MAX(value) FROM json_each(w.payload, '$.lengths')) AS longest,
  json_extract(e.payload, '$.device_name') AS device,
  (SELECT group_concat(value, ' · ') FROM json_each(r.payload)) AS requested,
  (SELECT group_concat(value, ' · ') FROM json_each(f.payload)) AS effective,
  json_extract(COALESCE(f.payload, r.payload), '$.attention') AS attention,
  json_extract(COALESCE(f.payload, r.payload), '$.precision') AS precision,
  json_extract(COALESCE(f.payload, r.payload), '$.quantization') AS quantization,
  json_extract(COALESCE(f.payload, r.payload), '$.packing') AS packing,
  t.outcome AS outcome, t.reason AS reason,
  x.median AS tokens_per_s, x.low AS tokens_per_s_low, x.high AS tokens_per_s_high,
  t.peak_bytes AS peak_bytes, t.load_s AS load_s, t.first_call_s AS first_call_s,
  CAST(json_extract(t.quality, '$.kl') AS DOUBLE PRECISION) AS kl,
  CAST(json_extract(t.quality, '$.top1') AS DOUBLE PRECISION) AS top1,
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused,
  COALESCE((SELECT CAST(value AS INTEGER)
    FROM json_each(COALESCE(f.payload, r.payload), '$.batch') WHERE value GLOB '[0-9]*' AND value NOT GLOB '*[^0-9]*'), CAST(json_extract(w.payload, '$.batch') AS INTEGER)) AS batch_size,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'slowest_batch_s') AS slowest_batch_s,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'joules_per_token') AS joules_per_token,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'sequences_per_s') AS sequences_per_s,
  CAST(json_extract(t.quality, '$.cosine') AS DOUBLE PRECISION) AS cosine,
  CAST(json_extract(t.quality, '$.top10') AS DOUBLE PRECISION) AS top10
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN trials t ON t.study_id = s.id
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'
""",
        "v_recommendations": """
WITH aims AS (
  SELECT id AS study_id, COALESCE(json_extract(objective, '$.metric'), 'tokens_per_s') AS metric,
    CAST(json_extract(objective, '$.max_memory_bytes') AS BIGINT) AS most_bytes,
    CAST(json_extract(objective, '$.max_latency_s') AS DOUBLE PRECISION) AS most_s,
    CAST(json_extract(objective, '$.allow_unjudged') AS TEXT) IN ('1', 'true') AS takes_unjudged
  FROM studies
), ran AS (
  SELECT t.study_id AS study_id, t.number AS number, t.requested_id AS requested_id, aims.metric AS metric,
    COALESCE(t.effective_id, t.requested_id) AS ran_id,
    CASE aims.metric WHEN 'peak_bytes' THEN CAST(t.peak_bytes AS DOUBLE PRECISION) ELSE x.median END AS amount,
    CASE WHEN json_extract(t.quality, '$.failures') = '[]'
      AND (CAST(json_extract(t.quality, '$.judged') AS TEXT) IN ('1', 'true') OR aims.takes_unjudged)
      AND (aims.most_bytes IS NULL OR COALESCE(t.peak_bytes, 0) <= aims.most_bytes)
      AND (aims.most_s IS NULL OR (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'slowest_batch_s') <= aims.most_s)
      AND EXISTS (SELECT 1 FROM measurements y WHERE y.trial_id = t.id)
      AND COALESCE(t.admitted, 1) = 1
    THEN 1 ELSE 0 END AS may_be
  FROM trials t
    JOIN aims ON aims.study_id = t.study_id
    LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = aims.metric
  WHERE t.phase = 'search' AND t.outcome = 'ok'
), scored AS (
  SELECT study_id, number, requested_id, ran_id, may_be,
    CASE WHEN COALESCE(amount, 0.0) = 0.0 THEN 0.0 WHEN metric IN ('slowest_batch_s', 'peak_bytes', 'joules_per_token') THEN 1.0 / amount ELSE amount END AS score
  FROM ran
), baseline AS (
  SELECT study_id, ran_id, score FROM (
    SELECT d.study_id AS study_id, d.ran_id AS ran_id, d.score AS score,
      ROW_NUMBER() OVER (PARTITION BY d.study_id ORDER BY d.number DESC) AS place
    FROM scored d JOIN trials z ON z.study_id = d.study_id AND z.number = 0 AND z.requested_id = d.requested_id
  ) runs WHERE place = 1
), admissible AS (
  SELECT study_id, ran_id, MAX(score) AS score FROM scored WHERE may_be = 1 AND score > 0 GROUP BY study_id, ran_id
), compared AS (
  SELECT c.study_id AS study_id, c.candidate_id AS ran_id, c.ratio AS ratio, c.low AS low, c.high AS high,
    c.blocks AS blocks, c.verdict AS verdict, a.score AS score
  FROM comparisons c JOIN baseline b ON b.study_id = c.study_id AND b.ran_id = c.baseline_id
    JOIN admissible a ON a.study_id = c.study_id AND a.ran_id = c.candidate_id
), kept AS (
  SELECT b.study_id AS study_id, CASE
      WHEN MAX(CASE WHEN c.verdict = 'tie' THEN 1 ELSE 0 END) = 1 THEN 'tie'
      WHEN COUNT(c.ran_id) = 0 AND MAX(a.score / NULLIF(b.score, 0.0)) > 1.02 THEN 'unconfirmed'
      ELSE 'default' END AS verdict
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id
    LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
  GROUP BY b.study_id
), choices AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict, 1 AS preference, score
  FROM compared WHERE verdict = 'faster'
  UNION ALL
  SELECT b.study_id, b.ran_id, 1.0, 1.0, 1.0, 0, kept.verdict, 2, 0.0
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id AND a.ran_id = b.ran_id
    JOIN kept ON kept.study_id = b.study_id
  UNION ALL
  SELECT a.study_id, a.ran_id, c.ratio, c.low, c.high, COALESCE(c.blocks, 0), 'only', 3, a.score
  FROM admissible a LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
), best AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict,
    ROW_NUMBER() OVER (
      PARTITION BY study_id ORDER BY preference, COALESCE(ratio, 0.0) DESC, score DESC, ran_id
    ) AS place
  FROM choices
)
SELECT s.id AS study, m.name AS model,
  json_extract(e.payload, '$.device_name') AS device, w.key AS workload_key,
  (SELECT group_concat(value, ' · ') FROM json_each(k.payload)) AS configuration, k.key AS configuration_key,
  best.ratio AS ratio, best.low AS low, best.high AS high, best.verdict AS verdict, best.blocks AS blocks
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN best ON best.study_id = s.id AND best.place = 1
  JOIN configurations k ON k.id = best.ran_id
""",
    },
    "postgresql": {
        "v_trials": """
SELECT s.id AS study, t.number AS number, t.phase AS phase, t.block AS block, m.name AS model,
  w.key AS workload_key, w.kind AS kind,
  CAST((CAST(w.payload AS json) ->> 'batch') AS INTEGER) AS batch,
  (CAST(w.payload AS json) ->> 'output') AS output,
  (SELECT MAX(CAST(value AS INTEGER))
    FROM json_array_elements_text(CAST(w.payload AS json) -> 'lengths')) AS longest,
  (CAST(e.payload AS json) ->> 'device_name') AS device,
  (SELECT string_agg(value, ' · ' ORDER BY key COLLATE "C")
    FROM json_each_text(CAST(r.payload AS json))) AS requested,
  (SELECT string_agg(value, ' · ' ORDER BY key COLLATE "C")
    FROM json_each_text(CAST(f.payload AS json))) AS effective,
  (CAST(COALESCE(f.payload, r.payload) AS json) ->> 'attention') AS attention,
  (CAST(COALESCE(f.payload, r.payload) AS json) ->> 'precision') AS precision,
  (CAST(COALESCE(f.payload, r.payload) AS json) ->> 'quantization') AS quantization,
  (CAST(COALESCE(f.payload, r.payload) AS json) ->> 'packing') AS packing,
  t.outcome AS outcome, t.reason AS reason,
  x.median AS tokens_per_s, x.low AS tokens_per_s_low, x.high AS tokens_per_s_high,
  t.peak_bytes AS peak_bytes, t.load_s AS load_s, t.first_call_s AS first_call_s,
  CAST((CAST(t.quality AS json) ->> 'kl') AS DOUBLE PRECISION) AS kl,
  CAST((CAST(t.quality AS json) ->> 'top1') AS DOUBLE PRECISION) AS top1,
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused,
  COALESCE((SELECT CAST(value AS INTEGER)
    FROM json_each_text(CAST(COALESCE(f.payload, r.payload) AS json)) WHERE key = 'batch' AND value ~ '^[0-9]{1,9}$'), CAST((CAST(w.payload AS json) ->> 'batch') AS INTEGER)) AS batch_size,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'slowest_batch_s') AS slowest_batch_s,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'joules_per_token') AS joules_per_token,
  (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'sequences_per_s') AS sequences_per_s,
  CAST((CAST(t.quality AS json) ->> 'cosine') AS DOUBLE PRECISION) AS cosine,
  CAST((CAST(t.quality AS json) ->> 'top10') AS DOUBLE PRECISION) AS top10
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN trials t ON t.study_id = s.id
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'
""",
        "v_recommendations": """
WITH aims AS (
  SELECT id AS study_id, COALESCE((CAST(objective AS json) ->> 'metric'), 'tokens_per_s') AS metric,
    CAST((CAST(objective AS json) ->> 'max_memory_bytes') AS BIGINT) AS most_bytes,
    CAST((CAST(objective AS json) ->> 'max_latency_s') AS DOUBLE PRECISION) AS most_s,
    CAST((CAST(objective AS json) ->> 'allow_unjudged') AS TEXT) IN ('1', 'true') AS takes_unjudged
  FROM studies
), ran AS (
  SELECT t.study_id AS study_id, t.number AS number, t.requested_id AS requested_id, aims.metric AS metric,
    COALESCE(t.effective_id, t.requested_id) AS ran_id,
    CASE aims.metric WHEN 'peak_bytes' THEN CAST(t.peak_bytes AS DOUBLE PRECISION) ELSE x.median END AS amount,
    CASE WHEN (CAST(t.quality AS json) ->> 'failures') = '[]'
      AND (CAST((CAST(t.quality AS json) ->> 'judged') AS TEXT) IN ('1', 'true') OR aims.takes_unjudged)
      AND (aims.most_bytes IS NULL OR COALESCE(t.peak_bytes, 0) <= aims.most_bytes)
      AND (aims.most_s IS NULL OR (SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = 'slowest_batch_s') <= aims.most_s)
      AND EXISTS (SELECT 1 FROM measurements y WHERE y.trial_id = t.id)
      AND COALESCE(t.admitted, 1) = 1
    THEN 1 ELSE 0 END AS may_be
  FROM trials t
    JOIN aims ON aims.study_id = t.study_id
    LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = aims.metric
  WHERE t.phase = 'search' AND t.outcome = 'ok'
), scored AS (
  SELECT study_id, number, requested_id, ran_id, may_be,
    CASE WHEN COALESCE(amount, 0.0) = 0.0 THEN 0.0 WHEN metric IN ('slowest_batch_s', 'peak_bytes', 'joules_per_token') THEN 1.0 / amount ELSE amount END AS score
  FROM ran
), baseline AS (
  SELECT study_id, ran_id, score FROM (
    SELECT d.study_id AS study_id, d.ran_id AS ran_id, d.score AS score,
      ROW_NUMBER() OVER (PARTITION BY d.study_id ORDER BY d.number DESC) AS place
    FROM scored d JOIN trials z ON z.study_id = d.study_id AND z.number = 0 AND z.requested_id = d.requested_id
  ) runs WHERE place = 1
), admissible AS (
  SELECT study_id, ran_id, MAX(score) AS score FROM scored WHERE may_be = 1 AND score > 0 GROUP BY study_id, ran_id
), compared AS (
  SELECT c.study_id AS study_id, c.candidate_id AS ran_id, c.ratio AS ratio, c.low AS low, c.high AS high,
    c.blocks AS blocks, c.verdict AS verdict, a.score AS score
  FROM comparisons c JOIN baseline b ON b.study_id = c.study_id AND b.ran_id = c.baseline_id
    JOIN admissible a ON a.study_id = c.study_id AND a.ran_id = c.candidate_id
), kept AS (
  SELECT b.study_id AS study_id, CASE
      WHEN MAX(CASE WHEN c.verdict = 'tie' THEN 1 ELSE 0 END) = 1 THEN 'tie'
      WHEN COUNT(c.ran_id) = 0 AND MAX(a.score / NULLIF(b.score, 0.0)) > 1.02 THEN 'unconfirmed'
      ELSE 'default' END AS verdict
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id
    LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
  GROUP BY b.study_id
), choices AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict, 1 AS preference, score
  FROM compared WHERE verdict = 'faster'
  UNION ALL
  SELECT b.study_id, b.ran_id, 1.0, 1.0, 1.0, 0, kept.verdict, 2, 0.0
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id AND a.ran_id = b.ran_id
    JOIN kept ON kept.study_id = b.study_id
  UNION ALL
  SELECT a.study_id, a.ran_id, c.ratio, c.low, c.high, COALESCE(c.blocks, 0), 'only', 3, a.score
  FROM admissible a LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
), best AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict,
    ROW_NUMBER() OVER (
      PARTITION BY study_id ORDER BY preference, COALESCE(ratio, 0.0) DESC, score DESC, ran_id
    ) AS place
  FROM choices
)
SELECT s.id AS study, m.name AS model,
  (CAST(e.payload AS json) ->> 'device_name') AS device, w.key AS workload_key,
  (SELECT string_agg(value, ' · ' ORDER BY key COLLATE "C")
    FROM json_each_text(CAST(k.payload AS json))) AS configuration, k.key AS configuration_key,
  best.ratio AS ratio, best.low AS low, best.high AS high, best.verdict AS verdict, best.blocks AS blocks
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN best ON best.study_id = s.id AND best.place = 1
  JOIN configurations k ON k.id = best.ran_id
""",
    },
}


def upgrade() -> None:
    """Create the table and the columns, and make two views again; what people built on them stays, on PostgreSQL too."""
    op.create_table(
        "ceilings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("environment_id", sa.Integer(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name="fk_ceilings_environment_id_environments"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_ceilings"),
        sa.UniqueConstraint("environment_id", name="uq_ceilings_environment_id"),
    )
    op.add_column("studies", sa.Column("admissible", sa.Integer(), nullable=True))
    op.add_column("studies", sa.Column("facts", sa.Text(), nullable=True))
    op.add_column("trials", sa.Column("admitted", sa.Integer(), nullable=True))
    dialect = op.get_bind().dialect.name
    for name, body in VIEWS[dialect].items():
        if dialect == "sqlite":
            op.execute(sa.text(f"DROP VIEW {name}"))
        op.execute(sa.text(f"CREATE {'OR REPLACE ' if dialect == 'postgresql' else ''}VIEW {name} AS {body}"))


def downgrade() -> None:
    """Drop the table and the columns, and make the views of before."""
    dialect = op.get_bind().dialect.name
    before = context.script.get_revision(down_revision).module.VIEWS[dialect]
    for name in VIEWS[dialect]:
        op.execute(sa.text(f"DROP VIEW {name}"))
        op.execute(sa.text(f"CREATE VIEW {name} AS {before[name]}"))
    op.drop_column("trials", "admitted")
    op.drop_column("studies", "facts")
    op.drop_column("studies", "admissible")
    op.drop_table("ceilings")
