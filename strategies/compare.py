"""Several labellers on the same random sample: how good is each, and is one better than another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.estimate import MIN_RANDOM, Estimate, share_interval, unseen
from strategies.pool import FloatArray, IntArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Compared:
    """One labeller on the sample, with 95 % intervals over samples.

    Attributes:
        unanswered: items without a label of its; they count as wrong.
        accuracy: share of right labels.
        macro_f1: mean F1 over all classes.
        precision: per class; None where fewer than ``MIN_RANDOM`` items have that label.
        recall: per class; None where fewer than ``MIN_RANDOM`` items belong to it.
        kl: KL(true class shares || its class shares) in nats, less its bias.
        accuracy_gain: over the first labeller, paired over items; None for the first.
        macro_f1_gain: likewise.
    """

    unanswered: int
    accuracy: Estimate
    macro_f1: Estimate
    precision: tuple[Estimate | None, ...]
    recall: tuple[Estimate | None, ...]
    kl: Estimate
    accuracy_gain: Estimate | None
    macro_f1_gain: Estimate | None


def compare(
    labels: IntArray, gold: IntArray, k: int, *, rng: np.random.Generator
) -> list[Compared]:
    """Each labeller's quality, and its gain over the first.

    Args:
        labels: (a, g) class that each of a labellers gave each of g items, -1 for none.
        gold: (g,) true classes; the items are a random sample.
        k: number of classes.
        rng: draws the resamples, the same for all labellers.

    Returns:
        One entry for each labeller.

    Raises:
        ValueError: shapes that do not fit, or no items.
    Source: Efron 1979 (percentile bootstrap); gains share their resamples, so they are paired.
    """
    a, g = labels.shape
    if gold.shape != (g,) or not g:
        raise ValueError(f"labels (a, g) and gold (g,) do not fit: {labels.shape} and {gold.shape}")
    # Every item once, then the resamples: how often each item is in.
    weight = np.vstack(
        [np.ones((1, g)), rng.multinomial(g, np.full(g, 1.0 / g), size=RESAMPLES)]
    ).astype(np.float64)
    tables = np.stack([_confusions(row, gold, weight, k) for row in labels])
    accuracy = np.trace(tables[..., :k], axis1=2, axis2=3) / g
    precision, recall, f1 = _rates(tables, k)
    macro = f1.mean(axis=2)
    kl = _kl(tables, k)
    said = tables[:, 0, :, :k].sum(axis=1)
    true = tables[0, 0].sum(axis=1)
    rarest = float(true[true > 0].min())
    return [
        Compared(
            unanswered=int((labels[i] < 0).sum()),
            accuracy=_interval(accuracy[i], g),
            macro_f1=_interval(macro[i], rarest),
            precision=tuple(
                _interval(precision[i, :, c], said[i, c]) if said[i, c] >= MIN_RANDOM else None
                for c in range(k)
            ),
            recall=tuple(
                _interval(recall[i, :, c], true[c]) if true[c] >= MIN_RANDOM else None
                for c in range(k)
            ),
            kl=_less_bias(kl[i], unseen(g)),
            accuracy_gain=_gain(accuracy[i] - accuracy[0], g) if i else None,
            macro_f1_gain=_gain(macro[i] - macro[0], rarest) if i else None,
        )
        for i in range(a)
    ]


def _confusions(said: IntArray, gold: IntArray, weight: FloatArray, k: int) -> FloatArray:
    """(b, k, k + 1) weighted counts of true class by label; the last column is no label."""
    cell = gold * (k + 1) + np.where(said < 0, k, said)
    onto = np.zeros((len(gold), k * (k + 1)))
    onto[np.arange(len(gold)), cell] = 1.0
    return np.asarray((weight @ onto).reshape(len(weight), k, k + 1), dtype=np.float64)


def _rates(tables: FloatArray, k: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(a, b, k) precision, recall and F1; 0 where there is nothing to divide by."""
    right = np.diagonal(tables[..., :k], axis1=2, axis2=3)
    said, true = tables[..., :k].sum(axis=2), tables.sum(axis=3)

    def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    return ratio(right, said), ratio(right, true), ratio(2.0 * right, said + true)


def _kl(tables: FloatArray, k: int) -> FloatArray:
    """(a, b) KL(true shares || said shares), half an item added to each class said."""
    true = tables.sum(axis=3)
    said = tables[..., :k].sum(axis=2) + 0.5
    p = true / true.sum(axis=2, keepdims=True)
    q = said / said.sum(axis=2, keepdims=True)
    return np.asarray((p * np.log(np.where(p > 0, p, 1.0) / q)).sum(axis=2), dtype=np.float64)


def _interval(values: FloatArray, n: float) -> Estimate:
    """Of the sample itself, the first value, and of its resamples.

    Args:
        n: items that the share is of, for an interval where all resamples are equal.
    """
    low, high = np.quantile(values[1:], [0.025, 0.975])
    if low == high:
        low, high = share_interval(float(np.clip(values[0], 0.0, 1.0)), n)
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def _gain(values: FloatArray, n: float) -> Estimate:
    """Likewise for a difference of two shares of the same n items."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    if low == high:  # not one of the items tells the two apart
        low, high = low - unseen(n), high + unseen(n)
    value = float(values[0])
    return Estimate(value, max(float(min(low, value)), -1.0), min(float(max(high, value)), 1.0))


def _less_bias(values: FloatArray, unseen_share: float) -> Estimate:
    """Likewise for a quantity that chance makes larger, not below 0.

    Args:
        unseen_share: the largest that a class may have that no item shows. Where all resamples are
            equal, it bounds what the sample cannot see, u (1 + log 1/u).
    """
    if np.ptp(values[1:]) == 0:
        value = max(0.0, float(values[0]))
        return Estimate(value, 0.0, value + unseen_share * float(np.log(1.0 / unseen_share) + 1.0))
    bias = float(values[1:].mean() - values[0])
    low, high = np.quantile(values[1:], [0.025, 0.975]) - 2.0 * bias
    value = max(0.0, float(values[0]) - bias)
    return Estimate(value, max(0.0, min(float(low), value)), max(float(high), value))
