"""The codebook as it grows: clear examples, where people differ, what no label fits, and notes.

It is written for those who describe the labels: to them, texts that nobody could place are the
news, because a description is unclear there or a label is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Annotation
from loop.deliver.model_card import escape
from loop.errors import StageError, counted
from loop.people.gold import latest_per_person

EXAMPLES = 3
SHOWN_CHARS = 300
PAGE_EXAMPLES = 2  # of each label, where people label
PAGE_CHARS = 160


def codebook(config: Config, store: Store) -> str:
    """The codebook in Markdown.

    Raises:
        StageError: nobody has answered anything yet.
    """
    name = config.campaign.name
    given_answers = store.annotations(name)
    gold = {item: decision.label for item, decision in store.gold(name).items()}
    texts = store.texts({a.item_id for a in given_answers} | set(gold))
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for answer in given_answers:
        if answer.item_id in texts:
            by_item[answer.item_id].append(answer)
    answers = {item: latest_per_person(given) for item, given in by_item.items()}
    if not answers:
        raise StageError("Nobody has answered yet; the codebook grows out of people's answers.")
    rounds = {r.id: r for r in store.rounds(name)}
    llm = {
        item: score.llm_label
        for round_id in rounds
        for item, score in store.scores(round_id or 0, list(gold)).items()
        if score.llm_label is not None
    }
    parts = [f"# Codebook of {escape(name)}", escape(config.campaign.task)]
    for label in config.labels:
        parts.append(f"## {escape(label.name)}\n\n{escape(label.description) or 'Not described.'}")
        clear = [
            item
            for item in sorted(gold)
            if gold[item] == label.name and _agreed(answers.get(item, ())) and item in texts
        ]
        mine = sum(answer == label.name for answer in gold.values())
        parts.append(
            f"{counted(mine, 'text')}. For example:" if clear else f"{counted(mine, 'text')}."
        )
        parts.append(_listed((texts[item], "") for item in clear[:EXAMPLES]))
    parts.append("## Where people differ")
    parts += _pairs(texts, _between_people(answers), "{} or {}")
    parts.append("## Where people overrule the LLM")
    overruled = {i: (llm[i], gold[i]) for i in sorted(gold) if i in llm and llm[i] != gold[i]}
    parts += _pairs(texts, overruled, "{} by the LLM, {} by people")
    unsure = [i for i in sorted(answers) if any(a.problem == "unsure" for a in answers[i])]
    parts.append("## Texts that somebody could not place")
    parts.append(_listed((texts[i], _notes(answers[i])) for i in unsure) or "None.")
    noted = [i for i in sorted(answers) if i not in unsure and _notes(answers[i])]
    parts.append("## Other notes")
    parts.append(_listed((texts[i], _notes(answers[i])) for i in noted) or "None.")
    return "\n\n".join(part for part in parts if part) + "\n"


def clear_examples(config: Config, store: Store) -> dict[str, list[str]]:
    """For each label, the beginnings of texts of finished rounds on which nobody disagreed.

    They are for the page where people label, so nothing that people may still be asked stands
    among them: no open text, and no text that may be sent again as a hidden check.

    Returns:
        label name -> up to ``PAGE_EXAMPLES`` texts, those of several people first.
    """
    name = config.campaign.name
    finished = {r.number for r in store.rounds(name) if r.stage == "done"}
    if not finished:
        return {}
    wanted = ("single",) if config.people.check_frac else ("agreed", "single")
    unfit = {check.item_id for check in store.checks(name)}
    unfit |= {r.item_id for r in store.reviews(name) if r.closed_at is None}
    chosen: dict[str, list[str]] = defaultdict(list)
    gold = store.gold(name).items()
    for item, known in sorted(gold, key=lambda entry: (entry[1].how != "agreed", entry[0])):
        fit = known.how in wanted and known.round_number in finished and item not in unfit
        if fit and len(chosen[known.label]) < PAGE_EXAMPLES:
            chosen[known.label].append(item)
    texts = store.texts([item for items in chosen.values() for item in items])
    return {
        label: [_beginning(texts[item], PAGE_CHARS) for item in items]
        for label, items in chosen.items()
    }


def _agreed(answers: Sequence[Annotation]) -> bool:
    return len({a.label for a in answers}) == 1


def _notes(answers: Sequence[Annotation]) -> str:
    return "; ".join(a.note.strip() for a in answers if a.note.strip())


def _between_people(answers: Mapping[str, Sequence[Annotation]]) -> dict[str, tuple[str, ...]]:
    """The labels of each text that got more than one."""
    said = {item: sorted({a.label for a in given if a.label}) for item, given in answers.items()}
    return {item: tuple(labels) for item, labels in sorted(said.items()) if len(labels) > 1}


def _pairs(
    texts: Mapping[str, str], answers: Mapping[str, tuple[str, ...]], told: str
) -> list[str]:
    """For every pair of labels, most frequent first, how many texts, and some of them."""
    by_pair: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item, labels in answers.items():
        for i, first in enumerate(labels):
            for second in labels[i + 1 :]:
                by_pair[first, second].append(item)
    parts = []
    for pair, items in sorted(by_pair.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        names = told.format(*(f"**{escape(label)}**" for label in pair))
        parts.append(f"{names}: {counted(len(items), 'text')}.")
        parts.append(_listed((texts[item], "") for item in items[:EXAMPLES]))
    return parts or ["Nowhere."]


def _listed(lines: Iterable[tuple[str, str]]) -> str:
    """Texts as a list, each with what was noted of it."""
    return "\n".join(
        f"- {_short(text)}" + (f"\n  - note: {_short(note)}" if note else "")
        for text, note in lines
    )


def _short(text: str) -> str:
    return escape(_beginning(text, SHOWN_CHARS))


def _beginning(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[: chars - 1]}…"
