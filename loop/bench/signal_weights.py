"""Weights of several signals, learned from what earlier rounds found; a policy of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strategies.calibrate import effective_size
from strategies.fuse import weighted_auroc
from strategies.pool import BoolArray, FloatArray

EVEN_GOLD = 50.0  # effective number of gold labels at which skill and equal weights count the same


def learn_weights(
    signals: Mapping[str, FloatArray],
    wrong: BoolArray,
    inclusion_prob: FloatArray,
) -> dict[str, float]:
    """Weights of the signals from how well each told wrong labels from right ones so far.

    A signal's skill is its area under the ROC curve above chance on the bought items, weighted by
    1/pi because the bought items are mostly suspects already. Skill and equal weights are mixed;
    the scarcer of wrong and right labels sets how much the skill counts.

    Args:
        signals: name -> (g,) suspicion that each bought item had when it was chosen.
        wrong: (g,) bool, whether the LLM's label turned out wrong.
        inclusion_prob: (g,) in (0, 1].

    Returns:
        Name -> weight >= 0; the mean weight is 1.

    Raises:
        ValueError: no signal, or shapes that differ.
    """
    if not signals:
        raise ValueError("learn_weights needs at least one signal")
    is_wrong = np.asarray(wrong, dtype=bool)
    for name, values in signals.items():
        if values.shape != is_wrong.shape:
            raise ValueError(f"signal {name!r} must be {is_wrong.shape}, not {values.shape}")
    pi = inclusion_prob
    if pi.shape != is_wrong.shape or not ((pi > 0) & (pi <= 1 + 1e-9)).all():
        raise ValueError(f"inclusion_prob must be {is_wrong.shape} and in (0, 1]")
    weight = 1.0 / pi
    scarce = min(effective_size(weight[is_wrong]), effective_size(weight[~is_wrong]))
    equal = dict.fromkeys(signals, 1.0)
    if scarce == 0:
        return equal
    skill = {
        name: max(0.0, 2.0 * weighted_auroc(values, is_wrong, weight) - 1.0)
        for name, values in signals.items()
    }
    mean = sum(skill.values()) / len(skill)
    if mean == 0:
        return equal
    trust = 2.0 * scarce / (2.0 * scarce + EVEN_GOLD)
    return {name: (1.0 - trust) + trust * skill[name] / mean for name in signals}
