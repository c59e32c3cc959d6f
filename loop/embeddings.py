"""Embeddings of a campaign's texts, each text embedded once per encoder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loop.files import replacing
from loop.store import Item

if TYPE_CHECKING:
    from loop.context import Context

Vectors = NDArray[np.float32]


def embeddings(ctx: Context, items: Sequence[Item]) -> Vectors:
    """(n, d) embeddings of n items, kept in one file per encoder.

    Texts that have come since the file was written are added to it. A file that is damaged is
    computed anew, and one that cannot be written is done without; both are said.

    Raises:
        StudentError: the encoder cannot be loaded.
    """
    key = hashlib.sha256(ctx.student.revision.encode()).hexdigest()[:16]
    path = ctx.config.out / "cache" / f"embeddings-{key}.npz"
    ids, vectors = _kept(ctx, path)
    row = {item_id: i for i, item_id in enumerate(ids)}
    missing = [item for item in items if item.id not in row]
    if missing:
        with ctx.show("Embedding the texts", len(missing)) as progress:
            new = ctx.student.embed([item.text for item in missing], progress)
        row |= {item.id: len(ids) + i for i, item in enumerate(missing)}
        vectors = np.concatenate([vectors, new]) if len(ids) else new
        _keep(ctx, path, list(row), vectors)
    return vectors[[row[item.id] for item in items]]


def _kept(ctx: Context, path: Path) -> tuple[list[str], Vectors]:
    """Item ids and their embeddings in the file; nothing where there is no sound one."""
    nothing: tuple[list[str], Vectors] = ([], np.empty((0, 0), dtype=np.float32))
    if not path.exists():
        return nothing
    try:
        # a zip file carries a checksum of each array
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            ids, vectors = arrays["ids"].astype(str).tolist(), arrays["embeddings"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        problem = "it is damaged"
    else:
        if vectors.ndim != 2 or len(ids) != len(vectors) or vectors.dtype != np.float32:
            problem = f"it holds {vectors.dtype} of shape {vectors.shape} for {len(ids)} texts"
        elif not np.isfinite(vectors).all():
            problem = "not every number in it is finite"
        else:
            return ids, vectors
    ctx.say(f"The embeddings kept in {path} cannot be used: {problem}. They are computed anew.")
    return nothing


def _keep(ctx: Context, path: Path, ids: Sequence[str], vectors: Vectors) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, ids=np.array(ids, dtype="S"), embeddings=vectors)
    except OSError as exc:
        ctx.say(
            f"The embeddings cannot be kept in {path}: {exc.strerror or exc}. The campaign goes on"
            " without; they are computed anew when they are needed next."
        )
