"""A new project for what is still open, where the old one is gone with its tasks."""

from __future__ import annotations

from contextlib import suppress

from sqlmodel import Session

from loop.campaign.changes import check_folder
from loop.campaign.context import Context
from loop.campaign.tables import MISSING, round_id
from loop.errors import ProjectGoneError, StageError, counted
from loop.money import asked_answers


def begin_new_project(ctx: Context) -> None:
    """Has the campaign continue in another project of the platform, which is found or made.

    Answers that were read stay. What the round under way still waits for is sent by its next
    ``push``, to as many people as are missing; what earlier rounds left open counts as deleted.

    Raises:
        StageError: there was no project, or it is still there.
        ReviewerError: the platform cannot be reached, or refuses.
    """
    check_folder(ctx)
    old = ctx.store.project_id(ctx.name)
    if old is None:
        raise StageError("There is no project yet; `goldloop run` makes one when it is needed.")
    with suppress(ProjectGoneError):
        ctx.reviewer.open_project(old)
        raise StageError(
            f"Project {old} is still there; delete it before a new one is begun, so that nobody is"
            " asked twice."
        )
    new = ctx.reviewer.open_project(None)
    last = ctx.store.last_round(ctx.name)
    with ctx.store.transaction() as session:
        ctx.store.change_project(session, ctx.name, old, new)
        told = "it gets the texts that are chosen from now on"
        if last is not None and last.stage == "pull":
            sent = _send_again(ctx, session, round_id(last))
            ctx.store.advance(session, last, "push")
            told = f"it gets the {counted(sent, 'text')} that round {last.number} still waits for"
        ctx.store.log(session, ctx.name, "push", "new project", old=old, new=new)
    ctx.say(f"Project {new} takes the place of {old}: {told}. All answers that were read count.")


def _send_again(ctx: Context, session: Session, round_: int) -> int:
    """Has the next push send what a round waits for; how many texts."""
    answered = ctx.store.answer_counts(session, ctx.name)
    first = ctx.config.people.panel.first
    for check in ctx.store.checks(ctx.name, round_, session=session):
        if answered.get(check.id, 0) < asked_answers(check, first):
            check.task_id = check.sent_at = None
    waiting = [r for r in ctx.store.reviews(ctx.name, round_, session=session) if not r.closed_at]
    for review in waiting:
        review.task_id = review.sent_at = None
        if review.outcome in MISSING:
            review.outcome = None
    return len(waiting)
