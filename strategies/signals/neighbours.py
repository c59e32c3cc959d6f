"""Suspicion from the labels of the nearest texts (FAISS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.pool import FloatArray, IntArray, Pool, clip_unit

K_NEIGHBOURS = 10
GOLD_WEIGHT = 3.0  # one gold neighbour speaks as loudly as three that only the LLM labelled
EXACT_UP_TO = 50_000  # exact search costs n^2; beyond this codes find 99 % of its neighbours
ALL_CODES_UP_TO = 200_000  # codes cost n^2, too; beyond this only those of the nearest lists
LISTS_PER_ROOT, LISTS_READ = 4, 64  # of 4 sqrt(n) lists, so many are read for each text
LIST_SAMPLE, LIST_ROUNDS = 64, 8  # texts a list, and rounds, that its centre is learned from
PAIRED_FROM = 256  # dimensions from which two share a four-bit code
SHORTLIST = 4  # of so many times k by their codes, the exact k best are taken
SAME_TEXT = 0.999  # cosine from which two texts count as the same text
SPARE = 6  # neighbours asked for beyond K_NEIGHBOURS, to replace the ones that are left out


def knn_disagreement(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Weighted share of the nearest texts whose label differs from the item's LLM label.

    Neighbours speak with their gold label where it is known, and louder. Texts with the same
    embedding speak once, as one neighbour. A text nearly the same as the item is evidence only if
    it brings news: a gold label, or another LLM label than the item's; that the LLM said the same
    thing twice about one text says nothing. The item's own gold label is never read.

    Args:
        pool: uses ``embeddings``, ``y_llm`` and the ``gold`` of the other items.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; items without any evidence get the mean of the others.

    Raises:
        ValueError: the pool has no embeddings, or an embedding of length zero.
    Source: Wilson 1972, edited nearest neighbours; Bahri et al. 2020, deep k-NN.
    """
    return disagreement(neighbour_evidence(pool, "knn_disagreement"), pool.y_llm)


def disagreement(evidence: FloatArray, y_llm: IntArray) -> FloatArray:
    """Share of the evidence that speaks against each label.

    Args:
        evidence: (n, k) of ``neighbour_evidence``.
        y_llm: (n,) the labels.

    Returns:
        (n,) in [0, 1]; items without any evidence get the mean of the others.
    """
    total: FloatArray = evidence.sum(axis=1)
    own = evidence[np.arange(len(y_llm)), y_llm]
    score = np.divide(total - own, total, out=np.zeros(len(y_llm)), where=total > 0)
    heard = total > 0
    score[~heard] = score[heard].mean() if heard.any() else 0.5
    return clip_unit(score)


def knn_label_std(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Standard deviation of the labels of the item and its nearest texts, for ordered classes.

    Neighbours count as in ``knn_disagreement``; the item adds its own LLM label, else a stray
    label amid unanimous neighbours would look safe.

    Args:
        pool: uses ``embeddings``, ``y_llm``, the ``gold`` of the other items; ``ordinal`` is true.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; 1 is the largest deviation that labels 0 to k - 1 can have.

    Raises:
        ValueError: the classes have no order, or the pool has no embeddings.
    Source: Chan's study of SST-5, query by committee of the nearest neighbours.
    """
    if not pool.ordinal:
        raise ValueError("knn_label_std needs ordered classes; use knn_disagreement instead")
    evidence = neighbour_evidence(pool, "knn_label_std")
    evidence[np.arange(pool.n), pool.y_llm] += 1.0
    share = evidence / evidence.sum(axis=1, keepdims=True)
    level = np.arange(pool.k, dtype=np.float64)
    mean = share @ level
    variance: FloatArray = (share * (level[None, :] - mean[:, None]) ** 2).sum(axis=1)
    return clip_unit(np.sqrt(np.maximum(variance, 0.0)) * 2.0 / (pool.k - 1))


def unsure_neighbours(pool: Pool, rng: np.random.Generator) -> FloatArray:
    """Share of texts that people could give no label among the nearest ones that they answered.

    Args:
        pool: uses ``embeddings``, ``gold`` and ``unsure``; never what people said of the item
            itself.
        rng: unused; part of the contract.

    Returns:
        (n,) in [0, 1]; all 0 while people could label everything.

    Raises:
        ValueError: the pool has no embeddings, or an embedding of length zero.
    """
    import faiss

    if pool.embeddings is None:
        raise ValueError("unsure_neighbours needs embeddings, this pool has none")
    unsure = np.zeros(pool.n, dtype=np.bool_) if pool.unsure is None else pool.unsure
    answered = np.flatnonzero((pool.gold >= 0) | unsure)
    if not unsure.any():
        return np.zeros(pool.n)
    units = unit_rows(pool.embeddings, "unsure_neighbours")
    index: Any = faiss.IndexFlatIP(units.shape[1])
    index.add(units[answered])
    _, nearest_rows = index.search(units, min(K_NEIGHBOURS + 1, len(answered)))
    near = answered[nearest_rows]
    other = near != np.arange(pool.n)[:, None]
    other &= np.cumsum(other, axis=1) <= K_NEIGHBOURS
    heard = other.sum(axis=1)
    share = (unsure[near] & other).sum(axis=1) / np.maximum(heard, 1)
    return np.asarray(share, dtype=np.float64)


def same_embedding(embeddings: NDArray[np.float32] | NDArray[np.float16]) -> IntArray:
    """Groups rows that are equal up to rounding: (n,) group of each row, 0 to groups - 1.

    Groups are numbered by content, not by position.
    """
    scale = np.float32(np.abs(embeddings).max() if embeddings.size else 1.0) or np.float32(1.0)
    rows: list[bytes] = []
    for start in range(0, len(embeddings), 4096):  # a part fits into the processor's cache
        part = embeddings[start : start + 4096].astype(np.float32) / scale
        np.round(part, 5, out=part)
        part += 0.0  # no negative zero
        rows += [row.tobytes() for row in part]
    # A hash table finds equal rows; only the distinct ones are sorted.
    place = {row: group for group, row in enumerate(sorted(set(rows)))}
    return np.array([place[row] for row in rows], dtype=np.int64)


def unit_rows(embeddings: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Rows scaled to length 1, so that inner products are cosines.

    Raises:
        ValueError: a row has length zero.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (length == 0).any():
        zero = int((length == 0).sum())
        raise ValueError(f"{name} needs embeddings, but {zero} rows are all zero")
    return np.ascontiguousarray(embeddings / length, dtype=np.float32)


def nearest(
    vectors: NDArray[np.float32],
    k: int,
    *,
    exact_up_to: int = EXACT_UP_TO,
    all_codes_up_to: int = ALL_CODES_UP_TO,
) -> tuple[NDArray[np.float32], IntArray]:
    """The k rows of largest inner product with each row, itself among them.

    Beyond ``exact_up_to`` every vector is compared by its four-bit codes, and a shortlist exactly;
    beyond ``all_codes_up_to`` only vectors of the lists whose centres are nearest.

    Args:
        vectors: (n, d), rows of length 1.
        k: at most n.
        exact_up_to: largest n that is searched exactly.
        all_codes_up_to: largest n of which all codes are read.

    Returns:
        Cosines (n, k) in falling order, and rows (n, k), -1 where fewer were found.
    Source: Johnson et al. 2019, FAISS; Andre et al. 2015, scanning codes in registers; Jegou et
        al. 2011, inverted lists.
    """
    import faiss

    n, d = vectors.shape
    index: Any = faiss.IndexFlatIP(d)
    if n > exact_up_to:
        each = 2 if d >= PAIRED_FROM else 1
        if d % each:
            vectors = np.pad(vectors, ((0, 0), (0, 1)))  # zeros change no inner product
        wide = vectors.shape[1]
        code = wide // each, 4, faiss.METRIC_INNER_PRODUCT
        coded: Any
        if n > all_codes_up_to:
            lists = min(round(LISTS_PER_ROOT * n**0.5), n // LIST_SAMPLE)
            centres = faiss.IndexFlatIP(wide)
            coded = faiss.IndexIVFPQFastScan(centres, wide, lists, *code)
            coded.cp.max_points_per_centroid, coded.cp.niter = LIST_SAMPLE, LIST_ROUNDS
            coded.nprobe = min(LISTS_READ, lists)
        else:
            coded = faiss.IndexPQFastScan(wide, *code)
        index = faiss.IndexRefineFlat(coded)
        index.k_factor = SHORTLIST
        index.train(vectors)
    index.add(vectors)
    cosines, rows = index.search(vectors, k)
    return cosines, rows.astype(np.int64)


@dataclass(frozen=True)
class _Groups:
    """Texts with one embedding, taken together.

    Attributes:
        of: (n,) group of each item.
        llm: (u, k) whether any member without gold has this LLM label, as shares.
        gold: (u, k) gold labels of the members, counts.
    """

    of: IntArray
    llm: FloatArray
    gold: FloatArray


def neighbour_evidence(pool: Pool, name: str) -> FloatArray:
    """(n, k) weight of the neighbours that speak for each class; never the item's own label."""
    if pool.embeddings is None:
        raise ValueError(f"{name} needs embeddings, this pool has none")
    n, k = pool.n, pool.k
    if n < 2:
        return np.zeros((n, k))
    units = unit_rows(pool.embeddings, name)
    groups = _group(pool, same_embedding(units))
    evidence = _own_group_evidence(pool, groups)
    _, first = np.unique(groups.of, return_index=True)
    count = min(len(first), K_NEIGHBOURS + SPARE + 1)
    units = units[first]  # lets go of the others before the search takes its own copy
    cosines, neighbours = nearest(units, count)
    speaks_gold = groups.gold.sum(axis=1) > 0
    gold_share = groups.gold / np.maximum(groups.gold.sum(axis=1, keepdims=True), 1.0)
    voice = np.where(speaks_gold[:, None], GOLD_WEIGHT * gold_share, groups.llm)
    # Neighbours of a group are shared by its members; what differs is each member's own label.
    near, cosine = neighbours[groups.of], cosines[groups.of]
    heard = np.zeros(n)
    for j in range(count):
        other = near[:, j]
        usable = (other >= 0) & (other != groups.of) & (heard < K_NEIGHBOURS)
        says = np.where(usable[:, None], voice[np.maximum(other, 0)], 0.0)
        echo = usable & (cosine[:, j] > SAME_TEXT) & ~speaks_gold[np.maximum(other, 0)]
        rows = np.flatnonzero(echo)
        says[rows, pool.y_llm[rows]] = 0.0
        evidence += says
        heard += says.sum(axis=1) > 0
    return evidence


def _group(pool: Pool, of: IntArray) -> _Groups:
    u, k = int(of.max()) + 1, pool.k
    known = pool.gold >= 0
    gold = np.zeros((u, k))
    np.add.at(gold, (of[known], pool.gold[known]), 1.0)
    llm = np.zeros((u, k))
    llm[of, pool.y_llm] = 1.0
    return _Groups(of, llm / llm.sum(axis=1, keepdims=True), gold)


def _own_group_evidence(pool: Pool, groups: _Groups) -> FloatArray:
    """What the other texts with the very same embedding say about each item."""
    n, k = pool.n, pool.k
    rows = np.arange(n)
    others_gold = groups.gold[groups.of]
    known = pool.gold >= 0
    others_gold[rows[known], pool.gold[known]] -= 1.0  # never the item's own
    total = others_gold.sum(axis=1, keepdims=True)
    contradicts = (groups.llm[groups.of] > 0).astype(np.float64)
    contradicts[rows, pool.y_llm] = 0.0
    size = np.maximum(contradicts.sum(axis=1, keepdims=True), 1.0)
    said = np.where(
        total > 0, GOLD_WEIGHT * others_gold / np.maximum(total, 1.0), contradicts / size
    )
    return np.asarray(said.reshape(n, k), dtype=np.float64)
