"""The store: SQLModel tables and every query, on SQLite by default and PostgreSQL by URL.

Votes and annotations are append-only. A stage writes its results and the round's new stage in one
``Store.transaction``, so a process killed between any two lines leaves a campaign that resumes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, Engine, event, func, insert, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, Session, SQLModel, UniqueConstraint, col, create_engine, select

from loop.errors import StoreError
from loop.ports import unknown_label

STAGES = (
    "annotate",
    "score",
    "select",
    "push",
    "pull",
    "adjudicate",
    "repair",
    "train",
    "measure",
    "done",
)


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


class Spent(NamedTuple):
    """What the LLM has cost a campaign so far."""

    votes: int
    usd: float
    tokens: int
    seconds: float


class VoteCosts(NamedTuple):
    """What one annotator's votes cost.

    Attributes:
        timed: votes whose time was taken.
        seconds: their time together.
        dearest_usd: of all votes, None without any.
    """

    timed: int
    seconds: float
    dearest_usd: float | None


class CampaignRow(SQLModel, table=True):
    """One campaign; the uid tells it from others of its name on the same Label Studio."""

    __tablename__ = "campaign"
    name: str = Field(primary_key=True)
    uid: str = Field(default_factory=lambda: uuid.uuid4().hex)
    created_at: datetime = Field(default_factory=now)
    project_id: str | None = None
    pull_cursor: str | None = None
    labels: list[str] = Field(sa_column=Column(JSON, nullable=False))


class Item(SQLModel, table=True):
    """One text; the id is a hash of the normalised text within the campaign."""

    id: str = Field(primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    text: str
    split: str
    known_label: str | None = None
    row: int
    meta: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class Variant(SQLModel, table=True):
    """A frozen prompt variant: what the LLM is shown from one round until others follow."""

    hash: str = Field(primary_key=True)
    campaign: str = Field(primary_key=True, foreign_key="campaign.name")
    annotator: str = Field(primary_key=True)
    from_round: int = Field(default=0, primary_key=True)
    position: int
    prefix: str
    demonstrations: list[dict[str, str]] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now)


class Vote(SQLModel, table=True):
    """One answer of the LLM to one item under one variant. Append-only."""

    __table_args__ = (UniqueConstraint("item_id", "variant_hash", "annotator"),)
    id: int | None = Field(default=None, primary_key=True)
    item_id: str = Field(foreign_key="item.id", index=True)
    variant_hash: str
    annotator: str
    probs: list[float] = Field(sa_column=Column(JSON, nullable=False))
    off_label_mass: float
    tokens: int
    usd: float
    seconds: float = 0.0
    created_at: datetime = Field(default_factory=now)


class Unanswered(SQLModel, table=True):
    """One question that brought no vote, why, and what it cost. Append-only."""

    id: int | None = Field(default=None, primary_key=True)
    item_id: str = Field(foreign_key="item.id", index=True)
    variant_hash: str
    annotator: str
    reason: str
    tokens: int
    usd: float
    seconds: float
    created_at: datetime = Field(default_factory=now)


class ContentFree(SQLModel, table=True):
    """What the LLM answers to a text without content, once per prompt variant."""

    variant_hash: str = Field(primary_key=True)
    campaign: str = Field(primary_key=True, foreign_key="campaign.name")
    annotator: str = Field(primary_key=True)
    text: str = Field(primary_key=True)
    probs: list[float] = Field(sa_column=Column(JSON, nullable=False))
    tokens: int
    usd: float
    seconds: float
    created_at: datetime = Field(default_factory=now)


class Round(SQLModel, table=True):
    """One round and the stage that comes next in it."""

    __table_args__ = (UniqueConstraint("campaign", "number"),)
    id: int | None = Field(default=None, primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    number: int
    stage: str
    seed: int
    config: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    versions: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    opened_at: datetime = Field(default_factory=now)
    closed_at: datetime | None = None


def round_id(round_: Round) -> int:
    """The number under which a round is stored."""
    if round_.id is None:
        raise ValueError("the round is not stored yet")
    return round_.id


class Score(SQLModel, table=True):
    """The suspicion of one item in one round: each signal, and the fused one."""

    round_id: int = Field(foreign_key="round.id", primary_key=True)
    item_id: str = Field(foreign_key="item.id", primary_key=True)
    llm_label: str
    llm_confidence: float
    signals: dict[str, float] = Field(sa_column=Column(JSON, nullable=False))
    suspicion: float


class Review(SQLModel, table=True):
    """The outbox: one item that people are asked about. An item is asked about once."""

    item_id: str = Field(foreign_key="item.id", primary_key=True)
    round_id: int = Field(foreign_key="round.id", index=True)
    reason: str
    rank: int
    suspicion: float
    inclusion_prob: float
    audit_prob: float
    task_id: str | None = None
    sent_at: datetime | None = None
    closed_at: datetime | None = None
    outcome: str | None = None
    wanted: int | None = None
    asked: int | None = None
    assisted: bool | None = None


class HiddenCheck(SQLModel, table=True):
    """A text whose label is known, sent again under another id to see how well people answer.

    It is no Review: it buys no label, and one text may be checked in several rounds.
    """

    id: str = Field(primary_key=True)
    item_id: str = Field(foreign_key="item.id", index=True)
    round_id: int = Field(foreign_key="round.id", index=True)
    rank: int
    task_id: str | None = None
    sent_at: datetime | None = None
    assisted: bool | None = None


class Annotation(SQLModel, table=True):
    """One state of one answer of one person, raw. Append-only but for ``superseded_at``."""

    __table_args__ = (UniqueConstraint("annotation_id", "updated_at", "campaign"),)
    id: int | None = Field(default=None, primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    annotation_id: str
    updated_at: str
    task_id: str
    item_id: str = Field(index=True)
    annotator: str
    label: str | None = None
    skipped: bool
    note: str
    lead_time_s: float | None = None
    problem: str | None = None
    raw: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    fetched_at: datetime = Field(default_factory=now)
    superseded_at: datetime | None = None


class Gold(SQLModel, table=True):
    """The label that people gave an item, and how it was decided."""

    item_id: str = Field(foreign_key="item.id", primary_key=True)
    label: str
    how: str
    confidence: float
    round_number: int
    decided_at: datetime = Field(default_factory=now)


class TrainingLabel(SQLModel, table=True):
    """What the students of a round learn for one item."""

    round_id: int = Field(foreign_key="round.id", primary_key=True)
    item_id: str = Field(foreign_key="item.id", primary_key=True)
    probs: list[float] = Field(sa_column=Column(JSON, nullable=False))
    weight: float
    source: str


class Run(SQLModel, table=True):
    """One trained seed of one arm."""

    __table_args__ = (UniqueConstraint("round_id", "arm", "seed", "label_set"),)
    id: int | None = Field(default=None, primary_key=True)
    round_id: int = Field(foreign_key="round.id", index=True)
    arm: str
    seed: int
    label_set: str
    predictions: list[int] = Field(sa_column=Column(JSON, nullable=False))
    seconds: float
    model_path: str | None = None
    created_at: datetime = Field(default_factory=now)


class Event(SQLModel, table=True):
    """The audit trail: what happened, when, by which command."""

    id: int | None = Field(default=None, primary_key=True)
    campaign: str = Field(index=True)
    at: datetime = Field(default_factory=now)
    command: str
    what: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class Store:
    """All campaigns of one database.

    Args:
        url: SQLAlchemy URL, ``sqlite:////path/to.db`` or ``postgresql+psycopg://…``.

    Raises:
        StoreError: the database cannot be opened or migrated.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            if url.startswith("sqlite:///"):
                Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self.engine = _engine(url)
            _migrate(self.engine)
        except (SQLAlchemyError, OSError, ImportError) as exc:
            where = self.engine.url.render_as_string() if hasattr(self, "engine") else "given URL"
            reason = str(getattr(exc, "orig", None) or exc).splitlines()[0]
            raise StoreError(f"The store at {where} cannot be opened: {reason}.") from exc

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or leaves no trace."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Lets go of every connection."""
        self.engine.dispose()

    # campaign and items

    def open_campaign(self, name: str, labels: Sequence[str]) -> tuple[str, ...]:
        """Makes the campaign's row if it is new; the labels that have come since it was begun.

        New labels are taken at the end alone, so that stored class numbers keep their meaning.
        Answers that chose one of them before it was known are read anew.

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

    # rounds

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
        """Moves a round to its next stage, in the caller's transaction."""
        values: dict[str, Any] = {"stage": stage}
        if stage == "done":
            values["closed_at"] = now()
        session.exec(update(Round).where(col(Round.id) == round_.id).values(**values))
        round_.stage = stage

    # votes

    def votes(self, campaign: str, annotator: str) -> list[tuple[str, str, Sequence[float], float]]:
        """(item id, variant hash, probabilities, off-label mass) of every vote."""
        with self.transaction() as session:
            query = (
                select(Vote.item_id, Vote.variant_hash, Vote.probs, Vote.off_label_mass)
                .join(Item, col(Vote.item_id) == col(Item.id))
                .where(Item.campaign == campaign, Vote.annotator == annotator)
            )
            return [
                (item, variant, probs, off) for item, variant, probs, off in session.exec(query)
            ]

    def vote_keys(self, campaign: str, annotator: str) -> set[tuple[str, str]]:
        """(item id, variant hash) of every vote."""
        with self.transaction() as session:
            query = (
                select(Vote.item_id, Vote.variant_hash)
                .join(Item, col(Vote.item_id) == col(Item.id))
                .where(Item.campaign == campaign, Vote.annotator == annotator)
            )
            return {(item, variant) for item, variant in session.exec(query)}

    def spent(self, campaign: str) -> Spent:
        """What the LLM has cost, answers of all annotators and failures included."""
        with self.transaction() as session:

            def totals(table: Any) -> Any:
                sums = (func.sum(column) for column in (table.usd, table.tokens, table.seconds))
                return select(func.count(), *sums).select_from(table)

            ours = Item.campaign == campaign
            votes, failed, empty = (
                session.exec(query).one()
                for query in (
                    totals(Vote).join(Item, col(Vote.item_id) == col(Item.id)).where(ours),
                    totals(Unanswered)
                    .join(Item, col(Unanswered.item_id) == col(Item.id))
                    .where(ours),
                    totals(ContentFree).where(ContentFree.campaign == campaign),
                )
            )
        usd, tokens, seconds = (
            sum(row[i] or 0 for row in (votes, failed, empty)) for i in (1, 2, 3)
        )
        return Spent(int(votes[0]), float(usd), int(tokens), float(seconds))

    def vote_costs(self, campaign: str, annotator: str) -> VoteCosts:
        """What one annotator's votes cost each."""
        with self.transaction() as session:
            query = (
                select(func.count(), func.sum(Vote.seconds), func.max(Vote.usd))
                .select_from(Vote)
                .join(Item, col(Vote.item_id) == col(Item.id))
                .where(Item.campaign == campaign, Vote.annotator == annotator)
            )
            _, _, dearest = session.exec(query).one()
            timed, seconds, _ = session.exec(query.where(Vote.seconds > 0)).one()
        return VoteCosts(int(timed), float(seconds or 0.0), dearest)

    def variants(self, campaign: str, annotator: str) -> list[Variant]:
        """The frozen prompt variants that are asked now, in order."""
        with self.transaction() as session:
            query = select(Variant).where(
                Variant.campaign == campaign, Variant.annotator == annotator
            )
            found = list(session.exec(query.order_by(col(Variant.position))).all())
        newest = max((variant.from_round for variant in found), default=0)
        return [variant for variant in found if variant.from_round == newest]

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
            vote = (
                select(Vote.id)
                .where(
                    Vote.item_id == Unanswered.item_id,
                    Vote.variant_hash == Unanswered.variant_hash,
                    Vote.annotator == Unanswered.annotator,
                )
                .exists()
            )
            query = (
                select(Unanswered)
                .join(Item, col(Unanswered.item_id) == col(Item.id))
                .where(Item.campaign == campaign, Unanswered.annotator == annotator, ~vote)
                .order_by(col(Unanswered.id))
            )
            found = session.exec(query).all()
        last = {(row.item_id, row.variant_hash): row for row in found}
        return [row for row in last.values() if row.variant_hash in asked]

    def content_free(self, campaign: str, annotator: str) -> dict[str, list[Sequence[float]]]:
        """Class probabilities of texts without content, by variant hash."""
        with self.transaction() as session:
            query = select(ContentFree).where(
                ContentFree.campaign == campaign, ContentFree.annotator == annotator
            )
            found: dict[str, list[Sequence[float]]] = {}
            for row in session.exec(query.order_by(col(ContentFree.text))).all():
                found.setdefault(row.variant_hash, []).append(row.probs)
        return found

    # reviews, annotations, gold

    def reviews(self, campaign: str, round_id: int | None = None) -> list[Review]:
        """The outbox, by round and rank."""
        with self.transaction() as session:
            query = select(Review).join(Item).where(Item.campaign == campaign)
            if round_id is not None:
                query = query.where(Review.round_id == round_id)
            query = query.order_by(col(Review.round_id), col(Review.rank))
            return list(session.exec(query).all())

    def checks(self, campaign: str, round_id: int | None = None) -> list[HiddenCheck]:
        """Hidden checks, by round and rank."""
        with self.transaction() as session:
            query = select(HiddenCheck).join(Item).where(Item.campaign == campaign)
            if round_id is not None:
                query = query.where(HiddenCheck.round_id == round_id)
            return list(
                session.exec(query.order_by(col(HiddenCheck.round_id), col(HiddenCheck.rank))).all()
            )

    def annotations(self, campaign: str, item_ids: Iterable[str] | None = None) -> list[Annotation]:
        """Current answers: those not superseded."""
        with self.transaction() as session:
            query = select(Annotation).where(
                Annotation.campaign == campaign, col(Annotation.superseded_at).is_(None)
            )
            found = session.exec(query.order_by(col(Annotation.id))).all()
        wanted = None if item_ids is None else set(item_ids)
        return [a for a in found if wanted is None or a.item_id in wanted]

    def gold(self, campaign: str) -> dict[str, Gold]:
        """Gold labels by item id."""
        with self.transaction() as session:
            query = select(Gold).join(Item).where(Item.campaign == campaign)
            return {g.item_id: g for g in session.exec(query).all()}

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

    def log(self, session: Session, campaign: str, command: str, what: str, **detail: Any) -> None:
        """Adds a line to the audit trail, in the caller's transaction."""
        session.add(Event(campaign=campaign, command=command, what=what, detail=detail))


def insert_all(
    session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]], chunk: int = 5_000
) -> None:
    """Inserts many rows at the speed of the driver, in the caller's transaction."""
    for start in range(0, len(rows), chunk):
        session.execute(insert(table), [dict(row) for row in rows[start : start + chunk]])


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


def _engine(url: str) -> Engine:
    def as_json(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    engine = create_engine(url, json_serializer=as_json, hide_parameters=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA busy_timeout=30000")
            cursor.close()

    return engine


def _migrate(engine: Engine) -> None:
    """Brings the database to the newest schema; nothing happens if it is there already."""
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        scripts = ScriptDirectory.from_config(config)
        if current == scripts.get_current_head():
            return
        if current is not None and current not in {s.revision for s in scripts.walk_revisions()}:
            raise StoreError(
                f"The store was written by a newer goldloop (schema {current}); upgrade goldloop."
            )
        connection.rollback()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
