"""Suspicion from the labels of the nearest texts (FAISS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.pool import (
    BoolArray,
    FloatArray,
    IntArray,
    Neighbours,
    Pool,
    Vectors,
    blocks,
    clip_unit,
    five_digits,
)

K_NEIGHBOURS = 10
GOLD_WEIGHT = 3.0  # one gold neighbour speaks as loudly as three that only the LLM labelled
EXACT_UP_TO = 50_000  # exact search costs n^2; beyond this codes find 99 % of its neighbours
ALL_CODES_UP_TO = 200_000  # codes cost n^2, too; beyond this only those of the nearest lists
LISTS_PER_ROOT, LISTS_READ = 4, 64  # of 4 sqrt(n) lists, so many are read for each text
LIST_SAMPLE, LIST_ROUNDS = 64, 8  # texts a list, and rounds, that its centre is learned from
CODE_SAMPLE = 4096  # texts that codes are learned from
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
    check_lengths(pool.embeddings, "unsure_neighbours")
    index: Any = faiss.IndexFlatIP(pool.embeddings.shape[1])
    index.add(_units(pool.embeddings[answered]))
    share = np.zeros(pool.n)
    for block in blocks(pool.n):
        units = _units(pool.embeddings[block])
        _, nearest_rows = index.search(units, min(K_NEIGHBOURS + 1, len(answered)))
        near = answered[nearest_rows]
        other = near != np.arange(block.start, block.stop)[:, None]
        other &= np.cumsum(other, axis=1) <= K_NEIGHBOURS
        heard = other.sum(axis=1)
        share[block] = (unsure[near] & other).sum(axis=1) / np.maximum(heard, 1)
    return share


def same_embedding(embeddings: Vectors) -> IntArray:
    """Groups rows that are equal up to rounding: (n,) group of each row, 0 to groups - 1.

    Groups are numbered by content, not by position. Rows are told apart by 128 bits of a hash of
    each number's share of the row's largest, to five digits.

    Source: Carter and Wegman 1979, universal hashing.
    """
    n, d = embeddings.shape
    factors = np.random.default_rng(0).integers(0, 2**64, size=(2, d), dtype=np.uint64)
    factors |= np.uint64(1)
    hashes = np.empty((2, n), dtype=np.uint64)
    for block in blocks(n):
        whole = five_digits(embeddings[block]).view(np.uint64)
        for half, factor in zip(hashes, factors, strict=True):
            half[block] = np.einsum("nd,d->n", whole, factor)  # modulo 2^64
    order = np.lexsort(hashes)
    ordered = hashes[:, order]
    new = np.ones(n, dtype=np.int64)
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    group = np.empty(n, dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    return group


def _units(embeddings: Vectors) -> NDArray[np.float32]:
    rows = embeddings.astype(np.float32)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows


def check_lengths(embeddings: Vectors, name: str) -> None:
    """Refuses rows that are all zero, which have no cosine with any other.

    Raises:
        ValueError: a row has length zero.
    """
    zero = sum(int((~embeddings[block].any(axis=1)).sum()) for block in blocks(len(embeddings)))
    if zero:
        raise ValueError(f"{name} needs embeddings, but {zero} rows are all zero")


def nearest(
    vectors: Vectors,
    k: int,
    *,
    rows: IntArray | None = None,
    exact_up_to: int = EXACT_UP_TO,
    all_codes_up_to: int = ALL_CODES_UP_TO,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The k rows of largest cosine with each row, itself among them.

    Beyond ``exact_up_to`` every vector is compared by its four-bit codes, and a shortlist in
    float16; beyond ``all_codes_up_to`` only vectors of the lists whose centres are nearest. No copy
    of all vectors in float32 is made.

    Args:
        vectors: (n, d), no row all zero.
        k: at most n.
        rows: the u rows that there are to find, in any order; None for all.
        exact_up_to: largest n that is searched exactly.
        all_codes_up_to: largest n of which all codes are read.

    Returns:
        Cosines (u, k) in falling order, and places (u, k) in ``rows``, -1 where fewer were found.
    Source: Johnson et al. 2019, FAISS; Andre et al. 2015, scanning codes in registers; Jegou et
        al. 2011, inverted lists.
    """
    import faiss

    d = vectors.shape[1]
    n = len(vectors) if rows is None else len(rows)
    each = 2 if d >= PAIRED_FROM else 1
    wide = d if n <= exact_up_to else -(-d // each) * each

    def units(chosen: slice | IntArray) -> NDArray[np.float32]:
        part = _units(vectors[chosen] if rows is None else vectors[rows[chosen]])
        if wide > d:  # zeros change no inner product
            part = np.pad(part, ((0, 0), (0, wide - d)))
        return part

    index: Any
    if n <= exact_up_to:
        index = faiss.IndexFlatIP(d)
    else:
        code = wide // each, 4, faiss.METRIC_INNER_PRODUCT
        learned_from = CODE_SAMPLE
        coded: Any
        if n > all_codes_up_to:
            lists = min(round(LISTS_PER_ROOT * n**0.5), n // LIST_SAMPLE)
            learned_from = max(learned_from, lists * LIST_SAMPLE)
            centres = faiss.IndexFlatIP(wide)
            coded = faiss.IndexIVFPQFastScan(centres, wide, lists, *code)
            coded.cp.max_points_per_centroid, coded.cp.niter = LIST_SAMPLE, LIST_ROUNDS
            coded.nprobe = min(LISTS_READ, lists)
        else:
            coded = faiss.IndexPQFastScan(wide, *code)
        half = faiss.ScalarQuantizer.QT_fp16
        exactly = faiss.IndexScalarQuantizer(wide, half, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexRefine(coded, exactly)
        index.k_factor = SHORTLIST
        rng = np.random.default_rng(0)
        index.train(units(np.sort(rng.choice(n, min(n, learned_from), replace=False))))
    for block in blocks(n):
        index.add(units(block))
    cosines = np.empty((n, k), dtype=np.float32)
    places = np.empty((n, k), dtype=np.int32)
    for block in blocks(n):
        cosines[block], places[block] = index.search(units(block), k)
    return cosines, places


def find_neighbours(embeddings: Vectors, name: str) -> Neighbours:
    """The neighbours that ``neighbour_evidence`` listens to.

    Args:
        embeddings: (n, d), n >= 2.
        name: what needs them.

    Raises:
        ValueError: an embedding of length zero.
    """
    check_lengths(embeddings, name)
    group = same_embedding(embeddings)
    _, first = np.unique(group, return_index=True)
    cosines, rows = nearest(embeddings, min(len(first), K_NEIGHBOURS + SPARE + 1), rows=first)
    return Neighbours(group, rows, cosines)


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
    neighbours = pool.neighbours or find_neighbours(pool.embeddings, name)
    groups = _group(pool, neighbours.group)
    evidence = _own_group_evidence(pool, groups)
    speaks_gold = groups.gold.sum(axis=1) > 0
    gold_share = groups.gold / np.maximum(groups.gold.sum(axis=1, keepdims=True), 1.0)
    voice = np.where(speaks_gold[:, None], GOLD_WEIGHT * gold_share, groups.llm)
    # Neighbours of a group are shared by its members; what differs is each member's own label.
    heard = np.zeros(n)
    for j in range(neighbours.rows.shape[1]):
        other = neighbours.rows[groups.of, j]
        usable: BoolArray = (other >= 0) & (other != groups.of) & (heard < K_NEIGHBOURS)
        says = np.where(usable[:, None], voice[np.maximum(other, 0)], 0.0)
        near = neighbours.cosines[groups.of, j] > SAME_TEXT
        rows = np.flatnonzero(usable & near & ~speaks_gold[np.maximum(other, 0)])
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
