from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from strategies.calibrate import prior_from_gold
from strategies.estimate import (
    TooFewRandomError,
    label_quality,
    over_all_rounds,
    rate_ratio,
    unseen,
    weighted_confusion,
)
from strategies.select import select_batch

N, K = 3000, 3


def world(seed=0):
    """Truth with a class of 5 %, the LLM's labels, their suspicion, and P(right)."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(K, size=N, p=[0.55, 0.4, 0.05])
    hard = rng.random(N) ** 2
    wrong = rng.random(N) < 0.5 * hard
    y = np.where(wrong, (truth + rng.integers(1, K, size=N)) % K, truth)
    return truth, y, hard + 0.2 * rng.random(N), 1 - 0.5 * hard


def true_values(truth, y):
    p, s = np.bincount(truth, minlength=K) / len(y), np.bincount(y, minlength=K) / len(y)
    values = {
        "accuracy": (truth == y).mean(),
        "macro_f1": f1_score(truth, y, average="macro"),
        "kl": (p * np.log(p / s)).sum(),
    }
    precision = precision_score(truth, y, average=None)
    recall = recall_score(truth, y, average=None)
    for c in range(K):
        values |= {f"precision{c}": precision[c], f"recall{c}": recall[c], f"share{c}": p[c]}
    return values


def estimates(quality):
    out = {"accuracy": quality.accuracy, "macro_f1": quality.macro_f1, "kl": quality.kl}
    for c in range(K):
        out |= {f"precision{c}": quality.precision[c], f"recall{c}": quality.recall[c]}
        assert sum(e.value for e in quality.class_share) == pytest.approx(1.0)
        out |= {f"share{c}": quality.class_share[c]}
    return out


def buy(truth, suspicion, rng, *, labels, audit_frac, rounds=1):
    n = len(truth)
    gold, pi, round_of = np.full(n, -1), np.ones(n), np.full(n, -1)
    for r in range(rounds):
        batch = select_batch(
            suspicion, np.flatnonzero(gold < 0), labels // rounds, audit_frac=audit_frac, rng=rng
        )
        gold[batch.rows], pi[batch.rows] = truth[batch.rows], batch.inclusion_prob
        round_of[batch.rows] = r
    return gold, pi, round_of


@pytest.mark.parametrize(
    ("labels", "audit_frac", "rounds", "helped", "repeats"),
    [
        pytest.param(250, 1.0, 1, False, 400, marks=pytest.mark.long),
        pytest.param(250, 0.5, 1, True, 400, marks=pytest.mark.long),
        pytest.param(450, 0.4, 3, True, 400, marks=pytest.mark.long),
        (450, 0.4, 3, True, 150),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(
    labels, audit_frac, rounds, helped, repeats
):
    truth, y, suspicion, p_right = world()
    expected = true_values(truth, y)
    rng = np.random.default_rng(2)
    covered = {name: [] for name in expected}
    errors = {name: [] for name in expected}
    for _ in range(repeats):
        gold, pi, round_of = buy(
            truth, suspicion, rng, labels=labels, audit_frac=audit_frac, rounds=rounds
        )
        quality = label_quality(
            y, gold, pi, K, round_of=round_of, p_correct=p_right if helped else None
        )
        for name, estimate in estimates(quality).items():
            if estimate is not None:
                covered[name].append(estimate.low <= expected[name] <= estimate.high)
                errors[name].append(estimate.value - expected[name])
    coverage = {name: np.mean(hits) for name, hits in covered.items()}
    # 400 repeats know a coverage to +-.02, 150 to +-.04, and the lowest of thirteen lies below its
    # own; figures of the 5 % class rest on a dozen items, and their intervals may be wider than
    # need be.
    for name, share in coverage.items():
        assert 0.9 <= share <= (1.0 if name.endswith("2") else 0.99), coverage
    assert 0.92 <= np.mean(list(coverage.values())) <= 0.98
    for name in ("accuracy", "share0", "share1", "share2"):
        noise = np.std(errors[name]) / np.sqrt(len(errors[name]))
        assert abs(np.mean(errors[name])) < 4 * noise


def test_a_plain_share_of_the_bought_labels_would_mislead():
    truth, y, suspicion, _ = world()
    gold, pi, _ = buy(truth, suspicion, np.random.default_rng(0), labels=300, audit_frac=0.3)
    known = gold >= 0
    naive = (gold[known] == y[known]).mean()
    quality = label_quality(y, gold, pi, K)
    assert naive < (truth == y).mean() - 0.1
    assert quality.accuracy.low <= (truth == y).mean() <= quality.accuracy.high


def test_a_good_prediction_of_errors_narrows_the_interval_and_a_bad_one_does_no_harm():
    truth, y, suspicion, _ = world()
    rng = np.random.default_rng(0)
    gold, pi, _ = buy(truth, suspicion, rng, labels=250, audit_frac=1.0)
    oracle = np.clip((truth == y) + rng.normal(size=N) * 0.2, 0, 1)
    width = {
        name: np.ptp([q.accuracy.low, q.accuracy.high])
        for name, p in {"none": None, "oracle": oracle, "noise": rng.random(N)}.items()
        for q in [label_quality(y, gold, pi, K, p_correct=p)]
    }
    assert width["oracle"] < 0.8 * width["none"]
    assert width["noise"] < 1.1 * width["none"]


def test_a_census_is_exact():
    truth, y, _, _ = world()
    quality = label_quality(y, truth, np.ones(N), K)
    expected = true_values(truth, y)
    for name in ("accuracy", "macro_f1", "kl", "share2"):
        estimate = estimates(quality)[name]
        assert estimate.value == pytest.approx(expected[name])
        assert estimate.low == pytest.approx(estimate.high)
    assert quality.remaining_error.value == pytest.approx(0)


@pytest.mark.parametrize(("labels", "rounds"), [(2400, 2), (2700, 3), (2000, 1)])
def test_a_census_over_several_rounds_is_exact(labels, rounds):
    truth, y, suspicion, _ = world()
    rng = np.random.default_rng(1)
    gold, pi, round_of = buy(truth, suspicion, rng, labels=labels, audit_frac=0.5, rounds=rounds)
    rest = gold < 0
    gold[rest], pi[rest], round_of[rest] = truth[rest], 1.0, rounds
    quality = label_quality(y, gold, pi, K, round_of=round_of)
    expected = true_values(truth, y)
    for name, estimate in estimates(quality).items():
        assert estimate.value == pytest.approx(expected[name])
        assert estimate.low == pytest.approx(estimate.high) == pytest.approx(expected[name])


def test_the_remaining_error_counts_only_what_is_still_wrong():
    truth, y, suspicion, _ = world()
    gold, pi, _ = buy(truth, suspicion, np.random.default_rng(4), labels=1500, audit_frac=0.5)
    left = ((gold < 0) & (truth != y)).mean()
    estimate = label_quality(y, gold, pi, K).remaining_error
    assert estimate.low <= left <= estimate.high
    assert estimate.high < (truth != y).mean()


def test_no_error_among_few_items_is_no_certainty():
    y = np.tile([0, 1], 500)
    gold = np.full(1000, -1)
    gold[:40] = y[:40]
    quality = label_quality(y, gold, np.full(1000, 0.04), 2)
    assert quality.accuracy.value == 1.0
    assert 0.85 < quality.accuracy.low < 0.95
    gold[:] = -1
    gold[:40], gold[500:540] = y[:40], 1 - y[500:540]  # suspects, all wrong, and an audit without
    pi = np.where(np.arange(1000) < 500, 0.04, 1.0)
    left = label_quality(y, gold, pi, 2).remaining_error
    assert left.low <= left.value < left.high
    assert left.high > 0.05


def test_a_class_too_rare_in_the_audit_gets_no_figure():
    y = np.zeros(1000, dtype=int)
    y[:20] = 1
    gold = np.full(1000, -1)
    gold[100:150] = 0
    quality = label_quality(y, gold, np.full(1000, 0.05), 2)
    assert quality.precision[1] is None
    assert quality.recall[1] is None
    assert quality.precision[0] is not None


def test_suspects_alone_are_refused():
    truth, y, suspicion, _ = world()
    gold, pi, _ = buy(truth, suspicion, np.random.default_rng(0), labels=300, audit_frac=0.0)
    with pytest.raises(ValueError, match="audit"):
        label_quality(y, gold, pi, K)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inclusion_prob": np.zeros(20)}, r"\(0, 1\]"),
        ({"inclusion_prob": np.ones(3)}, "must be"),
        ({"p_correct": np.ones(3)}, "p_correct"),
        ({"gold": np.full(20, -1)}, "audit"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {
        "y_llm": np.zeros(20, dtype=int),
        "gold": np.zeros(20, dtype=int),
        "inclusion_prob": np.full(20, 0.9),
        "k": 2,
    }
    with pytest.raises(ValueError, match=message):
        label_quality(**(given | change))


def test_a_class_that_people_never_saw_leaves_kl_finite():
    y = np.repeat([0, 1], [700, 300])
    rng = np.random.default_rng(0)
    gold = np.where(np.isin(np.arange(1000), rng.choice(1000, 30, replace=False)), 0, -1)
    kl = label_quality(y, gold, np.full(1000, 0.03), 2).kl
    assert 0 <= kl.low <= kl.value <= kl.high <= -np.log(0.3)
    assert kl.low <= np.log(1 / 0.7) <= kl.high


def test_the_weighted_confusion_is_that_of_the_pool_on_average():
    truth, y, suspicion, _ = world()
    expected = np.zeros((K, K))
    np.add.at(expected, (truth, y), 1 / N)
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gold, pi, round_of = buy(truth, suspicion, rng, labels=450, audit_frac=0.4, rounds=3)
        found.append(weighted_confusion(y, gold, pi, K, round_of=round_of))
        assert found[-1].sum() == pytest.approx(1)
        # how often the LLM gives each label is known
        np.testing.assert_allclose(found[-1].sum(axis=0), np.bincount(y, minlength=K) / N)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.01)
    naive = np.zeros((K, K))
    np.add.at(naive, (gold[gold >= 0], y[gold >= 0]), 1 / (gold >= 0).sum())
    assert np.abs(naive - expected).max() > 0.05, "suspects alone would mislead"


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.2), (0.25, 0.25), (0.15, 0.3)])
def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says(a, b):
    rng = np.random.default_rng(0)
    held, drawn = [], 1000
    for hits, other in zip(rng.binomial(60, a, drawn), rng.binomial(60, b, drawn), strict=True):
        found = rate_ratio(int(hits), 60, int(other), 60)
        held.append(found.low <= a / b <= found.high)
    assert 0.93 <= np.mean(held) <= 0.985
    assert rate_ratio(0, 30, 0, 30).value == 1.0


@pytest.mark.parametrize(("a", "b", "n"), [(0.98, 0.9, 10), (0.99, 0.95, 20)])
def test_the_interval_of_a_ratio_holds_it_where_nearly_all_are_hits(a, b, n):
    rng = np.random.default_rng(0)
    pairs = zip(rng.binomial(n, a, 500), rng.binomial(n, b, 500), strict=True)
    found = [rate_ratio(int(hits), n, int(other), n) for hits, other in pairs]
    assert np.mean([f.low <= a / b <= f.high for f in found]) >= 0.95


def drawn(seed, *, n=1000, labels=100, audit_frac=0.5, k=3, error=0.2, rounds=1):
    """A pool whose suspects are often wrong, and what was bought of it."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(k, size=n, p=[0.1, *[0.9 / (k - 1)] * (k - 1)])
    wrong = rng.random(n) < error
    y = np.where(wrong, (truth + 1 + rng.integers(k - 1, size=n)) % k, truth)
    suspicion = np.clip(0.4 * wrong + 0.6 * rng.random(n), 0, 1)
    all_labels = rounds * labels
    bought = buy(truth, suspicion, rng, labels=all_labels, audit_frac=audit_frac, rounds=rounds)
    return truth, y, 1 - suspicion, *bought


@pytest.mark.parametrize(("k", "error"), [(2, 0.01), (3, 0.0), (5, 0.0)])
def test_labels_that_are_all_right_have_a_distance_with_an_upper_end(k, error):
    for seed in range(60):
        _, y, p_right, gold, pi, _ = drawn(seed, k=k, error=error)
        kl = label_quality(y, gold, pi, k, p_correct=p_right).kl
        assert 0.0 <= kl.low <= kl.value < kl.high


@pytest.mark.parametrize(("labels", "error"), [(20, 0.2), (40, 0.2), (100, 0.05)])
def test_intervals_cover_the_truth_with_few_random_labels_and_a_rare_class(labels, error):
    covered = []
    for seed in range(150):
        truth, y, p_right, gold, pi, _ = drawn(seed, labels=labels, error=error)
        quality = label_quality(y, gold, pi, K, p_correct=p_right)
        expected = true_values(truth, y)
        for name in ("macro_f1", "kl"):
            estimate = estimates(quality)[name]
            covered.append((estimate.low <= expected[name] <= estimate.high, name))
    for name in ("macro_f1", "kl"):
        assert np.mean([hit for hit, of in covered if of == name]) >= 0.9


def test_a_round_speaks_for_no_texts_that_came_after_it():
    """New texts with worse labels, before the second of three rounds."""
    errors, covered = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        old = np.arange(1800) < 1000
        right = rng.random(1800) < np.where(old, 0.9, 0.6)
        truth = rng.integers(2, size=1800)
        gold, pi, round_of = np.full(1800, -1), np.ones(1800), np.full(1800, -1)
        for r in range(3):
            left = np.flatnonzero((gold < 0) & (old | (r > 0)))
            batch = select_batch(rng.random(1800), left, 100, audit_frac=0.5, rng=rng)
            rows = batch.rows
            gold[rows], pi[rows], round_of[rows] = truth[rows], batch.inclusion_prob, r
        y, arrived = np.where(right, truth, 1 - truth), np.where(old, 0, 1)
        found = label_quality(y, gold, pi, 2, round_of=round_of, arrived=arrived).accuracy
        errors.append(found.value - right.mean())
        covered.append(found.low <= right.mean() <= found.high)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(150)
    assert np.mean(covered) >= 0.9
    round_of[round_of > 0] = -1
    gold[round_of < 0] = -1
    with pytest.raises(TooFewRandomError):  # nothing has looked at the new ones
        label_quality(y, gold, pi, 2, round_of=round_of, arrived=arrived)


def test_gold_that_comes_after_a_round_was_in_its_pool():
    """Labels of difficult texts, bought elsewhere, come between two rounds."""
    errors = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        hard = rng.random(1000) < 0.3
        right = rng.random(1000) < np.where(hard, 0.5, 0.95)
        truth = rng.integers(2, size=1000)
        gold, pi, round_of = np.full(1000, -1), np.ones(1000), np.full(1000, -1)
        batch = select_batch(rng.random(1000), np.arange(1000), 100, audit_frac=0.5, rng=rng)
        rows = batch.rows
        gold[rows], pi[rows], round_of[rows] = truth[rows], batch.inclusion_prob, 2
        came = rng.choice(np.flatnonzero(hard & (gold < 0)), 150, replace=False)
        gold[came], round_of[came] = truth[came], 3
        y = np.where(right, truth, 1 - truth)
        found = label_quality(y, gold, pi, 2, round_of=round_of).accuracy
        errors.append(found.value - right.mean())
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(150)


def test_most_of_the_pool_is_not_all_of_it():
    """60 of 100 texts for certain, then a round with an audit: the audit speaks for the rest."""
    rng = np.random.default_rng(0)
    right = np.arange(100) < 60
    truth = rng.integers(2, size=100)
    gold, pi, round_of = np.full(100, -1), np.ones(100), np.zeros(100, dtype=int)
    gold[:60] = truth[:60]
    batch = select_batch(rng.random(100), np.arange(60, 100), 20, audit_frac=0.5, rng=rng)
    rows = batch.rows
    gold[rows], pi[rows], round_of[rows] = truth[rows], batch.inclusion_prob, 1
    found = label_quality(np.where(right, truth, 1 - truth), gold, pi, 2, round_of=round_of)
    # 60 are known to be right and 20 to be wrong: what can be is no more than the rest.
    assert 0.6 == found.accuracy.low <= found.accuracy.value < 0.7 < found.accuracy.high < 0.8
    assert found.remaining_error.low < 0.2 <= found.remaining_error.high <= 0.2 + 1e-9


def test_a_round_that_came_back_in_part_speaks_for_the_pool():
    errors, covered = [], []
    for seed in range(150):
        truth, y, p_right, gold, pi, round_of = drawn(seed, rounds=2)
        rng = np.random.default_rng(seed)
        suspects_too = pi < (1 if seed % 2 else 2)  # or all of these come back
        gold[(round_of == 1) & suspects_too & (rng.random(1000) < 0.7)] = -1
        found = label_quality(y, gold, pi, K, round_of=round_of, p_correct=p_right).accuracy
        errors.append(found.value - (truth == y).mean())
        covered.append(found.low <= (truth == y).mean() <= found.high)
        gold[round_of == 0] = -1
        label_quality(y, gold, pi, K, round_of=round_of)  # a third of one round says something
    assert abs(np.mean(errors)) < 0.01
    assert np.mean(covered) >= 0.9


def test_a_rare_class_among_the_suspects_keeps_its_share_over_many_rounds():
    by_round, over_all, true = [], [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = np.where(rng.random(1000) < 0.1, 2, rng.integers(2, size=1000))
        suspicion = rng.random(1000) * 0.5 + 0.5 * (truth == 2) * (rng.random(1000) < 0.9)
        gold, pi, round_of = buy(truth, suspicion, rng, labels=500, audit_frac=0.5, rounds=5)
        by_round.append(prior_from_gold(gold, pi, 3, pseudo=0)[2])
        weighed = over_all_rounds(gold, pi, round_of)
        assert ((weighed > 0) & (weighed <= 1)).all()
        over_all.append(prior_from_gold(gold, weighed, 3, pseudo=0)[2])
        true.append((truth == 2).mean())
    assert np.mean(by_round) < np.mean(true) - 0.03
    assert np.mean(over_all) == pytest.approx(np.mean(true), abs=0.005)
    pi[round_of == 4] = 1.0  # a last round without an audit
    last = over_all_rounds(gold, pi, round_of)
    assert ((last > 0) & (last <= 1)).all()
    suspects = np.where(gold >= 0, 1.0, pi)
    np.testing.assert_array_equal(over_all_rounds(gold, suspects, round_of), suspects)


def test_where_all_foreseen_errors_are_found_texts_not_seen_may_hold_more():
    # An audit of 20 texts found none; suspects then found 30, more than it foresaw.
    truth = np.zeros(100, dtype=int)
    y, gold, pi, round_of = truth.copy(), np.full(100, -1), np.ones(100), np.full(100, -1)
    y[20:50] = 1
    gold[:50], pi[:20], round_of[:20], round_of[20:50] = 0, 0.2, 0, 1
    left = label_quality(y, gold, pi, 2, round_of=round_of).remaining_error
    assert (left.value, left.low) == pytest.approx((0, 0))
    assert left.high == pytest.approx(0.5 * unseen(20))  # half of the texts are not seen


def test_those_that_came_back_stand_for_those_that_did_not():
    # 40 suspects, all wrong, of which 20 came back; 30 of the other 60, all right, drawn at random.
    truth = np.zeros(100, dtype=np.int64)
    y_llm = np.where(np.arange(100) < 40, 1, 0)
    chosen = np.arange(100) < 70
    back = chosen & ~((np.arange(100) >= 20) & (np.arange(100) < 40))
    found = label_quality(
        y_llm,
        np.where(back, truth, -1),
        np.where(np.arange(100) < 40, 1.0, 0.5),
        2,
        round_of=np.where(chosen, 0, -1),
    )
    assert found.accuracy.value == pytest.approx(0.6)
