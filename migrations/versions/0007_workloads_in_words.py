"""Workloads in words, and the share of pads, for people who read the views: how many tokens a batch is no plain SQL.

The columns are filled when the upgrade is over, by who knows the kinds of work; a kind that nobody here knows has none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns, empty."""
    op.add_column("workloads", sa.Column("words", sa.Text(), nullable=True))
    op.add_column("workloads", sa.Column("padding", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop the columns, and the views that show them: the versions before make their own."""
    for name in ("v_trials", "v_recommendations"):
        op.execute(sa.text(f"DROP VIEW IF EXISTS {name}"))
    for name in ("words", "padding"):
        op.drop_column("workloads", name)
