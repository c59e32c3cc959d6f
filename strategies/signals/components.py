"""What texts are about, in few numbers: the principal components of their embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.pool import FloatArray, IntArray, Vectors, blocks

LEADING = 4  # components whose mean variance sets the scale
SPREAD_OVER = 16  # components that a random sample is spread over
SEEN = 100_000  # texts that the directions are learned from, of more


@dataclass(frozen=True)
class Directions:
    """Where embeddings vary most.

    Attributes:
        mean: (d,) of the embeddings.
        turn: (d, c) directions, most variance first; the mean variance along the first ``LEADING``
            is 1.
    """

    mean: FloatArray
    turn: FloatArray

    def along(self, embeddings: Vectors) -> FloatArray:
        """(n, c) components of n embeddings."""
        out = np.empty((len(embeddings), self.turn.shape[1]))
        for block in blocks(len(embeddings)):
            out[block] = (embeddings[block] - self.mean) @ self.turn
        return out


def leading_directions(embeddings: Vectors, count: int) -> Directions:
    """The directions of the principal components, of ``SEEN`` texts at random where there are more.

    Args:
        embeddings: (n, d) finite.
        count: at most this many; fewer where the embeddings have fewer directions.
    """
    n, d = embeddings.shape
    if n < 2:
        return Directions(np.zeros(d), np.zeros((d, 0)))
    seen: IntArray | slice = slice(None)
    if n > SEEN:
        seen = np.sort(np.random.default_rng(0).choice(n, SEEN, replace=False))
    sample = embeddings[seen]
    mean = sample.mean(axis=0, dtype=np.float64)
    gram = np.zeros((d, d))
    for block in blocks(len(sample)):  # summed in float64, without a second copy of all embeddings
        centred = sample[block].astype(np.float32) - mean.astype(np.float32)
        gram += centred.T @ centred
    variances, directions = np.linalg.eigh(gram / len(sample))
    keep = np.argsort(-variances)[: min(count, n - 1)]
    keep = keep[variances[keep] > 1e-9 * max(float(variances.max()), 1e-30)]
    scale = np.sqrt(variances[keep[:LEADING]].mean()) if len(keep) else 1.0
    return Directions(mean, directions[:, keep] / scale)


def leading_components(embeddings: Vectors, count: int) -> FloatArray:
    """Principal components on one common scale, so that the first ones keep most of the variance.

    Args:
        embeddings: (n, d) finite.
        count: at most this many; fewer where the embeddings have fewer directions.

    Returns:
        (n, c) centred (nearly, where the directions are those of a sample); the mean variance of
        the first ``LEADING`` columns is 1.
    """
    return leading_directions(embeddings, count).along(embeddings)
