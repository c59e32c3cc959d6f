from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies.pool import Pool
from strategies.signals import neighbours
from strategies.signals.neighbours import (
    find_neighbours,
    knn_disagreement,
    nearest,
    same_embedding,
)

RNG = np.random.default_rng(0)


def pool_of(embeddings, y, gold=None, k=2):
    n = len(y)
    return Pool(
        probs=np.full((n, 1, k), 1.0 / k),
        y_llm=np.asarray(y, dtype=np.int64),
        gold=np.full(n, -1) if gold is None else np.asarray(gold),
        embeddings=np.asarray(embeddings, dtype=np.float32),
    )


def unit_rows(vectors):
    units = vectors.astype(np.float32)
    return units / np.linalg.norm(units, axis=1, keepdims=True)


def blob(n, d=8, seed=0, spread=0.3):
    return np.ones(d) + spread * np.random.default_rng(seed).normal(size=(n, d))


def test_the_share_of_the_ten_nearest_that_disagree():
    y = np.array([0] * 8 + [1] * 3)
    scores = knn_disagreement(pool_of(blob(11), y), RNG)
    np.testing.assert_allclose(scores[y == 0], 3 / 10)
    np.testing.assert_allclose(scores[y == 1], 8 / 10)


def test_gold_neighbours_weigh_more_and_overrule_their_llm_label():
    y = np.zeros(11, dtype=int)
    gold = np.full(11, -1)
    gold[5] = 1
    scores = knn_disagreement(pool_of(blob(11), y, gold), RNG)
    np.testing.assert_allclose(np.delete(scores, 5), 3 / 12)
    assert scores[5] == 0  # its own gold is not read


def test_copies_that_repeat_the_llms_label_are_no_evidence():
    # Items 0-4 are one text, wrongly labelled alike; all others say 1.
    embeddings = blob(30)
    embeddings[1:5] = embeddings[0]
    y = np.ones(30, dtype=int)
    y[:5] = 0
    scores = knn_disagreement(pool_of(embeddings, y), RNG)
    np.testing.assert_allclose(scores[:5], 1.0)
    # And to others the five copies are one neighbour, not five.
    assert scores[5:].max() <= 1 / 10 + 1e-9


def test_a_nearly_identical_text_of_the_same_label_is_no_evidence_either():
    embeddings = blob(30)
    embeddings[1:5] = embeddings[0] * 2 + 1e-3 * np.random.default_rng(1).normal(size=(4, 8))
    y = np.ones(30, dtype=int)
    y[:5] = 0
    scores = knn_disagreement(pool_of(embeddings, y), RNG)
    np.testing.assert_allclose(scores[:5], 1.0)


def test_a_copy_with_another_label_or_with_gold_is_evidence():
    embeddings = blob(30)
    embeddings[1] = embeddings[0]
    y = np.zeros(30, dtype=int)
    y[1] = 1
    contradicted = knn_disagreement(pool_of(embeddings, y), RNG)
    np.testing.assert_allclose(contradicted[0], 1 / 11)
    gold = np.full(30, -1)
    gold[1] = 1
    answered = knn_disagreement(pool_of(embeddings, np.zeros(30, dtype=int), gold), RNG)
    np.testing.assert_allclose(answered[0], 3 / 13)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pools_of_a_few_items(n):
    scores = knn_disagreement(pool_of(blob(n), np.zeros(n, dtype=int)), RNG)
    assert scores.shape == (n,)
    assert np.isfinite(scores).all()


def test_items_without_evidence_get_the_mean_of_the_others():
    embeddings = np.ones((3, 4))
    scores = knn_disagreement(pool_of(embeddings, [0, 0, 0]), RNG)
    np.testing.assert_allclose(scores, 0.5)


@pytest.mark.parametrize("d", [32, 385])
def test_search_by_codes_finds_nearly_all_that_exact_search_finds(d):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, d))
    vectors = centres[rng.integers(40, size=1500)] + rng.normal(size=(1500, d))
    vectors *= np.arange(1, d + 1) ** -0.4  # the variance falls as in sentence encoders
    units = unit_rows(vectors)
    cosines, exact = nearest(units, 10)
    close, approximate = nearest(units, 10, exact_up_to=100)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(exact, approximate, strict=True)]
    assert 0.97 < np.mean(hits) / 10 <= 1.0
    assert not np.array_equal(exact, approximate)  # the other path was really taken
    np.testing.assert_array_equal(exact[:, 0], np.arange(1500))
    np.testing.assert_array_equal(approximate[:, 0], np.arange(1500))
    np.testing.assert_allclose(close[:, 0], cosines[:, 0], atol=3e-4)  # float16


def test_search_in_the_nearest_lists_finds_most_of_what_exact_search_finds(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 32))[rng.integers(40, size=3000)] + rng.normal(size=(3000, 32))
    units = unit_rows(vectors * np.arange(1, 33) ** -0.4)
    _, exact = nearest(units, 10)
    hits = []
    for lists in (1, 12, 46):
        monkeypatch.setattr(neighbours, "LISTS_READ", lists)
        _, rows = nearest(units, 10, exact_up_to=100, all_codes_up_to=200)
        np.testing.assert_array_equal(rows[:, 0], np.arange(3000))
        found = [len(np.intersect1d(a, b)) for a, b in zip(exact, rows, strict=True)]
        hits.append(np.mean(found) / 10)
    assert hits[0] < 0.8 < 0.95 < hits[1] < hits[2]


def test_neighbours_among_some_rows_are_places_among_these():
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float16)
    rows = np.random.default_rng(1).permutation(500)[:200]
    cosines, places = nearest(vectors, 5, rows=rows)
    alone = nearest(vectors[rows], 5)
    np.testing.assert_array_equal(cosines, alone[0])
    np.testing.assert_array_equal(places, alone[1])


def test_a_pool_that_knows_its_neighbours_is_scored_as_one_that_looks_for_them():
    embeddings = blob(60)
    embeddings[7] = embeddings[3]
    pool = pool_of(embeddings, np.arange(60) % 2)
    known = replace(pool, neighbours=find_neighbours(pool.embeddings, "test"))
    blind = replace(known, embeddings=-pool.embeddings)  # not looked at
    np.testing.assert_array_equal(knn_disagreement(blind, RNG), knn_disagreement(pool, RNG))


def test_equal_rows_share_a_group_whatever_their_order():
    values = np.array([[1, 2], [3, 4], [1, 2], [0, -0.0], [-0.0, 0]], dtype=np.float32)
    group = same_embedding(values)
    assert group[0] == group[2]
    assert group[3] == group[4]
    assert len(set(group)) == 3
    np.testing.assert_array_equal(same_embedding(values[::-1]), group[::-1])


def test_an_embedding_of_length_zero_is_refused():
    with pytest.raises(ValueError, match="1 rows are all zero"):
        knn_disagreement(pool_of(np.vstack([blob(4), np.zeros((1, 8))]), [0] * 5), RNG)
