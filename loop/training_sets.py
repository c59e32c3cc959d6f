"""What each arm of a round learns, and how its seeds are trained and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.campaign.context import Context
from loop.campaign.tables import (
    VALIDATION,
    Item,
    ItemKey,
    Round,
    Run,
    TrainingLabels,
    damaged,
    round_id,
)
from loop.chance import unit_hash
from loop.errors import StudentError
from loop.llm.votes import read_votes, widened
from loop.money import why_nothing_to_buy
from loop.ports import FloatArray, KnownTexts, SeedResult, TrainingSet
from loop.student.cross_fit import FOLDS, cross_fit
from loop.student.kept_vectors import judges_of, made_once
from loop.student.learning_rate import config_folder, fitting_rate
from loop.student.nothing_learned import NothingLearned, answers_told, checked, has_learned

LEARNED = {
    "loop": "the corrected labels",
    "llm_only": "the LLM's labels alone",
    "random": "random gold labels",
    "all_gold": "gold labels for all texts",
}
"""What the students of each arm learn, for progress bars."""
MOSTLY = 0.7
"""Share of one class from which on class weights are advised."""


@dataclass(frozen=True)
class LabelSet:
    """What one arm learns: ids, (n, k) labels, (n,) weights."""

    ids: list[str]
    y: FloatArray
    weight: FloatArray


def arms_of(ctx: Context, round_: Round, apart: Collection[str]) -> dict[str, LabelSet]:
    """The loop's own label set and those of its references, most important first.

    Args:
        apart: ids of texts that students are evaluated on, so that no arm learns them.
    """
    arms = {"loop": loop_labels(ctx, round_)}
    references = ctx.config.student.references
    if not references:
        return arms
    items = ctx.keys("pool")
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    ids = [i.id for i in items]
    one_hot = np.eye(len(ctx.config.labels))
    free = np.array([i.id not in apart for i in items])
    y_llm, answered = votes.y_llm, (votes.answered & free).astype(np.float64)
    index = ctx.config.label_index
    if "llm_only" in references:
        arms["llm_only"] = LabelSet(ids, one_hot[y_llm], answered)
    if "random" in references and _is_random_due(ctx, round_):
        y, weight = y_llm.copy(), answered.copy()
        for i, label in random_control(ctx, items).items():
            y[i], weight[i] = index[label], float(free[i])
        arms["random"] = LabelSet(ids, one_hot[y], weight)
    if "all_gold" in references:
        gold = np.array([index[str(i.known_label)] for i in items])
        arms["all_gold"] = LabelSet(ids, one_hot[gold], free.astype(np.float64))
    return arms


def _is_random_due(ctx: Context, round_: Round) -> bool:
    """Whether the random control is trained in this round: in each, or where no other follows."""
    if ctx.config.student.random_rounds == "each":
        return True
    before = {r.number for r in ctx.store.rounds(ctx.name) if r.number != VALIDATION}
    last = len(before | {round_.number}) >= ctx.config.rounds.rounds
    return last or why_nothing_to_buy(ctx.config, ctx.store) is not None


def random_control(ctx: Context, items: Sequence[ItemKey]) -> dict[int, str]:
    """Row -> label of the texts that the random control got a label for.

    It pays for the same number of texts as the loop and gets answers from the same people. The
    order is by hash, so that it keeps what it bought when texts are added to the pool.
    """
    bought = ctx.store.review_count(ctx.name)
    order = sorted(range(len(items)), key=lambda i: unit_hash(ctx.seed, "control", items[i].id))
    order = order[:bought]
    chosen = [items[i] for i in order]
    if ctx.raters is not None:
        told = ctx.store.text_items(ctx.name, chosen)
        labels = ctx.raters.labels_of([told[i.id] for i in chosen])
    else:
        labels = [i.known_label for i in chosen]
    return {i: la for i, la in zip(order, labels, strict=True) if la is not None}


def loop_labels(ctx: Context, round_: Round, made: TrainingLabels | None = None) -> LabelSet:
    """What the loop's own students learn in a round: gold, and repaired labels elsewhere.

    Args:
        made: these instead of those that the round has kept.

    Raises:
        StoreError: they are damaged.
    """
    learned = made or ctx.store.all_training_labels(round_id(round_))
    id_of = {key.row: key.id for key in ctx.keys("pool")}
    if not id_of.keys() >= set(learned.rows.tolist()):
        raise damaged(f"training labels of round {round_.number} belong to no text of the pool")
    ids = [id_of[row] for row in learned.rows.tolist()]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    y = widened(learned.probs, len(ctx.config.labels))
    return LabelSet([ids[i] for i in order], y[order], learned.weight[order])


def label_set_of(ctx: Context, labels: LabelSet, evaluated: Sequence[Item]) -> str:
    """What tells a trained seed of these labels, this encoder and these settings from others."""
    dev = [[i.id, i.known_label] for i in _dev_items(ctx)]
    digest = _digest([ctx.student.revision, *[i.id for i in evaluated], *dev])
    return _digest([digest, labels.ids, labels.y.tolist(), labels.weight.tolist()])


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
    must_learn: bool = False,
) -> None:
    """Trains seeds on a label set as the campaign file says, under a bar named ``what``.

    Args:
        must_learn: stop where the first of the seeds has learned nothing, unless the campaign file
            says to go on. No seed is handed over then, so that all are trained after a change.
    Raises:
        StudentError: training failed, or the first of the seeds has learned nothing.
    """
    texts = ctx.store.texts(labels.ids)
    steps = len(seeds) * ctx.config.student.epochs * int((labels.weight > 0).sum())
    stops = must_learn and ctx.config.student.if_nothing_learned == "stop"

    def failed(result: SeedResult, answer: NothingLearned) -> None:
        told = f"seed {result.seed} {answers_told(answer, ctx.config.label_names)}"
        if stops and result.seed == seeds[0]:
            raise StudentError(nothing_learned_sentence(ctx, labels, what, told))
        ctx.say(f"{what}. A student that learned nothing: {told}. {advice(ctx, labels)}")

    with ctx.show(what, steps) as progress:
        ctx.student.fit(
            TrainingSet([texts[i] for i in labels.ids], labels.y, labels.weight, _dev_texts(ctx)),
            [i.text for i in evaluated],
            ctx.config.label_names,
            seeds,
            keep=keep,
            on_seed=checked(on_seed, failed, first=seeds[0] if stops else None),
            progress=progress,
            start=start or {},
            say=lambda line: ctx.say(f"{what}. {line}"),
        )


def tuned_opinions(ctx: Context, round_: Round, labels: LabelSet) -> FloatArray | None:
    """(n, k) what fine-tuned students say of the texts whose labels they did not learn.

    They are kept, so that a repair that is run again does not train again, and for the next round's
    suspicion.

    Args:
        labels: gold, and mended labels elsewhere.

    Returns:
        Rows sum to 1; None where a student learned nothing, which is said.

    Raises:
        StudentError: training failed.
    """
    n, k = labels.y.shape
    ids = np.array(labels.ids, dtype="S")
    what = f"Round {round_.number}: judges of the labels"

    def train() -> dict[str, NDArray[Any]]:
        texts = ctx.store.texts(labels.ids)
        lesson = TrainingSet(
            [texts[i] for i in labels.ids], labels.y, labels.weight, _dev_texts(ctx)
        )
        steps = ctx.config.student.epochs * int((labels.weight > 0).sum()) * (FOLDS - 1)
        with ctx.show(what, steps) as progress:
            probs = cross_fit(
                ctx.student,
                lesson,
                ctx.config.label_names,
                seed=round_.seed,
                progress=progress,
                say=lambda line: ctx.say(f"{what}. {line}"),
            )
        return {"ids": ids, "probs": np.empty((0, k)) if probs is None else probs}

    def fits(ids: NDArray[Any], probs: NDArray[Any]) -> bool:
        right = len(ids) == n and probs.shape in ((n, k), (0, k))
        return right and bool(np.isfinite(probs).all())

    dev = "".join(f"{i.id}={i.known_label};" for i in _dev_items(ctx))
    made_of = [
        ids,
        labels.y,
        labels.weight,
        np.array([round_.seed, round_.number]),
        np.array(dev.encode(), dtype="S"),
    ]
    probs = made_once(ctx, judges_of(round_), made_of, train, fits)["probs"]
    if not len(probs):
        ctx.say(
            f"{what}: not every student learned something, so that labels are repaired without"
            f" them. {advice(ctx, labels)}"
        )
        return None
    return probs


def nothing_learned_sentence(ctx: Context, labels: LabelSet, what: str, told: str) -> str:
    """Why no further seed is trained, and what to do.

    Args:
        what: was being trained.
        told: what the first seed answers.
    """
    return (
        f"{what}: the student learned nothing: {told}. Its seeds would agree with each other, and"
        " that would mean nothing, so that no further seed is trained and nobody is asked anything."
        f" {advice(ctx, labels)} Then the same command continues; all labels and answers are kept."
        ' To continue without a change, set student.if_nothing_learned = "go on".'
    )


def advice(ctx: Context, labels: LabelSet) -> str:
    """What to change so that students learn something, in one sentence."""
    student = ctx.config.student
    fits = fitting_rate(student.encoder, config_folder(student.encoder, ctx.config.folder))
    lr = fits.value if student.lr is None else student.lr
    steps = student.epochs * -(-int((labels.weight > 0).sum()) // student.batch_size)
    more = (
        f"raise student.epochs (now {student.epochs}: {steps} training steps), or choose another"
        f" student.encoder (now {student.encoder!r})"
    )
    share = labels.weight @ labels.y / labels.weight.sum()
    if share.max() >= MOSTLY and student.class_weights == "none":
        more += (
            f', or set student.class_weights = "balanced", because {100 * share.max():.0f} % of'
            f" the labels are {ctx.config.label_names[int(share.argmax())]!r}"
        )
    if lr < fits.value / 1.5:
        return f"Set student.lr = {fits.value:g} (now {lr:g}), which {fits.why}; or {more}."
    if lr > 4 * fits.value:
        return f"Lower student.lr to {fits.value:g} (now {lr:g}), which {fits.why}; or {more}."
    return f"{more[0].upper()}{more[1:]}, or raise student.lr (now {lr:g})."


def run_saver(
    ctx: Context, round_: Round, arm: str, label_set: str
) -> Callable[[SeedResult], None]:
    """Stores a trained seed as soon as it ends."""

    def save(result: SeedResult) -> None:
        path = result.path.relative_to(ctx.config.out) if result.path else None
        ctx.store.add_run(
            Run(
                round_id=round_id(round_),
                arm=arm,
                seed=result.seed,
                label_set=label_set,
                predictions=[int(p) for p in result.probs.argmax(axis=1)],
                seconds=result.seconds,
                learned=has_learned(result),
                model_path=str(path) if path else None,
            )
        )

    return save


def seeds_of(ctx: Context, round_: Round) -> list[int]:
    """The seeds of a round's students."""
    return [round_.seed + i for i in range(ctx.config.student.seeds)]


def last_models(ctx: Context, round_: Round) -> dict[int, Path]:
    """Seed -> the model that it became in the last round that trained it, for a warm start.

    A seed whose model is not there is left out, which is said.
    """
    if not ctx.config.student.warm_start:
        return {}
    numbers = {r.id: r.number for r in ctx.store.rounds(ctx.name)}
    runs = sorted(ctx.store.runs(ctx.name), key=lambda r: numbers[r.round_id])
    earlier = [r for r in runs if r.arm == "loop" and numbers[r.round_id] < round_.number]
    if not earlier:
        return {}
    models = {r.seed: ctx.config.out / r.model_path for r in earlier if r.model_path}
    models = {seed: folder for seed, folder in models.items() if folder.is_dir()}
    if fresh := [str(seed) for seed in seeds_of(ctx, round_) if seed not in models]:
        ctx.say(
            f"No model of an earlier round is there for seed{'s' * (len(fresh) > 1)}"
            f" {', '.join(fresh)}, so student.warm_start has no model to continue from:"
            f" {'they start' if len(fresh) > 1 else 'it starts'} from the pretrained encoder."
        )
    return models


def _dev_items(ctx: Context) -> list[Item]:
    """Items to choose the best epoch by: split dev, which no strategy ever sees."""
    if ctx.config.student.checkpoint == "last":
        return []
    return [i for i in ctx.store.items(ctx.name, "dev") if i.known_label]


def _dev_texts(ctx: Context) -> KnownTexts | None:
    items, index = _dev_items(ctx), ctx.config.label_index
    if not items:
        return None
    y = np.array([index[str(i.known_label)] for i in items], dtype=np.int64)
    return KnownTexts([i.text for i in items], y)


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
