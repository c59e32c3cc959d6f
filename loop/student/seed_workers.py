"""Processes that train seeds side by side on the CPU, one thread each.

A worker is this Python with a pipe in and a pipe out. It stays alive between calls, because
importing torch and transformers costs seconds. A worker whose parent dies reads the end of its
pipe and leaves at once, even in the middle of a training run; a parent whose worker dies reads
the end of the other one and says what the worker said last.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loop.errors import StudentError
from loop.ports import News, Progress, SeedResult, no_news

if TYPE_CHECKING:
    from loop.student.train_seed import Lesson

START = "from loop.student.seed_workers import work; work()"


def cores() -> int:
    """CPU cores that this process may use: its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        allowed = min(allowed or 1, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup here, or no quota ("max")
        pass
    return allowed or 1


class SeedWorkers:
    """A pool of training processes, started when first needed.

    Args:
        size: the most processes at a time.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[_Worker] = []

    def train(
        self,
        lesson: Lesson,
        seeds: Sequence[int],
        keep: Mapping[int, Path],
        on_seed: Callable[[SeedResult], None],
        progress: Progress,
        say: News = no_news,
    ) -> None:
        """Trains every seed; ``on_seed``, ``progress`` and ``say`` are called in this thread.

        Raises:
            StudentError: a seed failed or its process died; the others are stopped.
        """
        said: queue.Queue[tuple[_Worker, str, Any]] = queue.Queue()
        packed = pickle.dumps(lesson, protocol=pickle.HIGHEST_PROTOCOL)
        waiting, running = list(seeds), 0
        for worker in [w for w in self._workers if not w.alive]:
            self._workers.remove(worker)
            worker.close()
        try:
            while len(self._workers) < min(self.size, len(waiting)):
                self._workers.append(_Worker())
            for worker in self._workers[: len(waiting)]:
                worker.listen(said)
                worker.send(("lesson", packed))
                worker.send(("seed", waiting[0], keep.get(waiting[0])))
                waiting.pop(0)
                running += 1
            while running:
                worker, kind, what = said.get()
                if kind == "progress":
                    progress(what)
                elif kind == "news":
                    say(what)
                elif kind == "done":
                    running -= 1
                    if waiting:
                        worker.send(("seed", waiting[0], keep.get(waiting[0])))
                        waiting.pop(0)
                        running += 1
                    on_seed(what)
                elif kind == "failed":
                    raise StudentError(what)
                else:
                    raise StudentError(worker.epitaph())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends every process."""
        while self._workers:
            self._workers.pop().close()


class _Worker:
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
        self._said: queue.Queue[tuple[_Worker, str, Any]] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def listen(self, said: queue.Queue[tuple[_Worker, str, Any]]) -> None:
        """Where the worker's messages go from now on."""
        self._said = said
        if not self.alive:
            said.put((self, "died", None))

    def send(self, message: tuple[Any, ...]) -> None:
        """Hands a message over; a dead worker is noticed by its reader."""
        stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        try:
            pickle.dump(message, stdin, protocol=pickle.HIGHEST_PROTOCOL)
            stdin.flush()
        except (BrokenPipeError, ValueError):
            if self._said is not None:
                self._said.put((self, "died", None))

    def _read(self) -> None:
        stdout: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        while True:
            try:
                kind, what = pickle.load(stdout)  # noqa: S301  (our own process)
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):
                kind, what = "died", None
            if self._said is not None:
                self._said.put((self, kind, what))
            if kind == "died":
                return

    def epitaph(self) -> str:
        """What a dead worker said last."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "; it may have run out of memory" if code == -9 else ""
        last = f" It ended with: {lines[-1][:300]}" if lines else ""
        return f"A training process ended unexpectedly ({cause}{hint}).{last}"

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._said = None
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # bytes that the dead process never read
                    stream.close()


def work() -> None:
    """The worker's side: reads seeds, trains them, answers; ends with its input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not disturb the answers
    orders: queue.Queue[tuple[Any, ...]] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, orders), daemon=True).start()

    def answer(kind: str, what: Any) -> None:
        pickle.dump((kind, what), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()

    def progress(done: int) -> None:
        answer("progress", done)

    def news(line: str) -> None:
        answer("news", line)

    from loop.student.train_seed import train_seed

    lesson: Any = None
    while True:
        kind, *rest = orders.get()
        if kind == "lesson":
            lesson = pickle.loads(rest[0])  # noqa: S301  (from our parent)
            continue
        seed, keep = rest
        try:
            answer("done", train_seed(lesson, seed, keep, progress, news))
        except StudentError as exc:
            answer("failed", str(exc))


def _receive(stdin: IO[bytes], orders: queue.Queue[tuple[Any, ...]]) -> None:
    while True:
        try:
            orders.put(pickle.load(stdin))  # noqa: S301  (from our parent)
        except Exception:  # the parent is gone, or what it sends makes no sense: leave at once
            os._exit(1)
