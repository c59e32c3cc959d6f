"""What the goal still takes: bounds that hold in replays of checking, and what is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import make

from loop.campaign.metrics import LlmQuality, Metric, NoLlmLabel, RoundMetrics
from loop.measure.to_goal import answers_per_label, labels_to_goal, to_goal


def checked_until(wrong, goal, order):
    """Texts that are checked, in that order, until few enough wrong labels are left."""
    left = int(wrong.sum()) - np.concatenate([[0], wrong[order].cumsum()])
    return int((left <= goal * len(wrong)).argmax())


@pytest.mark.parametrize("skill", [0.0, 0.5, 2.0, 50.0])
def test_what_it_took_lies_between_the_bounds(skill):
    rng = np.random.default_rng(3)
    for _ in range(10):
        wrong = rng.random(1000) < rng.uniform(0.06, 0.4)
        share = float(wrong.mean())
        orders = np.argsort(-(skill * wrong + rng.gumbel(size=(40, 1000))), axis=1)
        took = np.mean([checked_until(wrong, 0.05, order) for order in orders])
        exact = labels_to_goal(
            Metric(share, share, share), 0.05, texts=1000, checked=0, hit_rate=None
        )
        assert exact.low <= took + 1
        assert took <= exact.high + 25  # three standard errors of 40 random orders
        assert exact.low <= exact.value <= exact.high


def test_the_value_follows_the_last_batch():
    left = Metric(0.2, 0.15, 0.25)

    def value(hit_rate):
        return labels_to_goal(left, 0.05, texts=1000, checked=100, hit_rate=hit_rate).value

    assert value(1.0) == pytest.approx(150)
    assert value(0.5) == pytest.approx(300)
    assert value(None) == pytest.approx(900 * 0.75)
    assert value(0.001) == labels_to_goal(left, 0.05, texts=1000, checked=100, hit_rate=0.1).high


def test_nothing_is_to_be_done_where_the_goal_is_reached():
    done = labels_to_goal(Metric(0.02, 0.0, 0.04), 0.05, texts=900, checked=50, hit_rate=0.3)
    assert (done.value, done.low, done.high) == (0, 0, 0)
    all_checked = labels_to_goal(Metric(0.2, 0.1, 0.3), 0.05, texts=90, checked=90, hit_rate=0.3)
    assert (all_checked.value, all_checked.low, all_checked.high) == (0, 0, 0)
    empty = labels_to_goal(Metric(0.0, 0.0, 0.0), 0.05, texts=0, checked=0, hit_rate=None)
    assert empty.high == 0


def test_texts_that_the_llm_gave_no_label_are_no_wrong_labels(tmp_path):
    config = make(tmp_path).config
    left = Metric(0.2, 0.15, 0.25)
    quality = LlmQuality(remaining_error=left, n_gold=80, unanswered=NoLlmLabel(200, 0.2, 200))
    found = to_goal(config, RoundMetrics(pool=1000, label_quality=quality), [], 0.05).labels
    assert found == labels_to_goal(left, 0.05, texts=800, checked=80, hit_rate=None)


def test_hidden_checks_are_a_part_of_what_a_label_costs(tmp_path):
    config = make(tmp_path, people={"overlap": 2, "check_frac": 0.25}).config
    assert answers_per_label(config, RoundMetrics(), []) == 2.5
    asked = [f"text {i}" for i in range(20)] + [f"check {i}" for i in range(5)]
    answers = [SimpleNamespace(item_id=item) for item in asked for _ in range(2)]
    assert answers_per_label(config, RoundMetrics(bought=20, gold=20), answers) == 2.5
    assert answers_per_label(config, RoundMetrics(bought=20, gold=10), answers) == 5.0


def test_no_label_puts_right_more_than_one():
    few_left = labels_to_goal(Metric(0.2, 0.1, 0.5), 0.05, texts=100, checked=90, hit_rate=None)
    # 15 wrong labels are too many, and random texts would need 7.5 of the 10 that are left.
    assert few_left.value == few_left.high == 9
