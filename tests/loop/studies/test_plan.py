"""What a campaign still takes: labels to a goal, time, money."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import make

from loop.campaign.metrics import Metric, RoundMetrics, Stability
from loop.errors import StageError
from loop.measure.to_goal import to_goal
from loop.next_round import open_campaign, why_finished
from loop.round import run_round
from loop.studies.plan import Goal, Plan, curve_of, make_plan, plan_lines, points_of
from loop.studies.validate import open_validation, validation

PLAN = Plan((), 100, 2, 50, 2.0, 0.2, 18.0, True, None, None)
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def told(goal, **changed):
    plan = Plan(**{**vars(PLAN), "goals": (goal,), **changed})
    json.dumps(plan.to_json(), allow_nan=False)
    return plan_lines(plan)


def test_a_goal_in_sight_is_told_with_labels_time_and_money():
    goal = Goal("accuracy=0.8", Metric(0.75, 0.7, 0.8), Metric(63, 21, 250))
    planned, line = told(goal)
    assert planned == (
        "As planned: 2 more rounds with 100 labels: 200 answers, 60 minutes of people's time,"
        " $20.00."
    )
    assert line == (
        "accuracy of 80 % (now 75.0): about 63 more labels (21 to 250): 126 answers, 38 minutes of"
        " people's time, $12.60. The campaign as planned may be enough."
    )
    far = Goal("accuracy=0.8", Metric(0.75, 0.7, 0.8), Metric(240, 90, math.inf))
    assert (
        "about 240 more labels (at least 90; how many at most is not known yet): 480 "
        in told(far)[1]
    )
    assert "is about 140 labels short: raise budget.labels and rounds.rounds" in told(far)[1]


def test_a_curve_of_reliable_accuracy_allows_for_a_seed_that_gets_worse():
    points = [
        (n, Metric(y, y - 0.03, y + 0.03), 0.01) for n, y in ((0, 0.5), (40, 0.6), (80, 0.63))
    ]

    def width(key):
        curve = curve_of(points, key, np.random.default_rng(0))
        low, high = curve.quantiles(curve.at(160), (0.025, 0.975))
        return high - low

    assert width("reliable_accuracy") > width("accuracy") + 0.01


def test_what_is_reached_not_in_sight_or_not_known_says_so():
    now = Metric(0.75, 0.7, 0.8)
    assert told(Goal("p_uc=0.7", now, Metric(0, 0, 0)))[1].endswith("(now 75.0): reached.")
    perhaps = told(Goal("p_uc=0.74", now, Metric(0, 0, 0)))[1]
    assert perhaps.endswith("reached, but this is not sure: the interval begins at 70.0.")
    nearly = told(Goal("remaining-error=0.05", Metric(0.01, 0, 0.1), Metric(0, 0, 23)))[1]
    assert nearly.endswith(
        "probably reached, but this is not sure; up to 23 more labels would make it sure."
    )
    never = Goal("p_uc=0.9", now, Metric(math.inf, 400, math.inf))
    assert "not in sight; at the present rate it takes at least 400 more labels" in told(never)[1]
    open_ = Goal("p_uc=0.9", now, Metric(math.inf, 0.0, math.inf))
    assert "in sight; the rounds so far cannot tell how many labels it takes" in told(open_)[1]
    assert "not known yet" in told(Goal("p_uc=0.9", None, None, "needs two rounds; 0 so far"))[1]
    wrong = told(Goal("remaining-error=0.05", Metric(0.25, 0.2, 0.3), Metric(10, 5, 20)))[1]
    assert wrong.startswith("At most 5 % wrong labels (now 25.0): about 10 more labels (5 to 20)")
    unmeasured = plan_lines(Plan(**{**vars(PLAN), "measured_time": False, "labels_left": 0}))
    assert unmeasured[0].startswith("As planned: no further round")
    assert "goldloop plan --goal" in unmeasured[1]
    assert "18 seconds for each are assumed" in unmeasured[2]


def test_a_campaign_knows_more_after_each_round(tmp_path):
    ctx = make(
        tmp_path,
        budget={"labels": 45, "usd_per_label": 0.5},
        rounds={"batch_size": 15, "rounds": 3, "audit_frac": 0.5},
    )
    open_campaign(ctx)
    goals = ("accuracy=0.99", "remaining-error=0.01")
    known = []
    while why_finished(ctx) is None:
        plan = make_plan(ctx.config, ctx.store, goals, NOW)
        known.append(plan.goals[1].labels is not None)
        run_round(ctx)
    assert known == [False, True, True]
    plan = make_plan(ctx.config, ctx.store, goals, NOW)
    assert (plan.labels_left, plan.rounds_left, plan.usd_per_label) == (0, 0, 0.5)
    points = points_of(ctx.store.rounds("c"), "accuracy")
    assert [labels for labels, _, _ in points] == [0, 15, 30, 45]
    assert all(own > 0 for _, _, own in points)
    for goal in plan.goals:
        assert 0 <= goal.labels.low <= goal.labels.value <= goal.labels.high
    newest, answers = ctx.store.rounds("c")[-1].metrics, ctx.store.annotations("c")
    verdicts = to_goal(ctx.config, newest, answers, 0.01)
    assert plan.goals[1].labels == verdicts.labels
    assert plan.usd_per_label * verdicts.labels.value == pytest.approx(verdicts.usd.value)
    with pytest.raises(StageError, match="not a stopping rule; write accuracy"):
        make_plan(ctx.config, ctx.store, ["acuracy=1"])
    with pytest.raises(StageError, match="not a goal"):
        make_plan(ctx.config, ctx.store, ["plateau"])
    section = ctx.config.rounds.model_copy(update={"stop": ("gain=0.01", "p_uc=0.5")})
    config = ctx.config.model_copy(update={"rounds": section})
    assert [goal.rule for goal in make_plan(config, ctx.store).goals] == ["p_uc=0.5"]


def test_no_more_labels_are_planned_than_texts_are_there(tmp_path):
    ctx = make(tmp_path, budget={"labels": 40}, rounds={"batch_size": 40, "rounds": 20})
    open_campaign(ctx)
    pool = ctx.store.item_count("c", "pool")
    raised = ctx.config.budget.model_copy(update={"labels": 5_000})
    config = ctx.config.model_copy(update={"budget": raised})
    plan = make_plan(config, ctx.store, (), NOW)
    assert plan.labels_left == pool
    assert f" with {pool} labels: {pool} answers," in plan_lines(plan)[0]
    run_round(ctx)
    assert make_plan(config, ctx.store, (), NOW).labels_left == pool - 40


def stored(accuracy, low=None, number=1):
    """A finished round of ten gold labels each, whose students have this accuracy."""
    known = accuracy is not None
    ends = (accuracy, accuracy - 0.02 if low is None else low, accuracy + 0.02) if known else ()
    nothing = Metric(math.nan)
    loop = Stability(50, 3, 50, nothing, nothing, nothing, nothing, ())
    llm = replace(loop, accuracy=Metric(0.9, 0.88, 0.92))
    loop = replace(loop, accuracy=Metric(*ends) if known else None)
    found = RoundMetrics(arms={"loop": loop, "llm_only": llm}, bought=10 * number)
    return SimpleNamespace(stage="done", number=number, metrics=found)


def test_a_goal_is_judged_by_the_newest_students_alone(tmp_path, monkeypatch):
    ctx = make(tmp_path)

    def goal(*accuracies):
        rounds = [stored(a, number=i) for i, a in enumerate(accuracies, start=1)]
        monkeypatch.setattr(ctx.store, "rounds", lambda _name: rounds)
        return make_plan(ctx.config, ctx.store, ["accuracy=0.8"], NOW).goals[0]

    unknown = goal(None)  # the students of the LLM's labels have 0.9
    assert (unknown.now, unknown.labels) == (None, None)
    assert "could not be measured in the newest round" in told(unknown)[1]
    falling = goal(0.8, 0.79, 0.78)
    assert (falling.now.value, falling.labels) == (0.78, None)
    assert "not known yet; more labels have not raised it so far" in told(falling)[1]
    assert goal(0.7, 0.85).labels == Metric(0.0, 0.0, 0.0)


def test_a_stopping_rule_leaves_nothing_to_plan(tmp_path):
    ctx = make(tmp_path, rounds={"batch_size": 15, "rounds": 2, "stop": ["accuracy=0.01"]})
    open_campaign(ctx)
    run_round(ctx)
    plan = make_plan(ctx.config, ctx.store, ["accuracy=0.999"], NOW)
    assert plan.rounds_left == 0
    assert "no further round, because accuracy is " in plan_lines(plan)[0]
    goal = Goal("accuracy=0.8", Metric(0.75, 0.7, 0.8), Metric(63, 21, 250))
    assert told(goal, stopped=plan.stopped)[1].endswith("has ended the campaign (rounds.stop).")


def test_before_the_first_round_the_validation_sample_says_it(tmp_path):
    ctx = make(tmp_path)
    open_validation(ctx, 40)
    run_round(ctx)
    goal = make_plan(ctx.config, ctx.store, ["remaining-error=0.05"], NOW).goals[0]
    sample = validation(ctx.config, ctx.store, ctx.annotator.revision, goal=0.95)
    assert goal.labels.value == sample.price.by_entropy.value > 0
    assert goal.now.value == pytest.approx(1 - sample.quality.accuracy.value)


def test_answers_of_one_day_tell_the_pace(tmp_path):
    answers = [SimpleNamespace(updated_at=f"2026-11-27T{h:02}:00:00Z") for h in range(8, 16)]
    from loop.studies.plan import _per_day

    assert _per_day(answers, NOW) == pytest.approx(8 / 7 * 8, rel=0.01)
    assert _per_day(answers[:3], NOW) is None
