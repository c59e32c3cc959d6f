"""Stopping rules: which one holds, and what it says."""

from types import SimpleNamespace

import pytest

from loop.campaign.config import stop_rule
from loop.campaign.metrics import Metric, RoundMetrics, Stability
from loop.campaign.tables import VALIDATION
from loop.measure.stopping import why_stop

SURE = Metric(0.82, 0.80, 0.84)
NONE = Metric(0.0, -0.02, 0.02)


def arm(accuracy):
    whole = Metric(0.9, 0.85, 0.95)
    return Stability(100, 5, 100, whole, whole, whole, whole, (), accuracy=accuracy)


def rounds(*gains, accuracy=SURE, stage="done", bound=None):
    made = []
    for number, gain in enumerate(gains, start=1):
        compared = {"previous": dict.fromkeys(("accuracy", "macro_f1"), gain)} if gain else {}
        quality = SimpleNamespace(remaining_at_most=bound) if bound is not None else None
        metrics = RoundMetrics(arms={"loop": arm(accuracy)}, compared=compared)
        object.__setattr__(metrics, "label_quality", quality)
        made.append(SimpleNamespace(number=number, stage=stage, metrics=metrics))
    return made


def why(rounds, *rules, stop_below=None):
    config = SimpleNamespace(rounds=SimpleNamespace(stop=rules, stop_below=stop_below))
    return why_stop(config, rounds)


def test_a_target_holds_once_its_lower_end_is_there():
    reason = why(rounds(None), "accuracy=0.8")
    assert (
        reason
        == "accuracy is 82.0 (80.0 to 84.0), at least 80.0 in the whole interval (accuracy=0.8)"
    )
    assert why(rounds(None), "accuracy=0.81") is None
    assert why(rounds(None, accuracy=Metric(0.9)), "accuracy=0.8") is None  # without an interval
    assert why(rounds(None, accuracy=None), "accuracy=0.8") is None
    assert why([], "accuracy=0.8") is None


def test_a_gain_is_too_small_only_where_that_is_sure():
    assert "+0.0 points (-2.0 to +2.0)" in why(rounds(None, NONE), "gain=0.03")
    assert why(rounds(None, NONE), "gain=0.02") is None
    assert why(rounds(None), "gain=0.5") is None


def test_a_plateau_takes_two_rounds_without_a_gain():
    assert "last 2 rounds" in why(rounds(None, NONE, NONE), "plateau")
    assert why(rounds(None, NONE), "plateau") is None
    assert why(rounds(None, NONE, Metric(0.03, 0.01, 0.05)), "plateau") is None
    assert why(rounds(None, Metric(0.03, 0.01, 0.05), NONE), "plateau") is None


def test_remaining_error_and_the_first_rule_that_holds():
    assert "at most 4.0 %" in why(rounds(None, bound=0.04), "alpha_k=0.99", "remaining-error=0.05")
    assert why(rounds(None, bound=0.06), "remaining-error=0.05") is None
    both = why(rounds(None), "alpha_k=0.8", "accuracy=0.8")
    assert both.endswith("(alpha_k=0.8)")


def test_validation_and_unfinished_rounds_do_not_count():
    validated = rounds(None)
    validated[0].number = VALIDATION
    assert why(validated, "accuracy=0.8") is None
    assert why(rounds(None, stage="measure"), "accuracy=0.8") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "accuracy=1",
        "accuracy=nan",
        "accuracy=80",
        "churn=0.1",
        "plateau=2",
        "f1=0.5",
    ],
)
def test_what_is_no_rule_is_refused_with_all_that_are(text):
    with pytest.raises(ValueError, match=r"not a stopping rule; write accuracy=0\.8"):
        stop_rule(text)
