"""How far the frozen student and the full one agree, so that users know when it may stand in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from loop.campaign.metrics import Metric
from loop.measure.metric import replicates, seed_spread, with_width
from loop.ports import FloatArray, IntArray

BOOTSTRAP = 1000


def agreement(
    full: ArrayLike, frozen: ArrayLike, k: int, *, rng: np.random.Generator
) -> dict[str, Metric]:
    """How often a seed of the one and a seed of the other give a text the same label.

    Args:
        full: (s, n) classes in 0..k-1.
        frozen: (s', n).
        k: number of classes.
        rng: draws the replicates.

    Returns:
        ``same``, the mean share over all pairs; ``kappa``, that beyond chance; ``itself``, the same
        share between two seeds of the full student, which nothing can be expected to exceed;
        ``short``, ``itself`` minus ``same``. Intervals over items and, from three seeds, over the
        seeds of both.
    Raises:
        ValueError: shapes that do not fit.
    Source: Cohen 1960, with agreement and chance each averaged over the pairs before their ratio.
    """
    a, b = np.asarray(full, dtype=np.int64), np.asarray(frozen, dtype=np.int64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not len(b):
        raise ValueError(f"need (s, n) and (s', n) with n > 0, got {a.shape} and {b.shape}")
    base = np.ones(a.shape[1])
    point = _shares(_counts(a, k), _counts(b, k), base[None, :])
    drawn = [_shares(_counts(a, k), _counts(b, k), w) for w in replicates(base, BOOTSTRAP, rng)]
    spread = {name: np.concatenate([values[name] for values in drawn]) for name in point}
    sides: list[list[Callable[[FloatArray], dict[str, FloatArray]]]] = [
        [partial(_shares, _counts(np.delete(a, i, 0), k), _counts(b, k)) for i in range(len(a))],
        [partial(_shares, _counts(a, k), _counts(np.delete(b, i, 0), k)) for i in range(len(b))],
    ]
    for parts in sides:
        if len(parts) > 2:
            of_seeds, noise = (
                seed_spread(parts, base, rng),
                rng.standard_t(len(parts) - 1, BOOTSTRAP),
            )
            spread = {name: spread[name] + of_seeds[name] * noise for name in point}
    intervals = {}
    for name, value in point.items():
        known = spread[name][np.isfinite(spread[name])]
        if not known.size or not np.isfinite(value[0]):
            intervals[name] = Metric(float(value[0]))
            continue
        low, high = map(float, np.percentile(known, [2.5, 97.5]))
        share = name in ("same", "itself")
        low, high = with_width(low, high, a.shape[1], difference=not share)
        if share:
            low = max(low, 0.0)
        intervals[name] = Metric(float(value[0]), low, min(high, 1.0))
    return intervals


def _counts(preds: IntArray, k: int) -> FloatArray:
    """(n, k) share of the seeds that give each class, and what two of them make of it."""
    s, n = preds.shape
    counts = np.zeros((n, k + 1))
    for row in preds:
        counts[np.arange(n), row] += 1.0 / s
    pairs = s * (s - 1)
    counts[:, k] = (
        (s * s * (counts[:, :k] ** 2).sum(1) - s) / pairs if pairs else np.full(n, np.nan)
    )
    return counts


def _shares(a: FloatArray, b: FloatArray, weights: FloatArray) -> dict[str, FloatArray]:
    total = weights.sum(1)
    same = weights @ (a[:, :-1] * b[:, :-1]).sum(1) / total
    chance = ((weights @ a[:, :-1]) * (weights @ b[:, :-1])).sum(1) / total**2
    itself = weights @ a[:, -1] / total
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(chance < 1 - 1e-12, (same - chance) / (1 - chance), np.nan)
    return {"same": same, "kappa": kappa, "itself": itself, "short": itself - same}
