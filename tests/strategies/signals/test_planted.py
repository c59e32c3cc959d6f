"""Label errors planted in clustered texts must come out on top."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies import STRATEGIES
from strategies.fuse import fuse_ranks, weighted_auroc
from strategies.pool import Pool
from strategies.signals.students import out_of_fold_probs


def clustered_pool(n=400, k=3, d=16, wrong=20, seed=0, ordinal=False):
    """Well separated classes with ``wrong`` planted label errors, where votes waver."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)
    centres = rng.normal(size=(k, d)) * 2.0
    embeddings = (centres[truth] + 0.7 * rng.normal(size=(n, d))).astype(np.float32)
    planted = rng.choice(n, wrong, replace=False)
    y = truth.copy()
    y[planted] = (truth[planted] + rng.integers(1, k, size=wrong)) % k
    sure = np.full(n, 0.95)
    sure[planted] = 0.6
    sure = np.clip(sure + rng.uniform(-0.04, 0.04, n), 0, 1)
    probs = np.repeat(((1 - sure) / (k - 1))[:, None], k, axis=1)
    probs[np.arange(n), y] = sure
    second = probs.copy()
    second[planted] = np.roll(probs[planted], 1, axis=1)
    off = (1 - sure)[:, None].repeat(2, axis=1)
    p_student = out_of_fold_probs(embeddings, y, np.ones(n), k, seeds=3, rng=rng)
    pool = Pool(
        probs=np.stack([probs, second], axis=1),
        y_llm=y,
        gold=np.full(n, -1),
        embeddings=embeddings,
        p_student=p_student,
        off_label_mass=off,
        ordinal=ordinal,
    )
    return pool, planted, truth


def found(scores, planted):
    """Share of the planted errors among as many top-ranked items."""
    top = np.argsort(-scores, kind="stable")[: len(planted)]
    return len(np.intersect1d(top, planted)) / len(planted)


# These say something else than "this label is wrong", and are tested for that below. The standard
# deviation of a neighbourhood cannot tell the stray label from the neighbours it strays among.
UNRELATED = ("random", "class_rarity", "seed_disagreement", "knn_label_std", "unsure_neighbours")


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(UNRELATED)))
def test_planted_errors_rank_first(name):
    pool, planted, _ = clustered_pool(ordinal=True)
    scores = STRATEGIES[name](pool, np.random.default_rng(0))
    assert np.argmax(scores) in planted
    assert found(scores, planted) >= 0.9


def test_knn_label_std_grows_with_the_distance_of_the_labels_in_the_neighbourhood():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8) * 20
    embeddings = (np.repeat(centres, 20, axis=0) + rng.normal(size=(60, 8))).astype(np.float32)
    y = np.concatenate([np.full(20, 2), np.tile([2, 3], 10), np.tile([0, 4], 10)])
    pool = Pool(
        probs=np.eye(5)[y][:, None],
        y_llm=y,
        gold=np.full(60, -1),
        embeddings=embeddings,
        ordinal=True,
    )
    pure, near, far = STRATEGIES["knn_label_std"](pool, rng).reshape(3, 20)
    assert pure.max() == 0
    assert 0 < near.max() < far.min()
    with pytest.raises(ValueError, match="ordered classes"):
        STRATEGIES["knn_label_std"](replace(pool, ordinal=False), rng)


def test_random_finds_no_more_than_chance():
    pool, planted, _ = clustered_pool()
    assert found(STRATEGIES["random"](pool, np.random.default_rng(0)), planted) < 0.3


def test_class_rarity_puts_the_rarest_predicted_class_first():
    pool, _, _ = clustered_pool()
    y = pool.y_llm.copy()
    y[y == 2] = 0
    y[:5] = 2
    scores = STRATEGIES["class_rarity"](
        Pool(probs=pool.probs, y_llm=y, gold=pool.gold), np.random.default_rng(0)
    )
    assert set(np.argsort(-scores)[:5]) == set(range(5))


def test_seed_disagreement_is_zero_where_seeds_agree_and_one_where_they_split():
    p_student = np.zeros((2, 2, 2))
    p_student[:, 0, 0] = 1.0
    p_student[0, 1, 0] = p_student[1, 1, 1] = 1.0
    pool = Pool(
        probs=np.full((2, 1, 2), 0.5),
        y_llm=np.zeros(2, dtype=int),
        gold=np.full(2, -1),
        p_student=p_student,
    )
    scores = STRATEGIES["seed_disagreement"](pool, np.random.default_rng(0))
    assert scores.tolist() == [0.0, 1.0]


def test_fused_signals_find_more_than_their_mean_when_each_sees_other_errors():
    rng = np.random.default_rng(3)
    n = 1000
    wrong = np.zeros(n, dtype=bool)
    wrong[:100] = True
    a, b = rng.normal(size=n), rng.normal(size=n)
    a[:50] += 3.0
    b[50:100] += 3.0
    fused = fuse_ranks({"a": a, "b": np.exp(b)})
    ones = np.ones(n)
    assert weighted_auroc(fused, wrong, ones) > weighted_auroc(a, wrong, ones) + 0.03


def test_seeds_differ_but_agree_on_clear_texts():
    pool, _, truth = clustered_pool()
    labels = pool.p_student.argmax(axis=2)
    assert not np.array_equal(pool.p_student[0], pool.p_student[1])
    assert (labels == truth).mean() > 0.98


def test_expected_benefit_prefers_crowds_and_rare_classes_at_equal_doubt():
    rng = np.random.default_rng(0)
    crowd = np.eye(1, 16)[0] * 5 + rng.normal(size=(30, 16)) * 0.3
    lonely = np.eye(15, 16, k=1) * 5
    pool = Pool(
        probs=np.full((45, 1, 2), 0.5),
        y_llm=np.array([1] * 5 + [0] * 40),
        gold=np.full(45, -1),
        embeddings=np.concatenate([crowd, lonely]).astype(np.float32),
    )
    rare, common, alone = np.split(STRATEGIES["expected_benefit"](pool, rng), [5, 30])
    assert rare.min() > common.max() > common.min() > alone.max()
    sure = replace(pool, probs=np.eye(2)[pool.y_llm][:, None])
    assert STRATEGIES["expected_benefit"](sure, rng).max() == 0


def test_texts_like_those_that_nobody_could_label_are_suspect():
    pool, _, truth = clustered_pool()
    rng = np.random.default_rng(1)
    answered = rng.random(pool.n) < 0.3
    unsure = answered & (truth == 0) & (rng.random(pool.n) < 0.8)
    gold = np.where(answered & ~unsure, truth, -1)
    score = STRATEGIES["unsure_neighbours"]
    scores = score(replace(pool, gold=gold, unsure=unsure), rng)
    assert scores[truth == 0].mean() > 0.7
    assert scores[truth != 0].max() < 0.3
    assert not score(replace(pool, gold=gold), rng).any()
    # what people said of an item never reaches its own score
    for row in np.flatnonzero(answered)[:5]:
        other = gold.copy(), unsure.copy()
        other[0][row], other[1][row] = (truth[row], False) if unsure[row] else (-1, True)
        changed = score(replace(pool, gold=other[0], unsure=other[1]), rng)
        assert changed[row] == scores[row]
