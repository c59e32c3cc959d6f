"""Which students learned nothing: found where it is so, never held against an honest one."""

from contextlib import suppress

import numpy as np
import pytest
from tiny_encoder import fit, make_texts, tiny_student, training_set

from loop.errors import StudentError
from loop.ports import OwnAnswers, SeedResult
from loop.student.frozen_student import FrozenStudent
from loop.student.nothing_learned import (
    answers_told,
    asked_again,
    checked,
    has_learned,
    nothing_learned,
)


def own(answers, labels, k=2, weight=None):
    labels = np.asarray(labels)
    y = np.eye(k)[labels] if labels.ndim == 1 else labels
    return OwnAnswers(
        np.asarray(answers), y, np.ones(len(y)) if weight is None else np.asarray(weight)
    )


def labels_with(others, n=200):
    """n labels, so many of class 1, spread."""
    y = np.zeros(n, int)
    y[np.linspace(0, n - 1, others).astype(int)] = 1
    return y


@pytest.mark.parametrize("others", [100, 60, 20])
def test_one_class_for_everything_is_nothing(others):
    found = nothing_learned(own(np.zeros(200, int), labels_with(others)))
    assert found is not None
    assert (found.top, found.top_share, found.texts) == (0, 1.0, 200)
    assert (found.right, found.commonest) == pytest.approx((1 - others / 200,) * 2)
    assert answers_told(found, ("no", "yes")).startswith("answers 'no' for all 200 texts")


def test_soft_labels_weights_and_a_rarer_class_for_everything():
    rng = np.random.default_rng(0)
    soft = rng.dirichlet([2, 1, 1], 150)
    assert nothing_learned(own(np.full(150, 2), soft, weight=rng.random(150) + 0.1)) is not None


def test_answers_at_random_are_nothing_and_are_told_as_such():
    rng = np.random.default_rng(1)
    found = nothing_learned(own(rng.permutation(labels_with(80)), labels_with(80)))
    assert found is not None
    assert "has nothing to do with their labels" in answers_told(found, ("no", "yes"))


def test_few_random_students_pass_for_taught_ones():
    """The level is kept: about one in twenty."""
    rng = np.random.default_rng(2)
    y = labels_with(80)
    passed = sum(nothing_learned(own(rng.permutation(y), y)) is None for _ in range(100))
    assert passed <= 10


@pytest.mark.parametrize("right", [0.62, 0.7, 1.0])
def test_a_hard_task_is_learned_a_little(right):
    """Half of each class, and answers that are right a little more often than not."""
    rng = np.random.default_rng(3)
    y = labels_with(100)
    answers = np.where(rng.random(200) < right, y, 1 - y)
    assert nothing_learned(own(answers, y)) is None


def test_a_student_with_class_weights_is_not_held_against_the_commonest_class():
    """It finds 14 of 20 rare texts and names 50 others rare: right less often than 'always no'."""
    y = labels_with(20)
    answers = np.zeros(200, int)
    answers[np.flatnonzero(y == 1)[:14]] = 1
    answers[np.flatnonzero(y == 0)[:50]] = 1
    assert (answers == y).mean() < (y == 0).mean()
    assert nothing_learned(own(answers, y)) is None


@pytest.mark.parametrize(
    "labels",
    [
        labels_with(10),  # one label in twenty: everybody would answer the other
        labels_with(2, n=20),
        np.zeros(50, int),
        np.tile([0.8, 0.2], (60, 1)),  # soft labels that all lean to one side
    ],
)
def test_nobody_is_blamed_where_there_was_hardly_a_thing_to_learn(labels):
    assert nothing_learned(own(np.zeros(len(labels), int), labels)) is None


def test_the_texts_that_are_asked_again_spread_over_all():
    assert asked_again(3).tolist() == [0, 1, 2]
    rows = asked_again(10_000)
    assert (len(rows), rows[0], rows[-1]) == (200, 0, 9_999)


def test_a_seed_that_nobody_asked_is_handed_over():
    seen, failed = [], []
    hand_over = checked(seen.append, lambda result, _: failed.append(result))
    hand_over(SeedResult(0, np.ones((1, 2)) / 2, 0.1, None))
    hand_over(SeedResult(1, np.ones((1, 2)) / 2, 0.1, None, own(np.zeros(40, int), [0, 1] * 20)))
    assert ([r.seed for r in seen], [r.seed for r in failed]) == ([0, 1], [1])


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0]])
def test_the_lowest_seed_decides_whichever_ends_first(order):
    """Seeds that train side by side end in any order; what is said does not depend on it."""
    y = [0, 1] * 20
    flat, good = own(np.zeros(40, int), y), own(np.array(y), y)

    def tell(answers):
        seen, failed = [], []

        def stop(result, _):
            failed.append(result.seed)
            if result.seed == 0:
                raise StudentError("stop")

        hand_over = checked(lambda result: seen.append(result.seed), stop, first=0)
        with suppress(StudentError):
            for seed in order:
                hand_over(SeedResult(seed, np.ones((1, 2)) / 2, 0.1, None, answers[seed]))
        return sorted(seen), failed

    assert tell([flat, good, good]) == ([], [0])
    assert tell([good, flat, flat])[0] == [0, 1, 2]
    assert [has_learned(SeedResult(0, np.eye(2), 0.1, None, o)) for o in (flat, good, None)] == [
        False,
        True,
        None,
    ]


@pytest.mark.usefixtures("one_thread")
def test_encoders_and_heads_say_what_they_answer_for_their_own_texts(tiny):
    """The right rate for so small an encoder teaches it; a far too small one does not."""
    texts, y = make_texts(90)
    train = training_set(texts, y)
    for settings, learns in (({"epochs": 8}, True), ({"epochs": 1, "lr": 1e-7}, False)):
        result = fit(tiny_student(tiny, **settings), train, texts[:9])[0]
        assert (nothing_learned(result.own) is None) == learns
    vectors = dict(zip(texts, np.eye(3, dtype=np.float32)[y], strict=True))
    frozen = FrozenStudent(lambda asked: np.stack([vectors[t] for t in asked]), "e")
    result = fit(frozen, train, texts[:9])[0]
    assert len(result.probs) == 9
    assert (result.own.answers == y).all()
    assert nothing_learned(result.own) is None
    blind = FrozenStudent(lambda asked: np.zeros((len(asked), 3), np.float32), "e")
    assert nothing_learned(fit(blind, train, texts[:9])[0].own).top_share == 1
