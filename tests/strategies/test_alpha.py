"""Krippendorff's alpha against published examples and the reference implementation."""

import math
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.measure.stability import measure
from strategies.alpha import alpha

_ = -1
# Krippendorff 2011, section C: four observers, twelve units, answers missing.
FOUR_OBSERVERS = (
    np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
    )
    - 1
)
# Sections A and B of the same paper: two observers, no answer missing.
TWO_OBSERVERS_BINARY = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]])
TWO_OBSERVERS_NOMINAL = np.array([list("aabbdcccedda"), list("babbbccceddd")])


def value_counts(answers, k):
    """(n, k) how many of p people gave each class to each of n items; (p, n), -1 for no answer."""
    return (answers[:, :, None] == np.arange(k)).sum(axis=0)


@pytest.mark.parametrize(
    ("ordinal", "published"),
    [(False, 0.743), (True, 0.815)],
    ids=["nominal", "ordinal"],
)
def test_the_published_example_with_missing_answers(ordinal, published):
    counts = value_counts(FOUR_OBSERVERS, 5)
    assert counts.sum() == 41
    assert alpha(counts, ordinal=ordinal) == pytest.approx(published, abs=0.0005)


def test_the_published_examples_of_two_observers():
    assert alpha(value_counts(TWO_OBSERVERS_BINARY, 2)) == pytest.approx(0.095, abs=0.0005)
    classes = np.searchsorted(list("abcde"), TWO_OBSERVERS_NOMINAL)
    assert alpha(value_counts(classes, 5)) == pytest.approx(0.692, abs=0.0005)


@given(
    st.integers(0, 100_000),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(2, 6),
    st.floats(0, 0.9),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_it_equals_the_reference(seed, people, n, k, missing, ordinal):
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, k, (people, n))
    answers[rng.random(answers.shape) < missing] = -1
    counts = value_counts(answers, k)
    ours = alpha(counts, ordinal=ordinal)
    assert math.isnan(ours) or ours <= 1
    pairable = counts[counts.sum(axis=1) >= 2]
    if (pairable.sum(axis=0) > 0).sum() < 2:
        assert math.isnan(ours)
        return
    with warnings.catch_warnings():
        reference = krippendorff.alpha(
            value_counts=pairable,
            level_of_measurement="ordinal" if ordinal else "nominal",
            value_domain=np.arange(k),
        )
    assert ours == pytest.approx(reference, abs=1e-12)


@given(st.integers(0, 100_000), st.integers(2, 6), st.integers(2, 30), st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_it_equals_the_closed_form_of_complete_answers(seed, people, n, k):
    answers = np.random.default_rng(seed).integers(0, k, (people, n))
    closed = measure(answers, None, k, bootstrap=0, rng=np.random.default_rng(0)).alpha_k.value
    assert alpha(value_counts(answers, k)) == pytest.approx(closed, nan_ok=True)


@pytest.mark.parametrize("ordinal", [False, True])
@pytest.mark.parametrize(
    "answers",
    [
        np.zeros((3, 8), dtype=int),  # everybody says the same of everything: no chance to differ
        np.array([[0, 1, 2, 0]]),  # one person
        np.array([[0, 1, _, _], [_, _, 2, 0]]),  # two people who share no item
        np.array([[0, 0, 1], [0, 0, _]]),  # the other class has a single answer
        np.full((3, 4), -1),  # nobody answered
        np.empty((0, 0), dtype=int),
    ],
)
def test_it_is_undefined_without_answers_that_could_differ(answers, ordinal):
    assert math.isnan(alpha(value_counts(answers, 3), ordinal=ordinal))


@pytest.mark.parametrize("ordinal", [False, True])
def test_its_landmarks(ordinal):
    same = np.tile(np.array([0, 1, 2, 1, 0]), (4, 1))
    assert alpha(value_counts(same, 3), ordinal=ordinal) == 1
    # One deviation among answers that are all alike otherwise: by definition close to 0.
    one = np.zeros((2, 500), dtype=int)
    one[0, 0] = 1
    assert alpha(value_counts(one, 2), ordinal=ordinal) == pytest.approx(0, abs=1e-9)
    against = np.array([[0, 1] * 50, [1, 0] * 50])
    assert alpha(value_counts(against, 2), ordinal=ordinal) < -0.9
    random = np.random.default_rng(0).integers(0, 3, (2, 20_000))
    assert abs(alpha(value_counts(random, 3), ordinal=ordinal)) < 0.02


def test_only_ordinal_asks_how_far_answers_lie_apart():
    near = np.array([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 0]])
    far = np.array([[0, 1, 2, 3, 0, 3], [0, 1, 2, 3, 3, 0]])
    counts = value_counts(near, 4), value_counts(far, 4)
    assert alpha(counts[0], ordinal=True) > alpha(counts[0])
    assert alpha(counts[1], ordinal=True) < alpha(counts[1])


@pytest.mark.parametrize("counts", [[1, 2], [[1, -1]]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be"):
        alpha(counts)
