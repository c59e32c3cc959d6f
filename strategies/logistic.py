"""Penalised logistic regression by Newton's method.

For a few thousand rows and a few dozen columns it is 1.5 to 10 times as fast as scikit-learn's
solvers, whose import alone takes seconds.
"""

from __future__ import annotations

import numpy as np

from strategies.pool import FloatArray

MAX_STEPS = 50


def fit_logistic(
    x: FloatArray, y: FloatArray, penalty: float, *, weight: FloatArray | None = None
) -> FloatArray:
    """Coefficients of least weighted loss plus half the penalty times their squares.

    Args:
        x: (n, f).
        y: (n,) in {0, 1}, both present.
        penalty: > 0; the intercept goes free.
        weight: (n,) >= 0, or None for 1 each.

    Returns:
        (f + 1,), the intercept last.
    """
    n, f = x.shape
    x = np.hstack([x, np.ones((n, 1))])
    w = np.ones(n) if weight is None else weight
    held: FloatArray = np.append(np.full(f, penalty), 0.0)
    beta: FloatArray = np.zeros(f + 1)
    rate = float((w * y).sum() / w.sum())
    beta[-1] = np.log(rate / (1.0 - rate))
    loss = _loss(beta, x, y, w, held)
    for _ in range(MAX_STEPS):
        p = sigmoid(x @ beta)
        gradient = x.T @ (w * (p - y)) + held * beta
        curvature = (x * (w * p * (1.0 - p))[:, None]).T @ x + np.diag(held)
        move = np.linalg.solve(curvature, gradient)
        scale = 1.0
        # Halving keeps Newton's method from leaping past the minimum.
        while _loss(beta - scale * move, x, y, w, held) > loss and scale > 1e-4:
            scale /= 2.0
        beta = beta - scale * move
        loss = _loss(beta, x, y, w, held)
        if np.abs(scale * move).max() < 1e-9:
            break
    return beta


def logistic_probs(beta: FloatArray, x: FloatArray) -> FloatArray:
    """(n,) P(1) of the (n, f) rows of ``x``."""
    return sigmoid(x @ beta[:-1] + beta[-1])


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)


def _loss(
    beta: FloatArray, x: FloatArray, y: FloatArray, weight: FloatArray, held: FloatArray
) -> float:
    logits = x @ beta
    loss = float((weight * (np.logaddexp(0.0, logits) - y * logits)).sum())
    return loss + 0.5 * float((held * beta**2).sum())
