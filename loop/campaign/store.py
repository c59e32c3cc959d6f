"""The store: every query, on SQLite by default and PostgreSQL by URL.

Votes and annotations are append-only. A stage writes its results and the round's new stage in one
``Store.transaction``, so a process killed between any two lines leaves a campaign that resumes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from loop.campaign.database import Database
from loop.campaign.llm_store import LlmStore
from loop.campaign.metrics import RoundMetrics
from loop.campaign.tables import (
    Annotation,
    CampaignRow,
    Event,
    Gold,
    HiddenCheck,
    Item,
    Review,
    Round,
    Run,
    Score,
    TrainingLabel,
    now,
    round_id,
)
from loop.errors import StageError, StoreError
from loop.ports import unknown_label


class SeenAnswer(NamedTuple):
    """One state of an answer that is stored already.

    Attributes:
        superseded: whether a later state, or none, has taken its place.
    """

    id: int
    annotation_id: str
    updated_at: str
    task_id: str
    superseded: bool


class Store(Database, LlmStore):
    """All campaigns of one database: their texts, rounds, reviews, answers and gold."""

    # campaign and items

    def open_campaign(self, name: str, labels: Sequence[str]) -> tuple[str, ...]:
        """Makes the campaign's row if it is new; the labels that have come since it was begun.

        New labels are taken at the end alone, so that stored class numbers keep their meaning.
        Answers that chose one of them before it was known are read again.

        Raises:
            StoreError: the campaign has other labels, or in another order.
        """
        with self.transaction() as session:
            row = session.get(CampaignRow, name)
            if row is None:
                session.add(CampaignRow(name=name, labels=list(labels)))
                return ()
            new = _new_labels(row, labels)
            if new:
                row.labels = list(labels)
                session.add(row)
                self.log(session, name, "labels", "added", labels=list(new))
                _read_anew(session, name, new)
            return new

    def check_labels(self, name: str, labels: Sequence[str]) -> None:
        """Looks whether the labels fit a campaign that may have begun; writes nothing.

        Raises:
            StoreError: as ``open_campaign``.
        """
        with self.transaction() as session:
            if (row := session.get(CampaignRow, name)) is not None:
                _new_labels(row, labels)

    def campaign_uid(self, campaign: str) -> str:
        """What marks the campaign's project on Label Studio.

        Raises:
            StoreError: the campaign has not begun.
        """
        with self.transaction() as session:
            row = session.get(CampaignRow, campaign)
        if row is None:
            raise StoreError(f"Campaign {campaign!r} has not begun; run `goldloop run` first.")
        return row.uid

    def labels(self, campaign: str) -> list[str]:
        """The campaign's labels; none before it has begun."""
        with self.transaction() as session:
            row = session.get(CampaignRow, campaign)
            return list(row.labels) if row else []

    def project_id(self, campaign: str) -> str | None:
        """The campaign's Label Studio project, or None before the first push."""
        with self.transaction() as session:
            row = session.get(CampaignRow, campaign)
            return row.project_id if row else None

    def set_project(self, campaign: str, project_id: str) -> None:
        """Remembers the Label Studio project."""
        with self.transaction() as session:
            session.exec(
                update(CampaignRow)
                .where(col(CampaignRow.name) == campaign)
                .values(project_id=project_id)
            )

    def read_anew(self, campaign: str) -> None:
        """Forgets how far people's answers were read: the next pull reads them all."""
        with self.transaction() as session:
            self.set_pull_cursor(session, campaign, None)

    def pull_cursor(self, campaign: str) -> str | None:
        """How far people's answers were read; None reads them all."""
        with self.transaction() as session:
            row = session.get(CampaignRow, campaign)
            return row.pull_cursor if row else None

    def set_pull_cursor(self, session: Session, campaign: str, cursor: str | None) -> None:
        """Remembers how far people's answers were read, in the caller's transaction."""
        session.exec(
            update(CampaignRow).where(col(CampaignRow.name) == campaign).values(pull_cursor=cursor)
        )

    def item_count(self, campaign: str) -> int:
        """How many texts are in."""
        with self.transaction() as session:
            query = select(func.count()).select_from(Item).where(Item.campaign == campaign)
            return int(session.exec(query).one())

    def item_ids(self, campaign: str, split: str) -> list[str]:
        """Ids of one split, in source order; far quicker than the items themselves."""
        with self.transaction() as session:
            query = select(Item.id).where(Item.campaign == campaign, Item.split == split)
            return list(session.exec(query.order_by(col(Item.row))).all())

    def items(self, campaign: str, *splits: str) -> list[Item]:
        """Items of the given splits (all if none), in source order."""
        with self.transaction() as session:
            query = select(Item).where(Item.campaign == campaign)
            if splits:
                query = query.where(col(Item.split).in_(splits))
            return list(session.exec(query.order_by(col(Item.row))).all())

    def texts(self, item_ids: Collection[str]) -> dict[str, str]:
        """Texts by item id, of a few items."""
        with self.transaction() as session:
            query = select(Item.id, Item.text).where(col(Item.id).in_(item_ids))
            return dict(session.exec(query).all())

    def update_item(
        self, session: Session, item_id: str, known_label: str | None, meta: Mapping[str, Any]
    ) -> None:
        """Takes up what the source says of a text now, in the caller's transaction."""
        values = {"known_label": known_label, "meta": dict(meta)}
        session.exec(update(Item).where(col(Item.id) == item_id).values(**values))

    # rounds

    def add_round(self, session: Session, round_: Round) -> None:
        """Opens a round, in the caller's transaction."""
        session.add(round_)

    def last_round(self, campaign: str) -> Round | None:
        """The newest round."""
        rounds = self.rounds(campaign)
        return rounds[-1] if rounds else None

    def rounds(self, campaign: str) -> list[Round]:
        """All rounds, oldest first."""
        with self.transaction() as session:
            query = select(Round).where(Round.campaign == campaign).order_by(col(Round.number))
            return list(session.exec(query).all())

    def advance(self, session: Session, round_: Round, stage: str) -> None:
        """Moves a round to its next stage, in the caller's transaction.

        Raises:
            StageError: the stored round is no longer at the stage of ``round_``.
        """
        values: dict[str, Any] = {"stage": stage}
        if stage == "done":
            values["closed_at"] = now()
        here = col(Round.id) == round_.id, col(Round.stage) == round_.stage
        if session.exec(update(Round).where(*here).values(**values)).rowcount != 1:
            raise StageError(
                f"Round {round_.number} is no longer at stage {round_.stage!r}: another process"
                " has moved it on. Nothing was stored; run the same command again to go on from"
                " where it is."
            )
        round_.stage = stage

    def set_round_config(self, session: Session, round_: Round, config: Mapping[str, Any]) -> None:
        """Changes the campaign file that a round runs by, in the caller's transaction."""
        session.exec(update(Round).where(col(Round.id) == round_id(round_)).values(config=config))

    def set_metrics(self, session: Session, round_: Round, metrics: RoundMetrics) -> None:
        """Stores what a round measured, in the caller's transaction."""
        session.exec(update(Round).where(col(Round.id) == round_id(round_)).values(metrics=metrics))

    def scores(self, round_id: int) -> dict[str, Score]:
        """Scores of a round by item id."""
        with self.transaction() as session:
            query = select(Score).where(Score.round_id == round_id)
            return {s.item_id: s for s in session.exec(query).all()}

    def training_labels(self, round_id: int) -> list[TrainingLabel]:
        """Training labels of a round, by item id."""
        with self.transaction() as session:
            query = select(TrainingLabel).where(TrainingLabel.round_id == round_id)
            return list(session.exec(query.order_by(col(TrainingLabel.item_id))).all())

    def add_run(self, run: Run) -> None:
        """Keeps a trained seed."""
        with self.transaction() as session:
            session.add(run)

    def runs(self, campaign: str) -> list[Run]:
        """Every trained seed, by round, arm and seed."""
        with self.transaction() as session:
            query = (
                select(Run)
                .join(Round, col(Run.round_id) == col(Round.id))
                .where(Round.campaign == campaign)
                .order_by(col(Run.round_id), col(Run.arm), col(Run.seed))
            )
            return list(session.exec(query).all())

    # reviews: what people are asked

    def reviews(
        self, campaign: str, round_id: int | None = None, *, session: Session | None = None
    ) -> list[Review]:
        """The outbox, by round and rank; what is changed of it in ``session`` is stored with it."""
        with self.within(session) as session:
            query = select(Review).join(Item).where(Item.campaign == campaign)
            if round_id is not None:
                query = query.where(Review.round_id == round_id)
            query = query.order_by(col(Review.round_id), col(Review.rank))
            return list(session.exec(query).all())

    def reviews_by_item(self, campaign: str, round_id: int | None = None) -> dict[str, Review]:
        """The outbox by item id."""
        return {r.item_id: r for r in self.reviews(campaign, round_id)}

    def checks(
        self, campaign: str, round_id: int | None = None, *, session: Session | None = None
    ) -> list[HiddenCheck]:
        """Hidden checks, by round and rank."""
        with self.within(session) as session:
            query = select(HiddenCheck).join(Item).where(Item.campaign == campaign)
            if round_id is not None:
                query = query.where(HiddenCheck.round_id == round_id)
            return list(
                session.exec(query.order_by(col(HiddenCheck.round_id), col(HiddenCheck.rank))).all()
            )

    def mark_sent(
        self, session: Session, task_ids: Mapping[str, str], *, asked: int, assisted: Iterable[str]
    ) -> None:
        """Remembers the tasks of reviews and hidden checks, in the caller's transaction.

        Args:
            task_ids: by the id of the item or check.
            asked: how many people each was given to.
            assisted: ids of those whose page helps.
        """
        helped, sent_at = set(assisted), now()
        for item_id, task_id in task_ids.items():
            values = {
                "task_id": task_id,
                "sent_at": sent_at,
                "asked": asked,
                "assisted": item_id in helped,
            }
            session.exec(update(HiddenCheck).where(col(HiddenCheck.id) == item_id).values(**values))
            session.exec(update(Review).where(col(Review.item_id) == item_id).values(**values))

    def set_asked(self, wanted: Mapping[str, int]) -> None:
        """Remembers how many people were asked about each item, by its id."""
        with self.transaction() as session:
            for item_id, asked in wanted.items():
                session.exec(
                    update(Review).where(col(Review.item_id) == item_id).values(asked=asked)
                )

    def set_outcome(self, session: Session, item_id: str, outcome: str | None) -> None:
        """What became of a review, in the caller's transaction."""
        session.exec(update(Review).where(col(Review.item_id) == item_id).values(outcome=outcome))

    def take_back(self, session: Session, ids: Iterable[str]) -> None:
        """Deletes reviews and hidden checks, by the id that their task carries."""
        for id_ in ids:
            session.exec(delete(Review).where(col(Review.item_id) == id_))
            session.exec(delete(HiddenCheck).where(col(HiddenCheck.id) == id_))

    # answers and gold: what people said

    def annotations(
        self,
        campaign: str,
        item_ids: Iterable[str] | None = None,
        *,
        session: Session | None = None,
    ) -> list[Annotation]:
        """Current answers: those not superseded."""
        with self.within(session) as session:
            query = select(Annotation).where(
                Annotation.campaign == campaign, col(Annotation.superseded_at).is_(None)
            )
            rows = session.exec(query.order_by(col(Annotation.id))).all()
        wanted = None if item_ids is None else set(item_ids)
        return [a for a in rows if wanted is None or a.item_id in wanted]

    def answer_counts(self, session: Session, campaign: str) -> dict[str, int]:
        """How many people have answered, by the id that a task carries; read in ``session``."""
        people = func.count(func.distinct(Annotation.annotator))
        query = (
            select(Annotation.item_id, people)
            .where(Annotation.campaign == campaign, col(Annotation.superseded_at).is_(None))
            .group_by(col(Annotation.item_id))
        )
        return {item_id: int(n) for item_id, n in session.exec(query).all()}

    def answers_seen(self, session: Session, campaign: str) -> list[SeenAnswer]:
        """Every state of every answer that is stored; quicker than the answers themselves."""
        a = Annotation
        columns = (a.id, a.annotation_id, a.updated_at, a.task_id, a.superseded_at)
        query = select(*columns).where(a.campaign == campaign)  # type: ignore[call-overload]
        return [
            SeenAnswer(id_, annotation_id, updated_at, task_id, at is not None)
            for id_, annotation_id, updated_at, task_id, at in session.execute(query).all()
        ]

    def add_answers(self, session: Session, answers: Sequence[Annotation]) -> None:
        """Appends states of answers, in the caller's transaction."""
        session.add_all(answers)

    def supersede(self, session: Session, ids: Sequence[int], at: datetime | None) -> None:
        """Says since when states of answers no longer count, or with None that they do again."""
        for start in range(0, len(ids), 500):
            session.exec(
                update(Annotation)
                .where(col(Annotation.id).in_(ids[start : start + 500]))
                .values(superseded_at=at)
            )

    def gold(self, campaign: str) -> dict[str, Gold]:
        """Gold labels by item id."""
        with self.transaction() as session:
            query = select(Gold).join(Item).where(Item.campaign == campaign)
            return {g.item_id: g for g in session.exec(query).all()}

    def put_gold(self, session: Session, gold: Gold) -> None:
        """Keeps a gold label, instead of the one that the item had."""
        session.merge(gold)

    def delete_gold(self, session: Session, gold: Gold) -> None:
        """Forgets a gold label, in the caller's transaction."""
        session.delete(session.merge(gold))

    # the audit trail

    def last_event(self, campaign: str, command: str, what: str) -> Event | None:
        """The newest line of the audit trail about one thing."""
        with self.transaction() as session:
            query = select(Event).where(
                Event.campaign == campaign, Event.command == command, Event.what == what
            )
            return session.exec(query.order_by(col(Event.id).desc()).limit(1)).first()

    def log(self, session: Session, campaign: str, command: str, what: str, **detail: Any) -> None:
        """Adds a line to the audit trail, in the caller's transaction."""
        session.add(Event(campaign=campaign, command=command, what=what, detail=detail))


def _new_labels(row: CampaignRow, labels: Sequence[str]) -> tuple[str, ...]:
    had = len(row.labels)
    if row.labels != list(labels[:had]):
        raise StoreError(
            f"Campaign {row.name!r} was begun with labels {row.labels}, the file now says"
            f" {list(labels)}; restore them (new ones go to the end), or give the campaign a new"
            " name."
        )
    return tuple(labels[had:])


def _read_anew(session: Session, campaign: str, labels: Sequence[str]) -> None:
    """Answers that chose one of the labels before the campaign had it count from now on."""
    for label in labels:
        session.exec(
            update(Annotation)
            .where(
                col(Annotation.campaign) == campaign,
                col(Annotation.problem) == unknown_label(label),
            )
            .values(label=label, problem=None)
        )
