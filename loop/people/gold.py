"""Raw answers -> gold labels, and how many people shall still be asked."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loop.campaign.config import Panel
from loop.campaign.tables import Annotation
from strategies.alpha import alpha

LABELLED = frozenset({"single", "agreed", "majority", "dawid-skene", "adjudicated"})
"""How a text gets a gold label from people's answers, see ``Decision``."""
MIN_POSTERIOR = 0.5  # Dawid–Skene: below it no class is likelier than all others together


@dataclass(frozen=True)
class Decision:
    """What the answers to one item amount to.

    Attributes:
        label: the gold label, or None if there is none.
        how: ``single``, ``agreed``, ``majority``, ``dawid-skene``, ``adjudicated``, or why not:
            ``conflict``, ``skipped``, ``unsure`` or ``unreadable``.
        confidence: share of usable answers that chose the label, or its probability under the
            model of people's errors, in (0, 1]; 0 without a label.
        answers: people who answered, skips and unsure answers among them.
    """

    label: str | None
    how: str
    confidence: float
    answers: int


def latest_per_person(annotations: Iterable[Annotation]) -> list[Annotation]:
    """The newest current answer of each person to one item, skips included.

    One that nobody can read says nothing, and so takes nothing back.
    """
    newest: dict[str, Annotation] = {}
    for a in annotations:
        other = newest.get(a.annotator)
        if other is None or _standing(a) >= _standing(other):
            newest[a.annotator] = a
    return list(newest.values())


def _standing(a: Annotation) -> tuple[bool, str]:
    return not a.unreadable, a.updated_at


def decide(annotations: Sequence[Annotation], adjudicator: str | None = None) -> Decision:
    """Majority of the newest answer of each person; a tie is a conflict, never a coin toss."""
    answers = latest_per_person(annotations)
    labels = Counter(a.label for a in answers if a.label is not None)
    n = len(answers)
    if (final := _final(answers, adjudicator)) is not None:
        return Decision(final, "adjudicated", 1.0, n)
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


def decide_all(
    by_item: Mapping[str, Sequence[Annotation]],
    labels: Sequence[str],
    panel: Panel,
    known: Mapping[str, str] | None = None,
) -> dict[str, Decision]:
    """A decision on every item; under Dawid and Skene's model they depend on each other.

    The model decides where people differ; where all agree it says how sure that is, and a single
    answer stays what it is.

    Args:
        known: label of each hidden check among the items, by which the model learns who errs; they
            get no decision.
    """
    checks = {i: label for i, label in (known or {}).items() if i in by_item and label in labels}
    decisions = {
        item: decide(answers, panel.adjudicator)
        for item, answers in by_item.items()
        if item not in checks
    }
    if panel.rule != "dawid-skene":
        return decisions
    from strategies.crowd import dawid_skene

    decided = [i for i, d in decisions.items() if d.how in ("agreed", "majority", "conflict")]
    if not decided:
        return decisions
    items = [*decided, *checks]
    people = sorted({a.annotator for i in items for a in by_item[i]})
    if len(people) < 2:
        return decisions
    table = answer_table(items, people, by_item, labels)
    truth = [-1] * len(decided) + [list(labels).index(label) for label in checks.values()]
    fit = dawid_skene(table, len(labels), known=np.array(truth))
    for row, item in enumerate(decided):
        best = int(fit.posterior[row].argmax())
        sure = float(fit.posterior[row, best])
        n = decisions[item].answers
        if decisions[item].how == "agreed":  # no model knows better than all who were asked
            own = list(labels).index(str(decisions[item].label))
            decisions[item] = replace(decisions[item], confidence=float(fit.posterior[row, own]))
        elif sure < MIN_POSTERIOR:
            decisions[item] = Decision(None, "conflict", 0.0, n)
        else:
            decisions[item] = Decision(labels[best], "dawid-skene", sure, n)
    return decisions


def answer_table(
    items: Sequence[str],
    people: Sequence[str],
    by_item: Mapping[str, Sequence[Annotation]],
    labels: Sequence[str],
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(n, p) each person's newest label of each item, as an index; -1 where there is none."""
    column = {person: i for i, person in enumerate(people)}
    index = {label: i for i, label in enumerate(labels)}
    table = np.full((len(items), len(people)), -1, dtype=np.int64)
    for row, item in enumerate(items):
        for a in latest_per_person(by_item[item]):
            if a.label in index and a.annotator in column:
                table[row, column[a.annotator]] = index[a.label]
    return table


def wanted_answers(annotations: Sequence[Annotation], decision: Decision, panel: Panel) -> int:
    """How many people's answers one item wants, given those that are there.

    It is the number of answers that are there exactly where nobody needs to be asked any more.
    """
    answers = latest_per_person(annotations)
    n = len(answers)
    if decision.how == "adjudicated":
        return n
    if n < panel.first:
        return panel.first
    ranked = [votes for _, votes in Counter(a.label for a in answers if a.label).most_common()]
    lead = ranked[0] - (ranked[1] if len(ranked) > 1 else 0) if ranked else 0
    settled = lead > 0 if panel.rule == "ask-one-more" else lead > panel.last - n
    if ranked and not settled and n < panel.last:
        return n + 1
    if decision.how == "conflict" and panel.adjudicator is not None:
        asked = any(a.annotator == panel.adjudicator for a in answers)
        return n if asked else n + 1
    return n


def _final(answers: Iterable[Annotation], adjudicator: str | None) -> str | None:
    """The adjudicator's label, if they gave one."""
    if adjudicator is None:
        return None
    return next((a.label for a in answers if a.annotator == adjudicator and a.label), None)


def people_alpha(
    annotations: Sequence[Annotation], labels: Sequence[str], *, ordinal: bool
) -> float | None:
    """Krippendorff's alpha among people, or None without two answers that could differ.

    Args:
        annotations: all answers; of each person's answers to an item the newest counts.
        labels: names of the classes.
        ordinal: whether the classes are in order, so that near ones disagree less than far ones.
    """
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_item[annotation.item_id].append(annotation)
    index = {name: i for i, name in enumerate(labels)}
    counts = np.zeros((len(by_item), len(labels)), dtype=np.int64)
    for row, answers in enumerate(by_item.values()):
        for answer in latest_per_person(answers):
            if answer.label is not None:  # else they have taken it back
                counts[row, index[answer.label]] += 1
    agreement = alpha(counts, ordinal=ordinal)
    return None if math.isnan(agreement) else agreement
