"""What people's answers to the same texts say about the texts and about the people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray

SHRINK = 1.0  # answers of the average person that each table begins with; 0 is the plain model
MAX_STEPS = 200
TOLERANCE = 1e-6
_TINY = 1e-12


@dataclass(frozen=True)
class CrowdEstimate:
    """What Dawid and Skene's model makes of n items, p people and k classes.

    Attributes:
        posterior: (n, k) probability of each class; the class shares where nobody answered.
        confusion: (p, k, k), row = true class, column = given answer; rows sum to 1.
        prior: (k,) class shares.
    """

    posterior: FloatArray
    confusion: FloatArray
    prior: FloatArray

    @property
    def reliability(self) -> FloatArray:
        """(p,) expected share of right answers of each person, over the estimated class shares."""
        diagonal = np.diagonal(self.confusion, axis1=1, axis2=2)
        return np.asarray(diagonal @ self.prior, dtype=np.float64)


def dawid_skene(
    answers: NDArray[Any],
    classes: int,
    *,
    known: NDArray[Any] | None = None,
) -> CrowdEstimate:
    """Classes and each person's errors, estimated together by expectation and maximisation.

    It begins with the majority. A person's table of errors is drawn towards the average person's,
    so that somebody with three answers is neither trusted nor doubted too much.

    Args:
        answers: (n, p) integer classes, -1 where a person did not answer.
        classes: k.
        known: (n,) classes that are known, -1 elsewhere; they teach who errs and are not estimated.
    Raises:
        ValueError: not two-dimensional, nobody in it, a class out of range, or ``known`` of another
            length.
    Source: Dawid and Skene 1979, Maximum likelihood estimation of observer error-rates.
    """
    given = np.asarray(answers)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"answers must be (n, p) with n, p >= 1, not {given.shape}")
    if given.min() < -1 or given.max() >= classes:
        raise ValueError(f"answers must lie in -1 … {classes - 1}")
    given_classes = np.full(len(given), -1) if known is None else np.asarray(known)
    if (
        given_classes.shape != (len(given),)
        or not -1 <= given_classes.min() <= given_classes.max() < classes
    ):
        raise ValueError(f"known must be ({len(given)},) and lie in -1 … {classes - 1}")
    fixed = (given_classes >= 0)[:, None]
    truth = np.eye(classes + 1)[given_classes][:, :classes]
    chosen = np.eye(classes + 1)[given][:, :, :classes]  # (n, p, k); -1 picks the dropped column
    votes = chosen.sum(axis=1)
    counted = votes.sum(axis=1, keepdims=True)
    posterior = np.where(counted > 0, votes / np.maximum(counted, 1), 1.0 / classes)
    posterior = np.where(fixed, truth, posterior)
    answered = counted[:, 0] > 0
    for _ in range(MAX_STEPS):
        prior = posterior[answered].mean(axis=0) if answered.any() else posterior.mean(axis=0)
        tables = np.einsum("nk,npj->pkj", posterior, chosen)
        average = _rows(tables.sum(axis=0))
        confusion = _rows(tables + SHRINK * average)
        log_odds = np.log(prior + _TINY) + np.einsum(
            "npj,pkj->nk", chosen, np.log(confusion + _TINY)
        )
        log_odds -= log_odds.max(axis=1, keepdims=True)
        new = np.exp(log_odds)
        new /= new.sum(axis=1, keepdims=True)
        new = np.where(fixed, truth, new)
        moved = float(np.abs(new - posterior).max())
        posterior = new
        if moved < TOLERANCE:
            break
    return CrowdEstimate(posterior, confusion, prior)


def _rows(tables: FloatArray) -> FloatArray:
    """Rows that sum to 1; a row without counts becomes flat."""
    total = tables.sum(axis=-1, keepdims=True)
    flat = np.full_like(tables, 1.0 / tables.shape[-1])
    return np.where(total > 0, tables / np.maximum(total, _TINY), flat)
