"""The logistic regression against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from strategies.logistic import fit_logistic, logistic_probs, sigmoid


@pytest.mark.parametrize("n", [12, 60, 2000])
@pytest.mark.parametrize("penalty", [0.05, 1.0, 50.0])
def test_it_equals_scikit_learn(n, penalty):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 7)) * rng.uniform(0.1, 5, 7)
    y = (rng.random(n) < sigmoid(x[:, 0] - 1)).astype(float)
    y[:2] = 0, 1
    weight = rng.uniform(0.1, 4, n)
    reference = LogisticRegression(
        C=1 / penalty, solver="newton-cholesky", tol=1e-10, max_iter=200
    ).fit(x, y, sample_weight=weight)
    beta = fit_logistic(x, y, penalty, weight=weight)
    np.testing.assert_allclose(beta[:-1], reference.coef_[0], atol=1e-6)
    np.testing.assert_allclose(logistic_probs(beta, x), reference.predict_proba(x)[:, 1], atol=1e-6)
    assert np.array_equal(
        fit_logistic(x, y, penalty), fit_logistic(x, y, penalty, weight=np.ones(n))
    )


def test_classes_that_a_line_separates_do_not_run_away():
    x = np.r_[np.full(20, -3.0), np.full(20, 3.0)][:, None]
    beta = fit_logistic(x, (x[:, 0] > 0).astype(float), 1.0)
    assert np.isfinite(beta).all()
    assert logistic_probs(beta, x).min() > 0


def test_the_sigmoid_stays_within_bounds():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
