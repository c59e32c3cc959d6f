"""What people answered in labelling tools, out of the files that these tools export.

Read are Label Studio (JSON, JSON-MIN, CSV), doccano, Argilla, Prodigy, spaCy's ``cats``, and every
table with a column of labels. Predictions, suggestions and drafts are no answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors.llm.label_spelling import label_in
from connectors.texts.formats import Problems, Wanted, read_raw
from connectors.texts.label_cells import (
    ABSENT,
    ANSWER,
    HANDED_IN,
    STATE,
    called,
    confirmed,
    exported_label,
    labels_in,
    lookup,
)
from connectors.texts.values import NESTED, as_text, clean_text, listed
from loop.errors import DataError, suggestion
from loop.ports import GivenLabel

_USUAL = ("label", "labels", "accept", "cats", "annotation", "gold")
_NO_ANSWER = ("pred", "suggest", "llm", "model", "score", "gpt", "machine")
_PEOPLE = (
    *("annotator", "_annotator_id", "_session_id", "annotation_agent", "user", "username"),
    *("annotator_id", "worker_id", "WorkerId", "ASSIGNMENT:worker_id"),
)
_WHO = ("user_id", "user")
_ANSWERS = {"annotations", "completions"}  # Label Studio's name, and the one until version 1
_TIMES = ("updated_at", "_timestamp", "created_at")
_INNER = ("data", "fields", "inputs")  # where Label Studio and Argilla keep a record's texts
_NO_TEXT = {*_PEOPLE, *_TIMES, STATE, ANSWER, "id", "uuid"}
_UNSURE = "unsure / none fits"
_GUESSED_FROM = 200  # rows


@dataclass(frozen=True)
class ToolExport:
    """The answers of one export.

    Attributes:
        tool: which tool wrote it, in words.
        answers: one for each answer, and for each row without one, in the order of the file.
        notes: what of the file was not read, in sentences.
    """

    tool: str
    answers: tuple[GivenLabel, ...]
    notes: tuple[str, ...] = ()


def read_export(
    source: str,
    labels: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    hf_split: str = "train",
) -> ToolExport:
    """People's answers in a file.

    Args:
        labels: the campaign's classes.
        text_column: None tries all texts of a row.
        label_column: of Label Studio the name of the choices' tag; None looks for it.
        hf_split: which split of a data set to read.
    Raises:
        DataError: the file cannot be read, or nobody can tell which column holds the labels.
    """
    problems = Problems(source)
    wanted: Wanted = lambda _name, _plain: True  # noqa: E731
    names = tuple(filter(None, (text_column, label_column)))
    raw = read_raw(source, "auto", hf_split, wanted, problems, names)
    records = list(raw.records) if raw is not None else []
    if errors := [p.message for p in problems.listed if p.level == "error"]:
        raise DataError("\n".join(errors))
    if not records:
        raise DataError(f"{source} holds no rows.")
    read = answers_of(records, labels, source, text_column, label_column)
    return replace(read, notes=tuple(p.message for p in problems.listed))


def _check_columns(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    source: str,
    text_column: str | None,
    label_column: str | None,
    what: str,
) -> None:
    """Whether some row has the columns that were named; a label's may be a tag or a question."""
    if text_column is None and label_column is None:
        return
    answers = rows = [record for _, record in records]
    inner = [part for record in rows for part in _inner(record)]
    if what == "tag":
        answers = [_tags_in(_annotations(record)) for record in rows]
    elif what == "question":
        answers = [_responses(record) for record in rows]
    asked = [("column", text_column, [*rows, *inner]), (what, label_column, answers)]
    for kind, name, places in asked:
        there = any(places)  # else nobody has answered yet
        if name and there and all(lookup(place, name) is ABSENT for place in places):
            names = list(dict.fromkeys(str(key) for place in places for key in place))
            raise DataError(
                f"{source} has no {kind} {name!r};{suggestion(name, names)} it has"
                f" {listed(names) or 'none'}."
            )


def _where_labels_are(records: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """A ``tag`` of Label Studio's page, a ``question`` of Argilla's, or a ``column``."""
    tasks = isinstance(records[0][1].get("data"), Mapping)
    if tasks and any(_ANSWERS & record.keys() for _, record in records):
        return "tag"
    argilla = any(isinstance(record.get("responses"), Mapping) for _, record in records)
    return "question" if argilla else "column"


def answers_of(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    source: str,
    text_column: str | None = None,
    label_column: str | None = None,
) -> ToolExport:
    """People's answers in the records of an export, see :func:`read_export`."""
    where = _where_labels_are(records)
    _check_columns(records, source, text_column, label_column, where)
    if where == "tag":
        tool = "Label Studio"
        tags = [label_column] if label_column else _tags(records, labels)
        if len(tags) > 1:
            tool += f", whose tags {listed(tags)} all hold labels: name one with --label-column"
        answers = _of_label_studio(records, labels, text_column, label_column, tags)
    elif where == "question":
        tool = "Argilla"
        questions = _questions(records, labels)
        if label_column is None and len(questions) > 1:
            raise DataError(
                f"{source} has several questions with labels: {listed(questions)}. Name the one"
                " with people's answers with --label-column."
            )
        answers = _of_argilla(records, labels, text_column, label_column)
    else:
        column = label_column or _label_column(records, labels, source, text_column)
        tool = _tool(records[0][1], column)
        answers = _of_rows(records, labels, text_column, column)
    return ToolExport(tool, tuple(answers))


def _tool(record: Mapping[str, Any], column: str) -> str:
    if "annotation_id" in record and "lead_time" in record:
        return "Label Studio"
    if "answer" in record and ("_input_hash" in record or column in ("accept", "label")):
        return "Prodigy"
    if column.endswith(".responses") or "annotation_agent" in record:
        return "Argilla"
    if column == "cats":
        return "spaCy"
    if "Comments" in record:
        return "doccano"
    if column == exported_label(record):
        return "goldloop"
    return f"column {column!r}"


def _read(value: Any, labels: Sequence[str]) -> tuple[str | None, str]:
    """The label of a value and, where it is none, why."""
    try:
        given = [clean_text(v).strip() for v in labels_in(value, labels)]
    except ValueError:
        return None, "no label that can be read"
    given = list(dict.fromkeys(v for v in given if v))
    if not given:
        return None, "empty"
    if any(v.lower() == _UNSURE for v in given):
        return None, "unsure"
    read = dict.fromkeys(label_in(v, labels) for v in given)
    if len(read) > 1 or (len(given) > 1 and None in read):
        return None, "several labels"
    label = next(iter(read))
    return label, "" if label is not None else f"unknown label {given[0][:60]!r}"


def _inner(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [record[k] for k in _INNER if isinstance(record.get(k), Mapping)]


def _texts(
    record: Mapping[str, Any], column: str | None, label_column: str | None = None
) -> dict[str, str]:
    """Column -> a string that may be the text, the likeliest first."""
    places = [record, *_inner(record)]
    if column is not None:
        found = (value for place in places if (value := lookup(place, column)) is not ABSENT)
        value = next(found, ())
        return {} if isinstance(value, NESTED) else {column: clean_text(as_text(value))}
    strings = {
        name: value
        for place in places
        for name, value in place.items()
        if isinstance(value, str)
        and value.strip()
        and name.lower() not in _NO_TEXT
        and name.partition(".")[0] != label_column
    }
    likely = sorted(strings, key=lambda name: (name.lower() != "text", -len(strings[name])))
    return {name: clean_text(strings[name]) for name in likely}


def _person(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next((value[k] for k in ("email", "username", "id") if value.get(k)), "")
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else ""
    return clean_text(as_text(value)).strip()


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), "")


# Label Studio's tasks


def _of_label_studio(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    text_column: str | None,
    tag: str | None,
    tags: Sequence[str],
) -> Iterator[GivenLabel]:
    for row, task in records:
        texts = _texts(task, text_column)
        given = _annotations(task)
        if not given:
            drafts = isinstance(task.get("drafts"), list) and task["drafts"]
            yield GivenLabel(
                texts, row, "", None, "draft alone" if drafts else "nobody answered", ""
            )
        for annotation in given:
            label, why = None, "skipped"
            if not annotation.get("was_cancelled"):
                result = annotation.get("result")
                asked = _tags_in([annotation]) if tag is None else {}
                if sum(bool(_choices(result, name)) for name in asked) < 2:
                    label, why = _read(_choices(result, tag), labels)
                elif len(tags) == 1:
                    label, why = _read(_choices(result, tags[0]), labels)
                else:
                    why = "several labels"
            person = _person(annotation.get("completed_by"))
            at = as_text(_first(annotation, _TIMES))
            yield GivenLabel(texts, row, person, label, why, at)


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A task's answers."""
    given = [task[name] for name in _ANSWERS if isinstance(task.get(name), list)]
    return [one for part in given for one in part if isinstance(one, Mapping)]


def _tags(records: Sequence[tuple[int, Mapping[str, Any]]], labels: Sequence[str]) -> list[str]:
    """The tags in which some of the first tasks have one of the labels."""
    given = [a for _, task in records[:_GUESSED_FROM] for a in _annotations(task)]
    return [name for name, parts in _tags_in(given).items() if _some_label(_choices(parts), labels)]


def _tags_in(annotations: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Tag -> its parts of the results."""
    parts: dict[str, list[Any]] = {}
    for given in annotations:
        result = given.get("result")
        for part in result if isinstance(result, list) else []:
            if isinstance(part, Mapping):
                parts.setdefault(str(part.get("from_name")), []).append(part)
    return parts


def _some_label(values: Iterable[Any], labels: Sequence[str]) -> bool:
    return any(label_in(as_text(v), labels) for v in values if not isinstance(v, NESTED))


def _choices(result: Any, tag: str | None = None) -> list[Any]:
    """What was chosen in a result, or in one tag of it."""
    chosen: list[Any] = []
    for part in result if isinstance(result, list) else []:
        value = part.get("value") if isinstance(part, Mapping) else None
        if not isinstance(value, Mapping) or tag not in (None, str(part.get("from_name"))):
            continue
        for kind in ("choices", "rating", "number"):
            if kind in value:
                choices = value[kind]
                chosen += choices if isinstance(choices, list) else [choices]
        for path in value.get("taxonomy") or ():
            chosen += path[-1:] if isinstance(path, list) else []
    return chosen


# Argilla's records


def _of_argilla(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    text_column: str | None,
    question: str | None,
) -> Iterator[GivenLabel]:
    for row, record in records:
        texts = _texts(record, text_column)
        given = [
            response
            for name, listed_ in _responses(record).items()
            if question in (None, name) and isinstance(listed_, list)
            for response in listed_
            if isinstance(response, Mapping)
        ]
        if not given:
            yield GivenLabel(texts, row, "", None, "nobody answered", "")
        for response in given:
            status = response.get("status", HANDED_IN)
            label, why = None, f"status {status!r}"
            if status == HANDED_IN:
                label, why = _read(response.get("value"), labels)
            person = _person(_first(response, _WHO))
            yield GivenLabel(texts, row, person, label, why, "")


def _responses(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Question -> its answers."""
    given = record.get("responses")
    return given if isinstance(given, Mapping) else {}


def _questions(
    records: Sequence[tuple[int, Mapping[str, Any]]], labels: Sequence[str]
) -> list[str]:
    """The questions to which some of the first records have one of the labels."""
    values: dict[str, list[Any]] = {}
    for _, record in records[:_GUESSED_FROM]:
        for name, given in _responses(record).items():
            for one in given if isinstance(given, list) else []:
                if isinstance(one, Mapping):
                    values.setdefault(name, []).append(one.get("value"))
    return [name for name, given in values.items() if _some_label(given, labels)]


# tables


def _label_column(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    source: str,
    text_column: str | None,
) -> str:
    sample = [record for _, record in records[:_GUESSED_FROM]]
    names = list(dict.fromkeys(name for record in sample for name in record))
    if ours := exported_label(names):
        return ours
    filled: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for record in sample:
        for name in names:
            value = record.get(name)
            if value in (None, "", [], {}) or name == text_column:
                continue
            parts = [_first(one, ("value", "label")) for one in _answers_in(value)]
            for part in parts or [called(record, name, value, labels)]:
                label, why = _read(part, labels)
                filled[name] += why != "empty"
                read[name] += label is not None or why == "several labels"
    likely = [name for name in names if read[name] and 2 * read[name] >= filled[name]]
    usual = [n for n in likely if n in _USUAL or n.endswith(".responses")]
    theirs = usual[:1] or [n for n in likely if not any(w in n.lower() for w in _NO_ANSWER)]
    if len(theirs) == 1:
        return theirs[0]
    unanswered = [name for name in names if name.endswith(".responses")]
    if not theirs and len(unanswered) == 1:
        return unanswered[0]
    if not theirs:
        machines = f", but for predictions ({listed(likely)})" if likely else ""
        raise DataError(
            f"{source} has no column whose values are the campaign's labels ({listed(labels)})"
            f"{machines}. Columns: {listed(names)}. Name the one with people's answers with"
            " --label-column."
        )
    raise DataError(
        f"{source} has several columns with labels: {listed(theirs)}. Name the one with people's"
        " answers with --label-column."
    )


def _of_rows(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    text_column: str | None,
    column: str,
) -> Iterator[GivenLabel]:
    for row, record in records:
        texts = _texts(record, text_column, column)
        at = as_text(_first(record, _TIMES))
        value = lookup(record, column)
        value = None if value is ABSENT else value
        users = record.get(f"{column}.users")
        statuses = record.get(f"{column}.status")
        if column.endswith(".responses") and (value is None or isinstance(value, list)):
            if not value:
                yield GivenLabel(texts, row, "", None, "nobody answered", at)
            for i, one in enumerate(value or ()):
                who = users[i] if isinstance(users, list) and i < len(users) else ""
                said = statuses[i] if isinstance(statuses, list) and i < len(statuses) else None
                label, why = None, f"status {said!r}"
                if said in (None, HANDED_IN):
                    label, why = _read(one, labels)
                yield GivenLabel(texts, row, _person(who), label, why, at)
            continue
        if several := _answers_in(value):
            for one in several:
                label, why = None, f"status {one.get('status')!r}"
                if one.get("status", HANDED_IN) == HANDED_IN:
                    label, why = _read(_first(one, ("value", "label")), labels)
                yield GivenLabel(texts, row, _person(_first(one, _WHO)), label, why, at)
            continue
        kept, why = confirmed(record, column, value, labels)
        label, problem = (None, why) if why and not kept else _read(kept, labels)
        yield GivenLabel(texts, row, _person(_first(record, _PEOPLE)), label, problem, at)


def _answers_in(value: Any) -> list[Mapping[str, Any]]:
    """The answers of a cell that names who gave each (Argilla 1, doccano 1); else none.

    They are a list of objects, or one object of lists.
    """
    if isinstance(value, Mapping) and all(isinstance(v, list) for v in value.values()):
        rows = zip(*value.values(), strict=True) if len({*map(len, value.values())}) == 1 else ()
        value = [dict(zip(value, row, strict=True)) for row in rows]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        return []
    return value if all(any(who in one for who in _WHO) for one in value) else []
