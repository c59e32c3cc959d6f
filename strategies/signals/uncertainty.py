"""Suspicion from the LLM's own class probabilities."""

from __future__ import annotations

import numpy as np

from strategies.calibrate import calibrated_votes
from strategies.pool import FloatArray, Pool, clip_unit


def entropy(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the entropy of the mean raw vote.

    Args:
        pool: uses ``probs``, (n, m, k), the mean over the votes that were taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1], in units of log k: 1 is a flat distribution.
    Source: Shannon 1948; Settles 2009 for its use as an acquisition function.
    """
    return normalised_entropy(pool.mean_probs)


def entropy_calibrated(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the entropy of the mean vote after batch calibration.

    Args:
        pool: uses ``probs`` and ``class_prior``.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1], in units of log k.
    Source: Zhou et al. 2024, Batch Calibration.
    """
    if not pool.n:
        return np.zeros(0)
    calibrated = calibrated_votes(pool)
    return normalised_entropy(np.nanmean(calibrated, axis=1))


def label_doubt(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the probability that the label in use has after batch calibration.

    Unlike an entropy it never speaks of answers other than the label: where the raw answers all
    favour one class and calibration gives the item another, it is that other one that is doubted.

    Args:
        pool: uses ``probs``, ``class_prior`` and ``y_llm``.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]: one minus that probability.
    Source: Lewis and Gale 1994, of the label that is in use; Zhou et al. 2024 for the calibration.
    """
    if not pool.n:
        return np.zeros(0)
    calibrated = np.nanmean(calibrated_votes(pool), axis=1)
    return clip_unit(1.0 - calibrated[np.arange(pool.n), pool.y_llm])


def margin(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the gap between the two likeliest classes.

    Args:
        pool: uses ``probs``, (n, m, k), the mean over the votes that were taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; 1 is a tie between the two.
    Source: Scheffer et al. 2001, margin sampling.
    """
    top = np.partition(pool.mean_probs, pool.k - 2, axis=1)
    return clip_unit(1.0 - (top[:, -1] - top[:, -2]))


def least_confidence(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the probability of the likeliest class.

    Args:
        pool: uses ``probs``, (n, m, k), the mean over the votes that were taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; 1 is a flat distribution, whatever the number of classes.
    Source: Lewis and Gale 1994.
    """
    k = pool.k
    top: FloatArray = pool.mean_probs.max(axis=1)
    return clip_unit((1.0 - top) * k / (k - 1))


def off_label_mass(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the probability that the LLM gave to no label at all.

    Args:
        pool: uses ``off_label_mass``, (n, m), the mean over the votes that were taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1].

    Raises:
        ValueError: the annotator recorded no off-label mass, for the pool or for an item.
    """
    mass = pool.off_label_mass
    if mass is None:
        raise ValueError("off_label_mass needs an annotator that records it; choose another signal")
    taken = np.isfinite(mass)
    if not taken.any(axis=1).all():
        missing = int((~taken.any(axis=1)).sum())
        raise ValueError(f"off_label_mass is missing for {missing} of {pool.n} items")
    total: FloatArray = np.where(taken, mass, 0.0).sum(axis=1)
    return clip_unit(total / taken.sum(axis=1))


def class_rarity(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion from the rarity of the class that the LLM gave.

    Not a sign of error by itself: fused with others it sends more of the rare classes to people.

    Args:
        pool: uses ``y_llm``.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1): one minus the share of the item's class in the pool.
    """
    counts = np.bincount(pool.y_llm, minlength=pool.k)
    return 1.0 - counts[pool.y_llm] / max(pool.n, 1)


def random(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """The baseline: suspicion is uniform noise.

    Returns:
        (n,) in [0, 1).
    """
    return rng.random(pool.n)


def normalised_entropy(probs: FloatArray) -> FloatArray:
    """Entropy of each row of ``probs`` (n, k), in units of log k: (n,) in [0, 1]."""
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    nats: FloatArray = -(probs * logs).sum(axis=1)
    return clip_unit(nats / np.log(probs.shape[1]))
