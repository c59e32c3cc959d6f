"""Suspects by class quotas and without near-identical texts; two policies of the benchmark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray, IntArray, Pool


def preferred(
    suspicion: FloatArray,
    candidates: IntArray,
    n: int,
    pool: Pool,
    *,
    min_class_frac: float,
    same_text: float | None,
    rng: np.random.Generator,
) -> FloatArray:
    """Suspicion by which ``select_batch`` takes suspects with quotas and spread.

    Every item taken is the most suspect of the class furthest behind its quota, or of all where no
    class is behind; near-identical texts of what was taken wait until nothing else is left.

    Args:
        suspicion: (pool,) higher = more suspect.
        candidates: rows that may be chosen, each once.
        n: items that are taken by quotas and spread; at most as many as there are candidates.
        pool: uses ``y_llm`` and, for ``same_text``, ``embeddings``.
        min_class_frac: share of the suspects that every predicted class gets at least, as long as
            it has candidates; at most one over the number of classes.
        same_text: cosine from which two texts count as the same; of such texts only the most
            suspect is taken as long as others are left. An audit item may still resemble one. None
            takes no text for another.
        rng: orders ties.

    Returns:
        (pool,) a number of its own for each candidate, in [1, candidates]; 0 elsewhere.

    Raises:
        ValueError: quotas that sum to more than 1, or ``same_text`` without embeddings.
    """
    order = np.lexsort((rng.random(len(candidates)), -suspicion[candidates]))
    ranked = candidates[order]
    classes: IntArray = np.zeros(len(ranked), dtype=np.int64)
    if min_class_frac > 0:
        classes = np.asarray(pool.y_llm[ranked])
        present = len(np.unique(classes))
        if min_class_frac * present > 1 + 1e-9:
            raise ValueError(
                f"min_class_frac must be at most 1/{present} with {present} predicted classes,"
                f" not {min_class_frac}"
            )
    units: NDArray[np.float32] | None = None
    if same_text is not None:
        if pool.embeddings is None:
            raise ValueError("same_text needs embeddings")
        units = pool.embeddings[ranked].astype(np.float32)
        units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
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
    front = np.array(taken + sorted(waiting)[: n - len(taken)], dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(ranked)), front, assume_unique=True)
    ordered = np.zeros(len(suspicion))
    ordered[ranked[np.concatenate([front, rest])]] = np.arange(len(ranked), 0, -1)
    return ordered
