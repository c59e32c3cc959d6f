"""What an answer is worth to the student, rather than how suspect the label is."""

from __future__ import annotations

import numpy as np

from strategies.pool import FloatArray, Pool, clip_unit
from strategies.signals.neighbours import K_NEIGHBOURS, check_lengths, nearest
from strategies.signals.uncertainty import entropy


def expected_benefit(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Entropy, weighted by how much an error at this place costs the student.

    An error misleads about the texts around it, so it counts by how near those are; and a student
    learns a rare class from few texts, so it counts by the share of the class to the power of -1/2,
    as in ``repair``.

    Args:
        pool: uses ``probs``, ``embeddings`` and ``y_llm``.
        rng: handed on to ``entropy``.

    Returns:
        (n,) in [0, 1]: entropy, times the mean cosine to the nearest texts (0 where negative),
        times the class's factor, over the largest such product.

    Raises:
        ValueError: the pool has no embeddings, or an embedding of length zero.
    Source: Settles and Craven 2008, information density.
    """
    if pool.embeddings is None:
        raise ValueError("expected_benefit needs embeddings, this pool has none")
    doubt = entropy(pool, rng)
    k = min(K_NEIGHBOURS, pool.n - 1)
    if k < 1:
        return doubt
    check_lengths(pool.embeddings, "expected_benefit")
    cosines, rows = nearest(pool.embeddings, k + 1)
    others = (rows >= 0) & (rows != np.arange(pool.n)[:, None])
    n_near = np.maximum(others.sum(axis=1), 1)
    near = np.where(others, np.clip(cosines, 0.0, 1.0), 0.0).sum(axis=1) / n_near
    counts = np.bincount(pool.y_llm, minlength=pool.k)
    cost = near / np.sqrt(counts[pool.y_llm])
    benefit = doubt * cost
    largest = benefit.max()
    return clip_unit(benefit / largest if largest > 0 else benefit)
