"""Stored rounds whose students answer one class are read without any stability."""

from types import SimpleNamespace

import numpy as np

from loop.campaign.metrics import AGREEMENT, RoundMetrics, as_json
from loop.measure.collapsed import collapsed_line, measured_rounds
from loop.measure.stability import measure

Y = np.arange(60) % 2
GOOD = np.tile(Y, (3, 1))
ONE = np.ones((3, 60), int)


def stored(predictions):
    """A measurement as versions before this one stored it: all seeds agree on 100 %."""
    found = as_json(measure(predictions, Y, 2, bootstrap=20, rng=np.random.default_rng(0)))
    if (predictions == predictions[0, 0]).all():
        sure = {"value": 1.0, "low": 1.0, "high": 1.0}
        found |= {"p_uc": sure, "ac1": sure, "churn": {"value": 0.0, "low": 0.0, "high": 0.0}}
    return found


def rounds(*loops, llm=GOOD):
    keys = (*AGREEMENT, "accuracy")
    difference = {"value": 0.1, "low": 0.0, "high": 0.2}
    stored_rounds = [
        {
            "arms": {"loop": stored(loop), "llm_only": stored(llm), "all_gold": stored(GOOD)},
            "compared": {
                name: {key: dict(difference) for key in keys}
                for name in ("llm_only", "all_gold", "previous")
            },
            "recovered": {key: {"share": 0.5, "gap": 0.1, "noise": 0.0} for key in keys},
            "frozen": dict.fromkeys(("same", "kappa", "itself", "short"), difference),
        }
        for loop in loops
    ]
    return [SimpleNamespace(metrics=RoundMetrics.from_json(found)) for found in stored_rounds]


def read(given):
    return [metrics for _, metrics in measured_rounds(given)]


def agreeing(metrics):
    """Arms of which a figure of agreement is known."""
    return {
        arm
        for arm, found in metrics.arms.items()
        if any(getattr(found, key).known for key in AGREEMENT)
    }


def test_a_round_that_learned_is_left_as_it_is():
    given = rounds(GOOD, GOOD)
    assert all(found is r.metrics for found, r in zip(read(given), given, strict=True))
    assert collapsed_line(given[0].metrics) is None


def test_no_stability_of_the_loop_no_comparison_with_it_and_no_frozen_agreement():
    given = rounds(ONE, GOOD)
    first, second = read(given)
    assert agreeing(first) == {"llm_only", "all_gold"}
    assert not any(set(AGREEMENT) & set(d) for d in first.compared.values())
    assert list(first.recovered) == ["accuracy"]
    assert first.frozen is None
    assert first.arms["loop"].accuracy.value == 0.5
    assert not set(AGREEMENT) & set(second.compared["previous"])
    assert set(AGREEMENT) <= set(second.compared["llm_only"])
    assert "p_uc" in second.recovered
    assert "Set student.lr" in collapsed_line(first)
    assert given[0].metrics.arms["loop"].p_uc.value == 1.0  # what is stored is left alone


def test_a_reference_that_learned_nothing_takes_its_comparisons_along():
    (found,) = read(rounds(GOOD, llm=ONE))
    assert agreeing(found) == {"loop", "all_gold"}
    assert not set(AGREEMENT) & set(found.compared["llm_only"])
    assert set(AGREEMENT) <= set(found.compared["all_gold"])
    assert list(found.recovered) == ["accuracy"]
    assert found.frozen is not None
