"""loop.stability against krippendorff and scikit-learn, its traps, and its intervals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from loop import stability
from loop.stability import measure, paired_difference, recovered_share


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy(y, flips, seeds, k, generator):
    """Predictions that leave y with probability ``flips``, independently per seed."""
    preds = np.tile(y, (seeds, 1))
    away = generator.random(preds.shape) < flips
    return np.where(away, (preds + generator.integers(1, k, preds.shape)) % k, preds)


@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 40), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_alpha_equals_krippendorff(seed, s, n, k):
    preds = rng(seed).integers(0, k, (s, n))
    if len(np.unique(preds)) == 1:
        assert math.isnan(stability.alpha_k(preds))
        return
    expected = krippendorff.alpha(reliability_data=preds, level_of_measurement="nominal")
    assert stability.alpha_k(preds) == pytest.approx(expected, abs=1e-12)
    found = measure(preds, None, k, bootstrap=0, rng=rng())
    for c in range(k):
        if 0 < (preds == c).mean() < 1:
            one = krippendorff.alpha(
                reliability_data=(preds == c).astype(int), level_of_measurement="nominal"
            )
            assert found.alpha_per_class[c].value == pytest.approx(one, abs=1e-12)
        else:
            assert math.isnan(found.alpha_per_class[c].value)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 40), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_accuracy_parts_equal_scikit_learn(seed, s, n, k):
    generator = rng(seed)
    preds, y = generator.integers(0, k, (s, n)), generator.integers(0, k, n)
    weight = generator.uniform(0.5, 3, n)
    found = measure(preds, y, k, weight=weight, bootstrap=0, rng=rng())
    accuracy = [accuracy_score(y, p, sample_weight=weight) for p in preds]
    macro = [f1_score(y, p, average="macro", sample_weight=weight) for p in preds]
    assert found.accuracy.value == pytest.approx(np.mean(accuracy))
    assert found.macro_f1.value == pytest.approx(np.mean(macro))
    if s > 1:
        assert found.accuracy_sd.value == pytest.approx(np.std(accuracy, ddof=1))
        assert found.macro_f1_sd.value == pytest.approx(np.std(macro, ddof=1))
    for c in set(y.tolist()):
        recall = [
            recall_score(y, p, labels=[c], average=None, sample_weight=weight)[0] for p in preds
        ]
        assert found.recall[c].value == pytest.approx(np.mean(recall))
        predicted = [p for p in preds if (p == c).any()]
        if predicted:
            precision = [
                precision_score(y, p, labels=[c], average=None, sample_weight=weight)[0]
                for p in predicted
            ]
            assert found.precision[c].value == pytest.approx(np.mean(precision))


def test_shares_by_hand():
    preds = np.array([[0, 1, 1, 2], [0, 1, 0, 1], [0, 1, 1, 0]])
    y = np.array([0, 0, 1, 2])
    assert stability.p_uc(preds) == 0.5
    assert stability.churn(preds) == pytest.approx((0 + 0 + 2 / 3 + 1) / 4)
    np.testing.assert_allclose(stability.flip_prob(preds), [0, 0, 2 / 3, 1])
    assert stability.reliable_accuracy(preds, y) == 0.25
    assert stability.reliable_accuracy(preds, [0, -1, -1, -1]) == 1.0


def test_one_class_everywhere_and_one_seed_are_undefined_and_say_why():
    one_class = measure(np.zeros((5, 9), int), np.zeros(9, int), 3, rng=rng())
    assert math.isnan(one_class.alpha_k.value)
    assert one_class.alpha_k.note == stability.ONE_CLASS
    assert one_class.p_uc.value == 1
    one_seed = measure(np.array([[0, 1, 0]]), None, 2, rng=rng())
    assert math.isnan(one_seed.alpha_k.value)
    assert math.isnan(one_seed.churn.value)
    assert one_seed.alpha_k.note == stability.ONE_SEED
    assert math.isnan(measure(np.array([[0, 1]]), [0, 1], 2, rng=rng()).accuracy_sd.value)
    none = measure(np.empty((3, 0), int), None, 2, rng=rng())
    assert math.isnan(none.p_uc.value)


def test_a_rare_deviation_is_explained():
    preds = np.zeros((5, 10_000), int)
    preds[0, 0] = 1
    found = measure(preds, None, 2, bootstrap=0, rng=rng())
    assert abs(found.alpha_k.value) < 0.01
    assert "100% of all predictions are one class" in found.alpha_k.note


def test_unknown_gold_is_left_out():
    generator = rng(3)
    y = generator.integers(0, 3, 200)
    preds = noisy(y, 0.3, 5, 3, generator)
    part = np.where(np.arange(200) < 80, y, -1)
    whole = measure(preds, part, 3, bootstrap=0, rng=rng())
    only = measure(preds[:, :80], y[:80], 3, bootstrap=0, rng=rng())
    assert whole.known == 80
    for name in ("accuracy", "macro_f1", "reliable_accuracy", "accuracy_sd"):
        assert getattr(whole, name).value == pytest.approx(getattr(only, name).value)
    assert whole.alpha_k.value == pytest.approx(stability.alpha_k(preds))
    assert measure(preds, np.full(200, -1), 3, bootstrap=0, rng=rng()).accuracy is None


def test_weights_undo_a_biased_draw():
    generator = rng(5)
    y = generator.integers(0, 2, 40_000)
    easy = generator.random(40_000) < 0.5
    preds = np.where(easy, y, noisy(y, 0.4, 3, 2, generator))
    pi = np.where(easy, 0.05, 0.5)
    drawn = generator.random(40_000) < pi
    found = measure(preds[:, drawn], y[drawn], 2, weight=1 / pi[drawn], bootstrap=0, rng=rng())
    truth = measure(preds, y, 2, bootstrap=0, rng=rng())
    for name in ("accuracy", "p_uc", "alpha_k", "reliable_accuracy"):
        assert getattr(found, name).value == pytest.approx(getattr(truth, name).value, abs=0.03)


@pytest.mark.parametrize("name", ["alpha_k", "p_uc", "churn", "accuracy", "macro_f1"])
def test_intervals_cover_what_they_say(name):
    """200 draws of 150 items from a population of 30,000: about 95 % cover its value."""
    generator = rng(11)
    y = generator.choice(3, 30_000, p=[0.6, 0.3, 0.1])
    preds = noisy(y, generator.choice([0.02, 0.5], 30_000), 5, 3, generator)
    truth = getattr(measure(preds, y, 3, bootstrap=0, rng=rng()), name).value
    covered = 0
    for _ in range(200):
        rows = generator.choice(30_000, 150, replace=False)
        found = getattr(measure(preds[:, rows], y[rows], 3, bootstrap=200, rng=generator), name)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_same_generator_same_intervals_and_quick():
    generator = rng(2)
    y = generator.integers(0, 4, 2000)
    preds = noisy(y, 0.2, 5, 4, generator)
    started = time.process_time()
    first = measure(preds, y, 4, rng=rng(9))
    assert time.process_time() - started < 6
    assert first == measure(preds, y, 4, rng=rng(9))
    assert first.alpha_k.low < first.alpha_k.value < first.alpha_k.high


def test_json_has_no_nan():
    found = measure(np.zeros((2, 3), int), np.array([0, 1, -1]), 2, bootstrap=10, rng=rng())
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["alpha_k"]["value"] is None
    assert json.loads(text)["accuracy"]["value"] == 0.5
    assert measure(np.zeros((2, 3), int), None, 2, rng=rng()).to_json()["accuracy"] is None


def test_recovered_share():
    assert recovered_share(75, 50, 100, noise=1) == (0.5, 50)
    assert recovered_share(40, 50, 100, noise=1) == (pytest.approx(-0.2), 50)
    assert recovered_share(80, 90, 70, noise=1) == (0.5, -20)
    assert recovered_share(75, 99.5, 100, noise=1) == (None, 0.5)
    assert recovered_share(math.nan, 50, 100, noise=1)[0] is None
    with pytest.raises(ValueError, match="noise must be >= 0"):
        recovered_share(1, 2, 3, noise=-1)


def test_paired_difference_sees_what_separate_intervals_hide():
    generator = rng(4)
    y = generator.integers(0, 3, 400)
    before = noisy(y, 0.20, 5, 3, generator)
    after = before.copy()
    mended = generator.random(before.shape) < 0.25
    after[mended] = np.broadcast_to(y, before.shape)[mended]
    for name in ("alpha_k", "p_uc", "accuracy", "macro_f1", "reliable_accuracy"):
        found = paired_difference(before, after, y, name, k=3, rng=rng())
        assert found.clear
        assert found.value > 0
        assert found.prob_above_zero > 0.97
    assert paired_difference(before, after, None, "churn", k=3, rng=rng()).high < 0
    same = paired_difference(before, before, y, "accuracy", k=3, rng=rng())
    assert (same.value, same.prob_above_zero, same.clear) == (0, 0.5, False)


def test_bad_input_is_refused():
    good = np.zeros((3, 4), int)
    with pytest.raises(ValueError, match=r"preds must be \(s, n\)"):
        measure([0, 1], None, 2, rng=rng())
    with pytest.raises(ValueError, match=r"preds must lie in 0\.\.1"):
        measure(good + 2, None, 2, rng=rng())
    with pytest.raises(ValueError, match="integer classes"):
        measure(good * 0.5, None, 2, rng=rng())
    with pytest.raises(ValueError, match=r"y must have shape \(4,\)"):
        measure(good, [0, 1], 2, rng=rng())
    with pytest.raises(ValueError, match="finite and > 0"):
        measure(good, None, 2, weight=[1, 1, 0, 1], rng=rng())
    with pytest.raises(ValueError, match="Unknown metric 'kappa'"):
        paired_difference(good, good, None, "kappa", k=2, rng=rng())
    with pytest.raises(ValueError, match="needs gold labels"):
        paired_difference(good, good, None, "accuracy", k=2, rng=rng())
    with pytest.raises(ValueError, match="equal numbers"):
        paired_difference(good, good[:2], None, "p_uc", k=2, rng=rng())


def test_import_stays_light():
    code = "import sys, loop.stability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
