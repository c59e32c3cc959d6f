"""Bringing tasks to Label Studio: none twice, none lost, whatever fails on the way.

Our id stands in each task's data. Before an import, and after every failed one, the ids that are
already there are looked up.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from connectors.label_studio.client import (
    ATTEMPTS,
    NO_RETRY,
    Client,
    LostError,
    RefusedError,
    pauses,
)
from connectors.label_studio.page import choice_result, sendable
from loop.errors import ReviewerError
from loop.ports import Progress, ReviewTask, no_progress

log = logging.getLogger(__name__)

MODEL_VERSION = "goldloop"  # of predictions, where the LLM's label is shown
BATCH_TASKS = 1_000  # one import; larger ones are hardly quicker
PAGE_TASKS = 1_000  # without annotations


@dataclass
class _Task:
    """A task of ours on the server."""

    id: int
    predictions: int
    annotations: int
    overlap: int


class Push:
    """The tasks of one project, on their way out.

    Args:
        project: its number.
        patience_s: how long a failed import is given to turn up after all before it is repeated.
        assist: ``blind``, ``prefill`` or ``why``.
        overlap: how many people answer each task.
    """

    def __init__(
        self, client: Client, project: int, *, patience_s: float, assist: str, overlap: int
    ) -> None:
        self._client = client
        self._project = project
        self._patience_s = patience_s
        self._assist = assist
        self._overlap = overlap
        self._places: dict[str, str] = {}

    def send(self, tasks: Sequence[ReviewTask], progress: Progress = no_progress) -> dict[str, str]:
        """Imports the tasks that are not there yet, lowest rank first.

        Args:
            tasks: with item ids that differ from each other.
            progress: told of tasks known to be on the server.
        Returns:
            item id -> task id, for every task.
        Raises:
            ReviewerError: a task could not be brought to the server; calling again is safe.
        """
        ordered = sorted(tasks, key=lambda task: task.rank)
        if len({task.item_id for task in ordered}) != len(ordered):
            raise ValueError("Item ids of the tasks repeat.")
        self._places = _places(ordered)
        there = self._look_up([task.item_id for task in ordered])
        progress(len(there))
        missing = [task for task in ordered if task.item_id not in there]
        size = BATCH_TASKS
        while missing:
            try:
                there |= self._import(missing[:size])
            except RefusedError as exc:
                if exc.status != 413 or size == 1:
                    raise
                size = max(1, min(size, len(missing)) // 4)  # proxies take so many bytes at most
                continue
            progress(len(missing[:size]))
            missing = missing[size:]
        if self._assist == "prefill":
            self._repair_predictions(
                [t for t in ordered if _shows_label(t) and not there[t.item_id].predictions], there
            )
        wanted = {t.item_id: max(1, self._overlap - t.answered) for t in ordered}
        few = {i: task for i, task in there.items() if task.overlap < wanted[i]}
        ask(self._client, {str(task.id): wanted[i] for i, task in few.items()})
        return {task.item_id: str(there[task.item_id].id) for task in ordered}

    def _look_up(self, item_ids: Sequence[str]) -> dict[str, _Task]:
        """Those of the ids that are there; of several tasks with one id, the lowest numbered."""
        there: dict[str, _Task] = {}
        for item_id, tasks in self._look_up_all(item_ids).items():
            there[item_id] = tasks[0]
            if len(tasks) > 1:
                log.warning(
                    "Label Studio holds %d tasks for item %s; task %d is used",
                    len(tasks),
                    item_id,
                    tasks[0].id,
                )
        return there

    def _look_up_all(self, item_ids: Sequence[str]) -> dict[str, list[_Task]]:
        tasks_of: dict[str, list[_Task]] = {}
        # The server's own count of predictions lags behind, so where they matter they are read.
        prefill = self._assist == "prefill"
        rows = self._client.of_items(
            self._project,
            "look up tasks",
            item_ids,
            PAGE_TASKS,
            fields="all" if prefill else "task_only",
            include="id,data,total_annotations,overlap" + (",predictions" if prefill else ""),
        )
        with self._client.asking("look up tasks"):
            for row in rows:
                task = _Task(
                    int(row["id"]),
                    len(row.get("predictions") or []),
                    int(row.get("total_annotations") or 0),
                    int(row.get("overlap") or 1),
                )
                tasks_of.setdefault(str(row["data"]["ext_id"]), []).append(task)
        for tasks in tasks_of.values():
            tasks.sort(key=lambda task: task.id)
        return tasks_of

    def _import(self, batch: Sequence[ReviewTask]) -> dict[str, _Task]:
        """Imports a batch of tasks that are not there; survives lost answers without doubling."""
        there: dict[str, _Task] = {}
        todo = list(batch)
        repeated = False
        for pause_s in pauses(ATTEMPTS):
            try:
                ids, predictions = self._import_once(todo)
            except LostError as exc:
                failure = exc
            else:
                made = {t.item_id: _Task(i, 1, 0, 1) for t, i in zip(todo, ids, strict=True)}
                if predictions < sum(_shows_label(t) for t in todo):
                    made = self._look_up([t.item_id for t in todo])
                there |= made
                return self._without_twins(there) if repeated else there
            log.info("%s Checking what has arrived.", failure)
            time.sleep(pause_s)
            if not failure.over:
                wait_until(
                    self._patience_s, partial(self._all_there, [task.item_id for task in todo])
                )
            there |= self._look_up([task.item_id for task in todo])
            todo = [task for task in todo if task.item_id not in there]
            if not todo:
                return self._without_twins(there) if repeated else there
            repeated = True
        raise failure

    def _import_once(self, tasks: Sequence[ReviewTask]) -> tuple[list[int], int]:
        project = self._project
        request: list[Any] = [self._payload(task) for task in tasks]
        with self._client.asking("import tasks"):
            answer = self._client.sdk().projects.import_tasks(
                project,
                request=request,
                return_task_ids=True,
                commit_to_project=True,
                request_options=NO_RETRY,
            )
            body: Any = getattr(answer, "data", answer)
            ids = [int(task_id) for task_id in body.task_ids or []]
            if len(ids) != len(tasks):  # seen with no server; never guess which task is which
                raise LostError(
                    f"Label Studio named {len(ids)} of the {len(tasks)} tasks imported."
                )
            wanted = self._assist == "prefill" and any(_shows_label(task) for task in tasks)
            return ids, int(body.prediction_count or 0) if wanted else len(tasks)

    def _payload(self, task: ReviewTask) -> dict[str, Any]:
        """What leaves the house: in blind mode neither the LLM's label nor how sure it was."""
        data: dict[str, Any] = {
            "ext_id": task.item_id,
            "text": sendable(task.text),
            "round": task.round_number,
            "place": self._places[task.item_id],
        }
        if self._assist == "why":
            data["why"] = sendable(task.why) if task.assisted else ""
        payload: dict[str, Any] = {"data": data}
        if self._assist == "prefill" and _shows_label(task):
            payload["predictions"] = [self._prediction(task)]
        return payload

    @staticmethod
    def _prediction(task: ReviewTask) -> dict[str, Any]:
        return {
            "model_version": MODEL_VERSION,
            "score": float(task.llm_confidence),
            "result": choice_result(task.llm_label),
        }

    def _repair_predictions(self, tasks: Sequence[ReviewTask], there: Mapping[str, _Task]) -> None:
        """Adds predictions that the server dropped, as SQLite servers silently do when busy."""
        for pause_s in pauses(ATTEMPTS):
            if not tasks:
                return
            request: list[Any] = [
                {"task": there[task.item_id].id, **self._prediction(task)} for task in tasks
            ]
            failure: ReviewerError | None = None
            try:
                with self._client.asking("import the LLM's labels"):
                    self._client.sdk().projects.import_predictions(
                        self._project, request=request, request_options=NO_RETRY
                    )
            except LostError as exc:
                failure = exc
                time.sleep(pause_s)
            now = self._look_up([task.item_id for task in tasks])
            tasks = [task for task in tasks if not now[task.item_id].predictions]
        if tasks:
            raise failure or ReviewerError(
                f"Label Studio keeps dropping the LLM's labels of {len(tasks)} tasks; try again"
                " when nobody is labelling, or use PostgreSQL for it."
            )

    def _without_twins(self, there: Mapping[str, _Task]) -> dict[str, _Task]:
        """After a repeated import: removes unanswered second tasks of an item, if any came late."""
        kept: dict[str, _Task] = {}
        for item_id, tasks in self._look_up_all(list(there)).items():
            keep = next((task for task in tasks if task.annotations), tasks[0])
            kept[item_id] = keep
            for task in tasks:
                if task.id != keep.id and not task.annotations:
                    with self._client.asking("remove a doubled task"):
                        self._client.sdk().tasks.delete(str(task.id), request_options=NO_RETRY)
        return kept

    def _all_there(self, item_ids: Sequence[str]) -> bool:
        return len(self._look_up(item_ids)) == len(item_ids)


def ask(client: Client, wanted: Mapping[str, int], *, more: bool = True) -> None:
    """Opens tasks again until so many people answered each.

    Args:
        wanted: task id -> number of people's answers.
        more: False where they are there, and nobody else shall be asked.
    Raises:
        ReviewerError: the server refuses; calling again is safe.
    """
    for task_id, people in wanted.items():
        try:
            client.write(
                "PATCH",
                f"api/tasks/{int(task_id)}/",
                {"overlap": people, "is_labeled": not more},
                "change how many people it asks",
                repeatable=True,
            )
        except RefusedError as exc:
            if exc.status != 404:
                raise
            log.warning("Task %s was deleted in Label Studio; nobody is asked.", task_id)


def wait_until(patience_s: float, done: Callable[[], bool]) -> None:
    """Gives a request whose answer was lost time to take effect."""
    end = time.monotonic() + patience_s
    pause_s = 0.2
    while True:
        try:
            if done():
                return
        except LostError:
            pass  # still down: waiting is right
        if time.monotonic() >= end:
            return
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


def _places(ordered: Sequence[ReviewTask]) -> dict[str, str]:
    """What each task says of its place among those of its round, by item id.

    It is the place in the list, not the number of answers: that stays true whoever answers what.
    """
    sizes = Counter(task.round_number for task in ordered)
    passed: Counter[int] = Counter()
    places = {}
    for task in ordered:
        number = task.round_number
        passed[number] += 1
        where = f" in round {number}" if number else ""
        places[task.item_id] = f"Text {passed[number]:,} of {sizes[number]:,}{where}"
    return places


def _shows_label(task: ReviewTask) -> bool:
    """Whether the page may be filled in; an LLM that gave no answer has no label to show."""
    return task.assisted and bool(task.llm_label)
