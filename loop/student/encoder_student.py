"""The student: an encoder fine-tuned with several seeds.

Here are the texts made ready once and the seeds handed out; ``loop.student.train_seed`` trains one
of them, ``loop.student.encoder_files`` finds the model and ``loop.student.inference`` feeds it.
Importing this file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loop.errors import StudentError
from loop.executor.folders import PackedFolder, new_folder
from loop.executor.local import LocalExecutor
from loop.hardware import cores
from loop.ports import (
    MIN_DEV,
    Draws,
    Executor,
    FloatArray,
    News,
    Progress,
    Resources,
    SeedResult,
    TrainingSet,
    each_once,
    no_news,
    no_progress,
)
from loop.student.learning_rate import fitting_rate
from loop.student.seed_jobs import Seed, TrainSeeds

if TYPE_CHECKING:
    from loop.student.inference import Tokens
    from loop.student.train_seed import Lesson, Recipe

EMBEDDED_AT_ONCE = 2048  # texts that a worker elsewhere is handed
CHOICES = {
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "long_texts": ("head_tail", "windows"),
    "class_weights": ("none", "balanced"),
    "checkpoint": ("last", "best"),
}


class EncoderStudent:
    """Full fine-tuning of any encoder that transformers loads for sequence classification.

    On this machine's CPU seeds train side by side in processes of one thread each; on its GPU one
    after the other in this process; elsewhere on as many workers as there are. On the CPU the same
    seed gives the same predictions, bit for bit, however many processes there are; on a GPU
    attention's gradients are summed in no fixed order, so that two runs of a seed may differ by
    rounding that training then amplifies.

    Args:
        encoder: folder, or name on the Hugging Face hub; safetensors only.
        lr: peak learning rate; None takes the one that fits the encoder, see
            ``loop.student.learning_rate``.
        warmup_frac: share of all steps, in [0, 1].
        max_tokens: longer texts are cut; see long_texts.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto", "bf16", "fp16" or "fp32".
        long_texts: "head_tail" keeps the first quarter and the last three; "windows" reads all, in
            windows of max_tokens that overlap by a quarter: each is a training example with an
            equal share of the text's weight, and the mean of their logits is the text's.
        class_weights: "balanced" weighs each class by the inverse of its share of the labels.
        checkpoint: "last" keeps the last epoch, "best" the one with the highest macro-F1 on
            ``TrainingSet.dev``, the later one of equals.
        workers: training processes on this machine; None = one per core on the CPU; 1 = in this
            process.
        cache_dir: where models from the hub are kept; None = the hub client's own place.
        executor: where seeds are trained, and, if its workers are on other machines, texts
            embedded; None = on this machine.
    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        encoder: str | Path,
        *,
        epochs: int = 3,
        batch_size: int = 16,
        lr: float | None = None,
        weight_decay: float = 0.01,
        warmup_frac: float = 0.05,
        max_tokens: int = 256,
        device: str = "auto",
        precision: str = "auto",
        long_texts: str = "head_tail",
        class_weights: str = "none",
        checkpoint: str = "last",
        workers: int | None = None,
        cache_dir: Path | None = None,
        executor: Executor | None = None,
    ) -> None:
        for name, value, low in (
            ("epochs", epochs, 1),
            ("batch_size", batch_size, 1),
            ("max_tokens", max_tokens, 8),
            ("workers", 1 if workers is None else workers, 1),
        ):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not (lr is None or lr > 0) or not weight_decay >= 0 or not 0 <= warmup_frac <= 1:
            raise ValueError(
                f"need lr > 0, weight_decay >= 0 and warmup_frac in [0, 1], got {lr}, "
                f"{weight_decay} and {warmup_frac}"
            )
        self.encoder = encoder
        self._cache_dir = cache_dir
        self._max_workers = workers
        self._settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_frac": warmup_frac,
            "max_tokens": max_tokens,
            "device": device,
            "precision": precision,
            "long_texts": long_texts,
            "class_weights": class_weights,
            "checkpoint": checkpoint,
        }
        for name, allowed in CHOICES.items():
            if self._settings[name] not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {self._settings[name]!r}"
                )
        self._told: set[str] = set()
        if executor is None:
            executor = LocalExecutor()
            weakref.finalize(self, executor.close)
        self._executor = executor

    @cached_property
    def _folder(self) -> Path:
        from loop.student.encoder_files import find_encoder

        return find_encoder(self.encoder, self._cache_dir)

    @cached_property
    def _tokenizer(self) -> Any:
        from loop.student.encoder_files import load_tokenizer

        return load_tokenizer(self._folder)

    @cached_property
    def _embedder(self) -> Any:
        from loop.student.encoder_files import load_encoder
        from loop.student.inference import choose_device

        return load_encoder(self._folder).to(choose_device(self._settings["device"])).eval()

    @cached_property
    def lr(self) -> float:
        """The peak learning rate: as given, or what fits the encoder; fetches that."""
        given: float | None = self._settings["lr"]
        return fitting_rate(self.encoder, self._folder).value if given is None else given

    @cached_property
    def revision(self) -> str:
        """Encoder, fingerprint of its weights, and of the settings; fetches the encoder.

        The device is no part of it: the same campaign may go on elsewhere.
        """
        from loop.student.encoder_files import fingerprint

        kept = {n: v for n, v in self._settings.items() if n != "device"} | {"lr": self.lr}
        settings = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
        name = Path(self.encoder).name if Path(self.encoder).is_dir() else str(self.encoder)
        return f"{name}@{fingerprint(self._folder)}/{settings}"

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        """(n, d) mean over each text's tokens of the pretrained encoder's last layer.

        Raises:
            StudentError: the encoder cannot be loaded.
        """
        if self._executor.elsewhere:
            return self._embed_elsewhere(texts, progress)
        from loop.student.inference import choose_precision, mean_embeddings

        model, tokens = self._embedder, self._tokens(texts)
        precision = choose_precision(self._settings["precision"], model.device)
        progress = tokens.per_text(progress)
        embeddings = mean_embeddings(
            model, tokens.rows, self._pad_id, model.device, precision, progress
        )
        return tokens.mean(embeddings)

    def fit(
        self,
        train: TrainingSet,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        seeds: Sequence[int],
        *,
        keep: Mapping[int, Path],
        on_seed: Callable[[SeedResult], None],
        progress: Progress = no_progress,
        draws: Mapping[int, Draws] | None = None,
        start: Mapping[int, Path] | None = None,
        say: News = no_news,
    ) -> None:
        """Trains one model per seed from the pretrained weights and hands over each as it ends.

        Args:
            train: soft labels and weights count; weight 0 leaves a text out. A class without any
                text still has its column.
            eval_texts: texts to classify; may be empty.
            labels: names of the k classes, in the order of the columns.
            keep: seed -> folder, for the seeds whose model is to be saved.
            on_seed: called once a seed, in this thread, in the order in which seeds end.
            progress: told of texts learned from: seeds * epochs * texts of weight > 0 in all.
            draws: for seeds that do not draw everything by their own number.
            start: seed -> folder of a model that ``keep`` saved: the seed continues from it.
            say: told once of each thing that the user should know: a class without texts, an old
                head that is replaced, too few dev texts, passes halved for want of memory.
        Raises:
            StudentError: the encoder cannot be loaded, training diverged, or saving failed.
            ValueError: shapes that do not fit.
        """
        from loop.student.encoder_files import saving_to
        from loop.student.inference import choose_device

        def tell(line: str) -> None:
            if line not in self._told:
                self._told.add(line)
                say(line)

        lesson = self._lesson(train, eval_texts, labels, draws or {}, start or {}, tell)
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        if self._executor.elsewhere:
            blocks = [
                Seed(
                    seed,
                    keep.get(seed),
                    PackedFolder.of(lesson.start[seed]) if seed in lesson.start else None,
                )
                for seed in seeds
            ]
            job = TrainSeeds(replace(lesson, start={}), PackedFolder.of(self._folder))
            resources = self._room()
        else:
            blocks = [Seed(seed, keep.get(seed)) for seed in seeds]
            job = TrainSeeds(lesson)
            on_cpu = choose_device(self._settings["device"]).type == "cpu"
            resources = Resources(self._max_workers or (cores() if on_cpu else 1))
        results = self._executor.map(job, blocks, resources, progress=progress, say=tell)
        with closing(results):
            for number, (result, model) in each_once(results):
                if model is not None:
                    with saving_to(keep[seeds[number]]) as part:
                        model.write(part)
                on_seed(result)

    def _room(self) -> Resources:
        """What a worker elsewhere is given."""
        room = self._executor.room
        return replace(room, gpus=0.0) if self._settings["device"] == "cpu" else room

    def _embed_elsewhere(self, texts: Sequence[str], progress: Progress) -> NDArray[np.float32]:
        blocks = [
            texts[at : at + EMBEDDED_AT_ONCE] for at in range(0, len(texts), EMBEDDED_AT_ONCE)
        ]
        parts: dict[int, NDArray[np.float32]] = {}
        results = self._executor.map(self._embed_texts, blocks, self._room(), progress=progress)
        with closing(results):
            parts.update(each_once(results))
        if not parts:
            from loop.student.encoder_files import load_config

            return np.empty((0, int(load_config(self._folder).hidden_size)), dtype=np.float32)
        return np.concatenate([parts[number] for number in range(len(blocks))])

    @cached_property
    def _embed_texts(self) -> EmbedTexts:
        """Kept, so that workers keep the encoder."""
        return EmbedTexts(PackedFolder.of(self._folder), self._settings)

    def close(self) -> None:
        """Ends the workers; the next ``fit`` starts new ones."""
        self._executor.close()

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    @cached_property
    def _limit(self) -> int:
        from loop.student.encoder_files import load_config
        from loop.student.inference import token_limit

        return token_limit(load_config(self._folder), self._settings["max_tokens"])

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        from loop.student.inference import tokenise

        return tokenise(self._tokenizer, texts, self._limit, self._settings["long_texts"])

    def _lesson(
        self,
        train: TrainingSet,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        draws: Mapping[int, Draws],
        start: Mapping[int, Path],
        say: News,
    ) -> Lesson:
        """Everything that the seeds share, tokenised once."""
        y, weight = _checked(train, labels)
        from loop.student.train_seed import Lesson, Recipe, balancing_weights, mean_one

        rows = np.flatnonzero(weight > 0)
        y, used = y[rows], weight[rows]
        _tell_absent(y, labels, say)
        self._tell_old_head(labels, say)
        if self._settings["class_weights"] == "balanced":
            y = y * balancing_weights(y, used)
        dev_texts, dev_y = self._dev(train, len(labels), say)
        recipe: Recipe = Recipe(**self._settings | {"lr": self.lr})
        return Lesson(
            folder=self._folder,
            recipe=recipe,
            revision=self.revision,
            labels=tuple(labels),
            train=self._tokens([train.texts[row] for row in rows]),
            y=y,
            weight=mean_one(used),
            test=self._tokens(eval_texts),
            dev=self._tokens(dev_texts),
            dev_y=dev_y,
            pad_id=self._pad_id,
            max_tokens=self._limit,
            draws={seed: _among(draw, weight > 0) for seed, draw in draws.items()},
            start={seed: path for seed, path in start.items() if self._fits(path, labels, say)},
        )

    def _dev(
        self, train: TrainingSet, k: int, say: News
    ) -> tuple[Sequence[str], NDArray[np.int64]]:
        """Texts and classes to choose the best epoch by; none where the last one is kept."""
        none: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if self._settings["checkpoint"] == "last":
            return [], none
        dev_texts = 0 if train.dev is None else len(train.dev.texts)
        if train.dev is None or dev_texts < MIN_DEV:
            say(
                f'student.checkpoint = "best" chooses among epochs by texts of split dev with a '
                f"known label; there are {dev_texts}, fewer than {MIN_DEV}: the last epoch is kept."
            )
            return [], none
        y = np.asarray(train.dev.y, dtype=np.int64)
        if y.shape != (dev_texts,) or y.min() < 0 or y.max() >= k:
            raise ValueError(f"dev needs {dev_texts} classes in 0..{k - 1}, got shape {y.shape}")
        return train.dev.texts, y

    def _tell_old_head(self, labels: Sequence[str], say: News) -> None:
        from loop.student.encoder_files import load_config, old_head

        old = old_head(load_config(self._folder))
        if old is not None:
            say(
                f"Encoder {self.encoder} was fine-tuned before, for the labels {', '.join(old)}; "
                f"its head is replaced by a new one for {', '.join(labels)}."
            )

    def _fits(self, path: Path, labels: Sequence[str], say: News) -> bool:
        """Whether a saved model is whole, of this encoder, with these classes in this order."""
        from loop.student.inference import load_whole, read_record

        try:
            record = read_record(path)
            load_whole(path)
        except StudentError:
            say(
                f"The model in {path} is missing or damaged; its seed starts from the pretrained"
                " weights."
            )
            return False
        encoder = str(record.get("student")).rsplit("/", 1)[0]
        if encoder == self.revision.rsplit("/", 1)[0] and record.get("labels") == list(labels):
            return True
        say(
            f"The model in {path} is of another encoder or other labels; its seed starts from the "
            "pretrained weights."
        )
        return False


@dataclass(frozen=True, eq=False)
class EmbedTexts:
    """Embeds texts on another machine.

    Attributes:
        encoder: its files.
        settings: of the student.
    """

    encoder: PackedFolder
    settings: Mapping[str, Any]

    def load(self) -> Callable[[Sequence[str], Progress, News], NDArray[np.float32]]:
        """Loads the encoder with the first texts."""
        folder = new_folder()
        self.encoder.write(folder)
        student = EncoderStudent(folder, **self.settings)
        return lambda texts, progress, _say: student.embed(texts, progress)


def _tell_absent(y: FloatArray, labels: Sequence[str], say: News) -> None:
    absent = [name for name, mass in zip(labels, y.sum(0), strict=True) if mass < 0.5]
    if absent:
        say(
            f"No training text is labelled {' or '.join(absent)}: the students keep the class but "
            "cannot learn it."
        )


def _among(draw: Draws, used: NDArray[np.bool_]) -> Draws:
    """The draw with its rows counted among the used ones, the others left out."""
    if draw.rows is None:
        return draw
    rows = draw.rows[used[draw.rows]]
    if not len(rows):
        raise StudentError("A draw of the training texts has none with a positive weight.")
    return replace(draw, rows=np.asarray((np.cumsum(used) - 1)[rows], dtype=np.int64))


def _checked(
    train: TrainingSet, labels: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y = np.asarray(train.y, dtype=np.float64)
    weight = np.asarray(train.weight, dtype=np.float64)
    n, k = len(train.texts), len(labels)
    if k < 2 or len(set(labels)) != k:
        raise ValueError(f"labels must be two or more different names, got {list(labels)}")
    if y.shape != (n, k) or weight.shape != (n,):
        raise ValueError(
            f"need y ({n}, {k}) and weight ({n},) for {n} texts and {k} labels, got {y.shape} "
            f"and {weight.shape}"
        )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weight must be finite and >= 0")
    there = y[weight > 0]
    if not there.size:
        raise StudentError(
            "There is no text to train on: every training weight is 0; label some texts, or choose "
            "another strategy.repair."
        )
    if not (np.isfinite(there).all() and (there >= 0).all() and np.allclose(there.sum(1), 1)):
        raise ValueError("rows of y must be >= 0 and sum to 1")
    return y, weight
