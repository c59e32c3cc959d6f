"""What a campaign found: ``report.html``, the table in the terminal, and ``rounds.json``.

All three are drawn from one frozen :class:`ReportView`, so they cannot disagree. Values in a view
lie between 0 and 1 (alpha may be negative) and are shown times 100 with one decimal; what was not
measured is shown as a dash.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loop.errors import LoopError

if TYPE_CHECKING:
    from rich.table import Table

    from loop.people import Person

Arm = Literal["loop", "llm_only", "random", "all_gold"]
ARMS: tuple[Arm, ...] = ("llm_only", "loop", "random", "all_gold")
"""In the order in which they are shown."""

ARM_NAMES: dict[str, str] = {
    "loop": "goldloop",
    "llm_only": "LLM labels only",
    "random": "Random control",
    "all_gold": "All gold",
}
_SHORT = {"llm_only": "LLM only", "random": "random", "all_gold": "all gold"}
METRICS = (
    "alpha_k",
    "p_uc",
    "churn",
    "accuracy",
    "accuracy_sd",
    "macro_f1",
    "macro_f1_sd",
    "reliable_accuracy",
)
REASONS = {"suspect": "suspects", "audit": "random audit", "check": "checks", "overlap": "overlap"}
MISSING = "–"


@dataclass(frozen=True)
class Metric:
    """A number between 0 and 1 with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Share:
    """A share of n things."""

    share: float
    n: int


@dataclass(frozen=True)
class Recovered:
    """How much of the gap between LLM labels and gold labels was closed.

    Attributes:
        share: (metric - LLM only) / (all gold - LLM only), or None where the gap is within noise.
        gap: the denominator.
        noise: what a gap must exceed for the share to be told.
    """

    share: float | None
    gap: float
    noise: float | None = None


@dataclass(frozen=True)
class ClassRow:
    """One class: recall, agreement of the seeds, and test texts of that class."""

    label: str
    recall: Metric | None = None
    alpha: Metric | None = None
    n: int | None = None


@dataclass(frozen=True)
class ReportRow:
    """One set of students.

    Attributes:
        round: None for references that are trained once.
        gold_bought: texts sent to people so far.
        metrics: by name, see ``METRICS``; None or absent is shown as a dash.
        pushed_wrong: by reason (suspect, audit, …), texts whose LLM label people found wrong among
            those sent in this round.
        recovered: by metric name.
    """

    arm: Arm
    round: int | None
    gold_bought: int
    metrics: Mapping[str, Metric | None] = field(default_factory=dict)
    per_class: tuple[ClassRow, ...] = ()
    pushed_wrong: Mapping[str, Share] = field(default_factory=dict)
    recovered: Mapping[str, Recovered] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the row is called in tables."""
        if self.arm == "loop":
            return MISSING if self.round is None else f"Round {self.round}"
        if self.arm == "random" and self.round is not None:
            return f"Random, round {self.round}"
        return ARM_NAMES[self.arm]


@dataclass(frozen=True)
class People:
    """Who answered, and how well they agree.

    Attributes:
        alpha: Krippendorff's alpha (nominal) among people, None without two answers to compare.
        answers: answers given, all rounds together.
        annotators: different people.
        overlap: answers asked for per text.
        rows: how well each of them labels.
    """

    alpha: Metric | None
    answers: int
    annotators: int | None = None
    overlap: int | None = None
    rows: tuple[Person, ...] = ()


@dataclass(frozen=True)
class BudgetLine:
    """One thing that is spent, such as ``gold labels`` or ``USD``."""

    name: str
    spent: float
    limit: float | None = None


@dataclass(frozen=True)
class Reliability:
    """How well confidence fits accuracy.

    Attributes:
        ece: expected calibration error, in [0, 1].
        accuracy: of the labels.
        bins: confidence, accuracy and number of texts, least confident first.
    """

    ece: float
    accuracy: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Calibration:
    """What was done to the LLM's probabilities, and what it did to them.

    Attributes:
        view: ``raw``, ``batch`` or ``gold``.
        reason: one sentence, or empty.
        n: audit texts with gold that both were measured on.
    """

    view: str
    reason: str
    n: int
    raw: Reliability
    used: Reliability


@dataclass(frozen=True)
class ReportView:
    """All that a report says.

    Attributes:
        simulated: the people were simulated; said wherever they are mentioned.
        accuracy_from: ``test`` (gold test labels), ``audit`` (audit sample weighted by 1/pi), or
            None where nothing says what is right.
        notes: sentences shown near the top, such as a stopping reason.
        provenance: versions, seeds and the campaign file as run; values are JSON.
    """

    campaign: str
    task: str
    labels: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    seeds: int
    simulated: bool
    evaluated: int | None = None
    accuracy_from: Literal["test", "audit"] | None = "test"
    people: People | None = None
    calibration: Calibration | None = None
    budget: tuple[BudgetLine, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def ordered(self) -> tuple[ReportRow, ...]:
        """Rows by arm, then by round."""
        return tuple(sorted(self.rows, key=lambda r: (ARMS.index(r.arm), r.round or 0)))

    def last(self, arm: Arm) -> ReportRow | None:
        """An arm's newest row."""
        rows = [row for row in self.ordered if row.arm == arm]
        return rows[-1] if rows else None


@dataclass(frozen=True)
class Column:
    """One measured column: its metric, the one with its spread, and what it means."""

    key: str
    title: str
    meaning: str
    spread: str | None = None
    higher_is_better: bool = True


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
    return "" if MISSING in ends else "–".join(ends)


def terminal_table(view: ReportView) -> Table:
    """The table per round, with 95 % intervals under the values; fits 120 columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    people = " · the people are simulated" if view.simulated else ""
    table = Table(
        title=escape(f"{view.campaign}: {view.seeds} seeds{people}"),
        caption="times 100; below each value its 95 % interval; ± is the spread over the seeds",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("gold\nbought", justify="right")
    table.add_column("pushed\nwrong", justify="right")
    for column in COLUMNS:
        table.add_column(column.title.replace(" ", "\n"), justify="right", no_wrap=True)
    rows = view.ordered
    for i, row in enumerate(rows):
        wrong = "\n".join(
            f"{percent(share.share)}{'' if reason == 'suspect' else f' {reason}'}"
            for reason, share in _by_reason(row)
        )
        cells = [Text(row.name), Text(f"{row.gold_bought:,}"), Text(wrong or MISSING)]
        for column in COLUMNS:
            metric = row.metrics.get(column.key)
            below = interval(metric)
            cells.append(Text(_with_spread(row, column) + (f"\n{below}" if below else "")))
        last_of_arm = i + 1 < len(rows) and rows[i + 1].arm != row.arm
        table.add_row(*cells, end_section=last_of_arm)
    return table


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


def write_report(view: ReportView, path: Path) -> None:
    """Writes one HTML file that needs nothing else: styles and plots are inside, no scripts.

    Raises:
        LoopError: the file cannot be written.
    """
    _write(path, render(view))


def write_rounds(view: ReportView, path: Path) -> None:
    """Writes ``rounds.json``.

    Raises:
        LoopError: the file cannot be written.
    """
    _write(path, json.dumps(rounds_json(view), indent=2, ensure_ascii=False, default=str) + "\n")


def render(view: ReportView) -> str:
    """The report as one HTML page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, interval=interval)
    newest = {arm: row for arm in ARMS if (row := view.last(arm)) is not None}
    return environment.get_template("report.html.j2").render(
        view=view,
        columns=COLUMNS,
        arm_names=ARM_NAMES,
        reasons=REASONS,
        missing=MISSING,
        newest=newest,
        cards=_cards(view),
        plots=[
            (column, Markup(svg))  # noqa: S704 - drawn here, from numbers alone
            for column in COLUMNS
            if (svg := _plot(view, column))
        ],
        reliability=Markup(_reliability_plot(view.calibration)),  # noqa: S704 - likewise
        with_spread=_with_spread,
        by_reason=_by_reason,
        class_of=_class_of,
        provenance=[(str(k), _shown(v)) for k, v in view.provenance.items()],
    )


@dataclass(frozen=True)
class Card:
    """A headline: the newest round's value and how it compares."""

    column: Column
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
        column = next(c for c in COLUMNS if c.key == key)
        cards.append(Card(column, metric, tuple(compared)))
    return cards


def _at_same_round(view: ReportView, arm: str, row: ReportRow) -> ReportRow | None:
    same = [r for r in view.ordered if r.arm == arm and r.round in (None, row.round)]
    return same[-1] if same else None


def _remark(a: Metric, b: Metric) -> str:
    """Whether two intervals overlap, where both are known."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return ""
    return "overlapping" if a.low <= b.high and b.low <= a.high else "apart"


def _with_spread(row: ReportRow, column: Column) -> str:
    """``71.2`` or ``71.2 ±1.3``."""
    metric = row.metrics.get(column.key)
    if metric is None:
        return MISSING
    spread = row.metrics.get(column.spread) if column.spread else None
    return percent(metric.value) + (f" ±{percent(spread.value)}" if spread else "")


def _by_reason(row: ReportRow) -> list[tuple[str, Share]]:
    """Suspects first, then the others in the order of ``REASONS``."""
    order = {reason: i for i, reason in enumerate(REASONS)}
    return sorted(row.pushed_wrong.items(), key=lambda pair: order.get(pair[0], len(order)))


def _class_of(row: ReportRow, label: str) -> ClassRow:
    return next((c for c in row.per_class if c.label == label), ClassRow(label))


def _shown(value: Any) -> str:
    """A provenance value as text."""
    if isinstance(value, str):
        return value
    indent = 2 if isinstance(value, Mapping) and value else None
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


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


def _write(path: Path, content: str) -> None:
    """All or nothing: a reader never sees half a report."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise LoopError(f"{path} cannot be written: {exc.strerror or exc}.") from exc


# plots: matplotlib draws with placeholder colours, which become the page's own, light or dark

_INK, _GRID = "#010101", "#020202"
_COLOURS = {"loop": "#030303", "random": "#040404", "llm_only": "#050505", "all_gold": "#060606"}
_LINES = {"loop": "-", "random": "--", "llm_only": ":", "all_gold": "-."}
_MARKERS = {"loop": "o", "random": "s"}
_VARIABLES = {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    **{colour: f"var(--{arm.replace('_', '-')})" for arm, colour in _COLOURS.items()},
}


def _plot(view: ReportView, column: Column) -> str:
    """One metric over gold labels bought, as inline SVG; empty if no arm has the metric."""
    from matplotlib.ticker import MaxNLocator

    points: dict[str, list[tuple[int, Metric]]] = {}
    for row in view.ordered:
        metric = row.metrics.get(column.key)
        if metric is not None and metric.value == metric.value:
            points.setdefault(row.arm, []).append((row.gold_bought, metric))
    if not points:
        return ""
    bought = [x for arm in ("loop", "random") for x, _ in points.get(arm, [])]
    right = 1.06 * max([*bought, 1])

    def draw(axes: Any) -> None:
        for arm in ("llm_only", "all_gold", "random", "loop"):
            _draw(axes, arm, points.get(arm, []), right)
        axes.set_xlim(0, right)
        axes.margins(y=0.12)
        axes.set_xlabel("gold labels bought")
        ticks = sorted({0, *bought})
        if len(ticks) <= 6:
            axes.set_xticks(ticks)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return _svg(draw, f"{column.title} over gold labels bought")


def _reliability_plot(found: Calibration | None) -> str:
    """Confidence against accuracy, raw and as used, as inline SVG; empty without audit gold."""
    if found is None:
        return ""
    shown = [("llm_only", found.raw)] + [("loop", found.used)] * (found.view != "raw")

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=_INK, linewidth=0.8)
        for arm, reliability in shown:
            axes.plot(
                [100 * confidence for confidence, _, _ in reliability.bins],
                [100 * accuracy for _, accuracy, _ in reliability.bins],
                color=_COLOURS[arm],
                linestyle=_LINES[arm],
                marker="o",
                linewidth=2,
                markersize=5,
            )
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence of the LLM")
        axes.set_ylabel("labels that were right")

    return _svg(draw, "Share of right labels over the LLM's confidence")


def _svg(draw: Callable[[Any], None], label: str) -> str:
    """A drawing in the page's own colours."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _GRID,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.7, 2.35), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return _inline(buffer.getvalue(), label)


def _draw(axes: Any, arm: str, points: Sequence[tuple[int, Metric]], right: float) -> None:
    if not points:
        return
    colour = _COLOURS[arm]
    if arm in ("llm_only", "all_gold"):  # trained once: a level, not a course
        metric = points[-1][1]
        axes.axhline(100 * metric.value, color=colour, linestyle=_LINES[arm], linewidth=1.6)
        if metric.low is not None and metric.high is not None:
            axes.fill_between(
                [0, right], 100 * metric.low, 100 * metric.high, color=colour, alpha=0.1, lw=0
            )
        return
    xs = [x for x, _ in points]
    ys = [100 * m.value for _, m in points]
    axes.plot(
        xs, ys, color=colour, linestyle=_LINES[arm], marker=_MARKERS[arm], linewidth=2, markersize=5
    )
    known = [(x, 100 * m.low, 100 * m.high) for x, m in points if None not in (m.low, m.high)]  # type: ignore[operator]
    if known:
        at, low, high = zip(*known, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.14, lw=0)
        axes.vlines(at, low, high, color=colour, linewidth=1, alpha=0.6)


def _inline(svg: str, label: str) -> str:
    """The drawing without its prologue, ids and fixed colours, with a label for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    opening, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    return f'<svg role="img" aria-label="{label}" {box[0] if box else ""}>{body}'
