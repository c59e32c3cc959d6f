"""From suspicion to a batch, with the probability that each chosen item had of being chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray, IntArray


@dataclass(frozen=True)
class Batch:
    """b chosen items in the order in which people should see them.

    The suspects come most suspect first; the audit items stand among them in random order and at
    even distances, so that a batch left half done has half its audit, and an item's place does not
    tell why it is there.

    Attributes:
        rows: (b,) positions in the pool.
        reason: (b,) 'suspect' or 'audit'.
        inclusion_prob: (b,) in (0, 1], probability of being in this batch for either reason.
        audit_prob: probability of each candidate of being an audit item; 0 without an audit.
    """

    rows: IntArray
    reason: NDArray[np.str_]
    inclusion_prob: FloatArray
    audit_prob: float


def select_batch(
    suspicion: FloatArray,
    candidates: IntArray,
    n: int,
    *,
    audit_frac: float,
    rng: np.random.Generator,
    y_llm: IntArray | None = None,
    min_class_frac: float = 0.0,
    embeddings: NDArray[np.float32] | None = None,
    same_text: float | None = None,
) -> Batch:
    """Draws a uniform audit from the candidates, then takes the most suspect of the rest.

    ``round(audit_frac * n)`` audit items (at least one where ``audit_frac`` > 0 and n > 1) come
    first, so that whether an item is audited never depends on its suspicion. Class quotas and the
    spread over near-identical texts only change the fixed order in which suspects are taken; the
    inclusion probabilities follow from that order and stay exact.

    Args:
        suspicion: (pool,) higher = more suspect. A strategy that draws random numbers makes the
            probabilities conditional on its draw; pass a constant for a uniform sample.
        candidates: rows that may be chosen, each once.
        n: size of the batch.
        audit_frac: share of the batch drawn uniformly, in [0, 1].
        rng: source of the audit and of the order of ties.
        y_llm: (pool,) predicted classes, needed by ``min_class_frac``.
        min_class_frac: share of the suspects that every predicted class gets at least, as long as
            it has candidates; at most one over the number of classes.
        embeddings: (pool, d), needed by ``same_text``.
        same_text: cosine from which two texts count as the same; of such texts only the most
            suspect is taken as long as others are left. An audit item may still resemble one.

    Returns:
        The batch. Ties are in random order; without the two options the probability of tied items
        is their common one, with them it is conditional on the order drawn.

    Raises:
        ValueError: more items asked than there are candidates, candidates that repeat or lie
            outside the pool, suspicion that is not finite, or an option without its array.
    """
    _check(suspicion, candidates, n, audit_frac)
    if n == 0:
        return Batch(candidates[:0].astype(np.int64), np.zeros(0, "U7"), np.zeros(0), 0.0)
    total = len(candidates)
    n_audit = round(audit_frac * n)
    if audit_frac > 0 and n > 1:
        n_audit = max(n_audit, 1)
    score = suspicion[candidates]
    order = np.lexsort((rng.random(total), -score))
    ranked, score = candidates[order].astype(np.int64), score[order]
    plain = min_class_frac == 0 and same_text is None
    if not plain:
        front = _preferred(
            ranked,
            n,
            y_llm=y_llm,
            min_class_frac=min_class_frac,
            embeddings=embeddings,
            same_text=same_text,
        )
        rest = np.setdiff1d(np.arange(total), front, assume_unique=True)
        ranked = ranked[np.concatenate([front, rest])]
    pi = inclusion_by_rank(total, n_audit=n_audit, n_suspect=n - n_audit)
    if plain:
        pi = _mean_over_ties(pi, score)
    audit = rng.choice(total, n_audit, replace=False)
    is_audit = np.zeros(total, dtype=bool)
    is_audit[audit] = True
    suspects = np.flatnonzero(~is_audit)[: n - n_audit]
    place, reason = _interleave(suspects, audit, rng)
    return Batch(ranked[place], reason, pi[place], n_audit / total)


def inclusion_by_rank(total: int, *, n_audit: int, n_suspect: int) -> FloatArray:
    """Probability of being chosen, by place in the fixed order of suspicion.

    An item with r candidates ahead of it is audited with probability n_audit / total. Otherwise it
    is taken if fewer than n_suspect of those r are left after the audit, that is if more than
    r - n_suspect of them were audited, which is a hypergeometric count.

    Args:
        total: number of candidates.
        n_audit: items drawn uniformly, without replacement, before the suspects.
        n_suspect: items taken from the top of what is left.

    Returns:
        (total,) in [0, 1], falling; sums to ``n_audit + n_suspect``.
    """
    from scipy.stats import hypergeom

    audited = n_audit / total
    pi = np.full(total, audited)
    pi[:n_suspect] = 1.0
    # Beyond n_suspect + n_audit places no audit can make room.
    r = np.arange(n_suspect, min(total, n_suspect + n_audit))
    if len(r) and n_audit < total:
        room = hypergeom.sf(r - n_suspect, total - 1, r, n_audit)
        pi[r] = audited + (1.0 - audited) * room
    return np.clip(pi, 0.0, 1.0)


def _mean_over_ties(pi: FloatArray, score: FloatArray) -> FloatArray:
    """Tied items swap places at random, so each has the mean of their places' probabilities."""
    _, group = np.unique(score, return_inverse=True)
    mean = np.bincount(group, weights=pi) / np.bincount(group)
    return np.asarray(mean[group], dtype=np.float64)


def _interleave(
    suspects: IntArray, audit: IntArray, rng: np.random.Generator
) -> tuple[IntArray, NDArray[np.str_]]:
    """Places of both in one order, the audit items one per stretch of equal length."""
    b, a = len(suspects) + len(audit), len(audit)
    reason = np.full(b, "suspect", dtype="U7")
    if a:
        edges = np.arange(a + 1) * b // a
        reason[edges[:-1] + rng.integers(np.diff(edges))] = "audit"
    place = np.empty(b, dtype=np.int64)
    place[reason == "suspect"] = suspects
    place[reason == "audit"] = rng.permutation(audit)
    return place, reason


def _preferred(
    ranked: IntArray,
    n: int,
    *,
    y_llm: IntArray | None,
    min_class_frac: float,
    embeddings: NDArray[np.float32] | None,
    same_text: float | None,
) -> IntArray:
    """Places in ``ranked`` of the first n items of the order with quotas and spread.

    Every item taken is the most suspect of the class furthest behind its quota, or of all where no
    class is behind; near-identical texts of what was taken wait until nothing else is left.
    """
    classes: IntArray = np.zeros(len(ranked), dtype=np.int64)
    if min_class_frac > 0:
        if y_llm is None:
            raise ValueError("min_class_frac needs y_llm, the predicted classes")
        classes = np.asarray(y_llm[ranked])
        present = len(np.unique(classes))
        if min_class_frac * present > 1 + 1e-9:
            raise ValueError(
                f"min_class_frac must be at most 1/{present} with {present} predicted classes,"
                f" not {min_class_frac}"
            )
    units: NDArray[np.float32] | None = None
    if same_text is not None:
        if embeddings is None:
            raise ValueError("same_text needs embeddings")
        length = np.linalg.norm(embeddings[ranked], axis=1, keepdims=True)
        units = (embeddings[ranked] / np.maximum(length, 1e-12)).astype(np.float32)
    # One queue per class, each in falling suspicion; `head` points at its next item.
    queues = {int(c): np.flatnonzero(classes == c) for c in np.unique(classes)}
    head = dict.fromkeys(queues, 0)
    held = dict.fromkeys(queues, 0)
    taken: list[int] = []
    waiting: list[int] = []
    kept = None if units is None else np.empty((n, units.shape[1]), dtype=np.float32)
    while len(taken) < n:
        open_ = [c for c in queues if head[c] < len(queues[c])]
        if not open_:
            break
        due = min_class_frac * (len(taken) + 1)
        behind = [c for c in open_ if held[c] + 1 <= due + 1e-9]
        best = min(behind or open_, key=lambda c: queues[c][head[c]])
        place = int(queues[best][head[best]])
        head[best] += 1
        if units is not None and kept is not None and same_text is not None:
            if taken and float((kept[: len(taken)] @ units[place]).max()) >= same_text:
                waiting.append(place)
                continue
            kept[len(taken)] = units[place]
        taken.append(place)
        held[best] += 1
    taken += sorted(waiting)[: n - len(taken)]
    return np.array(taken, dtype=np.int64)


def _check(suspicion: FloatArray, candidates: IntArray, n: int, audit_frac: float) -> None:
    if suspicion.ndim != 1 or candidates.ndim != 1:
        raise ValueError(
            f"suspicion and candidates must be 1-d, not {suspicion.shape} and {candidates.shape}"
        )
    if n < 0 or n > len(candidates):
        raise ValueError(f"asked for {n} items, but there are {len(candidates)} candidates")
    if not 0 <= audit_frac <= 1:
        raise ValueError(f"audit_frac must be in [0, 1], not {audit_frac}")
    if len(candidates):
        if candidates.min() < 0 or candidates.max() >= len(suspicion):
            raise ValueError(f"candidates must be rows in [0, {len(suspicion)})")
        if len(np.unique(candidates)) != len(candidates):
            raise ValueError("candidates must not repeat")
        if not np.isfinite(suspicion[candidates]).all():
            raise ValueError("suspicion of every candidate must be finite")
