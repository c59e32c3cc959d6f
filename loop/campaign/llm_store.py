"""What the store knows of the LLM: its prompts, its votes, and what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import delete, exists, func, insert, inspect, update
from sqlmodel import Session, col, select

from loop.campaign.tables import (
    RIVAL_MARK,
    ContentFree,
    Item,
    LlmCalls,
    Unanswered,
    Variant,
    VoteBlock,
    damaged,
    now,
)
from loop.ports import BoolArray, FloatArray, IntArray

OTHER_ITEM = inspect(Item).local_table.alias("other_item")
"""The table of texts beside itself in a query; such an alias costs 1 ms each time it is made."""

_NEW_VOTES = insert(VoteBlock)

BLOCKS_AT_ONCE = 64
"""Blocks of votes that are in memory while all are read."""


class Spent(NamedTuple):
    """What the LLM has cost a campaign so far."""

    votes: int
    usd: float
    tokens: int
    seconds: float


class VoteTimes(NamedTuple):
    """How long one annotator's votes took.

    Attributes:
        timed: votes whose time was taken.
        seconds: their time together.
    """

    timed: int
    seconds: float


class LlmStore(ABC):
    """The store's part about the LLM. Votes are append-only."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Session]:
        """See ``loop.campaign.database.Database``."""

    def add_votes(
        self,
        session: Session,
        campaign: str,
        annotator: str,
        variant_hash: str,
        *,
        rows: IntArray,
        probs: FloatArray,
        off_label_mass: FloatArray,
        tokens: int,
        usd: float,
        seconds: float,
    ) -> None:
        """Appends n answers, in the caller's transaction; no text may have one under this variant.

        Args:
            rows: (n,) ``Item.row`` of each text.
            probs: (n, k).
            off_label_mass: (n,).
            tokens, usd, seconds: what they took together; 0 seconds where nobody looked.
        """
        if not len(rows):
            return
        values = {
            "campaign": campaign,
            "annotator": annotator,
            "variant_hash": variant_hash,
            "votes": len(rows),
            "rows": rows,
            "probs": np.ravel(probs),
            "off_label_mass": off_label_mass,
            "tokens": tokens,
            "usd": usd,
            "timed": len(rows) if seconds > 0 else 0,
            "seconds": seconds,
            "created_at": now(),
        }
        session.connection().execute(_NEW_VOTES, values)

    def votes(self, campaign: str, annotator: str) -> Iterator[VoteBlock]:
        """The annotator's votes, block by block, in the order in which they came.

        Raises:
            StoreError: a block is damaged.
        """
        query = _votes_of(campaign, annotator).order_by(col(VoteBlock.id))
        with self.transaction() as session:
            for block in session.exec(query.execution_options(yield_per=BLOCKS_AT_ONCE)):
                n, numbers = len(block.rows), len(block.probs)
                equal = n == block.votes == len(block.off_label_mass)
                if not equal or numbers < max(n, 1) or numbers % n:
                    raise damaged(f"the votes of block {block.id} are of different lengths")
                yield block

    def last_annotator(self, campaign: str, before: datetime | None = None) -> str | None:
        """Revision of the annotator that voted last, rivals of a comparison left out.

        Args:
            before: only votes that came no later than this; None is all.
        """
        query = select(VoteBlock.annotator).where(
            VoteBlock.campaign == campaign, col(VoteBlock.annotator).not_like(f"%{RIVAL_MARK}%")
        )
        if before is not None:
            query = query.where(VoteBlock.created_at <= before)
        with self.transaction() as session:
            return session.exec(query.order_by(col(VoteBlock.id).desc()).limit(1)).first()

    def voted(self, campaign: str, annotator: str) -> dict[str, BoolArray]:
        """By variant hash, whether each text has a vote; its place is its ``Item.row``.

        Texts beyond the end of an array have none.
        """
        query = select(VoteBlock.variant_hash, VoteBlock.rows).where(
            VoteBlock.campaign == campaign, VoteBlock.annotator == annotator
        )
        blocks: dict[str, list[IntArray]] = {}
        with self.transaction() as session:
            for variant, rows in session.exec(query):
                blocks.setdefault(variant, []).append(rows)
        voted: dict[str, BoolArray] = {}
        for variant, parts in blocks.items():
            rows = np.concatenate(parts)
            voted[variant] = np.zeros(int(rows.max()) + 1, dtype=np.bool_)
            voted[variant][rows] = True
        return voted

    def spent(self, campaign: str) -> Spent:
        """What the LLM has cost, answers of all annotators and failures included."""
        with self.transaction() as session:

            def totals(table: Any, count: Any = None) -> Any:
                sums = (func.sum(column) for column in (table.usd, table.tokens, table.seconds))
                count = func.count() if count is None else count
                return select(count, *sums).select_from(table)

            votes, failed, empty = (
                session.exec(query).one()
                for query in (
                    totals(VoteBlock, func.sum(VoteBlock.votes)).where(
                        VoteBlock.campaign == campaign
                    ),
                    totals(Unanswered).where(of_campaign(Unanswered.item_id, campaign)),
                    totals(ContentFree).where(ContentFree.campaign == campaign),
                )
            )
            lost = session.exec(_calls_usd(campaign).where(col(LlmCalls.ended_at).is_not(None)))
            lost_usd = lost.one() or 0.0
        usd, tokens, seconds = (
            sum(row[i] or 0 for row in (votes, failed, empty)) for i in (1, 2, 3)
        )
        return Spent(int(votes[0] or 0), float(usd + lost_usd), int(tokens), float(seconds))

    def open_llm_usd(self, campaign: str) -> float:
        """The most that LLM calls may cost which are under way or were interrupted."""
        with self.transaction() as session:
            query = _calls_usd(campaign).where(col(LlmCalls.ended_at).is_(None))
            return float(session.exec(query).one() or 0.0)

    def open_calls(self, campaign: str, annotator: str) -> dict[int | None, float]:
        """The most that each of an annotator's calls may cost which are under way or interrupted.

        Those without a number of calls are left out: answers have shown what they may have cost.
        """
        with self.transaction() as session:
            query = select(LlmCalls.id, LlmCalls.usd).where(
                LlmCalls.campaign == campaign,
                LlmCalls.annotator == annotator,
                col(LlmCalls.ended_at).is_(None),
                LlmCalls.calls > 0,
            )
            return dict(session.exec(query.order_by(col(LlmCalls.id))).all())

    def vote_times(self, campaign: str, annotator: str) -> VoteTimes:
        """How long one annotator's votes took."""
        with self.transaction() as session:
            query = select(func.sum(VoteBlock.timed), func.sum(VoteBlock.seconds)).where(
                VoteBlock.campaign == campaign, VoteBlock.annotator == annotator
            )
            timed, seconds = session.exec(query).one()
        return VoteTimes(int(timed or 0), float(seconds or 0.0))

    def variants(self, campaign: str, annotator: str) -> list[Variant]:
        """The frozen prompt variants that are asked now, in order."""
        with self.transaction() as session:
            query = select(Variant).where(
                Variant.campaign == campaign, Variant.annotator == annotator
            )
            stored = list(session.exec(query.order_by(col(Variant.position))).all())
        newest = max((variant.from_round for variant in stored), default=0)
        return [variant for variant in stored if variant.from_round == newest]

    def annotators(self, campaign: str) -> list[str]:
        """Revisions of the annotators with frozen prompts."""
        with self.transaction() as session:
            query = select(Variant.annotator).where(Variant.campaign == campaign).distinct()
            return sorted(session.exec(query).all())

    def unanswered(self, campaign: str, annotator: str) -> list[Unanswered]:
        """The last failure of each question of the present prompts that has no vote, oldest first.

        An item counts once for each prompt variant that failed.
        """
        asked = {variant.hash for variant in self.variants(campaign, annotator)}
        with self.transaction() as session:
            query = (
                select(Unanswered, Item.row)
                .join(Item, col(Unanswered.item_id) == col(Item.id))
                .where(of_campaign(Unanswered.item_id, campaign))
                .where(Unanswered.annotator == annotator)
                .order_by(col(Unanswered.id))
            )
            misses = session.exec(query).all()
        last = {(u.item_id, u.variant_hash): (u, row) for u, row in misses}
        if not last:
            return []
        voted = self.voted(campaign, annotator)
        return [
            u
            for u, row in last.values()
            if u.variant_hash in asked and not _has(voted.get(u.variant_hash), row)
        ]

    def content_free(self, campaign: str, annotator: str) -> dict[str, list[Sequence[float]]]:
        """Class probabilities of texts without content, by variant hash."""
        with self.transaction() as session:
            query = select(ContentFree).where(
                ContentFree.campaign == campaign, ContentFree.annotator == annotator
            )
            probs: dict[str, list[Sequence[float]]] = {}
            for row in session.exec(query.order_by(col(ContentFree.text))).all():
                probs.setdefault(row.variant_hash, []).append(row.probs)
        return probs

    def replace_variants(
        self, campaign: str, annotator: str, from_round: int, variants: Sequence[Variant]
    ) -> None:
        """Freezes the prompt variants of a round, instead of those that it had."""
        with self.transaction() as session:
            session.exec(
                delete(Variant).where(
                    col(Variant.campaign) == campaign,
                    col(Variant.annotator) == annotator,
                    col(Variant.from_round) == from_round,
                )
            )
            session.add_all(variants)

    def forget_variants(self, session: Session, campaign: str) -> None:
        """Forgets all frozen prompts, in the caller's transaction."""
        session.exec(delete(Variant).where(col(Variant.campaign) == campaign))

    def begin_calls(
        self,
        campaign: str,
        annotator: str,
        calls: int,
        usd: float,
        session: Session | None = None,
    ) -> int | None:
        """Notes calls before they are made, and the most that they may cost; their id.

        Args:
            session: the caller's transaction; None opens one.
        """
        if session is None:
            with self.transaction() as own:
                return self.begin_calls(campaign, annotator, calls, usd, own)
        row = LlmCalls(campaign=campaign, annotator=annotator, calls=calls, usd=usd)
        session.add(row)
        session.flush()
        return row.id

    def lower_calls(self, session: Session, calls_id: int | None, usd: float) -> None:
        """What may still cost something may cost so much; with 0 the note goes.

        In the caller's transaction.
        """
        row = col(LlmCalls.id) == calls_id
        change = update(LlmCalls).values(usd=usd) if usd else delete(LlmCalls)
        session.exec(change.where(row))

    def end_calls(self, calls_id: int | None, usd: float) -> None:
        """There is no answer to store; what it cost is kept."""
        with self.transaction() as session:
            self.lower_calls(session, calls_id, usd)
            row = col(LlmCalls.id) == calls_id
            session.exec(update(LlmCalls).where(row).values(ended_at=now()))


def of_campaign(item_id: Any, campaign: str) -> Any:
    """Whether a row is about a text of the campaign.

    A join would let the database go through all texts rather than through the few rows.
    """
    item = OTHER_ITEM.c
    return exists().where(item.id == item_id, item.campaign == campaign)


def _votes_of(campaign: str, annotator: str) -> Any:
    return select(VoteBlock).where(VoteBlock.campaign == campaign, VoteBlock.annotator == annotator)


def _has(voted: BoolArray | None, row: int) -> bool:
    return voted is not None and row < len(voted) and bool(voted[row])


def _calls_usd(campaign: str) -> Any:
    return select(func.sum(LlmCalls.usd)).where(LlmCalls.campaign == campaign)
