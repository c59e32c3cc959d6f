"""Pure functions over arrays: signals of suspicion, fusion, selection, calibration and repair.

``STRATEGIES`` is the whole registry. Heavy libraries are imported where they are used, so that
reading this dict costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strategies.benefit import expected_benefit
from strategies.consistency import flip_rate, jensen_shannon, vote_entropy, votes_against
from strategies.learned import learned_error
from strategies.neighbours import knn_disagreement, knn_label_std, unsure_neighbours
from strategies.pool import FloatArray, Pool
from strategies.students import seed_disagreement, student_disagreement
from strategies.uncertainty import (
    class_rarity,
    entropy,
    entropy_calibrated,
    label_doubt,
    least_confidence,
    margin,
    off_label_mass,
    random,
)

__all__ = ["NEEDS", "STRATEGIES", "Pool", "Strategy"]

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

NEEDS: dict[str, frozenset[str]] = {
    "entropy": frozenset(),
    "entropy_calibrated": frozenset(),
    "label_doubt": frozenset(),
    "margin": frozenset(),
    "least_confidence": frozenset(),
    "off_label_mass": frozenset({"off_label_mass"}),
    "class_rarity": frozenset(),
    "flip_rate": frozenset({"votes"}),
    "votes_against": frozenset({"votes"}),
    "vote_entropy": frozenset({"votes"}),
    "jensen_shannon": frozenset({"votes"}),
    "knn_disagreement": frozenset({"embeddings"}),
    "knn_label_std": frozenset({"embeddings", "ordinal"}),
    "unsure_neighbours": frozenset({"embeddings"}),
    "student_disagreement": frozenset({"p_student"}),
    "seed_disagreement": frozenset({"p_student"}),
    "expected_benefit": frozenset({"embeddings"}),
    "learned_error": frozenset({"embeddings", "p_student"}),
    "random": frozenset(),
}
"""What each strategy cannot do without: 'votes' (two or more prompt variants), 'embeddings',
'p_student', 'off_label_mass', 'ordinal' (ordered classes). ``learned_error`` would run on less,
but it is with these that it is worth having."""
