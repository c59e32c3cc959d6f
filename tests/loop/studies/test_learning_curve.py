"""Curves a - b n^-c: recovered where the sizes tell them, honest where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.studies.plateau import EXPONENTS, fit_curves

SIZES = np.array([30.0, 60, 120, 240, 480])


@given(st.floats(0.3, 0.99), st.floats(0.01, 3), st.sampled_from(list(EXPONENTS)))
@settings(max_examples=60, deadline=None)
def test_an_exact_curve_is_found_again(a, b, c):
    values = a - b * SIZES**-c
    found = fit_curves(SIZES, values)
    np.testing.assert_allclose(found.at(100.0), a - b * 100**-c, atol=2e-3)
    loss = ((values - [found.at(n)[0] for n in SIZES]) ** 2).sum()
    assert loss < 1e-9
    assert found.a[0] <= 1 + 1e-9
    assert found.b[0] >= 0


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
@settings(max_examples=80, deadline=None)
def test_no_curve_is_worse_than_a_level(values):
    found = fit_curves(SIZES, np.array(values))
    fitted = np.array([found.at(n)[0] for n in SIZES])
    flat = ((np.array(values) - np.mean(values)) ** 2).sum()
    assert ((np.array(values) - fitted) ** 2).sum() <= flat + 1e-9
    assert (np.diff(fitted) >= -1e-12).all()
    assert found.a[0] <= 1 + 1e-12


def test_a_falling_curve_is_a_level():
    found = fit_curves(SIZES, np.array([0.8, 0.75, 0.7, 0.7, 0.6]))
    assert found.b[0] == 0
    assert found.a[0] == pytest.approx(0.71)


def test_replicates_are_fitted_one_by_one():
    values = np.random.default_rng(0).random((7, 5))
    together = fit_curves(SIZES, values)
    for row in range(7):
        one = fit_curves(SIZES, values[row])
        alone = one.a[0], one.b[0], one.c[0]
        assert alone == pytest.approx((together.a[row], together.b[row], together.c[row]), rel=1e-9)


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="three different sizes"):
        fit_curves(np.array([10.0, 20, 20]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="three different sizes"):
        fit_curves(SIZES, np.zeros((2, 4)))
