from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.calibrate import (
    batch_calibrate,
    calibrated_votes,
    contextual_calibrate,
    effective_size,
    inverse_probability,
    prior_from_gold,
)
from strategies.pool import Pool


def biased(n, k, seed=0):
    """Answers of a prompt that triples the odds of class 0, and the truth behind them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)
    probs = rng.dirichlet(np.ones(k), size=n) + 0.6 * np.eye(k)[truth]
    probs[:, 0] *= 4.0
    return probs / probs.sum(axis=1, keepdims=True), truth


def test_the_plain_formula(monkeypatch):
    monkeypatch.setattr("strategies.calibrate.PSEUDO_ROWS", 0.0)
    probs, _ = biased(50, 3)
    prior = np.array([0.5, 0.3, 0.2])
    expected = probs / probs.mean(axis=0) * prior
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(batch_calibrate(probs, prior), expected)


def test_a_biased_prompt_answers_better_once_calibrated():
    probs, truth = biased(2000, 4)
    before = (probs.argmax(axis=1) == truth).mean()
    after = (batch_calibrate(probs).argmax(axis=1) == truth).mean()
    assert after > before + 0.1


@given(n=st.integers(1, 30), m=st.integers(1, 3), k=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_rows_sum_to_one_and_nan_rows_stay(n, m, k, seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, 0.05), size=(n, m))
    probs[:, :, -1] = 0.0  # a class that never gets mass
    probs[:, :, 0] += 1e-9
    probs /= probs.sum(axis=2, keepdims=True)
    missing = rng.random((n, m)) < 0.3
    probs[missing] = np.nan
    out = batch_calibrate(probs, rng.dirichlet(np.ones(k)))
    assert np.array_equal(np.isnan(out).all(axis=2), missing)
    np.testing.assert_allclose(out[~missing].sum(axis=1), 1.0)
    assert (out[~missing][:, -1] == 0).all()


def test_one_item_keeps_what_it_says(monkeypatch):
    probs = np.array([[0.9, 0.1]])
    out = batch_calibrate(probs)
    assert out[0, 0] > 0.8
    monkeypatch.setattr("strategies.calibrate.PSEUDO_ROWS", 0.0)
    np.testing.assert_allclose(batch_calibrate(probs), [[0.5, 0.5]])


def test_variants_are_calibrated_one_by_one():
    first, _ = biased(300, 3)
    second = first[:, ::-1]
    both = batch_calibrate(np.stack([first, second], axis=1))
    np.testing.assert_allclose(both[:, 0], batch_calibrate(first))
    np.testing.assert_allclose(both[:, 1], batch_calibrate(second))


def test_a_variant_asked_about_one_class_only_is_not_flattened():
    probs, truth = biased(2000, 2)
    asked = (truth == 1) | (np.arange(2000) % 10 == 0)
    cascade = np.stack([probs, probs], axis=1)
    cascade[~asked, 1] = np.nan
    kept = (batch_calibrate(cascade)[asked, 1].argmax(axis=1) == truth[asked]).mean()
    flattened = (batch_calibrate(probs[asked]).argmax(axis=1) == truth[asked]).mean()
    assert kept > flattened + 0.02


def test_items_without_an_answer_have_no_part_in_the_means():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([8.0, 2.0, 1.0], size=(60, 2))
    alone = Pool(probs, np.zeros(60, dtype=np.int64), np.full(60, -1))
    silent = np.full((40, 2, 3), np.nan)
    silent[:, 0] = 1 / 3
    both = np.concatenate([probs, silent])
    answered = np.arange(100) < 60
    pool = Pool(both, np.zeros(100, dtype=np.int64), np.full(100, -1), answered=answered)
    found = calibrated_votes(pool)
    np.testing.assert_allclose(found[:60], calibrated_votes(alone))
    np.testing.assert_allclose(found[60:, 0], 1 / 3)
    assert np.isnan(found[60:, 1]).all()
    with pytest.raises(ValueError, match="answered must be"):
        replace(pool, answered=answered[:60])


def test_a_prior_that_rules_a_class_out_breaks_no_row():
    out = batch_calibrate(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(out.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    "prior", [np.ones(3), np.array([-0.5, 1.5]), np.zeros(2), np.array([np.nan, 1])]
)
def test_a_prior_that_is_none_is_refused(prior):
    with pytest.raises(ValueError, match="class shares"):
        batch_calibrate(np.full((4, 2), 0.5), prior)


def test_weighted_gold_undoes_the_selection():
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.1).astype(int)
    pi = np.where(truth == 1, 0.5, 0.05)
    gold = np.where(rng.random(len(truth)) < pi, truth, -1)
    naive = prior_from_gold(gold, None, 2)
    weighted = prior_from_gold(gold, pi, 2)
    assert naive[1] > 0.4
    assert weighted[1] == pytest.approx(0.1, abs=0.02)


def test_one_heavy_weight_does_not_outvote_the_assumed_shares():
    shares = prior_from_gold(np.array([0, 1, 1, 1]), np.array([0.01, 1, 1, 1]), 2)
    size = 103**2 / (100**2 + 3)  # Kish's: little more than one label
    expected = np.array([100, 3]) / 103 * size + 1
    np.testing.assert_allclose(shares, expected / expected.sum())


def test_little_gold_stays_near_the_assumed_shares():
    towards = np.array([0.7, 0.2, 0.1])
    gold = np.full(50, -1)
    np.testing.assert_allclose(prior_from_gold(gold, None, 3, towards=towards), towards, atol=1e-5)
    gold[0] = 2
    one = prior_from_gold(gold, None, 3, pseudo=10, towards=towards)
    assert 0.1 < one[2] < 0.15
    assert one.sum() == pytest.approx(1)


def test_weights_are_inverse_and_bad_probabilities_refused():
    known = np.array([True, True, False])
    weight = inverse_probability(known, np.array([1.0, 0.25, np.nan]))
    assert weight.tolist() == [1.0, 4.0]
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        inverse_probability(known, np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="must be"):
        inverse_probability(known, np.ones(2))


def test_effective_size():
    assert effective_size(np.full(7, 3.0)) == pytest.approx(7)
    assert effective_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_size(np.zeros(0)) == 0


def test_contextual_calibration_by_hand():
    probs = np.array([[[0.8, 0.2], [0.6, 0.4]], [[0.5, 0.5], [np.nan, np.nan]]])
    content_free = np.array([[0.8, 0.2], [0.5, 0.5]])
    found = contextual_calibrate(probs, content_free)
    np.testing.assert_allclose(found[0], [[0.5, 0.5], [0.6, 0.4]])
    np.testing.assert_allclose(found[1, 0], [0.2, 0.8])
    assert np.isnan(found[1, 1]).all()
    tilted = contextual_calibrate(probs, content_free, np.array([3.0, 1.0]))
    np.testing.assert_allclose(tilted[0, 0], [0.75, 0.25])
    never = contextual_calibrate(probs, np.array([[1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(never[0, 0].sum(), 1.0)  # a class it never says is no division by 0
    for wrong in (probs[0], probs[:, :1]):
        with pytest.raises(ValueError, match="do not fit"):
            contextual_calibrate(wrong, content_free)
