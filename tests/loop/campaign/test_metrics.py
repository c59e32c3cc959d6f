"""What a round measured is kept as JSON and read back, from rounds of older versions too."""

import json
import math
import sqlite3
from dataclasses import fields
from pathlib import Path

import pytest

from loop.campaign.metrics import (
    COMPARED,
    METRICS,
    WITH_SPREADS,
    Calibration,
    LlmQuality,
    Metric,
    RoundMetrics,
    Share,
    Stability,
    Suspects,
    Wrong,
    as_json,
    of_json,
)

KEPT = Path(__file__).parents[2] / "data/store_0005/store.sqlite"
NAN = Metric(math.nan, note="one seed")
STUDENTS = Stability(
    9, 1, 0, alpha_k=NAN, ac1=NAN, p_uc=Metric(1.0), churn=NAN, alpha_per_class=(NAN, Metric(0.5))
)


def test_what_is_written_is_read_back_and_holds_no_nan():
    metrics = RoundMetrics(
        arms={"loop": STUDENTS},
        compared={"previous": {"p_uc": Metric(0.1, -0.1, 0.3)}},
        label_quality=LlmQuality(accuracy=Metric(0.7, 0.6, 0.8), recall=(None, Metric(0.1))),
        suspects=Suspects(Wrong(1, 2), Wrong(0, 2), True, None, "suspects"),
        calibration=Calibration("raw", "because"),
        per_class_n=(3, 6),
        accuracy_from="test",
        pushed_wrong={"audit": Share(0.5, 2)},
        people_alpha=0.2,
    )
    written = json.dumps(as_json(metrics), allow_nan=False)
    assert json.loads(written)["arms"]["loop"]["alpha_k"] == {
        "value": None,
        "low": None,
        "high": None,
        "note": "one seed",
    }
    assert RoundMetrics.from_json(json.loads(written)) == metrics
    assert RoundMetrics.from_json({}) == RoundMetrics()
    with pytest.raises(ValueError, match="suspects"):
        of_json(RoundMetrics, {"suspects": {"next": "nobody"}})


def test_a_round_of_an_older_version_is_read_and_its_llm_has_one_estimate():
    with sqlite3.connect(KEPT) as connection:
        (stored,) = connection.execute("select metrics from round where number = 1").fetchone()
    connection.close()
    row = json.loads(stored)
    assert row["llm"]["accuracy"] != row["label_quality"]["accuracy"], "two that contradict"
    metrics = RoundMetrics.from_json(row)
    assert metrics.label_quality.accuracy.to_json() == row["label_quality"]["accuracy"]
    assert metrics.label_quality.confusion == ()
    assert metrics.arms["loop"].metric("accuracy").value == row["arms"]["loop"]["accuracy"]["value"]
    assert metrics.predictor.bins[0] == tuple(row["predictor"]["bins"][0])
    assert (metrics.tests, metrics.random_gold, metrics.suspects) == (None, None, None)
    assert RoundMetrics.from_json(as_json(metrics)) == metrics
    del row["label_quality"]  # a still older version had the other one alone
    quality = RoundMetrics.from_json(row).label_quality
    assert quality.accuracy.to_json() == row["llm"]["accuracy"]
    assert len(quality.confusion) == 2


def test_the_table_names_what_is_measured():
    assert set(WITH_SPREADS) <= {field.name for field in fields(Stability)}
    assert set(COMPARED) == set(METRICS) - {"churn"}
    assert [key for key, info in METRICS.items() if not info.higher_is_better] == ["churn"]
    assert STUDENTS.metric("churn") is None
    assert STUDENTS.metric("macro_f1_sd") is None
    assert STUDENTS.metric("p_uc") == Metric(1.0)
    assert (Metric(0.5, 0.4, 0.6).has_interval, Metric(0.5).has_interval) == (True, False)
