"""Which label a written answer names, where the answer is spelt in its own way."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from connectors.texts.values import same_value
from loop.ports import normalise

_THOUGHTS = (  # how reasoning opens and closes: most models, Magistral, Kimi, gpt-oss, Cohere
    (
        r"<(?:seed:)?(?:think(?:ing)?|thought|reasoning)>",
        r"</(?:seed:)?(?:think(?:ing)?|thought|reasoning)>",
    ),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|channel\|>analysis", r"<\|channel\|>final<\|message\|>"),
    (r"^analysis(?=[^\W_])", r"assistantfinal"),  # the same without its marks
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),
)
_THINKING = re.compile(
    rf"^.*(?:{'|'.join(closes for _, closes in _THOUGHTS)})", re.DOTALL | re.IGNORECASE
)
_THINKS = re.compile(
    "|".join(rf"{opens}(?!\s*{closes})" for opens, closes in _THOUGHTS), re.IGNORECASE
)
_UNCLOSED = re.compile("|".join(opens for opens, _ in _THOUGHTS), re.IGNORECASE)
_ENDED = re.compile(r"<\|[^<>|\s]{1,40}\|>|</s>|<eos>|<end_of_turn>|<turn\|>")
"""Marks that end a turn, where a server does not take them off."""
_WRAPPED = re.compile(r"^(?:<(\w+)>(.*)</\1>|\\boxed\{(.*)\})$", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*\n?(.*?)\n?\s*```$", re.DOTALL)
_LEAD = re.compile(
    r"^(?:(?:the|final|correct|predicted|my|is)\s+)*"
    r"(?:labels?|answer|class|category|classification|prediction|sentiment|output|result|response)"
    r"(?:\s+is)?[\s*_]*[:=：]\s*",
    re.IGNORECASE,
)
_QUOTES = "\"'`*_“”„‟‘’‚«»‹›「」"
_STOPS = ".!。．"
_DOUBT = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|without|instead|rather|unlike|hardly|if|whether|or|but"
    r"|could|might|may|maybe|perhaps)\b|n't\b"
)
_SENTENCE = re.compile(
    r"(?:^|.*[\s\W])(?:is|as|be|labels?|answer|class|category|sentiment)[\s:]+"
    r"(?:an?\s+|the\s+)?$",
    re.DOTALL,
)
_MOST_NESTED = 4


def label_in(value: Any, names: Sequence[str]) -> str | None:
    """The one label that an answer names, or None where it names none, or several.

    Case, quotes, a final dot, invisible characters, the Unicode form and the way in which a number
    is written (1, 1.0, True) do not count, as far as exactly one label is left. Reasoning in
    ``<think>`` tags, a code fence, a pair of tags, marks that end a turn, a leading "Label:", a
    list of one answer and an object with one answer are taken off.

    Args:
        value: text, or what JSON makes of it.
        names: the labels; one that is written exactly always wins.
    """
    return _named(value, tuple(names), _MOST_NESTED)


def label_said(text: str, names: Sequence[str]) -> str | None:
    """The one label that a model's own words name, or None where they name none, or several.

    More than ``label_in`` reads: a label with an explanation after it ("positive. The writer …"),
    on the next line or in brackets, and a sentence that ends in one ("This text is positive.").
    Words of doubt or another label beside it make it no answer; so does reasoning that was cut
    off, whatever labels it weighs.
    """
    names = tuple(names)
    text = _THINKING.sub("", text).strip()
    if _UNCLOSED.search(text):
        return None
    text = _ENDED.split(text, maxsplit=1)[0]
    if (name := label_in(text, names)) is not None:
        return name
    lines = [line.strip() for line in text.splitlines() if line.strip(_QUOTES + " ")]
    if not lines:
        return None
    if (name := label_in(lines[0], names)) is not None:
        next_one = label_in(lines[1], names) if len(lines) > 1 else None
        return name if next_one in (None, name) else None
    said = _caseless(lines[0]).replace("’", "'")
    by_length = sorted(((_bare(name), name) for name in names), key=lambda pair: -len(pair[0]))
    for written, name in by_length:
        others = [other for other, _ in by_length if other != written]
        for wording in dict.fromkeys((said, _LEAD.sub("", said.lstrip(_QUOTES)))):
            rest = wording.lstrip(_QUOTES + " ").removeprefix(written)
            if rest == wording.lstrip(_QUOTES + " ") or not written:
                continue
            rest = rest.lstrip(_QUOTES)
            if re.match(r"\s*(?:[.,:](?!\d)|[;!(—–]|- )", rest):
                doubt = _DOUBT.match(rest.lstrip(" .,:;!(—–-"))
                return None if doubt or _names_any(others, rest) else _only(name, written, names)
        before = said.rstrip(_QUOTES + _STOPS + " ").removesuffix(written)
        if written and before != said.rstrip(_QUOTES + _STOPS + " "):
            before = before.rstrip(_QUOTES)
            if not _SENTENCE.match(before) or before[-1:].isalnum():
                return None
            doubt = _DOUBT.search(before)
            return None if doubt or _names_any(others, before) else _only(name, written, names)
    return None


def thinks(text: str) -> bool:
    """Whether a written answer holds reasoning; an empty pair of tags is none."""
    return _THINKS.search(text) is not None


def _names_any(spelt: Sequence[str], text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text) for s in spelt if s)


def _only(name: str, written: str, names: tuple[str, ...]) -> str | None:
    """The name, unless another is written in the same way but for its case."""
    return name if sum(_bare(other) == written for other in names) == 1 else None


def bare(text: str) -> str:
    """What is left of a label's spelling: no case, quotes, final dot or invisible characters."""
    return _bare(text) or text


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
    if same := same_value(value, names):
        return same
    text = _ENDED.split(_THINKING.sub("", value), maxsplit=1)[0].strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    if wrapped := _WRAPPED.match(text):
        return _named(wrapped[2] or wrapped[3] or "", names, depth - 1)
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
    shown = "".join(c for c in normalise(text) if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", shown).split())


def _caseless(text: str) -> str:
    return unicodedata.normalize("NFKC", _plain(text).casefold())


def _bare(text: str) -> str:
    return _caseless(text).strip(_QUOTES + _STOPS + " ")


_SPELLINGS: tuple[Callable[[str], str], ...] = (_plain, _caseless, _bare)
