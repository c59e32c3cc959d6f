import numpy as np
import pytest

from strategies.calibrate import fit_temperature, log_losses, with_temperature


def drawn(n, sharpness, seed=0):
    """Probabilities that are right, sharpened, and classes drawn from the right ones."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1.0, 1.0, 1.0], n)
    gold = np.array([rng.choice(3, p=p) for p in probs])
    return with_temperature(probs, 1.0 / sharpness), gold


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_finds_the_temperature_that_undoes_sharpening(sharpness):
    probs, gold = drawn(4_000, sharpness)
    assert fit_temperature(probs, gold) == pytest.approx(sharpness, rel=0.1)


def test_lowers_the_loss_and_keeps_the_likeliest_class():
    probs, gold = drawn(500, 4.0)
    found = with_temperature(probs, fit_temperature(probs, gold))
    assert log_losses(found, gold).mean() < log_losses(probs, gold).mean()
    assert (found.argmax(1) == probs.argmax(1)).all()
    np.testing.assert_allclose(found.sum(1), 1.0)


def test_few_labels_change_little_and_none_nothing():
    sure = np.array([[0.999, 0.001]])
    assert fit_temperature(sure[:0], np.array([], dtype=np.int64)) == pytest.approx(1.0, abs=1e-4)
    assert fit_temperature(sure, np.array([1])) < fit_temperature(
        np.repeat(sure, 50, 0), np.ones(50, dtype=np.int64)
    )


def test_certain_and_wrong_stays_finite():
    probs = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(fit_temperature(probs, np.array([1, 1])))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="do not fit together"):
        fit_temperature(np.ones((3, 2)) / 2, np.zeros(2, dtype=np.int64))


def test_a_handful_of_right_answers_makes_nobody_sure():
    probs = np.tile([0.7, 0.3], (20, 1))
    found = with_temperature(probs, fit_temperature(probs, np.zeros(20, dtype=np.int64)))
    assert 0.7 < found[0, 0] < 0.95
