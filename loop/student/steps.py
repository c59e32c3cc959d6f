"""How a small pool is trained on, so that a student takes steps enough to learn rare labels."""

from __future__ import annotations

import math

ENOUGH_STEPS = 300
"""In 150 steps MiniLM learned a rare class or not, by chance (docs/measurements/student.md)."""

USUAL_BATCH, USUAL_EPOCHS = 16, 3
"""The recipe of arXiv 2504.15432."""

SMALL_BATCH, MOST_EPOCHS = 8, 20


def steps_of(texts: int, batch_size: int, epochs: int) -> int:
    """Steps that a student takes over so many texts."""
    return epochs * math.ceil(texts / batch_size)


def fitting_steps(texts: int) -> tuple[int, int]:
    """Batch size and epochs: the usual, or what gives about ``ENOUGH_STEPS``.

    Smaller batches come first, because they cost next to nothing; more epochs after that.

    Args:
        texts: of the pool; so few that ``MOST_EPOCHS`` do not suffice get these.
    Source: Mosbach et al. 2021, arXiv 2006.04884: few steps make fine-tuning unstable; 20 epochs.
    """
    if steps_of(texts, USUAL_BATCH, USUAL_EPOCHS) >= ENOUGH_STEPS:
        return USUAL_BATCH, USUAL_EPOCHS
    wanted = math.ceil(ENOUGH_STEPS / max(1, steps_of(texts, SMALL_BATCH, 1)))
    return SMALL_BATCH, min(MOST_EPOCHS, max(USUAL_EPOCHS, wanted))
