"""How many blocks were planned for a comparison, which says how its interval is made.

Written out and never changed, like 0001. A column is added and no view is touched, so that whatever people built stays; the
comparisons that are there were not looked at before all their blocks were run, and have none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("comparisons", sa.Column("planned", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("comparisons", "planned")
