"""The consistency cascade: which further prompts are worth asking.

The first prompt variant is asked of every item. A further call is worth what it is expected to
find: a *flip*, that is a variant whose calibrated label differs from the first one's. The chance
of a flip is learned, while the calls are made, from how doubtful the first answer was, its class,
the variant, and the variants that agreed already; calls go where the chance is highest until the
budget is spent or a call finds next to nothing. An item whose flip is found needs no more calls.

Everything here is a function of the answers so far, so an interrupted cascade continues from the
store. A wave asks many items at once, sorted by variant, so that the shared prefixes stay cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from loop.ports import BoolArray, FloatArray, IntArray
from strategies.logistic import fit_logistic, logistic_probs
from strategies.threads import one_blas_thread

WAVES = 12  # the budget for further calls is spent in about so many waves, learning in between
SMALLEST_WAVE = 24
SCOUTS = 0.25  # share of the first wave drawn at random, so that sure items are learned about too
LEAST_VALUE = 0.01  # a call that finds less than one flip in a hundred is not made
ENOUGH = 40  # calls from which the learned chance may end the cascade
CAP = 12.0  # log-odds beyond which an answer is as sure as can be


def flipped(view: FloatArray) -> BoolArray:
    """(n,) bool: some variant's label differs from the first one's.

    Args:
        view: (n, m, k) calibrated probabilities, NaN where a variant was not asked.
    """
    labels = _labels(view)
    differs = (labels != labels[:, :1]) & (labels >= 0) & (labels[:, :1] >= 0)
    return np.asarray(differs.any(axis=1))


def next_calls(
    probs: FloatArray,
    calibrate: Callable[[FloatArray], FloatArray],
    *,
    budget: int,
    rng: np.random.Generator,
    refused: BoolArray | None = None,
) -> IntArray:
    """The next wave of calls that are worth their price.

    Args:
        probs: (n, m, k) raw answers so far, NaN where there is none.
        calibrate: turns ``probs`` into the view that labels are read from.
        budget: calls over all items and variants together, those already answered included.
        rng: draws the scouts of the first wave and breaks ties.
        refused: (n, m) bool, calls without a usable answer, not to be repeated now.

    Returns:
        (c, 2) row and variant, sorted by variant, one call per item at most; empty when the budget
        is spent or no call is worth making. The first variant is never among them.

    Raises:
        ValueError: ``probs`` is not three-dimensional.
    """
    if probs.ndim != 3:
        raise ValueError(f"probs must be (n, m, k), not {probs.shape}")
    nothing = np.empty((0, 2), dtype=np.int64)
    taken = _taken(probs)
    done = int(taken.sum())
    further = int(taken[:, 1:].sum())
    vain = np.zeros(taken.shape, dtype=np.bool_) if refused is None else refused
    left = budget - done - int(vain[:, 1:].sum())
    if left <= 0 or probs.shape[1] < 2:
        return nothing
    wave = min(left, max(SMALLEST_WAVE, math.ceil((left + further) / WAVES)))
    view = calibrate(probs)
    open_ = ~taken & ~vain & taken[:, :1] & ~flipped(view)[:, None]
    open_[:, 0] = False
    rows, variants = np.nonzero(open_)
    if not len(rows):
        return nothing
    chance, learned = _chances(view, taken, rows, variants)
    if further == 0:
        chance = _with_scouts(chance, rows, wave, rng)
    # Of each item the most promising variant; the lexsort breaks ties at random.
    order = np.lexsort((rng.random(len(rows)), -chance))
    _, first = np.unique(rows[order], return_index=True)
    best = order[np.sort(first)][:wave]
    if learned:
        best = best[chance[best] >= LEAST_VALUE]
    calls = np.stack([rows[best], variants[best]], axis=1)
    return np.asarray(calls[np.lexsort((calls[:, 0], calls[:, 1]))], dtype=np.int64)


@one_blas_thread
def _chances(
    view: FloatArray, taken: BoolArray, rows: IntArray, variants: IntArray
) -> tuple[FloatArray, bool]:
    """P(flip) of each call, and whether it was learned rather than assumed.

    A regularised logistic regression on the calls made so far. A call that was made is described
    by what was known before it: the first answer, and how many other variants agreed.
    """
    labels = _labels(view)
    lead = _lead(view, labels[:, 0])
    seen_rows, seen_variants = np.nonzero(taken[:, 1:] & taken[:, :1])
    seen_variants = seen_variants + 1
    hit = labels[seen_rows, seen_variants] != labels[seen_rows, 0]
    doubt = _normal_tail(lead[rows, 0])
    if len(hit) < SMALLEST_WAVE or hit.all() or not hit.any():
        # Nothing to learn from yet: variants shift the log-odds by about one, it is assumed.
        return doubt, bool(len(hit) >= ENOUGH)
    k, m = view.shape[2], view.shape[1]
    x_seen = _features(lead, labels[:, 0], taken, seen_rows, seen_variants, k, m)
    x_open = _features(lead, labels[:, 0], taken, rows, variants, k, m)
    beta = fit_logistic(x_seen, hit.astype(np.float64), penalty=1.0)
    return logistic_probs(beta, x_open), len(hit) >= ENOUGH


def _features(
    lead: FloatArray,
    first: IntArray,
    taken: BoolArray,
    rows: IntArray,
    variants: IntArray,
    k: int,
    m: int,
) -> FloatArray:
    """What is known before a call: mean lead of the first label, its class, the variant, votes."""
    others = taken[rows].copy()
    others[np.arange(len(rows)), variants] = False
    votes = others.sum(axis=1)
    known = np.where(others, np.nan_to_num(lead[rows]), 0.0)
    mean_lead = known.sum(axis=1) / np.maximum(votes, 1)
    return np.concatenate(
        [
            np.stack([np.sqrt(lead[rows, 0]), mean_lead / 2.0, np.log(votes)], axis=1),
            np.eye(k)[first[rows]],
            np.eye(m)[variants],
        ],
        axis=1,
    )


def _labels(view: FloatArray) -> IntArray:
    """(n, m) label of each answer, -1 where there is none."""
    taken = _taken(view)
    return np.where(taken, np.where(taken[:, :, None], view, 0.0).argmax(axis=2), -1)


def _taken(probs: FloatArray) -> BoolArray:
    return np.asarray(np.isfinite(probs).all(axis=2), dtype=np.bool_)


def _lead(view: FloatArray, first: IntArray) -> FloatArray:
    """(n, m) log-odds of the first variant's label against its best rival, NaN if not asked."""
    n, m, _ = view.shape
    at = np.broadcast_to(np.maximum(first, 0)[:, None, None], (n, m, 1))
    logs = np.log(np.maximum(view, 1e-12))
    own = np.take_along_axis(logs, at, axis=2)[:, :, 0]
    rivals = logs.copy()
    np.put_along_axis(rivals, at, -np.inf, axis=2)
    return np.asarray(np.clip(own - rivals.max(axis=2), -CAP, CAP), dtype=np.float64)


def _normal_tail(lead: FloatArray) -> FloatArray:
    from scipy.special import ndtr

    return np.asarray(ndtr(-lead), dtype=np.float64)


def _with_scouts(
    chance: FloatArray, rows: IntArray, wave: int, rng: np.random.Generator
) -> FloatArray:
    """The chances, with a random share of the wave's items put first."""
    items = np.unique(rows)
    scouts = rng.permutation(items)[: int(SCOUTS * wave)]
    return np.where(np.isin(rows, scouts), 2.0, chance)
