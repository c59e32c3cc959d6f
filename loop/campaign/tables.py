"""The tables of the store: what a campaign keeps, and in which stage a round is."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import JSON, Column, Dialect, Index, LargeBinary, TypeDecorator
from sqlmodel import Field, SQLModel, UniqueConstraint

from loop.campaign.metrics import Json, RoundMetrics, as_json
from loop.errors import StoreError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

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
"""Outcome of a text whose task the platform fails to show."""
DELETED = "deleted"
"""Outcome of a text whose task was deleted on the platform while it waited for people."""
MISSING = (UNSERVED, DELETED)
"""Outcomes of texts that nobody can answer any more."""
OF_PROJECT = " of project "
"""Between the number of a task or an answer and its project, where the campaign has left that."""
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


class ArrayColumn(TypeDecorator[NDArray[Any]]):
    """A column of one-dimensional arrays: their bytes, little-endian, of the type that it names.

    Raises:
        ValueError: a value that is to be stored does not fit.
        StoreError: the stored bytes are no whole number of values.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def process_bind_param(self, value: NDArray[Any] | None, dialect: Dialect) -> bytes | None:
        """To the database."""
        if value is None:
            return None
        kept = np.asarray(value).astype(self.dtype)
        if not np.array_equal(kept, value, equal_nan=kept.dtype.kind == "f"):
            raise ValueError(f"{np.asarray(value).dtype} numbers do not fit into {self.dtype}")
        return kept.tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[Any] | None:
        """From the database."""
        if value is None:
            return None
        if not isinstance(value, bytes) or len(value) % np.dtype(self.dtype).itemsize:
            raise damaged(f"a block holds no whole number of {self.dtype} values")
        return np.frombuffer(value, dtype=self.dtype)


def damaged(what: str) -> StoreError:
    """The error where a block of the store holds what goldloop never wrote."""
    return StoreError(
        f"The store is damaged: {what}. `goldloop fsck` says what else is; restore a backup with"
        " `goldloop restore`."
    )


def _array(dtype: str) -> Any:
    return Field(sa_column=Column(ArrayColumn(dtype), nullable=False))


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
    """One text; the id is a hash of the normalised text within the campaign.

    Attributes:
        row: its number within the campaign, by which blocks refer to it; it never changes.
    """

    __table_args__ = (Index("ix_item_campaign_row", "campaign", "row", unique=True),)
    id: str = Field(primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    text: str
    split: str
    known_label: str | None = None
    row: int
    meta: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class ItemKey(NamedTuple):
    """What most steps need of a text: which it is, not what it says."""

    id: str
    row: int
    split: str
    known_label: str | None


class StoredText(NamedTuple):
    """All that the store knows of a text; an ``Item`` to read, at a fraction of its price."""

    id: str
    text: str
    split: str
    known_label: str | None
    row: int
    meta: dict[str, Any]


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


class VoteBlock(SQLModel, table=True):
    """Answers of the LLM to n texts under one variant, as they came. Append-only.

    A text has at most one answer under each variant.

    Attributes:
        rows: (n,) ``Item.row`` of each text.
        probs: (n * k,) class probabilities, text by text, of the k labels that there were.
        off_label_mass: (n,).
        timed: answers whose time was taken.
        seconds: their time together.
    """

    __tablename__ = "vote_block"
    id: int | None = Field(default=None, primary_key=True)
    campaign: str = Field(foreign_key="campaign.name", index=True)
    annotator: str
    variant_hash: str
    votes: int
    rows: Any = _array("<i4")
    probs: Any = _array("<f8")
    off_label_mass: Any = _array("<f8")
    tokens: int
    usd: float
    timed: int
    seconds: float
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
    are stored. One of no calls holds what killed ones may have cost, as far as the answers to the
    same questions have shown it since.
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


class ScoreBlock(SQLModel, table=True):
    """The suspicion of n texts in one round: each of s signals, and the fused one.

    Attributes:
        rows: (n,) ``Item.row`` of each text.
        llm: (n,) class of the LLM's label, -1 where it gave no answer.
        confidence: (n,) its probability, NaN where it gave no answer.
        signals: their names.
        values: (s * n,) signal by signal.
    """

    __tablename__ = "score_block"
    round_id: int = Field(foreign_key="round.id", primary_key=True)
    start: int = Field(primary_key=True)
    rows: Any = _array("<i4")
    llm: Any = _array("<i4")
    confidence: Any = _array("<f8")
    suspicion: Any = _array("<f8")
    signals: list[str] = Field(sa_column=Column(JSON, nullable=False))
    values: Any = _array("<f8")


class Score(NamedTuple):
    """The suspicion of one text in one round, see ``ScoreBlock``."""

    llm_label: str | None
    llm_confidence: float | None
    signals: dict[str, float]
    suspicion: float


class Scores(NamedTuple):
    """The suspicion of all texts in one round, see ``ScoreBlock``; arrays of length n."""

    rows: IntArray
    llm: IntArray
    confidence: FloatArray
    suspicion: FloatArray
    signals: dict[str, FloatArray]


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


class TrainingBlock(SQLModel, table=True):
    """What the students of a round learn for n texts.

    Attributes:
        rows: (n,) ``Item.row`` of each text.
        probs: (n * k,) soft labels, text by text, of the k labels that there were.
        weight: (n,).
        sources: where labels come from.
        source: (n,) place in ``sources``.
    """

    __tablename__ = "training_block"
    round_id: int = Field(foreign_key="round.id", primary_key=True)
    start: int = Field(primary_key=True)
    rows: Any = _array("<i4")
    probs: Any = _array("<f8")
    weight: Any = _array("<f8")
    sources: list[str] = Field(sa_column=Column(JSON, nullable=False))
    source: Any = _array("<i4")


class TrainingLabel(NamedTuple):
    """What the students of a round learn for one text, see ``TrainingBlock``."""

    item_id: str
    probs: list[float]
    weight: float
    source: str


class TrainingLabels(NamedTuple):
    """What the students of a round learn, see ``TrainingBlock``: n texts, probs (n, k)."""

    rows: IntArray
    probs: FloatArray
    weight: FloatArray
    source: NDArray[np.str_]


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
