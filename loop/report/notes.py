"""Sentences of the report: what came back, what is shown and what is not, and what misleads."""

from __future__ import annotations

from collections.abc import Sequence

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Round
from loop.measure.collapsed import collapsed_line
from loop.measure.llm_quality import quality_lines
from loop.people.assistance import assistance_lines, campaign_assistance
from loop.people.tally import answer_lines, tally, tally_line
from loop.report.contents import ReportRow
from loop.report.wording import COLUMNS, agreement_sentence, difference, verdict

COMPARED_WITH = {
    "previous": "the round before",
    "llm_only": "LLM labels only",
    "random": "the random control of the same size",
}
TITLES = {column.key: column.title for column in COLUMNS}


def campaign_notes(
    config: Config, store: Store, rows: Sequence[ReportRow], last: Round | None
) -> tuple[str, ...]:
    """What a reader must know beside the table, the newest round's comparisons among it."""
    notes = []
    reviews = store.reviews(config.campaign.name)
    became = tally(reviews)
    if became.out:
        notes.append(f"{became.out} texts are still with people.")
    if became.sent > became.back:
        notes.append(f"Of {became.sent} texts sent to people: {tally_line(became)}.")
    notes += answer_lines(reviews, store.annotations(config.campaign.name))
    outcomes = [r.outcome for r in reviews]
    without = sum(o in ("conflict", "skipped", "unsure", "unreadable") for o in outcomes)
    if without:
        notes.append(
            f"{without} texts came back without a gold label"
            f" ({outcomes.count('conflict')} conflicts, {outcomes.count('skipped')} skipped,"
            f" {outcomes.count('unsure')} unsure, {outcomes.count('unreadable')} unreadable);"
            " `goldloop codebook` shows them."
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
    notes += [
        f"{row.name} is not comparable with the rounds before it, because the campaign file has"
        f" changed: {', '.join(row.not_comparable)}."
        for row in rows
        if row.not_comparable
    ]
    for row in [row for row in rows if row.arm == "loop"][-1:]:
        notes += _comparisons(row)
    if last is not None:
        notes += [f"{line}." for line in quality_lines(last.metrics)]
        notes += _warnings(config, last)
        if agreed := agreement_sentence(last.metrics.get("frozen") or {}):
            notes.append(agreed)
    return tuple(notes)


def _comparisons(row: ReportRow) -> list[str]:
    """Paired differences with their 95 % intervals, times 100."""
    lines = []
    for reference, name in COMPARED_WITH.items():
        found = row.against.get(reference, {})
        shown = ", ".join(f"{TITLES[key]} {difference(d)}" for key, d in found.items())
        if shown:
            ending = f": {verdict(row)}" if reference == "previous" and verdict(row) else ""
            lines.append(f"{row.name} minus {name}, on the same test texts: {shown}{ending}.")
    return lines


def _warnings(config: Config, last: Round) -> list[str]:
    """Where agreement beyond chance misleads, because of how common or rare classes are."""
    found = last.metrics["arms"]["loop"]
    warnings = []
    if told := collapsed_line(last.metrics):
        warnings.append(f"{told}.")
    elif note := (found.get("alpha_k") or {}).get("note"):
        warnings.append(f"Mind alpha_K: {note}.")
    alphas = found.get("alpha_per_class") or [{}] * len(config.labels)
    # a label that has come since is missing at the end of what the round says
    for label, alpha, n in zip(
        config.label_names, alphas, last.metrics["per_class_n"], strict=False
    ):
        if note := alpha.get("note"):
            tests = f" ({n} test texts are of it)" if last.metrics["accuracy_from"] else ""
            warnings.append(f"Mind the class {label!r}{tests}: {note}.")
    return warnings
