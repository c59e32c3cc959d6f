"""What each strategy needs of the data; a leaf, so that the campaign file can be checked by it."""

from __future__ import annotations

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

BY_NEIGHBOURS = frozenset({"knn_disagreement", "knn_label_std", "learned_error"})
"""Strategies that read ``Pool.neighbours``, which are worth keeping from one to the next."""
