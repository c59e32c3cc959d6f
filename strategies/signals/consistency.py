"""Suspicion from prompt variants that answer one text differently.

Items with a single vote get 0: in a cascade the first answer was sure enough to stop there. A pool
without a second variant has no such signal at all, which is an error and not a column of zeros.
"""

from __future__ import annotations

import numpy as np

from strategies.calibrate import calibrated_votes
from strategies.pool import BoolArray, FloatArray, IntArray, Pool, clip_unit


def flip_rate(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Share of the votes that differ from the item's most frequent vote.

    It depends on the counts alone, so neither the order of the variants nor ties matter.

    Args:
        pool: uses ``votes``, (n, m), -1 where a vote was not taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1); 0 where all votes agree.

    Raises:
        ValueError: the pool has one prompt variant only.
    Source: Freeman 1965, variation ratio.
    """
    counts = _vote_counts(pool, "flip_rate")
    return clip_unit(1.0 - counts.max(axis=1) / counts.sum(axis=1))


def votes_against(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Share of the calibrated votes for another class than the label in use.

    ``flip_rate`` counts raw votes among themselves: prompts that all prefer one class never flip,
    although calibration, which removes what they prefer, tells their answers apart.

    Args:
        pool: uses ``probs``, ``class_prior`` and ``y_llm``.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; 0 where every vote is for the label.

    Raises:
        ValueError: the pool has one prompt variant only.
    """
    _check_variants(pool, "votes_against")
    if not pool.n:
        return np.zeros(0)
    calibrated = calibrated_votes(pool)
    taken: BoolArray = np.asarray(np.isfinite(calibrated).all(axis=2))
    said = np.where(taken[:, :, None], calibrated, 0.0).argmax(axis=2)
    against = taken & (said != pool.y_llm[:, None])
    return clip_unit(against.sum(axis=1) / taken.sum(axis=1))


def vote_entropy(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Entropy of the votes of the prompt variants, each counted as a hard label.

    Args:
        pool: uses ``votes``, (n, m).
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1], in units of the largest entropy that m votes on k classes can have.

    Raises:
        ValueError: the pool has one prompt variant only.
    Source: Dagan and Engelson 1995, committee-based sampling.
    """
    counts = _vote_counts(pool, "vote_entropy")
    return count_entropy(counts, min(pool.probs.shape[1], pool.k))


def jensen_shannon(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Jensen-Shannon divergence between the class probabilities of the prompt variants.

    Args:
        pool: uses ``probs``, (n, m, k), the votes that were taken.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1], in units of log min(m, k); 0 where all variants give the same numbers.

    Raises:
        ValueError: the pool has one prompt variant only.
    Source: Lin 1991.
    """
    m = _check_variants(pool, "jensen_shannon")
    probs = np.where(np.isfinite(pool.probs), pool.probs, 0.0)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    taken = np.isfinite(pool.probs).all(axis=2).sum(axis=1)
    within: FloatArray = -(probs * logs).sum(axis=(1, 2)) / taken
    mean = pool.mean_probs
    logs = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    between: FloatArray = -(mean * logs).sum(axis=1)
    return clip_unit((between - within) / np.log(min(m, pool.k)))


def count_entropy(counts: FloatArray, most: int) -> FloatArray:
    """Entropy of rows of counts (n, k), in units of log ``most``: (n,) in [0, 1]."""
    share = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    bits: FloatArray = -(share * logs).sum(axis=1)
    return clip_unit(bits / np.log(most))


def class_counts(labels: IntArray, k: int) -> FloatArray:
    """How often each of k classes occurs in each row of ``labels`` (n, m); -1 is left out."""
    counts = np.zeros((len(labels), k))
    for column in labels.T:
        rows = np.flatnonzero(column >= 0)
        counts[rows, column[rows]] += 1.0
    return counts


def _vote_counts(pool: Pool, name: str) -> FloatArray:
    _check_variants(pool, name)
    return class_counts(pool.votes, pool.k)


def _check_variants(pool: Pool, name: str) -> int:
    m = pool.probs.shape[1]
    if m < 2:
        raise ValueError(
            f"{name} needs at least 2 prompt variants, this pool has {m};"
            " set prompt.variants to 2 or more"
        )
    return int(m)
