"""Objects out of JSON in every shape that tables come in: lines, a list, one object around a list.

One object a line is read line by line. Everything else is one document, which is held in memory: a
list of objects, objects behind each other over several lines, ``{"data": [objects]}``, and columns
as pandas writes them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from connectors.texts.label_cells import ABSENT, lookup
from connectors.texts.opening import open_text
from connectors.texts.sheets import Row, Unreadable

_SPACE = " \t\r\n\ufeff\x1e"  # the last one stands before each value in JSON text sequences
_SEPARATORS = _SPACE + ","


class JsonRows:
    """(number, object, or why it is none), to be read once.

    Args:
        names: columns that are asked for; an object that has one of them is a row.
        errors: of the decoding, see :func:`open`.
    Attributes:
        unit: what numbers count: ``line`` of a file with one object a line, else ``row``.
        shape: what the objects lie in, where it is something else than lines or a list.
        unread: names of further lists of objects beside the one that is read.
    """

    def __init__(self, path: Path, names: Collection[str] = (), *, errors: str = "strict") -> None:
        self._path, self._names, self._errors = path, names, errors
        self.shape = ""
        self.unread: list[str] = []
        self._by_line = self._one_a_line()
        self.unit = "line" if self._by_line else "row"

    def __iter__(self) -> Iterator[Row]:
        return self._lines() if self._by_line else self._document()

    def _one_a_line(self) -> bool:
        """Whether lines are values of their own; a file of one line is a document."""
        with self._open() as handle:
            lines = (line for line in handle if line.strip(_SPACE))
            first = next(lines, "")
            if next(lines, None) is None:
                return False
        if first.lstrip(_SPACE)[:1] not in ("{", "["):
            return True
        try:
            list(_values(first))
        except (ValueError, RecursionError):
            return not self._is_document()
        return True

    def _is_document(self) -> bool:
        """Whether what begins in the first line continues over several."""
        with self._open() as handle:
            text = handle.read()
        if text.lstrip(_SPACE)[:1] == "[":
            return True
        try:
            for _ in _values(text):
                return True
        except (ValueError, RecursionError):
            pass
        return False

    def _open(self) -> Any:
        return open_text(self._path, errors=self._errors, newline="\n")

    def _lines(self) -> Iterator[Row]:
        with self._open() as handle:
            for number, line in enumerate(handle, start=1):
                if not line.strip(_SEPARATORS):
                    continue
                try:
                    values = list(_values(line))
                except (ValueError, RecursionError) as exc:
                    yield number, Unreadable("not_json", _reason(exc))
                    continue
                for value in values:
                    yield number, _object(value)

    def _document(self) -> Iterator[Row]:
        with self._open() as handle:
            text = handle.read()
        number = 0
        try:
            if text.lstrip(_SPACE)[:1] == "[":
                for value in _elements(text):
                    number += 1
                    yield number, _object(value)
                return
            values = _values(text)
            first, second = next(values, ABSENT), next(values, ABSENT)
            if second is ABSENT and isinstance(first, dict):
                for record in self._inside(first):
                    number += 1
                    yield number, _object(record)
                return
            for value in (first, second, *values):
                if value is not ABSENT:
                    number += 1
                    yield number, _object(value)
        except json.JSONDecodeError as exc:
            yield exc.lineno, Unreadable("broken_json", f"line {exc.lineno}: {exc.msg}")
        except (ValueError, RecursionError) as exc:
            yield number + 1, Unreadable("broken_json", f"row {number + 1}: {_reason(exc)}")

    def _inside(self, whole: Mapping[str, Any]) -> list[Any]:
        """The rows of one object that holds them all; else the object itself is the one row."""
        values = list(whole.values())
        named = [whole.get(name) for name in (*self._names, "text")]
        if isinstance(whole.get("data"), dict) or any(isinstance(v, str | int) for v in named):
            return [dict(whole)]
        columns, data = whole.get("columns"), whole.get("data")
        if isinstance(columns, list) and isinstance(data, list):
            self.shape = "lists under 'columns' and 'data'"
            if all(isinstance(row, list) and len(row) == len(columns) for row in data):
                return [dict(zip(map(str, columns), row, strict=True)) for row in data]
        tables = [k for k, v in whole.items() if isinstance(v, list) and v and _objects(v)]
        asked = [
            k for k in tables if any(lookup(whole[k][0], n) is not ABSENT for n in self._names)
        ]
        by_column = self._names_columns(whole)
        tables = [] if by_column else tables
        found = asked or (["data"] if "data" in tables else tables)
        if len(found) == 1:
            self.shape = f"a list under {found[0]!r}"
            self.unread = [k for k in tables if k != found[0]]
            if self.unread:
                self.shape += f"; what stands under {', '.join(self.unread)} is not read"
            return list(whole[found[0]])
        if len(tables) > 1:
            self.shape = (
                f"several lists ({', '.join(tables)}), of which none is read: write one list, with"
                " a column for what they are called"
            )
        several = len(values) > 1 or by_column
        if several and not tables and all(isinstance(v, list) for v in values):
            if len({len(v) for v in values}) == 1:
                self.shape = "one list a column"
                return [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]
        elif several and all(isinstance(v, dict) for v in values):
            if self._rows_inside(whole):
                self.shape = "one object a row"
                return values
            keys = list(values[0])
            if keys and all(list(v) == keys for v in values):
                self.shape = "one object a column"
                return [{name: column[k] for name, column in whole.items()} for k in keys]
        return [dict(whole)]

    def _names_columns(self, whole: Mapping[str, Any]) -> bool:
        """Whether something that is asked for names many single values, and so a column."""
        named = [whole[name] for name in self._names if isinstance(whole.get(name), list | dict)]
        columns = [list(v.values()) if isinstance(v, dict) else v for v in named]
        return any(columns) and not any(isinstance(v, list | dict) for c in columns for v in c)

    def _rows_inside(self, whole: Mapping[str, dict[str, Any]]) -> bool:
        """Whether the objects inside of one are rows, and not columns: there are more of these.

        What is asked for decides, where it is there.
        """
        inside = dict.fromkeys(key for row in whole.values() for key in row)
        if any(name in whole or name in inside for name in self._names):
            return not any(name in whole for name in self._names)
        return 0 < len(inside) < len(whole)


def _objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _object(value: Any) -> dict[str, Any] | Unreadable:
    return value if isinstance(value, dict) else Unreadable("no_object", type(value).__name__)


class _NamedTwiceError(ValueError):
    pass


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NamedTwiceError(f"an object names {twice[:60]!r} twice")
    return made


def _whole_number(digits: str) -> int | str:
    """A number, or its digits where they are more than Python turns into one."""
    try:
        return int(digits)
    except ValueError:
        return digits


_DECODER = json.JSONDecoder(object_pairs_hook=_checked, parse_int=_whole_number)


def _values(text: str) -> Iterator[Any]:
    """The JSON values behind each other in a text, with white space or commas between."""
    at = _skip(text, 0, _SPACE)
    while at < len(text):
        value, at = _DECODER.raw_decode(text, at)
        yield value
        at = _skip(text, at, _SEPARATORS)


def _elements(text: str) -> Iterator[Any]:
    """The elements of a list, one after the other; a comma behind the last one is left alone."""
    at = _skip(text, _skip(text, 0, _SPACE) + 1, _SPACE)
    while text[at : at + 1] != "]":
        value, at = _DECODER.raw_decode(text, at)
        yield value
        at = _skip(text, at, _SPACE)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1, _SPACE)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    at = _skip(text, at + 1, _SPACE)
    if at < len(text):
        raise json.JSONDecodeError("Something stands behind the list", text, at)


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _reason(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return str(getattr(exc, "msg", exc))
