from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.select import inclusion_by_rank, select_batch


@st.composite
def problems(draw):
    pool = draw(st.integers(1, 60))
    total = draw(st.integers(1, pool))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    return {
        "suspicion": rng.integers(levels, size=pool) / levels,
        "candidates": rng.permutation(pool)[:total],
        "n": draw(st.integers(0, total)),
        "audit_frac": draw(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0])),
        "rng": rng,
        "y_llm": rng.integers(3, size=pool),
        "embeddings": rng.normal(size=(pool, 2)).astype(np.float32),
    }


@settings(max_examples=200, deadline=None)
@given(problem=problems(), quota=st.booleans(), spread=st.booleans())
def test_a_batch_holds_exactly_n_distinct_candidates_with_honest_fields(problem, quota, spread):
    batch = select_batch(
        **problem,
        min_class_frac=0.2 if quota else 0.0,
        same_text=0.99 if spread else None,
    )
    n, total = problem["n"], len(problem["candidates"])
    assert len(batch.rows) == len(set(batch.rows)) == n
    assert np.isin(batch.rows, problem["candidates"]).all()
    assert ((batch.inclusion_prob > 0) & (batch.inclusion_prob <= 1)).all()
    n_audit = round(problem["audit_frac"] * n)
    if problem["audit_frac"] > 0 and n > 1:
        n_audit = max(n_audit, 1)
    assert (batch.reason == "audit").sum() == n_audit
    assert batch.audit_prob == pytest.approx(n_audit / total)
    assert (batch.inclusion_prob >= batch.audit_prob - 1e-12).all()


@settings(max_examples=200, deadline=None)
@given(problem=problems())
def test_suspects_are_the_most_suspect_of_the_rest_in_order(problem):
    batch = select_batch(**problem)
    suspects = batch.rows[batch.reason == "suspect"]
    left = np.setdiff1d(problem["candidates"], batch.rows)
    scores = problem["suspicion"]
    assert (np.diff(scores[suspects]) <= 0).all()
    if len(suspects) and len(left):
        assert scores[left].max() <= scores[suspects].min()


@settings(max_examples=200, deadline=None)
@given(problem=problems(), quota=st.booleans(), spread=st.booleans(), seed=st.integers(0, 99))
def test_permuting_the_pool_permutes_the_suspects(problem, quota, spread, seed):
    options = {"min_class_frac": 0.2 if quota else 0.0, "same_text": 0.99 if spread else None}
    size = len(problem["suspicion"])
    # No ties, which are broken at random, and no audit, which is drawn at random.
    problem |= {"suspicion": np.random.default_rng(seed).permutation(size) / size, "audit_frac": 0}
    batch = select_batch(**problem, **options)
    old = np.random.default_rng(seed).permutation(size)  # the old row of each new one
    new = np.argsort(old)
    moved = {name: problem[name][old] for name in ("suspicion", "y_llm", "embeddings")}
    again = select_batch(**problem | moved | {"candidates": new[problem["candidates"]]}, **options)
    assert old[again.rows].tolist() == batch.rows.tolist()
    assert again.inclusion_prob.tolist() == batch.inclusion_prob.tolist()


@settings(max_examples=100, deadline=None)
@given(total=st.integers(1, 80), data=st.data())
def test_inclusion_probabilities_fall_and_sum_to_the_batch(total, data):
    n_audit = data.draw(st.integers(0, total))
    n_suspect = data.draw(st.integers(0, total - n_audit))
    pi = inclusion_by_rank(total, n_audit=n_audit, n_suspect=n_suspect)
    assert pi.sum() == pytest.approx(n_audit + n_suspect)
    assert (np.diff(pi) <= 1e-12).all()


DESIGNS = {
    "distinct": {"suspicion": np.arange(25.0)},
    "ties": {"suspicion": np.repeat(np.arange(5.0), 5)},
    "constant": {"suspicion": np.zeros(25)},
    "quota": {
        "suspicion": np.arange(25.0),
        "y_llm": np.repeat([0, 1, 2], [10, 10, 5]),
        "min_class_frac": 0.3,
    },
    "spread": {
        "suspicion": np.arange(25.0),
        "embeddings": np.eye(9, dtype=np.float32)[np.arange(25) // 3],
        "same_text": 0.99,
    },
}


@pytest.mark.parametrize("design", DESIGNS)
def test_the_stated_probabilities_are_the_frequencies(design):
    rng = np.random.default_rng(5)
    draws = 6000
    candidates = np.arange(24)
    seen, stated, audited = np.zeros(25), np.zeros(25), np.zeros(25)
    for _ in range(draws):
        batch = select_batch(
            candidates=candidates, n=10, audit_frac=0.3, rng=rng, **DESIGNS[design]
        )
        seen[batch.rows] += 1
        stated[batch.rows] = batch.inclusion_prob
        audited[batch.rows[batch.reason == "audit"]] += 1
    noise = np.sqrt(stated * (1 - stated) / draws)
    assert (np.abs(seen / draws - stated) <= 4.5 * noise + 1e-12).all()
    assert (np.abs(audited[:24] / draws - 3 / 24) < 4.5 * np.sqrt(0.11 / draws)).all()


def test_weighting_by_the_stated_probability_recovers_the_pool_mean():
    rng = np.random.default_rng(0)
    suspicion = rng.random(200)
    wrong = rng.random(200) < suspicion
    estimates = []
    for _ in range(2000):
        batch = select_batch(suspicion, np.arange(200), 40, audit_frac=0.5, rng=rng)
        estimates.append((wrong[batch.rows] / batch.inclusion_prob).sum() / 200)
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - wrong.mean()) < 4 * error


def test_audit_items_are_spread_over_the_batch():
    batch = select_batch(
        np.arange(1000.0), np.arange(1000), 100, audit_frac=0.1, rng=np.random.default_rng(0)
    )
    audit = (batch.reason == "audit").reshape(10, 10)
    assert (audit.sum(axis=1) == 1).all()


def test_quotas_reach_a_class_that_suspicion_would_skip():
    y = np.repeat([0, 1], [90, 10])
    suspicion = np.concatenate([np.linspace(1, 0.5, 90), np.linspace(0.4, 0.1, 10)])
    options = {"audit_frac": 0.0, "y_llm": y}
    plain = select_batch(suspicion, np.arange(100), 20, rng=np.random.default_rng(0), **options)
    quota = select_batch(
        suspicion, np.arange(100), 20, rng=np.random.default_rng(0), min_class_frac=0.25, **options
    )
    assert (y[plain.rows] == 1).sum() == 0
    assert (y[quota.rows] == 1).sum() == 5


def test_spread_spends_one_label_on_identical_texts():
    embeddings = np.eye(30, dtype=np.float32)
    embeddings[:10] = embeddings[0]
    suspicion = np.linspace(1, 0, 30)
    batch = select_batch(
        suspicion,
        np.arange(30),
        10,
        audit_frac=0.0,
        rng=np.random.default_rng(0),
        embeddings=embeddings,
        same_text=0.999,
    )
    assert (batch.rows < 10).sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 6}, "asked for 6 items, but there are 5"),
        ({"n": -1}, "asked for -1"),
        ({"candidates": np.array([0, 0, 1, 2, 3])}, "repeat"),
        ({"candidates": np.array([0, 1, 2, 3, 9])}, "rows in"),
        ({"suspicion": np.array([0, 1, np.nan, 3, 4.0])}, "finite"),
        ({"audit_frac": 1.5}, "audit_frac"),
        ({"min_class_frac": 0.2}, "y_llm"),
        ({"min_class_frac": 0.6, "y_llm": np.array([0, 1, 0, 1, 0])}, "at most 1/2"),
        ({"same_text": 0.9}, "embeddings"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given_ = {
        "suspicion": np.arange(5.0),
        "candidates": np.arange(5),
        "n": 2,
        "audit_frac": 0.2,
        "rng": np.random.default_rng(0),
    }
    with pytest.raises(ValueError, match=message):
        select_batch(**(given_ | change))
