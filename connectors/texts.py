"""Texts in and labels out: CSV, JSONL, Parquet and Hugging Face data sets.

Reading finds everything that is wrong in one pass: :func:`find_problems` lists it,
:func:`load_texts` raises it, :func:`read_texts` gives rows and problems together. Writing is
atomic: a half-written file never has the final name.

CSV cells that a spreadsheet would run as a formula (they begin with ``=``, ``+``, ``-``, ``@``,
a tab or a line break) are written with a leading apostrophe; :func:`unescape_cell` takes it off
again. Numbers, JSONL, Parquet and data sets are written as they are.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loop.errors import DataError
from loop.items import normalise

Format = Literal["auto", "csv", "jsonl", "parquet", "hf"]
FORMATS = ("csv", "jsonl", "parquet", "hf")
LONG_TEXT_CHARS = 20_000  # far beyond what an encoder of 512 tokens reads
MAX_FIELD_BYTES = 2**31 - 1  # the csv module's own limit, 131,072, refuses honest long texts
SHOWN = 5  # examples named in one message

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
DATASETS_MISSING = (
    "Hugging Face data sets need the package 'datasets'; install it with"
    " `pip install 'goldloop[datasets]'`."
)


@dataclass(frozen=True)
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
class Problem:
    """One thing that is wrong, or worth knowing, about a source.

    Attributes:
        level: an ``error`` keeps the source from being used, a ``note`` does not.
        kind: a short name, such as ``missing_column``.
        message: one sentence that says what to do.
        rows: the lines or rows concerned, all of them.
    """

    level: Literal["error", "note"]
    kind: str
    message: str
    rows: tuple[int, ...] = ()


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
    meta_columns: Sequence[str] | Literal["all"] | None = "all",
    labels: Sequence[str] | None = None,
    long_text_chars: int = LONG_TEXT_CHARS,
) -> Table:
    """Reads a source and everything that is wrong with it; raises nothing for bad data.

    Texts that are the same after :func:`loop.items.normalise` become one row, which keeps the
    first row's other columns. If one copy is in split ``test``, the merged row is: a test text
    must not be trained on.

    Args:
        source: path of a CSV, TSV, JSONL, JSON (list of objects) or Parquet file, a folder saved
            by ``datasets``, or ``hf:NAME`` (``hf:NAME#CONFIG`` for a named configuration).
        format: ``auto`` goes by the file name.
        hf_split: which split of a data set to read.
        meta_columns: other columns to keep; None keeps none.
        labels: the campaign's classes; gold labels are checked against them if given.
        long_text_chars: texts longer than this get a note.
    """
    found = _Found(source)
    if meta_columns == "all":
        wanted = None
    else:
        named = (text_column, gold_column, split_column, *(meta_columns or ()))
        wanted = [name for name in dict.fromkeys(named) if name is not None]
    raw = _read_raw(source, format, hf_split, wanted, found)
    if raw is None:
        return Table((), (), found.sorted())
    given = {"text": text_column, "gold": gold_column, "split": split_column}
    kept = list(raw.columns) if meta_columns == "all" else list(meta_columns or ())
    asked = {
        **{role: name for role, name in given.items() if name},
        **{f"meta {c}": c for c in kept},
    }
    _check_columns(asked, raw.columns, found)
    if not raw.records:
        if not found.has("empty_file", "not_json", "ragged"):
            found.error("empty_file", "holds no rows; name a source with at least two texts")
        return Table(raw.columns, (), found.sorted())
    if text_column not in raw.columns:
        text_column = ""  # gold labels are still checked
    meta = [c for c in kept if c not in given.values()]
    rows = _rows(raw, text_column, gold_column, split_column, meta, found)
    if text_column:
        _check_texts(rows, raw.unit, long_text_chars, found)
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


def source_columns(
    source: str,
    *,
    format: Format = "auto",
    hf_split: str = "train",
) -> tuple[str, ...]:
    """Names of the source's columns.

    Raises:
        DataError: the source cannot be read at all.
    """
    found = _Found(source)
    raw = _read_raw(source, format, hf_split, None, found)
    if raw is None:
        raise DataError("\n".join(problem.message for problem in found.sorted()))
    return raw.columns


def write_labels(
    rows: Iterable[Mapping[str, Any]],
    path: str | Path,
    format: Format | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Writes records as CSV, JSONL, Parquet or a Hugging Face ``save_to_disk`` folder, atomically.

    CSV cells with lists or objects hold JSON, None is an empty cell, and cells that begin like a
    formula get a leading apostrophe (see :func:`escape_cell`).

    Args:
        path: ``.csv``, ``.jsonl``, ``.parquet``; a name without an extension is a folder (hf).
        format: overrides the extension.
        columns: names and order; by default the keys in the order in which they first appear.
    Raises:
        DataError: unknown extension, no permission, or ``datasets`` is not installed.
    """
    path = Path(path)
    kind = _format_to_write(path, format)
    records = [{str(k): plain(v) for k, v in row.items()} for row in rows]
    names = list(columns or dict.fromkeys(name for record in records for name in record))
    write = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet, "hf": _write_hf}
    try:
        if path.is_dir() and kind != "hf":
            raise DataError(f"{path} is a folder; name a file in it, such as {path}/labels.csv.")
        path.parent.mkdir(parents=True, exist_ok=True)
        write[kind](records, names, path)
    except OSError as exc:
        reason = exc.strerror or exc
        raise DataError(f"{path} cannot be written: {reason}; name another place.") from exc


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def escape_cell(cell: str) -> str:
    """The cell with a leading apostrophe if a spreadsheet would run it as a formula.

    Cells that already look escaped get one apostrophe more, so that :func:`unescape_cell` gives
    every cell back exactly.
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_cell(cell: str) -> str:
    """What :func:`escape_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


# reading


@dataclass
class _Raw:
    """Records as a format gives them.

    Attributes:
        unit: ``line`` or ``row``, what numbers count.
        records: (number, values by column).
    """

    columns: tuple[str, ...]
    unit: str
    records: list[tuple[int, dict[str, Any]]]


class _Found:
    """Collects problems of one source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def error(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        self.problems.append(Problem("error", kind, f"{self.source} {message}.", tuple(rows)))

    def note(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        self.problems.append(Problem("note", kind, f"{self.source} {message}.", tuple(rows)))

    def has(self, *kinds: str) -> bool:
        return any(p.kind in kinds for p in self.problems)

    def sorted(self) -> tuple[Problem, ...]:
        return tuple(sorted(self.problems, key=lambda p: p.level != "error"))


def _read_raw(
    source: str, kind: str, hf_split: str, wanted: list[str] | None, found: _Found
) -> _Raw | None:
    """The source's records, or None with the reason among the problems."""
    if source.startswith("hf:"):
        return _read_hf(source.removeprefix("hf:"), hf_split, wanted, found)
    path = Path(source)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, near)
        found.error("missing_file", f"does not exist;{hint} check texts.source")
        return None
    if path.is_dir():
        return _read_hf(source, hf_split, wanted, found)
    if kind == "auto":
        kind = SUFFIXES.get(path.suffix.lower(), "")
    if kind not in FORMATS:
        found.error(
            "unknown_format",
            f"has the unknown extension {path.suffix!r}; set texts.format to csv, jsonl, parquet"
            " or hf, or rename the file",
        )
        return None
    try:
        if path.stat().st_size == 0:
            found.error("empty_file", "is empty; name a source with at least two texts")
            return None
        if kind == "parquet":
            return _read_parquet(path, wanted, found)
        text = _decode(path.read_bytes(), found)
    except OSError as exc:
        found.error("unreadable", f"cannot be read: {exc.strerror or exc}; check its permissions")
        return None
    if text is None:
        return None
    if not text.strip():
        found.error("empty_file", "holds only white space; name a source with at least two texts")
        return None
    return _read_csv(text, path, found) if kind == "csv" else _read_json(text, found)


def _decode(data: bytes, found: _Found) -> str | None:
    """UTF-8 with or without a byte order mark; bad bytes are reported and replaced."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found.error("invalid_utf8", "is UTF-16, not UTF-8; save it as UTF-8 and try again")
        return None
    mark = b"\xef\xbb\xbf"
    try:
        return data.decode("utf-8").removeprefix(mark.decode())
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        found.error(
            "invalid_utf8",
            f"is not valid UTF-8 at byte {exc.start} (line {line}, 0x{data[exc.start]:02x});"
            " save it as UTF-8 and try again",
            [line],
        )
        return data.removeprefix(mark).decode("utf-8", "replace")


def _read_csv(text: str, path: Path, found: _Found) -> _Raw | None:
    csv.field_size_limit(MAX_FIELD_BYTES)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else csv_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, dict[str, Any]]] = []
    ragged: list[tuple[int, int]] = []
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    names = ", ".join(repr(name) for name in twice)
                    found.error(
                        "duplicate_column", f"names the column {names} twice; rename one of them"
                    )
                continue
            if len(cells) != len(header):
                ragged.append((start, len(cells)))
                continue
            records.append((start, dict(zip(header, cells, strict=True))))
    except csv.Error as exc:
        found.error(
            "bad_csv",
            f"is broken in the row that begins at line {line}: {exc}; check the quotes there"
            ' (a quote inside a quoted cell is written twice, "")',
            [line],
        )
    if ragged:
        shown = ", ".join(f"line {at}: {n}" for at, n in ragged[:SHOWN])
        found.error(
            "ragged",
            f"has {_count(len(ragged), 'row')} whose number of cells is not the header's"
            f" {len(header)} ({shown}{', …' if len(ragged) > SHOWN else ''}); quote cells that hold"
            f" {delimiter!r} or line breaks, or mend those rows",
            [at for at, _ in ragged],
        )
    return _Raw(tuple(header), "line", records)


def csv_delimiter(text: str) -> str:
    """Comma, semicolon or tab: the one that cuts the header into most cells; ties go to comma."""
    head = text.lstrip("\r\n").split("\n", 1)[0]

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([head], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(",;\t", key=cells)


def _read_json(text: str, found: _Found) -> _Raw | None:
    """One object a line, or one list of objects."""
    records: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    bad: list[tuple[int, str]] = []
    not_objects: list[int] = []
    unit = "line"

    def take(number: int, value: Any) -> None:
        if isinstance(value, dict):
            records.append((number, value))
            columns.update(dict.fromkeys(value))
        else:
            not_objects.append(number)

    whole: Any = None
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            whole = None  # told line by line below
    if isinstance(whole, list):
        unit = "row"
        for number, value in enumerate(whole, start=1):
            take(number, value)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                take(number, json.loads(line))
            except RecursionError:
                bad.append((number, "nested too deeply"))
            except ValueError as exc:
                bad.append((number, getattr(exc, "msg", str(exc))))
    if bad:
        number, reason = bad[0]
        more = f" (and {len(bad) - 1} more lines)" if len(bad) > 1 else ""
        found.error(
            "not_json",
            f"holds invalid JSON at line {number}{more}: {reason}; write one JSON object a line",
            [n for n, _ in bad],
        )
    if not_objects:
        found.error(
            "not_json",
            f"holds {_count(len(not_objects), unit)} that are no JSON objects"
            f' ({_some(unit, not_objects)}); write objects such as {{"text": "…"}}',
            not_objects,
        )
    return _Raw(tuple(columns), unit, records)


def _read_parquet(path: Path, wanted: list[str] | None, found: _Found) -> _Raw | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
        table = file.read([n for n in names if wanted is None or n in wanted])
        class_names = _class_names_in_metadata(file.schema_arrow.metadata or {})
        records = table.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as exc:
        reason = str(exc).splitlines()[0].rstrip(".")
        found.error("unreadable", f"is not a readable Parquet file: {reason}; write it again")
        return None
    _name_classes(records, class_names)
    return _Raw(names, "row", list(enumerate(records, start=1)))


def _read_hf(name: str, split: str, wanted: list[str] | None, found: _Found) -> _Raw | None:
    """A folder saved by ``datasets``, or a data set of the Hub."""
    saved = Path(name)
    if saved.is_dir() and not any(
        (saved / mark).is_file() for mark in ("dataset_dict.json", "state.json")
    ):
        found.error(
            "unknown_format",
            "is a folder that `datasets` did not save; name a file in it, or save it with"
            " save_to_disk",
        )
        return None
    try:
        import datasets
    except ImportError:
        found.problems.append(Problem("error", "missing_extra", DATASETS_MISSING))
        return None
    try:
        if saved.is_dir():
            data = datasets.load_from_disk(str(saved))
        else:
            path, _, config = name.partition("#")
            data = datasets.load_dataset(path, config or None)
        if isinstance(data, Mapping):
            if split not in data:
                hint = suggestion(split, data)
                found.error(
                    "missing_split",
                    f"has no split {split!r};{hint} available: {', '.join(data)}; set"
                    " texts.hf_split",
                )
                return None
            data = data[split]
        columns = tuple(data.column_names)
        if wanted is not None:
            data = data.select_columns([c for c in columns if c in wanted])
        records = data.to_list()
    except Exception as exc:  # datasets lets errors of its many readers and of the network through
        first = (str(exc).splitlines() or [""])[0].rstrip(".")
        reason = f"{type(exc).__name__}: {first}" if first else type(exc).__name__
        found.error(
            "unreadable", f"cannot be loaded as a data set ({reason}); check name and network"
        )
        return None
    features = getattr(data, "features", None) or {}
    _name_classes(records, {c: f.names for c, f in features.items() if hasattr(f, "names")})
    return _Raw(columns, "row", list(enumerate(records, start=1)))


def _class_names_in_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Class names that ``datasets`` leaves in the Parquet files it writes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _name_classes(records: list[dict[str, Any]], class_names: Mapping[str, Sequence[str]]) -> None:
    """Turns class numbers into their names, in place; -1 is the format's word for unknown."""
    for column, names in class_names.items():
        for record in records:
            value = record.get(column)
            if isinstance(value, int):
                record[column] = names[value] if 0 <= value < len(names) else None


# from records to rows


def _check_columns(given: Mapping[str, str | None], columns: Sequence[str], found: _Found) -> None:
    for role, name in given.items():
        if name is None or name in columns or not columns:
            continue
        setting = f"texts.{role}_column" if " " not in role else "the campaign file"
        found.error(
            "missing_column",
            f"has no column {name!r};{suggestion(name, columns)} available:"
            f" {', '.join(columns)}; set {setting}",
        )


def _rows(
    raw: _Raw,
    text_column: str,
    gold_column: str | None,
    split_column: str | None,
    meta_columns: Sequence[str],
    found: _Found,
) -> list[TextRow]:
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
            if isinstance(value, list | tuple | dict | set | bytes):
                wrong.setdefault(column or "", []).append(number)
                return ""
            return as_text(value)

        text = cell(text_column)
        clean = clean_text(text)
        if clean != text:
            repaired.append(number)
        gold = clean_text(cell(gold_column)).strip() or None
        split = clean_text(cell(split_column)).strip() or None
        meta = {c: plain(record.get(c)) for c in meta_columns}
        rows.append(TextRow(clean, gold, split, meta, number))
    for column, numbers in wrong.items():
        found.error(
            "wrong_type",
            f"holds lists, objects or bytes in column {column!r} ({_some(raw.unit, numbers)});"
            " it must hold strings",
            numbers,
        )
    if repaired:
        found.note(
            "repaired_text",
            f"has NUL characters or broken Unicode in {_count(len(repaired), 'text')}"
            f" ({_some(raw.unit, repaired)}), which were removed or replaced by \ufffd",
            repaired,
        )
    return rows


def _check_texts(rows: Sequence[TextRow], unit: str, long_text_chars: int, found: _Found) -> None:
    wrong = {n for p in found.problems if p.kind == "wrong_type" for n in p.rows}
    empty = [row.line for row in rows if not normalise(row.text) and row.line not in wrong]
    if empty:
        found.error(
            "empty_text",
            f"has {_count(len(empty), 'empty text')} ({_some(unit, empty)}); fill in or remove"
            f" {'that row' if len(empty) == 1 else 'those rows'}",
            empty,
        )
    long = [row for row in rows if len(row.text) > long_text_chars]
    if long:
        longest = max(len(row.text) for row in long)
        found.note(
            "long_text",
            f"has {_count(len(long), 'text')} of more than {long_text_chars:,} characters"
            f" ({_some(unit, [r.line for r in long])}; the longest has {longest:,}); the LLM and"
            " the student read only the beginning, as far as annotator.max_text_tokens and"
            " student.max_tokens go",
            [row.line for row in long],
        )


def _check_gold(
    rows: Sequence[TextRow],
    unit: str,
    gold_column: str | None,
    labels: Sequence[str] | None,
    found: _Found,
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
            f"has only one class, {only!r}, in column {gold_column!r}; with one class nothing can"
            " be learned or measured, so add texts of the others or leave texts.gold_column out",
        )
    if labels is None:
        return
    for label in sorted(set(counts) - set(labels)):
        lines = [row.line for row in rows if row.gold == label]
        found.error(
            "unknown_label",
            f"has the unknown label {label!r} in column {gold_column!r}"
            f" {_count(len(lines), 'time')} ({_some(unit, lines)});{suggestion(label, labels)}"
            f" allowed: {', '.join(labels)}; mend the column, or add the label to [[labels]]",
            lines,
        )


def _merge(rows: Sequence[TextRow], unit: str, found: _Found) -> tuple[TextRow, ...]:
    """One row per normalised text; conflicting gold is an error, other duplicates a note."""
    groups: dict[str, list[TextRow]] = {}
    for row in rows:
        key = normalise(row.text)
        if key:
            groups.setdefault(key, []).append(row)
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
        shown = "; ".join(
            f"{unit} {a.line} says {a.gold!r}, {unit} {b.line} says {b.gold!r} ({_excerpt(a.text)})"
            for a, b in conflicts[:SHOWN]
        )
        more = f"; and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        found.error(
            "conflicting_gold",
            f"gives {_count(len(conflicts), 'text')} two different gold labels: {shown}{more};"
            " decide for one",
            [n for a, b in conflicts for n in (a.line, b.line)],
        )
    if copies:
        found.note(
            "duplicate_text",
            f"has {_count(len(copies), 'duplicate text')} ({_some(unit, copies)}), merged into the"
            " first copy",
            copies,
        )
    if across:
        found.note(
            "duplicate_across_splits",
            f"has {_count(len(across), 'text')} in more than one split ({_some(unit, across)});"
            " each stays in 'test' if one copy is there, else where its first copy is",
            across,
        )
    return tuple(merged)


# values


_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Without NUL, which databases refuse, and lone surrogates, which UTF-8 does."""
    return _SURROGATE.sub("\ufffd", text.replace("\0", ""))


def as_text(value: Any) -> str:
    """Numbers become strings, None and NaN nothing; 1.0 is 1, as a column of integers with gaps."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def plain(value: Any) -> Any:
    """The value in JSON's terms."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return clean_text(str(value))


# sentences


def suggestion(word: str, known: Iterable[str]) -> str:
    """`` did you mean 'x'?`` with a leading space, or nothing."""
    names = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), list(names), n=1, cutoff=0.6)
    return f" did you mean {names[close[0]]!r}?" if close else ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(unit: str, numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:SHOWN])
    more = ", …" if len(numbers) > SHOWN else ""
    return f"{unit}{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _excerpt(text: str) -> str:
    text = normalise(text)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


# writing


def _format_to_write(path: Path, format_: str | None) -> str:
    suffix = path.suffix.lower()
    kind = format_ or "auto"
    if kind == "auto":
        kind = {"": "hf", ".tsv": "", ".json": ""}.get(suffix, SUFFIXES.get(suffix, ""))
    if kind not in FORMATS:
        raise DataError(
            f"Cannot tell the format of {path.name!r} from its extension {suffix!r};"
            " use .csv, .jsonl, .parquet, or no extension for a folder that `datasets` loads."
        )
    return kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place on success and vanishes on failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            if path.exists():
                path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _write_csv(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return escape_cell(value)
        if isinstance(value, bool | list | dict):
            return json.dumps(value, ensure_ascii=False)
        return repr(value)

    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\r\n")  # else a lone \r is not quoted
        writer.writerow([escape_cell(name) for name in names])
        writer.writerows([cell(record.get(name)) for name in names] for record in records)


def _write_jsonl(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as handle:
        for record in records:
            ordered = {name: record.get(name) for name in names}
            handle.write(json.dumps(ordered, ensure_ascii=False, allow_nan=False) + "\n")


def _arrow_columns(records: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """One Arrow array per column; columns of mixed types become JSON strings."""
    import pyarrow as pa

    arrays = {}
    for name in names:
        values = [record.get(name) for record in records]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            arrays[name] = pa.array(
                [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
            )
    return arrays


def _write_parquet(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as partial:
        pq.write_table(pa.table(_arrow_columns(records, names)), partial)


def _write_hf(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    try:
        import datasets
    except ImportError as exc:
        raise DataError(DATASETS_MISSING) from exc
    if path.exists() and not (path / "state.json").is_file():
        raise DataError(f"{path} exists and is no saved data set; name another folder.")
    data = {name: array.to_pylist() for name, array in _arrow_columns(records, names).items()}
    with replacing(path) as partial:
        datasets.Dataset.from_dict(data).save_to_disk(str(partial))
