"""Texts in: CSV, JSONL, Parquet and Hugging Face data sets.

Reading finds everything that is wrong in one pass: :func:`find_problems` lists it,
:func:`load_texts` raises it, :func:`read_texts` gives rows and problems together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from connectors.texts.formats import KEPT, Problem, Problems, read_raw
from connectors.texts.label_cells import (
    ABSENT,
    ANSWER,
    BESIDE,
    SCALES,
    Scale,
    confirmed,
    gold_status,
    labels_in,
    lookup,
    no_probabilities,
    on_another_scale,
    probability_in,
    same_letters,
)
from connectors.texts.sheets import rows_above
from connectors.texts.values import (
    NESTED,
    SHOWN,
    Format,
    as_text,
    clean_text,
    excerpt,
    listed,
    one_spelling,
    plain,
    same_value,
    shown,
    some_of,
)
from loop.errors import DataError, counted, suggestion
from loop.ports import normalise

LONG_TEXT_CHARS = 20_000  # far beyond what an encoder of 512 tokens reads
MOST_CLASSES = 200  # a column with more different values is not taken for one with labels


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text of the source.

    Attributes:
        text: as it stands in the source; NUL characters and lone surrogates are repaired.
        gold: the human label that the source knows, or None.
        split: the split that the source names, or None.
        meta: the other columns, as plain JSON values.
        line: 1-based line (CSV, JSONL) or row (Parquet, data sets) in the source.
    """

    text: str
    gold: str | None = None
    split: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0


@dataclass(frozen=True)
class Column:
    """What one column of a source holds.

    Attributes:
        name: as the source names it.
        filled: rows with a value.
        chars: characters of all values together.
        prose: those of values that a text may be: not a lone word, number or address.
        counts: rows by value; empty where there are more than ``MOST_CLASSES`` different ones.
    """

    name: str
    filled: int = 0
    chars: int = 0
    prose: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A source as read.

    Attributes:
        columns: names of all columns of the source.
        rows: unique, non-empty texts in the order of the source.
        problems: errors first.
    """

    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What keeps the source from being used."""
        return tuple(p for p in self.problems if p.level == "error")


def read_texts(
    source: str,
    *,
    format: Format = "auto",
    text_column: str = "text",
    gold_column: str | None = None,
    split_column: str | None = None,
    hf_split: str = "train",
    meta_columns: Sequence[str] | Literal["all", "plain"] | None = "all",
    named: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    confidences: Sequence[str] = (),
    confidence_scale: Scale = "probability",
    long_text_chars: int = LONG_TEXT_CHARS,
) -> Table:
    """Reads a source and everything that is wrong with it; raises nothing for bad data.

    Texts that are the same after :func:`loop.ports.normalise` become one row, which keeps the
    first row's other columns. If one copy is in split ``test``, the merged row is: a test text
    must not be trained on.

    Args:
        source: path of a CSV, TSV, JSONL, JSON or Parquet file, which may be packed (.gz, .bz2,
            .xz), a workbook, a folder saved by ``datasets``, or ``hf:NAME`` (``hf:NAME#CONFIG``
            for a named configuration).
        text_column: "data.text" is the key "text" inside of the object in "data".
        format: ``auto`` goes by the file name.
        hf_split: which split of a data set to read.
        meta_columns: other columns to keep; None keeps none, "plain" those without lists, objects
            or bytes, which can be very large, and those that are ``named``.
        named: see ``meta_columns``; those that the source lacks are not told. "data.llm" may stand
            for a key inside of an object, as in ``text_column``.
        labels: the campaign's classes; gold labels are checked against them if given.
        confidences: other columns that must hold probabilities, or nothing.
        confidence_scale: how these are written.
        long_text_chars: texts longer than this get a note.
    """
    problems = Problems(source)
    given = {"text": text_column, "gold": gold_column, "split": split_column}
    chosen = () if isinstance(meta_columns, str) else tuple(meta_columns or ())
    roles = {
        **{role: name for role, name in given.items() if name},
        **{f"meta {c}": c for c in chosen},
    }
    asked = {*roles.values(), *confidences, gold_status(gold_column), ANSWER}
    roots = {name.partition(".")[0] for name in (*asked, *named)}

    def wanted(name: str, plain: bool, /) -> bool:
        if name in asked or name in roots or (plain and name in BESIDE):
            return True
        return meta_columns == "all" or (meta_columns == "plain" and (plain or name in named))

    raw = read_raw(source, format, hf_split, wanted, problems, tuple(roles.values()))
    if raw is None:
        return Table((), (), problems.sorted())
    reading = _Reading(
        text_column,
        gold_column,
        split_column,
        labels,
        raw.unit,
        problems,
        tuple(confidences),
        confidence_scale,
    )
    keep = "none" if meta_columns is None else "chosen" if chosen else str(meta_columns)
    inner = [name for name in named if "." in name] if keep != "none" else []
    for number, record in raw.records:
        values: dict[str, Any] = dict(record) if keep in ("all", "plain") else {}
        values |= {name: lookup(record, name) for name in (*chosen, *inner)}
        reading.take(
            number,
            record,
            {
                clean_text(c): plain(v)
                for c, v in values.items()
                if c not in given.values()
                and c not in raw.skipped
                and v is not ABSENT
                and wanted(c, not isinstance(v, NESTED))
            },
        )
    rows = reading.rows
    if meta_columns == "plain" and raw.skipped:
        problems.note(
            "column_left_out",
            f"holds lists, objects or bytes in {listed(sorted(raw.skipped))}, which are left out of"
            " the campaign and its exports",
        )
    if keep != "none":
        _fill_in(rows)
    columns = tuple(dict.fromkeys([*raw.columns, *reading.resolved]))
    _check_columns(roles, columns, reading, raw.header_below, problems)
    if not rows or not columns:
        told = ("empty_file", "not_json", "ragged", "unreadable", "missing_column", "bad_csv")
        if not problems.has(*told):
            problems.error("empty_file", "holds no rows; name a source with at least two texts")
        return Table(columns, (), problems.sorted())
    reading.tell()
    if text_column in columns:
        _check_texts(rows, reading.wrong_rows(), raw.unit, long_text_chars, problems)
    if gold_column in columns and not problems.has("several_labels"):
        _check_gold(rows, raw.unit, str(gold_column), labels, problems)
    unique = _merge(rows, raw.unit, problems) if text_column in columns else ()
    return Table(columns, unique, problems.sorted())


def columns_of(source: str) -> tuple[int, list[Column], list[str]]:
    """How many rows a source has, what each of its columns holds, and every note.

    Raises:
        DataError: it cannot be read; every reason, one sentence a line.
    """
    problems = Problems(source)
    everything: Callable[[str, bool], bool] = lambda _name, _plain: True  # noqa: E731
    raw = read_raw(source, "auto", "train", everything, problems)
    rows = 0
    filled, chars, prose = Counter[str](), Counter[str](), Counter[str]()
    counts: dict[str, Counter[str]] = {}
    for _, record in raw.records if raw is not None else ():
        rows += 1
        for name, value in record.items():
            if not (cell := _cell_of(value)):
                continue
            filled[name] += 1
            chars[name] += len(cell)
            prose[name] += len(cell) if _is_prose(cell) else 0
            seen = counts.setdefault(name, Counter())
            if len(seen) <= MOST_CLASSES:
                seen[clean_text(cell)] += 1
    if errors := [p.message for p in problems.listed if p.level == "error"]:
        raise DataError("\n".join(errors))
    few = {name: seen for name, seen in counts.items() if len(seen) <= MOST_CLASSES}
    return (
        rows,
        [
            Column(name, filled[name], chars[name], prose[name], dict(few.get(name, {})))
            for name in dict.fromkeys([*(raw.columns if raw is not None else ()), *filled])
        ],
        [p.message for p in problems.listed],
    )


def _is_prose(cell: str) -> bool:
    """Whether a value has words; not every script has spaces between them."""
    return not cell.isascii() or any(character.isspace() for character in cell)


def _cell_of(value: Any) -> str:
    """A value, or the one label that a list or an object holds; empty where it is neither."""
    if not isinstance(value, NESTED) and (
        not isinstance(value, str) or value[:1] not in ("[", "{")
    ):
        return as_text(value).strip()
    try:
        given = {label.strip() for label in labels_in(value)}
    except ValueError:
        given = set()
    if len(given) == 1:
        return given.pop()
    return "" if isinstance(value, NESTED) else as_text(value).strip()


def find_problems(source: str, **arguments: Any) -> list[Problem]:
    """Everything wrong with a source at once, errors first; arguments as in :func:`read_texts`."""
    return list(read_texts(source, **arguments).problems)


def load_texts(
    source: str, *, on_note: Callable[[str], None] = lambda _message: None, **arguments: Any
) -> list[TextRow]:
    """The unique texts of a source without errors; arguments as in :func:`read_texts`.

    Args:
        on_note: told every note.
    Raises:
        DataError: every error found, one sentence a line.
    """
    table = read_texts(source, **arguments)
    if table.errors:
        raise DataError("\n".join(problem.message for problem in table.errors))
    for problem in table.problems:
        on_note(problem.message)
    return list(table.rows)


def _check_columns(
    roles: Mapping[str, str],
    columns: Sequence[str],
    reading: _Reading,
    header_below: int | None,
    problems: Problems,
) -> None:
    for role, name in roles.items():
        if name in columns or not columns:
            continue
        setting = f"texts.{role}_column" if " " not in role else "the campaign file"
        inner = next((f"{c}.{name}" for c, keys in reading.inside.items() if name in keys), "")
        hint = f" did you mean {inner!r}?" if inner else suggestion(name, columns)
        tool = (
            "; labels that people gave in a labelling tool are taken by `goldloop import-labels`"
            if role == "gold" and {"annotations", "responses"} & set(columns)
            else ""
        )
        problems.error(
            "missing_column",
            f"has no column {name!r};{hint} available: {listed(columns)}; set {setting}"
            f"{rows_above(header_below)}{tool}",
        )


@dataclass
class _Reading:
    """Takes the rows of a source one by one, and notes what is wrong with single ones."""

    text_column: str
    gold_column: str | None
    split_column: str | None
    labels: Sequence[str] | None
    unit: str
    problems: Problems
    confidences: tuple[str, ...] = ()
    scale: Scale = "probability"
    unsure: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    sure: dict[str, list[Any]] = field(default_factory=dict)  # where a scale is declared
    rows: list[TextRow] = field(default_factory=list)
    resolved: dict[str, None] = field(default_factory=dict)
    inside: dict[str, frozenset[str]] = field(default_factory=dict)
    wrong: dict[str, list[int]] = field(default_factory=dict)
    several: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    respelt: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    repaired: list[int] = field(default_factory=list)
    _one: dict[str, str] = field(default_factory=dict)
    _exact: set[str] = field(default_factory=set)  # values that are the label, letter by letter

    def take(self, number: int, record: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Takes one row."""
        text = self._cell(self.text_column, record, number)
        clean = clean_text(text)
        if clean != text:
            self.repaired.append(number)
        for name in self.confidences:
            value = self._value(name, record)
            if probability_in(value, self.scale) is None:
                self.unsure.setdefault(name, []).append((number, value))
            elif self.scale != "probability":
                self.sure.setdefault(name, []).append(value)
        split = clean_text(self._cell(self.split_column, record, number)).strip() or None
        gold = self._gold(record, number)
        if self.text_column not in self.resolved:
            for name, value in record.items():
                if isinstance(value, Mapping) and name not in self.inside:
                    self.inside[name] = frozenset(map(str, value))
        self.rows.append(TextRow(clean, gold, split, meta or _NO_META, number))

    def _value(self, column: str | None, record: Mapping[str, Any]) -> Any:
        value = lookup(record, column) if column else ABSENT
        if value is ABSENT:
            return None
        self.resolved[str(column)] = None
        return value

    def _cell(self, column: str | None, record: Mapping[str, Any], number: int) -> str:
        value = self._value(column, record)
        if isinstance(value, NESTED):
            self.wrong.setdefault(str(column), []).append(number)
            return ""
        return as_text(value)

    def _gold(self, record: Mapping[str, Any], number: int) -> str | None:
        value = self._value(self.gold_column, record)
        if self.gold_column and value is not None:
            value, why = confirmed(record, self.gold_column, value, self.labels or ())
            if why:
                self.refused[why] += 1
        if isinstance(value, str) and value in self._exact:
            return value
        try:
            given = labels_in(value, self.labels or ())
        except ValueError:
            self.wrong.setdefault(str(self.gold_column), []).append(number)
            return None
        spelt = tuple(dict.fromkeys(filter(None, (clean_text(v).strip() for v in given))))
        read = tuple(dict.fromkeys(self._label(v) for v in spelt))
        if len(read) > 1:
            self.several.append((number, read))
            return None
        if not read:
            return None
        if read != spelt and not isinstance(value, bool | int | float):  # these have no spelling
            self.respelt[spelt[0], read[0]] += 1
        if value == read[0] and isinstance(value, str) and len(self._exact) < KNOWN_SPELLINGS:
            self._exact.add(value)
        return read[0]

    def _label(self, spelt: str) -> str:
        """The label of a value: 1, 1.0, "1" and True are one in every format."""
        if spelt not in self._one:
            if self.labels is None:
                label = one_spelling(normalise(spelt))
            elif spelt in self.labels:
                label = spelt
            else:
                label = same_value(spelt, self.labels) or same_letters(spelt, self.labels) or spelt
            if len(self._one) > KNOWN_SPELLINGS:
                return label
            self._one[spelt] = label
        return self._one[spelt]

    def wrong_rows(self) -> set[int]:
        """Numbers of rows with a cell of a type that cannot be read."""
        return {number for numbers in self.wrong.values() for number in numbers}

    def tell(self) -> None:
        """Notes what was wrong with single rows."""
        for column, numbers in self.wrong.items():
            self.problems.error(
                "wrong_type",
                f"holds lists, objects or bytes in column {column!r}"
                f" ({some_of(self.unit, numbers)}); it must hold strings",
                numbers,
            )
        for column, values in self.unsure.items():
            self.problems.error(
                "no_probability",
                no_probabilities(column, self.unit, len(values), values[:KEPT], self.scale),
                [number for number, _ in values],
            )
        for column, stated in self.sure.items():
            if column not in self.unsure and on_another_scale(stated, self.scale):
                self.problems.error(
                    "no_probability",
                    f"holds no value above 1 in column {column!r}, so that they look like"
                    " probabilities between 0 and 1, and not like"
                    f" {SCALES[self.scale]}; leave annotator.confidence_scale out",
                    [],
                )
        if self.several:
            examples = "; ".join(
                f"{self.unit} {number}: {', '.join(map(shown, given[:SHOWN]))}"
                for number, given in self.several[:SHOWN]
            )
            more = f"; and {len(self.several) - SHOWN} more" if len(self.several) > SHOWN else ""
            self.problems.error(
                "several_labels",
                f"gives {counted(len(self.several), 'row')} several labels in column"
                f" {self.gold_column!r} ({examples}{more}); a text has one label here. Leave one in"
                " each, or empty those cells; answers of several people are decided by `goldloop"
                " import-labels`",
                [number for number, _ in self.several],
            )
        if self.respelt:
            ranked = self.respelt.most_common()
            examples = ", ".join(f"{shown(a)} as {shown(b)} ({n})" for (a, b), n in ranked[:SHOWN])
            more = f", and {len(ranked) - SHOWN} other spellings" if len(ranked) > SHOWN else ""
            self.problems.note(
                "respelt_label",
                f"spells {counted(self.respelt.total(), 'value')} of column {self.gold_column!r} in"
                f" another way than the labels; they were read: {examples}{more}",
            )
        if self.refused:
            reasons = ", ".join(f"{why} ({n})" for why, n in self.refused.most_common(SHOWN))
            self.problems.note(
                "refused_label",
                f"holds {counted(self.refused.total(), 'label')} that people did not confirm:"
                f" {reasons}; these texts have no known label",
            )
        if self.repaired:
            self.problems.note(
                "repaired_text",
                f"has NUL characters or broken Unicode in {counted(len(self.repaired), 'text')}"
                f" ({some_of(self.unit, self.repaired)}), which were removed or replaced by \ufffd",
                self.repaired,
            )


MOST_FILLED = 500  # columns; more, and their names are data
_NO_META: Mapping[str, Any] = {}
KNOWN_SPELLINGS = 10_000  # of labels, that are looked up once


def _fill_in(rows: Sequence[TextRow]) -> None:
    """Gives every row all other columns, None where it has none."""
    names = dict.fromkeys(name for row in rows for name in row.meta)
    for row in rows if len(names) <= MOST_FILLED else ():
        if len(row.meta) < len(names):
            have = dict(row.meta)
            object.__setattr__(row, "meta", {name: have.get(name) for name in names})


def _check_texts(
    rows: Sequence[TextRow], wrong: set[int], unit: str, long_text_chars: int, problems: Problems
) -> None:
    empty = [row.line for row in rows if not normalise(row.text) and row.line not in wrong]
    if empty:
        problems.error(
            "empty_text",
            f"has {counted(len(empty), 'empty text')} ({some_of(unit, empty)}); fill in or remove"
            f" {'that row' if len(empty) == 1 else 'those rows'}",
            empty,
        )
    long = [row for row in rows if len(row.text) > long_text_chars]
    if long:
        longest = max(len(row.text) for row in long)
        problems.note(
            "long_text",
            f"has {counted(len(long), 'text')} of more than {long_text_chars:,} characters"
            f" ({some_of(unit, [r.line for r in long])}; the longest has {longest:,}), of which LLM"
            " and student may read a part: see annotator.max_text_tokens, student.max_tokens and"
            " student.long_texts",
            [row.line for row in long],
        )


def _check_gold(
    rows: Sequence[TextRow],
    unit: str,
    gold_column: str | None,
    labels: Sequence[str] | None,
    problems: Problems,
) -> None:
    counts = Counter(row.gold for row in rows if row.gold is not None)
    if not counts:
        problems.error(
            "no_gold",
            f"has no label in column {gold_column!r}; fill it, or leave texts.gold_column out",
        )
        return
    if len(counts) == 1 and not problems.has("bad_csv", "not_json"):  # then rows are missing
        only = next(iter(counts))
        problems.error(
            "one_class",
            f"has only one class, {shown(only)}, in column {gold_column!r}; with one class nothing"
            " can be learned or measured, so add texts of the others or leave texts.gold_column"
            " out",
        )
    if labels is None:
        return
    unknown = sorted(set(counts) - set(labels))
    lines: dict[str, list[int]] = {label: [] for label in unknown[:SHOWN]}
    for row in rows:
        if row.gold in lines:
            lines[row.gold].append(row.line)
    for label, numbers in lines.items():
        problems.error(
            "unknown_label",
            f"has the unknown label {shown(label)} in column {gold_column!r}"
            f" {counted(len(numbers), 'time')}"
            f" ({some_of(unit, numbers)});{suggestion(label[:100], labels)} allowed:"
            f" {listed(labels)}; correct the column, or add the label to [[labels]]",
            numbers,
        )
    if more := len(unknown) - len(lines):
        problems.error(
            "unknown_label",
            f"has {more:,} more unknown labels in column {gold_column!r}; if it is not the column"
            " with the labels, set texts.gold_column",
        )


def _merge(rows: Sequence[TextRow], unit: str, problems: Problems) -> tuple[TextRow, ...]:
    """One row per normalised text; conflicting gold is an error, other duplicates a note."""
    place: dict[bytes, int] = {}  # of the hash of each text, so that no text is in memory twice
    groups: dict[int, list[TextRow]] = {}
    merged: list[TextRow] = []
    for row in rows:
        if key := normalise(row.text):
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            at = place.setdefault(digest, len(merged))
            if at < len(merged):
                groups.setdefault(at, [merged[at]]).append(row)
            else:
                merged.append(row)
    copies: list[int] = []
    across: list[int] = []
    conflicts: list[tuple[TextRow, TextRow]] = []
    for at, group in groups.items():
        first = group[0]
        known = [row for row in group if row.gold is not None]
        other = next((row for row in known if row.gold != known[0].gold), None)
        if other is not None:
            conflicts.append((known[0], other))
            continue
        splits = {row.split for row in group}
        if len(splits) > 1:
            across.append(first.line)
        split = "test" if "test" in splits else first.split
        gold = known[0].gold if known else None
        merged[at] = TextRow(first.text, gold, split, first.meta, first.line)
        copies += [row.line for row in group[1:]]
    if conflicts:
        examples = "; ".join(
            f"{unit} {a.line} says {shown(a.gold)}, {unit} {b.line} says {shown(b.gold)}"
            f" ({excerpt(a.text)})"
            for a, b in conflicts[:SHOWN]
        )
        more = f"; and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        problems.error(
            "conflicting_gold",
            f"gives {counted(len(conflicts), 'text')} two different gold labels: {examples}{more};"
            " decide for one",
            [n for a, b in conflicts for n in (a.line, b.line)],
        )
    if copies:
        problems.note(
            "duplicate_text",
            f"has {counted(len(copies), 'duplicate text')} ({some_of(unit, copies)}), merged into"
            " the first copy",
            copies,
        )
    if across:
        problems.note(
            "duplicate_across_splits",
            f"has {counted(len(across), 'text')} in more than one split ({some_of(unit, across)});"
            " each stays in 'test' if one copy is there, else where its first copy is",
            across,
        )
    return tuple(merged)
