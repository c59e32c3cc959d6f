"""One file that holds a backup: a ZIP with a manifest of every member's size and checksum.

An archive may come from anywhere, so that it is read as if somebody hostile had made it: all of it
is verified before any of it is used, and nothing in it decides where a file is written.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from loop.errors import DataError, LoopError
from loop.files import replacing

FORM = 1
MANIFEST = "manifest.json"
MOST_MEMBERS = 100_000
MOST_MANIFEST_BYTES = 32 * 2**20
MANIFEST_HEAD_BYTES = 2**16  # what it says beside the members: the columns of some twenty tables
MOST_NAME_LETTERS = 1000
BLOCK_BYTES = 2**20
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    RecursionError,
)
"""What a damaged archive makes the standard library raise."""


class ArchiveWriter:
    """An archive that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._zip = archive
        self.members: dict[str, dict[str, Any]] = {}
        self._folded = {MANIFEST}
        self._manifest_bytes = MANIFEST_HEAD_BYTES

    @contextmanager
    def adding(self, name: str) -> Iterator[AddedFile]:
        """A new member, to be written in pieces."""
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (stat.S_IFREG | 0o600) << 16
        with self._zip.open(info, "w", force_zip64=True) as raw:
            added = AddedFile(raw)
            yield added
        self.members[name] = {"bytes": added.size_bytes, "sha256": added.digest.hexdigest()}
        self._folded.add(name.casefold())
        self._manifest_bytes += _entry_bytes(name)

    def why_not(self, name: str) -> str | None:
        """Why no reader would take a further member of this name, or None."""
        if (why := odd_name(name)) is not None:
            return why
        if name.casefold() in self._folded:
            return "another name differs from it in capitals alone"
        size_bytes = self._manifest_bytes + _entry_bytes(name)
        if len(self.members) + 1 >= MOST_MEMBERS or size_bytes > MOST_MANIFEST_BYTES:
            return "one backup holds no more files"
        return None

    def add_file(self, name: str, path: Path) -> bool:
        """Adds a file as it is now; False where it is gone.

        Raises:
            LoopError: it cannot be read.
        """
        blocks = _blocks_of(path)
        try:
            block = next(blocks, b"")
        except FileNotFoundError:
            return False
        with self.adding(name) as added:
            added.write(block)
            for block in blocks:
                added.write(block)
        return True


def _blocks_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise LoopError(
            f"{path} cannot be read: {exc.strerror or exc}. Correct that, or move it out of the"
            " campaign's folder."
        ) from exc


def odd_name(name: str) -> str | None:
    """Why a member may not have this name, or None; the writer asks and the reader asks."""
    parts = PurePosixPath(name).parts
    if name != "/".join(parts) or name.startswith("/") or {".", ".."} & set(parts):
        return "it could lead to another folder"
    if any(c in name for c in "\\:\0"):
        return "a colon or a backslash in a name could lead to another folder"
    if len(name) >= MOST_NAME_LETTERS:
        return "its name is too long"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None


def _entry_bytes(name: str) -> int:
    """The most that a member takes in the manifest: its name, size and checksum."""
    return len(json.dumps(name)) + 130


@dataclass
class AddedFile:
    """A member that is being written, with its size and checksum so far."""

    raw: IO[bytes]
    size_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        """Adds to its end."""
        self.raw.write(data)
        self.digest.update(data)
        self.size_bytes += len(data)


@contextmanager
def writing_archive(path: Path, about: dict[str, Any]) -> Iterator[ArchiveWriter]:
    """A new archive, for its owner alone, that is there whole at the end or not at all.

    Args:
        about: written into the manifest at the end; may be filled meanwhile.
    Raises:
        OSError: no room or no permission.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        writer = ArchiveWriter(archive)
        yield writer
        members = dict(writer.members)
        with writer.adding(MANIFEST) as added:
            added.write(json.dumps({"form": FORM, **about, "members": members}).encode())


@dataclass(frozen=True)
class Archive:
    """An archive whose members all have the sizes and checksums that its manifest states.

    Attributes:
        about: what the manifest says beside the members.
        members: size and checksum of each, by name.
    """

    path: Path
    about: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]]
    _zip: zipfile.ZipFile

    @contextmanager
    def opening(self, name: str) -> Iterator[IO[bytes]]:
        """A member, to read."""
        with self._zip.open(name) as file:
            yield file

    def is_in(self, name: str, file: Path) -> bool:
        """Whether a file holds exactly what a member does."""
        member = self.members[name]
        if file.is_symlink() or not file.is_file() or file.stat().st_size != member["bytes"]:
            return False
        with file.open("rb") as read:
            return bool(hashlib.file_digest(read, "sha256").hexdigest() == member["sha256"])

    def lines(self, name: str) -> Iterator[bytes]:
        """A member's lines."""
        with self._zip.open(name) as file:
            yield from file


@contextmanager
def opening_archive(path: Path, *, room_bytes: int) -> Iterator[Archive]:
    """An archive to read from, verified as a whole.

    Args:
        room_bytes: the most that it may take when it is unpacked.
    Raises:
        DataError: it is none of goldloop's, is damaged, or is made to do harm.
    """
    if not path.is_file():
        raise DataError(f"There is no backup {path}; name the file that `goldloop backup` wrote.")
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as exc:
        raise _unusable(path, f"it is no whole ZIP file: {exc}") from exc
    with archive:
        try:
            verified = _verified(archive, path, room_bytes)
        except _BROKEN as exc:
            raise _unusable(path, f"{type(exc).__name__}: {exc}") from exc
        yield verified


def _unusable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be used as a backup ({why}). Nothing was written; use another copy of it."
    )


def _verified(archive: zipfile.ZipFile, path: Path, room_bytes: int) -> Archive:
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise _unusable(path, f"it has {len(infos):,} members, more than {MOST_MEMBERS:,}")
    for info in infos:
        _refuse_odd(info, path)
    names = [info.filename for info in infos]
    if len({name.casefold() for name in names}) != len(names):
        raise _unusable(path, "two members have one name")
    if MANIFEST not in names or archive.getinfo(MANIFEST).file_size > MOST_MANIFEST_BYTES:
        raise _unusable(path, "it has no manifest of goldloop's")
    with archive.open(MANIFEST) as file:
        manifest = json.loads(file.read(MOST_MANIFEST_BYTES))
    if manifest["form"] != FORM:
        raise _unusable(path, f"its form is {manifest['form']!r}, this goldloop reads {FORM}")
    members = manifest.pop("members")
    if set(members) != set(names) - {MANIFEST}:
        raise _unusable(path, "its members are not those that the manifest lists")
    total = sum(_count(member["bytes"]) for member in members.values())
    if total > room_bytes:
        raise _unusable(
            path, f"it unpacks to {total / 1e6:,.1f} MB, and there are {room_bytes / 1e6:,.1f} free"
        )
    for name, member in members.items():
        _refuse_other_content(archive, name, member, path)
    return Archive(path, manifest, members, archive)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _refuse_odd(info: zipfile.ZipInfo, path: Path) -> None:
    """Refuses names that lead elsewhere, links, devices, and what cannot be read plainly."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    if (why := odd_name(name)) is not None:
        raise _unusable(path, f"the name {name[:100]!r}: {why}")
    if kind not in (0, stat.S_IFREG):
        raise _unusable(path, f"{name!r} is a link or device")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _unusable(path, f"{name!r} is encrypted, or packed in a way that is not used here")


def _refuse_other_content(
    archive: zipfile.ZipFile, name: str, member: Mapping[str, Any], path: Path
) -> None:
    digest, left = hashlib.sha256(), _count(member["bytes"])
    with archive.open(name) as file:
        while block := file.read(BLOCK_BYTES):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
    if left or digest.hexdigest() != member["sha256"]:
        raise _unusable(path, f"{name!r} is not what was written: its size or checksum differs")
