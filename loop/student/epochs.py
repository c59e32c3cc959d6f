"""How many epochs a small pool needs, so that a student takes steps enough to learn rare labels."""

from __future__ import annotations

import math

ENOUGH_STEPS = 150
"""MiniLM learned no rare class in 57 steps and learned it in 171 (docs/measurements/student.md)."""

USUAL, MOST = 3, 10
"""Epochs of the recipe of arXiv 2504.15432, and the most that are advised."""


def steps_of(texts: int, epochs: int, batch_size: int) -> int:
    """Steps that a student takes over so many texts."""
    return epochs * math.ceil(texts / batch_size)


def enough_epochs(texts: int, batch_size: int = 16) -> int:
    """The usual epochs, or as many more as give ``ENOUGH_STEPS``.

    Source: Mosbach et al. 2021, arXiv 2006.04884, on the instability of few steps.
    """
    wanted = math.ceil(ENOUGH_STEPS / max(1, math.ceil(texts / batch_size)))
    return min(MOST, max(USUAL, wanted))
