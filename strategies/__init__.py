"""Pure functions over arrays: signals of suspicion, fusion, selection, calibration and repair.

``STRATEGIES`` is the whole registry. Heavy libraries are imported where they are used, so that
reading this dict costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strategies.pool import FloatArray, Pool
from strategies.signals.benefit import expected_benefit
from strategies.signals.consistency import flip_rate, jensen_shannon, vote_entropy, votes_against
from strategies.signals.learned_error import learned_error
from strategies.signals.neighbours import knn_disagreement, knn_label_std, unsure_neighbours
from strategies.signals.students import seed_disagreement, student_disagreement
from strategies.signals.uncertainty import (
    class_rarity,
    entropy,
    entropy_calibrated,
    label_doubt,
    least_confidence,
    margin,
    off_label_mass,
    random,
)

__all__ = ["STRATEGIES", "FloatArray", "Pool", "Strategy"]

Strategy = Callable[[Pool, np.random.Generator], FloatArray]
"""``(pool, rng) -> suspicion (n,)``; finite, higher = more suspect."""

STRATEGIES: dict[str, Strategy] = {
    "entropy": entropy,
    "entropy_calibrated": entropy_calibrated,
    "label_doubt": label_doubt,
    "margin": margin,
    "least_confidence": least_confidence,
    "off_label_mass": off_label_mass,
    "class_rarity": class_rarity,
    "flip_rate": flip_rate,
    "votes_against": votes_against,
    "vote_entropy": vote_entropy,
    "jensen_shannon": jensen_shannon,
    "knn_disagreement": knn_disagreement,
    "knn_label_std": knn_label_std,
    "unsure_neighbours": unsure_neighbours,
    "student_disagreement": student_disagreement,
    "seed_disagreement": seed_disagreement,
    "expected_benefit": expected_benefit,
    "learned_error": learned_error,
    "random": random,
}
