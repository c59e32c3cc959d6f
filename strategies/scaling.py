"""Calibration learned from gold: a slope and one bias per class, and how to judge it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.pool import FloatArray, IntArray

TINY = 1e-6  # probabilities below this count as this: their logarithm says no more
SLOPE_PENALTY = 1.0  # of log(slope) squared, in gold labels: draws towards no change
BIAS_PENALTY = 0.5


@dataclass(frozen=True)
class Scaling:
    """``softmax(slope * log p + bias)``: temperature 1/slope, and what each class lacks.

    Attributes:
        slope: > 0; below 1 for an LLM that is too sure of itself.
        bias: (k,).
    """

    slope: float
    bias: FloatArray

    def apply(self, probs: FloatArray) -> FloatArray:
        """(n, k) probabilities, scaled; rows sum to 1."""
        return _softmax(self.slope * np.log(np.maximum(probs, TINY)) + self.bias)


def fit_scaling(probs: FloatArray, gold: IntArray) -> Scaling:
    """Learns slope and biases by penalised maximum likelihood.

    Args:
        probs: (g, k) probabilities of the gold items, rows sum to 1.
        gold: (g,) their classes.

    Returns:
        The scaling; without items, the one that changes nothing.

    Raises:
        ValueError: shapes that do not fit.
    Source: Guo et al. 2017, temperature and vector scaling, with one slope for all classes: few
        gold labels carry no more.
    """
    if probs.ndim != 2 or gold.shape != (len(probs),):
        raise ValueError(
            f"probs (g, k) and gold (g,) do not fit together: {probs.shape} and {gold.shape}"
        )
    from scipy.optimize import minimize

    k = probs.shape[1]
    logs = np.log(np.maximum(probs, TINY))
    one_hot = np.eye(k)[gold]

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        slope, bias = float(np.exp(at[0])), at[1:]
        p = _softmax(slope * logs + bias)
        error = p - one_hot
        value = -float(np.log(np.maximum((p * one_hot).sum(axis=1), 1e-300)).sum())
        value += SLOPE_PENALTY * float(at[0]) ** 2 + BIAS_PENALTY * float(bias @ bias)
        by_slope = float((error * logs).sum()) * slope + 2.0 * SLOPE_PENALTY * float(at[0])
        by_bias = error.sum(axis=0) + 2.0 * BIAS_PENALTY * bias
        return value, np.concatenate([[by_slope], by_bias])

    limits = [(-4.0, 4.0), *[(-8.0, 8.0)] * k]
    found = minimize(loss, np.zeros(k + 1), jac=True, method="L-BFGS-B", bounds=limits)
    return Scaling(float(np.exp(found.x[0])), np.asarray(found.x[1:], dtype=np.float64))


def scale_with_gold(
    probs: FloatArray, gold: IntArray, *, rng: np.random.Generator, folds: int = 5
) -> FloatArray:
    """Probabilities scaled by gold; a gold item's own answer never scales it.

    Args:
        probs: (n, k), rows sum to 1.
        gold: (n,) class, -1 where unknown.
        rng: deals the gold items to folds.
        folds: number of fits that each leave a part of the gold items out.

    Returns:
        (n, k); rows sum to 1.

    Raises:
        ValueError: fewer gold items than folds.
    """
    rows = rng.permutation(np.flatnonzero(gold >= 0))
    if len(rows) < folds:
        raise ValueError(f"{len(rows)} gold items cannot be dealt to {folds} folds")
    out = fit_scaling(probs[rows], gold[rows]).apply(probs)
    for part in np.array_split(rows, folds):
        rest = np.setdiff1d(rows, part)
        out[part] = fit_scaling(probs[rest], gold[rest]).apply(probs[part])
    return out


@dataclass(frozen=True)
class Bin:
    """Items of like confidence.

    Attributes:
        confidence: mean probability of the given label.
        accuracy: share of right labels.
        n: items.
    """

    confidence: float
    accuracy: float
    n: int


def reliability(probs: FloatArray, gold: IntArray, *, bins: int = 10) -> list[Bin]:
    """Confidence against accuracy, in bins of equally many items, least confident first.

    Args:
        probs: (g, k), rows sum to 1.
        gold: (g,) classes.
        bins: as many as there are items for, 15 each, but two at least.

    Returns:
        The bins; none without items.
    """
    if not len(gold):
        return []
    confidence = probs.max(axis=1)
    right = probs.argmax(axis=1) == gold
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(2, min(bins, len(gold) // 15)))
    return [
        Bin(float(confidence[part].mean()), float(right[part].mean()), len(part))
        for part in parts
        if len(part)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy.

    Source: Naeini et al. 2015, here with bins of equal size (Nguyen and O'Connor 2015).
    """
    total = sum(b.n for b in bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / total if total else 0.0


def harm_p_value(before: FloatArray, after: FloatArray, gold: IntArray) -> float:
    """P-value of "after is not less accurate than before", paired over items, one-sided.

    Args:
        before: (g, k) probabilities.
        after: (g, k) probabilities of the same items.
        gold: (g,) classes.

    Returns:
        (0, 1]; small where ``after`` spoils more labels than it mends, beyond chance.
    Source: McNemar 1947, exact binomial form.
    """
    from scipy.stats import binomtest

    was, now = before.argmax(axis=1) == gold, after.argmax(axis=1) == gold
    spoilt, mended = int((was & ~now).sum()), int((now & ~was).sum())
    if spoilt + mended == 0:
        return 1.0
    return float(binomtest(spoilt, spoilt + mended, 0.5, alternative="greater").pvalue)


def brier(probs: FloatArray, gold: IntArray) -> FloatArray:
    """(g,) squared distance of each item's probabilities from its class, in [0, 2].

    Source: Brier 1950.
    """
    one_hot = np.eye(probs.shape[1])[gold]
    return np.asarray(np.square(probs - one_hot).sum(axis=1), dtype=np.float64)


def brier_harm_p_value(before: FloatArray, after: FloatArray, gold: IntArray) -> float:
    """P-value of "after has no larger Brier score than before", paired t-test, one-sided.

    Args:
        before: (g, k) probabilities.
        after: (g, k) probabilities of the same items.
        gold: (g,) classes; under 2 tell nothing.

    Returns:
        [0, 1]; small where ``after`` fits worse beyond chance.
    """
    from scipy.stats import t

    worse = brier(after, gold) - brier(before, gold)
    if len(worse) < 2:
        return 1.0
    spread = float(worse.std(ddof=1))
    if spread == 0.0:
        return 0.0 if worse.mean() > 0 else 1.0
    return float(t.sf(worse.mean() * np.sqrt(len(worse)) / spread, len(worse) - 1))


def _softmax(logits: FloatArray) -> FloatArray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)
