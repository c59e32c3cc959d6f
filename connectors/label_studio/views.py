"""Tabs of a Label Studio project, and the servers that it calls."""

from __future__ import annotations

import re
import time
from typing import Any

from connectors.label_studio.client import ATTEMPTS, Client, LostError, filter_on, pauses

BACKEND_TITLE = "goldloop student"
SHOWN_COLUMNS = {  # and their widths in pixels; Label Studio keeps to its own order of columns
    "tasks:completed_at": 155,
    "tasks:cancelled_annotations": 50,
    "tasks:annotators": 130,
    "tasks:annotations_results": 320,
    "tasks:data.text": 410,
}
HINTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")


def show_round(client: Client, project: int, number: int) -> None:
    """A tab with the tasks of one round, most suspect first.

    Raises:
        ReviewerError: the server refuses; calling again is safe.
    """
    shown = [filter_on("data.round", "equal", "Number", number)]
    show_tab(client, project, f"Round {number}", shown, make=True)


def newest_round(client: Client, project: int) -> int | None:
    """The tab of the round with the highest number; None where there is none."""
    with client.asking("list its tabs"):
        tabs = client.get("api/dm/views/", {"project": project})
        tabs_by_round = {
            int(number[1]): int(tab["id"])
            for tab in tabs
            if (number := re.fullmatch(r"Round (\d+)", str((tab.get("data") or {}).get("title"))))
        }
    return tabs_by_round[max(tabs_by_round)] if tabs_by_round else None


def show_tab(
    client: Client, project: int, title: str, shown: list[dict[str, Any]], *, make: bool
) -> None:
    """A tab of that title with the tasks that pass the filters, in the order they came.

    It shows text, state, answers, notes and who gave them; columns that people chose there stay.

    Args:
        make: whether the tab is made where there is none.
    Raises:
        ReviewerError: the server refuses; calling again is safe.
    """
    data = {
        "title": title,
        "filters": {"conjunction": "and", "items": shown},
        "ordering": ["tasks:id"],
    }
    for pause_s in pauses(ATTEMPTS):
        with client.asking("list its tabs"):
            tabs = client.get("api/dm/views/", {"project": project})
            tab = next((t for t in tabs if (t.get("data") or {}).get("title") == title), None)
            number, kept = (0, {}) if tab is None else (int(tab["id"]), {**tab["data"]})
        if tab is None and not make:
            return
        try:
            if tab is None:
                body = {"project": project, "data": {**data, **_columns(client, project)}}
                client.write("POST", "api/dm/views/", body, "make a tab")
                return
            chosen = "hiddenColumns" in kept  # not in tabs that older versions made
            if not chosen or kept.get("filters") != data["filters"]:
                columns = {} if chosen else _columns(client, project)
                body = {"data": {**kept, **columns, **data}}
                client.write("PATCH", f"api/dm/views/{number}/", body, "update a tab")
            return
        except LostError as exc:  # look whether it is there after all
            failure = exc
            time.sleep(pause_s)
    raise failure


def _columns(client: Client, project: int) -> dict[str, Any]:
    """Which columns a tab hides, and how wide the others are.

    What is hidden in both of Label Studio's layouts is not read from its database either.
    """
    with client.asking("list its columns"):
        columns = client.get("api/dm/columns/", {"project": project})["columns"]
        ids = [
            f"tasks:{parent}.{column['id']}"
            if (parent := column.get("parent"))
            else f"tasks:{column['id']}"
            for column in columns
            if not column.get("children")
        ]
    hidden = [column for column in ids if column not in SHOWN_COLUMNS]
    return {
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
        "columnsWidth": SHOWN_COLUMNS,
    }


def connect_server(
    client: Client,
    project: int,
    url: str,
    *,
    header: str,
    webhook_token: str,
    user: str,
    password: str,
    use: bool,
) -> None:
    """Registers a running ``goldloop serve`` as webhook and ML backend, in place of older ones.

    Args:
        url: where the server reaches it.
        header: the webhook's header for its token.
        user: for the ML backend.
        password: likewise.
        use: whether the project's predictions are the backend's from now on. They are fetched
            when somebody asks for them: done automatically, every reading of the task list
            would wait for the student.
    Raises:
        ReviewerError: the server refuses, or cannot reach the URL.
    """
    url = url.rstrip("/")
    with client.asking("list its webhooks"):
        hooks = client.get("api/webhooks/", {"project": project})
        ours = [int(hook["id"]) for hook in hooks if header in (hook.get("headers") or {})]
    wanted: dict[str, Any] = {
        "url": f"{url}/webhook",
        "send_payload": False,
        "send_for_all_actions": False,
        "actions": list(HINTS),
        "headers": {header: webhook_token},
        "is_active": True,
    }
    for spare in ours[1:]:
        client.write("DELETE", f"api/webhooks/{spare}/", None, "remove a webhook")
    if ours:
        client.write("PATCH", f"api/webhooks/{ours[0]}/", wanted, "update its webhook")
    else:
        body = {**wanted, "project": project}
        client.write("POST", "api/webhooks/", body, "take a webhook")
    with client.asking("list its ML backends"):
        backends = client.get("api/ml/", {"project": project})
        mine = [int(entry["id"]) for entry in backends if entry.get("title") == BACKEND_TITLE]
    backend: dict[str, Any] = {
        "project": project,
        "url": url,
        "title": BACKEND_TITLE,
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": user,
        "basic_auth_pass": password,
        "is_interactive": False,
    }
    for spare in mine[1:]:
        client.write("DELETE", f"api/ml/{spare}", None, "remove an ML backend")
    if mine:
        client.write("PATCH", f"api/ml/{mine[0]}", backend, "update its ML backend")
    else:
        client.write("POST", "api/ml/", backend, "take an ML backend")
    if use:
        settings = {"model_version": BACKEND_TITLE}
        client.write("PATCH", f"api/projects/{project}/", settings, "use its ML backend")
