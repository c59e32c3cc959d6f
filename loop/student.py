"""The student: an encoder fine-tuned with several seeds.

Here are the texts made ready once and the seeds handed out; ``loop.training`` trains one of them,
``loop.encoder`` finds the
model and ``loop.inference`` feeds it. Importing this file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loop.errors import StudentError
from loop.ports import Draws, Progress, SeedResult, TrainingSet, no_progress
from loop.seed_workers import SeedWorkers, cores

if TYPE_CHECKING:
    from loop.training import Lesson, Recipe

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


class EncoderStudent:
    """Full fine-tuning of any encoder that transformers loads for sequence classification.

    On the CPU seeds train side by side in processes of one thread each; on a GPU one after the
    other in this process. The same seed gives the same predictions on the same device, however
    many processes there are.

    Args:
        encoder: folder, or name on the Hugging Face hub; safetensors only.
        lr: peak learning rate; small encoders such as MiniLM need about 1e-4 on 1,000 texts.
        warmup_frac: share of all steps, in [0, 1].
        max_tokens: longer texts keep their first quarter and their last three.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto", "bf16", "fp16" or "fp32".
        workers: training processes; None = one per core on the CPU; 1 = in this process.
        cache_dir: where models from the hub are kept; None = the hub client's own place.
    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        encoder: str | Path,
        *,
        epochs: int = 3,
        batch_size: int = 16,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_frac: float = 0.05,
        max_tokens: int = 256,
        device: str = "auto",
        precision: str = "auto",
        workers: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        for name, value, low in (
            ("epochs", epochs, 1),
            ("batch_size", batch_size, 1),
            ("max_tokens", max_tokens, 8),
            ("workers", 1 if workers is None else workers, 1),
        ):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not lr > 0 or not weight_decay >= 0 or not 0 <= warmup_frac <= 1:
            raise ValueError(
                f"need lr > 0, weight_decay >= 0 and warmup_frac in [0, 1], got {lr}, "
                f"{weight_decay} and {warmup_frac}"
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
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
        }
        self._pool: SeedWorkers | None = None

    @cached_property
    def _folder(self) -> Path:
        from loop.encoder import find_encoder

        return find_encoder(self.encoder, self._cache_dir)

    @cached_property
    def _tokenizer(self) -> Any:
        from loop.encoder import load_tokenizer

        return load_tokenizer(self._folder)

    @cached_property
    def _embedder(self) -> Any:
        from loop.encoder import load_encoder
        from loop.inference import choose_device

        return load_encoder(self._folder).to(choose_device(self._settings["device"])).eval()

    @cached_property
    def revision(self) -> str:
        """Encoder, fingerprint of its weights, and of the settings; fetches the encoder.

        The device is no part of it: the same campaign may go on elsewhere.
        """
        from loop.encoder import fingerprint

        kept = {name: value for name, value in self._settings.items() if name != "device"}
        settings = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
        name = Path(self.encoder).name if Path(self.encoder).is_dir() else str(self.encoder)
        return f"{name}@{fingerprint(self._folder)}/{settings}"

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        """(n, d) mean over each text's tokens of the pretrained encoder's last layer.

        Raises:
            StudentError: the encoder cannot be loaded.
        """
        from loop.inference import choose_precision, encode, mean_embeddings, token_limit

        model, settings = self._embedder, self._settings
        limit = token_limit(model.config, settings["max_tokens"])
        ids = encode(self._tokenizer, texts, limit)
        precision = choose_precision(settings["precision"], model.device)
        return mean_embeddings(model, ids, self._pad_id, model.device, precision, progress)

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
        Raises:
            StudentError: the encoder cannot be loaded, training diverged, or saving failed.
            ValueError: shapes that do not fit.
        """
        from loop.inference import choose_device
        from loop.training import train_seed

        lesson = self._lesson(train, eval_texts, labels, draws or {})
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        on_cpu = choose_device(self._settings["device"]).type == "cpu"
        workers = self._max_workers or (cores() if on_cpu else 1)
        if workers == 1:
            for seed in seeds:
                on_seed(train_seed(lesson, seed, keep.get(seed), progress))
            return
        if self._pool is None:
            self._pool = SeedWorkers(workers)
            weakref.finalize(self, self._pool.close)
        self._pool.train(lesson, seeds, keep, on_seed, progress)

    def close(self) -> None:
        """Ends the training processes; the next ``fit`` starts new ones."""
        if self._pool is not None:
            self._pool.close()

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    def _lesson(
        self,
        train: TrainingSet,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        draws: Mapping[int, Draws],
    ) -> Lesson:
        """Everything that the seeds share, tokenised once."""
        y, weight = _checked(train, labels)
        from loop.encoder import load_config
        from loop.inference import encode, token_limit
        from loop.training import Lesson, Recipe, mean_one

        rows = np.flatnonzero(weight > 0)
        limit = token_limit(load_config(self._folder), self._settings["max_tokens"])
        recipe: Recipe = Recipe(**self._settings)
        return Lesson(
            folder=self._folder,
            recipe=recipe,
            revision=self.revision,
            labels=tuple(labels),
            train_ids=encode(self._tokenizer, [train.texts[row] for row in rows], limit),
            y=y[rows],
            weight=mean_one(weight[rows]),
            eval_ids=encode(self._tokenizer, eval_texts, limit),
            pad_id=self._pad_id,
            max_tokens=limit,
            draws={seed: _among(draw, weight > 0) for seed, draw in draws.items()},
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
