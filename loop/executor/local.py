"""The executor of one machine: this process, or processes of one thread each beside it.

A worker is this Python with a pipe in and a pipe out. It stays alive between calls, because
importing torch and transformers costs seconds. A worker whose parent dies reads the end of its
pipe and leaves at once, even in the middle of its work; a parent whose worker dies reads the end of
the other one and says what the worker said last.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from loop.executor.crew import Crew, Desk, Tell
from loop.hardware import cores
from loop.ports import Job, News, Progress, Resources, no_news, no_progress

Block = TypeVar("Block")
Result = TypeVar("Result")

START = "from loop.executor.local import work; work()"


class LocalExecutor:
    """Workers on this machine: processes, or this process itself where one worker is asked for."""

    elsewhere = False

    def __init__(self) -> None:
        self._crew = Crew(_started, lambda job: pickle.dumps(job, pickle.HIGHEST_PROTOCOL))
        self._here: tuple[weakref.ref[Any], Callable[..., Any]] | None = None
        """The job that this process has loaded, for as long as somebody holds the job."""

    @property
    def room(self) -> Resources:
        """A process for each core."""
        return Resources(workers=cores())

    def map(
        self,
        job: Job[Block, Result],
        blocks: Iterable[Block | None],
        resources: Resources,
        *,
        progress: Progress = no_progress,
        say: News = no_news,
    ) -> Generator[tuple[int, Result], None, None]:
        """See ``loop.ports.Executor``; one worker is this process, which is not guarded."""
        most = cores() if resources.workers is None else resources.workers
        if most > 1:
            yield from self._crew.map(job, blocks, most, progress, say)
            return
        number = 0
        for block in blocks:
            if block is not None:
                yield number, self._loaded(job)(block, progress, say)
                number += 1

    def _loaded(self, job: Job[Block, Result]) -> Callable[[Block, Progress, News], Result]:
        if self._here is None or self._here[0]() is not job:
            self._put_away()
            work = job.load()
            self._here = weakref.ref(job, self._put_away), work
        return self._here[1]

    def _put_away(self, _job: object = None) -> None:
        work, self._here = self._here and self._here[1], None
        if (close := getattr(work, "close", None)) is not None:
            close()

    def close(self) -> None:
        """Ends every process."""
        self._crew.close()
        self._put_away()


def _started(ready: Callable[[], None], _tell: Tell) -> _Process:
    process = _Process()
    ready()  # a pipe takes a block before the process reads it
    return process


class _Process:
    """The parent's side of one process."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends us
        )
        self._tell: Tell | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def load(self, job: bytes) -> None:
        """Hands a pickled job over."""
        self._send(("job", job))

    def begin(self, block: Any, tell: Tell) -> None:
        """Hands a block over; a dead process is noticed by its reader."""
        self._tell = tell
        packed = pickle.dumps(block, pickle.HIGHEST_PROTOCOL)
        if not self._send(("block", packed)) or not self._reader.is_alive():
            tell("died", self._epitaph())

    def _send(self, message: tuple[str, bytes]) -> bool:
        stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        try:
            pickle.dump(message, stdin, protocol=pickle.HIGHEST_PROTOCOL)
            stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def _read(self) -> None:
        stdout: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        while True:
            try:
                kind, what = pickle.load(stdout)  # noqa: S301  (our own process)
            except Exception:  # it ended, or what it says makes no sense
                if self._tell is not None:
                    self._tell("died", self._epitaph())
                return
            if self._tell is not None:
                self._tell(kind, what)

    def _epitaph(self) -> str:
        """What a dead process said last."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        with suppress(ValueError):  # closed meanwhile: nobody reads this any more
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            hint = "; it may have run out of memory" if code == -9 else ""
            last = f" It ended with: {lines[-1][:300]}" if lines else ""
            return f"A worker process ended unexpectedly ({cause}{hint}).{last}"
        return "A worker process was ended."

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._tell = None
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # bytes that the dead process never read
                    stream.close()


def work() -> None:
    """The process's own side: reads jobs and blocks, answers; ends with its input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not disturb the answers
    orders: queue.Queue[tuple[str, bytes]] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, orders), daemon=True).start()

    def tell(kind: str, what: Any) -> None:
        pickle.dump((kind, what), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()

    desk = Desk()
    while True:
        kind, what = orders.get()
        if kind == "job":
            desk.take(_unpacked(what))
        else:
            desk.answer(_unpacked(what), tell)


def _unpacked(packed: bytes) -> Callable[[], Any]:
    return lambda: pickle.loads(packed)  # noqa: S301  (from our parent)


def _receive(stdin: IO[bytes], orders: queue.Queue[tuple[str, bytes]]) -> None:
    while True:
        try:
            orders.put(pickle.load(stdin))  # noqa: S301  (from our parent)
        except Exception:  # the parent is gone, or what it sends makes no sense: leave at once
            os._exit(1)
