"""Corrects the LLM's class bias without labels, and estimates class shares from gold."""

from __future__ import annotations

import numpy as np

from strategies.pool import BoolArray, FloatArray, IntArray

FLOOR = 1e-6


def batch_calibrate(
    probs: FloatArray, class_prior: FloatArray | None = None, *, pseudo_rows: float = 8.0
) -> FloatArray:
    """Class probabilities with the prompt's own preference for some classes divided out.

    ``p'`` is proportional to ``p / mean over the batch of p * class_prior``, per prompt variant.
    A variant that only some items were asked (the doubtful ones, in a cascade) has another class
    mix than the whole batch: there the prior is the mean that the most complete variant,
    calibrated, gives to those same items.

    Args:
        probs: (n, m, k) or (n, k), rows sum to 1; a row of NaN was not taken and stays NaN.
        class_prior: (k,) expected class shares of the batch, or None for a flat mix.
        pseudo_rows: rows without any bias that are added to the mean, so that the mean of a
            handful of items does not erase what they say; 0 is the plain formula.

    Returns:
        Same shape as ``probs``; rows sum to 1. A class that never gets any mass keeps none.

    Raises:
        ValueError: wrong shapes, or a prior that is negative or all zero.
    Source: Zhou et al. 2024, Batch Calibration (ICLR).
    """
    if probs.ndim not in (2, 3):
        raise ValueError(f"probs must be (n, m, k) or (n, k), not {probs.shape}")
    cube = probs[:, None, :] if probs.ndim == 2 else probs
    n, m, k = cube.shape
    prior = _shares(class_prior, k)
    taken: BoolArray = np.asarray(np.isfinite(cube).all(axis=2))
    out = np.full((n, m, k), np.nan)
    # The most complete variant first; the others lean on it where they lack rows.
    order = np.argsort(-taken.sum(axis=0), kind="stable")
    answered = int(taken.any(axis=1).sum())
    main = int(order[0]) if m else 0
    for v in order:
        rows: BoolArray = taken[:, v]
        if not rows.any():
            continue
        target = prior
        shared = rows & taken[:, main]
        if v != main and rows.sum() < answered and shared.any():
            target = np.maximum(out[shared, main].mean(axis=0), FLOOR)
            target = target / target.sum()
        out[rows, v] = _divide_out(cube[rows, v], target, pseudo_rows)
    return out[:, 0] if probs.ndim == 2 else out


def contextual_calibrate(
    probs: FloatArray, content_free: FloatArray, class_prior: FloatArray | None = None
) -> FloatArray:
    """Class probabilities with what a prompt says of a text without content divided out.

    ``p'`` is proportional to ``p / p(content-free) * class_prior``, per prompt variant. No batch is
    needed, but which content-free texts are taken matters, and with them it can harm.

    Args:
        probs: (n, m, k), rows sum to 1; a row of NaN was not taken and stays NaN.
        content_free: (m, k) the mean answer to content-free texts, rows sum to 1.
        class_prior: (k,) expected class shares, or None for a flat mix.

    Returns:
        (n, m, k); rows sum to 1.

    Raises:
        ValueError: wrong shapes, or a prior that is negative or all zero.
    Source: Zhao et al. 2021, Calibrate Before Use (ICML).
    """
    if probs.ndim != 3 or content_free.shape != probs.shape[1:]:
        raise ValueError(
            f"probs (n, m, k) and content_free (m, k) do not fit: {probs.shape} and"
            f" {content_free.shape}"
        )
    prior = _shares(class_prior, probs.shape[2])
    scaled = probs * (prior / np.maximum(content_free, FLOOR))
    total = scaled.sum(axis=2, keepdims=True)
    return np.asarray(scaled / total, dtype=np.float64)


def prior_from_gold(
    gold: IntArray,
    inclusion_prob: FloatArray | None,
    k: int,
    *,
    pseudo: float = 1.0,
    towards: FloatArray | None = None,
) -> FloatArray:
    """Class shares of the pool from the gold labels so far.

    Args:
        gold: (n,) class, -1 where unknown.
        inclusion_prob: (n,) probability with which each gold item was chosen; read only where
            gold is known. None weighs all gold alike, which is biased if suspects were chosen.
        k: number of classes.
        pseudo: gold labels per class that are assumed beforehand.
        towards: (k,) shares of those assumed labels, or None for a flat mix.

    Returns:
        (k,) shares > 0 that sum to 1 (each > 0 while ``pseudo`` and ``towards`` are).

    Raises:
        ValueError: shapes differ, or an inclusion probability outside (0, 1].
    Source: Hajek 1971 (weighted shares); Kish 1965 (effective size, so that heavy weights do not
        outvote the smoothing).
    """
    known = gold >= 0
    weight = inverse_probability(known, inclusion_prob)
    assumed = _shares(towards, k) * pseudo * k
    if not known.any():
        assumed = assumed if pseudo > 0 else _shares(towards, k)
        return np.asarray(assumed / assumed.sum(), dtype=np.float64)
    share = np.bincount(gold[known], weights=weight, minlength=k) / weight.sum()
    counts = share * effective_size(weight) + assumed
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def inverse_probability(
    known: BoolArray,
    inclusion_prob: FloatArray | None,
    *,
    clip: float = np.inf,
) -> FloatArray:
    """Weights 1/pi of the known items.

    Args:
        known: (n,) bool, the items that have a weight.
        inclusion_prob: (n,) pi, or None for equal weights.
        clip: largest ratio between two weights.

    Returns:
        (number of known,) weights >= 1.

    Raises:
        ValueError: shapes differ, or an inclusion probability of a known item outside (0, 1].
    """
    if inclusion_prob is None:
        return np.ones(int(known.sum()))
    if inclusion_prob.shape != known.shape:
        raise ValueError(f"inclusion_prob must be {known.shape}, not {inclusion_prob.shape}")
    pi = inclusion_prob[known]
    if not ((pi > 0) & (pi <= 1 + 1e-9)).all():
        raise ValueError("inclusion_prob of every gold item must be in (0, 1]")
    weight = 1.0 / np.minimum(pi, 1.0)
    if len(weight):
        weight = np.minimum(weight, clip * weight.min())
    return np.asarray(weight, dtype=np.float64)


def effective_size(weight: FloatArray) -> float:
    """Number of equally weighted items that carry as much as these; 0 for none (Kish 1965)."""
    total = float(np.square(weight).sum())
    return float(weight.sum()) ** 2 / total if total > 0 else 0.0


def _divide_out(probs: FloatArray, prior: FloatArray, pseudo_rows: float) -> FloatArray:
    mean = (probs.sum(axis=0) + pseudo_rows * prior) / (len(probs) + pseudo_rows)
    # Where the mean is zero every probability is zero too: 0/0 is 0 here.
    factor = np.divide(prior, mean, out=np.zeros_like(prior), where=mean > 0)
    scaled = probs * factor
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float64)


def _shares(class_prior: FloatArray | None, k: int) -> FloatArray:
    if class_prior is None:
        return np.full(k, 1.0 / k)
    prior = np.asarray(class_prior, dtype=np.float64)
    if prior.shape != (k,):
        raise ValueError(f"class shares must be ({k},), not {prior.shape}")
    if not np.isfinite(prior).all() or (prior < 0).any() or prior.sum() <= 0:
        raise ValueError(f"class shares must be >= 0 with a positive sum, not {prior}")
    # A class that the prior rules out could hold all mass of a row: keep a trace of it.
    prior = np.maximum(prior / prior.sum(), FLOOR)
    return np.asarray(prior / prior.sum(), dtype=np.float64)
