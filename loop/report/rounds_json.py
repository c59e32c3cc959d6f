"""``rounds.json``: the report's view as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loop.files import write_whole
from loop.report.contents import METRICS, LlmLabels, Metric, ReportView
from loop.report.wording import verdict


def rounds_json(view: ReportView) -> dict[str, Any]:
    """The view as JSON values; numbers between 0 and 1, missing ones null."""
    return {
        "format": 1,
        "campaign": view.campaign,
        "task": view.task,
        "labels": list(view.labels),
        "seeds": view.seeds,
        "simulated_people": view.simulated,
        "evaluated": view.evaluated,
        "accuracy_from": view.accuracy_from,
        "created": view.created,
        "rows": [
            {
                "arm": row.arm,
                "round": row.round,
                "gold_bought": row.gold_bought,
                "metrics": {key: _metric_json(row.metrics.get(key)) for key in METRICS},
                "per_class": [
                    {
                        "label": c.label,
                        "n": c.n,
                        "recall": _metric_json(c.recall),
                        "precision": _metric_json(c.precision),
                        "alpha": _metric_json(c.alpha),
                    }
                    for c in row.per_class
                ],
                "pushed_wrong": {
                    reason: {"share": _number(s.share), "n": s.n}
                    for reason, s in row.pushed_wrong.items()
                },
                "against": {
                    reference: {key: _metric_json(m) for key, m in found.items()}
                    for reference, found in row.against.items()
                },
                "verdict": verdict(row),
                "confusion": [list(line) for line in row.confusion],
                "label_quality": _plain(row.label_quality),
                "predictor": _plain(row.predictor),
                "not_comparable": list(row.not_comparable),
                "suspects": _plain(row.suspects),
                "recovered": {
                    key: {
                        "share": _number(r.share),
                        "gap": _number(r.gap),
                        "noise": _number(r.noise),
                    }
                    for key, r in row.recovered.items()
                },
            }
            for row in view.ordered
        ],
        "people": None
        if view.people is None
        else {
            "alpha": _metric_json(view.people.alpha),
            "answers": view.people.answers,
            "annotators": view.people.annotators,
            "overlap": view.people.overlap,
        },
        "calibration": None if view.calibration is None else asdict(view.calibration),
        "intervals_over": view.over,
        "llm": None if view.llm is None else _llm_json(view.llm),
        "frozen": None
        if view.frozen is None
        else {
            "same": _metric_json(view.frozen.same),
            "kappa": _metric_json(view.frozen.kappa),
            "itself": _metric_json(view.frozen.itself),
            "accuracy": view.frozen.accuracy
            and dict(zip(("full", "frozen"), view.frozen.accuracy, strict=True)),
            "difference": _metric_json(view.frozen.difference),
            "told": view.frozen.told,
        },
        "variance": None if view.instability is None else asdict(view.instability),
        "plateau": None if view.plateau is None else asdict(view.plateau),
        "budget": [{"name": b.name, "spent": b.spent, "limit": b.limit} for b in view.budget],
        "notes": list(view.notes),
        "provenance": dict(view.provenance),
    }


def write_rounds(view: ReportView, path: Path) -> None:
    """Writes ``rounds.json``.

    Raises:
        LoopError: the file cannot be written.
    """
    write_whole(
        path, json.dumps(rounds_json(view), indent=2, ensure_ascii=False, default=str) + "\n"
    )


def _plain(found: Any) -> Any:
    """The same JSON with None where a number is not defined."""
    if isinstance(found, Mapping):
        return {key: _plain(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_plain(value) for value in found]
    return _number(found) if isinstance(found, float) else found


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _metric_json(metric: Metric | None) -> dict[str, float | str | None] | None:
    if metric is None:
        return None
    found: dict[str, float | str | None] = {
        "value": _number(metric.value),
        "low": _number(metric.low),
        "high": _number(metric.high),
    }
    return found | ({"note": metric.note} if metric.note else {})


def _llm_json(llm: LlmLabels) -> dict[str, Any]:
    return {
        "accuracy": _metric_json(llm.accuracy),
        "recall": [_metric_json(m) for m in llm.recall],
        "precision": [_metric_json(m) for m in llm.precision],
        "class_share": [_metric_json(m) for m in llm.class_share],
        "confusion": [list(line) for line in llm.confusion],
        "n_gold": llm.n_gold,
        "n_random": llm.n_random,
    }
