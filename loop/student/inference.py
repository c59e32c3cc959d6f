"""Texts into batches, batches through an encoder, without gradients.

Device, precision and padding are chosen here for training as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from loop.errors import StudentError
from loop.hardware import cpu_has_bf16
from loop.ports import FloatArray, IntArray, Progress, no_progress
from loop.student.encoder_files import (
    RECORD,
    find_encoder,
    is_out_of_memory,
    load_classifier,
    load_tokenizer,
)

HEAD_FRAC = 0.25  # Sun et al. 2020: 128 of 510 tokens from the head, the rest from the tail
WINDOW_OVERLAP = 0.25  # share of a window that the next one sees again
CPU_TOKENS, GPU_TOKENS = 1024, 65_536  # padded tokens of one pass; larger ones leave the CPU cache
_HALF_PAIR = re.compile("[\ud800-\udfff]")


# device and precision


def choose_device(device: str, named: str = "student.device") -> torch.device:
    """``auto`` is the first CUDA device, else the CPU.

    Args:
        named: what the user sets to name another one.
    Raises:
        StudentError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as exc:
        raise StudentError(
            f"Device {device!r} cannot be used here; set {named} to 'auto' or 'cpu'."
        ) from exc
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """bf16 where the hardware multiplies it natively, fp16 on older GPUs, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for forward passes; does nothing in fp32."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


# texts in, batches out


@dataclass(frozen=True)
class Tokens:
    """Texts as rows of token ids: one row a text, or one for each window of a long text.

    Attributes:
        rows: token ids, special tokens included.
        text: (rows,) the text that each row is of, ascending.
        n: texts.
    """

    rows: list[IntArray]
    text: IntArray
    n: int

    @property
    def share(self) -> FloatArray:
        """(rows,) one over the number of rows that the row's text has."""
        return np.asarray(1 / np.bincount(self.text, minlength=self.n)[self.text])

    def take(self, texts: IntArray) -> Tokens:
        """These texts, in this order, repeated where named twice."""
        first = np.searchsorted(self.text, np.arange(self.n + 1))
        rows = [self.rows[row] for t in texts for row in range(first[t], first[t + 1])]
        text = np.repeat(np.arange(len(texts)), np.diff(first)[texts])
        return Tokens(rows, text, len(texts))

    def renamed(self, ids: Callable[[IntArray], IntArray]) -> Tokens:
        """The same texts with other token ids."""
        return replace(self, rows=[ids(row) for row in self.rows])

    def mean(self, values: NDArray[Any]) -> NDArray[Any]:
        """(rows, d) -> (n, d), the mean over each text's rows."""
        means = np.zeros((self.n, values.shape[1]), dtype=values.dtype)
        np.add.at(means, self.text, (values * self.share[:, None]).astype(values.dtype))
        return means

    def together(self, probs: FloatArray) -> FloatArray:
        """(rows, k) -> (n, k) class probabilities: softmax of the mean of each text's logits.

        So a temperature on the rows and one on the texts are the same thing, and a model that has
        it built in stays calibrated on texts of several windows.
        """
        if len(self.rows) == self.n:
            return probs
        logs = self.mean(np.log(np.maximum(probs, np.finfo(np.float64).tiny)))
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float64)

    def per_text(self, progress: Progress) -> Progress:
        """A progress to be told of rows, which tells the given one of whole texts."""
        done = 0

        def of_rows(count: int) -> None:
            nonlocal done
            before = done * self.n // len(self.rows)
            done += count
            progress(done * self.n // len(self.rows) - before)

        return of_rows


def tokenise(tokenizer: Any, texts: Sequence[str], limit: int, long_texts: str) -> Tokens:
    """Texts of more than ``limit`` tokens cut to one row, or into windows.

    Args:
        long_texts: "head_tail", see ``encode``, or "windows": each of ``limit`` tokens, of which it
            shares a quarter with the one before; the last ends where the text ends.
    """
    if long_texts == "head_tail":
        rows = encode(tokenizer, texts, limit)
        return Tokens(rows, np.arange(len(rows)), len(rows))
    windows = [_windows(ids, mask, limit) for ids, mask in _with_specials(tokenizer, texts)]
    counts = [len(of_text) for of_text in windows]
    rows = [row for of_text in windows for row in of_text]
    return Tokens(rows, np.repeat(np.arange(len(counts)), counts), len(counts))


def _with_specials(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[IntArray, IntArray]]:
    """Token ids and, for each, 1 where the tokenizer added it."""
    if not texts:
        return
    encoding = tokenizer(
        _whole(texts),
        truncation=False,
        padding=False,
        verbose=False,
        return_special_tokens_mask=True,
    )
    for ids, mask in zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True):
        yield np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=np.int64)


def _whole(texts: Sequence[str]) -> list[str]:
    """Halves of surrogate pairs, which no tokenizer takes, become U+FFFD, as in texts of files."""
    return [_HALF_PAIR.sub("\ufffd", text) for text in texts]


def _windows(ids: IntArray, special: IntArray, limit: int) -> list[IntArray]:
    if len(ids) <= limit:
        return [ids]
    own = np.flatnonzero(special == 0)
    first, last = int(own[0]), int(own[-1]) + 1  # the text's own tokens lie between the special
    before, inner, after = ids[:first], ids[first:last], ids[last:]
    size = limit - len(before) - len(after)
    step = size - round(size * WINDOW_OVERLAP)
    starts = [*range(0, len(inner) - size, step), len(inner) - size]
    return [np.concatenate([before, inner[at : at + size], after]) for at in starts]


def token_limit(config: Any, max_tokens: int) -> int:
    """``max_tokens``, or less where the encoder's positions end earlier.

    RoBERTa's kind spend their first two positions on padding; two are left to spare everywhere.
    """
    positions = getattr(config, "max_position_embeddings", None)
    return min(max_tokens, positions - 2) if isinstance(positions, int) else max_tokens


def encode(tokenizer: Any, texts: Sequence[str], limit: int) -> list[IntArray]:
    """Token ids of every text; long texts keep their head and their tail.

    Source: Sun et al. 2020, How to Fine-Tune BERT for Text Classification?, section 5.3.1.
    """
    if not texts:
        return []
    encoding = tokenizer(_whole(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    head = 1 + round((limit - 2) * HEAD_FRAC)
    return [
        np.asarray(
            ids if len(ids) <= limit else [*ids[:head], *ids[head - limit :]], dtype=np.int64
        )
        for ids in encoding
    ]


def pad(
    ids: Sequence[IntArray], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each (b, longest); a GPU gets lengths in steps of eight."""
    longest = max(len(row) for row in ids)
    if device.type == "cuda":
        longest = -(-longest // 8) * 8
    tokens = np.full((len(ids), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def batches_by_length(ids: Sequence[IntArray], budget: int) -> Iterator[list[int]]:
    """Rows grouped by length, each group at most ``budget`` tokens after padding."""
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row)):
        if batch and len(ids[batch[0]]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# forward passes without gradients


def text_probs(
    model: Any,
    tokens: Tokens,
    pad_id: int,
    device: torch.device,
    precision: str,
    progress: Progress = no_progress,
) -> FloatArray:
    """(n, k) class probabilities of texts, rows sum to 1; see ``Tokens.together``."""
    progress = tokens.per_text(progress)
    return tokens.together(class_probs(model, tokens.rows, pad_id, device, precision, progress))


def class_probs(
    model: Any,
    ids: Sequence[IntArray],
    pad_id: int,
    device: torch.device,
    precision: str,
    progress: Progress = no_progress,
) -> FloatArray:
    """(n, k) class probabilities, rows sum to 1."""
    probs = np.zeros((len(ids), model.config.num_labels))
    for rows, _, out in _passes(model, ids, pad_id, device, precision):
        probs[rows] = torch.softmax(out.logits.double(), -1).cpu().numpy()
        progress(len(rows))
    return probs


def mean_embeddings(
    model: Any,
    ids: Sequence[IntArray],
    pad_id: int,
    device: torch.device,
    precision: str,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """(n, d) mean of the last layer over the text's tokens."""
    embeddings = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    for rows, mask, out in _passes(model, ids, pad_id, device, precision):
        there = mask[:, :, None].float()
        mean = (out.last_hidden_state.float() * there).sum(1) / there.sum(1)
        embeddings[rows] = mean.cpu().numpy()
        progress(len(rows))
    return embeddings


def _passes(
    model: Any, ids: Sequence[IntArray], pad_id: int, device: torch.device, precision: str
) -> Iterator[tuple[list[int], torch.Tensor, Any]]:
    """Rows, their mask and the model's output; a pass that memory does not hold is halved."""
    waiting = [*batches_by_length(ids, CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)][::-1]
    while waiting:
        rows = waiting.pop()
        try:
            tokens, mask = pad([ids[row] for row in rows], pad_id, device)
            with torch.inference_mode(), autocast(device, precision):
                out = model(input_ids=tokens, attention_mask=mask)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            if len(rows) == 1:
                raise StudentError(
                    f"Memory does not hold even one text of {len(ids[rows[0]])} tokens; free some, "
                    "or take a smaller encoder or fewer tokens."
                ) from exc
            half = -(-len(rows) // 2)
            waiting += [rows[half:], rows[:half]]
            continue
        yield rows, mask, out


class SavedClassifier:
    """A model that training saved, kept in memory to be asked again and again.

    Args:
        folder: of the model; its columns stand in the order of ``labels`` in goldloop.json.
    Raises:
        StudentError: the folder holds no such model.
    """

    def __init__(
        self, folder: str | Path, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        encoder = find_encoder(folder)
        self._device = choose_device(device)
        self._precision = choose_precision(precision, self._device)
        self._tokenizer = load_tokenizer(encoder)
        self._model = load_classifier(encoder).to(self._device).eval()
        record = read_record(encoder)
        self._limit = token_limit(self._model.config, int(record["max_tokens"]))
        self._long_texts = str(record.get("long_texts", "head_tail"))

    def __call__(self, texts: Sequence[str], progress: Progress = no_progress) -> FloatArray:
        """(n, k) class probabilities."""
        tokens = tokenise(self._tokenizer, texts, self._limit, self._long_texts)
        pad_id = self._tokenizer.pad_token_id
        return text_probs(self._model, tokens, pad_id, self._device, self._precision, progress)


def predict(
    folder: str | Path,
    texts: Sequence[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = no_progress,
) -> FloatArray:
    """(n, k) class probabilities of a model that training saved.

    Columns stand in the order of ``labels`` in the folder's goldloop.json.

    Raises:
        StudentError: the folder holds no such model.
    """
    return SavedClassifier(folder, device=device, precision=precision)(texts, progress)


def read_record(folder: Path) -> dict[str, Any]:
    """What training wrote beside the model that it saved in ``folder``: settings, labels, seed.

    Raises:
        StudentError: there is none, or it cannot be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        int(record["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StudentError(
            f"{folder} holds no readable {RECORD}; goldloop predicts with models that it saved."
        ) from exc
    checked: dict[str, Any] = record
    return checked


def load_whole(folder: Path, attention: str | None = None) -> Any:
    """The classifier in a folder; transformers would draw weights that are not there at random.

    Args:
        attention: as in ``loop.student.encoder_files.load_classifier``.
    Raises:
        StudentError: weights are missing or cannot be read.
    """
    shapes: dict[str, list[int]] = {}
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as weights:
                names = list(weights.keys())
                shapes |= {name: weights.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError) as exc:
        raise damaged_model(folder, f"its weights cannot be read ({exc})") from exc
    model = load_classifier(folder, attention=attention)
    lost = [n for n, p in model.named_parameters() if shapes.get(n) != list(p.shape)]
    if lost:
        raise damaged_model(folder, f"{len(lost)} of its weights are not there, {lost[0]} for one")
    return model


def damaged_model(folder: Path, why: str) -> StudentError:
    """The error of a saved model that cannot be read."""
    return StudentError(
        f"The model in {folder} is damaged: {why}; make it again with `goldloop model --force`."
    )
