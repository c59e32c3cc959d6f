"""votes, scores and training labels in blocks of arrays"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CARRIED_DOWN = ("vote_block", "score_block", "training_block")
"""Tables whose rows ``downgrade`` carries into others, so that nothing of them is lost."""
BLOCK = 4096

campaign = sa.table("campaign", sa.column("name"), sa.column("labels", sa.JSON()))
item = sa.table("item", sa.column("id"), sa.column("campaign"), sa.column("row", sa.Integer()))
round_ = sa.table("round", sa.column("id"), sa.column("campaign"))
vote = sa.table(
    "vote",
    sa.column("item_id"),
    sa.column("variant_hash"),
    sa.column("annotator"),
    sa.column("probs", sa.JSON()),
    sa.column("off_label_mass", sa.Float()),
    sa.column("tokens", sa.Integer()),
    sa.column("usd", sa.Float()),
    sa.column("seconds", sa.Float()),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
score = sa.table(
    "score",
    sa.column("round_id"),
    sa.column("item_id"),
    sa.column("llm_label"),
    sa.column("llm_confidence", sa.Float()),
    sa.column("signals", sa.JSON()),
    sa.column("suspicion", sa.Float()),
)
traininglabel = sa.table(
    "traininglabel",
    sa.column("round_id"),
    sa.column("item_id"),
    sa.column("probs", sa.JSON()),
    sa.column("weight", sa.Float()),
    sa.column("source"),
)
BYTES = sa.LargeBinary()
vote_block = sa.table(
    "vote_block",
    sa.column("campaign"),
    sa.column("annotator"),
    sa.column("variant_hash"),
    sa.column("votes", sa.Integer()),
    sa.column("rows", BYTES),
    sa.column("probs", BYTES),
    sa.column("off_label_mass", BYTES),
    sa.column("tokens", sa.Integer()),
    sa.column("usd", sa.Float()),
    sa.column("timed", sa.Integer()),
    sa.column("seconds", sa.Float()),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
score_block = sa.table(
    "score_block",
    sa.column("round_id"),
    sa.column("start", sa.Integer()),
    sa.column("rows", BYTES),
    sa.column("llm", BYTES),
    sa.column("confidence", BYTES),
    sa.column("suspicion", BYTES),
    sa.column("signals", sa.JSON()),
    sa.column("values", BYTES),
)
training_block = sa.table(
    "training_block",
    sa.column("round_id"),
    sa.column("start", sa.Integer()),
    sa.column("rows", BYTES),
    sa.column("probs", BYTES),
    sa.column("weight", BYTES),
    sa.column("sources", sa.JSON()),
    sa.column("source", BYTES),
)


def upgrade() -> None:
    _number_rows()
    op.create_index("ix_item_campaign_row", "item", ["campaign", "row"], unique=True)
    op.create_table(
        "vote_block",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        sa.Column("variant_hash", sa.String(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("rows", BYTES, nullable=False),
        sa.Column("probs", BYTES, nullable=False),
        sa.Column("off_label_mass", BYTES, nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("timed", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaign.name"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_vote_block_campaign", "vote_block", ["campaign"], unique=False)
    op.create_table(
        "score_block",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("rows", BYTES, nullable=False),
        sa.Column("llm", BYTES, nullable=False),
        sa.Column("confidence", BYTES, nullable=False),
        sa.Column("suspicion", BYTES, nullable=False),
        sa.Column("signals", sa.JSON(), nullable=False),
        sa.Column("values", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"]),
        sa.PrimaryKeyConstraint("round_id", "start"),
    )
    op.create_table(
        "training_block",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("rows", BYTES, nullable=False),
        sa.Column("probs", BYTES, nullable=False),
        sa.Column("weight", BYTES, nullable=False),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("source", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"]),
        sa.PrimaryKeyConstraint("round_id", "start"),
    )
    connection = op.get_bind()
    for name, labels in connection.execute(sa.select(campaign.c.name, campaign.c.labels)).all():
        _votes_to_blocks(connection, name)
        rounds = sa.select(round_.c.id).where(round_.c.campaign == name)
        for id_ in connection.execute(rounds).scalars().all():
            _scores_to_blocks(connection, id_, labels)
            _training_to_blocks(connection, id_)
    for table in ("vote", "score", "traininglabel"):
        op.drop_table(table)


def downgrade() -> None:
    op.create_table(
        "vote",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("variant_hash", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=False),
        sa.Column("probs", sa.JSON(), nullable=False),
        sa.Column("off_label_mass", sa.Float(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("item_id", "variant_hash", "annotator"),
    )
    op.create_index("ix_vote_item_id", "vote", ["item_id"], unique=False)
    op.create_table(
        "score",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("llm_label", sa.String(), nullable=True),
        sa.Column("llm_confidence", sa.Float(), nullable=True),
        sa.Column("signals", sa.JSON(), nullable=False),
        sa.Column("suspicion", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"]),
        sa.PrimaryKeyConstraint("round_id", "item_id"),
    )
    op.create_table(
        "traininglabel",
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("probs", sa.JSON(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"]),
        sa.PrimaryKeyConstraint("round_id", "item_id"),
    )
    connection = op.get_bind()
    for name, labels in connection.execute(sa.select(campaign.c.name, campaign.c.labels)).all():
        query = sa.select(item.c.row, item.c.id).where(item.c.campaign == name)
        ids = dict(connection.execute(query).all())
        blocks = sa.select(vote_block).where(vote_block.c.campaign == name)
        for block in connection.execute(blocks).mappings().all():
            connection.execute(sa.insert(vote), _votes_of(block, ids))
        rounds = sa.select(round_.c.id).where(round_.c.campaign == name)
        for id_ in connection.execute(rounds).scalars().all():
            of_round = sa.select(score_block).where(score_block.c.round_id == id_)
            for block in connection.execute(of_round).mappings().all():
                connection.execute(sa.insert(score), _scores_of(block, ids, labels))
            of_round = sa.select(training_block).where(training_block.c.round_id == id_)
            for block in connection.execute(of_round).mappings().all():
                connection.execute(sa.insert(traininglabel), _training_of(block, ids))
    for table in ("vote_block", "score_block", "training_block"):
        op.drop_table(table)
    op.drop_index("ix_item_campaign_row", "item")


def _number_rows() -> None:
    """Numbers the texts of a campaign again where two have one number."""
    connection = op.get_bind()
    twice = (
        sa.select(item.c.campaign)
        .group_by(item.c.campaign, item.c.row)
        .having(sa.func.count() > 1)
        .distinct()
    )
    for name in connection.execute(twice).scalars().all():
        query = sa.select(item.c.id).where(item.c.campaign == name)
        ids = connection.execute(query.order_by(item.c.row, item.c.id)).scalars().all()
        for row, id_ in enumerate(ids):
            connection.execute(sa.update(item).where(item.c.id == id_).values(row=row))


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, BLOCK)):
        yield chunk


def _streamed(connection: sa.Connection, query: Any) -> Iterator[Any]:
    return iter(connection.execute(query.execution_options(yield_per=BLOCK)))


def _ints(values: Sequence[int]) -> bytes:
    return np.asarray(values, dtype="<i4").tobytes()


def _floats(values: Any) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()


def _votes_to_blocks(connection: sa.Connection, name: str) -> None:
    join = vote.join(item, vote.c.item_id == item.c.id)
    kinds = sa.select(vote.c.annotator, vote.c.variant_hash).select_from(join)
    kinds = kinds.where(item.c.campaign == name).distinct().order_by(*kinds.selected_columns)
    for annotator, variant in connection.execute(kinds).all():
        query = (
            sa.select(vote, item.c.row)
            .select_from(join)
            .where(item.c.campaign == name)
            .where(vote.c.annotator == annotator, vote.c.variant_hash == variant)
            .order_by(item.c.row)
        )
        # where labels came later, answers are of different lengths
        for _, same in groupby(_streamed(connection, query), key=lambda v: len(v.probs)):
            for chunk in _chunks(same):
                block = {
                    "campaign": name,
                    "annotator": annotator,
                    "variant_hash": variant,
                    "votes": len(chunk),
                    "rows": _ints([v.row for v in chunk]),
                    "probs": _floats([v.probs for v in chunk]),
                    "off_label_mass": _floats([v.off_label_mass for v in chunk]),
                    "tokens": sum(v.tokens for v in chunk),
                    "usd": sum(v.usd for v in chunk),
                    "timed": sum(v.seconds > 0 for v in chunk),
                    "seconds": sum(v.seconds for v in chunk),
                    "created_at": max(v.created_at for v in chunk),
                }
                connection.execute(sa.insert(vote_block), [block])


def _scores_to_blocks(connection: sa.Connection, id_: int, labels: Sequence[str]) -> None:
    join = score.join(item, score.c.item_id == item.c.id)
    query = sa.select(score, item.c.row).select_from(join).where(score.c.round_id == id_)
    place = {label: i for i, label in enumerate(labels)}
    start = 0
    for chunk in _chunks(_streamed(connection, query.order_by(item.c.row))):
        names = list(chunk[0].signals)
        block = {
            "round_id": id_,
            "start": start,
            "rows": _ints([s.row for s in chunk]),
            "llm": _ints([place.get(s.llm_label, -1) for s in chunk]),
            "confidence": _floats(
                [np.nan if s.llm_confidence is None else s.llm_confidence for s in chunk]
            ),
            "suspicion": _floats([s.suspicion for s in chunk]),
            "signals": names,
            "values": _floats([[s.signals[name] for s in chunk] for name in names]),
        }
        connection.execute(sa.insert(score_block), [block])
        start += len(chunk)


def _training_to_blocks(connection: sa.Connection, id_: int) -> None:
    table = traininglabel
    join = table.join(item, table.c.item_id == item.c.id)
    query = sa.select(table, item.c.row).select_from(join).where(table.c.round_id == id_)
    start = 0
    for chunk in _chunks(_streamed(connection, query.order_by(item.c.row))):
        sources = sorted({t.source for t in chunk})
        block = {
            "round_id": id_,
            "start": start,
            "rows": _ints([t.row for t in chunk]),
            "probs": _floats([t.probs for t in chunk]),
            "weight": _floats([t.weight for t in chunk]),
            "sources": sources,
            "source": _ints([sources.index(t.source) for t in chunk]),
        }
        connection.execute(sa.insert(training_block), [block])
        start += len(chunk)


def _votes_of(block: sa.RowMapping, ids: Mapping[int, str]) -> list[dict[str, Any]]:
    rows, n = np.frombuffer(block["rows"], "<i4"), block["votes"]
    probs = np.frombuffer(block["probs"], "<f8").reshape(n, -1)
    off = np.frombuffer(block["off_label_mass"], "<f8")
    return [
        {
            "item_id": ids[int(row)],
            "variant_hash": block["variant_hash"],
            "annotator": block["annotator"],
            "probs": probs[i].tolist(),
            "off_label_mass": float(off[i]),
            "tokens": block["tokens"] // n + (i < block["tokens"] % n),
            "usd": block["usd"] / n,
            "seconds": block["seconds"] / block["timed"] if i < block["timed"] else 0.0,
            "created_at": block["created_at"],
        }
        for i, row in enumerate(rows)
    ]


def _scores_of(
    block: sa.RowMapping, ids: Mapping[int, str], labels: Sequence[str]
) -> list[dict[str, Any]]:
    rows, llm = np.frombuffer(block["rows"], "<i4"), np.frombuffer(block["llm"], "<i4")
    confidence = np.frombuffer(block["confidence"], "<f8")
    suspicion = np.frombuffer(block["suspicion"], "<f8")
    values = np.frombuffer(block["values"], "<f8").reshape(len(block["signals"]), len(rows))
    return [
        {
            "round_id": block["round_id"],
            "item_id": ids[int(row)],
            "llm_label": labels[llm[i]] if llm[i] >= 0 else None,
            "llm_confidence": float(confidence[i]) if llm[i] >= 0 else None,
            "signals": dict(zip(block["signals"], values[:, i].tolist(), strict=True)),
            "suspicion": float(suspicion[i]),
        }
        for i, row in enumerate(rows)
    ]


def _training_of(block: sa.RowMapping, ids: Mapping[int, str]) -> list[dict[str, Any]]:
    rows, source = np.frombuffer(block["rows"], "<i4"), np.frombuffer(block["source"], "<i4")
    probs = np.frombuffer(block["probs"], "<f8").reshape(len(rows), -1)
    weight = np.frombuffer(block["weight"], "<f8")
    return [
        {
            "round_id": block["round_id"],
            "item_id": ids[int(row)],
            "probs": probs[i].tolist(),
            "weight": float(weight[i]),
            "source": block["sources"][source[i]],
        }
        for i, row in enumerate(rows)
    ]
