"""The main path: one round, one function per stage.

Every stage reads, works, then writes its results and the round's next stage in one transaction.
A stage that is interrupted is simply run again: votes, trained seeds and tasks that are already
there are found and kept.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from sqlmodel import Session

from loop.campaign.config import as_run
from loop.campaign.context import Context
from loop.campaign.metrics import ONCE, RoundMetrics
from loop.campaign.tables import (
    IMPORTED,
    MISSING,
    STAGES,
    VALIDATION,
    Annotation,
    Gold,
    HiddenCheck,
    Review,
    Round,
    Scores,
    TrainingLabels,
    round_id,
)
from loop.chance import stream
from loop.errors import StageError, StudentError
from loop.llm.ask import calls_limit, take_votes, unanswered_line
from loop.llm.calibration import summary
from loop.llm.new_examples import prompts_of_round
from loop.measure.held_out import evaluation_items, held_out
from loop.measure.llm_quality import (
    covers_next,
    predictor_metrics,
    quality_metrics,
    suspect_metrics,
)
from loop.measure.round_metrics import measure_round
from loop.money import account, check_committed, texts_that_fit, why_nothing_to_buy
from loop.next_round import next_command, open_campaign, open_round, why_finished
from loop.people.answers import (
    answered_before,
    ask_further,
    close_answered,
    close_late,
    everything_is_due,
    take_in,
)
from loop.people.gold import decide_all
from loop.people.review_tasks import (
    draw_checks,
    is_assisted,
    known_checks,
    why_sent,
    with_checks,
)
from loop.people.tally import tally
from loop.pool_arrays import (
    audited,
    by_item,
    gold_classes,
    inclusion_prob_of,
    order_of_gold,
    pool_arrays,
    suspicion_by,
    suspicion_of,
)
from loop.ports import Fetched, FloatArray, ReviewTask
from loop.student.kept_vectors import item_embeddings
from loop.training_sets import (
    LEARNED,
    LabelSet,
    arms_of,
    fit_seeds,
    label_set_of,
    last_models,
    nothing_learned_sentence,
    run_saver,
    seeds_of,
    tuned_opinions,
)
from strategies.fuse import fuse_ranks
from strategies.pool import Pool
from strategies.repair import Repaired
from strategies.repair import repair as repair_labels
from strategies.select import select_batch
from strategies.signals.components import SPREAD_OVER, leading_components

NEXT = dict(pairwise(STAGES))
log = logging.getLogger(__name__)


def run_round(ctx: Context) -> Round:
    """Runs the unfinished round, or a new one, as far as it goes without waiting for people."""
    open_campaign(ctx)
    round_ = open_round(ctx)
    while round_.stage != "done" and _run(ctx, round_):
        pass
    return round_


def run_stage(ctx: Context, stage: str) -> Round:
    """Runs one stage of the current round, and those that follow it by themselves.

    Where no round waits for people, ``pull`` reads what they have answered since: while a round is
    trained and measured, and between two rounds and after the last without opening one.

    Raises:
        StageError: another stage comes first.
    """
    open_campaign(ctx)
    write_missing_results(ctx)
    newest = ctx.store.last_round(ctx.name)
    between_rounds = newest is None or newest.stage == "done"
    if stage == "pull" and newest is not None and between_rounds:
        _read_late(ctx, newest)
        return newest
    first = {"train": "repair"}.get(stage, stage)
    last = {"pull": "adjudicate", "train": "measure"}.get(stage, stage)
    if between_rounds and first != STAGES[0] and why_finished(ctx) is None:
        raise StageError(
            f"No round is open, and {stage!r} comes later in one; run {next_command(None)} first."
        )
    round_ = open_round(ctx)
    if STAGES.index(round_.stage) > STAGES.index(last):
        if stage == "pull":
            _read_late(ctx, round_)
            return round_
        ctx.say(f"Round {round_.number} has passed {stage}; next: {next_command(round_)}.")
        return round_
    if STAGES.index(round_.stage) < STAGES.index(first):
        raise StageError(
            f"Round {round_.number} is at stage {round_.stage!r}, {stage!r} comes later;"
            f" run {next_command(round_)} first."
        )
    while STAGES.index(round_.stage) <= STAGES.index(last) and _run(ctx, round_):
        pass
    return round_


def _run(ctx: Context, round_: Round) -> bool:
    """Runs the stage that comes next; False where it waits for people."""
    stage, began = round_.stage, time.monotonic()
    log.info("begins", extra={"place": {"round": round_.number, "stage": stage}})
    ended = "failed"
    try:
        goes_on = RUN[stage](ctx, round_)
        ended = "ended" if goes_on else "waits for people"
        return goes_on
    finally:
        log.info("%s after %.1f s", ended, time.monotonic() - began, extra={"leaves": True})


# stages


def annotate(ctx: Context, round_: Round) -> bool:
    """Takes the LLM votes that are missing."""
    items = ctx.keys("pool")
    variants = prompts_of_round(
        ctx.config,
        ctx.store,
        ctx.annotator,
        round_number=round_.number,
        show=ctx.show,
        say=ctx.say,
    )
    total = calls_limit(ctx.config, len(items), len(variants)) or len(items) * len(variants)
    with ctx.show(f"Round {round_.number}: LLM labels", total) as progress:
        unanswered = take_votes(
            ctx.config,
            ctx.store,
            ctx.annotator,
            items,
            variants,
            progress=progress,
            say=ctx.say,
        )
    recorded = ctx.config.annotator.kind == "recorded"
    if news := unanswered_line(ctx.store, ctx.name, ctx.annotator.revision, recorded=recorded):
        ctx.say(f"{news} A text without any LLM answer counts as most suspect.")
    revision = ctx.annotator.revision
    return _advance(ctx, round_, "annotate", unanswered=unanswered, annotator=revision)


def score(ctx: Context, round_: Round) -> bool:
    """Turns votes, neighbours and students into one suspicion per item."""
    names = ctx.config.strategy.signals if round_.number != VALIDATION else ()
    arrays = pool_arrays(ctx, round_, names)
    if arrays.news:
        ctx.say(arrays.news)
    signals: dict[str, FloatArray] = {}
    with ctx.show(f"Round {round_.number}: ranking suspects", len(names)) as progress:
        for position, name in enumerate(names):
            rng = stream("signals", round_.seed, round_.number, then=[position])
            signals[name] = suspicion_by(name, arrays.pool, rng)
            progress(1)
    suspicion = fuse_ranks(signals) if names else np.zeros(len(arrays.items))
    answered = arrays.votes.answered
    suspicion[~answered] = 2.0  # no label at all: nothing in [0, 1] is as doubtful
    scores = Scores(
        rows=np.array([item.row for item in arrays.items]),
        llm=np.where(answered, arrays.pool.y_llm, -1),
        confidence=np.where(answered, arrays.votes.posterior.max(axis=1), np.nan),
        suspicion=suspicion,
        signals=signals,
    )
    with ctx.store.transaction() as session:
        ctx.store.put_scores(session, round_id(round_), scores)
        if arrays.view.reason:
            ctx.store.log(
                session,
                ctx.name,
                "calibration",
                arrays.view.name,
                round=round_.number,
                reason=arrays.view.reason,
            )
        return _advance(ctx, round_, "score", session, signals=list(signals))


def select(ctx: Context, round_: Round) -> bool:
    """Picks the batch and writes it to the outbox."""
    sent = {r.item_id for r in ctx.store.reviews(ctx.name)} | set(ctx.store.gold(ctx.name))
    keys = ctx.keys("pool")
    suspicion = suspicion_of(ctx, round_, keys)
    candidates = np.array([i for i, key in enumerate(keys) if key.id not in sent], dtype=np.int64)
    validates = round_.number == VALIDATION
    size = round_.config["validate_size"] if validates else ctx.config.rounds.batch_size
    n = min(size, len(candidates), texts_that_fit(ctx.config, ctx.store))
    if not n:
        raise StageError(f"Nothing can be sent: {why_nothing_to_buy(ctx.config, ctx.store)}.")
    cover = not validates and covers_next(ctx.store.rounds(ctx.name))
    about = None
    if ctx.config.rounds.audit == "spread" and not validates:
        about = leading_components(item_embeddings(ctx, keys), SPREAD_OVER)
    batch = select_batch(
        suspicion,
        candidates,
        n,
        audit_frac=1.0 if validates else ctx.config.rounds.audit_frac,
        rng=stream("batch", round_.seed, round_.number),
        about=about,
        cover=cover,
    )
    rows = [
        {
            "item_id": keys[row].id,
            "round_id": round_.id,
            "reason": str(reason),
            "rank": rank,
            "suspicion": float(suspicion[row]),
            "inclusion_prob": float(prob),
            "audit_prob": float(audit_prob),
        }
        for rank, (row, reason, prob, audit_prob) in enumerate(
            zip(batch.rows, batch.reason, batch.inclusion_prob, batch.audit_prob, strict=True)
        )
    ]
    checks = draw_checks(ctx, round_, n)
    with ctx.store.transaction() as session:
        ctx.store.insert(session, Review, rows)
        ctx.store.insert(session, HiddenCheck, checks)
        return _advance(
            ctx, round_, "select", session, chosen=n, checks=len(checks), coverage=cover
        )


def push(ctx: Context, round_: Round) -> bool:
    """Sends the outbox to where people label; tasks that are already there are adopted."""
    check_committed(ctx.config, ctx.store)
    waiting = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.task_id is None]
    checks = [c for c in ctx.store.checks(ctx.name, round_.id) if c.task_id is None]
    wanted = [r.item_id for r in waiting] + [c.item_id for c in checks]
    texts, scores = ctx.store.texts(wanted), ctx.store.scores(round_id(round_), wanted)
    _open_project(ctx)
    tasks = [
        ReviewTask(
            item_id=r.item_id,
            text=texts[r.item_id],
            round_number=round_.number,
            rank=r.rank,
            why=why_sent(r, scores[r.item_id]),
            llm_label=scores[r.item_id].llm_label or "",
            llm_confidence=scores[r.item_id].llm_confidence or 0.0,
        )
        for r in waiting
    ]
    before = answered_before(ctx)
    tasks = [
        replace(task, assisted=is_assisted(ctx, task.item_id), answered=before[task.item_id])
        for task in with_checks(round_, tasks, checks, texts, scores)
    ]
    with ctx.show(f"Round {round_.number}: sending to people", len(tasks)) as progress:
        task_ids = ctx.reviewer.send(tasks, progress)
    with ctx.store.transaction() as session:
        ctx.store.mark_sent(
            session,
            task_ids,
            asked=ctx.config.people.panel.first,
            assisted=(task.item_id for task in tasks if task.assisted),
        )
        return _advance(ctx, round_, "push", session, sent=len(tasks))


def pull(ctx: Context, round_: Round) -> bool:
    """Fetches what people answered, and asks more of them where need be.

    False while answers are still out.
    """
    project_id = _open_project(ctx)
    while True:
        if _pull_once(ctx, round_, project_id):
            return True
        asked = ask_further(ctx, round_)
        if ctx.raters is None or not asked:
            return False


def _pull_once(ctx: Context, round_: Round, project_id: str) -> bool:
    if ctx.raters is not None:
        open_reviews = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.closed_at is None]
        total = len(open_reviews) * ctx.config.people.overlap
        with ctx.show(f"Round {round_.number}: simulated raters answer", total) as progress:
            ctx.raters.answer(project_id, progress)
    fetched, seconds = _fetch(ctx)
    with ctx.store.transaction() as session:
        take_in(ctx, session, fetched, seconds)
        out = close_answered(ctx, session, round_)
        if out:
            return False
        return _advance(ctx, round_, "pull", session)


def _fetch(ctx: Context) -> tuple[Fetched, float]:
    """What people answered, and how many seconds it took to read."""
    cursor = None if everything_is_due(ctx) else ctx.store.pull_cursor(ctx.name)
    started = time.monotonic()
    return ctx.reviewer.fetch(cursor), time.monotonic() - started


def _read_late(ctx: Context, round_: Round) -> None:
    """Reads what people answered since a round left them, and decides gold anew once it is done.

    Nothing else changes: what the rounds measured stays. A round that is not done has its labels
    already, so that its gold must not change before it is measured.
    """
    if ctx.store.project_id(ctx.name) is None:
        ctx.say("Nothing was ever sent to people, so that there are no answers to read.")
        return
    _open_project(ctx)
    fetched, seconds = _fetch(ctx)
    before = ctx.store.annotations(ctx.name)
    over = round_.stage == "done"
    with ctx.store.transaction() as session:
        take_in(ctx, session, fetched, seconds)
        close_late(ctx, session)
        now = ctx.store.annotations(ctx.name, session=session)
        changed = _decide_gold(ctx, session, round_) if over else 0
        ctx.store.log(session, ctx.name, "pull", "late answers", gold_changed=changed)
    differ = {a.id for a in before} ^ {a.id for a in now}
    answers = len({a.annotation_id for a in [*before, *now] if a.id in differ})
    if not answers and not changed:
        ctx.say(f"No answer has changed since round {round_.number} stopped waiting for people.")
    elif over:
        ctx.say(
            f"Answers that differ from those read before: {answers:,}; gold labels that changed:"
            f" {changed:,}. What the rounds measured stays as it was; exports and the next round"
            " use the new gold."
        )
    else:
        ctx.say(
            f"Answers that differ from those read before: {answers:,}. Round {round_.number} has"
            " its labels already, so they are kept and become gold in the next round, or with"
            " `goldloop pull` after the last one."
        )


def close_early(ctx: Context, round_: Round) -> None:
    """Continues with the answers received so far; late ones still count in a later round.

    Raises:
        StageError: the round is not waiting for people, or nothing is back of what may still come.
    """
    if round_.stage != "pull":
        raise StageError(f"Round {round_.number} is at stage {round_.stage!r}, not waiting.")
    reviews = ctx.store.reviews(ctx.name, round_.id)
    back = [r for r in reviews if r.closed_at is not None]
    if not back and tally(reviews).out:  # where every task is gone, nothing else ends the round
        raise StageError(
            "No text of this round is answered yet: there is nothing to continue with."
        )
    with ctx.store.transaction() as session:
        _advance(ctx, round_, "pull", session, closed_early=True, back=len(back))


def adjudicate(ctx: Context, round_: Round) -> bool:
    """Turns all current answers of the campaign into gold, corrections of old ones included."""
    with ctx.store.transaction() as session:
        changed = _decide_gold(ctx, session, round_)
        return _advance(ctx, round_, "adjudicate", session, changed=changed)


def _decide_gold(ctx: Context, session: Session, round_: Round) -> int:
    """Decides gold anew from all current answers; how many labels that changed.

    Args:
        round_: to which gold belongs that there was not before.
    """
    reviewed = {r.item_id: r.outcome for r in ctx.store.reviews(ctx.name, session=session)}
    known = known_checks(ctx)
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in ctx.store.annotations(ctx.name, session=session):
        if annotation.item_id in reviewed or annotation.item_id in known:
            by_item[annotation.item_id].append(annotation)
    gold = ctx.store.gold(ctx.name)
    changed = 0
    # A text whose answers were all deleted is undecided again, like one that nobody answered.
    decisions = decide_all(
        {item: by_item.get(item, []) for item in sorted({*by_item, *gold, *reviewed})},
        ctx.config.label_names,
        ctx.config.people.panel,
        known,
    )
    gold_now: list[Gold] = []
    for item_id, decision in decisions.items():
        old = gold.get(item_id)
        was = reviewed.get(item_id)
        outcome = decision.how if item_id in by_item else was if was in MISSING else None
        if item_id in reviewed and was != outcome:
            ctx.store.set_outcome(session, item_id, outcome)
        if decision.label is None:
            if old is not None and old.how == IMPORTED:
                continue
            if old is not None:  # the answers that it came from were withdrawn
                ctx.store.delete_gold(session, old)
                changed += 1
        elif old is None or (old.label, old.how, old.confidence) != (
            decision.label,
            decision.how,
            decision.confidence,
        ):
            changed += old is None or (old.label, old.how) != (decision.label, decision.how)
            gold_now.append(
                Gold(
                    item_id=item_id,
                    label=decision.label,
                    how=decision.how,
                    confidence=decision.confidence,
                    round_number=old.round_number if old else round_.number,
                )
            )
    ctx.store.put_gold(session, gold_now)
    return changed


def repair(ctx: Context, round_: Round) -> bool:
    """Decides what the students learn: gold where there is some, repaired LLM labels elsewhere."""
    labels = repaired_labels(ctx, round_)
    with ctx.store.transaction() as session:
        ctx.store.put_training_labels(session, round_id(round_), labels)
        mode = as_run(round_.config).strategy.repair
        return _advance(ctx, round_, "repair", session, mode=mode)


def repaired_labels(ctx: Context, round_: Round) -> TrainingLabels:
    """What the loop's own students learn: gold up to this round, repaired LLM labels elsewhere.

    Args:
        round_: its seed decides the folds and students that mend; a copy with another seed says
            what the same gold would have made of the labels by other draws.
    """
    strategy = as_run(round_.config).strategy
    kept_out = held_out(ctx)
    later = {i for i, g in ctx.store.gold(ctx.name).items() if g.round_number > round_.number}
    needs = () if strategy.repair == "keep" else ("student_disagreement", "knn_disagreement")
    # What measures accuracy may not reach the students by way of repair either.
    arrays = pool_arrays(ctx, round_, needs, hidden=kept_out | later)
    taught = arrays.votes.answered | (arrays.pool.gold >= 0)
    taught &= ~by_item(arrays.items, dict.fromkeys(kept_out, True), default=False)

    def repaired(pool: Pool) -> Repaired:
        rng = stream("repair", round_.seed, round_.number)
        labels = repair_labels(pool, strategy.repair, rng=rng)
        return replace(labels, weight=np.where(taught, labels.weight, 0.0))

    labels = repaired(arrays.pool)
    if strategy.judged and (arrays.pool.gold >= 0).any():
        lesson = LabelSet([i.id for i in arrays.items], labels.y, labels.weight)
        judged = tuned_opinions(ctx, round_, lesson)
        if judged is not None:
            labels = repaired(replace(arrays.pool, p_tuned=judged))
    rows = np.array([item.row for item in arrays.items])
    source = np.asarray(labels.source, dtype=np.str_)
    return TrainingLabels(rows, labels.y, labels.weight, source)


def train(ctx: Context, round_: Round) -> bool:
    """Trains every seed of every arm that is not trained yet."""
    arms = arms_of(ctx, round_, held_out(ctx))
    seeds = seeds_of(ctx, round_)
    evaluated = evaluation_items(ctx)
    start = last_models(ctx, round_)
    done = {
        (r.arm, r.seed, r.label_set): r.learned
        for r in ctx.store.runs(ctx.name)
        if r.round_id == round_.id or r.arm in ONCE
    }
    stops = ctx.config.student.if_nothing_learned == "stop"
    for arm, labels in arms.items():
        label_set = label_set_of(ctx, labels, evaluated)
        missing = [seed for seed in seeds if (arm, seed, label_set) not in done]
        what = f"Round {round_.number}: students of {LEARNED[arm]}"
        if stops and arm == "loop" and done.get((arm, seeds[0], label_set)) is False:
            told = f"seed {seeds[0]} answers as if it had not seen its labels"
            raise StudentError(nothing_learned_sentence(ctx, labels, what, told))
        if not missing:
            continue
        keep = {}
        if arm == "loop":
            folder = ctx.config.out / "models" / f"round-{round_.number}"
            if ctx.config.student.keep_seeds:  # `goldloop serve` then sees where seeds disagree
                keep = {s: folder.with_name(f"{folder.name}-seed-{s}") for s in missing}
            if seeds[0] in missing:
                keep[seeds[0]] = folder
        fit_seeds(
            ctx,
            labels,
            evaluated,
            missing,
            what=what,
            keep=keep,
            on_seed=run_saver(ctx, round_, arm, label_set),
            start=start if arm == "loop" else {},
            must_learn=arm == "loop" and seeds[0] in missing,
        )
    return _advance(ctx, round_, "train", arms=list(arms))


def measure(ctx: Context, round_: Round) -> bool:
    """Computes the round's metrics and writes rounds.json and report.html."""
    metrics = _with_gold(ctx, round_, measure_round(ctx, round_, evaluation_items(ctx)))
    with ctx.store.transaction() as session:
        ctx.store.set_metrics(session, round_, metrics)
        spent = account(ctx.config, ctx.store, session).spent_usd
        _advance(ctx, round_, "measure", session, spent_usd=spent)
    _write_results(ctx, round_)
    return True


def write_missing_results(ctx: Context) -> None:
    """Writes rounds.json and report.html where the last measured round did not get so far.

    Raises:
        LoopError: a file cannot be written.
    """
    measured = [round_ for round_ in ctx.store.rounds(ctx.name) if round_.metrics is not None]
    written = {e.detail["round"] for e in ctx.store.events(ctx.name, "results", "written")}
    if measured and measured[-1].number not in written:
        _write_results(ctx, measured[-1])
        ctx.say(f"Round {measured[-1].number} was measured before; its results are written now.")


def _write_results(ctx: Context, round_: Round) -> None:
    from loop.report.collect import write_outputs

    write_outputs(ctx.config, ctx.store)
    with ctx.store.transaction() as session:
        ctx.store.log(session, ctx.name, "results", "written", round=round_.number)


def _with_gold(ctx: Context, round_: Round, metrics: RoundMetrics) -> RoundMetrics:
    """Adds what gold says of the LLM's labels, and how well the round foresaw their errors.

    The errors are foreseen by the pool as it was when the round chose its batch: without the gold
    that has come since.
    """
    strategy = as_run(round_.config).strategy
    learns = strategy.repair != "keep" or "learned_error" in strategy.signals
    reviews = ctx.store.reviews_by_item(ctx.name)
    batch = {item_id for item_id, review in reviews.items() if review.round_id == round_.id}
    since = {i for i, g in ctx.store.gold(ctx.name).items() if g.round_number >= round_.number}
    then = pool_arrays(ctx, round_, ("learned_error",) if learns else (), hidden=batch | since)
    items, y_llm, answered = then.items, then.pool.y_llm, then.votes.answered
    chosen, arrived = order_of_gold(ctx, items, reviews)
    suspicion = suspicion_of(ctx, round_, items)
    gold = gold_classes(ctx, items)
    inclusion_prob = inclusion_prob_of(items, reviews)
    judged = by_item(items, dict.fromkeys(batch, True), default=False) & (gold >= 0) & answered
    rows = np.flatnonzero(judged)
    suspects = predictor = None
    if len(rows):
        reasons = [reviews[items[row].id].reason for row in rows]
        earlier = [
            past.metrics.suspects
            for past in ctx.store.rounds(ctx.name)
            if past.number < round_.number and past.metrics and past.metrics.suspects
        ]
        wrong = gold[rows] != y_llm[rows]
        suspects = suspect_metrics(reasons, wrong, suspicion[rows], earlier)
    if learns:
        rng = stream("foreseen errors", round_.seed, round_.number)
        predictor = predictor_metrics(then.pool, judged, gold, inclusion_prob, rng=rng)
    return replace(
        metrics,
        calibration=summary(then.view, then.votes, gold, audited(items, reviews)),
        label_quality=quality_metrics(
            ctx.config,
            y_llm,
            gold,
            inclusion_prob,
            chosen,
            suspicion,
            answered,
            arrived,
        ),
        suspects=suspects,
        predictor=predictor,
    )


RUN: dict[str, Callable[[Context, Round], bool]] = {
    "annotate": annotate,
    "score": score,
    "select": select,
    "push": push,
    "pull": pull,
    "adjudicate": adjudicate,
    "repair": repair,
    "train": train,
    "measure": measure,
}


# what the stages share


def _advance(
    ctx: Context, round_: Round, stage: str, session: Session | None = None, **detail: Any
) -> bool:
    """Writes the stage after ``stage``, with a line in the audit trail; always True."""
    if session is None:
        with ctx.store.transaction() as own:
            return _advance(ctx, round_, stage, own, **detail)
    ends = round_.number == VALIDATION and stage == "adjudicate"
    ctx.store.advance(session, round_, "done" if ends else NEXT[stage])
    ctx.store.log(session, ctx.name, stage, "done", round=round_.number, **detail)
    return True


def _open_project(ctx: Context) -> str:
    known = ctx.store.project_id(ctx.name)
    project_id = ctx.reviewer.open_project(known)
    if project_id != known:
        ctx.store.set_project(ctx.name, project_id)
    return project_id


def pull_answers(ctx: Context) -> Round | None:
    """Pulls and adjudicates where a round waits for people; None where none does."""
    last = ctx.store.last_round(ctx.name)
    if last is None or last.stage not in ("pull", "adjudicate"):
        return None
    return run_stage(ctx, "pull")
