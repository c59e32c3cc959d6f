"""``goldloop serve``: Label Studio's webhooks, its ML backend, and a page of live progress.

A webhook is a hint, never the truth: it may be lost, forged in content or sent ten times. All it
does is wake the one thread that pulls, which reads Label Studio the way ``goldloop pull`` does,
with the writer's lock held. That thread also looks by itself now and then.

Three tokens are derived from one secret that lies beside the store, readable by its owner only: one
for webhooks, one for the ML backend, one for people. Nobody can turn one into another.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from loop.config import Config
from loop.context import Context
from loop.errors import BusyError, LoopError, StoreError, StudentError
from loop.ports import FloatArray
from loop.store import CampaignRow, Round, Store

log = logging.getLogger(__name__)

TOKEN_HEADER = "X-Goldloop-Token"  # noqa: S105 - the name of a header
BACKEND_USER = "goldloop"
MAX_HINT_BYTES = 64 * 1024  # our webhooks carry no payload
MAX_PREDICT_BYTES = 16 * 2**20
MAX_TASKS = 10_000
MAX_LOGIN_BYTES = 4096
DEBOUNCE_S = 2.0  # hints that come within this time cause one pull
POLL_S = 60.0  # webhooks get lost
REFRESH_S = 15


# secrets


@dataclass(frozen=True)
class Tokens:
    """What each kind of caller must show."""

    secret: bytes

    def __repr__(self) -> str:
        return "Tokens(…)"

    def _derived(self, purpose: str) -> str:
        digest = hmac.new(self.secret, purpose.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    @cached_property
    def webhook(self) -> str:
        """Sent by Label Studio with each webhook, as a header."""
        return self._derived("webhook")

    @cached_property
    def backend(self) -> str:
        """The password of the ML backend."""
        return self._derived("ml backend")

    @cached_property
    def page(self) -> str:
        """What people type to see the progress."""
        return self._derived("page")

    @cached_property
    def cookie(self) -> str:
        """What a browser keeps once they did."""
        return self._derived("cookie")


def state_file(config: Config, store: Store) -> Path:
    """Where the secret and the last port lie: beside the store, or with the campaign's outputs."""
    url = store.engine.url
    name = f"{config.campaign.name}.serve.json"
    if url.get_backend_name() == "sqlite":
        database = Path(str(url.database))
        return database.with_name(f"{database.name}.{name}")
    return config.out / name


def load_state(path: Path) -> dict[str, Any]:
    """The secret and the last port; a new secret is made where there is none.

    Raises:
        StoreError: the file cannot be read or written, or others can read it.
    """
    try:
        if path.exists():
            if path.stat().st_mode & 0o077:
                raise StoreError(
                    f"{path} holds a secret that others can read; run `chmod 600` on it."
                )
            state = json.loads(path.read_text(encoding="utf-8"))
            bytes.fromhex(state["secret"])
            return dict(state)
        return save_state(path, {"secret": secrets.token_hex(32)})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(
            f"{path} cannot be used ({type(exc).__name__}); delete it to make a new secret."
        ) from exc


def save_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Writes the file whole, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    half.unlink(missing_ok=True)
    handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(state, file)
    half.replace(path)
    return state


def project_of(store: Store, campaign: str) -> str | None:
    """The campaign's Label Studio project, or None before the first push."""
    with store.transaction() as session:
        row = session.get(CampaignRow, campaign)
        return row.project_id if row else None


# pulling


def pull_answers(ctx: Context) -> Round | None:
    """Pulls and adjudicates where a round waits for people; None where none does."""
    from loop.round import run_stage

    last = ctx.store.last_round(ctx.name)
    if last is None or last.stage not in ("pull", "adjudicate"):
        return None
    return run_stage(ctx, "pull")


class Puller:
    """One thread that pulls: soon after a hint, and now and then without one.

    Args:
        pull: does the work; called from this thread alone.
        say: told one sentence for every failure that differs from the last.
    """

    def __init__(
        self,
        pull: Callable[[], object],
        *,
        debounce_s: float = DEBOUNCE_S,
        poll_s: float = POLL_S,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._pull = pull
        self._debounce_s = debounce_s
        self._poll_s = poll_s
        self._say = say
        self._hinted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="puller", daemon=True)
        self.pulls = 0
        self.last_pull: datetime | None = None
        self.failure: str | None = None

    def start(self) -> None:
        """Begins, with one pull at once: nobody knows what was missed."""
        self._hinted.set()
        self._thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Ends after the pull that is under way, if any."""
        self._stopping.set()
        self._hinted.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def hint(self) -> None:
        """Something may have changed."""
        self._hinted.set()

    def to_json(self) -> dict[str, Any]:
        """What the progress page says of it."""
        last = self.last_pull
        return {
            "failure": self.failure,
            "last_pull": last.isoformat(timespec="seconds") if last else None,
        }

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._hinted.wait(self._poll_s)
            self._stopping.wait(self._debounce_s)
            self._hinted.clear()  # before the pull: what comes during it is pulled again
            if self._stopping.is_set():
                return
            try:
                self._pull()
            except BusyError as exc:
                self._failed(str(exc))
                self._stopping.wait(self._debounce_s)
                self._hinted.set()
            except LoopError as exc:
                self._failed(str(exc))
            except Exception as exc:  # the server must live on; the next poll tries again
                log.exception("pulling failed")
                self._failed(f"Pulling failed: {type(exc).__name__}.")
            else:
                self.failure = None
                self.last_pull = datetime.now(UTC)
                self.pulls += 1

    def _failed(self, sentence: str) -> None:
        if sentence != self.failure:
            self._say(sentence)
        self.failure = sentence


# the current student


@dataclass(frozen=True)
class Answers:
    """What the student says of n texts.

    Attributes:
        version: round and number of seeds.
        rows: (n,) chosen classes.
        score: (n,) in (0, 1], mean probability that the seeds give the class they choose together:
            low where they disagree with each other and where they are unsure.
    """

    version: str
    rows: np.ndarray[Any, np.dtype[np.int64]]
    score: FloatArray


class Classifier(Protocol):
    """Texts -> (n, k) class probabilities."""

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Class probabilities of the texts."""
        ...


class CurrentStudent:
    """The students of the newest trained round, loaded when first asked for.

    Args:
        load: makes a classifier from a saved model's folder.
    """

    def __init__(self, config: Config, store: Store, load: Callable[[Path], Classifier]) -> None:
        self._config = config
        self._store = store
        self._load = load
        self._lock = threading.Lock()
        self._loaded: tuple[str, list[Classifier]] = ("", [])

    def _saved(self) -> tuple[str, list[Path]]:
        numbers = {r.id: r.number for r in self._store.rounds(self._config.campaign.name)}
        found: dict[int, dict[int, Path]] = {}
        for run in self._store.runs(self._config.campaign.name):
            folder = self._config.out / run.model_path if run.model_path else None
            if run.arm == "loop" and folder is not None and folder.is_dir():
                found.setdefault(numbers[run.round_id], {})[run.seed] = folder
        if not found:
            return "", []
        newest = max(found)
        seeds = [found[newest][seed] for seed in sorted(found[newest])]
        return f"goldloop-round-{newest}-seeds-{len(seeds)}", seeds

    def version(self) -> str:
        """Names the round; empty where none is trained yet."""
        return self._saved()[0]

    def answer(self, texts: Sequence[str]) -> Answers:
        """What the student says of the texts.

        Raises:
            StudentError: no round is trained yet.
        """
        with self._lock:
            version, folders = self._saved()
            if not folders:
                raise StudentError("No student is trained yet; run `goldloop run` first.")
            if not texts:
                return Answers(version, np.zeros(0, dtype=np.int64), np.zeros(0))
            if self._loaded[0] != version:
                self._loaded = (version, [self._load(folder) for folder in folders])
            probs = np.stack([classify(texts) for classify in self._loaded[1]])
        together = probs.mean(axis=0)
        return Answers(version, together.argmax(axis=1).astype(np.int64), together.max(axis=1))


# the application


@dataclass(frozen=True)
class Served:
    """What the application needs of the rest.

    Attributes:
        project: the campaign's Label Studio project, or None before the first push.
        progress: all that the page shows.
        result: a label as Label Studio's answer; empty in blind campaigns, where nobody shall see
            what the student thinks.
    """

    tokens: Tokens
    campaign: str
    labels: tuple[str, ...]
    hint: Callable[[], None]
    project: Callable[[], str | None]
    student: CurrentStudent
    progress: Callable[[], Mapping[str, Any]]
    result: Callable[[str], list[dict[str, Any]]]


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


async def _body(request: Request, limit: int) -> bytes:
    """The body, never more of it than the limit."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit:
        raise _RefusedError(413, f"more than {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _RefusedError(413, f"more than {limit} bytes")
    return bytes(body)


async def _json(request: Request, limit: int) -> dict[str, Any]:
    body = await _body(request, limit)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "not JSON") from None
    if not isinstance(found, dict):
        raise _RefusedError(400, "not a JSON object")
    return found


def _basic_password(request: Request) -> str:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    return ""


def _check_webhook(request: Request, tokens: Tokens) -> None:
    """A webhook of ours carries the header; those of the ML backend its password."""
    header = _same(request.headers.get(TOKEN_HEADER, ""), tokens.webhook)
    if not header and not _same(_basic_password(request), tokens.backend):
        raise _RefusedError(401, "wrong or no token")


def _check_backend(request: Request, tokens: Tokens) -> None:
    if not _same(_basic_password(request), tokens.backend):
        raise _RefusedError(401, "wrong or no password")


def _texts(tasks: Any) -> list[str]:
    if not isinstance(tasks, list) or len(tasks) > MAX_TASKS:
        raise _RefusedError(400, f"tasks is not a list of at most {MAX_TASKS}")
    texts = []
    for task in tasks:
        data = task.get("data") if isinstance(task, dict) else None
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise _RefusedError(400, "a task has no text")
        texts.append(text)
    return texts


def make_app(served: Served) -> FastAPI:
    """The application: webhooks, ML backend and the progress page."""
    app = FastAPI(title="goldloop", docs_url=None, redoc_url=None, openapi_url=None)
    tokens = served.tokens
    cookie = f"goldloop-{served.campaign}"

    @app.exception_handler(_RefusedError)
    async def refused(_request: Request, exc: _RefusedError) -> JSONResponse:
        return JSONResponse({"detail": exc.reason}, exc.status)

    @app.exception_handler(LoopError)
    async def failed(_request: Request, exc: LoopError) -> JSONResponse:
        return JSONResponse({"detail": str(exc)}, 503)

    @app.middleware("http")
    async def guarded(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        nonce = secrets.token_urlsafe(16)
        request.state.nonce = nonce
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self';"
            " base-uri 'none'; frame-ancestors 'none'"
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
        about = body.get("project")
        number = about.get("id") if isinstance(about, dict) else None
        if number is not None:
            ours = await run_in_threadpool(served.project)
            if ours is not None and str(number) != ours:
                return {"status": "of another project"}
        served.hint()
        return {"status": "pulling"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "goldloop"}

    @app.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        """Says which student answers. The access token that Label Studio sends is not kept."""
        _check_backend(request, tokens)
        await _json(request, MAX_PREDICT_BYTES)
        return {"model_version": await run_in_threadpool(served.student.version) or "untrained"}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        _check_backend(request, tokens)
        texts = _texts((await _json(request, MAX_PREDICT_BYTES)).get("tasks"))
        said = await run_in_threadpool(served.student.answer, texts)
        results = [
            {
                "model_version": said.version,
                "score": float(score),
                "result": served.result(served.labels[row]),
            }
            for row, score in zip(said.rows, said.score, strict=True)
        ]
        return {"results": results, "model_version": said.version}

    # people

    def known(request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given, tokens.page):
            return True
        return _same(request.cookies.get(cookie, ""), tokens.cookie)

    @app.get("/")
    async def page(request: Request) -> Response:
        if not known(request):
            return _html("login.html.j2", request, 401, campaign=served.campaign, wrong=False)
        found = await run_in_threadpool(served.progress)
        return _html("progress.html.j2", request, 200, refresh_s=REFRESH_S, p=found)

    @app.get("/progress.json")
    async def progress(request: Request) -> Response:
        if not known(request):
            raise _RefusedError(401, "wrong or no token")
        return JSONResponse(await run_in_threadpool(served.progress))

    @app.post("/login")
    async def login(request: Request) -> Response:
        body = await _body(request, MAX_LOGIN_BYTES)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not _same(given, tokens.page):
            return _html("login.html.j2", request, 401, campaign=served.campaign, wrong=True)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            cookie, tokens.cookie, max_age=30 * 86400, httponly=True, samesite="strict"
        )
        return answer

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
        f"Cannot listen on {host}:{port} ({failure and failure.strerror}); choose another --port."
    )


def serve_app(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves until interrupted.

    Args:
        on_ready: called from a thread of its own once requests are answered.
    """
    import uvicorn

    settings = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False)
    server = uvicorn.Server(settings)

    def when_ready() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        if server.started:
            on_ready()

    threading.Thread(target=when_ready, name="ready", daemon=True).start()
    server.run(sockets=[listener])
