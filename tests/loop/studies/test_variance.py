"""Instability taken apart: planted causes are named, unclear ones are not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from loop.measure.held_out import Truth
from loop.report.collect import instability
from loop.report.wording import RANDOM_PARTS, SAME_EVERYWHERE
from loop.studies.variance import Variance, _draws, _mended_draws, _pairs, take_apart

N, K = 400, 3


def planted(flips, bases, seed=0, n=N):
    """Predictions in which each part, drawn again, moves its own share of the texts."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n)

    def moved(preds, part):
        away = rng.random(n) < flips[part]
        return np.where(away, rng.integers(0, K, n), preds)

    found = {}
    for j in range(bases):
        base = moved(moved(y, "init"), "order")
        found[f"base-{j}"] = base
        for part in ("init", "order", "mending"):
            found[f"{part}-{j}"] = moved(base, part)
        for i in range(2):
            found[f"sample-{j}-{i}"] = moved(base, "sample")
        found[f"all-{j}"] = moved(found[f"sample-{j}-1"], "mending")
    return found, Truth(y, np.ones(n, bool), np.ones(n), "test")


def apart(flips, bases=4, parts=tuple(RANDOM_PARTS), seed=0):
    found, truth = planted(flips, bases, seed)
    return take_apart(found, bases, parts, truth, K, rng=np.random.default_rng(1))


@pytest.mark.parametrize("cause", RANDOM_PARTS)
def test_the_planted_cause_is_named(cause):
    flips = dict.fromkeys(RANDOM_PARTS, 0.03) | {cause: 0.35}
    parts, told = apart(flips)
    assert told.startswith(f"The largest part of the instability comes from {RANDOM_PARTS[cause]}.")
    assert max(RANDOM_PARTS, key=lambda name: parts[name].churn.value) == cause
    assert parts[cause].alpha.value < min(parts[p].alpha.value for p in RANDOM_PARTS if p != cause)
    assert parts["all"].share.value == 1
    seeds_help = "averaging seeds steadies" in told
    assert seeds_help == (cause in ("init", "order"))


def test_equal_causes_cannot_be_told_apart():
    # two samples differ twice: each from its base
    _, told = apart({"init": 0.15, "order": 0.15, "mending": 0.15, "sample": 0.078})
    assert told.startswith("4 bases are too few to tell")


def test_nothing_that_changes_is_said():
    _, told = apart(dict.fromkeys(RANDOM_PARTS, 0.0))
    assert told == "No label changes, whatever is drawn again."
    parts, _ = apart(dict.fromkeys(RANDOM_PARTS, 0.0))
    for part in parts.values():
        assert (part.churn.value, part.churn.low) == (0, 0)
        assert part.churn.high == pytest.approx(1.96**2 / (N + 1.96**2), abs=1e-4)
        assert 0.97 < part.alpha.low < part.alpha.high == 1
        assert np.isnan(part.accuracy_sd.low)


def test_students_that_answer_one_class_are_no_stability(tmp_path):
    found, truth = planted(dict.fromkeys(RANDOM_PARTS, 0.0), 3)
    one = {run: np.ones_like(p) for run, p in found.items()}
    parts, told = take_apart(one, 3, tuple(RANDOM_PARTS), truth, K, rng=np.random.default_rng(0))
    assert told == SAME_EVERYWHERE
    assert all(np.isnan(part.churn.value) for part in parts.values())
    now = Variance(1, "frozen", 3, N, parts, told).to_json()
    sure, undefined = {"value": 0.0, "low": 0.0, "high": 0.0}, {"value": None}
    old = {"churn": sure, "share": undefined, "alpha": undefined, "accuracy_sd": sure}
    old = {name: old | {"macro_f1_sd": sure} for name in parts}
    for stored in (now, now | {"parts": old, "told": "No label changes, whatever is drawn again."}):
        (tmp_path / "variance.json").write_text(json.dumps(stored))
        shown = instability(tmp_path)
        assert shown.told == SAME_EVERYWHERE
        assert all(p.churn is None and p.alpha is None for p in shown.parts)


def test_values_by_hand():
    found, truth = planted({"init": 0.2, "order": 0.1, "mending": 0.1, "sample": 0.3}, 3)
    parts, _ = take_apart(found, 3, tuple(RANDOM_PARTS), truth, K, rng=np.random.default_rng(0))
    init = np.mean([(found[f"base-{j}"] != found[f"init-{j}"]).mean() for j in range(3)])
    assert parts["init"].churn.value == pytest.approx(init)
    seed = np.mean(
        [(found[f"base-{a}"] != found[f"base-{b}"]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    )
    assert parts["seed"].churn.value == pytest.approx(seed)
    assert parts["init"].share.value == pytest.approx(init / parts["all"].churn.value)
    right = {run: (classes == truth.y).mean() for run, classes in found.items()}
    sd = np.sqrt(np.mean([(right[f"base-{j}"] - right[f"order-{j}"]) ** 2 for j in range(3)]) / 2)
    assert parts["order"].accuracy_sd.value == pytest.approx(sd)
    for part in parts.values():
        assert part.churn.low <= part.churn.value <= part.churn.high


def test_intervals_of_churn_cover_what_was_planted():
    """A part moves a share of the texts, (K - 1) / K of them to another class."""
    covered = 0
    for seed in range(40):
        flips = {"init": 0.15, "order": 0.1, "mending": 0.1, "sample": 0.2}
        parts, _ = apart(flips, seed=seed)
        covered += parts["init"].churn.low <= 0.15 * (K - 1) / K <= parts["init"].churn.high
    assert covered / 40 >= 0.85


def test_a_student_without_an_order_has_no_such_part():
    found, truth = planted(dict.fromkeys(RANDOM_PARTS, 0.2), 3)
    kept = {run: p for run, p in found.items() if not run.startswith("order")}
    parts, told = take_apart(kept, 3, ("init", "sample"), truth, K, rng=np.random.default_rng(0))
    assert list(parts) == ["init", "sample", "all"]
    assert "dropout" not in told


def test_without_gold_only_agreement_is_told():
    found, truth = planted(dict.fromkeys(RANDOM_PARTS, 0.2), 3)
    blind = Truth(np.full(N, -1), truth.stable, truth.weight, None)
    parts, _ = take_apart(found, 3, tuple(RANDOM_PARTS), blind, K, rng=np.random.default_rng(0))
    assert parts["init"].accuracy_sd is None
    assert parts["init"].churn.value > 0


def test_each_pair_differs_in_its_own_part_alone():
    used = np.arange(5, 60)
    draws = _draws(3, 4, used, tuple(RANDOM_PARTS))
    for j in range(4):
        draws |= _mended_draws(draws, j)
    same = {"init": ("order", "rows"), "order": ("init", "rows"), "sample": ("init", "order")}
    same |= {"mending": ("init", "order", "rows")}
    for part, pairs in _pairs(range(4), tuple(RANDOM_PARTS)).items():
        for a, b in pairs:
            for field in same.get(part, ()):
                assert np.array_equal(getattr(draws[a], field), getattr(draws[b], field))
            drawn_again = [
                not np.array_equal(getattr(draws[a], f), getattr(draws[b], f))
                for f in ("init", "order", "rows")
            ]
            assert any(drawn_again) == (part != "mending")  # whose labels differ, nothing else
    for draw in draws.values():
        assert draw.rows is None or set(draw.rows) <= set(used)
    json.dumps(list(draws))
