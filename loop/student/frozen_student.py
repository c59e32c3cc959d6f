"""The frozen student: softmax heads on cached embeddings, seconds instead of minutes.

For exploring, for learning curves and for label sets that are to be ranked. It ranks label sets by
accuracy as a fine-tuned encoder does, but its agreement between seeds depends on the head's design:
never compare a frozen alpha with that of another student. ``goldloop report`` says each round how
far the two agree.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loop.errors import StudentError
from loop.ports import (
    Draws,
    FloatArray,
    News,
    OwnAnswers,
    Progress,
    SeedResult,
    TrainingSet,
    no_news,
    no_progress,
)
from loop.student.nothing_learned import asked_again
from strategies.pool import Vectors, blocks
from strategies.threads import one_blas_thread

LEARNED_FROM = 100_000  # texts that heads learn from, of more: they gain nothing from further ones


@dataclass(frozen=True)
class FrozenHeads:
    """Heads of several seeds, trained at once.

    Attributes:
        penalty: of the squared weights, relative to the mean loss.
    """

    penalty: float = 0.03
    steps: int = 60

    @property
    def revision(self) -> str:
        """Name and settings."""
        return f"frozen(penalty={self.penalty:g}, steps={self.steps})"

    @one_blas_thread
    def probs(
        self,
        train: Vectors,
        y: FloatArray,
        weight: FloatArray,
        test: Vectors,
        seeds: Sequence[int],
        draws: Mapping[int, Draws] | None = None,
    ) -> FloatArray:
        """Class probabilities of the test rows, by heads of every seed.

        Of more than ``LEARNED_FROM`` rows so many are drawn, the same for every seed and every
        label set, and each stands for several: its weights differ from seed to seed as little as
        the mean weight of several rows does.

        Args:
            train: (n, d) embeddings.
            y: (n, k) soft labels, rows sum to 1.
            weight: (n,) >= 0.
            test: (t, d) embeddings.
            seeds: a seed decides where its head starts and its smooth bootstrap of the rows.
            draws: seeds that learn from the rows named there instead of a smooth bootstrap; there
                is no order to draw, because every step sees every row.

        Returns:
            (s, t, k).

        Raises:
            ValueError: no row has a positive weight.
        """
        each = 1.0
        if len(train) > LEARNED_FROM and not draws:
            each = len(train) / LEARNED_FROM
            drawn = np.random.default_rng(11).choice(len(train), LEARNED_FROM, replace=False)
            drawn.sort()
            train, y, weight = train[drawn], y[drawn], weight[drawn]
        x, shown = standardised(train, test)
        k = y.shape[1]
        counts, start = [], []
        for seed in seeds:
            rng, apart = np.random.default_rng([11, seed]), (draws or {}).get(seed)
            if apart is None:
                # Drawn for the whole pool, so that a row's weight is the same in every label set.
                counts.append(rng.gamma(each, size=len(x)) / each)
            else:
                rng = np.random.default_rng([11, apart.init])
                rows = np.arange(len(x)) if apart.rows is None else apart.rows
                counts.append(np.bincount(rows, minlength=len(x)).astype(np.float64))
            start.append(rng.normal(0.0, 0.02, (x.shape[1], k)))
        row_weight = np.stack(counts) * weight
        if not (row_weight.sum(axis=1) > 0).all():
            raise ValueError("no training row has a positive weight")
        used = np.flatnonzero(row_weight.any(axis=0))
        heads = fit_heads(
            x[used],
            y[used],
            row_weight[:, used],
            np.stack(start),
            penalty=self.penalty,
            steps=self.steps,
        )
        logits = np.stack([shown @ head for head in heads]).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=2, keepdims=True))
        return np.asarray(odds / odds.sum(axis=2, keepdims=True))


class FrozenStudent:
    """The heads as a ``Student``, on the embeddings of another one.

    Args:
        embed: (n, d) embeddings of n texts, cached by whoever gives it.
        encoder: the embeddings' revision.
    """

    def __init__(self, embed: Callable[[Sequence[str]], NDArray[np.float32]], encoder: str) -> None:
        self._embed = embed
        self._heads = FrozenHeads()
        self.revision = f"{self._heads.revision} on {encoder}"

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        """See ``Student``."""
        embeddings = self._embed(texts)
        progress(len(texts))
        return embeddings

    def fit(
        self,
        train: TrainingSet,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        seeds: Sequence[int],
        *,
        keep: Mapping[int, Path],
        on_seed: Callable[[SeedResult], None],
        progress: Progress = no_progress,
        draws: Mapping[int, Draws] | None = None,
        start: Mapping[int, Path] | None = None,
        say: News = no_news,
    ) -> None:
        """See ``Student``; ``keep`` and ``start`` must be empty, there is no model to save.

        Raises:
            StudentError: no text has a positive weight, or a model is to be kept.
        """
        if keep or start:
            raise StudentError("A frozen student saves no model; use the encoder for that.")
        started = time.perf_counter()
        try:
            known, asked = self._embed(train.texts), self._embed(eval_texts)
            used = np.flatnonzero(np.asarray(train.weight) > 0)
            used = used[asked_again(len(used))]
            every = self._heads.probs(
                known,
                train.y,
                train.weight,
                np.concatenate([asked, known[used]]),
                seeds,
                draws,
            )
            probs, again = every[:, : len(asked)], every[:, len(asked) :].argmax(axis=2)
        except ValueError as exc:
            raise StudentError(f"The frozen student cannot learn: {exc}.") from exc
        seconds = (time.perf_counter() - started) / len(seeds)
        y, weight = np.asarray(train.y)[used], np.asarray(train.weight)[used]
        for seed, of_seed, answers in zip(seeds, probs, again, strict=True):
            on_seed(SeedResult(seed, of_seed, seconds, None, OwnAnswers(answers, y, weight)))
            progress(len(train.texts))


def fit_heads(
    x: NDArray[np.float32],
    y: FloatArray,
    weight: FloatArray,
    start: FloatArray,
    *,
    penalty: float,
    steps: int,
) -> NDArray[np.float32]:
    """Softmax heads of s seeds at once, by accelerated descent under one bound of the curvature.

    Args:
        x: (n, d), the last column constant.
        y: (n, k) soft labels.
        weight: (s, n) >= 0.
        start: (s, d, k) weights to start from.

    Returns:
        (s, d, k) weights.
    Source: Boehning 1992 (bound on the softmax curvature); Nesterov 1983.
    """
    s, n = weight.shape
    d, k = x.shape[1], y.shape[1]
    share = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    ridge = np.full(d, penalty, dtype=np.float32)
    ridge[-1] = 1e-4
    # One bound for all seeds: every seed's weights lie below the largest of each row.
    bound = 0.5 * (x.T @ (x * share.max(axis=0)[:, None])) + np.diag(ridge)
    step = np.linalg.inv(bound.astype(np.float64)).astype(np.float32)
    heads = start.astype(np.float32)
    ahead, momentum = heads, 1.0
    labels = np.broadcast_to(y.astype(np.float32)[:, None, :], (n, s, k))
    for _ in range(steps):
        flat = np.ascontiguousarray(ahead.transpose(1, 0, 2)).reshape(d, s * k)
        logits = (x @ flat).reshape(n, s, k)
        shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
        error = shifted / shifted.sum(axis=2, keepdims=True) - labels
        error *= share.T[:, :, None]
        gradient = (x.T @ error.reshape(n, s * k)).reshape(d, s, k).transpose(1, 0, 2)
        gradient = gradient + ridge[None, :, None] * ahead
        following = ahead - step @ gradient
        grown = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = following + np.float32((momentum - 1.0) / grown) * (following - heads)
        heads, momentum = following, grown
    return heads


def standardised(train: Vectors, test: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both with the pool's mean and a common scale, and a constant last column."""
    n, d = train.shape
    mean, variance = train.mean(axis=0, dtype=np.float64), np.zeros(d)
    for block in blocks(n):
        variance += np.square(train[block] - mean).sum(axis=0) / n
    spread = np.sqrt(variance)
    floor = 1e-3 * float(np.median(spread)) + 1e-12
    scale = np.maximum(spread, floor).astype(np.float32)
    both = []
    for vectors in (train, test):
        rows = np.ones((len(vectors), d + 1), dtype=np.float32)
        rows[:, :d] = vectors
        rows[:, :d] -= mean.astype(np.float32)
        rows[:, :d] /= scale
        both.append(rows)
    return both[0], both[1]
