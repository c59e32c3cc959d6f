"""Training labels and weights, and what to make of the items that no human saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strategies.calibrate import prior_from_gold
from strategies.pool import FloatArray, IntArray, Pool
from strategies.signals.learned_error import PRIOR_GOLD, blind_evidence, class_posterior
from strategies.signals.students import gold_students, out_of_fold_probs, views_of

Mode = Literal["keep", "soft", "weight", "drop", "relabel"]
MODES = ("keep", "soft", "weight", "drop", "relabel")
FLOOR_FRAC = 0.8
BALANCE = 0.5  # 0 leaves the class shares as they are, 1 gives every class the same weight
SCARCE_GOLD = 10.0  # gold labels at which the posterior and the LLM's bare label count the same
SEEDS = 2  # students that learn from the first posterior


@dataclass(frozen=True)
class Repaired:
    """What a student learns from.

    Attributes:
        y: (n, k) rows sum to 1; one-hot except in mode ``soft``.
        weight: (n,) in [0, 1]; 0 leaves the item out; 1 for gold.
        source: (n,) 'gold', 'llm' (the LLM's label as it came), 'repaired' (another target than
            that label) or 'dropped'.
    """

    y: FloatArray
    weight: FloatArray
    source: NDArray[np.str_]


def repair(pool: Pool, mode: Mode, *, rng: np.random.Generator) -> Repaired:
    """Labels and weights of all items: gold where it is known, else the LLM's label, mended.

    Items with gold are always their gold label at weight 1. For the others:

    - ``keep``: the LLM's label, weight 1.
    - ``soft``: the corrected posterior over the classes, tilted towards the rare ones, see
      ``balanced``.
    - ``weight``: the LLM's label, weight 1 - P(wrong).
    - ``drop``: left out where P(wrong) > 1/2.
    - ``relabel``: the likeliest class of the corrected posterior.

    Items that people answered and could give no label (``pool.unsure``) are left out in every mode.

    Every repair shrinks towards ``keep`` while gold is scarce, and is ``keep`` without gold. No
    repair may bury a class: the share of training weight on a predicted class may not fall below
    ``FLOOR_FRAC`` of what the weighted gold says its share is (or below its share under ``keep``,
    if that is less). Where it would, the least suspect items of the class are restored.

    Args:
        pool: uses everything it has.
        mode: one of the above.
        rng: deals the gold items into folds.

    Returns:
        Labels, weights, and where each label came from.

    Raises:
        ValueError: unknown mode, or inclusion probabilities that do not fit.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown repair {mode!r}. Available: {', '.join(MODES)}.")
    gold = pool.gold >= 0
    kept: FloatArray = np.eye(pool.k)[np.where(gold, pool.gold, pool.y_llm)]
    y, weight = kept.copy(), np.ones(pool.n)
    if mode != "keep" and gold.any() and not gold.all():
        posterior = corrected_posterior(pool, rng=rng)
        p_wrong = 1.0 - posterior[np.arange(pool.n), pool.y_llm]
        rows = np.flatnonzero(~gold)
        if mode == "soft":
            y[rows] = posterior[rows]
            y[rows], weight[rows] = balanced(posterior[rows], y, _trust(pool))
        elif mode == "relabel":
            y[rows] = np.eye(pool.k)[_likeliest(posterior[rows], pool.y_llm[rows])]
        elif mode == "weight":
            weight[rows] = 1.0 - p_wrong[rows]
        else:
            weight[rows] = np.where(p_wrong[rows] > 0.5, 0.0, 1.0)
        _restore_buried(pool, y, weight, kept, p_wrong, class_floor(pool))
    if pool.unsure is not None:
        weight[pool.unsure & ~gold] = 0.0  # the LLM's word is not better than people's
    changed = np.abs(y - kept).max(axis=1, initial=0.0) > 1e-9
    source = np.where(changed, "repaired", "llm")
    source = np.where(weight == 0, "dropped", source)
    return Repaired(y, weight, np.where(gold, "gold", source))


def corrected_posterior(pool: Pool, *, rng: np.random.Generator) -> FloatArray:
    """P(class | all that is known of an item), and the LLM's label while gold is scarce.

    1. ``class_posterior`` weighs the pool's opinions and those of students that learned from gold
       alone. Gold decides how much each counts, and so how much of the LLM's label is kept.
    2. New students learn from this posterior. Those of the embeddings replace the students that
       learned from the LLM's labels; those of the LLM's states are one more opinion.
    3. ``class_posterior`` weighs all of these once more. This is the answer.

    Fine-tuned students that learned repaired labels (``pool.p_tuned``) take the place of those of
    the embeddings in step 3. The answer is then the mean of step 3 and their own opinion.

    Args:
        pool: uses everything it has.
        rng: deals items into folds, for students and for the posterior.

    Returns:
        (n, k) rows sum to 1: the posterior times t plus the LLM's label times 1 - t, with
        t = g^2 / (g^2 + 10^2) for g gold labels.
    Source: Wolpert 1992, stacked generalisation; Scudder 1965, self-training, here once and with
        out-of-fold students.
    """
    llm = np.eye(pool.k)[pool.y_llm]
    trust = _trust(pool)
    if not trust:
        return llm
    known = pool.gold >= 0
    if pool.p_gold is None:
        pool = replace(pool, p_gold=gold_students(pool, rng=rng))
    evidence = blind_evidence(pool)
    posterior = class_posterior(pool, evidence, rng=rng)
    if pool.p_student is not None and pool.embeddings is not None:
        y = np.where(known[:, None], np.eye(pool.k)[pool.gold], posterior)
        again, *also = (
            out_of_fold_probs(view, y, np.ones(pool.n), pool.k, seeds=SEEDS, rng=rng)
            for view in views_of(pool)
        )
        posterior = class_posterior(
            replace(pool, p_student=again if pool.p_tuned is None else pool.p_tuned[None]),
            rng=rng,
            evidence=evidence,
            also=np.stack([said.mean(axis=0) for said in also]) if also else None,
        )
        if pool.p_tuned is not None:
            posterior = (posterior + pool.p_tuned) / 2
    return np.asarray(trust * posterior + (1.0 - trust) * llm)


def balanced(posterior: FloatArray, y: FloatArray, trust: float) -> tuple[FloatArray, FloatArray]:
    """Soft labels and weights in which rare classes count for more.

    Where the evidence is weak a posterior falls back on the commonest class, and a student that
    follows it never predicts the rare ones. Each class therefore counts for its share to the power
    of -1/2, the mean of leaving shares as they are and making all equal.

    Args:
        posterior: (r, k) of the items without gold.
        y: (n, k) labels of all items, which give the shares.
        trust: in [0, 1]; 0 changes nothing.

    Returns:
        (r, k) rows sum to 1, and (r,) weights in (0, 1].
    Source: Mikolov et al. 2013 and Mahajan et al. 2018, square-root balancing.
    """
    share = y.mean(axis=0)
    held = np.maximum(share, 1.0 / (len(y) + 1.0))
    factor = held ** (-BALANCE * trust)
    tilted = posterior * (factor / factor.max())
    weight: FloatArray = tilted.sum(axis=1)
    return np.asarray(tilted / weight[:, None]), weight


def _trust(pool: Pool) -> float:
    """How far the posterior is believed: 0 without gold, 1/2 at ``SCARCE_GOLD``."""
    g = int((pool.gold >= 0).sum())
    return float(g**2 / (g**2 + SCARCE_GOLD**2))


def class_floor(pool: Pool) -> FloatArray:
    """The share of training weight below which no repair may push a class.

    Args:
        pool: uses ``gold``, ``y_llm`` and ``inclusion_prob``.

    Returns:
        (k,) ``FLOOR_FRAC`` of the weighted gold's class shares, those smoothed by 50 labels
        spread like the LLM's; at most the share under ``keep``.
    """
    llm = np.bincount(pool.y_llm, minlength=pool.k) / pool.n
    said = prior_from_gold(
        pool.gold, pool.inclusion_prob, pool.k, pseudo=PRIOR_GOLD / pool.k, towards=llm
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
