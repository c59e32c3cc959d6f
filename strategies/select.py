"""From suspicion to a batch, with the probability that each chosen item had of being chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray, IntArray

MOST_COMPARED = 4000  # candidates that are compared with one another, or 10 for each item drawn


@dataclass(frozen=True)
class Batch:
    """b chosen items in the order in which people should see them.

    The suspects come most suspect first; the audit items stand among them in random order and at
    even distances, so that a batch left half done has half its audit, and an item's place does not
    tell why it is there.

    Attributes:
        rows: (b,) positions in the pool.
        reason: (b,) 'suspect', 'audit' or 'coverage'.
        inclusion_prob: (b,) in (0, 1], probability of being in this batch for any reason.
        audit_prob: (b,) in [0, 1], probability of being an audit item; 0 without an audit.
    """

    rows: IntArray
    reason: NDArray[np.str_]
    inclusion_prob: FloatArray
    audit_prob: FloatArray


def select_batch(
    suspicion: FloatArray,
    candidates: IntArray,
    n: int,
    *,
    audit_frac: float,
    rng: np.random.Generator,
    about: FloatArray | None = None,
    cover: bool = False,
) -> Batch:
    """Draws a random audit from the candidates, then takes the most suspect of the rest.

    ``round(audit_frac * n)`` items are audited (at least one where ``audit_frac`` > 0 and n > 1).
    How many of them come from the top of the order, where the suspects are, is settled first, and
    the audit is then drawn from the top and from the rest apart: so every probability is known
    exactly, however the two draws are made. With ``about`` they are spread over the texts.

    Args:
        suspicion: (pool,) higher = more suspect. A strategy that draws random numbers makes the
            probabilities conditional on its draw; pass a constant for a uniform sample.
        candidates: rows that may be chosen, each once.
        n: size of the batch.
        audit_frac: share of the batch drawn uniformly, in [0, 1].
        rng: source of the audit and of the order of ties.
        about: (pool, c) what each text is about; the random items then lie far apart in this
            space, see ``spread_sample``. None draws them independently of it.
        cover: draws the whole batch at random: 'coverage' items in the place of suspects.

    Returns:
        The batch. Ties are in random order; the probability of tied items is their common one.

    Raises:
        ValueError: more items asked than there are candidates, candidates that repeat or lie
            outside the pool, or suspicion that is not finite.
    """
    _check(suspicion, candidates, n, audit_frac)
    if n == 0:
        return Batch(candidates[:0].astype(np.int64), np.zeros(0, "U8"), np.zeros(0), np.zeros(0))
    total = len(candidates)
    n_audit = round(audit_frac * n)
    if audit_frac > 0 and n > 1:
        n_audit = max(n_audit, 1)

    def draw(places: IntArray, size: int) -> IntArray:
        """``size`` of the places, each equally likely."""
        if about is None:
            return rng.choice(places, size, replace=False)
        return places[spread_sample(about[ranked[places]], size, rng)]

    if cover:
        ranked = candidates.astype(np.int64)
        chosen = rng.permutation(draw(np.arange(total), n))
        place, reason = _interleave(chosen[n_audit:], chosen[:n_audit], rng, "coverage")
        return Batch(ranked[place], reason, np.full(n, n / total), np.full(n, n_audit / total))
    score = suspicion[candidates]
    order = np.lexsort((rng.random(total), -score))
    ranked, score = candidates[order].astype(np.int64), score[order]
    design = audit_design(total, n_audit=n_audit, n_suspect=n - n_audit)
    pi = _mean_over_ties(design.inclusion_prob, score)
    audit_prob = _mean_over_ties(design.audit_prob, score)
    at_top = design.fewest + int(rng.random() < design.one_more)
    top, below = np.split(np.arange(total), [n - n_audit + at_top])
    audit = np.concatenate([draw(top, at_top), draw(below, n_audit - at_top)])
    suspects = np.setdiff1d(top, audit, assume_unique=True)
    place, reason = _interleave(suspects, rng.permutation(audit), rng, "suspect")
    return Batch(ranked[place], reason, pi[place], audit_prob[place])


@dataclass(frozen=True)
class AuditDesign:
    """How an audit is shared out between the suspects' end of the order and the rest.

    Attributes:
        fewest: audit items from the top; the top is the suspects and these.
        one_more: probability of one audit item more from the top, and so of a top larger by one.
        inclusion_prob: (total,) by place in the order, of being audited or a suspect.
        audit_prob: (total,) of being audited: equal at the top, and nearly so elsewhere.
    """

    fewest: int
    one_more: float
    inclusion_prob: FloatArray
    audit_prob: FloatArray


def audit_design(total: int, *, n_audit: int, n_suspect: int) -> AuditDesign:
    """The audit of a batch whose suspects are the first of the order that are not audited.

    The top of the order is audited with the probability n_audit / total like a uniform sample
    would. As the number of its audit items is a whole one, it is one of two neighbouring numbers,
    drawn so that this holds exactly. Given the number, either part is a sample of fixed size.

    Args:
        total: number of candidates.
        n_audit: items drawn at random.
        n_suspect: items taken from the top of what is left.

    Returns:
        The design. ``inclusion_prob`` sums to ``n_audit + n_suspect``, ``audit_prob`` to
        ``n_audit``.
    """
    share = n_audit / total
    if not n_suspect:
        return AuditDesign(0, 0.0, np.full(total, share), np.full(total, share))
    fewest = n_audit * n_suspect // (total - n_audit)
    top = n_suspect + fewest
    few, many = fewest / top, (fewest + 1) / (top + 1)
    one_more = (share - few) / (many - few) if top < total else 0.0
    # Whatever lies below the top, with the smaller and with the larger one.
    below = [
        (n_audit - fewest - more) / (total - top - more) if total > top + more else 0.0
        for more in (0, 1)
    ]
    audit = np.full(total, (1.0 - one_more) * below[0] + one_more * below[1])
    audit[:top] = share
    pi = audit.copy()
    pi[:top] = 1.0
    if top < total:  # the item that belongs to the larger top alone
        audit[top] = (1.0 - one_more) * below[0] + one_more * many
        pi[top] = (1.0 - one_more) * below[0] + one_more
    return AuditDesign(fewest, one_more, pi, audit)


def spread_sample(about: FloatArray, n: int, rng: np.random.Generator) -> IntArray:
    """Rows that lie far apart, each chosen with the probability n / len(about) exactly.

    The local pivotal method: a random row that is still undecided and the nearest other one settle
    which of them takes over the other's chance. Where one is chosen its neighbours are therefore
    not. Of very many rows a plain random sample of ``MOST_COMPARED``, or 10 n, is compared.

    Args:
        about: (t, c) places of the rows.
        n: at most t.
        rng: source of all chance.

    Returns:
        (n,) distinct rows, in no order of meaning.
    Source: Grafström, Lundström and Schelin 2012, Spatially balanced sampling through the pivotal
        method, Biometrics 68 (LPM2).
    """
    rows: IntArray = np.arange(len(about))
    most = max(MOST_COMPARED, 10 * n)
    if len(rows) > most:
        rows = np.sort(rng.choice(len(rows), most, replace=False))
    full = len(rows)
    # Chances in whole units of 1/full: no rounding error can leave a row half chosen.
    chance = np.full(full, n, dtype=np.int64)
    places = np.array(about[rows], dtype=np.float64)
    undecided: IntArray = np.arange(full)
    left = full if 0 < n < full else 0
    while left > 1:
        i = int(rng.integers(left))
        distance = np.square(places[:left] - places[i]).sum(axis=1)
        distance[i] = np.inf
        j = int(distance.argmin())
        a, b = undecided[i], undecided[j]
        both = int(chance[a] + chance[b])
        if both < full:
            taker, giver = (a, b) if rng.integers(both) < chance[a] else (b, a)
            chance[taker], chance[giver] = both, 0
        else:
            first = rng.integers(2 * full - both) < full - chance[b]
            taker, giver = (a, b) if first else (b, a)
            chance[taker], chance[giver] = full, both - full
        for place in sorted((i, j), reverse=True):  # the last undecided row fills the gap
            if chance[undecided[place]] in (0, full):
                left -= 1
                undecided[place], places[place] = undecided[left], places[left]
    return np.asarray(rows[chance == full] if n else rows[:0], dtype=np.int64)


def _mean_over_ties(pi: FloatArray, score: FloatArray) -> FloatArray:
    """Tied items swap places at random, so each has the mean of their places' probabilities."""
    _, group = np.unique(score, return_inverse=True)
    mean = np.bincount(group, weights=pi) / np.bincount(group)
    return np.asarray(mean[group], dtype=np.float64)


def _interleave(
    others: IntArray, audit: IntArray, rng: np.random.Generator, why: str
) -> tuple[IntArray, NDArray[np.str_]]:
    """Places of both in one order, the audit items one per stretch of equal length."""
    b, a = len(others) + len(audit), len(audit)
    reason = np.full(b, why, dtype="U8")
    if a:
        edges = np.arange(a + 1) * b // a
        reason[edges[:-1] + rng.integers(np.diff(edges))] = "audit"
    place = np.empty(b, dtype=np.int64)
    place[reason == why] = others
    place[reason == "audit"] = audit
    return place, reason


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
