"""What people answered: kept raw, counted, and asked for again where it is not enough."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import update
from sqlmodel import Session, col, select

from loop.adjudicate import Panel, decide_all, latest_per_person, wanted_answers
from loop.context import Context
from loop.hidden_checks import known_checks
from loop.money import account, asked_answers
from loop.ports import FetchedTask, RawAnnotation, unknown_label
from loop.store import Annotation, Review, Round, now


def record_answers(ctx: Context, session: Session, task: FetchedTask) -> None:
    """Appends what is new of one task and supersedes what changed or was deleted."""
    query = select(Annotation).where(
        Annotation.campaign == ctx.name,
        Annotation.task_id == task.task_id,
    )
    known = {(a.annotation_id, a.updated_at): a for a in session.exec(query).all()}
    current = {(a.annotation_id, a.updated_at) for a in task.annotations}
    for key, row in known.items():
        if key not in current and row.superseded_at is None:
            row.superseded_at = now()
            session.add(row)
    labels = set(ctx.config.label_names)
    for a in task.annotations:
        if (a.annotation_id, a.updated_at) in known:
            continue
        session.add(_annotation_row(ctx, a, labels))


def _annotation_row(ctx: Context, a: RawAnnotation, labels: set[str]) -> Annotation:
    known = a.label is None or a.label in labels
    return Annotation(
        campaign=ctx.name,
        annotation_id=a.annotation_id,
        updated_at=a.updated_at,
        task_id=a.task_id,
        item_id=a.item_id,
        annotator=a.annotator,
        label=a.label if known else None,
        skipped=a.skipped,
        note=a.note,
        lead_time_s=a.lead_time_s,
        problem=a.problem if known else unknown_label(a.label),
        raw=dict(a.raw),
    )


def close_answered(ctx: Context, session: Session, round_: Round) -> int:
    """Closes the reviews that have answers enough; how many are still out.

    Reviews that are not closed are told how many answers they want, the most suspect first. Where
    money does not allow a further answer, a text goes on with the answers that it was asked for.
    """
    query_reviews = select(Review).where(Review.round_id == round_.id).order_by(col(Review.rank))
    reviews = session.exec(query_reviews).all()
    query = select(Annotation).where(
        Annotation.campaign == ctx.name, col(Annotation.superseded_at).is_(None)
    )
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in session.exec(query).all():
        by_item[annotation.item_id].append(annotation)
    out = 0
    panel = Panel.of(ctx.config.label_studio)
    known = known_checks(ctx)
    answered = {i: by_item.get(i, []) for i in [*(r.item_id for r in reviews), *known]}
    decisions = decide_all(answered, ctx.config.label_names, panel, known)
    money = account(ctx.config, ctx.store, session)
    fit, refused = money.answers_that_fit, 0
    for review in reviews:
        answers = answered[review.item_id]
        received = len(latest_per_person(answers))
        wanted = wanted_answers(answers, decisions[review.item_id], panel)
        committed = max(received, asked_answers(review, panel.first))
        if fit is not None and wanted > committed:
            allowed = min(wanted, committed + fit)
            fit -= allowed - committed
            refused += allowed < wanted and review.closed_at is None
            wanted = allowed
        if received >= wanted:
            review.closed_at = review.closed_at or now()
        else:
            review.closed_at = None
            # Label Studio may have been told already, so it is never taken back.
            review.wanted = max(wanted, review.wanted or 0)
            out += 1
        review.outcome = decisions[review.item_id].how if answers else None
        session.add(review)
    if refused:
        ctx.say(
            f"{refused} text{'s' * (refused > 1)} want{'s' * (refused == 1)} one more answer, which"
            f" would cost ${money.answer_usd:.2f} each, but {money}: they go on with the answers"
            " that they have. Raise budget.usd while the round waits for people to ask further."
        )
    return out


def ask_further(ctx: Context, round_: Round) -> int:
    """Tells Label Studio which texts want more answers; how many it was told of.

    Called again after an interruption, it says the same again, which changes nothing.
    """
    panel = Panel.of(ctx.config.label_studio)
    waiting = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.closed_at is None]
    further = {
        r.item_id: (r.task_id, r.wanted)
        for r in waiting
        if r.task_id and r.wanted and r.wanted > (r.asked or 1)
    }
    if further:
        ctx.reviewer.ask({str(task): int(wanted) for task, wanted in further.values()})
        with ctx.store.transaction() as session:
            for item_id, (_, wanted) in further.items():
                session.exec(
                    update(Review).where(col(Review.item_id) == item_id).values(asked=wanted)
                )
    if panel.adjudicator is not None:
        ctx.reviewer.queue("Conflicts", [r.item_id for r in waiting if r.outcome == "conflict"])
    return len(further)
