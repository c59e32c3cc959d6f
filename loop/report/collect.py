"""Draws the report's view of a campaign from store and studies, and writes its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loop.addresses import without_secrets
from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Round
from loop.errors import LoopError
from loop.measure.collapsed import measured
from loop.money import account
from loop.people.scorecards import campaign_people
from loop.report.contents import (
    METRICS,
    Agreement,
    Arm,
    BudgetLine,
    Calibration,
    ClassRow,
    CurveRow,
    Instability,
    LearningCurves,
    LlmLabels,
    Metric,
    PartRow,
    People,
    Recovered,
    Reliability,
    ReportRow,
    ReportView,
    Share,
)
from loop.report.html import write_report
from loop.report.notes import campaign_notes
from loop.report.rounds_json import write_rounds
from loop.report.wording import agreement_sentence

ONCE: tuple[Arm, ...] = ("llm_only", "all_gold")

ARM_OF: dict[str, Arm] = {"llm": "llm_only", "merged": "loop", "gold": "all_gold"}


def campaign_view(config: Config, store: Store) -> ReportView:
    """All that the report says of a campaign."""
    name = config.campaign.name
    rounds = measured(store.rounds(name))
    last = rounds[-1] if rounds else None
    rows: list[ReportRow] = []
    for round_ in rounds:
        rows += [_row(config, round_, "loop"), *_maybe(config, round_, "random")]
    if last is not None:
        for arm in ONCE:
            rows += _maybe(config, last, arm)
    money = account(config, store)
    answers = store.annotations(name)
    budget = [BudgetLine("texts sent to people", len(store.reviews(name)), config.budget.labels)]
    if money.cap_usd is not None or money.committed_usd:
        budget.append(BudgetLine("USD spent", money.spent_usd, money.cap_usd))
        budget.append(BudgetLine("USD spent or committed", money.committed_usd, money.cap_usd))
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
        seeds=last.metrics["arms"]["loop"]["seeds"] if last else config.student.seeds,
        simulated=config.raters.kind != "people",
        evaluated=last.metrics["evaluated"] if last else None,
        accuracy_from=last.metrics["accuracy_from"] if last else None,
        people=people,
        calibration=_calibration(last.metrics.get("calibration") or {}) if last else None,
        llm=_llm(last.metrics.get("llm") or {}, len(config.labels)) if last else None,
        frozen=_frozen(last.metrics.get("frozen") or {}) if last else None,
        instability=instability(config.out),
        plateau=plateau(config.out),
        over=last.metrics["arms"]["loop"].get("over", "items") if last else "items",
        budget=tuple(budget),
        notes=campaign_notes(config, store, rows, last),
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


def _calibration(found: dict[str, Any]) -> Calibration | None:
    if "raw" not in found:
        return None
    raw, used = (
        Reliability(side["ece"], side["accuracy"], tuple((c, a, n) for c, a, n in side["bins"]))
        for side in (found["raw"], found["used"])
    )
    return Calibration(found["view"], found["reason"], found["n"], raw, used)


def _frozen(found: dict[str, Any]) -> Agreement | None:
    same = metric(found.get("same"))
    if same is None:
        return None
    accuracy = found.get("accuracy") or {}
    return Agreement(
        same=same,
        kappa=metric(found.get("kappa")),
        itself=metric(found.get("itself")),
        accuracy=(accuracy["full"], accuracy["frozen"]) if accuracy else None,
        difference=metric(accuracy.get("difference")),
        told=agreement_sentence(found),
    )


def _llm(found: dict[str, Any], k: int) -> LlmLabels | None:
    if not found:
        return None

    def of_classes(field: str) -> tuple[Metric | None, ...]:
        return tuple(metric(m) for m in _all(found[field], k))

    return LlmLabels(
        accuracy=metric(found["accuracy"]),
        recall=of_classes("recall"),
        precision=of_classes("precision"),
        class_share=of_classes("class_share"),
        confusion=_matrix(found["confusion"], k),
        n_gold=found["n_gold"],
        n_random=found["n_random"],
    )


def _all(found: Sequence[Any] | None, k: int) -> list[Any]:
    """What a round says of each of the k labels; nothing of those that have come since."""
    known = list(found or ())
    return known + [None] * (k - len(known))


def _matrix(found: Any, k: int) -> tuple[tuple[float, ...], ...]:
    """(k, k), zero where a label has come since; empty for nothing."""
    lines = [[*map(float, line), *[0.0] * (k - len(line))] for line in found or ()]
    lines += [[0.0] * k for _ in range(k - len(lines) if lines else 0)]
    return tuple(map(tuple, lines))


def _maybe(config: Config, round_: Round, arm: Arm) -> list[ReportRow]:
    return [_row(config, round_, arm)] if arm in round_.metrics["arms"] else []


def _row(config: Config, round_: Round, arm: Arm) -> ReportRow:
    metrics = round_.metrics
    found = metrics["arms"].get(arm, {})
    own = arm == "loop"
    k = len(config.label_names)
    bought = {
        "loop": metrics.get("gold", metrics["bought"]),
        "random": metrics.get("random_gold", metrics["bought"]),
        "llm_only": 0,
        "all_gold": metrics.get("pool", 0),
    }[arm]
    return ReportRow(
        arm=arm,
        round=None if arm in ONCE else round_.number,
        gold_bought=bought,
        metrics={key: metric(found.get(key)) for key in METRICS},
        per_class=tuple(
            ClassRow(
                label=label,
                recall=metric(recall),
                alpha=metric(alpha),
                n=n,
                precision=metric(precision),
            )
            for label, recall, precision, alpha, n in zip(
                config.label_names,
                _all(found.get("recall"), k),
                _all(found.get("precision"), k),
                _all(found.get("alpha_per_class"), k),
                _all(metrics["per_class_n"], k),
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
        against={
            reference: known
            for reference, differences in (metrics.get("compared", {}) if own else {}).items()
            if (known := {k: m for k, d in differences.items() if (m := metric(d)) is not None})
        },
        confusion=_matrix((metrics.get("confusion") or {}).get(arm), k),
        label_quality=(metrics.get("label_quality") or {}) if own else {},
        predictor=(metrics.get("predictor") or {}) if own else {},
        not_comparable=tuple(metrics.get("not_comparable") or ()) if own else (),
        suspects=(metrics.get("suspects") or {}) if own else {},
    )


def instability(folder: Path) -> Instability | None:
    """The last result of ``goldloop variance``, or None.

    Raises:
        LoopError: the file is broken.
    """
    from loop.report.wording import PARTS_TOGETHER, RANDOM_PARTS, SAME_EVERYWHERE

    found = _read(folder / "variance.json")
    if found is None:
        return None
    try:
        everything = found["parts"]["all"]
        if everything["churn"]["value"] == 0 and everything["alpha"]["value"] is None:
            # an earlier version said of students that answer one class that no label changes
            found["told"] = SAME_EVERYWHERE
            found["parts"] = {name: dict.fromkeys(part) for name, part in found["parts"].items()}
        parts = tuple(
            PartRow(
                (RANDOM_PARTS | PARTS_TOGETHER)[name], **{key: metric(m) for key, m in part.items()}
            )
            for name, part in found["parts"].items()
        )
        return Instability(
            found["round_number"],
            found["student"],
            found["bases"],
            found["items"],
            parts,
            found["told"],
        )
    except (KeyError, TypeError) as exc:
        raise _broken(folder / "variance.json", "variance") from exc


def plateau(folder: Path) -> LearningCurves | None:
    """The last result of ``goldloop plateau``, or None.

    Raises:
        LoopError: the file is broken.
    """
    from loop.report.wording import CURVE_NAMES

    found = _read(folder / "plateau.json")
    if found is None:
        return None
    try:
        curves = tuple(
            CurveRow(
                name=CURVE_NAMES[kind],
                arm=ARM_OF[kind],
                sizes=tuple(curve["sizes"]),
                points=tuple(Metric(**m) for m in curve["points"]),
                asymptote=Metric(**curve["asymptote"]),
                doubling=Metric(**curve["doubling"]),
                shown_at=tuple(curve["shown_at"]),
                fitted=tuple(Metric(**m) for m in curve["fitted"]),
            )
            for kind, curve in found["curves"].items()
        )
        return LearningCurves(
            found["round_number"],
            found["student"],
            found["metric"].replace("macro_f1", "macro-F1"),
            found["seeds"],
            found["items"],
            curves,
            found["told"],
        )
    except (KeyError, TypeError) as exc:
        raise _broken(folder / "plateau.json", "plateau") from exc


def metric(found: dict[str, Any] | None) -> Metric | None:
    """A stored metric; None where it has no value."""
    if not found or found.get("value") is None:
        return None
    return Metric(found["value"], found.get("low"), found.get("high"), found.get("note", ""))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise _broken(path, path.stem) from exc
    if not isinstance(found, dict):
        raise _broken(path, path.stem)
    return found


def _broken(path: Path, command: str) -> LoopError:
    return LoopError(f"{path} cannot be read; delete it, or run `goldloop {command}` again.")
