"""``rounds.json``: the report's view as JSON, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loop.errors import LoopError
from loop.report_view import METRICS, Metric, ReportView


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
                        "alpha": _metric_json(c.alpha),
                    }
                    for c in row.per_class
                ],
                "pushed_wrong": {
                    reason: {"share": _number(s.share), "n": s.n}
                    for reason, s in row.pushed_wrong.items()
                },
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


def write_whole(path: Path, content: str) -> None:
    """All or nothing: a reader never sees half a report."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise LoopError(f"{path} cannot be written: {exc.strerror or exc}.") from exc


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _metric_json(metric: Metric | None) -> dict[str, float | None] | None:
    if metric is None:
        return None
    return {
        "value": _number(metric.value),
        "low": _number(metric.low),
        "high": _number(metric.high),
    }
