"""How the report words its figures: names, columns, percentages, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loop.report.contents import MISSING, Column, Metric, ReportRow, Share

REASONS = {
    "suspect": "suspects",
    "audit": "random audit",
    "coverage": "drawn at random instead of suspects",
    "check": "checks",
    "overlap": "overlap",
}
COLUMNS = (
    Column("alpha_k", "alpha_K", "agreement of the seeds beyond chance (Krippendorff's alpha)"),
    Column("p_uc", "p_uc", "share of test texts on which all seeds give the same label"),
    Column(
        "churn",
        "churn",
        "share of labels that change from one seed to another, mean over pairs; lower is better",
        higher_is_better=False,
    ),
    Column("accuracy", "accuracy", "mean over the seeds, ± standard deviation", "accuracy_sd"),
    Column(
        "macro_f1",
        "macro-F1",
        "mean over the classes, then over the seeds, ± standard deviation",
        "macro_f1_sd",
    ),
    Column(
        "reliable_accuracy",
        "reliable acc.",
        "share of test texts that every seed gets right; nothing but better labels raises it",
    ),
)

RANDOM_PARTS = {
    "init": "first weights of the head",
    "order": "order of the texts, and dropout",
    "sample": "which texts were drawn, with their labels",
}
"""What a seed draws, and what is drawn before it."""
PARTS_TOGETHER = {
    "seed": "first weights and order together: what each round's seeds differ in",
    "all": "everything",
}

SAME_EVERYWHERE = (
    "Every student gives every test text the same label, so that there is nothing to take apart:"
    " this is no stability, the students have not learned to tell the labels apart."
)
"""What the variance says of students that answer one class."""

CURVE_NAMES = {"llm": "LLM labels", "merged": "merged labels", "gold": "gold labels"}


def verdict(row: ReportRow) -> str:
    """Whether a round is shown to be more stable than the one before; empty without one."""
    found = row.against.get("previous", {}).get("alpha_k")
    if found is None or found.low is None or found.high is None:
        return ""
    if found.low > 0:
        return "more stable"
    return "less stable" if found.high < 0 else "not shown to be more stable"


def percent(value: float | None, *, sign: bool = False) -> str:
    """The value times 100 with one decimal, or a dash; a minus is a minus sign."""
    if value is None or value != value:
        return MISSING
    shown = f"{100 * value:{'+' if sign else ''}.1f}"
    shown = shown.replace("-", "\N{MINUS SIGN}")
    return "0.0" if shown == "\N{MINUS SIGN}0.0" else shown


def interval(metric: Metric | None) -> str:
    """``58.0–64.0``, or nothing."""
    if metric is None:
        return ""
    ends = percent(metric.low), percent(metric.high)
    if MISSING in ends:
        return ""
    # a dash after or before a minus sign reads like one
    return (" to " if "\N{MINUS SIGN}" in "".join(ends) else "–").join(ends)


def difference(metric: Metric | None) -> str:
    """``+1.2 (−0.5 to +3.0)``, or a dash."""
    if metric is None:
        return MISSING
    ends = percent(metric.low, sign=True), percent(metric.high, sign=True)
    within = "" if MISSING in ends else f" ({ends[0]} to {ends[1]})"
    return percent(metric.value, sign=True) + within


def with_spread(row: ReportRow, column: Column) -> str:
    """``71.2`` or ``71.2 ±1.3``."""
    metric = row.metrics.get(column.key)
    if metric is None:
        return MISSING
    spread = row.metrics.get(column.spread) if column.spread else None
    return percent(metric.value) + (f" ±{percent(spread.value)}" if spread else "")


def by_reason(row: ReportRow) -> list[tuple[str, Share]]:
    """Suspects first, then the others in the order of ``REASONS``."""
    order = {reason: i for i, reason in enumerate(REASONS)}
    return sorted(row.pushed_wrong.items(), key=lambda pair: order.get(pair[0], len(order)))


def agreement_sentence(found: Mapping[str, Any]) -> str:
    """Whether the frozen student may stand in, from a round's stored agreement; or nothing."""
    same, short = found.get("same"), found.get("short")
    if not same or not short or None in (same["value"], short["value"], short["low"]):
        return ""
    full, frozen = found.get("accuracy", {}).get("full"), found.get("accuracy", {}).get("frozen")
    right = (
        f"; accuracy {100 * frozen:.1f} against {100 * full:.1f}"
        if full is not None and frozen is not None
        else ""
    )
    if short["low"] <= 0:
        verdict = "as often as two seeds of the full one: it may stand in for exploring"
    else:
        verdict = (
            f"{100 * short['value']:.1f} points less often than two seeds of the full one"
            f" ({100 * short['low']:.1f} to {100 * short['high']:.1f}): use it to rank and to look"
            " around, not to report"
        )
    return (
        f"The frozen student gives the full one's label to {100 * same['value']:.1f} % of the test"
        f" texts ({100 * same['low']:.1f} to {100 * same['high']:.1f}){right}; {verdict}."
    )
