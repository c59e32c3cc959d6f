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

from connectors.texts.formats import Found, Problem, Raw, Wanted, read_raw
from connectors.texts.values import (
    NESTED,
    SHOWN,
    Format,
    as_text,
    clean_text,
    counted,
    excerpt,
    listed,
    plain,
    shown,
    some_of,
)
from loop.errors import DataError, suggestion
from loop.ports import normalise

LONG_TEXT_CHARS = 20_000  # far beyond what an encoder of 512 tokens reads


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
    long_text_chars: int = LONG_TEXT_CHARS,
) -> Table:
    """Reads a source and everything that is wrong with it; raises nothing for bad data.

    Texts that are the same after :func:`loop.ports.normalise` become one row, which keeps the
    first row's other columns. If one copy is in split ``test``, the merged row is: a test text
    must not be trained on.

    Args:
        source: path of a CSV, TSV, JSONL, JSON (list of objects) or Parquet file, a folder saved
            by ``datasets``, or ``hf:NAME`` (``hf:NAME#CONFIG`` for a named configuration).
        format: ``auto`` goes by the file name.
        hf_split: which split of a data set to read.
        meta_columns: other columns to keep; None keeps none, "plain" those without lists, objects
            or bytes, which can be very large, and those that are ``named``.
        named: see ``meta_columns``; those that the source lacks are not told.
        labels: the campaign's classes; gold labels are checked against them if given.
        long_text_chars: texts longer than this get a note.
    """
    found = Found(source)
    given = {"text": text_column, "gold": gold_column, "split": split_column}
    chosen = () if isinstance(meta_columns, str) else tuple(meta_columns or ())

    def wanted(name: str, plain: bool, /) -> bool:
        if name in given.values() or name in chosen:
            return True
        return meta_columns == "all" or (meta_columns == "plain" and (plain or name in named))

    raw = read_raw(source, format, hf_split, wanted, found)
    if raw is None:
        return Table((), (), found.sorted())
    asked = {
        **{role: name for role, name in given.items() if name},
        **{f"meta {c}": c for c in chosen},
    }
    _check_columns(asked, raw.columns, found)
    if text_column not in raw.columns:
        text_column = ""  # gold labels are still checked
    meta = [
        c
        for c in (raw.columns if isinstance(meta_columns, str) else chosen)
        if c not in given.values() and c not in raw.skipped
    ]
    rows, wrong = _rows(raw, text_column, gold_column, split_column, meta, wanted, found)
    if not rows:
        told = ("empty_file", "not_json", "ragged", "unreadable", "missing_column")
        if not found.has(*told):
            found.error("empty_file", "holds no rows; name a source with at least two texts")
        return Table(raw.columns, (), found.sorted())
    if text_column:
        _check_texts(rows, wrong, raw.unit, long_text_chars, found)
    if gold_column in raw.columns:
        _check_gold(rows, raw.unit, gold_column, labels, found)
    unique = _merge(rows, raw.unit, found) if text_column else ()
    return Table(raw.columns, unique, found.sorted())


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


def _check_columns(given: Mapping[str, str | None], columns: Sequence[str], found: Found) -> None:
    for role, name in given.items():
        if name is None or name in columns or not columns:
            continue
        setting = f"texts.{role}_column" if " " not in role else "the campaign file"
        found.error(
            "missing_column",
            f"has no column {name!r};{suggestion(name, columns)} available:"
            f" {listed(columns)}; set {setting}",
        )


def _rows(
    raw: Raw,
    text_column: str,
    gold_column: str | None,
    split_column: str | None,
    meta_columns: Sequence[str],
    wanted: Wanted,
    found: Found,
) -> tuple[list[TextRow], set[int]]:
    """The rows, and the numbers of those with a cell of a type that cannot be read."""
    rows: list[TextRow] = []
    wrong: dict[str, list[int]] = {}
    repaired: list[int] = []
    for number, record in raw.records:

        def cell(
            column: str | None,
            number: int = number,
            record: dict[str, Any] = record,
        ) -> str:
            value = record.get(column) if column else None
            if isinstance(value, NESTED):
                wrong.setdefault(column or "", []).append(number)
                return ""
            return as_text(value)

        text = cell(text_column)
        clean = clean_text(text)
        if clean != text:
            repaired.append(number)
        gold = clean_text(cell(gold_column)).strip() or None
        split = clean_text(cell(split_column)).strip() or None
        values = ((c, record.get(c)) for c in meta_columns)
        meta = {c: plain(v) for c, v in values if wanted(c, not isinstance(v, NESTED))}
        rows.append(TextRow(clean, gold, split, meta, number))
    for column, numbers in wrong.items():
        found.error(
            "wrong_type",
            f"holds lists, objects or bytes in column {column!r} ({some_of(raw.unit, numbers)});"
            " it must hold strings",
            numbers,
        )
    if repaired:
        found.note(
            "repaired_text",
            f"has NUL characters or broken Unicode in {counted(len(repaired), 'text')}"
            f" ({some_of(raw.unit, repaired)}), which were removed or replaced by \ufffd",
            repaired,
        )
    return rows, {number for numbers in wrong.values() for number in numbers}


def _check_texts(
    rows: Sequence[TextRow], wrong: set[int], unit: str, long_text_chars: int, found: Found
) -> None:
    empty = [row.line for row in rows if not normalise(row.text) and row.line not in wrong]
    if empty:
        found.error(
            "empty_text",
            f"has {counted(len(empty), 'empty text')} ({some_of(unit, empty)}); fill in or remove"
            f" {'that row' if len(empty) == 1 else 'those rows'}",
            empty,
        )
    long = [row for row in rows if len(row.text) > long_text_chars]
    if long:
        longest = max(len(row.text) for row in long)
        found.note(
            "long_text",
            f"has {counted(len(long), 'text')} of more than {long_text_chars:,} characters"
            f" ({some_of(unit, [r.line for r in long])}; the longest has {longest:,}); the LLM and"
            " the student read only the beginning, as far as annotator.max_text_tokens and"
            " student.max_tokens go",
            [row.line for row in long],
        )


def _check_gold(
    rows: Sequence[TextRow],
    unit: str,
    gold_column: str | None,
    labels: Sequence[str] | None,
    found: Found,
) -> None:
    counts = Counter(row.gold for row in rows if row.gold is not None)
    if not counts:
        found.error(
            "no_gold",
            f"has no label in column {gold_column!r}; fill it, or leave texts.gold_column out",
        )
        return
    if len(counts) == 1:
        only = next(iter(counts))
        found.error(
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
        found.error(
            "unknown_label",
            f"has the unknown label {shown(label)} in column {gold_column!r}"
            f" {counted(len(numbers), 'time')} ({some_of(unit, numbers)});"
            f"{suggestion(label[:100], labels)} allowed: {listed(labels)}; mend the column, or add"
            " the label to [[labels]]",
            numbers,
        )
    if more := len(unknown) - len(lines):
        found.error(
            "unknown_label",
            f"has {more:,} more unknown labels in column {gold_column!r}; if it is not the column"
            " with the labels, set texts.gold_column",
        )


def _merge(rows: Sequence[TextRow], unit: str, found: Found) -> tuple[TextRow, ...]:
    """One row per normalised text; conflicting gold is an error, other duplicates a note."""
    groups: dict[bytes, list[TextRow]] = {}
    for row in rows:
        if key := normalise(row.text):  # its hash, lest every text is in memory twice
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            groups.setdefault(digest, []).append(row)
    merged: list[TextRow] = []
    copies: list[int] = []
    across: list[int] = []
    conflicts: list[tuple[TextRow, TextRow]] = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1:
            merged.append(first)
            continue
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
        merged.append(TextRow(first.text, gold, split, first.meta, first.line))
        copies += [row.line for row in group[1:]]
    if conflicts:
        examples = "; ".join(
            f"{unit} {a.line} says {shown(a.gold)}, {unit} {b.line} says {shown(b.gold)}"
            f" ({excerpt(a.text)})"
            for a, b in conflicts[:SHOWN]
        )
        more = f"; and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        found.error(
            "conflicting_gold",
            f"gives {counted(len(conflicts), 'text')} two different gold labels: {examples}{more};"
            " decide for one",
            [n for a, b in conflicts for n in (a.line, b.line)],
        )
    if copies:
        found.note(
            "duplicate_text",
            f"has {counted(len(copies), 'duplicate text')} ({some_of(unit, copies)}), merged into"
            " the first copy",
            copies,
        )
    if across:
        found.note(
            "duplicate_across_splits",
            f"has {counted(len(across), 'text')} in more than one split ({some_of(unit, across)});"
            " each stays in 'test' if one copy is there, else where its first copy is",
            across,
        )
    return tuple(merged)
