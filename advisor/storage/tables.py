"""The database's schema on one page: its tables and their indexes. The views that people read with SQL are in `views`.

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

#: Every revision of the schema, oldest first. `HEAD` is what this version of advisor reads and writes.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
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
    "environments",
    METADATA,
    _id(),
    _text("key"),
    _text("payload"),
    _moment("first_seen"),
    UniqueConstraint("key"),
)

#: What plain work reaches on an environment's device, matrix products and copies, as a yardstick for what models reach.
CEILINGS = Table(
    "ceilings",
    METADATA,
    _id(),
    _to("environment_id", "environments"),
    _text("payload"),
    _moment("measured_at"),
    UniqueConstraint("environment_id"),
)

MODELS = Table(
    "models",
    METADATA,
    _id(),
    _text("architecture_key"),
    _text("weights_digest"),
    _text("name"),
    _text("facts", nullable=True),
    UniqueConstraint("architecture_key", "weights_digest"),
)

WORKLOADS = Table(
    "workloads",
    METADATA,
    _id(),
    _text("key"),
    _text("kind"),
    _text("architecture_key"),
    _text("payload"),
    _text("words", nullable=True),
    _figure("padding", nullable=True),
    UniqueConstraint("key"),
    Index(None, "architecture_key"),
)

CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    _id(),
    _text("key"),
    _text("payload"),
    UniqueConstraint("key"),
)

#: Of every knob that a writer of this database knew: the choice that a configuration has which says nothing of it, "" where
#: there is none, and its place in a configuration that people read. What is left out means this for ever.
KNOBS = Table(
    "knobs",
    METADATA,
    _id(),
    _text("name"),
    _text("implied"),
    _number("place"),
    UniqueConstraint("name"),
)

STUDIES = Table(
    "studies",
    METADATA,
    _id(),
    _to("workload_id", "workloads"),
    _to("environment_id", "environments"),
    _to("model_id", "models"),
    _text("objective"),
    _text("objective_key"),
    _text("budget"),
    _number("seed"),
    _text("state"),
    _moment("started_at"),
    _moment("finished_at", nullable=True),
    _number("admissible", nullable=True),
    _text("facts", nullable=True),
    UniqueConstraint("workload_id", "environment_id", "model_id", "objective_key"),
    Index(None, "environment_id"),
)

TRIALS = Table(
    "trials", METADATA,
    _id(), _to("study_id", "studies"), _number("number"), _text("phase"), _number("block", nullable=True),
    _to("requested_id", "configurations"), _to("effective_id", "configurations", nullable=True),
    _text("outcome"), _text("reason"), _text("owner", nullable=True), _moment("lease", nullable=True),
    _number("attempts"), _moment("started_at"), _moment("finished_at", nullable=True),
    _figure("load_s", nullable=True), _figure("first_call_s", nullable=True), _figure("measure_s", nullable=True),
    _figure("wall_s", nullable=True), Column("peak_bytes", BigInteger), Column("weight_bytes", BigInteger),
    _text("quality", nullable=True), _text("reading", nullable=True), _to("reused_from", "trials", nullable=True),
    _text("advisor_version"), _text("device_uuid", nullable=True),
    UniqueConstraint("study_id", "number"), Index(None, "study_id", "requested_id", "finished_at"),
    Index(None, "study_id", "finished_at"),
)  # fmt: skip

MEASUREMENTS = Table(
    "measurements",
    METADATA,
    _id(),
    _to("trial_id", "trials"),
    _text("metric"),
    _text("unit"),
    _text("phase"),
    _text("samples"),
    _number("n"),
    _figure("median"),
    _figure("low"),
    _figure("high"),
    _text("statistic"),
    _text("device_state"),
    UniqueConstraint("trial_id", "metric"),
)

COMPARISONS = Table(
    "comparisons",
    METADATA,
    _id(),
    _to("study_id", "studies"),
    _to("candidate_id", "configurations"),
    _to("baseline_id", "configurations"),
    _figure("ratio"),
    _figure("low"),
    _figure("high"),
    _text("block_ratios"),
    _number("blocks"),
    _text("verdict"),
    _moment("made_at"),
    _number("planned", nullable=True),
    UniqueConstraint("study_id", "candidate_id", "baseline_id"),
)

REFUSALS = Table(
    "refusals",
    METADATA,
    _id(),
    _to("study_id", "studies"),
    _text("subject"),
    _text("about"),
    _text("rule"),
    _text("verdict"),
    _text("reason"),
    _text("remedy"),
    UniqueConstraint("study_id", "subject", "about", "rule"),
)

#: What a study came to under its own objective, by `advisor.advice.suggest`: no configuration where none is right.
RECOMMENDATIONS = Table(
    "recommendations",
    METADATA,
    _id(),
    _to("study_id", "studies"),
    _to("configuration_id", "configurations", nullable=True),
    _text("verdict"),
    _figure("ratio", nullable=True),
    _figure("low", nullable=True),
    _figure("high", nullable=True),
    _number("blocks"),
    _number("tried"),
    _number("admissible", nullable=True),
    _text("why"),
    _moment("made_at"),
    _text("method"),
    UniqueConstraint("study_id"),
)

#: The devices that a daemon's workers tune on. name: of the device, which no other host's has; lease: until when the slot is
#: known to be there, None where it said that it goes; busy_s: seconds that it has spent on jobs.
SLOTS = Table(
    "slots",
    METADATA,
    _id(),
    _text("name"),
    _text("host"),
    _to("environment_id", "environments"),
    _text("device_class"),
    _text("owner", nullable=True),
    _text("state"),
    _text("why"),
    _text("job", nullable=True),
    _figure("busy_s"),
    _moment("lease", nullable=True),
    _text("advisor_version"),
    UniqueConstraint("name"),
)
