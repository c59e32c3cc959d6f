"""Chance that can be repeated: it depends on a seed and a purpose, never on the moment."""

from __future__ import annotations

import hashlib


def unit_hash(seed: int, purpose: str, item: str) -> float:
    """A number in [0, 1) that depends only on the seed, the purpose and the item's id."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{item}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
