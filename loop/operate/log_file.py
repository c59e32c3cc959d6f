"""A log file: each line with its time, level, campaign, round and stage, and without secrets.

What goldloop says on stderr goes in as well, so that the file tells the whole story. Several
processes may write to one file.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from loop.addresses import hidden, names_a_secret
from loop.errors import MachineError

MOST_BYTES, OLD_FILES = 10 * 2**20, 5
SECRET_LETTERS = 8  # a shorter value of a variable would hide ordinary words

said = logging.getLogger("goldloop.said")
"""What the terminal shows; it is printed there already, and goes to log files alone."""
said.propagate = False
said.addHandler(logging.NullHandler())


class _Where(logging.Filter):
    """Adds to each record where it belongs.

    A record whose ``place`` names a campaign, round or stage says so for those after it, up to one
    that ``leaves`` the stage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._place = dict.fromkeys(("campaign", "round", "stage"), "-")

    def filter(self, record: logging.LogRecord) -> bool:
        self._place.update(getattr(record, "place", {}))
        record.where = " ".join(f"{key}={value}" for key, value in self._place.items())
        if getattr(record, "leaves", False):
            self._place.update(round="-", stage="-")
        return True


class _Line(logging.Formatter):
    """One line, whatever the message holds; secrets of the environment are left out."""

    def __init__(self) -> None:
        super().__init__()
        values = {v for k, v in os.environ.items() if names_a_secret(k)}
        self._secrets = sorted((v for v in values if len(v) >= SECRET_LETTERS), key=len)[::-1]

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = hidden(super().format(record))
        for secret in self._secrets:
            text = text.replace(secret, "…")
        text = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda c: ascii(c[0])[1:-1], text)
        where = getattr(record, "where", "")
        return f"{at}.{int(record.msecs):03d}Z {record.levelname} {where} {text}"


class _File(RotatingFileHandler):
    """A file for its owner alone; one that another process has put aside is not written to."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(self.baseFilename, flags, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line; follows the file where it was rotated."""
        if self.stream is not None and not self._is_here(self.stream):
            self.stream.close()
            self.stream = self._open()
        super().emit(record)

    def _is_here(self, stream: TextIOWrapper) -> bool:
        with suppress(OSError):
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(stream.fileno()))
        return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk must not stop a round: one sentence, and no more lines."""
        logging.getLogger().removeHandler(self)
        said.removeHandler(self)
        reason = sys.exc_info()[1]
        print(
            f"The log file {self.baseFilename} cannot be written ({reason});"
            " nothing more is logged.",
            file=sys.stderr,
        )


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Appends to a log file meanwhile, and begins a new one every 10 MB; None logs nowhere.

    Raises:
        MachineError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = _File(path, maxBytes=MOST_BYTES, backupCount=OLD_FILES)
    except OSError as exc:
        raise MachineError(
            f"The log file {path} cannot be written: {exc.strerror}. Name another --log-file."
        ) from exc
    handler.setFormatter(_Line())
    handler.addFilter(_Where())
    root, ours = logging.getLogger(), [logging.getLogger(n) for n in ("loop", "connectors")]
    levels = [logger.level for logger in (*ours, said)]
    others: list[logging.Handler] = [handler]
    if not root.handlers and logging.lastResort is not None:
        others.append(logging.lastResort)  # what prints warnings while there is no other handler
    for added in others:
        root.addHandler(added)
    said.addHandler(handler)
    for logger in (*ours, said):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip((*ours, said), levels, strict=True):
            logger.setLevel(level)
        said.removeHandler(handler)
        for added in others:
            root.removeHandler(added)
        with suppress(OSError):  # a full disk, which was told already
            handler.close()
