"""Strategies of other packages for the benchmark; the packages come with the extra ``bench``.

Each sees what goldloop's own strategies see: the LLM's labels, embeddings, and the students'
out-of-fold probabilities from training on the labels so far. Their rules for choosing are their
own code; none of them mends the labels of items that nobody bought.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.bench.policies import Policy
from loop.ports import IntArray

if TYPE_CHECKING:
    from strategies.pool import FloatArray, Pool


def peers() -> dict[str, Policy]:
    """The policies of those packages that are installed, and two rules that need none."""
    policies = {
        "breaking-ties": Policy(ranker=breaking_ties),
        "active-label-cleaning": Policy(ranker=active_label_cleaning),
    }
    if importlib.util.find_spec("cleanlab"):
        policies["cleanlab"] = Policy(ranker=cleanlab_issues)
        policies["cleanlab-quality"] = Policy(ranker=cleanlab_quality)
    if importlib.util.find_spec("small_text"):
        policies["small-text-breaking-ties"] = Policy(ranker=small_text_breaking_ties)
        policies["small-text-coreset"] = Policy(ranker=small_text_coreset)
        policies["small-text-light-coreset"] = Policy(ranker=small_text_light_coreset)
    return policies


def breaking_ties(pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """The n candidates between whose two likeliest classes the student decides least.

    Source: Luo et al. 2005, breaking ties.
    """
    top = np.sort(_student(pool)[candidates], axis=1)
    return _first(top[:, -1] - top[:, -2], candidates, n, rng)


def active_label_cleaning(
    pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator
) -> IntArray:
    """The n candidates whose label the student doubts most, less where it is unsure itself.

    Source: Bernhardt et al. 2022, active label cleaning: the label's cross-entropy minus the
        entropy of the student's answer.
    """
    said = np.maximum(_student(pool)[candidates], 1e-12)
    log = np.log(said)
    doubt = -log[np.arange(len(candidates)), pool.y_llm[candidates]] + (said * log).sum(axis=1)
    return _first(-doubt, candidates, n, rng)


def cleanlab_issues(pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """``cleanlab.filter.find_label_issues``: its issues first, then the rest by self-confidence.

    Source: Northcutt et al. 2021, confident learning.
    """
    from cleanlab.filter import find_label_issues

    quality = _quality(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        issues = find_label_issues(
            pool.y_llm,
            _student(pool),
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    rank = quality + 1.0
    rank[issues] = np.arange(len(issues)) / max(len(issues), 1)
    return _first(rank[candidates], candidates, n, rng)


def cleanlab_quality(
    pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator
) -> IntArray:
    """``cleanlab.rank.get_label_quality_scores``, lowest first."""
    return _first(_quality(pool)[candidates], candidates, n, rng)


def small_text_breaking_ties(
    pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator
) -> IntArray:
    """small-text's ``BreakingTies``."""
    from small_text.query_strategies import BreakingTies

    scores = BreakingTies().get_confidence(
        _Classifier(_student(pool)[candidates]), candidates, candidates, candidates, None
    )
    return _first(np.asarray(scores, dtype=np.float64), candidates, n, rng)


def small_text_coreset(
    pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator
) -> IntArray:
    """small-text's ``greedy_coreset`` on the embeddings.

    It mixes positions among the candidates with positions in the pool, so the candidates are put
    first, where the two agree. It needs one labelled item to begin with: a random one here.
    """
    from small_text.query_strategies import greedy_coreset

    if pool.embeddings is None:
        raise ValueError("small-text-coreset needs embeddings, this pool has none")
    known = np.flatnonzero(pool.gold >= 0)
    order = np.concatenate([rng.permutation(candidates), known])
    vectors = pool.embeddings[order]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    start: IntArray = np.arange(len(candidates), len(order))
    taken: list[int] = []
    if not len(start):
        taken, start = [0], np.array([0])
    if n > len(taken):
        places = greedy_coreset(
            vectors,
            np.arange(len(candidates)),
            start,
            n - len(taken),
            distance_metric="euclidean",
            batch_size=4096,
            normalized=True,
        )
        taken += [int(place) for place in places]
    return np.asarray(order[taken[:n]], dtype=np.int64)


def small_text_light_coreset(
    pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator
) -> IntArray:
    """small-text's ``LightweightCoreset``, quick where the greedy one is quadratic."""
    from small_text.query_strategies import lightweight_coreset

    if pool.embeddings is None:
        raise ValueError("small-text-light-coreset needs embeddings, this pool has none")
    vectors = pool.embeddings[candidates].astype(np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # It draws from the global generator; the state before is restored.
    state = np.random.get_state()
    np.random.seed(int(rng.integers(2**31)))
    try:
        mean = vectors.mean(axis=0)
        mean = mean / np.linalg.norm(mean)
        places = lightweight_coreset(vectors, mean, n, normalized=True)
    finally:
        np.random.set_state(state)
    return np.asarray(candidates[places], dtype=np.int64)


class _Classifier:
    """What small-text asks for its probabilities."""

    def __init__(self, probs: FloatArray) -> None:
        self._probs = probs

    def predict_proba(self, _dataset: Any) -> FloatArray:
        return self._probs


def _student(pool: Pool) -> FloatArray:
    if pool.p_student is None:
        raise ValueError("this peer needs out-of-fold student probabilities, this pool has none")
    mean: FloatArray = pool.p_student.mean(axis=0)
    return np.asarray(mean / mean.sum(axis=1, keepdims=True))


def _quality(pool: Pool) -> FloatArray:
    from cleanlab.rank import get_label_quality_scores

    return np.asarray(get_label_quality_scores(pool.y_llm, _student(pool)), dtype=np.float64)


def _first(score: FloatArray, candidates: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """The n candidates of least score, ties at random."""
    order = np.lexsort((rng.random(len(candidates)), score))
    return np.asarray(candidates[order[:n]], dtype=np.int64)
