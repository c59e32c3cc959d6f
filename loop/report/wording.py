"""How the report words its figures: names, percentages, intervals."""

from __future__ import annotations

from collections.abc import Sequence

from loop.campaign.metrics import FrozenAgreement, Metric, MetricInfo, Share
from loop.report.contents import MISSING, ReportRow

REASONS = {
    "suspect": "suspects",
    "audit": "random texts",
    "coverage": "drawn at random instead of suspects",
}

SENT_AS = {
    "suspect": "sent as a suspect",
    "audit": "from the random sample",
    "coverage": "drawn at random",
}
"""Why one text was sent."""

RANDOM_PARTS = {
    "init": "first weights of the head",
    "order": "order of the texts, and dropout",
    "mending": "folds and students that repair the LLM's labels",
    "sample": "which texts were drawn, with their labels",
}
"""What a seed draws, and what is drawn before it."""
PARTS_TOGETHER = {
    "seed": "first weights and order together: what each round's seeds differ in",
    "repetition": "first weights, order and repair together: the round again, from the same gold",
    "all": "everything",
}

SAME_EVERYWHERE = (
    "Every student gives every test text the same label, so that there is nothing to compare."
    " This is not stability: the students have not learned to tell the labels apart."
)
"""What the variance says of students that answer one class."""

NOT_SHOWN = "not shown"
"""Of a difference whose interval contains zero: chance alone may have made it."""
STANDS_IN = 0.1
"""Share of texts on which the frozen student may differ more often than a seed does."""

CURVE_NAMES = {"llm": "LLM labels", "merged": "corrected labels", "gold": "gold labels"}


def verdict(row: ReportRow) -> str:
    """Whether a round is shown to be more stable than the one before; empty without one."""
    d = row.against.get("previous", {}).get("alpha_k")
    if d is None or not d.has_interval:
        return ""
    if d.low > 0:
        return "more stable"
    return "less stable" if d.high < 0 else "not shown to be more stable"


def in_words(difference: Metric | None, *, higher_is_better: bool = True) -> str:
    """``better`` or ``worse`` where the whole interval says so, else ``not shown``."""
    if difference is None or not difference.has_interval:
        return NOT_SHOWN
    if difference.low > 0 or difference.high < 0:
        return "better" if (difference.low > 0) == higher_is_better else "worse"
    return NOT_SHOWN


def percent(value: float | None, *, sign: bool = False) -> str:
    """The value times 100 with one decimal, or a dash; a minus is a minus sign."""
    if value is None or value != value:
        return MISSING
    shown = f"{100 * value:{'+' if sign else ''}.1f}"
    shown = shown.replace("-", "\N{MINUS SIGN}")
    return "0.0" if shown == "\N{MINUS SIGN}0.0" else shown


def interval(metric: Metric | None) -> str:
    """``58.0–64.0``, or nothing."""
    if metric is None or not metric.has_interval:
        return ""
    ends = percent(metric.low), percent(metric.high)
    # a dash after or before a minus sign reads like one
    return (" to " if "\N{MINUS SIGN}" in "".join(ends) else "–").join(ends)


def difference(metric: Metric | None) -> str:
    """``+1.2 (−0.5 to +3.0)``, or a dash."""
    if metric is None:
        return MISSING
    ends = percent(metric.low, sign=True), percent(metric.high, sign=True)
    within = f" ({ends[0]} to {ends[1]})" if metric.has_interval else ""
    return percent(metric.value, sign=True) + within


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def rounded(metric: Metric, unit: str = "") -> str:
    """``278 texts (55 to 535)``."""
    return f"{count(metric.value)}{unit} ({count(metric.low)} to {count(metric.high)})"


def work(hours: Metric) -> str:
    """``5 hours of work (1 to 10)``, in minutes where it is little."""
    factor, unit = (1.0, "hours") if hours.high >= 2 else (60.0, "minutes")
    scaled = Metric(factor * hours.value, factor * hours.low, factor * hours.high)
    return rounded(scaled, f" {unit[:-1] if count(scaled.value) == '1' else unit} of work")


def with_interval(metric: Metric | None) -> str:
    """``76.6 (73.0–80.5)``, the value alone, or nothing."""
    if metric is None or not metric.known:
        return ""
    within = interval(metric)
    return percent(metric.value) + (f" ({within})" if within else "")


def with_spread(row: ReportRow, info: MetricInfo) -> str:
    """``71.2`` or ``71.2 ±1.3``."""
    metric = row.metrics.get(info.key)
    if metric is None:
        return MISSING
    spread = row.metrics.get(info.spread) if info.spread else None
    return percent(metric.value) + (f" ±{percent(spread.value)}" if spread else "")


def by_reason(row: ReportRow) -> list[tuple[str, Share]]:
    """Suspects first, then the others in the order of ``REASONS``."""
    order = {reason: i for i, reason in enumerate(REASONS)}
    return sorted(row.pushed_wrong.items(), key=lambda pair: order.get(pair[0], len(order)))


def agreement_sentence(agreed: FrozenAgreement, failed: Sequence[int]) -> str:
    """Whether the frozen student may stand in; or nothing.

    Args:
        failed: seeds of the full student that learned nothing from their labels.
    """
    same, short, accuracy = agreed.same, agreed.short, agreed.accuracy
    if not same.known or not short.has_interval:
        return ""
    right = ""
    if accuracy is not None and accuracy.full is not None and accuracy.frozen is not None:
        right = f"; accuracy {100 * accuracy.frozen:.1f} against {100 * accuracy.full:.1f}"
    beyond_chance = agreed.kappa.low if agreed.kappa.has_interval else agreed.kappa.value
    if failed:
        seeds = "a seed" if len(failed) == 1 else f"{len(failed)} seeds"
        verdict = f"{seeds} of the full student learned nothing, so this says no more"
    elif not beyond_chance > 0:
        verdict = "this may be chance, so it does not say whether the frozen one may replace it"
    elif short.low <= 0 and short.high <= STANDS_IN:
        verdict = "as often as two seeds of the full student agree: you may use it to explore"
    elif short.low <= 0:
        verdict = (
            f"between {abs(100 * short.low):.1f} points more often and {100 * short.high:.1f}"
            " points less often than two seeds of the full student agree: too few test texts to"
            " say whether the frozen one may replace it"
        )
    else:
        verdict = (
            f"{100 * short.value:.1f} points less often than two seeds of the full student agree"
            f" ({100 * short.low:.1f} to {100 * short.high:.1f}): use it to rank and explore, not"
            " to report"
        )
    return (
        f"The frozen student gives the same label as the full one to {100 * same.value:.1f} % of"
        f" the test texts ({100 * same.low:.1f} to {100 * same.high:.1f}){right}; {verdict}."
    )
