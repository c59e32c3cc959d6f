"""Runs beside the campaign's own: students that are trained to learn about training.

``goldloop variance`` and ``goldloop plateau`` train many of them. Each is kept in a file as soon as
it ends, so that a command that breaks off continues where it was, and none is trained twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loop.campaign.context import Context
from loop.campaign.tables import Item, Round, TrainingLabels
from loop.errors import StageError, StudentError
from loop.files import write_whole
from loop.llm.votes import read_votes
from loop.measure.collapsed import measured_rounds
from loop.measure.held_out import Truth, evaluation_items, truth_of
from loop.ports import Draws, FloatArray, IntArray, News, SeedResult, Student, TrainingSet
from loop.student.frozen_student import FrozenStudent
from loop.student.kept_vectors import item_embeddings
from loop.student.nothing_learned import NothingLearned, answers_told, checked
from loop.training_sets import LabelSet, advice, loop_labels

StudentKind = Literal["encoder", "frozen"]


@dataclass(frozen=True)
class SideRuns:
    """What side runs have in common.

    Attributes:
        pool: the n texts that may be learned from.
        evaluated: those that are classified.
        truth: what is known of these.
        kind: the campaign's student, or frozen heads on its embeddings.
    """

    ctx: Context
    round_: Round
    pool: list[Item]
    evaluated: list[Item]
    truth: Truth
    kind: StudentKind
    student: Student

    def train(
        self, what: str, y: FloatArray, weight: FloatArray, draws: Mapping[str, Draws]
    ) -> dict[str, IntArray]:
        """Classes of the evaluated texts by every run.

        Args:
            what: shown while it trains.
            y: (n, k) labels of the pool.
            weight: (n,).
            draws: what each run draws, by its name.

        Returns:
            Run -> (number of evaluated texts,) classes.
        """
        ctx = self.ctx
        kept = _Kept(self._path(y, weight, draws), ctx.say, len(self.evaluated), y.shape[1])
        missing = [name for name in draws if name not in kept.predictions]
        if missing:
            numbers = {i: name for i, name in enumerate(draws) if name in set(missing)}

            def keep(result: SeedResult) -> None:
                kept.add(numbers[result.seed], result.probs.argmax(axis=1))

            def failed(result: SeedResult, answer: NothingLearned) -> None:
                rows = draws[numbers[result.seed]].rows
                part = rows is not None and len(rows) < used  # which may well teach nothing
                if part or ctx.config.student.if_nothing_learned == "go on":
                    return
                raise StudentError(
                    f"{what}: a student of all labels learned nothing: it"
                    f" {answers_told(answer, ctx.config.label_names)}. No further student is"
                    " trained, because they would agree whatever the labels are worth."
                    f" {advice(ctx, LabelSet([i.id for i in self.pool], y, weight))} Then the same"
                    " command continues."
                )

            epochs = 1 if self.kind == "frozen" else ctx.config.student.epochs
            used = int((weight > 0).sum())
            rows = [draws[name].rows for name in missing]
            total = epochs * sum(used if r is None else len(r) for r in rows)
            with ctx.show(what, total) as progress:
                self.student.fit(
                    TrainingSet([i.text for i in self.pool], y, weight),
                    [i.text for i in self.evaluated],
                    ctx.config.label_names,
                    list(numbers),
                    keep={},
                    on_seed=checked(keep, failed),
                    progress=progress,
                    draws={number: draws[name] for number, name in numbers.items()},
                )
        return {name: np.array(kept.predictions[name], dtype=np.int64) for name in draws}

    def _path(self, y: FloatArray, weight: FloatArray, draws: Mapping[str, Draws]) -> Path:
        """A file named by all that the predictions depend on."""
        digest = hashlib.sha256(self.student.revision.encode())
        digest.update(json.dumps([i.id for i in [*self.pool, *self.evaluated]]).encode())
        for array in (y, weight, *(d.rows for d in draws.values() if d.rows is not None)):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([[n, d.init, d.order] for n, d in draws.items()]).encode())
        return self.ctx.config.out / "cache" / f"side-runs-{digest.hexdigest()[:16]}.json"


class _Kept:
    """Predictions in a file that is written again after every run.

    Args:
        say: told where the file is damaged; then nothing counts as kept.
        n: texts that each run classifies.
        k: classes.
    """

    def __init__(self, path: Path, say: News, n: int, k: int) -> None:
        self._path = path
        self.predictions: dict[str, list[int]] = {}
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            sound = all(
                len(classes) == n and all(type(c) is int and 0 <= c < k for c in classes)
                for classes in kept.values()
            )
        except (OSError, ValueError, TypeError, AttributeError):
            sound = False
        if sound:
            self.predictions = kept
            return
        say(f"The predictions kept in {path} are damaged. Their students are trained again.")

    def add(self, name: str, classes: IntArray) -> None:
        self.predictions[name] = [int(c) for c in classes]
        write_whole(self._path, json.dumps(self.predictions))


def side_runs(ctx: Context, kind: StudentKind) -> SideRuns:
    """What runs beside the last measured round need.

    Raises:
        StageError: no round is measured yet, or there is nothing to classify.
    """
    measured = measured_rounds(ctx.store.rounds(ctx.name))
    if not measured:
        raise StageError("No round is measured yet; run `goldloop run` first.")
    pool, evaluated = ctx.store.items(ctx.name, "pool"), evaluation_items(ctx)
    if not evaluated:
        raise StageError("There are no test texts to classify; name some in the source.")
    student = ctx.student if kind == "encoder" else _frozen(ctx, pool, evaluated)
    truth = truth_of(ctx, evaluated)
    return SideRuns(ctx, measured[-1][0], pool, evaluated, truth, kind, student)


def _frozen(ctx: Context, *groups: Sequence[Item]) -> FrozenStudent:
    vectors = {
        item.text: vector
        for group in groups
        for item, vector in zip(group, item_embeddings(ctx, group), strict=True)
    }
    return FrozenStudent(lambda texts: np.stack([vectors[t] for t in texts]), ctx.student.revision)


def merged_labels(
    runs: SideRuns, made: TrainingLabels | None = None
) -> tuple[FloatArray, FloatArray]:
    """(n, k) labels and (n,) weights that the round's own students learn.

    Args:
        made: other labels than those that the round has kept.
    """
    ctx, k = runs.ctx, len(runs.ctx.config.labels)
    learned = loop_labels(ctx, runs.round_, made)
    y, weight = np.full((len(runs.pool), k), 1.0 / k), np.zeros(len(runs.pool))
    place = {item.id: i for i, item in enumerate(runs.pool)}
    at = [place[item_id] for item_id in learned.ids]
    y[at], weight[at] = learned.y, learned.weight
    return y, weight


def llm_labels(runs: SideRuns) -> tuple[FloatArray, FloatArray]:
    """The LLM's labels alone; texts that are evaluated are left out."""
    ctx = runs.ctx
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, runs.pool)
    answered = (votes.answered & _free(runs)).astype(np.float64)
    return np.eye(len(ctx.config.labels))[votes.y_llm], answered


def gold_labels(runs: SideRuns) -> tuple[FloatArray, FloatArray] | None:
    """Gold for the whole pool, where the source knows it; texts that are evaluated are left out."""
    index = runs.ctx.config.label_index
    known = [index.get(str(i.known_label), -1) for i in runs.pool]
    if min(known) < 0:
        return None
    return np.eye(len(index))[known], _free(runs).astype(np.float64)


def _free(runs: SideRuns) -> NDArray[np.bool_]:
    """(n,) texts of the pool that no student is evaluated on."""
    judged = {i.id for i in runs.evaluated}
    return np.array([i.id not in judged for i in runs.pool])


def write_result(ctx: Context, name: str, result: Mapping[str, Any]) -> Path:
    """Writes a result into the campaign's folder, where the report finds it."""
    path = ctx.config.out / f"{name}.json"
    write_whole(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return path
