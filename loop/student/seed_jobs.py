"""Seeds as a job for an executor, and what goes along where workers are on other machines.

There the encoder's files go with the job, the model to continue from with its seed, and the trained
model's files come back with the result. Importing this file imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loop.executor.folders import PackedFolder, new_folder
from loop.ports import News, Progress, SeedResult

if TYPE_CHECKING:
    from loop.student.train_seed import Lesson


@dataclass(frozen=True)
class Seed:
    """One seed to be trained.

    Attributes:
        keep: folder for its model, on the machine that asks.
        start: elsewhere: the model that it continues from.
    """

    number: int
    keep: Path | None
    start: PackedFolder | None = None


Trained = tuple[SeedResult, PackedFolder | None]
"""A trained seed and, elsewhere, its model."""


@dataclass(frozen=True, eq=False)
class TrainSeeds:
    """Trains seeds of one lesson.

    Attributes:
        encoder: the files of the lesson's encoder, for workers elsewhere; None where they read the
            folder itself.
    """

    lesson: Lesson
    encoder: PackedFolder | None = None

    def load(self) -> Callable[[Seed, Progress, News], Trained]:
        """Nothing is loaded yet; elsewhere the encoder is written to the disk."""
        if self.encoder is None:
            return partial(_train_here, self.lesson)
        folder = new_folder() / self.lesson.folder.name
        self.encoder.write(folder)
        return partial(_train_elsewhere, replace(self.lesson, folder=folder))


def _train_here(lesson: Lesson, seed: Seed, progress: Progress, say: News) -> Trained:
    from loop.student.train_seed import train_seed

    return train_seed(lesson, seed.number, seed.keep, progress, say), None


def _train_elsewhere(lesson: Lesson, seed: Seed, progress: Progress, say: News) -> Trained:
    from loop.student.train_seed import train_seed

    work = new_folder()
    try:
        if seed.start is not None:
            seed.start.write(work / "start")
            lesson = replace(lesson, start={seed.number: work / "start"})
        keep = None if seed.keep is None else work / "model"
        result = train_seed(lesson, seed.number, keep, progress, say)
        model = None if keep is None else PackedFolder.of(keep)
        return replace(result, path=seed.keep), model
    finally:
        shutil.rmtree(work, ignore_errors=True)  # the packed files are read all the same
