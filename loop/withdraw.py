"""Taking back the texts of rounds that are over and that nobody has begun to answer."""

from __future__ import annotations

from sqlalchemy import delete
from sqlmodel import col

from loop.context import Context
from loop.store import STAGES, HiddenCheck, Review


def withdraw_unanswered(ctx: Context) -> int:
    """Withdraws them from Label Studio and from the outbox; how many texts.

    They cost nothing and may be chosen again. A text that somebody answered, skipped or began
    stays with people, and a late answer to it still counts. Run again after an interruption, it
    goes on where it stopped.

    Raises:
        ReviewerError: Label Studio refuses.
    """
    over = {
        r.id for r in ctx.store.rounds(ctx.name) if STAGES.index(r.stage) > STAGES.index("pull")
    }
    answered = {a.item_id for a in ctx.store.annotations(ctx.name)}
    reviews = {
        r.item_id
        for r in ctx.store.reviews(ctx.name)
        if r.round_id in over and r.task_id and r.item_id not in answered
    }
    checks = {
        c.id
        for c in ctx.store.checks(ctx.name)
        if c.round_id in over and c.task_id and c.id not in answered
    }
    if not reviews | checks:
        return 0
    ctx.reviewer.open_project(ctx.store.project_id(ctx.name))
    gone = ctx.reviewer.withdraw(sorted(reviews | checks))
    with ctx.store.transaction() as session:
        for item_id in gone:
            session.exec(delete(Review).where(col(Review.item_id) == item_id))
            session.exec(delete(HiddenCheck).where(col(HiddenCheck.id) == item_id))
        ctx.store.log(session, ctx.name, "pull", "withdrawn", texts=sorted(gone))
    return len(gone & reviews)
