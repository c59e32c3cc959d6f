"""The cascade: it finds the flips that are there, keeps its budget, and ends."""

import numpy as np
import pytest

from loop.llm.cascade import flipped, next_calls
from strategies.calibrate import batch_calibrate


def cube(n=600, m=5, k=3, shift=0.6, seed=0):
    """Answers of m variants: sure ones to most items, to one in eight a toss between classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)
    ease = np.where(rng.random(n) < 1 / 8, 0.0, rng.uniform(4.0, 8.0, size=n))
    logits = ease[:, None, None] * np.eye(k)[truth][:, None] + rng.normal(0, shift, (n, m, k))
    logits += rng.normal(0, 0.5, (1, m, k))
    p = np.exp(logits)
    return p / p.sum(axis=2, keepdims=True)


def ask(full, budget, seed=0, mute=()):
    """Runs a whole cascade on answers that are known: the answers taken, and the waves."""
    now = np.full_like(full, np.nan)
    now[:, 0] = full[:, 0]
    refused = np.zeros(full.shape[:2], dtype=bool)
    rng = np.random.default_rng(seed)
    waves = []
    while len(calls := next_calls(now, batch_calibrate, budget=budget, rng=rng, refused=refused)):
        waves.append(calls)
        for row, variant in calls:
            if variant in mute:
                refused[row, variant] = True
            else:
                now[row, variant] = full[row, variant]
    return now, waves


def found(full, now):
    every = flipped(batch_calibrate(full))
    return (flipped(batch_calibrate(now)) & every).sum() / every.sum()


def test_it_finds_nearly_all_flips_for_half_a_call_an_item_where_doubt_shows_them():
    full = cube()
    now, _ = ask(full, budget=900)
    assert 40 < flipped(batch_calibrate(full)).sum() < 100
    assert found(full, now) >= 0.9
    random = np.full_like(full, np.nan)
    random[:, 0] = full[:, 0]
    random[:75, 1:] = full[:75, 1:]
    assert found(full, random) < 0.3


def test_it_learns_which_class_and_which_variant_flip_where_answers_say_nothing_of_doubt():
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.integers(2, size=(800, 1)), 4, axis=1)
    unstable = (labels[:, 0] == 1) & (rng.random(800) < 0.6)
    labels[unstable, 2] = 0  # only the third variant disagrees, and only on class 1
    full = np.eye(2)[labels]
    now, _ = ask(full, budget=1360)
    assert found(full, now) >= 0.85  # asking the same number at random finds a quarter


@pytest.mark.parametrize("budget", [600, 601, 750, 3000])
def test_the_budget_holds_and_no_call_is_made_twice(budget):
    full = cube()
    now, waves = ask(full, budget)
    calls = np.concatenate(waves) if waves else np.empty((0, 2))
    assert np.isfinite(now).all(axis=2).sum() == 600 + len(calls) <= budget
    assert len(np.unique(calls, axis=0)) == len(calls)
    assert (calls[:, 1] > 0).all()
    for wave in waves:
        assert len(np.unique(wave[:, 0])) == len(wave)
        assert (np.diff(wave[:, 1]) >= 0).all()  # grouped by variant, so that prefixes stay cached


def test_with_money_to_spare_it_stops_where_calls_find_nothing():
    rng = np.random.default_rng(0)
    full = np.eye(2)[np.repeat(rng.integers(2, size=(2000, 1)), 5, axis=1)] * 0.98 + 0.01
    now, _ = ask(full, budget=10_000)
    taken = np.isfinite(now).all(axis=2).sum()
    assert 2000 < taken < 5000


def test_a_flip_once_found_ends_the_questions_about_its_item():
    full = cube()
    now, _ = ask(full, budget=3000)
    asked = np.isfinite(now).all(axis=2)
    hit = flipped(batch_calibrate(now)) & (asked.sum(axis=1) == 2)
    assert hit.sum() > 10


def test_calls_in_vain_cost_and_are_not_repeated():
    full = cube()
    now, waves = ask(full, budget=900, mute=(1,))
    calls = np.concatenate(waves)
    assert (calls[:, 1] == 1).any()
    assert not np.isfinite(now[:, 1]).any()
    assert len(np.unique(calls, axis=0)) == len(calls) <= 300


def test_items_without_a_first_answer_are_left_alone():
    full = cube()
    full[:50] = np.nan
    _, waves = ask(full, budget=900)
    assert np.concatenate(waves)[:, 0].min() >= 50


def test_a_single_variant_needs_no_cascade_and_flat_arrays_are_refused():
    assert not len(
        next_calls(cube(m=1), batch_calibrate, budget=9999, rng=np.random.default_rng(0))
    )
    with pytest.raises(ValueError, match="must be"):
        next_calls(np.ones((3, 2)), batch_calibrate, budget=9, rng=np.random.default_rng(0))
