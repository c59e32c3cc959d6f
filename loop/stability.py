"""How far students agree across seeds, and how often they are right.

Every metric is a function of sums over test items, so that a bootstrap replicate is one row of
item weights and 1,000 replicates are a few matrix products. ``preds`` is (s, n) throughout: one
row per seed, one column per test item, integer classes.

Stability alone can mislead: students of systematically wrong labels can agree with each other
more than students of gold. Read ``reliable_accuracy`` beside it wherever gold labels exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

METRICS = ("alpha_k", "p_uc", "churn", "accuracy", "macro_f1", "reliable_accuracy")
"""What ``paired_difference`` compares."""

ONE_CLASS = "every seed gives every item the same class, so agreement beyond chance is undefined"
ONE_SEED = "one seed cannot disagree with itself"
SKEWED_FRAC = 0.95
_CHUNK_CELLS = 8_000_000  # bootstrap weights held at once (64 MB), whatever n is


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % bootstrap interval over items.

    Attributes:
        value: nan where the metric is undefined; ``note`` says why.
        low: nan where no bootstrap was asked for.
        high: likewise.
        note: why the value is undefined, or what to mind when reading it.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    def to_json(self) -> dict[str, float | str | None]:
        """Numbers by name; nan becomes None, which JSON knows."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        found: dict[str, float | str | None] = {
            name: None if math.isnan(x) else x for name, x in numbers.items()
        }
        return found | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Stability:
    """Every metric of one trained set of seeds.

    Attributes:
        items: n test items.
        known: how many of them have a gold label.
        accuracy: mean over seeds; its companion ``accuracy_sd`` is the sample standard deviation.
        recall: one Metric per class, mean over seeds; None without gold, like all that needs it.
    """

    items: int
    seeds: int
    known: int
    alpha_k: Metric
    p_uc: Metric
    churn: Metric
    alpha_per_class: tuple[Metric, ...]
    accuracy: Metric | None = None
    accuracy_sd: Metric | None = None
    macro_f1: Metric | None = None
    macro_f1_sd: Metric | None = None
    reliable_accuracy: Metric | None = None
    recall: tuple[Metric, ...] | None = None
    precision: tuple[Metric, ...] | None = None
    f1: tuple[Metric, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and None, by field name."""
        out: dict[str, Any] = {}
        for field in fields(self):
            held = getattr(self, field.name)
            if isinstance(held, tuple):
                out[field.name] = [metric.to_json() for metric in held]
            else:
                out[field.name] = held.to_json() if isinstance(held, Metric) else held
        return out


@dataclass(frozen=True)
class Difference:
    """Metric of b minus metric of a on the same items.

    Attributes:
        low: lower end of the 95 % paired bootstrap interval.
        prob_above_zero: share of replicates in which b is above a.
    """

    value: float
    low: float
    high: float
    prob_above_zero: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def alpha_k(preds: ArrayLike) -> float:
    """Krippendorff's alpha across seeds, nominal, in closed form.

    Returns:
        At most 1; nan with fewer than two seeds, no items, or one class everywhere.
    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
    """
    return _single("alpha_k", preds)


def p_uc(preds: ArrayLike) -> float:
    """Share of items whose prediction is unchanged over all seeds, in [0, 1].

    It falls as seeds are added: compare only equal numbers of seeds.
    """
    return _single("p_uc", preds)


def churn(preds: ArrayLike) -> float:
    """Share of items on which two different seeds disagree, mean over pairs of seeds.

    Source: Milani Fard et al. 2016, Launch and Iterate: Reducing Prediction Churn.
    """
    return _single("churn", preds)


def flip_prob(preds: ArrayLike) -> FloatArray:
    """(n,) probability that two different seeds disagree on the item; its mean is ``churn``."""
    checked = _checked(preds)
    return _item_sums(checked, None, int(checked.max(initial=0)) + 1)["apart"]


def reliable_accuracy(preds: ArrayLike, y: ArrayLike) -> float:
    """Share of items that every seed gets right, in [0, 1]; y = -1 leaves an item out."""
    return _single("reliable_accuracy", preds, y)


def measure(
    preds: ArrayLike,
    y: ArrayLike | None,
    k: int,
    *,
    weight: ArrayLike | None = None,
    bootstrap: int = 1000,
    rng: np.random.Generator,
) -> Stability:
    """Every metric with its interval.

    Args:
        preds: (s, n) classes in 0..k-1.
        y: (n,) gold classes, -1 = unknown (left out of all that needs gold), or None.
        weight: (n,) > 0, inverse inclusion probabilities; None = equal. Their scale is free.
        bootstrap: replicates, drawn over items with the seeds held fixed; 0 = no intervals.
        rng: draws the replicates.
    Raises:
        ValueError: shapes or classes do not fit.
    """
    checked = _checked(preds, k)
    gold = _checked_gold(y, checked.shape[1], k)
    base = _checked_weight(weight, checked.shape[1])
    sums = _item_sums(checked, gold, k)
    point = _metrics(sums, base[None, :], checked.shape[0])
    drawn: dict[str, list[FloatArray]] = {name: [] for name in point}
    if checked.shape[1]:
        for replicate in _replicates(base, bootstrap, rng):
            for name, values in _metrics(sums, replicate, checked.shape[0]).items():
                drawn[name].append(values)
    spread = {name: np.concatenate(parts) for name, parts in drawn.items() if parts}

    def metric(name: str, note: str = "") -> Metric:
        return _metric(point[name][0], spread.get(name), note)

    def per_class(name: str) -> tuple[Metric, ...]:
        chosen = spread.get(name)
        return tuple(
            _metric(point[name][0, c], None if chosen is None else chosen[:, c]) for c in range(k)
        )

    known = int((gold >= 0).sum()) if gold is not None else 0
    found: dict[str, Any] = {
        "items": checked.shape[1],
        "seeds": checked.shape[0],
        "known": known,
        "alpha_k": metric("alpha_k", _alpha_note(checked, k)),
        "p_uc": metric("p_uc"),
        "churn": metric("churn", ONE_SEED if checked.shape[0] < 2 else ""),
        "alpha_per_class": per_class("alpha_per_class"),
    }
    if not known:
        return Stability(**found)
    for name in ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd", "reliable_accuracy"):
        found[name] = metric(name)
    for name in ("recall", "precision", "f1"):
        found[name] = per_class(name)
    return Stability(**found)


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


def paired_difference(
    preds_a: ArrayLike,
    preds_b: ArrayLike,
    y: ArrayLike | None,
    metric: str,
    *,
    k: int,
    weight: ArrayLike | None = None,
    bootstrap: int = 1000,
    rng: np.random.Generator,
) -> Difference:
    """Whether b is more stable, or more often right, than a on the same items.

    Args:
        preds_a: (s, n), for instance the last round.
        preds_b: (s', n), this round; p_uc and reliable accuracy need s' = s.
        y: (n,) gold, -1 = unknown; None will do where the metric needs none.
        metric: one of ``METRICS``.
        weight: as in ``measure``.
    Raises:
        ValueError: unknown metric, gold missing, or shapes that do not fit.
    Source: Efron & Tibshirani 1993, the paired bootstrap: both sides share each draw of items.
    """
    if metric not in METRICS:
        raise ValueError(f"Unknown metric {metric!r}. Available: {', '.join(METRICS)}.")
    a, b = _checked(preds_a, k), _checked(preds_b, k)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sides need the same items, got {a.shape} and {b.shape}")
    if metric in ("p_uc", "reliable_accuracy") and a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{metric} falls with the number of seeds: compare equal numbers, not "
            f"{a.shape[0]} and {b.shape[0]}"
        )
    gold = _checked_gold(y, a.shape[1], k)
    if gold is None and metric in ("accuracy", "macro_f1", "reliable_accuracy"):
        raise ValueError(f"{metric} needs gold labels")
    base = _checked_weight(weight, a.shape[1])
    sums_a, sums_b = _item_sums(a, gold, k), _item_sums(b, gold, k)

    def difference(weights: FloatArray) -> FloatArray:
        of_a = _metrics(sums_a, weights, a.shape[0])[metric]
        return _metrics(sums_b, weights, b.shape[0])[metric] - of_a

    value = float(difference(base[None, :])[0])
    drawn = [difference(replicate) for replicate in _replicates(base, bootstrap, rng)]
    found = np.concatenate(drawn) if drawn else np.empty(0)
    found = found[np.isfinite(found)]
    if not found.size:
        return Difference(value, math.nan, math.nan, math.nan)
    low, high = np.percentile(found, [2.5, 97.5])
    above = float((found > 0).mean() + 0.5 * (found == 0).mean())
    return Difference(value, float(low), float(high), above)


def metric_replicates(
    preds: ArrayLike, y: ArrayLike, k: int, *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, FloatArray]:
    """Bootstrap replicates of each of ``METRICS``, over items.

    Calls with the same seed and the same number of items share their draws, so that replicates of
    several sets of predictions may be subtracted or divided one by one.

    Returns:
        Metric -> (bootstrap,) values, nan where a replicate leaves the metric undefined.
    Source: Efron & Tibshirani 1993, the paired bootstrap.
    """
    checked = _checked(preds, k)
    sums = _item_sums(checked, _checked_gold(y, checked.shape[1], k), k)
    drawn = [
        _metrics(sums, weights, checked.shape[0])
        for weights in _replicates(
            np.ones(checked.shape[1]), bootstrap, np.random.default_rng(seed)
        )
    ]
    return {name: np.concatenate([found[name] for found in drawn]) for name in METRICS}


# sums over items


def _item_sums(preds: IntArray, y: IntArray | None, k: int) -> dict[str, FloatArray]:
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


def _metrics(sums: dict[str, FloatArray], weights: FloatArray, s: int) -> dict[str, FloatArray]:
    """Metrics of b weightings of the items: (b,), or (b, k) where there is one per class."""
    b = weights.shape[0]
    total = {name: weights @ per_item for name, per_item in sums.items()}
    n = total["one"]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = total["apart"] / n if s > 1 else np.full(b, np.nan)
        share = total["counts"] / (n * s)[:, None]
        # expected disagreement of two of the n*s labels drawn without replacement
        unbias = (n * s) / (n * s - 1)
        expected = (1 - (share**2).sum(1)) * unbias
        expected_class = 2 * share * (1 - share) * unbias[:, None]
        apart_class = total["apart_class"] / n[:, None] if s > 1 else np.full(share.shape, np.nan)
        found = {
            "alpha_k": _alpha(apart, expected),
            "alpha_per_class": _alpha(apart_class, expected_class),
            "p_uc": total["unchanged"] / n,
            "churn": apart,
        }
        if "known" not in total:
            return found
        known = total["known"]
        k = share.shape[1]
        right = total["hit_class"].reshape(b, s, k)
        chosen = total["chosen"].reshape(b, s, k)
        truth = np.broadcast_to(total["truth"][:, None, :], right.shape)
        accuracy = total["hit"] / known[:, None]
        # a class that is neither true nor predicted has no F1; scikit-learn leaves it out too
        f1 = np.where(chosen + truth > 0, 2 * right / (chosen + truth), np.nan)
        macro = _nanmean(f1, 2)
        return found | {
            "accuracy": accuracy.mean(1),
            "accuracy_sd": _sd(accuracy),
            "macro_f1": macro.mean(1),
            "macro_f1_sd": _sd(macro),
            "reliable_accuracy": total["all_hit"] / known,
            "recall": (right / truth).mean(1),
            "precision": _nanmean(np.where(chosen > 0, right / chosen, np.nan), 1),
            "f1": _nanmean(f1, 1),
        }


def _alpha(observed: FloatArray, expected: FloatArray) -> FloatArray:
    return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def _sd(per_seed: FloatArray) -> FloatArray:
    if per_seed.shape[1] < 2:
        return np.full(per_seed.shape[0], np.nan)
    return np.asarray(per_seed.std(1, ddof=1))


def _nanmean(values: FloatArray, axis: int) -> FloatArray:
    """Mean of what is defined; nan, without a warning, where nothing is."""
    there = np.isfinite(values)
    return np.asarray(np.where(there, values, 0).sum(axis) / there.sum(axis))


def _replicates(base: FloatArray, bootstrap: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Bootstrap weights, (b, n) at a time."""
    n = base.shape[0]
    if not n:
        return
    step = max(1, _CHUNK_CELLS // n)
    for start in range(0, bootstrap, step):
        rows = min(step, bootstrap - start)
        drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n) * base


def _metric(value: float, spread: FloatArray | None, note: str = "") -> Metric:
    known = spread[np.isfinite(spread)] if spread is not None else np.empty(0)
    if not known.size or not math.isfinite(value):
        return Metric(float(value), note=note)
    low, high = np.percentile(known, [2.5, 97.5])
    return Metric(float(value), float(low), float(high), note)


def _alpha_note(preds: IntArray, k: int) -> str:
    if preds.shape[0] < 2:
        return ONE_SEED
    if not preds.size:
        return "there are no test items"
    top = float(np.bincount(preds.ravel(), minlength=k).max()) / preds.size
    if top == 1:
        return ONE_CLASS
    if top >= SKEWED_FRAC:
        return (
            f"{top:.0%} of all predictions are one class, so a few deviations pull alpha down; "
            "read churn and the classes' own alpha beside it"
        )
    return ""


def _single(name: str, preds: ArrayLike, y: ArrayLike | None = None) -> float:
    checked = _checked(preds)
    k = int(max(checked.max(initial=0), np.asarray(y).max(initial=0) if y is not None else 0)) + 1
    sums = _item_sums(checked, _checked_gold(y, checked.shape[1], k), k)
    return float(_metrics(sums, np.ones((1, checked.shape[1])), checked.shape[0])[name][0])


# what comes in


def _checked(preds: ArrayLike, k: int | None = None) -> IntArray:
    found = np.asarray(preds)
    if found.ndim != 2 or found.shape[0] < 1:
        raise ValueError(f"preds must be (s, n), seeds by items, got shape {found.shape}")
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"preds must be integer classes, got {found.dtype}")
    if found.size and (found.min() < 0 or (k is not None and found.max() >= k)):
        raise ValueError(
            f"preds must lie in 0..{k - 1 if k is not None else 'k-1'}, "
            f"got {found.min()}..{found.max()}"
        )
    return found.astype(np.int64)


def _checked_gold(y: ArrayLike | None, n: int, k: int) -> IntArray | None:
    if y is None:
        return None
    found = np.asarray(y)
    if found.shape != (n,):
        raise ValueError(f"y must have shape ({n},) like the items of preds, got {found.shape}")
    if found.size and (found.min() < -1 or found.max() >= k):
        raise ValueError(f"y must lie in -1..{k - 1}")
    return found.astype(np.int64)


def _checked_weight(weight: ArrayLike | None, n: int) -> FloatArray:
    if weight is None:
        return np.ones(n)
    found = np.asarray(weight, dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(f"weight must have shape ({n},) like the items, got {found.shape}")
    if found.size and not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError("weight must be finite and > 0")
    return found / found.mean() if found.size else found
