"""Fine-tunes one seed of a sequence classifier: one function, read top to bottom.

The recipe is the paper's (roberta-base: 3 epochs, batches of 16, AdamW at 2e-5, weight decay 0.01,
linear schedule with 5 % warm-up, gradients clipped to 1). The speed comes from padding little,
mixed precision, and ``loop.student.speedups``. On the CPU a seed uses one thread, so that its
result does not depend on how many seeds train beside it.
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

from loop.errors import StudentError
from loop.ports import (
    Draws,
    FloatArray,
    IntArray,
    News,
    OwnAnswers,
    Progress,
    SeedResult,
    no_news,
    no_progress,
)
from loop.student.encoder_files import is_out_of_memory, load_classifier, load_tokenizer, save_model
from loop.student.inference import (
    Tokens,
    autocast,
    choose_device,
    choose_precision,
    pad,
    text_probs,
)
from loop.student.nothing_learned import asked_again
from loop.student.speedups import ByteDropout, first_token_only, trim_vocabulary

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
    long_texts: str
    class_weights: str
    checkpoint: str


@dataclass(frozen=True)
class Lesson:
    """All that one seed needs, tokenised once for every seed.

    Attributes:
        folder: the pretrained encoder.
        train: the texts to learn from.
        y: (n, k) labels times class weights.
        weight: (n,) > 0, mean 1.
        test: the texts to be classified.
        dev: texts of known class to choose the best epoch by; none: the last epoch counts.
        dev_y: their classes.
        max_tokens: the limit that the texts were cut to.
        draws: for seeds that do not draw everything by their own number.
        start: seed -> folder of a trained model to go on from.
    """

    folder: Path
    recipe: Recipe
    revision: str
    labels: tuple[str, ...]
    train: Tokens
    y: FloatArray
    weight: FloatArray
    test: Tokens
    dev: Tokens
    dev_y: IntArray
    pad_id: int
    max_tokens: int
    draws: Mapping[int, Draws] = field(default_factory=dict)
    start: Mapping[int, Path] = field(default_factory=dict)


def train_seed(
    lesson: Lesson,
    seed: int,
    keep: Path | None = None,
    progress: Progress = no_progress,
    say: News = no_news,
) -> SeedResult:
    """Trains one seed and classifies the evaluation texts.

    A pass that memory does not hold is halved, and the batch stays what it is: up to dropout,
    which draws again, and to rounding (1e-4 in a probability, fp32) the model is the same.

    Args:
        seed: decides the head's first weights, the dropout and the order of the texts, unless
            ``lesson.draws`` says otherwise.
        keep: folder for the trained model.
        progress: told of texts learned from, n * epochs in all.
        say: told when passes are halved.
    Raises:
        StudentError: the loss became NaN, memory ran out, or the model cannot be saved.
    """
    recipe, started = lesson.recipe, time.perf_counter()
    draws = lesson.draws.get(seed) or Draws(seed, seed)
    device = choose_device(recipe.device)
    precision = choose_precision(recipe.precision, device)
    on_cpu = device.type == "cpu"
    with _one_thread() if on_cpu else nullcontext(), _memory_errors(lesson):
        # the model
        torch.manual_seed(draws.init)
        attention = "eager" if on_cpu else None
        warm = lesson.start.get(seed)
        model = load_classifier(
            warm or lesson.folder, None if warm else lesson.labels, attention=attention
        ).to(device)
        if draws.order != draws.init:
            torch.manual_seed(draws.order)
        texts = np.arange(lesson.train.n) if draws.rows is None else draws.rows
        train, test, dev = lesson.train.take(texts), lesson.test, lesson.dev
        pad_id = lesson.pad_id
        vocabulary = trim_vocabulary(model, [*train.rows, *test.rows, *dev.rows], pad_id)
        if vocabulary is not None:
            train, test, dev = (t.renamed(vocabulary.ids) for t in (train, test, dev))
            pad_id = vocabulary.pad_id
        if on_cpu:
            first_token_only(model, train.rows, pad_id)

        # the optimiser
        steps = recipe.epochs * -(-len(train.rows) // recipe.batch_size)
        optimiser = torch.optim.AdamW(
            _parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, _warm_up_then_down(steps, recipe.warmup_frac)
        )
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

        # the training
        weights = mean_one(lesson.weight[texts][train.text] * train.share)
        weight = torch.from_numpy(weights.astype(np.float32)).to(device)
        y = torch.from_numpy(lesson.y[texts][train.text].astype(np.float32)).to(device)
        order = np.random.default_rng([draws.order, 1])
        lengths = np.array([len(row) for row in train.rows])
        dropout: AbstractContextManager[Any] = ByteDropout(draws.order) if on_cpu else nullcontext()
        micro = recipe.batch_size  # texts that fit into one pass
        progress = train.per_text(progress)
        dev_f1: list[float] = []  # one an epoch
        best_state: dict[str, torch.Tensor] | None = None
        model.train()
        for epoch in range(recipe.epochs):
            loss_sum = torch.zeros((), device=device)
            for batch in _shuffled_batches(lengths, recipe.batch_size, order):
                while True:
                    try:
                        for start in range(0, len(batch), micro):
                            part = batch[start : start + micro]
                            tokens, mask = pad([train.rows[row] for row in part], pad_id, device)
                            with dropout, autocast(device, precision):
                                logits = model(input_ids=tokens, attention_mask=mask).logits
                            log_probs = torch.log_softmax(logits.float(), -1)
                            loss: Any = -(y[part] * log_probs).sum(1) @ weight[part] / len(batch)
                            scaler.scale(loss).backward()
                            loss_sum += loss.detach()
                        break
                    except RuntimeError as exc:
                        micro = _smaller(micro, exc, recipe, say)
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
            if dev.n:
                model.eval()
                chosen = text_probs(model, dev, pad_id, device, precision).argmax(1)
                model.train()
                dev_f1.append(macro_f1(lesson.dev_y, chosen))
                if dev_f1[-1] >= max(dev_f1):
                    last = epoch + 1 == recipe.epochs
                    best_state = None if last else _copy(model.state_dict())

        # the result
        if best_state is not None:
            model.load_state_dict(best_state)
        model.eval()
        probs = text_probs(model, test, pad_id, device, precision)
        if not np.isfinite(probs).all():
            raise _diverged(recipe, seed, "the trained model answers NaN")
        asked = asked_again(train.n)
        again = text_probs(model, train.take(asked), pad_id, device, precision).argmax(axis=1)
        learned = lesson.y[texts][asked]
        own = OwnAnswers(
            again, learned / learned.sum(axis=1, keepdims=True), lesson.weight[texts][asked]
        )
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
                "trained_texts": train.n,
                "dev_macro_f1": dev_f1,
                "warm_start": warm is not None,
            }
            save_model(model, tokenizer, keep, record)
    return SeedResult(seed, probs, time.perf_counter() - started, keep, own)


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


def _smaller(micro: int, exc: RuntimeError, recipe: Recipe, say: News) -> int:
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
    half = -(-micro // 2)
    say(
        f"Memory does not hold {micro} texts in one pass: continuing with {half}; a batch still"
        f" has {recipe.batch_size}."
    )
    return half


@contextmanager
def _memory_errors(lesson: Lesson) -> Iterator[None]:
    """Names memory that ran out where no smaller pass helps."""
    try:
        yield
    except RuntimeError as exc:
        if not is_out_of_memory(exc):
            raise
        raise StudentError(
            f"Memory does not hold encoder {lesson.folder} and its optimiser; choose a smaller "
            "student.encoder, or free memory."
        ) from exc


def _copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def macro_f1(y: IntArray, chosen: IntArray) -> float:
    """Mean F1 over the classes that occur in either, in [0, 1]."""
    f1 = []
    for c in np.union1d(y, chosen):
        right = ((y == c) & (chosen == c)).sum()
        f1.append(2 * right / ((y == c).sum() + (chosen == c).sum()))
    return float(np.mean(f1))


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


def balancing_weights(y: FloatArray, weight: FloatArray) -> FloatArray:
    """(k,) inverse frequencies of the classes, of mean 1 over the labels; 1 for an absent class.

    Args:
        y: (n, k) soft labels.
        weight: (n,) of the texts.
    """
    mass = weight @ y
    there = mass > 0
    balance = np.ones(y.shape[1])
    balance[there] = mass.sum() / (there.sum() * mass[there])
    return balance


def mean_one(weight: Sequence[float] | FloatArray) -> FloatArray:
    """Weights scaled to mean 1, so that equal weights of any size train alike."""
    weights = np.asarray(weight, dtype=np.float64)
    return np.asarray(weights / weights.mean())
