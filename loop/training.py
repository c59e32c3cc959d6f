"""Fine-tunes one seed of a sequence classifier: one function, read top to bottom.

The recipe is the paper's (roberta-base: 3 epochs, batches of 16, AdamW at 2e-5, weight decay 0.01,
linear schedule with 5 % warm-up, gradients clipped to 1). The speed comes from padding little,
mixed precision, and ``loop.shortcuts``. On the CPU a seed uses one thread, so that its result does
not depend on how many seeds train beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loop.encoder import is_out_of_memory, load_classifier, load_tokenizer, save_model
from loop.errors import StudentError
from loop.inference import autocast, choose_device, choose_precision, class_probs, pad
from loop.ports import Draws, FloatArray, IntArray, Progress, SeedResult, no_progress
from loop.shortcuts import ByteDropout, first_token_only, trim_vocabulary

GROUP_BATCHES = 32  # texts are sorted by length within this many batches of a shuffled epoch
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a student is trained; see ``EncoderStudent`` for each setting."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_frac: float
    max_tokens: int
    device: str
    precision: str


@dataclass(frozen=True)
class Lesson:
    """All that one seed needs, tokenised once for every seed.

    Attributes:
        folder: the pretrained encoder.
        train_ids: token ids of the texts to learn from.
        y: (n, k) rows sum to 1.
        weight: (n,) > 0, mean 1.
        eval_ids: token ids of the texts to be classified.
        max_tokens: the limit that the texts were cut to.
        draws: for seeds that do not draw everything by their own number.
    """

    folder: Path
    recipe: Recipe
    revision: str
    labels: tuple[str, ...]
    train_ids: list[IntArray]
    y: FloatArray
    weight: FloatArray
    eval_ids: list[IntArray]
    pad_id: int
    max_tokens: int
    draws: Mapping[int, Draws] = field(default_factory=dict)


def train_seed(
    lesson: Lesson, seed: int, keep: Path | None = None, progress: Progress = no_progress
) -> SeedResult:
    """Trains one seed and classifies the evaluation texts.

    Args:
        seed: decides the head's first weights, the dropout and the order of the texts, unless
            ``lesson.draws`` says otherwise.
        keep: folder for the trained model.
        progress: told of texts learned from, n * epochs in all.
    Raises:
        StudentError: the loss became NaN, memory ran out, or the model cannot be saved.
    """
    recipe, started = lesson.recipe, time.perf_counter()
    draws = lesson.draws.get(seed) or Draws(seed, seed)
    device = choose_device(recipe.device)
    precision = choose_precision(recipe.precision, device)
    on_cpu = device.type == "cpu"
    with _one_thread() if on_cpu else nullcontext():
        # the model
        torch.manual_seed(draws.init)
        attention = "eager" if on_cpu else None
        model = load_classifier(lesson.folder, lesson.labels, attention=attention).to(device)
        if draws.order != draws.init:
            torch.manual_seed(draws.order)
        rows = np.arange(len(lesson.train_ids)) if draws.rows is None else draws.rows
        train_ids = [lesson.train_ids[row] for row in rows]
        eval_ids, pad_id = lesson.eval_ids, lesson.pad_id
        all_ids = [*train_ids, *eval_ids]
        vocabulary = trim_vocabulary(model, all_ids, pad_id)
        if vocabulary is not None:
            train_ids = [vocabulary.ids(row) for row in train_ids]
            eval_ids = [vocabulary.ids(row) for row in eval_ids]
            pad_id = vocabulary.pad_id
        if on_cpu:
            first_token_only(model, train_ids, pad_id)

        # the optimiser
        n, batches_per_epoch = len(train_ids), -(-len(train_ids) // recipe.batch_size)
        steps = recipe.epochs * batches_per_epoch
        optimiser = torch.optim.AdamW(
            _parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, _warm_up_then_down(steps, recipe.warmup_frac)
        )
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

        # the training
        y = torch.from_numpy(lesson.y[rows].astype(np.float32)).to(device)
        weights = lesson.weight if draws.rows is None else mean_one(lesson.weight[rows])
        weight = torch.from_numpy(weights.astype(np.float32)).to(device)
        order = np.random.default_rng([draws.order, 1])
        lengths = np.array([len(row) for row in train_ids])
        dropout: AbstractContextManager[Any] = ByteDropout(draws.order) if on_cpu else nullcontext()
        micro = recipe.batch_size  # texts that fit into one pass
        model.train()
        for epoch in range(recipe.epochs):
            loss_sum = torch.zeros((), device=device)
            for batch in _shuffled_batches(lengths, recipe.batch_size, order):
                while True:
                    try:
                        for start in range(0, len(batch), micro):
                            part = batch[start : start + micro]
                            tokens, mask = pad([train_ids[row] for row in part], pad_id, device)
                            with dropout, autocast(device, precision):
                                logits = model(input_ids=tokens, attention_mask=mask).logits
                            log_probs = torch.log_softmax(logits.float(), -1)
                            loss: Any = -(y[part] * log_probs).sum(1) @ weight[part] / len(batch)
                            scaler.scale(loss).backward()
                            loss_sum += loss.detach()
                        break
                    except RuntimeError as exc:
                        micro = _smaller(micro, exc, recipe)
                        model.zero_grad(set_to_none=True)
                scaler.unscale_(optimiser)
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                scaler.step(optimiser)
                scaler.update()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
                progress(len(batch))
            if not torch.isfinite(loss_sum):
                raise _diverged(recipe, seed, f"the loss became NaN in epoch {epoch + 1}")

        # the result
        model.eval()
        probs = class_probs(model, eval_ids, pad_id, device, precision)
        if not np.isfinite(probs).all():
            raise _diverged(recipe, seed, "the trained model answers NaN")
        if keep is not None:
            if vocabulary is not None:
                vocabulary.restore()
            tokenizer = load_tokenizer(lesson.folder)
            tokenizer.model_max_length = lesson.max_tokens
            record = asdict(recipe) | {
                "seed": seed,
                "student": lesson.revision,
                "labels": list(lesson.labels),
                "max_tokens": lesson.max_tokens,
                "precision": precision,
                "trained_texts": n,
            }
            save_model(model, tokenizer, keep, record)
    return SeedResult(seed, probs, time.perf_counter() - started, keep)


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and LayerNorm weights, the vectors, are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _warm_up_then_down(steps: int, warmup_frac: float) -> Any:
    warm = int(np.ceil(steps * warmup_frac))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return max(0.0, (steps - step) / max(1, steps - warm))

    return factor


def _shuffled_batches(
    lengths: IntArray, size: int, order: np.random.Generator
) -> Iterator[IntArray]:
    """One epoch: shuffled groups, each cut into batches of similar length, shuffled again."""
    shuffled = order.permutation(len(lengths))
    groups = np.array_split(shuffled, -(-len(lengths) // (size * GROUP_BATCHES)))
    ordered = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    for at in order.permutation(len(batches)):
        yield batches[at]


def _smaller(micro: int, exc: RuntimeError, recipe: Recipe) -> int:
    """Half the texts in one pass after memory ran out; the effective batch stays."""
    if not is_out_of_memory(exc):
        raise StudentError(f"Training failed: {str(exc).splitlines()[0][:300]}") from exc
    if micro == 1:
        raise StudentError(
            f"Memory does not hold even one text of {recipe.max_tokens} tokens; lower "
            "student.max_tokens, choose a smaller student.encoder, or free memory."
        ) from exc
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return -(-micro // 2)


def _diverged(recipe: Recipe, seed: int, what: str) -> StudentError:
    return StudentError(
        f"Training diverged: {what} (seed {seed}, lr {recipe.lr:g}, {recipe.precision}); lower "
        "student.lr, or set student.precision to 'fp32'."
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mean_one(weight: Sequence[float] | FloatArray) -> FloatArray:
    """Weights scaled to mean 1, so that equal weights of any size train alike."""
    found = np.asarray(weight, dtype=np.float64)
    return np.asarray(found / found.mean())
