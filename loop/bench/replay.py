"""One campaign played with the hidden gold as the people's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loop.bench.data_sets import BenchData
from loop.bench.policies import Policy
from loop.bench.preferred import preferred
from loop.bench.signal_weights import learn_weights
from loop.campaign.metrics import Suspects
from loop.measure.llm_quality import suspect_metrics
from loop.ports import FloatArray, IntArray

if TYPE_CHECKING:
    from strategies.pool import Pool
    from strategies.select import Batch

OOF_SEEDS = 2  # students that judge the pool; the final student has its own number of seeds


@dataclass(frozen=True)
class Bought:
    """What a policy did with its budget.

    Attributes:
        rows: (b,) gold labels bought, in the order of buying.
        round: (b,) that each was bought in, from 1.
        reason: (b,) why, as in ``Batch``.
        y: (n, k) training labels.
        weight: (n,) training weights.
        inclusion_prob: (n,) as in ``Pool``: of each of the rows, 1 elsewhere.
    """

    rows: IntArray
    round: IntArray
    reason: NDArray[np.str_]
    y: FloatArray
    weight: FloatArray
    inclusion_prob: FloatArray


Judge = Callable[[FloatArray, FloatArray], FloatArray | None]
"""(n, k) labels and (n,) weights -> (n, k) what students say of labels that they did not learn."""


@dataclass
class Shared:
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
    shared: Shared | None = None,
    judge: Judge | None = None,
) -> Bought:
    """Plays one campaign, with the hidden gold as the people's answers.

    Args:
        data: the pool; ``data.gold`` is read only for rows that were chosen.
        budget: gold labels to buy, all of them.
        rounds: the budget is spread over these as evenly as it can be.
        seed: of everything random in it.
        judge: fine-tuned students, for a policy that asks them.

    Returns:
        Exactly ``budget`` distinct rows, and what the student learns from.
    """
    from strategies.estimate import over_all_rounds
    from strategies.repair import balanced

    n = len(data.gold)
    if not 0 < budget <= n:
        raise ValueError(f"budget must be in 1..{n}, not {budget}")
    shared = shared or Shared()
    gold = np.full(n, -1, dtype=np.int64)
    chosen = np.full(n, -1, dtype=np.int64)
    prob_in_round: FloatArray = np.ones(n)
    pi = prob_in_round
    seen: list[tuple[dict[str, FloatArray], IntArray]] = []
    batches: list[Batch] = []
    found: list[Suspects] = []
    rounds, cover = min(rounds, budget), False
    for number in range(rounds):
        size = budget * (number + 1) // rounds - budget * number // rounds
        rng = np.random.default_rng([*seed, number])
        pool = _pool(data, gold, pi, policy, shared, rng)
        if policy.judged_suspects and number:
            deal = np.random.default_rng([*seed, number, 1])
            pool = replace(pool, p_tuned=_judged(pool, policy, _asked(judge), deal))
        candidates = np.flatnonzero(gold < 0)
        batch, suspicion, signals = _choose(
            data, pool, policy, candidates, size, seen, shared, rng, cover=cover
        )
        rows = batch.rows
        seen.append(({name: values[rows] for name, values in signals.items()}, rows))
        gold[rows], prob_in_round[rows] = data.gold[rows], batch.inclusion_prob
        chosen[rows] = number
        pi = over_all_rounds(gold, prob_in_round, chosen)
        batches.append(batch)
        if policy.guard:
            wrong = data.gold[rows] != data.y_llm[rows]
            found.append(suspect_metrics(batch.reason.tolist(), wrong, suspicion[rows], found))
            cover = found[-1].next == "coverage"
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
        y, weight = mended(data, policy, gold, pi, shared, rng, judge)
    return Bought(
        np.concatenate([batch.rows for batch in batches]),
        np.repeat(np.arange(1, rounds + 1), [len(batch.rows) for batch in batches]),
        np.concatenate([batch.reason for batch in batches]),
        y,
        weight,
        pi,
    )


def mended(
    data: BenchData,
    policy: Policy,
    gold: IntArray,
    inclusion_prob: FloatArray,
    shared: Shared,
    rng: np.random.Generator,
    judge: Judge | None = None,
) -> tuple[FloatArray, FloatArray]:
    """(n, k) labels and (n,) weights after the policy's repair; the rng deals all of its folds.

    Args:
        gold: (n,) class of what was bought, -1 elsewhere.
        inclusion_prob: (n,) as in ``Bought``.
    """
    from strategies.repair import repair

    policy = replace(policy, signals=("learned_error",))
    pool = _pool(data, gold, inclusion_prob, policy, shared, rng)
    repaired = repair(pool, policy.repair, rng=rng)
    if policy.tuned:
        judged = _asked(judge)(repaired.y, repaired.weight)
        if judged is not None:
            repaired = repair(replace(pool, p_tuned=judged), policy.repair, rng=rng)
    return repaired.y, repaired.weight


def _asked(judge: Judge | None) -> Judge:
    if judge is None:
        raise ValueError("fine-tuned students judge labels only beside a fine-tuned learner")
    return judge


def _judged(
    pool: Pool, policy: Policy, judge: Judge, rng: np.random.Generator
) -> FloatArray | None:
    """(n, k) what fine-tuned students say of the labels as they are mended so far."""
    from strategies.repair import repair

    repaired = repair(pool, policy.repair, rng=rng)
    return judge(repaired.y, repaired.weight)


def _pool(
    data: BenchData,
    gold: IntArray,
    pi: FloatArray,
    policy: Policy,
    shared: Shared,
    rng: np.random.Generator,
) -> Pool:
    """The pool as a round sees it: gold only where it was bought."""
    from loop.campaign.extensions import needs_of
    from strategies.pool import Pool
    from strategies.signals.students import gold_students, out_of_fold_probs

    wanted = policy.ranker is not None or any(
        "p_student" in needs_of(name) for name in policy.signals
    )
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
    pool = Pool(
        probs=data.probs,
        y_llm=data.y_llm,
        gold=gold.copy(),
        embeddings=data.embeddings,
        p_student=p_student,
        off_label_mass=data.off_label_mass,
        class_prior=data.class_prior,
        ordinal=data.ordinal,
        inclusion_prob=pi if (gold >= 0).any() else None,
        states=data.states if policy.states else None,
    )
    if "learned_error" in policy.signals:
        pool = replace(pool, p_gold=gold_students(pool, rng=rng))
    return pool


def _choose(
    data: BenchData,
    pool: Pool,
    policy: Policy,
    candidates: IntArray,
    size: int,
    seen: Sequence[tuple[dict[str, FloatArray], IntArray]],
    shared: Shared,
    rng: np.random.Generator,
    *,
    cover: bool,
) -> tuple[Batch, FloatArray, dict[str, FloatArray]]:
    """What to buy, and the suspicion and the signals of all items."""
    from loop.pool_arrays import suspicion_by
    from strategies.fuse import fuse_ranks
    from strategies.select import Batch, select_batch
    from strategies.signals.components import SPREAD_OVER, leading_components

    if policy.ranker is not None:
        rows = np.asarray(policy.ranker(pool, candidates, size, rng), dtype=np.int64)
        if len(np.unique(rows)) != size or not np.isin(rows, candidates).all():
            raise ValueError(f"a ranker must return {size} distinct candidates, not {rows}")
        batch = Batch(rows, np.full(size, "suspect"), np.ones(size), np.zeros(size))
        return batch, np.zeros(pool.n), {}
    first = not (pool.gold >= 0).any()
    signals: dict[str, FloatArray] = {}
    for name in usable(policy.signals, data):
        if first and name in shared.signals:
            signals[name] = shared.signals[name]
            continue
        signals[name] = suspicion_by(name, pool, rng)
        if first and name != "random":
            shared.signals[name] = signals[name]
    weights = None
    if seen and policy.learn_weights and pool.inclusion_prob is not None:
        bought = np.concatenate([rows for _, rows in seen])
        past = {name: np.concatenate([held[name] for held, _ in seen]) for name in signals}
        wrong = pool.gold[bought] != pool.y_llm[bought]
        weights = learn_weights(past, wrong, pool.inclusion_prob[bought])
    suspicion = fuse_ranks(signals, weights)
    about = leading_components(data.embeddings, SPREAD_OVER) if policy.spread_audit else None
    order = suspicion
    if policy.min_class_frac or policy.same_text is not None:
        order = preferred(
            suspicion,
            candidates,
            size,
            pool,
            min_class_frac=policy.min_class_frac,
            same_text=policy.same_text,
            rng=rng,
        )
    batch = select_batch(
        order,
        candidates,
        size,
        audit_frac=policy.audit_frac,
        rng=rng,
        about=about,
        cover=cover,
    )
    return batch, suspicion, signals


def usable(signals: Iterable[str], data: BenchData) -> tuple[str, ...]:
    """Those of the signals that the data can give; 'random' if it can give none."""
    from loop.campaign.extensions import needs_of

    has = available(data)
    return tuple(name for name in signals if needs_of(name) <= has) or ("random",)


def available(data: BenchData) -> frozenset[str]:
    """What the data set has of what strategies and policies may need."""
    has = {"embeddings", "p_student"}
    has |= {"votes"} if data.probs.shape[1] > 1 else set()
    has |= {"ordinal"} if data.ordinal else set()
    mass = data.off_label_mass
    if mass is not None and np.isfinite(mass).any(axis=1).all():
        has |= {"off_label_mass"}
    return frozenset(has)
