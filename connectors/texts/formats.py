"""Reads the records of a source as its format gives them, and collects what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from connectors.texts.values import (
    DATASETS_MISSING,
    FORMATS,
    SHOWN,
    SUFFIXES,
    counted,
    some_of,
)
from loop.errors import suggestion

BATCH = 1024  # rows of a Parquet file or data set that are in memory besides the texts
KEPT = 20  # rows that a problem remembers by number
MAX_FIELD_BYTES = 2**31 - 1  # the csv module's own limit, 131,072, refuses honest long texts


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
        unit: ``line`` or ``row``, what numbers count.
        records: (number, values by column), to be read once.
        skipped: columns that were not wanted.
    """

    columns: tuple[str, ...]
    unit: str
    records: Iterable[tuple[int, dict[str, Any]]]
    skipped: frozenset[str] = frozenset()


class Wanted(Protocol):
    """Says whether a column is to be read; plain ones hold no lists, objects or bytes."""

    def __call__(self, name: str, plain: bool, /) -> bool:
        """Whether to read the column of that name."""


class Found:
    """Collects problems of one source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def error(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        """Notes what keeps the source from being used; the message goes on after its name."""
        kept = tuple(islice(rows, KEPT))
        self.problems.append(Problem("error", kind, f"{self.source} {message}.", kept))

    def note(self, kind: str, message: str, rows: Iterable[int] = ()) -> None:
        """Notes what is worth knowing."""
        kept = tuple(islice(rows, KEPT))
        self.problems.append(Problem("note", kind, f"{self.source} {message}.", kept))

    def has(self, *kinds: str) -> bool:
        """Whether a problem of one of the kinds was found."""
        return any(p.kind in kinds for p in self.problems)

    def sorted(self) -> tuple[Problem, ...]:
        """All problems, errors first."""
        return tuple(sorted(self.problems, key=lambda p: p.level != "error"))


def read_raw(source: str, kind: str, hf_split: str, wanted: Wanted, found: Found) -> Raw | None:
    """The source's records, or None with the reason among the problems.

    Of Parquet files and data sets only the wanted columns are read, and a batch of rows at a time.
    """
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


def _decode(data: bytes, found: Found) -> str | None:
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


def _read_csv(text: str, path: Path, found: Found) -> Raw | None:
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
            f"has {counted(len(ragged), 'row')} whose number of cells is not the header's"
            f" {len(header)} ({shown}{', …' if len(ragged) > SHOWN else ''}); quote cells that hold"
            f" {delimiter!r} or line breaks, or mend those rows",
            [at for at, _ in ragged],
        )
    return Raw(tuple(header), "line", records)


def csv_delimiter(text: str) -> str:
    """Comma, semicolon or tab: the one that cuts the header into most cells; ties go to comma."""
    head = text.lstrip("\r\n").split("\n", 1)[0]

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([head], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(",;\t", key=cells)


def _read_json(text: str, found: Found) -> Raw | None:
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
            f"holds {counted(len(not_objects), unit)} that are no JSON objects"
            f' ({some_of(unit, not_objects)}); write objects such as {{"text": "…"}}',
            not_objects,
        )
    return Raw(tuple(columns), unit, records)


def _read_parquet(path: Path, wanted: Wanted, found: Found) -> Raw | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def unreadable(exc: Exception) -> None:
        reason = (str(exc).splitlines() or [type(exc).__name__])[0].rstrip(".")
        found.error("unreadable", f"is not a readable Parquet file: {reason}; write it again")

    broken = (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except broken as exc:
        unreadable(exc)
        return None
    columns = [field.name for field in schema if wanted(field.name, _is_plain(field.type))]
    class_names = _class_names_in_metadata(schema.metadata or {})

    def records() -> Iterator[dict[str, Any]]:
        try:
            for batch in file.iter_batches(BATCH, columns=columns) if columns else ():
                yield from batch.to_pylist()
        except broken as exc:
            unreadable(exc)

    skipped = frozenset(schema.names) - set(columns)
    return Raw(tuple(schema.names), "row", _numbered(records(), class_names), skipped)


def _is_plain(kind: Any) -> bool:
    """Whether an Arrow type holds no lists, objects or bytes."""
    import pyarrow as pa

    bytes_ = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not (pa.types.is_nested(kind) or any(is_kind(kind) for is_kind in bytes_))


def _read_hf(name: str, split: str, wanted: Wanted, found: Found) -> Raw | None:
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

    def unreadable(exc: Exception) -> None:
        first = (str(exc).splitlines() or [""])[0].rstrip(".")
        reason = f"{type(exc).__name__}: {first}" if first else type(exc).__name__
        found.error(
            "unreadable", f"cannot be loaded as a data set ({reason}); check name and network"
        )

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
        schema = data.features.arrow_schema
        taken = [c for c in columns if wanted(c, _is_plain(schema.field(c).type))]
        data = data.select_columns(taken)
    except Exception as exc:  # datasets lets errors of its many readers and of the network through
        unreadable(exc)
        return None

    def records() -> Iterator[dict[str, Any]]:
        try:
            for start in range(0, len(data), BATCH) if data.column_names else ():
                batch = data[start : start + BATCH]
                rows = zip(*batch.values(), strict=True)
                yield from (dict(zip(batch, row, strict=True)) for row in rows)
        except Exception as exc:  # likewise
            unreadable(exc)

    class_names = {c: f.names for c, f in data.features.items() if hasattr(f, "names")}
    skipped = frozenset(columns) - set(taken)
    return Raw(columns, "row", _numbered(records(), class_names), skipped)


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


def _numbered(
    records: Iterable[dict[str, Any]], class_names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows from 1, with class numbers as their names; -1 is the format's word for unknown."""
    for number, record in enumerate(records, start=1):
        for column, names in class_names.items():
            value = record.get(column)
            if isinstance(value, int):
                record[column] = names[value] if 0 <= value < len(names) else None
        yield number, record
