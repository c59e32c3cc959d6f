"""Texts into the store: ids, splits, all in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loop.config import Config, suggestion
from loop.errors import ConfigError, DataError
from loop.items import item_id
from loop.ports import SourceText
from loop.store import Item, Store, insert_all

SPLITS = ("pool", "test", "dev")
MIN_POOL = 10


def import_texts(config: Config, store: Store, rows: Sequence[SourceText]) -> int:
    """Stores a campaign's texts with their splits; returns how many.

    Splits come from ``texts.split_column`` (pool, test, dev; train counts as pool), else test is
    drawn at random among the texts with a gold label, or among all where no gold is known, and dev
    (examples for the prompt) among the rest of those with gold.

    Raises:
        DataError: an unknown split, no text left to test on, or a pool of fewer than 10 texts.
    """
    name = config.campaign.name
    splits = _splits(config, rows)
    counts = {split: splits.count(split) for split in SPLITS}
    if counts["pool"] < MIN_POOL:
        raise DataError(
            f"{config.texts.source} leaves {counts['pool']} texts to label (test {counts['test']},"
            f" dev {counts['dev']}); at least {MIN_POOL} are needed."
        )
    if counts["test"] == 0:
        raise DataError(
            "No text is held out to measure stability on; raise texts.test_frac, or mark some"
            " rows 'test' in texts.split_column."
        )
    if config.rounds.batch_size > counts["pool"]:
        raise ConfigError(
            f"rounds.batch_size {config.rounds.batch_size} is larger than the pool of"
            f" {counts['pool']} texts; lower it."
        )
    if config.budget.labels > counts["pool"]:
        raise ConfigError(
            f"budget.labels {config.budget.labels} is larger than the pool of {counts['pool']}"
            " texts; lower it."
        )
    if "all_gold" in config.student.references or "random" in config.student.references:
        unknown = sum(1 for r, s in zip(rows, splits, strict=True) if s == "pool" and not r.gold)
        if unknown:
            raise ConfigError(
                f"student.references random and all_gold need a gold label for every pool text;"
                f" {unknown} have none. Remove those references, or fill the column."
            )
    with store.transaction() as session:
        insert_all(
            session,
            Item,
            [
                {
                    "id": item_id(name, row.text),
                    "campaign": name,
                    "text": row.text,
                    "split": split,
                    "known_label": row.gold,
                    "row": number,
                    "meta": dict(row.meta),
                }
                for number, (row, split) in enumerate(zip(rows, splits, strict=True))
            ],
        )
        counts_by_name = {str(split): count for split, count in counts.items()}
        store.log(session, name, "import", "texts imported", **counts_by_name)
    return len(rows)


def _splits(config: Config, rows: Sequence[SourceText]) -> list[str]:
    if config.texts.split_column:
        named = ["pool" if r.split in ("train", "pool") else (r.split or "") for r in rows]
        for number, split in enumerate(named):
            if split not in SPLITS:
                raise DataError(
                    f"Row {number + 1} of {config.texts.source} has split {split!r};"
                    f"{suggestion(split, SPLITS)} allowed: pool, train, test, dev."
                )
        if "dev" in named or not _wants_dev(config):
            return named
        spare = [i for i, s in enumerate(named) if s == "pool" and rows[i].gold]
        return _mark(named, spare, "dev", _dev_count(config, len(spare)), config.rounds.seed)
    splits = ["pool"] * len(rows)
    with_gold = [i for i, r in enumerate(rows) if r.gold]
    testable = with_gold or list(range(len(rows)))
    n_test = round(config.texts.test_frac * len(testable))
    _mark(splits, testable, "test", n_test, config.rounds.seed)
    if _wants_dev(config):
        spare = [i for i in with_gold if splits[i] == "pool"]
        _mark(splits, spare, "dev", _dev_count(config, len(spare)), config.rounds.seed + 1)
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


def _mark(splits: list[str], rows: list[int], split: str, n: int, seed: int) -> list[str]:
    for i in np.random.default_rng([seed, 0]).permutation(len(rows))[:n]:
        splits[rows[i]] = split
    return splits
