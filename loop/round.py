"""The main path: one round, one function per stage.

Every stage reads, works, then writes its results and the round's next stage in one transaction.
A stage that is interrupted is simply run again: votes, trained seeds and tasks that are already
there are found and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import update
from sqlmodel import Session, col, select

from loop.adjudicate import Panel, decide_all, latest_per_person, wanted_answers
from loop.annotate import calls_limit, take_votes, text_item, unanswered_line
from loop.calibration import View, choose_view, summary
from loop.context import Context
from loop.embeddings import embeddings as item_embeddings
from loop.errors import StageError
from loop.intake import import_texts
from loop.measure import ONCE, measure_round
from loop.people import labels_of_checks
from loop.ports import (
    FetchedTask,
    FloatArray,
    IntArray,
    KnownTexts,
    RawAnnotation,
    ReviewTask,
    SeedResult,
    TrainingSet,
    unknown_label,
)
from loop.quality import predictor_metrics, quality_metrics, why_good_enough
from loop.store import (
    STAGES,
    Annotation,
    CampaignRow,
    Gold,
    HiddenCheck,
    Item,
    Review,
    Round,
    Run,
    Score,
    TrainingLabel,
    insert_all,
    now,
)
from loop.variants import freeze_variants
from loop.votes import LlmVotes, read_votes, widened
from strategies import NEEDS, STRATEGIES
from strategies.fuse import fuse_ranks
from strategies.pool import Pool
from strategies.repair import repair
from strategies.select import select_batch

NEXT = dict(pairwise(STAGES))
EVALUATED_FRAC = 0.2
"""Share of the texts sent that measures accuracy where no test text has a known label."""
VALIDATION = 0
"""Number of the round that only measures the LLM: a random sample, no training."""


def open_campaign(ctx: Context) -> None:
    """Makes the campaign's row and imports its texts, once; says which labels are new."""
    if new := ctx.store.open_campaign(ctx.name, ctx.config.label_names):
        ctx.say(
            f"New label{'s' * (len(new) > 1)}: {', '.join(new)}. People can choose"
            f" {'them' if len(new) > 1 else 'it'} from the next push or pull on, also to correct"
            " earlier answers; the next round asks the LLM about every text anew."
        )
    if ctx.store.item_count(ctx.name) == 0:
        count = import_texts(ctx.config, ctx.store, ctx.parts.texts())
        ctx.say(f"Imported {count} texts.")


def why_finished(ctx: Context) -> str | None:
    """Why no further round can be opened, or None."""
    rounds = ctx.store.rounds(ctx.name)
    done = [r for r in rounds if r.stage == "done"]
    if len(done) < len(rounds):
        return None
    if sum(r.number != VALIDATION for r in done) >= ctx.config.rounds.rounds:
        return f"all {ctx.config.rounds.rounds} rounds are done (rounds.rounds)"
    if enough := why_good_enough(ctx.config, rounds):
        return enough
    return _why_nothing_to_buy(ctx)


def _why_nothing_to_buy(ctx: Context) -> str | None:
    reviews = ctx.store.reviews(ctx.name)
    budget = ctx.config.budget
    if len(reviews) >= budget.labels:
        return f"the budget of {budget.labels} labels is spent (budget.labels)"
    if _affordable(ctx) == 0:
        return f"the budget of ${budget.usd:.2f} is spent (budget.usd)"
    if len(reviews) >= len(ctx.store.item_ids(ctx.name, "pool")):
        return "every text of the pool has been sent to people"
    return None


def open_round(ctx: Context) -> Round:
    """The unfinished round, or a new one.

    Raises:
        StageError: the campaign is finished.
    """
    last = ctx.store.last_round(ctx.name)
    if last is not None and last.stage != "done":
        return last
    if reason := why_finished(ctx):
        raise StageError(f"The campaign is finished: {reason}. See `goldloop report`.")
    return new_round(ctx, last.number + 1 if last else 1)


def new_round(ctx: Context, number: int, **settings: Any) -> Round:
    """Opens a round; the settings are kept with the campaign file as run."""
    with ctx.store.transaction() as session:
        round_ = Round(
            campaign=ctx.name,
            number=number,
            stage=STAGES[0],
            seed=ctx.config.rounds.seed,
            config=ctx.config.model_dump(mode="json") | settings,
            versions=versions(),
        )
        session.add(round_)
        ctx.store.log(session, ctx.name, "round", "opened", number=number)
    return round_


def run_round(ctx: Context) -> Round:
    """Runs the unfinished round, or a new one, as far as it goes without waiting for people."""
    open_campaign(ctx)
    round_ = open_round(ctx)
    while round_.stage != "done" and RUN[round_.stage](ctx, round_):
        pass
    return round_


def run_stage(ctx: Context, stage: str) -> Round:
    """Runs one stage of the current round, and those that follow it by themselves.

    Raises:
        StageError: another stage comes first.
    """
    open_campaign(ctx)
    round_ = open_round(ctx)
    last = {"pull": "adjudicate", "train": "measure"}.get(stage, stage)
    first = {"train": "repair"}.get(stage, stage)
    if STAGES.index(round_.stage) > STAGES.index(last):
        ctx.say(f"Round {round_.number} has passed {stage}; next: {next_command(round_)}.")
        return round_
    if not STAGES.index(first) <= STAGES.index(round_.stage):
        raise StageError(
            f"Round {round_.number} is at stage {round_.stage!r}, {stage!r} comes later;"
            f" run {next_command(round_)} first."
        )
    while round_.stage != "done" and STAGES.index(round_.stage) <= STAGES.index(last):
        if not RUN[round_.stage](ctx, round_):
            break
    return round_


def next_command(round_: Round | None) -> str:
    """What to type next."""
    stage = round_.stage if round_ else "annotate"
    command = {"adjudicate": "pull", "repair": "train", "measure": "train", "done": "run"}
    return f"`goldloop {command.get(stage, stage)}`"


# stages


def annotate(ctx: Context, round_: Round) -> bool:
    """Takes the LLM votes that are missing."""
    items = ctx.store.items(ctx.name, "pool")
    variants = freeze_variants(
        ctx.config, ctx.store, ctx.annotator.revision, round_number=round_.number
    )
    total = calls_limit(ctx.config, len(items), len(variants)) or len(items) * len(variants)
    with ctx.show(f"Round {round_.number}: LLM labels", total) as progress:
        unanswered = take_votes(
            ctx.config, ctx.store, ctx.annotator, items, variants, progress=progress
        )
    if news := unanswered_line(ctx.store, ctx.name, ctx.annotator.revision):
        ctx.say(f"{news} A text without any LLM answer counts as most suspect.")
    return _advance(ctx, round_, "annotate", unanswered=unanswered)


def score(ctx: Context, round_: Round) -> bool:
    """Turns votes, neighbours and students into one suspicion per item."""
    names = ctx.config.strategy.signals if round_.number != VALIDATION else ()
    arrays = _arrays(ctx, round_, names)
    signals: dict[str, FloatArray] = {}
    with ctx.show(f"Round {round_.number}: suspicion", len(names)) as progress:
        for position, name in enumerate(names):
            rng = np.random.default_rng([round_.seed, round_.number, 2, position])
            signals[name] = STRATEGIES[name](arrays.pool, rng)
            progress(1)
    suspicion = fuse_ranks(signals) if names else np.zeros(len(arrays.items))
    suspicion[~arrays.votes.answered] = 2.0  # no label at all: nothing in [0, 1] is as doubtful
    labels = ctx.config.label_names
    rows = [
        {
            "round_id": round_.id,
            "item_id": item.id,
            "llm_label": labels[arrays.pool.y_llm[i]],
            "llm_confidence": float(arrays.votes.posterior[i].max()),
            "signals": {name: float(values[i]) for name, values in signals.items()},
            "suspicion": float(suspicion[i]),
        }
        for i, item in enumerate(arrays.items)
    ]
    with ctx.store.transaction() as session:
        insert_all(session, Score, rows)
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


def choose(ctx: Context, round_: Round) -> bool:
    """Picks the batch and writes it to the outbox."""
    sent = {r.item_id for r in ctx.store.reviews(ctx.name)}
    scores = ctx.store.scores(_id(round_))
    ids = ctx.store.item_ids(ctx.name, "pool")
    candidates = np.array([row for row, item in enumerate(ids) if item not in sent], dtype=np.int64)
    validates = round_.number == VALIDATION
    size = round_.config["validate_size"] if validates else ctx.config.rounds.batch_size
    room = [size, len(candidates), ctx.config.budget.labels - len(sent)]
    affordable = _affordable(ctx)
    n = min(room if affordable is None else [*room, affordable])
    if n <= 0:
        raise StageError(f"Nothing can be sent: {_why_nothing_to_buy(ctx)}.")
    batch = select_batch(
        np.array([scores[item].suspicion for item in ids]),
        candidates,
        n,
        audit_frac=1.0 if validates else ctx.config.rounds.audit_frac,
        rng=np.random.default_rng([round_.seed, round_.number, 3]),
    )
    rows = [
        {
            "item_id": ids[row],
            "round_id": round_.id,
            "reason": str(reason),
            "rank": rank,
            "suspicion": scores[ids[row]].suspicion,
            "inclusion_prob": float(prob),
            "audit_prob": float(batch.audit_prob),
        }
        for rank, (row, reason, prob) in enumerate(
            zip(batch.rows, batch.reason, batch.inclusion_prob, strict=True)
        )
    ]
    checks = _draw_checks(ctx, round_, n)
    with ctx.store.transaction() as session:
        insert_all(session, Review, rows)
        insert_all(session, HiddenCheck, checks)
        return _advance(ctx, round_, "select", session, chosen=n, checks=len(checks))


def push(ctx: Context, round_: Round) -> bool:
    """Sends the outbox to Label Studio; tasks that are already there are adopted."""
    waiting = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.task_id is None]
    items = {i.id: i for i in ctx.store.items(ctx.name, "pool")}
    scores = ctx.store.scores(_id(round_))
    _open_project(ctx)
    tasks = [
        ReviewTask(
            item_id=r.item_id,
            text=items[r.item_id].text,
            round_number=round_.number,
            rank=r.rank,
            why=_why(r, scores[r.item_id]),
            llm_label=scores[r.item_id].llm_label,
            llm_confidence=scores[r.item_id].llm_confidence,
        )
        for r in waiting
    ]
    tasks = [
        replace(task, assisted=_assisted(ctx, task.item_id))
        for task in _with_checks(ctx, round_, tasks, scores)
    ]
    with ctx.show(f"Round {round_.number}: to Label Studio", len(tasks)) as progress:
        task_ids = ctx.reviewer.send(tasks, progress)
    assisted = {task.item_id for task in tasks if task.assisted}
    asked = Panel.of(ctx.config.label_studio).first
    with ctx.store.transaction() as session:
        for item_id, task_id in task_ids.items():
            values = {"task_id": task_id, "sent_at": now(), "assisted": item_id in assisted}
            session.exec(update(HiddenCheck).where(col(HiddenCheck.id) == item_id).values(**values))
            session.exec(
                update(Review).where(col(Review.item_id) == item_id).values(asked=asked, **values)
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
        asked = _ask_further(ctx, round_)
        if ctx.raters is None or not asked:
            return False


def _pull_once(ctx: Context, round_: Round, project_id: str) -> bool:
    if ctx.raters is not None:
        open_reviews = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.closed_at is None]
        total = len(open_reviews) * ctx.config.label_studio.overlap
        with ctx.show(f"Round {round_.number}: simulated raters answer", total) as progress:
            ctx.raters.answer(project_id, progress)
    with ctx.store.transaction() as session:
        row = session.get(CampaignRow, ctx.name)
        cursor = row.pull_cursor if row else None
    fetched = ctx.reviewer.fetch(cursor)
    with ctx.store.transaction() as session:
        for task in fetched.tasks:
            _record(ctx, session, task)
        session.exec(
            update(CampaignRow)
            .where(col(CampaignRow.name) == ctx.name)
            .values(pull_cursor=fetched.cursor)
        )
        session.flush()
        out = _close_answered(ctx, session, round_)
        if out:
            return False
        return _advance(ctx, round_, "pull", session)


def close_early(ctx: Context, round_: Round) -> None:
    """Goes on with the answers that are back; late ones still count in a later round.

    Raises:
        StageError: the round is not waiting for people, or nothing is back at all.
    """
    if round_.stage != "pull":
        raise StageError(f"Round {round_.number} is at stage {round_.stage!r}, not waiting.")
    back = [r for r in ctx.store.reviews(ctx.name, round_.id) if r.closed_at is not None]
    if not back:
        raise StageError("Not one text of this round is back; there is nothing to go on with.")
    with ctx.store.transaction() as session:
        _advance(ctx, round_, "pull", session, closed_early=True, back=len(back))


def adjudicate(ctx: Context, round_: Round) -> bool:
    """Turns all current answers of the campaign into gold, corrections of old ones included."""
    reviewed = {r.item_id for r in ctx.store.reviews(ctx.name)}
    known = _known_checks(ctx)
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in ctx.store.annotations(ctx.name):
        if annotation.item_id in reviewed or annotation.item_id in known:
            by_item[annotation.item_id].append(annotation)
    gold = ctx.store.gold(ctx.name)
    changed = 0
    decisions = decide_all(
        {item: by_item.get(item, []) for item in sorted(set(by_item) | set(gold))},
        ctx.config.label_names,
        Panel.of(ctx.config.label_studio),
        known,
    )
    with ctx.store.transaction() as session:
        for item_id, decision in decisions.items():
            session.exec(
                update(Review).where(col(Review.item_id) == item_id).values(outcome=decision.how)
            )
            old = gold.get(item_id)
            if decision.label is None:
                if old is not None:  # the answers that it came from were withdrawn
                    session.delete(session.merge(old))
                    changed += 1
            elif old is None or (old.label, old.how) != (decision.label, decision.how):
                changed += 1
                session.merge(
                    Gold(
                        item_id=item_id,
                        label=decision.label,
                        how=decision.how,
                        confidence=decision.confidence,
                        round_number=old.round_number if old else round_.number,
                    )
                )
        return _advance(ctx, round_, "adjudicate", session, changed=changed)


def mend(ctx: Context, round_: Round) -> bool:
    """Decides what the students learn: gold where there is some, repaired LLM labels elsewhere."""
    mode = ctx.config.strategy.repair
    kept_out = _held_out(ctx)
    needs = () if mode == "keep" else ("student_disagreement",)
    # What measures accuracy may not reach the students by way of repair either.
    arrays = _arrays(ctx, round_, needs, hidden=kept_out)
    mended = repair(
        arrays.pool,
        mode,
        inclusion_prob=arrays.pool.inclusion_prob,
        rng=np.random.default_rng([round_.seed, round_.number, 6]),
    )
    weight = np.where(arrays.votes.answered | (arrays.pool.gold >= 0), mended.weight, 0.0)
    weight = np.where([i.id in kept_out for i in arrays.items], 0.0, weight)
    rows = [
        {
            "round_id": round_.id,
            "item_id": item.id,
            "probs": [float(p) for p in mended.y[i]],
            "weight": float(weight[i]),
            "source": str(mended.source[i]),
        }
        for i, item in enumerate(arrays.items)
    ]
    with ctx.store.transaction() as session:
        insert_all(session, TrainingLabel, rows)
        return _advance(ctx, round_, "repair", session, mode=mode)


def train(ctx: Context, round_: Round) -> bool:
    """Trains every seed of every arm that is not trained yet."""
    arms = _arms(ctx, round_)
    seeds = seeds_of(ctx, round_)
    evaluated = evaluation_items(ctx)
    start = last_models(ctx, round_)
    done = {
        (r.arm, r.seed, r.label_set)
        for r in ctx.store.runs(ctx.name)
        if r.round_id == round_.id or r.arm in ONCE
    }
    for arm, labels in arms.items():
        label_set = label_set_of(ctx, labels, evaluated)
        missing = [seed for seed in seeds if (arm, seed, label_set) not in done]
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
            what=f"Round {round_.number}: training {arm}",
            keep=keep,
            on_seed=_saver(ctx, round_, arm, label_set),
            start=start if arm == "loop" else {},
        )
    return _advance(ctx, round_, "train", arms=list(arms))


def fit_seeds(
    ctx: Context,
    labels: LabelSet,
    evaluated: Sequence[Item],
    seeds: Sequence[int],
    *,
    what: str,
    keep: Mapping[int, Path],
    on_seed: Callable[[SeedResult], None],
    start: Mapping[int, Path] | None = None,
) -> None:
    """Trains seeds on a label set as the campaign file says, under a bar named ``what``."""
    texts = {i.id: i.text for i in ctx.store.items(ctx.name, "pool")}
    steps = len(seeds) * ctx.config.student.epochs * int((labels.weight > 0).sum())
    with ctx.show(what, steps) as progress:
        ctx.student.fit(
            TrainingSet([texts[i] for i in labels.ids], labels.y, labels.weight, _dev_texts(ctx)),
            [i.text for i in evaluated],
            ctx.config.label_names,
            seeds,
            keep=keep,
            on_seed=on_seed,
            progress=progress,
            start=start or {},
            say=ctx.say,
        )


def _dev_items(ctx: Context) -> list[Item]:
    """Items to choose the best epoch by: split dev, which no strategy ever sees."""
    if ctx.config.student.checkpoint == "last":
        return []
    return [i for i in ctx.store.items(ctx.name, "dev") if i.known_label]


def _dev_texts(ctx: Context) -> KnownTexts | None:
    items, index = _dev_items(ctx), {name: c for c, name in enumerate(ctx.config.label_names)}
    if not items:
        return None
    y = np.array([index[str(i.known_label)] for i in items], dtype=np.int64)
    return KnownTexts([i.text for i in items], y)


def last_models(ctx: Context, round_: Round) -> dict[int, Path]:
    """Seed -> the model that it became in the last round that trained it, for a warm start."""
    if not ctx.config.student.warm_start:
        return {}
    numbers = {r.id: r.number for r in ctx.store.rounds(ctx.name)}
    runs = sorted(ctx.store.runs(ctx.name), key=lambda r: numbers[r.round_id])
    earlier = [r for r in runs if r.arm == "loop" and numbers[r.round_id] < round_.number]
    return {r.seed: ctx.config.out / r.model_path for r in earlier if r.model_path}


def seeds_of(ctx: Context, round_: Round) -> list[int]:
    """The seeds of a round's students."""
    return [round_.seed + i for i in range(ctx.config.student.seeds)]


def label_set_of(ctx: Context, labels: LabelSet, evaluated: Sequence[Item]) -> str:
    """What tells a trained seed of these labels, this encoder and these settings from others."""
    dev = [[i.id, i.known_label] for i in _dev_items(ctx)]
    digest = _digest([ctx.student.revision, *[i.id for i in evaluated], *dev])
    return _digest([digest, labels.ids, labels.y.tolist(), labels.weight.tolist()])


def measure(ctx: Context, round_: Round) -> bool:
    """Computes the round's metrics and writes rounds.json and report.html."""
    from loop.view import write_outputs

    metrics = measure_round(ctx, round_, evaluation_items(ctx))
    metrics["calibration"] = _calibration(ctx, round_)
    metrics |= _gold_says(ctx, round_)
    with ctx.store.transaction() as session:
        session.exec(update(Round).where(col(Round.id) == round_.id).values(metrics=metrics))
        _advance(ctx, round_, "measure", session)
    write_outputs(ctx.config, ctx.store)
    return True


def _calibration(ctx: Context, round_: Round) -> Any:
    """How well the LLM's confidence fits what the audit found, raw and as used."""
    arrays = _arrays(ctx, round_, ())
    reviews = {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    return summary(arrays.view, arrays.votes, arrays.pool.gold, _audited(arrays.items, reviews))


def _gold_says(ctx: Context, round_: Round) -> dict[str, Any]:
    """What gold says of the LLM's labels, and of how well the round foresaw their errors."""
    strategy = ctx.config.strategy
    learns = strategy.repair != "keep" or "learned_error" in strategy.signals
    mine = {r.item_id for r in ctx.store.reviews(ctx.name, round_.id)}
    before = _arrays(ctx, round_, ("learned_error",) if learns else (), hidden=mine)
    reviews = {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    numbers = {r.id: r.number for r in ctx.store.rounds(ctx.name)}
    of = [reviews[i.id].round_id if i.id in reviews else None for i in before.items]
    scores = ctx.store.scores(_id(round_))
    gold = _gold(ctx, before.items)
    pi = before.pool.inclusion_prob
    found = {
        "label_quality": quality_metrics(
            ctx.config,
            before.pool.y_llm,
            gold,
            np.ones(len(gold)) if pi is None else pi,
            np.array([-1 if r is None else numbers[r] for r in of]),
            np.array([scores[i.id].suspicion for i in before.items]),
        )
    }
    if learns:
        found["predictor"] = predictor_metrics(
            before.pool,
            np.array([r == round_.id for r in of]) & (gold >= 0),
            gold,
            rng=np.random.default_rng([round_.seed, round_.number, 12]),
        )
    return found


RUN: dict[str, Callable[[Context, Round], bool]] = {
    "annotate": annotate,
    "score": score,
    "select": choose,
    "push": push,
    "pull": pull,
    "adjudicate": adjudicate,
    "repair": mend,
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


def _id(round_: Round) -> int:
    if round_.id is None:
        raise ValueError("the round is not stored yet")
    return round_.id


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {}
    names = ("goldloop", "torch", "transformers", "numpy", "faiss-cpu", "label-studio-sdk")
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True)
class Arrays:
    """The pool as arrays; row i of each is ``items[i]``. The one place where rows become ids."""

    items: list[Item]
    votes: LlmVotes
    pool: Pool
    view: View


def _gold(ctx: Context, items: Sequence[Item]) -> IntArray:
    """(n,) class that people gave each item, -1 where they gave none."""
    labels = ctx.store.gold(ctx.name)
    index = {name: i for i, name in enumerate(ctx.config.label_names)}
    known = [index[labels[i.id].label] if i.id in labels else -1 for i in items]
    return np.array(known, dtype=np.int64)


def _arrays(
    ctx: Context, round_: Round, signals: Sequence[str], *, hidden: Collection[str] = ()
) -> Arrays:
    """The pool with what the signals need; hidden items appear as if they had no gold."""
    items = ctx.store.items(ctx.name, "pool")
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    gold = _gold(ctx, items)
    view, votes = _view(ctx, round_, items, votes, gold)
    reviews = {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    gold = np.where([i.id in hidden for i in items], -1, gold)
    needs = set().union(*(NEEDS[name] for name in signals)) if signals else set()
    embeddings: NDArray[np.float32] | None = None
    p_student: FloatArray | None = None
    if needs & {"embeddings", "p_student"}:
        embeddings = item_embeddings(ctx, items)
    if "p_student" in needs and embeddings is not None:
        from strategies.students import out_of_fold_probs

        y: IntArray = np.where(gold >= 0, gold, votes.y_llm)
        p_student = out_of_fold_probs(
            embeddings,
            y,
            (votes.answered | (gold >= 0)).astype(np.float64),
            len(ctx.config.labels),
            seeds=ctx.config.student.seeds,
            rng=np.random.default_rng([round_.seed, round_.number, 4]),
        )
    pool = Pool(
        probs=votes.probs,
        y_llm=votes.y_llm,
        gold=gold,
        embeddings=embeddings,
        p_student=p_student,
        off_label_mass=votes.off_label_mass,
        class_prior=view.prior,
        ordinal=ctx.config.campaign.ordinal,
        inclusion_prob=np.array(
            [reviews[i.id].inclusion_prob if i.id in reviews else 1.0 for i in items]
        ),
    )
    return Arrays(items, votes, pool, view)


def _view(
    ctx: Context, round_: Round, items: Sequence[Item], votes: LlmVotes, gold: IntArray
) -> tuple[View, LlmVotes]:
    """The LLM's answers as this round uses them; only gold of earlier rounds has a say in it."""
    reviews = {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    numbers = {item: g.round_number for item, g in ctx.store.gold(ctx.name).items()}
    earlier = np.array([numbers.get(i.id, round_.number) < round_.number for i in items])
    view = choose_view(
        ctx.config,
        votes,
        np.where(earlier, gold, -1),
        _audited(items, reviews),
        np.array([reviews[i.id].inclusion_prob if i.id in reviews else 1.0 for i in items]),
        rng=np.random.default_rng([round_.seed, round_.number, 10]),
    )
    return view, replace(votes, posterior=view.posterior)


def _audited(items: Sequence[Item], reviews: Mapping[str, Review]) -> NDArray[np.bool_]:
    return np.array([i.id in reviews and reviews[i.id].reason == "audit" for i in items])


def _affordable(ctx: Context) -> int | None:
    """Texts that the money still pays for, or None without a limit or a price."""
    budget = ctx.config.budget
    if budget.usd is None or not budget.usd_per_label:
        return None
    llm_usd = ctx.store.spent(ctx.name).usd
    per_text = budget.usd_per_label * ctx.config.label_studio.overlap
    left = budget.usd - llm_usd - per_text * len(ctx.store.reviews(ctx.name))
    return max(0, int(left / per_text + 1e-9))


def _why(review: Review, score_: Score) -> str:
    if review.reason == "audit":
        return "Drawn at random, to measure the LLM."
    strongest = max(score_.signals, key=lambda name: score_.signals[name])
    return f"Suspect: the strongest sign is {strongest.replace('_', ' ')}."


def _assisted(ctx: Context, item_id: str) -> bool:
    """Whether the page helps with this item; the same whenever asked."""
    section = ctx.config.label_studio
    if section.assist == "blind":
        return False
    return _unit_hash(ctx, "assist", item_id) < section.assist_share


def _open_project(ctx: Context) -> str:
    with ctx.store.transaction() as session:
        row = session.get(CampaignRow, ctx.name)
        known = row.project_id if row else None
    project_id = ctx.reviewer.open_project(known)
    if project_id != known:
        ctx.store.set_project(ctx.name, project_id)
    return project_id


def _record(ctx: Context, session: Session, task: FetchedTask) -> None:
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


def _close_answered(ctx: Context, session: Session, round_: Round) -> int:
    """Closes the reviews that have answers enough; how many are still out.

    Reviews that are not closed are told how many answers they want.
    """
    reviews = session.exec(select(Review).where(Review.round_id == round_.id)).all()
    query = select(Annotation).where(
        Annotation.campaign == ctx.name, col(Annotation.superseded_at).is_(None)
    )
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in session.exec(query).all():
        by_item[annotation.item_id].append(annotation)
    out = 0
    panel = Panel.of(ctx.config.label_studio)
    known = _known_checks(ctx)
    answered = {i: by_item.get(i, []) for i in [*(r.item_id for r in reviews), *known]}
    decisions = decide_all(answered, ctx.config.label_names, panel, known)
    for review in reviews:
        found = answered[review.item_id]
        wanted = wanted_answers(found, decisions[review.item_id], panel)
        if len(latest_per_person(found)) >= wanted:
            review.closed_at = review.closed_at or now()
        else:
            review.closed_at = None
            review.wanted = wanted
            out += 1
        review.outcome = decisions[review.item_id].how if found else None
        session.add(review)
    return out


def _known_checks(ctx: Context) -> dict[str, str]:
    """Labels of the hidden checks, where they have a say in what the others mean."""
    if ctx.config.label_studio.rule != "dawid-skene":
        return {}
    return {check: label for check, label in labels_of_checks(ctx.store, ctx.name).items() if label}


def _ask_further(ctx: Context, round_: Round) -> int:
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


def _draw_checks(ctx: Context, round_: Round, n: int) -> list[dict[str, Any]]:
    """Texts with a known label that go along with n reviews, at random places among them.

    They are gold texts that several people agreed on or an adjudicator settled, and, where tasks
    show nothing but the text, texts whose label the source knows and that train nothing.
    """
    section = ctx.config.label_studio
    wanted = round(section.check_frac * n)
    if not wanted:
        return []
    gold = ctx.store.gold(ctx.name)
    candidates = sorted(k for k, g in gold.items() if g.how != "single")
    if section.assist == "blind":
        candidates += [i.id for i in ctx.store.items(ctx.name, "dev") if i.known_label]
    rng = np.random.default_rng([round_.seed, round_.number, 7])
    drawn = rng.permutation(len(candidates))[:wanted]
    return [
        {
            # looks like any other id, so that nobody can tell a check by it
            "id": hashlib.sha256(
                f"{ctx.name}\0check\0{round_.number}\0{candidates[i]}".encode()
            ).hexdigest()[:20],
            "item_id": candidates[i],
            "round_id": round_.id,
            "rank": int(rng.integers(n)),
        }
        for i in drawn
    ]


def _with_checks(
    ctx: Context, round_: Round, tasks: Sequence[ReviewTask], scores: dict[str, Score]
) -> list[ReviewTask]:
    """The tasks with the round's unsent checks among them, ranked anew."""
    items = {i.id: i for i in ctx.store.items(ctx.name)}
    placed = [(task.rank, 0, task) for task in tasks]
    for check in ctx.store.checks(ctx.name, round_.id):
        if check.task_id is not None:
            continue
        score_ = scores.get(check.item_id)
        strongest = max(score_.signals, key=lambda name: score_.signals[name]) if score_ else ""
        task = ReviewTask(
            item_id=check.id,
            text=items[check.item_id].text,
            round_number=round_.number,
            rank=check.rank,
            why=f"Suspect: the strongest sign is {strongest.replace('_', ' ')}.",
            llm_label=score_.llm_label if score_ else "",
            llm_confidence=score_.llm_confidence if score_ else 0.0,
        )
        placed.append((check.rank, 1, task))
    placed.sort(key=lambda place: place[:2])
    return [replace(task, rank=rank) for rank, (_, _, task) in enumerate(placed)]


@dataclass(frozen=True)
class LabelSet:
    """What one arm learns: ids, (n, k) labels, (n,) weights."""

    ids: list[str]
    y: FloatArray
    weight: FloatArray


def loop_labels(ctx: Context, round_: Round) -> LabelSet:
    """What the loop's own students learn in a round: gold, and repaired labels elsewhere."""
    rows = ctx.store.training_labels(_id(round_))
    return LabelSet(
        [r.item_id for r in rows],
        widened([r.probs for r in rows], len(ctx.config.labels)),
        np.array([r.weight for r in rows]),
    )


def _arms(ctx: Context, round_: Round) -> dict[str, LabelSet]:
    """The loop's own label set and those of its references, most important first."""
    arms = {"loop": loop_labels(ctx, round_)}
    references = ctx.config.student.references
    if not references:
        return arms
    items = ctx.store.items(ctx.name, "pool")
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    ids = [i.id for i in items]
    one_hot = np.eye(len(ctx.config.labels))
    y_llm, answered = votes.y_llm, votes.answered.astype(np.float64)
    index = {name: i for i, name in enumerate(ctx.config.label_names)}
    if "llm_only" in references:
        arms["llm_only"] = LabelSet(ids, one_hot[y_llm], answered)
    if "random" in references:
        bought = len(ctx.store.reviews(ctx.name))
        order = np.random.default_rng([ctx.config.rounds.seed, 5]).permutation(len(items))[:bought]
        chosen = [items[i] for i in order]
        # The control pays for the same number of texts and gets answers from the same people.
        if ctx.raters is not None:
            labels = ctx.raters.labels_of([text_item(i) for i in chosen])
        else:
            labels = [i.known_label for i in chosen]
        y, weight = y_llm.copy(), answered.copy()
        for i, label in zip(order, labels, strict=True):
            if label is not None:
                y[i], weight[i] = index[label], 1.0
        arms["random"] = LabelSet(ids, one_hot[y], weight)
    if "all_gold" in references:
        gold = np.array([index[str(i.known_label)] for i in items])
        arms["all_gold"] = LabelSet(ids, one_hot[gold], np.ones(len(items)))
    return arms


def _saver(ctx: Context, round_: Round, arm: str, label_set: str) -> Callable[[SeedResult], None]:
    def save(result: SeedResult) -> None:
        path = result.path.relative_to(ctx.config.out) if result.path else None
        with ctx.store.transaction() as session:
            session.add(
                Run(
                    round_id=_id(round_),
                    arm=arm,
                    seed=result.seed,
                    label_set=label_set,
                    predictions=[int(p) for p in result.probs.argmax(axis=1)],
                    seconds=result.seconds,
                    model_path=str(path) if path else None,
                )
            )

    return save


def _has_gold_test(ctx: Context) -> bool:
    return any(i.known_label for i in ctx.store.items(ctx.name, "test"))


def evaluation_items(ctx: Context) -> list[Item]:
    """Test items, and the audit items with gold where the test items have none.

    Audit items are then kept out of training, so accuracy on them is honest.
    """
    test = ctx.store.items(ctx.name, "test")
    judged = _held_out(ctx) & set(ctx.store.gold(ctx.name))
    return test + [i for i in ctx.store.items(ctx.name, "pool") if i.id in judged]


def _held_out(ctx: Context) -> set[str]:
    """Audit items that measure accuracy and so teach nothing, where no test text has a known label.

    Of a large audit only so many that they are ``EVALUATED_FRAC`` of all texts sent; which ones
    hangs on their ids alone, so that it is the same in every round.
    """
    if _has_gold_test(ctx):
        return set()
    share = min(1.0, EVALUATED_FRAC / max(ctx.config.rounds.audit_frac, 1e-9))
    audited = (r.item_id for r in ctx.store.reviews(ctx.name) if r.reason == "audit")
    return {i for i in audited if _unit_hash(ctx, "held out", i) < share}


def _unit_hash(ctx: Context, purpose: str, item_id: str) -> float:
    """A number in [0, 1) that hangs on the campaign's seed, the purpose and the item alone."""
    text = f"{ctx.config.rounds.seed}\0{purpose}\0{item_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]


def model_folder(out: Path, run: Run) -> Path | None:
    """Where a run's model lies."""
    return out / run.model_path if run.model_path else None
