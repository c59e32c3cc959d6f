"""The report's plots, as SVG inside the page.

matplotlib draws with placeholder colours, which become the page's own, light or dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from loop.campaign.metrics import Calibration, Metric, MetricInfo, Reliability
from loop.report.contents import LearningCurves, ReportView

_INK, _GRID = "#010101", "#020202"
_COLOURS = {"loop": "#030303", "random": "#040404", "llm_only": "#050505", "all_gold": "#060606"}
_LEFT, _BOTTOM, _RIGHT, _TOP = 0.5, 0.42, 0.2, 0.08
"""Inches around the axes; finding them anew for every drawing takes as long as the drawing."""
_LINES = {"loop": "-", "random": "--", "llm_only": ":", "all_gold": "-."}
_MARKERS = {"loop": "o", "random": "s"}
_VARIABLES = {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    **{colour: f"var(--{arm.replace('_', '-')})" for arm, colour in _COLOURS.items()},
}


def course_plot(view: ReportView, column: MetricInfo) -> str:
    """One metric over gold labels bought, as inline SVG; empty if no arm has the metric."""
    from matplotlib.ticker import MaxNLocator

    points: dict[str, list[tuple[int, Metric]]] = {}
    for row in view.ordered:
        metric = row.metrics.get(column.key)
        if metric is not None and metric.known:
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
        axes.set_xlabel("gold labels")
        ticks = sorted({0, *bought})
        if len(ticks) <= 6:
            axes.set_xticks(ticks)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return _svg(draw, f"{column.title} over gold labels")


def reliability_plot(calibration: Calibration | None) -> str:
    """Confidence against accuracy, raw and as used, as inline SVG; empty without audit gold."""
    if calibration is None or calibration.raw is None or calibration.used is None:
        return ""
    shown: list[tuple[str, Reliability]] = [("llm_only", calibration.raw)]
    shown += [("loop", calibration.used)] * (calibration.view != "raw")
    return _reliability(
        shown, "confidence of the LLM", "Share of right labels over the LLM's confidence"
    )


def votes_plot(votes: Reliability | None) -> str:
    """Agreement of the seeds against accuracy, as inline SVG; empty without either."""
    if votes is None:
        return ""
    return _reliability(
        [("loop", votes)], "seeds that agree", "Share of right labels over the seeds that agree"
    )


def _reliability(shown: Sequence[tuple[str, Reliability]], confidence: str, label: str) -> str:
    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=_INK, linewidth=0.8)
        for arm, reliability in shown:
            axes.plot(
                [100 * sure for sure, _, _ in reliability.bins],
                [100 * accuracy for _, accuracy, _ in reliability.bins],
                color=_COLOURS[arm],
                linestyle=_LINES[arm],
                marker="o",
                linewidth=2,
                markersize=5,
            )
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel(f"{confidence}, %")
        axes.set_ylabel("labels that were right, %")

    return _svg(draw, label)


def curves_plot(learning: LearningCurves | None) -> str:
    """Learning curves with their fits, as inline SVG; empty without any."""
    if learning is None:
        return ""
    last = max(curve.sizes[-1] for curve in learning.curves)

    def draw(axes: Any) -> None:
        for curve in learning.curves:
            colour = _COLOURS[curve.arm]
            band = [(100 * m.low, 100 * m.high) for m in curve.fitted]
            low, high = zip(*band, strict=True)
            axes.fill_between(curve.shown_at, low, high, color=colour, alpha=0.12, lw=0)
            axes.plot(
                curve.shown_at,
                [100 * m.value for m in curve.fitted],
                color=colour,
                linestyle=_LINES[curve.arm],
                linewidth=1.8,
            )
            axes.plot(
                curve.sizes,
                [100 * m.value for m in curve.points],
                color=colour,
                marker="o",
                linestyle="",
                markersize=5,
            )
        axes.axvline(last, color=_INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        ticks = [*learning.curves[0].sizes[::2], 2 * last, 4 * last]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labels learned from; beyond the dotted line, the fit")
        axes.set_ylabel(learning.metric)

    return _svg(draw, "Learning curves of each kind of label", (6.2, 3.0))


def standalone(svg: str) -> str:
    """An inline drawing as a file of its own, in the colours of the light page."""
    light = {
        "muted": "#5c6470",
        "line": "#e1e3e6",
        "loop": "#0067a5",
        "random": "#7a6f9b",
        "llm-only": "#c04a00",
        "all-gold": "#9a7400",
    }
    for name, colour in light.items():
        svg = svg.replace(f"var(--{name})", colour)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return svg.replace("<svg ", head, 1) + "\n"


def _svg(draw: Callable[[Any], None], label: str, size: tuple[float, float] = (3.7, 2.35)) -> str:
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
        figure = Figure(figsize=size)
        figure.subplots_adjust(*_margins(*size))
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


def _margins(width: float, height: float) -> tuple[float, float, float, float]:
    """Where the axes begin and end, as shares of the drawing: left, bottom, right, top."""
    return _LEFT / width, _BOTTOM / height, 1 - _RIGHT / width, 1 - _TOP / height


def _draw(axes: Any, arm: str, points: Sequence[tuple[int, Metric]], right: float) -> None:
    if not points:
        return
    colour = _COLOURS[arm]
    if arm in ("llm_only", "all_gold"):  # trained once: a level, not a course
        metric = points[-1][1]
        axes.axhline(100 * metric.value, color=colour, linestyle=_LINES[arm], linewidth=1.6)
        if metric.has_interval:
            axes.fill_between(
                [0, right], 100 * metric.low, 100 * metric.high, color=colour, alpha=0.1, lw=0
            )
        return
    xs = [x for x, _ in points]
    ys = [100 * m.value for _, m in points]
    axes.plot(
        xs, ys, color=colour, linestyle=_LINES[arm], marker=_MARKERS[arm], linewidth=2, markersize=5
    )
    known = [(x, 100 * m.low, 100 * m.high) for x, m in points if m.has_interval]
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
