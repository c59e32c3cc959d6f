"""The labels and probabilities that cells hold, in the forms that labelling tools write."""

from __future__ import annotations

import ast
import json
import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from connectors.texts.values import CODE, NUMBER, SHOWN, as_text, number_in, one_spelling, some_of
from loop.ports import normalise

ABSENT: Any = object()
"""What ``lookup`` gives where a record has no such column."""
HANDED_IN = "submitted"  # Argilla's status of an answer
_NOT_HANDED_IN = ("draft", "discarded", "pending")
ANSWER = "answer"  # Prodigy's column of "accept", "reject" and "ignore"
STATE = "status"  # Argilla's, of a whole record, until version 1
CATEGORY, VERDICT = "category_name", "label"  # Label Sleuth's: a text is of the category, or not
_REFUSED = {
    ANSWER: ("reject", "ignore"),
    "AssignmentStatus": ("Rejected",),  # of Mechanical Turk
    "ASSIGNMENT:status": ("REJECTED", "SKIPPED", "EXPIRED"),  # of Toloka
    "label_type": ("Weak",),  # of Label Sleuth
}
_BETWEEN_LABELS = "#|;,/\n"
_CHOSEN = 0.5  # of spaCy's cats, where 1.0 is yes and 0.0 no


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or ``ABSENT``.

    ``data.text`` is the key ``text`` inside of ``data``, ``a.0`` the first value of the list ``a``;
    a column of that very name comes first.
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split(".") if "." in name else ():
        value = value.as_py() if hasattr(value, "as_py") else value  # it stayed in Arrow's memory
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return ABSENT if value is record else value


def labels_in(value: Any, names: Sequence[str] = ()) -> list[str]:
    """All labels that a cell holds, as they are spelt there; none, one, or several.

    Read are texts and numbers; lists of them, also written as JSON; several of the ``names`` with
    ``#`` or another mark between them; ``{"choices": [labels]}``; and ``{label: 1.0, label: 0.0}``.

    Raises:
        ValueError: the value is something else.
    """
    if isinstance(value, str):
        return _written(value, names)
    if isinstance(value, list | tuple):
        return [label for part in value for label in labels_in(part, names)]
    if isinstance(value, Mapping):
        if "choices" in value:
            return labels_in(value["choices"], names)
        numbers = all(isinstance(v, bool | int | float | None) for v in value.values())
        shares = numbers and any(str(name) in names for name in value)
        for key in () if shares else ("label", "value", "name"):
            if key in value:
                return labels_in(value[key], names)
        if value and numbers:
            return [str(name) for name, v in value.items() if v is not None and v >= _CHOSEN]
        raise ValueError("an object that holds no label")
    if isinstance(value, bytes | set):
        raise ValueError("bytes or a set")
    text = as_text(value).strip()
    return [text] if text else []


def _written(text: str, names: Sequence[str]) -> list[str]:
    text = text.strip()
    if not text or text in names:
        return [text] if text else []
    if text[0] in "[{" and text[-1] in "]}":
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(text)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if isinstance(parsed, list | dict):
                try:
                    return labels_in(parsed, names)
                except ValueError:
                    break
    for mark in _BETWEEN_LABELS:
        parts = [part.strip() for part in text.split(mark)]
        if len(parts) > 1 and all(part in names for part in parts):
            return parts
    return [text]


def gold_status(column: str | None) -> str:
    """The column in which Argilla says which answers of another column were handed in."""
    return f"{column}.status"


def confirmed(
    record: Mapping[str, Any], column: str, value: Any, names: Sequence[str] = ()
) -> tuple[Any, str]:
    """What people confirmed of a value, see :func:`called`, and why the rest does not count."""
    for name, refused in _REFUSED.items():
        said = record.get(name)
        if name != column and isinstance(said, str) and said in refused:
            return None, f"{name} = {said!r}"
    verdict = record.get(VERDICT)
    if column == CATEGORY and as_text(verdict).lower() in ("false", "0"):
        return None, f"{VERDICT} = {verdict!r}"
    state = record.get(STATE)
    if column != STATE and "annotation_agent" in record and state in ("Discarded", "Default"):
        return None, f"{STATE} = {state!r}"
    if _cancelled(record, column):
        return None, "skipped"
    if (machine := _of_a_machine(record, column, value)) is not None:
        return None, machine
    value = called(record, column, value, names)
    answers = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    if any(isinstance(a, Mapping) and a.get(STATE) in _NOT_HANDED_IN for a in answers):
        kept = [a for a in answers if not isinstance(a, Mapping) or a.get(STATE) == HANDED_IN]
        return kept, "not submitted"
    status = record.get(gold_status(column))
    if isinstance(status, list) and isinstance(value, list) and len(status) == len(value):
        kept = [v for v, s in zip(value, status, strict=True) if s == HANDED_IN]
        if len(kept) < len(value):
            return kept, "not submitted"
    return value, ""


def _cancelled(record: Mapping[str, Any], column: str) -> bool:
    """Whether the column lies in an answer of Label Studio that somebody skipped."""
    parts = column.split(".") if column not in record else []
    inside = (lookup(record, ".".join(parts[:n])) for n in range(1, len(parts)))
    return any(isinstance(part, Mapping) and part.get("was_cancelled") for part in inside)


EXPORTED = ("source", "how", "llm_label")
"""Columns that goldloop's own exports have beside the label."""


BESIDE = (
    *("annotation_agent", STATE, VERDICT, *_REFUSED),
    *(*EXPORTED, *(f"goldloop_{name}" for name in EXPORTED)),
)
"""Columns of whole records that tell whether a label is a person's."""


def exported_label(names: Collection[str]) -> str:
    """The column with the labels in goldloop's own export; empty for every other file."""
    ours = "goldloop_label" if "goldloop_label" in names else "label"
    there = all(name in names or f"goldloop_{name}" in names for name in EXPORTED)
    return ours if there and ours in names else ""


def _of_a_machine(record: Mapping[str, Any], column: str, value: Any) -> str | None:
    """Why a label of goldloop's own export is nobody's; one changed since is somebody's."""
    ours = "goldloop_label" if "goldloop_label" in record else "label"  # if that name was taken
    source, _, llm = (record.get(f"goldloop_{name}", record.get(name, ABSENT)) for name in EXPORTED)
    if column != ours or ABSENT in (source, llm):
        return None
    # A repaired label is never the LLM's: somebody has put that back.
    theirs = source in ("llm", "repaired") and (value == llm) == (source == "llm")
    return f"source = {source!r}" if theirs else None


def called(record: Mapping[str, Any], column: str, value: Any, names: Sequence[str]) -> Any:
    """Prodigy's numbers of chosen options as what these are called, where that is a label."""
    options = record.get("options")
    if column != "accept" or not isinstance(options, list) or not isinstance(value, list):
        return value
    texts = {str(o.get("id")): o.get("text") for o in options if isinstance(o, Mapping)}
    read = {id_: text for id_, text in texts.items() if id_ not in names and text in names}
    return [read.get(str(chosen), chosen) for chosen in value]


def same_letters(text: str, names: Iterable[str]) -> str | None:
    """The one name that differs in nothing but its Unicode form and in characters nobody sees."""
    same = [name for name in names if _letters(name) == _letters(text)]
    return same[0] if len(same) == 1 else None


def one_of_each(counts: Mapping[str, int]) -> dict[str, list[str]]:
    """The labels that the values of a column are, each with its other spellings.

    Spellings of one number or truth value and Unicode forms of one text are one label, which is
    called as most values spell it; numbers with leading zeros, which may be codes, are as they are.

    Args:
        counts: value -> how often it is there.
    """
    alike: dict[Any, list[str]] = {}
    usual = {value: value == one_spelling(normalise(value)) for value in counts}
    for value in sorted(counts, key=lambda v: (-counts[v], not usual[v], len(v), v)):
        number = None if CODE.match(value) else number_in(value)
        alike.setdefault(normalise(value) if number is None else number, []).append(value)
    return {names[0]: names[1:] for names in alike.values()}


def _letters(text: str) -> str:
    return unicodedata.normalize("NFKC", normalise(text))


_ROUNDING = 1e-6  # sums of float32 are wrong by as much
Scale = Literal["probability", "percent", "0-10", "log"]
"""How confidences are written; ``log`` is the natural logarithm of a probability."""
SCALES: dict[Scale, str] = {
    "probability": "probabilities between 0 and 1",
    "percent": "percentages between 0 and 100",
    "0-10": "numbers between 0 and 10",
    "log": "logarithms of probabilities, 0 or less",
}


def probability_in(value: Any, scale: Scale = "probability") -> float | None:
    """A probability in [0, 1]; NaN where the cell is empty, None where it holds something else.

    Args:
        scale: how it is written; a percentage may have its sign.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if scale == "percent":
            value = value.removesuffix("%").rstrip()
        if not NUMBER.fullmatch(value):
            return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if math.isnan(number):
        return number
    if scale == "log":
        number = math.exp(min(number, 1.0))
    number /= {"percent": 100.0, "0-10": 10.0}.get(scale, 1.0)
    return min(1.0, max(0.0, number)) if -_ROUNDING <= number <= 1 + _ROUNDING else None


def on_another_scale(values: Iterable[Any], scale: Scale) -> bool:
    """Whether numbers that should reach 10 or 100 all lie between 0 and 1, as probabilities do."""
    if scale not in ("percent", "0-10"):
        return False
    stated = [p for v in values if (p := probability_in(v, scale)) is not None and p == p]
    top = 100 if scale == "percent" else 10
    return any(0 < p * top < 1 for p in stated) and all(p * top <= 1 for p in stated)


def no_probabilities(
    column: str,
    unit: str,
    n: int,
    first: Sequence[tuple[int, Any]],
    scale: Scale = "probability",
) -> str:
    """A sentence about values that are not what they should be, and how they look.

    Args:
        n: how many there are.
        first: number of the row and value of some of them.
        scale: how they should be written.
    """
    values = [as_text(value).strip()[:20] for _, value in first]
    examples = ", ".join(repr(value) for value in dict.fromkeys(values[:SHOWN]))
    numbers = [float(v) for v in values if NUMBER.fullmatch(v)]
    name = "annotator.confidence_scale"
    if any(NUMBER.fullmatch(v.replace(",", ".", 1)) for v in values if "," in v):
        looks = "they have a comma for the decimal point: write 0,95 as 0.95"
    elif scale != "probability":
        looks = f'{name} = "{scale}" says so: correct the values, or name another scale'
    elif any(v.endswith("%") for v in values):
        looks = f'they are percentages: write 95% as 0.95, or set {name} = "percent"'
    elif not numbers:
        looks = "they are words: write a number, or leave annotator.prob_columns out"
    elif min(numbers) < 0:
        looks = f'they look like logarithms: write exp(value), or set {name} = "log"'
    else:
        most = max(numbers)
        top = next((end for end in (10.0, 100.0) if most <= end), most)
        declared = {10.0: "0-10", 100.0: "percent"}.get(top)
        looks = f"they look like a scale up to {top:g}: divide by it"
        looks += f', or set {name} = "{declared}"' if declared else ""
    return (
        f"holds {n:,} value{'' if n == 1 else 's'} in column {column!r} that are not"
        f" {SCALES[scale]}: {examples} ({some_of(unit, [row for row, _ in first])}); {looks}"
    )
