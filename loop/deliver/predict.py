"""A saved model put to use: a label, a probability for every class, and how stable the label is.

Texts come in pieces of constant size. A piece is tokenised once for all models and sorted by
length; on the CPU it is dealt to lanes, threads of a core or several each, which share the models'
weights (torch lets other threads run while it computes).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from loop.errors import StudentError
from loop.executor.folders import PackedFolder, new_folder
from loop.hardware import cores
from loop.ports import (
    Executor,
    FloatArray,
    IntArray,
    News,
    Progress,
    each_once,
    no_progress,
    normalise,
)
from loop.student.encoder_files import load_tokenizer
from loop.student.inference import (
    Tokens,
    choose_device,
    choose_precision,
    class_probs,
    damaged_model,
    load_whole,
    read_record,
    token_limit,
    tokenise,
)
from loop.student.speedups import first_token_only
from strategies.calibrate import with_temperature

PIECE = 4096
"""Texts that are read, labelled and written at a time."""
AHEAD = 64
"""Pieces that workers elsewhere may be ahead of the one that is written next."""
LANES = 4  # more threads than this wait for Python's lock; they get several cores each instead


@dataclass(frozen=True)
class Labelled:
    """What a model says of n texts.

    Attributes:
        probs: (n, k), rows sum to 1.
        stability: (n,) share of the seeds that agree with the label, or None if not asked for.
    """

    probs: FloatArray
    stability: FloatArray | None

    @property
    def y(self) -> IntArray:
        """(n,) the likeliest class."""
        return np.asarray(self.probs.argmax(axis=1), dtype=np.int64)


class Labeller:
    """A model that ``goldloop model`` or a round saved, and its seeds' models beside it.

    Args:
        folder: of the model.
        fast: leave the seeds' models alone; then labels have no stability.
        threads: of the processor, all lanes together; None = all of its cores.
    Raises:
        StudentError: no such folder, not goldloop's, half-written, or device not usable.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fast: bool = False,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        record = saved_model(folder)
        self.labels: tuple[str, ...] = tuple(record["labels"])
        seeds = [] if fast else list(record.get("seeds", ()))
        self.stable = bool(seeds)
        """Whether labels come with a stability."""
        self._device = choose_device(device, named="--device (in Python: device)")
        self._precision = choose_precision(precision, self._device)
        self._temperature = (
            1.0 if record.get("temperature_built_in", True) else float(record["temperature"])
        )
        self._tokenizer = load_tokenizer(folder)
        self._long_texts = str(record.get("long_texts", "head_tail"))
        same = record.get("same_as")  # that seed and the model give the same labels
        self._seeds = len(seeds)
        self._counted = int(same in seeds)
        folders = [folder, *(folder / name for name in seeds if name != same)]
        self._models = [self._load(f) for f in folders]
        self._shortened = False  # needs texts to be tried on
        self._limit = token_limit(self._models[0].config, int(record["max_tokens"]))
        on_cpu = self._device.type == "cpu"
        threads = threads or cores()
        self._lanes = min(LANES, threads) if on_cpu else 1
        self._threads = max(1, threads // self._lanes)

    def _load(self, folder: Path) -> Any:
        saved_model(folder, self.labels)
        attention = "eager" if self._device.type == "cpu" else None
        return load_whole(folder, attention).to(self._device).eval()

    def __call__(self, texts: Sequence[str]) -> Labelled:
        """Labels texts; not empty ones, of which nothing can be said."""
        tokens = tokenise(self._tokenizer, texts, self._limit, self._long_texts)
        probs = self._ask(tokens)
        own = with_temperature(probs[0], self._temperature) if self._temperature != 1 else probs[0]
        if not self.stable:
            return Labelled(own, None)
        y = own.argmax(axis=1)
        agreeing = (probs[1:].argmax(axis=2) == y).sum(axis=0) + self._counted
        return Labelled(own, np.asarray(agreeing / self._seeds, dtype=np.float64))

    def over(self, pieces: Iterable[Sequence[Row]]) -> Iterator[tuple[Sequence[Row], Predictions]]:
        """Labels rows piece by piece; no more than one piece is held."""
        for piece in pieces:
            yield piece, predictions(self, [row.text for row in piece])

    def _ask(self, tokens: Tokens) -> FloatArray:
        """(models, n, k) probabilities."""
        rows, k = tokens.rows, len(self.labels)
        if self._device.type == "cpu" and not self._shortened:
            for model in self._models:
                first_token_only(model, rows, self._tokenizer.pad_token_id)
            self._shortened = True
        probs = np.zeros((len(self._models), len(rows), k))
        by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        shares = [by_length[lane :: self._lanes] for lane in range(self._lanes)]

        def ask(job: tuple[int, list[int]]) -> None:
            model, share = job
            torch.set_num_threads(self._threads)  # of this lane alone
            pad_id = self._tokenizer.pad_token_id
            ids = [rows[row] for row in share]
            probs[model, share] = class_probs(
                self._models[model], ids, pad_id, self._device, self._precision
            )

        jobs = [(m, share) for m in range(len(self._models)) for share in shares if share]
        if self._lanes == 1:
            for job in jobs:
                ask(job)
        else:
            with ThreadPoolExecutor(self._lanes) as pool:
                list(pool.map(ask, jobs))
        return np.stack([tokens.together(each) for each in probs])


@dataclass(frozen=True)
class Predictions:
    """What a model says of n texts, some of which may hold no letters.

    Attributes:
        classes: (k,) the labels that the model knows.
        labels: (n,) the likeliest label; None where the text holds nothing.
        probabilities: (n, k) in the order of ``classes``, rows sum to 1; NaN where no label is.
        stability: (n,) share of the seeds that agree with the label, NaN where no label is; None
            where it was not asked for, or the model was saved without its seeds' models.
    """

    classes: tuple[str, ...]
    labels: list[str | None]
    probabilities: FloatArray
    stability: FloatArray | None


def predictions(labeller: Labeller, texts: Sequence[str]) -> Predictions:
    """Labels texts, ``PIECE`` at a time."""
    n = len(texts)
    labels: list[str | None] = [None] * n
    probs = np.full((n, len(labeller.labels)), np.nan)
    stability = np.full(n, np.nan) if labeller.stable else None
    given = [row for row, text in enumerate(texts) if normalise(text)]
    for start in range(0, len(given), PIECE):
        rows = given[start : start + PIECE]
        said = labeller([texts[row] for row in rows])
        probs[rows] = said.probs
        if stability is not None:
            stability[rows] = said.stability
        for row, y in zip(rows, said.y, strict=True):
            labels[row] = labeller.labels[y]
    return Predictions(labeller.labels, labels, probs, stability)


# on other machines


@dataclass(frozen=True, eq=False)
class LabelTexts:
    """Labels texts on another machine, a worker with one thread.

    Attributes:
        model: its files, and those of its seeds unless ``fast``.
    """

    model: PackedFolder
    fast: bool
    device: str

    def load(self) -> Callable[[Sequence[str], Progress, News], Predictions]:
        """Loads the model, and its seeds' models."""
        folder = new_folder()
        self.model.write(folder)
        labeller = Labeller(folder, fast=self.fast, device=self.device, threads=1)
        return lambda texts, _progress, _say: predictions(labeller, texts)


class LabellerElsewhere:
    """A saved model that an executor's workers put to use; this process loads none of it.

    Args:
        folder: of the model.
        fast: leave the seeds' models alone; then labels have no stability.
        device: of the workers.
    Raises:
        StudentError: as ``Labeller``; what only loading shows, with the first texts.
    """

    def __init__(
        self, folder: Path, executor: Executor, *, fast: bool = False, device: str = "auto"
    ) -> None:
        record = saved_model(folder)
        self.folder = folder
        self.labels: tuple[str, ...] = tuple(record["labels"])
        self.stable = bool(record.get("seeds")) and not fast
        """Whether labels come with a stability."""
        self._executor = executor
        self._job = LabelTexts(PackedFolder.of(folder, below=not fast), fast, device)

    def over(self, pieces: Iterable[Sequence[Row]]) -> Iterator[tuple[Sequence[Row], Predictions]]:
        """Labels rows piece by piece, in their order; no more than ``AHEAD`` pieces are held."""
        held: dict[int, Sequence[Row]] = {}
        early: dict[int, Predictions] = {}
        first = 0  # the piece that is handed over next

        def blocks() -> Iterator[Sequence[str] | None]:
            for number, piece in enumerate(pieces):
                while number - first >= AHEAD:
                    yield None
                held[number] = piece
                yield [row.text for row in piece]

        room = self._executor.room
        room = replace(room, gpus=0.0) if self._job.device == "cpu" else room
        results = self._executor.map(self._job, blocks(), room)
        with closing(results):
            for number, said in each_once(results):
                early[number] = said
                while first in early:
                    yield held.pop(first), early.pop(first)
                    first += 1


# a whole file


class Row(Protocol):
    """A row of a table: its text, empty where there is none, and all its columns."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def values(self) -> Mapping[str, Any]:
        """All columns by name."""
        ...


@dataclass
class Tally:
    """What was labelled.

    Attributes:
        labels: texts by label.
        agreed: texts whose label all seeds gave; None without stability.
    """

    labels: Counter[str]
    agreed: int | None
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For people to read."""
        n = self.labels.total()
        shares = ", ".join(f"{name} {100 * c / n:.1f} %" for name, c in self.labels.most_common())
        told = f"{n:,} texts in {self.seconds:.1f} s, {n / max(self.seconds, 1e-9):,.0f} a second"
        lines = [f"Labelled {told}: {shares}."]
        if self.agreed is not None:
            lines.append(f"All seeds agree on {100 * self.agreed / n:.1f} % of them.")
        return lines


def prediction_columns(labels: Sequence[str]) -> dict[str, type]:
    """The columns that labelling adds to a table: label, probabilities, stability."""
    probs: dict[str, type] = {f"p_{name}": float for name in labels}
    return {"predicted_label": str, **probs, "stability": float}


def label_rows(
    labeller: Labeller | LabellerElsewhere,
    pieces: Iterable[Sequence[Row]],
    write: Callable[[Sequence[Mapping[str, Any]]], None],
    progress: Progress = no_progress,
) -> Tally:
    """Labels every row that has a text and writes all rows, those without one with no label.

    Args:
        pieces: rows, some at a time; see ``over`` for how many are held.
        write: takes the rows' columns with ``prediction_columns`` after them.
    """
    tally = Tally(Counter(), 0 if labeller.stable else None)
    started = time.perf_counter()
    names = list(prediction_columns(labeller.labels))
    for piece, said in labeller.over(pieces):
        records = []
        for at, (row, label) in enumerate(zip(piece, said.labels, strict=True)):
            cells: list[Any] = [None] * len(names)
            if label is not None:
                probs = [round(float(p), 6) for p in said.probabilities[at]]
                cells = [
                    label,
                    *probs,
                    None if said.stability is None else float(said.stability[at]),
                ]
                tally.labels[label] += 1
            records.append({**row.values, **dict(zip(names, cells, strict=True))})
        if said.stability is not None and tally.agreed is not None:
            tally.agreed += int((said.stability == 1).sum())
        write(records)
        progress(len(piece))
    tally.seconds = time.perf_counter() - started
    return tally


# what lies in a folder


def saved_model(folder: Path, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """What goldloop noted of the model in a folder.

    Args:
        labels: what the model's must be.
    Raises:
        StudentError: no such folder, not goldloop's, half-written, or with other labels.
    """
    if not folder.is_dir():
        raise StudentError(
            f"There is no model in {folder}; make one with `goldloop model`, or name one with"
            " --model."
        )
    record = read_record(folder)
    known, named = record.get("labels"), _labels_in_config(folder)
    if not known or named != known:
        raise damaged_model(folder, f"config.json names the labels {named}, goldloop.json {known}")
    if labels is not None and list(labels) != known:
        raise StudentError(
            f"The model in {folder} knows the labels {', '.join(known)}, not {', '.join(labels)};"
            " make it again with `goldloop model --force`, or name another one with --model."
        )
    return record


def _labels_in_config(folder: Path) -> list[str] | None:
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
