"""Archives unpacked: only what was asked for, only inside, only so much."""

from __future__ import annotations

import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from connectors.downloads.packages import one_at_a_time, prepared
from loop.errors import FetchError

MAX_BYTES = 2 << 30  # what an archive may unpack to, unless the caller says otherwise


def extract_members(
    archive: Path, prefix: str, folder: Path, *, max_bytes: int = MAX_BYTES
) -> Path:
    """Unpacks the files below ``prefix`` of a wheel, zip or tar archive, all or nothing.

    Args:
        prefix: a member folder ending in "/", or "" for everything; it is left out of the paths.
        folder: where they go; one that is there already is returned untouched.
        max_bytes: most that the files may hold together, counted while unpacking.
    Returns:
        ``folder``.
    Raises:
        FetchError: the archive is damaged or hostile (paths that lead outside, links, devices,
            twice the same path, too large), or has nothing below ``prefix``.
    """
    with one_at_a_time(folder):
        if folder.is_dir():
            return folder
        with prepared(folder) as part:
            _unpack(archive, prefix, part, max_bytes)
    return folder


def extract_member(archive: Path, member: str, file: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpacks one file of a wheel, zip or tar archive; one that is there already stays.

    Returns:
        ``file``.
    Raises:
        FetchError: as ``extract_members``.
    """
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as scratch:
            _unpack(archive, member, Path(scratch), max_bytes)
            (Path(scratch) / PurePosixPath(member).name).replace(file)
    except OSError as exc:
        raise FetchError(f"{file} cannot be written: {exc.strerror or exc}.") from exc
    return file


def _unpack(archive: Path, prefix: str, folder: Path, max_bytes: int) -> None:
    taken: set[PurePosixPath] = set()
    left = max_bytes
    try:
        with _members(archive) as members:
            for name, regular, opened in members:
                if name == prefix and not prefix.endswith("/"):
                    path = PurePosixPath(PurePosixPath(name).name)
                elif name.startswith(prefix) and (prefix == "" or prefix.endswith("/")):
                    path = PurePosixPath(name[len(prefix) :])
                else:
                    continue
                if name.endswith("/") and regular is None:
                    continue  # a folder; made when a file in it comes
                _refuse_hostile(archive, name, path, bool(regular), taken)
                taken.add(path)
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, target.open("xb") as out:
                    while chunk := source.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            raise FetchError(
                                f"{archive.name} unpacks to more than {max_bytes} bytes;"
                                " it was not unpacked."
                            )
                        out.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as exc:
        raise FetchError(f"{archive.name} is not an archive that can be read: {exc}.") from exc
    if not taken:
        raise FetchError(f"{archive.name} holds nothing at {prefix!r}.")


def _refuse_hostile(
    archive: Path, name: str, path: PurePosixPath, regular: bool, taken: set[PurePosixPath]
) -> None:
    problem = None
    if not regular:
        problem = "is a link or device"
    elif path.is_absolute() or ".." in path.parts or not path.parts:
        problem = "leads outside the folder"
    elif "\\" in name or "\0" in name or ":" in name:
        problem = "has a name that means different things on different systems"
    elif path in taken:
        problem = "occurs twice"
    if problem:
        raise FetchError(f"{archive.name} was not unpacked: its member {name!r} {problem}.")


_Member = tuple[str, "bool | None", Callable[[], IO[bytes]]]


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """(name, is a regular file, how to open it); None instead of a bool for folders."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (_zip_member(zipped, info) for info in zipped.infolist())
    else:
        with tarfile.open(archive) as tarred:
            yield (_tar_member(tarred, info) for info in tarred)


def _zip_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    regular = None if info.is_dir() else kind in (0, stat.S_IFREG)  # 0: written without modes
    return info.filename, regular, lambda: zipped.open(info)


def _tar_member(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def opened() -> IO[bytes]:
        source = tarred.extractfile(info)
        if source is None:
            raise FetchError(f"The member {info.name!r} cannot be read.")
        return source

    if info.isdir():
        return info.name + "/", None, opened
    return info.name, info.isreg(), opened
