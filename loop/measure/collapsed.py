"""Stored figures without the stability of students that answer one class for everything.

Rounds that earlier versions measured say of such students that all seeds agree on 100 %. What reads
a stored round, reads it through ``measured_rounds``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from loop.campaign.metrics import AGREEMENT, ONE_CLASS, Metric, RoundMetrics, Stability
from loop.campaign.tables import Round

Kept = TypeVar("Kept")

REMEDY = (
    "Set student.lr to the rate that fits the encoder (`goldloop check` names it), raise"
    " student.epochs, or choose another student.encoder"
)
"""What to do where the students answer one class."""


def measured_rounds(rounds: Sequence[Round]) -> list[tuple[Round, RoundMetrics]]:
    """The rounds that are measured, oldest first, each with what it measured.

    Students that answer one class for everything have no stability in it, whatever was stored.
    """
    measured = [(round_, round_.metrics) for round_ in rounds if round_.metrics is not None]
    before = [None, *(metrics for _, metrics in measured)]
    return [
        (round_, without_agreement(metrics, earlier))
        for (round_, metrics), earlier in zip(measured, before, strict=False)
    ]


def without_agreement(metrics: RoundMetrics, before: RoundMetrics | None = None) -> RoundMetrics:
    """What a round measured, without the stability that is none.

    Args:
        before: of the round before, which ``previous`` compares with.
    """
    flat = {arm for arm, stability in metrics.arms.items() if _answers_one_class(stability)}
    earlier = before.arms.get("loop") if before is not None else None
    flat_before = earlier is not None and _answers_one_class(earlier)
    if not flat and not flat_before:
        return metrics
    nothing = Metric(math.nan, note=ONE_CLASS)

    def compared(reference: str) -> bool:
        other = flat_before if reference == "previous" else reference in flat
        return not other and "loop" not in flat

    return replace(
        metrics,
        arms={
            arm: stability
            if arm not in flat
            else replace(stability, alpha_k=nothing, ac1=nothing, p_uc=nothing, churn=nothing)
            for arm, stability in metrics.arms.items()
        },
        compared={
            reference: differences if compared(reference) else _less(differences)
            for reference, differences in metrics.compared.items()
        },
        recovered=_less(metrics.recovered)
        if flat & {"loop", "llm_only", "all_gold"}
        else metrics.recovered,
        frozen=None if "loop" in flat else metrics.frozen,
    )


ONE_CLASS_ALONE = (
    "Every text has the same label, and the students give it, so no stability can be shown. Add"
    " texts of the other labels, also to the test texts"
)


def learned_nothing(metrics: RoundMetrics) -> bool:
    """Whether the loop's students answer one class although there are others."""
    return collapsed_line(metrics) not in (None, ONE_CLASS_ALONE)


def collapsed_line(metrics: RoundMetrics) -> str | None:
    """One sentence on a measured round whose students answer one class, or None."""
    stability = metrics.arms.get("loop")
    if stability is None or not _answers_one_class(stability):
        return None
    if _one_class_alone(metrics, stability):
        return ONE_CLASS_ALONE
    return (
        "The students give every test text the same label, so no stability is shown: seeds that"
        f" have nothing to disagree about agree, whatever the labels are worth. {REMEDY}"
    )


def failed_seeds_line(metrics: RoundMetrics) -> str | None:
    """One sentence on seeds of a measured round that learned nothing, where others did, or None."""
    failed, students = metrics.learned_nothing, metrics.arms.get("loop")
    if not failed or students is None or _answers_one_class(students):
        return None
    several = len(failed) > 1
    return (
        f"{len(failed)} of {students.seeds} students learned nothing from their labels (seed"
        f"{'s' * several} {', '.join(map(str, failed))}): accuracy and stability count"
        f" {'them' if several else 'it'} in and are lower for that. Raise student.epochs, or lower"
        " or raise student.lr to the rate that fits the encoder (`goldloop check` names it)"
    )


def _answers_one_class(stability: Stability) -> bool:
    """Whether all seeds give every text the same class: alpha is undefined only then."""
    return stability.items > 1 and stability.seeds > 1 and not stability.alpha_k.known


def _one_class_alone(metrics: RoundMetrics, stability: Stability) -> bool:
    """Whether no other class is known: on the test texts, or else among those of the pool."""
    if (accuracy := stability.metric("accuracy")) is not None:
        return accuracy.value == 1.0
    quality = metrics.label_quality
    shares = [share for row in quality.confusion for share in row if share] if quality else []
    return len(shares) == 1 and quality is not None and quality.accuracy is not None


def _less(values: Mapping[str, Kept]) -> dict[str, Kept]:
    return {key: value for key, value in values.items() if key not in AGREEMENT}
