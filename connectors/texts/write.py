"""Labels out: CSV, JSONL, Parquet and Hugging Face data sets, written whole or not at all.

CSV cells that a spreadsheet would run as a formula (they begin with ``=``, ``+``, ``-``, ``@``,
a tab or a line break, and are no number) are written with a leading apostrophe. In a file with such
cells the last column, ``guarded_cells``, names the columns in which this was done, row by row, as a
JSON list; reading the file takes the apostrophes off again. Numbers, mere signs, JSONL, Parquet and
data sets are written as they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from connectors.texts.sheets import DELIMITERS, guard_mark
from connectors.texts.values import (
    DATASETS_MISSING,
    FORMATS,
    GUARDED,
    SUFFIXES,
    Format,
    clean_text,
    escape_cell,
    is_formula,
    plain,
)
from loop.errors import DataError
from loop.files import SHARED, replacing, replacing_folder, replacing_text


def write_labels(
    rows: Iterable[Mapping[str, Any]],
    path: str | Path,
    format: Format | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Writes records as CSV, JSONL, Parquet or a Hugging Face ``save_to_disk`` folder, atomically.

    CSV cells with lists or objects hold JSON, None is an empty cell, and formulas are guarded as
    the module says.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``; a name without an extension is a
            folder (hf).
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
        if kind != "hf":
            check_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write[kind](records, names, path)
    except OSError as exc:
        reason = exc.strerror or exc
        raise DataError(f"{path} cannot be written: {reason}; name another place.") from exc


def check_file(path: Path) -> None:
    """Whether a file can take this name.

    Raises:
        DataError: a folder, a pipe or a device has it.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, such as {path}/labels.csv.")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is a pipe or a device and would be replaced; name another file.")


def _format_to_write(path: Path, format_: str | None) -> str:
    suffix = path.suffix.lower()
    kind = format_ or "auto"
    if kind == "auto":
        kind = {"": "hf", ".json": ""}.get(suffix, SUFFIXES.get(suffix, ""))
    if path.name == "-":
        raise DataError("Nothing is written to standard output; name a file, such as labels.csv.")
    if kind not in FORMATS:
        raise DataError(
            f"Cannot tell the format of {path.name!r} from its extension {suffix!r};"
            " use .csv, .jsonl, .parquet, or no extension for a folder that `datasets` loads."
        )
    return kind


class CsvCells:
    """Writes rows as CSV, guarded against formulas.

    Args:
        columns: names, in order.
        guarded: whether there are cells to guard; the file then has the column ``guarded_cells``.
    """

    def __init__(
        self, handle: IO[str], columns: Sequence[str], *, guarded: bool, tabs: bool = False
    ) -> None:
        self._columns = columns
        self._guarded = guarded or any(escape_cell(name) != name for name in columns)
        # \r\n, else a lone \r is not quoted
        self._writer = csv.writer(handle, delimiter="\t" if tabs else ",", lineterminator="\r\n")
        names = [escape_cell(clean_text(name)) for name in columns] + [GUARDED] * self._guarded
        # quoted where another delimiter could be taken for this one
        hidden = any(set(name) & set(DELIMITERS) for name in columns)
        csv.writer(
            handle,
            delimiter="\t" if tabs else ",",
            lineterminator="\r\n",
            quoting=csv.QUOTE_ALL if hidden else csv.QUOTE_MINIMAL,
        ).writerow(names)

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row of plain values."""
        cells = [_cell(row.get(name)) for name in self._columns]
        if self._guarded:
            marked = []
            for i, name in enumerate(self._columns):
                if isinstance(row.get(name), str) and is_formula(cells[i]):
                    cells[i] = f"'{cells[i]}"
                    marked.append(name)
            cells.append(guard_mark(marked))
        self._writer.writerow(cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _write_csv(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    guarded = any(isinstance(v, str) and is_formula(v) for r in records for v in r.values())
    tabs = path.suffix.lower() == ".tsv"
    with replacing_text(path, mode=SHARED, newline="") as handle:
        cells = CsvCells(handle, names, guarded=guarded, tabs=tabs)
        for record in records:
            cells.write(record)


def _write_jsonl(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    with replacing_text(path, mode=SHARED) as handle:
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

    with replacing(path, mode=SHARED) as file:
        pq.write_table(pa.table(_arrow_columns(records, names)), file)


def _write_hf(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    try:
        import datasets
    except ImportError as exc:
        raise DataError(DATASETS_MISSING) from exc
    if path.exists() and not (path / "state.json").is_file():
        raise DataError(f"{path} exists and is not a saved data set; name another folder.")
    data = {name: array.to_pylist() for name, array in _arrow_columns(records, names).items()}
    with replacing_folder(path) as partial:
        datasets.Dataset.from_dict(data).save_to_disk(str(partial))
