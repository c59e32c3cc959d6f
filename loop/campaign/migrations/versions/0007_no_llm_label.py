"""scores of texts that the LLM gave no label"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UNANSWERED = 2.0
"""Suspicion of a text without any LLM answer; all others lie in [0, 1]."""


def upgrade() -> None:
    with op.batch_alter_table("score", schema=None) as batch_op:
        batch_op.alter_column("llm_label", existing_type=sa.String(), nullable=True)
        batch_op.alter_column("llm_confidence", existing_type=sa.Float(), nullable=True)
    score = sa.table(
        "score", sa.column("llm_label"), sa.column("llm_confidence"), sa.column("suspicion")
    )
    op.execute(
        sa.update(score)
        .where(score.c.suspicion >= UNANSWERED)
        .values(llm_label=None, llm_confidence=None)
    )


def downgrade() -> None:
    score = sa.table(
        "score", sa.column("llm_label"), sa.column("llm_confidence"), sa.column("suspicion")
    )
    op.execute(
        sa.update(score).where(score.c.llm_label.is_(None)).values(llm_label="", llm_confidence=0.0)
    )
    with op.batch_alter_table("score", schema=None) as batch_op:
        batch_op.alter_column("llm_confidence", existing_type=sa.Float(), nullable=False)
        batch_op.alter_column("llm_label", existing_type=sa.String(), nullable=False)
