"""What texts are about, in few numbers: the principal components of their embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray

LEADING = 4  # components whose mean variance sets the scale
SPREAD_OVER = 16  # components that a random sample is spread over
ROWS_AT_ONCE = 4096


def leading_components(embeddings: NDArray[np.float32], count: int) -> FloatArray:
    """Principal components on one common scale, so that the first ones keep most of the variance.

    Args:
        embeddings: (n, d) finite.
        count: at most this many; fewer where the embeddings have fewer directions.

    Returns:
        (n, c) centred; the mean variance of the first ``LEADING`` columns is 1.
    """
    n = len(embeddings)
    if n < 2:
        return np.zeros((n, 0))
    mean = embeddings.mean(axis=0, dtype=np.float64)
    chunks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE)]
    gram = np.zeros((len(mean), len(mean)))
    for chunk in chunks:  # in float64, without a second copy of all embeddings
        centred = embeddings[chunk] - mean
        gram += centred.T @ centred
    variances, directions = np.linalg.eigh(gram / n)
    keep = np.argsort(-variances)[: min(count, n - 1)]
    keep = keep[variances[keep] > 1e-9 * max(float(variances.max()), 1e-30)]
    if not len(keep):
        return np.zeros((n, 0))
    turn = directions[:, keep] / np.sqrt(variances[keep[:LEADING]].mean())
    return np.vstack([(embeddings[chunk] - mean) @ turn for chunk in chunks])
