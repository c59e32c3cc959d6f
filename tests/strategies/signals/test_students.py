from __future__ import annotations

import numpy as np
import pytest

from strategies.pool import Pool, softmax
from strategies.signals import students
from strategies.signals.students import gold_students, out_of_fold_probs


def texts(n=300, k=3, d=10, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)
    embeddings = 1.5 * rng.normal(size=(k, d))[truth] + rng.normal(size=(n, d))
    return embeddings.astype(np.float32), truth, rng


def fit(embeddings, y, k, weight=None, **options):
    weight = np.ones(len(embeddings)) if weight is None else weight
    options = {"seeds": 2, "rng": np.random.default_rng(0)} | options
    return out_of_fold_probs(embeddings, y, weight, k, **options)


def test_probabilities_are_proper_and_good():
    embeddings, truth, _ = texts()
    probs = fit(embeddings, truth, 3)
    assert probs.shape == (2, 300, 3)
    np.testing.assert_allclose(probs.sum(axis=2), 1.0)
    assert probs.min() > 0
    assert (probs.mean(axis=0).argmax(axis=1) == truth).mean() > 0.95


def test_labels_without_meaning_are_not_learned():
    # In-sample, 60 dimensions on 200 rows would fit the noise: out-of-fold must stay at chance.
    rng = np.random.default_rng(0)
    embeddings, y = rng.normal(size=(200, 60)).astype(np.float32), rng.integers(2, size=200)
    own = fit(embeddings, y, 2)[:, np.arange(200), y]
    assert own.mean() == pytest.approx(0.5, abs=0.05)


def test_a_copy_of_a_text_does_not_vouch_for_its_label():
    rng = np.random.default_rng(0)
    once = rng.normal(size=(100, 60)).astype(np.float32)
    y = rng.integers(2, size=100)
    own = fit(np.vstack([once, once]), np.tile(y, 2), 2)[:, np.arange(200), np.tile(y, 2)]
    assert own.mean() == pytest.approx(0.5, abs=0.06)


def test_an_items_own_label_never_enters_its_probability():
    embeddings, truth, _ = texts(n=90)
    y = truth.copy()
    y[7] = (y[7] + 1) % 3
    one, two = fit(embeddings, truth, 3, seeds=5), fit(embeddings, y, 3, seeds=5)
    # Folds are stratified by label, so the other items' folds move; the item's own verdict stays.
    assert one[:, 7, truth[7]].mean() == pytest.approx(two[:, 7, truth[7]].mean(), abs=0.1)
    assert two[:, 7, truth[7]].mean() > 0.7


def test_rare_and_absent_classes_do_no_harm():
    embeddings, truth, _ = texts(k=2)
    y = truth.copy()
    y[0] = 2  # a class of one; class 3 has no member at all
    probs = fit(embeddings, y, 4)
    np.testing.assert_allclose(probs.sum(axis=2), 1.0)
    assert probs[:, 0, 2].max() < 1e-3
    assert probs[:, :, 3].max() < 1e-3
    assert (probs.mean(axis=0).argmax(axis=1) == truth).mean() > 0.9


def test_soft_labels_and_one_hot_agree_with_classes():
    embeddings, truth, _ = texts()
    hard = fit(embeddings, truth, 3)
    np.testing.assert_allclose(fit(embeddings, np.eye(3)[truth], 3), hard)
    softened = fit(embeddings, 0.7 * np.eye(3)[truth] + 0.1, 3)
    assert softened.max(axis=2).mean() < hard.max(axis=2).mean()


def test_items_of_weight_zero_are_judged_but_not_learned_from():
    embeddings, truth, _ = texts()
    y, weight = truth.copy(), np.ones(300)
    spoiled = np.arange(300) < 140
    y[spoiled], weight[spoiled] = (truth[spoiled] + 1) % 3, 0.0
    probs = fit(embeddings, y, 3, weight)
    assert (probs.mean(axis=0).argmax(axis=1) == truth).mean() > 0.95
    learned = fit(embeddings, y, 3)
    assert (learned.mean(axis=0).argmax(axis=1) == truth).mean() < 0.9


def test_constant_dimensions_are_harmless():
    embeddings, truth, rng = texts()
    noise = 1e-9 * rng.normal(size=(300, 4)).astype(np.float32) + 3.0
    with_constants = np.hstack([embeddings, noise]).astype(np.float32)
    probs = fit(with_constants, truth, 3)
    assert (probs.mean(axis=0).argmax(axis=1) == truth).mean() > 0.95


def test_seeds_differ_and_the_same_generator_repeats():
    embeddings, truth, _ = texts()
    probs = fit(embeddings, truth, 3)
    assert not np.allclose(probs[0], probs[1])
    np.testing.assert_array_equal(probs, fit(embeddings, truth, 3))


def test_folds_spread_classes_evenly_and_keep_groups_whole():
    from strategies.signals.students import stratified_folds

    label = np.repeat([0, 1, 2], [100, 23, 4])
    fold_of = stratified_folds(label, np.arange(127), 5, np.random.default_rng(0))
    for c in range(3):
        assert np.ptp(np.bincount(fold_of[label == c], minlength=5)) <= 1
    assert np.ptp(np.bincount(fold_of)) <= 1
    grouped = stratified_folds(label, np.arange(127) // 3, 5, np.random.default_rng(0))
    assert all(len(set(grouped[i : i + 3])) == 1 for i in range(0, 126, 3))


def test_the_head_agrees_with_a_reference_solver():
    from sklearn.linear_model import LogisticRegression

    from strategies.signals.students import _fit_heads, _Sample, _standardised, _Training

    embeddings, truth, _ = texts()
    features = _standardised(embeddings)
    data = _Training(features, np.eye(3)[truth], np.ones(300))
    [[head]] = _fit_heads(data, [_Sample(np.arange(300), np.ones(300))], [0.1], of_a_seed=1)
    reference = LogisticRegression(C=1 / (0.1 * 300), tol=1e-8, max_iter=1000)
    seen = features.of(slice(None))
    reference.fit(seen[:, :-1], truth)
    expected = reference.predict_proba(seen[:, :-1])
    np.testing.assert_allclose(softmax(seen @ head), expected, atol=0.02)


def test_heads_side_by_side_are_those_that_learn_one_by_one(monkeypatch):
    """Folds, seeds and penalties share their products, and nothing else."""
    embeddings, truth, _ = texts()
    weight = np.random.default_rng(2).uniform(0, 2, 300)
    weight[:100] = 0.0

    def judged():
        return out_of_fold_probs(
            embeddings, truth, weight, 4, seeds=3, rng=np.random.default_rng(1)
        )

    at_once = []
    fit = students._fit_side_by_side

    def counting(data, samples, penalties):
        at_once.append(len(samples))
        return fit(data, samples, penalties)

    monkeypatch.setattr(students, "_fit_side_by_side", counting)
    together = judged()
    assert at_once == [3, 15], "three folds choose the penalty; five folds of three seeds learn"
    at_once.clear()
    monkeypatch.setattr(students, "CELLS", 2 * 200 * 4)
    assert np.abs(judged() - together).max() < 1e-5
    assert at_once == [1, 1, 1, *[2] * 7, 1], "no more at once than memory is meant for"


def test_of_very_many_rows_each_seed_draws_its_own_and_its_folds_learn_together(monkeypatch):
    embeddings, truth, _ = texts()
    groups = []
    fit = students._fit_side_by_side

    def counting(data, samples, penalties):
        groups.append([set(sample.rows) for sample in samples])
        return fit(data, samples, penalties)

    monkeypatch.setattr(students, "_fit_side_by_side", counting)
    monkeypatch.setattr(students, "SEED_ROWS", 100)
    probs = out_of_fold_probs(
        embeddings, truth, np.ones(300), 3, seeds=2, rng=np.random.default_rng(1)
    )
    assert [len(group) for group in groups] == [3, 5, 5]
    drawn = [set.union(*group) for group in groups]
    assert [len(rows) for rows in drawn] == [100, 100, 100]
    assert drawn[1] != drawn[2]
    for folds in groups[1:]:  # every row is left out by one fold
        assert sum(len(rows) for rows in folds) == 4 * 100
    assert (probs.argmax(axis=2) == truth).mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3, dtype=int)}, "y must be"),
        ({"y": np.full(20, 5)}, r"\[0, 2\)"),
        ({"weight": np.zeros(20)}, "positive weight"),
        ({"weight": np.full(20, -1.0)}, ">= 0"),
        ({"embeddings": np.full((20, 2), np.nan, dtype=np.float32)}, "finite"),
        ({"embeddings": np.ones((20, 2), dtype=np.float32)}, "two distinct texts"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {
        "embeddings": np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32),
        "y": np.tile([0, 1], 10),
        "weight": np.ones(20),
        "k": 2,
        "seeds": 1,
        "rng": np.random.default_rng(0),
    }
    with pytest.raises(ValueError, match=message):
        out_of_fold_probs(**(given | change))


def test_few_weighted_texts_of_many_dimensions_are_judged_as_if_all_dimensions_were_kept(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    n, d, k = 120, 90, 3
    y = rng.integers(k, size=n)
    embeddings = (rng.normal(size=(k, d))[y] * 0.5 + rng.normal(size=(n, d))).astype(np.float32)
    weight = (np.arange(n) < 40).astype(np.float64)

    def judged():
        return out_of_fold_probs(embeddings, y, weight, k, seeds=2, rng=np.random.default_rng(1))

    quick = judged()
    monkeypatch.setattr(students, "_in_span", lambda features, rows: features)
    np.testing.assert_allclose(quick, judged(), atol=2e-3)


@pytest.mark.parametrize(
    "states", [None, np.full((300, 10), np.nan), np.ones((300, 10)), np.full((300, 10), -0.0)]
)
def test_states_that_tell_no_texts_apart_are_not_read(states):
    embeddings, truth, _ = texts()
    if states is not None:
        states = states.astype(np.float16)
        states[7] = np.nan
    pool = Pool(
        probs=np.full((300, 1, 3), 1 / 3),
        y_llm=truth,
        gold=np.where(np.arange(300) < 30, truth, -1),
        embeddings=embeddings,
        states=states,
    )
    alone = gold_students(pool, rng=np.random.default_rng(0))
    assert alone.shape == (1, 300, 3)
    seen = gold_students(
        Pool(pool.probs, truth, pool.gold, embeddings, states=embeddings.astype(np.float16)),
        rng=np.random.default_rng(0),
    )
    assert seen.shape == (2, 300, 3)
    np.testing.assert_array_equal(alone[0], seen[0])


@pytest.mark.parametrize("different", [1, 2, 3])
def test_gold_of_hardly_any_different_texts_is_no_error(different):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        embeddings = rng.normal(size=(40, 5)).astype(np.float32)
        # Vectors of one direction count as the same, whatever their length.
        length = 2.0 ** np.arange(12)[:, None]
        embeddings[:12] = embeddings[np.arange(12) % different] * length
        gold = np.where(np.arange(40) < 12, rng.integers(2, size=40), -1)
        pool = Pool(
            probs=np.full((40, 1, 2), 0.5),
            y_llm=rng.integers(2, size=40),
            gold=gold,
            embeddings=embeddings,
        )
        said = gold_students(pool, rng=rng)
        if different == 1:
            assert said is None, "nothing tells texts apart that are all the same"
        else:
            assert np.isfinite(said).all()


def test_seeds_that_are_dealt_alike_still_learn_from_their_own_bootstrap(monkeypatch):
    def alike(label, group, used, folds, rng):
        return np.arange(len(label)) % folds

    monkeypatch.setattr(students, "_deal_folds", alike)
    embeddings, truth, _ = texts()
    one, two = fit(embeddings, truth, 3)
    assert 0.001 < np.abs(one - two).mean() < 0.1
