"""Whether more LLM labels would help: learning curves over nested label sets of growing size.

Each seed draws its own order of the texts and learns from the first n of them, for every n. A curve
a - b n^-c is fitted for the LLM's labels, for the merged labels of the round, and for gold where
the source knows it for the whole pool. Intervals bootstrap the test texts, with the same draws for
every curve, and add the seeds' spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from loop.campaign.metrics import METRICS, Json, Metric, as_json
from loop.chance import stream
from loop.errors import StageError
from loop.measure.held_out import Truth
from loop.measure.metric import (
    item_sums,
    metrics_of,
    one_class,
    points,
    replicates,
    times_100,
    with_width,
)
from loop.ports import Draws, FloatArray, IntArray
from loop.report.wording import CURVE_NAMES
from loop.studies.side_runs import SideRuns, gold_labels, llm_labels, merged_labels

BOOTSTRAP = 1000
SMALLEST = 16
WIDE = 0.15
"""An asymptote whose interval is wider than this is not reported."""

ENOUGH = 0.01
"""A gain from twice as many labels that is worth them."""

NOTHING_TO_TELL = (
    "It is not known whether more LLM labels will help: students of all {name} give every test"
    " text the same label, so that the curve shows a student that does not learn, not what its"
    " labels are worth."
)
CurveMetric = Literal["accuracy", "macro_f1"]
CURVE_METRICS: tuple[CurveMetric, ...] = get_args(CurveMetric)
Verdict = Literal["will not help", "will help", "cannot be told"]

EXPONENTS = np.geomspace(0.2, 2.0, 24)
"""Powers that are tried. Below 0.2 a curve is so slow that a few sizes cannot tell its end."""


@dataclass(frozen=True)
class Curve:
    """One kind of label.

    Attributes:
        sizes: label-set sizes, smallest first.
        points: the metric at each, mean over the seeds.
        asymptote: a; its interval says whether it can be told.
        doubling: what twice as many labels would add to the largest set's fitted value.
        exponent: c.
        fitted: the curve at ``shown_at``, with its band.
        shown_at: sizes up to four times the largest.
    """

    sizes: tuple[int, ...]
    points: tuple[Metric, ...]
    asymptote: Metric
    doubling: Metric
    exponent: float
    shown_at: tuple[float, ...]
    fitted: tuple[Metric, ...]

    @property
    def told(self) -> bool:
        """Whether the asymptote is known to some purpose."""
        return self.asymptote.high - self.asymptote.low <= WIDE


@dataclass(frozen=True)
class Plateau:
    """Learning curves side by side.

    Attributes:
        curves: by kind, see ``CURVE_NAMES``.
        reference: the kind that the LLM's labels are held against: gold, else merged.
        gap: the reference's asymptote minus that of the LLM's labels.
        below: the gap relative to the reference's asymptote.
        instead: what the reference's labels for the largest set's texts add to the LLM's.
        verdict: whether more LLM labels will help.
        told: one sentence.
    """

    round_number: int
    student: str
    metric: CurveMetric
    seeds: int
    items: int
    curves: dict[str, Curve]
    reference: str
    gap: Metric
    below: Metric
    instead: Metric
    verdict: Verdict
    told: str

    def to_json(self) -> Json:
        """Plain values."""
        return as_json(self)


def measure_plateau(
    runs: SideRuns, *, sizes: int, seeds: int, metric: CurveMetric = "accuracy"
) -> Plateau:
    """Trains ``sizes * seeds`` students per kind of label and fits their curves.

    Raises:
        StageError: no label to test on, or too few texts to learn from.
        ValueError: fewer than three sizes or two seeds.
        StudentError: training failed.
    """
    if sizes < 3 or seeds < 2:
        raise ValueError(f"a curve needs 3 sizes and 2 seeds or more, not {sizes} and {seeds}")
    if runs.truth.source is None:
        raise StageError("A learning curve needs gold labels to test on; none is known yet.")
    kinds = {"llm": llm_labels(runs), "merged": merged_labels(runs)}
    if (gold := gold_labels(runs)) is not None:
        kinds["gold"] = gold
    predictions, of_kind = {}, {}
    for kind, (y, weight) in kinds.items():
        used = np.flatnonzero(weight > 0)
        of_kind[kind] = nested_sizes(len(used), sizes)
        draws = _draws(runs.round_.seed, used, of_kind[kind], seeds)
        title = f"{CURVE_NAMES[kind]}: {len(draws)} students"
        predictions[kind] = runs.train(title, y, weight, draws)
    rng = stream("plateau", runs.round_.seed, runs.round_.number)
    curves, replicated = {}, {}
    tests = int((runs.truth.y >= 0).sum())
    values = _values(
        predictions, of_kind, seeds, runs.truth, len(runs.ctx.config.labels), metric, rng
    )
    for kind, (point, drawn) in values.items():
        curves[kind], replicated[kind] = _curve(of_kind[kind], point, drawn, tests, rng)
    reference = "gold" if "gold" in curves else "merged"
    gap, below, instead = _held_against(curves, replicated, reference, tests)
    verdict, told = judged(curves, reference, gap, below, instead, metric)
    for kind in ("llm", reference):
        largest = [predictions[kind][f"{of_kind[kind][-1]}-{r}"] for r in range(seeds)]
        if one_class(np.stack(largest)):
            verdict, told = "cannot be told", NOTHING_TO_TELL.format(name=CURVE_NAMES[kind])
    return Plateau(
        runs.round_.number,
        runs.kind,
        metric,
        seeds,
        tests,
        curves,
        reference,
        gap,
        below,
        instead,
        verdict,
        told,
    )


def nested_sizes(n: int, wanted: int) -> tuple[int, ...]:
    """Sizes from about n / 16 to n, each a constant factor larger than the one before.

    Raises:
        StageError: too few texts for three sizes.
    """
    smallest = max(n / 16, min(SMALLEST, n / 4))
    sizes = tuple(sorted({round(x) for x in np.geomspace(smallest, n, wanted)} - {0}))
    if len(sizes) < 3 or n < 2 * SMALLEST:
        raise StageError(f"{n} labelled texts are too few for a learning curve.")
    return sizes


def _draws(seed: int, used: IntArray, sizes: Sequence[int], seeds: int) -> dict[str, Draws]:
    draws = {}
    for r in range(seeds):
        order = stream("plateau draws", seed, r).permutation(used)
        for size in sizes:
            rows = np.sort(order[:size])  # the whole set trains like the round's own students
            draws[f"{size}-{r}"] = Draws(seed + r, seed + r, np.asarray(rows, dtype=np.int64))
    return draws


def _values(
    predictions: Mapping[str, Mapping[str, IntArray]],
    sizes: Mapping[str, Sequence[int]],
    seeds: int,
    truth: Truth,
    k: int,
    metric: CurveMetric,
    rng: np.random.Generator,
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """By kind, the metric of (seeds, sizes), and of every bootstrap replicate of the texts."""
    known = truth.y >= 0
    base = truth.weight[known] / truth.weight[known].mean()
    weights = np.concatenate([base[None, :], *replicates(base, BOOTSTRAP, rng)])
    values = {}
    for kind, runs in predictions.items():
        cells = np.empty((len(weights), seeds, len(sizes[kind])))
        for i, size in enumerate(sizes[kind]):
            for r in range(seeds):
                sums = item_sums(runs[f"{size}-{r}"][None, known], truth.y[known], k)
                cells[:, r, i] = metrics_of(sums, weights, 1)[metric]
        values[kind] = cells[0], cells[1:]
    return values


def _curve(
    sizes: Sequence[int],
    point: FloatArray,
    drawn: FloatArray,
    tests: int,
    rng: np.random.Generator,
) -> tuple[Curve, Curves]:
    """The curve through the seeds' means, and its replicates.

    Args:
        sizes: (m,).
        point: (seeds, m).
        drawn: (replicates, seeds, m).
        tests: texts that the metric is measured on.
        rng: draws the seeds' spread: nested sets deviate together, so a seed's deviations at all
            sizes share one draw.
    """
    seeds = len(point)
    away = (point - point.mean(0)) / np.sqrt(seeds * (seeds - 1))
    draws = rng.standard_normal((len(drawn), seeds))
    heavy = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, len(drawn)))
    means = drawn.mean(1) + (draws @ away) * heavy[:, None]
    at = np.asarray(sizes, dtype=np.float64)
    fitted, replicated = fit_curves(at, point.mean(0)), fit_curves(at, np.clip(means, 0.0, 1.0))
    shown_at = np.geomspace(sizes[0], 4 * sizes[-1], 25)
    n = float(sizes[-1])
    curve = Curve(
        sizes=tuple(int(s) for s in sizes),
        points=tuple(_metric(float(v), means[:, i], tests) for i, v in enumerate(point.mean(0))),
        asymptote=_metric(float(fitted.a[0]), replicated.a, tests),
        doubling=_metric(
            float((fitted.at(2 * n) - fitted.at(n))[0]),
            replicated.at(2 * n) - replicated.at(n),
            tests,
            difference=True,
        ),
        exponent=float(fitted.c[0]),
        shown_at=tuple(float(x) for x in shown_at),
        fitted=tuple(_metric(float(fitted.at(x)[0]), replicated.at(x), tests) for x in shown_at),
    )
    return curve, replicated


def _held_against(
    curves: Mapping[str, Curve], replicated: Mapping[str, Curves], reference: str, tests: int
) -> tuple[Metric, Metric, Metric]:
    """See ``gap``, ``below`` and ``instead`` of ``Plateau``."""
    ours, llm = replicated[reference], replicated["llm"]
    end = curves[reference].asymptote.value
    gap = end - curves["llm"].asymptote.value
    sizes = {kind: float(curves[kind].sizes[-1]) for kind in (reference, "llm")}
    levels = {
        kind: np.interp(sizes[kind], curves[kind].shown_at, [m.value for m in curves[kind].fitted])
        for kind in sizes
    }
    return (
        _metric(gap, ours.a - llm.a, tests, difference=True),
        _metric(gap / end, 1 - llm.a / ours.a, tests, difference=True),
        _metric(
            float(levels[reference] - levels["llm"]),
            ours.at(sizes[reference]) - llm.at(sizes["llm"]),
            tests,
            difference=True,
        ),
    )


def judged(
    curves: Mapping[str, Curve],
    reference: str,
    gap: Metric,
    below: Metric,
    instead: Metric,
    metric: CurveMetric,
) -> tuple[Verdict, str]:
    """Whether more LLM labels will help, and the sentence that says so.

    They will where twice as many surely add a point or more. They will not where even endlessly
    many stay below the reference's asymptote, or where twice as many surely add less than the
    reference's labels do for the texts that there are.
    """
    llm, name = curves["llm"], CURVE_NAMES[reference]
    of = METRICS[metric].title
    gains = (
        f"twice as many would add {points(llm.doubling)} to {of}, {name} for the same texts"
        f" {points(instead)}"
    )
    known = llm.told and curves[reference].told
    ends = (
        f"they level off at {times_100(llm.asymptote)}, {name} at"
        f" {times_100(curves[reference].asymptote)}"
        if known
        else f"where they level off is uncertain by more than {100 * WIDE:.0f} points"
    )
    if llm.doubling.low >= ENOUGH:
        return "will help", f"More LLM labels will help: {gains}; {ends}."
    if known and gap.low > 0:
        return (
            "will not help",
            f"More LLM labels will not help: {100 * below.value:.0f} %"
            f" ({100 * below.low:.0f} to {100 * below.high:.0f}) below the asymptote of {name};"
            f" {ends}; {gains}.",
        )
    if llm.doubling.high < instead.low:
        return "will not help", f"More LLM labels will not help much: {gains}; {ends}."
    return (
        "cannot be told",
        f"It is not known whether more LLM labels will help: {gains}; {ends}.",
    )


def _metric(value: float, drawn: FloatArray, n: int, *, difference: bool = False) -> Metric:
    """A value with the interval of its replicates, over n test texts."""
    low, high = map(float, np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5]))
    return Metric(value, *with_width(low, high, n, difference=difference))


@dataclass(frozen=True)
class Curves:
    """Fitted curves of r replicates.

    Attributes:
        a: (r,) asymptotes, at most 1.
        b: (r,) >= 0.
        c: (r,) > 0.
    """

    a: FloatArray
    b: FloatArray
    c: FloatArray

    def at(self, n: float) -> FloatArray:
        """(r,) values at n labels."""
        return np.asarray(self.a - self.b * n**-self.c)


def fit_curves(sizes: FloatArray, values: FloatArray) -> Curves:
    """Least squares under 0 <= b and a <= 1, exact in a and b, over a grid of c.

    A curve that does not rise has b = 0; then a is its mean and c means nothing.

    Args:
        sizes: (m,) numbers of labels, > 0, m >= 3.
        values: (r, m) a metric in [0, 1] at each size.
    Raises:
        ValueError: fewer than three different sizes, or shapes that do not fit.
    Source: Figueroa et al. 2012, Predicting sample size required for classification performance
        (the inverse power law).
    """
    sizes, values = np.asarray(sizes, float), np.atleast_2d(np.asarray(values, float))
    if sizes.ndim != 1 or values.shape[1:] != sizes.shape or len(np.unique(sizes)) < 3:
        raise ValueError(
            f"a curve needs three different sizes and a value at each, got {sizes.shape} and"
            f" {values.shape}"
        )
    r = len(values)
    best: FloatArray = np.full(r, np.inf)
    a: FloatArray = np.empty(r)
    b, c = a, a
    mean = values.mean(1)
    for power in EXPONENTS:
        x = sizes**-power
        away = x - x.mean()
        slope: FloatArray = np.maximum(-(values - mean[:, None]) @ away / (away @ away), 0.0)
        end: FloatArray = mean + slope * x.mean()
        over = end > 1  # the best curve that ends at 1
        slope = np.where(over, np.maximum((1 - values) @ x / (x @ x), 0.0), slope)
        end = np.where(over, 1.0, end)
        loss = ((values - end[:, None] + slope[:, None] * x) ** 2).sum(1)
        better = loss < best - 1e-15
        best = np.where(better, loss, best)
        a, b, c = (np.where(better, new, old) for new, old in ((end, a), (slope, b), (power, c)))
    return Curves(a, b, c)
