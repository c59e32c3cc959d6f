"""Calibration: of the LLM's class bias without labels, by gold, and of a model by a temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.pool import BoolArray, FloatArray, IntArray, Pool, softmax

FLOOR = 1e-6
PSEUDO_ROWS = 8.0  # rows without bias in each mean: few items do not erase what they say

TINY = 1e-6  # probabilities below this count as this: their logarithm says no more
SLOPE_PENALTY = 1.0  # of log(slope) squared, in gold labels: draws towards no change
BIAS_PENALTY = 0.5

TEMPERATURE_PENALTY = 5.0  # of its logarithm squared, in gold labels: few labels prove little
TEMPERATURE_LIMITS = (-3.0, 3.0)  # of its logarithm

FOLDS = 5  # fits that each leave a part of the gold items out
BINS = 10


def batch_calibrate(probs: FloatArray, class_prior: FloatArray | None = None) -> FloatArray:
    """Class probabilities with the prompt's own preference for some classes divided out.

    ``p'`` is proportional to ``p / mean over the batch of p * class_prior``, per prompt variant.
    A variant that only some items were asked (the doubtful ones, in a cascade) has another class
    mix than the whole batch: there the prior is the mean that the most complete variant,
    calibrated, gives to those same items.

    Args:
        probs: (n, m, k) or (n, k), rows sum to 1; a row of NaN was not taken and stays NaN.
        class_prior: (k,) expected class shares of the batch, or None for a flat mix.

    Returns:
        Same shape as ``probs``; rows sum to 1. A class that never gets any mass keeps none.

    Raises:
        ValueError: wrong shapes, or a prior that is negative or all zero.
    Source: Zhou et al. 2024, Batch Calibration (ICLR).
    """
    if probs.ndim not in (2, 3):
        raise ValueError(f"probs must be (n, m, k) or (n, k), not {probs.shape}")
    cube = probs[:, None, :] if probs.ndim == 2 else probs
    n, m, k = cube.shape
    prior = _shares(class_prior, k)
    taken: BoolArray = np.asarray(np.isfinite(cube).all(axis=2))
    out = np.full((n, m, k), np.nan)
    # The most complete variant first; the others lean on it where they lack rows.
    order = np.argsort(-taken.sum(axis=0), kind="stable")
    answered = int(taken.any(axis=1).sum())
    main = int(order[0]) if m else 0
    for v in order:
        rows: BoolArray = taken[:, v]
        if not rows.any():
            continue
        target = prior
        shared = rows & taken[:, main]
        if v != main and rows.sum() < answered and shared.any():
            target = np.maximum(out[shared, main].mean(axis=0), FLOOR)
            target = target / target.sum()
        out[rows, v] = _divide_out(cube[rows, v], target)
    return out[:, 0] if probs.ndim == 2 else out


def calibrated_votes(pool: Pool) -> FloatArray:
    """(n, m, k) the pool's votes after batch calibration; uniform where the LLM gave no answer.

    Items without an answer have no part in the means: they would draw them towards a flat mix.
    """
    if pool.answered is None:
        return batch_calibrate(pool.probs, pool.class_prior)
    asked = np.where(pool.answered[:, None, None], pool.probs, np.nan)
    out = batch_calibrate(asked, pool.class_prior)
    out[~pool.answered, 0] = 1.0 / pool.k
    return out


def contextual_calibrate(
    probs: FloatArray, content_free: FloatArray, class_prior: FloatArray | None = None
) -> FloatArray:
    """Class probabilities with what a prompt says of a text without content divided out.

    ``p'`` is proportional to ``p / p(content-free) * class_prior``, per prompt variant. No batch is
    needed, but which content-free texts are taken matters, and with them it can harm.

    Args:
        probs: (n, m, k), rows sum to 1; a row of NaN was not taken and stays NaN.
        content_free: (m, k) the mean answer to content-free texts, rows sum to 1.
        class_prior: (k,) expected class shares, or None for a flat mix.

    Returns:
        (n, m, k); rows sum to 1.

    Raises:
        ValueError: wrong shapes, or a prior that is negative or all zero.
    Source: Zhao et al. 2021, Calibrate Before Use (ICML).
    """
    if probs.ndim != 3 or content_free.shape != probs.shape[1:]:
        raise ValueError(
            f"probs (n, m, k) and content_free (m, k) do not fit: {probs.shape} and"
            f" {content_free.shape}"
        )
    prior = _shares(class_prior, probs.shape[2])
    scaled = probs * (prior / np.maximum(content_free, FLOOR))
    total = scaled.sum(axis=2, keepdims=True)
    return np.asarray(scaled / total, dtype=np.float64)


def prior_from_gold(
    gold: IntArray,
    inclusion_prob: FloatArray | None,
    k: int,
    *,
    pseudo: float = 1.0,
    towards: FloatArray | None = None,
) -> FloatArray:
    """Class shares of the pool from the gold labels so far.

    Args:
        gold: (n,) class, -1 where unknown.
        inclusion_prob: (n,) probability with which each gold item was chosen; read only where
            gold is known. None weighs all gold alike, which is biased if suspects were chosen.
        k: number of classes.
        pseudo: gold labels per class that are assumed beforehand.
        towards: (k,) shares of those assumed labels, or None for a flat mix.

    Returns:
        (k,) shares > 0 that sum to 1 (each > 0 while ``pseudo`` and ``towards`` are).

    Raises:
        ValueError: shapes differ, or an inclusion probability outside (0, 1].
    Source: Hajek 1971 (weighted shares); Kish 1965 (effective size, so that heavy weights do not
        outvote the smoothing).
    """
    known = gold >= 0
    weight = inverse_probability(known, inclusion_prob)
    assumed = _shares(towards, k) * pseudo * k
    if not known.any():
        assumed = assumed if pseudo > 0 else _shares(towards, k)
        return np.asarray(assumed / assumed.sum(), dtype=np.float64)
    share = np.bincount(gold[known], weights=weight, minlength=k) / weight.sum()
    counts = share * effective_size(weight) + assumed
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def inverse_probability(known: BoolArray, inclusion_prob: FloatArray | None) -> FloatArray:
    """Weights 1/pi of the known items.

    Args:
        known: (n,) bool, the items that have a weight.
        inclusion_prob: (n,) pi, or None for equal weights.

    Returns:
        (number of known,) weights >= 1.

    Raises:
        ValueError: shapes differ, or an inclusion probability of a known item outside (0, 1].
    """
    if inclusion_prob is None:
        return np.ones(int(known.sum()))
    if inclusion_prob.shape != known.shape:
        raise ValueError(f"inclusion_prob must be {known.shape}, not {inclusion_prob.shape}")
    pi = inclusion_prob[known]
    if not ((pi > 0) & (pi <= 1 + 1e-9)).all():
        raise ValueError("inclusion_prob of every gold item must be in (0, 1]")
    return np.asarray(1.0 / np.minimum(pi, 1.0), dtype=np.float64)


def effective_size(weight: FloatArray) -> float:
    """Number of equally weighted items that carry as much as these; 0 for none (Kish 1965)."""
    total = float(np.square(weight).sum())
    return float(weight.sum()) ** 2 / total if total > 0 else 0.0


def _divide_out(probs: FloatArray, prior: FloatArray) -> FloatArray:
    mean = (probs.sum(axis=0) + PSEUDO_ROWS * prior) / (len(probs) + PSEUDO_ROWS)
    # Where the mean is zero every probability is zero too: 0/0 is 0 here.
    factor = np.divide(prior, mean, out=np.zeros_like(prior), where=mean > 0)
    scaled = probs * factor
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float64)


def _shares(class_prior: FloatArray | None, k: int) -> FloatArray:
    if class_prior is None:
        return np.full(k, 1.0 / k)
    prior = np.asarray(class_prior, dtype=np.float64)
    if prior.shape != (k,):
        raise ValueError(f"class shares must be ({k},), not {prior.shape}")
    if not np.isfinite(prior).all() or (prior < 0).any() or prior.sum() <= 0:
        raise ValueError(f"class shares must be >= 0 with a positive sum, not {prior}")
    # A class that the prior rules out could hold all mass of a row: keep a trace of it.
    prior = np.maximum(prior / prior.sum(), FLOOR)
    return np.asarray(prior / prior.sum(), dtype=np.float64)


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
        return softmax(self.slope * np.log(np.maximum(probs, TINY)) + self.bias)


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
    _check_gold(probs, gold)
    from scipy.optimize import minimize

    k = probs.shape[1]
    logs = np.log(np.maximum(probs, TINY))
    one_hot = np.eye(k)[gold]

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        slope, bias = float(np.exp(at[0])), at[1:]
        p = softmax(slope * logs + bias)
        error = p - one_hot
        value = -float(np.log(np.maximum((p * one_hot).sum(axis=1), 1e-300)).sum())
        value += SLOPE_PENALTY * float(at[0]) ** 2 + BIAS_PENALTY * float(bias @ bias)
        by_slope = float((error * logs).sum()) * slope + 2.0 * SLOPE_PENALTY * float(at[0])
        by_bias = error.sum(axis=0) + 2.0 * BIAS_PENALTY * bias
        return value, np.concatenate([[by_slope], by_bias])

    limits = [(-4.0, 4.0), *[(-8.0, 8.0)] * k]
    fit = minimize(loss, np.zeros(k + 1), jac=True, method="L-BFGS-B", bounds=limits)
    return Scaling(float(np.exp(fit.x[0])), np.asarray(fit.x[1:], dtype=np.float64))


def scale_with_gold(probs: FloatArray, gold: IntArray, *, rng: np.random.Generator) -> FloatArray:
    """Probabilities scaled by gold; a gold item's own answer never scales it.

    Args:
        probs: (n, k), rows sum to 1.
        gold: (n,) class, -1 where unknown.
        rng: deals the gold items to folds.

    Returns:
        (n, k); rows sum to 1.

    Raises:
        ValueError: fewer gold items than ``FOLDS``.
    """
    rows = rng.permutation(np.flatnonzero(gold >= 0))
    if len(rows) < FOLDS:
        raise ValueError(f"{len(rows)} gold items cannot be dealt to {FOLDS} folds")
    out = fit_scaling(probs[rows], gold[rows]).apply(probs)
    for part in np.array_split(rows, FOLDS):
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


def reliability(probs: FloatArray, gold: IntArray) -> list[Bin]:
    """Confidence against accuracy, in bins of equally many items, least confident first.

    Args:
        probs: (g, k), rows sum to 1.
        gold: (g,) classes.

    Returns:
        As many bins as there are items for, 15 each, but two at least and ``BINS`` at most; none
        without items.
    """
    if not len(gold):
        return []
    confidence = probs.max(axis=1)
    right = probs.argmax(axis=1) == gold
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(2, min(BINS, len(gold) // 15)))
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
    from scipy.special import bdtrc

    was, now = before.argmax(axis=1) == gold, after.argmax(axis=1) == gold
    spoilt, mended = int((was & ~now).sum()), int((now & ~was).sum())
    if spoilt + mended == 0:
        return 1.0
    return float(bdtrc(spoilt - 1, spoilt + mended, 0.5))


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
    from scipy.special import stdtr

    worse = brier(after, gold) - brier(before, gold)
    if len(worse) < 2:
        return 1.0
    spread = float(worse.std(ddof=1))
    if spread == 0.0:
        return 0.0 if worse.mean() > 0 else 1.0
    return float(stdtr(len(worse) - 1, -worse.mean() * np.sqrt(len(worse)) / spread))


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
    _check_gold(probs, gold)
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probs, float(np.exp(log_temperature)))
        return float(log_losses(scaled, gold).sum()) + TEMPERATURE_PENALTY * log_temperature**2

    limits, exactly = TEMPERATURE_LIMITS, {"xatol": 1e-6}
    fit = minimize_scalar(loss, bounds=limits, method="bounded", options=exactly)
    return float(np.exp(fit.x))


def with_temperature(probs: FloatArray, temperature: float) -> FloatArray:
    """(n, k) ``softmax(log p / temperature)``; the likeliest class stays the same."""
    return softmax(np.log(np.maximum(probs, TINY)) / temperature)


def log_losses(probs: FloatArray, gold: IntArray) -> FloatArray:
    """(g,) minus the logarithm of the probability of the right class."""
    own = probs[np.arange(len(gold)), gold]
    return np.asarray(-np.log(np.maximum(own, TINY)), dtype=np.float64)


def _check_gold(probs: FloatArray, gold: IntArray) -> None:
    if probs.ndim != 2 or gold.shape != (len(probs),):
        raise ValueError(
            f"probs (g, k) and gold (g,) do not fit together: {probs.shape} and {gold.shape}"
        )
