"""An Annotator that replays labels which an LLM gave earlier, stored in columns of the source."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from connectors.llm.label_spelling import label_in
from connectors.texts.label_cells import SCALES, Scale, probability_in
from connectors.texts.values import SHOWN, as_text
from loop.errors import AnnotatorError, suggestion
from loop.ports import AnnotatorSetup, ClassProbs, FloatArray, IntArray, News, TextItem, no_news
from loop.prompt import Label, PromptVariant

BARELY = (
    1e-3  # by how much, relative to an even share, a recorded label is likelier than the others
)


def build(setup: AnnotatorSetup) -> RecordedAnnotator:
    """The annotator of a campaign with ``annotator.kind = "recorded"``."""
    settings = setup.settings
    return RecordedAnnotator(
        settings["columns"],
        setup.labels,
        prob_columns=settings["prob_columns"],
        scale=settings["confidence_scale"],
        say=setup.say,
    )


class RecordedAnnotator:
    """Prompt variant i answers with column i of ``item.meta``.

    A value is a label's name, which becomes probability 1, or the probabilities themselves: a
    mapping (or JSON object) from label name to probability. A name may be spelt in its own way as
    far as it can only be one label (see ``label_in``). Anything else, such as "other", None or NaN,
    is no answer. Probability that a mapping gives to no label is the off-label mass.

    Args:
        columns: one column per prompt variant.
        labels: the classes, in their order.
        prob_columns: for each column the one with the probability of the label named there; the
            rest is spread evenly over the other classes. The recorded label stays the likeliest
            one: where its probability is missing, or too low for that, it is the least with which
            it does.
        scale: how the probabilities are written.
        name: begins the revision.
        say: told at ``close`` how many values were read although they are spelt in another way.
    Raises:
        AnnotatorError: no columns, or a column named twice.
    """

    def __init__(
        self,
        columns: Sequence[str],
        labels: Sequence[Label],
        *,
        prob_columns: Sequence[str] | None = None,
        scale: Scale = "probability",
        name: str = "recorded",
        say: News = no_news,
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
        self._say = say
        self._read_as: dict[tuple[str, str, str], set[str]] = {}
        self._scale = scale
        seen = json.dumps([self._columns, self._prob_columns, *[scale] * (scale != "probability")])
        self._revision = f"{name}:{hashlib.sha256(seen.encode()).hexdigest()[:12]}"

    @property
    def revision(self) -> str:
        """Name and a hash of the columns."""
        return self._revision

    def check(self, items: Sequence[TextItem]) -> None:
        """Looks what the columns hold, and says of each what was read and what was not.

        Raises:
            AnnotatorError: a column is in none of the items, or none of its values is a label.
        """
        for position, column in enumerate(self._columns if items else ()):
            self._must_exist(items, position)
            unread: Counter[str] = Counter()
            for item in items:
                if self._read(position, item, self._names) is None:
                    unread[_quoted(item.meta.get(column))] += 1
            if unread.total() == len(items):
                raise AnnotatorError(
                    f"No value of the column {column!r} is a label with a usable probability."
                    f" Values seen: {', '.join(value for value, _ in unread.most_common(5))}."
                    f" Labels: {', '.join(self._names)}."
                )
            if unread:
                self._say(self._unread_line(column, unread, len(items)))
        self._tell_spellings()

    def _unread_line(self, column: str, unread: Counter[str], n: int) -> str:
        shown = [
            f"{value} ({count}){suggestion(value, self._names).rstrip('?')}"
            for value, count in unread.most_common(SHOWN)
        ]
        more = f", and {len(unread) - SHOWN} other values" if len(unread) > SHOWN else ""
        return (
            f"{unread.total()} of {n} values of the column {column!r} cannot be read as a label:"
            f" {', '.join(shown)}{more}. These texts have no LLM label in this column and count"
            " neither as right nor as wrong. To use the values, write them as one of the labels"
            f" ({', '.join(self._names)}) in the source."
        )

    def _tell_spellings(self) -> None:
        """How many values were read although they are spelt in another way; each is told once."""
        by_column: dict[str, list[tuple[int, str, str]]] = {}
        for (column, value, name), texts in self._read_as.items():
            by_column.setdefault(column, []).append((len(texts), value, name))
        self._read_as.clear()
        for column, spellings in by_column.items():
            spellings.sort(key=lambda s: (-s[0], s[1]))
            shown = [f"{value} as {name!r} ({count})" for count, value, name in spellings[:SHOWN]]
            more = f", and {len(spellings) - SHOWN} more" if len(spellings) > SHOWN else ""
            self._say(
                f"{sum(s[0] for s in spellings)} values of the column {column!r} are spelt in"
                f" another way than the labels and were read: {', '.join(shown)}{more}."
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
        problems = {}
        for row, item in enumerate(items):
            answer = self._read(variant.index, item, names)
            if answer is not None:
                probs[row], off[row] = answer
            else:
                value = _quoted(item.meta.get(self._columns[variant.index]))
                problems[item.id] = f"the recorded value {value} cannot be read as a label"
        return ClassProbs(probs, off, np.zeros(n, dtype=np.int64), problems=problems)

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """None: recorded answers cost nothing."""
        return np.zeros(len(items), dtype=np.int64), np.zeros(len(items), dtype=np.int64)

    def close(self) -> None:
        """Nothing is open; says how many values were spelt in another way."""
        self._tell_spellings()

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
        self, position: int, item: TextItem, names: tuple[str, ...]
    ) -> tuple[FloatArray, float] | None:
        """Class probabilities and off-label mass, or None for no answer."""
        meta, column = item.meta, self._columns[position]
        value = meta.get(column)
        if isinstance(value, str) and value.strip() not in names and value.lstrip()[:1] == "{":
            with suppress(ValueError, RecursionError):  # label_in reads what else it may be
                value = json.loads(value)
        if isinstance(value, Mapping) and (masses := _from_mapping(value, names)) is not None:
            return masses
        written = value if isinstance(value, list | Mapping) else _as_name(value)
        name = label_in(written, names)
        if name not in (None, written) and not isinstance(value, bool | int | float):
            seen = (column, _quoted(meta.get(column)), name)
            self._read_as.setdefault(seen, set()).add(item.id)
        if name is not None:
            probs = np.full(len(names), 0.0)
            confidence = 1.0
            if self._prob_columns is not None:
                least = (1.0 + BARELY) / len(names)
                stated = self._stated(self._prob_columns[position], item)
                confidence = max(least, stated) if stated == stated else least
                probs += (1.0 - confidence) / max(1, len(names) - 1)
            probs[names.index(name)] = confidence
            return probs / probs.sum(), 0.0
        return None

    def _stated(self, column: str, item: TextItem) -> float:
        """The probability in a column, NaN where it is empty."""
        value = item.meta.get(column)
        stated = probability_in(value, self._scale)
        if stated is None:
            raise AnnotatorError(
                f"The column {column!r} holds {_quoted(value)}, which is not among"
                f" {SCALES[self._scale]}; correct the column, or leave annotator.prob_columns out."
            )
        return stated


def _from_mapping(
    value: Mapping[Any, Any], names: tuple[str, ...]
) -> tuple[FloatArray, float] | None:
    known, named = [], np.zeros(len(names))
    for key, stated in value.items():
        mass = _as_mass(0.0 if stated is None else stated)
        if mass is None:
            return None
        known.append(mass)
        if (name := label_in(str(key), names)) is not None:
            named[names.index(name)] += mass
    if named.sum() <= 0:
        return None
    off = 1.0 - named.sum() / max(1.0, math.fsum(known))  # counts above 1 are shares of all
    return named / named.sum(), float(np.clip(off, 0.0, 1.0))


def _quoted(value: Any) -> str:
    """The value for a message: quoted, invisible characters shown, a long one cut."""
    if value is None or value != value or value == "":
        return "(empty)"
    if isinstance(value, str):  # what nobody can see is written as \\u200b
        value = "".join(
            c if c.isprintable() and not unicodedata.combining(c) else ascii(c)[1:-1] for c in value
        )
        return f"'{value if len(value) <= 40 else f'{value[:39]}…'}'"
    return str(value)[:40]


def _as_name(value: Any) -> str:
    """1, 1.0, 2.5, True -> "1", "1", "2.5", "true": labels are strings, columns need not be."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating):
        return as_text(float(value))
    return str(int(value)) if isinstance(value, int | np.integer) else ""


def _as_mass(value: Any) -> float | None:
    """A finite number >= 0, or None."""
    try:
        mass = float(value)
    except (TypeError, ValueError):
        return None
    return mass if math.isfinite(mass) and mass >= 0 else None
