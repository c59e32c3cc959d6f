"""Labels that people gave elsewhere, taken as gold: which ones, and why not the others."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from loop.campaign.context import Context
from loop.campaign.tables import IMPORTED, STAGES, Gold, StoredText
from loop.errors import counted
from loop.people.forgotten import Forgotten
from loop.ports import GivenLabel, item_id, normalise

SHOWN_REASONS, SHOWN_CHARS = 8, 90
STRANGE = "no text of the campaign"


@dataclass
class Import:
    """What became of the texts of an export; the numbers add up to ``texts``.

    Attributes:
        column: where the export's texts are; empty where none is the campaign's.
        texts: different texts in the export.
        new, changed, same: texts whose label was taken: gold that was not there, that replaces an
            earlier import's, that an earlier import brought already.
        not_taken: reason -> texts, in words.
        answers: reason -> answers that hold no label.
        examples: reason -> a row of the export.
        labels: label -> texts that have it as imported gold.
    """

    source: str
    tool: str
    column: str = ""
    texts: int = 0
    new: int = 0
    changed: int = 0
    same: int = 0
    not_taken: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    @property
    def taken(self) -> int:
        """Texts whose label was taken, now or before."""
        return self.new + self.changed + self.same

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source,
            "tool": self.tool,
            "text_column": self.column,
            "texts": self.texts,
            "taken": self.taken,
            "new": self.new,
            "changed": self.changed,
            "same": self.same,
            "labels": dict(self.labels),
            "not_taken": dict(self.not_taken),
            "answers_without_label": dict(self.answers),
        }

    def lines(self) -> list[str]:
        """For people to read."""
        lines = [
            f"{self.source} ({self.tool}): {counted(self.texts, 'text')}; the labels"
            f" of {self.taken} are gold: {self.new} new, {self.changed} changed, {self.same} taken"
            " before."
        ]
        if self.labels:
            shares = ", ".join(f"{name} {n}" for name, n in self.labels.most_common())
            lines.append(f"Gold of this import: {shares}.")
        if self.not_taken:
            total = self.not_taken.total()
            lines.append(f"Not taken: {counted(total, 'text')}: {self._reasons(self.not_taken)}.")
            where = self.column and f"the texts were taken from the column {self.column!r}; "
            if self.not_taken[STRANGE]:
                lines.append(
                    "Texts are the campaign's where they are the same but for white space"
                    f" and what nobody sees; {where}--text-column names another column."
                )
        if self.answers:
            total = self.answers.total()
            lines.append(f"Answers without a label: {total}: {self._reasons(self.answers)}.")
        return lines

    def _reasons(self, counts: Counter[str]) -> str:
        shown = [
            f"{reason} {n} (first in row {self.examples[reason]})"
            for reason, n in counts.most_common(SHOWN_REASONS)
        ]
        rest = sum(n for _, n in counts.most_common()[SHOWN_REASONS:])
        return ", ".join(shown) + (f", others {rest}" if rest else "")


def import_labels(ctx: Context, source: str, tool: str, answers: Sequence[GivenLabel]) -> Import:
    """Takes labels that people gave elsewhere as gold of the campaign's texts.

    A text takes the label that most people gave it, of each person the newest; where as many people
    gave another one, it takes none. What people of the campaign decided stays. The same answers
    taken again change nothing.

    Args:
        source: file name or project that the answers are from.
        tool: which tool wrote it, in words.
        answers: one by one.
    """
    items = {item.id: item for item in ctx.store.stored_texts(ctx.name)}
    by_text = {item_id(ctx.name, item.text): item for item in items.values()}
    result = Import(source, tool)
    ranked = _text_columns(ctx.name, answers, by_text)
    result.column = next(iter(ranked), "")
    by_item: dict[str, list[GivenLabel]] = defaultdict(list)
    strange: dict[str, int] = {}
    for answer in answers:
        if answer.label is None:
            _note(result.answers, result, answer.problem, answer.row)
        text = next((answer.texts[name] for name in ranked if name in answer.texts), "")
        text = text or next(iter(answer.texts.values()), "")
        item = by_text.get(item_id(ctx.name, text))
        if item is None:
            strange.setdefault(normalise(text), answer.row)
        else:
            by_item[item.id].append(answer)
    result.texts = len(by_item) + len(strange)
    for row in strange.values():
        _note(result.not_taken, result, STRANGE, row)
    gold = ctx.store.gold(ctx.name)
    taken: dict[str, tuple[str, float, list[GivenLabel]]] = {}
    for key, given in by_item.items():
        reason, label, share = _decision(items[key], given)
        old = gold.get(key)
        if not reason and old is not None and old.how != IMPORTED:
            same = old.label == label
            reason = f"people of the campaign decided {'the same' if same else 'otherwise'}"
        if reason:
            _note(result.not_taken, result, reason, given[0].row)
            continue
        result.labels[label] += 1
        if old is not None and (old.label, old.confidence) == (label, share):
            result.same += 1
            continue
        result.new += old is None
        result.changed += old is not None
        taken[key] = label, share, given
    if taken:
        _store(ctx, result, taken)
    return result


def _text_columns(
    campaign: str, answers: Iterable[GivenLabel], by_text: dict[str, StoredText]
) -> list[str]:
    """The columns that hold texts of the campaign, the one that holds most of them first.

    A row's text is in the first of them that the row has: another of its cells, a comment or a
    label, may well be the same as some short text.
    """
    found: Counter[str] = Counter()
    for answer in answers:
        found.update(n for n, text in answer.texts.items() if item_id(campaign, text) in by_text)
    return [name for name, _ in found.most_common()]


def _note(counts: Counter[str], result: Import, reason: str, row: int) -> None:
    reason = reason[:SHOWN_CHARS]
    counts[reason] += 1
    result.examples.setdefault(reason, row)


def _decision(item: StoredText, given: Sequence[GivenLabel]) -> tuple[str, str, float]:
    """Why no label is taken, or empty; the label; and the share of the people who gave it."""
    if item.split != "pool":
        kind = {"test": "test text", "dev": "text of the prompt's examples"}.get(
            item.split, "other"
        )
        return f"{kind}: its label belongs into texts.gold_column", "", 0.0
    by_person: dict[str, list[GivenLabel]] = defaultdict(list)
    for number, answer in enumerate(given):
        if answer.label is not None:  # nobody knows who: each is another person
            by_person[answer.person or f"\0{number}"].append(answer)
    if not by_person:
        return "no answer with a label", "", 0.0
    votes: Counter[str] = Counter()
    for theirs in by_person.values():
        if (newest := _newest(theirs)) is None:
            return "one person gave several labels, at times that cannot be read", "", 0.0
        votes[newest] += 1
    (label, n), *rest = votes.most_common()
    if rest and rest[0][1] == n:
        return "people disagree", "", 0.0
    return "", label, n / votes.total()


def _newest(answers: Sequence[GivenLabel]) -> str | None:
    """A person's newest label, without any times the last one; None where nobody can tell."""
    if len({answer.label for answer in answers}) == 1 or not any(a.at for a in answers):
        return answers[-1].label
    times = [_seconds(answer.at) for answer in answers]
    if any(math.isnan(time) for time in times):
        return None
    return answers[max(range(len(answers)), key=lambda i: (times[i], i))].label


def _seconds(at: str) -> float:
    """A time as tools write it, ISO 8601 or seconds since 1970; NaN for anything else.

    Days such as 9/2/2026 are not read: they begin with the month in one country, with the day in
    another.
    """
    try:
        return float(at)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(at.strip())
    except ValueError:
        return math.nan
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _last_chosen(ctx: Context) -> int:
    """Number of the last round that has chosen its texts, without what is imported now; or 0."""
    past = [r for r in ctx.store.rounds(ctx.name) if STAGES.index(r.stage) > STAGES.index("select")]
    return past[-1].number if past else 0


def _store(
    ctx: Context, result: Import, taken: dict[str, tuple[str, float, list[GivenLabel]]]
) -> None:
    held, number = ctx.store.gold(ctx.name), _last_chosen(ctx)
    with ctx.store.transaction() as session:
        forgotten = Forgotten.of(ctx.store, session, ctx.name)
        persons = {a.person for _, _, given in taken.values() for a in given}
        named = {person: forgotten.pseudonym(person) or person for person in persons}
        gold = [
            Gold(
                item_id=key,
                label=label,
                how=IMPORTED,
                confidence=share,
                round_number=held[key].round_number if key in held else number,
            )
            for key, (label, share, _) in taken.items()
        ]
        ctx.store.put_gold(session, gold)
        ctx.store.log(
            session,
            ctx.name,
            "import-labels",
            "labels imported",
            source=result.source,
            tool=result.tool,
            answers={
                key: [[a.row, named[a.person], a.label, a.problem, a.at] for a in given]
                for key, (_, _, given) in taken.items()
            },
        )
