"""How a metric grows with the gold labels that are bought, from the few rounds there are.

The curve is an inverse power law that begins at no labels, m(n) = a - b (1 + n / t)^-c, with b >= 0
and a <= 1. Two to five points cannot tell its shape, so no single one is fitted: every draw takes
another c and t, and counts by how well it fits. What the points leave open is then in the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loop.ports import FloatArray

DRAWS = 4000
EXPONENTS = (0.15, 3.0)
"""Smallest and largest c; drawn evenly on a logarithmic scale."""
SCALES = (0.2, 5.0)
"""Smallest and largest t, in units of the first batch; likewise."""


@dataclass(frozen=True)
class GainCurve:
    """Draws of curves that fit the points.

    Attributes:
        a: (d,) where they end.
        b: (d,) >= 0, what is left to gain at no labels.
        c: (d,) exponents.
        t: (d,) scales, in labels.
        weight: (d,) how well each fits, summing to 1.
    """

    a: FloatArray
    b: FloatArray
    c: FloatArray
    t: FloatArray
    weight: FloatArray

    def at(self, n: float) -> FloatArray:
        """(d,) the metric after n labels."""
        return np.asarray(np.clip(self.a - self.b * (1 + n / self.t) ** -self.c, 0.0, 1.0))

    def labels_to(self, goal: float) -> FloatArray:
        """(d,) labels after which the metric is at the goal; inf where it never is."""
        start = self.a - self.b
        left = self.a - goal
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            grown = self.t * ((self.b / np.where(left > 0, left, np.nan)) ** (1 / self.c) - 1)
        return np.where(start >= goal, 0.0, np.where(left > 0, grown, np.inf))

    def quantiles(self, values: FloatArray, at: tuple[float, ...]) -> list[float]:
        """Weighted quantiles of (d,) values; inf is a value like others."""
        order = np.argsort(values)
        reached = np.cumsum(self.weight[order])
        rows = np.searchsorted(reached, np.asarray(at) * reached[-1])
        return [float(values[order][min(int(row), len(order) - 1)]) for row in rows]


def fit_gain_curve(
    labels: FloatArray,
    values: FloatArray,
    shared_sd: float,
    own_sd: FloatArray,
    *,
    rng: np.random.Generator,
) -> GainCurve:
    """Curves through points that are measured with errors.

    Args:
        labels: (m,) gold labels, rising from 0; m >= 3.
        values: (m,) the metric, in [0, 1].
        shared_sd: standard deviation of the error that all points share (the same test texts).
        own_sd: (m,) standard deviations of the errors that each has of its own, > 0.
        rng: draws.
    Raises:
        ValueError: fewer than three points, or shapes that do not fit.
    Source: Figueroa et al. 2012 (the inverse power law); Viering & Loog 2023 (no single shape is
        the right one).
    """
    n, y = np.asarray(labels, float), np.asarray(values, float)
    noise = np.asarray(own_sd, float)
    if n.ndim != 1 or n.shape != y.shape or n.shape != noise.shape or len(n) < 3:
        raise ValueError(f"a curve needs three points or more, got {n.shape} and {y.shape}")
    if (np.diff(n) <= 0).any() or n[0] < 0 or (noise <= 0).any():
        raise ValueError("labels must rise from 0 on, and every point needs an error above 0")
    c = _drawn(EXPONENTS, rng)
    t = max(float(n[1]), 1.0) * _drawn(SCALES, rng)
    seen = y + rng.standard_normal((DRAWS, len(n))) * noise
    x = (1 + n / t[:, None]) ** -c[:, None]
    precision = noise**-2 / (noise**-2).sum()
    mean_x, mean_y = x @ precision, seen @ precision
    away = x - mean_x[:, None]
    b = -((away * (seen - mean_y[:, None])) @ precision) / ((away**2) @ precision)
    b = np.maximum(b, 0.0)
    a = mean_y + b * mean_x
    over = a > 1  # the best curve that ends at 1
    b = np.where(over, ((1 - seen) * x @ precision) / (x**2 @ precision), b)
    a = np.where(over, 1.0, a)
    fitted = a[:, None] - b[:, None] * x
    misfit = (((fitted - y) / noise) ** 2).sum(axis=1)
    weight = np.exp(-0.5 * (misfit - misfit.min()))
    a = a + shared_sd * rng.standard_normal(DRAWS)
    return GainCurve(a, b, c, t, weight / weight.sum())


def _drawn(ends: tuple[float, float], rng: np.random.Generator) -> FloatArray:
    low, high = np.log(ends)
    return np.asarray(np.exp(rng.uniform(low, high, DRAWS)))
