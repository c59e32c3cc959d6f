"""Embeddings of a campaign's texts, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loop.files import replacing
from loop.store import Item

if TYPE_CHECKING:
    from loop.context import Context


def embeddings(ctx: Context, items: Sequence[Item]) -> NDArray[np.float32]:
    """(n, d) embeddings, kept in a file per encoder and set of texts.

    Raises:
        StudentError: the encoder cannot be loaded.
    """
    key = hashlib.sha256(json.dumps([ctx.student.revision, *[i.id for i in items]]).encode())
    path = ctx.config.out / "cache" / f"embeddings-{key.hexdigest()[:16]}.npy"
    if path.exists():
        cached: NDArray[np.float32] = np.load(path, allow_pickle=False)
        if len(cached) == len(items):
            return cached
    with ctx.show("Embedding the texts", len(items)) as progress:
        found = ctx.student.embed([i.text for i in items], progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.save(file, found, allow_pickle=False)
    return found
