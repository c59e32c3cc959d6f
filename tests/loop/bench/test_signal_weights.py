from __future__ import annotations

import numpy as np
import pytest

from loop.bench.signal_weights import EVEN_GOLD, learn_weights


def test_the_signal_that_found_errors_gains_weight_with_gold():
    rng = np.random.default_rng(1)
    shares = []
    for g in (10, 100, 2000):
        wrong = np.arange(g) % 3 == 0
        signals = {"good": wrong + rng.normal(size=g) * 0.3, "noise": rng.random(g)}
        weights = learn_weights(signals, wrong, np.full(g, 0.5))
        assert np.mean(list(weights.values())) == pytest.approx(1)
        shares.append(weights["good"])
    assert 1.0 <= shares[0] < shares[1] < shares[2]
    assert shares[0] < 1.2
    assert shares[2] > 1.7


def test_inclusion_probabilities_correct_the_restricted_range():
    # Suspects were chosen by `a`, which separates well but is flat among the chosen.
    rng = np.random.default_rng(2)
    a = np.concatenate([np.full(400, 0.9), rng.uniform(0, 0.8, 400)])
    wrong = np.concatenate([rng.random(400) < 0.5, a[400:] > 0.7])
    pi = np.concatenate([np.ones(400), np.full(400, 0.02)])
    b = wrong + rng.normal(size=800) * 1.2
    plain = learn_weights({"a": a, "b": b}, wrong, np.ones(len(wrong)))
    weighted = learn_weights({"a": a, "b": b}, wrong, pi)
    assert weighted["a"] > plain["a"]


@pytest.mark.parametrize("wrong", [np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)])
def test_without_both_outcomes_all_weigh_alike(wrong):
    signals = {"a": np.arange(len(wrong), dtype=float), "b": np.zeros(len(wrong))}
    assert learn_weights(signals, wrong, np.ones(len(wrong))) == {"a": 1.0, "b": 1.0}


def test_scarce_gold_shares_its_say_with_equal_weights():
    g = int(EVEN_GOLD)
    wrong = np.arange(g) % 2 == 0
    signals = {"good": wrong.astype(float), "constant": np.zeros(g)}
    weights = learn_weights(signals, wrong, np.ones(g))
    assert weights == pytest.approx({"good": 1.5, "constant": 0.5})
    first = {name: values[:2] for name, values in signals.items()}
    few = learn_weights(first, wrong[:2], np.ones(2))
    assert few["good"] == pytest.approx(1 + 2 / (2 + EVEN_GOLD))
