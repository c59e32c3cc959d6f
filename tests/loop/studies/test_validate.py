"""Validation: a random sample first, an honest verdict, and a campaign that continues after it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from campaigns import copied, make, texts

from loop.errors import StageError
from loop.next_round import why_finished
from loop.report.status import campaign_status
from loop.round import run_round
from loop.studies.validate import (
    SAFE_FROM,
    open_validation,
    price_of_goal,
    validation,
    validation_json,
    validation_lines,
)
from strategies.estimate import Estimate


def campaign(tmp_path, *, n=400, wrong=0.3, raters=True, **sections):
    settings = {"budget": {"labels": 150}, "student": {"seeds": 2, "references": ["llm_only"]}}
    return make(tmp_path, raters=raters, rows=texts(n, wrong), **(settings | sections))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A campaign that has validated 120 texts, to look at."""
    ctx = campaign(tmp_path_factory.mktemp("sampled"))
    open_validation(ctx, 120)
    assert run_round(ctx).stage == "done"
    yield ctx
    ctx.store.close()


def result(ctx, goal=0.95):
    return validation(ctx.config, ctx.store, ctx.annotator.revision, goal=goal)


def test_the_sample_is_random_and_trains_nothing(sampled):
    ctx = sampled
    reviews = ctx.store.reviews("c")
    pool = ctx.store.items("c", "pool")
    assert {r.reason for r in reviews} == {"audit"}
    assert len(reviews) == 120
    assert [r.inclusion_prob for r in reviews] == pytest.approx([120 / len(pool)] * 120)
    assert ctx.store.runs("c") == []
    assert [r.number for r in ctx.store.rounds("c")] == [0]


def test_the_intervals_hold_the_truth_of_the_pool(sampled):
    ctx = sampled
    found = result(ctx)
    pool = ctx.store.items("c", "pool")
    by_column = dict(found.side_by_side)
    for column in ("llm", "llm_2"):
        true = np.mean([i.meta[column] == i.known_label for i in pool])
        accuracy = by_column[column].accuracy
        assert accuracy.low <= true <= accuracy.high
    assert by_column["llm_2"].accuracy.value > by_column["llm"].accuracy.value
    assert found.verdict == "likely"
    lines = "\n".join(validation_lines(found, 150))
    assert "Validated on 120 of 120 texts" in lines
    assert "is likely to suffer" in lines
    assert json.loads(json.dumps(validation_json(found)))["quality"]["n_gold"] == 120


def test_good_labels_are_cleared_and_cost_nothing(tmp_path):
    ctx = campaign(tmp_path, wrong=0.0, annotator={"kind": "recorded", "columns": ["llm"]})
    open_validation(ctx, 150)
    run_round(ctx)
    found = result(ctx)
    assert found.quality.accuracy.low >= SAFE_FROM
    assert (found.verdict, found.side_by_side) == ("unlikely", ())
    assert "reached without gold labels" in "\n".join(validation_lines(found, 150))


def test_a_goal_is_reached_only_where_the_whole_interval_says_so(sampled):
    found = result(sampled)
    unsure = replace(found, price=replace(found.price, by_entropy=Estimate(0.0, 0.0, 42.0)))
    (line,) = [line for line in validation_lines(unsure, 150) if "right labels" in line]
    assert line.endswith("but this is not sure; up to 42 gold labels would make it sure.")


def test_the_rounds_come_after_it_and_its_gold_counts(sampled, tmp_path):
    ctx = campaign(copied(sampled.config.out.parent, tmp_path / "again"))
    assert why_finished(ctx) is None
    while why_finished(ctx) is None:
        run_round(ctx)
    rounds = ctx.store.rounds("c")
    assert [(r.number, r.stage) for r in rounds] == [(0, "done"), (1, "done"), (2, "done")]
    assert rounds[1].metrics.gold == 135
    assert "to that of 120 audit labels" in rounds[1].metrics.calibration.reason
    assert campaign_status(ctx.config, ctx.store)["next"].startswith("`goldloop report`, ")
    assert result(ctx).quality.n_gold == 120


def test_while_people_label_it_waits_and_says_what_is_missing(tmp_path):
    ctx = campaign(tmp_path, raters=False)
    assert open_validation(ctx, 30).id == open_validation(ctx, 30).id
    assert run_round(ctx).stage == "pull"
    with pytest.raises(StageError, match="0 of 30 texts of the sample have a gold label"):
        result(ctx)
    for item in ctx.reviewer.open_items():
        ctx.reviewer.answer(item, "ann", "good")
    assert run_round(ctx).stage == "done"
    assert result(ctx).quality.n_gold == 30


def test_it_comes_first_or_not_at_all(tmp_path):
    ctx = campaign(tmp_path)
    with pytest.raises(StageError, match="run `goldloop validate`"):
        result(ctx)
    run_round(ctx)
    with pytest.raises(StageError, match="before the first round"):
        open_validation(ctx, 30)


def test_the_price_by_hand():
    rng = np.random.default_rng(0)
    right = np.arange(100) >= 20  # the most suspect fifth is wrong
    price = price_of_goal(-np.arange(100.0), right, 1000, 0.95, rng=rng)
    assert price.by_entropy.value == 150  # 15 of 20 errors found by the first 15 of 100
    assert price.random.value == pytest.approx(750)
    assert price.random.low < 750 < price.random.high
    backwards = price_of_goal(np.arange(100.0), right, 1000, 0.95, rng=rng)
    assert backwards.by_entropy.value == 950
    assert price_of_goal(np.zeros(100), right, 1000, 0.8, rng=rng).random.value == 0
    few = price_of_goal(np.zeros(20), np.ones(20, bool), 1000, 0.95, rng=rng)
    for estimate in (few.random, few.by_entropy):  # 20 right labels leave 16 % of errors open
        assert (estimate.value, estimate.low) == (0, 0)
        assert estimate.high == pytest.approx(1000 * (1 - 0.05 / 0.161), abs=2)
    many = price_of_goal(np.zeros(400), np.ones(400, bool), 1000, 0.95, rng=rng)
    assert many.random.high == 0
    with pytest.raises(ValueError, match="needs a sample"):
        price_of_goal(np.zeros(0), right[:0], 1000, 0.9, rng=rng)


def test_the_price_comes_true_on_the_whole_pool():
    rng = np.random.default_rng(1)
    pool = 20_000
    suspicion = rng.random(pool)
    right = rng.random(pool) > 0.5 * suspicion**2
    order = np.argsort(-suspicion)
    left = (~right).sum() - (~right)[order].cumsum()
    needed = int(np.argmax(left <= 0.05 * pool)) + 1
    held = 0
    for _ in range(40):
        rows = rng.choice(pool, 250, replace=False)
        price = price_of_goal(suspicion[rows], right[rows], pool, 0.95, rng=rng).by_entropy
        held += price.low <= needed <= price.high
    assert held >= 33
