"""What people answered: kept raw, counted, asked for again, or taken back unanswered."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

from sqlmodel import Session

from loop.campaign.context import Context
from loop.campaign.store import SeenAnswer
from loop.campaign.tables import (
    DELETED,
    MISSING,
    OF_PROJECT,
    STAGES,
    UNSERVED,
    Annotation,
    HiddenCheck,
    Review,
    Round,
    now,
)
from loop.money import account, asked_answers
from loop.people.forgotten import Forgotten, without_name
from loop.people.gold import decide_all, latest_per_person, wanted_answers
from loop.people.review_tasks import known_checks
from loop.ports import UNNAMED, Fetched, FetchedTask, RawAnnotation, unknown_label

OF_TASK = " of task "
"""Between an answer's number and its task, where another task's answer has the same number."""
READ_ALL = "read everything"  # in the audit trail
READ_ALL_AFTER_S = 300.0
READ_ALL_SHARE = 0.01  # of the time, at most


def everything_is_due(ctx: Context) -> bool:
    """Whether it is time to read all answers, not only what changed.

    Server clocks that were set back hide answers from a reading that goes by the time, and deleted
    tasks have no time at all. A small project is read every few minutes, a large one as often as a
    hundredth of the time allows.
    """
    last = ctx.store.last_event(ctx.name, "pull", READ_ALL)
    if last is None:
        return True
    at = last.at if last.at.tzinfo else last.at.replace(tzinfo=UTC)
    elapsed_s = (now() - at).total_seconds()
    wait_s = max(READ_ALL_AFTER_S, float(last.detail.get("seconds", 0.0)) / READ_ALL_SHARE)
    return not 0 <= elapsed_s < wait_s


def take_in(ctx: Context, session: Session, fetched: Fetched, seconds: float) -> None:
    """Records what was read, in the caller's transaction.

    Args:
        seconds: how long the reading took.
    """
    record_answers(ctx, session, fetched.tasks)
    missing = _note_missing(ctx, session, fetched)
    if fetched.whole:
        ctx.store.log(session, ctx.name, "pull", READ_ALL, seconds=round(seconds, 3))
    for outcome, tasks in missing.items():
        ctx.store.log(session, ctx.name, "pull", outcome, tasks=tasks)
    ctx.store.set_pull_cursor(session, ctx.name, fetched.cursor)
    session.flush()


def record_answers(ctx: Context, session: Session, tasks: Sequence[FetchedTask]) -> None:
    """Appends what is new of these tasks and supersedes what changed or was deleted.

    A person whom the platform did not name before, and names now, gets the name everywhere.
    """
    stored = ctx.store.answers_seen(session, ctx.name)
    task_of = {(old.annotation_id, old.updated_at): old.task_id for old in stored}
    by_task: dict[str, dict[tuple[str, str], SeenAnswer]] = defaultdict(dict)
    for old in stored:
        by_task[old.task_id][old.annotation_id, old.updated_at] = old
    labels = set(ctx.config.label_names)
    forgotten = Forgotten.of(ctx.store, session, ctx.name)
    new: list[dict[str, Any]] = []
    gone: list[int] = []
    again: list[int] = []
    named: dict[str, str] = {}
    for task in tasks:
        known = by_task[task.task_id]
        current = set()
        for answer in task.annotations:
            row = stored_form(ctx.name, answer, labels, forgotten)
            key = (row["annotation_id"], row["updated_at"])
            if task_of.get(key, row["task_id"]) != row["task_id"]:
                # Another task's answer has its number.
                row["annotation_id"] = f"{row['annotation_id']}{OF_TASK}{row['task_id']}"
                row |= {"label": None, "problem": row["problem"] or "no number of its own"}
                key = (row["annotation_id"], row["updated_at"])
            if key in current:
                continue
            current.add(key)
            if key not in known:
                task_of[key] = row["task_id"]
                new.append(row)
                continue
            was, person = known[key].annotator, row["annotator"]
            if was != person and not UNNAMED.fullmatch(person):
                if UNNAMED.fullmatch(was):
                    named[was] = person
                elif was in forgotten.pseudonyms.values():
                    forgotten.remember(ctx.store, session, ctx.name, person, was)
            if known[key].superseded:
                again.append(known[key].id)
        gone += [r.id for k, r in known.items() if k not in current and not r.superseded]
    for row in new:  # they may be of somebody who turned out to be forgotten under another name
        _forget_again(row, forgotten)
    ctx.store.add_answers(session, new)
    ctx.store.supersede(session, gone, now())
    ctx.store.supersede(session, again, None)
    for was, person in named.items():
        ctx.store.rename_person(session, ctx.name, was, person)
    session.flush()


def stored_form(
    campaign: str, a: RawAnnotation, labels: Collection[str], forgotten: Forgotten
) -> dict[str, Any]:
    """The columns of an ``Annotation``, a slow thing to make of answers that are known already."""
    known = a.label is None or a.label in labels
    problem = a.problem if known else unknown_label(a.label)
    row = {
        "campaign": campaign,
        "annotation_id": _storable(a.annotation_id),
        "updated_at": _storable(a.updated_at),
        "task_id": a.task_id,
        "item_id": a.item_id,
        "annotator": _storable(a.annotator),
        "label": a.label if known else None,
        "skipped": a.skipped,
        "note": _storable(a.note),
        "lead_time_s": a.lead_time_s,
        "problem": None if problem is None else _storable(problem),
        "raw": a.raw,
    }
    _forget_again(row, forgotten)
    return row


def _forget_again(row: dict[str, Any], forgotten: Forgotten) -> None:
    """Puts the pseudonym of a person who was forgotten in place of their name."""
    person = row["annotator"]
    if (pseudonym := forgotten.pseudonym(person)) is None:
        return
    for column in ("annotation_id", "note", "problem"):
        row[column] = without_name(row[column], (person,), pseudonym)
    row["raw"] = without_name(row["raw"], (person,), pseudonym, own=True)
    row["annotator"] = pseudonym


def _storable(text: str) -> str:
    """What every database holds: NUL and halves of surrogate pairs become U+FFFD.

    The raw answer keeps them.
    """
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def _note_missing(ctx: Context, session: Session, fetched: Fetched) -> dict[str, list[str]]:
    """Marks texts that wait for people, but whose task is gone or cannot be shown.

    One that turns up again is waited for again.

    Returns:
        outcome -> ids of the tasks that have it since this reading.
    """
    there = {task.item_id for task in fetched.tasks}
    unserved = set(fetched.unserved)
    news: dict[str, list[str]] = defaultdict(list)
    for review in ctx.store.reviews(ctx.name, session=session):
        if review.task_id is None:
            continue
        if review.task_id in unserved:
            outcome = UNSERVED
        elif review.item_id in there:
            outcome = None
        elif fetched.whole:
            outcome = DELETED
        else:
            continue
        if outcome is None and review.outcome in MISSING:
            review.outcome = review.closed_at = None
        elif outcome not in (None, review.outcome) and review.closed_at is None:
            review.outcome = outcome
            news[str(outcome)].append(review.task_id)
    return dict(news)


def _current_answers(ctx: Context, session: Session) -> dict[str, list[Annotation]]:
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in ctx.store.annotations(ctx.name, session=session):
        by_item[annotation.item_id].append(annotation)
    return by_item


def close_answered(ctx: Context, session: Session, round_: Round) -> int:
    """Closes the reviews that have answers enough; how many of the round are still out.

    Reviews that are not closed are told how many answers they want, the most suspect first. Where
    money does not allow a further answer, a text continues with the answers that it was asked for.
    A text whose task is gone is not waited for, unless that would end a round of which nothing
    came back.
    """
    everywhere = ctx.store.reviews(ctx.name, session=session)
    reviews = [review for review in everywhere if review.round_id == round_.id]
    by_item = _current_answers(ctx, session)
    panel = ctx.config.people.panel
    _close_late(ctx, by_item, (r for r in everywhere if r.round_id != round_.id))
    out = 0
    known = known_checks(ctx)
    answered = {i: by_item.get(i, []) for i in [*(r.item_id for r in reviews), *known]}
    decisions = decide_all(answered, ctx.config.label_names, panel, known)
    money = account(ctx.config, ctx.store, session)
    fit, refused = money.answers_that_fit, 0
    any_back = any(answered[review.item_id] for review in reviews)
    for review in reviews:
        answers = answered[review.item_id]
        received = len(latest_per_person(answers))
        if review.outcome in MISSING and any_back:
            review.closed_at = review.closed_at or now()
            if received and review.outcome == DELETED:  # nobody else can answer
                review.asked = review.wanted = received
            continue
        wanted = wanted_answers(answers, decisions[review.item_id], panel)
        committed = max(received, asked_answers(review, panel.first))
        if fit is not None and wanted > committed:
            allowed = min(wanted, committed + fit)
            fit -= allowed - committed
            refused += allowed < wanted and review.closed_at is None
            wanted = allowed
        if received >= wanted or OF_PROJECT in str(review.task_id):
            review.closed_at = review.closed_at or now()
        else:
            review.closed_at = None
            # Label Studio may have been told already, so it is never taken back.
            review.wanted = max(wanted, review.wanted or 0)
            out += 1
        if review.outcome not in MISSING:
            review.outcome = decisions[review.item_id].how if answers else None
    if refused:
        ctx.say(
            f"{refused} text{'s' * (refused > 1)} want{'s' * (refused == 1)} one more answer, which"
            f" would cost ${money.answer_usd:.2f} each, but {money}: the answers that they have"
            " are used. Raise budget.usd while the round waits for people to ask further."
        )
    return out


def close_late(ctx: Context, session: Session) -> None:
    """Says of the reviews of rounds that are over which have answers enough by now."""
    reviews = ctx.store.reviews(ctx.name, session=session)
    _close_late(ctx, _current_answers(ctx, session), reviews)


def _close_late(
    ctx: Context, by_item: Mapping[str, Sequence[Annotation]], reviews: Iterable[Review]
) -> None:
    for review in reviews:
        received = len(latest_per_person(by_item.get(review.item_id, [])))
        if received and review.outcome == DELETED:  # nobody else can answer
            review.asked = review.wanted = received
            review.outcome = None
        if review.task_id and review.outcome not in MISSING:
            enough = received >= (review.wanted or ctx.config.people.panel.first)
            review.closed_at = (review.closed_at or now()) if enough else None


def answered_before(ctx: Context) -> Counter[str]:
    """How many people answered in projects that the campaign has left, by the id of the task."""
    former = [a for a in ctx.store.annotations(ctx.name) if OF_PROJECT in a.task_id]
    return Counter(item_id for item_id, _ in {(a.item_id, a.annotator) for a in former})


def ask_further(ctx: Context, round_: Round) -> int:
    """Tells the platform which texts want more answers; how many it was told of.

    Where one person answered a text twice, the platform may hold that for enough. Called again
    after an interruption, it says the same again, which changes nothing.
    """
    panel = ctx.config.people.panel
    waiting = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.closed_at is None]
    with ctx.store.transaction() as session:
        by_item = _current_answers(ctx, session)
    before = answered_before(ctx)
    tasks: dict[str, int] = {}
    further: dict[str, int] = {}
    for review in waiting:
        if not (review.task_id and review.wanted):
            continue
        answers = by_item.get(review.item_id, [])
        here = sum(a.task_id == review.task_id and not a.skipped for a in answers)
        missing = review.wanted - len(latest_per_person(answers))
        asked, elsewhere = review.asked or 1, before[review.item_id]
        if review.wanted > asked or here >= asked - elsewhere:
            tasks[review.task_id] = max(review.wanted - elsewhere, here + missing)
            further[review.item_id] = review.wanted
    if further:
        ctx.reviewer.ask(tasks)
        ctx.store.set_asked(further)
    if panel.adjudicator is not None:
        ctx.reviewer.queue("Conflicts", [r.item_id for r in waiting if r.outcome == "conflict"])
    return len(further)


def withdraw_unanswered(ctx: Context) -> int:
    """Withdraws them from the platform and from the outbox; how many texts.

    They cost nothing and may be chosen again. A text that somebody answered, skipped or began
    stays with people, and a late answer to it still counts; of those that were answered, nobody
    else is asked. Run again after an interruption, it continues where it stopped.

    Raises:
        ReviewerError: the platform refuses.
    """
    over = {
        r.id for r in ctx.store.rounds(ctx.name) if STAGES.index(r.stage) > STAGES.index("pull")
    }
    with ctx.store.transaction() as session:
        answered = ctx.store.answer_counts(session, ctx.name)
    first = ctx.config.people.panel.first
    sent: dict[str, Review | HiddenCheck] = {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    sent |= {check.id: check for check in ctx.store.checks(ctx.name)}
    still_asked = {
        id_: one
        for id_, one in sent.items()
        if one.round_id in over and one.task_id and answered.get(id_, 0) < asked_answers(one, first)
    }
    if not still_asked:
        return 0
    ctx.reviewer.open_project(ctx.store.project_id(ctx.name))
    gone = ctx.reviewer.withdraw(sorted(still_asked))
    gone -= answered.keys()  # deleted there; their answers count
    enough = {id_: answered[id_] for id_ in still_asked.keys() & answered.keys()}
    with ctx.store.transaction() as session:
        ctx.store.take_back(session, gone)
        reviews = [r for r in ctx.store.reviews(ctx.name, session=session) if r.round_id in over]
        for review in reviews:
            if people := enough.get(review.item_id):
                review.asked = review.wanted = people
        for check in ctx.store.checks(ctx.name, session=session):
            check.asked = enough.get(check.id, check.asked)
        _close_late(ctx, _current_answers(ctx, session), reviews)
        ctx.store.log(
            session, ctx.name, "pull", "withdrawn", texts=sorted(gone), asked_no_further=len(enough)
        )
    if enough:
        ctx.say(f"Texts that have answers, and about which nobody else is asked: {len(enough):,}.")
    return sum(isinstance(still_asked[id_], Review) for id_ in gone)
