"""The store: every query, on SQLite by default and PostgreSQL by URL.

Votes and annotations are append-only. A stage writes its results and the round's new stage in one
``Store.transaction``, so a process killed between any two lines leaves a campaign that resumes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Text, bindparam, cast, delete, func, update
from sqlalchemy import select as select_rows
from sqlmodel import Session, col, select

from loop.campaign.database import Database, from_json
from loop.campaign.llm_store import LlmStore, of_campaign
from loop.campaign.metrics import RoundMetrics
from loop.campaign.tables import (
    OF_PROJECT,
    Annotation,
    CampaignRow,
    Event,
    Gold,
    HiddenCheck,
    Item,
    ItemKey,
    Review,
    Round,
    Run,
    Score,
    ScoreBlock,
    Scores,
    StoredText,
    TrainingBlock,
    TrainingLabel,
    TrainingLabels,
    damaged,
    now,
    round_id,
)
from loop.errors import StageError, StoreError
from loop.ports import TextItem, unknown_label

BLOCK = 65_536
"""Texts whose scores or training labels are one row of the database."""
IDS_AT_ONCE = 500
"""Ids in one query."""
MOSTLY_WANTED = 2
"""Where fewer than so many times as many texts lie together as are wanted, all are read."""
_TEXTS: Any = select_rows(Item.id, Item.text)  # type: ignore[call-overload]
_META = cast(Item.meta, Text)
"""As JSON, which ``from_json`` reads at a fraction of what the column's own type takes."""
_TEXT_ITEMS: Any = select_rows(Item.id, Item.text, _META)  # type: ignore[call-overload]
_TEXT_COUNT = select_rows(func.count()).select_from(Item)
_STREAMED = {"yield_per": 5_000}
_KEYS: Any = select_rows(Item.id, Item.row, Item.split, Item.known_label)  # type: ignore[call-overload]


class SeenAnswer(NamedTuple):
    """One state of an answer that is stored already.

    Attributes:
        superseded: whether a later state, or none, has taken its place.
    """

    id: int
    annotation_id: str
    updated_at: str
    task_id: str
    annotator: str
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

    def change_project(self, session: Session, campaign: str, old: str, new: str) -> None:
        """Remembers another project, in the caller's transaction; the next pull reads it whole.

        Numbers of tasks and answers say from now on that they are the old project's, because the
        new one's may be the same.
        """
        values = {"project_id": new, "pull_cursor": None}
        of_it = col(CampaignRow.name) == campaign
        session.exec(update(CampaignRow).where(of_it).values(**values))
        numbers: tuple[tuple[Any, Any], ...] = (
            (Annotation.annotation_id, Annotation.campaign == campaign),
            (Annotation.task_id, Annotation.campaign == campaign),
            (Review.task_id, of_campaign(Review.item_id, campaign)),
            (HiddenCheck.task_id, of_campaign(HiddenCheck.item_id, campaign)),
        )
        for number, ours in numbers:
            unmarked = col(number).not_like(f"%{OF_PROJECT}%")
            marked = {number.key: col(number) + f"{OF_PROJECT}{old}"}
            session.exec(update(number.class_).where(ours, unmarked).values(**marked))

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

    def item_count(self, campaign: str, split: str | None = None) -> int:
        """How many texts are in, of one split or of all."""
        with self.transaction() as session:
            query = select(func.count()).select_from(Item).where(Item.campaign == campaign)
            if split is not None:
                query = query.where(Item.split == split)
            return int(session.exec(query).one())

    def items(self, campaign: str, *splits: str) -> list[Item]:
        """Items of the given splits (all if none) with their texts, in source order."""
        with self.transaction() as session:
            query = select(Item).where(Item.campaign == campaign)
            if splits:
                query = query.where(col(Item.split).in_(splits))
            return list(session.exec(query.order_by(col(Item.row))).all())

    def stored_texts(self, campaign: str, *splits: str) -> list[StoredText]:
        """The texts of the given splits (all if none), in source order."""
        columns: Any = (getattr(Item, name) for name in StoredText._fields[:-1])
        query = select_rows(*columns, _META).where(col(Item.campaign) == campaign)
        if splits:
            query = query.where(col(Item.split).in_(splits))
        with self.transaction() as session:
            rows = session.connection().execute(query.order_by(col(Item.row)))
            return [StoredText._make((*row[:-1], from_json(row[-1]))) for row in rows]

    def keys(self, campaign: str, *splits: str) -> list[ItemKey]:
        """Which texts there are in the given splits (all if none), in source order."""
        with self.transaction() as session:
            query = _KEYS.where(col(Item.campaign) == campaign)
            if splits:
                query = query.where(col(Item.split).in_(splits))
            rows = session.connection().execute(query.order_by(col(Item.row)))
            return [ItemKey(*row) for row in rows.all()]

    def keys_of(self, item_ids: Collection[str]) -> list[ItemKey]:
        """Which texts these are, in source order."""
        found = [ItemKey(*row) for row in self._of(item_ids, _KEYS)]
        return sorted(found, key=lambda key: key.row)

    def items_of(self, item_ids: Collection[str]) -> list[Item]:
        """A part of the campaign's items with their texts, in source order."""
        found = [Item(**row._mapping) for row in self._of(item_ids, select_rows(Item))]
        return sorted(found, key=lambda item: item.row)

    def text_items(self, campaign: str, keys: Sequence[ItemKey]) -> dict[str, TextItem]:
        """What annotators and raters see of a part of the campaign's texts, by id."""
        told = self._about(campaign, keys, _TEXT_ITEMS)
        return {id_: TextItem(id_, text, from_json(meta)) for id_, text, meta in told}

    def texts_of(self, campaign: str, keys: Sequence[Item | ItemKey]) -> dict[str, str]:
        """Texts by item id, of a part of the campaign's items: quicker than by their ids."""
        return dict(map(tuple, self._about(campaign, keys, _TEXTS)))

    def _about(self, campaign: str, keys: Sequence[Item | ItemKey], query: Any) -> Iterator[Any]:
        """What a query for ids, and more, says of these texts, in any order."""
        rows, wanted = [key.row for key in keys], {key.id for key in keys}
        first, last = min(rows, default=0), max(rows, default=-1)
        if last - first >= MOSTLY_WANTED * len(rows):
            yield from self._of(wanted, query)
            return
        there = col(Item.campaign) == campaign, col(Item.row).between(first, last)
        with self.transaction() as session:
            near = session.connection().execute(query.where(*there)).all()
        yield from (row for row in near if row[0] in wanted)

    def texts(self, item_ids: Collection[str]) -> dict[str, str]:
        """Texts by item id, of a part of the campaign's items."""
        return dict(map(tuple, self._of(item_ids, _TEXTS)))

    def _of(self, item_ids: Collection[str], query: Any) -> Iterator[Any]:
        """Rows of ``query`` for the texts with these ids, in any order.

        Reads everything where most texts are wanted.
        """
        ids = list(item_ids)
        with self.transaction() as session:
            connection = session.connection()
            if len(ids) > IDS_AT_ONCE:
                texts = connection.execute(_TEXT_COUNT).scalar_one()
                if texts < MOSTLY_WANTED * len(ids):
                    wanted = set(ids)
                    everything = connection.execute(query, execution_options=_STREAMED)
                    yield from (row for row in everything if row[0] in wanted)
                    return
            for start in range(0, len(ids), IDS_AT_ONCE):
                part = ids[start : start + IDS_AT_ONCE]
                yield from connection.execute(query.where(col(Item.id).in_(part))).all()

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
                " has moved it on. Nothing was stored; run the same command again to continue from"
                " where it is."
            )
        round_.stage = stage

    def set_round_config(self, session: Session, round_: Round, config: Mapping[str, Any]) -> None:
        """Changes the campaign file that a round runs by, in the caller's transaction."""
        session.exec(update(Round).where(col(Round.id) == round_id(round_)).values(config=config))

    def set_metrics(self, session: Session, round_: Round, metrics: RoundMetrics) -> None:
        """Stores what a round measured, in the caller's transaction."""
        session.exec(update(Round).where(col(Round.id) == round_id(round_)).values(metrics=metrics))

    def put_scores(self, session: Session, round_id: int, scores: Scores) -> None:
        """Keeps a round's scores, in the caller's transaction."""
        for start in range(0, len(scores.rows), BLOCK):
            part = slice(start, start + BLOCK)
            session.add(
                ScoreBlock(
                    round_id=round_id,
                    start=start,
                    rows=scores.rows[part],
                    llm=scores.llm[part],
                    confidence=scores.confidence[part],
                    suspicion=scores.suspicion[part],
                    signals=list(scores.signals),
                    values=np.concatenate(
                        [np.empty(0), *(v[part] for v in scores.signals.values())]
                    ),
                )
            )

    def all_scores(self, round_id: int) -> Scores:
        """Scores of a round's texts, in source order; of none before it has scored any.

        Raises:
            StoreError: they are damaged.
        """
        with self.transaction() as session:
            query = select(ScoreBlock).where(ScoreBlock.round_id == round_id)
            blocks = session.exec(query.order_by(col(ScoreBlock.start))).all()
        names = blocks[0].signals if blocks else []
        for b in blocks:
            n = len(b.rows)
            whole = n == len(b.llm) == len(b.confidence) == len(b.suspicion)
            if not whole or b.signals != names or len(b.values) != n * len(names):
                raise damaged(f"the scores of round {round_id} are of different lengths")
        values = [b.values.reshape(len(names), -1) for b in blocks if names]
        return Scores(
            _joined([b.rows for b in blocks], np.int64),
            _joined([b.llm for b in blocks], np.int64),
            _joined([b.confidence for b in blocks], np.float64),
            _joined([b.suspicion for b in blocks], np.float64),
            {name: np.concatenate([v[i] for v in values]) for i, name in enumerate(names)},
        )

    def last_scored(self, round_id: int) -> int:
        """The highest ``Item.row`` that a round has scored: texts beyond came later; -1 if none."""
        with self.transaction() as session:
            query = select(ScoreBlock.rows).where(ScoreBlock.round_id == round_id)
            rows = session.exec(query.order_by(col(ScoreBlock.start).desc()).limit(1)).first()
        return -1 if rows is None or not len(rows) else int(rows.max())

    def scores(self, round_id: int, item_ids: Collection[str] | None = None) -> dict[str, Score]:
        """Scores of a round by item id; of all its items, or of the few named.

        Raises:
            StoreError: they are damaged.
        """
        with self.transaction() as session:
            query = (
                select(Round.campaign, CampaignRow.labels)
                .join(CampaignRow, col(CampaignRow.name) == col(Round.campaign))
                .where(Round.id == round_id)
            )
            campaign, labels = session.exec(query).one()
        keys = self.keys(campaign) if item_ids is None else self.keys_of(item_ids)
        scores = self.all_scores(round_id)
        if scores.llm.max(initial=-1) >= len(labels):
            raise damaged(f"the scores of round {round_id} name labels that there are not")
        place = {row: i for i, row in enumerate(scores.rows.tolist())}
        chosen = [(key.id, place[key.row]) for key in keys if key.row in place]
        return {
            id_: Score(
                labels[scores.llm[i]] if scores.llm[i] >= 0 else None,
                float(scores.confidence[i]) if scores.llm[i] >= 0 else None,
                {name: float(values[i]) for name, values in scores.signals.items()},
                float(scores.suspicion[i]),
            )
            for id_, i in chosen
        }

    def put_training_labels(self, session: Session, round_id: int, labels: TrainingLabels) -> None:
        """Keeps what a round's students learn, in the caller's transaction."""
        sources, source = np.unique(labels.source, return_inverse=True)
        for start in range(0, len(labels.rows), BLOCK):
            part = slice(start, start + BLOCK)
            session.add(
                TrainingBlock(
                    round_id=round_id,
                    start=start,
                    rows=labels.rows[part],
                    probs=labels.probs[part].ravel(),
                    weight=labels.weight[part],
                    sources=sources.tolist(),
                    source=source[part],
                )
            )

    def all_training_labels(self, round_id: int) -> TrainingLabels:
        """What a round's students learn, in source order; nothing before that is decided.

        Raises:
            StoreError: it is damaged.
        """
        with self.transaction() as session:
            query = select(TrainingBlock).where(TrainingBlock.round_id == round_id)
            blocks = session.exec(query.order_by(col(TrainingBlock.start))).all()
        for b in blocks:
            n, numbers = len(b.rows), len(b.probs)
            equal = n == len(b.weight) == len(b.source)
            if not equal or numbers < max(n, 1) or numbers % n:
                raise damaged(f"the training labels of round {round_id} are of different lengths")
            if b.source.min() < 0 or b.source.max() >= len(b.sources):
                raise damaged(f"training labels of round {round_id} come from nowhere")
        source = [np.array(b.sources, dtype=np.str_)[b.source] for b in blocks]
        return TrainingLabels(
            _joined([b.rows for b in blocks], np.int64),
            np.concatenate([b.probs.reshape(len(b.rows), -1) for b in blocks])
            if blocks
            else np.empty((0, 0)),
            _joined([b.weight for b in blocks], np.float64),
            np.concatenate(source) if source else np.empty(0, dtype=np.str_),
        )

    def training_labels(self, round_id: int) -> list[TrainingLabel]:
        """Training labels of a round, by item id.

        Raises:
            StoreError: they are damaged.
        """
        labels = self.all_training_labels(round_id)
        with self.transaction() as session:
            campaign = session.exec(select(Round.campaign).where(Round.id == round_id)).one()
        ids = {key.row: key.id for key in self.keys(campaign)}
        if not ids.keys() >= set(labels.rows.tolist()):
            raise damaged(f"training labels of round {round_id} belong to no text")
        return sorted(
            TrainingLabel(ids[row], probs, weight, source)
            for row, probs, weight, source in zip(
                *(column.tolist() for column in labels), strict=True
            )
        )

    def has_training_labels(self, round_id: int) -> bool:
        """Whether it is decided what a round's students learn."""
        return self._any(TrainingBlock, round_id)

    def has_scores(self, round_id: int) -> bool:
        """Whether a round has scored its texts."""
        return self._any(ScoreBlock, round_id)

    def _any(self, table: type[ScoreBlock] | type[TrainingBlock], round_id: int) -> bool:
        with self.transaction() as session:
            query = select(table.start).where(table.round_id == round_id).limit(1)
            return session.exec(query).first() is not None

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
            query = select(Review).where(of_campaign(Review.item_id, campaign))
            if round_id is not None:
                query = query.where(Review.round_id == round_id)
            query = query.order_by(col(Review.round_id), col(Review.rank))
            return list(session.exec(query).all())

    def review_count(self, campaign: str) -> int:
        """How many texts were ever chosen to be sent."""
        with self.transaction() as session:
            query = select(func.count()).select_from(Review)
            return int(session.exec(query.where(of_campaign(Review.item_id, campaign))).one())

    def open_texts(self, campaign: str, most: int) -> int:
        """How many texts of the pool, up to ``most``, have no gold and were never sent out."""
        asked = select(Review.item_id).where(Review.item_id == Item.id).exists()
        known = select(Gold.item_id).where(Gold.item_id == Item.id).exists()
        query = select(Item.id).where(Item.campaign == campaign, Item.split == "pool")
        found = query.where(~asked, ~known).limit(most).subquery()
        with self.transaction() as session:
            return int(session.exec(select(func.count()).select_from(found)).one())

    def reviews_by_item(self, campaign: str, round_id: int | None = None) -> dict[str, Review]:
        """The outbox by item id."""
        return {r.item_id: r for r in self.reviews(campaign, round_id)}

    def checks(
        self, campaign: str, round_id: int | None = None, *, session: Session | None = None
    ) -> list[HiddenCheck]:
        """Hidden checks, by round and rank."""
        with self.within(session) as session:
            query = select(HiddenCheck).where(of_campaign(HiddenCheck.item_id, campaign))
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
        helped = set(assisted)
        rows = [{"of": i, "task": task, "help": i in helped} for i, task in task_ids.items()]
        if not rows:
            return
        values = {
            "task_id": bindparam("task"),
            "sent_at": now(),
            "asked": asked,
            "assisted": bindparam("help"),
        }
        for table, key in ((HiddenCheck, HiddenCheck.id), (Review, Review.item_id)):
            statement = update(table).where(col(key) == bindparam("of")).values(**values)
            session.connection().execute(statement, rows)

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

    def annotations(self, campaign: str, *, session: Session | None = None) -> list[Annotation]:
        """Current answers: those not superseded."""
        with self.within(session) as session:
            query = select(Annotation).where(
                Annotation.campaign == campaign, col(Annotation.superseded_at).is_(None)
            )
            return list(session.exec(query.order_by(col(Annotation.id))).all())

    def answer_counts(self, session: Session, campaign: str) -> dict[str, int]:
        """How many people have answered, by the id that a task carries; read in ``session``."""
        people = func.count(func.distinct(Annotation.annotator))
        query = (
            select(Annotation.item_id, people)
            .where(Annotation.campaign == campaign, col(Annotation.superseded_at).is_(None))
            .group_by(col(Annotation.item_id))
        )
        return {item_id: int(n) for item_id, n in session.exec(query).all()}

    def everybody(self, session: Session, campaign: str) -> list[str]:
        """Everybody who ever answered, by name; read in ``session``."""
        query = select(Annotation.annotator).where(Annotation.campaign == campaign).distinct()
        return sorted(session.exec(query).all())

    def answers_seen(self, session: Session, campaign: str) -> list[SeenAnswer]:
        """Every state of every answer that is stored; quicker than the answers themselves."""
        a = Annotation
        columns = (a.id, a.annotation_id, a.updated_at, a.task_id, a.annotator, a.superseded_at)
        query = select(*columns).where(a.campaign == campaign)  # type: ignore[call-overload]
        rows = session.execute(query).all()
        return [SeenAnswer._make((*seen, at is not None)) for *seen, at in rows]

    def rename_person(self, session: Session, campaign: str, name: str, now: str) -> None:
        """Gives the answers of a person another name, in the caller's transaction."""
        theirs = col(Annotation.campaign) == campaign, col(Annotation.annotator) == name
        session.exec(update(Annotation).where(*theirs).values(annotator=now))

    def add_answers(self, session: Session, answers: Iterable[Mapping[str, Any]]) -> None:
        """Appends states of answers, by column, in the caller's transaction."""
        at = now()
        self.insert(session, Annotation, ({**answer, "fetched_at": at} for answer in answers))

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
            query = select(Gold).where(of_campaign(Gold.item_id, campaign))
            return {g.item_id: g for g in session.exec(query).all()}

    def put_gold(self, session: Session, gold: Sequence[Gold]) -> None:
        """Keeps gold labels, instead of those that the items had."""
        for start in range(0, len(gold), IDS_AT_ONCE):
            part = [new.item_id for new in gold[start : start + IDS_AT_ONCE]]
            session.exec(delete(Gold).where(col(Gold.item_id).in_(part)))
        session.add_all(gold)

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

    def events(
        self,
        campaign: str,
        command: str,
        what: str | None = None,
        *,
        session: Session | None = None,
    ) -> list[Event]:
        """The audit trail of one command, or about one thing, oldest first."""
        query = select(Event).where(Event.campaign == campaign, Event.command == command)
        if what is not None:
            query = query.where(Event.what == what)
        with self.within(session) as session:
            return list(session.exec(query.order_by(col(Event.id))).all())

    def log(self, session: Session, campaign: str, command: str, what: str, **detail: Any) -> None:
        """Adds a line to the audit trail, in the caller's transaction."""
        session.add(Event(campaign=campaign, command=command, what=what, detail=detail))


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    joined: NDArray[Any] = np.concatenate([np.empty(0, dtype=dtype), *parts])
    return joined.astype(dtype, copy=False)


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
