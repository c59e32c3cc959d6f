"""An Annotator that replays labels which an LLM gave earlier, stored in columns of the source."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loop.errors import AnnotatorError
from loop.ports import ClassProbs, FloatArray, IntArray, TextItem
from loop.prompt import Label, PromptVariant


class RecordedAnnotator:
    """Prompt variant i answers with column i of ``item.meta``.

    A value is a label's name, which becomes probability 1, or the probabilities themselves: a
    mapping (or JSON object) from label name to probability. Anything else, such as "other", None
    or NaN, is no answer. Probability that a mapping gives to no label is the off-label mass.

    Args:
        columns: one column per prompt variant.
        labels: the classes, in their order.
        prob_columns: for each column the one with the probability, in [0, 1], of the label named
            there; the rest is spread evenly over the other classes, and a label without a usable
            probability is no answer.
        name: begins the revision.
    Raises:
        AnnotatorError: no columns, or a column named twice.
    """

    def __init__(
        self,
        columns: Sequence[str],
        labels: Sequence[Label],
        *,
        prob_columns: Sequence[str] | None = None,
        name: str = "recorded",
    ) -> None:
        self._columns = tuple(columns)
        self._names = tuple(label.name for label in labels)
        self._prob_columns = None if prob_columns is None else tuple(prob_columns)
        twice = [column for column, n in Counter(self._columns).items() if n > 1]
        if not self._columns or twice:
            what = f"the column {twice[0]!r} twice" if twice else "no column"
            raise AnnotatorError(
                f"Recorded answers were given {what}; name one column per prompt variant."
            )
        if self._prob_columns is not None and len(self._prob_columns) != len(self._columns):
            raise AnnotatorError(
                f"{len(self._columns)} columns need as many probability columns;"
                f" there are {len(self._prob_columns)}."
            )
        seen = json.dumps([self._columns, self._prob_columns])
        self._revision = f"{name}:{hashlib.sha256(seen.encode()).hexdigest()[:12]}"

    @property
    def revision(self) -> str:
        """Name and a hash of the columns."""
        return self._revision

    def check(self, items: Sequence[TextItem]) -> None:
        """Looks whether the columns hold answers at all; no items are fine.

        Raises:
            AnnotatorError: a column is in none of the items, or none of its values is a label.
        """
        for position, column in enumerate(self._columns if items else ()):
            self._must_exist(items, position)
            values = [item.meta.get(column) for item in items]
            if not any(self._read(position, item.meta, self._names) is not None for item in items):
                common = Counter("(empty)" if _empty(v) else str(v)[:40] for v in values)
                raise AnnotatorError(
                    f"No value of the column {column!r} is a label with a usable probability."
                    f" Values seen: {', '.join(value for value, _ in common.most_common(5))}."
                    f" Labels: {', '.join(self._names)}."
                )

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """The recorded answers, among the variant's labels; a row of NaN where an item has none.

        Raises:
            AnnotatorError: the variant has no column, or its column is in none of the items.
        """
        names = tuple(label.name for label in variant.labels)
        if not 0 <= variant.index < len(self._columns):
            raise AnnotatorError(
                f"Prompt variant {variant.index} has no column; there are {len(self._columns)}:"
                f" {', '.join(self._columns)}."
            )
        if items:
            self._must_exist(items, variant.index)
        n = len(items)
        probs = np.full((n, len(names)), np.nan)
        off = np.full(n, np.nan)
        for row, item in enumerate(items):
            answer = self._read(variant.index, item.meta, names)
            if answer is not None:
                probs[row], off[row] = answer
        return ClassProbs(probs, off, np.zeros(n, dtype=np.int64))

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """None: recorded answers cost nothing."""
        return np.zeros(len(items), dtype=np.int64), np.zeros(len(items), dtype=np.int64)

    def close(self) -> None:
        """Nothing is open."""

    def _must_exist(self, items: Sequence[TextItem], position: int) -> None:
        wanted = [self._columns[position]]
        if self._prob_columns is not None:
            wanted.append(self._prob_columns[position])
        for column in wanted:
            if not any(column in item.meta for item in items):
                there = sorted({key for item in items[:100] for key in item.meta})
                raise AnnotatorError(
                    f"The texts have no column {column!r}. Columns:"
                    f" {', '.join(there[:30]) or 'none besides text, label and split'}."
                )

    def _read(
        self, position: int, meta: Mapping[str, Any], names: tuple[str, ...]
    ) -> tuple[FloatArray, float] | None:
        """Class probabilities and off-label mass, or None for no answer."""
        value = meta.get(self._columns[position])
        name = _as_name(value)
        if name in names:
            confidence = 1.0
            if self._prob_columns is not None:
                stated = _as_mass(meta.get(self._prob_columns[position]))
                if stated is None or stated > 1.0:
                    return None
                confidence = stated
            others = (1.0 - confidence) / max(1, len(names) - 1)
            probs = np.full(len(names), others)
            probs[names.index(name)] = confidence
            return (probs / probs.sum(), 0.0) if probs.sum() > 0 else None
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        return _from_mapping(value, names) if isinstance(value, Mapping) else None


def _from_mapping(
    value: Mapping[Any, Any], names: tuple[str, ...]
) -> tuple[FloatArray, float] | None:
    masses = {str(key): _as_mass(0.0 if mass is None else mass) for key, mass in value.items()}
    known = [mass for mass in masses.values() if mass is not None]
    named = np.array([masses.get(name) or 0.0 for name in names])
    if len(known) < len(masses) or named.sum() <= 0:
        return None
    off = 1.0 - named.sum() / max(1.0, math.fsum(known))  # counts above 1 are shares of all
    return named / named.sum(), float(np.clip(off, 0.0, 1.0))


def _empty(value: Any) -> bool:
    return value is None or value != value or value == ""


def _as_name(value: Any) -> str:
    """1, 1.0, True -> "1", "1", "true": label names are strings, columns need not be."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(int(value)) if isinstance(value, int | np.integer) else ""


def _as_mass(value: Any) -> float | None:
    """A finite number >= 0, or None."""
    try:
        mass = float(value)
    except (TypeError, ValueError):
        return None
    return mass if math.isfinite(mass) and mass >= 0 else None
