"""What every strategy promises, whatever it computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies import STRATEGIES
from strategies.needs import NEEDS
from strategies.pool import Pool, all_finite

N, M, K, D = 150, 3, 4, 12
NAMES = sorted(STRATEGIES)


def full_pool(seed: int = 0) -> Pool:
    """A pool with everything a strategy may ask for; a third of the later votes not taken."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(K, 0.5), size=(N, M))
    off = rng.random((N, M))
    missing = rng.random((N, M)) < 0.3
    missing[:, 0] = False
    probs[missing], off[missing] = np.nan, np.nan
    y_llm = np.nanmean(probs, axis=1).argmax(axis=1).astype(np.int64)
    gold = np.where(rng.random(N) < 0.4, rng.integers(K, size=N), -1).astype(np.int64)
    return Pool(
        probs=probs,
        y_llm=y_llm,
        gold=gold,
        embeddings=rng.normal(size=(N, D)).astype(np.float32),
        p_student=rng.dirichlet(np.ones(K), size=(5, N)),
        off_label_mass=off,
        class_prior=np.array([0.4, 0.3, 0.2, 0.1]),
        ordinal=True,
        inclusion_prob=rng.uniform(0.1, 1.0, size=N),
        unsure=(gold < 0) & (rng.random(N) < 0.2),
        p_gold=rng.dirichlet(np.ones(K), size=(2, N)),
        states=np.where(rng.random(N) < 0.1, np.nan, rng.normal(size=(D, N))).T.astype(np.float16),
    )


def take(pool: Pool, rows: np.ndarray) -> Pool:
    return replace(
        pool,
        probs=pool.probs[rows],
        y_llm=pool.y_llm[rows],
        gold=pool.gold[rows],
        embeddings=pool.embeddings[rows],
        p_student=pool.p_student[:, rows],
        off_label_mass=pool.off_label_mass[rows],
        inclusion_prob=pool.inclusion_prob[rows],
        unsure=pool.unsure[rows],
        states=pool.states[rows],
        p_gold=pool.p_gold[:, rows],
    )


def score(name: str, pool: Pool, seed: int = 1) -> np.ndarray:
    return STRATEGIES[name](pool, np.random.default_rng(seed))


def test_needs_names_every_strategy():
    assert set(NEEDS) == set(STRATEGIES)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_in_the_unit_interval_and_one_per_item(name):
    scores = score(name, full_pool())
    assert scores.shape == (N,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert np.ptp(scores) > 0  # says something


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores(name):
    assert np.array_equal(score(name, full_pool()), score(name, full_pool()))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_permuting_rows_permutes_scores(name):
    pool = full_pool()
    rows = np.random.default_rng(7).permutation(N)
    np.testing.assert_allclose(score(name, take(pool, rows)), score(name, pool)[rows], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_left_as_it_was(name):
    pool, before = full_pool(), full_pool()
    score(name, pool)
    for field in ("probs", "y_llm", "gold", "embeddings", "p_student", "off_label_mass"):
        np.testing.assert_array_equal(getattr(pool, field), getattr(before, field))


@pytest.mark.parametrize("name", NAMES)
def test_an_items_own_gold_label_never_enters_its_score(name):
    pool = full_pool()
    scores = score(name, pool)
    for row in np.flatnonzero(pool.gold >= 0)[:8]:
        for other in range(K):
            gold = pool.gold.copy()
            gold[row] = other
            np.testing.assert_allclose(
                score(name, replace(pool, gold=gold))[row], scores[row], atol=1e-9
            )


@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if NEEDS[n] - {"ordinal", "votes"} and n != "learned_error"],
)
def test_what_is_needed_and_missing_is_named(name):
    need = next(iter(NEEDS[name] - {"ordinal"}))
    with pytest.raises(ValueError, match=name):
        score(name, replace(full_pool(), **{need: None}))


@pytest.mark.parametrize("name", [name for name in NAMES if "votes" in NEEDS[name]])
def test_one_prompt_variant_is_an_error_and_not_a_column_of_zeros(name):
    pool = full_pool()
    single = replace(pool, probs=pool.probs[:, :1], off_label_mass=pool.off_label_mass[:, :1])
    with pytest.raises(ValueError, match=r"at least 2 prompt variants.*prompt\.variants"):
        score(name, single)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("random", "class_rarity")])
def test_a_pool_without_gold_and_optional_arrays_is_scored(name):
    pool = full_pool()
    needs = NEEDS[name] | ({"embeddings"} if name == "learned_error" else set())
    lean = replace(
        pool,
        gold=np.full(N, -1, dtype=np.int64),
        embeddings=pool.embeddings if "embeddings" in needs else None,
        p_student=pool.p_student if "p_student" in needs else None,
        off_label_mass=pool.off_label_mass if "off_label_mass" in needs else None,
        class_prior=None,
        inclusion_prob=None,
    )
    assert np.isfinite(score(name, lean)).all()


def test_every_number_in_half_precision_is_known_to_be_finite_or_not():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(every)
    assert [all_finite(every[i : i + 1]) for i in range(2**16)] == finite.tolist()
    vectors = np.resize(every[finite], (9000, 7))  # more rows than one block
    assert all_finite(vectors)
    for bad in (np.nan, -np.inf):
        vectors[8999, 6] = bad
        assert not all_finite(vectors)
        assert all_finite(vectors[:, :6])
