"""The LLM's hidden states, kept beside the store: a file per annotator and prompt.

The file is a short header and records of equal length, one a text, that are only ever added and
are mapped, not read, into memory. A chunk's states are on the disk before its votes are committed,
so that whoever is killed in between asks again and adds the same records once more: the last one
of a text counts. A record cut short is cut off before the next is added, and every record has a
checksum, so that damage costs the texts it hit and no others.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loop.files import appending
from strategies.pool import all_alike

MOST_LACKING = 0.05  # share of answered texts without a state, from which all go without
FORM = 1  # raise it when records or their meaning change
HEAD_BYTES = 64
ID_BYTES = 20

States = NDArray[np.float16]


@dataclass(frozen=True)
class StateFile:
    """The states that one annotator had under one prompt."""

    path: Path

    @classmethod
    def of(cls, out: Path, annotator: str, variant_hash: str) -> StateFile:
        """The file of an annotator's revision and a prompt variant in a campaign's folder."""
        key = hashlib.sha256(f"{FORM}\0{annotator}\0{variant_hash}".encode()).hexdigest()[:16]
        return cls(out / "states" / f"states-{key}.bin")

    def add(self, item_ids: Sequence[str], states: States) -> None:
        """Adds the states of n texts and syncs them to the disk; rows of NaN are left out.

        Args:
            states: (n, d); where the file holds another d, it is begun again.

        Raises:
            OSError: no space or no permission.
        """
        there: NDArray[np.bool_] = np.asarray(np.isfinite(states).all(axis=1))
        d = states.shape[1]
        records = np.zeros(int(there.sum()), dtype=_record(d))
        records["item"] = np.array(item_ids, dtype=f"S{ID_BYTES}")[there]
        records["state"] = states[there]
        records["check"] = [_check(record) for record in records]
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with appending(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            if self._d() != d:
                size = 0
                os.ftruncate(file.fileno(), 0)
            if not size:
                file.write(_head(d))
            elif spare := (size - HEAD_BYTES) % records.dtype.itemsize:
                os.ftruncate(file.fileno(), size - spare)
            file.write(records.tobytes())

    def read(self, item_ids: Sequence[str]) -> States | None:
        """(n, d) states of the texts, a row of NaN where there is none; None without a sound file.

        Raises:
            OSError: no permission.
        """
        d = self._d()
        if d is None:
            return None
        kind = _record(d)
        count = (self.path.stat().st_size - HEAD_BYTES) // kind.itemsize
        out = np.full((len(item_ids), d), np.nan, dtype=np.float16)
        if not count:
            return out
        records = np.memmap(self.path, kind, "r", offset=HEAD_BYTES, shape=(count,))
        # as bytes: what damage left of an id may be no text
        place = {item: i for i, item in enumerate(records["item"].tolist())}
        for row, item_id in enumerate(item_ids):
            at = place.get(item_id.encode())
            if at is not None and records["check"][at] == _check(records[at]):
                out[row] = records["state"][at]
        return out

    def _d(self) -> int | None:
        """Length of a state as the header says it; None without a sound header."""
        try:
            with self.path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except FileNotFoundError:
            return None
        words = head.split()
        if len(words) != 2 or not words[1].isdigit() or head != _head(int(words[1])):
            return None
        return int(words[1])


@dataclass(frozen=True)
class KeptStates:
    """What a campaign has of its LLM's states.

    Attributes:
        values: (n, d), a row of NaN where a text has none; None where repair goes without them.
        news: one sentence where some that should be there are not; else empty.
    """

    values: States | None
    news: str = ""


def kept_states(
    file: StateFile, item_ids: Sequence[str], answered: NDArray[np.bool_]
) -> KeptStates:
    """The states of n texts, as far as they can be used.

    Args:
        answered: (n,) whether the LLM answered the text; only those should have a state.
    """
    if not file.path.exists():
        return KeptStates(None)
    values = file.read(item_ids)
    n = int(answered.sum())
    lacking = n if values is None else int((answered & np.isnan(values[:, 0])).sum())
    if values is not None and n - lacking > 1 and all_alike(values, ~np.isnan(values[:, 0])):
        same = f"The LLM's states of all {n - lacking} texts in {file.path} are the same"
        return KeptStates(None, f"{same}. Labels are repaired without the LLM's states.")
    if not lacking:
        return KeptStates(values)
    start = f"{lacking} of {n} texts have no usable state of the LLM in {file.path}"
    if values is None or lacking > MOST_LACKING * n:
        return KeptStates(None, f"{start}. Labels are repaired without the LLM's states.")
    return KeptStates(values, f"{start}. For these, labels are repaired without it.")


def _record(d: int) -> np.dtype[np.void]:
    return np.dtype([("check", "<u4"), ("item", f"S{ID_BYTES}"), ("state", "<f2", (d,))])


def _head(d: int) -> bytes:
    return f"goldloop-states-{FORM} {d}".encode().ljust(HEAD_BYTES - 1) + b"\n"


def _check(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[4:])
