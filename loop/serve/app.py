"""``goldloop serve``: Label Studio's webhooks, its ML backend, and a page of live progress.

A webhook is a hint, never the truth: it may be lost, forged in content or sent ten times. All it
does is wake the one thread that pulls, which reads Label Studio the way ``goldloop pull`` does,
with the writer's lock held. That thread also looks by itself now and then.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from loop.addresses import hidden
from loop.errors import LoopError, foreign
from loop.ports import FloatArray
from loop.serve.current_student import CurrentStudent
from loop.serve.limits import MAX_HEAD_BYTES, QUIET_S, LimitedProtocol, is_own_host, seldom_logged
from loop.serve.metrics import CONTENT_TYPE
from loop.serve.tokens import TOKEN_HEADER, Tokens

MAX_HINT_BYTES = 64 * 1024  # our webhooks carry no payload
MAX_PREDICT_BYTES = 16 * 2**20
MAX_LOGIN_BYTES = 4096
BODY_S = 30.0  # in which a body must have come
END_S = 5  # that requests get to end in, when the server is stopped
REFRESH_S = 15
LINK_S = 600.0  # that a one-time link is good for

log = logging.getLogger(__name__)


class Backend(Protocol):
    """The wire format of a labelling platform that asks the student: Label Studio's."""

    def health(self) -> Mapping[str, Any]:
        """The answer to ``/health``."""
        ...

    def setup(self, version: str) -> Mapping[str, Any]:
        """The answer to ``/setup``; an empty version is a student that is not trained yet."""
        ...

    def texts(self, body: Mapping[str, Any]) -> list[str | None]:
        """The texts that ``/predict`` asks about, None for a task that has none.

        ValueError where it is no such question.
        """
        ...

    def predictions(
        self, version: str, labels: Sequence[str | None], score: FloatArray
    ) -> Mapping[str, Any]:
        """The answer to ``/predict``: n labels or None, and (n,) how sure the student is."""
        ...

    def project(self, body: Mapping[str, Any]) -> str | None:
        """The project that a webhook is about, or None where it does not say."""
        ...


class OneTimeLinks:
    """Links that log somebody in once, as the terminal prints them; another process knows none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def new(self) -> str:
        """The path of a new link."""
        ticket = secrets.token_urlsafe(24)
        self._until[ticket] = self._clock() + LINK_S
        return f"/open?once={ticket}"

    def take(self, ticket: str) -> bool:
        """Whether the ticket was good; from now on it is not."""
        return self._until.pop(ticket, 0.0) > self._clock()


@dataclass(frozen=True)
class Served:
    """What the application needs of the rest.

    Attributes:
        labels: the campaign's; new ones may come while it runs.
        project: the campaign's Label Studio project, or None before the first push.
        progress: all that the page shows.
        metrics: the same as Prometheus reads it.
        sick: why answers are not read any more, or None while all is well.
        backend: the labelling platform's own way to ask and to be answered.
        hosts: names under which the server is reached, besides localhost and numbers.
        over_https: whether people reach the page that way, so that the cookie goes no other.
    """

    tokens: Tokens
    campaign: str
    labels: Callable[[], Sequence[str]]
    hint: Callable[[], None]
    project: Callable[[], str | None]
    student: CurrentStudent
    progress: Callable[[], Mapping[str, Any]]
    backend: Backend
    metrics: Callable[[], str] = lambda: ""
    sick: Callable[[], str | None] = lambda: None
    hosts: frozenset[str] = frozenset()
    over_https: bool = False
    links: OneTimeLinks = field(default_factory=OneTimeLinks)


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


async def _body(request: Request, limit: int) -> bytes:
    """The body, never more of it than the limit, and never waited for without end."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 12 or int(stated) > limit:
        raise _RefusedError(413, f"more than {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _RefusedError(413, f"more than {limit} bytes")
    except TimeoutError:
        raise _RefusedError(408, f"the body did not come within {BODY_S:.0f} s") from None
    except ClientDisconnect:
        raise _RefusedError(400, "the body broke off") from None
    return bytes(body)


async def _json(request: Request, limit: int) -> dict[str, Any]:
    body = await _body(request, limit)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "not JSON") from None
    if not isinstance(content, dict):
        raise _RefusedError(400, "not a JSON object")
    return content


def _basic_password(request: Request) -> str:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    return ""


def _bearer(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given if scheme.lower() == "bearer" else ""


def _check_webhook(request: Request, tokens: Tokens) -> None:
    """A webhook of ours carries the header; those of the ML backend its password."""
    header = _same(request.headers.get(TOKEN_HEADER, ""), tokens.webhook)
    if not header and not _same(_basic_password(request), tokens.backend):
        raise _RefusedError(401, "wrong or no token")


def _check_backend(request: Request, tokens: Tokens) -> None:
    if not _same(_basic_password(request), tokens.backend):
        raise _RefusedError(401, "wrong or no password")


def make_app(served: Served) -> FastAPI:
    """The application: webhooks, ML backend and the progress page."""
    app = FastAPI(title="goldloop", docs_url=None, redoc_url=None, openapi_url=None)
    tokens = served.tokens
    cookie = f"goldloop-{served.campaign}"

    @app.exception_handler(_RefusedError)
    async def refused(_request: Request, exc: _RefusedError) -> JSONResponse:
        end = {"Connection": "close"} if exc.status in (408, 413) else None
        return JSONResponse({"detail": exc.reason}, exc.status, end)

    @app.exception_handler(LoopError)
    async def failed(_request: Request, exc: LoopError) -> JSONResponse:
        return JSONResponse({"detail": str(exc)}, 503)

    @app.middleware("http")
    async def guarded(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        nonce = secrets.token_urlsafe(16)
        request.state.nonce = nonce
        response: Response
        try:
            if is_own_host(request.headers.get("host", ""), served.hosts):
                response = await call_next(request)
            else:
                detail = (
                    "this server does not go by that name; if people reach it so, start it with"
                    " --page-url, if the labelling platform does, with --public-url"
                )
                response = JSONResponse({"detail": detail}, 421)
        except Exception as exc:  # the server must live on
            log.error("%s", foreign(exc))
            log.debug("a request failed", exc_info=True)
            response = JSONResponse({"detail": "goldloop failed; its terminal says why"}, 500)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}';"
            " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    # Label Studio

    @app.post("/webhook")
    async def webhook(request: Request) -> dict[str, str]:
        _check_webhook(request, tokens)
        body = await _json(request, MAX_HINT_BYTES)
        about = served.backend.project(body)
        if about is not None:
            ours = await run_in_threadpool(served.project)
            if ours is not None and about != ours:
                return {"status": "of another project"}
        served.hint()
        return {"status": "pulling"}

    @app.get("/health")
    async def health() -> Response:
        why = served.sick()
        if why is None:
            return JSONResponse(dict(served.backend.health()))
        return JSONResponse({"status": "DOWN", "detail": hidden(why)}, 503)

    @app.post("/setup")
    async def setup(request: Request) -> Mapping[str, Any]:
        """Says which student answers. The access token that Label Studio sends is not kept."""
        _check_backend(request, tokens)
        await _json(request, MAX_PREDICT_BYTES)
        return served.backend.setup(await run_in_threadpool(served.student.version))

    @app.post("/predict")
    async def predict(request: Request) -> Mapping[str, Any]:
        _check_backend(request, tokens)
        try:
            texts = served.backend.texts(await _json(request, MAX_PREDICT_BYTES))
        except ValueError as exc:
            raise _RefusedError(400, str(exc)) from None
        given = [at for at, text in enumerate(texts) if text is not None]
        asked = [text for text in texts if text is not None]
        said = await run_in_threadpool(served.student.answer, asked)
        labels = await run_in_threadpool(served.labels)
        chosen: list[str | None] = [None] * len(texts)
        score = np.zeros(len(texts))
        for at, row, sure in zip(given, said.rows, said.score, strict=True):
            chosen[at], score[at] = labels[int(row)], sure
        return served.backend.predictions(said.version, chosen, score)

    # people

    def known(request: Request) -> bool:
        if _same(_bearer(request), tokens.page):
            return True
        return _same(request.cookies.get(cookie, ""), tokens.cookie)

    @app.get("/")
    async def page(request: Request) -> Response:
        if not known(request):
            return _html("login.html.j2", request, 401, campaign=served.campaign, wrong=False)
        progress = await run_in_threadpool(served.progress)
        return _html("progress.html.j2", request, 200, refresh_s=REFRESH_S, p=progress)

    @app.get("/progress.json")
    async def progress(request: Request) -> Response:
        if not known(request):
            raise _RefusedError(401, "wrong or no token")
        return JSONResponse(await run_in_threadpool(served.progress))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        reader = _same(_bearer(request), tokens.metrics)
        if not reader and not known(request):
            raise _RefusedError(401, "wrong or no token")
        return Response(await run_in_threadpool(served.metrics), media_type=CONTENT_TYPE)

    @app.post("/login")
    async def login(request: Request) -> Response:
        body = await _body(request, MAX_LOGIN_BYTES)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not _same(given, tokens.page):
            return _html("login.html.j2", request, 401, campaign=served.campaign, wrong=True)
        return logged_in()

    @app.get("/open")
    async def opened(request: Request, once: str = "") -> Response:
        """The link of the terminal. A used one shows the login page, or the progress if known."""
        looked_at = request.method == "HEAD"  # as chats do with links: it is not used up by that
        if looked_at or not served.links.take(once):
            return RedirectResponse("/", 303)
        return logged_in()

    def logged_in() -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            cookie,
            tokens.cookie,
            max_age=30 * 86400,
            secure=served.over_https,
            httponly=True,
            samesite="strict",
        )
        return answer

    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # the server leaves the body out
    return app


def _html(template: str, request: Request, status: int, **values: Any) -> HTMLResponse:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = pages.get_template(template).render(nonce=request.state.nonce, **values)
    return HTMLResponse(page, status)


# running it


def listen(host: str, port: int, last: int | None) -> socket.socket:
    """A listening socket: on the port asked for, else the last one, else a free one.

    Raises:
        LoopError: the address cannot be used.
    """
    wanted = [port] if port else [*([last] if last else []), 0]
    failure: OSError | None = None
    for number in wanted:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(128)
            except OSError:
                listener.close()
                raise
            return listener
        except OSError as exc:
            failure = exc
    raise LoopError(
        f"Cannot listen on {host}:{port} ({failure and failure.strerror}); choose another --port or"
        " --host."
    )


def own_hosts(host: str, *urls: str | None) -> frozenset[str]:
    """Names under which a server is reached that listens at ``host`` and is known by ``urls``."""
    names = {host, socket.gethostname(), *(urlsplit(url or "").hostname or "" for url in urls)}
    return frozenset(name.lower() for name in names if name)


def serve_app(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves until interrupted.

    Args:
        on_ready: called from a thread of its own once requests are answered.
    """
    import uvicorn

    settings = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=QUIET_S,
        timeout_graceful_shutdown=END_S,
        access_log=False,
        log_config=None,  # warnings and errors go to stderr, as Python does it by itself
        log_level="warning",
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(settings)

    def when_ready() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        if server.started:
            on_ready()

    threading.Thread(target=when_ready, name="ready", daemon=True).start()
    with seldom_logged(__name__, "uvicorn.error", "asyncio"), _hangup_as_request_to_end():
        server.run(sockets=[listener])


@contextmanager
def _hangup_as_request_to_end() -> Iterator[None]:
    """Its server ends in good order at SIGTERM, and knows nothing of terminals that are closed."""
    hangup = getattr(signal, "SIGHUP", None)
    main = threading.current_thread() is threading.main_thread()
    if hangup is None or not main or signal.getsignal(hangup) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(hangup, before)
