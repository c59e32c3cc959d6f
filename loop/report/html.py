"""``report.html``: one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.campaign.metrics import METRICS, Metric, MetricInfo
from loop.files import write_whole
from loop.report import plots as report_plots
from loop.report.contents import (
    ARM_NAMES,
    ARMS,
    MISSING,
    ReportRow,
    ReportView,
    class_of,
)
from loop.report.wording import (
    REASONS,
    agreement_sentence,
    by_reason,
    difference,
    interval,
    percent,
    verdict,
    with_spread,
)

if TYPE_CHECKING:
    from jinja2 import Template

_SHORT = {"llm_only": "LLM only", "random": "random", "all_gold": "all gold"}


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
    environment.filters.update(percent=percent, interval=interval, difference=difference)
    return environment.get_template("report.html.j2")


def render(view: ReportView) -> str:
    """The report as one HTML page."""
    from markupsafe import Markup

    newest = {arm: row for arm in ARMS if (row := view.last(arm)) is not None}
    return _template().render(
        view=view,
        columns=tuple(METRICS.values()),
        arm_names=ARM_NAMES,
        reasons=REASONS,
        missing=MISSING,
        newest=newest,
        cards=_cards(view),
        plots=[
            (column, Markup(svg))  # noqa: S704 - drawn here, from numbers alone
            for column in METRICS.values()
            if (svg := report_plots.course_plot(view, column))
        ],
        reliability=Markup(report_plots.reliability_plot(view.calibration)),  # noqa: S704 - likewise
        curves=Markup(report_plots.curves_plot(view.plateau)),  # noqa: S704 - likewise
        with_spread=with_spread,
        by_reason=by_reason,
        class_of=class_of,
        agreement_sentence=agreement_sentence,
        verdict=verdict,
        provenance=[(str(k), _shown(v)) for k, v in view.provenance.items()],
    )


@dataclass(frozen=True)
class Card:
    """A headline: the newest round's value and how it compares."""

    column: MetricInfo
    metric: Metric
    comparisons: tuple[tuple[str, str, str], ...]  # reference, difference, remark


def _cards(view: ReportView) -> list[Card]:
    newest = view.last("loop")
    if newest is None:
        return []
    cards = []
    for key in ("alpha_k", "p_uc", "macro_f1", "reliable_accuracy"):
        metric = newest.metrics.get(key)
        if metric is None:
            continue
        compared = []
        for arm in ("llm_only", "random", "all_gold"):
            row = _at_same_round(view, arm, newest)
            other = row.metrics.get(key) if row else None
            if other is not None:
                difference = percent(metric.value - other.value, sign=True)
                compared.append((_SHORT[arm], difference, _remark(metric, other)))
        cards.append(Card(METRICS[key], metric, tuple(compared)))
    return cards


def _at_same_round(view: ReportView, arm: str, row: ReportRow) -> ReportRow | None:
    same = [r for r in view.ordered if r.arm == arm and r.round in (None, row.round)]
    return same[-1] if same else None


def _remark(a: Metric, b: Metric) -> str:
    """Whether two intervals overlap, where both are known."""
    if not (a.has_interval and b.has_interval):
        return ""
    return "overlapping" if a.low <= b.high and b.low <= a.high else "apart"


def _shown(value: Any) -> str:
    """A provenance value as text."""
    if isinstance(value, str):
        return value
    indent = 2 if isinstance(value, Mapping) and value else None
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
