"""Training labels and weights, and what to make of the items that no human saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strategies.calibrate import (
    batch_calibrate,
    effective_size,
    inverse_probability,
    prior_from_gold,
)
from strategies.learned import (
    MAX_WEIGHT_RATIO,
    PRIOR_GOLD,
    build_features,
    error_predictor,
    gold_free_signals,
)
from strategies.pool import FloatArray, IntArray, Pool

Mode = Literal["keep", "soft", "weight", "drop", "relabel"]
MODES = ("keep", "soft", "weight", "drop", "relabel")
FLOOR_FRAC = 0.8


@dataclass(frozen=True)
class Repaired:
    """What a student learns from.

    Attributes:
        y: (n, k) rows sum to 1; one-hot except in mode ``soft``.
        weight: (n,) in [0, 1]; 0 leaves the item out.
        source: (n,) 'gold', 'llm' (the LLM's label as it came), 'repaired' (another target than
            that label) or 'dropped'.
    """

    y: FloatArray
    weight: FloatArray
    source: NDArray[np.str_]


def repair(
    pool: Pool,
    mode: Mode,
    *,
    inclusion_prob: FloatArray | None = None,
    rng: np.random.Generator,
) -> Repaired:
    """Labels and weights of all items: gold where it is known, else the LLM's label, mended.

    Items with gold are always their gold label at weight 1. For the others:

    - ``keep``: the LLM's label, weight 1.
    - ``soft``: the corrected posterior over the classes, weight 1.
    - ``weight``: the LLM's label, weight 1 - P(wrong).
    - ``drop``: left out where P(wrong) > 1/2.
    - ``relabel``: the likeliest class of the corrected posterior.

    Every repair shrinks towards ``keep`` while gold is scarce, and is ``keep`` without gold. No
    repair may bury a class: the share of training weight on a predicted class may not fall below
    ``FLOOR_FRAC`` of what the weighted gold says its share is (or below its share under ``keep``,
    if that is less). Where it would, the least suspect items of the class are restored.

    Args:
        pool: uses everything it has.
        mode: one of the above.
        inclusion_prob: (n,) probability with which each gold item was chosen, read only where
            gold is known; None uses the pool's.
        rng: deals the gold items into folds.

    Returns:
        Labels, weights, and where each label came from.

    Raises:
        ValueError: unknown mode, or inclusion probabilities that do not fit.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown repair {mode!r}. Available: {', '.join(MODES)}.")
    pi = pool.inclusion_prob if inclusion_prob is None else inclusion_prob
    gold = pool.gold >= 0
    kept: FloatArray = np.eye(pool.k)[np.where(gold, pool.gold, pool.y_llm)]
    y, weight = kept.copy(), np.ones(pool.n)
    if mode != "keep" and gold.any() and not gold.all():
        p_wrong = wrong_probability(pool, pi, rng)
        posterior = corrected_posterior(pool, p_wrong, pi)
        rows = np.flatnonzero(~gold)
        if mode == "soft":
            y[rows] = posterior[rows]
        elif mode == "relabel":
            y[rows] = np.eye(pool.k)[_likeliest(posterior[rows], pool.y_llm[rows])]
        elif mode == "weight":
            weight[rows] = 1.0 - p_wrong[rows]
        else:
            weight[rows] = np.where(p_wrong[rows] > 0.5, 0.0, 1.0)
        _restore_buried(pool, y, weight, kept, p_wrong, class_floor(pool, pi))
    changed = np.abs(y - kept).max(axis=1, initial=0.0) > 1e-9
    source = np.where(changed, "repaired", "llm")
    source = np.where(weight == 0, "dropped", source)
    return Repaired(y, weight, np.where(gold, "gold", source))


def wrong_probability(
    pool: Pool, inclusion_prob: FloatArray | None, rng: np.random.Generator
) -> FloatArray:
    """P(the LLM's label is wrong), shrunk towards 0 while gold is scarce.

    Args:
        pool: uses everything it has.
        inclusion_prob: (n,), read where gold is known, or None.
        rng: deals the gold items into folds.

    Returns:
        (n,) in [0, 1): the learned probability times g / (g + 50), with g the effective number
        of gold labels; all 0 without gold.
    """
    rows = np.flatnonzero(pool.gold >= 0)
    if not len(rows):
        return np.zeros(pool.n)
    weight = inverse_probability(pool.gold >= 0, inclusion_prob, clip=MAX_WEIGHT_RATIO)
    size = effective_size(weight)
    prediction = error_predictor(
        build_features(gold_free_signals(pool), pool.y_llm, pool.k, embeddings=pool.embeddings),
        pool.gold[rows] != pool.y_llm[rows],
        rows,
        None if inclusion_prob is None else inclusion_prob[rows],
        rng=rng,
    )
    return prediction.p_wrong * size / (size + PRIOR_GOLD)


def corrected_posterior(
    pool: Pool, p_wrong: FloatArray, inclusion_prob: FloatArray | None
) -> FloatArray:
    """P(class | the LLM's label, its probabilities, the students' out-of-fold probabilities).

    The LLM's label keeps 1 - P(wrong). The rest goes to the other classes as students and LLM see
    the item, reweighted by what gold has shown the LLM to confuse: the gold confusions, smoothed
    by one label's worth of those that students and LLM expect.

    Args:
        pool: uses ``probs``, ``p_student``, ``y_llm`` and ``gold``.
        p_wrong: (n,) in [0, 1].
        inclusion_prob: (n,), read where gold is known, or None.

    Returns:
        (n, k) rows sum to 1.
    Source: Dawid and Skene 1979, class-conditional confusion.
    """
    n, k = pool.n, pool.k
    view = np.nanmean(batch_calibrate(pool.probs, pool.class_prior), axis=1)
    if pool.p_student is not None:
        view = 0.5 * view + 0.5 * pool.p_student.mean(axis=0)
    view = np.maximum(view, 1e-6)
    view[np.arange(n), pool.y_llm] = 0.0
    view /= view.sum(axis=1, keepdims=True)
    expected = np.full((k, k), 1.0 / (k - 1)) * (1.0 - np.eye(k))
    for label in np.unique(pool.y_llm):
        expected[label] = view[pool.y_llm == label].mean(axis=0)
    known = pool.gold >= 0
    weight = inverse_probability(known, inclusion_prob)
    if len(weight):
        weight = weight * effective_size(weight) / weight.sum()
    seen = expected.copy()
    np.add.at(seen, (pool.y_llm[known], pool.gold[known]), weight)
    np.fill_diagonal(seen, 0.0)
    seen /= seen.sum(axis=1, keepdims=True)
    ratio = np.divide(seen, expected, out=np.zeros((k, k)), where=expected > 0)
    other = view * ratio[pool.y_llm]
    other /= other.sum(axis=1, keepdims=True)
    posterior = p_wrong[:, None] * other
    posterior[np.arange(n), pool.y_llm] += 1.0 - p_wrong
    return np.asarray(posterior / posterior.sum(axis=1, keepdims=True), dtype=np.float64)


def class_floor(pool: Pool, inclusion_prob: FloatArray | None) -> FloatArray:
    """The share of training weight below which no repair may push a class.

    Args:
        pool: uses ``gold`` and ``y_llm``.
        inclusion_prob: (n,), read where gold is known, or None.

    Returns:
        (k,) ``FLOOR_FRAC`` of the weighted gold's class shares, those smoothed by 50 labels
        spread like the LLM's; at most the share under ``keep``.
    """
    llm = np.bincount(pool.y_llm, minlength=pool.k) / pool.n
    said = prior_from_gold(
        pool.gold, inclusion_prob, pool.k, pseudo=PRIOR_GOLD / pool.k, towards=llm
    )
    kept = np.bincount(np.where(pool.gold >= 0, pool.gold, pool.y_llm), minlength=pool.k) / pool.n
    return np.minimum(FLOOR_FRAC * said, kept)


def _likeliest(posterior: FloatArray, y_llm: IntArray) -> IntArray:
    """The likeliest class; the LLM's where it ties with another."""
    best = posterior.argmax(axis=1)
    own = posterior[np.arange(len(posterior)), y_llm]
    return np.where(posterior.max(axis=1) > own, best, y_llm).astype(np.int64)


def _restore_buried(
    pool: Pool,
    y: FloatArray,
    weight: FloatArray,
    kept: FloatArray,
    p_wrong: FloatArray,
    floor: FloatArray,
) -> None:
    """Undoes repairs in place, least suspect first, until every class is at its floor.

    Restoring one class takes share from the others, so they are looked at again; every pass
    restores something, and with everything restored ``keep`` is at the floor by definition.
    """
    while True:
        mass = (weight[:, None] * y).sum(axis=0)
        total = float(weight.sum())
        short = [c for c in range(pool.k) if mass[c] < floor[c] * total - 1e-9]
        progress = False
        for c in short:
            touched = (np.abs(y - kept).max(axis=1) > 1e-12) | (weight < 1)
            rows = np.flatnonzero(touched & (pool.gold < 0) & (pool.y_llm == c))
            if not len(rows):
                continue
            rows = rows[np.argsort(p_wrong[rows], kind="stable")]
            gain = np.cumsum(1.0 - weight[rows] * y[rows, c])
            grown = np.cumsum(1.0 - weight[rows])
            mass_c = float((weight * y[:, c]).sum())
            enough = mass_c + gain >= floor[c] * (float(weight.sum()) + grown) - 1e-9
            upto = int(np.argmax(enough)) + 1 if enough.any() else len(rows)
            y[rows[:upto]] = kept[rows[:upto]]
            weight[rows[:upto]] = 1.0
            progress = True
        if not progress:
            return
