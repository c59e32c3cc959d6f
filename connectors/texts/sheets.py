"""Rows under a header: CSV in every dialect, and the first sheet of a workbook."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from connectors.texts.opening import SAMPLE_BYTES, inner_suffix, open_bytes, open_text, sample_of
from connectors.texts.values import GUARDED, SHOWN, as_text, unescape_cell
from loop.errors import counted

MAX_FIELD_BYTES = 2**31 - 1  # the csv module's own limit, 131,072, refuses honest long texts
DELIMITERS = ",;\t|"
COMPARED_ROWS = 30  # of the sample, to tell delimiters apart
FEWEST_SWALLOWED = 3  # lines of a row, of which each looks like a row
FEWEST_EVEN = 3  # rows of as many cells that tell a delimiter which the first row lacks
HEADER_SEARCHED = 10  # rows that are looked through for column names below the first row
_BLANK = " \t\r\n\v\f\x85\xa0\u2028\u2029\u202f\u205f\u3000"  # white space
_BLANK += "\x1a\u2060\ufeff" + "".join(map(chr, range(0x2000, 0x2010)))  # what nobody sees
_SEP_LINE = re.compile(r'\ufeff?"?sep=(.)"?[\r\n]*$', re.IGNORECASE)


@dataclass(frozen=True)
class Unreadable:
    """Why a row cannot be read: a short name of the kind, and what to say of it."""

    kind: str
    reason: str


Row = tuple[int, "dict[str, Any] | Unreadable"]


class Sheet:
    """A header and the rows under it, read once.

    Cells beyond the header must be empty; rows whose cells are all empty, and those that repeat the
    header, as tables put behind each other do, are left out and counted.

    Args:
        numbered: (number of the line or row, cells).
        names: columns that are asked for.
        keep_blank: rows of empty cells are kept.
    Attributes:
        columns: names of the columns that are read, in order.
        twice: names that stand over several columns; the first one is read.
        unnamed: values under no name, which are left out.
        blank: numbers of the rows that were left out because every cell is empty.
        repeated: numbers of the rows that were left out because they are the header once more.
        asked: the names that are asked for.
        width: cells of the header.
        header_below: number of a later row that names all that is asked for.
    """

    def __init__(
        self,
        numbered: Iterable[tuple[int, Sequence[Any]]],
        *,
        names: Collection[str] = (),
        keep_blank: bool = False,
    ) -> None:
        self._rows = iter(numbered)
        self._keep_blank = keep_blank
        self.asked = frozenset(names)
        self._early: list[tuple[int, Sequence[Any]]] = []
        self.unnamed = 0
        self.blank: list[int] = []
        self.repeated: list[int] = []
        self.header_below: int | None = None
        header: list[str] = []
        for _, cells in self._rows:
            header = _names_in(cells)
            if any(header):
                break
        self._header = header
        self._guarded = GUARDED in header
        if self._guarded:
            header = [unescape_cell(name) for name in header]
        self._names = header
        self.width = len(header)
        self.columns = tuple(dict.fromkeys(n for n in header if n and n != GUARDED))
        self.twice = sorted({n for n in header if n and header.count(n) > 1})
        if wanted := set(names) - set(self.columns):
            for number, cells in islice(self._rows, HEADER_SEARCHED):
                self._early.append((number, cells))
                if self.header_below is None and wanted <= {*_names_in(cells)}:
                    self.header_below = number

    def _is_header(self, cells: Sequence[Any]) -> bool:
        pairs = zip(cells, self._header, strict=True)
        return all(as_text(cell).strip(_BLANK) == name for cell, name in pairs)

    def __iter__(self) -> Iterator[Row]:
        width = self.width
        fewest = max((i + 1 for i, name in enumerate(self._names) if name), default=0)
        place = {name: i for i, name in reversed(list(enumerate(self._names))) if name}
        place.pop(GUARDED, None)
        guard = self._names.index(GUARDED) if self._guarded else -1
        nameless = [i for i, name in enumerate(self._names) if not name]
        while True:
            early = self._early.pop(0) if self._early else None
            number, cells = early or next(self._rows, (0, ()))
            if not number:
                return
            if not cells:
                continue
            if len(cells) == width > 1 and self._is_header(cells):
                self.repeated.append(number)
                continue
            if len(cells) > width and all(_is_empty(c) for c in cells[width:]):
                cells = cells[:width]
            if fewest <= len(cells) < width:
                cells = [*cells, *[""] * (width - len(cells))]
            if len(cells) != width:
                if all(_is_empty(c) for c in cells):
                    self.blank.append(number)
                else:
                    yield number, Unreadable("ragged", f"{len(cells)} cells, not {width}")
                continue
            if not self._keep_blank and all(_is_empty(c) for c in cells):
                self.blank.append(number)
                continue
            self.unnamed += sum(not _is_empty(cells[i]) for i in nameless)
            record = {name: cells[i] for name, i in place.items()}
            if guard >= 0 and cells[guard]:
                record = _unguarded(record, str(cells[guard]))
            yield number, {name: record[name] for name in self.columns}


def rows_above(header_below: int | None) -> str:
    """What to do where a later row looks like the header; empty where none does."""
    if header_below is None:
        return ""
    return f" (row {header_below} looks like the header: remove the rows above it)"


def _names_in(cells: Sequence[Any]) -> list[str]:
    return [as_text(cell).strip(_BLANK) for cell in cells]


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip(_BLANK))


def guard_mark(names: Sequence[str]) -> str:
    """What ``guarded_cells`` holds of a row: the columns that were given an apostrophe."""
    return json.dumps(names, ensure_ascii=False) if names else ""


def _unguarded(record: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """The row without the apostrophes that our own writing put there."""
    try:
        names = json.loads(mark)
    except (ValueError, RecursionError):
        return dict(record)
    names = names if isinstance(names, list) else []
    return {
        name: cell[1:] if name in names and isinstance(cell, str) and cell[:1] == "'" else cell
        for name, cell in record.items()
    }


class CsvRows:
    """(line where a row begins, its cells); where reading fails, ``line`` is where the row began.

    Args:
        names: columns that are asked for, by which the delimiter is known.
        errors: of the decoding, see :func:`open`.
    Attributes:
        swallowed: (line, lines) of rows with a quoted cell that seems to hold rows of its own.
    """

    def __init__(self, path: Path, names: Collection[str] = (), *, errors: str = "strict") -> None:
        self._path, self._errors = path, errors
        self.line = 1
        self.swallowed: list[tuple[int, int]] = []
        sample = sample_of(path)
        lines = sample.splitlines(keepends=True)
        first = next((line for line in lines if line.strip()), "")
        declared = _SEP_LINE.match(first)
        self._skipped = lines.index(first) + 1 if declared else 0
        if declared:
            self.delimiter = declared[1]
        elif inner_suffix(path) == ".tsv" and "\t" in first:
            self.delimiter = "\t"
        else:
            self.delimiter = csv_delimiter(sample, names)
        self._spaced = spaces_before_quotes(sample, self.delimiter)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(MAX_FIELD_BYTES)
        with open_text(self._path, errors=self._errors) as handle:
            for _ in range(self._skipped):
                handle.readline()
            reader = csv.reader(
                handle, delimiter=self.delimiter, skipinitialspace=self._spaced, strict=True
            )
            self.line = self._skipped + 1
            width = 0
            for cells in reader:
                start, self.line = self.line, self._skipped + reader.line_num + 1
                if not cells:
                    continue
                width = width or len(cells)
                if self.line - start >= FEWEST_SWALLOWED and self._hold_rows(cells, width):
                    self.swallowed.append((start, self.line - start))
                yield start, cells

    def _hold_rows(self, cells: Sequence[str], width: int) -> bool:
        """Whether each line of a row, without regard to quotes, is a row of as many cells itself.

        Then a cell began with a quote that quotes nothing (``"Great, but it broke``), up to the
        next such cell. Lines of prose have a space, or nothing, behind their commas.
        """
        if width < 2:
            return False
        lines = self.delimiter.join(cells).splitlines()
        split = [line.split(self.delimiter) for line in lines]
        return all(
            len(parts) == width
            and any(parts[1:])
            and not any(part[:1].isspace() for part in parts[1:])
            for parts in split
        )


def swallowed_rows(swallowed: Sequence[tuple[int, int]]) -> str:
    """A sentence about quoted cells that seem to hold rows."""
    shown = ", ".join(f"line {line}: {lines} lines" for line, lines in swallowed[:SHOWN])
    more = ", …" if len(swallowed) > SHOWN else ""
    return (
        f"has {counted(len(swallowed), 'quoted cell')} that hold"
        f"{'s' * (len(swallowed) == 1)} lines which look like rows ({shown}{more}); put a cell that"
        ' begins with a quote into quotes, with that quote written twice (""), or remove it. If'
        " the lines are a text's own, save the file as JSONL"
    )


def csv_delimiter(sample: str, names: Collection[str] = ()) -> str:
    """Comma, semicolon, tab or bar.

    The one under which the header holds most of the names that are asked for, or else a row below
    it; then one that cuts the header at all, or else all later rows alike; then the one that cuts
    most rows into as many cells as the header; then into most cells. Ties go to the comma.
    """
    lines = _whole_lines(sample)

    def fit(delimiter: str) -> tuple[int, int, bool, bool, float, int]:
        rows = csv.reader(lines, delimiter=delimiter)
        try:
            read = [row for row in islice(rows, COMPARED_ROWS) if any(row)]
        except csv.Error:
            read = []
        if not read:
            return 0, 0, False, False, 0.0, 0
        found = [len(set(names) & {cell.strip() for cell in row}) for row in read]
        header, later = read[0], read[len(read) // 2 :]
        even = len(later) >= FEWEST_EVEN and {len(row) for row in later} == {len(later[0])}
        prose = any(cell[:1].isspace() for row in later for cell in row[1:])
        alike = sum(len(row) == len(header) for row in read) / len(read)
        return (
            found[0],
            max(found[:HEADER_SEARCHED]),
            len(header) > 1,
            not found[0] and even and not prose and len(later[0]) > 1,
            round(alike, 1),
            len(header),
        )

    return max(DELIMITERS, key=fit)


def spaces_before_quotes(sample: str, delimiter: str) -> bool:
    """Whether quoted cells stand behind a space (``a, "b, c"``), which is then no part of them.

    It is so where some cell would else begin with a space and a quote, and reading it this way
    gives every row as many cells as the header.
    """
    if not re.search(rf'{re.escape(delimiter)} +"', sample):
        return False
    lines, rows = _whole_lines(sample), []
    try:
        as_it_is = list(csv.reader(lines, delimiter=delimiter))
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True):
            rows.append(row)
    except csv.Error as exc:
        if "unexpected end" not in str(exc) or len(sample) < SAMPLE_BYTES // 4:
            return False  # else the sample may end in a quoted cell
    quoted = any(
        a != b and a[:1] == " " and a.lstrip(" ")[:1] == '"'
        for one, other in zip(as_it_is, rows, strict=False)
        for a, b in zip(one, other, strict=False)
    )
    return quoted and all(len(row) == len(rows[0]) for row in rows if row)


def _whole_lines(sample: str) -> list[str]:
    lines = sample.splitlines(keepends=True)
    if len(sample) > 1000 and len(lines) > 1:
        lines.pop()  # cut off in its middle
    return lines


@dataclass(frozen=True)
class Workbook:
    """A workbook's first sheet.

    Attributes:
        rows: (row number, cells).
        sheets: names of all sheets.
        merged: first rows of cells that are merged over several rows; the others are empty.
    """

    rows: Iterator[tuple[int, list[Any]]]
    sheets: list[str]
    merged: list[int]


def _whole(cell: Any) -> Any:
    """Workbooks keep every number as a float; 1000.0 stands there as 1000."""
    whole = isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53
    return int(cell) if whole else cell


def open_workbook(path: Path) -> Workbook:
    """Opens a workbook.

    Raises:
        ImportError: python-calamine is not installed.
        ValueError: it is no workbook that can be read, or it is locked with a password.
    """
    import python_calamine as calamine

    try:
        with open_bytes(path) as file:
            book = calamine.load_workbook(file)
        names = list(book.sheet_names)
        sheet = book.get_sheet_by_index(0) if names else None
        rows = sheet.iter_rows() if sheet is not None else iter(())
    except calamine.CalamineError as exc:
        raise ValueError(str(exc) or type(exc).__name__) from exc
    numbered = ((n, [_whole(cell) for cell in cells]) for n, cells in enumerate(rows, start=1))
    ranges = getattr(sheet, "merged_cell_ranges", None) or ()
    return Workbook(numbered, names, [1 + a[0] for a, b in ranges if b[0] > a[0]])
