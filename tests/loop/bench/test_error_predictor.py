"""The benchmark's error predictor learns where the LLM errs."""

from __future__ import annotations

import numpy as np
import pytest

from loop.bench.error_predictor import BASE_ERROR, COMPONENTS, build_features, error_predictor
from tests.strategies.signals.test_learned_error import problem


def test_without_gold_it_says_the_base_rate():
    features, _, _, rng = problem(n=20)
    out = error_predictor(features, np.zeros(0, bool), np.zeros(0, np.int64), rng=rng)
    np.testing.assert_allclose(out.p_wrong, BASE_ERROR)
    assert out.auroc is None
    assert out.n_gold == 0


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_it_finds_where_the_llm_errs(method):
    features, wrong, p, rng = problem()
    rows = rng.choice(len(wrong), 250, replace=False)
    out = error_predictor(features, wrong[rows], rows, rng=rng, method=method)
    rest = np.setdiff1d(np.arange(len(wrong)), rows)
    assert np.corrcoef(out.p_wrong[rest], p[rest])[0, 1] > 0.9
    assert out.auroc > 0.8
    assert ((out.p_wrong >= 0) & (out.p_wrong <= 1)).all()
    if method == "logistic":
        assert out.p_wrong[rest].mean() == pytest.approx(p.mean(), abs=0.06)


def test_the_held_out_score_is_at_chance_where_there_is_nothing_to_learn():
    aurocs = []
    for seed in range(20):
        features, _, _, rng = problem(n=300, seed=seed, f=40)
        wrong = rng.random(100) < 0.3
        aurocs.append(error_predictor(features, wrong, np.arange(100), rng=rng).auroc)
    # In-sample it would be far above 0.9 with 40 features.
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.06)


def test_predictions_spread_as_gold_comes_in():
    features, wrong, _, rng = problem()
    spread = [
        np.std(error_predictor(features, wrong[:g], np.arange(g), rng=rng).p_wrong)
        for g in (3, 30, 300)
    ]
    assert spread[0] < 0.5 * spread[1] < 0.5 * spread[2]


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_an_items_own_answer_never_enters_its_score(method):
    features, wrong, _, _ = problem(n=200)
    rows = np.arange(40)
    for row in (0, 17, 39):
        flipped = wrong[rows].copy()
        flipped[row] = ~flipped[row]
        one, two = (
            error_predictor(features, w, rows, rng=np.random.default_rng(3), method=method)
            for w in (wrong[rows], flipped)
        )
        assert one.p_wrong[row] == pytest.approx(two.p_wrong[row], abs=1e-12)
        assert not np.allclose(one.p_wrong, two.p_wrong)


@pytest.mark.parametrize("all_wrong", [True, False])
def test_one_sided_gold_gives_no_certainty_and_no_auroc(all_wrong):
    features, _, _, rng = problem(n=100)
    out = error_predictor(features, np.full(30, all_wrong), np.arange(30), rng=rng)
    assert out.auroc is None
    assert ((out.p_wrong > 0.0) & (out.p_wrong < 1.0)).all()
    assert (out.p_wrong.mean() > 0.8) == all_wrong


def test_features_hold_signals_classes_and_components():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(100, 30)).astype(np.float32)
    y = rng.integers(3, size=100)
    signals = {"a": rng.random(100) ** 9, "b": np.zeros(100)}
    features = build_features(signals, y, 3, embeddings)
    assert features.shape == (100, 2 + 3 + COMPONENTS)
    np.testing.assert_allclose(features[:, 0].std(), 1.0, atol=0.02)
    np.testing.assert_allclose(features[:, 1], 0.0)
    np.testing.assert_allclose(features[:, 5:].std(axis=0), 0.5, atol=1e-6)
    assert build_features({}, y, 3, embeddings[:, :4]).shape == (100, 3 + 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_gold": np.array([0, 0])}, "repeat"),
        ({"wrong": np.zeros(3, bool)}, "like rows_gold"),
        ({"method": "tree"}, "Unknown method 'tree'"),
        ({"features": np.full((5, 2), np.nan)}, "finite"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {
        "features": np.zeros((5, 2)),
        "wrong": np.array([True, False]),
        "rows_gold": np.array([0, 1]),
        "rng": np.random.default_rng(0),
    }
    with pytest.raises(ValueError, match=message):
        error_predictor(**(given | change))
