"""Krippendorff's alpha of any number of people, with answers missing where they may."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from strategies.pool import FloatArray


def alpha(counts: ArrayLike, *, ordinal: bool = False) -> float:
    """Krippendorff's alpha: 1 minus observed over expected disagreement.

    Two answers to one item disagree by 1 or 0 (nominal). Of ordered classes they disagree by the
    square of how many answers lie between them, half of those in the two classes counted along
    (ordinal), which is the squared distance of the classes' mean ranks.

    Args:
        counts: (n, k) how many people gave each class to each item; items with fewer than two
            answers say nothing about agreement and are left out.
        ordinal: the classes are in ascending order.

    Returns:
        At most 1; nan where it is undefined: no item has two answers, or they are all alike.

    Raises:
        ValueError: counts that are not (n, k) or below 0.
    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, sections C to E.
    """
    given = np.asarray(counts, dtype=np.float64)
    if given.ndim != 2 or not (given >= 0).all():
        raise ValueError(f"counts must be (items, classes) and >= 0, not {given.shape}")
    answers = given.sum(axis=1)
    paired, answers = given[answers >= 2], answers[answers >= 2]
    share = paired.sum(axis=0)
    if (share > 0).sum() < 2:
        return math.nan
    apart = _squared_distances(share, ordinal)
    coincidences = (paired / (answers - 1.0)[:, None]).T @ paired
    observed = float((coincidences * apart).sum())
    expected = float((np.outer(share, share) * apart).sum()) / (float(share.sum()) - 1.0)
    return 1.0 - observed / expected


def _squared_distances(share: FloatArray, ordinal: bool) -> FloatArray:
    """(k, k) by how much two classes differ, squared; 0 on the diagonal."""
    if not ordinal:
        return 1.0 - np.eye(len(share))
    rank = np.cumsum(share) - share / 2.0  # mean rank of a class's answers
    return np.square(rank[:, None] - rank[None, :])
