"""Folders that go with a job to another machine, and come back with its result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PackedFolder:
    """The files of a folder, those below it included.

    Attributes:
        files: relative path -> (bytes,) content. Where packed, it is read from the disk as it is
            needed; Ray's workers of one machine share it.
    """

    files: Mapping[str, NDArray[np.uint8]]

    @classmethod
    def of(cls, folder: Path, *, below: bool = True) -> PackedFolder:
        """The files of a folder; what links lead to is taken for the links.

        Args:
            below: those in its folders as well.
        """
        paths = sorted(path for path in folder.glob("**/*" if below else "*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): _content(path) for path in paths})

    def write(self, folder: Path) -> None:
        """Writes the files into a folder, which is made if need be.

        Raises:
            OSError: no space or no permission.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content.tofile(path)


def _content(path: Path) -> NDArray[np.uint8]:
    if not path.stat().st_size:
        return np.zeros(0, dtype=np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def new_folder() -> Path:
    """A folder for what a worker needs on its machine's disk, in the worker's own place for it."""
    return Path(tempfile.mkdtemp(prefix="goldloop-"))
