"""Students judge only texts that they did not learn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loop.ports import TrainingSet
from loop.student.cross_fit import FOLDS, cross_fit
from loop.student.frozen_student import FrozenStudent

LABELS = ("a", "b")
RNG = np.random.default_rng(0)
VECTORS = {f"text {i}": RNG.normal(size=200).astype(np.float32) for i in range(60)}
TEXTS = list(VECTORS)
AT_RANDOM = np.eye(2)[RNG.integers(0, 2, 60)]


class Watched:
    """A frozen student that tells what each model learned from."""

    def __init__(self):
        self.rows = {}
        self.revision = "watched"

    def fit(self, train, eval_texts, labels, seeds, **rest):
        self.rows = {seed: rest["draws"][seed].rows for seed in seeds}
        student().fit(train, eval_texts, labels, seeds, **rest)


def student():
    return FrozenStudent(lambda texts: np.stack([VECTORS[t] for t in texts]), "vectors")


def in_sample(train):
    found = []
    student().fit(train, train.texts, LABELS, [0], keep={}, on_seed=lambda r: found.append(r.probs))
    return found[0]


def share_right(probs, train):
    return (probs.argmax(axis=1) == train.y.argmax(axis=1)).mean()


@pytest.mark.parametrize("copies", [1, 2])
def test_nobody_vouches_for_a_label_that_it_learned(copies):
    """Labels at random can be learned by heart, and by nothing else."""
    train = TrainingSet(TEXTS * copies, np.tile(AT_RANDOM, (copies, 1)), np.ones(60 * copies))
    assert share_right(in_sample(train), train) > 0.95
    judged = cross_fit(student(), train, LABELS, seed=1)
    np.testing.assert_allclose(judged.sum(axis=1), 1)
    assert share_right(judged, train) < 0.7


def test_what_is_in_the_texts_is_found():
    y = AT_RANDOM
    told = {
        t: v + 3 * np.sign(row[0] - 0.5) for (t, v), row in zip(VECTORS.items(), y, strict=True)
    }
    reads = FrozenStudent(lambda texts: np.stack([told[t] for t in texts]), "told")
    train = TrainingSet(TEXTS, y, np.ones(60))
    assert share_right(cross_fit(reads, train, LABELS, seed=1), train) > 0.95


def test_texts_of_no_weight_are_judged_and_never_learned_from():
    weight = np.ones(60)
    weight[::3] = 0
    train, seen = TrainingSet(TEXTS, AT_RANDOM, weight), Watched()
    judged = cross_fit(seen, train, LABELS, seed=1)
    assert len(seen.rows) == FOLDS
    other = replace(train, y=np.where(weight[:, None] == 0, 1 - AT_RANDOM, AT_RANDOM))
    np.testing.assert_array_equal(judged, cross_fit(student(), other, LABELS, seed=1))
    assert not np.array_equal(judged, cross_fit(student(), train, LABELS, seed=2))


def test_every_text_is_judged_by_the_one_model_that_did_not_see_it():
    train, seen = TrainingSet(TEXTS, AT_RANDOM, np.ones(60)), Watched()
    cross_fit(seen, train, LABELS, seed=1)
    learned = np.array([np.isin(np.arange(60), rows) for rows in seen.rows.values()])
    np.testing.assert_array_equal(learned.sum(axis=0), FOLDS - 1)
    assert (~learned).sum(axis=1).tolist() == [60 // FOLDS] * FOLDS


def test_two_texts_suffice_and_one_does_not():
    two = TrainingSet(TEXTS[:2], np.eye(2), np.ones(2))
    assert cross_fit(student(), two, LABELS, seed=1).shape == (2, 2)
    same = TrainingSet([TEXTS[0]] * 3, np.eye(2)[[0, 1, 1]], np.ones(3))
    assert cross_fit(student(), same, LABELS, seed=1) is None
    nobody = TrainingSet(TEXTS, AT_RANDOM, np.zeros(60))
    assert cross_fit(student(), nobody, LABELS, seed=1) is None


def test_students_that_learned_nothing_judge_nothing():
    blind = FrozenStudent(lambda texts: np.zeros((len(texts), 4), dtype=np.float32), "zeros")
    texts = [f"text {i}" for i in range(60)]
    train = TrainingSet(texts, np.eye(2)[np.arange(60) % 2], np.ones(60))
    assert cross_fit(blind, train, LABELS, seed=1) is None
