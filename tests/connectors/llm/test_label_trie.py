from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.llm.label_trie import LabelTrie, check_answers, class_probs
from loop.errors import AnnotatorError

VOCABULARY = 5
END = 4
LONGEST = 3


class TinyModel:
    """A random language model over five tokens: a distribution for every beginning."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def log_probs(self, path: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([self.seed, len(path), *path])
        logits = rng.normal(0, 3, VOCABULARY)
        return logits - np.logaddexp.reduce(logits)

    def every_answer(self) -> dict[tuple[int, ...], float]:
        """Each string that ends within reach, and its probability, by walking them all."""
        found = {}
        for length in range(1, LONGEST + 1):
            for path in itertools.product(range(END), repeat=length):
                steps = [self.log_probs(path[:i])[token] for i, token in enumerate(path)]
                found[path] = math.exp(sum(steps) + self.log_probs(path)[END])
        return found


def ask(trie: LabelTrie, *models: TinyModel) -> np.ndarray:
    answers = [
        np.stack([m.log_probs(node.path)[list(node.asked)] for m in models]) for node in trie.nodes
    ]
    return trie.log_masses(answers)


strings = st.lists(st.integers(0, END - 1), min_size=1, max_size=LONGEST).map(tuple)


@given(st.lists(strings, min_size=2, max_size=8, unique=True), st.integers(0, 1000))
def test_equals_walking_through_every_string(labels, seed):
    trie = LabelTrie(tuple(labels), (END,))
    models = TinyModel(seed), TinyModel(seed + 1)
    probs, off = class_probs(ask(trie, *models))
    for row, model in enumerate(models):
        if trie.whole:
            every = model.every_answer()
            mass = np.array([every[label] for label in labels])
        else:  # decided by the first token
            mass = np.exp(model.log_probs(()))[[label[0] for label in labels]]
        np.testing.assert_allclose(probs[row], mass / mass.sum(), rtol=1e-9)
        np.testing.assert_allclose(off[row], 1 - mass.sum(), atol=1e-9)


@given(st.lists(strings, min_size=2, max_size=8, unique=True), st.permutations(range(8)))
def test_order_does_not_matter(labels, order):
    order = [i for i in order if i < len(labels)]
    straight = ask(LabelTrie(tuple(labels), (END,)), TinyModel(1))
    turned = ask(LabelTrie(tuple(labels[i] for i in order), (END,)), TinyModel(1))
    np.testing.assert_allclose(turned, straight[:, order])


@given(st.lists(strings, min_size=2, max_size=8, unique=True))
def test_one_question_per_node(labels):
    trie = LabelTrie(tuple(labels), (END,))
    paths = [node.path for node in trie.nodes]
    assert len(set(paths)) == len(paths)
    beginnings = {label[:i] for label in labels for i in range(len(label) + trie.whole)}
    assert set(paths) == beginnings
    for i, path in enumerate(paths):
        assert not path or path[:-1] in paths[:i]


def test_a_label_that_begins_another_keeps_its_own_share():
    trie = LabelTrie(((0,), (0, 1)), (2,))
    masses = ask_fixed(trie, {(): {0: 0.9}, (0,): {1: 0.75, 2: 0.2}, (0, 1): {2: 0.5}})
    probs, off = class_probs(masses)
    np.testing.assert_allclose(probs[0], np.array([0.18, 0.3375]) / 0.5175)
    np.testing.assert_allclose(off, 1 - 0.5175)


def test_long_labels_lose_nothing_by_their_length():
    trie = LabelTrie(((0,), (1, 1, 1, 1, 1, 1, 1, 1)), (2,))
    sure = {(1,) * i: {1: 1.0} for i in range(1, 8)} | {(1,) * 8: {2: 1.0}}
    masses = ask_fixed(trie, {(): {0: 0.3, 1: 0.3}, (0,): {2: 1.0}, **sure})
    np.testing.assert_allclose(class_probs(masses)[0], [[0.5, 0.5]])


def ask_fixed(trie: LabelTrie, table: dict) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return trie.log_masses(
            [np.log([[table[n.path].get(token, 0.0) for token in n.asked]]) for n in trie.nodes]
        )


def test_rows_that_are_no_distribution_become_nan():
    nan, inf = math.nan, math.inf
    bad = np.array([[nan, -1.0], [inf, -1.0], [-inf, -inf], [-0.1, -0.1], [-1.0, nan]])
    probs, off = class_probs(bad)
    assert np.isnan(probs).all()
    assert np.isnan(off).all()
    good = np.array([[-inf, -1.0], [-800.0, -801.0], [math.log(0.5)] * 2])
    probs, off = class_probs(good)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_allclose(off, [1 - math.exp(-1), 1, 0], atol=1e-12)


def first_answers(probs, *, texts=None, **how):
    texts = texts or [f"text {i}" for i in range(len(probs))]
    check_answers(texts, np.log(probs), model="m", **{"chat": False} | how)


def test_sound_first_answers_pass():
    rng = np.random.default_rng(0)
    first_answers(0.5 * rng.dirichlet([1, 1, 1], 64))
    first_answers(np.full((31, 3), 0.1))  # too few to tell whether they are coarse
    first_answers(np.full((64, 3), 0.1), texts=["the same"] * 64)
    first_answers(np.full((64, 3), 0.1), fine=False)
    check_answers(["x"], np.full((1, 3), math.nan), model="m", chat=False)


@pytest.mark.parametrize(
    ("probs", "chat", "said"),
    [
        (np.full((3, 2), 0.6), False, "sum to more than 1"),
        (np.full((3, 2), 1e-8), False, "probability of 2e-08.*chat template on"),
        (np.full((3, 2), 1e-8), True, "chat template off"),
        (np.repeat([[0.2, 0.7], [0.3, 0.6]], 32, axis=0), False, "same probabilities.*head_dtype"),
    ],
)
def test_first_answers_that_cannot_be_used_are_refused(probs, chat, said):
    with pytest.raises(AnnotatorError, match=said):
        first_answers(probs, chat=chat)


@pytest.mark.parametrize(
    ("labels", "ends"),
    [
        (((0,), (0,)), (1,)),
        (((0,), ()), (1,)),
        (((0,), (0, 1)), ()),
        (((0,), (0, 1)), (1,)),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels, ends):
    with pytest.raises(ValueError, match="labels"):
        LabelTrie(labels, ends)


def test_wrong_shapes_are_refused():
    trie = LabelTrie(((0,), (1,)))
    with pytest.raises(ValueError, match="nodes"):
        trie.log_masses([])
    with pytest.raises(ValueError, match="shape"):
        trie.log_masses([np.zeros((2, 3))])
