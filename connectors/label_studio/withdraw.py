"""Taking tasks back that nobody has begun to answer, and asking no further people about others."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.label_studio.client import Client, filter_on
from connectors.label_studio.push import ask

BATCH_TASKS = 200  # small, so that little time passes between the server's look and its deletion
PAGE_TASKS = 1_000


def withdraw(client: Client, project: int, item_ids: Sequence[str]) -> set[str]:
    """Removes tasks without an answer, a skip or a draft; answered ones are shown to nobody else.

    The server itself looks for answers once more in the request that deletes, so an answer that
    comes after our own look keeps its task. Between the server's look and its deletion an answer
    can still be lost; one task a request keeps that moment short. Who has a removed task open is
    told that it is gone.

    Returns:
        items that are on the server no more.
    Raises:
        ReviewerError: the server refuses; calling again is safe.
    """
    for start in range(0, len(item_ids), BATCH_TASKS):
        batch = list(item_ids[start : start + BATCH_TASKS])
        for row in client.of_items(
            project,
            "look for answers",
            batch,
            PAGE_TASKS,
            unserved=True,  # they have been answered
            fields="all",
            include="id,annotations,is_labeled",
        ):
            task, answers = int(row["id"]), row.get("annotations")
            if answers:
                if not row.get("is_labeled"):
                    ask(client, {str(task): len(answers)}, more=False)
            elif not _has_draft(client, task):
                _delete_unanswered(client, project, task)
    left = client.of_items(
        project, "see what is left", item_ids, PAGE_TASKS, fields="task_only", include="id,data"
    )
    return set(item_ids) - {str(row["data"]["ext_id"]) for row in left}


def _delete_unanswered(client: Client, project: int, task: int) -> None:
    body = {
        "filters": {
            "conjunction": "and",
            "items": [
                filter_on("total_annotations", "equal", "Number", 0),
                filter_on("cancelled_annotations", "equal", "Number", 0),
            ],
        },
        "selectedItems": {"all": False, "included": [task]},
    }
    client.write(
        "POST",
        f"api/dm/actions?id=delete_tasks&project={project}",
        body,
        "withdraw tasks",
        repeatable=True,  # what is deleted already is not found again
    )


def _has_draft(client: Client, task_id: int) -> bool:
    """Asked for each task: task lists name the drafts of their reader alone."""
    with client.asking("look for drafts"):
        return bool(client.get(f"api/tasks/{task_id}/drafts", {}))
