"""how many people are asked about a text; hidden checks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hiddencheck",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("hiddencheck", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_hiddencheck_item_id"), ["item_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_hiddencheck_round_id"), ["round_id"], unique=False)
    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.add_column(sa.Column("wanted", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("asked", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.drop_column("asked")
        batch_op.drop_column("wanted")
    with op.batch_alter_table("hiddencheck", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hiddencheck_round_id"))
        batch_op.drop_index(batch_op.f("ix_hiddencheck_item_id"))
    op.drop_table("hiddencheck")
