"""Stored rounds whose students answer one class are read without any stability."""

import copy

import numpy as np

from loop.campaign.tables import Round
from loop.measure.collapsed import collapsed_line, measured
from loop.measure.metric import AGREEMENT
from loop.measure.stability import measure

Y = np.arange(60) % 2
GOOD = np.tile(Y, (3, 1))
ONE = np.ones((3, 60), int)


def stored(predictions):
    """A measurement as versions before this one stored it: all seeds agree on 100 %."""
    found = measure(predictions, Y, 2, bootstrap=20, rng=np.random.default_rng(0)).to_json()
    if (predictions == predictions[0, 0]).all():
        sure = {"value": 1.0, "low": 1.0, "high": 1.0}
        found |= {"p_uc": sure, "ac1": sure, "churn": {"value": 0.0, "low": 0.0, "high": 0.0}}
    return found


def rounds(*loops, llm=GOOD):
    keys = (*AGREEMENT, "accuracy")
    difference = {"value": 0.1, "low": 0.0, "high": 0.2}
    return [
        Round(
            id=number,
            campaign="c",
            number=number,
            stage="done",
            seed=0,
            config={},
            versions={},
            metrics={
                "arms": {"loop": stored(loop), "llm_only": stored(llm), "all_gold": stored(GOOD)},
                "compared": {
                    name: {key: dict(difference) for key in keys}
                    for name in ("llm_only", "all_gold", "previous")
                },
                "recovered": {key: {"share": 0.5, "gap": 0.1, "noise": 0.0} for key in keys},
                "frozen": {"itself": {"value": 1.0}},
            },
        )
        for number, loop in enumerate(loops, start=1)
    ]


def agreement(metrics):
    """Every figure of agreement in a round's metrics, by its place."""
    places = {}
    for arm, found in metrics["arms"].items():
        places |= {(arm, key): found[key]["value"] for key in AGREEMENT}
    for name, found in metrics["compared"].items():
        places |= {(name, key): found[key]["value"] for key in AGREEMENT if key in found}
    return {place for place, value in places.items() if value is not None}


def test_a_round_that_learned_is_left_as_it_is():
    given = rounds(GOOD, GOOD)
    before = copy.deepcopy([r.metrics for r in given])
    assert [r.metrics for r in measured(given)] == before
    assert collapsed_line(given[0].metrics) is None


def test_no_stability_of_the_loop_no_comparison_with_it_and_no_frozen_agreement():
    given = rounds(ONE, GOOD)
    first, second = measured(given)
    shown = {place for place, _ in agreement(first.metrics)}
    assert shown == {"llm_only", "all_gold"}
    assert not any(set(AGREEMENT) & set(d) for d in first.metrics["compared"].values())
    assert list(first.metrics["recovered"]) == ["accuracy"]
    assert first.metrics["frozen"] == {}
    assert first.metrics["arms"]["loop"]["accuracy"]["value"] == 0.5
    assert not set(AGREEMENT) & set(second.metrics["compared"]["previous"])
    assert set(AGREEMENT) <= set(second.metrics["compared"]["llm_only"])
    assert "p_uc" in second.metrics["recovered"]
    assert "Set student.lr" in collapsed_line(first.metrics)
    assert given[0].metrics["arms"]["loop"]["p_uc"]["value"] == 1.0  # the store is left alone


def test_a_reference_that_learned_nothing_takes_its_comparisons_along():
    (found,) = measured(rounds(GOOD, llm=ONE))
    assert not any(arm == "llm_only" for arm, _ in agreement(found.metrics))
    assert set(AGREEMENT) <= set(found.metrics["compared"]["all_gold"])
    assert list(found.metrics["recovered"]) == ["accuracy"]
    assert found.metrics["frozen"]
