"""LLM calls under way in the ledger, and how many people a hidden check was given to"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("hiddencheck", schema=None) as batch_op:
        batch_op.add_column(sa.Column("asked", sa.Integer(), nullable=True))
    op.create_table(
        "llmcalls",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["campaign"], ["campaign.name"]),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("llmcalls", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_llmcalls_campaign"), ["campaign"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("llmcalls", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_llmcalls_campaign"))
    op.drop_table("llmcalls")
    with op.batch_alter_table("hiddencheck", schema=None) as batch_op:
        batch_op.drop_column("asked")
