from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from strategies.fuse import fuse_ranks, weighted_auroc

values = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda v: np.array(v, float))


@given(values)
def test_one_signal_keeps_its_order_and_its_ties(signal):
    fused = fuse_ranks({"a": signal})
    assert ((fused >= 0) & (fused <= 1)).all()
    np.testing.assert_array_equal(rankdata(fused), rankdata(signal))


@given(values)
def test_only_ranks_count_and_a_constant_signal_changes_no_order(signal):
    other = np.sin(np.arange(len(signal)) * 7.0)
    fused = fuse_ranks({"a": signal, "b": other})
    stretched = fuse_ranks({"a": signal**3 * 1e6, "b": other})
    np.testing.assert_allclose(fused, stretched)
    with_constant = fuse_ranks({"a": signal, "b": other, "c": np.zeros(len(signal))})
    np.testing.assert_allclose(np.diff(with_constant) * 3, np.diff(fused) * 2, atol=1e-12)


def test_weights_scale_and_missing_ones_are_zero():
    a, b = np.arange(5.0), -np.arange(5.0)
    np.testing.assert_allclose(fuse_ranks({"a": a, "b": b}), 0.5)
    np.testing.assert_allclose(fuse_ranks({"a": a, "b": b}, {"a": 2.0}), a / 4)
    np.testing.assert_allclose(fuse_ranks({"a": a, "b": b}, {"a": 3, "b": 1})[-1], 0.75)


@pytest.mark.parametrize(
    ("signals", "weights", "message"),
    [
        ({}, None, "at least one"),
        ({"a": np.ones(3), "b": np.ones(4)}, None, r"\(n,\)"),
        ({"a": np.array([1.0, np.nan])}, None, "not finite"),
        ({"a": np.ones(3)}, {"b": 1.0}, "Unknown signal 'b'"),
        ({"a": np.ones(3)}, {"a": -1.0}, ">= 0"),
        ({"a": np.ones(3)}, {"a": 0.0}, "positive sum"),
    ],
)
def test_wrong_input_is_refused(signals, weights, message):
    with pytest.raises(ValueError, match=message):
        fuse_ranks(signals, weights)


def test_auroc_agrees_with_the_reference():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(6, size=80) / 6, rng.random(80) < 0.3
    weight = rng.uniform(1, 9, size=80)
    expected = roc_auc_score(positive, scores, sample_weight=weight)
    assert weighted_auroc(scores, positive, weight) == pytest.approx(expected)
