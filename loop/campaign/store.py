"""The store: every query, on SQLite by default and PostgreSQL by URL.

Votes and annotations are append-only. A stage writes its results and the round's new stage in one
``Store.transaction``, so a process killed between any two lines leaves a campaign that resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import func, insert, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel, col, select

from loop.campaign.database import open_database, store_failure
from loop.campaign.tables import (
    Annotation,
    CampaignRow,
    ContentFree,
    Event,
    Gold,
    HiddenCheck,
    Item,
    LlmCalls,
    Review,
    Round,
    Run,
    Score,
    TrainingLabel,
    Unanswered,
    Variant,
    Vote,
    now,
)
from loop.errors import StageError, StoreError
from loop.ports import unknown_label


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


class Store:
    """All campaigns of one database.

    Args:
        url: SQLAlchemy URL, ``sqlite:////path/to.db`` or ``postgresql+psycopg://…``.
        read_only: nothing is created, upgraded or written.
        say: told one line of news, such as where the copy made before an upgrade lies.

    Attributes:
        fence: called at the beginning of every transaction; raises where nothing may be written
            any longer (see ``loop.campaign.lock``).

    Raises:
        NoStoreError: ``read_only``, and there is no store yet.
        StoreError: the database cannot be opened or migrated.
    """

    def __init__(
        self,
        url: str,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.url = url
        self.fence: Callable[[Session], None] = lambda _session: None
        self.engine = open_database(url, read_only=read_only, say=say)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or leaves no trace.

        Raises:
            StoreError: the database cannot be read or written.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                self.fence(session)
                yield session
        except DBAPIError as exc:
            raise store_failure(exc, self.engine.url.render_as_string()) from exc

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

    def read_anew(self, campaign: str) -> None:
        """Forgets how far people's answers were read: the next pull reads them all."""
        with self.transaction() as session:
            session.exec(
                update(CampaignRow)
                .where(col(CampaignRow.name) == campaign)
                .values(pull_cursor=None)
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
            lost = session.exec(_calls_usd(campaign).where(col(LlmCalls.ended_at).is_not(None)))
            lost_usd = lost.one() or 0.0
        usd, tokens, seconds = (
            sum(row[i] or 0 for row in (votes, failed, empty)) for i in (1, 2, 3)
        )
        return Spent(int(votes[0]), float(usd + lost_usd), int(tokens), float(seconds))

    def open_llm_usd(self, campaign: str) -> float:
        """The most that LLM calls may cost which are under way or were interrupted."""
        with self.transaction() as session:
            query = _calls_usd(campaign).where(col(LlmCalls.ended_at).is_(None))
            return float(session.exec(query).one() or 0.0)

    def vote_times(self, campaign: str, annotator: str) -> VoteTimes:
        """How long one annotator's votes took."""
        with self.transaction() as session:
            query = (
                select(func.count(), func.sum(Vote.seconds))
                .select_from(Vote)
                .join(Item, col(Vote.item_id) == col(Item.id))
                .where(Item.campaign == campaign, Vote.annotator == annotator, Vote.seconds > 0)
            )
            timed, seconds = session.exec(query).one()
        return VoteTimes(int(timed), float(seconds or 0.0))

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


def _calls_usd(campaign: str) -> Any:
    return select(func.sum(LlmCalls.usd)).where(LlmCalls.campaign == campaign)


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
