"""How many tokens a text has for a local language model, for plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loop.errors import AnnotatorError
from loop.ports import IntArray


def token_counter(model: str | Path) -> Callable[[Sequence[str]], IntArray]:
    """Counts with the model's own tokenizer; the weights are not loaded.

    Args:
        model: the embedded model's name, or a folder with a tokenizer.

    Raises:
        AnnotatorError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    from connectors.local_lm import EMBEDDED

    if model == EMBEDDED:
        from connectors.assets import smollm2_dir

        model = smollm2_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(model).expanduser(), local_files_only=True)
    except (OSError, ValueError) as exc:
        raise AnnotatorError(f"There is no tokenizer at {model}; name a model's folder.") from exc

    def count(texts: Sequence[str]) -> IntArray:
        found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in found], dtype=np.int64)

    return count
