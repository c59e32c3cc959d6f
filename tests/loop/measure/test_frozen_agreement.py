"""Agreement of the frozen student with the full one, against scikit-learn and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from loop.campaign.metrics import FrozenAccuracy, FrozenAgreement, Metric
from loop.measure.frozen_agreement import agreement
from loop.measure.stability import churn
from loop.report.wording import agreement_sentence


def rng(seed=0):
    return np.random.default_rng(seed)


@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_kappa_of_one_seed_each_is_cohens(seed, n, k):
    generator = rng(seed)
    a, b = generator.integers(0, k, (1, n)), generator.integers(0, k, (1, n))
    found = agreement(a, b, k, rng=generator)
    assert found["same"].value == pytest.approx((a == b).mean())
    if len(np.unique([a, b])) > 1:
        expected = cohen_kappa_score(a[0], b[0], labels=range(k))
        assert found["kappa"].value == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found["itself"].value)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 5), st.integers(3, 40))
@settings(max_examples=30, deadline=None)
def test_shares_are_means_over_pairs(seed, s, t, n):
    generator = rng(seed)
    a, b = generator.integers(0, 3, (s, n)), generator.integers(0, 3, (t, n))
    found = agreement(a, b, 3, rng=generator)
    assert found["same"].value == pytest.approx(np.mean([x == y for x in a for y in b]))
    assert found["itself"].value == pytest.approx(1 - churn(a))
    short = found["itself"].value - found["same"].value
    assert found["short"].value == pytest.approx(short)
    for name in ("same", "itself"):
        assert 0 <= found[name].low <= found[name].high <= 1


def students(generator, base, flips, seeds):
    preds = np.tile(base, (seeds, 1))
    away = generator.random(preds.shape) < flips
    return np.where(away, (preds + 1) % 3, preds)


def test_students_that_all_agree_leave_open_what_other_texts_would_show():
    same = np.tile(np.arange(50) % 2, (3, 1))
    found = agreement(same, same, 2, rng=rng())
    for name in ("same", "itself", "kappa"):
        assert found[name].value == 1
        assert 0.85 < found[name].low < 0.95 < found[name].high <= 1
    assert found["short"].low < 0 < found["short"].high


def test_it_may_stand_in_only_where_it_agrees_like_another_seed():
    generator = rng(1)
    y = generator.integers(0, 3, 400)
    full = students(generator, y, 0.1, 5)
    agreed = {
        name: FrozenAgreement(**agreement(full, frozen, 3, rng=rng()))
        for name, frozen in (
            ("alike", students(generator, y, 0.1, 5)),
            ("other", students(generator, (y + (generator.random(400) < 0.2)) % 3, 0.1, 5)),
        )
    }
    right = FrozenAccuracy(0.9, 0.7, Metric(-0.2))
    other = agreement_sentence(replace(agreed["other"], accuracy=right), ())
    assert "you may use it to explore" in agreement_sentence(agreed["alike"], ())
    assert "not to report" in other
    assert "accuracy 70.0 against 90.0" in other
    unknown = Metric(math.nan)
    assert agreement_sentence(FrozenAgreement(unknown, unknown, unknown, unknown), ()) == ""


ALIKE = FrozenAgreement(
    Metric(0.9, 0.85, 0.95), Metric(0.8, 0.7, 0.9), Metric(0.9), Metric(0.0, -0.05, 0.05)
)


@pytest.mark.parametrize(
    ("agreed", "failed", "says"),
    [
        (ALIKE, (3,), "a seed of the full student learned nothing, so this says no more"),
        (ALIKE, (0, 1), "2 seeds of the full student learned nothing"),
        (replace(ALIKE, kappa=Metric(-0.02, -0.1, 0.06)), (), "this may be chance"),
        (replace(ALIKE, kappa=Metric(0.1, -0.1, 0.3)), (), "this may be chance"),
        (replace(ALIKE, kappa=Metric(math.nan)), (), "this may be chance"),
        (
            replace(ALIKE, short=Metric(0.0, -0.278, 0.278)),
            (),
            "between 27.8 points more often and 27.8 points less often than two seeds",
        ),
    ],
)
def test_no_verdict_where_nothing_is_shown(agreed, failed, says):
    told = agreement_sentence(agreed, failed)
    assert says in told
    assert "-" not in told
    assert "for exploring" not in told


def test_intervals_cover_the_agreement_with_other_items_and_seeds():
    generator, covered = rng(2), 0
    mood = 0.15  # seeds differ in how often they flip

    def draw(y):
        flips = generator.beta(2, 2 / mood - 2, 5)
        return np.stack([students(generator, y, f, 1)[0] for f in flips])

    y = generator.integers(0, 3, 20_000)
    truth = np.mean([(draw(y)[:, None] == draw(y)[None]).mean() for _ in range(60)])
    for _ in range(80):
        sample = y[generator.choice(20_000, 150, replace=False)]
        found = agreement(draw(sample), draw(sample), 3, rng=generator)["same"]
        covered += found.low <= truth <= found.high
    assert covered / 80 >= 0.88


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"need \(s, n\) and \(s', n\)"):
        agreement(np.zeros((2, 3), int), np.zeros((2, 4), int), 2, rng=rng())
    with pytest.raises(ValueError, match="n > 0"):
        agreement(np.zeros((2, 0), int), np.zeros((2, 0), int), 2, rng=rng())
