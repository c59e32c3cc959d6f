"""Whether more LLM labels help: the sentence follows the curves, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from loop.errors import StageError
from loop.studies.plateau import _curve, _held_against, judged, nested_sizes

SIZES = (50, 100, 200, 400, 800)


def verdict(llm, reference, noise=0.002, seeds=5):
    """Judges curves (a, b, c) seen with seed noise and with noise of the test texts."""
    rng = np.random.default_rng(0)
    curves, replicated = {}, {}
    for kind, (a, b, c) in (("llm", llm), ("gold", reference)):
        exact = a - b * np.array(SIZES, float) ** -c
        point = exact + rng.normal(0, noise, (seeds, 5))
        drawn = point[None] + rng.normal(0, noise, (500, 1, 1))
        curves[kind], replicated[kind] = _curve(SIZES, point, drawn, 400, rng)
    gap, below, instead = _held_against(curves, replicated, "gold", 400)
    return judged(curves, "gold", gap, below, instead, "accuracy"), curves, below


def test_a_flat_curve_below_gold_says_that_more_will_not_help():
    (found, told), curves, below = verdict((0.7, 1.0, 1.0), (0.9, 1.0, 1.0))
    assert found == "will not help"
    assert told.startswith("More LLM labels will not help: 22 % (")
    assert "below the asymptote of gold labels" in told
    assert below.low <= 1 - 0.7 / 0.9 <= below.high
    assert curves["llm"].asymptote.low <= 0.7 <= curves["llm"].asymptote.high


def test_a_rising_curve_says_that_more_will_help():
    (found, told), _, _ = verdict((0.9, 2.0, 0.4), (0.9, 2.0, 0.4))
    assert found == "will help"
    assert "twice as many would add +" in told


def test_noise_says_that_it_cannot_be_told():
    (found, told), _, _ = verdict((0.75, 0.5, 0.5), (0.77, 0.5, 0.5), noise=0.03, seeds=3)
    assert found == "cannot be told"
    assert told.startswith("It is not known whether more LLM labels will help")


def test_intervals_of_the_asymptote_cover_it():
    rng, covered = np.random.default_rng(1), 0
    exact = 0.8 - 2.0 * np.array(SIZES, float) ** -0.8
    for _ in range(60):
        texts = rng.normal(0, 0.01)  # the luck of the test texts moves the whole curve
        point = exact + texts + rng.normal(0, 0.006, (4, 5))
        drawn = point[None] + rng.normal(0, 0.01, (300, 1, 1))
        curve, _ = _curve(SIZES, point, drawn, 400, rng)
        covered += curve.asymptote.low <= 0.8 <= curve.asymptote.high
        assert curve.fitted[0].low <= curve.fitted[0].high
    assert covered / 60 >= 0.88


def test_students_that_are_always_right_leave_open_what_other_texts_would_show():
    always = np.ones((4, 5))
    curve, replicated = _curve(
        SIZES, always, always[None].repeat(50, 0), 40, np.random.default_rng(0)
    )
    for metric in (*curve.points, curve.asymptote, *curve.fitted):
        assert metric.low == pytest.approx(40 / (40 + 1.96**2), abs=1e-3)
    assert curve.doubling.low < -0.05 < 0.05 < curve.doubling.high
    both = {"llm": curve, "gold": curve}
    gap, below, instead = _held_against(both, dict.fromkeys(both, replicated), "gold", 40)
    assert all(m.low < -0.05 < 0.05 < m.high for m in (gap, below, instead))


def test_sizes_are_nested_and_end_with_everything():
    assert nested_sizes(500, 5) == (31, 62, 125, 250, 500)
    assert nested_sizes(40, 5)[-1] == 40
    assert list(nested_sizes(40, 5)) == sorted(set(nested_sizes(40, 5)))
    with pytest.raises(StageError, match="20 labelled texts are too few"):
        nested_sizes(20, 5)
