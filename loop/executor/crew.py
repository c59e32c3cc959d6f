"""Hands blocks to workers and takes their results: alike for processes and for Ray's actors.

The promises of ``loop.ports.Executor`` are kept here: a block is taken when a worker is free for
it, a dead worker's block is given to another one once, and what failed is one sentence.
"""

from __future__ import annotations

import queue
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from loop.errors import AGAIN, LoopError, MachineError, foreign
from loop.ports import Job, News, Progress

Block = TypeVar("Block")
Result = TypeVar("Result")

LIVES = 2
"""Workers that may die over one block."""

Tell = Callable[[str, Any], None]
"""What a worker says of its block, from any thread: ``progress`` (how many items), ``news`` (a
line), and at last one of ``done`` (the result), ``failed`` (a LoopError) and ``died`` (a line)."""


class Worker(Protocol):
    """One worker, as seen by who hands blocks to it."""

    @property
    def alive(self) -> bool:
        """False where it is known to be dead."""
        ...

    def load(self, job: Any) -> None:
        """Gives it a job, as ``pack`` made it, for the blocks to come."""
        ...

    def begin(self, block: Any, tell: Tell) -> None:
        """Gives it a block."""
        ...

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        ...


@dataclass
class _Run:
    """A block on its way.

    Attributes:
        lives: workers that it may still cost.
        told: progress that was passed on.
        done: progress of the present worker, which may do again what a dead one did.
    """

    number: int
    block: Any
    lives: int = LIVES
    told: int = 0
    done: int = 0


class Crew:
    """Workers that are started when they are first needed, and stay.

    Args:
        start: starts a worker; ``ready`` is to be called, from any thread, once it can be given a
            block, or ``tell`` with what keeps it from being so: ``failed`` or ``died``.
        pack: makes a job ready to be sent.
        patience: asked every ``patience_s`` seconds while there is no worker at all; raises a
            LoopError where it is no use to wait on.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], None], Tell], Worker],
        pack: Callable[[Any], Any],
        patience: Callable[[], None] = lambda: None,
        patience_s: float | None = None,
    ) -> None:
        self._start, self._pack = start, pack
        self._patience, self._patience_s = patience, patience_s
        self.workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._coming: dict[Worker, threading.Event] = {}
        """Set once the worker was ready for its first block."""
        self._unborn: list[tuple[Worker, str, Any]] = []
        """Workers that will never be ready, and why."""
        self._stillborn = 0  # one after the other
        self._maps: list[queue.SimpleQueue[tuple[Worker | None, str, Any]]] = []
        """What is said to the maps under way, all of which wait for the same workers."""
        self._lock = threading.Lock()
        self._holds: dict[Worker, weakref.ref[Any]] = {}
        """Which job each has; weakly, because jobs are large."""

    def map(
        self,
        job: Job[Block, Result],
        blocks: Iterable[Block | None],
        most: int,
        progress: Progress,
        say: News,
    ) -> Generator[tuple[int, Result], None, None]:
        """See ``loop.ports.Executor``; ``most`` workers at a time.

        A map may be run to its end while another one waits for its next block.
        """
        said: queue.SimpleQueue[tuple[Worker | None, str, Any]] = queue.SimpleQueue()
        running: dict[Worker, _Run] = {}
        waiting: list[_Run] = []
        source, more, taken, packed = iter(blocks), True, 0, None
        self._maps.append(said)
        try:
            while True:
                self._drop_dead(running)
                self._drop_unborn()
                held = False  # the next block depends on results to come
                while more and not held and len(waiting) < most - len(running):
                    block = next(source, self)
                    if block is self:
                        more = False
                    elif block is None:
                        held = True
                    else:
                        waiting.append(_Run(taken, block))
                        taken += 1
                while len(waiting) > self._free() and len(self.workers) < most:
                    self._hire()
                while waiting and self._idle:
                    worker, run = self._idle.pop(), waiting.pop(0)
                    running[worker], run.done = run, 0
                    holds = self._holds.get(worker)
                    if holds is None or holds() is not job:
                        packed = self._pack(job) if packed is None else packed
                        worker.load(packed)
                        self._holds[worker] = weakref.ref(job)
                    worker.begin(run.block, _teller(said, worker))
                if not running and not waiting:
                    if more:
                        raise ValueError("a block depends on results, but none is under way")
                    return
                speaker, kind, what = self._next_word(said, idle=not running)
                if speaker is None or speaker not in running:
                    continue  # a worker is ready, or never will be, or says twice that it died
                run = running[speaker]
                if kind == "progress":
                    run.done += what
                    if run.done > run.told:
                        progress(run.done - run.told)
                        run.told = run.done
                elif kind == "news":
                    say(what)
                elif kind == "done":
                    del running[speaker]
                    self._idle.append(speaker)
                    yield run.number, what
                elif kind == "failed":
                    raise what
                else:
                    del running[speaker]
                    self._dismiss(speaker)
                    run.lives -= 1
                    if not run.lives:
                        raise MachineError(
                            f"{what} It happened twice over the same block of work, which is not"
                            f" tried again. Mend the cause, {AGAIN}."
                        )
                    say(f"{what} Its block of work is done once more.")
                    waiting.insert(0, run)
        except GeneratorExit:  # nobody wants the rest
            if running:
                self.close()
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._maps.remove(said)

    def _next_word(
        self, said: queue.SimpleQueue[tuple[Worker | None, str, Any]], *, idle: bool
    ) -> tuple[Worker | None, str, Any]:
        while True:
            try:
                return said.get(timeout=self._patience_s if idle else None)
            except queue.Empty:
                self._patience()

    def _hire(self) -> None:
        """Starts a worker; it is idle once it says so, which may be at once or much later."""
        ready, kept = threading.Event(), threading.Event()
        why: list[tuple[str, Any]] = []

        def is_ready() -> None:
            with self._lock:
                ready.set()
                self._stillborn = 0
                if kept.is_set() and worker in self.workers:
                    self._idle.append(worker)
            self._wake()

        def is_not(kind: str, what: Any) -> None:
            with self._lock:
                why.append((kind, what))
                if kept.is_set():
                    self._unborn.append((worker, kind, what))
            self._wake()

        worker = self._start(is_ready, is_not)
        with self._lock:
            kept.set()
            self.workers.append(worker)
            self._unborn += [(worker, kind, what) for kind, what in why]
            if ready.is_set():
                self._idle.append(worker)
            self._coming[worker] = ready

    def _wake(self) -> None:
        """Has every map look again; who waits need not be who hired."""
        for said in list(self._maps):
            said.put((None, "look", None))

    def _drop_unborn(self) -> None:
        """Forgets workers that died before they were ready, so that others come in their place.

        Raises:
            LoopError: none can be started, or each dies.
        """
        with self._lock:
            unborn, self._unborn = self._unborn, []
        for worker, kind, what in unborn:
            if worker not in self.workers:
                continue
            self._dismiss(worker)
            if kind == "failed":
                raise what
            self._stillborn += 1
            if self._stillborn >= LIVES:
                raise MachineError(
                    f"{what} It happened to {LIVES} workers one after the other while they were"
                    f" started. Mend the cause, {AGAIN}."
                )

    def _free(self) -> int:
        """Workers that have nothing to do, and those that are being started."""
        with self._lock:
            coming = sum(not ready.is_set() for ready in self._coming.values())
            return len(self._idle) + coming

    def _drop_dead(self, running: dict[Worker, _Run]) -> None:
        for worker in [w for w in self._idle if w not in running and not w.alive]:
            self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        with self._lock:
            self.workers.remove(worker)
            if worker in self._idle:
                self._idle.remove(worker)
        self._coming.pop(worker, None)
        self._holds.pop(worker, None)
        worker.close()

    def close(self) -> None:
        """Ends every worker."""
        with self._lock:
            workers, self.workers = self.workers, []
            self._idle.clear()
            self._unborn.clear()
        self._coming.clear()
        self._holds.clear()
        for worker in workers:
            worker.close()


def _teller(said: queue.SimpleQueue[tuple[Worker | None, str, Any]], worker: Worker) -> Tell:
    return lambda kind, what: said.put((worker, kind, what))


class Desk:
    """A worker's own side: holds a job and answers blocks."""

    def __init__(self) -> None:
        self._job: Callable[[], Any] | None = None
        self._work: Any = None

    def take(self, job: Callable[[], Any]) -> None:
        """Puts the old job away; the new one is loaded with its first block.

        Args:
            job: gives the job.
        """
        close = getattr(self._work, "close", None)
        self._work, self._job = None, job
        if close is not None:
            close()

    def answer(self, block: Callable[[], Any], tell: Tell) -> None:
        """Answers a block, or says in one sentence why it cannot.

        Args:
            block: gives the block.
        """
        try:
            if self._work is None and self._job is not None:
                self._work = self._job().load()
            result = self._work(block(), lambda n: tell("progress", n), lambda x: tell("news", x))
        except Exception as exc:  # the job's own code, and what it loads, may raise anything
            tell("failed", one_sentence(exc))
        else:
            tell("done", result)


def one_sentence(exc: Exception) -> LoopError:
    """What a job raised, with the traceback as a note for ``--debug``."""
    error = foreign(exc)
    error.add_note("".join(traceback.format_exception(exc)))
    return error
