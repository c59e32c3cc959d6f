"""Embeddings, nearest neighbours and the last quick students, kept beside the store.

Embeddings are kept in float16 and mapped, not read, into memory: whoever works with them reads them
block by block. A file is replaced, never changed, so that a mapping stays as it was made.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from loop.campaign.context import Context
from loop.campaign.tables import Item, ItemKey, Round
from loop.chance import stream
from loop.errors import StudentError
from loop.files import replacing
from strategies.pool import FloatArray, IntArray, Neighbours, Vectors, all_alike, all_finite, blocks

EMBEDDED_AT_ONCE = 50_000  # texts whose embeddings are in memory in float32
LARGEST = float(np.finfo(np.float16).max)
AGAIN = "They are computed again."
FORM = 1  # raise it when neighbours or students of the same embeddings change

Arrays = dict[str, NDArray[Any]]
Half = NDArray[np.float16]
Ids = NDArray[np.bytes_]


def item_embeddings(ctx: Context, items: Sequence[Item | ItemKey]) -> Half:
    """(n, d) embeddings of n items; read only, where they are mapped.

    Texts that have come since the file was written are added to it. A file that is damaged is
    computed again, and one that cannot be written is done without; both are said.

    Raises:
        StudentError: the encoder cannot be loaded.
    """
    path = _path(ctx, "embeddings")
    wanted = _ids(items)
    ids, vectors = _kept_embeddings(ctx, path)
    missing = np.flatnonzero(_places(ids, wanted) < 0)
    if len(missing):
        new = _embedded(ctx, [items[row] for row in missing])
        ids = np.concatenate([ids, wanted[missing]])
        vectors = np.concatenate([vectors, new]) if len(vectors) else new
        if _keep(ctx, path, "embeddings", ids=ids, embeddings=vectors):
            ids, vectors = _kept_embeddings(ctx, path)
    place = _places(ids, wanted)
    first = int(place[0]) if len(place) else 0
    if np.array_equal(place, np.arange(first, first + len(place))):
        return vectors[first : first + len(place)]  # no copy
    return vectors[place]


def item_neighbours(
    ctx: Context, items: Sequence[Item | ItemKey], embeddings: Vectors
) -> Neighbours:
    """The neighbours of n > 1 items, kept for as long as the texts stay the same.

    Args:
        embeddings: (n, d) of the items.

    Raises:
        ValueError: an embedding of length zero.
    """
    from strategies.signals.neighbours import K_NEIGHBOURS, SPARE, find_neighbours

    def find() -> Arrays:
        neighbours = find_neighbours(embeddings, "item_neighbours")
        group = neighbours.group.astype(np.int32)
        return {"group": group, "rows": neighbours.rows, "cosines": neighbours.cosines}

    def fits(group: NDArray[Any], rows: NDArray[Any], cosines: NDArray[Any]) -> bool:
        shapes = (group.shape, rows.ndim, rows.shape) == ((len(items),), 2, cosines.shape)
        kinds = [array.dtype.str for array in (group, rows, cosines)] == ["<i4", "<i4", "<f4"]
        return (
            shapes
            and kinds
            and 0 <= int(group.min()) <= int(group.max()) < len(rows)
            and -1 <= int(rows.min()) <= int(rows.max()) < len(rows)
        )

    made_of = [_ids(items), np.array([K_NEIGHBOURS + SPARE, *embeddings.shape])]
    kept = made_once(ctx, "neighbours", made_of, find, fits)
    return Neighbours(kept["group"].astype(np.int64), kept["rows"], kept["cosines"])


def item_students(
    ctx: Context,
    items: Sequence[Item | ItemKey],
    embeddings: Vectors,
    y: IntArray,
    weight: FloatArray,
    round_: Round,
    *,
    purpose: str,
) -> FloatArray:
    """(s, n, k) out-of-fold probabilities of a round's s quick students, in single precision.

    The last ones for each purpose are kept: a round that is measured asks again for those that it
    chose its texts by.

    Args:
        embeddings, y, weight: as in ``out_of_fold_probs``.
        round_: decides what is drawn.
    Raises:
        StudentError: fewer than two texts have a label to learn, or their embeddings are the same.
    """
    from strategies.signals import students

    taught = weight > 0
    if taught.sum() < 2:
        raise StudentError(
            f"Of {len(items):,} texts to label only {int(taught.sum())} has a label that a student"
            " can learn, and it takes two; ask the LLM again with `goldloop annotate --retry`."
        )
    if all_alike(embeddings, taught):
        raise StudentError(
            f"The encoder {ctx.config.student.encoder!r} sees no difference between the"
            f" {int(taught.sum()):,} texts, perhaps because it does not know their language or"
            " script; set student.encoder to one that does and run the command again. What was"
            " labelled is kept."
        )

    k, seeds = len(ctx.config.labels), ctx.config.student.seeds

    def train() -> Arrays:
        rng = stream("out-of-fold students", round_.seed, round_.number)
        probs = students.out_of_fold_probs(embeddings, y, weight, k, seeds=seeds, rng=rng)
        return {"probs": probs.astype(np.float32)}

    def fits(probs: NDArray[Any]) -> bool:
        right = (probs.shape, probs.dtype.str) == ((seeds, len(items), k), "<f4")
        return right and bool(np.isfinite(probs).all())

    drawn = np.array([k, seeds, round_.seed, round_.number, *embeddings.shape])
    kept = made_once(ctx, f"{purpose}-students", [_ids(items), y, weight, drawn], train, fits)
    return kept["probs"].astype(np.float64)


def kept_judges(
    ctx: Context, items: Sequence[Item | ItemKey], round_: Round, k: int
) -> FloatArray | None:
    """(n, k) what a round's judges said of n items, a row of NaN where they said nothing.

    Returns:
        None where no judge learned anything, or where nothing sound is kept, which is said.
    """
    path, what = _path(ctx, judges_of(round_)), "opinions of the judges"
    without = f"Suspicion goes without what they said in round {round_.number}."
    kept = _kept(ctx, path, what, then=without)
    if kept is None:
        if not path.exists():
            _say_unusable(ctx, path, what, "they are missing", then=without)
        return None
    ids, probs = np.array(kept.get("ids", []), dtype="S"), kept.get("probs", np.empty(0))
    if probs.shape == (0, k):
        return None
    right = probs.shape == (len(ids), k) and probs.dtype.str == "<f8" and len(ids) > 0
    if not right or not np.allclose(probs.sum(axis=1), 1.0) or (probs < 0).any():
        _say_unusable(ctx, path, what, "it is damaged, or of other labels", then=without)
        return None
    place = _places(ids, _ids(items))
    return np.where(place[:, None] >= 0, probs[place], np.nan).astype(np.float64)


def judges_of(round_: Round) -> str:
    """The name by which the opinions of a round's judges are kept, see ``made_once``."""
    return f"label-judges-{round_.number}-{round_.seed}"


def made_once(
    ctx: Context,
    what: str,
    made_of: Sequence[NDArray[Any]],
    make: Callable[[], Arrays],
    fits: Callable[..., bool],
) -> Arrays:
    """What was made last, if it was made of the same; else it is made, and kept.

    Args:
        fits: given the arrays by name, whether they can be what they are said to be.
    """
    path = _path(ctx, what)
    digest = hashlib.sha256(f"{FORM}".encode())
    for array in made_of:
        digest.update(array.tobytes())
    of = np.frombuffer(digest.digest(), dtype=np.uint8)
    kept = _kept(ctx, path, what)
    if kept is not None and np.array_equal(kept.pop("of", np.empty(0)), of):
        with suppress(TypeError, ValueError):  # other names, or nothing in an array
            if fits(**kept):
                return kept
        _say_unusable(ctx, path, what, "it is damaged")
    made = make()
    _keep(ctx, path, what, of=of, **made)
    return made


def _path(ctx: Context, of_what: str) -> Path:
    key = hashlib.sha256(ctx.student.revision.encode()).hexdigest()[:16]
    return ctx.config.out / "cache" / f"{of_what}-{key}.npz"


def _ids(items: Sequence[Item | ItemKey]) -> Ids:
    return np.array([item.id for item in items], dtype="S")


def _places(ids: Ids, wanted: Ids) -> IntArray:
    """(n,) place of each wanted id among the ids, -1 where it is not among them."""
    n = len(wanted)
    if np.array_equal(ids[:n], wanted):
        return np.arange(n)
    if not len(ids):
        return np.full(n, -1)
    order = np.argsort(ids)
    at = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[at] == wanted, at, -1)


def _embedded(ctx: Context, items: Sequence[Item | ItemKey]) -> Half:
    """(n, d) embeddings of n texts, computed now."""
    out = np.empty((0, 0), dtype=np.float16)
    with ctx.show("Embedding the texts", len(items)) as progress:
        for start in range(0, len(items), EMBEDDED_AT_ONCE):
            chunk = items[start : start + EMBEDDED_AT_ONCE]
            texts = ctx.store.texts_of(ctx.name, chunk)
            vectors = ctx.student.embed([texts[item.id] for item in chunk], progress)
            if not start:
                out = np.empty((len(items), vectors.shape[1]), dtype=np.float16)
            out[start : start + len(chunk)] = _half(vectors)
    return out


def _half(vectors: NDArray[np.float32]) -> Half:
    return np.clip(vectors, -LARGEST, LARGEST).astype(np.float16)


def _kept_embeddings(ctx: Context, path: Path) -> tuple[Ids, Half]:
    """Item ids and their embeddings in the file; nothing where there is no sound one."""
    nothing = np.empty(0, dtype="S1"), np.empty((0, 0), dtype=np.float16)
    kept = _kept(ctx, path, "embeddings")
    if kept is None:
        return nothing
    if not {"ids", "embeddings"} <= kept.keys():
        _say_unusable(ctx, path, "embeddings", "it is damaged")
        return nothing
    ids, vectors = np.array(kept["ids"], dtype="S"), kept["embeddings"]
    if vectors.ndim != 2 or len(ids) != len(vectors) or vectors.dtype not in ("<f2", "<f4"):
        problem = f"it holds {vectors.dtype} of shape {vectors.shape} for {len(ids)} texts"
    elif not all_finite(vectors):
        problem = "not every number in it is finite"
    elif vectors.dtype == np.float16:
        return ids, vectors
    else:  # as earlier versions kept them
        out = np.empty(vectors.shape, dtype=np.float16)
        for block in blocks(len(vectors)):
            out[block] = _half(vectors[block])
        return ids, out
    _say_unusable(ctx, path, "embeddings", problem)
    return nothing


def _kept(ctx: Context, path: Path, what: str, *, then: str = AGAIN) -> Arrays | None:
    """The arrays of a file, mapped; None where there is no sound one.

    Args:
        then: what happens without it.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return {
                info.filename.removesuffix(".npy"): _mapped(file, archive, info)
                for info in archive.infolist()
            }
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile):
        _say_unusable(ctx, path, what, "it is damaged", then=then)
        return None


def _mapped(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """An array of an .npz file that is not compressed, once its checksum is found right.

    Raises:
        ValueError, EOFError, zipfile.BadZipFile: it is damaged, or not as ``np.savez`` writes it.
    """
    form: Any = np.lib.format
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with archive.open(info) as member:
        if form.read_magic(member) != (1, 0):
            raise ValueError(f"{info.filename} is of another version of numpy's format")
        shape, fortran, dtype = form.read_array_header_1_0(member)
        head = member.tell()
        while member.read(1 << 20):  # to the end, where the checksum is compared
            pass
    if fortran or dtype.hasobject:
        raise ValueError(f"{info.filename} is not kept as np.savez keeps an array")
    file.seek(info.header_offset)
    local = file.read(30)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if 0 in shape:
        return np.empty(shape, dtype=dtype)
    begins = info.header_offset + len(local) + lengths + head
    return np.asarray(np.memmap(file, dtype, "r", begins, shape))


def _say_unusable(ctx: Context, path: Path, what: str, problem: str, *, then: str = AGAIN) -> None:
    ctx.say(f"The {what} kept in {path} cannot be used: {problem}. {then}")


def _keep(ctx: Context, path: Path, what: str, **arrays: NDArray[Any]) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as exc:
        ctx.say(
            f"The {what} cannot be kept in {path}: {exc.strerror or exc}. The campaign continues"
            " without; they are computed again when they are needed next."
        )
        return False
    return True
