"""Rows out of Arrow's columns: Parquet files and saved data sets, whatever their types are.

Python holds fewer values than Arrow: dates end with the year 9999, time zones must be known. Such
values become readable text, or stay in Arrow for a writer that keeps them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from connectors.texts.values import plain


def is_plain(kind: Any) -> bool:
    """Whether an Arrow type holds no lists, objects or bytes."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    bytes_ = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not (pa.types.is_nested(kind) or any(is_kind(kind) for is_kind in bytes_))


def is_exact(kind: Any) -> bool:
    """Whether Python holds every value of an Arrow type exactly, and gives it back."""
    import pyarrow as pa

    t = pa.types
    same = (t.is_string, t.is_large_string, t.is_integer, t.is_boolean, t.is_float64, t.is_null)
    return any(is_kind(kind) for is_kind in same)


@dataclass(frozen=True, slots=True)
class ArrowCell:
    """One value that stays in Arrow's memory."""

    column: Any
    row: int

    def as_py(self) -> Any:
        """The value in Python's terms, as near as they come to it."""
        return arrow_value(self.column[self.row])


def arrow_value(scalar: Any) -> Any:
    """A scalar's value; where Python cannot hold it, what it is written as.

    Raises:
        UnicodeDecodeError: it holds bytes that are not text.
    """
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if scalar.type in (pa.float16(), pa.float32()):  # 0.1, and not 0.10000000149011612
        return float(str(scalar.type.to_pandas_dtype()(scalar.as_py())))
    try:
        return scalar.as_py()
    except UnicodeDecodeError:  # the file is damaged
        raise
    except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError, LookupError):
        pass
    kind = scalar.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        value = arrow_value(scalar.cast(pa.timestamp(kind.unit)))
        return f"{value} UTC" if isinstance(value, int | str) else f"{plain(value)} UTC"
    with suppress(AttributeError, pa.ArrowException, ValueError, OverflowError):
        return int(scalar.value)
    with suppress(AttributeError, TypeError, pa.ArrowException):
        if pa.types.is_struct(kind):
            return {kind.field(i).name: arrow_value(scalar[i]) for i in range(kind.num_fields)}
        return [arrow_value(value) for value in scalar.values]
    return str(scalar)


def column_values(column: Any) -> list[Any]:
    """All values of a column, see :func:`arrow_value`."""
    import pyarrow as pa

    if column.type in (pa.float16(), pa.float32()):
        return [arrow_value(scalar) for scalar in column]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError, LookupError):
        return [arrow_value(scalar) for scalar in column]


def batch_rows(batch: Any, names: Sequence[str], *, keep: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a record batch or table.

    Args:
        names: its columns, none of them twice.
        keep: what Python does not hold exactly stays in Arrow (``ArrowCell``).
    """
    columns: list[list[Any]] = []
    for name in names:
        column = batch.column(name)
        if keep and not is_exact(column.type):
            columns.append([ArrowCell(column, row) for row in range(len(column))])
        else:
            columns.append(column_values(column))
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def arrow_column(values: Sequence[Any], kind: Any) -> Any:
    """The column of some values, of which those that stayed in Arrow are not touched."""
    import pyarrow as pa

    parts = []
    at = 0
    for origin, group in groupby(values, key=lambda v: id(v.column) if _kept(v) else 0):
        n = len(list(group))
        cells = values[at : at + n]
        if origin:
            column = cells[0].column
            try:
                parts.append(column.take(pa.array([cell.row for cell in cells], pa.int64())))
            except pa.ArrowNotImplementedError:  # string_view, say
                parts += [column.slice(cell.row, 1) for cell in cells]
        else:
            parts.append(pa.array(cells, kind))
        at += n
    return pa.chunked_array(parts, kind) if parts else pa.chunked_array([], kind)


def _kept(value: Any) -> bool:
    return isinstance(value, ArrowCell)


def class_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Columns with class numbers, and where in them: what ``datasets`` leaves in Arrow's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {column: one for column, one in features.items() if "ClassLabel" in json.dumps(one)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def with_class_names(record: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """Class numbers as their names, also in lists and objects; -1 is the word for unknown."""
    for column, feature in features.items():
        if column in record:
            record[column] = _named(record[column], feature)
    return record


def _named(value: Any, feature: Any) -> Any:
    if isinstance(feature, list) and len(feature) == 1:  # a list, until version 4 of datasets
        feature = {"feature": feature[0], "_type": "List"}
    if not isinstance(feature, Mapping):
        return value
    inner = feature.get("feature") if "_type" in feature else feature
    if isinstance(value, list):
        return [_named(one, inner) for one in value]
    if isinstance(value, Mapping) and isinstance(inner, Mapping):
        return {key: _named(one, inner.get(key)) for key, one in value.items()}
    names = feature.get("names")
    if isinstance(value, int) and isinstance(names, list) and feature.get("_type") == "ClassLabel":
        return names[value] if 0 <= value < len(names) else None
    return value
