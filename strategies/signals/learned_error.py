"""The probability that the LLM's label is wrong, learned from the gold labels so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strategies.calibrate import calibrated_votes
from strategies.fuse import fuse_ranks
from strategies.pool import FloatArray, IntArray, Pool, Vectors, blocks, clip_unit, softmax
from strategies.signals.components import Directions, leading_directions
from strategies.signals.consistency import votes_against
from strategies.signals.neighbours import disagreement, neighbour_evidence
from strategies.signals.students import student_disagreement
from strategies.signals.uncertainty import label_doubt
from strategies.threads import one_blas_thread

PRIOR_GOLD = 50.0  # gold labels at which what they say and what was assumed count the same
BELIEVED_FROM = 20.0  # gold labels at which P(label wrong) and the fused ranks count the same
OPINION_PENALTY = 3.0  # of a slope or bias off its assumed value, squared, in gold labels
RESIDUAL_PENALTY = 60.0  # 6 fits the gold of development sets with 200 labels too closely
RESIDUAL_COMPONENTS = 64
FOLDS = 5  # models that judge the gold items, so that none sees its own answer


def learned_error(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Suspicion that the label in use is wrong, from all signals and from the gold labels so far.

    Without gold it is the fused ranks of what speaks against the label: its calibrated
    probability, other votes, neighbours and out-of-fold students. With gold P(label wrong) by
    ``class_posterior`` joins them; g gold labels give it a share of g / (g + 20). Where fine-tuned
    students learned mended labels (``pool.p_tuned``), they stand in for those of the embeddings.

    Args:
        pool: uses everything it has; an item's own gold never enters its own score.
        rng: deals the gold items into folds.

    Returns:
        (n,) in [0, 1].
    """
    pool = _as_judged(pool)
    evidence = blind_evidence(pool)
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
    p_wrong = probability_wrong(pool, rng=rng, evidence=evidence)
    # Values, not ranks: an item's own gold moves the others' P(wrong), and so its rank.
    trust = g / (g + BELIEVED_FROM)
    return clip_unit(trust * p_wrong + (1.0 - trust) * against)


def probability_wrong(
    pool: Pool, *, rng: np.random.Generator, evidence: FloatArray | None = None
) -> FloatArray:
    """P(the label in use is wrong | all that is known of an item).

    Args:
        pool: as for ``class_posterior``; where it has ``p_tuned`` they stand in for the quick
            students, and the answer is the mean of the posterior's and their own.
        rng: deals the gold items into folds.
        evidence: of ``blind_evidence``, where it is at hand.

    Returns:
        (n,) in [0, 1].
    """
    if evidence is None:
        evidence = blind_evidence(pool)
    posterior = class_posterior(_as_judged(pool), evidence, rng=rng)
    if pool.p_tuned is not None:
        posterior = (posterior + pool.p_tuned) / 2
    return np.asarray(1.0 - posterior[np.arange(pool.n), pool.y_llm])


def _as_judged(pool: Pool) -> Pool:
    """With the fine-tuned judges' opinion in place of the quick students'."""
    return pool if pool.p_tuned is None else replace(pool, p_student=pool.p_tuned[None])


@one_blas_thread
def class_posterior(
    pool: Pool,
    evidence: FloatArray | None,
    *,
    rng: np.random.Generator,
    also: FloatArray | None = None,
) -> FloatArray:
    """P(true class | all that is known of an item), learned from the gold labels so far.

    It is a logarithmic opinion pool, a sum of log probabilities. The opinions are the LLM's
    calibrated probabilities, the LLM's label itself, the students' out-of-fold probabilities, the
    labels of the neighbours, and students that learned from gold alone (``pool.p_gold``). Each has
    one slope. Every class has a bias, and so has every pair of LLM label and true class. A small
    head on the text's embedding adds what no opinion says.

    While gold is scarce, the slopes stay near values that suit most LLMs, and all else near 0.
    Which items people labelled depends on the same evidence, so no weights 1/pi are needed.

    Args:
        pool: uses everything it has; without gold it says what the assumed slopes say.
        evidence: of ``blind_evidence``; None for a pool without embeddings.
        rng: deals the gold items into folds.
        also: (v, n, k) further opinions, **out-of-fold**.

    Returns:
        (n, k) rows sum to 1.
    Source: Genest and Zidek 1986, logarithmic opinion pools; McFadden 1974, conditional logit.
    """
    experts, assumed = _experts(pool, evidence, also)
    seen = _Seen(experts, pool.y_llm)
    if pool.embeddings is not None and (pool.gold >= 0).any():
        about = leading_directions(pool.embeddings, RESIDUAL_COMPONENTS)
        seen = _Seen(experts, pool.y_llm, pool.embeddings, about)
    known = np.flatnonzero(pool.gold >= 0)
    theta = _fit_opinions(seen.rows(known), pool.gold[known], assumed)
    posterior = np.empty((pool.n, pool.k))
    for block in blocks(pool.n):
        posterior[block] = _opinions(theta, seen.rows(block))
    if not len(known):
        return posterior
    order = np.lexsort(np.round(seen.rows(known).experts.reshape(len(known), -1), 6).T[::-1])
    fold_of = np.empty(len(known), dtype=np.int64)
    fold_of[order] = rng.permutation(np.arange(len(known)) % min(FOLDS, len(known)))
    for fold in range(int(fold_of.max()) + 1):
        rest, own = known[fold_of != fold], known[fold_of == fold]
        theta = _fit_opinions(seen.rows(rest), pool.gold[rest], assumed)
        posterior[own] = _opinions(theta, seen.rows(own))
    return posterior


def blind_evidence(pool: Pool) -> FloatArray | None:
    """(n, k) what the LLM labels of each text's neighbours say; None without embeddings.

    Gold is left out: an item's gold would reach its own posterior through its neighbours.
    """
    if pool.embeddings is None:
        return None
    blind = replace(pool, gold=np.full(pool.n, -1, dtype=np.int64))
    return neighbour_evidence(blind, "class_posterior")


@dataclass(frozen=True)
class _Read:
    """What the posterior of some rows is read from.

    Attributes:
        experts: (r, k, e) log opinions.
        y_llm: (r,).
        about: (r, c) components of the embeddings.
    """

    experts: FloatArray
    y_llm: IntArray
    about: FloatArray


@dataclass(frozen=True)
class _Seen:
    """What the posterior is read from, row by row: all at once would take several times the room.

    Attributes:
        experts: (n, k) log opinions of each of e experts.
        y_llm: (n,).
        embeddings: (n, d), or None where what a text is about does not count.
        about: the components that count.
    """

    experts: Sequence[FloatArray]
    y_llm: IntArray
    embeddings: Vectors | None = None
    about: Directions | None = None

    def rows(self, rows: IntArray | slice) -> _Read:
        experts = np.stack([said[rows] for said in self.experts], axis=2)
        about: FloatArray = np.zeros((len(experts), 0))
        if self.embeddings is not None and self.about is not None:
            about = self.about.along(self.embeddings[rows])
        return _Read(experts, self.y_llm[rows], about)


def _experts(
    pool: Pool, evidence: FloatArray | None, also: FloatArray | None
) -> tuple[list[FloatArray], FloatArray]:
    """(n, k) log opinions of each of e experts, and the (e,) slopes that are assumed of them."""
    calibrated = np.nanmean(calibrated_votes(pool), axis=1)
    held: list[FloatArray] = [np.log(np.maximum(calibrated, 0.02)), np.eye(pool.k)[pool.y_llm]]
    slopes = [0.3, float(np.log(4.0 * (pool.k - 1)))]
    if pool.p_student is not None:
        held.append(np.log(np.maximum(pool.p_student.mean(axis=0), 1e-3)))
        slopes.append(0.5)
    if evidence is not None:
        smoothed = evidence + 1.0 / pool.k
        held.append(np.log(smoothed / smoothed.sum(axis=1, keepdims=True)))
        slopes.append(0.2)
    for opinions in (pool.p_gold, also):
        for said in () if opinions is None else opinions:
            held.append(np.log(np.maximum(said, 1e-3)))
            slopes.append(0.2)
    return held, np.array(slopes)


def _fit_opinions(seen: _Read, gold: IntArray, assumed: FloatArray) -> FloatArray:
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

    fit = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(fit.x, dtype=np.float64)


def _opinions(theta: FloatArray, seen: _Read) -> FloatArray:
    k, e = seen.experts.shape[1:]
    slopes, bias, confusion, head = np.split(theta, np.cumsum([e, k, k * k]))
    logits = seen.experts @ slopes + bias + confusion.reshape(k, k)[seen.y_llm]
    logits += seen.about @ head.reshape(-1, k)
    return softmax(logits)
