"""Reading what people answered, as much of it as has changed.

Reading goes by the server's own change times, with an overlap, and takes each changed task with
its whole set of annotations, so that deleted ones show. The server checks little, so answers are
judged here; what cannot be used is kept, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from connectors.label_studio_client import Client, RefusedError, filter_on
from connectors.label_studio_page import FROM_NAME, UNSURE
from loop.errors import ReviewerError
from loop.ports import Fetched, FetchedTask, RawAnnotation, unknown_label

log = logging.getLogger(__name__)

PAGE_TASKS = 500  # with annotations
CURSOR_OVERLAP_S = 10.0  # a slow transaction may carry an earlier time than one already read


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
        self.ignored_tasks = 0  # tasks of the project that are not ours, seen by the last fetch

    def fetch(self, cursor: str | None) -> Fetched:
        """Tasks of ours that changed since the cursor, each with all its annotations.

        Raises:
            ReviewerError: the server cannot be read.
        """
        since = None if not cursor else _earlier(cursor, CURSOR_OVERLAP_S)
        rows = self._changed(since)
        found: list[FetchedTask] = []
        newest = cursor or ""
        self.ignored_tasks = 0
        for row in rows:
            newest = max(newest, str(row.get("updated_at") or ""), key=_time_key)
            item_id = (row.get("data") or {}).get("ext_id")
            if not isinstance(item_id, str):
                self.ignored_tasks += 1
                continue
            raws = sorted(row.get("annotations") or [], key=lambda raw: int(raw["id"]))
            answers = tuple(self._read(raw, str(row["id"]), item_id) for raw in raws)
            found.append(FetchedTask(str(row["id"]), item_id, answers))
        return Fetched(tuple(found), newest)

    def _changed(self, since: str | None) -> list[dict[str, Any]]:
        filters = [] if since is None else [filter_on("updated_at", "greater", "Datetime", since)]
        return self._client.listed(
            self._project, "read answers", filters, fields="all", page_size=PAGE_TASKS
        )

    def _read(self, raw: Mapping[str, Any], task_id: str, item_id: str) -> RawAnnotation:
        skipped = bool(raw.get("was_cancelled"))
        label, problem = (None, None) if skipped else self._answer(raw.get("result"))
        lead_time = raw.get("lead_time")
        return RawAnnotation(
            annotation_id=str(raw["id"]),
            task_id=task_id,
            item_id=item_id,
            annotator=self._person(raw.get("completed_by")),
            label=label,
            skipped=skipped,
            note=_note(raw.get("result")),
            lead_time_s=None if lead_time is None else float(lead_time),
            updated_at=str(raw.get("updated_at") or ""),
            problem=problem,
            raw=raw,
        )

    def _answer(self, result: Any) -> tuple[str | None, str | None]:
        """Label and problem of one answer; one of the two is None."""
        parts = [part for part in result or [] if isinstance(part, Mapping)]
        choices: list[Any] = []
        for part in parts:
            if part.get("from_name") == FROM_NAME and part.get("type") == "choices":
                choices += (part.get("value") or {}).get("choices") or []
        if not choices:
            tags = sorted({str(part.get("from_name")) for part in parts} - {FROM_NAME, "note"})
            if tags:
                return None, f"answer from another page (tag {', '.join(tags)})"
            return None, "empty result"
        if len(choices) > 1:
            return None, "several choices"
        if choices[0] == UNSURE:
            return None, "unsure"
        label = self._names.get(choices[0]) if isinstance(choices[0], str) else None
        return (None, unknown_label(choices[0])) if label is None else (label, None)

    def _person(self, who: Any) -> str:
        """E-mail address of a user, which stays the same; else the user's number."""
        if isinstance(who, Mapping):
            who = who.get("id")
        if who is None:
            return "deleted user"
        if who not in self._people:
            try:
                with self._client.asking("list its users"):
                    for user in self._client.get("api/users/", {}):
                        name = user.get("email") or user.get("username") or f"user {user['id']}"
                        self._people[int(user["id"])] = str(name)
            except RefusedError:
                log.info("Label Studio does not name its users to this one")
            self._people.setdefault(who, f"user {who}")
        return self._people[who]


def _note(result: Any) -> str:
    texts: list[str] = []
    for part in result or []:
        if isinstance(part, Mapping) and part.get("from_name") == "note":
            text = (part.get("value") or {}).get("text") or []
            texts += [text] if isinstance(text, str) else [str(line) for line in text]
    return "\n".join(texts)


def _time_key(stamp: str) -> float:
    """Server times as numbers: with and without a fraction, text does not sort."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else float("-inf")


def _earlier(stamp: str, by_s: float) -> str:
    try:
        moment = datetime.fromisoformat(stamp) - timedelta(seconds=by_s)
    except ValueError as exc:
        raise ReviewerError(f"The stored reading position {stamp!r} is not a time.") from exc
    # The server takes exactly this form: a fraction of six digits, and Z.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
