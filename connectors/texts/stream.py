"""Tables of texts of any size, read and written in pieces: CSV, JSONL, Parquet, workbooks, text.

Unlike :mod:`connectors.texts.read`, which holds a campaign's texts in memory and refuses a source
with faulty rows, a stream is looked through once for columns and faults, and then read piece by
piece. Rows that cannot be read are left out and reported; texts that are empty stay in their place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from connectors.texts.arrow_rows import ArrowCell, arrow_column, batch_rows, is_plain
from connectors.texts.json_rows import JsonRows
from connectors.texts.label_cells import ABSENT, lookup
from connectors.texts.opening import (
    BROKEN_PACKING,
    inner_suffix,
    kind_of,
    look_at,
    open_text,
    other_archive,
    stranger,
)
from connectors.texts.sheets import (
    CsvRows,
    Row,
    Sheet,
    Unreadable,
    open_workbook,
    rows_above,
    swallowed_rows,
)
from connectors.texts.values import (
    EXCEL_MISSING,
    NESTED,
    PACKED,
    SUFFIXES,
    Format,
    as_text,
    clean_text,
    is_formula,
    listed,
    plain,
)
from connectors.texts.write import CsvCells, check_file
from loop.errors import DataError, counted, suggestion
from loop.files import SHARED, as_text_file, replacing
from loop.ports import normalise

TEXT_SUFFIXES = (".txt", ".text")
KEPT = 20  # faulty rows that are remembered by number; all are counted


@dataclass(frozen=True)
class StreamRow:
    """One row of a stream.

    Attributes:
        number: 1-based line (CSV, JSONL, text) or row (Parquet).
        text: empty where there is none.
        values: all columns, as the source has them.
    """

    number: int
    text: str
    values: Mapping[str, Any]


@dataclass
class Faults:
    """Rows of one kind of fault: how many, and the first few of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, number: int, reason: str = "") -> None:
        """Counts one more."""
        if len(self.first) < KEPT:
            self.first.append(number)
        self.reason = self.reason or reason
        self.count += 1

    def told(self, unit: str) -> str:
        """``3 (lines 4, 8, 9)``."""
        shown = ", ".join(str(n) for n in self.first[:5])
        more = ", …" if self.count > 5 else ""
        return f"{self.count:,} ({unit}{'' if self.count == 1 else 's'} {shown}{more})"


class TextStream:
    """A file of texts, looked through once when opened.

    Args:
        format: what the file is; ``auto`` goes by its name.

    Attributes:
        columns: all columns that are carried along, in order.
        left_out: what is not carried along, in words.
        doubts: how the file as a whole may have been misread, in words.
        unit: ``line`` or ``row``, what numbers count.
        rows: how many rows can be read, those with an empty text included.
        empty: rows without a text.
        unreadable: rows that are left out.
        formulas: whether a spreadsheet would run one of the cells as a formula.

    Raises:
        DataError: no such file, unknown format, broken beyond single rows, no column of that name,
            or no text at all.
    """

    def __init__(self, path: Path, text_column: str = "text", format: Format = "auto") -> None:
        self.path = path
        self.text_column = text_column
        self._kind = _kind(path, format)
        self.unit = "row" if self._kind in ("parquet", "excel") else "line"
        self.empty, self.unreadable = Faults(), Faults()
        self.rows = 0
        self.formulas = False
        self.left_out: list[str] = []
        self.doubts: list[str] = []
        self._header_below: int | None = None
        self._refuse_other_kinds()
        seen: dict[str, None] = {}
        resolved = False
        for number, read in self._read(seen):
            if isinstance(read, Unreadable):
                self.unreadable.add(number, _told(self.unit, number, read))
                continue
            self.rows += 1
            resolved = resolved or lookup(read, text_column) is not ABSENT
            self.formulas = self.formulas or any(map(_runs, read.values()))
            if not normalise(self._text(read)):
                self.empty.add(number)
        self.columns = tuple(seen)
        self._check(resolved)

    def _refuse_other_kinds(self) -> None:
        with _faults(self.path):
            what = stranger(self.path, self._kind)
            if not what and self._kind in ("csv", "jsonl", "txt"):
                what = look_at(self.path).wrong
        if what:
            raise DataError(f"{self.path} {what}.")

    def _check(self, resolved: bool) -> None:
        if self.columns and self.text_column not in self.columns and not resolved:
            raise DataError(
                f"{self.path} has no column {self.text_column!r};"
                f"{suggestion(self.text_column, self.columns)} available:"
                f" {listed(self.columns)}; name the column with the texts with --text-column"
                f"{rows_above(self._header_below)}."
            )
        if self.rows == self.empty.count:
            why = f"; its first fault is {self.unreadable.reason}" if self.unreadable.count else ""
            raise DataError(f"{self.path} holds no text{why}.")

    @property
    def arrow_schema(self) -> Any:
        """The types of the columns of a Parquet file; None for other formats."""
        if self._kind != "parquet":
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _faults(self.path):
            schema = pq.read_schema(self.path)
        names = schema.names
        return pa.schema([f for f in schema if names.count(f.name) == 1], schema.metadata)

    @property
    def suffix(self) -> str:
        """Extension of a file that can hold these columns, and more."""
        suffix = inner_suffix(self.path)
        known = {"txt": ".csv", "jsonl": ".jsonl", "excel": ".csv"}
        return known.get(self._kind, suffix if suffix in SUFFIXES else f".{self._kind}")

    @property
    def stem(self) -> str:
        """The file's name without its extension; of ``texts.csv.gz`` it is ``texts``."""
        packed = self.path.suffix.lower() in PACKED
        return Path(self.path.stem).stem if packed else self.path.stem

    def lines(self) -> list[str]:
        """What is wrong with single rows, for people to read."""
        told = []
        if self.empty.count:
            told.append(f"Rows without a text, which get no label: {self.empty.told(self.unit)}.")
        if self.unreadable.count:
            told.append(
                f"Rows that cannot be read and are left out: {self.unreadable.told(self.unit)};"
                f" the first is {self.unreadable.reason}."
            )
        told += [f"{self.path} {what}." for what in self.doubts]
        told += [f"Left out: {what}." for what in self.left_out]
        return told

    def pieces(self, size: int) -> Iterator[list[StreamRow]]:
        """Readable rows in order, ``size`` at a time."""
        piece: list[StreamRow] = []
        for number, read in self._read({}):
            if isinstance(read, Unreadable):
                continue
            piece.append(StreamRow(number, self._text(read), read))
            if len(piece) == size:
                yield piece
                piece = []
        if piece:
            yield piece

    def _text(self, row: Mapping[str, Any]) -> str:
        value = lookup(row, self.text_column)
        value = value.as_py() if isinstance(value, ArrowCell) else value
        if value is ABSENT or isinstance(value, NESTED):
            return ""
        return clean_text(as_text(value))

    def _read(self, seen: dict[str, None]) -> Iterator[Row]:
        """All rows; ``seen`` is told the columns."""
        read = {
            "csv": self._read_csv,
            "excel": self._read_workbook,
            "jsonl": self._read_json,
            "parquet": self._read_parquet,
            "txt": self._read_lines,
        }[self._kind]
        with _faults(self.path):
            yield from read(seen)

    def _read_csv(self, seen: dict[str, None]) -> Iterator[Row]:
        rows = CsvRows(self.path, (self.text_column,))
        sheet = Sheet(rows, names=(self.text_column,), keep_blank=True)
        yield from self._of_sheet(sheet, seen)
        if rows.swallowed:
            self._doubt(swallowed_rows(rows.swallowed))

    def _read_workbook(self, seen: dict[str, None]) -> Iterator[Row]:
        try:
            book = open_workbook(self.path)
        except ImportError as exc:
            raise DataError(EXCEL_MISSING) from exc
        except ValueError as exc:
            raise DataError(f"{self.path} is not a readable workbook: {exc}.") from exc
        sheet = Sheet(book.rows, names=(self.text_column,), keep_blank=True)
        yield from self._of_sheet(sheet, seen)
        if len(book.sheets) > 1:
            self._leave_out(f"the sheets besides the first one, {book.sheets[0]!r}")

    def _of_sheet(self, sheet: Sheet, seen: dict[str, None]) -> Iterator[Row]:
        if self.text_column in sheet.twice:
            raise DataError(
                f"{self.path} names a column twice, {self.text_column!r}; rename one of them."
            )
        self._header_below = sheet.header_below
        seen.update(dict.fromkeys(sheet.columns))
        yield from sheet
        if sheet.twice:
            self._leave_out(f"all but the first of the columns {', '.join(sheet.twice)}")
        if sheet.repeated:
            many = len(sheet.repeated)
            self._leave_out(
                f"{counted(many, 'row')} that repeat{'s' * (many == 1)} the column names"
            )
        if sheet.unnamed:
            self._leave_out(f"{counted(sheet.unnamed, 'value')} under no column name")

    def _read_json(self, seen: dict[str, None]) -> Iterator[Row]:
        rows = JsonRows(self.path, (self.text_column,))
        self.unit = rows.unit
        for number, row in rows:
            if isinstance(row, Unreadable):
                if row.kind == "broken_json":
                    raise DataError(f"{self.path} is not valid JSON at {row.reason}.")
            else:
                seen.update(dict.fromkeys(row))
            yield number, row
        if rows.unread:
            self._leave_out(f"the rows under {listed(rows.unread)}")

    def _read_parquet(self, seen: dict[str, None]) -> Iterator[Row]:
        import pyarrow.parquet as pq

        names = self.arrow_schema.names
        seen.update(dict.fromkeys(names))
        number = 0
        with pq.ParquetFile(self.path) as file:
            everything = file.schema_arrow.names
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for row in batch_rows(batch, names, keep=True):
                    number += 1
                    yield number, row
        if twice := sorted(set(everything) - set(names)):
            self._leave_out(f"the columns {', '.join(twice)}, which are there several times")

    def _read_lines(self, seen: dict[str, None]) -> Iterator[Row]:
        seen[self.text_column] = None
        with open_text(self.path) as handle:
            for number, line in enumerate(handle, start=1):
                yield number, {self.text_column: line.rstrip("\r\n")}

    def _leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)

    def _doubt(self, what: str) -> None:
        if what not in self.doubts:
            self.doubts.append(what)


def _runs(value: Any) -> bool:
    """Whether a spreadsheet would run the value, as CSV has it, as a formula."""
    if isinstance(value, ArrowCell) and is_plain(value.column.type):
        value = value.as_py()
    return isinstance(value, str) and is_formula(clean_text(value))


def _told(unit: str, number: int, row: Unreadable) -> str:
    if row.kind == "ragged":
        return f"{unit} {number} with {row.reason}"
    if row.kind == "no_object":
        return f"{unit} {number}, which is not an object"
    return f"{unit} {number}, which is not JSON ({row.reason})"


def _kind(path: Path, format_: str) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it.")
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, near)
        raise DataError(f"{path} does not exist{f';{hint}' if hint else '.'}")
    if format_ != "auto":
        return format_
    kind = "txt" if inner_suffix(path) in TEXT_SUFFIXES else kind_of(path)
    if not kind:
        if told := other_archive(path):
            raise DataError(f"{path} {told}.")
        raise DataError(
            f"Cannot tell the format of {path} from its extension {path.suffix.lower()!r}; rename"
            " it to .csv, .tsv, .jsonl, .parquet, .xlsx or .txt."
        )
    return kind


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turns what reading raises into one sentence."""
    try:
        yield
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} holds bytes that are not text ({exc.reason}).") from exc
    except csv.Error as exc:
        raise DataError(
            f"{path} is broken CSV: {exc}; check the quotes (a quote inside a quoted cell is"
            ' written twice, "").'
        ) from exc
    except BROKEN_PACKING as exc:
        raise DataError(f"{path} cannot be unpacked: {exc}; pack it again.") from exc
    except OSError as exc:
        advice = "" if exc.errno else "; pack it again"
        raise DataError(f"{path} cannot be read: {exc.strerror or exc}{advice}.") from exc
    except ValueError as exc:  # pyarrow's ArrowInvalid and its like
        if not type(exc).__module__.startswith("pyarrow"):
            raise
        reason = str(exc).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is not a readable Parquet file: {reason}.") from exc


# writing


Write = Callable[[Sequence[Mapping[str, Any]]], None]


@contextmanager
def writing(
    path: Path, stream: TextStream, added: Mapping[str, type], values: Sequence[str] = ()
) -> Iterator[Write]:
    """A function that appends rows to a file, which takes its name once all is written.

    CSV is guarded against formulas as :mod:`connectors.texts.write` says. In Parquet the columns of
    a Parquet source keep types and values exactly; those of other sources are strings.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        added: columns that come after the stream's own: str, float or int.
        values: texts that may stand in them.
    Raises:
        DataError: unknown extension, the source itself, a column that is there already, no
            permission, or no space.
    """
    kind = SUFFIXES.get(path.suffix.lower(), "")
    if kind not in ("csv", "jsonl", "parquet") or path.suffix.lower() == ".json":
        raise DataError(
            f"Cannot tell the format of {path.name!r} from its extension {path.suffix!r}; use .csv,"
            " .jsonl or .parquet."
        )
    check_file(path)
    if path.exists() and path.samefile(stream.path):
        raise DataError(f"{path} is the source itself; name another file with --out.")
    there = [name for name in added if name in stream.columns]
    if there:
        raise DataError(
            f"{stream.path} has a column {there[0]!r} already; rename it, so that the prediction"
            " can go there."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, mode=SHARED) as file:
            if kind == "csv":
                guarded = stream.formulas or any(is_formula(value) for value in values)
                tabs = path.suffix.lower() == ".tsv"
                opened = _csv_writer(file, stream, added, tabs=tabs, guarded=guarded)
            else:
                writer = {"jsonl": _json_writer, "parquet": _parquet_writer}[kind]
                opened = writer(file, stream, added)
            with opened as write:
                yield write
    except OSError as exc:
        raise DataError(
            f"{path} cannot be written: {exc.strerror or exc}; nothing was left there. Free some"
            " space or name another place, then run again."
        ) from exc


@contextmanager
def _csv_writer(
    file: IO[bytes], stream: TextStream, added: Mapping[str, type], *, tabs: bool, guarded: bool
) -> Iterator[Write]:
    with as_text_file(file, newline="") as handle:
        cells = CsvCells(handle, [*stream.columns, *added], tabs=tabs, guarded=guarded)

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                cells.write({name: plain(value) for name, value in row.items()})

        yield write


@contextmanager
def _json_writer(
    file: IO[bytes], _stream: TextStream, _added: Mapping[str, type]
) -> Iterator[Write]:
    with as_text_file(file) as handle:

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                handle.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")

        yield write


@contextmanager
def _parquet_writer(
    file: IO[bytes], stream: TextStream, added: Mapping[str, type]
) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = stream.arrow_schema
    own = schema or pa.schema([(clean_text(name), pa.string()) for name in stream.columns])
    source = dict(zip(own.names, stream.columns, strict=True))
    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    for name, kind in added.items():
        own = own.append(pa.field(name, types[kind]))

    def value(row: Mapping[str, Any], name: str) -> Any:
        cell = row.get(name)
        if schema is not None or name in added or cell is None:
            return cell
        if isinstance(cell, str):
            return clean_text(cell)
        return json.dumps(plain(cell), ensure_ascii=False)

    with pq.ParquetWriter(file, own) as writer:

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            columns = [
                arrow_column([value(r, source.get(f.name, f.name)) for r in rows], f.type)
                for f in own
            ]
            writer.write_table(pa.table(columns, schema=own))

        yield write
