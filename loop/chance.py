"""Chance that can be repeated: it depends on a seed and a purpose, never on the moment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

STREAMS = {
    "prompt examples": 1,
    "signals": 2,
    "batch": 3,
    "out-of-fold students": 4,
    "repair": 6,
    "intervals": 7,
    "differences": 8,
    "cascade": 9,  # without a round, so that "frozen agreement" is another stream
    "frozen agreement": 9,
    "calibration": 10,
    "price of a goal": 11,  # without a round, so that "final model" is another stream
    "final model": 11,
    "foreseen errors": 12,
    "rivals": 12,  # without a round, so that "foreseen errors" is another stream
    "variance": 13,
    "variance draws": 14,
    "plateau": 15,
    "plateau draws": 16,
    "states": 17,
    "hidden checks": 18,
    "plan": 19,
}
"""What goldloop draws, by the number that keeps each drawing apart from the others.

A number is never changed, so that a campaign that continues draws what it would have drawn. A
stream without a round that uses ``then`` may repeat one of round 1: the prompt examples that round
3 draws again and the batch of round 1 come of the same numbers, (seed, 1, 3).
"""


def stream(purpose: str, *key: int, then: Sequence[int] = ()) -> np.random.Generator:
    """The random numbers of one purpose.

    Args:
        purpose: one of ``STREAMS``.
        key: a seed, and a round's number where every round draws again.
        then: what tells several drawings of one purpose apart.
    Raises:
        KeyError: an unknown purpose.
    """
    return np.random.default_rng([*key, STREAMS[purpose], *then])


def unit_hash(seed: int, purpose: str, item: str) -> float:
    """A number in [0, 1) that depends only on the seed, the purpose and the item's id."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{item}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
