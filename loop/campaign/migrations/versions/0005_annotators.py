"""several annotators and generations of prompts; failures and content-free answers in the ledger"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NEWEST = (
    "NOT EXISTS (SELECT 1 FROM variant_before o WHERE o.hash = b.hash AND o.campaign = b.campaign"
    " AND (o.from_round > b.from_round OR (o.from_round = b.from_round"
    " AND o.annotator > b.annotator)))"
)
"""Which row stays where the old key allows only one."""
OLD_KEY, NEW_KEY = ["hash", "campaign"], ["hash", "campaign", "annotator", "from_round"]


def upgrade() -> None:
    _variant_with_key(NEW_KEY, add=True)
    op.create_table(
        "unanswered",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("variant_hash", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("unanswered", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_unanswered_item_id"), ["item_id"], unique=False)
    op.create_table(
        "contentfree",
        sa.Column("variant_hash", sa.String(), nullable=False),
        sa.Column("campaign", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("probs", sa.JSON(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaign.name"]),
        sa.PrimaryKeyConstraint("variant_hash", "campaign", "annotator", "text"),
    )


def downgrade() -> None:
    op.drop_table("contentfree")
    with op.batch_alter_table("unanswered", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_unanswered_item_id"))
    op.drop_table("unanswered")
    _variant_with_key(OLD_KEY, add=False)


def _variant_with_key(key: list[str], *, add: bool) -> None:
    """Rebuilds the table: SQLite cannot change a primary key in place."""
    columns = ["hash", "campaign", "position", "annotator", "prefix", "demonstrations"]
    columns.append("created_at")
    op.rename_table("variant", "variant_before")
    extra = [sa.Column("from_round", sa.Integer(), nullable=False)] if add else []
    op.create_table(
        "variant",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("campaign", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        *extra,
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("demonstrations", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaign.name"]),
        # named, because in PostgreSQL the renamed table keeps the name that a key gets by itself
        sa.PrimaryKeyConstraint(*key, name="variant_key" if add else "variant_pkey_before"),
    )
    listed = ", ".join(columns)
    into, out_of = (f"{listed}, from_round", f"{listed}, 0") if add else (listed, listed)
    query = f"INSERT INTO variant ({into}) SELECT {out_of} FROM variant_before b"  # noqa: S608
    op.execute(query if add else f"{query} WHERE {NEWEST}")
    op.drop_table("variant_before")
