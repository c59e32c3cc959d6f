"""Labels that people gave elsewhere, taken as gold: which ones, and why not the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loop.campaign.context import Context
from loop.campaign.tables import IMPORTED, STAGES, Gold, StoredText
from loop.people.forgotten import Forgotten
from loop.ports import GivenLabel, item_id, normalise

SHOWN_REASONS, SHOWN_CHARS = 8, 90


@dataclass
class Import:
    """What became of the texts of an export; the numbers add up to ``texts``.

    Attributes:
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
            f"{self.source} ({self.tool}): {self.texts} text{'s' * (self.texts != 1)}; the labels"
            f" of {self.taken} are gold: {self.new} new, {self.changed} changed, {self.same} taken"
            " before."
        ]
        if self.labels:
            shares = ", ".join(f"{name} {n}" for name, n in self.labels.most_common())
            lines.append(f"Gold of this import: {shares}.")
        if self.not_taken:
            total = self.not_taken.total()
            lines.append(f"Not taken: {total} texts: {self._reasons(self.not_taken)}.")
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
    by_item: dict[str, list[GivenLabel]] = defaultdict(list)
    strange: dict[str, int] = {}
    for answer in answers:
        if answer.label is None:
            _note(result.answers, result, answer.problem, answer.row)
        item = _item_of(answer, ctx.name, by_text)
        if item is None:
            strange.setdefault(normalise((*answer.texts, "")[0]), answer.row)
        else:
            by_item[item.id].append(answer)
    result.texts = len(by_item) + len(strange)
    for row in strange.values():
        _note(result.not_taken, result, "no text of the campaign", row)
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


def _item_of(
    answer: GivenLabel, campaign: str, by_text: dict[str, StoredText]
) -> StoredText | None:
    for text in answer.texts:
        if (item := by_text.get(item_id(campaign, text))) is not None:
            return item
    return None


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
    newest: dict[str, GivenLabel] = {}
    for number, answer in enumerate(given):
        if answer.label is None:
            continue
        who = answer.person or f"\0{number}"  # nobody knows who: each is another person
        if who not in newest or answer.at >= newest[who].at:
            newest[who] = answer
    votes = Counter(str(answer.label) for answer in newest.values())
    if not votes:
        return "no answer with a label", "", 0.0
    (label, n), *rest = votes.most_common()
    if rest and rest[0][1] == n:
        return "people disagree", "", 0.0
    return "", label, n / votes.total()


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
