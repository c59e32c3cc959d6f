"""The model of people's errors finds what was planted, and equals the reference implementation."""

import numpy as np
import pytest

from strategies.crowd import dawid_skene


def panel(rng, n, accuracy, k=3, missing=0.0):
    """True classes, and answers of people who are right with the given chances."""
    truth = rng.integers(k, size=n)
    answers = np.empty((n, len(accuracy)), dtype=np.int64)
    for person, chance in enumerate(accuracy):
        wrong = (truth + rng.integers(1, k, size=n)) % k
        answers[:, person] = np.where(rng.random(n) < chance, truth, wrong)
    answers[rng.random(answers.shape) < missing] = -1
    return truth, answers


def test_planted_error_rates_are_found():
    accuracy = [0.95, 0.8, 0.8, 0.45]
    _, answers = panel(np.random.default_rng(0), 2000, accuracy)
    assert dawid_skene(answers, 3).reliability == pytest.approx(accuracy, abs=0.04)


def test_it_beats_the_majority_where_people_differ():
    truth, answers = panel(np.random.default_rng(1), 2000, [0.95, 0.6, 0.5])
    votes = np.eye(3)[answers].sum(axis=1)
    majority = (votes.argmax(axis=1) == truth).mean()
    estimated = (dawid_skene(answers, 3).posterior.argmax(axis=1) == truth).mean()
    assert estimated > majority + 0.05


@pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # crowd-kit's own
def test_it_equals_the_reference_implementation(monkeypatch):
    crowdkit = pytest.importorskip("crowdkit.aggregation")
    import pandas as pd

    _, answers = panel(np.random.default_rng(2), 120, [0.9, 0.8, 0.7, 0.6], missing=0.3)
    answers = answers[(answers >= 0).any(axis=1)]
    rows, people = np.nonzero(answers >= 0)
    table = pd.DataFrame({"task": rows, "worker": people, "label": answers[rows, people]})
    theirs = crowdkit.DawidSkene(n_iter=10, tol=1e-12).fit_predict_proba(table)[[0, 1, 2]]
    monkeypatch.setattr("strategies.crowd.SHRINK", 0.0)
    monkeypatch.setattr("strategies.crowd.MAX_STEPS", 10)
    ours = dawid_skene(answers, 3).posterior
    assert np.abs(ours - theirs.to_numpy()).max() < 1e-6


def test_few_answers_are_neither_trusted_nor_doubted_too_much():
    _, answers = panel(np.random.default_rng(3), 500, [0.8, 0.8, 0.8])
    newcomer = np.full((500, 1), -1)
    newcomer[:2, 0] = (answers[:2, 0] + 1) % 3
    found = dawid_skene(np.hstack([answers, newcomer]), 3).reliability
    assert 0.2 < found[3] < found[:3].min()


def test_nobody_answered_an_item():
    answers = np.array([[0, 0], [1, 1], [-1, -1], [0, 0]])
    found = dawid_skene(answers, 2)
    assert found.posterior[2] == pytest.approx(found.prior)
    assert found.posterior.sum(axis=1) == pytest.approx(1.0)
    assert np.isfinite(found.confusion).all()


@pytest.mark.parametrize("answers", [np.zeros(3, int), np.zeros((0, 2), int), np.array([[3]])])
def test_bad_answers_are_refused(answers):
    with pytest.raises(ValueError, match="answers must"):
        dawid_skene(answers, 3)


def test_known_classes_stay_and_teach_who_errs():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 3, 400)
    answers = np.stack(
        [
            np.where(rng.random(400) < accuracy, truth, rng.integers(0, 3, 400))
            for accuracy in (0.9, 0.3, 0.3)  # the two poor ones outvote the good one
        ],
        axis=1,
    )
    known = np.where(np.arange(400) < 60, truth, -1)
    found = dawid_skene(answers, 3, known=known)
    assert np.array_equal(found.posterior[:60], np.eye(3)[truth[:60]])
    assert found.reliability.argmax() == 0
    rest = slice(60, None)
    taught = (found.posterior[rest].argmax(axis=1) == truth[rest]).mean()
    alone = (dawid_skene(answers, 3).posterior[rest].argmax(axis=1) == truth[rest]).mean()
    assert taught > max(0.85, alone - 0.01)


@pytest.mark.parametrize("known", [np.zeros(4, int), np.full(5, 3), np.full(5, -2)])
def test_bad_known_classes_are_refused(known):
    with pytest.raises(ValueError, match="known must"):
        dawid_skene(np.zeros((5, 2), int), 3, known=known)


def test_somebody_without_an_answer_errs_like_the_average_person():
    _, answers = panel(np.random.default_rng(4), 800, [0.95, 0.8, 0.65])
    found = dawid_skene(np.hstack([answers, np.full((800, 1), -1)]), 3)
    np.testing.assert_allclose(found.confusion[3], found.confusion[:3].mean(axis=0), atol=0.01)


def test_items_that_nobody_answered_say_nothing_of_the_class_shares(monkeypatch):
    answers = np.full((100, 2), -1)
    answers[:3] = [[0, 0], [0, 0], [1, 1]]
    monkeypatch.setattr("strategies.crowd.MAX_STEPS", 1)
    assert dawid_skene(answers, 2).prior == pytest.approx([2 / 3, 1 / 3])
