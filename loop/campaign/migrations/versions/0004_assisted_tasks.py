"""which tasks show assistance"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("review", "hiddencheck"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("assisted", sa.Boolean(), nullable=True))


def downgrade() -> None:
    for table in ("review", "hiddencheck"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("assisted")
