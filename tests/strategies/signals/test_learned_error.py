from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies.pool import Pool
from strategies.signals.learned_error import (
    blind_evidence,
    class_posterior,
    learned_error,
    probability_wrong,
)
from strategies.signals.students import gold_students


def problem(n=1500, seed=0, f=6):
    """Wrong labels follow two of the features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, f))
    p = 1 / (1 + np.exp(-(2.5 * features[:, 0] - 1.5 * features[:, 1] - 1.0)))
    return features, rng.random(n) < p, p, rng


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def opinion_pool(rng, n=800, gold=200):
    """An LLM that is wrong for 30 %, sure or not; students that see the truth through noise."""
    truth = rng.integers(3, size=n)
    wrong = rng.random(n) < 0.3
    y = np.where(wrong, (truth + 1) % 3, truth)
    embeddings = (np.eye(3)[truth] * 3 + rng.normal(size=(n, 3))).astype(np.float32)
    logits = 2.0 * np.eye(3)[truth] + rng.normal(size=(n, 3))
    students = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    known = np.full(n, -1)
    known[rng.choice(n, gold, replace=False)] = 0
    known = np.where(known == 0, truth, -1)
    pool = Pool(
        probs=(0.8 * np.eye(3)[y] + 0.2 / 3)[:, None],
        y_llm=y,
        gold=known,
        embeddings=embeddings,
        p_student=students[None],
    )
    return pool, truth


def test_the_posterior_beats_the_llm_and_the_students(rng):
    pool, truth = opinion_pool(rng)
    posterior = class_posterior(pool, blind_evidence(pool), rng=rng)
    unseen = pool.gold < 0
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0)
    right = (posterior.argmax(axis=1) == truth)[unseen].mean()
    assert right > (pool.y_llm == truth)[unseen].mean() + 0.1
    assert right > (pool.p_student[0].argmax(axis=1) == truth)[unseen].mean()
    # Calibrated: where it says 80 %, it is right in about 80 %.
    sure = posterior.max(axis=1)
    middle = unseen & (sure > 0.5) & (sure < 0.95)
    assert (posterior.argmax(axis=1) == truth)[middle].mean() == pytest.approx(
        sure[middle].mean(), abs=0.12
    )


def test_an_items_own_gold_never_enters_its_posterior(rng):
    pool, _ = opinion_pool(rng, n=200, gold=60)
    row = int(np.flatnonzero(pool.gold >= 0)[3])
    other = pool.gold.copy()
    other[row] = (other[row] + 1) % 3
    before = class_posterior(pool, blind_evidence(pool), rng=np.random.default_rng(1))[row]
    told = replace(pool, gold=other)
    after = class_posterior(told, blind_evidence(told), rng=np.random.default_rng(1))[row]
    np.testing.assert_allclose(before, after)


def test_without_gold_the_posterior_leans_on_the_llm(rng):
    pool, _ = opinion_pool(rng, gold=0)
    posterior = class_posterior(pool, blind_evidence(pool), rng=rng)
    assert (posterior.argmax(axis=1) == pool.y_llm).mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_twenty_gold_labels_find_the_errors_of_which_the_llm_is_sure(seed):
    """Where all else vouches for wrong labels, gold has to be believed early."""
    rng = np.random.default_rng(seed)
    n = 400
    wrong = rng.random(n) < 0.3
    truth = rng.integers(2, size=n)
    y = np.where(wrong, 1 - truth, truth)
    sure = np.where(wrong, 0.95, rng.uniform(0.55, 0.9, n))[:, None]
    about = (np.eye(4)[2 * truth + wrong] * 3 + rng.normal(size=(n, 4))).astype(np.float32)
    pool = Pool(
        probs=np.where(np.eye(2)[y] == 1, sure, 1 - sure)[:, None],
        y_llm=y,
        gold=np.full(n, -1),
        embeddings=about,
    )

    def found(pool):
        suspicion = np.where(pool.gold < 0, learned_error(pool, np.random.default_rng(1)), -1.0)
        return wrong[np.argsort(-suspicion)[:30]].mean()

    assert found(pool) < 0.1
    known = np.isin(np.arange(n), rng.permutation(n)[:20])
    taught = replace(pool, gold=np.where(known, truth, -1))
    assert found(replace(taught, p_gold=gold_students(taught, rng=rng))) > 0.7


def test_judges_that_see_the_truth_find_what_quick_students_vouch_for(rng):
    pool, truth = opinion_pool(rng, gold=40)
    vouching = 0.8 * np.eye(3)[pool.y_llm] + 0.2 / 3
    seeing = 0.8 * np.eye(3)[truth] + 0.2 / 3
    fooled = replace(pool, p_student=vouching[None])
    wrong, unseen = pool.y_llm != truth, pool.gold < 0

    def found(pool):
        suspicion = np.where(unseen, learned_error(pool, np.random.default_rng(1)), -1.0)
        return wrong[np.argsort(-suspicion)[:50]].mean()

    judged = replace(fooled, p_tuned=seeing)
    assert found(judged) > 0.95 > found(fooled)
    blind = np.full_like(pool.gold, -1)  # they have a say without gold too
    assert found(replace(judged, gold=blind)) > found(replace(fooled, gold=blind))
    foreseen = [probability_wrong(p, rng=np.random.default_rng(1)) for p in (judged, fooled)]
    errors = [np.mean((p[unseen] - wrong[unseen]) ** 2) for p in foreseen]
    assert errors[0] < errors[1] / 2
