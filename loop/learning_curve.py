"""Learning curves a - b n^-c: where they level off, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loop.item_sums import FloatArray

EXPONENTS = np.geomspace(0.2, 2.0, 24)
"""Powers that are tried. Below 0.2 a curve is so slow that a few sizes cannot tell its end."""


@dataclass(frozen=True)
class Curves:
    """Fitted curves of r replicates.

    Attributes:
        a: (r,) asymptotes, at most 1.
        b: (r,) >= 0.
        c: (r,) > 0.
    """

    a: FloatArray
    b: FloatArray
    c: FloatArray

    def at(self, n: float) -> FloatArray:
        """(r,) values at n labels."""
        return np.asarray(self.a - self.b * n**-self.c)


def fit_curves(sizes: FloatArray, values: FloatArray) -> Curves:
    """Least squares under 0 <= b and a <= 1, exact in a and b, over a grid of c.

    A curve that does not rise has b = 0; then a is its mean and c means nothing.

    Args:
        sizes: (m,) numbers of labels, > 0, m >= 3.
        values: (r, m) a metric in [0, 1] at each size.
    Raises:
        ValueError: fewer than three different sizes, or shapes that do not fit.
    Source: Figueroa et al. 2012, Predicting sample size required for classification performance
        (the inverse power law).
    """
    sizes, values = np.asarray(sizes, float), np.atleast_2d(np.asarray(values, float))
    if sizes.ndim != 1 or values.shape[1:] != sizes.shape or len(np.unique(sizes)) < 3:
        raise ValueError(
            f"a curve needs three different sizes and a value at each, got {sizes.shape} and"
            f" {values.shape}"
        )
    r = len(values)
    best: FloatArray = np.full(r, np.inf)
    a: FloatArray = np.empty(r)
    b, c = a, a
    mean = values.mean(1)
    for power in EXPONENTS:
        x = sizes**-power
        away = x - x.mean()
        slope: FloatArray = np.maximum(-(values - mean[:, None]) @ away / (away @ away), 0.0)
        end: FloatArray = mean + slope * x.mean()
        over = end > 1  # the best curve that ends at 1
        slope = np.where(over, np.maximum((1 - values) @ x / (x @ x), 0.0), slope)
        end = np.where(over, 1.0, end)
        loss = ((values - end[:, None] + slope[:, None] * x) ** 2).sum(1)
        better = loss < best - 1e-15
        best = np.where(better, loss, best)
        a, b, c = (np.where(better, new, old) for new, old in ((end, a), (slope, b), (power, c)))
    return Curves(a, b, c)
