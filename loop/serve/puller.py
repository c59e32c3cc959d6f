"""The one thread of ``goldloop serve`` that pulls: after a hint, and now and then by itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from loop.errors import BusyError, foreign

log = logging.getLogger(__name__)

UNHEALTHY = 2  # failures in a row; one may be a server that is started anew
DEBOUNCE_S = 2.0  # hints that come within this time cause one pull
POLL_S = 60.0  # webhooks get lost


class Pulls(NamedTuple):
    """How pulling went since the start.

    Attributes:
        since_good_s: seconds since the last pull that worked, or since the start.
    """

    good: int
    failed: int
    failed_in_a_row: int
    since_good_s: float


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
        self._failed_pulls = 0
        self._in_a_row = 0
        self._last_failure = ""  # another goldloop at work is none
        self._good_at = time.monotonic()

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

    @property
    def counts(self) -> Pulls:
        """How it went so far; another goldloop at work is no failure."""
        since_s = time.monotonic() - self._good_at
        return Pulls(self.pulls, self._failed_pulls, self._in_a_row, since_s)

    @property
    def sick(self) -> str | None:
        """Why answers are not read any more, in one sentence; None while they are."""
        if self._in_a_row < UNHEALTHY:
            return None
        return (
            f"The last {self._in_a_row} attempts to read people's answers failed:"
            f" {self._last_failure}"
        )

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
            except Exception as exc:  # the server must live on; the next poll tries again
                log.debug("pulling failed", exc_info=True)
                self._failed_pulls += 1
                self._in_a_row += 1
                self._last_failure = str(foreign(exc))
                self._failed(self._last_failure)
            else:
                self.failure = None
                self._in_a_row = 0
                self._good_at = time.monotonic()
                self.last_pull = datetime.now(UTC)
                self.pulls += 1

    def _failed(self, sentence: str) -> None:
        if sentence != self.failure:
            self._say(sentence)
        self.failure = sentence
