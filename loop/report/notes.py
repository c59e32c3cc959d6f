"""Sentences of the report: what people answered, what followed from it, and what misleads."""

from __future__ import annotations

from collections.abc import Sequence

from loop.campaign.config import Config
from loop.campaign.metrics import METRICS, RoundMetrics
from loop.campaign.store import Store
from loop.errors import counted
from loop.measure.collapsed import collapsed_line, failed_seeds_line
from loop.measure.llm_quality import quality_lines
from loop.people.assistance import assistance_lines, campaign_assistance
from loop.people.tally import answer_lines, tally, tally_line
from loop.report.contents import ReportRow
from loop.report.wording import agreement_sentence, difference, verdict

COMPARED_WITH = {
    "previous": "the round before",
    "llm_only": "LLM labels only",
    "random": "the random control of the same size",
}


def campaign_notes(
    config: Config, store: Store, rows: Sequence[ReportRow], newest: RoundMetrics | None
) -> tuple[str, ...]:
    """What a reader must know beside the verdict and the figures."""
    notes = []
    reviews = store.reviews(config.campaign.name)
    became = tally(reviews)
    if became.out:
        one = became.out == 1
        notes.append(f"{became.out} {'text is' if one else 'texts are'} still with people.")
    if became.sent > became.back:
        notes.append(f"Of {counted(became.sent, 'text')} sent to people: {tally_line(became)}.")
    answers = store.annotations(config.campaign.name)
    notes += answer_lines(reviews, answers, config.people.platform_name)
    outcomes = [r.outcome for r in reviews]
    kinds = {"conflict": "in conflict", **{k: k for k in ("skipped", "unsure", "unreadable")}}
    without = {kind: outcomes.count(kind) for kind in kinds if kind in outcomes}
    if without:
        listed = ", ".join(f"{n} {kinds[kind]}" for kind, n in without.items())
        n = sum(without.values())
        notes.append(
            f"{n} text{'s' * (n != 1)} came back without a gold label ({listed});"
            " `goldloop codebook` shows them."
        )
    notes += assistance_lines(config.people.assist, campaign_assistance(config, store))
    calibration = newest.calibration if newest else None
    if calibration is not None and calibration.view == "raw" and calibration.reason:
        notes.append(f"{calibration.reason[0].upper()}{calibration.reason[1:]}.")
    if newest is not None and "random" in newest.arms:
        notes.append(
            "The random control asks the same people about as many texts, drawn at random. All its"
            " other labels are the LLM's."
        )
    notes += [
        f"{row.name} is not comparable with the rounds before it, because the campaign file has"
        f" changed: {', '.join(row.not_comparable)}."
        for row in rows
        if row.not_comparable
    ]
    if newest is not None:
        notes += [f"{line}." for line in quality_lines(newest)]
        notes += _warnings(config, newest)
        if newest.frozen is not None:
            notes += filter(None, [agreement_sentence(newest.frozen, newest.learned_nothing)])
    return tuple(notes)


def comparisons(row: ReportRow) -> list[str]:
    """Paired differences with their 95 % intervals, times 100."""
    lines = []
    for reference, name in COMPARED_WITH.items():
        against = row.against.get(reference, {})
        shown = ", ".join(f"{METRICS[key].title} {difference(d)}" for key, d in against.items())
        if shown:
            ending = f": {verdict(row)}" if reference == "previous" and verdict(row) else ""
            lines.append(
                f"{row.name} compared with {name}, on the same test texts: {shown}{ending}."
            )
    return lines


def _warnings(config: Config, newest: RoundMetrics) -> list[str]:
    """Where agreement beyond chance misleads, because of how common or rare classes are."""
    students = newest.arms["loop"]
    warnings = []
    if told := failed_seeds_line(newest):
        warnings.append(f"{told}.")
    if told := collapsed_line(newest):
        warnings.append(f"{told}.")
    elif students.alpha_k.note:
        warnings.append(f"alpha_K misleads here: {students.alpha_k.note}.")
    # a label that has come since is missing at the end of what the round says
    for label, alpha, n in zip(
        config.label_names, students.alpha_per_class, newest.per_class_n, strict=False
    ):
        if alpha.note:
            tests = f" ({counted(n, 'test text')})" if newest.accuracy_from else ""
            warnings.append(f"Class {label!r}{tests}: {alpha.note}.")
    return warnings
