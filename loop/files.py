"""Files and folders that appear whole or not at all, and locks; what is not ours is never touched.

Everything is first written under a name that nobody can guess, in a file that did not exist
(O_EXCL) and is no link (O_NOFOLLOW), and then renamed. So a reader never sees half a file, a full
disk leaves the old one, and a link that somebody laid in the way is replaced and never followed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from loop.errors import LoopError

PRIVATE = 0o600  # what a campaign writes for itself: texts, labels, settings
SHARED = 0o666  # what a user asked for by name; the umask takes its part, as with any program


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextmanager
def replacing(path: Path, *, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` on success and vanishes on failure.

    Raises:
        OSError: no space, no permission, or ``path`` is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EEXIST, "it is a pipe or a device, and would be replaced")
    partial = _beside(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(partial, flags, mode)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def appending(path: Path, *, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """The file's end, to write to; made if need be, and on the disk when the block ends.

    Raises:
        OSError: no space, no permission, or ``path`` is a folder or a link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "ab") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def as_text_file(file: IO[bytes], *, newline: str = "\n") -> Iterator[IO[str]]:
    r"""Writes text in UTF-8 to a file of bytes, which stays open.

    Args:
        newline: what ``\n`` becomes; empty leaves line breaks as they are.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline=newline)
    try:
        yield text
        text.flush()
    finally:
        with suppress(OSError, ValueError):  # what the last bytes met is raised above
            text.detach()


@contextmanager
def replacing_text(path: Path, *, mode: int = PRIVATE, newline: str = "\n") -> Iterator[IO[str]]:
    """:func:`replacing` for text, as :func:`as_text_file`."""
    with replacing(path, mode=mode) as file, as_text_file(file, newline=newline) as text:
        yield text


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` on success and vanishes on failure.

    Raises:
        OSError: no space or no permission; what was at ``path`` is there again.
    """
    part = _beside(path)
    old = part.with_suffix(".old")
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def write_whole(path: Path, content: str, *, mode: int = PRIVATE) -> None:
    """Writes a text file; its folder is made if need be.

    Raises:
        LoopError: the file cannot be written; the one that was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_text(path, mode=mode, newline="") as file:
            file.write(content)
    except OSError as exc:
        raise LoopError(
            f"{path} cannot be written: {exc.strerror or exc}. Correct that, or name another place:"
            " with --out where the command takes it, else with store.folder."
        ) from exc


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left half-written beside ``path``; hold its lock."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, meanwhile: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends; the file's content stays.

    Args:
        meanwhile: called twice a second while somebody else holds the lock.
    Raises:
        OSError: no permission, or ``path`` is a link.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        while meanwhile is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                meanwhile()
                time.sleep(0.5)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    """The new name survives a power cut, where the file system can promise that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
