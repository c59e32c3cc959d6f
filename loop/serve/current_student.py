"""The students of the newest trained round, as ``goldloop serve`` lets Label Studio ask them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.errors import StudentError
from loop.ports import FloatArray


@dataclass(frozen=True)
class Answers:
    """What the student says of n texts.

    Attributes:
        version: round and number of seeds.
        rows: (n,) chosen classes.
        score: (n,) in (0, 1], mean probability that the seeds give the class they choose together:
            low where they disagree with each other and where they are unsure.
    """

    version: str
    rows: np.ndarray[Any, np.dtype[np.int64]]
    score: FloatArray


class Classifier(Protocol):
    """Texts -> (n, k) class probabilities."""

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Class probabilities of the texts."""
        ...


class CurrentStudent:
    """The students of the newest trained round, loaded when first asked for.

    Args:
        load: makes a classifier from a saved model's folder.
    """

    def __init__(self, config: Config, store: Store, load: Callable[[Path], Classifier]) -> None:
        self._config = config
        self._store = store
        self._load = load
        self._lock = threading.Lock()
        self._loaded: tuple[str, list[Classifier]] = ("", [])

    def _saved(self) -> tuple[str, list[Path]]:
        numbers = {r.id: r.number for r in self._store.rounds(self._config.campaign.name)}
        folders: dict[int, dict[int, Path]] = {}
        for run in self._store.runs(self._config.campaign.name):
            folder = self._config.out / run.model_path if run.model_path else None
            if run.arm == "loop" and folder is not None and folder.is_dir():
                folders.setdefault(numbers[run.round_id], {})[run.seed] = folder
        if not folders:
            return "", []
        newest = max(folders)
        seeds = [folders[newest][seed] for seed in sorted(folders[newest])]
        return f"goldloop-round-{newest}-seeds-{len(seeds)}", seeds

    def version(self) -> str:
        """Names the round; empty where none is trained yet."""
        return self._saved()[0]

    def answer(self, texts: Sequence[str]) -> Answers:
        """What the student says of the texts.

        Raises:
            StudentError: no round is trained yet.
        """
        with self._lock:
            version, folders = self._saved()
            if not folders:
                raise StudentError("No student is trained yet; run `goldloop run` first.")
            if not texts:
                return Answers(version, np.zeros(0, dtype=np.int64), np.zeros(0))
            if self._loaded[0] != version:
                self._loaded = (version, [self._load(folder) for folder in folders])
            probs = np.stack([classify(texts) for classify in self._loaded[1]])
        together = probs.mean(axis=0)
        return Answers(version, together.argmax(axis=1).astype(np.int64), together.max(axis=1))
