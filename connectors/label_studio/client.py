"""The connection to a Label Studio server: reading, writing, and errors of one sentence.

The SDK's own retries are off for writes, because they repeat imports whose answer was lost.
"""

from __future__ import annotations

import json
import math
import re
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from loop.errors import ReviewerError

if TYPE_CHECKING:
    import httpx
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.http_client import HttpClient

OLDEST = (1, 13)  # older servers lack the filters and the import that are used here
ATTEMPTS = 5
LOOKUP_IDS = 1_000  # ids in one question
MOST_UNSERVED = 100  # tasks; a server that fails for more than these has a trouble of its own
NO_RETRY: Any = {"max_retries": 0}


def shown_url(url: str) -> str:
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


class LostError(ReviewerError):
    """No usable answer: the request may have been carried out, or may still be.

    Attributes:
        over: the server is certainly not at work on it any more.
    """

    def __init__(self, message: str, *, over: bool = False) -> None:
        super().__init__(message)
        self.over = over


class UnservedError(LostError):
    """The server fails to make up an answer, or makes one up that is no JSON."""


class RefusedError(ReviewerError):
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

    where = f"Label Studio at {shown_url(url)}"
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
        elif status == 413:
            message = (
                f"{where}, or a proxy before it, takes no request as large as is needed to {doing}"
                " (413); raise its limit (nginx: client_max_body_size)."
            )
        else:
            message = f"{where} refused to {doing} ({status})" + (f": {reason}" if reason else ".")
        if status in (408, 425, 429) or status >= 500 or status == 0:
            # Label Studio's own errors carry its version; those of proxies do not.
            over = isinstance(exc.body, Mapping) and "version" in exc.body
            kind = UnservedError if status == 500 else LostError
            raise kind(f"{where} failed to {doing} ({status}).", over=over) from None
        raise RefusedError(message, status) from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as exc:
        if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            raise ReviewerError(
                f"This machine does not trust the certificate of {where}; set SSL_CERT_FILE to the"
                " file with the certificate of the authority that issued it."
            ) from None
        raise LostError(
            f"{where} cannot be reached; is it running, and is the address right?", over=True
        ) from None
    except httpx.TimeoutException:
        raise LostError(f"{where} did not answer in time when asked to {doing}.") from None
    except (httpx.HTTPError, httpx.StreamError) as exc:
        raise LostError(
            f"{where} broke off when asked to {doing} ({type(exc).__name__})."
        ) from None
    except httpx.InvalidURL:
        raise ReviewerError(f"{shown_url(url)!r} is not the address of a server.") from None
    except (
        ValidationError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as exc:
        raise ReviewerError(
            f"{where} answered in a form that goldloop does not know when asked to {doing}"
            f" ({type(exc).__name__})."
        ) from None


@dataclass(frozen=True)
class Listing:
    """The tasks of a list.

    Attributes:
        rows: in the order of their ids, as the server wrote them.
        unserved: ids of tasks that the server fails to show.
        at: the server's clock when the reading began, or None where it does not say.
    """

    rows: list[dict[str, Any]]
    unserved: tuple[int, ...]
    at: datetime | None


class Client:
    """One server, as one user.

    Args:
        url: the server's address.
        token: a personal access token or a legacy token.
        timeout_s: how long one request may take.
        transport: an httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token.strip()
        self._timeout_s = timeout_s
        self._transport = transport
        self._sdk: LabelStudio | None = None
        self._requests: HttpClient
        self._clock: datetime | None = None  # the server's, in its newest answer

    @property
    def shown_url(self) -> str:
        """The address without a user name or password."""
        return shown_url(self.url)

    @property
    def clock(self) -> datetime | None:
        """The server's, in its newest answer; None where it does not say."""
        return self._clock

    def asking(self, doing: str) -> Any:
        """A context in which errors say what was asked for."""
        return translated(self.url, doing, self._token)

    def sdk(self) -> LabelStudio:
        """The SDK's client.

        Raises:
            ReviewerError: there is no token, or it cannot be one.
        """
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
            from label_studio_sdk.core.client_wrapper import SyncClientWrapper

            http = httpx.Client(
                transport=self._transport,
                timeout=self._timeout_s,
                follow_redirects=True,
                event_hooks={"response": [self._check_redirect, _check_token]},
            )
            weakref.finalize(self, http.close)
            with self.asking("read the token"):
                # With the slash, access tokens too are asked for below the address's path.
                how = {"base_url": f"{self.url}/", "api_key": self._token, "max_retries": 2}
                self._requests = SyncClientWrapper(**how, httpx_client=http).httpx_client
                self._sdk = LabelStudio(**how, httpx_client=http)
        return self._sdk

    def _check_redirect(self, answer: httpx.Response) -> None:
        """Lets reading be sent on by the server itself; all else would be lost, or go elsewhere.

        A redirected request that writes becomes one that reads, which succeeds and changes nothing.
        """
        if not answer.has_redirect_location:
            return
        asked = answer.request
        to = asked.url.join(answer.headers["location"])
        if asked.method == "GET" and to.host == asked.url.host:
            return
        raise ReviewerError(
            f"Label Studio at {self.shown_url} sends requests on to {to.scheme}://{to.host}: write"
            " the address that it has there into label_studio.url."
        )

    def requests(self) -> HttpClient:
        """The SDK's way to make any request, with its tokens that renew themselves.

        Raises:
            ReviewerError: as ``sdk``.
        """
        self.sdk()
        return self._requests

    def get(self, path: str, params: dict[str, Any], *, retry: bool = True) -> Any:
        """JSON as the server wrote it: the SDK's typed answers lose fields they do not know.

        The SDK repeats what the server refuses for a while, but not what breaks off on the way.
        """
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        http = self.requests()
        options = None if retry else NO_RETRY
        for pause_s in pauses(ATTEMPTS):
            try:
                answer = http.request(path, method="GET", params=params, request_options=options)
                break
            except (httpx.ReadError, httpx.RemoteProtocolError) as exc:
                failure = exc
                time.sleep(pause_s)
        else:
            raise failure
        self._clock = _date(answer.headers.get("date"))
        body: Any = None
        if answer.headers.get("content-type", "").startswith("application/json"):
            try:
                body = _decoded(answer.content)
            except (ValueError, RecursionError) as exc:
                if answer.status_code == 200:
                    raise UnservedError(
                        f"{self.shown_url} answered with something that cannot be read as JSON"
                        f" ({type(exc).__name__})."
                    ) from None
        if answer.status_code != 200:
            raise ApiError(status_code=answer.status_code, body=body)
        if body is None:
            raise ReviewerError(f"{self.shown_url} does not answer like Label Studio.")
        return body

    def write(
        self, method: str, path: str, body: Any, doing: str, *, repeatable: bool = False
    ) -> None:
        """A request that changes something; repeated only where that cannot do it twice."""
        from label_studio_sdk.core.api_error import ApiError

        for pause_s in pauses(ATTEMPTS if repeatable else 1):
            try:
                with self.asking(doing):
                    answer = self.requests().request(
                        path, method=method, json=body, request_options=NO_RETRY
                    )
                    if answer.status_code >= 300:
                        kind = answer.headers.get("content-type", "")
                        said = answer.json() if kind.startswith("application/json") else None
                        raise ApiError(status_code=answer.status_code, body=said)
                return
            except LostError as exc:
                failure = exc
                if repeatable:
                    time.sleep(pause_s)
        raise failure

    def check(self) -> str:
        """Asks for the server's version, which is returned, and whether it takes the token.

        Raises:
            ReviewerError: it is no Label Studio, too old, or does not take the token.
        """
        with self.asking("say its version"):
            try:
                release = str(self.get("api/version/", {}, retry=False)["release"])
            except (KeyError, TypeError):
                release = ""
        numbers = re.match(r"(\d+)\.(\d+)", release)
        if numbers is None:
            raise ReviewerError(f"{self.shown_url} does not answer like Label Studio.")
        if (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise ReviewerError(
                f"Label Studio at {self.shown_url} is version {release}; goldloop needs"
                f" {OLDEST[0]}.{OLDEST[1]} or later."
            )
        with self.asking("say whose token this is"):
            self.get("api/current-user/whoami", {}, retry=False)
        return release

    def listed(
        self, project: int, doing: str, filters: list[dict[str, Any]], page_size: int, **params: Any
    ) -> list[dict[str, Any]]:
        """All pages of a task list, in the order of ids.

        Raises:
            ReviewerError: the server cannot be read.
        """
        listing = self.read(project, doing, filters, page_size, **params)
        if listing.unserved:
            raise UnservedError(
                f"Label Studio at {self.shown_url} failed to {doing}: it cannot show"
                f" {len(listing.unserved)} tasks of project {project}, the first of them"
                f" {listing.unserved[0]}."
            )
        return listing.rows

    def of_items(
        self,
        project: int,
        doing: str,
        item_ids: Sequence[str],
        page_size: int,
        *,
        unserved: bool = False,
        **params: Any,
    ) -> list[dict[str, Any]]:
        """The tasks that carry these ids of ours; fewer a question where addresses must be short.

        Args:
            unserved: whether tasks that the server fails to show are left out.
        Raises:
            ReviewerError: the server cannot be read.
        """
        rows: list[dict[str, Any]] = []
        start, size = 0, LOOKUP_IDS
        while start < len(item_ids):
            chunk = list(item_ids[start : start + size])
            filters = [filter_on("data.ext_id", "in_list", "String", chunk)]
            try:
                if unserved:
                    rows += self.read(project, doing, filters, page_size, **params).rows
                else:
                    rows += self.listed(project, doing, filters, page_size, **params)
            except RefusedError as exc:
                if exc.status not in (400, 414, 431) or size == 1:
                    raise
                size = max(1, len(chunk) // 4)  # some proxies take short addresses only
            else:
                start += len(chunk)
        return rows

    def read(
        self, project: int, doing: str, filters: list[dict[str, Any]], page_size: int, **params: Any
    ) -> Listing:
        """All pages of a task list, but for the tasks that the server fails to show.

        Where tasks vanish between two pages, others move up and one would be missed: it starts
        again.

        Raises:
            ReviewerError: the server cannot be read.
        """
        query = {"filters": {"conjunction": "and", "items": filters}, "ordering": ["tasks:id"]}
        asked = {"project": project, "query": json.dumps(query, separators=(",", ":")), **params}
        for _ in range(ATTEMPTS):
            rows: dict[int, dict[str, Any]] = {}
            unserved: list[int] = []
            total: int | None = None
            at: datetime | None = None
            number, size = 1, page_size
            while True:
                missing = len(unserved)
                try:
                    with self.asking(doing):
                        page, now_total = self._page(doing, asked, number, size, unserved)
                        rows |= {int(row["id"]): row for row in page}
                except RefusedError as exc:
                    if exc.status != 404 or number == 1:
                        raise
                    shrunk = True  # there is no such page any more
                    break
                if number == 1:
                    at = self._clock
                    # A server may be set to give fewer than it is asked for.
                    size = len(page) + len(unserved) - missing
                shrunk = total is not None and now_total < total
                total = now_total
                if shrunk or not size or number * size >= total:
                    break
                number += 1
            if not shrunk:
                return Listing(list(rows.values()), tuple(unserved), at)
        raise ReviewerError(
            f"Tasks kept vanishing from Label Studio's project {project} while it was read;"
            " try again."
        )

    def _page(
        self, doing: str, asked: Mapping[str, Any], number: int, size: int, unserved: list[int]
    ) -> tuple[list[dict[str, Any]], int]:
        """One page, and how many tasks the list has."""
        where = {"page": number, "page_size": size}
        try:
            with self.asking(doing):
                answer = self.get("api/tasks/", {**asked, **where})
                return answer["tasks"], int(answer["total"])
        except UnservedError:
            # The ids alone: where not even they come, the trouble is not in one task.
            ids_only = {"fields": "task_only", "include": "id"}
            with self.asking(doing):
                answer = self.get("api/tasks/", {**asked, **where, **ids_only})
                ids, total = [int(row["id"]) for row in answer["tasks"]], int(answer["total"])
            size = len(ids) if number == 1 else size
        return self._parts(doing, asked, number, size, ids, unserved), total

    def _parts(
        self,
        doing: str,
        asked: Mapping[str, Any],
        number: int,
        size: int,
        ids: Sequence[int],
        unserved: list[int],
    ) -> list[dict[str, Any]]:
        """The tasks of a page that fails as a whole, in smaller and smaller parts.

        Args:
            ids: of the tasks on it, in order.
            unserved: gains the tasks that fail alone.
        """
        if size == 1 or len(ids) == 1:
            unserved += ids
            if len(unserved) > MOST_UNSERVED:
                raise ReviewerError(
                    f"Label Studio at {self.shown_url} fails to show more than {MOST_UNSERVED}"
                    " tasks (500); its log says why."
                )
            return []
        parts = next(n for n in range(2, size + 1) if size % n == 0)
        part_size = size // parts
        rows: list[dict[str, Any]] = []
        for part in range(parts):
            its_ids = ids[part * part_size : (part + 1) * part_size]
            if not its_ids:
                break
            its_number = (number - 1) * parts + part + 1
            where = {"page": its_number, "page_size": part_size}
            try:
                with self.asking(doing):
                    # A task is called unservable only after it has failed several times.
                    alone = len(its_ids) == 1
                    rows += self.get("api/tasks/", {**asked, **where}, retry=alone)["tasks"]
            except UnservedError:
                rows += self._parts(doing, asked, its_number, part_size, its_ids, unserved)
        return rows


def _check_token(answer: httpx.Response) -> None:
    """The SDK reads an answer to its question for an access token as JSON, whatever it is."""
    from label_studio_sdk.core.api_error import ApiError

    kind = answer.headers.get("content-type", "")
    asked = answer.request.url.path.endswith("/api/token/refresh/")
    if asked and answer.status_code >= 400 and not kind.startswith("application/json"):
        raise ApiError(status_code=answer.status_code)


def _decoded(content: bytes) -> Any:
    """JSON, in which numbers that JSON, floats or 64 bits cannot hold stand as their text."""
    return json.loads(content, parse_constant=str, parse_float=_float, parse_int=_int)


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _int(text: str) -> int | str:
    # SQLite rounds what has more than 64 bits, and Python refuses thousands of digits.
    return int(text) if len(text) < 19 else text


def _date(header: str | None) -> datetime | None:
    """The moment that a Date header names."""
    try:
        moment = parsedate_to_datetime(header or "")
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def filter_on(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """A condition on the tasks of a list."""
    return {
        "filter": f"filter:tasks:{column}",
        "operator": operator,
        "type": kind,
        "value": value,
    }


def pauses(attempts: int) -> Iterator[float]:
    """Seconds to wait after each failed attempt, growing."""
    for attempt in range(attempts):
        yield 0.2 * 2**attempt
