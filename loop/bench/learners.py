"""The students that the benchmark judges label sets by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from loop.bench.data_sets import BenchData
from loop.errors import DataError, StudentError
from loop.files import replacing
from loop.ports import FloatArray, IntArray, SeedResult, Student, TrainingSet
from loop.student.cross_fit import cross_fit
from loop.student.frozen_student import FrozenHeads
from loop.student.nothing_learned import NothingLearned, answers_told, checked


@runtime_checkable
class Learner(Protocol):
    """The student of the benchmark."""

    @property
    def revision(self) -> str:
        """What it is, for the record."""
        ...

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """(s, number of test texts) classes, from training on the pool's rows."""
        ...


@runtime_checkable
class FineTuned(Learner, Protocol):
    """A learner whose students can judge labels that they did not learn."""

    def cross_fit(
        self, data: BenchData, y: FloatArray, weight: FloatArray, *, seed: int
    ) -> FloatArray | None:
        """(n, k) as ``loop.student.cross_fit.cross_fit``, of the pool's rows."""
        ...


@dataclass(frozen=True)
class FrozenLearner:
    """The frozen student: heads on the data's own embeddings."""

    heads: FrozenHeads = field(default_factory=FrozenHeads)

    @property
    def revision(self) -> str:
        """The heads'."""
        return self.heads.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        probs = self.heads.probs(data.embeddings, y, weight, data.test_embeddings, seeds)
        return np.asarray(probs.argmax(axis=2), dtype=np.int64)


@dataclass(frozen=True)
class EncoderLearner:
    """Fine-tunes an encoder through the ``Student`` port."""

    student: Student

    @property
    def revision(self) -> str:
        """The encoder's."""
        return self.student.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        if not data.texts or not data.test_texts:
            raise DataError(f"{data.name} has no texts, and the student {self.revision} reads them")
        results: dict[int, SeedResult] = {}

        def keep(result: SeedResult) -> None:
            results[result.seed] = result

        def failed(result: SeedResult, answer: NothingLearned) -> None:
            # An LLM's labels, or a few, may well teach nothing; gold for every text must.
            of_gold = (weight > 0).all() and (y.argmax(axis=1) == data.gold).all()
            if result.seed == seeds[0] and of_gold:
                raise StudentError(
                    f"{data.name}: the student learned nothing from gold: seed {result.seed}"
                    f" {answers_told(answer, data.labels)}. Its seeds would agree with each other,"
                    " and that would mean nothing, so that no further seed is trained. Raise its"
                    " learning rate (--lr) or choose another --encoder."
                )

        train = TrainingSet(data.texts, y, weight)
        self.student.fit(
            train,
            data.test_texts,
            data.labels,
            seeds,
            keep={},
            on_seed=checked(keep, failed, first=seeds[0]),
        )
        return np.stack([results[s].probs.argmax(axis=1) for s in seeds]).astype(np.int64)

    def cross_fit(
        self, data: BenchData, y: FloatArray, weight: FloatArray, *, seed: int
    ) -> FloatArray | None:
        """See ``FineTuned``."""
        train = TrainingSet(data.texts, y, weight)
        return cross_fit(self.student, train, data.labels, seed=seed)


@dataclass(frozen=True)
class WithJudges:
    """A learner beside fine-tuned students that judge the labels which it learns."""

    learner: Learner
    judges: FineTuned

    @property
    def revision(self) -> str:
        """That of both."""
        return f"{self.learner.revision}, judged by {self.judges.revision}"

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        return self.learner.predict(data, y, weight, seeds)

    def cross_fit(
        self, data: BenchData, y: FloatArray, weight: FloatArray, *, seed: int
    ) -> FloatArray | None:
        """See ``FineTuned``."""
        return self.judges.cross_fit(data, y, weight, seed=seed)


@dataclass(frozen=True)
class KeptPredictions:
    """A learner whose predictions are kept in a folder, so that a run broken off can go on.

    Attributes:
        folder: one file per label set, named by everything that the predictions depend on.
    """

    learner: Learner
    folder: Path

    @property
    def revision(self) -> str:
        """The learner's."""
        return self.learner.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        path = self._path(data, (y, weight), ("", *data.test_texts), seeds)
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.int64)
        predictions = self.learner.predict(data, y, weight, seeds)
        self._keep(path, predictions.astype(np.int16))
        return predictions

    def cross_fit(
        self, data: BenchData, y: FloatArray, weight: FloatArray, *, seed: int
    ) -> FloatArray | None:
        """See ``FineTuned``."""
        if not isinstance(self.learner, FineTuned):
            raise ValueError(f"{self.revision} fine-tunes nothing")
        path = self._path(data, (y, weight), ("judges",), [seed])
        if path.exists():
            judged = np.load(path, allow_pickle=False)
        else:
            made = self.learner.cross_fit(data, y, weight, seed=seed)
            judged = np.empty((0, data.k)) if made is None else made
            self._keep(path, judged)
        return np.asarray(judged, dtype=np.float64) if len(judged) else None

    def _path(
        self,
        data: BenchData,
        labels: Sequence[FloatArray],
        told: Sequence[str],
        seeds: Sequence[int],
    ) -> Path:
        digest = hashlib.sha256(repr((self.revision, data.labels, list(seeds))).encode())
        for text in (*data.texts, *told):
            digest.update(text.encode() + b"\0")
        for array in (*labels, data.embeddings, data.test_embeddings):
            digest.update(np.ascontiguousarray(array).tobytes())
        return self.folder / f"{data.name}-{digest.hexdigest()[:20]}.npy"

    def _keep(self, path: Path, values: NDArray[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.save(file, values, allow_pickle=False)


def as_learner(student: Learner | Student | None) -> Learner:
    """The benchmark's student: heads on embeddings, or an encoder behind the ``Student`` port."""
    if student is None:
        return FrozenLearner()
    if isinstance(student, Learner):
        return student
    return EncoderLearner(student)
