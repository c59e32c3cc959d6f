"""Which label a written answer names, where the answer is spelt in its own way."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_THINKING = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^```\w*\s*\n?(.*?)\n?\s*```$", re.DOTALL)
_LEAD = re.compile(
    r"^(?:(?:the|final|correct|predicted|my|is)\s+)*"
    r"(?:labels?|answer|class|category|classification|prediction|sentiment|output|result|response)"
    r"(?:\s+is)?\s*[:=]\s*",
    re.IGNORECASE,
)
_QUOTES = "\"'`*_“”„‟‘’‚«»‹›「」"
_STOPS = ".!。．"
_MOST_NESTED = 4


def label_in(value: Any, names: Sequence[str]) -> str | None:
    """The one label that an answer names, or None where it names none, or several.

    Case, quotes, a final dot, invisible characters and the Unicode form do not count, as far as
    exactly one label is left. Reasoning in ``<think>`` tags, a code fence, a leading "Label:", a
    list of one answer and an object with one answer are taken off.

    Args:
        value: text, or what JSON makes of it.
        names: the labels; one that is written exactly always wins.
    """
    return _named(value, tuple(names), _MOST_NESTED)


def _named(value: Any, names: tuple[str, ...], depth: int) -> str | None:
    if depth == 0:
        return None
    if isinstance(value, Mapping):
        value = [part for part in value.values() if isinstance(part, str | list | Mapping)]
        read = {name for part in value if (name := _named(part, names, depth - 1))}
        return read.pop() if len(read) == 1 else None
    if isinstance(value, list | tuple):
        return _named(value[0], names, depth - 1) if len(value) == 1 else None
    if not isinstance(value, str):
        return None
    if value.strip() in names:
        return value.strip()
    text = _THINKING.sub("", value).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    if text[:1] in ("{", "["):
        parsed = _parsed(text)
        return None if parsed is None else _named(parsed, names, depth - 1)
    for wording in dict.fromkeys((text, _LEAD.sub("", text.lstrip(_QUOTES)))):
        for spelling in _SPELLINGS:
            matches = [name for name in names if spelling(name) == spelling(wording) != ""]
            if matches:
                return matches[0] if len(matches) == 1 else None
    return None


def _parsed(text: str) -> Any:
    """JSON, or a list or object as Python writes it; None for neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _plain(text: str) -> str:
    """One Unicode form, without characters that nobody sees, spaces alike."""
    shown = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", shown).split())


def _caseless(text: str) -> str:
    return unicodedata.normalize("NFKC", _plain(text).casefold())


def _bare(text: str) -> str:
    return _caseless(text).strip(_QUOTES + _STOPS + " ")


_SPELLINGS: tuple[Callable[[str], str], ...] = (_plain, _caseless, _bare)
