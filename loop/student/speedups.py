"""What makes training quick without changing what is learned.

Each shortcut is tried on the loaded model and kept only where the logits stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch.overrides import TorchFunctionMode

from loop.ports import IntArray


class ByteDropout(TorchFunctionMode):
    """Dropout from one random byte per element, on the CPU.

    torch draws each element's coin from a 32-bit generator, an eighth of the time of a step.
    Rates are rounded to 1/256 (0.1 becomes 26/256), and the scale matches the rounded rate, so
    that expectations stay exact.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._bits = np.random.SFC64(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replaces ``torch.nn.functional.dropout`` and lets everything else pass."""
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        lost = round(p * 256)
        if not training or p == 0:
            return x
        if not 0 < lost < 256 or inplace:
            return F.dropout(x, p, training, inplace)
        n = x.numel()
        random = self._bits.random_raw(-(-n // 8)).view(np.uint8)[:n]
        keep = torch.from_numpy(random).view(x.shape) >= lost
        return x * keep.to(x.dtype).mul_(256 / (256 - lost))


class TrimmedVocabulary:
    """Keeps only the token rows that occur, so that the optimiser touches no others.

    Attributes:
        used: token ids that are kept, ascending; their positions are the new ids.
    """

    def __init__(self, model: Any, ids: Sequence[IntArray], pad_id: int) -> None:
        self._model = model
        self._full = model.get_input_embeddings()
        # RoBERTa's kind read positions off the padding id, so low ids must keep their place
        low = np.arange(pad_id + 1) if pad_id < 1000 else np.array([pad_id])
        self.used = np.unique(np.concatenate([low, *ids]))
        self.pad_id = int(np.searchsorted(self.used, pad_id))
        rows = self._full.weight.detach()[torch.from_numpy(self.used).to(self._full.weight.device)]
        padding = self._full.padding_idx
        embedding: Any = torch.nn.Embedding
        trimmed = embedding.from_pretrained(
            rows.clone(), freeze=False, padding_idx=None if padding is None else self.pad_id
        )
        model.set_input_embeddings(trimmed)

    def ids(self, full: IntArray) -> IntArray:
        """Old token ids -> new ones."""
        return np.asarray(np.searchsorted(self.used, full), dtype=np.int64)

    def restore(self) -> None:
        """Puts the trained rows back into the whole table."""
        rows = self._model.get_input_embeddings().weight.detach()
        with torch.no_grad():
            self._full.to(rows.device).weight[torch.from_numpy(self.used).to(rows.device)] = rows
        self._model.set_input_embeddings(self._full)


def trim_vocabulary(model: Any, ids: Sequence[IntArray], pad_id: int) -> TrimmedVocabulary | None:
    """Trims the token table, or leaves it and returns None where that would change logits."""
    probe = _probe(ids)
    before = _logits(model, probe, pad_id)
    trimmed = TrimmedVocabulary(model, ids, pad_id)
    after = _logits(model, [trimmed.ids(row) for row in probe], trimmed.pad_id)
    if torch.equal(before, after):
        return trimmed
    trimmed.restore()
    return None


def first_token_only(model: Any, ids: Sequence[IntArray], pad_id: int) -> bool:
    """Computes the last layer only for the token that the head reads, in BERT's kind of encoder.

    Needs eager attention, whose mask is additive and (b, 1, q, l).

    Returns:
        Whether the model took it.
    """
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        return False
    layer: Any = layers[-1]
    names = ("query", "key", "value", "dropout", "attention_head_size")
    inner: Any = getattr(getattr(layer, "attention", None), "self", None)
    if not all(hasattr(inner, name) for name in names) or not hasattr(layer, "intermediate"):
        return False
    # Not the layer itself: a model that refers to itself would outlive its use.
    attended_output, intermediate, output = layer.attention.output, layer.intermediate, layer.output

    def forward(
        hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        first = hidden[:, :1]
        query = _heads(inner.query(first), inner.attention_head_size)
        key = _heads(inner.key(hidden), inner.attention_head_size)
        value = _heads(inner.value(hidden), inner.attention_head_size)
        scores = query @ key.transpose(2, 3) * inner.attention_head_size**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, :1]
        weights = inner.dropout(torch.softmax(scores, -1))
        mixed = (weights @ value).transpose(1, 2).reshape(first.shape[0], 1, -1)
        attended = attended_output(mixed, first)
        out: torch.Tensor = output(intermediate(attended), attended)
        return out

    probe = _probe(ids)
    before = _logits(model, probe, pad_id)
    layer.forward = forward
    try:
        if torch.allclose(before, _logits(model, probe, pad_id), rtol=1e-4, atol=1e-5):
            return True
    except (RuntimeError, TypeError, AttributeError, IndexError):
        pass  # another kind of layer after all
    del layer.forward
    return False


def _heads(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.view(x.shape[0], x.shape[1], -1, size).transpose(1, 2)


def _probe(ids: Sequence[IntArray]) -> list[IntArray]:
    """Two beginnings of texts of different lengths, so that padding is tried as well."""
    return [ids[0][:24], ids[-1][:9]]


def _logits(model: Any, ids: Sequence[IntArray], pad_id: int) -> torch.Tensor:
    from loop.student.inference import pad

    training = model.training
    model.eval()
    tokens, mask = pad(ids, pad_id, model.device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens, attention_mask=mask).logits
    model.train(training)
    return logits
