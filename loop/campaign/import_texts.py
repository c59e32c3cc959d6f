"""Texts into the store: ids, splits, all in one transaction; and what the source has new later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from loop.campaign.config import Config, as_run
from loop.campaign.store import Store
from loop.campaign.tables import Item, StoredText
from loop.chance import unit_hash
from loop.errors import ConfigError, DataError, LoopError, counted, suggestion
from loop.ports import SourceText, bare_words, item_id, normalise

SPLITS = ("pool", "test", "dev")
OTHER_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "pool": "pool",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "development": "dev",
}
"""What others call splits, and what is meant; only to suggest."""
MIN_POOL = 10
SHOWN_SPLITS = 8
SHARED_FRAC = 0.1
"""Share of a campaign's texts that its source must still have before new ones are added."""


def import_texts(config: Config, store: Store, rows: Sequence[SourceText]) -> int:
    """Stores a campaign's texts with their splits; returns how many.

    Splits come from ``texts.split_column`` (pool, test, dev; train counts as pool), else test is
    drawn by a hash among the texts with a gold label, or among all where no gold is known, and dev
    (examples for the prompt) among the rest of those with gold.

    Raises:
        DataError: an unknown split, no text left to test on, or a pool of fewer than 10 texts.
    """
    name = config.campaign.name
    splits = splits_of(config, rows)
    counts = {str(split): splits.count(split) for split in SPLITS}
    without_gold = sum(s == "pool" and not r.gold for r, s in zip(rows, splits, strict=True))
    _check_fit(config, counts, without_gold)
    with store.transaction() as session:
        store.insert(session, Item, _item_rows(name, rows, splits, first_row=0))
        store.log(session, name, "import", "texts imported", **counts)
    return len(rows)


def import_new_texts(
    config: Config, store: Store, rows: Sequence[SourceText], *, seed: int, writes: bool = True
) -> list[str]:
    """Adds the texts that a campaign's source has new; returns what there is to say.

    Texts that are in keep their split, their place and what was paid for them, also where the
    source has them no more. Their known labels and other columns follow the source. A new text's
    split is that of ``texts.split_column``, else its hash's.

    Args:
        seed: that the campaign was begun with.
        writes: without it, only looks whether the source can be taken up.
    Raises:
        DataError: an unknown split, another split for a text that is in, or hardly a text of the
            campaign in the source any more.
        ConfigError: the texts do not go with the campaign file.
    """
    name = config.campaign.name
    source = config.texts.source
    stored = {item.id: item for item in store.stored_texts(name)}
    given = _by_id(name, stored, rows)
    there = {i: row for i, row in given.items() if i in stored}
    new = [row for i, row in given.items() if i not in stored]
    _refuse_others(config, len(stored), len(there), len(new))
    _check_splits(config, stored, there)
    splits = _new_splits(config, stored, new, seed)
    relabelled = [i for i, row in there.items() if row.gold != stored[i].known_label]
    altered = [i for i, row in there.items() if dict(row.meta) != stored[i].meta]
    present = [i.split for i in stored.values()]
    counts = {split: present.count(split) + splits.count(split) for split in SPLITS}
    known = {i: there[i].gold if i in there else item.known_label for i, item in stored.items()}
    without_gold = sum(item.split == "pool" and not known[i] for i, item in stored.items())
    without_gold += sum(s == "pool" and not r.gold for r, s in zip(new, splits, strict=True))
    _check_fit(config, counts, without_gold)
    added = {split: splits.count(split) for split in SPLITS}
    gone = len(stored) - len(there)
    if writes and (new or relabelled or altered):
        first_row = 1 + max(item.row for item in stored.values())
        with store.transaction() as session:
            store.insert(session, Item, _item_rows(name, new, splits, first_row=first_row))
            for i in {*relabelled, *altered}:
                store.update_item(session, i, there[i].gold, there[i].meta)
            store.log(
                session,
                name,
                "import",
                "source read again",
                added=added,
                gone=gone,
                relabelled=len(relabelled),
                altered=len(altered),
            )
    lines = []
    if new:
        lines.append(
            f"Imported {counted(len(new), 'new text')} of {source} ({added['pool']} to label,"
            f" {added['test']} to test on, {added['dev']} dev). The LLM is asked about no others."
        )
    if gone:
        lines.append(
            f"No longer in {source}: {counted(gone, 'text')}. The campaign keeps what it has."
        )
    if relabelled:
        lines.append(
            f"Known labels that have changed in {source} and are taken up:"
            f" {counted(len(relabelled), 'text')}."
        )
    if altered:
        lines.append(
            f"Other columns that have changed in {source} and are used from now on:"
            f" {counted(len(altered), 'text')}."
        )
    if stay := _read_otherwise(config, store, [(stored[i], there[i]) for i in altered]):
        lines.append(
            f"Labels of the LLM that have changed there too: {counted(stay, 'text')}. The labels"
            " that were read stay. To use the new ones, put them into columns of other names and"
            " name these in annotator.columns between two rounds."
        )
    return lines


def _read_otherwise(
    config: Config, store: Store, pairs: Sequence[tuple[StoredText, SourceText]]
) -> int:
    """Of texts in the store and in the source, how many have a recorded label that was another.

    What could not be read, and columns that the file did not name before, are read yet.
    """
    name, last = config.campaign.name, store.last_round(config.campaign.name)
    columns = [*config.annotator.columns, *(config.annotator.prob_columns or ())]
    if config.annotator.kind != "recorded" or last is None:
        return 0
    before = as_run(last.config).annotator
    if columns != [*before.columns, *(before.prob_columns or ())]:
        return 0
    unread = {row.item_id for row in store.unanswered(name, store.last_annotator(name) or "")}
    return sum(
        was.split == "pool"
        and was.id not in unread
        and any(now.meta.get(column) != was.meta.get(column) for column in columns)
        for was, now in pairs
    )


def _by_id(
    name: str, stored: Mapping[str, StoredText], rows: Sequence[SourceText]
) -> dict[str, SourceText]:
    """Rows by the ids that their texts have in the campaign, or would get."""
    # by text, as ids of texts that came in long ago may be of another normal form
    ids = {item_id(name, item.text): i for i, item in stored.items()}
    return {ids.get(key := item_id(name, row.text), key): row for row in rows}


def refuse_other_texts(config: Config, store: Store, rows: Sequence[SourceText]) -> None:
    """Refuses a source that is about something else than the campaign in the store.

    Raises:
        DataError: hardly a text of the campaign is in the source.
    """
    name = config.campaign.name
    stored = {item.id: item for item in store.stored_texts(name)}
    given = _by_id(name, stored, rows)
    there = len(given.keys() & stored.keys())
    _refuse_others(config, len(stored), there, len(given) - there)


def _refuse_others(config: Config, stored: int, there: int, new: int) -> None:
    if new and there < SHARED_FRAC * stored:
        raise DataError(
            f"{config.texts.source} has {new} texts that campaign {config.campaign.name!r} in the"
            f" store does not know, and only {there} of its {stored} texts: it looks like another"
            " set of texts, and every one would be paid for. Restore texts.source,"
            " texts.text_column, texts.format and texts.hf_split; add new texts to the old ones; or"
            " begin a new campaign with a campaign.name and a store.folder of its own. Nothing was"
            " spent."
        )


def near_twins_line(items: Sequence[StoredText]) -> str:
    """How many test texts stand among the others in nearly the same words; empty for none.

    Nearly the same are texts that differ in case, punctuation, marks, addresses and names of users
    alone, such as a post and the post that passes it on.
    """
    others: dict[str, StoredText] = {}
    for item in items:
        if item.split != "test" and (key := bare_words(item.text)):
            others.setdefault(key, item)
    twins = [
        (item, others[key])
        for item in items
        if item.split == "test" and (key := bare_words(item.text)) in others
    ]
    if not twins:
        return ""
    test, other = twins[0]
    n = len(twins)
    return (
        f"{n} test text{'s' * (n > 1)} stand{'s' * (n == 1)} among the other texts in nearly the"
        f" same words, for instance {_quoted(test.text)} beside {_quoted(other.text)}: accuracy and"
        " stability on them are too good. Put such texts into one split with texts.split_column, or"
        " remove one of each."
    )


def twins_in_pool(items: Sequence[StoredText]) -> int:
    """How many texts of the pool say nearly the same as another one of the pool, see above."""
    said = Counter(bare_words(item.text) for item in items if item.split == "pool")
    return sum(n - 1 for words, n in said.items() if words)


def _quoted(text: str) -> str:
    text = normalise(text)
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def check_fit(config: Config, store: Store) -> None:
    """Whether the campaign file goes with the texts that are in.

    Raises:
        DataError: too few texts.
        ConfigError: a key of the file asks for more than the texts give.
    """
    items = store.keys(config.campaign.name)
    splits = [item.split for item in items]
    without_gold = sum(item.split == "pool" and not item.known_label for item in items)
    _check_fit(config, {split: splits.count(split) for split in SPLITS}, without_gold)


def _item_rows(
    name: str, rows: Sequence[SourceText], splits: Sequence[str], *, first_row: int
) -> Iterator[dict[str, object]]:
    return (
        {
            "id": item_id(name, row.text),
            "campaign": name,
            "text": row.text,
            "split": split,
            "known_label": row.gold,
            "row": first_row + number,
            "meta": dict(row.meta),
        }
        for number, (row, split) in enumerate(zip(rows, splits, strict=True))
    )


def _check_fit(config: Config, counts: Mapping[str, int], without_gold: int) -> None:
    """Raises the first of ``misfits``."""
    for misfit in misfits(config, counts, without_gold):
        raise misfit


def misfits(config: Config, counts: Mapping[str, int], without_gold: int) -> Iterator[LoopError]:
    """What keeps the campaign from being run on so many texts by split.

    Args:
        counts: texts by split.
        without_gold: pool texts whose label the source does not know.
    """
    few = counts["pool"] < MIN_POOL
    if few:
        yield DataError(
            f"{config.texts.source} leaves {counts['pool']} texts to label (test {counts['test']},"
            f" dev {counts['dev']}); at least {MIN_POOL} are needed."
        )
    if counts["test"] == 0:
        yield DataError(
            "No text is held out to measure stability on; raise texts.test_frac, or mark some"
            " rows 'test' in texts.split_column."
        )
    if config.rounds.batch_size > counts["pool"] and not few:
        yield ConfigError(
            f"rounds.batch_size {config.rounds.batch_size} is larger than the pool of"
            f" {counts['pool']} texts; lower it."
        )
    if config.budget.labels > counts["pool"] and not few:
        yield ConfigError(
            f"budget.labels {config.budget.labels} is larger than the pool of {counts['pool']}"
            " texts; lower it."
        )
    if without_gold and {"all_gold", "random"} & set(config.student.references):
        yield ConfigError(
            f"student.references random and all_gold need a gold label for every pool text;"
            f" {without_gold} have none. Remove those references, or fill the column."
        )


def _named_splits(config: Config, rows: Sequence[SourceText]) -> list[str]:
    named = ["pool" if r.split in ("train", "pool") else (r.split or "") for r in rows]
    unknown = Counter(split for split in named if split not in SPLITS)
    if unknown:
        split = next(split for split in named if split in unknown)
        at = named.index(split)
        line = getattr(rows[at], "line", 0) or at + 1  # equal texts are one row by now
        other = OTHER_NAMES.get(split.strip().lower())
        meant = f" did you mean {other!r}?" if other else suggestion(split, SPLITS)
        shown = [f"{name!r} ({count} rows)" for name, count in unknown.most_common(SHOWN_SPLITS)]
        also = ", ".join(shown) + ", …" * (len(unknown) > SHOWN_SPLITS)
        raise DataError(
            f"Row {line} of {config.texts.source} has split {split!r};{meant}"
            f" allowed: pool, train, test, dev. Not known in column {config.texts.split_column!r}:"
            f" {also}. Correct them, or name another column, or none, in texts.split_column."
        )
    return named


def _check_splits(
    config: Config, stored: dict[str, StoredText], there: dict[str, SourceText]
) -> None:
    """Refuses to move a text that is in to another split."""
    if not config.texts.split_column:
        return
    named = dict(zip(there, _named_splits(config, list(there.values())), strict=True))
    # dev texts were drawn from the pool where the source names none
    moved = [
        i
        for i, split in named.items()
        if split != stored[i].split and (split, stored[i].split) != ("pool", "dev")
    ]
    if moved:
        first = stored[moved[0]]
        raise DataError(
            f"{config.texts.source} puts {len(moved)} texts of the campaign into another split, for"
            f" instance {first.text[:60]!r} from {first.split} into {named[moved[0]]}: a text that"
            " was learned from may not be tested on. Restore texts.split_column or those rows, or"
            " begin a new campaign with a campaign.name and a store.folder of its own. Nothing was"
            " spent."
        )


def _new_splits(
    config: Config, stored: dict[str, StoredText], new: Sequence[SourceText], seed: int
) -> list[str]:
    """Splits of texts that come later; those that are drawn depend on each text alone."""
    if config.texts.split_column:
        return _named_splits(config, new)
    tested_by_gold = any(i.known_label for i in stored.values() if i.split == "test")
    name, frac = config.campaign.name, config.texts.test_frac
    return [
        "test"
        if (row.gold or not tested_by_gold)
        and unit_hash(seed, "test", item_id(name, row.text)) < frac
        else "pool"
        for row in new
    ]


def splits_of(config: Config, rows: Sequence[SourceText]) -> list[str]:
    """The split that each text is imported to.

    Raises:
        DataError: an unknown split.
    """

    def mark(splits: list[str], candidates: list[int], split: str, n: int) -> list[str]:
        """Marks the n candidates with the lowest hash."""
        name, seed = config.campaign.name, config.rounds.seed
        by_hash = {i: unit_hash(seed, split, item_id(name, rows[i].text)) for i in candidates}
        for i in sorted(candidates, key=by_hash.__getitem__)[:n]:
            splits[i] = split
        return splits

    if config.texts.split_column:
        named = _named_splits(config, rows)
        if "dev" in named or not _wants_dev(config):
            return named
        spare = [i for i, s in enumerate(named) if s == "pool" and rows[i].gold]
        return mark(named, spare, "dev", _dev_count(config, len(spare)))
    splits = ["pool"] * len(rows)
    with_gold = [i for i, r in enumerate(rows) if r.gold]
    testable = with_gold or list(range(len(rows)))
    n_test = round(config.texts.test_frac * len(testable))
    mark(splits, testable, "test", n_test)
    if _wants_dev(config):
        spare = [i for i in with_gold if splits[i] == "pool"]
        mark(splits, spare, "dev", _dev_count(config, len(spare)))
    return splits


def _wants_dev(config: Config) -> bool:
    """For the prompt's examples, or to choose the students' best epoch by."""
    return config.student.checkpoint == "best" or (
        config.annotator.kind != "recorded"
        and config.prompt.shots > 0
        and not config.prompt.demonstrations
    )


def _dev_count(config: Config, spare: int) -> int:
    return min(config.texts.dev_items, spare // 5)
