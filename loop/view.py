"""Draws the report's view of a campaign from the store, and writes its files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loop.assistance import assistance_lines, campaign_assistance
from loop.config import Config
from loop.people import campaign_people
from loop.report import write_report
from loop.report_json import write_rounds
from loop.report_view import (
    METRICS,
    Arm,
    BudgetLine,
    Calibration,
    ClassRow,
    Metric,
    People,
    Recovered,
    Reliability,
    ReportRow,
    ReportView,
    Share,
)
from loop.store import Round, Store

ONCE: tuple[Arm, ...] = ("llm_only", "all_gold")


def campaign_view(config: Config, store: Store) -> ReportView:
    """All that the report says of a campaign."""
    name = config.campaign.name
    measured = [r for r in store.rounds(name) if r.metrics]
    last = measured[-1] if measured else None
    rows: list[ReportRow] = []
    for round_ in measured:
        rows += [_row(config, round_, "loop"), *_maybe(config, round_, "random")]
    if last is not None:
        for arm in ONCE:
            rows += _maybe(config, last, arm)
    llm_usd = store.spent(name).usd
    answers = store.annotations(name)
    labels_usd = len(answers) * config.budget.usd_per_label
    budget = [BudgetLine("texts sent to people", len(store.reviews(name)), config.budget.labels)]
    if config.budget.usd is not None or llm_usd + labels_usd:
        budget.append(BudgetLine("USD", llm_usd + labels_usd, config.budget.usd))
    people = None
    if answers:
        alpha = last.metrics.get("people_alpha") if last else None
        people = People(
            alpha=None if alpha is None else Metric(alpha),
            answers=len(answers),
            annotators=len({a.annotator for a in answers}),
            overlap=config.label_studio.overlap,
            rows=tuple(campaign_people(config, store)),
        )
    return ReportView(
        campaign=name,
        task=config.campaign.task,
        labels=config.label_names,
        rows=tuple(rows),
        seeds=config.student.seeds,
        simulated=config.raters.kind != "people",
        evaluated=last.metrics["evaluated"] if last else None,
        accuracy_from=last.metrics["accuracy_from"] if last else None,
        people=people,
        calibration=_calibration(last.metrics.get("calibration") or {}) if last else None,
        budget=tuple(budget),
        notes=_notes(config, store, last),
        provenance={
            "versions": last.versions if last else {},
            "config": last.config if last else config.model_dump(mode="json"),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_outputs(config: Config, store: Store) -> Path:
    """Writes ``report.html`` and ``rounds.json``; returns the report's path."""
    view = campaign_view(config, store)
    config.out.mkdir(parents=True, exist_ok=True)
    write_rounds(view, config.out / "rounds.json")
    path = config.out / "report.html"
    write_report(view, path)
    return path


def _notes(config: Config, store: Store, last: Round | None) -> tuple[str, ...]:
    notes = []
    open_texts = [r for r in store.reviews(config.campaign.name) if r.closed_at is None]
    if open_texts:
        notes.append(f"{len(open_texts)} texts are still with people.")
    outcomes = [r.outcome for r in store.reviews(config.campaign.name)]
    without = sum(o in ("conflict", "skipped", "unsure", "unreadable") for o in outcomes)
    if without:
        notes.append(
            f"{without} texts came back without a gold label"
            f" ({outcomes.count('conflict')} conflicts, {outcomes.count('skipped')} skipped,"
            f" {outcomes.count('unsure')} unsure)."
        )
    notes += assistance_lines(config.label_studio.assist, campaign_assistance(config, store))
    calibration = (last.metrics.get("calibration") if last else None) or {}
    if calibration.get("view") == "raw" and calibration.get("reason"):
        reason = str(calibration["reason"])
        notes.append(f"{reason[0].upper()}{reason[1:]}.")
    if last is not None and "random" in last.metrics["arms"]:
        notes.append(
            "The random control buys the same number of texts, drawn at random, and gets answers"
            " from the same people; its labels are otherwise the LLM's."
        )
    if last is not None:
        notes += [
            f"Round {last.number} minus {name}, on the same test texts: {told}."
            for arm, name in COMPARED_WITH.items()
            if (told := _differences_told(last.metrics["compared"].get(arm, {})))
        ]
    return tuple(notes)


COMPARED_WITH = {"llm_only": "LLM labels only", "random": "the random control of the same size"}


def _differences_told(found: dict[str, dict[str, float | None]]) -> str:
    """Paired differences with their 95 % intervals, times 100; empty if there are none."""
    told = []
    for key, d in found.items():
        if d["value"] is not None and d["low"] is not None and d["high"] is not None:
            low, high = 100 * d["low"], 100 * d["high"]
            told.append(f"{key} {100 * d['value']:+.1f} ({low:+.1f} to {high:+.1f})")
    return ", ".join(told)


def _calibration(found: dict[str, Any]) -> Calibration | None:
    if "raw" not in found:
        return None
    raw, used = (
        Reliability(side["ece"], side["accuracy"], tuple((c, a, n) for c, a, n in side["bins"]))
        for side in (found["raw"], found["used"])
    )
    return Calibration(found["view"], found["reason"], found["n"], raw, used)


def _maybe(config: Config, round_: Round, arm: Arm) -> list[ReportRow]:
    return [_row(config, round_, arm)] if arm in round_.metrics["arms"] else []


def _row(config: Config, round_: Round, arm: Arm) -> ReportRow:
    metrics = round_.metrics
    found = metrics["arms"].get(arm, {})
    own = arm == "loop"
    k = len(config.label_names)
    bought = {"llm_only": 0, "all_gold": metrics.get("pool", 0)}.get(arm, metrics["bought"])
    return ReportRow(
        arm=arm,
        round=None if arm in ONCE else round_.number,
        gold_bought=bought,
        metrics={key: _metric(found.get(key)) for key in METRICS},
        per_class=tuple(
            ClassRow(
                label=label,
                recall=_metric(recall),
                alpha=_metric(alpha),
                n=n,
            )
            for label, recall, alpha, n in zip(
                config.label_names,
                found.get("recall") or [None] * k,
                found.get("alpha_per_class") or [None] * k,
                metrics["per_class_n"],
                strict=True,
            )
        ),
        pushed_wrong={
            reason: Share(share["share"], share["n"])
            for reason, share in (metrics["pushed_wrong"] if own else {}).items()
        },
        recovered={
            key: Recovered(share["share"], share["gap"], share["noise"])
            for key, share in (metrics["recovered"] if own else {}).items()
        },
    )


def _metric(found: dict[str, Any] | None) -> Metric | None:
    if not found or found.get("value") is None:
        return None
    return Metric(found["value"], found.get("low"), found.get("high"))
