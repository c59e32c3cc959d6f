from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strategies.pool import Pool
from strategies.repair import (
    FLOOR_FRAC,
    MODES,
    _likeliest,
    _restore_buried,
    balanced,
    class_floor,
    corrected_posterior,
    repair,
)
from strategies.signals.learned_error import blind_evidence, class_posterior
from strategies.signals.students import gold_students, out_of_fold_probs


def confused_pool(seed=0, n=1200, gold=250, shares=(0.45, 0.45, 0.1)):
    """The LLM takes a fifth of the items of each class for the next one; texts are clustered."""
    rng = np.random.default_rng(seed)
    k, d = len(shares), 12
    truth = rng.choice(k, size=n, p=shares)
    embeddings = (1.2 * rng.normal(size=(k, d))[truth] + rng.normal(size=(n, d))).astype(np.float32)
    wrong = rng.random(n) < 0.2
    y = np.where(wrong, (truth + 1) % k, truth)
    sure = np.where(wrong, rng.uniform(0.4, 0.9, n), rng.uniform(0.6, 1.0, n))
    probs = np.repeat(((1 - sure) / (k - 1))[:, None], k, axis=1)
    probs[np.arange(n), y] = sure
    known = np.full(n, -1)
    bought = rng.choice(n, gold, replace=False)
    known[bought] = truth[bought]
    pool = Pool(
        probs=probs[:, None],
        y_llm=y,
        gold=known,
        embeddings=embeddings,
        p_student=out_of_fold_probs(embeddings, y, np.ones(n), k, seeds=2, rng=rng),
    )
    return pool, truth


def share_right(mended, truth, rows):
    mass = mended.weight[rows] * mended.y[rows, truth[rows]]
    return mass.sum() / mended.weight[rows].sum()


def class_shares(mended):
    mass = (mended.weight[:, None] * mended.y).sum(axis=0)
    return mass / mass.sum()


@pytest.mark.parametrize("mode", MODES)
def test_what_people_could_not_label_is_left_out_in_every_mode(mode):
    pool, _ = confused_pool()
    unsure = (pool.gold < 0) & (np.arange(pool.n) % 7 == 0)
    before, after = (
        repair(p, mode, rng=np.random.default_rng(0)) for p in (pool, replace(pool, unsure=unsure))
    )
    assert before.weight[unsure].any()
    assert not after.weight[unsure].any()
    assert set(after.source[unsure]) == {"dropped"}
    np.testing.assert_array_equal(after.weight[~unsure], before.weight[~unsure])
    np.testing.assert_array_equal(after.y, before.y)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_proper_labels_and_keeps_gold(mode):
    pool, truth = confused_pool()
    out = repair(pool, mode, rng=np.random.default_rng(0))
    gold = pool.gold >= 0
    np.testing.assert_allclose(out.y.sum(axis=1), 1.0)
    assert ((out.weight >= 0) & (out.weight <= 1)).all()
    np.testing.assert_array_equal(out.y[gold], np.eye(3)[truth[gold]])
    assert (out.weight[gold] == 1).all()
    assert np.array_equal(out.source == "gold", gold)
    assert np.array_equal(out.source == "dropped", out.weight == 0)
    changed = out.y.argmax(axis=1) != pool.y_llm
    assert set(out.source[changed & ~gold]) <= {"repaired"}
    again = repair(pool, mode, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(out.y, again.y)


@pytest.mark.parametrize("mode", ["soft", "weight", "drop", "relabel"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_repair_leaves_a_larger_share_of_right_labels(mode, seed):
    pool, truth = confused_pool(seed)
    rows = np.flatnonzero(pool.gold < 0)
    keep = repair(pool, "keep", rng=np.random.default_rng(0))
    out = repair(pool, mode, rng=np.random.default_rng(0))
    gain = share_right(out, truth, rows) - share_right(keep, truth, rows)
    assert gain > (0.01 if mode in ("soft", "weight") else 0.03)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gold", [0, 4])
def test_with_next_to_no_gold_every_mode_is_close_to_keep(mode, gold):
    pool, _ = confused_pool(gold=gold)
    keep = repair(pool, "keep", rng=np.random.default_rng(0))
    out = repair(pool, mode, rng=np.random.default_rng(0))
    tolerance = 0.0 if gold == 0 else 0.15
    assert np.abs(out.y - keep.y).max() <= tolerance
    assert np.abs(out.weight - keep.weight).max() <= tolerance


@pytest.mark.parametrize("mode", ["soft", "weight", "drop", "relabel"])
def test_a_rare_class_is_not_buried(mode):
    # Nearly half of what the LLM calls class 2 is wrong by gold, all of it looks alike to the
    # student, and class 2 makes up 4 %: unguarded repair would wipe it out.
    rng = np.random.default_rng(0)
    n = 2000
    truth = np.where(rng.random(n) < 0.04, 2, rng.integers(2, size=n))
    y = truth.copy()
    rare = np.flatnonzero(truth == 2)
    y[rng.choice(np.flatnonzero(truth < 2), len(rare), replace=False)] = 2
    probs = np.full((n, 3), 0.3)
    probs[np.arange(n), y] = 0.4
    p_student = np.full((2, n, 3), 0.02)
    p_student[:, :, 0], p_student[:, :, 1] = 0.6, 0.38
    gold = np.full(n, -1)
    bought = rng.choice(n, 400, replace=False)
    gold[bought] = truth[bought]
    bought_rare = np.flatnonzero((gold >= 0) & (y == 2))
    gold[bought_rare] = 0  # gold that turns every bought item of the class away
    pool = Pool(probs=probs[:, None], y_llm=y, gold=gold, p_student=p_student)
    floor = class_floor(pool)
    out = repair(pool, mode, rng=rng)
    assert (class_shares(out) >= floor - 1e-6).all()
    assert floor[2] > 0
    assert np.abs(out.y - repair(pool, "keep", rng=rng).y).max() > 0 or out.weight.min() < 1


def test_the_guard_is_what_keeps_the_class(monkeypatch):
    pool, _ = confused_pool(shares=(0.8, 0.18, 0.02))
    monkeypatch.setattr(
        "strategies.repair.corrected_posterior",
        lambda p, rng: np.where(p.y_llm[:, None] == 2, [0.8, 0.1, 0.1], np.eye(3)[p.y_llm]),
    )
    guarded = repair(pool, "drop", rng=np.random.default_rng(0))
    floor = class_floor(pool)
    assert class_shares(guarded)[2] >= floor[2]
    monkeypatch.setattr("strategies.repair.class_floor", lambda p: np.zeros(p.k))
    bare = repair(pool, "drop", rng=np.random.default_rng(0))
    assert class_shares(bare)[2] < floor[2]
    # Not more is restored than the floor asks for.
    spare = 2 / pool.n
    assert class_shares(guarded)[2] <= floor[2] + spare


def test_the_floor_follows_weighted_gold():
    pool, truth = confused_pool(gold=600)
    shares = np.bincount(truth, minlength=3) / pool.n
    kept = np.bincount(np.where(pool.gold >= 0, pool.gold, pool.y_llm), minlength=3) / pool.n
    floor = class_floor(pool)
    np.testing.assert_allclose(floor, np.minimum(FLOOR_FRAC * shares, kept), atol=0.03)
    # Gold of class 0 that was chosen for certain stands for itself alone.
    chance = np.where(truth == 0, 1.0, 0.5)
    assert class_floor(replace(pool, inclusion_prob=chance))[0] < 0.9 * floor[0]


def test_no_floor_lies_above_the_share_that_a_class_has_without_repair():
    # The LLM never says class 1, which half of the texts are: no repair can be asked for more of it
    # than gold alone gives.
    gold = np.full(400, -1)
    gold[:100] = np.arange(100) % 2
    pool = Pool(probs=np.full((400, 1, 2), 0.5), y_llm=np.zeros(400, dtype=np.int64), gold=gold)
    assert class_floor(pool)[1] == 50 / 400


def test_a_class_that_nothing_has_counts_like_a_single_label():
    y = np.eye(2)[np.zeros(99, dtype=np.int64)]
    labels, weight = balanced(np.array([[0.9, 0.1]]), y, 1.0)
    np.testing.assert_allclose(labels, [[0.9 / 1.9, 1.0 / 1.9]])  # by (1 / 100) ** -1/2 = 10
    np.testing.assert_allclose(weight, [0.19])


def test_the_posterior_learns_from_gold_which_class_is_meant():
    # The LLM says 0 for class 2, never for class 1; students know nothing.
    n = 300
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 2], size=n)
    gold = np.where(np.arange(n) < 100, truth, -1)
    pool = Pool(
        probs=np.tile([0.5, 0.25, 0.25], (n, 1, 1)).reshape(n, 1, 3),
        y_llm=np.zeros(n, dtype=int),
        gold=gold,
    )
    posterior = corrected_posterior(pool, rng=np.random.default_rng(0))
    assert posterior[-1, 2] == pytest.approx(np.mean(truth[:100] == 2), abs=0.05)
    assert posterior[-1, 1] < 0.05
    blind = corrected_posterior(replace(pool, gold=np.full(n, -1)), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(blind, np.eye(3)[pool.y_llm])


def test_an_unknown_mode_is_refused():
    pool, _ = confused_pool(n=50, gold=5)
    with pytest.raises(ValueError, match="Unknown repair 'burn'"):
        repair(pool, "burn", rng=np.random.default_rng(0))


def test_an_llm_that_knows_nothing_is_dropped_for_students_of_gold():
    pool, truth = confused_pool(gold=150)
    rng = np.random.default_rng(5)
    noise = rng.integers(3, size=pool.n)
    llm = replace(
        pool,
        y_llm=noise,
        probs=(0.7 * np.eye(3)[noise] + 0.1)[:, None],
        p_student=out_of_fold_probs(pool.embeddings, noise, np.ones(pool.n), 3, seeds=2, rng=rng),
    )
    rows = np.flatnonzero(llm.gold < 0)

    def right(posterior):
        return (posterior[rows].argmax(axis=1) == truth[rows]).mean()

    opinions = replace(llm, embeddings=None)  # and no head on what the texts are about
    without = right(class_posterior(opinions, None, rng=np.random.default_rng(0)))
    found = right(corrected_posterior(llm, rng=np.random.default_rng(0)))
    assert without < 0.6
    assert found > 0.8


def test_what_only_the_llms_states_show_is_repaired_by_gold():
    pool, truth = confused_pool(gold=150)
    rng = np.random.default_rng(3)
    pool = replace(pool, embeddings=rng.normal(size=pool.embeddings.shape).astype(np.float32))
    noise = rng.normal(size=(pool.n, 12))
    shown = 1.2 * rng.normal(size=(3, 12))[truth] + noise
    shown[:, 5] *= 500.0  # as in real models: some dimensions dwarf the others
    shown[::50] = np.nan
    rows = np.flatnonzero(pool.gold < 0)

    def right(states):
        states = None if states is None else states.astype(np.float16)
        posterior = corrected_posterior(replace(pool, states=states), rng=np.random.default_rng(0))
        return float((posterior[rows].argmax(axis=1) == truth[rows]).mean())

    without = right(None)
    assert right(shown) > without + 0.05
    assert right(noise) > without - 0.02  # states that know nothing do next to no harm


def test_the_llms_states_teach_from_mended_labels_too_not_from_gold_alone():
    gains = []
    for seed in range(3):
        pool, truth = confused_pool(seed, gold=20)
        rng = np.random.default_rng(3)
        pool = replace(pool, embeddings=rng.normal(size=pool.embeddings.shape).astype(np.float32))
        shown = 0.8 * rng.normal(size=(3, 24))[truth] + rng.normal(size=(pool.n, 24))
        seeing = replace(pool, states=shown.astype(np.float16))
        of_gold = replace(pool, p_gold=gold_students(seeing, rng=np.random.default_rng(0)))
        both, gold_alone = (
            corrected_posterior(p, rng=np.random.default_rng(0))[pool.gold < 0].argmax(axis=1)
            == truth[pool.gold < 0]
            for p in (seeing, of_gold)
        )
        gains.append(both.mean() - gold_alone.mean())
    assert np.mean(gains) > 0.02


def test_an_items_own_gold_never_enters_its_posterior():
    pool, truth = confused_pool(n=300, gold=60)
    row = int(np.flatnonzero(pool.gold >= 0)[0])
    lied = pool.gold.copy()
    lied[row] = (truth[row] + 1) % 3
    pool = replace(pool, p_gold=np.full((2, 300, 3), 1 / 3))
    evidence = blind_evidence(pool)
    one, two = (
        class_posterior(replace(pool, gold=gold), evidence, rng=np.random.default_rng(0))[row]
        for gold in (pool.gold, lied)
    )
    np.testing.assert_allclose(one, two)


@pytest.mark.parametrize("mode", ["soft", "weight", "drop", "relabel"])
def test_fine_tuned_students_that_know_better_make_labels_better(mode):
    pool, truth = confused_pool(gold=60)
    rng = np.random.default_rng(3)
    dull = rng.normal(size=pool.embeddings.shape).astype(np.float32)
    heads = out_of_fold_probs(dull, pool.y_llm, np.ones(pool.n), pool.k, seeds=2, rng=rng)
    pool = replace(pool, embeddings=dull, p_student=heads)
    knows = np.where(rng.random(pool.n) < 0.9, truth, rng.integers(pool.k, size=pool.n))
    tuned = 0.85 * np.eye(pool.k)[knows] + 0.15 / pool.k
    rows = np.flatnonzero(pool.gold < 0)
    alone, heard = (
        share_right(repair(p, mode, rng=np.random.default_rng(0)), truth, rows)
        for p in (pool, replace(pool, p_tuned=tuned))
    )
    assert heard > alone + 0.05


def test_without_gold_fine_tuned_students_change_nothing():
    pool, _ = confused_pool()
    pool = replace(pool, gold=np.full(pool.n, -1), p_tuned=np.full((pool.n, pool.k), 1 / pool.k))
    mended = repair(pool, "soft", rng=np.random.default_rng(0))
    np.testing.assert_array_equal(mended.y, np.eye(pool.k)[pool.y_llm])


def test_the_least_suspect_of_a_buried_class_come_back_first():
    n = 100
    y_llm = np.repeat([0, 1], [90, 10])
    kept = np.eye(2)[y_llm]
    pool = Pool(probs=kept[:, None], y_llm=y_llm, gold=np.full(n, -1))
    p_wrong = np.random.default_rng(0).permutation(n) / n
    y, weight = kept.copy(), np.where(y_llm == 1, 0.0, 1.0)
    _restore_buried(pool, y, weight, kept, p_wrong, np.array([0.0, 0.05]))
    rare = np.arange(90, 100)
    back = rare[np.argsort(p_wrong[rare])[:5]]  # 5 of 95 are 5 %
    np.testing.assert_array_equal(np.flatnonzero(weight[rare]) + 90, np.sort(back))


def test_of_classes_that_are_as_likely_the_llms_stays():
    posterior = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    assert _likeliest(posterior, np.array([0, 1, 2])).tolist() == [0, 1, 0]
