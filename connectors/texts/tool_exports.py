"""What people answered in labelling tools, out of the files that these tools export.

Read are Label Studio (JSON, JSON-MIN, CSV), doccano, Argilla, Prodigy, spaCy's ``cats``, and every
table with a column of labels. Predictions, suggestions and drafts are no answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.llm.label_spelling import label_in
from connectors.texts.formats import Problems, Wanted, read_raw
from connectors.texts.label_cells import ABSENT, confirmed, labels_in, lookup
from connectors.texts.values import NESTED, as_text, clean_text, listed
from loop.errors import DataError
from loop.ports import GivenLabel

_USUAL = ("label", "labels", "accept", "cats", "annotation", "gold")
_NO_ANSWER = ("predict", "suggest", "llm", "model", "score")
_PEOPLE = ("annotator", "_annotator_id", "_session_id", "annotation_agent", "user", "username")
_TIMES = ("updated_at", "_timestamp", "created_at")
_UNSURE = "unsure / none fits"
_GUESSED_FROM = 200  # rows


@dataclass(frozen=True)
class ToolExport:
    """The answers of one export.

    Attributes:
        tool: which tool wrote it, in words.
        answers: one for each answer, and for each row without one, in the order of the file.
    """

    tool: str
    answers: tuple[GivenLabel, ...]


def read_export(
    source: str,
    labels: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
) -> ToolExport:
    """People's answers in a file.

    Args:
        labels: the campaign's classes.
        text_column: None tries all texts of a row.
        label_column: of Label Studio the name of the choices' tag; None looks for it.
    Raises:
        DataError: the file cannot be read, or nobody can tell which column holds the labels.
    """
    problems = Problems(source)
    wanted: Wanted = lambda _name, _plain: True  # noqa: E731
    names = tuple(filter(None, (text_column, label_column)))
    raw = read_raw(source, "auto", "train", wanted, problems, names)
    records = list(raw.records) if raw is not None else []
    if errors := [p.message for p in problems.listed if p.level == "error"]:
        raise DataError("\n".join(errors))
    if not records:
        raise DataError(f"{source} holds no rows.")
    return answers_of(records, labels, source, text_column, label_column)


def answers_of(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    source: str,
    text_column: str | None = None,
    label_column: str | None = None,
) -> ToolExport:
    """People's answers in the records of an export, see :func:`read_export`."""
    _, first = records[0]
    if "annotations" in first and isinstance(first.get("data"), Mapping):
        tool = "Label Studio"
        answers = _of_label_studio(records, labels, text_column, label_column)
    elif isinstance(first.get("responses"), Mapping):
        tool = "Argilla"
        answers = _of_argilla(records, labels, text_column, label_column)
    else:
        column = label_column or _label_column(records, labels, source, text_column)
        tool = _tool(first, column)
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


def _texts(record: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    """The strings that may be the text, the likeliest first."""
    if column is not None:
        value = lookup(record, column)
        if value is ABSENT and isinstance(record.get("data"), Mapping):
            value = lookup(record["data"], column)
        return () if value is ABSENT or isinstance(value, NESTED) else (clean_text(as_text(value)),)
    inner = [record[k] for k in ("data", "fields") if isinstance(record.get(k), Mapping)]
    strings = [
        (name, value)
        for part in (*inner, record)
        for name, value in part.items()
        if isinstance(value, str) and value.strip()
    ]
    strings.sort(key=lambda pair: (pair[0].lower() != "text", -len(pair[1])))
    return tuple(clean_text(value) for _, value in strings)


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
) -> Iterator[GivenLabel]:
    for row, task in records:
        texts = _texts(task, text_column)
        annotations = task.get("annotations")
        given = (
            [a for a in annotations if isinstance(a, Mapping)]
            if isinstance(annotations, list)
            else []
        )
        if not given:
            drafts = isinstance(task.get("drafts"), list) and task["drafts"]
            yield GivenLabel(
                texts, row, "", None, "draft alone" if drafts else "nobody answered", ""
            )
        for annotation in given:
            label, why = None, "skipped"
            if not annotation.get("was_cancelled"):
                label, why = _read(_choices(annotation.get("result"), tag), labels)
            person = _person(annotation.get("completed_by"))
            at = as_text(_first(annotation, _TIMES))
            yield GivenLabel(texts, row, person, label, why, at)


def _choices(result: Any, tag: str | None) -> list[Any]:
    """What was chosen in a result, or in one tag of it."""
    chosen: list[Any] = []
    for part in result if isinstance(result, list) else []:
        value = part.get("value") if isinstance(part, Mapping) else None
        if not isinstance(value, Mapping) or (tag is not None and part.get("from_name") != tag):
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
        responses = record.get("responses")
        given = [
            response
            for name, listed_ in (responses.items() if isinstance(responses, Mapping) else ())
            if question in (None, name) and isinstance(listed_, list)
            for response in listed_
            if isinstance(response, Mapping)
        ]
        if not given:
            yield GivenLabel(texts, row, "", None, "nobody answered", "")
        for response in given:
            status = response.get("status", "submitted")
            label, why = None, f"status {status!r}"
            if status == "submitted":
                label, why = _read(response.get("value"), labels)
            person = _person(_first(response, ("user_id", "user")))
            yield GivenLabel(texts, row, person, label, why, "")


# tables


def _label_column(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    source: str,
    text_column: str | None,
) -> str:
    sample = [record for _, record in records[:_GUESSED_FROM]]
    names = list(dict.fromkeys(name for record in sample for name in record))
    filled: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for record in sample:
        for name in names:
            value = record.get(name)
            if value in (None, "", []) or name == text_column:
                continue
            label, why = _read(value, labels)
            filled[name] += why != "empty"
            read[name] += label is not None or why == "several labels"
    likely = [name for name in names if read[name] and 2 * read[name] >= filled[name]]
    usual = [n for n in likely if n in _USUAL or n.endswith(".responses")]
    ours = usual[:1] or [n for n in likely if not any(w in n.lower() for w in _NO_ANSWER)]
    if len(ours) == 1:
        return ours[0]
    if not ours:
        raise DataError(
            f"{source} has no column whose values are the campaign's labels ({listed(labels)})."
            f" Columns: {listed(names)}. Name the one with people's answers with --label-column."
        )
    raise DataError(
        f"{source} has several columns with labels: {listed(ours)}. Name the one with people's"
        " answers with --label-column."
    )


def _of_rows(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    labels: Sequence[str],
    text_column: str | None,
    column: str,
) -> Iterator[GivenLabel]:
    for row, record in records:
        texts = _texts(record, text_column)
        at = as_text(_first(record, _TIMES))
        value = lookup(record, column)
        value = None if value is ABSENT else value
        users = record.get(f"{column}.users")
        statuses = record.get(f"{column}.status")
        if column.endswith(".responses") and isinstance(value, list):
            if not value:
                yield GivenLabel(texts, row, "", None, "nobody answered", at)
            for i, one in enumerate(value):
                who = users[i] if isinstance(users, list) and i < len(users) else ""
                said = statuses[i] if isinstance(statuses, list) and i < len(statuses) else None
                label, why = None, f"status {said!r}"
                if said in (None, "submitted"):
                    label, why = _read(one, labels)
                yield GivenLabel(texts, row, _person(who), label, why, at)
            continue
        kept, why = confirmed(record, column, value)
        label, problem = (None, why) if why else _read(kept, labels)
        yield GivenLabel(texts, row, _person(_first(record, _PEOPLE)), label, problem, at)
