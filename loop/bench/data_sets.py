"""Data sets of the benchmark: a pool with LLM labels and hidden gold, and held-out test texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.campaign.tables import Item
from loop.errors import DataError, suggestion
from loop.llm.votes import LlmVotes
from loop.ports import FloatArray, IntArray, News, SourceText, no_news

SHOWN = 5  # values named in one line
TEST_FRAC = 0.3  # of the rows, held out for testing where no split is named


@dataclass(frozen=True)
class BenchData:
    """One data set: a pool with LLM labels and hidden gold, and held-out test texts.

    Attributes:
        probs: (n, m, k) class probabilities of the LLM; a plain label is a one-hot row.
        y_llm: (n,) the LLM's label.
        gold: (n,) the true class, which strategies see only where they buy it.
        embeddings: (n, d) float32.
        texts: n texts, needed by a student that reads them.
        states: (n, d) float16 hidden states of the LLM, or None where it shows none.
        role: 'development' where policies may be tuned on it, 'reporting' where not.
    """

    name: str
    labels: tuple[str, ...]
    probs: FloatArray
    y_llm: IntArray
    gold: IntArray
    embeddings: NDArray[np.float32]
    test_embeddings: NDArray[np.float32]
    test_gold: IntArray
    texts: Sequence[str] = ()
    test_texts: Sequence[str] = ()
    off_label_mass: FloatArray | None = None
    class_prior: FloatArray | None = None
    ordinal: bool = False
    role: str = ""
    states: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        """Refuses arrays that do not fit together."""
        n = len(self.gold)
        for name in ("probs", "y_llm", "embeddings"):
            if len(getattr(self, name)) != n:
                raise ValueError(
                    f"{name} must have {n} rows like gold, not {len(getattr(self, name))}"
                )
        if len(self.test_embeddings) != len(self.test_gold):
            raise ValueError(
                f"test_embeddings and test_gold must have equal length, not"
                f" {len(self.test_embeddings)} and {len(self.test_gold)}"
            )
        if n < 10 or len(self.test_gold) < 2:
            raise ValueError(f"{self.name} has {n} pool and {len(self.test_gold)} test texts only")
        if self.gold.min() < 0 or self.gold.max() >= len(self.labels):
            raise ValueError("gold must be known for every text of the pool")

    @property
    def k(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def subset(self, rows: IntArray) -> BenchData:
        """The same test texts, and some rows of the pool."""
        mass, states = self.off_label_mass, self.states
        return replace(
            self,
            probs=self.probs[rows],
            y_llm=self.y_llm[rows],
            gold=self.gold[rows],
            embeddings=self.embeddings[rows],
            texts=[self.texts[i] for i in rows] if self.texts else (),
            off_label_mass=None if mass is None else mass[rows],
            states=None if states is None else states[rows],
        )


def data_from_rows(
    name: str,
    rows: Sequence[SourceText],
    llm_columns: Sequence[str],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    *,
    read_label: Callable[[Any, Sequence[str]], str | None] = lambda value, _names: str(value),
    say: News = no_news,
) -> BenchData:
    """A data set from the rows of a text source.

    Args:
        name: shown in tables.
        rows: those without a gold label are left out. Where a row names the split 'test', the test
            texts are those of that split; else ``TEST_FRAC`` of them are drawn at random.
        llm_columns: columns with LLM labels: the first is the label that the LLM gives, all of
            them are its votes. Rows whose first column holds no class are left out of the pool.
        embed: (n, d) embeddings of n texts.
        read_label: which of the classes a value of an LLM column names, None for none.
        say: told which LLM labels were read in another spelling or not at all, and which gold
            classes are nearly of one name.

    Raises:
        DataError: no gold labels, unknown columns, or LLM labels that match no class.
    """
    known = [row for row in rows if row.gold is not None]
    if not known:
        raise DataError(f"{name} has no gold labels; name their column with --label.")
    for column in llm_columns:
        if not any(column in row.meta for row in known):
            columns = sorted({key for row in known[:100] for key in row.meta})
            hint = suggestion(column, columns, begins=True)
            raise DataError(
                f"There is no column {column!r} in {name}.{hint} Available: {', '.join(columns)}."
            )
    labels = tuple(sorted({str(row.gold) for row in known}))
    index = {label: i for i, label in enumerate(labels)}
    if any(row.split == "test" for row in known):
        is_test = np.array([row.split == "test" for row in known])
    elif named := Counter(str(row.split) for row in known if row.split is not None):
        splits = ", ".join(f"{split!r} ({n})" for split, n in named.most_common(SHOWN))
        raise DataError(
            f"{name} has no texts with a gold label in split 'test', but {splits}. Write 'test' for"
            " those to test on, or leave the split column out: a share is then drawn at random."
        )
    else:
        is_test = np.random.default_rng(0).permutation(len(known)) < TEST_FRAC * len(known)
    _tell_near_names(labels, say)
    said = np.array(
        [_classes(known, column, labels, read_label, say) for column in llm_columns],
        dtype=np.int64,
    ).T.reshape(len(known), -1)
    pool_rows = np.flatnonzero(~is_test & (said[:, 0] >= 0))
    if left_out := int((~is_test).sum()) - len(pool_rows):
        say(
            f"{left_out} of {int((~is_test).sum())} pool texts are left out, because they have no"
            f" LLM label in {llm_columns[0]!r}."
        )
    test_rows = np.flatnonzero(is_test)
    if len(pool_rows) < 10 or len(test_rows) < 2:
        raise DataError(
            f"{name} gives {len(pool_rows)} texts with an LLM label in {llm_columns[0]!r} that is"
            f" one of {', '.join(labels)}, and {len(test_rows)} test texts; that is too few."
        )
    votes = said[pool_rows]
    probs = np.where((votes >= 0)[:, :, None], np.eye(len(labels))[votes], np.nan)
    gold = np.array([index[str(row.gold)] for row in known], dtype=np.int64)
    texts = [row.text for row in known]
    pool_texts = [texts[i] for i in pool_rows]
    test_texts = [texts[i] for i in test_rows]
    return BenchData(
        name=name,
        labels=labels,
        probs=probs,
        y_llm=votes[:, 0],
        gold=gold[pool_rows],
        embeddings=embed(pool_texts),
        test_embeddings=embed(test_texts),
        test_gold=gold[test_rows],
        texts=pool_texts,
        test_texts=test_texts,
    )


def _tell_near_names(labels: Sequence[str], say: News) -> None:
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault("".join(label.split()).casefold(), []).append(label)
    for names in alike.values():
        if len(names) > 1:
            say(
                f"The gold classes {' and '.join(map(repr, names))} differ in case or spaces alone"
                f" and are taken as {len(names)} classes; give them one spelling if they are the"
                f" same class."
            )


def _classes(
    rows: Sequence[SourceText],
    column: str,
    labels: Sequence[str],
    read_label: Callable[[Any, Sequence[str]], str | None],
    say: News,
) -> list[int]:
    """The class that each row's LLM label names, -1 for none; says what was not written exactly."""
    index = {label: i for i, label in enumerate(labels)}
    classes: list[int] = []
    unread: Counter[str] = Counter()
    respelt: Counter[str] = Counter()
    for row in rows:
        value = row.meta.get(column)
        label = None if value is None else read_label(value, labels)
        if label is None or label not in index:
            unread["(empty)" if value in (None, "") else repr(str(value)[:40])] += 1
            classes.append(-1)
            continue
        if str(value).strip() != label:
            respelt[f"{str(value)[:40]!r} as {label!r}"] += 1
        classes.append(index[label])
    for counts, what in (
        (respelt, "are spelt in another way than the gold classes and were read"),
        (unread, "name no gold class; those texts have no LLM label there"),
    ):
        if counts:
            shown = ", ".join(f"{value} ({n})" for value, n in counts.most_common(SHOWN))
            more = f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            say(f"{counts.total()} of {len(rows)} labels in {column!r} {what}: {shown}{more}.")
    return classes


def data_from_votes(
    name: str,
    labels: Sequence[str],
    pool: Sequence[Item],
    votes: LlmVotes,
    test: Sequence[Item],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    *,
    ordinal: bool = False,
    states: NDArray[np.float16] | None = None,
) -> BenchData:
    """A data set from texts that an annotator has labelled.

    Args:
        name: shown in tables.
        labels: classes in the order of their indices.
        pool: those without an LLM answer or a gold label are left out.
        votes: of the pool, in its order.
        test: held-out texts; those without a gold label are left out.
        embed: (n, d) embeddings of n texts.
        ordinal: the classes stand in a meaningful order.
        states: (n, d) of the pool, in its order, or None.

    Raises:
        DataError: too few texts are left.
    """
    index = {label: i for i, label in enumerate(labels)}
    kept = np.array([bool(item.known_label) for item in pool]) & votes.answered
    rows, judged = np.flatnonzero(kept), [item for item in test if item.known_label]
    if len(rows) < 10 or len(judged) < 2:
        raise DataError(
            f"{name} gives {len(rows)} texts with gold and an LLM label, and {len(judged)} test"
            " texts with gold; that is too few."
        )
    texts, test_texts = [pool[i].text for i in rows], [item.text for item in judged]
    return BenchData(
        name=name,
        labels=tuple(labels),
        probs=votes.probs[rows],
        y_llm=votes.y_llm[rows],
        gold=np.array([index[str(pool[i].known_label)] for i in rows], dtype=np.int64),
        embeddings=embed(texts),
        test_embeddings=embed(test_texts),
        test_gold=np.array([index[str(item.known_label)] for item in judged], dtype=np.int64),
        texts=texts,
        test_texts=test_texts,
        off_label_mass=votes.off_label_mass[rows],
        ordinal=ordinal,
        states=None if states is None else states[rows],
    )
