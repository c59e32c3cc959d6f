"""Raw answers -> gold labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loop.store import Annotation


@dataclass(frozen=True)
class Decision:
    """What the answers to one item amount to.

    Attributes:
        label: the gold label, or None if there is none.
        how: ``single``, ``agreed``, ``majority``, or why not: ``conflict``, ``skipped``,
            ``unsure`` or ``unreadable``.
        confidence: share of usable answers that chose the label, in (0, 1]; 0 without a label.
        answers: people who answered, skips and unsure answers among them.
    """

    label: str | None
    how: str
    confidence: float
    answers: int


def latest_per_person(annotations: Iterable[Annotation]) -> list[Annotation]:
    """The newest current answer of each person to one item, skips included."""
    newest: dict[str, Annotation] = {}
    for a in annotations:
        if a.annotator not in newest or a.updated_at >= newest[a.annotator].updated_at:
            newest[a.annotator] = a
    return list(newest.values())


def decide(annotations: Sequence[Annotation]) -> Decision:
    """Majority of the newest answer of each person; a tie is a conflict, never a coin toss."""
    answers = latest_per_person(annotations)
    labels = Counter(a.label for a in answers if a.label is not None)
    n = len(answers)
    if not labels:
        if any(a.problem == "unsure" for a in answers):
            return Decision(None, "unsure", 0.0, n)
        if any(a.skipped for a in answers):
            return Decision(None, "skipped", 0.0, n)
        return Decision(None, "unreadable", 0.0, n)
    (label, votes), *rest = labels.most_common()
    if rest and rest[0][1] == votes:
        return Decision(None, "conflict", 0.0, n)
    total = labels.total()
    how = "single" if total == 1 else "agreed" if votes == total else "majority"
    return Decision(label, how, votes / total, n)
