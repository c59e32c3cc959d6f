"""Reviewer: people label in Label Studio.

Three habits keep every task single and every answer whole:

- Our id stands in each task's data. Before an import, and after every failed one, the ids that
  are already there are looked up; the SDK's own retries are off for writes, because they repeat
  imports whose answer was lost.
- Reading goes by the server's own change times, with an overlap, and takes each changed task with
  its whole set of annotations, so that deleted ones show.
- The server checks little, so texts are cleaned before they leave and answers judged when they
  come back; what cannot be used is kept, with the reason.

Everybody is served the most suspect open text first. Label Studio keeps to the order of the tasks'
numbers, and to its locks, only where the project asks for one answer; where it asks for more, texts
that somebody has answered come first, in random order. So the project asks for one, and each task
for as many as it needs.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from connectors.label_studio.client import (
    ATTEMPTS,
    NO_RETRY,
    Client,
    LostError,
    RefusedError,
    filter_on,
    pauses,
)
from connectors.label_studio.page import (
    FROM_NAME,
    SUBMIT,
    UNSURE,
    choices_of,
    instructions,
    instructions_version,
    page,
    sendable,
    shown_names,
)
from connectors.label_studio.pull import Pull
from connectors.label_studio.push import Push, ask, wait_until
from connectors.label_studio.views import connect_server, newest_round, show_round, show_tab
from connectors.label_studio.withdraw import withdraw
from loop.errors import LoopError, ProjectGoneError, ReviewerError
from loop.ports import (
    Fetched,
    News,
    Progress,
    ReviewerSetup,
    ReviewTask,
    Show,
    no_news,
    no_progress,
    show_nothing,
)
from loop.prompt import Label

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

Assist = Literal["blind", "prefill", "why"]


def build(setup: ReviewerSetup) -> LabelStudioReviewer:
    """The Label Studio of a campaign with ``people.platform = "label_studio"``.

    Raises:
        LoopError: the local one does not start, or no token is set for another.
    """
    url, token = address(setup.settings, say=setup.say, show=setup.show)
    return LabelStudioReviewer(
        url,
        token,
        project_title=setup.title,
        campaign_id=setup.campaign_id,
        labels=setup.labels,
        task=setup.task,
        assist=setup.assist,
        note=setup.note,
        overlap=setup.overlap,
        examples=setup.examples,
        submit=_submit_keys(setup.settings),
    )


def _submit_keys(settings: Mapping[str, Any]) -> str:
    """The keys that submit, as people read them."""
    if settings["url"] == "local":
        from connectors.label_studio import server as label_studio_server

        info = label_studio_server.status()
        if info is not None and info.submit_keys:
            return info.submit_keys
    return SUBMIT


def address(
    settings: Mapping[str, Any], *, say: News = no_news, show: Show = show_nothing
) -> tuple[str, str]:
    """URL and token of the Label Studio that ``[label_studio]`` names; starts the local one.

    Raises:
        LoopError: the local one does not start, or no token is set for another.
    """
    url, variable = str(settings["url"]), str(settings["token_env"])
    if url == "local":
        from connectors.label_studio import server as label_studio_server

        info = label_studio_server.up(progress=say, show=show)
        return info.url, info.token
    token = os.environ.get(variable, "")
    if not token:
        raise LoopError(
            f"Set {variable} to an access token of {url} (Label Studio: Account & Settings)."
        )
    return url, token


class LabelStudioReviewer:
    """Implements the Reviewer port over one Label Studio project.

    Args:
        url: the server's address.
        token: a personal access token or a legacy token.
        project_title: shown to people; cut to what the server takes.
        campaign_id: marks the project as this campaign's.
        labels: the classes.
        task: the question put to people.
        assist: ``blind`` shows the text alone, ``prefill`` ticks the LLM's label, ``why`` shows
            why the item is asked.
        note: whether the page has a field for a note.
        overlap: how many people answer each item.
        examples: label name -> texts that clearly have this label, shown with its meaning.
        submit: the keys that submit, as the page says.
        patience_s: how long a failed import is given to turn up after all before it is repeated.
        timeout_s: how long one request may take.
        transport: an httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project_title: str,
        campaign_id: str,
        labels: Sequence[Label],
        task: str,
        assist: Assist = "blind",
        note: bool = True,
        overlap: int = 1,
        examples: Mapping[str, Sequence[str]] | None = None,
        submit: str = SUBMIT,
        patience_s: float = 30.0,
        timeout_s: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._client = Client(url, token, timeout_s=timeout_s, transport=transport)
        self._title = " ".join(sendable(project_title).split())[:50].ljust(3, "_")
        self._campaign_id = campaign_id
        self._labels = tuple(labels)
        self._names = shown_names(labels)
        self._task = task
        self._assist: Assist = assist
        self._note = note
        self._overlap = overlap
        self._examples = examples or {}
        self._submit = submit
        self._patience_s = patience_s
        self._project: int | None = None
        self._pull: Pull | None = None

    # the port

    def open_project(self, project_id: str | None) -> str:
        """Checks server and token, then adopts, finds or creates the project; its id.

        Raises:
            ProjectGoneError: it was deleted, or is on another server.
            ReviewerError: server down, too old, or wrong token.
        """
        self._client.check()
        if project_id is not None:
            project = self._get_project(project_id)
        else:
            project = self._find_or_create()
        with self._client.asking("open the project"):
            self._project = int(project["id"])
        self._bring_up_to_date(project)
        return str(self._project)

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
        push = Push(
            self._client,
            self._id(),
            patience_s=self._patience_s,
            assist=self._assist,
            overlap=self._overlap,
        )
        sent = push.send(tasks, progress)
        for number in sorted({task.round_number for task in tasks}):
            show_round(self._client, self._id(), number)
        return sent

    def fetch(self, cursor: str | None) -> Fetched:
        """Tasks of ours that changed since the cursor, each with all its annotations.

        Raises:
            ReviewerError: the server cannot be read.
        """
        if self._pull is None:
            self._pull = Pull(self._client, self._id(), self._names)
        return self._pull.fetch(cursor)

    def ask(self, wanted: Mapping[str, int]) -> None:
        """Opens tasks again until so many people answered each.

        Args:
            wanted: task id -> number of people's answers.
        Raises:
            ReviewerError: the server refuses; calling again is safe.
        """
        ask(self._client, wanted)

    def withdraw(self, item_ids: Sequence[str]) -> set[str]:
        """Removes the tasks of these items that nobody has begun to answer.

        Those that were answered are shown to nobody else.

        Returns:
            items that are on the server no more; the others have an answer, a skip or a draft.
        Raises:
            ReviewerError: the server refuses; calling again is safe.
        """
        return withdraw(self._client, self._id(), item_ids)

    def queue(self, title: str, item_ids: Sequence[str]) -> None:
        """Shows these items, and no others, in a tab of that title.

        Raises:
            ReviewerError: the server refuses; calling again is safe.
        """
        shown = [filter_on("data.ext_id", "in_list", "String", list(item_ids) or ["-"])]
        show_tab(self._client, self._id(), title, shown, make=bool(item_ids))

    def connect_server(
        self, url: str, *, header: str, webhook_token: str, user: str, password: str, use: bool
    ) -> None:
        """Registers a running ``goldloop serve``; see ``views.connect_server``."""
        connect_server(
            self._client,
            self._id(),
            url,
            header=header,
            webhook_token=webhook_token,
            user=user,
            password=password,
            use=use,
        )

    def url(self) -> str:
        """Where people go to label: the newest round's tab, most suspect first.

        Raises:
            ReviewerError: the server cannot be read.
        """
        tab = newest_round(self._client, self._id())
        where = f"{self._client.shown_url}/projects/{self._id()}/data"
        # Without a tab in the address, Label Studio labels whatever its first tab shows.
        return f"{where}?labeling=1" if tab is None else f"{where}?tab={tab}&labeling=1"

    def delete_project(self) -> None:
        """Removes the project with all that is in it.

        Raises:
            ReviewerError: it cannot be removed.
        """
        project = self._id()
        with self._client.asking("delete the project"):
            self._client.sdk().projects.delete(project, request_options=NO_RETRY)
        self._project = self._pull = None

    # the project

    def _id(self) -> int:
        if self._project is None:
            raise ValueError("open_project() comes first.")
        return self._project

    @property
    def _marker(self) -> str:
        return f"[goldloop campaign {self._campaign_id}]"

    def _get_project(self, project_id: str) -> dict[str, Any]:
        where = (
            "Name the server that has it in label_studio.url; docs/operations.md says how the local"
            " one moves. If it is gone for good, `goldloop push --new-project` begins another with"
            " what is still open."
        )
        gone = ProjectGoneError(
            f"Label Studio at {self._client.shown_url} has no project {project_id}: it was deleted,"
            f" or this is another server. {where}"
        )
        if not project_id.isdecimal():
            raise gone
        try:
            with self._client.asking("open the project"):
                project: dict[str, Any] = self._client.get(f"api/projects/{project_id}/", {})
        except RefusedError as exc:
            if exc.status == 404:
                raise gone from None
            raise
        marker = re.search(r"\[goldloop campaign ([^\]]*)\]", str(project.get("description")))
        if marker is not None and marker[0] != self._marker:
            raise ProjectGoneError(
                f"Label Studio's project {project_id} belongs to campaign {marker[1]!r}, not"
                f" {self._campaign_id!r}. {where}"
            )
        if marker is None and UNSURE not in choices_of(str(project.get("label_config"))):
            raise ProjectGoneError(
                f"Project {project_id} of Label Studio at {self._client.shown_url} is not"
                f" goldloop's, or somebody changed its page: write {self._marker} into its"
                f" description if it is this campaign's. {where}"
            )
        return project

    def _find(self) -> dict[str, Any] | None:
        """The lowest-numbered project with this campaign's marker."""
        project_ids: list[int] = []
        page_number = 1
        with self._client.asking("list its projects"):
            while True:
                answer = self._client.get(
                    "api/projects/",
                    {"include": "id,description", "page_size": 1000, "page": page_number},
                )
                project_ids += [
                    int(row["id"])
                    for row in answer["results"]
                    if self._marker in str(row.get("description") or "")
                ]
                if not answer.get("next"):
                    break
                page_number += 1
        return self._get_project(str(min(project_ids))) if project_ids else None

    def _find_or_create(self) -> dict[str, Any]:
        for pause_s in pauses(ATTEMPTS):
            if (project := self._find()) is not None:
                return project
            try:
                with self._client.asking("create the project"):
                    made = self._client.sdk().projects.create(
                        title=self._title,
                        description=self._marker,
                        label_config=self._page(),
                        request_options=NO_RETRY,
                    )
                    return self._get_project(str(made.id))
            except LostError as exc:
                failure = exc
            time.sleep(pause_s)
            if not failure.over:
                wait_until(self._patience_s, lambda: self._find() is not None)
        if (project := self._find()) is not None:
            return project
        raise failure

    def _page(self) -> str:
        return page(
            self._labels,
            task=self._task,
            note=self._note,
            why=self._assist == "why",
            examples=self._examples,
            submit=self._submit,
        )

    def _bring_up_to_date(self, project: Mapping[str, Any]) -> None:
        description = str(project.get("description") or "")
        if self._marker not in description:
            description = f"{description}\n{self._marker}".strip()
        wanted: dict[str, Any] = {
            "description": description,
            "label_config": self._page(),
            "sampling": "Sequential sampling",
            "show_skip_button": True,
            "show_collab_predictions": self._assist == "prefill",
        }
        changes = {key: value for key, value in wanted.items() if project.get(key) != value}
        told = str(project.get("expert_instruction") or "")
        ours = instructions(self._labels, task=self._task, examples=self._examples)
        # What people wrote there themselves stays; the server may spell ours in another way.
        if instructions_version(told) != instructions_version(ours) and (
            not told.strip() or instructions_version(told)
        ):
            changes["expert_instruction"] = ours
        if "label_config" in changes:
            self._keep_answered_labels(project)
        if changes:
            log.info("Label Studio project %s: updating %s", project["id"], ", ".join(changes))
            with self._client.asking("update the project's labelling page"):
                self._client.sdk().projects.update(
                    int(project["id"]), request_options=NO_RETRY, **changes
                )

    def _keep_answered_labels(self, project: Mapping[str, Any]) -> None:
        """Refuses to take a label off the page that people have already chosen."""
        removed = choices_of(str(project.get("label_config"))) - set(self._names) - {UNSURE}
        if not removed:
            return
        with self._client.asking("count its answers"):
            summary = self._client.get(f"api/projects/{int(project['id'])}/summary/", {})
            counts = {
                label: int(n)
                for label, n in ((summary.get("created_labels") or {}).get(FROM_NAME) or {}).items()
            }
        for label in sorted(removed):
            if counts.get(label):
                raise ReviewerError(
                    f"The label {label!r} is gone from the campaign, but {counts[label]} answers in"
                    f" Label Studio's project {project['id']} chose it; put it back into the"
                    " campaign file, or delete those answers."
                )
