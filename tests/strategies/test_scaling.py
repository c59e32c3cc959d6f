from __future__ import annotations

import numpy as np
import pytest

from strategies.calibrate import (
    Bin,
    brier,
    brier_harm_p_value,
    calibration_error,
    fit_scaling,
    harm_p_value,
    reliability,
    scale_with_gold,
)


def sure_and_biased(n, k=3, slope=2.5, seed=0):
    """True probabilities, labels drawn from them, and an LLM too sure, fond of the last class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.2, (n, k))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    said = slope * np.log(p) + np.array([0.0, 0.0, 1.5])
    said = np.exp(said - said.max(axis=1, keepdims=True))
    return p, gold, said / said.sum(axis=1, keepdims=True)


def test_slope_and_bias_are_found_again():
    p, gold, said = sure_and_biased(6000)
    scaling = fit_scaling(said, gold)
    assert scaling.slope == pytest.approx(1 / 2.5, rel=0.1)
    assert scaling.bias[2] - scaling.bias[0] == pytest.approx(-1.5 / 2.5, abs=0.12)
    assert np.abs(scaling.apply(said) - p).mean() < 0.02


def test_the_gradient_is_that_of_the_loss():
    """Where the search ended no small step does better; a wrong gradient would end elsewhere."""
    _, gold, said = sure_and_biased(200)
    best = fit_scaling(said, gold)

    def loss(slope, bias):
        logits = slope * np.log(said) + bias
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        own = np.log(p[np.arange(200), gold]).sum()
        return -own + np.log(slope) ** 2 + 0.5 * bias @ bias

    least = loss(best.slope, best.bias)
    for step in (-0.05, 0.05):
        assert loss(best.slope * np.exp(step), best.bias) > least
        for c in range(3):
            assert loss(best.slope, best.bias + step * np.eye(3)[c]) > least


def test_scarce_gold_is_held_by_the_penalties():
    _, gold, said = sure_and_biased(12)
    gold = np.where(np.arange(12) < 9, said.argmax(axis=1), gold)
    best = fit_scaling(said, gold)
    p = best.apply(said)
    error = p - np.eye(3)[gold]  # the likelihood's slope, which the penalty's balances
    np.testing.assert_allclose(error.sum(axis=0), -2 * 0.5 * best.bias, atol=1e-3)
    by_slope = (error * np.log(said)).sum() * best.slope
    assert by_slope == pytest.approx(-2 * 1.0 * np.log(best.slope), abs=1e-3)
    assert abs(np.log(best.slope)) > 0.05
    assert np.abs(best.bias).max() > 0.05


def test_without_gold_nothing_changes():
    _, _, said = sure_and_biased(5)
    scaling = fit_scaling(said[:0], np.zeros(0, dtype=np.int64))
    np.testing.assert_allclose(scaling.apply(said), said, atol=1e-6)


def test_a_gold_items_own_answer_never_scales_it():
    _, gold, said = sure_and_biased(300)
    known = np.where(np.arange(300) < 120, gold, -1)
    one = scale_with_gold(said, known, rng=np.random.default_rng(0))
    other = known.copy()
    other[7] = (other[7] + 1) % 3
    two = scale_with_gold(said, other, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(one[7], two[7])
    assert not np.array_equal(one[200], two[200])
    np.testing.assert_allclose(one.sum(axis=1), 1.0)


def test_left_out_items_are_calibrated_better_too():
    _, gold, said = sure_and_biased(1500)
    known = np.where(np.arange(1500) < 200, gold, -1)
    scaled = scale_with_gold(said, known, rng=np.random.default_rng(0))
    for part in (slice(0, 200), slice(200, 1500)):
        before, after = (
            calibration_error(reliability(p[part], gold[part])) for p in (said, scaled)
        )
        assert after < 0.6 * before


def test_too_few_gold_items_for_the_folds_are_refused():
    _, gold, said = sure_and_biased(10)
    with pytest.raises(ValueError, match="5 folds"):
        scale_with_gold(said, np.where(np.arange(10) < 4, gold, -1), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="do not fit together"):
        fit_scaling(said, gold[:3])


def test_bins_and_their_error_by_hand():
    probs = np.array([[0.6, 0.4]] * 20 + [[0.9, 0.1]] * 20)
    gold = np.array([0] * 12 + [1] * 8 + [0] * 14 + [1] * 6)
    bins = reliability(probs, gold)
    assert [(b.confidence, b.accuracy, b.n) for b in bins] == [
        (pytest.approx(0.6), 0.6, 20),
        (pytest.approx(0.9), 0.7, 20),
    ]
    assert calibration_error(bins) == pytest.approx(0.1)
    assert reliability(probs[:0], gold[:0]) == []
    assert calibration_error([]) == 0.0
    assert calibration_error([Bin(1.0, 0.0, 3)]) == 1.0


def test_harm_is_told_from_help_and_from_chance():
    right, wrong = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    gold = np.zeros(40, dtype=np.int64)
    good = np.tile(right, (40, 1))
    worse = np.where(np.arange(40)[:, None] < 6, wrong, right)
    assert harm_p_value(good, worse, gold) == pytest.approx(1 / 64)
    assert harm_p_value(worse, good, gold) == 1.0
    assert harm_p_value(good, good, gold) == 1.0


def test_the_brier_score_and_its_harm():
    probs = np.array([[0.8, 0.2], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(brier(probs, np.array([0, 1, 0])), [0.08, 0.5, 2.0])
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 200)
    gold = (rng.random(200) < p).astype(np.int64)
    true = np.stack([1 - p, p], axis=1)
    flat = 0.5 + 0.2 * (true - 0.5)
    assert brier_harm_p_value(true, flat, gold) < 0.001
    assert brier_harm_p_value(flat, true, gold) > 0.999
    assert brier_harm_p_value(true, true, gold) == 1.0
    assert brier_harm_p_value(true[:1], flat[:1], gold[:1]) == 1.0


def test_the_brier_test_raises_as_many_false_alarms_as_it_may():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        p = rng.uniform(0.05, 0.95, 100)
        gold = (rng.random(100) < p).astype(np.int64)
        noise = rng.normal(0, 0.1, (2, 100))
        one, other = (np.clip(p + e, 0.01, 0.99) for e in noise)
        sides = [np.stack([1 - q, q], axis=1) for q in (one, other)]
        alarms += brier_harm_p_value(*sides, gold) < 0.05
    assert 8 <= alarms <= 36  # 5 % of 400 is 20
