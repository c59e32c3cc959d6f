"""How far students agree across seeds, and how often they are right.

``preds`` is (s, n) throughout: one row per seed, one column per test item, integer classes.
Intervals say how far a value would move with other test items and other seeds. Items are
bootstrapped. Seeds are not: a seed drawn twice agrees with itself and would make every set look
stable. Their share of the variance is a jackknife's, added to each replicate.

Stability alone can mislead: students of systematically wrong labels can agree with each other
more than students of gold. Read ``reliable_accuracy`` beside it wherever gold labels exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from loop.campaign.metrics import AGREEMENT, METRICS, ONE_CLASS, Metric, Over, Stability
from loop.measure.metric import (
    item_sums,
    metrics_of,
    one_class,
    replicates,
    seed_spread,
    with_width,
)
from loop.ports import FloatArray, IntArray
from strategies.calibrate import effective_size

ONE_SEED = "one seed cannot disagree with itself"
SKEWED_FRAC = 0.95
ONE_ITEM = "a single test text says nothing"
FEW_ITEMS = 10  # a class on fewer items than this is told with a warning


def churn(preds: ArrayLike) -> float:
    """Share of items on which two different seeds disagree, mean over pairs of seeds.

    Source: Milani Fard et al. 2016, Launch and Iterate: Reducing Prediction Churn.
    """
    checked = _checked(preds)
    sums = item_sums(checked, None, int(checked.max(initial=0)) + 1)
    return float(metrics_of(sums, np.ones((1, checked.shape[1])), checked.shape[0])["churn"][0])


def measure(
    preds: ArrayLike,
    y: ArrayLike | None,
    k: int,
    *,
    weight: ArrayLike | None = None,
    bootstrap: int = 1000,
    over: Over = "items and seeds",
    rng: np.random.Generator,
) -> Stability:
    """Every metric with its interval.

    Args:
        preds: (s, n) classes in 0..k-1.
        y: (n,) gold classes, -1 = unknown (left out of all that needs gold), or None.
        weight: (n,) > 0, inverse inclusion probabilities; None = equal. Their scale is free.
        bootstrap: replicates, drawn over items; 0 = no intervals.
        over: whether the intervals count other seeds in, or hold these fixed.
        rng: draws the replicates.
    Raises:
        ValueError: shapes or classes do not fit.
    Source: Efron & Stein 1981, the jackknife estimate of variance; Owen 2007, the pigeonhole
        bootstrap (why rows that are few must not be redrawn with the columns).
    """
    checked = _checked(preds, k)
    s, n = checked.shape
    gold = _checked_gold(y, n, k)
    base = _checked_weight(weight, n)
    sums = item_sums(checked, gold, k)
    point = metrics_of(sums, base[None, :], s)
    over = over if s > 2 else "items"
    spread: dict[str, FloatArray] = {}
    if n and bootstrap:
        drawn = [metrics_of(sums, r, s) for r in replicates(base, bootstrap, rng)]
        spread = {name: np.concatenate([replicate[name] for replicate in drawn]) for name in point}
        if over != "items":
            without = [item_sums(np.delete(checked, i, 0), gold, k) for i in range(s)]
            of_seeds = seed_spread(
                [partial(metrics_of, part, n_seeds=s - 1) for part in without], base, rng
            )
            noise = rng.standard_t(s - 1, bootstrap)
            for name, values in spread.items():
                spread[name] = values + np.multiply.outer(noise, of_seeds[name])

    same = one_class(checked)
    known = int((gold >= 0).sum()) if gold is not None else 0
    of_items, of_known, of_class = _sizes(base, gold, k)
    rarest = min([size for size in of_class if size > 0], default=0.0)
    share = np.bincount(checked.ravel(), minlength=k) / max(checked.size, 1)
    expected = {
        "alpha_k": 1 - (share**2).sum(),
        "ac1": 1 - (share * (1 - share)).sum() / max(k - 1, 1),
    }

    def metric(name: str, note: str = "") -> Metric:
        if same and name in AGREEMENT:
            return Metric(math.nan, note=ONE_CLASS)
        size = {"macro_f1": rarest}.get(name, of_items if name in AGREEMENT else of_known)
        if (n if name in AGREEMENT else known) == 1:
            return Metric(math.nan, note=ONE_ITEM)
        by_chance = expected.get(name)
        return _metric(name, point[name][0], spread.get(name), note, size, by_chance)

    def per_class(name: str, notes: Sequence[str]) -> tuple[Metric, ...]:
        chosen = spread.get(name)
        by_chance = 2 * share * (1 - share) if name == "alpha_per_class" else [None] * k
        sizes = {"alpha_per_class": [of_items] * k, "precision": _predicted(checked, base, gold, k)}
        return tuple(
            _metric(
                name,
                point[name][0, c],
                None if chosen is None else chosen[:, c],
                notes[c],
                sizes.get(name, of_class)[c],
                by_chance[c],
            )
            for c in range(k)
        )

    metrics: dict[str, Any] = {
        "items": n,
        "seeds": s,
        "known": known,
        "over": over,
        "alpha_k": metric("alpha_k", _alpha_note(checked, k, float(point["ac1"][0]))),
        "ac1": metric("ac1"),
        "p_uc": metric("p_uc"),
        "churn": metric("churn", ONE_SEED if s < 2 else ""),
        "alpha_per_class": per_class("alpha_per_class", _rare_notes(checked, k)),
    }
    if not known or gold is None:
        return Stability(**metrics)
    for name in ("accuracy", "macro_f1", "reliable_accuracy"):
        metrics[name] = metric(name)
    for name in ("accuracy_sd", "macro_f1_sd"):
        metrics[name] = _deviation(float(point[name][0]), s, bool(spread))
    few = [
        f"only {m} test texts of this class" if m < FEW_ITEMS else ""
        for m in np.bincount(gold[gold >= 0], minlength=k)
    ]
    for name in ("recall", "precision", "f1"):
        metrics[name] = per_class(name, few)
    return Stability(**metrics)


def recovered_share(
    value: float, llm: float, gold: float, *, noise: float
) -> tuple[float | None, float]:
    """How much of the gap between LLM labels and gold labels was closed.

    Args:
        value: the metric now.
        llm: the metric of students of LLM labels.
        gold: the metric of students of gold labels.
        noise: >= 0, size below which the gap means nothing, for instance two standard errors.
    Returns:
        ((value - llm) / (gold - llm), gold - llm); the share is None where the gap lies within
        the noise or is undefined.
    """
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    gap = gold - llm
    if not math.isfinite(gap) or not math.isfinite(value) or abs(gap) <= noise:
        return None, gap
    return (value - llm) / gap, gap


def paired_differences(
    preds_a: ArrayLike,
    preds_b: ArrayLike,
    y: ArrayLike | None,
    metrics: Sequence[str],
    *,
    k: int,
    weight: ArrayLike | None = None,
    bootstrap: int = 1000,
    over: Over = "items and seeds",
    rng: np.random.Generator,
) -> dict[str, Metric]:
    """By metric, b minus a on the same items, with 95 % intervals.

    With equally many seeds, the i-th of a and of b count as a pair: they share what they draw. All
    metrics share the draws of items and seeds.

    Args:
        preds_a: (s, n), for instance the last round.
        preds_b: (s', n), this round; p_uc and reliable accuracy need s' = s.
        y: (n,) gold, -1 = unknown; None will do where no metric needs it.
        metrics: of ``METRICS``.
        weight: as in ``measure``.
        over: as in ``measure``; items alone where a side has fewer than three seeds.

    Returns:
        One entry for each metric: nan for one of ``AGREEMENT`` where a side gives every item the
        same class.
    Raises:
        ValueError: unknown metric, gold missing, or shapes that do not fit.
    Source: Efron & Tibshirani 1993, the paired bootstrap: both sides share each draw of items.
    """
    a, b = _checked(preds_a, k), _checked(preds_b, k)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sides need the same items, got {a.shape} and {b.shape}")
    gold = _checked_gold(y, a.shape[1], k)
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"Unknown metric {metric!r}. Available: {', '.join(METRICS)}.")
        if metric in ("p_uc", "reliable_accuracy") and a.shape[0] != b.shape[0]:
            raise ValueError(
                f"{metric} falls with the number of seeds: compare equal numbers, not "
                f"{a.shape[0]} and {b.shape[0]}"
            )
        if gold is None and METRICS[metric].needs_gold:
            raise ValueError(f"{metric} needs gold labels")
    base = _checked_weight(weight, a.shape[1])
    apart = _apart(a, b, gold, k)
    value = apart(base[None, :])
    drawn = [apart(replicate) for replicate in replicates(base, bootstrap, rng)]
    noise: list[tuple[dict[str, FloatArray], FloatArray]] = []
    if base.size and bootstrap and over != "items" and min(len(a), len(b)) > 2:
        noise = [
            (spread, rng.standard_t(df, bootstrap))
            for spread, df in _spreads_of_difference(a, b, gold, k, base, rng)
        ]
    of_items, of_known, of_class = _sizes(base, gold, k)
    differences = {}
    for metric in metrics:
        if metric in AGREEMENT and (one_class(a) or one_class(b)):
            differences[metric] = Metric(math.nan)
            continue
        spread = np.concatenate([of[metric] for of in drawn]) if drawn else np.empty(0)
        for of_seeds, draws in noise:
            spread = spread + float(of_seeds[metric]) * draws
        size = of_items if metric in AGREEMENT else of_known
        if metric == "macro_f1":
            size = min([m for m in of_class if m > 0], default=0.0)
        # alpha is one minus disagreement over what chance would give
        scale = 1 / max(_expected(a), _expected(b), 1e-9) if metric == "alpha_k" else 1.0
        differences[metric] = _difference(metric, float(value[metric][0]), spread, size, scale)
    return differences


def _difference(metric: str, value: float, spread: FloatArray, size: float, scale: float) -> Metric:
    """A difference with the interval of its replicates, which ``with_width`` widens if need be."""
    spread = spread[np.isfinite(spread)]
    if not spread.size:
        return Metric(value)
    low, high = map(float, np.percentile(spread, [2.5, 97.5]))
    low, high = with_width(low, high, size, difference=True, scale=scale)
    most = math.inf if metric == "alpha_k" else 1.0
    return Metric(value, float(max(low, -most)), float(min(high, most)))


Weighed = Callable[[FloatArray], dict[str, FloatArray]]


def _weighed(preds: IntArray, gold: IntArray | None, k: int) -> Weighed:
    """Metrics of weighted items, (b, n) -> (b, ...)."""
    return partial(metrics_of, item_sums(preds, gold, k), n_seeds=len(preds))


def _apart(a: IntArray, b: IntArray, gold: IntArray | None, k: int) -> Weighed:
    """Metrics of b minus those of a."""
    of_a, of_b = _weighed(a, gold, k), _weighed(b, gold, k)

    def difference(weights: FloatArray) -> dict[str, FloatArray]:
        before, after = of_a(weights), of_b(weights)
        return {name: after[name] - before[name] for name in METRICS if name in after}

    return difference


def _spreads_of_difference(
    a: IntArray,
    b: IntArray,
    gold: IntArray | None,
    k: int,
    base: FloatArray,
    rng: np.random.Generator,
) -> list[tuple[dict[str, FloatArray], int]]:
    """Standard deviations over seeds, with their degrees of freedom: of pairs, or of each side."""
    without_a, without_b = ([np.delete(x, i, 0) for i in range(len(x))] for x in (a, b))
    if len(a) == len(b):
        pairs = [_apart(x, y, gold, k) for x, y in zip(without_a, without_b, strict=True)]
        return [(seed_spread(pairs, base, rng), len(a) - 1)]
    sides = [[_weighed(x, gold, k) for x in side] for side in (without_a, without_b)]
    return [(seed_spread(side, base, rng), len(side) - 1) for side in sides]


def metric_replicates(preds: ArrayLike, y: ArrayLike, k: int) -> dict[str, FloatArray]:
    """1,000 bootstrap replicates of each of ``METRICS``, over items; for ``loop.bench``.

    Calls with the same number of items share their draws, so that replicates of several sets of
    predictions may be subtracted or divided one by one.

    Returns:
        Metric -> (1000,) values, nan where a replicate leaves the metric undefined.
    Source: Efron & Tibshirani 1993, the paired bootstrap.
    """
    checked = _checked(preds, k)
    sums = item_sums(checked, _checked_gold(y, checked.shape[1], k), k)
    drawn = [
        metrics_of(sums, weights, checked.shape[0])
        for weights in replicates(np.ones(checked.shape[1]), 1000, np.random.default_rng(0))
    ]
    undefined = AGREEMENT if one_class(checked) else ()
    return {
        name: np.concatenate(
            [
                np.full_like(values[name], np.nan) if name in undefined else values[name]
                for values in drawn
            ]
        )
        for name in METRICS
    }


def _sizes(base: FloatArray, gold: IntArray | None, k: int) -> tuple[float, float, list[float]]:
    """Items, items of known class, and items of each class, counted as if of equal weight."""
    if gold is None:
        return effective_size(base), 0.0, [0.0] * k
    of_class = [effective_size(base[gold == c]) for c in range(k)]
    return effective_size(base), effective_size(base[gold >= 0]), of_class


def _predicted(preds: IntArray, base: FloatArray, gold: IntArray | None, k: int) -> list[float]:
    """Items of known class that some seed gives each class: what precision is a share of."""
    known = np.ones(len(base), dtype=bool) if gold is None else gold >= 0
    return [effective_size(base[known & (preds == c).any(axis=0)]) for c in range(k)]


def _expected(preds: IntArray) -> float:
    """Disagreement of two labels drawn by chance."""
    share = np.bincount(preds.ravel()) / max(preds.size, 1)
    return float(1 - (share**2).sum())


def _metric(
    name: str,
    value: float,
    spread: FloatArray | None,
    note: str = "",
    size: float = 0.0,
    by_chance: float | None = None,
) -> Metric:
    """A value with the interval of its replicates.

    Args:
        size: items that it is a share of.
        by_chance: for an agreement beyond chance, the disagreement that chance would give.
    """
    known = spread[np.isfinite(spread)] if spread is not None else np.empty(0)
    if not known.size or not math.isfinite(value):
        return Metric(float(value), note=note)
    lowest = -math.inf if name.startswith("alpha") or name == "ac1" else 0.0
    low, high = map(float, np.clip(np.percentile(known, [2.5, 97.5]), lowest, 1.0))
    if by_chance is None:
        return Metric(float(value), *with_width(low, high, size), note)
    scale = 1 / max(by_chance, 1e-9)
    rounding = 0.05 / max(size, 1.0)  # chance's own share moves with the weights that are drawn
    low, high = with_width(low, high, size, difference=True, scale=scale, none=rounding)
    return Metric(float(value), low, min(high, 1.0), note)


def _deviation(value: float, n_seeds: int, wanted: bool) -> Metric:
    """A standard deviation over n_seeds seeds; its interval takes the seeds' values for normal."""
    if n_seeds < 2 or not wanted or not math.isfinite(value):
        return Metric(value, note=ONE_SEED if n_seeds < 2 else "")
    if value < 1e-12:  # rounding: equally good seeds say nothing of how far others would vary
        return Metric(0.0)
    from scipy.special import chdtri

    low, high = np.sqrt((n_seeds - 1) / chdtri(n_seeds - 1, [0.025, 0.975])) * value
    return Metric(value, float(low), float(high))


def _alpha_note(preds: IntArray, k: int, ac1: float) -> str:
    if preds.shape[0] < 2:
        return ONE_SEED
    if not preds.size:
        return "there are no test items"
    top = float(np.bincount(preds.ravel(), minlength=k).max()) / preds.size
    if top >= SKEWED_FRAC:
        return (
            f"{top:.0%} of all predictions are one class, so a few deviations pull alpha down; "
            f"Gwet's AC1, which that does not pull down, is {100 * ac1:.1f}; read churn and the "
            "classes' own alpha beside them"
        )
    return ""


def _rare_notes(preds: IntArray, k: int) -> list[str]:
    """By class, why its alpha says little, or nothing."""
    s, n = preds.shape
    notes = []
    for count in np.bincount(preds.ravel(), minlength=k) / s:
        if not count:
            notes.append("no seed predicts this class")
        elif count < FEW_ITEMS and n > FEW_ITEMS:
            notes.append(f"seeds predict it for {count:.1f} of {n} texts, so its alpha says little")
        else:
            notes.append("")
    return notes


# what comes in


def _checked(preds: ArrayLike, k: int | None = None) -> IntArray:
    classes = np.asarray(preds)
    if classes.ndim != 2 or classes.shape[0] < 1:
        raise ValueError(f"preds must be (s, n), seeds by items, got shape {classes.shape}")
    if classes.size and not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"preds must be integer classes, got {classes.dtype}")
    if classes.size and (classes.min() < 0 or (k is not None and classes.max() >= k)):
        raise ValueError(
            f"preds must lie in 0..{k - 1 if k is not None else 'k-1'}, "
            f"got {classes.min()}..{classes.max()}"
        )
    return classes.astype(np.int64)


def _checked_gold(y: ArrayLike | None, n: int, k: int) -> IntArray | None:
    if y is None:
        return None
    gold = np.asarray(y)
    if gold.shape != (n,):
        raise ValueError(f"y must have shape ({n},) like the items of preds, got {gold.shape}")
    if gold.size and (gold.min() < -1 or gold.max() >= k):
        raise ValueError(f"y must lie in -1..{k - 1}")
    return gold.astype(np.int64)


def _checked_weight(weight: ArrayLike | None, n: int) -> FloatArray:
    if weight is None:
        return np.ones(n)
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"weight must have shape ({n},) like the items, got {weights.shape}")
    if weights.size and not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("weight must be finite and > 0")
    return weights / weights.mean() if weights.size else weights
