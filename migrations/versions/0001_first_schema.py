"""The first schema: nine tables, three views.

Written out and never changed: what later versions of advisor.storage.tables say is the business of later revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
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
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused
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
WITH baseline AS (
  SELECT study_id, ran_id FROM (
    SELECT t.study_id AS study_id, COALESCE(t.effective_id, t.requested_id) AS ran_id,
      ROW_NUMBER() OVER (PARTITION BY t.study_id ORDER BY t.number DESC) AS place
    FROM trials t JOIN trials z ON z.study_id = t.study_id AND z.number = 0 AND z.requested_id = t.requested_id
    WHERE t.phase = 'search' AND t.outcome = 'ok'
  ) runs WHERE place = 1
), admissible AS (
  SELECT t.study_id AS study_id, COALESCE(t.effective_id, t.requested_id) AS ran_id, MAX(x.median) AS speed
  FROM trials t
    JOIN studies s ON s.id = t.study_id
    JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'
  WHERE t.phase = 'search' AND t.outcome = 'ok' AND json_extract(t.quality, '$.failures') = '[]'
    AND (CAST(json_extract(t.quality, '$.judged') AS TEXT) IN ('1', 'true') OR CAST(json_extract(s.objective, '$.allow_unjudged') AS TEXT) IN ('1', 'true'))
    AND COALESCE(t.peak_bytes, 0) <= COALESCE(CAST(json_extract(s.objective, '$.max_memory_bytes') AS BIGINT), COALESCE(t.peak_bytes, 0))
  GROUP BY t.study_id, COALESCE(t.effective_id, t.requested_id)
), compared AS (
  SELECT c.study_id AS study_id, c.candidate_id AS ran_id, c.ratio AS ratio, c.low AS low, c.high AS high,
    c.blocks AS blocks, c.verdict AS verdict, a.speed AS speed
  FROM comparisons c JOIN baseline b ON b.study_id = c.study_id AND b.ran_id = c.baseline_id
    JOIN admissible a ON a.study_id = c.study_id AND a.ran_id = c.candidate_id
), choices AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, 'faster' AS verdict, 1 AS preference, speed
  FROM compared WHERE verdict = 'faster'
  UNION ALL
  SELECT b.study_id, b.ran_id, 1.0, 1.0, 1.0, 0, 'baseline', 2, 0.0
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id AND a.ran_id = b.ran_id
  UNION ALL
  SELECT a.study_id, a.ran_id, c.ratio, c.low, c.high, COALESCE(c.blocks, 0), 'only', 3, a.speed
  FROM admissible a LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
), best AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict,
    ROW_NUMBER() OVER (
      PARTITION BY study_id ORDER BY preference, COALESCE(ratio, 0.0) DESC, speed DESC, ran_id
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
        "v_refusals": """
SELECT s.id AS study, m.name AS model,
  json_extract(e.payload, '$.device_name') AS device,
  x.subject AS subject, x.about AS about, x.rule AS rule, x.verdict AS verdict, x.reason AS reason, x.remedy AS remedy
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN refusals x ON x.study_id = s.id
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
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused
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
WITH baseline AS (
  SELECT study_id, ran_id FROM (
    SELECT t.study_id AS study_id, COALESCE(t.effective_id, t.requested_id) AS ran_id,
      ROW_NUMBER() OVER (PARTITION BY t.study_id ORDER BY t.number DESC) AS place
    FROM trials t JOIN trials z ON z.study_id = t.study_id AND z.number = 0 AND z.requested_id = t.requested_id
    WHERE t.phase = 'search' AND t.outcome = 'ok'
  ) runs WHERE place = 1
), admissible AS (
  SELECT t.study_id AS study_id, COALESCE(t.effective_id, t.requested_id) AS ran_id, MAX(x.median) AS speed
  FROM trials t
    JOIN studies s ON s.id = t.study_id
    JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'
  WHERE t.phase = 'search' AND t.outcome = 'ok' AND (CAST(t.quality AS json) ->> 'failures') = '[]'
    AND (CAST((CAST(t.quality AS json) ->> 'judged') AS TEXT) IN ('1', 'true') OR CAST((CAST(s.objective AS json) ->> 'allow_unjudged') AS TEXT) IN ('1', 'true'))
    AND COALESCE(t.peak_bytes, 0) <= COALESCE(CAST((CAST(s.objective AS json) ->> 'max_memory_bytes') AS BIGINT), COALESCE(t.peak_bytes, 0))
  GROUP BY t.study_id, COALESCE(t.effective_id, t.requested_id)
), compared AS (
  SELECT c.study_id AS study_id, c.candidate_id AS ran_id, c.ratio AS ratio, c.low AS low, c.high AS high,
    c.blocks AS blocks, c.verdict AS verdict, a.speed AS speed
  FROM comparisons c JOIN baseline b ON b.study_id = c.study_id AND b.ran_id = c.baseline_id
    JOIN admissible a ON a.study_id = c.study_id AND a.ran_id = c.candidate_id
), choices AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, 'faster' AS verdict, 1 AS preference, speed
  FROM compared WHERE verdict = 'faster'
  UNION ALL
  SELECT b.study_id, b.ran_id, 1.0, 1.0, 1.0, 0, 'baseline', 2, 0.0
  FROM baseline b JOIN admissible a ON a.study_id = b.study_id AND a.ran_id = b.ran_id
  UNION ALL
  SELECT a.study_id, a.ran_id, c.ratio, c.low, c.high, COALESCE(c.blocks, 0), 'only', 3, a.speed
  FROM admissible a LEFT JOIN compared c ON c.study_id = a.study_id AND c.ran_id = a.ran_id
), best AS (
  SELECT study_id, ran_id, ratio, low, high, blocks, verdict,
    ROW_NUMBER() OVER (
      PARTITION BY study_id ORDER BY preference, COALESCE(ratio, 0.0) DESC, speed DESC, ran_id
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
        "v_refusals": """
SELECT s.id AS study, m.name AS model,
  (CAST(e.payload AS json) ->> 'device_name') AS device,
  x.subject AS subject, x.about AS about, x.rule AS rule, x.verdict AS verdict, x.reason AS reason, x.remedy AS remedy
FROM studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id
  JOIN refusals x ON x.study_id = s.id
""",
    },
}


def upgrade() -> None:
    """Create the tables, then the views in the spelling of this database."""
    _create_configurations()
    _create_environments()
    _create_models()
    _create_workloads()
    _create_studies()
    _create_comparisons()
    _create_refusals()
    _create_trials()
    _create_measurements()
    for name, body in VIEWS[op.get_bind().dialect.name].items():
        op.execute(sa.text(f"CREATE VIEW {name} AS {body}"))


def downgrade() -> None:
    """Drop everything."""
    for name in VIEWS[op.get_bind().dialect.name]:
        op.execute(sa.text(f"DROP VIEW {name}"))
    for table in (
        "measurements",
        "trials",
        "refusals",
        "comparisons",
        "studies",
        "workloads",
        "models",
        "environments",
        "configurations",
    ):
        op.drop_table(table)


def _create_configurations() -> None:
    op.create_table(
        "configurations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_configurations"),
        sa.UniqueConstraint("key", name="uq_configurations_key"),
    )


def _create_environments() -> None:
    op.create_table(
        "environments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_environments"),
        sa.UniqueConstraint("key", name="uq_environments_key"),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("architecture_key", sa.Text(), nullable=False),
        sa.Column("weights_digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("architecture_key", "weights_digest", name="uq_models_architecture_key_weights_digest"),
    )


def _create_workloads() -> None:
    op.create_table(
        "workloads",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("architecture_key", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workloads"),
        sa.UniqueConstraint("key", name="uq_workloads_key"),
    )
    op.create_index("ix_workloads_architecture_key", "workloads", ["architecture_key"], unique=False)


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("workload_id", sa.Integer(), nullable=False),
        sa.Column("environment_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("objective", sa.Text(), nullable=False),
        sa.Column("objective_key", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["environment_id"], ["environments.id"], name="fk_studies_environment_id_environments"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_studies_model_id_models"),
        sa.ForeignKeyConstraint(["workload_id"], ["workloads.id"], name="fk_studies_workload_id_workloads"),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint(
            "workload_id",
            "environment_id",
            "model_id",
            "objective_key",
            name="uq_studies_workload_id_environment_id_model_id_objective_key",
        ),
    )
    op.create_index("ix_studies_environment_id", "studies", ["environment_id"], unique=False)


def _create_comparisons() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("baseline_id", sa.Integer(), nullable=False),
        sa.Column("ratio", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("block_ratios", sa.Text(), nullable=False),
        sa.Column("blocks", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["baseline_id"], ["configurations.id"], name="fk_comparisons_baseline_id_configurations"
        ),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["configurations.id"], name="fk_comparisons_candidate_id_configurations"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_comparisons_study_id_studies"),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sa.UniqueConstraint(
            "study_id", "candidate_id", "baseline_id", name="uq_comparisons_study_id_candidate_id_baseline_id"
        ),
    )


def _create_refusals() -> None:
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_refusals_study_id_studies"),
        sa.PrimaryKeyConstraint("id", name="pk_refusals"),
        sa.UniqueConstraint("study_id", "subject", "about", "rule", name="uq_refusals_study_id_subject_about_rule"),
    )


def _create_trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("block", sa.Integer(), nullable=True),
        sa.Column("requested_id", sa.Integer(), nullable=False),
        sa.Column("effective_id", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("load_s", sa.Double(), nullable=True),
        sa.Column("first_call_s", sa.Double(), nullable=True),
        sa.Column("measure_s", sa.Double(), nullable=True),
        sa.Column("wall_s", sa.Double(), nullable=True),
        sa.Column("peak_bytes", sa.BigInteger(), nullable=True),
        sa.Column("weight_bytes", sa.BigInteger(), nullable=True),
        sa.Column("quality", sa.Text(), nullable=True),
        sa.Column("reading", sa.Text(), nullable=True),
        sa.Column("reused_from", sa.Integer(), nullable=True),
        sa.Column("advisor_version", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["effective_id"], ["configurations.id"], name="fk_trials_effective_id_configurations"),
        sa.ForeignKeyConstraint(["requested_id"], ["configurations.id"], name="fk_trials_requested_id_configurations"),
        sa.ForeignKeyConstraint(["reused_from"], ["trials.id"], name="fk_trials_reused_from_trials"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_trials_study_id_studies"),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.UniqueConstraint("study_id", "number", name="uq_trials_study_id_number"),
    )
    op.create_index("ix_trials_requested_id", "trials", ["requested_id"], unique=False)


def _create_measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("samples", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("median", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("statistic", sa.Text(), nullable=False),
        sa.Column("device_state", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_measurements_trial_id_trials"),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.UniqueConstraint("trial_id", "metric", name="uq_measurements_trial_id_metric"),
    )
