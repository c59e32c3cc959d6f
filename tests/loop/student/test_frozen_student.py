"""Frozen heads as a student: they learn, and what a seed draws can be taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from loop.errors import StudentError
from loop.ports import Draws, TrainingSet
from loop.student.frozen_student import FrozenHeads, FrozenStudent

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 200)
VECTORS = {
    f"text {i}": (np.eye(3)[c].repeat(4) * 2 + RNG.normal(size=12)).astype(np.float32)
    for i, c in enumerate(Y)
}
TEXTS = list(VECTORS)


def student():
    return FrozenStudent(lambda texts: np.stack([VECTORS[t] for t in texts]), "vectors")


def fit(seeds, draws=None, weight=None, train=range(150)):
    found, steps = {}, []
    labels = TrainingSet(
        [TEXTS[i] for i in train],
        np.eye(3)[Y[list(train)]],
        np.ones(len(train)) if weight is None else weight,
    )
    student().fit(
        labels,
        TEXTS[150:],
        ("a", "b", "c"),
        seeds,
        keep={},
        on_seed=lambda r: found.update({r.seed: r.probs}),
        progress=steps.append,
        draws=draws,
    )
    assert sum(steps) == len(train) * len(seeds)
    return found


def test_it_learns_and_seeds_differ_by_their_bootstrap():
    found = fit((0, 1))
    np.testing.assert_allclose(found[0].sum(axis=1), 1)
    assert (found[0].argmax(axis=1) == Y[150:]).mean() > 0.85
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], fit((0,))[0], atol=0.02)  # heads of several seeds share
    # a bound of the curvature, so that they are equal but for rounding and unfinished steps


def test_rows_are_the_training_set_itself():
    rows = np.repeat(np.arange(80), 2)
    found = fit((0, 1), {0: Draws(5, 5), 1: Draws(5, 5, rows)})
    alone = fit((0,), {0: Draws(5, 5)}, train=range(80))[0]
    assert (found[1].argmax(axis=1) == alone.argmax(axis=1)).mean() > 0.97
    assert not np.array_equal(found[0], found[1])
    again = fit((7,), {7: Draws(5, 9)})[7]
    np.testing.assert_allclose(again, fit((0,), {0: Draws(5, 5)})[0])  # there is no order


def test_weight_zero_keeps_a_drawn_row_out():
    weight = np.ones(150)
    weight[Y[:150] == 2] = 0
    probs = fit((0,), {0: Draws(0, 0, np.arange(150))}, weight)[0]
    assert not (probs.argmax(axis=1) == 2).any()
    with pytest.raises(StudentError, match="no training row has a positive weight"):
        fit((0,), {0: Draws(0, 0, np.flatnonzero(Y[:150] == 2))}, weight)


def test_it_saves_no_model(tmp_path):
    with pytest.raises(StudentError, match="saves no model"):
        student().fit(
            TrainingSet(TEXTS, np.eye(3)[Y], np.ones(200)),
            [],
            ("a", "b", "c"),
            (0,),
            keep={0: tmp_path},
            on_seed=print,
        )


def test_the_revision_names_heads_and_encoder():
    assert student().revision == f"{FrozenHeads().revision} on vectors"


def test_in_a_large_pool_heads_of_a_sample_differ_as_those_of_the_whole_pool_do(monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=8000)
    x = (np.eye(3)[y].repeat(4, axis=1) + 1.5 * rng.normal(size=(8000, 12))).astype(np.float16)
    pool, test = slice(0, 6000), slice(6000, None)

    def judged():
        labels, weight = np.eye(3)[y[pool]], np.ones(6000)
        probs = FrozenHeads().probs(x[pool], labels, weight, x[test], range(20))
        right = float((probs.argmax(axis=2) == y[test]).mean())
        return right, float(probs.std(axis=0).mean())

    right, spread = judged()
    monkeypatch.setattr("loop.student.frozen_student.LEARNED_FROM", 1500)
    right_of_sample, spread_of_sample = judged()
    assert right_of_sample == pytest.approx(right, abs=0.015)
    assert spread_of_sample / spread == pytest.approx(1.0, abs=0.15)  # 2 if each stood for itself
