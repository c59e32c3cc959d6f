"""Reviewer: people label in Label Studio; the only file that knows its SDK.

Three habits keep every task single and every answer whole:

- Our id stands in each task's data. Before an import, and after every failed one, the ids that
  are already there are looked up; the SDK's own retries are off for writes, because they repeat
  imports whose answer was lost.
- Reading goes by the server's own change times, with an overlap, and takes each changed task with
  its whole set of annotations, so that deleted ones show.
- The server checks little, so texts are cleaned before they leave and answers judged when they
  come back; what cannot be used is kept, with the reason.
"""

from __future__ import annotations

import json
import logging
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit
from xml.sax.saxutils import quoteattr

from loop.errors import ReviewerError
from loop.ports import (
    Fetched,
    FetchedTask,
    Label,
    Progress,
    RawAnnotation,
    ReviewTask,
    no_progress,
)

if TYPE_CHECKING:
    import httpx
    from label_studio_sdk import LabelStudio

log = logging.getLogger(__name__)

Assist = Literal["blind", "prefill", "why"]

OLDEST = (1, 13)  # older servers lack the filters and the import that are used here
MODEL_VERSION = "goldloop"  # of predictions, where the LLM's label is shown
UNSURE = "Unsure / none fits"
BACKEND_TITLE = "goldloop student"
HINTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
FROM_NAME, TO_NAME = "label", "text"

BATCH_TASKS = 1_000  # one import; larger ones are hardly quicker
LOOKUP_IDS = 1_000  # ids in one question
PAGE_TASKS = 500  # with annotations
CURSOR_OVERLAP_S = 10.0  # a slow transaction may carry an earlier time than one already read
ATTEMPTS = 5
FILTER_FROM = 25  # more labels than this get a search box

_HOTKEYS = "123456789qwertyasdfgzxcvb"  # under the left hand, and free in Label Studio
_NO_RETRY: Any = {"max_retries": 0}

# Not allowed in XML, or not storable everywhere: controls, lone surrogates, non-characters.
_UNSENDABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


# the labelling page


def sendable(text: str) -> str:
    """The text with characters that no server stores replaced by U+FFFD."""
    return _UNSENDABLE.sub("\ufffd", text)


def _inert(text: str) -> str:
    """Without variables: ``$name`` is one, ``$`` and an invisible word joiner is not."""
    return text.replace("$", "$\u2060")


def shown_name(label: str) -> str:
    """A label as it stands on the page and in Label Studio's answers.

    It is the label itself, but for outer white space and what the page cannot hold: controls, line
    breaks, and ``$`` before a word, which would be a variable.
    """
    shown = _inert(re.sub(r"[\t\r\n]", " ", sendable(label)))
    return shown.strip() or "\u2423"


def shown_names(labels: Sequence[Label]) -> dict[str, str]:
    """Page name -> label name.

    Raises:
        ReviewerError: two labels cannot be told apart on the page.
    """
    names: dict[str, str] = {}
    for label in labels:
        shown = shown_name(label.name)
        if shown in names or shown == UNSURE:
            other = names.get(shown, UNSURE)
            raise ReviewerError(
                f"The labels {other!r} and {label.name!r} look the same on the labelling page;"
                " rename one of them."
            )
        names[shown] = label.name
    return names


def choice_result(label: str | None) -> list[dict[str, Any]]:
    """An answer as Label Studio's page would send it; None is the "unsure" answer."""
    choice = UNSURE if label is None else shown_name(label)
    return [
        {
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "type": "choices",
            "value": {"choices": [choice]},
        }
    ]


_STYLE = """
.gl-text { max-width: 50em; max-height: 50vh; overflow-y: auto; padding: 8px 0 16px;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.gl-text * { font-size: 17px !important; line-height: 1.6 !important; }
.gl-why *, .gl-help * { font-size: 14px !important; font-weight: 400 !important; }
.gl-why { opacity: 0.75; }
.gl-labels { max-height: 40vh; overflow-y: auto; }
.gl-note { max-width: 50em; margin-top: 8px; }
.gl-help { max-width: 50em; margin-top: 12px; }
"""


def _attr(text: str) -> str:
    """Quoted for an XML attribute."""
    return quoteattr(_inert(sendable(text)))


def page(labels: Sequence[Label], *, task: str, note: bool = True, why: bool = False) -> str:
    """The labelling page: text, labels with hotkeys, their meanings, a note.

    Args:
        labels: the classes, in the order shown.
        task: the question, in a sentence or two.
        note: whether a free note can be left.
        why: whether each task carries a sentence on why it is asked.
    Returns:
        Label Studio's XML.
    """
    names = {label: shown for shown, label in shown_names(labels).items()}
    many = len(labels) > FILTER_FROM
    lines = ["<View>", f"  <Style>{_STYLE}</Style>"]
    if task.strip():
        lines.append(f'  <Header value={_attr(task.strip())} size="5"/>')
    if why:
        lines.append('  <View className="gl-why"><Header value="$why" size="6"/></View>')
    lines += [
        '  <View className="gl-text">',
        f'    <Text name="{TO_NAME}" value="$text" selectionEnabled="false"/>',
        "  </View>",
    ]
    if many:
        lines.append(
            f'  <Filter name="find" toName="{FROM_NAME}" minlength="0"'
            ' placeholder="Type to find a label" hotkey="shift+f"/>'
        )
    lines.append('  <View className="gl-labels">')
    lines.append(
        f'    <Choices name="{FROM_NAME}" toName="{TO_NAME}" choice="single-radio"'
        f' required="true" requiredMessage="Choose a label, or skip."'
        f' showInline="{"true" if 6 < len(labels) <= FILTER_FROM else "false"}">'
    )
    for position, label in enumerate(labels):
        parts = [f"value={quoteattr(names[label.name])}"]
        if label.description.strip():
            parts.append(f"hint={_attr(label.description.strip())}")
        if not many and position < len(_HOTKEYS):
            parts.append(f'hotkey="{_HOTKEYS[position]}"')
        lines.append(f"      <Choice {' '.join(parts)}/>")
    lines.append(f'      <Choice value={quoteattr(UNSURE)} hotkey="0"/>')
    lines += ["    </Choices>", "  </View>"]
    if note:
        lines.append(
            f'  <View className="gl-note"><TextArea name="note" toName="{TO_NAME}" rows="1"'
            ' maxSubmissions="1" editable="true" placeholder="Note (optional)"/></View>'
        )
    described = [label for label in labels if label.description.strip()]
    if described:
        lines.append('  <View className="gl-help"><Collapse>')
        lines.append('    <Panel value="What the labels mean">')
        for label in described:
            meaning = f"{label.name}: {label.description.strip()}"
            lines.append(f'      <Header value={_attr(meaning)} size="6"/>')
        lines += ["    </Panel>", "  </Collapse></View>"]
    lines.append("</View>")
    return "\n".join(lines)


# errors


def _shown_url(url: str) -> str:
    """Without a user name or password."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    netloc = f"{host}:{parts.port}" if parts.port else host
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))


def _reason(body: Any) -> str:
    """What the server says, in one line; pages of HTML say nothing."""
    if not isinstance(body, Mapping):
        return ""
    said = body.get("validation_errors") or body.get("detail") or ""
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return " ".join(text.split())[:300]


class _LostError(ReviewerError):
    """No usable answer: the request may have been carried out, or may still be.

    Attributes:
        over: the server is certainly not at work on it any more.
    """

    def __init__(self, message: str, *, over: bool = False) -> None:
        super().__init__(message)
        self.over = over


class _RefusedError(ReviewerError):
    """The server answered with an error that repeating does not cure."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def translated(url: str, doing: str, token: str = "") -> Iterator[None]:
    """Turns what the SDK, httpx and pydantic raise into one ReviewerError.

    The original is not chained: an ``ApiError`` prints the request's cookies and headers.
    """
    import httpx
    from label_studio_sdk.core.api_error import ApiError
    from pydantic import ValidationError

    where = f"Label Studio at {_shown_url(url)}"
    try:
        yield
    except ApiError as exc:
        status = exc.status_code or 0
        reason = _reason(exc.body)
        if token:
            reason = reason.replace(token, "…")
        if status == 401:
            message = (
                f"{where} does not accept the token (401); make a new one under Account & Settings"
                " and set LABEL_STUDIO_API_KEY."
            )
        elif status == 403:
            message = f"{where} does not allow this user to {doing} (403)."
        elif status == 404:
            message = f"{where} does not have what is needed to {doing} (404)."
        else:
            message = f"{where} refused to {doing} ({status})" + (f": {reason}" if reason else ".")
        if status in (408, 425, 429) or status >= 500 or status == 0:
            # Label Studio's own errors carry its version; those of proxies do not.
            over = isinstance(exc.body, Mapping) and "version" in exc.body
            raise _LostError(f"{where} failed to {doing} ({status}).", over=over) from None
        raise _RefusedError(message, status) from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol):
        raise _LostError(
            f"{where} cannot be reached; is it running, and is the address right?", over=True
        ) from None
    except httpx.TimeoutException:
        raise _LostError(f"{where} did not answer in time when asked to {doing}.") from None
    except (httpx.HTTPError, httpx.StreamError) as exc:
        raise _LostError(
            f"{where} broke off when asked to {doing} ({type(exc).__name__})."
        ) from None
    except httpx.InvalidURL:
        raise ReviewerError(f"{_shown_url(url)!r} is not the address of a server.") from None
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ReviewerError(
            f"{where} answered in a form that goldloop does not know when asked to {doing}"
            f" ({type(exc).__name__})."
        ) from None


@dataclass
class _Task:
    """A task of ours on the server."""

    id: int
    predictions: int
    annotations: int


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
        patience_s: float = 30.0,
        timeout_s: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token.strip()
        self._title = " ".join(sendable(project_title).split())[:50].ljust(3, "_")
        self._campaign_id = campaign_id
        self._labels = tuple(labels)
        self._names = shown_names(labels)
        self._task = task
        self._assist = assist
        self._note = note
        self._overlap = overlap
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._transport = transport
        self._sdk: LabelStudio | None = None
        self._project: int | None = None
        self._people: dict[int, str] = {}
        self.ignored_tasks = 0  # tasks of the project that are not ours, seen by the last fetch

    # the port

    def open_project(self, project_id: str | None) -> str:
        """Checks server and token, then adopts, finds or creates the project; its id.

        Raises:
            ReviewerError: server down, too old, wrong token, or project gone.
        """
        self._check_server()
        if project_id is not None:
            project = self._get_project(project_id)
        else:
            project = self._find_or_create()
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
        ordered = sorted(tasks, key=lambda task: task.rank)
        if len({task.item_id for task in ordered}) != len(ordered):
            raise ValueError("Item ids of the tasks repeat.")
        there = self._look_up([task.item_id for task in ordered])
        progress(len(there))
        missing = [task for task in ordered if task.item_id not in there]
        for start in range(0, len(missing), BATCH_TASKS):
            batch = missing[start : start + BATCH_TASKS]
            there |= self._import(batch)
            progress(len(batch))
        if self._assist == "prefill":
            self._repair_predictions(
                [t for t in ordered if not there[t.item_id].predictions], there
            )
        return {task.item_id: str(there[task.item_id].id) for task in ordered}

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

    def ask(self, wanted: Mapping[str, int]) -> None:
        """Opens tasks again until so many people answered each.

        Args:
            wanted: task id -> number of people's answers.
        Raises:
            ReviewerError: the server refuses; calling again is safe.
        """
        for task_id, people in wanted.items():
            self._write(
                "PATCH",
                f"api/tasks/{int(task_id)}/",
                {"overlap": people, "is_labeled": False},
                "ask for further answers",
                repeatable=True,
            )

    def queue(self, title: str, item_ids: Sequence[str]) -> None:
        """Shows these items, and no others, in a tab of that title.

        Raises:
            ReviewerError: the server refuses; calling again is safe.
        """
        shown = [_filter("data.ext_id", "in_list", "String", list(item_ids) or ["-"])]
        data = {
            "title": title,
            "filters": {"conjunction": "and", "items": shown},
            "ordering": ["tasks:id"],
        }
        with self._asking("list its tabs"):
            tabs = self._get("api/dm/views/", {"project": self._id()})
        for tab in tabs:
            found = tab.get("data") or {}
            if found.get("title") == title:
                if found.get("filters") != data["filters"]:
                    self._write(
                        "PATCH",
                        f"api/dm/views/{int(tab['id'])}/",
                        {"data": {**found, **data}},
                        "update a tab",
                        repeatable=True,
                    )
                return
        if item_ids:
            body = {"project": self._id(), "data": data}
            self._write("POST", "api/dm/views/", body, "make a tab")

    def connect_server(
        self, url: str, *, header: str, webhook_token: str, user: str, password: str, use: bool
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
        project = self._id()
        url = url.rstrip("/")
        with self._asking("list its webhooks"):
            hooks = self._get("api/webhooks/", {"project": project})
        ours = [hook for hook in hooks if header in (hook.get("headers") or {})]
        wanted: dict[str, Any] = {
            "url": f"{url}/webhook",
            "send_payload": False,
            "send_for_all_actions": False,
            "actions": list(HINTS),
            "headers": {header: webhook_token},
            "is_active": True,
        }
        for spare in ours[1:]:
            self._write("DELETE", f"api/webhooks/{spare['id']}/", None, "remove a webhook")
        if ours:
            self._write("PATCH", f"api/webhooks/{ours[0]['id']}/", wanted, "update its webhook")
        else:
            body = {**wanted, "project": project}
            self._write("POST", "api/webhooks/", body, "take a webhook")
        with self._asking("list its ML backends"):
            backends = self._get("api/ml/", {"project": project})
        backend: dict[str, Any] = {
            "project": project,
            "url": url,
            "title": BACKEND_TITLE,
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": user,
            "basic_auth_pass": password,
            "is_interactive": False,
        }
        mine = [found for found in backends if found.get("title") == BACKEND_TITLE]
        for spare in mine[1:]:
            self._write("DELETE", f"api/ml/{spare['id']}", None, "remove an ML backend")
        if mine:
            self._write("PATCH", f"api/ml/{mine[0]['id']}", backend, "update its ML backend")
        else:
            self._write("POST", "api/ml/", backend, "take an ML backend")
        if use:
            settings = {"model_version": BACKEND_TITLE}
            self._write("PATCH", f"api/projects/{project}/", settings, "use its ML backend")

    def url(self) -> str:
        """Where people go to label."""
        return f"{_shown_url(self._url)}/projects/{self._id()}/data?labeling=1"

    def delete_project(self) -> None:
        """Removes the project with all that is in it.

        Raises:
            ReviewerError: it cannot be removed.
        """
        project = self._id()
        with self._asking("delete the project"):
            self._client().projects.delete(project, request_options=_NO_RETRY)
        self._project = None

    # connection

    def _asking(self, doing: str) -> Any:
        return translated(self._url, doing, self._token)

    def _id(self) -> int:
        if self._project is None:
            raise ValueError("open_project() comes first.")
        return self._project

    def _client(self) -> LabelStudio:
        if self._sdk is None:
            if not self._token:
                raise ReviewerError(
                    "There is no token for Label Studio; set LABEL_STUDIO_API_KEY to the one under"
                    " Account & Settings."
                )
            if not re.fullmatch(r"[\x21-\x7e]+", self._token):
                raise ReviewerError(
                    "The token for Label Studio holds white space or other characters that no"
                    " token has; copy it again."
                )
            import httpx
            from label_studio_sdk import LabelStudio

            http = httpx.Client(
                transport=self._transport, timeout=self._timeout_s, follow_redirects=True
            )
            weakref.finalize(self, http.close)
            with self._asking("read the token"):
                self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
                    base_url=self._url, api_key=self._token, httpx_client=http, max_retries=2
                )
        return self._sdk

    def _get(self, path: str, params: dict[str, Any], *, retry: bool = True) -> Any:
        """JSON as the server wrote it: the SDK's typed answers lose fields they do not know.

        The SDK repeats what the server refuses for a while, but not what breaks off on the way.
        """
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        http = self._client()._client_wrapper.httpx_client
        options = None if retry else _NO_RETRY
        for pause_s in _pauses(ATTEMPTS):
            try:
                answer = http.request(path, method="GET", params=params, request_options=options)
                break
            except (httpx.ReadError, httpx.RemoteProtocolError) as exc:
                failure = exc
                time.sleep(pause_s)
        else:
            raise failure
        body: Any = None
        if answer.headers.get("content-type", "").startswith("application/json"):
            body = answer.json()
        if answer.status_code != 200:
            raise ApiError(status_code=answer.status_code, body=body)
        if body is None:
            raise ReviewerError(f"{_shown_url(self._url)} does not answer like Label Studio.")
        return body

    def _write(
        self, method: str, path: str, body: Any, doing: str, *, repeatable: bool = False
    ) -> None:
        """A request that changes something; repeated only where that cannot do it twice."""
        from label_studio_sdk.core.api_error import ApiError

        for pause_s in _pauses(ATTEMPTS if repeatable else 1):
            try:
                with self._asking(doing):
                    http = self._client()._client_wrapper.httpx_client
                    answer = http.request(path, method=method, json=body, request_options=_NO_RETRY)
                    if answer.status_code >= 300:
                        kind = answer.headers.get("content-type", "")
                        said = answer.json() if kind.startswith("application/json") else None
                        raise ApiError(status_code=answer.status_code, body=said)
                return
            except _LostError as exc:
                failure = exc
                if repeatable:
                    time.sleep(pause_s)
        raise failure

    def _check_server(self) -> None:
        with self._asking("say its version"):
            try:
                release = str(self._get("api/version/", {}, retry=False)["release"])
            except (KeyError, TypeError):
                release = ""
        found = re.match(r"(\d+)\.(\d+)", release)
        if found is None:
            raise ReviewerError(f"{_shown_url(self._url)} does not answer like Label Studio.")
        if (int(found[1]), int(found[2])) < OLDEST:
            raise ReviewerError(
                f"Label Studio at {_shown_url(self._url)} is version {release}; goldloop needs"
                f" {OLDEST[0]}.{OLDEST[1]} or later."
            )
        with self._asking("say whose token this is"):
            self._get("api/current-user/whoami", {}, retry=False)

    # the project

    @property
    def _marker(self) -> str:
        return f"[goldloop campaign {self._campaign_id}]"

    def _get_project(self, project_id: str) -> dict[str, Any]:
        gone = (
            f"Label Studio at {_shown_url(self._url)} has no project {project_id}: it was deleted,"
            " or this is another server."
        )
        if not project_id.isdecimal():
            raise ReviewerError(gone)
        try:
            with self._asking("open the project"):
                project: dict[str, Any] = self._get(f"api/projects/{project_id}/", {})
        except _RefusedError as exc:
            if exc.status == 404:
                raise ReviewerError(gone) from None
            raise
        other = re.search(r"\[goldloop campaign ([^\]]*)\]", str(project.get("description")))
        if other is not None and other[0] != self._marker:
            raise ReviewerError(
                f"Label Studio's project {project_id} belongs to campaign {other[1]!r}, not"
                f" {self._campaign_id!r}."
            )
        return project

    def _find(self) -> dict[str, Any] | None:
        """The lowest-numbered project with this campaign's marker."""
        found: list[int] = []
        page_number = 1
        with self._asking("list its projects"):
            while True:
                answer = self._get(
                    "api/projects/",
                    {"include": "id,description", "page_size": 1000, "page": page_number},
                )
                found += [
                    int(row["id"])
                    for row in answer["results"]
                    if self._marker in str(row.get("description") or "")
                ]
                if not answer.get("next"):
                    break
                page_number += 1
        return self._get_project(str(min(found))) if found else None

    def _find_or_create(self) -> dict[str, Any]:
        for pause_s in _pauses(ATTEMPTS):
            if (project := self._find()) is not None:
                return project
            try:
                with self._asking("create the project"):
                    made = self._client().projects.create(
                        title=self._title,
                        description=self._marker,
                        label_config=self._page(),
                        request_options=_NO_RETRY,
                    )
                    return self._get_project(str(made.id))
            except _LostError as exc:
                failure = exc
            time.sleep(pause_s)
            if not failure.over:
                self._wait_until(lambda: self._find() is not None)
        if (project := self._find()) is not None:
            return project
        raise failure

    def _page(self) -> str:
        return page(self._labels, task=self._task, note=self._note, why=self._assist == "why")

    def _bring_up_to_date(self, project: Mapping[str, Any]) -> None:
        description = str(project.get("description") or "")
        if self._marker not in description:
            description = f"{description}\n{self._marker}".strip()
        wanted: dict[str, Any] = {
            "description": description,
            "label_config": self._page(),
            "maximum_annotations": self._overlap,
            "sampling": "Sequential sampling",
            "show_skip_button": True,
            "show_collab_predictions": self._assist == "prefill",
        }
        changes = {key: value for key, value in wanted.items() if project.get(key) != value}
        if changes:
            log.info("Label Studio project %s: updating %s", project["id"], ", ".join(changes))
            with self._asking("update the project's labelling page"):
                self._client().projects.update(
                    int(project["id"]), request_options=_NO_RETRY, **changes
                )

    # sending

    def _look_up(self, item_ids: Sequence[str]) -> dict[str, _Task]:
        """Those of the ids that are there; of several tasks with one id, the lowest numbered."""
        there: dict[str, _Task] = {}
        for item_id, tasks in self._look_up_all(item_ids).items():
            there[item_id] = tasks[0]
            if len(tasks) > 1:
                log.warning(
                    "Label Studio holds %d tasks for item %s; task %d is used",
                    len(tasks), item_id, tasks[0].id,
                )  # fmt: skip
        return there

    def _look_up_all(self, item_ids: Sequence[str]) -> dict[str, list[_Task]]:
        found: dict[str, list[_Task]] = {}
        # The server's own count of predictions lags behind, so where they matter they are read.
        prefill = self._assist == "prefill"
        size = LOOKUP_IDS
        start = 0
        while start < len(item_ids):
            chunk = list(item_ids[start : start + size])
            try:
                rows = self._listed(
                    "look up tasks",
                    [_filter("data.ext_id", "in_list", "String", chunk)],
                    fields="all" if prefill else "task_only",
                    include="id,data,total_annotations" + (",predictions" if prefill else ""),
                    page_size=PAGE_TASKS * 2,
                )
            except _RefusedError as exc:
                if exc.status not in (400, 414, 431) or size == 1:
                    raise
                size = max(1, size // 4)  # some proxies take short addresses only
                continue
            for row in rows:
                task = _Task(
                    int(row["id"]),
                    len(row.get("predictions") or []),
                    int(row.get("total_annotations") or 0),
                )
                found.setdefault(str(row["data"]["ext_id"]), []).append(task)
            start += len(chunk)
        for tasks in found.values():
            tasks.sort(key=lambda task: task.id)
        return found

    def _import(self, batch: Sequence[ReviewTask]) -> dict[str, _Task]:
        """Imports a batch of tasks that are not there; survives lost answers without doubling."""
        there: dict[str, _Task] = {}
        todo = list(batch)
        repeated = False
        for pause_s in _pauses(ATTEMPTS):
            try:
                ids, predictions = self._import_once(todo)
            except _LostError as exc:
                failure = exc
            else:
                made = {t.item_id: _Task(i, 1, 0) for t, i in zip(todo, ids, strict=True)}
                if predictions < len(todo):
                    made = self._look_up([t.item_id for t in todo])
                there |= made
                return self._without_twins(there) if repeated else there
            log.info("%s Looking what has arrived.", failure)
            time.sleep(pause_s)
            if not failure.over:
                self._wait_until(partial(self._all_there, [task.item_id for task in todo]))
            there |= self._look_up([task.item_id for task in todo])
            todo = [task for task in todo if task.item_id not in there]
            if not todo:
                return self._without_twins(there) if repeated else there
            repeated = True
        raise failure

    def _import_once(self, tasks: Sequence[ReviewTask]) -> tuple[list[int], int]:
        project = self._id()
        request: list[Any] = [self._payload(task) for task in tasks]
        with self._asking("import tasks"):
            answer = self._client().projects.import_tasks(
                project,
                request=request,
                return_task_ids=True,
                commit_to_project=True,
                request_options=_NO_RETRY,
            )
            body: Any = getattr(answer, "data", answer)
            ids = [int(task_id) for task_id in body.task_ids or []]
            if len(ids) != len(tasks):  # seen with no server; never guess which task is which
                raise _LostError(
                    f"Label Studio named {len(ids)} of the {len(tasks)} tasks imported."
                )
            wanted = self._assist == "prefill"
            return ids, int(body.prediction_count or 0) if wanted else len(tasks)

    def _payload(self, task: ReviewTask) -> dict[str, Any]:
        """What leaves the house: in blind mode neither the LLM's label nor how sure it was."""
        data: dict[str, Any] = {
            "ext_id": task.item_id,
            "text": sendable(task.text),
            "round": task.round_number,
        }
        if self._assist == "why":
            data["why"] = sendable(task.why)
        payload: dict[str, Any] = {"data": data}
        if self._assist == "prefill":
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
        for pause_s in _pauses(ATTEMPTS):
            if not tasks:
                return
            request: list[Any] = [
                {"task": there[task.item_id].id, **self._prediction(task)} for task in tasks
            ]
            failure: ReviewerError | None = None
            try:
                with self._asking("import the LLM's labels"):
                    self._client().projects.import_predictions(
                        self._id(), request=request, request_options=_NO_RETRY
                    )
            except _LostError as exc:
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
                    with self._asking("remove a doubled task"):
                        self._client().tasks.delete(str(task.id), request_options=_NO_RETRY)
        return kept

    def _all_there(self, item_ids: Sequence[str]) -> bool:
        return len(self._look_up(item_ids)) == len(item_ids)

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Gives a request whose answer was lost time to take effect."""
        end = time.monotonic() + self._patience_s
        pause_s = 0.2
        while True:
            try:
                if done():
                    return
            except _LostError:
                pass  # still down: waiting is right
            if time.monotonic() >= end:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    # reading

    def _listed(
        self, doing: str, filters: list[dict[str, Any]], page_size: int, **params: Any
    ) -> list[dict[str, Any]]:
        """All pages of a task list, in the order of ids.

        Where tasks vanish between two pages, others move up and one would be missed: it starts
        again.
        """
        project = self._id()
        query = {"filters": {"conjunction": "and", "items": filters}, "ordering": ["tasks:id"]}
        for _ in range(ATTEMPTS):
            rows: dict[int, dict[str, Any]] = {}
            total: int | None = None
            number = 1
            while True:
                with self._asking(doing):
                    answer = self._get(
                        "api/tasks/",
                        {
                            "project": project,
                            "query": json.dumps(query, separators=(",", ":")),
                            "page": number,
                            "page_size": page_size,
                            **params,
                        },
                    )
                    rows |= {int(row["id"]): row for row in answer["tasks"]}
                    shrunk = total is not None and answer["total"] < total
                    total = int(answer["total"])
                if shrunk or number * page_size >= total:
                    break
                number += 1
            if not shrunk:
                return list(rows.values())
        raise ReviewerError(
            f"Tasks kept vanishing from Label Studio's project {project} while it was read;"
            " try again."
        )

    def _changed(self, since: str | None) -> list[dict[str, Any]]:
        filters = [] if since is None else [_filter("updated_at", "greater", "Datetime", since)]
        return self._listed("read answers", filters, fields="all", page_size=PAGE_TASKS)

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
        return (None, f"unknown label {choices[0]!r}") if label is None else (label, None)

    def _person(self, who: Any) -> str:
        """E-mail address of a user, which stays the same; else the user's number."""
        if isinstance(who, Mapping):
            who = who.get("id")
        if who is None:
            return "deleted user"
        if who not in self._people:
            try:
                with self._asking("list its users"):
                    for user in self._get("api/users/", {}):
                        name = user.get("email") or user.get("username") or f"user {user['id']}"
                        self._people[int(user["id"])] = str(name)
            except _RefusedError:
                log.info("Label Studio does not name its users to this one")
            self._people.setdefault(who, f"user {who}")
        return self._people[who]


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {
        "filter": f"filter:tasks:{column}",
        "operator": operator,
        "type": kind,
        "value": value,
    }


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


def _pauses(attempts: int) -> Iterator[float]:
    """Seconds to wait after each failed attempt, growing."""
    for attempt in range(attempts):
        yield 0.2 * 2**attempt
