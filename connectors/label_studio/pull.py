"""Reading what people answered, as much of it as has changed.

Reading goes by the server's own change times, with an overlap, and takes each changed task with
its whole set of annotations, so that deleted ones show. The server checks little, so each answer is
judged here by itself: what cannot be used is kept, with the reason, and hinders no other.

A reading position never lies in the server's future. Where the server's clock was set back behind
it, no answer would be newer for as long as the clock was wrong: then everything is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from connectors.label_studio.client import Client, Listing, RefusedError, filter_on
from connectors.label_studio.page import FROM_NAME, UNSURE
from loop.ports import Fetched, FetchedTask, RawAnnotation, unknown_label

log = logging.getLogger(__name__)

PAGE_TASKS = 500  # with annotations
CURSOR_OVERLAP_S = 10.0  # a slow transaction may carry an earlier time than one already read
CLOCK_S = 1.0  # the server tells its time in whole seconds
MAX_DEPTH = 100  # of a raw answer; ours have five levels
MAX_ID = 2**63  # what databases number things with
DELETED_USER = "deleted user"
_NOT_STORED = re.compile("[\x00\ud800-\udfff]")  # no id of ours has one


class _UnreadableError(Exception):
    """Why an answer cannot be used, in few words."""


class Pull:
    """Answers to the tasks of one project.

    Args:
        project: its number.
        names: page name -> label name.
    """

    def __init__(self, client: Client, project: int, names: Mapping[str, str]) -> None:
        self._client = client
        self._project = project
        self._names = names
        self._people: dict[int, str] = {}

    def fetch(self, cursor: str | None) -> Fetched:
        """Tasks of ours that changed since the cursor, each with all its annotations.

        Args:
            cursor: what an earlier fetch returned. Without one, with one that is no time, or one
                that lies in the server's future, everything is read.
        Raises:
            ReviewerError: the server cannot be read.
        """
        last = _moment(cursor)
        listing = self._changed(last)
        if last and listing.at and last > listing.at + timedelta(seconds=CLOCK_S):
            log.warning(
                "The clock of Label Studio's server was set back, from %s to %s or earlier;"
                " reading every answer again.",
                last.isoformat(timespec="seconds"),
                listing.at.isoformat(timespec="seconds"),
            )
            last, cursor = None, None
            listing = self._changed(None)
        tasks: list[FetchedTask] = []
        for row in listing.rows:
            data = row.get("data")
            item_id = data.get("ext_id") if isinstance(data, Mapping) else None
            if not isinstance(item_id, str) or _NOT_STORED.search(item_id):
                continue  # a task of somebody else's
            answers = self._answers(row.get("annotations"), str(row["id"]), item_id)
            tasks.append(FetchedTask(str(row["id"]), item_id, answers))
        newest = _newest(listing)
        if newest is not None and (last is None or newest > last):
            cursor = _stamp(newest)
        return Fetched(
            tuple(tasks),
            cursor or "",
            whole=last is None,
            unserved=tuple(str(task) for task in listing.unserved),
        )

    def _changed(self, last: datetime | None) -> Listing:
        filters = []
        if last is not None:
            since = _stamp(last - timedelta(seconds=CURSOR_OVERLAP_S))
            filters = [filter_on("updated_at", "greater", "Datetime", since)]
        return self._client.read(
            self._project, "read answers", filters, fields="all", page_size=PAGE_TASKS
        )

    # one answer

    def _answers(self, raws: Any, task_id: str, item_id: str) -> tuple[RawAnnotation, ...]:
        if not isinstance(raws, list):
            raws = [] if raws is None else [raws]
        taken: set[str] = set()
        return tuple(
            self._read(raw, task_id, item_id, taken) for raw in sorted(raws, key=_number_key)
        )

    def _read(self, raw: Any, task_id: str, item_id: str, taken: set[str]) -> RawAnnotation:
        """Judges one answer by itself.

        A label needs an answer with a number of its own, by a known person, that chose one of the
        labels. What is odd beside that (the note, the time taken) is left out.

        Args:
            taken: numbers of the task's answers so far; gains this one's.
        """
        answer: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
        kept, digest = _kept(raw)
        skipped, label, problem = False, None, None
        number, person = _number(answer.get("id")), self._person(answer.get("completed_by"))
        try:
            if not isinstance(raw, Mapping):
                raise _UnreadableError("no JSON object")
            if kept is not raw:
                raise _UnreadableError("nested too deeply")
            if number is None or str(number) in taken:
                raise _UnreadableError("no number of its own")
            if person is None:
                raise _UnreadableError("unknown person")
            skipped = _skipped(answer.get("was_cancelled"))
            label = None if skipped else self._label(answer.get("result"))
        except _UnreadableError as exc:
            problem = str(exc)
        if person == DELETED_USER and number is not None:  # two of them are two people
            person = f"{DELETED_USER} (answer {number})"
        annotation_id = f"{task_id}?{digest}" if number is None else str(number)
        while annotation_id in taken:
            annotation_id += "+"
        taken.add(annotation_id)
        changed = answer.get("updated_at")
        return RawAnnotation(
            annotation_id=annotation_id,
            task_id=task_id,
            item_id=item_id,
            annotator=person or "unknown person",
            label=label,
            skipped=skipped,
            note=_note(answer.get("result")),
            lead_time_s=_seconds(answer.get("lead_time")),
            # Without a time it is told from its later states by its content, and counts as older
            # than every answer that has one.
            updated_at=changed if isinstance(changed, str) and _moment(changed) else f"!{digest}",
            problem=problem,
            raw=kept,
        )

    def _label(self, result: Any) -> str:
        """The label that a result chose.

        Raises:
            _UnreadableError: it chose none, or none that is ours.
        """
        if result is not None and not isinstance(result, list):
            raise _UnreadableError("result that is not a list")
        parts = [part for part in result or [] if isinstance(part, Mapping)]
        choices: list[Any] = []
        for part in parts:
            if part.get("from_name") == FROM_NAME and part.get("type") == "choices":
                value = part.get("value")
                chosen = value.get("choices") if isinstance(value, Mapping) else value
                if chosen is not None and (not isinstance(chosen, list) or chosen is value):
                    raise _UnreadableError("choices that are not a list")
                choices += chosen or []
        if not choices:
            named = {str(part["from_name"]) for part in parts if part.get("from_name") is not None}
            tags = sorted(named - {FROM_NAME, "note"})
            if tags:
                raise _UnreadableError(f"answer from another page (tag {', '.join(tags)[:100]})")
            raise _UnreadableError("empty result")
        if len(choices) > 1:
            raise _UnreadableError("several choices")
        if not isinstance(choices[0], str):
            raise _UnreadableError("choice that is not text")
        if choices[0] == UNSURE:
            raise _UnreadableError("unsure")
        if choices[0] not in self._names:
            raise _UnreadableError(unknown_label(choices[0]))
        return self._names[choices[0]]

    def _person(self, who: Any) -> str | None:
        """E-mail address of a user, which stays the same; else the user's number.

        None for what cannot be a user.
        """
        if isinstance(who, Mapping):
            who = who.get("id")
            if who is None:
                return None
        if who is None:
            return DELETED_USER
        if (number := _number(who)) is None:
            return None
        if number not in self._people:
            try:
                with self._client.asking("list its users"):
                    users = self._client.get("api/users/", {})
            except RefusedError:
                log.info("Label Studio does not name its users to this one")
                users = []
            for user in users if isinstance(users, list) else []:
                if isinstance(user, Mapping) and (known := _number(user.get("id"))) is not None:
                    name = user.get("email") or user.get("username") or f"user {known}"
                    self._people[known] = str(name)
            self._people.setdefault(number, f"user {number}")
        return self._people[number]


def _number(value: Any) -> int | None:
    """A number that a database gives, whether it comes as one or as its digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    ours = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ID
    return value if ours else None


def _number_key(raw: Any) -> int:
    """Answers come in the order of their numbers, those without one last."""
    number = _number(raw.get("id")) if isinstance(raw, Mapping) else None
    return MAX_ID if number is None else number


def _skipped(cancelled: Any) -> bool:
    if cancelled is None or isinstance(cancelled, bool):
        return bool(cancelled)
    raise _UnreadableError("neither skipped nor answered")


def _note(result: Any) -> str:
    lines: list[str] = []
    for part in result if isinstance(result, list) else []:
        if isinstance(part, Mapping) and part.get("from_name") == "note":
            value = part.get("value")
            text = value.get("text") if isinstance(value, Mapping) else value
            for line in text if isinstance(text, list) else [text]:
                if isinstance(line, (str, int, float)):
                    lines.append(str(line))
    return "\n".join(lines)


def _seconds(value: Any) -> float | None:
    """A time taken, where it can be one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _kept(raw: Any) -> tuple[Any, str]:
    """An answer as it is kept, and what tells it from others: 12 hex digits.

    One that is nested too deeply for databases and their drivers is kept as its JSON text.
    """
    try:
        text = json.dumps(raw, sort_keys=True)
    except RecursionError:  # read with the last of the stack
        text = "nested too deeply to be kept"
    return (text if _is_deep(raw) else raw), hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_deep(raw: Any) -> bool:
    level = [raw]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for whole in level
            if isinstance(whole, (list, dict))
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        if not level:
            return False
    return True


# the server's times


def _moment(stamp: Any) -> datetime | None:
    """A server's time, or None for what is none; years that only a mistake can name are none."""
    try:
        moment = datetime.fromisoformat(stamp)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if 1970 < moment.year < 9999 else None


def _newest(listing: Listing) -> datetime | None:
    """The newest change that was read, and never later than the server's present."""
    times = [moment for row in listing.rows if (moment := _moment(row.get("updated_at")))]
    if not times:
        return None
    newest = max(times)
    return min(newest, listing.at + timedelta(seconds=CLOCK_S)) if listing.at else newest


def _stamp(moment: datetime) -> str:
    # The server takes exactly this form: a fraction of six digits, and Z.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
