"""Reads the records of a source as its format gives them, and collects what is wrong with it."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from connectors.texts.arrow_rows import (
    batch_rows,
    class_features,
    is_plain,
    with_class_names,
)
from connectors.texts.json_rows import JsonRows
from connectors.texts.opening import (
    BROKEN_PACKING,
    kind_of,
    look_at,
    other_archive,
    stranger,
)
from connectors.texts.sheets import (
    CsvRows,
    Sheet,
    Unreadable,
    open_workbook,
    swallowed_rows,
)
from connectors.texts.values import (
    DATASETS_MISSING,
    EXCEL_MISSING,
    SHOWN,
    some_of,
)
from loop.errors import counted, suggestion

BATCH = 1024  # rows of a Parquet file or data set that are in memory besides the texts
KEPT = 20  # rows that a problem remembers by number
READ = ("csv", "jsonl", "parquet", "excel")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing, about a source.

    Attributes:
        level: an ``error`` keeps the source from being used, a ``note`` does not.
        kind: a short name, such as ``missing_column``.
        message: one sentence that says what to do.
        rows: the lines or rows concerned, the first 20 of them.
    """

    level: Literal["error", "note"]
    kind: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass
class Raw:
    """Records as a format gives them.

    Attributes:
        columns: names; of JSON they grow while the records are read.
        unit: ``line`` or ``row``, what numbers count.
        records: (number, values by column), to be read once.
        skipped: columns that were not wanted.
        header_below: number of a later row that names all columns that are asked for.
    """

    columns: dict[str, None]
    unit: str
    records: Iterable[tuple[int, dict[str, Any]]]
    skipped: frozenset[str] = frozenset()
    header_below: int | None = None


class Wanted(Protocol):
    """Says whether a column is to be read; plain ones hold no lists, objects or bytes."""

    def __call__(self, name: str, plain: bool, /) -> bool:
        """Whether to read the column of that name."""


class Problems:
    """Collects problems of one source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.listed: list[Problem] = []

    def error(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        """Notes what keeps the source from being used; the message continues after its name."""
        kept = tuple(islice(rows, KEPT))
        self.listed.append(Problem("error", kind, f"{self.source} {message}.", kept))

    def note(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        """Notes what is worth knowing."""
        kept = tuple(islice(rows, KEPT))
        self.listed.append(Problem("note", kind, f"{self.source} {message}.", kept))

    def has(self, *kinds: str) -> bool:
        """Whether a problem of one of the kinds was found."""
        return any(p.kind in kinds for p in self.listed)

    def sorted(self) -> tuple[Problem, ...]:
        """All problems, errors first."""
        return tuple(sorted(self.listed, key=lambda p: p.level != "error"))


def read_raw(
    source: str,
    kind: str,
    hf_split: str,
    wanted: Wanted,
    problems: Problems,
    names: Collection[str] = (),
) -> Raw | None:
    """The source's records, or None with the reason among the problems.

    Records come one by one; of Parquet files and data sets only the wanted columns are read. What
    is wrong with single rows is noted once all records were taken.

    Args:
        names: columns that are asked for.
    """
    if source.startswith("hf:"):
        return _read_hf(source.removeprefix("hf:"), hf_split, wanted, problems)
    path = Path(source)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, near)
        problems.error("missing_file", f"does not exist;{hint} check its name and folder")
        return None
    if path.is_dir():
        return _read_hf(source, hf_split, wanted, problems)
    if kind == "auto":
        kind = kind_of(path)
    if kind not in READ:
        problems.error(
            "unknown_format",
            other_archive(path)
            or f"has the unknown extension {path.suffix!r}; rename it to .csv, .tsv, .jsonl,"
            " .parquet or .xlsx, or set texts.format for the campaign's texts",
        )
        return None
    try:
        if path.stat().st_size == 0:
            problems.error("empty_file", "is empty; name a source with at least two texts")
            return None
        if what := stranger(path, kind):
            problems.error("unreadable", what)
            return None
        if kind == "parquet":
            return _read_parquet(path, wanted, problems)
        if kind == "excel":
            return _read_workbook(path, names, problems)
        if not _is_text(path, problems):
            return None
        read = _read_csv if kind == "csv" else _read_json
        return read(path, names, problems)
    except BROKEN_PACKING as exc:
        problems.error("unreadable", f"cannot be unpacked: {exc}; pack it again")
    except OSError as exc:
        advice = "check its permissions" if exc.errno else "pack it again"
        problems.error("unreadable", f"cannot be read: {exc.strerror or exc}; {advice}")
    return None


def _is_text(path: Path, problems: Problems) -> bool:
    """Whether a file is text at all; bad bytes are told and are replaced in reading."""
    look = look_at(path)
    if look.wrong:
        problems.error("invalid_utf8", look.wrong, [look.bad.line] if look.bad else ())
    if look.blank:
        problems.error(
            "empty_file", "holds only white space; name a source with at least two texts"
        )
    return not (look.utf16 or look.blank)


def _read_csv(path: Path, names: Collection[str], problems: Problems) -> Raw | None:
    rows = CsvRows(path, names, errors="replace")

    def broken(exc: csv.Error) -> None:
        problems.error(
            "bad_csv",
            f"is broken in the row that begins at line {rows.line}: {exc}; check the quotes there"
            ' (a quote inside a quoted cell is written twice, "")',
            [rows.line],
        )

    try:
        sheet = Sheet(rows, names=names)
    except csv.Error as exc:
        broken(exc)
        return None

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            yield from _readable(sheet, "line", rows.delimiter, problems)
        except csv.Error as exc:
            broken(exc)
        if rows.swallowed:
            lines = [line for line, _ in rows.swallowed]
            problems.error("bad_csv", swallowed_rows(rows.swallowed), lines)

    return _raw_of_sheet(sheet, "line", records(), problems)


def _read_workbook(path: Path, names: Collection[str], problems: Problems) -> Raw | None:
    try:
        book = open_workbook(path)
    except ImportError:
        problems.listed.append(Problem("error", "missing_extra", EXCEL_MISSING))
        return None
    except ValueError as exc:
        problems.error("unreadable", f"is not a readable workbook: {exc}; save it again as .xlsx")
        return None
    if len(book.sheets) > 1:
        problems.note(
            "sheets",
            f"has {len(book.sheets)} sheets; the first one, {book.sheets[0]!r}, is read: to read"
            " another one, move it to the front",
        )
    if book.merged:
        problems.note(
            "merged_cells",
            f"has {counted(len(book.merged), 'cell')} merged over several rows"
            f" ({some_of('row', book.merged)}), of which only the first row has the value; unmerge"
            " them and fill in the others",
            book.merged,
        )
    sheet = Sheet(book.rows, names=names)
    return _raw_of_sheet(sheet, "row", _readable(sheet, "row", "", problems), problems)


def _raw_of_sheet(
    sheet: Sheet, unit: str, records: Iterable[tuple[int, dict[str, Any]]], problems: Problems
) -> Raw:
    if twice := [name for name in sheet.twice if name in sheet.asked]:
        listed_names = ", ".join(repr(name) for name in twice)
        problems.error(
            "duplicate_column", f"names the column {listed_names} twice; rename one of them"
        )
    elif sheet.twice:
        listed_names = ", ".join(repr(name) for name in sheet.twice[:SHOWN])
        problems.note(
            "duplicate_column",
            f"names the column {listed_names} several times; the first is read, the others are"
            " left out",
        )
    columns = dict.fromkeys(sheet.columns)
    return Raw(columns, unit, records, header_below=sheet.header_below)


def _readable(
    sheet: Sheet, unit: str, delimiter: str, problems: Problems
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows that can be read; the others are noted at the end."""
    ragged: list[tuple[int, str]] = []
    readable = False
    for number, row in sheet:
        if isinstance(row, Unreadable):
            ragged.append((number, row.reason.partition(" ")[0]))
        else:
            readable = True
            yield number, row
    if ragged and sheet.header_below is None:  # else rows above the header are why
        shown = ", ".join(f"{unit} {at}: {n}" for at, n in ragged[:SHOWN])
        what = (
            f"has {counted(len(ragged), 'row')} whose number of cells is not the header's"
            f" {sheet.width} ({shown}{', …' if len(ragged) > SHOWN else ''}); quote cells that hold"
            f" {delimiter!r} or line breaks, or correct those rows"
        )
        widths = {n for _, n in ragged}
        if len(ragged) > 1 and len(widths) == 1 and int(*widths) > sheet.width and not readable:
            what = (
                f"has {counted(sheet.width, 'cell')} in its first row, where the names of the"
                f" columns should be, and {widths.pop()} in every other row; name every column"
                " there, remove what stands above the names, and quote cells that hold"
                f" {delimiter!r} or line breaks"
            )
        problems.error("ragged", what, [at for at, _ in ragged])
    if sheet.blank:
        problems.note(
            "blank_row",
            f"has {counted(len(sheet.blank), 'row')} of empty cells ({some_of(unit, sheet.blank)}),"
            " left out",
            sheet.blank,
        )
    if sheet.repeated:
        problems.note(
            "repeated_header",
            f"repeats the names of its columns in {counted(len(sheet.repeated), 'row')}"
            f" ({some_of(unit, sheet.repeated)}), left out",
            sheet.repeated,
        )
    if sheet.unnamed:
        problems.note(
            "unnamed_column",
            f"has {counted(sheet.unnamed, 'value')} in columns without a name, left out; name"
            " those columns in the header if they are needed",
        )


def _read_json(path: Path, names: Collection[str], problems: Problems) -> Raw:
    rows = JsonRows(path, names, errors="replace")
    columns: dict[str, None] = {}

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        bad: list[tuple[int, str]] = []
        not_objects: list[int] = []
        for number, row in rows:
            if not isinstance(row, Unreadable):
                columns.update(dict.fromkeys(row))
                yield number, row
            elif row.kind == "no_object":
                not_objects.append(number)
            elif row.kind == "broken_json":
                problems.error(
                    "not_json",
                    f"holds invalid JSON at {row.reason}; what comes after it was not read. Mend"
                    " it, or write one JSON object a line",
                    [number],
                )
            else:
                bad.append((number, row.reason))
        if bad:
            number, reason = bad[0]
            more = f" (and {len(bad) - 1} more lines)" if len(bad) > 1 else ""
            problems.error(
                "not_json",
                f"holds invalid JSON at line {number}{more}: {reason}; write one JSON object a"
                " line",
                [n for n, _ in bad],
            )
        if not_objects:
            problems.error(
                "not_json",
                f"holds {counted(len(not_objects), rows.unit)} that"
                f" {'is no JSON object' if len(not_objects) == 1 else 'are not JSON objects'}"
                f' ({some_of(rows.unit, not_objects)}); write objects such as {{"text": "…"}}',
                not_objects,
            )
        if rows.shape:
            problems.note("shape", f"holds its rows in {rows.shape}")

    return Raw(columns, rows.unit, records())


def _read_parquet(path: Path, wanted: Wanted, problems: Problems) -> Raw | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def unreadable(exc: Exception) -> None:
        reason = (str(exc).splitlines() or [type(exc).__name__])[0].rstrip(".")
        problems.error("unreadable", f"is not a readable Parquet file: {reason}; write it again")

    broken = (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except broken as exc:
        unreadable(exc)
        return None
    columns = _columns_once(schema.names, problems)
    taken = [name for name in columns if wanted(name, is_plain(schema.field(name).type))]
    classes = class_features(schema.metadata)

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            for batch in file.iter_batches(BATCH, columns=taken) if taken else ():
                for record in batch_rows(batch, taken):
                    number += 1
                    yield number, with_class_names(record, classes)
        except broken as exc:
            unreadable(exc)

    skipped = frozenset(columns) - set(taken)
    return Raw(dict.fromkeys(columns), "row", records(), skipped)


def _columns_once(names: Sequence[str], problems: Problems) -> list[str]:
    """Columns that are there once; the others cannot be told apart."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.note(
            "duplicate_column",
            f"names the column {', '.join(map(repr, twice[:SHOWN]))} several times; they are left"
            " out",
        )
    return [name for name in names if name not in twice]


def _read_hf(name: str, split: str, wanted: Wanted, problems: Problems) -> Raw | None:
    """A folder saved by ``datasets``, or a data set of the Hub."""
    saved = Path(name)
    if saved.is_dir() and not any(
        (saved / mark).is_file() for mark in ("dataset_dict.json", "state.json")
    ):
        problems.error(
            "unknown_format",
            "is a folder that `datasets` did not save; name a file in it, or save it with"
            " save_to_disk",
        )
        return None

    def unreadable(exc: Exception) -> None:
        first = (str(exc).splitlines() or [""])[0].rstrip(".")
        reason = f"{type(exc).__name__}: {first}" if first else type(exc).__name__
        problems.error(
            "unreadable", f"cannot be loaded as a data set ({reason}); check name and network"
        )

    try:
        import datasets
    except ImportError:
        problems.listed.append(Problem("error", "missing_extra", DATASETS_MISSING))
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
                problems.error(
                    "missing_split",
                    f"has no split {split!r};{hint} available: {', '.join(data)}; set"
                    " texts.hf_split",
                )
                return None
            if others := [part for part in data if part != split]:
                problems.note(
                    "other_splits",
                    f"has other splits too, which are not read: {', '.join(others)}. To use them,"
                    " join them into one data set with a column for texts.split_column",
                )
            data = data[split]
        columns = list(data.column_names)
        schema = data.features.arrow_schema
        taken = [c for c in columns if wanted(c, is_plain(schema.field(c).type))]
        data = data.select_columns(taken)
        classes = class_features(schema.metadata)
        data = data.with_format("arrow")
    except Exception as exc:  # datasets lets errors of its many readers and of the network through
        unreadable(exc)
        return None

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            for start in range(0, len(data), BATCH) if taken else ():
                for record in batch_rows(data[start : start + BATCH], taken):
                    number += 1
                    yield number, with_class_names(record, classes)
        except Exception as exc:  # likewise
            unreadable(exc)

    skipped = frozenset(columns) - set(taken)
    return Raw(dict.fromkeys(columns), "row", records(), skipped)
