from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.select import audit_design, select_batch, spread_sample
from strategies.signals import components
from strategies.signals.components import leading_components


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
        "about": draw(st.sampled_from([None, rng.normal(size=(pool, 2))])),
    }


@settings(max_examples=200, deadline=None)
@given(problem=problems(), cover=st.booleans())
def test_a_batch_holds_exactly_n_distinct_candidates_with_honest_fields(problem, cover):
    batch = select_batch(**problem, cover=cover)
    n, total = problem["n"], len(problem["candidates"])
    assert len(batch.rows) == len(set(batch.rows)) == n
    assert np.isin(batch.rows, problem["candidates"]).all()
    assert ((batch.inclusion_prob > 0) & (batch.inclusion_prob <= 1)).all()
    n_audit = round(problem["audit_frac"] * n)
    if problem["audit_frac"] > 0 and n > 1:
        n_audit = max(n_audit, 1)
    assert (batch.reason == "audit").sum() == n_audit
    assert set(batch.reason) <= {"audit", "coverage" if cover else "suspect"}
    assert (batch.inclusion_prob >= batch.audit_prob - 1e-12).all()
    assert ((batch.audit_prob > 0) == (n_audit > 0)).all()
    if n and cover:
        assert batch.audit_prob == pytest.approx(n_audit / total)
        assert batch.inclusion_prob == pytest.approx(n / total)


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
@given(problem=problems(), seed=st.integers(0, 99))
def test_permuting_the_pool_permutes_the_suspects(problem, seed):
    size = len(problem["suspicion"])
    # No ties, which are broken at random, and no audit, which is drawn at random.
    problem |= {"suspicion": np.random.default_rng(seed).permutation(size) / size, "audit_frac": 0}
    batch = select_batch(**problem)
    old = np.random.default_rng(seed).permutation(size)  # the old row of each new one
    new = np.argsort(old)
    moved = {"suspicion": problem["suspicion"][old], "about": None}
    again = select_batch(**problem | moved | {"candidates": new[problem["candidates"]]})
    assert old[again.rows].tolist() == batch.rows.tolist()
    assert again.inclusion_prob.tolist() == batch.inclusion_prob.tolist()


@settings(max_examples=300, deadline=None)
@given(total=st.integers(1, 80), data=st.data())
def test_the_probabilities_of_a_design_sum_to_its_numbers(total, data):
    n_audit = data.draw(st.integers(0, total))
    n_suspect = data.draw(st.integers(0, total - n_audit))
    design = audit_design(total, n_audit=n_audit, n_suspect=n_suspect)
    assert design.inclusion_prob.sum() == pytest.approx(n_audit + n_suspect)
    assert design.audit_prob.sum() == pytest.approx(n_audit)
    assert (design.inclusion_prob[:n_suspect] == 1.0).all()
    assert (design.inclusion_prob <= 1 + 1e-12).all()
    assert (design.audit_prob[:n_suspect] == pytest.approx(n_audit / total)) or not n_suspect
    assert 0 <= design.one_more <= 1


DESIGNS = {
    "distinct": {"suspicion": np.arange(25.0)},
    "ties": {"suspicion": np.repeat(np.arange(5.0), 5)},
    "constant": {"suspicion": np.zeros(25)},
    "far apart": {
        "suspicion": np.arange(25.0),
        "about": np.random.default_rng(1).normal(size=(25, 2)),
    },
    "far apart, the same places": {
        "suspicion": np.zeros(25),
        "about": np.repeat(np.eye(5), 5, axis=0),
    },
    "coverage": {"suspicion": np.arange(25.0), "cover": True},
    "coverage, far apart": {
        "suspicion": np.arange(25.0),
        "about": np.random.default_rng(2).normal(size=(25, 2)) ** 3,
        "cover": True,
    },
}


@pytest.mark.parametrize("design", DESIGNS)
def test_the_stated_probabilities_are_the_frequencies(design):
    rng = np.random.default_rng(5)
    draws = 1200 if "about" in DESIGNS[design] else 3000
    candidates = np.arange(24)
    seen, stated, audited, audit_stated = np.zeros((4, 25))
    for _ in range(draws):
        batch = select_batch(
            candidates=candidates, n=10, audit_frac=0.3, rng=rng, **DESIGNS[design]
        )
        seen[batch.rows] += 1
        stated[batch.rows] = batch.inclusion_prob
        audit_stated[batch.rows] = batch.audit_prob
        audited[batch.rows[batch.reason == "audit"]] += 1
    for counted, told in ((seen, stated), (audited, audit_stated)):
        noise = np.sqrt(told * (1 - told) / draws)
        assert (np.abs(counted / draws - told) <= 4.5 * noise + 1e-12).all()
    assert np.abs(audit_stated[:24] - 3 / 24).max() < 0.02  # every text about as likely


@settings(max_examples=8, deadline=None)
@given(total=st.integers(2, 9), data=st.data(), seed=st.integers(0, 999))
def test_a_spread_sample_takes_every_row_equally_often(total, data, seed):
    n = data.draw(st.integers(1, total))
    rng = np.random.default_rng(seed)
    about = rng.normal(size=(total, 2)) ** 3
    draws = 500
    seen = np.zeros(total)
    for _ in range(draws):
        rows = spread_sample(about, n, rng)
        assert len(set(rows)) == n
        seen[rows] += 1
    share = n / total
    assert np.abs(seen / draws - share).max() <= 4.9 * np.sqrt(share * (1 - share) / draws) + 1e-12


def test_a_spread_sample_of_very_many_takes_every_row_equally_often(monkeypatch):
    monkeypatch.setattr("strategies.select.MOST_COMPARED", 10)
    rng = np.random.default_rng(0)
    about = rng.normal(size=(60, 2))
    seen = np.zeros(60)
    for _ in range(2000):
        rows = spread_sample(about, 1, rng)
        assert len(rows) == 1
        seen[rows] += 1
    assert np.abs(seen / 2000 - 1 / 60).max() < 5 * np.sqrt(1 / 60 / 2000)


def test_a_spread_sample_knows_a_smooth_mean_better_than_a_plain_one():
    rng = np.random.default_rng(0)
    about = rng.normal(size=(300, 2))
    smooth = np.tanh(about[:, 0]) + 0.2 * rng.normal(size=300)
    drawn = np.array(
        [
            (smooth[spread_sample(about, 40, rng)].mean(), rng.choice(smooth, 40).mean())
            for _ in range(100)
        ]
    )
    assert np.abs(drawn.mean(axis=0) - smooth.mean()).max() < 0.04
    assert drawn[:, 0].std() < 0.7 * drawn[:, 1].std()


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 6}, "asked for 6 items, but there are 5"),
        ({"n": -1}, "asked for -1"),
        ({"candidates": np.array([0, 0, 1, 2, 3])}, "repeat"),
        ({"candidates": np.array([0, 1, 2, 3, 9])}, "rows in"),
        ({"suspicion": np.array([0, 1, np.nan, 3, 4.0])}, "finite"),
        ({"audit_frac": 1.5}, "audit_frac"),
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


def test_components_of_very_many_texts_are_those_of_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings = (rng.normal(size=(6000, 12)) * 0.6 ** np.arange(12)).astype(np.float16)
    whole = leading_components(embeddings, 4)
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(whole.var(axis=0).mean(), 1)
    monkeypatch.setattr(components, "SEEN", 2000)
    sampled = leading_components(embeddings, 4)
    assert not np.array_equal(sampled, whole)
    along = np.abs(np.corrcoef(sampled.T, whole.T)[:4, 4:].diagonal())
    assert along.min() > 0.99


def test_tied_items_have_one_audit_probability():
    rng = np.random.default_rng(0)
    for total, n in ((20, 10), (37, 11)):
        batch = select_batch(np.zeros(total), np.arange(total), n, audit_frac=0.3, rng=rng)
        np.testing.assert_allclose(batch.audit_prob, round(0.3 * n) / total)
        np.testing.assert_allclose(batch.inclusion_prob, n / total)
