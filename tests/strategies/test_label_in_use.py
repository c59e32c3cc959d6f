"""Suspicion is about the label in use, not about answers that calibration took back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies import STRATEGIES
from strategies.calibrate import batch_calibrate
from strategies.fuse import weighted_auroc
from strategies.pool import Pool
from strategies.signals.learned_error import blind_evidence, class_posterior
from strategies.signals.students import out_of_fold_probs


def biased_pool(n=600, seed=0, embeddings=False):
    """An LLM whose every prompt says class 0 of nearly everything until calibration mends it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=n)
    signal = np.where(truth == 1, 1.0, -1.0) + rng.normal(size=n)
    logits = signal[:, None] + 0.4 * rng.normal(size=(n, 3)) - 4.0
    p = 1.0 / (1.0 + np.exp(-logits))
    probs = np.stack([1.0 - p, p], axis=2)
    y = np.asarray(batch_calibrate(probs).mean(axis=1).argmax(axis=1), dtype=np.int64)
    about = (truth[:, None] * 2.0 + rng.normal(size=(n, 6))).astype(np.float32)
    pool = Pool(probs=probs, y_llm=y, gold=np.full(n, -1))
    if embeddings:
        p_student = out_of_fold_probs(about, y, np.ones(n), 2, seeds=2, rng=rng)
        pool = replace(pool, embeddings=about, p_student=p_student)
    return pool, truth


def auroc(name, pool, truth):
    score = STRATEGIES[name](pool, np.random.default_rng(0))
    return weighted_auroc(score, pool.y_llm != truth, np.ones(pool.n))


def test_raw_entropy_doubts_what_calibration_settled_and_the_others_the_label():
    pool, truth = biased_pool()
    assert (pool.votes == 0).mean() > 0.9
    assert 0.2 < (pool.y_llm == 1).mean() < 0.5
    entropy, flips, doubt, against, learned = (
        auroc(name, pool, truth)
        for name in ("entropy", "flip_rate", "label_doubt", "votes_against", "learned_error")
    )
    assert min(doubt, learned) > 0.7
    assert min(doubt, learned) > entropy + 0.1
    assert against > flips + 0.05


def test_doubt_depends_on_the_labels_own_probability_alone():
    one, two = np.array([0.6, 0.4, 0.0]), np.array([0.6, 0.2, 0.2])
    turns = [np.roll(row, c) for row in (one, two) for c in range(3)]
    probs = np.stack(turns + [row[[0, 2, 1]] for row in turns])[:, None]  # no class is preferred
    pool = Pool(probs=probs, y_llm=probs[:, 0].argmax(axis=1), gold=np.full(len(probs), -1))
    rng = np.random.default_rng(0)
    assert STRATEGIES["label_doubt"](pool, rng) == pytest.approx(0.4, abs=0.02)
    assert np.ptp(STRATEGIES["entropy"](pool, rng)) > 0.2
    other = (pool.y_llm + 1) % 3
    assert (STRATEGIES["label_doubt"](replace(pool, y_llm=other), rng) >= 0.59).all()


def test_votes_against_counts_calibrated_votes():
    pool, _ = biased_pool()
    said = batch_calibrate(pool.probs).argmax(axis=2)
    expected = (said != pool.y_llm[:, None]).mean(axis=1)
    np.testing.assert_allclose(
        STRATEGIES["votes_against"](pool, np.random.default_rng(0)), expected
    )


def test_gold_moves_the_suspicion_towards_the_labels_that_are_wrong():
    """One class of the LLM is mostly wrong, which only gold can tell."""
    pool, _ = biased_pool(embeddings=True)
    truth = np.where((pool.y_llm == 1) & (np.arange(pool.n) % 4 > 0), 0, pool.y_llm)
    gold = np.where(np.arange(pool.n) < 150, truth, -1)
    left = gold < 0
    aurocs = []
    for known in (pool.gold, gold):
        score = STRATEGIES["learned_error"](replace(pool, gold=known), np.random.default_rng(0))
        aurocs.append(weighted_auroc(score[left], (pool.y_llm != truth)[left], np.ones(left.sum())))
    assert aurocs[1] > aurocs[0] + 0.1
    assert aurocs[1] > 0.75


def test_the_residual_head_learns_what_no_opinion_says():
    """Texts of one kind have a class of their own that neither LLM nor students ever name."""
    rng = np.random.default_rng(0)
    n, k = 500, 3
    about = rng.normal(size=(n, 8)).astype(np.float32)
    about[:, 0] *= 3
    truth = np.where(about[:, 0] > 2, 2, rng.integers(2, size=n))
    y = np.where(truth == 2, rng.integers(2, size=n), truth)
    probs = np.full((n, 1, k), 0.01)
    probs[np.arange(n), 0, y] = 0.98
    gold = np.where(np.arange(n) < 200, truth, -1)
    pool = Pool(probs=probs, y_llm=y, gold=gold, embeddings=about)
    posterior = class_posterior(pool, blind_evidence(pool), rng=np.random.default_rng(0))
    kind = (gold < 0) & (truth == 2)
    assert (posterior[kind].argmax(axis=1) == 2).mean() > 0.6
    assert (posterior[(gold < 0) & ~kind].argmax(axis=1) == truth[(gold < 0) & ~kind]).mean() > 0.9
