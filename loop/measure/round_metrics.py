"""A round's metrics, from the predictions of every arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loop.campaign.changes import incomparable
from loop.campaign.tables import Item, Round, Run
from loop.llm.votes import read_votes
from loop.measure.held_out import Truth, truth_of
from loop.measure.stability import measure, paired_difference, recovered_share
from loop.people.gold import people_alpha
from loop.ports import IntArray
from loop.training_sets import random_control, seeds_of

if TYPE_CHECKING:
    from loop.campaign.context import Context

ONCE = ("llm_only", "all_gold")
"""Arms that are trained once and serve every round."""

COMPARED = ("alpha_k", "p_uc", "accuracy", "macro_f1", "reliable_accuracy")
"""Metrics that arms are compared by; the first two need no gold."""


def measure_round(ctx: Context, round_: Round, evaluated: Sequence[Item]) -> dict[str, Any]:
    """Everything that the report says of a round, as JSON.

    Accuracy is measured on test items with a known label; without those, on the audit items, each
    weighted by the inverse of its probability of being drawn. Stability needs no label at all.
    """
    runs = ctx.store.runs(ctx.name)
    truth = truth_of(ctx, evaluated)
    labels = ctx.config.label_names
    k, seed = len(labels), (round_.seed, round_.number)
    seeds = seeds_of(ctx, round_)
    predictions = {
        arm: np.array(list(by_seed.values()), dtype=np.int64)
        for arm in ("loop", "llm_only", "random", "all_gold")
        if (by_seed := _predictions(runs, round_, arm, len(evaluated), seeds))
    }
    arms = {arm: _measured(found, truth, k, seed) for arm, found in predictions.items()}
    compared = {
        arm: _differences(found, predictions["loop"], truth, k, seed)
        for arm, found in predictions.items()
        if arm != "loop"
    }
    before, apart = _round_before(ctx, round_), []
    if before is not None:
        apart = incomparable(before.config, round_.config)
        pair = None if apart else _same_seeds(ctx, runs, before, round_, truth)
        if pair is not None:
            n = pair[0].shape[1]
            shared = truth if n == len(evaluated) else truth.first(n)
            compared["previous"] = _differences(*pair, shared, k, seed)
    gaps = {}
    if {"loop", "llm_only", "all_gold"} <= set(predictions):
        gaps = _differences(predictions["llm_only"], predictions["all_gold"], truth, k, seed)
    reviews = ctx.store.reviews(ctx.name)
    return {
        "arms": arms,
        "compared": compared,
        "not_comparable": apart,
        "tests": int(truth.stable.sum()),
        "frozen": _frozen(ctx, round_, evaluated, predictions["loop"], truth),
        "confusion": {
            arm: _confusion(predictions[arm], truth, k)
            for arm in ("loop", "llm_only")
            if arm in predictions and truth.source
        },
        "llm": _llm(ctx),
        "recovered": _recovered(arms, gaps),
        "bought": len(reviews),
        "pool": len(ctx.store.item_ids(ctx.name, "pool")),
        "gold": len(ctx.store.gold(ctx.name)),
        "random_gold": len(random_control(ctx, ctx.store.items(ctx.name, "pool")))
        if "random" in predictions
        else 0,
        "answers": len(ctx.store.annotations(ctx.name)),
        "evaluated": len(evaluated),
        "per_class_n": np.bincount(truth.y[truth.y >= 0], minlength=k).tolist(),
        "accuracy_from": truth.source,
        "pushed_wrong": _pushed_wrong(ctx, round_),
        "people_alpha": people_alpha(
            ctx.store.annotations(ctx.name), labels, ordinal=ctx.config.campaign.ordinal
        ),
    }


def _predictions(
    runs: Sequence[Run], round_: Round, arm: str, n: int, seeds: Sequence[int] | None = None
) -> dict[int, list[int]]:
    """Seed -> (n,) predictions, of an arm's newest set of seeds; of the seeds named alone."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        wanted = seeds is None or run.seed in seeds
        if wanted and run.arm == arm and (run.round_id == round_.id or arm in ONCE):
            groups[run.label_set].append(run)
    usable = [g for g in groups.values() if all(len(r.predictions) == n for r in g)]
    if not usable:
        return {}
    newest = max(usable, key=lambda group: max(r.id or 0 for r in group))
    return {r.seed: r.predictions for r in sorted(newest, key=lambda r: r.seed)}


def _round_before(ctx: Context, round_: Round) -> Round | None:
    """The last measured round before this one."""
    before = [r for r in ctx.store.rounds(ctx.name) if r.metrics and r.number < round_.number]
    return before[-1] if before else None


def _same_seeds(
    ctx: Context, runs: Sequence[Run], before: Round, round_: Round, truth: Truth
) -> tuple[IntArray, IntArray] | None:
    """(s, n') predictions of the round before and of this one, by the seeds that both have.

    They are of the first n' of the evaluated items: the test items, which come first, as far as
    both rounds have them, and the others if they are the same. None where nothing is shared, or
    fewer than two seeds, which could not disagree.
    """
    metrics, n, tests = before.metrics, len(truth.y), int(truth.stable.sum())
    had = metrics["evaluated"]
    had_tests = metrics.get("tests", tests if metrics["accuracy_from"] == "audit" else had)
    shared = n if (had, had_tests) == (n, tests) else min(had_tests, tests)
    then = _predictions(runs, before, "loop", had)
    now = _predictions(runs, round_, "loop", n, seeds_of(ctx, round_))
    common = sorted(then.keys() & now.keys())
    if not shared or len(common) < 2:
        return None
    a, b = (np.array([side[s][:shared] for s in common], dtype=np.int64) for side in (then, now))
    return a, b


STABLE = ("items", "seeds", "over", "alpha_k", "ac1", "p_uc", "churn", "alpha_per_class")
"""Fields of a measurement that need no gold."""


def _measured(predictions: IntArray, truth: Truth, k: int, seed: Sequence[int]) -> dict[str, Any]:
    """Stability on the test items, accuracy on the items whose class is known."""

    def on(rows: NDArray[np.bool_], y: IntArray | None) -> dict[str, Any]:
        rng = np.random.default_rng([*seed, 7])
        weight = None if y is None else truth.weight[rows]
        return measure(predictions[:, rows], y, k, weight=weight, rng=rng).to_json()

    known = truth.y >= 0
    if truth.source is None:
        return on(truth.stable, None)
    right = on(known, truth.y[known])
    stable = right if (known == truth.stable).all() else on(truth.stable, None)
    return right | {key: stable[key] for key in STABLE}


def _differences(
    a: IntArray, b: IntArray, truth: Truth, k: int, seed: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """By metric, b minus a: paired over items, with 95 % intervals."""
    found = {}
    known = truth.y >= 0
    for key in COMPARED if truth.source else COMPARED[:2]:
        rows = truth.stable if key in STABLE else known
        d = paired_difference(
            a[:, rows],
            b[:, rows],
            truth.y[rows],
            key,
            k=k,
            weight=truth.weight[rows],
            rng=np.random.default_rng([*seed, 8]),
        )
        numbers = {"value": d.value, "low": d.low, "high": d.high}
        found[key] = {name: x if np.isfinite(x) else None for name, x in numbers.items()}
    return found


def _frozen(
    ctx: Context, round_: Round, evaluated: Sequence[Item], full: IntArray, truth: Truth
) -> dict[str, Any]:
    """How far a frozen student of the same labels agrees with the full one, and how right it is."""
    from loop.measure.frozen_agreement import agreement, frozen_predictions

    learned = {t.item_id: (t.probs, t.weight) for t in ctx.store.training_labels(round_.id or 0)}
    frozen = frozen_predictions(ctx, learned, evaluated, range(len(full)))
    k, rows = len(ctx.config.labels), truth.stable
    if not rows.any():
        return {}
    found: dict[str, Any] = {
        name: metric.to_json()
        for name, metric in agreement(
            full[:, rows],
            frozen[:, rows],
            k,
            rng=np.random.default_rng([round_.seed, round_.number, 9]),
        ).items()
    }
    if truth.source:
        known = truth.y >= 0
        rng = np.random.default_rng(0)  # unused: no replicate is drawn
        right = [
            measure(
                side[:, known], truth.y[known], k, weight=truth.weight[known], bootstrap=0, rng=rng
            )
            for side in (full, frozen)
        ]
        apart = _differences(full, frozen, truth, k, (round_.seed, round_.number))["accuracy"]
        found["accuracy"] = {"difference": apart} | {
            name: m.accuracy.to_json()["value"]
            for name, m in zip(("full", "frozen"), right, strict=True)
            if m.accuracy is not None
        }
    return found


def _confusion(predictions: IntArray, truth: Truth, k: int) -> list[list[float]]:
    """(k, k) share of the known items by true class and label, mean over the seeds."""
    known = truth.y >= 0
    found = np.zeros((k, k))
    for of_seed in predictions[:, known]:
        np.add.at(found, (truth.y[known], of_seed), truth.weight[known])
    shares: list[list[float]] = (found / found.sum()).tolist()
    return shares


def _llm(ctx: Context) -> dict[str, Any]:
    """How good the LLM's labels are by class, from gold weighted by its inclusion probabilities.

    They are the labels that the students of ``llm_only`` learn, before gold scales anything. Texts
    that the LLM gave no label are left out.
    Empty while too few texts were drawn at random to speak for the pool.
    """
    from strategies.estimate import (
        Estimate,
        TooFewRandomError,
        label_quality,
        weighted_confusion,
    )

    labels = {name: i for i, name in enumerate(ctx.config.label_names)}
    items = ctx.store.items(ctx.name, "pool")
    gold, reviews = ctx.store.gold(ctx.name), {r.item_id: r for r in ctx.store.reviews(ctx.name)}
    bought = [i.id in gold and i.id in reviews for i in items]
    truth = np.array(
        [labels[gold[i.id].label] if b else -1 for i, b in zip(items, bought, strict=True)],
        dtype=np.int64,
    )
    pi = np.array(
        [reviews[i.id].inclusion_prob if b else 1.0 for i, b in zip(items, bought, strict=True)]
    )
    steps = np.array(
        [reviews[i.id].round_id if b else 0 for i, b in zip(items, bought, strict=True)]
    )
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    said, k = votes.y_llm[votes.answered], len(labels)
    truth, pi, steps = truth[votes.answered], pi[votes.answered], steps[votes.answered]
    try:
        quality = label_quality(said, truth, pi, k, round_of=steps)
        confusion = weighted_confusion(said, truth, pi, k, round_of=steps)
    except TooFewRandomError:
        return {}

    def shown(found: Estimate | None) -> dict[str, float] | None:
        return (
            None if found is None else {"value": found.value, "low": found.low, "high": found.high}
        )

    return {
        "accuracy": shown(quality.accuracy),
        "recall": [shown(r) for r in quality.recall],
        "precision": [shown(p) for p in quality.precision],
        "class_share": [shown(c) for c in quality.class_share],
        "confusion": confusion.tolist(),
        "n_gold": quality.n_gold,
        "n_random": quality.n_random,
    }


def _recovered(
    arms: dict[str, Any], gaps: dict[str, dict[str, float | None]]
) -> dict[str, dict[str, float | None]]:
    """Share of the gap between LLM labels and gold labels that the loop closed, per metric.

    A gap counts as noise while its paired interval reaches zero's side: noise is half its width.
    """
    shares: dict[str, dict[str, float | None]] = {}
    for key, gap in gaps.items():
        loop, llm, gold = (arms[arm][key]["value"] for arm in ("loop", "llm_only", "all_gold"))
        low, high = gap["low"], gap["high"]
        if None in (loop, llm, gold) or low is None or high is None:
            continue
        noise = (high - low) / 2
        share, size = recovered_share(loop, llm, gold, noise=noise)
        shares[key] = {"share": share, "gap": size, "noise": noise}
    return shares


def _pushed_wrong(ctx: Context, round_: Round) -> dict[str, Any]:
    """Share of this round's pushed items whose LLM label people found wrong, by reason."""
    gold = ctx.store.gold(ctx.name)
    scores = ctx.store.scores(round_.id or 0)
    wrong: dict[str, list[bool]] = defaultdict(list)
    for review in ctx.store.reviews(ctx.name, round_.id):
        said = scores[review.item_id].llm_label
        if review.item_id in gold and said is not None:
            wrong[review.reason].append(said != gold[review.item_id].label)
    return {
        reason: {"share": sum(found) / len(found), "n": len(found)}
        for reason, found in sorted(wrong.items())
    }
