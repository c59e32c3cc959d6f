"""Tables of texts of any size, read and written in pieces: CSV, JSONL, Parquet and plain text.

Unlike :mod:`connectors.texts.read`, which holds a campaign's texts in memory and refuses a source
with faulty rows, a stream is looked through once for columns and faults, and then read piece by
piece. Rows that cannot be read are left out and reported; texts that are empty stay in their place.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from connectors.texts.formats import MAX_FIELD_BYTES, csv_delimiter
from connectors.texts.values import SUFFIXES, as_text, clean_text, escape_cell, plain
from loop.errors import DataError, suggestion
from loop.files import SHARED, as_text_file, replacing
from loop.ports import normalise

TEXT_SUFFIXES = (".txt", ".text")
KEPT = 20  # faulty rows that are remembered by number; all are counted

Read = dict[str, Any] | str
"""A row by column, or the reason why it cannot be read."""


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

    Attributes:
        columns: all columns, in order.
        unit: ``line`` or ``row``, what numbers count.
        rows: how many rows can be read, those with an empty text included.
        empty: rows without a text.
        unreadable: rows that are left out.

    Raises:
        DataError: no such file, unknown format, broken beyond single rows, no column of that name,
            or no text at all.
    """

    def __init__(self, path: Path, text_column: str = "text") -> None:
        self.path = path
        self.text_column = text_column
        self._kind = _kind(path)
        self.unit = "row" if self._kind == "parquet" else "line"
        self.empty, self.unreadable = Faults(), Faults()
        self.rows = 0
        seen: dict[str, None] = dict.fromkeys(self._header())
        for number, read in self._read():
            if isinstance(read, str):
                self.unreadable.add(number, read)
                continue
            if self._kind == "jsonl":
                seen.update(dict.fromkeys(read))
            self.rows += 1
            if not normalise(self._text(read)):
                self.empty.add(number)
        self.columns = tuple(seen)
        self._check()

    def _header(self) -> tuple[str, ...]:
        if self._kind == "csv":
            with _faults(self.path), self._open() as handle:
                return tuple(next(iter(_csv_header(handle, self.path)), ()))
        if self._kind == "parquet":
            return tuple(self.arrow_schema.names)
        return (self.text_column,) if self._kind == "txt" else ()

    def _check(self) -> None:
        if self.columns and self.text_column not in self.columns:
            raise DataError(
                f"{self.path} has no column {self.text_column!r};"
                f"{suggestion(self.text_column, self.columns)} available:"
                f" {', '.join(self.columns)}; name the column with the texts with --text-column."
            )
        if self.rows == self.empty.count:
            why = f"; its first fault is {self.unreadable.reason}" if self.unreadable.count else ""
            raise DataError(f"{self.path} holds no text{why}.")

    @property
    def arrow_schema(self) -> Any:
        """The columns' types of a Parquet file; None for other formats."""
        if self._kind != "parquet":
            return None
        import pyarrow.parquet as pq

        with _faults(self.path):
            return pq.read_schema(self.path)

    @property
    def suffix(self) -> str:
        """Extension of a file that can hold these columns, and more."""
        return {"txt": ".csv", "jsonl": ".jsonl"}.get(self._kind, self.path.suffix)

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
        return told

    def pieces(self, size: int) -> Iterator[list[StreamRow]]:
        """Readable rows in order, ``size`` at a time."""
        piece: list[StreamRow] = []
        for number, read in self._read():
            if isinstance(read, str):
                continue
            piece.append(StreamRow(number, self._text(read), read))
            if len(piece) == size:
                yield piece
                piece = []
        if piece:
            yield piece

    def _text(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.text_column)
        if isinstance(value, list | tuple | dict | set | bytes):
            return ""
        return clean_text(as_text(value))

    def _open(self) -> Any:
        return self.path.open(encoding="utf-8-sig", newline="")

    def _read(self) -> Iterator[tuple[int, Read]]:
        read = {"csv": _read_csv, "jsonl": _read_json, "txt": _read_lines}
        with _faults(self.path):
            if self._kind == "parquet":
                yield from _read_parquet(self.path)
                return
            with self._open() as handle:
                yield from read[self._kind](handle, self)


def _kind(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it.")
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, near)
        raise DataError(f"{path} does not exist{f';{hint}' if hint else '.'}")
    suffix = path.suffix.lower()
    kind = "txt" if suffix in TEXT_SUFFIXES else SUFFIXES.get(suffix, "")
    if not kind:
        raise DataError(
            f"Cannot tell the format of {path} from its extension {suffix!r}; rename it to .csv,"
            " .tsv, .jsonl, .parquet or .txt."
        )
    return kind


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turns what reading raises into one sentence."""
    try:
        yield
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{path} is not valid UTF-8 ({exc.reason}, byte 0x{exc.object[exc.start]:02x}); save it"
            " as UTF-8 and try again."
        ) from exc
    except csv.Error as exc:
        raise DataError(
            f"{path} is broken CSV: {exc}; check the quotes (a quote inside a quoted cell is"
            ' written twice, "").'
        ) from exc
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    except ValueError as exc:  # pyarrow's ArrowInvalid and its like
        if not type(exc).__module__.startswith("pyarrow"):
            raise
        reason = str(exc).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is not a readable Parquet file: {reason}.") from exc


def _csv_reader(handle: Any, path: Path) -> Any:
    csv.field_size_limit(MAX_FIELD_BYTES)
    first = handle.readline()
    handle.seek(0)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else csv_delimiter(first)
    return csv.reader(handle, delimiter=delimiter, strict=True)


def _csv_header(handle: Any, path: Path) -> Iterator[list[str]]:
    for cells in _csv_reader(handle, path):
        if cells:
            yield [name.strip() for name in cells]
            return


def _read_csv(handle: Any, stream: TextStream) -> Iterator[tuple[int, Read]]:
    reader = _csv_reader(handle, stream.path)
    header: list[str] = []
    line = 1
    for cells in reader:
        start, line = line, reader.line_num + 1
        if not cells:
            continue
        if not header:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                raise DataError(f"{stream.path} names a column twice; rename one of them.")
        elif len(cells) != len(header):
            yield start, f"line {start} with {len(cells)} cells under a header of {len(header)}"
        else:
            yield start, dict(zip(header, cells, strict=True))


def _read_json(handle: Any, stream: TextStream) -> Iterator[tuple[int, Read]]:
    """One object a line; a file that is one list of objects is read whole."""
    start = handle.read(1)
    while start and start.isspace():
        start = handle.read(1)
    handle.seek(0)
    if start == "[":
        try:
            found = json.load(handle)
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{stream.path} is not valid JSON: {exc}.") from exc
        values = enumerate(found, start=1)
        yield from ((n, v if isinstance(v, dict) else f"entry {n}, no object") for n, v in values)
        return
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield number, f"line {number}, which is no JSON"
            continue
        yield number, value if isinstance(value, dict) else f"line {number}, which is no object"


def _read_lines(handle: Any, stream: TextStream) -> Iterator[tuple[int, Read]]:
    for number, line in enumerate(handle, start=1):
        yield number, {stream.text_column: line.rstrip("\r\n")}


def _read_parquet(path: Path) -> Iterator[tuple[int, Read]]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


# writing


Write = Callable[[Sequence[Mapping[str, Any]]], None]


@contextmanager
def writing(path: Path, stream: TextStream, added: Mapping[str, type]) -> Iterator[Write]:
    """A function that appends rows to a file, which takes its name once all is written.

    Columns that begin like a formula are escaped in CSV as
    :func:`connectors.texts.values.escape_cell` says; plain numbers are not. In Parquet the source's
    columns keep their types if it is Parquet too, and are strings otherwise.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        added: columns that come after the stream's own, str or float.
    Raises:
        DataError: unknown extension, the source itself, a column that is there already, no
            permission, or no space.
    """
    kind = SUFFIXES.get(path.suffix.lower(), "")
    if not kind or path.suffix.lower() == ".json":
        raise DataError(
            f"Cannot tell the format of {path.name!r} from its extension {path.suffix!r}; use .csv,"
            " .jsonl or .parquet."
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, such as {path}/labels.csv.")
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
                opened = _csv_writer(file, stream, added, tabs=path.suffix.lower() == ".tsv")
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


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if _NUMBER.fullmatch(value) else escape_cell(value)
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


@contextmanager
def _csv_writer(
    file: IO[bytes], stream: TextStream, added: Mapping[str, type], *, tabs: bool
) -> Iterator[Write]:
    names = [*stream.columns, *added]
    delimiter = "\t" if tabs else ","
    with as_text_file(file, newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow([escape_cell(name) for name in names])

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            writer.writerows([_cell(plain(row.get(name))) for name in names] for row in rows)

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
    own = schema or pa.schema([(name, pa.string()) for name in stream.columns])
    types = {str: pa.string(), float: pa.float64()}
    for name, kind in added.items():
        own = own.append(pa.field(name, types[kind]))

    def value(row: Mapping[str, Any], name: str) -> Any:
        found = row.get(name)
        if schema is not None or name in added or found is None or isinstance(found, str):
            return found
        return json.dumps(plain(found), ensure_ascii=False)

    with pq.ParquetWriter(file, own) as writer:

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            arrays = [pa.array([value(r, f.name) for r in rows], f.type) for f in own]
            writer.write_table(pa.table(arrays, schema=own))

        yield write
