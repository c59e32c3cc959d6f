"""Files and folders that appear whole or not at all, and locks; what is not ours is never touched.

Everything is first written under a name that nobody can guess, in a file that did not exist
(O_EXCL) and is no link (O_NOFOLLOW), and then renamed. So a reader never sees half a file, a full
disk leaves the old one, and a link that somebody laid in the way is replaced and never followed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import re
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


_PART = re.compile(r"\.(.+)\.([0-9a-f]{12})\.(part|old)(?:-wal|-shm|-journal)?", re.DOTALL)
"""A half-written file or folder, or what it was to replace: whose, a number, and which."""


def beside(path: Path) -> Path:
    """A name for what shall take the place of ``path``, which nobody can guess."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextmanager
def held(part: Path) -> Iterator[None]:
    """Tells every process that ``part`` is being written, until the block or the process ends."""
    handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _hold(handle)
        yield
    finally:
        os.close(handle)


def _hold(handle: int) -> None:
    with suppress(OSError):  # where there are no locks, nobody takes a part for left over either
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(part: Path) -> bool:
    try:
        handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's: nobody here can tell
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def replacing(path: Path, *, mode: int = PRIVATE) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` on success and vanishes on failure.

    Raises:
        OSError: no space, no permission, or ``path`` is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EEXIST, "it is a pipe or a device, and would be replaced")
    partial = beside(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(partial, flags, mode)
    try:
        with os.fdopen(handle, "w+b") as file:
            _hold(file.fileno())
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

    What comes to ``path`` while it is being written is not replaced.

    Raises:
        OSError: no space or no permission, or something has come to ``path`` meanwhile; what was
            there is there still.
    """
    put_back(path)
    part = beside(path)
    old = part.with_suffix(".old")
    replaces = path.is_dir() and (path.is_symlink() or any(path.iterdir()))
    part.mkdir()
    try:
        with held(part):
            yield part
            if not replaces:
                part.rename(path)  # the system refuses to replace what holds anything
            elif not _exchanged(part, path):
                if path.exists():
                    path.rename(old)
                part.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(part)
        remove(old)
    _sync(path.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot, and nothing was done."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def leftovers(folder: Path, ours: Callable[[str], bool] = lambda _name: True) -> list[Path]:
    """What killed processes left half-written in a folder, and no process is writing now.

    Args:
        ours: of which files and folders, by name.
    """
    return [
        path
        for path, name, kind in _parts(folder, ours)
        if kind == "part" or os.path.lexists(folder / name)
    ]


def moved_away(folder: Path, ours: Callable[[str], bool] = lambda _name: True) -> list[Path]:
    """Names that lack their folder: a process was killed before the new one took its place."""
    return sorted(
        {
            folder / name
            for _, name, kind in _parts(folder, ours)
            if kind == "old" and not os.path.lexists(folder / name)
        }
    )


def _parts(folder: Path, ours: Callable[[str], bool]) -> Iterator[tuple[Path, str, str]]:
    """Each part that no process holds: its path, whose it is, and whether it is new or old."""
    for path in sorted(folder.glob(".*")):
        form = _PART.fullmatch(path.name)
        if form is None or path.is_symlink() or not ours(form[1]):
            continue
        if not _is_held(folder / f".{form[1]}.{form[2]}.part"):
            yield path, form[1], form[3]


def put_back(path: Path) -> None:
    """Gives a folder its name again that a process moved away and was then killed."""
    if os.path.lexists(path):
        return
    moved = [p for p, _, kind in _parts(path.parent, path.name.__eq__) if kind == "old"]
    if moved:
        max(moved, key=lambda old: old.stat().st_mtime_ns).rename(path)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left half-written beside ``path``; hold its lock.

    Where they left nothing else of ``path``, what they were to replace is put back.
    """
    put_back(path)
    for left in leftovers(path.parent, path.name.__eq__):
        remove(left)


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
