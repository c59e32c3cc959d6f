"""The probability that the LLM's label is wrong, learned from the gold labels so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strategies.calibrate import batch_calibrate, inverse_probability
from strategies.components import leading_components
from strategies.consistency import flip_rate, jensen_shannon, votes_against
from strategies.fuse import fuse_ranks, weighted_auroc
from strategies.neighbours import disagreement, knn_disagreement, neighbour_evidence
from strategies.pool import BoolArray, FloatArray, IntArray, Pool, clip_unit
from strategies.students import student_disagreement
from strategies.uncertainty import (
    entropy,
    entropy_calibrated,
    label_doubt,
    margin,
    off_label_mass,
)

PRIOR_GOLD = 50.0  # gold labels at which what they say and what was assumed count the same
BASE_ERROR = 0.2  # assumed share of wrong LLM labels, as loud as PSEUDO_GOLD labels
PSEUDO_GOLD = 2.0
PENALTY = 4.0
MAX_WEIGHT_RATIO = 10.0
COMPONENTS = 16
OPINION_PENALTY = 3.0  # of a slope or bias off its assumed value, squared, in gold labels
RESIDUAL_PENALTY = 60.0  # 6 fits the gold of development sets with 200 labels too closely
RESIDUAL_COMPONENTS = 64
RIDGE_GRID = tuple(10.0**e for e in range(-3, 4))


@dataclass(frozen=True)
class ErrorPrediction:
    """What the predictor says and how far to believe it.

    Attributes:
        p_wrong: (n,) in [0, 1], P(the LLM's label is wrong); for a gold item from a model that
            never saw its answer.
        auroc: area under the ROC curve on the gold items, each scored by a model that did not
            train on it, weighted by 1/pi; None while all were right or all wrong.
        n_gold: number of gold labels learned from.
    """

    p_wrong: FloatArray
    auroc: float | None
    n_gold: int


def error_predictor(
    features: FloatArray,
    wrong: BoolArray,
    rows_gold: IntArray,
    inclusion_prob: FloatArray | None = None,
    *,
    rng: np.random.Generator,
    method: Literal["logistic", "ridge"] = "logistic",
    folds: int = 5,
) -> ErrorPrediction:
    """Learns from the gold items where the LLM errs, and predicts it for every item.

    A logistic regression whose penalty grows while gold is scarce; with no gold at all it says
    ``BASE_ERROR`` everywhere. ``method="ridge"`` is a plain ridge regression, with its penalty
    chosen by generalised cross-validation, meant for the bare embeddings.

    Args:
        features: (n, f) on a common scale, see ``build_features``; must not contain gold labels.
        wrong: (g,) whether the LLM's label of each gold item was wrong.
        rows_gold: (g,) the gold items' rows, each once.
        inclusion_prob: (g,) probability with which each was chosen; the weights 1/pi are clipped
            to a ratio of 10. None weighs all alike.
        rng: deals the gold items into folds.
        method: see above.
        folds: models that judge the gold items; fewer if there are fewer gold items.

    Returns:
        Probabilities for all n items, and the held-out area under the ROC curve.

    Raises:
        ValueError: shapes that do not fit, rows that repeat, or an unknown method.
    Source: Angelopoulos et al. 2023 and Gligoric et al. 2024 for learned error scores in
        active inference; Golub et al. 1979 for generalised cross-validation.
    """
    _check(features, wrong, rows_gold, method)
    g = len(rows_gold)
    weight = inverse_probability(np.ones(g, dtype=bool), inclusion_prob, clip=MAX_WEIGHT_RATIO)
    weight = weight / weight.mean() if g else weight
    fit = _logistic if method == "logistic" else _ridge
    x, y = features[rows_gold], wrong.astype(np.float64)
    p_wrong = fit(x, y, weight, features)
    if not g:
        return ErrorPrediction(p_wrong, None, 0)
    # Folds are dealt by content, not position, and never by outcome: else an item's own answer
    # would decide which model judges it.
    order = np.lexsort(np.round(x, 6).T[::-1])
    fold_of = np.empty(g, dtype=np.int64)
    fold_of[order] = rng.permutation(np.arange(g) % min(folds, g))
    held_out = np.empty(g)
    for fold in range(int(fold_of.max()) + 1):
        out = fold_of == fold
        held_out[out] = fit(x[~out], y[~out], weight[~out], x[out])
    p_wrong[rows_gold] = held_out
    both = bool(wrong.any() and not wrong.all())
    auroc = weighted_auroc(held_out, wrong, weight) if both else None
    return ErrorPrediction(p_wrong, auroc, g)


def build_features(
    signals: Mapping[str, FloatArray],
    y_llm: IntArray,
    k: int,
    *,
    embeddings: NDArray[np.float32] | None = None,
    components: int = COMPONENTS,
) -> FloatArray:
    """Features of the error predictor: ranked signals, predicted class, what the text is about.

    Args:
        signals: name -> (n,) suspicion, free of gold labels.
        y_llm: (n,) predicted classes.
        k: number of classes.
        embeddings: (n, d), reduced to their first principal components, or None.
        components: at most this many.

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
    if embeddings is not None and n > 1:
        mean = embeddings.mean(axis=0, dtype=np.float64)
        chunks = [slice(start, start + 4096) for start in range(0, n, 4096)]
        gram = np.zeros((len(mean), len(mean)))
        for chunk in chunks:  # in float64, without a second copy of all embeddings
            centred = embeddings[chunk] - mean
            gram += centred.T @ centred
        values, vectors = np.linalg.eigh(gram / n)
        keep = np.argsort(-values)[: min(components, n - 1)]
        keep = keep[values[keep] > 1e-9 * max(float(values.max()), 1e-30)]
        turn = 0.5 * vectors[:, keep] / np.sqrt(values[keep])
        parts.append(np.vstack([(embeddings[chunk] - mean) @ turn for chunk in chunks]))
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


def learned_error(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion that the label in use is wrong, from all signals and from the gold labels so far.

    Without gold it is the fused ranks of what speaks against the label: its calibrated
    probability, other votes, neighbours and out-of-fold students. With gold P(label wrong) by
    ``class_posterior`` joins them; g gold labels give it a share of g / (g + 50).

    Args:
        pool: uses everything it has; an item's own gold never enters its own score.
        rng: deals the gold items into folds.

    Returns:
        (n,) in [0, 1].
    """
    evidence = _blind_evidence(pool)
    signals = {"label_doubt": label_doubt(pool, rng)}
    if pool.probs.shape[1] > 1:
        signals["votes_against"] = votes_against(pool, rng)
    if evidence is not None:
        signals["knn_disagreement"] = disagreement(evidence, pool.y_llm)
    if pool.p_student is not None:
        signals["student_disagreement"] = student_disagreement(pool, rng)
    against = fuse_ranks(signals)
    g = int((pool.gold >= 0).sum())
    if not g:
        return against
    posterior = _posterior(pool, evidence, rng=rng)
    p_wrong = 1.0 - posterior[np.arange(pool.n), pool.y_llm]
    # Values, not ranks: an item's own gold moves the others' P(wrong), and so its rank.
    trust = g / (g + PRIOR_GOLD)
    return clip_unit(trust * p_wrong + (1.0 - trust) * against)


def class_posterior(
    pool: Pool,
    *,
    rng: np.random.Generator,
    folds: int = 5,
    p_gold: FloatArray | None = None,
) -> FloatArray:
    """P(true class | all that is known of an item), learned from the gold labels so far.

    A logarithmic opinion pool: the LLM's calibrated probabilities, the students' out-of-fold
    probabilities, the labels of the neighbours and the LLM's label itself each get one slope; every
    class gets a bias, and every pair of the LLM's label and a true class one of its own. A small
    head on what the text is about adds what no opinion says. The few slopes are held at values that
    suit most LLMs, and all else at 0, while gold is scarce. Which items were bought depends on the
    same evidence, so that no weights 1/pi are needed.

    Args:
        pool: uses everything it has; without gold it says what the assumed slopes say.
        rng: deals the gold items into folds.
        folds: models that judge the gold items, so that none sees its own answer.
        p_gold: (n, k) **out-of-fold** probabilities of students of nothing but gold, one more
            opinion, or None.

    Returns:
        (n, k) rows sum to 1.
    Source: Genest and Zidek 1986, logarithmic opinion pools; McFadden 1974, conditional logit.
    """
    return _posterior(pool, _blind_evidence(pool), rng=rng, folds=folds, p_gold=p_gold)


def _blind_evidence(pool: Pool) -> FloatArray | None:
    """What the neighbours' LLM labels say, or None without embeddings.

    Without gold: else an item's gold would reach its own posterior through its neighbours.
    """
    if pool.embeddings is None:
        return None
    blind = replace(pool, gold=np.full(pool.n, -1, dtype=np.int64))
    return neighbour_evidence(blind, "class_posterior")


def _posterior(
    pool: Pool,
    evidence: FloatArray | None,
    *,
    rng: np.random.Generator,
    folds: int = 5,
    p_gold: FloatArray | None = None,
) -> FloatArray:
    """``class_posterior`` with the neighbours' evidence already at hand: finding it is dear."""
    experts, assumed = _experts(pool, evidence, p_gold)
    about: FloatArray = np.zeros((pool.n, 0))
    if pool.embeddings is not None and (pool.gold >= 0).any():
        about = leading_components(pool.embeddings, RESIDUAL_COMPONENTS)
    seen = _Seen(experts, pool.y_llm, about)
    known = np.flatnonzero(pool.gold >= 0)
    posterior = _opinions(_fit_opinions(seen.rows(known), pool.gold[known], assumed), seen)
    if not len(known):
        return posterior
    order = np.lexsort(np.round(experts[known].reshape(len(known), -1), 6).T[::-1])
    fold_of = np.empty(len(known), dtype=np.int64)
    fold_of[order] = rng.permutation(np.arange(len(known)) % min(folds, len(known)))
    for fold in range(int(fold_of.max()) + 1):
        rest, own = known[fold_of != fold], known[fold_of == fold]
        theta = _fit_opinions(seen.rows(rest), pool.gold[rest], assumed)
        posterior[own] = _opinions(theta, seen.rows(own))
    return posterior


@dataclass(frozen=True)
class _Seen:
    """What the posterior is read from.

    Attributes:
        experts: (n, k, e) log opinions.
        y_llm: (n,).
        about: (n, r) components of the embeddings.
    """

    experts: FloatArray
    y_llm: IntArray
    about: FloatArray

    def rows(self, rows: IntArray) -> _Seen:
        return _Seen(self.experts[rows], self.y_llm[rows], self.about[rows])


def _experts(
    pool: Pool, evidence: FloatArray | None, p_gold: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """(n, k, e) log opinions of e experts, and the (e,) slopes that are assumed of them."""
    calibrated = np.nanmean(batch_calibrate(pool.probs, pool.class_prior), axis=1)
    held = [np.log(np.maximum(calibrated, 0.02)), np.eye(pool.k)[pool.y_llm]]
    slopes = [0.3, float(np.log(4.0 * (pool.k - 1)))]
    if pool.p_student is not None:
        held.append(np.log(np.maximum(pool.p_student.mean(axis=0), 1e-3)))
        slopes.append(0.5)
    if evidence is not None:
        smoothed = evidence + 1.0 / pool.k
        held.append(np.log(smoothed / smoothed.sum(axis=1, keepdims=True)))
        slopes.append(0.2)
    if p_gold is not None:
        held.append(np.log(np.maximum(p_gold, 1e-3)))
        slopes.append(0.2)
    return np.stack(held, axis=2), np.array(slopes)


def _fit_opinions(seen: _Seen, gold: IntArray, assumed: FloatArray) -> FloatArray:
    """Slopes, class biases, confusions and head of most likelihood, held at what is assumed."""
    from scipy.optimize import minimize

    n, k, e = seen.experts.shape
    r = seen.about.shape[1]
    start: FloatArray = np.concatenate([assumed, np.zeros(k + k * k + r * k)])
    if not n:
        return start
    penalty = np.repeat([OPINION_PENALTY, RESIDUAL_PENALTY], [e + k + k * k, r * k])
    truth = np.eye(k)[gold]
    said = np.eye(k)[seen.y_llm]

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        p = _opinions(theta, seen)
        off = theta - start
        value = -float(np.log(np.maximum(p[np.arange(n), gold], 1e-300)).sum())
        error = p - truth
        slopes = np.einsum("nk,nke->e", error, seen.experts)
        confusion, head = said.T @ error, seen.about.T @ error
        gradient = np.concatenate([slopes, error.sum(axis=0), confusion.ravel(), head.ravel()])
        return value + 0.5 * float(penalty @ off**2), gradient + penalty * off

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(found.x, dtype=np.float64)


def _opinions(theta: FloatArray, seen: _Seen) -> FloatArray:
    k, e = seen.experts.shape[1:]
    slopes, bias, confusion, head = np.split(theta, np.cumsum([e, k, k * k]))
    logits = seen.experts @ slopes + bias + confusion.reshape(k, k)[seen.y_llm]
    logits += seen.about @ head.reshape(-1, k)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def _logistic(x: FloatArray, y: FloatArray, weight: FloatArray, judge: FloatArray) -> FloatArray:
    """Penalised logistic regression by Newton's method; probabilities of the rows of ``judge``."""
    g, f = x.shape
    # Two made-up items at the origin hold the intercept: one wrong, one right.
    x = np.vstack([x, np.zeros((2, f))])
    x = np.hstack([x, np.ones((g + 2, 1))])
    y = np.concatenate([y, [1.0, 0.0]])
    made_up = [PSEUDO_GOLD * BASE_ERROR, PSEUDO_GOLD * (1.0 - BASE_ERROR)]
    weight = np.concatenate([weight, made_up])
    penalty: FloatArray = np.full(f + 1, PENALTY * (1.0 + PRIOR_GOLD / max(g, 1)))
    penalty[-1] = 0.0
    beta: FloatArray = np.zeros(f + 1)
    rate = float((weight * y).sum() / weight.sum())
    beta[-1] = np.log(rate / (1.0 - rate))
    loss = _logistic_loss(beta, x, y, weight, penalty)
    for _ in range(50):
        p = _sigmoid(x @ beta)
        gradient = x.T @ (weight * (p - y)) + penalty * beta
        curvature = (x * (weight * p * (1.0 - p))[:, None]).T @ x + np.diag(penalty)
        move = np.linalg.solve(curvature, gradient)
        scale = 1.0
        # Halving keeps Newton's method from leaping past the minimum.
        while _logistic_loss(beta - scale * move, x, y, weight, penalty) > loss and scale > 1e-4:
            scale /= 2.0
        beta = beta - scale * move
        loss = _logistic_loss(beta, x, y, weight, penalty)
        if np.abs(scale * move).max() < 1e-9:
            break
    return _sigmoid(judge @ beta[:-1] + beta[-1])


def _logistic_loss(
    beta: FloatArray, x: FloatArray, y: FloatArray, weight: FloatArray, penalty: FloatArray
) -> float:
    logits = x @ beta
    loss = float((weight * (np.logaddexp(0.0, logits) - y * logits)).sum())
    return loss + 0.5 * float((penalty * beta**2).sum())


def _ridge(x: FloatArray, y: FloatArray, weight: FloatArray, judge: FloatArray) -> FloatArray:
    """Ridge regression in its dual form (few gold items, many dimensions)."""
    total = weight.sum() + PSEUDO_GOLD
    mean_y = (float((weight * y).sum()) + PSEUDO_GOLD * BASE_ERROR) / total
    if len(y) <= 1:
        return np.full(len(judge), mean_y)
    root = np.sqrt(weight)[:, None]
    mean_x = (weight[:, None] * x).sum(axis=0) / weight.sum()
    design = root * (x - mean_x)
    outcome = root[:, 0] * (y - mean_y)
    values, vectors = np.linalg.eigh(design @ design.T)
    values = np.clip(values, 0.0, None)
    turned = vectors.T @ outcome
    scale = float(values.mean()) or 1.0
    losses = []
    for penalty in RIDGE_GRID:
        left = penalty * scale / (values + penalty * scale)
        losses.append(float(((left * turned) ** 2).sum()) / float(left.sum() + 1e-12) ** 2)
    chosen = RIDGE_GRID[int(np.argmin(losses))] * scale
    beta = design.T @ (vectors @ (turned / (values + chosen)))
    return clip_unit(mean_y + (judge - mean_x) @ beta)


def _sigmoid(logits: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)


def _check(features: FloatArray, wrong: BoolArray, rows: IntArray, method: str) -> None:
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be (n, f) and finite, not {features.shape}")
    if rows.ndim != 1 or wrong.shape != rows.shape:
        raise ValueError(f"wrong must be {rows.shape} like rows_gold, not {wrong.shape}")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("rows_gold must not repeat")
    if method not in ("logistic", "ridge"):
        raise ValueError(f"Unknown method {method!r}. Available: logistic, ridge.")
