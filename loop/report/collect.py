"""Draws the report's view of a campaign from store and studies, and writes its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from loop.addresses import without_secrets
from loop.campaign.config import Config, as_run
from loop.campaign.metrics import (
    METRICS,
    ONCE,
    WITH_SPREADS,
    Arm,
    Json,
    LlmQuality,
    Metric,
    RoundMetrics,
    of_json,
)
from loop.campaign.store import Store
from loop.errors import LoopError
from loop.llm.votes import llm_in_words
from loop.measure.collapsed import collapsed_line, measured_rounds
from loop.measure.to_goal import to_goal
from loop.money import account
from loop.next_round import what_next
from loop.people.scorecards import campaign_people
from loop.report.caught import caught_errors
from loop.report.contents import (
    BudgetLine,
    ClassRow,
    CurveRow,
    Instability,
    LearningCurves,
    PartRow,
    People,
    ReportRow,
    ReportView,
)
from loop.report.html import write_report
from loop.report.notes import campaign_notes, comparisons
from loop.report.paper import methods
from loop.report.rounds_json import write_rounds
from loop.report.verdict import campaign_verdict
from loop.report.wording import CURVE_NAMES, PARTS_TOGETHER, RANDOM_PARTS, SAME_EVERYWHERE

ARM_OF: dict[str, Arm] = {"llm": "llm_only", "merged": "loop", "gold": "all_gold"}


def campaign_view(config: Config, store: Store) -> ReportView:
    """All that the report says of a campaign."""
    name = config.campaign.name
    rounds = store.rounds(name)
    measured = measured_rounds(rounds)
    rows: list[ReportRow] = []
    for round_, metrics in measured:
        rows.append(_row(config, round_.number, metrics, "loop"))
        if "random" in metrics.arms:
            rows.append(_row(config, round_.number, metrics, "random"))
    last, newest = measured[-1] if measured else (None, RoundMetrics())
    rows += [_row(config, None, newest, arm) for arm in ONCE if arm in newest.arms]
    loop = [row for row in rows if row.arm == "loop"]
    students = newest.arms.get("loop")
    money = account(config, store)
    answers = store.annotations(name)
    budget = [BudgetLine("texts sent to people", store.review_count(name), config.budget.labels)]
    if money.cap_usd is not None or money.committed_usd:
        budget.append(BudgetLine("USD spent", money.spent_usd, money.cap_usd))
        budget.append(BudgetLine("USD spent or committed", money.committed_usd, money.cap_usd))
    people = None
    if answers:
        alpha = newest.people_alpha
        people = People(
            alpha=None if alpha is None else Metric(alpha),
            answers=len(answers),
            annotators=len({a.annotator for a in answers}),
            overlap=config.people.overlap,
            rows=tuple(campaign_people(config, store)),
        )
    return ReportView(
        campaign=name,
        task=config.campaign.task,
        labels=config.label_names,
        rows=tuple(rows),
        seeds=students.seeds if students else config.student.seeds,
        simulated=config.raters.kind != "people",
        evaluated=newest.evaluated if last else None,
        accuracy_from=newest.accuracy_from,
        collapsed=collapsed_line(newest) is not None,
        verdict=campaign_verdict(config, store, what_next(config, store)),
        people=people,
        calibration=newest.calibration if newest.calibration and newest.calibration.raw else None,
        llm=_widened(newest.label_quality, len(config.labels)),
        votes=newest.votes,
        overruled=sum(
            round(share.share * share.n)
            for _, metrics in measured
            for share in metrics.pushed_wrong.values()
        ),
        caught=caught_errors(config, store, rounds),
        to_goal=to_goal(config, newest, answers) if last else None,
        failed_seeds=tuple(newest.learned_nothing),
        frozen=newest.frozen if newest.frozen and newest.frozen.same.known else None,
        instability=instability(config.out),
        plateau=plateau(config.out),
        over=students.over if students else "items",
        budget=tuple(budget),
        comparisons=tuple(comparisons(loop[-1])) if loop else (),
        notes=campaign_notes(config, store, rows, newest if last else None),
        methods=methods(
            as_run(last.config),
            [metrics for _, metrics in measured],
            llm=llm_in_words(store, last),
            version=last.versions.get("goldloop", ""),
        )
        if last
        else None,
        provenance={
            "versions": last.versions if last else {},
            # Rounds of older versions may hold addresses with passwords.
            "config": without_secrets(last.config if last else config.model_dump(mode="json")),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_outputs(config: Config, store: Store, folder: Path | None = None) -> Path:
    """Writes ``report.html`` and ``rounds.json``, to the campaign's folder if none is given.

    Returns:
        The report's path.
    Raises:
        LoopError: a file cannot be written.
    """
    view = campaign_view(config, store)
    folder = folder or config.out
    write_rounds(view, folder / "rounds.json")
    path = folder / "report.html"
    write_report(view, path)
    return path


Value = TypeVar("Value")


def _all(values: Sequence[Value] | None, k: int) -> list[Value | None]:
    """What a round says of each of the k labels; nothing of those that have come since."""
    known = list(values or ())
    return [*known, *[None] * (k - len(known))]


def _of_classes(metrics: Sequence[Metric | None] | None, k: int) -> tuple[Metric | None, ...]:
    return tuple(m if m is not None and m.known else None for m in _all(metrics, k))


def _matrix(shares: Sequence[Sequence[float]], k: int) -> tuple[tuple[float, ...], ...]:
    """(k, k), zero where a label has come since; empty for nothing."""
    lines = [(*line, *[0.0] * (k - len(line))) for line in shares]
    lines += [(0.0,) * k for _ in range(k - len(lines) if lines else 0)]
    return tuple(lines)


def _widened(quality: LlmQuality | None, k: int) -> LlmQuality | None:
    """The same for the k labels of now; None where there is no estimate."""
    if quality is None or quality.accuracy is None:
        return None
    return replace(
        quality,
        recall=_of_classes(quality.recall, k),
        precision=_of_classes(quality.precision, k),
        class_share=_of_classes(quality.class_share, k),
        confusion=_matrix(quality.confusion, k),
    )


def _row(config: Config, number: int | None, metrics: RoundMetrics, arm: Arm) -> ReportRow:
    students, k = metrics.arms[arm], len(config.label_names)
    row = ReportRow(
        arm=arm,
        round=number,
        gold_bought={
            "loop": metrics.bought if metrics.gold is None else metrics.gold,
            "random": metrics.bought if metrics.random_gold is None else metrics.random_gold,
            "llm_only": 0,
            "all_gold": metrics.pool,
        }[arm],
        metrics={key: students.metric(key) for key in WITH_SPREADS},
        per_class=tuple(
            ClassRow(label, recall=recall, alpha=alpha, n=n, precision=precision)
            for label, recall, precision, alpha, n in zip(
                config.label_names,
                _of_classes(students.recall, k),
                _of_classes(students.precision, k),
                _of_classes(students.alpha_per_class, k),
                _all(metrics.per_class_n, k),
                strict=True,
            )
        ),
        confusion=_matrix(metrics.confusion.get(arm, ()), k),
    )
    if arm != "loop":
        return row
    against = {
        reference: {key: d for key, d in differences.items() if d.known}
        for reference, differences in metrics.compared.items()
    }
    return replace(
        row,
        pushed_wrong=metrics.pushed_wrong,
        recovered=metrics.recovered,
        against={reference: known for reference, known in against.items() if known},
        label_quality=metrics.label_quality,
        predictor=metrics.predictor,
        suspects=metrics.suspects,
        not_comparable=metrics.not_comparable,
    )


def instability(folder: Path) -> Instability | None:
    """The last result of ``goldloop variance``, or None.

    Raises:
        LoopError: the file is broken.
    """
    names = RANDOM_PARTS | PARTS_TOGETHER

    def drawn(result: Json) -> Instability:
        told, measured = result["told"], result["parts"]
        everything = measured["all"]
        if everything["churn"]["value"] == 0 and everything["alpha"]["value"] is None:
            # an earlier version said of students that answer one class that no label changes
            told = SAME_EVERYWHERE
            measured = {name: dict.fromkeys(part) for name, part in measured.items()}
        return Instability(
            round=result["round_number"],
            student=result["student"],
            bases=result["bases"],
            items=result["items"],
            parts=tuple(
                PartRow(names[name], **{key: _metric(m) for key, m in part.items()})
                for name, part in measured.items()
            ),
            told=told,
        )

    return _last_result(folder, "variance", drawn)


def plateau(folder: Path) -> LearningCurves | None:
    """The last result of ``goldloop plateau``, or None.

    Raises:
        LoopError: the file is broken.
    """

    def drawn(result: Json) -> LearningCurves:
        return LearningCurves(
            round=result["round_number"],
            student=result["student"],
            metric=METRICS[result["metric"]].title,
            seeds=result["seeds"],
            items=result["items"],
            curves=tuple(
                CurveRow(
                    name=CURVE_NAMES[kind],
                    arm=ARM_OF[kind],
                    sizes=tuple(curve["sizes"]),
                    points=of_json(tuple[Metric, ...], curve["points"]),
                    asymptote=of_json(Metric, curve["asymptote"]),
                    doubling=of_json(Metric, curve["doubling"]),
                    shown_at=tuple(curve["shown_at"]),
                    fitted=of_json(tuple[Metric, ...], curve["fitted"]),
                )
                for kind, curve in result["curves"].items()
            ),
            told=result["told"],
        )

    return _last_result(folder, "plateau", drawn)


def _last_result(folder: Path, command: str, drawn: Callable[[Json], Value]) -> Value | None:
    """What a study of that name left in the folder, or None."""
    path = folder / f"{command}.json"
    if not path.exists():
        return None
    try:
        return drawn(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise LoopError(
            f"{path} cannot be read; delete it, or run `goldloop {command}` again."
        ) from exc


def _metric(stored: object) -> Metric | None:
    """A stored metric; None where it has no value."""
    metric = None if stored is None else of_json(Metric, stored)
    return metric if metric is not None and metric.known else None
