import numpy as np
import pytest

from strategies.compare import _less_bias, compare
from strategies.estimate import unseen


def test_by_hand():
    gold = np.array([0] * 40 + [1] * 60)
    first = gold.copy()
    first[:10] = 1  # ten of class 0 are called 1
    second = gold.copy()
    second[:4], second[99] = 1, -1
    a, b = compare(np.stack([first, second]), gold, 2, rng=np.random.default_rng(0))
    assert a.accuracy.value == pytest.approx(0.90)
    assert a.precision[0].value == 1.0
    assert a.recall[0].value == pytest.approx(0.75)
    assert a.precision[1].value == pytest.approx(60 / 70)
    assert a.recall[1].value == 1.0
    assert a.macro_f1.value == pytest.approx((60 / 70 + 120 / 130) / 2)
    assert (a.unanswered, a.accuracy_gain, a.macro_f1_gain) == (0, None, None)
    assert b.unanswered == 1
    assert b.accuracy.value == pytest.approx(0.95)  # no answer is no right answer
    assert b.accuracy_gain.value == pytest.approx(0.05)
    assert b.accuracy_gain.low < 0.05 < b.accuracy_gain.high
    assert b.kl.value < a.kl.value


def test_equal_labellers_differ_by_nothing_and_rare_classes_say_nothing():
    rng = np.random.default_rng(0)
    gold = np.r_[rng.integers(2, size=98), 2, 2]
    said = np.where(rng.random(100) < 0.2, (gold + 1) % 3, gold)
    one, same = compare(np.stack([said, said]), gold, 3, rng=rng)
    assert same.accuracy_gain.value == 0.0  # and among other texts they may differ a little
    assert -0.05 < same.accuracy_gain.low < -0.03 < 0.03 < same.accuracy_gain.high < 0.05
    perfect, worst = compare(np.stack([gold, (gold + 1) % 3]), gold, 3, rng=rng)
    assert (perfect.accuracy.low, perfect.accuracy.high) == pytest.approx((0.963, 1.0), abs=1e-3)
    assert (worst.accuracy.low, worst.accuracy.high) == pytest.approx((0.0, 0.037), abs=1e-3)
    assert perfect.macro_f1.low < 0.7  # two texts of a class prove little
    assert worst.accuracy_gain.low == -1.0
    assert worst.accuracy_gain.high == pytest.approx(-0.963, abs=1e-3)
    (one_class,) = compare(np.zeros((1, 50), int), np.zeros(50, int), 2, rng=rng)
    assert one_class.kl.low == 0.0 < one_class.kl.high < 0.5
    assert one.recall[2] is None
    assert one.recall[0] is not None


def test_wrong_shapes():
    with pytest.raises(ValueError, match="do not fit"):
        compare(np.zeros((2, 3), dtype=np.int64), np.zeros(4, dtype=np.int64), 2, rng=None)
    with pytest.raises(ValueError, match="do not fit"):
        compare(np.zeros((2, 0), dtype=np.int64), np.zeros(0, dtype=np.int64), 2, rng=None)


def test_the_paired_interval_holds_the_true_gain_and_is_narrower_than_an_unpaired_one(monkeypatch):
    monkeypatch.setattr("strategies.compare.RESAMPLES", 400)
    rng = np.random.default_rng(1)
    n, held, widths = 40_000, 0, []
    gold = rng.integers(3, size=n)
    first = np.where(rng.random(n) < 0.30, (gold + 1) % 3, gold)
    second = np.where(rng.random(n) < 0.30, gold, first)  # mends a share of the first's errors
    gain = (second == gold).mean() - (first == gold).mean()
    kl = 0.0
    for _ in range(100):
        rows = rng.choice(n, 250, replace=False)
        a, b = compare(np.stack([first, second])[:, rows], gold[rows], 3, rng=rng)
        held += b.accuracy_gain.low <= gain <= b.accuracy_gain.high
        widths.append(
            (b.accuracy_gain.high - b.accuracy_gain.low, a.accuracy.high - a.accuracy.low)
        )
        kl += a.kl.value / 100
    assert 88 <= held <= 99
    assert np.mean([w for w, _ in widths]) < np.mean([w for _, w in widths])
    assert kl < 0.02  # both mixes are even: nearly nothing once chance is taken off


def test_the_rarest_class_that_there_is_says_how_well_macro_f1_is_known():
    gold = np.repeat([0, 1, 2], [50, 48, 2])
    _, same = compare(np.stack([gold, gold]), gold, 4, rng=np.random.default_rng(0))
    assert same.macro_f1_gain.high == -same.macro_f1_gain.low == pytest.approx(unseen(2))
    _, fewer = compare(np.stack([gold, gold])[:, :98], gold[:98], 4, rng=np.random.default_rng(0))
    assert fewer.macro_f1_gain.high == pytest.approx(unseen(48))


def test_the_bias_is_taken_off_the_value_once_and_off_the_resamples_twice():
    found = _less_bias(np.r_[0.3, np.linspace(0.3, 0.5, 201)], 0.1)
    assert found.value == pytest.approx(0.3 - 0.1)
    assert (found.low, found.high) == pytest.approx((0.305 - 0.2, 0.495 - 0.2))
