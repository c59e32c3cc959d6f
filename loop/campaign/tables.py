"""The tables of the store: what a campaign keeps, and in which stage a round is."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column, Dialect, TypeDecorator
from sqlmodel import Field, SQLModel, UniqueConstraint

from loop.campaign.metrics import Json, RoundMetrics, as_json

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

UNSERVED = "unserved"
"""Outcome of a text whose task Label Studio fails to show."""
DELETED = "deleted"
"""Outcome of a text whose task was deleted in Label Studio while it waited for people."""
IMPORTED = "imported"
"""How gold was decided that people gave in another tool, see ``goldloop import-labels``."""
VALIDATION = 0
"""Number of the round that only measures the LLM: a random sample, no training."""

RIVAL_MARK = "~"  # stands in the revision of a rival, and of no other annotator


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


class MetricsColumn(TypeDecorator[RoundMetrics | None]):
    """A column of ``RoundMetrics``: JSON, ``{}`` where nothing is measured yet."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: RoundMetrics | None, dialect: Dialect) -> Json:
        """To the database."""
        return {} if value is None else as_json(value)

    def process_result_value(self, value: Json | None, dialect: Dialect) -> RoundMetrics | None:
        """From the database."""
        return RoundMetrics.from_json(value) if value else None


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


class LlmCalls(SQLModel, table=True):
    """LLM calls without answers in the store, and what they cost.

    Calls under way, or interrupted, have no end and count at the most that they may cost; those
    that ended without an answer to store count at what they did cost. A row goes when the answers
    are stored.
    """

    id: int | None = Field(default=None, primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    annotator: str
    calls: int
    usd: float
    begun_at: datetime = Field(default_factory=now)
    ended_at: datetime | None = None


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
    metrics: RoundMetrics | None = Field(
        default=None, sa_column=Column(MetricsColumn, nullable=False)
    )
    opened_at: datetime = Field(default_factory=now)
    closed_at: datetime | None = None


def round_id(round_: Round) -> int:
    """The number under which a round is stored."""
    if round_.id is None:
        raise ValueError("the round is not stored yet")
    return round_.id


class Score(SQLModel, table=True):
    """The suspicion of one item in one round: each signal, and the fused one.

    Where the LLM gave no answer, there is no label and no confidence.
    """

    round_id: int = Field(foreign_key="round.id", primary_key=True)
    item_id: str = Field(foreign_key="item.id", primary_key=True)
    llm_label: str | None
    llm_confidence: float | None
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
    asked: int | None = None
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
    raw: Any = Field(sa_column=Column(JSON, nullable=False))
    fetched_at: datetime = Field(default_factory=now)
    superseded_at: datetime | None = None

    @property
    def unreadable(self) -> bool:
        """Whether nobody can tell what the person meant; "unsure" is an answer."""
        return self.problem is not None and self.problem != "unsure"


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
    """One trained seed of one arm.

    Attributes:
        learned: whether it learned anything from its labels; None where nobody asked it, as in
            earlier versions.
    """

    __table_args__ = (UniqueConstraint("round_id", "arm", "seed", "label_set"),)
    id: int | None = Field(default=None, primary_key=True)
    round_id: int = Field(foreign_key="round.id", index=True)
    arm: str
    seed: int
    label_set: str
    predictions: list[int] = Field(sa_column=Column(JSON, nullable=False))
    seconds: float
    learned: bool | None = None
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
