"""Sentences of the report: verdicts, and warnings where agreement beyond chance misleads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from loop.campaign.metrics import Metric, RoundMetrics
from loop.measure.collapsed import collapsed_line
from loop.measure.stability import measure
from loop.report.contents import ReportRow
from loop.report.notes import _warnings, comparisons


def round_of(preds, y, k):
    students = measure(np.asarray(preds), y, k, bootstrap=20, rng=np.random.default_rng(0))
    return RoundMetrics(
        arms={"loop": students},
        per_class_n=tuple(np.bincount(y, minlength=k).tolist()),
        accuracy_from="test",
    )


def config(*names):
    return SimpleNamespace(label_names=names, labels=names)


def test_one_class_everywhere_is_said():
    found = _warnings(config("a", "b"), round_of(np.zeros((3, 50), int), np.arange(50) % 2, 2))
    assert found == [
        f"{collapsed_line(round_of(np.zeros((3, 50), int), np.arange(50) % 2, 2))}.",
        "Class 'b' (25 test texts): no seed predicts this class.",
    ]


def test_a_class_that_nearly_all_texts_get_pulls_alpha_down():
    preds = np.zeros((3, 400), int)
    preds[0, :12] = 1
    preds[1, 6:18] = 1
    first, *rest = _warnings(config("a", "b"), round_of(preds, np.zeros(400, int), 2))
    assert first.startswith("alpha_K misleads here: 98% of all predictions are one class")
    assert "Gwet's AC1" in first
    assert rest == [
        "Class 'b' (0 test texts): seeds predict it for 8.0 of 400 texts, so its alpha says little."
    ]


def test_even_classes_need_no_warning():
    y = np.arange(100) % 2
    assert _warnings(config("a", "b"), round_of(np.tile(y, (3, 1)), y, 2)) == []


@pytest.mark.parametrize(
    ("low", "high", "ending"),
    [
        (0.01, 0.03, "more stable"),
        (-0.03, -0.01, "less stable"),
        (-0.005, 0.03, "not shown to be more stable"),
    ],
)
def test_the_verdict_ends_the_comparison_with_the_round_before(low, high, ending):
    found = {"alpha_k": Metric((low + high) / 2, low, high)}
    row = ReportRow("loop", 2, 60, against={"llm_only": found, "previous": found})
    first, second = comparisons(row)
    assert first.startswith("Round 2 compared with the round before, on the same test texts")
    assert first.endswith(f": {ending}.")
    assert second.startswith("Round 2 compared with LLM labels only")
    assert "stable" not in second
