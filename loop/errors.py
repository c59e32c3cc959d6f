"""Every error that goldloop raises on purpose.

    LoopError                what the user can act on: one sentence, exit code 1
    ├── ConfigError          the campaign file is wrong
    ├── DataError            the texts, labels or votes are wrong
    ├── StoreError           the store cannot be opened, or holds another campaign
    │   ├── NoStoreError     there is no store yet to read from
    │   ├── NoRoomError      the disk that it lies on is full, or fails
    │   └── BusyError        another process is writing to this campaign
    ├── AnnotatorError       the LLM cannot be loaded, or answers badly
    ├── ReviewerError        where people label is down, refuses the token, or answers badly
    │   └── ProjectGoneError the campaign's project is not there
    ├── StudentError         the encoder cannot be loaded or trained
    ├── FetchError           a package, model or archive cannot be fetched, or has a wrong hash
    ├── StageError           a command was given at a stage where it makes no sense
    ├── MachineError         no room, no permission, no memory, no network, or a broken installation
    └── UnforeseenError      a fault of goldloop's own, or of a library that it did not expect

    Stopped                  Ctrl-C or a request to end; no Exception, so that nothing swallows it

What libraries raise is turned into one of these by :func:`foreign`, where goldloop is called from:
the command line, and the methods of ``Campaign``.
Arrays of a wrong shape or range raise ``ValueError``; those are bugs, not user errors.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class LoopError(Exception):
    """An error with one sentence that says what happened and what to do."""


class ConfigError(LoopError):
    """The campaign file is wrong."""


class DataError(LoopError):
    """The texts, labels or votes are wrong."""


class StoreError(LoopError):
    """The store cannot be opened, or holds something else."""


class NoStoreError(StoreError):
    """There is no store yet to read from."""


class NoRoomError(StoreError):
    """The disk that the store lies on is full, or fails."""


class BusyError(StoreError):
    """Another process is writing to this campaign."""


class AnnotatorError(LoopError):
    """The LLM cannot be loaded, or answers badly.

    Attributes:
        tokens: computed, taken out of a cache, and written before it failed, as far as the LLM
            told; ``computed`` holds the written ones.
    """

    def __init__(self, sentence: str, *, tokens: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__(sentence)
        self.tokens = tokens


class ReviewerError(LoopError):
    """Where people label cannot be reached, refuses the token, or answers badly."""


class ProjectGoneError(ReviewerError):
    """The campaign's project was deleted, or is on another server."""


class StudentError(LoopError):
    """The encoder cannot be loaded or trained."""


class FetchError(LoopError):
    """A package, model or archive cannot be fetched, or its hash is wrong."""


class StageError(LoopError):
    """A command was given at a stage where it makes no sense."""


class MachineError(LoopError):
    """The machine has no room, memory, permission or network, or the installation is broken."""


class UnforeseenError(LoopError):
    """Something that nobody expected: a fault to report."""


class Stopped(BaseException):
    """Ctrl-C, or the system's request to end.

    Attributes:
        signal: its number.
        tokens: as of an ``AnnotatorError``, where it stopped an LLM of which no answer is under way
            any more; else None.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal
        self.tokens: tuple[int, int, int] | None = None


ENDING = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP"))
"""Requests to end: Ctrl-C, the system's, and a terminal that was closed; as far as it has them."""


UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)

AT_THE_SECOND = b"""
Stopping: what is under way and paid for is stored first. To stop at once and lose it, stop again.
"""


@contextmanager
def stoppable() -> Iterator[None]:
    """The first and the third request to end become ``Stopped``, where nothing else handles them.

    The second only says so: shells and ``timeout`` send theirs twice, and what was paid for is
    being stored meanwhile.
    """
    asked = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            with suppress(OSError):  # not print(): the stream may be in the middle of a line
                os.write(2, AT_THE_SECOND)
            return
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:  # nohup and shells may ask that some are ignored
            if signal.getsignal(number) in UNHANDLED:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_later() -> Iterator[None]:
    """A request to end that comes meanwhile is answered when this is left, not in its middle.

    For what is paid and must be stored: an exception between two lines would leave open whether it
    is. In another thread than the main one, which no signal interrupts, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in ENDING}
    came: list[int] = []
    waits = True

    def handle(number: int, frame: FrameType | None) -> None:
        # Once left, it passes on: an exception may keep it from being taken out below.
        handler = usual[signal.Signals(number)]
        if waits:
            came.append(number)
        elif callable(handler):
            handler(number, frame)

    try:
        for number, handler in usual.items():
            if callable(handler):
                signal.signal(number, handle)
        yield
    finally:
        waits = False
        for number, handler in usual.items():
            if callable(handler):
                signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)


# what libraries raise


AGAIN = "then run the same command again: it continues where it stopped"


def suggestion(word: object, known: Iterable[object], *, begins: bool = False) -> str:
    """`` did you mean 'x'?`` with a leading space, or nothing; upper and lower case are alike.

    A name that looks like the word, but has other letters in Unicode, is shown in their numbers.

    Args:
        begins: whether it begins a sentence.
    """
    names = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).lower(), list(names), n=1, cutoff=0.6)
    if not close:
        return ""
    name = names[close[0]]
    alike = unicodedata.normalize("NFKC", name) == unicodedata.normalize("NFKC", str(word))
    return f" {'D' if begins else 'd'}id you mean {ascii(name) if alike else repr(name)}?"


def counted(n: int, noun: str) -> str:
    """``1 text``, ``2 texts``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def foreign(exc: BaseException) -> LoopError:
    """What a library or the system raised, as one sentence that says what to do.

    Classes are known by name, so that nothing heavy is imported to look at an error. The nearest
    class that is known decides.
    """
    if isinstance(exc, LoopError):
        return exc
    for cls in type(exc).__mro__:
        if told := _TOLD.get(f"{cls.__module__}.{cls.__qualname__}"):
            return told(exc)
    if _says_no_memory(exc):
        return _memory(exc)
    what = " ".join(_first_line(exc).split())[:200]
    return UnforeseenError(
        f"goldloop met something that it did not expect ({type(exc).__name__}"
        f"{f': {what}' if what else ''}). Your data are kept. Please report it, with what"
        " `goldloop --debug` and the rest of the same command prints."
    )


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [""])[0].rstrip(".")


def _says_no_memory(exc: BaseException) -> bool:
    said = str(exc).lower()
    return isinstance(exc, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said
    )


def _memory(_exc: BaseException) -> LoopError:
    return MachineError(
        "The machine has too little memory for this. Close other programs, or lower"
        f" student.batch_size, student.max_tokens and annotator.batch_size; {AGAIN}."
    )


def _depth(_exc: BaseException) -> LoopError:
    return DataError(
        "Something is nested too deeply to be read: lists within lists, or a formula in a file of"
        " yours. Write it flatter. If nothing of yours is nested, please report it with what"
        " `goldloop --debug` prints."
    )


def _too_large(exc: BaseException) -> LoopError:
    return DataError(
        f"A number is too large for this machine ({_first_line(exc)}). Look for it in the campaign"
        " file, in the command's options and in the columns of the texts, and make it smaller."
    )


def _encoding(exc: BaseException) -> LoopError:
    if isinstance(exc, UnicodeDecodeError):
        return DataError(
            f"A file is not in UTF-8 (byte {exc.start} of what was read); save it as UTF-8 and try"
            " again."
        )
    return MachineError(
        "A file, or its name, cannot take a character that goldloop writes; set PYTHONUTF8=1,"
        f" {AGAIN}."
    )


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_OPEN_FILES = {errno.EMFILE, errno.ENFILE}
_NETWORK = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
}


def _system(exc: BaseException) -> LoopError:
    number = getattr(exc, "errno", None)
    name = getattr(exc, "filename", None)
    place = "" if name is None else f" ({name})"
    reason = getattr(exc, "strerror", None) or _first_line(exc) or type(exc).__name__
    if isinstance(exc, ConnectionError | TimeoutError) and number not in (None, errno.EPIPE):
        return _network(exc)
    if number in _NO_ROOM:
        text = f"There is no room left to write{place}. Free some space, {AGAIN}."
    elif number in _FORBIDDEN:
        text = f"This user may not read or write here{place}. Change the permissions, {AGAIN}."
    elif number == errno.EROFS:
        text = f"This place can only be read{place}: name another one, or mount it for writing."
    elif number in _OPEN_FILES:
        text = f"Too many files are open at once. Raise the limit with `ulimit -n 4096`, {AGAIN}."
    elif number == errno.ENOMEM:
        return _memory(exc)
    elif number == errno.EPIPE or isinstance(exc, BrokenPipeError):
        text = (
            "What reads goldloop's output, or a program that it started, has ended before goldloop"
            " did; the rest was not written. Run the command again without it."
        )
    elif number == errno.ENOENT:
        text = f"A file is not there{place}. Put it back, {AGAIN}."
    elif number in _NETWORK:
        return _network(exc)
    else:
        text = f"The system refused: {reason}{place}. Correct that, {AGAIN}."
    return MachineError(text)


def _network(exc: BaseException) -> LoopError:
    return MachineError(
        f"A server cannot be reached, or broke off ({type(exc).__name__}). See whether it runs and"
        f" whether its address is right, {AGAIN}."
    )


def _database(exc: BaseException) -> LoopError:
    own = getattr(exc, "orig", None) or exc
    said = _first_line(own)
    low = said.lower()
    if "is full" in low or "no space left" in low or "disk quota" in low:
        text = f"There is no room left for the store. Free some space, {AGAIN}."
    elif "locked" in low:
        text = f"Another program holds the store. Close what else has it open, {AGAIN}."
    elif "readonly" in low or "read-only" in low:
        text = f"The store can only be read. Make it and its folder writable, {AGAIN}."
    elif "malformed" in low or "not a database" in low:
        text = f"The store is damaged ({said}). Put back a copy of it, {AGAIN}."
    elif "connection" in low or "server closed" in low:
        text = f"The connection to the store is lost ({said}). See whether it runs, {AGAIN}."
    else:
        what = said if own is not exc else ""
        text = (
            f"The store refused what goldloop asked of it ({type(own).__name__}"
            f"{f': {what}' if what else ''}). What was asked is undone; run the same command again."
            " If it comes back, please report it with what `goldloop --debug` prints."
        )
    return StoreError(text)


def _table(exc: BaseException) -> LoopError:
    return DataError(
        f"A table cannot be read or written ({_first_line(exc)[:200]}). Write the file again, or"
        " convert it to CSV or JSONL."
    )


def _package(exc: BaseException) -> LoopError:
    name = getattr(exc, "name", None) or _first_line(exc)
    return MachineError(
        f"A package is missing or broken ({name}). Install goldloop again from its folder, with the"
        " extras that you use: `pip install --force-reinstall .`, or `make .venv/.ready`."
    )


def _program(exc: BaseException) -> LoopError:
    command = getattr(exc, "cmd", None)
    name = f" ({command[0]})" if isinstance(command, list | tuple) and command else ""
    return MachineError(
        f"Another program{name} failed ({type(exc).__name__}). See what it printed, {AGAIN}."
    )


def _weights(exc: BaseException) -> LoopError:
    return StudentError(
        f"A file with a model's weights is broken ({_first_line(exc)[:200]}). Delete its folder,"
        f" {AGAIN}."
    )


def _label_studio(exc: BaseException) -> LoopError:
    return ReviewerError(  # its text holds the request's headers
        f"Label Studio refused a request (status {getattr(exc, 'status_code', None)}). See whether"
        f" it runs and whether the token is right, {AGAIN}."
    )


_TOLD: dict[str, Callable[[BaseException], LoopError]] = {
    "builtins.MemoryError": _memory,
    "builtins.RecursionError": _depth,
    "builtins.OverflowError": _too_large,
    "builtins.UnicodeError": _encoding,
    "builtins.OSError": _system,
    "builtins.ImportError": _package,
    "torch.OutOfMemoryError": _memory,
    "sqlalchemy.exc.SQLAlchemyError": _database,
    "sqlalchemy.exc.EmulatedDBAPIException": _database,
    "sqlite3.Error": _database,
    "psycopg.Error": _database,
    "alembic.util.exc.CommandError": _database,
    "httpx.HTTPError": _network,
    "httpx.StreamError": _network,
    "httpx.InvalidURL": _network,
    "httpx.CookieConflict": _network,
    "httpx2.HTTPError": _network,
    "httpx2.StreamError": _network,
    "httpx2.InvalidURL": _network,
    "httpx2.CookieConflict": _network,
    "httpcore.TimeoutException": _network,
    "httpcore.NetworkError": _network,
    "httpcore.ProtocolError": _network,
    "httpcore.ProxyError": _network,
    "httpcore.UnsupportedProtocol": _network,
    "httpcore.ConnectionNotAvailable": _network,
    "http.client.HTTPException": _network,
    "requests.exceptions.RequestException": _network,
    "urllib.error.URLError": _network,
    "socket.gaierror": _network,
    "ssl.SSLError": _network,
    "huggingface_hub.errors.HfHubHTTPError": _network,
    "pyarrow.lib.ArrowException": _table,
    "_csv.Error": _table,
    "zlib.error": _table,
    "zipfile.BadZipFile": _table,
    "tarfile.TarError": _table,
    "subprocess.SubprocessError": _program,
    "safetensors._safetensors_rust.SafetensorError": _weights,
    "safetensors_rust.SafetensorError": _weights,
    "label_studio_sdk.core.api_error.ApiError": _label_studio,
}
