"""The executor of a cluster: Ray's actors, wherever Ray has room for them.

Only Ray's core is used: one actor is one worker, which loads a job once. Actors are not restarted
by Ray and their tasks not repeated by it; ``loop.executor.crew`` does that, for processes as well.
A machine of the cluster needs the same goldloop as this one. It needs none of this machine's files:
what a job reads goes with it (``loop.executor.folders``), except for LLMs, which are too large.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from loop.errors import ConfigError, LoopError, MachineError
from loop.executor.crew import Crew, Desk, Tell
from loop.hardware import cores
from loop.ports import Job, News, Progress, Resources, no_news, no_progress

Block = TypeVar("Block")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # for an address to take a connection
NEWS_S = 0.5  # progress is passed on no more often
PATIENCE_S = 20.0  # without any worker, before people are told
START_S = 900.0  # without any worker, before it is given up: a cluster that grows takes minutes
TIDY_S = 2.0  # for a worker to remove its files before it is ended


class RayExecutor:
    """Workers are actors of a Ray cluster.

    Args:
        address: "auto" for the cluster that this machine is part of, "local" for one of its own on
            this machine that ends with the executor, or HOST:PORT of a cluster's head.
        workers: the most actors; None = as many as there is room for.
        gpus_per_worker: None = 1 where the cluster has GPUs, else 0.
        say: told what the user should know.
    """

    elsewhere = True

    def __init__(
        self,
        address: str = "auto",
        *,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        say: News = no_news,
    ) -> None:
        self._address, self._workers, self._gpus = address, workers, gpus_per_worker
        self._say = say
        self._ray: Any = None
        self._ours = False  # whether this executor made the connection
        self._folder: Path | None = None
        self._crews: dict[tuple[float, float], Crew] = {}
        self._waited_since = 0.0
        self._said_by_ray: Callable[[], None] = lambda: None

    @property
    def room(self) -> Resources:
        """What a worker has by the campaign file and the cluster; connects.

        Raises:
            LoopError: see ``connect``.
        """
        self.connect()
        gpus = self._gpus
        if gpus is None:
            gpus = float(any(node.get("GPU") for node in self._nodes()))
        return Resources(self._workers, 1.0, gpus)

    def check_room(self) -> None:
        """Connects, and sees to it that there is, or may come, room for a worker.

        Raises:
            LoopError: see ``connect``.
            ConfigError: no machine of the cluster has room for one worker.
        """
        room = self.room
        if room.workers is None and not self.capacity(room):
            raise ConfigError(self._no_room(room))

    def connect(self) -> None:
        """Connects to the cluster, or starts one of its own; does nothing where that is done.

        Raises:
            ConfigError: Ray is not installed, or nothing answers at the address.
            MachineError: no Ray can be started here.
        """
        if self._ray is not None:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = self._address == "local"
        if "ray" not in sys.modules and (own or _has_token()):  # Ray reads it once
            # Without it a Ray of its own asks for its token as well, and says so at each start; a
            # cluster that asks for it is shown none.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if own:
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 where other programs come first
        try:
            import ray
        except ImportError as exc:
            raise ConfigError(
                'executor.kind = "ray" needs Ray, which cannot be loaded here'
                f" ({exc}): pip install 'goldloop[ray]'."
            ) from exc
        if not ray.is_initialized():
            if not own:
                self._look_for_head()
            settings: dict[str, Any] = {"address": self._address}
            if own:
                # Ray's sockets lie in it, and a socket's path must be short.
                place = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108  (mkdtemp is safe)
                self._folder = Path(tempfile.mkdtemp(prefix="goldloop-ray-", dir=place))
                settings |= {
                    "num_cpus": cores(),
                    "include_dashboard": False,
                    "_temp_dir": str(self._folder),
                }
            try:
                with _signals_kept():
                    ray.init(**settings, configure_logging=False, log_to_driver=False)
            except Exception as exc:  # Ray raises many unrelated types here
                self._ours = True
                self._ray = ray
                self.close()
                raise self._no_connection(_why(exc)) from exc
            self._ours = True
        self._ray = ray
        self._said_by_ray = _into_the_log(ray)

    def _look_for_head(self) -> None:
        """A connection that Ray is refused would take it a minute, and end in many lines."""
        address = os.environ.get("RAY_ADDRESS", "auto")
        address = address if self._address == "auto" else self._address
        host, _, port = address.rpartition(":")
        if address == "auto" or not port.isdigit():
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError as exc:
            raise self._no_connection(exc.strerror or str(exc)) from exc

    def _no_connection(self, reason: str) -> LoopError:
        if self._address == "local":
            return MachineError(f"Ray cannot be started on this machine ({reason}).")
        if self._address == "auto":
            where = os.environ.get("RAY_ADDRESS")
            where = f"at RAY_ADDRESS = {where}" if where else "that this machine is part of"
            return ConfigError(
                f'executor.address = "auto": there is no Ray cluster {where} ({reason}). Run'
                " goldloop on a machine of the cluster (`ray start` makes it one), or set"
                ' executor.address = "local" for a Ray of its own on this machine.'
            )
        return ConfigError(
            f"executor.address = {self._address!r}: no Ray cluster answers there ({reason}). Name"
            " the head's address and port (6379 unless it was changed), and run goldloop on a"
            " machine of the cluster (`ray start --address` makes it one)."
        )

    def map(
        self,
        job: Job[Block, Result],
        blocks: Iterable[Block | None],
        resources: Resources,
        *,
        progress: Progress = no_progress,
        say: News = no_news,
    ) -> Generator[tuple[int, Result], None, None]:
        """See ``loop.ports.Executor``.

        Raises:
            ConfigError: no machine of the cluster has room for one worker.
        """
        self.connect()
        most = resources.workers or self.capacity(resources)
        if not most:
            raise ConfigError(self._no_room(resources))
        self._waited_since = time.monotonic()
        yield from self._crew(resources).map(job, blocks, most, progress, say)

    def _crew(self, resources: Resources) -> Crew:
        """The workers of this size; others make room for them."""
        size = (resources.cpus, resources.gpus)
        for other in [s for s in self._crews if s != size]:
            self._crews.pop(other).close()
        if size not in self._crews:
            actor = self._ray.remote(_Actor).options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=2,  # so that it can be told to tidy up while it works
            )
            place = str(self._folder) if self._folder else None
            self._crews[size] = Crew(
                lambda ready, tell: _Handle(self._ray, actor.remote(place), ready, tell),
                self._ray.put,
                lambda: self._still_none(resources),
                PATIENCE_S,
            )
        return self._crews[size]

    def capacity(self, resources: Resources) -> int:
        """How many workers the machines hold that the cluster has now, others' work apart."""
        count = 0
        for node in self._nodes():
            fits = [node.get("CPU", 0.0) / resources.cpus] if resources.cpus else []
            fits += [node.get("GPU", 0.0) / resources.gpus] if resources.gpus else []
            count += int(min(fits, default=1.0) + 1e-9)
        return count

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _still_none(self, resources: Resources) -> None:
        waited = time.monotonic() - self._waited_since
        if waited > START_S:
            raise MachineError(
                f"Ray started no worker within {waited / 60:.0f} minutes."
                f" {self._no_room(resources)}"
            )
        self._say(f"Waiting for the Ray cluster to have room for a worker ({waited:.0f} s).")

    def _no_room(self, resources: Resources) -> str:
        nodes = self._nodes()
        has = ", ".join(f"{sum(n.get(k, 0.0) for n in nodes):g} {k}s" for k in ("CPU", "GPU"))
        return (
            f"No machine of the Ray cluster has room for a worker with {resources.cpus:g} CPU and"
            f" {resources.gpus:g} GPU; its {len(nodes)} machines have {has} in all. Set"
            " executor.gpus_per_worker, wait for other work on the cluster to end, or, where the"
            " cluster grows by itself, set executor.workers."
        )

    def close(self) -> None:
        """Ends the actors, and the connection; a Ray of its own ends with it."""
        while self._crews:
            self._crews.popitem()[1].close()
        if self._ray is not None and self._ours:
            self._ray.shutdown()
        self._said_by_ray()
        self._ray, self._ours = None, False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Handle:
    """This side of one actor.

    Args:
        actor: its handle.
        ready: called once it runs.
        tell: told why it does not.
    """

    def __init__(self, ray: Any, actor: Any, ready: Callable[[], None], tell: Tell) -> None:
        self._ray, self._actor = ray, actor
        self.alive = True  # that it is dead is known once it is asked
        self._job: Any = None
        self._closed = False
        self._listen(self._wait, actor.ready.remote(), ready, tell)

    def load(self, job: Any) -> None:
        """The job goes along with the next block."""
        self._job = job

    def begin(self, block: Any, tell: Tell) -> None:
        """Hands a block over; what the actor says of it is passed on by a thread."""
        job, self._job = self._job, None
        packed = pickle.dumps(block, pickle.HIGHEST_PROTOCOL)
        self._listen(self._pass_on, self._actor.run.remote(job, packed), tell)

    def _listen(self, target: Callable[..., None], *args: Any) -> None:
        self._thread = threading.Thread(target=target, args=args, daemon=True)
        self._thread.start()

    def _wait(self, answer: Any, ready: Callable[[], None], tell: Tell) -> None:
        try:
            self._ray.get(answer)
        except Exception as exc:
            gone = self._ray.exceptions.RayActorError
            if isinstance(exc, gone) and not exc.actor_init_failed:
                self.alive = False
                tell("died", f"A Ray worker ended unexpectedly ({_first(exc)}).")
            elif not self._closed:
                tell("failed", _not_started(exc))
        else:
            ready()

    def _pass_on(self, words: Iterable[Any], tell: Tell) -> None:
        kind = ""
        try:
            for word in words:
                kind, what = self._ray.get(word)
                tell(kind, pickle.loads(what) if kind == "done" else what)  # noqa: S301  (our actor)
        except self._ray.exceptions.RayActorError as exc:
            reason = _first(exc)
        except Exception as exc:  # what Ray could not carry
            tell("failed", MachineError(f"Ray could not hand work to a worker: {_first(exc)}."))
            return
        else:
            if kind in ("done", "failed"):
                return
            reason = "Ray gives no reason"  # a killed actor's words may simply end
        self.alive = False
        tell("died", f"A Ray worker ended unexpectedly ({reason}).")

    def close(self) -> None:
        """Ends the actor, whatever it is doing."""
        self._closed = True
        with suppress(Exception):  # its machine may be gone
            if self.alive:
                self._ray.wait([self._actor.tidy.remote()], timeout=TIDY_S)
            self._ray.kill(self._actor)
        self._thread.join(timeout=TIDY_S)


class _Actor:
    """The worker's own side.

    Args:
        place: where its files go; None = where the machine has them.
    """

    def __init__(self, place: str | None) -> None:
        self._desk = Desk()
        self._folder = tempfile.mkdtemp(prefix="goldloop-", dir=place)
        tempfile.tempdir = self._folder  # of this process, which can be ended at any moment

    def ready(self) -> bool:
        """Whether it runs."""
        return True

    def tidy(self) -> None:
        """Removes all files that it has made; it is ended next."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, job: Any, block: bytes) -> Iterator[tuple[str, Any]]:
        """What is said of a block, see ``loop.executor.crew.Tell``; the result is pickled.

        Args:
            job: to be loaded first, or None for the one that is loaded.
        """
        if job is not None:
            self._desk.take(lambda: job)
        words: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        saying = _Saying(words)
        threading.Thread(
            target=self._desk.answer,
            args=(lambda: pickle.loads(block), saying.tell),  # noqa: S301  (from our handle)
            daemon=True,
        ).start()
        while True:
            kind, what = words.get()
            yield kind, what
            if kind in ("done", "failed"):
                return


class _Saying:
    """Passes on what is said, progress added up over ``NEWS_S``."""

    def __init__(self, words: queue.SimpleQueue[tuple[str, Any]]) -> None:
        self._words = words
        self._done, self._at = 0, time.monotonic()

    def tell(self, kind: str, what: Any) -> None:
        """See ``loop.executor.crew.Tell``."""
        if kind == "progress":
            self._done += what
            if time.monotonic() - self._at < NEWS_S:
                return
        if self._done:
            self._words.put(("progress", self._done))
            self._done, self._at = 0, time.monotonic()
        if kind == "done":
            what = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
        if kind != "progress":
            self._words.put((kind, what))


def _into_the_log(ray: Any) -> Callable[[], None]:
    """What Ray prints on stdout of dead workers goes to the log; stdout is data. Undoes it.

    Ray has no setting for this.
    """
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        return lambda: None

    def note(data: dict[str, Any], **_: Any) -> None:
        for line in data.get("lines", ()):
            log.info("Ray: %s", line)

    worker.print_to_stdstream = note

    def undo() -> None:
        worker.print_to_stdstream = before

    return undo


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_token() -> bool:
    """Whether this machine can show a cluster a token, wherever Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _why(exc: BaseException) -> str:
    """Why there is no connection; Ray itself keeps to which address there is none."""
    if "AuthenticationError" in f"{exc!r} {exc.__cause__!r}":
        return (
            "it does not take this machine's Ray token: bring the one that `ray get-auth-token`"
            " shows on the head to ~/.ray/auth_token here, or into RAY_AUTH_TOKEN"
        )
    return _first(exc)


def _first(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    return lines[0].strip().rstrip(".")[:300]


def _not_started(exc: BaseException) -> LoopError:
    missing = [line.strip() for line in str(exc).splitlines() if "No module named" in line]
    if missing:
        return MachineError(
            f"A Ray worker cannot be started ({missing[-1].rstrip('.')[:200]}). Install the same"
            " goldloop on every machine of the cluster."
        )
    return MachineError(f"A Ray worker cannot be started ({_first(exc)}).")
