"""Calibration of a classifier by one number."""

from __future__ import annotations

import numpy as np

from strategies.pool import FloatArray, IntArray
from strategies.scaling import TINY

PENALTY = 5.0  # of log(temperature) squared, in gold labels: some right answers are no proof
LIMITS = (-3.0, 3.0)  # of log temperature


def fit_temperature(probs: FloatArray, gold: IntArray) -> float:
    """The temperature that makes probabilities fit known labels best.

    It is drawn towards 1, so that a handful of labels, all right, does not make a classifier sure
    of everything, and without any it is 1.

    Args:
        probs: (g, k), rows sum to 1.
        gold: (g,) classes.

    Returns:
        Temperature > 0; above 1 for a classifier that is too sure of itself.

    Raises:
        ValueError: shapes that do not fit.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    if probs.ndim != 2 or gold.shape != (len(probs),):
        raise ValueError(
            f"probs (g, k) and gold (g,) do not fit together: {probs.shape} and {gold.shape}"
        )
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probs, float(np.exp(log_temperature)))
        return float(log_losses(scaled, gold).sum()) + PENALTY * log_temperature**2

    found = minimize_scalar(loss, bounds=LIMITS, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def with_temperature(probs: FloatArray, temperature: float) -> FloatArray:
    """(n, k) ``softmax(log p / temperature)``; the likeliest class stays the same."""
    logits = np.log(np.maximum(probs, TINY)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def log_losses(probs: FloatArray, gold: IntArray) -> FloatArray:
    """(g,) minus the logarithm of the probability of the right class."""
    own = probs[np.arange(len(gold)), gold]
    return np.asarray(-np.log(np.maximum(own, TINY)), dtype=np.float64)
