"""Texts into batches, batches through an encoder, without gradients.

Device, precision and padding are chosen here for training as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loop.encoder import RECORD, find_encoder, load_classifier, load_tokenizer
from loop.errors import StudentError
from loop.ports import FloatArray, IntArray, Progress, no_progress

HEAD_FRAC = 0.25  # Sun et al. 2020: 128 of 510 tokens from the head, the rest from the tail
CPU_TOKENS, GPU_TOKENS = 1024, 65_536  # padded tokens of one pass; larger ones leave the CPU cache


# device and precision


def choose_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as exc:
        raise StudentError(
            f"Device {device!r} cannot be used here; set student.device to 'auto' or 'cpu'."
        ) from exc
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """bf16 where the hardware multiplies it natively, fp16 on older GPUs, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = set(flags[: 1 << 16].split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for forward passes; does nothing in fp32."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


# texts in, batches out


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
    found = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    head = 1 + round((limit - 2) * HEAD_FRAC)
    return [
        np.asarray(
            ids if len(ids) <= limit else [*ids[:head], *ids[head - limit :]], dtype=np.int64
        )
        for ids in found
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
    for rows, (tokens, mask) in _passes(ids, pad_id, device):
        with torch.inference_mode(), autocast(device, precision):
            logits = model(input_ids=tokens, attention_mask=mask).logits
        probs[rows] = torch.softmax(logits.double(), -1).cpu().numpy()
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
    found = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    for rows, (tokens, mask) in _passes(ids, pad_id, device):
        with torch.inference_mode(), autocast(device, precision):
            hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        there = mask[:, :, None].float()
        found[rows] = ((hidden.float() * there).sum(1) / there.sum(1)).cpu().numpy()
        progress(len(rows))
    return found


def _passes(
    ids: Sequence[IntArray], pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], tuple[torch.Tensor, torch.Tensor]]]:
    budget = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    for rows in batches_by_length(ids, budget):
        yield rows, pad([ids[row] for row in rows], pad_id, device)


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
        found = find_encoder(folder)
        self._device = choose_device(device)
        self._precision = choose_precision(precision, self._device)
        self._tokenizer = load_tokenizer(found)
        self._model = load_classifier(found).to(self._device).eval()
        self._limit = token_limit(self._model.config, _saved_max_tokens(found))

    def __call__(self, texts: Sequence[str], progress: Progress = no_progress) -> FloatArray:
        """(n, k) class probabilities."""
        ids = encode(self._tokenizer, texts, self._limit)
        pad_id = self._tokenizer.pad_token_id or 0
        return class_probs(self._model, ids, pad_id, self._device, self._precision, progress)


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


def _saved_max_tokens(folder: Path) -> int:
    try:
        return int(json.loads((folder / RECORD).read_text(encoding="utf-8"))["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StudentError(
            f"{folder} holds no readable {RECORD}; goldloop predicts with models that it saved."
        ) from exc
