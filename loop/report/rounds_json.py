"""``rounds.json``: the report's view as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from loop.campaign.metrics import WITH_SPREADS, Json, Metric, as_json
from loop.files import write_whole
from loop.report.contents import ReportView
from loop.report.wording import agreement_sentence, verdict


def rounds_json(view: ReportView) -> Json:
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
        "campaign_verdict": None if view.verdict is None else view.verdict.to_json(),
        "rows": [
            {
                "arm": row.arm,
                "round": row.round,
                "gold_bought": row.gold_bought,
                "metrics": {key: _metric_json(row.metrics.get(key)) for key in WITH_SPREADS},
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
                "pushed_wrong": {reason: as_json(s) for reason, s in row.pushed_wrong.items()},
                "against": {
                    reference: {key: _metric_json(m) for key, m in metrics.items()}
                    for reference, metrics in row.against.items()
                },
                "verdict": verdict(row),
                "confusion": [list(line) for line in row.confusion],
                "label_quality": _or_empty(row.label_quality),
                "predictor": _or_empty(row.predictor),
                "not_comparable": list(row.not_comparable),
                "suspects": _or_empty(row.suspects),
                "recovered": {key: as_json(r) for key, r in row.recovered.items()},
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
        "calibration": _or_none(view.calibration),
        "intervals_over": view.over,
        "llm": _or_none(view.llm),
        "student_votes": _or_none(view.votes),
        "to_goal": _or_none(view.to_goal),
        "overruled": view.overruled,
        "caught": [as_json(error) for error in view.caught],
        "frozen": None
        if view.frozen is None
        else {
            "same": _metric_json(view.frozen.same),
            "kappa": _metric_json(view.frozen.kappa),
            "itself": _metric_json(view.frozen.itself),
            "accuracy": view.frozen.accuracy
            and {"full": view.frozen.accuracy.full, "frozen": view.frozen.accuracy.frozen},
            "difference": view.frozen.accuracy and _metric_json(view.frozen.accuracy.difference),
            "told": agreement_sentence(view.frozen, view.failed_seeds),
        },
        "variance": _or_none(view.instability),
        "plateau": _or_none(view.plateau),
        "budget": [{"name": b.name, "spent": b.spent, "limit": b.limit} for b in view.budget],
        "comparisons": list(view.comparisons),
        "notes": list(view.notes),
        "methods": _or_none(view.methods),
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


def _metric_json(metric: Metric | None) -> Json | None:
    return dict(metric.to_json()) if metric is not None and metric.known else None


def _or_none(value: object) -> Json | None:
    return None if value is None else as_json(value)


def _or_empty(value: object) -> Json:
    return {} if value is None else as_json(value)
