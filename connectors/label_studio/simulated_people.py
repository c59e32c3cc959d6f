"""Raters: simulated people who answer through Label Studio, as users of their own.

They know what real people once said: each answer is drawn from an item's recorded ratings. They
stand in for people where a campaign is replayed or shown; reports must call them simulated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from connectors.label_studio.page import choice_result
from loop.errors import ReviewerError
from loop.ports import Progress, TextItem, no_progress

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

THREADS = 3  # more only wait for each other: the server's database has one writer
PAGE_TASKS = 1_000
ATTEMPTS = 6
_ACCESS_TOKEN_S = 240.0  # they live 300 s


def drawn(ratings: Sequence[str], overlap: int, seed: int, item_id: str) -> list[str]:
    """Which recorded rating each of ``overlap`` raters repeats for one item.

    The raters draw without replacement, as long as there are ratings enough; the draw depends on
    seed and item alone, so it is the same whenever asked, and the first raters' answers do not
    change when more are added.

    Args:
        ratings: the item's recorded labels, one for each person who rated it.
        overlap: number of raters.
    Returns:
        ``overlap`` labels, in the order of the raters; empty if there are no ratings.
    """
    if not ratings:
        return []
    digest = hashlib.sha256(f"{seed}\0{item_id}".encode("utf-8", "surrogatepass")).digest()
    order = np.random.default_rng(int.from_bytes(digest)).permutation(len(ratings))
    return [ratings[order[rater % len(ratings)]] for rater in range(overlap)]


def majority(labels: Sequence[str]) -> str | None:
    """The label given most often; None if there is a tie, or no label."""
    ranked = Counter(labels).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


class RecordedRaters:
    """Implements the Raters port with recorded human ratings.

    Args:
        url: the Label Studio server.
        tokens: token by rater, in order; or a function that makes a user of a given name and
            returns the token, and then the raters are ``simulated-1``, ``simulated-2``, …
        ratings: item id -> each recorded individual rating, already mapped to a label.
        overlap: how many raters answer each item.
        seed: decides which recorded rating each rater repeats.
        timeout_s: how long one request may take.
        transport: an httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        tokens: Mapping[str, str] | Callable[[str], str],
        *,
        ratings: Mapping[str, Sequence[str]],
        overlap: int,
        seed: int,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}; at least one rater must answer.")
        if not callable(tokens) and len(tokens) < overlap:
            raise ValueError(f"There are {len(tokens)} raters for an overlap of {overlap}.")
        self._url = url.rstrip("/")
        self._tokens = tokens
        self._ratings = ratings
        self._overlap = overlap
        self._seed = seed
        self._timeout_s = timeout_s
        self._transport = transport
        self._raters: list[_Rater] = []

    def labels_of(self, items: Sequence[TextItem]) -> list[str | None]:
        """The majority of the same raters' answers; None where they tie or know nothing."""
        return [majority(self._answers(item.id)) for item in items]

    def answer(self, project_id: str, progress: Progress = no_progress) -> int:
        """Labels every open task of the project; the number of answers given.

        A task is open until as many people as it wants, simulated or not, have answered or skipped
        it; ``overlap`` bounds them.
        Where no rating of an item is recorded, it is skipped. Calling again after an interruption
        continues where it stopped: an answer given twice counts once.

        Raises:
            ReviewerError: the server cannot be reached, or refuses.
        """
        raters = self._people()
        jobs = list(self._open(project_id, raters))
        done = 0
        lock = threading.Lock()

        def work(job: tuple[_Rater, int, str, str | None]) -> int:
            rater, task_id, item_id, label = job
            given = self._give(rater, project_id, task_id, item_id, label)
            with lock:
                progress(1)
            return given

        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rater")
        try:
            for given in pool.map(work, jobs):
                done += given
        finally:
            pool.shutdown(cancel_futures=True)
        return done

    def _answers(self, item_id: str) -> list[str]:
        return drawn(self._ratings.get(item_id, ()), self._overlap, self._seed, item_id)

    def _people(self) -> list[_Rater]:
        if not self._raters:
            if callable(self._tokens):
                names = [f"simulated-{number + 1}" for number in range(self._overlap)]
                tokens = {name: self._tokens(name) for name in names}
            else:
                tokens = dict(list(self._tokens.items())[: self._overlap])
            self._raters = [
                _Rater(name, self._url, token, self._timeout_s, self._transport)
                for name, token in tokens.items()
            ]
        return self._raters

    def _open(
        self, project_id: str, raters: Sequence[_Rater]
    ) -> Iterator[tuple[_Rater, int, str, str | None]]:
        """What is left to answer, task by task."""
        for row in self._tasks(project_id, raters[0]):
            item_id = (row.get("data") or {}).get("ext_id")
            if not isinstance(item_id, str):
                continue
            answered = set(row.get("annotators") or [])
            waiting = [pair for pair in enumerate(raters) if pair[1].user_id not in answered]
            labels = self._answers(item_id)
            people = min(int(row.get("overlap") or self._overlap), len(raters))
            for number, rater in waiting[: max(0, people - len(answered))]:
                yield rater, int(row["id"]), item_id, labels[number] if labels else None

    def _tasks(self, project_id: str, rater: _Rater) -> Iterator[dict[str, Any]]:
        query = json.dumps({"ordering": ["tasks:id"]})
        number, seen = 1, 0
        while True:
            with _translated(self._url, "list the tasks"):
                answer = rater.request(
                    "GET",
                    "/api/tasks/",
                    params={
                        "project": project_id,
                        "fields": "all",  # or the annotators stay empty
                        "include": "id,data,annotators,overlap",
                        "query": query,
                        "page": number,
                        "page_size": PAGE_TASKS,
                    },
                )
                if answer.status_code == 404:
                    raise ReviewerError(f"Label Studio has no project {project_id}.")
                answer.raise_for_status()
                body = answer.json()
                rows: list[dict[str, Any]] = body["tasks"]
            yield from rows
            seen += len(rows)  # a server may be set to give fewer than it is asked for
            if not rows or seen >= body["total"]:
                return
            number += 1

    def _give(
        self, rater: _Rater, project_id: str, task_id: int, item_id: str, label: str | None
    ) -> int:
        """One answer, once: the server knows it again by its own id."""
        own_name = json.dumps(["goldloop", project_id, item_id, rater.name])
        own_id = uuid.uuid5(uuid.NAMESPACE_URL, own_name)
        body: dict[str, Any] = {
            "unique_id": str(own_id),
            "result": [] if label is None else choice_result(label),
            "was_cancelled": label is None,
        }
        with _translated(self._url, "take an answer"):
            answer = rater.request("POST", f"/api/tasks/{task_id}/annotations/", json=body)
            if answer.status_code == 409:  # given before, and the confirmation was lost
                return 0
            answer.raise_for_status()
        return 1


@dataclass(eq=False)
class _Rater:
    """A user of the server with connections that are kept open; safe to share by threads."""

    name: str
    url: str
    token: str = field(repr=False)
    timeout_s: float
    transport: httpx.BaseTransport | None

    def __post_init__(self) -> None:
        import httpx

        self._http = httpx.Client(
            base_url=self.url,
            timeout=self.timeout_s,
            transport=self.transport,
            limits=httpx.Limits(max_connections=THREADS, max_keepalive_connections=THREADS),
        )
        weakref.finalize(self, self._http.close)
        self._lock = threading.Lock()
        self._access: tuple[str, float] | None = None
        with _translated(self.url, "say whose token this is"):
            answer = self.request("GET", "/api/current-user/whoami")
            answer.raise_for_status()
            self.user_id = int(answer.json()["id"])

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Repeats what failed on the way or on a busy database; only for what may be repeated."""
        import httpx

        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                answer = self._http.request(
                    method, path, headers={"Authorization": self._authorization()}, **options
                )
            except httpx.ConnectError:
                if attempt >= 2:
                    raise
            except httpx.TransportError:
                if last:
                    raise
            else:
                if answer.status_code < 500 or last:
                    return answer
            time.sleep(0.1 * 2**attempt)
        raise AssertionError  # the loop returns or raises

    def _authorization(self) -> str:
        """A legacy token as it is; a personal access token is exchanged for one that is short."""
        if self.token.count(".") != 2:
            return f"Token {self.token}"
        with self._lock:
            if self._access is None or time.monotonic() > self._access[1]:
                answer = self._http.post("/api/token/refresh/", json={"refresh": self.token})
                answer.raise_for_status()
                self._access = (answer.json()["access"], time.monotonic() + _ACCESS_TOKEN_S)
            return f"Bearer {self._access[0]}"


@contextmanager
def _translated(url: str, doing: str) -> Iterator[None]:
    """Turns what httpx raises into one sentence; the original may hold a token."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        if status == 401:
            raise ReviewerError(f"Label Studio at {url} refuses a rater's token (401).") from None
        raise ReviewerError(f"Label Studio at {url} refused to {doing} ({status}).") from None
    except httpx.HTTPError as exc:
        raise ReviewerError(
            f"Label Studio at {url} did not {doing} ({type(exc).__name__}); is it running?"
        ) from None
    except (ValueError, KeyError, TypeError) as exc:
        raise ReviewerError(
            f"Label Studio at {url} answered in an unknown form when asked to {doing}"
            f" ({type(exc).__name__})."
        ) from None
