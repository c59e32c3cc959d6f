"""A file's bytes and text: unpacked, decoded, and known by its first bytes where its name lies."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from connectors.texts.values import PACKED, SUFFIXES

CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
BROKEN_PACKING = (EOFError, zlib.error, lzma.LZMAError)
"""What a packed file raises that is cut off or damaged, besides an OSError without a number."""

_PACKERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".zst", ".lz4", ".br")
_MARKS = (
    (b"PK\x03\x04", "a workbook or archive"),
    (b"\xd0\xcf\x11\xe0", "a workbook or archive"),
    (b"PAR1", "a Parquet file"),
)
_STRANGERS = (
    (
        re.compile(r"version https://git-lfs"),
        "is a pointer of Git LFS, not the file itself; fetch the file with `git lfs pull`",
    ),
    (
        re.compile(r"<!doctype html|<html", re.IGNORECASE),
        "is a web page, not a table; download the file itself, or save the table as CSV or .xlsx",
    ),
)
_JSON = re.compile(r'(\[\s*)?\{\s*"[^"]*"\s*:')


def kind_of(path: Path) -> str:
    """``csv``, ``jsonl``, ``parquet`` or ``excel`` by the name, which may end in .gz, .bz2 or .xz.

    Empty where the name does not tell.
    """
    return SUFFIXES.get(inner_suffix(path), "")


def inner_suffix(path: Path) -> str:
    """The extension in small letters; of ``texts.csv.gz`` it is ``.csv``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def other_archive(path: Path) -> str:
    """What to do with an archive that holds files of its own, or is packed in another way."""
    if {path.suffix.lower(), inner_suffix(path)} & {*ARCHIVES}:
        return "is an archive; unpack it and name a file in it (.gz, .bz2 and .xz are read packed)"
    return ""


def stranger(path: Path, kind: str) -> str:
    """What a file is whose beginning says that it is not of that kind, and what to do; or empty.

    Raises:
        OSError: the file cannot be read; BROKEN_PACKING: nor unpacked.
    """
    with open_bytes(path) as file:
        first = file.read(500)
    marked = next((what for mark, what in _MARKS if first.startswith(mark)), "")
    if marked and kind in ("csv", "jsonl", "txt"):
        return (
            f"is {marked} by its first bytes, not text; unpack an archive, and give other files the"
            " extension of what they are"
        )
    start = first.decode("utf-8-sig", "replace").lstrip()
    if kind == "csv" and _JSON.match(start):
        return "holds JSON, not CSV; give it the extension .json"
    told = (what for pattern, what in _STRANGERS if kind != "txt" and pattern.match(start))
    return next(told, "")


def open_bytes(path: Path) -> IO[bytes]:
    """The file to read, unpacked where its first bytes say that it is packed."""
    with path.open("rb") as file:
        start = file.read(6)
    for mark, opener in _PACKERS:
        if start.startswith(mark):
            return opener(path, "rb")  # type: ignore[no-any-return]
    return path.open("rb")


def open_text(path: Path, *, errors: str = "strict", newline: str = "") -> io.TextIOWrapper:
    """The file as UTF-8, with or without a byte order mark.

    Args:
        errors: ``replace`` puts U+FFFD for bad bytes.
        newline: as :func:`open` takes it; a line feed splits lines there alone.
    """
    return io.TextIOWrapper(open_bytes(path), "utf-8-sig", errors=errors, newline=newline)


@dataclass(frozen=True)
class BadByte:
    """The first byte that is no UTF-8: where it is, from 0, its line, from 1, and its value."""

    offset: int
    line: int
    value: int


@dataclass(frozen=True)
class Decoding:
    """What a first look at a text file tells.

    Attributes:
        blank: nothing but white space.
        utf16: how a UTF-16 file was recognised, or empty.
        bad: the first byte that is no UTF-8, or None.
    """

    blank: bool
    utf16: str
    bad: BadByte | None

    @property
    def wrong(self) -> str:
        """Why it is not UTF-8, and what to do; empty where it is."""
        what = ""
        if self.utf16:
            what = f"is UTF-16 or UTF-32, not UTF-8 ({self.utf16})"
        elif self.bad is not None:
            at = self.bad
            what = f"is not valid UTF-8 at byte {at.offset} (line {at.line}, 0x{at.value:02x})"
        return what and f"{what}; save it as UTF-8 and try again"


def look_at(path: Path) -> Decoding:
    """Decodes a file once, piece by piece, to find what is wrong with it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    blank, read, lines = True, 0, 0
    with open_bytes(path) as file:
        chunk = file.read(CHUNK_BYTES)
        if utf16 := _utf16(chunk):
            return Decoding(False, utf16, None)
        while True:
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as exc:
                before = exc.object[: exc.start]
                line = lines + before.count(b"\n") + 1
                value = exc.object[exc.start]
                if utf16 := _utf16(chunk, 1 / 100):  # few of its letters are of Latin script
                    return Decoding(False, utf16, None)
                return Decoding(False, "", BadByte(read - waiting + exc.start, line, value))
            blank = blank and not text.strip("\ufeff \t\r\n\f\v")
            lines += text.count("\n")
            read += len(chunk)
            if not chunk:
                return Decoding(blank, "", None)
            chunk = file.read(CHUNK_BYTES)


def _utf16(start: bytes, zeros: float = 1 / 4) -> str:
    """How UTF-16 is recognised; ``zeros`` is the share of bytes that are zero in it, or more."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "its byte order mark says so"
    sample = start[:2000]
    fewer, more = sorted((sample[::2].count(0), sample[1::2].count(0)))
    if more > max(1, zeros * len(sample)) and more > 9 * fewer:
        return "every second byte is zero"
    return ""


def sample_of(path: Path) -> str:
    """The beginning of a text file, to recognise its dialect by."""
    with open_bytes(path) as file:
        return file.read(SAMPLE_BYTES).decode("utf-8-sig", "replace")
