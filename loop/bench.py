"""Strategies side by side at exactly equal gold budget, on data whose gold labels are known.

Every strategy replays a campaign: it sees what a campaign would see, buys labels in rounds, and
its student is trained on what comes out and judged on held-out test texts. Two references stand
beside them, a student of the LLM's labels and a student of gold labels.

A repetition is a fresh subsample of the pool with fresh seeds; all strategies of a repetition get
the same ones, so that their differences are paired. Intervals are over repetitions, for fixed test
texts; where there is one repetition only they are over test texts, for that one pool sample.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from loop.bench_tables import (
    METRICS,
    REFERENCES,
    SEED_SPREADS,
    compare,
    over_items_intervals,
    summarise,
)
from loop.config import suggestion
from loop.errors import DataError
from loop.frozen import FrozenHeads
from loop.ports import Progress, SeedResult, SourceText, Student, TrainingSet, no_progress
from loop.stability import measure, metric_replicates, paired_difference

if TYPE_CHECKING:
    from strategies.pool import Pool
    from strategies.repair import Mode

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OOF_SEEDS = 2  # students that judge the pool; the final student has its own number of seeds


@dataclass(frozen=True)
class BenchData:
    """One data set: a pool with LLM labels and hidden gold, and held-out test texts.

    Attributes:
        probs: (n, m, k) class probabilities of the LLM; a plain label is a one-hot row.
        y_llm: (n,) the LLM's label.
        gold: (n,) the true class, which strategies see only where they buy it.
        embeddings: (n, d) float32.
        texts: n texts, needed by a student that reads them.
        role: 'development' where policies may be tuned on it, 'reporting' where not.
    """

    name: str
    labels: tuple[str, ...]
    probs: FloatArray
    y_llm: IntArray
    gold: IntArray
    embeddings: NDArray[np.float32]
    test_embeddings: NDArray[np.float32]
    test_gold: IntArray
    texts: Sequence[str] = ()
    test_texts: Sequence[str] = ()
    off_label_mass: FloatArray | None = None
    class_prior: FloatArray | None = None
    ordinal: bool = False
    role: str = ""

    def __post_init__(self) -> None:
        """Refuses arrays that do not fit together."""
        n = len(self.gold)
        for name in ("probs", "y_llm", "embeddings"):
            if len(getattr(self, name)) != n:
                raise ValueError(
                    f"{name} must have {n} rows like gold, not {len(getattr(self, name))}"
                )
        if len(self.test_embeddings) != len(self.test_gold):
            raise ValueError(
                f"test_embeddings and test_gold must have equal length, not"
                f" {len(self.test_embeddings)} and {len(self.test_gold)}"
            )
        if n < 10 or len(self.test_gold) < 2:
            raise ValueError(f"{self.name} has {n} pool and {len(self.test_gold)} test texts only")
        if self.gold.min() < 0 or self.gold.max() >= len(self.labels):
            raise ValueError("gold must be known for every text of the pool")

    @property
    def k(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def subset(self, rows: IntArray) -> BenchData:
        """The same test texts, and some rows of the pool."""
        mass = self.off_label_mass
        return replace(
            self,
            probs=self.probs[rows],
            y_llm=self.y_llm[rows],
            gold=self.gold[rows],
            embeddings=self.embeddings[rows],
            texts=[self.texts[i] for i in rows] if self.texts else (),
            off_label_mass=None if mass is None else mass[rows],
        )


def data_from_rows(
    name: str,
    rows: Sequence[SourceText],
    llm_columns: Sequence[str],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    *,
    test_frac: float = 0.3,
    seed: int = 0,
) -> BenchData:
    """A data set from the rows of a text source.

    Args:
        name: shown in tables.
        rows: those without a gold label are left out. Where a row names the split 'test', the test
            texts are those of that split; else a share is drawn at random.
        llm_columns: columns with LLM labels: the first is the label that the LLM gives, all of
            them are its votes. Rows whose first column holds no class are left out of the pool.
        embed: (n, d) embeddings of n texts.
        test_frac: share of the rows held out for testing where no split is named.
        seed: of that draw.

    Raises:
        DataError: no gold labels, unknown columns, or LLM labels that match no class.
    """
    known = [row for row in rows if row.gold is not None]
    if not known:
        raise DataError(f"{name} has no gold labels; name their column with --label.")
    for column in llm_columns:
        if not any(column in row.meta for row in known):
            columns = sorted({key for row in known[:100] for key in row.meta})
            raise DataError(
                f"There is no column {column!r} in {name}.{suggestion(column, columns)}"
                f" Available: {', '.join(columns)}."
            )
    labels = tuple(sorted({str(row.gold) for row in known}))
    index = {label: i for i, label in enumerate(labels)}
    if any(row.split == "test" for row in known):
        is_test = np.array([row.split == "test" for row in known])
    else:
        is_test = np.random.default_rng(seed).permutation(len(known)) < test_frac * len(known)
    said = np.array(
        [[index.get(str(row.meta.get(c)), -1) for c in llm_columns] for row in known],
        dtype=np.int64,
    )
    pool_rows = np.flatnonzero(~is_test & (said[:, 0] >= 0))
    test_rows = np.flatnonzero(is_test)
    if len(pool_rows) < 10 or len(test_rows) < 2:
        raise DataError(
            f"{name} gives {len(pool_rows)} texts with an LLM label in {llm_columns[0]!r} that is"
            f" one of {', '.join(labels)}, and {len(test_rows)} test texts; that is too few."
        )
    votes = said[pool_rows]
    probs = np.where((votes >= 0)[:, :, None], np.eye(len(labels))[votes], np.nan)
    gold = np.array([index[str(row.gold)] for row in known], dtype=np.int64)
    texts = [row.text for row in known]
    pool_texts = [texts[i] for i in pool_rows]
    test_texts = [texts[i] for i in test_rows]
    return BenchData(
        name=name,
        labels=labels,
        probs=probs,
        y_llm=votes[:, 0],
        gold=gold[pool_rows],
        embeddings=embed(pool_texts),
        test_embeddings=embed(test_texts),
        test_gold=gold[test_rows],
        texts=pool_texts,
        test_texts=test_texts,
    )


Ranker = Callable[["Pool", IntArray, int, np.random.Generator], IntArray]
"""``(pool, candidates, n, rng) -> rows``: a peer's own way to choose n of the candidates."""


@dataclass(frozen=True)
class Policy:
    """All that a strategy decides: what is suspect, who is asked, what becomes of the rest.

    Attributes:
        signals: fused by rank; those that the data cannot give are left out.
        learn_weights: whether later rounds weigh the signals by what they found before.
        audit_frac: share of every batch that is drawn at random, inside the budget.
        repair: what becomes of the items that no human saw.
        same_text: cosine from which two texts of a batch count as the same.
        min_class_frac: share of the suspects that every predicted class gets at least.
        ranker: instead of signals.
        balance: whether labels that nobody mended are weighted by their class like mended ones.
        only_gold: trains on nothing but the gold that was bought.
        needs: what the data must have, else the policy is skipped.
    """

    signals: tuple[str, ...] = ()
    learn_weights: bool = False
    audit_frac: float = 0.0
    repair: Mode = "keep"
    same_text: float | None = None
    min_class_frac: float = 0.0
    ranker: Ranker | None = None
    balance: bool = False
    only_gold: bool = False
    needs: frozenset[str] = frozenset()


def predictor_ranker(method: Literal["logistic", "ridge"]) -> Ranker:
    """Ranks by a learned probability that the LLM's label is wrong, at random without gold.

    'ridge' sees nothing but the embeddings, the filter that arXiv 2504.15432 leaves open;
    'logistic' sees every signal, the predicted class and the embeddings' first components.
    """

    def rank(pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator) -> IntArray:
        from strategies.learned import build_features, error_predictor, gold_free_signals

        if pool.embeddings is None:
            raise ValueError("the error predictor needs embeddings, this pool has none")
        features = pool.embeddings.astype(np.float64)
        if method == "logistic":
            features = build_features(
                gold_free_signals(pool), pool.y_llm, pool.k, embeddings=pool.embeddings
            )
        rows = np.flatnonzero(pool.gold >= 0)
        wrong = pool.gold[rows] != pool.y_llm[rows]
        found = error_predictor(features, wrong, rows, rng=rng, method=method)
        order = np.lexsort((rng.random(len(candidates)), -found.p_wrong[candidates]))
        return np.asarray(candidates[order[:n]], dtype=np.int64)

    return rank


FUSED = ("entropy_calibrated", "flip_rate", "knn_disagreement", "student_disagreement")
DEFAULT = Policy(("learned_error",), audit_frac=0.2, repair="soft")

POLICIES: dict[str, Policy] = {
    "goldloop": DEFAULT,
    "goldloop-no-repair": replace(DEFAULT, repair="keep"),
    "goldloop-no-audit": replace(DEFAULT, audit_frac=0.0),
    "goldloop-no-learning": replace(DEFAULT, signals=FUSED),
    "goldloop-learned-weights": replace(DEFAULT, signals=FUSED, learn_weights=True),
    "goldloop-no-calibration": replace(DEFAULT, signals=("entropy", *FUSED[1:])),
    "goldloop-quotas": replace(DEFAULT, min_class_frac=0.1),
    "goldloop-spread": replace(DEFAULT, same_text=0.9),
    "goldloop-relabel": replace(DEFAULT, repair="relabel"),
    "goldloop-weight": replace(DEFAULT, repair="weight"),
    "goldloop-drop": replace(DEFAULT, repair="drop"),
    "repair-only": Policy(("random",), repair="soft"),
    "entropy-repair": Policy(("entropy",), repair="soft"),
    "entropy-balanced": Policy(("entropy",), balance=True),
    "fusion": Policy(FUSED),
    "error-predictor": Policy(ranker=predictor_ranker("logistic")),
    "ridge-embeddings": Policy(ranker=predictor_ranker("ridge")),
    "random": Policy(("random",)),
    "gold-only": Policy(("random",), only_gold=True),
    "entropy": Policy(("entropy",)),
    "entropy_calibrated": Policy(("entropy_calibrated",)),
    "margin": Policy(("margin",)),
    "knn_disagreement": Policy(("knn_disagreement",)),
    "student_disagreement": Policy(("student_disagreement",)),
    "seed_disagreement": Policy(("seed_disagreement",)),
    "class_rarity": Policy(("class_rarity",)),
    # The paper's ensemble replaces the labels on which five prompts differ.
    "prompt-flips": Policy(("flip_rate",), needs=frozenset({"votes"})),
    "jensen_shannon": Policy(("jensen_shannon",), needs=frozenset({"votes"})),
    "off_label_mass": Policy(("off_label_mass",), needs=frozenset({"off_label_mass"})),
    "knn_label_std": Policy(("knn_label_std",), needs=frozenset({"ordinal"})),
}
"""Every strategy by name; ``bench_peers.peers()`` adds those of other packages."""


@runtime_checkable
class Learner(Protocol):
    """The student of the benchmark."""

    @property
    def revision(self) -> str:
        """What it is, for the record."""
        ...

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """(s, number of test texts) classes, from training on the pool's rows."""
        ...


@dataclass(frozen=True)
class FrozenLearner:
    """The frozen student: heads on the data's own embeddings."""

    heads: FrozenHeads = field(default_factory=FrozenHeads)

    @property
    def revision(self) -> str:
        """The heads'."""
        return self.heads.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        probs = self.heads.probs(data.embeddings, y, weight, data.test_embeddings, seeds)
        return np.asarray(probs.argmax(axis=2), dtype=np.int64)


@dataclass(frozen=True)
class EncoderLearner:
    """Fine-tunes an encoder through the ``Student`` port."""

    student: Student

    @property
    def revision(self) -> str:
        """The encoder's."""
        return self.student.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        if not data.texts or not data.test_texts:
            raise DataError(f"{data.name} has no texts, and the student {self.revision} reads them")
        found: dict[int, SeedResult] = {}

        def keep(result: SeedResult) -> None:
            found[result.seed] = result

        train = TrainingSet(data.texts, y, weight)
        self.student.fit(train, data.test_texts, data.labels, seeds, keep={}, on_seed=keep)
        return np.stack([found[s].probs.argmax(axis=1) for s in seeds]).astype(np.int64)


@dataclass(frozen=True)
class KeptPredictions:
    """A learner whose predictions are kept in a folder, so that a run broken off can go on.

    Attributes:
        folder: one file per label set, named by everything that the predictions depend on.
    """

    learner: Learner
    folder: Path

    @property
    def revision(self) -> str:
        """The learner's."""
        return self.learner.revision

    def predict(
        self, data: BenchData, y: FloatArray, weight: FloatArray, seeds: Sequence[int]
    ) -> IntArray:
        """See ``Learner``."""
        digest = hashlib.sha256(repr((self.revision, data.labels, list(seeds))).encode())
        for text in (*data.texts, "", *data.test_texts):
            digest.update(text.encode() + b"\0")
        for array in (y, weight, data.embeddings, data.test_embeddings):
            digest.update(np.ascontiguousarray(array).tobytes())
        path = self.folder / f"{data.name}-{digest.hexdigest()[:20]}.npy"
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.int64)
        found = self.learner.predict(data, y, weight, seeds)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, found.astype(np.int16), allow_pickle=False)
        partial.replace(path)
        return found


@dataclass(frozen=True)
class Bought:
    """What a policy did with its budget.

    Attributes:
        rows: gold labels bought, in the order of buying.
        y: (n, k) training labels.
        weight: (n,) training weights.
    """

    rows: IntArray
    y: FloatArray
    weight: FloatArray


@dataclass
class _Shared:
    """What the first round of every policy has in common, computed once a repetition."""

    p_student: FloatArray | None = None
    signals: dict[str, FloatArray] = field(default_factory=dict)


def replay(
    data: BenchData,
    policy: Policy,
    budget: int,
    *,
    rounds: int,
    seed: Sequence[int],
    shared: _Shared | None = None,
) -> Bought:
    """Plays one campaign, with the hidden gold as the people's answers.

    Args:
        data: the pool; ``data.gold`` is read only for rows that were chosen.
        budget: gold labels to buy, all of them.
        rounds: the budget is spread over these as evenly as it can be.
        seed: of everything random in it.

    Returns:
        Exactly ``budget`` distinct rows, and what the student learns from.
    """
    from strategies.repair import balanced, repair

    n = len(data.gold)
    if not 0 < budget <= n:
        raise ValueError(f"budget must be in 1..{n}, not {budget}")
    shared = shared or _Shared()
    gold = np.full(n, -1, dtype=np.int64)
    pi = np.ones(n)
    seen: list[tuple[dict[str, FloatArray], IntArray]] = []
    order: list[IntArray] = []
    rounds = min(rounds, budget)
    for number in range(rounds):
        size = budget * (number + 1) // rounds - budget * number // rounds
        rng = np.random.default_rng([*seed, number])
        pool = _pool(data, gold, pi, policy, shared, rng)
        candidates = np.flatnonzero(gold < 0)
        rows, chance, signals = _choose(data, pool, policy, candidates, size, seen, shared, rng)
        seen.append(({name: values[rows] for name, values in signals.items()}, rows))
        gold[rows], pi[rows] = data.gold[rows], chance
        order.append(rows)
    rng = np.random.default_rng([*seed, rounds])
    kept = np.eye(data.k)[np.where(gold >= 0, gold, data.y_llm)]
    if policy.only_gold:
        y, weight = kept, (gold >= 0).astype(np.float64)
    elif policy.balance:
        y, weight = balanced(kept, kept, 1.0)
        weight[gold >= 0] = 1.0
    elif policy.repair == "keep":
        y, weight = kept, np.ones(n)
    else:
        pool = _pool(data, gold, pi, replace(policy, signals=("learned_error",)), shared, rng)
        mended = repair(pool, policy.repair, rng=rng)
        y, weight = mended.y, mended.weight
    return Bought(np.concatenate(order), y, weight)


def _pool(
    data: BenchData,
    gold: IntArray,
    pi: FloatArray,
    policy: Policy,
    shared: _Shared,
    rng: np.random.Generator,
) -> Pool:
    """The pool as a round sees it: gold only where it was bought."""
    from strategies import NEEDS
    from strategies.pool import Pool
    from strategies.students import out_of_fold_probs

    wanted = policy.ranker is not None or any("p_student" in NEEDS[name] for name in policy.signals)
    p_student = None
    if wanted:
        fresh = not (gold >= 0).any()
        p_student = shared.p_student if fresh else None
        if p_student is None:
            p_student = out_of_fold_probs(
                data.embeddings,
                np.where(gold >= 0, gold, data.y_llm),
                np.ones(len(gold)),
                data.k,
                seeds=OOF_SEEDS,
                rng=rng if not fresh else np.random.default_rng(len(gold)),
            )
        if fresh:
            shared.p_student = p_student
    return Pool(
        probs=data.probs,
        y_llm=data.y_llm,
        gold=gold.copy(),
        embeddings=data.embeddings,
        p_student=p_student,
        off_label_mass=data.off_label_mass,
        class_prior=data.class_prior,
        ordinal=data.ordinal,
        inclusion_prob=pi.copy() if (gold >= 0).any() else None,
    )


def _choose(
    data: BenchData,
    pool: Pool,
    policy: Policy,
    candidates: IntArray,
    size: int,
    seen: Sequence[tuple[dict[str, FloatArray], IntArray]],
    shared: _Shared,
    rng: np.random.Generator,
) -> tuple[IntArray, FloatArray, dict[str, FloatArray]]:
    """Rows to buy, the probability that each had, and the signals of all items."""
    from strategies import STRATEGIES
    from strategies.fuse import fuse_ranks, learn_weights
    from strategies.select import select_batch

    if policy.ranker is not None:
        rows = np.asarray(policy.ranker(pool, candidates, size, rng), dtype=np.int64)
        if len(np.unique(rows)) != size or not np.isin(rows, candidates).all():
            raise ValueError(f"a ranker must return {size} distinct candidates, not {rows}")
        return rows, np.ones(size), {}
    first = not (pool.gold >= 0).any()
    signals: dict[str, FloatArray] = {}
    for name in usable(policy.signals, data):
        if first and name in shared.signals:
            signals[name] = shared.signals[name]
            continue
        signals[name] = STRATEGIES[name](pool, rng)
        if first and name != "random":
            shared.signals[name] = signals[name]
    weights = None
    if seen and policy.learn_weights:
        bought = np.concatenate([rows for _, rows in seen])
        past = {name: np.concatenate([held[name] for held, _ in seen]) for name in signals}
        wrong = pool.gold[bought] != pool.y_llm[bought]
        chance = None if pool.inclusion_prob is None else pool.inclusion_prob[bought]
        weights = learn_weights(past, wrong, chance)
    suspicion = fuse_ranks(signals, weights)
    batch = select_batch(
        suspicion,
        candidates,
        size,
        audit_frac=policy.audit_frac,
        rng=rng,
        y_llm=pool.y_llm,
        min_class_frac=policy.min_class_frac,
        embeddings=pool.embeddings,
        same_text=policy.same_text,
    )
    return batch.rows, batch.inclusion_prob, signals


def usable(signals: Iterable[str], data: BenchData) -> tuple[str, ...]:
    """Those of the signals that the data can give; 'random' if it can give none."""
    from strategies import NEEDS

    has = _has(data)
    return tuple(name for name in signals if NEEDS[name] <= has) or ("random",)


def _has(data: BenchData) -> frozenset[str]:
    has = {"embeddings", "p_student"}
    has |= {"votes"} if data.probs.shape[1] > 1 else set()
    has |= {"ordinal"} if data.ordinal else set()
    mass = data.off_label_mass
    if mass is not None and np.isfinite(mass).any(axis=1).all():
        has |= {"off_label_mass"}
    return frozenset(has)


# the whole benchmark


@dataclass(frozen=True)
class BenchResult:
    """What a run of the benchmark found.

    Attributes:
        records: one per data set, strategy, budget and repetition; references have budget 0.
        summary: one per data set, strategy and budget: mean, spread and interval of each metric,
            and the recovered share with its denominator.
        comparisons: paired differences of the first strategy to each other one.
        settings: of the run.
    """

    records: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and None."""
        return {
            "settings": self.settings,
            "summary": self.summary,
            "comparisons": self.comparisons,
            "records": self.records,
        }


def run_bench(
    sets: Iterable[BenchData],
    strategies: Sequence[str],
    *,
    budgets: Sequence[float] = (0.05, 0.1, 0.25),
    rounds: int = 3,
    learner: Learner | Student | None = None,
    seeds: int = 5,
    repetitions: int = 5,
    pool_frac: float = 0.8,
    dims: int | None = 128,
    seed: int = 0,
    policies: Mapping[str, Policy] | None = None,
    progress: Progress = no_progress,
) -> BenchResult:
    """Replays every strategy at every budget on fresh pool samples.

    Args:
        sets: the data sets.
        strategies: names in ``policies``; the first is compared with each of the others. Those
            that need what a data set lacks are left out there.
        budgets: shares of the pool sample that are bought.
        rounds: rounds that the budget is spread over.
        learner: the student that is judged; None is ``FrozenLearner()``.
        seeds: students per label set, at least 2.
        repetitions: pool samples; intervals are over these, or over test texts if there is one.
        pool_frac: share of the pool in each sample, drawn without replacement.
        dims: embeddings are reduced to so many principal components; None leaves them.
        seed: of the whole run.
        policies: None is ``POLICIES``.
        progress: told of finished label sets.

    Raises:
        DataError: unknown strategies, or settings that make no sense.
    """
    known = POLICIES if policies is None else policies
    _check_settings(strategies, known, budgets, rounds, seeds, repetitions, pool_frac)
    learner = as_learner(learner)
    records: list[dict[str, Any]] = []
    noise: dict[tuple[str, str], list[float]] = {}
    for data in sets:
        for repetition in range(repetitions):
            sample = _sample(data, repetition, pool_frac=pool_frac, dims=dims, seed=seed)
            found, reference_noise = _repetition(
                sample, strategies, known, budgets, rounds, learner, seeds,
                repetition=repetition, seed=seed, over_items=repetitions == 1, progress=progress,
            )  # fmt: skip
            records += found
            for metric, value in reference_noise.items():
                noise.setdefault((data.name, metric), []).append(value)
    settings = {
        "strategies": list(strategies),
        "budgets": list(budgets),
        "rounds": rounds,
        "student": learner.revision,
        "seeds": seeds,
        "repetitions": repetitions,
        "pool_frac": pool_frac,
        "dims": dims,
        "seed": seed,
        "intervals": "95 % t intervals over repetitions, for fixed test texts"
        if repetitions > 1
        else "95 % bootstrap intervals over test texts, for one pool sample",
    }
    return BenchResult(
        records,
        summarise(records, {key: float(np.mean(v)) for key, v in noise.items()}),
        compare(records, strategies[0], [s for s in strategies if s != strategies[0]]),
        settings,
    )


def as_learner(student: Learner | Student | None) -> Learner:
    """The benchmark's student: heads on embeddings, or an encoder behind the ``Student`` port."""
    if student is None:
        return FrozenLearner()
    if isinstance(student, Learner):
        return student
    return EncoderLearner(student)


def _check_settings(
    strategies: Sequence[str],
    known: Mapping[str, Policy],
    budgets: Sequence[float],
    rounds: int,
    seeds: int,
    repetitions: int,
    pool_frac: float,
) -> None:
    if not strategies:
        raise DataError("name at least one strategy")
    for name in strategies:
        if name not in known:
            raise DataError(
                f"Unknown strategy {name!r}.{suggestion(name, known)}"
                f" Available: {', '.join(known)}."
            )
    if len(set(strategies)) < len(strategies):
        raise DataError("a strategy is named twice")
    if not budgets or not all(0 < b <= 1 for b in budgets):
        raise DataError(f"budgets must be shares in (0, 1], not {list(budgets)}")
    if rounds < 1 or seeds < 2 or repetitions < 1:
        raise DataError(
            f"rounds and repetitions must be >= 1 and seeds >= 2, not {rounds}, {repetitions},"
            f" {seeds}"
        )
    if not 0 < pool_frac <= 1:
        raise DataError(f"the share of the pool must be in (0, 1], not {pool_frac}")


def _sample(
    data: BenchData, repetition: int, *, pool_frac: float, dims: int | None, seed: int
) -> BenchData:
    """The pool sample of one repetition, its embeddings reduced."""
    rng = np.random.default_rng([seed, repetition, zlib.crc32(data.name.encode())])
    n = len(data.gold)
    rows = np.sort(rng.choice(n, max(2, round(pool_frac * n)), replace=False))
    sample = data.subset(rows)
    if dims is None or dims >= min(data.embeddings.shape):
        return sample
    mean = sample.embeddings.mean(axis=0)
    _, _, axes = np.linalg.svd(sample.embeddings - mean, full_matrices=False)
    turn = axes[:dims].T
    return replace(
        sample,
        embeddings=np.ascontiguousarray((sample.embeddings - mean) @ turn, dtype=np.float32),
        test_embeddings=np.ascontiguousarray((data.test_embeddings - mean) @ turn, np.float32),
    )


def _repetition(
    sample: BenchData,
    strategies: Sequence[str],
    known: Mapping[str, Policy],
    budgets: Sequence[float],
    rounds: int,
    learner: Learner,
    seeds: int,
    *,
    repetition: int,
    seed: int,
    over_items: bool,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every record of one pool sample, and how uncertain the references' gap is."""
    n = len(sample.gold)
    student_seeds = [1000 * repetition + s for s in range(seeds)]
    wrong = sample.y_llm != sample.gold
    base = {"data": sample.name, "role": sample.role, "repetition": repetition, "pool": n}
    records: list[dict[str, Any]] = []
    predictions: dict[str, IntArray] = {}
    drawn: dict[tuple[str, float], dict[str, FloatArray]] = {}
    for name, y in zip(REFERENCES, (sample.y_llm, sample.gold), strict=True):
        began = time.monotonic()
        labels = np.eye(sample.k)[y]
        predictions[name] = learner.predict(sample, labels, np.ones(n), student_seeds)
        spent = {
            "bought": 0 if name == "llm_only" else n,
            "label_accuracy": float((y == sample.gold).mean()),
            "pushed_wrong": None,
            "errors_caught": None,
        }
        records.append(
            {**base, "strategy": name, "budget": 0.0, **spent}
            | _measured(predictions[name], sample, time.monotonic() - began)
        )
        if over_items:
            drawn[name, 0.0] = metric_replicates(predictions[name], sample.test_gold, sample.k)
        progress(1)
    shared = _Shared()
    has = _has(sample)
    for name in strategies:
        policy = known[name]
        if not policy.needs <= has:
            continue
        for place, budget in enumerate(budgets):
            began = time.monotonic()
            count = min(n, max(1, round(budget * n)))
            origin = [seed, repetition, zlib.crc32(name.encode()), place]
            bought = replay(sample, policy, count, rounds=rounds, seed=origin, shared=shared)
            found = learner.predict(sample, bought.y, bought.weight, student_seeds)
            caught = int(wrong[bought.rows].sum())
            right = bought.y.argmax(axis=1) == sample.gold
            spent = {
                "bought": len(bought.rows),
                "label_accuracy": float(np.average(right, weights=bought.weight)),
                "pushed_wrong": caught / len(bought.rows),
                "errors_caught": caught / int(wrong.sum()) if wrong.any() else None,
            }
            records.append(
                {**base, "strategy": name, "budget": budget, **spent}
                | _measured(found, sample, time.monotonic() - began)
            )
            if over_items:
                drawn[name, budget] = metric_replicates(found, sample.test_gold, sample.k)
            progress(1)
    if over_items:
        for record in records:
            record["over_items"] = over_items_intervals(
                drawn, record["strategy"], record["budget"], strategies[0]
            )
    return records, _gap_noise(predictions, sample)


def _measured(preds: IntArray, data: BenchData, seconds: float) -> dict[str, Any]:
    found = measure(preds, data.test_gold, data.k, bootstrap=0, rng=np.random.default_rng(0))
    values = {}
    for name in (*METRICS, *SEED_SPREADS):
        metric = getattr(found, name)
        value = math.nan if metric is None else metric.value
        values[name] = None if math.isnan(value) else float(value)
    per_class = {
        name: [None if math.isnan(m.value) else float(m.value) for m in getattr(found, name) or ()]
        for name in ("recall", "f1", "alpha_per_class")
    }
    return {**values, "per_class": per_class, "seconds": round(seconds, 3)}


def _gap_noise(predictions: Mapping[str, IntArray], data: BenchData) -> dict[str, float]:
    """Half the width of the 95 % interval over test texts of the gap between the references."""
    noise = {}
    for metric in METRICS:
        gap = paired_difference(
            predictions["llm_only"], predictions["all_gold"], data.test_gold, metric,
            k=data.k, bootstrap=200, rng=np.random.default_rng(1),
        )  # fmt: skip
        noise[metric] = (gap.high - gap.low) / 2
    return noise
