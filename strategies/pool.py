"""The arrays of one round, and the one validator of their shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Vectors = NDArray[np.float32] | NDArray[np.float16]
"""Embeddings or states; perhaps mapped from a file, so read them block by block."""
Real = TypeVar("Real", np.float32, np.float64)

ROWS_AT_ONCE = 4096  # of vectors; so many in float32 fit into the processor's cache


def clip_unit(values: FloatArray) -> FloatArray:
    """The values, with those that rounding pushed out of [0, 1] put back on its edge."""
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float64)


def softmax(logits: NDArray[Real]) -> NDArray[Real]:
    """Probabilities from logits of any shape; they sum to 1 over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), dtype=logits.dtype)


def blocks(n: int) -> Iterator[slice]:
    """Rows 0 to n - 1, ``ROWS_AT_ONCE`` at a time."""
    return (slice(start, min(start + ROWS_AT_ONCE, n)) for start in range(0, n, ROWS_AT_ONCE))


def all_alike(vectors: Vectors, rows: BoolArray) -> bool:
    """Whether no two of the chosen rows differ by more than rounding, looked at block by block.

    Args:
        vectors: (n, d).
        rows: (n,) those that count; true of fewer than two.
    """
    if not rows.any():
        return True
    first = five_digits(vectors[int(np.argmax(rows))][None])
    return not any(
        (five_digits(vectors[block][rows[block]]) != first).any() for block in blocks(len(vectors))
    )


def five_digits(vectors: Vectors) -> IntArray:
    """(n, d) each number's share of its row's largest, times 100,000 and rounded.

    Rows in which these are the same are the same but for rounding.
    """
    rows = vectors.astype(np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows *= np.divide(1e5, largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(rows).astype(np.int64)


def all_finite(vectors: Vectors) -> bool:
    """Whether every number is finite."""

    def finite(part: Vectors) -> bool:
        if part.dtype != np.float16:
            return bool(np.isfinite(part).all())
        # An exponent of ones is infinite or no number; ``isfinite`` takes six times as long.
        return int((part.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00

    return all(finite(vectors[block]) for block in blocks(len(vectors)))


@dataclass(frozen=True)
class Neighbours:
    """The nearest texts of each text.

    Attributes:
        group: (n,) group of each text, 0 to u - 1; texts with one embedding are one group.
        rows: (u, c) int32 groups nearest to each group, itself among them, -1 where fewer were
            found.
        cosines: (u, c) float32, in falling order.
    """

    group: IntArray
    rows: NDArray[np.int32]
    cosines: NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """n items, k classes, m prompt variants, d dimensions, s seeds; row i is one item everywhere.

    Attributes:
        probs: (n, m, k) raw class probabilities of the LLM, rows sum to 1; a vote that was not
            taken is a row of NaN, and the first variant is always there.
        y_llm: (n,) the label that the LLM gives each item.
        embeddings: (n, d) float16 or float32, or None where no strategy in use needs them.
        neighbours: those of ``find_neighbours``, where they are kept; None looks for them again.
        states: (n, d) float16 hidden states of the LLM, a row of NaN where there is none, or None.
        p_student: (s, n, k) out-of-fold class probabilities of s students, or None.
        p_gold: (v, n, k) out-of-fold class probabilities of v kinds of students that learned from
            gold alone, or None; see ``gold_students``.
        p_tuned: (n, k) out-of-fold class probabilities of fine-tuned students that learned mended
            labels, or None.
        gold: (n,) class, or -1 where no human has answered yet.
        off_label_mass: (n, m) probability outside all labels, NaN where the vote was not taken.
        class_prior: (k,) expected class shares, or None for a flat mix.
        ordinal: the classes stand in a meaningful order.
        inclusion_prob: (n,) probability with which each gold item was chosen, all rounds taken
            together, up to a common factor; read only where gold is known; None weighs all gold
            alike. See ``over_all_rounds``.
        unsure: (n,) bool, items that people answered and could give no label; None for none.
        answered: (n,) bool, items of which the LLM gave any answer; of the others ``probs`` is
            uniform. None for all.
    """

    probs: FloatArray
    y_llm: IntArray
    gold: IntArray
    embeddings: Vectors | None = None
    p_student: FloatArray | None = None
    off_label_mass: FloatArray | None = None
    class_prior: FloatArray | None = None
    ordinal: bool = False
    inclusion_prob: FloatArray | None = None
    unsure: BoolArray | None = None
    answered: BoolArray | None = None
    states: NDArray[np.float16] | None = None
    p_gold: FloatArray | None = None
    p_tuned: FloatArray | None = None
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        """Refuses arrays that do not fit together; see the attributes for what is allowed."""
        if self.probs.ndim != 3:
            raise ValueError(f"probs must be (n, m, k), not {self.probs.shape}")
        n, m, k = self.probs.shape
        if m < 1 or k < 2:
            raise ValueError(
                f"probs must have m >= 1 variants and k >= 2 classes, not {self.probs.shape}"
            )
        if n and not np.isfinite(self.probs[:, 0]).all():
            raise ValueError("probs of the first variant must be finite for every item")
        sums = self.probs.sum(axis=2)
        taken = np.isfinite(sums)
        if not np.allclose(sums[taken], 1.0, atol=1e-4) or (self.probs < 0).any():
            raise ValueError("probs must be >= 0 and sum to 1 over the classes")
        self._check("y_llm", self.y_llm, (n,), low=0, high=k)
        self._check("gold", self.gold, (n,), low=-1, high=k)
        if self.embeddings is not None:
            if self.embeddings.ndim != 2 or len(self.embeddings) != n:
                raise ValueError(f"embeddings must be ({n}, d), not {self.embeddings.shape}")
            if not all_finite(self.embeddings):
                raise ValueError("embeddings must be finite")
        if self.neighbours is not None and len(self.neighbours.group) != n:
            raise ValueError(f"neighbours must be of {n} texts, not {len(self.neighbours.group)}")
        if self.states is not None and (self.states.ndim != 2 or len(self.states) != n):
            raise ValueError(f"states must be ({n}, d), not {self.states.shape}")
        if self.p_student is not None and self.p_student.shape[1:] != (n, k):
            raise ValueError(f"p_student must be (s, {n}, {k}), not {self.p_student.shape}")
        if self.p_student is not None and not np.isfinite(self.p_student).all():
            raise ValueError("p_student must be finite")
        if self.p_gold is not None and self.p_gold.shape[1:] != (n, k):
            raise ValueError(f"p_gold must be (v, {n}, {k}), not {self.p_gold.shape}")
        if self.p_tuned is not None and self.p_tuned.shape != (n, k):
            raise ValueError(f"p_tuned must be ({n}, {k}), not {self.p_tuned.shape}")
        if self.inclusion_prob is not None and self.inclusion_prob.shape != (n,):
            raise ValueError(f"inclusion_prob must be ({n},), not {self.inclusion_prob.shape}")
        if self.unsure is not None and self.unsure.shape != (n,):
            raise ValueError(f"unsure must be ({n},), not {self.unsure.shape}")
        if self.answered is not None and self.answered.shape != (n,):
            raise ValueError(f"answered must be ({n},), not {self.answered.shape}")
        if self.off_label_mass is not None and self.off_label_mass.shape != (n, m):
            raise ValueError(f"off_label_mass must be ({n}, {m}), not {self.off_label_mass.shape}")
        if self.class_prior is not None and self.class_prior.shape != (k,):
            raise ValueError(f"class_prior must be ({k},), not {self.class_prior.shape}")

    @staticmethod
    def _check(name: str, y: IntArray, shape: tuple[int, ...], *, low: int, high: int) -> None:
        if y.shape != shape:
            raise ValueError(f"{name} must be {shape}, not {y.shape}")
        if y.size and (y.min() < low or y.max() >= high):
            raise ValueError(f"{name} must be in [{low}, {high}), not [{y.min()}, {y.max()}]")

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.probs.shape[0])

    @property
    def k(self) -> int:
        """Number of classes."""
        return int(self.probs.shape[2])

    @property
    def votes(self) -> IntArray:
        """(n, m) class of each vote, -1 where it was not taken."""
        taken: BoolArray = np.asarray(np.isfinite(self.probs).all(axis=2))
        filled = np.where(taken[:, :, None], self.probs, 0.0)
        return np.where(taken, filled.argmax(axis=2), -1).astype(np.int64)

    @property
    def mean_probs(self) -> FloatArray:
        """(n, k) mean of the votes that were taken."""
        return np.asarray(np.nanmean(self.probs, axis=1), dtype=np.float64)
