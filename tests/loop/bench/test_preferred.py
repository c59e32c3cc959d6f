from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.bench.preferred import preferred
from strategies.pool import Pool
from strategies.select import select_batch


def pool_of(y, embeddings=None):
    n, k = len(y), 3
    return Pool(np.full((n, 1, k), 1 / k), np.asarray(y), np.full(n, -1), embeddings)


def taken(suspicion, pool, n, *, candidates=None, min_class_frac=0.0, same_text=None):
    """The n rows that come first."""
    candidates = np.arange(pool.n) if candidates is None else candidates
    rng = np.random.default_rng(0)
    options = {"min_class_frac": min_class_frac, "same_text": same_text, "rng": rng}
    order = preferred(suspicion, candidates, n, pool, **options)
    return select_batch(order, candidates, n, audit_frac=0.0, rng=rng).rows


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans(), st.booleans())
def test_every_candidate_has_a_place_of_its_own_that_no_permutation_changes(
    seed, total, quota, same
):
    rng = np.random.default_rng(seed)
    size = total + 5
    suspicion = rng.permutation(size) / size
    pool = pool_of(rng.integers(3, size=size), rng.normal(size=(size, 2)).astype(np.float32))
    candidates = rng.permutation(size)[:total]
    options = {"min_class_frac": 0.2 * quota, "same_text": 0.99 if same else None, "rng": rng}
    order = preferred(suspicion, candidates, total // 2, pool, **options)
    assert sorted(order[candidates]) == list(range(1, total + 1))
    old = rng.permutation(size)  # the old row of each new one
    moved = pool_of(pool.y_llm[old], pool.embeddings[old])
    places = np.argsort(old)[candidates]
    again = preferred(suspicion[old], places, total // 2, moved, **options)
    np.testing.assert_array_equal(again, order[old])


def test_quotas_reach_a_class_that_suspicion_would_skip():
    y = np.repeat([0, 1], [90, 10])
    suspicion = np.concatenate([np.linspace(1, 0.5, 90), np.linspace(0.4, 0.1, 10)])
    plain = taken(suspicion, pool_of(y), 20)
    quota = taken(suspicion, pool_of(y), 20, min_class_frac=0.25)
    assert (y[plain] == 1).sum() == 0
    assert (y[quota] == 1).sum() == 5


def test_spread_spends_one_label_on_identical_texts():
    embeddings = np.eye(30, dtype=np.float32)
    embeddings[:10] = embeddings[0]
    suspicion = np.linspace(1, 0, 30)
    rows = taken(suspicion, pool_of(np.zeros(30, int), embeddings), 10, same_text=0.999)
    assert (rows < 10).sum() == 1
    rows = taken(suspicion, pool_of(np.zeros(30, int), embeddings), 25, same_text=0.999)
    assert sorted(rows[rows < 10]) == [0, 1, 2, 3, 4]  # when nothing else is left


@pytest.mark.parametrize(
    ("options", "message"),
    [({"min_class_frac": 0.6}, "at most 1/2"), ({"same_text": 0.9}, "needs embeddings")],
)
def test_wrong_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        taken(np.arange(5.0), pool_of([0, 1, 0, 1, 0]), 2, **options)
