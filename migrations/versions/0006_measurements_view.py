"""A view of every figure, v_measurements. It is made with the others when the upgrade is over: here is how it goes again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing that is stored."""


def downgrade() -> None:
    """Drop the view, which the versions before do not know."""
    op.execute(sa.text("DROP VIEW IF EXISTS v_measurements"))
