"""Curves over bought labels: what they say of points that they have not seen."""

import numpy as np
import pytest

from loop.studies.gain_curve import fit_gain_curve


def truth(n, a=0.85, b=0.25, c=0.6, t=40.0):
    return a - b * (1 + n / t) ** -c


def test_intervals_hold_later_values_and_the_labels_to_a_goal():
    labels, later, goal = np.array([0.0, 50, 100, 150]), 600.0, 0.78
    needed = 40 * (0.25 / (0.85 - goal)) ** (1 / 0.6) - 40
    value_in = labels_in = 0
    widths = []
    for draw in range(60):
        rng = np.random.default_rng(draw)
        shared, own = 0.015, np.full(4, 0.01)
        seen = truth(labels) + shared * rng.standard_normal() + own * rng.standard_normal(4)
        curve = fit_gain_curve(labels, seen, shared, own, rng=rng)
        low, high = curve.quantiles(curve.at(later), (0.025, 0.975))
        value_in += low <= truth(later) <= high
        widths.append(high - low)
        low, high = curve.quantiles(curve.labels_to(goal), (0.025, 0.975))
        labels_in += low <= needed <= high
    assert value_in >= 55, "19 of 20, less what luck allows"
    assert labels_in >= 55
    assert np.mean(widths) < 0.2, "an interval that holds everything says nothing"


def test_a_curve_that_does_not_rise_reaches_nothing_and_one_above_the_goal_needs_nothing():
    rng = np.random.default_rng(0)
    flat = fit_gain_curve([0, 50, 100], [0.7, 0.7, 0.7], 0.0, [1e-3] * 3, rng=rng)
    assert flat.quantiles(flat.labels_to(0.9), (0.025,))[0] > 1000
    assert flat.quantiles(flat.labels_to(0.6), (0.5, 0.975)) == [0.0, 0.0]
    assert flat.weight.sum() == pytest.approx(1)
    assert np.isfinite(flat.at(1e6)).all()


@pytest.mark.parametrize(
    ("labels", "own"),
    [([0, 50], [0.1] * 2), ([0, 50, 50], [0.1] * 3), ([0, 50, 90], [0.1, 0.0, 0.1])],
)
def test_too_little_is_refused(labels, own):
    with pytest.raises(ValueError, match=r"three points|must rise"):
        fit_gain_curve(labels, [0.5] * len(labels), 0.0, own, rng=np.random.default_rng(0))
