"""``report.html``: one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.campaign.metrics import COMPARED, METRICS, Arm, LlmQuality, Metric, MetricInfo
from loop.files import write_whole
from loop.report import plots as report_plots
from loop.report.contents import (
    ARM_NAMES,
    ARMS,
    MISSING,
    BudgetLine,
    ReportRow,
    ReportView,
    class_of,
)
from loop.report.wording import (
    REASONS,
    SENT_AS,
    agreement_sentence,
    by_reason,
    difference,
    in_words,
    interval,
    percent,
    rounded,
    with_spread,
    work,
)

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

MATRIX_LABELS, MOST_CONFUSED = 12, 20
"""A matrix of more labels cannot be read; the pairs that are confused most often can."""


def write_report(view: ReportView, path: Path) -> None:
    """Writes one HTML file that needs nothing else: styles and plots are inside, no scripts.

    Raises:
        LoopError: the file cannot be written.
    """
    write_whole(path, render(view))


@cache
def _template() -> Template:
    """The page's template, compiled once a process."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        interval=interval,
        difference=difference,
        code=_code,
        in_words=_in_words,
        amount=_amount,
        rounded=rounded,
        work=work,
    )
    return environment.get_template("report.html.j2")


def render(view: ReportView) -> str:
    """The report as one HTML page."""
    from markupsafe import Markup

    newest = {arm: row for arm in ARMS if (row := view.last(arm)) is not None}
    loop = [row for row in view.ordered if row.arm == "loop"]
    return _template().render(
        view=view,
        columns=tuple(METRICS.values()),
        arm_names=ARM_NAMES,
        reasons=REASONS,
        sent_as=SENT_AS,
        missing=MISSING,
        newest=newest,
        cards=_cards(view),
        matrix_labels=MATRIX_LABELS,
        plots=[
            (column, Markup(svg))  # noqa: S704 - drawn here, from numbers alone
            for column in METRICS.values()
            if (svg := report_plots.course_plot(view, column))
        ],
        differences=_differences(loop[-1]) if loop else [],
        compared_columns=tuple(METRICS[key] for key in COMPARED),
        against_previous=[row for row in loop if row.against.get("previous")],
        confusions=_confusions(view, newest),
        reliability=Markup(report_plots.reliability_plot(view.calibration)),  # noqa: S704 - likewise
        votes=Markup(report_plots.votes_plot(view.votes)),  # noqa: S704 - likewise
        curves=Markup(report_plots.curves_plot(view.plateau)),  # noqa: S704 - likewise
        with_spread=with_spread,
        by_reason=by_reason,
        class_of=class_of,
        agreement_sentence=agreement_sentence,
        provenance=[(str(k), _shown(v)) for k, v in view.provenance.items()],
    )


@dataclass(frozen=True)
class Card:
    """One number, and what is shown of it.

    Attributes:
        state: of which labels, measured on what.
        metric: None where it is not known.
        comparisons: what it is compared with, and the paired difference.
        remark: said where there is no comparison.
    """

    title: str
    state: str
    metric: Metric | None
    unit: str = ""
    comparisons: tuple[tuple[str, Metric], ...] = ()
    remark: str = ""


OTHERS = {"llm_only": "the LLM's labels alone", "random": "as many random gold labels"}
"""What a card compares with."""


def _cards(view: ReportView) -> list[Card]:
    newest = view.last("loop")
    if newest is None:
        return []
    quality = view.llm or LlmQuality()
    gold = (
        f"By {quality.n_gold:,} gold labels, {quality.n_random:,} of them drawn at random."
        if view.llm
        else "Too few gold labels were drawn at random to tell."
    )
    repaired = "the LLM's labels with people's corrections, before goldloop's own repair"
    cards = [
        Card("LLM labels right", "the LLM's labels alone", quality.accuracy, " %", remark=gold),
        Card("Labels still wrong", repaired, quality.remaining_error, " %", remark=gold),
    ]
    on = "audit texts" if view.accuracy_from == "audit" else "test texts"
    for key, title, unit in (
        ("accuracy", "Students right", " %"),
        ("reliable_accuracy", "Right in every run", " %"),
        ("alpha_k", "Runs agree", ""),
    ):
        metric = newest.metrics.get(key)
        if metric is not None and not metric.known:
            metric = None
        compared = tuple(
            (name, against)
            for reference, name in OTHERS.items()
            if (against := newest.against.get(reference, {}).get(key)) is not None and metric
        )
        named = "alpha_K of " if key == "alpha_k" else ""
        where = on if METRICS[key].needs_gold else "test texts"
        runs = f"{view.seeds} run{'s' * (view.seeds != 1)}"
        state = f"{named}students of the corrected labels, {runs}, {where}"
        cards.append(Card(title, state, metric, unit, compared, _why_missing(view, key, metric)))
    return cards


def _why_missing(view: ReportView, key: str, metric: Metric | None) -> str:
    if metric is not None:
        return "There is nothing to compare it with (student.references)."
    if METRICS[key].needs_gold and view.accuracy_from is None:
        return "There are no known labels to test on."
    if view.collapsed:
        return "Not shown: every run gives every text the same label."
    return "Not measured."


def _differences(row: ReportRow) -> list[tuple[str, Mapping[str, Metric]]]:
    """What the newest row is compared with, in words, and the paired differences."""
    names = {
        "llm_only": ARM_NAMES["llm_only"],
        "previous": "the round before",
        "random": "Random control, same size",
        "all_gold": ARM_NAMES["all_gold"],
    }
    return [(name, row.against[key]) for key, name in names.items() if row.against.get(key)]


@dataclass(frozen=True)
class Confusion:
    """How often texts of one class get the label of another, as shares.

    Attributes:
        by: who gives it.
    """

    true: str
    given: str
    by: str
    of_class: float
    of_all: float


def _confusions(view: ReportView, newest: Mapping[Arm, ReportRow]) -> list[Confusion]:
    """Of campaigns with too many labels for a matrix, the most frequent confusions."""
    if len(view.labels) <= MATRIX_LABELS:
        return []
    matrices = [("the LLM", view.llm.confusion)] if view.llm else []
    if "loop" in newest:
        matrices.append(("students", newest["loop"].confusion))
    pairs = [
        Confusion(view.labels[i], view.labels[j], by, share / sum(line), share)
        for by, matrix in matrices
        for i, line in enumerate(matrix)
        for j, share in enumerate(line)
        if i != j and share > 0
    ]
    return sorted(pairs, key=lambda pair: (-pair.of_all, pair.true, pair.given))[:MOST_CONFUSED]


def _in_words(metric: Metric | None, column: MetricInfo | None = None) -> str:
    return in_words(metric, higher_is_better=column is None or column.higher_is_better)


def _code(text: str) -> Markup:
    """Commands, which stand between backticks, in their own letters."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick of its own
        return escape(text)
    return Markup().join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


def _amount(line: BudgetLine, value: float) -> str:
    """Whole texts, or dollars and cents."""
    return f"{value:,.2f}" if line.name.startswith("USD") else f"{value:,.10g}"


def _shown(value: Any) -> str:
    """A provenance value as text."""
    if isinstance(value, str):
        return value
    indent = 2 if isinstance(value, Mapping) and value else None
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
