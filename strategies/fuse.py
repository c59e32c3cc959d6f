"""Several suspicions into one, by their ranks, and how well one tells wrong labels from right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strategies.pool import BoolArray, FloatArray, clip_unit


def fuse_ranks(
    suspicions: Mapping[str, FloatArray], weights: Mapping[str, float] | None = None
) -> FloatArray:
    """Weighted mean of the ranks that each signal gives, so that no scale dominates.

    Args:
        suspicions: name -> (n,), higher = more suspect.
        weights: name -> weight >= 0, only the ratios matter; None weighs all alike, and a signal
            that is not named weighs 0.

    Returns:
        (n,) in [0, 1]; ties share their mean rank, so a constant signal changes no order.

    Raises:
        ValueError: no signal, shapes that differ, values that are not finite, unknown names,
            negative weights, or all weights 0.
    Source: Borda count; Aslam and Montague 2001.
    """
    if not suspicions:
        raise ValueError("fuse_ranks needs at least one signal")
    shapes = {name: values.shape for name, values in suspicions.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"signals must all be (n,), not {shapes}")
    broken = [name for name, values in suspicions.items() if not np.isfinite(values).all()]
    if broken:
        raise ValueError(f"signal {broken[0]!r} has values that are not finite")
    share = _checked_weights(suspicions, weights)
    n = next(iter(shapes.values()))[0]
    fused = np.zeros(n)
    for name, values in suspicions.items():
        _, group, tied = np.unique(values, return_inverse=True, return_counts=True)
        places = (np.cumsum(tied) - 0.5 * (tied + 1.0))[group]  # from 0; ties share their mean
        fused += share[name] * (places / (n - 1.0) if n > 1 else np.full(n, 0.5))
    return clip_unit(fused)


def weighted_auroc(scores: FloatArray, positive: BoolArray, weight: FloatArray) -> float:
    """Probability that a positive item outscores a negative one; ties count one half.

    Args:
        scores: (g,).
        positive: (g,) bool; at least one item of each kind.
        weight: (g,) > 0.

    Returns:
        In [0, 1]; 0.5 is chance.
    Source: Mann and Whitney 1947, with weights.
    """
    is_positive = np.asarray(positive, dtype=bool)
    _, group = np.unique(scores, return_inverse=True)
    up = np.bincount(group, weights=weight * is_positive)
    down = np.bincount(group, weights=weight * ~is_positive)
    below = np.cumsum(down) - down
    return float((up * (below + 0.5 * down)).sum() / (up.sum() * down.sum()))


def _checked_weights(
    suspicions: Mapping[str, FloatArray], weights: Mapping[str, float] | None
) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(suspicions, 1.0 / len(suspicions))
    unknown = sorted(set(weights) - set(suspicions))
    if unknown:
        raise ValueError(
            f"Unknown signal {unknown[0]!r} in weights. Available: {', '.join(sorted(suspicions))}."
        )
    given = {name: float(weights.get(name, 0.0)) for name in suspicions}
    total = sum(given.values())
    if not np.isfinite(total) or min(given.values()) < 0 or total <= 0:
        raise ValueError(f"weights must be >= 0 with a positive sum, not {given}")
    return {name: value / total for name, value in given.items()}
