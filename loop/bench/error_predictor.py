"""A predictor of the LLM's errors that asks no student: the benchmark compares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from strategies.fuse import fuse_ranks, weighted_auroc
from strategies.logistic import fit_logistic, logistic_probs
from strategies.pool import BoolArray, FloatArray, IntArray, Pool, Vectors, blocks, clip_unit
from strategies.signals.consistency import flip_rate, jensen_shannon
from strategies.signals.learned_error import PRIOR_GOLD
from strategies.signals.neighbours import knn_disagreement
from strategies.signals.students import student_disagreement
from strategies.signals.uncertainty import entropy, entropy_calibrated, margin, off_label_mass
from strategies.threads import one_blas_thread

BASE_ERROR = 0.2  # assumed share of wrong LLM labels, as loud as PSEUDO_GOLD labels
PSEUDO_GOLD = 2.0
PENALTY = 4.0  # of the squared coefficients, with plenty of gold
COMPONENTS = 16
FOLDS = 5  # models that judge the gold items; fewer if there are fewer gold items
RIDGE_GRID = tuple(10.0**e for e in range(-3, 4))


@dataclass(frozen=True)
class ErrorPrediction:
    """What the predictor says and how far to believe it.

    Attributes:
        p_wrong: (n,) in [0, 1], P(the LLM's label is wrong); for a gold item from a model that
            never saw its answer.
        auroc: area under the ROC curve on the gold items, each scored by a model that did not
            train on it; None while all were right or all wrong.
        n_gold: number of gold labels learned from.
    """

    p_wrong: FloatArray
    auroc: float | None
    n_gold: int


@one_blas_thread
def error_predictor(
    features: FloatArray,
    wrong: BoolArray,
    rows_gold: IntArray,
    *,
    rng: np.random.Generator,
    method: Literal["logistic", "ridge"] = "logistic",
) -> ErrorPrediction:
    """Learns from the gold items where the LLM errs, and predicts it for every item.

    A logistic regression whose penalty grows while gold is scarce; with no gold at all it says
    ``BASE_ERROR`` everywhere. ``method="ridge"`` is a plain ridge regression, with its penalty
    chosen by generalised cross-validation, meant for the bare embeddings.

    Args:
        features: (n, f) on a common scale, see ``build_features``; must not contain gold labels.
        wrong: (g,) whether the LLM's label of each gold item was wrong.
        rows_gold: (g,) the gold items' rows, each once.
        rng: deals the gold items into folds.
        method: see above.

    Returns:
        Probabilities for all n items, and the held-out area under the ROC curve.

    Raises:
        ValueError: shapes that do not fit, rows that repeat, or an unknown method.
    Source: Angelopoulos et al. 2023 and Gligoric et al. 2024 for learned error scores in
        active inference; Golub et al. 1979 for generalised cross-validation.
    """
    _check(features, wrong, rows_gold, method)
    g = len(rows_gold)
    fit = _logistic if method == "logistic" else _ridge
    x, y = features[rows_gold], wrong.astype(np.float64)
    p_wrong = fit(x, y, features)
    if not g:
        return ErrorPrediction(p_wrong, None, 0)
    # Folds are dealt by content, not position, and never by outcome: else an item's own answer
    # would decide which model judges it.
    order = np.lexsort(np.round(x, 6).T[::-1])
    fold_of = np.empty(g, dtype=np.int64)
    fold_of[order] = rng.permutation(np.arange(g) % min(FOLDS, g))
    held_out = np.empty(g)
    for fold in range(int(fold_of.max()) + 1):
        out = fold_of == fold
        held_out[out] = fit(x[~out], y[~out], x[out])
    p_wrong[rows_gold] = held_out
    both = bool(wrong.any() and not wrong.all())
    auroc = weighted_auroc(held_out, wrong, np.ones(g)) if both else None
    return ErrorPrediction(p_wrong, auroc, g)


def build_features(
    signals: Mapping[str, FloatArray],
    y_llm: IntArray,
    k: int,
    embeddings: Vectors,
) -> FloatArray:
    """Features of the error predictor: ranked signals, predicted class, what the text is about.

    Args:
        signals: name -> (n,) suspicion, free of gold labels.
        y_llm: (n,) predicted classes.
        k: number of classes.
        embeddings: (n, d), reduced to their first ``COMPONENTS`` principal components.

    Returns:
        (n, f): signals as ranks with variance 1; classes and components at half that scale, so
        that the penalty holds them back four times as much.
    """
    n = len(y_llm)
    columns = [
        (fuse_ranks({name: values}) - 0.5) * np.sqrt(12.0) for name, values in signals.items()
    ]
    parts = [np.stack(columns, axis=1)] if columns else []
    parts.append(0.5 * np.eye(k)[y_llm])
    if n > 1:
        mean = embeddings.mean(axis=0, dtype=np.float64)
        gram = np.zeros((len(mean), len(mean)))
        for block in blocks(n):  # in float64, without a second copy of all embeddings
            centred = embeddings[block] - mean
            gram += centred.T @ centred
        values, vectors = np.linalg.eigh(gram / n)
        keep = np.argsort(-values)[: min(COMPONENTS, n - 1)]
        keep = keep[values[keep] > 1e-9 * max(float(values.max()), 1e-30)]
        turn = 0.5 * vectors[:, keep] / np.sqrt(values[keep])
        parts.append(np.vstack([(embeddings[block] - mean) @ turn for block in blocks(n)]))
    return np.asarray(np.hstack(parts), dtype=np.float64)


def gold_free_signals(pool: Pool) -> dict[str, FloatArray]:
    """Every signal that the pool's arrays allow, computed as if there were no gold labels.

    Args:
        pool: ``gold`` is not read.

    Returns:
        Name -> (n,), higher = more suspect.
    """
    blind = replace(pool, gold=np.full(pool.n, -1, dtype=np.int64))
    unused = np.random.default_rng(0)
    chosen = {"entropy": entropy, "entropy_calibrated": entropy_calibrated, "margin": margin}
    if pool.probs.shape[1] > 1:
        chosen |= {"flip_rate": flip_rate, "jensen_shannon": jensen_shannon}
    mass = pool.off_label_mass
    if mass is not None and np.isfinite(mass).any(axis=1).all():
        chosen["off_label_mass"] = off_label_mass
    if pool.embeddings is not None:
        chosen["knn_disagreement"] = knn_disagreement
    if pool.p_student is not None:
        chosen["student_disagreement"] = student_disagreement
    return {name: strategy(blind, unused) for name, strategy in chosen.items()}


def _logistic(x: FloatArray, y: FloatArray, judge: FloatArray) -> FloatArray:
    """Probabilities of the rows of ``judge`` by a penalised logistic regression."""
    # Two made-up items at the origin hold the intercept: one wrong, one right.
    made_up = [PSEUDO_GOLD * BASE_ERROR, PSEUDO_GOLD * (1.0 - BASE_ERROR)]
    beta = fit_logistic(
        np.vstack([x, np.zeros((2, x.shape[1]))]),
        np.concatenate([y, [1.0, 0.0]]),
        PENALTY * (1.0 + PRIOR_GOLD / max(len(x), 1)),
        weight=np.concatenate([np.ones(len(x)), made_up]),
    )
    return logistic_probs(beta, judge)


def _ridge(x: FloatArray, y: FloatArray, judge: FloatArray) -> FloatArray:
    """Ridge regression in its dual form (few gold items, many dimensions)."""
    mean_y = (float(y.sum()) + PSEUDO_GOLD * BASE_ERROR) / (len(y) + PSEUDO_GOLD)
    if len(y) <= 1:
        return np.full(len(judge), mean_y)
    mean_x = x.mean(axis=0)
    design = x - mean_x
    values, vectors = np.linalg.eigh(design @ design.T)
    values = np.clip(values, 0.0, None)
    turned = vectors.T @ (y - mean_y)
    scale = float(values.mean()) or 1.0
    losses = []
    for penalty in RIDGE_GRID:
        left = penalty * scale / (values + penalty * scale)
        losses.append(float(((left * turned) ** 2).sum()) / float(left.sum() + 1e-12) ** 2)
    chosen = RIDGE_GRID[int(np.argmin(losses))] * scale
    beta = design.T @ (vectors @ (turned / (values + chosen)))
    return clip_unit(mean_y + (judge - mean_x) @ beta)


def _check(features: FloatArray, wrong: BoolArray, rows: IntArray, method: str) -> None:
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be (n, f) and finite, not {features.shape}")
    if rows.ndim != 1 or wrong.shape != rows.shape:
        raise ValueError(f"wrong must be {rows.shape} like rows_gold, not {wrong.shape}")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("rows_gold must not repeat")
    if method not in ("logistic", "ridge"):
        raise ValueError(f"Unknown method {method!r}. Available: logistic, ridge.")
