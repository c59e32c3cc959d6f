"""What makes two texts the same item: one normal form, one id."""

from __future__ import annotations

import hashlib
import unicodedata


def normalise(text: str) -> str:
    """The text with Unicode NFC, every run of white space as one space, and none at the ends.

    Two texts with the same normal form are the same item. Case, punctuation and markup count.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def unit_hash(seed: int, purpose: str, item: str) -> float:
    """A number in [0, 1) that depends only on the seed, the purpose and the item's id."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{item}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def item_id(campaign: str, text: str) -> str:
    """20 hex digits of SHA-256 over campaign, NUL and the normalised text.

    The same text has another id in another campaign; NUL keeps the two parts from running together.
    """
    seen = f"{campaign}\0{normalise(text)}"
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:20]
