"""Questions to a server over HTTP: tried again where that helps, keys kept out of every message."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np

from loop.errors import AnnotatorError
from loop.prompt import one_line

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 300.0  # a server that asks for more patience than this is not waited for
MOST_LISTED_BYTES = 2**20
MOST_ANSWER_BYTES = 2**25
MOST_TOLD = 400  # letters of what a server says, in a message
PACKING = frozenset({"content-encoding", "content-length", "transfer-encoding"})
MOST_TOKENS = 2**31  # an answer that says that it took more is wrong
T = TypeVar("T")


@dataclass
class Usage:
    """What one item took, failed attempts included."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def add(self, usage: object, prompts: int = 1) -> None:
        """Counts an answer's ``usage``; what is missing or no number counts nothing.

        Some servers leave out of the answer's tokens what the model thought, but not of the total.

        Args:
            prompts: as many had the cached tokens that are stated: vLLM states those of the last
                prompt of a list, others the sum.
        """
        if not isinstance(usage, Mapping):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
        prompt, hits = count_of(usage.get("prompt_tokens")), count_of(cached)
        self.prompt += prompt
        self.cached += hits * prompts if hits * prompts <= prompt else min(hits, prompt)
        beyond = count_of(usage.get("total_tokens")) - prompt if prompt else 0
        self.output += max(count_of(usage.get("completion_tokens")), beyond)

    @property
    def computed(self) -> int:
        """Tokens that were not in a cache."""
        return max(0, self.prompt - self.cached) + self.output

    def share_out(self, shares: Sequence[Usage], weights: Sequence[int]) -> None:
        """Adds to each of several usages its share of this one, whole tokens that sum to it."""
        ends = np.cumsum(weights) / sum(weights)
        for name in ("prompt", "cached", "output"):
            tokens = np.diff(np.rint(ends * getattr(self, name)), prepend=0)
            for share, count in zip(shares, tokens, strict=True):
                setattr(share, name, getattr(share, name) + int(count))


class GarbledError(Exception):
    """An answer that cannot be used; another attempt may do better."""


class UnansweredError(Exception):
    """An item gets no answer; ``down`` if the server rather than the item seems to be why.

    Attributes:
        reached: whether the server said anything at all.
    """

    def __init__(self, reason: str, *, down: bool = False, reached: bool = True) -> None:
        super().__init__(reason)
        self.down = down
        self.reached = reached


class StoppedError(UnansweredError):
    """Nobody asked, because the others stopped."""


class IncompleteError(UnansweredError):
    """The server lists too few tokens for this item."""


class RejectedError(UnansweredError):
    """The server says no, and would say it again.

    Attributes:
        option: what the server names as the option that it does not take, if it names one.
    """

    def __init__(self, status: int, reason: str, option: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.option = option


class Room:
    """How many requests may be under way at once: fewer while the server is overrun.

    Half as many where it says so or is silent for too long, and one more again for as many answers
    as there are requests under way.

    Source: Chiu & Jain 1989, additive increase and multiplicative decrease.

    Args:
        most: never more than these.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = float(most)
        self.under_way = 0
        self._halved_at = -math.inf
        self._changed = threading.Condition()

    @property
    def allowed(self) -> int:
        """As many may be under way now."""
        return int(self._now)

    @contextmanager
    def taken(self, stop: threading.Event) -> Iterator[None]:
        """Room for one request, once there is some, or once everybody stops."""
        with self._changed:
            self._changed.wait_for(lambda: self.under_way < self.allowed or stop.is_set())
            self.under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self.under_way -= 1
                self._changed.notify_all()

    def well(self) -> None:
        """A request was answered."""
        with self._changed:
            self._now = min(self._most, self._now + 1 / self._now)

    def overrun(self, begun_at: float) -> None:
        """A request was too much; those that were begun before the last halving do not count."""
        with self._changed:
            if begun_at > self._halved_at:
                self._now, self._halved_at = max(1.0, self._now / 2), time.monotonic()


class Http:
    """Posts, waits and posts again. Safe to use from many threads."""

    REDIRECTED = frozenset({301, 302, 303, 307, 308})
    REFUSED = frozenset({401, 402, 403, 404}) | REDIRECTED

    def __init__(
        self,
        base_url: str,
        api_key_env: str,
        *,
        timeout_s: float,
        max_attempts: int,
        backoff_s: float,
        concurrency: int,
        transport: httpx.BaseTransport | None,
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as exc:
            raise AnnotatorError("annotator.base_url is not an address.") from exc
        if url.scheme not in ("http", "https") or not url.host:
            raise AnnotatorError("annotator.base_url must begin with http:// or https://.")
        if url.userinfo or url.query:
            raise AnnotatorError(
                "annotator.base_url holds a password or a query; put the key into the environment"
                f" variable {api_key_env}."
            )
        given = re.sub(r"/(?:chat/completions|completions|models)$", "", str(url).rstrip("/"))
        self._interface = given if url.path.strip("/") else f"{given}/v1"
        self.shown = self._root = given.removesuffix("/v1")
        self.stop = threading.Event()
        self._key_env = api_key_env
        self.max_attempts = max_attempts
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AnnotatorError(f"The key in {api_key_env} holds characters that no key has.")
        self._redacted: Callable[[str], str] = lambda text: text.replace(key, "…") if key else text

        def client() -> httpx.Client:
            return httpx.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
                limits=httpx.Limits(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                ),
                transport=transport,
            )

        self._new_client = client
        self._open_client()
        self._room = Room(concurrency)
        self._lock = threading.Lock()
        self._wait_until = 0.0
        self._last_success = time.monotonic()

    def begin(self) -> None:
        """Forgets that it was closed or stopped, and how long nothing succeeded."""
        if self._client.is_closed:
            self._open_client()
        self.stop.clear()
        self._last_success = time.monotonic()

    def _open_client(self) -> None:
        self._client = self._new_client()
        weakref.finalize(self, self._client.close)

    def models(self) -> list[str]:
        """The models that the server says it has.

        Raises:
            AnnotatorError: it cannot be reached, does not take the key, or answers otherwise.
        """
        try:
            with self._client.stream("GET", f"{self._interface}/models") as answer:
                if answer.status_code in (401, 403):
                    raise AnnotatorError(
                        f"The LLM server at {self.shown} does not take the key"
                        f" ({answer.status_code}); put the right one into {self._key_env}."
                    )
                if answer.status_code != 200:
                    raise AnnotatorError(
                        f"The LLM server at {self.shown} answers {answer.status_code} when asked"
                        " for its models; see whether annotator.base_url is right."
                    )
                body = b""
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > MOST_LISTED_BYTES:
                        raise ValueError("too long")
            return [self.quoted(model["id"]) for model in json.loads(body)["data"]]
        except httpx.HTTPError as exc:
            raise AnnotatorError(
                f"The LLM server at {self.shown} cannot be reached ({type(exc).__name__})."
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AnnotatorError(
                f"The server at {self.shown} does not answer like an LLM server; see whether"
                " annotator.base_url is right."
            ) from None

    def quoted(self, said: object) -> str:
        """A name that the server says, on one line, without the key."""
        return one_line(self._redacted(str(said)))[:MOST_TOLD]

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    @staticmethod
    def as_is(answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """The whole answer."""
        return answer

    def maybe(
        self,
        method: str,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        *,
        refusable: bool = False,
        rare: bool = False,
    ) -> T | None:
        """Like ``post``; None where the server has no such thing, or refuses it to us.

        Args:
            refusable: raise where the key is refused.
            rare: most servers have no such thing, and some say so as if they had failed.
        """
        attempts = 1 if rare else self.max_attempts
        try:
            return self._call(method, path, body, read, None, 1, attempts)
        except RejectedError as exc:
            if refusable and exc.status in (401, 402, 403):
                raise
            return None
        except UnansweredError as exc:
            if exc.down and not (rare and exc.reached):
                raise
            return None

    def post(
        self,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        usage: Usage | None = None,
        prompts: int = 1,
        attempts: int | None = None,
    ) -> T:
        """What ``read`` makes of the answer.

        Args:
            attempts: other than ``max_attempts``.
        Raises:
            RejectedError: the server refuses this request and would refuse it again.
            UnansweredError: no usable answer after the last attempt.
        """
        return self._call("POST", path, body, read, usage, prompts, attempts or self.max_attempts)

    def _call(
        self,
        method: str,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        usage: Usage | None,
        prompts: int,
        most_attempts: int,
    ) -> T:
        own = path.startswith("/v1/")
        url = self._interface + path.removeprefix("/v1") if own else self._root + path
        attempt = 0
        pauses = 0
        while True:
            attempt += 1
            wait_s: float | None = None
            down = reached = True
            try:
                with self._room.taken(self.stop):
                    self._pause(0.0)
                    began = time.monotonic()
                    response = self._request(method, url, body)
            except GarbledError as exc:
                problem, down = f"answered with garbage: {exc}", False
            except httpx.DecodingError:
                problem, down = "answered with garbage: it cannot be decompressed", False
            except httpx.TimeoutException:
                self._room.overrun(began)
                problem, reached = f"did not answer within {self._timeout_s:g} s", False
            except httpx.HTTPError as exc:
                reached = False
                problem = f"cannot be reached ({self._redacted(str(exc)) or type(exc).__name__})"
            else:
                status = _status_of(response)
                if status == 200:
                    try:
                        result = self._read(response, read, usage, prompts)
                    except GarbledError as exc:
                        problem, down = f"answered with garbage: {exc}", False
                    else:
                        self._last_success = time.monotonic()
                        self._room.well()
                        return result
                elif status in (408, 409, 425, 429) or status >= 500:
                    problem = f"answered {status}{self._message(response)}"
                    if status in (429, 503):
                        self._room.overrun(began)
                    if status == 429 and b"equest too large" in response.content:
                        raise RejectedError(413, f"{self.shown} {problem}.")
                    if status == 501 or b"insufficient_quota" in response.content:
                        raise RejectedError(
                            402 if status == 429 else 501, f"{self.shown} {problem}."
                        )
                    wait_s = _retry_after_s(response)
                    if wait_s is not None and wait_s > LONGEST_WAIT_S:
                        raise AnnotatorError(
                            f"{self.shown} asks to wait {wait_s:.0f} s before the next question;"
                            " run the command again then. Every vote so far is kept."
                        )
                    idle_s = time.monotonic() - self._last_success
                    if status == 429 and idle_s < LONGEST_WAIT_S / 2:
                        attempt -= 1  # told to wait is not failed
                else:
                    raise RejectedError(status, self._refusal(response), _option_of(response))
            if attempt >= most_attempts:
                told = one_line(self._redacted(problem))[:MOST_TOLD]
                raise UnansweredError(f"{self.shown} {told}.", down=down, reached=reached)
            if wait_s is not None:
                with self._lock:  # for all threads: the limit is the server's, not the request's
                    self._wait_until = max(self._wait_until, time.monotonic() + wait_s)
            pauses += 1
            log.debug("%s %s; trying again", path, problem)
            backoff_s = min(30.0, self._backoff_s * 2 ** min(pauses - 1, 10))
            self._pause(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)

    def _request(self, method: str, url: str, body: object) -> httpx.Response:
        """The whole answer.

        Raises:
            GarbledError: it is so long that it cannot be one.
            httpx.HTTPError: there is none.
        """
        with self._client.stream(method, url, json=body) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_ANSWER_BYTES:
                    raise GarbledError(f"it is longer than {MOST_ANSWER_BYTES // 2**20} MB")
        kept = [(k, v) for k, v in response.headers.multi_items() if k not in PACKING]
        return httpx.Response(response.status_code, headers=kept, content=bytes(content))

    def _pause(self, seconds: float) -> None:
        """Waits, and as long as the server asked everybody to wait; less when stopping."""
        self.stop.wait(seconds)
        while (left := self._wait_until - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise StoppedError(f"{self.shown} was not asked any more.")

    def _read(
        self,
        response: httpx.Response,
        read: Callable[[Mapping[str, Any]], T],
        usage: Usage | None,
        prompts: int,
    ) -> T:
        try:
            answer = response.json()
        except (ValueError, RecursionError) as exc:
            raise GarbledError("it is not JSON, or it is cut off") from exc
        if not isinstance(answer, dict):
            raise GarbledError("it is not a JSON object")
        if usage is not None:
            usage.add(answer.get("usage"), prompts)
        try:
            return read(answer)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise GarbledError("log-probabilities, tokens or choices are missing") from exc

    def _message(self, response: httpx.Response) -> str:
        """The server's own words in brackets, if it has any."""
        try:
            answer = response.json()
            answer = answer[0] if isinstance(answer, list) else answer  # as Google sends it
            error = _error_in(answer) or next(
                answer[key] for key in ("error", "message", "detail") if key in answer
            )
            said = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
            return ""
        return f" ({one_line(self._redacted(said))[:300].rstrip('.')})"

    def _refusal(self, response: httpx.Response) -> str:
        status = _status_of(response)
        if status in self.REDIRECTED:
            place = self._redacted(response.headers.get("location", "another address"))
            return (
                f"{self.shown} sends questions on to {one_line(place)[:200]} ({status}); set"
                " annotator.base_url to that server's address."
            )
        if status in (401, 403):  # such answers may quote the key, so they are not quoted
            return (
                f"{self.shown} refuses access ({status});"
                f" set the environment variable {self._key_env} to a valid key."
            )
        return f"{self.shown} refused the question: {status}{self._message(response)}."


def _status_of(response: httpx.Response) -> int:
    """The status, also where it stands in an error that is sent as if all were well."""
    if response.status_code != 200 or b'"error"' not in response.content:
        return response.status_code
    try:
        error = _error_in(response.json())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 200
    if not error:
        return 200
    code, kind = (
        str(error.get(key)) if isinstance(error, dict) else "" for key in ("code", "type")
    )
    if re.fullmatch("[45][0-9]{2}", code):
        return int(code)
    return 400 if "invalid_request" in kind or "context_length" in code else 500


def _error_in(answer: Any) -> Any:
    """The error of an answer or of its only choice, if it has one."""
    choices = answer.get("choices")
    if isinstance(choices, list) and choices:
        return choices[0].get("error") if len(choices) == 1 else None
    return answer.get("error")


def _option_of(response: httpx.Response) -> str:
    """The option that a refusal names: OpenAI's ``param``, or the place in FastAPI's ``detail``."""
    try:
        answer = response.json()
        if "detail" in answer:
            return str(answer["detail"][0]["loc"][-1])
        return str(answer["error"]["param"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, from a number or a date; None if it does not."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def count_of(value: object) -> int:
    """A number of tokens, also as some servers write it: 12.0, "12"; what is none counts 0."""
    try:
        count = float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0
    return int(count) if 0 < count <= MOST_TOKENS and not isinstance(value, bool) else 0
