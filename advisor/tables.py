"""The database's schema on one page: tables, indexes, and the views that people read with SQL.

migrations/ is what creates and changes a database; a test compares its result with this page on both databases.
Choices are text in canonical JSON, never columns or SQL enums: a new backend needs no migration. JSON is kept as text,
so that SQLite and PostgreSQL hold the same bytes. Bytes are BigInteger, seconds Double, timestamps aware and in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

from advisor.measurement import TIE_ZONE
from advisor.objective import METRICS, Objective

#: Every revision of the schema, oldest first. `HEAD` is what this version of advisor reads and writes.
REVISIONS = ("0001", "0002")
HEAD = REVISIONS[-1]

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware on both databases: SQLite has no time zones, so UTC goes in and comes back as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """Refuse a naive moment: nobody could say when it was."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a moment without a time zone: {value}")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """Return the moment as aware UTC."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _to(name: str, table: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, ForeignKey(f"{table}.id"), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=nullable)


def _figure(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, UtcDateTime, nullable=nullable)


ENVIRONMENTS = Table(
    "environments", METADATA,
    _id(), _text("key"), _text("payload"), _moment("first_seen"),
    UniqueConstraint("key"),
)  # fmt: skip

#: What plain work reaches on an environment's device, matrix products and copies, as a yardstick for what models reach.
CEILINGS = Table(
    "ceilings", METADATA,
    _id(), _to("environment_id", "environments"), _text("payload"), _moment("measured_at"),
    UniqueConstraint("environment_id"),
)  # fmt: skip

MODELS = Table(
    "models", METADATA,
    _id(), _text("architecture_key"), _text("weights_digest"), _text("name"), _text("facts", nullable=True),
    UniqueConstraint("architecture_key", "weights_digest"),
)  # fmt: skip

WORKLOADS = Table(
    "workloads", METADATA,
    _id(), _text("key"), _text("kind"), _text("architecture_key"), _text("payload"),
    UniqueConstraint("key"), Index(None, "architecture_key"),
)  # fmt: skip

CONFIGURATIONS = Table(
    "configurations", METADATA,
    _id(), _text("key"), _text("payload"),
    UniqueConstraint("key"),
)  # fmt: skip

STUDIES = Table(
    "studies", METADATA,
    _id(), _to("workload_id", "workloads"), _to("environment_id", "environments"), _to("model_id", "models"),
    _text("objective"), _text("objective_key"), _text("budget"), _number("seed"), _text("state"),
    _moment("started_at"), _moment("finished_at", nullable=True), _number("admissible", nullable=True),
    _text("facts", nullable=True),
    UniqueConstraint("workload_id", "environment_id", "model_id", "objective_key"), Index(None, "environment_id"),
)  # fmt: skip

TRIALS = Table(
    "trials", METADATA,
    _id(), _to("study_id", "studies"), _number("number"), _text("phase"), _number("block", nullable=True),
    _to("requested_id", "configurations"), _to("effective_id", "configurations", nullable=True),
    _text("outcome"), _text("reason"), _text("owner", nullable=True), _moment("lease", nullable=True),
    _number("attempts"), _moment("started_at"), _moment("finished_at", nullable=True),
    _figure("load_s", nullable=True), _figure("first_call_s", nullable=True), _figure("measure_s", nullable=True),
    _figure("wall_s", nullable=True), Column("peak_bytes", BigInteger), Column("weight_bytes", BigInteger),
    _text("quality", nullable=True), _text("reading", nullable=True), _to("reused_from", "trials", nullable=True),
    _text("advisor_version"), _number("admitted", nullable=True),
    UniqueConstraint("study_id", "number"), Index(None, "requested_id"),
)  # fmt: skip

MEASUREMENTS = Table(
    "measurements", METADATA,
    _id(), _to("trial_id", "trials"), _text("metric"), _text("unit"), _text("phase"), _text("samples"), _number("n"),
    _figure("median"), _figure("low"), _figure("high"), _text("statistic"), _text("device_state"),
    UniqueConstraint("trial_id", "metric"),
)  # fmt: skip

COMPARISONS = Table(
    "comparisons", METADATA,
    _id(), _to("study_id", "studies"), _to("candidate_id", "configurations"), _to("baseline_id", "configurations"),
    _figure("ratio"), _figure("low"), _figure("high"), _text("block_ratios"), _number("blocks"), _text("verdict"),
    _moment("made_at"),
    UniqueConstraint("study_id", "candidate_id", "baseline_id"),
)  # fmt: skip

REFUSALS = Table(
    "refusals", METADATA,
    _id(), _to("study_id", "studies"), _text("subject"), _text("about"), _text("rule"), _text("verdict"),
    _text("reason"), _text("remedy"),
    UniqueConstraint("study_id", "subject", "about", "rule"),
)  # fmt: skip

#: Which pieces of SQL the two databases spell differently: a JSON member as text, the batch that a configuration names, a
#: configuration in words, and the longest sequence of a workload.
_SPELLING = {
    "sqlite": {
        "member": "json_extract({column}, '$.{name}')",
        "batch": """(SELECT CAST(value AS INTEGER)
    FROM json_each({column}, '$.batch') WHERE value GLOB '[0-9]*' AND value NOT GLOB '*[^0-9]*')""",
        "words": "(SELECT group_concat(value, ' · ') FROM json_each({column}))",
        "longest": "(SELECT MAX(value) FROM json_each({column}, '$.lengths'))",
    },
    "postgresql": {
        "member": "(CAST({column} AS json) ->> '{name}')",
        "batch": """(SELECT CAST(value AS INTEGER)
    FROM json_each_text(CAST({column} AS json)) WHERE key = 'batch' AND value ~ '^[0-9]{{1,9}}$')""",
        "words": """(SELECT string_agg(value, ' · ' ORDER BY key COLLATE "C")
    FROM json_each_text(CAST({column} AS json)))""",
        "longest": """(SELECT MAX(CAST(value AS INTEGER))
    FROM json_array_elements_text(CAST({column} AS json) -> 'lengths'))""",
    },
}

_STUDY = """studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id"""


def views(dialect: str) -> dict[str, str]:
    """Return each view's name and SELECT in the spelling of `dialect` ("sqlite" or "postgresql").

    They are the public face for people who read with SQL: the columns are the same on both databases and stay.
    """
    made = {"v_trials": _trials, "v_recommendations": _recommendations, "v_refusals": _refusals}
    return {name: body(dialect) for name, body in made.items()}


def _member(dialect: str, column: str, name: str) -> str:
    return _SPELLING[dialect]["member"].format(column=column, name=name)


def _words(dialect: str, column: str) -> str:
    return _SPELLING[dialect]["words"].format(column=column)


def _real(dialect: str, column: str, name: str) -> str:
    return f"CAST({_member(dialect, column, name)} AS DOUBLE PRECISION)"


def _is_true(dialect: str, column: str, name: str) -> str:
    return f"CAST({_member(dialect, column, name)} AS TEXT) IN ('1', 'true')"


def _median(metric: str) -> str:
    return f"(SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = '{metric}')"  # noqa: S608


def _trials(dialect: str) -> str:
    """One row a trial. What came later stands at the end, for those who count columns."""
    ran = "COALESCE(f.payload, r.payload)"
    knobs = ",\n  ".join(
        f"{_member(dialect, ran, knob)} AS {knob}" for knob in ("attention", "precision", "quantization", "packing")
    )
    batch = f"CAST({_member(dialect, 'w.payload', 'batch')} AS INTEGER)"
    later = ",\n  ".join(
        f"{_median(metric)} AS {metric}" for metric in ("slowest_batch_s", "joules_per_token", "sequences_per_s")
    )
    return f"""SELECT s.id AS study, t.number AS number, t.phase AS phase, t.block AS block, m.name AS model,
  w.key AS workload_key, w.kind AS kind,
  {batch} AS batch,
  {_member(dialect, "w.payload", "output")} AS output,
  {_SPELLING[dialect]["longest"].format(column="w.payload")} AS longest,
  {_member(dialect, "e.payload", "device_name")} AS device,
  {_words(dialect, "r.payload")} AS requested,
  {_words(dialect, "f.payload")} AS effective,
  {knobs},
  t.outcome AS outcome, t.reason AS reason,
  x.median AS tokens_per_s, x.low AS tokens_per_s_low, x.high AS tokens_per_s_high,
  t.peak_bytes AS peak_bytes, t.load_s AS load_s, t.first_call_s AS first_call_s,
  {_real(dialect, "t.quality", "kl")} AS kl,
  {_real(dialect, "t.quality", "top1")} AS top1,
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused,
  COALESCE({_SPELLING[dialect]["batch"].format(column=ran)}, {batch}) AS batch_size,
  {later},
  {_real(dialect, "t.quality", "cosine")} AS cosine,
  {_real(dialect, "t.quality", "top10")} AS top10
FROM {_STUDY}
  JOIN trials t ON t.study_id = s.id
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'"""  # noqa: S608


def _recommendations(dialect: str) -> str:
    """What suggest says of a study under its own objective: see `advisor.suggest`, whose order of preference this is."""
    return f"""WITH {_scored(dialect)}, {_CHOICES}
SELECT s.id AS study, m.name AS model,
  {_member(dialect, "e.payload", "device_name")} AS device, w.key AS workload_key,
  {_words(dialect, "k.payload")} AS configuration, k.key AS configuration_key,
  best.ratio AS ratio, best.low AS low, best.high AS high, best.verdict AS verdict, best.blocks AS blocks
FROM {_STUDY}
  JOIN best ON best.study_id = s.id AND best.place = 1
  JOIN configurations k ON k.id = best.ran_id"""  # noqa: S608


def _scored(dialect: str) -> str:
    """Every search trial that ran: its score by the objective's metric, more is better, and whether it may be recommended.

    `admitted` was written with the trial: see `advisor.space.admits`. It is NULL in rows from before it was.
    """
    less = ", ".join(f"'{aim.metric}'" for aim in METRICS.values() if aim.less_is_better)
    return f"""aims AS (
  SELECT id AS study_id, COALESCE({_member(dialect, "objective", "metric")}, '{Objective.metric}') AS metric,
    CAST({_member(dialect, "objective", "max_memory_bytes")} AS BIGINT) AS most_bytes,
    {_real(dialect, "objective", "max_latency_s")} AS most_s,
    {_is_true(dialect, "objective", "allow_unjudged")} AS takes_unjudged
  FROM studies
), ran AS (
  SELECT t.study_id AS study_id, t.number AS number, t.requested_id AS requested_id, aims.metric AS metric,
    COALESCE(t.effective_id, t.requested_id) AS ran_id,
    CASE aims.metric WHEN 'peak_bytes' THEN CAST(t.peak_bytes AS DOUBLE PRECISION) ELSE x.median END AS amount,
    CASE WHEN {_member(dialect, "t.quality", "failures")} = '[]'
      AND ({_is_true(dialect, "t.quality", "judged")} OR aims.takes_unjudged)
      AND (aims.most_bytes IS NULL OR COALESCE(t.peak_bytes, 0) <= aims.most_bytes)
      AND (aims.most_s IS NULL OR {_median("slowest_batch_s")} <= aims.most_s)
      AND EXISTS (SELECT 1 FROM measurements y WHERE y.trial_id = t.id)
      AND COALESCE(t.admitted, 1) = 1
    THEN 1 ELSE 0 END AS may_be
  FROM trials t
    JOIN aims ON aims.study_id = t.study_id
    LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = aims.metric
  WHERE t.phase = 'search' AND t.outcome = 'ok'
), scored AS (
  SELECT study_id, number, requested_id, ran_id, may_be,
    CASE WHEN COALESCE(amount, 0.0) = 0.0 THEN 0.0 WHEN metric IN ({less}) THEN 1.0 / amount ELSE amount END AS score
  FROM ran
)"""  # noqa: S608


#: From scored trials to the best choice of every study. "faster" are candidates that were confirmed; else the default stays,
#: where it meets the objective ("kept", and how that is to be said); else ("only") the best of what does, by its ratio over
#: the default, then by its score. One confirmed ratio is enough for a tie: a look at the search alone decides nothing.
_CHOICES = f"""baseline AS (
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
      WHEN COUNT(c.ran_id) = 0 AND MAX(a.score / NULLIF(b.score, 0.0)) > {1 + TIE_ZONE} THEN 'unconfirmed'
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
)"""  # noqa: S608


def _refusals(dialect: str) -> str:
    return f"""SELECT s.id AS study, m.name AS model,
  {_member(dialect, "e.payload", "device_name")} AS device,
  x.subject AS subject, x.about AS about, x.rule AS rule, x.verdict AS verdict, x.reason AS reason, x.remedy AS remedy
FROM {_STUDY}
  JOIN refusals x ON x.study_id = s.id"""  # noqa: S608
