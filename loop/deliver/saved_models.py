"""Arithmetic on the weights of saved classifiers: their average, and a temperature built in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from loop.student.encoder_files import RECORD, load_classifier

PROBE = 12  # token ids that a built-in temperature is tried on


def average(folders: Sequence[Path]) -> Any:
    """The uniform average of classifiers that were fine-tuned from the same encoder.

    Only the encoder's weights begin alike: each seed draws a head of its own. Where the head is
    one linear layer on the encoder (BERT, MiniLM), its inputs and outputs mean the same in every
    seed and the average of heads is a head. Where the head has a hidden layer that is drawn again
    (RoBERTa, DistilBERT), hidden units of different seeds have nothing in common and the average
    may be useless: judge it by held-out labels, never ship it unseen.

    Raises:
        StudentError: one of them cannot be loaded.
    Source: Wortsman et al. 2022, Model soups.
    """
    model = load_classifier(folders[0])
    total = {name: value.clone() for name, value in model.state_dict().items()}
    for folder in folders[1:]:
        for name, value in load_classifier(folder).state_dict().items():
            if total[name].is_floating_point():
                total[name] += value
    for name, value in total.items():
        if value.is_floating_point():
            total[name] = value / len(folders)
    model.load_state_dict(total)
    return model


def build_in_temperature(model: Any, temperature: float) -> bool:
    """Divides the last layer by the temperature, so that every user of the model is calibrated.

    Returns:
        Whether the logits are now what they were, divided; else the model is as before.
    """
    inside = {id(module) for module in model.base_model.modules()}
    layers = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        and id(module) not in inside
        and module.out_features == model.config.num_labels
    ]
    if not layers:
        return False
    before = _probe_logits(model)
    _divide(layers[-1], temperature)
    if torch.allclose(before / temperature, _probe_logits(model), rtol=1e-3, atol=1e-5):
        return True
    _divide(layers[-1], 1.0 / temperature)
    return False


@torch.no_grad()
def _divide(layer: torch.nn.Linear, by: float) -> None:
    layer.weight.div_(by)
    if layer.bias is not None:
        layer.bias.div_(by)


def _probe_logits(model: Any) -> torch.Tensor:
    model.eval()
    tokens = torch.arange(PROBE)[None] % model.config.vocab_size
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    return logits


def record_of(folder: Path) -> dict[str, Any]:
    """What goldloop noted in a model's folder; empty where nothing readable is there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the model and every seed that the record names are there and not cut short."""
    for place in [folder, *(folder / name for name in record.get("seeds", ()))]:
        weights = list(place.glob("*.safetensors"))
        if not weights or not (place / "config.json").is_file():
            return False
        try:
            for file in weights:
                with safe_open(file, framework="pt"):  # compares its length with its header
                    pass
        except (OSError, SafetensorError):
            return False
    return True


def is_seed_model(folder: Path, seed: int, revision: str) -> bool:
    """Whether the folder holds this seed's whole model."""
    record = record_of(folder)
    mine = (record.get("seed"), record.get("student")) == (seed, revision)
    return mine and is_whole(folder, {})
