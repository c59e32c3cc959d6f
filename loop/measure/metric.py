"""What each test item adds to a metric, and metrics of weighted items.

Every metric of ``loop.measure.stability`` is a function of sums over test items, so that a
bootstrap replicate is one row of item weights and 1,000 replicates are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from loop.campaign.metrics import Metric
from loop.ports import FloatArray, IntArray
from strategies.estimate import share_interval, unseen

_CHUNK_CELLS = 8_000_000  # bootstrap weights held at once (64 MB), whatever n is


def one_class(preds: IntArray) -> bool:
    """Whether every seed gives every item the same class, so that none could disagree."""
    return bool(preds.size) and bool((preds == preds.flat[0]).all())


def item_sums(preds: IntArray, y: IntArray | None, k: int) -> dict[str, FloatArray]:
    """What each item adds to the sums that the metrics are made of; rows are items."""
    s, n = preds.shape
    cols = np.arange(n)
    counts = np.zeros((n, k))  # how many seeds chose each class
    for row in preds:
        counts[cols, row] += 1
    pairs = max(s * (s - 1), 1)
    sums = {
        "one": np.ones(n),
        "counts": counts,
        "apart": (s * s - (counts**2).sum(1)) / pairs,
        "apart_class": 2 * counts * (s - counts) / pairs,
        "unchanged": (counts.max(1, initial=0) == s).astype(float),
    }
    if y is None:
        return sums
    known = (y >= 0).astype(float)
    hit = ((preds == y) * known).T  # (n, s)
    truth = np.zeros((n, k))
    truth[cols[y >= 0], y[y >= 0]] = 1
    chosen = np.zeros((n, s, k))
    chosen[cols[:, None], np.arange(s)[None, :], preds.T] = known[:, None]
    return sums | {
        "known": known,
        "hit": hit,
        "all_hit": hit.all(1).astype(float),
        "truth": truth,
        "chosen": chosen.reshape(n, s * k),
        "hit_class": (hit[:, :, None] * truth[:, None, :]).reshape(n, s * k),
    }


def metrics_of(
    sums: dict[str, FloatArray], weights: FloatArray, n_seeds: int
) -> dict[str, FloatArray]:
    """Metrics of b weightings of the items: (b,), or (b, k) where there is one per class."""
    b = weights.shape[0]
    total = {name: weights @ per_item for name, per_item in sums.items()}
    n = total["one"]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = total["apart"] / n if n_seeds > 1 else np.full(b, np.nan)
        share = total["counts"] / (n * n_seeds)[:, None]
        # expected disagreement of two of the n*n_seeds labels drawn without replacement
        unbias = (n * n_seeds) / (n * n_seeds - 1)
        expected = (1 - (share**2).sum(1)) * unbias
        expected_class = 2 * share * (1 - share) * unbias[:, None]
        apart_class = (
            total["apart_class"] / n[:, None] if n_seeds > 1 else np.full(share.shape, np.nan)
        )
        metrics = {
            "alpha_k": _alpha(apart, expected),
            "alpha_per_class": _alpha(apart_class, expected_class),
            "ac1": _alpha(apart, 1 - (share * (1 - share)).sum(1) / max(share.shape[1] - 1, 1)),
            "p_uc": total["unchanged"] / n,
            "churn": apart,
        }
        if "known" not in total:
            return metrics
        known = total["known"]
        k = share.shape[1]
        right = total["hit_class"].reshape(b, n_seeds, k)
        chosen = total["chosen"].reshape(b, n_seeds, k)
        truth = np.broadcast_to(total["truth"][:, None, :], right.shape)
        accuracy = total["hit"] / known[:, None]
        # a class that is neither true nor predicted has no F1; scikit-learn leaves it out too
        f1 = np.where(chosen + truth > 0, 2 * right / (chosen + truth), np.nan)
        macro = _nanmean(f1, 2)
        return metrics | {
            "accuracy": accuracy.mean(1),
            "accuracy_sd": _sd(accuracy),
            "macro_f1": macro.mean(1),
            "macro_f1_sd": _sd(macro),
            "reliable_accuracy": total["all_hit"] / known,
            "recall": (right / truth).mean(1),
            "precision": _nanmean(np.where(chosen > 0, right / chosen, np.nan), 1),
            "f1": _nanmean(f1, 1),
        }


EVERY_SEED = ("p_uc", "reliable_accuracy")
"""Metrics of all seeds together. Without a seed they are other quantities, so that their jackknife
is left as it is: corrected, it came out too short in simulation."""
_REDRAWN = 100


def seed_spread(
    without: Sequence[Callable[[FloatArray], dict[str, FloatArray]]],
    base: FloatArray,
    rng: np.random.Generator,
) -> dict[str, FloatArray]:
    """Standard deviation over seeds of each metric, by leaving out one seed at a time.

    The jackknife also sees the luck of which items there are, which the bootstrap over items has
    counted already. Redrawing the items adds that luck once more, so that what it adds is what is
    to be taken off.

    Args:
        without: metrics of weighted items, (b, n) -> (b, ...), without seed 0, 1, ….
        base: (n,) weights of the items.
        rng: redraws the items.
    Returns:
        () or (k,) a metric; nan where it is undefined without some seed.
    Source: Efron & Stein 1981.
    """
    s = len(without)
    once = [part(base[None, :]) for part in without]
    again = [[part(w) for part in without] for w in replicates(base, _REDRAWN, rng)]

    def variance(of_seeds: Sequence[dict[str, FloatArray]], name: str) -> FloatArray:
        values = np.stack([of_one[name] for of_one in of_seeds])
        return np.asarray((s - 1) / s * ((values - values.mean(0)) ** 2).sum(0))

    spread = {}
    for name in once[0]:
        first = variance(once, name)[0]
        redrawn = _nanmean(np.concatenate([variance(redraw, name) for redraw in again]), 0)
        corrected = np.where(np.isfinite(redrawn), np.maximum(2 * first - redrawn, 0.0), first)
        spread[name] = np.sqrt(first if name in EVERY_SEED else corrected)
    return spread


def _alpha(observed: FloatArray, expected: FloatArray) -> FloatArray:
    return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def _sd(per_seed: FloatArray) -> FloatArray:
    if per_seed.shape[1] < 2:
        return np.full(per_seed.shape[0], np.nan)
    return np.asarray(per_seed.std(1, ddof=1))


def _nanmean(values: FloatArray, axis: int) -> FloatArray:
    """Mean of what is defined; nan, without a warning, where nothing is."""
    there = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(there, values, 0).sum(axis) / there.sum(axis))


def replicates(base: FloatArray, bootstrap: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Bootstrap weights, (b, n) at a time."""
    n = base.shape[0]
    if not n:
        return
    step = max(1, _CHUNK_CELLS // n)
    for start in range(0, bootstrap, step):
        rows = min(step, bootstrap - start)
        drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) * base


def with_width(
    low: float,
    high: float,
    n: float,
    *,
    difference: bool = False,
    scale: float = 1.0,
    none: float = 1e-12,
) -> tuple[float, float]:
    """The ends of an interval; where replicates were all equal, those that n items leave open.

    A bootstrap of items that all agree has no width, which is no certainty: items that were not
    drawn may differ.

    Args:
        low: lower end, as the replicates say.
        n: items that the value is a share of; nan ends come back for fewer than two.
        difference: of two shares of the same items, in [-1, 1]; else a share, in [0, 1].
        scale: how much the value changes at most per unit of the share of items that differ, for
            differences.
        none: a width up to this is rounding.
    """
    if high - low > none or not math.isfinite(low):
        return low, high
    if n < 2:
        return math.nan, math.nan
    if difference:
        open_ = scale * unseen(n)
        return low - open_, high + open_
    return share_interval(min(max(low, 0.0), 1.0), n)


def times_100(metric: Metric, unit: str = "") -> str:
    """``76.6 (73.0 to 80.5)``; the unit follows the value."""
    low, high = f"{100 * metric.low:.1f}", f"{100 * metric.high:.1f}"
    return f"{100 * metric.value:.1f}{unit} ({low} to {high})"


def points(difference: Metric) -> str:
    """``+1.2 points (-0.5 to +3.0)``."""
    low, high = f"{100 * difference.low:+.1f}", f"{100 * difference.high:+.1f}"
    return f"{100 * difference.value:+.1f} points ({low} to {high})"
