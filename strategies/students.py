"""Suspicion from small students that were trained on the labels in question.

The students are softmax heads on frozen embeddings. Every probability is out-of-fold: it comes from
a head that never saw the item's own label, nor that of another item with the same embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.consistency import class_counts, count_entropy
from strategies.neighbours import same_embedding
from strategies.pool import BoolArray, FloatArray, IntArray, Pool, clip_unit

TRAIN_ROWS = 20_000  # a linear head on a few hundred dimensions gains nothing from more rows
PENALTIES = (0.01, 0.1, 0.3, 1.0, 3.0)
PENALTY_FOLDS = 3
BOOTSTRAP_SHAPE = 4.0  # gamma weights: seeds differ, yet keep 80 % of the sample's strength
STEPS = 40
TRACE = 1e-6  # no class is ever given exactly zero


@dataclass(frozen=True)
class _Training:
    """Standardised features (n, d + 1), soft labels (n, k) and weights (n,)."""

    features: NDArray[np.float32]
    target: FloatArray
    weight: FloatArray


def student_disagreement(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """One minus the out-of-fold probability that the students give to the LLM's label.

    Args:
        pool: uses ``p_student``, (s, n, k), **out-of-fold**, and ``y_llm``.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1].

    Raises:
        ValueError: the pool has no student probabilities.
    Source: Northcutt et al. 2021, confident learning.
    """
    probs = _p_student(pool, "student_disagreement")
    own: FloatArray = probs[:, np.arange(pool.n), pool.y_llm].mean(axis=0)
    return clip_unit(1.0 - own)


def seed_disagreement(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Entropy of the votes of the students' seeds.

    It is the very instability to be cured, and blind to errors that all seeds share.

    Args:
        pool: uses ``p_student``, (s, n, k).
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1], in units of the largest entropy that s votes on k classes can have.

    Raises:
        ValueError: the pool has no student probabilities, or those of one seed only.
    Source: Dagan and Engelson 1995, committee-based sampling.
    """
    probs = _p_student(pool, "seed_disagreement")
    s = probs.shape[0]
    if s < 2:
        raise ValueError(f"seed_disagreement needs at least 2 seeds, not {s}; set student.seeds")
    counts = class_counts(probs.argmax(axis=2).T.astype(np.int64), pool.k)
    return count_entropy(counts, min(s, pool.k))


def out_of_fold_probs(
    embeddings: NDArray[np.float32],
    y: IntArray | FloatArray,
    weight: FloatArray,
    k: int,
    *,
    seeds: int,
    folds: int = 5,
    rng: np.random.Generator,
) -> FloatArray:
    """Class probabilities of s students, each item judged by heads that did not train on it.

    Every seed has its own stratified folds and its own smooth bootstrap of the training rows.
    Texts with the same embedding stay in one fold, else a label would vouch for its own copy. The
    penalty is chosen once, by the loss on held-out labels.

    Args:
        embeddings: (n, d) finite.
        y: (n,) classes, or (n, k) soft labels whose rows sum to 1.
        weight: (n,) >= 0; 0 keeps an item out of all training, it is still judged.
        k: number of classes; classes without members get a trace of probability.
        seeds: number of students, s.
        folds: at most this many; fewer if there are fewer distinct texts.
        rng: source of folds and bootstraps.

    Returns:
        (s, n, k) rows sum to 1, every value > 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two distinct texts, or a training fold
            without any weight.
    Source: Northcutt et al. 2021 (out-of-sample probabilities); Rubin 1981 (Bayesian bootstrap);
        Boehning 1992 (bound on the softmax curvature, the step of the solver).
    """
    n = len(embeddings)
    target = _one_hot(y, n, k)
    _check(embeddings, weight, seeds=seeds, folds=folds)
    group = same_embedding(embeddings)
    n_folds = min(folds, int(group.max()) + 1)
    if n_folds < 2:
        raise ValueError("out_of_fold_probs needs at least two distinct texts")
    features = _standardise(embeddings)
    label, data = target.argmax(axis=1), _Training(features, target, weight)
    penalty = _choose_penalty(data, _stratified_folds(label, group, n_folds, rng), rng)
    out = np.empty((seeds, n, k))
    for s in range(seeds):
        fold_of = _stratified_folds(label, group, n_folds, rng)
        for fold in range(n_folds):
            rows = _training_rows(data, fold_of != fold, rng)
            boot = weight[rows] * rng.gamma(BOOTSTRAP_SHAPE, size=len(rows))
            head = _fit_head(features[rows], target[rows], boot, penalty)
            held_out = np.flatnonzero(fold_of == fold)
            out[s, held_out] = _softmax(features[held_out] @ head)
    traced: FloatArray = np.maximum(out, TRACE)
    return np.asarray(traced / traced.sum(axis=2, keepdims=True), dtype=np.float64)


def _second_moment(features: NDArray[np.float32], weight: FloatArray) -> NDArray[np.float32]:
    """(d + 1, d + 1) weighted mean of the features' outer products."""
    root = features * np.sqrt(weight / weight.sum()).astype(np.float32)[:, None]
    return np.asarray(root.T @ root)  # half the work of two different factors


def _fit_head(
    features: NDArray[np.float32],
    target: FloatArray,
    weight: FloatArray,
    penalty: float,
    moment: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(d + 1, k) weights of a softmax head; the last feature is the constant, unpenalised.

    Accelerated descent, preconditioned once by an upper bound of the curvature: every step is two
    matrix products, however many classes there are. ``moment`` is ``_second_moment`` of the same
    rows, where it is at hand.
    """
    share = (weight / weight.sum()).astype(np.float32)
    labels = target.astype(np.float32)
    present = (share @ labels) > 0
    ridge = np.full(features.shape[1], penalty, dtype=np.float32)
    ridge[-1] = 1e-4
    if moment is None:
        moment = _second_moment(features, weight)
    bound = 0.5 * moment.astype(np.float64) + np.diag(ridge)
    step = np.linalg.inv(bound).astype(np.float32)
    head = np.zeros((features.shape[1], labels.shape[1]), dtype=np.float32)
    # Absent classes start, and stay, far below the others; the rest start at their shares.
    head[-1] = np.log(np.maximum(share @ labels, 1e-9))
    start = head[-1].copy()
    ahead, previous, momentum = head.copy(), head, 1.0
    for _ in range(STEPS):
        error = _softmax(features @ ahead) - labels
        gradient = features.T @ (share[:, None] * error)
        gradient[:-1] += penalty * ahead[:-1]
        gradient[:, ~present] = 0.0
        head = ahead - step @ gradient
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = head + np.float32((momentum - 1.0) / following) * (head - previous)
        if np.abs(head - previous).max() < 1e-3:
            break
        previous, momentum = head, following
    head[-1, ~present] = start[~present]
    return head


def _choose_penalty(data: _Training, fold_of: IntArray, rng: np.random.Generator) -> float:
    """The penalty of least held-out loss, over a few folds: one fold alone is too noisy."""
    losses = np.zeros(len(PENALTIES))
    for fold in range(min(PENALTY_FOLDS, int(fold_of.max()) + 1)):
        rows = _training_rows(data, fold_of != fold, rng)
        judged = _training_rows(data, fold_of == fold, rng, may_be_empty=True)
        features, target, weight = data.features[rows], data.target[rows], data.weight[rows]
        moment = _second_moment(features, weight)
        for i, penalty in enumerate(PENALTIES):
            head = _fit_head(features, target, weight, penalty, moment)
            probs = np.maximum(_softmax(data.features[judged] @ head), TRACE)
            loss = (data.target[judged] * -np.log(probs)).sum(axis=1)
            losses[i] += float((data.weight[judged] * loss).sum())
    return PENALTIES[int(np.argmin(losses))]


def _training_rows(
    data: _Training, chosen: BoolArray, rng: np.random.Generator, *, may_be_empty: bool = False
) -> IntArray:
    """The chosen rows of positive weight, a sample of them where there are very many."""
    rows = np.flatnonzero(chosen & (data.weight > 0))
    if not len(rows) and not may_be_empty:
        raise ValueError("a training fold has no item of positive weight; give more items weight")
    if len(rows) > TRAIN_ROWS:
        rows = np.sort(rng.choice(rows, TRAIN_ROWS, replace=False))
    return rows


def _standardise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, d + 1) standardised dimensions and a constant one."""
    values = embeddings.astype(np.float32)
    centred = values - values.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
    # Some encoders have constant dimensions: rounding noise must not be blown up to variance 1.
    floor = 1e-3 * float(np.median(scale)) + 1e-12
    centred /= np.maximum(scale, floor).astype(np.float32)
    constant = np.ones((len(values), 1), dtype=np.float32)
    return np.hstack([centred, constant])


def _stratified_folds(
    label: IntArray, group: IntArray, folds: int, rng: np.random.Generator
) -> IntArray:
    """(n,) fold of each item: groups whole, classes spread as evenly as they can be."""
    _, first = np.unique(group, return_index=True)
    order = np.lexsort((rng.random(len(first)), label[first]))
    fold_of_group = np.empty(len(first), dtype=np.int64)
    # Dealing on from class to class, not anew, keeps the folds of equal size too.
    fold_of_group[order] = (np.arange(len(first)) + rng.integers(folds)) % folds
    return fold_of_group[group]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def _one_hot(y: IntArray | FloatArray, n: int, k: int) -> FloatArray:
    if y.ndim == 2:
        if y.shape != (n, k):
            raise ValueError(f"y must be ({n},) or ({n}, {k}), not {y.shape}")
        return np.asarray(y, dtype=np.float64)
    if y.shape != (n,):
        raise ValueError(f"y must be ({n},) or ({n}, {k}), not {y.shape}")
    if n and (y.min() < 0 or y.max() >= k):
        raise ValueError(f"y must be in [0, {k}), not [{y.min()}, {y.max()}]")
    return np.eye(k)[y.astype(np.int64)]


def _check(embeddings: NDArray[np.float32], weight: FloatArray, *, seeds: int, folds: int) -> None:
    n = len(embeddings)
    if embeddings.ndim != 2 or not n:
        raise ValueError(f"embeddings must be (n, d) with n > 0, not {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite")
    if weight.shape != (n,) or not (weight >= 0).all():
        raise ValueError(f"weight must be ({n},) and >= 0, not {weight.shape}")
    if seeds < 1 or folds < 2:
        raise ValueError(f"seeds must be >= 1 and folds >= 2, not {seeds} and {folds}")


def _p_student(pool: Pool, name: str) -> FloatArray:
    if pool.p_student is None:
        raise ValueError(f"{name} needs out-of-fold student probabilities, this pool has none")
    return pool.p_student
