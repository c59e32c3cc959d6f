"""Cells and values of tables: cleaned, made plain, escaped, and named in sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from loop.ports import normalise

Format = Literal["auto", "csv", "jsonl", "parquet", "excel", "hf"]
FORMATS = ("csv", "jsonl", "parquet", "hf")
"""What is written; workbooks are only read."""
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".xlsb": "excel",
    ".xls": "excel",
    ".ods": "excel",
}
PACKED = (".gz", ".bz2", ".xz")
SHOWN = 5  # examples named in one message
NESTED = (list, tuple, dict, set, bytes)  # what is no single value
DATASETS_MISSING = (
    "Hugging Face data sets need the package 'datasets'; install it with"
    " `pip install 'goldloop[datasets]'`."
)
EXCEL_MISSING = (
    "Workbooks need the package 'python-calamine'; install it with `pip install"
    " 'goldloop[excel]'`, or save the sheet as CSV (UTF-8)."
)
GUARDED = "guarded_cells"
"""Column of a CSV file that names the cells of its row which were given an apostrophe."""

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
    if hasattr(value, "as_py"):  # it stayed in Arrow's memory
        return as_text(value.as_py())
    return str(value)


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}


def number_in(text: str) -> Decimal | None:
    """The number that a value stands for in every format: "1", "1.0", True and "true" are 1."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return Decimal(text)
    return _TRUTH.get(text.lower())


def same_value(text: str, names: Iterable[str]) -> str | None:
    """The one name that is the same number or truth value as the text; None for none or several."""
    number = number_in(text)
    same = [name for name in names if number_in(name) == number] if number is not None else []
    return same[0] if len(same) == 1 else None


CODE = re.compile(r"[+-]?0\d")
"""How codes begin that are no numbers, such as 007: nobody writes numbers with leading zeros."""


def one_spelling(text: str) -> str:
    """Numbers and truth values as ``as_text`` spells them; codes and every other text as it is."""
    number = number_in(text)
    if number is None or CODE.match(text.strip()):
        return text
    if not NUMBER.fullmatch(text.strip()):
        return text.strip().lower()
    whole = number.to_integral_value()
    return (f"{whole:f}" if whole else "0") if number == whole else str(number.normalize())


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
    if hasattr(value, "as_py"):  # it stayed in Arrow's memory
        return plain(value.as_py())
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return clean_text(str(value))


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_HARMLESS = re.compile(r"[\W_]*")


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would run the cell as a formula; numbers and mere signs are none."""
    return cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not (
        NUMBER.fullmatch(cell) or _HARMLESS.fullmatch(cell)
    )


def escape_cell(cell: str) -> str:
    """A column's name with a leading apostrophe if a spreadsheet would run it as a formula.

    Names that already look escaped get one apostrophe more, so that :func:`unescape_cell` gives
    every name back exactly.
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_cell(cell: str) -> str:
    """What :func:`escape_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def some_of(unit: str, numbers: Sequence[int]) -> str:
    """``line 3``, ``lines 3, 4, 5, 6, 7, …``."""
    shown = ", ".join(str(n) for n in numbers[:SHOWN])
    more = ", …" if len(numbers) > SHOWN else ""
    return f"{unit}{'' if len(numbers) == 1 else 's'} {shown}{more}"


def listed(names: Iterable[str]) -> str:
    """Names with commas on one line, the first twenty of them."""
    all_names = [
        name if len(name) <= 60 and name.isprintable() else excerpt(name) for name in names
    ]
    more = f" and {len(all_names) - 20:,} more" if len(all_names) > 20 else ""
    return ", ".join(all_names[:20]) + more


def shown(label: str | None) -> str:
    """A label, quoted; of a long one the beginning."""
    return repr(label) if label is None or len(label) <= 60 else excerpt(label)


def excerpt(text: str) -> str:
    """The beginning of a text, quoted, on one line."""
    text = normalise(text)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
