"""What students say of texts that they did not learn from: a fold at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loop.ports import (
    Draws,
    FloatArray,
    IntArray,
    News,
    Progress,
    SeedResult,
    Student,
    TrainingSet,
    no_news,
    no_progress,
)
from loop.student.nothing_learned import has_learned
from strategies.pool import BoolArray
from strategies.signals.students import stratified_folds

FOLDS = 5


def cross_fit(
    student: Student,
    train: TrainingSet,
    labels: Sequence[str],
    *,
    seed: int,
    progress: Progress = no_progress,
    say: News = no_news,
) -> FloatArray | None:
    """Class probabilities of every text, by a student that learned from the other folds alone.

    Equal texts stay in one fold, else a label would vouch for its own copy.

    Args:
        student: trains one model a fold, side by side like seeds.
        train: n texts, soft labels, weights; weight 0 keeps a text out of all training, it is
            judged all the same.
        labels: names of the k classes.
        seed: of the folds and of all that the students draw.
        progress: told of texts learned from, about 4 * epochs * texts of positive weight in all.
        say: told what the user should know.

    Returns:
        (n, k) rows sum to 1; None where a student learned nothing, or where there are fewer than
        two different texts to learn from.

    Raises:
        StudentError: training failed.
    Source: Northcutt et al. 2021, confident learning (out-of-sample probabilities).
    """
    used = train.weight > 0
    _, group = np.unique(np.array(train.texts, dtype=object), return_inverse=True)
    folds = min(FOLDS, len(np.unique(group[used])))
    if folds < 2:
        return None
    fold_of = _folds(train.y.argmax(axis=1), group, used, folds, np.random.default_rng([seed, 5]))
    draws = {
        fold: Draws(FOLDS * seed + fold, FOLDS * seed + fold, np.flatnonzero(fold_of != fold))
        for fold in range(folds)
    }
    probs = np.empty(train.y.shape)
    failed: list[int] = []

    def keep(result: SeedResult) -> None:
        own = fold_of == result.seed
        probs[own] = result.probs[own]
        if has_learned(result) is False:
            failed.append(result.seed)

    student.fit(
        train,
        train.texts,
        labels,
        list(draws),
        keep={},
        on_seed=keep,
        progress=progress,
        draws=draws,
        say=say,
    )
    return None if failed else probs


def _folds(
    label: IntArray, group: IntArray, used: BoolArray, folds: int, rng: np.random.Generator
) -> IntArray:
    """(n,) fold of each text; those that nobody learns from are dealt among the others' folds.

    Stratified over the texts that are learned from, so that no fold's training set is empty.
    """
    fold_of = np.full(int(group.max()) + 1, -1, dtype=np.int64)
    _, own = np.unique(group[used], return_inverse=True)
    fold_of[group[used]] = stratified_folds(label[used], own, folds, rng)
    rest = np.flatnonzero(fold_of < 0)
    fold_of[rest] = rng.permutation(np.arange(len(rest)) % folds)
    return fold_of[group]
