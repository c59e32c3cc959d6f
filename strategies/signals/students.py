"""Suspicion from small students that were trained on the labels in question.

The students are softmax heads on frozen embeddings. Every probability is out-of-fold: it comes from
a head that never saw the item's own label, nor that of another item with the same embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strategies.pool import (
    BoolArray,
    FloatArray,
    IntArray,
    Pool,
    Vectors,
    all_alike,
    all_finite,
    blocks,
    clip_unit,
    softmax,
)
from strategies.signals.consistency import class_counts, count_entropy
from strategies.signals.neighbours import same_embedding
from strategies.threads import one_blas_thread

SEED_ROWS = 25_000  # a seed draws so many of more rows: further ones bring a linear head nothing
FOLDS = 5
PENALTIES = (0.01, 0.1, 0.3, 1.0, 3.0)
PENALTY_FOLDS = 3
BOOTSTRAP_SHAPE = 4.0  # gamma weights: seeds differ, yet keep 80 % of the sample's strength
STEPS = 40
CELLS = 8_000_000  # probabilities of all heads that learn at once (32 MB), whatever n and k are
GOLD_STUDENT_FROM = 10  # gold labels from which students of gold alone are asked
GOLD_SEEDS = 2
TRACE = 1e-6  # no class is ever given exactly zero


@dataclass(frozen=True)
class _Features:
    """Standardised dimensions and a constant one, made from the embeddings as they are needed.

    Attributes:
        embeddings: (n, d).
        mean, scale: (d,) of the dimensions.
        basis: (d, r) directions that are told apart, or None for all dimensions.
    """

    embeddings: Vectors
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    basis: NDArray[np.float32] | None = None

    def of(self, rows: IntArray | slice) -> NDArray[np.float32]:
        """(rows, d + 1) or, with a basis, (rows, r + 1)."""
        centred = self.embeddings[rows].astype(np.float32)
        centred -= self.mean
        centred /= self.scale
        if self.basis is not None:
            centred = centred @ self.basis
        return np.hstack([centred, np.ones((len(centred), 1), dtype=np.float32)])


@dataclass(frozen=True)
class _Training:
    """Features of n texts, soft labels (n, k) and weights (n,)."""

    features: _Features
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


def gold_students(pool: Pool, *, rng: np.random.Generator) -> FloatArray | None:
    """What students of nothing but gold say: one of the embeddings, one of the LLM's states.

    Args:
        pool: uses ``gold``, ``embeddings`` and ``states``.
        rng: source of folds and bootstraps.

    Returns:
        (v, n, k) **out-of-fold** probabilities, one for each of the two that the pool has; None
        while there are fewer than ``GOLD_STUDENT_FROM`` gold labels, or nothing to learn from.
    Source: Cho et al. 2023, PALP: heads on the states of a prompted language model.
    """
    known = pool.gold >= 0
    if known.sum() < GOLD_STUDENT_FROM:
        return None
    y, weight = np.where(known, pool.gold, pool.y_llm), known.astype(np.float64)
    said = [
        out_of_fold_probs(view, y, weight, pool.k, seeds=GOLD_SEEDS, rng=rng).mean(axis=0)
        for view in views_of(pool)
        if not all_alike(view, known)
    ]
    return np.stack(said) if said else None


def views_of(pool: Pool) -> list[Vectors]:
    """What students can read a text by: its embedding, and the LLM's states if there are any."""
    views: list[Vectors] = []
    if pool.embeddings is not None:
        views.append(pool.embeddings)
    states = None if pool.states is None else _without_gaps(pool.states)
    if states is not None:
        views.append(states)
    return views


def _without_gaps(states: NDArray[np.float16]) -> NDArray[np.float16] | None:
    """The states, the mean of all where a text has none; None without two different ones."""
    n, d = states.shape
    lacking, total = np.zeros(n, dtype=np.bool_), np.zeros(d)
    for block in blocks(n):
        lacking[block] = np.isnan(states[block]).any(axis=1)
        total += states[block][~lacking[block]].sum(axis=0, dtype=np.float64)
    if all_alike(states, ~lacking):
        return None
    if not lacking.any():
        return states
    filled = states.copy()
    filled[lacking] = total / int((~lacking).sum())
    return filled


@dataclass(frozen=True)
class _Sample:
    """What one head learns from: (r,) rows in ascending order, and their (r,) weights."""

    rows: IntArray
    weight: FloatArray


@one_blas_thread
def out_of_fold_probs(
    embeddings: Vectors,
    y: IntArray | FloatArray,
    weight: FloatArray,
    k: int,
    *,
    seeds: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Class probabilities of s students, each item judged by heads that did not train on it.

    Every seed has its own stratified folds, ``FOLDS`` or as many as there are distinct texts, and
    its own smooth bootstrap of the training rows. Texts with the same embedding stay in one fold,
    else a label would vouch for its own copy. The penalty is chosen once, by the loss on held-out
    labels.

    Args:
        embeddings: (n, d) finite.
        y: (n,) classes, or (n, k) soft labels whose rows sum to 1.
        weight: (n,) >= 0; 0 keeps an item out of all training, it is still judged.
        k: number of classes; classes without members get a trace of probability.
        seeds: number of students, s.
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
    _check(embeddings, weight, seeds)
    group = same_embedding(embeddings)
    n_folds = min(FOLDS, int(group.max()) + 1)
    if n_folds < 2:
        raise ValueError("out_of_fold_probs needs at least two distinct texts")
    features = _in_span(_standardised(embeddings), np.flatnonzero(weight > 0))
    label, data = target.argmax(axis=1), _Training(features, target, weight)
    penalty = _choose_penalty(data, _deal_folds(label, group, weight > 0, n_folds, rng), rng)
    samples, fold_of = [], []
    for s in range(seeds):
        fold_of.append(_deal_folds(label, group, weight > 0, n_folds, rng))
        drawn = _drawn(data, rng)
        for fold in range(n_folds):
            rows = _training_rows(drawn, fold_of[s] != fold)
            boot = weight[rows] * rng.gamma(BOOTSTRAP_SHAPE, size=len(rows))
            samples.append(_Sample(rows, boot))
    heads = _fit_heads(data, samples, [penalty], of_a_seed=n_folds)
    heads = heads.reshape(seeds, n_folds, -1, k)
    out = np.empty((seeds, n, k))
    for block in blocks(n):
        seen = features.of(block)
        for s in range(seeds):
            for fold in range(n_folds):
                held_out = np.flatnonzero(fold_of[s][block] == fold)
                probs = np.maximum(softmax(seen[held_out] @ heads[s, fold]), TRACE)
                out[s, block.start + held_out] = probs
    out /= out.sum(axis=2, keepdims=True)
    return out


def _deal_folds(
    label: IntArray, group: IntArray, used: BoolArray, folds: int, rng: np.random.Generator
) -> IntArray:
    """(n,) fold of each item.

    Args:
        label: (n,) classes, spread evenly over the folds.
        group: (n,) items of one group stay in one fold.
        used: (n,) items that are learned from. Where they are of two groups or more, no fold holds
            them all, so that every fold leaves something to learn from.
    """
    fold_of = stratified_folds(label, group, folds, rng)
    if len(np.unique(fold_of[used])) > 1:
        return fold_of
    of_group = np.full(int(group.max()) + 1, -1, dtype=np.int64)
    _, own = np.unique(group[used], return_inverse=True)
    of_group[group[used]] = stratified_folds(label[used], own, folds, rng)
    return np.where(of_group[group] < 0, fold_of, of_group[group])


def _second_moment(features: NDArray[np.float32], weight: FloatArray) -> NDArray[np.float32]:
    """(d + 1, d + 1) weighted mean of the features' outer products."""
    root = features * np.sqrt(weight / weight.sum()).astype(np.float32)[:, None]
    return np.asarray(root.T @ root)  # half the work of two different factors


def _fit_heads(
    data: _Training, samples: Sequence[_Sample], penalties: Sequence[float], *, of_a_seed: int
) -> NDArray[np.float32]:
    """(samples, penalties, d + 1, k) softmax heads, one of each sample at each penalty.

    Heads learn side by side, so that a step is two matrix products for all of them, however many
    folds, seeds and classes there are. Where rows are drawn from very many, only the ``of_a_seed``
    consecutive samples of one seed have their rows in common and learn together.
    """
    per_sample = len(penalties) * data.target.shape[1]
    n_rows = int((data.weight > 0).sum())
    at_once = max(1, CELLS // max(min(n_rows, SEED_ROWS) * per_sample, 1))
    if n_rows > SEED_ROWS:
        at_once = min(at_once, of_a_seed)
    parts = [samples[i : i + at_once] for i in range(0, len(samples), at_once)]
    return np.concatenate([_fit_side_by_side(data, part, penalties) for part in parts])


def _fit_side_by_side(
    data: _Training, samples: Sequence[_Sample], penalties: Sequence[float]
) -> NDArray[np.float32]:
    """``_fit_heads`` in one go; the last feature is the constant, unpenalised.

    Accelerated descent, preconditioned once by an upper bound of each head's curvature. A head that
    moves no further is done and leaves the products.
    """
    rows = np.unique(np.concatenate([sample.rows for sample in samples]))
    features = data.features.of(rows)
    labels = data.target[rows].astype(np.float32)
    n, d, k = len(rows), features.shape[1], labels.shape[1]
    weight = np.zeros((len(samples), n))
    for i, sample in enumerate(samples):
        weight[i, np.searchsorted(rows, sample.rows)] = sample.weight
    share = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    step = np.concatenate([_steps(_second_moment(features, w), penalties) for w in weight])
    # From here on h heads: those of the first sample, then those of the second, ...
    share = np.repeat(share, len(penalties), axis=0)
    held = np.tile(np.asarray(penalties, dtype=np.float32), len(samples))
    prior = share @ labels
    present = (prior > 0).T
    heads = np.zeros((d, k, len(share)), dtype=np.float32)
    # Absent classes start, and stay, far below the others; the rest start at their shares.
    heads[-1] = np.log(np.maximum(prior, 1e-9)).T
    fitted = heads.copy()
    share = np.ascontiguousarray(share.T)
    learning = np.arange(len(prior))
    ahead, momentum = heads, 1.0
    for _ in range(STEPS):
        error = (features @ ahead.reshape(d, -1)).reshape(n, k, -1)
        error -= error.max(axis=1, keepdims=True)
        np.exp(error, out=error)
        error /= error.sum(axis=1, keepdims=True)
        error -= labels[:, :, None]
        error *= share[:, None, :]
        gradient = (features.T @ error.reshape(n, -1)).reshape(d, k, -1)
        gradient[:-1] += held * ahead[:-1]
        gradient *= present
        moved = ahead - (step @ gradient.transpose(2, 0, 1)).transpose(1, 2, 0)
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = moved + np.float32((momentum - 1.0) / following) * (moved - heads)
        fitted[:, :, learning] = moved
        going = np.abs(moved - heads).max(axis=(0, 1)) >= 1e-3
        heads, momentum = moved, following
        if not going.any():
            break
        if not going.all():
            heads, ahead, present = heads[:, :, going], ahead[:, :, going], present[:, going]
            share, held, step = share[:, going], held[going], step[going]
            learning = learning[going]
    return fitted.transpose(2, 0, 1).reshape(len(samples), len(penalties), d, k)


def _steps(moment: NDArray[np.float32], penalties: Sequence[float]) -> NDArray[np.float32]:
    """(penalties, d + 1, d + 1) inverse of the bound of the curvature at each penalty."""
    ridge = np.tile(np.asarray(penalties, dtype=np.float32)[:, None], len(moment))
    ridge[:, -1] = 1e-4
    bound = 0.5 * moment.astype(np.float64) + ridge[:, :, None] * np.eye(len(moment))
    return np.linalg.inv(bound).astype(np.float32)


def _choose_penalty(data: _Training, fold_of: IntArray, rng: np.random.Generator) -> float:
    """The penalty of least held-out loss, over a few folds: one fold alone is too noisy."""
    samples, judged = [], []
    folds, drawn = min(PENALTY_FOLDS, int(fold_of.max()) + 1), _drawn(data, rng)
    for fold in range(folds):
        rows = _training_rows(drawn, fold_of != fold)
        samples.append(_Sample(rows, data.weight[rows]))
        judged.append(drawn[fold_of[drawn] == fold])
    losses = np.zeros(len(PENALTIES))
    fitted = _fit_heads(data, samples, PENALTIES, of_a_seed=folds)
    for rows, heads in zip(judged, fitted, strict=True):
        seen = data.features.of(rows)
        for i, head in enumerate(heads):
            probs = np.maximum(softmax(seen @ head), TRACE)
            loss = (data.target[rows] * -np.log(probs)).sum(axis=1)
            losses[i] += float((data.weight[rows] * loss).sum())
    return PENALTIES[int(np.argmin(losses))]


def _drawn(data: _Training, rng: np.random.Generator) -> IntArray:
    """The rows of positive weight in ascending order, ``SEED_ROWS`` of them if there are more."""
    rows = np.flatnonzero(data.weight > 0)
    if len(rows) > SEED_ROWS:
        rows = np.sort(rng.choice(rows, SEED_ROWS, replace=False))
    return rows


def _training_rows(drawn: IntArray, chosen: BoolArray) -> IntArray:
    """The drawn rows that are chosen, of which there must be one."""
    rows = drawn[chosen[drawn]]
    if not len(rows):
        raise ValueError("a training fold has no item of positive weight; give more items weight")
    return rows


def _standardised(embeddings: Vectors) -> _Features:
    """The features of n embeddings (n, d)."""
    n, d = embeddings.shape
    mean, variance = np.zeros(d), np.zeros(d)
    for block in blocks(n):
        mean += embeddings[block].sum(axis=0, dtype=np.float64) / n
    for block in blocks(n):
        centred = embeddings[block].astype(np.float32) - mean.astype(np.float32)
        variance += np.einsum("nd,nd->d", centred, centred, dtype=np.float64) / n
    scale = np.sqrt(variance)
    # Some encoders have constant dimensions: rounding noise must not be blown up to variance 1.
    floor = 1e-3 * float(np.median(scale)) + 1e-12
    held = np.maximum(scale, floor).astype(np.float32)
    return _Features(embeddings, mean.astype(np.float32), held)


def _in_span(features: _Features, rows: IntArray) -> _Features:
    """The features in a basis of what the rows span, where that has fewer dimensions.

    A head with a penalty on its squares has no part outside the span of the rows that it learns
    from, so that the answer is the same; with a hundred gold labels it comes many times as fast.
    """
    if len(rows) >= features.embeddings.shape[1]:
        return features
    basis, _ = np.linalg.qr(features.of(rows)[:, :-1].T)
    return replace(features, basis=basis)


def stratified_folds(
    label: IntArray, group: IntArray, folds: int, rng: np.random.Generator
) -> IntArray:
    """(n,) fold of each item: groups whole, classes spread as evenly as they can be."""
    _, first = np.unique(group, return_index=True)
    order = np.lexsort((rng.random(len(first)), label[first]))
    fold_of_group = np.empty(len(first), dtype=np.int64)
    # Dealing on from class to class, not again, keeps the folds of equal size too.
    fold_of_group[order] = (np.arange(len(first)) + rng.integers(folds)) % folds
    return fold_of_group[group]


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


def _check(embeddings: Vectors, weight: FloatArray, seeds: int) -> None:
    n = len(embeddings)
    if embeddings.ndim != 2 or not n:
        raise ValueError(f"embeddings must be (n, d) with n > 0, not {embeddings.shape}")
    if not all_finite(embeddings):
        raise ValueError("embeddings must be finite")
    if weight.shape != (n,) or not (weight >= 0).all():
        raise ValueError(f"weight must be ({n},) and >= 0, not {weight.shape}")
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, not {seeds}")


def _p_student(pool: Pool, name: str) -> FloatArray:
    if pool.p_student is None:
        raise ValueError(f"{name} needs out-of-fold student probabilities, this pool has none")
    return pool.p_student
