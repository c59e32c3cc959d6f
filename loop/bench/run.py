"""Strategies side by side at exactly equal gold budget, on data whose gold labels are known.

Every strategy replays a campaign: it sees what a campaign would see, buys labels in rounds, and
its student is trained on what comes out and judged on held-out test texts. Two references stand
beside them, a student of the LLM's labels and a student of gold labels.

A repetition is a fresh subsample of the pool with fresh seeds; all strategies of a repetition get
the same ones, so that their differences are paired. Intervals are over repetitions, for fixed test
texts; where there is one repetition only they are over test texts, for that one pool sample.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from loop.bench.data_sets import BenchData
from loop.bench.learners import FineTuned, Learner, as_learner
from loop.bench.policies import POLICIES, Policy
from loop.bench.replay import Shared, available, replay
from loop.bench.tables import (
    REFERENCES,
    BenchResult,
    compare,
    over_items_intervals,
    summarise,
)
from loop.campaign.metrics import METRICS, WITH_SPREADS
from loop.errors import DataError, suggestion
from loop.measure.stability import measure, metric_replicates, paired_differences
from loop.ports import FloatArray, IntArray, Progress, Student, no_progress


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
            sample = pool_sample(data, repetition, pool_frac=pool_frac, dims=dims, seed=seed)
            rows, reference_noise = _repetition(
                sample,
                strategies,
                known,
                budgets,
                rounds,
                learner,
                seeds,
                repetition=repetition,
                seed=seed,
                over_items=repetitions == 1,
                progress=progress,
            )
            records += rows
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
                f"Unknown strategy {name!r}.{suggestion(name, known, begins=True)}"
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


def pool_sample(
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
    shared = Shared()
    has = available(sample)
    for name in strategies:
        policy = known[name]
        if not policy.needs <= has or (policy.tuned and not isinstance(learner, FineTuned)):
            continue
        for place, budget in enumerate(budgets):
            began = time.monotonic()
            count = min(n, max(1, round(budget * n)))
            # What is bought does not depend on repair, so that this repair gets the same gold.
            buyer = name.removesuffix("-fine-tuned")
            origin = [seed, repetition, zlib.crc32(buyer.encode()), place]
            judge = None
            if isinstance(learner, FineTuned):
                judge = partial(learner.cross_fit, sample, seed=student_seeds[0])
            bought = replay(
                sample, policy, count, rounds=rounds, seed=origin, shared=shared, judge=judge
            )
            classes = learner.predict(sample, bought.y, bought.weight, student_seeds)
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
                | _measured(classes, sample, time.monotonic() - began)
            )
            if over_items:
                drawn[name, budget] = metric_replicates(classes, sample.test_gold, sample.k)
            progress(1)
    if over_items:
        for record in records:
            record["over_items"] = over_items_intervals(
                drawn, record["strategy"], record["budget"], strategies[0]
            )
    return records, _gap_noise(predictions, sample)


def _measured(preds: IntArray, data: BenchData, seconds: float) -> dict[str, Any]:
    stability = measure(preds, data.test_gold, data.k, bootstrap=0, rng=np.random.default_rng(0))
    metrics = {key: stability.metric(key) for key in WITH_SPREADS}
    values = {key: metric and metric.value for key, metric in metrics.items()}
    per_class = {
        name: [m.value if m.known else None for m in getattr(stability, name) or ()]
        for name in ("recall", "f1", "alpha_per_class")
    }
    return {**values, "per_class": per_class, "seconds": round(seconds, 3)}


def _gap_noise(predictions: Mapping[str, IntArray], data: BenchData) -> dict[str, float]:
    """Half the width of the 95 % interval over test texts of the gap between the references."""
    gaps = paired_differences(
        predictions["llm_only"],
        predictions["all_gold"],
        data.test_gold,
        list(METRICS),
        k=data.k,
        bootstrap=200,
        over="items",
        rng=np.random.default_rng(1),
    )
    return {key: (gap.high - gap.low) / 2 for key, gap in gaps.items() if gap.known}
