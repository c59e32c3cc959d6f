"""What the HTTP server bears: how many connections, for how long, under which names, with what log.

uvicorn's own settings end connections that stay silent after an answer; they know no limit for one
that never asks. ``limit_concurrency`` answers what is too much, a line in the log each time,
instead of closing it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64  # Label Studio and a few people; well below 256 open files
HEAD_S = 10.0  # from the connection, or the last answer, to the end of a request's head
MAX_HEAD_BYTES = 16 * 1024
WRITE_S = 20.0  # in which a client must take some of an answer that waits for it
QUIET_S = 5  # how long a connection is kept for another request
LOG_EVERY_S = 60.0


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with limits of connections, and of the time to send a request and take an answer."""

    _clock: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Closes at once what is too much: an answer would only cost more."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._set_clock()

    def data_received(self, data: bytes) -> None:
        """Data of a head do not stop the clock; its end does."""
        super().data_received(data)
        self._set_clock()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of a body that nobody reads any more."""
        super().on_response_complete()
        self._set_clock()

    def pause_writing(self) -> None:
        """The client does not take what was written: another clock runs."""
        super().pause_writing()
        if self._taking is None:
            self._taking = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._stop_taking()
        super().resume_writing()

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of the clocks."""
        self._stop_taking()
        self._stop_clock()
        super().connection_lost(exc)

    def _set_clock(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def is_own_host(header: str, names: Collection[str]) -> bool:
    """Whether a request's ``Host`` is this server's.

    A page of somebody else's, whose name is made to lead here (DNS rebinding), sends its own name.
    An address in numbers cannot be made to lead elsewhere.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class _Seldom(logging.Filter):
    """Lets each kind of line through once in a while, so that no client can fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], float] = {}  # by the line of code that logs

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._last.get(kind, -LOG_EVERY_S) < LOG_EVERY_S:
            return False
        self._last[kind] = now
        return True


@contextmanager
def seldom_logged(*names: str) -> Iterator[None]:
    """The loggers repeat themselves at most once a minute."""
    seldom = _Seldom()
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(seldom)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(seldom)
